"""Answers of studies that were made elsewhere: a long CSV, one answer a row, with any column names.

```
rater,item,arm,answer,correct
w17,ILSVRC2012_val_00000293|tiger,feature,agree,0
```

`correct` says whether the label shown is right, or, if told so, whether the rater was. Raters' names do not
come in: they are numbered, in an order that tells nothing of the names.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import pandas as pd

from annotations.errors import BeyondError
from annotations.study.answers import ANSWER_VALUES, ITEM_KINDS, ROLES, VERDICTS, StudyAnswers, study_answers
from annotations.study.preregistration import ARMS

NEEDED = ("rater", "item", "arm", "answer")
OF_ITEM = (
    "image_id",
    "kind",
    "shown_class",
    "predicted_class",
    "original_label",
    "verdict",
    "confidence",
)
FIELDS = (*NEEDED, "correct", "seconds", "milliseconds", "position", "role", *OF_ITEM)
"""What a column can be."""

CORRECT = "correct"
_YES = {"yes", "y", "true", "t", "1", "agree", "accept", "accepted", "right", "correct"}
_NO = {"no", "n", "false", "f", "0", "disagree", "reject", "rejected", "wrong", "incorrect"}
_MAYBE = {"maybe", "m", "unsure", "not sure", "unclear", "don't know"}
_WORDS: dict[str, dict[str, str]] = {
    "answer": dict.fromkeys(_YES, "yes") | dict.fromkeys(_NO, "no") | dict.fromkeys(_MAYBE, "maybe"),
    "correct": dict.fromkeys(_YES, "yes") | dict.fromkeys(_NO, "no") | {"": ""},
    "arm": {name: name for name in ARMS},
    "kind": {name: name for name in ITEM_KINDS},
    "role": {name: name for name in ROLES},
    "verdict": {name: name for name in VERDICTS},
}
"""What is understood without being told, in lower case."""

_INTEGERS = ("shown_class", "predicted_class", "original_label", "position")
_NUMBERS = ("seconds", "milliseconds", "confidence")


def parse_map(texts: Sequence[str]) -> dict[str, str]:
    """Which column is what, from texts such as `rater=worker_id`.

    Raises:
        BeyondError: A text is none, or a field is unknown or named twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, column = text.partition("=")
        if not equals or not column:
            raise BeyondError(f"{text!r} maps nothing; write FIELD=COLUMN, such as rater=worker_id")
        if name not in FIELDS:
            raise BeyondError(f"{name!r} in {text!r} is no field; fields are {', '.join(FIELDS)}")
        if name in found:
            raise BeyondError(f"{name} is mapped twice, to {found[name]!r} and {column!r}; leave one out")
        found[name] = column
    return found


def parse_values(texts: Sequence[str]) -> dict[str, dict[str, str]]:
    """What values mean, from texts such as `arm:heatmap=feature`.

    Raises:
        BeyondError: A text is none, or what it means is none of the field's values.
    """
    found: dict[str, dict[str, str]] = {}
    for text in texts:
        head, equals, ours = text.rpartition("=")
        name, colon, theirs = head.partition(":")
        if not equals or not colon:
            raise BeyondError(
                f"{text!r} means nothing; write FIELD:VALUE=MEANING, such as arm:heatmap=feature"
            )
        if name not in _WORDS:
            raise BeyondError(f"{name!r} in {text!r} has no fixed values; {', '.join(_WORDS)} have")
        allowed = _allowed(name)
        if ours not in allowed:
            raise BeyondError(f"{ours!r} in {text!r} is no {name}; it must be one of {', '.join(allowed)}")
        found.setdefault(name, {})[theirs.strip().casefold()] = ours
    return found


def read_long_csv(
    path: Path,
    *,
    columns: Mapping[str, str] | None = None,
    values: Mapping[str, Mapping[str, str]] | None = None,
    kind: str = "adversarial",
    correct: Literal["label", "rater"] = "label",
    made_up: bool = False,
) -> StudyAnswers:
    """Read answers from a CSV file, one a row; commas, semicolons or tabs, whichever the head has.

    Args:
        path: The file, UTF-8.
        columns: Field to the name of its column; a field that is not here has its own name, if it is there.
        values: Field to what its values mean, in lower case; added to what is understood anyway.
        kind: What items are where the file does not say: adversarial predictions by default.
        correct: Whether the column `correct` says that the label shown is right, or that the rater was.
        made_up: Mark the answers as made up for a test.

    Returns:
        The answers; raters are `p1`, `p2`, … .

    Raises:
        BeyondError: The file is not of this form; the first wrong row is named, and how many there are.
    """
    rows, head = _read(path)
    columns = dict(columns or {})
    for name, column in columns.items():
        if column not in head:
            raise BeyondError(
                f"{path} has no column {column!r} for {name}; its columns are {', '.join(head)}"
            )
    at = {name: columns.get(name, name) for name in FIELDS if columns.get(name, name) in head}
    for name in NEEDED:
        if name not in at:
            raise BeyondError(
                f"{path} has no column {name!r}; name it with --map {name}=COLUMN, one of {', '.join(head)}"
            )
    if "seconds" in at and "milliseconds" in at:
        raise BeyondError(f"{path} gives both seconds and milliseconds; map one of them alone")
    read = _Reader(path, {name: {**_WORDS[name], **(values or {}).get(name, {})} for name in _WORDS})
    table = {name: [read.cell(name, row[column], n) for n, row in rows] for name, column in at.items()}
    read.stop_if_wrong()
    frame = pd.DataFrame({"row": [n for n, _ in rows], **table})
    notes = [f"Imported from a file: {len(frame):,} answers."]
    if "kind" not in at:
        frame["kind"] = kind
        notes.append(f"The file does not say what its items are; they are taken as {kind}.")
    if "milliseconds" in at:
        frame["seconds"] = frame.pop("milliseconds") / 1000
    if CORRECT in at:
        _add_verdicts(frame, path, correct)
    items = _items(frame, path)
    extra = [name for name in ("seconds", "position", "role") if name in frame]
    answers = frame[[*NEEDED, *extra]].copy()
    answers["rater"] = _numbered(answers["rater"])
    answers["made_up"] = made_up
    return study_answers(items, answers, where=str(path), notes=notes)


def _read(path: Path) -> tuple[list[tuple[int, dict[str, str]]], list[str]]:
    """Rows with their line numbers, and the names of the columns."""
    if not path.is_file():
        raise BeyondError(f"no such file: {path}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            first = stream.readline()
            stream.seek(0)
            delimiter = max(",;\t", key=first.count)
            reader = csv.DictReader(stream, delimiter=delimiter, strict=True)
            head = [name.strip() for name in reader.fieldnames or []]
            if not any(head):
                raise BeyondError(f"{path} is empty; it needs a head with {', '.join(NEEDED)}")
            if len(set(head)) != len(head):
                twice = next(name for name in head if head.count(name) > 1)
                raise BeyondError(f"{path} has two columns {twice!r}; rename one")
            reader.fieldnames = head
            rows = []
            for row in reader:
                if None in row or None in row.values():
                    raise BeyondError(
                        f"{path}, line {reader.line_num}: it does not have {len(head)} cells as the head has"
                    )
                rows.append((reader.line_num, {str(k): str(v).strip() for k, v in row.items()}))
    except UnicodeDecodeError:
        raise BeyondError(f"{path} is not UTF-8 text; save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise BeyondError(f"{path} cannot be read as CSV ({error})") from None
    if not rows:
        raise BeyondError(f"{path} has a head and no answers")
    return rows, head


class _Reader:
    """Turns cells into values and remembers what was wrong."""

    def __init__(self, path: Path, words: Mapping[str, Mapping[str, str]]) -> None:
        self.path, self.words = path, words
        self.wrong: list[str] = []

    def cell(self, name: str, text: str, line: int) -> str | float | int | None:
        """The value of one cell; something harmless where it is wrong."""
        if name in self.words:
            found = self.words[name].get(text.casefold())
            if found is None:
                allowed = _allowed(name)
                self.wrong.append(
                    f"line {line}: {name} {text!r} is none of {', '.join(allowed)}; say what it means with "
                    f"--value '{name}:{text}={allowed[0]}'"
                )
            return found
        if name in _INTEGERS:
            if text.lstrip("-").isascii() and text.lstrip("-").isdigit():
                return int(text)
            self.wrong.append(f"line {line}: {name} {text!r} is no whole number")
            return 0
        if name in _NUMBERS:
            if not text:
                return math.nan
            try:
                number = float(text)
            except ValueError:
                number = math.inf
            if math.isfinite(number) and number >= 0:
                return number
            self.wrong.append(f"line {line}: {name} {text!r} is no number of at least 0")
            return math.nan
        if not text:
            self.wrong.append(f"line {line}: {name} is empty")
        return text

    def stop_if_wrong(self) -> None:
        """Raise a BeyondError that names the first wrong cell, if there is any."""
        if self.wrong:
            more = f" ({len(self.wrong):,} cells are wrong)" if len(self.wrong) > 1 else ""
            raise BeyondError(f"{self.path}, {self.wrong[0]}{more}")


def _allowed(name: str) -> list[str]:
    """The values of a field, without the empty one."""
    if name == "answer":
        return list(ANSWER_VALUES)
    return list(dict.fromkeys(value for value in _WORDS[name].values() if value))


def _add_verdicts(frame: pd.DataFrame, path: Path, correct: Literal["label", "rater"]) -> None:
    """Whether the label of each item is right, into `verdict`, where the file has none."""
    right = frame[CORRECT].copy()
    if correct == "rater":
        said = frame["answer"]
        turned = said.map({"yes": "no", "no": "yes"})
        right = said.where(right == "yes", turned)
        right = right.where((frame[CORRECT] != "") & said.isin(["yes", "no"]), "")
    frame["expected"] = right
    given = frame[right != ""]
    several = given.groupby("item")["expected"].nunique()
    if (several > 1).any():
        item = several[several > 1].index[0]
        lines = given.loc[given["item"] == item, "row"].tolist()
        hint = (
            "if the column says whether the rater was right, pass --correct rater"
            if correct == "label"
            else "if it says whether the label is right, pass --correct label"
        )
        raise BeyondError(
            f"{path}: correct says both yes and no of item {item!r} (lines {lines[0]} and {lines[-1]}); "
            f"{hint}"
        )
    of_item = given.groupby("item")["expected"].first()
    frame["expected"] = frame["item"].map(of_item).fillna("")
    if "verdict" not in frame:
        frame["verdict"] = frame["expected"].map({"yes": "accepted", "no": "rejected", "": "unjudged"})


def _items(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """One row an item; what the file says of it must be the same in all of its rows."""
    names = [name for name in (*OF_ITEM, "expected") if name in frame]
    for name in names:
        several = frame.groupby("item")[name].nunique(dropna=False)
        if (several > 1).any():
            item = several[several > 1].index[0]
            raise BeyondError(f"{path}: item {item!r} has more than one {name}; it must have one")
    return frame.drop_duplicates("item")[["item", *names]]


def _numbered(raters: pd.Series[str]) -> pd.Series[str]:
    """Names that tell nothing, the same for the same file."""
    everyone = "\n".join(sorted(set(raters)))
    order = sorted(set(raters), key=lambda name: hashlib.sha256(f"{name}\n\n{everyone}".encode()).hexdigest())
    return raters.map({name: f"p{number}" for number, name in enumerate(order, start=1)})
