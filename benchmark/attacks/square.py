"""Square Attack: random search without gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from benchmark.attacks.attack import Attack, Runs, State, common, take
from benchmark.attacks.execution import Net
from benchmark.attacks.geometry import norm_of, per_row
from benchmark.attacks.goals import margin
from benchmark.attacks.seeds import uniform

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries after which the share of pixels halves (section 5 of the paper, for 10,000 queries)."""


@dataclass
class SquareState(State):
    """State of Square.

    Attributes:
        best: The best point so far, (B, C, H, W).
        best_margin: Its margin, (B,).
        memory: What `Patches` remembers of `best`, (B, M); M is 0 where nothing is remembered.
        remembered: Side of the squares that `memory` is good for, int64 (B,); 0 for none.
    """

    best: torch.Tensor
    best_margin: torch.Tensor
    memory: torch.Tensor
    remembered: torch.Tensor


def bumps(side: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """The L2 update of one square: two bumps of opposite sign, one in each half, with norm 1.

    Andriushchenko et al. 2020, eq. 2 and figure 3: at Chebyshev distance d from the middle of its half, a
    bump is as high as the sum of 1 / (k + 1)^2 over k >= d.

    Args:
        side: Side s of the square.
        device: Where to make it.

    Returns:
        float64 (s, s).
    """

    def bump(height: int, width: int) -> torch.Tensor:
        n = max(height // 2, width // 2) + 1
        rows = (torch.arange(height, device=device) - height // 2).abs()
        columns = (torch.arange(width, device=device) - width // 2).abs()
        terms = 1.0 / torch.arange(1, n + 1, dtype=torch.float64, device=device) ** 2
        heights = terms.flip(0).cumsum(0).flip(0)
        return heights[torch.maximum(rows[:, None], columns[None, :])]

    upper = side // 2
    parts = [bump(upper, side), -bump(side - upper, side)] if upper else [bump(side, side)]
    square = torch.cat(parts)
    unit: torch.Tensor = square / square.norm()
    return unit


@dataclass(frozen=True, kw_only=True)
class Square(Attack[SquareState]):
    """Square Attack: random squares, kept where they help.

    Andriushchenko, Croce, Flammarion and Hein 2020, "Square Attack: a query-efficient black-box adversarial
    attack via random search", algorithms 1 to 3, on the margin of the logits. L∞ starts from vertical stripes
    of +-eps and sets random squares to +-eps; L2 moves the norm budget of one window into another. Where
    the network allows it, only what an L∞ square can reach is computed again (see `Patches`), with the same
    result.

    Attributes:
        queries: Queries at most.
        share: Share of pixels of the first squares (p).
        restarts: Runs.
    """

    name: ClassVar[str] = "square"
    white_box: ClassVar[bool] = False
    remembers: ClassVar[bool] = True
    """Whether it may remember maps of the network between queries."""

    queries: int = 5000
    share: float = 0.8
    restarts: int = 1

    @property
    def units(self) -> int:
        """One run a restart."""
        return self.restarts

    @property
    def passes(self) -> float:
        """One forward pass a query."""
        return self.queries

    def sides(self, step: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Side of the square at each step, int64 (B,)."""
        table = []
        for halvings in range(len(_HALVINGS) + 1):
            side = round((self.share / 2**halvings * height * width) ** 0.5)
            if self.norm == "l2":
                side = max(side, 3)
                side += 1 - side % 2
            table.append(max(1, min(side, height - 1, width - 1)))
        passed = torch.bucketize(step, torch.tensor(_HALVINGS, device=step.device) + 1, right=True)
        return torch.tensor(table, device=step.device)[passed]

    def start(self, net: Net, runs: Runs) -> SquareState:
        """Nothing is evaluated; the first step queries the starting pattern."""
        rows = len(runs.x0)
        local = self.remembers and self.norm == "linf" and net.patches is not None
        values = net.patches.values if local and net.patches is not None else 0
        return SquareState(
            **common(net, runs),
            best=runs.x0.clone(),
            best_margin=runs.x0.new_full((rows,), -torch.inf),
            memory=runs.x0.new_empty((rows, values)),
            remembered=torch.zeros_like(runs.unit),
        )

    def step(self, net: Net, state: SquareState) -> None:
        """Query one proposal a row and keep it where the margin rises."""
        first = state.step == 0
        if self.norm == "linf":
            self._step_linf(net, state, first)
        else:
            proposal = self._pattern(state) if bool(first.all()) else self._square_l2(state)
            rows = first.nonzero()[:, 0]
            if 0 < len(rows) < len(first):
                proposal[rows] = self._pattern(take(state, rows))
            state.logits = net.logits(proposal)
            state.point = proposal
            self._keep(state)
        state.step += 1
        state.done = state.step >= self.queries

    def _keep(self, state: SquareState) -> torch.Tensor:
        """Keep what was evaluated where the margin rises; those rows, bool (B,)."""
        gap = margin(state.logits, state.inside)
        rises = gap > state.best_margin
        better = rises.nonzero()[:, 0]
        state.best[better] = state.point[better]
        state.best_margin[better] = gap[better]
        return rises

    def _step_linf(self, net: Net, state: SquareState, first: torch.Tensor) -> None:
        """One query with L∞ squares, each evaluated on what it can reach where that is faster."""
        height, width = state.x0.shape[2:]
        sides = self.sides(state.step, height, width)
        proposal, corners = self._squares(state, sides)
        rows = first.nonzero()[:, 0]
        if len(rows):
            proposal[rows] = self._pattern(take(state, rows))
        state.point = proposal
        table = sides.masked_fill(first, 0)
        groups: list[tuple[int, list[int]]] = []
        whole = list(range(len(proposal)))
        if net.patches is not None and state.memory.shape[1]:
            near = [s for s in sorted(set(table.tolist())) if s and net.patches.worthwhile(s, s)]
            groups = [(s, (table == s).nonzero()[:, 0].tolist()) for s in near]
            whole = [r for r in whole if int(table[r]) not in near]
        if not groups:
            state.logits = net.logits(proposal)
            self._keep(state)
            return
        state.logits = torch.empty_like(state.logits)
        if whole:
            state.logits[whole] = net.logits(proposal[whole])
        tried = []
        for side, members in groups:
            # Without a copy where all rows are of one size, which is nearly always.
            memory = state.memory if len(members) == len(proposal) else state.memory[members]
            self._remember(net, state, memory, side, members)
            tops, lefts = [corners[r][0] for r in members], [corners[r][1] for r in members]
            patch = torch.stack(
                [proposal[r, :, t : t + side, s : s + side] for r, t, s in zip(members, tops, lefts)]
            )
            state.logits[members], change = net.query(memory, patch, tops, lefts)
            tried.append((memory, members, change))
        rises = self._keep(state)
        for memory, members, change in tried:
            assert net.patches is not None
            net.patches.accept(memory, [k for k, r in enumerate(members) if rises[r]], change)
            if memory is not state.memory:
                state.memory[members] = memory
        # What was evaluated as a whole has moved on without its memory.
        state.remembered[whole] = 0

    def _remember(
        self, net: Net, state: SquareState, memory: torch.Tensor, side: int, members: list[int]
    ) -> None:
        """Fill the memory of rows that have none for squares of this side."""
        assert net.patches is not None
        for k, row in enumerate(members):
            if int(state.remembered[row]) != side:
                net.patches.remember(state.best[row : row + 1], memory[k : k + 1])
                net.forwards += 1
                state.remembered[row] = side

    def _pattern(self, state: SquareState) -> torch.Tensor:
        """The starting points."""
        x0 = state.x0
        b, c, h, w = x0.shape
        counter = torch.zeros_like(state.key)
        if self.norm == "linf":
            signs = (uniform(state.key, counter, c * w) < 0.5).to(x0.dtype) * 2 - 1
            return (x0 + self.radius * signs.view(b, c, 1, w)).clamp_(0, 1)
        side = max(min(h, w) // 5, 1)
        tile = bumps(side, x0.device).to(x0.dtype)
        down, across = h // side, w // side
        signs = (uniform(state.key, counter, c * down * across) < 0.5).to(x0.dtype) * 2 - 1
        grid = torch.zeros_like(x0)
        tops, lefts = (h - down * side) // 2, (w - across * side) // 2
        tiled = tile.repeat(down, across) * signs.view(b, c, down, across).repeat_interleave(
            side, 2
        ).repeat_interleave(side, 3)
        grid[:, :, tops : tops + down * side, lefts : lefts + across * side] = tiled
        return (x0 + grid * per_row(self.radius / norm_of(grid, "l2"), x0)).clamp_(0, 1)

    def _window(
        self, u: torch.Tensor, side: torch.Tensor, h: int, w: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows (B, H) and columns (B, W) from a random window's corner, and its mask (B, 1, H, W)."""
        top = (u[:, 0] * (h - side + 1)).long()
        left = (u[:, 1] * (w - side + 1)).long()
        down = torch.arange(h, device=u.device)[None, :] - top[:, None]
        across = torch.arange(w, device=u.device)[None, :] - left[:, None]
        mask_down = (down >= 0) & (down < side[:, None])
        mask_across = (across >= 0) & (across < side[:, None])
        return down, across, (mask_down[:, :, None] & mask_across[:, None, :])[:, None]

    def _squares(self, state: SquareState, sides: torch.Tensor) -> tuple[torch.Tensor, list[tuple[int, int]]]:
        """Proposals (B, C, H, W) with one square set to +-eps in each channel, and the squares' corners."""
        x0 = state.x0
        b, c, h, w = x0.shape
        # Three draws of the signs: a draw that changes nothing would waste the query.
        u = uniform(state.key, state.step, 2 + 3 * c)
        tops = (u[:, 0] * (h - sides + 1)).long().tolist()
        lefts = (u[:, 1] * (w - sides + 1)).long().tolist()
        signs = self.radius * ((u[:, 2:] < 0.5).to(x0.dtype).view(b, 3, c, 1, 1) * 2 - 1)
        proposal = state.best.clone()
        for row, (top, left, side) in enumerate(zip(tops, lefts, sides.tolist())):
            window = (row, slice(None), slice(top, top + side), slice(left, left + side))
            for draw in range(3):
                proposal[window] = (x0[window] + signs[row, draw]).clamp_(0, 1)
                # Large squares practically always change something; small ones are cheap to look at again.
                if side > 4 or not torch.equal(proposal[window], state.best[window]):
                    break
        return proposal, list(zip(tops, lefts))

    def _square_l2(self, state: SquareState) -> torch.Tensor:
        x0 = state.x0
        _, c, h, w = x0.shape
        side = self.sides(state.step, h, w)
        u = uniform(state.key, state.step, 5 + c)
        down, across, to = self._window(u[:, 0:2], side, h, w)
        _, _, other = self._window(u[:, 2:4], side, h, w)
        delta = state.best - x0
        # The bumps of each row's own size, laid into its window, upright or on their side.
        sizes, which = torch.unique(side, return_inverse=True)
        largest = int(sizes[-1])
        table = torch.zeros(len(sizes), largest, largest, dtype=x0.dtype, device=x0.device)
        for i, size in enumerate(sizes.tolist()):
            table[i, :size, :size] = bumps(size, x0.device).to(x0.dtype)
        rows, columns = down.clamp(0, largest - 1)[:, :, None], across.clamp(0, largest - 1)[:, None, :]
        upright = (u[:, 4] < 0.5)[:, None, None]
        laid = table[
            which[:, None, None], torch.where(upright, rows, columns), torch.where(upright, columns, rows)
        ]
        signs = (u[:, 5:] < 0.5).to(x0.dtype) * 2 - 1
        pattern = laid[:, None] * signs[:, :, None, None] * to

        inside = delta * to
        here = inside.flatten(2).norm(dim=2)[:, :, None, None]
        fresh = pattern + torch.where(here > 1e-10, inside / here.clamp_min(1e-10), 0.0)
        fresh = fresh / fresh.flatten(2).norm(dim=2).clamp_min(1e-10)[:, :, None, None]
        unused = (self.radius**2 - norm_of(delta, "l2") ** 2).clamp_min(0)
        budget = ((delta * (to | other)).flatten(2).norm(dim=2) ** 2 + unused[:, None] / c).sqrt()
        moved = torch.where(to, fresh * budget[:, :, None, None], torch.where(other, 0.0, delta))
        # Back to the full radius: the box had cut some of it off.
        return (x0 + moved * per_row(self.radius / norm_of(moved, "l2").clamp_min(1e-12), x0)).clamp_(0, 1)
