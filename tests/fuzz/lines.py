"""Command lines of random arguments: any command, any of its options, values of the kind and of any other."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import socket
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from random import Random

import click

from benchmark.cli import beyond, main
from tests.fuzz import damage
from tests.fuzz.targets import TARGETS, spoilt_text

# What serves until it is stopped, opens an editor, or takes minutes even where all is well.
NOT_TRIED = {
    ("campaign", "serve"), ("campaign", "demo"), ("leaderboard", "serve"), ("leaderboard", "build"),
    ("demo",),
}  # fmt: skip
PLAIN = [
    "real", "mla", "sample", "consolidated:real+mla", "hub:org/name", "efficientnet-lite0x",
    "timm:nothing", "0", "1", "-1", "0.5", "4/255", "1e9", "run", "run2", "images", "labels",
    "campaign.db", "out", "out.html", "out.json", ".", "nowhere/at/all", "rectified", "robustness",
    "criticism", "resnet50", "top1=0.5", "quick", "all", "cpu", "linf",
]  # fmt: skip


@cache
def commands() -> dict[tuple[str, ...], click.Command]:
    """Every command that is tried, by its words."""

    def below(
        command: click.Command, words: tuple[str, ...]
    ) -> Iterator[tuple[tuple[str, ...], click.Command]]:
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                found = command.get_command(context, name)
                if found is not None:
                    yield from below(found, (*words, name))
        elif words not in NOT_TRIED:
            yield words, command

    return dict(below(beyond, ()))


def fill(folder: Path, rng: Random) -> list[str]:
    """Put a few files, spoilt or sound, into a folder; returns what arguments may name."""
    names = []
    for number, target in enumerate(rng.sample(TARGETS, 4)):
        below = folder / f"f{number}"
        target.write(below, target.spoil(rng) if rng.random() < 0.6 else target.sound())
        names += [f"f{number}", f"f{number}/{target.file}"]
    return names


def line(rng: Random, names: list[str]) -> list[str]:
    """The words of a command line."""
    words, command = rng.choice(sorted(commands().items()))
    arguments = list(words)
    options = [p for p in command.params if isinstance(p, click.Option) and "help" not in p.name]
    given = [p for p in options if p.required or rng.random() < 2.5 / (1 + len(options))]
    for option in given:
        arguments.append(rng.choice([*option.opts, *option.secondary_opts]))
        if not option.is_flag:
            arguments += [value(rng, option, names) for _ in range(option.nargs)]
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            count = rng.randint(0, 3) if parameter.nargs < 0 else parameter.nargs
            arguments += [value(rng, parameter, names) for _ in range(count)]
    if rng.random() < 0.15:
        arguments.insert(
            rng.randint(1, len(arguments)), rng.choice(["--json", "--no-such", "-x", "--", "--out"])
        )
    return [text.replace("\0", "") for text in arguments]


def value(rng: Random, parameter: click.Parameter, names: list[str]) -> str:
    """Something for an option or argument: mostly of its kind, sometimes anything."""
    kind = parameter.type
    if rng.random() < 0.75:
        if isinstance(kind, click.Choice):
            return str(rng.choice(list(kind.choices)))
        if isinstance(kind, click.types.IntParamType):
            return str(rng.choice([1, 2, 3, 5, 0, -1, 10**6]))
        if isinstance(kind, click.types.FloatParamType):
            return rng.choice(["0.5", "1", "0", "-1", "nan", "inf", "1e-9"])
    return rng.choice([*names * 3, *PLAIN, spoilt_text(rng, PLAIN), rng.choice(damage.TEXTS)]).replace(
        "\ud800", ""
    )


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Every connection is refused at once, as without a network."""

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    before = socket.socket.connect, socket.getaddrinfo
    socket.socket.connect = refuse  # type: ignore[method-assign]
    socket.getaddrinfo = refuse  # type: ignore[assignment]
    try:
        yield
    finally:
        socket.socket.connect, socket.getaddrinfo = before  # type: ignore[method-assign]


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in a folder, whose own `cache` is the store."""
    kept = {
        name: os.environ.get(name)
        for name in ("BEYOND_CACHE", "HF_HUB_OFFLINE", "BEYOND_DEBUG", "BEYOND_SHARED_DATA")
    }
    os.environ.update(BEYOND_CACHE=str(folder / "cache"), HF_HUB_OFFLINE="1", BEYOND_SHARED_DATA=str(folder))
    os.environ.pop("BEYOND_DEBUG", None)
    try:
        with contextlib.chdir(folder):
            yield
    finally:
        for name, text in kept.items():
            os.environ.pop(name, None) if text is None else os.environ.__setitem__(name, text)


def run(arguments: list[str]) -> tuple[int, str, str]:
    """Run a command line in this process; returns its exit status, output and errors.

    Raises:
        Exception: Whatever `main` let through.
    """
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return status, out.getvalue(), err.getvalue()


def try_line(rng: Random, folder: Path) -> None:
    """Run a random command line: exit status 0, 1 or 2, and never a traceback or an internal error.

    Raises:
        AssertionError: Something else came out.
    """
    folder = folder.resolve()
    arguments = line(rng, fill(folder, rng))
    with inside(folder), offline():
        status, _out, err = run(arguments)
    told = [text for text in err.splitlines() if text.startswith(("error:", "Error:", "Usage:"))]
    if status not in (0, 1, 2) or "Traceback" in err or "internal error" in err:
        raise AssertionError(f"{arguments} ended with {status}: {err[-400:]}")
    if status == 2 and not told:
        raise AssertionError(f"{arguments} ended with {status} and said nothing")


def warm_up() -> None:
    """Import what commands import while they run, so that no trial pays for it."""
    for name in ("torch", "pandas", "benchmark.engine", "leaderboard.gate", "annotations.campaign.store"):
        importlib.import_module(name)
