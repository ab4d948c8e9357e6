"""Every layout, made on the spot of the same images, gives the same set; every mistake gets its line."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from annotations.classes import wnids
from annotations.errors import BeyondError
from benchmark.images import StreamedImageSet, open_image_set
from tests.conftest import ROOT

# Ids and labels as in the published ground truth (caffe's val.txt): images 1, 2, 3, 293 and 50,000.
LABELS = {
    "ILSVRC2012_val_00000001": 65,
    "ILSVRC2012_val_00000002": 970,
    "ILSVRC2012_val_00000003": 230,
    "ILSVRC2012_val_00000293": 0,
    "ILSVRC2012_val_00050000": 355,
}
DATA: dict[str, bytes] = {}
for _number, _id in enumerate(LABELS):
    _buffer = io.BytesIO()
    Image.new("RGB", (20 + _number, 16), (40 * _number, 99, 7)).save(_buffer, "JPEG")
    DATA[_id] = _buffer.getvalue()

Rows = Sequence[tuple[dict[str, Any], int | None]]


def hub_name(image_id: str, label: int) -> str:
    return f"{image_id}_{wnids()[label]}.JPEG"


def flat(folder: Path, ids: Sequence[str] = tuple(LABELS)) -> Path:
    folder.mkdir(parents=True)
    for image_id in ids:
        (folder / f"{image_id}.JPEG").write_bytes(DATA[image_id])
    return folder


def flat_in_images(folder: Path) -> Path:
    flat(folder / "images")
    with (folder / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image_id", "class_index", "wnid"])
        rows.writerows([image_id, label, wnids()[label]] for image_id, label in LABELS.items())
    return folder


def hub_names(folder: Path) -> Path:
    folder.mkdir()
    for image_id, label in LABELS.items():
        (folder / hub_name(image_id, label)).write_bytes(DATA[image_id])
    return folder


def by_wnid(folder: Path) -> Path:
    for image_id, label in LABELS.items():
        (folder / "val" / wnids()[label]).mkdir(parents=True, exist_ok=True)
        (folder / "val" / wnids()[label] / f"{image_id}.jpg").write_bytes(DATA[image_id])
    return folder


def rows_backwards() -> Rows:
    return [
        ({"bytes": DATA[image_id], "path": hub_name(image_id, label)}, label)
        for image_id, label in reversed(LABELS.items())
    ]


def write_parquet(path: Path, rows: Rows, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table(
        {
            "image": pa.array([row[0] for row in rows], image),
            "label": pa.array([row[1] for row in rows], pa.int64()),
        }
    )
    pq.write_table(table, path, **options)
    return path


def parquet_shards(folder: Path) -> Path:
    """As the Hub stores ILSVRC/imagenet-1k: shards by split in data/, rows in any order."""
    rows = rows_backwards()
    write_parquet(folder / "data" / "validation-00000-of-00002.parquet", rows[:3], row_group_size=2)
    write_parquet(folder / "data" / "validation-00001-of-00002.parquet", rows[3:])
    write_parquet(folder / "data" / "train-00000-of-00001.parquet", [({"bytes": b"", "path": "t_1.JPEG"}, 3)])
    return folder


def saved_to_disk(folder: Path) -> Path:
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(wnids()))}
    )
    rows = rows_backwards()
    data = datasets.Dataset.from_dict(
        {"image": [row[0] for row in rows], "label": [row[1] for row in rows]}, features=features
    )
    datasets.DatasetDict({"validation": data, "train": data.select([0])}).save_to_disk(str(folder))
    return folder


def write_tar(path: Path, members: Sequence[tuple[str, bytes]], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def tar_shards(folder: Path) -> Path:
    """Two shards out of order: the first with .cls files, the second with known ids alone."""
    ids = list(reversed(LABELS))
    members = []
    for image_id in ids[:3]:
        members += [
            (f"val/{image_id}.cls", str(LABELS[image_id]).encode()),
            (f"val/{image_id}.jpg", DATA[image_id]),
            (f"val/{image_id}.json", b"{}"),
        ]
    write_tar(folder / "imagenet-val-000000.tar", members)
    write_tar(folder / "imagenet-val-000001.tar", [(f"{i}.JPEG", DATA[i]) for i in ids[3:]])
    return folder


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "flat": flat,
    "images and labels.csv": flat_in_images,
    "flat, names of the Hub": hub_names,
    "wnid folders": by_wnid,
    "parquet shards": parquet_shards,
    "saved to disk": saved_to_disk,
    "tar shards": tar_shards,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_set(layout: str, tmp_path: Path) -> None:
    images = open_image_set(str(LAYOUTS[layout](tmp_path / "set")))
    assert images.name == "set"
    assert list(images.ids) == list(LABELS)
    assert images.labels.tolist() == list(LABELS.values())
    assert images.labels.dtype == np.int16
    assert images.sample
    assert (len(images), images.total) == (5, 5)
    assert [images.read(i) for i in (4, 0, 3, 1, 2)] == [DATA[images.ids[i]] for i in (4, 0, 3, 1, 2)]
    handles = pickle.loads(pickle.dumps([images.handle(i) for i in range(5)]))
    assert {handle.image_id: handle.read() for handle in handles} == DATA
    assert all(handle.image_id in handle.where or ".parquet" in handle.where for handle in handles)
    chunks = list(images.chunks(2))
    assert [(chunk.index, len(chunk)) for chunk in chunks] == [(0, 2), (1, 2), (2, 1)]
    read = {h.image_id: (h.read(), label) for c in chunks for h, label in zip(c.handles, c.labels.tolist())}
    assert read == {image_id: (DATA[image_id], LABELS[image_id]) for image_id in LABELS}
    assert [h.image_id for c in chunks for h in c.handles] == [i for c in chunks for i in c.ids]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fingerprint_pins_ids_labels_and_sizes_but_not_the_place(layout: str, tmp_path: Path) -> None:
    here, there = LAYOUTS[layout](tmp_path / "here"), LAYOUTS[layout](tmp_path / "there")
    fingerprint = open_image_set(str(here)).fingerprint
    assert len(fingerprint) == 64
    assert open_image_set(str(there)).fingerprint == fingerprint
    assert open_image_set(str(there), limit=4).fingerprint != fingerprint
    if layout == "flat":
        (there / "ILSVRC2012_val_00000001.JPEG").write_bytes(DATA["ILSVRC2012_val_00000002"] + b"\0")
        assert open_image_set(str(there)).fingerprint != fingerprint


def test_sets_in_storage_order_chunk_as_stored(tmp_path: Path) -> None:
    stored = list(reversed(LABELS))
    for make in (parquet_shards, tar_shards):
        images = open_image_set(str(make(tmp_path / make.__name__)))
        assert [i for c in images.chunks(2) for i in c.ids] == stored
        assert [i for c in images.select(limit=3).chunks(2) for i in c.ids] == stored[2:]
    assert [i for c in open_image_set(str(flat(tmp_path / "flat"))).chunks(2) for i in c.ids] == list(LABELS)


def test_skipping_leaves_gaps_and_moves_nothing(tmp_path: Path) -> None:
    images = open_image_set(str(flat(tmp_path / "set")))
    ids = list(images.ids)
    left = [
        (c.index, list(c.ids), c.labels.tolist()) for c in images.chunks(2, skip={ids[0], ids[2], ids[3]})
    ]
    assert left == [(0, [ids[1]], [970]), (2, [ids[4]], [355])]
    by_predicate = images.chunks(2, skip=lambda image_id: image_id in {ids[0], ids[2], ids[3]})
    assert [c.index for c in by_predicate] == [0, 2]


def test_ids_file_and_limit(tmp_path: Path) -> None:
    folder = str(flat(tmp_path / "set"))
    ids = list(LABELS)
    file = tmp_path / "ids.txt"
    file.write_text(f"{ids[4]}\n\n{ids[1]}\n{ids[2]}\n")
    images = open_image_set(folder, ids_file=file)
    assert list(images.ids) == [ids[1], ids[2], ids[4]]
    assert [images.read(i) for i in range(3)] == [DATA[ids[i]] for i in (1, 2, 4)]
    assert list(open_image_set(folder, ids_file=file, limit=2).ids) == [ids[1], ids[2]]
    assert list(open_image_set(folder, limit=99).ids) == ids
    for content, message in [
        ("ILSVRC2012_val_00000004\n", "1 of the listed ids are not in set, first ILSVRC2012_val_00000004"),
        (f"{ids[0]}\n{ids[0]}\n", "twice"),
        ("\n", "empty"),
    ]:
        file.write_text(content)
        with pytest.raises(BeyondError, match=message):
            open_image_set(folder, ids_file=file)
    with pytest.raises(BeyondError, match="cannot read the list of ids"):
        open_image_set(folder, ids_file=tmp_path / "none.txt")
    with pytest.raises(BeyondError, match="at least 1"):
        open_image_set(folder, limit=0)


def test_sample_is_what_foolbox_ships() -> None:
    images = open_image_set("sample")
    package = importlib.util.find_spec("foolbox")
    assert package is not None
    folder = Path(package.origin or "").parent / "data"
    assert list(images.ids) == sorted(path.stem for path in folder.glob("imagenet_*.jpg"))
    assert (len(images), images.sample, images.name) == (20, True, "sample")
    assert images.labels.tolist() == [int(image_id.rsplit("_", 1)[1]) for image_id in images.ids]
    assert images.read(0) == (folder / "imagenet_00_243.jpg").read_bytes()


def test_sample_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda *args: None)
    with pytest.raises(BeyondError, match=r"pip install 'beyond-accuracy\[demo\]'"):
        open_image_set("sample")


@pytest.mark.shared
def test_shared_images(shared_data: Path) -> None:
    truth = [int(line) for line in (shared_data / "val_labels.txt").read_text().split()]
    outer, inner = (open_image_set(str(shared_data / "ilsvrc-val-sample" / part)) for part in ("", "images"))
    assert len(outer) == 878
    assert outer.name == inner.name == "ilsvrc-val-sample"
    assert outer.fingerprint == inner.fingerprint
    assert outer.labels.tolist() == [truth[int(image_id[-8:]) - 1] for image_id in outer.ids]


def test_the_whole_validation_set_is_no_sample(tmp_path: Path) -> None:
    """50,000 one-byte images: the only set that is not a sample; opening it stays quick and small."""
    path = tmp_path / "val.parquet"
    rows = [({"bytes": b"x", "path": f"ILSVRC2012_val_{i:08d}.JPEG"}, None) for i in range(1, 50_001)]
    write_parquet(path, rows)
    images = open_image_set(str(path))
    assert (len(images), images.sample) == (50_000, False)
    assert images.select(limit=49_999).sample


def files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(DATA["ILSVRC2012_val_00000001"])
    return folder


def with_csv(folder: Path, text: str, *names: str) -> Path:
    files(folder, *(names or ("ILSVRC2012_val_00000001.JPEG",)))
    (folder / "labels.csv").write_text(text)
    return folder


def with_text(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder


def other_columns(folder: Path) -> Path:
    folder.mkdir()
    pq.write_table(pa.table({"img": [b"x"], "label": [1]}), folder / "a.parquet")
    return folder


def float_labels(folder: Path) -> Path:
    folder.mkdir()
    pq.write_table(pa.table({"image": [{"bytes": b"x", "path": "a"}], "label": [0.5]}), folder / "a.parquet")
    return folder


def ten_classes(folder: Path) -> Path:
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[f"c{i}" for i in range(10)])}
    )
    rows = {"image": [{"bytes": DATA["ILSVRC2012_val_00000001"], "path": "a.JPEG"}], "label": [1]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(folder))
    return folder


def broken_link(folder: Path) -> Path:
    folder.mkdir()
    (folder / "ILSVRC2012_val_00000001.JPEG").symlink_to(folder / "gone")
    return folder


def cut_tar(folder: Path) -> Path:
    path = write_tar(folder / "a.tar", [(f"{i}.jpg", DATA[i] * 20) for i in LABELS])
    path.write_bytes(path.read_bytes()[: -len(DATA["ILSVRC2012_val_00050000"]) * 20 - 10_240])
    return folder


def parquet_row(image: dict[str, Any], label: int | None) -> Callable[[Path], Path]:
    return lambda folder: write_parquet(folder / "a.parquet", [(image, label)]).parent


def train_and_test(folder: Path) -> Path:
    for split in ("train", "test"):
        write_parquet(folder / f"{split}-00000-of-00001.parquet", [(IMAGE, 65)])
    return folder


V1 = "ILSVRC2012_val_00000001"
IMAGE = {"bytes": b"x", "path": f"{V1}.JPEG"}
BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda p: p, "there is no image folder"),
    "empty": (lambda p: with_text(p, "README", ""), "holds no images; give a folder with"),
    "a text file": (lambda p: with_text(p, "a.txt", "") / "a.txt", "is a file, but no"),
    "id beyond the ground truth": (
        lambda p: files(p, f"{V1}.JPEG", "ILSVRC2012_val_00050001.JPEG"),
        "ILSVRC2012_val_00050001 is not in the ILSVRC2012 ground truth",
    ),
    "unknown id": (lambda p: files(p, f"{V1}.JPEG", "cat.jpg"), "'cat' is no ILSVRC2012 validation image"),
    "same id twice": (lambda p: files(p, f"{V1}.JPEG", f"{V1}.png"), f"{V1} appears twice"),
    "wrong wnid in the name": (lambda p: files(p, f"{V1}_n01440764.JPEG"), f"puts {V1} in class 0"),
    "no such wnid in the name": (
        lambda p: files(p, f"{V1}_n99999999.JPEG"),
        "n99999999, which is not one of",
    ),
    "broken link": (broken_link, "broken link"),
    "csv disagrees with the truth": (
        lambda p: with_csv(p, f"image_id,class_index\n{V1},64\n"),
        f"labels.csv puts {V1} in class 64, but the ILSVRC2012 ground truth says 65",
    ),
    "csv label out of range": (
        lambda p: with_csv(p, "image_id,class_index\ncat,1000\n", "cat.jpg"),
        "line 2 has the label '1000'; labels are class indices 0..999",
    ),
    "csv label no number": (
        lambda p: with_csv(p, "image_id,class_index\ncat,x\n", "cat.jpg"),
        "the label 'x'",
    ),
    "csv wnid disagrees": (
        lambda p: with_csv(p, "image_id,class_index,wnid\ncat,1,n01440764\n", "cat.jpg"),
        "class 1 is n01443537, not n01440764",
    ),
    "csv gives two labels": (
        lambda p: with_csv(p, "image_id,class_index\ncat,1\ncat,2\n", "cat.jpg"),
        "a second label, 2",
    ),
    "csv without header": (lambda p: with_csv(p, "cat,1\n", "cat.jpg"), "needs the columns image_id"),
    "unknown wnid folder": (lambda p: files(p, "n00000001/a.jpg"), "is not one of the 1000 classes"),
    "image in a wrong wnid folder": (
        lambda p: files(p, f"n01440764/{V1}.JPEG"),
        f"puts {V1} in class 0, but the ILSVRC2012 ground truth says 65",
    ),
    "id in two wnid folders": (lambda p: files(p, "n01440764/a.jpg", "n01443537/a.jpg"), "a appears twice"),
    "empty wnid folders": (lambda p: with_text(p / "n01440764", "x", "").parent, "hold no images"),
    "mixed layouts": (lambda p: files(p, f"{V1}.JPEG", "n01440764/a.jpg"), "keep one layout in a folder"),
    "several inner folders": (lambda p: files(p, f"val/{V1}.JPEG", f"images/{V1}.JPEG"), "give one of them"),
    "tar: no label": (lambda p: write_tar(p / "a.tar", [("cat.jpg", b"x")]).parent, "needs a member cat.cls"),
    "tar: label out of range": (
        lambda p: write_tar(p / "a.tar", [("cat.jpg", b"x"), ("cat.cls", b"-1")]).parent,
        "cat.cls in",
    ),
    "tar: label disagrees": (
        lambda p: write_tar(p / "a.tar", [(f"{V1}.jpg", b"x"), (f"{V1}.cls", b"7")]).parent,
        "in class 7, but",
    ),
    "tar: same key": (
        lambda p: write_tar(p / "a.tar", [("cat.jpg", b"x"), ("cat.png", b"x"), ("cat.cls", b"7")]).parent,
        "second image of the key 'cat'",
    ),
    "tar: no images": (lambda p: write_tar(p / "a.tar", [("a.cls", b"7")]).parent, "holds no images"),
    "tar: compressed": (
        lambda p: write_tar(p / "a.tar", [("cat.jpg", b"x")], "w:gz").parent,
        "as an uncompressed tar file",
    ),
    "tar: cut": (cut_tar, "as an uncompressed tar file"),
    "parquet: damaged": (lambda p: with_text(p, "a.parquet", "PAR1 no"), "a.parquet: "),
    "parquet: other columns": (other_columns, "no column 'image'"),
    "parquet: float labels": (float_labels, "holds double, not class indices"),
    "parquet: label out of range": (parquet_row({"bytes": b"x", "path": "a"}, 1000), "row 0 of"),
    "parquet: label disagrees": (parquet_row(IMAGE, 64), "in class 64, but"),
    "parquet: name disagrees": (
        parquet_row({"bytes": b"x", "path": f"{V1}_{wnids()[65]}.JPEG"}, 64),
        "named for class 65",
    ),
    "parquet: no ids": (parquet_row({"bytes": b"x", "path": None}, 64), "so its id is unknown"),
    "parquet: train and test": (
        train_and_test,
        "has no split 'validation', only test, train",
    ),
    "saved to disk: ten classes": (ten_classes, "has 10 classes, not the 1000"),
    "saved to disk: damaged": (lambda p: with_text(p, "state.json", "{"), "cannot read"),
}


@pytest.mark.parametrize("mistake", BAD)
def test_every_mistake_gets_one_line(mistake: str, tmp_path: Path) -> None:
    make, expected = BAD[mistake]
    folder = make(tmp_path / "set")
    with pytest.raises(BeyondError) as caught:
        open_image_set(str(folder))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.unprivileged
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_unreadable_folder(tmp_path: Path) -> None:
    folder = flat(tmp_path / "set")
    folder.chmod(0)
    try:
        with pytest.raises(BeyondError, match="cannot read"):
            open_image_set(str(folder))
        with pytest.raises(BeyondError, match="cannot read"):
            open_image_set(str(folder / "images"))
    finally:
        folder.chmod(0o755)


def test_a_foreign_csv_beside_the_folder_is_no_hindrance(tmp_path: Path) -> None:
    with_text(tmp_path, "labels.csv", "name,price\n")
    assert len(open_image_set(str(flat(tmp_path / "set")))) == 5


def test_labels_csv_labels_other_images(tmp_path: Path) -> None:
    folder = with_csv(tmp_path / "set", "image_id,class_index\nb,7\na,999\n", "a.jpg", "b.png", "notes.txt")
    images = open_image_set(str(folder))
    assert dict(zip(images.ids, images.labels.tolist())) == {"a": 999, "b": 7}


def test_rows_may_be_unlabelled_and_carry_their_ids(tmp_path: Path) -> None:
    table = pa.table(
        {"image": [{"bytes": b"x", "path": None}] * 3, "label": [-1, None, 5], "image_id": ["a", "b", "c"]}
    )
    pq.write_table(table, tmp_path / "x.parquet")
    images = open_image_set(str(tmp_path / "x.parquet"))
    assert list(zip(images.ids, images.labels.tolist())) == [("a", -1), ("b", -1), ("c", 5)]


def test_rows_without_bytes_are_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", [({"bytes": None, "path": f"{V1}.JPEG"}, 65)])
    with pytest.raises(BeyondError, match=r"row 0 of .* has no bytes"):
        open_image_set(str(path)).read(0)


@pytest.mark.parametrize("row_group_size", [1, 7, 50, 1000])
def test_parquet_rows_in_any_order(row_group_size: int, tmp_path: Path) -> None:
    rows: Rows = [({"bytes": b"image %d" % i, "path": f"i{i:03d}.jpg"}, i) for i in range(200)]
    images = open_image_set(str(write_parquet(tmp_path / "a.parquet", rows, row_group_size=row_group_size)))
    for i in [*range(200), *np.random.default_rng(0).integers(0, 200, 100).tolist(), 199, 0, 199]:
        assert images.read(i) == b"image %d" % i


# --- Streaming ---------------------------------------------------------------------------------------------


def streamed(path: Path, **options: Any) -> StreamedImageSet:
    """A set streamed by the real datasets library from a local Parquet file."""
    import datasets

    from benchmark.layouts import stream_rows

    dataset = datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
    return StreamedImageSet(
        "hf:x", lambda: stream_rows(dataset, "hf:x"), fingerprint="f", total=None, **options
    )


def test_streaming_gives_the_same_images(tmp_path: Path) -> None:
    images = streamed(write_parquet(tmp_path / "a.parquet", rows_backwards()))
    stored = list(reversed(LABELS))
    chunks = list(images.chunks(2))
    assert [(c.index, list(c.ids)) for c in chunks] == [(0, stored[:2]), (1, stored[2:4]), (2, stored[4:])]
    assert {h.image_id: h.read() for c in chunks for h in c.handles} == DATA
    assert [label for c in chunks for label in c.labels.tolist()] == [LABELS[i] for i in stored]
    again = list(images.chunks(2, skip=set(stored[:3])))
    assert [(c.index, list(c.ids)) for c in again] == [(1, [stored[3]]), (2, [stored[4]])]
    assert [i for c in images.select(limit=3).chunks(2) for i in c.ids] == stored[:3]
    chosen = images.select(ids=[stored[3], stored[1]])
    assert [i for c in chosen.chunks(9) for i in c.ids] == [stored[1], stored[3]]
    assert len(chosen) == 2
    assert chosen.fingerprint != images.fingerprint
    with pytest.raises(BeyondError, match="1 of the listed ids are not in hf:x, first nobody"):
        list(images.select(ids=[stored[0], "nobody"]).chunks(2))
    for use in (lambda: images.ids, lambda: images.labels, lambda: images.read(0), lambda: len(images)):
        with pytest.raises(BeyondError, match="hf:x"):
            use()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((IMAGE, 64), "in class 64, but the ILSVRC2012 ground truth says 65"),
        (({"bytes": b"x", "path": None}, 65), "so its id is unknown"),
        (({"bytes": b"x", "path": "a.jpg"}, 1000), "the label 1000"),
        (({"bytes": None, "path": f"{V1}.JPEG"}, 65), "has no bytes"),
    ],
)
def test_streaming_checks_every_row(row: tuple[dict[str, Any], int], message: str, tmp_path: Path) -> None:
    good: Rows = [({"bytes": b"x", "path": "good.jpg"}, 1)]
    images = streamed(write_parquet(tmp_path / "a.parquet", [*good, row]))
    with pytest.raises(BeyondError, match=message):
        list(images.chunks(1))


def test_streaming_refuses_other_datasets(tmp_path: Path) -> None:
    images = streamed(other_columns(tmp_path / "a") / "a.parquet")
    with pytest.raises(BeyondError, match="no column 'image'"):
        next(images.chunks(1))


HUB_SCRIPT = """
import json, sys
from annotations.errors import BeyondError
from benchmark.images import open_image_set

for spec in sys.argv[1:]:
    try:
        images = open_image_set(spec, limit=4)
        rows = [[h.image_id, label, h.read().hex()] for c in images.chunks(3) for h, label in
                zip(c.handles, c.labels.tolist())]
        print(json.dumps([images.name, images.total, images.fingerprint, rows]))
    except BeyondError as error:
        print(json.dumps(str(error)))
"""


def test_streaming_from_the_hub_pins_the_revision(tmp_path: Path) -> None:
    """The real client libraries against a local server that speaks the Hub's API."""
    from tests.hub_server import HubServer

    card = textwrap.dedent(
        """
        ---
        dataset_info:
          features:
          - {name: image, dtype: image}
          - {name: label, dtype: int64}
          splits:
          - {name: validation, num_examples: 5, num_bytes: 1}
        configs:
        - {config_name: default, data_files: [{split: validation, path: data/validation-*}]}
        ---
        """
    ).lstrip()
    rows = rows_backwards()
    shards = [rows[:3], rows[3:]]
    tables = [write_parquet(tmp_path / f"{k}.parquet", shard) for k, shard in enumerate(shards)]
    files = {"README.md": card.encode()}
    files |= {f"data/validation-0000{k}-of-00002.parquet": t.read_bytes() for k, t in enumerate(tables)}
    with HubServer() as hub:
        first = hub.add_repo("dataset", "org/imagenet", files, tag="v1")
        files["data/validation-00000-of-00002.parquet"] = tables[1].read_bytes()
        second = hub.add_repo("dataset", "org/imagenet", files)
        hub.add_repo("dataset", "org/closed", files, gated=True)
        specs = ["@v1", ":validation", "@v9", ":test"]
        specs = [f"hf:org/imagenet{rest}" for rest in specs] + ["hf:org/none", "hf:org/closed", "hf:bad"]
        environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
        environment.pop("HF_TOKEN", None)
        done = subprocess.run(
            [sys.executable, "-c", HUB_SCRIPT, *specs],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    old, new, *refused = [json.loads(line) for line in done.stdout.splitlines()]
    stored = list(reversed(LABELS))
    assert old[:2] == [f"hf:org/imagenet@{first}:validation", 4]
    assert old[3] == [[i, LABELS[i], DATA[i].hex()] for i in stored[:4]]
    assert new[0] == f"hf:org/imagenet@{second}:validation"
    assert [row[0] for row in new[3]] == [*stored[3:], *stored[3:]]
    assert old[2] != new[2]
    for message, expected in zip(
        refused,
        [
            "the dataset org/imagenet has no revision 'v9'",
            "cannot open hf:org/imagenet:test: Bad split: test. Available splits: ['validation']",
            "there is no dataset org/none on the Hub that you may see",
            "gated",
            "cannot read 'hf:bad'; write hf:ORG/NAME",
        ],
        strict=True,
    ):
        assert expected in message
        assert "\n" not in message
