"""What a pull request changes in the entries, for the workflows: `beyond leaderboard review` and `comment`.

`review` runs with trusted code on a checkout of strangers' data, which it reads and never executes. `comment`
runs later, with the right to comment, on nothing but the file that `review` wrote, which by then is data of
strangers too: it is read strictly, and every word of it is escaped.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import click
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from annotations.errors import BeyondError

if TYPE_CHECKING:
    from benchmark.scorecard import Scorecard

MAX_ENTRIES = 20
MAX_BYTES = 1_000_000
MAX_FINDINGS = 50

Short = Annotated[str, StringConstraints(max_length=200)]
Long = Annotated[str, StringConstraints(max_length=2000)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Note(_Strict):
    """One finding."""

    level: Literal["error", "warning", "note"]
    message: Long


class Value(_Strict):
    """One metric of an entry, and what it was before."""

    track: Short
    metric: Short
    value: float
    ci_low: float | None = None
    ci_high: float | None = None
    n: int
    before: float | None = None


class Reviewed(_Strict):
    """One entry that the pull request adds or changes."""

    slug: Short
    change: Literal["added", "changed", "removed"]
    basis: Literal["records", "bits", "form"] = "form"
    passed: bool
    findings: list[Note] = Field(default_factory=list, max_length=MAX_FINDINGS)
    metrics: list[Value] = Field(default_factory=list, max_length=100)


class Review(_Strict):
    """What a pull request changes, and whether it may."""

    version: Literal[1] = 1
    passed: bool
    entries: list[Reviewed] = Field(max_length=MAX_ENTRIES)
    notes: list[Long] = Field(default_factory=list, max_length=20)


# -------------------------------------------------------------------------------------------------- reviewing


def review_checkout(checkout: Path, *, base: str = "HEAD^1", hub: bool = True) -> Review:
    """Check every entry that a checkout adds, changes or removes.

    Args:
        checkout: Working tree of the pull request merged into its base. Data: nothing in it is executed.
        base: What to compare with; of a merge commit, its first parent is the base branch.
        hub: Whether to download the records that entries name.

    Raises:
        BeyondError: The folder is no git checkout, or too many entries change.
    """
    from leaderboard.destinations import IN_REPOSITORY
    from leaderboard.validation import validate

    paths = changed_paths(checkout, base)
    inside = [path for path in paths if path.startswith(f"{IN_REPOSITORY}/")]
    slugs = sorted({path.split("/")[2] for path in inside if path.count("/") >= 3})
    loose = [path for path in inside if path.count("/") < 3]
    notes = []
    if len(paths) > len(inside):
        notes.append(
            f"{len(paths) - len(inside)} files outside {IN_REPOSITORY} change too, and nobody looked at them "
            "here. Submit entries in a pull request of their own."
        )
    if loose:
        notes.append(f"{loose[0]} is not part of an entry; remove it.")
    if len(slugs) > MAX_ENTRIES:
        raise BeyondError(f"{len(slugs)} entries change; submit at most {MAX_ENTRIES} in one pull request")
    entries = []
    folder = checkout / IN_REPOSITORY
    for slug in slugs:
        before = _before(checkout, base, slug)
        if (folder / slug).is_symlink() or not (folder / slug).is_dir():
            gone = Note(
                level="error", message="an entry is never removed; set its state to withdrawn, with a reason"
            )
            entries.append(Reviewed(slug=slug[:200], change="removed", passed=False, findings=[gone]))
            continue
        change: Literal["added", "changed"] = "added" if before is None else "changed"
        try:
            report = validate(folder, [slug], hub=hub, submission=before is None)
        except BeyondError as error:
            problem = Note(level="error", message=str(error).replace(f"{checkout}/", "")[:2000])
            entries.append(Reviewed(slug=slug[:200], change=change, passed=False, findings=[problem]))
            continue
        checked = report.entries[0]
        entries.append(
            Reviewed(
                slug=slug[:200],
                change=change,
                basis=checked.basis,
                passed=report.passed,
                findings=[
                    Note(level=finding.level, message=finding.message[:2000])
                    for finding in checked.findings[:MAX_FINDINGS]
                ],
                metrics=_metrics(folder / slug, before),
            )
        )
    passed = all(entry.passed for entry in entries) and not loose
    return Review(passed=passed, entries=entries, notes=[note[:2000] for note in notes])


def changed_paths(checkout: Path, base: str) -> list[str]:
    """Paths that differ between a base and the checkout's commit; renames count as both."""
    listed = _git(checkout, "diff", "--name-only", "--no-renames", "--no-ext-diff", "-z", base, "HEAD")
    return [path for path in listed.split("\0") if path]


def _before(checkout: Path, base: str, slug: str) -> Scorecard | None:
    """The scorecard that the base has of an entry, or None where it has no such entry."""
    from benchmark.scorecard import SCORECARD_FILE, Scorecard
    from leaderboard.destinations import IN_REPOSITORY

    try:
        text = _git(checkout, "show", f"{base}:{IN_REPOSITORY}/{slug}/{SCORECARD_FILE}")
        return Scorecard.from_json(text, where=slug)
    except BeyondError:
        return None


def _metrics(folder: Path, before: Scorecard | None) -> list[Value]:
    from leaderboard.entries import read_entry

    try:
        scorecard = read_entry(folder).scorecard
    except BeyondError:
        return []
    found = []
    for track, results in scorecard.tracks.items():
        old = before.tracks[track].metrics if before is not None and track in before.tracks else {}
        for name, metric in results.metrics.items():
            was = old[name].value if name in old else None
            found.append(
                Value(
                    track=track[:200],
                    metric=name[:200],
                    value=metric.value,
                    ci_low=metric.ci_low,
                    ci_high=metric.ci_high,
                    n=metric.n,
                    before=was,
                )
            )
    return found[:100]


def _git(checkout: Path, *arguments: str) -> str:
    # The configuration of the checkout is the workflow's, not the pull request's; hooks are shut off still.
    command = ["git", "-C", str(checkout), "-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false"]
    done = subprocess.run([*command, *arguments], capture_output=True, timeout=120, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise BeyondError(f"git {arguments[0]} failed in {checkout}: {said[-1]}")
    return done.stdout.decode(errors="replace")


# ------------------------------------------------------------------------------------------------- commenting


def read_review(path: Path) -> Review:
    """Read a review that may have been tampered with.

    Raises:
        BeyondError: It is missing, too large, or not exactly of the form that `review` writes.
    """
    if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_BYTES:
        raise BeyondError(f"{path} is no review: it is missing, a link, or larger than {MAX_BYTES:,} bytes")
    try:
        return Review.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise BeyondError(f"{path} is no review ({error.error_count()} problems)") from None


def to_markdown(review: Review) -> str:
    """A comment for people: status, differences, next step. Nothing of the review can act as Markdown."""
    from leaderboard.check import escape

    lines = [f"### Entries: {'checked, nothing wrong' if review.passed else 'not ready yet'}", ""]
    for entry in review.entries:
        basis = {
            "records": "every number was computed again from the records",
            "bits": "shares and intervals were computed again from the published bits",
            "form": "only its form and arithmetic could be checked",
        }[entry.basis]
        verdict = "ok" if entry.passed else "**not ok**"
        lines += [f"**{escape(entry.slug)}** ({entry.change}): {verdict}; {basis}.", ""]
        for finding in sorted(
            entry.findings, key=lambda note: ("error", "warning", "note").index(note.level)
        ):
            lines.append(f"* {finding.level}: {escape(finding.message)}")
        if entry.findings:
            lines.append("")
        lines += _table(entry)
    lines += [f"* {escape(note)}" for note in review.notes]
    lines += ["", f"**Next step:** {next_step(review)}"]
    return "\n".join(lines).rstrip() + "\n"


def _table(entry: Reviewed) -> list[str]:
    from leaderboard.check import escape

    if not entry.metrics:
        return []
    changed = entry.change == "changed"
    lines = ["<details><summary>Numbers</summary>", ""]
    lines.append("| metric | value | 95 % interval | n |" + (" before |" if changed else ""))
    lines.append("|---|---:|---:|---:|" + ("---:|" if changed else ""))
    for value in entry.metrics:
        interval = (
            ""
            if value.ci_low is None or value.ci_high is None
            else f"{value.ci_low:.4f} to {value.ci_high:.4f}"
        )
        cells = [escape(f"{value.track}.{value.metric}"), f"{value.value:.4f}", interval, f"{value.n:,}"]
        if changed:
            cells.append("" if value.before is None else f"{value.before:.4f}")
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, "", "</details>", ""]


def next_step(review: Review) -> str:
    """What the submitter, or a maintainer, does now."""
    if not review.entries:
        return "no entry changes here, so there is nothing to do."
    if not review.passed:
        return (
            "make the entry again with `beyond submit RUN --to branch --records …` and push it here. On your "
            "machine, `beyond leaderboard validate SLUG --hub --submission` checks the same."
        )
    if all(entry.basis == "records" for entry in review.entries):
        return (
            "a maintainer reads the description, sets status `recomputed`, and merges. It becomes `verified` "
            "once `beyond leaderboard verify` has run the model again on images drawn at random."
        )
    return "a maintainer looks at what could not be computed again, as said above."


@click.command()
@click.argument("checkout", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option("--base", default="HEAD^1", show_default=True, help="Revision to compare with.")
@click.option("--hub/--no-hub", default=True, show_default=True, help="Download the records to recompute.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="Where to write the review."
)
@click.option(
    "--markdown",
    "markdown_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also write it as Markdown, e.g. to $GITHUB_STEP_SUMMARY.",
)
@click.pass_context
def review(
    context: click.Context, /, checkout: Path, *, base: str, hub: bool, out: Path, markdown_file: Path | None
) -> None:
    """Check the entries that a pull request changes, in a checkout of it that is only read.

    For the workflow of submissions. Exit status 1 if an entry is not as it must be.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w./^~-]*", base):
        raise BeyondError(f"--base {base!r} is no revision")
    found = review_checkout(checkout, base=base, hub=hub)
    out.write_text(found.model_dump_json(indent=2) + "\n", encoding="utf-8")
    text = to_markdown(found)
    if markdown_file is not None:
        markdown_file.write_text(text, encoding="utf-8")
    click.echo(text, nl=False)
    context.exit(0 if found.passed else 1)


@click.command()
@click.argument("file", metavar="REVIEW", type=click.Path(path_type=Path, dir_okay=False))
def comment(file: Path) -> None:
    """Print the comment on a pull request that a REVIEW asks for, with nothing in it that could act."""
    click.echo(to_markdown(read_review(file)), nl=False)
