"""A scorecard on a terminal: the headline, every number with its interval and n, and what lies behind it.

It fits 80 columns, needs neither colour nor UTF-8, and prints nothing that could act on the terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from benchmark.report import agreement, criticism, names, rectified, reproduce, robustness, text
from benchmark.scorecard import Scorecard, Track
from benchmark.tracks import TrackInfo

WIDTH = 80
MAX_CLASSES = 5
MAX_CONFUSIONS = 5
MAX_FINDINGS = 10

_PEOPLE, _SINGLE, _QUIET, _ALARM = "bold cyan", "bold", "dim", "bold red"
_ASCII = str.maketrans(
    {"–": "-", "−": "-", "→": ">", "·": "|", "█": "#", "“": '"', "”": '"', "’": "'", "…": "."}
)
_BAR = 18


def print_scorecard(scorecard: Scorecard, *, console: Console) -> None:
    """Print a scorecard, headline first.

    Args:
        scorecard: What to print.
        console: Where to; its width (at most 80 columns are used), colour and encoding are respected.
    """
    _Printer(console).scorecard(scorecard)


def print_table(scorecards: Sequence[Scorecard], *, console: Console) -> None:
    """Print several scorecards as one table, the most accepted first.

    Args:
        scorecards: What to print.
        console: Where to, as for `print_scorecard`.
    """
    _Printer(console).many(scorecards)


class _Printer:
    """Prints through one console, in ASCII where its encoding has no more."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.width = min(console.width, WIDTH)
        self.unicode = console.encoding.lower().replace("-", "").startswith("utf")

    def plain(self, string: str) -> str:
        if self.unicode:
            return string
        return string.translate(_ASCII).encode("ascii", "replace").decode("ascii")

    def write(self, *pieces: tuple[str, str], indent: int = 0) -> None:
        line = Text()
        for string, style in pieces:
            line.append(self.plain(string), style)
        for part in line.wrap(self.console, self.width - indent):
            part.rstrip()
            self.console.print(Text(" " * indent).append_text(part))

    def gap(self) -> None:
        self.console.print()

    def title(self, string: str, *, note: str = "") -> None:
        self.gap()
        self.write((string, "bold"), *([(f"  {note}", _QUIET)] if note else []))

    def table(self, head: list[str], *, first: int | None = None) -> Table:
        """A table without lines: the first column takes what is left, the others hold numbers."""
        table = Table(
            box=None, padding=(0, 2, 0, 0), show_header=any(head), header_style=_QUIET, expand=False
        )
        for position, name in enumerate(head):
            if position == 0:
                table.add_column(self.plain(name), width=first, overflow="fold", header_style=_QUIET)
            else:
                table.add_column(self.plain(name), justify="right", no_wrap=True, header_style=_QUIET)
        return table

    def cell(self, string: str, style: str = "") -> Text:
        return Text(self.plain(string), style)

    def show(self, table: Table) -> None:
        self.console.print(Padding(table, (0, 0, 0, 2), expand=False), width=self.width)

    def bar(self, share: float) -> str:
        """A bar of blocks; whatever is more than nothing is at least one block long."""
        return "█" * max(round(share * _BAR), 1 if share > 0 else 0)

    def scorecard(self, scorecard: Scorecard) -> None:
        images = scorecard.images
        facts = f"{text.count(images.n)} images of {text.clean(images.name)}"
        if images.skipped:
            facts += f", {text.count(images.skipped)} could not be read"
        self.write((text.clean(scorecard.model.name), "bold"), (f" · {facts}", _QUIET))
        self.gap()
        self.headline(scorecard)
        if images.sample:
            self.gap()
            self.write(
                ("A sample, not an ImageNet figure. ", _ALARM),
                (
                    f"These {text.count(images.n)} images are not the validation set: do not quote them so.",
                    "",
                ),
                indent=2,
            )
        order = list(names.TRACK_TITLES)
        for name in sorted(scorecard.tracks, key=lambda n: (order.index(n) if n in order else len(order), n)):
            track = scorecard.tracks[name]
            if len(scorecard.tracks) > 1:
                self.title(names.TRACK_TITLES.get(name, text.clean(name)).upper())
            self.metrics(name, track)
            if name in TRACKS:
                TRACKS[name](self, track)
            if track.notes:
                self.title("Worth knowing")
            for note in track.notes:
                self.write((text.clean(note), _QUIET), indent=2)
        self.title("Make it again")
        self.write((reproduce.command(scorecard), ""), indent=2)

    def many(self, scorecards: Sequence[Scorecard]) -> None:
        rows = [(card, rectified.headline(card)) for card in scorecards]
        rows.sort(key=lambda row: (-row[1].accepted if row[1] else 0.0, row[0].model.name))
        table = self.table(["model", "top-1", "label", "accepted", "95 %", "error", "n"])
        for card, headline in rows:
            track = card.tracks.get("rectified")
            top1 = track.metrics.get("top1") if track else None
            cells = [
                self.cell(text.clean(card.model.name)),
                self.cell(text.value(top1) if top1 else "", _SINGLE),
            ]
            if headline is not None:
                decimals = text.digits(headline.n)
                interval = ""
                if headline.ci_low is not None and headline.ci_high is not None:
                    ends = (text.percent(end, decimals) for end in (headline.ci_low, headline.ci_high))
                    interval = "–".join(ends)
                reduction = headline.change.reduction if headline.change else None
                cells += [
                    self.cell(text.percent(headline.single, decimals), _SINGLE),
                    self.cell(text.percent(headline.accepted, decimals), _PEOPLE),
                    self.cell(interval),
                    self.cell("" if reduction is None else f"{text.percent(-reduction)} %"),
                    self.cell(text.count(headline.n), _QUIET),
                ]
            table.add_row(*cells)
        self.show(table)
        sources = sorted({headline.source for _, headline in rows if headline})
        self.gap()
        if sources:
            self.write(
                (
                    "In percent. label: matches the single label on the same n images; accepted: by the "
                    f"label sets of {', '.join(sources)}; error: how it changes between the two.",
                    _QUIET,
                ),
                indent=2,
            )
        self.many_attacked(scorecards)
        if any(card.images.sample for card in scorecards):
            self.write(("A sample, not ImageNet figures: do not quote them as such.", _ALARM), indent=2)

    def many_attacked(self, scorecards: Sequence[Scorecard]) -> None:
        """The same for the robustness track: one row a model, each at the radius its metrics are of."""
        rows = [
            (card, head)
            for card in scorecards
            if "robustness" in card.tracks and (head := robustness.quoted(card.tracks["robustness"]))
        ]
        if not rows:
            return
        # Like with like: rows of one radius and suite stand together, the most robust first.
        rows.sort(
            key=lambda r: (r[1].threat, r[1].epsilon, r[1].suite, -r[1].original.value, r[0].model.name)
        )
        self.title("Under attack", note="right half: images whose label people keep")
        table = self.table(["model", "attack", "n", "label", "95 %", "n", "label", "people", "hidden"])
        for card, head in rows:
            cells = [
                self.cell(text.clean(card.model.name)),
                self.cell(f"{head.text} {head.suite}", _QUIET),
                self.cell(text.count(head.original.n), _QUIET),
                self.cell(text.percent(head.original.value), _SINGLE),
                self.cell(_ends(head.original), _QUIET),
            ]
            if head.rectified and head.hidden and head.same_original:
                cells += [
                    self.cell(text.count(head.rectified.n), _QUIET),
                    self.cell(text.percent(head.same_original.value), _SINGLE),
                    self.cell(text.percent(head.rectified.value), _PEOPLE),
                    self.cell(text.percent(head.hidden.value)),
                ]
            table.add_row(*cells)
        table.padding = (0, 1, 0, 0)
        self.show(table)
        self.gap()
        words = "Robust accuracy in percent: by the single label, and by what people accept."
        if len({(head.threat, head.epsilon, head.suite) for _, head in rows}) > 1:
            words += " Rows of different attacks say nothing about each other."
        self.write((words, _QUIET), indent=2)

    def headline(self, scorecard: Scorecard) -> None:
        headline = rectified.headline(scorecard)
        if headline is None:
            return
        self.write(
            (f"{headline.judges} accept ", ""),
            (f"{text.percent(headline.accepted)} %", _PEOPLE),
            (" of its answers; the single label says ", ""),
            (f"{text.percent(headline.single)} %", _SINGLE),
            (".", ""),
            indent=2,
        )
        words = f"Same {text.count(headline.n)} images, label sets: {headline.source}"
        if headline.ci_low is not None and headline.ci_high is not None:
            words += f"; 95 % interval {text.percent(headline.ci_low)}–{text.percent(headline.ci_high)}"
        self.write((f"{words}.", _QUIET), indent=2)
        if sentence := rectified.change_sentence(headline.change):
            self.write((sentence, _QUIET), indent=2)

    def metrics(self, track_name: str, track: Track) -> None:
        """Every metric, by group: plain and technical name, value, interval, n; bounds on a second line."""
        if not track.metrics:
            return
        self.gap()
        table = Table(box=None, padding=(0, 1, 0, 0), header_style=_QUIET)
        table.add_column("", width=31, overflow="fold")
        table.add_column("", width=16, overflow="fold", style=_QUIET)
        for column, width in (("%", 6), ("95 % interval", 13), ("n", 7)):
            table.add_column(column, justify="right", width=width, overflow="fold")
        group = None
        for key in names.in_reading_order(track_name, track.metrics):
            if track_name == "robustness" and key.startswith("agreement_"):
                continue  # in a table of its own, with raters
            metric, name = track.metrics[key], names.metric_name(track_name, key)
            if name.group != group:
                if group is not None:
                    table.add_row()
                group = name.group
                table.add_row(self.cell(names.GROUP_TITLES[name.group], "bold"))
            value = text.value(metric)
            if text.unit_sign(metric) not in ("%", ""):
                value += f" {text.unit_sign(metric)}"
            table.add_row(
                self.cell(f"  {text.clean(name.label)}"),
                self.cell(text.clean(name.technical)),
                self.cell(value, _PEOPLE if name.group == "people" else _SINGLE),
                self.cell(text.interval(metric)),
                self.cell(text.count(metric.n), _QUIET),
            )
            if text.bounds(metric):
                unjudged = (
                    "" if metric.judged is None else f", {text.count(metric.n - metric.judged)} unjudged"
                )
                label = self.cell(f"    bounds{unjudged}", _QUIET)
                table.add_row(label, "", "", self.cell(text.bounds(metric), _QUIET))
        self.console.print(table, width=self.width)


def _ends(share: robustness.Share) -> str:
    """An interval in percent, empty if there is none."""
    if share.ci_low is None or share.ci_high is None:
        return ""
    return f"{text.percent(share.ci_low)}–{text.percent(share.ci_high)}".replace("–-", " to -")


def _rectified(printer: _Printer, track: Track) -> None:
    changes = rectified.error_changes(track)
    if changes:
        printer.title("Error, on the same images")
        table = printer.table(["judged by", "n", "single label", "people", "smaller by", "95 %"])
        for c in changes:
            interval = ""
            if c.ci_low is not None and c.ci_high is not None:
                interval = f"{text.percent(c.ci_low)}–{text.percent(c.ci_high)}".replace("–-", " to -")
            table.add_row(
                printer.cell(c.source),
                printer.cell(text.count(c.n), _QUIET),
                printer.cell(text.percent(c.standard), _SINGLE),
                printer.cell(text.percent(c.rectified), _PEOPLE),
                printer.cell("" if c.reduction is None else f"{text.percent(c.reduction)} %"),
                printer.cell(interval, _QUIET),
            )
        printer.show(table)
    kinds = rectified.mistake_kinds(track)
    if kinds:
        total = sum(kind.n for kind in kinds)
        printer.title(
            "What its mistakes are", note=f"{text.count(total)} answers that differ from the single label"
        )
        table = printer.table(["", "", "", ""])
        table.columns[1].justify = "left"
        for kind in kinds:
            style = {"multi_label": _PEOPLE, "unclear": "cyan", "severe": "red", "unjudged": _QUIET}.get(
                kind.key, "yellow"
            )
            table.add_row(
                printer.cell(kind.label),
                printer.cell(printer.bar(kind.share), style),
                printer.cell(f"{text.percent(kind.share)} %"),
                printer.cell(text.count(kind.n), _QUIET),
            )
        printer.show(table)
    gains = rectified.class_gains(track, limit=MAX_CLASSES)
    if gains:
        printer.title("Classes that gain most", note="accuracy by single label → by people")
        table = printer.table(["", "", ""])
        for gain in gains:
            table.add_row(
                printer.cell(gain.name),
                printer.cell(
                    f"{text.percent(gain.standard, 0)} → {text.percent(gain.rectified, 0)} %", _PEOPLE
                ),
                printer.cell(f"n {text.count(gain.n)}", _QUIET),
            )
        printer.show(table)
    confusions = rectified.confusions(track, limit=MAX_CONFUSIONS)
    if confusions:
        printer.title("Confusions that people accept", note="label → answer")
        table = printer.table(["", ""])
        for confusion in confusions:
            pair = f"{confusion.original} → {confusion.predicted}"
            table.add_row(printer.cell(pair), printer.cell(text.count(confusion.n)))
        printer.show(table)


def _robustness(printer: _Printer, track: Track) -> None:
    for warned in robustness.warnings(track):
        printer.gap()
        printer.write(("Read with care: ", _ALARM), (f"{warned.message} ({warned.where}).", ""), indent=2)
    rows = robustness.radii(track)
    if rows:
        printer.title("Robust accuracy by radius", note="right half: images whose label people keep")
        table = printer.table(["attack", "n", "clean", "label", "n", "label", "people", "hidden", "95 %"])
        for row in rows:
            cells = [
                printer.cell(f"{row.text} {row.suite}", "bold" if row.quoted and len(rows) > 1 else ""),
                printer.cell(text.count(row.original.n), _QUIET),
                printer.cell(text.percent(row.clean)),
                printer.cell(text.percent(row.original.value), _SINGLE),
            ]
            if row.rectified and row.hidden and row.same_original is not None:
                cells += [
                    printer.cell(text.count(row.rectified.n), _QUIET),
                    printer.cell(text.percent(row.same_original.value), _SINGLE),
                    printer.cell(text.percent(row.rectified.value), _PEOPLE),
                    printer.cell(text.percent(row.hidden.value)),
                    printer.cell(_ends(row.hidden), _QUIET),
                ]
            table.add_row(*cells)
        for column in table.columns:
            column.header_style = _QUIET
        table.padding = (0, 1, 0, 0)
        printer.show(table)
    _distances(printer, track)
    steps = robustness.attack_steps(track)
    if steps:
        printer.title("What broke it", note="images broken, of those left before the attack")
        table = printer.table(["", "", ""])
        table.columns[1].justify = "left"
        for step in steps:
            table.add_row(
                printer.cell(step.attack),
                printer.cell(printer.bar(step.broke / step.before), "yellow"),
                printer.cell(f"{text.count(step.broke)} of {text.count(step.before)}"),
            )
        printer.show(table)
    counts = robustness.verdict_counts(track)
    if counts:
        printer.title("What people say of its attacked answers")
        table = printer.table(["judged by", "answers", "accepted", "unsure", "rejected", "unjudged"])
        for c in counts:
            numbers = (c.n, c.accepted, c.unsure, c.rejected, c.unjudged)
            table.add_row(printer.cell(c.source), *(printer.cell(text.count(n)) for n in numbers))
        printer.show(table)
    accepted = robustness.accepted_predictions(track, limit=MAX_CONFUSIONS)
    if accepted:
        printer.title("Attacked answers that people accept", note="label → answer, size of the perturbation")
        table = printer.table(["", ""])
        for prediction in accepted:
            pair = f"{prediction.original} → {prediction.predicted}"
            note = f" ({prediction.note})" if prediction.note else ""
            table.add_row(printer.cell(pair + note), printer.cell(prediction.distance))
        printer.show(table)
    _agreement(printer, track)
    groups = robustness.label_groups(track)
    if groups:
        printer.title("By what people say of the label")
        table = printer.table(["", "n", "clean", "robust, label", "robust, people"])
        for group in groups:
            people = "" if group.rectified is None else text.percent(group.rectified)
            table.add_row(
                printer.cell(group.label),
                printer.cell(text.count(group.n), _QUIET),
                printer.cell(text.percent(group.clean)),
                printer.cell(text.percent(group.original), _SINGLE),
                printer.cell(people, _PEOPLE),
            )
        printer.show(table)


def _agreement(printer: _Printer, track: Track) -> None:
    """What people answered when they were shown its attacked answers, or that nobody was asked."""
    if not track.metrics:
        return
    printer.title("Do people agree when they see why?")
    asked = agreement.agreement(track)
    if asked is None:
        printer.write((agreement.NOT_RATED, _QUIET), indent=2)
        printer.write(("Ask them with: beyond study create RUN --out STUDY", _QUIET), indent=2)
        return
    if asked.made_up:
        printer.write(("No person answered. ", _ALARM), (agreement.MADE_UP, ""), indent=2)
    table = printer.table(["", "share", "95 %", "raters", "answers"])
    measure = ""
    for row in asked.rated:
        if row.measure != measure:
            measure = row.measure
            table.add_row(printer.cell(measure, "bold"))
        table.add_row(
            printer.cell(f"  {row.arm}"),
            printer.cell(row.text, _PEOPLE),
            printer.cell(row.ends, _QUIET),
            printer.cell(text.count(row.raters)),
            printer.cell(text.count(row.answers), _QUIET),
        )
    printer.show(table)
    if asked.gains:
        table = printer.table(["agreement, points", "difference", "95 %", "p, Holm"])
        for gain in asked.gains:
            table.add_row(
                printer.cell(gain.what),
                printer.cell(gain.text, _PEOPLE),
                printer.cell(gain.ends, _QUIET),
                printer.cell("" if gain.p_holm is None else f"{gain.p_holm:.4f}"),
            )
        printer.gap()
        printer.show(table)


def _distances(printer: _Printer, track: Track) -> None:
    """The smallest perturbations found: quartiles where the suite minimal was run, and a histogram."""
    quartiles = robustness.quartiles(track)
    if quartiles:
        printer.title("How small a change is enough", note="upper bounds; found for how many of n")
        table = printer.table(["to leave", "threat", "found", "n", "25 %", "median", "95 %", "75 %"])
        for q in quartiles:
            people = q.objective == "rectified"
            name = "what people accept" if people else "the label"
            table.add_row(
                printer.cell(name + (", same images" if q.images != "right" and not people else "")),
                printer.cell(q.threat, _QUIET),
                printer.cell(text.count(q.found), _QUIET),
                printer.cell(text.count(q.n), _QUIET),
                printer.cell(q.lower),
                printer.cell(q.median, _PEOPLE if people else _SINGLE),
                printer.cell(q.interval, _QUIET),
                printer.cell(q.upper),
            )
        table.padding = (0, 1, 0, 0)
        printer.show(table)
    bins = robustness.distance_bins(track)
    if bins:
        note = "images by distance: single label, people"
        printer.title("Smallest perturbations", note=note)
        most = max(1, *(max(b.original, b.rectified) for b in bins))
        table = printer.table(["", "", "", "", ""])
        table.columns[1].justify = table.columns[3].justify = "left"
        for b in bins:
            table.add_row(
                printer.cell(b.text),
                printer.cell(printer.bar(b.original / most), _SINGLE),
                printer.cell(text.count(b.original)),
                printer.cell(printer.bar(b.rectified / most), _PEOPLE),
                printer.cell(text.count(b.rectified)),
            )
        printer.show(table)


def _criticism(printer: _Printer, track: Track) -> None:
    found = criticism.findings(track)
    confirmed = [f for f in found if f.confirmed]
    if "confirmed_biases" in track.metrics:
        printer.title("Biases that hold", note="criticisms minus prototypes, in points; confirmation half")
        if confirmed:
            table = printer.table(["", "points", "95 %", "criticisms", "prototypes"])
            for f in confirmed[:MAX_FINDINGS]:
                table.add_row(
                    printer.cell(f"{f.subject}: {f.says}", _PEOPLE),
                    printer.cell(criticism.points(f.difference)),
                    printer.cell(f"{criticism.points(f.ci_low)} to {criticism.points(f.ci_high)}", _QUIET),
                    printer.cell(f"{f.criticisms[0]} of {f.criticisms[1]}"),
                    printer.cell(f"{f.prototypes[0]} of {f.prototypes[1]}"),
                )
            printer.show(table)
        else:
            printer.write((criticism.verdict(track), ""), indent=2)
    held = [s for s in criticism.slices(track) if s.confirmed]
    if held:
        printer.title("Groups that hold", note="wrong more often than their confidence says, in points")
        table = printer.table(["", "points", "95 %", "wrong"])
        for s in held[:MAX_FINDINGS]:
            table.add_row(
                printer.cell(s.name, _PEOPLE),
                printer.cell(criticism.points(s.excess)),
                printer.cell(f"{criticism.points(s.ci_low)} to {criticism.points(s.ci_high)}", _QUIET),
                printer.cell(f"{s.wrong[0]} of {s.wrong[1]}"),
            )
        printer.show(table)
    probes = [p for p in criticism.probes(track) if p.metric is not None]
    if any(p.references for p in probes):
        printer.title("Probes beside others")
        table = printer.table(["", "", ""])
        table.columns[2].justify = "left"
        for p in probes:
            for position, reference in enumerate(p.references):
                table.add_row(
                    printer.cell(p.label if position == 0 else ""),
                    printer.cell(reference.value),
                    printer.cell(reference.who, _QUIET),
                )
        printer.show(table)
    classes = criticism.classes(track, limit=MAX_CLASSES)
    if classes:
        printer.title("Classes on the edge", note="median distance of right answers")
        table = printer.table(["", "distance", "right", "images"])
        for c in classes:
            table.add_row(
                printer.cell(c.name),
                printer.cell("" if c.distance is None else f"{c.distance:.2g}", _PEOPLE),
                printer.cell(text.count(c.right)),
                printer.cell(text.count(c.n), _QUIET),
            )
        printer.show(table)
    firm = criticism.firmness(track)
    if firm:
        printer.title("How firm is the choice?", note="the same images measured again")
        table = printer.table(["changed", "n", "rank corr.", "prototypes", "criticisms"])
        for row in firm:
            numbers = (row.correlation, row.prototypes, row.criticisms)
            table.add_row(
                printer.cell(row.changed),
                printer.cell(text.count(row.n), _QUIET),
                *(printer.cell("" if value is None else f"{value:.2f}") for value in numbers),
            )
        printer.show(table)


# Track name to what is printed below its metrics.
TRACKS: dict[str, Callable[[_Printer, Track], None]] = {
    "rectified": _rectified,
    "robustness": _robustness,
    "criticism": _criticism,
}


def print_tracks(tracks: Iterable[TrackInfo], *, console: Console) -> None:
    """Print the tracks of the registry: their metrics, what each means, and their tables.

    Args:
        tracks: The tracks.
        console: Where to, as for `print_scorecard`.
    """
    printer = _Printer(console)
    for track in tracks:
        printer.write((track.name, _PEOPLE), (f" · version {track.version} · {track.title}", ""))
        for metric in track.metrics:
            printer.gap()
            plain = names.METRICS.get(track.name, {}).get(metric.name)
            printer.write(
                (metric.name, "bold"),
                (f" · {plain.technical}: {plain.label}" if plain else "", _QUIET),
                indent=2,
            )
            printer.write((metric.description, ""), indent=4)
        printer.title("Tables")
        for name, rows in track.tables.items():
            printer.write((name, "bold"), indent=2)
            printer.write((rows, ""), indent=4)
