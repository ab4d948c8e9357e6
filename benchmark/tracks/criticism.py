"""The criticism track: which biases has the model learned, and do they hold on images they were not found on?

`score_criticism` is a pure function of records (distances, predictions, proposed slices), label sets and
attributes. What the numbers mean is in `docs/tracks/criticism.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd

from annotations.classes import class_names
from annotations.judgements import LabelSets
from benchmark import statistics
from benchmark.criticism.attributes import Attribute, from_factors, from_label_sets, from_table
from benchmark.criticism.choose import (
    CRITICISM,
    ELSEWHERE,
    PROTOTYPE,
    RIGHT,
    UNKNOWN,
    WRONG,
    answers,
    choose,
    signed,
    stability,
)
from benchmark.criticism.findings import ALL, Finding, Search, Side, Slices, in_discovery, search
from benchmark.criticism.info import CriticismInfo
from benchmark.criticism.records import Distances, distances_of, quoted_tier
from benchmark.scorecard import Cell, Metric, Track
from benchmark.tracks import CRITICISM as TRACK
from benchmark.tracks.robustness import primary_source

Table = list[dict[str, Cell]]

MAX_FINDINGS = 60
MAX_CLASSES = 30
MAX_EXAMPLE_CLASSES = 12
EXAMPLES = 6
"""Images shown of each class and role."""
TYPICAL = 6
"""Images that name a slice."""
MIN_CLASS = 4
"""Images of a class from which on its prototypes and criticisms are shown."""
DISTANCE_BINS = 12


@dataclass(frozen=True)
class Evidence:
    """What the track is computed from.

    Attributes:
        table: Records of distances (`benchmark.criticism.records.read_table`).
        labels: Label sets by source.
        info: How the run was criticized.
        confidence: Probability that the model gave its answer, by image id; empty without logits.
        files: Attributes from files by name, as they are kept.
        factors: ImageNet-X factors, or None.
        revisions: What pins each source of attributes.
        slices: Columns image_id, slice, weight; or None.
        baseline: Columns image_id, class_index, role, rank: choices of MMD-critic; or None.
        notes: What a reader must know already.
    """

    table: pd.DataFrame
    labels: Mapping[str, LabelSets]
    info: CriticismInfo
    confidence: Mapping[str, float] = field(default_factory=dict)
    files: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    factors: pd.DataFrame | None = None
    revisions: Mapping[str, str] = field(default_factory=dict)
    slices: pd.DataFrame | None = None
    baseline: pd.DataFrame | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class CriticismResult:
    """The track, with the images behind it.

    Attributes:
        track: For the scorecard.
        distances: The distances that are quoted.
        place: Place of each image in its class's line, float64 (N,).
        role: Prototype or criticism of its class, int8 (N,).
        answer: What each answer is, int8 (N,), see `benchmark.criticism.choose.RIGHT`.
        search: What was looked for and found.
        attributes: What was known of the images.
    """

    track: Track
    distances: Distances
    place: npt.NDArray[np.float64]
    role: npt.NDArray[np.int8]
    answer: npt.NDArray[np.int8]
    search: Search
    attributes: tuple[Attribute, ...]

    def choices(self) -> pd.DataFrame:
        """Prototypes and criticisms of every class: image_id, class_index, role, rank, distance, correct."""
        rows = []
        for role, sign in ((PROTOTYPE, -1.0), (CRITICISM, 1.0)):
            mine = np.flatnonzero(self.role == role)
            mine = mine[np.lexsort((mine, sign * self.place[mine], self.distances.labels[mine]))]
            labels = self.distances.labels[mine]
            start = np.searchsorted(labels, labels)
            rows.append(
                pd.DataFrame(
                    {
                        "image_id": self.distances.image_ids[mine],
                        "class_index": labels,
                        "role": "prototype" if role == PROTOTYPE else "criticism",
                        "rank": np.arange(len(mine)) - start + 1,
                        "distance": self.distances.distance[mine],
                        "correct": self.distances.correct[mine],
                    }
                )
            )
        return pd.concat(rows, ignore_index=True)


def score_criticism(evidence: Evidence) -> CriticismResult | None:
    """Score records of distances; None where there are none of any tier."""
    tier = quoted_tier(evidence.table)
    if tier is None:
        return None
    distances = distances_of(evidence.table, tier)
    primary = primary_source(evidence.labels)
    labels = None if primary is None else evidence.labels[primary]
    answer = answers(distances, labels)
    place = signed(distances, answer)
    k = evidence.info.k
    role = choose(place, distances.labels, distances.image_ids, k=k)
    attributes, known, notes = _attributes(evidence, distances, labels)
    slices = _slices(evidence, distances, answer)
    found = search(place, distances.labels, distances.image_ids, attributes, slices=slices, k=k)

    in_line = int((~np.isnan(place)).sum())
    metrics = {
        "confirmed_biases": _count(sum(f.slice < 0 for f in found.confirmed), in_line),
    }
    if slices is not None:
        metrics["confirmed_slices"] = _count(sum(f.slice >= 0 for f in found.confirmed), in_line)
    right = distances.distance[(answer == RIGHT) & (distances.status == "found")]
    if len(right):
        value, interval = statistics.median_interval(right)
        metrics["median_distance"] = Metric(
            value=value,
            ci_low=float(interval.low) if np.isfinite(interval.low) else None,
            ci_high=float(interval.high) if np.isfinite(interval.high) else None,
            n=len(right),
            method="order statistics",
            unit="L2",
        )
    result = CriticismResult(
        Track(version=TRACK.version), distances, place, role, answer, found, tuple(attributes)
    )
    tables: dict[str, Table] = {
        "search": [
            {
                "tested": found.tested,
                "not_testable": found.hopeless,
                "found": len([f for f in found.findings if f.slice < 0]),
                "confirmed": sum(f.slice < 0 for f in found.confirmed),
                "tested_again": found.confirmations,
                "n_discovery": found.images[0],
                "n_confirmation": found.images[1],
            }
        ],
        "findings": [_finding_row(f) for f in found.findings if f.slice < 0][:MAX_FINDINGS],
        "slices": _slice_rows(result, evidence, slices),
        "classes": _class_rows(result, evidence.baseline),
        "examples": _example_rows(result),
        "boundary": _boundary_rows(distances, tier),
        "distance_histogram": _histogram(result),
        "stability": _stability_rows(evidence.table, tier, distances, labels, k),
        "attributes": known,
        "baseline": _baseline_rows(result, evidence.baseline),
    }
    track = Track(
        version=TRACK.version,
        metrics=metrics,
        tables={name: rows for name, rows in tables.items() if rows},
        notes=[*_notes(result, evidence, tier, primary), *evidence.notes, *notes],
    )
    return CriticismResult(track, distances, place, role, answer, found, tuple(attributes))


def _count(value: int, n: int) -> Metric:
    return Metric(value=value, n=n, method="count", unit="count")


# --------------------------------------------------------------------------------------------- attributes


def _attributes(
    evidence: Evidence, distances: Distances, labels: LabelSets | None
) -> tuple[list[Attribute], Table, list[str]]:
    """The attributes of the images from all sources, what each source covers, and what to say about it."""
    found: list[Attribute] = []
    notes: list[str] = []
    table: Table = []
    for name in evidence.info.attributes:
        if name == "imagenet-x":
            if evidence.factors is None:
                continue
            more, lines = from_factors(evidence.factors, distances.image_ids)
        elif name == "co-occurrence":
            if labels is None:
                notes.append("co-occurrence: no label sets were given, so nobody said what else is there")
                continue
            more, lines = from_label_sets(labels, distances.image_ids, distances.labels)
        elif name in evidence.files:
            more, lines = from_table(evidence.files[name], distances.image_ids, source=name)
        else:
            continue
        found += more
        notes += [line + "." for line in lines]
        covered = np.zeros(len(distances), dtype=bool)
        for attribute in more:
            covered |= attribute.known
        table.append(
            {
                "source": name,
                "revision": evidence.revisions.get(name, ""),
                "attributes": len({a.name for a in more}),
                "images": int(covered.sum()),
                "about_people": any(a.person for a in more),
            }
        )
    return found, table, notes


def _slices(evidence: Evidence, distances: Distances, answer: npt.NDArray[np.int8]) -> Slices | None:
    if evidence.slices is None or not len(evidence.slices) or not evidence.confidence:
        return None
    at = pd.Index(evidence.slices["image_id"]).get_indexer(pd.Index(distances.image_ids))
    member = np.where(at >= 0, evidence.slices["slice"].to_numpy(dtype=np.int64)[at], -1)
    confidence = np.array([evidence.confidence.get(str(i), np.nan) for i in distances.image_ids])
    usable = (answer != UNKNOWN) & ~np.isnan(confidence) & (at >= 0)
    return Slices(member, answer == WRONG, np.nan_to_num(confidence), usable)


# -------------------------------------------------------------------------------------------------- tables


def _subject(subject: int) -> str:
    return "all classes" if subject == ALL else class_names()[subject]


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _side_row(prefix: str, side: Side) -> dict[str, Cell]:
    return {
        f"{prefix}difference": _number(float(side.difference.value)),
        f"{prefix}ci_low": float(side.difference.low),
        f"{prefix}ci_high": float(side.difference.high),
        f"{prefix}criticisms": side.first,
        f"{prefix}n_criticisms": side.n_first,
        f"{prefix}prototypes": side.second,
        f"{prefix}n_prototypes": side.n_second,
        f"{prefix}base": side.base,
        f"{prefix}n_base": side.n_base,
        f"{prefix}p": side.p,
        f"{prefix}p_adjusted": side.adjusted,
    }


def _finding_row(finding: Finding) -> dict[str, Cell]:
    return {
        "class_index": finding.subject,
        "subject": _subject(finding.subject),
        "attribute": finding.attribute,
        "value": finding.value,
        "says": finding.says,
        "source": finding.source,
        "about_people": finding.person,
        "confirmed": finding.confirmed,
        **_side_row("", finding.confirmation),
        **_side_row("discovery_", finding.discovery),
    }


def _slice_rows(result: CriticismResult, evidence: Evidence, slices: Slices | None) -> Table:
    if slices is None or evidence.slices is None:
        return []
    d = result.distances
    weight_of = dict(zip(evidence.slices["image_id"], evidence.slices["weight"]))
    weight = np.array([weight_of.get(i, 0.0) for i in d.image_ids])
    discovery = in_discovery(d.image_ids)
    names = class_names()
    rows: Table = []
    for f in result.search.findings:
        if f.slice < 0:
            continue
        mine = np.flatnonzero(slices.member == f.slice)
        typical = mine[np.lexsort((mine, -weight[mine], ~slices.wrong[mine]))][:TYPICAL]
        classes, counts = np.unique(d.labels[mine], return_counts=True)
        common = classes[np.argsort(-counts, kind="stable")][:3]
        rows.append(
            {
                "slice": f.slice,
                "confirmed": f.confirmed,
                "n": len(mine),
                "classes": ", ".join(names[int(c)] for c in common),
                "n_classes": len(classes),
                "shared": "; ".join(_shared(result.attributes, slices.member == f.slice, discovery)),
                "typical": " ".join(map(str, d.image_ids[typical])),
                "excess": _number(float(f.confirmation.difference.value)),
                "ci_low": float(f.confirmation.difference.low),
                "ci_high": float(f.confirmation.difference.high),
                "wrong": f.confirmation.first,
                "n_slice": f.confirmation.n_first,
                "wrong_elsewhere": f.confirmation.second,
                "n_elsewhere": f.confirmation.n_second,
                "p": f.confirmation.p,
                "p_adjusted": f.confirmation.adjusted,
            }
        )
    return rows


def _shared(
    attributes: Sequence[Attribute], member: npt.NDArray[np.bool_], half: npt.NDArray[np.bool_]
) -> list[str]:
    """What a slice's images share more often than others do, on one half: the two with the largest lead."""
    leads = []
    for attribute in attributes:
        known = attribute.known & half
        if attribute.only is not None or not (known & member).any() or not (known & ~member).any():
            continue
        for value in attribute.tested:
            has = attribute.codes == value
            lead = float(has[known & member].mean() - has[known & ~member].mean())
            if lead >= 0.1:
                leads.append((-lead, attribute.says(value)))
    return [says for _, says in sorted(leads)[:2]]


def _class_rows(result: CriticismResult, baseline: pd.DataFrame | None) -> Table:
    """Classes with their distances, those with the nearest boundary first."""
    d = result.distances
    rows = []
    names = class_names()
    overlap = _overlaps(result, baseline)
    for c in np.unique(d.labels).tolist():
        mine = d.labels == c
        in_line = mine & ~np.isnan(result.place)
        n = int(in_line.sum())
        if n < MIN_CLASS:
            continue
        right = d.distance[in_line & (result.answer == RIGHT) & (d.status == "found")]
        rows.append(
            {
                "class_index": int(c),
                "name": names[c],
                "n": n,
                "right": int((result.answer[in_line] == RIGHT).sum()),
                "median_distance": float(np.median(right)) if len(right) else None,
                "prototypes": int((result.role[mine] == PROTOTYPE).sum()),
                "criticisms": int((result.role[mine] == CRITICISM).sum()),
                "mmd_overlap": overlap.get(c),
            }
        )
    rows.sort(key=lambda r: (r["median_distance"] is not None, r["median_distance"] or 0.0, r["class_index"]))
    return [{str(key): value for key, value in row.items()} for row in rows[:MAX_CLASSES]]


def _overlaps(result: CriticismResult, baseline: pd.DataFrame | None) -> dict[int, float]:
    """Share of each class's chosen images that MMD-critic chooses for the same role."""
    if baseline is None:
        return {}
    same = _same_choice(result, baseline)
    labels = result.distances.labels
    return {
        int(c): float(same[(labels == c) & (result.role != 0)].mean())
        for c in np.unique(labels[result.role != 0])
    }


def _same_choice(result: CriticismResult, baseline: pd.DataFrame) -> npt.NDArray[np.bool_]:
    other = dict(zip(baseline["image_id"], baseline["role"]))
    theirs = np.array([other.get(i, 0) for i in result.distances.image_ids], dtype=np.int8)
    same: npt.NDArray[np.bool_] = (result.role != 0) & (result.role == theirs)
    return same


def _baseline_rows(result: CriticismResult, baseline: pd.DataFrame | None) -> Table:
    """How far the two ways to choose agree, over all classes, and how far chance would."""
    if baseline is None or not len(baseline):
        return []
    d = result.distances
    same = _same_choice(result, baseline)
    covered = np.isin(d.labels, baseline["class_index"].unique())
    rows: Table = []
    for name, role in (("prototypes", PROTOTYPE), ("criticisms", CRITICISM)):
        mine = covered & (result.role == role)
        if not mine.any():
            continue
        theirs = baseline[baseline["role"] == role].groupby("class_index").size()
        size = pd.Series(d.labels).value_counts()
        chance = [float(theirs.get(c, 0)) / float(size[c]) for c in d.labels[mine]]
        hits, n = int(same[mine].sum()), int(mine.sum())
        interval = statistics.wilson(hits, n)
        rows.append(
            {
                "role": name,
                "n": n,
                "same": hits / n,
                "ci_low": float(interval.low),
                "ci_high": float(interval.high),
                "by_chance": float(np.mean(chance)),
            }
        )
    return rows


def example_classes(result: CriticismResult) -> list[int]:
    """Classes worth looking at: those with findings first, then those of which most images were measured."""
    labels = result.distances.labels[~np.isnan(result.place)]
    classes, counts = np.unique(labels, return_counts=True)
    usable = {int(c): int(n) for c, n in zip(classes, counts) if n >= MIN_CLASS}
    named = [f.subject for f in result.search.findings if f.subject in usable]
    named = [c for i, c in enumerate(named) if c not in named[:i]]
    rest = sorted((c for c in usable if c not in named), key=lambda c: (-usable[c], c))
    return [*named, *rest]


def _example_rows(result: CriticismResult) -> Table:
    d = result.distances
    rows: Table = []
    for c in example_classes(result)[:MAX_EXAMPLE_CLASSES]:
        mine = d.labels == c
        rows += example_images(result, mine & (result.role == PROTOTYPE), "prototype", c, EXAMPLES)
        rows += example_images(result, mine & (result.role == CRITICISM), "criticism", c, EXAMPLES)
    in_line = ~np.isnan(result.place)
    rows += example_images(result, in_line & (result.answer == RIGHT), "prototype", ALL, 2 * EXAMPLES)
    rows += example_images(result, in_line, "criticism", ALL, 2 * EXAMPLES)
    return rows


def example_images(
    result: CriticismResult, chosen: npt.NDArray[np.bool_], role: str, subject: int, limit: int
) -> Table:
    """Rows of `examples`: the chosen images, the most telling first."""
    d, names = result.distances, class_names()
    rows = np.flatnonzero(chosen)
    sign = -1.0 if role == "prototype" else 1.0
    rows = rows[np.lexsort((rows, sign * result.place[rows]))][:limit]
    return [
        {
            "class_index": subject,
            "subject": _subject(subject),
            "role": role,
            "rank": rank,
            "image_id": str(d.image_ids[i]),
            "label": names[int(d.labels[i])],
            "predicted": names[int(d.predicted[i])],
            "correct": bool(d.correct[i]),
            "distance": _number(float(d.distance[i])),
            "neighbour": names[int(d.neighbour[i])] if d.neighbour[i] >= 0 else "",
            "attack": str(d.attack[i]),
        }
        for rank, i in enumerate(rows.tolist(), 1)
    ]


def _boundary_rows(distances: Distances, tier: str) -> Table:
    """Which attack gave the smallest distance, and how often."""
    names, counts = np.unique(distances.attack[distances.status == "found"].astype(str), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    rows: Table = [
        {"tier": tier, "attack": str(names[i]) or "on the boundary", "images": int(counts[i])} for i in order
    ]
    for status, words in (("none", "none found it"), ("failed", "no finite logits")):
        n = int((distances.status == status).sum())
        if n:
            rows.append({"tier": tier, "attack": words, "images": n})
    return rows


def _histogram(result: CriticismResult) -> Table:
    """Distances of right and wrong answers, in bins of equal ratio."""
    d = result.distances
    usable = (d.status == "found") & (d.distance > 0) & ~np.isnan(result.place)
    if usable.sum() < 2:
        return []
    logs = np.log(d.distance[usable])
    edges = np.exp(np.linspace(logs.min() - 1e-9, logs.max() + 1e-9, DISTANCE_BINS + 1))
    counts = {
        name: np.histogram(d.distance[usable & (result.answer == code)], edges)[0]
        for name, code in (("right", RIGHT), ("wrong", WRONG))
    }
    return [
        {
            "low": float(edges[i]),
            "high": float(edges[i + 1]),
            **{name: int(c[i]) for name, c in counts.items()},
        }
        for i in range(DISTANCE_BINS)
    ]


def _stability_rows(
    table: pd.DataFrame, tier: str, distances: Distances, labels: LabelSets | None, k: int | None
) -> Table:
    """How far distances and choices change under another budget and other random starts."""
    rows: Table = []
    keys = table[["suite", "seed"]].drop_duplicates().itertuples(index=False)
    for suite, seed in sorted((str(s), int(n)) for s, n in keys):
        if (suite, seed) == (tier, 0) or (suite.endswith("-random") and suite != f"{tier}-random"):
            continue
        other = stability(distances, distances_of(table, suite, seed), labels, k=k)
        if other is None:
            continue
        random = suite.endswith("-random")
        rows.append(
            {
                "changed": f"random starts, seed {seed}" if random else f"budget {tier} to {suite}",
                "kind": "seed" if random else "budget",
                "n": other.n,
                "rank_correlation": _number(other.correlation),
                "ci_low": float(other.interval.low),
                "ci_high": float(other.interval.high),
                "distance_ratio": _number(other.ratio),
                "prototypes_jaccard": _number(other.prototypes),
                "criticisms_jaccard": _number(other.criticisms),
                "chosen": other.chosen,
            }
        )
    return rows


def _notes(result: CriticismResult, evidence: Evidence, tier: str, primary: str | None) -> list[str]:
    d, found = result.distances, result.search
    n = len(d)
    notes = [
        f"Distances are upper bounds: the smallest L2 perturbation found by the attacks of tier {tier}, on "
        f"{n:,} images."
    ]
    missing = evidence.info.planned - n
    if missing > 0:
        notes.append(
            f"{missing:,} of {evidence.info.planned:,} images have no distance yet; the same command goes on "
            "with them."
        )
    judge = f"what {primary} says" if primary else "the original labels alone"
    aside = [
        (int((result.answer == ELSEWHERE).sum()), "have another answer that people accept or are unsure of"),
        (int((result.answer == UNKNOWN).sum()), "have an answer that nobody judged"),
        (int((d.status == "failed").sum()), "gave no finite logits"),
    ]
    left_out = ", ".join(f"{count:,} {words}" for count, words in aside if count)
    notes.append(
        f"Answers are right or wrong by {judge}"
        + (f"; {left_out}, and are neither prototype nor criticism." if left_out else ".")
    )
    one, other = found.images
    if found.tested or found.hopeless:
        hopeless = (
            f" ({found.hopeless:,} more could not have come out below 5 % whatever happened: not made)"
            if found.hopeless
            else ""
        )
        notes.append(
            f"{found.tested:,} tests on {one:,} images{hopeless}; {found.confirmations:,} again on {other:,} "
            "others. False discoveries are held at 5 % in each half (Benjamini–Yekutieli)."
        )
    elif not evidence.info.attributes:
        notes.append("No attributes were given, so nothing could be looked for: see --attributes.")
    else:
        notes.append("Nothing could be tested: no attribute varies among prototypes and criticisms.")
    for item in (i for i in evidence.info.distances if i.suite == tier and i.seed == 0):
        notes += [f"Read with care: {finding['message']}." for finding in item.findings]
    return notes
