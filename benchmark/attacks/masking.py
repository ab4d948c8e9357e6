"""Checks for models on which gradient attacks say little (masked gradients)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from annotations.errors import BeyondError
from benchmark.attacks.execution import Net, NoGradientError
from benchmark.attacks.goals import cross_entropy

Kind = Literal[
    "randomised",
    "mutates_input",
    "no_gradient",
    "zero_gradient",
    "nan_logits",
    "black_box_stronger",
    "training",
]


@dataclass(frozen=True)
class Finding:
    """One reason to read robust accuracy with care.

    Attributes:
        kind: What was found.
        message: One line for people: what it is and what it means for the result.
        images: How many images it was seen on.
    """

    kind: Kind
    message: str
    images: int


def inspect(net: Net, x: torch.Tensor, inside: torch.Tensor) -> list[Finding]:
    """Look at a model before it is attacked, as AutoAttack's flags do, on a few images.

    Sets `net.protect` where the model writes into its input.

    Args:
        net: The model.
        x: A few images (B, C, H, W) in [0, 1].
        inside: The classes to leave, bool (B, K).

    Returns:
        What was found, in the order in which it was looked for.

    Raises:
        BeyondError: The model does not return logits (B, K).
    """
    findings = []
    count = len(x)
    if isinstance(net.reference, nn.Module) and any(
        part.training for part in net.reference.modules() if not any(part.children())
    ):
        findings.append(
            Finding(
                "training",
                "the model is in training mode: call eval() first, or results change by batch",
                count,
            )
        )
    net.protect = False
    given = x.clone()
    first = net.predict(given)
    changed = int((given != x).flatten(1).any(1).sum())
    if changed:
        net.protect = True
        findings.append(
            Finding(
                "mutates_input", "the model writes into its input: every call now gets its own copy", changed
            )
        )
    if first.dim() != 2 or len(first) != count:
        raise BeyondError(
            f"the model returned shape {tuple(first.shape)} for {count} images: "
            "it must return logits (images, classes)"
        )
    second = net.predict(x)
    bad = ~(first.isfinite().all(1) & second.isfinite().all(1))
    if bool(bad.any()):
        message = (
            "the model returns NaN or infinite logits on clean images: these count as failed, not as robust"
        )
        findings.append(Finding("nan_logits", message, int(bad.sum())))
    scale = first[~bad].abs().amax() if bool((~bad).any()) else first.new_ones(())
    differs = ((first - second).abs().amax(1) > 1e-4 * scale.clamp_min(1e-6)) & ~bad
    if bool(differs.any()):
        message = (
            "two forward passes on one image differ: the model is random, and attacks that do not average "
            "over it overstate robustness"
        )
        findings.append(Finding("randomised", message, int(differs.sum())))
    try:
        _, _, gradient = net.gradient(x, lambda z, r: cross_entropy(z, inside[r]))
    except NoGradientError:
        message = (
            "the model gives no gradient: only black-box attacks were run, so robust accuracy is overstated"
        )
        findings.append(Finding("no_gradient", message, count))
    else:
        flat = int((~gradient.flatten(1).any(1)).sum())
        if flat:
            findings.append(zero_gradient(flat))
    return findings


def zero_gradient(images: int) -> Finding:
    """Gradients that are exactly zero tell an attack nothing."""
    message = f"the gradient was exactly zero on {images} images: gradient attacks say little about them"
    return Finding("zero_gradient", message, images)


def nan_under_attack(images: int) -> Finding:
    """Logits that are not finite at points an attack visited."""
    message = (
        f"the model returned NaN or infinite logits under attack on {images} images: a point without "
        "finite logits never counts as broken; an image with no other break counts as failed, not as robust"
    )
    return Finding("nan_logits", message, images)


def black_box_stronger(images: int) -> Finding:
    """Square broke what attacks with gradients did not."""
    message = (
        f"Square broke {images} images that attacks with gradients had left: gradients are likely masked, "
        "and robust accuracy is likely overstated"
    )
    return Finding("black_box_stronger", message, images)
