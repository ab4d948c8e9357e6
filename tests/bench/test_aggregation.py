"""Dawid–Skene on ReaL's 924,810 votes against crowd-kit, side by side."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from annotations.aggregation import Aggregate, Answers, dawid_skene
from tests.bench.rows import row


@pytest.fixture(scope="module")
def votes(shared_data: Path) -> Answers:
    with np.load(shared_data / "real-votes" / "raters.npz") as file:
        rater, question, answer = np.nonzero(file["tensor"])
        return Answers(question, rater, answer, file["tensor"].shape[1], len(file["ids"]))


@pytest.mark.shared
def test_dawid_skene(benchmark: BenchmarkFixture, votes: Answers) -> None:
    """Both run 20 iterations of EM. Crowd-kit has as many classes as answers, ours two."""
    from crowdkit.aggregation import DawidSkene

    frame = pd.DataFrame({"task": votes.question, "worker": votes.rater, "label": votes.answer})

    mine: list[float] = []
    theirs: list[float] = []

    def ours() -> Aggregate:
        start = time.perf_counter()
        found = dawid_skene(votes, max_iterations=20, tolerance=0)
        mine.append(time.perf_counter() - start)
        return found

    def peer() -> None:
        start = time.perf_counter()
        DawidSkene(n_iter=20, tol=0).fit(frame)
        theirs.append(time.perf_counter() - start)

    rounds = 2
    benchmark.pedantic(ours, setup=peer, rounds=rounds)
    row(
        benchmark,
        "Aggregation",
        "Dawid–Skene, 20 iterations, on ReaL's votes",
        ours=median(mine),
        unit="s",
        peer=median(theirs),
        against="crowd-kit",
        ratio=median(p / o for p, o in zip(theirs, mine)),
        n=f"{len(votes.answer):,} votes, {rounds} rounds",
        note="crowd-kit has as many classes as answers, ours two",
    )
