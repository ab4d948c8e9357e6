"""Which items of a pack a study takes."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import numpy as np
import pytest

from annotations.errors import BeyondError
from annotations.study.preregistration import Kind
from benchmark.explanations.pack import Item, Manifest, Picture, item_name
from benchmark.explanations.study import Chosen, checks_for, choose, make_stimuli

PATTERN: tuple[Kind, ...] = ("adversarial", "clean", "adversarial", "sham")


def pack(
    blocks: int = 40, *, neighbours: int = 0, mix: str = "2:1:1", blank: int = -1, seed: int = 0
) -> Manifest:
    """A pack of blocks of four, confidence falling from block to block; examples at random, if any."""
    rng = np.random.default_rng(seed)
    items, pictures = [], []
    for n in range(4 * blocks):
        name, kind = f"image{n:04d}", PATTERN[n % 4]
        item = Item(
            item=item_name(name, kind, n % 1000),
            image_id=name,
            kind=kind,
            shown_class=n % 1000,
            predicted_class=n % 1000,
            original_label=n % 1000,
            clean_confidence=round(1 - (n // 4) / (blocks + 1), 4),
            block=n // 4,
        )
        items.append(item)
        for arm in ("example", "feature", "none"):
            digest = hashlib.sha256(f"{n} {arm}".encode()).hexdigest()
            near: list[str] = []
            if arm == "example":
                near = [f"image{i:04d}" for i in rng.choice(4 * blocks, neighbours, replace=False) if i != n]
            pictures.append(
                Picture(
                    item=item.item,
                    arm=arm,
                    file=f"{digest}.png",
                    blank=arm == "feature" and n == blank,
                    neighbours=near,
                    similarities=[0.5] * len(near),
                )
            )
    return Manifest(
        model={"name": "m"}, images="", settings={"mix": mix}, versions={}, items=items, pictures=pictures
    )


def everything(chosen: Chosen) -> list[Item]:
    return [*chosen.items, *chosen.attention, *chosen.practice]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("neighbours", [0, 2])
def test_whole_blocks_are_taken_evenly_and_the_plainest_are_left_for_checks(
    neighbours: int, seed: int
) -> None:
    number = 400 if neighbours else 40
    manifest = pack(number, neighbours=neighbours, seed=seed)
    chosen = choose(manifest, items=42, checks=6, practice=4, seed=seed)
    assert Counter(i.kind for i in chosen.items) == {"adversarial": 20, "clean": 10, "sham": 10}
    blocks = Counter(i.block for i in chosen.items)
    assert set(blocks.values()) == {4}
    # One from each tenth, or from next to it where examples are in the way.
    tenths = np.bincount([b * 10 // number for b in blocks], minlength=10)
    assert tenths.max() <= (2 if neighbours else 1)
    for known, number in ((chosen.attention, 6), (chosen.practice, 4)):
        assert Counter(i.kind for i in known) == {"clean": number // 2, "sham": number // 2}
    names = [i.image_id for i in everything(chosen)]
    assert len(set(names)) == len(names) == 50
    sure = {
        kind: min(i.clean_confidence or 0 for i in chosen.attention if i.kind == kind)
        for kind in ("clean", "sham")
    }
    assert all((i.clean_confidence or 0) <= sure[i.kind] for i in chosen.practice)
    # No image of the study is shown as an example of another.
    items = {i.item for i in everything(chosen)}
    examples = {n for p in manifest.pictures if p.item in items for n in p.neighbours}
    assert not examples & set(names)
    assert choose(manifest, items=42, checks=6, practice=4, seed=seed) == chosen
    others = (choose(manifest, items=42, checks=6, practice=4, seed=seed + s).items for s in range(1, 9))
    assert any(other != chosen.items for other in others)


def test_every_block_is_taken_as_often_over_seeds() -> None:
    """Each of 40 blocks by a random start: ten are taken, so a quarter of the seeds each."""
    manifest = pack()
    taken: Counter[int] = Counter()
    for seed in range(400):
        taken.update({i.block for i in choose(manifest, items=40, checks=0, practice=0, seed=seed).items})
    counts = [taken[b] for b in range(40)]
    assert sum(counts) == 4000
    assert 60 <= min(counts) <= max(counts) <= 140  # 100 ± 4.6 standard deviations


def test_stimuli_say_what_each_item_is_for() -> None:
    manifest = pack(neighbours=1)
    chosen = choose(manifest, arms=("none", "example"), items=20)
    stimuli = make_stimuli(manifest, chosen, sha256="0" * 64, arms=("none", "example"), seed=3)
    kinds = Counter(i.kind for i in stimuli.items)
    assert kinds == {"adversarial": 10, "clean": 5, "sham": 5, "attention": 4, "practice": 4}
    truth = {i.item: i.kind for i in manifest.items}
    for item in stimuli.items:
        known = item.kind in ("attention", "practice")
        assert item.expected == ("" if not known else {"clean": "yes", "sham": "no"}[truth[item.item]])
    assert {p.arm for p in stimuli.pictures} == {"none", "example"}
    assert len(stimuli.pictures) == 2 * 28
    assert stimuli.settings["seed"] == 3


def test_an_item_without_a_picture_for_an_arm_is_not_used() -> None:
    manifest = pack(8, blank=5)
    assert 1 not in {i.block for i in choose(manifest, items=20, checks=0, practice=0).items}
    lacking = [p for p in manifest.pictures if not (p.arm == "example" and p.item == manifest.items[9].item)]
    chosen = choose(manifest.model_copy(update={"pictures": lacking}), items=16, checks=2, practice=2)
    assert manifest.items[9] not in everything(chosen)
    assert 2 not in {i.block for i in chosen.items}
    # In arms that do not show it, it may be used.
    assert len(choose(manifest, arms=("none", "example"), items=32, checks=0, practice=0).items) == 32


def test_as_many_items_as_there_are_unless_told() -> None:
    assert len(choose(pack(100)).items) == 60
    few = choose(pack(10))
    assert (len(few.items), len(few.attention), len(few.practice)) == (24, 4, 4)
    assert checks_for(60) == 6
    assert checks_for(4) == 4


@pytest.mark.parametrize(
    ("manifest", "options", "message"),
    [
        (pack(mix="1:0:0"), {}, "a study needs controls, and this pack has none"),
        (pack(10), {"items": 40}, "enough for 24 items .* not for 40: pass --items 24"),
        (pack(3), {}, "12 items with a picture for each arm, in 3 whole blocks of 4: too few"),
        (pack(), {"items": 3}, "less than one block; pass --items 4"),
        (pack(), {"checks": 3}, "even numbers"),
        (pack(), {"practice": 1}, "even numbers"),
    ],
)
def test_packs_that_are_not_enough_get_one_line(
    manifest: Manifest, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(BeyondError, match=message) as caught:
        choose(manifest, **options)
    assert "\n" not in str(caught.value)


def test_an_image_in_two_items_is_refused() -> None:
    manifest = pack(20)
    first = manifest.items[0]
    other = first.model_copy(update={"kind": "clean", "item": item_name(first.image_id, "clean", 0)})
    pictures = [p.model_copy(update={"item": other.item}) for p in manifest.pictures if p.item == first.item]
    both = manifest.model_copy(
        update={"items": [*manifest.items, other], "pictures": [*manifest.pictures, *pictures]}
    )
    with pytest.raises(BeyondError, match="image 'image0000' in two items"):
        choose(both)
