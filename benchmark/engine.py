"""The local engine: one process, one device. Classifier and images in, records out.

Images are decoded ahead in worker processes while the device computes, and parts are written in a thread. The
plan (which image is in which part and batch) depends on the image set and the batch size alone, so a run that
was killed and goes on makes the records it would have made.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from annotations.classes import NUM_CLASSES
from annotations.errors import BeyondError
from benchmark import records
from benchmark.classifier import Classifier
from benchmark.decoding import DecodedBatch, Decoder, Failure
from benchmark.images import Chunk, Handle, ImageSet
from benchmark.memory import is_out_of_memory
from benchmark.progress import meter
from benchmark.records import Predictions

IMAGES_PER_PART = 256

Ranked = tuple[npt.NDArray[np.int16], npt.NDArray[np.float32], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Settings:
    """How to run. None of it changes a prediction, but for rounding in the last digits of a logit.

    Attributes:
        batch_size: Images a forward pass; halved, with a line saying so, when memory runs out.
        workers: Decoding processes; 0 decodes in this one.
        device: A torch device.
        top_k: Classes kept a record, best first; 1000 keeps what every metric needs.
        skip_errors: Leave unreadable images out and count them, instead of stopping.
        quiet: No progress.
    """

    batch_size: int = 64
    workers: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    top_k: int = NUM_CLASSES
    skip_errors: bool = False
    quiet: bool = False


@dataclass
class Summary:
    """What a run did: images scored now, images it had before, images left out, images converted by kind."""

    scored: int = 0
    kept: int = 0
    skipped: int = 0
    notes: dict[str, list[str]] = field(default_factory=dict)


def predict(
    classifier: Classifier,
    images: ImageSet,
    run: Path,
    settings: Settings,
    *,
    done: set[str],
    warn: Callable[[str], None],
    transform: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]] | None = None,
) -> Summary:
    """Record the predictions of `classifier` on every image that has none yet. The run must be locked.

    Args:
        classifier: What to run.
        images: On what.
        run: Folder of the run.
        settings: How.
        done: Ids that have a record already.
        warn: Called with one line for whatever the user should know.
        transform: What a probe does to the pixels that the model is about to see, uint8 (N, H, W, 3).

    Raises:
        BeyondError: An image cannot be read (unless `skip_errors`), or the model breaks its contract.
    """
    forward = Forward(classifier, settings, warn)
    summary = Summary(kept=len(done))
    size = settings.batch_size
    plan: deque[_Part] = deque()

    def batches() -> Iterator[Sequence[Handle]]:
        for chunk in images.chunks(size * -(-IMAGES_PER_PART // size), skip=done):
            plan.append(_Part(chunk))
            for start in range(0, len(chunk), size):
                yield chunk.handles[start : start + size]

    left = None if images.total is None else images.total - len(done)
    with (
        meter(f"Scoring {classifier.name}", left, quiet=settings.quiet) as progress,
        _PartWriter(run) as writer,
        Decoder(classifier.preprocessing, workers=settings.workers, batch_size=size) as decoder,
    ):
        for batch in decoder.batches(batches()):
            if batch.failures and not settings.skip_errors:
                raise BeyondError(batch.failures[0].message)
            if transform is not None and len(batch):
                batch = replace(batch, pixels=transform(batch.pixels))
            plan[0].add(batch, forward)
            for note in batch.notes:
                summary.notes.setdefault(note.kind, []).append(note.image_id)
            progress.advance(len(batch) + len(batch.failures))
            if plan[0].complete:
                part = plan.popleft()
                writer.write(part)
                summary.scored += part.scored
                summary.skipped += len(part.failures)
    return summary


class Forward:
    """A classifier on a device: pixels in, ranked classes out, halving the batch when memory runs out."""

    def __init__(self, classifier: Classifier, settings: Settings, warn: Callable[[str], None]) -> None:
        self.device = settings.device
        self.top_k = settings.top_k
        self.limit = settings.batch_size
        self.warn = warn
        self.name = classifier.name
        # Pixels arrive as (N, H, W, 3); read as channels-last they need no copy, and convolutions are faster.
        self.module = classifier.module.eval().to(self.device).to(memory_format=torch.channels_last)

    def __call__(self, pixels: npt.NDArray[np.uint8], image_ids: npt.NDArray[np.object_]) -> Ranked:
        """Rank the classes of each image.

        Args:
            pixels: uint8 (N, H, W, 3), RGB.
            image_ids: object (N,), for error messages.

        Returns:
            classes int16 (N, top_k), best first, ties to the lower index; logits float32 (N, top_k);
            logsumexp float32 (N,).

        Raises:
            BeyondError: The output is not (N, 1000) or not finite, or memory runs out even for one image.
        """
        pieces = []
        start = 0
        while start < len(pixels):
            piece = slice(start, start + self.limit)
            try:
                pieces.append(self._rank(pixels[piece], image_ids[piece]))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.limit == 1 or len(pixels[piece]) == 1:
                    raise BeyondError(f"{self.name} runs out of memory on a single image") from None
                self.limit = max(1, min(self.limit, len(pixels[piece])) // 2)
                self.warn(f"out of memory: going on with batches of {self.limit}")
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                continue
            start += self.limit
        classes, logits, logsumexp = (np.concatenate(columns) for columns in zip(*pieces))
        return classes, logits, logsumexp

    @torch.inference_mode()
    def _rank(self, pixels: npt.NDArray[np.uint8], image_ids: npt.NDArray[np.object_]) -> Ranked:
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.device)
        logits = self.module(x.to(torch.float32).div_(255))
        if not isinstance(logits, torch.Tensor) or logits.shape != (len(pixels), NUM_CLASSES):
            shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise BeyondError(
                f"{self.name} returns {shape} instead of ({len(pixels)}, {NUM_CLASSES}); see: beyond validate"
            )
        logits = logits.float()
        finite = torch.isfinite(logits).all(dim=1).cpu().numpy()
        if not finite.all():
            raise BeyondError(
                f"{self.name} gives NaN or infinite logits on image {image_ids[int(np.argmin(finite))]!r}; "
                "see: beyond validate"
            )
        ranked, classes = torch.sort(logits, dim=1, descending=True, stable=True)
        return (
            classes[:, : self.top_k].to(torch.int16).cpu().numpy(),
            ranked[:, : self.top_k].cpu().numpy(),
            torch.logsumexp(logits, dim=1).cpu().numpy(),
        )


class _Part:
    """One part in the making."""

    def __init__(self, chunk: Chunk) -> None:
        self.index = chunk.index
        self._size = len(chunk)
        self._labels = dict(zip(chunk.ids, chunk.labels))
        self._ids: list[npt.NDArray[np.object_]] = []
        self._ranked: list[Ranked] = []
        self.failures: list[Failure] = []
        self.scored = 0

    @property
    def complete(self) -> bool:
        """Whether every image of the part has a record or a failure."""
        return self.scored + len(self.failures) == self._size

    def add(self, batch: DecodedBatch, forward: Forward) -> None:
        """Classify a batch of the part."""
        self.failures.extend(batch.failures)
        if len(batch):
            self._ranked.append(forward(batch.pixels, batch.image_ids))
            self._ids.append(batch.image_ids)
            self.scored += len(batch)

    def predictions(self) -> Predictions:
        """The records, in the order of the plan."""
        ids = np.concatenate(self._ids)
        labels = np.array([self._labels[image_id] for image_id in ids], dtype=np.int16)
        classes, logits, logsumexp = (np.concatenate(columns) for columns in zip(*self._ranked))
        return Predictions(ids, labels, classes, logits, logsumexp)


class _PartWriter:
    """Writes parts in a thread, at most two behind, and reports a failed write at the next call."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="beyond-writer")
        self._pending: list[Future[None]] = []

    def write(self, part: _Part) -> None:
        self._pending.append(self._pool.submit(self._write, part))
        while len(self._pending) > 2:
            self._pending.pop(0).result()

    def _write(self, part: _Part) -> None:
        if part.failures:
            rows = [{"image_id": failure.image_id, "reason": failure.message} for failure in part.failures]
            table = pa.Table.from_pylist(rows, schema=records.SKIPPED_SCHEMA)
            records.write_part(self._run / records.SKIPPED, part.index, table)
        if part.scored:
            records.write_part(self._run / records.PREDICTIONS, part.index, part.predictions().to_arrow())

    def __enter__(self) -> _PartWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # What is queued is finished even after an error: those images are done.
        self._pool.shutdown(wait=True)
        if kind is None:
            for future in self._pending:
                future.result()
