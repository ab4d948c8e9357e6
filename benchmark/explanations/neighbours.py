"""Penultimate features, and the nearest reference images of a class in them.

```
RUN/features/features.npy     float32 (N, D), read through a memory map
RUN/features/ids.npy          the image of each row
RUN/features/features.json    which model, layer and images, and the checksums of the two files
```
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from annotations.errors import BeyondError, one_line
from benchmark.classifier import Classifier
from benchmark.decoding import DecodedBatch
from benchmark.models.assemble import last_linear

FEATURES = "features"
FEATURES_VERSION = 1

_MATRIX, _IDS, _INFO = "features.npy", "ids.npy", "features.json"
_HEADER_BYTES = 128

Matrix = npt.NDArray[np.float32]


class FeaturesInfo(BaseModel):
    """What `features.json` holds."""

    model_config = ConfigDict(extra="forbid")

    features_version: int = FEATURES_VERSION
    weights_sha256: str = Field(description="The model's weights (see benchmark.models.fingerprint).")
    layer: str = Field(description="Layer whose input the features are.")
    images: str = Field(description="Fingerprint of the image set.")
    rows: int
    columns: int
    sha256: dict[str, str] = Field(description="Checksum of each file.")
    versions: dict[str, str]


@dataclass(frozen=True)
class Features:
    """Penultimate features of a set of images.

    Attributes:
        image_ids: str (N,), unique, in the order of the rows.
        matrix: float32 (N, D); usually a memory map, of which only what is read takes memory.
        info: Where they come from, or None for features that are in no file.
    """

    image_ids: npt.NDArray[np.str_]
    matrix: Matrix
    info: FeaturesInfo | None = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.image_ids)


@dataclass(frozen=True)
class Neighbours:
    """The nearest reference images of Q queries.

    Attributes:
        rows: int64 (Q, k), rows of the features, nearest first; −1 where a class has fewer than k references.
        similarity: float64 (Q, k), cosine in [−1, 1]; NaN where there is no neighbour.
        image_ids: object (Q, k) of str; empty where there is no neighbour.
    """

    rows: npt.NDArray[np.int64]
    similarity: npt.NDArray[np.float64]
    image_ids: npt.NDArray[np.object_]


# ------------------------------------------------------------------------------------------------- extraction


def feature_layer(classifier: Classifier) -> str:
    """The layer whose input is the penultimate features: named, or the last linear one with 1000 outputs.

    Raises:
        BeyondError: There is none.
    """
    name = classifier.feature_layer or last_linear(classifier.module)
    if name is None:
        raise BeyondError(
            f"{classifier.name} names no feature_layer and ends in no linear layer, so it has no penultimate "
            "features; name feature_layer in the Classifier of FILE.py:FACTORY"
        )
    return name


def penultimate(classifier: Classifier, x: torch.Tensor, *, layer: str | None = None) -> torch.Tensor:
    """Penultimate features of a batch: the input of `feature_layer`.

    Args:
        classifier: In eval mode, on the device of `x`.
        x: float (N, 3, H, W) in [0, 1].
        layer: From `feature_layer`, which is asked if this is None.

    Returns:
        float32 (N, D), on the device of `x`.

    Raises:
        BeyondError: The layer does not run exactly once, its input is not one vector an image, or not finite.
    """
    name = layer or feature_layer(classifier)
    seen: list[object] = []

    def look(_: nn.Module, inputs: tuple[object, ...]) -> None:
        seen.append(inputs[0] if inputs else None)

    try:
        handle = classifier.module.get_submodule(name).register_forward_pre_hook(look)
    except AttributeError:
        raise BeyondError(f"{classifier.name} has no layer {name}; correct its feature_layer") from None
    try:
        with torch.no_grad():
            classifier(x)
    finally:
        handle.remove()
    features = seen[0] if len(seen) == 1 else None
    shape = features.shape if isinstance(features, torch.Tensor) else ()
    if not isinstance(features, torch.Tensor) or len(shape) < 2 or math.prod(shape) != len(x) * shape[1]:
        raise BeyondError(
            f"{classifier.name}: the input of layer {name} has shape {tuple(shape)} for {len(x)} images, not "
            "one vector for each; correct its feature_layer"
        )
    if not bool(torch.isfinite(features).all()):
        raise BeyondError(f"{classifier.name} gives NaN or infinite features; they cannot be compared")
    return features.flatten(1).float()


def write_features(
    run: Path,
    classifier: Classifier,
    batches: Iterable[DecodedBatch],
    *,
    images: str,
    on_batch: Callable[[DecodedBatch], None] | None = None,
) -> Features:
    """Extract the features of images into `RUN/features`, replacing what is there. The run must be locked.

    Rows are written as they come, so memory does not grow with their number. The folder appears whole or not
    at all.

    Args:
        run: The run's folder.
        classifier: In eval mode; runs where its parameters are.
        batches: From `benchmark.decoding.Decoder`; images that failed to decode have no row.
        images: Fingerprint of the image set.
        on_batch: Called after each batch, for progress.

    Raises:
        BeyondError: See `penultimate`; or an id comes twice, or there is no image at all.
    """
    layer = feature_layer(classifier)
    device = next((p.device for p in classifier.module.parameters()), torch.device("cpu"))
    for stale in run.glob(f".{FEATURES}.*.tmp"):
        shutil.rmtree(stale, ignore_errors=True)
    temporary = run / f".{FEATURES}.{os.getpid()}.tmp"
    temporary.mkdir(parents=True)
    ids: list[str] = []
    columns = 0
    try:
        with (temporary / _MATRIX).open("wb") as file:
            file.write(bytes(_HEADER_BYTES))
            for batch in batches:
                if len(batch):
                    x = torch.from_numpy(batch.pixels).permute(0, 3, 1, 2).to(device, torch.float32).div_(255)
                    rows = penultimate(classifier, x, layer=layer).cpu().numpy()
                    columns = columns or rows.shape[1]
                    file.write(np.ascontiguousarray(rows, dtype="<f4").data)
                    ids.extend(batch.image_ids.tolist())
                if on_batch is not None:
                    on_batch(batch)
            if not ids:
                raise BeyondError("there are no images to take features of")
            if len(set(ids)) != len(ids):
                raise BeyondError("an image comes twice; features are kept by id")
            file.seek(0)
            file.write(_npy_header(len(ids), columns))
            file.flush()
            os.fsync(file.fileno())
        np.save(temporary / _IDS, np.array(ids, dtype=np.str_), allow_pickle=False)
        info = FeaturesInfo(
            weights_sha256=classifier.weights_sha256,
            layer=layer,
            images=images,
            rows=len(ids),
            columns=columns,
            sha256={name: _sha256(temporary / name) for name in (_MATRIX, _IDS)},
            versions={name: importlib.metadata.version(name) for name in ("numpy", "torch")},
        )
        (temporary / _INFO).write_text(info.model_dump_json(indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(run / FEATURES, ignore_errors=True)
        temporary.replace(run / FEATURES)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return open_features(run)


def open_features(run: Path, *, weights_sha256: str | None = None, verify: bool = False) -> Features:
    """Open `RUN/features` through a memory map.

    Args:
        run: The run's folder.
        weights_sha256: The weights they must come from; None takes any.
        verify: Read the files once and compare their checksums.

    Raises:
        BeyondError: There are none, they are damaged, or they come from other weights.
    """
    folder = run / FEATURES
    if not (folder / _INFO).is_file():
        raise BeyondError(f"{run} holds no {FEATURES}; make them with: beyond explain {run}")
    again = f"remove {folder} to have them made again"
    try:
        info = FeaturesInfo.model_validate_json((folder / _INFO).read_bytes())
        matrix = np.load(folder / _MATRIX, mmap_mode="r", allow_pickle=False)
        ids = np.load(folder / _IDS, allow_pickle=False)
    except (ValidationError, OSError, ValueError) as error:
        reason = one_line(error, 120)
        raise BeyondError(f"{folder} is damaged ({reason}); {again}") from None
    if matrix.shape != (info.rows, info.columns) or matrix.dtype != np.float32 or ids.shape != (info.rows,):
        raise BeyondError(f"{folder} is damaged (its files do not fit together); {again}")
    if verify:
        for name, digest in info.sha256.items():
            if _sha256(folder / name) != digest:
                raise BeyondError(f"{folder / name} is damaged (checksum); {again}")
    if weights_sha256 is not None and info.weights_sha256 != weights_sha256:
        raise BeyondError(f"{folder} holds features of another model; {again}")
    return Features(ids, matrix, info)


def _npy_header(rows: int, columns: int) -> bytes:
    """Header of an .npy file (format 1.0) of a fixed length, so that it can be written last."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {columns}), }}"
    body = text.encode("latin1").ljust(_HEADER_BYTES - 11) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ----------------------------------------------------------------------------------------------------- search


def nearest(
    queries: npt.NDArray[np.floating],
    classes: npt.NDArray[np.integer],
    references: Features,
    members: Mapping[int, npt.NDArray[np.bool_]],
    *,
    k: int,
    query_ids: Sequence[str] | None = None,
    chunk: int = 4096,
) -> Neighbours:
    """The k reference images of each query's class with the greatest cosine similarity, exactly.

    Similarities are computed in float64, row by row, so a result depends neither on `chunk` nor on the other
    queries; ties go to the smaller id. A class without references has no neighbours. A vector of zeros has
    similarity 0 to everything.

    Args:
        queries: (Q, D), finite.
        classes: int (Q,), the class whose references are searched: the predicted one.
        references: Features of all candidate images.
        members: For each class that occurs, bool (N,): which rows of `references` show it. By original label
            or by accepted set, as the caller decides.
        k: Neighbours of a query.
        query_ids: Ids of the queries; a query is never its own neighbour.
        chunk: Reference rows in memory at a time.

    Raises:
        BeyondError: A class has no mask, dimensions differ, or a number is out of range.
    """
    if k < 1 or chunk < 1:
        raise BeyondError(f"cannot search {k} neighbours in chunks of {chunk}; use at least 1")
    if queries.ndim != 2 or queries.shape[1] != references.matrix.shape[1]:
        raise BeyondError(
            f"queries of shape {queries.shape} do not fit features of {references.matrix.shape[1]} numbers; "
            "take both from the same model"
        )
    if len(classes) != len(queries) or (query_ids is not None and len(query_ids) != len(queries)):
        raise BeyondError(f"{len(queries)} queries need as many classes and ids")
    # Compared as numbers: an id's rank among all ids.
    order = np.argsort(references.image_ids, kind="stable")
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    units = _unit(np.asarray(queries, dtype=np.float64))
    rows = np.full((len(queries), k), -1, dtype=np.int64)
    similarity = np.full((len(queries), k), np.nan)
    for label in np.unique(classes).tolist():
        if label not in members:
            raise BeyondError(f"class {label} has no mask of reference images")
        candidates = np.flatnonzero(members[label])
        mine = np.flatnonzero(classes == label)
        for start in range(0, len(candidates), chunk):
            block = candidates[start : start + chunk]
            vectors = _unit(np.asarray(references.matrix[block], dtype=np.float64))
            for q in mine.tolist():
                here = (vectors * units[q]).sum(axis=1).clip(-1.0, 1.0)
                keep = np.ones(len(block), dtype=bool)
                if query_ids is not None:
                    keep = references.image_ids[block] != query_ids[q]
                known = rows[q] >= 0
                all_rows = np.concatenate([rows[q][known], block[keep]])
                all_similar = np.concatenate([similarity[q][known], here[keep]])
                best = np.lexsort((rank[all_rows], -all_similar))[:k]
                rows[q, : len(best)], similarity[q, : len(best)] = all_rows[best], all_similar[best]
    names = np.where(rows >= 0, references.image_ids[rows], "").astype(object)
    return Neighbours(rows, similarity, names)


def _unit(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    if not np.isfinite(vectors).all():
        raise BeyondError("features hold NaN or infinite values; make them again")
    length = np.sqrt((vectors * vectors).sum(axis=1, keepdims=True))
    units: npt.NDArray[np.float64] = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
    return units
