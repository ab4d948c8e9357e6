"""Killed with SIGKILL at random moments and resumed, a run ends with the same scorecard."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmark import records
from tests.benchmark.synthetic import write_user_model, write_validation_images

N_IMAGES = 5200
KILLS = 10


def command(model: str, images: Path, run: Path, workers: int) -> list[str]:
    options = ["--batch-size", "16", "--workers", str(workers), "--threads", "1", "--out", str(run)]
    return [sys.executable, "-m", "benchmark", "score", model, "--images", str(images), *options]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_ten_times_and_resumed(tmp_path: Path) -> None:
    images = write_validation_images(tmp_path / "images", N_IMAGES)
    model = write_user_model(tmp_path)
    subprocess.run(command(model, images, tmp_path / "whole", 1), check=True, capture_output=True)

    rng = random.Random(20181)
    run = tmp_path / "killed"
    kills = 0
    parts: list[int] = []
    # Slow enough that ten kills fall into one run: 325 batches of 16 images.
    slow = {**os.environ, "TEST_SLEEP": "0.05"}
    while kills < KILLS:
        process = subprocess.Popen(
            command(model, images, run, kills % 2),
            env=slow,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        # Wait for the run to be under way, then for a random while: start-up takes seconds.
        before = set(run.glob("predictions/*"))
        deadline = time.monotonic() + 60
        while (
            set(run.glob("predictions/*")) == before
            and process.poll() is None
            and time.monotonic() < deadline
        ):
            time.sleep(0.002)
        time.sleep(rng.choice([0, 0, 0.01, 0.2, 0.6]))
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        kills += 1
        parts.append(len(records.part_paths(run / "predictions")))
    assert kills == KILLS, f"the run ended after {kills} kills"
    subprocess.run(command(model, images, run, 2), check=True, capture_output=True)

    assert (run / "scorecard.json").read_bytes() == (tmp_path / "whole" / "scorecard.json").read_bytes()
    names = [[path.name for path in records.part_paths(r / "predictions")] for r in (run, tmp_path / "whole")]
    assert names[0] == names[1]
    ids = [image_id for part in records.iter_predictions(run) for image_id in part.image_ids]
    assert len(ids) == len(set(ids)) == N_IMAGES
    assert parts == sorted(parts)
