"""Errors on images that people described by a factor (ImageNet-X, Idrissi et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import special

from annotations.errors import BeyondError
from annotations.factors import AVERAGE, FACTORS, error_ratios, factor_accuracies
from benchmark.probes import FACTORS as PROBE
from benchmark.probes.execution import Evidence, ProbeResult
from benchmark.records import Predictions
from benchmark.scorecard import Cell, Metric
from benchmark.statistics import Z95, FloatArray, Interval, ratio_of_shares

MIN_IMAGES = 30
"""Images that a factor needs to be named the worst: with fewer, the maximum would be noise."""


def score(evidence: Evidence) -> ProbeResult:
    """Error ratios of the factors, from a run's predictions."""
    from annotations.sources import imagenet_x_factors

    if evidence.predictions is None:
        raise BeyondError(
            "the probe factors needs predictions; give --run RUN, --predictions FILE or a MODEL"
        )
    return score_correct(imagenet_x_factors(), correct_by_id(evidence.predictions()))


def correct_by_id(predictions: Iterator[Predictions]) -> pd.Series:
    """Whether the top-1 class is the original label: bool, by image id; unlabelled images are left out."""
    ids, right = [], []
    for part in predictions:
        known = part.original_labels >= 0
        ids.append(part.image_ids[known])
        right.append(part.classes[known, 0] == part.original_labels[known])
    return pd.Series(np.concatenate(right), index=np.concatenate(ids), dtype=bool)


def score_correct(factors: pd.DataFrame, correct: pd.Series) -> ProbeResult:
    """Error ratios, and the worst of them.

    A ratio is the error on the images with the factor over the error on all annotated images, as in the
    package `imagenet-x`. Its interval is Koopman's for the error with over the error without the factor,
    carried over (see `error_ratio_interval`). The interval of the worst ratio is from the largest lower to
    the largest upper end of Bonferroni's simultaneous intervals, so that picking the worst is paid for.

    Args:
        factors: As `annotations.sources.imagenet_x_factors` returns it.
        correct: bool, indexed by image id.

    Raises:
        BeyondError: No image of `correct` is annotated.
    """
    accuracies = factor_accuracies(factors, correct)
    ratios = error_ratios(accuracies)
    every = error_ratios(factor_accuracies(factors, correct, which="multi"))
    # The last row is the average over all annotated images.
    counts = accuracies.loc[[*FACTORS, AVERAGE], ["n", "n_correct"]].to_numpy(dtype=np.int64)
    total, wrong_total = int(counts[-1, 0]), int(counts[-1, 0] - counts[-1, 1])
    n, wrong = counts[:-1, 0], counts[:-1, 0] - counts[:-1, 1]
    eligible = (n >= MIN_IMAGES) & (n < total)
    z_all = float(-special.ndtri(0.025 / max(int(eligible.sum()), 1)))
    single = error_ratio_interval(wrong, n, wrong_total, total)
    together = error_ratio_interval(wrong, n, wrong_total, total, z=z_all)
    rows: list[dict[str, Cell]] = []
    for i, factor in enumerate(FACTORS):
        ratio, spread = float(ratios[factor]), float(every[factor])
        known = np.isfinite(ratio) and np.isfinite(single.high[i])
        rows.append(
            {
                "factor": factor,
                "n": int(n[i]),
                "errors": int(wrong[i]),
                "error": float(wrong[i] / n[i]) if n[i] else None,
                "error_ratio": ratio if np.isfinite(ratio) else None,
                "ci_low": float(single.low[i]) if known else None,
                "ci_high": float(single.high[i]) if known else None,
                "error_ratio_any": spread if np.isfinite(spread) else None,
                "eligible": bool(eligible[i]),
            }
        )
    rows.sort(key=lambda row: -(row["error_ratio"] if isinstance(row["error_ratio"], float) else -1.0))
    average: Cell = wrong_total / total
    notes = [
        f"Error ratios are over the {total:,} annotated images of the run, {wrong_total:,} of them wrong "
        f"({100 * wrong_total / total:.1f} %); a factor needs {MIN_IMAGES} images to be named the worst."
    ]
    metrics: dict[str, Metric] = {}
    if wrong_total and eligible.any():
        values = np.where(eligible, ratios.loc[list(FACTORS)].to_numpy(dtype=np.float64), -np.inf)
        worst = int(values.argmax())
        metrics["worst_factor_error_ratio"] = Metric(
            value=float(values[worst]),
            ci_low=float(together.low[eligible].max()),
            ci_high=float(together.high[eligible].max()),
            n=total,
            method=f"koopman, bonferroni over {int(eligible.sum())} factors",
            unit="ratio",
        )
        notes.append(f"The worst factor is {FACTORS[worst].replace('_', ' ')} ({int(n[worst]):,} images).")
    else:
        why = "no error" if not wrong_total else f"no factor with {MIN_IMAGES} images"
        notes.append(f"There is {why}, so there is no worst factor.")
    rows.append(
        {
            "factor": AVERAGE,
            "n": total,
            "errors": wrong_total,
            "error": average,
            "error_ratio": 1.0 if wrong_total else None,
            "ci_low": None,
            "ci_high": None,
            "error_ratio_any": 1.0 if wrong_total else None,
            "eligible": False,
        }
    )
    return ProbeResult(PROBE.name, PROBE.version, metrics, {"factor_errors": rows}, notes, PROBE.references)


def error_ratio_interval(
    wrong: npt.ArrayLike, n: npt.ArrayLike, wrong_total: npt.ArrayLike, total: int, *, z: float = Z95
) -> Interval:
    """Interval for (wrong / n) / (wrong_total / total) where the n images are among the total.

    With w = n / total and ρ = error with the factor over error without it, the ratio is
    ρ / (w ρ + 1 − w), which rises with ρ: the ends of Koopman's interval for ρ, of two samples that share no
    image, give the ends of the ratio's. NaN where n is 0 or all of the images, [0, ∞] replaced by [0, 1 / w].

    Args:
        wrong: int (K,), errors on the images with each factor.
        n: int (K,), number of these images.
        wrong_total: Errors on all images, one number or int (K,).
        total: Number of all images.
        z: Critical value.
    """
    wrong, n, wrong_total = (np.asarray(x, dtype=np.float64) for x in (wrong, n, wrong_total))
    usable = (n > 0) & (n < total)
    inside, outside = np.where(usable, n, 1.0), np.where(usable, total - n, 1.0)
    ends = ratio_of_shares(
        np.where(usable, wrong, 0.0), inside, np.where(usable, wrong_total - wrong, 0.0), outside, z=z
    )
    weight = inside / (inside + outside)

    def carry(rho: FloatArray) -> FloatArray:
        with np.errstate(invalid="ignore", divide="ignore"):
            inner = rho / (weight * rho + 1 - weight)
        return np.where(usable, np.where(np.isinf(rho), 1 / weight, inner), np.nan)

    return Interval(carry(ends.low), carry(ends.high))
