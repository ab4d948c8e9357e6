"""The local engine: one process, one device. Classifier and images in, records out.

Images are decoded ahead in worker processes while the device computes, a GPU is given its next batch before
the last one is fetched, and parts are written in a thread (`benchmark.parts`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from annotations.classes import NUM_CLASSES
from annotations.errors import BeyondError, one_line
from benchmark.classifier import Classifier
from benchmark.decoding import DecodedBatch, Decoder
from benchmark.images import Chunk, Handle, ImageSet
from benchmark.memory import is_out_of_memory, keep_freed_memory
from benchmark.parts import Part, PartInTheMaking, PartWriter, Ranked, Summary, plan
from benchmark.progress import meter

CPU_IMAGES = 16
"""Images that a network sees at a time on the CPU, at most, or four for each thread if that is more."""

Precision = Literal["float32", "bfloat16"]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Settings:
    """How to run. All but `precision` changes nothing but the last digits of a logit.

    Attributes:
        batch_size: Images a forward pass; halved, with a line saying so, when memory runs out.
        workers: Decoding processes; 0 decodes in this one.
        device: A torch device.
        top_k: Classes kept a record, best first; 1000 keeps what every metric needs.
        skip_errors: Leave unreadable images out and count them, instead of stopping.
        quiet: No progress.
        precision: `bfloat16` runs the network under autocast; logits are float32 all the same.
        compile: Run the network through torch.compile.
    """

    batch_size: int = 64
    workers: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    top_k: int = NUM_CLASSES
    skip_errors: bool = False
    quiet: bool = False
    precision: Precision = "float32"
    compile: bool = False


def predict(
    classifier: Classifier,
    images: ImageSet,
    run: Path,
    settings: Settings,
    *,
    done: set[str],
    warn: Callable[[str], None],
    transform: Callable[[Pixels], Pixels] | None = None,
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
    left = None if images.total is None else images.total - len(done)
    with (
        meter(f"Scoring {classifier.name}", left, quiet=settings.quiet) as progress,
        PartWriter(run) as writer,
        Decoder(classifier.preprocessing, workers=settings.workers, batch_size=size) as decoder,
    ):
        for part in score_chunks(
            plan(images, size, done=done),
            decoder,
            forward,
            skip_errors=settings.skip_errors,
            transform=transform,
            advance=progress.advance,
        ):
            writer.write(part)
            summary.add(part)
    return summary


class Runs(Protocol):
    """What `score_chunks` needs of a `Forward`."""

    @property
    def ahead(self) -> int:
        """Batches that may be on their way while the next is handed over."""

    def start(self, pixels: Pixels, image_ids: npt.NDArray[np.object_]) -> Callable[[], Ranked]:
        """Hand a batch over; the result waits for its answer."""


def score_chunks(
    chunks: Iterable[Chunk],
    decoder: Decoder,
    forward: Runs,
    *,
    skip_errors: bool = False,
    transform: Callable[[Pixels], Pixels] | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Iterator[Part]:
    """Decode and classify the images of parts, in order.

    Args:
        chunks: The images of each part; asked for ahead, in another thread.
        decoder: Open, and for the preprocessing of the classifier.
        forward: The classifier.
        skip_errors: Report unreadable images in the part instead of raising.
        transform: As for `predict`.
        advance: Called with the number of images that are done.

    Raises:
        BeyondError: As `predict`.
    """
    owners: deque[PartInTheMaking] = deque()
    flights: deque[tuple[PartInTheMaking, DecodedBatch, Callable[[], Ranked] | None]] = deque()

    def batches() -> Iterator[Sequence[Handle]]:
        for chunk in chunks:
            part = PartInTheMaking(chunk)
            for start in range(0, len(chunk), decoder.batch_size):
                owners.append(part)
                yield chunk.handles[start : start + decoder.batch_size]

    def land() -> Iterator[Part]:
        part, batch, answer = flights.popleft()
        part.add(batch, answer() if answer else None)
        advance(len(batch) + len(batch.failures))
        if part.complete:
            yield part.finished()

    for batch in decoder.batches(batches()):
        if batch.failures and not skip_errors:
            raise BeyondError(batch.failures[0].message)
        if transform is not None and len(batch):
            batch = replace(batch, pixels=transform(batch.pixels))
        answer = forward.start(batch.pixels, batch.image_ids) if len(batch) else None
        # What waits for its answer needs its pixels no more.
        told = replace(batch, pixels=np.empty((len(batch), 0, 0, 3), dtype=np.uint8))
        flights.append((owners.popleft(), told, answer))
        while len(flights) > forward.ahead:
            yield from land()
    while flights:
        yield from land()


class Forward:
    """A classifier on a device: pixels in, ranked classes out, halving the batch when memory runs out."""

    def __init__(
        self,
        classifier: Classifier,
        settings: Settings,
        warn: Callable[[str], None],
        *,
        transfer: Transfer | None = None,
    ) -> None:
        """Put the classifier on the device.

        Args:
            classifier: What to run.
            settings: How.
            warn: Called with one line when memory runs out and the batch is halved.
            transfer: How batches get to the device; None takes what suits it.
        """
        self.device = settings.device
        self.top_k = settings.top_k
        self.limit = settings.batch_size
        if self.device.type == "cpu":
            keep_freed_memory()
            # Larger batches leave the caches: measured a fifth slower at 64 than at 16.
            self.limit = min(self.limit, max(CPU_IMAGES, 4 * torch.get_num_threads()))
        self.warn = warn
        self.name = classifier.name
        self._precision = settings.precision
        # Pixels arrive as (N, H, W, 3); read as channels-last they need no copy, and convolutions are faster.
        self.module = classifier.module.eval().to(self.device).to(memory_format=torch.channels_last)
        self._compiled = settings.compile
        self._network: Callable[[torch.Tensor], Any] = (
            torch.compile(self.module) if settings.compile else self.module
        )
        self._transfer = transfer or (
            PinnedTransfer(self.device) if self.device.type == "cuda" else DirectTransfer(self.device)
        )
        self.ahead = self._transfer.ahead

    def __call__(self, pixels: Pixels, image_ids: npt.NDArray[np.object_]) -> Ranked:
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
        return self.start(pixels, image_ids)()

    def start(self, pixels: Pixels, image_ids: npt.NDArray[np.object_]) -> Callable[[], Ranked]:
        """Hand a batch to the device; what is returned waits for the answer, which is as of `__call__`."""
        pieces: list[Callable[[], Ranked]] = []
        start = 0
        while start < len(pixels):
            piece = slice(start, start + self.limit)
            try:
                pieces.append(self._launch(pixels[piece], image_ids[piece]))
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

        def answer() -> Ranked:
            answers = [piece() for piece in pieces]
            classes, logits, logsumexp = (np.concatenate(columns) for columns in zip(*answers))
            return classes, logits, logsumexp

        return answer

    @torch.inference_mode()
    def _launch(self, pixels: Pixels, image_ids: npt.NDArray[np.object_]) -> Callable[[], Ranked]:
        x = self._transfer.to_device(pixels).permute(0, 3, 1, 2)
        logits = self._run(x.to(torch.float32).div_(255))
        if isinstance(logits, torch.Tensor) and self._compiled:
            logits = logits[: len(pixels)]
        if not isinstance(logits, torch.Tensor) or logits.shape != (len(pixels), NUM_CLASSES):
            shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise BeyondError(
                f"{self.name} returns {shape} instead of ({len(pixels)}, {NUM_CLASSES}); see: beyond validate"
            )
        logits = logits.float()
        ranked, classes = torch.sort(logits, dim=1, descending=True, stable=True)
        fetch = self._transfer.to_host(
            (
                classes[:, : self.top_k].to(torch.int16),
                ranked[:, : self.top_k],
                torch.logsumexp(logits, dim=1),
                torch.isfinite(logits).all(dim=1),
            )
        )

        def answer() -> Ranked:
            best, values, logsumexp, finite = fetch()
            if not finite.all():
                raise BeyondError(
                    f"{self.name} gives NaN or infinite logits on image "
                    f"{image_ids[int(np.argmin(finite))]!r}; see: beyond validate"
                )
            return best, values, logsumexp

        return answer

    def _run(self, x: torch.Tensor) -> Any:
        with self._autocast():
            if not self._compiled:
                return self._network(x)
            # One shape, or the last batch would be compiled anew.
            if len(x) < self.limit:
                x = torch.cat([x, x.new_zeros((self.limit - len(x), *x.shape[1:]))])
            try:
                return self._network(x.contiguous(memory_format=torch.channels_last))
            except Exception as error:  # compilers fail in many ways
                if is_out_of_memory(error):
                    raise
                reason = one_line(error, 160)
                raise BeyondError(
                    f"torch.compile fails on {self.name} ({reason}); leave --compile out"
                ) from error

    def _autocast(self) -> AbstractContextManager[object]:
        if self._precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


class Transfer(Protocol):
    """How batches get to the device and answers back."""

    ahead: int
    """Batches that may be on their way while the next is handed over."""

    def to_device(self, pixels: Pixels) -> torch.Tensor:
        """The pixels on the device, as they are: uint8 (N, H, W, 3)."""

    def to_host(self, tensors: Sequence[torch.Tensor]) -> Callable[[], list[npt.NDArray[Any]]]:
        """Begin to fetch tensors; what is returned waits until they are here."""


class DirectTransfer:
    """Copies at once: on the CPU there is nothing to copy."""

    ahead = 0

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def to_device(self, pixels: Pixels) -> torch.Tensor:
        """See `Transfer`."""
        return torch.from_numpy(pixels).to(self._device)

    def to_host(self, tensors: Sequence[torch.Tensor]) -> Callable[[], list[npt.NDArray[Any]]]:
        """See `Transfer`."""
        arrays = [tensor.cpu().numpy() for tensor in tensors]
        return lambda: arrays


class PinnedTransfer:
    """Copies from and to page-locked memory beside the computation, so that the device never waits.

    One batch is computed while the next is copied; its answer is waited for only when the one after it is on
    its way. Pixels travel as uint8, a quarter of what floats take.
    """

    ahead = 1

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def to_device(self, pixels: Pixels) -> torch.Tensor:
        """See `Transfer`."""
        host = torch.from_numpy(pixels).pin_memory()
        with torch.cuda.stream(self._stream):
            there = host.to(self._device, non_blocking=True)
        now = torch.cuda.current_stream(self._device)
        now.wait_stream(self._stream)
        there.record_stream(now)  # the allocator must not give it away while the network reads it
        return there

    def to_host(self, tensors: Sequence[torch.Tensor]) -> Callable[[], list[npt.NDArray[Any]]]:
        """See `Transfer`."""
        here = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
        for target, source in zip(here, tensors):
            target.copy_(source, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record(torch.cuda.current_stream(self._device))

        def fetch() -> list[npt.NDArray[Any]]:
            copied.synchronize()
            return [tensor.numpy() for tensor in here]

        return fetch
