"""Taking answers: one call of `Store.submit`, in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from annotations.campaign import assignment
from annotations.campaign.database import Database
from annotations.campaign.rows import (
    A,
    Counts,
    E,
    R,
    is_frozen,
    lock_questions,
    lock_rater,
    qualification_round,
    save_questions,
    step_done,
)
from annotations.campaign.rules import Rules
from annotations.campaign.types import ANSWERS, Feedback, Item, Outcome

_SAVED = ("state", "answer", "answered_at", "response_ms", "counted", "flag", "sequence", "expires_at")
_SAVE_ASSIGNMENT = (
    sa.update(A)
    .where(A.c.id == sa.bindparam("key"))
    .values({name: sa.bindparam(f"b_{name}") for name in _SAVED})
)


class Outbox:
    """One call of `Store.submit`: reads what the entries are about, applies them in order, writes once."""

    def __init__(
        self,
        database: Database,
        rules: Rules,
        connection: Connection,
        rater_id: int,
        items: Sequence[Item],
        now: float,
    ) -> None:
        config = rules.config
        self.rules, self.config = rules, config
        self.connection, self.items, self.now = connection, items, now
        self.rater = lock_rater(database, connection, rater_id)
        self.frozen = is_frozen(connection)
        self.stage: str = self.rater.stage
        self.answered: int = self.rater.answered
        self.sequence: int = self.rater.sequence
        self.attempt: int = self.rater.attempt
        self.gold_seen: int = self.rater.gold_seen
        self.gold_right: float = self.rater.gold_right
        self.must_pause = False
        keys = {item.key for item in items}
        known = (
            sa.select(E.c.client_key, E.c.kind, E.c.answer, A.c.token)
            .join(A, sa.and_(A.c.rater_ref == E.c.rater_ref, A.c.question_ref == E.c.question_ref))
            .where(E.c.rater_ref == rater_id, E.c.client_key.in_(keys))
        )
        self.known = {row.client_key: (row.kind, row.answer, row.token) for row in connection.execute(known)}
        mine = [A.c.rater_ref == rater_id, A.c.token.in_({item.token for item in items})]
        ids = connection.execute(sa.select(A.c.question_ref).where(*mine)).scalars().all()
        self.counts = lock_questions(database, connection, ids)
        # After the questions are locked, so that nobody takes a lease back in between.
        columns: tuple[Any, ...] = (
            A.c.id,
            A.c.token,
            A.c.question_ref,
            A.c.purpose,
            A.c.state,
            A.c.answer,
        )
        columns += (
            A.c.answered_at,
            A.c.response_ms,
            A.c.counted,
            A.c.flag,
            A.c.sequence,
            A.c.expires_at,
        )
        statement = database.locked(sa.select(*columns).where(*mine))
        self.given = {row.token: dict(row._mapping) for row in connection.execute(statement)}
        self.latest: set[int] = set()  # numbers of the latest answers of the work; more than can be undone
        if any(item.kind == "undo" for item in items):
            latest = sa.select(A.c.sequence).where(
                A.c.rater_ref == rater_id, A.c.sequence.is_not(None), A.c.purpose == "work"
            )
            limit = config.undo_limit + len(items)
            found = connection.execute(latest.order_by(A.c.sequence.desc()).limit(limit))
            self.latest = set(found.scalars())
        self.events: list[dict[str, Any]] = []
        self.touched: dict[int, dict[str, Any]] = {}

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
        if self.frozen or self.stage == "withdrawn":
            return Outcome(item.key, "refused", "not-now")
        refusal = self._undo(given) if item.kind == "undo" else self._answer(item, given)
        if refusal:
            return Outcome(item.key, "refused", refusal)
        self.known[item.key] = (item.kind, item.answer, item.token)
        self.touched[given["id"]] = given
        self.events.append(
            {
                "at": self.now,
                "kind": item.kind,
                "rater_ref": self.rater.id,
                "question_ref": given["question_ref"],
                "client_key": item.key,
                "answer": item.answer,
                "response_ms": item.response_ms,
                "client_at": item.client_at,
                "detail": "",
            }
        )
        return Outcome(item.key, "recorded", feedback=self._feedback(item))

    def _answer(self, item: Item, given: dict[str, Any]) -> str:
        if item.answer not in ANSWERS:
            return "unknown-answer"
        if item.answer == "maybe" and not self.config.maybe_allowed:
            return "maybe-not-allowed"
        if given["state"] == "answered":
            return "already-answered"
        question = self.counts[given["question_ref"]]
        if given["state"] == "leased":
            question.hold(-1)
        elif not question.has_room:
            self._take_back(question)
        set_aside = self.stage in ("paused", "failed")
        counts = (
            question.has_room and not set_aside and (question.verdict is None or given["state"] == "leased")
        )
        if counts:
            question.add(item.answer, 1)
        self.sequence += 1
        if given["purpose"] == "work":
            self.latest.add(self.sequence)
        given.update(
            state="answered",
            answer=item.answer,
            answered_at=self.now,
            response_ms=item.response_ms,
            counted=counts,
            flag="" if counts else "paused" if set_aside else "late",
            sequence=self.sequence,
        )
        self._credit(given, question, item.answer, 1)
        return ""

    def _take_back(self, question: Counts) -> None:
        """End others' leases of a locked question that are over, but were not taken back yet."""
        over = [A.c.question_ref == question.id, A.c.state == "leased", A.c.expires_at <= self.now]
        statement = sa.update(A).where(*over, A.c.rater_ref != self.rater.id)
        question.hold(-self.connection.execute(statement.values(state="expired")).rowcount)

    def _undo(self, given: dict[str, Any]) -> str:
        if given["state"] != "answered":
            return "nothing-to-undo"
        if given["purpose"] != "work" or self.stage != "work":
            return "too-late-to-undo"
        if sum(number > given["sequence"] for number in self.latest) >= self.config.undo_limit:
            return "too-late-to-undo"
        self.latest.discard(given["sequence"])
        question, answer = self.counts[given["question_ref"]], given["answer"]
        if given["counted"]:
            question.add(answer, -1)
        holds = question.has_room
        question.hold(int(holds))
        self._credit(given, question, answer, -1)
        given.update(
            state="leased" if holds else "expired",
            answer=None,
            answered_at=None,
            response_ms=None,
            counted=False,
            flag="",
            sequence=None,
            expires_at=self.now + self.config.lease_seconds,
        )
        return ""

    def _credit(self, given: dict[str, Any], question: Counts, answer: str, sign: int) -> None:
        """Count an answer for the rater, or take it off again."""
        if given["purpose"] == "work":
            self.answered += sign
        if question.role == "gold" and question.expected is not None:
            self.gold_seen += sign
            self.gold_right += sign * assignment.rightness(answer, question.expected)

    def _feedback(self, item: Item) -> Feedback | None:
        given = self.given[item.token]
        if item.kind != "answer" or not self.rules.gives_feedback(given["purpose"]):
            return None
        question = self.counts[given["question_ref"]]
        return Feedback(item.answer == question.expected, question.expected, question.explanation)  # type: ignore[arg-type]

    def _write(self) -> None:
        connection = self.connection
        connection.execute(sa.insert(E), self.events)
        names = ("state", "answer", "answered_at", "response_ms", "counted", "flag", "sequence", "expires_at")
        rows = [
            {"key": given["id"], **{f"b_{n}": given[n] for n in names}} for given in self.touched.values()
        ]
        connection.execute(_SAVE_ASSIGNMENT, rows)
        touched = {given["question_ref"] for given in self.touched.values()}
        save_questions(connection, self.config, [self.counts[question] for question in sorted(touched)])
        self._advance()
        values: dict[str, Any] = {
            "answered": self.answered,
            "sequence": self.sequence,
            "attempt": self.attempt,
        }
        values |= {"stage": self.stage, "gold_seen": self.gold_seen, "gold_right": self.gold_right}
        connection.execute(sa.update(R).where(R.c.id == self.rater.id).values(values))

    def _advance(self) -> None:
        """Move the rater on, where a round is over."""
        rules, config = self.rules, self.config
        if self.stage in ("practice", "qualification"):
            if step_done(self.connection, self.rater) < rules.step_of(self.stage):
                return
            if self.stage == "practice":
                self.stage = rules.stage_after("practice")
                return
            right, seen = qualification_round(self.connection, self.rater.id, self.attempt)
            if right >= config.qualification_floor * seen:
                self.stage = "work"
            elif self.attempt < config.qualification_attempts and rules.gold >= (self.attempt + 1) * seen:
                self.attempt += 1
            else:
                self.stage = "failed"
        elif self.stage == "work":
            if self.rater.quota is not None and self.answered >= self.rater.quota:
                self.stage = "done"
            self.must_pause = rules.is_below_floor(self.rater, self.gold_seen, self.gold_right)
