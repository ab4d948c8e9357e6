"""Attacks, tried and refused."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from annotations.campaign.models import Audit, Event, Question
from annotations.web.app import WebSettings
from annotations.web.security import RateLimit
from tests.annotations.web.conftest import MakeStore, Visitor

SQL = "x'); DROP TABLE events; --"
HTML = '"><script>alert(1)</script><img src=x onerror=alert(1)>'


def table_names(visitor: Visitor) -> list[str]:
    with visitor.store.database.read() as connection:
        return sorted(sa.inspect(connection).get_table_names())


# Paths and questions of others -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/api/images/../../../etc/passwd",
        "/api/images/..%2f..%2f..%2fetc%2fpasswd",
        "/api/images/%2e%2e/%2e%2e/etc/passwd",
        "/api/images/imagenet_00_243.jpg",
        "/api/images/imagenet_00_243",
        "/api/images//etc/passwd",
        "/api/images/C:%5Cwindows%5Cwin.ini",
        "/api/images/AAAAAAAAAAAAAAAAAAAAAA",
        "/api/images/AAAAAAAAAAAAAAAAAAAAAA%00.jpg",
        "/api/references/..%2f..%2fetc/0",
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/security.py",
        "/static//etc/passwd",
        "/api/manage/images/1",
    ],
)
def test_no_path_leads_to_another_file(rater: Visitor, path: str) -> None:
    reply = rater.get(path)
    assert reply.status_code in (403, 404)
    assert "root:" not in reply.text
    assert "import" not in reply.text


def test_another_raters_question_is_no_question(rater: Visitor) -> None:
    other = Visitor(rater.store).enter()
    question = other.questions()[0]
    assert rater.get(question["image"]).status_code == 404
    assert rater.get(f"/api/references/{question['id']}/0").status_code == 404
    reply = rater.answer(question["id"]).json()["outcomes"][0]
    never = rater.answer("A" * 22).json()["outcomes"][0]
    assert (
        (reply["status"], reply["reason"])
        == (never["status"], never["reason"])
        == ("refused", "unknown-question")
    )
    assert len(rater.store.votes().answer) == 0
    assert other.get(question["image"]).status_code == 200


def test_no_session_sees_nothing(make_store: MakeStore) -> None:
    visitor = Visitor(make_store())
    for path in ("/api/state", "/api/questions", "/api/images/AAAAAAAAAAAAAAAAAAAAAA", "/api/manage/status"):
        assert visitor.get(path).status_code == 401
    assert visitor.post("/api/answers", {"items": []}).status_code == 401
    for cookie in ("x" * 43, "../../etc", SQL.replace(";", ""), "x" * 5000):
        visitor.http.cookies.set("session", cookie)
        assert visitor.get("/api/state").status_code == 401


def test_a_rater_is_no_manager(rater: Visitor) -> None:
    for path in ("status", "flagged", "audit", "images/1"):
        assert rater.get(f"/api/manage/{path}").status_code == 403
    for path, body in (
        ("adjudicate", {"question_id": 1, "verdict": "accepted"}),
        ("raters/1", {"action": "reinstate"}),
        ("invitations", {"role": "manager"}),
    ):
        assert rater.post(f"/api/manage/{path}", body).status_code == 403
    assert rater.get("/manage").headers["location"] == "/work"


# Tokens ----------------------------------------------------------------------------------------------------


def test_an_invitation_cannot_be_replayed(make_store: MakeStore) -> None:
    store = make_store()
    token = store.invite()[0].token
    first, second = Visitor(store), Visitor(store)
    for visitor in (first, second):
        assert visitor.get(f"/join/{token}").status_code == 303
    form = second.token_on("/welcome")
    assert first.form("/welcome").status_code == 303
    assert second.http.post("/welcome", data={"csrf": form}).status_code == 410
    assert Visitor(store).get(f"/join/{token}").status_code == 410
    assert first.get(f"/join/{token}").headers["location"] == "/"  # who clicks again goes on


def test_opening_a_link_does_not_use_it_up(make_store: MakeStore) -> None:
    """Mail scanners and previews open links."""
    store = make_store()
    token = store.invite()[0].token
    for _ in range(3):
        assert Visitor(store).get(f"/join/{token}").status_code == 303
    assert store.invitation_role(token) == "rater"


def test_guessing_invitations_is_slow_and_noted(make_store: MakeStore) -> None:
    store = make_store()
    visitor = Visitor(store, WebSettings(wrong_invitations_per_minute=10))
    replies = [visitor.get(f"/join/{'g' * 21}{n % 10}").status_code for n in range(30)]
    assert replies.count(410) <= 11
    assert replies[-1] == 429
    with store.database.read() as connection:
        noted = connection.execute(
            sa.select(sa.func.count()).where(Audit.action == "invitation refused")
        ).scalar_one()
    assert noted == replies.count(410)
    assert visitor.get(f"/join/{store.invite()[0].token}").status_code == 303  # who was invited may come
    limited = visitor.get(f"/join/{'g' * 22}")
    assert int(limited.headers["retry-after"]) >= 1


def test_a_forged_invitation_cookie_is_worth_nothing(make_store: MakeStore) -> None:
    import base64

    store = make_store(prolific={"completion_code": "CODE1234"})
    forged: list[Any] = [
        {"token": "x" * 22, "prolific": None},
        {"token": SQL, "prolific": None},
        {"token": ["x"], "prolific": None},
        {"token": store.invite()[0].token, "prolific": {"pid": SQL, "study_id": "s", "session_id": "s"}},
        {"token": store.invite()[0].token, "prolific": [1, 2]},
        [],
    ]
    for facts in forged:
        visitor = Visitor(store)
        value = base64.urlsafe_b64encode(json.dumps(facts).encode()).decode()
        visitor.http.cookies.set("invite", value)
        assert visitor.get("/welcome").headers["location"] == "/"
        assert visitor.http.post("/welcome", data={"csrf": "x"}).status_code in (303, 403)
        assert visitor.get("/api/state").status_code == 401


def test_tokens_tell_nothing_about_the_question(make_store: MakeStore) -> None:
    store = make_store()
    a, b = Visitor(store).enter(), Visitor(store).enter()
    tokens = [{q["id"] for q in visitor.questions()} for visitor in (a, b)]
    assert not tokens[0] & tokens[1]
    assert {len(token) for one in tokens for token in one} == {22}


# Requests of other pages -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "http://localhost:8008.evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"X-CSRF-Token": ""},
        {"X-CSRF-Token": "0" * 32},
    ],
)
def test_a_post_of_another_site_is_refused(rater: Visitor, headers: dict[str, str]) -> None:
    question = rater.questions()[0]["id"]
    item = {"key": "key-forged", "question": question, "answer": "yes"}
    assert rater.post("/api/answers", {"items": [item]}, **headers).status_code == 403
    if "X-CSRF-Token" not in headers:
        fields = {"csrf": rater.csrf, "confirm": "withdraw"}
        assert rater.http.post("/withdraw", data=fields, headers=headers).status_code == 403
    assert len(rater.store.votes().answer) == 0
    assert rater.answer(question).json()["outcomes"][0]["status"] == "recorded"
    assert rater.post("/api/answers", {"items": []}, Origin="http://localhost:8008").status_code == 200


def test_a_token_of_another_session_does_not_do(rater: Visitor) -> None:
    other = Visitor(rater.store).enter()
    question = rater.questions()[0]["id"]
    item = {"key": "key-forged", "question": question, "answer": "yes"}
    assert rater.post("/api/answers", {"items": [item]}, **{"X-CSRF-Token": other.csrf}).status_code == 403


def test_a_form_cannot_pass_for_json(rater: Visitor) -> None:
    """A page elsewhere can make a browser send a form, or text, but no JSON with our header."""
    body = json.dumps({"items": []})
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        reply = rater.http.post("/api/answers", content=body, headers={"Content-Type": kind})
        assert reply.status_code in (403, 422)


# Size and rate ---------------------------------------------------------------------------------------------


def test_an_oversize_body_is_refused(rater: Visitor) -> None:
    big = b'{"items": [], "want": ' + b" " * 300_000 + b"0}"
    headers = {"Content-Type": "application/json", "X-CSRF-Token": rater.csrf}
    assert rater.http.post("/api/answers", content=big, headers=headers).status_code == 413

    def chunks() -> Iterator[bytes]:  # without a declared length
        for _ in range(100):
            yield b" " * 10_000

    assert rater.http.post("/api/answers", content=chunks(), headers=headers).status_code == 413
    lied = rater.http.post("/api/answers", content=b"{}", headers=headers | {"Content-Length": "-5"})
    assert lied.status_code in (400, 413)
    items = [{"key": f"key-{n:06d}", "question": "A" * 22, "answer": "yes"} for n in range(201)]
    assert rater.post("/api/answers", {"items": items}).status_code == 422


def test_answers_beyond_the_rate_wait_and_are_not_lost(make_store: MakeStore) -> None:
    rater = Visitor(make_store(), WebSettings(requests_per_second=0.5)).enter()
    question = rater.questions()[0]["id"]
    replies = [rater.get("/api/state").status_code for _ in range(10)]
    assert replies[-1] == 429
    limited = rater.answer(question)
    assert limited.status_code == 429
    assert int(limited.headers["retry-after"]) >= 1
    assert len(rater.store.votes().answer) == 0


def test_a_bucket_fills_again() -> None:
    now = [0.0]
    limit = RateLimit(2.0, 4.0, clock=lambda: now[0])
    assert [limit.wait("a") for _ in range(4)] == [0.0] * 4
    assert limit.wait("a") == pytest.approx(0.5)
    assert limit.wait("b") == 0.0
    now[0] = 0.5
    assert limit.wait("a") == 0.0
    assert limit.wait("a") > 0
    now[0] = 100.0
    assert [limit.wait("a") for _ in range(4)] == [0.0] * 4
    assert limit.wait("a") > 0


# Strange content -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [SQL, HTML, "\x00", "a" * 10_000, "../../x", "ÿ☃", "{{7*7}}"])
def test_sql_and_html_in_every_field_of_an_answer(rater: Visitor, text: str) -> None:
    before = table_names(rater)
    question = rater.questions()[0]["id"]
    good: dict[str, Any] = {"key": "key-000001", "kind": "answer", "question": question, "answer": "yes"}
    for field in ("key", "kind", "question", "answer", "response_ms", "at", "other"):
        reply = rater.post("/api/answers", {"items": [good | {field: text}]})
        assert reply.status_code == 422, field
        assert "<script" not in reply.text.replace("\\u003c", "")
        assert reply.headers["content-type"] == "application/json"
    for path in (f"/api/questions?want={text[:50]}", f"/join/{text[:50]}", f"/api/images/{text[:50]}"):
        try:
            reply = rater.get(path)
        except Exception:  # noqa: BLE001 - httpx refuses to send some of these at all
            continue
        assert reply.status_code in (303, 404, 410, 422, 429)
        assert "<script>alert" not in reply.text
    assert table_names(rater) == before
    assert rater.answer(question).json()["outcomes"][0]["status"] == "recorded"


@pytest.mark.parametrize("number", [-1, 2**31, 1e400, float("nan"), "1; DROP TABLE events"])
def test_numbers_out_of_range_are_refused(rater: Visitor, number: Any) -> None:
    question = rater.questions()[0]["id"]
    for field in ("response_ms", "at"):
        item = {"key": "key-000001", "question": question, "answer": "yes", field: number}
        content = json.dumps({"items": [item]})
        headers = {"Content-Type": "application/json", "X-CSRF-Token": rater.csrf}
        reply = rater.http.post("/api/answers", content=content, headers=headers)
        if field == "at" and number == 2**31:
            continue
        assert reply.status_code == 422, (field, number)


def test_sql_and_html_in_every_field_of_forms_and_managers(make_store: MakeStore) -> None:
    store = make_store(
        name=HTML[:100], consent=HTML, instructions=HTML, prolific={"completion_code": "CODE1234"}
    )
    visitor = Visitor(store)
    token = store.invite(label=HTML)[0].token
    assert "<script>alert" not in visitor.get(f"/join/{token}?PROLIFIC_PID={HTML}").text
    visitor.get(f"/join/{token}")
    pages = [visitor.get("/welcome").text]
    assert visitor.form("/welcome", extra=HTML).status_code == 303
    pages.append(visitor.get("/consent").text)
    assert visitor.form("/consent", version=HTML[:40]).status_code == 409
    assert visitor.form("/consent", version="1").status_code == 303
    pages.append(visitor.get("/instructions").text)
    manager = Visitor(store).enter("manager")
    pages.append(manager.get("/manage").text)
    for page in pages:
        assert "<script>alert" not in page
        assert "onerror=alert" not in page.replace("onerror=alert(1)&gt;", "")
    rater_id = store.status().raters[0].rater_id
    with store.database.read() as connection:
        work = connection.execute(sa.select(Question.id).where(Question.role == "work")).scalars().first()
    for text in (SQL, HTML):
        body = {"question_id": work, "verdict": "accepted", "note": text}
        assert manager.post("/api/manage/adjudicate", body).status_code == 200
        assert manager.post("/api/manage/adjudicate", body | {"verdict": text}).status_code == 422
        assert manager.post("/api/manage/adjudicate", body | {"question_id": text}).status_code == 422
        pause = {"action": "pause", "reason": text}
        assert manager.post(f"/api/manage/raters/{rater_id}", pause).status_code == 200
        assert manager.post(f"/api/manage/raters/{rater_id}", {"action": "reinstate"}).status_code == 200
        assert manager.post("/api/manage/invitations", {"label": text}).status_code == 200
        assert manager.post("/api/manage/invitations", {"role": text}).status_code == 422
    with store.database.read() as connection:
        notes = connection.execute(sa.select(Event.detail).where(Event.kind == "adjudicated")).scalars().all()
    assert list(notes) == [SQL, HTML]  # kept as they are, and harmless


# Gold and others' votes ------------------------------------------------------------------------------------


def test_no_response_tells_gold_or_others_votes(make_store: MakeStore) -> None:
    """Two campaigns that differ in nothing but which pairs are gold, and in others' votes, look the same."""
    store = make_store(gold_rate=0.5, undo_limit=5)
    crowd = Visitor(store).enter()
    for question in crowd.questions():
        crowd.answer(question["id"], "yes")
    rater = Visitor(store).enter()
    with store.database.read() as connection:
        secrets = connection.execute(sa.select(Question.explanation, Question.reason)).all()
    assert any(row.explanation == "secret-why" for row in secrets)
    by_kind: dict[bool, list[Any]] = {True: [], False: []}
    texts = []
    for _ in range(6):
        reply = rater.get("/api/questions?want=8")
        texts.append(reply.text)
        for question in reply.json()["questions"]:
            gold = "9" in question["label"] or question["label"] in GOLD_LABELS
            got = rater.answer(question["id"], "yes")
            texts.append(got.text)
            outcome = got.json()["outcomes"][0]
            picture = rater.get(question["image"])
            shape = (
                sorted(question),
                question["purpose"],
                len(question["id"]),
                question["image"].replace(question["id"], ""),
                sorted(outcome),
                outcome["status"],
                outcome["reason"],
                outcome["feedback"],
                sorted(got.json()["progress"]),
                sorted(picture.headers),
                picture.headers["cache-control"],
            )
            by_kind[gold].append(shape)
    assert len(by_kind[True]) >= 3
    assert len(by_kind[False]) >= 3
    assert {str(shape) for shape in by_kind[True]} == {str(shape) for shape in by_kind[False]}
    texts += [rater.get(path).text for path in ("/work", "/api/state", "/")]
    for word in ("secret-why", "expected", "gold", "sampling", "priority", "counted", "leased", "wanted"):
        assert not any(word in text for text in texts), word
    for text in texts:
        assert '"explanation"' not in text


def gold_labels() -> set[str]:
    from annotations.classes import class_names

    return {class_names()[900], class_names()[901]}


GOLD_LABELS = gold_labels()


def test_gold_takes_as_long_as_any_question(make_store: MakeStore) -> None:
    """The same statements run for gold and for pairs: counted, not timed."""
    rater = Visitor(make_store(gold_rate=0.5)).enter()
    statements: list[str] = []
    sa.event.listen(
        rater.store.database.engine,
        "before_cursor_execute",
        lambda _c, _k, statement, _p, _x, _m: statements.append(statement),
    )
    seen: dict[bool, set[tuple[str, ...]]] = {True: set(), False: set()}
    for _ in range(5):
        for question in rater.questions():
            statements.clear()
            rater.answer(question["id"], "yes")
            seen[question["label"] in GOLD_LABELS].add(tuple(statements))
    assert seen[True] == seen[False]
    assert len(seen[True]) == 1


def test_the_log_of_refusals_cannot_be_flooded(make_store: MakeStore) -> None:
    rater = Visitor(make_store(), WebSettings(requests_per_second=1)).enter()
    began = time.monotonic()
    for _ in range(60):
        rater.post("/api/answers", {"items": []}, Origin="https://evil.example")
    with rater.store.database.read() as connection:
        lines = connection.execute(
            sa.select(sa.func.count()).where(Audit.action == "forged request refused")
        ).scalar_one()
    # Ten at once, then one a second.
    assert 0 < lines <= 10 + (time.monotonic() - began) + 1
