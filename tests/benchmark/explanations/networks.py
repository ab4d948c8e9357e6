"""Networks for the tests: small, or of the families that must be explained, with random weights."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import nn

from benchmark.classifier import Classifier
from benchmark.models.assemble import Layers, assemble
from benchmark.models.from_timm import layers_of
from benchmark.preprocessing import Preprocessing


class LinearNet(nn.Module):
    """Means over `cells` × `cells` windows of each colour, as a grid, then a linear layer on the grid's
    means.

    Its Grad-CAM has a closed form: relu of the sum over colours of weight times window mean, over cells².
    """

    def __init__(self, cells: int = 4) -> None:
        super().__init__()
        self.grid = nn.AdaptiveAvgPool2d(cells)
        self.head = nn.Linear(3, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.grid(x).mean(dim=(2, 3)))
        return result


def plain_cnn(*, inplace: bool = True) -> nn.Sequential:
    """A small network that no library knows; its activations work in place, as is common."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace),
        nn.Conv2d(8, 12, 3, stride=2, padding=1),
        nn.ReLU(inplace),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(48, 1000),
    )


def classifier_of(network: nn.Module, size: int = 32, **layers: Any) -> Classifier:
    """A network as a classifier, with random parameters from a fixed seed; `layers` as in `Layers`."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                fan_in = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    return assemble(
        network,
        Preprocessing(input_size=(size, size), resize=None),
        spec="test",
        name="test",
        source={},
        layers=Layers(**layers),
    )


def timm_classifier(name: str, *, declared: bool = True, **arguments: Any) -> Classifier:
    """A network of timm with random weights, at 224 × 224 unless `img_size` says otherwise."""
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=1000, **arguments)
    size = arguments.get("img_size", 224)
    return assemble(
        network,
        Preprocessing(input_size=(size, size)),
        spec=name,
        name=name,
        source={},
        layers=layers_of(network) if declared else None,
    )


def images(n: int, size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Smooth random images (N, 3, size, size) in [0, 1]: coarse noise, scaled up."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 6, 6, generator=generator, dtype=dtype)
    return nn.functional.interpolate(coarse, (size, size), mode="bilinear").clamp(0, 1)
