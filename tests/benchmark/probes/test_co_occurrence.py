"""Co-occurrence reliance: a plain re-count, planted gaps, and an interval that covers."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from annotations import sources
from annotations.judgements import LabelSets, Verdict
from benchmark.anatomy import hierarchy
from benchmark.prediction_files import read_prediction_file
from benchmark.probes.co_occurrence import (
    MAX_ROWS,
    Pair,
    find_pairs,
    judge,
    mean_gap,
    score,
    score_images,
)
from benchmark.probes.execution import Evidence
from benchmark.records import Predictions

DESK, MONITOR, MOUSE, KEYBOARD = 526, 664, 673, 508


def label_sets(rows: list[tuple[str, int, list[int]]], *, closed: bool = True) -> LabelSets:
    """Made-up label sets from (id, original label, accepted classes)."""
    judgements = [(i, c, "accepted") for i, _, classes in rows for c in classes]
    return LabelSets.from_tables(
        pd.DataFrame(judgements, columns=["image_id", "class_index", "verdict"]),
        pd.DataFrame(
            [(i, label, "evaluable", closed) for i, label, _ in rows],
            columns=["image_id", "original_label", "status", "closed_world"],
        ),
        source="made",
        revision="made up",
    )


def predictions(rows: list[tuple[str, int, list[int]]], ranked: list[list[int]]) -> Predictions:
    return Predictions(
        np.array([i for i, _, _ in rows], dtype=object),
        np.array([label for _, label, _ in rows], dtype=np.int16),
        np.array(ranked, dtype=np.int16),
    )


def test_naming_the_companion_is_no_mistake() -> None:
    rows = [
        ("a", DESK, [DESK, MONITOR]),  # names the companion, then the class: right
        ("b", DESK, [DESK, MONITOR]),  # names the companion, then something else: wrong
        ("c", DESK, [DESK]),  # names what is not there: wrong
        ("d", DESK, [DESK]),  # right
        ("e", DESK, [MONITOR]),  # people do not accept its label: no image of the class
        ("f", DESK, [DESK, MONITOR, MOUSE]),  # nothing but companions: unknown
    ]
    ranked = [[MONITOR, DESK], [MONITOR, 1], [MONITOR, DESK], [DESK, 1], [DESK, 1], [MONITOR, MOUSE]]
    images, unknown = judge([predictions(rows, ranked)], label_sets(rows))
    assert dict(zip(images.image_ids, images.right)) == {"a": True, "b": False, "c": False, "d": True}
    assert dict(zip(images.image_ids, images.predicted))["a"] == np.False_
    assert unknown == 1


def test_a_gap_by_hand() -> None:
    rows = [(f"w{i}", DESK, [DESK, MONITOR]) for i in range(8)] + [(f"o{i}", DESK, [DESK]) for i in range(10)]
    ranked = [[DESK, 1]] * 7 + [[1, 2]] + [[DESK, 1]] * 4 + [[1, 2]] * 6
    images, _ = judge([predictions(rows, ranked)], label_sets(rows))
    distances = {f"w{i}": 2.0 for i in range(8)} | {f"o{i}": 0.5 for i in range(10)}
    result = score_images(images, label_sets(rows), distances=distances, minimum=4)
    gap = result.metrics["co_occurrence_gap"]
    assert gap.value == pytest.approx(7 / 8 - 4 / 10)
    assert gap.n == 18
    (row,) = result.tables["co_occurrence_pairs"]
    assert (row["n_with"], row["n_without"]) == (8, 10)
    assert (row["accuracy_with"], row["accuracy_without"]) == (7 / 8, 4 / 10)
    assert (row["distance_with"], row["distance_without"]) == (2.0, 0.5)
    from scipy.stats import fisher_exact

    assert row["p"] == pytest.approx(fisher_exact([[7, 1], [4, 6]]).pvalue)
    assert row["q"] == row["p"]
    # Distances are compared where the class is the prediction: 7 images with, 4 without the companion.
    far = result.metrics["co_occurrence_distance_gap"]
    assert (far.value, far.n, far.unit) == (1.5, 11, "distance")


def test_what_nobody_judged_counts_for_neither_side() -> None:
    rows = [(f"w{i}", DESK, [DESK, MONITOR]) for i in range(6)] + [(f"o{i}", DESK, [DESK]) for i in range(6)]
    ranked = [[DESK, 1]] * 12
    images, _ = judge([predictions(rows, ranked)], label_sets(rows, closed=False))
    assert find_pairs(images, label_sets(rows, closed=False)) == []
    result = score_images(images, label_sets(rows, closed=False))
    assert result.metrics == {}
    assert any("no co-occurrence gap" in note for note in result.notes)


def test_another_name_for_the_thing_is_no_companion() -> None:
    group = hierarchy().group
    same = next(c for c in range(1000) if c != 66 and group[c] == group[66])
    rows = [(f"w{i}", 66, [66, same]) for i in range(6)] + [(f"o{i}", 66, [66]) for i in range(6)]
    images, _ = judge([predictions(rows, [[66, 1]] * 12)], label_sets(rows))
    assert find_pairs(images, label_sets(rows)) == []


@pytest.mark.shared
def test_it_equals_a_plain_count_on_real_labels(shared_data: Path) -> None:
    real = sources.load("real")
    made = read_prediction_file(shared_data / "predictions" / "resnet50.npy")
    chosen = {DESK, 532, 402, 843}
    keep = np.isin(made.original_labels, list(chosen))
    some = Predictions(made.image_ids[keep], made.original_labels[keep], made.classes[keep])
    accepted: dict[str, set[int]] = {}
    for row in real.rows(some.image_ids):
        accepted[str(real.image_ids[row])] = set(real.classes_of(int(row), Verdict.ACCEPTED).tolist())
    groups, expected = hierarchy().group, {}
    for label in chosen:
        of: list[tuple[set[int], bool]] = []
        for image_id, own, ranked in zip(some.image_ids, some.original_labels, some.classes.tolist()):
            there = accepted[image_id]
            left = [c for c in ranked if c == label or c not in there]
            if own == label and label in there and left:
                of.append((there, left[0] == label))
        for companion in range(1000):
            with_it = [right for there, right in of if companion in there]
            without = [right for there, right in of if companion not in there]
            if min(len(with_it), len(without)) >= 5 and groups[companion] != groups[label]:
                expected[label, companion] = (len(with_it), len(without), sum(with_it), sum(without))
    result = score(Evidence(predictions=partial(iter, [some]), labels={"real": real}))
    found = {
        (row["class_index"], row["companion_index"]): (
            row["n_with"],
            row["n_without"],
            round(float(row["n_with"] or 0) * float(row["accuracy_with"] or 0)),
            round(float(row["n_without"] or 0) * float(row["accuracy_without"] or 0)),
        )
        for row in result.tables["co_occurrence_pairs"]
    }
    assert found == expected
    assert len(found) > 5
    weights = {pair: n1 * n0 / (n1 + n0) for pair, (n1, n0, _, _) in expected.items()}
    mean = sum(
        w * (expected[p][2] / expected[p][0] - expected[p][3] / expected[p][1]) for p, w in weights.items()
    )
    assert result.metrics["co_occurrence_gap"].value == pytest.approx(mean / sum(weights.values()))


def overlapping(rng: np.random.Generator, classes: int) -> tuple[list[Pair], int]:
    """Pairs as they come: two to four companions a class, all compared on the class's 40 images."""
    pairs, start = [], 0
    for c in range(classes):
        members = np.arange(start, start + 40)
        for companion in range(int(rng.integers(2, 5))):
            there = rng.random(40) < 0.25
            if 5 <= there.sum() <= 35:
                pairs.append(Pair(c, companion, members[there], members[~there]))
        start += 40
    return pairs, start


@pytest.mark.parametrize(("rate", "classes"), [(0.8, 30), (0.97, 30), (0.5, 2), (0.9, 1)])
def test_the_interval_covers_where_pairs_share_images(rate: float, classes: int) -> None:
    rng = np.random.default_rng(5)
    pairs, n = overlapping(rng, classes)
    right = (rng.random((800, n)) < rate).astype(np.float64)
    covered = np.mean([low <= 0 <= high for _, low, high in (mean_gap(r, pairs) for r in right)])
    assert covered >= 0.925, covered
    # Taking each pair's images for other images would be too sure of itself by far, or the reverse, too wide.
    assert covered < 0.999


def test_the_interval_of_a_mean_distance_covers() -> None:
    rng = np.random.default_rng(6)
    pairs, n = overlapping(rng, 20)
    values = rng.lognormal(0, 0.5, (600, n))
    found = [mean_gap(v, pairs, shares=False) for v in values]
    covered = np.mean([low <= 0 <= high for _, low, high in found])
    assert 0.92 <= covered <= 0.98
    spread = np.std([float(f.value) for f in found])
    width = np.mean([float(f.high - f.low) for f in found]) / (2 * 1.96)
    assert width == pytest.approx(spread, rel=0.12)


@pytest.mark.parametrize("planted", [0.0, 0.65])
def test_a_planted_gap_is_found_and_none_where_none_is(planted: float) -> None:
    rng = np.random.default_rng(8)
    rows, ranked = [], []
    for label in range(100, 180, 4):
        for i in range(60):
            there = i < 25
            rows.append((f"c{label}i{i}", label, [label, MONITOR] if there else [label]))
            # Only the first class needs its companion.
            rate = 0.9 - (planted if label == 100 and not there else 0)
            ranked.append([label if rng.random() < rate else 7, 8])
    images, _ = judge([predictions(rows, ranked)], label_sets(rows))
    table = score_images(images, label_sets(rows)).tables["co_occurrence_pairs"]
    found = [row["class_index"] for row in table if isinstance(row["q"], float) and row["q"] <= 0.05]
    assert found == ([100] if planted else [])
    assert len(table) == 20 <= MAX_ROWS


def test_a_table_of_many_pairs_is_cut_at_the_least_significant() -> None:
    rows, ranked = [], []
    for label in range(100, 160):
        for i in range(12):
            rows.append((f"c{label}i{i}", label, [label, MONITOR] if i < 6 else [label]))
            ranked.append([label if i % (label - 98) else 7, 8])
    images, _ = judge([predictions(rows, ranked)], label_sets(rows))
    table = score_images(images, label_sets(rows)).tables["co_occurrence_pairs"]
    assert len(table) == MAX_ROWS
    p = [row["p"] for row in table]
    assert p == sorted(p, key=lambda x: float(x or 0))
