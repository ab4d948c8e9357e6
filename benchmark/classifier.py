"""The contract every classifier meets, whatever it was loaded from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from benchmark.preprocessing import Preprocessing


class Normalized(nn.Module):
    """A network with its input normalisation inside, so that gradients are with respect to [0, 1] pixels.

    Input: float (N, 3, H, W), RGB in [0, 1]. Output: whatever `network` returns.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, network: nn.Module, mean: tuple[float, float, float], std: tuple[float, float, float]
    ) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise and classify."""
        logits: torch.Tensor = self.network((x - self.mean) / self.std)
        return logits


@dataclass(frozen=True)
class Classifier:
    """A model behind one contract.

    Attributes:
        spec: The spec string it was loaded from, e.g. `timm:resnet50.a1_in1k`.
        name: A short name for tables and file names.
        module: In eval mode, on the CPU in float32 when loaded. Input: float (N, 3, H, W) in [0, 1], RGB;
            output: logits (N, 1000) in the class order of ILSVRC2012. Normalisation is inside.
        preprocessing: What turns an image file into that input.
        weights_sha256: SHA-256 over the parameters and buffers (see `benchmark.models.fingerprint`).
        source: Facts that pin where the weights came from: library versions, repository, revision, file.
        feature_layer: Dotted name, inside `module`, of the layer whose input is the penultimate features.
        explanation_layer: Dotted name, inside `module`, of the layer that Grad-CAM reads.
        layout: How `explanation_layer` lays out its output: `nchw`, `nhwc` or `tokens`.
        prefix_tokens: Number of class and register tokens before the patch tokens, when `layout` is `tokens`.
        licence: Licence of the weights, as their source states it, or empty.
    """

    spec: str
    name: str
    module: nn.Module
    preprocessing: Preprocessing
    weights_sha256: str
    source: Mapping[str, str] = field(default_factory=dict)
    feature_layer: str | None = None
    explanation_layer: str | None = None
    layout: Literal["nchw", "nhwc", "tokens"] | None = None
    prefix_tokens: int = 0
    licence: str = ""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, 1000) of images (N, 3, H, W) in [0, 1]."""
        logits: torch.Tensor = self.module(x)
        return logits

    def describe(self) -> dict[str, Any]:
        """What a run records about the model, as JSON-ready values."""
        return {
            "spec": self.spec,
            "name": self.name,
            "weights_sha256": self.weights_sha256,
            "parameters": sum(p.numel() for p in self.module.parameters()),
            "preprocessing": asdict(self.preprocessing),
            "source": dict(self.source),
            "licence": self.licence,
        }
