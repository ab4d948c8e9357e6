"""MMD-critic: prototypes and criticisms of a set of vectors, the baseline beside adversarial criticism.

Kim, Khanna & Koyejo 2016, "Examples are not enough, learn to criticize! Criticism for interpretability",
NeurIPS. Prototypes are chosen greedily (algorithm 1) for the largest

    J(S) = 2/(n |S|) Σ_{i, j ∈ S} k(x_i, x_j) − 1/|S|² Σ_{i, j ∈ S} k(x_i, x_j),   J(∅) = 0,

the first sum over all n vectors i: minus the squared maximum mean discrepancy between the prototypes and the
data, but for a constant; and criticisms, greedily again (algorithm 2), for the largest

    L(C) + log det K_{C,C},   L(C) = Σ_{l ∈ C} |1/n Σ_i k(x_i, x_l) − 1/|S| Σ_{j ∈ S} k(x_j, x_l)|.

Each step costs O(n): sums over the prototypes are kept, and log det grows by the logarithm of a Schur
complement, from an incremental Cholesky factor. Ties go to the smaller index.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from annotations.errors import BeyondError

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


def rbf_kernel(vectors: npt.NDArray[np.floating], *, gamma: float | None = None) -> Floats:
    """The kernel exp(−γ ‖x − y‖²) of all pairs: float64 (n, n).

    Args:
        vectors: (n, d), finite.
        gamma: γ; None takes one over the median squared distance between two different vectors.
    """
    x = np.asarray(vectors, dtype=np.float64)
    # Centred, which changes no distance and saves digits.
    x = x - x.mean(axis=0)
    lengths = (x * x).sum(axis=1)
    squares = np.maximum(lengths[:, None] + lengths[None, :] - 2 * (x @ x.T), 0)
    np.fill_diagonal(squares, 0)
    if gamma is None:
        apart = squares[np.triu_indices(len(x), 1)]
        apart = apart[apart > 0]
        gamma = 1 / float(np.median(apart)) if len(apart) else 1.0
    kernel: Floats = np.exp(-gamma * squares)
    return kernel


def prototypes(kernel: Floats, count: int) -> Indices:
    """Greedy prototypes, in the order they are chosen: int64 (count,).

    Args:
        kernel: Symmetric, (n, n).
        count: How many, 0 to n.

    Raises:
        BeyondError: There are not so many.
    """
    n = len(kernel)
    if not 0 <= count <= n:
        raise BeyondError(f"cannot choose {count} prototypes of {n}")
    mean, diagonal = kernel.mean(axis=0), np.diagonal(kernel)
    chosen: list[int] = []
    free = np.ones(n, dtype=bool)
    to_chosen, means, within = np.zeros(n), 0.0, 0.0
    for size in range(1, count + 1):
        value = 2 / size * (means + mean) - (within + 2 * to_chosen + diagonal) / size**2
        best = int(np.argmax(np.where(free, value, -np.inf)))
        chosen.append(best)
        free[best] = False
        means += mean[best]
        within += 2 * to_chosen[best] + diagonal[best]
        to_chosen += kernel[best]
    return np.array(chosen, dtype=np.int64)


def witness(kernel: Floats, chosen: Indices) -> Floats:
    """The witness function at every point: mean similarity to the data minus that to the prototypes, (n,)."""
    mean: Floats = kernel.mean(axis=0)
    return mean - kernel[chosen].mean(axis=0) if len(chosen) else mean


def criticisms(kernel: Floats, chosen: Indices, count: int) -> Indices:
    """Greedy criticisms with the log-determinant regulariser, in the order they are chosen: int64 (≤ count,).

    Args:
        kernel: Symmetric, positive semi-definite, (n, n).
        chosen: The prototypes, which are no criticisms.
        count: How many. Fewer are returned where the rest are copies of those chosen (log det = −∞).

    Raises:
        BeyondError: There are not so many.
    """
    n = len(kernel)
    if not 0 <= count <= n - len(chosen):
        raise BeyondError(f"cannot choose {count} criticisms of {n - len(chosen)}")
    weight = np.abs(witness(kernel, chosen))
    free = np.ones(n, dtype=bool)
    free[chosen] = False
    rest = np.diagonal(kernel).astype(np.float64).copy()  # Schur complements given those chosen
    factor = np.zeros((count, n))
    found: list[int] = []
    for step in range(count):
        usable = free & (rest > 1e-12)
        if not usable.any():
            break
        with np.errstate(divide="ignore", invalid="ignore"):
            value = np.where(usable, weight + np.log(rest), -np.inf)
        best = int(np.argmax(value))
        found.append(best)
        free[best] = False
        row = (kernel[best] - factor[:step].T @ factor[:step, best]) / np.sqrt(rest[best])
        factor[step] = row
        rest = np.maximum(rest - row * row, 0)
    return np.array(found, dtype=np.int64)
