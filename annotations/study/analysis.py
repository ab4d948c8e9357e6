"""The analysis of an explanation study: agreement by arm, contrasts between arms, and how sure they are.

Raters are in one arm each and all arms judge the same items, so answers are clustered by rater and by item.
Intervals come from the two-way ("pigeonhole") cluster bootstrap, which draws raters, within their arm, and
items, the same for all arms (Owen 2007, The pigeonhole bootstrap, Ann. Appl. Stat. 1:386). It counts what is
neither of the rater nor of the item three times (there, theorem 2), so its distribution is scaled around the
estimate to the two-way cluster-robust variance, which counts it once (Cameron, Gelbach and Miller 2011, J.
Bus. Econ. Stat. 29:238), and is corrected for few clusters and for skewness (see `interval`). p values come
from permuting arms over raters, exact for "the arm makes no difference to anybody", and are corrected over
all contrasts after Holm 1979.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri, stdtrit

from annotations.errors import BeyondError
from annotations.study.preregistration import ARMS

Floats = npt.NDArray[np.float64]
Method = Literal["two-way bootstrap", "exact", "none"]
CHUNK = 500  # resamples at a time: bounds memory


@dataclass(frozen=True)
class Responses:
    """Answers of a study (V answers, R raters, I items, A arms).

    Attributes:
        rater: integer (V,), row of the rater.
        item: integer (V,), row of the item.
        value: float64 (V,), what is averaged, in [0, 1]: 1 where the rater agrees with the label shown.
        arm: integer (R,), arm of each rater.
        items: I.
        arms: Names of the arms; the first is what the others are compared with.
        repeated: Whether an item may stand for several questions, such as an image shown with two labels.

    Raises:
        BeyondError: A length or a number is wrong, or a rater answered an item twice.
    """

    rater: npt.NDArray[np.integer]
    item: npt.NDArray[np.integer]
    value: Floats
    arm: npt.NDArray[np.integer]
    items: int
    arms: tuple[str, ...] = ARMS
    repeated: bool = False

    def __post_init__(self) -> None:
        if not len(self.rater) == len(self.item) == len(self.value):
            raise BeyondError("responses: rater, item and value differ in length; give one of each an answer")
        for values, size, what in (
            (self.rater, len(self.arm), "rater"),
            (self.item, self.items, "item"),
            (self.arm, len(self.arms), "arm"),
        ):
            if len(values) and not 0 <= values.min() <= values.max() < size:
                raise BeyondError(f"responses: a number of a {what} is outside 0..{size - 1}")
        if len(self.value) and not ((self.value >= 0) & (self.value <= 1)).all():
            raise BeyondError("responses: a value is outside [0, 1]")
        keys = self.rater.astype(np.int64) * max(self.items, 1) + self.item
        if not self.repeated and len(np.unique(keys)) != len(keys):
            raise BeyondError("responses: a rater answered an item twice; keep the last answer only")

    def of_arm(self, arm: int) -> tuple[Floats, Floats]:
        """Sums and counts of an arm's answers as tables raters × items, both float64."""
        raters = np.flatnonzero(self.arm == arm)
        row = np.full(len(self.arm), -1)
        row[raters] = np.arange(len(raters))
        inside = row[self.rater] >= 0
        at = row[self.rater[inside]] * self.items + self.item[inside]
        size = len(raters) * self.items
        total: Floats = np.bincount(at, weights=self.value[inside], minlength=size).astype(np.float64)
        count: Floats = np.bincount(at, minlength=size).astype(np.float64)
        return total.reshape(len(raters), self.items), count.reshape(len(raters), self.items)


@dataclass(frozen=True)
class Share:
    """Agreement of one arm.

    Attributes:
        arm: Its name.
        value: Mean over answers, in [0, 1]; NaN where nobody answered.
        low: Lower end of the 95 % interval; NaN with a single rater or item, who tell nothing of others.
        high: Upper end.
        raters: Raters with an answer.
        items: Items with an answer.
        answers: Answers.
        method: How the interval was made: `two-way bootstrap`; `exact` where all answers are the same (as if
            the fewer of raters and items had answered once each); `none`.
    """

    arm: str
    value: float
    low: float
    high: float
    raters: int
    items: int
    answers: int
    method: Method = "two-way bootstrap"

    @property
    def comparable(self) -> bool:
        """Whether there are raters and items enough to know how they differ."""
        return self.raters >= 2 and self.items >= 2


@dataclass(frozen=True)
class Contrast:
    """Agreement in one arm less that in another.

    Attributes:
        arm: The arm.
        versus: What it is compared with.
        value: Difference, in [−1, 1].
        low: Lower end of the 95 % interval.
        high: Upper end.
        p: Two-sided p value of the permutation test.
        p_holm: The same, corrected over all contrasts of the analysis.
        method: How the interval was made: `two-way bootstrap`, or `hybrid score` from the intervals of both
            arms where all answers of one are the same (Newcombe 1998, Stat. Med. 17:873, method 10).
    """

    arm: str
    versus: str
    value: float
    low: float
    high: float
    p: float
    p_holm: float
    method: str = "two-way bootstrap"


@dataclass(frozen=True)
class Comparison:
    """Arms and the contrasts between them."""

    shares: tuple[Share, ...]
    contrasts: tuple[Contrast, ...]
    resamples: int
    permutations: int


def compare_arms(
    responses: Responses,
    *,
    resamples: int = 10_000,
    permutations: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Comparison:
    """Agreement in each arm, and every later arm against every earlier one.

    What cannot be told is left out rather than refused: an arm with a single rater or item has a share
    without an interval and stands in no contrast, an empty arm has neither.

    Args:
        responses: The answers.
        resamples: Of the bootstrap.
        permutations: Of the permutation test; the smallest p value is 1 / (permutations + 1).
        seed: Of both.
        level: Coverage of the intervals.

    Cost: O(resamples · R · I), a second for 200 raters, 60 items and 10,000 resamples; memory does not grow
    with the number of resamples.
    """
    means = bootstrap(responses, resamples=resamples, seed=seed)
    shares = [_share(responses, means, arm, level) for arm in range(len(responses.arms))]
    here = [arm for arm, share in enumerate(shares) if share.comparable]
    pairs = [(b, a) for i, a in enumerate(here) for b in here[i + 1 :]]
    p = permutation_p(responses, pairs, permutations=permutations, seed=seed)
    adjusted = holm(p)
    contrasts = []
    for (arm, versus), raw, corrected in zip(pairs, p, adjusted):
        one, other = shares[arm], shares[versus]
        exact = "exact" in (one.method, other.method)
        if exact:
            low, high = _hybrid(one, other)
        else:
            low, high = interval(responses, means, {arm: 1.0, versus: -1.0}, level=level)
        contrasts.append(
            Contrast(
                arm=one.arm,
                versus=other.arm,
                value=one.value - other.value,
                low=low,
                high=high,
                p=float(raw),
                p_holm=float(corrected),
                method="hybrid score" if exact else "two-way bootstrap",
            )
        )
    return Comparison(tuple(shares), tuple(contrasts), resamples, permutations)


def _share(responses: Responses, means: Floats, arm: int, level: float) -> Share:
    total, count = responses.of_arm(arm)
    n = count.sum()
    value = float(total.sum() / n) if n else math.nan
    raters, items = int((count.sum(axis=1) > 0).sum()), int((count.sum(axis=0) > 0).sum())
    low = high = math.nan
    method: Method = "none"
    if raters >= 2 and items >= 2:
        if value in (0.0, 1.0):
            # No resample differs, so the bootstrap would claim to know for sure.
            method = "exact"
            far = ((1 - level) / 2) ** (1 / min(raters, items))
            low, high = (far, 1.0) if value == 1.0 else (0.0, 1 - far)
        else:
            method = "two-way bootstrap"
            low, high = interval(responses, means, {arm: 1.0}, level=level)
    return Share(responses.arms[arm], value, low, high, raters, items, int(n), method)


def _hybrid(one: Share, other: Share) -> tuple[float, float]:
    """Interval of a difference of two shares from the intervals of both."""
    value = one.value - other.value
    low = value - math.hypot(one.value - one.low, other.high - other.value)
    high = value + math.hypot(one.high - one.value, other.value - other.low)
    return low, high


def bootstrap(responses: Responses, *, resamples: int = 10_000, seed: int = 0) -> Floats:
    """Agreement of each arm in each resample of raters and items: float64 (resamples, A).

    NaN where an arm has no answer (in the resample).
    """
    bits = np.random.PCG64(seed)
    tables = []
    for arm in range(len(responses.arms)):
        total, count = responses.of_arm(arm)
        answered = count.sum(axis=1) > 0
        tables.append((total[answered], count[answered]))
    means = np.full((resamples, len(tables)), np.nan)
    if not responses.items:
        return means
    for rows in _chunks(resamples):
        size = rows.stop - rows.start
        items = _times_drawn(bits, size, responses.items)
        for arm, (total, count) in enumerate(tables):
            if not len(total):
                continue
            raters = _times_drawn(bits, size, len(total))
            n = np.einsum("bi,bi->b", raters @ count, items)
            means[rows, arm] = np.divide(
                np.einsum("bi,bi->b", raters @ total, items), n, out=np.full(size, np.nan), where=n > 0
            )
    return means


def interval(
    responses: Responses, means: Floats, weights: Mapping[int, float], *, level: float = 0.95
) -> tuple[float, float]:
    """Interval of a weighted sum of the arms' agreement, such as a difference.

    The bootstrap's quantiles, corrected in three ways, each of which matters where clusters are few:

    * They are scaled around the estimate to the two-way cluster-robust variance (see above).
    * They are widened as Student's t is against the normal distribution, with the degrees of freedom of that
      variance after Satterthwaite 1946 (Biometrics 2:110), whose parts are raters, by arm as in Welch's test,
      and items; with only two raters in an arm, at most those of raters. Few clusters know little of how
      clusters differ (Cameron and Miller 2015, J. Hum. Resour. 50:317, VI).
    * They are taken at levels that allow for skewness, as shares near 0 or 1 have it: the accelerated
      bootstrap BCa (Efron 1987, J. Am. Stat. Assoc. 82:171). Its acceleration a is a sixth of the skewness,
      here that of the sums over raters and over items together; its bias correction is a as well, which is
      what it comes to for means (DiCiccio and Efron 1996, Stat. Sci. 11:189, section 4), since a share of
      resamples would be noisier.

    Args:
        responses: The answers.
        means: What `bootstrap` returned for them.
        weights: Arm to weight; all these arms have answers.
        level: Coverage.
    """
    drawn = sum(weight * means[:, arm] for arm, weight in weights.items())
    estimate = 0.0
    by_rater: list[tuple[float, int]] = []  # variance and degrees of freedom of each arm
    of_cell = third = 0.0
    answered = np.zeros(responses.items)
    by_item = np.zeros(responses.items)
    for arm, weight in weights.items():
        total, count = responses.of_arm(arm)
        n = count.sum()
        mean = total.sum() / n
        estimate += weight * mean
        influence = weight * (total - mean * count) / n
        raters = int((count.sum(axis=1) > 0).sum())
        of_rater = influence.sum(axis=1)
        by_rater.append((float((of_rater**2).sum()) * raters / max(raters - 1, 1), max(raters - 1, 1)))
        third += float((of_rater**3).sum())
        by_item += influence.sum(axis=0)
        answered += count.sum(axis=0)
        of_cell += float((influence**2).sum())
    items = int((answered > 0).sum())
    by_raters = sum(variance for variance, _ in by_rater)
    by_items = float((by_item**2).sum()) * items / max(items - 1, 1)
    third += float((by_item**3).sum())
    robust = max(by_raters + by_items - of_cell, by_raters, by_items)
    if robust <= 0:
        return float(estimate), float(estimate)
    # A part that the variance does not count takes no freedom from it.
    unsure = 0.0
    if robust > by_items or by_raters == by_items:
        unsure += sum(variance**2 / own for variance, own in by_rater)
    if robust > by_raters:
        unsure += by_items**2 / max(items - 1, 1)
    freedom = robust**2 / unsure
    # Two clusters that happen to be alike would pass for a part that does not vary.
    if any(own == 1 for _, own in by_rater):
        freedom = min(freedom, sum(own for _, own in by_rater))
    if items == 2:
        freedom = 1.0
    tail = (1 - level) / 2
    wide = float(stdtrit(max(freedom, 1.0), 1 - tail) / ndtri(1 - tail))
    spread = float(np.nanvar(drawn))
    scale = math.sqrt(robust / spread) if spread > 0 else 1.0
    skew = third / (6 * robust**1.5)
    levels = [_accelerated(tail, skew), _accelerated(1 - tail, skew)]
    low, high = np.nanquantile(drawn, levels)
    least = sum(min(weight, 0.0) for weight in weights.values())
    most = sum(max(weight, 0.0) for weight in weights.values())
    return (
        max(least, float(estimate + wide * scale * (low - estimate))),
        min(most, float(estimate + wide * scale * (high - estimate))),
    )


def _accelerated(level: float, a: float) -> float:
    """Level in (0, 1) at which BCa takes the quantile of `level`: Efron 1987, equation 3.8, with z₀ = a."""
    z = a + float(ndtri(level))
    room = 1 - a * z
    return float(ndtr(a + z / room)) if room > 0 else float(z > 0)


def permutation_p(
    responses: Responses, pairs: Sequence[tuple[int, int]], *, permutations: int = 10_000, seed: int = 0
) -> Floats:
    """Two-sided p value of each contrast when arms are dealt out anew among the raters of its two arms.

    Args:
        responses: The answers.
        pairs: (arm, versus) each.
        permutations: How many; the given order counts as one more (Phipson and Smyth 2010).
        seed: Of the permutations.

    Returns:
        float64 (len(pairs),).
    """
    size = len(responses.arm)
    total: Floats = np.bincount(responses.rater, weights=responses.value, minlength=size).astype(np.float64)
    count: Floats = np.bincount(responses.rater, minlength=size).astype(np.float64)
    answered = count > 0
    result = np.ones(len(pairs))
    for at, (arm, versus) in enumerate(pairs):
        bits = np.random.PCG64([seed, arm, versus])
        chosen = answered & np.isin(responses.arm, (arm, versus))
        first = responses.arm[chosen] == arm
        sums, counts = total[chosen], count[chosen]
        observed = abs(_difference(first[None].astype(np.float64), sums, counts)[0])
        extreme = 0
        for rows in _chunks(permutations):
            keys = bits.random_raw(size=(rows.stop - rows.start) * len(first)).reshape(-1, len(first))
            dealt = first[np.argsort(keys, axis=1, kind="stable")].astype(np.float64)
            extreme += int((np.abs(_difference(dealt, sums, counts)) >= observed - 1e-12).sum())
        result[at] = (extreme + 1) / (permutations + 1)
    return result


def holm(p: Floats) -> Floats:
    """P values adjusted for the number of tests (Holm 1979): float64, same shape, in [0, 1].

    Example:
        >>> holm(np.array([0.01, 0.04, 0.03])).round(3).tolist()
        [0.03, 0.06, 0.06]
    """
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    result = np.empty(len(p))
    result[order] = np.minimum(stepped, 1.0)
    return result


def gee(responses: Responses) -> list[tuple[str, float, float, float, float]]:
    """Log odds ratios of each arm against the first, by generalised estimating equations over raters.

    A sensitivity analysis: logit link, exchangeable working correlation within a rater, robust errors
    (Liang and Zeger 1986). It does not know of items, so its intervals are on these items only.

    Returns:
        (arm, log odds ratio, low, high, p) for each arm but the first that has answers.

    Raises:
        BeyondError: statsmodels is missing, values are not 0 or 1, or an arm's answers are all the same.
    """
    try:
        import statsmodels.api as sm
    except ImportError as error:
        raise BeyondError(
            "GEE needs statsmodels; install it with: pip install 'beyond-accuracy[campaign]'"
        ) from error
    if not np.isin(responses.value, (0.0, 1.0)).all():
        raise BeyondError("GEE needs answers that are 0 or 1; score maybe as one of them")
    arm_of = responses.arm[responses.rater]
    present = [arm for arm in range(len(responses.arms)) if (arm_of == arm).any()]
    for arm in present:
        values = responses.value[arm_of == arm]
        if values.min() == values.max():
            raise BeyondError(
                f"all answers in arm {responses.arms[arm]!r} are the same, so its odds are not defined"
            )
    order = np.argsort(responses.rater, kind="stable")
    design = np.column_stack(
        [np.ones(len(order)), *((arm_of[order] == arm).astype(np.float64) for arm in present[1:])]
    )
    model = sm.GEE(
        responses.value[order],
        design,
        groups=responses.rater[order],
        family=sm.families.Binomial(),
        cov_struct=sm.cov_struct.Exchangeable(),
    )
    fit = model.fit()
    interval = np.asarray(fit.conf_int())
    return [
        (
            responses.arms[arm],
            float(fit.params[i]),
            float(interval[i, 0]),
            float(interval[i, 1]),
            float(fit.pvalues[i]),
        )
        for i, arm in enumerate(present[1:], start=1)
    ]


def _difference(first: Floats, sums: Floats, counts: Floats) -> Floats:
    """Mean of the raters in `first` (float64 (P, R), 0 or 1) less that of the others: float64 (P,)."""
    a, n = first @ sums, first @ counts
    return np.asarray(a / n - (sums.sum() - a) / (counts.sum() - n))


def _times_drawn(bits: np.random.PCG64, resamples: int, n: int) -> Floats:
    """How often each of n is drawn, in n draws with replacement: float64 (resamples, n), rows add up to n.

    From raw bits, whose stream every version of numpy keeps, so that intervals can be computed again to the
    last digit years later; that of its distributions may change.
    """
    raw = bits.random_raw(size=resamples * n) >> np.uint64(32)
    drawn = ((raw * np.uint64(n)) >> np.uint64(32)).astype(np.int64)
    at = np.repeat(np.arange(resamples, dtype=np.int64) * n, n) + drawn
    counts: Floats = np.bincount(at, minlength=resamples * n).astype(np.float64)
    return counts.reshape(resamples, n)


def _chunks(n: int) -> Iterator[slice]:
    for start in range(0, n, CHUNK):
        yield slice(start, min(start + CHUNK, n))
