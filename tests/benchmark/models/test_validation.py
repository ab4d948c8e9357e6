"""Planted faults: each check finds its own, says what to do, and lets sound classifiers pass."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from annotations.classes import class_names
from benchmark.classifier import Classifier, Normalized
from benchmark.models import load
from benchmark.preprocessing import Preprocessing, load_pixels
from benchmark.validation import Check, alternatives, read_canary, validate

SPEC = Preprocessing((32, 32), 36)


class Small(nn.Module):
    """A sound little network, whose faults the tests plant."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Linear(32, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.pool(self.norm(self.conv(x)).relu()).flatten(1))
        return logits


class Wrapped(Small):
    """A network with something done before and after it."""

    def __init__(
        self,
        before: Callable[[torch.Tensor], torch.Tensor] = lambda x: x,
        after: Callable[[torch.Tensor], Any] = lambda x: x,
    ) -> None:
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x: torch.Tensor) -> Any:
        return self.after(super().forward(self.before(x)))


def classifier_of(module: nn.Module, spec: Preprocessing = SPEC) -> Classifier:
    return Classifier("test", "test", module, spec, "")


def checks_of(module: nn.Module, *, train: bool = False) -> dict[str, Check]:
    return {check.name: check for check in validate(classifier_of(module.train(train)))}


def failures(checks: dict[str, Check]) -> set[str]:
    return {name for name, check in checks.items() if check.passed is False}


FORM = [
    "eval mode", "classes", "finite logits", "logits", "input kept", "input range", "determinism",
    "batch invariance", "gradient", "weights kept",
]  # fmt: skip


def test_a_sound_classifier_passes_every_check_of_form() -> None:
    checks = checks_of(Small())
    assert list(checks) == [*FORM, "canary accuracy", "normalisation", "class order"]
    assert all(checks[name].passed for name in FORM)
    assert {checks[name].passed for name in list(checks)[len(FORM) :]} == {None}


@pytest.mark.parametrize(
    ("module", "expected", "words"),
    [
        (Wrapped(after=lambda y: y / 0), {"finite logits"}, "NaN or infinite"),
        (Wrapped(lambda x: x / x.amax((1, 2, 3), keepdim=True)), {"finite logits"}, "a black image are NaN"),
        (Wrapped(after=lambda y: y.softmax(1)), {"logits"}, "leave the softmax out"),
        (Wrapped(lambda x: x.sub_(0.5)), {"input kept"}, "in place"),
        (Wrapped(lambda x: x / 25500), {"input range"}, "do not divide by 255 again"),
        (Wrapped(after=lambda y: y + 1e-3 * torch.rand_like(y)), {"determinism"}, "switch off dropout"),
        (Wrapped(lambda x: x - x.mean(0)), {"batch invariance"}, "running statistics"),
        (Wrapped(lambda x: x.detach()), {"gradient"}, "does not reach the input"),
        (Wrapped(lambda x: (x * 255).round() / 255), {"gradient"}, "is zero"),
        (Wrapped(lambda x: (x * 0).sqrt() + x), {"gradient"}, "NaN"),
        (Wrapped(after=lambda y: (y, y)), {"classes"}, "returns tuple"),
        (Wrapped(after=lambda y: y[:, :, None, None]), {"classes"}, r"shape (2, 1000, 1, 1)"),
        (Wrapped(after=lambda y: y[:1]), {"classes"}, r"shape (1, 1000)"),
        (Wrapped(after=lambda y: (y * 100).long()), {"classes"}, "dtype torch.int64"),
        (Wrapped(lambda x: x.reshape(1, 2, 3)), {"classes"}, "the module fails (RuntimeError"),
        (Small(1001), {"classes"}, "background class first"),
        (Small(10), {"classes"}, "10 outputs"),
    ],
)
def test_planted_faults(module: nn.Module, expected: set[str], words: str) -> None:
    checks = checks_of(module)
    found = failures(checks)
    assert expected <= found
    # NaN spreads to what is computed from it; every other fault is found by its own check alone.
    assert found == expected or "finite logits" in expected
    assert any(words in checks[name].detail for name in expected)
    assert all("\n" not in check.detail for check in checks.values())


def test_no_grad_inside_is_found() -> None:
    class Frozen(Small):
        @torch.no_grad()
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)

    assert failures(checks_of(Frozen())) == {"gradient"}


def test_train_mode_is_found_by_all_its_symptoms() -> None:
    module = nn.Sequential(nn.Dropout(0.5), Small())
    checks = checks_of(module, train=True)
    assert failures(checks) == {"eval mode", "determinism", "batch invariance", "weights kept"}
    assert failures(checks_of(module)) == set()


def test_one_part_in_train_mode_is_named() -> None:
    module = nn.Sequential(Small(), nn.Dropout(0.5)).eval()
    module[1].train()
    check = {c.name: c for c in validate(classifier_of(module))}["eval mode"]
    assert check.passed is False
    assert "1 parts are in train mode, first 1" in check.detail


# The canary, on a real network at a small input so that it is quick


@pytest.fixture(scope="module")
def lite0() -> Classifier:
    classifier = load("efficientnet-lite0")
    small = dataclasses.replace(classifier.preprocessing, input_size=(128, 128), resize=146)
    return dataclasses.replace(classifier, preprocessing=small)


Canary = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]


@pytest.fixture(scope="module")
def canary(lite0: Classifier, photographs: list[tuple[bytes, int]]) -> Canary:
    pixels = [load_pixels(data, lite0.preprocessing, name="photo") for data, _ in photographs]
    return np.stack(pixels), np.array([label for _, label in photographs])


def network_of(classifier: Classifier) -> nn.Module:
    assert isinstance(classifier.module, Normalized)
    return classifier.module.network


def canary_checks(classifier: Classifier, canary: Canary) -> dict[str, Check]:
    return {check.name: check for check in validate(classifier, *canary)}


def test_the_real_network_passes(lite0: Classifier, canary: Canary) -> None:
    checks = canary_checks(lite0, canary)
    assert all(check.passed for check in checks.values()), checks


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RAW = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("mean", "std", "words"),
    [
        (*IMAGENET, "set mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)"),
        (*RAW, "set mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)"),
        (IMAGENET[0], (1 / 255,) * 3, "set mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)"),
    ],
)
def test_wrong_mean_and_std_are_named(
    lite0: Classifier, canary: Canary, mean: Any, std: Any, words: str
) -> None:
    spec = dataclasses.replace(lite0.preprocessing, mean=mean, std=std)
    module = Normalized(network_of(lite0), mean, std).eval()
    check = canary_checks(dataclasses.replace(lite0, module=module, preprocessing=spec), canary)[
        "normalisation"
    ]
    assert check.passed is False
    assert words in check.detail
    assert "first batch norm off by" in check.detail


def test_a_user_module_that_forgets_to_normalise(lite0: Classifier, canary: Canary) -> None:
    forgetful = dataclasses.replace(lite0, module=network_of(lite0))
    check = canary_checks(forgetful, canary)["normalisation"]
    assert check.passed is False
    assert (
        "its module seems not to normalise: return Normalized(network, mean=(0.5, 0.5, 0.5)" in check.detail
    )


def test_normalising_twice(lite0: Classifier, canary: Canary) -> None:
    spec = lite0.preprocessing
    twice = dataclasses.replace(lite0, module=Normalized(lite0.module, spec.mean, spec.std).eval())
    check = canary_checks(twice, canary)["normalisation"]
    assert check.passed is False
    assert "pixels in [0, 1] as they are" in check.detail


class Expects(nn.Module):
    """A network that was trained on another form of its input."""

    def __init__(self, network: nn.Module, undo: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.network, self.undo = network, undo

    def forward(self, x: torch.Tensor) -> Any:
        return self.network(self.undo(x))


def test_a_network_that_wants_0_to_255(lite0: Classifier, canary: Canary) -> None:
    # The network wants pixels in 0..255; what it gets is in [0, 1], so it sees all but black.
    module = Expects(lite0.module, lambda x: x / 255)
    spec = dataclasses.replace(lite0.preprocessing, mean=RAW[0], std=RAW[1])
    checks = canary_checks(dataclasses.replace(lite0, module=module.eval(), preprocessing=spec), canary)
    assert checks["canary accuracy"].passed is False
    assert checks["normalisation"].passed is False
    assert "pixels in 0..255" in checks["normalisation"].detail


@pytest.mark.shared
def test_swapped_channels(lite0: Classifier, shared_photographs: Canary) -> None:
    module = Expects(lite0.module, lambda x: x.flip(1)).eval()
    check = canary_checks(dataclasses.replace(lite0, module=module), shared_photographs)["normalisation"]
    assert check.passed is False
    assert "blue, green, red channels" in check.detail
    assert "x.flip(1)" in check.detail


@pytest.fixture(scope="module")
def shared_photographs(lite0: Classifier, request: pytest.FixtureRequest) -> Canary:
    """More photographs: swapped channels cost a network little, so twenty are too few to tell."""
    shared: Path = request.getfixturevalue("shared_data")
    folder = shared / "ilsvrc-val-sample"
    rows = [line.split(",") for line in (folder / "labels.csv").read_text().splitlines()[1:]][::12][:72]
    files = {
        path.stem: path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png")
    }
    pixels = [load_pixels(files[row[0]].read_bytes(), lite0.preprocessing, name=row[0]) for row in rows]
    return np.stack(pixels), np.array([int(row[1]) for row in rows])


def order_of(names: list[str]) -> torch.Tensor:
    return torch.tensor(sorted(range(1000), key=lambda i: names[i]))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (
            torch.arange(1000).roll(1),
            "every class index is 1 too high (a background class?): shift the outputs by -1",
        ),
        (torch.arange(1000).roll(-1), "every class index is 1 too low: shift the outputs by +1"),
        (order_of([name.lower() for name in class_names()]), "alphabetical order of their names"),
        (order_of([str(i) for i in range(1000)]), "order of their numbers as text"),
    ],
)
def test_other_class_orders_are_named(
    lite0: Classifier, canary: Canary, columns: torch.Tensor, words: str
) -> None:
    module = nn.Sequential(lite0.module, Columns(columns)).eval()
    checks = canary_checks(dataclasses.replace(lite0, module=module), canary)
    assert checks["class order"].passed is False
    assert words in checks["class order"].detail
    assert checks["canary accuracy"].passed is False


class Columns(nn.Module):
    """Outputs in another order: output j is what used to be output columns[j]."""

    def __init__(self, columns: torch.Tensor) -> None:
        super().__init__()
        self.columns = columns

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return logits[:, self.columns]


def test_an_untrained_network_is_no_classifier(canary: Canary) -> None:
    spec = Preprocessing((128, 128), 146)
    module = Normalized(Small(), spec.mean, spec.std).eval()
    checks = canary_checks(classifier_of(module, spec), canary)
    assert checks["canary accuracy"].passed is False
    assert "is it trained" in checks["canary accuracy"].detail
    assert checks["class order"].passed is True


def test_too_few_labels_are_not_judged(lite0: Classifier, canary: Canary) -> None:
    images, labels = canary
    unknown = labels.copy()
    unknown[5:] = -1
    checks = canary_checks(lite0, (images, unknown))
    assert checks["class order"].passed is None
    assert "5 labelled photographs; 10 are needed" in checks["class order"].detail


def test_alternatives_undo_what_is_inside(lite0: Classifier) -> None:
    x = torch.rand(1, 3, 4, 4)
    inside = lite0.module
    mean, std = inside.mean, inside.std
    for other in alternatives(lite0):
        if other.about == "ImageNet's mean and std":
            seen = (other.change(x) - mean) / std  # type: ignore[operator]
            wanted = (x - torch.tensor(IMAGENET[0]).view(3, 1, 1)) / torch.tensor(IMAGENET[1]).view(3, 1, 1)
            torch.testing.assert_close(seen, wanted, rtol=1e-4, atol=1e-4)
            break
    else:
        pytest.fail("no such alternative")


def test_reading_the_canary(lite0: Classifier) -> None:
    images, labels = read_canary("sample", lite0, limit=7)
    assert images.shape == (7, 128, 128, 3)
    assert images.dtype == np.uint8
    assert len(set(labels)) > 1


# Command line


def beyond(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmark", *arguments], capture_output=True, text=True, check=False
    )


OWN = """
import torch
from torch import nn
from benchmark.classifier import Classifier
from benchmark.preprocessing import Preprocessing

class Bad(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(3, 1000)
    def forward(self, x):
        return self.head(x.detach().mean((2, 3)) * 20)

def bad():
    return Classifier("", "bad", Bad(), Preprocessing((32, 32), 36), "")
"""


def test_validate_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN, encoding="utf-8")
    spec = f"{tmp_path / 'own.py'}:bad"
    shown = beyond("validate", spec)
    assert shown.returncode == 1
    assert "✗" in shown.stdout
    assert "✓" in shown.stdout
    assert "Traceback" not in shown.stderr
    assert shown.stderr.startswith(f"error: {spec} fails 2 of 13 checks: gradient, canary accuracy")
    as_json = beyond("validate", spec, "--json")
    assert as_json.returncode == 1
    report = json.loads(as_json.stdout)
    assert report["passed"] is False
    assert {c["name"] for c in report["checks"] if c["passed"] is False} == {"gradient", "canary accuracy"}
    assert report["model"]["spec"] == spec
    assert beyond("validate", "nonesuch").returncode == 2


def test_models_on_the_command_line() -> None:
    shown = beyond("models")
    assert shown.returncode == 0
    assert "efficientnet-lite0" in shown.stdout
    assert "path/to/file.py:factory" in shown.stdout
    listed = json.loads(beyond("models", "--all", "resnet18*", "--json").stdout)
    specs = {item["spec"] for item in listed}
    assert {"timm:resnet18.a1_in1k", "torchvision:resnet18@IMAGENET1K_V1"} <= specs
    assert {item["input_size"] for item in listed} <= {160, 224}
