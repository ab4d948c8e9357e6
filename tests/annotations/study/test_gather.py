"""Studies in a campaign's database: arms, checks, and what is found to have been changed."""

from __future__ import annotations

import json
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from annotations.campaign.config import CampaignConfig
from annotations.campaign.store import Store
from annotations.campaign.types import Answer, ImportedVote, Item, NewGold, NewImage, NewPair
from annotations.errors import BeyondError
from annotations.study import gather, preregistration
from annotations.study.preregistration import MANIFEST_FILE
from annotations.study.stimuli import read_stimuli
from tests.annotations.study.studies import ARMS, make_study, png
from tests.postgresql import postgresql

__all__ = ["postgresql"]


@pytest.fixture(params=["sqlite", "postgresql"])
def db(request: pytest.FixtureRequest) -> str | None:
    """A new database of each kind; None is the one in the study's folder."""
    if request.param == "sqlite":
        return None
    name: str = request.getfixturevalue("postgresql").new_database()
    return name


class Rater:
    """Somebody who has read everything and answers."""

    def __init__(self, store: Store) -> None:
        self.store = store
        session = store.accept(store.invite()[0].token)
        assert session is not None
        self.session, self.id = session.token, session.rater_id
        store.consent(self.id, store.config.consent_version)
        store.read_instructions(self.id)
        self.seen: list[tuple[str, str]] = []  # purpose and arm, in order

    @property
    def arm(self) -> str:
        person = self.store.person(self.session)
        assert person is not None
        return person.arm

    def go(self, answer: Callable[[int], Answer], *, most: int = 1000, want: int = 3) -> None:
        """Answer whatever comes, by the class that is asked about."""
        while most > 0:
            found = self.store.questions(self.id, want).questions
            if not found:
                return
            for question in found[:most]:
                self.seen.append((question.purpose, question.arm))
                token, said = question.token, answer(question.class_index)
                item = Item(f"key-{token}", "answer", token, said, 700)
                assert self.store.submit(self.id, [item])[0].status == "recorded"
            most -= len(found)


def test_each_rater_is_in_one_arm_and_answers_all_of_it(tmp_path: Path, db: str | None) -> None:
    store = make_study(tmp_path / "study", db=db, items=40, checks=4, practice=2)
    gather.check(tmp_path / "study", store)
    raters = [Rater(store) for _ in range(6)]
    for rater in raters:
        rater.go(lambda c: "yes" if c % 3 else "no")
    arms = [rater.arm for rater in raters]
    # In blocks of three each arm comes once, in an order that is not the same in all.
    assert Counter(arms[:3]) == Counter(arms[3:]) == Counter(ARMS)
    for rater in raters:
        assert Counter(purpose for purpose, _ in rater.seen) == {"practice": 2, "work": 44}
        assert {arm for _, arm in rater.seen} == {rater.arm}
        assert store.progress(rater.id).stage == "done"
    assert store.check() == []
    store.close()

    answers = gather.gather(tmp_path / "study", db)
    assert answers.made_up
    table = answers.answers.merge(answers.items, on="item", suffixes=("", "_of_item"))
    assert len(table) == 6 * 46
    assert (table["answer"] == ["yes" if c % 3 else "no" for c in table["shown_class"]]).all()
    assert (table["seconds"] == 0.7).all()
    assert Counter(table.groupby("rater")["arm"].first()) == Counter(dict.fromkeys(ARMS, 2))
    roles = table.groupby(["rater", "role"]).size().unstack()
    assert (roles == [4, 2, 40]).all(axis=None)  # attention, practice, work
    assert (table["role"].eq("work") == table["expected"].eq("")).all()
    plan = preregistration.read(tmp_path / "study")
    assert set(table["preregistration"]) == {plan.sha256}
    assert set(table["pack"]) == {plan.pack_sha256}
    orders = table[table["role"] == "work"].sort_values("position").groupby("rater")["item"].agg(tuple)
    assert orders.nunique() == 6
    # One check in each stretch of eleven, where it falls for each rater by chance.
    checks = table[table["role"] == "attention"].assign(place=lambda t: t["position"] - 2 - 1)
    for _, places in checks.groupby("rater")["place"]:
        assert sorted(places // 11) == [0, 1, 2, 3]
    assert len({tuple(sorted(places)) for _, places in checks.groupby("rater")["place"]}) > 1


def test_raters_at_the_same_moment_all_get_everything(tmp_path: Path, db: str | None) -> None:
    """While others have questions locked, nobody is done early, and checks stay where they belong."""
    store = make_study(tmp_path / "study", db=db, items=20, checks=4, practice=0)
    raters = [Rater(store) for _ in range(6)]
    threads = [threading.Thread(target=rater.go, args=(lambda _: "yes",)) for rater in raters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    while any(store.progress(rater.id).stage != "done" for rater in raters):
        for rater in raters:  # who found all locked at some moment asks again, as the page does
            rater.go(lambda _: "yes")
    assert store.check() == []
    store.close()
    answers = gather.gather(tmp_path / "study", db).answers
    assert (answers.groupby(["rater", "role"]).size().unstack() == [4, 20]).all(axis=None)
    checks = answers[answers["role"] == "attention"]
    for _, places in checks.groupby("rater")["position"]:
        assert sorted((places - 1) // 6) == [0, 1, 2, 3]


def test_any_item_may_come_first(tmp_path: Path) -> None:
    """Where an item comes is each rater's own chance: were it not, time and item could not be told apart."""
    store = make_study(tmp_path / "study", items=100, checks=0, practice=0, settings={"prefetch": 20})
    raters = [Rater(store) for _ in range(24)]
    first: dict[str, set[int]] = {arm: set() for arm in ARMS}
    for rater in raters:
        held = store.questions(rater.id, 20).questions
        assert len(held) == 20
        first[rater.arm] |= {question.class_index for question in held}
    # Of 100 items eight raters have 83 among their first 20, give or take 3.
    assert all(len(items) > 70 for items in first.values())
    store.close()


def test_arms_are_dealt_in_blocks_and_by_a_secret_key() -> None:
    from annotations.campaign.assignment import arm

    dealt = [[arm(bytes([key]) * 32, n, ARMS) for n in range(300)] for key in (1, 2)]
    for arms in dealt:
        assert all(set(arms[n : n + 3]) == set(ARMS) for n in range(0, 300, 3))
        first = Counter(arms[n] for n in range(0, 300, 3))
        assert min(first.values()) > 15  # 33 expected; below 16 once in 10,000 keys
    assert dealt[0] != dealt[1]
    assert arm(b"k", 5, ()) == ""


def test_whoever_returns_is_in_their_arm_and_sees_nothing_of_another(tmp_path: Path) -> None:
    store = make_study(tmp_path / "study")
    first, second = Rater(store), Rater(store)
    assert first.arm != second.arm
    first.go(lambda _: "yes", most=3)
    before = [q.token for q in store.questions(first.id, 4).questions]
    link = store.invite(rater_id=first.id)[0].token
    again = store.accept(link)
    assert again is not None
    assert again.rater_id == first.id
    person = store.person(again.token)
    assert person is not None
    assert person.arm == first.arm
    assert [q.token for q in store.questions(first.id, 4).questions] == before
    # Nor can the other answer these, or look at their pictures.
    assert store.submit(second.id, [Item("key-of-second", "answer", before[0], "no", 700)])[0].reason == (
        "unknown-question"
    )
    assert store.picture(second.id, before[0]) is None
    assert store.picture(first.id, before[0]) is not None
    assert store.check() == []
    # Were one to get there all the same, the check of the database would find it.
    arm = next(a for a in ARMS if a != first.arm)
    store.database.transact(
        lambda c: c.execute(sa.text("UPDATE raters SET arm = :a WHERE id = :i"), {"a": arm, "i": first.id})
    )
    assert any("another arm" in line for line in store.check())
    store.close()


def test_who_is_done_or_stopped_cannot_go_on_and_who_withdrew_is_gone(tmp_path: Path) -> None:
    store = make_study(tmp_path / "study")
    done, stopped, gone = Rater(store), Rater(store), Rater(store)
    done.go(lambda _: "yes")
    stopped.go(lambda _: "no", most=6)
    held = store.questions(stopped.id, 4).questions[0]
    assert store.stop(stopped.id) == "done"
    late = Item("key-too-late", "answer", held.token, "yes", 9)
    assert store.submit(stopped.id, [late])[0].reason == "not-now"
    assert store.questions(stopped.id, 4).questions == ()
    assert {store.resume(done.id), store.resume(stopped.id)} == {"done"}
    gone.go(lambda _: "yes")
    store.withdraw(gone.id)
    assert store.check() == []
    assert store.status().coverage.wanted == 12 * 3 * 2
    store.close()
    answers = gather.gather(tmp_path / "study").answers
    assert Counter(answers.groupby("rater").size()) == {18: 1, 6: 1}


def test_votes_from_elsewhere_stay_in_one_arm(tmp_path: Path) -> None:
    store = make_study(tmp_path / "study")
    votes = [ImportedVote("Ann", "yes", image_id="image000", class_index=0, arm="example")]
    assert store.import_votes(votes, origin="paper")["recorded"] == 1
    given = store.given()
    assert [(one.arm, one.answer) for one in given] == [("example", "yes")]
    other = ImportedVote("Ann", "yes", image_id="image002", class_index=2, arm="feature")
    with pytest.raises(BeyondError, match="cannot answer in 'feature'"):
        store.import_votes([other], origin="paper")
    with pytest.raises(BeyondError, match="belongs to one"):
        store.import_votes([*votes, other], origin="paper")
    assert store.given() == given
    assert store.check() == []
    store.close()


def test_what_was_changed_is_found(tmp_path: Path) -> None:
    """At the start of the server, and in gathering, with one line each."""
    study, other = tmp_path / "study", tmp_path / "other"
    make_study(other, first=3).close()
    store = make_study(study)
    pack = study / preregistration.PACK_FOLDER
    picture = sorted(pack.glob("*.png"))[0]

    def refused(message: str) -> None:
        with pytest.raises(BeyondError, match=message) as caught:
            gather.check(study, store)
        assert "\n" not in str(caught.value)

    gather.check(study, store)
    original = picture.read_bytes()
    picture.write_bytes(png(999))
    refused("was changed: its checksum is not its name")
    with pytest.raises(BeyondError, match="was changed"):
        gather.gather(study)
    picture.unlink()
    refused(r"1 of 54 pictures are missing .*, the first is [0-9a-f]{64}\.png")
    gather.gather(study)  # who only analyses may have no pictures
    picture.write_bytes(original)
    gather.check(study, store)

    manifest = pack / MANIFEST_FILE
    text = manifest.read_text()
    manifest.write_text(text.replace('"confidence": 0.5', '"confidence": 0.6', 1))
    refused("stimuli of another study, or was changed")
    shutil.copy(other / preregistration.PACK_FOLDER / MANIFEST_FILE, manifest)
    refused("stimuli of another study")
    manifest.write_text(text)

    plan = study / preregistration.PREREGISTRATION_FILE
    text = plan.read_text()
    plan.write_text(text.replace('"raters_per_arm": 2', '"raters_per_arm": 9'))
    refused("is not the one that .* was made with")
    with pytest.raises(BeyondError, match="changed after answers were given"):
        gather.gather(study)
    plan.write_text(text)
    gather.check(study, store)

    # A database whose questions show other pictures than the list of stimuli says.
    change = sa.text("UPDATE questions SET beside = '' WHERE arm = 'feature' AND class_index = 1")
    store.database.transact(lambda c: c.execute(change))
    refused("do not belong together: 2 questions differ, the first is .*'image001', class 1, arm feature")
    store.close()


def test_damaged_stimuli_get_one_line(tmp_path: Path) -> None:
    make_study(tmp_path / "study").close()
    manifest = tmp_path / "study" / preregistration.PACK_FOLDER / MANIFEST_FILE
    whole = json.loads(manifest.read_text())
    changes: list[tuple[Callable[[Any], object], str]] = [
        (lambda m: m["pictures"].pop(), "one picture for each arm"),
        (lambda m: m["items"].append(m["items"][0]), "listed twice"),
        (lambda m: m["items"][1].update(image_id=m["items"][0]["image_id"]), "would see it twice"),
        (lambda m: m["items"][0].update(expected="yes"), "known answer"),
        (lambda m: m.update(colour="red"), "colour"),
    ]
    for change, message in changes:
        data = json.loads(json.dumps(whole))
        change(data)
        manifest.write_text(json.dumps(data))
        with pytest.raises(BeyondError, match=message):
            read_stimuli(tmp_path / "study")
    manifest.write_text(json.dumps(whole))
    with pytest.raises(BeyondError, match="changed after it was written"):
        read_stimuli(tmp_path / "study")


def test_what_is_no_study_gets_one_line(tmp_path: Path) -> None:
    with pytest.raises(BeyondError, match="beyond study create"):
        gather.open_study(tmp_path)
    store = Store.create(
        str(tmp_path / "campaign.db"),
        CampaignConfig(),
        images=[NewImage("i", "i.jpg")],
        pairs=[NewPair("i", 1)],
        gold=[NewGold("i", 2, "no")],
    )
    with pytest.raises(BeyondError, match="no study"):
        gather.check(tmp_path, store)
    store.close()
    with pytest.raises(BeyondError, match="a campaign and no study"):
        gather.open_study(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"votes": 3}, "votes: a study decides this"),
        ({"consnet": "…"}, "consnet"),
        ({"minimum_dwell_ms": -1}, "minimum_dwell_ms"),
    ],
)
def test_settings_that_are_not_a_studys_are_refused(
    tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(BeyondError, match=message):
        make_study(tmp_path / "study", settings=settings)
