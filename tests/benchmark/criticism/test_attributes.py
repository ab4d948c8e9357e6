"""Attributes from files, factors and label sets: what is read, what is refused, what is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from annotations.errors import BeyondError
from annotations.judgements import LabelSets
from benchmark.criticism import attributes
from benchmark.criticism.attributes import MIN_PEOPLE_CELL, Attribute, from_label_sets, from_table, read_file

IDS = np.array([f"img{i:02d}" for i in range(12)], dtype=object)


def csv(folder: Path, text: str, name: str = "scenes.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def load(path: Path) -> tuple[list[Attribute], list[str]]:
    file = read_file(path)
    found, notes = from_table(file.table, IDS, source=file.name)
    return found, [*file.notes, *notes]


def test_values_are_read_and_of_two_one_is_tested(tmp_path: Path) -> None:
    rows = ["image_id,attribute,value"]
    rows += [f"img{i:02d},place,{('sea', 'street', 'wood')[i % 3]}" for i in range(9)]
    rows += [f"img{i:02d}.JPEG,night,{'yes' if i < 6 else 'no'}" for i in range(12)]
    rows += [f"img{i:02d},view,{'front' if i < 9 else 'side'}" for i in range(12)]
    found, notes = load(csv(tmp_path, "\n".join(rows)))
    night, place, view = found
    assert notes == []
    assert (place.values, place.tested) == (("sea", "street", "wood"), (0, 1, 2))
    assert place.codes.tolist() == [0, 1, 2] * 3 + [-1] * 3
    assert [night.says(v) for v in night.tested] == ["night"]
    assert [view.says(v) for v in view.tested] == ["view: side"]  # the rarer says all


def test_what_is_left_out_is_said_and_breaks_nothing(tmp_path: Path) -> None:
    rows = ["image_id,attribute,value"]
    rows += [
        "img00,place,sea",
        "img00,place,street",
        "img01,place,sea",
        "img01,place,sea",
        "img02,place,wood",
    ]
    rows += ["other,place,sea", "img00,one,x", "img01,one,x", "unknown,far,x", "img03,place,"]
    rows += [f"img{i:02d},number,{i}.5" for i in range(12)] + [f"o{i},number,{i}" for i in range(60)]
    found, notes = load(csv(tmp_path, "\n".join(rows)))
    (number, place) = found
    assert place.codes.tolist() == [-1, 0, 1] + [-1] * 9
    assert len(number.values) == 12
    text = "\n".join(notes)
    for words in (
        "1 rows have no value",
        "1 images have several values of one attribute (first img00, place)",
        "62 ids are of no image with a distance (first unknown)",
        "attribute one has one value (x)",
        "attribute far covers none of the images",
    ):
        assert words in text, words


def test_too_many_values_are_said(tmp_path: Path) -> None:
    ids = np.array([f"i{i}" for i in range(60)], dtype=object)
    table = pd.DataFrame(
        {"image_id": ids, "attribute": "size", "value": [str(i) for i in range(60)], "kind": "scene"}
    )
    found, notes = from_table(table, ids, source="s")
    assert found == []
    assert "60 different values" in notes[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image_id,attribute\na,b\n", "no column 'value'"),
        ("image_id,attribute,value\n,b,c\n", "row 2 has no image_id"),
        ("image_id,attribute,value,kind\na,b,c,thing\n", "use scene or person"),
        ("image_id,attribute,value\na,gender,x\n", "declare it with kind=person"),
        ("image_id,attribute,value\na,skin_tone,x\n", "declare it with kind=person"),
        ("image_id,attribute,value,kind\na,age,x,person\n", "call it perceived_age"),
        ("image_id,attribute,value,kind\na,perceived_ethnicity,x,person\n", "nothing that raters can see"),
        ("image_id,attribute,value,kind\na,perceived_age,x,person\n", "no column 'raters'"),
        (
            "image_id,attribute,value,kind,raters,consent_version,aggregation\na,perceived_age,x,person,5,,median\n",
            "without consent_version",
        ),
        (
            "image_id,attribute,value,kind,raters,consent_version,aggregation\na,perceived_age,x,person,5,2,\n",
            "without aggregation",
        ),
        (
            "image_id,attribute,value,kind,raters,consent_version,aggregation\na,perceived_age,x,person,2,2,median\n",
            "fewer than 3 raters",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(BeyondError, match=words) as error:
        read_file(csv(tmp_path, text))
    assert "\n" not in str(error.value)


def test_no_file_and_no_table(tmp_path: Path) -> None:
    with pytest.raises(BeyondError, match="no attributes"):
        read_file(tmp_path / "nothing.csv")
    (tmp_path / "x.parquet").write_bytes(b"no parquet")
    with pytest.raises(BeyondError, match="not a readable"):
        read_file(tmp_path / "x.parquet")


def test_attributes_about_people_need_many_images(tmp_path: Path) -> None:
    ids = np.array([f"i{i:03d}" for i in range(40)], dtype=object)
    table = pa.table(
        {
            "image_id": ids.tolist(),
            "attribute": ["perceived_age"] * 40,
            "value": ["young"] * 25 + ["old"] * (MIN_PEOPLE_CELL - 1) + ["middle"] * 6,
            "kind": ["person"] * 40,
            "raters": [5] * 40,
            "consent_version": ["2026-1"] * 40,
            "aggregation": ["4 of 5"] * 40,
        }
    )
    pq.write_table(table, tmp_path / "people.parquet")
    file = read_file(tmp_path / "people.parquet")
    (found,), notes = from_table(file.table, ids, source=file.name)
    assert found.person
    assert [found.values[v] for v in found.tested] == ["young"]
    assert "fewer than 10 images are not looked at" in notes[0]


def test_what_was_read_is_kept_in_the_run(tmp_path: Path) -> None:
    file = read_file(csv(tmp_path, "image_id,attribute,value\nimg00,place,sea\nimg01,place,wood\n"))
    attributes.keep(tmp_path / "run", file)
    pd.testing.assert_frame_equal(attributes.kept(tmp_path / "run", "scenes"), file.table, check_dtype=False)
    assert attributes.revision_of(tmp_path / "run", "scenes").startswith("sha256:")
    with pytest.raises(BeyondError, match="missing or damaged"):
        attributes.kept(tmp_path / "run", "other")


def test_companions_come_from_label_sets() -> None:
    """Class 3 with class 7 beside it in four of eight images, class 9 in all, class 11 in two."""
    rows = []
    for i, image_id in enumerate(IDS[:8]):
        rows += [(image_id, 3, "accepted"), (image_id, 9, "accepted")]
        rows += [(image_id, 7, "accepted" if i < 4 else "rejected")] + [(image_id, 11, "accepted")] * (i < 2)
    rows += [(image_id, 5, "accepted") for image_id in IDS[8:]]
    judgements = pd.DataFrame(rows, columns=["image_id", "class_index", "verdict"])
    images = pd.DataFrame({"image_id": IDS, "status": "evaluable"})
    labels = LabelSets.from_tables(judgements, images, source="people", revision="1")
    classes = np.array([3] * 8 + [5] * 4)
    found, notes = from_label_sets(labels, IDS, classes)
    assert notes == []
    several, seven = found
    assert several.codes.tolist() == [1] * 8 + [0] * 4
    assert (seven.only, seven.codes.tolist()) == (3, [1] * 4 + [0] * 4 + [-1] * 4)
    nobody, notes = from_label_sets(labels, np.array(["x"], dtype=object), np.array([3]))
    assert nobody == []
    assert "can evaluate none of the images" in notes[0]
