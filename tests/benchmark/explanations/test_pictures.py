from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageCms

from benchmark.explanations.pictures import colours, overlay, png, sheet

# Machado, Oliveira & Fernandes 2009, severity 1, for linear RGB.
DEFICIENCIES = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.01182, 0.04294, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.3039],
    ],
}


def lab(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """CIELAB of colours (N, 3), by littleCMS: L in 0..100, a and b in whole numbers."""
    transform = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
    )
    image = ImageCms.applyTransform(Image.fromarray(rgb[None]), transform)
    assert image is not None
    channels = [np.asarray(channel)[0].astype(np.uint8) for channel in image.split()]
    a, b = (channel.astype(float) - 128 for channel in channels[1:])
    return np.stack([channels[0] / 255 * 100, a, b], axis=1)


def simulate(rgb: npt.NDArray[np.uint8], matrix: list[list[float]]) -> npt.NDArray[np.uint8]:
    """How colours look to someone with a colour vision deficiency."""
    value = rgb / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(matrix).T, 0, 1)
    back = np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)
    rounded: npt.NDArray[np.uint8] = np.rint(back * 255).astype(np.uint8)
    return rounded


def test_the_scale_rises_evenly_in_lightness() -> None:
    lightness = lab(colours())[:, 0]
    assert (np.diff(lightness) >= 0).all()
    assert lightness[-1] - lightness[0] > 60
    steps = np.diff(lightness[::15])
    assert steps.max() < 1.35 * steps.min()  # littleCMS has lightness to 0.4 here


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_the_scale_reads_with_any_colour_vision(deficiency: str) -> None:
    """Lightness still rises evenly, and, but for the rare tritanopia, the colours hardly change."""
    plain, seen = lab(colours()), lab(simulate(colours(), DEFICIENCIES[deficiency]))
    steps = np.diff(seen[::15, 0])
    assert steps.min() > 0.5 * np.diff(plain[::15, 0]).mean()
    if deficiency != "tritanopia":
        assert np.linalg.norm(seen - plain, axis=1).mean() < 5
        # The ends are told apart by hue, too.
        assert seen[-1, 2] - seen[0, 2] > 60


def test_the_cold_is_dark_and_grey_and_the_hot_has_the_scale_s_colour() -> None:
    pixels = np.full((4, 4, 3), (200, 40, 40), dtype=np.uint8)
    heat = np.zeros((4, 4))
    heat[1, 2] = 7.0
    drawn = overlay(pixels, heat, opacity=1.0)
    assert drawn[1, 2].tolist() == colours()[255].tolist()
    # Half the scale's dark end over the dimmed grey of the picture.
    grey = 0.75 * (0.299 * 200 + 0.587 * 40 + 0.114 * 40)
    assert drawn[0, 0].tolist() == np.rint(grey / 2 + colours()[0] / 2).tolist()


def test_scale_of_the_heat_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, size=(8, 9, 3), dtype=np.uint8)
    heat = rng.random((8, 9))
    assert np.array_equal(overlay(pixels, heat), overlay(pixels, heat * 1e-6))


def test_a_blank_map_is_cold_everywhere_and_an_outlier_does_not_hide_the_rest() -> None:
    pixels = np.full((10, 10, 3), 128, dtype=np.uint8)
    blank = overlay(pixels, np.zeros((10, 10)))
    assert (blank == blank[0, 0]).all()
    heat = np.zeros((10, 10))
    heat[5] = 1.0
    heat[0, 0] = 100.0
    assert np.abs(overlay(pixels, heat)[5].astype(int) - blank[5]).max() < 10
    assert np.abs(overlay(pixels, heat, percentile=98)[5].astype(int) - blank[5]).max() > 40


@pytest.mark.parametrize(
    ("heat", "options"),
    [
        (np.zeros((3, 4)), {}),
        (np.full((4, 4), np.nan), {}),
        (np.full((4, 4), -1.0), {}),
        (np.zeros((4, 4)), {"opacity": 0.0}),
        (np.zeros((4, 4)), {"percentile": 101.0}),
    ],
)
def test_refusals(heat: npt.NDArray[np.float64], options: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        overlay(np.zeros((4, 4, 3), dtype=np.uint8), heat, **options)


def test_sheet_holds_every_image_in_reading_order() -> None:
    images = [np.full((6, 5, 3), i, dtype=np.uint8) for i in range(5)]
    page = sheet(images)
    assert page.shape == (2 * 6 + 8, 3 * 5 + 2 * 8, 3)
    found = [int(page[top, left, 0]) for top in (0, 14) for left in (0, 13, 26)]
    assert found == [0, 1, 2, 3, 4, 255]
    assert (page[6:14] == 255).all()
    assert np.array_equal(sheet(images[:1]), images[0])
    with pytest.raises(ValueError):
        sheet([])
    with pytest.raises(ValueError):
        sheet([images[0], np.zeros((6, 6, 3), dtype=np.uint8)])


def test_png_holds_pixels_and_nothing_else() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, size=(7, 5, 3), dtype=np.uint8)
    data = png(pixels)
    assert data == png(pixels.copy())
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "RGB"
        assert image.info == {}
        assert np.array_equal(np.asarray(image), pixels)


def test_importing_imports_no_torch() -> None:
    for module in (
        "benchmark.explanations",
        "benchmark.explanations.pictures",
        "benchmark.explanations.pack",
    ):
        code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0, module
