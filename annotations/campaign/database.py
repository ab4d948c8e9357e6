"""Databases of campaigns: engines, transactions, migrations and backup, for SQLite and PostgreSQL."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from annotations.campaign.config import STUDY_FILE
from annotations.errors import BeyondError, user_path

try:
    import alembic.command
    import alembic.config
    import alembic.migration
    import alembic.script
    import sqlalchemy as sa
    from sqlalchemy.dialects import postgresql
    from sqlalchemy.engine import URL, Connection, Engine, make_url
    from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
except ImportError as error:
    raise BeyondError(
        f"campaigns need packages that are not here ({error.name}); "
        "install them with: pip install 'beyond-accuracy[campaign]'"
    ) from error

T = TypeVar("T")

MIGRATIONS = Path(__file__).parent / "migrations"
_CONNECTIONS = 10
_RETRIES = 5
_AT_ONCE = 64  # transactions that become durable together, at most
_RETRY_STATES = {"40001", "40P01", "55P03"}  # PostgreSQL: serialisation, deadlock, lock not available


def parse_url(text: str) -> URL:
    """The database that `--db` names: a SQLAlchemy URL, the path of a SQLite file, or the folder of a study.

    Raises:
        BeyondError: It is neither SQLite nor PostgreSQL.
    """
    if "://" not in text:
        path = user_path(text)
        return URL.create("sqlite", database=str(path / STUDY_FILE if path.is_dir() else path))
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):  # the latter for a port that is no number
        raise BeyondError(
            "--db is no database URL; for example campaign.db or postgresql://host/name"
        ) from None
    backend = url.get_backend_name()
    if backend in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise BeyondError(f"campaigns are kept in SQLite or PostgreSQL, not {backend}")
    if url.database in (None, "", ":memory:"):
        raise BeyondError(
            "a campaign needs a database that outlives the process: name a file, e.g. campaign.db"
        )
    return url


class Database:
    """A campaign's database: short transactions, one writer at a time on SQLite, row locks on PostgreSQL."""

    def __init__(self, url: URL) -> None:
        self.url = url
        self.is_sqlite = url.get_backend_name() == "sqlite"
        self.engine = _sqlite_engine(url) if self.is_sqlite else _postgresql_engine(url)
        # On PostgreSQL a single query needs no transaction; what needs one snapshot of many asks for it.
        self._reader = self.engine.execution_options(
            **({"reading": True} if self.is_sqlite else {"isolation_level": "AUTOCOMMIT"})
        )
        # PostgreSQL plans a statement anew until it has done so five times.
        self.until_planned = 1 if self.is_sqlite else 7
        self._compiled: dict[Any, str] = {}
        self._made: dict[Callable[[Database], Any], Any] = {}
        # What the database or its driver raises; what `write` does comes from the driver as it is.
        self.errors: tuple[type[Exception], ...] = (DBAPIError, self.engine.dialect.loaded_dbapi.Error)
        self._together = _Together(self.engine) if self.is_sqlite else None

    @property
    def name(self) -> str:
        """What to call the database in messages; without a password."""
        return str(self.url.database) if self.is_sqlite else self.url.render_as_string(hide_password=True)

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection for reading; on SQLite it waits for no writer."""
        with self._reader.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """A connection whose queries all see the same moment."""
        options = {"reading": True} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"}
        with self.engine.connect().execution_options(**options) as connection, connection.begin():
            yield connection

    def write(self, connection: Connection, *changes: tuple[Any, Sequence[dict[str, Any]]]) -> None:
        """Run statements that return nothing, each with its sets of parameters.

        An insert takes columns by their names; an update is by `id`, bound to `key`, and sets columns from
        parameters of their names or `b_` and their names. On PostgreSQL all sets of a statement go as arrays,
        all statements go out together and their results are waited for once: row by row, most of a short
        transaction is waiting and parsing.
        """
        changes = tuple((statement, rows) for statement, rows in changes if rows)
        if not changes:
            return
        if self.is_sqlite:
            for statement, rows in changes:
                connection.execute(statement, rows)
            return
        driver: Any = connection.connection.driver_connection
        with driver.pipeline():
            for statement, rows in changes:
                text = self._compiled.get(statement)
                if text is None:
                    text = self._compiled[statement] = _as_arrays(statement, list(rows[0]))
                driver.execute(text, {name: [row[name] for row in rows] for name in rows[0]})

    def transact(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction that is durable when this returns.

        `work` may run more than once, where a deadlock or another process is in the way.
        """
        if self._together is not None:
            return self._together.run(work)
        for attempt in range(_RETRIES):
            try:
                with self.engine.begin() as connection:
                    return work(connection)
            except self.errors as error:
                if attempt == _RETRIES - 1 or not _passes(error):
                    raise
                time.sleep(0.01 * 2**attempt)
        raise AssertionError("unreachable")

    def locked(self, statement: sa.Select[Any], *, skip: bool = False, of: Any = None) -> sa.Select[Any]:
        """The statement with row locks, where the database has them."""
        return statement if self.is_sqlite else statement.with_for_update(skip_locked=skip, of=of)

    def among(self, column: Any, name: str) -> Any:
        """The condition that a column is one of the values of a parameter, which is a list.

        On PostgreSQL the list goes as an array, so that there is one statement whatever its length.
        """
        if self.is_sqlite:
            return column.in_(sa.bindparam(name, expanding=True))
        return column == sa.any_(sa.bindparam(name, type_=postgresql.ARRAY(column.type)))

    def among_pairs(self, statement: sa.Select[Any], one: Any, other: Any) -> sa.Select[Any]:
        """The statement for rows where two columns are a pair of those that `pairs` names.

        On SQLite, which finds no pairs by an index, also rows that match one pair in one column and another
        in the other.
        """
        if self.is_sqlite:
            return statement.where(self.among(one, "pair_0"), self.among(other, "pair_1"))
        arrays = (
            sa.bindparam(f"pair_{i}", type_=postgresql.ARRAY(c.type)) for i, c in enumerate((one, other))
        )
        wanted = sa.func.unnest(*arrays).table_valued("one", "other", name="wanted").render_derived()
        return statement.join(wanted, sa.and_(wanted.c.one == one, wanted.c.other == other))

    def pairs(self, pairs: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
        """Parameters of `among_pairs`."""
        ones, others = [one for one, _ in pairs], [other for _, other in pairs]
        if self.is_sqlite:
            ones, others = list(dict.fromkeys(ones)), list(dict.fromkeys(others))
        return {"pair_0": ones, "pair_1": others}

    def once(self, make: Callable[[Database], T]) -> T:
        """What a function makes of this database, made once: statements that depend on its kind."""
        if make not in self._made:
            self._made[make] = make(self)
        made: T = self._made[make]
        return made

    def warm_up(self) -> None:
        """Open the connections that answering many at once takes, and let PostgreSQL look at its tables.

        A new database has no statistics until autovacuum comes by, and plans as if its tables were empty.
        """
        if not self.is_sqlite:
            with self.read() as connection:
                connection.exec_driver_sql("ANALYZE")
        with contextlib.ExitStack() as stack:
            for _ in range(_CONNECTIONS):
                stack.enter_context(self.engine.connect())

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    # Schema ------------------------------------------------------------------------------------------------

    def revision(self) -> str | None:
        """The revision of the schema that the database has, or None if it has none."""
        with self.read() as connection:
            return alembic.migration.MigrationContext.configure(connection).get_current_revision()

    def migrate(self, target: str = "head") -> None:
        """Bring the schema to a revision, all or nothing.

        Raises:
            BeyondError: The database was made by a newer version of this project.
        """
        config = alembic.config.Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        script = alembic.script.ScriptDirectory.from_config(config)
        current = self.revision()
        if current == script.get_current_head() and target == "head":
            return
        if current is not None and current not in {r.revision for r in script.walk_revisions()}:
            raise BeyondError(
                f"{self.name} was made by a newer version of beyond-accuracy (schema {current}); update it"
            )

        def upgrade(connection: Connection) -> None:
            config.attributes["connection"] = connection
            alembic.command.upgrade(config, target)

        self.transact(upgrade)

    # Backup ------------------------------------------------------------------------------------------------

    def backup(self, target: Path, *, progress: Callable[[int, int], None] | None = None) -> None:
        """Copy a SQLite database while it is in use, check the copy, and put it at `target` whole.

        Args:
            target: A new file.
            progress: Called with pages done and pages in all.

        Raises:
            BeyondError: The target exists, the copy is damaged, or the database is PostgreSQL.
        """
        if not self.is_sqlite:
            raise BeyondError(
                "a PostgreSQL database is backed up, also while serving, with: "
                "pg_dump --format=custom --file=campaign.dump DATABASE, and restored with pg_restore"
            )
        if target.exists():
            raise BeyondError(f"{target} exists; name a new file for the backup")
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        report = progress or (lambda _done, _total: None)
        try:
            with (
                contextlib.closing(sqlite3.connect(str(self.url.database), timeout=30)) as source,
                contextlib.closing(sqlite3.connect(temporary)) as copy,
            ):
                # In one step: one snapshot; writers go on meanwhile, since the log is a WAL.
                source.backup(copy, pages=-1, progress=lambda _s, left, total: report(total - left, total))
                copy.execute("PRAGMA journal_mode=DELETE")
                verdict = copy.execute("PRAGMA integrity_check").fetchone()[0]
                if verdict != "ok":
                    raise BeyondError(f"the copy of {self.name} is damaged ({verdict}); is the disk sound?")
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


class _Together:
    """Writers of this process, one at a time, whose transactions become durable together.

    SQLite has one writer, and a durable commit waits for the disk. Who finds the writer busy leaves its work
    in a queue; whoever writes next does all that is queued, each in a savepoint, and commits once. Nobody is
    told that it is done before that commit. Waiting here is fair; SQLite's own busy handler sleeps.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._writing = threading.Lock()
        self._queue: deque[_Job] = deque()

    def run(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction, alone or with others'; returns what it returns, once durable."""
        job = _Job(work)
        self._queue.append(job)
        with self._writing:
            while not job.done:
                self._write()
        if job.error is not None:
            raise job.error
        result: T = job.result
        return result

    def _write(self) -> None:
        jobs = [self._queue.popleft() for _ in range(min(len(self._queue), _AT_ONCE))]
        for attempt in range(_RETRIES):
            try:
                with self._engine.begin() as connection:
                    for job in jobs:
                        job.run(connection, alone=len(jobs) == 1)
                break
            except BaseException as error:  # noqa: BLE001 - it is raised where the work came from
                if attempt < _RETRIES - 1 and isinstance(error, DBAPIError) and _passes(error):
                    time.sleep(0.01 * 2**attempt)
                    continue
                # Nothing of this became durable, so nobody may be told that it did.
                for job in jobs:
                    job.error = error
                break
        for job in jobs:
            job.done = True


class _Job:
    """Work that waits for the writer."""

    def __init__(self, work: Callable[[Connection], Any]) -> None:
        self.work = work
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = False

    def run(self, connection: Connection, *, alone: bool) -> None:
        """Do it, and undo it alone if it fails; without a savepoint where it is alone in any case."""
        self.error = None
        if alone:
            self.result = self.work(connection)
            return
        connection.exec_driver_sql("SAVEPOINT job")
        try:
            self.result = self.work(connection)
        except Exception as error:  # noqa: BLE001 - it is raised where the work came from
            connection.exec_driver_sql("ROLLBACK TO job")
            self.error = error
        connection.exec_driver_sql("RELEASE job")


def _sqlite_engine(url: URL) -> Engine:
    options = {"timeout": 30, "check_same_thread": False}
    engine = sa.create_engine(url, connect_args=options, pool_size=16, max_overflow=48)

    @sa.event.listens_for(engine, "connect")
    def connect(connection: sqlite3.Connection, _record: Any) -> None:
        connection.isolation_level = None  # transactions begin where we say, below
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000"):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        reading = connection.get_execution_options().get("reading", False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine


def _postgresql_engine(url: URL) -> Engine:
    try:
        # Few, and all opened by `warm_up`: each costs the server a process, and one Python uses them. The one
        # that was used last comes first, since it has plans of what is asked again and again.
        options = {"prepare_threshold": 1}
        return sa.create_engine(
            url, connect_args=options, pool_size=_CONNECTIONS, max_overflow=0, pool_use_lifo=True
        )
    except ImportError as error:
        raise BeyondError(
            f"PostgreSQL needs the package {error.name}; pip install 'beyond-accuracy[campaign]'"
        ) from error


_POSTGRESQL_TYPES: dict[type, str] = {bool: "bool", int: "int4", float: "float8", str: "text"}


def _as_arrays(statement: Any, names: Sequence[str]) -> str:
    """An insert or update of many rows, see `Database.write`, as one statement with an array a column."""
    table = statement.table
    columns = ["id" if name == "key" else name.removeprefix("b_") for name in names]
    types = [_POSTGRESQL_TYPES[table.c[column].type.python_type] for column in columns]
    arrays = ", ".join(f"%({name})s::{kind}[]" for name, kind in zip(names, types))
    listed = ", ".join(columns)
    if statement.is_insert:
        return f"INSERT INTO {table.name} ({listed}) SELECT * FROM unnest({arrays})"
    values = ", ".join(f"{column} = v.{column}" for column in columns if column != "id")
    return (
        f"UPDATE {table.name} SET {values} FROM unnest({arrays}) AS v ({listed}) WHERE {table.name}.id = v.id"
    )


def _passes(error: Exception) -> bool:
    """Whether a failure is of the kind that passes: trying again may help."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, sqlite3.OperationalError):
        return "locked" in str(cause) or "busy" in str(cause)
    lost = isinstance(error, OperationalError) and error.connection_invalidated
    return lost or getattr(cause, "sqlstate", None) in _RETRY_STATES
