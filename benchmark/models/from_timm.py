"""`timm:NAME` and `timm:NAME@FILE`: models of timm with their own preprocessing."""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from annotations.errors import BeyondError
from benchmark.classifier import Classifier
from benchmark.models import hub
from benchmark.models.assemble import Layers, assemble
from benchmark.models.names import nearest
from benchmark.models.weights import check_classes, download, load_weights, misfit
from benchmark.preprocessing import Interpolation, Preprocessing

# What of a stranger's `pretrained_cfg` describes the weights. The rest says where to load from: ours to say.
_DESCRIPTIVE = (
    "architecture", "tag", "input_size", "fixed_input_size", "interpolation", "crop_pct", "crop_mode", "mean",
    "std", "num_classes", "pool_size", "first_conv", "classifier", "license",
)  # fmt: skip
# Arguments of timm.create_model that would make it fetch or read something else.
_RESERVED = {
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "scriptable",
    "exportable", "no_jit", "features_only", "model_name", "num_classes", "in_chans",
}  # fmt: skip


def load(rest: str, spec: str, cache_dir: Path | None) -> Classifier:
    """Load `NAME` with its pretrained weights, or `NAME@FILE` with local ones.

    Input size and crop are those of `timm.data.resolve_model_data_config`, so for models that were tested at
    a larger size than trained they are the training ones.

    Raises:
        BeyondError: Unknown name, no weights, not 1000 classes, a preprocessing that cannot be expressed, or
            weights that are unsafe, missing or do not fit.
    """
    name, _, file = rest.partition("@")
    config = config_of(name, spec)
    source = {"timm": timm.__version__}
    if file:
        path = Path(file).expanduser()
        state, source["file"] = load_weights(path), path.name
    else:
        check_classes(config.num_classes, spec)
        if config.hf_hub_id:
            found = hub.weights(config.hf_hub_id, None, cache_dir, filename=config.hf_hub_filename)
            state = found.load()
            source |= {"repository": config.hf_hub_id, "revision": found.revision}
        elif config.url:
            state, source["url"] = load_weights(download(config.url, cache_dir)), config.url
        else:
            raise BeyondError(f"timm has no weights for {name}; give a file: timm:{name}@FILE.safetensors")
    # Every cfg that is used here has, or is about to have, the 1000 classes; untagged ones may say otherwise.
    network = build(name, state, {"num_classes": 1000}, spec)
    return finish(network, spec=spec, name=name, source=source)


def config_of(name: str, spec: str) -> Any:
    """The `PretrainedCfg` of a name, with or without tag.

    Raises:
        BeyondError: timm has no such architecture or no such tag of it.
    """
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        known = timm.list_models(pretrained=True)
        raise BeyondError(nearest(name, [*known, *timm.list_models()], prefix="timm:", what="timm model"))
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:
        config = None
    if config is None and tag:
        known = timm.list_pretrained(f"{architecture}.*") if hasattr(timm, "list_pretrained") else []
        raise BeyondError(nearest(name, list(known), prefix="timm:", what="timm model"))
    if config is None:
        raise BeyondError(
            f"timm does not say how {name} wants its images; load it from FILE.py:FACTORY instead ({spec})"
        )
    return config


def build(
    name: str,
    state: dict[str, torch.Tensor],
    overlay: Mapping[str, Any],
    spec: str,
    *,
    config: Mapping[str, Any] | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Make a network of timm and put weights into it that are in memory already.

    Going through timm's own loading applies its renaming of older checkpoints; handing it tensors keeps it
    from opening any file itself.

    Raises:
        BeyondError: The weights do not fit, or the arguments are none of this architecture.
    """
    classifier = (config or {}).get("classifier") or getattr(
        timm.get_pretrained_cfg(name), "classifier", None
    )
    if isinstance(classifier, str) and (weight := state.get(f"{classifier}.weight")) is not None:
        check_classes(weight.shape[0], spec)
    try:
        network: nn.Module = timm.create_model(
            name,
            pretrained=True,
            pretrained_cfg=dict(config) if config is not None else None,
            pretrained_cfg_overlay={**overlay, "state_dict": dict(state), "source": ""},
            **(arguments or {}),
        )
    except (RuntimeError, KeyError, TypeError, ValueError, AssertionError) as error:
        raise misfit(spec, error) from error
    # The tensors served their purpose; kept in the cfg they would hold the weights twice.
    getattr(network, "pretrained_cfg", {}).pop("state_dict", None)
    return network


def from_config(
    data: Mapping[str, Any],
    state: dict[str, torch.Tensor],
    *,
    spec: str,
    name: str,
    source: Mapping[str, str],
) -> Classifier:
    """Load a timm checkpoint from the Hub: its `config.json` and its weights.

    Of the file's `pretrained_cfg` only what describes the weights is used, never where to load from.

    Raises:
        BeyondError: The architecture or an argument is unknown, or the weights do not fit.
    """
    architecture = data.get("architecture")
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise BeyondError(
            f"{spec} needs the architecture {architecture!r}, unknown to timm {timm.__version__}; update timm"
        )
    given = data.get("pretrained_cfg") or data
    config = {key: given[key] for key in _DESCRIPTIVE if key in given}
    count = data.get("num_classes", config.get("num_classes", 1000))
    check_classes(int(count), spec)
    config |= {"architecture": architecture, "num_classes": 1000}
    arguments = dict(data.get("model_args") or {})
    if unwanted := _RESERVED & set(arguments):
        raise BeyondError(
            f"{spec} is refused: its config.json sets the argument {sorted(unwanted)[0]!r} of the model"
        )
    if isinstance(data.get("global_pool"), str):
        arguments.setdefault("global_pool", data["global_pool"])
    network = build(architecture, state, {}, spec, config=config, arguments=arguments)
    return finish(network, spec=spec, name=name, source={**source, "timm": timm.__version__})


def finish(network: nn.Module, *, spec: str, name: str, source: Mapping[str, str]) -> Classifier:
    """Read preprocessing, layers and licence off a network of timm, and assemble the classifier."""
    data: Any = timm.data
    return assemble(
        network,
        preprocessing_of(data.resolve_model_data_config(network), spec),
        spec=spec,
        name=name,
        source=source,
        layers=layers_of(network),
        # The cfg speaks of the published weights, not of local ones.
        licence="" if "file" in source else str(getattr(network, "pretrained_cfg", {}).get("license") or ""),
    )


def preprocessing_of(data: Mapping[str, Any], spec: str) -> Preprocessing:
    """Express timm's evaluation transform (`timm.data.transforms_imagenet_eval`) as a `Preprocessing`.

    Args:
        data: `input_size` (C, H, W), `crop_pct`, `crop_mode`, `interpolation`, `mean`, `std`.
        spec: What to call the model in messages.

    Raises:
        BeyondError: The transform pads with a border, is not square, or uses a filter that Pillow has not.
    """
    channels, height, width = data["input_size"]
    if channels != 3:
        raise BeyondError(f"{spec} takes {channels} channels; only RGB models can be scored")
    scaled = math.floor(height / data["crop_pct"]), math.floor(width / data["crop_pct"])
    mode = data.get("crop_mode") or "center"
    resize: int | tuple[int, int]
    if mode == "squash":
        resize = scaled
    elif mode == "center" and height == width:
        resize = scaled[0]
    else:
        how = f"crop mode {mode!r}" if mode != "center" else f"a {height}×{width} crop that keeps the aspect"
        raise BeyondError(
            f"{spec} prepares images with {how}, which is not supported; load it from FILE.py:FACTORY"
        )
    interpolation = data["interpolation"]
    if interpolation not in typing.get_args(Interpolation):
        raise BeyondError(
            f"{spec} resizes with the filter {interpolation!r}, which Pillow has not; use FILE.py:FACTORY"
        )
    mean, std = (tuple(float(v) for v in data[key]) for key in ("mean", "std"))
    if len(mean) != 3 or len(std) != 3:
        raise BeyondError(f"{spec} gives mean and std of {len(mean)} channels instead of 3")
    return Preprocessing((height, width), resize, interpolation, mean=mean, std=std)


def layers_of(network: nn.Module) -> Layers:
    """What explanations need, as far as timm's structure tells."""
    name = getattr(network, "pretrained_cfg", {}).get("classifier")
    features = name if isinstance(name, str) else None
    blocks, prefix = getattr(network, "blocks", None), getattr(network, "num_prefix_tokens", None)
    if isinstance(blocks, nn.Sequential | nn.ModuleList) and isinstance(prefix, int) and len(blocks):
        # Attention mixes the tokens after this norm; past the last block a class token has no gradient
        # with respect to the patch tokens, so Grad-CAM would see nothing.
        return Layers(features, f"blocks.{len(blocks) - 1}.norm1", "tokens", prefix)
    if hasattr(network, "conv_head") and hasattr(network, "bn2"):
        # EfficientNets end in a convolution after the last block (MobileNetV3 has it after the pooling).
        return Layers(features, "bn2", "nchw")
    info = getattr(network, "feature_info", None)
    info = getattr(info, "info", info)
    last_stage = info[-1].get("module") if isinstance(info, list) and info else None
    # timm marks networks whose grids are channels-last; what it does not mark is NCHW.
    layout = str(getattr(network, "output_fmt", "NCHW")).lower()
    if not isinstance(last_stage, str) or layout not in ("nchw", "nhwc"):
        return Layers(features)
    return Layers(features, last_stage, "nhwc" if layout == "nhwc" else "nchw")
