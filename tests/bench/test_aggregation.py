"""Dawid–Skene on ReaL's 924,810 votes against crowd-kit, side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from annotations.aggregation import Aggregate, Answers, dawid_skene


@pytest.fixture(scope="module")
def votes(shared_data: Path) -> Answers:
    with np.load(shared_data / "real-votes" / "raters.npz") as file:
        rater, question, answer = np.nonzero(file["tensor"])
        return Answers(question, rater, answer, file["tensor"].shape[1], len(file["ids"]))


@pytest.mark.shared
@pytest.mark.benchmark(group="dawid-skene")
@pytest.mark.parametrize("who", ["ours", "crowd-kit"])
def test_dawid_skene(benchmark: BenchmarkFixture, votes: Answers, who: str) -> None:
    """Both run 20 iterations of EM. Crowd-kit has as many classes as answers, ours two."""
    from crowdkit.aggregation import DawidSkene

    frame = pd.DataFrame({"task": votes.question, "worker": votes.rater, "label": votes.answer})

    def ours() -> Aggregate:
        return dawid_skene(votes, max_iterations=20, tolerance=0)

    def peer() -> object:
        return DawidSkene(n_iter=20, tol=0).fit(frame)

    benchmark.pedantic(ours if who == "ours" else peer, rounds=3 if who == "ours" else 1)
