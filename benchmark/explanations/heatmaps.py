"""Where in the image a class gets its support: Grad-CAM and integrated gradients.

Both give one number per position that is at least 0 and speaks for the class; they differ in resolution (the
grid of a late layer against single pixels) and in cost (one pass against dozens).
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any, Literal

import torch

from annotations.errors import BeyondError
from benchmark.classifier import Classifier
from benchmark.explanations.layers import SpatialLayer, find_spatial_layer, gradient_of, tail

Baseline = Literal["mean", "black"]


@dataclass(frozen=True)
class Heatmaps:
    """Heat maps of N images, each for one class.

    Attributes:
        maps: float32 (N, rows, columns), at least 0, on the CPU. Only ratios within a map mean anything.
        classes: int64 (N,), the class that each map explains.
        logits: float32 (N, classes) of the images, on the CPU.
        size: (height, width) of the images in pixels.
        gap: For integrated gradients, float32 (N,): how far the sum of the attributions is from the change of
            the logit between baseline and image, as a share of that change (0 is exact). None for Grad-CAM.
    """

    maps: torch.Tensor
    classes: torch.Tensor
    logits: torch.Tensor
    size: tuple[int, int]
    gap: torch.Tensor | None = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.maps)

    @property
    def blank(self) -> torch.Tensor:
        """Bool (N,): maps without any heat. Nothing at that layer speaks for the class."""
        return ~(self.maps > 0).flatten(1).any(dim=1)

    def at_pixels(self) -> torch.Tensor:
        """The maps as float32 (N, height, width), bilinear."""
        return upsample(self.maps, self.size)


def upsample(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Scale maps (N, rows, columns) to (N, height, width), bilinear with half-pixel centres."""
    if tuple(maps.shape[1:]) == tuple(size):
        return maps
    return torch.nn.functional.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


@torch.inference_mode(False)  # there, no graph can be made
def grad_cam(
    classifier: Classifier,
    x: torch.Tensor,
    classes: torch.Tensor | None = None,
    *,
    layer: SpatialLayer | None = None,
) -> Heatmaps:
    """Grad-CAM (Selvaraju et al. 2017, equations 1 and 2): channels weighted by their mean gradient.

    One forward pass and one backward pass from the logits to the layer, for the whole batch, whatever the
    class of each image. An image's map does not depend on the other images. Nothing of the model changes, no
    hook stays, and no gradient is accumulated.

    Args:
        classifier: In eval mode, on the device of `x`.
        x: float (N, 3, H, W) in [0, 1], N at least 1.
        classes: int (N,), the class to explain for each image; None explains the predicted ones.
        layer: From `find_spatial_layer`, which is asked if this is None (one more small pass).

    Returns:
        Maps on the grid of the layer.

    Raises:
        BeyondError: The classifier has no layer to read, a class is out of range, or logits or gradients are
            not finite.
    """
    _check_eval(classifier)
    layer = layer or find_spatial_layer(classifier)
    logits, leaf = tail(classifier.module, layer.name, x)
    chosen = _choose(logits, classes, classifier)
    gradient = gradient_of(logits, chosen, leaf, layer.name)
    size = (x.shape[2], x.shape[3])
    with torch.no_grad():
        weights = layer.as_grid(gradient, size).mean(dim=(2, 3), keepdim=True)
        maps = (weights * layer.as_grid(leaf, size)).sum(dim=1).relu_()
    _check_finite(maps, classifier)
    return Heatmaps(maps.float().cpu(), chosen.cpu(), logits.detach().float().cpu(), size)


@torch.inference_mode(False)
def integrated_gradients(
    classifier: Classifier,
    x: torch.Tensor,
    classes: torch.Tensor | None = None,
    *,
    steps: int = 64,
    baseline: Baseline = "mean",
    batch_size: int = 32,
) -> Heatmaps:
    """Integrated gradients (Sundararajan et al. 2017) of the class's logit, by captum.

    Needs the extra `explain`. Images are done one at a time in batches along the path, so memory does not
    depend on N or `steps`, and an image's map not on the other images.

    Args:
        classifier: In eval mode, on the device of `x`.
        x: float (N, 3, H, W) in [0, 1].
        classes: int (N,), the class to explain for each image; None explains the predicted ones.
        steps: Points on the path (Gauss–Legendre).
        baseline: Where the path starts: the `mean` colour of the preprocessing (0 after normalisation), or
            `black`.
        batch_size: Points in a pass.

    Returns:
        The positive part of the attributions summed over colours, per pixel, and the completeness gap.

    Raises:
        BeyondError: captum is not installed, a number is out of range, or attributions are not finite.
    """
    if importlib.util.find_spec("captum") is None:
        raise BeyondError(
            "integrated gradients need captum; install it with: pip install 'beyond-accuracy[explain]'"
        )
    if steps < 1 or batch_size < 1:
        raise BeyondError(f"cannot integrate over {steps} steps in batches of {batch_size}; use at least 1")
    _check_eval(classifier)
    attr: Any = importlib.import_module("captum.attr")
    engine = attr.IntegratedGradients(classifier.module)
    mean = classifier.preprocessing.mean if baseline == "mean" else (0.0, 0.0, 0.0)
    colour = torch.tensor(mean, device=x.device, dtype=x.dtype).view(1, 3, 1, 1)
    origin = colour.expand(1, -1, *x.shape[2:]).contiguous()
    x = x.detach().clone()
    with torch.no_grad():
        pieces = [classifier(x[start : start + batch_size]) for start in range(0, len(x), batch_size)]
        logits = torch.cat(pieces)
        chosen = _choose(logits, classes, classifier)
        from_logits = classifier(origin)[0]
    maps, gaps = [], []
    for image, logit_row, label in zip(x, logits, chosen.tolist()):
        found = engine.attribute(
            image[None],
            baselines=origin,
            target=label,
            n_steps=steps,
            internal_batch_size=batch_size,
        ).detach()
        change = logit_row[label] - from_logits[label]
        gaps.append((found.sum() - change).abs() / change.abs().clamp_min(1e-12))
        maps.append(found[0].sum(dim=0).relu_())
    stacked = torch.stack(maps)
    _check_finite(stacked, classifier)
    return Heatmaps(
        stacked.float().cpu(),
        chosen.cpu(),
        logits.float().cpu(),
        (x.shape[2], x.shape[3]),
        torch.stack(gaps).float().cpu(),
    )


def _check_eval(classifier: Classifier) -> None:
    """In training mode dropout is random and batch norm mixes images, and running it changes the model."""
    if any(part.training for part in classifier.module.modules()):
        raise BeyondError(f"{classifier.name} is in training mode; call its module's eval() first")


def _choose(logits: torch.Tensor, classes: torch.Tensor | None, classifier: Classifier) -> torch.Tensor:
    """The class of each image, int64 (N,), on the device of the logits."""
    finite = torch.isfinite(logits).all(dim=1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise BeyondError(f"{classifier.name} gives NaN or infinite logits on image {row} of the batch")
    if classes is None:
        return logits.detach().argmax(dim=1)
    if classes.shape != logits.shape[:1]:
        raise BeyondError(f"{tuple(classes.shape)} classes for {len(logits)} images; give one for each")
    # A copy, because a graph cannot keep a tensor that was made in inference mode.
    chosen = classes.to(device=logits.device, dtype=torch.int64, copy=True)
    if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < logits.shape[1]:
        raise BeyondError(f"a class to explain is outside 0..{logits.shape[1] - 1}")
    return chosen


def _check_finite(maps: torch.Tensor, classifier: Classifier) -> None:
    finite = torch.isfinite(maps).flatten(1).all(dim=1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise BeyondError(
            f"{classifier.name} has NaN or infinite gradients on image {row} of the batch; leave it out"
        )
