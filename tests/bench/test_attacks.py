"""Speed and strength beside AutoAttack on a real ImageNet network.

Both sides run in one process on the same images, batch size and threads. At the smaller radius AutoAttack
spends minutes on each image that stays robust, so that runs only where BEYOND_BENCH_IMAGES says on how many.
"""

from __future__ import annotations

import copy
import importlib
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn

from benchmark.attacks import Example, Execution, Report, evaluate, standard
from benchmark.classifier import Classifier
from benchmark.images import open_image_set
from benchmark.models import load
from benchmark.preprocessing import load_pixels

pytestmark = [pytest.mark.shared, pytest.mark.slow, pytest.mark.timeout(0)]

FEW = int(os.environ.get("BEYOND_BENCH_IMAGES", "0"))

BATCH = 16


def photographs(folder: Path, classifier: Classifier, count: int) -> list[Example]:
    images = open_image_set(str(folder / "ilsvrc-val-sample"), limit=count)
    examples = []
    for i, (image_id, label) in enumerate(zip(images.ids, images.labels)):
        pixels = load_pixels(images.read(i), classifier.preprocessing, name=image_id).copy()
        image = torch.from_numpy(pixels).permute(2, 0, 1).float().div(255).contiguous()
        examples.append(Example(image_id, image, int(label)))
    return examples


def ours(model: nn.Module, examples: list[Example], eps: float) -> Report:
    return evaluate(model, examples, standard("linf", eps), batch_size=BATCH, execution=Execution.fast())


def autoattack(model: nn.Module, examples: list[Example], eps: float) -> tuple[float, float]:
    """Robust accuracy and seconds of AutoAttack's standard version, by its authors' package."""
    package: Any = importlib.import_module("pyautoattack")
    x = torch.stack([e.image for e in examples])
    y = torch.tensor([e.label for e in examples])
    began = time.monotonic()
    oracle = package.AutoAttack(copy.deepcopy(model), norm="Linf", eps=eps, version="standard", seed=0)
    adversarial = oracle.run_standard_evaluation(x, y, batch_size=BATCH)
    seconds = time.monotonic() - began
    if isinstance(adversarial, tuple):
        adversarial = adversarial[0]
    with torch.no_grad():
        predictions = torch.cat([model(part).argmax(1) for part in adversarial.split(BATCH)])
    return float((predictions == y).float().mean()), seconds


@pytest.mark.parametrize(
    ("eps", "count"),
    [
        pytest.param(4 / 255, 64, id="all-break"),
        pytest.param(
            0.25 / 255,
            FEW,
            id="some-stay",
            marks=pytest.mark.skipif(not FEW, reason="takes an hour for 64: set BEYOND_BENCH_IMAGES"),
        ),
    ],
)
def test_standard_against_autoattack(
    benchmark: BenchmarkFixture, shared_data: Path, eps: float, count: int
) -> None:
    """Both run once, ours first; the ratio of times is recorded, and ours may leave no more images robust."""
    classifier = load("efficientnet-lite0")
    model, examples = classifier.module, photographs(shared_data, classifier, count)
    report: Report = benchmark.pedantic(lambda: ours(model, examples, eps), rounds=1)
    accuracy, seconds = autoattack(model, examples, eps)
    benchmark.extra_info.update(
        images=count,
        batch=BATCH,
        threads=torch.get_num_threads(),
        robust=report.robust_accuracy(),
        autoattack_robust=accuracy,
        seconds=round(report.seconds, 1),
        autoattack_seconds=round(seconds, 1),
        ratio=round(seconds / report.seconds, 2),
        stages=[str(stage) for stage in report.stages],
    )
    assert report.robust_accuracy() <= accuracy
