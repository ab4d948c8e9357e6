"""Losses over sets of classes: published forms for one class, and planted sets."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmark.attacks import goals

Z = torch.tensor([[3.0, 2.5, 1.0, -1.0, 0.0], [0.0, 4.0, 3.0, 2.0, 1.0]], dtype=torch.float64)


def inside(*sets: set[int]) -> torch.Tensor:
    mask = torch.zeros(len(sets), Z.shape[1], dtype=torch.bool)
    for row, classes in enumerate(sets):
        mask[row, list(classes)] = True
    return mask


def test_single_class_losses_are_the_published_ones() -> None:
    one = inside({0}, {2})
    assert torch.allclose(goals.margin(Z, one), torch.tensor([-0.5, 1.0], dtype=torch.float64))
    expected = torch.nn.functional.cross_entropy(Z, torch.tensor([0, 2]), reduction="none")
    assert torch.allclose(goals.cross_entropy(Z, one), expected)
    # -(z_y - max other) / (z_(1) - z_(3)), by hand.
    assert torch.allclose(goals.dlr(Z, one), torch.tensor([-0.5 / 2.0, 1.0 / 2.0], dtype=torch.float64))
    # -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2), by hand.
    targeted = goals.dlr_targeted(Z, one, torch.tensor([2, 1]))
    assert torch.allclose(targeted, torch.tensor([-2.0 / 2.5, 1.0 / 2.5], dtype=torch.float64))


def test_sets_leave_only_when_no_member_leads() -> None:
    both = inside({0, 1}, {0, 3})
    assert torch.allclose(goals.margin(Z, both), torch.tensor([-2.0, 2.0], dtype=torch.float64))
    assert goals.has_left(Z, both).tolist() == [False, True]
    # Merged into one class of logit 3, the first row ranks 3, 1, 0, -1.
    assert torch.allclose(goals.dlr(Z, both)[0], torch.tensor(-2.0 / 3.0, dtype=torch.float64))
    probabilities = Z.softmax(1)
    expected = -(probabilities * both).sum(1).log()
    assert torch.allclose(goals.cross_entropy(Z, both), expected)


@pytest.mark.parametrize("loss", [goals.dlr, lambda z, m: goals.dlr_targeted(z, m, torch.tensor([2, 2]))])
def test_ratio_losses_know_neither_shift_nor_scale(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    both = inside({0, 1}, {0, 3})
    assert torch.allclose(loss(Z, both), loss(7 * Z - 3, both))


def test_losses_stay_finite_when_few_classes_are_outside() -> None:
    wide = inside({0, 1, 2, 3}, {1, 2, 3, 4})
    target = torch.tensor([4, 0])
    for values in (goals.dlr(Z, wide), goals.dlr_targeted(Z, wide, target), goals.margin(Z, wide)):
        assert values.isfinite().all()
    assert goals.targets(Z, wide, 9).tolist() == [[4] * 9, [0] * 9]


def test_targets_are_the_likeliest_outside() -> None:
    assert goals.targets(Z, inside({0}, {1, 2}), 3).tolist() == [[1, 2, 4], [3, 4, 0]]


def test_what_is_not_finite_never_counts_as_success() -> None:
    z = torch.tensor([[torch.nan, 0.0], [0.0, torch.inf], [0.0, 1.0]])
    assert goals.has_left(z, torch.tensor([[False, True], [True, False], [True, False]])).tolist() == [
        False,
        False,
        True,
    ]
