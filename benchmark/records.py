"""Records: per-image results in Parquet parts that are written whole or not at all.

The name of a part carries its checksum (`part-00003-1f0c…9a.parquet`), so one rename publishes both, and a
part that was damaged later is known without any other file. Parts that fail are moved to `quarantine/`.

`predictions/part-*.parquet`: image_id, original_label (int16, −1 unknown), classes list<int16> (best first),
logits list<float32> (may be absent), logsumexp float32 (may be absent).
`skipped/part-*.parquet`: image_id, reason.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from annotations.errors import BeyondError
from annotations.tables import read_parquet

PREDICTIONS = "predictions"
SKIPPED = "skipped"
QUARANTINE = "quarantine"

PREDICTIONS_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("original_label", pa.int16()),
        ("classes", pa.list_(pa.int16())),
        ("logits", pa.list_(pa.float32())),
        ("logsumexp", pa.float32()),
    ]
)
SKIPPED_SCHEMA = pa.schema([("image_id", pa.string()), ("reason", pa.string())])

# As predictions of others may come: wider, so that a class out of range is named as such.
FOREIGN_TYPES = {
    **{field.name: field.type for field in PREDICTIONS_SCHEMA},
    "original_label": pa.int64(),
    "classes": pa.list_(pa.int64()),
}

_PART = re.compile(r"part-(\d{5,})-([0-9a-f]{16})\.parquet")


@dataclass(frozen=True)
class Predictions:
    """What one classifier predicted on N images, best class first.

    Attributes:
        image_ids: object (N,) of str, unique.
        original_labels: int16 (N,), −1 where unknown.
        classes: int16 (N, K), class indices, most likely first; ties go to the lower index.
        logits: float32 (N, K), descending, or None when only classes are known.
        logsumexp: float32 (N,), log of the sum of exponentials over all 1000 logits, or None. The probability
            of `classes[i, j]` is `exp(logits[i, j] - logsumexp[i])`.
    """

    image_ids: npt.NDArray[np.object_]
    original_labels: npt.NDArray[np.int16]
    classes: npt.NDArray[np.int16]
    logits: npt.NDArray[np.float32] | None = None
    logsumexp: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.image_ids)

    def to_arrow(self) -> pa.Table:
        """The records as a table in `PREDICTIONS_SCHEMA`."""
        n, k = self.classes.shape
        offsets = pa.array(
            np.arange(0, (n + 1) * k, k, dtype=np.int32) if k else np.zeros(n + 1, dtype=np.int32)
        )
        classes = pa.ListArray.from_arrays(offsets, pa.array(self.classes.reshape(-1)))
        if self.logits is None or self.logsumexp is None:
            logits, logsumexp = pa.nulls(n, pa.list_(pa.float32())), pa.nulls(n, pa.float32())
        else:
            logits = pa.ListArray.from_arrays(offsets, pa.array(self.logits.reshape(-1)))
            logsumexp = pa.array(self.logsumexp)
        ids = pa.array(self.image_ids, pa.string())
        labels = pa.array(self.original_labels, pa.int16())
        return pa.Table.from_arrays([ids, labels, classes, logits, logsumexp], schema=PREDICTIONS_SCHEMA)

    @classmethod
    def from_arrow(cls, table: pa.Table, *, where: str) -> Predictions:
        """Read a table in `FOREIGN_TYPES`; `original_label`, `logits` and `logsumexp` may be absent.

        Raises:
            BeyondError: A column is missing, a class or label is outside 0..999, a logit is not finite, an id
                is missing, or lists differ in length.
        """
        missing = {"image_id", "classes"} - set(table.column_names)
        if missing:
            raise BeyondError(f"{where} has no column {sorted(missing)[0]!r}; it needs image_id and classes")
        n = table.num_rows
        classes = _matrix(table, "classes", np.dtype(np.int64), where)
        if classes.size and (classes.min() < 0 or classes.max() > 999):
            bad = classes[(classes < 0) | (classes > 999)][0]
            raise BeyondError(f"{where}: predicted class {bad} is outside 0..999")
        logits = logsumexp = None
        if {"logits", "logsumexp"} <= set(table.column_names) and n and table["logits"].null_count == 0:
            logits = _matrix(table, "logits", np.dtype(np.float32), where)
            logsumexp = table["logsumexp"].to_numpy().astype(np.float32)
            if logits.shape != classes.shape:
                raise BeyondError(f"{where}: classes and logits differ in length")
            if not (np.isfinite(logits).all() and np.isfinite(logsumexp).all()):
                raise BeyondError(f"{where}: a logit or logsumexp is NaN, infinite or missing")
        labels = np.full(n, -1, dtype=np.int16)
        if "original_label" in table.column_names:
            given = table["original_label"].fill_null(-1).to_numpy()
            if n and (given.min() < -1 or given.max() > 999):
                bad = given[(given < -1) | (given > 999)][0]
                raise BeyondError(f"{where}: original_label {bad} is outside 0..999")
            labels = given.astype(np.int16)
        if table["image_id"].null_count:
            raise BeyondError(f"{where} has a row without an image_id")
        ids = table["image_id"].to_numpy(zero_copy_only=False).astype(object)
        return cls(ids, labels, classes.astype(np.int16), logits, logsumexp)


def _matrix(table: pa.Table, name: str, dtype: np.dtype[Any], where: str) -> npt.NDArray[Any]:
    column = table[name].combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks else pa.array([], column.type)
    flat = column.flatten()
    if column.null_count or flat.null_count:
        raise BeyondError(f"{where}: a row of {name!r} is empty or has an entry that is")
    flat = flat.to_numpy(zero_copy_only=False).astype(dtype, copy=False)
    lengths = np.diff(column.offsets.to_numpy())
    if len(lengths) and (lengths != lengths[0]).any():
        raise BeyondError(f"{where}: every row of {name!r} needs the same number of entries")
    return flat.reshape(len(lengths), -1) if len(lengths) else np.zeros((0, 0), dtype=dtype)


def write_part(folder: Path, index: int, table: pa.Table, *, durable: bool = True) -> Path:
    """Write one part atomically: temporary name, fsync, rename, fsync of the folder.

    Args:
        folder: Kind of records, e.g. `RUN/predictions`; made if need be.
        index: Number of the part in the run's plan.
        table: Its rows.
        durable: False skips fsync, for what can be made again from a file in no time.

    Returns:
        The path of the part, whose name carries the first 16 hex digits of the SHA-256 of its bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sink = pa.BufferOutputStream()
    floats = {"logits.list.element", "logsumexp", "pixels.list.element"} & set(_leaves(table.schema))
    pq.write_table(
        table,
        sink,
        compression="zstd",
        use_dictionary=False,
        use_byte_stream_split=sorted(floats),
        write_statistics=False,
    )
    data = sink.getvalue()
    path = folder / f"part-{index:05d}-{hashlib.sha256(data).hexdigest()[:16]}.parquet"
    temporary = folder / f".{path.name}.{os.getpid()}.tmp"
    try:
        with temporary.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        _sync_folder(folder)
    return path


def _leaves(schema: pa.Schema) -> list[str]:
    return [f"{f.name}.list.element" if pa.types.is_list(f.type) else f.name for f in schema]


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def part_paths(folder: Path) -> list[Path]:
    """The parts in a folder of records, in the order of the run's plan. Temporary files are not parts."""
    if not folder.is_dir():
        return []
    named = [(match, path) for path in folder.iterdir() if (match := _PART.fullmatch(path.name))]
    return [path for match, path in sorted(named, key=lambda item: (int(item[0].group(1)), item[1].name))]


def next_index(folder: Path) -> int:
    """Number for the next part of a folder whose records are only ever appended."""
    return 1 + max((int(path.name.split("-")[1]) for path in part_paths(folder)), default=-1)


def part_is_sound(path: Path) -> bool:
    """Whether a part's bytes still have the checksum that its name carries."""
    match = _PART.fullmatch(path.name)
    if match is None:
        return False
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16] == match.group(2)


def quarantine(path: Path) -> Path:
    """Move a damaged part out of the way, keeping its bytes for whoever wants to look."""
    folder = path.parent.parent / QUARANTINE / path.parent.name
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / path.name
    path.replace(target)
    return target


def iter_predictions(run: Path) -> Iterator[Predictions]:
    """The predictions of a run, part by part, checked.

    Raises:
        BeyondError: There are none, a part is damaged, or an image appears in two parts.
    """
    paths = part_paths(run / PREDICTIONS)
    if not paths:
        raise BeyondError(
            f"{run} holds no predictions; make some with: beyond score MODEL --images DIR --out {run}"
        )
    seen: set[str] = set()
    for path in paths:
        if not part_is_sound(path):
            raise BeyondError(
                f"{path} is damaged (checksum); run the same beyond score command again to repair it"
            )
        part = Predictions.from_arrow(read_parquet(path, FOREIGN_TYPES), where=str(path))
        before = len(seen)
        seen.update(part.image_ids)
        if len(seen) != before + len(part):
            raise BeyondError(f"{path} repeats an image of an earlier part; score into a new folder")
        yield part
