"""A folder of pictures to show people, and a manifest that says what each one is.

```
PACK/manifest.json      settings, versions, items (what is asked about), and for each picture its item and arm
PACK/<sha256>.png       pictures, named by the checksum of their bytes, so that a name gives nothing away
```

An item is one question: an image, altered or not, and a class shown with it. It has a picture for each arm.

The pictures are made from photographs whose terms do not allow passing them on. They never leave the machine;
ids, classes and the manifest may.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from annotations.errors import BeyondError, first_problem
from annotations.files import write_atomically
from annotations.study.preregistration import MANIFEST_FILE, Arm, Kind
from benchmark.explanations import pictures
from benchmark.explanations.pictures import Pixels

MANIFEST_VERSION = 2

Setting = str | int | float | bool | None

_NOTICE = (
    "The pictures derive from photographs that may not be passed on: keep this folder on this machine. "
    "The manifest alone may be shared."
)
_VERSIONS = ("beyond-accuracy", "captum", "numpy", "pillow", "timm", "torch", "torchvision")


class Item(BaseModel):
    """One question: an image and the class that is shown with it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    item: str = Field(pattern=r"^[0-9a-f]{16}$", description="See `item_name`; it gives nothing away.")
    image_id: str = Field(description="An adversarial keeps the id of the image it was made from.")
    kind: Kind = Field(
        description="adversarial: what an attack made, with what the model predicts for it; clean: the "
        "unaltered image, with what it predicts; sham: the unaltered image, with a plainly wrong class."
    )
    shown_class: int = Field(ge=0, description="The class asked about and explained.")
    predicted_class: int = Field(
        ge=0, description="What the model predicts for what is shown: shown_class, but for a sham."
    )
    original_label: int = Field(ge=-1, description="The image's original label, −1 if unknown.")
    verdict: Literal["accepted", "unsure", "rejected", "unjudged"] = Field(
        default="unjudged", description="What label sets say of shown_class for the unaltered image."
    )
    confidence: float | None = Field(
        default=None, ge=0, le=1, description="Softmax probability of shown_class for what is shown."
    )
    clean_confidence: float | None = Field(
        default=None, ge=0, le=1, description="That of the prediction for the unaltered image."
    )
    distance: float | None = Field(default=None, description="Norm of an adversarial's perturbation.")
    block: int = Field(default=0, ge=0, description="Items of one block are alike in class and confidence.")


class Picture(BaseModel):
    """One picture of a pack."""

    model_config = ConfigDict(extra="forbid")

    item: str = Field(description="The item it shows.")
    arm: Arm = Field(description="none: the image; feature: its heat map; example: reference images.")
    file: str = Field(pattern=r"^[0-9a-f]{64}\.png$", description="The SHA-256 of the file's bytes.")
    blank: bool = Field(default=False, description="The heat map has no heat.")
    neighbours: list[str] = Field(default_factory=list, description="Reference images, nearest first.")
    similarities: list[float] = Field(default_factory=list, description="Cosine to each of them.")


def item_name(image_id: str, kind: Kind, shown_class: int) -> str:
    """Name of an item: the first 16 hex digits of the SHA-256 of image, kind and class, joined by `|`."""
    return hashlib.sha256(f"{image_id}|{kind}|{shown_class}".encode()).hexdigest()[:16]


class Manifest(BaseModel):
    """What `manifest.json` holds."""

    model_config = ConfigDict(extra="forbid")

    manifest_version: int = MANIFEST_VERSION
    notice: str = _NOTICE
    model: dict[str, str] = Field(description="Spec, name and weights_sha256.")
    images: str = Field(description="Fingerprint of the image set, or of the adversarial images.")
    settings: dict[str, Setting] = Field(description="How items were chosen and pictures made.")
    versions: dict[str, str]
    items: list[Item] = Field(description="Sorted by image, kind and class.")
    pictures: list[Picture] = Field(description="In the order of the items, by arm.")

    def pictures_of(self, item: str) -> dict[Arm, Picture]:
        """The pictures of one item, by arm."""
        return {picture.arm: picture for picture in self.pictures if picture.item == item}


@dataclass(frozen=True)
class Stimulus:
    """What is to be shown of one item.

    Attributes:
        item: The item.
        pixels: uint8 (H, W, 3), RGB: what the classifier saw.
        heat: float (H, W), at least 0, the heat map for the class shown; None makes no `feature` picture.
        neighbours: Ids of the nearest reference images, nearest first; none makes no `example` picture.
        similarities: Cosine of each neighbour.
        neighbour_pixels: uint8 (H, W, 3) of each neighbour.
    """

    item: Item
    pixels: Pixels
    heat: npt.NDArray[np.floating] | None = None
    neighbours: Sequence[str] = ()
    similarities: Sequence[float] = ()
    neighbour_pixels: Sequence[Pixels] = ()


def to_pixels(x: npt.NDArray[np.floating]) -> Pixels:
    """Pixels of an image that a classifier saw: float (3, H, W) in [0, 1] to uint8 (H, W, 3)."""
    pixels: Pixels = np.rint(np.clip(x, 0.0, 1.0) * 255).astype(np.uint8).transpose(1, 2, 0)
    return pixels


def write_pack(
    folder: Path,
    stimuli: Iterable[Stimulus],
    *,
    model: Mapping[str, str],
    images: str,
    settings: Mapping[str, Setting],
    opacity: float = 0.6,
    percentile: float = 100.0,
    overwrite: bool = False,
) -> Manifest:
    """Draw stimuli and write them with their manifest.

    The manifest comes last and at once, so a folder with a manifest is complete. The same stimuli and
    settings give the same bytes, in whatever order they come; one stimulus is in memory at a time.

    Args:
        folder: Where to; made if need be.
        stimuli: What to show; each item once.
        model: Spec, name and weights_sha256 of the classifier.
        images: Fingerprint of the images.
        settings: How heat maps and neighbours were made (method, layer, k, …), for the record.
        opacity: See `pictures.overlay`; recorded.
        percentile: See `pictures.overlay`; recorded.
        overwrite: Replace the pack that is there.

    Returns:
        The manifest.

    Raises:
        BeyondError: The folder holds something else, or a pack and `overwrite` is not set; a stimulus comes
            twice, or its parts do not fit together.
    """
    _prepare(folder, overwrite=overwrite)
    items: dict[str, Item] = {}
    made: dict[tuple[str, str], Picture] = {}
    for stimulus in stimuli:
        item = stimulus.item
        where = f"{item.image_id} ({item.kind}) as class {item.shown_class}"
        if item.item in items:
            raise BeyondError(f"{where} comes twice; give each item once")
        items[item.item] = item
        for picture, pixels in _draw(stimulus, where, opacity=opacity, percentile=percentile):
            data = pictures.png(pixels)
            picture.file = f"{hashlib.sha256(data).hexdigest()}.png"
            (folder / picture.file).write_bytes(data)
            made[picture.item, picture.arm] = picture
    ordered = sorted(items.values(), key=lambda i: (i.image_id, i.kind, i.shown_class))
    manifest = Manifest(
        model=dict(sorted(model.items())),
        images=images,
        settings=dict(sorted({**settings, "opacity": opacity, "percentile": percentile}.items())),
        versions=_versions(),
        items=ordered,
        pictures=[
            made[item.item, arm]
            for item in ordered
            for arm in ("example", "feature", "none")
            if (item.item, arm) in made
        ],
    )
    text = json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / MANIFEST_FILE, text)
    return manifest


def read_pack(folder: Path) -> Manifest:
    """Read a pack's manifest and check that every picture is there and is the one it names.

    Raises:
        BeyondError: There is no pack, or a file is missing or damaged.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise BeyondError(f"{folder} holds no pack of explanations; make one with: beyond explain RUN")
    manifest = _read_manifest(path)
    again = "make the pack again with: beyond explain RUN --overwrite"
    shown = {picture.item for picture in manifest.pictures if picture.arm == "none"}
    arms = [(picture.item, picture.arm) for picture in manifest.pictures]
    names = {item.item for item in manifest.items}
    if shown != names or len(names) != len(manifest.items) or len(set(arms)) != len(arms):
        raise BeyondError(f"{path} is damaged (items and pictures do not fit together); {again}")
    if any(item.item != item_name(item.image_id, item.kind, item.shown_class) for item in manifest.items):
        raise BeyondError(f"{path} is damaged (an item is not what its name says); {again}")
    for name in sorted({picture.file for picture in manifest.pictures}):
        try:
            data = (folder / name).read_bytes()
        except OSError:
            raise BeyondError(f"{folder / name} is missing; {again}") from None
        if hashlib.sha256(data).hexdigest() != name.partition(".")[0]:
            raise BeyondError(f"{folder / name} is damaged (checksum); {again}")
    return manifest


def _read_manifest(path: Path) -> Manifest:
    data = path.read_bytes()
    try:
        version = json.loads(data).get("manifest_version")
    except (ValueError, AttributeError):
        version = MANIFEST_VERSION  # not JSON: what is wrong is said below
    if version != MANIFEST_VERSION:
        raise BeyondError(
            f"{path} has version {version}, and this beyond reads {MANIFEST_VERSION}; make the pack again "
            "with: beyond explain RUN --overwrite"
        )
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise BeyondError(f"{path} is damaged: {first_problem(error)}") from None


def _draw(
    stimulus: Stimulus, where: str, *, opacity: float, percentile: float
) -> Iterable[tuple[Picture, Pixels]]:
    """The pictures of one stimulus, arm by arm; their file names are still to come."""
    pixels, heat = stimulus.pixels, stimulus.heat
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise BeyondError(f"{where}: pixels must be uint8 (H, W, 3), not {pixels.dtype} {pixels.shape}")
    if not len(stimulus.neighbours) == len(stimulus.similarities) == len(stimulus.neighbour_pixels):
        raise BeyondError(f"{where}: neighbours, similarities and their pixels differ in number")

    def picture(arm: Arm) -> Picture:
        return Picture.model_construct(item=stimulus.item.item, arm=arm, file="")

    yield picture("none"), pixels
    if heat is not None:
        try:
            drawn = pictures.overlay(pixels, heat, opacity=opacity, percentile=percentile)
        except ValueError as error:
            raise BeyondError(f"{where}: {error}") from None
        overlaid = picture("feature")
        overlaid.blank = not bool((heat > 0).any())
        yield overlaid, drawn
    if stimulus.neighbours:
        examples = picture("example")
        examples.neighbours = list(stimulus.neighbours)
        # Far more digits than float32 features justify, and few enough to be the same on every machine.
        examples.similarities = [round(float(value), 9) for value in stimulus.similarities]
        try:
            yield examples, pictures.sheet(stimulus.neighbour_pixels)
        except ValueError as error:
            raise BeyondError(f"{where}: {error}") from None


def _prepare(folder: Path, *, overwrite: bool) -> None:
    """Make the folder empty of an old pack, and refuse to touch anything else."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise BeyondError(f"{folder} is not a folder; choose another --out") from None
    there = sorted(path.name for path in folder.iterdir())
    # Pictures without a manifest are what a pack that was killed in the making leaves.
    other = [name for name in there if name != MANIFEST_FILE and not re.fullmatch(r"[0-9a-f]{64}\.png", name)]
    if other:
        raise BeyondError(f"{folder} holds other files ({other[0]}); choose another --out")
    if MANIFEST_FILE in there and not overwrite:
        raise BeyondError(f"{folder} holds a pack already; choose another --out, or pass --overwrite")
    # The manifest goes first, so that no folder with one lacks pictures.
    (folder / MANIFEST_FILE).unlink(missing_ok=True)
    for name in there:
        (folder / name).unlink(missing_ok=True)


def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
