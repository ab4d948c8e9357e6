"""Clocks that jump: runs do not look at them, campaigns neither lose nor count an answer twice."""

from __future__ import annotations

import itertools
import random
import time
from pathlib import Path

import pytest

from annotations.campaign.store import Store
from benchmark.progress import Meter
from tests.annotations.campaign.conftest import Clock, MakeCampaign, Person, clock, make
from tests.faults.conftest import Scene, call

__all__ = ["clock", "make"]

HOUR = 3600.0


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'campaign.db'}"


def test_a_run_under_a_clock_that_goes_backwards(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And forwards, every time anyone looks."""
    jumps = itertools.cycle([0, -HOUR, -2 * HOUR, 24 * HOUR, -1e6, 1.5])
    monkeypatch.setattr(time, "time", lambda: 1.79e9 + next(jumps))
    assert call(scene.arguments(tmp_path / "run")) == 0
    assert call(scene.arguments(tmp_path / "run")) == 0
    scene.require_same(tmp_path / "run")


def test_progress_does_not_look_at_the_clock_on_the_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: -1e9)
    meter = Meter("Scoring", 100)
    meter.advance(50)
    assert 0 < meter.rate() < float("inf")
    assert "50 of 100" in meter.line()
    assert "-" not in meter.line()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_campaign_under_a_clock_that_jumps(make: MakeCampaign, clock: Clock, seed: int) -> None:
    """Leases run out too early or too late; votes are as many as asked for, each of another person."""
    rng = random.Random(seed)
    store: Store = make(pairs=8, gold=0, votes=5)
    people = [Person(store) for _ in range(9)]
    acknowledged: set[tuple[int, str]] = set()
    for _ in range(250):
        clock.now += rng.choice([1, 1, 1, 5, 60, HOUR, 30 * HOUR, -HOUR, -40 * HOUR, -1])
        person = rng.choice(people)
        held = person.ask(rng.randint(1, 4))
        for token in rng.sample(held, min(len(held), rng.randint(0, 3))):
            if person.answer(token, rng.choice(["yes", "no"])) == "recorded":
                acknowledged.add((person.id, token))
        if store.status().coverage.complete == 8:
            break
    votes = store.votes()
    counted = votes.question[votes.counted]
    assert len(votes.answer) == len(acknowledged)  # every acknowledged answer is there, once
    assert len({*zip(votes.question.tolist(), votes.rater.tolist())}) == len(votes.answer)
    assert [int((counted == question).sum()) for question in range(8)] == [5] * 8
    assert store.check() == []


def test_a_session_outlives_a_clock_that_was_set_back(make: MakeCampaign, clock: Clock) -> None:
    person = Person(make())
    clock.now -= 400 * 24 * HOUR
    assert person.store.person(person.session) is not None
    assert person.ask(2)
