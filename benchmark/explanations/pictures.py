"""Heat maps and neighbours as pixels. Needs NumPy and Pillow, never torch.

Pictures carry no text, no border colour and no metadata, so that nothing in them tells a rater which arm,
model or class they come from.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]

# Ends of the colour scale in CIELAB: lightness rises evenly, blue-yellow is the only hue axis. Red-green,
# which one man in twelve sees poorly, carries nothing.
_LIGHTNESS = (20.0, 87.0)
_BLUE_YELLOW = (-25.0, 66.0)
_TO_LINEAR_RGB = np.array(
    [
        [3.2404542, -1.5371385, -0.4985314],
        [-0.9692660, 1.8760108, 0.0415560],
        [0.0556434, -0.2040259, 1.0572252],
    ]
)
_D65 = np.array([0.95047, 1.0, 1.08883])
_DIM = 0.75
_GAP = 8
_BACKGROUND = 255


@functools.cache
def colours() -> Pixels:
    """The colour scale, uint8 (256, 3): dark blue over grey to bright yellow, evenly rising in lightness.

    Made in CIELAB (D65) with a* = 0, inside sRGB. It reads the same in greyscale and for people who do
    not tell red from green.
    """
    t = np.linspace(0.0, 1.0, 256)
    lightness = _LIGHTNESS[0] + t * (_LIGHTNESS[1] - _LIGHTNESS[0])
    blue_yellow = _BLUE_YELLOW[0] + t * (_BLUE_YELLOW[1] - _BLUE_YELLOW[0])
    fy = (lightness + 16) / 116
    f = np.stack([fy, fy, fy - blue_yellow / 200], axis=1)
    delta = 6 / 29
    xyz = np.where(f > delta, f**3, 3 * delta**2 * (f - 4 / 29)) * _D65
    linear = np.clip(xyz @ _TO_LINEAR_RGB.T, 0.0, 1.0)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    table: Pixels = np.rint(srgb * 255).astype(np.uint8)
    table.setflags(write=False)
    return table


def overlay(
    pixels: Pixels, heat: npt.NDArray[np.floating], *, opacity: float = 0.6, percentile: float = 100.0
) -> Pixels:
    """Lay a heat map over an image.

    The image stays in grey where there is no heat, so that the only colour is the map's.

    Args:
        pixels: uint8 (H, W, 3), RGB.
        heat: float (H, W), finite, at least 0; scaled so that the percentile below is 1.
        opacity: Share of the map's colour where the heat is greatest, in (0, 1]; half of it where there is
            none.
        percentile: In (0, 100]. Less than 100 keeps a few hot pixels (of integrated gradients) from hiding
            the rest.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        ValueError: The shapes differ, or a value is out of range.
    """
    if pixels.dtype != np.uint8 or pixels.shape != (*heat.shape, 3):
        raise ValueError(f"heat of shape {heat.shape} does not lie over pixels of shape {pixels.shape}")
    if not np.isfinite(heat).all() or (heat < 0).any():
        raise ValueError("heat must be finite and at least 0")
    if not 0 < opacity <= 1 or not 0 < percentile <= 100:
        raise ValueError("opacity must be in (0, 1], the percentile in (0, 100]")
    top = float(np.percentile(heat, percentile)) or float(heat.max())
    strength = np.clip(heat / top, 0.0, 1.0) if top > 0 else np.zeros(heat.shape)
    # Rec. 601 luma, as Pillow's convert("L"); dimmed, so that heat stands out on white things too.
    grey = pixels @ (_DIM * np.array([0.299, 0.587, 0.114]))
    colour = colours()[np.rint(strength * 255).astype(np.intp)]
    share = opacity * (1 + strength[..., None]) / 2
    blended: Pixels = np.rint((1 - share) * grey[..., None] + share * colour).astype(np.uint8)
    return blended


def sheet(images: Sequence[Pixels]) -> Pixels:
    """Images in rows, in reading order, best first, on white.

    Args:
        images: At least one, all uint8 (H, W, 3).

    Raises:
        ValueError: There are none, or their shapes differ.
    """
    if not images or any(image.shape != images[0].shape for image in images):
        raise ValueError("a sheet needs images of one shape")
    height, width = images[0].shape[:2]
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    shape = (rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3)
    page = np.full(shape, _BACKGROUND, dtype=np.uint8)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + _GAP), (i % columns) * (width + _GAP)
        page[top : top + height, left : left + width] = image
    return page


def png(pixels: Pixels) -> bytes:
    """A PNG file of RGB pixels; the same pixels give the same bytes (with the same Pillow and zlib)."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels), "RGB").save(file, "PNG", compress_level=6)
    return file.getvalue()
