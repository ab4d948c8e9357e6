"""Factor error ratios: equal to the package imagenet-x, and intervals that cover."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from annotations import sources
from annotations.classes import package_file, validation_ids, validation_labels
from annotations.errors import BeyondError
from annotations.factors import FACTORS
from benchmark.prediction_files import read_prediction_file
from benchmark.probes.execution import Evidence
from benchmark.probes.factors import MIN_IMAGES, error_ratio_interval, score, score_correct
from benchmark.statistics import ratio_of_shares

MODELS = ("resnet50", "vgg16", "alexnet")


@pytest.mark.shared
def test_ratios_equal_those_of_the_package(shared_data: Path, tmp_path: Path) -> None:
    from imagenet_x import error_ratio, get_factor_accuracies

    # The package wants the files in its own order.
    order = pd.read_csv(package_file("imagenet_x", "annotations", "filename_label.csv"))["file_name"]
    ids = [f"{name}.JPEG" for name in validation_ids()]
    for model in MODELS:
        top1 = pd.Series(np.load(shared_data / "predictions" / f"{model}.npy")[:, 0], index=ids)
        columns = {
            "file_name": order,
            "predicted_class": top1[order].to_numpy(),
            "predicted_probability": 1.0,
        }
        pd.DataFrame(columns).to_csv(tmp_path / f"{model}.csv", index=False)
    theirs = error_ratio(get_factor_accuracies(str(tmp_path), which_factor="top"))
    multi = error_ratio(get_factor_accuracies(str(tmp_path), which_factor="multi"))
    for model in MODELS:
        predictions = read_prediction_file(shared_data / "predictions" / f"{model}.npy")
        result = score(Evidence(predictions=partial(iter, [predictions])))
        rows = {row["factor"]: row for row in result.tables["factor_errors"]}
        for factor in FACTORS:
            assert rows[factor]["error_ratio"] == pytest.approx(theirs.loc[model, factor], abs=1e-9)
            assert rows[factor]["error_ratio_any"] == pytest.approx(multi.loc[model, factor], abs=1e-9)
        worst = result.metrics["worst_factor_error_ratio"]
        assert worst.value == pytest.approx(theirs.loc[model, list(FACTORS)].max(), abs=1e-9)
        assert worst.ci_low is not None
        assert worst.ci_high is not None
        assert 1 < worst.ci_low < worst.value < worst.ci_high


def test_koopmans_interval_equals_statsmodels() -> None:
    from statsmodels.stats.proportion import confint_proportions_2indep

    for k1, n1, k2, n2 in [(5, 20, 10, 50), (0, 10, 5, 20), (7, 10, 3, 20), (1300, 15000, 4000, 31000)]:
        expected = confint_proportions_2indep(
            k1, n1, k2, n2, method="score", compare="ratio", correction=False
        )
        assert tuple(map(float, ratio_of_shares(k1, n1, k2, n2))) == pytest.approx(expected, abs=1e-6)


def test_koopmans_interval_turns_round_with_its_samples() -> None:
    k1, n1, k2, n2 = np.array([[3, 9, 10, 0, 0], [10, 9, 10, 7, 5], [4, 1, 10, 3, 0], [12, 30, 10, 40, 5]])
    low, high = ratio_of_shares(k1, n1, k2, n2)
    back_low, back_high = ratio_of_shares(k2, n2, k1, n1)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(low, 1 / back_high, rtol=1e-6)
        np.testing.assert_allclose(high, 1 / back_low, rtol=1e-6)
    assert (low[4], high[4]) == (0, np.inf)


@pytest.mark.parametrize(("n", "error", "ratio"), [(40, 0.25, 2.0), (200, 0.1, 1.0), (60, 0.3, 0.5)])
def test_the_interval_of_a_ratio_covers(n: int, error: float, ratio: float) -> None:
    rng, total, trials = np.random.default_rng(7), 2000, 6000
    inside, weight = error * ratio, n / total
    outside = (error - weight * inside) / (1 - weight)
    wrong = rng.binomial(n, inside, trials)
    rest = rng.binomial(total - n, outside, trials)
    low, high = error_ratio_interval(wrong, np.full(trials, n), wrong + rest, total)
    covered = ((low <= ratio) & (ratio <= high)).mean()
    assert 0.93 < covered < 0.975


def made(errors: dict[str, tuple[int, int]]) -> tuple[pd.DataFrame, pd.Series]:
    """Factor annotations and correctness from (wrong, n) a factor; made up."""
    rows, right = [], []
    for factor, (wrong, n) in errors.items():
        for i in range(n):
            rows.append({"image_id": f"{factor}{i}", "top_factor": factor, **dict.fromkeys(FACTORS, False)})
            rows[-1][factor] = True
            right.append(i >= wrong)
    table = pd.DataFrame(rows)
    return table, pd.Series(right, index=table["image_id"])


def test_the_worst_factor_by_hand() -> None:
    # 60 of 300 wrong in all; pose 12 of 100, texture 30 of 100, style 3 of 4: too few to be the worst.
    result = score_correct(
        *made({"pose": (12, 100), "texture": (30, 100), "style": (3, 4), "shape": (15, 96)})
    )
    worst = result.metrics["worst_factor_error_ratio"]
    assert worst.value == pytest.approx(0.3 / 0.2)
    assert worst.n == 300
    assert worst.method == "koopman, bonferroni over 3 factors"
    first, second = result.tables["factor_errors"][:2]
    assert (first["factor"], first["eligible"], second["factor"]) == ("style", False, "texture")
    assert any("texture (100 images)" in note for note in result.notes)
    # Wider than the interval of texture alone, since the worst was picked.
    assert worst.ci_high is not None
    assert isinstance(second["ci_high"], float)
    assert worst.ci_high > second["ci_high"]


def test_the_interval_of_the_worst_covers_though_it_was_picked() -> None:
    rng = np.random.default_rng(11)
    names = ("pose", "texture", "style", "shape", "darker", "larger")
    n, covered, trials = 80, 0, 300
    z = 2.6382572734  # 1 − 0.025 / 6 of the normal distribution
    for _ in range(trials):
        wrong = rng.binomial(n, 0.3, len(names))  # all alike: the true worst ratio is 1
        low, high = error_ratio_interval(wrong, np.full(len(names), n), int(wrong.sum()), n * len(names), z=z)
        covered += low.max() <= 1 <= high.max()
    assert covered / trials >= 0.94


def test_no_error_and_too_few_images_give_no_worst_factor() -> None:
    none = score_correct(*made({"pose": (0, 50), "texture": (0, 50)}))
    assert none.metrics == {}
    assert all(row["error_ratio"] is None for row in none.tables["factor_errors"])
    assert any("no error" in note for note in none.notes)
    few = score_correct(*made({"pose": (2, MIN_IMAGES - 1), "texture": (1, 3)}))
    assert few.metrics == {}
    assert any(f"no factor with {MIN_IMAGES}" in note for note in few.notes)


def test_one_factor_alone_has_nothing_to_be_compared_with() -> None:
    assert score_correct(*made({"pose": (5, 50)})).metrics == {}


def test_images_without_annotations_are_one_clear_line() -> None:
    with pytest.raises(BeyondError, match="none of these images has factor annotations"):
        score_correct(sources.imagenet_x_factors(), pd.Series([True], index=["nobody"]))


def test_only_labelled_images_count() -> None:
    from benchmark.records import Predictions

    ids, labels = validation_ids()[:3000], validation_labels()[:3000].copy()
    classes = np.stack([labels, labels], axis=1)
    classes[::4, 0] = (classes[::4, 0] + 1) % 1000
    unlabelled = labels.copy()
    unlabelled[1::2] = -1
    whole, half = (
        score(Evidence(predictions=partial(iter, [Predictions(ids, known, classes)])))
        for known in (labels, unlabelled)
    )
    n_whole, n_half = (r.tables["factor_errors"][-1]["n"] for r in (whole, half))
    assert isinstance(n_whole, int)
    assert isinstance(n_half, int)
    assert 0.4 * n_whole < n_half < 0.6 * n_whole
