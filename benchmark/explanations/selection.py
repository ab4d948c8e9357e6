"""Which images a study shows, and as what: adversarial predictions, clean controls and shams. Needs no torch.

All three kinds come from one pool, the images that an attack broke, so that they differ in nothing but what
is shown: the adversarial image with what the model predicts there; the clean image with what it predicts
there, which people accept; the clean image with a class that is plainly wrong. Each image appears once.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from annotations.classes import NUM_CLASSES
from annotations.errors import BeyondError
from annotations.judgements import VERDICT_NAMES, LabelSets, Verdict
from annotations.study.preregistration import KINDS, Kind
from benchmark.anatomy import hierarchy
from benchmark.explanations.pack import Item, item_name

Bools = npt.NDArray[np.bool_]

MIX = (2, 1, 1)
"""Adversarials, clean controls and shams in a block, unless told otherwise."""

TOP = 5
"""A sham's class is not among so many of the model's best."""


@dataclass(frozen=True)
class Candidate:
    """An image that an attack broke, and all that it may be shown as.

    Attributes:
        image_id: Its id.
        original_label: Its original label.
        clean_class: What the model predicts for the clean image.
        clean_confidence: The softmax probability of that.
        clean_verdict: What people say of it.
        adversarial: Name of the adversarial.
        adversarial_class: What the model predicts for that.
        adversarial_verdict: What people say of it, for the clean image.
        distance: Norm of the perturbation.
        sham_class: A class that is plainly wrong, or None if there is none.
    """

    image_id: str
    original_label: int
    clean_class: int
    clean_confidence: float
    clean_verdict: Verdict
    adversarial: str
    adversarial_class: int
    adversarial_verdict: Verdict
    distance: float
    sham_class: int | None

    @property
    def matched(self) -> bool:
        """Whether it can be shown as each of the three kinds."""
        return self.sham_class is not None and self.clean_verdict == Verdict.ACCEPTED

    def item(self, kind: Kind, block: int) -> Item:
        """It as one kind of item."""
        if kind == "adversarial":
            shown, predicted, verdict = (
                self.adversarial_class,
                self.adversarial_class,
                self.adversarial_verdict,
            )
        elif kind == "clean":
            shown, predicted, verdict = self.clean_class, self.clean_class, self.clean_verdict
        else:
            assert self.sham_class is not None
            shown, predicted, verdict = self.sham_class, self.clean_class, Verdict.REJECTED
        return Item(
            item=item_name(self.image_id, kind, shown),
            image_id=self.image_id,
            kind=kind,
            shown_class=shown,
            predicted_class=predicted,
            original_label=self.original_label,
            verdict=VERDICT_NAMES.get(int(verdict), "unjudged"),
            clean_confidence=self.clean_confidence,
            distance=self.distance if kind == "adversarial" else None,
            block=block,
        )


def plainly_wrong(
    labels: LabelSets, row: int, *, likely: Sequence[int], referenced: Bools | None = None
) -> Bools:
    """Classes that are plainly wrong for an image: bool (1000,).

    People reject them (by name, or because the source judged every plausible class), they are not among the
    classes given as likely, and they are of another small group and broad kind than all classes that people
    accept or are unsure of.

    Args:
        labels: Label sets.
        row: The image's row in them, −1 if it has none.
        likely: Classes that the model, or the original label, holds likely.
        referenced: bool (1000,), classes with reference images to show; None for all.
    """
    if row < 0:
        return np.zeros(NUM_CLASSES, dtype=bool)
    everything = np.arange(NUM_CLASSES)
    verdicts = labels.lookup(np.full(NUM_CLASSES, row, dtype=np.intp), everything)
    near = np.isin(verdicts, [Verdict.ACCEPTED, Verdict.UNSURE])
    near[list(likely)] = True
    tree = hierarchy()
    alike = np.isin(tree.group, tree.group[near])
    alike |= np.isin(tree.superclass, tree.superclass[near]) & (tree.superclass >= 0)
    wrong: Bools = (verdicts == Verdict.REJECTED) & ~alike
    return wrong if referenced is None else wrong & referenced


def sham_class(image_id: str, wrong: Bools) -> int | None:
    """One of the classes that are plainly wrong, always the same one of the same; None without any."""
    classes = np.flatnonzero(wrong).tolist()
    return min(classes, key=lambda c: _rank(image_id, f"sham {c}"), default=None)


def parse_mix(text: str) -> tuple[int, int, int]:
    """Adversarials, clean controls and shams, such as `2:1:1`.

    Raises:
        BeyondError: Not three whole numbers, or none for adversarials.
    """
    parts = text.split(":")
    if len(parts) != len(KINDS) or not all(part.isascii() and part.isdigit() for part in parts):
        raise BeyondError(f"{text!r} is no mix; write adversarials:clean:shams, such as 2:1:1")
    mix = (int(parts[0]), int(parts[1]), int(parts[2]))
    if not 1 <= mix[0] <= sum(mix) <= 100:
        raise BeyondError(f"{text!r} is no mix; at least one adversarial, and at most 100 items in a block")
    return mix


def deal(candidates: Sequence[Candidate], mix: tuple[int, int, int] = MIX) -> list[Item]:
    """Make each candidate one item, the kinds balanced by class and confidence.

    Candidates are sorted into blocks of neighbours: those of one class where it has enough for a block of its
    own, else those of one broad kind, by the model's confidence in the clean image. Within a block, kinds go
    to images in an order that depends on their ids, turned so that no kind gets ahead in confidence
    (minimisation, Taves 1974).

    Args:
        candidates: With more than adversarials in the mix, each must be `matched`.
        mix: Adversarials, clean controls and shams in each block; a last, smaller block has a part of it.

    Returns:
        The items, sorted by image.
    """
    size = sum(mix)
    often = Counter(c.original_label for c in candidates)
    tree = hierarchy()

    def cell(c: Candidate) -> tuple[int, int]:
        kind = int(tree.superclass[c.original_label])
        return kind, c.original_label if often[c.original_label] >= size else -1

    cells = {key: n for n, key in enumerate(sorted({cell(c) for c in candidates}))}
    # Up in one cell and down in the next, so that a block over the border holds no jump in confidence.
    order = sorted(
        candidates,
        key=lambda c: (cells[cell(c)], c.clean_confidence * (-1) ** cells[cell(c)], c.image_id),
    )
    # What is left over at the end gets the kinds in turn: no kind goes without while another has all.
    left = dict(zip(KINDS, mix))
    pattern: list[Kind] = []
    while any(left.values()):
        for kind in KINDS:
            if left[kind]:
                pattern.append(kind)
                left[kind] -= 1
    items = []
    ahead: dict[Kind, float] = dict.fromkeys(KINDS, 0.0)
    for block, start in enumerate(range(0, len(order), size)):
        together = sorted(order[start : start + size], key=lambda c: _rank(c.image_id, "kind"))
        mean = sum(c.clean_confidence for c in together) / len(together)
        # Of the ways to deal the block, the one that evens out what the blocks before have left.
        turns = [together[k:] + together[:k] for k in range(len(together))]
        sums = [_added(ahead, turn, pattern, mean) for turn in turns]
        best = min(range(len(turns)), key=lambda k: _unevenness(sums[k], mix))
        ahead = sums[best]
        items += [c.item(kind, block) for c, kind in zip(turns[best], pattern)]
    return sorted(items, key=lambda item: item.image_id)


def _added(
    ahead: Mapping[Kind, float], dealt: Sequence[Candidate], pattern: Sequence[Kind], mean: float
) -> dict[Kind, float]:
    """By how much each kind is ahead in confidence once a block of this mean is dealt so."""
    sums = dict(ahead)
    for candidate, kind in zip(dealt, pattern):
        sums[kind] += candidate.clean_confidence - mean
    return sums


def _unevenness(ahead: Mapping[Kind, float], mix: tuple[int, int, int]) -> float:
    return sum(value**2 / max(share, 1) for value, share in zip(ahead.values(), mix))


def _rank(image_id: str, what: str) -> str:
    """A position that depends on the image alone, and on nothing about it."""
    return hashlib.sha256(f"{image_id}|{what}".encode()).hexdigest()
