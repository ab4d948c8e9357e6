"""`beyond check`: the regression gate on the command line, as a table, JSON or Markdown."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchmark.cli.score import annotations_option, split_list
from benchmark.report.text import clean, count

if TYPE_CHECKING:
    from leaderboard.gate import Gate, Row, Verdict

WORDS: dict[Verdict, str] = {
    "worse": "WORSE",
    "not shown": "NOT SHOWN",
    "within": "within margin",
    "better": "better",
    "no drop shown": "no drop shown",
    "same": "same",
    "changed": "CHANGED",
}


def _title(row: Row) -> str:
    from benchmark.report.names import metric_name

    return metric_name(row.track, row.metric).technical


def _number(row: Row, value: float | None, sign: str = "") -> str:
    if value is None:
        return "–"
    return f"{100 * value:{sign}.2f}" if row.unit == "fraction" else f"{value:{sign}.3g}"


def _interval(row: Row) -> str:
    if row.ci_low is None or row.ci_high is None:
        return ""
    return f"{_number(row, row.ci_low, '+')} to {_number(row, row.ci_high, '+')}"


def _p(row: Row) -> str:
    if row.p_adjusted is None:
        return ""
    return "<0.001" if row.p_adjusted < 0.001 else f"{row.p_adjusted:.3f}"


def headline(found: Gate) -> str:
    """The result in one sentence."""
    bad = [row for row in found.rows if not row.passed]
    total = len(found.rows)
    many = f"{total} metric" + ("s" if total != 1 else "")
    if found.rule == "exact":
        if not bad:
            return f"PASSED: {many}, all the same"
        return f"FAILED: {len(bad)} of {many} changed: {', '.join(row.metric for row in bad)}"
    if not bad:
        what = "no drop shown" if found.rule == "worse" else "a drop beyond the margin is ruled out"
        return f"PASSED: {what} in {many} (alpha {found.alpha:g}, {_how(found)})"
    worst = min((row for row in bad if row.difference is not None), key=lambda row: row.p_worse or 0.0)
    dropped = f"{_title(worst)} {_number(worst, worst.difference, '+')}"
    verb = "worse" if found.rule == "worse" else "not shown to be within their margins"
    return f"FAILED: {len(bad)} of {many} {verb}, {dropped} (alpha {found.alpha:g}, {_how(found)})"


def _how(found: Gate) -> str:
    return ("paired" if found.paired else "unpaired") + (", Holm" if found.rule == "worse" else "")


def _columns(found: Gate) -> list[tuple[str, Callable[[Row], str]]]:
    """Head and cell of every column after the first."""
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("baseline", lambda row: _number(row, row.baseline)),
        ("run", lambda row: _number(row, row.run)),
        ("change", lambda row: _number(row, row.difference, "+")),
    ]
    if found.rule != "exact":
        columns.append(("95 % interval", _interval))
        if any(row.margin for row in found.rows):
            columns.append(("margin", lambda row: _number(row, row.margin)))
        columns.append(("p", _p))
    columns.append(("", lambda row: WORDS[row.verdict]))
    return columns


def _sensitivity(found: Gate) -> str:
    from leaderboard.gate import POWER

    shown = [row for row in found.rows if row.detectable is not None and row.unit == "fraction"]
    if not shown:
        return ""
    parts = [f"{_title(row)} {100 * (row.detectable or 0):.2f}" for row in shown]
    return f"Drops beyond the margin seen {POWER:.0%} of the time, in points: {', '.join(parts)}."


def show(found: Gate) -> None:
    """Print the result as a table for people."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(
        f"run:      {clean(found.run)}\nbaseline: {clean(found.baseline)}\n",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("in percent", no_wrap=True)
    columns = _columns(found)
    for head, _ in columns:
        table.add_column(head, justify="right" if head else "left", no_wrap=True)
    for row in found.rows:
        style = "bold red" if not row.passed else "green" if row.verdict == "better" else ""
        table.add_row(clean(_title(row)), *(cell(row) for _, cell in columns), style=style)
    console.print(table)
    console.print()
    sizes = sorted({row.n for row in found.rows})
    span = count(sizes[0]) if len(sizes) == 1 else f"{count(sizes[0])} to {count(sizes[-1])}"
    lines = [f"On {span} images.", _sensitivity(found), *found.notes]
    for line in filter(None, lines):
        console.print(clean(line), soft_wrap=True, markup=False, highlight=False)
    console.print(f"\n{headline(found)}", soft_wrap=True, markup=False, highlight=False)


def to_markdown(found: Gate) -> str:
    """The result for a job summary or a comment; nothing in a name can act as Markdown or HTML."""
    columns = _columns(found)
    lines = [
        f"### beyond check: {'passed' if found.passed else 'failed'}",
        "",
        f"{escape(found.run)} against {escape(found.baseline)}. {escape(headline(found))}.",
        "",
        "| in percent | " + " | ".join(head or "verdict" for head, _ in columns) + " |",
        "|---|" + "---:|" * (len(columns) - 1) + "---|",
    ]
    for row in found.rows:
        cells = [escape(_title(row)), *(escape(cell(row)) for _, cell in columns)]
        if not row.passed:
            cells[0], cells[-1] = f"**{cells[0]}**", f"**{cells[-1]}**"
        lines.append("| " + " | ".join(cells) + " |")
    notes = [note for note in (_sensitivity(found), *found.notes) if note]
    return "\n".join([*lines, "", *(f"* {escape(note)}" for note in notes)]).rstrip() + "\n"


def escape(text: str) -> str:
    """Text of others for Markdown: one line, no HTML, no table cells, no links, no mentions, no markup."""
    return html.escape(clean(text), quote=False).translate(_MARKUP)


_MARKUP = str.maketrans({char: f"&#{ord(char)};" for char in "\\`*_[]()!#|~@"})


# -------------------------------------------------------------------------------------------------- command


def parse_margins(
    _context: click.Context, _parameter: click.Parameter, values: Sequence[str]
) -> dict[str, float]:
    """Turn `top1=0.5` (points) into `{"top1": 0.005}`; a bare number is for all metrics."""
    margins: dict[str, float] = {}
    for item in (part.strip() for value in values for part in value.replace("\n", ",").split(",")):
        if not item:
            continue
        name, _, number = item.rpartition("=")
        try:
            points = float(number)
        except ValueError:
            raise click.BadParameter(f"{item!r} is not METRIC=POINTS, e.g. top1=0.5") from None
        if not 0 <= points < 100:
            raise click.BadParameter(f"{item!r}: a margin is 0 or more points, e.g. top1=0.5")
        if (name.strip() or "all") in margins:
            raise click.BadParameter(f"the margin of {name or 'all'} is given twice")
        margins[name.strip() or "all"] = points / 100
    return margins


@click.command()
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--baseline",
    required=True,
    metavar="RUN|SCORECARD",
    type=click.Path(path_type=Path),
    help="What it must not be worse than: a run folder, or a scorecard.json.",
)
@annotations_option
@click.option("--tracks", callback=split_list, metavar="NAME,…", help="Only these. [default: what both have]")
@click.option(
    "--metrics",
    callback=split_list,
    metavar="NAME,…",
    help="What to test, or all. [default: the accuracies]",
)
@click.option(
    "--margin",
    "margins",
    multiple=True,
    callback=parse_margins,
    metavar="METRIC=POINTS",
    help="How much worse a metric may be, in points; a bare number is for all. [default: 0]",
)
@click.option(
    "--alpha",
    type=click.FloatRange(0, 0.5, min_open=True),
    default=0.05,
    show_default=True,
    help="Chance of a false alarm, over all metrics together.",
)
@click.option(
    "--rule",
    type=click.Choice(["worse", "non-inferior", "exact"]),
    default="worse",
    show_default=True,
    help="Fail if a drop is shown; unless a drop beyond the margin is ruled out; or on any change.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")
@click.option(
    "--markdown",
    "markdown_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also write the result as Markdown, e.g. to $GITHUB_STEP_SUMMARY.",
)
@click.pass_context
def check(
    context: click.Context, /, run: Path, *, as_json: bool, markdown_file: Path | None, **asked: Any
) -> None:
    """Fail if RUN is worse than a baseline: exit status 0 passed, 1 failed, 2 could not be tested.

    \b
    beyond check runs/new --baseline runs/old
    beyond check runs/new --baseline runs/old --margin top1=0.5 --margin real_accuracy=0.3
    beyond check runs/new --baseline baseline/scorecard.json --markdown "$GITHUB_STEP_SUMMARY"

    Between two run folders the tests are paired, image by image; with a bare scorecard they cannot be.
    """  # noqa: D301 - click reads the escape
    from leaderboard.gate import gate

    found = gate(run, **asked)
    if markdown_file is not None:
        markdown_file.write_text(to_markdown(found), encoding="utf-8")
    if as_json:
        click.echo(found.model_dump_json(indent=2, exclude_none=True))
    else:
        show(found)
    context.exit(0 if found.passed else 1)
