"""Files of a model repository on the Hugging Face Hub, pinned to one commit, from the cache when offline."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from annotations.errors import BeyondError, one_line
from benchmark.models.weights import load_weights

# Names under which libraries save weights, safest first.
_WEIGHT_FILES = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip


class NotCachedError(BeyondError):
    """A file is not in the cache and the Hub cannot be reached."""


@dataclass(frozen=True)
class HubWeights:
    """Files of weights in the local cache.

    Attributes:
        paths: The file, or the shards of it.
        revision: Commit they belong to, 40 hexadecimal digits.
    """

    paths: tuple[Path, ...]
    revision: str

    def load(self) -> dict[str, torch.Tensor]:
        """All tensors, read safely; see `load_weights`."""
        if len(self.paths) == 1:
            return load_weights(self.paths[0])
        return {name: tensor for path in self.paths for name, tensor in load_weights(path).items()}


def file(repository: str, name: str, revision: str | None, cache_dir: Path | None) -> Path:
    """One file of a repository; the name of the folder it lies in is the commit.

    Args:
        repository: `ORG/NAME`.
        name: File in the repository.
        revision: Branch, tag or commit; None is the main branch.
        cache_dir: The Hub's cache; None is huggingface_hub's own.

    Raises:
        EntryNotFoundError: The repository has no such file.
        BeyondError: No such repository or revision, no access, or no network and nothing in the cache.
    """
    # Read when called, not when huggingface_hub was imported.
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    with _plain_errors(repository, revision):
        return Path(
            hf_hub_download(
                repository,
                name,
                revision=revision,
                cache_dir=cache_dir,
                endpoint=endpoint,
                local_files_only=offline or not _reachable(endpoint),
            )
        )


@functools.cache
def _reachable(endpoint: str) -> bool:
    """Whether something answers there; the client would try for half a minute before it used its cache."""
    if urllib.request.getproxies():
        return True  # a direct connection would tell nothing
    address = urllib.parse.urlsplit(endpoint)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=5).close()
    except OSError:
        return False
    return True


def optional_file(repository: str, name: str, revision: str | None, cache_dir: Path | None) -> Path | None:
    """As `file`, or None if the repository has no such file."""
    try:
        return file(repository, name, revision, cache_dir)
    except EntryNotFoundError:
        return None


def weights(
    repository: str, revision: str | None, cache_dir: Path | None, *, filename: str | None = None
) -> HubWeights:
    """The weights of a repository, safetensors before anything else.

    Args:
        repository: `ORG/NAME`.
        revision: Branch, tag or commit; None is the main branch.
        cache_dir: The Hub's cache; None is huggingface_hub's own.
        filename: The one file to use; None looks for the usual names.

    Raises:
        BeyondError: As for `file`, or there are no weights that PyTorch reads.
    """
    offline: NotCachedError | None = None
    for name in (filename,) if filename else _WEIGHT_FILES:
        try:
            path = optional_file(repository, name, revision, cache_dir)
        except NotCachedError as error:
            # Perhaps the repository lacks this file and the cache holds the next one.
            offline = offline or error
            continue
        if path is None:
            continue
        commit = path.parent.name
        if not name.endswith(".index.json"):
            return HubWeights((path,), commit)
        shards = sorted(set(read_json(path).get("weight_map", {}).values()))
        found = [optional_file(repository, shard, commit, cache_dir) for shard in shards]
        paths = tuple(shard for shard in found if shard is not None)
        if paths and len(paths) == len(shards):
            return HubWeights(paths, commit)
        raise BeyondError(f"{repository} lacks a shard that its {name} lists; try another revision")
    if offline is not None:
        raise offline
    wanted = filename or f"{_WEIGHT_FILES[0]} or {_WEIGHT_FILES[2]}"
    raise BeyondError(f"{repository} has no weights for PyTorch ({wanted}); choose another repository")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a repository.

    Raises:
        BeyondError: It is not a JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BeyondError(
            f"{path.name} of the repository is not JSON ({error}); choose another revision"
        ) from error
    if not isinstance(data, dict):
        raise BeyondError(f"{path.name} of the repository is not a JSON object; choose another revision")
    return data


@contextlib.contextmanager
def _plain_errors(repository: str, revision: str | None) -> Iterator[None]:
    """Turn the Hub client's errors into one line each; a missing file stays what it is."""
    at = f"{repository}@{revision}" if revision else repository
    try:
        yield
    except GatedRepoError as error:
        raise BeyondError(
            f"{repository} asks for agreement to its terms; accept them on its page, then run: hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise BeyondError(
            f"no repository {repository!r} on the Hub, or it is private; check the name or run: hf auth login"
        ) from error
    except RevisionNotFoundError as error:
        raise BeyondError(
            f"{repository} has no revision {revision!r}; name a branch, a tag or a commit"
        ) from error
    except HFValidationError as error:
        raise BeyondError(f"{repository!r} is no repository name; write hf:ORG/NAME[@REVISION]") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise NotCachedError(
            f"{at} is not in the local cache and the Hub cannot be reached; connect once "
            "(or unset HF_HUB_OFFLINE), then it works offline"
        ) from error
    except EntryNotFoundError:
        raise
    except HfHubHTTPError as error:
        reason = one_line(error, 160)
        raise BeyondError(f"the Hub refused {at} ({reason}); try again later") from error
    except (OSError, RuntimeError) as error:
        # The client's HTTP library (requests or httpx, by its version) and its consistency checks.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = one_line(error, 160)
        raise BeyondError(
            f"cannot fetch {at} from the Hub ({reason}); check the network and try again"
        ) from error
