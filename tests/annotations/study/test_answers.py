from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from annotations.errors import BeyondError
from annotations.study.answers import ANSWERS, ITEMS, read_answers, study_answers
from tests.annotations.study.made_up import study


def test_parquet_and_csv_hold_the_same(tmp_path: Path) -> None:
    found = study()
    found.write(tmp_path / "parquet")
    found.write_csv(tmp_path / "csv")
    for name in ("parquet", "csv"):
        again = read_answers(tmp_path / name)
        pd.testing.assert_frame_equal(again.items, found.items)
        pd.testing.assert_frame_equal(again.answers, found.answers)
    assert again.made_up


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    found = study()
    found.write(tmp_path / "a")
    study_answers(
        found.items.sample(frac=1, random_state=1), found.answers.sample(frac=1, random_state=2)
    ).write(tmp_path / "b")
    for name in ("items.parquet", "answers.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_what_is_not_given_takes_its_default() -> None:
    found = study_answers(
        pd.DataFrame({"item": ["b", "a"]}),
        pd.DataFrame({"rater": ["r"], "item": ["a"], "arm": ["none"], "answer": ["yes"]}),
    )
    assert list(found.items.columns) == ITEMS.names
    assert list(found.answers.columns) == ANSWERS.names
    assert found.items["image_id"].tolist() == ["a", "b"]
    assert found.answers["role"].tolist() == ["work"]
    assert not found.made_up


def rows(**changes: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    items = pd.DataFrame({"item": ["a", "b"]})
    answers = pd.DataFrame(
        {"rater": ["r", "s"], "item": ["a", "b"], "arm": ["none", "none"], "answer": ["yes", "no"]}
    )
    for name, value in changes.items():
        frame = items if name.startswith("items_") else answers
        column = name.removeprefix("items_")
        if value is None:
            del frame[column]
        else:
            frame[column] = value
    return items, answers


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arm": None}, "no column 'arm'"),
        ({"colour": ["x", "y"]}, "unknown column 'colour'"),
        ({"answer": ["yes", "perhaps"]}, "must be one of yes, no, maybe"),
        ({"arm": ["none", "sound"]}, "must be one of none, feature, example"),
        ({"item": ["a", "c"]}, "belong to another pack"),
        ({"item": ["a", "a"], "rater": ["r", "r"]}, "twice; keep the last"),
        ({"rater": ["r", "r"], "arm": ["none", "feature"]}, "answered in 2 arms"),
        ({"rater": ["r", ""]}, "empty rater"),
        ({"rater": ["r", None]}, "empty rater"),
        ({"seconds": [1.0, -2.0]}, "negative or infinite"),
        ({"seconds": [1.0, "fast"]}, "does not fit"),
        ({"position": [1, 1.5]}, "does not fit"),
        ({"items_item": ["a", "a"]}, "listed twice"),
        ({"items_confidence": [0.5, 1.5]}, r"outside \[0, 1\]"),
        ({"items_verdict": ["accepted", "nice"]}, "must be one of accepted"),
        ({"items_shown_class": [5, 1e9]}, "does not fit"),
    ],
)
def test_bad_tables_get_one_line(changes: dict[str, Any], words: str) -> None:
    items, answers = rows(**changes)
    with pytest.raises(BeyondError, match=words) as error:
        study_answers(items, answers, where="here")
    assert "\n" not in str(error.value)
