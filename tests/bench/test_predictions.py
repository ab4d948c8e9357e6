"""Time and memory of scoring many files of predictions in one command, process start included."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from tests.bench.rows import row


@pytest.mark.shared
def test_all_prediction_files_in_one_command(
    benchmark: BenchmarkFixture, shared_data: Path, tmp_path: Path
) -> None:
    files = sorted(map(str, (shared_data / "predictions").glob("*.npy")))
    options = ["--annotations", "real,mla,consolidated", "--overwrite", "--out", str(tmp_path)]

    environment = {**os.environ, "BEYOND_SHARED_DATA": str(shared_data)}

    peaks = []

    def score() -> None:
        command = [sys.executable, "-m", "benchmark", "score", "--predictions", *files, *options]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
        # Of this process alone: RUSAGE_CHILDREN has the largest of all children so far.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        peaks.append(usage.ru_maxrss / 1024)

    benchmark.pedantic(score, rounds=2)
    peak = max(peaks)
    benchmark.extra_info.update(files=len(files), predictions=50_000 * len(files), peak_mib=round(peak))
    row(
        benchmark,
        "Scoring predictions",
        "`beyond score --predictions`, three label sets, start included",
        ours=benchmark.stats.stats.median if benchmark.stats else float("nan"),
        unit="s",
        n=f"{len(files)} files × 50,000 predictions, 2 rounds",
        note=f"peak {peak:.0f} MiB",
    )
