"""The one exception whose message is written for the person at the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class BeyondError(Exception):
    """A problem the user can act on.

    The message is one line: what is wrong, then what to do. The command line prints it without a traceback
    and exits with `exit_code` (2 for bad input, 1 for a failed check).
    """

    exit_code = 2


class CheckFailedError(BeyondError):
    """A check ran to its end and its verdict is no."""

    exit_code = 1


def one_line(error: BaseException, limit: int = 200) -> str:
    """An exception's message in one line of at most so many characters; without a message, its name."""
    text = " ".join(str(error).split())
    return (text[:limit] + " …" if len(text) > limit else text) or type(error).__name__


def first_problem(error: ValidationError) -> str:
    """The first thing that pydantic found wrong, in one line: where, and what."""
    first = error.errors()[0]
    at = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return f"{at}: {message}" if at else message


def user_path(text: str) -> Path:
    """The path that a person named, `~` resolved.

    Raises:
        BeyondError: It can be no path on this system.
    """
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long; nobody's home; a NUL in it
        raise BeyondError(
            f"{text[:80]!r} cannot be a path ({getattr(error, 'strerror', None) or error}); check it"
        ) from None
    return path


def database_trouble(error: BaseException) -> str | None:
    """One line on an error of a database or its driver; None for any other error."""
    if type(error).__module__.partition(".")[0] not in ("sqlalchemy", "psycopg", "psycopg_pool", "sqlite3"):
        return None
    cause = getattr(error, "orig", None) or error
    reason = one_line(cause, 300)
    if "not a database" in reason or "malformed" in reason:
        return f"--db names no sound campaign ({reason}); name its file, or restore a backup"
    return (
        f"the campaign's database does not answer ({reason}); no acknowledged answer is lost: see that it "
        "runs and has space, and give the same command again"
    )
