"""The fast adaptive boundary attack (FAB)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from benchmark.attacks.attack import Attack, ClosestState, Runs, common
from benchmark.attacks.execution import Net
from benchmark.attacks.geometry import norm_of, per_row, random_start, to_hyperplane
from benchmark.attacks.goals import best_inside, has_left, margin, targets


@dataclass
class FABState(ClosestState):
    """State of FAB.

    Attributes:
        iterate: Where the boundary is linearised next, (B, C, H, W).
        classes: The classes whose boundaries are considered, int64 (B, J).
        low: During the final search, the share of the way to `best` known not to be adversarial, (B,).
        high: The share known to be adversarial, (B,).
        low_margin: Margin at `low`, (B,).
        high_margin: Margin at `high`, (B,).
        best_margin: Margin at `best`, (B,).
        segment: Where the segment that is searched ends, (B, C, H, W).
    """

    iterate: torch.Tensor
    classes: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    low_margin: torch.Tensor
    high_margin: torch.Tensor
    best_margin: torch.Tensor
    segment: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class FAB(Attack[FABState]):
    """FAB: small steps to the linearised decision boundary, drawn back to the original image.

    Croce and Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary attack",
    algorithm 1. Each iteration projects both the iterate and the original onto the linearised boundary within
    the box, mixes the two, overshoots, and, once adversarial, steps back towards the original; a final search
    on the segment to the original ends the run. The targeted form looks at one class a run and so needs one
    backward pass an iteration, whatever the number of classes. With a radius, a point inside it ends the run.

    Attributes:
        targeted: One run for each of the likeliest classes, or all of them in one run.
        targets: How many classes.
        steps: Iterations.
        restarts: Runs a class; the first begins at the image, the others at random within half the radius.
        alpha_max: The largest weight of the original.
        overshoot: Factor eta on the projections.
        beta: Backward step.
        search: Evaluations of the final search.
    """

    name: ClassVar[str] = "fab"

    targeted: bool = False
    targets: int = 9
    steps: int = 100
    restarts: int = 1
    alpha_max: float = 0.1
    overshoot: float = 1.05
    beta: float = 0.9
    search: int = 3

    @property
    def label(self) -> str:
        """`fab-t` if targeted, else `fab`."""
        return "fab-t" if self.targeted else "fab"

    @property
    def minimal(self) -> bool:
        """FAB looks for the closest adversarial."""
        return True

    @property
    def units(self) -> int:
        """One run a restart, and a target if targeted."""
        return self.restarts * (self.targets if self.targeted else 1)

    @property
    def passes(self) -> float:
        """A forward pass, backward passes and a check each iteration."""
        return self.steps * (2 + 2 * (1 if self.targeted else self.targets)) + self.search

    def start(self, net: Net, runs: Runs) -> FABState:
        """Rank the classes at the clean image."""
        x0, rows = runs.x0, len(runs.x0)
        logits = net.logits(x0)
        count = min(self.targets, logits.shape[1] - 1)
        ranked = targets(logits, runs.inside, self.targets if self.targeted else count)
        classes = ranked.gather(1, (runs.unit % self.targets)[:, None]) if self.targeted else ranked
        restart = runs.unit // self.targets if self.targeted else runs.unit
        iterate = x0.clone()
        again = (restart > 0).nonzero()[:, 0]
        if len(again):
            reach = 0.5 * (self.eps if self.eps is not None else (0.3 if self.norm == "linf" else 1.0))
            iterate[again] = random_start(x0[again], runs.key[again], reach, self.norm)
        zero = x0.new_zeros(rows)
        return FABState(
            **common(net, runs),
            best=x0.clone(),
            distance=x0.new_full((rows,), torch.inf),
            iterate=iterate,
            classes=classes,
            low=zero,
            high=zero + 1,
            low_margin=margin(logits, runs.inside),
            high_margin=zero.clone(),
            best_margin=zero.clone(),
            segment=x0.clone(),
        )

    def step(self, net: Net, state: FABState) -> None:
        """One iteration, or one evaluation of the final search for rows whose iterations are over."""
        searching = state.step >= self.steps
        proposal = state.iterate.clone()
        iterating = (~searching).nonzero()[:, 0]
        if len(iterating):
            proposal[iterating] = self._towards_boundary(net, state, iterating)
        if bool(searching.any()):
            share = self._share(state)
            on_segment = state.x0 + per_row(share, state.x0) * (state.segment - state.x0)
            proposal = torch.where(per_row(searching, proposal), on_segment, proposal)

        state.point = proposal
        state.logits = net.logits(proposal)
        gap = margin(state.logits, state.inside)
        left = has_left(state.logits, state.inside)
        distance = norm_of(proposal - state.x0, self.norm)
        better = left & (distance < state.distance)
        rows = better.nonzero()[:, 0]
        state.best[rows] = proposal[rows]
        state.distance = torch.where(better, distance, state.distance)
        state.best_margin = torch.where(better, gap, state.best_margin)

        if bool(searching.any()):
            state.high = torch.where(searching & left, share, state.high)
            state.high_margin = torch.where(searching & left, gap, state.high_margin)
            state.low = torch.where(searching & ~left, share, state.low)
            state.low_margin = torch.where(searching & ~left, gap, state.low_margin)
        back = state.x0 + self.beta * (proposal - state.x0)
        state.iterate = torch.where(per_row(left & ~searching, proposal), back, proposal)

        state.step += 1
        ended = (state.step == self.steps).nonzero()[:, 0]
        state.segment[ended] = state.best[ended]
        state.high_margin[ended] = state.best_margin[ended]
        nothing = (state.step >= self.steps) & state.distance.isinf()
        state.done = nothing | (state.step >= self.steps + self.search)

    def _share(self, state: FABState) -> torch.Tensor:
        """Where on the segment to look: where the margin would be zero if it were linear, a little beyond."""
        width = state.high - state.low
        fall = state.low_margin / (state.low_margin - state.high_margin).clamp_max(-1e-12)
        return state.low + width * (fall + 0.02).clamp(0.02, 0.98)

    def _towards_boundary(self, net: Net, state: FABState, rows: torch.Tensor) -> torch.Tensor:
        """The next proposals of the given rows, (R, C, H, W)."""
        x, x0, inside = state.iterate[rows], state.x0[rows], state.inside[rows]
        classes = state.classes[rows]
        _, gaps, normals = net.gradients(
            x, lambda z, r: z.gather(1, classes[r]) - best_inside(z, inside[r])[:, None]
        )
        if normals.shape[1] == 1:
            gap, w = gaps[:, 0], normals[:, 0]
        else:
            # The boundary that is nearest in the dual norm.
            dual = normals.flatten(2).abs().sum(2) if self.norm == "linf" else normals.flatten(2).norm(dim=2)
            nearest = (gaps.abs() / dual.clamp_min(1e-12)).argmin(1)
            pick = torch.arange(len(rows), device=x.device)
            gap, w = gaps[pick, nearest], normals[pick, nearest]
        flat = state.flat[rows]
        state.flat[rows] = flat & ~w.flatten(1).any(1)

        gap0 = gap + (w * (x0 - x)).flatten(1).sum(1)
        both = to_hyperplane(torch.cat([x, x0]), torch.cat([w, w]), torch.cat([gap, gap0]), self.norm)
        step, step0 = both.chunk(2)
        length, length0 = norm_of(step, self.norm), norm_of(step0, self.norm)
        alpha = per_row((length / (length + length0).clamp_min(1e-12)).clamp(max=self.alpha_max), x)
        mixed = (1 - alpha) * (x + self.overshoot * step) + alpha * (x0 + self.overshoot * step0)
        return mixed.clamp_(0, 1)
