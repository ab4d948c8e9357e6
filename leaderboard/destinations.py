"""Where a submission goes: a folder, a branch of a git repository, or a pull request on the Hub.

Each does all or nothing, and the same submission sent again changes nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from annotations import hub
from annotations.errors import BeyondError
from leaderboard.entries import ENTRY_FILE, parse_info, read_info
from leaderboard.submission import ENTRIES, RECORDS, Outgoing, Submission

if TYPE_CHECKING:
    from huggingface_hub import HfApi

ATTEMPTS = 3

IN_REPOSITORY = "leaderboard/entries"
"""Where entries lie in this project's git repository."""


@dataclass(frozen=True)
class Delivery:
    """What came of it.

    Attributes:
        changed: Whether anything was written or sent; False where all of it was there already.
        message: One line about it.
        next: What to do now, one line each.
        url: Address of the pull request, if there is one.
        commit: The commit that holds it, 40 hexadecimal digits, if there is one.
    """

    changed: bool
    message: str
    next: tuple[str, ...] = ()
    url: str | None = None
    commit: str | None = None


class Destination(Protocol):
    """Where a submission goes."""

    @property
    def leaves(self) -> bool:
        """Whether anything leaves this machine."""

    def describe(self, slug: str) -> str:
        """Where it goes, in a few words."""

    def submitted(self, slug: str) -> date | None:
        """The day on which an entry of this name was submitted before, so that it stays the same."""

    def deliver(self, submission: Submission) -> Delivery:
        """Write or send it, all or nothing."""


# ----------------------------------------------------------------------------------------------------- folder


@dataclass(frozen=True)
class Folder:
    """A folder on this machine: `entries/<slug>` and `records/<slug>` in it."""

    folder: Path
    leaves = False

    def describe(self, slug: str) -> str:
        """Where it goes, in a few words."""
        return f"the folder {self.folder / ENTRIES / slug}"

    def submitted(self, slug: str) -> date | None:
        """The day that the entry in the folder states."""
        path = self.folder / ENTRIES / slug / ENTRY_FILE
        return read_info(path).submitted if path.is_file() else None

    def deliver(self, submission: Submission) -> Delivery:
        """Copy the files, records first; each folder is swapped in whole."""
        parts = {name: self.folder / name / submission.slug for name in (RECORDS, ENTRIES)}
        there = {
            f"{name}/{submission.slug}/{path.relative_to(target).as_posix()}": Outgoing.of(path, "").sha256
            for name, target in parts.items()
            for path in target.rglob("*")
            if path.is_file()
        }
        if there == {file.path: file.sha256 for file in submission.files}:
            return Delivery(False, f"{parts[ENTRIES]} holds the same already; nothing was written")
        for name, target in parts.items():
            files = [file for file in submission.files if file.path.startswith(f"{name}/")]
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".new-") as made:
                for file in files:
                    copy = Path(made) / "new" / Path(file.path).relative_to(name, submission.slug)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file.source, copy)
                if target.exists():
                    target.rename(Path(made) / "old")
                if files:
                    (Path(made) / "new").rename(target)
        return Delivery(True, f"wrote {parts[ENTRIES]}")


# ----------------------------------------------------------------------------------------------------- branch


@dataclass(frozen=True)
class Branch:
    """A branch of this project's git repository, made without touching the working tree."""

    checkout: Path
    leaves = False

    def describe(self, slug: str) -> str:
        """Where it goes, in a few words."""
        return f"the branch {self.name(slug)} of {self.root()}"

    @staticmethod
    def name(slug: str) -> str:
        """Name of the branch."""
        return f"submit/{slug}"

    def root(self) -> Path:
        """Top of the working tree.

        Raises:
            BeyondError: The folder is no checkout of this project.
        """
        try:
            root = Path(self._git("rev-parse", "--show-toplevel"))
        except BeyondError:
            root = None
        if root is None or not (root / IN_REPOSITORY).is_dir():
            raise BeyondError(
                f"{self.checkout} is no clone of the leaderboard's repository (it has no {IN_REPOSITORY}); "
                "name one with --checkout"
            )
        return root

    def submitted(self, slug: str) -> date | None:
        """The day that the entry on the branch, or on the current one, states."""
        for revision in (f"refs/heads/{self.name(slug)}", "HEAD"):
            try:
                text = self._git("show", f"{revision}:{IN_REPOSITORY}/{slug}/{ENTRY_FILE}")
            except BeyondError:
                continue
            return parse_info(text + "\n", where=f"{slug}/{ENTRY_FILE}").submitted
        return None

    def deliver(self, submission: Submission) -> Delivery:
        """Commit the entry on its branch; one update of one reference, at the end."""
        root, slug = self.root(), submission.slug
        ref = f"refs/heads/{self.name(slug)}"
        try:
            tip = self._git("rev-parse", "--verify", "--quiet", ref)
        except BeyondError:
            tip = ""
        base = tip or self._git("rev-parse", "HEAD")
        files = submission.described
        with tempfile.TemporaryDirectory() as made:
            index = {"GIT_INDEX_FILE": str(Path(made) / "index")}
            self._git("read-tree", base, more=index)
            self._git(
                "rm",
                "-r",
                "--cached",
                "--quiet",
                "--ignore-unmatch",
                "--",
                f":/{IN_REPOSITORY}/{slug}",
                more=index,
            )
            for file in files:
                blob = self._git("hash-object", "-w", "--no-filters", str(file.source))
                path = f"{IN_REPOSITORY}/{file.path.removeprefix(f'{ENTRIES}/')}"
                self._git("update-index", "--add", "--cacheinfo", f"100644,{blob},{path}", more=index)
            tree = self._git("write-tree", more=index)
        nexts = (
            f"git -C {root} push origin {self.name(slug)}",
            f"gh pr create --head {self.name(slug)} --title 'Add {slug}' --fill",
        )
        if tree == self._git("rev-parse", f"{base}^{{tree}}"):
            where = self.name(slug) if tip else "the current branch"
            return Delivery(
                False, f"{where} holds the same already; nothing was committed", nexts if tip else ()
            )
        title = f"{'Update' if self.submitted(slug) else 'Add'} {slug}"
        commit = self._git("commit-tree", tree, "-p", base, "-m", title)
        self._git("update-ref", ref, commit, tip or "0" * 40)
        return Delivery(True, f"committed {commit[:12]} on {self.name(slug)}", nexts, commit=commit)

    def _git(self, *arguments: str, more: Mapping[str, str] | None = None) -> str:
        try:
            done = subprocess.run(
                ["git", "-C", str(self.checkout), *arguments],
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
                env={**os.environ, **(more or {})},
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BeyondError(f"git does not answer ({error}); is it installed?") from None
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()[-1]
            raise BeyondError(f"git {arguments[0]} failed in {self.checkout}: {said}")
        return done.stdout.strip()


# -------------------------------------------------------------------------------------------------------- Hub


@dataclass(frozen=True)
class Pull:
    """An open pull request of the same name."""

    number: int
    author: str
    url: str

    @property
    def ref(self) -> str:
        """Its branch."""
        return f"refs/pr/{self.number}"


@dataclass(frozen=True)
class HubPull:
    """A pull request on a dataset repository of the Hugging Face Hub: one commit with all files, or none."""

    repository: str
    leaves = True

    @property
    def endpoint(self) -> str:
        """Address of the Hub."""
        return (os.environ.get("HF_ENDPOINT") or hub.DEFAULT_ENDPOINT).rstrip("/")

    def describe(self, slug: str) -> str:  # noqa: ARG002 - the protocol's interface
        """Where it goes, in a few words."""
        return f"a pull request on the dataset {self.repository} at {self.endpoint}"

    def submitted(self, slug: str) -> date | None:
        """The day that the entry in an open pull request, or in the repository, states."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        with hub.plain_errors(self.repository, "main", self.endpoint), tempfile.TemporaryDirectory() as made:
            pull = self._pull(slug)
            for revision in ([pull.ref] if pull else []) + ["main"]:
                try:
                    path = hf_hub_download(
                        self.repository,
                        f"{ENTRIES}/{slug}/{ENTRY_FILE}",
                        repo_type="dataset",
                        revision=revision,
                        local_dir=Path(made) / revision.replace("/", "-"),
                        endpoint=self.endpoint,
                    )
                except EntryNotFoundError:
                    continue
                return read_info(Path(path)).submitted
        return None

    def deliver(self, submission: Submission) -> Delivery:
        """Open a pull request, or bring an open one of the same name up to date.

        A connection can break after the Hub made the commit and before it said so. Therefore each attempt
        first looks for what is there already, and never sends it twice.
        """
        with hub.plain_errors(self.repository, "main", self.endpoint):
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    return self._deliver(submission)
                except Exception as error:
                    if not hub.is_transient(error):
                        raise
                    if attempt == ATTEMPTS:
                        raise BeyondError(
                            f"the connection to {self.endpoint} broke; a commit is made whole or not at all: "
                            "give the same command again, it finds what arrived"
                        ) from error
                    time.sleep(0.2 * 4 ** (attempt - 1))
        raise AssertionError("unreachable")

    def _deliver(self, submission: Submission) -> Delivery:
        from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

        api, slug = self._api(), submission.slug
        me = self._who(api)
        if not self._differs(api, submission, "main"):
            return Delivery(False, f"{self.repository} holds the same entry already; nothing was sent")
        pull = self._pull(slug)
        where = "main" if pull is None else pull.ref
        stale = self._differs(api, submission, where)
        if pull is not None and not stale:
            commit = self._head(api, pull.ref)
            return Delivery(
                False,
                f"the same is in an open pull request already: {pull.url}",
                self._next(commit, slug),
                pull.url,
                commit,
            )
        if pull is not None and pull.author != me:
            raise BeyondError(
                f"{pull.author} has an open pull request for {slug!r} ({pull.url}); choose another --slug"
            )
        operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
            *(CommitOperationAdd(file.path, file.source) for file in submission.files),
            *(CommitOperationDelete(path) for path in sorted(stale) if path not in _paths(submission)),
        ]
        made = api.create_commit(
            self.repository,
            operations,
            commit_message=_title(slug),
            commit_description=f"Submitted with beyond submit: {len(submission.files)} files, no images.",
            repo_type="dataset",
            revision="main" if pull is None else pull.ref,
            create_pr=pull is None,
        )
        url = made.pr_url if pull is None else pull.url
        word = "opened" if pull is None else "updated"
        return Delivery(True, f"{word} {url}", self._next(made.oid, slug), url, made.oid)

    def _next(self, commit: str, slug: str) -> tuple[str, ...]:
        return (
            f"beyond submit RUN --to branch --records {self.repository}@{commit} --slug {slug} …"
            "  # an entry that names these records",
        )

    def _api(self) -> HfApi:
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.endpoint)

    def _who(self, api: HfApi) -> str:
        from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

        try:
            return str(api.whoami()["name"])
        except LocalTokenNotFoundError:
            raise BeyondError(
                "not logged in to the Hub; log in with: hf auth login (or set HF_TOKEN)"
            ) from None
        except HfHubHTTPError as error:
            if getattr(error.response, "status_code", None) in (401, 403):
                raise BeyondError("the Hub does not accept your token; log in with: hf auth login") from None
            raise

    def _head(self, api: HfApi, revision: str) -> str:
        return str(api.dataset_info(self.repository, revision=revision).sha)

    def _pull(self, slug: str) -> Pull | None:
        """The open pull request for an entry of this name, if there is one; the oldest of several."""
        found = [
            Pull(item.num, item.author, f"{self.endpoint}/datasets/{self.repository}/discussions/{item.num}")
            for item in self._api().get_repo_discussions(
                self.repository,
                repo_type="dataset",
                discussion_type="pull_request",
                discussion_status="open",
            )
            if item.is_pull_request and item.title == _title(slug)
        ]
        return min(found, key=lambda pull: pull.number, default=None)

    def _differs(self, api: HfApi, submission: Submission, revision: str) -> set[str]:
        """Paths of the entry and its records that are not the same at a revision of the repository."""
        return remote_differences(api, self.repository, revision, submission)


def _title(slug: str) -> str:
    return f"Add {slug}"


def _paths(submission: Submission) -> set[str]:
    return {file.path for file in submission.files}


def remote_differences(api: HfApi, repository: str, revision: str, submission: Submission) -> set[str]:
    """Paths that differ, are missing, or are too many in a dataset repository, by size and checksum."""
    return _listed_differences(
        remote_files(api, repository, revision, [f"{name}/{submission.slug}" for name in (ENTRIES, RECORDS)]),
        {file.path: file for file in submission.files},
    )


def remote_files(api: HfApi, repository: str, revision: str, folders: list[str]) -> dict[str, hub.RemoteFile]:
    """The files in some folders of a dataset repository, by path; what is not there is passed over."""
    from huggingface_hub.errors import EntryNotFoundError
    from huggingface_hub.hf_api import RepoFile

    found = {}
    for folder in folders:
        try:
            for item in api.list_repo_tree(
                repository, folder, repo_type="dataset", revision=revision, recursive=True
            ):
                if isinstance(item, RepoFile):
                    sha256 = item.lfs.sha256 if item.lfs is not None else None
                    found[item.path] = hub.RemoteFile(item.size, sha256, item.blob_id)
        except EntryNotFoundError:
            continue
    return found


def _listed_differences(remote: Mapping[str, hub.RemoteFile], local: Mapping[str, Outgoing]) -> set[str]:
    different = set(remote) ^ set(local)
    for path in set(remote) & set(local):
        there, here = remote[path], local[path]
        same = there.size == here.size and (
            there.sha256 == here.sha256 if there.sha256 is not None else there.git_sha1 == here.git_sha1()
        )
        if not same:
            different.add(path)
    return different


_AT_COMMIT = re.compile(r"([^@:]+/[^@:]+)@([0-9a-f]{40})(?::(.+))?")


def parse_records(text: str, slug: str) -> tuple[str, str, str]:
    """Split `ORG/NAME@COMMIT[:PATH]` into its three parts; the path is `records/<slug>` by default.

    Raises:
        BeyondError: It is not of this form.
    """
    match = _AT_COMMIT.fullmatch(text.removeprefix("hub:"))
    if match is None:
        raise BeyondError(f"--records {text!r} is not ORG/NAME@COMMIT (40 hexadecimal digits)")
    return match.group(1), match.group(2), match.group(3) or f"{RECORDS}/{slug}"


def check_published(submission: Submission) -> None:
    """Make sure that the records which an entry names on the Hub are those here, without downloading them.

    Raises:
        BeyondError: They are not there, or are others.
    """
    from huggingface_hub import HfApi

    pointer = submission.entry.info.records
    repository, revision, path = str(pointer.repository), str(pointer.revision), str(pointer.path)
    endpoint = (os.environ.get("HF_ENDPOINT") or hub.DEFAULT_ENDPOINT).rstrip("/")
    with hub.plain_errors(repository, revision, endpoint):
        api = HfApi(endpoint=endpoint)
        remote = hub.retry(lambda: remote_files(api, repository, revision, [path]))
    here = {f"{path}/{file.path.split('/', 2)[2]}": file for file in submission.records}
    different = _listed_differences(remote, here)
    if different:
        raise BeyondError(
            f"the records at {repository}@{revision[:12]} are not those of this run: {min(different)} "
            "differs; send them with --to hub"
        )
