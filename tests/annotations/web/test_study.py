"""What raters of a study see and can ask for, over HTTP without a network. Answers are made up."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from annotations.campaign.pictures import Pictures
from annotations.campaign.store import Store
from annotations.classes import class_names
from annotations.study.preregistration import PACK_FOLDER
from annotations.study.stimuli import read_stimuli
from annotations.web.app import create_app
from tests.annotations.study.studies import ARMS, make_study, png
from tests.annotations.web.conftest import Visitor

# Words that would tell what is compared, or that anything was done to the pictures.
TELLING = re.compile(
    r"alter|adversar|attack|manipulat|sham|control|\barms?\b|group|explanation|explain|heat ?map|neighbour|"
    r"attention|check|compare[sd]?\b|agree with",
    re.I,
)


@pytest.fixture
def study(tmp_path: Path) -> Iterator[tuple[Path, Store]]:
    store = make_study(tmp_path / "study", items=12, checks=4, practice=2)
    yield tmp_path / "study", store
    store.close()


def visitors(folder: Path, store: Store, number: int = 3) -> dict[str, Visitor]:
    """Raters who have come as far as the practice, by arm."""
    app = create_app(store, Pictures(folder / PACK_FOLDER, exact=True))
    found: dict[str, Visitor] = {}
    for _ in range(number):
        visitor = Visitor(store, app=app).enter()
        person = store.person(visitor.http.cookies["session"])
        assert person is not None
        found[person.arm] = visitor
    return found


def work_through(visitor: Visitor) -> list[dict[str, Any]]:
    """Answer everything; returns the questions."""
    seen: list[dict[str, Any]] = []
    while questions := visitor.questions():
        for question in questions:
            seen.append(question)
            assert visitor.answer(question["id"]).json()["outcomes"][0]["status"] == "recorded"
    return seen


def test_arms_differ_in_what_is_beside_the_photograph_and_in_nothing_else(
    study: tuple[Path, Store],
) -> None:
    folder, store = study
    stimuli = read_stimuli(folder)
    files = {key: name.partition(".")[0] for key, name in stimuli.files().items()}
    item_of = {item.shown_class: item.item for item in stimuli.items}
    items = {class_names()[c]: item for c, item in item_of.items()}
    raters = visitors(folder, store)
    assert set(raters) == set(ARMS)
    asked: dict[str, set[str]] = {}
    for arm, visitor in raters.items():
        questions = work_through(visitor)
        asked[arm] = {q["label"] for q in questions}
        for question in questions:
            assert set(question) == {
                "id", "image", "label", "gloss", "references", "position", "purpose", "beside", "caption"
            }  # fmt: skip
            item = items[question["label"]]
            shown = visitor.get(question["image"])
            assert shown.headers["content-type"] == "image/png"
            # Byte for byte: writing it anew would take an attack's changes away.
            assert hashlib.sha256(shown.content).hexdigest() == files[item, "none"]
            assert (question["beside"] is None) == (arm == "none") == (question["caption"] == "")
            assert visitor.get(f"/api/beside/{question['id']}").status_code == (404 if arm == "none" else 200)
            if arm != "none":
                beside = visitor.get(question["beside"])
                assert hashlib.sha256(beside.content).hexdigest() == files[item, arm]  # type: ignore[index]
                assert not TELLING.search(question["caption"])
    assert asked["none"] == asked["feature"] == asked["example"]
    assert len(asked["none"]) == 18
    assert store.check() == []


def test_nothing_tells_what_it_is_about_before_the_end(study: tuple[Path, Store]) -> None:
    folder, store = study
    app = create_app(store, Pictures(folder / PACK_FOLDER, exact=True))
    pages: dict[str, list[str]] = {}
    for _ in range(3):
        visitor = Visitor(store, app=app)
        token = store.invite()[0].token
        visitor.get(f"/join/{token}")
        seen = [visitor.get("/welcome").text]
        visitor.form("/welcome")
        seen.append(visitor.get("/consent").text)
        visitor.form("/consent", version="1")
        seen.append(visitor.get("/instructions").text)
        visitor.form("/instructions")
        visitor.csrf = visitor.get("/api/state").json()["csrf"]
        seen += [visitor.get("/work").text, visitor.get("/stop").text, visitor.get("/api/state").text]
        seen.append(visitor.get("/api/questions").text)
        for page in seen:
            plain = re.sub(r"csrf[^>]*>|/static/\S+", "", page)
            assert not TELLING.search(plain), TELLING.search(plain)
        person = store.person(visitor.http.cookies["session"])
        assert person is not None
        work_through(visitor)
        assert visitor.get("/").headers["location"] == "/thanks"
        thanks = visitor.get("/thanks").text
        assert "were altered by a computer" in thanks
        assert "Withdraw all my answers" in thanks
        pages[person.arm] = seen
    # The same welcome and consent in all arms; instructions differ by one paragraph.
    strip = re.compile(r'content="[^"]*"|value="[^"]*"')
    for place in (0, 1):
        assert len({strip.sub("", seen[place]) for seen in pages.values()}) == 1
    plain = strip.sub("", pages["none"][2])
    for arm in ("feature", "example"):
        longer = strip.sub("", pages[arm][2])
        added = re.sub(r"<p>Beside the photograph[^<]*</p>\s*", "", longer)
        assert added != longer
        assert added.split() == plain.split()


def test_a_question_of_another_rater_is_refused(study: tuple[Path, Store]) -> None:
    folder, store = study
    raters = visitors(folder, store)
    theirs = raters["feature"].questions()
    for arm in ("none", "example"):
        for question in theirs:
            reply = raters[arm].answer(question["id"], key=f"{arm}-{question['id']}").json()
            assert reply["outcomes"][0]["status"] == "refused"
            assert reply["outcomes"][0]["reason"] == "unknown-question"
            assert raters[arm].get(question["image"]).status_code == 404
            assert raters[arm].get(question["beside"]).status_code == 404
    assert store.given() == []
    anybody = Visitor(store, app=raters["none"].app)
    assert anybody.get(theirs[0]["beside"]).status_code == 401


def test_a_second_browser_and_a_reload_are_in_the_same_arm(study: tuple[Path, Store]) -> None:
    folder, store = study
    raters = visitors(folder, store)
    visitor = raters["example"]
    before = visitor.questions()
    assert visitor.questions() == before  # reloaded
    person = store.person(visitor.http.cookies["session"])
    assert person is not None
    link = store.invite(rater_id=person.rater_id)[0].token
    other = Visitor(store, app=visitor.app)
    other.get(f"/join/{link}")
    other.form("/welcome")
    other.csrf = other.get("/api/state").json()["csrf"]
    assert other.questions() == before
    # The first link again, in a third browser, lets nobody in.
    assert Visitor(store, app=visitor.app).get(f"/join/{link}").status_code == 410


def test_a_rater_can_stop_and_is_told(study: tuple[Path, Store]) -> None:
    folder, store = study
    visitor = visitors(folder, store)["none"]
    for question in visitor.questions()[:2]:
        visitor.answer(question["id"])
    for question in visitor.questions()[:3]:
        visitor.answer(question["id"])
    assert visitor.post("/stop", {}).status_code == 403  # not from the page
    assert visitor.form("/stop").status_code == 303
    assert visitor.get("/").headers["location"] == "/thanks"
    assert visitor.get("/stop").headers["location"] == "/"
    thanks = visitor.get("/thanks").text
    assert "were altered by a computer" in thanks
    assert "You stopped after 3 questions" in thanks
    assert "Go on" not in thanks
    assert len(store.given()) == 5
    assert store.check() == []
    token = visitor.token_on("/thanks")
    assert visitor.http.post("/withdraw", data={"csrf": token, "confirm": "withdraw"}).status_code == 303
    assert store.given() == []
    assert "were altered by a computer" in visitor.get("/thanks").text


def test_a_picture_that_was_changed_is_not_shown(study: tuple[Path, Store]) -> None:
    folder, store = study
    visitor = visitors(folder, store)["feature"]
    question = visitor.questions()[0]
    good = visitor.get(question["image"]).content
    name = f"{hashlib.sha256(good).hexdigest()}.png"
    for path in (folder / PACK_FOLDER).glob("*.png"):
        if path.name != name:
            path.write_bytes(png(12345))
    reply = visitor.get(question["beside"])
    assert reply.status_code == 409
    assert "was changed" in reply.json()["error"]
    for path in (folder / PACK_FOLDER).glob("*.png"):
        path.unlink()
    other = visitor.questions()[1]
    assert "is missing" in visitor.get(other["image"]).json()["error"]
