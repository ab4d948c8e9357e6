"""The main job on real data, against figures computed elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmark import records
from tests.benchmark.test_cli import run
from tests.benchmark.test_engine import by_class


@pytest.mark.shared
def test_published_predictions_give_the_known_figures(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Top-1, top-5, ReaL, top-1 on ReaL's images, MLA by class; in percent, to three decimals."""
    monkeypatch.setenv("BEYOND_SHARED_DATA", str(shared_data))
    expected = {
        "resnet50": (76.130, 92.862, 82.958, 78.508, 85.080),
        "alexnet": (56.518, 79.070, 63.061, 58.966, 64.280),
        "vgg16": (71.592, 90.382, 79.040, 74.187, 80.417),
    }
    files = [shared_data / "predictions" / f"{name}.npy" for name in expected]
    assert (
        run("score", "--predictions", *files, "--annotations", "real,mla", "--out", tmp_path, "--json") == 0
    )
    names = ("top1", "top5", "real_accuracy", "top1_evaluable", "mla")
    for card in json.loads(capsys.readouterr().out):
        metrics = card["tracks"]["rectified"]["metrics"]
        values = tuple(round(100 * metrics[name]["value"], 3) for name in names)
        assert values == expected[card["model"]["name"]]
        assert metrics["real_accuracy"]["n"] == metrics["top1_evaluable"]["n"] == 46_837
        assert metrics["top1"]["n"] == 50_000
        if card["model"]["name"] == "resnet50":
            plain = metrics["mla_plain"]
            assert plain["n"] == 18_692
            assert plain["n"] - plain["judged"] == 54
            bounds = [round(100 * plain[name], 3) for name in ("value", "lower", "upper")]
            # 15,941 of 18,692, and 15,995 if all unjudged were accepted.
            assert bounds == [85.282, 85.282, 85.571]


@pytest.mark.shared
def test_lite0_on_the_shared_sample(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = shared_data / "ilsvrc-val-sample"
    assert run("score", "efficientnet-lite0", "--images", images, "--out", tmp_path / "all", "--json") == 0
    card = json.loads(capsys.readouterr().out)
    metrics = card["tracks"]["rectified"]["metrics"]
    assert card["images"]["sample"] is True
    assert metrics["top1"]["n"] == 878
    assert 100 * metrics["top1"]["value"] == pytest.approx(83.3, abs=0.3)
    assert metrics["real_accuracy"]["n"] == 841
    assert 100 * metrics["real_accuracy"]["value"] == pytest.approx(88.1, abs=0.3)


@pytest.mark.shared
@pytest.mark.parametrize(("batch_size", "workers"), [(1, 2), (7, 0)])
def test_lite0_predicts_the_same_with_any_batch_and_workers(
    shared_data: Path, tmp_path: Path, batch_size: int, workers: int
) -> None:
    def score(name: str, batch: int, processes: int) -> list[records.Predictions]:
        images = shared_data / "ilsvrc-val-sample"
        options = ("--limit", "96", "--batch-size", str(batch), "--workers", str(processes))
        assert run("score", "efficientnet-lite0", "--images", images, "--out", tmp_path / name, *options) == 0
        return list(records.iter_predictions(tmp_path / name))

    (one,), (other,) = score("a", 64, 2), score("b", batch_size, workers)
    assert list(one.image_ids) == list(other.image_ids)
    np.testing.assert_array_equal(one.classes[:, 0], other.classes[:, 0])
    np.testing.assert_allclose(by_class(one), by_class(other), atol=1e-4)
