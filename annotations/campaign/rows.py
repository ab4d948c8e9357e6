"""Rows as transactions use them: tables, counters of locked questions, and what several parts ask for."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from annotations.campaign import assignment
from annotations.campaign.config import CampaignConfig
from annotations.campaign.database import Database
from annotations.campaign.models import Assignment, Campaign, Event, Question, Rater, table
from annotations.errors import BeyondError

CHUNK = 5_000
"""Rows that go into one statement, at most."""

LEASED: Any = sa.literal_column("'leased'")
"""Written out, since the index of what is leased is found by this text, and not by a parameter."""

A, Q, R, E = table(Assignment), table(Question), table(Rater), table(Event)

COUNTS = (
    Q.c.id,
    Q.c.role,
    Q.c.expected,
    Q.c.explanation,
    Q.c.wanted,
    Q.c.counted,
    Q.c.leased,
    Q.c.yes,
    Q.c.no,
    Q.c.maybe,
    Q.c.verdict,
)


class Counts:
    """A question's counters while a transaction changes them; the question's row is locked."""

    def __init__(self, row: Any) -> None:
        self.id: int = row.id
        self.role: str = row.role
        self.expected: str | None = row.expected
        self.explanation: str = row.explanation
        self.wanted: int = row.wanted
        self.counted: int = row.counted
        self.leased: int = row.leased
        self.answers = {"yes": row.yes, "no": row.no, "maybe": row.maybe}
        self.verdict: str | None = row.verdict

    @property
    def has_room(self) -> bool:
        """Whether one more answer or lease keeps within the redundancy; gold always has room."""
        return self.role != "work" or self.counted + self.leased < self.wanted

    def hold(self, number: int) -> None:
        """Note that so many more raters hold the question; of gold nobody counts them."""
        if self.role == "work":
            self.leased += number

    def add(self, answer: str, number: int) -> None:
        """Count `number` more of an answer."""
        self.counted += number
        self.answers[answer] += number

    def is_open(self, config: CampaignConfig) -> bool:
        """Whether the question may be given to one more rater."""
        if self.role != "work":
            return True
        if not self.has_room or self.verdict is not None:
            return False
        if not config.stop_early:
            return True
        return (
            assignment.certain(
                **self.answers, votes=self.wanted, accept_at=min(config.accept_at, self.wanted)
            )
            is None
        )

    def row(self, config: CampaignConfig) -> dict[str, Any]:
        """Parameters of `SAVE_COUNTS`."""
        return {
            "key": self.id,
            "counted": self.counted,
            "leased": self.leased,
            **self.answers,
            "is_open": self.is_open(config),
        }


SAVE_COUNTS = (
    sa.update(Q)
    .where(Q.c.id == sa.bindparam("key"))
    .values({name: sa.bindparam(name) for name in ("counted", "leased", "yes", "no", "maybe", "is_open")})
)


def _locking(database: Database, *, skip: bool = False) -> sa.Select[Any]:
    counts = sa.select(*COUNTS).where(database.among(Q.c.id, "ids")).order_by(Q.c.id)
    return database.locked(counts, skip=skip)


def _locking_free(database: Database) -> sa.Select[Any]:
    return _locking(database, skip=True)


def lock_questions(
    database: Database, connection: Connection, ids: Iterable[int], *, skip: bool = False
) -> dict[int, Counts]:
    """Lock questions, in the order of their numbers, and read their counters.

    Args:
        database: Which decides how to lock.
        connection: In a transaction.
        ids: Numbers of questions.
        skip: Leave out those that somebody else has locked, instead of waiting.
    """
    statement = database.once(_locking_free if skip else _locking)
    wanted, found = sorted(set(ids)), {}
    for start in range(0, len(wanted), CHUNK):
        for row in connection.execute(statement, {"ids": wanted[start : start + CHUNK]}):
            found[row.id] = Counts(row)
    return found


def counter_rows(config: CampaignConfig, counts: Iterable[Counts]) -> list[dict[str, Any]]:
    """Parameters of `SAVE_COUNTS`, in the order of numbers."""
    return [question.row(config) for question in sorted(counts, key=lambda question: question.id)]


def save_questions(connection: Connection, config: CampaignConfig, counts: Iterable[Counts]) -> None:
    """Write counters back."""
    rows = [question.row(config) for question in counts]
    if rows:
        connection.execute(SAVE_COUNTS, rows)


_FROZEN = sa.select(Campaign.frozen_at)
_RATERS = sa.select(R, _FROZEN.scalar_subquery().label("frozen_at"))
_RATER = _RATERS.where(R.c.id == sa.bindparam("rater"))


def read_rater(connection: Connection, rater_id: int) -> SimpleNamespace:
    """A rater's row, which the caller may change with the database, and `frozen_at` of the campaign.

    Raises:
        BeyondError: There is no such rater.
    """
    row = connection.execute(_RATER, {"rater": rater_id}).first()
    if row is None:
        raise no_rater(rater_id)
    return SimpleNamespace(**row._mapping)


def _locking_raters(database: Database) -> sa.Select[Any]:
    return database.locked(_RATERS.where(database.among(R.c.id, "raters")).order_by(R.c.id), of=R)


def lock_raters(database: Database, connection: Connection, ids: Iterable[int]) -> dict[int, SimpleNamespace]:
    """Raters' rows as of `read_rater`, locked in the order of their numbers; those that there are.

    Two tabs of a rater come one after the other.
    """
    rows = connection.execute(database.once(_locking_raters), {"raters": sorted(set(ids))})
    return {row.id: SimpleNamespace(**row._mapping) for row in rows}


def lock_rater(database: Database, connection: Connection, rater_id: int) -> SimpleNamespace:
    """The same of one.

    Raises:
        BeyondError: There is no such rater.
    """
    found = lock_raters(database, connection, [rater_id])
    if rater_id not in found:
        raise no_rater(rater_id)
    return found[rater_id]


def no_rater(rater_id: int) -> BeyondError:
    """What is raised for a rater that the campaign does not know."""
    return BeyondError(f"there is no rater {rater_id} in this campaign")


def is_frozen(connection: Connection) -> bool:
    """Whether the campaign is frozen for publication."""
    return connection.execute(_FROZEN).scalar_one() is not None


LATEST = (
    sa.select(A.c.sequence, A.c.token)
    .where(A.c.rater_ref == sa.bindparam("rater"), A.c.sequence.is_not(None), A.c.purpose == "work")
    .order_by(A.c.sequence.desc())
    .limit(sa.bindparam("limit"))
)
"""A rater's latest answers of the work, latest first."""


def _rounds(database: Database) -> sa.Select[Any]:
    what = (A.c.rater_ref, A.c.purpose, A.c.attempt, A.c.answer, Q.c.expected)
    answered = sa.select(*what, sa.func.count().label("number")).join(Q, Q.c.id == A.c.question_ref)
    return answered.where(
        database.among(A.c.rater_ref, "raters"),
        A.c.state == "answered",
        A.c.purpose.in_(("practice", "qualification")),
    ).group_by(*what)


class Rounds:
    """What raters have answered in rounds of practice and qualification."""

    def __init__(self, database: Database, connection: Connection, rater_ids: Iterable[int]) -> None:
        self._seen: dict[tuple[int, str, int], int] = {}
        self._right: dict[tuple[int, str, int], float] = {}
        raters = sorted(set(rater_ids))
        if not raters:
            return
        for row in connection.execute(database.once(_rounds), {"raters": raters}):
            key = (row.rater_ref, row.purpose, row.attempt)
            right = assignment.rightness(row.answer, row.expected)
            self._seen[key] = self._seen.get(key, 0) + row.number
            self._right[key] = self._right.get(key, 0.0) + right * row.number

    def done(self, rater: SimpleNamespace) -> int:
        """How many questions of the round that they are in the rater has answered."""
        return self._seen.get((rater.id, rater.stage, rater.attempt), 0)

    def qualification(self, rater_id: int, attempt: int) -> tuple[float, int]:
        """How many of a qualification round are right (a maybe is half), and how many were answered."""
        key = (rater_id, "qualification", attempt)
        return self._right.get(key, 0.0), self._seen.get(key, 0)
