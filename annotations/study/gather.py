"""A study between its folder and its campaign: the questions that it asks, and the answers that it got.

```
STUDY/preregistration.json    see `preregistration`
STUDY/pack/                   see `stimuli`
STUDY/campaign.db             the campaign, unless it is kept in PostgreSQL
```
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from annotations.campaign.config import STUDY_FILE
from annotations.errors import BeyondError
from annotations.study import preregistration, texts
from annotations.study.preregistration import PACK_FOLDER, Preregistration
from annotations.study.stimuli import Stimuli, read_stimuli, require_pictures

if TYPE_CHECKING:
    from annotations.campaign.config import CampaignConfig
    from annotations.campaign.store import Store
    from annotations.campaign.types import NewGold, NewImage, NewPair
    from annotations.study.answers import StudyAnswers

_UNLIMITED = 100_000  # counted answers of a question: whoever comes may answer all of them


def database(study: Path, db: str | None = None) -> str:
    """The database of a study: what was named, or the one in its folder."""
    return db or str(study / STUDY_FILE)


def open_study(study: Path, db: str | None = None) -> Store:
    """Open the campaign of a study.

    Raises:
        BeyondError: There is none, or it is no study.
    """
    from annotations.campaign.store import Store

    if db is None and not (study / STUDY_FILE).is_file():
        raise BeyondError(
            f"{study} holds no {STUDY_FILE}; make a study with: beyond study create RUN --out {study}, or "
            "name the database with --db"
        )
    store = Store.open(database(study, db))
    if store.config.study is None:
        name = store.database.name
        store.close()
        raise BeyondError(f"{name} is a campaign and no study; make a study with: beyond study create RUN")
    return store


# Making ----------------------------------------------------------------------------------------------------


def study_config(
    plan: Preregistration,
    stimuli: Stimuli,
    settings: Mapping[str, Any] | None = None,
    *,
    where: str = "settings",
) -> CampaignConfig:
    """Settings of a study's campaign.

    Args:
        plan: Its preregistration.
        stimuli: Its stimuli.
        settings: Texts and other settings of a campaign to use in place of those of `texts`; also
            `debriefing`, `notes` and `captions` (by arm).
        where: What errors call these.

    Raises:
        BeyondError: A setting is unknown, out of its range, or decided by the plan.
    """
    from annotations.campaign.config import parse_config

    given = dict(settings or {})
    fixed = (
        "arms",
        "study",
        "votes",
        "accept_at",
        "stop_early",
        "quota",
        "gold_rate",
        "quality_floor",
        "practice_questions",
        "qualification_questions",
    )
    clash = [name for name in fixed if name in given]
    if clash:
        raise BeyondError(f"{where}: {clash[0]}: a study decides this by its plan; leave it out")
    checks = len(stimuli.of_kind("attention"))
    items = len(stimuli.of_kind("adversarial", "clean", "sham"))
    values: dict[str, Any] = {
        "name": "Do these labels apply?",
        "consent": texts.CONSENT,
        "instructions": texts.INSTRUCTIONS,
        "maybe_allowed": False,
        "break_every": 0,
        "study": {
            "preregistration": plan.sha256,
            "pack": plan.pack_sha256,
            "raters": plan.raters_per_arm,
            "check_every": (items + checks) // checks if checks else 0,
            "notes": texts.NOTES | dict(given.pop("notes", None) or {}),
            "captions": texts.CAPTIONS | dict(given.pop("captions", None) or {}),
            "debriefing": given.pop("debriefing", None) or texts.DEBRIEFING,
            "made_up": plan.made_up,
        },
    }
    values |= given
    values |= {
        "arms": plan.arms,
        "votes": _UNLIMITED,
        "accept_at": _UNLIMITED,
        "quota": items + checks,
        "gold_rate": 0.0,
        "quality_floor": 0.0,
        "practice_questions": len(stimuli.of_kind("practice")),
        "qualification_questions": 0,
    }
    return parse_config(values, where=where)


def questions(stimuli: Stimuli) -> tuple[list[NewImage], list[NewPair], list[NewGold]]:
    """Images, pairs and gold of a study's campaign: each item once in each arm."""
    from annotations.campaign.types import NewGold, NewImage, NewPair

    files = stimuli.files()
    images = [NewImage(i.image_id, files[i.item, "none"], i.original_label) for i in stimuli.items]
    pairs: list[NewPair] = []
    gold: list[NewGold] = []
    for item in stimuli.items:
        for arm in stimuli.arms:
            beside = "" if arm == "none" else files[item.item, arm]
            if item.expected:
                gold.append(
                    NewGold(
                        item.image_id,
                        item.shown_class,
                        "yes" if item.expected == "yes" else "no",
                        practice=item.kind == "practice",
                        explanation=texts.RIGHT if item.expected == "yes" else texts.WRONG,
                        source=item.item,
                        arm=arm,
                        beside=beside,
                    )
                )
            else:
                pairs.append(
                    NewPair(item.image_id, item.shown_class, reason=item.item, arm=arm, beside=beside)
                )
    return images, pairs, gold


def check(study: Path, store: Store) -> Preregistration:
    """Check that a study's plan, stimuli, pictures and database are those that were made together.

    Returns:
        The plan.

    Raises:
        BeyondError: One of them was changed, is missing, or belongs to another study.
    """
    config = store.config.study
    if config is None:
        raise BeyondError(f"{store.database.name} is a campaign and no study")
    plan = preregistration.read(study)
    if plan.sha256 != config.preregistration:
        raise BeyondError(
            f"{study / preregistration.PREREGISTRATION_FILE} is not the one that {store.database.name} "
            f"was made with (sha256 {plan.sha256[:12]}…, not {config.preregistration[:12]}…); put the "
            "original back"
        )
    found = preregistration.pack_sha256(study / PACK_FOLDER)
    if found != plan.pack_sha256 or found != config.pack:
        raise BeyondError(
            f"{study / PACK_FOLDER} holds the stimuli of another study, or was changed (sha256 "
            f"{found[:12]}…, preregistered {plan.pack_sha256[:12]}…); put the original back"
        )
    stimuli = read_stimuli(study)
    require_pictures(study / PACK_FOLDER, sorted({picture.file for picture in stimuli.pictures}))
    _require_questions(stimuli, store)
    return plan


def _require_questions(stimuli: Stimuli, store: Store) -> None:
    """Check that a database asks what the stimuli say, with their pictures."""
    images, pairs, gold = questions(stimuli)
    path_of = {image.image_id: image.path for image in images}
    wanted = {(p.image_id, p.class_index, p.arm, path_of[p.image_id], p.beside) for p in pairs}
    wanted |= {(g.image_id, g.class_index, g.arm, path_of[g.image_id], g.beside) for g in gold}
    there = {(q.image_id, q.class_index, q.arm, q.path, q.beside) for q in store.asked()}
    odd = wanted ^ there
    if odd:
        image_id, class_index, arm, *_ = min(odd)
        raise BeyondError(
            f"{store.database.name} and the stimuli do not belong together: {len(odd):,} questions differ, "
            f"the first is image {image_id!r}, class {class_index}, arm {arm}; put the originals back"
        )


# Answers ---------------------------------------------------------------------------------------------------


def gather(study: Path, db: str | None = None) -> StudyAnswers:
    """What people answered in a study, out of its campaign's database.

    Practice is in it, with its role; what was undone or withdrawn is not. The order of raters and rows
    depends on the answers alone.

    Raises:
        BeyondError: There is no such study, or its plan or stimuli were changed.
    """
    import pandas as pd

    from annotations.study.answers import items_of_pack, study_answers

    store = open_study(study, db)
    try:
        config = store.config.study
        assert config is not None
        preregistration.verify(study, expected=config.preregistration)
        preregistration.check_pictures(study / PACK_FOLDER)
        stimuli = read_stimuli(study)
        _require_questions(stimuli, store)
        given = store.given()
        name = store.database.name
    finally:
        store.close()
    kinds = {item.item: item.kind for item in stimuli.items}
    rows = [
        {
            "rater": one.rater,
            "item": one.item,
            "arm": one.arm,
            "answer": one.answer,
            "seconds": None if one.response_ms is None else one.response_ms / 1000,
            "position": one.position,
            "role": kinds[one.item] if kinds[one.item] in ("attention", "practice") else "work",
            "pack": config.pack,
            "preregistration": config.preregistration,
            "made_up": config.made_up,
        }
        for one in given
    ]
    answers = pd.DataFrame(rows, columns=list(rows[0]) if rows else ["rater", "item", "arm", "answer"])
    return study_answers(items_of_pack(study / PACK_FOLDER), answers, where=name)
