"""PostgreSQL goes away under a campaign: answers are refused or recorded, never lost, never counted twice."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest
from fastapi.testclient import TestClient

from annotations.campaign.pictures import Pictures, images_folder
from annotations.campaign.store import Store
from annotations.campaign.types import Item
from annotations.web.app import create_app
from tests.annotations.campaign.conftest import MakeCampaign, Person, clock, make
from tests.faults.conftest import Mistake
from tests.postgresql import PostgreSQL, running_server

__all__ = ["clock", "make"]

T = TypeVar("T")


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """A server that only these tests use, since they stop it."""
    with running_server() as found:
        yield found
        start(found)


@pytest.fixture(scope="module")
def databases(server: Any) -> PostgreSQL:
    return PostgreSQL(server.get_uri())


@pytest.fixture
def url(databases: PostgreSQL) -> str:
    return databases.new_database()


def cut(server: Any) -> int:
    """End every connection but ours, as a server that restarts or a firewall does; returns how many."""
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        found = connection.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        ).fetchone()
    assert found is not None
    return int(found[0])


def insist(store: Store, person: Person, item: Item) -> int:
    """Send an answer until it is acknowledged, as a browser does; returns how often it was sent."""
    for attempt in range(1, 8):
        with contextlib.suppress(*store.database.errors):
            outcome = store.submit(person.id, [item])[0]
            assert outcome.status in ("recorded", "duplicate"), outcome
            return attempt
        time.sleep(0.05)
    raise AssertionError("not acknowledged in seven attempts")


def test_connections_cut_before_every_answer(make: MakeCampaign, server: Any) -> None:
    store = make(pairs=6, gold=0, votes=3, accept_at=2)
    people = [Person(store) for _ in range(3)]
    cuts = 0
    for person in people:
        tokens = insist_on_questions(store, person)
        for number, token in enumerate(tokens):
            cuts += cut(server) > 0
            assert insist(store, person, person.item(token, "yes" if number % 2 else "no")) <= 2
    votes = insist_on(store, store.votes)
    assert cuts >= 10
    assert len(votes.answer) == int(votes.counted.sum()) == 18
    assert insist_on(store, store.check) == []


def insist_on_questions(store: Store, person: Person) -> list[str]:
    return insist_on(store, lambda: person.ask(6))


def insist_on(store: Store, read: Callable[[], T]) -> T:
    """Read until it succeeds: connections that were cut are only found to be so when they are used."""
    for _ in range(12):
        with contextlib.suppress(*store.database.errors):
            return read()
    raise AssertionError("not read in twelve attempts")


def test_connections_cut_while_many_answer(make: MakeCampaign, server: Any) -> None:
    """Cuts fall into transactions; what was acknowledged is there once, and no pair has a vote too many."""
    store = make(pairs=40, gold=0, votes=3, accept_at=2)
    people = [Person(store) for _ in range(4)]
    acknowledged: list[str] = []

    def rate(person: Person) -> None:
        idle = 0
        while idle < 40:  # others may hold what is left, and finish it
            tokens = insist_on_questions(store, person)[:3]
            idle = 0 if tokens else idle + 1
            time.sleep(0 if tokens else 0.05)
            for token in tokens:
                item = person.item(token)
                insist(store, person, item)
                acknowledged.append(item.key)

    threads = [threading.Thread(target=rate, args=(person,)) for person in people]
    for thread in threads:
        thread.start()
    cuts = 0
    while any(thread.is_alive() for thread in threads) and cuts < 200:
        cuts += cut(server) > 0
        time.sleep(0.03)
    for thread in threads:
        thread.join(60)
    votes = insist_on(store, store.votes)
    assert cuts >= 3
    assert len(votes.answer) == len(acknowledged) == len(set(acknowledged))
    assert int(votes.counted.sum()) == 120
    assert insist_on(store, store.check) == []


def test_a_server_that_restarts(make: MakeCampaign, server: Any, one_line: Mistake, url: str) -> None:
    """Stopped as by a power cut and started again: a line or 503 while it is away, then all goes on."""
    store = make(pairs=4, gold=0, votes=1, accept_at=1)
    person = Person(store)
    first, second, *_ = person.ask(4)
    assert person.answer(first) == "recorded"
    app = TestClient(create_app(store, Pictures(images_folder("sample"))), base_url="http://localhost:8008")
    stop(server)
    try:
        with pytest.raises(store.database.errors):
            store.submit(person.id, [person.item(second, key="key-of-the-cut")])
        reply = app.get("/join/" + "x" * 30)
        assert (reply.status_code, reply.headers["Retry-After"]) == (503, "2")
        line = one_line(["campaign", "status", "--db", url])
        assert "the campaign's database does not answer" in line
    finally:
        start(server)
    assert insist(store, person, person.item(second, key="key-of-the-cut")) <= 2
    assert app.get("/join/" + "x" * 30).status_code in (303, 404, 410, 200)
    assert len(store.votes().answer) == 2
    assert store.check() == []


def start(server: Any) -> None:
    """Start it and wait until it answers; after a power cut a busy disk may take longer than pg_ctl waits."""
    deadline = time.monotonic() + 120
    while True:
        try:
            server.ensure_postgres_running()
            psycopg.connect(server.get_uri()).close()
            return
        except (subprocess.SubprocessError, AssertionError, psycopg.OperationalError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def stop(server: Any) -> None:
    """`pg_ctl stop -m immediate`: no shutdown, as SIGKILL or a power cut."""
    folder = Path(server.pgdata)
    pid = int((folder / "postmaster.pid").read_text().splitlines()[0])
    subprocess.run(["kill", "-QUIT", str(pid)], check=True)
    deadline = time.monotonic() + 30
    while (folder / "postmaster.pid").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
