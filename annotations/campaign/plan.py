"""Rows of a new campaign: checked, numbered so that nothing shows in the numbers, and ranked."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from annotations.campaign.config import CampaignConfig
from annotations.campaign.types import NewGold, NewImage, NewPair
from annotations.classes import NUM_CLASSES
from annotations.errors import BeyondError


def plan(
    config: CampaignConfig,
    images: Sequence[NewImage],
    pairs: Iterable[NewPair],
    gold: Iterable[NewGold],
    key: bytes,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of images and questions, numbered in an order that tells nothing of their kind."""
    by_id = {image.image_id: image for image in images}
    if len(by_id) != len(images):
        twice = next(name for name, number in Counter(i.image_id for i in images).items() if number > 1)
        raise BeyondError(f"image {twice!r} is there twice; image ids must be unique")
    questions: dict[tuple[str, int, str], dict[str, Any]] = {}
    judged: set[tuple[str, int, str]] = set()
    for known in gold:
        _require_pair(known.image_id, known.class_index, by_id)
        if (known.arm or None) not in (None, *config.arms):
            raise BeyondError(
                f"gold with arm {known.arm!r}, but the campaign's arms are {config.arms or 'none'}"
            )
        asked_in = (known.arm,) if known.arm else ("", *config.arms)
        if any((known.image_id, known.class_index, arm) in judged for arm in asked_in):
            raise BeyondError(f"gold names image {known.image_id!r}, class {known.class_index} twice")
        judged.update((known.image_id, known.class_index, arm) for arm in asked_in)
        questions[(known.image_id, known.class_index, known.arm)] = {
            "beside": known.beside,
            "role": "practice" if known.practice else "gold",
            "expected": known.expected,
            "explanation": known.explanation,
            "reason": known.source,
            "priority": 0.0,
            "sampling_probability": 1.0,
            "wanted": 0,
        }
    work = 0
    for pair in pairs:
        _require_pair(pair.image_id, pair.class_index, by_id)
        if not 0 < pair.sampling_probability <= 1 or not math.isfinite(pair.priority):
            raise BeyondError(
                f"image {pair.image_id!r}, class {pair.class_index}: a sampling probability lies in "
                f"(0, 1] and a priority is finite, not {pair.sampling_probability:g} and {pair.priority:g}"
            )
        if (pair.arm or None) not in (config.arms or (None,)):
            raise BeyondError(
                f"pair with arm {pair.arm!r}, but the campaign's arms are {config.arms or 'none'}"
            )
        if (pair.image_id, pair.class_index, pair.arm) in judged:
            continue
        if (pair.image_id, pair.class_index, pair.arm) in questions:
            raise BeyondError(f"image {pair.image_id!r}, class {pair.class_index} is among the pairs twice")
        work += 1
        questions[(pair.image_id, pair.class_index, pair.arm)] = {
            "beside": pair.beside,
            "role": "work",
            "expected": None,
            "explanation": "",
            "reason": pair.reason,
            "priority": float(pair.priority),
            "sampling_probability": float(pair.sampling_probability),
            "wanted": config.votes,
        }
    if not work:
        raise BeyondError("there is no pair to judge; every pair that is given is gold, or none is given")
    mixed = sorted(questions, key=lambda q: hashlib.blake2b(repr(q).encode(), key=key).digest())
    used = sorted({image_id for image_id, _, _ in mixed})
    numbers = {image_id: number for number, image_id in enumerate(used, start=1)}
    image_rows = [
        {
            "id": numbers[image_id],
            "image_id": image_id,
            "path": by_id[image_id].path,
            "original_label": by_id[image_id].original_label,
        }
        for image_id in used
    ]
    ranks = {
        q: rank
        for rank, q in enumerate(
            sorted(mixed, key=lambda q: (questions[q]["role"] != "work", -questions[q]["priority"]))
        )
    }
    empty = {"counted": 0, "leased": 0, "yes": 0, "no": 0, "maybe": 0, "is_open": True, "verdict": None}
    question_rows = [
        {
            "id": number,
            "image_ref": numbers[q[0]],
            "class_index": q[1],
            "arm": q[2],
            "rank": ranks[q],
            **questions[q],
            **empty,
        }
        for number, q in enumerate(mixed, start=1)
    ]
    return image_rows, question_rows


def _require_pair(image_id: str, class_index: int, images: Mapping[str, NewImage]) -> None:
    if image_id not in images:
        raise BeyondError(f"there is no file for image {image_id!r} among the images; check --images")
    if not 0 <= class_index < NUM_CLASSES:
        raise BeyondError(f"image {image_id!r}: class {class_index} is outside 0..999")
