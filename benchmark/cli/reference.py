"""Writes the reference of the command line, from the commands: `python -m benchmark.cli.reference`."""

from __future__ import annotations

import html
import inspect
from collections.abc import Iterator

import click

from benchmark.cli import beyond

HEAD = """\
# Command line

<!-- Made by `python -m benchmark.cli.reference > docs/cli.md`; a test compares the two. -->

Every command answers `--help`. Long work shows progress and the time left on standard error. With
`--json`, standard output holds JSON and nothing else.

| Exit status | Meaning |
|---|---|
| 0 | done |
| 1 | a check ran to its end, and its verdict is no |
| 2 | bad input or usage; one line says what is wrong and what to do |
| 3 | a fault in Beyond Accuracy itself; `BEYOND_DEBUG=1` shows where |
| 130 | interrupted; the same command goes on from there |
"""


def reference() -> str:
    """The reference of all commands, as Markdown."""
    context = click.Context(beyond, info_name="beyond")
    return HEAD + "".join(part for name in beyond.list_commands(context) for part in _command(name, context))


def _command(name: str, parent: click.Context, level: int = 2) -> Iterator[str]:
    group = parent.command
    command = group.get_command(parent, name) if isinstance(group, click.Group) else None
    if command is None:
        raise click.UsageError(f"no such command {name!r}")
    context = click.Context(command, info_name=name, parent=parent)
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield f"\n{'#' * level} {context.command_path}\n\n```text\n{usage}\n```\n"
    yield from _help(inspect.cleandoc(command.help or ""))
    records = [
        record
        for parameter in command.get_params(context)
        if isinstance(parameter, click.Option) and "--help" not in parameter.opts
        if (record := parameter.get_help_record(context))
    ]
    if records:
        yield "\n| Option | |\n|---|---|\n"
        for option, text in records:
            yield f"| <code>{_cell(option)}</code> | {_cell(text)} |\n"
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            yield from _command(child, context, level + 1)


def _help(text: str) -> Iterator[str]:
    """Paragraphs as they are, and those that start with click's mark for "do not wrap" as code."""
    for paragraph in text.split("\n\n"):
        first, _, rest = paragraph.partition("\n")
        yield f"\n```console\n{rest}\n```\n" if first.strip() == "\b" else f"\n{paragraph}\n"


def _cell(text: str) -> str:
    """Text for a table's cell: a bar would end it, and readers disagree on how to escape one inside code."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "&#124;")


if __name__ == "__main__":
    click.echo(reference(), nl=False)
