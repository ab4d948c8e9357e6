"""From a study's answers to its results: exclusions, agreement, contrasts, and what they hold for.

`analyse` is a pure function: the same plan and answers give the same results to the last digit, whatever the
raters are called and in whatever order rows come.

Four measures, each a mean over answers:

* agreement: yes to what the model predicts, on the kinds of items that the plan names (adversarial ones);
* sham acceptance: yes to shams alone, the guard that shares no answer with agreement;
* over-acceptance: yes to a label that people reject, shams and labels that label sets reject;
* over-rejection: no to a label that people accept.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field

from annotations.errors import BeyondError
from annotations.study.analysis import Contrast, Responses, Share, compare_arms, gee, holm
from annotations.study.answers import StudyAnswers
from annotations.study.canonical import Canonical, Frozen
from annotations.study.preregistration import (
    ARMS,
    MADE_UP_NOTE,
    Analysis,
    Arm,
    Exclusions,
    Hypothesis,
    Measure,
    Preregistration,
    default_hypotheses,
)

VERSION: Literal[1] = 1
MEASURES: tuple[Measure, ...] = ("agreement", "sham_acceptance", "over_acceptance", "over_rejection")
FEW_RATERS = 10
"""With fewer raters in an arm, intervals are rough."""

_GROUP_RESAMPLES = 2_000
_BINS = 3

Reason = Literal[
    "attention",
    "few attention checks",
    "few answers",
    "fast rater",
    "fast answer",
    "slow answer",
]


class ArmShare(Frozen):
    """A measure in one arm; `value` is null where nobody answered, the ends where no interval can be told."""

    arm: Arm
    value: float | None
    low: float | None
    high: float | None
    raters: int = Field(ge=0)
    items: int = Field(ge=0, description="Images: items of one image are one.")
    answers: int = Field(ge=0)
    total: float = Field(ge=0, description="Sum behind the value: value = total / answers.")
    method: Literal["two-way bootstrap", "exact", "none"]


class Difference(Frozen):
    """A measure in one arm less that in another."""

    measure: Measure
    arm: Arm
    versus: Arm
    value: float
    low: float
    high: float
    method: str
    p: float | None = Field(description="Permutation of arms over raters, two-sided; null without a test.")
    p_holm: float | None = Field(
        description="Corrected over the hypotheses; null of a contrast that is none: exploratory."
    )
    hypothesis: str | None = Field(description="Its name in the plan.")


class Group(Frozen):
    """Agreement within some of the items. Descriptions: not corrected for how many there are."""

    name: str
    low_edge: float | None = None
    high_edge: float | None = None
    class_index: int | None = None
    shares: tuple[ArmShare, ...]
    differences: tuple[Difference, ...] = ()


class Excluded(Frozen):
    """What one rule left out of one arm."""

    reason: Reason
    arm: Arm
    raters: int
    answers: int


class Times(Frozen):
    """How long answers of the work took, in seconds."""

    arm: Arm
    answers: int
    lower_quartile: float
    median: float
    upper_quartile: float
    raters: int
    median_of_raters: float = Field(description="Median over raters of each one's median.")


class OddsRatio(Frozen):
    """Of one arm against the first, by generalised estimating equations."""

    arm: Arm
    versus: Arm
    log_odds: float
    low: float
    high: float
    p: float


class Results(Canonical):
    """Everything that the analysis of a study says. Shares and differences are fractions."""

    version: Literal[1] = VERSION
    title: str
    made_up: bool = Field(description="A program answered, for a test: never to be published.")
    preregistration: str | None = Field(description="SHA-256 of the plan; null if there was none.")
    pack: str | None = Field(description="SHA-256 of the pack's manifest; null if unknown.")
    analysis: Analysis
    exclusions: Exclusions
    hypotheses: tuple[Hypothesis, ...]
    arms: tuple[Arm, ...]
    planned_raters_per_arm: int | None
    raters: dict[Arm, int] = Field(description="Who answered in the work, before exclusions.")
    answers: int = Field(description="Answers of the work, before exclusions.")
    checks: int = Field(description="Answers to attention checks.")
    practice: int = Field(description="Answers in practice, never analysed.")
    maybe: dict[Arm, int] = Field(description="Answers maybe among those analysed.")
    excluded: tuple[Excluded, ...]
    measures: dict[Measure, tuple[ArmShare, ...]]
    contrasts: tuple[Difference, ...]
    odds_ratios: tuple[OddsRatio, ...]
    everyone: tuple[ArmShare, ...] = Field(description="Agreement had nobody been excluded.")
    by_kind: tuple[Group, ...]
    by_class: tuple[Group, ...]
    by_confidence: tuple[Group, ...]
    times: tuple[Times, ...]
    notes: tuple[str, ...]

    def share(self, arm: str, measure: Measure = "agreement") -> ArmShare:
        """A measure in one arm."""
        return next(share for share in self.measures[measure] if share.arm == arm)

    def contrast(self, arm: str, versus: str, measure: Measure = "agreement") -> Difference | None:
        """A contrast, None where it could not be computed."""
        return next(
            (c for c in self.contrasts if (c.measure, c.arm, c.versus) == (measure, arm, versus)), None
        )


def analyse(
    study: StudyAnswers,
    plan: Preregistration | None = None,
    *,
    title: str | None = None,
    descriptions: bool = True,
) -> Results:
    """Analyse a study as planned.

    Args:
        study: Items and answers.
        plan: The preregistration. Without one nobody is excluded, all contrasts of agreement are tested, and
            a note says that it was not preregistered.
        title: What to call it; by default the plan's title.
        descriptions: Also what is neither measure nor contrast: odds ratios, groups and times.

    Raises:
        BeyondError: There is no answer to analyse, or answers were given under another plan or pack.
    """
    notes = list(study.notes)
    packs = sorted(set(study.answers["pack"]) - {""})
    plans = sorted(set(study.answers["preregistration"]) - {""})
    _one_study(study.answers, packs, plans, plan)
    made_up = study.made_up or (plan is not None and plan.made_up)
    if made_up:
        notes.insert(0, f"These answers are {MADE_UP_NOTE}.")
    settings = plan.analysis if plan else Analysis.model_validate({})
    rules = plan.exclusions if plan else Exclusions(attention_floor=0.0, minimum_attention=0)
    if plan is None:
        notes.append("The analysis was not preregistered: read its p values as descriptions.")
    arms: tuple[Arm, ...] = plan.arms if plan else ARMS
    odd = sorted(set(study.answers["arm"]) - set(arms))
    if odd:
        raise BeyondError(f"there are answers in arm {odd[0]!r}, which the plan does not have")

    frame = study.answers.merge(study.items, on="item", how="left", validate="many_to_one")
    work = frame[frame["role"] == "work"].reset_index(drop=True)
    if not len(work):
        raise BeyondError("there is no answer to analyse yet; gather answers and run it again")
    kept, excluded = exclude(frame, rules, arms)
    everyone = _Table.of(work, settings, arms)
    table = _Table.of(kept, settings, arms)
    notes += _notes(table, everyone, plan, kept)

    hypotheses = plan.hypotheses if plan and plan.hypotheses else default_hypotheses(arms)
    measures: dict[Measure, tuple[ArmShare, ...]] = {}
    found: list[tuple[Measure, Contrast]] = []
    for measure in MEASURES:
        part = table.of_measure(measure, settings.kinds)
        shares, contrasts = part.compare(settings.resamples, settings.permutations, settings.seed)
        measures[measure] = shares
        found += [(measure, contrast) for contrast in contrasts]
    agreement = table.of_measure("agreement", settings.kinds)
    return Results(
        title=title or (plan.title if plan else "Explanation study"),
        made_up=made_up,
        preregistration=plan.sha256 if plan else None,
        pack=plan.pack_sha256 if plan else (packs[0] if packs else None),
        analysis=settings,
        exclusions=rules,
        hypotheses=hypotheses,
        arms=arms,
        planned_raters_per_arm=plan.raters_per_arm if plan else None,
        raters={arm: int(work.loc[work["arm"] == arm, "rater"].nunique()) for arm in arms},
        answers=len(work),
        checks=int((frame["role"] == "attention").sum()),
        practice=int((frame["role"] == "practice").sum()),
        maybe={arm: int(((kept["arm"] == arm) & (kept["answer"] == "maybe")).sum()) for arm in arms},
        excluded=excluded,
        measures=measures,
        contrasts=_differences(found, hypotheses, notes),
        odds_ratios=_odds_ratios(agreement, notes) if settings.gee and descriptions else (),
        everyone=everyone.of_measure("agreement", settings.kinds).compare(
            settings.resamples, 0, settings.seed
        )[0],
        by_kind=_by_kind(table, settings) if descriptions else (),
        by_class=_by_class(agreement, settings) if descriptions else (),
        by_confidence=_by_confidence(agreement, settings) if descriptions else (),
        times=_times(kept, arms) if descriptions else (),
        notes=tuple(dict.fromkeys(notes)),
    )


def _one_study(
    answers: pd.DataFrame, packs: Sequence[str], plans: Sequence[str], plan: Preregistration | None
) -> None:
    """Refuse answers that belong to several studies, or to another one.

    Raises:
        BeyondError: They do.
    """
    for what, column, seen, expected in (
        ("pack", "pack", packs, plan.pack_sha256 if plan else None),
        ("preregistration", "preregistration", plans, plan.sha256 if plan else None),
    ):
        if len(seen) > 1:
            counts = answers[column].value_counts()
            listed = ", ".join(f"{int(counts[name]):,} under {name[:12]}…" for name in seen)
            raise BeyondError(
                f"answers of {len(seen)} {what}s are mixed ({listed}); analyse each {what} in a folder "
                "of its own"
            )
        if seen and expected is not None and seen[0] != expected:
            raise BeyondError(
                f"answers were given under another {what} (sha256 {seen[0][:12]}…) than the one here "
                f"({expected[:12]}…); put the original back"
            )


def exclude(
    frame: pd.DataFrame, rules: Exclusions, arms: Sequence[Arm] = ARMS
) -> tuple[pd.DataFrame, tuple[Excluded, ...]]:
    """Answers of the work that the rules keep, and what each rule left out.

    Args:
        frame: Answers joined with their items (`ANSWERS` and `ITEMS`).
        rules: The rules. Raters first, by the first rule that they fail, then single answers.
        arms: In the order to report.

    Returns:
        The kept rows of the work, and counts by reason and arm, without those of nobody.
    """
    work = frame[frame["role"] == "work"]
    checks = frame[(frame["role"] == "attention") & (frame["expected"] != "")]
    right = np.where(checks["answer"] == "maybe", 0.5, (checks["answer"] == checks["expected"]).astype(float))
    by_rater = pd.DataFrame({"rater": checks["rater"].to_numpy(), "right": right}).groupby("rater")["right"]
    raters = pd.Index(sorted(set(work["rater"])))
    seen = by_rater.count().reindex(raters, fill_value=0)
    share = by_rater.mean().reindex(raters, fill_value=np.nan)
    number = work.groupby("rater")["item"].count().reindex(raters)
    median = work.groupby("rater")["seconds"].median().reindex(raters)
    # The first rule that a rater fails is the reason.
    failed: list[tuple[Reason, npt.NDArray[np.bool_]]] = [
        ("few attention checks", (seen < rules.minimum_attention).to_numpy()),
        ("attention", (share < rules.attention_floor).to_numpy()),
        ("few answers", (number < rules.minimum_answers).to_numpy()),
        ("fast rater", (median < rules.fast_median_seconds).to_numpy()),
    ]
    reason = pd.Series("", index=raters, dtype=object)
    for name, mask in reversed(failed):
        reason[mask] = name
    of_row = work["rater"].map(reason).to_numpy(dtype=object)
    seconds = work["seconds"].to_numpy()
    alone = of_row == ""
    of_row[alone & (seconds < rules.fast_answer_seconds)] = "fast answer"
    if rules.slow_answer_seconds is not None:
        of_row[alone & (seconds > rules.slow_answer_seconds)] = "slow answer"
    counts = []
    names: list[Reason] = [name for name, _ in failed] + ["fast answer", "slow answer"]
    for name in names:
        for arm in arms:
            rows = work[(of_row == name) & (work["arm"] == arm).to_numpy()]
            if len(rows):
                whole = name not in ("fast answer", "slow answer")
                counts.append(
                    Excluded(
                        reason=name,
                        arm=arm,
                        raters=int(rows["rater"].nunique()) if whole else 0,
                        answers=len(rows),
                    )
                )
    return work[of_row == ""].reset_index(drop=True), tuple(counts)


# ----------------------------------------------------------------------------------------- answers to numbers


@dataclass(frozen=True)
class _Table:
    """Answers as arrays: one row each, raters and images numbered in an order that names do not change."""

    frame: pd.DataFrame
    rater: npt.NDArray[np.intp]
    value: npt.NDArray[np.float64]
    arm: npt.NDArray[np.intp]
    arms: tuple[Arm, ...]
    settings: Analysis
    no: npt.NDArray[np.float64] = field(repr=False)

    @classmethod
    def of(cls, frame: pd.DataFrame, settings: Analysis, arms: tuple[Arm, ...]) -> _Table:
        """Of answers joined with items. `value` is yes; `no` is no; how maybe counts is in the settings."""
        maybe = {"no": 0.0, "half": 0.5, "missing": np.nan}[settings.maybe]
        answer = frame["answer"].to_numpy(dtype=object)
        yes = np.select([answer == "yes", answer == "maybe"], [1.0, maybe], 0.0)
        no = np.select([answer == "no", answer == "maybe"], [1.0, maybe], 0.0)
        order = _order_of_raters(frame, arms)
        row = {name: i for i, (name, _) in enumerate(order)}
        rater = np.array([row[name] for name in frame["rater"]], dtype=np.intp)
        return cls(frame, rater, yes, np.array([arm for _, arm in order], np.intp), arms, settings, no)

    def part(self, rows: npt.NDArray[np.bool_]) -> _Table:
        """Some of its answers; raters keep their numbers."""
        frame = self.frame[rows].reset_index(drop=True)
        return _Table(
            frame, self.rater[rows], self.value[rows], self.arm, self.arms, self.settings, self.no[rows]
        )

    def of_measure(self, measure: Measure, kinds: Sequence[str]) -> _Table:
        """The answers that a measure is a mean of, with what counts in it as value."""
        kind, verdict = self.frame["kind"].to_numpy(object), self.frame["verdict"].to_numpy(object)
        wrong = (kind == "sham") | (verdict == "rejected")
        if measure == "agreement":
            rows, value = np.isin(kind, list(kinds)), self.value
        elif measure == "sham_acceptance":
            rows, value = kind == "sham", self.value
        elif measure == "over_acceptance":
            rows, value = wrong, self.value
        else:
            rows, value = (verdict == "accepted") & ~wrong, self.no
        rows &= ~np.isnan(value)
        part = self.part(rows)
        return _Table(part.frame, part.rater, value[rows], part.arm, part.arms, part.settings, part.no)

    def responses(self) -> Responses:
        """For the analysis, clustered by rater and image."""
        images, item = np.unique(self.frame["image_id"].to_numpy(dtype=str), return_inverse=True)
        return Responses(
            self.rater, item.astype(np.intp), self.value, self.arm, len(images), self.arms, repeated=True
        )

    def compare(
        self, resamples: int, permutations: int, seed: int
    ) -> tuple[tuple[ArmShare, ...], tuple[Contrast, ...]]:
        """Shares of the arms and contrasts between them."""
        responses = self.responses()
        found = compare_arms(responses, resamples=resamples, permutations=permutations, seed=seed)
        totals = np.bincount(self.arm[self.rater], weights=self.value, minlength=len(self.arms))
        return (
            tuple(_arm_share(share, float(total)) for share, total in zip(found.shares, totals)),
            found.contrasts,
        )


def _order_of_raters(frame: pd.DataFrame, arms: Sequence[str]) -> list[tuple[str, int]]:
    """Raters with their arms, by arm and by what they answered: the same whatever they are called."""
    found = []
    for (rater, arm), rows in frame.groupby(["rater", "arm"], sort=False):
        said = sorted(zip(rows["item"], rows["answer"], rows["seconds"].map(repr), rows["position"]))
        digest = hashlib.sha256(repr(said).encode()).hexdigest()
        found.append((arms.index(str(arm)), digest, str(rater)))
    return [(rater, arm) for arm, _, rater in sorted(found)]


def _number(value: float) -> float | None:
    """Ten digits, which every machine agrees on; None for NaN."""
    return None if math.isnan(value) else round(value, 10)


def _arm_share(share: Share, total: float) -> ArmShare:
    return ArmShare.model_validate(
        {
            "arm": share.arm,
            "value": None if math.isnan(share.value) else total / share.answers,
            "low": _number(share.low),
            "high": _number(share.high),
            "raters": share.raters,
            "items": share.items,
            "answers": share.answers,
            "total": total,
            "method": share.method,
        }
    )


def _difference(
    measure: Measure,
    c: Contrast,
    p_holm: float | None = None,
    hypothesis: str | None = None,
    *,
    tested: bool = True,
) -> Difference:
    return Difference.model_validate(
        {
            "measure": measure,
            "arm": c.arm,
            "versus": c.versus,
            "value": _number(c.value),
            "low": _number(c.low),
            "high": _number(c.high),
            "method": c.method,
            "p": _number(c.p) if tested else None,
            "p_holm": p_holm,
            "hypothesis": hypothesis,
        }
    )


def _differences(
    found: Sequence[tuple[Measure, Contrast]], hypotheses: Sequence[Hypothesis], notes: list[str]
) -> tuple[Difference, ...]:
    """Contrasts, those of the hypotheses corrected together; a contrast the other way round is turned."""
    known = {(measure, c.arm, c.versus): c for measure, c in found}
    planned: dict[tuple[Measure, str, str], str] = {}
    for hypothesis in hypotheses:
        for key in (
            (hypothesis.measure, hypothesis.arm, hypothesis.versus),
            (hypothesis.measure, hypothesis.versus, hypothesis.arm),
        ):
            if key in known:
                planned[key] = hypothesis.name
                break
        else:
            notes.append(
                f"{hypothesis.name} ({hypothesis.arm} against {hypothesis.versus}) cannot be tested: "
                "each arm needs two raters and two images."
            )
    tested = [key for key in known if key in planned]
    # A hypothesis that could not be tested still counts, as one that was not found.
    missing = len(hypotheses) - len(tested)
    p = np.array([known[key].p for key in tested] + [1.0] * missing)
    corrected = dict(zip(tested, holm(p).tolist()))
    return tuple(
        _difference(key[0], c, _number(corrected[key]) if key in corrected else None, planned.get(key))
        for key, c in known.items()
    )


def _odds_ratios(table: _Table, notes: list[str]) -> tuple[OddsRatio, ...]:
    responses = table.responses()
    present = [arm for arm in range(len(table.arms)) if (table.arm[table.rater] == arm).any()]
    if len(present) < 2:
        return ()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = gee(responses)
    except BeyondError as error:
        notes.append(f"No generalised estimating equations: {error}.")
        return ()
    except (Warning, ValueError, ArithmeticError, np.linalg.LinAlgError):
        notes.append("No generalised estimating equations: they did not converge on so few answers.")
        return ()
    if not all(math.isfinite(number) for _, *numbers in found for number in numbers):
        notes.append("No generalised estimating equations: they did not converge on so few answers.")
        return ()
    return tuple(
        OddsRatio.model_validate(
            {
                "arm": arm,
                "versus": table.arms[present[0]],
                # Fitted by iteration: fewer digits are sure.
                "log_odds": round(value, 6),
                "low": round(low, 6),
                "high": round(high, 6),
                "p": round(p, 6),
            }
        )
        for arm, value, low, high, p in found
    )


# ----------------------------------------------------------------------------------------------- descriptions


def _group(table: _Table, settings: Analysis, name: str, *, measure: Measure = "agreement") -> Group:
    """One group of items: shares, and each later arm against the first, without tests."""
    resamples = min(settings.resamples, _GROUP_RESAMPLES)
    shares, contrasts = table.compare(resamples, 0, settings.seed)
    return Group(
        name=name,
        shares=shares,
        differences=tuple(
            _difference(measure, c, tested=False) for c in contrasts if c.versus == table.arms[0]
        ),
    )


def _by_kind(table: _Table, settings: Analysis) -> tuple[Group, ...]:
    """How often yes is said to each kind of item."""
    kinds = table.frame["kind"].to_numpy(dtype=object)
    known = ~np.isnan(table.value)
    return tuple(
        _group(table.part((kinds == kind) & known), settings, kind)
        for kind in ("adversarial", "clean", "sham")
        if ((kinds == kind) & known).any()
    )


def _by_class(table: _Table, settings: Analysis) -> tuple[Group, ...]:
    """By original label, or by the class shown where it is unknown."""
    from annotations.classes import class_names

    original = table.frame["original_label"].to_numpy()
    classes = np.where(original >= 0, original, table.frame["shown_class"].to_numpy())
    names = class_names()
    return tuple(
        _group(table.part(classes == c), settings, names[c] if c < len(names) else str(c)).model_copy(
            update={"class_index": c}
        )
        for c in sorted(set(classes[classes >= 0].tolist()))
    )


def _by_confidence(table: _Table, settings: Analysis) -> tuple[Group, ...]:
    """Thirds of the items, by the model's confidence in the class shown."""
    items = table.frame.drop_duplicates("item").dropna(subset=["confidence"])
    items = items.sort_values(["confidence", "item"], kind="stable")
    if len(items) < _BINS:
        return ()
    groups = []
    for k in range(_BINS):
        some = items.iloc[len(items) * k // _BINS : len(items) * (k + 1) // _BINS]
        rows = table.frame["item"].isin(some["item"]).to_numpy()
        name = ("low", "middle", "high")[k]
        groups.append(
            _group(table.part(rows), settings, name).model_copy(
                update={
                    "low_edge": float(some["confidence"].min()),
                    "high_edge": float(some["confidence"].max()),
                }
            )
        )
    return tuple(groups)


def _times(frame: pd.DataFrame, arms: Iterable[Arm]) -> tuple[Times, ...]:
    found = []
    for arm in arms:
        rows = frame[(frame["arm"] == arm) & frame["seconds"].notna()]
        if not len(rows):
            continue
        low, median, high = np.quantile(rows["seconds"], [0.25, 0.5, 0.75])
        of_raters = rows.groupby("rater")["seconds"].median()
        found.append(
            Times(
                arm=arm,
                answers=len(rows),
                lower_quartile=round(float(low), 6),
                median=round(float(median), 6),
                upper_quartile=round(float(high), 6),
                raters=len(of_raters),
                median_of_raters=round(float(of_raters.median()), 6),
            )
        )
    return tuple(found)


def _notes(table: _Table, everyone: _Table, plan: Preregistration | None, kept: pd.DataFrame) -> list[str]:
    """What a reader must know of who answered."""
    notes = []
    for number, arm in enumerate(table.arms):
        before = int((everyone.arm == number).sum())
        raters = int((table.arm == number).sum())
        if not before:
            notes.append(f"Nobody answered in the arm {arm}, so there is nothing to say about it.")
        elif not raters:
            notes.append(f"Everybody in the arm {arm} is excluded, so there is nothing to say about it.")
        elif raters == 1:
            notes.append(
                f"The arm {arm} has one rater: it has a share, and neither an interval nor a contrast."
            )
        elif raters < FEW_RATERS:
            notes.append(f"The arm {arm} has {raters} raters: from so few, intervals are rough.")
        if plan is not None and before and before != plan.raters_per_arm:
            wanted = plan.raters_per_arm
            notes.append(
                f"The arm {arm} has {before} of the {wanted} raters that were planned."
                if before < wanted
                else f"The arm {arm} has {before} raters, more than the {wanted} that were planned."
            )
    if len(kept):
        same = kept.groupby("rater")["answer"].agg(["nunique", "first", "count"])
        for answer in ("yes", "no", "maybe"):
            number = int(((same["nunique"] == 1) & (same["first"] == answer) & (same["count"] > 1)).sum())
            if number:
                who = "One rater" if number == 1 else f"{number} raters"
                notes.append(f"{who} answered {answer} to everything; the plan keeps them.")
    kinds = set(kept["kind"])
    missing = set(table.settings.kinds) - kinds
    notes += [f"There are no answers to {kind} items." for kind in sorted(missing)]
    if "sham" not in kinds and not (kept["verdict"] == "rejected").any():
        notes.append("No item shows a label that people reject, so over-acceptance is not measured.")
    if not ((kept["verdict"] == "accepted") & (kept["kind"] != "sham")).any():
        notes.append("No item shows a label that people accept, so over-rejection is not measured.")
    return notes
