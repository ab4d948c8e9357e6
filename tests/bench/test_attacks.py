"""Speed and strength beside AutoAttack on a real ImageNet network.

Both sides run in one process on the same images, batch size and threads. At the smaller radius AutoAttack
spends minutes on each image that stays robust, so that runs only where BEYOND_BENCH_IMAGES says on how many;
take at least 48, or AutoAttack's batches are not full. What an image that stays robust costs is also measured
in short, from a few steps of each attack at a radius where nothing breaks: a projection, named so.
"""

from __future__ import annotations

import copy
import importlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn

from benchmark.attacks import (
    APGD,
    FAB,
    Attack,
    Example,
    Execution,
    Net,
    Report,
    Square,
    Suite,
    evaluate,
    standard,
)
from benchmark.attacks.attack import Runs
from benchmark.classifier import Classifier
from benchmark.images import open_image_set
from benchmark.models import load
from benchmark.preprocessing import load_pixels
from tests.bench.rows import row

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
    row(
        benchmark,
        "Attacks",
        f"`standard`, L∞ {255 * eps:g}/255: {report.robust_accuracy():.1%} stay robust",
        ours=report.seconds,
        unit="s",
        peer=seconds,
        against=f"AutoAttack standard: {accuracy:.1%}",
        ratio=seconds / report.seconds,
        n=f"{count} images, once, {torch.get_num_threads()} threads",
    )
    assert report.robust_accuracy() <= accuracy


FULL = {"apgd-ce": 100, "apgd-t": 100, "fab-t": 100, "square": 5000}
FEW_STEPS, MORE_STEPS = 1, 3
# Parts of Square's schedule: first query, queries. Squares are of one size within each.
SCHEDULE = ((1, 11), (20, 40), (100, 150), (300, 300), (700, 500), (1500, 1000), (3000, 2000), (4500, 999))


def seconds(run: Callable[[], object]) -> float:
    began = time.monotonic()
    run()
    return time.monotonic() - began


def theirs(model: nn.Module, x: torch.Tensor, y: torch.Tensor, eps: float, name: str) -> float:
    """Seconds of AutoAttack's attack for its full budget, from what further steps cost."""
    package: Any = importlib.import_module("pyautoattack")

    def run(steps: int) -> float:
        oracle = package.AutoAttack(model, norm="Linf", eps=eps, version="custom", attacks=[name], seed=0)
        for attack in (oracle.apgd, oracle.apgd_targeted, oracle.fab):
            attack.n_iter, attack.n_restarts, attack.n_target_classes = steps, 1, 9
        oracle.square.n_queries = 10 * steps
        return seconds(lambda: oracle.run_standard_evaluation(x, y, batch_size=BATCH))

    scale = 10 if name == "square" else 1
    return (run(MORE_STEPS) - run(FEW_STEPS)) / (scale * (MORE_STEPS - FEW_STEPS)) * FULL[name]


def own(net: Net, examples: list[Example], eps: float, name: str) -> float:
    """Seconds of our attack for the same budget, from what further steps cost."""
    if name == "square":
        return own_square(net, examples, eps)

    # FAB saves passes once it has found its rhythm, and the final search of a run must cancel.
    few, more, targets = (12, 20, 3) if name == "fab-t" else (FEW_STEPS, MORE_STEPS, 9)

    def run(steps: int) -> float:
        attacks: dict[str, Attack[Any]] = {
            "apgd-ce": APGD(norm="linf", eps=eps, steps=steps),
            "apgd-t": APGD(norm="linf", eps=eps, loss="dlr-targeted", steps=steps),
            "fab-t": FAB(norm="linf", eps=eps, targeted=True, steps=steps, targets=targets),
        }
        suite = Suite("x", "", "linf", eps, (attacks[name],))
        return seconds(lambda: evaluate(net, examples, suite, batch_size=BATCH))

    return (run(more) - run(few)) / (more - few) * FULL[name] * 9 / targets


def own_square(net: Net, examples: list[Example], eps: float) -> float:
    """What a query costs depends on the size of its square, so each part of the schedule is measured."""
    attack = Square(norm="linf", eps=eps)
    inside = torch.zeros(len(examples), 1000, dtype=torch.bool)
    for i, example in enumerate(examples):
        inside[i, example.label] = True
    rows = torch.arange(len(examples))
    state = attack.start(net, Runs(torch.stack([e.image for e in examples]), inside, rows * 0, rows))

    def queries(count: int) -> float:
        def run() -> None:
            for _ in range(count):
                attack.step(net, state)

        return seconds(run)

    total = 0.0
    for first, count in SCHEDULE:
        state.step.fill_(first - 1)
        total += queries(1)  # fills memory, once for each size
        total += (count - 1) * queries(3) / 3
    return total


def test_projected_cost_of_a_robust_image(benchmark: BenchmarkFixture, shared_data: Path) -> None:
    """Seconds that `standard` takes for an image that stays robust, projected from a few steps."""
    eps = 0.01 / 255
    classifier = load("efficientnet-lite0")
    model = classifier.module
    candidates = photographs(shared_data, classifier, 2 * BATCH)
    with torch.no_grad():
        top = torch.cat([model(e.image[None]) for e in candidates]).topk(2, dim=1)
    # The images farthest from a decision, labelled as predicted, so that none breaks on either side.
    order = (top.values[:, 0] - top.values[:, 1]).argsort(descending=True)[:BATCH].tolist()
    examples = [Example(candidates[i].id, candidates[i].image, int(top.indices[i, 0])) for i in order]
    x, y = torch.stack([e.image for e in examples]), torch.tensor([e.label for e in examples])
    net = Net(model, execution=Execution.fast(), example=x[:4], rows=BATCH)
    other = copy.deepcopy(model)
    # The first passes of each kind set things up; a whole run pays for that once.
    own(net, examples, eps, "apgd-ce")
    theirs(other, x, y, eps, "apgd-ce")
    mine: dict[str, float] = benchmark.pedantic(
        lambda: {name: own(net, examples, eps, name) / BATCH for name in FULL}, rounds=1
    )
    peer = {name: theirs(other, x, y, eps, name) / BATCH for name in FULL}
    ratio = sum(peer.values()) / sum(mine.values())
    benchmark.extra_info.update(
        images=BATCH,
        threads=torch.get_num_threads(),
        packed=net.frozen.packed if net.frozen else net.unfrozen,
        projected_seconds={k: round(v, 1) for k, v in mine.items()},
        autoattack_projected_seconds={k: round(v, 1) for k, v in peer.items()},
        ratio=round(ratio, 2),
    )
    row(
        benchmark,
        "Attacks",
        "an image that stays robust, **projected** from a few steps of each attack",
        ours=sum(mine.values()),
        unit="s",
        peer=sum(peer.values()),
        against="AutoAttack standard",
        ratio=ratio,
        n=f"{BATCH} images, {torch.get_num_threads()} threads",
        note="no suite was run to its end",
    )
    assert all(v > 0 for v in (*mine.values(), *peer.values()))
