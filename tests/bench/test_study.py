"""The bootstrap of a large study against a loop that draws rows one resample after the other."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from annotations.study.analysis import Responses, bootstrap, compare_arms
from annotations.study.power import Plan, simulate

RATERS, ITEMS, RESAMPLES = 201, 60, 10_000


def study(raters: int = RATERS, items: int = ITEMS) -> Responses:
    """Made-up answers of three arms."""
    plan = Plan(agreement=(0.4, 0.5, 0.5), raters=raters // 3, items=items)
    return simulate(plan, np.random.default_rng(0))


def by_rows(responses: Responses, resamples: int) -> npt.NDArray[np.float64]:
    """Each resample drawn and averaged by itself."""
    rng = np.random.default_rng(0)
    tables = [responses.of_arm(arm)[0] for arm in range(len(responses.arms))]
    found = np.empty((resamples, len(tables)))
    for row in range(resamples):
        items = rng.integers(0, responses.items, responses.items)
        for arm, table in enumerate(tables):
            raters = rng.integers(0, len(table), len(table))
            found[row, arm] = table[np.ix_(raters, items)].mean()
    return found


@pytest.mark.benchmark(group="study bootstrap")
def test_bootstrap_against_a_loop(benchmark: BenchmarkFixture) -> None:
    """200 raters, 60 items, 10,000 resamples: seconds, and how many times slower the loop is."""
    responses = study()
    started = time.process_time()
    loop = by_rows(responses, RESAMPLES // 20)
    slow = 20 * (time.process_time() - started)
    started = time.process_time()
    found = bootstrap(responses, resamples=RESAMPLES)
    fast = time.process_time() - started
    np.testing.assert_allclose(found.std(axis=0), loop.std(axis=0), rtol=0.2)
    benchmark.pedantic(bootstrap, args=(responses,), kwargs={"resamples": RESAMPLES}, rounds=3)
    benchmark.extra_info["cpu seconds"] = round(fast, 2)
    benchmark.extra_info["loop / ours, cpu"] = round(slow / fast, 1)


@pytest.mark.benchmark(group="study analysis")
def test_the_whole_comparison(benchmark: BenchmarkFixture) -> None:
    """Bootstrap, intervals, permutation tests and Holm's correction of the same study."""
    benchmark.pedantic(compare_arms, args=(study(),), rounds=1)


@pytest.mark.benchmark(group="study growth")
@pytest.mark.parametrize("resamples", [2_500, 5_000, 10_000])
def test_growth_with_resamples(benchmark: BenchmarkFixture, resamples: int) -> None:
    """Linear: time a resample does not rise."""
    responses = study()
    benchmark.pedantic(bootstrap, args=(responses,), kwargs={"resamples": resamples}, rounds=3)
    if benchmark.stats is not None:
        seconds = float(benchmark.stats.stats.median)
        benchmark.extra_info["microseconds a resample"] = round(1e6 * seconds / resamples, 1)
