"""Intervals and tests against peer libraries, closed forms, published examples, and simulated coverage."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from ppi_py import ppi_mean_ci, ppi_mean_pointestimate
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint, proportions_ztest

from benchmark import statistics
from benchmark.statistics import Interval

FloatArray = npt.NDArray[np.float64]
RESAMPLES = 6000  # a coverage of 0.95 is then measured to ± 0.003


def coverage(interval: Interval, truth: float) -> float:
    return float(((interval.low <= truth) & (truth <= interval.high)).mean())


def assert_covers(interval: Interval, truth: float) -> None:
    assert 0.93 <= coverage(interval, truth) <= 0.97


# ------------------------------------------------------------------------------ against others


@pytest.mark.parametrize("n", [6, 7, 30, 101, 2000])
def test_the_median_and_its_interval_equal_scipys(n: int) -> None:
    values = np.random.default_rng(n).exponential(size=n)
    value, interval = statistics.median_interval(values)
    assert value == np.median(values)
    ends = stats.quantile_test(values, q=float(value), p=0.5).confidence_interval(0.95)
    assert (float(interval.low), float(interval.high)) == (ends.low, ends.high)


def test_the_interval_of_a_median_covers_and_is_open_where_nothing_is_known() -> None:
    values = np.random.default_rng(1).exponential(size=(3000, 61))
    ends = np.array([statistics.median_interval(row)[1] for row in values])
    share = ((ends[:, 0] <= np.log(2)) & (np.log(2) <= ends[:, 1])).mean()
    exact = 1 - 2 * stats.binom.cdf(int(stats.binom.ppf(0.025, 61, 0.5)) - 1, 61, 0.5)
    assert share == pytest.approx(exact, abs=0.012)
    assert 0.94 <= share <= 0.975
    assert statistics.median_interval([1.0, 2.0, np.inf]) == (2.0, Interval(-np.inf, np.inf))  # type: ignore[arg-type]
    few, (_, high) = statistics.median_interval([*range(30), *[np.inf] * 25])
    assert (few, float(high)) == (27, np.inf)


@pytest.mark.parametrize("n", [1, 7, 50, 46_837])
def test_wilson_equals_statsmodels(n: int) -> None:
    successes = np.unique(np.linspace(0, n, 20).round())
    low, high = statistics.wilson(successes, n)
    expected_low, expected_high = proportion_confint(successes, n, method="wilson")
    np.testing.assert_allclose(low, expected_low, atol=1e-12)
    np.testing.assert_allclose(high, expected_high, atol=1e-12)
    assert low[0] == 0
    assert high[-1] == 1


def test_wilson_of_nothing_is_everything() -> None:
    assert tuple(map(float, statistics.wilson(0, 0))) == (0, 1)


def test_class_mean_of_classes_with_several_images_is_the_textbook_stratified_variance() -> None:
    rng = np.random.default_rng(1)
    samples = [rng.random(n) < p for n, p in [(2, 0.5), (5, 0.9), (19, 0.2), (40, 0.7)]]
    estimate = statistics.class_mean([s.sum() for s in samples], [len(s) for s in samples])
    assert estimate.value == pytest.approx(np.mean([s.mean() for s in samples]))
    assert estimate.variance == pytest.approx(sum(s.var(ddof=1) / len(s) for s in samples) / 16)


def test_class_mean_pools_single_images_and_skips_empty_classes() -> None:
    # 30 classes with 3 images each (2 right): variance within is (1/3 · 2/3) · 3/2 = 1/3; two single images.
    right, total = np.array([2] * 30 + [1, 0, 0]), np.array([3] * 30 + [1, 1, 0])
    estimate = statistics.class_mean(right, total)
    assert estimate.value == pytest.approx((30 * 2 / 3 + 1) / 32)
    assert estimate.variance == pytest.approx((30 * (1 / 3) / 3 + 2 * (1 / 3)) / 32**2)


def test_class_mean_of_single_images_only_is_a_plain_share() -> None:
    right = np.array([1] * 15 + [0] * 5)
    estimate = statistics.class_mean(right, np.ones(20))
    assert estimate.value == 0.75
    assert estimate.variance == pytest.approx(right.var(ddof=1) / 20)


@pytest.mark.parametrize("share", [0, 1])
def test_class_mean_without_spread_still_has_an_interval(share: int) -> None:
    estimate = statistics.class_mean(np.full(10, 4 * share), np.full(10, 4))
    expected = proportion_confint(40 * share, 40, method="wilson")
    np.testing.assert_allclose(estimate.interval(), expected, atol=1e-12)


def test_mean_estimate_is_the_sample_mean() -> None:
    values = np.random.default_rng(2).beta(5, 2, 300)
    estimate = statistics.mean_estimate(values)
    assert estimate.value == pytest.approx(values.mean())
    assert np.sqrt(estimate.variance) == pytest.approx(stats.sem(values))
    low, high = estimate.interval()
    reference = stats.t.interval(0.95, 299, values.mean(), stats.sem(values))
    np.testing.assert_allclose((low, high), reference, atol=5e-4)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (0, 5), (3, 3), (1, 7), (40, 61), (0, 1), (900, 801)])
def test_mcnemar_equals_statsmodels_and_the_binomial(b: int, c: int) -> None:
    if b + c:
        expected = statsmodels_mcnemar([[10, b], [c, 10]], exact=True).pvalue
        assert statistics.mcnemar(b, c) == pytest.approx(expected, rel=1e-9)
        middle = stats.binom.pmf(b, b + c, 0.5)
        mid = 1 - middle / 2 if b == c else expected - middle
        assert statistics.mcnemar(b, c, mid_p=True) == pytest.approx(mid, rel=1e-9)
    else:
        assert statistics.mcnemar(b, c) == statistics.mcnemar(b, c, mid_p=True) == 1


def test_published_intervals_of_a_paired_table() -> None:
    """Airway hyper-responsiveness before and after transplantation (21 children: 1, 1, 7, 12).

    Fagerland, Lydersen & Laake 2014, Statistics in Medicine 33:2850: Tango's score interval for the
    difference is −0.517 to −0.026, the asymptotic score interval for the ratio 0.065 to 0.907.
    """
    assert np.round(statistics.paired_difference(1, 7, 21), 3).tolist() == [-0.517, -0.026]
    assert np.round(statistics.ratio_of_errors(1, 7, 1), 3).tolist() == [0.065, 0.907]


def score_statistic(table: FloatArray, contrast: FloatArray) -> float:
    """Score χ² of `contrast · p = 0` for a multinomial table, by numerical constrained maximum likelihood."""
    n = table.sum()

    def negative(p: FloatArray) -> float:
        return -float((table * np.log(np.maximum(p, 1e-300))).sum())

    constraints = [
        {"type": "eq", "fun": lambda p: p.sum() - 1},
        {"type": "eq", "fun": lambda p: contrast @ p},
    ]
    fit = optimize.minimize(
        negative, np.full(4, 0.25), bounds=[(1e-9, 1)] * 4, constraints=constraints, options={"ftol": 1e-14}
    )
    variance = (contrast**2 * fit.x).sum() - (contrast @ fit.x) ** 2
    return float((contrast @ table / n) ** 2 / (variance / n))


@pytest.mark.parametrize("table", [(60, 25, 12, 200), (5, 9, 2, 50), (30, 4, 11, 20)])
def test_score_intervals_end_where_the_constrained_likelihood_says(table: tuple[int, ...]) -> None:
    both, only_a, only_b, _ = table
    cells = np.array(table, dtype=float)
    for ratio in statistics.ratio_of_errors(both, only_a, only_b):
        contrast = np.array([1 - ratio, -ratio, 1, 0])
        assert score_statistic(cells, contrast) == pytest.approx(1.96**2, rel=2e-3)
    n = cells.sum()
    for difference in statistics.paired_difference(only_a, only_b, n):
        contrast = np.array([-difference, 1 - difference, -1 - difference, -difference])
        assert score_statistic(cells, contrast) == pytest.approx(1.96**2, rel=2e-3)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (0, 5), (3, 3), (1, 7), (7, 1), (40, 61), (900, 801)])
def test_paired_tails_without_margin_are_one_sided_binomial_tests(b: int, c: int) -> None:
    tails = statistics.paired_tails(b, c, 5000)
    expected = [
        stats.binomtest(b, b + c, alternative=side).pvalue if b + c else 1.0 for side in ("less", "greater")
    ]
    assert [float(tails.lower), float(tails.within)] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("margin", [0.01, 0.1, 0.3])
@pytest.mark.parametrize("table", [(60, 25, 12, 200), (5, 9, 2, 50), (30, 4, 31, 20), (9, 0, 6, 40)])
def test_paired_tails_with_a_margin_are_the_constrained_score_test(
    table: tuple[int, ...], margin: float
) -> None:
    _, only_a, only_b, _ = table
    cells = np.array(table, dtype=float)
    n = cells.sum()
    contrast = np.array([margin, 1 + margin, -1 + margin, margin])
    root = np.sqrt(score_statistic(cells, contrast)) * np.sign((only_a - only_b) / n + margin)
    tails = statistics.paired_tails(only_a, only_b, n, margin=margin)
    assert float(tails.lower) == pytest.approx(stats.norm.cdf(root), rel=2e-2, abs=1e-5)
    assert float(tails.within) == pytest.approx(stats.norm.sf(root), rel=2e-2, abs=1e-5)


@pytest.mark.parametrize("counts", [(761, 1000, 772, 1000), (5, 20, 9, 22), (38066, 50000, 37900, 49000)])
@pytest.mark.parametrize("margin", [0.0, 0.005, 0.2])
def test_unpaired_tails_are_the_constrained_score_test(counts: tuple[int, ...], margin: float) -> None:
    x_a, n_a, x_b, n_b = counts

    def negative(share: float) -> float:
        found = stats.binom.logpmf(x_a, n_a, share) + stats.binom.logpmf(x_b, n_b, share + margin)
        return -float(found)

    share = optimize.minimize_scalar(
        negative, bounds=(1e-9, 1 - margin - 1e-9), method="bounded", options={"xatol": 1e-11}
    ).x
    other = share + margin
    error = np.sqrt(share * (1 - share) / n_a + other * (1 - other) / n_b)
    z = (x_a / n_a - x_b / n_b + margin) / error
    tails = statistics.unpaired_tails(*counts, margin=margin)
    assert float(tails.lower) == pytest.approx(stats.norm.cdf(z), rel=1e-6)
    assert float(tails.within) == pytest.approx(stats.norm.sf(z), rel=1e-6, abs=1e-15)
    if not margin:
        pooled = proportions_ztest([x_a, x_b], [n_a, n_b], alternative="smaller")[1]
        assert float(tails.lower) == pytest.approx(pooled, rel=1e-9)


def test_published_score_interval_of_two_samples() -> None:
    """56 of 70 against 48 of 80: Newcombe 1998, Statistics in Medicine 17:873, table II (a), Mee's method."""
    interval = statistics.unpaired_difference(56, 70, 48, 80)
    assert np.round(interval, 4).tolist() == [0.0533, 0.3377]


def test_unpaired_tails_hold_where_all_or_nothing_is_right() -> None:
    assert tuple(map(float, statistics.unpaired_tails(20, 20, 20, 20))) == (0.5, 0.5)
    low, high = statistics.unpaired_difference(0, 20, 20, 20)
    assert low == pytest.approx(-1)
    assert -1 < high < -0.8


def test_holm_equals_statsmodels() -> None:
    rng = np.random.default_rng(3)
    p = rng.random((40, 6)) ** 4
    expected = [multipletests(row, method="holm")[1] for row in p]
    assert np.allclose(statistics.holm(p), expected, rtol=1e-12)
    assert statistics.holm([]).shape == (0,)


def test_ratio_of_errors_behaves_without_errors() -> None:
    assert tuple(map(float, statistics.ratio_of_errors(0, 0, 0))) == (0, np.inf)
    low, high = statistics.ratio_of_errors(0, 20, 0)  # the second makes none: the ratio is small, not unknown
    assert low == 0
    assert 0.05 < high < 0.3
    low, high = statistics.ratio_of_errors(0, 0, 20)
    assert 3 < low < 20
    assert high == np.inf
    low, high = statistics.ratio_of_errors(50, 0, 0)
    assert low < 1 < high


def test_paired_difference_is_antisymmetric_and_within_range() -> None:
    low, high = statistics.paired_difference([0, 5, 9, 20], [0, 2, 9, 0], 20)
    back_low, back_high = statistics.paired_difference([0, 2, 9, 0], [0, 5, 9, 20], 20)
    np.testing.assert_allclose(low, -back_high, atol=1e-10)
    np.testing.assert_allclose(high, -back_low, atol=1e-10)
    assert (low >= -1).all()
    assert (high <= 1).all()


@pytest.mark.parametrize(("width", "error"), [(0.0, 0.01), (0.004, 0.01), (0.02, 0.01), (0.5, 0.01)])
def test_imbens_manski_solves_its_equation(width: float, error: float) -> None:
    z = statistics.imbens_manski(width, error)
    assert stats.norm.cdf(z + width / error) - stats.norm.cdf(-z) == pytest.approx(0.95, abs=1e-9)
    assert 1.6448 < z < 1.96


def test_imbens_manski_limits() -> None:
    assert statistics.imbens_manski(0, 0) == pytest.approx(stats.norm.ppf(0.975))
    assert statistics.imbens_manski(0.1, 0) == pytest.approx(stats.norm.ppf(0.95), abs=1e-6)


@pytest.mark.parametrize(("n", "others", "noise"), [(200, 800, 0.1), (500, 300, 0.4), (50, 5000, 0.02)])
def test_ppi_mean_equals_ppi_py(n: int, others: int, noise: float) -> None:
    rng = np.random.default_rng(3)
    truth = (rng.random(n + others) < 0.8).astype(float)
    proxy = np.where(rng.random(n + others) < noise, 1 - truth, truth)
    ours = statistics.ppi_mean(truth[:n], proxy[:n], proxy[n:])
    low, high = ppi_mean_ci(truth[:n], proxy[:n], proxy[n:], alpha=0.05)
    assert ours.value == pytest.approx(float(ppi_mean_pointestimate(truth[:n], proxy[:n], proxy[n:]).item()))
    np.testing.assert_allclose(ours.wald(), (low.item(), high.item()), atol=1e-9)
    assert 0 < ours.weight <= 1


def test_ppi_domain_mean_solves_the_estimating_equation() -> None:
    rng = np.random.default_rng(4)
    d, y, df, yf = rng.random((4, 400)) < np.array([0.9, 0.8, 0.85, 0.8])[:, None]
    du, yu = rng.random((2, 900)) < np.array([0.85, 0.75])[:, None]
    found = statistics.ppi_domain_mean(d, y, df, yf, du, yu)

    def equation(theta: float) -> float:
        rectifier = (du * (yu - theta)).mean() - (df * (yf - theta)).mean()
        return float((d * (y - theta)).mean() + found.weight * rectifier)

    assert found.value == pytest.approx(optimize.brentq(equation, 0, 1), abs=1e-10)


def test_ppi_domain_mean_chooses_the_weight_of_least_variance() -> None:
    """The variance as a function of λ, by the M-estimator formula, is least near the λ chosen."""
    rng = np.random.default_rng(5)
    d = rng.random(3000) < 0.93
    y = rng.random(3000) < 0.8
    yf = np.where(rng.random(3000) < 0.15, ~y, y)
    df = np.where(rng.random(3000) < 0.1, ~d, d)
    seen, rest = slice(0, 1000), slice(1000, 3000)
    found = statistics.ppi_domain_mean(d[seen], y[seen], df[seen], yf[seen], df[rest], yf[rest])

    def variance(weight: float) -> float:
        psi, psi_f = d * (y - found.value), df * (yf - found.value)
        return float((psi - weight * psi_f)[seen].var() / 1000 + weight**2 * psi_f[rest].var() / 2000)

    best = optimize.minimize_scalar(variance, bounds=(0, 1), method="bounded").x
    assert found.weight == pytest.approx(best, abs=0.03)


def test_a_useless_proxy_gives_the_classical_estimate() -> None:
    rng = np.random.default_rng(6)
    y = rng.random(300) < 0.7
    found = statistics.ppi_mean(y, np.ones(300), np.ones(500))
    assert found.weight == 0
    assert found.value == pytest.approx(y.mean())


def test_bootstrap_of_class_means_has_the_exact_variance() -> None:
    rng = np.random.default_rng(7)
    total = np.array([2, 3, 20, 20, 8, 1, 1, 1, 1])
    only_a = np.array([1, 1, 5, 2, 0, 1, 0, 0, 0])
    only_b = np.array([0, 1, 1, 2, 3, 0, 0, 1, 0])
    drawn = statistics.bootstrap_class_difference(only_a, only_b, total, rng, resamples=40_000)

    def image_values(classes: slice) -> list[FloatArray]:
        rows = zip(only_a[classes], only_b[classes], total[classes])
        return [np.repeat([1.0, -1.0, 0.0], [a, b, n - a - b]) for a, b, n in rows]

    several, lone = image_values(slice(0, 5)), np.concatenate(image_values(slice(5, 9)))
    exact = (sum(v.var(ddof=1) / len(v) for v in several) + 16 * lone.var(ddof=1) / 4) / 81
    assert drawn.mean() == pytest.approx(((only_a - only_b) / total).mean(), abs=0.003)
    assert drawn.var() == pytest.approx(exact, rel=0.03)


def test_bootstrap_of_one_lone_class_keeps_its_value() -> None:
    one = np.array([1, 0])
    drawn = statistics.bootstrap_class_difference(
        one, np.array([0, 0]), np.array([1, 5]), np.random.default_rng(0), resamples=10
    )
    assert drawn.tolist() == [0.5] * 10


def test_seeds_come_from_content() -> None:
    array = np.arange(5)
    first, again = statistics.seeded("a", array).random(3), statistics.seeded("a", array.copy()).random(3)
    assert first.tolist() == again.tolist()
    assert first.tolist() != statistics.seeded("a", array + 1).random(3).tolist()
    assert statistics.seeded("ab", "c").random() != statistics.seeded("a", "bc").random()


def test_bootstrap_p_is_never_zero_and_one_when_centred() -> None:
    assert statistics.bootstrap_p(np.linspace(1, 2, 999)) == pytest.approx(2 / 1000)
    assert statistics.bootstrap_p(np.linspace(-1, 1, 1001)) == 1


# ---------------------------------------------------------------------------- simulated coverage


@pytest.mark.parametrize("n", [200, 878, 5000, 46_837])
@pytest.mark.parametrize("p", [0.5, 0.76, 0.83, 0.93, 0.98])
def test_wilson_covers(n: int, p: float) -> None:
    """Exact coverage: the sum of binomial probabilities whose interval holds p."""
    successes = np.arange(n + 1)
    low, high = statistics.wilson(successes, n)
    covered = stats.binom.pmf(successes, n, p)[(low <= p) & (p <= high)].sum()
    assert 0.93 <= covered <= 0.97


def test_wilson_covers_on_average_on_twenty_images() -> None:
    shares = np.linspace(0.05, 0.95, 181)
    low, high = statistics.wilson(np.arange(21), 20)
    covered = [stats.binom.pmf(np.arange(21), 20, p)[(low <= p) & (p <= high)].sum() for p in shares]
    assert 0.93 <= np.mean(covered) <= 0.97


@pytest.mark.parametrize("mean", [0.6, 0.85, 0.95])
@pytest.mark.parametrize(
    "classes", ["20 a class", "14 to 20 a class", "2 a class", "a sample of few", "100 classes of 9"]
)
def test_class_mean_covers(classes: str, mean: float) -> None:
    rng = np.random.default_rng(10)
    total = {
        "20 a class": np.full(1000, 20),
        "14 to 20 a class": rng.integers(14, 21, 1000),
        "2 a class": np.full(1000, 2),
        "a sample of few": rng.poisson(0.878, 1000),
        "100 classes of 9": np.full(100, 9),
    }[classes]
    shares = rng.beta(3 * mean, 3 * (1 - mean), len(total))  # classes differ a lot
    right = rng.binomial(total, shares, (RESAMPLES // 2, len(total)))
    interval = statistics.class_mean(right, np.broadcast_to(total, right.shape)).interval()
    assert_covers(interval, float(shares[total > 0].mean()))


@pytest.mark.parametrize("n", [500, 5000, 46_837])
@pytest.mark.parametrize(
    ("both", "only_a", "only_b"), [(0.12, 0.1, 0.04), (0.03, 0.05, 0.005), (0.4, 0.1, 0.03), (0.15, 0.06, 0)]
)
def test_ratio_of_errors_covers(n: int, both: float, only_a: float, only_b: float) -> None:
    cells = np.random.default_rng(11).multinomial(
        n, [both, only_a, only_b, 1 - both - only_a - only_b], RESAMPLES
    )
    interval = statistics.ratio_of_errors(cells[:, 0], cells[:, 1], cells[:, 2])
    assert_covers(interval, (both + only_b) / (both + only_a))


@pytest.mark.parametrize("n", [500, 5000, 46_837])
@pytest.mark.parametrize(("only_a", "only_b"), [(0.05, 0.03), (0.02, 0.01), (0.2, 0.1), (0.03, 0.03)])
def test_paired_difference_covers(n: int, only_a: float, only_b: float) -> None:
    cells = np.random.default_rng(12).multinomial(n, [only_a, only_b, 1 - only_a - only_b], RESAMPLES)
    assert_covers(statistics.paired_difference(cells[:, 0], cells[:, 1], n), only_a - only_b)


@pytest.mark.parametrize("n", [500, 2000])
@pytest.mark.parametrize("shares", [(0.15, 0.05, 0.8), (0.04, 0.06, 0.9), (0.4, 0.2, 0.4)])
def test_mean_of_precisions_covers(n: int, shares: tuple[float, ...]) -> None:
    """Values 0, ½ and 1, as precision at the size of the label set gives them."""
    rng = np.random.default_rng(13)
    worth = np.array([0.0, 0.5, 1.0])
    values = rng.choice(worth, size=(4000, n), p=shares)
    assert_covers(statistics.mean_estimate(values).interval(), float(worth @ shares))


def test_mean_average_precision_covers() -> None:
    """Reciprocal ranks: mostly 1, with a long tail near 0."""
    rng = np.random.default_rng(14)
    values = 1 / rng.geometric(0.8, size=(RESAMPLES, 878))
    truth = -0.8 * np.log(0.8) / 0.2  # E[1/K] of a geometric variable
    assert_covers(statistics.mean_estimate(values).interval(), truth)


@pytest.mark.parametrize("n", [878, 18_692])
@pytest.mark.parametrize(("right", "unjudged"), [(0.8, 0.003), (0.8, 0.05), (0.93, 0.01), (0.6, 0.2)])
def test_bounds_cover_the_truth_wherever_it_lies(n: int, right: float, unjudged: float) -> None:
    """Worst cases: every unjudged answer is wrong, or every one is right."""
    cells = np.random.default_rng(15).multinomial(n, [right, unjudged, 1 - right - unjudged], RESAMPLES)
    lower = statistics.share_estimate(cells[:, 0], n)
    upper = statistics.share_estimate(cells[:, 0] + cells[:, 1], n)
    interval = statistics.bounded(lower, upper)
    assert_covers(interval, right)
    assert_covers(interval, right + unjudged)
    assert coverage(interval, right + unjudged / 2) >= 0.93


@pytest.mark.parametrize(("n", "others"), [(200, 600), (350, 528), (2000, 3000)])
@pytest.mark.parametrize(
    ("accuracy", "disagreement", "problematic"), [(0.85, 0.1, 0.07), (0.95, 0.05, 0.07), (0.6, 0.15, 0.2)]
)
def test_prediction_powered_covers_and_is_narrower(
    n: int, others: int, accuracy: float, disagreement: float, problematic: float
) -> None:
    rng = np.random.default_rng(16)

    def draw(size: int) -> tuple[npt.NDArray[np.bool_], ...]:
        domain = rng.random((2000, size)) < 1 - problematic
        right = rng.random((2000, size)) < accuracy
        proxy_domain = np.where(rng.random(domain.shape) < 0.9, domain, rng.random(domain.shape) < 0.9)
        proxy = np.where(rng.random(domain.shape) < disagreement, ~right, right)
        return domain, right, proxy_domain, proxy

    seen, rest = draw(n), draw(others)
    found = statistics.ppi_domain_mean(*seen, *rest[2:])
    interval = found.as_share(n).interval()
    assert_covers(interval, accuracy)
    classical = statistics.share_estimate((seen[0] & seen[1]).sum(-1), seen[0].sum(-1)).interval()
    assert (interval.high - interval.low).mean() < 0.95 * (classical.high - classical.low).mean()


@pytest.mark.parametrize(("n_classes", "size"), [(40, 19), (40, 5)])
def test_bootstrap_of_class_means_covers(n_classes: int, size: int) -> None:
    rng = np.random.default_rng(17)
    a, b = 0.5 * rng.beta(1, 6, n_classes), 0.3 * rng.beta(1, 6, n_classes)
    total = np.full(n_classes, size)
    hits = []
    for _ in range(1500):
        cells = rng.multinomial(total, np.stack([a, b, 1 - a - b], axis=-1))
        drawn = statistics.bootstrap_class_difference(cells[:, 0], cells[:, 1], total, rng, resamples=300)
        hits.append(coverage(statistics.percentile(drawn), float((a - b).mean())))
    assert 0.93 <= float(np.mean(hits)) <= 0.97


def test_bootstrap_of_error_reductions_covers() -> None:
    """The difference of two relative reductions, over the 16 cells of right and wrong."""
    rng = np.random.default_rng(18)
    shares = rng.dirichlet(np.full(16, 2.0))
    bit = np.arange(16)

    def difference(cells: npt.NDArray[np.int64] | FloatArray) -> FloatArray:
        a, ra, b, rb = (cells[..., (bit & mask) > 0].sum(axis=-1) for mask in (8, 4, 2, 1))
        return np.asarray(rb / b - ra / a, dtype=np.float64)

    hits = []
    for _ in range(1500):
        drawn = statistics.bootstrap_cells(
            rng.multinomial(1500, shares).astype(np.int64), rng, resamples=1000
        )
        hits.append(coverage(statistics.percentile(difference(drawn)), float(difference(shares))))
    assert 0.93 <= float(np.mean(hits)) <= 0.97


# ------------------------------------------------------------------------- two groups, many tests


def test_newcombe_equals_statsmodels_and_the_published_examples() -> None:
    # Newcombe 1998, table II, method 10, rows (a), (b), (e) and (g).
    for a, n, b, m, low, high in [
        (56, 70, 48, 80, 0.0524, 0.3339),
        (9, 10, 3, 10, 0.1705, 0.8090),
        (5, 56, 0, 29, -0.0381, 0.1926),
        (10, 10, 0, 20, 0.6791, 1.0),
    ]:
        found = statistics.newcombe(a, n, b, m)
        assert [float(found.low), float(found.high)] == pytest.approx([low, high], abs=5e-5)
    rng = np.random.default_rng(3)
    ns, ms = rng.integers(1, 60, 50), rng.integers(1, 60, 50)
    xs, ys = rng.integers(0, ns + 1), rng.integers(0, ms + 1)
    value, low_, high_ = statistics.newcombe(xs, ns, ys, ms)
    for i in range(50):
        expected = confint_proportions_2indep(xs[i], ns[i], ys[i], ms[i], method="newcomb", compare="diff")
        assert [low_[i], high_[i]] == pytest.approx(list(expected))
        assert value[i] == pytest.approx(xs[i] / ns[i] - ys[i] / ms[i])
    empty = statistics.newcombe(0, 0, 3, 4)
    assert np.isnan(empty.value)
    assert (float(empty.low), float(empty.high)) == (-1, 1)


def test_newcombe_covers() -> None:
    rng = np.random.default_rng(5)
    for n, m, p, q in [(12, 12, 0.5, 0.2), (50, 50, 0.62, 0.11), (6, 20, 0.3, 0.3)]:
        a, b = rng.binomial(n, p, RESAMPLES), rng.binomial(m, q, RESAMPLES)
        found = statistics.newcombe(a, n, b, m)
        assert 0.93 <= coverage(Interval(found.low, found.high), p - q) <= 0.985


def test_mantel_haenszel_difference_covers_in_many_small_strata() -> None:
    rng = np.random.default_rng(8)
    strata = 60
    n, m = rng.integers(1, 4, strata), rng.integers(1, 4, strata)
    base = rng.uniform(0.1, 0.6, strata)
    hits = []
    for _ in range(1500):
        a, b = rng.binomial(n, base + 0.2), rng.binomial(m, base)
        _, low, high = statistics.mantel_haenszel_difference(a, n, b, m)
        hits.append(low <= 0.2 <= high)
    assert 0.93 <= np.mean(hits) <= 0.97


def test_mantel_haenszel_difference_of_equal_strata_is_the_plain_difference() -> None:
    a, b = np.array([3, 0, 2]), np.array([1, 1, 0])
    value, low, high = statistics.mantel_haenszel_difference(a, [4, 4, 4], b, [4, 4, 4])
    assert float(value) == pytest.approx((5 - 2) / 12)
    assert low < value < high
    one = statistics.mantel_haenszel_difference([3], [4], [1], [5])
    assert tuple(map(float, one)) == pytest.approx(tuple(map(float, statistics.newcombe(3, 4, 1, 5))))
    none = statistics.mantel_haenszel_difference([0], [0], [1], [5])
    assert np.isnan(none.value)


def test_one_stratum_is_fishers_exact_test() -> None:
    rng = np.random.default_rng(9)
    for _ in range(300):
        n, m = rng.integers(0, 30, 2)
        a, b = rng.integers(0, n + 1), rng.integers(0, m + 1)
        expected = stats.fisher_exact([[a, n - a], [b, m - b]]).pvalue
        assert statistics.stratified_exact(a, n, b, m).p == pytest.approx(expected, rel=1e-6)


def test_stratified_exact_counts_every_way_the_strata_could_have_come_out() -> None:
    """Against full enumeration: within each stratum, every choice of who belongs to the first group."""
    import itertools

    n, m, cases = [2, 3, 2], [2, 2, 3], [2, 3, 1]
    sums: dict[int, int] = {0: 1}
    for size, other, count in zip(n, m, cases):
        ways: dict[int, int] = {}
        for chosen in itertools.combinations(range(size + other), size):
            hits = sum(member < count for member in chosen)
            ways[hits] = ways.get(hits, 0) + 1
        merged: dict[int, int] = {}
        for (s, w), (t, v) in itertools.product(sums.items(), ways.items()):
            merged[s + t] = merged.get(s + t, 0) + w * v
        sums = merged
    total = sum(sums.values())
    for a in itertools.product(*(range(max(0, c - o), min(c, s) + 1) for s, o, c in zip(n, m, cases))):
        b = [c - x for c, x in zip(cases, a)]
        expected = sum(w for w in sums.values() if w <= sums[sum(a)]) / total
        found = statistics.stratified_exact(a, n, b, m)
        assert found.p == pytest.approx(expected)
        least = min(sums[min(sums)], sums[max(sums)])
        assert found.least == pytest.approx(sum(w for w in sums.values() if w <= least) / total)


def test_stratified_exact_is_right_as_often_as_it_says() -> None:
    rng = np.random.default_rng(10)
    n = m = np.array([3, 5, 8, 2])
    p = rng.uniform(0.2, 0.8, 4)
    found = [statistics.stratified_exact(rng.binomial(n, p), n, rng.binomial(m, p), m).p for _ in range(3000)]
    for level in (0.05, 0.2):
        assert np.mean(np.array(found) <= level) <= level + 0.01


def test_benjamini_yekutieli_equals_statsmodels() -> None:
    rng = np.random.default_rng(11)
    for m in (1, 2, 17, 400):
        p = rng.uniform(0, 1, m) ** 3
        np.testing.assert_allclose(
            statistics.benjamini_yekutieli(p), multipletests(p, method="fdr_by")[1], rtol=1e-12
        )
    assert len(statistics.benjamini_yekutieli([])) == 0


def test_rank_correlation_equals_scipy_and_covers() -> None:
    rng = np.random.default_rng(12)
    x, y = rng.integers(0, 9, 40), rng.integers(0, 9, 40)
    value, (low, high) = statistics.rank_correlation(x, y)
    assert value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert low < value < high
    assert np.isnan(statistics.rank_correlation([1, 1], [1, 2])[0])
    # Spearman's ρ of a bivariate normal with correlation r is 6/π asin(r/2).
    r = 0.6
    truth = 6 / np.pi * np.arcsin(r / 2)
    hits = []
    for _ in range(1500):
        a = rng.normal(size=30)
        b = r * a + np.sqrt(1 - r * r) * rng.normal(size=30)
        _, (low, high) = statistics.rank_correlation(a, b)
        hits.append(low <= truth <= high)
    assert 0.93 <= np.mean(hits) <= 0.97


def test_median_interval_runs_between_the_binomial_ranks() -> None:
    for n in (6, 9, 25, 100):
        value, (low, high) = statistics.median_interval(np.arange(1, n + 1)[::-1])
        assert value == (n + 1) / 2
        assert low + high == n + 1
        # It covers where at least `low` and fewer than `high` of n values lie below the median.
        covered = stats.binom.cdf(high - 1, n, 0.5) - stats.binom.cdf(low - 1, n, 0.5)
        narrower = stats.binom.cdf(high - 2, n, 0.5) - stats.binom.cdf(low, n, 0.5)
        assert covered >= 0.95 > narrower
    few = statistics.median_interval([3.0, 1.0])[1]
    assert [float(few.low), float(few.high)] == [-np.inf, np.inf]  # two say nothing about the median
