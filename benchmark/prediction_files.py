"""Predictions made elsewhere: Parquet, CSV or NumPy files, checked and joined by image id."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from annotations.classes import (
    NUM_CLASSES,
    NUM_VALIDATION_IMAGES,
    original_labels,
    validation_ids,
    validation_labels,
    wnids,
)
from annotations.errors import BeyondError, one_line
from annotations.tables import read_parquet
from benchmark.records import FOREIGN_TYPES, Predictions

FORMATS = (".parquet", ".csv", ".npy")


def read_prediction_file(path: Path, *, ids_file: Path | None = None) -> Predictions:
    """Read a file of predictions, sorted by image id.

    Accepted forms:
        Parquet: the schema of `benchmark.records`; `logits`, `logsumexp` and `original_label` may be absent.
        CSV: `file_name,predicted_class[,predicted_probability]`; a class is an index or a wnid.
        NumPy: integers (N, k), top-k class indices, best first. Rows follow `ids_file`; without it N must be
            50,000, row i being validation image i + 1.

    Args:
        path: The file.
        ids_file: One image id or file name a line, for NumPy files only.

    Raises:
        BeyondError: The file is unreadable, a class is out of range, an id repeats or has no original label.
    """
    if not path.is_file():
        raise BeyondError(f"no such predictions file: {path}")
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise BeyondError(
            f"{path}: predictions must be one of {', '.join(FORMATS)}, not {suffix or 'without suffix'!r}"
        )
    if ids_file is not None and suffix != ".npy":
        raise BeyondError(
            f"--ids goes with .npy predictions; {path.name} carries its own ids, so leave it out"
        )
    try:
        if suffix == ".npy":
            predictions = _read_numpy(path, ids_file)
        elif suffix == ".csv":
            predictions = _read_csv(path)
        else:
            predictions = Predictions.from_arrow(read_parquet(path, FOREIGN_TYPES), where=str(path))
    except (BeyondError, OSError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - NumPy parses the header of a .npy as Python, which raises nearly anything
        raise BeyondError(f"{path} cannot be read as {suffix[1:]} predictions: {one_line(error)}") from None
    return _checked(predictions, str(path))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def image_id_of(name: str) -> str:
    """The image id in a file name: its stem, without folders.

    Example:
        >>> image_id_of("val/n01440764/ILSVRC2012_val_00000293.JPEG")
        'ILSVRC2012_val_00000293'
    """
    stem = name.replace("\\", "/").rsplit("/", 1)[-1]
    base, dot, extension = stem.rpartition(".")
    return base if dot and extension.lower() in {"jpeg", "jpg", "png", "webp"} else stem


def _read_numpy(path: Path, ids_file: Path | None) -> Predictions:
    array = np.load(path, allow_pickle=False)
    if array.ndim == 1:
        array = array[:, None]
    if (
        array.ndim != 2
        or not np.issubdtype(array.dtype, np.integer)
        or not 1 <= array.shape[1] <= NUM_CLASSES
    ):
        raise BeyondError(
            f"{path} holds {array.dtype} {array.shape}; it needs integer class indices (N, k), best first"
        )
    _require_in_range(array, str(path))
    if ids_file is not None:
        if not ids_file.is_file():
            raise BeyondError(f"no such file of ids: {ids_file}")
        lines = ids_file.read_text(encoding="utf-8").split()
        if len(lines) != len(array):
            raise BeyondError(f"{path} has {len(array)} rows, but {ids_file} names {len(lines)} images")
        ids = np.array([image_id_of(line) for line in lines], dtype=object)
        return Predictions(ids, original_labels(ids), array.astype(np.int16))
    if len(array) != NUM_VALIDATION_IMAGES:
        raise BeyondError(
            f"{path} has {len(array)} rows instead of {NUM_VALIDATION_IMAGES:,}; "
            "say which images they are with --ids FILE"
        )
    return Predictions(validation_ids(), validation_labels(), array.astype(np.int16))


def _read_csv(path: Path) -> Predictions:
    # index_col: a row with a cell too many must not turn the first column into the index.
    frame = pd.read_csv(path, dtype={"file_name": str, "predicted_class": str}, index_col=False)
    for name in ("file_name", "predicted_class"):
        if name not in frame:
            raise BeyondError(
                f"{path} has no column {name!r}; it needs file_name,predicted_class[,predicted_probability]"
            )
        if frame[name].isna().any():
            line = int(frame[name].isna().to_numpy().argmax()) + 2
            raise BeyondError(f"{path}, line {line}: {name} is empty")
    by_wnid = {wnid: str(index) for index, wnid in enumerate(wnids())}
    numbers = pd.to_numeric(
        frame["predicted_class"].map(lambda text: by_wnid.get(text.strip(), text)), errors="coerce"
    )
    bad = ~(numbers % 1 == 0)
    if bad.any():
        line = int(bad.to_numpy().argmax())
        raise BeyondError(
            f"{path}, line {line + 2}: {frame['predicted_class'][line]!r} is no class index or wnid"
        )
    classes = numbers.to_numpy(dtype=np.int64)[:, None]
    _require_in_range(classes, str(path))
    ids = np.array([image_id_of(name.strip()) for name in frame["file_name"]], dtype=object)
    logits = logsumexp = None
    if "predicted_probability" in frame:
        probability = pd.to_numeric(frame["predicted_probability"], errors="coerce").to_numpy(
            dtype=np.float64
        )
        outside = ~((probability >= 0) & (probability <= 1))
        if outside.any():
            raise BeyondError(
                f"{path}, line {int(outside.argmax()) + 2}: predicted_probability is not in [0, 1]"
            )
        logits = np.log(np.maximum(probability, np.finfo(np.float32).tiny)).astype(np.float32)[:, None]
        logsumexp = np.zeros(len(ids), dtype=np.float32)
    return Predictions(ids, original_labels(ids), classes.astype(np.int16), logits, logsumexp)


def _require_in_range(classes: npt.NDArray[np.integer], where: str) -> None:
    if classes.size and (classes.min() < 0 or classes.max() >= NUM_CLASSES):
        row, column = np.argwhere((classes < 0) | (classes >= NUM_CLASSES))[0]
        hint = " (1001 classes? drop the background class)" if classes.max() == NUM_CLASSES else ""
        raise BeyondError(
            f"{where}, row {row}: predicted class {classes[row, column]} is outside 0..999{hint}"
        )


def _checked(predictions: Predictions, where: str) -> Predictions:
    if not len(predictions):
        raise BeyondError(f"{where} holds no predictions")
    if predictions.image_ids is validation_ids():
        ranked = np.sort(predictions.classes, axis=1)
        _require_distinct(ranked, predictions.image_ids, where)
        return predictions
    index = pd.Index(predictions.image_ids)
    if not index.is_unique:
        raise BeyondError(
            f"{where}: image {index[index.duplicated()][0]!r} appears twice; keep one prediction an image"
        )
    known = original_labels(predictions.image_ids)
    given = predictions.original_labels
    labels = np.where(known >= 0, known, given).astype(np.int16)
    if (labels < 0).any():
        unknown = predictions.image_ids[labels < 0][0]
        raise BeyondError(
            f"{where}: image {unknown!r} is not in the ILSVRC2012 validation ground truth; check its id"
        )
    wrong = (given >= 0) & (known >= 0) & (given != known)
    if wrong.any():
        at = int(wrong.argmax())
        raise BeyondError(
            f"{where}: original_label {given[at]} of {predictions.image_ids[at]!r} "
            f"disagrees with the ground truth ({known[at]})"
        )
    if labels.max(initial=0) >= NUM_CLASSES:
        raise BeyondError(f"{where}: original_label {labels.max()} is outside 0..999")
    _require_distinct(np.sort(predictions.classes, axis=1), predictions.image_ids, where)
    order = np.argsort(predictions.image_ids, kind="stable")
    return Predictions(
        predictions.image_ids[order],
        labels[order],
        predictions.classes[order],
        None if predictions.logits is None else predictions.logits[order],
        None if predictions.logsumexp is None else predictions.logsumexp[order],
    )


def _require_distinct(ranked: npt.NDArray[np.int16], ids: npt.NDArray[np.object_], where: str) -> None:
    repeated = (ranked[:, 1:] == ranked[:, :-1]).any(axis=1)
    if repeated.any():
        raise BeyondError(
            f"{where}: the classes predicted for image {ids[int(repeated.argmax())]!r} repeat one another"
        )
