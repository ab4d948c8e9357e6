"""`beyond leaderboard`: what maintainers and submitters do with entries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from annotations.errors import BeyondError
from leaderboard.drift import drift
from leaderboard.review import comment, review
from leaderboard.verify import verify

if TYPE_CHECKING:
    from leaderboard.ranking import Movement, Ranking
    from leaderboard.validation import Report

METRICS = ("top1", "top1_evaluable", "real_accuracy", "mla_plain", "consolidated_accuracy")

entries_option = click.option(
    "--entries",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of entries. [default: those of this repository]",
)


@click.group()
def leaderboard() -> None:
    """Check, rank and publish entries: scorecards with their provenance."""


for command in (comment, drift, review, verify):
    leaderboard.add_command(command)


def _folder(folder: Path | None) -> Path:
    from leaderboard.entries import ENTRIES_FOLDER

    return folder or ENTRIES_FOLDER


# ------------------------------------------------------------------------------------------------ validate


@leaderboard.command()
@click.argument("names", nargs=-1, metavar="[ENTRY]…")
@entries_option
@click.option(
    "--records",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder with the records that entries name by path; every metric is computed again from them.",
)
@click.option("--hub", is_flag=True, help="Download the records that lie on the Hub, at their pinned commit.")
@click.option(
    "--submission", is_flag=True, help="Demand what a new submission must be: self-reported, active."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on standard output.")
@click.pass_context
def validate(
    context: click.Context,
    names: tuple[str, ...],
    *,
    folder: Path | None,
    records: Path | None,
    hub: bool,
    submission: bool,
    as_json: bool,
) -> None:
    """Check entries: form, arithmetic, intervals, hashes, licences, duplicates, life cycle.

    \b
    beyond leaderboard validate
    beyond leaderboard validate resnet50 --records predictions
    beyond leaderboard validate my-model --hub --submission

    Without names all entries are checked; duplicates are always looked for among all. Exit status 1 if
    anything is wrong. Nothing that was submitted is executed.
    """  # noqa: D301 - a backslash-b keeps click from joining the lines
    from leaderboard.validation import validate as check

    report = check(_folder(folder), names, records=records, hub=hub, submission=submission)
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
    else:
        _show_report(report)
    context.exit(0 if report.passed else 1)


def _show_report(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    from benchmark.report.text import clean

    console = Console()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("entry", "status", "checked from", "result"):
        table.add_column(column, no_wrap=True)
    for checked in report.entries:
        wrong = sum(finding.level == "error" for finding in checked.findings)
        table.add_row(
            clean(checked.slug),
            checked.status,
            checked.basis,
            f"{wrong} wrong" if wrong else "ok",
            style="red" if wrong else "",
        )
    console.print(table)
    for finding in report.findings:
        console.print(
            clean(f"{finding.level}: {finding.slug}: {finding.message}"),
            soft_wrap=True,
            markup=False,
            highlight=False,
            style={"error": "red", "warning": "yellow"}.get(finding.level, ""),
        )
    wrong = sum(finding.level == "error" for finding in report.findings)
    console.print(
        f"\n{len(report.entries)} entries checked, {wrong} findings."
        if wrong
        else f"\n{len(report.entries)} entries checked, nothing wrong.",
        highlight=False,
    )


# ---------------------------------------------------------------------------------------------------- rank


@leaderboard.command()
@entries_option
@click.option(
    "--metric", type=click.Choice(METRICS), default="real_accuracy", show_default=True, help="Rank by this."
)
@click.option(
    "--alpha",
    type=click.FloatRange(0, 0.5, min_open=True),
    default=0.05,
    show_default=True,
    help="Chance of any wrong claim that one entry is better than another.",
)
@click.option(
    "--from", "before", type=click.Choice(METRICS), help="Also show how ranks move from this metric."
)
@click.option("--json", "as_json", is_flag=True, help="Print the ranking as JSON on standard output.")
def rank(folder: Path | None, *, metric: str, alpha: float, before: str | None, as_json: bool) -> None:
    """Rank entries, as ranges where the data cannot tell them apart.

    \b
    beyond leaderboard rank
    beyond leaderboard rank --from top1

    Every pair is compared by McNemar's exact test on the same images, with Holm's correction over all pairs.
    Samples, superseded and incomplete entries are listed without a rank.
    """  # noqa: D301 - click reads the escape
    from leaderboard.entries import load_entries
    from leaderboard.ranking import movement, rank_entries

    entries = load_entries(_folder(folder))
    names = {entry.slug: entry.info.name for entry in entries}
    if before is None:
        ranking, moved = rank_entries(entries, metric, alpha=alpha), None
    elif before == metric:
        raise BeyondError(f"--from and --metric are both {metric}; name two")
    else:
        ranking = rank_entries(entries, metric, alpha=alpha)
        moved = movement(entries, before, metric, alpha=alpha)
    if as_json:
        click.echo(json.dumps(_ranking_json(ranking, moved), indent=2, ensure_ascii=False))
    else:
        _show_ranking(ranking, moved, names)


def _ranking_json(ranking: Ranking, moved: Movement | None) -> dict[str, object]:
    from dataclasses import asdict

    data: dict[str, object] = {
        "metric": ranking.metric,
        "alpha": ranking.alpha,
        "n": ranking.n,
        "method": "mcnemar exact, holm over all pairs",
        "pairs": ranking.pairs,
        "told_apart": ranking.told_apart,
        "ranks": {slug: asdict(place) for slug, place in ranking.ranks.items()},
        "unranked": ranking.excluded,
    }
    if moved is not None:
        data["moved_from"] = {
            "metric": moved.before.metric,
            "kendall_tau": moved.tau,
            "moves": [
                {"slug": m.slug, "places": m.places, "before": asdict(m.before), "significant": m.significant}
                for m in moved.moves
            ],
            "swaps": [asdict(swap) for swap in moved.swaps],
        }
    return data


def _show_ranking(ranking: Ranking, moved: Movement | None, names: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from benchmark.report.text import clean, count

    console = Console()
    before = {} if moved is None else {move.slug: move for move in moved.moves}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("rank", justify="right", no_wrap=True)
    table.add_column("entry", no_wrap=True)
    table.add_column(f"{ranking.metric} %", justify="right", no_wrap=True)
    if moved is not None:
        table.add_column(f"by {moved.before.metric}", justify="right", no_wrap=True)
        table.add_column("gained", justify="right", no_wrap=True)
    for slug, place in ranking.ranks.items():
        cells = [place.text, clean(names[slug]), f"{100 * place.value:.2f}"]
        if slug in before:
            cells += [before[slug].before.text, f"{before[slug].places:+d}" if before[slug].places else "0"]
        table.add_row(*cells)
    console.print(table)
    console.print(
        f"\n{len(ranking.ranks)} entries on {count(ranking.n)} images. The data tell "
        f"{count(ranking.told_apart)} of {count(ranking.pairs)} pairs apart "
        f"(McNemar's exact test, Holm's correction, α = {ranking.alpha:g}); the others share ranks.",
        highlight=False,
    )
    if moved is not None:
        sure = [swap for swap in moved.swaps if swap.p_value <= ranking.alpha]
        console.print(
            f"Kendall's τ with the order by {moved.before.metric} is {moved.tau:.3f}. {len(moved.swaps)} "
            f"pairs change places; for {len(sure)} of them their difference changes by more than chance.",
            highlight=False,
        )
        for swap in sure[:10]:
            console.print(
                f"  {clean(names[swap.overtakes])} overtakes {clean(names[swap.overtaken])}: its lead goes "
                f"from {-100 * swap.before:+.2f} to {-100 * swap.after:+.2f} points on the same images",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
    for slug, reason in ranking.excluded.items():
        console.print(f"without a rank: {clean(names[slug])}: {clean(reason)}", highlight=False, markup=False)


# ----------------------------------------------------------------------------------------- build and serve


@leaderboard.command()
@entries_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("build/site"),
    show_default=True,
    help="Folder for the sources of the site: Markdown, JSON and assets.",
)
@click.option(
    "--site", type=click.Path(path_type=Path, file_okay=False), help="Folder for the site. [default: site]"
)
@click.option("--sources-only", is_flag=True, help="Write the sources, and do not run mkdocs.")
def build(folder: Path | None, *, out: Path, site: Path | None, sources_only: bool) -> None:
    """Build the static site from the entries and the pages of docs/."""
    built = _build(folder, out, site, sources_only=sources_only)
    click.echo(f"Open {built / 'index.html'}" if not sources_only else f"Sources in {built}")


def _build(folder: Path | None, out: Path, site: Path | None, *, sources_only: bool = False) -> Path:
    """Write the sources and, unless told otherwise, the site; its folder."""
    import os
    import subprocess
    import sys

    from benchmark.report.text import count
    from leaderboard.site.build import build as write

    built = write(_folder(folder), out=out)
    click.echo(
        f"{count(built.entries)} entries, {count(built.ranked)} of them ranked: {count(built.files)} files, "
        f"{built.size / 1e6:.1f} MB in {built.out}",
        err=True,
    )
    if sources_only:
        return built.out
    _need_mkdocs()
    target = (site or Path("site")).resolve()
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--clean"]
    command += ["-f", str(built.config), "--site-dir", str(target)]
    done = subprocess.run(command, env={**built.environment(), **os.environ}, check=False)
    if done.returncode:
        raise BeyondError(f"mkdocs could not build {built.config}; its messages are above")
    return target


def _need_mkdocs() -> None:
    import importlib.util

    if importlib.util.find_spec("mkdocs") is None:
        raise BeyondError("the site is built by mkdocs; install it with: pip install 'beyond-accuracy[site]'")


@leaderboard.command()
@entries_option
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes any.")
def serve(folder: Path | None, *, port: int) -> None:
    """Build the site in a temporary folder and serve it on this machine alone."""
    import functools
    import tempfile
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    with tempfile.TemporaryDirectory() as name:
        site = _build(folder, Path(name) / "sources", Path(name) / "site")
        handler = functools.partial(SimpleHTTPRequestHandler, directory=str(site))
        with ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
            click.echo(f"Serving http://127.0.0.1:{server.server_port}/ (Ctrl-C stops)")
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                click.echo("stopped", err=True)
