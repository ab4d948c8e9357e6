"""The rectified track: how often is the prediction one that people accept?

`score_rectified` is a pure function of records and label sets. It reduces each chunk of records to a few
numbers an image at once (`Answers`), so that memory does not hold logits, and computes every metric and table
from those. What the numbers mean is in `docs/tracks/rectified.md`.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from annotations.classes import NUM_CLASSES, NUM_VALIDATION_IMAGES, class_names
from annotations.errors import BeyondError
from annotations.judgements import LabelSets, Verdict
from benchmark import statistics
from benchmark.anatomy import CATEGORIES, AcceptedSets, categorize
from benchmark.records import Predictions
from benchmark.scorecard import Cell, Metric, Track
from benchmark.statistics import Estimate, Interval
from benchmark.tracks import RECTIFIED

Bools = npt.NDArray[np.bool_]
Table = list[dict[str, Cell]]

REAL, MLA, CONSOLIDATED = "real", "mla", "consolidated"

MIN_EXPERT_IMAGES = 100
"""Fewest images that experts looked at for a prediction-powered estimate."""

TOP_CLASSES, TOP_CONFUSIONS = 20, 30


@dataclass(frozen=True)
class Answers:
    """What one source says about a run's answers, image by image (N images, in the run's order).

    Attributes:
        known: bool (N,), the source has the image.
        evaluable: bool (N,), and can evaluate it.
        verdict: int8 (N,), `Verdict` of the top-1 prediction; UNJUDGED where the source is silent.
        size: int16 (N,), number of accepted classes, 0 where not evaluable.
        hits: int16 (N,), how many of the top `size` predictions are accepted, −1 where fewer were recorded.
        unjudged: int16 (N,), how many of the top `size` predictions are unjudged, −1 likewise.
        average_precision: float32 (N,), NaN where not evaluable, or None without all 1000 logits.
        unsure_is_right: Whether an unsure verdict counts as right, as MLA has it.
    """

    known: Bools
    evaluable: Bools
    verdict: npt.NDArray[np.int8]
    size: npt.NDArray[np.int16]
    hits: npt.NDArray[np.int16]
    unjudged: npt.NDArray[np.int16]
    average_precision: npt.NDArray[np.float32] | None
    unsure_is_right: bool = False

    def take(self, rows: npt.NDArray[np.intp]) -> Answers:
        """The same for some images, in the order of `rows`."""
        precision = self.average_precision
        return replace(
            self,
            known=self.known[rows],
            evaluable=self.evaluable[rows],
            verdict=self.verdict[rows],
            size=self.size[rows],
            hits=self.hits[rows],
            unjudged=self.unjudged[rows],
            average_precision=None if precision is None else precision[rows],
        )

    @property
    def right(self) -> Bools:
        """Whether the prediction counts as right: bool (N,). Unjudged is not right here."""
        right: Bools = self.verdict == Verdict.ACCEPTED
        return right | (self.verdict == Verdict.UNSURE) if self.unsure_is_right else right

    @property
    def open(self) -> Bools:
        """Whether nobody judged the prediction of an image that can be evaluated: bool (N,)."""
        unjudged: Bools = self.evaluable & (self.verdict == Verdict.UNJUDGED)
        return unjudged

    @property
    def ranked(self) -> Bools:
        """Images that count for precision and recall: evaluable and with `size` records: bool (N,)."""
        ranked: Bools = self.evaluable & (self.hits >= 0)
        return ranked


@dataclass(frozen=True)
class RectifiedResult:
    """The track's numbers, and what they are made of: N images in the order of the records.

    Attributes:
        image_ids: object (N,) of str.
        original_labels: int16 (N,), −1 where unknown.
        top1: int16 (N,), the predicted class.
        top1_correct: bool (N,), the prediction is the original label; False where that is unknown.
        top5_correct: bool (N,), or None when fewer than five classes were recorded.
        answers: By source, in the order given.
        category: int8 (N,), position in `benchmark.anatomy.CATEGORIES`, or −1; None without a source.
        track: Metrics, tables and notes for the scorecard.
    """

    image_ids: npt.NDArray[np.object_]
    original_labels: npt.NDArray[np.int16]
    top1: npt.NDArray[np.int16]
    top1_correct: Bools
    top5_correct: Bools | None
    answers: dict[str, Answers]
    category: npt.NDArray[np.int8] | None
    track: Track

    @property
    def known(self) -> Bools:
        """Images whose original label is known: bool (N,)."""
        return self.original_labels >= 0


def score_rectified(chunks: Iterable[Predictions], labels: Mapping[str, LabelSets]) -> RectifiedResult:
    """Score predictions against the original labels and against label sets.

    Args:
        chunks: Records of a run, in any number of parts; each image once.
        labels: Label sets by name. `real`, `mla` and `consolidated` have metrics of their own; any other
            source S gets `S_accuracy`.

    Raises:
        BeyondError: There are no records, no chunk holds a class, or two sources give one metric name.
    """
    names = accuracy_names(labels)
    parts = [_reduce(chunk, labels) for chunk in chunks if len(chunk)]
    if not parts:
        raise BeyondError("there are no predictions to score; run beyond score first")
    run = _join(parts)
    primary = next((s for s in (CONSOLIDATED, REAL) if s in labels), next(iter(labels), None))
    category = None
    if primary is not None:
        source = _source(labels[primary])
        category = categorize(
            source.sets,
            source.rows(run.image_ids),
            run.original_labels,
            run.top1,
            run.answers[primary].verdict,
        )

    contrasts = _contrasts(run)
    quality = {name: _quality(answers) for name, answers in run.answers.items()}
    metrics = _standard_metrics(run)
    for name, answers in run.answers.items():
        metrics.update(_source_metrics(run, name, names[name], answers))
    reduced = next(
        (s for s in (REAL, CONSOLIDATED, *labels) if s in contrasts and contrasts[s].reduction), None
    )
    if reduced is not None and (reduction := contrasts[reduced].reduction):
        metrics["rectified_error_reduction"] = reduction
    if primary is not None:
        metrics.update(quality[primary])

    tables: dict[str, Table] = {}
    if primary is not None and category is not None:
        tables = {
            "standard_vs_rectified": [
                row for name, contrast in contrasts.items() if (row := contrast.row(name)) is not None
            ],
            "anatomy": _anatomy(category),
            "most_rectified_classes": _most_rectified_classes(run, run.answers[primary]),
            "accepted_confusions": _accepted_confusions(run, run.answers[primary]),
            "multilabel_quality": [_quality_row(name, quality[name]) for name in labels],
            "sources": [_source_row(name, sets, run.answers[name]) for name, sets in labels.items()],
        }
    order = [info.name for info in RECTIFIED.metrics]
    ranks = {name: order.index(name if name in order else "{source}_accuracy") for name in metrics}
    track = Track(
        version=RECTIFIED.version,
        metrics={name: metrics[name] for name in sorted(metrics, key=lambda name: ranks[name])},
        tables=tables,
        notes=_notes(run, primary, reduced, metrics),
    )
    return RectifiedResult(
        image_ids=run.image_ids,
        original_labels=run.original_labels,
        top1=run.top1,
        top1_correct=run.top1_correct,
        top5_correct=run.top5_correct,
        answers=run.answers,
        category=category,
        track=track,
    )


def score_verdicts(
    image_ids: npt.NDArray[np.object_],
    original_labels: npt.NDArray[np.int16],
    top1_correct: Bools,
    answers: Mapping[str, Answers],
) -> tuple[dict[str, Metric], dict[str, Table]]:
    """What follows from the verdicts on the top-1 predictions alone, without knowing the predictions.

    For each source its accuracies, `top1`, `top1_evaluable` and `rectified_error_reduction`; not `mla_ppi`,
    which needs the images that experts looked at. Tables: `standard_vs_rectified`, `most_rectified_classes`.

    Args:
        image_ids: object (N,) of str.
        original_labels: int16 (N,), −1 where unknown.
        top1_correct: bool (N,).
        answers: By source; of each only `evaluable`, `verdict` and `unsure_is_right` are used.
    """
    run = _Run(image_ids, original_labels, original_labels, top1_correct, None, dict(answers))
    names = accuracy_names(answers)
    contrasts = _contrasts(run)
    metrics = _standard_metrics(run)
    for source, found in answers.items():
        metrics.update(_source_metrics(run, source, names[source], found))
    metrics.pop("mla_ppi", None)
    reduced = next(
        (s for s in (REAL, CONSOLIDATED, *answers) if s in contrasts and contrasts[s].reduction), None
    )
    if reduced is not None and (reduction := contrasts[reduced].reduction):
        metrics["rectified_error_reduction"] = reduction
    rows = [row for source, contrast in contrasts.items() if (row := contrast.row(source)) is not None]
    primary = next((s for s in (CONSOLIDATED, REAL) if s in answers), next(iter(answers), None))
    tables: dict[str, Table] = {"standard_vs_rectified": rows}
    if primary is not None:
        tables["most_rectified_classes"] = _most_rectified_classes(run, answers[primary])
    return metrics, tables


# ------------------------------------------------------------------------------------- records to arrays


@dataclass(frozen=True)
class _Run:
    """The arrays of a `RectifiedResult`, before anything is computed from them."""

    image_ids: npt.NDArray[np.object_]
    original_labels: npt.NDArray[np.int16]
    top1: npt.NDArray[np.int16]
    top1_correct: Bools
    top5_correct: Bools | None
    answers: dict[str, Answers]


class _Source:
    """What depends only on label sets, and the rows of the ids asked for last, which runs mostly share."""

    def __init__(self, labels: LabelSets) -> None:
        self.labels = weakref.ref(labels)
        self.sets = AcceptedSets.of(labels)
        self._ids: npt.NDArray[np.object_] = np.empty(0, dtype=object)
        self._rows: npt.NDArray[np.intp] = np.empty(0, dtype=np.intp)

    def rows(self, image_ids: npt.NDArray[np.object_]) -> npt.NDArray[np.intp]:
        """`LabelSets.rows`, remembered: comparing ids is much faster than looking them up."""
        labels = self.labels()
        assert labels is not None
        if not np.array_equal(self._ids, image_ids):
            self._ids, self._rows = image_ids, labels.rows(image_ids)
        return self._rows


_SOURCES: dict[int, _Source] = {}


def _source(labels: LabelSets) -> _Source:
    """The `_Source` of label sets, made once for as long as they live."""
    found = _SOURCES.get(id(labels))
    if found is None or found.labels() is not labels:
        found = _SOURCES[id(labels)] = _Source(labels)
        weakref.finalize(labels, _SOURCES.pop, id(labels), None)
    return found


def _reduce(chunk: Predictions, labels: Mapping[str, LabelSets]) -> _Run:
    """All that the track needs of a chunk: a few numbers an image."""
    if chunk.classes.shape[1] == 0:
        raise BeyondError("the records hold no predicted classes; run beyond score again with --overwrite")
    original, top1 = chunk.original_labels, chunk.classes[:, 0].copy()
    top5 = None
    if chunk.classes.shape[1] >= 5:
        top5 = ((chunk.classes[:, :5] == original[:, None]).any(axis=1)) & (original >= 0)
    answers = {
        source: _answers(chunk, sets, unsure_is_right=source == MLA) for source, sets in labels.items()
    }
    return _Run(chunk.image_ids, original, top1, (top1 == original) & (original >= 0), top5, answers)


def _answers(chunk: Predictions, labels: LabelSets, *, unsure_is_right: bool) -> Answers:
    source = _source(labels)
    sets = source.sets
    n, recorded = chunk.classes.shape
    if not len(labels):
        rows = np.full(n, -1, dtype=np.intp)
        known = evaluable = np.zeros(n, dtype=bool)
        size = np.zeros(n, dtype=np.int16)
    else:
        rows = source.rows(chunk.image_ids)
        known = rows >= 0
        evaluable = known & labels.evaluable[rows]
        size = np.where(evaluable, sets.sizes[rows], 0).astype(np.int16)
    verdict = labels.lookup(rows, chunk.classes[:, 0])

    # Most images have one accepted class, whose answer is the top-1 verdict: look up the ranks of the others.
    hits = np.where(evaluable & (verdict == Verdict.ACCEPTED), 1, 0).astype(np.int16)
    unjudged = np.where(evaluable & (verdict == Verdict.UNJUDGED), 1, 0).astype(np.int16)
    hits[size > recorded] = unjudged[size > recorded] = -1
    several = np.flatnonzero((size > 1) & (size <= recorded))
    if len(several):
        wanted = int(size[several].max())
        ranked = labels.lookup(rows[several], chunk.classes[several, :wanted])
        within = np.arange(wanted) < size[several, None]
        hits[several] = ((ranked == Verdict.ACCEPTED) & within).sum(axis=1)
        unjudged[several] = ((ranked == Verdict.UNJUDGED) & within).sum(axis=1)

    precision = None
    if chunk.logits is not None and recorded == NUM_CLASSES:
        precision = np.full(n, np.nan, dtype=np.float32)
        usable = np.flatnonzero(evaluable)
        for start in range(0, len(usable), 4096):  # bounds the memory of the inverse rankings
            block = usable[start : start + 4096]
            owner, classes = sets.expand(rows[block])
            precision[block] = average_precisions(chunk.classes[block], chunk.logits[block], owner, classes)
    return Answers(known, evaluable, verdict, size, hits, unjudged, precision, unsure_is_right)


def average_precisions(
    classes: npt.NDArray[np.int16],
    logits: npt.NDArray[np.float32],
    owner: npt.NDArray[np.intp],
    accepted: npt.NDArray[np.int16],
) -> npt.NDArray[np.float64]:
    """Average precision of each image's ranking of all classes: float64 (N,).

    The mean over the accepted classes of (accepted classes with at least its logit) / (classes with at least
    its logit): scikit-learn's `label_ranking_average_precision_score`, an image at a time, ties included.

    Args:
        classes: int16 (N, 1000), a permutation of the classes in each row, best first.
        logits: float32 (N, 1000), descending, in the order of `classes`.
        owner: intp (Q,), row of each accepted class, ascending; each row has at least one.
        accepted: int16 (Q,), the accepted classes.
    """
    n, k = classes.shape
    place = np.empty((n, k), dtype=np.int16)
    np.put_along_axis(place, classes.astype(np.intp), np.arange(k, dtype=np.int16)[None, :], axis=1)
    last = place[owner, accepted].astype(np.intp)
    value = logits[owner, last]
    # Equal logits share the last place among them.
    while (tied := (last + 1 < k) & (logits[owner, np.minimum(last + 1, k - 1)] == value)).any():
        last += tied
    order = np.lexsort((last, owner))
    owner, last = owner[order], last[order]
    size = np.bincount(owner, minlength=n)
    key = owner * k + last
    above = np.searchsorted(key, key, side="right") - (np.cumsum(size) - size)[owner]
    return np.bincount(owner, weights=above / (last + 1), minlength=n) / size


def _join(parts: list[_Run]) -> _Run:
    if len(parts) == 1:
        return parts[0]

    def joined(source: str) -> Answers:
        every = [part.answers[source] for part in parts]
        precisions = [a.average_precision for a in every if a.average_precision is not None]
        return Answers(
            known=np.concatenate([a.known for a in every]),
            evaluable=np.concatenate([a.evaluable for a in every]),
            verdict=np.concatenate([a.verdict for a in every]),
            size=np.concatenate([a.size for a in every]),
            hits=np.concatenate([a.hits for a in every]),
            unjudged=np.concatenate([a.unjudged for a in every]),
            average_precision=np.concatenate(precisions) if len(precisions) == len(every) else None,
            unsure_is_right=every[0].unsure_is_right,
        )

    top5 = [part.top5_correct for part in parts if part.top5_correct is not None]
    return _Run(
        image_ids=np.concatenate([part.image_ids for part in parts]),
        original_labels=np.concatenate([part.original_labels for part in parts]),
        top1=np.concatenate([part.top1 for part in parts]),
        top1_correct=np.concatenate([part.top1_correct for part in parts]),
        top5_correct=np.concatenate(top5) if len(top5) == len(parts) else None,
        answers={source: joined(source) for source in parts[0].answers},
    )


# -------------------------------------------------------------------------------------- arrays to metrics


def accuracy_names(sources: Iterable[str]) -> dict[str, str]:
    """Name of each source's accuracy, e.g. `real_accuracy`.

    Raises:
        BeyondError: Two sources give one name, or a source has no letter or digit.
    """
    names = {s: re.sub(r"[^a-z0-9]+", "_", s.lower()).strip("_") + "_accuracy" for s in sources}
    for source, name in names.items():
        same = [other for other in names if names[other] == name]
        if len(same) > 1:
            raise BeyondError(
                f"sources {same[0]!r} and {same[1]!r} both give {name!r}; score against one of them"
            )
        if name == "_accuracy":
            raise BeyondError(f"source {source!r} has no letter or digit in its name; rename it")
    return names


def _metric(
    estimate: Estimate, interval: Interval, n: int, method: str, **more: float | int | str | None
) -> Metric:
    value, low, high = (float(x) for x in (estimate.value, interval.low, interval.high))
    return Metric.model_validate(
        {"value": value, "ci_low": low, "ci_high": high, "n": n, "method": method, **more},
    )


def _share(right: Bools) -> Metric:
    """A plain share with Wilson's interval."""
    estimate = statistics.share_estimate(int(right.sum()), len(right))
    return _metric(estimate, estimate.interval(), len(right), "wilson")


def _between(
    lower: Estimate, upper: Estimate, n: int, method: str, *, judged: int | None, unjudged: int
) -> Metric:
    """The lower of two shares, with both, and an interval for a share that lies between them."""
    if unjudged:
        method += ", imbens-manski"
    bounds = {"lower": float(lower.value), "upper": float(upper.value), "judged": judged}
    return _metric(lower, statistics.bounded(lower, upper), n, method, **bounds)


def _standard_metrics(run: _Run) -> dict[str, Metric]:
    known = run.original_labels >= 0
    if not known.any():
        return {}
    metrics = {"top1": _share(run.top1_correct[known])}
    if run.top5_correct is not None:
        metrics["top5"] = _share(run.top5_correct[known])
    return metrics


def _source_metrics(run: _Run, source: str, name: str, answers: Answers) -> dict[str, Metric]:
    """The accuracies of one source; none where it can evaluate no image of the run."""
    images = answers.evaluable
    n = int(images.sum())
    if not n:
        return {}
    right, unknown = answers.right[images], answers.open[images]
    unjudged = int(unknown.sum())
    judged = n - unjudged
    lower = statistics.share_estimate(int(right.sum()), n)
    upper = statistics.share_estimate(int(right.sum()) + unjudged, n)
    plain = _between(lower, upper, n, "wilson", judged=judged, unjudged=unjudged)
    if source == REAL:
        metrics = {"real_accuracy": plain if unjudged else _share(right)}
        both = images & (run.original_labels >= 0)
        if both.any():
            metrics["top1_evaluable"] = _share(run.top1_correct[both])
        return metrics
    if source != MLA:
        return {name: plain}

    metrics = {"mla_plain": plain}
    original = run.original_labels[images]
    if (original >= 0).all():
        total = np.bincount(original, minlength=NUM_CLASSES)
        low = statistics.class_mean(np.bincount(original[right], minlength=NUM_CLASSES), total)
        high = statistics.class_mean(np.bincount(original[right | unknown], minlength=NUM_CLASSES), total)
        metrics["mla"] = _between(low, high, n, "stratified wilson", judged=judged, unjudged=unjudged)
    experts = expert_arrays(run.original_labels, run.top1_correct, answers, run.answers.get(REAL))
    if experts is not None:
        ends = (experts.right, experts.right | experts.unjudged)
        low, high = (experts.estimate(right).as_share(len(experts.right)) for right in ends)
        metrics["mla_ppi"] = _between(low, high, len(run.top1), "ppi++", judged=None, unjudged=unjudged)
    return metrics


@dataclass(frozen=True)
class ExpertArrays:
    """What a prediction-powered estimate of the experts' accuracy is made of.

    Attributes:
        seen: bool (N,), images that experts looked at (n of them).
        domain: bool (n,), not problematic.
        right: bool (n,), experts call the prediction right.
        unjudged: bool (n,), in the domain but nobody judged the prediction.
        proxy_domain, proxy: bool (n,), what stands in for the two.
        proxy_domain_elsewhere, proxy_elsewhere: bool (N − n,), the same on the other images.
    """

    seen: Bools
    domain: Bools
    right: Bools
    unjudged: Bools
    proxy_domain: Bools
    proxy: Bools
    proxy_domain_elsewhere: Bools
    proxy_elsewhere: Bools

    def estimate(self, right: Bools) -> statistics.PredictionPowered:
        """PPI++ estimate if `right` (n,) is what experts say."""
        stand_in = (self.proxy_domain, self.proxy, self.proxy_domain_elsewhere, self.proxy_elsewhere)
        return statistics.ppi_domain_mean(self.domain, right, *stand_in)


def expert_arrays(
    original_labels: npt.NDArray[np.int16], top1_correct: Bools, expert: Answers, proxy: Answers | None
) -> ExpertArrays | None:
    """Arrays for a PPI++ estimate of the experts' accuracy on all images, when they looked at a part of them.

    The domain is the images that are not problematic, which too is known only where experts looked. The proxy
    is ReaL's verdict, or whether the prediction is the original label where ReaL cannot evaluate (or is not
    given); its domain is the images that ReaL can evaluate.

    Returns:
        None where experts saw all images or fewer than `MIN_EXPERT_IMAGES`, or an original label is unknown.
    """
    seen = expert.known
    if seen.all() or seen.sum() < MIN_EXPERT_IMAGES or (original_labels < 0).any():
        return None
    proxy_right, proxy_domain = top1_correct, np.ones(len(seen), dtype=bool)
    if proxy is not None:
        proxy_right = np.where(proxy.evaluable, proxy.right, top1_correct)
        proxy_domain = proxy.evaluable | ~proxy.known
    if not expert.evaluable.any() or not proxy_domain[~seen].any():
        return None
    return ExpertArrays(
        seen=seen,
        domain=expert.evaluable[seen],
        right=expert.right[seen],
        unjudged=expert.open[seen],
        proxy_domain=proxy_domain[seen],
        proxy=proxy_right[seen],
        proxy_domain_elsewhere=proxy_domain[~seen],
        proxy_elsewhere=proxy_right[~seen],
    )


@dataclass(frozen=True)
class _Contrast:
    """Standard and rectified error on the same images."""

    n: int
    standard: float | None = None
    rectified: float | None = None
    reduction: Metric | None = None

    def row(self, source: str) -> dict[str, Cell] | None:
        """Its row in `standard_vs_rectified`."""
        if not self.n:
            return None
        return {
            "source": source,
            "n": self.n,
            "standard_error": self.standard,
            "rectified_error": self.rectified,
            "reduction": self.reduction.value if self.reduction else None,
            "ci_low": self.reduction.ci_low if self.reduction else None,
            "ci_high": self.reduction.ci_high if self.reduction else None,
        }


def _contrasts(run: _Run) -> dict[str, _Contrast]:
    """The contrast of every source, whose intervals are computed in one call."""
    contrasts: dict[str, _Contrast] = {}
    tables: dict[str, tuple[float, npt.NDArray[np.int64]]] = {}
    for source, answers in run.answers.items():
        images = answers.evaluable & (run.original_labels >= 0)
        n = int(images.sum())
        contrasts[source] = _Contrast(n)
        if not n:
            continue
        wrong = ~run.top1_correct[images]
        not_right = ~answers.right[images]
        # Rectified mistakes if everything unjudged is wrong, and if it is right.
        mistakes = np.stack([not_right, not_right & ~answers.open[images]])
        contrasts[source] = _Contrast(n, float(wrong.mean()), float(not_right.mean()))
        if not wrong.any():
            continue
        both = (wrong & mistakes).sum(axis=1)
        only_standard, only_rectified = wrong.sum() - both, mistakes.sum(axis=1) - both
        # The delta method's standard error of the ratio, only to choose the critical value.
        ratio = mistakes.sum(axis=1) / wrong.sum()
        spread = both + only_rectified + ratio**2 * wrong.sum() - 2 * ratio * both
        error = np.sqrt(np.maximum(spread, 0)) / wrong.sum()
        z = float(statistics.imbens_manski(ratio[0] - ratio[1], error.max()))
        tables[source] = z, np.stack([both, only_standard, only_rectified])
    if not tables:
        return contrasts
    cells = np.stack([table for _, table in tables.values()], axis=1)
    interval = statistics.ratio_of_errors(*cells, z=np.array([[z] for z, _ in tables.values()]))
    for row, (source, (_, (both, only_standard, only_rectified))) in enumerate(tables.items()):
        reductions = 1 - (both + only_rectified) / (both + only_standard)
        n, unjudged = contrasts[source].n, int(run.answers[source].open[run.original_labels >= 0].sum())
        metric: dict[str, float | int | str] = {
            "value": float(reductions[0]),
            "ci_low": 1 - float(interval.high[row, 0]),
            "ci_high": 1 - float(interval.low[row, 1]),
            "n": n,
            "method": "paired score" + (", imbens-manski" if unjudged else ""),
        }
        if unjudged:
            metric |= {"lower": float(reductions[0]), "upper": float(reductions[1]), "judged": n - unjudged}
        contrasts[source] = replace(contrasts[source], reduction=Metric.model_validate(metric))
    return contrasts


def _quality(answers: Answers) -> dict[str, Metric]:
    """Precision and recall at |label set|, and mean average precision where all logits are known."""
    metrics: dict[str, Metric] = {}
    images = answers.ranked
    n = int(images.sum())
    if n > 1:
        size, unjudged = answers.size[images].astype(np.float64), answers.unjudged[images]
        recall = answers.hits[images] / size
        found = statistics.mean_estimate(recall)
        open_images = int((unjudged > 0).sum())
        if open_images:
            best = statistics.mean_estimate((answers.hits[images] + unjudged) / size)
            metrics["precision_at_k"] = _between(
                found, best, n, "effective wilson", judged=n - open_images, unjudged=open_images
            )
        else:
            metrics["precision_at_k"] = _metric(found, found.interval(), n, "effective wilson")
        metrics["recall_at_k"] = _metric(found, found.interval(), n, "effective wilson")
    if answers.average_precision is not None:
        values = answers.average_precision[answers.evaluable].astype(np.float64)
        if len(values) > 1:
            mean = statistics.mean_estimate(values)
            name = "mean_average_precision"
            metrics[name] = _metric(mean, mean.interval(), len(values), "effective wilson")
    return metrics


# --------------------------------------------------------------------------------------- arrays to tables


def _anatomy(category: npt.NDArray[np.int8]) -> Table:
    counts = np.bincount(category[category >= 0], minlength=len(CATEGORIES))
    total = int(counts.sum())
    return [
        {"category": name, "n": int(n), "share": int(n) / total if total else 0.0}
        for name, n in zip(CATEGORIES, counts)
    ]


def _most_rectified_classes(run: _Run, answers: Answers) -> Table:
    images = answers.evaluable & (run.original_labels >= 0)
    original = run.original_labels[images]
    total = np.bincount(original, minlength=NUM_CLASSES)
    standard = np.bincount(original[run.top1_correct[images]], minlength=NUM_CLASSES)
    rectified = np.bincount(original[answers.right[images]], minlength=NUM_CLASSES)
    gained = np.flatnonzero(rectified > standard)
    gain = (rectified[gained] - standard[gained]) / total[gained]
    best = gained[np.lexsort((gained, -total[gained], -gain))][:TOP_CLASSES]
    names = class_names()
    return [
        {
            "class_index": int(c),
            "name": names[c],
            "n": int(total[c]),
            "standard": float(standard[c] / total[c]),
            "rectified": float(rectified[c] / total[c]),
            "gain": float((rectified[c] - standard[c]) / total[c]),
        }
        for c in best
    ]


def _accepted_confusions(run: _Run, answers: Answers) -> Table:
    images = answers.evaluable & (answers.verdict == Verdict.ACCEPTED)
    images &= (run.original_labels >= 0) & ~run.top1_correct
    pairs = run.original_labels[images].astype(np.int64) * NUM_CLASSES + run.top1[images]
    keys, counts = np.unique(pairs, return_counts=True)
    names = class_names()
    table: Table = []
    for at in np.lexsort((keys, -counts))[:TOP_CONFUSIONS]:
        original, predicted = divmod(int(keys[at]), NUM_CLASSES)
        table.append(
            {
                "original_index": original,
                "original": names[original],
                "predicted_index": predicted,
                "predicted": names[predicted],
                "n": int(counts[at]),
            }
        )
    return table


def _quality_row(source: str, quality: dict[str, Metric]) -> dict[str, Cell]:
    precision, recall, average = (
        quality.get(name) for name in ("precision_at_k", "recall_at_k", "mean_average_precision")
    )
    return {
        "source": source,
        "n": precision.n if precision else 0,
        "precision": precision.value if precision else None,
        "recall": recall.value if recall else None,
        "mean_average_precision": average.value if average else None,
    }


def _source_row(source: str, labels: LabelSets, answers: Answers) -> dict[str, Cell]:
    counts = np.bincount(answers.verdict[answers.evaluable], minlength=4)
    n = int(counts.sum())
    return {
        "source": source,
        "revision": labels.revision,
        "images": int(answers.known.sum()),
        "evaluable": n,
        "accepted": int(counts[Verdict.ACCEPTED]),
        "unsure": int(counts[Verdict.UNSURE]),
        "rejected": int(counts[Verdict.REJECTED]),
        "judged_share": (n - int(counts[Verdict.UNJUDGED])) / n if n else 0.0,
    }


def _notes(run: _Run, primary: str | None, reduced: str | None, metrics: Mapping[str, Metric]) -> list[str]:
    n, notes = len(run.top1), []
    if n != NUM_VALIDATION_IMAGES:
        notes.append(
            f"Scored on {n:,} images, not on the 50,000 of the validation set: do not compare with full runs."
        )
    unknown = int((run.original_labels < 0).sum())
    if unknown:
        notes.append(
            f"{unknown:,} images have no known original label; they are left out of top-1 and top-5."
        )
    if primary is None:
        notes.append("No annotations were given: nothing is rectified. Name some with --annotations.")
        return notes
    for source, answers in run.answers.items():
        if not answers.evaluable.any():
            notes.append(f"{source} can evaluate none of these images; it gives no number.")
    notes.append(
        f"Anatomy, class and confusion tables and multi-label quality use the label sets of {primary}."
    )
    if reduced is not None:
        notes.append(f"The error reduction compares both errors on the images that {reduced} can evaluate.")
    short = int((run.answers[primary].evaluable & (run.answers[primary].hits < 0)).sum())
    if short:
        notes.append(
            f"Precision and recall leave out {short:,} images with fewer predictions than accepted classes."
        )
    for name, metric in metrics.items():
        if metric.judged is not None and metric.lower is not None and metric.upper != metric.lower:
            if name in ("mla_ppi", "mla", "rectified_error_reduction", "precision_at_k"):
                continue
            notes.append(
                f"{name}: {metric.n - metric.judged:,} of {metric.n:,} predictions are unjudged; "
                "the value counts them as not accepted, the interval allows for both."
            )
    if "mla_ppi" in metrics:
        notes.append(
            "mla_ppi estimates plain MLA for all images of the run; mla_plain is what experts saw themselves."
        )
    return notes
