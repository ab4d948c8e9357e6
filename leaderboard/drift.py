"""`beyond leaderboard drift`: what has changed under published entries.

Entries stay as they were, the world does not: label sets are corrected, links die, repositories go away.
Nothing here changes an entry; it says what a maintainer should look at.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import click

from annotations.errors import BeyondError

if TYPE_CHECKING:
    from leaderboard.entries import Entry

TIMEOUT = 20.0
WORKERS = 16
USER_AGENT = "beyond-accuracy link check"

Level = Literal["gone", "unsure"]


@dataclass(frozen=True)
class Drift:
    """One thing that has changed.

    Attributes:
        kind: `annotations`, `link` or `records`.
        level: `gone` fails the check; `unsure` may pass by itself, such as a server that is too busy.
        slugs: The entries it concerns.
        message: What, and what to do about it.
    """

    kind: Literal["annotations", "link", "records"]
    level: Level
    slugs: tuple[str, ...]
    message: str


@dataclass(frozen=True)
class Checked:
    """What was looked at, and what has changed."""

    entries: int
    links: int
    records: int
    sources: int
    found: tuple[Drift, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing is gone."""
        return not any(drift.level == "gone" for drift in self.found)


def find_drift(
    entries: Iterable[Entry],
    *,
    look: Callable[[str], tuple[Level | None, str]] | None = None,
    revisions: Mapping[str, str] | None = None,
) -> Checked:
    """Look for what has changed under the entries that are not withdrawn.

    Args:
        entries: The entries.
        look: How to look at a link (see `look_at`, the default).
        revisions: What each source of annotations is at today; by default what can be loaded here.
    """
    from benchmark.progress import meter

    alive = [entry for entry in entries if entry.info.state != "withdrawn"]
    by_link: dict[str, list[str]] = {}
    for entry in alive:
        for link in entry.info.links.model_dump(exclude_none=True).values():
            by_link.setdefault(link, []).append(entry.slug)
    on_hub = [entry for entry in alive if entry.info.records.kind == "hub"]
    moved, sources = moved_annotations(alive, current_revisions(alive) if revisions is None else revisions)
    found = list(moved)
    with (
        meter("Looking", len(by_link) + len(on_hub), unit="places") as progress,
        ThreadPoolExecutor(WORKERS) as pool,
    ):
        for link, (level, reason) in zip(by_link, pool.map(look or look_at, by_link)):
            progress.advance(1)
            if level is not None:
                found.append(Drift("link", level, tuple(by_link[link]), f"{link}: {reason}"))
        for entry, trouble in zip(on_hub, pool.map(unreachable_records, on_hub)):
            progress.advance(1)
            if trouble is not None:
                found.append(Drift("records", trouble[0], (entry.slug,), trouble[1]))
    return Checked(len(alive), len(by_link), len(on_hub), sources, tuple(found))


# ------------------------------------------------------------------------------------------------ annotations


def current_revisions(entries: Iterable[Entry]) -> dict[str, str]:
    """Revision of each source that entries were scored against, as far as it can be loaded here."""
    from annotations.sources import SOURCES, load

    named = {source for entry in entries for source in entry.scorecard.annotations.sources}
    found = {}
    for source in sorted(named & set(SOURCES)):
        try:
            found[source] = load(source).revision
        except BeyondError:
            continue  # not here; the count of sources says so
    return found


def moved_annotations(entries: Iterable[Entry], today: Mapping[str, str]) -> tuple[list[Drift], int]:
    """Sources whose revision is another today than an entry's, and how many sources were compared."""
    from leaderboard.masks import pinned

    moved: dict[tuple[str, str], list[str]] = {}
    compared = set()
    for entry in entries:
        for source, revision in entry.scorecard.annotations.sources.items():
            if source in today:
                compared.add(source)
                if pinned(today[source]) != pinned(revision):
                    moved.setdefault((source, revision), []).append(entry.slug)
    return [
        Drift(
            "annotations",
            "gone",
            tuple(slugs),
            f"{source} was {revision} and is {today[source]} today; rescore these entries from their records",
        )
        for (source, revision), slugs in moved.items()
    ], len(compared)


# ------------------------------------------------------------------------------------------------------ links


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects only to public places."""

    def __init__(self, check: Callable[[str], None]) -> None:
        self._check = check

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Check where it leads, then follow."""
        self._check(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def look_at(link: str, *, public_only: bool = True) -> tuple[Level | None, str]:
    """Whether a link still leads somewhere: nothing, or how sure it is that it does not, and why.

    Args:
        link: An address that a submitter gave, so not to be trusted: only the head of the answer is asked for
            where the server allows it, nothing is kept, and addresses inside networks are not called.
        public_only: False for tests, whose server is on this machine.
    """

    def check(address: str) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or parts.hostname is None:
            raise _NotPublic(f"leads to {parts.scheme or 'no'} address")
        if public_only:
            for *_, place in socket.getaddrinfo(parts.hostname, parts.port or 443, type=socket.SOCK_STREAM):
                if not ipaddress.ip_address(str(place[0]).partition("%")[0]).is_global:
                    raise _NotPublic("leads into a private network")

    opener = urllib.request.build_opener(_Redirects(check))
    reason = ""
    for method in ("HEAD", "GET"):
        try:
            check(link)
            request = urllib.request.Request(link, method=method, headers={"User-Agent": USER_AGENT})
            with opener.open(request, timeout=TIMEOUT):
                return None, ""
        except _NotPublic as error:
            return "gone", str(error)
        except urllib.error.HTTPError as error:
            error.close()
            reason = f"answers {error.code}"
            if error.code in (404, 410) and method == "GET":
                return "gone", reason
        except (urllib.error.URLError, OSError, http.client.HTTPException, ValueError) as error:
            cause = getattr(error, "reason", error)
            if isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME:
                return "gone", "there is no such host any more"
            return "unsure", f"did not answer ({cause})"
    return "unsure", reason


class _NotPublic(Exception):
    """A link leads where no link of an entry may lead."""


# ---------------------------------------------------------------------------------------------------- records


def unreachable_records(entry: Entry) -> tuple[Level, str] | None:
    """What is wrong with the records that an entry names on the Hub, without downloading them; or None."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    from annotations import hub
    from leaderboard.destinations import remote_files

    pointer = entry.info.records
    repository, revision, path = str(pointer.repository), str(pointer.revision), str(pointer.path)
    where = f"{repository}@{revision[:12]}"
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        there = hub.retry(lambda: remote_files(api, repository, revision, [path]))
    except RevisionNotFoundError:
        return "gone", f"{where}: the commit is gone"
    except (RepositoryNotFoundError, EntryNotFoundError):
        return "gone", f"{where}: the repository is gone, or private"
    except HfHubHTTPError as error:
        return "unsure", f"{where}: the Hub answered {getattr(error.response, 'status_code', 'an error')}"
    except Exception as error:
        if not hub.is_transient(error):
            raise
        return "unsure", f"{where}: the Hub did not answer"
    if not any(name == path or name.endswith(".parquet") for name in there):
        return "gone", f"{where} has no records at {path}"
    return None


# ---------------------------------------------------------------------------------------------------- command


def to_markdown(checked: Checked) -> str:
    """The result for a job summary."""
    from leaderboard.check import escape

    lines = [f"### Drift: {'none' if checked.passed else 'found'}", "", _counted(checked), ""]
    for drift in checked.found:
        slugs = ", ".join(drift.slugs[:5]) + (
            f" and {len(drift.slugs) - 5} more" if len(drift.slugs) > 5 else ""
        )
        lines.append(f"* **{drift.level}** {drift.kind}: {escape(drift.message)} ({escape(slugs)})")
    return "\n".join(lines).rstrip() + "\n"


def _counted(checked: Checked) -> str:
    return (
        f"{checked.entries} entries: {checked.sources} sources of annotations, {checked.links} links and "
        f"{checked.records} records on the Hub looked at."
    )


@click.command()
@click.option(
    "--entries", "folder", type=click.Path(path_type=Path, file_okay=False), help="Folder of entries."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")
@click.option(
    "--markdown",
    "markdown_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also write the result as Markdown, e.g. to $GITHUB_STEP_SUMMARY.",
)
@click.pass_context
def drift(
    context: click.Context, /, folder: Path | None, *, as_json: bool, markdown_file: Path | None
) -> None:
    """Say what has changed under the entries: annotations moved, links dead, records unreachable.

    Exit status 1 if anything is gone. What did not answer, but may answer tomorrow, is told and passes.
    """
    from leaderboard.entries import ENTRIES_FOLDER, load_entries

    checked = find_drift(load_entries(folder or ENTRIES_FOLDER))
    if markdown_file is not None:
        markdown_file.write_text(to_markdown(checked), encoding="utf-8")
    if as_json:
        click.echo(json.dumps({**asdict(checked), "passed": checked.passed}, indent=2, ensure_ascii=False))
    else:
        from benchmark.report.text import clean

        for found in checked.found:
            click.echo(clean(f"{found.level}: {found.kind}: {found.message} ({', '.join(found.slugs[:5])})"))
        click.echo(_counted(checked))
    context.exit(0 if checked.passed else 1)
