"""Small networks and photographs that the tests of models share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from annotations.classes import package_file

torch.set_num_threads(2)


@pytest.fixture(scope="session")
def photographs() -> list[tuple[bytes, int]]:
    """The 20 photographs of foolbox and their ImageNet labels, which their names carry."""
    folder = package_file("foolbox", "data", "imagenet_00_243.jpg").parent
    paths = sorted(folder.glob("imagenet_*.jpg"))
    assert len(paths) == 20
    return [(path.read_bytes(), int(path.stem.rpartition("_")[2])) for path in paths]


@pytest.fixture(scope="session")
def odd_images() -> list[Image.Image]:
    """Synthetic images of awkward sizes: odd, narrow, smaller than any crop, and exactly a crop."""
    rng = np.random.default_rng(7)
    images = []
    for height, width in ((333, 500), (501, 375), (97, 61), (224, 224), (257, 258), (640, 199)):
        coarse: npt.NDArray[np.uint8] = rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)
        images.append(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return images


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Caches of their own, and nothing that could reach the real Hub."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "torch-hub"))
