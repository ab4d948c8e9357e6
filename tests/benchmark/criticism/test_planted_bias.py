"""A planted bias is found and proved; where none is planted, nothing is."""

from __future__ import annotations

import pytest
import torch

from benchmark.criticism.findings import LEVEL
from tests.benchmark.criticism.planted import PLANTED, criticized, make


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def planted_and_found(seed: int) -> bool:
    """Whether the planted attribute, and in its class the right direction, is among the confirmed."""
    found = criticized(make(seed, biased=True))
    return any(
        f.attribute == PLANTED and f.subject == 0 and float(f.confirmation.difference.value) < 0
        for f in found.confirmed
    )


def test_the_planted_bias_is_confirmed_and_described() -> None:
    found = criticized(make(1, biased=True))
    first = next(f for f in found.confirmed if f.attribute == PLANTED)
    # The mark speaks for class 0, so images of it without the mark are the criticisms.
    assert first.subject == 0
    assert first.confirmation.difference.high < 0
    assert first.discovery.difference.high < 0
    assert first.confirmation.adjusted <= LEVEL
    assert first.confirmation.n_first == first.confirmation.n_second > 20
    assert first.discovery.n_first > 20
    assert 0.3 < first.confirmation.base / first.confirmation.n_base < 0.7


def test_a_planted_bias_is_found_and_an_innocent_world_acquitted() -> None:
    assert sum(planted_and_found(seed) for seed in range(10)) >= 9
    assert sum(bool(criticized(make(seed, biased=False)).confirmed) for seed in range(20)) <= 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_over_a_hundred_seeds() -> None:
    assert sum(planted_and_found(seed) for seed in range(100)) >= 95
    assert sum(bool(criticized(make(seed, biased=False)).confirmed) for seed in range(100)) <= 5
