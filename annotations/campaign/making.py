"""Files turned into what a campaign is made of: pairs, gold and settings."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from annotations.campaign.config import CampaignConfig, parse_config
from annotations.campaign.types import NewGold, NewImage, NewPair
from annotations.classes import NUM_CLASSES, class_names
from annotations.errors import BeyondError, one_line
from annotations.files import read_settings
from annotations.judgements import LabelSets, Verdict
from annotations.tables import read_parquet

GOLD_LIMIT = 1000

PARQUET_TYPES = {
    **dict.fromkeys(("image_id", "reason", "arm", "expected", "explanation"), pa.string()),
    **dict.fromkeys(("priority", "sampling_probability"), pa.float64()),
    "class_index": pa.int64(),
}


def read_config(file: Path | None, given: dict[str, Any]) -> CampaignConfig:
    """Settings from a YAML file, overridden by what was given at the command line (None: not given).

    Raises:
        BeyondError: The file is unreadable, or a setting is unknown or out of range.
    """
    values: dict[str, Any] = {}
    if file is not None:
        values = read_settings(file, example="votes: 5")
    for name in ("study", "arms"):
        if name in values:
            raise BeyondError(f"{file}: {name}: a study in arms is made with beyond study create")
    values |= {name: value for name, value in given.items() if value is not None}
    votes = values.get("votes")
    if isinstance(votes, int) and "accept_at" not in values and votes != 5:
        values["accept_at"] = math.ceil(0.8 * votes)  # the share of the default, 4 of 5
    return parse_config(values, where=str(file) if file else "settings")


def read_pairs(file: Path) -> list[NewPair]:
    """Pairs to judge, from Parquet or CSV.

    Columns: image_id, class_index; optional priority, sampling_probability, reason, arm.

    Raises:
        BeyondError: It is unreadable, lacks a column, or holds a value out of range.
    """
    frame = _read_table(file)
    ids, classes = _pairs_of(frame, file)
    count = len(frame)

    def column(name: str, default: Any) -> Sequence[Any]:
        values: Sequence[Any] = frame[name].tolist() if name in frame else [default] * count
        return [default if value is None or value != value else value for value in values]

    try:
        priorities = [float(value) for value in column("priority", 0.0)]
        probabilities = [float(value) for value in column("sampling_probability", 1.0)]
    except (TypeError, ValueError):
        raise BeyondError(f"{file}: priority and sampling_probability must be numbers") from None
    reasons, arms = column("reason", ""), column("arm", "")
    return [
        NewPair(ids[i], classes[i], priorities[i], probabilities[i], str(reasons[i]), str(arms[i]))
        for i in range(count)
    ]


def read_gold(file: Path) -> list[NewGold]:
    """Gold from Parquet or CSV: image_id, class_index, expected (yes, no); optional practice, explanation.

    Raises:
        BeyondError: It is unreadable, lacks a column, or an answer is neither yes nor no.
    """
    frame = _read_table(file)
    ids, classes = _pairs_of(frame, file)
    if "expected" not in frame:
        raise BeyondError(f"{file} has no column 'expected'; gold needs image_id, class_index and expected")
    expected = [str(value).strip().lower() for value in frame["expected"]]
    bad = [value for value in expected if value not in ("yes", "no")]
    if bad:
        raise BeyondError(f"{file}: the expected answer {bad[0]!r} is neither yes nor no")
    practice = frame["practice"].tolist() if "practice" in frame else [False] * len(frame)
    explanations = frame["explanation"].fillna("").tolist() if "explanation" in frame else [""] * len(frame)
    return [
        NewGold(
            ids[i],
            classes[i],
            "yes" if expected[i] == "yes" else "no",
            practice=str(practice[i]).strip().lower() in ("true", "1", "1.0", "yes"),
            explanation=str(explanations[i]),
            source=file.name,
        )
        for i in range(len(frame))
    ]


def gold_from_labels(
    label_sets: LabelSets,
    images: Collection[str],
    *,
    limit: int = GOLD_LIMIT,
    seed: int = 0,
    exclude: Collection[tuple[str, int]] = (),
) -> list[NewGold]:
    """Gold from label sets: as many accepted pairs as rejected ones, drawn at random.

    Args:
        label_sets: A source of expert verdicts.
        images: Ids of the images at hand.
        limit: At most so many.
        seed: Of the draw.
        exclude: Pairs that are not to become gold.

    Raises:
        BeyondError: The source accepts none of the pairs at hand, or rejects none: gold of one answer would
            teach raters to give it.
    """
    here = np.isin(label_sets.image_ids, np.array(list(images), dtype=object))[label_sets.pair_image]
    generator = np.random.default_rng(seed)
    groups: list[list[NewGold]] = []
    for verdict, expected in ((Verdict.ACCEPTED, "yes"), (Verdict.REJECTED, "no")):
        rows = generator.permutation(np.flatnonzero(here & (label_sets.verdict == verdict)))
        pairs = [
            (label_sets.image_ids[label_sets.pair_image[r]], int(label_sets.pair_class[r])) for r in rows
        ]
        groups.append(
            [
                NewGold(
                    image_id,
                    class_index,
                    "yes" if expected == "yes" else "no",
                    explanation=_explanation(expected, class_index),
                    source=f"{label_sets.source} ({label_sets.revision})",
                )
                for image_id, class_index in pairs
                if (image_id, class_index) not in exclude
            ]
        )
    each = min(len(groups[0]), len(groups[1]), limit // 2)
    if each == 0:
        missing = "accepted" if not groups[0] else "rejected"
        raise BeyondError(
            f"{label_sets.source} has no {missing} pair on these images, and gold needs both yes and no; "
            "name another source with --gold, or a file of gold"
        )
    return [gold for pair in zip(groups[0][:each], groups[1][:each]) for gold in pair]


def _explanation(expected: str, class_index: int) -> str:
    name = class_names()[class_index]
    return f"Experts see “{name}” here." if expected == "yes" else f"Experts see no “{name}” here."


def with_practice(gold: Sequence[NewGold], number: int) -> list[NewGold]:
    """Gold of which `number` are for practice: those marked so, or else the first, yes and no in turn."""
    if any(known.practice for known in gold) or number == 0:
        return list(gold)
    groups = {e: [i for i, known in enumerate(gold) if known.expected == e] for e in ("yes", "no")}
    in_turn = [i for both in zip(groups["yes"], groups["no"]) for i in both]
    # Practice must leave gold for the work.
    chosen = set(in_turn[: min(number, len(gold) // 4)])
    return [
        NewGold(k.image_id, k.class_index, k.expected, i in chosen, k.explanation, k.source)
        for i, k in enumerate(gold)
    ]


def require_images(pairs: Sequence[NewPair], images: Sequence[NewImage], *, skip: bool) -> list[NewPair]:
    """The pairs whose images are at hand.

    Raises:
        BeyondError: An image is missing, and `skip` is False.
    """
    here = {image.image_id for image in images}
    missing = sorted({pair.image_id for pair in pairs} - here)
    if missing and not skip:
        raise BeyondError(
            f"{len(missing):,} images of the pairs are not in --images, the first is {missing[0]!r}; "
            "give the right folder, or leave them out with --skip-missing"
        )
    return [pair for pair in pairs if pair.image_id in here]


def _read_table(file: Path) -> pd.DataFrame:
    if not file.is_file():
        raise BeyondError(f"no such file: {file}")
    try:
        if file.suffix.lower() == ".csv":
            texts = [name for name, kind in PARQUET_TYPES.items() if kind == pa.string()]
            return pd.read_csv(file, dtype=dict.fromkeys(texts, str), index_col=False)
        if file.suffix.lower() == ".parquet":
            frame: pd.DataFrame = read_parquet(file, PARQUET_TYPES).to_pandas()
            return frame
    except (ValueError, OSError) as error:
        raise BeyondError(f"{file} cannot be read ({one_line(error)})") from None
    raise BeyondError(f"{file} is neither .parquet nor .csv")


def _pairs_of(frame: pd.DataFrame, file: Path) -> tuple[list[str], list[int]]:
    for name in ("image_id", "class_index"):
        if name not in frame:
            raise BeyondError(f"{file} has no column {name!r}; it has {', '.join(map(str, frame.columns))}")
    if frame.empty:
        raise BeyondError(f"{file} holds no rows")
    numbers = pd.to_numeric(frame["class_index"], errors="coerce").to_numpy(dtype=np.float64)
    bad = ~((numbers >= 0) & (numbers < NUM_CLASSES) & (numbers == np.floor(numbers)))
    if bad.any():
        raise BeyondError(
            f"{file}: class {frame['class_index'].tolist()[int(np.argmax(bad))]!r} is not in 0..999"
        )
    ids = frame["image_id"].tolist()
    if any(not isinstance(value, str) or not value for value in ids):
        raise BeyondError(f"{file} has a row without an image_id")
    return ids, [int(number) for number in numbers]
