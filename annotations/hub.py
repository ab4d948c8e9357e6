"""Downloading label sets from dataset repositories of the Hugging Face Hub, pinned and verified.

A revision (branch, tag, commit) is resolved to a commit first, and everything after that names the commit.
The files' checksums are compared with what the Hub says and with the repository's own SHA256SUMS or
manifest.json if it has one, and are written to a lock file; every later read from the cache compares with the
lock file, so a damaged or edited cache is noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from annotations.errors import BeyondError
from annotations.judgements import IMAGES_FILE, JUDGEMENTS_FILE

if TYPE_CHECKING:
    from huggingface_hub import HfApi

DEFAULT_ENDPOINT = "https://huggingface.co"
SUMS_FILE = "SHA256SUMS"
MANIFEST_FILE = "manifest.json"
REQUIRED = (JUDGEMENTS_FILE, IMAGES_FILE)
OPTIONAL = (SUMS_FILE, MANIFEST_FILE, "README.md")
ATTEMPTS = 3

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")

T = TypeVar("T")


@dataclass(frozen=True)
class RemoteFile:
    """What the Hub says about a file: its size in bytes and one of its checksums."""

    size: int
    sha256: str | None
    git_sha1: str


def parse(spec: str) -> tuple[str, str]:
    """Split `ORG/NAME@REVISION` into repository and revision (`main` if there is none).

    Example:
        >>> parse("org/labels@v1.0")
        ('org/labels', 'v1.0')

    Raises:
        BeyondError: It is not of that form.
    """
    repo, _, revision = spec.removeprefix("hub:").partition("@")
    # No name on the Hub is longer, and files here are named after them.
    if not _REPO.fullmatch(repo) or len(repo) > 96 or len(revision) > 200 or (revision == "" and "@" in spec):
        raise BeyondError(f"{spec!r} is not a Hub dataset; write hub:ORG/NAME@REVISION")
    return repo, revision or "main"


def download(
    repo: str, revision: str, *, cache_dir: Path, offline: bool = False, endpoint: str | None = None
) -> Path:
    """Bring the label sets of a dataset repository onto this machine, or find them in the cache.

    Args:
        repo: `ORG/NAME`.
        revision: Branch, tag or commit. A commit that is in the cache needs no network; a branch or tag is
            asked for again each time, since it may have moved.
        cache_dir: Folder of the cache, in the layout of the Hub's client.
        offline: Never use the network. The environment's HF_HUB_OFFLINE does the same.
        endpoint: Address of the Hub; by default the environment's HF_ENDPOINT, else huggingface.co.

    Returns:
        Folder with `judgements.parquet` and `images.parquet`, whose name is the commit (40 hex digits).

    Raises:
        BeyondError: The repository, revision or a file does not exist, access is refused, there is no
            network, or a checksum differs.
    """
    endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
    offline = offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    lock_dir = cache_dir / "locks" / repo.replace("/", "--")
    commit = revision if _COMMIT.fullmatch(revision) else None
    if offline:
        commit = commit or _read_ref(lock_dir, revision)
        if commit is None or not _lock_file(lock_dir, commit).is_file():
            raise BeyondError(
                f"{repo}@{revision} is not in the cache at {cache_dir} and the network is off; "
                f"run this once with a network: beyond annotations download hub:{repo}@{revision}"
            )
    if commit is not None and _lock_file(lock_dir, commit).is_file():
        folder = _snapshot(cache_dir, repo, commit)
        problem = _differs_from_lock(folder, _lock_file(lock_dir, commit))
        if problem is None:
            return folder
        if offline:
            raise BeyondError(f"{problem}; delete {folder} and download it again with a network")
        _discard(folder)  # damaged: the download below replaces it

    with plain_errors(repo, revision, endpoint):
        return _fetch(repo, revision, commit, cache_dir=cache_dir, lock_dir=lock_dir, endpoint=endpoint)


def _fetch(
    repo: str, revision: str, commit: str | None, *, cache_dir: Path, lock_dir: Path, endpoint: str
) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    api = HfApi(endpoint=endpoint)
    if commit is None:
        resolved = retry(lambda: api.dataset_info(repo, revision=revision).sha)
        if resolved is None or not _COMMIT.fullmatch(resolved):
            raise BeyondError(
                f"the Hub at {endpoint} names no commit for {repo}@{revision}; name a commit instead"
            )
        commit = resolved
    remote = retry(lambda: _remote_files(api, repo, commit))
    missing = [name for name in REQUIRED if name not in remote]
    if missing:
        raise BeyondError(
            f"{repo}@{revision} has no {missing[0]}; a dataset of judgements needs {' and '.join(REQUIRED)}"
        )

    folder = _snapshot(cache_dir, repo, commit)
    if folder.is_dir() and _differs(folder, remote):
        _discard(folder)  # the client takes what is there for good, without looking at its checksum

    def get() -> Path:
        return Path(
            snapshot_download(
                repo,
                repo_type="dataset",
                revision=commit,
                cache_dir=cache_dir,
                allow_patterns=list(remote),
                endpoint=endpoint,
                max_workers=4,
            )
        )

    folder = retry(get)
    problem = _differs(folder, remote) or _differs_from_own_sums(folder)
    if problem is not None:
        _discard(folder)
        raise BeyondError(f"{repo}@{revision}: {problem}; the copy was deleted, download it again")

    sums = {name: _sha256(folder / name) for name in remote}
    _write(
        _lock_file(lock_dir, commit), json.dumps({"repo": repo, "commit": commit, "sha256": sums}, indent=1)
    )
    if revision != commit:
        _write(_ref_file(lock_dir, revision), commit)
    return folder


def cached(cache_dir: Path) -> list[tuple[str, str, Path]]:
    """Repository, commit and folder of every download in the cache whose checksums hold, sorted."""
    found = []
    for path in sorted((cache_dir / "locks").glob("*/*.json")):
        repo = path.parent.name.replace("--", "/", 1)
        folder = _snapshot(cache_dir, repo, path.stem)
        if _differs_from_lock(folder, path) is None:
            found.append((repo, path.stem, folder))
    return found


# Checksums -------------------------------------------------------------------------------------------


def list_files(api: HfApi, repo: str, commit: str) -> dict[str, RemoteFile]:
    """The files at the top of a dataset repository, by name."""
    from huggingface_hub.hf_api import RepoFile

    return {
        item.path: RemoteFile(item.size, item.lfs.sha256 if item.lfs is not None else None, item.blob_id)
        for item in api.list_repo_tree(repo, repo_type="dataset", revision=commit, recursive=False)
        if isinstance(item, RepoFile)
    }


def matches(content: bytes, remote: RemoteFile) -> bool:
    """Whether this is the content whose size and checksum the Hub states."""
    if len(content) != remote.size:
        return False
    if remote.sha256 is not None:
        return hashlib.sha256(content).hexdigest() == remote.sha256
    blob = b"blob %d\0" % len(content) + content
    return hashlib.sha1(blob, usedforsecurity=False).hexdigest() == remote.git_sha1


def _remote_files(api: HfApi, repo: str, commit: str) -> dict[str, RemoteFile]:
    files = list_files(api, repo, commit)
    return {name: file for name, file in files.items() if name in (*REQUIRED, *OPTIONAL)}


def _differs(folder: Path, remote: dict[str, RemoteFile]) -> str | None:
    """What is wrong with the files in `folder`, compared with what the Hub says, or None."""
    for name, expected in remote.items():
        path = folder / name
        if not path.is_file():
            return f"{name} did not arrive"
        content = path.read_bytes()
        if len(content) != expected.size:
            return f"{name} has {len(content)} bytes instead of {expected.size}"
        if not matches(content, expected):
            return f"the checksum of {name} is not the one that the Hub states"
    return None


def _differs_from_own_sums(folder: Path) -> str | None:
    """What is wrong compared with the repository's own list of checksums, or None (also if it has none)."""
    for name, expected in _own_sums(folder).items():
        if name in REQUIRED and _sha256(folder / name) != expected:
            return f"the checksum of {name} is not the one that the repository's own list states"
    return None


def _own_sums(folder: Path) -> dict[str, str]:
    """File name to sha256, from SHA256SUMS (sha256sum's form) or manifest.json ({"sha256": {name: sum}})."""
    sums: dict[str, str] = {}
    manifest = folder / MANIFEST_FILE
    if manifest.is_file():
        try:
            listed = json.loads(manifest.read_text(encoding="utf-8"))["sha256"]
            sums.update({str(name): str(value).lower() for name, value in listed.items()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BeyondError(
                f'{MANIFEST_FILE} of the repository is not {{"sha256": {{file: sum}}}}; ask its maintainers'
            ) from error
    listing = folder / SUMS_FILE
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8").splitlines():
            if match := re.fullmatch(r"([0-9a-fA-F]{64}) [ *](?:\./)?(.+)", line.rstrip()):
                sums[match.group(2)] = match.group(1).lower()
            elif line.strip():
                raise BeyondError(
                    f"{SUMS_FILE} of the repository has a line that is no checksum: {line[:60]!r}"
                )
    return sums


def _differs_from_lock(folder: Path, lock: Path) -> str | None:
    try:
        sums = dict(json.loads(lock.read_text(encoding="utf-8"))["sha256"])
    except (ValueError, KeyError, TypeError):
        return f"the lock file {lock} is damaged"
    for name, expected in sums.items():
        if not (folder / name).is_file():
            return f"{folder / name} is missing from the cache"
        if _sha256(folder / name) != expected:
            return f"{folder / name} changed since it was downloaded (its checksum differs)"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Cache -----------------------------------------------------------------------------------------------


def _snapshot(cache_dir: Path, repo: str, commit: str) -> Path:
    return cache_dir / f"datasets--{repo.replace('/', '--')}" / "snapshots" / commit


def _lock_file(lock_dir: Path, commit: str) -> Path:
    return lock_dir / f"{commit}.json"


def _ref_file(lock_dir: Path, revision: str) -> Path:
    return lock_dir / "refs" / re.sub(r"[^\w.-]", "--", revision)


def _read_ref(lock_dir: Path, revision: str) -> str | None:
    path = _ref_file(lock_dir, revision)
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def _discard(folder: Path) -> None:
    """Delete a snapshot's files together with the blobs that they link to."""
    if folder.is_dir():
        for path in folder.iterdir():
            if path.is_symlink():
                path.resolve().unlink(missing_ok=True)
            if path.is_file() or path.is_symlink():
                path.unlink()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


# Errors ----------------------------------------------------------------------------------------------


def _network_errors() -> tuple[type[BaseException], ...]:
    """Exceptions of whichever HTTP library this version of huggingface_hub is built on."""
    found: list[type[BaseException]] = [ConnectionError, TimeoutError]
    for module, name in (
        ("httpx2", "TransportError"),
        ("httpx", "TransportError"),
        ("requests", "ConnectionError"),
        ("requests", "Timeout"),
    ):
        kind = getattr(sys.modules.get(module), name, None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            found.append(kind)
    return tuple(found)


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help: a broken connection, an overloaded server."""
    seen: BaseException | None = error
    while seen is not None:
        status = getattr(getattr(seen, "response", None), "status_code", None)
        if isinstance(seen, _network_errors()) or status == 429 or (status is not None and status >= 500):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def retry(action: Callable[[], T]) -> T:
    """Run `action`, again after a short wait if a transient failure ends it."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except Exception as error:
            if attempt == ATTEMPTS or not is_transient(error):
                raise
            time.sleep(0.2 * 4 ** (attempt - 1))
    raise AssertionError("unreachable")


@contextmanager
def plain_errors(repo: str, revision: str, endpoint: str) -> Iterator[None]:
    """Turn the client's exceptions into one line that says what to do."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    unreachable = (
        f"cannot reach the Hub at {endpoint} to get {repo}@{revision}; check the network, "
        "or name a commit that is in the cache and add --offline"
    )
    try:
        yield
    except GatedRepoError as error:
        raise BeyondError(
            f"{repo} is gated; ask for access at {endpoint}/datasets/{repo}, then log in with: hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise BeyondError(
            f"no dataset {repo!r} at {endpoint}; check the name (a private one needs: hf auth login)"
        ) from error
    except RevisionNotFoundError as error:
        raise BeyondError(
            f"dataset {repo!r} has no revision {revision!r}; see its branches at {endpoint}/datasets/{repo}"
        ) from error
    except HFValidationError as error:
        raise BeyondError(f"{repo!r} is not a valid dataset name; write hub:ORG/NAME@REVISION") from error
    except LocalEntryNotFoundError as error:
        raise BeyondError(unreachable) from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "an error")
        status_advice: dict[object, str] = {
            401: "log in with: hf auth login",
            403: "your token may not do this; make one that may write, then: hf auth login",
            412: "somebody else changed it meanwhile; look at their change, then run this again",
        }
        advice = status_advice.get(status, "try again later")
        raise BeyondError(
            f"the Hub at {endpoint} answered {status} for {repo}@{revision}; {advice}"
        ) from error
    except _network_errors() as error:
        raise BeyondError(unreachable) from error
