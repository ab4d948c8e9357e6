"""Slices: groups of like images in which a model errs too often, proposed without any attribute.

A mixture of Gaussians over penultimate features, which also sees the answers of the discovery half, as in
Domino (Eyuboglu et al. 2022, "Domino: discovering systematic errors with cross-modal embeddings", ICLR,
section 4): components gather images that look alike to the model and that it gets wrong alike. Which slice an
image belongs to is then decided by its features alone, in both halves, so that the answers of the
confirmation half have no say in it. Whether a slice is more than a proposal is decided there
(`benchmark.criticism.findings`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from annotations.errors import BeyondError
from benchmark.criticism.findings import confidence_strata

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

DIMENSIONS = 24
PER_COMPONENT = 30
"""Images of the discovery half for each component of the mixture."""
MAX_COMPONENTS = 25
MAX_SLICES = 8
"""Slices proposed, those with the greatest excess of errors first."""
MIN_IMAGES = 120
"""Images of the discovery half below which no mixture is fitted."""
ERROR_WEIGHT = 4
"""How often the columns of the answers are repeated beside the features: their weight in the likelihood."""

_ROWS = 4096


@dataclass(frozen=True)
class Proposal:
    """Slices of N images.

    Attributes:
        member: int16 (N,), number of the slice, −1 for images in none.
        weight: float32 (N,), probability that the image belongs to its slice.
        components: Components of the mixture, slices or not.
    """

    member: npt.NDArray[np.int16]
    weight: npt.NDArray[np.float32]
    components: int


def propose(
    features: npt.NDArray[np.floating],
    wrong: Bools,
    confidence: Floats,
    usable: Bools,
    discovery: Bools,
    *,
    seed: int = 0,
) -> Proposal | None:
    """Propose slices; None if there are too few images.

    Args:
        features: (N, D), may be a memory map: it is read some rows at a time.
        wrong: bool (N,), the answer is wrong.
        confidence: float (N,), the probability that the model gave its answer.
        usable: bool (N,), the answer is known to be right or wrong.
        discovery: bool (N,), images whose answers may be seen.
        seed: Seed of the mixture's start.

    Raises:
        BeyondError: scikit-learn is not installed.
    """
    seen = np.flatnonzero(discovery & usable)
    if len(seen) < MIN_IMAGES or wrong[seen].all() or not wrong[seen].any():
        return None
    try:
        from sklearn.mixture import GaussianMixture
    except ImportError:
        raise BeyondError("slices need scikit-learn; run: pip install 'beyond-accuracy[probes]'") from None
    z = _principal(features, seen)
    answers = np.stack([wrong.astype(np.float64), 1 - confidence], axis=1)[seen]
    spread = answers.std(axis=0)
    answers = (answers - answers.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    mixture = GaussianMixture(
        n_components=int(np.clip(len(seen) // PER_COMPONENT, 2, MAX_COMPONENTS)),
        covariance_type="diag",
        reg_covar=0.05,
        max_iter=60,
        tol=1e-3,
        random_state=seed,
    )
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not converging to the last digit is no concern of a proposal
        mixture.fit(np.concatenate([z[seen], *[answers] * ERROR_WEIGHT], axis=1))
    d = z.shape[1]
    means, variances = mixture.means_[:, :d], mixture.covariances_[:, :d]
    # The marginal of the features: with a diagonal covariance, the answers' columns are simply left out.
    logs = np.log(mixture.weights_) - 0.5 * (
        np.log(variances).sum(axis=1) + (means**2 / variances).sum(axis=1)
    )
    logs = logs + z @ (means / variances).T - 0.5 * (z * z) @ (1 / variances).T
    logs -= logs.max(axis=1, keepdims=True)
    chances = np.exp(logs)
    chances /= chances.sum(axis=1, keepdims=True)
    component = chances.argmax(axis=1)

    excess = _excess(component[seen], wrong[seen], confidence[seen], len(means))
    chosen = [int(c) for c in np.argsort(-excess, kind="stable") if excess[c] > 0][:MAX_SLICES]
    member = np.full(len(z), -1, dtype=np.int16)
    for number, c in enumerate(chosen):
        member[component == c] = number
    weight = chances[np.arange(len(z)), component].astype(np.float32)
    return Proposal(member, weight, len(means))


def _excess(component: npt.NDArray[np.intp], wrong: Bools, confidence: Floats, count: int) -> Floats:
    """Errors of each component beyond those of equally confident images, in standard deviations: (count,)."""
    strata = confidence_strata(confidence)
    size = np.bincount(strata)
    rate = np.bincount(strata, weights=wrong) / size
    expected = np.bincount(component, weights=rate[strata], minlength=count)
    variance = np.bincount(component, weights=(rate * (1 - rate))[strata], minlength=count)
    errors = np.bincount(component, weights=wrong, minlength=count)
    excess: Floats = (errors - expected) / np.sqrt(np.maximum(variance, 1e-9))
    return np.where(np.bincount(component, minlength=count) >= 5, excess, 0.0)


def _principal(features: npt.NDArray[np.floating], seen: npt.NDArray[np.intp]) -> Floats:
    """Leading principal components, each of unit variance, fitted on some rows: float64 (N, d).

    Rows are read a few thousand at a time. Components that hold next to no variance are left out.
    """
    columns = features.shape[1]
    total, outer = np.zeros(columns), np.zeros((columns, columns))
    for start in range(0, len(seen), _ROWS):
        rows = np.asarray(features[seen[start : start + _ROWS]], dtype=np.float64)
        total += rows.sum(axis=0)
        outer += rows.T @ rows
    mean = total / len(seen)
    covariance = outer / len(seen) - np.outer(mean, mean)
    values, vectors = np.linalg.eigh(covariance)
    keep = np.argsort(-values)[: min(DIMENSIONS, columns)]
    keep = keep[values[keep] > 1e-6 * max(values.max(), 1e-300)]
    basis = vectors[:, keep] / np.sqrt(values[keep])
    # The sign of an eigenvector means nothing; fixed, so that the same features give the same slices.
    basis = basis * np.where(basis[np.abs(basis).argmax(axis=0), np.arange(basis.shape[1])] < 0, -1.0, 1.0)
    parts = [
        (np.asarray(features[start : start + _ROWS], dtype=np.float64) - mean) @ basis
        for start in range(0, len(features), _ROWS)
    ]
    return np.concatenate(parts)
