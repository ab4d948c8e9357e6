"""`beyond annotations`, as a person or a script calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from annotations import sources
from annotations.classes import class_names, validation_id, validation_labels
from annotations.judgements import LabelSets
from benchmark.cli import main
from tests.hub_server import HubServer


class Beyond:
    """Calls the command in this process and keeps what it printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: str, status: int = 0) -> str:
        try:
            main(["annotations", *arguments])
            code: object = 0
        except SystemExit as stop:
            code = stop.code or 0
        out, err = self.capsys.readouterr()
        assert code == status, err
        if status:
            assert err.count("\n") == 1, err
            return err
        return out

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json"))


@pytest.fixture
def beyond(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Beyond:
    monkeypatch.setenv("BEYOND_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BEYOND_SHARED_DATA", str(tmp_path / "nowhere"))
    return Beyond(capsys)


@pytest.fixture
def mla_csv(tmp_path: Path) -> Path:
    """Two rows in the experts' form: image 3 rejects its original label, image 2 is problematic."""
    labels = validation_labels()
    path = tmp_path / "multilabel.csv"
    path.write_text(
        "id,original_label,proposed_labels,unclear_multi_labels,wrong_multi_labels,is_problematic\n"
        f'{validation_id(3)}.JPEG,{labels[2]},"3, 4",5,{labels[2]},False\n'
        f"{validation_id(2)}.JPEG,{labels[1]},,,,True\n"
    )
    return path


def test_list_says_what_is_here_and_how_to_get_the_rest(beyond: Beyond, mla_csv: Path) -> None:
    rows = {row["name"]: row for row in beyond.json("list")}
    assert set(rows) == set(sources.SOURCES)
    assert (rows["real"]["images"], rows["real"]["evaluable"]) == (50_000, 46_837)
    assert (rows["mla"]["available"], rows["mla"]["images"]) == (False, None)
    assert rows["imagenet-x"]["kind"] == "attributes"
    assert "CC BY-NC" in rows["imagenet-x"]["licence"]
    assert "beyond annotations import mla FILE.csv" in beyond("list")
    beyond("import", "mla", str(mla_csv))
    rows = {row["name"]: row for row in beyond.json("list")}
    assert (rows["mla"]["images"], rows["mla"]["evaluable"]) == (2, 1)


def test_import_then_show_then_consolidate(beyond: Beyond, mla_csv: Path, tmp_path: Path) -> None:
    label = int(validation_labels()[2])
    imported = beyond.json("import", "mla", str(mla_csv))
    assert (imported["images"], imported["evaluable"], imported["notes"]) == (2, 1, [])

    shown = beyond.json("show", "mla", f"{validation_id(3)}.JPEG")
    verdicts = {pair["class_index"]: pair["verdict"] for pair in shown["judgements"]}
    assert verdicts == {3: "accepted", 4: "accepted", 5: "unsure", label: "rejected"}
    assert shown["original_label"] == label
    text = beyond("show", "mla", validation_id(3))
    assert class_names()[3] in text
    assert "unjudged" in text

    out = tmp_path / "merged"
    merged = beyond.json("consolidate", "real,mla", "--out", str(out))
    coverage = {row["source"]: row for row in merged["coverage"]}
    assert set(coverage) == {"real", "mla", "consolidated"}
    assert coverage["mla"]["images"] == 2
    assert coverage["real"]["accepted"] == 57_553
    (counts,) = merged["conflicts"]
    assert len(pd.read_csv(out / "conflicts.csv")) == counts["explicit"] + counts["implied"]

    # The folder is a source like any other, with its provenance, and is not overwritten by accident.
    loaded = sources.load(str(out))
    assert (loaded.source, loaded.revision) == ("consolidated", merged["revision"])
    assert beyond.json("show", str(out), validation_id(3))["judgements"][0]["source"] == "mla"
    beyond("consolidate", "real,mla", "--out", str(out))
    assert "Conflicts" in beyond("show", "consolidated:real+mla")
    pairs = beyond.json("show", "consolidated", validation_id(3))
    assert {conflict["source_a"] for conflict in pairs["conflicts"]} == {"mla"}
    assert "conflict on" in beyond("show", "consolidated", validation_id(3))


def test_show_imagenet_x_says_its_licence(beyond: Beyond) -> None:
    facts = beyond.json("show", "imagenet-x")
    assert "CC BY-NC" in facts["licence"]
    assert len(facts["factors"]) == 16
    assert "CC BY-NC" in beyond("show", "imagenet-x")
    one = beyond.json("show", "imagenet-x", validation_id(1))
    assert one["top_factor"] in one["factors"]
    assert one["top_factor"] in beyond("show", "imagenet-x", validation_id(1))


def test_download_is_pinned_listed_and_works_offline(beyond: Beyond, hub: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    sources.load("sample").save(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    sha = hub.add_repo("dataset", "org/labels", files, tag="v1")
    facts = beyond.json("download", "hub:org/labels", "--revision", "v1")
    assert facts["spec"] == f"hub:org/labels@{sha}"
    assert facts["images"] == 20
    assert sha in beyond("download", "hub:org/labels@v1", "--offline")
    assert f"hub:org/labels@{sha}" in {row["name"] for row in beyond.json("list")}
    assert beyond.json("show", f"hub:org/labels@{sha}", "--offline")["revision"] == sha


def test_bad_input_is_one_line_and_status_two(beyond: Beyond, hub: HubServer, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    for arguments, message in (
        (("show", "ral"), "did you mean 'real'"),
        (("show", "mla"), "import it once"),
        (("show", "real", "cat"), "real has no image 'cat'; its ids look like ILSVRC2012_val_00000001"),
        (("show", "imagenet-x", "cat"), "imagenet-x has no image 'cat'"),
        (("import", "mla", str(tmp_path / "none.csv")), "no file"),
        (("import", "real", "x"), "is not imported from a file"),
        (("import", "imagenet-y", "x"), "no source 'imagenet-y' can be imported"),
        (("download", "real"), "is not downloaded from the Hub"),
        (("download", "hub:labels"), "write hub:ORG/NAME@REVISION"),
        (("download", "hub:org/labels"), "no dataset 'org/labels'"),
        (("download", "hub:org/labels@v1", "--revision", "v2"), "give one of them"),
        (("download", "hub:org/labels", "--offline"), "the network is off"),
        (("consolidate", "real,real"), "is named twice"),
        (("consolidate", "real,imagenet-x"), "holds attributes of images"),
        (("consolidate", "real", "--out", str(other)), "holds other files"),
    ):
        assert message in beyond(*arguments, status=2)


def test_a_read_only_store_is_one_line(beyond: Beyond, mla_csv: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    error = beyond("import", "mla", str(mla_csv), "--store", str(tmp_path / "file" / "store"), status=2)
    assert error.startswith("error: ")


def test_no_torch_is_imported(tmp_path: Path) -> None:
    code = """
import sys
from benchmark.cli import main
try:
    main(["annotations", "show", "real", "ILSVRC2012_val_00000003"])
except SystemExit:
    pass
heavy = {"torch", "timm", "huggingface_hub", "imagenet_x"} & set(sys.modules)
assert not heavy, heavy
"""
    environment = {**os.environ, "BEYOND_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "accepted" in done.stdout


def test_label_sets_of_the_sample_survive_a_save(tmp_path: Path) -> None:
    sample = sources.load("sample")
    sample.save(tmp_path)
    again = LabelSets.load(tmp_path, source="sample", revision=sample.revision)
    for mine, theirs in zip(sample.to_tables(), again.to_tables()):
        pd.testing.assert_frame_equal(mine, theirs)
