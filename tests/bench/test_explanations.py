"""Grad-CAM against pytorch-grad-cam: the same network, images, classes and threads, in turns."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmark.classifier import Classifier
from benchmark.decoding import Decoder
from benchmark.explanations.heatmaps import grad_cam, upsample
from benchmark.explanations.layers import find_spatial_layer
from benchmark.images import open_image_set
from benchmark.models import load
from tests.bench.rows import row
from tests.benchmark.explanations.networks import timm_classifier

BATCH, ROUNDS = 8, 4
MODELS: dict[str, Callable[[], Classifier]] = {
    "efficientnet-lite0": lambda: load("efficientnet-lite0"),
    "resnet18": lambda: timm_classifier("resnet18"),
}


def photographs(classifier: Classifier) -> torch.Tensor:
    """Sample photographs as the classifier sees them, (BATCH, 3, H, W)."""
    images = open_image_set("sample", limit=BATCH)
    with Decoder(classifier.preprocessing, workers=0, batch_size=BATCH) as decoder:
        (batch,) = decoder.batches(chunk.handles for chunk in images.chunks(BATCH))
    return torch.from_numpy(batch.pixels).permute(0, 3, 1, 2).float().div_(255).contiguous()


@pytest.mark.parametrize("name", MODELS)
def test_grad_cam_against_the_package(benchmark: BenchmarkFixture, name: str) -> None:
    """The package is timed as its users run it, and with frozen weights, which saves it their gradients.

    Ratios are medians over rounds that time all three, one after the other.
    """
    package: Any = importlib.import_module("pytorch_grad_cam")
    targets: Any = importlib.import_module("pytorch_grad_cam.utils.model_targets")
    classifier = MODELS[name]()
    module, layer, x = classifier.module, find_spatial_layer(classifier), photographs(classifier)
    with torch.no_grad():
        classes = classifier(x).argmax(dim=1)
    wanted = [targets.ClassifierOutputTarget(label) for label in classes.tolist()]
    results: dict[str, Any] = {}

    def ours() -> None:
        results["ours"] = grad_cam(classifier, x, classes, layer=layer)
        results["pixels"] = results["ours"].at_pixels()

    def theirs(*, frozen: bool) -> float:
        module.requires_grad_(not frozen)
        layers = [module.get_submodule(layer.name)]
        with package.GradCAM(model=module, target_layers=layers) as engine:
            engine.compute_input_gradient = frozen
            start = time.perf_counter()
            results["theirs"] = engine(input_tensor=x, targets=wanted)
            wall = time.perf_counter() - start
        module.zero_grad(set_to_none=True)
        module.requires_grad_(False)
        return wall

    walls: dict[str, list[float]] = {"ours": [], "package": [], "package, frozen": []}

    def timed() -> None:
        start = time.perf_counter()
        ours()
        walls["ours"].append(time.perf_counter() - start)

    def before() -> None:
        walls["package"].append(theirs(frozen=False))
        walls["package, frozen"].append(theirs(frozen=True))

    ours()  # warm up
    theirs(frozen=False)
    benchmark.pedantic(timed, setup=before, rounds=ROUNDS)

    # The same maps, once ours are stretched to [0, 1] as the package stretches its own: twice.
    maps = results["ours"].maps
    low, high = (getattr(maps.flatten(1), bound)(dim=1)[:, None, None] for bound in ("amin", "amax"))
    stretched = upsample((maps - low) / (high - low), results["ours"].size).numpy()
    stretched -= stretched.min(axis=(1, 2), keepdims=True)
    stretched /= stretched.max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(stretched, results["theirs"], atol=1e-3)

    def ratio(peer: str) -> float:
        return round(median(p / o for p, o in zip(walls[peer], walls["ours"])), 2)

    benchmark.extra_info.update(
        images=BATCH,
        threads=torch.get_num_threads(),
        images_per_second=round(BATCH / median(walls["ours"]), 1),
        package_images_per_second=round(BATCH / median(walls["package"]), 1),
        ratio=ratio("package"),
        ratio_frozen=ratio("package, frozen"),
    )
    for peer, words in (
        ("package", "pytorch-grad-cam"),
        ("package, frozen", "pytorch-grad-cam, weights frozen"),
    ):
        row(
            benchmark,
            "Explanations",
            f"Grad-CAM of {name}",
            ours=BATCH / median(walls["ours"]),
            unit="images/s",
            peer=BATCH / median(walls[peer]),
            against=words,
            ratio=median(p / o for p, o in zip(walls[peer], walls["ours"])),
            n=f"{BATCH} images, {ROUNDS} rounds, {torch.get_num_threads()} threads",
        )
    assert ratio("package") >= 2
