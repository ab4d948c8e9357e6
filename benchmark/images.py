"""Image sets: which images there are, their original labels, and how to get at their bytes.

Whatever its layout (`benchmark.layouts`), an image is known by its id, the file stem, and never by its place.
Worker processes unpickle the handles of this module, so it imports nothing heavy, and torch never.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from annotations.classes import NUM_VALIDATION_IMAGES, validation_ids
from annotations.errors import BeyondError, one_line

Ids = npt.NDArray[np.object_]
Labels = npt.NDArray[np.int16]
Indices = npt.NDArray[np.int64]


class Handle(Protocol):
    """How to get at one image's bytes: small and picklable, so that it can go to a worker process."""

    @property
    def image_id(self) -> str:
        """The image's id."""

    @property
    def where(self) -> str:
        """What to call the image in a message to the user."""

    def read(self) -> bytes:
        """The bytes of the image file."""


@dataclass(frozen=True, slots=True)
class FileHandle:
    """An image that is a file of its own."""

    image_id: str
    folder: str
    name: str

    @property
    def where(self) -> str:
        """The file's path."""
        return str(Path(self.folder, self.name))

    def read(self) -> bytes:
        """The bytes of the file."""
        return Path(self.folder, self.name).read_bytes()


@dataclass(frozen=True, slots=True)
class MemberHandle:
    """An image inside a tar file: `length` bytes from `offset` on."""

    image_id: str
    path: str
    offset: int
    length: int

    @property
    def where(self) -> str:
        """The image and its tar file."""
        return f"{self.image_id} in {self.path}"

    def read(self) -> bytes:
        """The bytes of the member."""
        with Path(self.path).open("rb") as file:
            file.seek(self.offset)
            return file.read(self.length)


@dataclass(frozen=True, slots=True)
class RowHandle:
    """An image in a row of a Parquet or Arrow file, in column `image.bytes`."""

    image_id: str
    path: str
    row: int

    @property
    def where(self) -> str:
        """The image and its table."""
        return f"{self.image_id} in row {self.row} of {self.path}"

    def read(self) -> bytes:
        """The bytes in the row.

        Raises:
            BeyondError: The row names a file instead of holding its bytes.
        """
        import pyarrow as pa

        try:
            data = open_rows(self.path).read(self.row)
        except (pa.ArrowException, OSError, StopIteration) as error:
            reason = one_line(error)
            raise BeyondError(f"cannot read {self.where} ({reason}); download or save it again") from None
        if data is None:
            raise BeyondError(
                f"{self.where} has no bytes, only a path; save the dataset with its images embedded"
            )
        return data


@dataclass(frozen=True, slots=True)
class BytesHandle:
    """An image that came over the network and is held in memory."""

    image_id: str
    source: str
    data: bytes

    @property
    def where(self) -> str:
        """The image and the dataset."""
        return f"{self.image_id} of {self.source}"

    def read(self) -> bytes:
        """The bytes."""
        return self.data


@dataclass(frozen=True)
class Chunk:
    """Consecutive images of a set.

    Attributes:
        index: Number of the chunk in the plan, from 0; the same images have the same number on every run.
        ids: object (n,) of str.
        labels: Original class indices, int16 (n,), −1 where unknown.
        handles: One for each image, in the same order.
    """

    index: int
    ids: Ids
    labels: Labels
    handles: Sequence[Handle]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.ids)


class Places(Protocol):
    """Where the images of a set are, in columns as long as the set."""

    def handle(self, image_id: str, i: int) -> Handle:
        """The handle of the image in row `i`."""

    def take(self, indices: Indices) -> Places:
        """The rows at `indices`."""


class ImageSet:
    """Images with ids and original labels. Holds tables of ids, labels and places, never an image.

    Attributes:
        name: A short name for tables and messages.
        fingerprint: SHA-256 (hex) over ids, labels and, where they cost nothing to know, file sizes; not the
            folder it lies in.
        sample: True unless the set is exactly the 50,000 validation images: its figures are not ImageNet's.
        total: Number of images, or None for a stream that does not say.
        ids: Sorted, object (N,) of str.
        labels: Original class index of each id, int16 (N,), −1 where unknown.
    """

    def __init__(
        self,
        name: str,
        ids: Ids,
        labels: Labels,
        places: Places,
        *,
        fingerprint: str,
        order: Indices | None = None,
    ) -> None:
        """Use `open_image_set`.

        Args:
            name: As the attribute.
            ids: As the attribute; unique.
            labels: As the attribute.
            places: Where image `ids[i]` is.
            fingerprint: As the attribute.
            order: Permutation of the images in which reading is cheap; None: sorted by id.
        """
        self.name = name
        self.fingerprint = fingerprint
        self.sample = len(ids) != NUM_VALIDATION_IMAGES or not bool((ids == validation_ids()).all())
        self.total: int | None = len(ids)
        self.ids = ids
        self.labels = labels
        self._places = places
        self._order = order

    def __len__(self) -> int:
        """Number of images."""
        return len(self.ids)

    def handle(self, i: int) -> Handle:
        """The handle of image `ids[i]`."""
        return self._places.handle(self.ids[i], i)

    def read(self, i: int) -> bytes:
        """The bytes of image `ids[i]`."""
        return self.handle(i).read()

    def spread(self, n: int) -> list[Handle]:
        """At most `n` images, spread evenly over the set by id."""
        rows = np.unique(np.linspace(0, len(self) - 1, n).round().astype(np.int64))
        return [self.handle(i) for i in rows.tolist()]

    def chunks(self, size: int, *, skip: Collection[str] | Callable[[str], bool] = ()) -> Iterator[Chunk]:
        """The images in chunks that are the same on every run, so that a run can go on where it stopped.

        Args:
            size: Images in a chunk; the last may be shorter.
            skip: Ids to leave out (a set of them, or a predicate). They leave gaps: no other image moves to
                another chunk, and a chunk of which nothing is left does not appear.

        Yields:
            Chunks in reading order: sorted by id, or as stored in tar shards and tables.
        """
        _check_positive(size, "the chunk size")
        skipped = skip if callable(skip) else skip.__contains__
        for index, start in enumerate(range(0, len(self.ids), size)):
            stop = min(start + size, len(self.ids))
            rows = range(start, stop) if self._order is None else self._order[start:stop].tolist()
            kept = [i for i in rows if not skipped(self.ids[i])]
            if kept:
                yield Chunk(index, self.ids[kept], self.labels[kept], [self.handle(i) for i in kept])

    def select(self, *, ids: Collection[str] | None = None, limit: int | None = None) -> ImageSet:
        """The images with these ids, and of those the first `limit` by id.

        Raises:
            BeyondError: An id is not in the set, or `limit` is less than 1.
        """
        keep = np.arange(len(self.ids))
        if ids is not None:
            missing = sorted(set(ids) - set(self.ids))
            if missing:
                raise BeyondError(_missing_message(missing, self.name))
            wanted = set(ids)
            keep = np.array([i for i, image_id in enumerate(self.ids) if image_id in wanted], dtype=np.int64)
        if limit is not None:
            _check_positive(limit, "the limit")
            keep = keep[:limit]
        if len(keep) == len(self.ids):
            return self
        order = None
        if self._order is not None:
            position = np.full(len(self.ids), -1)
            position[keep] = np.arange(len(keep))
            order = position[self._order]
            order = order[order >= 0]
        chosen = self.ids[keep]
        return ImageSet(
            self.name,
            chosen,
            self.labels[keep],
            self._places.take(keep),
            fingerprint=sha256([self.fingerprint, *chosen]),
            order=order,
        )


class StreamedImageSet(ImageSet):
    """A dataset read from the Hub in one pass, never listed and never stored: read it with `chunks`.

    `ids`, `labels`, `handle` and `read` are not available; `total` and `len` are, if the dataset says
    its size. `sample` is True, since which images there are is known only once they are read.
    """

    def __init__(
        self,
        name: str,
        rows: Callable[[], Iterator[tuple[str, int, bytes]]],
        *,
        fingerprint: str,
        total: int | None,
        wanted: frozenset[str] | None = None,
        limit: int | None = None,
    ) -> None:
        """Use `open_image_set`.

        Args:
            name: As the attribute.
            rows: Starts a pass over (id, label, bytes) of all images, in the same order every time.
            fingerprint: As the attribute; pins the dataset's revision rather than its ids.
            total: As the attribute.
            wanted: Ids to keep, or None for all.
            limit: Stop after so many images.
        """
        self.name = name
        self.fingerprint = fingerprint
        self.sample = True
        self.total = total
        self._rows = rows
        self._wanted = wanted
        self._limit = limit

    def __getattr__(self, attribute: str) -> Any:
        """Say why a table that other sets have is not here."""
        if attribute in ("ids", "labels"):
            raise BeyondError(f"{self.name} is streamed, so its {attribute} are known only while reading it")
        raise AttributeError(attribute)

    def __len__(self) -> int:
        """Number of images."""
        if self.total is None:
            raise BeyondError(f"{self.name} does not say how many images it has")
        return self.total

    def spread(self, n: int) -> list[Handle]:
        """The first `n` images: a stream has no others at hand."""
        return list(next(self.chunks(n)).handles)

    def handle(self, i: int) -> Handle:  # noqa: ARG002 - the base class's signature
        """Refused: a stream has no random access."""
        raise BeyondError(
            f"{self.name} is streamed and has no random access; download it to read single images"
        )

    def chunks(self, size: int, *, skip: Collection[str] | Callable[[str], bool] = ()) -> Iterator[Chunk]:
        """The images in chunks of the order of the stream, with their bytes; see `ImageSet.chunks`.

        What is skipped is still downloaded. Memory holds one chunk.

        Raises:
            BeyondError: The network fails, a label contradicts the ground truth, or a wanted id never came.
        """
        _check_positive(size, "the chunk size")
        skipped = skip if callable(skip) else skip.__contains__
        missing = None if self._wanted is None else set(self._wanted)
        stream = enumerate(itertools.islice(self._kept(missing), self._limit))
        for index, rows in itertools.groupby(stream, key=lambda row: row[0] // size):
            kept = [row for _, row in rows if not skipped(row[0])]
            if kept:
                ids = np.array([image_id for image_id, _, _ in kept], dtype=object)
                labels = np.array([label for _, label, _ in kept], dtype=np.int16)
                handles = [BytesHandle(image_id, self.name, data) for image_id, _, data in kept]
                yield Chunk(index, ids, labels, handles)
        if missing and self._limit is None:
            raise BeyondError(_missing_message(sorted(missing), self.name))

    def _kept(self, missing: set[str] | None) -> Iterator[tuple[str, int, bytes]]:
        for image_id, label, data in self._rows():
            if missing is None:
                yield image_id, label, data
            elif image_id in missing:
                missing.discard(image_id)
                yield image_id, label, data
                if not missing:
                    return

    def select(self, *, ids: Collection[str] | None = None, limit: int | None = None) -> ImageSet:
        """The images with these ids, and of those the first `limit` in the order of the stream.

        Whether all ids are there is known, and said, only at the end of the stream.
        """
        if limit is not None:
            _check_positive(limit, "the limit")
        if ids is None and limit is None:
            return self
        wanted = self._wanted if ids is None else frozenset(ids)
        total = self.total if wanted is None else len(wanted)
        if limit is not None:
            total = limit if total is None else min(limit, total)
        return StreamedImageSet(
            self.name,
            self._rows,
            fingerprint=sha256([self.fingerprint, str(limit), *sorted(wanted or ())]),
            total=total,
            wanted=wanted,
            limit=limit,
        )


def open_image_set(spec: str, *, ids_file: Path | None = None, limit: int | None = None) -> ImageSet:
    """Open an image set, whatever its layout.

    Args:
        spec: `sample` (the photographs that the package foolbox ships); a folder or file in one of
            `benchmark.layouts.LAYOUTS`; or `hf:ORG/NAME[@REVISION][:SPLIT]`, streamed from the Hub (split
            `validation` by default).
        ids_file: A text file with one id a line: use only those images.
        limit: Use only the first so many images (by id; of a stream, as they come).

    Raises:
        BeyondError: There is no such set, it holds no images, its layout is unknown, an id is unknown or
            appears twice, or a label is out of range or disagrees with the ILSVRC2012 ground truth.
    """
    from benchmark import layouts  # workers import this module for its handles and need no layouts

    if spec.startswith("hf:"):
        images = layouts.open_hub(spec)
    elif spec == "sample":
        images = layouts.open_sample()
    else:
        images = layouts.open_path(Path(spec))
    return images.select(ids=None if ids_file is None else read_ids(ids_file), limit=limit)


class Rows(Protocol):
    """Reads a table's rows one at a time."""

    schema: Any

    def without_bytes(self) -> Any:
        """Columns path, image_id and label, as far as there are such, as a pyarrow table."""

    def read(self, row: int) -> bytes | None:
        """The bytes of the image in a row, or None if it has none."""


@functools.lru_cache(maxsize=4)
def open_rows(path: str) -> Rows:
    """The reader of a table, kept open between rows; each process has its own."""
    return _ParquetRows(path) if path.endswith(".parquet") else _ArrowRows(path)


class _ParquetRows:
    """A Parquet file, read forwards a few rows at a time: row groups may be larger than memory."""

    _BATCH = 32

    def __init__(self, path: str) -> None:
        import pyarrow.parquet as pq

        self._file = pq.ParquetFile(path, buffer_size=1 << 20)
        self.schema = self._file.schema_arrow
        groups = [self._file.metadata.row_group(g).num_rows for g in range(self._file.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(groups, dtype=np.int64)])
        self._batches: Iterator[Any] = iter(())
        self._batch: Any = None
        self._first = 0
        self._lock = threading.Lock()

    def without_bytes(self) -> Any:
        """Columns path, image_id and label, as far as there are such, as a pyarrow table."""
        return _flat(self._file.read(columns=["image.path", "image_id", "label"]))

    def read(self, row: int) -> bytes | None:
        """The bytes of an image; fast when rows are asked for in ascending order."""
        with self._lock:
            group = int(np.searchsorted(self._starts, row, side="right")) - 1
            start = int(self._starts[group])
            if self._batch is None or row < self._first or start > self._first:
                self._batches = self._file.iter_batches(
                    self._BATCH, row_groups=[group], columns=["image.bytes"]
                )
                self._first, self._batch = start, next(self._batches)
            while row >= self._first + len(self._batch):
                self._first += len(self._batch)
                self._batch = next(self._batches)
            data: bytes | None = self._batch["image"].field("bytes")[row - self._first].as_py()
            return data


class _ArrowRows:
    """An Arrow file as `datasets` saves it, mapped into memory."""

    def __init__(self, path: str) -> None:
        import pyarrow as pa

        self._table = pa.ipc.open_stream(pa.memory_map(path)).read_all()
        self.schema = self._table.schema

    def without_bytes(self) -> Any:
        """Columns path, image_id and label, as far as there are such, as a pyarrow table."""
        return _flat(self._table)

    def read(self, row: int) -> bytes | None:
        """The bytes of an image."""
        data: bytes | None = self._table["image"][row]["bytes"].as_py()
        return data


def _flat(table: Any) -> Any:
    """A table's columns path (of `image`), image_id and label, as far as there are such."""
    import pyarrow as pa
    import pyarrow.compute as pc

    columns = {name: table[name] for name in ("image_id", "label") if name in table.column_names}
    if "image" in table.column_names and table.schema.field("image").type.get_field_index("path") >= 0:
        columns["path"] = pc.struct_field(table["image"], "path")
    return pa.table(columns)


def read_ids(path: Path) -> list[str]:
    """A file of ids, one a line."""
    try:
        ids = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BeyondError(f"cannot read the list of ids {path}: {error}") from error
    if not ids:
        raise BeyondError(f"the list of ids {path} is empty; write one id a line")
    twice = [image_id for image_id, count in Counter(ids).items() if count > 1]
    if twice:
        raise BeyondError(f"the list of ids {path} names {twice[0]} twice; name each image once")
    return ids


def sha256(lines: Iterable[str]) -> str:
    """SHA-256 (hex) of lines of text."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def _check_positive(number: int, what: str) -> None:
    if number < 1:
        raise BeyondError(f"{what} is {number}; it must be at least 1")


def _missing_message(missing: Sequence[str], name: str) -> str:
    return f"{len(missing)} of the listed ids are not in {name}, first {missing[0]}; correct the list"
