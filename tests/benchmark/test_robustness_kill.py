"""Killed with SIGKILL while attacking and resumed, a run ends with the same verdicts and scorecard."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmark.attack_records import ROBUSTNESS, iter_adversarials, read_attacks
from benchmark.records import part_paths
from tests.benchmark.attacked import World, make_world

KILLS = 4


def command(world: World, run: Path, batch: int) -> list[str]:
    options = ["--annotations", str(world.labels), "--workers", "0", "--threads", "1", "--out", str(run)]
    options += ["--tracks", "robustness", "--eps", "3.5/255,40/255", "--attack-batch-size", str(batch)]
    return [
        sys.executable, "-m", "benchmark", "score", world.spec(), "--images", str(world.images), *options
    ]  # fmt: skip


@pytest.mark.timeout(300)
def test_killed_while_attacking_and_resumed(tmp_path: Path) -> None:
    world = make_world(tmp_path, 16, start=41)
    whole, run = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(world, whole, 8), check=True, capture_output=True)

    rng = random.Random(20182)
    # Slow enough that kills fall between parts, which are then written after every few verdicts.
    slow = {**os.environ, "TEST_SLEEP": "0.03", "BEYOND_PART_SECONDS": "0.05"}
    undecided, kills = [], 0
    while kills < KILLS:
        process = subprocess.Popen(
            command(world, run, (3, 8)[kills % 2]),
            env=slow,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        before = set(part_paths(run / ROBUSTNESS))
        deadline = time.monotonic() + 60
        while set(part_paths(run / ROBUSTNESS)) == before and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(rng.choice([0, 0.1, 0.5, 1.0]))
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        kills += 1
        undecided.append(int((read_attacks(run).table["status"] == "pending").sum()))
    assert kills >= 2, "the run ended before it could be killed"
    assert any(undecided), "no kill fell into the attack"
    subprocess.run(command(world, run, 8), check=True, capture_output=True)

    one, other = read_attacks(whole), read_attacks(run)
    # Not the margin, which a batch of another size rounds differently.
    assert one.table.drop(columns="margin").equals(other.table.drop(columns="margin"))
    assert (run / "scorecard.json").read_bytes() == (whole / "scorecard.json").read_bytes()
    named = set(other.table.loc[other.table["status"] == "broken", "adversarial"])
    assert named <= {a.name for a in iter_adversarials(run)}
