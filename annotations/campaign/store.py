"""`Store`: everything that is done with a campaign; the only door to its database.

Making and opening: `create`, `open`, `close`, `config`, `backup`, `freeze`, `check`.
People: `invite`, `invitation_role`, `accept`, `person`, `end_session`, `consent`, `read_instructions`,
`withdraw`, `pause`, `reinstate`, `resume`.
Work: `questions`, `submit`, `progress`, `stop`, `has_stopped`, `picture`.
Managing: `status`, `flagged`, `adjudicate`, `question_picture`, `votes`, `paths`, `asked`, `given`,
`import_votes`, `audit`, `audit_log`.

Every method is one short transaction (pausing is another; turns that come at once share one), durable when it
returns, and may be called from any thread. On PostgreSQL locks are taken in one order, raters by number, then
questions by number, then assignments, so that nobody waits in a circle.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

# First, since it says what to install where SQLAlchemy is not here.
from annotations.campaign.database import Database, parse_url  # isort: skip

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from annotations.campaign import assignment, status
from annotations.campaign.config import CampaignConfig
from annotations.campaign.giving import Giver
from annotations.campaign.models import (
    Audit,
    Campaign,
    Image,
    InvitationRow,
    SessionRow,
    table,
)
from annotations.campaign.plan import plan
from annotations.campaign.rows import (
    CHUNK,
    A,
    E,
    Q,
    R,
    is_frozen,
    lock_questions,
    lock_rater,
    read_rater,
    save_questions,
)
from annotations.campaign.rules import ASKING, Rules
from annotations.campaign.turns import Turn, Turns
from annotations.campaign.types import (
    Asked,
    Batch,
    FlaggedPair,
    Given,
    ImportedVote,
    Invitation,
    Item,
    NewGold,
    NewImage,
    NewPair,
    NewSession,
    Outcome,
    Person,
    Picture,
    Progress,
    Prolific,
    Role,
    Stage,
    Status,
    VerdictName,
    Votes,
)
from annotations.errors import BeyondError

SESSION_SECONDS = 14 * 86_400
_IMPORTED_TOGETHER = 500
_STOPPED = "stopped by themselves"

_SESSIONS = table(SessionRow)
_PERSON = (
    sa.select(R.c.id, R.c.pseudonym, R.c.role, R.c.stage, R.c.arm, _SESSIONS.c.id.label("session_id"))
    .join(_SESSIONS, _SESSIONS.c.rater_ref == R.c.id)
    .where(
        _SESSIONS.c.token_hash == sa.bindparam("hash"),
        _SESSIONS.c.expires_at > sa.bindparam("now"),
        _SESSIONS.c.revoked_at.is_(None),
    )
)
_PICTURE = (
    sa.select(Image.image_id, Image.path, Q.c.beside)
    .join(Q, Q.c.image_ref == Image.id)
    .join(A, A.c.question_ref == Q.c.id)
    .where(A.c.token == sa.bindparam("token"), A.c.rater_ref == sa.bindparam("rater"))
)


def token_hash(token: str) -> str:
    """What is stored of a secret token of 128 bits or more: its SHA-256."""
    return hashlib.sha256(token.encode()).hexdigest()


class _TakenBackError(Exception):
    """Ends a transaction that is not meant to stay."""


class Store:
    """A campaign in its database. Make one with `create` or `open`."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self.database = database
        self.clock = clock
        with database.read() as connection:
            row = connection.execute(sa.select(table(Campaign))).first()
        if row is None:
            raise BeyondError(f"{database.name} holds no campaign; make one with: beyond campaign create")
        self.config = CampaignConfig.model_validate_json(row.config)
        self.created_at: float = row.created_at
        self.images_spec: str = row.images
        self._key: bytes = row.key
        self._salt: bytes = row.salt
        self._reaped_at = -math.inf
        self.rules = Rules(self.config, *self._pool_sizes())
        self.giver = Giver(database, self.rules, self._key)
        self.turns = Turns(database, self.rules, self.giver, clock)

    # Making and opening ------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        url: str,
        config: CampaignConfig,
        *,
        images: Sequence[NewImage],
        pairs: Iterable[NewPair],
        gold: Iterable[NewGold] = (),
        images_spec: str = "",
        clock: Callable[[], float] = time.time,
        advance: Callable[[int], None] | None = None,
    ) -> Store:
        """Make a campaign in a new or empty database.

        A pair that is also gold is asked as gold alone.

        Args:
            url: As `--db`: a path or a SQLAlchemy URL.
            config: Its settings.
            images: Its images; those that no question is about are left out.
            pairs: What is to be judged.
            gold: Questions with known answers, for practice, qualification and the work.
            images_spec: Where the images are on this machine, for whoever serves the campaign.
            clock: Seconds since 1970.
            advance: Told how many more rows are written.

        Raises:
            BeyondError: The database holds a campaign already, or the pairs do not fit the images.
        """
        database = Database(parse_url(url))
        if database.is_sqlite:
            _prepare_file(Path(str(database.url.database)))
        try:
            database.migrate()
            key, salt = secrets.token_bytes(32), secrets.token_bytes(32)
            image_rows, question_rows = plan(config, images, pairs, gold, key)

            def fill(connection: Connection) -> None:
                if connection.execute(sa.select(Campaign.id)).first() is not None:
                    raise BeyondError(f"{database.name} holds a campaign already; name another database")
                connection.execute(
                    sa.insert(table(Campaign)).values(
                        id=1,
                        name=config.name,
                        created_at=clock(),
                        config=config.model_dump_json(),
                        salt=salt,
                        key=key,
                        images=images_spec,
                    )
                )
                for target, rows in ((table(Image), image_rows), (Q, question_rows)):
                    for start in range(0, len(rows), CHUNK):
                        connection.execute(sa.insert(target), rows[start : start + CHUNK])
                        if advance is not None:
                            advance(len(rows[start : start + CHUNK]))
                if not database.is_sqlite:  # ids were given, so the sequences must catch up
                    for name in ("images", "questions"):
                        connection.exec_driver_sql(
                            f"SELECT setval(pg_get_serial_sequence('{name}', 'id'), max(id)) FROM {name}"
                        )

            database.transact(fill)
            return cls(database, clock=clock)
        except BaseException:
            database.close()
            raise

    @classmethod
    def open(cls, url: str, *, clock: Callable[[], float] = time.time) -> Store:
        """Open a campaign; a schema of an older version is brought forward first.

        Raises:
            BeyondError: There is no such database, or it holds no campaign.
        """
        database = Database(parse_url(url))
        if database.is_sqlite and not Path(str(database.url.database)).is_file():
            raise BeyondError(f"no campaign at {database.name}; make one with: beyond campaign create")
        try:
            if database.revision() is None:
                raise BeyondError(f"{database.name} holds no campaign; make one with: beyond campaign create")
            database.migrate()
            return cls(database, clock=clock)
        except BaseException:
            database.close()
            raise

    def close(self) -> None:
        """Close all connections."""
        self.database.close()

    def backup(self, target: Path, *, progress: Callable[[int, int], None] | None = None) -> None:
        """Copy the database while it is in use (see `Database.backup`)."""
        self.database.backup(target, progress=progress)

    def freeze(self) -> None:
        """End the campaign for publication: no answer, undo or withdrawal comes after this."""
        statement = sa.update(table(Campaign)).where(Campaign.frozen_at.is_(None))
        self.database.transact(
            lambda connection: connection.execute(statement.values(frozen_at=self.clock()))
        )
        self.audit("manager", "freeze")

    def is_frozen(self) -> bool:
        """Whether the campaign is frozen."""
        with self.database.read() as connection:
            return is_frozen(connection)

    def check(self) -> list[str]:
        """What is wrong between the events and what is derived from them: empty if all is right."""
        with self.database.snapshot() as connection:
            return status.inconsistencies(connection, self.config)

    # People ------------------------------------------------------------------------------------------------

    def invite(
        self,
        role: Role = "rater",
        *,
        count: int = 1,
        uses: int = 1,
        label: str = "",
        days: float = 30,
        rater_id: int | None = None,
    ) -> list[Invitation]:
        """Make invitations; their tokens exist in what this returns and nowhere else.

        Args:
            role: What whoever comes with it is.
            count: How many.
            uses: How many people may come with each; more than one for a link that is posted, as on Prolific.
            label: A note for managers, such as a name; never published.
            days: How long they can be used.
            rater_id: To come back as this rater, from another browser.
        """
        now = self.clock()
        made = [
            Invitation(secrets.token_urlsafe(16), role, now + days * 86_400, uses, label)
            for _ in range(count)
        ]
        rows = [
            {
                "token_hash": token_hash(one.token),
                "role": role,
                "label": label[:200],
                "rater_ref": rater_id,
                "uses_left": uses,
                "created_at": now,
                "expires_at": one.expires_at,
            }
            for one in made
        ]
        self.database.transact(lambda connection: connection.execute(sa.insert(table(InvitationRow)), rows))
        return made

    def invitation_role(self, token: str) -> Role | None:
        """The role an invitation gives, or None if it cannot be used (any more)."""
        invitations = table(InvitationRow)
        with self.database.read() as connection:
            row = connection.execute(_usable(token, self.clock(), invitations.c.role)).first()
        return row.role if row else None

    def accept(self, token: str, *, prolific: Prolific | None = None) -> NewSession | None:
        """Use an invitation up and open a session.

        Returns:
            The session, or None if the invitation cannot be used, or the Prolific participant came before.
        """
        invitations, now, secret = table(InvitationRow), self.clock(), secrets.token_urlsafe(32)
        expires_at = now + SESSION_SECONDS

        def work(connection: Connection) -> NewSession | None:
            statement = _usable(
                token, now, invitations.c.id, invitations.c.role, invitations.c.label, invitations.c.rater_ref
            )
            row = connection.execute(self.database.locked(statement)).first()
            if row is None:
                return None
            if prolific is not None:
                came = connection.execute(sa.select(R.c.id).where(R.c.prolific_pid == prolific.pid)).first()
                if came is not None:
                    return None
            connection.execute(
                sa.update(invitations)
                .where(invitations.c.id == row.id)
                .values(uses_left=invitations.c.uses_left - 1)
            )
            rater_id = row.rater_ref or self._new_rater(connection, row.role, row.label, prolific, now)
            connection.execute(
                sa.insert(table(SessionRow)).values(
                    token_hash=token_hash(secret), rater_ref=rater_id, created_at=now, expires_at=expires_at
                )
            )
            return NewSession(secret, rater_id, row.role, expires_at)

        try:
            return self.database.transact(work)
        except sa.exc.IntegrityError:
            return None  # the same participant in two windows at the same moment

    def _new_rater(
        self,
        connection: Connection,
        role: Role,
        label: str,
        prolific: Prolific | None,
        now: float,
        *,
        arm: str | None = None,
    ) -> int:
        values: dict[str, Any] = {"role": role, "label": label, "created_at": now, "quota": self.config.quota}
        values |= {"stage": "consent" if role == "rater" else "done"}
        if prolific is not None:
            values |= {
                "prolific_pid": prolific.pid,
                "prolific_study": prolific.study_id,
                "prolific_session": prolific.session_id,
            }
        if role == "rater" and self.config.arms and arm is None:
            before = connection.execute(sa.select(sa.func.count()).where(R.c.role == "rater")).scalar_one()
            arm = assignment.arm(self._key, before, self.config.arms)
        key = connection.execute(sa.insert(R).values(values)).inserted_primary_key
        assert key is not None
        rater_id = int(key[0])
        connection.execute(
            sa.update(R)
            .where(R.c.id == rater_id)
            .values(pseudonym=assignment.pseudonym(self._salt, rater_id), arm=arm or "")
        )
        return rater_id

    def person(self, session_token: str) -> Person | None:
        """Who a session belongs to, or None if it is unknown, over or ended."""
        values = {"hash": token_hash(session_token), "now": self.clock()}
        with self.database.read() as connection:
            row = connection.execute(_PERSON, values).first()
        return Person(row.id, row.pseudonym, row.role, row.stage, row.arm, row.session_id) if row else None

    def end_session(self, session_token: str) -> None:
        """End a session."""
        sessions = table(SessionRow)
        statement = sa.update(sessions).where(sessions.c.token_hash == token_hash(session_token))
        self.database.transact(
            lambda connection: connection.execute(statement.values(revoked_at=self.clock()))
        )

    def consent(self, rater_id: int, version: str) -> Stage:
        """Note that a rater agreed to the consent text of this version.

        Raises:
            BeyondError: The text has another version by now.
        """
        if version != self.config.consent_version:
            raise BeyondError("the consent text has changed; read it again")
        values = {"consent_version": version, "consented_at": self.clock(), "stage": "instructions"}
        return self._move(rater_id, "consent", values)

    def read_instructions(self, rater_id: int) -> Stage:
        """Note that a rater has read the instructions and goes on to practice, or what comes first."""
        return self._move(rater_id, "instructions", {"stage": self.rules.stage_after("instructions")})

    def _move(self, rater_id: int, stage: Stage, values: dict[str, Any]) -> Stage:
        def work(connection: Connection) -> Stage:
            statement = sa.update(R).where(R.c.id == rater_id, R.c.stage == stage).values(values)
            if connection.execute(statement).rowcount:
                self._log(connection, values["stage"], rater_id, detail=values.get("consent_version", ""))
            reached: Stage = connection.execute(sa.select(R.c.stage).where(R.c.id == rater_id)).scalar_one()
            return reached

        return self.database.transact(work)

    def withdraw(self, rater_id: int) -> None:
        """Take back all that a rater answered: nothing of it counts or is exported any more.

        Raises:
            BeyondError: The campaign is frozen.
        """
        if self.is_frozen():
            raise BeyondError("the campaign is frozen for publication; answers can no longer be withdrawn")
        forget = {"label": "", "prolific_pid": None, "prolific_study": None, "prolific_session": None}
        self._set_aside(rater_id, "withdrawn", "withdrawn", reason="", actor=None, also=forget)

    def pause(self, rater_id: int, reason: str, *, actor: int | None = None) -> None:
        """Stop a rater; their answers are kept, flagged, and replaced by other raters' answers."""
        self._set_aside(rater_id, "paused", "paused", reason=reason, actor=actor)

    def _set_aside(
        self,
        rater_id: int,
        stage: Stage,
        flag: str,
        *,
        reason: str,
        actor: int | None,
        also: Mapping[str, Any] | None = None,
    ) -> None:
        def work(connection: Connection) -> None:
            rater = lock_rater(self.database, connection, rater_id)
            if rater.stage in (stage, "withdrawn"):
                return
            values = {"stage": stage, "pause_reason": reason, **(also or {})}
            connection.execute(sa.update(R).where(R.c.id == rater_id).values(values))
            mine = [A.c.rater_ref == rater_id, sa.or_(A.c.counted, A.c.state == "leased")]
            found = connection.execute(sa.select(A.c.question_ref).where(*mine)).scalars().all()
            counts = lock_questions(self.database, connection, found)
            rows = connection.execute(
                sa.select(A.c.id, A.c.question_ref, A.c.state, A.c.answer).where(*mine)
            ).all()
            for row in rows:
                question = counts[row.question_ref]
                if row.state == "leased":
                    question.hold(-1)
                else:
                    question.add(row.answer, -1)
            save_questions(connection, self.config, counts.values())
            connection.execute(
                sa.update(A).where(A.c.rater_ref == rater_id, A.c.state == "leased").values(state="expired")
            )
            connection.execute(
                sa.update(A)
                .where(A.c.rater_ref == rater_id, A.c.state == "answered")
                .values(counted=False, flag=flag)
            )
            self._log(connection, flag, rater_id, actor=actor, detail=reason)

        self.database.transact(work)

    def reinstate(self, rater_id: int, *, actor: int | None = None) -> None:
        """Let a paused or failed rater work on; their answers count again unless others replaced them."""

        def work(connection: Connection) -> None:
            rater = lock_rater(self.database, connection, rater_id)
            if rater.stage not in ("paused", "failed"):
                raise BeyondError(
                    f"this rater is not paused (but at: {rater.stage}), so there is nothing to undo"
                )
            values = {"stage": "work", "pause_reason": ""}
            values |= {"forgiven_seen": rater.gold_seen, "forgiven_right": rater.gold_right}
            connection.execute(sa.update(R).where(R.c.id == rater_id).values(values))
            mine = [A.c.rater_ref == rater_id, A.c.state == "answered", A.c.flag == "paused"]
            rows = connection.execute(sa.select(A.c.id, A.c.question_ref, A.c.answer).where(*mine)).all()
            counts = lock_questions(self.database, connection, [row.question_ref for row in rows])
            changes = []
            for row in rows:
                fits = counts[row.question_ref].has_room
                if fits:
                    counts[row.question_ref].add(row.answer, 1)
                changes.append({"key": row.id, "counted": fits, "flag": "" if fits else "late"})
            if changes:
                connection.execute(
                    sa.update(A)
                    .where(A.c.id == sa.bindparam("key"))
                    .values(counted=sa.bindparam("counted"), flag=sa.bindparam("flag")),
                    changes,
                )
            save_questions(connection, self.config, counts.values())
            self._log(connection, "reinstated", rater_id, actor=actor)

        self.database.transact(work)

    # Work: giving questions --------------------------------------------------------------------------------

    def questions(self, rater_id: int, want: int) -> Batch:
        """The questions a rater holds, in order, filled up to `want` (at most `prefetch`) with new ones.

        Asking again gives the same questions until they are answered, and holds them longer.
        """
        want = min(want, self.config.prefetch)
        now = self.clock()
        with self.database.read() as connection:
            rater = read_rater(connection, rater_id)
            held = self.giver.held(connection, [rater_id], now)
            enough = len(held) >= want and self.giver.is_fresh(held, now)
            if want <= 0 or rater.stage not in ASKING or enough:
                return self.turns.batch(connection, rater, held)
        return self.turn(rater_id, (), want)[1]

    def submit(self, rater_id: int, items: Sequence[Item]) -> list[Outcome]:
        """Record outbox entries in order. What has an outcome is durable, or refused for good.

        An entry that was recorded before (same key) is a duplicate and changes nothing. An answer that comes
        after its lease counts if the question still has room, and is kept and flagged if not.
        """
        return self.turn(rater_id, items, 0)[0] if items else []

    def turn(self, rater_id: int, items: Sequence[Item], want: int) -> tuple[list[Outcome], Batch]:
        """Both in one transaction, which other raters' turns may share: `submit`, and then `questions`.

        With a `want` of 0 no questions are given, nor are those named that the rater holds.
        """
        want = min(want, self.config.prefetch)
        now = self.clock()
        if want and now - self._reaped_at >= min(1.0, self.config.lease_seconds / 4):
            self._reaped_at = now
            self.giver.reap(now)

        turn = Turn(rater_id, items, want)
        self.turns.take(turn)
        if turn.must_pause:
            self.pause(rater_id, "quality on gold below the floor")
            return turn.outcomes, Batch((), self.progress(rater_id))
        assert turn.batch is not None
        return turn.outcomes, turn.batch

    def stop(self, rater_id: int) -> Stage:
        """Note that a rater wants to stop, for now or, in a study, for good; what they answered stays.

        Returns:
            The stage they are in then: done, unless they were past asking already.
        """

        def work(connection: Connection) -> Stage:
            rater = lock_rater(self.database, connection, rater_id)
            stage: Stage = rater.stage
            if stage not in ASKING:
                return stage
            held = [A.c.rater_ref == rater_id, A.c.state == "leased"]
            counts = lock_questions(
                self.database,
                connection,
                connection.execute(sa.select(A.c.question_ref).where(*held)).scalars().all(),
            )
            for question in connection.execute(sa.select(A.c.question_ref).where(*held)).scalars():
                counts[question].hold(-1)
            save_questions(connection, self.config, counts.values())
            connection.execute(sa.update(A).where(*held).values(state="expired"))
            values = {"stage": "done", "pause_reason": _STOPPED}
            connection.execute(sa.update(R).where(R.c.id == rater_id).values(values))
            self._log(connection, "stopped", rater_id)
            return "done"

        return self.database.transact(work)

    def has_stopped(self, rater_id: int) -> bool:
        """Whether a rater is done because they stopped, and not because they answered all."""
        with self.database.read() as connection:
            rater = read_rater(connection, rater_id)
        return bool(rater.stage == "done" and rater.pause_reason == _STOPPED)

    def resume(self, rater_id: int) -> Stage:
        """Let a rater who was done go on, where there is something to judge again; returns the stage."""

        def work(connection: Connection) -> Stage:
            rater = lock_rater(self.database, connection, rater_id)
            # Whoever is done with a study was told what it is about, and cannot answer as before.
            may_go_on = rater.role == "rater" and rater.stage == "done" and self.config.study is None
            if may_go_on and self.giver.may_come(connection, rater):
                values = {"stage": "work", "pause_reason": ""}
                connection.execute(sa.update(R).where(R.c.id == rater_id).values(values))
                return "work"
            stage: Stage = rater.stage
            return stage

        return self.database.transact(work)

    def progress(self, rater_id: int) -> Progress:
        """Where a rater is."""
        with self.database.read() as connection:
            rater = read_rater(connection, rater_id)
            return self.turns.progress(connection, rater)

    def picture(self, rater_id: int, token: str) -> Picture | None:
        """The pictures that a token stands for, if it was made for this rater."""
        with self.database.read() as connection:
            row = connection.execute(_PICTURE, {"token": token, "rater": rater_id}).first()
        return Picture(row.image_id, row.path, row.beside) if row else None

    def label_of(self, rater_id: int, token: str) -> int | None:
        """The class that a token's question is about, if the token was made for this rater."""
        statement = sa.select(Q.c.class_index).join(A, A.c.question_ref == Q.c.id)
        with self.database.read() as connection:
            found = connection.execute(statement.where(A.c.token == token, A.c.rater_ref == rater_id))
            return found.scalar_one_or_none()

    def warm_up(self) -> None:
        """Do, and take back, what every rater does, so that the first ones need not wait for it."""

        def turns(connection: Connection) -> None:
            now = self.clock()
            rater_id = self._new_rater(connection, "rater", "", None, now)
            connection.execute(sa.update(R).where(R.c.id == rater_id).values(stage="work"))
            asked = Turn(rater_id, (), 2)
            self.turns.run(connection, [asked])
            for held in asked.batch.questions[:1] if asked.batch else ():
                items = [
                    Item("warm-up-1", "answer", held.token, "no", 1),
                    Item("warm-up-2", "undo", held.token),
                ]
                self.turns.run(connection, [Turn(rater_id, items, 4)])
            raise _TakenBackError

        def work(connection: Connection) -> None:
            for _ in range(self.database.until_planned):
                # In a savepoint, since psycopg forgets prepared statements when a transaction is rolled back.
                with contextlib.suppress(_TakenBackError), connection.begin_nested():
                    turns(connection)

        self.database.warm_up()
        self.database.transact(work)
        for _ in range(self.database.until_planned):
            self.person("")
            self.picture(0, "")

    # Managing ----------------------------------------------------------------------------------------------

    def status(self) -> Status:
        """Everything that `beyond campaign status` and the dashboard show."""
        with self.database.snapshot() as connection:
            return status.status(connection, self.config, self.clock())

    def flagged(self, offset: int = 0, limit: int = 50) -> tuple[int, list[FlaggedPair]]:
        """Complete pairs without a verdict by k of n, most important first, and how many there are."""
        with self.database.snapshot() as connection:
            return status.flagged(connection, self.config, offset, limit)

    def adjudicate(
        self, question_id: int, verdict: VerdictName | None, *, note: str = "", actor: int | None = None
    ) -> None:
        """Decide a pair, whatever the votes say; None takes the decision back.

        Raises:
            BeyondError: There is no such pair.
        """

        def work(connection: Connection) -> None:
            counts = lock_questions(self.database, connection, [question_id])
            question = counts.get(question_id)
            if question is None or question.role != "work":
                raise BeyondError(f"there is no pair {question_id} to judge in this campaign")
            question.verdict = verdict
            connection.execute(sa.update(Q).where(Q.c.id == question_id).values(verdict=verdict))
            save_questions(connection, self.config, [question])
            connection.execute(
                sa.insert(E).values(
                    at=self.clock(),
                    kind="adjudicated",
                    question_ref=question_id,
                    answer=verdict,
                    actor=actor,
                    detail=note,
                )
            )

        self.database.transact(work)

    def question_picture(self, question_id: int) -> Picture | None:
        """The image of a question, for managers."""
        statement = sa.select(Image.image_id, Image.path).join(Q, Q.c.image_ref == Image.id)
        with self.database.read() as connection:
            row = connection.execute(statement.where(Q.c.id == question_id)).first()
        return Picture(row.image_id, row.path) if row else None

    def votes(self) -> Votes:
        """All votes as arrays, for aggregation and export."""
        with self.database.snapshot() as connection:
            return status.votes(connection, self.config)

    def paths(self) -> dict[str, str]:
        """The file of each image, relative to the folder of images."""
        with self.database.read() as connection:
            rows = connection.execute(sa.select(Image.image_id, Image.path))
            return {row[0]: row[1] for row in rows}

    def asked(self) -> list[Asked]:
        """All questions as they were put in, of all arms, gold and practice too."""
        columns = (Image.image_id, Image.path, Q.c.class_index, Q.c.arm, Q.c.beside, Q.c.reason)
        statement = sa.select(*columns).join(Image, Image.id == Q.c.image_ref).order_by(Q.c.id)
        with self.database.read() as connection:
            return [Asked(*row) for row in connection.execute(statement)]

    def given(self) -> list[Given]:
        """All answers that stand, practice and gold too, by rater and place."""
        statement = (
            sa.select(R.c.pseudonym, R.c.arm, Q.c.reason, A.c.answer, A.c.response_ms, A.c.position)
            .join(Q, Q.c.id == A.c.question_ref)
            .join(R, R.c.id == A.c.rater_ref)
            .where(A.c.state == "answered", R.c.stage != "withdrawn")
            .order_by(R.c.pseudonym, A.c.position)
        )
        with self.database.read() as connection:
            return [Given(*row) for row in connection.execute(statement)]

    def import_votes(self, votes: Sequence[ImportedVote], *, origin: str) -> dict[str, int]:
        """Put votes that were given elsewhere into the campaign: each counts where its pair has room.

        The same vote twice is one vote, so that an import can be repeated.

        Args:
            votes: The votes.
            origin: What to call where they come from, in raters' notes and keys.

        Returns:
            How many were `recorded`, `duplicate`, and `refused` (another answer of the rater is there).

        Raises:
            BeyondError: A vote is about no question of the campaign; nothing is imported then.
        """
        with self.database.read() as connection:
            statement = sa.select(Q.c.id, Image.image_id, Q.c.class_index, Q.c.arm).join(
                Image, Image.id == Q.c.image_ref
            )
            asked = connection.execute(statement.where(Q.c.role != "practice")).all()
        numbers = {(row.image_id, row.class_index, row.arm): row.id for row in asked}
        arm_of: dict[int, str] = {row.id: row.arm for row in asked}
        by_rater: dict[str, dict[int, ImportedVote]] = {}
        for vote in votes:
            number = vote.question_id
            if number is None:
                number = numbers.get((str(vote.image_id), vote.class_index, vote.arm))
            if number is None or number not in arm_of:
                what = (
                    f"question {number}" if number else f"image {vote.image_id!r}, class {vote.class_index}"
                )
                raise BeyondError(f"{what} is no question of this campaign; nothing was imported")
            by_rater.setdefault(vote.rater, {})[number] = vote
        arms: dict[str, str | None] = {}
        for name, mine in by_rater.items():
            theirs = {arm_of[number] for number in mine} - {""}
            if len(theirs) > 1:
                raise BeyondError(
                    f"rater {name!r} answered in the arms {', '.join(sorted(theirs))}, and a rater belongs "
                    "to one; nothing was imported"
                )
            arms[name] = theirs.pop() if theirs else None
        totals = Counter({"recorded": 0, "duplicate": 0, "refused": 0})
        for name, mine in by_rater.items():
            rater_id = self.database.transact(partial(self._imported_rater, origin, name, mine, arms[name]))
            items = [
                Item(
                    hashlib.sha256(f"{origin}|{name}|{number}".encode()).hexdigest()[:40],
                    "answer",
                    assignment.token(self._key, rater_id, number),
                    vote.answer,
                    vote.response_ms,
                )
                for number, vote in sorted(mine.items())
            ]
            for start in range(0, len(items), _IMPORTED_TOGETHER):
                outcomes = self.submit(rater_id, items[start : start + _IMPORTED_TOGETHER])
                totals.update(outcome.status for outcome in outcomes)
        return dict(totals)

    def _imported_rater(
        self,
        origin: str,
        name: str,
        questions: Mapping[int, ImportedVote],
        arm: str | None,
        connection: Connection,
    ) -> int:
        """The rater of this name, made if need be, with each question as if a lease had run out."""
        label = f"{origin}: {name}"[:200]
        found = connection.execute(sa.select(R.c.id, R.c.arm).where(R.c.label == label)).first()
        if found is not None and arm not in (None, found.arm):
            raise BeyondError(f"rater {name!r} is in the arm {found.arm!r}, and cannot answer in {arm!r}")
        now = self.clock()
        rater_id = found.id if found else self._new_rater(connection, "rater", label, None, now, arm=arm)
        connection.execute(
            sa.update(R).where(R.c.id == rater_id, R.c.stage == "consent").values(stage="work")
        )
        given = sa.select(A.c.question_ref).where(A.c.rater_ref == rater_id)
        missing = sorted(set(questions) - set(connection.execute(given).scalars()))
        place = connection.execute(sa.select(R.c.position).where(R.c.id == rater_id)).scalar_one()
        rows = [
            {
                "token": assignment.token(self._key, rater_id, number),
                "question_ref": number,
                "rater_ref": rater_id,
                "purpose": "work",
                "position": position,
                "state": "expired",
                "leased_at": now,
                "expires_at": now,
            }
            for position, number in enumerate(missing, start=place + 1)
        ]
        if rows:
            connection.execute(sa.insert(A), rows)
            connection.execute(sa.update(R).where(R.c.id == rater_id).values(position=place + len(rows)))
        return int(rater_id)

    def audit(self, actor: str, action: str, detail: str = "", address: str = "") -> None:
        """Add a line to the audit log."""
        row = {"at": self.clock(), "actor": actor[:40], "action": action[:40]}
        row |= {"detail": detail[:2000], "address": address[:64]}
        self.database.transact(lambda connection: connection.execute(sa.insert(table(Audit)).values(row)))

    def audit_log(self, limit: int = 200) -> list[Audit]:
        """The latest lines of the audit log, latest first."""
        from sqlalchemy.orm import Session

        with self.database.read() as connection, Session(connection, expire_on_commit=False) as session:
            return list(session.scalars(sa.select(Audit).order_by(Audit.id.desc()).limit(limit)))

    # Shared ------------------------------------------------------------------------------------------------

    def _pool_sizes(self) -> tuple[int, int]:
        """Questions for practice, and gold, that a rater has: of all arms and of their own."""
        columns = (Q.c.role, Q.c.arm)
        statement = sa.select(*columns, sa.func.count()).where(Q.c.role != "work").group_by(*columns)
        with self.database.read() as connection:
            sizes = {(row[0], row[1]): int(row[2]) for row in connection.execute(statement)}

        def size(role: str) -> int:
            own = [sizes.get((role, arm), 0) for arm in self.config.arms]
            return sizes.get((role, ""), 0) + min(own, default=0)

        return size("practice"), size("gold")

    def _log(
        self, connection: Connection, kind: str, rater_id: int, *, actor: int | None = None, detail: str = ""
    ) -> None:
        connection.execute(
            sa.insert(E).values(at=self.clock(), kind=kind, rater_ref=rater_id, actor=actor, detail=detail)
        )


def _usable(token: str, now: float, *columns: Any) -> sa.Select[Any]:
    invitations = table(InvitationRow)
    return sa.select(*columns).where(
        invitations.c.token_hash == token_hash(token),
        invitations.c.uses_left > 0,
        invitations.c.expires_at > now,
    )


def _prepare_file(path: Path) -> None:
    """Make a database file that only its owner can read: it holds the campaign's secrets."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
