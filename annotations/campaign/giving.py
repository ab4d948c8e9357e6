"""Giving questions: which ones a rater gets next, and how they are held."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from annotations.campaign import assignment
from annotations.campaign.database import Database
from annotations.campaign.rows import (
    LEASED,
    SAVE_COUNTS,
    A,
    Counts,
    Q,
    R,
    counter_rows,
    lock_questions,
    save_questions,
    step_done,
)
from annotations.campaign.rules import Rules

_BLOCK = 64  # raters go through the pairs in blocks of this size by priority, each in an order of their own
_ALL = 10**6

_HELD = (
    A.c.id,
    A.c.token,
    A.c.position,
    A.c.purpose,
    A.c.expires_at,
    Q.c.class_index,
    Q.c.arm,
    Q.c.beside,
    Q.c.image_ref,
)


_RATER: Any = sa.bindparam("rater")
_NOW: Any = sa.bindparam("now")
_ARM: Any = sa.bindparam("arm")
_HOLDS = (
    sa.select(*_HELD)
    .join(Q, Q.c.id == A.c.question_ref)
    .where(A.c.rater_ref == _RATER, A.c.state == "leased", A.c.expires_at > _NOW)
    .order_by(A.c.position)
)
_RENEW = (
    sa.update(A)
    .where(A.c.rater_ref == _RATER, A.c.state == "leased", A.c.expires_at > _NOW)
    .values(expires_at=sa.bindparam("until"))
)
_GIVEN = sa.and_(A.c.rater_ref == _RATER, A.c.question_ref == Q.c.id)
_NOT_GIVEN = ~sa.exists().where(A.c.rater_ref == _RATER, A.c.question_ref == Q.c.id, A.c.state != "expired")
_CHOICES = sa.select(
    Q.c.id,
    Q.c.image_ref,
    Q.c.class_index,
    Q.c.arm,
    Q.c.beside,
    Q.c.expected,
    Q.c.rank,
    A.c.id.label("before"),
).outerjoin(A, _GIVEN)
_NEW = sa.or_(A.c.id.is_(None), A.c.state == "expired")  # not given, or held too long without an answer
_OPEN = [Q.c.role == "work", Q.c.arm == _ARM]
_PAIRS = _CHOICES.where(*_OPEN, Q.c.is_open, _NEW).order_by(Q.c.rank).limit(sa.bindparam("limit"))
# Gold and practice are always open; to say so lets the index be used.
_MINE = sa.or_(Q.c.arm == "", Q.c.arm == _ARM)
_GOLD = _CHOICES.where(Q.c.role == "gold", Q.c.is_open, _MINE, _NEW)
_PRACTICE = (
    _CHOICES.where(Q.c.role == "practice", Q.c.is_open, _MINE, _NEW)
    .order_by(Q.c.id)
    .limit(sa.bindparam("limit"))
)
_ANY_OPEN = sa.select(Q.c.id).where(*_OPEN, Q.c.is_open, _NOT_GIVEN).limit(1)
# Others hold it, since what the rater holds is given. The counter knows without a look at all leases, which
# PostgreSQL, as long as it has no statistics, looks through once a question.
_ANY_HELD = sa.select(Q.c.id).where(*_OPEN, Q.c.leased > 0, _NOT_GIVEN).limit(1)
_INSERT = sa.insert(A)
_AGAIN = ("purpose", "attempt", "position", "state", "leased_at", "expires_at")
_HOLD_AGAIN = (
    sa.update(A)
    .where(A.c.id == sa.bindparam("key"))
    .values({name: sa.bindparam(f"b_{name}") for name in _AGAIN})
)
_SET_POSITION = sa.update(R).where(R.c.id == sa.bindparam("key")).values(position=sa.bindparam("b_position"))


class Giver:
    """Chooses questions for raters and holds them, inside the store's transactions."""

    def __init__(self, database: Database, rules: Rules, key: bytes) -> None:
        self.database, self.rules, self.config, self._key = database, rules, rules.config, key

    def held(self, connection: Connection, rater_id: int, now: float) -> Sequence[Any]:
        """What a rater holds, in order."""
        return connection.execute(_HOLDS, {"rater": rater_id, "now": now}).all()

    def fill(self, connection: Connection, rater: SimpleNamespace, want: int, now: float) -> Sequence[Any]:
        """Hold what the rater holds for longer, and give more, up to `want`; returns all of it, in order."""
        until = now + self.config.lease_seconds
        connection.execute(_RENEW, {"rater": rater.id, "now": now, "until": until})
        held = self.held(connection, rater.id, now)
        need = want - len(held)
        if need > 0:
            need = min(need, self.left(connection, rater) - len(held))
        if need <= 0:
            return held
        given, counts = self.choose(connection, rater, need, {row.image_ref for row in held})
        return [*held, *self._hold(connection, rater, given, counts, now)] if given else held

    def may_come(self, connection: Connection, rater: SimpleNamespace) -> bool:
        """Whether there is, or may be, a pair for the rater: one that is open, or held by somebody else."""
        if rater.frozen_at is not None or (rater.quota is not None and rater.answered >= rater.quota):
            return False
        values = {"rater": rater.id, "arm": rater.arm}
        return any(connection.execute(some, values).first() for some in (_ANY_OPEN, _ANY_HELD))

    def left(self, connection: Connection, rater: SimpleNamespace) -> int:
        """How many answers the rater may still give in this stage."""
        if rater.stage == "work":
            return self.config.prefetch if rater.quota is None else rater.quota - rater.answered
        return self.rules.step_of(rater.stage) - step_done(connection, rater)

    def choose(
        self, connection: Connection, rater: SimpleNamespace, need: int, images: set[int]
    ) -> tuple[list[Any], dict[int, Counts]]:
        """New questions for a rater, in order, and the counters of those that are pairs, which are locked."""
        if rater.stage == "practice":
            values = {"rater": rater.id, "arm": rater.arm, "limit": need}
            return list(connection.execute(_PRACTICE, values)), {}
        gold = list(connection.execute(_GOLD, {"rater": rater.id, "arm": rater.arm}))
        gold.sort(key=lambda row: assignment.order(self._key, rater.id, row.id))
        if rater.stage == "qualification":
            return _balanced(gold, need, rater.position), {}
        is_gold = self._gold_places(rater, need)
        golds = gold[: sum(is_gold)]
        pairs, counts, more = self._choose_pairs(connection, rater, max(need - len(golds), 1), images)
        if self.config.study is not None and not more and (not pairs or len(pairs) < need - len(golds)):
            # Everybody in a study answers the same checks: what is left of them comes at the end.
            ends = [*pairs, *gold[: need - len(pairs)]]
            ends.sort(key=lambda row: assignment.order(self._key, rater.id, row.id))
            return ends, {row.id: counts[row.id] for row in pairs}
        # Gold alone, where there is nothing left to judge, would be known for gold.
        chosen: list[Any] = []
        for wants_gold in is_gold if pairs else ():
            if wants_gold and golds:
                chosen.append(golds.pop())
            elif pairs:
                chosen.append(pairs.pop(0))
            else:
                break
        return chosen, counts

    def _gold_places(self, rater: SimpleNamespace, need: int) -> list[bool]:
        """Which of the next `need` places in a rater's sequence are for gold."""
        places = [rater.position + 1 + i for i in range(need)]
        if self.config.study is None:
            rate = self.config.gold_rate
            return [assignment.is_gold_place(self._key, rater.id, place, rate) for place in places]
        before = self.rules.step_of("practice") + self.rules.step_of("qualification")
        every = self.config.study.check_every
        return [assignment.is_check_place(self._key, rater.id, place - before, every) for place in places]

    def _choose_pairs(
        self, connection: Connection, rater: SimpleNamespace, need: int, images: set[int]
    ) -> tuple[list[Any], dict[int, Counts], bool]:
        """Open pairs of high priority, in the rater's own order, no image twice while it can be helped.

        Returns:
            The pairs, the counters of those that were locked, and whether there are more, which somebody else
            may have locked.
        """
        # In a study nothing is more urgent than anything else: the order is the rater's own from end to end.
        block = _BLOCK if self.config.study is None else _ALL
        values = {"rater": rater.id, "arm": rater.arm, "limit": 2 * block + need}
        rows = list(connection.execute(_PAIRS, values))
        rows.sort(key=lambda row: (row.rank // block, assignment.order(self._key, rater.id, row.id)))
        seen = set(images)
        first: list[Any] = []
        later: list[Any] = []
        for row in rows:
            (later if row.image_ref in seen else first).append(row)
            seen.add(row.image_ref)
        wanted = [*first, *later]
        chosen: list[Any] = []
        counts: dict[int, Counts] = {}
        while wanted and len(chosen) < need:
            some, wanted = wanted[: need - len(chosen)], wanted[need - len(chosen) :]
            # Whoever else has one locked may be filling it: take others meanwhile, and look again at these.
            locked = lock_questions(self.database, connection, [row.id for row in some], skip=True)
            counts |= locked
            chosen += [row for row in some if row.id in locked and locked[row.id].is_open(self.config)]
        return chosen, counts, len(rows) > len(chosen)

    def _hold(
        self,
        connection: Connection,
        rater: SimpleNamespace,
        given: list[Any],
        counts: dict[int, Counts],
        now: float,
    ) -> list[SimpleNamespace]:
        """Give questions to a rater, from the rater's next place on; returns them as `held` would."""
        new, again, held = [], [], []
        until = now + self.config.lease_seconds
        for place, row in enumerate(given, start=rater.position + 1):
            if row.id in counts:
                counts[row.id].hold(1)
            values = {
                "purpose": rater.stage,
                "attempt": rater.attempt,
                "position": place,
                "state": "leased",
                "leased_at": now,
                "expires_at": until,
            }
            token = assignment.token(self._key, rater.id, row.id)
            if row.before is not None:
                again.append({"key": row.before, **{f"b_{name}": values[name] for name in _AGAIN}})
            else:
                rest = {"counted": False, "flag": "", "question_ref": row.id, "rater_ref": rater.id}
                new.append({"token": token, **rest, **values})
            held.append(
                SimpleNamespace(
                    token=token,
                    class_index=row.class_index,
                    position=place,
                    purpose=rater.stage,
                    arm=row.arm,
                    beside=row.beside,
                    image_ref=row.image_ref,
                    expires_at=until,
                )
            )
        rater.position += len(given)
        pairs = [counts[row.id] for row in given if row.id in counts]
        self.database.write(
            connection,
            (_INSERT, new),
            (_HOLD_AGAIN, again),
            (SAVE_COUNTS, counter_rows(self.config, pairs)),
            (_SET_POSITION, [{"key": rater.id, "b_position": rater.position}]),
        )
        return held

    def reap(self, now: float) -> None:
        """Take back questions that were held too long."""

        def work(connection: Connection) -> None:
            late = [A.c.state == LEASED, A.c.expires_at <= now]
            found = connection.execute(sa.select(A.c.question_ref).where(*late).limit(1000)).scalars().all()
            if not found:
                return
            counts = lock_questions(self.database, connection, found, skip=True)
            ids = sa.select(A.c.id, A.c.question_ref).where(*late, A.c.question_ref.in_(counts))
            rows = connection.execute(self.database.locked(ids)).all()
            if not rows:
                return
            connection.execute(
                sa.update(A).where(A.c.id.in_([row.id for row in rows])).values(state="expired")
            )
            for row in rows:
                counts[row.question_ref].hold(-1)
            save_questions(connection, self.config, [counts[row.question_ref] for row in rows])

        self.database.transact(work)


def _balanced(rows: Sequence[Any], need: int, position: int) -> list[Any]:
    """Alternate known answers yes and no, as long as there are both."""
    groups = {expected: [row for row in rows if row.expected == expected] for expected in ("yes", "no")}
    chosen: list[Any] = []
    while len(chosen) < need and (groups["yes"] or groups["no"]):
        first = ("yes", "no")[(position + len(chosen)) % 2]
        other = "no" if first == "yes" else "yes"
        chosen.append((groups[first] or groups[other]).pop(0))
    return chosen
