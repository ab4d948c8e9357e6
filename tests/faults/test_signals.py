"""Ctrl-C at any moment, and killed helpers: one line, exit status 130 or 2, and the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from benchmark.records import part_paths
from tests.conftest import ROOT
from tests.faults.conftest import Scene, call

SLOW = {**os.environ, "TEST_SLEEP": "0.02"}


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(word) for word in text.split()]


@pytest.mark.parametrize("line", ["raise KeyboardInterrupt", "exec('raise KeyboardInterrupt')"])
@pytest.mark.parametrize("package", ["click", "numpy", "torch"])
def test_ctrl_c_while_packages_are_imported(scene: Scene, tmp_path: Path, package: str, line: str) -> None:
    """As if it came at the first line of a package: no chance decides where.

    CPython treats an interrupt in `exec` of a string as if nobody caught it.
    """
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / f"{package}.py").write_text(line)
    places = os.pathsep.join([str(tmp_path / "stub"), str(ROOT)])
    done = subprocess.run(
        scene.command(tmp_path / "run"),
        env={**os.environ, "PYTHONPATH": places},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 130, done.stderr
    assert len(done.stderr.split("\n")) <= 3, done.stderr  # click ends the line of the ^C first
    assert done.stderr.strip().startswith("error: interrupted")


@pytest.mark.parametrize("delay", [0.9, "parts", "verdicts"])
def test_ctrl_c(scene: Scene, tmp_path: Path, delay: float | str) -> None:
    """While Python and torch are imported, while the model runs, while it is attacked."""
    run = tmp_path / "run"
    with subprocess.Popen(
        scene.command(run), env=SLOW, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        if isinstance(delay, float):
            time.sleep(delay)
        else:
            folder = run / ("predictions" if delay == "parts" else "robustness")
            while not part_paths(folder) and process.poll() is None:
                time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert "Traceback" not in err, err
    assert out == "" or process.returncode == 0
    if process.returncode:  # it may have been done before
        assert process.returncode == 130, err
        assert err.splitlines()[-1].startswith("error: interrupted; what was finished is kept")
    assert call(scene.arguments(run)) == 0
    scene.require_same(run)


def test_a_decoding_worker_is_killed_in_the_middle_of_a_run(scene: Scene, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = scene.command(run, "--workers", "2")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        workers: list[int] = []
        while len(workers) < 3 and process.poll() is None:  # two, and multiprocessing's resource tracker
            workers = children(process.pid)
            time.sleep(0.01)
        os.kill(workers[-1], signal.SIGKILL)  # still importing, with images to come
        _out, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert "a decoding worker was killed by SIGKILL" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert call(scene.arguments(run)) == 0
    scene.require_same(run)


def test_two_runs_into_one_folder(scene: Scene, tmp_path: Path) -> None:
    """Both start at once: one does the work, the other says so and touches nothing."""
    run = tmp_path / "run"
    both = [
        subprocess.Popen(
            scene.command(run), env=SLOW, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in both]
    statuses = [process.returncode for process in both]
    assert 0 in statuses, errors
    for status, err in zip(statuses, errors):
        assert status == 0 or (status == 2 and "another beyond is writing" in err.splitlines()[-1]), err
    scene.require_same(run)
