"""Image files of a folder, made fit to be shown: found once by their ids, never by a name from a client."""

from __future__ import annotations

import hashlib
import io
import re
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from annotations.campaign.types import NewImage
from annotations.classes import NUM_CLASSES, package_file, validation_labels, validation_number, wnids
from annotations.errors import BeyondError

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")
MAX_SIDE = 1024
_CACHED_BYTES = 96 * 2**20
_KEPT_SEGMENTS = {0xE0, 0xE2, 0xEE}  # JFIF, colour profile, Adobe's colour transform
_ORIENTATION = 0x0112
_SAMPLE = re.compile(r"imagenet_\d\d_(\d{1,3})\.jpg")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A picture as it goes to a browser, without any metadata."""

    data: bytes
    media_type: str
    etag: str


def images_folder(spec: str) -> Path:
    """The folder that `--images` names; `sample` is that of the 20 photographs of the package foolbox.

    Raises:
        BeyondError: There is no such folder.
    """
    if spec == "sample":
        try:
            return package_file("foolbox", "data", "imagenet_00_243.jpg").parent
        except BeyondError as error:
            raise BeyondError(
                "the sample images are not here; install them with: pip install 'beyond-accuracy[campaign]'"
            ) from error
    folder = Path(spec).expanduser()
    if not folder.is_dir():
        raise BeyondError(f"no folder of images at {spec}; give a folder, or sample")
    return folder.resolve()


def find_images(spec: str) -> list[NewImage]:
    """All images that `--images` names, by id (the file's stem), with original labels where these are known.

    Raises:
        BeyondError: There is none, or two have the same id.
    """
    folder = images_folder(spec)
    if spec == "sample":
        samples = ((path, _SAMPLE.fullmatch(path.name)) for path in sorted(folder.iterdir()))
        return [NewImage(path.stem, path.name, int(match.group(1))) for path, match in samples if match]
    found: dict[str, NewImage] = {}
    class_of = {wnid: index for index, wnid in enumerate(wnids())}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith(".") or not path.is_file():
            continue
        relative = path.relative_to(folder).as_posix()
        if path.stem in found:
            raise BeyondError(
                f"{relative} and {found[path.stem].path} have the same id {path.stem!r}; ids must be unique"
            )
        number = validation_number(path.stem)
        label = int(validation_labels()[number - 1]) if number else class_of.get(path.parent.name, -1)
        found[path.stem] = NewImage(path.stem, relative, label)
    if not found:
        raise BeyondError(f"{folder} holds no images ({', '.join(SUFFIXES)}); check --images")
    return list(found.values())


class Pictures:
    """Renders pictures of a folder and keeps the latest in memory.

    With `exact`, the folder is one of stimuli: PNG files named by the SHA-256 of their bytes, which are shown
    byte for byte, and not at all if the bytes are others.
    """

    def __init__(
        self,
        folder: Path,
        *,
        references: Path | None = None,
        max_side: int = MAX_SIDE,
        per_label: int = 4,
        exact: bool = False,
    ) -> None:
        self.folder = folder.resolve()
        self._exact = exact
        self.max_side = max_side
        self._references = _find_references(references, per_label) if references else {}
        self._lock = threading.Lock()
        self._cache: OrderedDict[Path, Rendered] = OrderedDict()
        self._size = 0

    def render(self, path: str) -> Rendered:
        """The picture of a file, given by its path below the folder as the store keeps it.

        A JPEG of at most `max_side` pixels keeps its exact pixels and loses its metadata; others are turned
        upright, scaled down and written as JPEG.

        Raises:
            BeyondError: The file is missing or not an image.
        """
        file = (self.folder / path).resolve()
        if not file.is_relative_to(self.folder):
            raise BeyondError(f"{path} lies outside the folder of images")
        return self._cached(file)

    def references(self, class_index: int) -> int:
        """How many reference thumbnails a label has."""
        return len(self._references.get(class_index, ()))

    def reference(self, class_index: int, number: int) -> Rendered | None:
        """A reference thumbnail of a label, or None if it has not that many."""
        files = self._references.get(class_index, ())
        return self._cached(files[number]) if 0 <= number < len(files) else None

    def _cached(self, file: Path) -> Rendered:
        with self._lock:
            if file in self._cache:
                self._cache.move_to_end(file)
                return self._cache[file]
        exact = self._exact and file.is_relative_to(self.folder)
        rendered = _read_exactly(file) if exact else _render(file, self.max_side)
        with self._lock:
            if file not in self._cache:
                self._cache[file] = rendered
                self._size += len(rendered.data)
            while self._size > _CACHED_BYTES and len(self._cache) > 1:
                self._size -= len(self._cache.popitem(last=False)[1].data)
        return rendered


def _render(file: Path, max_side: int) -> Rendered:
    try:
        data = file.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            small = max(image.size) <= max_side
            upright = image.getexif().get(_ORIENTATION, 1) == 1
            if image.format == "JPEG" and image.mode in ("RGB", "L") and small and upright:
                return _rendered(without_metadata(data), "image/jpeg")
            turned = ImageOps.exif_transpose(image)
            shown = turned if turned.mode in ("RGB", "L") else turned.convert("RGB")
            shown.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
            sink = io.BytesIO()
            shown.save(sink, "JPEG", quality=92)
    except FileNotFoundError:
        raise BeyondError(f"the image {file.name} is missing; is the folder of images complete?") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise BeyondError(f"{file.name} cannot be read as an image ({error})") from error
    return _rendered(sink.getvalue(), "image/jpeg")


def _read_exactly(file: Path) -> Rendered:
    """A stimulus as it is."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise BeyondError(f"the picture {file.name} is missing; put the original back") from None
    if file.suffix != ".png" or hashlib.sha256(data).hexdigest() != file.stem:
        raise BeyondError(f"the picture {file.name} was changed; put the original back")
    return _rendered(data, "image/png")


def _rendered(data: bytes, media_type: str) -> Rendered:
    return Rendered(data, media_type, f'"{hashlib.blake2b(data, digest_size=12).hexdigest()}"')


def without_metadata(data: bytes) -> bytes:
    """A JPEG without Exif, XMP, comments and the like, its picture untouched.

    Segments before the first scan are copied or left out (ITU T.81, B.1.1.4); the rest is copied as it is.

    Raises:
        ValueError: The bytes are no JPEG.
    """
    if data[:2] != b"\xff\xd8":
        raise ValueError("not a JPEG")
    kept, at = [data[:2]], 2
    while data[at : at + 1] == b"\xff":
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == 0xDA:  # start of scan
            return b"".join([*kept, data[at:]])
        length = int.from_bytes(data[at + 2 : at + 4])
        is_metadata = marker == 0xFE or (0xE0 <= marker <= 0xEF and marker not in _KEPT_SEGMENTS)
        if not is_metadata:
            kept.append(data[at : at + 2 + length])
        at += 2 + max(length, 2)
    raise ValueError("not a JPEG: no scan in it")


def _find_references(folder: Path, per_label: int) -> dict[int, list[Path]]:
    """Thumbnails in folders named by class index or wnid."""
    class_of = {wnid: index for index, wnid in enumerate(wnids())}
    class_of |= {str(index): index for index in range(NUM_CLASSES)}
    if not folder.is_dir():
        raise BeyondError(f"no folder of reference pictures at {folder}")
    found: dict[int, list[Path]] = {}
    for inside in sorted(path for path in folder.iterdir() if path.is_dir()):
        if inside.name not in class_of:
            raise BeyondError(f"{inside} is named neither by a class index nor by a wnid")
        files = sorted(path for path in inside.iterdir() if path.suffix.lower() in SUFFIXES)
        found.setdefault(class_of[inside.name], []).extend(files)
    return {index: files[:per_label] for index, files in found.items()}
