"""Giving questions: which ones a rater gets next, and how they are held."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from annotations.campaign import assignment
from annotations.campaign.database import Database
from annotations.campaign.rows import A, Q, R, lock_questions, save_questions, step_done
from annotations.campaign.rules import Rules

_BLOCK = 64  # raters go through the pairs in blocks of this size by priority, each in an order of their own

_HELD = (
    A.c.id,
    A.c.token,
    A.c.position,
    A.c.purpose,
    A.c.expires_at,
    Q.c.class_index,
    Q.c.arm,
    Q.c.image_ref,
)


class Giver:
    """Chooses questions for raters and holds them, inside the store's transactions."""

    def __init__(self, database: Database, rules: Rules, key: bytes) -> None:
        self.database, self.rules, self.config, self._key = database, rules, rules.config, key

    def held(self, connection: Connection, rater_id: int, now: float) -> Sequence[Any]:
        """What a rater holds, in order."""
        statement = (
            sa.select(*_HELD)
            .join(Q, Q.c.id == A.c.question_ref)
            .where(A.c.rater_ref == rater_id, A.c.state == "leased", A.c.expires_at > now)
            .order_by(A.c.position)
        )
        return connection.execute(statement).all()

    def left(self, connection: Connection, rater: Any) -> int:
        """How many answers the rater may still give in this stage."""
        if rater.stage == "work":
            return self.config.prefetch if rater.quota is None else rater.quota - rater.answered
        return self.rules.step_of(rater.stage) - step_done(connection, rater)

    def choose(self, connection: Connection, rater: Any, need: int, images: set[int]) -> list[int]:
        """Numbers of new questions for a rater, in order; those of pairs to judge are locked."""
        if rater.stage == "practice":
            mine = self.not_yet(rater.id, Q.c.role == "practice").order_by(Q.c.id).limit(need)
            return [row.id for row in connection.execute(mine)]
        arms = Q.c.arm.in_({"", rater.arm})
        gold = list(connection.execute(self.not_yet(rater.id, Q.c.role == "gold", arms)))
        gold.sort(key=lambda row: assignment.order(self._key, rater.id, row.id))
        if rater.stage == "qualification":
            return [row.id for row in _balanced(gold, need, rater.position)]
        rate = self.config.gold_rate
        places = [rater.position + 1 + i for i in range(need)]
        is_gold = [assignment.is_gold_place(self._key, rater.id, place, rate) for place in places]
        golds = [row.id for row in gold[: sum(is_gold)]]
        # Gold alone, where there is nothing left to judge, would be known for gold.
        pairs = self._choose_pairs(connection, rater, max(need - len(golds), 1), images)
        if not pairs:
            return []
        chosen: list[int] = []
        for wants_gold in is_gold:
            if wants_gold and golds:
                chosen.append(golds.pop())
            elif pairs:
                chosen.append(pairs.pop(0))
            else:
                break
        return chosen

    def _choose_pairs(self, connection: Connection, rater: Any, need: int, images: set[int]) -> list[int]:
        """Open pairs of high priority, in the rater's own order, no image twice while it can be helped."""
        if need <= 0:
            return []
        window = 2 * _BLOCK + need
        statement = self.not_yet(rater.id, Q.c.role == "work", Q.c.arm == rater.arm, Q.c.is_open)
        rows = list(connection.execute(statement.order_by(Q.c.rank).limit(window)))
        rows.sort(key=lambda row: (row.rank // _BLOCK, assignment.order(self._key, rater.id, row.id)))
        seen = set(images)
        first: list[int] = []
        later: list[int] = []
        for row in rows:
            (later if row.image_ref in seen else first).append(row.id)
            seen.add(row.image_ref)
        wanted = [*first, *later]
        chosen: list[int] = []
        while wanted and len(chosen) < need:
            some, wanted = wanted[: need - len(chosen)], wanted[need - len(chosen) :]
            if not self.database.is_sqlite:
                lock = sa.select(Q.c.id).where(Q.c.id.in_(some), Q.c.is_open).order_by(Q.c.id)
                got = set(connection.execute(lock.with_for_update(skip_locked=True)).scalars())
                some = [question for question in some if question in got]
            chosen += some
        return chosen

    def not_yet(self, rater_id: int, *conditions: Any) -> sa.Select[Any]:
        """Questions that a rater was not given, or has held too long without an answer."""
        given = sa.exists().where(
            A.c.rater_ref == rater_id, A.c.question_ref == Q.c.id, A.c.state != "expired"
        )
        return sa.select(Q.c.id, Q.c.image_ref, Q.c.expected, Q.c.rank).where(*conditions, ~given)

    def hold(self, connection: Connection, rater: Any, question_ids: list[int], now: float) -> None:
        """Give questions to a rater, from the rater's next place on."""
        pairs = sa.select(Q.c.id).where(Q.c.id.in_(question_ids), Q.c.role == "work")
        # Pairs alone, which are locked already: waiting for a lock on gold here could become a circle.
        counts = lock_questions(self.database, connection, connection.execute(pairs).scalars())
        before = {
            row.question_ref: row.id
            for row in connection.execute(
                sa.select(A.c.id, A.c.question_ref).where(
                    A.c.rater_ref == rater.id, A.c.question_ref.in_(question_ids)
                )
            )
        }
        new, again = [], []
        for place, question_id in enumerate(question_ids, start=rater.position + 1):
            if question_id in counts:
                counts[question_id].hold(1)
            values = {
                "purpose": rater.stage,
                "attempt": rater.attempt,
                "position": place,
                "state": "leased",
                "leased_at": now,
                "expires_at": now + self.config.lease_seconds,
            }
            if question_id in before:
                again.append({"key": before[question_id], **values})
                continue
            token = assignment.token(self._key, rater.id, question_id)
            new.append(
                {
                    "token": token,
                    "question_ref": question_id,
                    "rater_ref": rater.id,
                    "counted": False,
                    "flag": "",
                    **values,
                }
            )
        if new:
            connection.execute(sa.insert(A), new)
        if again:
            names = [name for name in again[0] if name != "key"]
            connection.execute(
                sa.update(A)
                .where(A.c.id == sa.bindparam("key"))
                .values({name: sa.bindparam(f"b_{name}") for name in names}),
                [{"key": row["key"], **{f"b_{name}": row[name] for name in names}} for row in again],
            )
        save_questions(connection, self.config, counts.values())
        connection.execute(
            sa.update(R).where(R.c.id == rater.id).values(position=rater.position + len(question_ids))
        )

    def reap(self, now: float) -> None:
        """Take back questions that were held too long."""

        def work(connection: Connection) -> None:
            late = [A.c.state == "leased", A.c.expires_at <= now]
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
