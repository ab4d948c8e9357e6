"""Prototypes and criticisms of hand-made classes, and how firm the choice is."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from annotations.judgements import LabelSets
from benchmark.criticism.choose import (
    CRITICISM,
    ELSEWHERE,
    PROTOTYPE,
    RIGHT,
    UNKNOWN,
    WRONG,
    answers,
    choose,
    jaccard,
    signed,
    stability,
)
from benchmark.criticism.records import Distances


def distances(rows: list[tuple[str, int, int, float]], status: str = "found") -> Distances:
    """From (id, label, predicted, distance)."""
    ids, labels, predicted, far = zip(*rows)
    n = len(rows)
    return Distances(
        np.array(ids, dtype=object),
        np.array(labels, dtype=np.int16),
        np.array(predicted, dtype=np.int16),
        np.array(labels) == np.array(predicted),
        np.array([status] * n, dtype=object),
        np.array(far, dtype=np.float64),
        np.array(["fmn"] * n, dtype=object),
        np.full(n, -1, dtype=np.int16),
    )


def chosen(d: Distances, **options: object) -> dict[str, int]:
    role = choose(signed(d, answers(d, None)), d.labels, d.image_ids, **options)  # type: ignore[arg-type]
    return {str(i): int(r) for i, r in zip(d.image_ids, role) if r}


def test_the_line_runs_from_the_surest_right_answer_to_the_surest_wrong_one() -> None:
    d = distances([
        ("far", 0, 0, 3.0), ("middle", 0, 0, 2.0), ("near", 0, 0, 0.1), ("slip", 0, 5, 0.2),
        ("sure", 0, 5, 4.0), ("ok", 0, 0, 1.0), ("good", 0, 0, 1.5), ("fine", 0, 0, 1.2),
    ])  # fmt: skip
    assert chosen(d) == {"far": PROTOTYPE, "middle": PROTOTYPE, "sure": CRITICISM, "slip": CRITICISM}
    assert chosen(d, k=3) == {
        "far": PROTOTYPE, "middle": PROTOTYPE, "good": PROTOTYPE,
        "sure": CRITICISM, "slip": CRITICISM, "near": CRITICISM,
    }  # fmt: skip
    assert len(chosen(d, k=99)) == 8


def test_small_classes() -> None:
    one = distances([("a", 0, 0, 1.0), ("b", 1, 1, 1.0), ("c", 1, 1, 2.0)])
    assert chosen(one) == {"c": PROTOTYPE, "b": CRITICISM}
    never = distances([(c, 0, 7, float(i)) for i, c in enumerate("abcd")])
    assert chosen(never) == {"d": CRITICISM}
    assert chosen(never, balanced=True) == {}
    rarely = distances([("a", 0, 0, 1.0), *((c, 0, 7, 1.0) for c in "bcdefgh")])
    assert sorted(chosen(rarely, k=3).values()) == [-1, -1, -1, 1]
    assert sorted(chosen(rarely, k=3, balanced=True).values()) == [-1, 1]


def test_ties_go_by_id_and_not_by_order() -> None:
    rows = [(c, 0, 0, 1.0) for c in "dbca"]
    assert chosen(distances(rows)) == chosen(distances(rows[::-1])) == {"a": CRITICISM, "d": PROTOTYPE}


def test_what_no_attack_reached_is_surest_and_what_failed_is_nowhere() -> None:
    d = distances([("a", 0, 0, 1.0), ("b", 0, 0, np.inf), ("c", 0, 7, 0.0), ("d", 0, 0, 0.0)])
    assert chosen(d) == {"b": PROTOTYPE, "c": CRITICISM}
    failed = distances([("a", 0, 0, np.nan), ("b", 0, 0, np.nan)], status="failed")
    assert chosen(failed) == {}


def test_answers_that_people_accept_are_neither() -> None:
    d = distances([("a", 0, 0, 1.0), ("b", 0, 1, 1.0), ("c", 0, 2, 1.0), ("d", 0, 3, 1.0), ("e", 0, 3, 1.0)])
    judgements = pd.DataFrame(
        [(i, 1, "accepted") for i in "abcd"] + [(i, 2, "rejected") for i in "abcd"],
        columns=["image_id", "class_index", "verdict"],
    )
    images = pd.DataFrame({"image_id": list("abcd"), "original_label": 0, "status": "evaluable"})
    labels = LabelSets.from_tables(judgements, images, source="people", revision="1")
    # Right by its label; accepted; rejected; nobody judged class 3 in d; nobody judged image e.
    assert answers(d, labels).tolist() == [RIGHT, ELSEWHERE, WRONG, UNKNOWN, WRONG]
    assert answers(d, None).tolist() == [RIGHT, WRONG, WRONG, WRONG, WRONG]
    assert np.isnan(signed(d, answers(d, labels))).tolist() == [False, True, False, True, False]


def test_stability_of_the_same_and_of_the_opposite() -> None:
    rows = [(f"i{i:02d}", i % 2, i % 2, 1.0 + i) for i in range(16)]
    d = distances(rows)
    same = stability(d, d, None)
    assert same is not None
    assert [same.correlation, same.prototypes, same.criticisms, same.ratio] == pytest.approx([1, 1, 1, 1])
    opposite = stability(d, distances([(i, c, p, 20 - x) for i, c, p, x in rows]), None)
    assert opposite is not None
    assert [opposite.correlation, opposite.prototypes, opposite.criticisms] == pytest.approx([-1, 0, 0])
    halved = stability(d, distances([(i, c, p, x / 2) for i, c, p, x in rows[:9]]), None)
    assert halved is not None
    assert (halved.n, halved.ratio) == (9, 0.5)
    assert stability(d, distances(rows[:3]), None) is None
    assert np.isnan(jaccard(np.zeros(3, bool), np.zeros(3, bool)))
