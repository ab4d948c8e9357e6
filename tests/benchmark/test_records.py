"""Records: round trips, atomic parts, checksums."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotations.classes import validation_id
from annotations.errors import BeyondError
from benchmark import records
from benchmark.records import Predictions


def made_up(n: int, k: int, *, logits: bool = True, seed: int = 0, start: int = 1) -> Predictions:
    """Predictions of n images that mean nothing."""
    rng = np.random.default_rng(seed)
    classes = np.argsort(rng.random((n, 1000)), axis=1)[:, :k].astype(np.int16)
    values = -np.sort(-rng.normal(size=(n, k)).astype(np.float32), axis=1)
    return Predictions(
        np.array([validation_id(start + i) for i in range(n)], dtype=object),
        rng.integers(0, 1000, n).astype(np.int16),
        classes,
        values if logits else None,
        np.log(np.exp(values).sum(1)) if logits else None,
    )


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 20), k=st.integers(1, 1000), logits=st.booleans(), seed=st.integers(0, 9))
def test_a_part_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, n: int, k: int, logits: bool, seed: int
) -> None:
    run = tmp_path_factory.mktemp("run")
    written = made_up(n, k, logits=logits, seed=seed)
    records.write_part(run / "predictions", 0, written.to_arrow())
    (read,) = records.iter_predictions(run)
    assert list(read.image_ids) == list(written.image_ids)
    np.testing.assert_array_equal(read.classes, written.classes)
    np.testing.assert_array_equal(read.original_labels, written.original_labels)
    if logits:
        assert read.logits is not None
        assert written.logits is not None
        np.testing.assert_array_equal(read.logits, written.logits)
        np.testing.assert_array_equal(read.logsumexp, written.logsumexp)
    else:
        assert read.logits is None
        assert read.logsumexp is None


def test_the_file_is_plain_parquet_in_the_documented_schema(tmp_path: Path) -> None:
    path = records.write_part(tmp_path / "predictions", 0, made_up(3, 5).to_arrow())
    table = pq.read_table(path)
    assert table.schema.names == ["image_id", "original_label", "classes", "logits", "logsumexp"]
    assert table.schema.field("classes").type == pa.list_(pa.int16())
    assert table.schema.field("logits").type == pa.list_(pa.float32())


def test_parts_are_read_in_the_order_of_the_plan_and_others_are_ignored(tmp_path: Path) -> None:
    for index in (12, 2, 100_001):
        records.write_part(tmp_path / "predictions", index, made_up(1, 1, start=index // 3 + 1).to_arrow())
    (tmp_path / "predictions" / ".part-00003-0123456789abcdef.parquet.77.tmp").write_bytes(b"half")
    (tmp_path / "predictions" / "part-00004.parquet").write_bytes(b"no checksum")
    names = [path.name[:11] for path in records.part_paths(tmp_path / "predictions")]
    assert names == ["part-00002-", "part-00012-", "part-100001"]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_part_is_known_and_refused(tmp_path: Path, damage: str) -> None:
    path = records.write_part(tmp_path / "predictions", 0, made_up(50, 5).to_arrow())
    assert records.part_is_sound(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes({"flip": bytes(data), "cut": bytes(data[:-9]), "empty": b""}[damage])
    assert not records.part_is_sound(path)
    with pytest.raises(BeyondError, match=r"damaged .* run the same beyond score command again"):
        list(records.iter_predictions(tmp_path))
    moved = records.quarantine(path)
    assert not path.exists()
    assert moved == tmp_path / "quarantine" / "predictions" / path.name


def test_an_image_in_two_parts_is_refused(tmp_path: Path) -> None:
    records.write_part(tmp_path / "predictions", 0, made_up(3, 5).to_arrow())
    records.write_part(tmp_path / "predictions", 1, made_up(2, 5, start=3).to_arrow())
    with pytest.raises(BeyondError, match="repeats an image"):
        list(records.iter_predictions(tmp_path))


def test_a_write_that_fails_leaves_no_part_and_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        records.write_part(tmp_path / "predictions", 0, made_up(3, 5).to_arrow())
    assert list((tmp_path / "predictions").iterdir()) == []


def test_no_records_is_said(tmp_path: Path) -> None:
    with pytest.raises(BeyondError, match="holds no predictions; make some with: beyond score"):
        list(records.iter_predictions(tmp_path))
