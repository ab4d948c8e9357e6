"""Decode images ahead of the classifier, in a thread or in worker processes, in order and in bounded memory.

Workers are fresh processes ("spawn": a fork of a process with threads can hang) that import NumPy, Pillow and
`benchmark.preprocessing`, never torch. They write pixels into a shared block that has no name, so nothing is
left behind however a process ends, and talk over one pipe each, so that a worker that is killed cannot hold a
lock that others wait for.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
import types
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import numpy.typing as npt

from annotations.errors import BeyondError
from benchmark.images import Handle
from benchmark.preprocessing import Preprocessing, check_supported, decode

Pixels = npt.NDArray[np.uint8]

# A worker gets so many images at a time: small enough that the first batch comes early and all workers share
# it, large enough that messages cost nothing beside decoding.
_TASK = 16


@dataclass(frozen=True)
class Failure:
    """An image that could not be read or decoded.

    Attributes:
        position: Its place among all images given to `Decoder.batches`, from 0.
        image_id: Its id.
        message: One line: what is wrong and what to do.
    """

    position: int
    image_id: str
    message: str


@dataclass(frozen=True)
class Note:
    """An image whose colours had to be converted.

    Attributes:
        image_id: Its id.
        kind: What it was: greyscale, CMYK, palette or transparent.
    """

    image_id: str
    kind: str


@dataclass(frozen=True)
class DecodedBatch:
    """Consecutive images, decoded.

    Attributes:
        pixels: uint8 (n, H, W, 3), RGB; the caller's own, C-contiguous. n may be 0 when all images failed.
        positions: Place of each among all images given to `Decoder.batches`, from 0, ascending: int64 (n,).
        image_ids: object (n,) of str.
        failures: Images of this batch that could not be decoded, and are not in `pixels`.
        notes: Images of this batch whose colours had to be converted.
    """

    pixels: Pixels
    positions: npt.NDArray[np.int64]
    image_ids: npt.NDArray[np.object_]
    failures: tuple[Failure, ...] = ()
    notes: tuple[Note, ...] = ()

    def __len__(self) -> int:
        """Number of images decoded."""
        return len(self.pixels)


# Per image: None (decoded), or ("note" | "error", text).
_Outcome = tuple[str, str] | None


def _decode_into(pixels: Pixels, handles: Sequence[Handle], spec: Preprocessing) -> list[_Outcome]:
    """Decode into the first rows of `pixels`; a row whose image fails is left as it is."""
    outcomes: list[_Outcome] = []
    for row, handle in zip(pixels, handles):
        try:
            decoded = decode(handle.read(), spec, name=handle.where)
        except BeyondError as error:
            outcomes.append(("error", str(error)))
        except OSError as error:
            reason = error.strerror or str(error)
            outcomes.append(
                ("error", f"cannot read {handle.where}: {reason}; check the file, or use --on-error skip")
            )
        else:
            row[...] = decoded.pixels
            outcomes.append(None if decoded.note is None else ("note", decoded.note))
    return outcomes


def _batch(
    first: int, handles: Sequence[Handle], pixels: Pixels, outcomes: Sequence[_Outcome]
) -> DecodedBatch:
    """Put a batch together from the pixels, which it takes over, and the outcomes of its images."""
    failed = [i for i, outcome in enumerate(outcomes) if outcome and outcome[0] == "error"]
    good = np.ones(len(handles), dtype=bool)
    good[failed] = False
    return DecodedBatch(
        pixels[good] if failed else pixels,
        first + np.flatnonzero(good),
        np.array([handle.image_id for handle in handles], dtype=object)[good],
        tuple(Failure(first + i, handles[i].image_id, (outcomes[i] or ("", ""))[1]) for i in failed),
        tuple(Note(h.image_id, o[1]) for h, o in zip(handles, outcomes) if o and o[0] == "note"),
    )


class Decoder:
    """Decodes images ahead of whoever uses them, in order.

    Whether `workers` is 0 (a thread; Pillow decodes without the interpreter's lock) or more (processes), the
    batches are the same, bit for bit. At most `ahead` finished batches wait, and with workers a few more are
    in the making, so memory does not depend on the number of images. A context manager: leaving it, in
    whatever way, ends threads and processes.

    Example:
        >>> from benchmark.images import open_image_set
        >>> images = open_image_set("sample")
        >>> with Decoder(Preprocessing(), workers=0, batch_size=8) as decoder:
        ...     groups = (chunk.handles for chunk in images.chunks(8))
        ...     [batch.pixels.shape for batch in decoder.batches(groups)]
        [(8, 224, 224, 3), (8, 224, 224, 3), (4, 224, 224, 3)]
    """

    def __init__(self, spec: Preprocessing, *, workers: int, batch_size: int, ahead: int = 2) -> None:
        """Nothing is started before the `with` block is entered.

        Args:
            spec: What to make of each image.
            workers: Number of processes; 0 decodes in a thread of this one.
            batch_size: Images in a batch, at most.
            ahead: Finished batches that may wait for their user.

        Raises:
            BeyondError: `spec` is not supported, or a number is out of range.
        """
        check_supported(spec)
        if workers < 0 or batch_size < 1 or ahead < 1:
            raise BeyondError(
                f"cannot decode with {workers} workers in batches of {batch_size}; use at least 0 and 1"
            )
        self.spec = spec
        self.workers = workers
        self.batch_size = batch_size
        self._ahead = ahead
        self._pump: _Pump | None = None
        self._pool: _Pool | None = None

    def __enter__(self) -> Decoder:
        """Start the workers."""
        if self.workers:
            self._pool = _Pool(self.spec, self.workers, self.batch_size)
        return self

    def __exit__(self, *_: object) -> None:
        """End the workers and the thread."""
        # The workers first: whatever the thread waits for from them then fails at once.
        if self._pool is not None:
            self._pool.kill()
        if self._pump is not None:
            self._pump.close()
            self._pump = None
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def batches(self, groups: Iterable[Sequence[Handle]]) -> Iterator[DecodedBatch]:
        """Decode groups of images, each into one batch, in order.

        Images that cannot be decoded are reported in the batch they would be in, never raised.

        Args:
            groups: Each of 1 to `batch_size` handles. Consumed a few groups ahead, in another thread.

        Yields:
            One batch for each group: its images less those that failed.

        Raises:
            BeyondError: A worker was killed.
        """
        if self._pump is not None:
            raise RuntimeError("the last batches of this decoder are not used up yet")
        if self.workers and self._pool is None:
            raise RuntimeError("use the decoder in a with block")
        produce = self._pool.decode(groups) if self._pool else self._decode_here(groups)
        self._pump = pump = _Pump(produce, self._ahead)
        try:
            yield from pump
        finally:
            pump.close()
            if self._pump is pump:
                self._pump = None

    def _decode_here(self, groups: Iterable[Sequence[Handle]]) -> Generator[DecodedBatch]:
        first = 0
        for group in groups:
            _check_size(group, self.batch_size)
            pixels = np.empty((len(group), *self.spec.input_size, 3), dtype=np.uint8)
            yield _batch(first, group, pixels, _decode_into(pixels, group, self.spec))
            first += len(group)


def _check_size(group: Sequence[Handle], batch_size: int) -> None:
    if not 1 <= len(group) <= batch_size:
        raise ValueError(f"a group of {len(group)} images for batches of 1 to {batch_size}")


class _Pump:
    """Runs a generator of batches in a thread that keeps a few ready."""

    # Long enough for any image; only a source that hangs (a dead network mount) takes longer.
    _PATIENCE_S = 10.0

    def __init__(self, produce: Generator[DecodedBatch], ahead: int) -> None:
        self._ready: queue.Queue[DecodedBatch | BaseException | None] = queue.Queue(ahead)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(produce,), name="decoding", daemon=True)
        self._thread.start()

    def _run(self, produce: Generator[DecodedBatch]) -> None:
        end = None
        try:
            with contextlib.closing(produce):
                for batch in produce:
                    self._ready.put(batch)
                    if self._stopped.is_set():
                        break
        except BaseException as error:  # noqa: BLE001 - it is raised again in the thread that uses the batches
            end = error
        self._ready.put(end)

    def __iter__(self) -> Iterator[DecodedBatch]:
        while (item := self._ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def close(self) -> None:
        """End the thread; what it has made ready is dropped."""
        self._stopped.set()
        deadline = time.monotonic() + self._PATIENCE_S
        while self._thread.is_alive() and time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                self._ready.get_nowait()
            self._thread.join(0.01)


@dataclass
class _Job:
    """A batch in the making."""

    first: int
    handles: Sequence[Handle]
    slot: int
    outcomes: list[_Outcome] = field(init=False)
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = len(self.handles)
        self.outcomes = [None] * self.left


@dataclass
class _Worker:
    """A process, our end of its pipe, and the tasks (batch, first row, rows) that it has not answered."""

    process: BaseProcess
    pipe: Connection
    tasks: deque[tuple[_Job, int, int]] = field(default_factory=deque)


class _Pool:
    """Worker processes that decode into slots, one batch each, of a shared block."""

    # One task is being decoded while the next waits in the pipe.
    _TASKS_PER_WORKER = 2

    def __init__(self, spec: Preprocessing, workers: int, batch_size: int) -> None:
        tasks = workers * self._TASKS_PER_WORKER
        self._slots = min(tasks, max(2, math.ceil(tasks * _TASK / batch_size)))
        self._batch_size = batch_size
        shape = (self._slots, batch_size, *spec.input_size, 3)
        context = multiprocessing.get_context("spawn")
        block = context.RawArray(ctypes.c_uint8, math.prod(shape))
        self._pixels = _as_pixels(block, shape)
        self._workers: list[_Worker] = []
        try:
            with _interrupts_blocked(), _main_module_hidden():
                for number in range(workers):
                    ours, theirs = context.Pipe()
                    process = context.Process(
                        target=_work,
                        args=(theirs, block, shape, spec),
                        name=f"decoding-{number}",
                        daemon=True,
                    )
                    process.start()
                    # With our copy of its end closed, a worker's death is the end of the pipe.
                    theirs.close()
                    self._workers.append(_Worker(process, ours))
        except BaseException:
            self.kill()
            self.close()
            raise

    def decode(self, groups: Iterable[Sequence[Handle]]) -> Generator[DecodedBatch]:
        """Decode in order; whatever happens, the workers are idle afterwards."""
        source = iter(groups)
        free = deque(range(self._slots))
        jobs: deque[_Job] = deque()
        tasks: deque[tuple[_Job, int, int]] = deque()
        first, more = 0, True
        try:
            while True:
                while more and free:
                    group = next(source, None)
                    if group is None:
                        more = False
                        break
                    _check_size(group, self._batch_size)
                    job = _Job(first, group, free.popleft())
                    first += len(group)
                    jobs.append(job)
                    starts = range(0, len(group), _TASK)
                    tasks.extend((job, start, min(_TASK, len(group) - start)) for start in starts)
                    self._assign(tasks)
                if not jobs:
                    return
                while jobs[0].left:
                    self._receive()
                    self._assign(tasks)
                job = jobs.popleft()
                pixels = self._pixels[job.slot, : len(job.handles)].copy()
                free.append(job.slot)
                yield _batch(job.first, job.handles, pixels, job.outcomes)
        finally:
            with contextlib.suppress(BeyondError):
                while any(worker.tasks for worker in self._workers):
                    self._receive()

    def _assign(self, tasks: deque[tuple[_Job, int, int]]) -> None:
        while tasks:
            worker = min(self._workers, key=lambda worker: len(worker.tasks))
            if len(worker.tasks) >= self._TASKS_PER_WORKER:
                return
            job, start, count = tasks.popleft()
            try:
                worker.pipe.send((job.slot, start, job.handles[start : start + count]))
            except ConnectionError as error:
                raise _death(worker) from error
            worker.tasks.append((job, start, count))

    def _receive(self) -> None:
        busy = {worker.pipe: worker for worker in self._workers if worker.tasks}
        for pipe in wait(list(busy)):
            worker = busy[pipe]  # type: ignore[index]
            job, start, count = worker.tasks.popleft()
            try:
                reply = worker.pipe.recv()
            except (EOFError, ConnectionError) as error:
                worker.tasks.clear()
                raise _death(worker) from error
            if isinstance(reply, str):
                raise BeyondError(
                    f"a decoding worker failed ({' '.join(reply.split())[:200]}); if memory ran out, "
                    "use fewer workers, and run the same command again"
                )
            job.outcomes[start : start + count] = reply
            job.left -= count

    def kill(self) -> None:
        """End the workers at once; they hold nothing that needs tidying up."""
        for worker in self._workers:
            worker.process.kill()

    def close(self) -> None:
        """Wait for the killed workers and close their pipes."""
        for worker in self._workers:
            worker.process.join()
            worker.process.close()
            worker.pipe.close()
        self._workers.clear()


def _death(worker: _Worker) -> BeyondError:
    worker.process.join(5)
    code = worker.process.exitcode
    if code is not None and code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
    else:
        how = f"stopped with exit status {code} (its message is above)"
    return BeyondError(
        f"a decoding worker {how}; if memory ran out, use fewer workers, and run the same command again"
    )


def _as_pixels(block: Any, shape: tuple[int, ...]) -> Pixels:
    """A view of the shared block, which lives as long as the view."""
    return np.frombuffer(memoryview(block), dtype=np.uint8).reshape(shape)


def _work(pipe: Connection, block: Any, shape: tuple[int, ...], spec: Preprocessing) -> None:
    """What a worker does until its parent is gone."""
    # Ctrl-C goes to all processes of a terminal; the parent decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pixels = _as_pixels(block, shape)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            slot, start, handles = pipe.recv()
            try:
                reply: list[_Outcome] | str = _decode_into(
                    pixels[slot, start : start + len(handles)], handles, spec
                )
            except Exception as error:  # noqa: BLE001 - the parent tells it in a line
                reply = f"{type(error).__name__}: {error}".strip(": ")
            pipe.send(reply)


@contextlib.contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Keep spawned processes from importing the script that runs: it may import torch, or start decoding."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Start processes with Ctrl-C blocked, so that it cannot hit them before they ignore it."""
    if os.name != "posix":
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # it unblocks the signal when it starts, so it has to run before
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
