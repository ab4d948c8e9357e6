"""Which classifiers can be loaded here without a network, and which names exist at all."""

from __future__ import annotations

import fnmatch
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.models import embedded
from benchmark.models.weights import checkpoint_folder


@dataclass(frozen=True)
class Available:
    """A classifier that can be named.

    Attributes:
        spec: Its spec string.
        parameters: Number of weights, None where finding out is not cheap.
        input_size: Side of its input in pixels, None where finding out is not cheap.
        where: What holds the weights: a package, or a cache; empty if they have to be fetched.
    """

    spec: str
    parameters: int | None
    input_size: int | None
    where: str


def offline(cache_dir: Path | None = None) -> list[Available]:
    """What loads here without a network, sorted by source: packages, timm, torchvision, the Hub.

    Args:
        cache_dir: Where downloads are kept, as for `benchmark.models.load`.
    """
    return [*_packages(), *_checkpoints(cache_dir), *_hub(cache_dir)]


def matching(pattern: str) -> list[Available]:
    """Every classifier of 1000 classes that a library has weights for and whose name matches.

    Args:
        pattern: Shell-style, e.g. `resnet50*`; without a wildcard, any name that contains it.
    """
    if not any(sign in pattern for sign in "*?["):
        pattern = f"*{pattern}*"
    return [
        item
        for item in (*_packages(), *_timm_names(), *_torchvision_names())
        if fnmatch.fnmatchcase(item.spec.rpartition(":")[2], pattern)
    ]


def _packages() -> Iterator[Available]:
    import timm
    import torch

    for name in embedded.MODELS:
        if embedded.is_installed(name):
            with torch.device("meta"):
                network = timm.create_model(f"tf_{name.replace('-', '_')}", pretrained=False)
            parameters = sum(p.numel() for p in network.parameters())
            yield Available(name, parameters, embedded.MODELS[name][1], "package")


def _timm_configs() -> Iterator[tuple[str, Any]]:
    import timm

    for name in timm.list_models(pretrained=True):
        config = timm.get_pretrained_cfg(name)
        if config is not None and config.num_classes == 1000:
            yield name, config


def _timm_names() -> Iterator[Available]:
    for name, config in _timm_configs():
        yield Available(f"timm:{name}", None, config.input_size[-1], "")


def _torchvision_members() -> Iterator[tuple[str, Any]]:
    from benchmark.models import from_torchvision

    for name in from_torchvision.names():
        for member in from_torchvision.weights_of(name):
            if member.meta.get("categories") is not None:
                yield f"torchvision:{name}@{member.name}", member


def _torchvision_names() -> Iterator[Available]:
    for spec, member in _torchvision_members():
        yield Available(spec, member.meta.get("num_params"), member.transforms().crop_size[0], "")


def _checkpoints(cache_dir: Path | None) -> Iterator[Available]:
    """What lies in torch hub's folder under the name that a library gives it."""
    folder = checkpoint_folder(cache_dir)
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not present:
        return
    for name, config in _timm_configs():
        # timm takes the Hub's copy where there is one; this is for the few that have only a URL.
        if not config.hf_hub_id and config.url and config.url.rpartition("/")[2] in present:
            yield Available(f"timm:{name}", None, config.input_size[-1], "torch hub cache")
    for spec, member in _torchvision_members():
        if member.url.rpartition("/")[2] in present:
            size = member.transforms().crop_size[0]
            yield Available(spec, member.meta.get("num_params"), size, "torch hub cache")


def _hub(cache_dir: Path | None) -> Iterator[Available]:
    """What the Hub's cache holds with weights: timm's own models under timm's names, others as hf: specs."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir(cache_dir).repos
    except (CacheNotFound, ValueError):
        return
    timms = {config.hf_hub_id: (name, config) for name, config in _timm_configs() if config.hf_hub_id}
    for repository in sorted(repositories, key=lambda item: item.repo_id):
        if repository.repo_type != "model":
            continue
        for revision in repository.revisions:
            if not revision.refs:
                continue
            files = {file.file_name: Path(file.file_path) for file in revision.files}
            weights = files.get("model.safetensors") or files.get("pytorch_model.bin")
            if weights is None:
                continue
            parameters = count_parameters(weights) if weights.suffix == ".safetensors" else None
            known = timms.get(repository.repo_id)
            if known is not None and "main" in revision.refs:
                yield Available(f"timm:{known[0]}", parameters, known[1].input_size[-1], "Hub cache")
            elif (size := classifier_size(files.get("config.json"))) is not None:
                at = "" if "main" in revision.refs else f"@{sorted(revision.refs)[0]}"
                yield Available(f"hf:{repository.repo_id}{at}", parameters, size or None, "Hub cache")


def count_parameters(path: Path) -> int | None:
    """Number of values in a safetensors file, from its header alone; None if it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            shapes: list[list[int]] = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
            return sum(math.prod(shape) for shape in shapes)
    except (SafetensorError, OSError):
        return None


def classifier_size(config: Path | None) -> int | None:
    """Input size that a `config.json` gives (0 if none), or None if it is no classifier of 1000 classes."""
    if config is None:
        return None
    try:
        data = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(data, dict) or "auto_map" in data:
        return None
    if "architecture" in data:
        given = data.get("pretrained_cfg") or data
        count, size = (
            data.get("num_classes", given.get("num_classes", 1000)),
            given.get("input_size", [0])[-1],
        )
    elif any("ImageClassification" in str(name) for name in data.get("architectures") or []):
        count, size = len(data.get("id2label") or ()), data.get("image_size", 0)
    else:
        return None
    return int(size) if count == 1000 and isinstance(size, int) else None
