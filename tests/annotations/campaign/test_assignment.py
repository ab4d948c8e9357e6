"""Pure functions of assignment, against closed forms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from annotations.campaign import assignment
from annotations.campaign.config import CampaignConfig, parse_config
from annotations.errors import BeyondError

KEY = b"k" * 32


@pytest.mark.parametrize(("votes", "accept_at"), [(5, 4), (5, 3), (3, 2), (7, 5), (1, 1)])
def test_a_verdict_is_certain_exactly_when_no_further_votes_can_turn_it(votes: int, accept_at: int) -> None:
    """Against trying out all that could still come."""
    for given in range(votes + 1):
        for so_far in itertools.product(("yes", "no", "maybe"), repeat=given):
            endings = set()
            for rest in itertools.product(("yes", "no", "maybe"), repeat=votes - given):
                total = [*so_far, *rest]
                endings.add(
                    "accepted"
                    if total.count("yes") >= accept_at
                    else "rejected"
                    if total.count("no") >= accept_at
                    else "unsure"
                )
            counts = {name: so_far.count(name) for name in ("yes", "no", "maybe")}
            found = assignment.certain(**counts, votes=votes, accept_at=accept_at)
            assert found == (endings.pop() if len(endings) == 1 else None)


def test_quality_is_the_beta_posterior() -> None:
    found = assignment.quality(17, 20)
    beta = stats.beta(18, 4)
    assert found.mean == pytest.approx(beta.mean())
    assert (found.low, found.high) == pytest.approx(beta.interval(0.95))
    assert assignment.probability_below(17, 20, 0.7) == pytest.approx(beta.cdf(0.7))


def test_good_raters_are_seldom_paused_and_bad_ones_soon() -> None:
    """Simulated at the default floor: what share is ever paused within 100 gold questions."""
    config = CampaignConfig()
    generator = np.random.default_rng(0)
    shares = {}
    for quality in (0.95, 0.85, 0.5):
        right = np.cumsum(generator.random((400, 100)) < quality, axis=1)
        seen = np.arange(1, 101)
        below = stats.beta(1 + right, 1 + seen - right).cdf(config.quality_floor)
        paused = (below >= config.pause_confidence).any(axis=1)
        shares[quality] = paused.mean()
    assert shares[0.95] < 0.01
    assert shares[0.85] < 0.05
    assert shares[0.5] > 0.97


def test_gold_places_come_at_the_rate_and_cannot_be_foreseen() -> None:
    places = np.array([[assignment.is_gold_place(KEY, r, p, 0.1) for p in range(500)] for r in range(40)])
    assert abs(places.mean() - 0.1) < 4 * np.sqrt(0.09 / places.size)
    # Gold follows gold as often as it follows anything else.
    after_gold = places[:, 1:][places[:, :-1]].mean()
    assert abs(after_gold - 0.1) < 4 * np.sqrt(0.09 / places[:, :-1].sum())
    other = [[assignment.is_gold_place(b"x" * 32, r, p, 0.1) for p in range(500)] for r in range(40)]
    assert (places != other).any()


def test_tokens_are_of_128_bits_and_of_their_rater() -> None:
    tokens = {assignment.token(KEY, r, q) for r in range(30) for q in range(100)}
    assert len(tokens) == 3000
    assert all(len(token) == 22 and token.replace("-", "").replace("_", "").isalnum() for token in tokens)
    assert assignment.token(KEY, 1, 2) == assignment.token(KEY, 1, 2)
    assert assignment.token(KEY, 1, 23) != assignment.token(KEY, 12, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"votes": 3, "accept_at": 4}, "more than the 3 votes"),
        ({"votes": 6, "accept_at": 3}, "both decide"),
        ({"vote": 3}, "vote: Extra inputs"),
        ({"gold_rate": 0.9}, "gold_rate"),
        ({"prolific": {"completion_code": "<script>"}}, "completion_code"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(BeyondError, match=message):
        parse_config(settings, where="settings")
