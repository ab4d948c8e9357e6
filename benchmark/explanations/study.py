"""Which items of a pack a study asks about, and which serve as attention checks and practice. Needs no torch.

Items are asked about in whole blocks, since the kinds are balanced by class and confidence within them;
blocks are taken evenly over all, from a random start. Checks and practice are the plainest of what is left:
clean controls and shams on images that the model is surest of, as many to be answered yes as no. All of them
look like items, and every arm shows the same. No image of a study is among the examples of another, which
would tell its label.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from annotations.errors import BeyondError
from annotations.study.preregistration import ARMS, KINDS, Arm
from annotations.study.stimuli import ItemKind, Source, Stimuli, StudyItem, StudyPicture
from benchmark.explanations.pack import Item, Manifest
from benchmark.explanations.selection import parse_mix

ITEMS = 60
"""Items that a rater judges, unless told otherwise or there are fewer."""

PRACTICE = 4


@dataclass(frozen=True)
class Chosen:
    """Items of a study, sorted by image.

    Attributes:
        items: What is asked about, in whole blocks.
        attention: Attention checks.
        practice: Asked in practice, with feedback.
        blocks: Whole blocks in the pack.
    """

    items: tuple[Item, ...]
    attention: tuple[Item, ...]
    practice: tuple[Item, ...]
    blocks: int


def checks_for(items: int) -> int:
    """Attention checks unless told otherwise: a tenth of the items, at least four, an even number."""
    return max(4, 2 * round(items / 20))


def choose(
    manifest: Manifest,
    *,
    arms: Sequence[Arm] = ARMS,
    items: int | None = None,
    checks: int | None = None,
    practice: int = PRACTICE,
    seed: int = 0,
) -> Chosen:
    """Choose the items of a study.

    Args:
        manifest: A pack with controls.
        arms: Arms of the study; an item without a picture for one of them, or with an empty heat map, is not
            used, and its block is not whole.
        items: How many to ask about; rounded down to whole blocks. By default `ITEMS`, or what there is.
        checks: Attention checks; an even number. By default `checks_for(items)`.
        practice: Practice items; an even number.
        seed: Of the start.

    Raises:
        BeyondError: The pack has no controls, or fewer items than are asked for.
    """
    mix = parse_mix(str(manifest.settings.get("mix", "")))
    if not all(mix):
        raise BeyondError(
            "a study needs controls, and this pack has none: make it again with beyond explain RUN --mix "
            "2:1:1 on a run whose label sets judge its images (beyond rescore RUN --annotations real,…)"
        )
    if practice % 2 or practice < 0 or (checks is not None and (checks % 2 or checks < 0)):
        raise BeyondError(
            "attention checks and practice need even numbers: as many are to be answered yes as no"
        )
    lacking = [arm for arm in arms if not any(picture.arm == arm for picture in manifest.pictures)]
    if lacking:
        raise BeyondError(
            f"the pack has no pictures for the arm {lacking[0]}; make it again with beyond explain RUN "
            "--complete --references DIR --overwrite, or leave the arm out with --arms"
        )
    usable = _usable(manifest, arms)
    twice = [image for image, n in Counter(item.image_id for item in usable).items() if n > 1]
    if twice:
        raise BeyondError(
            f"the pack shows image {twice[0]!r} in two items, and a rater must not see it twice"
        )
    by_block: dict[int, list[Item]] = {}
    for item in usable:
        by_block.setdefault(item.block, []).append(item)
    wanted = dict(zip(KINDS, mix))
    whole = [inside for _, inside in sorted(by_block.items()) if Counter(i.kind for i in inside) == wanted]
    size = sum(mix)
    examples = {p.item: p.neighbours for p in manifest.pictures if p.arm == "example" and "example" in arms}

    def deal(blocks: int) -> Chosen | None:
        """So many blocks with their checks and practice, or None if there are too few."""
        shown = _Shown(examples)
        asked = _spread(whole, blocks, shown, start=float(np.random.default_rng(seed).random()))
        known = checks_for(blocks * size) if checks is None else checks
        taken = {item.item for item in asked}
        rest = sorted(
            (item for item in usable if item.item not in taken and item.kind != "adversarial"),
            key=lambda item: (-(item.clean_confidence or 0.0), item.item),
        )
        attention: list[Item] = []
        trained: list[Item] = []
        for kind in ("clean", "sham"):
            plainest: list[Item] = []
            for item in rest:
                if item.kind == kind and len(plainest) < (known + practice) // 2 and shown.takes([item]):
                    shown.add([item])
                    plainest.append(item)
            attention += plainest[: known // 2]
            trained += plainest[known // 2 :]
        if (len(asked), len(attention), len(trained)) != (blocks * size, known, practice):
            return None
        return Chosen(_sorted(asked), _sorted(attention), _sorted(trained), len(whole))

    aim = (ITEMS if items is None else items) // size
    if aim == 0:
        raise BeyondError(f"{items} items are less than one block; pass --items {size} or more")
    feasible = ((blocks, deal(blocks)) for blocks in range(min(aim, len(whole)), 0, -1))
    blocks, chosen = next(((n, found) for n, found in feasible if found is not None), (0, None))
    if chosen is None:
        raise BeyondError(
            f"the pack has {len(usable):,} items with a picture for each arm, in {len(whole):,} whole blocks "
            f"of {size}: too few for one block with {checks_for(size) if checks is None else checks} checks "
            f"and {practice} for practice; explain more images, with beyond explain RUN --complete "
            "--references DIR --overwrite, or pass --checks and --practice"
        )
    if items is not None and blocks < aim:
        raise BeyondError(
            f"the pack has enough for {blocks * size:,} items with their checks and practice, not for "
            f"{items:,}: pass --items {blocks * size}, or explain more images"
        )
    return chosen


class _Shown:
    """Images and examples of a study so far: no image may be among the examples, where its label is told."""

    def __init__(self, examples: Mapping[str, Sequence[str]]) -> None:
        self._examples = examples
        self._images: set[str] = set()
        self._neighbours: set[str] = set()

    def _of(self, items: Sequence[Item]) -> tuple[set[str], set[str]]:
        neighbours = {name for item in items for name in self._examples.get(item.item, ())}
        return {item.image_id for item in items}, neighbours

    def takes(self, items: Sequence[Item]) -> bool:
        """Whether these may come to it."""
        images, neighbours = self._of(items)
        return not (images | self._images) & (neighbours | self._neighbours)

    def add(self, items: Sequence[Item]) -> None:
        """Add them."""
        images, neighbours = self._of(items)
        self._images |= images
        self._neighbours |= neighbours


def _spread(whole: Sequence[Sequence[Item]], blocks: int, shown: _Shown, *, start: float) -> list[Item]:
    """The items of blocks at even distances from a start in [0, 1), or of those next to them that fit."""
    left = [n for n, block in enumerate(whole) if shown.takes(block)]
    found: list[Item] = []
    for i in range(blocks):
        target = (i + start) * len(whole) / blocks - 0.5
        for n in sorted(left, key=lambda n: (abs(n - target), n)):
            if shown.takes(whole[n]):
                shown.add(whole[n])
                found += whole[n]
                left.remove(n)
                break
    return found


def make_stimuli(
    manifest: Manifest, chosen: Chosen, *, sha256: str, arms: Sequence[Arm] = ARMS, seed: int = 0
) -> Stimuli:
    """The stimuli of a study, out of what was chosen from a pack.

    Args:
        manifest: The pack.
        chosen: What `choose` returned for it.
        sha256: Of the pack's manifest.
        arms: As for `choose`.
        seed: As for `choose`, for the record.
    """
    kinds: dict[str, ItemKind] = {item.item: item.kind for item in chosen.items}
    kinds |= {item.item: "attention" for item in chosen.attention}
    kinds |= {item.item: "practice" for item in chosen.practice}
    items = []
    for item in _sorted((*chosen.items, *chosen.attention, *chosen.practice)):
        is_known = kinds[item.item] in ("attention", "practice")
        items.append(
            StudyItem(
                kind=kinds[item.item],
                expected="" if not is_known else "yes" if item.kind == "clean" else "no",
                **item.model_dump(exclude={"kind"}),
            )
        )
    shown = {"none", *arms}
    pictures = [
        StudyPicture.model_validate(picture.model_dump())
        for picture in sorted(manifest.pictures, key=lambda p: (p.item, p.arm))
        if picture.item in kinds and picture.arm in shown
    ]
    return Stimuli(
        source=Source(
            manifest_sha256=sha256,
            model=manifest.model,
            images=manifest.images,
            settings=manifest.settings,
            versions=manifest.versions,
        ),
        settings={
            "seed": seed,
            "blocks": len({item.block for item in chosen.items}),
            "of_blocks": chosen.blocks,
        },
        arms=tuple(arms),
        items=tuple(items),
        pictures=tuple(pictures),
    )


def _usable(manifest: Manifest, arms: Sequence[Arm]) -> list[Item]:
    """Items with a picture for each arm, none of them empty."""
    there: dict[str, set[str]] = {}
    for picture in manifest.pictures:
        if not picture.blank:
            there.setdefault(picture.item, set()).add(picture.arm)
    return [item for item in manifest.items if {"none", *arms} <= there.get(item.item, set())]


def _sorted(items: Sequence[Item]) -> tuple[Item, ...]:
    return tuple(sorted(items, key=lambda item: item.image_id))
