"""Weights as plain tensors: loading without running anyone's code, fetching by URL, and fingerprints."""

from __future__ import annotations

import hashlib
import pickle
import re
import sys
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlsplit

import torch
from torch import nn

from annotations.errors import BeyondError, one_line

# Where training scripts put the weights inside a checkpoint, best first: averaged weights are published.
_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model")
# torch.hub's convention: `resnet50-0676ba61.pth` names the start of the file's SHA-256.
_HASH_IN_NAME = re.compile(r"-([a-f0-9]{8,})\.")


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a file of weights as tensors on the CPU; nothing in it can run.

    `.safetensors` is read by safetensors, everything else by `torch.load(weights_only=True)`, which rebuilds
    tensors and containers only. There is no other way in.

    Args:
        path: File of weights: a state dict, or a checkpoint that holds one under `state_dict`, `model`, or
            their averaged (`_ema`) forms. A `module.` prefix (from DataParallel) is dropped.

    Raises:
        BeyondError: The file is missing, damaged, holds no weights, or holds pickled objects.
    """
    if not path.is_file():
        raise BeyondError(f"no file of weights at {path}; check the path")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for key in _NESTED:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(v, torch.Tensor) for v in state.values())
    ):
        raise BeyondError(
            f"{path} holds no state dict (names to tensors); save one with torch.save(model.state_dict())"
        )
    if all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): tensor for name, tensor in state.items()}
    # Returned as it is: torch keeps versions of modules in an attribute of it, and some modules need them.
    return state


def _read_safetensors(path: Path) -> object:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise BeyondError(f"{path} is not a sound safetensors file ({error}); get it again") from error


def _read_torch(path: Path) -> object:
    path.open("rb").close()  # what the system refuses is not what the file is to blame for
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        what = re.search(r"(?:GLOBAL|function|class) (\S+)", str(error))
        named = f" ({what.group(1)})" if what else ""
        raise BeyondError(
            f"{path} is refused: it holds pickled Python objects{named}, which could run any code; "
            "convert the weights to safetensors where you trust the file"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # malformed bytes make torch's readers raise nearly anything
        reason = one_line(error, 120)
        raise BeyondError(
            f"{path} cannot be read as weights ({reason}); get it again, or save it as safetensors"
        ) from error


def check_classes(count: int, where: str) -> None:
    """Refuse a classifier that has not the 1000 classes of ILSVRC2012.

    Args:
        count: Number of outputs.
        where: What to call the model in the message.

    Raises:
        BeyondError: `count` is not 1000.
    """
    if count == 1001:
        raise BeyondError(
            f"{where} has 1001 outputs: TensorFlow's convention puts a background class first; "
            "wrap it in FILE.py:FACTORY that drops output 0"
        )
    if count != 1000:
        raise BeyondError(
            f"{where} has {count} outputs instead of the 1000 classes of ILSVRC2012; use a model trained or "
            "fine-tuned on ImageNet-1k"
        )


def load_into(network: nn.Module, state: dict[str, torch.Tensor], where: str) -> None:
    """Load a state dict strictly, or say in one line what does not fit.

    Raises:
        BeyondError: A tensor is missing, left over, or of another shape.
    """
    try:
        network.load_state_dict(state, strict=True)
    except (RuntimeError, ValueError) as error:
        raise misfit(where, error) from error


def misfit(where: str, error: Exception) -> BeyondError:
    """The one-line form of torch's many-line report on weights that do not fit."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    detail = (lines[1] if len(lines) > 1 else lines[0] if lines else type(error).__name__)[:160]
    return BeyondError(
        f"{where}: the weights do not fit the architecture ({detail}); check the name and the file"
    )


def download(url: str, cache_dir: Path | None) -> Path:
    """The file behind a URL, from torch hub's cache if there; new files must have the hash they name.

    Args:
        url: Where the file is.
        cache_dir: Folder for `checkpoints/`; None is torch hub's own.

    Raises:
        BeyondError: It cannot be fetched, or its bytes do not have the hash that its name carries.
    """
    folder = checkpoint_folder(cache_dir)
    path = folder / Path(urlsplit(url).path).name
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    match = _HASH_IN_NAME.search(path.name)
    try:
        torch.hub.download_url_to_file(
            url, str(path), match.group(1) if match else None, progress=sys.stderr.isatty()
        )
    except RuntimeError as error:
        raise BeyondError(f"{url} arrived damaged ({error}); try again") from error
    except URLError as error:
        raise BeyondError(
            f"cannot fetch {url} ({error.reason}); check the network, or put the file into {folder}"
        ) from error
    return path


def checkpoint_folder(cache_dir: Path | None) -> Path:
    """Where files fetched by URL are kept: torch hub's folder, or `checkpoints/` in `cache_dir`."""
    return (cache_dir if cache_dir is not None else Path(torch.hub.get_dir())) / "checkpoints"


def fingerprint(module: nn.Module) -> str:
    """SHA-256 that pins a module's parameters and persistent buffers.

    It covers name, dtype, shape and bytes of every tensor of the state dict, sorted by name, so it does not
    depend on the device, on strides, or on the order in which layers were made.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> before = fingerprint(layer)
        >>> with torch.no_grad():
        ...     _ = layer.bias.add_(1)
        >>> fingerprint(layer) == before
        False
    """
    digest = hashlib.sha256()
    state = module.state_dict()
    for name in sorted(state):
        tensor = state[name]
        if not isinstance(tensor, torch.Tensor):
            continue
        plain = tensor.detach().cpu().contiguous()
        # Lengths are part of what is hashed, so that no two states run together into the same bytes.
        digest.update(f"{len(name)}:{name} {plain.dtype} {tuple(plain.shape)} {plain.nbytes}\n".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
