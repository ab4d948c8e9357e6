"""The search itself: halves, families of tests, and what has nothing to compare."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from benchmark.criticism.attributes import Attribute
from benchmark.criticism.findings import ALL, Slices, confidence_strata, in_discovery, search, slice_side


def ids(n: int) -> np.ndarray:
    return np.array([f"id-{i:05d}" for i in range(n)], dtype=object)


def attribute(name: str, has: np.ndarray, **more: object) -> Attribute:
    return Attribute(name, "test", ("no", "yes"), has.astype(np.int8), (1,), **more)  # type: ignore[arg-type]


def test_halves_are_even_fixed_and_know_nothing_but_the_id() -> None:
    half = in_discovery(ids(20_000))
    assert half.mean() == pytest.approx(0.5, abs=0.02)
    assert in_discovery(ids(20_000)[::-1]).tolist() == half[::-1].tolist()


def test_a_strong_attribute_is_found_in_its_class_with_the_textbook_p() -> None:
    n = 400
    rng = np.random.default_rng(0)
    place, classes, names = rng.normal(2, 1, n), np.arange(n) % 2, ids(n)
    has = np.where(classes == 0, place + rng.normal(0, 0.5, n) < 2, rng.random(n) < 0.5)
    found = search(place, classes, names, [attribute("thing", has), attribute("coin", rng.random(n) < 0.5)])
    assert [(f.says, f.subject, f.confirmed) for f in found.findings] == [
        ("thing", 0, True),
        ("thing", ALL, True),
    ]
    assert found.tested == 6  # two attributes, each over all classes and in both
    side = found.findings[0].confirmation
    table = [[side.first, side.n_first - side.first], [side.second, side.n_second - side.second]]
    assert side.p == pytest.approx(stats.fisher_exact(table).pvalue)
    half = ~in_discovery(names) & (classes == 0)
    assert (side.base, side.n_base) == (int(has[half].sum()), int(half.sum()))
    assert side.n_first == half.sum() // 4


def test_discoveries_are_tested_again_on_images_that_had_no_part_in_them() -> None:
    """An attribute that is true on one half and reversed on the other is found and not confirmed."""
    n = 600
    rng = np.random.default_rng(1)
    place, names = rng.normal(2, 1, n), ids(n)
    half = in_discovery(names)
    for reverse in (True, False):
        has = np.where(half | (not reverse), place < 2, place > 2)
        found = search(place, np.zeros(n, int), names, [attribute("thing", has)])
        (only,) = found.findings
        assert only.confirmed is not reverse
        assert only.confirmation.p < 1e-6
        assert only.discovery.difference.value > 0


def test_order_of_images_changes_nothing() -> None:
    n = 300
    rng = np.random.default_rng(2)
    place, classes, names = rng.normal(1, 1, n), rng.integers(0, 3, n), ids(n)
    has = place + rng.normal(0, 1, n) < 1
    one = search(place, classes, names, [attribute("thing", has)])
    order = rng.permutation(n)
    other = search(place[order], classes[order], names[order], [attribute("thing", has[order])])
    assert one == other


def test_nothing_to_compare_is_no_finding() -> None:
    n = 40
    place, names = np.linspace(1, 2, n), ids(n)
    never, always = np.zeros(n, bool), np.ones(n, bool)
    unknown = Attribute("unknown", "test", ("no", "yes"), np.full(n, -1, np.int8), (1,))
    for classes in (np.arange(n), np.zeros(n, int)):
        found = search(place, classes, names, [attribute("a", never), attribute("b", always), unknown])
        assert found.findings == ()
        assert found.tested == found.hopeless == 0
    nobody = search(np.full(n, np.nan), np.zeros(n, int), names, [attribute("a", place > 1.5)])
    assert nobody.findings == ()
    assert nobody.images == (0, 0)
    empty = search(np.zeros(0), np.zeros(0, int), ids(0), [])
    assert empty.findings == ()


def test_tests_that_could_never_speak_are_not_made() -> None:
    n = 16
    has = np.zeros(n, bool)
    has[:2] = True
    found = search(np.linspace(1, 2, n), np.zeros(n, int), ids(n), [attribute("rare", has)], k=2)
    assert found.tested == 0


def test_slices_are_compared_at_equal_confidence() -> None:
    """Where answers are wrong exactly as often as the confidence says, no slice by confidence stands out."""
    n = 20_000
    rng = np.random.default_rng(3)
    confidence = rng.uniform(0.3, 1, n)
    wrong = rng.random(n) > confidence
    usable = np.ones(n, bool)
    unsure = np.where(confidence < 0.5, 0, -1)
    plain = slice_side(Slices(unsure, wrong, confidence, usable), 0, usable)
    assert plain.first / plain.n_first > 0.55
    assert plain.p > 0.01
    member = rng.random(n) < 0.1
    worse = wrong | (member & (rng.random(n) < 0.15))
    side = slice_side(Slices(np.where(member, 0, -1), worse, confidence, usable), 0, usable)
    expected = float(worse[member].mean() - wrong[member].mean())
    assert side.p < 1e-9
    assert float(side.difference.low) < expected < float(side.difference.high)


def test_strata_hold_about_as_many_images_each_in_order_of_confidence() -> None:
    confidence = np.random.default_rng(4).random(530)
    strata = confidence_strata(confidence)
    assert np.bincount(strata).min() >= 25
    order = np.argsort(confidence)
    assert (np.diff(strata[order]) >= 0).all()
    assert confidence_strata(np.zeros(3)).tolist() == [0, 0, 0]
