"""The Ray engine on a cluster of two machines, which are processes here: records are the local engine's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmark import records
from benchmark.cli import main
from tests.benchmark.synthetic import write_user_model, write_validation_images

N = 1500
ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills processes")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_user_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_validation_images(tmp_path_factory.mktemp("images"), N)


@pytest.fixture(scope="module")
def local(model: str, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of the local engine."""
    run = tmp_path_factory.mktemp("local") / "run"
    options = ["--threads", "1", "--batch-size", "16", "--out", str(run)]
    main(["score", model, "--images", str(images), *options])
    return run


class TwoMachines:
    """A cluster of two machines with two CPUs each, as Ray's own tests make one."""

    def __init__(self) -> None:
        cluster_utils = pytest.importorskip("ray.cluster_utils")
        settings = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 128 << 20}
        self.cluster: Any = cluster_utils.Cluster()
        node: Any = None
        for tries_left in (2, 1, 0):  # Ray gives up starting after half a minute
            try:
                while len(self.cluster.list_all_nodes()) < 2:
                    node = self.cluster.add_node(**settings)
            except Exception:
                if not tries_left:
                    raise
        self.second = node

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def at_work(self) -> bool:
        """Whether a worker of the second machine is making a part: Ray shows that in its title."""
        raylet = self.second.all_processes["raylet"][0].process.pid
        command = ["ps", "-o", "args=", "--ppid", str(raylet)]
        return "Worker.score" in subprocess.run(command, capture_output=True, text=True).stdout

    def lose_one(self) -> None:
        """Kill the second machine: its raylet and all its workers, without a word."""
        self.cluster.remove_node(self.second, allow_graceful=False)


@pytest.fixture(scope="module")
def machines() -> Iterator[TwoMachines]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Workers inherit it: 94 batches of 16 images take some seconds.
        patch.setenv("TEST_SLEEP", "0.08")
        found = TwoMachines()
        try:
            yield found
        finally:
            found.cluster.shutdown()


def start(*options: str | Path, **environment: str) -> subprocess.Popen[str]:
    """`beyond score` on Ray, in a process of its own."""
    command = [sys.executable, "-m", "benchmark", "score", *map(str, options), "--engine", "ray"]
    return subprocess.Popen(
        [*command, "--threads", "1", "--batch-size", "16"],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_parts(process: subprocess.Popen[str], folder: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while len(list(folder.glob("**/predictions/part-*"))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def names(run: Path) -> list[str]:
    """Names of parts, which carry the checksums of their bytes."""
    return [path.name for path in records.part_paths(run / "predictions")]


def test_driver_killed_then_machine_lost_and_a_model_fails_yet_the_run_is_the_local_engines(
    machines: TwoMachines, model: str, images: Path, local: Path, tmp_path: Path
) -> None:
    specs = tmp_path / "models.txt"
    specs.write_text(f"{model.replace(':model', ':nan')}  # gives NaN\n")
    options = (
        model,
        "--models",
        specs,
        "--images",
        images,
        "--ray-address",
        machines.address,
        "--out",
        tmp_path,
    )
    process = start(*options)
    wait_for_parts(process, tmp_path, 1)
    process.kill()
    process.communicate()
    (run,) = (path.parent for path in tmp_path.glob("*/predictions"))
    there = len(names(run))
    assert 1 <= there < len(names(local)) - 1

    process = start(*options)
    wait_for_parts(process, tmp_path, there + 1)
    deadline = time.monotonic() + 120
    while not machines.at_work():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    machines.lose_one()
    printed, said = process.communicate(timeout=200)
    assert process.returncode == 2, said
    assert "going on with" in said
    assert "a worker was lost" in said
    assert "NaN or infinite logits" in said
    assert "1 of 2 models failed" in said.splitlines()[-1]
    assert "top-1" in printed
    assert names(run) == names(local)
    assert (run / "scorecard.json").read_bytes() == (local / "scorecard.json").read_bytes()
    assert json.loads((run / "run.json").read_text())["environment"]["engine"] == "ray"


@pytest.mark.shared
@pytest.mark.strength
@pytest.mark.timeout(900)
def test_lite0_on_four_workers_of_two_machines_of_which_one_is_lost(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    images = shared_data / "ilsvrc-val-sample"
    options = ("efficientnet-lite0", "--images", images, "--annotations", "real,mla")
    alike = ("--threads", "1", "--batch-size", "16", "--out", tmp_path / "local")
    main([str(argument) for argument in ("score", *options, *alike)])
    machines = TwoMachines()
    try:
        place = ("--ray-address", machines.address, "--ray-workers", "4")
        process = start(*options, *place, "--out", tmp_path / "ray")
        deadline = time.monotonic() + 300
        while not machines.at_work():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        machines.lose_one()
        _, said = process.communicate(timeout=600)
    finally:
        machines.cluster.shutdown()
    assert process.returncode == 0, said
    assert "to others" in said
    assert names(tmp_path / "ray") == names(tmp_path / "local")
    scorecards = [(tmp_path / engine / "scorecard.json").read_bytes() for engine in ("local", "ray")]
    assert scorecards[0] == scorecards[1]
    assert json.loads(scorecards[0])["images"]["n"] == 878


def test_ray_started_here_is_quiet_and_leaves_nothing_when_interrupted(
    model: str, images: Path, local: Path, tmp_path: Path
) -> None:
    options = (model, "--images", images, "--ray-workers", "2", "--out", tmp_path / "run")
    process = start(*options, TEST_SLEEP="0.2", TMPDIR=str(tmp_path))
    wait_for_parts(process, tmp_path, 1)
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert children
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (
        said.strip()
        == "error: interrupted; what was finished is kept, and the same command goes on from there"
    )
    assert set(names(tmp_path / "run")) <= set(names(local))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert not list(Path("/tmp").glob(f"beyond-ray-{process.pid}-*"))
    deadline = time.monotonic() + 20
    while left := [pid for pid in children if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, f"Ray's processes {left} are still there"
        time.sleep(0.1)


def test_without_ray_one_line_says_what_to_install(
    model: str,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit) as stop:
        main(["score", model, "--images", str(images), "--engine", "ray", "--out", str(tmp_path / "run")])
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "error: --engine ray needs the package ray; install it with: pip install 'beyond-accuracy[ray]'\n"
    )


def test_nothing_imports_ray_unless_asked_and_its_driver_needs_no_torch() -> None:
    code = (
        "import sys; import benchmark.cli.score, benchmark.engine\n"
        "import benchmark.engine_ray, benchmark.ray_worker\n"
        "assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    code = "import sys; import benchmark.engine_ray; assert not {'torch', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ray-workers", "2"], "--ray-workers goes with --engine ray"),
        (["--gpus-per-worker", "1"], "--gpus-per-worker goes with --engine ray"),
        (["--engine", "ray", "--ray-address", "127.0.0.1:1"], "cannot reach the Ray cluster at 127.0.0.1:1"),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    model: str, images: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    command = [sys.executable, "-m", "benchmark", "score", model, "--images", str(images)]
    done = subprocess.run(
        [*command, *options, "--out", str(tmp_path / "run")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}"), done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
