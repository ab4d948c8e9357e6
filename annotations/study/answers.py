"""What a study asked and what people answered: two tables, on disk as Parquet or CSV.

`ITEMS` and `ANSWERS` name the columns. An item is one question: an image, altered or not, with a class. An
answer is one rater's, in the one arm that the rater is in. Tables are kept sorted, so that the same rows give
the same bytes in whatever order they came.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from annotations.errors import BeyondError, one_line
from annotations.files import write_atomically
from annotations.study.preregistration import (
    ARMS,
    MANIFEST_FILE,
    PACK_FOLDER,
    Preregistration,
    check_pictures,
    verify,
)
from annotations.tables import read_parquet

ITEMS_FILE = "items.parquet"
ANSWERS_FILE = "answers.parquet"

ITEM_KINDS = ("adversarial", "clean", "sham", "attention", "practice")
VERDICTS = ("accepted", "unsure", "rejected", "unjudged")
ANSWER_VALUES = ("yes", "no", "maybe")
ROLES = ("work", "attention", "practice")

ITEMS = pa.schema(
    [
        pa.field("item", pa.string(), nullable=False),  # its name, unique
        pa.field("image_id", pa.string(), nullable=False),  # raters and images are what clusters answers
        pa.field("kind", pa.string(), nullable=False),  # one of ITEM_KINDS
        pa.field("shown_class", pa.int16(), nullable=False),  # asked about; −1 unknown
        pa.field("predicted_class", pa.int16(), nullable=False),  # −1 unknown
        pa.field("original_label", pa.int16(), nullable=False),  # −1 unknown
        pa.field("verdict", pa.string(), nullable=False),  # of shown_class for the unaltered image
        pa.field("confidence", pa.float64()),  # softmax probability of shown_class
        pa.field("clean_confidence", pa.float64()),
        pa.field("distance", pa.float64()),
        pa.field("block", pa.int32(), nullable=False),
        pa.field(
            "expected", pa.string(), nullable=False
        ),  # known answer of a check or practice: yes, no, or ""
    ]
)
ANSWERS = pa.schema(
    [
        pa.field("rater", pa.string(), nullable=False),  # pseudonym
        pa.field("item", pa.string(), nullable=False),
        pa.field("arm", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),  # yes: the label applies
        pa.field("seconds", pa.float64()),  # from showing to answering; null unknown
        pa.field("position", pa.int32(), nullable=False),  # in the rater's own sequence, from 1; 0 unknown
        pa.field("role", pa.string(), nullable=False),  # one of ROLES
        pa.field("pack", pa.string(), nullable=False),  # sha256 of the manifest it was answered under, or ""
        pa.field("preregistration", pa.string(), nullable=False),  # sha256, or ""
        pa.field("made_up", pa.bool_(), nullable=False),  # a program answered, for a test
    ]
)
_DEFAULTS: dict[str, Any] = {
    "image_id": "",
    "kind": "adversarial",
    "shown_class": -1,
    "predicted_class": -1,
    "original_label": -1,
    "verdict": "unjudged",
    "confidence": None,
    "clean_confidence": None,
    "distance": None,
    "block": 0,
    "expected": "",
    "seconds": None,
    "position": 0,
    "role": "work",
    "pack": "",
    "preregistration": "",
    "made_up": False,
}


@dataclass(frozen=True)
class StudyAnswers:
    """The tables of one study; made by `study_answers`, which checks them.

    Attributes:
        items: Columns of `ITEMS`, sorted by item.
        answers: Columns of `ANSWERS`, sorted by rater and item; one row for each rater and item.
        notes: What was noticed in reading, for the report.
    """

    items: pd.DataFrame
    answers: pd.DataFrame
    notes: tuple[str, ...] = field(default=())

    @property
    def made_up(self) -> bool:
        """Whether any answer is marked as made up."""
        return bool(self.answers["made_up"].any())

    def write(self, folder: Path) -> None:
        """Write `items.parquet` and `answers.parquet`; the same rows give the same bytes."""
        folder.mkdir(parents=True, exist_ok=True)
        for frame, schema, name in (
            (self.items, ITEMS, ITEMS_FILE),
            (self.answers, ANSWERS, ANSWERS_FILE),
        ):
            table = pa.Table.from_pandas(frame, schema=schema, preserve_index=False)
            sink = pa.BufferOutputStream()
            pq.write_table(table.replace_schema_metadata(None), sink, compression="zstd")
            write_atomically(folder / name, sink.getvalue().to_pybytes())

    def write_csv(self, folder: Path) -> None:
        """Write `items.csv` and `answers.csv`, which `read_answers` reads as well."""
        folder.mkdir(parents=True, exist_ok=True)
        for frame, schema, name in (
            (self.items, ITEMS, ITEMS_FILE),
            (self.answers, ANSWERS, ANSWERS_FILE),
        ):
            table = pa.Table.from_pandas(frame, schema=schema, preserve_index=False)
            pacsv.write_csv(table, folder / name.replace(".parquet", ".csv"))


def study_answers(
    items: pd.DataFrame, answers: pd.DataFrame, *, where: str = "answers", notes: Sequence[str] = ()
) -> StudyAnswers:
    """Check tables and put them into their form. Columns that are not given take their defaults.

    Args:
        items: `item` at least.
        answers: `rater`, `item`, `arm` and `answer` at least.
        where: What errors call them.
        notes: Kept for the report.

    Raises:
        BeyondError: A column is missing or unknown, a value is out of range, an item or an answer comes
            twice, an answer is to an item that is not there, or a rater is in two arms.
    """
    items = _conform(items, ITEMS, ("item",), f"{where}: items")
    blank = items["image_id"] == ""
    items.loc[blank, "image_id"] = items.loc[blank, "item"]
    answers = _conform(answers, ANSWERS, ("rater", "item", "arm", "answer"), f"{where}: answers")
    for frame, column, allowed in (
        (items, "kind", ITEM_KINDS),
        (items, "verdict", VERDICTS),
        (items, "expected", ("yes", "no", "")),
        (answers, "arm", ARMS),
        (answers, "answer", ANSWER_VALUES),
        (answers, "role", ROLES),
    ):
        odd = ~frame[column].isin(allowed)
        if odd.any():
            row = frame[odd].iloc[0]
            raise BeyondError(
                f"{where}: item {row['item']!r} has {column} {row[column]!r}; it must be one of "
                f"{', '.join(name or 'empty' for name in allowed)}"
            )
    for frame, column in ((items, "item"), (answers, "rater"), (answers, "item")):
        if (frame[column] == "").any():
            raise BeyondError(f"{where}: a row has an empty {column}; every row needs one")
    for column in ("confidence", "clean_confidence"):
        if ((items[column] < 0) | (items[column] > 1)).any():
            raise BeyondError(f"{where}: a {column} is outside [0, 1]")
    if (answers["seconds"] < 0).any() or np.isinf(answers["seconds"]).any():
        raise BeyondError(f"{where}: an answer took a negative or infinite time; seconds are 0 or more")
    twice = items["item"].duplicated()
    if twice.any():
        raise BeyondError(f"{where}: item {items.loc[twice, 'item'].iloc[0]!r} is listed twice")
    twice = answers.duplicated(["rater", "item"])
    if twice.any():
        row = answers[twice].iloc[0]
        raise BeyondError(
            f"{where}: rater {row['rater']!r} answered item {row['item']!r} twice; keep the last answer only"
        )
    lost = ~answers["item"].isin(items["item"])
    if lost.any():
        raise BeyondError(
            f"{where}: {int(lost.sum()):,} answers are to items that are not there, such as "
            f"{answers.loc[lost, 'item'].iloc[0]!r}; the answers belong to another pack"
        )
    arms = answers.groupby("rater")["arm"].nunique()
    if (arms > 1).any():
        raise BeyondError(
            f"{where}: rater {arms[arms > 1].index[0]!r} answered in {int(arms.max())} arms; a rater belongs "
            "to one, since who has seen explanations is no longer without"
        )
    return StudyAnswers(
        items.sort_values("item", kind="stable").reset_index(drop=True),
        answers.sort_values(["rater", "item"], kind="stable").reset_index(drop=True),
        tuple(notes),
    )


def read_answers(folder: Path) -> StudyAnswers:
    """Read what `StudyAnswers.write` or `write_csv` wrote.

    Raises:
        BeyondError: A table is missing, cannot be read, or does not hold together.
    """
    frames = []
    for name, schema in ((ITEMS_FILE, ITEMS), (ANSWERS_FILE, ANSWERS)):
        path = folder / name
        text = folder / name.replace(".parquet", ".csv")
        try:
            if path.is_file():
                types = {f.name: f.type for f in schema}
                filled = [f.name for f in schema if not f.nullable]
                frames.append(read_parquet(path, types, filled=filled).to_pandas())
            elif text.is_file():
                options = pacsv.ConvertOptions(
                    column_types={f.name: f.type for f in schema}, strings_can_be_null=False
                )
                frames.append(pacsv.read_csv(text, convert_options=options).to_pandas())
            else:
                raise BeyondError(f"{folder} has no {name}; gather answers first")
        except (pa.ArrowException, OSError) as error:
            raise BeyondError(f"{folder} holds a damaged {name} ({one_line(error)})") from None
    return study_answers(*frames, where=str(folder))


def read_study(folder: Path) -> tuple[StudyAnswers, Preregistration]:
    """Read a study that was made here, with its plan, and check that neither plan nor stimuli changed.

    Items come from the manifest of the stimuli, which the preregistration names by its hash.

    Raises:
        BeyondError: Something is missing or was changed, or the answers are to other items.
    """
    plan = verify(folder)
    named, missing = check_pictures(folder / PACK_FOLDER)
    study = read_answers(folder)
    items = study_answers(items_of_pack(folder / PACK_FOLDER), study.answers, where=str(folder)).items
    if not items.equals(study.items):
        raise BeyondError(
            f"{folder / ITEMS_FILE} is not what the stimuli say; delete it and gather the answers again"
        )
    notes = []
    if missing:
        notes.append(
            f"{missing:,} of the {named:,} pictures are not here, so that only the manifest was checked for "
            "changes."
        )
    return StudyAnswers(items, study.answers, (*study.notes, *notes)), plan


def items_of_pack(pack: Path) -> pd.DataFrame:
    """The items of a pack of explanations, in columns of `ITEMS`, from its manifest.

    Raises:
        BeyondError: There is no manifest, or it cannot be read.
    """
    path = pack / MANIFEST_FILE
    try:
        listed = json.loads(path.read_bytes())["items"]
        frame = pd.DataFrame([dict(item) for item in listed])
    except (OSError, ValueError, KeyError, TypeError):
        raise BeyondError(f"{path} cannot be read; make the pack again with: beyond explain RUN") from None
    return _conform(frame[[c for c in frame.columns if c in ITEMS.names]], ITEMS, ("item",), str(path))


def _conform(frame: pd.DataFrame, schema: pa.Schema, needed: Sequence[str], where: str) -> pd.DataFrame:
    """The columns of a schema, in its order and types."""
    for name in needed:
        if name not in frame.columns:
            raise BeyondError(f"{where} have no column {name!r}; they need {', '.join(needed)}")
    unknown = [str(name) for name in frame.columns if name not in schema.names]
    if unknown:
        raise BeyondError(f"{where} have an unknown column {unknown[0]!r}; known: {', '.join(schema.names)}")
    columns: dict[str, Any] = {}
    for column in schema:
        name = column.name
        values = frame[name] if name in frame.columns else pd.Series([_DEFAULTS[name]] * len(frame))
        try:
            if pa.types.is_string(column.type):
                if values.isna().any():
                    raise BeyondError(f"{where}: a row has an empty {name}; every row needs one")
                columns[name] = values.astype(str).to_numpy(dtype=object)
            elif pa.types.is_boolean(column.type):
                columns[name] = values.astype(bool).to_numpy()
            elif pa.types.is_integer(column.type):
                numbers = pd.to_numeric(values).to_numpy(dtype=np.float64)
                limits = np.iinfo(column.type.to_pandas_dtype())
                if not (
                    (numbers == np.rint(numbers)) & (numbers >= limits.min) & (numbers <= limits.max)
                ).all():
                    raise ValueError("not a whole number")
                columns[name] = numbers.astype(column.type.to_pandas_dtype())
            else:
                columns[name] = pd.to_numeric(values).to_numpy(dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise BeyondError(f"{where}: column {name!r} does not fit ({error})") from None
    return pd.DataFrame(columns, columns=schema.names)
