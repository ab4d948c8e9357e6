"""What turns change, gathered while they run and written at once."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from annotations.campaign.config import CampaignConfig
from annotations.campaign.database import Database
from annotations.campaign.rows import SAVE_COUNTS, A, Counts, E, R, counter_rows

_GIVEN = ("state", "answer", "answered_at", "response_ms", "counted", "flag", "sequence", "expires_at")
_HELD = ("purpose", "attempt", "position", "state", "leased_at", "expires_at")
_RATER = ("answered", "sequence", "attempt", "stage", "gold_seen", "gold_right", "position")


def _save(table: Any, names: Iterable[str]) -> Any:
    values: dict[str, Any] = {name: sa.bindparam(f"b_{name}") for name in names}
    return sa.update(table).where(table.c.id == sa.bindparam("key")).values(values)


_INSERT_EVENTS, _INSERT_HELD = sa.insert(E), sa.insert(A)
_SAVE_GIVEN, _SAVE_HELD, _SAVE_RATER = _save(A, _GIVEN), _save(A, _HELD), _save(R, _RATER)


class Given:
    """An assignment while a transaction changes it."""

    def __init__(self, row: Any, question: Counts) -> None:
        self.id: int = row.assignment_id
        self.rater_id: int = row.rater_ref
        self.question = question
        self.purpose: str = row.purpose
        self.state: str = row.state
        self.answer: str | None = row.answer
        self.answered_at: float | None = row.answered_at
        self.response_ms: int | None = row.response_ms
        self.counted: bool = row.is_counted
        self.flag: str = row.flag
        self.sequence: int | None = row.sequence
        self.expires_at: float = row.expires_at


class Changes:
    """What a transaction changes: rows to insert, and rows to save with their new values.

    Everything that is changed is locked, or this process is the only writer.
    """

    def __init__(self, database: Database, config: CampaignConfig) -> None:
        self._database, self._config = database, config
        self._events: list[dict[str, Any]] = []
        self._held: list[dict[str, Any]] = []
        self._held_again: list[dict[str, Any]] = []
        self._given: dict[int, Given] = {}
        self._counts: dict[int, Counts] = {}
        self._raters: dict[int, SimpleNamespace] = {}

    def happened(self, event: dict[str, Any]) -> None:
        """Something for the log of events."""
        self._events.append(event)

    def changed(self, given: Given) -> None:
        """An assignment changed, and its question's counters may have."""
        self._given[given.id] = given
        self._counts[given.question.id] = given.question

    def held(self, values: dict[str, Any], before: int | None) -> None:
        """A question is given to a rater: anew, or in the row that it had `before`."""
        if before is None:
            self._held.append({**values, "counted": False, "flag": ""})
        else:
            self._held_again.append({"key": before, **{f"b_{name}": values[name] for name in _HELD}})

    def counted(self, question: Counts) -> None:
        """A question's counters changed."""
        self._counts[question.id] = question

    def moved(self, rater: SimpleNamespace) -> None:
        """A rater's row changed."""
        self._raters[rater.id] = rater

    def write(self, connection: Connection) -> None:
        """Write all that was gathered, and forget it."""
        given = [
            {"key": one.id, **{f"b_{name}": getattr(one, name) for name in _GIVEN}}
            for one in self._given.values()
        ]
        raters = [
            {"key": rater.id, **{f"b_{name}": getattr(rater, name) for name in _RATER}}
            for rater in self._raters.values()
        ]
        self._database.write(
            connection,
            (_INSERT_EVENTS, self._events),
            (_SAVE_GIVEN, given),
            (_INSERT_HELD, self._held),
            (_SAVE_HELD, self._held_again),
            (SAVE_COUNTS, counter_rows(self._config, self._counts.values())),
            (_SAVE_RATER, raters),
        )
        self._events, self._held, self._held_again = [], [], []
        self._given, self._counts, self._raters = {}, {}, {}
