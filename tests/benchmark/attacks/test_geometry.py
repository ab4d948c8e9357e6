"""Seeds, projections and hyperplane steps against closed forms and a solver."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize

from benchmark.attacks.geometry import Norm, norm_of, project, random_start, steepest, to_hyperplane
from benchmark.attacks.seeds import image_key, normal, uniform

NORMS: tuple[Norm, ...] = ("linf", "l2")


def key(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def test_random_numbers_depend_on_their_own_row_alone() -> None:
    keys = torch.tensor([image_key(f"image-{i}", "square", 0, 0) for i in range(7)])
    counter = torch.arange(7)
    together = uniform(keys, counter, 50)
    apart = torch.cat([uniform(keys[i : i + 1], counter[i : i + 1], 50) for i in range(7)])
    assert torch.equal(together, apart)
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(uniform(keys, counter, 50), uniform(keys, counter + 1, 50))


@pytest.mark.parametrize(
    "changed", [("b", "apgd", 0, 0), ("a", "fab", 0, 0), ("a", "apgd", 1, 0), ("a", "apgd", 0, 1)]
)
def test_keys_differ_by_image_attack_unit_and_seed(changed: tuple[str, str, int, int]) -> None:
    assert image_key("a", "apgd", 0, 0) != image_key(*changed)
    assert image_key(*changed) == image_key(*changed)


def test_random_numbers_have_their_distribution() -> None:
    u = uniform(key(1, -(1 << 62)), key(0, 9), 40_000)
    assert ((u >= 0) & (u < 1)).all()
    counts = torch.histc(u[0], 20, 0, 1)
    # Chi-square with 19 degrees of freedom: 43.8 is the 0.1 % point.
    assert float(((counts - 2000) ** 2 / 2000).sum()) < 43.8
    assert abs(float(torch.corrcoef(u)[0, 1])) < 0.02
    assert abs(float(torch.corrcoef(torch.stack([u[0, :-1], u[0, 1:]]))[0, 1])) < 0.02
    z = normal(key(5), key(0), 40_001)[0]
    assert len(z) == 40_001
    assert abs(float(z.mean())) < 0.02
    assert abs(float(z.std()) - 1) < 0.02
    assert abs(float((z**4).mean()) - 3) < 0.2


@pytest.mark.parametrize("norm", NORMS)
@given(seed=st.integers(0, 10_000), radius=st.floats(0.001, 3))
@settings(max_examples=30, deadline=None)
def test_projection_ends_in_ball_and_box(norm: Norm, seed: int, radius: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.rand(3, 2, 4, 4, generator=generator, dtype=torch.float64)
    x = x0 + torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64)
    p = project(x, x0, radius, norm)
    assert ((p >= 0) & (p <= 1)).all()
    assert (norm_of(p - x0, norm) <= radius * (1 + 1e-12)).all()
    assert torch.allclose(project(p, x0, radius, norm), p, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_random_start_lies_at_the_radius(norm: Norm) -> None:
    x0 = torch.full((2, 3, 8, 8), 0.5, dtype=torch.float64)
    x = random_start(x0, key(1, 2), 0.25, norm)
    assert torch.allclose(norm_of(x - x0, norm), torch.full((2,), 0.25, dtype=torch.float64))


@pytest.mark.parametrize("norm", NORMS)
def test_steepest_gains_the_dual_norm(norm: Norm) -> None:
    g = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gain = (g * steepest(g, norm)).flatten(1).sum(1)
    dual = g.flatten(1).abs().sum(1) if norm == "linf" else g.flatten(1).norm(dim=1)
    assert torch.allclose(gain, dual)
    assert torch.equal(steepest(torch.zeros(1, 1, 2, 2), norm), torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("seed", range(8))
def test_hyperplane_step_is_what_a_solver_finds(norm: Norm, seed: int) -> None:
    rng = np.random.default_rng(seed)
    d = 12
    x, w = rng.uniform(0, 1, d), rng.normal(size=d)
    # Up to nine tenths of what the box allows, so that some coordinates hit its walls.
    sign = rng.choice([-1.0, 1.0])
    room = np.where(-sign * w > 0, 1 - x, x)
    offset = sign * rng.uniform(0.3, 0.9) * np.abs(w) @ room
    step = to_hyperplane(
        torch.tensor(x).view(1, 1, 3, 4), torch.tensor(w).view(1, 1, 3, 4), torch.tensor([offset]), norm
    ).flatten()
    assert float(step.numpy() @ w + offset) == pytest.approx(0, abs=1e-5)
    assert ((step.numpy() + x >= -1e-12) & (step.numpy() + x <= 1 + 1e-12)).all()
    if norm == "linf":
        solved = linprog(
            np.r_[np.zeros(d), 1],
            A_ub=np.block([[np.eye(d), -np.ones((d, 1))], [-np.eye(d), -np.ones((d, 1))]]),
            b_ub=np.zeros(2 * d),
            A_eq=np.r_[w, 0][None],
            b_eq=[-offset],
            bounds=[*zip(-x, 1 - x), (0, None)],
        )
        best = solved.fun
    else:
        solved = minimize(
            lambda v: v @ v,
            step.numpy() * 0,
            jac=lambda v: 2 * v,
            bounds=list(zip(-x, 1 - x)),
            constraints={"type": "eq", "fun": lambda v: v @ w + offset, "jac": lambda v: w},
            method="SLSQP",
            options={"ftol": 1e-12, "maxiter": 500},
        )
        best = solved.fun**0.5
    assert float(norm_of(step[None], norm)) == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_hyperplane_out_of_reach_gives_the_corner(norm: Norm) -> None:
    x = torch.rand(2, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    w = torch.ones(2, 1, 3, 3)
    step = to_hyperplane(x, w, torch.tensor([-100.0, 100.0]), norm)
    assert torch.allclose((x + step)[0], torch.ones(1, 3, 3))
    assert torch.allclose((x + step)[1], torch.zeros(1, 3, 3))


@pytest.mark.parametrize("saturated", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("share", [1e-4, 0.02, 0.5, 0.98, 2.0])
def test_large_rows_take_the_same_step(saturated: float, share: float) -> None:
    """Rows of the size of photographs, for which only the pixels near a wall are looked at, by bisection."""
    rng = np.random.default_rng(int(1000 * saturated))
    x = rng.uniform(0, 1, (3, 3, 256, 256)).astype(np.float32)
    wall = rng.uniform(size=x.shape) < saturated
    x[wall] = rng.integers(0, 2, int(wall.sum()))
    w = rng.normal(size=x.shape).astype(np.float32) * (rng.uniform(size=x.shape) < 0.9)
    sign = np.array([1, -1, 1]).reshape(3, 1, 1, 1)
    room = np.where(-sign * w > 0, 1 - x, x).astype(np.float64)
    weight = np.abs(w).astype(np.float64)
    need = share * (weight * room).sum((1, 2, 3))
    need[2] = 0  # a point on the hyperplane stays
    low, high = np.zeros(3), np.ones(3)
    for _ in range(60):
        middle = (low + high) / 2
        enough = (weight * np.minimum(room, middle.reshape(3, 1, 1, 1))).sum((1, 2, 3)) >= need
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    offset = torch.tensor(sign.ravel() * need, dtype=torch.float32)
    step = to_hyperplane(torch.tensor(x), torch.tensor(w, dtype=torch.float32), offset, "linf").numpy()
    expected = -sign * np.sign(w) * np.minimum(room, high.reshape(3, 1, 1, 1))
    # Near the corner the sum is flat in the length, so a float's rounding moves it more.
    assert np.abs(step - expected).max() <= (2e-5 if share < 0.9 else 1e-2) * high.max()
    apart = [
        to_hyperplane(
            torch.tensor(x[i : i + 1]), torch.tensor(w[i : i + 1]).float(), offset[i : i + 1], "linf"
        )
        for i in range(3)
    ]
    assert torch.equal(torch.cat(apart), torch.from_numpy(step))
