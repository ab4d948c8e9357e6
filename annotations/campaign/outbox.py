"""Taking answers: one call of `Store.submit`, in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from annotations.campaign import assignment
from annotations.campaign.database import Database
from annotations.campaign.rows import (
    COUNTS,
    SAVE_COUNTS,
    A,
    Counts,
    E,
    Q,
    R,
    counter_rows,
    qualification_round,
    step_done,
)
from annotations.campaign.rules import Rules
from annotations.campaign.types import ANSWERS, Feedback, Item, Outcome

_SAVED = ("state", "answer", "answered_at", "response_ms", "counted", "flag", "sequence", "expires_at")
_RATER: Any = sa.bindparam("rater")
_TOKENS: Any = sa.bindparam("tokens", expanding=True)
_SAVE_ASSIGNMENT = (
    sa.update(A)
    .where(A.c.id == sa.bindparam("key"))
    .values({name: sa.bindparam(f"b_{name}") for name in _SAVED})
)
_SAVE_RATER = (
    sa.update(R)
    .where(R.c.id == sa.bindparam("key"))
    .values(
        {
            name: sa.bindparam(f"b_{name}")
            for name in ("answered", "sequence", "attempt", "stage", "gold_seen", "gold_right")
        }
    )
)
_INSERT_EVENTS = sa.insert(E)
_KNOWN = (
    sa.select(E.c.client_key, E.c.kind, E.c.answer, A.c.token)
    .join(A, sa.and_(A.c.rater_ref == E.c.rater_ref, A.c.question_ref == E.c.question_ref))
    .where(E.c.rater_ref == _RATER, E.c.client_key.in_(sa.bindparam("keys", expanding=True)))
)
_GIVEN = (
    sa.select(
        A.c.id.label("assignment_id"),
        A.c.token,
        A.c.purpose,
        A.c.state,
        A.c.answer,
        A.c.answered_at,
        A.c.response_ms,
        A.c.counted.label("is_counted"),
        A.c.flag,
        A.c.sequence,
        A.c.expires_at,
        *COUNTS,
    )
    .join(Q, Q.c.id == A.c.question_ref)
    .where(A.c.rater_ref == _RATER, A.c.token.in_(_TOKENS))
    .order_by(Q.c.id)
)
# Both, so that nobody takes a lease back between one and the other; questions first.
_LOCK_GIVEN = _GIVEN.with_for_update(of=[Q, A])
_LATEST = (
    sa.select(A.c.sequence)
    .where(A.c.rater_ref == _RATER, A.c.sequence.is_not(None), A.c.purpose == "work")
    .order_by(A.c.sequence.desc())
    .limit(sa.bindparam("limit"))
)


class _Given:
    """An assignment while a transaction changes it."""

    def __init__(self, row: Any, question: Counts) -> None:
        self.id: int = row.assignment_id
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

    def row(self) -> dict[str, Any]:
        """Parameters of `_SAVE_ASSIGNMENT`."""
        return {"key": self.id, **{f"b_{name}": getattr(self, name) for name in _SAVED}}


class Outbox:
    """One call of `Store.submit`: reads what the entries are about, applies them in order, writes once.

    The rater's row is locked, and is changed with the database.
    """

    def __init__(
        self,
        database: Database,
        rules: Rules,
        connection: Connection,
        rater: SimpleNamespace,
        items: Sequence[Item],
        now: float,
    ) -> None:
        self.database, self.connection = database, connection
        self.rules, self.config = rules, rules.config
        self.rater, self.items, self.now = rater, items, now
        self.must_pause = False
        keys = {"rater": rater.id, "keys": [item.key for item in items]}
        found = connection.execute(_KNOWN, keys)
        self.known = {row.client_key: (row.kind, row.answer, row.token) for row in found}
        tokens = {"rater": rater.id, "tokens": list({item.token for item in items})}
        self.given: dict[str, _Given] = {}
        counts: dict[int, Counts] = {}
        for row in connection.execute(_GIVEN if database.is_sqlite else _LOCK_GIVEN, tokens):
            self.given[row.token] = _Given(row, counts.setdefault(row.id, Counts(row)))
        self.latest: set[int] = set()  # numbers of the latest answers of the work; more than can be undone
        if any(item.kind == "undo" for item in items):
            limit = self.config.undo_limit + len(items)
            self.latest = set(connection.execute(_LATEST, {"rater": rater.id, "limit": limit}).scalars())
        self.events: list[dict[str, Any]] = []
        self.touched: dict[int, _Given] = {}

    def run(self) -> list[Outcome]:
        """Apply all entries and write what they change."""
        outcomes = [self._apply(item) for item in self.items]
        if self.events:
            self._write()
        return outcomes

    def _apply(self, item: Item) -> Outcome:
        before = self.known.get(item.key)
        if before is not None:
            if before != (item.kind, item.answer, item.token):
                return Outcome(item.key, "refused", "key-reused")
            return Outcome(item.key, "duplicate", feedback=self._feedback(item))
        given = self.given.get(item.token)
        if given is None:
            return Outcome(item.key, "refused", "unknown-question")
        # Whoever is done with a study has read what it is about.
        is_told = self.config.study is not None and self.rater.stage == "done"
        if self.rater.frozen_at is not None or self.rater.stage == "withdrawn" or is_told:
            return Outcome(item.key, "refused", "not-now")
        refusal = self._undo(given) if item.kind == "undo" else self._answer(item, given)
        if refusal:
            return Outcome(item.key, "refused", refusal)
        self.known[item.key] = (item.kind, item.answer, item.token)
        self.touched[given.id] = given
        self.events.append(
            {
                "at": self.now,
                "kind": item.kind,
                "rater_ref": self.rater.id,
                "question_ref": given.question.id,
                "client_key": item.key,
                "answer": item.answer,
                "response_ms": item.response_ms,
                "client_at": item.client_at,
                "detail": "",
            }
        )
        return Outcome(item.key, "recorded", feedback=self._feedback(item))

    def _answer(self, item: Item, given: _Given) -> str:
        if item.answer not in ANSWERS:
            return "unknown-answer"
        if item.answer == "maybe" and not self.config.maybe_allowed:
            return "maybe-not-allowed"
        if given.state == "answered":
            return "already-answered"
        question = given.question
        was_held = given.state == "leased"
        if was_held:
            question.hold(-1)
        elif not question.has_room:
            self._take_back(question)
        set_aside = self.rater.stage in ("paused", "failed")
        counts = question.has_room and not set_aside and (question.verdict is None or was_held)
        if counts:
            question.add(item.answer, 1)
        self.rater.sequence += 1
        if given.purpose == "work":
            self.latest.add(self.rater.sequence)
        given.state, given.answer, given.answered_at = "answered", item.answer, self.now
        given.response_ms, given.counted, given.sequence = item.response_ms, counts, self.rater.sequence
        given.flag = "" if counts else "paused" if set_aside else "late"
        self._credit(given, item.answer, 1)
        return ""

    def _take_back(self, question: Counts) -> None:
        """End others' leases of a locked question that are over, but were not taken back yet."""
        over = [A.c.question_ref == question.id, A.c.state == "leased", A.c.expires_at <= self.now]
        statement = sa.update(A).where(*over, A.c.rater_ref != self.rater.id)
        question.hold(-self.connection.execute(statement.values(state="expired")).rowcount)

    def _undo(self, given: _Given) -> str:
        if given.state != "answered" or given.answer is None or given.sequence is None:
            return "nothing-to-undo"
        if given.purpose != "work" or self.rater.stage != "work":
            return "too-late-to-undo"
        if sum(number > given.sequence for number in self.latest) >= self.config.undo_limit:
            return "too-late-to-undo"
        self.latest.discard(given.sequence)
        question, answer = given.question, given.answer
        if given.counted:
            question.add(answer, -1)
        holds = question.has_room
        question.hold(int(holds))
        self._credit(given, answer, -1)
        given.state = "leased" if holds else "expired"
        given.answer = given.answered_at = given.response_ms = given.sequence = None
        given.counted, given.flag = False, ""
        given.expires_at = self.now + self.config.lease_seconds
        return ""

    def _credit(self, given: _Given, answer: str, sign: int) -> None:
        """Count an answer for the rater, or take it off again."""
        if given.purpose == "work":
            self.rater.answered += sign
        expected = given.question.expected
        if given.question.role == "gold" and expected is not None:
            self.rater.gold_seen += sign
            self.rater.gold_right += sign * assignment.rightness(answer, expected)

    def _feedback(self, item: Item) -> Feedback | None:
        given = self.given[item.token]
        expected = given.question.expected
        if item.kind != "answer" or expected is None or not self.rules.gives_feedback(given.purpose):
            return None
        known: Literal["yes", "no"] = "yes" if expected == "yes" else "no"
        return Feedback(item.answer == known, known, given.question.explanation)

    def _write(self) -> None:
        touched = list(self.touched.values())
        questions = {given.question.id: given.question for given in touched}
        self._advance(touched)
        names = ("answered", "sequence", "attempt", "stage", "gold_seen", "gold_right")
        values = {f"b_{name}": getattr(self.rater, name) for name in names}
        self.database.write(
            self.connection,
            (_INSERT_EVENTS, self.events),
            (_SAVE_ASSIGNMENT, [given.row() for given in touched]),
            (SAVE_COUNTS, counter_rows(self.config, questions.values())),
            (_SAVE_RATER, [{"key": self.rater.id, **values}]),
        )

    def _advance(self, touched: Sequence[_Given]) -> None:
        """Move the rater on, where a round is over."""
        rater, rules, config = self.rater, self.rules, self.config
        if rater.stage in ("practice", "qualification"):
            self.connection.execute(_SAVE_ASSIGNMENT, [given.row() for given in touched])
            if step_done(self.connection, rater) < rules.step_of(rater.stage):
                return
            if rater.stage == "practice":
                rater.stage = rules.stage_after("practice")
                return
            right, seen = qualification_round(self.connection, rater.id, rater.attempt)
            if right >= config.qualification_floor * seen:
                rater.stage = "work"
            elif rater.attempt < config.qualification_attempts and rules.gold >= (rater.attempt + 1) * seen:
                rater.attempt += 1
            else:
                rater.stage = "failed"
        elif rater.stage == "work":
            if rater.quota is not None and rater.answered >= rater.quota:
                rater.stage = "done"
            self.must_pause = rules.is_below_floor(rater, rater.gold_seen, rater.gold_right)
