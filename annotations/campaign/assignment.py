"""Which question a rater gets next, and what the answers so far decide: pure functions.

Everything random is a keyed hash (BLAKE2b) of the campaign's secret key, the rater and the question or the
place in the rater's sequence: the same campaign gives the same order again, and nobody without the key can
tell it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from annotations.campaign.types import VerdictName


def _hash(key: bytes, purpose: bytes, *parts: int, size: int = 8) -> bytes:
    content = b",".join(b"%d" % part for part in parts)
    return hashlib.blake2b(content, key=key, person=purpose, digest_size=size).digest()


def token(key: bytes, rater_id: int, question_id: int) -> str:
    """Name of a question for one rater, 128 bits, which tells nothing about the question."""
    return base64.urlsafe_b64encode(_hash(key, b"token", rater_id, question_id, size=16)).decode().rstrip("=")


def order(key: bytes, rater_id: int, question_id: int) -> int:
    """Where a question comes in a rater's own order."""
    return int.from_bytes(_hash(key, b"order", rater_id, question_id))


def uniform(key: bytes, rater_id: int, place: int) -> float:
    """A number in [0, 1) that belongs to a place in a rater's sequence."""
    return int.from_bytes(_hash(key, b"place", rater_id, place)[:7]) / 2**56


def is_gold_place(key: bytes, rater_id: int, place: int, rate: float) -> bool:
    """Whether gold comes at this place: independent places, so that none can be told from the others."""
    return uniform(key, rater_id, place) < rate


def is_check_place(key: bytes, rater_id: int, place: int, every: int) -> bool:
    """Whether a check of a study comes at this place: one at a random place in each stretch of `every`.

    Unlike gold, checks are as many for every rater, and spread over the work.

    Args:
        key: Of the campaign.
        rater_id: The rater.
        place: In the work, from 1; none before.
        every: Length of a stretch; 0 for no checks.
    """
    if every <= 0 or place < 1:
        return False
    stretch, at = divmod(place - 1, every)
    return at == int.from_bytes(_hash(key, b"check", rater_id, stretch)) % every


def arm(key: bytes, number: int, arms: Sequence[str]) -> str:
    """The arm of a study's rater, or an empty name without arms.

    Arms come in blocks: of as many raters as there are arms, one after the other, each is in another arm, in
    an order that is a hash of the block.

    Args:
        key: Of the campaign.
        number: How many raters came before.
        arms: Names of the arms.
    """
    if not arms:
        return ""
    block, at = divmod(number, len(arms))
    dealt = sorted(range(len(arms)), key=lambda one: _hash(key, b"arm", block, one))
    return arms[dealt[at]]


def pseudonym(salt: bytes, rater_id: int) -> str:
    """The name under which a rater's answers are published: 64 bits of a salted hash."""
    return "r-" + hashlib.blake2b(b"%d" % rater_id, key=salt, person=b"pseudonym", digest_size=8).hexdigest()


def verdict(yes: int, no: int, *, accept_at: int) -> VerdictName:
    """What complete votes decide by k of n: as many equal answers, or else unsure.

    Example:
        >>> verdict(4, 1, accept_at=4), verdict(3, 2, accept_at=4), verdict(0, 4, accept_at=4)
        ('accepted', 'unsure', 'rejected')
    """
    return "accepted" if yes >= accept_at else "rejected" if no >= accept_at else "unsure"


def certain(yes: int, no: int, maybe: int, *, votes: int, accept_at: int) -> VerdictName | None:
    """The verdict by k of n that no further votes can change, or None while they can.

    Stopping on it is curtailment: the verdicts are those of full voting, with fewer votes.

    Example:
        >>> certain(4, 0, 0, votes=5, accept_at=4), certain(1, 1, 0, votes=5, accept_at=4)
        ('accepted', None)
        >>> certain(2, 2, 0, votes=5, accept_at=4)
        'unsure'
    """
    left = votes - yes - no - maybe
    if left <= 0 or yes >= accept_at or no >= accept_at or max(yes, no) + left < accept_at:
        return verdict(yes, no, accept_at=accept_at)
    return None


class Quality(NamedTuple):
    """Posterior of the share of gold that a rater answers rightly."""

    mean: float
    low: float
    high: float


def quality(right: float, seen: int) -> Quality:
    """Posterior mean and 95 % credible interval from a uniform prior, Beta(1 + right, 1 + wrong).

    Args:
        right: Gold answered rightly; a maybe is half.
        seen: Gold answered.
    """
    from scipy.special import betaincinv

    a, b = 1 + right, 1 + seen - right
    return Quality(a / (a + b), float(betaincinv(a, b, 0.025)), float(betaincinv(a, b, 0.975)))


def probability_below(right: float, seen: int, floor: float) -> float:
    """Posterior probability that a rater's share right is below `floor`."""
    from scipy.special import betainc

    return float(betainc(1 + right, 1 + seen - right, floor))


def rightness(answer: str, expected: str) -> float:
    """How right an answer to gold is: 1, 0, or a half for maybe, so that maybe is no way around gold."""
    return 0.5 if answer == "maybe" else float(answer == expected)
