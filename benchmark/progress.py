"""Progress of long work on standard error: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.status import Status
from rich.text import Text

_SECONDS_BETWEEN_LINES = 30.0


class Meter:
    """Counts finished items and shows how far the work is."""

    def __init__(self, description: str, total: int | None, *, unit: str = "images") -> None:
        self.description, self.total, self.unit = description, total, unit
        self.done = 0
        self._started = self._last = time.monotonic()
        self._bar: Progress | None = None

    def advance(self, count: int) -> None:
        """Report `count` more finished items."""
        self.done += count
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self.done, rate=f"{self.rate():.1f}/s")
        elif time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            print(self.line(), file=sys.stderr, flush=True)  # noqa: T201 - this is the output

    def drop(self, count: int) -> None:
        """Say that `count` of the items need not be done."""
        if self.total is not None:
            self.total -= count
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], total=self.total)

    def rate(self) -> float:
        """Items a second since the start."""
        return self.done / max(time.monotonic() - self._started, 1e-9)

    def line(self) -> str:
        """One line for logs: done, total, rate and the time left."""
        rate = self.rate()
        text = f"{self.description}: {self.done:,}"
        if self.total is not None:
            left = (self.total - self.done) / rate if rate else float("inf")
            text += f" of {self.total:,}"
            text += f", {left / 60:.1f} min left" if left != float("inf") else ""
        return (
            f"{text} {self.unit}, {rate:.1f}/s" if self.total is None else f"{text}, {rate:.1f} {self.unit}/s"
        )


@contextmanager
def meter(
    description: str, total: int | None, *, unit: str = "images", quiet: bool = False
) -> Iterator[Meter]:
    """Show progress while the block runs.

    Args:
        description: What is being done.
        total: Number of items, or None when it is not known.
        unit: What an item is called.
        quiet: Show nothing.
    """
    result = Meter(description, total, unit=unit)
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        if quiet:
            result._last = float("inf")
        yield result
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        bar.add_task(description, total=total, rate="")
        result._bar = bar
        yield result


class StatusLine:
    """One line that says where long work of unknown length is."""

    def __init__(self, name: str, console: Console | None) -> None:
        self._name, self._console = name, console
        self._last = time.monotonic()
        self._live: Status | None = None

    def update(self, text: str) -> None:
        """Say where the work is: at once on a terminal, now and then elsewhere."""
        line = f"{self._name}: {text}"
        if self._live is not None:
            self._live.update(Text(line))
        elif self._console is not None and time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            print(line, file=sys.stderr, flush=True)  # noqa: T201 - this is the output


@contextmanager
def status_line(name: str, *, quiet: bool = False) -> Iterator[StatusLine]:
    """Show one line about the work while the block runs.

    Args:
        name: What is being done.
        quiet: Show nothing.
    """
    console = None if quiet else Console(stderr=True)
    line = StatusLine(name, console)
    if console is None or not console.is_terminal:
        yield line
        return
    with console.status(Text(name)) as live:
        line._live = live
        yield line
