"""Distances to the decision boundary of a real network, beside foolbox's, and whatever the batch size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from benchmark import attacks
from benchmark.attack_engine import AttackedImages
from benchmark.classifier import Classifier
from benchmark.criticism.distances import closest, execution_on
from benchmark.images import open_image_set
from benchmark.models import load

EXECUTION = execution_on(torch.device("cpu"))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def lite0() -> Classifier:
    return load("efficientnet-lite0")


def examples_of(classifier: Classifier, folder: Path, rows: range) -> list[attacks.Example]:
    """Images of the sample, each with what the model predicts as the class to leave."""
    images = open_image_set(str(folder))
    source = AttackedImages(images, list(rows), classifier.preprocessing, {})
    try:
        pixels = np.stack([source.pixels(i) for i in range(len(rows))])
    finally:
        source.close()
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255)
    with torch.no_grad():
        predicted = classifier.module.eval()(x).argmax(1).tolist()
    return [attacks.Example(source.ids[i], x[i], predicted[i]) for i in range(len(rows))]


def distances(
    classifier: Classifier, examples: list[attacks.Example], batch_size: int
) -> npt.NDArray[np.float64]:
    found, _ = closest(
        classifier.module, examples, attacks.boundary("quick"), batch_size=batch_size, execution=EXECUTION
    )
    assert {result.status for result in found} == {"found"}
    return np.array([result.distance for result in found])


def beside_foolbox(classifier: Classifier, examples: list[attacks.Example]) -> npt.NDArray[np.float64]:
    """Distances of foolbox's DeepFool with its defaults; infinite where it finds nothing."""
    foolbox = pytest.importorskip("foolbox")
    model = foolbox.PyTorchModel(classifier.module.eval(), bounds=(0, 1), device="cpu")
    x, y = torch.stack([e.image for e in examples]), torch.tensor([e.label for e in examples])
    found, _, success = foolbox.attacks.L2DeepFoolAttack()(model, x, y, epsilons=None)
    norms = (found - x).flatten(1).double().norm(dim=1).numpy()
    return np.where(success.numpy(), norms, np.inf)


@pytest.mark.shared
def test_quick_distances_are_below_foolboxs_deepfool_and_know_no_batch_size(
    shared_data: Path, lite0: Classifier
) -> None:
    examples = examples_of(lite0, shared_data / "ilsvrc-val-sample" / "images", range(0, 878, 220))
    ours = distances(lite0, examples, batch_size=4)
    assert np.median(ours) <= np.median(beside_foolbox(lite0, examples))
    for batch_size, some in ((1, [0]), (2, [1, 2])):
        again = distances(lite0, [examples[i] for i in some], batch_size)
        np.testing.assert_allclose(again, ours[some], rtol=1e-3)
