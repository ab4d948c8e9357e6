"""Norms, projections and directions for batches of images in [0, 1]."""

from __future__ import annotations

import math
import sys
from typing import Literal

import torch

from benchmark.attacks.seeds import normal, uniform

Norm = Literal["linf", "l2"]

_CACHED = 1 << 18  # values, about a megabyte
_TINY = 1e-30  # keeps a division by a zero gradient finite; the step is then zero


def per_row(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Values (B,) shaped to broadcast over `like` (B, ...)."""
    return values.view(-1, *[1] * (like.dim() - 1))


def norm_of(delta: torch.Tensor, norm: Norm) -> torch.Tensor:
    """Norm of each row of (B, ...), as (B,)."""
    if norm == "linf":
        return delta.abs().flatten(1).amax(1)
    length: torch.Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1)
    return length


def project(x: torch.Tensor, x0: torch.Tensor, radius: float | torch.Tensor, norm: Norm) -> torch.Tensor:
    """Move `x` into the ball of `radius` around `x0`, then into [0, 1].

    Clipping moves every coordinate towards `x0`, which lies in [0, 1], so the result is in both. For L∞ it is
    the nearest such point; for L2 the ball comes first, as in the papers.

    Args:
        x: (B, C, H, W).
        x0: (B, C, H, W) in [0, 1].
        radius: A number, or one a row (B,).
        norm: Norm of the ball.
    """
    r = per_row(radius, x) if isinstance(radius, torch.Tensor) else radius
    if norm == "linf":
        low, high = x0 - r, x0 + r
        return torch.clamp(x, low, high, out=low).clamp_(0, 1)
    delta = x - x0
    length = per_row(norm_of(delta, "l2"), x)
    return (x0 + delta * (r / length.clamp_min(_TINY)).clamp(max=1)).clamp_(0, 1)


def steepest(gradient: torch.Tensor, norm: Norm) -> torch.Tensor:
    """The direction of steepest ascent with norm 1: the sign for L∞, the normalised gradient for L2."""
    if norm == "linf":
        return gradient.sign()
    return gradient / per_row(norm_of(gradient, "l2"), gradient).clamp_min(_TINY)


def random_start(x0: torch.Tensor, keys: torch.Tensor, radius: float, norm: Norm) -> torch.Tensor:
    """A point at distance `radius` of `x0` in a random direction, clipped to [0, 1].

    The direction is uniform over the cube for L∞ and over the sphere for L2.

    Args:
        x0: (B, C, H, W) in [0, 1].
        keys: int64 (B,), see `benchmark.attacks.seeds.image_key`.
        radius: Distance.
        norm: Norm of the distance.
    """
    count = x0[0].numel()
    zero = torch.zeros_like(keys)
    flat = 2 * uniform(keys, zero, count) - 1 if norm == "linf" else normal(keys, zero, count)
    direction = flat.to(x0.dtype).view(x0.shape)
    direction = direction / per_row(norm_of(direction, norm), direction)
    return (x0 + radius * direction).clamp_(0, 1)


def to_hyperplane(x: torch.Tensor, w: torch.Tensor, offset: torch.Tensor, norm: Norm) -> torch.Tensor:
    """The smallest step from `x` to a hyperplane that stays in [0, 1].

    Solves min ‖d‖ subject to <w, d> + offset = 0 and 0 <= x + d <= 1 (Croce and Hein 2020, "Minimally
    distorted adversarial examples with a fast adaptive boundary attack", eq. 4). Each coordinate moves
    against the sign of the offset by min(t·m, cap), where m is 1 for L∞ and |w| for L2, and cap is the room
    up to the box. What the step gains is a concave, piecewise linear function of t, so Newton's method
    started at the unclipped solution rises monotonically to the root and ends after finitely many linear
    passes; no sort is needed.

    Args:
        x: (B, C, H, W) in [0, 1].
        w: Normal of each hyperplane, (B, C, H, W).
        offset: Signed value of the linear function at `x`, (B,).
        norm: Norm to minimise.

    Returns:
        Steps d (B, C, H, W). Where the box does not meet the hyperplane, the step to the box's nearest
        corner.
    """
    flat, normals = x.flatten(1), w.flatten(1)
    size = cached_rows(x)
    # How a row is computed depends on its size alone, never on how many rows there are.
    find = _one_to_hyperplane if size == 1 and norm == "linf" else _to_hyperplane
    if len(flat) <= size:
        return find(flat, normals, offset, norm).view(x.shape)
    steps = torch.empty_like(flat)
    for start in range(0, len(flat), size):
        part = slice(start, start + size)
        steps[part] = find(flat[part], normals[part], offset[part], norm)
    return steps.view(x.shape)


def cached_rows(x: torch.Tensor) -> int:
    """Rows of (B, ...) to compute at a time: on a CPU a few stay in the cache, which is several times faster.

    The number depends on the size of a row and the device alone.
    """
    each = x[:1].numel()
    return max(1, _CACHED // max(each, 1)) if x.device.type == "cpu" else sys.maxsize


def _one_to_hyperplane(x: torch.Tensor, w: torch.Tensor, offset: torch.Tensor, norm: Norm) -> torch.Tensor:
    """`to_hyperplane` for L∞ on one large flat row, (1, D).

    Few coordinates are so near the box that it stops them, so Newton's method runs on those and the sum of
    the others.
    """
    weight = w.abs()
    total, need = float(weight.sum()), abs(float(offset))
    if need == 0 or not math.isfinite(need) or not _TINY < total < math.inf:
        return _to_hyperplane(x, w, offset, norm)
    direction = w.sign().mul_(-offset.sign()[:, None])
    cap = (x - (direction > 0).to(x.dtype)).abs_()  # 1 - x where it rises, else x
    start = t = need / total
    limit = 2 * start
    while True:
        near = (cap < limit).nonzero()[:, 1]
        caps, weights = cap[0, near].double(), weight[0, near].double()
        rest = total - float(weights.sum())
        settled = False
        for _ in range(60):
            free = caps > t
            rate = rest + float(weights[free].sum())
            if rate < 1e-3 * total:
                # Nearly all is stopped, and what is left drowns in the rounding of the total.
                return _to_hyperplane(x, w, offset, norm)
            gained = t * rest + float(weights @ caps.clamp_max(t))
            step = (need - gained) / rate
            settled = step <= t * 1e-6
            if settled or t + step >= limit:
                break
            t += step
        if settled or t + step < limit:
            break
        limit = max(4 * limit, 2 * (t + step))
    return direction.mul_(cap.clamp_max_(t))


def _to_hyperplane(x: torch.Tensor, w: torch.Tensor, offset: torch.Tensor, norm: Norm) -> torch.Tensor:
    """`to_hyperplane` on flat rows, (B, D)."""
    direction = w.sign().mul_(-offset.sign()[:, None])
    weight = w.abs()
    cap = torch.where(direction > 0, 1 - x, x)
    move = None if norm == "linf" else weight  # None for 1 everywhere
    slope = weight if move is None else weight * move
    need = offset.abs()
    t = need / slope.sum(1).clamp_min(_TINY)

    def taken() -> torch.Tensor:
        return torch.minimum(cap, t[:, None] if move is None else t[:, None] * move)

    # Rows that have arrived are frozen, so a row's answer does not depend on its neighbours in the batch.
    active = t > 0
    size = taken()
    for _ in range(60):
        free = (size < cap).to(x.dtype)
        gained, rate = _dot(weight, size), _dot(slope, free)
        step = (need - gained) / rate.clamp_min(_TINY)
        active = active & (rate > 0) & (step > t * 1e-6)
        if not bool(active.any()):
            break
        t = torch.where(active, t + step, t)
        size = taken()
    # Where the gain stays short the whole box is not enough: use all of it.
    short = _dot(weight, size) < need * (1 - 1e-3)
    if bool(short.any()):
        size = torch.where(short[:, None], cap, size)
    return direction.mul_(size)


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Dot products of rows, (B,)."""
    return torch.bmm(a[:, None, :], b[:, :, None])[:, 0, 0]
