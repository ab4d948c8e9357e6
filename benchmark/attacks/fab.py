"""The fast adaptive boundary attack (FAB)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from benchmark.attacks.attack import Attack, ClosestState, Runs, common
from benchmark.attacks.execution import Losses, Net, worth_backward
from benchmark.attacks.geometry import cached_rows, norm_of, per_row, random_start, to_hyperplane
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
        gap: Value of the linearised boundary at `iterate`, (B,).
        normal: Its normal, (B, C, H, W).
        fresh: Whether `gap` and `normal` are those of `iterate` already, bool (B,).
        calm: Iterations since the last that crossed the boundary, int64 (B,).
        spell: How many there were between the two crossings before, int64 (B,).
    """

    iterate: torch.Tensor
    classes: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    low_margin: torch.Tensor
    high_margin: torch.Tensor
    best_margin: torch.Tensor
    segment: torch.Tensor
    gap: torch.Tensor
    normal: torch.Tensor
    fresh: torch.Tensor
    calm: torch.Tensor
    spell: torch.Tensor


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
            gap=zero.clone(),
            normal=torch.zeros_like(x0),
            fresh=torch.zeros(rows, dtype=torch.bool, device=x0.device),
            calm=torch.zeros_like(runs.unit),
            spell=torch.full_like(runs.unit, 2),
        )

    def step(self, net: Net, state: FABState) -> None:
        """One iteration, or one evaluation of the final search for rows whose iterations are over."""
        searching = state.step >= self.steps
        looking = bool(searching.any())
        distance = torch.empty_like(state.distance)
        iterating = (~searching).nonzero()[:, 0]
        if len(iterating):
            self._linearise(net, state, iterating[~state.fresh[iterating]])
            for some in torch.split(iterating, cached_rows(state.x0)):
                self._place(state, some, self._towards_boundary(state, some), distance)
        if looking:
            share = self._share(state)
            for some in torch.split(searching.nonzero()[:, 0], cached_rows(state.x0)):
                x0 = state.x0[some]
                points = x0 + per_row(share[some], x0) * (state.segment[some] - x0)
                self._place(state, some, points, distance)

        left = self._look(net, state, searching)
        gap = margin(state.logits, state.inside)
        better = left & (distance < state.distance)
        rows = better.nonzero()[:, 0]
        state.best[rows] = state.point[rows]
        state.distance = torch.where(better, distance, state.distance)
        state.best_margin = torch.where(better, gap, state.best_margin)

        if looking:
            state.high = torch.where(searching & left, share, state.high)
            state.high_margin = torch.where(searching & left, gap, state.high_margin)
            state.low = torch.where(searching & ~left, share, state.low)
            state.low_margin = torch.where(searching & ~left, gap, state.low_margin)
        state.iterate.copy_(state.point)
        for some in torch.split((left & ~searching).nonzero()[:, 0], cached_rows(state.x0)):
            x0 = state.x0[some]
            state.iterate[some] = x0 + self.beta * (state.point[some] - x0)
        state.spell = torch.where(left, state.calm, state.spell)
        state.calm = (state.calm + 1).masked_fill(left, 0)

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

    def _place(
        self, state: FABState, rows: torch.Tensor, points: torch.Tensor, distance: torch.Tensor
    ) -> None:
        """Make these the points to evaluate next, and note how far away they are."""
        state.point[rows] = points
        distance[rows] = norm_of(points.sub_(state.x0[rows]), self.norm)

    def _losses(self, state: FABState, rows: torch.Tensor) -> Losses:
        """What the given rows' boundaries are the zeros of."""
        inside, classes = state.inside[rows], state.classes[rows]
        return lambda z, r: z.gather(1, classes[r]) - best_inside(z, inside[r])[:, None]

    def _look(self, net: Net, state: FABState, searching: torch.Tensor) -> torch.Tensor:
        """Evaluate the points; whether they have left, (B,).

        A point that has not is the next iterate, so its logits and its gradient can come from one forward
        pass. Rows fall into a rhythm: they cross after every so many iterations. So a gradient is asked for
        where the rhythm says that the row will not cross. A wrong guess costs time and changes nothing.
        """
        state.fresh = torch.zeros_like(state.fresh)
        guess = ~searching & (state.step + 1 < self.steps) & (state.calm < state.spell)
        # Full blocks only, with rows that may be of use in them if need be.
        order, size = guess.long().argsort(descending=True, stable=True), net.at_once
        count = int(guess.sum())
        if size is not None:
            count += size - count % size if worth_backward(count % size, size) else -(count % size)
        if not self.targeted or size is None or count <= 0:
            # Where all rows run at once, two passes would cost more than they save.
            state.logits = net.logits(state.point)
            return has_left(state.logits, state.inside)
        rows, others = order[:count], order[count:]
        state.logits = torch.empty_like(state.logits)
        if len(others):
            state.logits[others] = net.logits(state.point[others])
        losses, inside = self._losses(state, rows), state.inside[rows]
        state.logits[rows], gap, normal, given = net.gradient_where(
            state.point[rows], lambda z, r: losses(z, r)[:, 0], lambda z, r: ~has_left(z, inside[r])
        )
        left = has_left(state.logits, state.inside)
        kept = (given & ~left[rows]).nonzero()[:, 0]
        state.gap[rows[kept]] = gap[kept]
        state.normal[rows[kept]] = normal[kept]
        state.fresh[rows[kept]] = True
        return left

    def _linearise(self, net: Net, state: FABState, rows: torch.Tensor) -> None:
        """Find the boundaries seen from the iterates of the given rows."""
        if not len(rows):
            return
        _, gaps, normals = net.gradients(state.iterate[rows], self._losses(state, rows))
        if normals.shape[1] == 1:
            state.gap[rows], state.normal[rows] = gaps[:, 0], normals[:, 0]
            return
        # The boundary that is nearest in the dual norm.
        dual = normals.flatten(2).abs().sum(2) if self.norm == "linf" else normals.flatten(2).norm(dim=2)
        nearest = (gaps.abs() / dual.clamp_min(1e-12)).argmin(1)
        pick = torch.arange(len(rows), device=rows.device)
        state.gap[rows], state.normal[rows] = gaps[pick, nearest], normals[pick, nearest]

    def _towards_boundary(self, state: FABState, rows: torch.Tensor) -> torch.Tensor:
        """The next proposals of the given rows, (R, C, H, W)."""
        x, x0, gap, w = state.iterate[rows], state.x0[rows], state.gap[rows], state.normal[rows]
        flat = state.flat[rows]
        if bool(flat.any()):
            state.flat[rows] = flat & ~w.flatten(1).any(1)
        away = x0 - x
        gap0 = gap + (w * away).flatten(1).sum(1)
        step, step0 = to_hyperplane(x, w, gap, self.norm), to_hyperplane(x0, w, gap0, self.norm)
        length, length0 = norm_of(step, self.norm), norm_of(step0, self.norm)
        alpha = per_row((length / (length + length0).clamp_min(1e-12)).clamp(max=self.alpha_max), x)
        # (1 - alpha) (x + overshoot * step) + alpha (x0 + overshoot * step0), in place.
        moved = step.mul_(self.overshoot * (1 - alpha)).add_(step0.mul_(self.overshoot * alpha))
        return x.add_(away.mul_(alpha)).add_(moved).clamp_(0, 1)
