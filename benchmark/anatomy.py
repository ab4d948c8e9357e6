"""Anatomy of mistakes: what is left of a model's errors once acceptable answers are gone.

Every prediction that differs from the original label falls into one category, the first that fits. The idea
of sorting mistakes by severity is that of Peychev et al. 2023, *Automated Classification of Model Errors on
ImageNet*; the rules are this project's own, and use label sets and WordNet alone:

`unjudged`         people did not judge the pair, or found nothing to accept in the image;
`multi_label`      people accept the prediction: no mistake at all;
`unclear`          people could not tell;
`fine_grained`     rejected, but of the same small group as an accepted class (two terriers);
`same_superclass`  rejected, but of the same broad kind as an accepted class (two dogs);
`co_occurrence`    rejected, but often accepted beside an accepted class in other images (paddle, canoe);
`severe`           the rest.
"""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from annotations.classes import NUM_CLASSES
from annotations.judgements import LabelSets, Verdict

CATEGORIES = (
    "multi_label",
    "unclear",
    "fine_grained",
    "same_superclass",
    "co_occurrence",
    "severe",
    "unjudged",
)
"""Categories in the order that tables show them; the codes that `categorize` returns are positions in it."""

NOT_A_MISTAKE = -1
"""Code of a prediction that equals the original label, or whose original label is unknown."""

MIN_CO_OCCURRENCES = 3
"""Number of other images whose label sets hold two classes together before that explains a mistake."""


@dataclass(frozen=True)
class Hierarchy:
    """Two partitions of the 1000 classes, from WordNet (see `benchmark/data/make_hierarchy.py`).

    Attributes:
        superclass: int16 (1000,), position in `superclass_names`, or −1 for classes of no common kind.
        group: int16 (1000,), position in `group_names`.
        superclass_names: Broad kinds, such as dog or musical instrument.
        group_names: Small groups, such as terrier; a class with no close relatives is a group of its own.
    """

    superclass: npt.NDArray[np.int16]
    group: npt.NDArray[np.int16]
    superclass_names: tuple[str, ...]
    group_names: tuple[str, ...]


@functools.cache
def hierarchy() -> Hierarchy:
    """The hierarchy that ships with this package."""
    path = Path(__file__).with_name("data") / "hierarchy.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: int(row["class_index"]))
    superclass_names = tuple(sorted({row["superclass"] for row in rows} - {"other"}))
    group_names = tuple(sorted({row["group"] for row in rows}))
    superclass_code = {name: i for i, name in enumerate(superclass_names)}
    group_code = {name: i for i, name in enumerate(group_names)}
    return Hierarchy(
        superclass=np.array([superclass_code.get(row["superclass"], -1) for row in rows], dtype=np.int16),
        group=np.array([group_code[row["group"]] for row in rows], dtype=np.int16),
        superclass_names=superclass_names,
        group_names=group_names,
    )


@dataclass(frozen=True)
class AcceptedSets:
    """The accepted classes of N images, laid end to end.

    Attributes:
        starts: int64 (N + 1,): the classes of image i are `classes[starts[i]:starts[i + 1]]`, ascending.
        classes: int16 (P,).
        evaluable: bool (N,).
        together: bool (1000, 1000): whether at least `MIN_CO_OCCURRENCES` evaluable images accept both.
    """

    starts: npt.NDArray[np.int64]
    classes: npt.NDArray[np.int16]
    evaluable: npt.NDArray[np.bool_]
    together: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, labels: LabelSets) -> AcceptedSets:
        """Collect the accepted classes of label sets."""
        accepted = labels.verdict == Verdict.ACCEPTED
        starts = np.concatenate([[0], np.cumsum(labels.counts(Verdict.ACCEPTED), dtype=np.int64)])
        together = co_occurrences(labels) >= MIN_CO_OCCURRENCES
        return cls(starts, labels.pair_class[accepted], labels.evaluable, together)

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Number of accepted classes of each image: int64 (N,)."""
        return np.diff(self.starts)

    def expand(self, rows: npt.NDArray[np.intp]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int16]]:
        """All accepted classes of some images.

        Args:
            rows: intp (M,), each ≥ 0.

        Returns:
            Position in `rows` of each class, and the classes: intp (Q,) and int16 (Q,).
        """
        first, size = self.starts[rows], self.starts[rows + 1] - self.starts[rows]
        position = np.repeat(np.arange(len(rows)), size)
        within = np.arange(len(position)) - np.repeat(np.cumsum(size) - size, size)
        return position, self.classes[np.repeat(first, size) + within]


def co_occurrences(labels: LabelSets) -> npt.NDArray[np.int32]:
    """In how many evaluable images two different classes are both accepted: int32 (1000, 1000), symmetric."""
    keep = (labels.verdict == Verdict.ACCEPTED) & labels.evaluable[labels.pair_image]
    image, classes = labels.pair_image[keep], labels.pair_class[keep].astype(np.int64)
    pairs = [np.empty(0, dtype=np.int64)]
    step = 1
    # Pairs are sorted by image, so two classes of one image are some `step` places apart.
    while (same := image[step:] == image[:-step]).any():
        first, second = classes[:-step][same], classes[step:][same]
        pairs += [first * NUM_CLASSES + second, second * NUM_CLASSES + first]
        step += 1
    keys, counts = np.unique(np.concatenate(pairs), return_counts=True)
    table = np.zeros(NUM_CLASSES * NUM_CLASSES, dtype=np.int32)
    table[keys] = counts
    return table.reshape(NUM_CLASSES, NUM_CLASSES)


def categorize(
    accepted: AcceptedSets,
    rows: npt.NDArray[np.intp],
    original: npt.NDArray[np.int16],
    predicted: npt.NDArray[np.int16],
    verdict: npt.NDArray[np.int8],
) -> npt.NDArray[np.int8]:
    """Category of every prediction, as a position in `CATEGORIES`, or `NOT_A_MISTAKE`: int8 (M,).

    The prediction is never an accepted class of its own image here, so the image itself adds nothing to how
    often the two classes occur together: the count is over other images, without leaving one out by hand.

    Args:
        accepted: The accepted classes of the label sets that judge.
        rows: intp (M,), row of each image in the label sets, −1 where they do not have it.
        original: int16 (M,), original labels, −1 where unknown.
        predicted: int16 (M,), top-1 classes.
        verdict: int8 (M,), verdict of each prediction, as `LabelSets.lookup` gives it.
    """
    code = {name: np.int8(i) for i, name in enumerate(CATEGORIES)}
    result = np.full(len(rows), NOT_A_MISTAKE, dtype=np.int8)
    mistakes = np.flatnonzero((original >= 0) & (predicted != original))
    judged = mistakes[(rows[mistakes] >= 0) & (verdict[mistakes] != Verdict.UNJUDGED)]
    judged = judged[accepted.evaluable[rows[judged]]]
    result[mistakes] = code["unjudged"]
    result[judged[verdict[judged] == Verdict.ACCEPTED]] = code["multi_label"]
    result[judged[verdict[judged] == Verdict.UNSURE]] = code["unclear"]

    rejected = judged[verdict[judged] == Verdict.REJECTED]
    position, near = accepted.expand(rows[rejected])
    guess, tree = predicted[rejected][position], hierarchy()
    same_kind = (tree.superclass[guess] == tree.superclass[near]) & (tree.superclass[near] >= 0)
    result[rejected] = code["severe"]
    # Later assignments win, so the order is the reverse of precedence.
    result[rejected[position[accepted.together[guess, near]]]] = code["co_occurrence"]
    result[rejected[position[same_kind]]] = code["same_superclass"]
    result[rejected[position[tree.group[guess] == tree.group[near]]]] = code["fine_grained"]
    return result
