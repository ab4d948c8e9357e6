"""Who gets which part when workers come, go, disagree and fail: the driver against a Ray that can be steered.

The real Ray is in `test_engine_ray`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from annotations.errors import BeyondError
from benchmark import engine_ray, records
from benchmark.engine_ray import TRIES, Job, Outcome, Pool, RaySettings
from benchmark.engine_settings import Loaded, WorkerSettings
from benchmark.images import Chunk, Handle, ImageSet, open_image_set
from benchmark.parts import Part
from benchmark.ray_worker import LANES, Failed
from benchmark.records import Predictions
from tests.benchmark.synthetic import write_validation_images

N = 1300  # six parts of 256 images, the last of 20


class RayError(Exception):
    pass


class RayTaskError(RayError):
    pass


class ActorDiedError(RayError):
    pass


@dataclass
class Script:
    """What happens, in place of chance.

    Attributes:
        dies: Whether a worker (number, method, chunk index or None) dies over a call.
        slow: Calls (number, method, chunk index) whose answer comes last.
        weights: Weights that a worker finds, by number.
        sees: Whether a worker can read the images.
        never: Workers that never come up.
        fails: Why loading or scoring a spec fails on a worker, if it does.
    """

    dies: Callable[[int, str, int | None], bool] = lambda *_: False
    slow: Callable[[int, str, int | None], bool] = lambda *_: False
    weights: Callable[[int], str] = lambda _: "w"
    sees: Callable[[int], bool] = lambda _: True
    never: Callable[[int], bool] = lambda _: False
    fails: Callable[[int, str, str], str | None] = lambda *_: None
    nodes: Sequence[dict[str, float]] = ({"CPU": 3.0},)
    calls: list[tuple[int, str, str, int | None]] = field(default_factory=list)
    handles: list[Handle] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)


class FakeWorker:
    """Predicts the class that is the image's number."""

    def __init__(self, script: Script, number: int) -> None:
        self.script, self.number, self.dead = script, number, False

    def hello(self, handle: Handle | None) -> tuple[str, bool]:
        return f"node{self.number}", self.script.sees(self.number)

    def load(self, spec: str, batch_size: int | None, compare: Sequence[Handle]) -> Loaded | Failed:
        if reason := self.script.fails(self.number, "load", spec):
            return Failed(reason)
        model = {"weights_sha256": self.script.weights(self.number), "preprocessing": {}}
        return Loaded(model, "cpu", 1, 0, batch_size or 64)

    def score(self, spec: str, batch_size: int, chunk: Chunk) -> tuple[Part, list[str]] | Failed:
        if reason := self.script.fails(self.number, "score", spec):
            return Failed(reason)
        self.script.handles.extend(chunk.handles)
        classes = np.array([[int(i[-8:]) % 1000] for i in chunk.ids], dtype=np.int16)
        return Part(chunk.index, Predictions(chunk.ids, chunk.labels, classes)), []


@dataclass(eq=False)
class Ref:
    """A call that has no answer yet."""

    worker: FakeWorker
    method: str
    args: tuple[Any, ...]
    number: int

    @property
    def index(self) -> int | None:
        return self.args[2].index if self.method == "score" else None


class FakeRay:
    """Answers one call at a time, oldest first, slow ones last."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, script: Script) -> None:
        self.script = script
        self.started = 0
        self.count = itertools.count()

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": resources} for resources in self.script.nodes]

    def remote(self, **_: Any) -> Callable[[type], Any]:
        return lambda _cls: SimpleNamespace(remote=self._start)

    def _start(self, *_: Any) -> Any:
        worker = FakeWorker(self.script, self.started)
        self.started += 1

        def method(name: str) -> Any:
            return SimpleNamespace(remote=lambda *args: Ref(worker, name, args, next(self.count)))

        return SimpleNamespace(
            worker=worker, hello=method("hello"), load=method("load"), score=method("score")
        )

    def wait(self, refs: list[Any], *, num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        able = [ref for ref in refs if not self.script.never(ref.worker.number)]
        if not able:
            return [], refs
        held = max(sum(other.worker is ref.worker for other in refs) for ref in refs)
        assert held <= LANES, "a worker has more in hand than it has lanes"
        able.sort(key=lambda r: (self.script.slow(r.worker.number, r.method, r.index), r.number))
        return able[:1], [ref for ref in refs if ref is not able[0]]

    def get(self, ref: Ref) -> Any:
        worker = ref.worker
        if worker.dead or self.script.dies(worker.number, ref.method, ref.index):
            worker.dead = True
            self.script.lost.append(worker.number)
            raise ActorDiedError("The actor died.\nmore")
        spec = "" if ref.method == "hello" else ref.args[0]
        self.script.calls.append((worker.number, ref.method, spec, ref.index))
        return getattr(worker, ref.method)(*ref.args)

    def kill(self, actor: Any) -> None:
        actor.worker.dead = True


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    return open_image_set(str(write_validation_images(tmp_path_factory.mktemp("images"), N)))


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Script], None]:
    def use(script: Script) -> None:
        @contextmanager
        def connected(where: RaySettings, how: WorkerSettings) -> Iterator[Any]:
            yield FakeRay(script)

        monkeypatch.setattr(engine_ray, "connected", connected)

    return use


def run(
    images: ImageSet,
    folder: Path,
    specs: Sequence[str] = ("m",),
    *,
    where: RaySettings | None = None,
    how: WorkerSettings | None = None,
    done: set[str] | None = None,
) -> tuple[list[Outcome], list[str]]:
    lines: list[str] = []

    @contextmanager
    def begin(loaded: Loaded) -> Iterator[set[str]]:
        yield set(done or ())

    jobs = [Job(spec, folder / spec, begin) for spec in specs]
    with Pool(where or RaySettings(), how or WorkerSettings(quiet=True), warn=lines.append) as pool:
        return pool.predict(jobs, images), lines


def check(folder: Path, images: ImageSet, spec: str = "m") -> None:
    """Every image has its own record, in the parts of the plan."""
    parts = list(records.iter_predictions(folder / spec))
    assert [len(part) for part in parts] == [256, 256, 256, 256, 256, 20]
    ids = np.concatenate([part.image_ids for part in parts])
    assert ids.tolist() == images.ids.tolist()
    assert [int(c) for part in parts for c in part.classes[:, 0]] == [int(i[-8:]) % 1000 for i in ids]


def test_all_parts_are_made_by_all_workers(
    images: ImageSet, tmp_path: Path, scripted: Callable[[Script], None]
) -> None:
    script = Script()
    scripted(script)
    (outcome,), lines = run(images, tmp_path)
    assert outcome.summary is not None
    assert (outcome.summary.scored, lines) == (N, [])
    assert {number for number, name, _, _ in script.calls if name == "score"} == {0, 1, 2}
    loads = [number for number, name, _, _ in script.calls if name == "load"]
    assert sorted(loads) == [0, 1, 2]  # weights are loaded once a worker
    check(tmp_path, images)


def test_workers_that_come_late_find_work_left(
    images: ImageSet, tmp_path: Path, scripted: Callable[[Script], None]
) -> None:
    # Six parts for six workers, of which one is up at once and the others much later.
    script = Script(
        slow=lambda number, name, _: (number > 0 and name == "hello") or name == "score",
        nodes=({"CPU": 6.0},),
    )
    scripted(script)
    run(images, tmp_path)
    made = [number for number, name, _, _ in script.calls if name == "score"]
    assert sorted(made) == [0, 1, 2, 3, 4, 5]
    check(tmp_path, images)


@pytest.mark.parametrize("victim", [0, 1, 2])
@pytest.mark.parametrize("method", ["hello", "load", "score"])
def test_a_lost_worker_costs_nothing_but_its_parts(
    images: ImageSet, tmp_path: Path, scripted: Callable[[Script], None], victim: int, method: str
) -> None:
    script = Script(dies=lambda number, name, _: number == victim and name == method)
    scripted(script)
    (outcome,), lines = run(images, tmp_path)
    assert outcome.summary is not None
    assert outcome.summary.scored == N
    assert script.lost == [victim]
    assert len(lines) == 1
    assert "a worker was lost (ActorDiedError: The actor died.)" in lines[0]
    made = [index for _, name, _, index in script.calls if name == "score" and index is not None]
    assert sorted(set(made)) == list(range(6))
    assert len(made) <= 6 + LANES
    check(tmp_path, images)


def test_a_part_that_kills_its_workers_ends_its_model_alone(
    images: ImageSet, tmp_path: Path, scripted: Callable[[Script], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    get = FakeRay.get

    def deadly(self: FakeRay, ref: Ref) -> Any:
        if ref.index == 2 and ref.args[0] == "bad":
            ref.worker.dead = True
        return get(self, ref)

    scripted(Script())
    monkeypatch.setattr(FakeRay, "get", deadly)
    (good, bad), _ = run(images, tmp_path, ("good", "bad"))
    assert good.summary is not None
    assert bad.error is not None
    assert f"{TRIES} workers in a row were lost over the images ILSVRC2012_val_00000513" in str(bad.error)
    check(tmp_path, images, "good")


def test_each_worker_takes_a_model_of_its_own_then_helps(
    images: ImageSet, tmp_path: Path, scripted: Callable[[Script], None]
) -> None:
    script = Script()
    scripted(script)
    specs = ["a", "b", "c", "d"]
    outcomes, _ = run(images, tmp_path, specs)
    assert all(outcome.summary is not None for outcome in outcomes)
    first = {number: spec for number, name, spec, _ in reversed(script.calls) if name == "load"}
    assert sorted(first.values()) == ["a", "b", "c"]
    assert sum(name == "score" for _, name, _, _ in script.calls) == 4 * 6
    for spec in specs:
        check(tmp_path, images, spec)


def test_a_failing_model_does_not_lose_the_others(
    images: ImageSet, tmp_path: Path, scripted: Callable[[Script], None]
) -> None:
    def fails(number: int, method: str, spec: str) -> str | None:
        return f"{spec} cannot {method}" if (method, spec) in (("load", "x"), ("score", "y")) else None

    scripted(Script(fails=fails))
    (x, good, y), _ = run(images, tmp_path, ("x", "good", "y"))
    assert (str(x.error), str(y.error)) == ("x cannot load", "y cannot score")
    assert good.summary is not None
    check(tmp_path, images, "good")


def test_a_worker_with_other_weights_has_no_part(
    images: ImageSet, tmp_path: Path, scripted: Callable[[Script], None]
) -> None:
    script = Script(weights=lambda number: "other" if number == 1 else "w")
    scripted(script)
    (outcome,), lines = run(images, tmp_path)
    assert outcome.summary is not None
    assert {number for number, name, _, _ in script.calls if name == "score"} == {0, 2}
    assert lines == ["m is not run by a worker on machine node1: has other weights than the first worker"]
    check(tmp_path, images)


def test_a_model_that_no_worker_left_can_run_is_given_up(
    images: ImageSet, tmp_path: Path, scripted: Callable[[Script], None]
) -> None:
    # The first worker opens the run and is lost; all others find other weights.
    script = Script(
        weights=lambda number: f"w{number}",
        dies=lambda number, name, _: number == 0 and name == "score",
        nodes=({"CPU": 2.0},),
    )
    scripted(script)
    (outcome,), lines = run(images, tmp_path)
    assert str(outcome.error) == "m: no worker is left that can run it; the reasons are above"
    assert any("has other weights" in line for line in lines)


def test_one_worker_without_the_model_is_left_out(
    images: ImageSet, tmp_path: Path, scripted: Callable[[Script], None]
) -> None:
    scripted(Script(fails=lambda number, method, _: "no such file" if number == 0 else None))
    (outcome,), _ = run(images, tmp_path)
    assert outcome.summary is not None
    check(tmp_path, images)


def test_bytes_are_sent_to_workers_that_do_not_see_the_files(
    images: ImageSet, tmp_path: Path, scripted: Callable[[Script], None]
) -> None:
    script = Script(sees=lambda number: number == 0, nodes=({"CPU": 2.0},))
    scripted(script)
    (outcome,), _ = run(images, tmp_path)
    assert outcome.summary is not None
    kinds = {type(handle).__name__ for handle in script.handles}
    assert kinds == {"FileHandle", "_Sent"}
    rows = {image_id: i for i, image_id in enumerate(images.ids)}
    sent = next(handle for handle in script.handles if type(handle).__name__ == "_Sent")
    there = images.handle(rows[sent.image_id])
    assert (sent.read(), sent.where) == (there.read(), there.where)
    check(tmp_path, images)


def test_an_idle_worker_makes_the_part_of_a_slow_one_too(
    images: ImageSet, tmp_path: Path, scripted: Callable[[Script], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    def tick() -> float:
        clock[0] += 1.0
        return clock[0]

    monkeypatch.setattr(engine_ray, "time", SimpleNamespace(monotonic=tick))
    # Worker 0 answers only when nobody else has anything to answer.
    script = Script(slow=lambda number, name, _: number == 0 and name == "score", nodes=({"CPU": 2.0},))
    scripted(script)
    (outcome,), _ = run(images, tmp_path)
    assert outcome.summary is not None
    assert outcome.summary.scored == N
    by_other = {index for number, name, _, index in script.calls if name == "score" and number == 1}
    assert by_other == set(range(6))
    check(tmp_path, images)


def test_workers_that_never_start_are_said_to(
    images: ImageSet, tmp_path: Path, scripted: Callable[[Script], None]
) -> None:
    scripted(Script(dies=lambda _, name, __: name == "hello"))
    with pytest.raises(BeyondError, match=r"Ray's workers do not start .*same beyond installed"):
        run(images, tmp_path)


def test_a_cluster_without_workers_is_not_waited_for_for_ever(
    images: ImageSet, tmp_path: Path, scripted: Callable[[Script], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    def tick() -> float:
        clock[0] += 20.0
        return clock[0]

    monkeypatch.setattr(engine_ray, "time", SimpleNamespace(monotonic=tick))
    scripted(Script(never=lambda _: True))
    with pytest.raises(BeyondError, match=r"no Ray worker came up in 10 minutes; look at the cluster"):
        run(images, tmp_path)


@pytest.mark.parametrize(
    ("where", "how", "nodes", "message"),
    [
        (RaySettings(), WorkerSettings(), [{}], "no worker of 1 CPU fits"),
        (RaySettings(), WorkerSettings(threads=8), [{"CPU": 4.0}, {"CPU": 7.0}], "have 4, 7"),
        (RaySettings(gpus_per_worker=2), WorkerSettings(), [{"GPU": 1.0, "CPU": 8.0}], "no worker of 2 GPU"),
        (RaySettings(), WorkerSettings(device="cuda"), [{"CPU": 8.0}], "has no GPU"),
        (RaySettings(gpus_per_worker=1), WorkerSettings(device="cpu"), [{"CPU": 8.0}], "--gpus-per-worker"),
    ],
)
def test_what_does_not_fit_is_said_at_once(
    images: ImageSet,
    tmp_path: Path,
    scripted: Callable[[Script], None],
    where: RaySettings,
    how: WorkerSettings,
    nodes: list[dict[str, float]],
    message: str,
) -> None:
    scripted(Script(nodes=nodes))
    with pytest.raises(BeyondError, match=message):
        run(images, tmp_path, where=where, how=how)


@pytest.mark.parametrize(
    ("where", "nodes", "workers"),
    [
        (RaySettings(), [{"GPU": 4.0, "CPU": 64.0}, {"GPU": 2.0, "CPU": 8.0}], 6),
        (RaySettings(gpus_per_worker=0.5), [{"GPU": 1.0, "CPU": 64.0}], 2),
        (RaySettings(gpus_per_worker=2), [{"GPU": 3.0}, {"GPU": 4.0}], 3),
        (RaySettings(), [{"CPU": 4.0}], 4),
        (RaySettings(workers=3), [{"CPU": 4.0}], 3),
        (RaySettings(workers=5), [{"CPU": 1.0}], 5),  # the autoscaler's business
    ],
)
def test_as_many_workers_as_there_is_room_for(
    images: ImageSet,
    tmp_path: Path,
    scripted: Callable[[Script], None],
    where: RaySettings,
    nodes: list[dict[str, float]],
    workers: int,
) -> None:
    script = Script(nodes=nodes)
    scripted(script)
    run(images, tmp_path, where=where)
    assert len({number for number, name, _, _ in script.calls if name == "hello"}) == workers


def test_a_run_that_is_complete_needs_no_part(
    images: ImageSet, tmp_path: Path, scripted: Callable[[Script], None]
) -> None:
    script = Script()
    scripted(script)
    (outcome,), _ = run(images, tmp_path, done=set(images.ids))
    assert outcome.summary is not None
    assert (outcome.summary.scored, outcome.summary.kept) == (0, N)
    assert not any(name == "score" for _, name, _, _ in script.calls)


def test_two_answers_to_one_part_are_one_record(
    images: ImageSet, tmp_path: Path, scripted: Callable[[Script], None]
) -> None:
    """What `take_slow` gives out twice is written once, and losing one of two holders gives nothing back."""
    state = engine_ray._State(Job("m", tmp_path, lambda _: no_ids()), images)
    state.open(Loaded({}, "cpu", 1, 0, 256))
    state.seconds = [0.0]
    chunk = state.take()
    assert chunk is not None
    again = state.take_slow(time.monotonic() + 1)
    assert again is chunk
    assert state.take_slow(time.monotonic() + 1) is None
    state.give_back(chunk)
    assert chunk.index in state.out
    part = Part(chunk.index, Predictions(chunk.ids, chunk.labels, np.zeros((len(chunk), 1), np.int16)))
    assert state.write(part) == 256
    assert state.write(replace(part)) == 0
    state.abandon()


@contextmanager
def no_ids() -> Iterator[set[str]]:
    yield set()
