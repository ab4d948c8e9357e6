"""The contract of the store, the same on SQLite and on PostgreSQL."""

from __future__ import annotations

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from annotations.campaign.config import CampaignConfig
from annotations.campaign.models import Assignment, Event, Question
from annotations.campaign.store import Store
from annotations.campaign.types import Item, NewGold, NewImage, NewPair, Prolific
from annotations.errors import BeyondError
from tests.annotations.campaign.conftest import Clock, MakeCampaign, Person


def expected_of(store: Store) -> dict[int, str]:
    """Known answers by question number, read from the tables behind the store's back."""
    with store.database.read() as connection:
        rows = connection.execute(sa.select(Question.id, Question.expected).where(Question.role != "work"))
        return {row.id: row.expected for row in rows}


def question_of(store: Store, token: str) -> int:
    with store.database.read() as connection:
        statement = sa.select(Assignment.question_ref).where(Assignment.token == token)
        return int(connection.execute(statement).scalar_one())


def counts(store: Store) -> list[tuple[int, int, int]]:
    """(counted, leased, wanted) of each pair."""
    with store.database.read() as connection:
        columns = (Question.counted, Question.leased, Question.wanted)
        rows = connection.execute(sa.select(*columns).where(Question.role == "work").order_by(Question.id))
        return [(row[0], row[1], row[2]) for row in rows]


# Giving questions ------------------------------------------------------------------------------------------


def test_every_pair_gets_its_votes_and_no_more_and_none_twice_from_a_rater(make: MakeCampaign) -> None:
    store = make(12, votes=3, accept_at=2, prefetch=5)
    people = [Person(store) for _ in range(6)]
    given: dict[int, list[str]] = {person.id: [] for person in people}
    for _ in range(20):
        for person in people:
            for token in person.ask(5):
                given[person.id].append(token)
                assert person.answer(token) == "recorded"
    assert counts(store) == [(3, 0, 3)] * 12
    for tokens in given.values():
        assert len(set(tokens)) == len(tokens)
    assert sum(map(len, given.values())) == 36
    assert {store.progress(person.id).stage for person in people} == {"done"}
    assert store.check() == []


def test_leases_in_flight_count_towards_the_redundancy(make: MakeCampaign) -> None:
    store = make(3, votes=2, accept_at=2)
    a, b, c = Person(store), Person(store), Person(store)
    assert len(a.ask()) == len(b.ask()) == 3
    batch = store.questions(c.id, 8)
    assert batch.questions == ()
    assert batch.progress.waiting
    assert counts(store) == [(0, 2, 2)] * 3


def test_asking_again_gives_the_same_questions(make: MakeCampaign) -> None:
    store = make(30)
    person = Person(store)
    first = person.ask(4)
    assert person.ask(4) == first
    assert person.ask(6)[:4] == first
    person.answer(first[0])
    assert person.ask(6)[:3] == first[1:4]


def test_a_lease_expires_and_returns_and_a_late_answer_counts_only_where_there_is_room(
    make: MakeCampaign, clock: Clock
) -> None:
    store = make(2, votes=1, accept_at=1, lease_seconds=60)
    slow, quick = Person(store), Person(store)
    late = slow.ask()
    assert len(late) == 2
    assert quick.ask() == []
    clock.now += 61
    mine = quick.ask()
    assert len(mine) == 2
    first = question_of(store, mine[0])
    quick.answer(mine[0])
    clock.now += 61  # the second lease of `quick` expires, unanswered
    by_question = {question_of(store, token): token for token in late}
    assert slow.answer(by_question[first]) == "recorded"
    other = next(token for question, token in by_question.items() if question != first)
    assert slow.answer(other, "no") == "recorded"
    votes = store.votes()
    assert sorted(zip(votes.question_ids[votes.question].tolist(), votes.counted.tolist())) == sorted(
        [(first, True), (first, False), (question_of(store, other), True)]
    )
    assert store.check() == []


def test_priority_goes_first(make: MakeCampaign) -> None:
    store = make(500, priority=lambda i: float(i), votes=1, accept_at=1, prefetch=50)
    person = Person(store)
    for _ in range(4):
        for token in person.ask(50):
            person.answer(token)
    with store.database.read() as connection:
        statement = sa.select(Question.priority).where(Question.counted > 0)
        judged = sorted(connection.execute(statement).scalars())
    # Blocks of 64: the first three are done, and the rest is of the fourth.
    assert len(judged) == 200
    assert judged[0] >= 500 - 4 * 64
    assert judged[-192] >= 500 - 3 * 64


def test_each_rater_has_an_order_of_their_own(make: MakeCampaign) -> None:
    store = make(60, prefetch=50)
    orders = [tuple(question_of(store, token) for token in Person(store).ask(50)) for _ in range(3)]
    assert len(set(orders)) == 3
    rank = np.corrcoef([np.argsort(np.argsort(order[:40])) for order in orders])
    assert (np.abs(rank[np.triu_indices(3, 1)]) < 0.5).all()


def test_an_image_does_not_come_twice_in_a_row_while_others_are_there(make: MakeCampaign) -> None:
    store = make(40, classes_per_image=4)
    person = Person(store)
    with store.database.read() as connection:
        rows = connection.execute(sa.select(Question.id, Question.image_ref))
        images = {row[0]: row[1] for row in rows}
    batch = [images[question_of(store, token)] for token in person.ask(8)]
    assert len(set(batch)) == 8


def test_a_quota_ends_the_work(make: MakeCampaign) -> None:
    store = make(30, quota=7)
    person = Person(store)
    tokens = person.ask(8)
    assert len(tokens) == 7
    for token in tokens:
        assert person.answer(token) == "recorded"
    assert store.progress(person.id).stage == "done"
    assert person.ask() == []
    assert store.resume(person.id) == "done"


def test_stopping_early_gives_the_verdicts_of_full_voting_with_fewer_votes(make: MakeCampaign) -> None:
    """The same raters, giving the same answers, with and without: every verdict is the same."""
    generator = random.Random(5)
    answer = {
        (r, q): generator.choice(["yes", "yes", "yes", "no", "maybe"]) for r in range(5) for q in range(1000)
    }
    store = make(80, stop_early=True, prefetch=50)
    people = [Person(store) for _ in range(5)]
    for _ in range(3):
        for number, person in enumerate(people):
            for token in person.ask(50):
                person.answer(token, answer[number, question_of(store, token)])  # type: ignore[arg-type]
    asked = sorted({int(q) for q in store.votes().question_ids})
    full = {q: Counter(answer[r, q] for r in range(5)) for q in asked}
    columns = (Question.id, Question.yes, Question.no, Question.counted)
    with store.database.read() as connection:
        rows = connection.execute(sa.select(*columns).where(Question.role == "work")).all()
    for row in rows:
        for kind, got in (("yes", row.yes), ("no", row.no)):
            assert (full[row.id][kind] >= 4) == (got >= 4)
    assert 0.5 < sum(row.counted for row in rows) / (5 * 80) < 0.95
    status = store.status()
    assert status.coverage.complete == 80
    assert status.coverage.in_flight == 0


# Taking answers --------------------------------------------------------------------------------------------


def test_the_same_key_is_the_same_answer(make: MakeCampaign) -> None:
    store = make(4)
    person = Person(store)
    one, two, *_ = person.ask()
    item = person.item(one, "yes")
    statuses = [store.submit(person.id, [item, item])[i].status for i in (0, 1)]
    assert statuses == ["recorded", "duplicate"] or statuses == ["recorded", "recorded"]
    again = store.submit(person.id, [item, person.item(two, "no")])
    assert [outcome.status for outcome in again] == ["duplicate", "recorded"]
    reused = Item(item.key, "answer", two, "no", 700)
    assert store.submit(person.id, [reused])[0].reason == "key-reused"
    assert store.progress(person.id).answered == 2
    assert store.check() == []


def test_another_key_does_not_answer_again(make: MakeCampaign) -> None:
    store = make(4)
    person = Person(store)
    token = person.ask()[0]
    assert person.answer(token, "yes") == "recorded"
    assert person.answer(token, "no") == "already-answered"
    assert sum(c for c, _, _ in counts(store)) == 1


def test_a_key_belongs_to_its_rater(make: MakeCampaign) -> None:
    store = make(4)
    a, b = Person(store), Person(store)
    for person in (a, b):
        item = person.item(person.ask()[0], key="the-same-key")
        assert store.submit(person.id, [item])[0].status == "recorded"
    assert sum(c for c, _, _ in counts(store)) == 2


def test_another_raters_question_is_unknown(make: MakeCampaign) -> None:
    store = make(4)
    a, b = Person(store), Person(store)
    token = a.ask()[0]
    assert b.answer(token) == "unknown-question"
    assert store.picture(b.id, token) is None
    assert store.picture(a.id, token) is not None


def test_undo_is_an_event_and_the_question_comes_back(make: MakeCampaign) -> None:
    store = make(10, undo_limit=2)
    person = Person(store)
    tokens = person.ask()
    for token in tokens[:4]:
        person.answer(token)
    assert store.progress(person.id).undoable == (tokens[3], tokens[2])
    outcomes = store.submit(person.id, [person.undo(tokens[3]), person.undo(tokens[1])])
    assert [outcome.status for outcome in outcomes] == ["recorded", "recorded"]  # 1 is among the last two now
    assert store.submit(person.id, [person.undo(tokens[3])])[0].reason == "nothing-to-undo"
    assert person.ask()[:2] == [tokens[1], tokens[3]]
    assert person.answer(tokens[3], "no") == "recorded"
    votes = store.votes()
    given = dict(zip(votes.question_ids[votes.question].tolist(), votes.answer.tolist()))
    assert given == {question_of(store, tokens[i]): code for i, code in ((0, 2), (2, 2), (3, 0))}
    with store.database.read() as connection:
        kinds = Counter(
            connection.execute(sa.select(Event.kind).where(Event.client_key.is_not(None))).scalars()
        )
    assert kinds == {"answer": 5, "undo": 2}
    assert store.check() == []


def test_undo_reaches_back_so_far_and_no_further(make: MakeCampaign) -> None:
    store = make(10, undo_limit=2)
    person = Person(store)
    tokens = person.ask()
    for token in tokens[:4]:
        person.answer(token)
    assert store.submit(person.id, [person.undo(tokens[0])])[0].reason == "too-late-to-undo"


def test_an_undone_answer_keeps_its_place_so_that_nobody_else_fills_it(make: MakeCampaign) -> None:
    store = make(1, votes=1, accept_at=1)
    a, b = Person(store), Person(store)
    token = a.ask()[0]
    a.answer(token, "yes")
    store.resume(a.id)
    assert store.progress(a.id).stage == "work"
    assert store.submit(a.id, [a.undo(token)])[0].status == "recorded"
    assert b.ask() == []
    a.answer(token, "no")
    assert counts(store) == [(1, 0, 1)]


def test_maybe_can_be_ruled_out(make: MakeCampaign) -> None:
    store = make(4, maybe_allowed=False)
    person = Person(store)
    assert person.answer(person.ask()[0], "maybe") == "maybe-not-allowed"


def test_events_cannot_be_changed(make: MakeCampaign) -> None:
    store = make(4)
    person = Person(store)
    person.answer(person.ask()[0])
    for statement in (sa.update(Event).values(answer="no"), sa.delete(Event)):
        with pytest.raises(sa.exc.DBAPIError, match="only ever added"):
            store.database.transact(lambda connection, s=statement: connection.execute(s))  # type: ignore[misc]


def test_many_threads_at_once_keep_the_redundancy(make: MakeCampaign) -> None:
    store = make(40, votes=3, accept_at=2, prefetch=4, gold_rate=0.2, quality_floor=0)
    people = [Person(store) for _ in range(8)]

    def work(person: Person) -> int:
        given = 0
        for _ in range(60):
            for token in person.ask(4):
                given += person.answer(token) == "recorded"
        return given

    with ThreadPoolExecutor(8) as pool:
        total = sum(pool.map(work, people))
    assert counts(store) == [(3, 0, 3)] * 40
    with store.database.read() as connection:
        recorded = connection.execute(sa.select(sa.func.count()).where(Event.kind == "answer")).scalar_one()
    assert recorded == total >= 120
    assert store.check() == []


# Gold ------------------------------------------------------------------------------------------------------


def test_practice_gives_feedback_and_qualification_decides(make: MakeCampaign) -> None:
    store = make(20, 30, 4, practice_questions=3, qualification_questions=6, qualification_floor=0.8)
    known = expected_of(store)
    good, bad = Person(store), Person(store)
    for person, right in ((good, True), (bad, False)):
        batch = store.questions(person.id, 8)
        assert batch.progress.stage == "practice"
        assert batch.progress.step_of == 3 == len(batch.questions)
        for question in batch.questions:
            expected = known[question_of(store, question.token)]
            outcome = store.submit(person.id, [person.item(question.token, "yes")])[0]
            assert outcome.feedback is not None
            assert (outcome.feedback.right, outcome.feedback.expected) == (expected == "yes", expected)
            assert outcome.feedback.explanation.startswith("because")
        batch = store.questions(person.id, 8)
        assert batch.progress.stage == "qualification"
        assert len(batch.questions) == 6
        answers = [known[question_of(store, question.token)] for question in batch.questions]
        assert Counter(answers) == {"yes": 3, "no": 3}
        for question, answer in zip(batch.questions, answers):
            given = answer if right else {"yes": "no", "no": "yes"}[answer]
            person.answer(question.token, given)  # type: ignore[arg-type]
    assert store.progress(good.id).stage == "work"
    failed = store.progress(bad.id)
    assert failed.stage == "failed"
    assert failed.qualification_right == 0
    assert bad.ask() == []
    assert len(good.ask()) == 8


def test_a_second_attempt_asks_other_questions(make: MakeCampaign) -> None:
    store = make(20, 30, qualification_questions=4, qualification_attempts=2)
    known, person = expected_of(store), Person(store)
    rounds = []
    for _ in range(2):
        tokens = person.ask()
        rounds.append(set(tokens))
        for token in tokens:
            person.answer(token, {"yes": "no", "no": "yes"}[known[question_of(store, token)]])  # type: ignore[arg-type]
    assert len(rounds[0]) == len(rounds[1]) == 4
    assert not rounds[0] & rounds[1]
    assert store.progress(person.id).stage == "failed"


def test_gold_is_mixed_in_at_its_rate_and_looks_like_any_question(make: MakeCampaign) -> None:
    store = make(400, 150, gold_rate=0.2, prefetch=50, quality_floor=0)
    known, person = expected_of(store), Person(store)
    seen: list[bool] = []
    shapes = set()
    while len(seen) < 400:
        for question in store.questions(person.id, 50).questions:
            seen.append(question_of(store, question.token) in known)
            outcome = store.submit(person.id, [person.item(question.token, "no")])[0]
            shapes.add(
                (len(question.token), question.purpose, question.arm, outcome.status, outcome.feedback)
            )
    assert shapes == {(22, "work", "", "recorded", None)}
    gold = np.array(seen[:400])
    assert abs(gold.mean() - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 400)
    runs = np.diff(np.flatnonzero(gold))
    assert len(set(runs.tolist())) > 5  # no fixed distance gives gold away


def test_gold_does_not_come_alone_where_nothing_is_left_to_judge(make: MakeCampaign) -> None:
    store = make(5, 50, gold_rate=0.5, prefetch=4, quality_floor=0)
    person, given = Person(store), 0
    for _ in range(30):
        for token in person.ask(4):
            person.answer(token)
            given += 1
    known = expected_of(store)
    with store.database.read() as connection:
        asked = connection.execute(sa.select(Assignment.question_ref)).scalars().all()
    assert sum(q not in known for q in asked) == 5
    assert given == len(asked) < 30
    assert store.progress(person.id).stage == "done"


def test_a_rater_below_the_floor_is_paused_and_their_votes_are_kept_and_replaced(make: MakeCampaign) -> None:
    store = make(60, 60, gold_rate=0.4, votes=1, accept_at=1, quality_floor=0.7)
    known, person = expected_of(store), Person(store)
    while store.progress(person.id).stage == "work":
        for token in person.ask():
            expected = known.get(question_of(store, token), "no")
            person.answer(token, {"yes": "no", "no": "yes"}[expected])  # type: ignore[arg-type]
    status = store.status()
    report = status.raters[0]
    assert report.stage == "paused"
    assert report.gold_right == 0
    assert report.quality < 0.4
    assert report.gold_seen <= 8  # ten wrong in a row are far more than it takes
    assert report.counted == 0
    assert status.coverage.answers == 0
    votes = store.votes()
    assert len(votes.answer) == report.answered
    assert not votes.counted.any()
    assert store.check() == []
    # What came from the outbox of a paused rater is kept as well.
    honest = Person(store)
    assert len(honest.ask()) == 8
    token = next(token for token in honest.ask() if question_of(store, token) not in known)  # no gold
    replaced = question_of(store, token)
    honest.answer(token, "no")
    store.reinstate(person.id)
    again = store.status()
    assert again.raters[0].stage == "work"
    votes = store.votes()
    mine = votes.raters[votes.rater] == report.pseudonym
    which = votes.question_ids[votes.question]
    assert not votes.counted[mine & (which == replaced)].any()
    assert store.check() == []
    assert store.questions(person.id, 1).progress.stage == "work"  # gold from before is forgiven


def test_answers_of_a_paused_rater_in_flight_are_kept_and_flagged(make: MakeCampaign) -> None:
    store = make(10, votes=1, accept_at=1)
    a, b = Person(store), Person(store)
    tokens = a.ask()
    store.pause(a.id, "asked to")
    assert a.ask() == []
    assert a.answer(tokens[0]) == "recorded"
    assert not store.votes().counted.any()
    assert len(b.ask()) == 8
    assert store.check() == []


def test_maybe_is_no_way_around_gold(make: MakeCampaign) -> None:
    store = make(300, 200, gold_rate=0.5)
    person = Person(store)
    for _ in range(40):
        for token in person.ask():
            person.answer(token, "maybe")
    assert store.progress(person.id).stage == "paused"


# People ----------------------------------------------------------------------------------------------------


def test_an_invitation_works_once_and_only_its_hash_is_stored(make: MakeCampaign, clock: Clock) -> None:
    store = make(2)
    token = store.invite("rater")[0].token
    assert len(token) >= 22
    assert store.invitation_role(token) == "rater"
    session = store.accept(token)
    assert session is not None
    assert store.accept(token) is None
    assert store.invitation_role(token) is None
    assert store.accept("x" * 22) is None
    old = store.invite(days=1)[0].token
    clock.now += 86_401
    assert store.accept(old) is None
    with store.database.read() as connection:
        for table in ("invitations", "sessions"):
            stored = str(connection.execute(sa.text(f"SELECT * FROM {table}")).all())
            assert token not in stored
            assert session.token not in stored


def test_sessions_end(make: MakeCampaign, clock: Clock) -> None:
    store = make(2)
    person = Person(store)
    who = store.person(person.session)
    assert who is not None
    assert (who.rater_id, who.role, who.stage) == (person.id, "rater", "work")
    store.end_session(person.session)
    assert store.person(person.session) is None
    other = Person(store)
    clock.now += 15 * 86_400
    assert store.person(other.session) is None


def test_a_rater_comes_back_from_another_browser(make: MakeCampaign) -> None:
    store = make(2)
    person = Person(store)
    session = store.accept(store.invite(rater_id=person.id)[0].token)
    assert session is not None
    assert session.rater_id == person.id


def test_a_prolific_participant_comes_once(make: MakeCampaign) -> None:
    store = make(2)
    token = store.invite(uses=5)[0].token
    assert store.accept(token, prolific=Prolific("p1", "s", "x")) is not None
    assert store.accept(token, prolific=Prolific("p1", "s", "y")) is None
    assert store.accept(token, prolific=Prolific("p2", "s", "z")) is not None


def test_consent_is_to_the_text_that_was_shown(make: MakeCampaign) -> None:
    store = make(2, consent_version="2")
    session = store.accept(store.invite()[0].token)
    assert session is not None
    with pytest.raises(BeyondError, match="read it again"):
        store.consent(session.rater_id, "1")
    assert store.questions(session.rater_id, 5).questions == ()
    assert store.consent(session.rater_id, "2") == "instructions"
    assert store.read_instructions(session.rater_id) == "work"


def test_withdrawal_takes_everything_back_until_the_campaign_is_frozen(make: MakeCampaign) -> None:
    store = make(6, votes=1, accept_at=1)
    a, b = Person(store), Person(store)
    for token in a.ask(3):
        a.answer(token)
    for token in b.ask(2):
        b.answer(token)
    store.withdraw(a.id)
    assert len(store.votes().answer) == 2
    assert store.status().coverage.answers == 2
    assert len(b.ask()) == 4
    assert store.check() == []
    store.freeze()
    with pytest.raises(BeyondError, match="frozen"):
        store.withdraw(b.id)
    token = b.item(next(iter(b.ask())) if b.ask() else "none").token
    assert b.answer(token) in ("not-now", "unknown-question")
    assert store.is_frozen()
    assert len(store.votes().answer) == 2


def test_pseudonyms_are_salted(make: MakeCampaign, tmp_path: Path) -> None:
    store = make(2)
    who = store.person(Person(store).session)
    assert who is not None
    assert who.pseudonym.startswith("r-")
    assert len(who.pseudonym) == 18
    other = Store.create(
        str(tmp_path / "other.db"),
        CampaignConfig(),
        images=[NewImage("i", "i.jpg")],
        pairs=[NewPair("i", 0)],
    )
    first = other.accept(other.invite()[0].token)
    assert first is not None
    them = other.person(first.token)
    other.close()
    assert them is not None
    assert them.rater_id == who.rater_id
    assert them.pseudonym != who.pseudonym


def test_a_rater_of_a_study_stays_in_one_arm(make: MakeCampaign, url: str) -> None:
    images = [NewImage(f"i{n}", f"i{n}.jpg") for n in range(10)]
    arms = ("none", "feature")
    store = Store.create(
        url,
        CampaignConfig(
            votes=12, accept_at=7, arms=arms, practice_questions=0, qualification_questions=0, gold_rate=0
        ),
        images=images,
        pairs=[NewPair(f"i{n}", 1, arm=arm) for n in range(10) for arm in arms],
    )
    people = [Person(store) for _ in range(12)]
    seen = [{question.arm for question in store.questions(person.id, 8).questions} for person in people]
    assert {arm for one in seen for arm in one} == set(arms)
    assert all(len(one) == 1 for one in seen)
    store.close()


# Managing --------------------------------------------------------------------------------------------------


def test_status_counts_what_was_answered(make: MakeCampaign, clock: Clock) -> None:
    store = make(4, votes=2, accept_at=2, gold_rate=0)
    a, b = Person(store), Person(store)
    for token in a.ask():
        a.answer(token, "yes")
    clock.now += 3600 * 2
    for token in b.ask():
        b.answer(token, "yes" if question_of(store, token) % 2 else "no")
    status = store.status()
    assert (status.coverage.pairs, status.coverage.complete, status.coverage.answers) == (4, 4, 8)
    assert status.coverage.undecided == status.flagged == status.verdicts["unsure"]
    assert status.coverage.decided == status.verdicts["accepted"] == 4 - status.flagged
    through = status.throughput
    assert (through.total, through.last_hour, through.last_day, through.active) == (8, 4, 8, 1)
    assert sum(number for _, number in through.hours) == 8
    assert len(through.hours) == 48
    assert through.median_ms == 700
    assert through.seconds_left == 0
    assert [report.answered for report in status.raters] == [4, 4]


def test_ties_are_adjudicated(make: MakeCampaign) -> None:
    store = make(2, votes=2, accept_at=2)
    a, b = Person(store), Person(store)
    for person, answer in ((a, "yes"), (b, "no")):
        for token in person.ask():
            person.answer(token, answer)  # type: ignore[arg-type]
    total, pairs = store.flagged()
    assert total == 2
    assert {(pair.yes, pair.no, pair.maybe) for pair in pairs} == {(1, 1, 0)}
    store.adjudicate(pairs[0].question_id, "accepted", note="plainly there")
    assert store.status().verdicts == {"accepted": 1, "rejected": 0, "unsure": 1}
    assert store.flagged()[1][-1].verdict == "accepted"
    store.adjudicate(pairs[0].question_id, None)
    assert store.status().verdicts["accepted"] == 0
    with pytest.raises(BeyondError, match="no pair 999"):
        store.adjudicate(999, "accepted")


def test_gold_confusion_counts_answers_to_gold(make: MakeCampaign) -> None:
    store = make(20, 8, qualification_questions=4, qualification_floor=0)
    known = expected_of(store)
    asked: Counter[str] = Counter()
    for _ in range(3):
        person = Person(store)
        for token in person.ask():
            asked[known[question_of(store, token)]] += 1
            person.answer(token, "yes")
    confusion = store.status().gold
    assert {k: v["yes"] for k, v in confusion.counts.items()} == dict(asked)
    assert all(hard.expected == "no" for hard in confusion.hardest)


# Making ----------------------------------------------------------------------------------------------------


def test_a_database_holds_one_campaign(make: MakeCampaign, url: str) -> None:
    make(2)
    with pytest.raises(BeyondError, match="already"):
        Store.create(url, CampaignConfig(), images=[NewImage("i", "i.jpg")], pairs=[NewPair("i", 1)])
    with pytest.raises(BeyondError, match="no campaign"):
        Store.open("sqlite:////nonexistent/campaign.db")


@pytest.mark.parametrize(
    ("images", "pairs", "gold", "message"),
    [
        ([NewImage("a", "a.jpg")], [NewPair("b", 1)], [], "no file for image 'b'"),
        ([NewImage("a", "a.jpg")], [NewPair("a", 1000)], [], "outside 0..999"),
        ([NewImage("a", "a.jpg")], [NewPair("a", 1), NewPair("a", 1)], [], "twice"),
        ([NewImage("a", "a.jpg")], [NewPair("a", 1)], [NewGold("a", 1, "yes")], "no pair to judge"),
        ([NewImage("a", "a.jpg")], [NewPair("a", 1, sampling_probability=0.0)], [], "sampling probability"),
        ([NewImage("a", "a.jpg"), NewImage("a", "b.jpg")], [NewPair("a", 1)], [], "unique"),
        ([NewImage("a", "a.jpg")], [NewPair("a", 1, arm="x")], [], "arm"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, images: list[NewImage], pairs: list[NewPair], gold: list[NewGold], message: str
) -> None:
    with pytest.raises(BeyondError, match=message):
        Store.create(str(tmp_path / "c.db"), CampaignConfig(), images=images, pairs=pairs, gold=gold)
