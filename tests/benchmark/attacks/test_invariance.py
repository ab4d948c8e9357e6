"""A verdict depends on its image alone: not on batch, order, shard, or a kill and resume.

In float64, where rounding decides nothing; `tests/benchmark/test_robustness_invariance.py` has float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmark.attacks import Done, Example, Outcome, Suite, evaluate, standard
from benchmark.attacks.goals import Objective
from tests.benchmark.attacks.networks import CIFAR, MNIST, robust_small
from tests.benchmark.attacks.test_scheduler import short, verdicts


class Killed(Exception):
    pass


def run(model: nn.Module, examples: Sequence[Example], suite: Suite, batch: int) -> list[Outcome]:
    return list(evaluate(model, examples, suite, batch_size=batch, dtype=torch.float64).outcomes)


def killed_and_resumed(
    model: nn.Module, examples: Sequence[Example], suite: Suite, batch: int, after: int
) -> list[Outcome]:
    """Stop once `after` images have survived the third attack, and go on with what was noted until then."""
    outcomes: list[Outcome] = []
    survived: dict[tuple[str, Objective], int] = {}

    def note(image_id: str, objective: Objective, count: int) -> None:
        survived[image_id, objective] = count
        if sum(c >= 3 for c in survived.values()) == after:
            raise Killed

    with pytest.raises(Killed):
        evaluate(
            model,
            examples,
            suite,
            batch_size=batch,
            dtype=torch.float64,
            on_outcome=lambda outcome, _: outcomes.append(outcome),
            on_survived=note,
        )
    assert 0 < len(outcomes) < len(examples)
    report = evaluate(
        model, examples, suite, batch_size=batch, dtype=torch.float64, done=Done(outcomes, survived)
    )
    return list(report.outcomes)


def assert_invariant(model: nn.Module, examples: list[Example], suite: Suite, *, alone: int) -> None:
    """Compare all ways to run a suite; one image at a time for the first `alone` images."""
    model = model.double()
    expected = verdicts(run(model, examples, suite, 32))
    assert {v[0] for v in expected.values()} == {"misclassified", "broken", "robust"}
    first = {(e.id, "original") for e in examples[:alone]}
    assert verdicts(run(model, examples[:alone], suite, 1)) == {k: expected[k] for k in first}
    assert verdicts(run(model, examples[::-1], suite, 8)) == expected
    shards = run(model, examples[::2], suite, 32) + run(model, examples[1::2], suite, 32)
    assert verdicts(shards) == expected
    resumed = verdicts(killed_and_resumed(model, examples, suite, 8, after=5))
    assert resumed == expected


@pytest.mark.shared
@pytest.mark.parametrize(("name", "eps"), [(CIFAR, 8 / 255), (MNIST, 0.35)])
def test_verdicts_depend_on_the_image_alone(shared_data: Path, name: str, eps: float) -> None:
    """All 200 images, all kinds of attack, at a tenth of the budgets: the same status, attack and step."""
    model, examples = robust_small(shared_data, name)
    assert_invariant(model, examples, short(eps), alone=12)


@pytest.mark.shared
@pytest.mark.strength
@pytest.mark.timeout(0)
@pytest.mark.parametrize(("name", "eps"), [(CIFAR, 8 / 255), (MNIST, 0.35)])
def test_verdicts_of_standard_depend_on_the_image_alone(shared_data: Path, name: str, eps: float) -> None:
    """All 200 images at full budget, at a radius that few stand, since those cost minutes one by one."""
    model, examples = robust_small(shared_data, name)
    assert_invariant(model, examples, standard("linf", eps), alone=len(examples))
