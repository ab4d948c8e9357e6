"""Small studies on made-up pictures, and people who answer in them: made-up answers, for tests alone."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from annotations.campaign.store import Store
from annotations.study import gather, preregistration
from annotations.study.preregistration import PACK_FOLDER, Preregistration, default_hypotheses
from annotations.study.stimuli import ItemKind, Source, Stimuli, StudyItem, StudyPicture, write_stimuli

ARMS: tuple[preregistration.Arm, ...] = ("none", "feature", "example")


def png(seed: int, side: int = 32) -> bytes:
    """A picture of random colours."""
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).resize((side, side)).save(sink, "PNG")
    return sink.getvalue()


def make_stimuli(
    pictures: Path, *, items: int = 12, checks: int = 4, practice: int = 2, first: int = 0
) -> Stimuli:
    """Stimuli with random pictures, which are written into a folder: half of them adversarial."""
    pictures.mkdir(parents=True, exist_ok=True)
    mixed: tuple[ItemKind, ...] = ("adversarial", "clean", "adversarial", "sham")
    kinds: list[ItemKind] = [mixed[n % 4] for n in range(items)]
    kinds += ["attention"] * checks
    kinds += ["practice"] * practice
    made, files = [], []
    for n, kind in enumerate(kinds, start=first):
        known = kind in ("attention", "practice")
        made.append(
            StudyItem(
                item=hashlib.sha256(f"item {n}".encode()).hexdigest()[:16],
                image_id=f"image{n:03d}",
                kind=kind,
                shown_class=n,
                predicted_class=n,
                original_label=n if kind == "clean" else 500,
                verdict="accepted" if kind == "clean" else "rejected" if kind == "sham" else "unjudged",
                confidence=0.5,
                clean_confidence=0.9,
                block=n // 4,
                expected="" if not known else ("yes", "no")[n % 2],
            )
        )
        for at, arm in enumerate(ARMS):
            data = png(3 * n + at)
            name = f"{hashlib.sha256(data).hexdigest()}.png"
            (pictures / name).write_bytes(data)
            files.append(StudyPicture(item=made[-1].item, arm=arm, file=name))
    return Stimuli(
        source=Source(
            manifest_sha256="0" * 64, model={"name": "made-up"}, images="0" * 64, settings={}, versions={}
        ),
        settings={},
        arms=ARMS,
        items=tuple(made),
        pictures=tuple(files),
    )


def make_study(
    folder: Path,
    *,
    db: str | None = None,
    raters: int = 2,
    settings: dict[str, Any] | None = None,
    clock: Any = None,
    **stimuli: int,
) -> Store:
    """A study in a folder, as `beyond study create` makes it, and its open store."""
    made = make_stimuli(folder.parent / f"{folder.name}-pictures", **stimuli)
    digest = write_stimuli(folder / PACK_FOLDER, made, folder.parent / f"{folder.name}-pictures")
    items = made.of_kind("adversarial", "clean", "sham")
    plan = Preregistration(
        title="Made-up study",
        created="2026-11-24T14:00:00Z",
        pack_sha256=digest,
        arms=ARMS,
        raters_per_arm=raters,
        items_per_rater=len(items),
        items={k: len(made.of_kind(k)) for k in preregistration.KINDS},
        hypotheses=default_hypotheses(ARMS),
        made_up=True,
    )
    preregistration.write(folder, plan, answered=False)
    config = gather.study_config(plan, made, {"minimum_dwell_ms": 0} | (settings or {}))
    images, pairs, gold = gather.questions(made)
    more = {} if clock is None else {"clock": clock}
    return Store.create(
        gather.database(folder, db),
        config,
        images=images,
        pairs=pairs,
        gold=gold,
        images_spec=str(folder / PACK_FOLDER),
        **more,
    )
