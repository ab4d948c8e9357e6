"""Randomness that depends on the image, the attack and the run alone.

Every random number is a function of a 64-bit key and a counter, so an attack draws the same numbers whatever
the batch size, the order of the images, the shard, the worker or the device, and keeps no generator state.
"""

from __future__ import annotations

import hashlib
import math

import torch


def _signed(value: int) -> int:
    """The two's complement int64 of an unsigned 64-bit constant."""
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def image_key(image_id: str, attack: str, unit: int, seed: int) -> int:
    """The 64-bit key (signed) of one run of one attack on one image.

    Args:
        image_id: Id of the image.
        attack: Name of the attack.
        unit: Number of the run: which restart or target.
        seed: Seed of the evaluation.
    """
    digest = hashlib.sha256(f"{image_id}|{attack}|{unit}|{seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _shift(value: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift of int64 (torch shifts arithmetically)."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix(value: torch.Tensor) -> torch.Tensor:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014); int64 arithmetic wraps modulo 2^64."""
    value = (value ^ _shift(value, 30)) * _MIX_1
    value = (value ^ _shift(value, 27)) * _MIX_2
    return value ^ _shift(value, 31)


def uniform(keys: torch.Tensor, counter: torch.Tensor, count: int) -> torch.Tensor:
    """Uniform numbers in [0, 1).

    Args:
        keys: int64 (B,), one key a row.
        counter: int64 (B,), which draw of the row this is.
        count: How many numbers a row.

    Returns:
        float64 (B, count). A row depends on its own key and counter alone.
    """
    stream = _mix(keys + _mix((counter + 1) * _GOLDEN))
    steps = torch.arange(1, count + 1, dtype=torch.int64, device=keys.device) * _GOLDEN
    return _shift(_mix(stream[:, None] + steps), 11).to(torch.float64) * 2.0**-53


def normal(keys: torch.Tensor, counter: torch.Tensor, count: int) -> torch.Tensor:
    """Standard normal numbers, float64 (B, count), by the Box-Muller transform of `uniform`."""
    half = (count + 1) // 2
    u = uniform(keys, counter, 2 * half)
    radius = (-2 * torch.log1p(-u[:, :half])).sqrt()
    angle = 2 * math.pi * u[:, half:]
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count]
