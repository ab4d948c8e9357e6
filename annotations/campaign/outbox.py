"""Taking answers: the outboxes of several raters, in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from annotations.campaign import assignment
from annotations.campaign.changes import Changes, Given
from annotations.campaign.database import Database
from annotations.campaign.rows import COUNTS, LATEST, A, Counts, E, Q, Rounds
from annotations.campaign.rules import Rules
from annotations.campaign.types import ANSWERS, Feedback, Item, Outcome

Known = dict[str, tuple[str, str | None, str]]
"""Key of an entry that was recorded before to its kind, answer and token."""


def _known(database: Database) -> sa.Select[Any]:
    same = sa.and_(A.c.rater_ref == E.c.rater_ref, A.c.question_ref == E.c.question_ref)
    known = sa.select(E.c.rater_ref, E.c.client_key, E.c.kind, E.c.answer, A.c.token).join(A, same)
    return database.among_pairs(known, E.c.rater_ref, E.c.client_key)


def _given(database: Database) -> sa.Select[Any]:
    given = (
        sa.select(
            A.c.id.label("assignment_id"),
            A.c.rater_ref,
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
        .where(database.among(A.c.token, "tokens"))
        .order_by(Q.c.id, A.c.id)
    )
    # Both, so that nobody takes a lease back between one and the other; questions first.
    return database.locked(given, of=[Q, A])


class Outboxes:
    """Outboxes of raters whose rows are locked: what they are about is read at once, then each is taken.

    Attributes:
        counts: Counters of the questions that entries are about, by number; they are locked.
        must_pause: Raters whose answers to gold are below the floor.
    """

    def __init__(
        self, database: Database, rules: Rules, connection: Connection, changes: Changes, now: float
    ) -> None:
        self.database, self.rules, self.connection = database, rules, connection
        self.changes, self.now = changes, now
        self.counts: dict[int, Counts] = {}
        self.must_pause: set[int] = set()
        self._given: dict[str, Given] = {}

    def take(self, outboxes: Sequence[tuple[SimpleNamespace, Sequence[Item]]]) -> list[list[Outcome]]:
        """Apply the entries of each (rater, entries), a rater once, and write what they change.

        What ends a round is still to be written then.
        """
        known: dict[int, Known] = {rater.id: {} for rater, _ in outboxes}
        keys = [(rater.id, item.key) for rater, items in outboxes for item in items]
        for row in self.connection.execute(self.database.once(_known), self.database.pairs(keys)):
            known[row.rater_ref][row.client_key] = (row.kind, row.answer, row.token)
        tokens = list({item.token for _, items in outboxes for item in items})
        for row in self.connection.execute(self.database.once(_given), {"tokens": tokens}):
            question = self.counts.setdefault(row.id, Counts(row))
            self._given[row.token] = Given(row, question)
        outcomes = []
        in_rounds = []
        for rater, items in outboxes:
            outbox = _Outbox(self, rater, known[rater.id], self._latest(rater, items))
            outcomes.append([outbox.apply(item) for item in items])
            if outbox.recorded:
                self.changes.moved(rater)
                if rater.stage == "work":
                    self._look(rater)
                elif rater.stage in ("practice", "qualification"):
                    in_rounds.append(rater)
        self.changes.write(self.connection)
        rounds = Rounds(self.database, self.connection, [rater.id for rater in in_rounds])
        for rater in in_rounds:
            self._advance(rater, rounds)
            self.changes.moved(rater)
        return outcomes

    def given(self, rater_id: int, token: str) -> Given | None:
        """What a token stands for, if it was made for this rater."""
        found = self._given.get(token)
        return found if found is not None and found.rater_id == rater_id else None

    def _latest(self, rater: SimpleNamespace, items: Sequence[Item]) -> set[int]:
        """Numbers of the latest answers of the work, where one is undone; more than can be undone."""
        if all(item.kind != "undo" for item in items):
            return set()
        values = {"rater": rater.id, "limit": self.rules.config.undo_limit + len(items)}
        return {row.sequence for row in self.connection.execute(LATEST, values)}

    def take_back(self, question: Counts, rater_id: int) -> None:
        """End other raters' leases of a locked question that are over, but were not taken back yet."""
        mine = [one for one in self._given.values() if one.question is question]
        over = [A.c.question_ref == question.id, A.c.state == "leased", A.c.expires_at <= self.now]
        others = [A.c.rater_ref != rater_id, A.c.id.not_in([one.id for one in mine])]
        statement = sa.update(A).where(*over, *others).values(state="expired")
        ended = self.connection.execute(statement).rowcount
        # Those whose entries are taken beside this one are newer here than in the database.
        for one in mine:
            if one.rater_id != rater_id and one.state == "leased" and one.expires_at <= self.now:
                one.state = "expired"
                self.changes.changed(one)
                ended += 1
        question.hold(-ended)

    def _look(self, rater: SimpleNamespace) -> None:
        """Whether a rater has answered as many as they may, and gold well enough."""
        if rater.quota is not None and rater.answered >= rater.quota:
            rater.stage = "done"
        if self.rules.is_below_floor(rater, rater.gold_seen, rater.gold_right):
            self.must_pause.add(rater.id)

    def _advance(self, rater: SimpleNamespace, rounds: Rounds) -> None:
        """Move a rater on, where a round of practice or qualification is over."""
        rules, config = self.rules, self.rules.config
        if rounds.done(rater) < rules.step_of(rater.stage):
            return
        if rater.stage == "practice":
            rater.stage = rules.stage_after("practice")
            return
        right, seen = rounds.qualification(rater.id, rater.attempt)
        if right >= config.qualification_floor * seen:
            rater.stage = "work"
        elif rater.attempt < config.qualification_attempts and rules.gold >= (rater.attempt + 1) * seen:
            rater.attempt += 1
        else:
            rater.stage = "failed"


class _Outbox:
    """One rater's entries, applied in order."""

    def __init__(self, all_of: Outboxes, rater: SimpleNamespace, known: Known, latest: set[int]) -> None:
        self.all_of, self.rater, self.known, self.latest = all_of, rater, known, latest
        self.rules, self.config, self.now = all_of.rules, all_of.rules.config, all_of.now
        self.recorded = False

    def apply(self, item: Item) -> Outcome:
        """Apply an entry, or refuse it."""
        before = self.known.get(item.key)
        if before is not None:
            if before != (item.kind, item.answer, item.token):
                return Outcome(item.key, "refused", "key-reused")
            return Outcome(item.key, "duplicate", feedback=self._feedback(item))
        given = self.all_of.given(self.rater.id, item.token)
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
        self.recorded = True
        self.all_of.changes.changed(given)
        self.all_of.changes.happened(
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

    def _answer(self, item: Item, given: Given) -> str:
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
            self.all_of.take_back(question, self.rater.id)
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

    def _undo(self, given: Given) -> str:
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

    def _credit(self, given: Given, answer: str, sign: int) -> None:
        """Count an answer for the rater, or take it off again."""
        if given.purpose == "work":
            self.rater.answered += sign
        expected = given.question.expected
        if given.question.role == "gold" and expected is not None:
            self.rater.gold_seen += sign
            self.rater.gold_right += sign * assignment.rightness(answer, expected)

    def _feedback(self, item: Item) -> Feedback | None:
        given = self.all_of.given(self.rater.id, item.token)
        if given is None:
            return None
        expected = given.question.expected
        if item.kind != "answer" or expected is None or not self.rules.gives_feedback(given.purpose):
            return None
        known: Literal["yes", "no"] = "yes" if expected == "yes" else "no"
        return Feedback(item.answer == known, known, given.question.explanation)
