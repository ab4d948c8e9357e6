"""Does a heat map say anything at all? Two checks that a broken explanation fails.

They are guards, never results: passing them shows that a map depends on the image and on the weights, not
that it tells people the truth or helps them. No figure from here belongs in a scorecard.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import scipy.stats
import torch
from torch import nn

from benchmark.classifier import Classifier
from benchmark.explanations.heatmaps import Heatmaps, upsample
from benchmark.statistics import seeded

Floats = npt.NDArray[np.float64]


# ---------------------------------------------------------------------------------------- deletion, insertion


@dataclass(frozen=True)
class PerturbationCheck:
    """Deletion and insertion curves of N images, beside those of R random maps for each.

    Attributes:
        image_ids: The N images.
        fractions: float64 (S + 1,), share of pixels changed, from 0 to 1.
        deletion: float64 (N, S + 1), probability of the class as the hottest pixels go first.
        insertion: float64 (N, S + 1), probability of the class as the hottest pixels come first.
        deletion_area: float64 (N,), area under each curve, in [0, 1]; small is good.
        insertion_area: float64 (N,), likewise; large is good.
        random_deletion_area: float64 (N, R), of random maps.
        random_insertion_area: float64 (N, R), of random maps.
    """

    image_ids: tuple[str, ...]
    fractions: Floats
    deletion: Floats
    insertion: Floats
    deletion_area: Floats
    insertion_area: Floats
    random_deletion_area: Floats
    random_insertion_area: Floats

    @property
    def margins(self) -> tuple[float, float]:
        """How much better than random the maps are on average: in deletion, and in insertion."""
        return (
            float(np.mean(self.random_deletion_area.mean(axis=1) - self.deletion_area)),
            float(np.mean(self.insertion_area - self.random_insertion_area.mean(axis=1))),
        )

    @property
    def passed(self) -> bool:
        """Whether the maps order pixels better than chance on average, both ways."""
        return min(self.margins) > 0


def deletion_insertion(
    classifier: Classifier,
    x: torch.Tensor,
    heat: Heatmaps,
    image_ids: Sequence[str],
    *,
    steps: int = 32,
    random_maps: int = 4,
    batch_size: int = 32,
) -> PerturbationCheck:
    """Deletion and insertion (Petsiuk et al. 2018) of the class each map explains.

    Deleted pixels take the mean colour of the preprocessing; insertion starts from a blurred copy. The
    baseline is random maps on the same grid, scaled up in the same way, so that they differ from the map in
    where, not in how coarse. Random numbers and ties are settled by the image id.

    Args:
        classifier: In eval mode, on the device of `x`.
        x: float (N, 3, H, W) in [0, 1].
        heat: Maps of these images.
        image_ids: Their ids.
        steps: Steps of a curve.
        random_maps: Random maps for each image, at least 1.
        batch_size: Images in a pass; memory depends on it alone.

    Raises:
        ValueError: Lengths differ or a number is out of range.
    """
    if len(image_ids) != len(x) or len(heat) != len(x):
        raise ValueError(f"{len(x)} images need as many maps and ids")
    if min(steps, random_maps, batch_size) < 1:
        raise ValueError("steps, random_maps and batch_size must be at least 1")
    size = (x.shape[2], x.shape[3])
    counts = np.rint(np.linspace(0, size[0] * size[1], steps + 1)).astype(int)
    mean = torch.tensor(classifier.preprocessing.mean, device=x.device, dtype=x.dtype).view(3, 1, 1)
    curves = np.empty((2, len(x), 1 + random_maps, steps + 1))
    with torch.no_grad():
        for i, (image, image_id) in enumerate(zip(x, image_ids)):
            rng = seeded("deletion and insertion", image_id)
            label = int(heat.classes[i])
            grids = [
                heat.maps[i],
                *(torch.from_numpy(rng.random(heat.maps[i].shape)) for _ in range(random_maps)),
            ]
            blurred, grey = _blur(image), mean.expand_as(image)
            for j, grid in enumerate(grids):
                order = _hottest_first(upsample(grid[None].float(), size)[0].numpy(), rng)
                place = torch.empty(order.size, dtype=torch.int64)
                place[torch.from_numpy(order)] = torch.arange(order.size)
                place = place.view(size).to(x.device)
                curves[0, i, j] = _curve(classifier, image, grey, place, counts, label, batch_size)
                curves[1, i, j] = _curve(classifier, blurred, image, place, counts, label, batch_size)
    fractions = counts / counts[-1]
    areas = ((curves[..., 1:] + curves[..., :-1]) / 2 * np.diff(fractions)).sum(axis=-1)
    return PerturbationCheck(
        tuple(image_ids),
        fractions,
        curves[0, :, 0],
        curves[1, :, 0],
        areas[0, :, 0],
        areas[1, :, 0],
        areas[0, :, 1:],
        areas[1, :, 1:],
    )


def _hottest_first(heat: npt.NDArray[np.floating], rng: np.random.Generator) -> npt.NDArray[np.intp]:
    """Pixels by falling heat; equal ones, as in the cold part of a map, in random order."""
    return np.lexsort((rng.random(heat.size), -heat.reshape(-1)))


def _curve(
    classifier: Classifier,
    start: torch.Tensor,
    end: torch.Tensor,
    place: torch.Tensor,
    counts: npt.NDArray[np.int64],
    label: int,
    batch_size: int,
) -> Floats:
    """Probability of a class as the first `counts` pixels of an order pass from one image to another."""
    found = []
    for first in range(0, len(counts), batch_size):
        some = torch.from_numpy(counts[first : first + batch_size]).to(place.device)
        changed = (place < some[:, None, None])[:, None]
        found.append(classifier(torch.where(changed, end, start)).double().softmax(dim=1)[:, label])
    return np.asarray(torch.cat(found).cpu().numpy(), dtype=np.float64)


def _blur(image: torch.Tensor) -> torch.Tensor:
    """A Gaussian blur of 11×11 pixels with a standard deviation of 5, as in the paper's code."""
    at = torch.arange(-5, 6, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-(at**2) / 50)
    kernel = kernel / kernel.sum()
    padded = torch.nn.functional.pad(image[None], (5, 5, 5, 5), mode="reflect")
    rows = torch.nn.functional.conv2d(padded, kernel.view(1, 1, 11, 1).expand(3, 1, 11, 1), groups=3)
    both: torch.Tensor = torch.nn.functional.conv2d(
        rows, kernel.view(1, 1, 1, 11).expand(3, 1, 1, 11), groups=3
    )
    return both[0]


# ---------------------------------------------------------------------------------------------- randomisation


@dataclass(frozen=True)
class RandomisationCheck:
    """How alike maps stay as the weights are scrambled from the output towards the input.

    Attributes:
        layers: Name of the lowest layer scrambled at each of S stages; the last stage scrambles all.
        similarity: float64 (S, N), Spearman's rank correlation of each map with the original one; 0 for a
            map that has become constant.
        threshold: Greatest mean similarity at the last stage that passes.
    """

    layers: tuple[str, ...]
    similarity: Floats
    threshold: float

    @property
    def passed(self) -> bool:
        """Whether the maps have become others once all weights are scrambled."""
        return bool(abs(self.similarity[-1].mean()) <= self.threshold)


def parameter_randomisation(
    classifier: Classifier,
    x: torch.Tensor,
    explain: Callable[[Classifier, torch.Tensor, torch.Tensor], Heatmaps],
    *,
    classes: torch.Tensor,
    stages: int = 6,
    seed: int = 0,
    threshold: float = 0.5,
) -> RandomisationCheck:
    """The cascading randomisation of Adebayo et al. 2018.

    An explanation that ignores the weights, as an edge detector does, stays the same throughout. The entries
    of each weight are shuffled, which keeps their distribution and so the scale of activations. This happens
    in a copy; the classifier stays as it is.

    Args:
        classifier: In eval mode, on the device of `x`.
        x: float (N, 3, H, W) in [0, 1].
        explain: Makes the maps, e.g. `grad_cam`; called with a classifier, `x` and `classes`.
        classes: int (N,), the class to explain, the same at all stages.
        stages: Groups of layers, about equal in number.
        seed: Of the shuffles.
        threshold: See `RandomisationCheck`.

    Raises:
        ValueError: `stages` is out of range.
        BeyondError: From `explain`.
    """
    original = explain(classifier, x, classes).maps
    scrambled = replace(classifier, module=copy.deepcopy(classifier.module))
    parts = [
        (n, m) for n, m in scrambled.module.named_modules() if any(True for _ in m.parameters(recurse=False))
    ]
    if not 1 <= stages <= len(parts):
        raise ValueError(f"stages must be in 1..{len(parts)}")
    groups = np.array_split(np.arange(len(parts))[::-1], stages)
    rng = seeded("randomisation", seed)
    layers, similarity = [], []
    for group in groups:
        for index in group.tolist():
            _shuffle(parts[index][1], rng)
        maps = explain(scrambled, x, classes).maps
        layers.append(parts[group[-1]][0])
        similarity.append([_rank_correlation(a.numpy(), b.numpy()) for a, b in zip(original, maps)])
    return RandomisationCheck(tuple(layers), np.array(similarity), threshold)


def _shuffle(part: nn.Module, rng: np.random.Generator) -> None:
    with torch.no_grad():
        for parameter in part.parameters(recurse=False):
            order = torch.from_numpy(rng.permutation(parameter.numel())).to(parameter.device)
            parameter.copy_(parameter.reshape(-1)[order].view_as(parameter))


def _rank_correlation(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(scipy.stats.spearmanr(a.reshape(-1), b.reshape(-1)).statistic)
