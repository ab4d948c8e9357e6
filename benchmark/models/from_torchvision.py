"""`torchvision:NAME`, `torchvision:NAME@WEIGHTS` and `torchvision:NAME@FILE`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.transforms import InterpolationMode

from annotations.errors import BeyondError
from benchmark.classifier import Classifier
from benchmark.models.assemble import Layers, assemble, last_linear
from benchmark.models.names import nearest
from benchmark.models.weights import check_classes, download, load_into, load_weights
from benchmark.preprocessing import Interpolation, Preprocessing

FILE_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")

# What torchvision's builders set when they load weights themselves, which here they never do.
_BUILD_OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"transform_input": True, "init_weights": False},
    "inception_v3": {"transform_input": True, "init_weights": False},
}
_AUXILIARY = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}
# DenseNet checkpoints are older than the rule that module names hold no dots.
_DENSENET_NAME = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")

_INTERPOLATIONS: dict[InterpolationMode, Interpolation] = {
    InterpolationMode.NEAREST: "nearest",
    InterpolationMode.BILINEAR: "bilinear",
    InterpolationMode.BICUBIC: "bicubic",
    InterpolationMode.LANCZOS: "lanczos",
    InterpolationMode.BOX: "box",
    InterpolationMode.HAMMING: "hamming",
}

# Family (start of the name) to the layer whose output is the last spatial map, and its layout.
_MAPS: dict[str, Layers] = {
    "alexnet": Layers(explanation="features.11", layout="nchw"),
    "convnext": Layers(explanation="features", layout="nchw"),
    "densenet": Layers(explanation="features", layout="nchw"),
    "efficientnet": Layers(explanation="features", layout="nchw"),
    "googlenet": Layers(explanation="inception5b", layout="nchw"),
    "inception": Layers(explanation="Mixed_7c", layout="nchw"),
    "maxvit": Layers(explanation="blocks.3", layout="nchw"),
    "mnasnet": Layers(explanation="layers", layout="nchw"),
    "mobilenet": Layers(explanation="features", layout="nchw"),
    "regnet": Layers(explanation="trunk_output", layout="nchw"),
    "resne": Layers(explanation="layer4", layout="nchw"),
    "shufflenet": Layers(explanation="conv5", layout="nchw"),
    "squeezenet": Layers(explanation="features", layout="nchw"),
    "swin": Layers(explanation="norm", layout="nhwc"),
    "wide_resnet": Layers(explanation="layer4", layout="nchw"),
}


def load(rest: str, spec: str, cache_dir: Path | None) -> Classifier:
    """Load a model of torchvision with weights that it names, or with local ones.

    Without `@WEIGHTS` the default weights are used. With `@FILE` the preprocessing is the default weights'.

    Raises:
        BeyondError: Unknown model or weights, weights that are no classifier or unsafe, or no network.
    """
    name, _, given = rest.partition("@")
    members = weights_of(name)
    is_file = given.endswith(FILE_SUFFIXES) or "/" in given
    member = members[0] if is_file or not given else _choose(members, given, name)
    options = member.meta
    if options.get("categories") is None:
        raise BeyondError(f"torchvision's {member} are features without a classifier; leave out @{given}")
    check_classes(len(options["categories"]), spec)
    source = {"torchvision": torchvision.__version__}
    if is_file:
        path = Path(given).expanduser()
        source["file"] = path.name
    else:
        path = download(member.url, cache_dir)
        source |= {"weights": str(member), "url": member.url}
    return finish(name, load_weights(path), member, spec=spec, source=source)


def finish(
    name: str, state: dict[str, torch.Tensor], member: Any, *, spec: str, source: dict[str, str]
) -> Classifier:
    """Make the network, put the weights in, and assemble the classifier."""
    options = dict(_BUILD_OPTIONS.get(name, {}))
    if name in _AUXILIARY:
        # Heads for training only; a checkpoint may hold them or not, and the finished network drops them.
        options["aux_logits"] = any(key.startswith(_AUXILIARY[name]) for key in state)
    network: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    for old in [key for key in state if _DENSENET_NAME.search(key)]:
        state[_DENSENET_NAME.sub(r"\1\2.", old)] = state.pop(old)
    layers = layers_of(name, network)
    if (weight := state.get(f"{layers.features}.weight")) is not None:
        check_classes(weight.shape[0], spec)
    load_into(network, state, spec)
    for head in _AUXILIARY.get(name, ()):
        setattr(network, head, None)
    if name in _AUXILIARY:
        network.aux_logits = False  # type: ignore[assignment]
    return assemble(
        network,
        preprocessing_of(member.transforms(), spec),
        spec=spec,
        name=name if not source.get("weights") else f"{name}.{source['weights'].rpartition('.')[2].lower()}",
        source=source,
        layers=layers,
        # Stated only where it is not the library's own (SWAG); of local weights nothing is known.
        licence=str(member.meta.get("license") or "") if "weights" in source else "",
    )


def names() -> list[str]:
    """Classification models of torchvision; quantised ones have no gradients and are left out."""
    return list(torchvision.models.list_models(module=torchvision.models))


def weights_of(name: str) -> list[Any]:
    """The published weights of a model, the default first.

    Raises:
        BeyondError: There is no such model.
    """
    if name not in names():
        raise BeyondError(nearest(name, names(), prefix="torchvision:", what="torchvision model"))
    enum = torchvision.models.get_model_weights(name)
    default = enum.DEFAULT
    return [default, *(member for member in enum if member is not default)]


def _choose(members: list[Any], given: str, name: str) -> Any:
    wanted = given.rpartition(".")[2].upper()
    for member in members:
        # DEFAULT is an alias of the first in torchvision's own naming.
        if member.name == wanted or (wanted == "DEFAULT" and member is members[0]):
            return member
    raise BeyondError(
        nearest(given, [m.name for m in members], prefix=f"torchvision:{name}@", what=f"weights of {name}")
    )


def preprocessing_of(transform: Any, spec: str) -> Preprocessing:
    """Express torchvision's `ImageClassification` preset as a `Preprocessing`.

    Raises:
        BeyondError: The preset is of another kind, or switches antialiasing off.
    """
    parts = [
        getattr(transform, part, None)
        for part in ("resize_size", "crop_size", "mean", "std", "interpolation")
    ]
    if any(part is None for part in parts):
        raise BeyondError(f"{spec} prepares images with {type(transform).__name__}, which is not supported")
    if transform.antialias is False:
        raise BeyondError(f"{spec} resizes without antialiasing, which is not supported")
    crop = tuple(transform.crop_size) * (2 if len(transform.crop_size) == 1 else 1)
    resize = transform.resize_size[0] if len(transform.resize_size) == 1 else tuple(transform.resize_size)
    mean, std = tuple(transform.mean), tuple(transform.std)
    return Preprocessing(crop, resize, _INTERPOLATIONS[transform.interpolation], mean=mean, std=std)


def layers_of(name: str, network: nn.Module) -> Layers:
    """What explanations need, from the family that a name tells."""
    features = last_linear(network)
    if name.startswith("vit"):
        blocks = len(network.get_submodule("encoder.layers")) if hasattr(network, "encoder") else 0  # type: ignore[arg-type]
        return Layers(features, f"encoder.layers.encoder_layer_{blocks - 1}.ln_1", "tokens", 1)
    if name.startswith("vgg"):
        # Before the last pooling, which would halve the map.
        return Layers(features, f"features.{len(network.get_submodule('features')) - 2}", "nchw")  # type: ignore[arg-type]
    family = next((key for key in _MAPS if name.startswith(key)), None)
    known = _MAPS[family] if family else Layers()
    return Layers(features, known.explanation, known.layout)
