"""How many raters and items a study needs: simulated with the very test that will be used.

A simulated answer of rater r to item i in arm a agrees with probability logit⁻¹(β_a + u_r + v_i), with u and
v normal. β_a is set so that the arm's agreement, averaged over raters and items, is the one that is assumed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import expit

from annotations.errors import BeyondError
from annotations.study.analysis import Responses, holm
from annotations.study.preregistration import ARMS

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Plan:
    """What is assumed and what is planned.

    Attributes:
        agreement: Agreement in each arm, in (0, 1); the first arm is the one without explanation.
        raters: Raters in each arm.
        items: Items that each rater judges; all arms have the same.
        rater_sd: Standard deviation of raters, in log-odds.
        item_sd: Standard deviation of items, in log-odds.
        alpha: Level of the test after correction.
        arms: Names of the arms.
    """

    agreement: tuple[float, ...]
    raters: int
    items: int
    rater_sd: float = 0.5
    item_sd: float = 1.0
    alpha: float = 0.05
    arms: tuple[str, ...] = ARMS

    def __post_init__(self) -> None:
        if len(self.agreement) != len(self.arms) or len(self.arms) < 2:
            raise BeyondError(f"agreement for {len(self.agreement)} arms, but there are {len(self.arms)}")
        if not all(0 < share < 1 for share in self.agreement):
            raise BeyondError("assumed agreement must lie strictly between 0 and 1")
        if self.raters < 2 or self.items < 1:
            raise BeyondError("a plan needs at least two raters an arm and one item")
        if self.rater_sd < 0 or self.item_sd < 0 or not 0 < self.alpha < 1:
            raise BeyondError("standard deviations must be at least 0 and alpha in (0, 1)")


@dataclass(frozen=True)
class Power:
    """How often the planned analysis finds each contrast.

    Attributes:
        plan: The plan.
        contrasts: (arm, versus) each.
        power: Share of simulations with a corrected p value of at most alpha, of each contrast.
        any: Share of simulations in which at least one contrast is found.
        simulations: How many.
    """

    plan: Plan
    contrasts: tuple[tuple[str, str], ...]
    power: tuple[float, ...]
    any: float
    simulations: int

    def error(self, share: float) -> float:
        """Half-width of the 95 % interval of a share of the simulations."""
        return 1.96 * math.sqrt(max(share * (1 - share), 1e-12) / self.simulations)


def simulate(plan: Plan, rng: np.random.Generator) -> Responses:
    """One study as planned, with made-up answers."""
    raters = plan.raters * len(plan.arms)
    arm = np.repeat(np.arange(len(plan.arms)), plan.raters)
    chance = _chances(plan, rng, 1)[0]
    value = (rng.random((raters, plan.items)) < chance).astype(np.float64)
    rater, item = np.divmod(np.arange(raters * plan.items), plan.items)
    return Responses(rater, item, value.ravel(), arm, plan.items, plan.arms)


def power(
    plan: Plan,
    *,
    simulations: int = 1000,
    permutations: int = 999,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Power:
    """Power of the permutation tests with Holm's correction, over all contrasts between arms.

    Args:
        plan: What is assumed.
        simulations: Studies to simulate; 1000 know a power of 80 % to ± 2.5 points.
        permutations: Of each test; the same ones for all studies.
        seed: Of everything.
        progress: Called with the number of simulations just done.
    """
    rng = np.random.default_rng(seed)
    a = len(plan.arms)
    pairs = [(j, i) for i in range(a) for j in range(i + 1, a)]
    # Every rater judges as many items, so a difference of means is one of sums over raters.
    half = plan.raters
    base = np.repeat([1.0, -1.0], half)
    dealt = rng.permuted(np.tile(base, (permutations, 1)), axis=1)
    found = np.zeros(len(pairs))
    either = 0
    step = max(1, min(50, simulations))
    for start in range(0, simulations, step):
        n = min(step, simulations - start)
        chance = _chances(plan, rng, n)
        sums = rng.random(chance.shape)
        sums = (sums < chance).sum(axis=2).astype(np.float64).reshape(n, a, half)
        p = np.empty((n, len(pairs)))
        for at, (arm, versus) in enumerate(pairs):
            both = np.concatenate([sums[:, arm], sums[:, versus]], axis=1)
            observed = np.abs(both @ base)
            extreme = (np.abs(both @ dealt.T) >= observed[:, None] - 1e-9).sum(axis=1)
            p[:, at] = (extreme + 1) / (permutations + 1)
        significant = np.array([holm(row) <= plan.alpha for row in p])
        found += significant.sum(axis=0)
        either += int(significant.any(axis=1).sum())
        if progress is not None:
            progress(n)
    return Power(
        plan,
        tuple((plan.arms[i], plan.arms[j]) for i, j in pairs),
        tuple(float(x) for x in found / simulations),
        either / simulations,
        simulations,
    )


def raters_needed(
    plan: Plan,
    *,
    target: float = 0.8,
    contrast: tuple[str, str] | None = None,
    most: int = 2000,
    simulations: int = 1000,
    seed: int = 0,
    progress: Callable[[Power], None] | None = None,
    advance: Callable[[int], None] | None = None,
) -> Power:
    """The fewest raters an arm with which a contrast has the power that is wanted, and that power.

    Args:
        plan: What is assumed; its number of raters is where the search starts.
        target: Power wanted.
        contrast: (arm, versus); by default the second arm against the first.
        most: Give up beyond so many raters an arm.
        simulations: For each number that is tried.
        seed: Of everything.
        progress: Called with each power that was computed.
        advance: Called with the number of simulations just done.

    Raises:
        BeyondError: The contrast is none of the plan's, or even `most` raters are too few.
    """
    wanted = contrast or (plan.arms[1], plan.arms[0])
    known: dict[int, Power] = {}

    def reached(raters: int) -> bool:
        if raters not in known:
            known[raters] = power(
                replace(plan, raters=raters), simulations=simulations, seed=seed, progress=advance
            )
            if progress is not None:
                progress(known[raters])
        result = known[raters]
        if wanted not in result.contrasts:
            names = ", ".join(f"{a} versus {b}" for a, b in result.contrasts)
            raise BeyondError(f"no contrast {wanted[0]} versus {wanted[1]}; there are {names}")
        return result.power[result.contrasts.index(wanted)] >= target

    high = max(2, plan.raters)
    while not reached(high):
        if high >= most:
            raise BeyondError(
                f"{most} raters an arm give less than {target:.0%} power for {wanted[0]} versus {wanted[1]}; "
                "assume a larger effect, or use more items"
            )
        high = min(most, 2 * high)
    low = 1
    while high - low > 1:
        middle = (low + high) // 2
        if middle >= 2 and reached(middle):
            high = middle
        else:
            low = middle
    reached(high)
    return known[high]


def curve(
    plan: Plan,
    raters: Sequence[int],
    *,
    simulations: int = 1000,
    seed: int = 0,
    advance: Callable[[int], None] | None = None,
) -> list[Power]:
    """Power of a plan with other numbers of raters an arm.

    Args:
        plan: What is assumed.
        raters: Raters an arm, for each point.
        simulations: For each point.
        seed: Of everything.
        advance: Called with the number of simulations just done.
    """
    return [
        power(replace(plan, raters=number), simulations=simulations, seed=seed, progress=advance)
        for number in raters
    ]


def _chances(plan: Plan, rng: np.random.Generator, n: int) -> Floats:
    """Probability of each answer in n studies: float64 (n, raters of all arms, items)."""
    beta = np.array([_intercept(share, plan.rater_sd, plan.item_sd) for share in plan.agreement])
    raters = plan.raters * len(plan.arms)
    of_arm = np.repeat(beta, plan.raters)
    u = rng.normal(0, plan.rater_sd, (n, raters, 1))
    v = rng.normal(0, plan.item_sd, (n, 1, plan.items))
    return np.asarray(expit(of_arm[None, :, None] + u + v))


_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(41)


def _intercept(share: float, rater_sd: float, item_sd: float) -> float:
    """β with E[logit⁻¹(β + u + v)] = share, by Gauss–Hermite quadrature (u + v is normal)."""
    spread = math.hypot(rater_sd, item_sd)
    weights: Sequence[float] = _WEIGHTS / _WEIGHTS.sum()

    def off(beta: float) -> float:
        return float(np.dot(weights, expit(beta + spread * _NODES)) - share)

    return float(brentq(off, -60, 60))
