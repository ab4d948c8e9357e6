"""Auto-PGD."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch

from benchmark.attacks.attack import Attack, Runs, State, common, note_flat, ranked_targets
from benchmark.attacks.execution import Net, chunks
from benchmark.attacks.geometry import cached_rows, per_row, project, random_start, steepest
from benchmark.attacks.goals import cross_entropy, dlr, dlr_targeted

Loss = Literal["ce", "dlr", "dlr-targeted"]

_NAMES: dict[Loss, str] = {"ce": "apgd-ce", "dlr": "apgd-dlr", "dlr-targeted": "apgd-t"}


def checkpoints(steps: int) -> list[int]:
    """The steps after which APGD decides whether to halve its step size.

    Croce and Hein 2020, section 3.1: w_j = ceil(p_j N) with p_0 = 0, p_1 = 0.22 and
    p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06).

    >>> checkpoints(100)
    [22, 41, 57, 70, 80, 87, 93, 99]
    """
    before, now = 0.0, 0.22
    result = []
    while now <= 1:
        # The small term keeps a share such as 0.57 from being rounded up past its own percentage.
        result.append(math.ceil(now * steps - 1e-9))
        before, now = now, now + max(now - before - 0.03, 0.06)
    return result


@dataclass
class APGDState(State):
    """State of APGD; names as in the paper's algorithm 1.

    Attributes:
        upcoming: The point to evaluate next, (B, C, H, W).
        best: The point of the highest loss so far, (B, C, H, W).
        best_gradient: The gradient there, (B, C, H, W).
        best_value: The loss there, (B,).
        value: The loss at `point`, (B,).
        eta: Step size, (B,).
        rises: Steps since the last checkpoint at which the loss rose, int64 (B,).
        checkpoint: How many checkpoints have passed, int64 (B,).
        halved: Whether the last checkpoint halved the step size, bool (B,).
        best_then: `best_value` at the last checkpoint, (B,).
        target: Target class, int64 (B,); unused by the untargeted losses.
    """

    upcoming: torch.Tensor
    best: torch.Tensor
    best_gradient: torch.Tensor
    best_value: torch.Tensor
    value: torch.Tensor
    eta: torch.Tensor
    rises: torch.Tensor
    checkpoint: torch.Tensor
    halved: torch.Tensor
    best_then: torch.Tensor
    target: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class APGD(Attack[APGDState]):
    """Auto-PGD: projected gradient ascent with momentum and a step size that adapts.

    Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks", algorithm 1, with the cross-entropy, the difference of logits ratio (DLR), or the
    targeted DLR towards each of the likeliest classes. The success check uses the forward pass that the
    gradient needs anyway, so a run ends at the first adversarial point and not after its budget.

    Attributes:
        loss: Which loss.
        steps: Steps N.
        restarts: Random starts (of each target, if targeted).
        targets: Number of target classes, if targeted.
        extra: Further random starts, one each for the likeliest targets, if targeted.
        rho: Share of rising steps below which a checkpoint halves the step size.
        momentum: Weight alpha of the new step.
    """

    name: ClassVar[str] = "apgd"

    loss: Loss = "ce"
    steps: int = 100
    restarts: int = 1
    targets: int = 9
    extra: int = 0
    rho: float = 0.75
    momentum: float = 0.75

    @property
    def label(self) -> str:
        """Name with the loss: `apgd-ce`, `apgd-dlr` or `apgd-t`."""
        return _NAMES[self.loss]

    @property
    def units(self) -> int:
        """One run a restart and target, and the extra ones."""
        return self.restarts * self.targets + self.extra if self.loss == "dlr-targeted" else self.restarts

    @property
    def passes(self) -> float:
        """A gradient at each point visited."""
        return 3 * (self.steps + 1)

    @cached_property
    def _checkpoints(self) -> list[int]:
        # One past the end, so that looking up "the next" always works.
        return [0, *checkpoints(self.steps), self.steps + 2]

    def start(self, net: Net, runs: Runs) -> APGDState:
        """Begin at a random point; the targeted loss first ranks the classes at the clean image."""
        rows, x0 = len(runs.x0), runs.x0
        first = random_start(x0, runs.key, self.radius, self.norm)
        low = x0.new_full((rows,), -torch.inf)
        target = runs.unit * 0
        if self.loss == "dlr-targeted":
            target = ranked_targets(net, runs, self.targets)
        return APGDState(
            **common(net, runs),
            upcoming=first,
            best=first.clone(),
            best_gradient=torch.zeros_like(x0),
            best_value=low,
            value=low.clone(),
            eta=x0.new_full((rows,), 2 * self.radius),
            rises=runs.unit * 0,
            checkpoint=runs.unit * 0,
            # With nothing behind it the first checkpoint can only judge by the rises.
            halved=torch.ones(rows, dtype=torch.bool, device=x0.device),
            best_then=low.clone(),
            target=target,
        )

    def _loss(self, logits: torch.Tensor, state: APGDState, rows: slice) -> torch.Tensor:
        inside = state.inside[rows]
        if self.loss == "ce":
            return cross_entropy(logits, inside)
        if self.loss == "dlr":
            return dlr(logits, inside)
        return dlr_targeted(logits, inside, state.target[rows])

    def step(self, net: Net, state: APGDState) -> None:
        """Evaluate the upcoming point, with its gradient, adapt the step size and move on."""
        before, x = state.point, state.upcoming
        state.logits, value, gradient = net.gradient(x, lambda z, r: self._loss(z, state, r))
        note_flat(state, gradient)
        first = state.step == 0

        better = (value > state.best_value).nonzero()[:, 0]
        state.best[better] = x[better]
        state.best_gradient[better] = gradient[better]
        state.best_value = torch.maximum(state.best_value, value.nan_to_num(nan=-torch.inf))
        state.rises += ((value > state.value) & ~first).long()
        state.value = value

        table = torch.tensor(self._checkpoints, device=x.device)
        due, last = table[state.checkpoint + 1], table[state.checkpoint]
        check = state.step == due
        origin = x
        if bool(check.any()):
            few = state.rises < self.rho * (due - last)
            stuck = ~state.halved & (state.best_value <= state.best_then)
            halve = check & (few | stuck)
            state.eta = torch.where(halve, state.eta / 2, state.eta)
            state.halved = torch.where(check, halve, state.halved)
            state.best_then = torch.where(check, state.best_value, state.best_then)
            state.rises = state.rises.masked_fill(check, 0)
            state.checkpoint += check.long()
            back = halve.nonzero()[:, 0]
            if len(back):
                # Back to the best point, without the momentum that led away from it.
                origin, before = x.clone(), before.clone()
                origin[back] = state.best[back]
                before[back] = state.best[back]
                gradient[back] = state.best_gradient[back]

        alpha = torch.where(first, 1.0, self.momentum).to(x.dtype)
        upcoming = torch.empty_like(x)
        for some in chunks(len(x), cached_rows(x)):
            eta, weight, start = per_row(state.eta[some], x), per_row(alpha[some], x), origin[some]
            ascent = steepest(gradient[some], self.norm).mul_(eta).add_(start)
            ascent = project(ascent, state.x0[some], self.radius, self.norm)
            # x + alpha (z - x) + (1 - alpha) (x - before), in place; the first step has no momentum.
            moved = ascent.sub_(start).mul_(weight).add_(start)
            moved.add_((start - before[some]).mul_(1 - weight))
            upcoming[some] = project(moved, state.x0[some], self.radius, self.norm)
        state.upcoming = upcoming
        state.point = x
        state.step += 1
        state.done = state.step > self.steps
