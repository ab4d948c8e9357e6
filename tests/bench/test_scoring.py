"""Scoring images from files against the bare forward pass over ready-made tensors, in one process."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmark.classifier import Classifier
from benchmark.engine import Settings, predict
from benchmark.images import ImageSet, open_image_set
from benchmark.models import load
from benchmark.preprocessing import load_pixels

BATCH, N, ROUNDS = 64, 256, 3


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return load("efficientnet-lite0")


@pytest.fixture(scope="module")
def images(shared_data: Path) -> ImageSet:
    return open_image_set(str(shared_data / "ilsvrc-val-sample"), limit=N)


@pytest.fixture(scope="module")
def forward(classifier: Classifier, images: ImageSet) -> Callable[[], None]:
    """The bare forward pass, as fast as we know how: channels-last, inference mode, tensors in memory."""
    pixels = [
        load_pixels(images.read(i), classifier.preprocessing, name=images.ids[i]) for i in range(len(images))
    ]
    tensors = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float().div_(255)
    assert tensors.is_contiguous(memory_format=torch.channels_last)
    module = classifier.module.to(memory_format=torch.channels_last)

    def run() -> None:
        with torch.inference_mode():
            for start in range(0, len(tensors), BATCH):
                module(tensors[start : start + BATCH])

    run()
    return run


@pytest.mark.shared
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_throughput_against_the_bare_forward_pass(
    benchmark: BenchmarkFixture,
    classifier: Classifier,
    images: ImageSet,
    forward: Callable[[], None],
    tmp_path: Path,
    workers: int,
) -> None:
    """The ratio is the median over rounds that time both, one after the other."""
    settings = Settings(batch_size=BATCH, workers=workers, quiet=True)
    bare: list[float] = []
    whole: list[float] = []

    def score() -> None:
        start = time.perf_counter()
        summary = predict(classifier, images, tmp_path / str(len(whole)), settings, done=set(), warn=print)
        whole.append(time.perf_counter() - start)
        assert summary.scored == len(images)

    def before() -> None:
        start = time.perf_counter()
        forward()
        bare.append(time.perf_counter() - start)

    benchmark.pedantic(score, setup=before, rounds=ROUNDS)
    benchmark.extra_info.update(
        images=len(images),
        threads=torch.get_num_threads(),
        images_per_second=round(len(images) / median(whole), 1),
        forward_images_per_second=round(len(images) / median(bare), 1),
        ratio=round(median(b / w for b, w in zip(bare, whole)), 3),
    )
