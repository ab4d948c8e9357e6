"""FGSM and PGD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from benchmark.attacks.attack import Attack, Runs, State, common, note_flat
from benchmark.attacks.execution import Net
from benchmark.attacks.geometry import project, random_start, steepest
from benchmark.attacks.goals import cross_entropy


@dataclass(frozen=True, kw_only=True)
class FGSM(Attack[State]):
    """The fast gradient (sign) method.

    Goodfellow, Shlens and Szegedy 2015, "Explaining and harnessing adversarial examples", section 4: one step
    of length eps along the sign of the gradient of the cross-entropy; for L2 along the gradient itself.
    """

    name: ClassVar[str] = "fgsm"

    @property
    def passes(self) -> float:
        """One gradient and one evaluation."""
        return 4

    def start(self, net: Net, runs: Runs) -> State:
        """Nothing to prepare."""
        return State(**common(net, runs))

    def step(self, net: Net, state: State) -> None:
        """Take the one step and evaluate it."""
        _, _, gradient = net.gradient(state.x0, lambda z, r: cross_entropy(z, state.inside[r]))
        note_flat(state, gradient)
        state.point = project(
            state.x0 + self.radius * steepest(gradient, self.norm), state.x0, self.radius, self.norm
        )
        state.logits = net.logits(state.point)
        state.step += 1
        state.done |= True


@dataclass
class PGDState(State):
    """State of PGD.

    Attributes:
        upcoming: The point to evaluate next, (B, C, H, W).
    """

    upcoming: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class PGD(Attack[PGDState]):
    """Projected gradient descent with a random start.

    Madry et al. 2018, "Towards deep learning models resistant to adversarial attacks", section 2.1: steps of
    fixed length along the steepest ascent of the cross-entropy, each projected back into the ball.

    Attributes:
        steps: Gradient steps.
        step_size: Length of a step as a share of eps.
        restarts: Random starts.
    """

    name: ClassVar[str] = "pgd"

    steps: int = 40
    step_size: float = 0.1
    restarts: int = 1

    @property
    def units(self) -> int:
        """One run a restart."""
        return self.restarts

    @property
    def passes(self) -> float:
        """A gradient at each point visited."""
        return 3 * (self.steps + 1)

    def start(self, net: Net, runs: Runs) -> PGDState:
        """Begin at a random point at distance eps."""
        first = random_start(runs.x0, runs.key, self.radius, self.norm)
        return PGDState(**common(net, runs), upcoming=first)

    def step(self, net: Net, state: PGDState) -> None:
        """Evaluate the upcoming point, with its gradient, and move on."""
        state.point = state.upcoming
        state.logits, _, gradient = net.gradient(state.point, lambda z, r: cross_entropy(z, state.inside[r]))
        note_flat(state, gradient)
        length = self.step_size * self.radius
        state.upcoming = project(
            state.point + length * steepest(gradient, self.norm), state.x0, self.radius, self.norm
        )
        state.step += 1
        state.done = state.step > self.steps
