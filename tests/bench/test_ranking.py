"""Ranking: all pairs at once against statsmodels' McNemar pair by pair; how the cost grows with entries."""

from __future__ import annotations

import itertools
import time

import numpy as np
import numpy.typing as npt
from pytest_benchmark.fixture import BenchmarkFixture
from statsmodels.stats.contingency_tables import mcnemar as peer

from leaderboard.ranking import compare_all, significantly_better
from tests.bench.rows import exponent, row

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
    bits = [np.packbits(line, bitorder="little") for line in right]
    started = time.perf_counter()
    theirs(right)
    peer_seconds = time.perf_counter() - started
    benchmark(ours, bits)
    row(
        benchmark,
        "Ranking",
        "all 1,326 pairs of 52 entries, exact tests",
        ours=1000 * median(benchmark),
        unit="ms",
        peer=1000 * peer_seconds,
        against="statsmodels' McNemar, a pair at a time",
        ratio=peer_seconds / median(benchmark),
        n=f"{N:,} images, once against the median",
    )


def test_growth_with_entries(benchmark: BenchmarkFixture) -> None:
    """At most quadratic: time a pair does not rise."""
    sizes, costs = (200, 400, 800), []
    made = [np.packbits(right, bitorder="little") for right in classifiers(sizes[-1])]
    for size in sizes:
        runs = []
        for _ in range(3):
            started = time.process_time()
            ours(made[:: sizes[-1] // size])
            runs.append(time.process_time() - started)
        costs.append(min(runs))
    benchmark.pedantic(ours, args=(made,), rounds=1)
    pairs = sizes[-1] * (sizes[-1] - 1) // 2
    row(
        benchmark,
        "Growth",
        "ranking: every pair of entries",
        ours=exponent(sizes, costs),
        unit="(exponent)",
        n=f"{sizes[0]} to {sizes[-1]} entries",
        note=f"{1e6 * costs[-1] / pairs:.1f} µs of CPU a pair",
    )
