"""`beyond show` and `beyond tracks`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from annotations.errors import BeyondError


@click.command()
@click.argument("run_paths", nargs=-1, required=True, metavar="RUN…", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print scorecards as JSON on standard output.")
@click.option(
    "--html",
    "html_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write one self-contained page to FILE.",
    metavar="FILE",
)
@click.option(
    "--examples",
    type=click.IntRange(0, 200),
    default=0,
    show_default=True,
    help="With --html: show N images beside their adversarials. Such a page must not be published.",
    metavar="N",
)
def show(run_paths: tuple[Path, ...], *, as_json: bool, html_file: Path | None, examples: int) -> None:
    """Show the scorecard of RUN, a run folder or a scorecard.json; of several, one table.

    \b
    beyond show runs/resnet50
    beyond show runs/*
    beyond show runs/resnet50 --html resnet50.html
    beyond show runs/resnet50 --html local.html --examples 12
    beyond show runs/resnet50 --json | jq .tracks.rectified.metrics
    """  # noqa: D301 - click reads the escape
    from benchmark.scorecard import read_scorecard

    if len(run_paths) > 1:
        if html_file is not None:
            raise BeyondError("--html makes the page of one run: name one RUN")
        from benchmark.cli.score import show as show_scorecards

        show_scorecards([(path, read_scorecard(path)) for path in run_paths], as_json=as_json)
        return
    run = run_paths[0]
    scorecard = read_scorecard(run)
    if examples and html_file is None:
        raise BeyondError("--examples goes with --html FILE: pictures need a page")
    if examples and not run.is_dir():
        raise BeyondError(f"--examples needs the run folder, which keeps the images; {run} is a file")
    if html_file is not None:
        from annotations.files import write_atomically
        from benchmark.report.page import render_page

        if not html_file.parent.is_dir():
            raise BeyondError(f"there is no folder {html_file.parent}; make it, or write the page elsewhere")
        found = []
        if examples:
            from benchmark.report.examples import adversarial_examples

            found = adversarial_examples(run, examples)
        write_atomically(html_file, render_page(scorecard, examples=found))
        click.echo(f"wrote {html_file}", err=True)
        if found:
            click.echo("it holds pixels of the images: keep it on this machine, do not publish it", err=True)
    if as_json:
        click.echo(scorecard.to_json(), nl=False)
    elif html_file is None:
        from rich.console import Console

        from benchmark.report.terminal import print_scorecard

        print_scorecard(scorecard, console=Console())


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the tracks as JSON on standard output.")
def tracks(*, as_json: bool) -> None:
    """List the tracks and what each of their metrics means."""
    from dataclasses import asdict

    from benchmark.tracks import TRACKS

    if as_json:
        # Where the code is concerns nobody who reads this.
        listed = [
            {key: value for key, value in asdict(t).items() if key != "function"} for t in TRACKS.values()
        ]
        click.echo(json.dumps(listed, indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    from benchmark.report.terminal import print_tracks

    print_tracks(TRACKS.values(), console=Console())
