"""Prediction files: what is read equals what was meant, and every mistake gets one clear line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from annotations.classes import validation_id, validation_ids, validation_labels, wnids
from annotations.errors import BeyondError
from benchmark.prediction_files import image_id_of, read_prediction_file


@pytest.fixture
def top5() -> npt.NDArray[np.int16]:
    """Top-5 classes of three images."""
    return np.array([[1, 2, 3, 4, 5], [9, 8, 7, 6, 5], [0, 999, 10, 20, 30]], dtype=np.int16)


def test_full_numpy_follows_the_ground_truth(tmp_path: Path) -> None:
    classes = np.tile(np.arange(5, dtype=np.int32), (50_000, 1))
    classes[6] = [950, 1, 2, 3, 4]
    np.save(tmp_path / "p.npy", classes)
    read = read_prediction_file(tmp_path / "p.npy")
    assert read.image_ids[6] == "ILSVRC2012_val_00000007"
    assert read.classes[6, 0] == 950
    assert read.original_labels[6] == 334  # known: the porcupine
    assert read.classes.dtype == np.int16


def test_numpy_with_ids_is_joined_by_id(tmp_path: Path, top5: npt.NDArray[np.int16]) -> None:
    np.save(tmp_path / "p.npy", top5)
    (tmp_path / "ids.txt").write_text(
        "ILSVRC2012_val_00000300.JPEG\nval/ILSVRC2012_val_00000001.JPEG\nILSVRC2012_val_00000200\n"
    )
    read = read_prediction_file(tmp_path / "p.npy", ids_file=tmp_path / "ids.txt")
    assert list(read.image_ids) == [validation_id(1), validation_id(200), validation_id(300)]
    assert read.classes[:, 0].tolist() == [9, 0, 1]
    assert read.original_labels.tolist() == [int(validation_labels()[i - 1]) for i in (1, 200, 300)]


def test_one_class_an_image_is_enough(tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", np.zeros(50_000, dtype=np.int64))
    assert read_prediction_file(tmp_path / "p.npy").classes.shape == (50_000, 1)


def test_csv_takes_indices_wnids_and_probabilities(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(
        "file_name,predicted_class,predicted_probability\n"
        f"ILSVRC2012_val_00000002.JPEG,{wnids()[795]},0.25\nILSVRC2012_val_00000001.JPEG,65,1\n"
    )
    read = read_prediction_file(tmp_path / "p.csv")
    assert read.classes.tolist() == [[65], [795]]
    assert read.logits is not None
    assert read.logsumexp is not None
    assert np.exp(read.logits[:, 0] - read.logsumexp) == pytest.approx([1, 0.25])


def test_csv_without_probabilities_has_no_logits(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("file_name,predicted_class\nILSVRC2012_val_00000001.JPEG,65\n")
    assert read_prediction_file(tmp_path / "p.csv").logits is None


def test_parquet_with_its_own_labels_may_hold_other_images(tmp_path: Path) -> None:
    table = pa.table({"image_id": ["b", "a"], "classes": [[1, 2], [3, 4]], "original_label": [1, 2]})
    pq.write_table(table, tmp_path / "p.parquet")
    read = read_prediction_file(tmp_path / "p.parquet")
    assert list(read.image_ids) == ["a", "b"]
    assert read.original_labels.tolist() == [2, 1]
    assert read.classes.tolist() == [[3, 4], [1, 2]]


@pytest.mark.parametrize(
    ("name", "image_id"),
    [("a/b.JPEG", "b"), ("b.c.png", "b.c"), ("b", "b"), ("v1.5", "v1.5"), ("x\\y.jpg", "y")],
)
def test_image_id_of(name: str, image_id: str) -> None:
    assert image_id_of(name) == image_id


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files with one mistake each, and what the message must say."""
    one = validation_id(1)
    cases: dict[str, tuple[Path, str]] = {}

    def array(name: str, value: npt.NDArray[np.generic], says: str) -> None:
        np.save(folder / f"{name}.npy", value)
        cases[name] = (folder / f"{name}.npy", says)

    def text(name: str, content: str, says: str) -> None:
        (folder / f"{name}.csv").write_text(content)
        cases[name] = (folder / f"{name}.csv", says)

    def parquet(name: str, columns: dict[str, list[object]], says: str) -> None:
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
        cases[name] = (folder / f"{name}.parquet", says)

    top5 = np.tile(np.arange(5), (50_000, 1))
    array("short", top5[:49_999], "49999 rows instead of 50,000")
    array("floats", top5.astype(float), "needs integer class indices")
    array("cube", top5[None], "needs integer class indices")
    array("background", top5 + 996, "outside 0..999 (1001 classes? drop the background class)")
    array("negative", top5 - 1, "class -1 is outside 0..999")
    array("repeats", top5 * 0, "repeat one another")
    array("empty", np.zeros((0, 5), dtype=int), "0 rows")
    array("objects", np.array([{"a": 1}], dtype=object), "cannot be read")
    text("header", "image,label\nx,1\n", "no column 'file_name'")
    text("word", f"file_name,predicted_class\n{one},cat\n", "line 2: 'cat' is no class index or wnid")
    text("fraction", f"file_name,predicted_class\n{one},1.5\n", "line 2: '1.5' is no class index")
    text("gap", f"file_name,predicted_class\n{one},\n", "line 2: predicted_class is empty")
    text("range", f"file_name,predicted_class\n{one},1000\n", "class 1000 is outside 0..999")
    text("twice", f"file_name,predicted_class\n{one},1\n{one},2\n", "appears twice")
    text(
        "stranger",
        "file_name,predicted_class\ncat.jpg,1\n",
        "'cat' is not in the ILSVRC2012 validation ground truth",
    )
    text("beyond", "file_name,predicted_class\nILSVRC2012_val_00050001.JPEG,1\n", "not in the ILSVRC2012")
    text("percent", f"file_name,predicted_class,predicted_probability\n{one},1,85\n", "not in [0, 1]")
    text("nothing", "file_name,predicted_class\n", "holds no predictions")
    text("blank", "", "cannot be read as csv predictions")
    parquet("columns", {"image_id": [one]}, "no column 'classes'")
    parquet(
        "ragged", {"image_id": [one, validation_id(2)], "classes": [[1], [1, 2]]}, "same number of entries"
    )
    parquet(
        "disagrees",
        {"image_id": [one], "classes": [[1]], "original_label": [3]},
        "disagrees with the ground truth (65)",
    )
    parquet(
        "label",
        {"image_id": ["x"], "classes": [[1]], "original_label": [1000]},
        "original_label 1000 is outside",
    )
    (folder / "junk.parquet").write_bytes(b"PAR1 this is no parquet file")
    cases["junk"] = (folder / "junk.parquet", "is not a readable Parquet file")
    (folder / "p.txt").write_text("x")
    cases["suffix"] = (folder / "p.txt", "must be one of .parquet, .csv, .npy")
    cases["missing"] = (folder / "none.npy", "no such predictions file")
    return cases


BAD = [
    "short", "floats", "cube", "background", "negative", "repeats", "empty", "objects", "header", "word",
    "fraction", "gap", "range", "twice", "stranger", "beyond", "percent", "nothing", "blank", "columns",
    "ragged", "disagrees", "label", "junk", "suffix", "missing",
]  # fmt: skip


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    cases = bad_files(tmp_path_factory.mktemp("bad"))
    assert sorted(cases) == sorted(BAD)
    return cases


@pytest.mark.parametrize("case", BAD)
def test_bad_file_gets_one_clear_line(case: str, bad: dict[str, tuple[Path, str]]) -> None:
    path, says = bad[case]
    with pytest.raises(BeyondError) as caught:
        read_prediction_file(path)
    message = str(caught.value)
    assert says in message
    assert path.name in message


def test_ids_must_match_the_rows_and_go_with_numpy_only(tmp_path: Path, top5: npt.NDArray[np.int16]) -> None:
    np.save(tmp_path / "p.npy", top5)
    (tmp_path / "ids.txt").write_text("a b")
    with pytest.raises(BeyondError, match=r"3 rows, but .* names 2 images"):
        read_prediction_file(tmp_path / "p.npy", ids_file=tmp_path / "ids.txt")
    with pytest.raises(BeyondError, match="no such file of ids"):
        read_prediction_file(tmp_path / "p.npy", ids_file=tmp_path / "none.txt")
    frame = pd.DataFrame({"file_name": [validation_ids()[0]], "predicted_class": [1]})
    frame.to_csv(tmp_path / "p.csv", index=False)
    with pytest.raises(BeyondError, match="carries its own ids"):
        read_prediction_file(tmp_path / "p.csv", ids_file=tmp_path / "ids.txt")
