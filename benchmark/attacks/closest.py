"""DeepFool, DDN and FMN: attacks that look for the smallest perturbation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from benchmark.attacks.attack import Attack, ClosestState, Runs, common, note_flat
from benchmark.attacks.execution import Net
from benchmark.attacks.geometry import Norm, norm_of, per_row, random_start
from benchmark.attacks.goals import best_inside, cross_entropy, has_left, margin, targets


@dataclass
class DeepFoolState(ClosestState):
    """State of DeepFool.

    Attributes:
        total: Sum of the steps so far, before the overshoot, (B, C, H, W).
        classes: The candidate classes, int64 (B, J).
    """

    total: torch.Tensor
    classes: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class DeepFool(Attack[DeepFoolState]):
    """DeepFool: repeated steps to the nearest linearised decision boundary.

    Moosavi-Dezfooli, Fawzi and Frossard 2016, "DeepFool: a simple and accurate method to fool deep neural
    networks", algorithm 2, and its section 3.3 for other norms. Stops at the first adversarial.

    Attributes:
        steps: Steps at most.
        candidates: Classes considered, the likeliest at the clean image, besides those to leave.
        overshoot: The factor 1 + overshoot on the sum of steps.
    """

    name: ClassVar[str] = "deepfool"

    steps: int = 50
    candidates: int = 9
    overshoot: float = 0.02

    @property
    def minimal(self) -> bool:
        """DeepFool looks for the closest adversarial."""
        return True

    @property
    def passes(self) -> float:
        """A backward pass for each candidate."""
        return (self.steps + 1) * (1 + 2 * self.candidates)

    def start(self, net: Net, runs: Runs) -> DeepFoolState:
        """Rank the classes at the clean image."""
        logits = net.logits(runs.x0)
        return DeepFoolState(
            **common(net, runs),
            best=runs.x0.clone(),
            distance=runs.x0.new_full((len(runs.x0),), torch.inf),
            total=torch.zeros_like(runs.x0),
            classes=targets(logits, runs.inside, min(self.candidates, logits.shape[1] - 1)),
        )

    def step(self, net: Net, state: DeepFoolState) -> None:
        """Evaluate, and step to the nearest boundary unless adversarial."""
        x = (state.x0 + (1 + self.overshoot) * state.total).clamp(0, 1)
        classes, inside = state.classes, state.inside
        state.point = x
        state.logits, gaps, normals = net.gradients(
            x, lambda z, r: z.gather(1, classes[r]) - best_inside(z, inside[r])[:, None]
        )
        note_flat(state, normals)
        left = has_left(state.logits, inside)
        rows = left.nonzero()[:, 0]
        state.best[rows] = x[rows]
        state.distance = torch.where(left, norm_of(x - state.x0, self.norm), state.distance)

        flat = normals.flatten(2)
        dual = flat.abs().sum(2) if self.norm == "linf" else flat.norm(dim=2)
        distances = gaps.abs() / dual.clamp_min(1e-12)
        nearest = distances.argmin(1)
        pick = torch.arange(len(x), device=x.device)
        w, dual = normals[pick, nearest], dual[pick, nearest]
        # The small term, a rounding's worth, keeps the last step from landing on the boundary itself.
        reach = per_row(distances[pick, nearest] + 1e-6, x)
        move = w.sign() if self.norm == "linf" else w / per_row(dual, x).clamp_min(1e-12)
        state.total = state.total + reach * move
        state.step += 1
        state.done = left | (state.step > self.steps)


@dataclass
class DDNState(ClosestState):
    """State of DDN.

    Attributes:
        delta: Perturbation to evaluate next, (B, C, H, W).
        radius: Its length, (B,).
    """

    delta: torch.Tensor
    radius: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class DDN(Attack[DDNState]):
    """Decoupled direction and norm.

    Rony et al. 2019, "Decoupling direction and norm for efficient gradient-based L2 adversarial attacks and
    defenses", algorithm 1, without the final quantisation: gradient steps give the direction, while the
    length shrinks by a factor when the point is adversarial and grows by one when it is not.

    Attributes:
        steps: Iterations.
        first_radius: Length at the start.
        gamma: Change of the length.
        step_size: Length of the first gradient step; cosine-annealed to a hundredth.
    """

    name: ClassVar[str] = "ddn"
    norms: ClassVar[tuple[Norm, ...]] = ("l2",)

    norm: Norm = "l2"
    steps: int = 100
    first_radius: float = 1.0
    gamma: float = 0.05
    step_size: float = 1.0

    @property
    def minimal(self) -> bool:
        """DDN looks for the closest adversarial."""
        return True

    @property
    def passes(self) -> float:
        """A gradient at each point visited."""
        return 3 * self.steps

    def start(self, net: Net, runs: Runs) -> DDNState:
        """Begin at the clean image."""
        rows = len(runs.x0)
        return DDNState(
            **common(net, runs),
            best=runs.x0.clone(),
            distance=runs.x0.new_full((rows,), torch.inf),
            delta=torch.zeros_like(runs.x0),
            radius=runs.x0.new_full((rows,), self.first_radius),
        )

    def step(self, net: Net, state: DDNState) -> None:
        """Evaluate, adapt the length, and turn the direction."""
        x = (state.x0 + state.delta).clamp(0, 1)
        delta = x - state.x0
        state.point = x
        state.logits, _, gradient = net.gradient(x, lambda z, r: cross_entropy(z, state.inside[r]))
        note_flat(state, gradient)
        left = has_left(state.logits, state.inside)
        distance = norm_of(delta, "l2")
        better = left & (distance < state.distance)
        rows = better.nonzero()[:, 0]
        state.best[rows] = x[rows]
        state.distance = torch.where(better, distance, state.distance)

        phase = state.step.to(x.dtype) / self.steps
        size = self.step_size * (0.01 + 0.99 * (1 + torch.cos(math.pi * phase)) / 2)
        unit = gradient / per_row(norm_of(gradient, "l2"), x).clamp_min(1e-12)
        turned = delta + per_row(size, x) * unit
        state.radius = state.radius * torch.where(left, 1 - self.gamma, 1 + self.gamma).to(x.dtype)
        length = norm_of(turned, "l2").clamp_min(1e-12)
        state.delta = turned * per_row(state.radius / length, x)
        state.step += 1
        state.done = state.step >= self.steps


@dataclass
class FMNState(ClosestState):
    """State of FMN.

    Attributes:
        delta: Perturbation to evaluate next, (B, C, H, W).
        radius: Length that it may have, (B,); infinite before the first step.
    """

    delta: torch.Tensor
    radius: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class FMN(Attack[FMNState]):
    """Fast minimum norm: a radius that follows the boundary, and gradient steps within it.

    Pintor et al. 2021, "Fast minimum-norm adversarial attacks through adaptive norm constraints", algorithm
    1, with the margin as loss: until the first adversarial the radius is where the linearised margin is zero;
    then it shrinks by a factor at adversarial points and grows by one elsewhere. Steps are in units of the
    radius, not of pixels, so that no setting depends on how robust the model is; and the estimate of the
    radius is pushed a little, so that an exactly linear model is crossed rather than touched.

    Attributes:
        steps: Iterations.
        first_step: First step, in units of the radius; cosine-annealed to `last_step`.
        last_step: Last step.
        first_gamma: First change of the radius; cosine-annealed to `last_gamma`.
        last_gamma: Last change.
        push: Factor on the estimate of the radius.
        random: Begin at a random point, `random_radius` away, instead of at the image.
        random_radius: Length of the random start.
    """

    name: ClassVar[str] = "fmn"
    norms: ClassVar[tuple[Norm, ...]] = ("l2",)

    norm: Norm = "l2"
    steps: int = 50
    first_step: float = 1.0
    last_step: float = 0.1
    first_gamma: float = 0.1
    last_gamma: float = 0.01
    push: float = 1.02
    random: bool = False
    random_radius: float = 0.1

    @property
    def minimal(self) -> bool:
        """FMN looks for the closest adversarial."""
        return True

    @property
    def passes(self) -> float:
        """A gradient at each point visited."""
        return 3 * self.steps

    def start(self, net: Net, runs: Runs) -> FMNState:
        """Begin at the clean image, or near it."""
        rows = len(runs.x0)
        delta = torch.zeros_like(runs.x0)
        if self.random:
            delta = random_start(runs.x0, runs.key, self.random_radius, "l2") - runs.x0
        return FMNState(
            **common(net, runs),
            best=runs.x0.clone(),
            distance=runs.x0.new_full((rows,), torch.inf),
            delta=delta,
            radius=runs.x0.new_full((rows,), torch.inf),
        )

    def step(self, net: Net, state: FMNState) -> None:
        """Evaluate, adapt the radius, and step."""
        x = (state.x0 + state.delta).clamp(0, 1)
        delta = x - state.x0
        state.point = x
        state.logits, gap, gradient = net.gradient(x, lambda z, rows: margin(z, state.inside[rows]))
        note_flat(state, gradient)
        left = has_left(state.logits, state.inside)
        length = norm_of(delta, "l2")
        better = left & (length < state.distance)
        rows = better.nonzero()[:, 0]
        state.best[rows] = x[rows]
        state.distance = torch.where(better, length, state.distance)

        share = (1 + torch.cos(math.pi * state.step.to(x.dtype) / self.steps)) / 2
        size = self.last_step + (self.first_step - self.last_step) * share
        gamma = self.last_gamma + (self.first_gamma - self.last_gamma) * share
        slope = norm_of(gradient, "l2").clamp_min(1e-12)
        grown = torch.where(
            state.distance.isfinite(), state.radius * (1 + gamma), length + self.push * gap.abs() / slope
        )
        shrunk = torch.minimum(state.radius * (1 - gamma), state.distance)
        state.radius = torch.where(left, shrunk, grown)
        turned = delta + per_row(size * state.radius / slope, x) * gradient
        reach = (state.radius / norm_of(turned, "l2").clamp_min(1e-12)).clamp(max=1)
        state.delta = turned * per_row(reach, x)
        state.step += 1
        state.done = state.step >= self.steps
