"""The batch size that nobody chose: on a GPU it grows until memory or throughput says stop."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from benchmark.engine import Forward
from benchmark.memory import is_out_of_memory

DEFAULT = 64
"""On the CPU, where larger batches gain nothing: the cache holds no more."""

SMALLEST, LARGEST = 32, 1024
_WORTH = 1.05  # a batch of twice the size must be so much faster
_MEMORY = 0.8  # share of the device's memory that may be in use; the rest is for other images and fragments


def grow(measure: Callable[[int], float | None], *, smallest: int = SMALLEST, largest: int = LARGEST) -> int:
    """The smallest batch size beyond which doubling gains less than 5 %.

    Args:
        measure: Images a second at a batch size, or None if memory does not hold it.
        smallest: Where to begin.
        largest: Where to end.

    Returns:
        A power of two times `smallest`, or fewer if memory does not even hold that.

    Example:
        >>> grow(lambda size: 1000 * size / (size + 100))
        1024
        >>> grow(lambda size: 100.0)
        32
        >>> grow(lambda size: None if size > 128 else float(size))
        128
    """
    size = smallest
    while (best := measure(size)) is None:
        if size == 1:
            return 1  # scoring says what is wrong
        size //= 2
    while size < largest:
        faster = measure(2 * size)
        if faster is None or faster < best * _WORTH:
            return size
        size, best = 2 * size, faster
    return size


def automatic(make: Callable[[int], Forward], input_size: tuple[int, int], device: torch.device) -> int:
    """The batch size for a classifier on a device.

    Args:
        make: Puts the classifier on the device for batches of a size.
        input_size: (height, width) of its input.
        device: Where it runs.
    """
    if device.type != "cuda":
        return DEFAULT

    def fits() -> bool:
        free, total = torch.cuda.mem_get_info(device)
        return free >= (1 - _MEMORY) * total

    def finish() -> None:
        torch.cuda.synchronize(device)

    size = grow(lambda size: throughput(make(size), size, input_size, finish=finish, fits=fits))
    torch.cuda.empty_cache()
    return size


def throughput(
    forward: Forward,
    size: int,
    input_size: tuple[int, int],
    *,
    finish: Callable[[], None] = lambda: None,
    fits: Callable[[], bool] = lambda: True,
    batches: int = 4,
) -> float | None:
    """Images a second on black images, or None if memory does not hold the batch.

    Args:
        forward: The classifier, for batches of this size.
        size: Images a batch.
        input_size: (height, width).
        finish: Waits until the device has nothing left to do.
        fits: Whether enough memory is left after a batch.
        batches: Batches to time, after one to warm up.
    """
    pixels = np.zeros((size, *input_size, 3), dtype=np.uint8)
    ids = np.array(["a black image"] * size, dtype=object)
    try:
        forward(pixels, ids)
        if forward.limit < size or not fits():
            return None
        finish()
        start = time.perf_counter()
        answers = [forward.start(pixels, ids) for _ in range(batches)]
        finish()
        for answer in answers:
            answer()
        elapsed = time.perf_counter() - start
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    return None if forward.limit < size else batches * size / max(elapsed, 1e-9)
