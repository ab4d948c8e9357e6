"""Loading classifiers: one spec string, one registry of sources, one contract (`benchmark.classifier`).

Importing this package imports no torch; loading does.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from annotations.errors import BeyondError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from benchmark.classifier import Classifier

__all__ = ["EMBEDDED", "SOURCES", "Source", "fingerprint", "load", "load_weights"]

EMBEDDED = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")


@dataclass(frozen=True)
class Source:
    """Where classifiers come from.

    Attributes:
        pattern: What a whole spec of this source looks like; its first group is handed to the loader.
        loader: `module:function`, called with that group, the spec, and the cache folder or None.
        form: How to write such a spec.
        about: What it loads, in a line.
    """

    pattern: re.Pattern[str]
    loader: str
    form: str
    about: str


# A new source is one entry here and one module with a `load` of the same form.
SOURCES: dict[str, Source] = {
    "embedded": Source(
        re.compile(f"({'|'.join(EMBEDDED)})"),
        "benchmark.models.embedded:load",
        "efficientnet-lite0",
        "weights that pip packages ship (also lite1, lite2)",
    ),
    "timm": Source(
        re.compile(r"timm:(.+)", re.DOTALL),
        "benchmark.models.from_timm:load",
        "timm:NAME or timm:NAME@FILE.safetensors",
        "timm's pretrained models, or local weights in one of its architectures",
    ),
    "torchvision": Source(
        re.compile(r"torchvision:(.+)", re.DOTALL),
        "benchmark.models.from_torchvision:load",
        "torchvision:NAME[@WEIGHTS] or torchvision:NAME@FILE.pth",
        "torchvision's models, or local weights in one of its architectures",
    ),
    "hf": Source(
        re.compile(r"hf:(.+)", re.DOTALL),
        "benchmark.models.from_hub:load",
        "hf:ORG/NAME[@REVISION]",
        "timm or transformers image classifiers on the Hugging Face Hub",
    ),
    "file": Source(
        re.compile(r"(.+\.py:[A-Za-z_]\w*)"),
        "benchmark.models.from_file:load",
        "path/to/file.py:factory",
        "your own code: a callable that returns a Classifier or (network, Preprocessing)",
    ),
}


def load(spec: str, *, cache_dir: Path | None = None) -> Classifier:
    """Load a classifier from its spec string.

    Args:
        spec: One of the forms in `SOURCES`.
        cache_dir: Where downloads are kept; None is each library's own cache.

    Returns:
        The classifier: in eval mode, on the CPU, in float32, checked to give 1000 logits.

    Raises:
        BeyondError: The spec is unknown, the model cannot be fetched, its weights are unsafe or do not fit,
            or it is no classifier of ILSVRC2012's 1000 classes.
    """
    for source in SOURCES.values():
        if match := source.pattern.fullmatch(spec):
            module, _, function = source.loader.partition(":")
            loader: Callable[[str, str, Path | None], Classifier]
            loader = getattr(importlib.import_module(module), function)
            return loader(match.group(1), spec, cache_dir)
    raise BeyondError(_unknown(spec))


def _unknown(spec: str) -> str:
    kind, colon, rest = spec.partition(":")
    if kind.endswith(".py"):
        return f"{spec!r} names no factory; write path/to/file.py:factory"
    if colon and kind in SOURCES:
        return f"{spec!r} lacks a name; write {SOURCES[kind].form}"
    if colon and (near := difflib.get_close_matches(kind, SOURCES, n=1)):
        return f"no such model {spec!r}; did you mean {near[0] + colon + rest!r}?"
    if not colon and (near := difflib.get_close_matches(spec, EMBEDDED, n=1, cutoff=0.8)):
        return f"no such model {spec!r}; did you mean {near[0]!r}?"
    if not colon and re.fullmatch(r"[\w.-]+/[\w.@-]+", spec):
        return f"no such model {spec!r}; from the Hub it is 'hf:{spec}'"
    if not colon and re.fullmatch(r"[\w.]+", spec):
        return f"no such model {spec!r}; did you mean 'timm:{spec}' or 'torchvision:{spec}'?"
    return f"no such model {spec!r}; write {', '.join(source.form for source in SOURCES.values())}"


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a file of weights without running anything in it; see `benchmark.models.weights.load_weights`."""
    from benchmark.models.weights import load_weights as implementation

    return implementation(path)


def fingerprint(module: nn.Module) -> str:
    """SHA-256 that pins a module's weights; see `benchmark.models.weights.fingerprint`."""
    from benchmark.models.weights import fingerprint as implementation

    return implementation(module)
