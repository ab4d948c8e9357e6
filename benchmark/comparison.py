"""Two runs compared on the images they share, pair by pair.

Pairing is what makes small differences visible: most images say nothing, since both runs are right or both
are wrong, and only the others carry the difference. Every difference is first minus second, with an interval
and a p value for "no difference"; p values are not corrected for looking at several metrics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from scipy import special

from annotations.classes import NUM_CLASSES
from annotations.errors import BeyondError
from annotations.judgements import Verdict
from benchmark import statistics
from benchmark.attack_records import MINIMAL, AttackInfo, Evaluation
from benchmark.radii import radius_text
from benchmark.tracks import RECTIFIED
from benchmark.tracks.rectified import (
    CONSOLIDATED,
    MLA,
    REAL,
    Answers,
    RectifiedResult,
    accuracy_names,
    expert_arrays,
)
from benchmark.tracks.robustness import RobustnessResult, Verdicts

Bools = npt.NDArray[np.bool_]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Difference(_Strict):
    """One metric of two runs on the same images."""

    metric: str = Field(description="Name of the metric, as in the scorecard.")
    a: float = Field(description="Value of the first run on these images.")
    b: float = Field(description="Value of the second.")
    difference: float = Field(description="First minus second.")
    ci_low: float = Field(description="Lower end of the 95 % interval of the difference.")
    ci_high: float = Field(description="Upper end.")
    p_value: float = Field(
        description="Two-sided, for no difference; the largest that unjudged answers allow."
    )
    n: int = Field(ge=0, description="Number of images.")
    only_a: int | None = Field(default=None, description="Images that only the first gets right.")
    only_b: int | None = Field(default=None, description="Images that only the second gets right.")
    unjudged: int = Field(default=0, description="Images whose unjudged answers could move the difference.")
    margin: float = Field(default=0.0, ge=0, description="By how much the first may be lower.")
    p_lower: float = Field(
        description="One-sided: small where the first is lower by more than the margin, whatever is unjudged."
    )
    p_within: float = Field(
        description="One-sided: small where the first is not lower by more than the margin, likewise."
    )
    method: str = Field(description="How interval and p value were computed.")


class VerdictChange(_Strict):
    """An image on which two runs were attacked alike and did not fare alike."""

    image_id: str
    objective: str = Field(description="original or rectified.")
    a: str = Field(description="misclassified, broken, robust or failed in the first run.")
    b: str = Field(description="The same in the second.")


class AttackComparison(_Strict):
    """Two runs under the same threat, radius and suite, on the images that both attacked."""

    threat: str
    epsilon: float = Field(description="Radius; 0 for minimal, which has none.")
    suite: str
    n: int = Field(ge=1, description="Images that both attacked.")
    left_out_a: int = Field(ge=0, description="Images that only the first attacked.")
    left_out_b: int = Field(ge=0, description="Images that only the second attacked.")
    differences: list[Difference]
    changes: list[VerdictChange] = Field(
        description="Images whose verdict differs, by id; none for minimal, which has distances instead."
    )
    notes: list[str] = Field(default_factory=list)


class Comparison(_Strict):
    """Two runs, metric by metric."""

    name_a: str
    name_b: str
    n: int = Field(ge=1, description="Images that both runs have.")
    left_out_a: int = Field(ge=0, description="Images that only the first run has.")
    left_out_b: int = Field(ge=0, description="Images that only the second run has.")
    same_answer: int = Field(ge=0, description="Images on which both predict the same class.")
    differences: list[Difference]
    attacks: list[AttackComparison] = Field(
        default_factory=list, description="One an evaluation that both runs finished."
    )
    notes: list[str] = Field(default_factory=list)


def compare_runs(
    a: RectifiedResult,
    b: RectifiedResult,
    *,
    name_a: str = "A",
    name_b: str = "B",
    margins: Mapping[str, float] | None = None,
) -> Comparison:
    """Compare two runs on their common images, joined by id.

    Both must be scored against the same label sets for a source to be compared.

    Args:
        a: The first run.
        b: The second.
        name_a: What to call the first.
        name_b: What to call the second.
        margins: Metric to the fraction by which the first may be lower, for the one-sided tests.

    Raises:
        BeyondError: They share no image.
    """
    rows_a, rows_b = _common(a.image_ids, b.image_ids)
    if not len(rows_a):
        raise BeyondError(
            f"{name_a} and {name_b} have no image in common; compare runs over the same images (by file stem)"
        )
    first, second = _take(a, rows_a), _take(b, rows_b)
    known = (first.original >= 0) & (first.original == second.original)
    same = first.top1 == second.top1
    seed = ("compare", first.ids, first.top1, second.top1)
    margins = margins or {}

    found: dict[str, Difference] = {}
    if known.any():
        found["top1"] = _shares("top1", first.correct[known], second.correct[known], margins)
        if first.top5 is not None and second.top5 is not None:
            found["top5"] = _shares("top5", first.top5[known], second.top5[known], margins)
    sources = [source for source in a.answers if source in b.answers]
    names = accuracy_names(sources)
    for source in sources:
        one, two = first.answers[source], second.answers[source]
        images = one.evaluable & two.evaluable
        if not images.any():
            continue
        plain = "mla_plain" if source == MLA else names[source]
        found[plain] = _verdicts(plain, one, two, images, same, margins)
        if source == REAL and (images & known).any():
            both = images & known
            found["top1_evaluable"] = _shares(
                "top1_evaluable", first.correct[both], second.correct[both], margins
            )
        if source == MLA:
            if known[images].all():
                found["mla"] = _class_means(one, two, images, same, first.original, seed, margins)
            powered = _powered(first, second, same, margins) if known.all() else None
            if powered is not None:
                found["mla_ppi"] = powered
    for source in sorted(sources, key=lambda s: (s != REAL, s != CONSOLIDATED)):
        reduction = _reductions(first, second, source, known, same, seed, margins)
        if reduction is not None:
            found["rectified_error_reduction"] = reduction
            break
    for source in sorted(sources, key=lambda s: (s != CONSOLIDATED, s != REAL))[:1]:
        found.update(_qualities(first.answers[source], second.answers[source], margins))

    order = [info.name for info in RECTIFIED.metrics]
    ranks = {name: order.index(name if name in order else "{source}_accuracy") for name in found}
    return Comparison(
        name_a=name_a,
        name_b=name_b,
        n=len(rows_a),
        left_out_a=len(a.image_ids) - len(rows_a),
        left_out_b=len(b.image_ids) - len(rows_b),
        same_answer=int(same.sum()),
        differences=[found[name] for name in sorted(found, key=lambda name: ranks[name])],
        notes=_notes(a, b, found),
    )


def compare_attacks(
    a: RobustnessResult,
    b: RobustnessResult,
    *,
    attacks_a: Sequence[AttackInfo] = (),
    attacks_b: Sequence[AttackInfo] = (),
    name_a: str = "A",
    name_b: str = "B",
    margins: Mapping[str, float] | None = None,
) -> tuple[list[AttackComparison], list[str]]:
    """Compare how two runs fared under the same attacks, on the images that both attacked, joined by id.

    Args:
        a: The first run, scored against the same label sets as the second.
        b: The second run.
        attacks_a: What its `run.json` says of its evaluations, for notes alone.
        attacks_b: The same of the second.
        name_a: What to call the first in notes.
        name_b: What to call the second.
        margins: As for `compare_runs`.

    Returns:
        One comparison an evaluation that both finished on some common image, and notes for the whole.
    """
    infos_a, infos_b = ({info.key: info for info in infos} for infos in (attacks_a, attacks_b))
    found = []
    for first in a.evaluations:
        second = b.of(first.evaluation)
        if second is None:
            continue
        comparison = _compare_attack(first, second, margins or {})
        if comparison is None:
            continue
        one, two = infos_a.get(first.evaluation), infos_b.get(first.evaluation)
        notes = []
        if one is not None and two is not None:
            differ = [name for name in one.identity() if one.identity()[name] != two.identity()[name]]
            if differ:
                notes.append(f"The attacks differ in {' and '.join(differ)}.")
            if one.label_sets and two.label_sets and one.label_sets != two.label_sets:
                notes.append("The attacks left other label sets; what that leaves open widens intervals.")
        found.append(comparison.model_copy(update={"notes": notes}))
    if found:
        return found, []
    lists = [
        ", ".join(_evaluation_text(v.evaluation) for v in result.evaluations) or "nothing finished"
        for result in (a, b)
    ]
    return [], [f"No attack in common to compare: {name_a} has {lists[0]}; {name_b} has {lists[1]}."]


def _evaluation_text(evaluation: Evaluation) -> str:
    return f"{radius_text(evaluation.threat, evaluation.epsilon)} {evaluation.suite}"


def _compare_attack(a: Verdicts, b: Verdicts, margins: Mapping[str, float]) -> AttackComparison | None:
    rows_a, rows_b = _common(a.image_ids, b.image_ids)
    same = a.labels[rows_a] == b.labels[rows_b]
    rows_a, rows_b = rows_a[same], rows_b[same]
    n = len(rows_a)
    if not n:
        return None
    # Whether people keep an image's label depends on the image and the label sets alone.
    kept = a.kept[rows_a] & b.kept[rows_b]
    right = [v.clean[rows] == v.labels[rows] for v, rows in ((a, rows_a), (b, rows_b))]
    differences = [_shares("clean_accuracy", right[0], right[1], margins)]
    changes: list[VerdictChange] = []
    if a.evaluation.suite == MINIMAL:
        both = right[0] & right[1]
        sides = [
            ("median_distance_original", a.distance[rows_a], b.distance[rows_b], both),
            (
                "median_distance_rectified",
                a.rectified_distance[rows_a],
                b.rectified_distance[rows_b],
                both & kept,
            ),
        ]
        differences += [d for side in sides if (d := _closer(*side)) is not None]
    else:
        robust = [v.robust_original[rows] for v, rows in ((a, rows_a), (b, rows_b))]
        differences.append(_shares("robust_accuracy_original", robust[0], robust[1], margins))
        if kept.any():
            differences += _kept_differences(a, b, rows_a, rows_b, kept, margins)
        ids = a.image_ids[rows_a]
        for objective in ("original", "rectified"):
            status = [getattr(v, objective)[rows] for v, rows in ((a, rows_a), (b, rows_b))]
            known = (status[0] != "") & (status[1] != "")
            changes += [
                VerdictChange(
                    image_id=str(ids[i]), objective=objective, a=str(status[0][i]), b=str(status[1][i])
                )
                for i in np.flatnonzero(known & (status[0] != status[1])).tolist()
            ]
    return AttackComparison(
        **a.evaluation._asdict(),
        n=n,
        left_out_a=len(a.image_ids) - n,
        left_out_b=len(b.image_ids) - n,
        differences=differences,
        changes=changes,
    )


def _kept_differences(
    a: Verdicts,
    b: Verdicts,
    rows_a: npt.NDArray[np.intp],
    rows_b: npt.NDArray[np.intp],
    kept: Bools,
    margins: Mapping[str, float],
) -> list[Difference]:
    """What both objectives say on the images whose label people keep."""
    one, two = (rows[kept] for rows in (rows_a, rows_b))
    robust = a.robust_rectified[one], b.robust_rectified[two]
    open_ = a.open[one], b.open[two]
    found = [_bounded_shares("robust_accuracy_rectified", *robust, *open_, margins)]
    if kept.sum() > 1:
        hidden = [
            people.astype(np.float64) - v.robust_original[rows]
            for people, v, rows in ((robust[0], a, one), (robust[1], b, two))
        ]
        # Where it is open, an image that the label alone calls broken may yet hide robustness.
        high = [
            value + (unknown & ~v.robust_original[rows])
            for value, unknown, v, rows in ((hidden[0], open_[0], a, one), (hidden[1], open_[1], b, two))
        ]
        found.append(_means("hidden_robustness", hidden[0], hidden[1], high[0], high[1], margins))
    broken = kept & (a.original[rows_a] == "broken") & (b.original[rows_b] == "broken")
    if broken.any():
        said = a.verdict[rows_a[broken]], b.verdict[rows_b[broken]]
        same = a.adversarial[rows_a[broken]] == b.adversarial[rows_b[broken]]
        accepted = [s == Verdict.ACCEPTED for s in said]
        unjudged = [(s == Verdict.UNJUDGED) & ~same for s in said]
        found.append(
            _bounded_shares(
                "adversarial_acceptance", accepted[0], accepted[1], unjudged[0], unjudged[1], margins
            )
        )
    return found


def _closer(
    metric: str, a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], images: Bools
) -> Difference | None:
    """Median of the paired differences of distances, with the sign test."""
    images = images & np.isfinite(a) & np.isfinite(b)
    if not images.any():
        return None
    a, b = a[images], b[images]
    value, interval = statistics.median_interval(a - b)
    ends = np.clip([float(interval.low), float(interval.high)], (a - b).min(), (a - b).max())
    more, less = int((a > b).sum()), int((a < b).sum())
    tails = statistics.paired_tails(more, less, len(a))
    return Difference(
        metric=metric,
        a=float(np.median(a)),
        b=float(np.median(b)),
        difference=value,
        ci_low=float(ends[0]),
        ci_high=float(ends[1]),
        p_value=float(statistics.mcnemar(more, less)),
        n=len(a),
        only_a=more,
        only_b=less,
        p_lower=float(tails.lower),
        p_within=float(tails.within),
        method="paired median, order statistics, sign test",
    )


class _Side(NamedTuple):
    """One run's arrays on the common images."""

    ids: npt.NDArray[np.object_]
    original: npt.NDArray[np.int16]
    top1: npt.NDArray[np.int16]
    correct: Bools
    top5: Bools | None
    answers: dict[str, Answers]


def _common(
    a: npt.NDArray[np.object_], b: npt.NDArray[np.object_]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    if np.array_equal(a, b):
        everything = np.arange(len(a), dtype=np.intp)
        return everything, everything
    _, rows_a, rows_b = np.intersect1d(a.astype(str), b.astype(str), assume_unique=True, return_indices=True)
    return rows_a, rows_b


def _take(result: RectifiedResult, rows: npt.NDArray[np.intp]) -> _Side:
    return _Side(
        ids=result.image_ids[rows].astype(str),
        original=result.original_labels[rows],
        top1=result.top1[rows],
        correct=result.top1_correct[rows],
        top5=None if result.top5_correct is None else result.top5_correct[rows],
        answers={source: answers.take(rows) for source, answers in result.answers.items()},
    )


def _shares(metric: str, right_a: Bools, right_b: Bools, margins: Mapping[str, float]) -> Difference:
    """Difference of two shares when everything is judged."""
    nothing = np.zeros(len(right_a), dtype=bool)
    return _bounded_shares(metric, right_a, right_b, nothing, nothing, margins)


def _verdicts(
    metric: str, one: Answers, two: Answers, images: Bools, same: Bools, margins: Mapping[str, float]
) -> Difference:
    """Difference of two accuracies by verdict. A class that both predict has one verdict, known or not."""
    differ = ~same[images]
    open_a, open_b = one.open[images] & differ, two.open[images] & differ
    return _bounded_shares(metric, one.right[images], two.right[images], open_a, open_b, margins)


def _bounded_shares(
    metric: str,
    right_a: Bools,
    right_b: Bools,
    open_a: Bools,
    open_b: Bools,
    margins: Mapping[str, float],
) -> Difference:
    """Tango's interval and McNemar's test, over all that the open answers may turn out to be."""
    n, margin = len(right_a), margins.get(metric, 0.0)
    # Worst for a, as observed, best for a.
    only_a = np.array([(right_a & ~(right_b | open_b)).sum(), (right_a & ~right_b).sum(), 0])
    only_b = np.array([((right_b | open_b) & ~right_a).sum(), (right_b & ~right_a).sum(), 0])
    only_a[2] = ((right_a | open_a) & ~right_b).sum()
    only_b[2] = (right_b & ~(right_a | open_a)).sum()
    difference = (only_a - only_b) / n
    error = np.sqrt(np.maximum((only_a + only_b) / n - difference**2, 0) / n)
    z = float(statistics.imbens_manski(difference[2] - difference[0], error.max()))
    interval = statistics.paired_difference(only_a, only_b, n, z=z)
    p_values = statistics.mcnemar(only_a, only_b)
    straddles = difference[0] < 0 < difference[2]
    tails = statistics.paired_tails(only_a, only_b, n, margin=margin)
    return Difference(
        metric=metric,
        a=float(right_a.mean()),
        b=float(right_b.mean()),
        difference=float(difference[1]),
        ci_low=float(interval.low[0]),
        ci_high=float(interval.high[2]),
        p_value=1.0 if straddles else float(p_values.max()),
        n=n,
        only_a=int(only_a[1]),
        only_b=int(only_b[1]),
        unjudged=int((open_a | open_b).sum()),
        margin=margin,
        p_lower=float(tails.lower[2]),
        p_within=float(tails.within[0]),
        method="tango, mcnemar exact" + (", imbens-manski" if (open_a | open_b).any() else ""),
    )


def _class_means(
    one: Answers,
    two: Answers,
    images: Bools,
    same: Bools,
    original: npt.NDArray[np.int16],
    seed: tuple[object, ...],
    margins: Mapping[str, float],
) -> Difference:
    """Difference of two class means by the paired stratified bootstrap."""
    classes, differ = original[images], ~same[images]
    right_a, right_b = one.right[images], two.right[images]
    open_a, open_b = one.open[images] & differ, two.open[images] & differ

    def count(which: Bools) -> npt.NDArray[np.int64]:
        return np.bincount(classes[which], minlength=NUM_CLASSES)

    total = count(np.ones(len(classes), dtype=bool))
    present = total > 0

    def replicates(a: Bools, b: Bools) -> npt.NDArray[np.float64]:
        rng = statistics.seeded(*seed, "mla")
        return statistics.bootstrap_class_difference(
            count(a & ~b)[present], count(b & ~a)[present], total[present], rng
        )

    worst = best = replicates(right_a, right_b)
    unjudged = int((open_a | open_b).sum())
    if unjudged:
        worst, best = replicates(right_a, right_b | open_b), replicates(right_a | open_a, right_b)
    value_a = float((count(right_a)[present] / total[present]).mean())
    value_b = float((count(right_b)[present] / total[present]).mean())
    low, high, p_value, tails = _from_replicates(worst, best, margin := margins.get("mla", 0.0))
    return Difference(
        metric="mla",
        a=value_a,
        b=value_b,
        difference=value_a - value_b,
        ci_low=low,
        ci_high=high,
        p_value=p_value,
        n=len(classes),
        only_a=int((right_a & ~right_b).sum()),
        only_b=int((right_b & ~right_a).sum()),
        unjudged=unjudged,
        margin=margin,
        p_lower=float(tails.lower),
        p_within=float(tails.within),
        method="stratified bootstrap" + (", imbens-manski" if unjudged else ""),
    )


def _from_replicates(
    worst: npt.NDArray[np.float64], best: npt.NDArray[np.float64], margin: float
) -> tuple[float, float, float, statistics.Tails]:
    """Interval and p values from bootstrap replicates with unjudged answers at their worst and best for a."""
    finite_worst, finite_best = worst[np.isfinite(worst)], best[np.isfinite(best)]
    width = float(finite_best.mean() - finite_worst.mean()) if worst is not best else 0.0
    error = max(float(finite_worst.std()), float(finite_best.std()))
    z = float(statistics.imbens_manski(width, error))
    low, high = statistics.percentile(worst, z=z).low, statistics.percentile(best, z=z).high
    straddles = finite_worst.mean() < 0 < finite_best.mean() and width > 0
    p_value = 1.0 if straddles else max(statistics.bootstrap_p(worst), statistics.bootstrap_p(best))
    # One is added to both counts, as in `bootstrap_p`.
    tails = statistics.Tails(
        lower=((finite_best >= -margin).sum() + 1) / (len(finite_best) + 1),
        within=((finite_worst <= -margin).sum() + 1) / (len(finite_worst) + 1),
    )
    return float(low), float(high), p_value, tails


def _reductions(
    first: _Side,
    second: _Side,
    source: str,
    known: Bools,
    same: Bools,
    seed: tuple[object, ...],
    margins: Mapping[str, float],
) -> Difference | None:
    """Difference of two relative error reductions by the paired bootstrap over the cells of a table."""
    one, two = first.answers[source], second.answers[source]
    images = one.evaluable & two.evaluable & known
    wrong_a, wrong_b = ~first.correct[images], ~second.correct[images]
    if not (wrong_a.any() and wrong_b.any()):
        return None
    differ = ~same[images]
    mistake_a, mistake_b = ~one.right[images], ~two.right[images]
    open_a, open_b = one.open[images] & differ, two.open[images] & differ

    def reductions(rejected_a: Bools, rejected_b: Bools) -> tuple[npt.NDArray[np.float64], float, float]:
        code = wrong_a * 8 + rejected_a * 4 + wrong_b * 2 + rejected_b * 1
        cells = np.bincount(code, minlength=16).astype(np.int64)
        drawn = np.vstack([cells, statistics.bootstrap_cells(cells, statistics.seeded(*seed, "reduction"))])
        bit = np.arange(16)
        sums = [drawn[:, (bit & mask) > 0].sum(axis=1) for mask in (8, 4, 2, 1)]
        with np.errstate(invalid="ignore", divide="ignore"):
            a, b = 1 - sums[1] / sums[0], 1 - sums[3] / sums[2]
        return (a - b)[1:], float(a[0]), float(b[0])

    observed, value_a, value_b = reductions(mistake_a, mistake_b)
    worst = best = observed
    unjudged = int((open_a | open_b).sum())
    if unjudged:
        worst, best = (
            reductions(mistake_a, mistake_b & ~open_b)[0],
            reductions(mistake_a & ~open_a, mistake_b)[0],
        )
    margin = margins.get("rectified_error_reduction", 0.0)
    low, high, p_value, tails = _from_replicates(worst, best, margin)
    return Difference(
        metric="rectified_error_reduction",
        a=value_a,
        b=value_b,
        difference=value_a - value_b,
        ci_low=low,
        ci_high=high,
        p_value=p_value,
        n=int(images.sum()),
        unjudged=unjudged,
        margin=margin,
        p_lower=float(tails.lower),
        p_within=float(tails.within),
        method="paired bootstrap" + (", imbens-manski" if unjudged else ""),
    )


def _powered(first: _Side, second: _Side, same: Bools, margins: Mapping[str, float]) -> Difference | None:
    """Difference of two prediction-powered accuracies: one PPI++ estimate of the paired difference."""
    proxies = [side.answers.get(REAL) for side in (first, second)]
    arrays = [
        expert_arrays(side.original, side.correct, side.answers[MLA], proxy)
        for side, proxy in zip((first, second), proxies)
    ]
    a, b = arrays
    if a is None or b is None or not np.array_equal(a.seen, b.seen):
        return None
    differ = ~same[a.seen]
    open_a, open_b = a.unjudged & differ, b.unjudged & differ
    domain, elsewhere = a.proxy_domain & b.proxy_domain, a.proxy_domain_elsewhere & b.proxy_domain_elsewhere
    proxy = a.proxy.astype(float) - b.proxy
    proxy_elsewhere = a.proxy_elsewhere.astype(float) - b.proxy_elsewhere

    def estimate(right_a: Bools, right_b: Bools) -> statistics.PredictionPowered:
        values = right_a.astype(float) - right_b
        return statistics.ppi_domain_mean(a.domain, values, domain, proxy, elsewhere, proxy_elsewhere)

    observed = estimate(a.right, b.right)
    worst, best = estimate(a.right, b.right | open_b), estimate(a.right | open_a, b.right)
    error = np.sqrt(np.maximum(worst.variance, best.variance))
    z = float(statistics.imbens_manski(best.value - worst.value, error))
    p_values = [_normal_p(float(e.value), float(e.variance) ** 0.5) for e in (worst, observed, best)]
    unjudged = int((open_a | open_b).sum())
    margin = margins.get("mla_ppi", 0.0)
    # The two values alone need a weight each, so they differ a little from the estimate of the difference.
    value_a, value_b = (float(arrays_.estimate(arrays_.right).value) for arrays_ in (a, b))
    return Difference(
        metric="mla_ppi",
        a=value_a,
        b=value_b,
        difference=float(observed.value),
        ci_low=float(worst.wald(z).low),
        ci_high=float(best.wald(z).high),
        p_value=1.0 if float(worst.value) < 0 < float(best.value) else max(p_values),
        n=len(same),
        unjudged=unjudged,
        margin=margin,
        p_lower=_normal_tail(float(best.value) + margin, float(best.variance) ** 0.5),
        p_within=_normal_tail(-float(worst.value) - margin, float(worst.variance) ** 0.5),
        method="ppi++" + (", imbens-manski" if unjudged else ""),
    )


def _qualities(one: Answers, two: Answers, margins: Mapping[str, float]) -> dict[str, Difference]:
    """Differences of precision, recall and mean average precision: paired means."""
    found = {}
    images = one.ranked & two.ranked
    if images.sum() > 1:
        size = one.size[images].astype(np.float64)
        a, b = one.hits[images] / size, two.hits[images] / size
        found["recall_at_k"] = _means("recall_at_k", a, b, a, b, margins)
        high_a, high_b = a + one.unjudged[images] / size, b + two.unjudged[images] / size
        found["precision_at_k"] = _means("precision_at_k", a, b, high_a, high_b, margins)
    if one.average_precision is not None and two.average_precision is not None:
        images = one.evaluable & two.evaluable
        if images.sum() > 1:
            a = one.average_precision[images].astype(np.float64)
            b = two.average_precision[images].astype(np.float64)
            found["mean_average_precision"] = _means("mean_average_precision", a, b, a, b, margins)
    return found


def _means(
    metric: str,
    a: npt.NDArray[np.float64],
    b: npt.NDArray[np.float64],
    high_a: npt.NDArray[np.float64],
    high_b: npt.NDArray[np.float64],
    margins: Mapping[str, float],
) -> Difference:
    """Difference of two means of values a to high_a and b to high_b, by Student's t."""
    n, margin = len(a), margins.get(metric, 0.0)
    worst, observed, best = a - high_b, a - b, high_a - b
    errors = [float(d.std(ddof=1)) / n**0.5 for d in (worst, observed, best)]
    width = float(best.mean() - worst.mean())
    z = float(statistics.imbens_manski(width, max(errors)))
    t = float(special.stdtrit(n - 1, special.ndtr(z)))
    p_values = [_student_p(float(d.mean()), e, n) for d, e in zip((worst, observed, best), errors)]
    unjudged = int(((high_a > a) | (high_b > b)).sum())
    return Difference(
        metric=metric,
        a=float(a.mean()),
        b=float(b.mean()),
        difference=float(observed.mean()),
        ci_low=float(worst.mean()) - t * errors[0],
        ci_high=float(best.mean()) + t * errors[2],
        p_value=1.0 if float(worst.mean()) < 0 < float(best.mean()) and width > 0 else max(p_values),
        n=n,
        unjudged=unjudged,
        margin=margin,
        p_lower=_student_tail(float(best.mean()) + margin, errors[2], n),
        p_within=_student_tail(-float(worst.mean()) - margin, errors[0], n),
        method="paired t" + (", imbens-manski" if unjudged else ""),
    )


def _normal_p(value: float, error: float) -> float:
    return float(2 * special.ndtr(-abs(value) / error)) if error > 0 else float(value == 0)


def _normal_tail(value: float, error: float) -> float:
    """One-sided p value that the mean of what was observed as `value` is not below 0."""
    return float(special.ndtr(value / error)) if error > 0 else float(value >= 0)


def _student_tail(value: float, error: float, n: int) -> float:
    return float(special.stdtr(n - 1, value / error)) if error > 0 else float(value >= 0)


def _student_p(value: float, error: float, n: int) -> float:
    return float(2 * special.stdtr(n - 1, -abs(value) / error)) if error > 0 else float(value == 0)


def _notes(a: RectifiedResult, b: RectifiedResult, found: dict[str, Difference]) -> list[str]:
    notes = []
    apart = sorted(set(a.answers) ^ set(b.answers))
    if apart:
        notes.append(f"Only one run was scored against {', '.join(apart)}; that is not compared.")
    open_metrics = [d for d in found.values() if d.unjudged]
    if open_metrics:
        notes.append(
            "Unjudged answers count as not accepted in the values; intervals and p values allow any verdict."
        )
    if len(found) > 1:
        notes.append("p values are not corrected for the number of metrics.")
    return notes
