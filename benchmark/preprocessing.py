"""From the bytes of an image file to the pixels a classifier sees. Needs Pillow and NumPy, never torch.

Worker processes import this module and nothing heavier, so that they start at once and stay small.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from annotations.errors import BeyondError, one_line

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
Conversion = Literal["greyscale", "CMYK", "palette", "transparent"]

# Far above any photograph of ILSVRC2012: a larger file is a mistake or an attack. Also where Pillow warns.
MAX_PIXELS = 89_478_485

# What photographs come in. Pillow's other readers (EPS starts Ghostscript) have no business with a data set.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
_CONVERSIONS: dict[str, Conversion | None] = {
    "RGB": None,
    "L": "greyscale",
    "1": "greyscale",
    "LA": "greyscale",
    "CMYK": "CMYK",
    "P": "palette",
    "PA": "palette",
    "RGBA": "transparent",
    "RGBX": None,
}


class ImageError(BeyondError):
    """An image file that cannot be scored; the message names it and says what to do."""


@dataclass(frozen=True)
class Preprocessing:
    """What turns an image into a classifier's input. All sizes are in pixels.

    Attributes:
        input_size: (height, width) of the result.
        resize: An int scales the shorter side to it, keeping the aspect; a pair (height, width) ignores the
            aspect; None leaves the size.
        interpolation: Filter of the resize, as Pillow names it; Pillow's filters always antialias.
        antialias: Recorded because some libraries can turn it off; False is refused when loading.
        mean: Per-channel mean in [0, 1], applied inside the model.
        std: Per-channel standard deviation in [0, 1], applied inside the model.

    After the resize the centre `input_size` is cropped; a smaller image is padded with black, as torchvision
    does.
    """

    input_size: tuple[int, int] = (224, 224)
    resize: int | tuple[int, int] | None = 256
    interpolation: Interpolation = "bicubic"
    antialias: bool = True
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


def check_supported(spec: Preprocessing) -> None:
    """Refuse what Pillow cannot do.

    Raises:
        BeyondError: `spec` asks for a resize without antialiasing.
    """
    if not spec.antialias and spec.interpolation != "nearest" and spec.resize is not None:
        raise BeyondError(
            f"a {spec.interpolation} resize without antialiasing is not supported; use antialias=True"
        )


@dataclass(frozen=True)
class Decoded:
    """One image, ready for a classifier.

    Attributes:
        pixels: uint8 (H, W, 3), RGB, H and W as the preprocessing says; read-only.
        note: How the colours had to be converted, or None for a plain RGB file.
    """

    pixels: npt.NDArray[np.uint8]
    note: Conversion | None


def decode(data: bytes, spec: Preprocessing, *, name: str) -> Decoded:
    """Decode, resize and crop one image.

    The pixels equal those of torchvision's and timm's evaluation transforms on a Pillow image. As there,
    8-bit greyscale, CMYK and palette files are converted with `convert("RGB")` (published figures include
    them; `note` lets a run count them), an alpha channel is dropped, EXIF orientation and embedded ICC
    profiles are ignored, and of a multi-picture JPEG (MPO) the main picture is read.

    Args:
        data: The file's bytes.
        spec: Sizes and filter.
        name: What to call the file in a message: its path or id.

    Raises:
        ImageError: The file is empty, truncated, corrupt, not an image, larger than `MAX_PIXELS`, animated,
            or holds 16-bit or floating-point values.
        BeyondError: `spec` asks for no antialiasing.
    """
    check_supported(spec)
    image, note = _open_rgb(data, name)
    image = _resize(image, spec)
    return Decoded(np.asarray(_centre_crop(image, spec.input_size)), note)


def load_pixels(data: bytes, spec: Preprocessing, *, name: str) -> npt.NDArray[np.uint8]:
    """The pixels of one image, uint8 (H, W, 3), RGB, read-only; see `decode`."""
    return decode(data, spec, name=name).pixels


def _open_rgb(data: bytes, name: str) -> tuple[Image.Image, Conversion | None]:
    """Decode to 8-bit RGB, or say in one line why not."""
    if not data:
        raise ImageError(f"{name} is empty (0 bytes); {_REMEDY}")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check_header(image, name)
            note = _CONVERSIONS[image.mode]
            return image.convert("RGB"), note
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is not an image that can be read ({', '.join(_FORMATS)}); {_REMEDY}"
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} has more than {MAX_PIXELS:,} pixels; {_REMEDY}") from error
    except Exception as error:  # Pillow's readers raise whatever malformed bytes make them trip over
        what = "truncated" if "truncated" in str(error).lower() else "corrupt"
        raise ImageError(f"{name} is {what} ({len(data):,} bytes: {one_line(error)}); {_REMEDY}") from error


_REMEDY = "replace it with a good copy, or leave such files out with --on-error skip"


def _check_header(image: Image.Image, name: str) -> None:
    """Refuse, before its pixels are decoded, what could only be read wrongly."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name} has {width} × {height} pixels, more than {MAX_PIXELS:,}; {_REMEDY}")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise ImageError(f"{name} is animated ({frames} frames) and has no single picture; {_REMEDY}")
    # Pillow reads some 16-bit files as 8-bit ones by dropping bytes; only the raw mode still tells.
    deep = any(";16" in str(tile[3]) for tile in getattr(image, "tile", []))
    if deep or image.mode.startswith(("I", "F")):
        raise ImageError(
            f"{name} has more than 8 bits a channel (mode {image.mode}); "
            "convert it to 8 bits, or leave such files out with --on-error skip"
        )
    if image.mode not in _CONVERSIONS:
        raise ImageError(
            f"{name} has colour mode {image.mode}, which has no agreed conversion to RGB; {_REMEDY}"
        )


def _resize(image: Image.Image, spec: Preprocessing) -> Image.Image:
    """Resize as torchvision's `Resize` does with a Pillow image."""
    width, height = image.size
    if spec.resize is None:
        return image
    if isinstance(spec.resize, int):
        # The longer side is truncated, not rounded: torchvision's `_compute_resized_output_size`.
        size = (
            (spec.resize, int(spec.resize * height / width))
            if width <= height
            else (int(spec.resize * width / height), spec.resize)
        )
    else:
        size = (spec.resize[1], spec.resize[0])
    return image if size == image.size else image.resize(size, Image.Resampling[spec.interpolation.upper()])


def _centre_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Crop as torchvision's `CenterCrop` does; Pillow fills what lies outside with black."""
    top, left = _offset(image.height, size[0]), _offset(image.width, size[1])
    return image.crop((left, top, left + size[1], top + size[0]))


def _offset(length: int, wanted: int) -> int:
    # Padding splits an odd difference with the larger half behind, cropping rounds half to even.
    return -((wanted - length) // 2) if length < wanted else round((length - wanted) / 2)
