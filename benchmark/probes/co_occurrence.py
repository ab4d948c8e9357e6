"""Reliance on co-occurrence: is a class recognised less often when its usual companion is not in the image?

For a class c and a companion d, the images are those whose original label is c and people accept it. Those
where people also accept d have the companion; those where they reject d have not; where nobody judged d, the
image counts for neither. The model is right on c if c is the first class of its ranking that is not another
accepted class: to name the companion instead is no mistake, and does not count as one. Distances to the
decision boundary are compared among the images whose top-1 class is c.

What this finds is an association. Images with a companion differ in more than the companion (a screen is
seen from farther away when its desk is in view), so a gap is a reason to look, not a proof.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from annotations.classes import NUM_CLASSES, class_names
from annotations.errors import BeyondError
from annotations.judgements import LabelSets, Verdict
from benchmark.anatomy import hierarchy
from benchmark.probes import CO_OCCURRENCE
from benchmark.probes.execution import Evidence, ProbeResult
from benchmark.records import Predictions
from benchmark.scorecard import Cell, Metric
from benchmark.statistics import (
    Z95,
    Difference,
    FloatArray,
    benjamini_yekutieli,
    newcombe,
    stratified_exact,
)

MIN_IMAGES = 5
"""Images that a pair needs with the companion, and without it."""

MAX_ROWS = 50
FDR = 0.05

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Images:
    """The N images whose original label people accept.

    Attributes:
        image_ids: object (N,) of str.
        rows: int (N,), row of each in the label sets.
        label: int (N,), the class in question.
        right: bool (N,), whether the model is right on it, other accepted classes set aside.
        predicted: bool (N,), whether its top-1 class is the label: only then is the distance to the decision
            boundary one from the class in question.
    """

    image_ids: npt.NDArray[np.object_]
    rows: Indices
    label: Indices
    right: npt.NDArray[np.bool_]
    predicted: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.image_ids)


@dataclass(frozen=True)
class Pair:
    """A class, a companion, and the images (as indices into `Images`) with and without it."""

    label: int
    companion: int
    present: Indices
    absent: Indices


def score(evidence: Evidence) -> ProbeResult:
    """Gaps between images with and without a companion, from a run's predictions and label sets."""
    from benchmark.tracks.robustness import primary_source

    source = primary_source(evidence.labels)
    if evidence.predictions is None or source is None:
        raise BeyondError(
            "the probe co-occurrence needs predictions and multi-label sets; give --annotations real, say"
        )
    images, unknown = judge(evidence.predictions(), evidence.labels[source])
    return score_images(images, evidence.labels[source], unknown=unknown, distances=evidence.distances)


def judge(predictions: Iterable[Predictions], sets: LabelSets) -> tuple[Images, int]:
    """Whether the model is right on each image's original label, other accepted classes set aside.

    Returns:
        The images, and how many were left out because every class that the record keeps is another accepted
        one, so that nothing says what comes next.
    """
    ids, rows, labels, right, predicted = [], [], [], [], []
    unknown = 0
    for part in predictions:
        at = sets.rows(part.image_ids)
        usable = (at >= 0) & (part.original_labels >= 0)
        usable[usable] = sets.evaluable[at[usable]]
        label = part.original_labels.astype(np.int64)
        usable[usable] = sets.lookup(at[usable], label[usable]) == Verdict.ACCEPTED
        kept, label = at[usable], label[usable]
        # The few best classes decide nearly always; the rest are looked at where they do not.
        first = _first_other(part.classes[usable], label, kept, sets)
        known = first >= 0
        unknown += int((~known).sum())
        ids.append(part.image_ids[usable][known])
        rows.append(kept[known])
        labels.append(label[known])
        right.append(first[known] == label[known])
        predicted.append(part.classes[usable, 0][known] == label[known])
    if not ids:
        raise BeyondError("there are no predictions to look at")
    return Images(*(np.concatenate(c) for c in (ids, rows, labels, right, predicted))), unknown


def _first_other(
    classes: npt.NDArray[np.int16], label: Indices, rows: npt.NDArray[np.intp], sets: LabelSets
) -> Indices:
    """The first class of each ranking that is the label or is not accepted; −1 where there is none."""
    found = np.full(len(classes), -1, dtype=np.int64)
    open_rows = np.arange(len(classes))
    width = classes.shape[1]
    start, step = 0, 8
    while len(open_rows) and start < width:
        stop = min(start + step, width)
        block = classes[open_rows, start:stop]
        skip = (sets.lookup(rows[open_rows], block) == Verdict.ACCEPTED) & (block != label[open_rows, None])
        has = ~skip.all(axis=1)
        first = np.argmin(skip, axis=1)
        found[open_rows[has]] = block[has, first[has]]
        open_rows = open_rows[~has]
        start, step = stop, width
    return found


def find_pairs(images: Images, sets: LabelSets, *, minimum: int = MIN_IMAGES) -> list[Pair]:
    """Pairs of a class and a companion with enough images of both kinds, by class, then companion.

    A class of the same small group (two snakes, two skirts) is another name for the thing rather than its
    company, and no companion.
    """
    group = hierarchy().group
    accepted = sets.verdict == Verdict.ACCEPTED
    row_of_image = np.full(len(sets), -1, dtype=np.int64)
    row_of_image[images.rows] = np.arange(len(images))
    at, other = row_of_image[sets.pair_image[accepted]], sets.pair_class[accepted].astype(np.int64)
    at, other = at[at >= 0], other[at >= 0]
    beside = group[other] != group[images.label[at]]
    keys, counts = np.unique(images.label[at[beside]] * NUM_CLASSES + other[beside], return_counts=True)
    of_class = {int(c): np.flatnonzero(images.label == c) for c in np.unique(images.label)}
    pairs = []
    for key in keys[counts >= minimum].tolist():
        label, companion = divmod(key, NUM_CLASSES)
        members = of_class[label]
        verdict = sets.lookup(images.rows[members], np.full(len(members), companion))
        present, absent = members[verdict == Verdict.ACCEPTED], members[verdict == Verdict.REJECTED]
        if len(present) >= minimum and len(absent) >= minimum:
            pairs.append(Pair(label, companion, present, absent))
    return pairs


def mean_gap(values: FloatArray, pairs: Sequence[Pair], *, z: float = Z95, shares: bool = True) -> Difference:
    """Mean over pairs of the difference of two means, where pairs may share images.

    Pairs are weighted by n₁ n₀ / (n₁ + n₀), as Mantel and Haenszel do. The variance is that of a sum over
    images: each image's contributions to all of its pairs are added before they are squared, so that an image
    without three companions is not taken for three images. For shares, an arm whose spread is smaller than
    that of (k + 1) / (n + 2) gets the difference added, since five right of five are no proof of certainty.

    Args:
        values: float (N,), right or wrong, or a distance, of each image.
        pairs: Which images are compared; no image is on both sides of a pair.
        z: Critical value.
        shares: Whether the values are 0 and 1; the interval is then cut at [−1, 1].

    Returns:
        Scalars; NaN without pairs.
    """
    weights = np.array(
        [len(p.present) * len(p.absent) / (len(p.present) + len(p.absent)) for p in pairs], dtype=np.float64
    )
    if not len(weights):
        nan = np.asarray(np.nan)
        return Difference(nan, nan, nan)
    weights /= weights.sum()
    influence, value, extra = np.zeros(len(values)), 0.0, 0.0
    for weight, pair in zip(weights, pairs):
        for sign, arm in ((1.0, pair.present), (-1.0, pair.absent)):
            n, own = len(arm), values[arm]
            mean = float(own.mean())
            value += sign * weight * mean
            influence[arm] += sign * weight * (own - mean) / n * np.sqrt(n / max(n - 1, 1))
            if shares:
                smooth = (own.sum() + 1) / (n + 2)
                seen = mean * (1 - mean) / max(n - 1, 1)
                extra += weight**2 * max(0.0, float(smooth * (1 - smooth)) / n - seen)
    half = z * float(np.sqrt((influence**2).sum() + extra))
    low, high = value - half, value + half
    if shares:
        low, high = max(low, -1.0), min(high, 1.0)
    return Difference(np.asarray(value), np.asarray(low), np.asarray(high))


def score_images(
    images: Images,
    sets: LabelSets,
    *,
    unknown: int = 0,
    distances: Mapping[str, float] | None = None,
    minimum: int = MIN_IMAGES,
) -> ProbeResult:
    """The mean gap, and the gap of each pair with its test.

    Per pair: Newcombe's interval, Fisher's exact test, Benjamini–Yekutieli over all pairs tested.

    Args:
        images: What `judge` says of each image.
        sets: Label sets that say which classes are in an image.
        unknown: Images left out because the record keeps too few classes.
        distances: Distance to the decision boundary by image id, of some or all images.
        minimum: Images that a pair needs with the companion, and without it.
    """
    pairs = find_pairs(images, sets, minimum=minimum)
    name = sets.source
    notes = []
    if unknown:
        notes.append(
            f"Co-occurrence: {unknown:,} images are left out, since every class that their record keeps is "
            "another accepted one."
        )
    if not pairs:
        notes.append(
            f"No class has {minimum} images with and {minimum} without a companion by {name}, so there is no "
            "co-occurrence gap."
        )
        return ProbeResult(CO_OCCURRENCE.name, CO_OCCURRENCE.version, notes=notes)
    right = images.right.astype(np.float64)
    gap = mean_gap(right, pairs)
    used = np.unique(np.concatenate([np.concatenate([p.present, p.absent]) for p in pairs]))
    metrics = {
        "co_occurrence_gap": Metric(
            value=float(gap.value),
            ci_low=float(gap.low),
            ci_high=float(gap.high),
            n=len(used),
            method="mantel-haenszel weights, images as clusters",
        )
    }
    distance = np.full(len(images), np.nan)
    if distances is not None:
        known = np.array([distances.get(str(i), np.nan) for i in images.image_ids], dtype=np.float64)
        distance = np.where(images.predicted, known, np.nan)
    measured = [_with_distance(pair, distance) for pair in pairs]
    enough = [p for p in measured if len(p.present) >= minimum and len(p.absent) >= minimum]
    if enough:
        far = mean_gap(distance, enough, shares=False)
        metrics["co_occurrence_distance_gap"] = Metric(
            value=float(far.value),
            ci_low=float(far.low),
            ci_high=float(far.high),
            n=len(np.unique(np.concatenate([np.concatenate([p.present, p.absent]) for p in enough]))),
            method="mantel-haenszel weights, images as clusters",
            unit="distance",
        )
    rows = _rows(pairs, measured, right, distance)
    notes.append(
        "A positive gap: the class is recognised less often without its companion. A negative one: the "
        "companion, and what looks like it, draws the answer away. Either is an association, not a cause."
    )
    confirmed = sum(isinstance(row["q"], float) and row["q"] <= FDR for row in rows)
    notes.append(
        f"Co-occurrence by {name}: {len(pairs)} pairs of a class and a companion in "
        f"{len({p.label for p in pairs})} classes have {minimum} images of both kinds; {confirmed} of the "
        f"gaps hold at a false discovery rate of {FDR:.0%} (Benjamini-Yekutieli)."
    )
    return ProbeResult(
        CO_OCCURRENCE.name,
        CO_OCCURRENCE.version,
        metrics,
        {"co_occurrence_pairs": rows[:MAX_ROWS]},
        notes,
        CO_OCCURRENCE.references,
    )


def _with_distance(pair: Pair, distance: FloatArray) -> Pair:
    present, absent = (arm[np.isfinite(distance[arm])] for arm in (pair.present, pair.absent))
    return Pair(pair.label, pair.companion, present, absent)


def _rows(
    pairs: Sequence[Pair], measured: Sequence[Pair], right: FloatArray, distance: FloatArray
) -> list[dict[str, Cell]]:
    """One row a pair, the most significant first, then the largest gap."""
    n1, n0 = (np.array([len(getattr(p, arm)) for p in pairs]) for arm in ("present", "absent"))
    k1, k0 = (np.array([int(right[getattr(p, arm)].sum()) for p in pairs]) for arm in ("present", "absent"))
    gaps = newcombe(k1, n1, k0, n0)
    p_values = np.array([stratified_exact([a], [b], [c], [d]).p for a, b, c, d in zip(k1, n1, k0, n0)])
    q_values = benjamini_yekutieli(p_values)
    names = class_names()
    rows: list[dict[str, Cell]] = []
    for i in np.lexsort((-np.abs(gaps.value), p_values)):
        with_distance = measured[i]
        medians = [
            float(np.median(distance[arm])) if len(arm) else None
            for arm in (with_distance.present, with_distance.absent)
        ]
        rows.append(
            {
                "class_index": pairs[i].label,
                "class": names[pairs[i].label],
                "companion_index": pairs[i].companion,
                "companion": names[pairs[i].companion],
                "n_with": int(n1[i]),
                "n_without": int(n0[i]),
                "accuracy_with": float(k1[i] / n1[i]),
                "accuracy_without": float(k0[i] / n0[i]),
                "gap": float(gaps.value[i]),
                "ci_low": float(gaps.low[i]),
                "ci_high": float(gaps.high[i]),
                "p": float(p_values[i]),
                "q": float(q_values[i]),
                "distance_with": medians[0],
                "distance_without": medians[1],
            }
        )
    return rows
