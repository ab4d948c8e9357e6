"""Devices: which one a name stands for, what to call it, and how many decoding processes feed it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from annotations.errors import BeyondError

if TYPE_CHECKING:
    import torch


def choose_device(name: str) -> torch.device:
    """The torch device a name stands for; `auto` takes a GPU where there is one.

    Raises:
        BeyondError: There is no such device here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise BeyondError(f"device {name!r} is not available here; use --device auto, or cpu") from None
    return device


def device_name(device: torch.device) -> str:
    """What to call a device in a record: the card's name for CUDA, else its type."""
    import torch

    return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else str(device)


def default_workers(device: torch.device, *, cores: float | None = None) -> int:
    """Decoding processes when nobody says: none beside a model on the CPU, which has use for every core.

    There a thread decodes ahead. A GPU is fed by all cores but one, up to eight.

    Args:
        device: Where the model runs.
        cores: Cores that may be used; None is all of this process.
    """
    if device.type == "cpu":
        return 0
    return max(1, min(8, int(own_cores() if cores is None else cores) - 1))


def own_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
