"""The page of performance says what the JSON of a run says, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bench.rows import exponent
from tests.bench.table import main, number

ROW = {
    "group": "Attacks", "what": "a | b", "ours": 2.0, "unit": "s", "n": "64 images", "peer": 8.5,
    "against": "peer", "ratio": 4.25, "note": "",
}  # fmt: skip


def run(name: str, extra: dict[str, Any]) -> dict[str, Any]:
    return {
        "machine_info": {
            "system": "Linux", "python_version": "3.11.7", "cpu": {"brand_raw": "A processor"},
            "beyond": {"versions": {"torch": "9.9"}, "cores": 2, "memory_gib": 8, "load_at_start": 0.1},
        },
        "commit_info": {"id": "0123456789abcdef", "dirty": False},
        "datetime": "2026-11-24T15:00:00",
        "benchmarks": [
            {"name": name, "param": None, "stats": {"rounds": 3, "median": 0.5}, "extra_info": extra}
        ],
    }  # fmt: skip


def test_rows_machine_and_versions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bench.json"
    file.write_text(
        json.dumps(run("test_x", {"rows": [ROW, {**ROW, "peer": None, "against": "", "ratio": None}]}))
    )
    assert main(["table", str(file)]) == 0
    page = capsys.readouterr().out
    assert (
        "A processor, 2 cores, 8 GiB, Linux, load 0.1 at the start. 2026-11-24, commit 0123456789ab." in page
    )
    assert "Python 3.11.7, torch 9.9" in page
    assert "| a \\| b | 2 s | 8.5 (peer) | 4.25 | 64 images |  |" in page
    assert "| a \\| b | 2 s |  |  | 64 images |  |" in page


def test_a_benchmark_without_rows_is_shown_with_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(run("test_y", {"overhead": 0.1, "list": [1]})))
    main(["table", str(file)])
    assert "| `test_y` | 0.5 s |  |  | 3 rounds | overhead: 0.1 |" in capsys.readouterr().out


def test_exponents_are_those_of_power_laws() -> None:
    sizes = np.array([10.0, 30.0, 100.0, 1000.0])
    assert exponent(sizes.tolist(), (3e-4 * sizes**1.7).tolist()) == pytest.approx(1.7)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (float("nan"), "not measured"),
        (12345.6, "12,346"),
        (123.4, "123"),
        (1.2345, "1.23"),
        (0.00123, "0.00123"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text
