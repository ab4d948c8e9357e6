"""What the rectified track's metrics and tables say, as typed rows ready to be shown.

Any table may be absent, empty or short: a sample of twenty images has few of them. What cannot be read is
left out, never shown as zero.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmark.report import names
from benchmark.report.text import number_cell, percent, text_cell
from benchmark.scorecard import Cell, Scorecard, Track

# Whose judgement the headline quotes, the first one there is: ReaL covers the most images by votes of people.
HEADLINE_ORDER = ("real", "consolidated", "mla", "sample")


@dataclass(frozen=True)
class ErrorChange:
    """Error against the single label and against people's label sets, on the same n images.

    Attributes:
        source: Name of the source on screen.
        n: Number of images.
        standard: Error against the single label, in [0, 1].
        rectified: Error against what people accept, in [0, 1].
        reduction: Relative reduction, 1 − rectified / standard; negative where the error grows.
        ci_low: Lower end of the reduction's 95 % interval, or None.
        ci_high: Upper end, or None.
    """

    source: str
    n: int
    standard: float
    rectified: float
    reduction: float | None
    ci_low: float | None
    ci_high: float | None


@dataclass(frozen=True)
class Headline:
    """The one sentence: people accept X % of the answers; the single label says Y %.

    Attributes:
        source_key: The source as in `--annotations`.
        source: Its name on screen.
        judges: Who judged, as the subject of a sentence.
        accepted: Share of answers that people accept, in [0, 1].
        ci_low: Lower end of its 95 % interval, or None.
        ci_high: Upper end, or None.
        single: Share that the single label calls right, on the same images, in [0, 1].
        n: Number of images.
        change: The same as errors, with the relative reduction, or None.
    """

    source_key: str
    source: str
    judges: str
    accepted: float
    ci_low: float | None
    ci_high: float | None
    single: float
    n: int
    change: ErrorChange | None


def change_sentence(change: ErrorChange | None) -> str:
    """What the headline says about the error; it claims a direction only where the interval allows it."""
    if change is None or change.reduction is None:
        return ""
    if change.ci_low is None or change.ci_high is None:
        size, interval = percent(abs(change.reduction)), ""
    elif change.ci_low <= 0 <= change.ci_high:
        return "Whether its error is smaller than it seems, these images cannot tell."
    else:
        ends = sorted((abs(change.ci_low), abs(change.ci_high)))
        size, interval = percent(abs(change.reduction)), f" ({percent(ends[0])}–{percent(ends[1])})"
    return (
        f"Its error is {size} %{interval} {'smaller' if change.reduction >= 0 else 'larger'} than it seems."
    )


@dataclass(frozen=True)
class MistakeKind:
    """One kind of answer that differs from the single label.

    Attributes:
        key: Name in the scorecard.
        label: Plain name.
        explanation: One line.
        n: Number of answers.
        share: Their share of all answers that differ, in [0, 1].
    """

    key: str
    label: str
    explanation: str
    n: int
    share: float


@dataclass(frozen=True)
class ClassGain:
    """Accuracy on one class, against the single label and against what people accept, in [0, 1]."""

    name: str
    n: int
    standard: float
    rectified: float


@dataclass(frozen=True)
class Confusion:
    """Answers `predicted` for images labelled `original` that people accept, and how many."""

    original: str
    predicted: str
    n: int


@dataclass(frozen=True)
class LabelSetQuality:
    """How well the first answers cover the whole label set, by source; shares in [0, 1] or None."""

    source: str
    n: int
    precision: float | None
    recall: float | None
    mean_average_precision: float | None


@dataclass(frozen=True)
class SourceCoverage:
    """How much one source of judgements covers; counts of images and pairs, a share in [0, 1] or None."""

    source: str
    about: str
    revision: str
    images: int | None
    evaluable: int | None
    accepted: int | None
    unsure: int | None
    rejected: int | None
    judged_share: float | None


# From what people accept to what nobody would. Keys are the track's; the order is that of the stacked bar.
MISTAKE_KINDS: dict[str, tuple[str, str]] = {
    "multi_label": ("Right too", "People accept the answer, so it is no mistake at all."),
    "unclear": ("Arguable", "People could not tell whether the answer applies."),
    "fine_grained": (
        "Near relative",
        "Rejected, but closely related to a class that people accept: two terriers.",
    ),
    "same_superclass": (
        "Same broad kind",
        "Rejected, but of the same broad kind as an accepted class: two dogs.",
    ),
    "co_occurrence": (
        "Usual company",
        "Rejected, but often seen together with an accepted class: paddle and canoe.",
    ),
    "severe": ("Plainly wrong", "Rejected, and none of the above explains it."),
    "unjudged": (
        "Not judged",
        "No one has judged this answer, or nothing in the image is accepted: it counts neither way.",
    ),
}


def error_changes(track: Track) -> list[ErrorChange]:
    """Rows of `standard_vs_rectified` that hold both errors."""
    rows = []
    for row in track.tables.get("standard_vs_rectified", []):
        change = _error_change(row)
        if change is not None:
            rows.append(change)
    return rows


def _error_change(row: dict[str, Cell]) -> ErrorChange | None:
    standard, rectified, n = (number_cell(row, key) for key in ("standard_error", "rectified_error", "n"))
    if standard is None or rectified is None or not n:
        return None
    return ErrorChange(
        source=names.source_name(text_cell(row, "source")).label,
        n=int(n),
        standard=standard,
        rectified=rectified,
        reduction=number_cell(row, "reduction"),
        ci_low=number_cell(row, "ci_low"),
        ci_high=number_cell(row, "ci_high"),
    )


def headline(scorecard: Scorecard) -> Headline | None:
    """The headline of a scorecard, or None if it holds no source that compares both on the same images."""
    track = scorecard.tracks.get("rectified")
    if track is None:
        return None
    rows = {text_cell(row, "source"): row for row in track.tables.get("standard_vs_rectified", [])}
    keys = [key for key in HEADLINE_ORDER if key in rows] + [key for key in rows if key not in HEADLINE_ORDER]
    for key in keys:
        change = _error_change(rows[key])
        if change is None:
            continue
        metric = track.metrics.get(f"{key}_accuracy")
        # The interval is quoted only if it belongs to the very same share.
        same = (
            metric is not None and metric.n == change.n and abs(metric.value - (1 - change.rectified)) < 5e-4
        )
        return Headline(
            source_key=key,
            source=change.source,
            judges=names.source_name(key).judges,
            accepted=1 - change.rectified,
            ci_low=metric.ci_low if metric and same else None,
            ci_high=metric.ci_high if metric and same else None,
            single=1 - change.standard,
            n=change.n,
            change=change,
        )
    accepted, single = track.metrics.get("real_accuracy"), track.metrics.get("top1_evaluable")
    if accepted is None or single is None or accepted.n != single.n or not accepted.n:
        return None
    return Headline(
        source_key="real",
        source=names.source_name("real").label,
        judges=names.source_name("real").judges,
        accepted=accepted.value,
        ci_low=accepted.ci_low,
        ci_high=accepted.ci_high,
        single=single.value,
        n=accepted.n,
        change=None,
    )


def mistake_kinds(track: Track) -> list[MistakeKind]:
    """Rows of `anatomy` in the order of MISTAKE_KINDS, without empty kinds; unknown kinds come last."""
    found = {}
    for row in track.tables.get("anatomy", []):
        key, n = text_cell(row, "category"), number_cell(row, "n")
        if key and n:
            found[key] = int(n)
    total = sum(found.values())
    order = [key for key in MISTAKE_KINDS if key in found] + [
        key for key in found if key not in MISTAKE_KINDS
    ]
    return [
        MistakeKind(
            key,
            *MISTAKE_KINDS.get(key, (key.replace("_", " ").capitalize(), "")),
            found[key],
            found[key] / total,
        )
        for key in order
    ]


def class_gains(track: Track, *, limit: int) -> list[ClassGain]:
    """The first `limit` rows of `most_rectified_classes` that gain anything."""
    rows = []
    for row in track.tables.get("most_rectified_classes", []):
        standard, rectified = number_cell(row, "standard"), number_cell(row, "rectified")
        if standard is not None and rectified is not None and rectified > standard:
            rows.append(
                ClassGain(text_cell(row, "name"), int(number_cell(row, "n") or 0), standard, rectified)
            )
    return rows[:limit]


def confusions(track: Track, *, limit: int) -> list[Confusion]:
    """The first `limit` rows of `accepted_confusions`."""
    rows = [
        Confusion(text_cell(row, "original"), text_cell(row, "predicted"), int(number_cell(row, "n") or 0))
        for row in track.tables.get("accepted_confusions", [])
    ]
    return [row for row in rows if row.n > 0][:limit]


def label_set_quality(track: Track) -> list[LabelSetQuality]:
    """Rows of `multilabel_quality`."""
    return [
        LabelSetQuality(
            names.source_name(text_cell(row, "source")).label,
            int(number_cell(row, "n") or 0),
            number_cell(row, "precision"),
            number_cell(row, "recall"),
            number_cell(row, "mean_average_precision"),
        )
        for row in track.tables.get("multilabel_quality", [])
        if number_cell(row, "n")
    ]


def _count(row: dict[str, Cell], key: str) -> int | None:
    number = number_cell(row, key)
    return None if number is None else int(number)


def source_coverage(track: Track) -> list[SourceCoverage]:
    """Rows of `sources`."""
    rows = []
    for row in track.tables.get("sources", []):
        key = text_cell(row, "source")
        rows.append(
            SourceCoverage(
                source=names.source_name(key).label,
                about=names.source_name(key).about,
                revision=text_cell(row, "revision"),
                images=_count(row, "images"),
                evaluable=_count(row, "evaluable"),
                accepted=_count(row, "accepted"),
                unsure=_count(row, "unsure"),
                rejected=_count(row, "rejected"),
                judged_share=number_cell(row, "judged_share"),
            )
        )
    return rows
