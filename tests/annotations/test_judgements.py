"""Label sets: round trip, lookups against a dictionary, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotations.errors import BeyondError
from annotations.judgements import VERDICT_CODES, LabelSets, Verdict

VERDICTS = list(VERDICT_CODES)


def tables(
    judged: dict[tuple[str, int], str],
    images: dict[str, tuple[str, bool]],
    **columns: Any,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The two tables from {(image, class): verdict} and {image: (status, closed world)}."""
    judgements = pd.DataFrame(
        [(image, label, verdict) for (image, label), verdict in judged.items()],
        columns=["image_id", "class_index", "verdict"],
    ).assign(**columns)
    listed = pd.DataFrame(
        [(image, status, closed) for image, (status, closed) in images.items()],
        columns=["image_id", "status", "closed_world"],
    )
    return judgements, listed


NAMES = st.sampled_from([f"img{i}" for i in range(8)])
CLASSES = st.sampled_from([0, 1, 2, 3, 500, 998, 999])
IMAGES = st.dictionaries(
    NAMES, st.tuples(st.sampled_from(["evaluable", "excluded"]), st.booleans()), min_size=1
)


@st.composite
def label_worlds(draw: Any) -> tuple[dict[tuple[str, int], str], dict[str, tuple[str, bool]]]:
    images = draw(IMAGES)
    pairs = st.tuples(st.sampled_from(sorted(images)), CLASSES)
    return draw(st.dictionaries(pairs, st.sampled_from(VERDICTS), max_size=25)), images


@given(label_worlds(), st.lists(st.tuples(NAMES, st.lists(CLASSES, min_size=3, max_size=3)), min_size=1))
@settings(max_examples=60, deadline=None)
def test_lookup_equals_a_dictionary(
    world: tuple[dict[tuple[str, int], str], dict[str, tuple[str, bool]]], asked: list[tuple[str, list[int]]]
) -> None:
    judged, images = world
    label_sets = LabelSets.from_tables(*tables(judged, images), source="s", revision="r")
    ids = np.array([image for image, _ in asked], dtype=object)
    classes = np.array([labels for _, labels in asked])

    def expected(image: str, label: int) -> int:
        if (image, label) in judged:
            return int(VERDICT_CODES[judged[image, label]])
        return int(Verdict.REJECTED if images.get(image, ("", False))[1] else Verdict.UNJUDGED)

    want = np.array([[expected(image, label) for label in labels] for image, labels in asked])
    rows = label_sets.rows(ids)
    assert [(label_sets.image_ids[r] if r >= 0 else None) for r in rows] == [
        i if i in images else None for i in ids
    ]
    np.testing.assert_array_equal(label_sets.lookup(rows, classes), want)
    np.testing.assert_array_equal(label_sets.lookup(rows, classes[:, 0].astype(np.uint16)), want[:, 0])
    for row, image in enumerate(label_sets.image_ids):
        accepted = sorted(c for (i, c), v in judged.items() if i == image and v == "accepted")
        assert label_sets.classes_of(row, Verdict.ACCEPTED).tolist() == accepted
        assert label_sets.counts(Verdict.ACCEPTED)[row] == len(accepted)
        assert label_sets.evaluable[row] == (images[image][0] == "evaluable" and bool(accepted))


@given(label_worlds())
@settings(max_examples=25, deadline=None)
def test_tables_round_trip(world: tuple[dict[tuple[str, int], str], dict[str, tuple[str, bool]]]) -> None:
    judged, images = world
    label_sets = LabelSets.from_tables(*tables(judged, images, score=0.25, votes=5), source="s", revision="r")
    judgements, listed = label_sets.to_tables()
    back = dict(zip(zip(judgements.image_id, judgements.class_index), judgements.verdict))
    assert back == judged
    assert dict(zip(listed.image_id, listed.closed_world)) == {
        image: closed for image, (_, closed) in images.items()
    }
    assert (judgements.score == 0.25).all()
    assert (judgements.votes == 5).all()


def test_what_is_no_class_is_unjudged_even_in_a_closed_world() -> None:
    judged = {("a", 999): "accepted", ("b", 0): "accepted"}
    images = {"a": ("evaluable", True), "b": ("evaluable", True)}
    label_sets = LabelSets.from_tables(*tables(judged, images), source="s", revision="r")
    got = label_sets.lookup(np.array([0, 1]), np.array([[1000, 999], [-1, 0]]))
    # Class 1000 of image a has the key of class 0 of image b, and must not be taken for it.
    assert got.tolist() == [[Verdict.UNJUDGED, Verdict.ACCEPTED], [Verdict.UNJUDGED, Verdict.ACCEPTED]]


def test_folder_round_trip_and_revision(tmp_path: Path) -> None:
    judged = {("b", 3): "accepted", ("a", 7): "unsure", ("a", 2): "rejected"}
    images = {"a": ("excluded", False), "b": ("evaluable", True)}
    frames = tables(judged, images, score=[0.8, float("nan"), 0.0], votes=[5, 0, 5], source="x")
    saved = LabelSets.from_tables(*frames, source="s", revision="r")
    saved.save(tmp_path / "a")
    saved.save(tmp_path / "b")
    loaded = LabelSets.load(tmp_path / "a", source="s")
    for name in (
        "image_ids",
        "original_labels",
        "evaluable",
        "closed_world",
        "pair_image",
        "pair_class",
        "verdict",
    ):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(saved, name))
        assert getattr(loaded, name).dtype == getattr(saved, name).dtype
    np.testing.assert_array_equal(loaded.score, saved.score)
    assert loaded.pair_source.tolist() == ["x", "x", "x"]
    assert re.fullmatch(r"sha256:[0-9a-f]{12}", loaded.revision)
    assert LabelSets.load(tmp_path / "b", source="s").revision == loaded.revision
    assert LabelSets.load(tmp_path / "b", source="s", revision="v1").revision == "v1"


GOOD_IMAGES = pd.DataFrame({"image_id": ["a", "b"], "status": ["evaluable", "excluded"]})
GOOD = pd.DataFrame({"image_id": ["a", "b"], "class_index": [1, 2], "verdict": ["accepted", "unsure"]})


@pytest.mark.parametrize(
    ("judgements", "images", "message"),
    [
        (GOOD.drop(columns="verdict"), GOOD_IMAGES, "judgements.parquet has no column 'verdict'"),
        (GOOD, GOOD_IMAGES.drop(columns="status"), "images.parquet has no column 'status'"),
        (GOOD.assign(class_index=[1, 1000]), GOOD_IMAGES, "class index 1000 is not a whole number in 0..999"),
        (GOOD.assign(class_index=[1.5, 2]), GOOD_IMAGES, "class index 1.5 is not a whole number"),
        (GOOD.assign(class_index=["1", "cat"]), GOOD_IMAGES, "class index 'cat' is not a whole number"),
        (GOOD.assign(class_index=[np.nan, 2]), GOOD_IMAGES, "class index nan is not a whole number"),
        (GOOD.assign(verdict=["accepted", "yes"]), GOOD_IMAGES, "unknown verdict 'yes'"),
        (GOOD.assign(image_id=["a", "c"]), GOOD_IMAGES, "image 'c' is judged but not listed"),
        (GOOD.assign(image_id=np.array(["a", None], dtype=object)), GOOD_IMAGES, "a row without an image_id"),
        (pd.concat([GOOD, GOOD]), GOOD_IMAGES, "image 'a', class 1 is judged twice"),
        (GOOD.assign(score=[0.5, 1.5]), GOOD_IMAGES, "score 1.5 is outside [0, 1]"),
        (GOOD.assign(score=["high", "low"]), GOOD_IMAGES, "score: not a column of numbers"),
        (GOOD.assign(votes=[-1, 0]), GOOD_IMAGES, "votes"),
        (GOOD, pd.concat([GOOD_IMAGES, GOOD_IMAGES]), "image 'a' is listed twice"),
        (GOOD, GOOD_IMAGES.assign(status=["evaluable", "maybe"]), "unknown image status 'maybe'"),
        (
            GOOD,
            GOOD_IMAGES.assign(status=np.array(["evaluable", None], dtype=object)),
            "unknown image status",
        ),
        (GOOD, GOOD_IMAGES.assign(original_label=[1000, 1]), "original label 1000 is not a whole number"),
        (GOOD, GOOD_IMAGES.assign(closed_world=["yes", "no"]), "closed_world holds 'yes'"),
    ],
)
def test_bad_tables_are_refused(judgements: pd.DataFrame, images: pd.DataFrame, message: str) -> None:
    with pytest.raises(BeyondError, match=re.escape(message)):
        LabelSets.from_tables(judgements, images, source="s", revision="r")


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BeyondError, match="there is no such folder"):
        LabelSets.load(tmp_path / "none", source="s")
    with pytest.raises(BeyondError, match=r"it has no judgements\.parquet"):
        LabelSets.load(tmp_path, source="s")
    LabelSets.from_tables(GOOD, GOOD_IMAGES, source="s", revision="r").save(tmp_path)
    (tmp_path / "images.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(BeyondError, match=r"images\.parquet is not a readable Parquet file"):
        LabelSets.load(tmp_path, source="s")
