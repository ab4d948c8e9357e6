"""MMD-critic against the published greedy algorithm written out, and against exhaustive search."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from annotations.errors import BeyondError
from benchmark.criticism import mmd_critic


def score(kernel: np.ndarray, chosen: tuple[int, ...]) -> float:
    """J of the paper, term by term."""
    n, m = len(kernel), len(chosen)
    if not m:
        return 0.0
    to_data = sum(kernel[i, j] for i in range(n) for j in chosen)
    among = sum(kernel[i, j] for i in chosen for j in chosen)
    return float(2 / (n * m) * to_data - among / m**2)


def critique(kernel: np.ndarray, prototypes: tuple[int, ...], chosen: tuple[int, ...]) -> float:
    """L + log det of the paper, term by term."""
    n = len(kernel)
    total = 0.0
    for c in chosen:
        data = sum(kernel[i, c] for i in range(n)) / n
        total += abs(data - sum(kernel[j, c] for j in prototypes) / len(prototypes))
    return total + float(np.linalg.slogdet(kernel[np.ix_(chosen, chosen)])[1])


def greedy(candidates: set[int], count: int, value) -> tuple[int, ...]:  # type: ignore[no-untyped-def]  # noqa: ANN001
    chosen: tuple[int, ...] = ()
    for _ in range(count):
        rest = sorted(candidates - set(chosen))
        chosen = (*chosen, max(rest, key=lambda c: (value((*chosen, c)), -c)))
    return chosen


@pytest.mark.parametrize("seed", range(12))
def test_choices_are_those_of_the_published_greedy_algorithm(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 14))
    kernel = mmd_critic.rbf_kernel(rng.normal(size=(n, 3)) + 3 * rng.integers(0, 2, (n, 1)))
    m, c = int(rng.integers(1, n // 2 + 1)), int(rng.integers(1, n // 2 + 1))
    prototypes = mmd_critic.prototypes(kernel, m)
    assert tuple(prototypes) == greedy(set(range(n)), m, lambda s: score(kernel, s))
    criticisms = mmd_critic.criticisms(kernel, prototypes, c)
    rest = set(range(n)) - set(prototypes.tolist())
    wanted = greedy(rest, c, lambda s: critique(kernel, tuple(prototypes), s))
    assert tuple(criticisms) == wanted


@pytest.mark.parametrize("seed", range(6))
def test_the_score_is_the_mmd_and_greedy_is_near_the_best_of_all_subsets(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    n = 10
    x = rng.normal(size=(n, 3))
    kernel = mmd_critic.rbf_kernel(x, gamma=0.4)

    def mmd(chosen: tuple[int, ...]) -> float:
        """Squared MMD between the data and the chosen, from its definition."""
        similar = np.exp(-0.4 * ((x[:, None] - x[None]) ** 2).sum(-1))
        own, other = similar[np.ix_(chosen, chosen)].mean(), similar[:, list(chosen)].mean()
        return float(similar.mean() + own - 2 * other)

    subsets = list(itertools.combinations(range(n), 3))
    for chosen in subsets[:20]:
        assert kernel.mean() - score(kernel, chosen) == pytest.approx(mmd(chosen))
    (first,) = mmd_critic.prototypes(kernel, 1).tolist()
    assert mmd((first,)) == pytest.approx(min(mmd((i,)) for i in range(n)))
    found = mmd(tuple(mmd_critic.prototypes(kernel, 3).tolist()))
    ranked = sorted(mmd(s) for s in subsets)
    assert ranked[0] <= found + 1e-12 <= ranked[len(ranked) // 10]


def test_the_kernel_is_the_textbook_one() -> None:
    x = np.random.default_rng(3).normal(size=(7, 4)) + 100
    kernel = mmd_critic.rbf_kernel(x, gamma=0.3)
    for i, j in itertools.product(range(7), repeat=2):
        assert kernel[i, j] == pytest.approx(np.exp(-0.3 * ((x[i] - x[j]) ** 2).sum()))
    half = mmd_critic.rbf_kernel(x)
    # With γ one over the median squared distance, the median similarity of two points is 1/e.
    assert np.median(half[np.triu_indices(7, 1)]) == pytest.approx(np.exp(-1))


def test_clusters_get_a_prototype_each_and_a_small_group_far_off_is_criticized() -> None:
    rng = np.random.default_rng(0)
    centres = np.repeat([(0, 0), (4, 0), (2, 4)], [20, 20, 4], axis=0)
    x = rng.normal(size=(44, 2)) * 0.2 + centres
    kernel = mmd_critic.rbf_kernel(x, gamma=0.5)
    chosen = mmd_critic.prototypes(kernel, 2)
    assert sorted((chosen // 20).tolist()) == [0, 1]
    assert mmd_critic.criticisms(kernel, chosen, 1)[0] >= 40


def test_copies_and_too_many_are_handled() -> None:
    kernel = mmd_critic.rbf_kernel(np.array([[0.0], [0.0], [0.0], [1.0]]))
    chosen = mmd_critic.prototypes(kernel, 1)
    # Of three copies two are left, of which the second adds nothing but log det = −∞.
    assert len(mmd_critic.criticisms(kernel, chosen, 3)) == 2
    with pytest.raises(BeyondError, match="cannot choose 5 prototypes of 4"):
        mmd_critic.prototypes(kernel, 5)
    with pytest.raises(BeyondError, match="cannot choose 4 criticisms of 3"):
        mmd_critic.criticisms(kernel, chosen, 4)
    assert np.allclose(mmd_critic.rbf_kernel(np.ones((3, 2))), 1)
