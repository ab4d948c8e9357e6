"""The rules of a rater's journey: which rounds there are, what is said after an answer, when to pause."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from annotations.campaign import assignment
from annotations.campaign.config import CampaignConfig
from annotations.campaign.types import Stage

ASKING: tuple[Stage, ...] = ("practice", "qualification", "work")
"""Stages in which questions are asked."""


@dataclass(frozen=True)
class Rules:
    """Rules of a campaign.

    Attributes:
        config: Its settings.
        practice: Questions for practice that it has for a rater; in a study, in the arm that has fewest.
        gold: Gold that it has, likewise.
    """

    config: CampaignConfig
    practice: int
    gold: int

    def stage_after(self, stage: str) -> Stage:
        """What comes after reading the instructions, or after practice; empty rounds are left out."""
        if stage == "instructions" and self.step_of("practice"):
            return "practice"
        if stage in ("instructions", "practice") and self.step_of("qualification"):
            return "qualification"
        return "work"

    def step_of(self, stage: str) -> int:
        """How many questions a practice or qualification round has; as many as there are, at most."""
        if stage == "practice":
            return min(self.config.practice_questions, self.practice)
        if stage == "qualification":
            return min(self.config.qualification_questions, self.gold)
        return 0

    def is_below_floor(self, rater: Any, gold_seen: int, gold_right: float) -> bool:
        """Whether gold says that a rater is not good enough; what a manager forgave is left out."""
        seen, right = gold_seen - rater.forgiven_seen, gold_right - rater.forgiven_right
        if seen <= 0:
            return False
        below = assignment.probability_below(max(right, 0.0), seen, self.config.quality_floor)
        return below >= self.config.pause_confidence

    def gives_feedback(self, purpose: str) -> bool:
        """Whether a rater learns after an answer whether it was right."""
        return purpose == "practice" or (purpose == "qualification" and self.config.qualification_feedback)
