"""The two small adversarially trained networks of the shared data, and planted ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from benchmark.attacks import Example

MNIST, CIFAR = "mnist", "cifar"


class Shifted(nn.Module):
    """A network behind the normalisation of the CIFAR images."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2023, 0.1994, 0.2010]).view(3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network((x - self.mean) / self.std)
        return logits


def robust_small(folder: Path, name: str, count: int = 200) -> tuple[nn.Module, list[Example]]:
    channels, flat = (3, 2048) if name == CIFAR else (1, 1568)
    network: nn.Module = nn.Sequential(
        nn.Conv2d(channels, 16, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(flat, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )
    network.load_state_dict(load_file(folder / "robust-small" / f"{name}_cnn_a_adv.safetensors"))
    model = Shifted(network) if name == CIFAR else network
    with np.load(folder / "robust-small" / f"{name}_test200.npz") as data:
        x = torch.from_numpy(data["x"]).permute(0, 3, 1, 2).contiguous()
        y = data["y"].tolist()
    examples = [Example(f"{name}-{i}", x[i], int(y[i])) for i in range(count)]
    return model.eval(), examples


class Linear(nn.Module):
    """Logits that are linear in the pixels, so that every distance has a closed form."""

    weight: torch.Tensor

    def __init__(self, classes: int = 4, side: int = 6, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.register_buffer(
            "weight", torch.randn(classes, 3 * side * side, generator=generator, dtype=dtype)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - 0.5).flatten(1) @ self.weight.T


def linear_examples(model: Linear, count: int, side: int = 6) -> list[Example]:
    """Grey-ish images, far from the box's walls, labelled with the model's own prediction."""
    generator = torch.Generator().manual_seed(5)
    x = 0.5 + 0.02 * torch.randn(count, 3, side, side, generator=generator)
    labels = model(x.to(model.weight.dtype)).argmax(1).tolist()
    return [Example(f"planted-{i}", x[i], int(labels[i])) for i in range(count)]
