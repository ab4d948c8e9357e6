"""The generated pages as Markdown: front matter and one block of HTML, on one line.

One line, because Markdown then reads nothing in it: no fence, no snippet, no list can begin inside. All that
comes from entries is escaped by the templates.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from annotations.classes import NUM_CLASSES, class_definitions, class_names, wnids
from benchmark import statistics
from benchmark.radii import radius_text
from benchmark.report import names, rectified, reproduce, robustness, text
from benchmark.report.page import render_tracks
from benchmark.scorecard import Metric
from leaderboard.entries import Entry
from leaderboard.site import graphics
from leaderboard.site.classes import ClassFacts, ClassScores, superclasses
from leaderboard.site.data import ACCEPTED, PEOPLE, SINGLE, Board, column_key, column_name, script_json

ASSETS = Path(__file__).parent / "assets"

# Rows of the first table before a script takes over, and how much of long lists a page shows.
FIRST_ROWS = 25
SHOWN = 10
MOST_NAMES = 70
MOST_TIED = 6

STATUS = {
    "self-reported": "by whoever submitted it",
    "recomputed": "every number computed again from its records",
    "verified": "and the model run again on random images",
}


class Pages:
    """Renders every page of one board.

    Args:
        board: All entries.
        facts: Of the 1000 classes.
        scores: Of entries by class.
        has: Hand-written pages that there are, by name without suffix.
    """

    def __init__(
        self, board: Board, facts: Sequence[ClassFacts], scores: ClassScores, has: frozenset[str]
    ) -> None:
        self.board, self.facts, self.scores, self.has = board, facts, scores, has
        self._at = {row: at for at, row in enumerate(board.by_rank)}
        self.environment = Environment(
            loader=FileSystemLoader(ASSETS),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.environment.filters.update(
            percent=text.percent, count=text.count, clean=text.clean, lines=_keep_lines
        )
        # Rows of entries in the order of their gain, by class; ties by rank.
        gains = scores.gains
        self._best = np.argsort(-gains, axis=0, kind="stable")[:SHOWN]
        self._mean_gain = gains.mean(axis=0) if len(scores.rows) else np.zeros(NUM_CLASSES)
        self._gaining = (gains > 0).sum(axis=0)

    def _page(
        self, template: str, title: str, *, description: str, search: bool = True, **values: Any
    ) -> str:
        html = self.environment.get_template(template).render(**values)
        return markdown_page(html, title=title, description=description, search=search)

    # ------------------------------------------------------------------------------------------- first page

    def home(self) -> str:
        """The leaderboard."""
        board, headline = self.board, self.board.headline
        slope, low, high, n = self._slope()
        rows = board.by_rank[:FIRST_ROWS] or list(range(min(FIRST_ROWS, len(board.entries))))
        sentence = "How often is an ImageNet classifier's answer one that people accept?"
        if headline:
            sentence = (
                f"Of the answers that the single label calls wrong, people accept "
                f"{text.percent(headline.share, 0)} %: {headline.entries} ImageNet models, ranked."
            )
        return self._page(
            "index.html",
            "Leaderboard",
            description=sentence,
            ranked=len(board.ranks),
            total=len(board.entries),
            headline=headline,
            least=self._name(headline.least) if headline else "",
            least_share=board.accepted[headline.least].value if headline else 0.0,
            most=self._name(headline.most) if headline else "",
            most_share=board.accepted[headline.most].value if headline else 0.0,
            has={"submit": "submit" in self.has},
            single=SINGLE,
            people=PEOPLE,
            slope=slope,
            low=low,
            high=high,
            slope_n=n,
            rank_name=names.metric_name("rectified", PEOPLE).technical,
            first=[self._first_row(row) for row in rows],
        )

    def _name(self, row: int) -> str:
        return text.clean(self.board.entries[row].info.name)

    def _first_row(self, row: int) -> dict[str, Any]:
        board, info = self.board, self.board.entries[row].info
        top1, people = board.metric(row, "top1"), board.metric(row, PEOPLE)
        moved = board.moved(row)
        return {
            "slug": info.slug,
            "name": self._name(row),
            "family": text.clean(info.family),
            "year": info.year,
            "rank": board.ranks[row].text if row in board.ranks else "–",
            "top1": text.value(top1) if top1 else "–",
            "people": text.value(people) if people else "–",
            "moved": "–"
            if moved is None
            else "="
            if not moved
            else f"{'▲' if moved > 0 else '▼'} {abs(moved)}",
        }

    def _pairs(self, x: str, y: str) -> list[graphics.Mark]:
        """Ranked entries that have both metrics."""
        marks = []
        for row in self.board.by_rank:
            first, second = self.board.metric(row, x), self.board.metric(row, y)
            if first is not None and second is not None:
                marks.append(
                    graphics.Mark(row, first.value, second.value, graphics.tone(self.board.moved(row)))
                )
        return marks

    def _slope(self) -> tuple[Markup | None, float, float, int]:
        marks = self._pairs(SINGLE, PEOPLE)
        if not marks:
            return None, 0.0, 1.0, 0
        values = [value for mark in marks for value in (mark.x, mark.y)]
        low, high = (
            round(1 - (1 - end) * room, 4) for end, room in ((min(values), 1.02), (max(values), 0.97))
        )
        named = self._worth_naming(marks)
        marks = [replace(m, label=self._short(m.row)) if m.row in named else m for m in marks]
        best, last = marks[0], marks[-1]
        label = (
            f"{len(marks)} models, from accuracy by the single label to accuracy by what people accept. "
            f"{self._name(best.row)}: {100 * best.x:.1f} to {100 * best.y:.1f} percent; "
            f"{self._name(last.row)}: {100 * last.x:.1f} to {100 * last.y:.1f}."
        )
        metric = self.board.metric(best.row, PEOPLE)
        return (
            graphics.slope(marks, low=low, high=high, label=label),
            low,
            high,
            metric.n if metric else 0,
        )

    def _short(self, row: int) -> str:
        name = self._name(row)
        return name if len(name) <= 26 else name[:25] + "…"

    def _worth_naming(self, marks: Sequence[graphics.Mark], number: int = 10) -> set[int]:
        """Rows to name in a crowd: first and last, who moves most each way, then whoever is far off."""
        moved = {mark.row: self.board.moved(mark.row) or 0 for mark in marks}
        height = {mark.row: math.log(max(1 - mark.y, 1e-4)) for mark in marks}
        order = [mark.row for mark in marks]
        chosen = list(dict.fromkeys([order[0], order[-1]]))
        for sign in (1, -1):
            movers = sorted((row for row in order if sign * moved[row] > 0), key=lambda r: -sign * moved[r])
            chosen += [row for row in movers[:2] if row not in chosen]
        distance = {row: min(abs(height[row] - height[c]) for c in chosen) for row in order}
        while len(chosen) < min(number, len(order)):
            farthest = max(order, key=lambda row: distance[row])
            chosen.append(farthest)
            distance = {row: min(d, abs(height[row] - height[farthest])) for row, d in distance.items()}
        return set(chosen)

    # --------------------------------------------------------------------------------------------- pictures

    def plots(self) -> str:
        """All pictures."""
        return self._page(
            "plots.html",
            "Pictures",
            description="Top-1 against what people accept, moves in rank, size and robustness.",
            plots=[
                self._plot_ranks(),
                self._plot_people(),
                self._plot_error(),
                self._plot_against(
                    "parameters", "Does size pay?", "Parameters", ((1e9, "G"), (1e6, "M"), (1e3, "k"))
                ),
                self._plot_against("throughput", "Does time pay?", "Images a second", ((1.0, ""),)),
                self._plot_robustness(),
            ],
        )

    def _scatter(
        self,
        marks: list[graphics.Mark],
        x: graphics.Axis,
        y: graphics.Axis,
        label: str,
        *,
        diagonal: bool = False,
    ) -> Markup:
        named = self._worth_naming(marks, 16)
        marks = [replace(m, label=self._short(m.row)) if m.row in named else m for m in marks]
        return graphics.scatter(marks, x, y, label=label, diagonal=diagonal)

    def _plot_ranks(self) -> dict[str, Any]:
        board = self.board
        marks = [
            graphics.Mark(
                row,
                board.top1_ranks[row].place,
                board.ranks[row].place,
                graphics.tone(board.moved(row)),
                self._short(row),
            )
            for row in board.by_rank
            if row in board.top1_ranks
        ]
        up = sum(mark.x > mark.y for mark in marks)
        down = sum(mark.x < mark.y for mark in marks)
        last = int(max((max(m.x, m.y) for m in marks), default=1))
        svg = (
            graphics.ranks(
                marks,
                most_names=MOST_NAMES,
                label=f"Ranks by top-1 and by what people accept: {up} models gain places, {down} lose some.",
            )
            if marks
            else None
        )
        return {
            "key": "ranks",
            "kind": "ranks",
            "title": "Who moves when people judge?",
            "why": f"Of {len(marks)} models {up} gain places and {down} lose some, by "
            "value alone. Many neighbours cannot be told apart: the table shows ranks as ranges.",
            "svg": svg,
            "data": {"x": "top1rank", "y": "rank", "last": last},
            "height": min(20 * max(len(marks), 8), 20 * MOST_NAMES),
            "x": "",
            "y": "",
            "absent": "There are no ranked models yet.",
        }

    def _plot_people(self) -> dict[str, Any]:
        marks = self._pairs(SINGLE, PEOPLE)
        plot: dict[str, Any] = {
            "key": "people",
            "kind": "scatter",
            "title": "The single label against people",
            "why": "Above the dashed line, people accept more answers than the single label does. Every "
            "ranked model lies above it, and the distance is what top-1 hides."
            if marks and all(m.y > m.x for m in marks)
            else "Above the dashed line, people accept more answers than the single label does.",
            "svg": None,
            "data": {},
            "height": 0,
            "x": "Right by the single label, %",
            "y": "Accepted by people, %",
            "absent": "No entry has both figures yet.",
        }
        if marks:
            values = [value for mark in marks for value in (mark.x, mark.y)]
            axis = graphics.Axis.errors(values)
            plot["svg"] = self._scatter(
                marks, axis, axis, "Accuracy by the single label against accuracy by people.", diagonal=True
            )
            plot["data"] = _axes(SINGLE, PEOPLE, axis, axis)
        return plot

    def _plot_error(self) -> dict[str, Any]:
        marks = []
        for row, accepted in self.board.accepted.items():
            single = self.board.metric(row, SINGLE)
            if row in self.board.ranks and single is not None:
                tone = graphics.tone(self.board.moved(row))
                marks.append(graphics.Mark(row, single.value, accepted.value, tone))
        marks.sort(key=lambda mark: self.board.ranks[mark.row].place)
        plot: dict[str, Any] = {
            "key": "error",
            "kind": "scatter",
            "title": "How much of the error is none?",
            "why": "Of the answers that the single label calls wrong, the share that people accept. What "
            "top-1 calls an error is not the same thing in a weak and in a strong model.",
            "svg": None,
            "data": {},
            "height": 0,
            "x": "Right by the single label, %",
            "y": "Called wrong, yet accepted, %",
            "absent": "No entry has this figure yet.",
        }
        if marks:
            x = graphics.Axis.errors([m.x for m in marks])
            y = graphics.Axis.shares([0.0, *(m.y for m in marks)])
            plot["svg"] = self._scatter(
                marks, x, y, "Accuracy against the share of wrong answers that is accepted."
            )
            plot["data"] = _axes(SINGLE, ACCEPTED, x, y)
        return plot

    def _plot_against(
        self, what: str, title: str, axis_name: str, units: Sequence[tuple[float, str]]
    ) -> dict[str, Any]:
        board = self.board
        marks = []
        for row in board.by_rank:
            cost, metric = getattr(board.entries[row].info, what), board.metric(row, PEOPLE)
            if cost and metric is not None:
                marks.append(graphics.Mark(row, float(cost), metric.value, graphics.tone(board.moved(row))))
        plot: dict[str, Any] = {
            "key": what,
            "kind": "scatter",
            "title": title,
            "why": f"Accuracy by what people accept against {axis_name.lower()} (logarithmic), for the "
            f"{len(marks)} models that state it.",
            "svg": None,
            "data": {},
            "height": 0,
            "x": axis_name,
            "y": "Accepted by people, %",
            "absent": f"No entry states its {axis_name.lower()} yet.",
        }
        if marks:
            x = graphics.Axis.logarithmic([m.x for m in marks], units)
            y = graphics.Axis.errors([m.y for m in marks])
            plot["svg"] = self._scatter(marks, x, y, f"{axis_name} against accuracy by people.")
            plot["data"] = _axes(what, PEOPLE, x, y)
        else:
            plot["why"] = ""
        return plot

    def _plot_robustness(self) -> dict[str, Any]:
        series = []
        threat = suite = ""
        radii: dict[float, str] = {}
        for entry in self.board.entries:
            track = entry.scorecard.tracks.get("robustness")
            rows = robustness.curve(track) if track is not None and entry.info.state == "active" else []
            if not rows:
                continue
            threat, suite = threat or rows[0].threat, suite or rows[0].suite
            if (rows[0].threat, rows[0].suite) != (threat, suite):
                continue
            points = [(0.0, rows[0].clean), *((row.epsilon, row.original.value) for row in rows)]
            series.append((self._short(self.board.rows[entry.slug]), points))
            radii.update({row.epsilon: row.short for row in rows})
        plot: dict[str, Any] = {
            "key": "robustness",
            "kind": "lines",
            "title": "How far can they be pushed?",
            "why": "",
            "svg": None,
            "data": {},
            "height": 0,
            "x": "Radius of the perturbation, in square roots",
            "y": "Robust accuracy by the single label, %",
            "absent": "No entry has the robustness track yet: run beyond score MODEL --images DIR "
            "--tracks rectified,robustness, and submit the run.",
        }
        if series:
            last = max(radii)
            ticks = ((0.0, "0"), *sorted(radii.items()))
            x = graphics.Axis(0.0, last, ticks, kind="root")
            y = graphics.Axis(0.0, 1.0, tuple((v / 4, f"{25 * v}") for v in range(5)))
            plot["svg"] = graphics.lines(
                series, x, y, label=f"Robust accuracy by radius of {len(series)} models."
            )
            plot["why"] = (
                f"Accuracy under attack by the radius, {radius_text(threat, last).split(' ')[0]}, suite "
                f"“{text.clean(suite)}”, for the {len(series)} entries that have the track."
            )
        return plot

    # ------------------------------------------------------------------------------------ compare, classes

    def compare(self) -> str:
        """The comparison of any two, which the browser computes."""
        return self._page(
            "compare.html",
            "Compare",
            description="Any two ImageNet models, image by image: paired differences and tests.",
        )

    def classes(self) -> str:
        """All classes."""
        class_name, kinds = class_names(), superclasses()
        evaluable = sum(fact.evaluable for fact in self.facts)
        order = sorted(
            range(NUM_CLASSES), key=lambda c: (-self.facts[c].others / max(self.facts[c].evaluable, 1), c)
        )
        rows = [
            {
                "index": c,
                "name": class_name[c],
                "kind": kinds[c],
                "others": f"{text.percent(self.facts[c].others / max(self.facts[c].evaluable, 1), 0)} %",
            }
            for c in order[:FIRST_ROWS]
        ]
        return self._page(
            "classes.html",
            "Classes",
            description="How often people accept another label, class by class, and which models gain.",
            share=sum(fact.others for fact in self.facts) / max(evaluable, 1),
            evaluable=evaluable,
            rows=rows,
        )

    def classes_data(self) -> str:
        """The script behind the table of classes."""
        kinds = superclasses()
        known = sorted(set(kinds))
        gains = self._mean_gain if self.scores.rows else None
        data = {
            "name": class_names(),
            "wnid": wnids(),
            "kinds": known,
            "kind": [known.index(kind) for kind in kinds],
            "evaluable": [fact.evaluable for fact in self.facts],
            "kept": [fact.kept for fact in self.facts],
            "others": [fact.others for fact in self.facts],
            "most": [fact.beside[0][0] if fact.beside else None for fact in self.facts],
            "gain": [
                round(100 * float(gains[c]), 1) if gains is not None and self.facts[c].evaluable else None
                for c in range(NUM_CLASSES)
            ],
        }
        return f"window.BEYOND_CLASSES={script_json(data)};\n"

    def class_page(self, c: int) -> str:
        """One class."""
        class_name, facts = class_names(), self.facts[c]
        models = len(self.scores.rows)
        total = int(self.scores.total[c])
        gainers = []
        for at in self._best[:, c] if total else []:
            single, people = (int(x[at, c]) for x in (self.scores.single, self.scores.people))
            if people <= single:
                break
            a, b = round(100 * single / total), round(100 * people / total)
            entry = self.board.entries[self.scores.rows[at]]
            gainers.append(
                {
                    "slug": entry.slug,
                    "name": text.clean(entry.info.name),
                    "single": a,
                    "people": b,
                    "low": min(a, b),
                    "span": abs(b - a),
                }
            )
        mean = 100 * float(self._mean_gain[c])
        return self._page(
            "class.html",
            class_name[c],
            description=f"What people accept in images labelled {class_name[c]}, and which models gain.",
            name=class_name[c],
            kind=superclasses()[c],
            wnid=wnids()[c],
            gloss=class_definitions()[c],
            facts=facts,
            others_interval=_share_interval(facts.others, facts.evaluable),
            kept_interval=_share_interval(facts.kept, facts.evaluable),
            beside=_class_rows(facts.beside, class_name),
            elsewhere=_class_rows(facts.elsewhere, class_name),
            models=models,
            gaining=int(self._gaining[c]) if models else 0,
            mean_gain=f"{mean:+.1f}".replace("-", "−"),
            gainers=gainers,
            before=(c - 1, class_name[c - 1]) if c else None,
            after=(c + 1, class_name[c + 1]) if c + 1 < NUM_CLASSES else None,
        )

    # -------------------------------------------------------------------------------------------- one entry

    def entry(self, row: int) -> str:
        """One entry."""
        board, entry = self.board, self.board.entries[row]
        info, scorecard = entry.info, entry.scorecard
        headline = rectified.headline(scorecard)
        rank, top1_rank = board.ranks.get(row), board.top1_ranks.get(row)
        tied, tied_more = self._tied(row)
        superseded = None
        if info.superseded_by:
            at = board.rows.get(info.superseded_by)
            superseded = (info.superseded_by, self._name(at)) if at is not None else None
        people = board.metric(row, PEOPLE)
        description = f"{self._name(row)} on ImageNet"
        if people:
            description += f": people accept {text.value(people)} % of its answers"
        return self._page(
            "entry.html",
            self._name(row),
            description=description,
            info=info,
            slug=entry.slug,
            scorecard=scorecard,
            name=self._name(row),
            family=text.clean(info.family),
            parameters=_size(info.parameters),
            headline=headline,
            change_sentence=rectified.change_sentence(headline.change if headline else None),
            superseded=superseded,
            rank=rank,
            top1_rank=top1_rank,
            moved=board.moved(row) or 0,
            ranked=len(board.ranks),
            facts=self._key_facts(row),
            status_text=_status_text(entry),
            tied=tied,
            tied_more=tied_more,
            tracks=render_tracks(scorecard),
            metrics=self._metrics(row),
            absent=_absent(entry),
            command=reproduce.command(scorecard),
            records=_records_line(entry),
            provenance=_provenance(entry),
            badge=self.badge_text(row),
        )

    def badge_text(self, row: int) -> str:
        """What the badge of an entry says."""
        metric = self.board.metric(row, PEOPLE)
        if metric is None:
            return f"Beyond Accuracy: {self._name(row)}"
        sample = ", sample" if self.board.entries[row].info.scope == "sample" else ""
        return f"people accept {text.percent(metric.value, 1)} %{sample}"

    def badge(self, row: int) -> str:
        """The badge of an entry as SVG."""
        return graphics.badge("Beyond Accuracy", self.badge_text(row).removeprefix("Beyond Accuracy: "))

    def _tied(self, row: int) -> tuple[list[tuple[str, str]], int]:
        """The nearest entries that the data cannot tell from it, and how many more there are."""
        order, at = self.board.by_rank, self._at.get(row)
        if at is None:
            return [], 0
        better = self.board.ranking.better
        others = np.flatnonzero(~(better[at] | better[:, at]))
        others = others[others != at]
        near = np.sort(others[np.argsort(np.abs(others - at), kind="stable")[:MOST_TIED]])
        tied = [order[int(other)] for other in near]
        return [(self.board.entries[r].slug, self._name(r)) for r in tied], len(others) - len(near)

    def _key_facts(self, row: int) -> list[dict[str, str]]:
        facts = []
        for key, label in (
            ("top1", "The single label agrees"),
            (PEOPLE, "People accept"),
            ("mla", "Experts accept"),
            (ACCEPTED, "Called wrong, yet accepted"),
        ):
            metric = self.board.accepted.get(row) if key == ACCEPTED else self.board.metric(row, key)
            if metric is not None:
                what = "ReaL" if key == ACCEPTED else names.metric_name("rectified", key).technical
                facts.append(
                    {
                        "label": label,
                        "value": f"{text.value(metric)} {text.unit_sign(metric)}".strip(),
                        "sub": f"{what}, {text.interval(metric)}, n {text.count(metric.n)}",
                    }
                )
        return facts

    def _metrics(self, row: int) -> list[dict[str, Any]]:
        found = []
        for column in self.board.columns:
            metric = column.values[row]
            if metric is None:
                continue
            found.append(
                {
                    "key": column_key(column),
                    "label": text.clean(column_name(column)[0].label),
                    "value": text.value(metric),
                    "unit": text.unit_sign(metric),
                    "interval": _interval_and_bounds(metric),
                    "n": metric.n,
                    "method": text.clean(metric.method)
                    + (f", {text.count(metric.raters)} raters" if metric.raters else ""),
                }
            )
        return found


def markdown_page(html: str, *, title: str, description: str, search: bool = True) -> str:
    """A Markdown file that holds one block of HTML on one line."""
    line = " ".join(part for part in (raw.strip() for raw in html.splitlines()) if part)
    head = f"---\ntitle: {_yaml(title)}\ndescription: {_yaml(description)}\nhide: [navigation, toc]\n"
    if not search:
        head += "search: {exclude: true}\n"
    return f"{head}---\n\n{line}\n"


def _yaml(value: str) -> str:
    # Themes put titles into HTML as they are.
    return json.dumps(str(escape(text.clean(value))), ensure_ascii=False)


def _keep_lines(value: object) -> Markup:
    """Text that keeps its line ends although the page is one line."""
    lines = [text.clean(line) if line.strip() else "" for line in str(value).splitlines()]
    indents = [len(line) - len(line.lstrip()) for line in str(value).splitlines()]
    return Markup("&#10;").join(" " * min(i, 40) + line for i, line in zip(indents, lines))


def _axes(x: str, y: str, across: graphics.Axis, up: graphics.Axis) -> dict[str, Any]:
    return {
        "x": x,
        "y": y,
        "xlow": f"{across.low:.6g}",
        "xhigh": f"{across.high:.6g}",
        "low": f"{up.low:.6g}",
        "high": f"{up.high:.6g}",
        "xscale": across.kind,
        "yscale": up.kind,
    }


def _share_interval(successes: int, n: int) -> str:
    if not n:
        return ""
    low, high = statistics.wilson(successes, n)
    return f"{100 * successes / n:.0f} %, interval {100 * low:.0f}–{100 * high:.0f}"


def _class_rows(counts: Sequence[tuple[int, int]], class_name: Sequence[str]) -> list[dict[str, Any]]:
    most = counts[0][1] if counts else 1
    return [
        {"index": c, "name": class_name[c], "n": n, "width": f"{100 * n / most:.0f}"}
        for c, n in counts[:SHOWN]
    ]


def _size(number: int | None) -> str:
    if number is None:
        return ""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return str(number)


def _interval_and_bounds(metric: Metric) -> str:
    parts = [text.interval(metric)]
    if text.bounds(metric):
        parts.append(f"(bounds {text.bounds(metric)})")
    return " ".join(part for part in parts if part)


def _status_text(entry: Entry) -> str:
    check = entry.info.verification
    if check is None:
        return STATUS[entry.info.status]
    agreed = f"{text.count(check.agreed)} of {text.count(check.n)}"
    return f"{agreed} random images agree, {check.checked.isoformat()}"


_AGREEMENT = ("agreement_none", "agreement_feature", "agreement_example")
_PROBES = ("shape_bias", "watermark_drop", "worst_factor_error_ratio", "co_occurrence_gap")


def _absent(entry: Entry) -> list[str]:
    """One line for each part of the suite that the entry does not have."""
    tracks = entry.scorecard.tracks
    keys: set[str] = {key for track in tracks.values() for key in track.metrics}
    lines = []
    if "rectified" not in tracks:
        lines.append("Rectified accuracy: not measured.")
    if "robustness" not in tracks:
        lines.append("Robustness under attack, and its curve over ε: not measured.")
    if not keys.intersection(_AGREEMENT):
        lines.append(
            "Agreement of people with adversarial predictions, without and with explanations: not yet rated."
        )
    if "criticism" not in tracks:
        lines.append("Model criticism and confirmed biases: not measured.")
    if not keys.intersection(_PROBES):
        lines.append("Standard probes (shape, watermark, factors, co-occurrence): not measured.")
    return lines


def _records_line(entry: Entry) -> str:
    records = entry.info.records
    if records.kind == "none":
        return "Its records are not published, so nobody can recompute the numbers."
    where = (
        f"{records.repository} at {records.revision}, {records.path}"
        if records.kind == "hub"
        else records.path
    )
    return f"Records: {where}, sha256 {records.sha256}."


def _provenance(entry: Entry) -> list[tuple[str, str, str | None]]:
    """Label, text and link (https, checked by the schema) of all that is known about its origin."""
    info, scorecard = entry.info, entry.scorecard
    rows: list[tuple[str, object, str | None]] = [
        ("Made by", info.organisation, None),
        ("Authors", info.authors, None),
        ("Published", info.year, None),
        ("Parameters", None if info.parameters is None else text.count(info.parameters), None),
        ("Input", None if info.input_size is None else f"{info.input_size} pixels a side", None),
        ("Multiply-adds an image", None if info.flops is None else text.count(info.flops), None),
        ("Images a second", info.throughput, None),
    ]
    for label, link in (
        ("Paper", info.links.paper),
        ("Code", info.links.code),
        ("Weights", info.links.weights),
        ("Predictions", info.links.predictions),
    ):
        rows.append((label, link, link))
    rows += [
        ("Licence of the weights", info.licence.weights, None),
        ("Licence of the predictions", info.licence.predictions, None),
        ("Submitted", info.submitted.isoformat(), None),
        ("Contact", info.contact, None),
        ("Specification", scorecard.model.spec, None),
        ("Weights, SHA-256", scorecard.model.weights_sha256, None),
        ("Images", f"{scorecard.images.name}: {text.count(scorecard.images.n)}", None),
        ("Images, SHA-256", scorecard.images.fingerprint, None),
    ]
    rows += [
        (f"Judgements, {names.source_name(source).label}", revision, None)
        for source, revision in sorted(scorecard.annotations.sources.items())
    ]
    rows += [(key, value, None) for key, value in sorted(scorecard.provenance.items())]
    return [
        (text.clean(label).replace("_", " "), text.clean(value), link)
        for label, value, link in rows
        if value not in (None, "")
    ]
