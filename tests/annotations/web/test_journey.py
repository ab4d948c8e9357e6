"""The pages and the JSON that raters and managers see."""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

import pytest
from PIL import Image

from annotations.campaign.pictures import find_images, images_folder
from annotations.web.app import WebSettings
from tests.annotations.web.conftest import MakeStore, Visitor


def test_a_rater_goes_from_the_invitation_to_the_end(make_store: MakeStore) -> None:
    store = make_store(practice_questions=2, qualification_questions=2, qualification_floor=0, quota=3)
    visitor = Visitor(store)
    assert visitor.get("/work").headers["location"] == "/"
    assert "invitation" in visitor.get("/").text
    visitor.enter()
    assert visitor.get("/").headers["location"] == "/work"
    assert visitor.get("/thanks").headers["location"] == "/work"
    assert visitor.get("/work").status_code == 200
    stages: Counter[str] = Counter()
    for _ in range(10):
        for question in visitor.questions():
            assert set(question) == {"id", "image", "label", "gloss", "references", "position", "purpose"}
            assert visitor.get(question["image"]).headers["content-type"] == "image/jpeg"
            stages[question["purpose"]] += 1
            reply = visitor.answer(question["id"]).json()
            feedback = reply["outcomes"][0]["feedback"]
            assert (feedback is None) == (question["purpose"] == "work")
    assert stages == {"practice": 2, "qualification": 2, "work": 3}
    assert visitor.get("/").headers["location"] == "/thanks"
    thanks = visitor.get("/thanks").text
    assert "3" in thanks
    assert store.status().coverage.answers <= 3


def test_answers_and_the_next_questions_come_in_one_request(rater: Visitor) -> None:
    first = rater.questions(4)
    items = [{"key": f"key-0000{n}", "question": q["id"], "answer": "no"} for n, q in enumerate(first[:2])]
    reply = rater.post("/api/answers", {"items": items, "want": 4}).json()
    assert [outcome["status"] for outcome in reply["outcomes"]] == ["recorded", "recorded"]
    assert [q["id"] for q in reply["questions"]][:2] == [q["id"] for q in first[2:]]
    assert len(reply["questions"]) == 4
    assert reply["progress"]["answered"] == 2
    again = rater.post("/api/answers", {"items": items}).json()
    assert [outcome["status"] for outcome in again["outcomes"]] == ["duplicate", "duplicate"]
    assert again["progress"]["answered"] == 2
    undo = {"key": "key-undo-1", "kind": "undo", "question": first[1]["id"]}
    back = rater.post("/api/answers", {"items": [undo], "want": 4}).json()
    assert back["outcomes"][0]["status"] == "recorded"
    assert back["questions"][0]["id"] == first[1]["id"]


def test_pictures_are_the_files_without_their_metadata(rater: Visitor) -> None:
    store = rater.store
    files = {image.image_id: image.path for image in find_images("sample")}
    for question in rater.questions():
        picture = store.picture(store.person(rater.http.cookies["session"]).rater_id, question["id"])  # type: ignore[union-attr]
        assert picture is not None
        original = Image.open(images_folder("sample") / files[picture.image_id])
        reply = rater.get(question["image"])
        shown = Image.open(io.BytesIO(reply.content))
        assert shown.tobytes() == original.convert("RGB").tobytes()
        assert not shown.getexif()
        assert picture.image_id not in reply.text
        assert picture.image_id.encode() not in reply.content
        assert reply.headers["cache-control"].startswith("private")
        cached = rater.get(question["image"], headers={"If-None-Match": reply.headers["etag"]})
        assert (cached.status_code, cached.content) == (304, b"")


def test_prolific_participants_come_and_go(make_store: MakeStore) -> None:
    prolific = {"completion_code": "CODE1234", "study_id": "study1"}
    store = make_store(prolific=prolific, quota=1)
    token = store.invite(uses=10)[0].token
    query = "PROLIFIC_PID=abc123&STUDY_ID=study1&SESSION_ID=s1"
    visitor = Visitor(store)
    assert visitor.get(f"/join/{token}?{query.replace('study1', 'other')}").status_code == 400
    assert visitor.get(f"/join/{token}?{query.replace('abc123', 'a%27b')}").status_code == 400
    assert visitor.get(f"/join/{token}?{query}").status_code == 303
    for path, fields in (("/welcome", {}), ("/consent", {"version": "1"}), ("/instructions", {})):
        assert visitor.form(path, **fields).status_code == 303
    visitor.csrf = visitor.get("/api/state").json()["csrf"]
    visitor.answer(visitor.questions()[0]["id"])
    assert "CODE1234" in visitor.get("/thanks").text
    second = Visitor(store)
    second.get(f"/join/{token}?{query}")
    assert second.form("/welcome").status_code == 410


def test_withdrawing_takes_everything_back(rater: Visitor) -> None:
    rater.answer(rater.questions()[0]["id"])
    assert rater.http.post("/withdraw", data={"csrf": rater.csrf}).status_code == 400
    assert rater.http.post("/withdraw", data={"csrf": rater.csrf, "confirm": "withdraw"}).status_code == 303
    assert len(rater.store.votes().answer) == 0
    assert "withdr" in rater.get("/thanks").text.lower()


def test_leaving_ends_the_session(rater: Visitor) -> None:
    cookie = rater.http.cookies["session"]
    assert rater.http.post("/leave", data={"csrf": rater.csrf}).status_code == 303
    rater.http.cookies.set("session", cookie)
    assert rater.get("/api/state").status_code == 401


def test_a_manager_sees_the_status_and_decides(make_store: MakeStore) -> None:
    store = make_store(votes=2, accept_at=2, gold_rate=0)
    for answer in ("yes", "no"):
        rater = Visitor(store).enter()
        for _ in range(5):
            for question in rater.questions():
                rater.answer(question["id"], answer)
    manager = Visitor(store).enter("manager")
    assert manager.get("/").headers["location"] == "/manage"
    assert manager.get("/manage").status_code == 200
    status = manager.get("/api/manage/status").json()
    assert status["coverage"]["answers"] == 80
    assert {one["name"] for one in status["agreement"]} >= {
        "alpha_nominal",
        "alpha_ordinal",
        "ac1",
        "fleiss_kappa",
    }
    found = manager.get("/api/manage/flagged").json()
    assert found["total"] == len(found["pairs"]) == status["flagged"] == 40
    pair = found["pairs"][0]
    assert manager.get(pair["image"]).headers["content-type"] == "image/jpeg"
    body = {"question_id": pair["question_id"], "verdict": "accepted", "note": "seen"}
    assert manager.post("/api/manage/adjudicate", body).json() == {"status": "ok"}
    assert store.status().verdicts["accepted"] == 1
    reports = store.status().raters
    assert manager.post(f"/api/manage/raters/{reports[0].rater_id}", {"action": "pause"}).status_code == 200
    assert store.status().raters[0].stage == "paused"
    assert (
        manager.post(f"/api/manage/raters/{reports[0].rater_id}", {"action": "reinstate"}).status_code == 200
    )
    assert manager.post("/api/manage/raters/9999", {"action": "pause"}).status_code == 409
    links = manager.post("/api/manage/invitations", {"count": 2}).json()["links"]
    assert Visitor(store).get(links[1].removeprefix("http://localhost:8008")).status_code == 303
    actions = [row["action"] for row in manager.get("/api/manage/audit").json()]
    assert {"adjudicated", "rater paused", "rater reinstated", "invited", "manager came"} <= set(actions)


def test_cookies_are_locked_down(make_store: MakeStore) -> None:
    store = make_store()
    visitor = Visitor(store, WebSettings(secure=True, public_url="https://rate.example"))
    visitor.http.base_url = "https://localhost:8008"
    token = store.invite()[0].token
    join = visitor.get(f"/join/{token}")
    entered = visitor.form("/welcome")
    for reply, name in ((join, "invite"), (entered, "__Host-session")):
        cookie = next(c for c in reply.headers.get_list("set-cookie") if c.startswith(f"{name}="))
        assert all(word in cookie for word in ("HttpOnly", "Secure", "SameSite=lax"))
    assert token not in join.headers["location"]
    assert "max-age" in entered.headers["strict-transport-security"]


@pytest.mark.parametrize("path", ["/", "/static/style.css", "/nothing", "/api/state", "/healthz"])
def test_every_response_carries_the_security_headers(rater: Visitor, path: str) -> None:
    headers = rater.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    expected: dict[str, Any] = {
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "referrer-policy": "same-origin",
    }
    assert {name: headers[name] for name in expected} == expected
    assert "server" not in headers


def test_pages_hold_no_inline_script_or_style(rater: Visitor) -> None:
    store = rater.store
    pages = [rater.get(path).text for path in ("/work",)]
    visitor = Visitor(store)
    pages += [visitor.get("/").text, visitor.get("/nothing").text]
    token = store.invite()[0].token
    visitor.get(f"/join/{token}")
    pages.append(visitor.get("/welcome").text)
    pages.append(Visitor(store).enter("manager").get("/manage").text)
    for page in pages:
        for script in page.split("<script")[1:]:
            assert script.partition(">")[2].startswith("</script>")
        assert "<style" not in page
        assert " style=" not in page
        assert " onclick=" not in page
        assert "http://" not in page.replace("http://www.w3.org", "")


def test_a_rater_stops_and_goes_on_another_day(make_store: MakeStore) -> None:
    store = make_store(prolific={"completion_code": "CODE1234"})
    visitor = Visitor(store).enter()
    for question in visitor.questions(3):
        visitor.answer(question["id"])
    visitor.questions(4)
    assert "go on another time" in visitor.get("/stop").text
    assert visitor.form("/stop").headers["location"] == "/thanks"
    thanks = visitor.get("/thanks").text
    assert "You stopped after 3 questions" in thanks
    assert "CODE1234" not in thanks  # that is for who has answered all
    assert store.status().coverage.in_flight == 0
    assert store.check() == []
    assert visitor.get("/").headers["location"] == "/work"
    assert len(visitor.questions(4)) == 4
    assert not store.has_stopped(store.person(visitor.http.cookies["session"]).rater_id)  # type: ignore[union-attr]
