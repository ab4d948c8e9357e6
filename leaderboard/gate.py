"""The regression gate: is a run worse than a baseline?

With the records of both it is paired, image by image. With a bare scorecard on either side it can only
compare two shares, which sees less, and it says so. What is decided, and at what error rate, is in
`docs/regression-gate.md`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from scipy import special

from annotations.errors import BeyondError
from benchmark import statistics
from benchmark.report.names import in_reading_order
from benchmark.scorecard import SCORECARD_FILE, Metric, Scorecard, read_scorecard
from leaderboard.masks import pinned, portable_fingerprint

Rule = Literal["worse", "non-inferior", "exact"]
Verdict = Literal["worse", "not shown", "within", "better", "no drop shown", "same", "changed"]

POWER = 0.8
"""Chance to see a drop of the size that a row calls detectable."""

TOLERANCE = 1e-6
"""How far values may lie apart that `exact` calls the same: rounding, not results."""

COUNTED = ("wilson", "wilson, imbens-manski")
"""Methods of metrics that are a number of images out of n."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Row(_Strict):
    """One metric, run against baseline. Differences are run minus baseline."""

    track: str
    metric: str = Field(description="Name of the metric, as in the scorecard.")
    run: float | None = Field(default=None, description="The run's value.")
    baseline: float | None = Field(default=None, description="The baseline's.")
    difference: float | None = Field(default=None, description="Run minus baseline.")
    ci_low: float | None = Field(default=None, description="Lower end of its 95 % interval.")
    ci_high: float | None = Field(default=None, description="Upper end.")
    n: int = Field(default=0, description="Images of the run behind it; of both, where they are paired.")
    margin: float = Field(default=0.0, description="By how much the run may be worse.")
    p_worse: float | None = Field(default=None, description="One-sided, for no drop beyond the margin.")
    p_within: float | None = Field(default=None, description="One-sided, for a drop beyond the margin.")
    p_adjusted: float | None = Field(default=None, description="What is compared with alpha.")
    detectable: float | None = Field(
        default=None, description="Drop beyond the margin that is seen with a chance of 80 %, about."
    )
    unit: str = "fraction"
    method: str = ""
    verdict: Verdict
    passed: bool


class Gate(_Strict):
    """What the gate found."""

    run: str
    baseline: str
    paired: bool
    rule: Rule
    alpha: float
    correction: str = Field(description="How p values were corrected for the number of metrics.")
    passed: bool
    rows: list[Row]
    notes: list[str] = Field(default_factory=list)


class Finding(NamedTuple):
    """One metric before anything is decided."""

    track: str
    metric: str
    run: float
    baseline: float
    difference: float
    ci_low: float
    ci_high: float
    n: int
    margin: float
    p_worse: float
    p_within: float
    unit: str
    method: str


# ------------------------------------------------------------------------------------------------- deciding


def rejected(p_values: npt.ArrayLike, alpha: float) -> npt.NDArray[np.bool_]:
    """Which of M metrics dropped, with a chance of at most alpha that any is named wrongly: bool (…, M).

    Args:
        p_values: (…, M), one-sided, for no drop beyond the margin.
        alpha: Level of all of them together, kept by Holm's correction.
    """
    found: npt.NDArray[np.bool_] = statistics.holm(p_values) <= alpha
    return found


def decide(findings: Sequence[Finding], *, alpha: float, rule: Rule) -> list[Row]:
    """A verdict for each metric.

    Under `worse`, a metric fails if a drop beyond its margin is shown; Holm's correction keeps the chance of
    any false alarm at most alpha. Under `non-inferior` it fails unless such a drop is ruled out; since all
    must be shown, each is tested at alpha and the chance of a false pass is at most alpha (Berger 1982,
    Technometrics 24:295).
    """
    worse = np.array([finding.p_worse for finding in findings])
    within = np.array([finding.p_within for finding in findings])
    adjusted = statistics.holm(worse) if rule == "worse" else within
    drops, shown = rejected(worse, alpha), within <= alpha
    level = alpha / max(len(findings), 1) if rule == "worse" else alpha
    needed = float(special.ndtri(1 - level) + special.ndtri(POWER))
    rows = []
    for finding, p, drop, inside in zip(findings, adjusted.tolist(), drops.tolist(), shown.tolist()):
        passed = not drop if rule == "worse" else inside
        if drop:
            verdict: Verdict = "worse"
        elif not passed:
            verdict = "not shown"
        elif (
            (finding.ci_low > 0) if is_better_higher(finding.track, finding.metric) else (finding.ci_high < 0)
        ):
            verdict = "better"
        else:
            verdict = "within" if inside else "no drop shown"
        error = (finding.ci_high - finding.ci_low) / (2 * statistics.Z95)
        values = finding._asdict()
        rows.append(Row(**values, p_adjusted=p, detectable=needed * error, verdict=verdict, passed=passed))
    return rows


# ------------------------------------------------------------------------------------------------ comparing


def gate(
    run: Path,
    baseline: Path,
    *,
    annotations: Sequence[str] | None = None,
    tracks: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    margins: Mapping[str, float] | None = None,
    alpha: float = 0.05,
    rule: Rule = "worse",
) -> Gate:
    """Compare a run with a baseline and decide, metric by metric.

    Args:
        run: Run folder, or a scorecard.
        baseline: Run folder, or a scorecard.
        annotations: Label sets for both, where both are run folders; None takes the baseline's.
        tracks: Only these; None takes all that both have.
        metrics: Only these; None takes the accuracies, which are what the other metrics are made of.
        margins: Metric, or `all`, to the fraction by which the run may be worse.
        alpha: Chance of a false alarm (of a false pass under `non-inferior`).
        rule: See `decide`; `exact` fails on any difference.

    Raises:
        BeyondError: Nothing can be compared, or what is asked for cannot be.
    """
    margins = dict(margins or {})
    if rule == "non-inferior" and not any(margins.values()):
        raise BeyondError("--rule non-inferior needs a --margin, the drop that is to be ruled out")
    sides = _open(run), _open(baseline)
    one, two = sides
    names = [side.name for side in sides]
    if names[0] == names[1]:
        names = [str(run), str(baseline)]
    paired = all(side.has_records for side in sides) and rule != "exact"
    if not paired and annotations:
        raise BeyondError("--annotations goes with two run folders: a scorecard is scored already")

    def cards() -> tuple[Scorecard, Scorecard]:
        return read_scorecard(run), read_scorecard(baseline)

    notes: list[str] = []
    if rule == "exact":
        _same_images(one, two)
        rows = _exact(*cards(), tracks, metrics)
        return Gate(
            run=names[0],
            baseline=names[1],
            paired=False,
            rule=rule,
            alpha=alpha,
            correction="none",
            passed=all(row.passed for row in rows),
            rows=rows,
        )
    chosen = _Choice(metrics, margins)
    if paired:
        findings = _paired(run, baseline, annotations, tracks, chosen, notes)
    else:
        _same_images(one, two)
        findings = _unpaired(*cards(), tracks, chosen, notes)
    chosen.check_all_seen()
    if not findings:
        raise BeyondError("the two have no accuracy in common; name what to test with --metrics")
    rows = decide(findings, alpha=alpha, rule=rule)
    return Gate(
        run=names[0],
        baseline=names[1],
        paired=paired,
        rule=rule,
        alpha=alpha,
        correction="holm" if rule == "worse" else "none needed: all must be shown",
        passed=all(row.passed for row in rows),
        rows=rows,
        notes=notes,
    )


class _Side(NamedTuple):
    """What a path on the command line is."""

    path: Path
    name: str
    has_records: bool


def _open(path: Path) -> _Side:
    """Tell a run folder from a scorecard.

    Raises:
        BeyondError: It is neither.
    """
    from benchmark import runs

    if path.is_dir() and (path / runs.RUN_FILE).is_file():
        return _Side(path, runs.read_run(path).model.name, True)
    if path.is_file() and path.suffix in (".npy", ".csv", ".parquet", ".npz"):
        raise BeyondError(
            f"{path} is a file of predictions; make a run of it: beyond score --predictions {path} --out RUN"
        )
    if not path.exists():
        raise BeyondError(f"there is no {path}; name a run folder or a {SCORECARD_FILE}")
    return _Side(path, read_scorecard(path).model.name, False)


def _same_images(run: _Side, baseline: _Side) -> None:
    """Make sure that two scorecards are about the same images, so that a drop is not theirs.

    Raises:
        BeyondError: They are not.
    """
    cards = [read_scorecard(side.path) for side in (run, baseline)]
    if cards[0].images.fingerprint == cards[1].images.fingerprint:
        return
    if _fingerprints(run) & _fingerprints(baseline):
        return
    (here, there) = (f"{card.images.n:,} of {card.images.name}" for card in cards)
    raise BeyondError(
        f"the scorecards are about different images ({here}, {there}); score the run on the baseline's images"
    )


def _fingerprints(side: _Side) -> set[str]:
    """By what the images of a run or scorecard are known: its own fingerprint, and that of ids and labels."""
    from benchmark.records import iter_predictions

    found = {read_scorecard(side.path).images.fingerprint}
    if side.has_records:
        parts = list(iter_predictions(side.path))
        ids = np.concatenate([part.image_ids for part in parts])
        found.add(portable_fingerprint(ids, np.concatenate([part.original_labels for part in parts])))
    return found


class _Choice:
    """Which metrics to test and by how much each may be worse; remembers what was there."""

    def __init__(self, metrics: Sequence[str] | None, margins: Mapping[str, float]) -> None:
        self.metrics, self.margins = metrics, margins
        self.seen: set[str] = set()

    def takes(self, track: str, metric: str, there: Iterable[str]) -> bool:
        """Whether to test a metric; it is seen from then on."""
        self.seen.add(metric)
        if self.metrics is not None:
            return metric in self.metrics or "all" in self.metrics
        return is_accuracy(track, metric) and not (metric == "mla_plain" and "mla" in there)

    def margin(self, metric: str) -> float:
        """By how much it may be worse, as a fraction."""
        return self.margins.get(metric, self.margins.get("all", 0.0))

    def all_margins(self, track: str) -> dict[str, float]:
        """The margin of every metric of a track that could be there."""
        from benchmark.tracks import TRACKS

        names = {info.name for info in TRACKS[track].metrics} | set(self.margins)
        return {name: self.margin(name) for name in names if name != "all"}

    def check_all_seen(self) -> None:
        """Raise if something was named that both do not have: less than asked is no gate."""
        asked = [name for name in (*(self.metrics or ()), *self.margins) if name != "all"]
        unknown = [name for name in asked if name not in self.seen]
        if unknown:
            there = ", ".join(sorted(self.seen)) or "none"
            raise BeyondError(f"both do not have the metric {unknown[0]!r}; metrics to test: {there}")


def is_accuracy(track: str, metric: str) -> bool:
    """Whether a metric is tested when nobody says which: those with one verdict an image.

    The others (precision and recall, error reduction, estimates) are made of the same verdicts; testing them
    too would cost power through the correction and say nothing new.
    """
    if track == "rectified":
        if metric == "top1_evaluable":
            return False
        return metric in ("top1", "top5", "mla", "mla_plain") or metric.endswith("_accuracy")
    if track == "robustness":
        return metric in ("clean_accuracy", "robust_accuracy_original", "robust_accuracy_rectified")
    return True


def _paired(
    run: Path,
    baseline: Path,
    annotations: Sequence[str] | None,
    tracks: Sequence[str] | None,
    chosen: _Choice,
    notes: list[str],
) -> list[Finding]:
    """Every metric of both, on the images they share."""
    from benchmark import runs
    from benchmark.attack_records import has_attacks
    from benchmark.comparison import Difference, compare_attacks, compare_runs

    labels = runs.load_labels(annotations or runs.default_annotations(runs.read_run(baseline)))
    found: list[tuple[str, list[Difference]]] = []
    if tracks is None or "rectified" in tracks:
        a, b = (runs.rectified_result(path, labels=labels) for path in (run, baseline))
        comparison = compare_runs(
            a, b, name_a=str(run), name_b=str(baseline), margins=_expanded(chosen, labels)
        )
        found.append(("rectified", comparison.differences))
        if comparison.left_out_a or comparison.left_out_b:
            notes.append(
                f"Tested on the {comparison.n:,} images that both have; left out: {comparison.left_out_a:,} "
                f"of the run, {comparison.left_out_b:,} of the baseline."
            )
    if tracks is None or "robustness" in tracks:
        attacked = [has_attacks(path) for path in (run, baseline)]
        if all(attacked):
            results = [runs.robustness_result(path, labels) for path in (run, baseline)]
            one, two = results
            assert one is not None
            assert two is not None
            compared, why_not = compare_attacks(
                one, two, name_a=str(run), name_b=str(baseline), margins=chosen.all_margins("robustness")
            )
            if not compared:
                raise BeyondError(f"{why_not[0]} Give both the same --eps, --tier and --attack-ids.")
            found.append(("robustness", compared[0].differences))
        elif any(attacked):
            who = "run" if attacked[0] else "baseline"
            notes.append(f"Only the {who} was attacked, so robustness was not tested.")
    findings = []
    for track, differences in found:
        there = [difference.metric for difference in differences]
        for d in differences:
            if not chosen.takes(track, d.metric, there):
                continue
            findings.append(
                Finding(
                    track=track,
                    metric=d.metric,
                    run=d.a,
                    baseline=d.b,
                    difference=d.difference,
                    ci_low=d.ci_low,
                    ci_high=d.ci_high,
                    n=d.n,
                    margin=d.margin,
                    p_worse=d.p_lower,
                    p_within=d.p_within,
                    unit="fraction",
                    method=d.method,
                )
            )
            if d.unjudged:
                notes.append(
                    f"{d.metric}: {d.unjudged:,} unjudged answers could move it; the test allows any verdict."
                )
    return findings


def _expanded(chosen: _Choice, labels: Iterable[str]) -> dict[str, float]:
    from benchmark.tracks.rectified import accuracy_names

    names = accuracy_names(labels).values()
    return {**chosen.all_margins("rectified"), **{name: chosen.margin(name) for name in names}}


def _unpaired(
    run: Scorecard,
    baseline: Scorecard,
    tracks: Sequence[str] | None,
    chosen: _Choice,
    notes: list[str],
) -> list[Finding]:
    """Every metric of two scorecards, as if their images had nothing to do with each other.

    Raises:
        BeyondError: They are about other label sets, so that a drop might be theirs.
    """
    for source, revision in run.annotations.sources.items():
        other = baseline.annotations.sources.get(source)
        if other is not None and pinned(other) != pinned(revision):
            raise BeyondError(
                f"the label sets of {source} are {revision} for the run and {other} for the baseline; "
                "rescore one of them: beyond rescore RUN"
            )
    notes.append(
        "Unpaired: with a bare scorecard the same images cannot be compared one by one, so only larger "
        "drops can be seen. A run folder as --baseline makes it paired."
    )
    findings = []
    for track in _common_tracks(run, baseline, tracks, notes):
        one, two = run.tracks[track], baseline.tracks[track]
        if one.version != two.version:
            raise BeyondError(
                f"the {track} track has version {one.version} in the run and {two.version} in the baseline; "
                "rescore the baseline: beyond rescore RUN"
            )
        there = in_reading_order(track, one.metrics.keys() & two.metrics.keys())
        lost = [name for name in two.metrics if name not in one.metrics]
        if lost:
            notes.append(f"The run has no {', '.join(lost)}, which the baseline has; it was not tested.")
        for name in there:
            if not chosen.takes(track, name, there):
                continue
            if is_better_higher(track, name) is None:
                notes.append(f"{name} has no better direction, so it was not tested.")
                continue
            finding = _two_shares(track, name, one.metrics[name], two.metrics[name], chosen.margin(name))
            if finding is None:
                notes.append(f"{name} has no interval, so it was not tested.")
            else:
                findings.append(finding)
    return findings


def _common_tracks(
    run: Scorecard, baseline: Scorecard, tracks: Sequence[str] | None, notes: list[str]
) -> list[str]:
    common = [track for track in run.tracks if track in baseline.tracks]
    if tracks is not None:
        missing = [track for track in tracks if track not in common]
        if missing:
            raise BeyondError(f"both do not have the {missing[0]} track; they share: {', '.join(common)}")
        return list(tracks)
    lost = [track for track in baseline.tracks if track not in common]
    if lost:
        notes.append(f"The run has no {', '.join(lost)} track, which the baseline has; it was not tested.")
    return common


def _two_shares(track: str, name: str, run: Metric, baseline: Metric, margin: float) -> Finding | None:
    """One metric of two scorecards; None where it has no interval to go by.

    What is unjudged counts for the run when a drop is to be shown, and against it when one is to be ruled
    out.
    """
    best_run, worst_run = _or(run.upper, run.value), _or(run.lower, run.value)
    best_base, worst_base = _or(baseline.upper, baseline.value), _or(baseline.lower, baseline.value)
    if run.unit != baseline.unit or run.ci_low is None or baseline.ci_low is None:
        return None
    if run.ci_high is None or baseline.ci_high is None:
        return None
    if run.method in COUNTED and baseline.method in COUNTED and run.n and baseline.n:
        n, m = run.n, baseline.n

        def tails(a: float, b: float) -> statistics.Tails:
            return statistics.unpaired_tails(round(a * n), n, round(b * m), m, margin=margin)

        low = statistics.unpaired_difference(round(worst_run * n), n, round(best_base * m), m).low
        high = statistics.unpaired_difference(round(best_run * n), n, round(worst_base * m), m).high
        p_worse, p_within = tails(best_run, worst_base).lower, tails(worst_run, best_base).within
        method = "farrington-manning score, unpaired"
    else:
        # What is no count of images has its interval alone to go by, bounds and all.
        widths = [(card.ci_high or 0.0) - (card.ci_low or 0.0) for card in (run, baseline)]
        error = math.hypot(*widths) / (2 * statistics.Z95)
        sign = 1.0 if is_better_higher(track, name) else -1.0
        z = (sign * (run.value - baseline.value) + margin) / error if error else 0.0
        p_worse, p_within = special.ndtr(z), special.ndtr(-z)
        half = statistics.Z95 * error
        low, high = (np.asarray(run.value - baseline.value + side * half) for side in (-1, 1))
        method = "normal, from both intervals, unpaired"
    return Finding(
        track=track,
        metric=name,
        run=run.value,
        baseline=baseline.value,
        difference=run.value - baseline.value,
        ci_low=float(low),
        ci_high=float(high),
        n=run.n,
        margin=margin,
        p_worse=float(p_worse),
        p_within=float(p_within),
        unit=run.unit,
        method=method,
    )


def _or(value: float | None, other: float) -> float:
    return other if value is None else value


def is_better_higher(track: str, metric: str) -> bool | None:
    """Whether a higher value is better, by the registry of tracks; yes for what it does not know.

    None where neither direction is: such a metric can change, and cannot drop.
    """
    from benchmark.tracks import TRACKS

    try:
        return TRACKS[track].metric(metric).higher_is_better
    except (KeyError, BeyondError):
        return True


def _exact(
    run: Scorecard, baseline: Scorecard, tracks: Sequence[str] | None, metrics: Sequence[str] | None
) -> list[Row]:
    """Every metric of either scorecard: the same, or changed."""
    rows = []
    for track in sorted({*run.tracks, *baseline.tracks}):
        if tracks is not None and track not in tracks:
            continue
        one, two = (card.tracks[track].metrics if track in card.tracks else {} for card in (run, baseline))
        for name in in_reading_order(track, {*one, *two}):
            if metrics is not None and name not in metrics and "all" not in metrics:
                continue
            a, b = one.get(name), two.get(name)
            same = a is not None and b is not None and _same(a, b)
            rows.append(
                Row(
                    track=track,
                    metric=name,
                    run=a.value if a else None,
                    baseline=b.value if b else None,
                    difference=a.value - b.value if a and b else None,
                    n=a.n if a else 0,
                    unit=a.unit if a else b.unit if b else "fraction",
                    method="exact",
                    verdict="same" if same else "changed",
                    passed=same,
                )
            )
    if not rows:
        raise BeyondError("the two have no metric in common; name what to test with --metrics")
    return rows


def _same(a: Metric, b: Metric) -> bool:
    """Whether two metrics agree in every number but for rounding."""
    one, two = a.model_dump(), b.model_dump()
    return all(
        math.isclose(one[key], two[key], rel_tol=0, abs_tol=TOLERANCE)
        if isinstance(one[key], float) and isinstance(two[key], float)
        else one[key] == two[key]
        for key in one
    )
