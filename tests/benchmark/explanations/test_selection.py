"""What a study shows: controls plainly right or wrong, kinds balanced by class and confidence."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from annotations.classes import class_names
from annotations.errors import BeyondError
from annotations.judgements import Verdict
from annotations.study.preregistration import KINDS
from benchmark.explanations.pack import item_name
from benchmark.explanations.selection import Candidate, deal, parse_mix, plainly_wrong, sham_class
from tests.benchmark.tracks.label_sets import small

TERRIER, OTHER_TERRIER, CAT, UMBRELLA, PADDLE = (
    class_names().index(name)
    for name in ("Airedale Terrier", "Lakeland Terrier", "Siamese cat", "umbrella", "paddle")
)


def candidate(image_id: str, label: int = 0, confidence: float = 0.5, **changes: object) -> Candidate:
    made = Candidate(
        image_id=image_id,
        original_label=label,
        clean_class=label,
        clean_confidence=confidence,
        clean_verdict=Verdict.ACCEPTED,
        adversarial=f"a-{image_id}",
        adversarial_class=(label + 1) % 1000,
        adversarial_verdict=Verdict.UNJUDGED,
        distance=0.01,
        sham_class=(label + 500) % 1000,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_a_sham_is_of_another_kind_than_anything_people_or_the_model_hold_likely() -> None:
    closed = small({"a": {TERRIER: "accepted", UMBRELLA: "unsure"}}, closed=True)
    wrong = plainly_wrong(closed, 0, likely=[CAT])
    names = class_names()
    shams = {names[c] for c in np.flatnonzero(wrong)}
    assert not {names[c] for c in (TERRIER, OTHER_TERRIER, CAT, UMBRELLA)} & shams
    assert {"tabby cat", "Golden Retriever"}.isdisjoint(shams)  # other cats and dogs are no plain mistake
    assert {"banana", "acoustic guitar"} <= shams
    # Where the source did not judge everything, only what people rejected by name is known to be wrong.
    open_world = small({"a": {TERRIER: "accepted", PADDLE: "rejected", OTHER_TERRIER: "rejected"}})
    assert np.flatnonzero(plainly_wrong(open_world, 0, likely=[CAT])).tolist() == [PADDLE]
    assert not plainly_wrong(open_world, 0, likely=[PADDLE]).any()
    assert not plainly_wrong(closed, -1, likely=[]).any()
    referenced = np.zeros(1000, dtype=bool)
    referenced[[PADDLE, CAT]] = True
    assert np.flatnonzero(plainly_wrong(closed, 0, likely=[CAT], referenced=referenced)).tolist() == [PADDLE]


def test_the_sham_of_an_image_depends_on_the_image_alone_and_spreads_over_the_classes() -> None:
    wrong = np.ones(1000, dtype=bool)
    chosen = [sham_class(f"image{i}", wrong) for i in range(2000)]
    assert chosen == [sham_class(f"image{i}", wrong) for i in range(2000)]
    # 2000 draws of 1000 classes leave about 1000/e² = 135 out.
    assert len(set(chosen)) == pytest.approx(1000 * (1 - np.exp(-2)), abs=45)
    fewer = wrong.copy()
    fewer[[c for c in chosen[1:5] if c is not None and c != chosen[0]]] = False
    assert sham_class("image0", fewer) == chosen[0]
    assert sham_class("image0", np.zeros(1000, dtype=bool)) is None


def test_items_say_what_they_are() -> None:
    one = candidate("x", 7, 0.75)
    adversarial, clean, sham = (one.item(kind, 3) for kind in KINDS)
    assert (adversarial.shown_class, adversarial.predicted_class, adversarial.verdict) == (8, 8, "unjudged")
    assert (clean.shown_class, clean.predicted_class, clean.verdict) == (7, 7, "accepted")
    assert (sham.shown_class, sham.predicted_class, sham.verdict) == (507, 7, "rejected")
    assert [i.distance for i in (adversarial, clean, sham)] == [0.01, None, None]
    assert {i.clean_confidence for i in (adversarial, clean, sham)} == {0.75}
    assert sham.item == item_name("x", "sham", 507) != clean.item


def pool(rng: np.random.Generator, n: int) -> list[Candidate]:
    labels = rng.integers(0, 1000, n)
    labels[: n // 2] = rng.integers(0, 8, n // 2)  # a few classes with many images
    return [
        candidate(f"image{i:04d}", int(label), float(share))
        for i, (label, share) in enumerate(zip(labels, rng.beta(4, 1, n)))
    ]


def test_kinds_are_balanced_by_class_and_confidence_far_better_than_by_chance() -> None:
    rng = np.random.default_rng(0)
    ours: list[float] = []
    chance: list[float] = []
    for _ in range(30):
        candidates = pool(rng, 203)
        items = deal(candidates)
        assert {i.image_id for i in items} == {c.image_id for c in candidates}
        kinds = np.array([i.kind for i in items])
        assert Counter(kinds.tolist()) == {"adversarial": 101, "clean": 51, "sham": 51}
        share = np.array([i.clean_confidence for i in items])
        for drawn, gaps in ((kinds, ours), (rng.permutation(kinds), chance)):
            gaps.append(max(abs(share[drawn == kind].mean() - share.mean()) for kind in KINDS))
        for label in range(8):  # a quarter of a class, but for what blocks over its two borders do to it
            mine = kinds[[i.original_label == label for i in items]]
            assert abs((mine == "clean").sum() - len(mine) / 4) <= 1.5
            assert abs((mine == "sham").sum() - len(mine) / 4) <= 1.5
    assert np.mean(ours) < np.mean(chance) / 4
    blocks = Counter(i.block for i in items)
    assert sorted(blocks.values()) == [3, *[4] * 50]


def test_the_same_images_are_dealt_alike_in_any_order() -> None:
    candidates = pool(np.random.default_rng(1), 40)
    assert deal(candidates) == deal(candidates[::-1])
    assert {i.kind for i in deal(candidates, (1, 0, 0))} == {"adversarial"}
    assert {i.kind for i in deal(candidates[:2], (2, 1, 1))} == {"adversarial", "clean"}


@pytest.mark.parametrize("text", ["", "2:1", "0:1:1", "2:1:x", "1:-1:1", "90:9:9", "2:1:1:1"])
def test_what_is_no_mix_is_refused(text: str) -> None:
    with pytest.raises(BeyondError, match="is no mix"):
        parse_mix(text)
    assert parse_mix("2:1:1") == (2, 1, 1)
