"""The tables of a campaign's database.

`events` is the truth: answers, undos, pauses, withdrawals and adjudications, only ever added to. What
`assignments`, `questions` and `raters` say can be told from the events; `Store.check` does.
Times are seconds since 1970. Whatever changes here needs a migration in `migrations/versions/`.
"""

from __future__ import annotations

from sqlalchemy import (
    CheckConstraint,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map = {float: Double, str: String}  # noqa: RUF012 - SQLAlchemy's interface


def table(model: type[Base]) -> Table:
    """The table of a model, for statements."""
    assert isinstance(model.__table__, Table)
    return model.__table__


class Campaign(Base):
    """The campaign: one row."""

    __tablename__ = "campaign"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    created_at: Mapped[float]
    config: Mapped[str] = mapped_column(Text)
    salt: Mapped[bytes] = mapped_column(LargeBinary)  # of pseudonyms
    key: Mapped[bytes] = mapped_column(LargeBinary)  # of tokens and of raters' orders
    frozen_at: Mapped[float | None]
    images: Mapped[str] = mapped_column(Text, default="")  # the folder on this machine; never leaves it


class Image(Base):
    """An image and its file, relative to the folder of images."""

    __tablename__ = "images"

    id: Mapped[int] = mapped_column(primary_key=True)
    image_id: Mapped[str] = mapped_column(String(200), unique=True)
    path: Mapped[str] = mapped_column(String(1000))
    original_label: Mapped[int]


class Question(Base):
    """A pair (image, class) in an arm: to be judged (`work`), or with a known answer (`gold`, `practice`).

    `counted` is the number of counted answers, `leased` that of raters who hold it now; together they never
    exceed `wanted` for `work`.
    """

    __tablename__ = "questions"
    __table_args__ = (
        UniqueConstraint("image_ref", "class_index", "arm"),
        CheckConstraint("class_index >= 0 AND class_index < 1000", name="class_in_range"),
        CheckConstraint("counted >= 0 AND leased >= 0", name="no_negative_count"),
        CheckConstraint("role <> 'work' OR counted + leased <= wanted", name="redundancy"),
        Index("questions_open", "role", "arm", "is_open", "rank"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    image_ref: Mapped[int] = mapped_column(ForeignKey("images.id"))
    class_index: Mapped[int]
    arm: Mapped[str] = mapped_column(String(40), default="")
    beside: Mapped[str] = mapped_column(String(1000), default="")  # file of a picture shown beside the image
    role: Mapped[str] = mapped_column(String(10))
    expected: Mapped[str | None] = mapped_column(String(5))
    explanation: Mapped[str] = mapped_column(Text, default="")
    reason: Mapped[str] = mapped_column(Text, default="")
    priority: Mapped[float]
    rank: Mapped[int]  # place by priority, ties at random
    sampling_probability: Mapped[float]
    wanted: Mapped[int]
    counted: Mapped[int] = mapped_column(default=0)
    leased: Mapped[int] = mapped_column(default=0)
    yes: Mapped[int] = mapped_column(default=0)
    no: Mapped[int] = mapped_column(default=0)
    maybe: Mapped[int] = mapped_column(default=0)
    is_open: Mapped[bool]  # takes a lease now
    verdict: Mapped[str | None] = mapped_column(String(10))  # a manager's


class Rater(Base):
    """A person, known by a pseudonym."""

    __tablename__ = "raters"
    __table_args__ = (UniqueConstraint("prolific_pid"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    pseudonym: Mapped[str | None] = mapped_column(String(32), unique=True)
    role: Mapped[str] = mapped_column(String(10))
    label: Mapped[str] = mapped_column(String(200), default="")
    stage: Mapped[str] = mapped_column(String(20))
    arm: Mapped[str] = mapped_column(String(40), default="")
    created_at: Mapped[float]
    consent_version: Mapped[str | None] = mapped_column(String(40))
    consented_at: Mapped[float | None]
    quota: Mapped[int | None]
    answered: Mapped[int] = mapped_column(default=0)
    position: Mapped[int] = mapped_column(default=0)
    attempt: Mapped[int] = mapped_column(default=1)  # at the qualification
    sequence: Mapped[int] = mapped_column(default=0)  # answers ever given, undone ones too
    gold_seen: Mapped[int] = mapped_column(default=0)
    gold_right: Mapped[float] = mapped_column(default=0.0)
    forgiven_seen: Mapped[int] = mapped_column(default=0)  # gold before a manager reinstated the rater
    forgiven_right: Mapped[float] = mapped_column(default=0.0)
    pause_reason: Mapped[str] = mapped_column(Text, default="")
    prolific_pid: Mapped[str | None] = mapped_column(String(64))
    prolific_study: Mapped[str | None] = mapped_column(String(64))
    prolific_session: Mapped[str | None] = mapped_column(String(64))


class InvitationRow(Base):
    """An invitation, by the SHA-256 of its token."""

    __tablename__ = "invitations"

    id: Mapped[int] = mapped_column(primary_key=True)
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    role: Mapped[str] = mapped_column(String(10))
    label: Mapped[str] = mapped_column(String(200), default="")
    rater_ref: Mapped[int | None] = mapped_column(ForeignKey("raters.id"))  # to come back as this rater
    uses_left: Mapped[int]
    created_at: Mapped[float]
    expires_at: Mapped[float]


class SessionRow(Base):
    """A session, by the SHA-256 of its cookie."""

    __tablename__ = "sessions"

    id: Mapped[int] = mapped_column(primary_key=True)
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    rater_ref: Mapped[int] = mapped_column(ForeignKey("raters.id"), index=True)
    created_at: Mapped[float]
    expires_at: Mapped[float]
    revoked_at: Mapped[float | None]


class Assignment(Base):
    """A question given to a rater: at most one row for the two, so that no pair comes twice.

    `state` is `leased`, `answered` or `expired` (held too long; the rater may be given it again).
    """

    __tablename__ = "assignments"
    __table_args__ = (
        UniqueConstraint("rater_ref", "question_ref"),
        Index("assignments_of_question", "question_ref"),
        Index(
            "assignments_leased",
            "expires_at",
            sqlite_where=text("state = 'leased'"),
            postgresql_where=text("state = 'leased'"),
        ),
        Index("assignments_order", "rater_ref", "state", "position"),
        Index("assignments_latest", "rater_ref", "sequence"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    token: Mapped[str] = mapped_column(String(32), unique=True)
    question_ref: Mapped[int] = mapped_column(ForeignKey("questions.id"))
    rater_ref: Mapped[int] = mapped_column(ForeignKey("raters.id"))
    purpose: Mapped[str] = mapped_column(String(15))
    attempt: Mapped[int] = mapped_column(default=1)
    position: Mapped[int]
    state: Mapped[str] = mapped_column(String(10))
    leased_at: Mapped[float]
    expires_at: Mapped[float]
    answer: Mapped[str | None] = mapped_column(String(5))
    answered_at: Mapped[float | None]
    sequence: Mapped[int | None]  # the rater's how-manieth answer, for undo
    response_ms: Mapped[int | None]
    counted: Mapped[bool] = mapped_column(default=False)
    flag: Mapped[str] = mapped_column(
        String(20), default=""
    )  # why it does not count: late, paused, withdrawn


class Event(Base):
    """What happened, only ever added to."""

    __tablename__ = "events"
    __table_args__ = (
        UniqueConstraint("rater_ref", "client_key"),
        Index("events_at", "at"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[float]
    kind: Mapped[str] = mapped_column(String(15))
    rater_ref: Mapped[int | None] = mapped_column(ForeignKey("raters.id"))
    question_ref: Mapped[int | None] = mapped_column(ForeignKey("questions.id"))
    client_key: Mapped[str | None] = mapped_column(String(64))
    answer: Mapped[str | None] = mapped_column(String(10))
    response_ms: Mapped[int | None]
    client_at: Mapped[float | None]
    actor: Mapped[int | None] = mapped_column(Integer)  # who did it, where it is not the rater
    detail: Mapped[str] = mapped_column(Text, default="")


class Audit(Base):
    """Who came, who was refused, and what managers did."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[float]
    actor: Mapped[str] = mapped_column(String(40))
    action: Mapped[str] = mapped_column(String(40))
    detail: Mapped[str] = mapped_column(Text, default="")
    address: Mapped[str] = mapped_column(String(64), default="")
