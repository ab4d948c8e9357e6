"""What an attack tries to reach, as losses over a set of classes to leave.

An image's goal is a boolean mask (K,): the classes its prediction must leave. The `original` objective has
one class in the set, the original label; `rectified` has every class that people accept or are unsure of. For
a set of one class each loss equals its published form. All losses rise towards success.
"""

from __future__ import annotations

from typing import Literal

import torch

Objective = Literal["original", "rectified"]

_NONE = -torch.inf


def best_inside(logits: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """The highest logit (B,) of the classes to leave."""
    return logits.masked_fill(~inside, _NONE).amax(1)


def best_outside(logits: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """The highest logit (B,) of the other classes."""
    return logits.masked_fill(inside, _NONE).amax(1)


def has_left(logits: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Whether the prediction lies outside the set, (B,). Logits that are not all finite never count."""
    predicted = logits.argmax(1, keepdim=True)
    return ~inside.gather(1, predicted)[:, 0] & logits.isfinite().all(1)


def margin(logits: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Best logit outside minus best logit inside, (B,); positive means success."""
    return best_outside(logits, inside) - best_inside(logits, inside)


def cross_entropy(logits: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Minus the log of the probability of the whole set, (B,).

    For one class this is the cross-entropy.

    >>> import torch
    >>> z = torch.tensor([[1.0, 2.0, 3.0]])
    >>> inside = torch.tensor([[True, False, False]])
    >>> torch.allclose(cross_entropy(z, inside), torch.nn.functional.cross_entropy(z, torch.tensor([0])))
    True
    """
    return logits.logsumexp(1) - logits.masked_fill(~inside, _NONE).logsumexp(1)


def _ranked(logits: torch.Tensor, inside: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` highest logits, descending, once the set is merged into one class of its best logit.

    Where fewer than `count` are left, the lowest stands for the missing ones.
    """
    outside = logits.masked_fill(inside, _NONE).topk(min(count, logits.shape[1]), dim=1).values
    merged = torch.cat([best_inside(logits, inside)[:, None], outside], dim=1)
    ranked = merged.sort(dim=1, descending=True).values[:, :count]
    lowest = ranked.masked_fill(ranked.isneginf(), torch.inf).amin(1, keepdim=True)
    return torch.where(ranked.isneginf(), lowest, ranked)


def dlr(logits: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Difference of logits ratio (Croce and Hein 2020, "Reliable evaluation ...", eq. 6), for sets, (B,).

    The margin over z_π1 - z_π3, where the set counts as one class with its best logit, so that the loss stays
    free of shift and scale.
    """
    ranked = _ranked(logits, inside, 3)
    return margin(logits, inside) / (ranked[:, 0] - ranked[:, -1] + 1e-12)


def dlr_targeted(logits: torch.Tensor, inside: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Targeted difference of logits ratio (same paper, eq. 7), for sets, (B,).

    (z_target - best inside) over z_π1 - (z_π3 + z_π4) / 2, with the set merged into one class.

    Args:
        logits: (B, K).
        inside: bool (B, K).
        target: int64 (B,), a class outside the set.
    """
    ranked = _ranked(logits, inside, 4)
    gap = logits.gather(1, target[:, None])[:, 0] - best_inside(logits, inside)
    return gap / (ranked[:, 0] - (ranked[:, -2] + ranked[:, -1]) / 2 + 1e-12)


def targets(logits: torch.Tensor, inside: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` likeliest classes outside the set, int64 (B, count), best first.

    Where fewer classes are outside, the list starts again from its first.
    """
    outside = logits.masked_fill(inside, _NONE)
    order = outside.argsort(dim=1, descending=True, stable=True)
    available = (~inside).sum(1).clamp_min(1)
    ranks = torch.arange(count, device=logits.device)[None, :] % available[:, None]
    return order.gather(1, ranks)
