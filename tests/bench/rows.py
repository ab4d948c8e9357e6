"""What a benchmark says in the table of docs/performance.md: one row a comparison or a measure of growth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pytest_benchmark.fixture import BenchmarkFixture


def row(
    benchmark: BenchmarkFixture,
    group: str,
    what: str,
    *,
    ours: float,
    unit: str,
    n: str,
    peer: float | None = None,
    against: str = "",
    ratio: float | None = None,
    note: str = "",
) -> None:
    """Add a row to the table that is made from this run.

    Args:
        benchmark: The fixture of the test, whose JSON carries the row.
        group: Heading under which it stands.
        what: What was measured.
        ours: Our figure, in `unit`.
        unit: For example `images/s` or `s`.
        n: On how much, and in how many rounds.
        peer: The other side's figure, measured in this run in turns with ours.
        against: Who or what the other side is.
        ratio: How many times better we are: the median over rounds that time both. None without a peer.
        note: What a reader must know beside it.
    """
    found: list[dict[str, Any]] = benchmark.extra_info.setdefault("rows", [])
    found.append(
        {
            "group": group, "what": what, "ours": float(ours), "unit": unit, "n": n,
            "peer": None if peer is None else float(peer), "against": against,
            "ratio": None if ratio is None else float(ratio), "note": note,
        }
    )  # fmt: skip


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Slope of log cost over log size, by least squares: 1 is linear, 2 quadratic.

    Example:
        >>> round(exponent([1, 2, 4], [3, 6, 12]), 6)
        1.0
    """
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])
