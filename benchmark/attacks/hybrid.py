"""Random search for a basin, then gradient ascent in it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import ClassVar, TypeVar

import torch

from benchmark.attacks.apgd import APGD, APGDState
from benchmark.attacks.attack import Attack, Runs, State, put, take
from benchmark.attacks.execution import Net
from benchmark.attacks.square import Square, SquareState

S = TypeVar("S", bound=State)


@dataclass(frozen=True, kw_only=True)
class _Search(Square):
    """Square Attack whose rows are copied at each step, so it remembers nothing."""

    remembers: ClassVar[bool] = False


@dataclass
class HybridState(State):
    """State of both parts.

    Attributes:
        search: State of the random search.
        ascent: State of the ascent; unused until the search is over.
    """

    search: SquareState
    ascent: APGDState


@dataclass(frozen=True, kw_only=True)
class Hybrid(Attack[HybridState]):
    """Square Attack for some queries, then Auto-PGD from the point it reached.

    Gradient ascent from random starts keeps ending in the same basins; random search leaves them, but is slow
    to reach the bottom of another. This does each for what it is good at. It is no part of AutoAttack.
    Sources of the parts: `benchmark.attacks.square.Square` and `benchmark.attacks.apgd.APGD` with the DLR
    loss.

    Attributes:
        queries: Queries of the search.
        steps: Steps of the ascent.
        restarts: Runs.
    """

    name: ClassVar[str] = "hybrid"

    queries: int = 400
    steps: int = 100
    restarts: int = 2

    @property
    def units(self) -> int:
        """One run a restart."""
        return self.restarts

    @property
    def passes(self) -> float:
        """Those of both parts."""
        return self._search.passes + self._ascent.passes

    def used_gradient(self, steps: int) -> bool:
        """Only the ascent uses gradients."""
        return steps > self.queries

    @cached_property
    def _search(self) -> Square:
        return _Search(norm=self.norm, eps=self.eps, queries=self.queries)

    @cached_property
    def _ascent(self) -> APGD:
        return APGD(norm=self.norm, eps=self.eps, loss="dlr", steps=self.steps)

    def start(self, net: Net, runs: Runs) -> HybridState:
        """Start the search; the ascent gets its first point when the search ends."""
        search, ascent = self._search.start(net, runs), self._ascent.start(net, runs)
        own = {f.name: getattr(search, f.name).clone() for f in fields(State)}
        return HybridState(**own, search=search, ascent=ascent)

    def step(self, net: Net, state: HybridState) -> None:
        """One query or one ascent step, whichever a row is at."""
        searching = state.step < self.queries
        self._advance(net, state, state.search, self._search, searching)
        self._advance(net, state, state.ascent, self._ascent, ~searching)
        state.step += 1
        turning = (state.step == self.queries).nonzero()[:, 0]
        state.ascent.upcoming[turning] = state.search.best[turning]
        seen = state.step > self.queries
        state.flat = torch.where(seen, state.ascent.flat, state.flat)
        state.done = seen & state.ascent.done

    def _advance(self, net: Net, state: HybridState, part: S, attack: Attack[S], mask: torch.Tensor) -> None:
        """Move some rows of one part, and show what they evaluated."""
        rows = mask.nonzero()[:, 0]
        if not len(rows):
            return
        some = take(part, rows)
        attack.step(net, some)
        put(part, rows, some)
        state.point[rows] = some.point
        state.logits[rows] = some.logits
