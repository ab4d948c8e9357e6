"""`hf:ORG/NAME[@REVISION]`: timm and transformers image classifiers on the Hub, never remote code."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from annotations.classes import class_names, package_file, wnids
from annotations.errors import BeyondError, one_line
from benchmark.classifier import Classifier
from benchmark.models import hub
from benchmark.models.assemble import Layers, assemble, last_linear
from benchmark.models.weights import check_classes, misfit
from benchmark.preprocessing import Interpolation, Preprocessing

# PIL.Image.Resampling, as transformers stores it.
_RESAMPLING: dict[int, Interpolation] = {
    0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming",
}  # fmt: skip


class Logits(nn.Module):
    """A transformers classifier that takes pixels and returns its logits alone.

    Attributes:
        bgr: The network wants its channels in the order blue, green, red.
    """

    def __init__(self, network: nn.Module, *, bgr: bool = False) -> None:
        super().__init__()
        self.network, self.bgr = network, bgr

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes) of normalised images (N, 3, H, W)."""
        logits: torch.Tensor = self.network(pixel_values=x.flip(1) if self.bgr else x).logits
        return logits


def load(rest: str, spec: str, cache_dir: Path | None) -> Classifier:
    """Load an image classifier from the Hub.

    The revision is resolved to a commit once; every further file comes from that commit, which `source`
    records.

    Raises:
        BeyondError: See `benchmark.models.hub.file`; or the repository brings its own code, is no image
            classifier of 1000 classes, or prepares images in a way that cannot be expressed.
    """
    repository, _, revision = rest.partition("@")
    config_path = hub.optional_file(repository, "config.json", revision or None, cache_dir)
    if config_path is None:
        raise BeyondError(f"{spec} has no config.json, so it is neither a timm nor a transformers model")
    commit = config_path.parent.name
    config = hub.read_json(config_path)
    _refuse_code(config, "config.json", spec)
    name = repository.rpartition("/")[2]
    source = {"repository": repository, "revision": commit}
    # timm's own format names an architecture of timm; transformers' names classes under `architectures`.
    if "architecture" in config and "architectures" not in config:
        from benchmark.models import from_timm

        state = hub.weights(repository, commit, cache_dir).load()
        return from_timm.from_config(config, state, spec=spec, name=name, source=source)
    return _transformers(repository, commit, config, spec, name, source, cache_dir)


def _refuse_code(data: Mapping[str, Any], where: str, spec: str) -> None:
    """Refuse a repository whose configuration points at code of its own.

    Raises:
        BeyondError: It does.
    """
    if "auto_map" in data:
        raise BeyondError(
            f"{spec} is refused: its {where} has an auto_map, so it needs code from the repository, which is "
            "never run; write FILE.py:FACTORY with code that you have read"
        )


def _transformers(
    repository: str,
    commit: str,
    config: Mapping[str, Any],
    spec: str,
    name: str,
    source: Mapping[str, str],
    cache_dir: Path | None,
) -> Classifier:
    if importlib.util.find_spec("transformers") is None:
        raise BeyondError(f"{spec} needs transformers; install it with: pip install 'beyond-accuracy[hf]'")
    if "quantization_config" in config:
        raise BeyondError(
            f"{spec} is quantised, which has no gradients; choose the full-precision repository"
        )
    labels = config.get("id2label")
    check_classes(len(labels) if isinstance(labels, dict) else int(config.get("num_labels", 2)), spec)
    if isinstance(labels, dict):
        check_label_order({int(key): str(value) for key, value in labels.items()}, spec)
    processor_path = hub.optional_file(repository, "preprocessor_config.json", commit, cache_dir)
    if processor_path is None:
        raise BeyondError(f"{spec} has no preprocessor_config.json, so how it wants its images is unknown")
    _refuse_code(hub.read_json(processor_path), "preprocessor_config.json", spec)
    found = hub.weights(repository, commit, cache_dir)
    preprocessing, bgr = read_processor(processor_path.parent, spec)
    network = _build(processor_path.parent, found.load(), spec)
    model_type = str(config.get("model_type", ""))
    layers = layers_of(model_type, network)
    return assemble(
        Logits(network, bgr=bgr),
        preprocessing,
        spec=spec,
        name=name,
        source={**source, "transformers": importlib.metadata.version("transformers")},
        layers=Layers(
            layers.features and f"network.{layers.features}",
            layers.explanation and f"network.{layers.explanation}",
            layers.layout,
            layers.prefix_tokens,
        ),
    )


def _build(folder: Path, state: dict[str, torch.Tensor], spec: str) -> nn.Module:
    """Make a network of transformers and put weights into it that are in memory already."""
    transformers: Any = importlib.import_module("transformers")
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
        with torch.device("meta"):
            shell = transformers.AutoModelForImageClassification.from_config(
                config, trust_remote_code=False, attn_implementation="eager"
            )
        # A config may name an attention kernel in yet another repository; eager is transformers' own.
        network, report = type(shell).from_pretrained(
            None,
            config=config,
            state_dict=state,
            attn_implementation="eager",
            torch_dtype=torch.float32,
            output_loading_info=True,
        )
    except (ValueError, KeyError, TypeError, RuntimeError, ImportError, AttributeError) as error:
        raise misfit(spec, error) from error
    if report.get("mismatched_keys") or report.get("missing_keys"):
        name = next(iter([*report.get("missing_keys", ()), *report.get("mismatched_keys", ())]))
        raise BeyondError(
            f"{spec} lacks weights for {name}, which would be random; it is not a finished classifier"
        )
    result: nn.Module = network
    return result


def check_label_order(labels: Mapping[int, str], spec: str) -> None:
    """Refuse 1000 named classes that are other classes, or ILSVRC2012's in another order.

    Names such as LABEL_3 say nothing and pass; spelling may differ, so half of the names must agree.

    Raises:
        BeyondError: They do not.
    """
    said = [labels.get(index, "") for index in range(1000)]
    if all(re.fullmatch(r"LABEL_\d+|\d+|", label) for label in said):
        return
    known = _synonyms()
    mine = [_words(label) for label in said]
    agree = sum(bool(a & b) for a, b in zip(mine, known))
    if agree >= 500:
        return
    anywhere = set().union(*known)
    if sum(bool(label & anywhere) for label in mine) >= 500:
        raise BeyondError(
            f"{spec} lists its classes in another order than ILSVRC2012 (its class 0 is {said[0]!r}); "
            "reorder its outputs in FILE.py:FACTORY"
        )
    raise BeyondError(
        f"{spec} knows other classes than ILSVRC2012 (its class 0 is {said[0]!r}); choose another model"
    )


def _synonyms() -> list[set[str]]:
    """For each class: its WordNet id, its WordNet lemmas and its short name."""
    text = package_file("timm", "data", "_info", "imagenet_synset_to_lemma.txt").read_text(encoding="utf-8")
    lemmas = dict(line.split("\t", 1) for line in text.splitlines() if "\t" in line)
    return [
        _words(f"{wnid}, {lemmas.get(wnid, '')}, {re.sub(r' [(][0-9]+[)]$', '', name)}")
        for wnid, name in zip(wnids(), class_names())
    ]


def _words(label: str) -> set[str]:
    return {part.strip().lower().replace("_", " ") for part in label.split(",")} - {""}


def read_processor(folder: Path, spec: str) -> tuple[Preprocessing, bool]:
    """Express the image processor of a repository as a `Preprocessing`.

    transformers itself reads the file, so that defaults and older spellings are filled in as it fills them.

    Args:
        folder: Holds preprocessor_config.json.
        spec: What to call the model in messages.

    Returns:
        The preprocessing, and whether the network wants blue, green, red.

    Raises:
        BeyondError: The processor is of a kind with steps that cannot be expressed.
    """
    transformers: Any = importlib.import_module("transformers")
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except (ValueError, KeyError, TypeError, OSError, ImportError) as error:
        reason = one_line(error, 160)
        raise BeyondError(
            f"{spec} has an image processor that transformers cannot read ({reason})"
        ) from error
    kind = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", type(processor).__name__)
    if kind not in PROCESSORS:
        raise BeyondError(
            f"{spec} prepares images with {kind}'s own steps, which are not supported; use FILE.py:FACTORY"
        )
    said = processor.to_dict()

    def size_of(key: str) -> int | tuple[int, int]:
        value = said.get(key)
        if isinstance(value, int):
            return value
        value = value or {}
        if value.get("shortest_edge") and not value.get("longest_edge"):
            return int(value["shortest_edge"])
        if value.get("height") and value.get("width"):
            return int(value["height"]), int(value["width"])
        raise BeyondError(f"{spec} has an image processor with the {key} {value}, which is not supported")

    resize = size_of("size") if said.get("do_resize") else None
    crop = size_of("crop_size") if said.get("do_center_crop") else None
    resize, crop = PROCESSORS[kind](said, resize, crop)
    final = crop if crop is not None else resize
    if isinstance(final, int) and crop is not None:
        final = (final, final)
    if not isinstance(final, tuple):
        raise BeyondError(
            f"{spec} has an image processor that gives images of varying size, which is not supported"
        )
    if not said.get("do_rescale") or abs(float(said.get("rescale_factor", 0)) * 255 - 1) > 1e-3:
        raise BeyondError(
            f"{spec} does not scale pixels to [0, 1], which is not supported; use FILE.py:FACTORY"
        )
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if said.get("do_normalize"):
        mean, std = _three(said["image_mean"]), _three(said["image_std"])
    if said.get("include_top"):
        # EfficientNet's port divides by std once more.
        std = _three([value * value for value in std])
    bgr = bool(said.get("do_flip_channel_order"))
    if bgr and said.get("do_normalize"):
        raise BeyondError(
            f"{spec} flips channels and normalises, whose order is not defined; use FILE.py:FACTORY"
        )
    filter_number = int(said.get("resample", 2))
    return Preprocessing(final, resize, _RESAMPLING[filter_number], mean=mean, std=std), bgr


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = [float(values)] * 3 if isinstance(values, int | float) else map(float, values)
    return red, green, blue


_Size = int | tuple[int, int] | None
_Rule = Callable[[Mapping[str, Any], _Size, _Size], tuple[_Size, _Size]]


def _as_said(said: Mapping[str, Any], resize: _Size, crop: _Size) -> tuple[_Size, _Size]:  # noqa: ARG001
    return resize, crop


def _convnext(said: Mapping[str, Any], resize: _Size, crop: _Size) -> tuple[_Size, _Size]:
    if not isinstance(resize, int):
        return resize, crop
    if resize >= 384:  # its own rule: large inputs are squeezed instead of cropped
        return (resize, resize), crop
    return int(resize / said.get("crop_pct", 224 / 256)), (resize, resize)


def _poolformer(said: Mapping[str, Any], resize: _Size, crop: _Size) -> tuple[_Size, _Size]:
    share = said.get("crop_pct")
    if resize is None or share is None:
        return resize, crop
    if isinstance(resize, tuple):
        return (int(resize[0] / share) if resize[0] == resize[1] else resize), crop
    return int(resize / share), crop


def _levit(said: Mapping[str, Any], resize: _Size, crop: _Size) -> tuple[_Size, _Size]:  # noqa: ARG001
    return (int(256 / 224 * resize) if isinstance(resize, int) else resize), crop


# Kind of image processor to how its sizes become resize and crop. Other kinds have steps of their own.
PROCESSORS: dict[str, _Rule] = {
    **dict.fromkeys(
        (
            "Beit",
            "Bit",
            "CLIP",
            "DeiT",
            "EfficientNet",
            "MobileNetV1",
            "MobileNetV2",
            "MobileViT",
            "Pvt",
            "Siglip",
            "ViT",
        ),
        _as_said,
    ),
    "ConvNext": _convnext,
    "Levit": _levit,
    "PoolFormer": _poolformer,
}


def layers_of(model_type: str, network: nn.Module) -> Layers:
    """What explanations need, for the families whose structure is known."""
    features = last_linear(network)
    base = getattr(network, str(getattr(network, "base_model_prefix", "")), network)
    prefix = f"{network.base_model_prefix}." if base is not network else ""

    def last(pattern: str) -> str | None:
        """The last module inside the base model whose dotted name matches."""
        found = [name for name, _ in base.named_modules() if re.fullmatch(pattern, name)]
        return f"{prefix}{found[-1]}" if found else None

    if model_type in ("vit", "deit"):
        # See from_timm.layers_of: past the last block, patch tokens have no gradient.
        return Layers(
            features,
            last(r"(?:encoder\.)?layers?\.\d+\.layernorm_before"),
            "tokens",
            2 if model_type == "deit" else 1,
        )
    if model_type in ("resnet", "regnet", "convnext", "convnextv2"):
        return Layers(features, last(r"encoder\.stages\.\d+"), "nchw")
    return Layers(features)
