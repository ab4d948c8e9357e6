"""Parts of a run: which images are in which, what came of them, and writing them down. Needs no torch.

The plan depends on the image set and the batch size alone, never on the engine or the worker, so that a run
that was killed and goes on, here or on other machines, makes the records it would have made.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benchmark import records
from benchmark.decoding import DecodedBatch, Failure, Note
from benchmark.images import Chunk, ImageSet
from benchmark.records import Predictions

IMAGES_PER_PART = 256

COMPARED = 256
"""Images on which a lower precision is compared with float32."""

Ranked = tuple[npt.NDArray[np.int16], npt.NDArray[np.float32], npt.NDArray[np.float32]]


def plan(images: ImageSet, batch_size: int, *, done: Collection[str]) -> Iterator[Chunk]:
    """The images of each part, in whole batches, less those that have a record."""
    return images.chunks(part_size(batch_size), skip=done)


def part_size(batch_size: int) -> int:
    """Images of a part: whole batches, and `IMAGES_PER_PART` at least."""
    return batch_size * -(-IMAGES_PER_PART // batch_size)


@dataclass(frozen=True)
class Part:
    """What came of the images of one part; small and picklable.

    Attributes:
        index: Number of the part in the plan.
        predictions: Records of the images that were read, in the order of the plan; None if there were none.
        failures: Images that could not be read.
        notes: Images whose colours had to be converted.
    """

    index: int
    predictions: Predictions | None
    failures: tuple[Failure, ...] = ()
    notes: tuple[Note, ...] = ()

    @property
    def scored(self) -> int:
        """Number of records."""
        return 0 if self.predictions is None else len(self.predictions)


class PartInTheMaking:
    """Gathers the batches of one part."""

    def __init__(self, chunk: Chunk) -> None:
        self._chunk = chunk
        self._labels = dict(zip(chunk.ids, chunk.labels))
        self._ids: list[npt.NDArray[np.object_]] = []
        self._ranked: list[Ranked] = []
        self._failures: list[Failure] = []
        self._notes: list[Note] = []
        self._seen = 0

    @property
    def complete(self) -> bool:
        """Whether every image of the part has a record or a failure."""
        return self._seen == len(self._chunk)

    def add(self, batch: DecodedBatch, ranked: Ranked | None) -> None:
        """Take a batch and what the classifier says of it; None if no image of it could be read."""
        self._failures.extend(batch.failures)
        self._notes.extend(batch.notes)
        self._seen += len(batch) + len(batch.failures)
        if ranked is not None:
            self._ranked.append(ranked)
            self._ids.append(batch.image_ids)

    def finished(self) -> Part:
        """The part."""
        predictions = None
        if self._ids:
            ids = np.concatenate(self._ids)
            labels = np.array([self._labels[image_id] for image_id in ids], dtype=np.int16)
            classes, logits, logsumexp = (np.concatenate(columns) for columns in zip(*self._ranked))
            predictions = Predictions(ids, labels, classes, logits, logsumexp)
        return Part(self._chunk.index, predictions, tuple(self._failures), tuple(self._notes))


@dataclass
class Summary:
    """What a run did: images scored now, images it had before, images left out, images converted by kind."""

    scored: int = 0
    kept: int = 0
    skipped: int = 0
    notes: dict[str, list[str]] = field(default_factory=dict)

    def add(self, part: Part) -> None:
        """Count a part."""
        self.scored += part.scored
        self.skipped += len(part.failures)
        for note in part.notes:
            self.notes.setdefault(note.kind, []).append(note.image_id)


class PartWriter:
    """Writes parts in a thread, at most two behind, and reports a failed write at the next call."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="beyond-writer")
        self._pending: list[Future[None]] = []

    def write(self, part: Part) -> None:
        """Write a part, or wait until there is room in the queue."""
        self._pending.append(self._pool.submit(self._write, part))
        while len(self._pending) > 2:
            self._pending.pop(0).result()

    def _write(self, part: Part) -> None:
        if part.failures:
            rows = [{"image_id": failure.image_id, "reason": failure.message} for failure in part.failures]
            table = pa.Table.from_pylist(rows, schema=records.SKIPPED_SCHEMA)
            records.write_part(self._run / records.SKIPPED, part.index, table)
        if part.predictions is not None:
            records.write_part(self._run / records.PREDICTIONS, part.index, part.predictions.to_arrow())

    def __enter__(self) -> PartWriter:
        """Nothing more to do."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Finish what is queued, even after an error: those images are done."""
        self._pool.shutdown(wait=True)
        if kind is None:
            for future in self._pending:
                future.result()
