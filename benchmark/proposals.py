"""Which pairs (image, class) people should judge next: those whose verdicts would move the ranking most.

Every pair among the top predictions of some run that nobody has judged is a candidate. Two things are worth
knowing about it:

* **ranking**: the expected loss from ranking two models by verdicts that are not known yet. With the
  difference d of two models' accuracies, and s its standard deviation over the unknown verdicts, that loss is
  s ψ(|d|/s) with the unit normal loss ψ (Raiffa & Schlaifer 1961, Applied Statistical Decision Theory, 5.4);
  its derivative with respect to s² is φ(d/s) / 2s. A pair of models contributes so much for each unit of
  variance that a verdict removes, and a verdict removes p (1 − p) / N² where just one of the two predicts it.
* **interval**: the variance p (1 − p) / N² that a verdict removes from each model that predicts it.

p, the chance that people accept the pair, is the share accepted among judged pairs that are like it: by best
rank, by how many models predict it, and whether it is the original label. What is asked about is drawn with
probability proportional to priority, mixed with a share drawn uniformly, so that every candidate has a
known, positive probability and Horvitz–Thompson estimates are unbiased.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from annotations.classes import NUM_CLASSES
from annotations.errors import BeyondError
from annotations.judgements import LabelSets, Verdict
from benchmark.records import Predictions

UNIFORM_SHARE = 0.1
"""Share of the draw that ignores priority, so that no candidate has probability 0."""

_PRIOR_WEIGHT = 20.0
_BLOCK = 65_536

SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("class_index", pa.int16()),
        ("priority", pa.float64()),
        ("sampling_probability", pa.float64()),
        ("reason", pa.string()),
        ("original_label", pa.int16()),
        ("top1_models", pa.int32()),
        ("best_rank", pa.int16()),
        ("acceptance", pa.float32()),
    ]
)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Candidates:
    """Unjudged pairs among the top k of M models on N common images (P pairs, by image and class).

    Attributes:
        image_ids: object (N,) of str, sorted.
        original_labels: int16 (N,).
        pair_image: int32 (P,), row of the image.
        pair_class: int16 (P,).
        top1: bool (P, M), whether the model's best class is this.
        best_rank: int16 (P,), best place over models, from 0.
        acceptance: float64 (P,), chance that people accept the pair.
        judged_top1: float64 (N, M), what is known of each model's best class: 1 accepted, 0 rejected, 0.5
            unsure, NaN unjudged.
        models: Names of the models.
    """

    image_ids: npt.NDArray[np.object_]
    original_labels: npt.NDArray[np.int16]
    pair_image: npt.NDArray[np.int32]
    pair_class: npt.NDArray[np.int16]
    top1: npt.NDArray[np.bool_]
    best_rank: npt.NDArray[np.int16]
    acceptance: Floats
    judged_top1: Floats
    models: tuple[str, ...]

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.pair_class)


@dataclass(frozen=True)
class Proposal:
    """Pairs to judge (S of the P candidates), in order of priority.

    Attributes:
        candidates: All of them.
        rows: int64 (S,), rows of the candidates that were drawn.
        priority: float64 (P,), shares that sum to 1.
        ranking: float64 (P,), the part of it that is about the ranking.
        sampling_probability: float64 (P,), of each candidate, in (0, 1].
        reasons: Why each drawn pair matters.
    """

    candidates: Candidates
    rows: npt.NDArray[np.int64]
    priority: Floats
    ranking: Floats
    sampling_probability: Floats
    reasons: tuple[str, ...]

    def to_arrow(self) -> pa.Table:
        """The drawn pairs in `SCHEMA`."""
        c, rows = self.candidates, self.rows
        images = c.pair_image[rows]
        columns = [
            pa.array(c.image_ids[images], pa.string()),
            pa.array(c.pair_class[rows]),
            pa.array(self.priority[rows]),
            pa.array(self.sampling_probability[rows]),
            pa.array(self.reasons, pa.string()),
            pa.array(c.original_labels[images]),
            pa.array(c.top1[rows].sum(axis=1).astype(np.int32)),
            pa.array(c.best_rank[rows]),
            pa.array(c.acceptance[rows].astype(np.float32)),
        ]
        return pa.Table.from_arrays(columns, schema=SCHEMA)

    def save(self, path: Path, *, about: dict[str, object]) -> None:
        """Write the drawn pairs, with the design of the draw in the file's metadata."""
        facts = {"candidates": len(self.candidates), "models": list(self.candidates.models), **about}
        table = self.to_arrow().replace_schema_metadata({"beyond.proposal": json.dumps(facts)})
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, compression="zstd")


def find_candidates(
    runs: Sequence[tuple[str, Predictions]], labels: LabelSets | None, *, top_k: int = 5
) -> Candidates:
    """All unjudged pairs among the top `top_k` of some run, on the images that all runs have.

    Images that the label sets exclude are left out; those they do not know are in.

    Args:
        runs: Names and predictions.
        labels: What was judged already; None for nothing.
        top_k: How many predictions of each image count.

    Raises:
        BeyondError: The runs have no image in common, or nothing is left to judge.
    """
    if not runs:
        raise BeyondError("nothing to propose pairs from; name runs or files of predictions")
    common = runs[0][1].image_ids
    for _, run in runs[1:]:
        if len(run.image_ids) != len(common) or (run.image_ids != common).any():
            common = np.intersect1d(common.astype(str), run.image_ids.astype(str)).astype(object)
    common = np.sort(common.astype(str)).astype(object)
    if not len(common):
        raise BeyondError("the runs have no image in common, so no ranking of them can be improved")
    label_rows = np.full(len(common), -1, dtype=np.intp) if labels is None else labels.rows(common)
    if labels is not None:
        usable = (label_rows < 0) | labels.evaluable[label_rows]
        common, label_rows = common[usable], label_rows[usable]
    n, m = len(common), len(runs)
    originals = np.full(n, -1, dtype=np.int16)
    best = np.zeros((n, m), dtype=np.int64)
    keys, ranks = [], []
    for number, (name, run) in enumerate(runs):
        order = np.argsort(run.image_ids.astype(str), kind="stable")
        rows = order[np.searchsorted(run.image_ids[order].astype(str), common.astype(str))]
        classes = run.classes[rows, :top_k].astype(np.int64)
        if classes.shape[1] == 0:
            raise BeyondError(f"{name} holds no predicted classes")
        originals = np.where(originals < 0, run.original_labels[rows], originals)
        best[:, number] = np.arange(n) * NUM_CLASSES + classes[:, 0]
        keys.append((np.arange(n)[:, None] * NUM_CLASSES + classes).ravel())
        ranks.append(np.tile(np.arange(classes.shape[1]), n))
    unique, inverse = np.unique(np.concatenate(keys), return_inverse=True)
    best_rank = np.full(len(unique), np.iinfo(np.int16).max, dtype=np.int16)
    np.minimum.at(best_rank, inverse, np.concatenate(ranks).astype(np.int16))
    images, classes = unique // NUM_CLASSES, unique % NUM_CLASSES
    verdict = np.zeros(len(unique), dtype=np.int8)
    if labels is not None:
        verdict = labels.lookup(label_rows[images], classes.astype(np.int16))
    at = np.searchsorted(unique, best)
    top1 = np.zeros((len(unique), m), dtype=bool)
    for number in range(m):
        top1[at[:, number], number] = True
    acceptance = _acceptance(verdict, best_rank, top1.sum(axis=1), classes == originals[images], m)
    open_ = verdict == Verdict.UNJUDGED
    if not open_.any():
        raise BeyondError(
            "every predicted pair is judged already (a closed-world source rejects what it does not list); "
            "name other label sets with --annotations, or none"
        )
    score = np.select(
        [verdict == Verdict.ACCEPTED, verdict == Verdict.REJECTED, verdict == Verdict.UNSURE],
        [1.0, 0.0, 0.5],
        np.nan,
    )
    return Candidates(
        image_ids=common,
        original_labels=originals.astype(np.int16),
        pair_image=images[open_].astype(np.int32),
        pair_class=classes[open_].astype(np.int16),
        top1=top1[open_],
        best_rank=best_rank[open_],
        acceptance=acceptance[open_],
        judged_top1=score[at],
        models=tuple(name for name, _ in runs),
    )


def _acceptance(
    verdict: npt.NDArray[np.int8],
    best_rank: npt.NDArray[np.int16],
    support: npt.NDArray[np.integer],
    is_original: npt.NDArray[np.bool_],
    models: int,
) -> Floats:
    """Share accepted (unsure is half) among judged pairs that are alike, drawn towards that among all."""
    level = np.digitize(support / models, [1e-9, 0.1, 0.34, 0.67])
    cell = (np.minimum(best_rank, 4).astype(np.int64) * 5 + level) * 2 + is_original
    judged = verdict != Verdict.UNJUDGED
    value = np.where(verdict == Verdict.ACCEPTED, 1.0, np.where(verdict == Verdict.UNSURE, 0.5, 0.0))
    number = np.bincount(cell[judged], minlength=50).astype(np.float64)
    accepted = np.bincount(cell[judged], weights=value[judged], minlength=50)
    overall = (accepted.sum() + 1) / (number.sum() + 2)
    rate = (accepted + _PRIOR_WEIGHT * overall) / (number + _PRIOR_WEIGHT)
    return np.asarray(rate[cell])


def priorities(candidates: Candidates) -> tuple[Floats, Floats, Floats]:
    """How much each pair's verdict is worth.

    Returns:
        Priority, float (P,), the mean of the shares of the next two; ranking, float (P,), shares of what
        verdicts do for the order of models; and float (M, M), how much a unit of variance between two models
        is worth. Shares sum to 1 where any is positive.
    """
    c = candidates
    n, m = c.judged_top1.shape
    spread = c.acceptance * (1 - c.acceptance)
    # Accuracy of each model if verdicts that are not known are as likely as they look.
    accuracy = np.nansum(c.judged_top1, axis=0) / n + c.acceptance @ c.top1 / n
    # Variance over verdicts of a difference: Σ spread where one of the two predicts the pair, not the other.
    both = np.zeros((m, m))
    for start in range(0, len(c), _BLOCK):
        block = c.top1[start : start + _BLOCK].astype(np.float64)
        both += (block * spread[start : start + _BLOCK, None]).T @ block
    own = np.diag(both)
    variance = (own[:, None] + own[None, :] - 2 * both) / n**2
    deviation = np.sqrt(np.maximum(variance, 0))
    difference = accuracy[:, None] - accuracy[None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        worth = np.exp(-0.5 * (difference / deviation) ** 2) / np.sqrt(2 * np.pi) / (2 * deviation)
    worth[~np.isfinite(worth) | (deviation == 0)] = 0.0
    ranking = np.empty(len(c))
    for start in range(0, len(c), _BLOCK):
        block = c.top1[start : start + _BLOCK].astype(np.float64)
        # Σ over A in S and B outside S of worth: a cut.
        ranking[start : start + _BLOCK] = (block @ worth.sum(axis=1)) - ((block @ worth) * block).sum(axis=1)
    ranking *= spread
    interval = spread * c.top1.sum(axis=1)
    parts = [part / part.sum() for part in (ranking, interval) if part.sum() > 0]
    priority = np.mean(parts, axis=0) if parts else np.full(len(c), 1 / len(c))
    return priority, ranking / ranking.sum() if ranking.sum() > 0 else ranking, worth


def inclusion_probabilities(priority: Floats, size: int, *, uniform_share: float = UNIFORM_SHARE) -> Floats:
    """Probabilities proportional to priority that sum to `size`, none above 1 and none 0.

    Args:
        priority: float (P,), not negative.
        size: Pairs to draw, 1 to P.
        uniform_share: Share of the size that ignores priority.

    Example:
        >>> inclusion_probabilities(np.array([8.0, 1.0, 1.0]), 2, uniform_share=0.0).tolist()
        [1.0, 0.5, 0.5]
    """
    count = len(priority)
    if size >= count:
        return np.ones(count)
    total = priority.sum()
    weights = np.full(count, 1 / count)
    if total > 0:
        weights = (1 - uniform_share) * priority / total + uniform_share / count
    certain = np.zeros(count, dtype=bool)
    while True:
        rest = weights[~certain].sum()
        probability = np.where(certain, 1.0, weights * (size - certain.sum()) / rest)
        over = ~certain & (probability >= 1)
        if not over.any():
            return np.asarray(probability)
        certain |= over


def systematic_sample(probability: Floats, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Rows drawn with given probabilities, as many as these sum to: systematic sampling in random order.

    Madow 1949, Annals of Mathematical Statistics 20:333; the order is drawn anew, so that almost all pairs of
    rows can be drawn together.

    Args:
        probability: float (P,), in (0, 1], with a whole number as their sum.
        generator: Where chance comes from.

    Returns:
        int64 (S,), ascending.
    """
    order = generator.permutation(len(probability))
    size = round(float(probability.sum()))
    ends = np.cumsum(probability[order])
    ends *= size / ends[-1]  # rounding errors of the sum would lose or add one
    points = generator.random() + np.arange(size)
    return np.sort(order[np.searchsorted(ends, points, side="right").clip(max=len(order) - 1)])


def propose(
    candidates: Candidates, *, budget: int | None = None, seed: int = 0, uniform_share: float = UNIFORM_SHARE
) -> Proposal:
    """Draw pairs to judge.

    Args:
        candidates: What there is.
        budget: How many pairs to draw; None takes all, each with probability 1.
        seed: Of the draw.
        uniform_share: See `inclusion_probabilities`.
    """
    priority, ranking, worth = priorities(candidates)
    size = len(candidates) if budget is None else min(budget, len(candidates))
    probability = inclusion_probabilities(priority, size, uniform_share=uniform_share)
    rows = systematic_sample(probability, np.random.default_rng(seed))
    rows = rows[np.argsort(-priority[rows], kind="stable")]
    reasons = tuple(
        _reason(candidates, worth, int(row), is_ranking=ranking[row] >= priority[row] > 0) for row in rows
    )
    return Proposal(candidates, rows, priority, ranking, probability, reasons)


def _reason(candidates: Candidates, worth: Floats, row: int, *, is_ranking: bool) -> str:
    """Why one pair matters: the two models that it tells apart best, or how many predict it."""
    inside = candidates.top1[row]
    number = int(inside.sum())
    if number == 0:
        return f"candidate label: place {int(candidates.best_rank[row]) + 1} of some model"
    cut = worth[np.ix_(inside, ~inside)]
    if is_ranking and cut.size and cut.max() > 0:
        a, b = np.unravel_index(int(cut.argmax()), cut.shape)
        one = candidates.models[int(np.flatnonzero(inside)[a])]
        two = candidates.models[int(np.flatnonzero(~inside)[b])]
        return f"ranking: {one} against {two}"
    return f"interval: best class of {number} models"


def horvitz_thompson(values: npt.ArrayLike, probability: npt.ArrayLike) -> float:
    """Unbiased estimate of a total over all candidates from those that were drawn.

    Horvitz & Thompson 1952, Journal of the American Statistical Association 47:663.

    Args:
        values: float (S,), of the drawn pairs, such as 1 for accepted.
        probability: float (S,), with which each was drawn.
    """
    return float((np.asarray(values, dtype=np.float64) / np.asarray(probability, dtype=np.float64)).sum())
