"""The watermark: the package's own, byte for byte; the same twice; and what a model does that reads it."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from annotations import sources
from annotations.errors import BeyondError
from benchmark.engine import Settings
from benchmark.images import ImageSet, open_image_set
from benchmark.models import load
from benchmark.probes.execution import Evidence, Observation
from benchmark.probes.watermark import (
    CARTON,
    MARKED,
    PLAIN,
    Pairs,
    add_watermark,
    coverage,
    observe,
    pair,
    score,
    score_pairs,
)
from benchmark.records import Predictions, iter_predictions, part_paths
from tests.benchmark.synthetic import write_user_model, write_validation_images

SIZES = [(224, 224), (240, 240), (260, 260), (384, 384), (64, 64), (224, 320), (299, 250)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_it_is_the_packages_mark_byte_for_byte(size: tuple[int, int]) -> None:
    from imagenet_w import AddWatermark

    pixels = np.random.default_rng(0).integers(0, 256, (3, *size, 3), dtype=np.uint8)
    pixels[0], pixels[1] = 255, 0
    draw = AddWatermark(min(size))
    theirs = np.stack([np.asarray(draw(Image.fromarray(p))) for p in pixels])
    ours = add_watermark(pixels)
    np.testing.assert_array_equal(ours, theirs)
    assert (ours != pixels).any()


def test_it_equals_the_packages_transform_of_tensors() -> None:
    from imagenet_w import AddWatermark

    pixels = np.random.default_rng(1).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
    theirs = AddWatermark(224)(torch.from_numpy(pixels[0]).permute(2, 0, 1).float() / 255)
    np.testing.assert_allclose(add_watermark(pixels)[0] / 255, theirs.permute(1, 2, 0).numpy(), atol=1e-6)


def test_it_leaves_its_input_alone_and_is_the_same_twice() -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    before = pixels.copy()
    first = add_watermark(pixels)
    coverage.cache_clear()
    np.testing.assert_array_equal(first, add_watermark(pixels))
    np.testing.assert_array_equal(pixels, before)
    # White only brightens, and only a part of the picture.
    assert (first >= pixels).all()
    assert 0.02 < (coverage(224, 224) > 0).mean() < 0.2


def test_a_missing_package_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagenet_w", None)
    coverage.cache_clear()
    with pytest.raises(BeyondError, match=r"pip install 'beyond-accuracy\[probes\]'"):
        coverage(32, 32)


# A model that reads the mark ------------------------------------------------------------------------------

# It says "carton" where the middle rows are brighter than black, and else class 3 or 4 by the corner.
READER = textwrap.dedent(
    """
    import torch
    from torch import nn
    from benchmark.preprocessing import Preprocessing


    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            logits = torch.zeros(len(x), 1000)
            logits[:, 478] = 1000 * x[:, :, 25:35].mean((1, 2, 3)) * self.scale
            logits[:, 3] = 5 + 10 * (x[:, 0, 60, 60] > 0.5)
            logits[:, 4] = 10.0
            return logits


    def model():
        return Reader(), Preprocessing(input_size=(64, 64), resize=None, mean=(0.0,) * 3, std=(1.0,) * 3)
    """
)


@pytest.fixture
def dark(tmp_path: Path) -> ImageSet:
    """Ten black images, labelled 3 and 4 in turn, with a white corner where the label is 3."""
    folder = tmp_path / "dark"
    folder.mkdir()
    lines = ["image_id,class_index"]
    for i in range(10):
        image = np.zeros((64, 64, 3), dtype=np.uint8)
        if i % 2 == 0:
            image[56:, 56:] = 255
        Image.fromarray(image).save(folder / f"made{i}.png")
        lines.append(f"made{i},{3 + i % 2}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return open_image_set(str(folder))


def look(
    folder: Path, spec: str, images: ImageSet, *, batch_size: int = 4, plain: Path | None = None
) -> list[str]:
    """Observe; returns the lines that the user was told."""
    said: list[str] = []
    reader: Callable[..., object] | None = None if plain is None else partial(iter_predictions, plain)
    observe(
        Observation(
            load(spec),
            images,
            folder,
            Settings(batch_size=batch_size, workers=0, device=torch.device("cpu"), quiet=True),
            warn=said.append,
            plain=reader,  # type: ignore[arg-type]
        )
    )
    return said


def test_a_model_that_reads_the_mark_is_found_out(tmp_path: Path, dark: ImageSet) -> None:
    (tmp_path / "reader.py").write_text(READER)
    look(tmp_path / "p", f"{tmp_path / 'reader.py'}:model", dark)
    result = score(Evidence(folder=tmp_path / "p"))
    assert {name: metric.value for name, metric in result.metrics.items()} == {
        "watermark_drop": 1.0,
        "watermark_carton_shift": 1.0,
        "watermark_changed": 1.0,
    }
    low = result.metrics["watermark_drop"].ci_low
    assert low is not None
    assert 0.4 < low < 1
    assert result.tables["watermark_classes"][0]["class_index"] == CARTON
    assert result.tables["watermark_classes"][0]["watermark"] == 10
    assert result.tables["watermark_accuracy"][0]["plain"] == 1.0


def test_any_image_set_gives_the_same_bytes_twice(tmp_path: Path) -> None:
    images = open_image_set(str(write_validation_images(tmp_path / "i", 30)))
    spec = write_user_model(tmp_path)
    for name in ("first", "second"):
        look(tmp_path / name, spec, images)
    for shown in (PLAIN, MARKED):
        # The name of a part carries the checksum of its bytes.
        names = [
            [p.name for p in part_paths(tmp_path / n / shown / "predictions")] for n in ("first", "second")
        ]
        assert names[0] == names[1] != []
    first, second = (score(Evidence(folder=tmp_path / name)) for name in ("first", "second"))
    assert first == second
    assert first.metrics["watermark_changed"].n == 30


def test_it_resumes_and_can_use_what_a_run_has_recorded(tmp_path: Path) -> None:
    images = open_image_set(str(write_validation_images(tmp_path / "i", 20)))
    spec = write_user_model(tmp_path)
    look(tmp_path / "whole", spec, images)
    look(tmp_path / "half", spec, images, plain=tmp_path / "whole" / PLAIN)
    assert not (tmp_path / "half" / PLAIN).exists()
    evidence = Evidence(
        folder=tmp_path / "half", predictions=partial(iter_predictions, tmp_path / "whole" / PLAIN)
    )
    assert score(evidence) == score(Evidence(folder=tmp_path / "whole"))
    # What is done is not done again, and a damaged part is made again.
    part = part_paths(tmp_path / "whole" / MARKED / "predictions")[0]
    stamp, data = part.stat().st_mtime_ns, part.read_bytes()
    assert look(tmp_path / "whole", spec, images) == []
    assert part.stat().st_mtime_ns == stamp
    part.write_bytes(data[:-9])
    assert any("damaged" in line for line in look(tmp_path / "whole", spec, images))
    assert part.read_bytes() == data
    with pytest.raises(BeyondError, match="holds no predictions without the watermark"):
        score(Evidence(folder=tmp_path / "half"))


def test_other_images_are_refused(tmp_path: Path) -> None:
    spec = write_user_model(tmp_path)
    look(tmp_path / "p", spec, open_image_set(str(write_validation_images(tmp_path / "a", 5))))
    with pytest.raises(BeyondError, match="another images"):
        look(tmp_path / "p", spec, open_image_set(str(write_validation_images(tmp_path / "b", 6))))


# Scoring ----------------------------------------------------------------------------------------------------


def predictions(ids: list[str], labels: list[int], top: list[int]) -> Predictions:
    classes = np.array([[t, (t + 1) % 1000] for t in top], dtype=np.int16)
    return Predictions(np.array(ids, dtype=object), np.array(labels, dtype=np.int16), classes)


def test_pairs_are_joined_by_id_and_not_by_place() -> None:
    pairs = pair(
        iter([predictions(["a", "b"], [1, 2], [1, 2]), predictions(["c"], [3], [7])]),
        iter([predictions(["c", "x", "a"], [3, 0, 1], [CARTON, 0, 1])]),
    )
    assert pairs.image_ids.tolist() == ["a", "c"]
    assert pairs.plain.tolist() == [1, 7]
    assert pairs.marked.tolist() == [1, CARTON]
    with pytest.raises(BeyondError, match="other images"):
        pair(iter([predictions(["a"], [1], [1])]), iter([predictions(["b"], [1], [1])]))


def make_pairs(labels: list[int], plain: list[int], marked: list[int]) -> Pairs:
    nothing = np.full(len(labels), np.nan)
    known, before, after = (np.array(x, dtype=np.int16) for x in (labels, plain, marked))
    ids = np.array([f"i{n}" for n in range(len(labels))], dtype=object)
    return Pairs(ids, known, before, after, nothing, nothing)


def test_drop_and_shift_by_hand_and_their_intervals_by_statsmodels() -> None:
    from statsmodels.stats.proportion import proportion_confint

    labels = [1, 1, 1, 1, 1, 1, CARTON, CARTON, -1, -1]
    plain = [1, 1, 1, 1, 2, 2, CARTON, 5, 9, CARTON]
    marked = [1, CARTON, CARTON, 3, 1, 2, CARTON, CARTON, CARTON, CARTON]
    result = score_pairs(make_pairs(labels, plain, marked), {})
    drop = result.metrics["watermark_drop"]
    # Of 8 labelled images 5 are right without it (1 of them a carton) and 4 with it.
    assert drop.n == 8
    assert drop.value == pytest.approx(1 / 8)
    shift = result.metrics["watermark_carton_shift"]
    # Of 8 images that are no cartons, 1 is called so without the mark and 4 with it.
    assert shift.n == 8
    assert shift.value == pytest.approx(3 / 8)
    changed = result.metrics["watermark_changed"]
    assert (changed.n, changed.value) == (10, 0.6)
    assert (changed.ci_low, changed.ci_high) == pytest.approx(proportion_confint(6, 10, method="wilson"))


def test_unlabelled_images_give_no_drop_but_all_else() -> None:
    result = score_pairs(make_pairs([-1, -1], [3, 4], [3, CARTON]), {})
    assert set(result.metrics) == {"watermark_carton_shift", "watermark_changed"}
    assert any("no accuracy drop" in note for note in result.notes)


def test_nothing_changes_where_nothing_is_seen() -> None:
    result = score_pairs(make_pairs([1] * 40, [1] * 40, [1] * 40), {})
    drop = result.metrics["watermark_drop"]
    assert drop.value == 0
    assert drop.ci_low is not None
    assert drop.ci_high is not None
    assert drop.ci_low < 0 < drop.ci_high
    assert result.tables["watermark_classes"] == []


def test_the_drop_is_also_told_by_what_people_accept() -> None:
    sample = sources.load("sample")
    images = open_image_set("sample")
    label = images.labels.tolist()
    pairs = Pairs(
        images.ids,
        images.labels,
        images.labels,
        np.array([CARTON] * len(label), dtype=np.int16),
        np.full(len(label), np.nan),
        np.full(len(label), np.nan),
    )
    rows = score_pairs(pairs, {"sample": sample}).tables["watermark_accuracy"]
    assert [row["judged_by"] for row in rows] == ["original label", "sample"]
    assert rows[1]["watermark"] == 0.0
