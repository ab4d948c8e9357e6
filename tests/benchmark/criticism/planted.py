"""A made-up world with a known bias: small images, a small trained model, and what is true of them.

Four classes are told apart by faint patterns under noise. A bright mark in a corner says nothing about the
class; in a biased world, the images that the model is trained on have it nine times in ten in class 0 and one
time in ten elsewhere, and the model learns to lean on it. In the images that the model is criticized on it is
as frequent in every class. Other attributes are innocent: two can be seen but never went with a class, three
cannot even be seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmark import attacks
from benchmark.attacks import Example
from benchmark.criticism.attributes import Attribute
from benchmark.criticism.choose import answers, signed
from benchmark.criticism.distances import closest
from benchmark.criticism.findings import Search, Slices, in_discovery, search
from benchmark.criticism.records import Distances
from benchmark.criticism.slices import propose

CLASSES, SIDE, HIDDEN = 4, 8, 24
PLANTED = "mark"
INNOCENT = ("stripe", "shade", "morning", "from the left", "sharp")


@dataclass(frozen=True)
class Planted:
    """A world.

    Attributes:
        model: The trained model: images (N, 3, 8, 8) to logits (N, 4).
        images: float32 (N, 3, 8, 8) in [0, 1].
        labels: int64 (N,).
        attributes: The mark and the innocent ones.
        ids: object (N,) of str.
    """

    model: nn.Module
    images: torch.Tensor
    labels: torch.Tensor
    attributes: list[Attribute]
    ids: np.ndarray


class Small(nn.Module):
    """One hidden layer over pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(3 * SIDE * SIDE, HIDDEN)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.hidden(x.flatten(1) - 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.features(x))
        return logits


def _images(
    rng: np.random.Generator, labels: np.ndarray, has: dict[str, np.ndarray], patterns: np.ndarray
) -> torch.Tensor:
    x = 0.5 + 0.05 * patterns[labels] + 0.22 * rng.normal(size=(len(labels), 3, SIDE, SIDE))
    x[:, :, :2, :2] += 0.45 * has[PLANTED][:, None, None, None]
    x[:, :, 7, :] += 0.03 * has["stripe"][:, None, None]
    x[:, 2, 3:5, :] -= 0.03 * has["shade"][:, None, None]
    return torch.from_numpy(x.clip(0, 1).astype(np.float32))


def make(seed: int, *, biased: bool, n: int = 1200, train: int = 1600) -> Planted:
    """Draw a world and train its model."""
    rng = np.random.default_rng([seed, int(biased)])
    patterns = rng.choice([-1.0, 1.0], size=(CLASSES, 3, SIDE, SIDE))
    # Where the mark and the innocent patterns are, classes look the same.
    patterns[:, :, :2, :2] = patterns[:, :, 7, :] = patterns[:, 2, 3:5, :] = 0

    def draw(count: int, *, training: bool) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        labels = np.arange(count) % CLASSES
        has = {name: rng.random(count) < 0.5 for name in (PLANTED, *INNOCENT)}
        if training and biased:
            has[PLANTED] = rng.random(count) < np.where(labels == 0, 0.9, 0.1)
        return labels, has

    labels, has = draw(train, training=True)
    x, y = _images(rng, labels, has, patterns), torch.from_numpy(labels)
    torch.manual_seed(seed)
    model = Small()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.3)
    for _ in range(80):
        optimiser.zero_grad()
        loss: Any = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimiser.step()
    model.eval().requires_grad_(False)
    labels, has = draw(n, training=False)
    ids = np.array([f"made-up-{seed}-{i:04d}" for i in range(n)], dtype=object)
    attributes = [
        Attribute(name, "planted", ("no", "yes"), has[name].astype(np.int8), (1,))
        for name in (PLANTED, *INNOCENT)
    ]
    return Planted(model, _images(rng, labels, has, patterns), torch.from_numpy(labels), attributes, ids)


def measured(world: Planted) -> Distances:
    """Distances of its images, by the attacks of the quick tier."""
    predicted = world.model(world.images).argmax(1)
    examples = [Example(str(i), x, int(p)) for i, x, p in zip(world.ids, world.images, predicted)]
    found, _ = closest(world.model, examples, attacks.boundary("quick"), batch_size=len(examples))
    n = len(examples)
    return Distances(
        image_ids=world.ids,
        labels=world.labels.numpy().astype(np.int16),
        predicted=predicted.numpy().astype(np.int16),
        correct=(predicted == world.labels).numpy(),
        status=np.array([f.status for f in found], dtype=object),
        distance=np.array([f.distance for f in found]),
        attack=np.array([f.attack for f in found], dtype=object),
        neighbour=np.full(n, -1, dtype=np.int16),
    )


def criticized(world: Planted, *, slices: bool = True) -> Search:
    """The whole search on a world."""
    distances = measured(world)
    place = signed(distances, answers(distances, None))
    proposed = None
    if slices:
        with torch.no_grad():
            features = world.model.features(world.images).numpy()  # type: ignore[operator]
            confidence = world.model(world.images).softmax(1).amax(1).double().numpy()
        wrong, usable = ~distances.correct, np.ones(len(place), dtype=bool)
        proposal = propose(features, wrong, confidence, usable, in_discovery(world.ids))
        if proposal is not None:
            proposed = Slices(proposal.member.astype(np.int64), wrong, confidence, usable)
    return search(place, distances.labels, world.ids, world.attributes, slices=proposed)
