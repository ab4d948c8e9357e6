"""Giving questions: which ones a rater gets next, and how they are held."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from annotations.campaign import assignment
from annotations.campaign.changes import Changes
from annotations.campaign.database import Database
from annotations.campaign.rows import LEASED, A, Counts, Q, Rounds, lock_questions, save_questions
from annotations.campaign.rules import Rules

_BLOCK = 64  # raters go through the pairs in blocks of this size by priority, each in an order of their own
_ALL = 10**6

_HELD = (
    A.c.rater_ref,
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
_LIMIT: Any = sa.bindparam("limit")
_NOT_GIVEN = ~sa.exists().where(A.c.rater_ref == _RATER, A.c.question_ref == Q.c.id, A.c.state != "expired")
_CHOICE = (Q.c.id, Q.c.image_ref, Q.c.class_index, Q.c.arm, Q.c.beside, Q.c.expected, Q.c.rank)
_CHOICES = sa.select(*_CHOICE)
_OPEN = [Q.c.role == "work", Q.c.arm == _ARM]
_OPEN_PAIRS = _CHOICES.where(*_OPEN, Q.c.is_open).order_by(Q.c.rank).limit(_LIMIT)
_PAIRS = _CHOICES.where(*_OPEN, Q.c.is_open, _NOT_GIVEN).order_by(Q.c.rank).limit(_LIMIT)
# Gold and practice are always open; to say so lets the index be used.
_MINE = sa.or_(Q.c.arm == "", Q.c.arm == _ARM)
_GOLD = _CHOICES.where(Q.c.role == "gold", Q.c.is_open, _MINE)
_PRACTICE = _CHOICES.where(Q.c.role == "practice", Q.c.is_open, _MINE).order_by(Q.c.id)
_ANY_OPEN = sa.select(Q.c.id).where(*_OPEN, Q.c.is_open, _NOT_GIVEN).limit(1)
# Others hold it, since what the rater holds is given. The counter knows without a look at all leases, which
# PostgreSQL, as long as it has no statistics, looks through once a question.
_ANY_HELD = sa.select(Q.c.id).where(*_OPEN, Q.c.leased > 0, _NOT_GIVEN).limit(1)


def _held_by(database: Database) -> list[Any]:
    return [database.among(A.c.rater_ref, "raters"), A.c.state == "leased", A.c.expires_at > _NOW]


def _holds(database: Database) -> sa.Select[Any]:
    held = sa.select(*_HELD).join(Q, Q.c.id == A.c.question_ref).where(*_held_by(database))
    return held.order_by(A.c.rater_ref, A.c.position)


def _renew(database: Database) -> sa.Update:
    return sa.update(A).where(*_held_by(database)).values(expires_at=sa.bindparam("until"))


def _given_of(database: Database) -> sa.Select[Any]:
    raters, questions = (
        database.among(c, n) for c, n in ((A.c.rater_ref, "raters"), (A.c.question_ref, "ids"))
    )
    return sa.select(A.c.rater_ref, A.c.question_ref, A.c.id, A.c.state).where(raters, questions)


class Asking:
    """A rater who asks for questions, while they are given.

    Attributes:
        rater: The rater's row, locked.
        want: How many questions the rater wants to hold.
        held: What the rater holds, in order.
    """

    def __init__(self, rater: SimpleNamespace, want: int) -> None:
        self.rater, self.want = rater, want
        self.held: list[Any] = []


class _Choosing:
    """What may be given to one rater, and in the end is."""

    def __init__(self, asking: Asking, need: int) -> None:
        self.asking, self.rater, self.need = asking, asking.rater, need
        self.is_gold: list[bool] = []
        self.gold: list[Any] = []  # in the rater's order
        self.golds: list[Any] = []  # of these, for the places of gold
        self.rows: list[Any] = []  # pairs, by rank
        self.before: Mapping[int, Any] = {}  # assignments that the rater had, by question
        self.pairs: list[Any] = []  # of these, chosen
        self.of_pairs = 0  # how many are to be chosen
        self.given: list[Any] = []  # all, in order


class Giver:
    """Chooses questions for raters and holds them, inside the store's transactions."""

    def __init__(self, database: Database, rules: Rules, key: bytes) -> None:
        self.database, self.rules, self.config, self._key = database, rules, rules.config, key

    def held(self, connection: Connection, rater_ids: Iterable[int], now: float) -> Sequence[Any]:
        """What raters hold, by rater and in order."""
        values = {"raters": sorted(rater_ids), "now": now}
        return connection.execute(self.database.once(_holds), values).all()

    def is_fresh(self, held: Sequence[Any], now: float) -> bool:
        """Whether everything is held for long enough still."""
        return min((row.expires_at for row in held), default=now) - now > self.config.lease_seconds / 2

    def fill(
        self,
        connection: Connection,
        asking: Sequence[Asking],
        counts: dict[int, Counts],
        rounds: Rounds,
        changes: Changes,
        now: float,
    ) -> None:
        """Hold what raters hold for longer, and give each more, up to what they want.

        Raters come in turn: what one was given is not open to the next where it has no room for both.

        Args:
            connection: In a transaction, with everything written that this reads.
            asking: Raters, each once.
            counts: Counters of locked questions; more are locked.
            rounds: What those in practice or qualification have answered.
            changes: Takes what is to be written.
            now: When leases begin.
        """
        by_id = {one.rater.id: one for one in asking}
        for row in self.held(connection, by_id, now):
            by_id[row.rater_ref].held.append(row)
        late = [one.rater.id for one in asking if one.held and not self.is_fresh(one.held, now)]
        if late:
            values = {"raters": late, "now": now, "until": now + self.config.lease_seconds}
            connection.execute(self.database.once(_renew), values)
        needing = [
            _Choosing(one, need)
            for one in asking
            if (need := min(one.want, self._left(one.rater, rounds)) - len(one.held)) > 0
        ]
        for stage, role in (("practice", _PRACTICE), ("qualification", _GOLD)):
            for arm, some in _by_arm(one for one in needing if one.rater.stage == stage):
                self._choose_round(connection, some, connection.execute(role, {"arm": arm}).all())
        working = [choosing for choosing in needing if choosing.rater.stage == "work"]
        self._choose(connection, working, counts)
        for choosing in needing:
            if choosing.rater.stage == "work":
                choosing.given = self._compose(choosing, counts)
                for row in choosing.given:
                    if row.id in counts:
                        changes.counted(counts[row.id])
            self._hold(choosing, changes, now)

    def may_come(self, connection: Connection, rater: SimpleNamespace) -> bool:
        """Whether there is, or may be, a pair for the rater: one that is open, or held by somebody else."""
        if rater.frozen_at is not None or (rater.quota is not None and rater.answered >= rater.quota):
            return False
        values = {"rater": rater.id, "arm": rater.arm}
        return any(connection.execute(some, values).first() for some in (_ANY_OPEN, _ANY_HELD))

    def _left(self, rater: SimpleNamespace, rounds: Rounds) -> int:
        """How many answers the rater may still give in this stage."""
        if rater.stage == "work":
            return self.config.prefetch if rater.quota is None else rater.quota - rater.answered
        return self.rules.step_of(rater.stage) - rounds.done(rater)

    def _order(self, rater: SimpleNamespace, row: Any) -> int:
        return assignment.order(self._key, rater.id, row.id)

    def _choose_round(self, connection: Connection, raters: Sequence[_Choosing], rows: Sequence[Any]) -> None:
        """Choose from the questions of practice, or from gold, for raters in that round."""
        given = self._given(connection, [one.rater.id for one in raters], rows)
        for one in raters:
            one.before = given.get(one.rater.id, {})
            new = _new(rows, one.before)
            if one.rater.stage == "practice":
                one.given = new[: one.need]
            else:
                new.sort(key=lambda row: self._order(one.rater, row))
                one.given = _balanced(new, one.need, one.rater.position)

    def _given(
        self, connection: Connection, rater_ids: list[int], rows: Iterable[Any]
    ) -> dict[int, dict[int, Any]]:
        """By rater, the questions among `rows` that they were given, each with its assignment."""
        given: dict[int, dict[int, Any]] = {}
        values = {"raters": rater_ids, "ids": [row.id for row in rows]}
        for row in connection.execute(self.database.once(_given_of), values):
            given.setdefault(row.rater_ref, {})[row.question_ref] = row
        return given

    def _choose(
        self, connection: Connection, working: Sequence[_Choosing], counts: dict[int, Counts]
    ) -> None:
        """Choose gold and open pairs for raters; the pairs are locked and counted as held.

        Pairs are of high priority, in the rater's own order, no image twice while it can be helped.
        """
        for arm, some in _by_arm(working):
            self._read(connection, arm, some)
        wishes = [(choosing, self._wished(choosing)) for choosing in working]
        while wishes:
            # Whoever else has one locked may be filling it: take others meanwhile.
            tries = [
                (choosing, wished, list(islice(wished, choosing.of_pairs - len(choosing.pairs))))
                for choosing, wished in wishes
            ]
            new = {row.id for _, _, rows in tries for row in rows} - counts.keys()
            if new:
                counts.update(lock_questions(self.database, connection, new, skip=True))
            wishes = []
            for choosing, wished, rows in tries:
                for row in rows:
                    if row.id in counts and counts[row.id].is_open(self.config):
                        counts[row.id].hold(1)
                        choosing.pairs.append(row)
                if rows and len(choosing.pairs) < choosing.of_pairs:
                    wishes.append((choosing, wished))

    def _read(self, connection: Connection, arm: str, working: Sequence[_Choosing]) -> None:
        """Read what may be given to raters of one arm: pairs, and gold where there is a place for it."""
        is_study = self.config.study is not None
        # In a study nothing is more urgent than anything else: the order is the rater's own from end to end.
        block = _ALL if is_study else _BLOCK
        least = 2 * block + max(choosing.need for choosing in working)
        limit = least + 2 * block
        pairs = connection.execute(_OPEN_PAIRS, {"arm": arm, "limit": limit}).all()
        for choosing in working:
            choosing.is_gold = self._gold_places(choosing.rater, choosing.need)
        wants_gold = is_study or any(any(choosing.is_gold) for choosing in working)
        gold = connection.execute(_GOLD, {"arm": arm}).all() if wants_gold else []
        given = self._given(connection, [one.rater.id for one in working], [*pairs, *gold])
        for choosing in working:
            rater, before = choosing.rater, given.get(choosing.rater.id, {})
            choosing.before = before
            choosing.rows = _new(pairs, before)
            if len(choosing.rows) < least and len(pairs) == limit:
                # The rater was given most of what is first in line.
                values = {"rater": rater.id, "arm": arm, "limit": least}
                choosing.rows = list(connection.execute(_PAIRS, values))
                more = self._given(connection, [rater.id], choosing.rows).get(rater.id, {})
                choosing.before = {**before, **more}
            del choosing.rows[2 * block + choosing.need :]
            if is_study or any(choosing.is_gold):
                choosing.gold = sorted(_new(gold, before), key=lambda row: self._order(rater, row))
            choosing.golds = choosing.gold[: sum(choosing.is_gold)]
            choosing.of_pairs = max(choosing.need - len(choosing.golds), 1)

    def _wished(self, choosing: _Choosing) -> Iterator[Any]:
        """A rater's pairs in the order in which they are to be tried."""
        block = _ALL if self.config.study is not None else _BLOCK
        seen = {row.image_ref for row in choosing.asking.held}
        later = []
        for _, rows in groupby(choosing.rows, key=lambda row: row.rank // block):
            for row in sorted(rows, key=lambda row: self._order(choosing.rater, row)):
                if row.image_ref in seen:
                    later.append(row)
                else:
                    seen.add(row.image_ref)
                    yield row
        yield from later

    def _compose(self, choosing: _Choosing, counts: dict[int, Counts]) -> list[Any]:
        """Put a rater's gold and pairs in order; pairs that are left over are not held any more."""
        rater, pairs, golds = choosing.rater, list(choosing.pairs), list(choosing.golds)
        is_short = not pairs or len(pairs) < choosing.need - len(golds)
        if self.config.study is not None and len(choosing.rows) <= len(pairs) and is_short:
            # Everybody in a study answers the same checks: what is left of them comes at the end.
            ends = [*pairs, *choosing.gold[: choosing.need - len(pairs)]]
            return sorted(ends, key=lambda row: self._order(rater, row))
        # Gold alone, where there is nothing left to judge, would be known for gold.
        chosen: list[Any] = []
        for wants_gold in choosing.is_gold if pairs else ():
            if wants_gold and golds:
                chosen.append(golds.pop())
            elif pairs:
                chosen.append(pairs.pop(0))
            else:
                break
        for row in pairs:
            counts[row.id].hold(-1)
        return chosen

    def _gold_places(self, rater: SimpleNamespace, need: int) -> list[bool]:
        """Which of the next `need` places in a rater's sequence are for gold."""
        places = [rater.position + 1 + i for i in range(need)]
        if self.config.study is None:
            rate = self.config.gold_rate
            return [assignment.is_gold_place(self._key, rater.id, place, rate) for place in places]
        before = self.rules.step_of("practice") + self.rules.step_of("qualification")
        every = self.config.study.check_every
        return [assignment.is_check_place(self._key, rater.id, place - before, every) for place in places]

    def _hold(self, choosing: _Choosing, changes: Changes, now: float) -> None:
        """Give a rater what was chosen, from the rater's next place on."""
        rater, until = choosing.rater, now + self.config.lease_seconds
        for row in choosing.given:
            rater.position += 1
            values = {
                "token": assignment.token(self._key, rater.id, row.id),
                "question_ref": row.id,
                "rater_ref": rater.id,
                "purpose": rater.stage,
                "attempt": rater.attempt,
                "position": rater.position,
                "state": "leased",
                "leased_at": now,
                "expires_at": until,
            }
            was = choosing.before.get(row.id)
            changes.held(values, was.id if was is not None else None)
            choosing.asking.held.append(
                SimpleNamespace(
                    token=values["token"],
                    class_index=row.class_index,
                    position=rater.position,
                    purpose=rater.stage,
                    arm=row.arm,
                    beside=row.beside,
                    image_ref=row.image_ref,
                    expires_at=until,
                )
            )
        if choosing.given:
            changes.moved(rater)

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


def _new(rows: Iterable[Any], given: Mapping[int, Any]) -> list[Any]:
    """The rows that a rater was not given, or held too long without an answer."""
    return [row for row in rows if row.id not in given or given[row.id].state == "expired"]


def _by_arm(raters: Iterable[_Choosing]) -> Iterable[tuple[str, list[_Choosing]]]:
    arms: dict[str, list[_Choosing]] = {}
    for one in raters:
        arms.setdefault(one.rater.arm, []).append(one)
    return arms.items()


def _balanced(rows: Sequence[Any], need: int, position: int) -> list[Any]:
    """Alternate known answers yes and no, as long as there are both."""
    groups = {expected: [row for row in rows if row.expected == expected] for expected in ("yes", "no")}
    chosen: list[Any] = []
    while len(chosen) < need and (groups["yes"] or groups["no"]):
        first = ("yes", "no")[(position + len(chosen)) % 2]
        other = "no" if first == "yes" else "yes"
        chosen.append((groups[first] or groups[other]).pop(0))
    return chosen
