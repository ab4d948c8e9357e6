"""What the site shows of all entries together: columns, ranks, the headline, and the files to download.

Everything here is computed from entries; nothing is drawn. Positions of entries ("rows") are those of
`Board.entries`, the same in every file of the site.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from annotations.classes import validation_number
from benchmark import statistics
from benchmark.agreement import is_made_up
from benchmark.report import names
from benchmark.report.text import clean, digits
from benchmark.scorecard import Metric
from benchmark.tracks import TRACKS
from leaderboard.correctness import TOP1, Correctness
from leaderboard.entries import Entry
from leaderboard.masks import Masks, load_masks, pinned
from leaderboard.ranking import DEFAULT_METRIC, Rank, Ranking, rank_entries

REAL = "real"
SINGLE, PEOPLE = "top1_evaluable", DEFAULT_METRIC
"""The two ends of every slope: the same images, by the single label and by what people accept."""

ACCEPTED = "accepted_mistakes"
"""The share behind the headline; computed here from the bits of an entry, and in no scorecard."""

SCALE = 10_000
"""Fractions travel to the browser as whole ten-thousandths, rounded as they are shown."""

TRACK_ORDER = tuple(names.TRACK_TITLES)

AGREEMENT = tuple(("robustness", key) for key in names.METRICS["robustness"] if key.startswith("agreement_"))
"""Metrics that only people's answers fill; they have a column even where nobody has answered yet."""

NOT_RATED = "not yet rated"


@dataclass(frozen=True)
class Headline:
    """The one sentence, over all ranked entries: of what the label calls wrong, how much people accept.

    Attributes:
        entries: Number of entries behind it.
        images: Images that ReaL can evaluate.
        wrong: Answers on these images that differ from the single label.
        accepted: How many of them people accept.
        right: Answers that are the single label.
        rejected: How many of them people do not accept.
        least: Row of the entry with the smallest share.
        most: Row of the entry with the largest.
        rises: Whether the share rises with accuracy: Spearman's ρ with top-1 on the same images above 0.8.
    """

    entries: int
    images: int
    wrong: int
    accepted: int
    right: int
    rejected: int
    least: int
    most: int
    rises: bool

    @property
    def share(self) -> float:
        """Share of the wrong answers that people accept, in [0, 1]."""
        return self.accepted / self.wrong


@dataclass(frozen=True)
class Column:
    """One metric of one track over all entries: a metric or None each."""

    track: str
    key: str
    values: list[Metric | None]

    @property
    def unit(self) -> str:
        """Unit of the first value; fraction without any."""
        return next((metric.unit for metric in self.values if metric is not None), "fraction")

    @property
    def absent(self) -> str:
        """What a missing value means, where it is more than that it was not measured."""
        return NOT_RATED if (self.track, self.key) in AGREEMENT else ""

    @property
    def usual_n(self) -> int:
        """The most frequent number of images; 0 without any value."""
        counts = Counter(metric.n for metric in self.values if metric is not None)
        return counts.most_common(1)[0][0] if counts else 0

    @property
    def higher_is_better(self) -> bool | None:
        """Whether a larger value is the better one; None where neither is."""
        info = TRACKS.get(self.track)
        return next((m.higher_is_better for m in info.metrics if m.name == self.key), True) if info else True


@dataclass(frozen=True)
class Board:
    """All entries, with what is known only when they stand side by side.

    Attributes:
        entries: By slug.
        ranking: By what people accept.
        top1_ranking: By top-1.
        evaluable: Which images each source can evaluate.
    """

    entries: Sequence[Entry]
    ranking: Ranking
    top1_ranking: Ranking
    evaluable: Correctness

    @classmethod
    def of(cls, entries: Sequence[Entry], masks: Masks | None = None) -> Board:
        """The board of some entries, ranked.

        Args:
            entries: By slug.
            masks: Evaluable images; by default this repository's.
        """
        masks = masks or load_masks()
        by_people, by_label = (rank_entries(entries, metric, masks=masks) for metric in (PEOPLE, TOP1))
        return cls(entries, by_people, by_label, masks.correctness)

    @cached_property
    def ranks(self) -> dict[int, Rank]:
        """Row to rank by what people accept, of ranked entries."""
        return {self.rows[slug]: rank for slug, rank in self.ranking.ranks.items()}

    @cached_property
    def top1_ranks(self) -> dict[int, Rank]:
        """Row to rank by top-1, of ranked entries."""
        return {self.rows[slug]: rank for slug, rank in self.top1_ranking.ranks.items()}

    @cached_property
    def rows(self) -> dict[str, int]:
        """Slug to row."""
        return {entry.slug: row for row, entry in enumerate(self.entries)}

    @cached_property
    def by_rank(self) -> list[int]:
        """Rows of ranked entries, best first."""
        return list(self.ranks)

    def moved(self, row: int) -> int | None:
        """Places an entry gains from top-1 to what people accept, negative if it loses some."""
        if row not in self.ranks or row not in self.top1_ranks:
            return None
        return self.top1_ranks[row].place - self.ranks[row].place

    def mask(self, row: int, source: str) -> npt.NDArray[np.uint8] | None:
        """Packed bits of the images that a source can evaluate, or None where the entry's are others."""
        bits = self.entries[row].correctness
        if bits is None or not bits.full:
            return None
        if source not in bits.packed or source not in self.evaluable.packed:
            return None
        same = pinned(bits.annotations[source]) == pinned(self.evaluable.annotations[source])
        return self.evaluable.packed[source] if same else None

    def metric(self, row: int, key: str, track: str = "rectified") -> Metric | None:
        """A metric of an entry, or None."""
        found = self.entries[row].scorecard.tracks.get(track)
        if found is None or ((track, key) in AGREEMENT and is_made_up(found.tables)):
            return None  # what a program answered never stands in a column of people's answers
        return found.metrics.get(key)

    @cached_property
    def columns(self) -> list[Column]:
        """Every metric that any entry has, and agreement, in reading order; and the headline's share."""
        seen: dict[str, dict[str, None]] = {}
        for entry in self.entries:
            for track, result in entry.scorecard.tracks.items():
                seen.setdefault(track, {}).update(dict.fromkeys(result.metrics))
        for track, key in AGREEMENT if self.entries else ():
            seen.setdefault(track, {})[key] = None
        tracks = [track for track in TRACK_ORDER if track in seen] + sorted(set(seen) - set(TRACK_ORDER))
        columns = []
        for track in tracks:
            for key in names.in_reading_order(track, seen[track]):
                values = [self.metric(row, key, track) for row in range(len(self.entries))]
                columns.append(Column(track, key, values))
                if (track, key) == ("rectified", PEOPLE) and self.accepted:
                    derived = [self.accepted.get(row) for row in range(len(self.entries))]
                    columns.append(Column(track, ACCEPTED, derived))
        return columns

    @cached_property
    def tracks(self) -> list[str]:
        """Every track that any entry has, in reading order."""
        has = (c.track for c in self.columns if any(metric is not None for metric in c.values))
        return list(dict.fromkeys(has))

    @cached_property
    def accepted(self) -> dict[int, Metric]:
        """By row: of the answers that the single label calls wrong, the share that people (ReaL) accept."""
        found = {}
        for row, entry in enumerate(self.entries):
            bits, mask = entry.correctness, self.mask(row, REAL)
            if bits is None or mask is None:
                continue
            missed = mask & ~bits.packed[TOP1]
            n = _count(missed)
            if n:
                right = _count(missed & bits.packed[REAL])
                low, high = statistics.wilson(right, n)
                found[row] = Metric(
                    value=right / n, ci_low=float(low), ci_high=float(high), n=n, method="wilson"
                )
        return found

    @cached_property
    def headline(self) -> Headline | None:
        """The headline, or None where no ranked entry says per image what people accept."""
        rows = [row for row in self.by_rank if row in self.accepted]
        if not rows:
            return None
        shares = {row: self.accepted[row].value for row in rows}
        wrong = sum(self.accepted[row].n for row in rows)
        accepted = sum(round(self.accepted[row].n * shares[row]) for row in rows)
        mask = self.evaluable.packed[REAL]
        images, rejected = _count(mask), 0
        for row in rows:
            bits = self.entries[row].correctness
            if bits is not None:
                rejected += _count(mask & bits.packed[TOP1] & ~bits.packed[REAL])
        return Headline(
            entries=len(rows),
            images=images,
            wrong=wrong,
            accepted=accepted,
            right=images * len(rows) - wrong,
            rejected=rejected,
            least=min(rows, key=lambda row: (shares[row], row)),
            most=max(rows, key=lambda row: (shares[row], -row)),
            # Fewer wrong answers on the same images is a higher accuracy.
            rises=len(rows) >= 5
            and _spearman([-self.accepted[row].n for row in rows], list(shares.values())) > 0.8,
        )


def _spearman(x: Sequence[float], y: Sequence[float]) -> float:
    ranks = [np.argsort(np.argsort(np.asarray(values), kind="stable"), kind="stable") for values in (x, y)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def comparable(entry: Entry) -> bool:
    """Whether the entry says which validation images it gets right, so that it can be compared in pairs."""
    if entry.info.sha256.correct is None or entry.info.state == "withdrawn":
        return False
    bits = entry.correctness
    return bits is not None and (bits.full or all(validation_number(str(i)) for i in bits.image_ids))


def _count(bits: npt.NDArray[np.uint8]) -> int:
    return int(np.bitwise_count(bits).sum())


def column_name(column: Column) -> tuple[names.MetricName, str]:
    """How a column is called, and what it is in one sentence."""
    if column.key == ACCEPTED:
        about = "Of the answers that the single label calls wrong, the share that people (ReaL) accept."
        return names.MetricName("Called wrong, yet accepted", "yet accepted", "people"), about
    return names.metric_name(column.track, column.key), names.description(column.track, column.key)


def column_key(column: Column) -> str:
    """A column's name in files and addresses."""
    return column.key if column.track == "rectified" else f"{column.track}.{column.key}"


# ---------------------------------------------------------------------------------- for the browser


def _scaled(value: float | None, unit: str, n: int) -> int | float | None:
    if value is None:
        return None
    if unit == "fraction":
        return round(float(f"{100 * value:.{digits(n)}f}") * SCALE / 100)
    return float(f"{value:.6g}")


def browser_data(board: Board) -> str:
    """A script that hands the table and the plots their data, columns first, as compact as JSON gets.

    A script and not JSON, because a page that is opened from a disk may load a script but no JSON.
    """
    entries = board.entries
    families = sorted({clean(entry.info.family) for entry in entries})
    place = {name: at for at, name in enumerate(families)}

    def ranks(found: dict[int, Rank]) -> list[list[int] | None]:
        return [
            [found[row].place, found[row].low, found[row].high] if row in found else None
            for row in range(len(entries))
        ]

    data: dict[str, Any] = {
        "slug": [entry.slug for entry in entries],
        "name": [clean(entry.info.name) for entry in entries],
        "families": families,
        "family": [place[clean(entry.info.family)] for entry in entries],
        "year": [entry.info.year for entry in entries],
        "parameters": [entry.info.parameters for entry in entries],
        "throughput": [entry.info.throughput for entry in entries],
        "status": [entry.info.status for entry in entries],
        "state": [entry.info.state for entry in entries],
        "scope": [entry.info.scope for entry in entries],
        "tracks": [
            sum(1 << at for at, track in enumerate(board.tracks) if track in entry.scorecard.tracks)
            for entry in entries
        ],
        "trackNames": [[track, names.TRACK_TITLES.get(track, clean(track))] for track in board.tracks],
        "bits": "".join("1" if comparable(entry) else "0" for entry in entries),
        "rank": ranks(board.ranks),
        "top1rank": ranks(board.top1_ranks),
        "metrics": [_browser_column(column) for column in board.columns],
    }
    for key in ("throughput",):
        if not any(value is not None for value in data[key]):
            data[key] = []
    for key in ("status", "state", "scope"):
        words = sorted(set(data[key]))
        data[key] = {"words": words, "at": "".join(str(words.index(word)) for word in data[key])}
    return f"window.BEYOND={script_json(data)};\n"


def _browser_column(column: Column) -> dict[str, Any]:
    """Values, and the ends of intervals as distances from them, so that the numbers are short."""
    unit, usual = column.unit, column.usual_n
    values: list[int | float | None] = []
    low: list[float] = []
    high: list[float] = []
    other_n: dict[int, int] = {}
    for row, metric in enumerate(column.values):
        value = None if metric is None else _scaled(metric.value, unit, metric.n)
        values.append(value)
        ends = (None, None) if metric is None else (metric.ci_low, metric.ci_high)
        for found, end in zip((low, high), ends):
            scaled = None if metric is None else _scaled(end, unit, metric.n)
            found.append(0 if value is None or scaled is None else float(f"{scaled - value:.6g}"))
        if metric is not None and metric.n != usual:
            other_n[row] = metric.n
    name, about = column_name(column)
    result: dict[str, Any] = {
        "k": column_key(column),
        "track": column.track,
        "label": clean(name.label),
        "short": clean(name.technical),
        "about": about,
        "group": name.group,
        "unit": unit,
        "n": usual,
        "v": values if any(value is not None for value in values) else [],
    }
    for key, found in (("l", low), ("h", high)):
        if any(found):
            result[key] = [int(x) if float(x).is_integer() else x for x in found]
    if other_n:
        result["m"] = other_n
    if column.higher_is_better is False:
        result["less"] = True
    if column.absent:
        result["absent"] = column.absent
    raters = {row: metric.raters for row, metric in enumerate(column.values) if metric and metric.raters}
    if raters:
        result["raters"] = raters
    return result


def script_json(data: object) -> str:
    """JSON that may stand inside a script: nothing in it can end the script or start a comment."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), sort_keys=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# ------------------------------------------------------------------------------------- to download


def table_records(board: Board) -> list[dict[str, Any]]:
    """The whole table as one dictionary an entry, values as in the scorecards."""
    records = []
    for row, entry in enumerate(board.entries):
        info = entry.info
        record: dict[str, Any] = {
            "slug": entry.slug,
            "name": clean(info.name),
            "family": clean(info.family),
            "year": info.year,
            "parameters": info.parameters,
            "throughput": info.throughput,
            "status": info.status,
            "state": info.state,
            "scope": info.scope,
            "images": entry.scorecard.images.n,
        }
        for name, ranks in (("rank", board.ranks), ("top1_rank", board.top1_ranks)):
            rank = ranks.get(row)
            record |= {name: rank and rank.place, f"{name}_low": rank and rank.low}
            record[f"{name}_high"] = rank and rank.high
        for column in board.columns:
            metric, key = column.values[row], column_key(column)
            for part in ("value", "ci_low", "ci_high", "n", *(("raters",) if column.absent else ())):
                name = key if part == "value" else f"{key}_{part}"
                record[name] = None if metric is None else getattr(metric, part)
        records.append(record)
    return records


def table_json(records: Sequence[dict[str, Any]]) -> str:
    """The table as JSON, without the cells that have no value."""
    slim = [{key: value for key, value in record.items() if value is not None} for record in records]
    return json.dumps({"schema_version": 1, "entries": slim}, ensure_ascii=False, indent=1) + "\n"


def table_csv(records: Sequence[dict[str, Any]]) -> str:
    """The table as CSV. A text that a spreadsheet would take for a formula gets an apostrophe before it."""
    out = io.StringIO()
    if records:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(records[0])
        for record in records:
            writer.writerow([_csv_cell(value) for value in record.values()])
    return out.getvalue()


def _csv_cell(value: object) -> object:
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return "" if value is None else value
