"""Turns of many raters in one transaction come out as turns one after the other."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from annotations.campaign.rows import A, Q
from annotations.campaign.store import Store
from annotations.campaign.turns import Turn
from annotations.errors import BeyondError
from tests.annotations.campaign.conftest import Clock, MakeCampaign, Person


class UndoneError(Exception):
    """Ends a transaction that is not meant to stay."""


def would_get(store: Store, together: list[list[Turn]]) -> dict[int, list[str]]:
    """The questions that raters would get from turns taken so, each list in one go; nothing of it stays."""
    got = {}

    def work(connection: Connection) -> None:
        for turns in together:
            store.turns.run(connection, turns)
            for turn in turns:
                assert turn.batch is not None
                got[turn.rater_id] = [question.token for question in turn.batch.questions]
        raise UndoneError

    with pytest.raises(UndoneError):
        store.database.transact(work)
    return got


@pytest.mark.parametrize("classes_per_image", [1, 3])
def test_raters_get_the_same_questions_together_as_alone(make: MakeCampaign, classes_per_image: int) -> None:
    """Where there is room for all; some have answered, and some of what they held is over."""
    store = make(
        pairs=300,
        gold=40,
        votes=20,
        accept_at=11,
        gold_rate=0.3,
        quality_floor=0,
        prefetch=12,
        classes_per_image=classes_per_image,
        priority=lambda i: -(i // 50),
    )
    people = [Person(store) for _ in range(6)]
    for number, person in enumerate(people):
        for token in person.ask(8)[: 2 * number % 7]:
            assert person.answer(token) == "recorded"
    wants = [(person.id, 3 + 2 * number) for number, person in enumerate(people)]
    alone = would_get(store, [[Turn(rater, (), want)] for rater, want in wants])
    assert would_get(store, [[Turn(rater, (), want) for rater, want in wants]]) == alone
    assert all(len(alone[rater]) >= min(want, 8) for rater, want in wants)


def test_a_rater_far_ahead_of_the_others_gets_questions_beside_them(make: MakeCampaign) -> None:
    """Who was given all that is first in line is looked after alone, and gets what they would get alone."""
    store = make(pairs=700, gold=0, votes=5, prefetch=50)
    ahead, other = Person(store), Person(store)
    for _ in range(11):
        store.submit(ahead.id, [ahead.item(token) for token in ahead.ask(50)])
    wants = [(ahead.id, 20), (other.id, 20)]
    alone = would_get(store, [[Turn(rater, (), want)] for rater, want in wants])
    assert would_get(store, [[Turn(rater, (), want) for rater, want in wants]]) == alone
    assert [len(tokens) for tokens in alone.values()] == [20, 20]


def test_together_nobody_gets_what_has_no_room(make: MakeCampaign) -> None:
    store = make(pairs=6, gold=0, votes=3, accept_at=2)
    people = [Person(store) for _ in range(8)]
    asked = [Turn(person.id, (), 6) for person in people]
    store.turns.take_all(asked)
    tokens = [[q.token for q in turn.batch.questions] for turn in asked if turn.batch]
    assert sum(map(len, tokens)) == 18
    with store.database.read() as connection:
        assert set(connection.execute(sa.select(Q.c.leased)).scalars()) == {3}
    answered = [
        Turn(person.id, [person.item(token) for token in mine], 6) for person, mine in zip(people, tokens)
    ]
    store.turns.take_all(answered)
    assert {outcome.status for turn in answered for outcome in turn.outcomes} == {"recorded"}
    assert {turn.batch.progress.stage for turn in answered if turn.batch} == {"done"}
    assert int(store.votes().counted.sum()) == len(store.votes().answer) == 18
    assert store.check() == []


@pytest.mark.parametrize("first", [0, 1])
def test_late_answers_that_come_together(make: MakeCampaign, clock: Clock, first: int) -> None:
    """Two raters held the one place, and both leases are over: the answer that comes first has it."""
    store = make(pairs=1, gold=0, votes=1, accept_at=1)
    people = [Person(store), Person(store)]
    tokens = []
    for person in people:
        tokens += person.ask(1)
        clock.now += store.config.lease_seconds + 5
    turns = [Turn(person.id, [person.item(token)], 0) for person, token in zip(people, tokens)]
    store.turns.take_all(turns if first == 0 else turns[::-1])
    assert [turn.outcomes[0].status for turn in turns] == ["recorded", "recorded"]
    votes = store.votes()
    assert votes.counted.sum() == 1
    with store.database.read() as connection:
        row = connection.execute(sa.select(Q.c.leased, Q.c.counted)).one()
    assert tuple(row) == (0, 1)
    assert store.check() == []
    with store.database.read() as connection:
        winner = connection.execute(sa.select(A.c.rater_ref).where(A.c.counted)).scalar_one()
    assert winner == people[first].id


def test_a_turn_that_cannot_be_taken_stops_no_other(make: MakeCampaign) -> None:
    store = make(pairs=6, gold=0, votes=2, accept_at=2)
    people = [Person(store) for _ in range(2)]
    tokens = [person.ask(2) for person in people]
    turns = [Turn(person.id, [person.item(mine[0])], 4) for person, mine in zip(people, tokens)]
    turns.insert(1, Turn(10**6, (), 4))
    store.turns.take_all(turns)
    assert isinstance(turns[1].error, BeyondError)
    assert [turn.outcomes[0].status for turn in (turns[0], turns[2])] == ["recorded", "recorded"]
    assert turns[0].error is turns[2].error is None
    assert len(store.votes().answer) == 2
    with pytest.raises(BeyondError, match="no rater 1000000"):
        store.turn(10**6, (), 4)


def test_turns_that_wait_are_taken_together_and_a_raters_own_in_order(make: MakeCampaign) -> None:
    store = make(pairs=20, gold=0, votes=5)
    people = [Person(store) for _ in range(5)]
    tokens = [person.ask(4) for person in people]
    sizes: list[int] = []
    run = store.turns.run
    held, going = threading.Event(), threading.Event()

    def watched(connection: Connection, turns: list[Turn]) -> None:
        sizes.append(len(turns))
        if len(sizes) == 1:
            held.set()
            assert going.wait(20)
        run(connection, turns)

    store.turns.run = watched  # type: ignore[method-assign, assignment]
    results: dict[tuple[int, int], str] = {}

    def answer(person: Person, number: int, token: str) -> None:
        results[person.id, number] = store.submit(person.id, [person.item(token, key=f"k{number:015d}")])[
            0
        ].status

    first = threading.Thread(target=answer, args=(people[0], 0, tokens[0][0]))
    first.start()
    assert held.wait(20)
    others = [
        threading.Thread(target=answer, args=(person, number, mine[number]))
        for number in (1, 2)
        for person, mine in zip(people, tokens)
    ]
    for thread in others:
        thread.start()
    deadline = time.monotonic() + 20
    while len(store.turns._waiting) < len(others):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    going.set()
    for thread in [first, *others]:
        thread.join(30)
    assert sizes == [1, 5, 5]
    assert set(results.values()) == {"recorded"}
    assert len(results) == len(store.votes().answer) == 11
    assert store.check() == []


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_what_turns_ask_is_found_by_indexes(make: MakeCampaign) -> None:
    """However long the campaign: SQLite looks through none of the tables that grow."""
    store = make(
        pairs=200, gold=30, votes=3, accept_at=2, gold_rate=0.3, quality_floor=0, priority=lambda i: -i
    )
    people = [Person(store) for _ in range(3)]
    tokens = {person.id: person.ask(8) for person in people}
    asked: list[tuple[str, Any]] = []

    @sa.event.listens_for(store.database.engine, "before_cursor_execute")
    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool) -> None:
        if statement.startswith(("SELECT", "UPDATE")):
            asked.append((statement, parameters[0] if many else parameters))

    turns = [Turn(p.id, [p.item(tokens[p.id][0]), p.item(tokens[p.id][1])], 12) for p in people]
    store.turns.take_all(turns)
    store.turns.take_all([Turn(p.id, [p.undo(tokens[p.id][1])], 12) for p in people])
    sa.event.remove(store.database.engine, "before_cursor_execute", note)
    assert len(asked) > 15
    with store.database.read() as connection:
        raw: Any = connection.connection.driver_connection
        for statement, parameters in asked:
            steps = [row[3] for row in raw.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]
            for table in ("assignments", "questions", "events"):
                assert f"SCAN {table}" not in steps, (statement, steps)
