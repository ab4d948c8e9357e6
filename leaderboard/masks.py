"""Which validation images each source of annotations can evaluate: the same for every entry, so kept once.

`leaderboard/evaluable.bits` has the format of `correct.bits` (see `leaderboard.correctness`) with one section
of bits a source, and its `top1` section all ones. It is made from the label sets by
`python -m leaderboard.make_entries`, and says nothing about any one class of any image.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from annotations.classes import validation_ids, validation_labels
from annotations.errors import BeyondError
from annotations.judgements import LabelSets
from leaderboard.correctness import TOP1, Bools, Bytes, Correctness

MASKS_FILE = "evaluable.bits"

_PACKAGE = re.compile(r"[A-Za-z0-9-]+ [0-9][0-9A-Za-z.+!]*, (?=sha256:)")


def pinned(revision: str) -> str:
    """A revision without the package that ships the data, where a hash says what the data is.

    Example:
        >>> pinned("timm 1.0.31, sha256:d83e9bff374c")
        'sha256:d83e9bff374c'
    """
    return _PACKAGE.sub("", revision)


@dataclass(frozen=True)
class Masks:
    """Evaluable images of sources at one revision each.

    Attributes:
        correctness: Sections by source; the revisions are its `annotations`.
    """

    correctness: Correctness

    @classmethod
    def of(cls, labels: Mapping[str, LabelSets]) -> Masks:
        """The masks of label sets over the 50,000 validation images."""
        ids = validation_ids()
        sections: dict[str, Bools] = {TOP1: np.ones(len(ids), dtype=bool)}
        for name, sets in labels.items():
            sections[name] = _evaluable(sets, ids)
        revisions = {name: pinned(sets.revision) for name, sets in labels.items()}
        return cls(Correctness.of(ids, sections, annotations=revisions))

    @property
    def revisions(self) -> dict[str, str]:
        """Revision of each source, without the package that ships it."""
        return self.correctness.annotations

    def packed(self, source: str) -> Bytes:
        """The mask of one source as packed bits."""
        return self.correctness.packed[source]

    def get(self, source: str, revision: str) -> Bools | None:
        """The mask of a source at a revision: bool (50000,), or None where it is not here."""
        if self.revisions.get(source) != pinned(revision):
            return None
        return self.correctness.right(source)

    def to_bytes(self) -> bytes:
        """The bytes of `evaluable.bits`."""
        return self.correctness.to_bytes()


@functools.cache
def load_masks(path: Path = Path(__file__).parent / MASKS_FILE) -> Masks:
    """The masks of this repository.

    Raises:
        BeyondError: The file is missing or damaged.
    """
    if not path.is_file():
        raise BeyondError(f"{path} is missing; make it again with: python -m leaderboard.make_entries")
    return Masks(Correctness.from_bytes(path.read_bytes(), where=path.name))


@functools.cache
def full_fingerprint() -> str:
    """Fingerprint of the 50,000 validation images and their labels, as scorecards have it."""
    from benchmark.records import Predictions
    from benchmark.runs import fingerprint_of

    ids = validation_ids()
    return fingerprint_of(Predictions(ids, validation_labels(), np.zeros((len(ids), 1), dtype=np.int16)))


def evaluable(correctness: Correctness, source: str, sets: LabelSets | None = None) -> Bools | None:
    """Which images of an entry a source can evaluate: bool (N,), or None where nobody here can say.

    Args:
        correctness: The entry's bits.
        source: One of its sources.
        sets: The source's label sets at the entry's revision, which say what the masks of this repository do
            not: those are for the whole validation set at their own revisions.
    """
    revision = correctness.annotations[source]
    if correctness.full:
        found = load_masks().get(source, revision)
        if found is not None:
            return found
    if sets is None or pinned(sets.revision) != pinned(revision):
        return None
    return _evaluable(sets, correctness.image_ids)


def label_sets(source: str, revision: str) -> LabelSets | None:
    """The label sets that an entry names, if they are on this machine at that revision; else None.

    The name comes from a stranger's scorecard: only registered sources are looked up, never a path.
    """
    from annotations.sources import CONSOLIDATED_PARTS, SOURCES, load

    spec = source
    if source == "consolidated":
        parts = [part.partition("@")[0].strip() for part in revision.partition(": ")[2].split(" + ")]
        if not set(parts) <= set(CONSOLIDATED_PARTS):
            return None
        spec = "consolidated:" + "+".join(parts)
    elif source not in SOURCES:
        return None
    try:
        sets = load(spec, offline=True)
    except BeyondError:
        return None
    return replace(sets, revision=revision) if pinned(sets.revision) == pinned(revision) else None


def _evaluable(sets: LabelSets, ids: np.ndarray) -> Bools:
    rows = sets.rows(ids)
    return np.asarray((rows >= 0) & sets.evaluable[rows])


def portable_fingerprint(image_ids: npt.NDArray[np.object_], labels: npt.NDArray[np.int16]) -> str:
    """Which images these are, by ids and original labels alone, in any order.

    The fingerprint of an image set may also depend on the sizes of somebody's copies of the files.
    """
    from benchmark.records import Predictions
    from benchmark.runs import fingerprint_of

    order = np.argsort(image_ids.astype(str), kind="stable")
    nothing = np.zeros((len(order), 1), dtype=np.int16)
    return fingerprint_of(Predictions(image_ids[order], labels[order], nothing))
