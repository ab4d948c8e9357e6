"""Running out of memory, on a device or on the machine, and keeping what was freed."""

from __future__ import annotations

import ctypes
import functools
import sys

import torch

_WORDS = ("out of memory", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory, of the device or of the machine, ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _WORDS)


@functools.cache
def keep_freed_memory() -> bool:
    """Let this process use the memory of large tensors again, where the C library would give it back.

    Activations of a batch are larger than what glibc keeps (32 MiB), so each would be fetched from the system
    anew, page by page: two fifths of the CPU time of EfficientNet-Lite0. The peak rises by
    110 to 170 MiB, whatever the number of images.

    Returns:
        Whether there was something to do: only glibc's allocator is known to need it.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    trim_threshold, mmap_threshold = -1, -3  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
    return bool(mallopt(mmap_threshold, 1 << 30)) and bool(mallopt(trim_threshold, (1 << 31) - 1))
