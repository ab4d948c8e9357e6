"""Campaigns for tests, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from annotations.campaign.config import CampaignConfig
from annotations.campaign.store import Store
from annotations.campaign.types import Answer, Item, NewGold, NewImage, NewPair
from tests.postgresql import postgresql

__all__ = ["postgresql"]


class Clock:
    """Time that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1_790_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new, empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'campaign.db'}"
    name: str = request.getfixturevalue("postgresql").new_database()
    return name


MakeCampaign = Callable[..., Store]


@pytest.fixture
def make(url: str, clock: Clock) -> Iterator[MakeCampaign]:
    """Make a campaign of `pairs` pairs (image i, class i % 1000) and `gold` known ones (yes, no in turn)."""
    made: list[Store] = []

    def new(
        pairs: int = 10,
        gold: int = 20,
        practice: int = 0,
        *,
        classes_per_image: int = 1,
        priority: Callable[[int], float] = lambda i: 0.0,
        **settings: Any,
    ) -> Store:
        settings = {"practice_questions": 0, "qualification_questions": 0, "gold_rate": 0.0} | settings
        images = [NewImage(f"i{n}", f"i{n}.jpg", n % 1000) for n in range(pairs)]
        images += [NewImage(f"g{n}", f"g{n}.jpg", n % 1000) for n in range(gold + practice)]
        store = Store.create(
            url,
            CampaignConfig(**settings),
            images=images,
            pairs=[
                NewPair(
                    f"i{n // classes_per_image}", n % 1000, priority=priority(n), sampling_probability=0.5
                )
                for n in range(pairs)
            ],
            gold=[
                NewGold(
                    f"g{n}", n % 1000, ("yes", "no")[n % 2], practice=n >= gold, explanation=f"because {n}"
                )
                for n in range(gold + practice)
            ],
            clock=clock,
        )
        made.append(store)
        return store

    yield new
    for store in made:
        store.close()


class Person:
    """A rater who has read everything, for tests of what comes then."""

    def __init__(self, store: Store) -> None:
        self.store = store
        session = store.accept(store.invite()[0].token)
        assert session is not None
        self.session = session.token
        self.id = session.rater_id
        store.consent(self.id, store.config.consent_version)
        store.read_instructions(self.id)
        self.count = 0

    def ask(self, want: int = 8) -> list[str]:
        """Tokens of the questions that the rater holds."""
        return [question.token for question in self.store.questions(self.id, want).questions]

    def item(self, token: str, answer: Answer = "yes", *, key: str | None = None, ms: int = 700) -> Item:
        self.count += 1
        return Item(key or f"key-{self.id}-{self.count:05d}", "answer", token, answer, ms)

    def undo(self, token: str) -> Item:
        self.count += 1
        return Item(f"key-{self.id}-{self.count:05d}", "undo", token)

    def answer(self, token: str, answer: Answer = "yes") -> str:
        """Answer one question; returns what became of it."""
        outcome = self.store.submit(self.id, [self.item(token, answer)])[0]
        return outcome.reason or outcome.status
