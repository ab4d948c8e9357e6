"""Ranking: all pairs at once against statsmodels' McNemar pair by pair; how the cost grows with entries."""

from __future__ import annotations

import itertools
import time

import numpy as np
import numpy.typing as npt
import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from statsmodels.stats.contingency_tables import mcnemar as peer

from leaderboard.ranking import compare_all, significantly_better

N = 46_837  # images that ReaL can evaluate


def classifiers(size: int) -> npt.NDArray[np.bool_]:
    """Made-up classifiers between 60 % and 90 %, right on much the same images: bool (size, N)."""
    rng = np.random.default_rng(0)
    difficulty, skill = rng.normal(size=N), np.linspace(0.4, 2.0, size)
    noise = rng.normal(size=(size, N)).astype(np.float32)
    right: npt.NDArray[np.bool_] = skill[:, None] + 1.2 * difficulty + noise > 0
    return right


def ours(bits: list[npt.NDArray[np.uint8]]) -> npt.NDArray[np.bool_]:
    return significantly_better(compare_all(bits, N))


def theirs(right: npt.NDArray[np.bool_]) -> list[float]:
    found = []
    for a, b in itertools.combinations(right, 2):
        table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
        found.append(float(peer(table, exact=True).pvalue))
    return found


def median(benchmark: BenchmarkFixture) -> float:
    """Median seconds of what was just measured; NaN when nothing is."""
    return float(benchmark.stats.stats.median) if benchmark.stats is not None else float("nan")


def test_all_pairs_against_statsmodels(benchmark: BenchmarkFixture) -> None:
    """52 entries, 1,326 pairs."""
    right = classifiers(52)
    bits = [np.packbits(row, bitorder="little") for row in right]
    started = time.process_time()
    theirs(right)
    peer_seconds = time.process_time() - started
    benchmark(ours, bits)
    benchmark.extra_info["statsmodels / ours"] = round(peer_seconds / median(benchmark), 1)


@pytest.mark.parametrize("size", [200, 400, 800, 1600])
def test_growth_with_entries(benchmark: BenchmarkFixture, size: int) -> None:
    """At most quadratic: time a pair does not rise."""
    bits = [np.packbits(row, bitorder="little") for row in classifiers(size)]
    benchmark.pedantic(ours, args=(bits,), rounds=3)
    pairs = size * (size - 1) // 2
    benchmark.extra_info["microseconds a pair"] = round(1e6 * median(benchmark) / pairs, 2)
