"""From votes to verdicts: majority, k of n, one coin, Dawid–Skene, and rater models calibrated on gold.

Answers are `NO`, `MAYBE` and `YES`; what is to be known of a question is binary, whether the label applies.
Every function takes `Answers` and returns an `Aggregate`, whose `acceptance` is the probability, or for
counting rules the share, that `verdicts` turns into accepted, unsure or rejected.

Sources: Dawid and Skene 1979, Maximum likelihood estimation of observer error-rates using the EM algorithm;
Beyer et al. 2020, Are we done with ImageNet?, whose published scores `calibrated` reproduces.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import expit, ndtri

from annotations.errors import BeyondError
from annotations.judgements import Verdict

NO, MAYBE, YES = 0, 1, 2
UNKNOWN = -1

Maybe = Literal["own", "half", "drop"]
Floats = npt.NDArray[np.float64]

_TINY = 1e-300


@dataclass(frozen=True)
class Answers:
    """Answers to questions (V answers, Q questions, R raters).

    Attributes:
        question: integer (V,), in [0, Q).
        rater: integer (V,), in [0, R).
        answer: integer (V,), `NO`, `MAYBE` or `YES`.
        questions: Q; a question may have no answer.
        raters: R; a rater may have given none.

    Raises:
        BeyondError: The arrays differ in length, or a number is out of range.
    """

    question: npt.NDArray[np.integer]
    rater: npt.NDArray[np.integer]
    answer: npt.NDArray[np.integer]
    questions: int
    raters: int

    def __post_init__(self) -> None:
        if not len(self.question) == len(self.rater) == len(self.answer):
            raise BeyondError("answers: question, rater and answer differ in length; give one of each a vote")
        for values, size, what in (
            (self.question, self.questions, "question"),
            (self.rater, self.raters, "rater"),
            (self.answer, 3, "answer"),
        ):
            if len(values) and not 0 <= values.min() <= values.max() < size:
                bad = int(values.min() if values.min() < 0 else values.max())
                raise BeyondError(f"answers: {what} {bad} is outside 0..{size - 1}")

    def counts(self) -> npt.NDArray[np.int64]:
        """How often each question got each answer: int64 (Q, 3)."""
        keys = self.question.astype(np.int64) * 3 + self.answer
        return np.bincount(keys, minlength=self.questions * 3).reshape(self.questions, 3)

    def select(self, keep: npt.NDArray[np.bool_]) -> Answers:
        """The votes where `keep` (bool (V,)) is True; questions and raters stay as they are."""
        return Answers(self.question[keep], self.rater[keep], self.answer[keep], self.questions, self.raters)


@dataclass(frozen=True)
class Aggregate:
    """What the answers say about each question, and how good the raters are.

    Attributes:
        method: Name of the method.
        acceptance: float64 (Q,), probability (or share) that the label applies; NaN without any answer.
        prevalence: Share of questions whose label applies, as the method estimates it.
        confusion: float64 (R, 2, 3), probability of each answer given that the label does not (row 0) or does
            (row 1) apply; rows sum to 1; None for counting rules. Column `MAYBE` is 0 where maybe is halved
            or dropped.
        trace: Log-likelihood after each iteration (with the log-prior, if there is smoothing), in nats; it
            never falls.
        converged: The largest change of `acceptance` fell below the tolerance.
    """

    method: str
    acceptance: Floats
    prevalence: float
    confusion: Floats | None = None
    trace: tuple[float, ...] = ()
    converged: bool = True

    @property
    def entropy(self) -> Floats:
        """Uncertainty of each verdict: entropy of `acceptance` in bits, in [0, 1]: float64 (Q,)."""
        p = self.acceptance
        q = 1.0 - p
        return np.asarray(-(p * np.log2(np.maximum(p, _TINY)) + q * np.log2(np.maximum(q, _TINY))))


def verdicts(
    acceptance: Floats, *, accept_at: float = 0.8, reject_at: float | None = None
) -> npt.NDArray[np.int8]:
    """Turn probabilities into verdicts: int8 (Q,), values of `Verdict`.

    Args:
        acceptance: float64 (Q,); NaN gives UNJUDGED.
        accept_at: Accepted from here on. Must be above 0.5.
        reject_at: Rejected up to here; by default 1 − `accept_at`. Between the two: unsure.

    Raises:
        BeyondError: The thresholds are not 0 ≤ reject_at < accept_at ≤ 1.

    Example:
        >>> verdicts(np.array([0.9, 0.5, 0.1, np.nan])).tolist()
        [1, 2, 3, 0]
    """
    reject_at = 1.0 - accept_at if reject_at is None else reject_at
    if not 0.0 <= reject_at < accept_at <= 1.0:
        raise BeyondError(
            f"thresholds {reject_at:g} and {accept_at:g}: reject must be below accept, both in [0, 1]"
        )
    slack = 1e-9  # 1 − 0.8 is a little below 0.2; a share of 1 in 5 is meant to reject
    result = np.full(len(acceptance), Verdict.UNSURE, dtype=np.int8)
    result[acceptance >= accept_at - slack] = Verdict.ACCEPTED
    result[acceptance <= reject_at + slack] = Verdict.REJECTED
    result[np.isnan(acceptance)] = Verdict.UNJUDGED
    return result


# Counting ---------------------------------------------------------------------------------------------------


def majority(answers: Answers, *, maybe: Maybe = "half") -> Aggregate:
    """Share of yes, where a maybe is half a yes (`half`, `own`) or not counted (`drop`).

    Turn it into verdicts with `accept_at=0.5 + ε`; a tie stays unsure. NaN where nothing is counted.

    Example:
        >>> one = Answers(np.zeros(3, int), np.arange(3), np.array([YES, YES, MAYBE]), 1, 3)
        >>> round(float(majority(one).acceptance[0]), 4)
        0.8333
    """
    no, unsure, yes = answers.counts().T.astype(np.float64)
    total = yes + no
    if maybe != "drop":
        yes, total = yes + unsure / 2, total + unsure
    share = np.divide(yes, total, out=np.full(len(total), np.nan), where=total > 0)
    return Aggregate("majority", share, _mean(share))


def k_of_n(answers: Answers, *, k: int = 4, n: int = 5) -> Aggregate:
    """1 where at least k of n answers say yes, 0 where at least k of n say no, else 0.5.

    A question with m answers needs ⌈k·m/n⌉ of them. The project's default rule for campaigns.

    Raises:
        BeyondError: k is not in n/2 < k ≤ n.

    Example:
        >>> four = Answers(np.zeros(5, int), np.arange(5), np.array([YES, YES, YES, YES, NO]), 1, 5)
        >>> k_of_n(four).acceptance.tolist()
        [1.0]
    """
    if not n / 2 < k <= n:
        raise BeyondError(f"{k} of {n} is no majority rule; k must be above n/2 and at most n")
    counts = answers.counts()
    total = counts.sum(axis=1)
    needed = -(-k * total // n)
    result = np.full(len(total), 0.5)
    result[counts[:, YES] >= needed] = 1.0
    result[counts[:, NO] >= needed] = 0.0
    result[total == 0] = np.nan
    return Aggregate(f"{k}-of-{n}", result, _mean(result))


# Latent truth -----------------------------------------------------------------------------------------------


def dawid_skene(
    answers: Answers,
    *,
    maybe: Maybe = "own",
    gold: npt.NDArray[np.integer] | None = None,
    prior: Floats | None = None,
    smoothing: float = 0.01,
    max_iterations: int = 500,
    tolerance: float = 1e-4,
) -> Aggregate:
    """Dawid–Skene: rater confusion matrices and the truth together, by expectation–maximisation.

    Two latent classes (applies or not) and, by default, three answers, so that what a rater means by maybe
    is learnt. Starts from the share of yes.

    Args:
        answers: The votes; gold answered by raters may be among them.
        maybe: `own` an answer of its own; `half` half a yes and half a no; `drop` not counted.
        gold: integer (Q,), 1 or 0 where the truth is known, `UNKNOWN` elsewhere: these stay fixed and tell
            what the raters are worth.
        prior: float64 (R, 2, 3), pseudo-counts to add to each rater's confusion matrix: what is known of the
            raters already, such as `gold_counts` of gold that is not among the questions. A multiple of them
            gives gold more say than it has by its number.
        smoothing: Pseudo-count added to each cell of each confusion matrix (a Dirichlet prior); 0 gives plain
            maximum likelihood.
        max_iterations: Stop after so many.
        tolerance: Stop once no acceptance changes by more.

    Raises:
        BeyondError: `gold` has another length, or a parameter is out of range.

    Cost: O(V) an iteration.
    """
    known = _check(answers, gold, smoothing, max_iterations, tolerance)
    rows, cells, weights, cell_count = _observations(answers, maybe)
    pseudo = _pseudo_counts(prior, answers.raters, maybe) + smoothing
    total = np.bincount(cells, weights=weights, minlength=cell_count * answers.raters)
    answered = np.bincount(rows, minlength=answers.questions) > 0
    free = answered & (known == UNKNOWN)
    truth = np.where(known != UNKNOWN, known, _start(answers)).astype(np.float64)
    prevalence = _clip(truth[answered].mean()) if answered.any() else 0.5
    trace: list[float] = []
    converged = False
    log = np.zeros((2, cell_count * answers.raters))
    for _ in range(max_iterations):
        yes = np.bincount(cells, weights=weights * truth[rows], minlength=len(total))
        table = np.stack([total - yes, yes]).clip(min=0.0).reshape(2, answers.raters, cell_count) + pseudo
        share = np.divide(
            table,
            table.sum(axis=2, keepdims=True),
            out=np.full(table.shape, 1.0 / cell_count),
            where=table.sum(axis=2, keepdims=True) > 0,
        )
        log = np.log(np.maximum(share, _TINY)).reshape(2, -1)
        prevalence = _clip(truth[answered].mean()) if answered.any() else 0.5
        with_no = math.log(1 - prevalence) + np.bincount(
            rows, weights=weights * log[0][cells], minlength=answers.questions
        )
        with_yes = math.log(prevalence) + np.bincount(
            rows, weights=weights * log[1][cells], minlength=answers.questions
        )
        posterior = np.where(free, expit(with_yes - with_no), truth)
        given = np.where(known == 1, with_yes, np.where(known == 0, with_no, np.logaddexp(with_no, with_yes)))
        trace.append(float(given[answered].sum() + (pseudo.reshape(2, -1) * log).sum()))
        change = float(np.abs(posterior - truth)[free].max(initial=0.0))
        truth = posterior
        if change <= tolerance:
            converged = True
            break
    confusion = np.zeros((answers.raters, 2, 3))
    confusion[:, :, [NO, MAYBE, YES] if cell_count == 3 else [NO, YES]] = (
        np.exp(log).reshape(2, answers.raters, cell_count).transpose(1, 0, 2)
    )
    acceptance = np.where(answered | (known != UNKNOWN), truth, np.nan)
    return Aggregate(f"dawid-skene ({maybe})", acceptance, prevalence, confusion, tuple(trace), converged)


def one_coin(
    answers: Answers,
    *,
    gold: npt.NDArray[np.integer] | None = None,
    smoothing: float = 0.01,
    max_iterations: int = 500,
    tolerance: float = 1e-4,
) -> Aggregate:
    """Each rater is right with one probability, whatever the truth; a maybe is half right, half wrong.

    Fewer numbers to learn than `dawid_skene`: better where raters gave few answers, worse where they lean to
    one side. Arguments and errors as there. `confusion` has the probability right on its diagonal.
    """
    known = _check(answers, gold, smoothing, max_iterations, tolerance)
    rows, cells, weights, _ = _observations(answers, "half")
    raters, said = cells // 2, cells % 2
    total = np.bincount(raters, weights=weights, minlength=answers.raters)
    answered = np.bincount(rows, minlength=answers.questions) > 0
    free = answered & (known == UNKNOWN)
    truth = np.where(known != UNKNOWN, known, _start(answers)).astype(np.float64)
    right = np.full(answers.raters, 0.5)
    prevalence = 0.5
    trace: list[float] = []
    converged = False
    for _ in range(max_iterations):
        agree = np.where(said == 1, truth[rows], 1.0 - truth[rows])
        hits = np.bincount(raters, weights=weights * agree, minlength=answers.raters)
        right = np.divide(hits + smoothing, total + 2 * smoothing, out=right, where=total + 2 * smoothing > 0)
        prevalence = _clip(truth[answered].mean()) if answered.any() else 0.5
        hit, miss = np.log(np.maximum(right, _TINY)), np.log(np.maximum(1 - right, _TINY))
        is_yes = said == 1
        with_yes = math.log(prevalence) + np.bincount(
            rows, weights=weights * np.where(is_yes, hit[raters], miss[raters]), minlength=answers.questions
        )
        with_no = math.log(1 - prevalence) + np.bincount(
            rows, weights=weights * np.where(is_yes, miss[raters], hit[raters]), minlength=answers.questions
        )
        posterior = np.where(free, expit(with_yes - with_no), truth)
        given = np.where(known == 1, with_yes, np.where(known == 0, with_no, np.logaddexp(with_no, with_yes)))
        trace.append(float(given[answered].sum() + smoothing * (hit + miss).sum()))
        change = float(np.abs(posterior - truth)[free].max(initial=0.0))
        truth = posterior
        if change <= tolerance:
            converged = True
            break
    confusion = np.zeros((answers.raters, 2, 3))
    confusion[:, 0, NO] = confusion[:, 1, YES] = right
    confusion[:, 0, YES] = confusion[:, 1, NO] = 1 - right
    acceptance = np.where(answered | (known != UNKNOWN), truth, np.nan)
    return Aggregate("one-coin", acceptance, prevalence, confusion, tuple(trace), converged)


# Known truth ------------------------------------------------------------------------------------------------


def gold_counts(answers: Answers, truth: npt.NDArray[np.integer]) -> Floats:
    """How often each rater gave each answer to gold: float64 (R, 2, 3); row 0 where the label does not apply.

    Args:
        answers: Answers to gold.
        truth: integer (Q,), 1 or 0, or `UNKNOWN` where the question is no gold.

    Raises:
        BeyondError: `truth` has another length or other values.
    """
    at = _known(answers, truth)[answers.question]
    keys = (answers.rater.astype(np.int64) * 2 + at) * 3 + answers.answer
    counts = np.bincount(keys[at != UNKNOWN], minlength=answers.raters * 6)
    return counts.reshape(answers.raters, 2, 3).astype(np.float64)


def gold_confusion(
    answers: Answers, truth: npt.NDArray[np.integer], *, smoothing: float = 1.0
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Confusion matrix of each rater from questions whose answer is known.

    Args:
        answers: Answers to gold.
        truth: integer (Q,), 1 or 0, or `UNKNOWN` where the question is no gold.
        smoothing: Added to each of the three counts (1: Laplace's rule of succession).

    Returns:
        float64 (R, 2, 3), rows sum to 1, and bool (R,), which raters answered any gold. The others get the
        mean matrix of those who did.

    Raises:
        BeyondError: Nobody answered gold, or `truth` has another length.
    """
    counts = gold_counts(answers, truth)
    seen = counts.sum(axis=(1, 2)) > 0
    if not seen.any():
        raise BeyondError("no rater answered a question whose answer is known; add gold, or use dawid-skene")
    table = counts + smoothing
    share = table / np.maximum(table.sum(axis=2, keepdims=True), _TINY)
    return np.where(seen[:, None, None], share, share[seen].mean(axis=0)), seen


def calibrated(
    answers: Answers, confusion: Floats, prior: float | Floats, *, extra: Floats | None = None
) -> Aggregate:
    """Bayes' rule with confusion matrices that are known, such as those of `gold_confusion`.

    With gold, matrices of `gold_confusion` at smoothing 1, the share of yes among gold as `prior`, and for
    the 398 animal classes the evidence of the original label as `extra`, these are ReaL's published scores
    (to 1e-9 in log-odds; tests/annotations/test_aggregation.py).

    Args:
        answers: The votes.
        confusion: float64 (R, 2, 3), probability of each answer given that the label does not or does apply.
        prior: Probability in (0, 1) that a label applies, one for all or float64 (Q,).
        extra: float64 (Q,), log-likelihood ratio of other evidence on each question; by default 0.

    Raises:
        BeyondError: A shape or a probability is wrong.
    """
    if confusion.shape != (answers.raters, 2, 3):
        raise BeyondError(f"confusion matrices of shape {confusion.shape}; want ({answers.raters}, 2, 3)")
    odds = np.broadcast_to(np.asarray(prior, dtype=np.float64), (answers.questions,))
    if not ((odds > 0) & (odds < 1)).all():
        raise BeyondError("a prior must lie strictly between 0 and 1")
    log = np.log(np.maximum(confusion, _TINY))
    evidence = (log[:, 1] - log[:, 0]).ravel()
    cells = answers.rater.astype(np.int64) * 3 + answers.answer
    score = np.log(odds) - np.log1p(-odds) + (0.0 if extra is None else extra)
    score = score + np.bincount(answers.question, weights=evidence[cells], minlength=answers.questions)
    answered = np.bincount(answers.question, minlength=answers.questions) > 0
    acceptance = np.where(answered, expit(score), np.nan)
    return Aggregate("calibrated on gold", acceptance, _mean(acceptance), confusion)


# Uncertainty ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Intervals:
    """95 % confidence intervals of a fit.

    Attributes:
        prevalence: (low, high).
        low: float64 (R, 2, 3), lower end for each entry of the confusion matrices; NaN for raters without
            answers.
        high: float64 (R, 2, 3), its upper end.
    """

    prevalence: tuple[float, float]
    low: Floats
    high: Floats


def intervals(
    answers: Answers,
    fit: Aggregate,
    *,
    smoothing: float = 0.01,
    level: float = 0.95,
) -> Intervals:
    """Wald intervals on the logit scale for a fit of `dawid_skene(maybe="own")`.

    The information is the empirical one, the sum over questions of the outer product of their scores (e.g.
    McLachlan and Krishnan 2008, section 4.3), so that not knowing the truth widens the intervals as it
    should. Large-sample: an entry estimated at 0 or 1 gets the interval that its pseudo-counts allow.

    Args:
        answers: The votes that `fit` came from.
        fit: The converged fit.
        smoothing: As given to the fit.
        level: Coverage.

    Raises:
        BeyondError: The fit has no confusion matrices.

    Cost: O(V) and the inverse of a matrix of 4R + 1 rows.
    """
    from scipy import sparse

    if fit.confusion is None:
        raise BeyondError(f"{fit.method} has no confusion matrices; use dawid-skene")
    truth = np.where(np.isnan(fit.acceptance), 0.0, fit.acceptance)
    raters = answers.raters
    rows: list[npt.NDArray[np.int64]] = []
    columns: list[npt.NDArray[np.int64]] = []
    values: list[Floats] = []
    base = answers.rater.astype(np.int64) * 4
    for state in (0, 1):
        weight = truth[answers.question] if state else 1.0 - truth[answers.question]
        for slot, cell in enumerate((MAYBE, YES)):  # logits against NO
            said = (answers.answer == cell).astype(np.float64)
            rows.append(answers.question.astype(np.int64))
            columns.append(base + state * 2 + slot)
            values.append(weight * (said - fit.confusion[answers.rater, state, cell]))
    answered = np.bincount(answers.question, minlength=answers.questions) > 0
    asked = np.flatnonzero(answered)
    rows.append(asked)
    columns.append(np.full(len(asked), 4 * raters))
    values.append(truth[asked] - fit.prevalence)
    score = sparse.csr_matrix(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))),
        shape=(answers.questions, 4 * raters + 1),
    )
    information = np.asarray((score.T @ score).todense())
    # The Dirichlet prior's curvature keeps an entry at its edge finite.
    for state in (0, 1):
        for slot, cell in enumerate((MAYBE, YES)):
            p = fit.confusion[:, state, cell]
            at = np.arange(raters) * 4 + state * 2 + slot
            information[at, at] += 3 * smoothing * p * (1 - p) + 1e-12
    covariance = np.linalg.pinv(information, hermitian=True)
    z = float(ndtri(0.5 + level / 2))
    low = np.full((raters, 2, 3), np.nan)
    high = np.full((raters, 2, 3), np.nan)
    has = np.bincount(answers.rater, minlength=raters) > 0
    for state in (0, 1):
        at = np.arange(raters) * 4 + state * 2
        block = covariance[at[:, None, None] + np.arange(2)[None, :, None], at[:, None, None] + np.arange(2)]
        for cell in (NO, MAYBE, YES):
            p = fit.confusion[:, state, cell].clip(1e-12, 1 - 1e-12)
            # d p_cell / d logit_j = p_cell (1[cell = j] − p_j), divided by p (1 − p) for the logit of p.
            gradient = np.stack(
                [((cell == j) - fit.confusion[:, state, j]) / (1 - p) for j in (MAYBE, YES)], axis=1
            )
            spread = np.sqrt(np.einsum("ri,rij,rj->r", gradient, block, gradient).clip(min=0.0))
            centre = np.log(p) - np.log1p(-p)
            low[:, state, cell] = np.where(has, expit(centre - z * spread), np.nan)
            high[:, state, cell] = np.where(has, expit(centre + z * spread), np.nan)
    share = _clip(fit.prevalence)
    # The score is in units of the prior's logit.
    wide = z * math.sqrt(max(float(covariance[-1, -1]), 0.0))
    middle = math.log(share) - math.log1p(-share)
    return Intervals((float(expit(middle - wide)), float(expit(middle + wide))), low, high)


# Parts ------------------------------------------------------------------------------------------------------


def _observations(
    answers: Answers, maybe: Maybe
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Floats, int]:
    """Question, cell (rater × answer), weight of each observation, and the answers a rater has."""
    question = answers.question.astype(np.int64)
    rater = answers.rater.astype(np.int64)
    unsure = answers.answer == MAYBE
    if maybe == "own":
        return question, rater * 3 + answers.answer, np.ones(len(question)), 3
    said = (answers.answer == YES).astype(np.int64)
    if maybe == "drop":
        keep = ~unsure
        return question[keep], rater[keep] * 2 + said[keep], np.ones(int(keep.sum())), 2
    if maybe != "half":
        raise BeyondError(f"maybe={maybe!r}; use own, half or drop")
    half = np.where(unsure, 0.5, 1.0)
    return (
        np.concatenate([question, question[unsure]]),
        np.concatenate([rater * 2 + said, rater[unsure] * 2 + 1]),
        np.concatenate([half, np.full(int(unsure.sum()), 0.5)]),
        2,
    )


def _pseudo_counts(prior: Floats | None, raters: int, maybe: Maybe) -> Floats:
    """The prior in the shape of the table of counts: float64 (2, R, cells)."""
    if prior is None:
        return np.zeros((2, raters, 3 if maybe == "own" else 2))
    if prior.shape != (raters, 2, 3) or not (prior >= 0).all():
        raise BeyondError(f"prior counts must be at least 0 and of shape ({raters}, 2, 3)")
    table = prior.transpose(1, 0, 2)
    if maybe == "own":
        return table
    half = table[:, :, MAYBE] / 2 if maybe == "half" else 0.0
    return np.stack([table[:, :, NO] + half, table[:, :, YES] + half], axis=2)


def _start(answers: Answers) -> Floats:
    share = majority(answers).acceptance
    return np.where(np.isnan(share), 0.5, share)


def _check(
    answers: Answers,
    gold: npt.NDArray[np.integer] | None,
    smoothing: float,
    max_iterations: int,
    tolerance: float,
) -> npt.NDArray[np.int64]:
    if smoothing < 0 or max_iterations < 1 or tolerance < 0:
        raise BeyondError("smoothing and tolerance must be at least 0, max_iterations at least 1")
    return _known(answers, gold)


def _known(answers: Answers, gold: npt.NDArray[np.integer] | None) -> npt.NDArray[np.int64]:
    if gold is None:
        return np.full(answers.questions, UNKNOWN, dtype=np.int64)
    if len(gold) != answers.questions:
        raise BeyondError(f"gold for {len(gold)} questions, but there are {answers.questions}")
    known = np.asarray(gold, dtype=np.int64)
    if not np.isin(known, (UNKNOWN, 0, 1)).all():
        raise BeyondError("gold must be 1 (applies), 0 (does not) or -1 (not known)")
    return known


def _clip(p: float) -> float:
    return float(min(max(p, 1e-12), 1 - 1e-12))


def _mean(values: Floats) -> float:
    finite = ~np.isnan(values)
    return float(values[finite].mean()) if finite.any() else math.nan
