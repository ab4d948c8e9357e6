"""What fuzzing found: each was once another exception than BeyondError, a silent wrong number, or no end."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from annotations.errors import BeyondError
from benchmark.cli import main
from benchmark.images import open_image_set
from tests.fuzz.targets import SPECS, TARGETS, Target

BY_NAME: dict[str, Target] = {target.name: target for target in TARGETS}
Spoil = Callable[[bytes], bytes]


def table(change: Callable[[pa.Table], pa.Table]) -> Spoil:
    """Change the table in a Parquet file."""

    def spoil(data: bytes) -> bytes:
        sink = pa.BufferOutputStream()
        pq.write_table(change(pq.read_table(pa.BufferReader(data))), sink)
        return bytes(sink.getvalue())

    return spoil


def column(name: str, values: list[Any], kind: Any = None) -> Spoil:
    """Put another column in the place of one; values repeat."""

    def change(found: pa.Table) -> pa.Table:
        filled = pa.array((values * found.num_rows)[: found.num_rows], kind)
        return found.set_column(found.column_names.index(name), name, filled)

    return table(change)


def twice(name: str) -> Spoil:
    return table(lambda found: found.append_column(name, found[name]))


def value(change: Callable[[Any], Any]) -> Spoil:
    """Change the data in a JSON file."""
    return lambda data: json.dumps(change(json.loads(data))).encode()


def put(data: bytes) -> Spoil:
    return lambda _: data


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def header(data: bytes) -> bytes:
    """A NumPy header that Python's tokenizer gives up on."""
    return data.replace(b"'descr'", b"('desc'", 1)


DEEP = b"[" * 100_000
LISTS: tuple[list[Any], Any] = ([[1]], pa.list_(pa.int64()))

FOUND = [
    # Parquet: pages behind a sound footer, other types, no UTF-8, doubles, nulls, NaN that became a number.
    ("predictions.parquet", cut, "not a readable Parquet file"),
    ("predictions.parquet", lambda data: data[:4] + b"\x00" * 60 + data[64:], "not a readable Parquet file"),
    ("predictions.parquet", column("classes", [5]), "'classes' holds int64"),
    ("predictions.parquet", column("classes", [["a"]]), "'classes' holds list"),
    ("predictions.parquet", column("classes", [[1, None, 2]]), "is empty or has an entry that is"),
    ("predictions.parquet", column("logits", [[float("nan")] * 3]), "NaN, infinite or missing"),
    ("predictions.parquet", column("logsumexp", [None, 1.0]), "NaN, infinite or missing"),
    ("predictions.parquet", column("original_label", [70_000]), "original_label 70000 is outside"),
    ("predictions.parquet", column("original_label", [2.5]), "'original_label' holds double"),
    ("predictions.parquet", column("image_id", *LISTS), "'image_id' holds list"),
    ("predictions.parquet", column("image_id", [None, "a"]), "without an image_id"),
    ("predictions.parquet", column("image_id", [b"\xff"], pa.binary()), "'image_id' holds binary"),
    ("predictions.parquet", twice("classes"), "Multiple matches|two columns 'classes'"),
    ("records", cut, "not a readable Parquet file"),
    ("records", column("classes", [[5000, 1, 2]]), "class 5000 is outside"),
    ("finished", column("image_id", *LISTS), "'image_id' holds list"),
    ("skipped", table(lambda found: found.drop_columns(["reason"])), "Parquet|reason"),
    ("skipped", column("reason", [None]), "without a value"),
    ("attacks", column("status", *LISTS), "'status' holds list"),
    ("attacks", column("inside", [["a"]]), "'inside' holds list"),
    ("distances", column("suite", *LISTS), "'suite' holds list"),
    ("distances", column("image_id", [b"\xff\xfe"], pa.binary()), "'image_id' holds binary"),
    ("bounds of records", cut, "not a readable Parquet file"),
    ("judgements", column("image_id", *LISTS), "'image_id' holds list"),
    ("images of judgements", column("original_label", ["x"]), "'original_label' holds string"),
    ("votes", column("answer", *LISTS), "'answer' holds list"),
    ("votes", column("class_index", ["x"]), "'class_index' holds string"),
    ("imported votes", cut, "not a readable Parquet file"),
    ("attributes.parquet", column("value", [b"\xff"], pa.binary()), "'value' holds binary"),
    ("table of images", twice("label"), "two columns 'label'"),
    ("table of images", column("label", ["x"]), "not class indices"),
    # CSV: a cell too many turned the first column into the index; texts in another encoding.
    (
        "predictions.csv",
        lambda data: data.replace(b"0.1\n", b"0.1,9\n", 1),
        "cannot be read|no class index",
    ),
    ("labels.csv", put(b"image_id,class_index\n\xf3,5\n"), "not UTF-8"),
    ("MTurk", put(b"\xff\xfe\x00"), "cannot be read as mturk"),
    ("predictions.npy", header, "cannot be read as npy"),
    # JSON and YAML: other shapes, depth, huge numbers, names that lead elsewhere.
    ("scorecard", put(b"\xe5"), "not UTF-8"),
    ("Label Studio", value(lambda tasks: [*tasks, 5]), "no question_id"),
    (
        "Label Studio",
        value(lambda tasks: [{**tasks[0], "annotations": 0.5}]),
        "cannot be read as label-studio",
    ),
    (
        "Label Studio",
        value(lambda tasks: [{**tasks[0], "annotations": ["x"]}]),
        "cannot be read as label-studio",
    ),
    ("Label Studio", put(DEEP), "cannot be read as label-studio"),
    ("label errors", value(lambda found: [{**found[0], "id": 2**70}]), "not a list of label errors"),
    ("source.json", value(lambda facts: {**facts, "sha256": {"../../x": "0"}}), "is damaged"),
    ("saved dataset", value(lambda _: 5), "holds no keys"),
    ("saved dataset", value(lambda _: {"_data_files": [{"name": 1}]}), "does not list its files"),
    ("saved dataset", value(lambda _: {"_data_files": [{"filename": "\ud800"}]}), "does not list its files"),
    ("splits", value(lambda _: {"splits": ["."]}), "does not list its files"),
    ("splits", value(lambda _: {"splits": ["/"]}), "does not list its files"),
    ("splits", put(DEEP), "cannot read"),
    ("about", put(DEEP), "is not YAML"),
    ("campaign settings", put(b"- " * 100_000), "cannot be read as YAML"),
    ("weights", lambda data: data[: len(data) - 20] + b"\xff" * 20, "cannot be read as weights"),
]


@pytest.mark.parametrize(
    ("name", "spoil", "told"), FOUND, ids=[f"{i}-{case[0]}" for i, case in enumerate(FOUND)]
)
def test_files(name: str, spoil: Spoil, told: str, tmp_path: Path) -> None:
    target = BY_NAME[name]
    target.write(tmp_path, spoil(target.sound()))
    with pytest.raises(BeyondError, match=told):
        target.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("annotations", "~nobody-has-this-name/x", "cannot be a path"),
        ("annotations", "./" + "x" * 300, "cannot be a path"),
        ("annotations", "hub:org/name@" + "9" * 5000, "is not a Hub dataset"),
        ("database", "~nobody-has-this-name/x.db", "cannot be a path"),
        ("database", "postgresql://host:port/name", "no database URL"),
        ("model", "~nobody-has-this-name/x.py:factory", "cannot be a path"),
    ],
)
def test_texts(name: str, text: str, told: str) -> None:
    with pytest.raises(BeyondError, match=told):
        SPECS[name][0](text)


def test_a_file_that_is_no_database_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It was an internal error of every command of a campaign."""
    (tmp_path / "c.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(SystemExit) as end:
        main(["campaign", "status", "--db", str(tmp_path / "c.db")])
    assert end.value.code == 2
    assert re.match(r"error: --db names no sound campaign \(.*not a database.*\)", capsys.readouterr().err)


def test_integers_that_pandas_made_floats_are_read(tmp_path: Path) -> None:
    """Strict, but not stricter than need be: a column of labels with gaps, as pandas writes it."""
    target = BY_NAME["images of judgements"]
    target.write(tmp_path, column("original_label", [float("nan"), 970.0])(target.sound()))
    found: Any = target.read(tmp_path)
    assert np.array_equal(found.original_labels, [-1, 970])


def test_rows_that_cannot_be_read_later_do_not_end_a_worker(tmp_path: Path) -> None:
    """The schema was sound, so the set opened; the page of the bytes was not."""
    data = bytearray(BY_NAME["table of images"].sound())
    at = data.index(b"PAR1") + 4
    data[at : at + 12] = b"\xff" * 12
    (tmp_path / "t.parquet").write_bytes(data)
    with pytest.raises(BeyondError, match="cannot read"):
        [
            handle.read()
            for chunk in open_image_set(str(tmp_path / "t.parquet")).chunks(8)
            for handle in chunk.handles
        ]
