"""A disk that is full, read-only or broken at any write: said in one line, and the run goes on later."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.faults.conftest import Mistake, Scene, call

FAULTS = {
    errno.ENOSPC: "no space left on the disk while writing",
    errno.EROFS: "Read-only file system",
    errno.EIO: "Input/output error",
}


class Disk:
    """Counts renames, in which a file becomes what it is called, or syncs, and fails at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.fails_at: int | None = None
        self.code = errno.ENOSPC
        self.before_sync = False
        replace, fsync = Path.replace, os.fsync

        def disk_replace(path: Path, target: object) -> Path:
            self._write(str(path), sync=False)
            return replace(path, target)  # type: ignore[arg-type]

        def disk_fsync(handle: int) -> None:
            self._write("", sync=True)
            fsync(handle)

        monkeypatch.setattr(Path, "replace", disk_replace)
        monkeypatch.setattr(os, "fsync", disk_fsync)

    def _write(self, name: str, *, sync: bool) -> None:
        if sync != self.before_sync:
            return
        self.count += 1
        if self.count == self.fails_at:
            raise OSError(self.code, os.strerror(self.code), name or None)


@pytest.mark.parametrize("before_sync", [False, True], ids=["rename", "sync"])
def test_every_write_may_fail(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_line: Mistake, before_sync: bool
) -> None:
    disk = Disk(monkeypatch)
    disk.before_sync = before_sync
    assert call(scene.arguments(tmp_path / "counted")) == 0
    total = disk.count
    assert total >= 5  # run.json, predictions, verdicts, adversarials, scorecard at least
    # Every rename, which is what makes a file; of syncs, the first and the last few.
    numbers = [n for n in range(1, total + 1) if not before_sync or n < 4 or n > total - 2]
    for number, (code, message) in zip(numbers, list(FAULTS.items()) * total):
        run = tmp_path / f"run{number}"
        disk.count, disk.fails_at, disk.code = 0, number, code
        assert message in one_line(scene.arguments(run)), number
        disk.fails_at = None
        assert call(scene.arguments(run)) == 0
        scene.require_same(run)


def test_a_limit_on_file_sizes_is_a_full_disk_too(scene: Scene, tmp_path: Path) -> None:
    """RLIMIT_FSIZE in a process of its own, where the kernel and not a test says no."""
    import subprocess
    import sys

    run = tmp_path / "run"
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))\n"
        "from benchmark.cli import main; main(sys.argv[1:])"
    )
    arguments = scene.arguments(run)
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: File too large")
    assert "Traceback" not in done.stderr
    assert call(arguments) == 0
    scene.require_same(run)
