"""`Store`: everything that is done with a campaign; the only door to its database.

Making and opening: `create`, `open`, `close`, `config`, `backup`, `freeze`, `check`.
People: `invite`, `invitation_role`, `accept`, `person`, `end_session`, `consent`, `read_instructions`,
`withdraw`, `pause`, `reinstate`, `resume`.
Work: `questions`, `submit`, `progress`, `picture`.
Managing: `status`, `flagged`, `adjudicate`, `question_picture`, `votes`, `paths`, `import_votes`, `audit`,
`audit_log`.

Every method is one short transaction (pausing is another), durable when it returns, and may be called from
any thread. On PostgreSQL locks are taken in one order, rater, then questions by number, then assignments, so
that nobody waits in a circle.
"""

from __future__ import annotations

import hashlib
import math
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

# First, since it says what to install where SQLAlchemy is not here.
from annotations.campaign.database import Database, parse_url  # isort: skip

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from annotations.campaign import assignment, status
from annotations.campaign.config import CampaignConfig
from annotations.campaign.models import (
    Assignment,
    Audit,
    Campaign,
    Event,
    Image,
    InvitationRow,
    Question,
    Rater,
    SessionRow,
    table,
)
from annotations.campaign.types import (
    ANSWERS,
    Batch,
    Feedback,
    FlaggedPair,
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
from annotations.campaign.types import Question as HeldQuestion
from annotations.classes import NUM_CLASSES
from annotations.errors import BeyondError

SESSION_SECONDS = 14 * 86_400
ASKING: tuple[Stage, ...] = ("practice", "qualification", "work")
_BLOCK = 64  # raters go through the pairs in blocks of this size by priority, each in an order of their own
_CHUNK = 5_000
_IMPORTED_TOGETHER = 500

_A, _Q, _R, _E = table(Assignment), table(Question), table(Rater), table(Event)
_HELD = (
    _A.c.id,
    _A.c.token,
    _A.c.position,
    _A.c.purpose,
    _A.c.expires_at,
    _Q.c.class_index,
    _Q.c.arm,
    _Q.c.image_ref,
)
_COUNTS = (
    _Q.c.id,
    _Q.c.role,
    _Q.c.expected,
    _Q.c.explanation,
    _Q.c.wanted,
    _Q.c.counted,
    _Q.c.leased,
    _Q.c.yes,
    _Q.c.no,
    _Q.c.maybe,
    _Q.c.verdict,
)


def token_hash(token: str) -> str:
    """What is stored of a secret token of 128 bits or more: its SHA-256."""
    return hashlib.sha256(token.encode()).hexdigest()


class _Counts:
    """A question's counters while a transaction changes them; the question's row is locked."""

    def __init__(self, row: Any) -> None:
        self.id: int = row.id
        self.role: str = row.role
        self.expected: str | None = row.expected
        self.explanation: str = row.explanation
        self.wanted: int = row.wanted
        self.counted: int = row.counted
        self.leased: int = row.leased
        self.answers = {"yes": row.yes, "no": row.no, "maybe": row.maybe}
        self.verdict: str | None = row.verdict

    @property
    def has_room(self) -> bool:
        """Whether one more answer or lease keeps within the redundancy; gold always has room."""
        return self.role != "work" or self.counted + self.leased < self.wanted

    def hold(self, number: int) -> None:
        """Note that so many more raters hold the question; of gold nobody counts them."""
        if self.role == "work":
            self.leased += number

    def add(self, answer: str, number: int) -> None:
        """Count `number` more of an answer."""
        self.counted += number
        self.answers[answer] += number

    def is_open(self, config: CampaignConfig) -> bool:
        """Whether the question may be given to one more rater."""
        if self.role != "work":
            return True
        if not self.has_room or self.verdict is not None:
            return False
        if not config.stop_early:
            return True
        return (
            assignment.certain(
                **self.answers, votes=self.wanted, accept_at=min(config.accept_at, self.wanted)
            )
            is None
        )

    def row(self, config: CampaignConfig) -> dict[str, Any]:
        """Parameters of `_SAVE_COUNTS`."""
        return {
            "key": self.id,
            "counted": self.counted,
            "leased": self.leased,
            **self.answers,
            "is_open": self.is_open(config),
        }


_SAVE_COUNTS = (
    sa.update(_Q)
    .where(_Q.c.id == sa.bindparam("key"))
    .values({name: sa.bindparam(name) for name in ("counted", "leased", "yes", "no", "maybe", "is_open")})
)


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
        self._practice, self._gold = self._pool_sizes()

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
            image_rows, question_rows = _plan(config, images, pairs, gold, key)

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
                for target, rows in ((table(Image), image_rows), (_Q, question_rows)):
                    for start in range(0, len(rows), _CHUNK):
                        connection.execute(sa.insert(target), rows[start : start + _CHUNK])
                        if advance is not None:
                            advance(len(rows[start : start + _CHUNK]))
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
            return _is_frozen(connection)

    def check(self) -> list[str]:
        """What is wrong between the events and what is derived from them: empty if all is right."""
        with self.database.read() as connection:
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
                came = connection.execute(sa.select(_R.c.id).where(_R.c.prolific_pid == prolific.pid)).first()
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

        return self.database.transact(work)

    def _new_rater(
        self, connection: Connection, role: Role, label: str, prolific: Prolific | None, now: float
    ) -> int:
        values: dict[str, Any] = {"role": role, "label": label, "created_at": now, "quota": self.config.quota}
        values |= {"stage": "consent" if role == "rater" else "done"}
        if prolific is not None:
            values |= {
                "prolific_pid": prolific.pid,
                "prolific_study": prolific.study_id,
                "prolific_session": prolific.session_id,
            }
        key = connection.execute(sa.insert(_R).values(values)).inserted_primary_key
        assert key is not None
        rater_id = int(key[0])
        arms = self.config.arms
        arm = arms[int(assignment.uniform(self._key, rater_id, 0) * len(arms))] if arms else ""
        connection.execute(
            sa.update(_R)
            .where(_R.c.id == rater_id)
            .values(pseudonym=assignment.pseudonym(self._salt, rater_id), arm=arm)
        )
        return rater_id

    def person(self, session_token: str) -> Person | None:
        """Who a session belongs to, or None if it is unknown, over or ended."""
        sessions = table(SessionRow)
        statement = (
            sa.select(
                _R.c.id, _R.c.pseudonym, _R.c.role, _R.c.stage, _R.c.arm, sessions.c.id.label("session_id")
            )
            .join(sessions, sessions.c.rater_ref == _R.c.id)
            .where(
                sessions.c.token_hash == token_hash(session_token),
                sessions.c.expires_at > self.clock(),
                sessions.c.revoked_at.is_(None),
            )
        )
        with self.database.read() as connection:
            row = connection.execute(statement).first()
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
        return self._move(rater_id, "instructions", {"stage": self._stage_after("instructions")})

    def _move(self, rater_id: int, stage: Stage, values: dict[str, Any]) -> Stage:
        def work(connection: Connection) -> Stage:
            statement = sa.update(_R).where(_R.c.id == rater_id, _R.c.stage == stage).values(values)
            if connection.execute(statement).rowcount:
                self._log(connection, values["stage"], rater_id, detail=values.get("consent_version", ""))
            reached: Stage = connection.execute(sa.select(_R.c.stage).where(_R.c.id == rater_id)).scalar_one()
            return reached

        return self.database.transact(work)

    def _stage_after(self, stage: str) -> Stage:
        if stage == "instructions" and self._step_of("practice"):
            return "practice"
        if stage in ("instructions", "practice") and self._step_of("qualification"):
            return "qualification"
        return "work"

    def _step_of(self, stage: str) -> int:
        """How many questions a practice or qualification round has; as many as there are, at most."""
        if stage == "practice":
            return min(self.config.practice_questions, self._practice)
        if stage == "qualification":
            return min(self.config.qualification_questions, self._gold)
        return 0

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
            rater = self._lock_rater(connection, rater_id)
            if rater.stage in (stage, "withdrawn"):
                return
            values = {"stage": stage, "pause_reason": reason, **(also or {})}
            connection.execute(sa.update(_R).where(_R.c.id == rater_id).values(values))
            mine = [_A.c.rater_ref == rater_id, sa.or_(_A.c.counted, _A.c.state == "leased")]
            found = connection.execute(sa.select(_A.c.question_ref).where(*mine)).scalars().all()
            counts = self._lock_questions(connection, found)
            rows = connection.execute(
                sa.select(_A.c.id, _A.c.question_ref, _A.c.state, _A.c.answer).where(*mine)
            ).all()
            for row in rows:
                question = counts[row.question_ref]
                if row.state == "leased":
                    question.hold(-1)
                else:
                    question.add(row.answer, -1)
            self._save_questions(connection, counts.values())
            connection.execute(
                sa.update(_A)
                .where(_A.c.rater_ref == rater_id, _A.c.state == "leased")
                .values(state="expired")
            )
            connection.execute(
                sa.update(_A)
                .where(_A.c.rater_ref == rater_id, _A.c.state == "answered")
                .values(counted=False, flag=flag)
            )
            self._log(connection, flag, rater_id, actor=actor, detail=reason)

        self.database.transact(work)

    def reinstate(self, rater_id: int, *, actor: int | None = None) -> None:
        """Let a paused or failed rater work on; their answers count again unless others replaced them."""

        def work(connection: Connection) -> None:
            rater = self._lock_rater(connection, rater_id)
            if rater.stage not in ("paused", "failed"):
                raise BeyondError(
                    f"this rater is not paused (but at: {rater.stage}), so there is nothing to undo"
                )
            values = {"stage": "work", "pause_reason": ""}
            values |= {"forgiven_seen": rater.gold_seen, "forgiven_right": rater.gold_right}
            connection.execute(sa.update(_R).where(_R.c.id == rater_id).values(values))
            mine = [_A.c.rater_ref == rater_id, _A.c.state == "answered", _A.c.flag == "paused"]
            rows = connection.execute(sa.select(_A.c.id, _A.c.question_ref, _A.c.answer).where(*mine)).all()
            counts = self._lock_questions(connection, [row.question_ref for row in rows])
            changes = []
            for row in rows:
                fits = counts[row.question_ref].has_room
                if fits:
                    counts[row.question_ref].add(row.answer, 1)
                changes.append({"key": row.id, "counted": fits, "flag": "" if fits else "late"})
            if changes:
                connection.execute(
                    sa.update(_A)
                    .where(_A.c.id == sa.bindparam("key"))
                    .values(counted=sa.bindparam("counted"), flag=sa.bindparam("flag")),
                    changes,
                )
            self._save_questions(connection, counts.values())
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
            rater = _rater(connection, rater_id)
            held = self._held(connection, rater_id, now)
            fresh = min((row.expires_at for row in held), default=now) - now > self.config.lease_seconds / 2
            if want <= 0 or rater.stage not in ASKING or (len(held) >= want and fresh):
                return self._batch(connection, rater, held)
        if now - self._reaped_at >= min(1.0, self.config.lease_seconds / 4):
            self._reaped_at = now
            self._reap(now)
        if rater.stage == "work" and self._is_below_floor(rater, rater.gold_seen, rater.gold_right):
            self.pause(rater_id, "quality on gold below the floor")
            return self.questions(rater_id, 0)

        def work(connection: Connection) -> Batch:
            rater = self._lock_rater(connection, rater_id)
            if rater.stage not in ASKING or _is_frozen(connection):
                return self._batch(connection, rater, [])
            connection.execute(
                sa.update(_A)
                .where(_A.c.rater_ref == rater_id, _A.c.state == "leased", _A.c.expires_at > now)
                .values(expires_at=now + self.config.lease_seconds)
            )
            held = self._held(connection, rater_id, now)
            need = want - len(held)
            if need > 0:
                need = min(need, self._left(connection, rater) - len(held))
            if need > 0:
                given = self._choose(connection, rater, need, {row.image_ref for row in held})
                if given:
                    self._hold(connection, rater, given, now)
                    held = self._held(connection, rater_id, now)
            if rater.stage == "work" and not held and not self._may_come(connection, rater):
                connection.execute(sa.update(_R).where(_R.c.id == rater_id).values(stage="done"))
                rater = _rater(connection, rater_id)
            return self._batch(connection, rater, held)

        return self.database.transact(work)

    def resume(self, rater_id: int) -> Stage:
        """Let a rater who was done go on, where there is something to judge again; returns the stage."""

        def work(connection: Connection) -> Stage:
            rater = self._lock_rater(connection, rater_id)
            if rater.role == "rater" and rater.stage == "done" and self._may_come(connection, rater):
                connection.execute(sa.update(_R).where(_R.c.id == rater_id).values(stage="work"))
                return "work"
            stage: Stage = rater.stage
            return stage

        return self.database.transact(work)

    def _held(self, connection: Connection, rater_id: int, now: float) -> Sequence[Any]:
        statement = (
            sa.select(*_HELD)
            .join(_Q, _Q.c.id == _A.c.question_ref)
            .where(_A.c.rater_ref == rater_id, _A.c.state == "leased", _A.c.expires_at > now)
            .order_by(_A.c.position)
        )
        return connection.execute(statement).all()

    def _left(self, connection: Connection, rater: Any) -> int:
        """How many answers the rater may still give in this stage."""
        if rater.stage == "work":
            return self.config.prefetch if rater.quota is None else rater.quota - rater.answered
        return self._step_of(rater.stage) - _step_done(connection, rater)

    def _choose(self, connection: Connection, rater: Any, need: int, images: set[int]) -> list[int]:
        """Numbers of new questions for a rater, in order; those of pairs to judge are locked."""
        if rater.stage == "practice":
            mine = self._not_yet(rater.id, _Q.c.role == "practice").order_by(_Q.c.id).limit(need)
            return [row.id for row in connection.execute(mine)]
        arms = _Q.c.arm.in_({"", rater.arm})
        gold = list(connection.execute(self._not_yet(rater.id, _Q.c.role == "gold", arms)))
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
        statement = self._not_yet(rater.id, _Q.c.role == "work", _Q.c.arm == rater.arm, _Q.c.is_open)
        rows = list(connection.execute(statement.order_by(_Q.c.rank).limit(window)))
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
                lock = sa.select(_Q.c.id).where(_Q.c.id.in_(some), _Q.c.is_open).order_by(_Q.c.id)
                got = set(connection.execute(lock.with_for_update(skip_locked=True)).scalars())
                some = [question for question in some if question in got]
            chosen += some
        return chosen

    def _not_yet(self, rater_id: int, *conditions: Any) -> sa.Select[Any]:
        """Questions that a rater was not given, or has held too long without an answer."""
        given = sa.exists().where(
            _A.c.rater_ref == rater_id, _A.c.question_ref == _Q.c.id, _A.c.state != "expired"
        )
        return sa.select(_Q.c.id, _Q.c.image_ref, _Q.c.expected, _Q.c.rank).where(*conditions, ~given)

    def _hold(self, connection: Connection, rater: Any, question_ids: list[int], now: float) -> None:
        """Give questions to a rater, from the rater's next place on."""
        pairs = sa.select(_Q.c.id).where(_Q.c.id.in_(question_ids), _Q.c.role == "work")
        # Pairs alone, which are locked already: waiting for a lock on gold here could become a circle.
        counts = self._lock_questions(connection, connection.execute(pairs).scalars())
        before = {
            row.question_ref: row.id
            for row in connection.execute(
                sa.select(_A.c.id, _A.c.question_ref).where(
                    _A.c.rater_ref == rater.id, _A.c.question_ref.in_(question_ids)
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
            connection.execute(sa.insert(_A), new)
        if again:
            names = [name for name in again[0] if name != "key"]
            connection.execute(
                sa.update(_A)
                .where(_A.c.id == sa.bindparam("key"))
                .values({name: sa.bindparam(f"b_{name}") for name in names}),
                [{"key": row["key"], **{f"b_{name}": row[name] for name in names}} for row in again],
            )
        self._save_questions(connection, counts.values())
        connection.execute(
            sa.update(_R).where(_R.c.id == rater.id).values(position=rater.position + len(question_ids))
        )

    def _reap(self, now: float) -> None:
        """Take back questions that were held too long."""

        def work(connection: Connection) -> None:
            late = [_A.c.state == "leased", _A.c.expires_at <= now]
            found = connection.execute(sa.select(_A.c.question_ref).where(*late).limit(1000)).scalars().all()
            if not found:
                return
            counts = self._lock_questions(connection, found, skip=True)
            ids = sa.select(_A.c.id, _A.c.question_ref).where(*late, _A.c.question_ref.in_(counts))
            rows = connection.execute(self.database.locked(ids)).all()
            if not rows:
                return
            connection.execute(
                sa.update(_A).where(_A.c.id.in_([row.id for row in rows])).values(state="expired")
            )
            for row in rows:
                counts[row.question_ref].hold(-1)
            self._save_questions(connection, [counts[row.question_ref] for row in rows])

        self.database.transact(work)

    # Work: taking answers ----------------------------------------------------------------------------------

    def submit(self, rater_id: int, items: Sequence[Item]) -> list[Outcome]:
        """Record outbox entries in order. What has an outcome is durable, or refused for good.

        An entry that was recorded before (same key) is a duplicate and changes nothing. An answer that comes
        after its lease counts if the question still has room, and is kept and flagged if not.
        """
        if not items:
            return []
        now = self.clock()

        def work(connection: Connection) -> tuple[list[Outcome], bool]:
            outbox = _Outbox(self, connection, rater_id, items, now)
            return outbox.run(), outbox.must_pause

        outcomes, must_pause = self.database.transact(work)
        if must_pause:
            self.pause(rater_id, "quality on gold below the floor")
        return outcomes

    def _is_below_floor(self, rater: Any, gold_seen: int, gold_right: float) -> bool:
        """Whether gold says that a rater is not good enough; what a manager forgave is left out."""
        seen, right = gold_seen - rater.forgiven_seen, gold_right - rater.forgiven_right
        if seen <= 0:
            return False
        below = assignment.probability_below(max(right, 0.0), seen, self.config.quality_floor)
        return below >= self.config.pause_confidence

    def gives_feedback(self, purpose: str) -> bool:
        """Whether a rater learns after an answer whether it was right."""
        return purpose == "practice" or (purpose == "qualification" and self.config.qualification_feedback)

    def progress(self, rater_id: int) -> Progress:
        """Where a rater is."""
        with self.database.read() as connection:
            rater = _rater(connection, rater_id)
            return self._progress(connection, rater, waiting=False)

    def _progress(self, connection: Connection, rater: Any, *, waiting: bool) -> Progress:
        limit, undoable = self.config.undo_limit, ()
        if limit and rater.stage == "work":
            latest = (
                sa.select(_A.c.token)
                .where(_A.c.rater_ref == rater.id, _A.c.sequence.is_not(None), _A.c.purpose == "work")
                .order_by(_A.c.sequence.desc())
                .limit(limit)
            )
            undoable = tuple(connection.execute(latest).scalars())
        step_of = self._step_of(rater.stage)
        return Progress(
            stage=rater.stage,
            answered=rater.answered,
            quota=rater.quota,
            step_done=_step_done(connection, rater) if step_of else 0,
            step_of=step_of,
            undoable=undoable,
            waiting=waiting,
            qualification_right=self._qualification(connection, rater),
        )

    def _qualification(self, connection: Connection, rater: Any) -> float | None:
        """Share right in the last finished qualification round; None later in the work, to be quick."""
        if rater.stage not in ("qualification", "failed") and rater.answered:
            return None
        attempt = rater.attempt - (rater.stage == "qualification")
        right, seen = _round(connection, rater.id, attempt)
        return right / seen if seen else None

    def _batch(self, connection: Connection, rater: Any, held: Sequence[Any]) -> Batch:
        questions = tuple(
            HeldQuestion(row.token, row.class_index, row.position, row.purpose, row.arm) for row in held
        )
        waiting = rater.stage == "work" and not questions and self._may_come(connection, rater)
        return Batch(questions, self._progress(connection, rater, waiting=waiting))

    def _may_come(self, connection: Connection, rater: Any) -> bool:
        """Whether there is, or may be, a pair for the rater: one that is open, or held by somebody else."""
        if _is_frozen(connection) or (rater.quota is not None and rater.answered >= rater.quota):
            return False
        unfinished = sa.or_(_Q.c.is_open, _Q.c.leased > 0)
        statement = self._not_yet(rater.id, _Q.c.role == "work", _Q.c.arm == rater.arm, unfinished).limit(1)
        return connection.execute(statement).first() is not None

    def picture(self, rater_id: int, token: str) -> Picture | None:
        """The image that a token stands for, if it was made for this rater."""
        statement = (
            sa.select(Image.image_id, Image.path)
            .join(_Q, _Q.c.image_ref == Image.id)
            .join(_A, _A.c.question_ref == _Q.c.id)
            .where(_A.c.token == token, _A.c.rater_ref == rater_id)
        )
        with self.database.read() as connection:
            row = connection.execute(statement).first()
        return Picture(row.image_id, row.path) if row else None

    def label_of(self, rater_id: int, token: str) -> int | None:
        """The class that a token's question is about, if the token was made for this rater."""
        statement = sa.select(_Q.c.class_index).join(_A, _A.c.question_ref == _Q.c.id)
        with self.database.read() as connection:
            found = connection.execute(statement.where(_A.c.token == token, _A.c.rater_ref == rater_id))
            return found.scalar_one_or_none()

    # Managing ----------------------------------------------------------------------------------------------

    def status(self) -> Status:
        """Everything that `beyond campaign status` and the dashboard show."""
        with self.database.read() as connection:
            return status.status(connection, self.config, self.clock())

    def flagged(self, offset: int = 0, limit: int = 50) -> tuple[int, list[FlaggedPair]]:
        """Complete pairs without a verdict by k of n, most important first, and how many there are."""
        with self.database.read() as connection:
            return status.flagged(connection, self.config, offset, limit)

    def adjudicate(
        self, question_id: int, verdict: VerdictName | None, *, note: str = "", actor: int | None = None
    ) -> None:
        """Decide a pair, whatever the votes say; None takes the decision back.

        Raises:
            BeyondError: There is no such pair.
        """

        def work(connection: Connection) -> None:
            counts = self._lock_questions(connection, [question_id])
            question = counts.get(question_id)
            if question is None or question.role != "work":
                raise BeyondError(f"there is no pair {question_id} to judge in this campaign")
            question.verdict = verdict
            connection.execute(sa.update(_Q).where(_Q.c.id == question_id).values(verdict=verdict))
            self._save_questions(connection, [question])
            connection.execute(
                sa.insert(_E).values(
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
        statement = sa.select(Image.image_id, Image.path).join(_Q, _Q.c.image_ref == Image.id)
        with self.database.read() as connection:
            row = connection.execute(statement.where(_Q.c.id == question_id)).first()
        return Picture(row.image_id, row.path) if row else None

    def votes(self) -> Votes:
        """All votes as arrays, for aggregation and export."""
        with self.database.read() as connection:
            return status.votes(connection, self.config)

    def paths(self) -> dict[str, str]:
        """The file of each image, relative to the folder of images."""
        with self.database.read() as connection:
            rows = connection.execute(sa.select(Image.image_id, Image.path))
            return {row[0]: row[1] for row in rows}

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
            statement = sa.select(_Q.c.id, Image.image_id, _Q.c.class_index, _Q.c.arm).join(
                Image, Image.id == _Q.c.image_ref
            )
            asked = connection.execute(statement.where(_Q.c.role != "practice")).all()
        numbers = {(row.image_id, row.class_index, row.arm): row.id for row in asked}
        known = set(numbers.values())
        by_rater: dict[str, dict[int, ImportedVote]] = {}
        for vote in votes:
            number = vote.question_id
            if number is None:
                number = numbers.get((str(vote.image_id), int(vote.class_index or 0), vote.arm))
            if number not in known:
                what = (
                    f"question {number}" if number else f"image {vote.image_id!r}, class {vote.class_index}"
                )
                raise BeyondError(f"{what} is no question of this campaign; nothing was imported")
            by_rater.setdefault(vote.rater, {})[int(number)] = vote
        totals = Counter({"recorded": 0, "duplicate": 0, "refused": 0})
        for name, mine in by_rater.items():
            rater_id = self.database.transact(lambda c, n=name, m=mine: self._imported_rater(c, origin, n, m))
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
        self, connection: Connection, origin: str, name: str, questions: Mapping[int, ImportedVote]
    ) -> int:
        """The rater of this name, made if need be, with each question as if a lease had run out."""
        label = f"{origin}: {name}"[:200]
        found = connection.execute(sa.select(_R.c.id).where(_R.c.label == label)).scalar_one_or_none()
        now = self.clock()
        rater_id = found or self._new_rater(connection, "rater", label, None, now)
        connection.execute(
            sa.update(_R).where(_R.c.id == rater_id, _R.c.stage == "consent").values(stage="work")
        )
        given = sa.select(_A.c.question_ref).where(_A.c.rater_ref == rater_id)
        missing = sorted(set(questions) - set(connection.execute(given).scalars()))
        place = connection.execute(sa.select(_R.c.position).where(_R.c.id == rater_id)).scalar_one()
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
            connection.execute(sa.insert(_A), rows)
            connection.execute(sa.update(_R).where(_R.c.id == rater_id).values(position=place + len(rows)))
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
        statement = sa.select(_Q.c.role, sa.func.count()).where(_Q.c.role != "work").group_by(_Q.c.role)
        with self.database.read() as connection:
            sizes: dict[str, int] = {row[0]: row[1] for row in connection.execute(statement)}
        return sizes.get("practice", 0), sizes.get("gold", 0)

    def _lock_rater(self, connection: Connection, rater_id: int) -> Any:
        row = connection.execute(self.database.locked(sa.select(_R).where(_R.c.id == rater_id))).first()
        if row is None:
            raise BeyondError(f"there is no rater {rater_id} in this campaign")
        return row

    def _lock_questions(
        self, connection: Connection, ids: Iterable[int], *, skip: bool = False
    ) -> dict[int, _Counts]:
        wanted, found = sorted(set(ids)), {}
        for start in range(0, len(wanted), _CHUNK):
            statement = (
                sa.select(*_COUNTS).where(_Q.c.id.in_(wanted[start : start + _CHUNK])).order_by(_Q.c.id)
            )
            for row in connection.execute(self.database.locked(statement, skip=skip)):
                found[row.id] = _Counts(row)
        return found

    def _save_questions(self, connection: Connection, counts: Iterable[_Counts]) -> None:
        rows = [question.row(self.config) for question in counts]
        if rows:
            connection.execute(_SAVE_COUNTS, rows)

    def _log(
        self, connection: Connection, kind: str, rater_id: int, *, actor: int | None = None, detail: str = ""
    ) -> None:
        connection.execute(
            sa.insert(_E).values(at=self.clock(), kind=kind, rater_ref=rater_id, actor=actor, detail=detail)
        )


class _Outbox:
    """One call of `Store.submit`: reads what the entries are about, applies them in order, writes once."""

    def __init__(
        self, store: Store, connection: Connection, rater_id: int, items: Sequence[Item], now: float
    ) -> None:
        self.store, self.connection, self.items, self.now = store, connection, items, now
        self.rater = store._lock_rater(connection, rater_id)
        self.frozen = _is_frozen(connection)
        self.stage: str = self.rater.stage
        self.answered: int = self.rater.answered
        self.sequence: int = self.rater.sequence
        self.attempt: int = self.rater.attempt
        self.gold_seen: int = self.rater.gold_seen
        self.gold_right: float = self.rater.gold_right
        self.must_pause = False
        keys = {item.key for item in items}
        known = (
            sa.select(_E.c.client_key, _E.c.kind, _E.c.answer, _A.c.token)
            .join(_A, sa.and_(_A.c.rater_ref == _E.c.rater_ref, _A.c.question_ref == _E.c.question_ref))
            .where(_E.c.rater_ref == rater_id, _E.c.client_key.in_(keys))
        )
        self.known = {row.client_key: (row.kind, row.answer, row.token) for row in connection.execute(known)}
        mine = [_A.c.rater_ref == rater_id, _A.c.token.in_({item.token for item in items})]
        ids = connection.execute(sa.select(_A.c.question_ref).where(*mine)).scalars().all()
        self.counts = store._lock_questions(connection, ids)
        # After the questions are locked, so that nobody takes a lease back in between.
        columns: tuple[Any, ...] = (
            _A.c.id,
            _A.c.token,
            _A.c.question_ref,
            _A.c.purpose,
            _A.c.state,
            _A.c.answer,
        )
        columns += (
            _A.c.answered_at,
            _A.c.response_ms,
            _A.c.counted,
            _A.c.flag,
            _A.c.sequence,
            _A.c.expires_at,
        )
        statement = store.database.locked(sa.select(*columns).where(*mine))
        self.given = {row.token: dict(row._mapping) for row in connection.execute(statement)}
        self.latest: set[int] = set()  # numbers of the latest answers of the work; more than can be undone
        if any(item.kind == "undo" for item in items):
            latest = sa.select(_A.c.sequence).where(
                _A.c.rater_ref == rater_id, _A.c.sequence.is_not(None), _A.c.purpose == "work"
            )
            limit = store.config.undo_limit + len(items)
            found = connection.execute(latest.order_by(_A.c.sequence.desc()).limit(limit))
            self.latest = set(found.scalars())
        self.events: list[dict[str, Any]] = []
        self.touched: dict[int, dict[str, Any]] = {}

    def run(self) -> list[Outcome]:
        """Apply all entries and write what they change."""
        outcomes = [self._apply(item) for item in self.items]
        if self.events:
            self._write()
        return outcomes

    def _apply(self, item: Item) -> Outcome:
        before = self.known.get(item.key)
        if before is not None:
            if before != (item.kind, item.answer, item.token):
                return Outcome(item.key, "refused", "key-reused")
            return Outcome(item.key, "duplicate", feedback=self._feedback(item))
        given = self.given.get(item.token)
        if given is None:
            return Outcome(item.key, "refused", "unknown-question")
        if self.frozen or self.stage == "withdrawn":
            return Outcome(item.key, "refused", "not-now")
        refusal = self._undo(given) if item.kind == "undo" else self._answer(item, given)
        if refusal:
            return Outcome(item.key, "refused", refusal)
        self.known[item.key] = (item.kind, item.answer, item.token)
        self.touched[given["id"]] = given
        self.events.append(
            {
                "at": self.now,
                "kind": item.kind,
                "rater_ref": self.rater.id,
                "question_ref": given["question_ref"],
                "client_key": item.key,
                "answer": item.answer,
                "response_ms": item.response_ms,
                "client_at": item.client_at,
                "detail": "",
            }
        )
        return Outcome(item.key, "recorded", feedback=self._feedback(item))

    def _answer(self, item: Item, given: dict[str, Any]) -> str:
        if item.answer not in ANSWERS:
            return "unknown-answer"
        if item.answer == "maybe" and not self.store.config.maybe_allowed:
            return "maybe-not-allowed"
        if given["state"] == "answered":
            return "already-answered"
        question = self.counts[given["question_ref"]]
        if given["state"] == "leased":
            question.hold(-1)
        elif not question.has_room:
            self._take_back(question)
        set_aside = self.stage in ("paused", "failed")
        counts = (
            question.has_room and not set_aside and (question.verdict is None or given["state"] == "leased")
        )
        if counts:
            question.add(item.answer, 1)
        self.sequence += 1
        if given["purpose"] == "work":
            self.latest.add(self.sequence)
        given.update(
            state="answered",
            answer=item.answer,
            answered_at=self.now,
            response_ms=item.response_ms,
            counted=counts,
            flag="" if counts else "paused" if set_aside else "late",
            sequence=self.sequence,
        )
        self._credit(given, question, item.answer, 1)
        return ""

    def _take_back(self, question: _Counts) -> None:
        """End others' leases of a locked question that are over, but were not taken back yet."""
        over = [_A.c.question_ref == question.id, _A.c.state == "leased", _A.c.expires_at <= self.now]
        statement = sa.update(_A).where(*over, _A.c.rater_ref != self.rater.id)
        question.hold(-self.connection.execute(statement.values(state="expired")).rowcount)

    def _undo(self, given: dict[str, Any]) -> str:
        if given["state"] != "answered":
            return "nothing-to-undo"
        if given["purpose"] != "work" or self.stage != "work":
            return "too-late-to-undo"
        if sum(number > given["sequence"] for number in self.latest) >= self.store.config.undo_limit:
            return "too-late-to-undo"
        self.latest.discard(given["sequence"])
        question, answer = self.counts[given["question_ref"]], given["answer"]
        if given["counted"]:
            question.add(answer, -1)
        holds = question.has_room
        question.hold(int(holds))
        self._credit(given, question, answer, -1)
        given.update(
            state="leased" if holds else "expired",
            answer=None,
            answered_at=None,
            response_ms=None,
            counted=False,
            flag="",
            sequence=None,
            expires_at=self.now + self.store.config.lease_seconds,
        )
        return ""

    def _credit(self, given: dict[str, Any], question: _Counts, answer: str, sign: int) -> None:
        """Count an answer for the rater, or take it off again."""
        if given["purpose"] == "work":
            self.answered += sign
        if question.role == "gold" and question.expected is not None:
            self.gold_seen += sign
            self.gold_right += sign * assignment.rightness(answer, question.expected)

    def _feedback(self, item: Item) -> Feedback | None:
        given = self.given[item.token]
        if item.kind != "answer" or not self.store.gives_feedback(given["purpose"]):
            return None
        question = self.counts[given["question_ref"]]
        return Feedback(item.answer == question.expected, question.expected, question.explanation)  # type: ignore[arg-type]

    def _write(self) -> None:
        connection, store = self.connection, self.store
        connection.execute(sa.insert(_E), self.events)
        names = ("state", "answer", "answered_at", "response_ms", "counted", "flag", "sequence", "expires_at")
        rows = [
            {"key": given["id"], **{f"b_{n}": given[n] for n in names}} for given in self.touched.values()
        ]
        connection.execute(_SAVE_ASSIGNMENT, rows)
        touched = {given["question_ref"] for given in self.touched.values()}
        store._save_questions(connection, [self.counts[question] for question in sorted(touched)])
        self._advance()
        values: dict[str, Any] = {
            "answered": self.answered,
            "sequence": self.sequence,
            "attempt": self.attempt,
        }
        values |= {"stage": self.stage, "gold_seen": self.gold_seen, "gold_right": self.gold_right}
        connection.execute(sa.update(_R).where(_R.c.id == self.rater.id).values(values))

    def _advance(self) -> None:
        """Move the rater on, where a round is over."""
        store, config = self.store, self.store.config
        if self.stage in ("practice", "qualification"):
            if _step_done(self.connection, self.rater) < store._step_of(self.stage):
                return
            if self.stage == "practice":
                self.stage = store._stage_after("practice")
                return
            right, seen = _round(self.connection, self.rater.id, self.attempt)
            if right >= config.qualification_floor * seen:
                self.stage = "work"
            elif self.attempt < config.qualification_attempts and store._gold >= 2 * seen:
                self.attempt += 1
            else:
                self.stage = "failed"
        elif self.stage == "work":
            if self.rater.quota is not None and self.answered >= self.rater.quota:
                self.stage = "done"
            self.must_pause = store._is_below_floor(self.rater, self.gold_seen, self.gold_right)


_SAVED = ("state", "answer", "answered_at", "response_ms", "counted", "flag", "sequence", "expires_at")
_SAVE_ASSIGNMENT = (
    sa.update(_A)
    .where(_A.c.id == sa.bindparam("key"))
    .values({name: sa.bindparam(f"b_{name}") for name in _SAVED})
)


def _rater(connection: Connection, rater_id: int) -> Any:
    row = connection.execute(sa.select(_R).where(_R.c.id == rater_id)).first()
    if row is None:
        raise BeyondError(f"there is no rater {rater_id} in this campaign")
    return row


def _is_frozen(connection: Connection) -> bool:
    return connection.execute(sa.select(Campaign.frozen_at)).scalar_one() is not None


def _step_done(connection: Connection, rater: Any) -> int:
    statement = sa.select(sa.func.count()).where(
        _A.c.rater_ref == rater.id,
        _A.c.purpose == rater.stage,
        _A.c.attempt == rater.attempt,
        _A.c.state == "answered",
    )
    return connection.execute(statement).scalar_one()


def _round(connection: Connection, rater_id: int, attempt: int) -> tuple[float, int]:
    """How many of a qualification round are right (a maybe is half), and how many were answered."""
    statement = (
        sa.select(_A.c.answer, _Q.c.expected)
        .join(_Q, _Q.c.id == _A.c.question_ref)
        .where(
            _A.c.rater_ref == rater_id,
            _A.c.purpose == "qualification",
            _A.c.attempt == attempt,
            _A.c.state == "answered",
        )
    )
    rows = connection.execute(statement).all()
    return sum(assignment.rightness(row.answer, row.expected) for row in rows), len(rows)


def _balanced(rows: Sequence[Any], need: int, position: int) -> list[Any]:
    """Alternate known answers yes and no, as long as there are both."""
    groups = {expected: [row for row in rows if row.expected == expected] for expected in ("yes", "no")}
    chosen: list[Any] = []
    while len(chosen) < need and (groups["yes"] or groups["no"]):
        first = ("yes", "no")[(position + len(chosen)) % 2]
        other = "no" if first == "yes" else "yes"
        chosen.append((groups[first] or groups[other]).pop(0))
    return chosen


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


def _plan(
    config: CampaignConfig,
    images: Sequence[NewImage],
    pairs: Iterable[NewPair],
    gold: Iterable[NewGold],
    key: bytes,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of images and questions, numbered in an order that tells nothing of their kind."""
    by_id = {image.image_id: image for image in images}
    if len(by_id) != len(images):
        twice = next(name for name, number in Counter(i.image_id for i in images).items() if number > 1)
        raise BeyondError(f"image {twice!r} is there twice; image ids must be unique")
    questions: dict[tuple[str, int, str], dict[str, Any]] = {}
    judged: set[tuple[str, int]] = set()
    for known in gold:
        _require_pair(known.image_id, known.class_index, by_id)
        if (known.image_id, known.class_index) in judged:
            raise BeyondError(f"gold names image {known.image_id!r}, class {known.class_index} twice")
        judged.add((known.image_id, known.class_index))
        questions[(known.image_id, known.class_index, "")] = {
            "role": "practice" if known.practice else "gold",
            "expected": known.expected,
            "explanation": known.explanation,
            "reason": known.source,
            "priority": 0.0,
            "sampling_probability": 1.0,
            "wanted": 0,
        }
    work = 0
    for pair in pairs:
        _require_pair(pair.image_id, pair.class_index, by_id)
        if not 0 < pair.sampling_probability <= 1 or not math.isfinite(pair.priority):
            raise BeyondError(
                f"image {pair.image_id!r}, class {pair.class_index}: a sampling probability lies in "
                f"(0, 1] and a priority is finite, not {pair.sampling_probability:g} and {pair.priority:g}"
            )
        if (pair.arm or None) not in (config.arms or (None,)):
            raise BeyondError(
                f"pair with arm {pair.arm!r}, but the campaign's arms are {config.arms or 'none'}"
            )
        if (pair.image_id, pair.class_index) in judged:
            continue
        if (pair.image_id, pair.class_index, pair.arm) in questions:
            raise BeyondError(f"image {pair.image_id!r}, class {pair.class_index} is among the pairs twice")
        work += 1
        questions[(pair.image_id, pair.class_index, pair.arm)] = {
            "role": "work",
            "expected": None,
            "explanation": "",
            "reason": pair.reason,
            "priority": float(pair.priority),
            "sampling_probability": float(pair.sampling_probability),
            "wanted": config.votes,
        }
    if not work:
        raise BeyondError("there is no pair to judge; every pair that is given is gold, or none is given")
    mixed = sorted(questions, key=lambda q: hashlib.blake2b(repr(q).encode(), key=key).digest())
    used = sorted({image_id for image_id, _, _ in mixed})
    numbers = {image_id: number for number, image_id in enumerate(used, start=1)}
    image_rows = [
        {
            "id": numbers[image_id],
            "image_id": image_id,
            "path": by_id[image_id].path,
            "original_label": by_id[image_id].original_label,
        }
        for image_id in used
    ]
    ranks = {
        q: rank
        for rank, q in enumerate(
            sorted(mixed, key=lambda q: (questions[q]["role"] != "work", -questions[q]["priority"]))
        )
    }
    empty = {"counted": 0, "leased": 0, "yes": 0, "no": 0, "maybe": 0, "is_open": True, "verdict": None}
    question_rows = [
        {
            "id": number,
            "image_ref": numbers[q[0]],
            "class_index": q[1],
            "arm": q[2],
            "rank": ranks[q],
            **questions[q],
            **empty,
        }
        for number, q in enumerate(mixed, start=1)
    ]
    return image_rows, question_rows


def _require_pair(image_id: str, class_index: int, images: Mapping[str, NewImage]) -> None:
    if image_id not in images:
        raise BeyondError(f"there is no file for image {image_id!r} among the images; check --images")
    if not 0 <= class_index < NUM_CLASSES:
        raise BeyondError(f"image {image_id!r}: class {class_index} is outside 0..999")
