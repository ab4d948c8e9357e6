"""Pixels against torchvision's and timm's own transforms; every kind of bad file against its message."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from annotations.errors import BeyondError
from benchmark.preprocessing import ImageError, Interpolation, Preprocessing, decode, load_pixels

INTERPOLATIONS: list[Interpolation] = ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
SMALL = Preprocessing(input_size=(8, 8), resize=10)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int, height: int, *, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def torchvision_pixels(image: Image.Image, spec: Preprocessing) -> np.ndarray:
    from torchvision import transforms
    from torchvision.transforms import InterpolationMode

    steps: list[Any] = [transforms.CenterCrop(spec.input_size)]
    if spec.resize is not None:
        steps.insert(0, transforms.Resize(spec.resize, InterpolationMode(spec.interpolation)))
    return np.asarray(transforms.Compose(steps)(image.convert("RGB")))


@settings(max_examples=150, deadline=None)
@given(
    width=st.integers(1, 120),
    height=st.integers(1, 120),
    crop=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    resize=st.none() | st.integers(1, 100) | st.tuples(st.integers(1, 100), st.integers(1, 100)),
    interpolation=st.sampled_from(INTERPOLATIONS),
)
def test_pixels_equal_torchvision(
    width: int,
    height: int,
    crop: tuple[int, int],
    resize: int | tuple[int, int] | None,
    interpolation: Interpolation,
) -> None:
    image = noise(width, height, seed=width * 1000 + height)
    spec = Preprocessing(crop, resize, interpolation)
    pixels = load_pixels(encode(image), spec, name="x")
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, torchvision_pixels(image, spec))


@pytest.mark.parametrize("size", [(500, 375), (333, 500), (227, 227), (64, 48), (3000, 40)])
@pytest.mark.parametrize(("crop_pct", "crop_mode"), [(0.875, "center"), (0.95, "center"), (1.0, "squash")])
def test_pixels_equal_timm(size: tuple[int, int], crop_pct: float, crop_mode: str) -> None:
    from timm.data.transforms_factory import create_transform

    image = noise(*size)
    transform = create_transform(
        (3, 224, 224), interpolation="bicubic", crop_pct=crop_pct, crop_mode=crop_mode, normalize=False
    )
    scaled = int(224 / crop_pct)
    spec = Preprocessing((224, 224), scaled if crop_mode == "center" else (scaled, scaled))
    expected = transform(image).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(load_pixels(encode(image), spec, name="x"), expected)


@pytest.mark.shared
def test_real_photographs_equal_torchvision(shared_data: Path) -> None:
    for path in sorted((shared_data / "ilsvrc-val-sample" / "images").iterdir())[::40]:
        with Image.open(path) as image:
            expected = torchvision_pixels(image, Preprocessing())
        np.testing.assert_array_equal(
            load_pixels(path.read_bytes(), Preprocessing(), name=path.name), expected
        )


@pytest.mark.parametrize(
    ("mode", "kind", "note"),
    [
        ("RGB", "JPEG", None),
        ("L", "JPEG", "greyscale"),
        ("L", "PNG", "greyscale"),
        ("1", "PNG", "greyscale"),
        ("LA", "PNG", "greyscale"),
        ("CMYK", "JPEG", "CMYK"),
        ("P", "PNG", "palette"),
        ("P", "GIF", "palette"),
        ("RGBA", "PNG", "transparent"),
        ("RGB", "WEBP", None),
        ("RGB", "BMP", None),
        ("RGB", "TIFF", None),
    ],
)
def test_other_colour_modes_are_converted_and_noted(mode: str, kind: str, note: str | None) -> None:
    data = encode(noise(40, 30).convert(mode), kind)
    with Image.open(io.BytesIO(data)) as image:
        expected = torchvision_pixels(image, SMALL)
    decoded = decode(data, SMALL, name="x")
    assert decoded.note == note
    np.testing.assert_array_equal(decoded.pixels, expected)


def test_exif_orientation_and_colour_profile_are_ignored() -> None:
    image = noise(40, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to show
    plain = load_pixels(encode(image, "JPEG"), SMALL, name="x")
    turned = load_pixels(encode(image, "JPEG", exif=exif, icc_profile=b"\0" * 200), SMALL, name="x")
    np.testing.assert_array_equal(plain, turned)


def test_the_main_picture_of_a_multi_picture_jpeg_is_read() -> None:
    first = noise(40, 30)
    data = encode(first, "MPO", save_all=True, append_images=[noise(40, 30, seed=1)])
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, getattr(image, "n_frames", 0)) == ("MPO", 2)
        expected = torchvision_pixels(image, SMALL)
    np.testing.assert_array_equal(load_pixels(data, SMALL, name="x"), expected)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_claiming(width: int, height: int, *, depth: int = 8) -> bytes:
    """A PNG of RGB zeros whose header may claim more than its data holds."""
    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * (height * (1 + width * 3 * depth // 8)) if width * height < 10_000 else b"")
    body = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def broken_png() -> bytes:
    data = bytearray(encode(noise(60, 60)))
    data[len(data) // 2] ^= 0xFF
    return bytes(data)


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "zero bytes": (lambda: b"", "is empty"),
    "text": (lambda: b"<html>404 not found</html>", "not an image"),
    "truncated JPEG": (lambda: encode(noise(60, 60), "JPEG")[:900], "is truncated"),
    "JPEG without its last bytes": (lambda: encode(noise(60, 60), "JPEG")[:-200], "is truncated"),
    "JPEG header only": (lambda: encode(noise(60, 60), "JPEG")[:30], "is truncated"),
    "truncated PNG": (lambda: encode(noise(60, 60))[:3000], "is truncated"),
    "flipped bits": (broken_png, "is corrupt"),
    "16-bit grey": (
        lambda: encode(Image.fromarray(np.arange(900, dtype=np.uint16).reshape(30, 30))),
        "more than 8 bits",
    ),
    "16-bit colour": (lambda: png_claiming(20, 20, depth=16), "more than 8 bits"),
    "32-bit integer": (lambda: encode(Image.new("I", (20, 20)), "TIFF"), "more than 8 bits"),
    "floating point": (lambda: encode(Image.new("F", (20, 20)), "TIFF"), "more than 8 bits"),
    "animated GIF": (
        lambda: encode(noise(20, 20), "GIF", save_all=True, append_images=[noise(20, 20, seed=1)]),
        "animated (2 frames)",
    ),
    "animated WebP": (
        lambda: encode(noise(20, 20), "WEBP", save_all=True, append_images=[noise(20, 20, seed=1)]),
        "animated (2 frames)",
    ),
    "pages": (
        lambda: encode(noise(20, 20), "TIFF", save_all=True, append_images=[noise(20, 20, seed=1)]),
        "animated (2 frames)",
    ),
    "bomb": (lambda: png_claiming(12_000, 10_000), "120"),
    "larger bomb": (lambda: png_claiming(60_000, 60_000), "pixels"),
    "Lab": (lambda: encode(Image.new("LAB", (20, 20)), "TIFF"), "colour mode LAB"),
    "EPS": (lambda: encode(noise(20, 20), "EPS"), "not an image"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", BAD)
def test_bad_files_get_one_line_naming_them(kind: str) -> None:
    make, expected = BAD[kind]
    with pytest.raises(ImageError) as caught:
        load_pixels(make(), SMALL, name="folder/ILSVRC2012_val_00000007.JPEG")
    message = str(caught.value)
    assert message.startswith("folder/ILSVRC2012_val_00000007.JPEG ")
    assert expected in message
    assert "--on-error skip" in message
    assert "\n" not in message
    assert caught.value.exit_code == 2


def test_sixteen_bit_colour_fixture_is_what_it_says() -> None:
    """Pillow opens 16-bit colour as 8-bit RGB: the case that only the raw mode gives away."""
    with Image.open(io.BytesIO(png_claiming(20, 20, depth=16))) as image:
        assert image.mode == "RGB"
    assert load_pixels(png_claiming(20, 20), SMALL, name="x").shape == (8, 8, 3)


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_bytes_crash_it(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP"]))
    good = bytearray(encode(noise(16, 16), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(good)))
    message = ""
    try:
        assert load_pixels(bytes(good[:cut]), SMALL, name="x").shape == (8, 8, 3)
    except ImageError as error:
        message = str(error)
    assert "\n" not in message


def test_no_antialias_is_refused() -> None:
    with pytest.raises(BeyondError, match="antialias"):
        load_pixels(encode(noise(20, 20)), Preprocessing(antialias=False), name="x")
