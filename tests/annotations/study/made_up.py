"""Made-up studies with planted effects, as tables. No person answered any of this."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from annotations.study.answers import StudyAnswers, study_answers
from annotations.study.preregistration import ARMS, Preregistration, default_hypotheses

PACK = "a" * 64


def items(adversarial: int = 12, clean: int = 4, sham: int = 4, checks: int = 4) -> pd.DataFrame:
    """Items of each kind; of the adversarial ones a half is rejected by label sets."""
    kinds = ["adversarial"] * adversarial + ["clean"] * clean + ["sham"] * sham + ["attention"] * checks
    verdicts = [
        {"adversarial": ("rejected", "unjudged")[n % 2], "clean": "accepted", "sham": "rejected"}.get(
            kind, ("accepted", "rejected")[n % 2]
        )
        for n, kind in enumerate(kinds)
    ]
    n = len(kinds)
    return pd.DataFrame(
        {
            "item": [f"item{i:03d}" for i in range(n)],
            "image_id": [f"ILSVRC2012_val_{i + 1:08d}" for i in range(n)],
            "kind": kinds,
            "shown_class": [100 + i % 7 for i in range(n)],
            "predicted_class": [100 + i % 7 for i in range(n)],
            "original_label": [i % 5 for i in range(n)],
            "verdict": verdicts,
            "confidence": [round(0.2 + 0.75 * i / n, 4) for i in range(n)],
            "expected": [("yes", "no")[i % 2] if kind == "attention" else "" for i, kind in enumerate(kinds)],
        }
    )


def answers(
    asked: pd.DataFrame,
    chance: Mapping[str, Mapping[str, float]],
    *,
    raters: int = 12,
    seed: int = 0,
    plan: Preregistration | None = None,
    made_up: bool = True,
) -> pd.DataFrame:
    """Answers with a chance of yes by arm and kind of item; attention checks are answered rightly."""
    rng = np.random.default_rng(seed)
    rows = []
    for arm, by_kind in chance.items():
        for number in range(raters):
            shift = rng.normal(0, 0.05)
            for position, item in enumerate(asked.itertuples(), start=1):
                kind = str(item.kind)
                if kind == "attention":
                    answer = str(item.expected)
                else:
                    answer = "yes" if rng.random() < by_kind[kind] + shift else "no"
                rows.append(
                    {
                        "rater": f"r-{arm}-{number}",
                        "item": item.item,
                        "arm": arm,
                        "answer": answer,
                        "seconds": round(float(rng.uniform(1, 5)), 3),
                        "position": position,
                        "role": "attention" if kind == "attention" else "work",
                        "pack": plan.pack_sha256 if plan else "",
                        "preregistration": plan.sha256 if plan else "",
                        "made_up": made_up,
                    }
                )
    return pd.DataFrame(rows)


CHANCE = {
    "none": {"adversarial": 0.30, "clean": 0.90, "sham": 0.10},
    "feature": {"adversarial": 0.50, "clean": 0.90, "sham": 0.10},
    "example": {"adversarial": 0.70, "clean": 0.80, "sham": 0.40},
}


def plan(**changes: object) -> Preregistration:
    """A preregistration with fewer resamples, for speed."""
    values: dict[str, object] = {
        "title": "A made-up study",
        "created": "2026-11-24T12:00:00Z",
        "pack_sha256": PACK,
        "arms": ARMS,
        "raters_per_arm": 12,
        "items_per_rater": 20,
        "items": {"adversarial": 12, "clean": 4, "sham": 4},
        "hypotheses": default_hypotheses(),
        "exclusions": {"attention_floor": 0.7, "minimum_attention": 2},
        "analysis": {"resamples": 500, "permutations": 499},
        "made_up": True,
        **changes,
    }
    return Preregistration.model_validate(values)


def study(seed: int = 0, **options: object) -> StudyAnswers:
    """A study in three arms with the effects of `CHANCE`."""
    asked = items()
    given = answers(asked, CHANCE, seed=seed, **options)  # type: ignore[arg-type]
    return study_answers(asked, given)
