"""Proposals: what is asked about, how much it is worth, and that the draw keeps estimates unbiased."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from scipy import stats

from annotations.classes import original_labels, validation_id
from annotations.errors import BeyondError
from annotations.judgements import LabelSets
from benchmark.cli.propose import propose as command
from benchmark.proposals import (
    Candidates,
    find_candidates,
    horvitz_thompson,
    inclusion_probabilities,
    priorities,
    propose,
    systematic_sample,
)
from benchmark.records import Predictions

Classes = npt.NDArray[np.int16]


def made(classes: Classes, *, first: int = 1) -> Predictions:
    ids = np.array([validation_id(first + i) for i in range(len(classes))], dtype=object)
    return Predictions(ids, original_labels(ids), classes)


def label_sets(pairs: dict[tuple[int, int], str], images: int, *, closed: bool = False) -> LabelSets:
    judgements = pd.DataFrame(
        [(validation_id(1 + i), c, verdict) for (i, c), verdict in pairs.items()],
        columns=["image_id", "class_index", "verdict"],
    )
    table = pd.DataFrame({"image_id": [validation_id(1 + i) for i in range(images)]})
    table = table.assign(original_label=0, status="evaluable", closed_world=closed)
    return LabelSets.from_tables(judgements, table, source="made-up", revision="1")


def made_up_candidates(generator: np.random.Generator, *, pairs: int, models: int, images: int) -> Candidates:
    """Candidates with made-up chances and predictions."""
    top1 = generator.random((pairs, models)) < generator.random((pairs, 1))
    judged = np.where(generator.random((images, models)) < 0.7, 1.0, 0.0)
    return Candidates(
        image_ids=np.array([validation_id(1 + i) for i in range(images)], dtype=object),
        original_labels=np.zeros(images, dtype=np.int16),
        pair_image=np.sort(generator.integers(images, size=pairs)).astype(np.int32),
        pair_class=np.arange(pairs).astype(np.int16),
        top1=top1,
        best_rank=np.zeros(pairs, dtype=np.int16),
        acceptance=generator.uniform(0.05, 0.95, pairs),
        judged_top1=judged,
        models=tuple(f"m{i}" for i in range(models)),
    )


# Candidates ------------------------------------------------------------------------------------------------


def test_candidates_are_all_unjudged_pairs_of_the_top_k() -> None:
    generator = np.random.default_rng(0)
    n, models, k = 40, 4, 3
    runs = [
        (f"m{i}", made(np.array([generator.permutation(8)[:5] for _ in range(n)], dtype=np.int16)))
        for i in range(models)
    ]
    judged = {
        (i, int(c)): ("accepted", "rejected", "unsure")[int(generator.integers(3))]
        for i in range(n)
        for c in generator.permutation(8)[:3]
    }
    judged |= {(i, 0): "accepted" for i in range(n)}
    found = find_candidates(runs, label_sets(judged, n), top_k=k)
    wanted: dict[tuple[int, int], tuple[int, set[int]]] = {}
    for number, (_, run) in enumerate(runs):
        for i in range(n):
            for rank in range(k):
                pair = (i, int(run.classes[i, rank]))
                if pair not in judged:
                    best, at = wanted.get(pair, (99, set()))
                    wanted[pair] = (min(best, rank), at | ({number} if rank == 0 else set()))
    got = {
        (int(found.pair_image[j]), int(found.pair_class[j])): (
            int(found.best_rank[j]),
            set(np.flatnonzero(found.top1[j]).tolist()),
        )
        for j in range(len(found))
    }
    assert got == wanted
    for i in range(n):
        for number, (_, run) in enumerate(runs):
            verdict = judged.get((i, int(run.classes[i, 0])))
            score = {"accepted": 1.0, "rejected": 0.0, "unsure": 0.5, None: np.nan}[verdict]
            np.testing.assert_equal(found.judged_top1[i, number], score)


def test_runs_are_joined_by_id_and_only_common_images_count() -> None:
    classes = np.arange(20, dtype=np.int16).reshape(10, 2) % 7
    one, other = made(classes), made(classes[:6], first=3)
    shuffled = Predictions(one.image_ids[::-1], one.original_labels[::-1], one.classes[::-1])
    plain = find_candidates([("a", one), ("b", other)], None, top_k=1)
    mixed = find_candidates([("a", shuffled), ("b", other)], None, top_k=1)
    assert list(plain.image_ids) == list(mixed.image_ids) == [validation_id(i) for i in range(3, 9)]
    assert (plain.top1 == mixed.top1).all()
    with pytest.raises(BeyondError, match="no image in common"):
        find_candidates([("a", one), ("b", made(classes, first=100))], None)


def test_a_closed_world_leaves_nothing_to_propose() -> None:
    run = made(np.zeros((3, 1), dtype=np.int16))
    labels = label_sets({(i, 1): "accepted" for i in range(3)}, 3, closed=True)
    with pytest.raises(BeyondError, match="closed-world"):
        find_candidates([("a", run)], labels)


def test_the_chance_of_acceptance_follows_what_was_judged() -> None:
    """Planted: first predictions are accepted in 9 of 10, second ones in 1 of 10; a tenth is unjudged."""
    generator = np.random.default_rng(1)
    n = 4000
    classes = np.tile(np.array([1, 2], dtype=np.int16), (n, 1))
    judged = {}
    for i in range(n):
        for rank, share in ((0, 0.9), (1, 0.1)):
            if generator.random() < 0.9:
                judged[(i, int(classes[i, rank]))] = "accepted" if generator.random() < share else "rejected"
        judged[(i, 5)] = "accepted"
    found = find_candidates([("a", made(classes))], label_sets(judged, n), top_k=2)
    for rank, share in ((0, 0.9), (1, 0.1)):
        assert found.acceptance[found.best_rank == rank].mean() == pytest.approx(share, abs=0.02)


# Priority --------------------------------------------------------------------------------------------------


def expected_loss(c: Candidates, scale: npt.NDArray[np.float64]) -> float:
    """Expected loss of ranking all pairs of models now, by its definition: E max(0, −D) for D of mean |d|."""
    n, m = c.judged_top1.shape
    accuracy = np.nansum(c.judged_top1, axis=0) / n + (c.acceptance[:, None] * c.top1).sum(axis=0) / n
    total = 0.0
    for a in range(m):
        for b in range(a):
            apart = c.top1[:, a] != c.top1[:, b]
            variance = (scale * c.acceptance * (1 - c.acceptance) * apart).sum() / n**2
            s, d = np.sqrt(variance), abs(accuracy[a] - accuracy[b])
            total += s * stats.norm.pdf(d / s) - d * stats.norm.sf(d / s)
    return total


def test_ranking_priority_is_what_a_verdict_takes_off_the_expected_loss() -> None:
    """Against numerical derivatives of the loss, written down from its definition."""
    c = made_up_candidates(np.random.default_rng(2), pairs=40, models=5, images=60)
    _, ranking, _ = priorities(c)
    step = 1e-4
    ones = np.ones(len(c))
    gain = np.array(
        [expected_loss(c, ones + step * e) - expected_loss(c, ones - step * e) for e in np.eye(len(c))]
    )
    np.testing.assert_allclose(ranking, gain / gain.sum(), rtol=1e-5, atol=1e-9)


def test_pairs_that_tell_tied_models_apart_come_first() -> None:
    """Planted: a and b are tied, c is far ahead; pairs between a and b matter, those of c do not."""
    n = 300
    judged = np.zeros((n, 3))
    judged[:150, :2] = 1.0
    judged[:280, 2] = 1.0
    top1 = np.zeros((60, 3), dtype=bool)
    top1[:20, 0] = top1[20:40, 2] = True
    top1[40:, :2] = True
    c = Candidates(
        image_ids=np.array([validation_id(1 + i) for i in range(n)], dtype=object),
        original_labels=np.zeros(n, dtype=np.int16),
        pair_image=np.arange(60, dtype=np.int32),
        pair_class=np.zeros(60, dtype=np.int16),
        top1=top1,
        best_rank=np.zeros(60, dtype=np.int16),
        acceptance=np.full(60, 0.5),
        judged_top1=judged,
        models=("a", "b", "c"),
    )
    _, ranking, _ = priorities(c)
    assert ranking[:20].sum() > 0.99
    proposal = propose(c, budget=20, seed=1, uniform_share=0.0)
    assert "ranking: a against b" in proposal.reasons
    assert all("c" not in reason.split() for reason in proposal.reasons if reason.startswith("ranking"))


def test_judging_by_priority_ranks_better_than_judging_at_random() -> None:
    """Made-up truth, drawn from the chances of acceptance; as many verdicts, chosen in two ways."""
    generator = np.random.default_rng(3)
    lost = {"priority": 0.0, "random": 0.0}
    for _ in range(60):
        c = made_up_candidates(generator, pairs=400, models=6, images=500)
        truth = generator.random((40, len(c))) < c.acceptance  # 40 worlds
        real = truth @ c.top1.astype(float) + np.nansum(c.judged_top1, axis=0)
        _, ranking, _ = priorities(c)
        for name, order in (("priority", np.argsort(-ranking)), ("random", generator.permutation(len(c)))):
            known = np.zeros(len(c), dtype=bool)
            known[order[:80]] = True
            belief = np.where(known, truth, c.acceptance) @ c.top1.astype(float) + np.nansum(
                c.judged_top1, axis=0
            )
            for a in range(6):
                for b in range(a):
                    gap = real[:, a] - real[:, b]
                    wrong = np.sign(belief[:, a] - belief[:, b]) * gap < 0
                    lost[name] += np.abs(gap)[wrong].sum()
    assert lost["priority"] < 0.85 * lost["random"]


# The draw --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 30, 59, 60, 100])
def test_probabilities_sum_to_the_size_and_none_is_zero(size: int) -> None:
    priority = np.random.default_rng(4).pareto(0.7, 60)
    priority[:5] = 0
    probability = inclusion_probabilities(priority / priority.sum(), size)
    assert probability.sum() == pytest.approx(min(size, 60))
    assert (probability > 0).all()
    assert (probability <= 1).all()
    order = np.argsort(priority)
    assert (np.diff(probability[order]) >= -1e-12).all()


def test_estimates_from_the_draw_are_unbiased() -> None:
    """Horvitz–Thompson over 4,000 draws, against the total; the plain share is off by much."""
    generator = np.random.default_rng(5)
    priority = generator.pareto(1.0, 200)
    value = (generator.random(200) < 0.2 + 0.6 * (priority > np.median(priority))).astype(float)
    probability = inclusion_probabilities(priority / priority.sum(), 40)
    draws = [systematic_sample(probability, np.random.default_rng(seed)) for seed in range(4000)]
    assert {len(draw) for draw in draws} == {40}
    often = np.bincount(np.concatenate(draws), minlength=200) / len(draws)
    error = np.sqrt(probability * (1 - probability) / len(draws))
    assert (np.abs(often - probability) <= 5 * error + 1e-12).all()
    estimates = np.array([horvitz_thompson(value[draw], probability[draw]) for draw in draws])
    standard_error = estimates.std() / np.sqrt(len(draws))
    assert abs(estimates.mean() - value.sum()) < 4 * standard_error
    plain = np.array([value[draw].mean() * 200 for draw in draws])
    assert abs(plain.mean() - value.sum()) > 20 * standard_error


def test_the_draw_is_the_seeds() -> None:
    c = made_up_candidates(np.random.default_rng(6), pairs=300, models=4, images=100)
    one, same, other = (propose(c, budget=50, seed=seed) for seed in (1, 1, 2))
    assert (one.rows == same.rows).all()
    assert set(one.rows) != set(other.rows)
    assert (np.diff(one.priority[one.rows]) <= 0).all()


# The command -----------------------------------------------------------------------------------------------


def test_the_command_writes_pairs_with_their_design(tmp_path: Path) -> None:
    generator = np.random.default_rng(7)
    for name in ("a", "b", "c"):
        classes = np.array([generator.permutation(10)[:5] for _ in range(50)], dtype=np.int16)
        table = made(classes).to_arrow()
        pq.write_table(table, tmp_path / f"{name}.parquet")
    files = [str(tmp_path / f"{name}.parquet") for name in ("a", "b", "c")]
    out = tmp_path / "out" / "pairs.parquet"
    arguments = [*files, "--annotations", "none", "--budget", "60", "--out", str(out), "--json"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    facts = json.loads(result.stdout)
    table = pq.read_table(out)
    assert facts["pairs"] == table.num_rows == 60
    assert facts["candidates"] > 60
    design = json.loads(table.schema.metadata[b"beyond.proposal"])
    assert design["models"] == ["a", "b", "c"]
    assert (design["seed"], design["budget"], design["candidates"]) == (0, 60, facts["candidates"])
    frame = table.to_pandas()
    assert frame["sampling_probability"].between(0, 1, inclusive="right").all()
    assert frame["priority"].is_monotonic_decreasing
    assert not frame.duplicated(["image_id", "class_index"]).any()
    again = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert json.loads(again.stdout) == facts
    assert pq.read_table(out).equals(table)


def test_naming_a_run_twice_is_refused(tmp_path: Path) -> None:
    pq.write_table(made(np.zeros((3, 1), dtype=np.int16)).to_arrow(), tmp_path / "a.parquet")
    arguments = [str(tmp_path / "a.parquet")] * 2 + [
        "--annotations",
        "none",
        "--out",
        str(tmp_path / "o.parquet"),
    ]
    with pytest.raises(BeyondError, match="twice"):
        CliRunner().invoke(command, arguments, catch_exceptions=False)


@pytest.mark.shared
def test_published_models_leave_pairs_that_experts_did_not_judge(shared_data: Path, tmp_path: Path) -> None:
    files = [str(shared_data / "predictions" / f"{name}.npy") for name in PUBLISHED]
    labels = f"mla={shared_data / 'multilabel' / 'multilabel.csv'}"
    out = tmp_path / "pairs.parquet"
    arguments = [*files, "--annotations", labels, "--budget", "500", "--out", str(out), "--json"]
    facts = json.loads(CliRunner().invoke(command, arguments, catch_exceptions=False).stdout)
    assert facts["pairs"] == 500
    assert 30_000 < facts["images"] <= 50_000
    frame = pq.read_table(out).to_pandas()
    assert (frame["top1_models"] > 0).mean() > 0.8  # the draw prefers what decides the ranking
    assert frame["sampling_probability"].min() > 0


PUBLISHED = ("resnet50", "vgg16", "densenet121")
