"""Intervals, tests and estimates, as pure functions over counts and arrays.

Everything here is vectorised: counts may be scalars or arrays of one shape, and the results then have that
shape. The level is 95 % unless a critical value `z` says otherwise. Every interval is checked in
`tests/benchmark/test_statistics.py` against a closed form or a peer library, and by simulated coverage.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special

FloatArray = npt.NDArray[np.float64]
Numbers = npt.ArrayLike

Z95 = float(special.ndtri(0.975))
"""Critical value of a two-sided 95 % interval of the normal distribution."""

_Z95_ONE_SIDED = float(special.ndtri(0.95))

MIN_POOLED = 20
"""Degrees of freedom from which a pooled variance within classes is used."""


class Interval(NamedTuple):
    """Both ends of an interval; scalars are 0-d arrays."""

    low: FloatArray
    high: FloatArray


class Estimate(NamedTuple):
    """A value, its variance, and how many independent yes/no answers would be as precise."""

    value: FloatArray
    variance: FloatArray
    effective_n: FloatArray

    def interval(self, z: Numbers = Z95) -> Interval:
        """Wilson's interval at the effective sample size."""
        return wilson(self.value * self.effective_n, self.effective_n, z=z)


def wilson(successes: Numbers, n: Numbers, *, z: Numbers = Z95) -> Interval:
    """Wilson's score interval for a proportion (Wilson 1927, J. Am. Stat. Assoc. 22:209).

    Args:
        successes: Number of successes, 0 to n; need not be whole, for an effective sample size.
        n: Number of trials; 0 gives [0, 1].
        z: Critical value.

    Example:
        >>> low, high = wilson(9, 10)
        >>> round(float(low), 4), round(float(high), 4)
        (0.5958, 0.9821)
    """
    k, n, z = (np.asarray(x, dtype=np.float64) for x in (successes, n, z))
    with np.errstate(invalid="ignore", divide="ignore"):
        p = np.where(n > 0, k / n, 0.5)
        centre = (p * n + z * z / 2) / (n + z * z)
        half = z * np.sqrt(np.maximum(n * p * (1 - p), 0) + z * z / 4) / (n + z * z)
    # The exact ends, which rounding would miss by 1e-17.
    low = np.where(k <= 0, 0.0, centre - half)
    high = np.where(k >= n, 1.0, centre + half)
    return Interval(np.maximum(low, 0.0), np.minimum(high, 1.0))


def upper_bound(successes: Numbers, n: Numbers, *, level: float = 0.95) -> FloatArray:
    """Exact one-sided upper limit on a proportion (Clopper & Pearson 1934, Biometrika 26:404).

    Args:
        successes: Number of successes, 0 to n.
        n: Number of trials, ≥ 1.
        level: Confidence.

    Example:
        >>> round(float(upper_bound(0, 500)), 5)
        0.00597
    """
    k, n = (np.asarray(x, dtype=np.float64) for x in np.broadcast_arrays(successes, n))
    limit = special.betaincinv(k + 1, np.maximum(n - k, 1e-300), level)
    return np.asarray(np.where(k >= n, 1.0, limit), dtype=np.float64)


def mean_estimate(values: FloatArray) -> Estimate:
    """Mean of independent values in [0, 1], with its variance and effective sample size.

    The effective size is value (1 − value) / variance: at least the number of values, and equal to it (but
    for the n − 1) when all are 0 or 1 (Korn & Graubard 1998, Survey Methodology 24:193).

    Args:
        values: float (…, n), the last axis is the sample.
    """
    values = np.asarray(values, dtype=np.float64)
    n = values.shape[-1]
    value = values.mean(axis=-1)
    variance = values.var(axis=-1, ddof=1) / n if n > 1 else np.full_like(value, np.nan)
    return _estimate(value, variance, np.asarray(float(n)))


def class_mean(right: Numbers, total: Numbers) -> Estimate:
    """Mean over classes of the share right in each class: an exact stratified variance.

    With classes as strata, the variance of the mean of C shares is Σ p_c (1 − p_c) / (n_c − 1) / C², which is
    unbiased for n_c ≥ 2 (Cochran 1977, Sampling Techniques, 5.9). A class with one image has no variance of
    its own: it takes the pooled variance within the other classes. Where these are too few to pool, classes
    with one image are collapsed into one stratum, whose spread between classes makes the interval wide rather
    than narrow (Cochran 1977, 5A.12). Classes without images are left out of the mean.

    Args:
        right: (…, C), how many images of each class are right.
        total: (…, C), how many images each class has.
    """
    right, total = np.broadcast_arrays(
        np.asarray(right, dtype=np.float64), np.asarray(total, dtype=np.float64)
    )
    present, single, several = total > 0, total == 1, total > 1
    number = present.sum(axis=-1)
    share = np.divide(right, total, out=np.zeros(right.shape), where=present)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = share.sum(axis=-1) / number
        spread = share * (1 - share)
        own = np.divide(spread, total - 1, out=np.zeros(right.shape), where=several).sum(axis=-1)
        lone = single.sum(axis=-1)
        mean_of_lone = (share * single).sum(axis=-1) / np.maximum(lone, 1)
        between = np.where(
            lone > 1, mean_of_lone * (1 - mean_of_lone) * lone / (lone - 1), value * (1 - value)
        )
        freedom = ((total - 1) * several).sum(axis=-1)
        within = (spread * total * several).sum(axis=-1) / np.maximum(freedom, 1)
        variance = (own + lone * np.where(freedom >= MIN_POOLED, within, between)) / number**2
        # What the variance would be at one common share, per value (1 − value): the size when none is seen.
        common = np.divide(1.0, total, out=np.zeros(right.shape), where=present).sum(axis=-1) / number**2
        return _estimate(value, variance, 1 / common)


def _estimate(value: FloatArray, variance: FloatArray, nominal: FloatArray) -> Estimate:
    with np.errstate(invalid="ignore", divide="ignore"):
        effective = value * (1 - value) / variance
    usable = np.isfinite(effective) & (effective > 0)
    return Estimate(value, variance, np.where(usable, effective, nominal))


def imbens_manski(width: Numbers, standard_error: Numbers) -> FloatArray:
    """Critical value for an interval around bounds that covers the true value, not all of the bounds.

    Solves Φ(z + width/se) − Φ(−z) = 0.95 (Imbens & Manski 2004, Econometrica 72:1845, eq. 6–7): 1.96 where
    the bounds meet, 1.645 where they are far apart.

    Args:
        width: Upper bound minus lower bound, ≥ 0.
        standard_error: The larger of the standard errors at the two bounds.
    """
    width, se = np.broadcast_arrays(
        np.asarray(width, dtype=np.float64), np.asarray(standard_error, dtype=np.float64)
    )
    if not (width > 0).any():
        return np.full(width.shape, Z95)
    shift = np.divide(width, se, out=np.full(width.shape, np.inf), where=se > 0)
    shift = np.where(width <= 0, 0.0, shift)
    return _solve(
        lambda z: special.ndtr(z + shift) - special.ndtr(-z) - 0.95,
        np.full(width.shape, _Z95_ONE_SIDED - 1e-9),
        np.full(width.shape, Z95 + 1e-9),
    )


def bounded(lower: Estimate, upper: Estimate) -> Interval:
    """Interval for a share that is only known to lie between two shares of the same images.

    The low end is that of the lower share, the high end that of the upper, both at `imbens_manski`'s value.
    """
    z = imbens_manski(upper.value - lower.value, np.sqrt(np.maximum(lower.variance, upper.variance)))
    return Interval(lower.interval(z).low, upper.interval(z).high)


def share_estimate(successes: Numbers, n: Numbers) -> Estimate:
    """A plain proportion as an `Estimate`, so that its `interval` is Wilson's."""
    k, n = np.asarray(successes, dtype=np.float64), np.asarray(n, dtype=np.float64)
    value = k / n
    return Estimate(value, value * (1 - value) / n, n)


def ratio_of_errors(both: Numbers, only_a: Numbers, only_b: Numbers, *, z: Numbers = Z95) -> Interval:
    """Score interval for error(b) / error(a) when both are measured on the same images.

    Inverts the score test of equal scaled marginals (Nam & Blackwelder 2002, Statistics in Medicine 21:689):
    T(R) = (x_b − R x_a)² / (n R (p̃_onlyb + p̃_onlya)) ≤ z², with the constrained maximum-likelihood estimates
    p̃ in closed form. It needs no logarithm of a count, so it holds when b, or a, makes no error.

    Args:
        both: Images that both get wrong.
        only_a: Images that only a gets wrong.
        only_b: Images that only b gets wrong.
        z: Critical value.

    Returns:
        The interval in [0, ∞]; [0, ∞] where nothing is wrong at all.
    """
    x11, x01, x10, z = (
        np.asarray(x, dtype=np.float64) for x in np.broadcast_arrays(*(both, only_a, only_b, z))
    )
    a, b, m = x11 + x01, x11 + x10, x11 + x01 + x10

    def signed_root(log_ratio: FloatArray) -> FloatArray:
        # √T with the sign of R x_a − x_b, in counts: the number of images right on both cancels.
        r = np.exp(log_ratio)
        second = r * (1 + r)
        first = (1 - r * r) * (x11 + x10) - r * r * (x10 + x01)
        constant = r * (1 - r) * m * x10
        # t, the expected number that only b gets wrong: the larger root of second t² + first t = constant,
        # in the form that loses no digits for either sign of `first`.
        root = np.sqrt(np.maximum(first * first + 4 * second * constant, 0))
        t = np.where(first <= 0, (root - first) / (2 * second), _safe(2 * constant, first + root))
        t = np.clip(t, np.maximum(0.0, (r - 1) / r * m), r / (1 + r) * m)
        return _safe(r * a - b, np.sqrt(np.maximum(r * (t + r * t - (r - 1) * m), 0)))

    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        nothing = m == 0
        m = np.where(nothing, 1.0, m)
        far, ends = np.full((2, *m.shape), 25.0), np.stack([-z, z])
        low, high = np.exp(_solve(lambda x: signed_root(x) - ends, -far, far))
    return Interval(np.where(nothing | (b == 0), 0.0, low), np.where(nothing | (a == 0), np.inf, high))


def ratio_of_shares(k1: Numbers, n1: Numbers, k2: Numbers, n2: Numbers, *, z: Numbers = Z95) -> Interval:
    """Koopman's score interval for share 1 / share 2 of two independent samples.

    Koopman 1984, Biometrics 40:513: (p1 − R p2)² / (p̃1 (1 − p̃1) / n1 + R² p̃2 (1 − p̃2) / n2) ≤ z², with the
    maximum-likelihood estimates p̃1 = R p̃2 in closed form. It holds where a count is 0 or full.

    Args:
        k1: Successes of sample 1.
        n1: Its size, ≥ 1.
        k2: Successes of sample 2.
        n2: Its size, ≥ 1.
        z: Critical value.

    Returns:
        The interval in [0, ∞]; [0, ∞] where there is no success at all.
    """
    k1, n1, k2, n2, z = (np.asarray(x, dtype=np.float64) for x in np.broadcast_arrays(*(k1, n1, k2, n2, z)))
    p1, p2 = k1 / n1, k2 / n2

    def signed_root(log_ratio: FloatArray) -> FloatArray:
        r = np.exp(log_ratio)
        a, b, c = (n1 + n2) * r, n1 * r + k1 + n2 + k2 * r, k1 + k2
        # The smaller root, in the form that loses no digits.
        q2 = np.clip(2 * c / (b + np.sqrt(np.maximum(b * b - 4 * a * c, 0))), 0, np.minimum(1, 1 / r))
        q1 = np.minimum(r * q2, 1.0)
        variance = q1 * (1 - q1) / n1 + r * r * q2 * (1 - q2) / n2
        return _safe(r * p2 - p1, np.sqrt(np.maximum(variance, 0)))

    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        far, ends = np.full((2, *k1.shape), 25.0), np.stack([-z, z])
        low, high = np.exp(_solve(lambda x: signed_root(x) - ends, -far, far))
    return Interval(np.where(k1 == 0, 0.0, low), np.where(k2 == 0, np.inf, high))


def mcnemar(only_a: Numbers, only_b: Numbers, *, mid_p: bool = False) -> FloatArray:
    """Exact two-sided p value that two classifiers are equally often right on the same images.

    Under equality the images that only one gets right split evenly, Binomial(only_a + only_b, ½)
    (McNemar 1947, Psychometrika 12:153).

    Args:
        only_a: Images that only a gets right.
        only_b: Images that only b gets right.
        mid_p: Count the observed table half (Fagerland et al. 2013, BMC Med. Res. Methodol. 13:91), which is
            less conservative.
    """
    b, c = np.asarray(only_a, dtype=np.float64), np.asarray(only_b, dtype=np.float64)
    n, least = b + c, np.minimum(b, c)
    # P(X ≤ k) of Binomial(n, ½) as a regularised incomplete beta function.
    tail = np.where(n > 0, special.betainc(np.maximum(n - least, 1e-300), least + 1, 0.5), 0.5)
    p = 2 * tail
    if mid_p:
        point = np.exp(
            special.gammaln(n + 1)
            - special.gammaln(least + 1)
            - special.gammaln(n - least + 1)
            - n * np.log(2)
        )
        # When b = c the doubled tail counts the middle twice.
        p = np.where(b == c, 1 - point / 2, p - point)
        p = np.where(n == 0, 1.0, p)
    return np.asarray(np.minimum(p, 1.0), dtype=np.float64)


def median_interval(values: Numbers, *, z: float = Z95) -> tuple[float, Interval]:
    """Median and an interval from order statistics, with no assumption on the distribution.

    How many of n values lie below the median is Binomial(n, ½), so the k-th smallest and k-th largest hold it
    with at least 95 % (Thompson 1936, Ann. Math. Stat. 7:122). Values may be infinite, for what was censored;
    too few of them leave the interval open to infinity.

    Args:
        values: (n,), at least one, no NaN.
        z: Normal quantile of the coverage.

    Example:
        >>> value, (low, high) = median_interval(range(1, 12))
        >>> value, float(low), float(high)
        (6.0, 2.0, 10.0)
    """
    x = np.sort(np.asarray(values, dtype=np.float64).reshape(-1))
    n = len(x)
    middle = x[(n - 1) // 2 : n // 2 + 1]
    # Not the mean of the two, which is NaN for an infinite pair and nothing that was measured otherwise.
    value = float(middle.mean()) if np.isfinite(middle).all() else float(middle[-1])
    # The largest k with P(fewer than k below) at most the tail.
    below = special.bdtr(np.arange(n), n, 0.5)
    k = int((below <= special.ndtr(-z)).sum())
    if k == 0:
        return value, Interval(np.asarray(-np.inf), np.asarray(np.inf))
    return value, Interval(np.asarray(x[k - 1]), np.asarray(x[n - k]))


def paired_score(only_a: Numbers, only_b: Numbers, n: Numbers, delta: Numbers) -> FloatArray:
    """Tango's score statistic of share(a) − share(b) = delta on the same images: normal if that is true.

    Tango 1998, Statistics in Medicine 17:891, eq. 7–9: √T(Δ) = (nΔ − x_a + x_b) / √(n (2 q̃ + Δ(1 − Δ))) with
    the constrained estimate q̃ of the share that only b gets right. Positive where the observed difference
    lies below delta.

    Args:
        only_a: Images that only a gets right.
        only_b: Images that only b gets right.
        n: Number of images.
        delta: The difference to test, in [−1, 1].
    """
    b, c, n, delta = (np.asarray(x, dtype=np.float64) for x in (only_a, only_b, n, delta))
    first = -b - c + (2 * n - b + c) * delta
    constant = -c * delta * (1 - delta)
    root = np.sqrt(np.maximum(first * first - 8 * n * constant, 0))
    q = np.clip((root - first) / (4 * n), np.maximum(0.0, -delta), None)
    return _safe(n * delta - b + c, np.sqrt(np.maximum(n * (2 * q + delta * (1 - delta)), 0)))


def paired_difference(only_a: Numbers, only_b: Numbers, n: Numbers, *, z: Numbers = Z95) -> Interval:
    """Tango's score interval for share(a) − share(b) on the same images: where |`paired_score`| ≤ z.

    Args:
        only_a: Images that only a gets right.
        only_b: Images that only b gets right.
        n: Number of images.
        z: Critical value.

    Returns:
        The interval in [−1, 1].
    """
    b, c, n, z = (np.asarray(x, dtype=np.float64) for x in np.broadcast_arrays(*(only_a, only_b, n, z)))
    one, ends = np.ones((2, *n.shape)), np.stack([-z, z])
    return Interval(*_solve(lambda x: paired_score(b, c, n, x) - ends, -one, one))


class Tails(NamedTuple):
    """One-sided p values about how a compares with b, given a margin m ≥ 0 by which a may be lower.

    `lower` is small where a is shown to be lower by more than m (it tests a − b ≥ −m), `within` where a is
    shown not to be (it tests a − b ≤ −m).
    """

    lower: FloatArray
    within: FloatArray


def paired_tails(only_a: Numbers, only_b: Numbers, n: Numbers, *, margin: Numbers = 0.0) -> Tails:
    """Is a's share lower than b's by more than a margin, on the same images?

    Without a margin it is the one-sided exact McNemar test; with one, Tango's score test (`paired_score`),
    which is the test of non-inferiority for paired shares (Tango 1998, section 4).

    Args:
        only_a: Images that only a gets right.
        only_b: Images that only b gets right.
        n: Number of images.
        margin: By how much a may be lower, ≥ 0.
    """
    b, c, n, m = (np.asarray(x, dtype=np.float64) for x in np.broadcast_arrays(only_a, only_b, n, margin))
    z = paired_score(b, c, n, -m)
    exact = m == 0
    return Tails(
        lower=np.where(exact, _half_tail(b, c), special.ndtr(-z)),
        within=np.where(exact, _half_tail(c, b), special.ndtr(z)),
    )


def _half_tail(few: FloatArray, many: FloatArray) -> FloatArray:
    """P(X ≤ few) of Binomial(few + many, ½), as a regularised incomplete beta function."""
    return np.asarray(
        np.where(many > 0, special.betainc(np.maximum(many, 1e-300), few + 1, 0.5), 1.0), dtype=np.float64
    )


def unpaired_score(x_a: Numbers, n_a: Numbers, x_b: Numbers, n_b: Numbers, delta: Numbers) -> FloatArray:
    """Score statistic of share(a) − share(b) = delta for two independent samples: normal if that is true.

    Farrington & Manning 1990, Statistics in Medicine 9:1447: the variance is taken at the estimates that are
    constrained to differ by delta, in closed form; for delta = 0 it is the pooled two-proportion test.
    Positive where the observed difference lies below delta.

    Args:
        x_a: Successes of a; need not be whole.
        n_a: Trials of a.
        x_b: Successes of b.
        n_b: Trials of b.
        delta: The difference to test, in [−1, 1].
    """
    x_a, n_a, x_b, n_b, d = (np.asarray(x, dtype=np.float64) for x in (x_a, n_a, x_b, n_b, delta))
    p, q, theta = x_a / n_a, x_b / n_b, n_b / n_a
    # a r³ + b r² + c r + e = 0 has the constrained share of a as its root in [max(0, d), min(1, 1 + d)].
    a = 1 + theta
    b = -(1 + theta + p + theta * q + d * (theta + 2))
    c = d * d + d * (2 * p + theta + 1) + p + theta * q
    e = -p * d * (1 + d)
    v = b**3 / (3 * a) ** 3 - b * c / (6 * a * a) + e / (2 * a)
    u = np.where(v < 0, -1.0, 1.0) * np.sqrt(np.maximum(b * b / (3 * a) ** 2 - c / (3 * a), 0))
    angle = np.arccos(np.clip(np.divide(v, u**3, out=np.ones(np.shape(v)), where=u != 0), -1, 1))
    r = 2 * u * np.cos((np.pi + angle) / 3) - b / (3 * a)
    r = np.clip(r, np.maximum(0.0, d), np.minimum(1.0, 1 + d))
    s = np.clip(r - d, 0.0, 1.0)
    return _safe(d - (p - q), np.sqrt(np.maximum(r * (1 - r) / n_a + s * (1 - s) / n_b, 0)))


def unpaired_difference(
    x_a: Numbers, n_a: Numbers, x_b: Numbers, n_b: Numbers, *, z: Numbers = Z95
) -> Interval:
    """Score interval for share(a) − share(b) of independent samples: where |`unpaired_score`| ≤ z."""
    arrays = np.broadcast_arrays(x_a, n_a, x_b, n_b, z)
    x_a, n_a, x_b, n_b, z = (np.asarray(x, dtype=np.float64) for x in arrays)
    one, ends = np.ones((2, *z.shape)), np.stack([-z, z])
    return Interval(*_solve(lambda x: unpaired_score(x_a, n_a, x_b, n_b, x) - ends, -one, one))


def unpaired_tails(x_a: Numbers, n_a: Numbers, x_b: Numbers, n_b: Numbers, *, margin: Numbers = 0.0) -> Tails:
    """Is a's share lower than b's by more than a margin, on independent samples? See `unpaired_score`."""
    z = unpaired_score(x_a, n_a, x_b, n_b, -np.asarray(margin, dtype=np.float64))
    return Tails(np.asarray(special.ndtr(-z)), np.asarray(special.ndtr(z)))


def holm(p_values: Numbers) -> FloatArray:
    """Holm's step-down adjustment of p values along the last axis (Holm 1979, Scand. J. Stat. 6:65).

    Rejecting what is at most α keeps the chance of any false rejection at most α, however the tests depend on
    each other.

    Args:
        p_values: (…, M), one a hypothesis.

    Example:
        >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
        [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    if not p.shape[-1]:
        return p
    order = np.argsort(p, axis=-1, kind="stable")
    steps = np.take_along_axis(p, order, axis=-1) * np.arange(p.shape[-1], 0, -1)
    steps = np.minimum(np.maximum.accumulate(steps, axis=-1), 1.0)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, steps, axis=-1)
    return adjusted


class Difference(NamedTuple):
    """A difference of two shares with both ends of its interval."""

    value: FloatArray
    low: FloatArray
    high: FloatArray


def newcombe(a: Numbers, n_a: Numbers, b: Numbers, n_b: Numbers, *, z: Numbers = Z95) -> Difference:
    """Difference of two independent shares, a/n_a − b/n_b, with Newcombe's hybrid score interval.

    Newcombe 1998, Statistics in Medicine 17:873, method 10: Wilson's limits of each share, put together as
    their distances from the shares would be. NaN, and [−1, 1], where either n is 0.

    Args:
        a: Cases among the first n_a.
        n_a: Size of the first group.
        b: Cases among the second n_b.
        n_b: Size of the second group.
        z: Critical value.

    Example:
        >>> value, low, high = newcombe(56, 70, 48, 80)
        >>> round(float(value), 4), round(float(low), 4), round(float(high), 4)
        (0.2, 0.0524, 0.3339)
    """
    a, n_a, b, n_b = (np.asarray(x, dtype=np.float64) for x in np.broadcast_arrays(a, n_a, b, n_b))
    first, second = wilson(a, n_a, z=z), wilson(b, n_b, z=z)
    with np.errstate(invalid="ignore", divide="ignore"):
        p, q = a / n_a, b / n_b
        value = p - q
        low = value - np.sqrt((p - first.low) ** 2 + (second.high - q) ** 2)
        high = value + np.sqrt((first.high - p) ** 2 + (q - second.low) ** 2)
    empty = (n_a == 0) | (n_b == 0)
    return Difference(
        np.where(empty, np.nan, value),
        np.where(empty, -1.0, np.maximum(low, -1.0)),
        np.where(empty, 1.0, np.minimum(high, 1.0)),
    )


def mantel_haenszel_difference(
    a: Numbers, n_a: Numbers, b: Numbers, n_b: Numbers, *, z: Numbers = Z95
) -> Difference:
    """Difference of two shares within strata: the Mantel–Haenszel risk difference, with Sato's variance.

    The value is Σ w_s (a_s/n_as − b_s/n_bs) / Σ w_s with w_s = n_as n_bs / (n_as + n_bs) (Greenland & Robins
    1985, Biometrics 41:55); its variance holds for many small strata as for few large ones (Sato 1989,
    Biometrics 45:1323). A single stratum gets Newcombe's interval, which also holds near the ends.

    Args:
        a: (S,), cases among the first group of each stratum.
        n_a: (S,), its size.
        b: (S,), cases among the second group.
        n_b: (S,), its size.
        z: Critical value.

    Returns:
        Scalars; the interval is cut at [−1, 1]. NaN where no stratum has both groups.
    """
    a, n_a, b, n_b = (
        np.atleast_1d(np.asarray(x, dtype=np.float64)) for x in np.broadcast_arrays(a, n_a, b, n_b)
    )
    both = (n_a > 0) & (n_b > 0)
    a, n_a, b, n_b = a[both], n_a[both], b[both], n_b[both]
    if len(a) == 0:
        return Difference(np.asarray(np.nan), np.asarray(-1.0), np.asarray(1.0))
    if len(a) == 1:
        only = newcombe(a[0], n_a[0], b[0], n_b[0], z=z)
        return Difference(*(np.asarray(x) for x in only))
    n = n_a + n_b
    weight = (n_a * n_b / n).sum()
    value = ((a * n_b - b * n_a) / n).sum() / weight
    p = (n_a**2 * b - n_b**2 * a + n_a * n_b * (n_b - n_a) / 2) / n**2
    q = (a * (n_b - b) + b * (n_a - a)) / (2 * n)
    half = np.asarray(z) * np.sqrt(np.maximum(value * p.sum() + q.sum(), 0)) / weight
    return Difference(
        np.asarray(value),
        np.asarray(np.maximum(value - half, -1.0)),
        np.asarray(np.minimum(value + half, 1.0)),
    )


def _hypergeometric(n_a: int, n_b: int, cases: int) -> tuple[int, FloatArray]:
    """Smallest possible number of cases in the first group, and the probability of it and each larger one."""
    low, high = max(0, cases - n_b), min(cases, n_a)
    x = np.arange(low, high + 1)
    logs = (
        special.gammaln(n_a + 1) - special.gammaln(x + 1) - special.gammaln(n_a - x + 1)
        + special.gammaln(n_b + 1) - special.gammaln(cases - x + 1) - special.gammaln(n_b - cases + x + 1)
    )  # fmt: skip
    weights = np.exp(logs - logs.max())
    return low, weights / weights.sum()


class ExactTest(NamedTuple):
    """An exact test: its two-sided p value, and the smallest that its margins allow at all."""

    p: float
    least: float


def stratified_exact(a: Numbers, n_a: Numbers, b: Numbers, n_b: Numbers) -> ExactTest:
    """Exact two-sided test that two groups have the same share of cases within every stratum.

    Given the margins of each stratum, the number of cases in the first groups, summed over strata, is a sum
    of independent hypergeometric numbers (Cox & Snell 1989, Analysis of Binary Data, 2.1; with one stratum
    it is Fisher's exact test). p is the probability of all sums that are no likelier than the one seen.

    Args:
        a: (S,), cases among the first group of each stratum.
        n_a: (S,), its size.
        b: (S,), cases among the second group.
        n_b: (S,), its size.

    Example:
        >>> round(stratified_exact([8], [10], [1], [10]).p, 4)
        0.0055
    """
    a, n_a, b, n_b = (
        np.atleast_1d(np.asarray(x, dtype=np.int64)) for x in np.broadcast_arrays(a, n_a, b, n_b)
    )
    total, low, chances = 0, 0, np.ones(1)
    for a_s, n_as, b_s, n_bs in zip(a.tolist(), n_a.tolist(), b.tolist(), n_b.tolist()):
        cases = a_s + b_s
        if not n_as or not n_bs or cases in (0, n_as + n_bs):
            continue  # such a stratum can only come out one way
        start, part = _hypergeometric(n_as, n_bs, cases)
        low, total = low + start, total + a_s
        chances = np.convolve(chances, part)
    seen = chances[total - low]
    # A sum as likely as the one seen counts, though rounding may make it a little likelier.
    p = chances[chances <= seen * (1 + 1e-7)].sum() / chances.sum()
    ends = min(chances[0], chances[-1])
    least = chances[chances <= ends * (1 + 1e-7)].sum() / chances.sum()
    return ExactTest(float(min(p, 1.0)), float(min(least, 1.0)))


def benjamini_yekutieli(p: Numbers) -> FloatArray:
    """Adjusted p values that control the false discovery rate under any dependence.

    Benjamini & Yekutieli 2001, Annals of Statistics 29:1165, theorem 1.3: step-up, with m replaced by
    m Σ_{i ≤ m} 1/i. Rejecting what is at most q keeps the expected share of false rejections at or below q.

    Args:
        p: (M,), p values of everything that was tested.
    """
    p = np.asarray(p, dtype=np.float64)
    m = len(p)
    if not m:
        return p.copy()
    order = np.argsort(p, kind="stable")
    scaled = p[order] * m * (1 / np.arange(1, m + 1)).sum() / np.arange(1, m + 1)
    adjusted = np.empty(m)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return adjusted


def rank_correlation(x: Numbers, y: Numbers, *, z: float = Z95) -> tuple[float, Interval]:
    """Spearman's rank correlation of two measurements of the same things, with an interval.

    Fisher's z with the variance (1 + r²/2) / (n − 3) (Bonett & Wright 2000, Psychometrika 65:23). NaN where
    one of the two does not vary; [−1, 1] below n = 4.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    ranks = [_mean_ranks(v) for v in (x, y)]
    n = len(x)
    spread = [float(r.std()) if n else 0.0 for r in ranks]
    if n < 2 or min(spread) == 0:
        return float("nan"), Interval(np.asarray(-1.0), np.asarray(1.0))
    centred = [r - r.mean() for r in ranks]
    r = float(np.clip((centred[0] * centred[1]).mean() / (spread[0] * spread[1]), -1.0, 1.0))
    if n < 4:
        return r, Interval(np.asarray(-1.0), np.asarray(1.0))
    middle = np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12))
    half = z * np.sqrt((1 + r * r / 2) / (n - 3))
    return r, Interval(np.asarray(np.tanh(middle - half)), np.asarray(np.tanh(middle + half)))


def _mean_ranks(values: FloatArray) -> FloatArray:
    """Ranks from 1, ties at their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], dtype=np.float64)


class PredictionPowered(NamedTuple):
    """A prediction-powered estimate: its value, its variance, and the weight λ given to the proxy."""

    value: FloatArray
    variance: FloatArray
    weight: FloatArray

    def wald(self, z: Numbers = Z95) -> Interval:
        """The symmetric interval value ± z √variance."""
        half = np.asarray(z) * np.sqrt(self.variance)
        return Interval(self.value - half, self.value + half)

    def as_share(self, nominal_n: Numbers) -> Estimate:
        """The same as an `Estimate`, whose interval stays in [0, 1] and holds near its ends."""
        return _estimate(self.value, self.variance, np.asarray(nominal_n, dtype=np.float64))


def ppi_mean(values: Numbers, proxy: Numbers, proxy_elsewhere: Numbers) -> PredictionPowered:
    """Prediction-powered mean with power tuning, PPI++ (Angelopoulos, Duchi & Zrnic 2023, arXiv:2311.01453).

    Args:
        values: (…, n), people's answers where they answered.
        proxy: (…, n), a cheap stand-in for the same images.
        proxy_elsewhere: (…, N), the stand-in on the other images.

    The value is mean(values) + λ (mean(proxy_elsewhere) − mean(proxy)), with the λ in [0, 1] that minimises
    the variance (ibid., section 6).
    """
    one = np.ones_like(np.asarray(values, dtype=np.float64))
    return ppi_domain_mean(
        one, values, one, proxy, np.ones_like(np.asarray(proxy_elsewhere, float)), proxy_elsewhere
    )


def ppi_domain_mean(
    domain: Numbers,
    values: Numbers,
    proxy_domain: Numbers,
    proxy: Numbers,
    proxy_domain_elsewhere: Numbers,
    proxy_elsewhere: Numbers,
) -> PredictionPowered:
    """PPI++ for the mean over a domain that is itself only known where people looked.

    The target θ = E[D Y] / E[D] solves E[ψ(θ)] = 0 with ψ = D (Y − θ); here D says that the image belongs to
    the domain and Y that the answer is right. The estimate solves the same equation with the rectified mean,
    mean(ψ) + λ (mean ψ_f elsewhere − mean ψ_f) = 0, where ψ_f uses the proxies of D and Y: an M-estimator as
    in PPI++ (arXiv:2311.01453) whose weight and linearised variance are those of the mean of ψ. With D = 1
    everywhere it is `ppi_mean`.

    Args:
        domain: (…, n), D where people looked, 0 or 1.
        values: (…, n), Y there.
        proxy_domain: (…, n), proxy of D there.
        proxy: (…, n), proxy of Y there.
        proxy_domain_elsewhere: (…, N), proxy of D on the other images.
        proxy_elsewhere: (…, N), proxy of Y there.
    """
    d, y, df, yf, du, yu = (
        np.asarray(x, dtype=np.float64)
        for x in (domain, values, proxy_domain, proxy, proxy_domain_elsewhere, proxy_elsewhere)
    )
    n, n_else = d.shape[-1], du.shape[-1]

    def residuals(theta: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        theta = theta[..., None]
        return d * (y - theta), df * (yf - theta), du * (yu - theta)

    with np.errstate(invalid="ignore", divide="ignore"):
        psi, psi_f, psi_u = residuals(np.asarray((d * y).mean(-1) / d.mean(-1)))
        covariance = (psi * psi_f).mean(-1) - psi.mean(-1) * psi_f.mean(-1)
        total = (psi_f.sum(-1) + psi_u.sum(-1)) / (n + n_else)
        squares = (psi_f**2).sum(-1) + (psi_u**2).sum(-1)
        spread = (squares - (n + n_else) * total**2) / (n + n_else - 1)
        weight = np.clip(np.where(spread > 0, covariance / ((1 + n / n_else) * spread), 0.0), 0.0, 1.0)

        top = (d * y).mean(-1) + weight * ((du * yu).mean(-1) - (df * yf).mean(-1))
        bottom = d.mean(-1) + weight * (du.mean(-1) - df.mean(-1))
        value = np.asarray(top / bottom)
        psi, psi_f, psi_u = residuals(value)
        variance = (psi - weight[..., None] * psi_f).var(-1) / n + weight**2 * psi_u.var(-1) / n_else
    return PredictionPowered(value, variance / bottom**2, weight)


def seeded(*content: object) -> np.random.Generator:
    """A random generator whose seed is derived from content, so that the same data give the same numbers.

    Args:
        *content: Arrays (their bytes count) or anything with a stable `str`.
    """
    digest = hashlib.sha256()
    for item in content:
        part = np.ascontiguousarray(item).tobytes() if isinstance(item, np.ndarray) else str(item).encode()
        digest.update(len(part).to_bytes(8, "little") + part)
    return np.random.default_rng(int.from_bytes(digest.digest()[:16], "little"))


def bootstrap_class_difference(
    only_a: npt.NDArray[np.int64],
    only_b: npt.NDArray[np.int64],
    total: npt.NDArray[np.int64],
    rng: np.random.Generator,
    *,
    resamples: int = 2000,
) -> FloatArray:
    """Paired stratified bootstrap of the difference of two class means on the same images.

    An image counts +1, 0 or −1, so a class is resampled whole as one multinomial. Each class of n_c images is
    drawn n_c − 1 times, which makes the variance unbiased however small the classes (Rao & Wu 1988, J. Am.
    Stat. Assoc. 83:231); classes with one image are resampled together as one stratum, as in `class_mean`.

    Args:
        only_a: int (C,), images of each class that only a gets right.
        only_b: int (C,), images of each class that only b gets right.
        total: int (C,), images of each class.
        rng: Source of randomness.
        resamples: Number of resamples B.

    Returns:
        float (B,): resampled values of mean over classes of a's share right minus b's.
    """
    single, several = total == 1, total > 1
    strata = [np.stack([only_a, only_b, total - only_a - only_b], axis=-1)[several]]
    weights = [np.ones(int(several.sum()))]
    if single.any():
        strata.append(np.array([[only_a[single].sum(), only_b[single].sum(), 0]]))
        strata[-1][0, 2] = single.sum() - strata[-1].sum()
        weights.append(np.array([float(single.sum())]))
    counts, weight = np.concatenate(strata), np.concatenate(weights)
    size = counts.sum(axis=-1)
    # A lone class with one image has nothing to be resampled with: it keeps its value.
    draws = np.maximum(size - 1, 1)
    differences = np.zeros(resamples)
    block = max(1, 2_000_000 // max(len(counts), 1))
    for start in range(0, resamples, block):
        shape = (min(block, resamples - start), len(counts))
        drawn = rng.multinomial(draws, counts / size[:, None], size=shape)
        differences[start : start + shape[0]] = ((drawn[..., 0] - drawn[..., 1]) / draws * weight).sum(
            axis=-1
        )
    return np.asarray(differences / weight.sum(), dtype=np.float64)


def bootstrap_cells(
    cells: npt.NDArray[np.int64], rng: np.random.Generator, *, resamples: int = 2000
) -> npt.NDArray[np.int64]:
    """Paired bootstrap of images that only matter by the cell of a table they fall in: int (B, cells).

    Resampling n images with replacement and counting cells is one multinomial draw.
    """
    return rng.multinomial(int(cells.sum()), cells / cells.sum(), size=resamples).astype(np.int64)


def percentile(replicates: FloatArray, *, z: float = Z95) -> Interval:
    """Percentile interval of bootstrap replicates at the level of critical value `z`; NaN are left out."""
    low, high = np.nanquantile(replicates, [special.ndtr(-z), special.ndtr(z)])
    return Interval(np.asarray(low), np.asarray(high))


def bootstrap_p(replicates: FloatArray) -> float:
    """Two-sided p value that a difference is 0: twice the smaller tail of its bootstrap replicates.

    One is added to both counts, so that p is never 0 (Davison & Hinkley 1997, 4.2.3).
    """
    finite = replicates[np.isfinite(replicates)]
    tail = min((finite <= 0).sum(), (finite >= 0).sum())
    return float(min(1.0, 2 * (tail + 1) / (len(finite) + 1)))


def _safe(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """Quotient with x/0 = ±∞ and 0/0 = 0."""
    tiny = denominator <= 0
    quotient = numerator / np.where(tiny, 1.0, denominator)
    return np.where(tiny & (numerator != 0), np.copysign(np.inf, numerator), quotient)


def _solve(function: Callable[[FloatArray], FloatArray], low: FloatArray, high: FloatArray) -> FloatArray:
    """Where a rising function crosses zero, elementwise, by halving.

    48 halvings leave an error below 1e-13 of the starting width, which is at most 50 here. Both ends of an
    interval, and all intervals of a table, are solved in one call, since the cost is that of the calls.
    """
    for _ in range(48):
        middle = (low + high) / 2
        above = function(middle) > 0
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return (low + high) / 2
