"""What people accept in the images of each class, and which entries gain from it.

People's labels are ReaL's, which ship in timm, so the site can be built anywhere.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from annotations import sources
from annotations.classes import NUM_CLASSES, package_file, validation_labels
from annotations.judgements import LabelSets, Verdict
from leaderboard.correctness import TOP1
from leaderboard.site.data import REAL, Board

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ClassFacts:
    """One class in people's eyes.

    Attributes:
        images: Its validation images.
        evaluable: Those for which people accept anything.
        kept: Evaluable images for which they accept the original label.
        others: Evaluable images for which they accept another label (too).
        beside: Other classes accepted in its images, and in how many; most frequent first.
        elsewhere: Original classes of other images in which people accept this one, likewise.
    """

    images: int
    evaluable: int
    kept: int
    others: int
    beside: list[tuple[int, int]]
    elsewhere: list[tuple[int, int]]


@dataclass(frozen=True)
class ClassScores:
    """Correct answers by class, on ReaL's images: M entries, 1000 classes.

    Attributes:
        rows: (M,) rows of the entries.
        total: (1000,) evaluable images of each class.
        single: (M, 1000) answers that are the single label.
        people: (M, 1000) answers that people accept.
    """

    rows: list[int]
    total: Ints
    single: Ints
    people: Ints

    @property
    def gains(self) -> npt.NDArray[np.float64]:
        """Accuracy by people minus accuracy by the single label: (M, 1000), 0 where a class has no image."""
        return (self.people - self.single) / np.maximum(self.total, 1)


@cache
def superclasses() -> tuple[str, ...]:
    """Broad kind of each class, from WordNet (`benchmark/data/hierarchy.csv`)."""
    with package_file("benchmark", "data", "hierarchy.csv").open(encoding="utf-8", newline="") as file:
        return tuple(row["superclass"] for row in csv.DictReader(file))


def class_facts(labels: LabelSets | None = None) -> list[ClassFacts]:
    """Facts of all 1000 classes, from ReaL's label sets or the ones given (all validation images)."""
    labels = labels or sources.load(REAL)
    accepted = (labels.verdict == Verdict.ACCEPTED) & labels.evaluable[labels.pair_image]
    image, other = labels.pair_image[accepted], labels.pair_class[accepted].astype(np.int64)
    original = labels.original_labels[image].astype(np.int64)
    seen = labels.original_labels >= 0
    image, other, original = (x[original >= 0] for x in (image, other, original))
    table = np.bincount(original * NUM_CLASSES + other, minlength=NUM_CLASSES**2).reshape(NUM_CLASSES, -1)
    kept = table.diagonal().copy()
    np.fill_diagonal(table, 0)
    has_other = np.zeros(len(labels.image_ids), dtype=bool)
    has_other[image[original != other]] = True
    originals = labels.original_labels

    def count(mask: npt.NDArray[np.bool_]) -> Ints:
        return np.bincount(originals[mask & seen], minlength=NUM_CLASSES)

    images, evaluable, others = count(seen), count(labels.evaluable), count(has_other)
    return [
        ClassFacts(
            int(images[c]),
            int(evaluable[c]),
            int(kept[c]),
            int(others[c]),
            _most(table[c]),
            _most(table[:, c]),
        )
        for c in range(NUM_CLASSES)
    ]


def _most(counts: Ints) -> list[tuple[int, int]]:
    found = np.flatnonzero(counts)
    return [(int(c), int(counts[c])) for c in found[np.lexsort((found, -counts[found]))]]


def class_scores(board: Board) -> ClassScores:
    """Correct answers of every ranked entry by class; entries without bits for ReaL are left out."""
    order = np.argsort(validation_labels(), kind="stable")
    labels = validation_labels()[order]
    starts = np.searchsorted(labels, np.arange(NUM_CLASSES))
    rows: list[int] = []
    single: list[Ints] = []
    people: list[Ints] = []
    mask = board.evaluable.packed[REAL]

    def by_class(packed: npt.NDArray[np.uint8]) -> Ints:
        bits = np.unpackbits(packed, count=len(order), bitorder="little")[order]
        return np.add.reduceat(bits, starts, dtype=np.int64)

    for row in board.by_rank:
        found = board.entries[row].correctness
        if found is None or board.mask(row, REAL) is None:
            continue
        rows.append(row)
        single.append(by_class(found.packed[TOP1] & mask))
        people.append(by_class(found.packed[REAL] & mask))
    shape = (len(rows), NUM_CLASSES)
    return ClassScores(rows, by_class(mask), _stack(single, shape), _stack(people, shape))


def _stack(arrays: Sequence[Ints], shape: tuple[int, int]) -> Ints:
    return np.stack(arrays) if arrays else np.zeros(shape, dtype=np.int64)
