"""Ranks of entries, as ranges where the data cannot tell them apart.

Every pair of entries is compared on the same images by McNemar's exact test, from the packed bits of
`leaderboard.correctness`. Holm's correction over all pairs keeps the chance of any wrong claim "better than"
at α. An entry's best possible rank is 1 + the number of entries that are significantly better, its worst the
number of entries − those that are significantly worse: with probability 1 − α all ranges hold their entry's
true rank at once.

An answer that nobody judged may be right or wrong: a difference counts only if it is significant whatever the
unjudged answers of both turn out to be.

Cost for N entries on n images: one matrix product, N² n multiplications, N² / 2 tests, and a sort of them.
1,600 entries take seconds (`tests/bench/test_ranking.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy import special

from annotations.errors import BeyondError
from benchmark import statistics
from leaderboard.correctness import TOP1, Bytes
from leaderboard.entries import Entry
from leaderboard.masks import Masks, load_masks, pinned

ALPHA = 0.05
DEFAULT_METRIC = "real_accuracy"

SECTIONS = {
    "top1": (TOP1, None),
    "top1_evaluable": (TOP1, "real"),
    "real_accuracy": ("real", "real"),
    "mla_plain": ("mla", "mla"),
    "consolidated_accuracy": ("consolidated", "consolidated"),
}
"""Metric to the section of `correct.bits` that holds it, and the source whose images it is a share of."""

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]

_BLOCK = 8192  # images of one matrix product, a multiple of 8: bounds the memory of the unpacked bits


# ------------------------------------------------------------------------------------------- paired tests


@dataclass(frozen=True)
class Pairs:
    """Every ordered pair of N classifiers on the same n images.

    Attributes:
        n: Number of images.
        right: int64 (N,), images that each gets right.
        unjudged: int64 (N,), images whose prediction nobody judged.
        only: int64 (N, N), images that the row gets right and the column does not; unjudged is not right.
        helped: int64 (N, N), images that the row gets right and where the column's prediction is unjudged.
    """

    n: int
    right: Ints
    unjudged: Ints
    only: Ints
    helped: Ints

    def p_values(self) -> FloatArray:
        """Two-sided p values of McNemar's exact test: float64 (N, N), symmetric, 1 on the diagonal.

        Where predictions are unjudged it is the largest that their verdicts allow: 1 where they can turn the
        difference round, else the larger of the p values at both extremes.
        """
        size = len(self.right)
        i, j = np.triu_indices(size, 1)
        only_i, only_j = self.only[i, j], self.only[j, i]
        if not self.unjudged.any():
            found = _mcnemar(only_i, only_j)
        else:
            # Everything open against i and for j, and the other way round.
            worst = (only_i - self.helped[i, j], only_j + self.unjudged[j] - self.helped[i, j])
            best = (only_i + self.unjudged[i] - self.helped[j, i], only_j - self.helped[j, i])
            found = np.maximum(_mcnemar(*worst), _mcnemar(*best))
            straddles = (worst[0] < worst[1]) & (best[0] > best[1])
            found[straddles] = 1.0
        p_values = np.ones((size, size))
        p_values[i, j] = p_values[j, i] = found
        return p_values


def _mcnemar(only_a: Ints, only_b: Ints) -> FloatArray:
    """`statistics.mcnemar`, computed once for each pair of counts that occurs."""
    least, most = np.minimum(only_a, only_b), np.maximum(only_a, only_b)
    keys, inverse = np.unique(least * (int(most.max(initial=0)) + 1) + most, return_inverse=True)
    least, most = np.divmod(keys, int(most.max(initial=0)) + 1)
    return np.asarray(statistics.mcnemar(least, most)[inverse])


def compare_all(
    right: Sequence[Bytes],
    n: int,
    *,
    images: Bytes | None = None,
    unjudged: Sequence[npt.NDArray[np.uint32]] | None = None,
) -> Pairs:
    """Compare N classifiers pairwise.

    Args:
        right: Packed bits (⌈n / 8⌉,) of each, least significant first.
        n: Number of images.
        images: Packed bits of the images that count; by default all.
        unjudged: Positions of each one's unjudged predictions, among the images that count.
    """
    size = len(right)
    bits = np.stack(right) if size else np.zeros((0, -(-n // 8)), dtype=np.uint8)
    if images is not None:
        bits = bits & images
        n = int(np.bitwise_count(images).sum())
    both = np.zeros((size, size), dtype=np.float64)
    helped = np.zeros((size, size), dtype=np.float64)
    opened = unjudged if unjudged is not None and any(len(rows) for rows in unjudged) else None
    for start in range(0, bits.shape[1], _BLOCK // 8):
        block = _unpacked(bits, start)
        both += block @ block.T
        if opened is not None:
            first, last = start * 8, start * 8 + block.shape[1]
            gaps = np.zeros_like(block)
            for row, positions in enumerate(opened):
                gaps[row, positions[(positions >= first) & (positions < last)].astype(np.intp) - first] = 1
            helped += block @ gaps.T
    together = both.astype(np.int64)
    count = np.diagonal(together).copy()
    lengths = [len(rows) for rows in unjudged] if unjudged is not None else [0] * size
    return Pairs(
        n=n,
        right=count,
        unjudged=np.array(lengths, dtype=np.int64),
        only=count[:, None] - together,
        helped=helped.astype(np.int64),
    )


def holm(p_values: FloatArray) -> FloatArray:
    """Holm's adjusted p values, in the shape given (Holm 1979, Scand. J. Statist. 6:65).

    Example:
        >>> holm(np.array([0.01, 0.04, 0.03])).round(2).tolist()
        [0.03, 0.06, 0.06]
    """
    flat = p_values.ravel()
    order = np.argsort(flat, kind="stable")
    adjusted = np.maximum.accumulate(flat[order] * np.arange(len(flat), 0, -1))
    result = np.empty_like(flat)
    result[order] = np.minimum(adjusted, 1.0)
    return result.reshape(p_values.shape)


def significantly_better(pairs: Pairs, *, alpha: float = ALPHA) -> Bools:
    """Which row is better than which column, by Holm over all pairs: bool (N, N)."""
    return _claims(pairs, _adjusted(pairs), alpha)


def _adjusted(pairs: Pairs) -> FloatArray:
    """Holm's adjusted p value of every pair: float64 (N, N), symmetric, 1 on the diagonal."""
    p_values = pairs.p_values()
    i, j = np.triu_indices(len(p_values), 1)
    adjusted = np.ones_like(p_values)
    adjusted[i, j] = adjusted[j, i] = holm(p_values[i, j])
    return adjusted


def _claims(pairs: Pairs, adjusted: FloatArray, alpha: float) -> Bools:
    better: Bools = (adjusted <= alpha) & (pairs.only > pairs.only.T)
    return better


# -------------------------------------------------------------------------------------------------- ranks


@dataclass(frozen=True)
class Rank:
    """Where an entry stands.

    Attributes:
        value: Its metric.
        place: Its place by value alone, from 1; equal values share the best place.
        low: The best rank the data allow.
        high: The worst rank the data allow.
    """

    value: float
    place: int
    low: int
    high: int

    @property
    def text(self) -> str:
        """The range as text, e.g. `3` or `2–5`."""
        return str(self.low) if self.low == self.high else f"{self.low}–{self.high}"


@dataclass(frozen=True)
class Ranking:
    """All entries by one metric.

    Attributes:
        metric: Its name.
        alpha: Chance of any wrong claim that one entry is better than another.
        n: Images behind every value.
        ranks: By slug, best value first.
        excluded: By slug, why an entry is listed without a rank.
        better: bool (N, N), row significantly better than column, in the order of `ranks`.
        adjusted: float64 (N, N), Holm's adjusted p values, in the order of `ranks`.
    """

    metric: str
    alpha: float
    n: int
    ranks: dict[str, Rank]
    excluded: dict[str, str]
    better: Bools = field(repr=False)
    adjusted: FloatArray = field(repr=False)

    @property
    def pairs(self) -> int:
        """Number of pairs of ranked entries."""
        return len(self.ranks) * (len(self.ranks) - 1) // 2

    @property
    def told_apart(self) -> int:
        """Number of pairs that the data tell apart."""
        return int(self.better.sum())

    def tied_with(self, slug: str) -> list[str]:
        """Entries that the data cannot tell from this one, best value first."""
        slugs = list(self.ranks)
        at = slugs.index(slug)
        apart = self.better[at] | self.better[:, at]
        return [other for row, other in enumerate(slugs) if row != at and not apart[row]]


def rank_entries(
    entries: Sequence[Entry],
    metric: str = DEFAULT_METRIC,
    *,
    alpha: float = ALPHA,
    masks: Masks | None = None,
) -> Ranking:
    """Rank entries by a metric that is a share of images.

    Ranked are active entries over all 50,000 images, scored against the annotations that `masks` names, with
    bits for the metric. All others are listed in `excluded`.

    Args:
        entries: The entries.
        metric: A key of `SECTIONS`.
        alpha: Chance of any wrong claim that one entry is better than another.
        masks: Evaluable images; by default this repository's.

    Raises:
        BeyondError: The metric cannot be ranked by, or an entry's bits are damaged.
    """
    if metric not in SECTIONS:
        raise BeyondError(f"entries cannot be ranked by {metric!r}; choose one of {', '.join(SECTIONS)}")
    masks = masks or load_masks()
    section, source = SECTIONS[metric]
    excluded: dict[str, str] = {}
    ranked: list[Entry] = []
    for entry in entries:
        reason = why_unranked(entry, metric, masks)
        if reason is None:
            ranked.append(entry)
        else:
            excluded[entry.slug] = reason
    found = [entry.correctness for entry in ranked]
    bits = [c for c in found if c is not None]
    pairs = compare_all(
        [c.packed[section] for c in bits],
        len(masks.correctness),
        images=None if source is None else masks.packed(source),
        unjudged=[c.open.get(section, np.zeros(0, dtype=np.uint32)) for c in bits],
    )
    adjusted = _adjusted(pairs)
    better = _claims(pairs, adjusted, alpha)
    low = 1 + better.sum(axis=0)
    high = len(ranked) - better.sum(axis=1)
    place = 1 + (pairs.right[:, None] < pairs.right).sum(axis=1)
    order = sorted(range(len(ranked)), key=lambda row: (place[row], low[row], high[row], ranked[row].slug))
    ranks = {
        ranked[row].slug: Rank(
            float(pairs.right[row] / pairs.n), int(place[row]), int(low[row]), int(high[row])
        )
        for row in order
    }
    rows = np.array(order, dtype=np.intp)
    return Ranking(
        metric=metric,
        alpha=alpha,
        n=pairs.n,
        ranks=ranks,
        excluded=excluded,
        better=better[np.ix_(rows, rows)],
        adjusted=adjusted[np.ix_(rows, rows)],
    )


def why_unranked(entry: Entry, metric: str = DEFAULT_METRIC, masks: Masks | None = None) -> str | None:
    """Why an entry is listed without a rank by this metric, in a few words; None if it is ranked."""
    masks = masks or load_masks()
    section, source = SECTIONS[metric]
    if entry.info.state != "active":
        return entry.info.state
    if entry.info.scope != "full":
        return f"a sample of {entry.scorecard.images.n:,} images"
    bits = entry.correctness
    if bits is None or section not in bits.packed:
        return f"incomplete: which images are right by {section} is not published"
    if not bits.full:
        return "not all 50,000 validation images"
    if source is not None and source not in masks.revisions:
        return f"incomplete: {source} is not among the annotations of this leaderboard"
    if source is not None and section != TOP1:
        scored = pinned(bits.annotations[section])
        if scored != masks.revisions[source]:
            return f"scored against {source} at {scored}, not at {masks.revisions[source]}: to be rescored"
    return None


# ----------------------------------------------------------------------------------------------- movement


@dataclass(frozen=True)
class Move:
    """How one entry's rank changes from one metric to another; `places` > 0 is a gain."""

    slug: str
    before: Rank
    after: Rank

    @property
    def places(self) -> int:
        """Places gained."""
        return self.before.place - self.after.place

    @property
    def significant(self) -> bool:
        """Whether the two ranges of ranks have no rank in common."""
        return self.after.high < self.before.low or self.after.low > self.before.high


@dataclass(frozen=True)
class Swap:
    """Two entries whose order by value is the opposite after.

    Attributes:
        overtaken: The better one by the first metric.
        overtakes: The better one by the second.
        before: Value of `overtaken` minus that of `overtakes` by the first metric, on the second's images.
        after: The same by the second, negative.
        p_value: Two-sided, for before = after, by Holm over all pairs of entries.
    """

    overtaken: str
    overtakes: str
    before: float
    after: float
    p_value: float


@dataclass(frozen=True)
class Movement:
    """How the ranking changes from one metric to another.

    Attributes:
        before: Ranking by the first metric, at half of α, so that all ranges of both hold at once.
        after: Ranking by the second.
        tau: Kendall's τ-b of the two values over the entries ranked by both.
        moves: Every entry ranked by both, largest move first.
        swaps: Pairs that change places by value, the surest first.
    """

    before: Ranking
    after: Ranking
    tau: float
    moves: list[Move]
    swaps: list[Swap]


def movement(
    entries: Sequence[Entry],
    before: str = "top1",
    after: str = DEFAULT_METRIC,
    *,
    alpha: float = ALPHA,
    masks: Masks | None = None,
) -> Movement:
    """How ranks move from one metric to another, and which moves are more than chance.

    Both rankings are made at α / 2, so that with probability 1 − α every range of both holds its entry's true
    rank; ranges without a common rank then mean that the rank itself differs.
    """
    from scipy.stats import kendalltau

    first = rank_entries(entries, before, alpha=alpha / 2, masks=masks)
    second = rank_entries(entries, after, alpha=alpha / 2, masks=masks)
    slugs = [slug for slug in first.ranks if slug in second.ranks]
    moves = [Move(slug, first.ranks[slug], second.ranks[slug]) for slug in slugs]
    moves.sort(key=lambda move: (-abs(move.places), move.after.place, move.slug))
    values = [np.array([ranking.ranks[slug].value for slug in slugs]) for ranking in (first, second)]
    tau = float(kendalltau(*values).statistic) if len(slugs) > 1 else float("nan")
    return Movement(
        before=first,
        after=second,
        tau=tau,
        moves=moves,
        swaps=_swaps({e.slug: e for e in entries}, first, second, slugs, masks or load_masks()),
    )


def _swaps(
    entries: Mapping[str, Entry], first: Ranking, second: Ranking, slugs: Sequence[str], masks: Masks
) -> list[Swap]:
    """Pairs that change places, with a paired test of whether their difference changes at all.

    An image gains a classifier −1, 0 or 1; the gains of two on the same images are compared by the paired t
    test. The variances of all pairs come from one matrix product.
    """
    if len(slugs) < 2:
        return []
    (old, _), (new, source) = SECTIONS[first.metric], SECTIONS[second.metric]
    found = [c for slug in slugs if (c := entries[slug].correctness) is not None]
    bits = [np.stack([c.packed[section] for c in found]) for section in (old, new)]
    n = len(masks.correctness)
    if source is not None:
        bits = [section & masks.packed(source) for section in bits]
        n = second.n
    product = np.zeros((len(slugs), len(slugs)))
    for start in range(0, bits[0].shape[1], _BLOCK // 8):
        old_block, new_block = (_unpacked(section, start) for section in bits)
        gain = new_block - old_block
        product += gain @ gain.T
    values = [np.bitwise_count(section).sum(axis=1, dtype=np.int64) / n for section in bits]
    differences = [value[:, None] - value for value in values]
    mean = differences[1] - differences[0]
    squares = np.diagonal(product)
    spread = np.maximum((squares[:, None] + squares - 2 * product) / n - mean**2, 0)
    variance = spread / max(n - 1, 1)
    i, j = np.triu_indices(len(slugs), 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.abs(mean[i, j]) / np.sqrt(variance[i, j])
    adjusted = holm(np.where(variance[i, j] > 0, 2 * special.stdtr(max(n - 1, 1), -t), mean[i, j] == 0))
    swaps = []
    ranked = [np.array([ranking.ranks[slug].value for slug in slugs]) for ranking in (first, second)]
    signs = [np.sign(value[i] - value[j]) for value in ranked]
    for at in np.flatnonzero(signs[0] * signs[1] < 0):
        a, b = (i[at], j[at]) if signs[0][at] > 0 else (j[at], i[at])
        before, after = (float(difference[a, b]) for difference in differences)
        swaps.append(Swap(slugs[a], slugs[b], before, after, float(adjusted[at])))
    return sorted(swaps, key=lambda swap: (swap.p_value, swap.overtaken, swap.overtakes))


def _unpacked(bits: Bytes, start: int) -> npt.NDArray[np.float32]:
    """The block of images that begins at byte `start`, as 0 and 1: float32 (N, ≤ _BLOCK).

    Counts below 2²⁴ are exact in float32, whose matrix products are the fastest.
    """
    block = bits[:, start : start + _BLOCK // 8]
    return np.unpackbits(block, axis=1, bitorder="little").astype(np.float32)
