"""The records that an entry points to: found or downloaded, bounded, their hash checked before anything else.

Records are data from strangers. A Parquet file can be small and unfold into gigabytes, so what its footer
says is compared with what 50,000 images can need before a row is read.
"""

from __future__ import annotations

import itertools
import math
import os
from pathlib import Path

from annotations import hub
from annotations.classes import NUM_VALIDATION_IMAGES
from annotations.errors import BeyondError
from annotations.sources import store_dir
from leaderboard.entries import Records, records_files, records_sha256

MAX_FILE = 2 * 2**30
"""Most bytes of a file of records: 50,000 × 1000 classes with logits take 300 MB."""

MAX_FILES = 2000
"""Most parts of a run."""

MAX_LISTED = 20_000
"""Most files of a repository that are looked at."""

MAX_ROWS = NUM_VALIDATION_IMAGES
MOST_ROWS = {"robustness": math.inf, "agreement": 500_000}
"""Most rows of the kinds that do not have one row an image."""

MAX_UNFOLDED = 4 * 2**30


def find_records(records: Records, *, folder: Path | None = None, online: bool = False) -> Path | None:
    """Path of an entry's records on this machine, checked against their hash; None where they are not here.

    Args:
        records: What the entry says of them.
        folder: Where files of kind `file` lie (`--records`).
        online: Whether to download those of kind `hub`.

    Raises:
        BeyondError: They are here, but are not those that the entry names, too large, or hold links.
    """
    path = None
    if records.kind == "file" and folder is not None and records.path is not None:
        path = folder / records.path
        if not path.exists():
            path = None
    elif records.kind == "hub" and online:
        path = _download(records)
    if path is None:
        return None
    check_bounds(path)
    found = records_sha256(path)
    if found != records.sha256:
        raise BeyondError(
            f"the records at {records.path} have sha256 {found[:12]}…, not {str(records.sha256)[:12]}… as "
            "stated: they were changed, or belong to something else"
        )
    return path


def check_bounds(path: Path) -> None:
    """Refuse records that are links, too many, too large, or unfold into too much.

    Raises:
        BeyondError: They do.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = list(records_files(path))
    if not files:
        raise BeyondError(f"{path.name} holds no records: it needs run.json and predictions/part-*.parquet")
    if len(files) > MAX_FILES:
        raise BeyondError(f"{path.name} has {len(files):,} parts; at most {MAX_FILES:,} are allowed")
    rows: dict[str, int] = {}
    unfolded = 0
    for file in files:
        within = file.relative_to(path).parts if path.is_dir() else ()
        if any((path / Path(*within[: depth + 1])).is_symlink() for depth in range(len(within))):
            raise BeyondError(f"{'/'.join(within)} of the records is a link; records are plain files")
        size = file.stat().st_size
        if size > MAX_FILE:
            raise BeyondError(f"{file.name} has {size:,} bytes; at most {MAX_FILE:,} are allowed")
        if file.suffix != ".parquet":
            continue
        try:
            footer = pq.read_metadata(file)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise BeyondError(f"{file.name} is not a readable Parquet file ({error})") from None
        kind = file.parent.name if within else ""
        rows[kind] = rows.get(kind, 0) + footer.num_rows
        unfolded += sum(footer.row_group(i).total_byte_size for i in range(footer.num_row_groups))
        if unfolded > MAX_UNFOLDED or rows[kind] > MOST_ROWS.get(kind, MAX_ROWS):
            raise BeyondError(
                f"{file.name} says that it unfolds into {rows[kind]:,} rows and {unfolded:,} bytes, which "
                "is more than the validation set can need"
            )


KINDS = ("predictions", "skipped", "robustness", "agreement")


def _belongs(name: str, path: str) -> bool:
    """Whether a file of a repository is part of the records at `path`."""
    if name == path:
        return True
    kind, _, part = name.removeprefix(f"{path}/").partition("/")
    return name.startswith(f"{path}/") and (
        (kind == "run.json" and not part) or (kind in KINDS and part.endswith(".parquet") and "/" not in part)
    )


def _download(records: Records) -> Path:
    """Download records from the Hub at their commit; what is too large is refused before it is fetched."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.hf_api import RepoFile

    repository, revision, path = str(records.repository), str(records.revision), str(records.path)
    endpoint = (os.environ.get("HF_ENDPOINT") or hub.DEFAULT_ENDPOINT).rstrip("/")
    target = store_dir().parent / "records" / repository.replace("/", "--") / revision

    def listed() -> list[RepoFile]:
        tree = HfApi(endpoint=endpoint).list_repo_tree(
            repository, repo_type="dataset", revision=revision, recursive=True
        )
        some = itertools.islice(tree, MAX_LISTED)
        return [item for item in some if isinstance(item, RepoFile) and _belongs(item.path, path)]

    with hub.plain_errors(repository, revision, endpoint):
        files = hub.retry(listed)
        if not files:
            raise BeyondError(f"{repository} has no {path} at {revision[:12]}; submit its records again")
        if len(files) > MAX_FILES or max(item.size for item in files) > MAX_FILE:
            raise BeyondError(f"the records in {repository} are too many or too large to be those of a run")
        names = [item.path for item in files]
        hub.retry(
            lambda: snapshot_download(
                repository,
                repo_type="dataset",
                revision=revision,
                allow_patterns=names,
                local_dir=target,
                endpoint=endpoint,
            )
        )
    return target / path
