"""The stimuli of a study: which items are asked about, as what, and the pictures that each arm shows.

`STUDY/pack/manifest.json` holds them in canonical JSON; its SHA-256 stands in the preregistration. Every
picture is stored once, named by the SHA-256 of its bytes. The manifest alone may be passed on; the pictures
may not.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from annotations.errors import BeyondError
from annotations.files import write_atomically
from annotations.study.canonical import Canonical, Frozen, read_canonical
from annotations.study.preregistration import MANIFEST_FILE, PACK_FOLDER, Arm

VERSION: Literal[1] = 1
NOTICE = (
    "The pictures derive from photographs that may not be passed on: keep this folder on this machine. "
    "The manifest alone may be shared."
)

ItemKind = Literal["adversarial", "clean", "sham", "attention", "practice"]
Setting = str | int | float | bool | None


class StudyItem(Frozen):
    """One question: an image, altered or not, and a class. The columns of `answers.ITEMS`."""

    item: str = Field(min_length=1, max_length=64, description="Its name; it gives nothing away.")
    image_id: str = Field(min_length=1, description="An altered image keeps the id of what it was made from.")
    kind: ItemKind
    shown_class: int = Field(ge=0, lt=1000)
    predicted_class: int = Field(ge=0, lt=1000)
    original_label: int = Field(ge=-1, lt=1000)
    verdict: Literal["accepted", "unsure", "rejected", "unjudged"]
    confidence: float | None = Field(None, ge=0, le=1)
    clean_confidence: float | None = Field(None, ge=0, le=1)
    distance: float | None = None
    block: int = Field(0, ge=0)
    expected: Literal["yes", "no", ""] = Field("", description="Of attention checks and practice.")

    @model_validator(mode="after")
    def _known(self) -> StudyItem:
        if (self.kind in ("attention", "practice")) != bool(self.expected):
            raise ValueError(
                f"item {self.item}: attention checks and practice have a known answer, others none"
            )
        return self


class StudyPicture(Frozen):
    """One picture. In every arm the photograph (`none`) is shown, with that of the arm beside it."""

    item: str
    arm: Arm
    file: str = Field(pattern=r"^[0-9a-f]{64}\.png$", description="The SHA-256 of the file's bytes.")
    blank: bool = False
    neighbours: tuple[str, ...] = ()
    similarities: tuple[float, ...] = ()


class Source(Frozen):
    """The pack of explanations that the stimuli were taken from."""

    manifest_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    model: dict[str, str]
    images: str
    settings: dict[str, Setting]
    versions: dict[str, str]


class Stimuli(Canonical):
    """What `pack/manifest.json` of a study holds."""

    version: Literal[1] = VERSION
    notice: str = NOTICE
    source: Source
    settings: dict[str, Setting] = Field(description="How items were chosen from it.")
    arms: tuple[Arm, ...] = Field(min_length=1)
    items: tuple[StudyItem, ...]
    pictures: tuple[StudyPicture, ...]

    @model_validator(mode="after")
    def _whole(self) -> Stimuli:
        items = [item.item for item in self.items]
        if len(set(items)) != len(items):
            raise ValueError("an item is listed twice")
        images = [item.image_id for item in self.items]
        if len(set(images)) != len(images):
            raise ValueError("an image is shown in two items, and a rater would see it twice")
        there = [(picture.item, picture.arm) for picture in self.pictures]
        wanted = {(item, arm) for item in items for arm in {"none", *self.arms}}
        if len(set(there)) != len(there) or set(there) != wanted:
            raise ValueError(
                "items and pictures do not fit together: each item needs one picture for each arm"
            )
        return self

    def files(self) -> dict[tuple[str, Arm], str]:
        """The file of each picture, by item and arm."""
        return {(picture.item, picture.arm): picture.file for picture in self.pictures}

    def of_kind(self, *kinds: ItemKind) -> list[StudyItem]:
        """The items of some kinds."""
        return [item for item in self.items if item.kind in kinds]


def write_stimuli(
    folder: Path, stimuli: Stimuli, source: Path, *, advance: Callable[[int], None] | None = None
) -> str:
    """Copy the pictures of a study out of a pack of explanations, and write the manifest last.

    Args:
        folder: `STUDY/pack`; made if need be. What it holds of another study that was never finished goes.
        stimuli: What to write.
        source: The folder of the pack.
        advance: Told how many more pictures are copied.

    Returns:
        SHA-256 of the manifest.

    Raises:
        BeyondError: A picture is missing from the pack, or is another one; or the folder holds something
            else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = sorted({picture.file for picture in stimuli.pictures})
    for path in sorted(folder.iterdir()):
        if path.name != MANIFEST_FILE and not re.fullmatch(r"[0-9a-f]{64}\.png", path.name):
            raise BeyondError(f"{folder} holds other files ({path.name}); choose another --out")
    (folder / MANIFEST_FILE).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.name not in wanted:
            path.unlink()
    for name in wanted:
        write_atomically(folder / name, _checked(source / name))
        if advance is not None:
            advance(1)
    write_atomically(folder / MANIFEST_FILE, stimuli.to_json())
    return stimuli.sha256


def read_stimuli(study: Path) -> Stimuli:
    """Read the manifest of a study's stimuli; the pictures are not looked at.

    Raises:
        BeyondError: It is missing or damaged.
    """
    path = study / PACK_FOLDER / MANIFEST_FILE
    if not path.is_file():
        raise BeyondError(f"{study} holds no stimuli ({PACK_FOLDER}/{MANIFEST_FILE} is missing)")
    return read_canonical(path, Stimuli)


def require_pictures(folder: Path, names: Sequence[str]) -> None:
    """Check that pictures are there, and are those that they were.

    Raises:
        BeyondError: One is missing, or was changed; the message names the first, and says how many.
    """
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise BeyondError(
            f"{len(missing):,} of {len(names):,} pictures are missing from {folder}, the first is "
            f"{missing[0]}; put the originals back"
        )
    for name in names:
        _checked(folder / name)


def _checked(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError:
        raise BeyondError(f"the picture {path} is missing; put the original back") from None
    if hashlib.sha256(data).hexdigest() != path.stem:
        raise BeyondError(f"{path} was changed: its checksum is not its name; put the original back")
    return data
