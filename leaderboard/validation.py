"""Whether entries are what they claim to be.

What can be checked depends on what is here. From the entry alone: its form, hashes and arithmetic. From its
bits and the masks of this repository: every share and its interval, to the last digit. From its records:
every number. The report says for each entry which it was. Nothing that was submitted is executed.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from annotations.classes import NUM_VALIDATION_IMAGES, original_labels, validation_labels
from annotations.errors import BeyondError
from annotations.judgements import LabelSets, Verdict
from annotations.study.preregistration import MADE_UP_NOTE
from benchmark import statistics
from benchmark.agreement import has_agreement, is_made_up, read_agreement
from benchmark.scorecard import SCORECARD_FILE, Metric, Track
from benchmark.tracks import TRACKS
from leaderboard.correctness import TOP1, Bools, Correctness
from leaderboard.entries import (
    CORRECT_FILE,
    ENTRIES_FOLDER,
    Entry,
    check_text,
    entry_folders,
    read_entry,
    read_limited,
)
from leaderboard.masks import evaluable, full_fingerprint, label_sets, pinned
from leaderboard.ranking import compare_all
from leaderboard.records import find_records

if TYPE_CHECKING:
    from benchmark.tracks.rectified import Answers

Level = Literal["error", "warning", "note"]
Basis = Literal["records", "bits", "form"]

NEARLY_THE_SAME = 0.001
"""Share of images below which two models' right answers are suspiciously alike."""

MIN_FINGERPRINT = 1000
"""Fewest images on which equal right answers mean the same model."""

METHODS = {
    "top1": "wilson",
    "top5": "wilson",
    "top1_evaluable": "wilson",
    "mla": "stratified wilson",
    "mla_plain": "wilson",
    "mla_ppi": "ppi++",
    "rectified_error_reduction": "paired score",
    "precision_at_k": "effective wilson",
    "recall_at_k": "effective wilson",
    "mean_average_precision": "effective wilson",
    "hidden_robustness": "paired score",
    "clean_accuracy": "wilson",
    "robust_accuracy_original": "wilson",
    "robust_accuracy_rectified": "wilson",
    "adversarial_acceptance": "wilson",
}
"""How each metric's interval is made; accuracies by source are Wilson's."""

AGREEMENT_METHODS = {"two-way bootstrap", "exact", "hybrid score"}
"""How intervals of what people answered in a study are made."""

BOUNDS = ", imbens-manski"
GAINS = ("agreement_gain_feature", "agreement_gain_example")
MAY_BE_NEGATIVE = {"rectified_error_reduction", "hidden_robustness", *GAINS}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or worth knowing.

    Attributes:
        slug: The entry's folder.
        level: `error` fails the check, `warning` needs a person, `note` says what could not be checked.
        message: One line: what, and what to do where that is not plain.
    """

    slug: str
    level: Level
    message: str


@dataclass
class Checked:
    """One entry and what was found.

    Attributes:
        slug: The entry's folder.
        status: Its status, or `unreadable`.
        basis: What its numbers were compared with.
        findings: What is wrong or worth knowing.
    """

    slug: str
    status: str = "unreadable"
    basis: Basis = "form"
    findings: list[Finding] = field(default_factory=list)

    def add(self, level: Level, message: str) -> None:
        """Note a finding."""
        self.findings.append(Finding(self.slug, level, message))


@dataclass(frozen=True)
class Report:
    """What a validation found."""

    entries: list[Checked]

    @property
    def findings(self) -> list[Finding]:
        """All findings, by entry."""
        return [finding for checked in self.entries for finding in checked.findings]

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not any(finding.level == "error" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """The report for other programs."""
        return {"passed": self.passed, "entries": [asdict(checked) for checked in self.entries]}


def validate(
    folder: Path = ENTRIES_FOLDER,
    names: Sequence[str] = (),
    *,
    records: Path | None = None,
    hub: bool = False,
    submission: bool = False,
    today: date | None = None,
) -> Report:
    """Check entries.

    Args:
        folder: The folder of entries.
        names: Slugs, or paths of entry folders; none means all of `folder`.
        records: Where records of kind `file` lie.
        hub: Whether to download records of kind `hub`.
        submission: Whether the named entries are new and must be as a submission is.
        today: For tests; by default the date.

    Raises:
        BeyondError: The folder or a named entry does not exist.
    """
    from benchmark.progress import meter

    paths = {path.name: path for path in entry_folders(folder)}
    wanted = [_named(name, paths) for name in names] or list(paths.values())
    for path in wanted:
        paths.setdefault(path.name, path)
    entries: dict[str, Entry] = {}
    unreadable: dict[str, str] = {}
    for slug, path in paths.items():
        try:
            entries[slug] = read_entry(path)
        except BeyondError as error:
            unreadable[slug] = str(error)

    labels = _Labels()
    report = Report([Checked(path.name) for path in wanted])
    with meter("Checking", len(wanted), unit="entries") as progress:
        for checked in report.entries:
            if checked.slug in unreadable:
                checked.add("error", unreadable[checked.slug])
            else:
                entry = entries[checked.slug]
                checked.status = entry.info.status
                _check(entry, checked, records=records, hub=hub, labels=labels)
                _check_life(entry, checked, entries, today or date.today())
                if submission:
                    _check_submission(entry, checked)
            progress.advance(1)
    by_slug = {checked.slug: checked for checked in report.entries}
    for slug, level, message in _duplicates(list(entries.values())):
        if slug in by_slug:
            by_slug[slug].add(level, message)
    return report


def _named(name: str, paths: Mapping[str, Path]) -> Path:
    if name in paths:
        return paths[name]
    path = Path(name)
    if path.is_dir():
        return path.resolve() if path.name in ("", ".", "..") else path
    import difflib

    near = difflib.get_close_matches(name, paths, n=1)
    raise BeyondError(f"no entry {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


def _check(entry: Entry, checked: Checked, *, records: Path | None, hub: bool, labels: _Labels) -> None:
    """Everything about one entry that needs no other entry."""
    for problem in _text_problems(entry.scorecard.model_dump(mode="python"), "scorecard"):
        checked.add("error", problem)
    try:
        text = entry.scorecard.to_json().encode()
    except (
        ValueError
    ) as error:  # a number that is none, or half a character, where the schema allows anything
        checked.add("error", f"{SCORECARD_FILE} holds what JSON cannot: {error}")
        return
    if hashlib.sha256(text).hexdigest() != entry.info.sha256.scorecard:
        checked.add("error", f"{SCORECARD_FILE} is not in beyond's own form; write it with beyond submit")
    _check_scope(entry, checked)
    for name, track in entry.scorecard.tracks.items():
        _check_track(name, track, entry, checked)
    if not entry.scorecard.tracks:
        checked.add("error", "the scorecard has no track; score the run first")
    bits = _check_bits(entry, labels, checked)
    if entry.info.records.kind == "none" and _has_agreement(entry):
        checked.add("error", "agreement needs the answers themselves; publish its records with them")
    if entry.info.records.kind == "none" and entry.info.status != "self-reported":
        checked.add(
            "error", f"status {entry.info.status} needs records that others can read; this entry has none"
        )
    try:
        found = find_records(entry.info.records, folder=records, online=hub)
    except BeyondError as error:
        checked.add("error", str(error))
        return
    if found is not None:
        checked.basis = "records"
        _check_records(entry, found, bits, labels, checked)
    elif (records is not None and entry.info.records.kind == "file") or (
        hub and entry.info.records.kind == "hub"
    ):
        checked.add(
            "warning", f"its records ({entry.info.records.path}) are not here; nothing was recomputed"
        )


def _has_agreement(entry: Entry) -> bool:
    track = entry.scorecard.tracks.get("robustness")
    return track is not None and any(key.startswith("agreement_") for key in track.metrics)


# --------------------------------------------------------------------------------------- form and arithmetic


def _text_problems(data: Any, where: str) -> Iterator[str]:
    """Texts anywhere in a scorecard that are not plain; the first of each part."""
    if isinstance(data, str):
        try:
            check_text(data)
        except ValueError as error:
            yield f"{where}: text {error}"
    elif isinstance(data, Mapping):
        for key, value in data.items():
            yield from itertools.islice(_text_problems(key, where), 1)
            yield from itertools.islice(_text_problems(value, f"{where}.{key}"[:80]), 1)
    elif isinstance(data, Sequence):
        for value in data:
            yield from itertools.islice(_text_problems(value, where), 1)


def _check_scope(entry: Entry, checked: Checked) -> None:
    images, full = entry.scorecard.images, entry.info.scope == "full"
    if full and (images.n != NUM_VALIDATION_IMAGES or images.sample or images.skipped):
        checked.add("error", f"scope full needs all 50,000 images; the scorecard has {images.n:,}")
    if full and images.fingerprint != full_fingerprint():
        checked.add("error", "the scorecard's images are not the 50,000 validation images with their labels")
    if not full and not images.sample:
        checked.add("error", "scope sample, but the scorecard says that it is over all images")


def _check_track(name: str, track: Track, entry: Entry, checked: Checked) -> None:
    info = TRACKS.get(name)
    if info is None:
        checked.add("error", f"no such track: {name!r}; this beyond knows {', '.join(TRACKS)}")
        return
    if track.version > info.version:
        checked.add(
            "error", f"{name}: version {track.version} of the track is newer than this beyond; update it"
        )
    elif track.version < info.version:
        checked.add("warning", f"{name}: version {track.version} of the track is old; rescore the run")
    for key, metric in track.metrics.items():
        where = key if name == "rectified" else f"{name}.{key}"
        try:
            info.metric(key)
        except BeyondError:
            checked.add("error", f"{where}: the track has no such metric")
            continue
        for problem in metric_problems(key, metric, entry.scorecard.images.n):
            checked.add("error", f"{where}: {problem}")
    for table in track.tables:
        if table not in info.tables:
            checked.add("error", f"{name}: the track has no table {table!r}")
    for problem in _relations(track):
        checked.add("error", problem)


def metric_problems(key: str, metric: Metric, images: int) -> Iterator[str]:
    """What is wrong with one metric by itself.

    Args:
        key: Its name.
        metric: It.
        images: Images with a record.
    """
    value, low, high = metric.value, metric.ci_low, metric.ci_high
    if metric.n > images:
        yield f"n is {metric.n:,}, but only {images:,} images have a record"
    if (low is None) != (high is None):
        yield "only one end of the interval is given"
    if low is not None and high is not None and not low - 1e-12 <= value <= high + 1e-12:
        yield f"value {value:.6g} is outside its interval {low:.6g} to {high:.6g}"
    if metric.lower is not None and metric.upper is not None:
        if not metric.lower - 1e-12 <= value <= metric.upper + 1e-12:
            yield f"value {value:.6g} is outside its bounds {metric.lower:.6g} to {metric.upper:.6g}"
    elif metric.lower is not None or metric.upper is not None:
        yield "only one of the bounds is given"
    if metric.judged is not None and metric.judged > metric.n:
        yield f"{metric.judged:,} judged of {metric.n:,}"
    if metric.unit != "fraction":
        return
    least = -math.inf if key in MAY_BE_NEGATIVE else 0.0
    ends = (value, low, high, metric.lower, metric.upper)
    if any(end is not None and not least <= end <= 1 for end in ends):
        yield "a share must lie between 0 and 1"
        return
    if key.startswith("agreement_"):
        yield from _answer_problems(metric)
        return
    if metric.raters is not None:
        yield "it is no share of answers, so it has no raters"
    method = METHODS.get(key, "wilson" if key.endswith("_accuracy") else None)
    if method is not None and metric.method not in (method, method + BOUNDS):
        yield f"its interval is made by {metric.method!r}; this metric's is by {method!r}"
    elif low is None:
        yield "it has no interval"
    elif method == "wilson":
        yield from _wilson_problems(metric)


def _answer_problems(metric: Metric) -> Iterator[str]:
    """What is wrong with a share of people's answers by itself."""
    if metric.method not in AGREEMENT_METHODS:
        known = ", ".join(sorted(AGREEMENT_METHODS))
        yield f"its interval is made by {metric.method!r}, not by one of {known}"
    elif metric.ci_low is None:
        yield "it has no interval"
    if metric.raters is None or metric.raters < 2:
        yield "it needs the answers of at least two raters"


def _wilson_problems(metric: Metric) -> Iterator[str]:
    """Compare a share of whole images with its value and interval computed again."""
    if not metric.n:
        yield "it is a share of no images"
        return
    hits = round(metric.value * metric.n)
    if hits / metric.n != metric.value:
        yield f"{metric.value!r} is not a whole number of {metric.n:,} images"
        return
    open_answers = 0
    if metric.method.endswith(BOUNDS):
        if metric.judged is None or metric.lower is None or metric.upper is None:
            yield "bounds and the number judged must be given"
            return
        open_answers = metric.n - metric.judged
        if metric.lower != metric.value or metric.upper != (hits + open_answers) / metric.n:
            yield f"its bounds do not follow from {open_answers:,} unjudged of {metric.n:,}"
            return
    estimates = (
        statistics.share_estimate(hits, metric.n),
        statistics.share_estimate(hits + open_answers, metric.n),
    )
    interval = statistics.bounded(*estimates) if open_answers else statistics.wilson(hits, metric.n)
    for end, stated, found in (("low", metric.ci_low, interval.low), ("high", metric.ci_high, interval.high)):
        if stated is None or not _same(stated, float(found)):
            yield f"ci_{end} is {stated}, but {metric.method} gives {float(found):.9g} for {hits:,}"


def _relations(track: Track) -> Iterator[str]:
    """Relations between metrics and tables that hold for every classifier."""
    m = track.metrics
    for small, large in (
        ("top1", "top5"),
        ("robust_accuracy_original", "clean_accuracy"),
    ):
        if small in m and large in m:
            if m[small].value > m[large].value:
                yield f"{small} is above {large}, which cannot be"
            if m[small].n != m[large].n:
                yield f"{small} is over {m[small].n:,} images and {large} over {m[large].n:,}"
    for one, other in (
        ("top1_evaluable", "real_accuracy"),
        ("mla", "mla_plain"),
        ("recall_at_k", "precision_at_k"),
    ):
        if one in m and other in m and m[one].n != m[other].n:
            yield f"{one} is over {m[one].n:,} images, {other} over {m[other].n:,}; they must be the same"
    if (
        "recall_at_k" in m
        and "precision_at_k" in m
        and not _same(m["recall_at_k"].value, m["precision_at_k"].value)
    ):
        yield "precision and recall at |label set| have one value, by definition"
    if {"rectified_error_reduction", "real_accuracy", "top1_evaluable"} <= set(m) and m[
        "top1_evaluable"
    ].value < 1:
        found = 1 - (1 - m["real_accuracy"].value) / (1 - m["top1_evaluable"].value)
        if not _same(found, m["rectified_error_reduction"].value, 1e-9):
            yield f"rectified_error_reduction does not follow from both accuracies ({found:.9g})"
    yield from _agreement_relations(track)
    anatomy = track.tables.get("anatomy")
    if anatomy and "top1" in m:
        counts = [row.get("n") for row in anatomy]
        mistakes = m["top1"].n - round(m["top1"].value * m["top1"].n)
        if (
            not all(isinstance(n, int) for n in counts)
            or sum(n for n in counts if isinstance(n, int)) != mistakes
        ):
            yield f"the anatomy's counts do not add up to the {mistakes:,} answers that differ"


def _agreement_relations(track: Track) -> Iterator[str]:
    """Whether agreement is what people answered, and its numbers follow from the table of answers."""
    tables = {name: track.tables.get(name, []) for name in ("agreement", "agreement_contrasts")}
    studies = track.tables.get("agreement_study", [])
    stated = {key: metric for key, metric in track.metrics.items() if key.startswith("agreement_")}
    if not (stated or studies or any(tables.values())):
        return
    if is_made_up(track.tables):
        yield f"its agreement is {MADE_UP_NOTE}"
        return
    if len(studies) != 1:
        yield f"agreement comes from one study, and {len(studies)} are described"
        return
    arms = {row.get("arm"): row for row in tables["agreement"] if row.get("measure") == "agreement"}
    gains = {
        row.get("arm"): row
        for row in tables["agreement_contrasts"]
        if (row.get("measure"), row.get("versus")) == ("agreement", "none")
    }
    for row in tables["agreement"]:
        total, answers, value = (row.get(name) for name in ("total", "answers", "value"))
        numbers = [x for x in (total, answers, value) if isinstance(x, int | float)]
        if len(numbers) < 3 or numbers[1] <= 0 or not _same(numbers[0] / numbers[1], numbers[2]):
            yield f"agreement of arm {row.get('arm')!r}: {value} is not {total} of {answers} answers"
    for key, metric in stated.items():
        gain = key.startswith("agreement_gain_")
        found = (gains if gain else arms).get(key.removeprefix("agreement_gain_" if gain else "agreement_"))
        if found is None or not all(
            isinstance(cell := found.get(name), int | float) and number is not None and _same(cell, number)
            for name, number in (
                ("value", metric.value),
                ("ci_low", metric.ci_low),
                ("ci_high", metric.ci_high),
            )
        ):
            yield f"{key} is not what the table of its study says"
        if gain:
            one, other = stated.get(key.replace("gain_", "")), stated.get("agreement_none")
            if one is None or other is None or not _same(one.value - other.value, metric.value, 1e-9):
                yield f"{key} does not follow from agreement with and without explanation"
        elif found is not None and (found.get("raters"), found.get("images")) != (metric.raters, metric.n):
            yield f"{key} is of other raters or images than the table of its study says"


def _same(a: float, b: float, tolerance: float = 1e-10) -> bool:
    return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)


# ------------------------------------------------------------------------------------------------------ bits


def _check_bits(entry: Entry, labels: _Labels, checked: Checked) -> Correctness | None:
    """Compare the bits with their hash, the masks and the scorecard."""
    stated = entry.info.sha256.correct
    if stated is None:
        checked.add("note", f"no {CORRECT_FILE}: it is listed without a rank")
        return None
    try:
        if hashlib.sha256(read_limited(entry.folder / CORRECT_FILE)).hexdigest() != stated:
            checked.add("error", f"{CORRECT_FILE} is not the file whose sha256 entry.yaml states")
            return None
        bits = entry.correctness
    except BeyondError as error:
        checked.add("error", str(error))
        return None
    if bits is None:
        return None
    if bits.full != (entry.info.scope == "full") or len(bits) != entry.scorecard.images.n:
        checked.add(
            "error",
            f"{CORRECT_FILE} is about {len(bits):,} images, which is not what scorecard and scope say",
        )
        return None
    if bits.annotations != entry.scorecard.annotations.sources:
        checked.add("error", f"{CORRECT_FILE} and the scorecard were made against different annotations")
        return None
    if not bits.full:
        for problem in itertools.islice(_text_problems(bits.image_ids.tolist(), CORRECT_FILE), 1):
            checked.add("error", problem)
    track = entry.scorecard.tracks.get("rectified")
    if track is None:
        return bits
    original = _original_labels(bits, labels)
    if (bits.right(TOP1) & (original < 0)).any():
        checked.add("note", f"{CORRECT_FILE} was not compared: the labels of its images are not here")
        return bits
    answers = {}
    for source in bits.sources:
        revision = bits.annotations[source]
        mask = evaluable(bits, source)
        if mask is None:
            mask = evaluable(bits, source, labels.get(source, revision))
        if mask is None:
            checked.add("note", f"{source} at {revision} is not here; its bits were not compared")
            continue
        right, opened = bits.right(source), bits.unjudged(source)
        if (right & ~mask).any() or (opened & (~mask | right)).any():
            checked.add(
                "error",
                f"{CORRECT_FILE}: {source} cannot evaluate some images that it calls right or unjudged",
            )
            continue
        answers[source] = answers_of(mask, right, opened)
    from benchmark.tracks.rectified import score_verdicts

    if answers or not bits.sources:
        checked.basis = "bits"
    metrics, tables = score_verdicts(bits.image_ids, original, bits.right(TOP1), answers)
    found = _known_part(Track(version=track.version, metrics=metrics, tables=tables), answers, bits.sources)
    for problem in track_differences(track, found, partial=True):
        checked.add("error", f"{CORRECT_FILE} says otherwise: {problem}")
    return bits


def _known_part(track: Track, known: Collection[str], sources: Collection[str]) -> Track:
    """What of a recomputed track holds although only some of its sources are known.

    With all of them it is everything. Without some, what depends on which sources there are (the error
    reduction, the tables, multi-label quality) is left out.
    """
    if set(known) == set(sources):
        return track
    from benchmark.tracks.rectified import accuracy_names

    names = {"top1", "top5", *accuracy_names(known).values()}
    names |= {"top1_evaluable"} if "real" in known else set()
    names |= {"mla", "mla_plain"} if "mla" in known else set()
    names |= {"mla_ppi"} if {"mla", "real"} <= set(known) else set()
    return Track(version=track.version, metrics={k: m for k, m in track.metrics.items() if k in names})


def _original_labels(bits: Correctness, labels: _Labels) -> npt.NDArray[np.int16]:
    """Original labels: those of the validation set, and elsewhere those that a source gives; −1 unknown."""
    found = original_labels(bits.image_ids) if not bits.full else validation_labels()
    for source, revision in bits.annotations.items():
        if (found >= 0).all():
            break
        sets = labels.get(source, revision)
        if sets is not None and len(sets):
            rows = sets.rows(bits.image_ids)
            given = np.where(rows >= 0, sets.original_labels[rows], -1)
            found = np.where(found >= 0, found, given).astype(np.int16)
    return found


def answers_of(mask: Bools, right: Bools, opened: Bools) -> Answers:
    """Answers as the rectified track has them, from bits; only what `score_verdicts` uses is there.

    Args:
        mask: bool (N,), images that the source can evaluate.
        right: bool (N,), its verdict on the top-1 prediction counts as right.
        opened: bool (N,), nobody judged the prediction.
    """
    from benchmark.tracks.rectified import Answers

    verdict = np.where(right, Verdict.ACCEPTED, np.where(opened, Verdict.UNJUDGED, Verdict.REJECTED))
    none = np.zeros(len(mask), dtype=np.int16)
    return Answers(
        known=mask,
        evaluable=mask,
        verdict=np.where(mask, verdict, Verdict.UNJUDGED).astype(np.int8),
        size=none,
        hits=none,
        unjudged=none,
        average_precision=None,
    )


def track_differences(stated: Track, found: Track, *, partial: bool = False) -> Iterator[str]:
    """How a track's numbers differ from what was computed again; floats may differ by 1e-9.

    Args:
        stated: What the scorecard says.
        found: What was computed.
        partial: Whether `found` holds only some of the metrics and tables.
    """
    for key in sorted(stated.metrics.keys() | found.metrics.keys()):
        if key not in found.metrics:
            if not partial:
                yield f"{key} cannot be computed from the records"
        elif key not in stated.metrics:
            yield f"{key} is left out ({found.metrics[key].value:.6g})"
        else:
            yield from _cell_differences(
                key, stated.metrics[key].model_dump(), found.metrics[key].model_dump(), tolerance=1e-9
            )
    for name in sorted(stated.tables.keys() | found.tables.keys()):
        if name not in found.tables:
            if not partial:
                yield f"table {name} cannot be computed from the records"
            continue
        rows, again = stated.tables.get(name), found.tables[name]
        if rows is None or len(rows) != len(again):
            yield f"table {name} has {len(rows or [])} rows instead of {len(again)}"
            continue
        for number, (row, other) in enumerate(zip(rows, again)):
            difference = next(
                _cell_differences(f"table {name}, row {number + 1}", row, other, tolerance=1e-9), None
            )
            if difference is not None:
                yield difference
                break


def _cell_differences(
    where: str, stated: Mapping[str, Any], found: Mapping[str, Any], *, tolerance: float
) -> Iterator[str]:
    for key in sorted({*stated, *found}):
        a, b = stated.get(key), found.get(key)
        if isinstance(a, float | int) and isinstance(b, float | int) and not isinstance(a, bool):
            if _same(float(a), float(b), tolerance):
                continue
            yield f"{where}: {key} is {a:.9g} in the scorecard, {b:.9g} computed again"
        elif a != b and not (
            key == "revision" and isinstance(a, str) and isinstance(b, str) and pinned(a) == pinned(b)
        ):
            yield f"{where}: {key} is {a!r} in the scorecard, {b!r} computed again"


# --------------------------------------------------------------------------------------------------- records


class _Labels:
    """Label sets by source and revision, loaded once."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], LabelSets | None] = {}

    def get(self, source: str, revision: str) -> LabelSets | None:
        """The label sets of a source at a revision, or None where they are not here."""
        key = source, revision
        if key not in self._found:
            self._found[key] = label_sets(source, revision)
        return self._found[key]


def _check_records(
    entry: Entry, path: Path, bits: Correctness | None, labels: _Labels, checked: Checked
) -> None:
    """Compute every metric again from the records and compare."""
    from benchmark import runs
    from benchmark.prediction_files import read_prediction_file
    from benchmark.records import iter_predictions
    from benchmark.tracks.rectified import score_rectified

    stated = _in_order(entry.scorecard.annotations.sources, entry.scorecard.tracks.get("rectified"))
    sets = {source: labels.get(source, revision) for source, revision in stated.items()}
    for source, found in sets.items():
        if found is None:
            checked.add(
                "warning",
                f"{source} at {stated[source]} is not here, so what depends on it was not recomputed (see: "
                "beyond annotations list)",
            )
    here = {source: found for source, found in sets.items() if found is not None}
    whole = len(here) == len(sets)
    tracks: dict[str, Track] = {}
    try:
        if path.is_dir():
            result = score_rectified(iter_predictions(path), here)
            attacked = runs.robustness_result(path, here)
            measured = runs.robustness_track(path, attacked)
            if measured is not None:
                tracks["robustness"] = measured
            if has_agreement(path):
                study, plan = read_agreement(path)
                if study.made_up or (plan is not None and plan.made_up):
                    checked.add("error", f"its records hold answers that are {MADE_UP_NOTE}")
        else:
            result = score_rectified([read_prediction_file(path)], here)
    except BeyondError as error:
        checked.add("error", f"its records cannot be scored: {error}")
        return
    tracks["rectified"] = _known_part(result.track, here, sets)
    if not whole:
        tracks.pop("robustness", None)
    for name in entry.scorecard.tracks.keys() | tracks.keys():
        if name not in tracks:
            if not whole and name == "robustness":
                checked.add("warning", "the robustness track was not recomputed, for want of its annotations")
                continue
            checked.add("error", f"the records hold nothing from which the {name} track could be computed")
        elif name not in entry.scorecard.tracks:
            checked.add("error", f"the records hold a {name} track that the scorecard leaves out")
        else:
            for problem in track_differences(entry.scorecard.tracks[name], tracks[name], partial=not whole):
                checked.add("error", f"its records say otherwise: {problem}")
    order = np.argsort(result.image_ids.astype(str), kind="stable")
    fingerprint = _fingerprint(result.image_ids[order], result.original_labels[order])
    if fingerprint != entry.scorecard.images.fingerprint:
        checked.add("error", "its records are about other images than the scorecard says")
    if bits is not None:
        again = Correctness.from_result(result, stated)
        differs = any((again.packed[name] != bits.packed.get(name)).any() for name in again.packed)
        if differs or (whole and again.to_bytes() != bits.to_bytes()):
            checked.add("error", f"{CORRECT_FILE} is not what its records give")


def _in_order(sources: Mapping[str, str], track: Track | None) -> dict[str, str]:
    """Sources in the order in which they were given, which JSON forgets but the track's table keeps."""
    rows = track.tables.get("sources", []) if track is not None else []
    named = [name for row in rows if isinstance(name := row.get("source"), str) and name in sources]
    return {name: sources[name] for name in dict.fromkeys([*named, *sources])}


def _fingerprint(ids: np.ndarray, labels: np.ndarray) -> str:
    from benchmark.records import Predictions
    from benchmark.runs import fingerprint_of

    return fingerprint_of(Predictions(ids, labels, np.zeros((len(ids), 1), dtype=np.int16)))


# ------------------------------------------------------------------------------------- life and other entries


def _check_life(entry: Entry, checked: Checked, entries: Mapping[str, Entry], today: date) -> None:
    info = entry.info
    if info.submitted > today + timedelta(days=1):
        checked.add("error", f"submitted on {info.submitted}, which is in the future")
    if info.verification is not None and info.verification.checked < info.submitted:
        checked.add("error", "it was verified before it was submitted")
    if _mixes_alphabets(info.name):
        checked.add("error", "its name mixes alphabets that look alike; write it in one")
    seen, at = {info.slug}, info.superseded_by
    while at is not None:
        if at not in entries:
            checked.add("error", f"superseded_by names {at!r}, which is no readable entry")
            return
        if at in seen:
            checked.add("error", f"superseded_by goes in a circle through {at!r}")
            return
        if entries[at].info.state == "withdrawn":
            checked.add("error", f"superseded_by names {at!r}, which is withdrawn")
        seen.add(at)
        at = entries[at].info.superseded_by


def _check_submission(entry: Entry, checked: Checked) -> None:
    info = entry.info
    if info.status != "self-reported":
        checked.add("error", f"a submission is self-reported; only maintainers set status {info.status}")
    if info.state != "active":
        checked.add("error", f"a submission is active, not {info.state}")
    if info.records.kind != "hub":
        checked.add(
            "error", "a submission needs its records on the Hub, at a commit, so that all can recompute it"
        )
    if "real" not in entry.scorecard.annotations.sources:
        checked.add("error", "a submission is scored against real, which ranks it; add --annotations real,…")
    if info.sha256.correct is None:
        checked.add("error", f"a submission needs {CORRECT_FILE}; make the entry with: beyond submit RUN")


def _mixes_alphabets(name: str) -> bool:
    """Whether letters of Latin and of an alphabet with the same shapes stand side by side."""
    scripts = {unicodedata.name(ch, "?").partition(" ")[0] for ch in name if ch.isalpha()}
    return "LATIN" in scripts and bool(scripts & {"CYRILLIC", "GREEK", "ARMENIAN", "CHEROKEE"})


def _plain(name: str) -> str:
    folded = unicodedata.normalize("NFKC", name).casefold()
    return "".join(ch for ch in folded if ch.isalnum())


def _duplicates(entries: Sequence[Entry]) -> Iterator[tuple[str, Level, str]]:
    """Entries that are the same model under two slugs; withdrawn ones do not count."""
    alive = [entry for entry in entries if entry.info.state != "withdrawn"]

    def linked(a: Entry, b: Entry) -> bool:
        return a.info.superseded_by == b.slug or b.info.superseded_by == a.slug

    keys: list[tuple[str, Callable[[Entry], str | None]]] = [
        ("the same name", lambda e: _plain(e.info.name)),
        ("the same weights on the same images", _weights),
        ("the same records", lambda e: e.info.records.sha256),
        ("the same right answers on every image", _bits_key),
    ]
    for what, key in keys:
        groups: dict[str, list[Entry]] = {}
        for entry in alive:
            found = key(entry)
            if found:
                groups.setdefault(found, []).append(entry)
        for group in groups.values():
            for entry in group:
                other = next((o for o in group if o is not entry and not linked(entry, o)), None)
                if other is not None:
                    yield entry.slug, "error", f"{what} as {other.slug!r}; one model has one entry"
    yield from _nearly_the_same(alive, linked)


def _weights(entry: Entry) -> str | None:
    card = entry.scorecard
    if card.model.weights_sha256 is None:
        return None
    return f"{card.model.weights_sha256} {card.model.preprocessing} {card.images.fingerprint}"


def _bits_key(entry: Entry) -> str | None:
    bits = _readable_bits(entry)
    if bits is None or len(bits) < MIN_FINGERPRINT:
        return None
    return hashlib.sha256(
        bits.packed[TOP1].tobytes() + entry.scorecard.images.fingerprint.encode()
    ).hexdigest()


def _readable_bits(entry: Entry) -> Correctness | None:
    try:
        return entry.correctness
    except BeyondError:
        return None


def _nearly_the_same(
    entries: Sequence[Entry], linked: Callable[[Entry, Entry], bool]
) -> Iterator[tuple[str, Level, str]]:
    full = [(entry, bits) for entry in entries if (bits := _readable_bits(entry)) is not None and bits.full]
    pairs = compare_all([bits.packed[TOP1] for _, bits in full], NUM_VALIDATION_IMAGES)
    apart = pairs.only + pairs.only.T
    for i, j in np.argwhere((apart > 0) & (apart < NEARLY_THE_SAME * pairs.n)):
        one, other = full[i][0], full[j][0]
        if not linked(one, other):
            yield (
                one.slug,
                "warning",
                f"right on the same images as {other.slug!r} but for {apart[i, j]} of them: the same model?",
            )
