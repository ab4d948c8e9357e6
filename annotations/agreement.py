"""How far raters agree: Krippendorff's α, Gwet's AC1, Fleiss' κ, with prevalence and intervals.

Every coefficient is a smooth function of sums over questions, so its standard error comes from the
delta method on sums over clusters (all questions of an image are one cluster): no resampling, no seed. Shares
get Wilson's interval with the number of draws that this error stands for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from annotations.errors import BeyondError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Coefficient:
    """A figure with its 95 % interval.

    Attributes:
        name: What it is.
        value: Its value; NaN where it is not defined (no question with two answers, or one answer only).
        low: Lower end of the interval.
        high: Upper end.
        n: Questions behind it.
    """

    name: str
    value: float
    low: float
    high: float
    n: int


def agreement(
    counts: npt.NDArray[np.integer],
    *,
    clusters: npt.NDArray[np.integer] | None = None,
    level: float = 0.95,
) -> dict[str, Coefficient]:
    """Agreement on questions whose answers are ordered (no, maybe, yes).

    Args:
        counts: integer (Q, C), how often each question got each answer, answers in their order.
        clusters: integer (Q,), what belongs together, such as the image; by default each question alone.
        level: Coverage of the intervals.

    Returns:
        `alpha_nominal`, `alpha_ordinal` (Krippendorff 2011, Computing Krippendorff's alpha-reliability),
        `ac1` (Gwet 2008), `fleiss_kappa` (Fleiss 1971; its generalisation to unequal numbers of answers
        takes the mean of each question's pairwise agreement), `observed` (share of agreeing pairs of answers)
        and `prevalence_C`, the share of each answer. Questions with a single answer count only for the
        prevalence, and for AC1's.

    Raises:
        BeyondError: The table is not (Q, C) with C ≥ 2 and no negative count.
    """
    table = np.asarray(counts, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] < 2 or (table < 0).any():
        raise BeyondError("agreement needs a table of counts, questions × at least two answers")
    labels = np.arange(len(table)) if clusters is None else np.asarray(clusters)
    if len(labels) != len(table):
        raise BeyondError(f"{len(labels)} clusters for {len(table)} questions; give one each")
    answered = table.sum(axis=1) > 0
    table, labels = table[answered], labels[answered]
    size = table.sum(axis=1)
    pairable = size >= 2
    c = table.shape[1]

    # What the coefficients are functions of, per question.
    products = table[:, :, None] * table[:, None, :]
    products[:, np.arange(c), np.arange(c)] -= table
    coincidence = np.divide(
        products,
        (size - 1)[:, None, None],
        out=np.zeros_like(products),
        where=pairable[:, None, None],
    )
    observed = np.divide(
        (table * (table - 1)).sum(axis=1), size * (size - 1), out=np.zeros(len(table)), where=pairable
    )
    shares = np.divide(table, size[:, None], out=np.zeros_like(table), where=size[:, None] > 0)
    parts = np.hstack(
        [
            coincidence.reshape(len(table), c * c),
            table * pairable[:, None],
            table,
            shares,
            observed[:, None],
            pairable[:, None].astype(np.float64),
            np.ones((len(table), 1)),
        ]
    )
    _, groups = np.unique(labels, return_inverse=True)
    sums = np.zeros((int(groups.max(initial=-1)) + 1, parts.shape[1]))
    np.add.at(sums, groups, parts)

    def split(total: Floats) -> _Totals:
        at = c * c
        return _Totals(
            coincidence=total[:at].reshape(c, c),
            pairable=total[at : at + c],
            answers=total[at + c : at + 2 * c],
            shares=total[at + 2 * c : at + 3 * c],
            observed=total[-3],
            questions_pairable=total[-2],
            questions=total[-1],
        )

    functions: dict[str, Callable[[_Totals], float]] = {
        "alpha_nominal": lambda t: _alpha(t.coincidence, ordinal=False),
        "alpha_ordinal": lambda t: _alpha(t.coincidence, ordinal=True),
        "ac1": _ac1,
        "fleiss_kappa": _fleiss,
        "observed": lambda t: _ratio(t.observed, t.questions_pairable),
    }
    for answer in range(c):
        functions[f"prevalence_{answer}"] = partial(_prevalence, answer)
    z = float(ndtri(0.5 + level / 2))
    return {
        name: _with_interval(
            name,
            partial(_of_totals, function, split),
            sums,
            z,
            int(len(table) if name.startswith("prevalence") else pairable.sum()),
        )
        for name, function in functions.items()
    }


@dataclass(frozen=True)
class _Totals:
    coincidence: Floats
    pairable: Floats
    answers: Floats
    shares: Floats
    observed: float
    questions_pairable: float
    questions: float


def _of_totals(
    function: Callable[[_Totals], float], split: Callable[[Floats], _Totals], total: Floats
) -> float:
    return function(split(total))


def _prevalence(answer: int, t: _Totals) -> float:
    return _ratio(float(t.answers[answer]), float(t.answers.sum()))


def _ratio(a: float, b: float) -> float:
    return float(a / b) if b > 0 else math.nan


def _alpha(coincidence: Floats, *, ordinal: bool) -> float:
    margin = coincidence.sum(axis=1)
    n = margin.sum()
    if n <= 1:
        return math.nan
    c = len(margin)
    if ordinal:
        cumulative = np.cumsum(margin)
        # Sum of margins from i to k, less half of both ends, squared.
        between = np.abs(cumulative[None, :] - cumulative[:, None]) + np.minimum.outer(
            np.arange(c), np.arange(c)
        ).choose(margin)
        distance = (between - (margin[:, None] + margin[None, :]) / 2) ** 2
        distance[np.arange(c), np.arange(c)] = 0.0
    else:
        distance = 1.0 - np.eye(c)
    expected = (np.outer(margin, margin) * distance).sum() / (n - 1)
    return float(1.0 - (coincidence * distance).sum() / expected) if expected > 0 else math.nan


def _ac1(t: _Totals) -> float:
    observed = _ratio(t.observed, t.questions_pairable)
    share = t.shares / t.questions if t.questions > 0 else t.shares
    chance = float((share * (1 - share)).sum() / (len(share) - 1))
    return (observed - chance) / (1 - chance)


def _fleiss(t: _Totals) -> float:
    observed = _ratio(t.observed, t.questions_pairable)
    total = t.pairable.sum()
    if total <= 0:
        return math.nan
    chance = float(((t.pairable / total) ** 2).sum())
    return (observed - chance) / (1 - chance) if chance < 1 else math.nan


def _with_interval(
    name: str, function: Callable[[Floats], float], sums: Floats, z: float, n: int
) -> Coefficient:
    """Delta method: the variance of f(total) is Σ over clusters of (∇f · (part − mean))²."""
    if not len(sums):
        return Coefficient(name, math.nan, math.nan, math.nan, 0)
    total = sums.sum(axis=0)
    value = function(total)
    if math.isnan(value):
        return Coefficient(name, value, math.nan, math.nan, n)
    gradient = np.zeros(len(total))
    for i in np.flatnonzero((sums != 0).any(axis=0)):
        step = 1e-5 * max(abs(total[i]), 1.0)
        up, down = total.copy(), total.copy()
        up[i] += step
        down[i] -= step
        gradient[i] = (function(up) - function(down)) / (2 * step)
    k = len(sums)
    influence = sums @ gradient
    influence = influence - influence.mean()
    spread = math.sqrt(float((influence**2).sum()) * k / max(k - 1, 1))
    if not math.isfinite(spread) or k < 2:
        return Coefficient(name, value, math.nan, math.nan, n)
    if name.startswith(("prevalence", "observed")):
        # Wilson's interval with as many draws as would have this standard error; clusters where it is 0.
        draws = value * (1 - value) / spread**2 if spread > 0 and 0 < value < 1 else float(k)
        centre = (value + z * z / (2 * draws)) / (1 + z * z / draws)
        half = z / (1 + z * z / draws) * math.sqrt(value * (1 - value) / draws + (z / (2 * draws)) ** 2)
        return Coefficient(name, value, max(centre - half, 0.0), min(centre + half, 1.0), n)
    return Coefficient(name, value, max(value - z * spread, -1.0), min(value + z * spread, 1.0), n)
