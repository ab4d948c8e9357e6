"""What managers look at: coverage, throughput, raters, gold, pairs to decide; and all votes as arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from annotations.agreement import agreement
from annotations.campaign import assignment
from annotations.campaign.config import CampaignConfig
from annotations.campaign.models import Assignment, Campaign, Event, Image, Question, Rater, table
from annotations.campaign.types import (
    ANSWERS,
    Agreement,
    Coverage,
    FlaggedPair,
    GoldConfusion,
    HardGold,
    RaterReport,
    Status,
    Throughput,
    Votes,
)

ANSWER_CODES = {"no": 0, "maybe": 1, "yes": 2}
_HOUR = 3600.0
_RECENT = 200  # answers of a rater that the median time is of

_A, _Q, _R, _E = table(Assignment), table(Question), table(Rater), table(Event)
_WORK = _Q.c.role == "work"


def status(connection: Connection, config: CampaignConfig, now: float) -> Status:
    """Everything that `beyond campaign status` and the dashboard show."""
    covered, verdicts = coverage(connection, config)
    if config.study is not None:  # everybody who comes may answer; the plan says how many are wanted
        covered = dataclasses.replace(covered, wanted=covered.pairs * config.study.raters)
    return Status(
        name=config.name,
        at=now,
        frozen=connection.execute(sa.select(Campaign.frozen_at)).scalar_one() is not None,
        coverage=covered,
        throughput=throughput(connection, covered, now),
        raters=raters(connection, config),
        gold=gold_confusion(connection),
        flagged=covered.undecided,
        agreement=agreement_of(connection),
        verdicts=verdicts,
    )


def agreement_of(connection: Connection) -> tuple[Agreement, ...]:
    """How far raters agree on the pairs, with intervals that take each image as one; see `agreement`."""
    columns = (_Q.c.no, _Q.c.maybe, _Q.c.yes, _Q.c.image_ref)
    rows = connection.execute(sa.select(*columns).where(_WORK, _Q.c.counted > 0)).all()
    if not rows:
        return ()
    table = np.array([tuple(row) for row in rows], dtype=np.int64)
    found = agreement(table[:, :3], clusters=table[:, 3])
    return tuple(Agreement(name, one.value, one.low, one.high, one.n) for name, one in found.items())


def _complete(config: CampaignConfig) -> Any:
    """Condition: the pair takes no more votes."""
    full = _Q.c.counted >= _Q.c.wanted
    if not config.stop_early:
        return sa.or_(full, _Q.c.verdict.is_not(None))
    return sa.or_(full, _Q.c.verdict.is_not(None), sa.and_(~_Q.c.is_open, _Q.c.leased == 0))


def coverage(connection: Connection, config: CampaignConfig) -> tuple[Coverage, dict[str, int]]:
    """How far the pairs are, and how many have which verdict."""

    def number(condition: Any) -> Any:
        return sa.func.coalesce(sa.func.sum(sa.case((condition, 1), else_=0)), 0)

    complete, k = _complete(config), config.accept_at
    accepted = sa.or_(_Q.c.verdict == "accepted", sa.and_(_Q.c.verdict.is_(None), complete, _Q.c.yes >= k))
    rejected = sa.or_(_Q.c.verdict == "rejected", sa.and_(_Q.c.verdict.is_(None), complete, _Q.c.no >= k))
    undecided = sa.and_(_Q.c.verdict.is_(None), complete, _Q.c.yes < k, _Q.c.no < k)
    row = connection.execute(
        sa.select(
            sa.func.count().label("pairs"),
            number(complete).label("complete"),
            number(accepted).label("accepted"),
            number(rejected).label("rejected"),
            number(_Q.c.verdict == "unsure").label("unsure"),
            number(undecided).label("undecided"),
            number(_Q.c.counted == 0).label("untouched"),
            sa.func.coalesce(sa.func.sum(_Q.c.counted), 0).label("answers"),
            sa.func.coalesce(sa.func.sum(sa.case((complete, _Q.c.counted), else_=_Q.c.wanted)), 0).label(
                "wanted"
            ),
            number(_Q.c.leased > 0).label("in_flight"),
        ).where(_WORK)
    ).one()
    covered = Coverage(
        pairs=int(row.pairs),
        complete=int(row.complete),
        decided=int(row.complete - row.undecided),
        undecided=int(row.undecided),
        untouched=int(row.untouched),
        answers=int(row.answers),
        wanted=int(row.wanted),
        in_flight=int(row.in_flight),
    )
    verdicts = {"accepted": int(row.accepted), "rejected": int(row.rejected)}
    return covered, verdicts | {"unsure": int(row.unsure + row.undecided)}


def throughput(connection: Connection, covered: Coverage, now: float) -> Throughput:
    """Answers over time."""
    answers = _E.c.kind == "answer"

    def since(seconds: float, *conditions: Any) -> int:
        statement = sa.select(sa.func.count()).where(answers, _E.c.at > now - seconds, *conditions)
        return int(connection.execute(statement).scalar_one())

    hour = _E.c.at / _HOUR
    floored = sa.cast(hour, sa.Integer) if connection.dialect.name == "sqlite" else sa.func.floor(hour)
    first = int(now // _HOUR) - 47
    statement = sa.select(floored.label("hour"), sa.func.count().label("number")).where(
        answers, _E.c.at >= first * _HOUR
    )
    by_hour = {int(row.hour): int(row.number) for row in connection.execute(statement.group_by(floored))}
    active = sa.select(sa.func.count(sa.distinct(_E.c.rater_ref))).where(answers, _E.c.at > now - 600)
    times = sa.select(_E.c.response_ms).where(answers, _E.c.response_ms.is_not(None)).order_by(_E.c.id.desc())
    milliseconds = connection.execute(times.limit(10_000)).scalars().all()
    on_pairs = since(_HOUR, _E.c.question_ref.in_(sa.select(_Q.c.id).where(_WORK)))
    left = covered.wanted - covered.answers
    total = sa.select(sa.func.count()).where(_A.c.state == "answered")
    return Throughput(
        last_hour=since(_HOUR),
        last_day=since(24 * _HOUR),
        total=int(connection.execute(total).scalar_one()),
        active=int(connection.execute(active).scalar_one()),
        hours=tuple((h * _HOUR, by_hour.get(h, 0)) for h in range(first, first + 48)),
        median_ms=float(np.median(milliseconds)) if milliseconds else None,
        seconds_left=0.0 if left <= 0 else left / on_pairs * _HOUR if on_pairs else None,
    )


def raters(connection: Connection, config: CampaignConfig) -> tuple[RaterReport, ...]:
    """One report for each rater, in the order they came."""

    def number(condition: Any) -> Any:
        return sa.func.coalesce(sa.func.sum(sa.case((condition, 1), else_=0)), 0)

    work = sa.and_(_WORK, _A.c.state == "answered")
    statement = (
        sa.select(
            _A.c.rater_ref,
            number(work).label("answers"),
            number(sa.and_(work, _A.c.answer == "yes")).label("yes"),
            number(sa.and_(_WORK, _A.c.counted)).label("counted"),
            number(_A.c.response_ms < config.minimum_dwell_ms).label("fast"),
            sa.func.max(_A.c.answered_at).label("last_at"),
        )
        .join(_Q, _Q.c.id == _A.c.question_ref)
        .group_by(_A.c.rater_ref)
    )
    work_of = {row.rater_ref: row for row in connection.execute(statement)}
    recent = (
        sa.select(_A.c.rater_ref, _A.c.response_ms)
        .join(_R, _R.c.id == _A.c.rater_ref)
        .where(_A.c.sequence > _R.c.sequence - _RECENT, _A.c.response_ms.is_not(None))
    )
    times: dict[int, list[int]] = {}
    for row in connection.execute(recent):
        times.setdefault(row.rater_ref, []).append(row.response_ms)
    reports = []
    for rater in connection.execute(sa.select(_R).where(_R.c.role == "rater").order_by(_R.c.id)):
        done, quality = work_of.get(rater.id), assignment.quality(rater.gold_right, rater.gold_seen)
        reports.append(
            RaterReport(
                rater_id=rater.id,
                pseudonym=rater.pseudonym,
                label=rater.label,
                stage=rater.stage,
                arm=rater.arm,
                answered=rater.answered,
                counted=int(done.counted) if done else 0,
                gold_seen=rater.gold_seen,
                gold_right=rater.gold_right,
                quality=quality.mean,
                quality_low=quality.low,
                quality_high=quality.high,
                yes=int(done.yes) / int(done.answers) if done and done.answers else None,
                median_ms=float(np.median(times[rater.id])) if rater.id in times else None,
                fast=int(done.fast) if done else 0,
                last_at=done.last_at if done else None,
                reason=rater.pause_reason,
            )
        )
    return tuple(reports)


def gold_confusion(connection: Connection, hardest: int = 20) -> GoldConfusion:
    """How gold was answered in qualification and work by raters who are not paused."""
    sums = sa.select(_Q.c.expected, *(sa.func.coalesce(sa.func.sum(_Q.c[answer]), 0) for answer in ANSWERS))
    counts: dict[str, dict[str, int]] = {expected: dict.fromkeys(ANSWERS, 0) for expected in ("yes", "no")}
    for expected, *numbers in connection.execute(sums.where(_Q.c.role == "gold").group_by(_Q.c.expected)):
        counts[expected] = {name: int(number) for name, number in zip(ANSWERS, numbers)}
    wrong = sa.case((_Q.c.expected == "yes", _Q.c.no), else_=_Q.c.yes)
    right = sa.case((_Q.c.expected == "yes", _Q.c.yes), else_=_Q.c.no)
    statement = (
        sa.select(_Q.c.id, Image.image_id, _Q.c.class_index, _Q.c.expected, _Q.c.yes, _Q.c.no, _Q.c.maybe)
        .join(Image, Image.id == _Q.c.image_ref)
        .where(_Q.c.role == "gold", _Q.c.counted >= 2, wrong > right)
        .order_by((wrong - right).desc(), _Q.c.id)
        .limit(hardest)
    )
    return GoldConfusion(counts, tuple(HardGold(*row) for row in connection.execute(statement)))


def flagged(
    connection: Connection, config: CampaignConfig, offset: int, limit: int
) -> tuple[int, list[FlaggedPair]]:
    """Complete pairs that votes do not decide: undecided ones first, then those that a manager decided."""
    tied = sa.and_(_WORK, _complete(config), _Q.c.yes < config.accept_at, _Q.c.no < config.accept_at)
    total = connection.execute(sa.select(sa.func.count()).select_from(_Q).where(tied)).scalar_one()
    columns = (_Q.c.id, Image.image_id, _Q.c.class_index, _Q.c.yes, _Q.c.no, _Q.c.maybe, _Q.c.priority)
    statement = (
        sa.select(*columns, _Q.c.reason, _Q.c.verdict)
        .join(Image, Image.id == _Q.c.image_ref)
        .where(tied)
        .order_by(_Q.c.verdict.is_not(None), _Q.c.rank)
        .offset(offset)
        .limit(limit)
    )
    return int(total), [FlaggedPair(*row) for row in connection.execute(statement)]


def votes(connection: Connection, config: CampaignConfig) -> Votes:
    """All votes but those of practice and those withdrawn, by question and rater."""
    asked = connection.execute(
        sa.select(
            _Q.c.id,
            Image.image_id,
            _Q.c.class_index,
            _Q.c.arm,
            _Q.c.expected,
            _Q.c.sampling_probability,
            _Q.c.verdict,
            sa.and_(_WORK, _complete(config)).label("complete"),
            Image.original_label,
        )
        .join(Image, Image.id == _Q.c.image_ref)
        .where(_Q.c.role != "practice")
        .order_by(_Q.c.id)
    ).all()
    given = connection.execute(
        sa.select(
            _A.c.question_ref, _R.c.pseudonym, _A.c.answer, _A.c.counted, _A.c.response_ms, _A.c.purpose
        )
        .join(_R, _R.c.id == _A.c.rater_ref)
        .where(_A.c.state == "answered", _A.c.purpose != "practice", _R.c.stage != "withdrawn")
        .order_by(_A.c.question_ref, _R.c.pseudonym)
    ).all()
    ids = _column(asked, 0, np.int64)
    names, rater = np.unique(_column(given, 1, object).astype(str), return_inverse=True)
    expected = {"yes": ANSWER_CODES["yes"], "no": ANSWER_CODES["no"], None: -1}
    return Votes(
        question=np.searchsorted(ids, _column(given, 0, np.int64)).astype(np.int32),
        rater=rater.astype(np.int32),
        answer=np.array([ANSWER_CODES[row[2]] for row in given], dtype=np.int8),
        counted=_column(given, 3, bool),
        response_ms=np.array([-1 if row[4] is None else row[4] for row in given], dtype=np.int32),
        purpose=_column(given, 5, object),
        question_ids=ids,
        image_ids=_column(asked, 1, object),
        class_index=_column(asked, 2, np.int16),
        arm=_column(asked, 3, object),
        expected=np.array([expected[row[4]] for row in asked], dtype=np.int8),
        sampling_probability=_column(asked, 5, np.float64),
        adjudicated=_column(asked, 6, object),
        complete=_column(asked, 7, bool),
        original_label=_column(asked, 8, np.int16),
        raters=names.astype(object),
        accept_at=config.accept_at,
    )


def _column(rows: Sequence[Any], index: int, dtype: Any) -> Any:
    column = np.empty(len(rows), dtype=dtype)
    for at, row in enumerate(rows):
        column[at] = row[index]
    return column


def inconsistencies(connection: Connection, config: CampaignConfig) -> list[str]:
    """Where the tables contradict the events, or go beyond the redundancy; a line for each kind."""
    found: list[str] = []

    # What a rater's last event on a question says, against the assignment.
    last = (
        sa.select(sa.func.max(_E.c.id))
        .where(_E.c.kind.in_(("answer", "undo")))
        .group_by(_E.c.rater_ref, _E.c.question_ref)
    )
    latest = (
        sa.select(_E.c.rater_ref, _E.c.question_ref, _E.c.kind, _E.c.answer)
        .where(_E.c.id.in_(last))
        .subquery()
    )
    same = sa.and_(latest.c.rater_ref == _A.c.rater_ref, latest.c.question_ref == _A.c.question_ref)
    differs = sa.or_(
        sa.and_(_A.c.state == "answered", sa.or_(latest.c.kind.is_(None), latest.c.kind != "answer")),
        sa.and_(_A.c.state == "answered", latest.c.answer != _A.c.answer),
        sa.and_(_A.c.state != "answered", latest.c.kind == "answer"),
    )
    wrong = connection.execute(
        sa.select(sa.func.count()).select_from(_A).outerjoin(latest, same).where(differs)
    ).scalar_one()
    if wrong:
        found.append(f"{wrong} assignments differ from their last event")
    lost = connection.execute(
        sa.select(sa.func.count())
        .select_from(latest)
        .outerjoin(_A, same)
        .where(latest.c.kind == "answer", _A.c.id.is_(None))
    ).scalar_one()
    if lost:
        found.append(f"{lost} answers have no assignment")

    # Counters, against the assignments.
    def tally(condition: Any) -> Any:
        return sa.func.sum(sa.case((condition, 1), else_=0))

    mine = (
        sa.select(
            _A.c.question_ref,
            tally(_A.c.counted).label("counted"),
            tally(_A.c.state == "leased").label("leased"),
            *(tally(sa.and_(_A.c.counted, _A.c.answer == answer)).label(answer) for answer in ANSWERS),
        )
        .group_by(_A.c.question_ref)
        .subquery()
    )
    unequal = sa.or_(
        *(sa.func.coalesce(mine.c[name], 0) != _Q.c[name] for name in ("counted", *ANSWERS)),
        sa.and_(_WORK, sa.func.coalesce(mine.c.leased, 0) != _Q.c.leased),
    )
    wrong = connection.execute(
        sa.select(sa.func.count())
        .select_from(_Q)
        .outerjoin(mine, mine.c.question_ref == _Q.c.id)
        .where(unequal)
    ).scalar_one()
    if wrong:
        found.append(f"{wrong} questions have counters that differ from their assignments")
    beyond = sa.select(sa.func.count()).select_from(_Q).where(_WORK, _Q.c.counted + _Q.c.leased > _Q.c.wanted)
    if connection.execute(beyond).scalar_one():
        found.append("questions have more votes than they should")
    if not config.stop_early:
        should = sa.and_(_Q.c.counted + _Q.c.leased < _Q.c.wanted, _Q.c.verdict.is_(None))
        statement = sa.select(sa.func.count()).select_from(_Q).where(_WORK, _Q.c.is_open != should)
        if connection.execute(statement).scalar_one():
            found.append("questions are open that should not be, or the other way round")
    state = sa.select(sa.func.count()).select_from(_A)
    odd = sa.or_(
        sa.and_(_A.c.state == "answered", sa.or_(_A.c.answer.is_(None), _A.c.sequence.is_(None))),
        sa.and_(_A.c.state != "answered", sa.or_(_A.c.answer.is_not(None), _A.c.counted)),
    )
    if connection.execute(state.where(odd)).scalar_one():
        found.append("assignments hold an answer without being answered, or the other way round")
    elsewhere = (
        sa.select(sa.func.count())
        .select_from(_A)
        .join(_Q, _Q.c.id == _A.c.question_ref)
        .join(_R, _R.c.id == _A.c.rater_ref)
        .where(_Q.c.arm != "", _Q.c.arm != _R.c.arm)
    )
    wrong = connection.execute(elsewhere).scalar_one()
    if wrong:
        found.append(f"{wrong} questions were given to raters of another arm")

    # Raters' counters.
    half = sa.case((_A.c.answer == "maybe", 0.5), (_A.c.answer == _Q.c.expected, 1.0), else_=0.0)
    theirs = (
        sa.select(
            _A.c.rater_ref,
            tally(_A.c.purpose == "work").label("answered"),
            tally(_Q.c.role == "gold").label("gold_seen"),
            sa.func.sum(sa.case((_Q.c.role == "gold", half), else_=0.0)).label("gold_right"),
        )
        .join(_Q, _Q.c.id == _A.c.question_ref)
        .where(_A.c.state == "answered")
        .group_by(_A.c.rater_ref)
        .subquery()
    )
    unequal = sa.or_(
        *(sa.func.coalesce(theirs.c[n], 0) != _R.c[n] for n in ("answered", "gold_seen", "gold_right"))
    )
    wrong = connection.execute(
        sa.select(sa.func.count())
        .select_from(_R)
        .outerjoin(theirs, theirs.c.rater_ref == _R.c.id)
        .where(unequal)
    ).scalar_one()
    if wrong:
        found.append(f"{wrong} raters have counters that differ from their answers")
    return found
