"""The raters' web app and the managers' dashboard over a campaign's store.

`create_app(store, pictures, settings)` in `annotations.web.app` makes it; `beyond campaign serve` runs it.

Pages (HTML, from the server). Each redirects (303) to the page of the rater's stage if that is another.

=====================  =====================================================================================
GET  /                 To the page of the rater's stage, or a page that says an invitation is needed.
GET  /join/TOKEN       An invitation (`?PROLIFIC_PID=…&STUDY_ID=…&SESSION_ID=…` for Prolific): puts it into an
                       HttpOnly cookie and redirects to /welcome, so that it is gone from the address. It is
                       not used up: a mail scanner may open a link.
GET  /welcome          What this is, and one button.
POST /welcome          Uses the invitation up, opens the session, goes on.
GET  /consent          The consent text with its version.      POST /consent       form: csrf, version
GET  /instructions     The instructions.                       POST /instructions  form: csrf
GET  /work             The app: practice, qualification and work; all in JavaScript from here on.
GET  /thanks           Done, paused, failed or withdrawn; with the completion code where there is one.
POST /withdraw         form: csrf, confirm=withdraw. Takes back all answers, until the campaign is frozen.
GET  /stop             Asks a rater who wants to stop.         POST /stop          form: csrf
POST /leave            form: csrf. Ends the session.
GET  /manage           The managers' dashboard.
GET  /static/FILE      Stylesheets and scripts. No inline script or style is allowed anywhere (CSP).
GET  /healthz          `{"status": "ok"}`
=====================  =====================================================================================

JSON for raters. A request that changes something needs the header `X-CSRF-Token` (from /api/state, also in
`<meta name="csrf">` of every page). Errors are `{"error": "one line"}` with 400, 401 (no session: reload),
403, 404, 409, 413, 422, 429 (with Retry-After).

GET /api/state::

    {"csrf": "…", "progress": PROGRESS, "settings": {"prefetch": 16, "minimum_dwell_ms": 250,
     "maybe_allowed": true, "break_every": 250, "undo_limit": 20, "lease_seconds": 900}}

GET /api/questions?want=8: the questions the rater holds, in order, filled up to `want` (at most `prefetch`)::

    {"questions": [QUESTION, …], "progress": PROGRESS}

POST /api/answers: the outbox, in order, at most 200 items; sent again until every item has an outcome::

    {"items": [{"key": "client-made, 8–64 of A-Za-z0-9_-", "kind": "answer", "question": "TOKEN",
                "answer": "yes|no|maybe", "response_ms": 812, "at": 1790000000.0},
               {"key": "…", "kind": "undo", "question": "TOKEN"}],
     "want": 8}                                   want: as above; 0 (the default) asks for no questions
    → {"outcomes": [{"key": "…", "status": "recorded|duplicate|refused", "reason": "",
                     "feedback": null | {"right": false, "expected": "no", "explanation": "…"}}],
       "questions": [QUESTION, …], "progress": PROGRESS}

    An item with an outcome is durable (or refused for good) and leaves the outbox. After `undo` the question
    is held again and comes back in `questions` of the next answer. Anything but 200 means: keep the outbox,
    try again.

QUESTION::

    {"id": "TOKEN", "image": "/api/images/TOKEN", "label": "tench", "gloss": "freshwater dace-like …",
     "references": ["/api/references/TOKEN/0", …], "position": 12, "purpose": "practice|qualification|work"}

    In a study also `"beside": "/api/beside/TOKEN"` or null, and its `"caption": "…"`.

PROGRESS::

    {"stage": "practice|qualification|work|done|paused|failed|…", "answered": 120, "quota": 500 | null,
     "step_done": 3, "step_of": 5, "undoable": ["TOKEN", …], "waiting": false, "qualification_right": null}

    `step_*` count the practice or qualification round; `waiting`: no question now, ask again in some seconds.
    When `stage` is none of practice, qualification, work: go to `/`.

GET /api/images/TOKEN                   The picture (image/jpeg), for its rater alone; ETag,
                                        Cache-Control: private.
GET /api/beside/TOKEN                   The picture beside it, in a study: image/png, byte for byte.
GET /api/references/TOKEN/N             Thumbnail N of the label, if the server was given some.

JSON for managers (role manager; raters get 403):

GET  /api/manage/status                 `annotations.campaign.types.Status` as JSON (dataclasses as objects).
GET  /api/manage/flagged?offset=0       {"total": 12, "pairs": [FlaggedPair + "label", "gloss", "image": URL]}
POST /api/manage/adjudicate             {"question_id": 7, "verdict": "accepted|rejected|unsure" or null,
                                         "note": ""}
POST /api/manage/raters/ID              {"action": "pause|reinstate", "reason": ""}
POST /api/manage/invitations            {"role": "rater", "count": 1, "label": "", "uses": 1}
                                        → {"links": ["https://…/join/…"]}: shown once
GET  /api/manage/images/QUESTION_ID     The picture of a question.
GET  /api/manage/audit?limit=200        [{"at", "actor", "action", "detail", "address"}]
"""
