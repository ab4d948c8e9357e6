"""Peak memory of attacked and criticized runs, by the resident size of their process: eight times the images,
one peak."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from annotations.classes import wnids
from benchmark.attack_records import iter_adversarials, read_attacks
from benchmark.criticism.records import distances_of, read_table
from benchmark.preprocessing import Preprocessing, load_pixels
from tests.benchmark.synthetic import jpeg

SIDE = 128
MODEL = textwrap.dedent(
    """
    import torch
    from torch import nn
    from benchmark.preprocessing import Preprocessing


    def model():
        torch.manual_seed(5)
        network = nn.Sequential(
            nn.Conv2d(3, 6, 8, stride=8), nn.ReLU(), nn.Conv2d(6, 8, 4, stride=4), nn.ReLU(),
            nn.Flatten(), nn.Linear(128, 1000),
        )
        return network, Preprocessing(input_size=(128, 128), resize=128, mean=(0.5,) * 3, std=(0.2,) * 3)
    """
)
# What one image takes, in bytes: its pixels as a network sees them.
IMAGE = 3 * SIDE * SIDE * 4


def make(folder: Path, count: int) -> tuple[Path, Path]:
    """A small convolutional network, and images that lie in the folders of the classes that it predicts."""
    file = folder / "small.py"
    file.write_text(MODEL)
    spec = importlib.util.spec_from_file_location("small", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network, preprocessing = module.model()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    shape = Preprocessing(input_size=(SIDE, SIDE), resize=SIDE)
    for k in range(count):
        data = jpeg(k)
        x = torch.from_numpy(load_pixels(data, shape, name=str(k)).copy()).permute(2, 0, 1).float() / 255
        with torch.no_grad():
            predicted = int(network(((x - mean) / std)[None]).argmax())
        target = folder / "images" / wnids()[predicted]
        target.mkdir(parents=True, exist_ok=True)
        (target / f"image{k:04d}.JPEG").write_bytes(data)
    return file, folder / "images"


def peak(file: Path, images: Path, out: Path, count: int, *track: str) -> int:
    """Largest resident size, in bytes, of a process that scores the first `count` images, on a track too."""
    options = ["--limit", str(count), "--top-k", "5", "--batch-size", "16", "--attack-batch-size", "16"]
    options += ["--workers", "0", "--threads", "1", *track]
    command = [sys.executable, "-m", "benchmark", "score", f"{file}:model", "--images", str(images)]
    # One arena, so that what is resident is what is in use.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    process = subprocess.Popen(
        [*command, *options, "--out", str(out)], env=environment, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="needs a POSIX system")
def test_peak_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    file, images = make(tmp_path, 512)
    track = ("--tracks", "rectified,robustness", "--eps", "0.25/255")
    peaks = {count: peak(file, images, tmp_path / str(count), count, *track) for count in (64, 512)}
    table = read_attacks(tmp_path / "512").table
    status = table["status"].value_counts()
    # Both kinds of work: many adversarials written, and many images that go through every attack.
    assert status["broken"] > 100
    assert status["robust"] > 20
    assert sum(1 for _ in iter_adversarials(tmp_path / "512")) == status["broken"]
    # To keep the pixels of each image but once would take all 448 more of them; what is resident wavers by a
    # tenth of that, whatever the number of images.
    assert peaks[512] - peaks[64] < (512 - 64) * IMAGE / 2


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="needs a POSIX system")
def test_peak_memory_of_distances_does_not_grow_with_the_images(tmp_path: Path) -> None:
    file, images = make(tmp_path, 512)
    track = ("--tracks", "rectified,criticism")
    peaks = {count: peak(file, images, tmp_path / str(count), count, *track) for count in (64, 512)}
    found = distances_of(read_table(tmp_path / "512"), "quick")
    assert (found.status == "found").sum() == 512
    assert peaks[512] - peaks[64] < (512 - 64) * IMAGE / 2
