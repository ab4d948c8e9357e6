"""`beyond validate` and `beyond models`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from annotations.errors import BeyondError, CheckFailedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmark.models.available import Available
    from benchmark.validation import Check

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON on standard output and nothing else there."
)


@click.command()
@click.argument("spec", metavar="MODEL")
@click.option(
    "--images", default="sample", show_default=True, help="Image set with labels, for the canary checks."
)
@json_option
def validate(spec: str, images: str, as_json: bool) -> None:
    """Check a classifier against the contract, before any long run.

    MODEL is a spec, e.g. timm:resnet50 or path/to/file.py:factory. Exit status 1 if a check fails.
    """
    from benchmark.models import load
    from benchmark.validation import read_canary
    from benchmark.validation import validate as run_checks

    classifier = load(spec)
    try:
        pixels, labels = read_canary(images, classifier)
    except BeyondError as error:
        if images != "sample":
            raise
        # The sample photographs come with an extra; the checks of form do without.
        click.echo(f"canary checks are left out: {error}", err=True)
        checks = run_checks(classifier)
    else:
        checks = run_checks(classifier, pixels, labels)
    failed = [check.name for check in checks if check.passed is False]
    if as_json:
        data = {"model": classifier.describe(), "passed": not failed, "checks": [asdict(c) for c in checks]}
        click.echo(json.dumps(data, indent=2, ensure_ascii=False))
    else:
        _print_checks(checks)
    if failed:
        raise CheckFailedError(
            f"{spec} fails {len(failed)} of {len(checks)} checks: {', '.join(failed)}; see the table"
        )


def _print_checks(checks: Sequence[Check]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    signs = {True: Text("✓", "green"), False: Text("✗", "bold red"), None: Text("–", "dim")}
    table = Table(box=None, show_header=False, pad_edge=False)
    for style in ("", "bold", ""):
        table.add_column(style=style, overflow="fold")
    for check in checks:
        table.add_row(signs[check.passed], check.name, Text(check.detail))
    Console().print(table)


@click.command()
@click.option(
    "--all", "pattern", metavar="PATTERN", help="List every known name that matches, fetched or not."
)
@json_option
def models(pattern: str | None, as_json: bool) -> None:
    """List the models that can be loaded here without a network.

    With --all 'resnet50*', list what timm and torchvision have weights for.
    """
    from benchmark.models import SOURCES, available

    found = available.offline() if pattern is None else available.matching(pattern)
    if as_json:
        click.echo(json.dumps([asdict(item) for item in found], indent=2))
        return
    if not found:
        click.echo("none" if pattern is None else f"no name matches {pattern!r}")
    else:
        _print_models(found)
    if pattern is None:
        width = max(len(source.form) for source in SOURCES.values())
        click.echo("\nEvery form of MODEL:")
        for source in SOURCES.values():
            click.echo(f"  {source.form:{width}}  {source.about}")
        click.echo("\nNames with weights to fetch: beyond models --all 'PATTERN*'")


def _print_models(found: Sequence[Available]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("Model", "Parameters", "Input", "Weights"):
        table.add_column(
            heading, justify="right" if heading in ("Parameters", "Input") else "left", no_wrap=True
        )
    for item in found:
        parameters = f"{item.parameters / 1e6:.1f} M" if item.parameters else ""
        table.add_row(item.spec, parameters, str(item.input_size or ""), item.where or "to fetch")
    Console().print(table)
