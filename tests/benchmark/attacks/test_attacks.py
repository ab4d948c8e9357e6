"""Each attack on a linear model, where the truth is known, and distances beside foolbox."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from annotations.errors import BeyondError
from benchmark.attacks import (
    APGD,
    DDN,
    FAB,
    FGSM,
    FMN,
    PGD,
    Attack,
    DeepFool,
    Hybrid,
    Square,
    Suite,
    evaluate,
)
from benchmark.attacks.apgd import checkpoints
from benchmark.attacks.geometry import Norm
from benchmark.attacks.square import bumps
from tests.benchmark.attacks.networks import CIFAR, Linear, linear_examples, robust_small

NORMS: tuple[Norm, ...] = ("linf", "l2")


def true_distance(model: Linear, image: torch.Tensor, label: int, norm: Norm) -> float:
    """Distance of an image to the nearest decision boundary of a linear model, the box aside."""
    z = model(image[None].to(model.weight.dtype))[0]
    others = [c for c in range(len(z)) if c != label]
    gaps = torch.stack([z[label] - z[c] for c in others])
    normals = torch.stack([model.weight[label] - model.weight[c] for c in others])
    dual = normals.abs().sum(1) if norm == "linf" else normals.norm(dim=1)
    return float((gaps / dual).min())


def suite(*attacks: Attack[Any]) -> Suite:
    return Suite("test", "test", attacks[0].norm, attacks[0].eps, attacks)


def within(norm: Norm, eps: float) -> list[Attack[Any]]:
    return [
        FGSM(norm=norm, eps=eps),
        PGD(norm=norm, eps=eps),
        APGD(norm=norm, eps=eps, loss="ce"),
        APGD(norm=norm, eps=eps, loss="dlr"),
        APGD(norm=norm, eps=eps, loss="dlr-targeted", targets=3, steps=30),
        FAB(norm=norm, eps=eps),
        FAB(norm=norm, eps=eps, targeted=True, targets=3, restarts=2),
        Hybrid(norm=norm, eps=eps),
        Square(norm=norm, eps=eps),
    ]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("number", range(9))
def test_breaks_just_beyond_the_boundary_and_never_before(norm: Norm, number: int) -> None:
    model = Linear(dtype=torch.float64)
    for example in linear_examples(model, 2):
        distance = true_distance(model, example.image, example.label, norm)
        for factor, expected in ((0.97, "robust"), (1.5, "broken")):
            attack = within(norm, factor * distance)[number]
            if isinstance(attack, Square) and expected == "robust":
                attack = replace(attack, queries=200)
            if isinstance(attack, FGSM) and norm == "l2" and expected == "broken":
                continue  # one step along the cross-entropy need not reach the nearest boundary
            if isinstance(attack, Square | Hybrid) and norm == "l2" and expected == "broken":
                attack = replace(attack, eps=4 * distance)
            report = evaluate(model, [example], suite(attack), dtype=torch.float64)
            if isinstance(attack, FGSM) and expected == "broken" and report.outcomes[0].status == "robust":
                continue
            assert report.outcomes[0].status == expected, (attack, factor)
            if expected == "broken":
                assert 0 < report.outcomes[0].distance <= attack.radius + 1.2e-7


@pytest.mark.parametrize("norm", NORMS)
def test_closest_attacks_find_the_closed_form(norm: Norm) -> None:
    model = Linear(dtype=torch.float64)
    least = 2e-4 if norm == "linf" else 5e-3  # DDN's steps are too long for images on the boundary
    examples = [
        e for e in linear_examples(model, 20) if true_distance(model, e.image, e.label, norm) > least
    ][:6]
    assert len(examples) == 6
    attacks: list[Attack[Any]] = [DeepFool(norm=norm), FAB(norm=norm), FAB(norm=norm, targeted=True)]
    if norm == "l2":
        attacks += [DDN(first_radius=0.05, step_size=0.02, steps=200), FMN(), FMN(random=True)]
    for attack in attacks:
        report = evaluate(model, examples, suite(attack), dtype=torch.float64)
        for example, outcome in zip(examples, report.outcomes, strict=True):
            truth = true_distance(model, example.image, example.label, norm)
            # Within the attack's own overshoot, step of length or search; never closer than the truth.
            # DDN follows the cross-entropy, which mixes the boundaries, and FMN the likeliest other class,
            # which need not have the nearest of them.
            slack = 1.25 if isinstance(attack, DDN) else 1.12 if isinstance(attack, FMN) else 1.06
            assert truth * (1 - 1e-5) <= outcome.distance <= truth * slack, attack


def test_checkpoints_are_the_papers() -> None:
    # Croce and Hein 2020, section 3.1, for N = 100: the differences shrink by 3 from 22 down to 6.
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]


@pytest.mark.parametrize("side", [3, 5, 9, 44])
def test_bumps_have_norm_one_and_two_signs(side: int) -> None:
    square = bumps(side)
    assert float(square.norm()) == pytest.approx(1)
    assert (square[: side // 2] > 0).all()
    assert (square[side // 2 :] < 0).all()


def test_square_halves_its_area_on_schedule() -> None:
    sides = Square(norm="linf", eps=0.1).sides(
        torch.tensor([1, 11, 51, 201, 501, 1001, 2001, 4001]), 224, 224
    )
    areas = (sides.double() / 224) ** 2
    assert torch.allclose(areas, 0.8 / 2 ** torch.arange(8).double(), rtol=0.05)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DDN(norm="linf"), "not defined"),
        (lambda: PGD(norm="linf"), "needs a radius"),
        (lambda: FGSM(norm="linf", eps=-1.0), "positive"),
        (lambda: Suite("x", "", "linf", 0.1, (FGSM(norm="l2", eps=0.1),)), "mixes"),
    ],
)
def test_wrong_settings_are_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(BeyondError, match=words):
        make()


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "norm"), [("DeepFool", "linf"), ("DeepFool", "l2"), ("DDN", "l2"), ("FMN", "l2")]
)
def test_median_distance_is_foolboxs_or_smaller(shared_data: Path, name: str, norm: Norm) -> None:
    foolbox = pytest.importorskip("foolbox")
    model, examples = robust_small(shared_data, CIFAR, 100)
    x, y = torch.stack([e.image for e in examples]), torch.tensor([e.label for e in examples])
    right = model(x).argmax(1) == y
    examples = [e for e, r in zip(examples, right.tolist(), strict=True) if r]
    peers = {
        ("DeepFool", "linf"): foolbox.attacks.LinfDeepFoolAttack,
        ("DeepFool", "l2"): foolbox.attacks.L2DeepFoolAttack,
        ("DDN", "l2"): foolbox.attacks.DDNAttack,
        ("FMN", "l2"): foolbox.attacks.L2FMNAttack,
    }
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    found, _, success = peers[name, norm]()(wrapped, x[right], y[right], epsilons=None)
    assert success.all()
    delta = (found - x[right]).flatten(1)
    theirs = float((delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)).median())
    # A quarter of the steps of foolbox's FMN, which takes 100 and more.
    mine: dict[str, Attack[Any]] = {"DeepFool": DeepFool(norm=norm), "DDN": DDN(), "FMN": FMN(steps=25)}
    attack = mine[name]
    report = evaluate(model, examples, suite(attack), batch_size=100)
    assert all(o.status == "broken" for o in report.outcomes)
    ours = float(torch.tensor([o.distance for o in report.outcomes]).median())
    assert ours <= 1.02 * theirs


@pytest.mark.parametrize("norm", NORMS)
def test_a_closest_point_that_rounding_takes_back_is_pushed_over(norm: Norm) -> None:
    model = Linear(dtype=torch.float64)
    near = [e for e in linear_examples(model, 20) if true_distance(model, e.image, e.label, "linf") < 1e-4]
    assert near
    report = evaluate(model, near, suite(FAB(norm=norm)), dtype=torch.float64)
    assert all(o.status == "broken" for o in report.outcomes)
