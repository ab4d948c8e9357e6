"""The hierarchy of classes and the categories of mistakes."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from annotations.classes import class_names, wnids
from annotations.judgements import LabelSets, Verdict
from benchmark import anatomy
from benchmark.anatomy import CATEGORIES, NOT_A_MISTAKE, AcceptedSets, categorize, co_occurrences, hierarchy
from benchmark.data import make_hierarchy
from tests.benchmark.tracks import label_sets

HIERARCHY = Path(anatomy.__file__).with_name("data") / "hierarchy.csv"
WORDNET = Path("/usr/share/wordnet/data.noun")
NAMES = {name: index for index, name in enumerate(class_names())}


# ------------------------------------------------------------------------------------ hierarchy


def test_hierarchy_lists_every_class_once_and_groups_stay_in_a_superclass() -> None:
    with HIERARCHY.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["class_index"]) for row in rows] == list(range(1000))
    assert tuple(row["wnid"] for row in rows) == wnids()
    kinds: dict[str, set[str]] = {}
    for row in rows:
        kinds.setdefault(row["group"], set()).add(row["superclass"])
    assert {group: kind for group, kind in kinds.items() if len(kind) > 1} == {}
    assert 20 <= len({row["superclass"] for row in rows}) <= 60


def test_superclasses_of_dogs_cats_and_birds_are_those_of_the_class_order() -> None:
    """ILSVRC2012 lists the dogs as 151 to 268, the cats as 281 to 293, and the birds in three runs."""
    tree = hierarchy()

    def members(name: str) -> set[int]:
        return set(np.flatnonzero(tree.superclass == tree.superclass_names.index(name)).tolist())

    assert members("dog") == set(range(151, 269))
    assert members("feline") == set(range(281, 294))
    assert members("bird") == {*range(7, 25), *range(80, 101), *range(127, 147)}


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("Norfolk Terrier", "Norwich Terrier", "fine_grained"),
        ("Golden Retriever", "Labrador Retriever", "fine_grained"),
        ("Golden Retriever", "Pekingese", "same_superclass"),
        ("violin", "cello", "fine_grained"),
        ("violin", "drum", "same_superclass"),
        ("desk", "couch", "same_superclass"),
        ("violin", "Golden Retriever", "severe"),
        ("necklace", "radio", "severe"),  # both in "other", which is no kind
    ],
)
def test_pairs_that_people_would_call_close_or_far(one: str, other: str, expected: str) -> None:
    labels = label_sets.small({"a": {NAMES[one]: "accepted"}}, closed=True)
    assert category_of(labels, NAMES[one], NAMES[other]) == expected


def test_synsets_are_read_and_climbed(tmp_path: Path) -> None:
    """A tiny noun database in WordNet's format, with two ways up to the root."""
    lines = [
        "  1 This line stands for the licence, which starts with two spaces.  ",
        "00000001 03 n 02 root 0 origin 1 000 | the top",
        "00000002 03 n 01 left_side 0 001 @ 00000001 n 0000 | one way",
        "00000003 03 n 01 right 0 002 @ 00000002 n 0000 ~ 00000004 n 0000 | longer way",
        "00000004 03 n 01 leaf 0 003 @ 00000003 n 0000 @i 00000001 n 0000 + 00000002 v 0101 | both | ways",
    ]
    path = tmp_path / "data.noun"
    path.write_text("\n".join(lines) + "\n")
    hypernyms = make_hierarchy.read_nouns(path)
    assert hypernyms == {"00000001": [], "00000002": ["00000001"], "00000003": ["00000002"],
                         "00000004": ["00000003", "00000001"]}  # fmt: skip
    assert make_hierarchy.read_words(path)["00000002"] == "left side"
    assert make_hierarchy.ancestors("00000004", hypernyms) == {
        "00000004": 0, "00000003": 1, "00000001": 1, "00000002": 2,
    }  # fmt: skip


@pytest.mark.wordnet
@pytest.mark.skipif(not WORDNET.is_file(), reason="WordNet 3.0 is not installed")
def test_the_script_gives_the_table() -> None:
    with HIERARCHY.open(newline="") as file:
        rows = [(int(row["class_index"]), *list(row.values())[1:]) for row in csv.DictReader(file)]
    assert make_hierarchy.derive(WORDNET) == rows


# ----------------------------------------------------------------------------------- categories


def category_of(labels: LabelSets, original: int, predicted: int, image: str = "a") -> str:
    rows = labels.rows(np.array([image], dtype=object))
    guess = np.array([predicted], dtype=np.int16)
    verdict = labels.lookup(rows, guess)
    code = categorize(AcceptedSets.of(labels), rows, np.array([original], dtype=np.int16), guess, verdict)
    return "none" if code[0] == NOT_A_MISTAKE else CATEGORIES[code[0]]


def test_each_category() -> None:
    paddle, canoe, radio = NAMES["paddle"], NAMES["kayak"], NAMES["radio"]
    together = {f"t{i}": {paddle: "accepted", canoe: "accepted"} for i in range(anatomy.MIN_CO_OCCURRENCES)}
    labels = label_sets.small(
        {
            "a": {canoe: "accepted", 3: "accepted", 10: "unsure", paddle: "rejected", radio: "rejected"},
            "x": {canoe: "accepted", 3: "accepted"},
            **together,
        },
        excluded=("x",),
    )
    assert category_of(labels, canoe, canoe) == "none"
    assert category_of(labels, -1, radio) == "none"
    assert category_of(labels, canoe, 3) == "multi_label"
    assert category_of(labels, canoe, 10) == "unclear"
    assert category_of(labels, canoe, paddle) == "co_occurrence"
    assert category_of(labels, canoe, radio) == "severe"
    assert category_of(labels, canoe, 500) == "unjudged"  # nobody judged the pair
    assert category_of(labels, canoe, 3, image="x") == "unjudged"  # excluded
    assert category_of(labels, canoe, 3, image="nowhere") == "unjudged"


def test_one_co_occurrence_too_few_is_severe() -> None:
    paddle, canoe = NAMES["paddle"], NAMES["kayak"]
    few = {f"t{i}": {paddle: "accepted", canoe: "accepted"} for i in range(anatomy.MIN_CO_OCCURRENCES - 1)}
    labels = label_sets.small({"a": {canoe: "accepted", paddle: "rejected"}, **few})
    assert category_of(labels, canoe, paddle) == "severe"


def test_against_a_slow_and_plain_reading_of_the_rules() -> None:
    rng = np.random.default_rng(0)
    names = ("accepted", "unsure", "rejected")
    pool = [*range(180, 200), *range(0, 8), NAMES["paddle"], NAMES["kayak"], NAMES["violin"], NAMES["cello"]]
    judged = {
        f"i{i:04d}": {
            int(c): names[rng.choice(3, p=(0.6, 0.1, 0.3))] for c in rng.choice(pool, rng.integers(1, 6))
        }
        for i in range(400)
    }
    labels = label_sets.small(judged, excluded=("i0003", "i0007"))
    accepted = {
        image: {c for c, verdict in classes.items() if verdict == "accepted"}
        for image, classes in judged.items()
    }
    evaluable = {image for image in judged if accepted[image] and image not in ("i0003", "i0007")}
    pairs = Counter((a, b) for i in evaluable for a in accepted[i] for b in accepted[i] if a != b)
    dense = co_occurrences(labels)
    assert {(int(a), int(b)): int(dense[a, b]) for a, b in zip(*np.nonzero(dense))} == dict(pairs)

    tree = hierarchy()

    def expected(image: str, original: int, guess: int) -> str:
        if original in (-1, guess):
            return "none"
        verdict = judged[image].get(guess)
        if verdict is None or image not in evaluable:
            return "unjudged"
        if verdict != "rejected":
            return {"accepted": "multi_label", "unsure": "unclear"}[verdict]
        near = accepted[image]
        if any(tree.group[guess] == tree.group[c] for c in near):
            return "fine_grained"
        if any(tree.superclass[guess] == tree.superclass[c] >= 0 for c in near):
            return "same_superclass"
        return (
            "co_occurrence" if any(pairs[guess, c] >= anatomy.MIN_CO_OCCURRENCES for c in near) else "severe"
        )

    images = np.repeat(labels.image_ids, 4)
    original = rng.choice([-1, *pool], len(images)).astype(np.int16)
    guesses = [int(rng.choice(list(judged[i]) if rng.random() < 0.8 else pool)) for i in images]
    guess = np.array(guesses, dtype=np.int16)
    rows = labels.rows(images)
    codes = categorize(AcceptedSets.of(labels), rows, original, guess, labels.lookup(rows, guess))
    found = ["none" if code == NOT_A_MISTAKE else CATEGORIES[code] for code in codes]
    assert found == [expected(*row) for row in zip(images, original.tolist(), guesses)]
    assert set(found) == {"none", *CATEGORIES}


def test_accepted_sets_expand_in_order() -> None:
    labels = label_sets.small(
        {"a": {5: "accepted", 2: "accepted"}, "b": {1: "rejected"}, "c": {9: "accepted"}}
    )
    sets = AcceptedSets.of(labels)
    assert sets.sizes.tolist() == [2, 0, 1]
    position, classes = sets.expand(np.array([2, 1, 0, 0]))
    assert position.tolist() == [0, 2, 2, 3, 3]
    assert classes.tolist() == [9, 2, 5, 2, 5]
    assert labels.counts(Verdict.ACCEPTED).tolist() == sets.sizes.tolist()
