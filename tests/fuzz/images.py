"""Images that were spoilt: the formats that are read, each with the modes that photographs come in."""

from __future__ import annotations

import io
from functools import cache
from random import Random

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmark.preprocessing import ImageError, Preprocessing, load_pixels
from tests.fuzz import damage

SPEC = Preprocessing(input_size=(24, 24), resize=28)


@cache
def seeds() -> tuple[bytes, ...]:
    """Small pictures in every format, mode and flavour that the decoder knows."""
    rng = np.random.default_rng(1)
    picture = Image.fromarray(rng.integers(0, 256, (36, 40, 3), dtype=np.uint8))
    found = []

    def save(kind: str, image: Image.Image = picture, **options: object) -> None:
        sink = io.BytesIO()
        image.save(sink, kind, **options)
        found.append(sink.getvalue())

    for mode in ("RGB", "L", "CMYK"):
        save("JPEG", picture.convert(mode))
    save("JPEG", progressive=True, exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00")
    for mode in ("RGB", "L", "1", "P", "RGBA", "LA", "I;16"):
        save("PNG", picture.convert("L").convert(mode) if mode == "I;16" else picture.convert(mode))
    save("WEBP")
    save("WEBP", lossless=True)
    save("BMP")
    save("GIF", picture.convert("P"))
    save("GIF", picture.convert("P"), save_all=True, append_images=[picture.convert("P").rotate(90)])
    for compression in (None, "tiff_lzw", "tiff_adobe_deflate"):
        save("TIFF", compression=compression)
    return tuple(found)


def spoil(rng: Random) -> bytes:
    """Spoilt bytes of an image; half the time past the header, where decoders live."""
    data = rng.choice(seeds())
    head = rng.choice((0, 2, 20, len(data) // 2))
    return data[:head] + damage.bytes_of(rng, data[head:])


def try_image(data: bytes) -> npt.NDArray[np.uint8] | None:
    """Decode; pixels of the size asked for, or ImageError, which is None.

    Raises:
        AssertionError: The pixels are not what was asked for, or the message is not one line.
    """
    try:
        pixels = load_pixels(data, SPEC, name="picture")
    except ImageError as error:
        if "\n" in str(error) or not str(error).startswith("picture "):
            raise AssertionError(f"not a line about the picture: {error}") from error
        return None
    if pixels.shape != (24, 24, 3) or pixels.dtype != np.uint8:
        raise AssertionError(f"pixels are {pixels.dtype} {pixels.shape}")
    return pixels
