"""Which layer a heat map is read from, and how that layer lays out space: one adapter per family.

A classifier may name its layer; if it does not, the network's family tells. Either way one forward and one
backward pass on noise must bear it out, so a network that fits no family is refused instead of being
explained by a map that means nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from annotations.errors import BeyondError
from benchmark.classifier import Classifier
from benchmark.models import from_hub, from_timm, from_torchvision
from benchmark.models.assemble import Layers, Layout

_REMEDY = "name explanation_layer, layout and prefix_tokens in the Classifier of FILE.py:FACTORY"

# torchvision's classes whose name is not the start of the name they are built by.
_TORCHVISION_NAMES = {"visiontransformer": "vit", "swintransformer": "swin"}
# transformers' families beyond those that loading knows: last spatial layer and number of prefix tokens.
_TRANSFORMERS = {
    "dinov2": (r"dinov2\.encoder\.layer\.\d+\.norm1", 1),
    "swin": (r"swin\.layernorm", 0),
    "swinv2": (r"swinv2\.layernorm", 0),
}
_PLAIN_PARTS = (
    nn.Conv2d,
    nn.Linear,
    nn.PReLU,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LocalResponseNorm,
)
_POOLING = (
    nn.AvgPool2d,
    nn.MaxPool2d,
    nn.LPPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
)


@dataclass(frozen=True)
class SpatialLayer:
    """A layer whose output is a grid over the image.

    Attributes:
        name: Dotted name inside the classifier's module.
        layout: `nchw`, `nhwc`, or `tokens` (N, prefix + rows × columns, C).
        prefix_tokens: Class and register tokens before the patch tokens.
    """

    name: str
    layout: Layout
    prefix_tokens: int = 0

    def as_grid(self, output: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """View the layer's output, or a gradient of that shape, as (N, C, rows, columns).

        Args:
            output: What the layer returned.
            size: (height, width) of the image in pixels; the grid of tokens has its aspect.

        Raises:
            BeyondError: The output is no such grid.
        """
        wanted = 3 if self.layout == "tokens" else 4
        if output.ndim != wanted:
            raise BeyondError(
                f"layer {self.name} returns shape {tuple(output.shape)}, which is no grid in the layout "
                f"{self.layout}"
            )
        if self.layout == "nchw":
            return output
        if self.layout == "nhwc":
            return output.permute(0, 3, 1, 2)
        rows, columns = token_grid(output.shape[1] - self.prefix_tokens, size, self.name)
        patches = output[:, self.prefix_tokens :]
        return patches.transpose(1, 2).reshape(len(output), -1, rows, columns)


def token_grid(patches: int, size: tuple[int, int], name: str = "tokens") -> tuple[int, int]:
    """Rows and columns of a grid of patch tokens over an image.

    Args:
        patches: Number of patch tokens.
        size: (height, width) of the image in pixels.
        name: What to call the layer in the message.

    Raises:
        BeyondError: No grid of square patches has so many cells.

    Example:
        >>> token_grid(196, (224, 224)), token_grid(128, (128, 256))
        ((14, 14), (8, 16))
    """
    height, width = size
    rows = math.isqrt(patches * height // width) if patches > 0 else 0
    if rows == 0 or patches % rows or rows * width != patches // rows * height:
        raise BeyondError(
            f"layer {name} has {max(patches, 0)} patch tokens, no grid over a {height}×{width} image"
        )
    return rows, patches // rows


def tail(module: nn.Module, name: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a batch and the output of one layer on the way, with a graph from that layer on only.

    Whatever comes before the layer runs without gradients, which is most of the work: a backward pass that
    ends at the layer never needs it. The one hook is removed again; parameters and buffers are left alone.

    Args:
        module: Takes (N, 3, H, W), returns logits.
        name: Dotted name of the layer inside `module`.
        x: The images.

    Returns:
        Logits (N, classes), and the layer's output as a leaf that the logits depend on.

    Raises:
        BeyondError: There is no such layer, it did not run exactly once, or it returns no tensor.
    """
    seen: list[object] = []

    def cut(_: nn.Module, __: tuple[object, ...], output: object) -> torch.Tensor | None:
        if not isinstance(output, torch.Tensor):
            seen.append(output)
            return None
        leaf = output.detach()
        seen.append(leaf)
        torch.set_grad_enabled(True)  # until the block below is left
        # A copy goes on, because the next layer may work in place.
        return leaf.requires_grad_().clone()

    try:
        layer = module.get_submodule(name)
    except AttributeError:
        raise BeyondError(f"it has no layer {name}") from None
    handle = layer.register_forward_hook(cut)
    try:
        with torch.no_grad():
            # A copy, because a model may write into its input, and a graph refuses inference tensors.
            logits = module(x.detach().clone())
    finally:
        handle.remove()
    if len(seen) != 1:
        raise BeyondError(f"layer {name} runs {len(seen)} times in one pass instead of once")
    leaf = seen[0]
    if not isinstance(leaf, torch.Tensor):
        raise BeyondError(f"layer {name} returns a {type(leaf).__name__} instead of a tensor")
    return logits, leaf


@torch.inference_mode(False)
def find_spatial_layer(classifier: Classifier) -> SpatialLayer:
    """The layer that heat maps of a classifier are read from.

    It is the one the classifier names, or else the last spatial layer of its family: timm's, torchvision's
    and transformers' networks (convolutional ones, ViT with class and register tokens, Swin's channels-last
    grids, ConvNeXt), and plain networks of convolutions followed by linear layers.

    Raises:
        BeyondError: In one line, why there is none: an unknown family, a layer that is no grid, or one whose
            positions no logit depends on.
    """
    try:
        if classifier.explanation_layer and classifier.layout:
            layer = SpatialLayer(classifier.explanation_layer, classifier.layout, classifier.prefix_tokens)
        else:
            layer = _resolve(classifier)
        _check(classifier, layer)
    except BeyondError as reason:
        raise BeyondError(f"Grad-CAM cannot explain {classifier.name}: {reason}; {_REMEDY}") from None
    return layer


def _noise(classifier: Classifier) -> torch.Tensor:
    """Two fixed images of noise on the module's device, in its dtype: they reach what a grey one may not."""
    like = next((p for p in classifier.module.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, *classifier.preprocessing.input_size, generator=generator).to(like)


def _check(classifier: Classifier, layer: SpatialLayer) -> None:
    size = classifier.preprocessing.input_size
    logits, leaf = tail(classifier.module, layer.name, _noise(classifier))
    rows, columns = layer.as_grid(leaf, size).shape[2:]
    # A grid has the image's aspect, give or take the rounding of strides.
    fits = rows * columns > 1 and rows <= size[0] and abs(rows * size[1] - columns * size[0]) <= max(size)
    if not fits:
        raise BeyondError(
            f"layer {layer.name}, read as {layer.layout}, is a grid of {rows}×{columns}, no map of a "
            f"{size[0]}×{size[1]} image"
        )
    gradient = gradient_of(logits, logits.detach().argmax(dim=1), leaf, layer.name)
    if not layer.as_grid(gradient, size).any():
        raise BeyondError(
            f"no logit depends on the positions of layer {layer.name}, as after the last attention to a "
            "class token"
        )


def gradient_of(logits: torch.Tensor, classes: torch.Tensor, leaf: torch.Tensor, name: str) -> torch.Tensor:
    """Gradient of each image's logit of one class with respect to a layer's output.

    Nothing is accumulated anywhere.

    Args:
        logits: (N, classes), from `tail`.
        classes: int64 (N,).
        leaf: The layer's output, from `tail`.
        name: Of the layer, for messages.

    Raises:
        BeyondError: The logits do not depend on it in a way that can be differentiated.
    """
    with torch.enable_grad():
        chosen = logits.gather(1, classes[:, None]).sum()
        gradient = torch.autograd.grad(chosen, leaf, allow_unused=True)[0] if chosen.requires_grad else None
    if gradient is None:
        raise BeyondError(
            f"its logits have no gradient at layer {name} (a quantised or exported model has none anywhere)"
        )
    return gradient


# --------------------------------------------------------------------------------------------------- families


def _resolve(classifier: Classifier) -> SpatialLayer:
    """The last spatial layer of a family that is known.

    Raises:
        BeyondError: The family is not known, or the member of it has no such layer.
    """
    for prefix, network in classifier.module.named_modules():
        library = type(network).__module__
        family = next((known for start, known in _LIBRARIES.items() if library.startswith(start)), None)
        if family is None:
            continue
        layers = family(network)
        if layers.explanation is None or layers.layout is None:
            raise BeyondError(f"the last spatial layer of a {type(network).__name__} is not known")
        name = f"{prefix}.{layers.explanation}" if prefix else layers.explanation
        return SpatialLayer(name, layers.layout, layers.prefix_tokens)
    return _resolve_plain(classifier)


def _of_torchvision(network: nn.Module) -> Layers:
    name = type(network).__name__.lower()
    return from_torchvision.layers_of(_TORCHVISION_NAMES.get(name, name), network)


def _of_transformers(network: nn.Module) -> Layers:
    kind = str(getattr(getattr(network, "config", None), "model_type", ""))
    layers = from_hub.layers_of(kind, network)
    if layers.explanation is None and kind in _TRANSFORMERS:
        pattern, prefix = _TRANSFORMERS[kind]
        found = [name for name, _ in network.named_modules() if re.fullmatch(pattern, name)]
        return Layers(layers.features, found[-1] if found else None, "tokens", prefix)
    return layers


_LIBRARIES: dict[str, Callable[[nn.Module], Layers]] = {
    "timm.models.": from_timm.layers_of,
    "torchvision.models.": _of_torchvision,
    "transformers.models.": _of_transformers,
}


def _resolve_plain(classifier: Classifier) -> SpatialLayer:
    """The last grid of a network that is nothing but convolutions, norms, poolings and linear layers."""
    module = classifier.module
    foreign = next((m for m in _parametrised(module) if not isinstance(m, _PLAIN_PARTS)), None)
    if foreign is not None:
        raise BeyondError(f"it is of no known family (it has a {type(foreign).__name__})")
    grids: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        def hook(_: nn.Module, __: tuple[object, ...], output: object) -> None:
            if isinstance(output, torch.Tensor) and output.ndim == 4 and math.prod(output.shape[2:]) > 1:
                grids.append(name)

        return hook

    leaves = [
        (name, part)
        for name, part in module.named_modules()
        if name and not any(True for _ in part.children()) and not isinstance(part, _POOLING)
    ]
    handles = [part.register_forward_hook(watch(name)) for name, part in leaves]
    try:
        with torch.no_grad():
            module(_noise(classifier))
    finally:
        for handle in handles:
            handle.remove()
    # A module that is used twice (one ReLU for all places) is not one layer.
    once = [name for name in grids if grids.count(name) == 1]
    if not once:
        raise BeyondError("it has no layer with a grid over the image")
    return SpatialLayer(once[-1], "nchw")


def _parametrised(module: nn.Module) -> Iterator[nn.Module]:
    return (part for part in module.modules() if any(True for _ in part.parameters(recurse=False)))
