"""The robustness track against cases worked by hand and against its definitions, image by image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from annotations.judgements import LabelSets
from benchmark.attack_records import AttackInfo, AttackRecords, FindingInfo, Row
from benchmark.scorecard import Scorecard, Track
from benchmark.tracks import get_track
from benchmark.tracks.robustness import score_robustness
from tests.benchmark.tracks.label_sets import small

EPS = 4 / 255


def row(image_id: str, objective: str, status: str, **more: Any) -> Row:
    values: dict[str, Any] = {
        "original_label": 1,
        "threat": "linf",
        "epsilon": EPS,
        "suite": "quick",
        "clean_class": 1,
        "inside": (1,),
    }
    values |= more
    if status == "broken":
        values = {"attack": "pgd", "distance": 0.01} | values
    return Row(image_id, objective=objective, status=status, **values)


def track(rows: list[Row], labels: dict[str, LabelSets], infos: list[AttackInfo] | None = None) -> Track:
    return score_robustness(AttackRecords.from_rows(rows), labels, infos or []).track


WORKED = [
    # a: the attack reaches class 2, which people accept; nothing leaves {1, 2}.
    row("a", "original", "broken", adversarial_class=2, distance=0.002),
    row("a", "rectified", "robust", inside=(1, 2)),
    # b: broken either way.
    row("b", "original", "broken", adversarial_class=5, distance=0.015),
    row("b", "rectified", "broken", adversarial_class=5, distance=0.015),
    # c: robust either way.
    row("c", "original", "robust"),
    row("c", "rectified", "robust", implied=True),
    # d: predicted wrong, by both.
    row("d", "original", "misclassified", clean_class=7),
    row("d", "rectified", "misclassified", clean_class=7),
    # e: people reject the label 1 and accept 3, which the model predicts: apart from the rest.
    row("e", "original", "misclassified", clean_class=3),
    row("e", "rectified", "broken", clean_class=3, inside=(3,), adversarial_class=1),
    # f: nobody judged it.
    row("f", "original", "broken", adversarial_class=9),
    # g: the attack reaches a class that nobody judged.
    row("g", "original", "broken", adversarial_class=8, distance=0.003),
    row("g", "rectified", "broken", adversarial_class=8, distance=0.003),
]
LABELS = {
    "real": small(
        {
            "a": {1: "accepted", 2: "accepted", 5: "rejected"},
            "b": {1: "accepted", 5: "rejected"},
            "c": {1: "accepted"},
            "d": {1: "accepted", 7: "rejected"},
            "e": {1: "rejected", 3: "accepted"},
            "g": {1: "unsure", 4: "accepted"},
        }
    )
}


def worked() -> list[Row]:
    # g's set holds the unsure label and the accepted class 4.
    sets = {"a": (1, 2), "e": (3,), "g": (1, 4)}
    return [
        replace(r, inside=sets.get(r.image_id, (1,))) if r.objective == "rectified" else r for r in WORKED
    ]


def test_a_case_worked_by_hand() -> None:
    metrics = track(worked(), LABELS).metrics
    # Clean: a, b, c, f, g of seven. Robust by the label: c. By people, of a, b, c, d, g: a and c.
    for name, hits, n in [
        ("clean_accuracy", 5, 7),
        ("robust_accuracy_original", 1, 7),
        ("robust_accuracy_rectified", 2, 5),
    ]:
        assert metrics[name].value == hits / n, name
        assert metrics[name].n == n
        low, high = proportion_confint(hits, n, method="wilson")
        assert metrics[name].ci_low == pytest.approx(low)
        assert metrics[name].ci_high == pytest.approx(high)
    hidden = metrics["hidden_robustness"]
    assert hidden.value == pytest.approx(2 / 5 - 1 / 5)
    assert hidden.n == 5
    assert hidden.ci_low is not None
    assert hidden.ci_high is not None
    assert hidden.ci_low < 0.2 < hidden.ci_high
    # Adversarial predictions where people keep the label: a accepted, b rejected, g unjudged.
    acceptance = metrics["adversarial_acceptance"]
    assert (acceptance.n, acceptance.judged) == (3, 2)
    assert (acceptance.value, acceptance.lower, acceptance.upper) == (1 / 3, 1 / 3, 2 / 3)


def test_tables_of_the_case_worked_by_hand() -> None:
    tables = track(worked(), LABELS).tables
    (verdicts,) = tables["adversarial_verdicts"]
    assert [verdicts[k] for k in ("n", "accepted", "unsure", "rejected", "unjudged")] == [3, 1, 0, 1, 1]
    (prediction,) = tables["adversarial_predictions"]
    assert [prediction[k] for k in ("image_id", "predicted_index", "verdict")] == ["a", 2, "accepted"]
    assert prediction["distance"] == 0.002
    groups = {r["original_label"]: r for r in tables["label_groups"]}
    assert {name: r["n"] for name, r in groups.items()} == {"kept": 5, "not kept": 1, "not judged": 1}
    assert groups["not kept"]["rectified"] == 0
    assert groups["not judged"]["rectified"] is None
    (radius,) = tables["by_epsilon"]
    assert (radius["original_same_images"], radius["rectified"]) == (1 / 5, 2 / 5)
    steps = [r for r in tables["attacks"] if r["objective"] == "original"]
    assert [(r["attack"], r["before"], r["broke"]) for r in steps] == [("pgd", 5, 4)]
    histogram = [r for r in tables["distances"] if r["objective"] == "original"]
    # In 255ths 0.51, 0.77, 2.55 and 3.83; the edges double from 1/16 on.
    assert [r["n"] for r in histogram] == [0, 0, 0, 0, 2, 0, 2]
    assert [round(255 * float(r["high"] or 0), 6) for r in histogram] == [2.0**k for k in range(-4, 3)]


def near(image_id: str, objective: str, distance: float | None, **more: Any) -> Row:
    """A row of the suite minimal."""
    status = "robust" if distance is None else "broken"
    found = {} if distance is None else {"distance": distance, "adversarial_class": 9, "attack": "fab-t"}
    return row(image_id, objective, status, suite="minimal", epsilon=0.0, **{**found, **more})


def test_smallest_perturbations_give_medians_with_n_and_a_histogram() -> None:
    distances = [0.0005, 0.001, 0.002, 0.004, 0.02, None, 0.1]
    # What leaves the label lands on class 2, which people accept.
    rows = [
        near(f"i{k}", "original", d, **({} if d is None else {"adversarial_class": 2}))
        for k, d in enumerate(distances)
    ]
    # People keep the label of the first five; leaving the set takes twice as far, or is not found.
    rows += [
        near(f"i{k}", "rectified", 2 * d if d is not None and k < 4 else None, inside=(1, 2))
        for k, d in enumerate(distances[:5])
    ]
    rows.append(row("wrong", "original", "misclassified", clean_class=7, suite="minimal", epsilon=0.0))
    labels = {"real": small({f"i{k}": {1: "accepted", 2: "accepted", 9: "rejected"} for k in range(5)})}
    result = track(rows, labels)
    assert set(result.metrics) == {"median_distance_original", "median_distance_rectified"}
    original, people = result.metrics["median_distance_original"], result.metrics["median_distance_rectified"]
    assert (original.value, original.n, original.unit) == (0.004, 7, "pixels")
    assert (people.value, people.n) == (0.004, 5)
    # Seven values hold their median between the least and the greatest, and one was not found.
    assert (original.ci_low, original.ci_high) == (0.0005, None)
    same = {(r["objective"], r["images"]): r for r in result.tables["minimal"]}
    assert same["original", "right, label kept"]["median"] == 0.002
    assert (same["rectified", "right, label kept"]["n"], same["rectified", "right, label kept"]["found"]) == (
        5,
        4,
    )
    # In 255ths 0.1275, 0.255, 0.51, 1.02, 5.1 and 25.5.
    counts = [r["n"] for r in result.tables["distances"] if r["objective"] == "original"]
    assert counts == [0, 0, 1, 1, 1, 1, 0, 1, 0, 1]
    assert result.tables["distances"][9]["high"] is None
    # Beside an evaluation with a radius, both have their figures; the histogram is of the smallest ones.
    both = track([*rows, *worked()], {**labels, **{"people": LABELS["real"]}})
    assert {"robust_accuracy_original", "median_distance_original"} <= set(both.metrics)
    assert {r["suite"] for r in both.tables["distances"]} == {"minimal"}
    assert [r["suite"] for r in both.tables["by_epsilon"]] == ["quick"]
    unfinished = track([*rows, row("late", "original", "pending", suite="minimal", epsilon=0.0)], labels)
    assert unfinished.metrics == {}
    assert "1 verdicts are missing" in unfinished.notes[0]


def test_a_track_is_a_valid_part_of_a_scorecard() -> None:
    result = track(worked(), LABELS)
    assert set(result.metrics) <= {m.name for m in get_track("robustness").metrics}
    of_studies = {"agreement", "agreement_contrasts", "agreement_study"}
    assert set(result.tables) == set(get_track("robustness").tables) - {"minimal"} - of_studies
    card = {
        "schema_version": 1,
        "model": {"name": "m", "spec": "m"},
        "images": {"name": "i", "n": 7, "fingerprint": ""},
        "annotations": {},
        "tracks": {"robustness": result.model_dump(mode="json")},
    }
    assert Scorecard.from_json(Scorecard.model_validate(card).to_json()).tracks["robustness"] == result


def test_no_number_from_an_unfinished_evaluation() -> None:
    """The images that break come first, so a share of those decided so far would mean nothing."""
    rows = worked()
    rows[5] = replace(rows[5], status="pending")
    result = track(rows, LABELS)
    assert result.metrics == {}
    assert "1 verdicts are missing" in result.notes[0]


def test_without_label_sets_only_the_original_objective_has_numbers() -> None:
    rows = [r for r in worked() if r.objective == "original"]
    metrics = track(rows, {}).metrics
    assert set(metrics) == {"clean_accuracy", "robust_accuracy_original"}


def test_label_sets_that_came_later_leave_bounds() -> None:
    """Attacked for the original label alone, then read against label sets: what cannot be known is open."""
    rows = [r for r in worked() if r.objective == "original"]
    result = track(rows, LABELS)
    rectified, hidden = (result.metrics[m] for m in ("robust_accuracy_rectified", "hidden_robustness"))
    # c robust; b, d, g out; only a, whose adversarial people accept, might be robust or not.
    assert (rectified.lower, rectified.upper, rectified.judged, rectified.n) == (1 / 5, 2 / 5, 4, 5)
    assert hidden.lower == 0
    assert hidden.upper == pytest.approx(1 / 5)
    assert any("no verdict under the rectified objective" in note for note in result.notes)


def test_grown_label_sets_keep_what_follows_and_open_the_rest() -> None:
    grown = small(
        {
            "a": {1: "accepted", 2: "accepted", 5: "accepted"},  # robust against less: robust still
            "b": {1: "accepted", 5: "accepted"},  # its adversarial is accepted now: open
            "c": {1: "accepted"},
            "d": {1: "accepted", 7: "accepted"},  # predicted right now, and never attacked: open
            "g": {1: "accepted"},  # a smaller set, and the adversarial is outside: broken
        }
    )
    metric = track(worked(), {"real": grown}).metrics["robust_accuracy_rectified"]
    assert (metric.lower, metric.upper, metric.judged) == (2 / 5, 4 / 5, 3)


def test_shrunken_label_sets_do_not_make_an_image_robust() -> None:
    """Robust against {1, 2} says nothing about {1}, and the adversarial found lands outside {1}."""
    shrunk = {"real": small({"a": {1: "accepted", 2: "rejected"}})}
    metric = track(worked()[:2], shrunk).metrics["robust_accuracy_rectified"]
    assert (metric.value, metric.upper) == (0, 0)


def test_the_headline_radius_is_quoted_by_the_strongest_suite() -> None:
    rows = [
        replace(r, epsilon=epsilon, suite=suite, threat=threat)
        for r in worked()
        for threat, epsilon, suite in [
            ("linf", 8 / 255, "standard"),
            ("linf", EPS, "quick"),
            ("linf", EPS, "standard"),
            ("l2", 0.5, "standard"),
        ]
    ]
    result = track(rows, LABELS)
    quoted = [(r["threat"], r["epsilon"], r["suite"]) for r in result.tables["by_epsilon"] if r["quoted"]]
    assert quoted == [("linf", EPS, "standard")]
    assert len(result.tables["by_epsilon"]) == 4
    other = track([r for r in rows if r.threat == "l2"], LABELS)
    assert any("The headline radius, L∞ 4/255, was not run" in note for note in other.notes)


def test_findings_become_warnings() -> None:
    finding = FindingInfo(kind="randomised", message="the model is random", images=3)
    info = AttackInfo(threat="linf", epsilon=EPS, suite="quick", note="reduced", findings=[finding])
    (warning,) = track(worked(), LABELS, [info]).tables["warnings"]
    assert (warning["kind"], warning["images"], warning["message"]) == (
        "randomised",
        3,
        "the model is random",
    )


def test_failed_images_are_neither_robust_nor_broken() -> None:
    rows = [*worked(), row("h", "original", "failed"), row("i", "original", "failed", clean_class=-1)]
    result = track(rows, LABELS)
    assert result.metrics["robust_accuracy_original"].value == 1 / 9
    assert any(note.startswith("2 images are neither") for note in result.notes)


def simulate(rng: np.random.Generator, n: int) -> tuple[list[Row], dict[str, LabelSets], dict[str, set[int]]]:
    """Images with a planted truth: the classes that an adversary of this radius can reach."""
    rows: list[Row] = []
    pairs: dict[str, dict[int, str]] = {}
    reachable: dict[str, set[int]] = {}
    for i in range(n):
        image_id, label = f"image{i:03d}", int(rng.integers(6))
        verdicts = {
            c: ["accepted", "unsure", "rejected"][rng.integers(3)] for c in range(6) if rng.random() < 0.6
        }
        kept = tuple(c for c in sorted(verdicts) if verdicts[c] != "rejected")
        clean = label if rng.random() < 0.7 else int(rng.integers(6))
        reach = {clean, *np.flatnonzero(rng.random(6) < 0.3).tolist()}
        reachable[image_id] = reach
        judged = any(v == "accepted" for v in verdicts.values())
        if verdicts:
            pairs[image_id] = verdicts
        for objective, inside in (("original", (label,)), ("rectified", kept)):
            if objective == "rectified" and not judged:
                continue
            outside = sorted(reach - set(inside))
            common: dict[str, Any] = {"original_label": label, "clean_class": clean, "inside": inside}
            if clean not in inside:
                rows.append(row(image_id, objective, "misclassified", **common))
            elif outside:
                reached = int(rng.choice(outside))
                rows.append(row(image_id, objective, "broken", adversarial_class=reached, **common))
            else:
                rows.append(row(image_id, objective, "robust", **common))
    return rows, {"real": small(pairs)}, reachable


@pytest.mark.parametrize("seed", range(20))
def test_against_the_definitions_with_a_planted_truth(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, labels, reachable = simulate(rng, 60)
    result = score_robustness(AttackRecords.from_rows(rows), labels)
    verdicts = result.verdicts
    assert verdicts is not None
    sets = labels["real"]
    label_of = {r.image_id: r.original_label for r in rows}
    robust, robust_people, kept_images = [], [], []
    for k, image_id in enumerate(verdicts.image_ids):
        label, reach = label_of[image_id], reachable[image_id]
        robust.append(reach <= {label})
        assert bool(verdicts.robust_original[k]) == robust[-1]
        at = sets.rows(np.array([image_id], dtype=object))[0]
        judged = at >= 0 and sets.evaluable[at]
        people: set[int] = set()
        if judged:
            people = {int(c) for v in (1, 2) for c in sets.classes_of(at, v)}  # type: ignore[arg-type]
            assert bool(verdicts.robust_rectified[k]) == (reach <= people)
        assert bool(verdicts.kept[k]) == (judged and label in people)
        if judged and label in people:
            kept_images.append(k)
            robust_people.append(reach <= people)
            # Broken by what people accept implies broken by the label.
            assert verdicts.robust_rectified[k] or not verdicts.robust_original[k]
    metrics = result.track.metrics
    assert metrics["robust_accuracy_original"].value == pytest.approx(np.mean(robust))
    assert metrics["robust_accuracy_rectified"].value == pytest.approx(np.mean(robust_people))
    same = np.array(robust)[kept_images]
    assert metrics["hidden_robustness"].value == pytest.approx(np.mean(robust_people) - same.mean())


@pytest.mark.parametrize("seed", range(10))
def test_bounds_hold_the_truth_whatever_was_attacked(seed: int) -> None:
    """Drop the rectified rows, or attack other label sets: the truth stays within the bounds."""
    rng = np.random.default_rng(100 + seed)
    rows, labels, _ = simulate(rng, 60)
    truth = track(rows, labels).metrics["robust_accuracy_rectified"]
    assert truth.lower == truth.upper == truth.value
    blind = track([r for r in rows if r.objective == "original"], labels).metrics["robust_accuracy_rectified"]
    assert blind.lower is not None
    assert blind.upper is not None
    assert blind.n == truth.n
    assert blind.lower - 1e-12 <= truth.value <= blind.upper + 1e-12


def test_the_interval_of_hidden_robustness_covers() -> None:
    """Of 200 studies of 150 images with a true difference of 8 points, about 95 % cover it."""
    rng = np.random.default_rng(5)
    labels = {"real": small({f"i{k:03d}": {1: "accepted", 2: "accepted"} for k in range(150)})}
    covered = 0
    studies = 200
    for _ in range(studies):
        kind = rng.choice(3, size=150, p=[0.08, 0.30, 0.62])  # hidden, robust, broken
        rows = []
        for k, what in enumerate(kind):
            image_id = f"i{k:03d}"
            inside = {"inside": (1, 2)}
            if what == 0:
                rows += [row(image_id, "original", "broken", adversarial_class=2)]
                rows += [row(image_id, "rectified", "robust", **inside)]
            elif what == 1:
                rows += [row(image_id, "original", "robust"), row(image_id, "rectified", "robust", **inside)]
            else:
                rows += [row(image_id, "original", "broken", adversarial_class=3)]
                rows += [row(image_id, "rectified", "broken", adversarial_class=3, **inside)]
        hidden = track(rows, labels).metrics["hidden_robustness"]
        assert hidden.ci_low is not None
        assert hidden.ci_high is not None
        covered += hidden.ci_low <= 0.08 <= hidden.ci_high
    assert covered / studies >= 0.91
