"""The Ray engine: the parts of a run, made by workers on one machine or many. Needs the extra `ray`.

Workers are actors that keep their models (`benchmark.ray_worker`). The driver hands out parts, writes what
comes back exactly as the local engine does, and needs no torch. What a lost worker had in hand is given to
another. Several models share the workers: each takes a model of its own while there are some, then helps.
"""

from __future__ import annotations

import importlib
import math
import os
import secrets
import shutil
import socket
import statistics
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from annotations.errors import BeyondError
from benchmark.devices import own_cores
from benchmark.engine_settings import Loaded, WorkerSettings
from benchmark.images import Chunk, Handle, ImageSet, StreamedImageSet
from benchmark.parts import COMPARED, Part, PartWriter, Summary, part_size, plan
from benchmark.progress import Meter, meter
from benchmark.ray_worker import LANES, Failed, Worker

TRIES = 4
"""Workers that one part may lose before its model is given up."""

_PATIENCE_S = 600.0  # without any worker
_SAY_AFTER_S = 30.0  # that there is none
_SLOW = 3.0  # times the median a part may take before an idle worker makes it too


@dataclass(frozen=True)
class RaySettings:
    """Where to run, and on how many workers.

    Attributes:
        address: Of a cluster's head (HOST:PORT), or `auto`; None starts Ray on this machine.
        workers: Number of workers; None takes what the cluster has room for now. More than that is
            asked of an autoscaler, and work begins with those that are there.
        gpus_per_worker: GPUs of a worker, may be a fraction; None is one where the cluster has any.
    """

    address: str | None = None
    workers: int | None = None
    gpus_per_worker: float | None = None


@dataclass
class Job:
    """One model to score.

    Attributes:
        spec: Its spec.
        run: Its folder.
        begin: Called once a worker has loaded it: locks and prepares the folder while its block runs, and
            gives the ids that have a record.
        batch_size: Asked of the workers instead of theirs, for a run that goes on.
        compare: Count what the precision changes against float32.
    """

    spec: str
    run: Path
    begin: Callable[[Loaded], AbstractContextManager[set[str]]]
    batch_size: int | None = None
    compare: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a job: a summary, or why there is none."""

    summary: Summary | None = None
    error: BeyondError | None = None


@dataclass(frozen=True)
class _Sent:
    """An image whose bytes come with it, for a worker that cannot read them at their place."""

    image_id: str
    where: str
    data: bytes

    def read(self) -> bytes:
        """The bytes."""
        return self.data


def _sent(handle: Handle) -> Handle:
    try:
        return _Sent(handle.image_id, handle.where, handle.read())
    except (OSError, BeyondError):
        return handle  # the worker finds out, and reports it, as it would any other image


@dataclass(frozen=True)
class _Task:
    """What a worker was asked: to say hello (no state), to load a model (no chunk), or to make a part."""

    state: _State | None = None
    chunk: Chunk | None = None


@dataclass(eq=False)
class _Hand:
    """A worker, as the driver sees it."""

    actor: Any
    tasks: dict[Any, _Task] = field(default_factory=dict)
    node: str = ""
    sees: bool = True
    there: bool = False
    state: _State | None = None


class _State:
    """A job under way."""

    def __init__(self, job: Job, images: ImageSet) -> None:
        self.job = job
        self.outcome: Outcome | None = None
        self.hands: dict[_Hand, Literal["loading", "ready", "refused"]] = {}
        self.loaded: Loaded | None = None
        self.refusals = 0
        self.summary = Summary()
        self._images = images
        self._stack = ExitStack()
        self._writer: PartWriter | None = None
        self._chunks: Iterator[Chunk] = iter(())
        self._again: deque[Chunk] = deque()
        self._next: Chunk | None = None
        self._tries: Counter[int] = Counter()
        self.out: dict[int, tuple[Chunk, float, int]] = {}  # chunk, since when, how many workers have it
        self.seconds: list[float] = []
        self.left = math.inf  # parts that no worker has, about

    @property
    def batch_size(self) -> int:
        """Images a forward pass."""
        assert self.loaded is not None
        return self.job.batch_size or self.loaded.batch_size

    def open(self, loaded: Loaded) -> None:
        """Begin, once a worker has said what the model is."""
        self.loaded = loaded
        done = self._stack.enter_context(self.job.begin(loaded))
        self._writer = self._stack.enter_context(PartWriter(self.job.run))
        self.summary.kept = len(done)
        if self._images.total is not None:
            self.left = -(-(self._images.total - len(done)) // part_size(self.batch_size))
        self._chunks = plan(self._images, self.batch_size, done=done)
        self._advance()

    def _advance(self) -> None:
        self._next = next(self._chunks, None)

    @property
    def more(self) -> bool:
        """Whether there are parts that no worker has."""
        return bool(self._again) or self._next is not None

    @property
    def complete(self) -> bool:
        """Whether every part is written."""
        return self.loaded is not None and not self.more and not self.out

    def take(self) -> Chunk | None:
        """The next part for a worker."""
        if self._again:
            chunk = self._again.popleft()
        elif self._next is not None:
            chunk = self._next
            self.left -= 1
            self._advance()
        else:
            return None
        self.out[chunk.index] = (chunk, time.monotonic(), 1)
        return chunk

    def take_slow(self, now: float) -> Chunk | None:
        """A part that one worker has had for very long, so that another may be faster."""
        if not self.seconds:
            return None
        limit = _SLOW * statistics.median(self.seconds)
        for index, (chunk, since, holders) in self.out.items():
            if holders == 1 and now - since > limit:
                self.out[index] = (chunk, since, 2)
                return chunk
        return None

    def give_back(self, chunk: Chunk) -> None:
        """A worker that had a part is lost."""
        if chunk.index not in self.out:
            return
        _, since, holders = self.out[chunk.index]
        self._tries[chunk.index] += 1
        if self._tries[chunk.index] >= TRIES:
            self.fail(
                f"{self.job.spec}: {TRIES} workers in a row were lost over the images {chunk.ids[0]} to "
                f"{chunk.ids[-1]}; if memory ran out, use a smaller --batch-size or fewer workers"
            )
        elif holders > 1:
            self.out[chunk.index] = (chunk, since, holders - 1)
        else:
            del self.out[chunk.index]
            self._again.append(chunk)

    def write(self, part: Part) -> int:
        """Take a part; returns how many images are done by it, none if another worker was faster."""
        if part.index not in self.out or self._writer is None:
            return 0
        _, since, _ = self.out.pop(part.index)
        self.seconds.append(time.monotonic() - since)
        self._writer.write(part)
        self.summary.add(part)
        return part.scored + len(part.failures)

    def finish(self) -> None:
        """Close the run, with every part written."""
        self._stack.close()
        self.outcome = Outcome(summary=self.summary)

    def fail(self, message: str) -> None:
        """Give the job up; what is written stays."""
        with suppress(OSError):
            self._stack.close()
        self.outcome = Outcome(error=BeyondError(message))

    def abandon(self) -> None:
        """Let go of the run, whatever state it is in."""
        with suppress(OSError):
            self._stack.close()


class Pool:
    """Workers of a Ray cluster. A context manager; they keep their models from one `predict` to the next."""

    def __init__(self, where: RaySettings, how: WorkerSettings, *, warn: Callable[[str], None]) -> None:
        """Nothing is started before the `with` block is entered.

        Args:
            where: The cluster and the number of workers.
            how: How each worker runs.
            warn: Called with one line for whatever the user should know.
        """
        self._where = where
        self._how = how
        self._warn = warn
        self._hands: list[_Hand] = []
        self._stack = ExitStack()
        self._stillborn = 0
        self._alone_since: float | None = None
        self._said_alone = False
        self._first: Handle | None = None

    def __enter__(self) -> Pool:
        """Connect to the cluster, or start one.

        Raises:
            BeyondError: Ray is not installed, the cluster cannot be reached, or no worker fits on it.
        """
        with ExitStack() as stack:
            self._ray = stack.enter_context(connected(self._where, self._how))
            stack.callback(self._kill)
            self._actor, self._wanted = self._plan_workers()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers, and the cluster if it was started here."""
        self._stack.__exit__(kind, error, trace)

    def predict(self, jobs: Sequence[Job], images: ImageSet) -> list[Outcome]:
        """Record the predictions of every job's model on the images that have none yet.

        Args:
            jobs: The models, each with its run folder.
            images: On what.

        Returns:
            One outcome for each job; a failed model does not keep the others from being scored.

        Raises:
            BeyondError: No worker came up, or the cluster is lost.
            OSError: Records cannot be written.
        """
        states = [_State(job, images) for job in jobs]
        self._first = None if isinstance(images, StreamedImageSet) else images.handle(0)
        self._images = images
        parts = self._wanted
        if images.total is not None:
            parts = len(jobs) * max(1, -(-images.total // max(256, self._how.batch_size or 256)))
        while len(self._hands) < min(self._wanted, parts):
            self._spawn()
        total = None if images.total is None else images.total * len(jobs)
        name = jobs[0].spec if len(jobs) == 1 else f"{len(jobs)} models"
        try:
            with meter(f"Scoring {name}", total, quiet=self._how.quiet) as progress:
                while any(state.outcome is None for state in states):
                    self._hand_out(states)
                    self._receive(states, progress)
        except self._ray.exceptions.RayError as error:
            raise BeyondError(
                f"the Ray cluster is lost ({_reason(error)}); run the same command again"
            ) from error
        finally:
            for state in states:
                state.abandon()
        return [state.outcome for state in states if state.outcome is not None]

    # -- workers

    def _plan_workers(self) -> tuple[Any, int]:
        """How to make a worker, and how many to make."""
        how, where = self._how, self._where
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        gpus = where.gpus_per_worker
        if gpus is None:
            gpus = 1.0 if how.device != "cpu" and any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0
        if gpus and how.device == "cpu":
            raise BeyondError("--gpus-per-worker does not go with --device cpu; leave one of them out")
        if not gpus and how.device.startswith("cuda"):
            raise BeyondError(
                "the Ray cluster has no GPU, or workers were to have none of it; use --device auto"
            )
        cpus = 1 if gpus else how.threads or 1
        kind, share = ("GPU", gpus) if gpus else ("CPU", cpus)
        room = sum(int(node.get(kind, 0) / share + 1e-9) for node in nodes)
        if not room and where.workers is None:
            have = ", ".join(f"{node.get(kind, 0):g}" for node in nodes) or "none"
            raise BeyondError(
                f"no worker of {share:g} {kind} fits on the Ray cluster (its machines have {have}); pass "
                "--ray-workers to have an autoscaler bring machines, or ask for less"
            )
        device = "cuda" if gpus else "cpu"
        self._how = replace(how, device=device)
        actor = self._ray.remote(
            num_cpus=cpus,
            num_gpus=gpus,
            max_concurrency=LANES + 1,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
        )(Worker)
        return actor, where.workers or room

    def _spawn(self) -> None:
        hand = _Hand(self._actor.remote(self._how, str(Path.cwd())))
        hand.tasks[hand.actor.hello.remote(self._first)] = _Task()
        self._hands.append(hand)

    def _kill(self) -> None:
        for hand in self._hands:
            with suppress(Exception):
                self._ray.kill(hand.actor)
        self._hands.clear()

    def _lose(self, hand: _Hand, error: Exception, states: Sequence[_State]) -> None:
        """A worker, its machine, or what it made is gone."""
        if hand not in self._hands:
            return
        self._hands.remove(hand)
        with suppress(Exception):
            self._ray.kill(hand.actor)
        reason = _reason(error)
        self._stillborn = 0 if hand.there else self._stillborn + 1
        if self._stillborn >= TRIES:
            raise BeyondError(
                f"Ray's workers do not start ({reason}); is the same beyond installed on all machines?"
            )
        given = 0
        for task in hand.tasks.values():
            if task.state is not None and task.chunk is not None and task.state.outcome is None:
                task.state.give_back(task.chunk)
                given += 1
        for state in states:
            state.hands.pop(hand, None)
        parts = "the part in its hands goes" if given == 1 else f"the {given} parts in its hands go"
        others = f"; {parts} to others" if given else ""
        self._warn(f"a worker was lost ({reason}){others}")
        self._spawn()

    # -- work

    def _hand_out(self, states: Sequence[_State]) -> None:
        """Give work to whoever has a lane free, one piece each in turn."""
        given = True
        while given:
            given = False
            for hand in [hand for hand in self._hands if hand.there]:
                free = not hand.tasks or (len(hand.tasks) < LANES and self._enough(states))
                if free and (task := self._choose(hand, states)) is not None:
                    self._submit(hand, task)
                    given = True

    def _enough(self, states: Sequence[_State]) -> bool:
        """Whether there are parts for the second lanes, beside one for each worker that has none yet."""
        without = sum(not any(task.chunk for task in hand.tasks.values()) for hand in self._hands)
        return sum(state.left for state in states if state.outcome is None) > without

    def _choose(self, hand: _Hand, states: Sequence[_State]) -> _Task | None:
        """What a worker should do next, if there is anything."""
        live = [state for state in states if state.outcome is None]
        if hand.state in live:
            state = hand.state
            assert state is not None
            if state.hands.get(hand) == "loading":
                return None
            if state.hands.get(hand) == "ready" and (chunk := state.take()) is not None:
                return _Task(state, chunk)
        fresh = [s for s in live if not any(stand != "refused" for stand in s.hands.values())]
        helped = sorted(
            (s for s in live if s not in fresh and (s.loaded is None or s.more)), key=lambda s: len(s.hands)
        )
        for state in [*fresh, *helped]:
            stand = state.hands.get(hand)
            if stand is None:
                hand.state = state
                state.hands[hand] = "loading"
                return _Task(state)
            if stand == "ready" and (chunk := state.take()) is not None:
                hand.state = state
                return _Task(state, chunk)
        now = time.monotonic()
        for state in live:
            if state.hands.get(hand) == "ready" and not any(t.state is state for t in hand.tasks.values()):
                slow = state.take_slow(now)
                if slow is not None:
                    return _Task(state, slow)
        return None

    def _submit(self, hand: _Hand, task: _Task) -> None:
        state = task.state
        assert state is not None
        if task.chunk is not None:
            chunk = task.chunk
            if not hand.sees:
                chunk = replace(chunk, handles=[_sent(handle) for handle in chunk.handles])
            ref = hand.actor.score.remote(state.job.spec, state.batch_size, chunk)
        else:
            compare: list[Handle] = []
            if state.job.compare and state.loaded is None and len(state.hands) == 1:
                compare = self._images.spread(COMPARED)
                compare = compare if hand.sees else [_sent(handle) for handle in compare]
            size = state.job.batch_size or self._how.batch_size
            if state.loaded is not None:
                size = state.batch_size
            ref = hand.actor.load.remote(state.job.spec, size, compare)
        hand.tasks[ref] = task

    def _receive(self, states: Sequence[_State], progress: Meter) -> None:
        """Wait for an answer, and take it."""
        owner = {ref: hand for hand in self._hands for ref in hand.tasks}
        if not owner:
            for state in states:
                if state.outcome is None:
                    state.fail(f"{state.job.spec}: no worker is left that can run it; the reasons are above")
            return
        ready, _ = self._ray.wait(list(owner), num_returns=1, timeout=1.0)
        for ref in ready:
            hand = owner[ref]
            try:
                answer = self._ray.get(ref)
            except self._ray.exceptions.RayTaskError as error:
                answer = Failed(_reason(error), str(error))
            except self._ray.exceptions.RayError as error:
                self._lose(hand, error, states)
                continue
            self._take(hand, hand.tasks.pop(ref), answer, progress)
        self._check_alone()

    def _take(self, hand: _Hand, task: _Task, answer: Any, progress: Meter) -> None:
        if isinstance(answer, Failed) and answer.trace and os.environ.get("BEYOND_DEBUG"):
            self._warn(answer.trace)
        state = task.state
        if state is None:
            if isinstance(answer, Failed):
                raise BeyondError(f"a Ray worker cannot work: {answer.message}")
            hand.node, hand.sees = answer
            hand.there = True
            self._stillborn = 0
        elif state.outcome is not None:
            return
        elif isinstance(answer, Loaded):
            self._welcome(hand, state, answer, progress)
        elif isinstance(answer, Failed) and task.chunk is None:
            self._refuse(hand, state, answer.message)
        elif isinstance(answer, Failed):
            state.fail(answer.message)
        else:
            part, lines = answer
            for line in lines:
                self._warn(f"{state.job.spec}: {line}")
            progress.advance(state.write(part))
            if state.complete:
                state.finish()

    def _welcome(self, hand: _Hand, state: _State, loaded: Loaded, progress: Meter) -> None:
        """A worker has a model: the first opens the run, the others must have the same."""
        if state.loaded is None:
            try:
                state.open(loaded)
            except BeyondError as error:
                state.fail(str(error))
                return
            progress.drop(state.summary.kept)
            if state.complete:
                state.finish()
        for what in ("weights_sha256", "preprocessing"):
            if state.loaded is not None and state.loaded.model[what] != loaded.model[what]:
                name = "weights" if what == "weights_sha256" else what
                self._refuse(hand, state, f"has other {name} than the first worker")
                return
        state.hands[hand] = "ready"

    def _refuse(self, hand: _Hand, state: _State, message: str) -> None:
        """A worker cannot run a model; if two cannot, or there is but one, nobody can."""
        state.hands[hand] = "refused"
        state.refusals += 1
        if state.loaded is not None:
            self._warn(f"{state.job.spec} is not run by a worker on machine {hand.node[:8]}: {message}")
        if state.loaded is None and state.refusals >= min(2, sum(hand.there for hand in self._hands)):
            state.fail(message)

    def _check_alone(self) -> None:
        """Say when there is no worker, and do not wait for one for ever."""
        if any(hand.there for hand in self._hands):
            self._alone_since, self._said_alone = None, False
            return
        now = time.monotonic()
        self._alone_since = self._alone_since or now
        if now - self._alone_since > _PATIENCE_S:
            raise BeyondError(
                f"no Ray worker came up in {_PATIENCE_S / 60:.0f} minutes; look at the cluster (ray status), "
                "then run the same command again"
            )
        if now - self._alone_since > _SAY_AFTER_S and not self._said_alone:
            self._said_alone = True
            self._warn("waiting for the Ray cluster: no worker is up yet")


def _reason(error: Exception) -> str:
    """The first sentence of what Ray says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def _knock(address: str) -> None:
    """Find out at once that nobody answers: Ray itself tries for minutes.

    Raises:
        ConnectionError: Nobody does.
    """
    host, colon, port = address.rpartition(":")
    if not colon or "/" in host or not port.isdigit():
        return  # auto, or an address of another kind
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(f"nobody answers there: {error}") from error


@contextmanager
def connected(where: RaySettings, how: WorkerSettings) -> Iterator[Any]:
    """Ray, connected to a cluster; one that is started here ends with the block. Yields the module `ray`.

    Ray started here is quiet, has no dashboard, sends no statistics, and obeys only who has its secret.

    Raises:
        BeyondError: Ray is not installed, or the cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray reads it when it is imported: later it would lock itself out.
    if where.address is None and "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    try:
        ray = importlib.import_module("ray")
    except ImportError:
        raise BeyondError(
            "--engine ray needs the package ray; install it with: pip install 'beyond-accuracy[ray]'"
        ) from None
    quiet = {"log_to_driver": False, "configure_logging": False, "logging_level": "ERROR"}
    if ray.is_initialized():
        yield ray
        return
    with ExitStack() as stack:
        options: dict[str, Any] = {**quiet, "address": where.address}
        if where.address is None:
            # Paths of sockets must be short.
            base = tempfile.gettempdir() if len(tempfile.gettempdir()) < 24 else "/tmp"
            folder = tempfile.mkdtemp(prefix=f"beyond-ray-{os.getpid()}-", dir=base)
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            options |= {
                "address": "local",
                "num_cpus": max(own_cores(), (where.workers or 0) * (how.threads or 1)),
                "include_dashboard": False,
                "object_store_memory": 512 << 20,
                "_temp_dir": folder,
            }
        stack.callback(ray.shutdown)
        _connect(ray, where, options)
        yield ray


def _connect(ray: Any, where: RaySettings, options: dict[str, Any]) -> None:
    """Start Ray here, or join a cluster.

    Raises:
        BeyondError: It cannot be done.
    """
    # Ray gives up starting after half a minute, which a busy machine can take.
    for attempts_left in (1, 0) if where.address is None else (0,):
        try:
            if where.address is not None:
                _knock(where.address)
            ray.init(**options)
        except Exception as error:  # Ray raises many kinds, Exception itself among them
            ray.shutdown()
            if not attempts_left:
                what = (
                    "start Ray here" if where.address is None else f"reach the Ray cluster at {where.address}"
                )
                raise BeyondError(f"cannot {what} ({_reason(error)})") from error
        else:
            return
