"""The one interface of all attacks: state machines over rows.

An attack never sees a data set. It starts some runs (a run is one restart or target of one image, and a row
of every tensor in its state), and moves all rows one step at a time; each row keeps its own count of steps.
So a row can leave after any step and another can take its place, while the rest go on. Nothing in a row
depends on the other rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Generic, TypeVar

import torch

from annotations.errors import BeyondError
from benchmark.attacks.execution import Net
from benchmark.attacks.geometry import Norm
from benchmark.attacks.goals import targets


@dataclass
class Runs:
    """Runs to start.

    Attributes:
        x0: Clean images, (B, C, H, W) in [0, 1].
        inside: The classes each prediction must leave, bool (B, K).
        unit: Which restart or target each run is, int64 (B,).
        key: Key of each run's random numbers, int64 (B,), see `benchmark.attacks.seeds`.
    """

    x0: torch.Tensor
    inside: torch.Tensor
    unit: torch.Tensor
    key: torch.Tensor


@dataclass
class State:
    """What every attack keeps for each row. All fields are tensors with one row a run.

    Attributes:
        x0: Clean images, (B, C, H, W) in [0, 1].
        inside: The classes to leave, bool (B, K).
        key: Key of the random numbers, int64 (B,).
        step: Steps made, int64 (B,).
        point: The point evaluated last, (B, C, H, W).
        logits: The logits at `point`, (B, K).
        flat: Whether every gradient so far was exactly zero, bool (B,).
        done: Whether the run is over, bool (B,).
    """

    x0: torch.Tensor
    inside: torch.Tensor
    key: torch.Tensor
    step: torch.Tensor
    point: torch.Tensor
    logits: torch.Tensor
    flat: torch.Tensor
    done: torch.Tensor


@dataclass
class ClosestState(State):
    """State of an attack that looks for the closest adversarial.

    Attributes:
        best: The closest adversarial so far, (B, C, H, W); the clean image where there is none.
        distance: Its distance, (B,); infinite where there is none.
    """

    best: torch.Tensor
    distance: torch.Tensor


S = TypeVar("S", bound=State)


def take(state: S, rows: torch.Tensor) -> S:
    """The given rows (int64 or bool) of a state, and of the states inside it, as copies."""
    changes: dict[str, Any] = {}
    for f in fields(state):
        value = getattr(state, f.name)
        changes[f.name] = take(value, rows) if isinstance(value, State) else value[rows]
    return replace(state, **changes)


def put(state: S, rows: torch.Tensor, other: S) -> None:
    """Overwrite the given rows (int64) of a state, in place, with the rows of another."""
    for f in fields(state):
        value, new = getattr(state, f.name), getattr(other, f.name)
        if isinstance(value, State):
            put(value, rows, new)
        else:
            value[rows] = new


def join(parts: Sequence[S]) -> S:
    """One state of the rows of several."""
    changes: dict[str, Any] = {}
    for f in fields(parts[0]):
        values = [getattr(p, f.name) for p in parts]
        changes[f.name] = join(values) if isinstance(values[0], State) else torch.cat(values)
    return replace(parts[0], **changes)


@dataclass(frozen=True, kw_only=True)
class Attack(ABC, Generic[S]):
    """One attack with its settings.

    Attributes:
        norm: Norm of the threat model.
        eps: Radius; None for an attack that looks for the smallest perturbation.
    """

    name: ClassVar[str]
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    white_box: ClassVar[bool] = True
    """Whether it needs gradients."""

    norm: Norm
    eps: float | None = None

    def __post_init__(self) -> None:
        if self.norm not in self.norms:
            raise BeyondError(f"{self.name} is not defined for {self.norm}: use {' or '.join(self.norms)}")
        if self.eps is not None and not self.eps > 0:
            raise BeyondError(f"{self.name} needs a positive radius, got {self.eps}")
        if self.eps is None and not self.minimal:
            raise BeyondError(f"{self.name} needs a radius: pass eps=")

    @property
    def minimal(self) -> bool:
        """Whether it can look for the smallest perturbation."""
        return False

    @property
    def radius(self) -> float:
        """The radius, for attacks that have one."""
        if self.eps is None:
            raise BeyondError(f"{self.name} was made without a radius: pass eps=")
        return self.eps

    def used_gradient(self, steps: int) -> bool:
        """Whether a success after so many steps came with the help of gradients."""
        return self.white_box and steps > 0

    @property
    def units(self) -> int:
        """Runs an image gets: restarts times targets."""
        return 1

    @property
    @abstractmethod
    def passes(self) -> float:
        """Forward passes that one run costs at most, a backward pass counted as two (for time estimates)."""

    @abstractmethod
    def start(self, net: Net, runs: Runs) -> S:
        """The state of new runs. Costs at most one forward pass."""

    @abstractmethod
    def step(self, net: Net, state: S) -> None:
        """Move every row one step, in place, and leave what was evaluated in `point` and `logits`."""


def common(net: Net, runs: Runs) -> dict[str, torch.Tensor]:
    """The fields of `State` at the start, with nothing evaluated."""
    rows, classes = runs.inside.shape
    device = runs.x0.device
    return {
        "x0": runs.x0,
        "inside": runs.inside,
        "key": runs.key,
        "step": torch.zeros(rows, dtype=torch.int64, device=device),
        "point": runs.x0.clone(),
        "logits": torch.full((rows, classes), torch.nan, dtype=net.dtype, device=device),
        "flat": torch.ones(rows, dtype=torch.bool, device=device),
        "done": torch.zeros(rows, dtype=torch.bool, device=device),
    }


def ranked_targets(net: Net, runs: Runs, count: int) -> torch.Tensor:
    """The target class of each run, int64 (B,): the unit-th likeliest class outside the set at the image."""
    ranked = targets(net.logits(runs.x0), runs.inside, count)
    return ranked.gather(1, (runs.unit % count)[:, None])[:, 0]


def note_flat(state: State, gradient: torch.Tensor) -> None:
    """Clear `flat` where a gradient is not zero."""
    if bool(state.flat.any()):
        state.flat &= ~gradient.flatten(1).any(1)
