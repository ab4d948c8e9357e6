"""One trial: spoilt input is read, or refused with BeyondError, in bounded time."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from random import Random

from annotations.errors import BeyondError
from tests.fuzz.targets import SPECS, Target, spoilt_text

SECONDS = 20
"""Of this process's CPU: far more than any of the small inputs here needs, so only a hang gets there."""


@contextlib.contextmanager
def refused_or_read() -> Iterator[None]:
    """Nothing but BeyondError, with a message, leaves the block, and it ends."""

    def stop(*_: object) -> None:
        raise AssertionError(f"not done after {SECONDS} seconds of CPU")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    except BeyondError as error:
        if not str(error).strip():
            raise AssertionError("an error without a message") from error
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def try_file(target: Target, rng: Random, folder: Path) -> None:
    """Spoil the file of a target and read it."""
    target.write(folder, target.spoil(rng))
    with refused_or_read():
        target.read(folder)


def try_text(name: str, rng: Random, _folder: Path | None = None) -> None:
    """Spoil a text and parse it."""
    parse, examples = SPECS[name]
    text = spoilt_text(rng, examples)
    with refused_or_read():
        parse(text)
