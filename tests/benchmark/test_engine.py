"""The local engine: records do not depend on how it ran."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from annotations.classes import NUM_CLASSES
from annotations.errors import BeyondError
from benchmark import records, runs
from benchmark.classifier import Classifier
from benchmark.engine import Settings, predict
from benchmark.images import open_image_set
from benchmark.parts import Summary
from benchmark.preprocessing import Preprocessing
from benchmark.records import Predictions
from tests.benchmark.synthetic import jpeg, write_validation_images

SMALL = Preprocessing(input_size=(32, 32), resize=36)


class Colours(nn.Module):
    """Mean colours of a 4 × 4 grid through fixed random weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(NUM_CLASSES, 48, generator=torch.Generator().manual_seed(1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(x, 4).flatten(1) @ self.weight.T


def classifier(module: nn.Module) -> Classifier:
    return Classifier("test", "test", module.eval(), SMALL, weights_sha256="0" * 64)


def run_once(
    module: nn.Module,
    images: Path,
    run: Path,
    *,
    batch_size: int = 16,
    workers: int = 0,
    top_k: int = NUM_CLASSES,
    skip_errors: bool = False,
    warn: Callable[[str], None] = lambda line: None,
) -> Summary:
    settings = Settings(
        batch_size=batch_size, workers=workers, top_k=top_k, skip_errors=skip_errors, quiet=True
    )
    with runs.locked(run):
        done, _ = runs.finished_ids(run)
        return predict(classifier(module), open_image_set(str(images)), run, settings, done=done, warn=warn)


def read_all(run: Path) -> Predictions:
    parts = list(records.iter_predictions(run))
    order = np.argsort(np.concatenate([part.image_ids for part in parts]))

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])[order]

    return Predictions(
        *(joined(n) for n in ("image_ids", "original_labels", "classes", "logits", "logsumexp"))
    )


def by_class(predictions: Predictions) -> npt.NDArray[np.float32]:
    """Logits in class order: float32 (N, 1000)."""
    assert predictions.logits is not None
    logits = np.empty_like(predictions.logits)
    np.put_along_axis(logits, predictions.classes.astype(np.intp), predictions.logits, axis=1)
    return logits


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_validation_images(tmp_path_factory.mktemp("images"), 300)


@pytest.fixture(scope="module")
def reference(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Predictions:
    run = tmp_path_factory.mktemp("reference")
    run_once(Colours(), images, run)
    return read_all(run)


def test_records_are_the_models_own_answers(images: Path, reference: Predictions) -> None:
    from benchmark.preprocessing import load_pixels

    data = (images / f"{reference.image_ids[7]}.JPEG").read_bytes()
    pixels = load_pixels(data, SMALL, name="x")
    with torch.inference_mode():
        logits = Colours()(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255)[0]
    assert reference.logits is not None
    assert reference.logsumexp is not None
    assert reference.classes[7].tolist() == logits.argsort(descending=True, stable=True).tolist()
    np.testing.assert_allclose(reference.logits[7], logits.sort(descending=True).values, rtol=1e-5, atol=1e-6)
    assert reference.logsumexp[7] == pytest.approx(float(logits.logsumexp(0)), rel=1e-5)
    assert reference.original_labels[0] == 65  # ILSVRC2012_val_00000001 is a sea snake


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (7, 2), (64, 2), (300, 0)])
def test_predictions_do_not_depend_on_batches_or_workers(
    images: Path, reference: Predictions, tmp_path: Path, batch_size: int, workers: int
) -> None:
    summary = run_once(Colours(), images, tmp_path, batch_size=batch_size, workers=workers)
    assert summary.scored == 300
    read = read_all(tmp_path)
    assert list(read.image_ids) == list(reference.image_ids)
    np.testing.assert_array_equal(read.classes[:, 0], reference.classes[:, 0])
    # Further down, classes whose logits differ by rounding alone may change places.
    np.testing.assert_allclose(by_class(read), by_class(reference), rtol=1e-4, atol=1e-5)


def test_top_k_keeps_the_best(images: Path, reference: Predictions, tmp_path: Path) -> None:
    run_once(Colours(), images, tmp_path, top_k=5)
    read = read_all(tmp_path)
    np.testing.assert_array_equal(read.classes, reference.classes[:, :5])
    np.testing.assert_array_equal(read.logsumexp, reference.logsumexp)


def test_ties_go_to_the_lower_index(images: Path, tmp_path: Path) -> None:
    class Flat(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(x), NUM_CLASSES)

    run_once(Flat(), images, tmp_path)
    assert (read_all(tmp_path).classes == np.arange(NUM_CLASSES)).all()


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA out of memory."), torch.OutOfMemoryError("x"), MemoryError()]
)
def test_out_of_memory_halves_the_batch_and_goes_on(
    images: Path, reference: Predictions, tmp_path: Path, error: BaseException
) -> None:
    class Greedy(Colours):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) > 5:
                raise error
            return super().forward(x)

    lines: list[str] = []
    run_once(Greedy(), images, tmp_path, batch_size=16, warn=lines.append)
    assert lines == ["out of memory: going on with batches of 8", "out of memory: going on with batches of 4"]
    np.testing.assert_array_equal(read_all(tmp_path).classes[:, 0], reference.classes[:, 0])


def test_out_of_memory_on_one_image_is_said(images: Path, tmp_path: Path) -> None:
    class Hopeless(Colours):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise MemoryError

    with pytest.raises(BeyondError, match="out of memory on a single image"):
        run_once(Hopeless(), images, tmp_path)


def test_another_runtime_error_is_not_taken_for_memory(images: Path, tmp_path: Path) -> None:
    class Broken(Colours):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        run_once(Broken(), images, tmp_path)


def test_nan_logits_stop_the_run_and_name_the_image(images: Path, tmp_path: Path) -> None:
    class Sometimes(Colours):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = super().forward(x)
            logits[3] = float("nan")
            return logits

    with pytest.raises(BeyondError, match=r"NaN or infinite logits on image 'ILSVRC2012_val_00000004'"):
        run_once(Sometimes(), images, tmp_path)


@pytest.mark.parametrize("outputs", [1001, 10])
def test_wrong_number_of_classes_is_said(images: Path, tmp_path: Path, outputs: int) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, outputs))
    with pytest.raises(BeyondError, match=rf"returns \(16, {outputs}\) instead of \(16, 1000\)"):
        run_once(module, images, tmp_path)


def test_a_resumed_run_scores_only_what_is_missing(
    images: Path, reference: Predictions, tmp_path: Path
) -> None:
    first = run_once(Colours(), images, tmp_path)
    assert (first.scored, first.kept) == (300, 0)
    parts = records.part_paths(tmp_path / "predictions")
    assert len(parts) == 2  # 256 + 44
    parts[0].unlink()
    second = run_once(Colours(), images, tmp_path)
    assert (second.scored, second.kept) == (256, 44)
    # The part is made again to the byte: its name carries its checksum.
    assert [path.name for path in records.part_paths(tmp_path / "predictions")] == [
        path.name for path in parts
    ]
    third = run_once(Colours(), images, tmp_path, batch_size=7)
    assert (third.scored, third.kept) == (0, 300)


def test_a_damaged_part_is_made_again(images: Path, tmp_path: Path) -> None:
    run_once(Colours(), images, tmp_path)
    path = records.part_paths(tmp_path / "predictions")[1]
    name, data = path.name, path.read_bytes()
    path.write_bytes(data[:-1] + b"!")
    done, damaged = runs.finished_ids(tmp_path)
    assert len(done) == 256
    assert [p.name for p in damaged] == [name]
    run_once(Colours(), images, tmp_path)
    assert path.read_bytes() == data


def test_unreadable_images_stop_or_are_skipped_and_counted(tmp_path: Path) -> None:
    folder = write_validation_images(tmp_path / "images", 20)
    (folder / "ILSVRC2012_val_00000005.JPEG").write_bytes(b"")
    (folder / "ILSVRC2012_val_00000009.JPEG").write_bytes(jpeg(9)[:300])
    with pytest.raises(BeyondError, match=r"ILSVRC2012_val_00000005.*empty"):
        run_once(Colours(), folder, tmp_path / "run")
    summary = run_once(Colours(), folder, tmp_path / "run", skip_errors=True)
    assert (summary.scored, summary.skipped) == (18, 2)
    skipped = runs.skipped_images(tmp_path / "run")
    assert sorted(skipped) == ["ILSVRC2012_val_00000005", "ILSVRC2012_val_00000009"]
    assert "truncated" in skipped["ILSVRC2012_val_00000009"]
    again = run_once(Colours(), folder, tmp_path / "run", skip_errors=True)
    assert (again.scored, again.skipped, again.kept) == (0, 0, 20)


def test_converted_images_are_counted_and_named(tmp_path: Path) -> None:
    folder = write_validation_images(tmp_path / "images", 4)
    (folder / "ILSVRC2012_val_00000002.JPEG").write_bytes(jpeg(2, mode="L"))
    (folder / "ILSVRC2012_val_00000003.JPEG").write_bytes(jpeg(3, mode="CMYK"))
    summary = run_once(Colours(), folder, tmp_path / "run")
    assert summary.notes == {"greyscale": ["ILSVRC2012_val_00000002"], "CMYK": ["ILSVRC2012_val_00000003"]}
    assert summary.scored == 4
