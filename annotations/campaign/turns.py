"""Turns: a rater's entries are taken and questions given; turns that come at once share a transaction."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from annotations.campaign.changes import Changes
from annotations.campaign.database import Database
from annotations.campaign.giving import Asking, Giver
from annotations.campaign.outbox import Outboxes
from annotations.campaign.rows import LATEST, A, R, Rounds, lock_raters, no_rater
from annotations.campaign.rules import ASKING, Rules
from annotations.campaign.types import Batch, Item, Outcome, Progress
from annotations.campaign.types import Question as HeldQuestion

_AT_ONCE = 1000  # turns and their entries in one transaction, at most
_ROUNDS = ("practice", "qualification", "failed")
_GAPS = 64  # undone answers among a rater's latest that one query for many raters looks past


def _latest_of(database: Database) -> sa.Select[Any]:
    latest = (
        sa.select(A.c.rater_ref, A.c.token)
        .join(R, R.c.id == A.c.rater_ref)
        .where(A.c.sequence > R.c.sequence - sa.bindparam("span"), A.c.purpose == "work")
        .where(database.among(A.c.rater_ref, "raters"))
    )
    return latest.order_by(A.c.rater_ref, A.c.sequence.desc())


class Turn:
    """A rater's turn, and what came of it.

    Attributes:
        rater_id: The rater.
        items: Entries of the outbox, in order.
        want: How many questions the rater wants to hold; none for 0.
        outcomes: One of each entry.
        batch: The questions that the rater holds.
        must_pause: Whether the rater's answers to gold are below the floor.
        error: Why the turn was not taken.
    """

    def __init__(self, rater_id: int, items: Sequence[Item], want: int) -> None:
        self.rater_id, self.items, self.want = rater_id, items, want
        self.outcomes: list[Outcome] = []
        self.batch: Batch | None = None
        self.must_pause = False
        self.error: BaseException | None = None
        self.done = False


class Turns:
    """Takes the turns of raters.

    What many turns ask the database can be asked at once, and most of a turn is asking: of the requests that
    wait, one takes the turns of all in a transaction. In it raters come one after the other, in the order in
    which they came; nobody is told anything before it is durable. If it fails, each turn is taken alone, so
    that one that cannot be taken stops no other.
    """

    def __init__(self, database: Database, rules: Rules, giver: Giver, clock: Callable[[], float]) -> None:
        self._database, self._rules, self._giver, self._clock = database, rules, giver, clock
        self._taking = threading.Lock()
        self._waiting: deque[Turn] = deque()

    def take(self, turn: Turn) -> None:
        """Take a turn, alone or with others'.

        Raises:
            BeyondError: There is no such rater.
        """
        self._waiting.append(turn)
        with self._taking:
            while not turn.done:
                self.take_all(self._next())
        if turn.error is not None:
            raise turn.error

    def _next(self) -> list[Turn]:
        """Turns from the queue, of each rater one at most; the rest stays in order."""
        turns: dict[int, Turn] = {}
        stay = []
        size = 0
        for _ in range(len(self._waiting)):
            turn = self._waiting.popleft()
            size += 1 + len(turn.items)
            if turn.rater_id in turns or (turns and size > _AT_ONCE):
                stay.append(turn)
            else:
                turns[turn.rater_id] = turn
        self._waiting.extendleft(reversed(stay))
        return list(turns.values())

    def take_all(self, turns: Sequence[Turn]) -> None:
        """Take turns of different raters in one transaction, or each alone; a turn keeps its own error."""
        try:
            self._database.transact(lambda connection: self.run(connection, turns))
        except BaseException as error:  # noqa: BLE001 - it is raised where the turns came from
            if len(turns) > 1 and isinstance(error, Exception):
                for turn in turns:
                    self.take_all([turn])
                return
            for turn in turns:
                turn.error = error
        for turn in turns:
            turn.done = True

    def run(self, connection: Connection, turns: Sequence[Turn]) -> None:
        """Take turns of different raters in a transaction.

        Raises:
            BeyondError: A rater is not there.
        """
        now = self._clock()
        raters = lock_raters(self._database, connection, [turn.rater_id for turn in turns])
        for turn in turns:
            if turn.rater_id not in raters:
                raise no_rater(turn.rater_id)
        changes = Changes(self._database, self._rules.config)
        outboxes = Outboxes(self._database, self._rules, connection, changes, now)
        answering = [turn for turn in turns if turn.items]
        if answering:
            taken = outboxes.take([(raters[turn.rater_id], turn.items) for turn in answering])
            for turn, outcomes in zip(answering, taken):
                turn.outcomes = outcomes
                turn.must_pause = turn.rater_id in outboxes.must_pause
        asking = {
            turn.rater_id: Asking(raters[turn.rater_id], turn.want)
            for turn in turns
            if turn.want and not turn.must_pause and self._is_asking(raters[turn.rater_id])
        }
        rounds = self._rounds(connection, raters.values())
        if asking:
            asked = list(asking.values())
            self._giver.fill(connection, asked, outboxes.counts, rounds, changes, now)
        waiting = set()
        for one in asking.values():
            if one.held or one.rater.stage != "work":
                continue
            if self._giver.may_come(connection, one.rater):
                waiting.add(one.rater.id)
            else:
                one.rater.stage = "done"
                changes.moved(one.rater)
        changes.write(connection)
        undoable = self._undoable(connection, raters.values())
        for turn in turns:
            rater = raters[turn.rater_id]
            held = asking[rater.id].held if rater.id in asking else ()
            progress = self._progress(rater, rounds, undoable.get(rater.id, ()), rater.id in waiting)
            turn.batch = Batch(_questions(held), progress)

    def batch(self, connection: Connection, rater: SimpleNamespace, held: Sequence[Any]) -> Batch:
        """What a rater holds, with where they are."""
        waiting = rater.stage == "work" and not held and self._giver.may_come(connection, rater)
        return Batch(_questions(held), self.progress(connection, rater, waiting=waiting))

    def progress(self, connection: Connection, rater: SimpleNamespace, *, waiting: bool = False) -> Progress:
        """Where a rater is."""
        undoable = self._undoable(connection, [rater]).get(rater.id, ())
        return self._progress(rater, self._rounds(connection, [rater]), undoable, waiting)

    def _is_asking(self, rater: SimpleNamespace) -> bool:
        return rater.stage in ASKING and rater.frozen_at is None

    def _rounds(self, connection: Connection, raters: Iterable[SimpleNamespace]) -> Rounds:
        """Rounds of those who are in one, or may still be told how theirs went."""
        early = [rater.id for rater in raters if rater.stage in _ROUNDS or not rater.answered]
        return Rounds(self._database, connection, early)

    def _progress(
        self, rater: SimpleNamespace, rounds: Rounds, undoable: Sequence[str], waiting: bool
    ) -> Progress:
        step_of = self._rules.step_of(rater.stage)
        return Progress(
            stage=rater.stage,
            answered=rater.answered,
            quota=rater.quota,
            step_done=rounds.done(rater) if step_of else 0,
            step_of=step_of,
            undoable=tuple(undoable),
            waiting=waiting,
            qualification_right=self._qualification(rater, rounds),
        )

    def _qualification(self, rater: SimpleNamespace, rounds: Rounds) -> float | None:
        """Share right in the last finished qualification round; None later in the work, to be quick."""
        if rater.stage not in _ROUNDS and rater.answered:
            return None
        attempt = rater.attempt - (rater.stage == "qualification")
        right, seen = rounds.qualification(rater.id, attempt)
        return right / seen if seen else None

    def _undoable(
        self, connection: Connection, raters: Iterable[SimpleNamespace]
    ) -> dict[int, Sequence[str]]:
        """By rater, tokens of the answers that can be undone, latest first."""
        limit = self._rules.config.undo_limit
        working = [rater for rater in raters if rater.stage == "work" and rater.answered]
        if not limit or not working:
            return {}
        found: dict[int, list[str]] = {rater.id: [] for rater in working}
        values = {"raters": sorted(found), "span": limit + _GAPS}
        for row in connection.execute(self._database.once(_latest_of), values):
            if len(found[row.rater_ref]) < limit:
                found[row.rater_ref].append(row.token)
        for rater in working:
            if len(found[rater.id]) < min(limit, rater.answered):
                rows = connection.execute(LATEST, {"rater": rater.id, "limit": limit})
                found[rater.id] = [row.token for row in rows]
        return dict(found)


def _questions(held: Sequence[Any]) -> tuple[HeldQuestion, ...]:
    return tuple(
        HeldQuestion(
            row.token, row.class_index, row.position, row.purpose, row.arm, has_beside=bool(row.beside)
        )
        for row in held
    )
