"""The `beyond` command. Subcommands are loaded by import string, so that `beyond --help` imports no torch."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from typing import Any

import click

from annotations.errors import BeyondError

COMMANDS = {
    "annotations": ("annotations.cli:annotations", "List, download, import, merge and show label sets."),
    "campaign": ("benchmark.cli.campaign:campaign", "Ask people: make, serve and look after a campaign."),
    "check": ("leaderboard.check:check", "Fail if a run is worse than a baseline."),
    "compare": ("benchmark.cli.compare:compare", "Compare two runs, image by image."),
    "criticize": ("benchmark.cli.criticize:criticize", "Find the biases a model has learned."),
    "demo": ("benchmark.cli.demo:demo", "Score the sample model on the sample images."),
    "explain": ("benchmark.cli.explain:explain", "Explain adversarial predictions, to show to people."),
    "leaderboard": ("leaderboard.cli:leaderboard", "Check, rank and publish entries."),
    "models": ("benchmark.cli.models:models", "List the models that can be loaded here."),
    "probe": ("benchmark.cli.probe:probe", "Run one standard probe alone, or list them."),
    "propose": ("benchmark.cli.propose:propose", "List pairs that people should judge next."),
    "rescore": ("benchmark.cli.score:rescore", "Score a run again from its records alone."),
    "score": ("benchmark.cli.score:score", "Score a classifier, or files of its predictions."),
    "show": ("benchmark.cli.show:show", "Show a run's scorecard, in the terminal or as a page."),
    "study": ("benchmark.cli.study:study", "Ask people whether explanations change what they accept."),
    "submit": ("leaderboard.submit:submit", "Make an entry of the leaderboard out of a run, and send it."),
    "tracks": ("benchmark.cli.show:tracks", "List the tracks and their metrics."),
    "validate": ("benchmark.cli.models:validate", "Check a classifier against the contract."),
}


class LazyGroup(click.Group):
    """A click group that imports a subcommand only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's interface
        """Names of all subcommands, sorted."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import and return one subcommand, or None if there is no such name."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[Any, Any, list[str]]:
        """Find the subcommand, suggesting the nearest name when there is none."""
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            ctx.fail(did_you_mean(args[0], list(COMMANDS), what="command"))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands from the table, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


def did_you_mean(name: str, known: list[str], *, what: str) -> str:
    """One line that says a name is unknown and which known one is nearest."""
    import difflib

    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"
    return f"no such {what} {name!r}{hint}"


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="beyond-accuracy", prog_name="beyond")
def beyond() -> None:
    """Score ImageNet-1k classifiers the way the people who use them experience them."""


def main(argv: list[str] | None = None) -> None:
    """Run `beyond`; every expected failure is one line on standard error and an exit status.

    Set BEYOND_DEBUG=1 to see a traceback.
    """
    try:
        # click returns the status of a command that called `Context.exit`.
        status = beyond.main(args=argv, prog_name="beyond", standalone_mode=False)
        if isinstance(status, int) and status:
            sys.exit(status)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.exceptions.Abort, KeyboardInterrupt):
        # CPython notes an interrupt in `exec` of a string, as in many packages' imports, as never caught, and
        # would end the process by the signal in place of the status; the next such call clears the note.
        exec("")  # noqa: S102
        _fail("interrupted; what was finished is kept, and the same command goes on from there", 130)
    except BrokenPipeError:
        # The reader of a pipe (head, less) left; nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:  # noqa: BLE001 - the last line of defence: a user never sees a traceback
        known = isinstance(error, OSError | MemoryError)
        code = error.exit_code if isinstance(error, BeyondError) else 2 if known else 3
        _fail(message_of(error), code)


def message_of(error: Exception) -> str:
    """One line for the user: what is wrong, and what to do."""
    if isinstance(error, BeyondError):
        return str(error)
    if isinstance(error, OSError):
        return _os_error(error)
    if isinstance(error, MemoryError):
        return "memory ran out; use a smaller --batch-size or fewer --workers, and run the same command again"
    return f"internal error: {type(error).__name__}: {error} (BEYOND_DEBUG=1 shows where; please report it)"


def _fail(message: str, code: int) -> None:
    if os.environ.get("BEYOND_DEBUG"):
        import traceback

        traceback.print_exc()
    click.echo("error: " + " ".join(message.split()), err=True)
    sys.exit(code)


def _os_error(error: OSError) -> str:
    where = error.filename or "the output"
    if error.errno == errno.ENOSPC:
        return f"no space left on the disk while writing {where}; free some and run the same command again"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"cannot read or write {where}: {error.strerror}; check its permissions, or name another"
    return f"{error.strerror or error}: {where}"
