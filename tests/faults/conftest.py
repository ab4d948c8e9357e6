"""A small model on small images, and its whole run to compare with."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmark.cli import main
from tests.benchmark.attacked import World, make_world


@dataclass
class Scene:
    """The world, and what an undisturbed run of it comes to."""

    world: World
    scorecard: bytes

    def arguments(self, run: Path, *more: str, tracks: str = "rectified,robustness") -> list[str]:
        """Words of the command."""
        return [
            "score", self.world.spec(), "--images", str(self.world.images),
            "--annotations", str(self.world.labels), "--tracks", tracks, "--threads", "1", "--workers", "0",
            "--batch-size", "4", "--out", str(run),
            *(("--eps", "3.5/255", "--attack-batch-size", "4") if "robustness" in tracks else ()), *more,
        ]  # fmt: skip

    def command(self, run: Path, *more: str, tracks: str = "rectified,robustness") -> list[str]:
        """The command in a process of its own."""
        return [sys.executable, "-m", "benchmark", *self.arguments(run, *more, tracks=tracks)]

    def require_same(self, run: Path) -> None:
        """Nothing of the fault is left: the same scorecard, and no temporary file."""
        assert (run / "scorecard.json").read_bytes() == self.scorecard
        assert [path for path in run.rglob("*") if path.name.endswith(".tmp")] == []


def call(arguments: list[str]) -> int:
    """Run a command line in this process; its exit status."""
    try:
        main(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """The small world, whole."""
    folder = tmp_path_factory.mktemp("scene")
    found = Scene(make_world(folder, 8, start=41), b"")
    assert call(found.arguments(folder / "whole")) == 0
    found.scorecard = (folder / "whole" / "scorecard.json").read_bytes()
    return found


Mistake = Callable[..., str]


@pytest.fixture
def one_line(capsys: pytest.CaptureFixture[str]) -> Mistake:
    """Run a command line that must fail with one line; returns the line."""

    def check(arguments: list[str], *, status: int = 2) -> str:
        capsys.readouterr()
        assert call(arguments) == status
        err = capsys.readouterr().err
        assert "Traceback" not in err
        assert "internal error" not in err
        told = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(told) == 1, err
        return told[0]

    return check
