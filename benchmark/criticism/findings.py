"""What criticisms have in common that prototypes lack: found on one half of the images, proved on the other.

Everything that is tested on the discovery half enters one Benjamini–Yekutieli procedure; what it rejects is
tested again on the confirmation half, where everything tested enters one procedure too. Prototypes and
criticisms are chosen within each half, so the two halves share no image and no choice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmark import statistics
from benchmark.criticism.attributes import Attribute
from benchmark.criticism.choose import CRITICISM, PROTOTYPE, choose

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LEVEL = 0.05
"""False discovery rate, in each half."""

ALL = -1
"""Subject of a finding over all classes, each image compared with those of its own class."""

MIN_SLICE = 8
"""Images of a slice in a half below which it is not tested."""


@dataclass(frozen=True)
class Side:
    """One finding on one half.

    Attributes:
        first: Cases in the first group: criticisms with the attribute, or wrong answers in the slice.
        n_first: Size of that group.
        second: Cases in the second group: prototypes, or images outside the slice at equal confidence.
        n_second: Size of that group.
        base: Cases among all images of the subject.
        n_base: How many these are.
        difference: Risk difference, first minus second, within strata.
        p: Exact two-sided p value.
        adjusted: The same after Benjamini–Yekutieli over everything tested on this half.
        least: The smallest p that the margins allow.
    """

    first: int
    n_first: int
    second: int
    n_second: int
    base: int
    n_base: int
    difference: statistics.Difference
    p: float
    adjusted: float = 1.0
    least: float = 0.0


@dataclass(frozen=True)
class Finding:
    """An attribute that tells criticisms from prototypes, or a slice in which answers are wrong too often.

    Attributes:
        subject: Class index, or `ALL`.
        attribute: Name of the attribute, or `slice N`.
        value: Its value, or empty.
        says: Attribute and value as words.
        source: Where the attribute comes from.
        slice: Number of the slice, or −1 for an attribute.
        person: It is about people.
        discovery: On the half where it was found.
        confirmation: On the other half.
        confirmed: It holds there, in the same direction.
    """

    subject: int
    attribute: str
    value: str
    says: str
    source: str
    slice: int
    person: bool
    discovery: Side
    confirmation: Side
    confirmed: bool


@dataclass(frozen=True)
class Search:
    """All that was looked for and found.

    Attributes:
        findings: Candidates of the discovery half: the confirmed first, by size of the effect.
        tested: Tests on the discovery half.
        hopeless: Tests not made there, because no outcome could have reached the level.
        confirmations: Tests on the confirmation half.
        images: Images in a class's line, discovery and confirmation half.
    """

    findings: tuple[Finding, ...]
    tested: int
    hopeless: int
    confirmations: int
    images: tuple[int, int]

    @property
    def confirmed(self) -> tuple[Finding, ...]:
        """Those that hold on both halves: these alone are called biases."""
        return tuple(f for f in self.findings if f.confirmed)


def in_discovery(image_ids: npt.NDArray[np.object_]) -> Bools:
    """Which images belong to the discovery half, by a hash of the id alone: bool (N,).

    Example:
        >>> in_discovery(np.array(["ILSVRC2012_val_00000001", "ILSVRC2012_val_00000004"], dtype=object))
        array([False,  True])
    """
    half = (hashlib.sha256(f"half:{image_id}".encode()).digest()[0] & 1 for image_id in image_ids)
    return np.fromiter((bit == 0 for bit in half), dtype=np.bool_, count=len(image_ids))


@dataclass(frozen=True)
class Slices:
    """Groups of images proposed without attributes (see `benchmark.criticism.slices`).

    Attributes:
        member: int (N,), number of the slice, −1 for images in none.
        wrong: bool (N,), the answer is wrong.
        confidence: float (N,), the probability that the model gave its answer.
        usable: bool (N,), images whose answer is known to be right or wrong.
    """

    member: Ints
    wrong: Bools
    confidence: Floats
    usable: Bools

    @property
    def numbers(self) -> list[int]:
        """The slices there are."""
        return sorted(set(self.member[self.member >= 0].tolist()))


def search(
    place: Floats,
    classes: npt.NDArray[np.integer],
    image_ids: npt.NDArray[np.object_],
    attributes: Sequence[Attribute],
    *,
    slices: Slices | None = None,
    k: int | None = None,
    level: float = LEVEL,
) -> Search:
    """Look for attributes and slices on one half, and confirm on the other.

    Args:
        place: Place of each image in its class's line (`benchmark.criticism.choose.signed`), (N,).
        classes: Class of each image, (N,).
        image_ids: Ids, object (N,).
        attributes: What is known of them.
        slices: Proposed slices. They were proposed knowing the answers of the discovery half, so nothing they
            show there is evidence: all of them are tested on the confirmation half.
        k: Images chosen a class and side; None takes a quarter.
        level: False discovery rate in each half.
    """
    usable = ~np.isnan(place)
    discovery = in_discovery(image_ids)
    halves = []
    for half in (discovery, ~discovery):
        role = choose(np.where(half, place, np.nan), classes, image_ids, k=k, balanced=True)
        halves.append(_Half(role, half & usable, classes))
    tests: list[tuple[Attribute, int, int, Side]] = []
    hopeless = 0
    for attribute in attributes:
        for value in attribute.tested:
            for subject, side in halves[0].sides(attribute, value):
                if side.least > level:
                    hopeless += 1
                else:
                    tests.append((attribute, value, subject, side))
    adjusted = statistics.benjamini_yekutieli([side.p for *_, side in tests])
    found = [(*test, q) for test, q in zip(tests, adjusted.tolist()) if q <= level]

    pairs: list[tuple[Finding, Side]] = []
    for attribute, value, subject, side, q in found:
        again = halves[1].side(attribute, value, subject)
        draft = Finding(
            subject=subject,
            attribute=attribute.name,
            value=attribute.values[value],
            says=attribute.says(value),
            source=attribute.source,
            slice=-1,
            person=attribute.person,
            discovery=_adjust(side, q),
            confirmation=again,
            confirmed=False,
        )
        pairs.append((draft, again))
    for number in slices.numbers if slices is not None else []:
        assert slices is not None
        first, again = (slice_side(slices, number, half) for half in (discovery, ~discovery))
        if min(first.n_first, again.n_first) < MIN_SLICE:
            continue
        name = f"slice {number}"
        draft = Finding(ALL, name, "", name, "features", number, False, first, again, False)
        pairs.append((draft, again))
    final = statistics.benjamini_yekutieli([side.p for _, side in pairs])
    findings = []
    for (draft, side), q in zip(pairs, final.tolist()):
        same = bool(draft.discovery.difference.value * side.difference.value > 0)
        # A slice is a group in which the model errs too often; one in which it errs too rarely is none.
        same = same and (draft.slice < 0 or float(side.difference.value) > 0)
        findings.append(
            Finding(
                **{**vars(draft), "confirmation": _adjust(side, q), "confirmed": bool(same and q <= level)}
            )
        )
    findings.sort(key=_order)
    return Search(tuple(findings), len(tests), hopeless, len(pairs), (halves[0].images, halves[1].images))


def _order(finding: Finding) -> tuple[bool, float, float, int, str]:
    effect = abs(float(np.nan_to_num(finding.confirmation.difference.value)))
    return (not finding.confirmed, -effect, finding.discovery.p, finding.subject, finding.says)


def _adjust(side: Side, adjusted: float) -> Side:
    return Side(**{**vars(side), "adjusted": adjusted})


class _Half:
    """The choices of one half, and the tests on it."""

    def __init__(self, role: npt.NDArray[np.int8], images: Bools, classes: npt.NDArray[np.integer]) -> None:
        self._images = images
        self.images = int(images.sum())
        _, self._of = np.unique(classes, return_inverse=True)
        self._names = np.unique(classes)
        self._criticism, self._prototype = role == CRITICISM, role == PROTOTYPE

    def _counts(self, attribute: Attribute, value: int) -> tuple[Ints, ...]:
        """Per class: criticisms with the value, all criticisms; the same of prototypes, and of all images."""
        has, known = attribute.codes == value, attribute.codes >= 0
        counts = []
        for group in (self._criticism, self._prototype, self._images):
            rows = np.flatnonzero(group & known)
            of = self._of[rows]
            counts += [
                np.bincount(of, weights=has[rows], minlength=len(self._names)).astype(np.int64),
                np.bincount(of, minlength=len(self._names)).astype(np.int64),
            ]
        return tuple(counts)

    def sides(self, attribute: Attribute, value: int) -> list[tuple[int, Side]]:
        """The test of every subject that has something to compare: all classes together, and each class."""
        counts = self._counts(attribute, value)
        a, n, b, m = counts[:4]
        both = (n > 0) & (m > 0)
        varied = both & (a + b > 0) & (a + b < n + m)
        found = []
        # Over all classes it is the same test as in the one class that varies.
        if attribute.only is None and varied.sum() > 1:
            found.append((ALL, _side(counts, both)))
        each = np.arange(len(n))
        return found + [(int(self._names[c]), _side(counts, each == c)) for c in np.flatnonzero(varied)]

    def side(self, attribute: Attribute, value: int, subject: int) -> Side:
        """The test of one subject."""
        counts = self._counts(attribute, value)
        both = (counts[1] > 0) & (counts[3] > 0)
        return _side(counts, both & ((subject == ALL) | (self._names == subject)))


def _side(counts: tuple[Ints, ...], strata: Bools) -> Side:
    a, n, b, m, base, n_base = (c[strata] for c in counts)
    test = statistics.stratified_exact(a, n, b, m)
    return Side(
        first=int(a.sum()),
        n_first=int(n.sum()),
        second=int(b.sum()),
        n_second=int(m.sum()),
        base=int(base.sum()),
        n_base=int(n_base.sum()),
        difference=statistics.mantel_haenszel_difference(a, n, b, m),
        p=test.p,
        least=test.least,
    )


def slice_side(slices: Slices, number: int, half: Bools) -> Side:
    """Whether answers in a slice are wrong more often than others that the model is as sure of.

    A model's features decide what it answers and how far the boundary is, so a group of like features always
    differs in distance. What it need not do is be wrong more often than its own confidence says: images are
    compared within strata of equal confidence, about 25 images each.
    """
    usable = np.flatnonzero(half & slices.usable)
    inside = slices.member[usable] == number
    wrong = slices.wrong[usable]
    strata = confidence_strata(slices.confidence[usable])
    size = int(strata.max(initial=-1)) + 1

    def count(mask: Bools) -> Ints:
        return np.bincount(strata[mask], minlength=size).astype(np.int64)

    a, n, b, m = count(inside & wrong), count(inside), count(~inside & wrong), count(~inside)
    both = (n > 0) & (m > 0)
    test = statistics.stratified_exact(a, n, b, m)
    return Side(
        first=int(a.sum()),
        n_first=int(n.sum()),
        second=int(b[both].sum()),
        n_second=int(m[both].sum()),
        base=int(wrong.sum()),
        n_base=len(usable),
        difference=statistics.mantel_haenszel_difference(a, n, b, m),
        p=test.p,
        least=test.least,
    )


def confidence_strata(confidence: Floats) -> Ints:
    """Groups of about 25 images of like confidence, at most 40: int (N,)."""
    n = len(confidence)
    groups = int(np.clip(n // 25, 1, 40))
    rank = np.empty(n, dtype=np.int64)
    rank[np.argsort(confidence, kind="stable")] = np.arange(n)
    return rank * groups // max(n, 1)
