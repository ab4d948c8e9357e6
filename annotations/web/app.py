"""`create_app`: the web app over a campaign's store. The routes are listed in `annotations.web`."""

# Without postponed annotations: FastAPI reads those of the routes, which name what is local to a function.

import base64
import binascii
import dataclasses
import json
import logging
import math
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jinja2
from pydantic import BaseModel, ConfigDict, Field

from annotations.campaign.assignment import probability_below, quality
from annotations.campaign.pictures import Pictures, Rendered
from annotations.campaign.rules import ASKING
from annotations.campaign.store import Store
from annotations.campaign.types import Batch, Item, Outcome, Person, Picture, Progress, Prolific
from annotations.classes import class_definitions, class_names
from annotations.errors import BeyondError, database_trouble
from annotations.web.recent import Recent
from annotations.web.security import Guard, RateLimit, csrf_matches, csrf_token, is_same_origin

try:
    from fastapi import Depends, FastAPI, Form, HTTPException, Query, Request, Response
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
    from starlette.exceptions import HTTPException as AnyHTTPException
    from starlette.staticfiles import StaticFiles
except ImportError as error:
    raise BeyondError(
        f"the web app needs packages that are not here ({error.name}); "
        "install them with: pip install 'beyond-accuracy[campaign]'"
    ) from error

_LOG = logging.getLogger("uvicorn.error")
HERE = Path(__file__).parent
MAX_ITEMS = 200
_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,64}")
_PROLIFIC = re.compile(r"[A-Za-z0-9]{1,64}")
_INVITE_SECONDS = 3600
_PERSON_SECONDS = 2.0  # how long a session that ends elsewhere may still ask


@dataclass(frozen=True)
class WebSettings:
    """How the app is served.

    Attributes:
        secure: Served over HTTPS (by a proxy in front): cookies are Secure, and browsers are told to insist.
        public_url: Address that raters use, where it is not the one the server is asked by.
        body_limit: Bytes of a request's body, at most.
        answers_per_second: Of one rater, sustained; a full outbox may come at once.
        requests_per_second: Of one session, sustained.
        wrong_invitations_per_minute: Invitations that are none, which one address may try.
        status_seconds: How long a status is shown before it is computed again.
    """

    secure: bool = False
    public_url: str | None = None
    body_limit: int = 256 * 1024
    answers_per_second: float = 10.0
    requests_per_second: float = 30.0
    wrong_invitations_per_minute: float = 30.0
    status_seconds: float = 2.0


# What clients send -----------------------------------------------------------------------------------------


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ItemIn(_Strict):
    """An entry of a rater's outbox."""

    key: str = Field(pattern=r"^[A-Za-z0-9_-]{8,64}$")
    kind: Literal["answer", "undo"] = "answer"
    question: str = Field(pattern=r"^[A-Za-z0-9_-]{16,64}$")
    answer: Literal["yes", "no", "maybe"] | None = None
    response_ms: int | None = Field(None, ge=0, le=2**31 - 1)
    at: float | None = Field(None, ge=0, le=1e11, allow_inf_nan=False)


class OutboxIn(_Strict):
    """A rater's outbox."""

    items: list[ItemIn] = Field(max_length=MAX_ITEMS)
    want: int = Field(0, ge=0, le=50)


class VerdictIn(_Strict):
    """A manager's decision on a pair."""

    question_id: int = Field(ge=1, le=2**31 - 1)
    verdict: Literal["accepted", "rejected", "unsure"] | None
    note: str = Field("", max_length=2000)


class RaterActionIn(_Strict):
    """What a manager does with a rater."""

    action: Literal["pause", "reinstate"]
    reason: str = Field("", max_length=2000)


class InvitationsIn(_Strict):
    """Invitations that a manager asks for."""

    role: Literal["rater", "manager"] = "rater"
    count: int = Field(1, ge=1, le=500)
    label: str = Field("", max_length=200)
    uses: int = Field(1, ge=1, le=100_000)


class _RedirectError(Exception):
    """Go to another page."""

    def __init__(self, path: str) -> None:
        self.path = path


def create_app(store: Store, pictures: Pictures, settings: WebSettings | None = None) -> FastAPI:
    """Make the app.

    Args:
        store: The campaign; the caller closes it.
        pictures: Its images.
        settings: How it is served.
    """
    web = _Web(store, pictures, settings or WebSettings())
    app = FastAPI(title="campaign", openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, body_limit=web.settings.body_limit, secure=web.settings.secure)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    _add_errors(app, web)
    _add_pages(app, web)
    _add_rater_api(app, web)
    _add_manager_api(app, web)
    return app


class _Web:
    """What all routes share."""

    def __init__(self, store: Store, pictures: Pictures, settings: WebSettings) -> None:
        self.store, self.pictures, self.settings = store, pictures, settings
        prefix = "__Host-" if settings.secure else ""
        self.session_cookie, self.invite_cookie = f"{prefix}session", "invite"
        self.requests = RateLimit(settings.requests_per_second, 10 * settings.requests_per_second)
        self.answers = RateLimit(settings.answers_per_second, 5 * MAX_ITEMS)
        wrong = settings.wrong_invitations_per_minute
        self.wrong_invitations = RateLimit(wrong / 60, wrong)
        self.templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._people: Recent[str, Person] = Recent(_PERSON_SECONDS)
        self._pictures: Recent[tuple[int, str], Picture] = Recent(math.inf)
        self._warm_up()
        self._status: tuple[float, str] = (-math.inf, "")
        self._status_lock = threading.Lock()

    def _warm_up(self) -> None:
        """Load now what the first rater would otherwise wait for."""
        class_names(), class_definitions()
        self.store.warm_up()
        quality(0, 0)
        probability_below(0, 1, 0.5)
        for name in self.templates.list_templates():
            self.templates.get_template(name)

    # Who asks ----------------------------------------------------------------------------------------------

    def person(self, request: Request) -> Person:
        """Who asks, for JSON.

        Raises:
            HTTPException: 401 without a session, 429 beyond the rate.
        """
        cookie = request.cookies.get(self.session_cookie, "")
        person = self._people.get(cookie) or self.visitor(request)
        if person is None:
            raise HTTPException(401, "there is no session; open your invitation again")
        self._people.put(cookie, person)
        self.limit(self.requests, str(person.session_id))
        return person

    def manager(self, request: Request) -> Person:
        """Who asks, if it is a manager.

        Raises:
            HTTPException: 403 for a rater.
        """
        person = self.person(request)
        if person.role != "manager":
            raise HTTPException(403, "this is for managers")
        return person

    def forget(self, request: Request) -> None:
        """End the session of a request."""
        cookie = request.cookies[self.session_cookie]
        self.store.end_session(cookie)
        self._people.drop(cookie)

    def files_of(self, person: Person, token: str) -> Picture | None:
        """The files that a token stands for, for the rater that it was made for."""
        key = (person.rater_id, token)
        picture = self._pictures.get(key)
        if picture is None and _TOKEN.fullmatch(token):
            picture = self.store.picture(person.rater_id, token)
            if picture is not None:
                self._pictures.put(key, picture)
        return picture

    def visitor(self, request: Request) -> Person | None:
        """Who asks, or None without a session."""
        cookie = request.cookies.get(self.session_cookie)
        return self.store.person(cookie) if cookie and len(cookie) <= 128 else None

    def csrf(self, request: Request) -> str:
        """The token of this request's session."""
        return csrf_token(request.cookies.get(self.session_cookie, ""))

    def require_own_page(self, request: Request, token: str, secret: str | None = None) -> None:
        """Refuse a request that changes something and does not come from a page of ours.

        Raises:
            HTTPException: 403.
        """
        secret = request.cookies.get(self.session_cookie, "") if secret is None else secret
        if not is_same_origin(request, self.settings.public_url) or not csrf_matches(secret, token):
            self.store.audit("unknown", "forged request refused", request.url.path, address(request))
            raise HTTPException(403, "this request does not come from a page of this server; reload the page")

    def limit(self, limit: RateLimit, key: str, cost: float = 1.0) -> None:
        """Refuse what goes beyond a rate.

        Raises:
            HTTPException: 429 with Retry-After.
        """
        wait = limit.wait(key, cost)
        if wait:
            headers = {"Retry-After": str(math.ceil(wait))}
            raise HTTPException(429, f"too many requests; wait {math.ceil(wait)} s", headers=headers)

    # Answers -----------------------------------------------------------------------------------------------

    def page(
        self,
        request: Request,
        template: str,
        status: int = 200,
        *,
        person: Person | None = None,
        **context: Any,
    ) -> HTMLResponse:
        """Render a page. Every template gets the same names, and those that are given."""
        names: dict[str, Any] = {
            "config": self.store.config,
            "title": self.store.config.name,
            "csrf": self.csrf(request) if person else "",
            "rater": person.pseudonym if person else "",
            "stage": person.stage if person else "",
        }
        return HTMLResponse(self.templates.get_template(template).render(names | context), status)

    def picture(self, request: Request, rendered: Rendered) -> Response:
        """Answer with a picture, or with 304 if the browser has it."""
        headers = {"ETag": rendered.etag, "Cache-Control": "private, max-age=86400", "Vary": "Cookie"}
        if rendered.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(rendered.data, media_type=rendered.media_type, headers=headers)

    def batch(self, batch: Batch) -> dict[str, Any]:
        """Questions and progress as JSON."""
        names, glosses = class_names(), class_definitions()
        study = self.store.config.study
        captions = study.captions if study else {}
        questions: list[dict[str, Any]] = [
            {
                "id": question.token,
                "image": f"/api/images/{question.token}",
                "label": names[question.class_index],
                "gloss": glosses[question.class_index],
                "references": [
                    f"/api/references/{question.token}/{number}"
                    for number in range(self.pictures.references(question.class_index))
                ],
                "position": question.position,
                "purpose": question.purpose,
            }
            for question in batch.questions
        ]
        for shown, question in zip(questions, batch.questions) if study else ():
            has_one = question.has_beside
            shown["beside"] = f"/api/beside/{question.token}" if has_one else None
            shown["caption"] = captions.get(question.arm, "") if has_one else ""
        return {"questions": questions, "progress": progress_json(batch.progress)}

    def status(self) -> str:
        """The status as JSON, computed at most every `status_seconds`."""
        with self._status_lock:
            now = time.monotonic()
            if now - self._status[0] >= self.settings.status_seconds:
                status = dataclasses.asdict(self.store.status())
                self._status = (time.monotonic(), json.dumps(_finite(status)))
            return self._status[1]


def address(request: Request) -> str:
    """The address a request comes from."""
    return request.client.host if request.client else ""


def progress_json(progress: Progress) -> dict[str, Any]:
    """Progress as JSON."""
    return dataclasses.asdict(progress)


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """An outcome as JSON; the same keys for every question."""
    feedback = dataclasses.asdict(outcome.feedback) if outcome.feedback else None
    return {"key": outcome.key, "status": outcome.status, "reason": outcome.reason, "feedback": feedback}


def _finite(value: Any) -> Any:
    """The value with NaN as null, which JSON has no word for."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value


def _add_errors(app: FastAPI, web: _Web) -> None:
    def answer(request: Request, status: int, message: str, headers: Any = None) -> Response:
        if request.url.path.startswith("/api/") or request.url.path == "/healthz":
            return JSONResponse({"error": message}, status, headers)
        page = web.page(request, "message.html", status, title="Sorry", text=message)
        page.headers.update(headers or {})
        return page

    @app.exception_handler(AnyHTTPException)
    def http_error(request: Request, error: AnyHTTPException) -> Response:
        message = {404: "there is nothing here", 405: "this address takes no such request"}
        text = message.get(error.status_code, error.detail)
        return answer(request, error.status_code, text, error.headers)

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "the request"
        return answer(request, 422, f"{where}: {first['msg']}")

    @app.exception_handler(BeyondError)
    def refused(request: Request, error: BeyondError) -> Response:
        return answer(request, 409, str(error))

    def away(request: Request, error: Exception) -> Response:
        # Browsers keep what has no answer and send it again, so a database that restarts loses nothing.
        _LOG.warning(database_trouble(error))
        text = "The database is away for a moment. Try again soon."
        return answer(request, 503, text, {"Retry-After": "2"})

    for kind in web.store.database.errors:
        app.add_exception_handler(kind, away)

    @app.exception_handler(_RedirectError)
    def redirect(_request: Request, error: _RedirectError) -> Response:
        return RedirectResponse(error.path, 303)


# Pages -----------------------------------------------------------------------------------------------------

_USED = "This invitation was used already, or has run out. Ask whoever sent it for a new one."
_PAGES = {"consent": "/consent", "instructions": "/instructions"}


def page_of(person: Person) -> str:
    """The page where a person belongs."""
    if person.role == "manager":
        return "/manage"
    return _PAGES.get(person.stage, "/work" if person.stage in ASKING else "/thanks")


def _add_pages(app: FastAPI, web: _Web) -> None:
    store = web.store

    def at_home(request: Request) -> Person:
        """Who asks for a page; anybody who belongs to another page is sent there."""
        person = web.visitor(request)
        if person is None:
            raise _RedirectError("/")
        if page_of(person) != request.url.path:
            raise _RedirectError(page_of(person))
        return person

    def poster(request: Request, csrf: Annotated[str, Form(max_length=64)] = "") -> Person:
        """Who sends a form."""
        person = web.visitor(request)
        if person is None:
            raise _RedirectError("/")
        web.require_own_page(request, csrf)
        return person

    @app.get("/")
    def home(request: Request) -> Response:
        person = web.visitor(request)
        if person is None:
            return web.page(request, "invite.html", message=None)
        if person.stage == "done" and person.role == "rater" and store.resume(person.rater_id) == "work":
            return RedirectResponse("/work", 303)
        return RedirectResponse(page_of(person), 303)

    @app.get("/join/{token}")
    def join(request: Request, token: str) -> Response:
        if _TOKEN.fullmatch(token) is None or store.invitation_role(token) is None:
            if web.visitor(request) is not None:
                return RedirectResponse("/", 303)
            # Wrong ones alone: many raters may come from one address, and a guess is one of 2 to the 128.
            web.limit(web.wrong_invitations, address(request))
            store.audit("unknown", "invitation refused", address=address(request))
            return web.page(request, "invite.html", 410, message=_USED)
        prolific = _prolific(request, store)
        facts = {"token": token, "prolific": None if prolific is None else dataclasses.asdict(prolific)}
        value = base64.urlsafe_b64encode(json.dumps(facts).encode()).decode()
        response = RedirectResponse("/welcome", 303)
        response.set_cookie(
            web.invite_cookie,
            value,
            max_age=_INVITE_SECONDS,
            path="/welcome",
            httponly=True,
            samesite="lax",
            secure=web.settings.secure,
        )
        return response

    @app.get("/welcome")
    def welcome(request: Request) -> Response:
        invitation = _read_invite(request.cookies.get(web.invite_cookie, ""))
        role = store.invitation_role(invitation[0]) if invitation else None
        if invitation is None or role is None:
            return RedirectResponse("/", 303)
        return web.page(request, "welcome.html", csrf=csrf_token(invitation[0]), role=role)

    @app.post("/welcome")
    def enter(request: Request, csrf: Annotated[str, Form(max_length=64)] = "") -> Response:
        invitation = _read_invite(request.cookies.get(web.invite_cookie, ""))
        if invitation is None:
            return RedirectResponse("/", 303)
        token, prolific = invitation
        web.require_own_page(request, csrf, token)
        session = store.accept(token, prolific=prolific)
        if session is None:
            web.limit(web.wrong_invitations, address(request))
            store.audit("unknown", "invitation refused", address=address(request))
            return web.page(request, "invite.html", 410, message=_USED)
        store.audit(f"rater {session.rater_id}", f"{session.role} came", address=address(request))
        response = RedirectResponse("/", 303)
        response.delete_cookie(web.invite_cookie, path="/welcome")
        response.set_cookie(
            web.session_cookie,
            session.token,
            max_age=int(session.expires_at - store.clock()),
            httponly=True,
            samesite="lax",
            secure=web.settings.secure,
        )
        return response

    @app.get("/consent")
    def consent(request: Request, person: Annotated[Person, Depends(at_home)]) -> Response:
        return web.page(request, "consent.html", person=person, title="Before you begin")

    @app.post("/consent")
    def agree(
        person: Annotated[Person, Depends(poster)], version: Annotated[str, Form(max_length=40)]
    ) -> Response:
        store.consent(person.rater_id, version)
        return RedirectResponse("/", 303)

    @app.get("/instructions")
    def instructions(request: Request, person: Annotated[Person, Depends(at_home)]) -> Response:
        study = store.config.study
        note = study.notes.get(person.arm, "") if study else ""
        return web.page(request, "instructions.html", person=person, note=note, title="How it works")

    @app.post("/instructions")
    def understood(person: Annotated[Person, Depends(poster)]) -> Response:
        store.read_instructions(person.rater_id)
        return RedirectResponse("/", 303)

    @app.get("/work")
    def work(request: Request, person: Annotated[Person, Depends(at_home)]) -> Response:
        return web.page(request, "work.html", person=person)

    @app.get("/thanks")
    def thanks(request: Request, person: Annotated[Person, Depends(at_home)]) -> Response:
        progress = store.progress(person.rater_id)
        prolific = store.config.prolific
        stopped = store.has_stopped(person.rater_id)
        code = prolific.completion_code if prolific and person.stage == "done" and not stopped else None
        return web.page(
            request,
            "thanks.html",
            person=person,
            progress=progress,
            completion_code=code,
            stopped=stopped,
            frozen=store.is_frozen(),
            title="Thank you",
        )

    @app.get("/stop")
    def stop(request: Request) -> Response:
        person = web.visitor(request)
        if person is None or person.stage not in ASKING:
            raise _RedirectError("/")
        return web.page(request, "stop.html", person=person, title="Stop here?")

    @app.post("/stop")
    def stopped(request: Request, person: Annotated[Person, Depends(poster)]) -> Response:
        store.stop(person.rater_id)
        store.audit(f"rater {person.rater_id}", "stopped", address=address(request))
        return RedirectResponse("/thanks", 303)

    @app.post("/withdraw")
    def withdraw(
        request: Request, person: Annotated[Person, Depends(poster)], confirm: Annotated[str, Form()] = ""
    ) -> Response:
        if confirm != "withdraw":
            raise HTTPException(400, "withdrawing needs to be confirmed")
        if person.role == "rater":
            store.withdraw(person.rater_id)
            store.audit(f"rater {person.rater_id}", "withdrew", address=address(request))
        return RedirectResponse("/", 303)

    @app.post("/leave")
    def leave(request: Request, _person: Annotated[Person, Depends(poster)]) -> Response:
        web.forget(request)
        response = RedirectResponse("/", 303)
        response.delete_cookie(web.session_cookie)
        return response

    @app.get("/manage")
    def manage(request: Request, person: Annotated[Person, Depends(at_home)]) -> Response:
        return web.page(request, "manage.html", person=person)

    @app.get("/healthz")
    def health() -> dict[str, str]:
        return {"status": "ok"}


def _prolific(request: Request, store: Store) -> Prolific | None:
    """The parameters that Prolific adds to the link, if the campaign expects them.

    Raises:
        HTTPException: One is missing or malformed, or the study is another.
    """
    config = store.config.prolific
    if config is None:
        return None
    values = [request.query_params.get(name, "") for name in ("PROLIFIC_PID", "STUDY_ID", "SESSION_ID")]
    if all(value == "" for value in values):
        return None
    if any(_PROLIFIC.fullmatch(value) is None for value in values):
        raise HTTPException(
            400, "the link lacks what Prolific adds to it; open the study from Prolific again"
        )
    if config.study_id is not None and values[1] != config.study_id:
        raise HTTPException(400, "this link belongs to another study")
    return Prolific(*values)


def _read_invite(cookie: str) -> tuple[str, Prolific | None] | None:
    """What /join put into the cookie; checked again, since a client can write what it wants."""
    try:
        facts = json.loads(base64.urlsafe_b64decode(cookie.encode()))
        token, values = facts["token"], facts["prolific"]
        prolific = (
            None if values is None else Prolific(values["pid"], values["study_id"], values["session_id"])
        )
    except (ValueError, KeyError, TypeError, binascii.Error):
        return None
    texts: Sequence[Any] = [] if prolific is None else dataclasses.astuple(prolific)
    if not isinstance(token, str) or _TOKEN.fullmatch(token) is None:
        return None
    if any(not isinstance(text, str) or _PROLIFIC.fullmatch(text) is None for text in texts):
        return None
    return token, prolific


# JSON for raters -------------------------------------------------------------------------------------------


def _add_rater_api(app: FastAPI, web: _Web) -> None:
    store, pictures = web.store, web.pictures

    # Who asks is found out inside of each, since a dependency would be one more change of threads.

    @app.get("/api/state")
    def state(request: Request) -> Response:
        person = web.person(request)
        config = store.config
        names = (
            "prefetch",
            "minimum_dwell_ms",
            "maybe_allowed",
            "break_every",
            "undo_limit",
            "lease_seconds",
        )
        return JSONResponse(
            {
                "csrf": web.csrf(request),
                "progress": progress_json(store.progress(person.rater_id)),
                "settings": {name: getattr(config, name) for name in names},
            }
        )

    @app.get("/api/questions")
    def questions(request: Request, want: Annotated[int, Query(ge=1, le=50)] = 8) -> Response:
        person = web.person(request)
        return JSONResponse(web.batch(store.questions(person.rater_id, want)))

    @app.post("/api/answers")
    def answers(request: Request, outbox: OutboxIn) -> Response:
        person = web.person(request)
        web.require_own_page(request, request.headers.get("x-csrf-token", ""))
        if outbox.items:
            web.limit(web.answers, str(person.rater_id), len(outbox.items))
        items = [
            Item(one.key, one.kind, one.question, one.answer, one.response_ms, one.at) for one in outbox.items
        ]
        outcomes, batch = store.turn(person.rater_id, items, outbox.want)
        return JSONResponse({"outcomes": [outcome_json(one) for one in outcomes], **web.batch(batch)})

    @app.get("/api/images/{token}")
    def image(request: Request, token: str) -> Response:
        files = web.files_of(web.person(request), token)
        if files is None:
            raise HTTPException(404)
        return web.picture(request, pictures.render(files.path))

    @app.get("/api/beside/{token}")
    def beside(request: Request, token: str) -> Response:
        files = web.files_of(web.person(request), token)
        if files is None or not files.beside:
            raise HTTPException(404)
        return web.picture(request, pictures.render(files.beside))

    @app.get("/api/references/{token}/{number}")
    def reference(request: Request, token: str, number: int) -> Response:
        person = web.person(request)
        class_index = store.label_of(person.rater_id, token) if _TOKEN.fullmatch(token) else None
        rendered = None if class_index is None else pictures.reference(class_index, number)
        if rendered is None:
            raise HTTPException(404)
        return web.picture(request, rendered)


# JSON for managers -----------------------------------------------------------------------------------------


def _add_manager_api(app: FastAPI, web: _Web) -> None:
    store, pictures = web.store, web.pictures
    Manager = Annotated[Person, Depends(web.manager)]  # a type

    def own_page(request: Request, _person: Manager) -> None:
        web.require_own_page(request, request.headers.get("x-csrf-token", ""))

    OwnPage = Annotated[None, Depends(own_page)]  # a type

    @app.get("/api/manage/status")
    def status(_person: Manager) -> Response:
        return Response(web.status(), media_type="application/json")

    @app.get("/api/manage/flagged")
    def flagged(
        _person: Manager,
        offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
    ) -> Response:
        total, pairs = store.flagged(offset, limit)
        names, glosses = class_names(), class_definitions()
        rows = [
            {
                **dataclasses.asdict(pair),
                "label": names[pair.class_index],
                "gloss": glosses[pair.class_index],
                "image": f"/api/manage/images/{pair.question_id}",
            }
            for pair in pairs
        ]
        return JSONResponse({"total": total, "pairs": rows})

    @app.post("/api/manage/adjudicate")
    def adjudicate(request: Request, person: Manager, _own: OwnPage, decision: VerdictIn) -> Response:
        store.adjudicate(decision.question_id, decision.verdict, note=decision.note, actor=person.rater_id)
        detail = f"question {decision.question_id}: {decision.verdict}"
        store.audit(f"manager {person.rater_id}", "adjudicated", detail, address(request))
        return JSONResponse({"status": "ok"})

    @app.post("/api/manage/raters/{rater_id}")
    def rater(
        request: Request, person: Manager, _own: OwnPage, rater_id: int, action: RaterActionIn
    ) -> Response:
        if action.action == "pause":
            store.pause(rater_id, action.reason or "paused by a manager", actor=person.rater_id)
        else:
            store.reinstate(rater_id, actor=person.rater_id)
        detail = f"rater {rater_id}: {action.reason}"
        store.audit(f"manager {person.rater_id}", f"rater {action.action}d", detail, address(request))
        return JSONResponse({"status": "ok"})

    @app.post("/api/manage/invitations")
    def invitations(request: Request, person: Manager, _own: OwnPage, wanted: InvitationsIn) -> Response:
        made = store.invite(wanted.role, count=wanted.count, uses=wanted.uses, label=wanted.label)
        detail = f"{wanted.count} for role {wanted.role}, {wanted.uses} uses"
        store.audit(f"manager {person.rater_id}", "invited", detail, address(request))
        base = (web.settings.public_url or str(request.base_url)).rstrip("/")
        return JSONResponse({"links": [f"{base}/join/{one.token}" for one in made]})

    @app.get("/api/manage/images/{question_id}")
    def image(request: Request, _person: Manager, question_id: int) -> Response:
        picture = store.question_picture(question_id) if 0 < question_id < 2**31 else None
        if picture is None:
            raise HTTPException(404)
        return web.picture(request, pictures.render(picture.path))

    @app.get("/api/manage/audit")
    def audit(_person: Manager, limit: Annotated[int, Query(ge=1, le=1000)] = 200) -> Response:
        rows = store.audit_log(limit)
        names = ("at", "actor", "action", "detail", "address")
        return JSONResponse([{name: getattr(row, name) for name in names} for row in rows])
