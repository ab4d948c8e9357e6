"""The last step of every source: a network and its preprocessing become a checked `Classifier`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from annotations.errors import BeyondError, one_line
from benchmark.classifier import Classifier, Normalized
from benchmark.models.weights import check_classes, fingerprint
from benchmark.preprocessing import Preprocessing

Layout = Literal["nchw", "nhwc", "tokens"]


@dataclass(frozen=True)
class Layers:
    """Where a source believes that a network keeps what explanations need; names are inside the network.

    Attributes:
        features: Layer whose input is the penultimate features.
        explanation: Layer whose output is the last spatial map.
        layout: How that output is laid out.
        prefix_tokens: Class and register tokens before the patch tokens.

    A belief is kept only if one forward pass bears it out.
    """

    features: str | None = None
    explanation: str | None = None
    layout: Layout | None = None
    prefix_tokens: int = 0


def assemble(
    network: nn.Module,
    preprocessing: Preprocessing,
    *,
    spec: str,
    name: str,
    source: Mapping[str, str],
    layers: Layers | None = None,
    licence: str = "",
) -> Classifier:
    """Put normalisation in front of a network, check its output, and keep the layers that are what they seem.

    The module ends in eval mode, on the CPU, in float32, with parameters that need no gradient.

    Args:
        network: Takes normalised images, returns logits.
        preprocessing: Its mean and std are what is put in front.
        spec: The spec string.
        name: A short name.
        source: Facts that pin the weights; library versions are added.
        layers: What explanations need, as the source believes.
        licence: Licence of the weights.

    Raises:
        BeyondError: The output is not (N, 1000), or the network fails on an image.
    """
    module = Normalized(network, preprocessing.mean, preprocessing.std).float().eval().requires_grad_(False)
    layers = layers or Layers()
    names = [f"network.{layer}" if layer else None for layer in (layers.features, layers.explanation)]
    features, explanation = (layer if layer and _has(module, layer) else None for layer in names)
    seen = probe(module, preprocessing.input_size, [n for n in (features, explanation) if n], spec=spec)
    if features and not _is_flat(seen[features][0]):
        features = None
    if explanation and not _is_map(seen[explanation][1], layers, preprocessing.input_size):
        explanation = None
    return Classifier(
        spec=spec,
        name=name,
        module=module,
        preprocessing=preprocessing,
        weights_sha256=fingerprint(module),
        source={**source, "torch": torch.__version__},
        feature_layer=features,
        explanation_layer=explanation,
        layout=layers.layout if explanation else None,
        prefix_tokens=layers.prefix_tokens if explanation and layers.layout == "tokens" else 0,
        licence=licence,
    )


def complete(classifier: Classifier, *, spec: str, source: Mapping[str, str]) -> Classifier:
    """Check a classifier that a user made, and fill in what only we know: spec and fingerprint.

    Raises:
        BeyondError: The output is not (N, 1000), or the module fails on an image.
    """
    module = classifier.module.eval()
    probe(module, classifier.preprocessing.input_size, [], spec=spec)
    return replace(
        classifier,
        spec=spec,
        weights_sha256=fingerprint(module),
        source={**source, **classifier.source, "torch": torch.__version__},
    )


def probe(
    module: nn.Module, size: tuple[int, int], layers: Sequence[str], *, spec: str
) -> dict[str, tuple[torch.Size, torch.Size]]:
    """Run one grey image through a module and look at its output and at some layers.

    Args:
        module: Takes float (1, 3, height, width) in [0, 1].
        size: (height, width).
        layers: Dotted names inside `module`.
        spec: What to call the model in messages.

    Returns:
        Shape of the input and output of each layer; an empty shape stands for something that is no tensor,
        and for a layer that did not run.

    Raises:
        BeyondError: The module fails, or its output is not (1, 1000).
    """
    seen = {name: (torch.Size(), torch.Size()) for name in layers}

    def look(name: str) -> torch.utils.hooks.RemovableHandle:
        def hook(_: nn.Module, inputs: tuple[object, ...], output: object) -> None:
            seen[name] = (_shape(inputs[0] if inputs else None), _shape(output))

        return module.get_submodule(name).register_forward_hook(hook)

    handles = [look(name) for name in layers]
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad():
            output = module(torch.full((1, 3, *size), 0.5, device=device))
    except Exception as error:  # a user's module may raise anything
        reason = one_line(error, 160)
        raise BeyondError(
            f"{spec} fails on one {size[0]}×{size[1]} image ({type(error).__name__}: {reason}); "
            "it must take float (N, 3, H, W) in [0, 1] of the preprocessing's input_size"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    shape = _shape(output)
    if len(shape) != 2 or shape[0] != 1:
        got = f"shape {tuple(shape)}" if isinstance(output, torch.Tensor) else f"a {type(output).__name__}"
        raise BeyondError(f"{spec} returns {got} for one image; it must return logits of shape (1, 1000)")
    check_classes(shape[1], spec)
    return seen


def last_linear(network: nn.Module) -> str | None:
    """Name of the last linear layer with 1000 outputs: in most networks the classifier proper."""
    found = [n for n, m in network.named_modules() if isinstance(m, nn.Linear) and m.out_features == 1000]
    return found[-1] if found else None


def _shape(value: object) -> torch.Size:
    return value.shape if isinstance(value, torch.Tensor) else torch.Size()


def _has(module: nn.Module, name: str) -> bool:
    try:
        module.get_submodule(name)
    except AttributeError:
        return False
    return True


def _is_flat(shape: torch.Size) -> bool:
    """Whether a shape is one vector of features for one image."""
    return len(shape) >= 2 and shape[0] == 1 and math.prod(shape) == shape[1]


def _is_map(shape: torch.Size, layers: Layers, size: tuple[int, int]) -> bool:
    """Whether a shape is a grid over the image, of more than one cell, in the layout that is claimed."""
    if layers.layout == "tokens":
        cells = shape[1] - layers.prefix_tokens if len(shape) == 3 else 0
        # The grid has the image's aspect: rows : columns = height : width.
        rows = math.isqrt(cells * size[0] // size[1]) if cells > 1 else 0
        return rows > 0 and cells % rows == 0 and rows * size[1] == cells // rows * size[0]
    if len(shape) != 4:
        return False
    rows, columns = shape[2:] if layers.layout == "nchw" else shape[1:3]
    return 1 < rows <= size[0] // 2 and abs(rows * size[1] - columns * size[0]) <= max(size)
