"""Accuracy of a classifier on images that people described by a factor (ImageNet-X: pose, background, ...).

The figures are those of the `imagenet-x` package (Idrissi et al. 2023): a factor's accuracy is a mean over
the images that have it, and its error ratio is its error over the error on all annotated images.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd

from annotations.errors import BeyondError

FACTORS = (
    "pose",
    "background",
    "pattern",
    "color",
    "smaller",
    "shape",
    "partial_view",
    "subcategory",
    "texture",
    "larger",
    "darker",
    "object_blocking",
    "person_blocking",
    "style",
    "brighter",
    "multiple_objects",
)
AVERAGE = "average"


def factor_accuracies(
    factors: pd.DataFrame, correct: pd.Series, *, which: Literal["top", "multi"] = "top"
) -> pd.DataFrame:
    """Accuracy per factor.

    Args:
        factors: As `annotations.sources.imagenet_x_factors` returns it.
        correct: bool, indexed by image id, whether the prediction is right. Images that only one of the two
            knows are left out.
        which: Count an image under its one most salient factor (`top`, the package's default) or under every
            factor that it has (`multi`).

    Returns:
        One row per factor in the order of `FACTORS`, then the row `average` over all annotated images.
        Columns: n, n_correct (int), accuracy (float in [0, 1], NaN where n is 0).

    Raises:
        BeyondError: No image of `correct` is annotated, or an id is listed twice.

    Example:
        >>> table = pd.DataFrame({"image_id": ["a", "b"], "top_factor": ["pose", "pose"]})
        >>> factor_accuracies(table, pd.Series([True, False], index=["a", "b"])).loc["pose", "accuracy"]
        0.5
    """
    ids = pd.Index(correct.index)
    if not ids.is_unique:
        raise BeyondError(
            f"image {ids[ids.duplicated()][0]!r} is listed twice; give one prediction per image"
        )
    at = ids.get_indexer(pd.Index(factors["image_id"]))
    shared = factors[at >= 0]
    if not len(shared):
        raise BeyondError(
            "none of these images has factor annotations; they cover the ImageNet validation images"
        )
    right = correct.to_numpy(dtype=bool)[at[at >= 0]]
    rows = []
    for factor in FACTORS:
        if which == "top":
            has = (shared["top_factor"] == factor).to_numpy(dtype=bool, na_value=False)
        else:
            has = shared[factor].to_numpy(dtype=bool)
        rows.append((factor, int(has.sum()), int(right[has].sum())))
    rows.append((AVERAGE, len(right), int(right.sum())))
    table = pd.DataFrame(rows, columns=["factor", "n", "n_correct"]).set_index("factor")
    table["accuracy"] = table["n_correct"] / table["n"].replace(0, np.nan)
    return table


def error_ratios(accuracies: pd.DataFrame) -> pd.Series:
    """Error of each factor over the error on all annotated images: float (16,), 1 is no effect.

    Args:
        accuracies: As `factor_accuracies` returns it.

    NaN for a factor without images, and for all where the classifier makes no error.
    """
    error = 1 - accuracies["accuracy"]
    average = float(error.loc[AVERAGE])
    return error.loc[list(FACTORS)] / (average if average > 0 else np.nan)
