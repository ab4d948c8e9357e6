"""Aggregation against ReaL's published scores, planted raters, brute force and crowd-kit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy.special import logit

from annotations.aggregation import (
    MAYBE,
    NO,
    UNKNOWN,
    YES,
    Answers,
    calibrated,
    dawid_skene,
    gold_confusion,
    gold_counts,
    intervals,
    k_of_n,
    majority,
    one_coin,
    verdicts,
)
from annotations.errors import BeyondError
from annotations.judgements import Verdict

Ints = npt.NDArray[np.int64]


def _answers(tensor: npt.NDArray[np.float64]) -> Answers:
    """From raters × questions × answers."""
    rater, question, answer = np.nonzero(tensor)
    return Answers(question, rater, answer, tensor.shape[1], tensor.shape[0])


@dataclass(frozen=True)
class _Real:
    answers: Answers
    scores: npt.NDArray[np.float64]
    image: Ints
    class_index: Ints
    gold: Answers
    experts_yes: Ints
    gold_image: Ints
    gold_class: Ints
    labels: Ints


def _pairs(info: npt.NDArray[np.str_]) -> tuple[Ints, Ints]:
    return np.array([int(name[15:23]) for name in info[:, 0]]) - 1, info[:, 1].astype(np.int64)


@pytest.fixture(scope="module")
def real(shared_data: Path) -> _Real:
    folder = shared_data / "real-votes"
    raters, golden, raters_golden, scores = (
        np.load(folder / f"{name}.npz") for name in ("raters", "golden", "raters_golden", "scores")
    )
    answers = _answers(raters["tensor"])
    row_of = {rater: row for row, rater in enumerate(raters["ids"])}
    on_gold = _answers(raters_golden["tensor"])
    rows = np.array([row_of[rater] for rater in raters_golden["ids"]])[on_gold.rater]
    image, class_index = _pairs(raters["info"])
    gold_image, gold_class = _pairs(golden["info"])
    return _Real(
        answers=answers,
        scores=scores["tensor"],
        image=image,
        class_index=class_index,
        gold=Answers(on_gold.question, rows, on_gold.answer, on_gold.questions, answers.raters),
        experts_yes=golden["tensor"][:, :, YES].sum(axis=0).astype(np.int64),
        gold_image=gold_image,
        gold_class=gold_class,
        labels=np.loadtxt(shared_data / "val_labels.txt", dtype=np.int64),
    )


def _closeness(acceptance: npt.NDArray[np.float64], scores: npt.NDArray[np.float64]) -> tuple[float, float]:
    correlation = float(np.corrcoef(acceptance, scores)[0, 1])
    return correlation, float(((acceptance >= 0.8) == (scores >= 0.8)).mean())


@pytest.mark.shared
def test_dawid_skene_on_reals_votes_alone(real: _Real) -> None:
    fit = dawid_skene(real.answers)
    correlation, agreement = _closeness(fit.acceptance, real.scores)
    assert fit.converged
    assert (np.diff(fit.trace) >= -1e-6).all()  # EM never loses likelihood
    assert correlation >= 0.984
    assert agreement >= 0.982  # nobody told it what the raters are worth


@pytest.mark.shared
def test_dawid_skene_with_gold_as_prior_on_reals_votes(real: _Real) -> None:
    """What five experts say of 1,135 other questions tells what the raters are worth."""
    prior = gold_counts(real.gold, (real.experts_yes >= 3).astype(np.int64))
    found = {
        w: _closeness(dawid_skene(real.answers, prior=w * prior).acceptance, real.scores) for w in (1, 10)
    }
    assert found[1][0] >= 0.985
    assert found[10][0] >= 0.987
    assert found[10][1] >= 0.985
    # Gold alone decides in the limit, and that is how the published scores were made.
    alone = calibrated(
        real.answers, gold_confusion(real.gold, (real.experts_yes >= 3).astype(np.int64))[0], 0.22
    )
    assert found[1][1] < found[10][1] < _closeness(alone.acceptance, real.scores)[1]


def test_gold_among_the_questions_is_gold_as_prior() -> None:
    """Known questions add their counts to the confusion matrices, and only the prevalence differs."""
    confusion = np.array([GOOD] * 3 + [YES_BIASED] * 2)
    answers, truth = _plant(np.random.default_rng(7), confusion, 1_000, 4, 0.5)
    is_gold = np.arange(1_000) < 300
    known = np.where(is_gold, truth, UNKNOWN)
    inside = dawid_skene(answers, gold=known, tolerance=1e-9)
    rest = answers.select(~is_gold[answers.question])
    beside = dawid_skene(rest, prior=gold_counts(answers, known), tolerance=1e-9)
    np.testing.assert_array_equal(inside.acceptance[is_gold], truth[is_gold])
    np.testing.assert_allclose(inside.acceptance[~is_gold], beside.acceptance[~is_gold], atol=0.05)
    assert inside.confusion is not None
    assert beside.confusion is not None
    np.testing.assert_allclose(inside.confusion, beside.confusion, atol=0.005)


@pytest.mark.shared
def test_the_recipe_of_reals_scores_is_found(real: _Real) -> None:
    """Rater models from gold alone, gold's share as prior, the original label as evidence on animals."""
    gold_truth = (real.experts_yes >= 3).astype(np.int64)
    confusion, seen = gold_confusion(real.gold, gold_truth)
    assert seen.sum() == 78
    prior = gold_truth.mean()
    plain = calibrated(real.answers, confusion, prior)
    correlation, agreement = _closeness(plain.acceptance, real.scores)
    assert correlation == pytest.approx(0.98955, abs=5e-6)
    assert agreement == pytest.approx(0.99143, abs=5e-6)

    # The original label is one more rater, heard on the animals (classes 0..397). Its confusion comes from
    # gold that at least two experts accept, with Laplace's rule.
    is_original = real.labels[real.gold_image] == real.gold_class
    single = Answers(
        np.arange(len(is_original)),
        np.zeros(len(is_original), dtype=int),
        np.where(is_original, YES, NO),
        len(is_original),
        1,
    )
    label, _ = gold_confusion(single, (real.experts_yes >= 2).astype(np.int64))
    evidence = np.log(label[0, 1] / label[0, 0])
    says = np.where(real.labels[real.image] == real.class_index, evidence[YES], evidence[NO])
    extra = np.where(real.class_index < 398, says, 0.0)
    found = calibrated(real.answers, confusion, prior, extra=extra)
    far = np.abs(logit(real.scores)) < 15  # beyond, a double cannot tell the score from 1
    assert np.abs(logit(found.acceptance) - logit(real.scores))[far].max() < 1e-8
    assert np.abs(found.acceptance - real.scores).max() < 1e-12


# Planted raters ---------------------------------------------------------------------------------------------

GOOD = [[0.90, 0.06, 0.04], [0.05, 0.10, 0.85]]
LAZY = [[0.60, 0.25, 0.15], [0.30, 0.30, 0.40]]
ADVERSARIAL = [[0.10, 0.10, 0.80], [0.80, 0.10, 0.10]]
YES_BIASED = [[0.45, 0.15, 0.40], [0.03, 0.07, 0.90]]


def _plant(
    rng: np.random.Generator, confusion: npt.NDArray[np.float64], questions: int, votes: int, rate: float
) -> tuple[Answers, Ints]:
    raters = len(confusion)
    truth = (rng.random(questions) < rate).astype(np.int64)
    chosen = np.argsort(rng.random((questions, raters)), axis=1)[:, :votes]
    cumulative = np.cumsum(confusion[chosen, truth[:, None]], axis=2)
    said = (rng.random((questions, votes, 1)) > cumulative).sum(axis=2)
    question = np.repeat(np.arange(questions), votes)
    return Answers(question, chosen.ravel(), said.ravel(), questions, raters), truth


def test_planted_raters_are_found_out() -> None:
    confusion = np.array([GOOD] * 8 + [LAZY] * 3 + [ADVERSARIAL] * 2 + [YES_BIASED] * 3)
    answers, truth = _plant(np.random.default_rng(0), confusion, 20_000, 5, 0.3)
    fit = dawid_skene(answers)
    assert fit.confusion is not None
    assert np.abs(fit.confusion - confusion).max() < 0.03
    assert fit.prevalence == pytest.approx(truth.mean(), abs=0.01)
    wrong = {
        "dawid-skene": ((fit.acceptance >= 0.5) != truth).mean(),
        "majority": ((majority(answers).acceptance >= 0.5) != truth).mean(),
        "one-coin": ((one_coin(answers).acceptance >= 0.5) != truth).mean(),
    }
    assert wrong["dawid-skene"] < wrong["one-coin"] < wrong["majority"]


def test_the_probabilities_mean_what_they_say() -> None:
    confusion = np.array([GOOD] * 5 + [LAZY] * 5 + [YES_BIASED] * 2)
    answers, truth = _plant(np.random.default_rng(1), confusion, 30_000, 3, 0.4)
    p = dawid_skene(answers).acceptance
    for low in np.arange(0.0, 1.0, 0.1):
        inside = (p >= low) & (p < low + 0.1)
        spread = 4 * np.sqrt(0.25 / inside.sum()) + 0.01
        assert truth[inside].mean() == pytest.approx(p[inside].mean(), abs=spread)


def test_intervals_cover_what_was_planted() -> None:
    confusion = np.array([GOOD] * 4 + [LAZY] * 3 + [YES_BIASED] * 2)
    inside: list[npt.NDArray[np.bool_]] = []
    prevalence = 0
    runs = 300
    for seed in range(runs):
        answers, _ = _plant(np.random.default_rng(seed), confusion, 2_500, 5, 0.35)
        fit = dawid_skene(answers, tolerance=1e-5)
        found = intervals(answers, fit)
        inside.append((found.low <= confusion) & (confusion <= found.high))
        prevalence += found.prevalence[0] <= 0.35 <= found.prevalence[1]
    assert 0.93 <= np.mean(inside) <= 0.97
    assert 0.92 <= prevalence / runs <= 0.98  # 300 runs: one standard error is 1.3 points


def test_gold_breaks_the_symmetry_that_adversaries_exploit() -> None:
    """Most raters lie: votes alone settle on the mirror image, a little gold does not."""
    confusion = np.array([GOOD] * 3 + [ADVERSARIAL] * 7)
    answers, truth = _plant(np.random.default_rng(2), confusion, 4_000, 5, 0.5)
    alone = dawid_skene(answers)
    assert ((alone.acceptance >= 0.5) != truth).mean() > 0.9
    known = np.where(np.arange(4_000) < 400, truth, UNKNOWN)
    told = gold_confusion(answers, known)[0]
    helped = calibrated(answers, told, 0.5)
    assert ((helped.acceptance >= 0.5) != truth).mean() < 0.05


# Independent computations -----------------------------------------------------------------------------------


def _slow_dawid_skene(
    answers: Answers, iterations: int, smoothing: float
) -> tuple[npt.NDArray[np.float64], list[float]]:
    """The algorithm of 1979 in loops, for small cases."""
    q, r = answers.questions, answers.raters
    said: dict[int, list[tuple[int, int]]] = {i: [] for i in range(q)}
    for i, j, a in zip(answers.question, answers.rater, answers.answer):
        said[int(i)].append((int(j), int(a)))
    t = [sum({0: 0.0, 1: 0.5, 2: 1.0}[a] for _, a in said[i]) / len(said[i]) for i in range(q)]
    trace = []
    for _ in range(iterations):
        pi = [[[smoothing] * 3, [smoothing] * 3] for _ in range(r)]
        for i in range(q):
            for j, a in said[i]:
                pi[j][1][a] += t[i]
                pi[j][0][a] += 1 - t[i]
        pi = [[[x / sum(row) for x in row] for row in m] for m in pi]
        p = sum(t) / q
        likelihood = smoothing * sum(np.log(x) for m in pi for row in m for x in row)
        for i in range(q):
            yes, no = p, 1 - p
            for j, a in said[i]:
                yes, no = yes * pi[j][1][a], no * pi[j][0][a]
            t[i] = yes / (yes + no)
            likelihood += np.log(yes + no)
        trace.append(float(likelihood))
    return np.array(t), trace


def test_it_is_the_algorithm_of_1979() -> None:
    confusion = np.array([GOOD] * 3 + [LAZY] * 2)
    answers, _ = _plant(np.random.default_rng(3), confusion, 60, 3, 0.4)
    slow, trace = _slow_dawid_skene(answers, 25, 0.01)
    fast = dawid_skene(answers, max_iterations=25, tolerance=0)
    np.testing.assert_allclose(fast.acceptance, slow, atol=1e-10)
    np.testing.assert_allclose(fast.trace, trace, rtol=1e-10)


def test_binary_answers_agree_with_crowd_kit() -> None:
    import pandas as pd
    from crowdkit.aggregation import DawidSkene

    confusion = np.array([[[0.9, 0.0, 0.1], [0.2, 0.0, 0.8]]] * 6 + [[[0.6, 0.0, 0.4], [0.4, 0.0, 0.6]]] * 2)
    answers, _ = _plant(np.random.default_rng(4), confusion, 500, 5, 0.4)
    frame = pd.DataFrame({"task": answers.question, "worker": answers.rater, "label": answers.answer})
    peer = DawidSkene(n_iter=2000, tol=1e-12).fit_predict_proba(frame)
    ours = dawid_skene(answers, maybe="drop", smoothing=0.0, max_iterations=2000, tolerance=1e-10)
    np.testing.assert_allclose(ours.acceptance, peer[YES].to_numpy(), atol=1e-4)


# Rules and edges --------------------------------------------------------------------------------------------


def _one(*said: int) -> Answers:
    return Answers(np.zeros(len(said), int), np.arange(len(said)), np.array(said, int), 1, len(said))


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ((YES, YES, YES, YES, NO), Verdict.ACCEPTED),
        ((YES, YES, YES, NO, NO), Verdict.UNSURE),
        ((NO, NO, NO, NO, MAYBE), Verdict.REJECTED),
        ((YES, YES, YES, MAYBE, MAYBE), Verdict.UNSURE),
        ((YES, YES, NO), Verdict.UNSURE),  # ⌈4·3/5⌉ = 3 of 3
        ((YES, YES, YES), Verdict.ACCEPTED),
    ],
)
def test_k_of_n(said: tuple[int, ...], verdict: Verdict) -> None:
    assert verdicts(k_of_n(_one(*said)).acceptance)[0] == verdict


def test_a_question_without_answers_is_unjudged() -> None:
    answers = Answers(np.array([0, 0]), np.array([0, 1]), np.array([YES, YES]), 2, 2)
    for result in (majority(answers), k_of_n(answers), dawid_skene(answers), one_coin(answers)):
        assert np.isnan(result.acceptance[1]), result.method
        assert verdicts(result.acceptance)[1] == Verdict.UNJUDGED
    nothing = Answers(np.array([], int), np.array([], int), np.array([], int), 3, 2)
    assert np.isnan(dawid_skene(nothing).acceptance).all()


def test_the_order_of_votes_does_not_matter() -> None:
    answers, _ = _plant(np.random.default_rng(5), np.array([GOOD] * 6), 400, 3, 0.5)
    shuffle = np.random.default_rng(6).permutation(len(answers.question))
    other = Answers(
        answers.question[shuffle], answers.rater[shuffle], answers.answer[shuffle], 400, answers.raters
    )
    np.testing.assert_allclose(dawid_skene(answers).acceptance, dawid_skene(other).acceptance, atol=1e-9)


def test_bad_input_gets_one_line() -> None:
    good = _one(YES, NO)
    for attempt, words in (
        (lambda: Answers(np.array([0]), np.array([0]), np.array([3]), 1, 1), "answer 3"),
        (lambda: Answers(np.array([0]), np.array([0, 1]), np.array([2]), 1, 2), "length"),
        (lambda: dawid_skene(good, gold=np.array([1, 0])), "gold for 2"),
        (lambda: dawid_skene(good, gold=np.array([7])), "gold must be"),
        (lambda: dawid_skene(good, smoothing=-1), "smoothing"),
        (lambda: dawid_skene(good, prior=np.ones((1, 2, 3))), "prior counts"),
        (lambda: k_of_n(good, k=2, n=5), "majority"),
        (lambda: gold_confusion(good, np.array([UNKNOWN])), "no rater"),
        (lambda: calibrated(good, np.ones((1, 2, 3)), 0.5), "shape"),
        (lambda: calibrated(good, np.ones((2, 2, 3)) / 3, 1.0), "prior"),
        (lambda: verdicts(np.array([0.5]), accept_at=0.2), "reject must be below"),
        (lambda: intervals(good, majority(good)), "confusion"),
    ):
        with pytest.raises(BeyondError, match=words):
            attempt()
