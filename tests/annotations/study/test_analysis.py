"""The study's analysis against planted effects, closed forms and statsmodels. All answers are made up."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from annotations.errors import BeyondError
from annotations.study.analysis import Responses, bootstrap, compare_arms, gee, holm, interval, permutation_p
from annotations.study.power import Plan, Power, power, raters_needed, simulate

PLANTED = Plan(agreement=(0.35, 0.5, 0.6), raters=30, items=50, rater_sd=0.6, item_sd=1.0)
FEW = Plan(agreement=(0.35, 0.5, 0.6), raters=5, items=20, rater_sd=0.6, item_sd=1.0)
# Shares near 0 and 1, few raters, and those differ much: skewed, and less known than it looks.
HARD = Plan(agreement=(0.1, 0.5, 0.9), raters=12, items=20, rater_sd=1.5, item_sd=1.0)
UNEVEN = Plan(agreement=(0.35, 0.5, 0.6), raters=30, items=30, rater_sd=0.6, item_sd=1.0)
NULL = Plan(agreement=(0.4, 0.4, 0.4), raters=25, items=40, rater_sd=0.7, item_sd=1.0)


def _some_missing(full: Responses, sizes: tuple[int, ...], seed: int) -> Responses:
    """A study of which each arm keeps a number of raters, who answer as many items as they like."""
    rng = np.random.default_rng([9, seed])
    rank = np.concatenate([np.arange((full.arm == arm).sum()) for arm in range(len(full.arms))])
    stays = rank < np.array(sizes)[full.arm]
    answers = np.clip(rng.beta(4, 1, len(full.arm)), 0.2, 1.0)
    keep = stays[full.rater] & (rng.random(len(full.value)) < answers[full.rater])
    number = np.cumsum(stays) - 1
    return Responses(
        number[full.rater[keep]], full.item[keep], full.value[keep], full.arm[stays], full.items, full.arms
    )


@pytest.mark.parametrize(
    ("plan", "sizes"),
    [(PLANTED, None), (FEW, None), (HARD, None), (UNEVEN, (30, 15, 8))],
    ids=["planted", "few", "hard", "uneven"],
)
def test_intervals_cover_what_was_planted(plan: Plan, sizes: tuple[int, ...] | None) -> None:
    """Of contrasts and of shares; 1,000 studies, raters and items drawn anew in each."""
    asked: list[dict[int, float]] = [{1: 1, 0: -1}, {2: 1, 0: -1}, {2: 1, 1: -1}, {0: 1}, {1: 1}, {2: 1}]
    inside = np.zeros(len(asked))
    runs = 1000
    for seed in range(runs):
        responses = simulate(plan, np.random.default_rng(seed))
        if sizes is not None:
            responses = _some_missing(responses, sizes, seed)
        means = bootstrap(responses, resamples=400, seed=seed)
        for at, weights in enumerate(asked):
            low, high = interval(responses, means, weights)
            truth = sum(weight * plan.agreement[arm] for arm, weight in weights.items())
            inside[at] += low <= truth <= high
    assert (inside >= 0.93 * runs).all(), inside
    assert (inside <= 0.97 * runs).all(), inside


def test_the_corrections_are_those_of_scipy_and_of_welch() -> None:
    """Items that are all alike leave raters alone: scipy has such an interval, and Welch such a width."""
    rng = np.random.default_rng(5)
    x, y = rng.beta(0.4, 2, 30), rng.beta(0.4, 2, 18)
    responses = _long([[[v] * 3 for v in x], [[v] * 3 for v in y]])
    means = bootstrap(responses, resamples=20_000, seed=0)
    low, high = interval(responses, means, {0: 1.0})
    # The bootstrap's variance is that of n; the interval's that of n - 1, and Student's t.
    wide = stats.t.ppf(0.975, 29) / stats.norm.ppf(0.975) * np.sqrt(30 / 29)
    # scipy takes its bias correction from the resamples, which is noisier.
    peer = stats.bootstrap(
        (x,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    assert low == pytest.approx(x.mean() + wide * (peer.low - x.mean()), abs=0.004)
    assert high == pytest.approx(x.mean() + wide * (peer.high - x.mean()), abs=0.004)
    plain = np.quantile(means[:, 0], [0.025, 0.975])
    assert low > x.mean() + wide * (plain[0] - x.mean()) + 0.001
    assert high > x.mean() + wide * (plain[1] - x.mean()) + 0.001
    low, high = interval(responses, means, {1: 1.0, 0: -1.0})
    welch = stats.ttest_ind(y, x, equal_var=False).confidence_interval()
    assert high - low == pytest.approx(welch.high - welch.low, rel=0.02)


def test_two_raters_who_happen_to_agree_do_not_pass_for_raters_who_do_not_differ() -> None:
    """The same item by item or by rater: the freedom is that of two raters, and Student's t is wide."""
    rng = np.random.default_rng(3)
    answers = (rng.random(40) < 0.5).astype(float)
    responses = _long([[answers.tolist(), answers[::-1].tolist()]])
    share = compare_arms(responses, resamples=500, permutations=20).shares[0]
    assert (share.low, share.high) == (0.0, 1.0)
    assert share.raters == 2


def test_under_the_null_at_most_one_study_in_twenty_finds_anything() -> None:
    runs, false = 1000, 0
    pairs = [(1, 0), (2, 0), (2, 1)]
    for seed in range(runs):
        responses = simulate(NULL, np.random.default_rng(seed))
        p = permutation_p(responses, pairs, permutations=199, seed=seed)
        false += bool((holm(p) <= 0.05).any())
    # At most 5 % in truth: 1,000 runs see more than 6.4 % of them once in fifty.
    assert false / runs <= 0.064


def test_the_power_that_is_claimed_is_the_power_there_is() -> None:
    """Independent studies, each through the whole analysis, find the contrast as often as claimed."""
    plan = Plan(agreement=(0.40, 0.46, 0.50), raters=30, items=40, rater_sd=0.5, item_sd=0.8)
    claimed = power(plan, simulations=2000, permutations=499, seed=1)
    runs = 1500
    found = np.zeros(3)
    for seed in range(runs):
        responses = simulate(plan, np.random.default_rng([7, seed]))
        p = permutation_p(responses, [(1, 0), (2, 0), (2, 1)], permutations=299, seed=seed)
        found += holm(p) <= 0.05
    assert claimed.contrasts == (("feature", "none"), ("example", "none"), ("example", "feature"))
    assert 0.3 < claimed.power[0] < claimed.power[1] < 1.0
    np.testing.assert_allclose(found / runs, claimed.power, atol=0.03)


def test_the_assumed_agreement_is_what_is_simulated() -> None:
    plan = Plan(agreement=(0.2, 0.5, 0.9), raters=400, items=400, rater_sd=0.8, item_sd=1.2)
    responses = simulate(plan, np.random.default_rng(0))
    for arm, share in enumerate(plan.agreement):
        total, count = responses.of_arm(arm)
        assert total.sum() / count.sum() == pytest.approx(share, abs=0.03)


def test_raters_needed_is_the_edge() -> None:
    plan = Plan(agreement=(0.4, 0.5, 0.5), raters=8, items=30, rater_sd=0.4, item_sd=0.8)
    seen: list[Power] = []
    found = raters_needed(plan, target=0.8, simulations=400, seed=3, progress=seen.append)
    at = found.contrasts.index(("feature", "none"))
    assert found.power[at] >= 0.8
    below = [result for result in seen if result.plan.raters == found.plan.raters - 1]
    assert below
    assert below[0].power[at] < 0.8
    with pytest.raises(BeyondError, match="larger effect"):
        raters_needed(Plan(agreement=(0.4, 0.401, 0.4), raters=4, items=5), most=16, simulations=100, seed=0)


# Closed forms -----------------------------------------------------------------------------------------------


def _long(values: list[list[list[float]]]) -> Responses:
    """From arms × raters × items."""
    rater, item, value, arm = [], [], [], []
    for a, block in enumerate(values):
        for row in block:
            arm.append(a)
            for i, x in enumerate(row):
                rater.append(len(arm) - 1)
                item.append(i)
                value.append(x)
    names = ("none", "feature", "example")[: len(values)]
    return Responses(
        np.array(rater), np.array(item), np.array(value, float), np.array(arm), len(values[0][0]), names
    )


def test_the_permutation_test_is_exact_on_a_small_case() -> None:
    """Three raters against three: 20 deals, of which 2 are as extreme as what was seen."""
    responses = _long([[[0, 0], [0, 0], [0, 1]], [[1, 1], [1, 1], [1, 1]]])
    p = permutation_p(responses, [(1, 0)], permutations=20_000, seed=0)
    assert p[0] == pytest.approx(2 / 20, abs=0.01)
    scipy_p = stats.permutation_test(
        ([1.0, 1.0, 1.0], [0.0, 0.0, 0.5]), lambda x, y: x.mean() - y.mean(), n_resamples=np.inf
    ).pvalue
    assert p[0] == pytest.approx(scipy_p, abs=0.01)


def test_the_bootstrap_has_the_variance_it_should() -> None:
    """Owen 2007: for means of raters and items without interaction the variance is that of both together."""
    rng = np.random.default_rng(0)
    u, v = rng.random(40), rng.random(30)
    table = (u[:, None] + v[None, :]) / 2
    responses = _long([table.tolist(), (1 - table).tolist()])
    means = bootstrap(responses, resamples=20_000, seed=1)
    expected = (u.var() / 40 + v.var() / 30) / 4
    assert means[:, 0].var() == pytest.approx(expected, rel=0.05)


def test_holm_is_statsmodels() -> None:
    p = np.random.default_rng(0).random(12) ** 3
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1])


def test_gee_finds_the_planted_odds() -> None:
    plan = Plan(agreement=(0.4, 0.4, 0.6), raters=150, items=20, rater_sd=0.3, item_sd=0.0)
    found = {arm: rest for arm, *rest in gee(simulate(plan, np.random.default_rng(0)))}
    assert found["feature"][1] < 0.0 < found["feature"][2]
    assert found["example"][0] == pytest.approx(np.log((0.6 / 0.4) / (0.4 / 0.6)), abs=0.15)
    assert found["example"][3] < 1e-6


def test_same_answers_same_report_in_any_order() -> None:
    responses = simulate(PLANTED, np.random.default_rng(1))
    order = np.random.default_rng(2).permutation(len(responses.value))
    shuffled = Responses(
        responses.rater[order],
        responses.item[order],
        responses.value[order],
        responses.arm,
        responses.items,
    )
    assert compare_arms(responses, resamples=300, permutations=300) == compare_arms(
        shuffled, resamples=300, permutations=300
    )


def test_memory_does_not_grow_with_resamples() -> None:
    """But for the means themselves: 24 bytes a resample."""
    responses = simulate(Plan((0.4, 0.5, 0.5), raters=40, items=60), np.random.default_rng(0))
    peaks = []
    for resamples in (1_000, 8_000):
        tracemalloc.start()
        bootstrap(responses, resamples=resamples)
        permutation_p(responses, [(1, 0)], permutations=resamples)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] <= 24 * 7_000 + 20_000


# Edges ------------------------------------------------------------------------------------------------------


def test_missing_answers_and_an_empty_arm() -> None:
    full = simulate(PLANTED, np.random.default_rng(3))
    keep = (full.arm[full.rater] != 2) & (np.random.default_rng(4).random(len(full.value)) < 0.5)
    partial = Responses(full.rater[keep], full.item[keep], full.value[keep], full.arm, full.items)
    found = compare_arms(partial, resamples=200, permutations=200)
    assert [share.answers > 0 for share in found.shares] == [True, True, False]
    assert np.isnan(found.shares[2].value)
    assert [(c.arm, c.versus) for c in found.contrasts] == [("feature", "none")]


def test_raters_who_say_yes_to_all() -> None:
    found = compare_arms(_long([[[1.0, 1.0]] * 3, [[1.0, 1.0]] * 3]), resamples=100, permutations=100)
    assert found.contrasts[0].value == 0.0
    assert found.contrasts[0].p == 1.0
    with pytest.raises(BeyondError, match="all answers"):
        gee(_long([[[1.0, 1.0]] * 3, [[1.0, 1.0]] * 3]))


def test_what_cannot_be_told_is_left_out() -> None:
    one_rater = compare_arms(_long([[[1.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]]), resamples=200)
    assert [share.value for share in one_rater.shares] == [0.5, 0.25]
    assert np.isnan(one_rater.shares[0].low)
    assert one_rater.shares[0].method == "none"
    assert one_rater.shares[1].low <= 0.25 <= one_rater.shares[1].high
    assert one_rater.contrasts == ()
    empty = compare_arms(_long([[[1.0]], []]), resamples=200)
    assert [share.answers for share in empty.shares] == [1, 0]
    assert empty.contrasts == ()


def test_equal_answers_do_not_make_an_interval_of_no_width() -> None:
    """The exact interval of as many answers as there are raters, and Newcombe's of the difference."""
    found = compare_arms(_long([[[1.0] * 40] * 8, [[0.0] * 40] * 8]), resamples=100, permutations=400)
    low, high = proportion_confint(8, 8, method="beta")
    assert found.shares[0].method == "exact"
    assert (found.shares[0].low, found.shares[0].high) == pytest.approx((low, 1.0))
    low, high = proportion_confint(0, 8, method="beta")
    assert (found.shares[1].low, found.shares[1].high) == pytest.approx((0.0, high))
    contrast = found.contrasts[0]
    assert contrast.method == "hybrid score"
    assert contrast.high == pytest.approx(-1 + np.hypot(high, high))
    assert contrast.value == contrast.low + 0 == -1.0


def test_bad_input_gets_one_line() -> None:
    for attempt, words in (
        (lambda: Responses(np.array([0, 0]), np.array([0, 0]), np.ones(2), np.array([0]), 1), "twice"),
        (lambda: Responses(np.array([0]), np.array([2]), np.ones(1), np.array([0]), 1), "item"),
        (lambda: Responses(np.array([0]), np.array([0]), np.array([2.0]), np.array([0]), 1), r"\[0, 1\]"),
        (lambda: Plan((0.5,), 10, 10), "arms"),
        (lambda: Plan((0.5, 0.0, 1.0), 10, 10), "strictly between"),
        (lambda: Plan((0.5, 0.5, 0.5), 1, 10), "two raters"),
    ):
        with pytest.raises(BeyondError, match=words):
            attempt()
