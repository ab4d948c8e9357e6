"""Pictures as they go to browsers."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from annotations.campaign.pictures import Pictures, find_images, without_metadata
from annotations.errors import BeyondError

NOISE = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)


def saved(path: Path, **options: object) -> Path:
    Image.fromarray(NOISE).save(path, **options)  # type: ignore[arg-type]
    return path


def shown(folder: Path, name: str, **options: int) -> Image.Image:
    return Image.open(io.BytesIO(Pictures(folder, **options).render(name).data))  # type: ignore[arg-type]


def test_a_jpeg_keeps_its_pixels_and_loses_its_metadata(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "n01440764 secret description"
    path = saved(tmp_path / "a.jpg", exif=exif, comment=b"secret comment", quality=80)
    assert b"secret" in path.read_bytes()
    rendered = Pictures(tmp_path).render("a.jpg")
    assert b"secret" not in rendered.data
    assert Image.open(io.BytesIO(rendered.data)).tobytes() == Image.open(path).tobytes()


def test_pictures_are_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    saved(tmp_path / "a.jpg", exif=exif)
    assert shown(tmp_path, "a.jpg").size == (40, 60)


@pytest.mark.parametrize("mode", ["CMYK", "L", "P", "RGBA", "I;16"])
def test_every_mode_can_be_shown(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(NOISE)
    image = Image.fromarray(NOISE[:, :, 0].astype(np.uint16) * 256) if mode == "I;16" else image.convert(mode)
    name = "a.jpg" if mode == "CMYK" else "a.png"
    image.save(tmp_path / name)
    result = shown(tmp_path, name)
    assert result.format == "JPEG"
    assert result.mode in ("RGB", "L")


def test_large_pictures_are_scaled_down(tmp_path: Path) -> None:
    saved(tmp_path / "a.jpg")
    assert shown(tmp_path, "a.jpg", max_side=30).size == (30, 20)


def test_what_is_no_image_gets_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    saved(tmp_path / "b.jpg")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:300])
    pictures = Pictures(tmp_path)
    for name in ("a.jpg", "missing.jpg", "../a.jpg"):
        with pytest.raises(BeyondError):
            pictures.render(name)
    with pytest.raises(ValueError, match="not a JPEG"):
        without_metadata(b"\x89PNG")


def test_the_memory_for_pictures_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        saved(tmp_path / f"{number}.jpg")
    size = (tmp_path / "0.jpg").stat().st_size
    monkeypatch.setattr("annotations.campaign.pictures._CACHED_BYTES", 3 * size)
    pictures = Pictures(tmp_path)
    first = pictures.render("0.jpg")
    assert pictures.render("0.jpg") is first
    for number in range(1, 6):
        pictures.render(f"{number}.jpg")
    assert len(pictures._cache) <= 3
    assert pictures.render("0.jpg") is not first


def test_images_are_found_by_id_with_their_labels(tmp_path: Path) -> None:
    (tmp_path / "n01440764").mkdir()
    saved(tmp_path / "n01440764" / "x.JPEG", format="JPEG")
    saved(tmp_path / "ILSVRC2012_val_00000001.JPEG", format="JPEG")
    saved(tmp_path / "plain.png")
    (tmp_path / "notes.txt").write_text("no image")
    found = {image.image_id: (image.path, image.original_label) for image in find_images(str(tmp_path))}
    assert found == {
        "x": ("n01440764/x.JPEG", 0),
        "ILSVRC2012_val_00000001": ("ILSVRC2012_val_00000001.JPEG", 65),
        "plain": ("plain.png", -1),
    }
    saved(tmp_path / "x.png")
    with pytest.raises(BeyondError, match="same id"):
        find_images(str(tmp_path))
    with pytest.raises(BeyondError, match="no folder"):
        find_images(str(tmp_path / "nothing"))
    assert len(find_images("sample")) == 20


def test_references_lie_in_folders_by_index_or_wnid(tmp_path: Path) -> None:
    for name in ("0", "n01443537"):
        (tmp_path / "r" / name).mkdir(parents=True)
        for number in range(6):
            saved(tmp_path / "r" / name / f"{number}.jpg")
    pictures = Pictures(tmp_path, references=tmp_path / "r")
    assert [pictures.references(index) for index in (0, 1, 2)] == [4, 4, 0]
    assert pictures.reference(1, 3) is not None
    assert pictures.reference(1, 4) is None
    assert pictures.reference(1, -1) is None
    (tmp_path / "r" / "cats").mkdir()
    with pytest.raises(BeyondError, match="cats"):
        Pictures(tmp_path, references=tmp_path / "r")
