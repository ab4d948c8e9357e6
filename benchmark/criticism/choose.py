"""Which images of a class are its prototypes and its criticisms, and how firm that choice is.

Images of a class stand in a line: on one side the right answers, the surest (farthest from the boundary) at
the end; on the other the wrong ones, again the surest at the end. Prototypes are taken from the first end,
criticisms from the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from annotations.judgements import LabelSets, Verdict
from benchmark import statistics
from benchmark.criticism.records import Distances

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int8]

RIGHT, WRONG, ELSEWHERE, UNKNOWN = np.int8(1), np.int8(-1), np.int8(2), np.int8(0)
"""What an answer is: the original label; one that people reject; one that they accept or are unsure of though
it is not the original label, which makes the image neither; one that nobody judged."""

PROTOTYPE, CRITICISM = np.int8(1), np.int8(-1)

SHARE = 4
"""Without a k, a quarter of a class is chosen on each side, and at least one image."""


def answers(distances: Distances, labels: LabelSets | None) -> Codes:
    """What each answer is: int8 (N,), see `RIGHT`.

    Args:
        distances: The images and what was predicted.
        labels: Label sets; an image they cannot evaluate is read against its original label, as all are
            without any.
    """
    plain = np.where(distances.correct, RIGHT, WRONG).astype(np.int8)
    if labels is None or not len(labels) or not len(distances):
        return plain
    rows = labels.rows(distances.image_ids)
    judged = (rows >= 0) & labels.evaluable[rows]
    verdict = labels.lookup(rows, distances.predicted)
    code = np.full(len(plain), UNKNOWN)
    code[(verdict == Verdict.ACCEPTED) | (verdict == Verdict.UNSURE)] = ELSEWHERE
    code[verdict == Verdict.REJECTED] = WRONG
    return np.where(distances.correct | ~judged, plain, code).astype(np.int8)


def signed(distances: Distances, answer: Codes) -> Floats:
    """Place of each image in its class's line: float64 (N,); NaN for images that are in none.

    The distance for a right answer, minus the distance for a wrong one.
    """
    place = np.where(answer == RIGHT, distances.distance, -distances.distance)
    usable = ((answer == RIGHT) | (answer == WRONG)) & (distances.status != "failed")
    return np.where(usable, place, np.nan)


def choose(
    place: Floats,
    classes: npt.NDArray[np.integer],
    image_ids: npt.NDArray[np.object_],
    *,
    k: int | None = None,
    balanced: bool = False,
) -> Codes:
    """Prototypes and criticisms of each class.

    Args:
        place: As `signed` returns it, (N,); NaN leaves an image out.
        classes: Class of each image, (N,).
        image_ids: Ids, (N,), which break ties: the smaller first.
        k: Images chosen a class and side, at most half of it; None takes a quarter, at least one.
        balanced: Take as many criticisms as there are prototypes, for comparisons within classes.

    Returns:
        int8 (N,): PROTOTYPE, CRITICISM or 0. A class with one image has neither, and one that is never right
        has no prototypes.
    """
    role = np.zeros(len(place), dtype=np.int8)
    usable = np.flatnonzero(~np.isnan(place))
    if not len(usable):
        return role
    # Ids may be a mixture of lengths, so they are ranked as text once.
    by_id = np.argsort(image_ids[usable].astype(str), kind="stable")
    usable = usable[by_id]
    order = usable[np.lexsort((place[usable], classes[usable]))]
    _, start, size = np.unique(classes[order], return_index=True, return_counts=True)
    right = np.add.reduceat((~np.signbit(place[order])).astype(np.int64), start)
    wanted = np.minimum(np.maximum(size // SHARE, 1) if k is None else k, size // 2)
    above = np.minimum(wanted, right)
    below = above if balanced else wanted
    rank = np.arange(len(order)) - np.repeat(start, size)
    role[order[rank < np.repeat(below, size)]] = CRITICISM
    role[order[rank >= np.repeat(size - above, size)]] = PROTOTYPE
    return role


@dataclass(frozen=True)
class Stability:
    """How far the choice changes when the distances are measured again.

    Attributes:
        n: Images measured twice.
        correlation: Spearman's rank correlation of the two distances, NaN where one does not vary.
        interval: Its 95 % interval.
        ratio: Median of the second distance over the first.
        prototypes: Jaccard index of the prototypes chosen, NaN where none are.
        criticisms: The same of the criticisms.
        chosen: Prototypes and criticisms chosen under the first measurement.
    """

    n: int
    correlation: float
    interval: statistics.Interval
    ratio: float
    prototypes: float
    criticisms: float
    chosen: int


def stability(
    first: Distances, second: Distances, labels: LabelSets | None, *, k: int | None = None
) -> Stability | None:
    """Compare two measurements on the images that both have; None where these are fewer than four.

    Choices are made within the classes of which several images were measured; where there is no such class,
    among all images as one.
    """
    ids, one, two = np.intersect1d(
        first.image_ids.astype(str), second.image_ids.astype(str), return_indices=True
    )
    first, second = first.take(one), second.take(two)
    places = [signed(d, answers(d, labels)) for d in (first, second)]
    both = np.isfinite(places[0]) & np.isfinite(places[1])
    if both.sum() < 4:
        return None
    groups = first.labels.astype(np.int64)
    _, size = np.unique(groups[both], return_counts=True)
    if size.max() < 4:
        groups = np.zeros_like(groups)
    names = ids.astype(object)
    roles = [choose(np.where(both, place, np.nan), groups, names, k=k) for place in places]
    r, interval = statistics.rank_correlation(first.distance[both], second.distance[both])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = second.distance[both] / first.distance[both]
    return Stability(
        n=int(both.sum()),
        correlation=r,
        interval=interval,
        ratio=float(np.nanmedian(ratio)),
        prototypes=jaccard(roles[0] == PROTOTYPE, roles[1] == PROTOTYPE),
        criticisms=jaccard(roles[0] == CRITICISM, roles[1] == CRITICISM),
        chosen=int((roles[0] != 0).sum()),
    )


def jaccard(one: Bools, other: Bools) -> float:
    """Share of what either has that both have; NaN where neither has anything."""
    either = int((one | other).sum())
    return int((one & other).sum()) / either if either else float("nan")
