"""The robustness track: can an adversary force a prediction that people reject?

`score_robustness` is a pure function of records of attacks and label sets. Attacks were run against the label
sets of their time; verdicts are read against those given here, and where that leaves a verdict open it widens
the bounds. What the numbers mean is in `docs/tracks/robustness.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from annotations.classes import class_names
from annotations.judgements import VERDICT_NAMES, LabelSets, Verdict
from benchmark import statistics
from benchmark.attack_records import MINIMAL, AttackInfo, AttackRecords, Evaluation
from benchmark.radii import HEADLINE, radius_text
from benchmark.scorecard import Cell, Metric, Track
from benchmark.tracks import ROBUSTNESS

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int16]
Table = list[dict[str, Cell]]

TOP_PREDICTIONS = 30

# Edges of the histogram of distances, doubling, the same for every run so that runs can be compared.
DISTANCE_EDGES = {
    "linf": tuple(2.0**k / 255 for k in range(-4, 5)),
    "l2": tuple(2.0**k for k in range(-5, 4)),
}

SUITE_ORDER = ("standard", "quick")
"""Strongest first: the one whose numbers are quoted where several were run."""


@dataclass(frozen=True)
class Verdicts:
    """One evaluation, image by image (N images, sorted by id), read against one source of label sets.

    Attributes:
        evaluation: Threat, radius and suite.
        image_ids: object (N,) of str.
        labels: int16 (N,), original labels.
        clean: int16 (N,), predicted class of the clean image, −1 where its logits are not finite.
        original: object (N,), `misclassified`, `broken`, `robust` or `failed` under the original objective.
        adversarial: int16 (N,), predicted class of the adversarial found under it, −1 where there is none.
        distance: float64 (N,), norm of that perturbation, NaN where there is none.
        judged: bool (N,), people judged the image and accept a class of it.
        kept: bool (N,), and they accept its original label, or are unsure of it.
        rectified: object (N,), as `original` but under the rectified objective; empty where the records leave
            it open, or nobody judged the image.
        rectified_distance: float64 (N,), norm of the perturbation behind it, NaN where there is none.
        verdict: int8 (N,), `Verdict` of `adversarial`; UNJUDGED where the source is silent.
    """

    evaluation: Evaluation
    image_ids: npt.NDArray[np.object_]
    labels: Ints
    clean: Ints
    original: npt.NDArray[np.object_]
    adversarial: Ints
    distance: npt.NDArray[np.float64]
    judged: Bools
    kept: Bools
    rectified: npt.NDArray[np.object_]
    rectified_distance: npt.NDArray[np.float64]
    verdict: npt.NDArray[np.int8]

    @property
    def robust_original(self) -> Bools:
        """Robust under the original objective: bool (N,)."""
        robust: Bools = self.original == "robust"
        return robust

    @property
    def robust_rectified(self) -> Bools:
        """Known to be robust under the rectified objective: bool (N,)."""
        robust: Bools = self.rectified == "robust"
        return robust

    @property
    def open(self) -> Bools:
        """Judged images whose verdict under the rectified objective the records leave open: bool (N,)."""
        unknown: Bools = self.judged & (self.rectified == "")
        return unknown


@dataclass(frozen=True)
class RobustnessResult:
    """The track, and the image-by-image verdicts behind it.

    Attributes:
        verdicts: Those of the evaluation that is quoted; None if none with a radius is finished.
        track: The track.
        evaluations: Those of all finished evaluations, by threat, radius and suite.
    """

    verdicts: Verdicts | None
    track: Track
    evaluations: tuple[Verdicts, ...] = ()

    def of(self, evaluation: Evaluation) -> Verdicts | None:
        """The verdicts of one evaluation, None if it was not run or is not finished."""
        return next((v for v in self.evaluations if v.evaluation == evaluation), None)


def primary_source(labels: Mapping[str, LabelSets]) -> str | None:
    """Whose label sets the rectified objective leaves: `consolidated`, else `real`, else the first."""
    return next((s for s in ("consolidated", "real") if s in labels), next(iter(labels), None))


def score_robustness(
    records: AttackRecords, labels: Mapping[str, LabelSets], evaluations: Sequence[AttackInfo] = ()
) -> RobustnessResult:
    """Score records of attacks against the original labels and against label sets.

    Args:
        records: What attacks found.
        labels: Label sets by name. The rectified objective uses `consolidated`, else `real`, else the first.
        evaluations: What `run.json` says of each evaluation: notes and findings, for tables alone.
    """
    infos = {info.key: info for info in evaluations}
    primary = primary_source(labels)
    found: list[Verdicts] = []
    notes: list[str] = []
    for evaluation in records.evaluations():
        pending, verdicts = _verdicts(records, evaluation, None if primary is None else labels[primary])
        if pending:
            notes.append(
                f"{radius_text(evaluation.threat, evaluation.epsilon)}, {evaluation.suite}: {pending:,} "
                "verdicts are missing, so it gives no number; the same beyond score command goes on with it."
            )
        elif verdicts is not None:
            found.append(verdicts)
    if not found:
        return RobustnessResult(None, Track(version=ROBUSTNESS.version, notes=notes))

    within = [v for v in found if v.evaluation.suite != MINIMAL]
    closest = [v for v in found if v.evaluation.suite == MINIMAL]
    quoted = min(within, key=lambda v: _rank(v.evaluation), default=None)
    tables: dict[str, Table] = {
        "attacks": [row for v in found for row in _attacks(records, v, infos.get(v.evaluation))],
        "adversarial_verdicts": [
            row for v in found for name, sets in labels.items() if (row := _verdict_row(v, name, sets))
        ],
        "warnings": _warnings([infos[v.evaluation] for v in found if v.evaluation in infos]),
    }
    metrics: dict[str, Metric] = {}
    if quoted is not None:
        metrics |= _metrics(quoted)
        threat = quoted.evaluation.threat
        tables |= {
            "by_epsilon": [_by_epsilon(v, infos.get(v.evaluation), quoted=v is quoted) for v in within],
            "label_groups": _label_groups(quoted),
            "adversarial_predictions": _predictions(quoted),
            "distances": _distances([v for v in within if v.evaluation.threat == threat]),
        }
        notes = [*_notes(quoted, primary, labels, infos.get(quoted.evaluation)), *notes]
    if closest:
        near = min(closest, key=lambda v: v.evaluation.threat != HEADLINE[0])
        if quoted is not None:
            near = next((v for v in closest if v.evaluation.threat == quoted.evaluation.threat), near)
        tables["minimal"] = [row for v in closest for row in _minimal(v)]
        tables["distances"] = _distances([near])
        metrics |= _medians(near)
        notes.append(_minimal_note(near))
    order = [info.name for info in ROBUSTNESS.metrics]
    track = Track(
        version=ROBUSTNESS.version,
        metrics={name: metrics[name] for name in order if name in metrics},
        tables={name: tables[name] for name in ROBUSTNESS.tables if name in tables},
        notes=notes,
    )
    return RobustnessResult(quoted, track, tuple(found))


def _rank(evaluation: Evaluation) -> tuple[bool, float, int, str]:
    """The evaluation to quote is the one nearest to the headline, by the strongest suite."""
    threat, epsilon = HEADLINE
    suite = evaluation.suite
    strength = SUITE_ORDER.index(suite) if suite in SUITE_ORDER else len(SUITE_ORDER)
    return evaluation.threat != threat, abs(evaluation.epsilon - epsilon), strength, suite


# ------------------------------------------------------------------------------------- records to verdicts


def _verdicts(
    records: AttackRecords, evaluation: Evaluation, labels: LabelSets | None
) -> tuple[int, Verdicts | None]:
    """How many verdicts are pending, and if none is, all of them, read against the label sets."""
    rows = records.rows_of(evaluation)
    table = records.table.iloc[rows]
    pending = int((table["status"] == "pending").sum())
    if pending:
        return pending, None
    ids = np.unique(table["image_id"].to_numpy(dtype=object))
    n = len(ids)
    original, rectified = (_Side.of(records, rows, ids, name) for name in ("original", "rectified"))
    images = np.where(original.rows >= 0, original.rows, rectified.rows)
    label = records.table["original_label"].to_numpy(dtype=np.int16)[images]
    clean = records.table["clean_class"].to_numpy(dtype=np.int16)[images]

    # What breaks the rectified objective breaks the original one too, unless it lands on the original label.
    status, adversarial, distance = (
        original.status.copy(),
        original.adversarial.copy(),
        original.distance.copy(),
    )
    more = (status != "broken") & (status != "misclassified") & (rectified.status == "broken")
    more &= rectified.adversarial != label
    status[more] = "broken"
    adversarial[more], distance[more] = rectified.adversarial[more], rectified.distance[more]

    judged, kept = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    outcome = np.full(n, "", dtype=object)
    far = np.full(n, np.nan)
    verdict = np.zeros(n, dtype=np.int8)
    if labels is not None and len(labels):
        at = labels.rows(ids)
        judged = (at >= 0) & labels.evaluable[at]
        verdict = np.where(judged, labels.lookup(at, adversarial), np.int8(0)).astype(np.int8)

        def within(classes: Ints) -> Bools:
            """Whether each class is one that people accept or are unsure of."""
            found = labels.lookup(at, classes)
            inside: Bools = (found == Verdict.ACCEPTED) | (found == Verdict.UNSURE)
            return inside

        kept = judged & within(label)
        smaller, same = _compare_sets(records, rectified.rows, labels, at)
        by_original = (original.status == "broken") & ~within(original.adversarial)
        by_rectified = (rectified.status == "broken") & ~within(rectified.adversarial)
        # Robust means that nothing left the set attacked, so nothing left a set that has all of it.
        robust = ((rectified.status == "robust") & smaller) | ((original.status == "robust") & kept)
        failed = ((rectified.status == "failed") & same) | (clean < 0)
        # The later wins.
        for mask, name in (
            (failed, "failed"),
            (robust, "robust"),
            (by_original | by_rectified, "broken"),
            ((clean >= 0) & ~within(clean), "misclassified"),
        ):
            outcome[mask & judged] = name
        far = np.fmin(
            np.where(by_original, original.distance, np.nan),
            np.where(by_rectified, rectified.distance, np.nan),
        )
        far = np.where(outcome == "broken", far, np.nan)
    return 0, Verdicts(
        evaluation, ids, label, clean, status, adversarial, distance, judged, kept, outcome, far, verdict
    )


@dataclass(frozen=True)
class _Side:
    """The rows of one objective, aligned with the images: −1, empty or NaN where there is none."""

    rows: npt.NDArray[np.intp]
    status: npt.NDArray[np.object_]
    adversarial: Ints
    distance: npt.NDArray[np.float64]

    @classmethod
    def of(
        cls,
        records: AttackRecords,
        rows: npt.NDArray[np.intp],
        ids: npt.NDArray[np.object_],
        name: str,
    ) -> _Side:
        t = records.table
        mine = rows[(t["objective"].to_numpy(dtype=object)[rows]) == name]
        at = np.searchsorted(ids, t["image_id"].to_numpy(dtype=object)[mine])
        found = np.full(len(ids), -1, dtype=np.intp)
        found[at] = mine
        there = found >= 0
        status = np.where(there, t["status"].to_numpy(dtype=object)[found], "")
        broken = status == "broken"
        return cls(
            found,
            status,
            np.where(broken, t["adversarial_class"].to_numpy(dtype=np.int16)[found], np.int16(-1)),
            np.where(broken, t["distance"].to_numpy(dtype=np.float64)[found], np.nan),
        )


def _compare_sets(
    records: AttackRecords, rows: npt.NDArray[np.intp], labels: LabelSets, at: npt.NDArray[np.intp]
) -> tuple[Bools, Bools]:
    """Whether the set attacked lies within the set that people give now, and whether the two are equal."""
    there = np.flatnonzero(rows >= 0)
    size = np.zeros(len(rows), dtype=np.int64)
    size[there] = records.offsets[rows[there] + 1] - records.offsets[rows[there]]
    owner = np.repeat(np.arange(len(rows)), size)
    start = np.repeat(records.offsets[rows], size) if len(owner) else np.empty(0, dtype=np.int64)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(size) - size, size)
    found = labels.lookup(at[owner], records.inside[(start + place).astype(np.intp)])
    shared = np.bincount(
        owner, weights=(found == Verdict.ACCEPTED) | (found == Verdict.UNSURE), minlength=len(rows)
    )
    now = (labels.counts(Verdict.ACCEPTED) + labels.counts(Verdict.UNSURE))[at]
    smaller: Bools = (size > 0) & (shared == size)
    return smaller, smaller & (now == size)


# ------------------------------------------------------------------------------------- verdicts to metrics


def _share(hits: int, n: int) -> Metric:
    """A plain share with Wilson's interval."""
    interval = statistics.wilson(hits, n)
    return Metric(
        value=hits / n, ci_low=float(interval.low), ci_high=float(interval.high), n=n, method="wilson"
    )


def _bounded_share(hits: int, unknown: int, n: int) -> Metric:
    """A share of which `unknown` cases may count or not: the lower one, with both bounds and an interval."""
    if not unknown:
        share = _share(hits, n)
        return share.model_copy(update={"lower": share.value, "upper": share.value, "judged": n})
    low, high = statistics.share_estimate(hits, n), statistics.share_estimate(hits + unknown, n)
    interval = statistics.bounded(low, high)
    return Metric(
        value=hits / n,
        ci_low=float(interval.low),
        ci_high=float(interval.high),
        n=n,
        method="wilson, imbens-manski",
        lower=hits / n,
        upper=(hits + unknown) / n,
        judged=n - unknown,
    )


def _hidden(verdicts: Verdicts) -> Metric | None:
    """Rectified minus original robust accuracy, on the images whose original label people keep."""
    images = verdicts.kept
    n = int(images.sum())
    if not n:
        return None
    robust, rectified = verdicts.robust_original[images], verdicts.robust_rectified[images]
    unknown = verdicts.open[images] & ~robust
    gained, lost = int((rectified & ~robust).sum()), int((robust & ~rectified).sum())
    ends = np.array([gained, gained + int(unknown.sum())])
    values = (ends - lost) / n
    spread = np.sqrt((ends + lost - (ends - lost) ** 2 / n) / n**2)
    z = statistics.imbens_manski(values[1] - values[0], float(spread.max()))
    interval = statistics.paired_difference(ends, np.array([lost, lost]), n, z=z)
    more = {"lower": float(values[0]), "upper": float(values[1]), "judged": n - int(unknown.sum())}
    return Metric.model_validate(
        {
            "value": float(values[0]),
            "ci_low": float(interval.low[0]),
            "ci_high": float(interval.high[1]),
            "n": n,
            "method": "paired score" + (", imbens-manski" if unknown.any() else ""),
            **more,
        }
    )


def _metrics(verdicts: Verdicts) -> dict[str, Metric]:
    n = len(verdicts.image_ids)
    metrics = {
        "clean_accuracy": _share(int((verdicts.clean == verdicts.labels).sum()), n),
        "robust_accuracy_original": _share(int(verdicts.robust_original.sum()), n),
    }
    kept = verdicts.kept
    if kept.any():
        metrics["robust_accuracy_rectified"] = _bounded_share(
            int(verdicts.robust_rectified[kept].sum()), int(verdicts.open[kept].sum()), int(kept.sum())
        )
    hidden = _hidden(verdicts)
    if hidden is not None:
        metrics["hidden_robustness"] = hidden
    broken = kept & (verdicts.original == "broken")
    if broken.any():
        judged = verdicts.verdict[broken]
        metrics["adversarial_acceptance"] = _bounded_share(
            int((judged == Verdict.ACCEPTED).sum()),
            int((judged == Verdict.UNJUDGED).sum()),
            int(broken.sum()),
        )
    return metrics


# -------------------------------------------------------------------------------------- verdicts to tables


def _by_epsilon(verdicts: Verdicts, info: AttackInfo | None, *, quoted: bool) -> dict[str, Cell]:
    metrics = _metrics(verdicts)
    row: dict[str, Cell] = {
        **verdicts.evaluation._asdict(),
        "note": info.note if info else "",
        "seed": info.seed if info else None,
        "quoted": quoted,
        "n": len(verdicts.image_ids),
        "clean": metrics["clean_accuracy"].value,
    }
    for name, key in (("original", "robust_accuracy_original"), ("rectified", "robust_accuracy_rectified")):
        metric = metrics.get(key)
        row[f"n_{name}"] = metric.n if metric else 0
        for column in ("value", "ci_low", "ci_high", "lower", "upper"):
            if column in ("lower", "upper") and name == "original":
                continue
            row[name if column == "value" else f"{name}_{column}"] = (
                getattr(metric, column) if metric else None
            )
    kept = verdicts.kept
    same = _share(int(verdicts.robust_original[kept].sum()), int(kept.sum())) if kept.any() else None
    row["original_same_images"] = same.value if same else None
    row["original_same_images_ci_low"] = same.ci_low if same else None
    row["original_same_images_ci_high"] = same.ci_high if same else None
    row["clean_same_images"] = float((verdicts.clean == verdicts.labels)[kept].mean()) if kept.any() else None
    hidden = metrics.get("hidden_robustness")
    row["hidden"] = hidden.value if hidden else None
    row["hidden_ci_low"] = hidden.ci_low if hidden else None
    row["hidden_ci_high"] = hidden.ci_high if hidden else None
    return row


def _label_groups(verdicts: Verdicts) -> Table:
    """The same figures by what people say of the original label."""
    table: Table = []
    for name, images in (
        ("kept", verdicts.kept),
        ("not kept", verdicts.judged & ~verdicts.kept),
        ("not judged", ~verdicts.judged),
    ):
        n = int(images.sum())
        if not n:
            continue
        sets = name != "not judged"
        broken = images & (verdicts.original == "broken")
        table.append(
            {
                "original_label": name,
                "n": n,
                "clean": float((verdicts.clean == verdicts.labels)[images].mean()),
                "original": float(verdicts.robust_original[images].mean()),
                "rectified": float(verdicts.robust_rectified[images].mean()) if sets else None,
                "rectified_upper": float((verdicts.robust_rectified | verdicts.open)[images].mean())
                if sets
                else None,
                "adversarials": int(broken.sum()),
                "accepted": int((verdicts.verdict[broken] == Verdict.ACCEPTED).sum()) if sets else None,
            }
        )
    return table


def _attacks(records: AttackRecords, verdicts: Verdicts, info: AttackInfo | None) -> Table:
    """How many images each attack broke, in the order of the suite."""
    table = records.table.iloc[records.rows_of(verdicts.evaluation)]
    order = [str(a["name"]) for a in info.settings.get("attacks", [])] if info else []
    rows: Table = []
    for objective in ("original", "rectified"):
        mine = table[table["objective"] == objective]
        left = int((~mine["status"].isin(["misclassified", "failed"])).sum())
        by = mine["attack"][mine["status"] == "broken"].tolist()
        names = [*order, *sorted(set(by) - set(order))] if len(mine) else []
        for attack in names:
            count = by.count(attack)
            rows.append(
                {
                    **verdicts.evaluation._asdict(),
                    "objective": objective,
                    "attack": attack,
                    "before": left,
                    "broke": count,
                }
            )
            left -= count
    return rows


def _verdict_row(verdicts: Verdicts, source: str, labels: LabelSets) -> dict[str, Cell] | None:
    """What one source says of the adversarial predictions."""
    if not len(labels):
        return None
    at = labels.rows(verdicts.image_ids)
    broken = (verdicts.original == "broken") & (at >= 0) & labels.evaluable[at]
    label = labels.lookup(at, verdicts.labels)
    broken &= (label == Verdict.ACCEPTED) | (label == Verdict.UNSURE)
    counts = np.bincount(labels.lookup(at, verdicts.adversarial)[broken], minlength=4)
    n = int(counts.sum())
    return {
        **verdicts.evaluation._asdict(),
        "source": source,
        "n": n,
        "accepted": int(counts[Verdict.ACCEPTED]),
        "unsure": int(counts[Verdict.UNSURE]),
        "rejected": int(counts[Verdict.REJECTED]),
        "unjudged": int(counts[Verdict.UNJUDGED]),
    }


def _predictions(verdicts: Verdicts) -> Table:
    """Adversarial predictions that people accept: those where they keep the label first, then the nearest."""
    rows = np.flatnonzero((verdicts.original == "broken") & (verdicts.verdict == Verdict.ACCEPTED))
    rows = rows[np.lexsort((rows, verdicts.distance[rows], ~verdicts.kept[rows]))][:TOP_PREDICTIONS]
    names = class_names()
    table: Table = []
    for i in rows.tolist():
        original, predicted = int(verdicts.labels[i]), int(verdicts.adversarial[i])
        table.append(
            {
                "image_id": str(verdicts.image_ids[i]),
                "original_index": original,
                "original": names[original],
                "predicted_index": predicted,
                "predicted": names[predicted],
                "verdict": VERDICT_NAMES[int(verdicts.verdict[i])],
                "label_kept": bool(verdicts.kept[i]),
                "distance": float(verdicts.distance[i]),
            }
        )
    return table


def _distances(found: Sequence[Verdicts]) -> Table:
    """Histogram of the smallest perturbation found for each image, under each objective.

    From the suite `minimal`: of the images that were right before any attack. From suites with a radius: of
    the images that one of them broke. A bin holds the distances above its lower edge, up to its upper one;
    the last has no upper edge.
    """
    threat, suite = found[0].evaluation.threat, found[0].evaluation.suite
    edges = np.array([0.0, *DISTANCE_EDGES.get(threat, DISTANCE_EDGES["l2"]), np.inf])
    table: Table = []
    for objective in ("original", "rectified"):
        smallest: dict[str, float] = {}
        for v in found:
            distance = v.distance if objective == "original" else v.rectified_distance
            images = np.isfinite(distance) & (v.kept if objective == "rectified" else True)
            if suite == MINIMAL:
                images &= v.clean == v.labels
            for i in np.flatnonzero(images).tolist():
                smallest[v.image_ids[i]] = min(smallest.get(v.image_ids[i], np.inf), float(distance[i]))
        if not smallest:
            continue
        # A distance may pass an edge that is a radius by the rounding of float32 pixels: it belongs below.
        bins = np.searchsorted(edges[1:] * (1 + 1e-6) + 2e-7, list(smallest.values()))
        counts = np.bincount(bins, minlength=len(edges) - 1)
        used = np.flatnonzero(counts)
        table += [
            {
                "threat": threat,
                "suite": suite if suite == MINIMAL else "radii",
                "objective": objective,
                "low": float(edges[k]),
                "high": float(edges[k + 1]) if np.isfinite(edges[k + 1]) else None,
                "n": int(counts[k]),
            }
            for k in range(int(used[-1]) + 1)
        ]
    return table


def _ranges(verdicts: Verdicts) -> list[tuple[str, str, npt.NDArray[np.float64]]]:
    """Objective, images and distances of a minimal evaluation: infinite where nothing was found."""
    right = verdicts.clean == verdicts.labels
    pairs = [("original", "right", right, verdicts.distance)]
    # Both objectives on the same images, where the second is the harder: distances compare pair by pair.
    same = right & verdicts.kept & ~verdicts.open
    pairs += [
        ("original", "right, label kept", same, verdicts.distance),
        ("rectified", "right, label kept", same, verdicts.rectified_distance),
    ]
    return [
        (objective, images, np.where(np.isfinite(distance), distance, np.inf)[mask])
        for objective, images, mask, distance in pairs
        if mask.any()
    ]


def _finite(value: npt.ArrayLike) -> float | None:
    number = float(np.asarray(value))
    return number if np.isfinite(number) else None


def _minimal(verdicts: Verdicts) -> Table:
    """Quartiles of the smallest perturbation found, and for how many images one was found."""
    table: Table = []
    for objective, images, distance in _ranges(verdicts):
        median, interval = statistics.median_interval(distance)
        low, high = np.quantile(distance, [0.25, 0.75], method="inverted_cdf")
        table.append(
            {
                "threat": verdicts.evaluation.threat,
                "objective": objective,
                "images": images,
                "n": len(distance),
                "found": int(np.isfinite(distance).sum()),
                "lower_quartile": _finite(low),
                "median": _finite(median),
                "median_ci_low": _finite(interval.low),
                "median_ci_high": _finite(interval.high),
                "upper_quartile": _finite(high),
            }
        )
    return table


def _medians(verdicts: Verdicts) -> dict[str, Metric]:
    metrics = {}
    for objective, images, distance in _ranges(verdicts):
        median, interval = statistics.median_interval(distance)
        if (objective, images) == ("original", "right, label kept") or not np.isfinite(median):
            continue
        metrics[f"median_distance_{objective}"] = Metric(
            value=median,
            ci_low=_finite(interval.low),
            ci_high=_finite(interval.high),
            n=len(distance),
            method="order statistics",
            unit="pixels",
        )
    return metrics


def _minimal_note(verdicts: Verdicts) -> str:
    norm = radius_text(verdicts.evaluation.threat, 0)
    return (
        f"Distances are the {norm} norm of the smallest perturbation that the suite minimal found, with "
        "pixels in [0, 1]: upper bounds, of the images whose answer was right before any attack."
    )


def _warnings(infos: Sequence[AttackInfo]) -> Table:
    return [
        {**info.key._asdict(), "kind": finding.kind, "images": finding.images, "message": finding.message}
        for info in infos
        for finding in info.findings
    ]


def _notes(
    verdicts: Verdicts, primary: str | None, labels: Mapping[str, LabelSets], info: AttackInfo | None
) -> list[str]:
    evaluation = verdicts.evaluation
    n, radius = len(verdicts.image_ids), radius_text(evaluation.threat, evaluation.epsilon)
    what = f"suite {evaluation.suite}" + (f" ({info.note})" if info and info.note else "")
    notes = [f"The figures are for {radius} with {what}, on {n:,} images."]
    if (evaluation.threat, evaluation.epsilon) != HEADLINE:
        notes.append(
            f"The headline radius, {radius_text(*HEADLINE)}, was not run: do not compare with runs at it."
        )
    failed = int((verdicts.original == "failed").sum())
    if failed:
        notes.append(
            f"{failed:,} images are neither robust nor broken: the model returned no finite logits on them."
        )
    if primary is None or not verdicts.judged.any():
        notes.append("No label set covers the attacked images, so only the original objective has numbers.")
        return notes
    kept, judged = int(verdicts.kept.sum()), int(verdicts.judged.sum())
    words = f"The rectified objective is to leave the classes that {primary} accepts or is unsure of"
    notes.append(
        f"{words}; it is compared with the original one on the {kept:,} images whose label it keeps."
    )
    if judged > kept:
        apart = judged - kept
        many = "1 image has" if apart == 1 else f"{apart:,} images have"
        notes.append(f"{many} a label that {primary} does not keep: see the table by label.")
    if info is not None and info.label_sets and info.label_sets != {primary: labels[primary].revision}:
        attacked = ", ".join(f"{source} ({revision})" for source, revision in sorted(info.label_sets.items()))
        notes.append(
            f"The attacks left the label sets of {attacked}; {int(verdicts.open.sum()):,} verdicts are open "
            f"against {primary} and widen the bounds until the same model is attacked again."
        )
    elif verdicts.open.any():
        notes.append(
            f"{int(verdicts.open.sum()):,} images have no verdict under the rectified objective and widen "
            "the bounds."
        )
    return notes
