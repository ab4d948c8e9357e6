"""`Store`: everything that is done with a campaign. (Being written; this is what it will offer.)

Making and opening:
    Store.create(url, config, *, images, pairs, gold, clock=time.time) -> Store
    Store.open(url, *, clock=time.time) -> Store      migrates an older schema first
    store.config -> CampaignConfig;  store.close();  store.backup(path);  store.freeze();  store.check() -> list[str]
People:
    store.invite(role="rater", *, count=1, uses=1, label="", days=30, rater_id=None) -> list[Invitation]
    store.invitation(token) -> Role | None            usable now?
    store.accept(token, *, prolific=None) -> NewSession | None
    store.person(session_token) -> Person | None;     store.end_session(session_token)
    store.consent(rater_id, version) -> Stage;  store.read_instructions(rater_id) -> Stage
    store.withdraw(rater_id);  store.pause(rater_id, reason, actor);  store.reinstate(rater_id, actor)
Work:
    store.questions(rater_id, want) -> Batch          what the rater holds, filled up to `want`
    store.submit(rater_id, items) -> list[Outcome]    durable when it returns
    store.progress(rater_id) -> Progress
    store.picture(rater_id, token) -> Picture | None
Managing:
    store.status() -> Status;  store.flagged(offset, limit) -> (total, list[FlaggedPair])
    store.adjudicate(question_id, verdict, note, actor);  store.votes() -> Votes
    store.audit(actor, action, detail, address);  store.audit_log(limit)
"""
