from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from torch import nn

from benchmark.classifier import Classifier
from benchmark.explanations.guards import deletion_insertion, parameter_randomisation
from benchmark.explanations.heatmaps import Heatmaps, grad_cam
from benchmark.models import fingerprint
from tests.benchmark.explanations.networks import classifier_of, images, plain_cnn

SIZE = 16


class Corner(nn.Module):
    """Class 7 is a bright top-left quarter; nothing else matters."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(6.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(x), 1000, dtype=x.dtype)
        logits[:, 7] = 5 + self.gain * x[:, :, : SIZE // 2, : SIZE // 2].mean(dim=(1, 2, 3))
        return logits


@pytest.fixture
def corner() -> Classifier:
    return classifier_of(Corner(), SIZE)


def heat_of(maps: torch.Tensor) -> Heatmaps:
    n = len(maps)
    return Heatmaps(maps, torch.full((n,), 7), torch.zeros(n, 1000), (SIZE, SIZE))


def planted(right: bool) -> torch.Tensor:
    """Maps on a 4 × 4 grid that are hot in the quarter that matters, or in the opposite one."""
    maps = torch.zeros(2, 4, 4)
    maps[(slice(None), slice(0, 2), slice(0, 2)) if right else (slice(None), slice(2, 4), slice(2, 4))] = 1.0
    return maps


def test_a_right_map_passes_and_a_wrong_one_fails(corner: Classifier) -> None:
    # Blurring takes light from the bright quarter, so that inserting it back matters.
    x = torch.full((2, 3, SIZE, SIZE), 0.1)
    x[:, :, : SIZE // 2, : SIZE // 2] = 0.95
    right = deletion_insertion(corner, x, heat_of(planted(True)), ["a", "b"], steps=8, random_maps=8)
    wrong = deletion_insertion(corner, x, heat_of(planted(False)), ["a", "b"], steps=8, random_maps=8)
    assert right.passed
    assert not wrong.passed
    assert (right.deletion_area < wrong.deletion_area).all()
    assert right.random_deletion_area.shape == (2, 8)


def test_curves_have_their_closed_form(corner: Classifier) -> None:
    """With the hot quarter on a pixel grid, the curve is a function of how much of the quarter is left."""
    bright = 0.95
    x = torch.full((1, 3, SIZE, SIZE), bright)
    maps = torch.zeros(1, SIZE, SIZE)
    maps[0, : SIZE // 2, : SIZE // 2] = torch.rand(SIZE // 2, SIZE // 2) + 0.1
    found = deletion_insertion(corner, x, heat_of(maps), ["a"], steps=16, random_maps=1, batch_size=5)
    spec = corner.preprocessing
    mean, std = np.array(spec.mean), np.array(spec.std)

    def probability(share: float) -> float:
        value = ((bright - mean) / std * (1 - share)).mean()
        score = np.exp(5 + 6 * value)
        return float(score / (score + 999))

    gone = np.minimum(found.fractions * 4, 1.0)
    np.testing.assert_allclose(found.deletion[0], [probability(share) for share in gone], atol=1e-5)
    # A flat image is its own blurred copy.
    np.testing.assert_allclose(found.insertion[0], probability(0), atol=1e-5)
    np.testing.assert_allclose(found.deletion_area, trapezoid(found.deletion, found.fractions))
    np.testing.assert_allclose(found.insertion_area, trapezoid(found.insertion, found.fractions))


def test_ends_of_the_curves(corner: Classifier) -> None:
    x = images(2, SIZE)
    found = deletion_insertion(corner, x, heat_of(planted(True)), ["a", "b"], steps=4, random_maps=1)
    with torch.no_grad():
        clean = corner(x).softmax(dim=1)[:, 7].numpy()
        mean = torch.tensor(corner.preprocessing.mean).view(1, 3, 1, 1).expand(1, 3, SIZE, SIZE)
        grey = float(corner(mean).softmax(dim=1)[0, 7])
    np.testing.assert_allclose(found.deletion[:, 0], clean, rtol=1e-4)
    np.testing.assert_allclose(found.insertion[:, -1], clean, rtol=1e-4)
    np.testing.assert_allclose(found.deletion[:, -1], grey, rtol=1e-4)


def test_random_maps_depend_on_the_image_id_alone(corner: Classifier) -> None:
    x = images(3, SIZE)
    maps = torch.rand(3, 4, 4)
    ids = ["a", "b", "c"]
    together = deletion_insertion(corner, x, heat_of(maps), ids, steps=4)
    turned = deletion_insertion(corner, x.flip(0), heat_of(maps.flip(0)), ids[::-1], steps=4, batch_size=2)
    np.testing.assert_allclose(turned.random_deletion_area[::-1], together.random_deletion_area, rtol=1e-5)
    np.testing.assert_allclose(turned.insertion[::-1], together.insertion, rtol=1e-5)
    other = deletion_insertion(corner, x, heat_of(maps), ["d", "e", "f"], steps=4)
    assert not np.allclose(other.random_deletion_area, together.random_deletion_area)


def test_lengths_must_fit(corner: Classifier) -> None:
    with pytest.raises(ValueError):
        deletion_insertion(corner, images(2, SIZE), heat_of(planted(True)), ["a"])


# ---------------------------------------------------------------------------------------------- randomisation


def cam(classifier: Classifier, x: torch.Tensor, classes: torch.Tensor) -> Heatmaps:
    return grad_cam(classifier, x, classes)


def edges(classifier: Classifier, x: torch.Tensor, classes: torch.Tensor) -> Heatmaps:
    """An explanation that looks at the image and ignores the model."""
    grey = x.mean(dim=1)
    return Heatmaps((grey - grey.roll(1, 2)).abs(), classes, torch.zeros(len(x), 1000), (32, 32))


def test_an_explanation_that_ignores_the_weights_fails() -> None:
    classifier = classifier_of(plain_cnn())
    x, classes = images(6, 32), torch.arange(6)
    found = parameter_randomisation(classifier, x, edges, classes=classes, stages=4)
    np.testing.assert_allclose(found.similarity, 1.0)
    assert not found.passed


def test_grad_cam_depends_on_the_weights() -> None:
    classifier = classifier_of(plain_cnn())
    x, classes = images(12, 32), torch.arange(12)
    found = parameter_randomisation(classifier, x, cam, classes=classes, stages=4)
    assert found.similarity.shape == (4, 12)
    assert found.passed
    # From the output to the input, one layer at a time here.
    assert found.layers == ("network.7", "network.3", "network.1", "network.0")


def test_randomisation_keeps_the_distribution_and_the_original() -> None:
    classifier = classifier_of(plain_cnn())
    before = fingerprint(classifier.module)
    seen: list[Classifier] = []

    def watch(given: Classifier, x: torch.Tensor, classes: torch.Tensor) -> Heatmaps:
        seen.append(replace(given))
        return edges(given, x, classes)

    x = images(1, 32)
    parameter_randomisation(classifier, x, watch, classes=torch.tensor([1]), stages=2, seed=3)
    assert fingerprint(classifier.module) == before
    last = dict(seen[-1].module.named_parameters())
    for name, parameter in classifier.module.named_parameters():
        if len(set(parameter.flatten().tolist())) > 1:
            assert not torch.equal(last[name], parameter)
        assert torch.equal(last[name].flatten().sort().values, parameter.flatten().sort().values)


def test_the_same_seed_gives_the_same_check() -> None:
    classifier = classifier_of(plain_cnn())
    x, classes = images(3, 32), torch.arange(3)
    one, two, other = (
        parameter_randomisation(classifier, x, cam, classes=classes, stages=3, seed=seed).similarity
        for seed in (1, 1, 2)
    )
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)
    with pytest.raises(ValueError):
        parameter_randomisation(classifier, x, cam, classes=classes, stages=99)
