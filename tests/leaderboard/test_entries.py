"""The entries of this repository, and the form in which they are kept."""

from __future__ import annotations

import json
import re
import struct
from datetime import date
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from annotations.classes import package_file, validation_ids
from annotations.errors import BeyondError
from leaderboard.correctness import Correctness
from leaderboard.entries import (
    ENTRIES_FOLDER,
    EntryInfo,
    dump_info,
    entry_folders,
    load_entries,
    parse_info,
    read_entry,
    write_entry,
)
from leaderboard.make_entries import EMBEDDED, MODELS, PAPERS
from leaderboard.make_entries import main as make_entries
from leaderboard.masks import load_masks, pinned
from leaderboard.schemas import schemas

ROOT = Path(__file__).resolve().parent.parent.parent
SLUGS = sorted(path.name for path in entry_folders())


def read_by_the_documentation(path: Path) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """A reader of `correct.bits` written from its description alone, without NumPy."""
    data = path.read_bytes()
    assert data[:8] == b"BYNDBIT1"
    (length,) = struct.unpack("<I", data[8:12])
    assert (12 + length) % 8 == 0
    header = json.loads(data[12 : 12 + length].decode("utf-8"))
    sections = {}
    for section in header["sections"]:
        start = 12 + length + section["offset"]
        part = data[start : start + section["bytes"]]
        if section["kind"] == "bits":
            sections[section["name"]] = [i for i in range(header["n"]) if part[i // 8] >> i % 8 & 1]
        else:
            sections[section["name"]] = list(struct.unpack(f"<{len(part) // 4}I", part))
    return header, sections


# ----------------------------------------------------------------------------------------- the entries here


def test_the_first_entries_are_there() -> None:
    entries = load_entries()
    assert [entry.slug for entry in entries] == SLUGS
    assert {model.slug for model in MODELS} | {name for name, *_ in EMBEDDED} <= set(SLUGS)
    assert sum(entry.info.scope == "full" for entry in entries) >= 52
    for entry in entries:
        info = entry.info
        assert info.citation
        assert info.licence.predictions
        assert info.links.paper or info.links.code
        if info.scope == "full":
            assert info.licence.predictions == "MIT"
            assert str(info.links.predictions).endswith(f"/{entry.slug}.npy")


def test_resnet50_shows_the_published_figures() -> None:
    """76.13 % top-1 is torchvision's own figure; 82.96 and 85.08 are ReaL's and MLA's scoring of it."""
    metrics = read_entry(ENTRIES_FOLDER / "resnet50").scorecard.tracks["rectified"].metrics
    shown = [round(100 * metrics[key].value, 2) for key in ("top1", "real_accuracy", "mla")]
    assert shown == [76.13, 82.96, 85.08]


def test_samples_are_marked() -> None:
    for name, *_ in EMBEDDED:
        entry = read_entry(ENTRIES_FOLDER / name)
        assert entry.info.scope == "sample"
        assert entry.scorecard.images.sample
        assert entry.scorecard.images.n == 20
        assert "20 photographs" in str(entry.info.notes)


def test_the_repository_stays_small() -> None:
    sizes = {path: path.stat().st_size for path in ENTRIES_FOLDER.rglob("*") if path.is_file()}
    assert sum(sizes.values()) / len(SLUGS) < 60_000
    assert {path.name for path in sizes} == {"entry.yaml", "scorecard.json", "correct.bits"}


def test_stated_numbers_of_parameters_are_those_of_the_architectures() -> None:
    """Counted without weights in torchvision and timm, which are not where the figures are used."""
    import timm
    import torch
    import torchvision

    of_timm = {
        "inceptionresnetv2": "inception_resnet_v2",
        "pnasnet5large": "pnasnet5large",
        "xception": "legacy_xception",
        "se_resnet50": "legacy_seresnet50",
        "se_resnext50_32x4d": "legacy_seresnext50_32x4d",
        "resnext101_32x4d": "resnext101_32x4d",
        "dpn68": "dpn68",
        "dpn98": "dpn98",
    }
    checked = 0
    with torch.device("meta"):
        for model in MODELS:
            if model.parameters is None:
                continue
            if model.code == "torchvision" and model.slug != "inception_v3":
                network = torchvision.models.get_model(model.slug, weights=None)
            elif model.slug in of_timm:
                network = timm.create_model(of_timm[model.slug])
            else:
                continue
            assert sum(p.numel() for p in network.parameters()) == model.parameters, model.slug
            checked += 1
    assert checked >= 24


def test_papers_agree_with_their_addresses() -> None:
    """The number of an arXiv paper begins with the year and month of its first version."""
    for paper in PAPERS.values():
        match = re.fullmatch(r"https://arxiv\.org/abs/(\d\d)(\d\d)\.\d{4,5}", paper.link)
        if match:
            assert paper.year == 2000 + int(match[1])
            assert 1 <= int(match[2]) <= 12
            assert str(paper.year) in paper.key
    assert len({paper.key for paper in PAPERS.values()}) == len(PAPERS)


@pytest.mark.shared
def test_made_again_from_the_predictions_the_entries_have_the_same_bytes(
    shared_data: Path, tmp_path: Path
) -> None:
    some = ["alexnet", "resnet50", "fv_64k", "vgg_16_tf"]
    make_entries([str(shared_data / "predictions"), "--out", str(tmp_path), "--only", *some])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(some)
    for slug in some:
        for path in sorted((ENTRIES_FOLDER / slug).iterdir()):
            assert (tmp_path / slug / path.name).read_bytes() == path.read_bytes(), path


@pytest.mark.shared
def test_bits_say_what_the_raw_predictions_say(shared_data: Path) -> None:
    """Computed from the raw files with none of the project's code."""
    labels = np.array((shared_data / "val_labels.txt").read_text().split(), dtype=int)
    real = json.loads(package_file("timm", "data", "_info", "imagenet_real_labels.json").read_bytes())
    for slug in ("squeezenet1_1", "nasnetamobile"):
        predicted = np.load(shared_data / "predictions" / f"{slug}.npy")[:, 0]
        header, sections = read_by_the_documentation(ENTRIES_FOLDER / slug / "correct.bits")
        assert header["ids"] == "ILSVRC2012_val"
        assert sections["top1"] == np.flatnonzero(predicted == labels).tolist()
        assert sections["real"] == [i for i, p in enumerate(predicted.tolist()) if p in real[i]]
    _, masks = read_by_the_documentation(ROOT / "leaderboard" / "evaluable.bits")
    assert masks["real"] == [i for i, listed in enumerate(real) if listed]


@pytest.mark.shared
def test_masks_are_those_of_the_experts_file(shared_data: Path) -> None:
    import csv

    with (shared_data / "multilabel" / "multilabel.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    usable = sorted(
        int(re.findall(r"\d{8}", row["id"])[0]) - 1 for row in rows if row["is_problematic"] == "False"
    )
    _, masks = read_by_the_documentation(ROOT / "leaderboard" / "evaluable.bits")
    assert masks["mla"] == usable
    assert len(usable) == 18_692


# ------------------------------------------------------------------------------------------------- the form


def test_schemas_in_the_documentation_are_current() -> None:
    for name, text in schemas().items():
        assert (ROOT / "docs" / "schemas" / name).read_text(encoding="utf-8") == text, (
            "run: python -m leaderboard.schemas docs/schemas"
        )


def test_every_entry_fits_the_schemas() -> None:
    validators = {name: jsonschema.Draft202012Validator(json.loads(text)) for name, text in schemas().items()}
    for slug in SLUGS:
        data = yaml.safe_load((ENTRIES_FOLDER / slug / "entry.yaml").read_text(encoding="utf-8"))
        data["submitted"] = str(data["submitted"])  # JSON has no dates
        validators["entry.schema.json"].validate(data)
        card = json.loads((ENTRIES_FOLDER / slug / "scorecard.json").read_text(encoding="utf-8"))
        validators["scorecard.schema.json"].validate(card)
    for change in ({"surprise": 1}, {"slug": "../x"}, {"name": "<b>"}, {"links": {"paper": "http://x.org"}}):
        with pytest.raises(jsonschema.ValidationError):
            validators["entry.schema.json"].validate(data | change)


def test_written_and_read_back_an_entry_is_the_same(tmp_path: Path) -> None:
    for slug in ("resnet50", "efficientnet-lite0"):
        entry = read_entry(ENTRIES_FOLDER / slug)
        again = write_entry(tmp_path, entry.info, entry.scorecard, entry.correctness)
        assert again.info == entry.info
        for path in (ENTRIES_FOLDER / slug).iterdir():
            assert (tmp_path / slug / path.name).read_bytes() == path.read_bytes()


def test_written_again_without_bits_the_old_ones_are_gone(tmp_path: Path) -> None:
    entry = read_entry(ENTRIES_FOLDER / "resnet50")
    write_entry(tmp_path, entry.info, entry.scorecard, entry.correctness)
    again = write_entry(tmp_path, entry.info, entry.scorecard)
    assert again.correctness is None
    assert sorted(path.name for path in (tmp_path / "resnet50").iterdir()) == ["entry.yaml", "scorecard.json"]


def test_a_write_that_is_cut_off_is_found_and_repaired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = read_entry(ENTRIES_FOLDER / "resnet50")
    other = read_entry(ENTRIES_FOLDER / "vgg16")
    write_entry(tmp_path, entry.info, entry.scorecard, entry.correctness)
    real_replace = Path.replace
    done: list[Path] = []

    def replace_once(self: Path, target: Path) -> Path:
        if done:
            raise OSError("no space left")
        done.append(target)
        return real_replace(self, target)

    monkeypatch.setattr(Path, "replace", replace_once)
    with pytest.raises(OSError, match="no space"):
        write_entry(tmp_path, entry.info, other.scorecard, other.correctness)
    monkeypatch.undo()
    with pytest.raises(BeyondError, match="is not the file whose sha256"):
        read_entry(tmp_path / "resnet50")
    assert sorted(path.name for path in (tmp_path / "resnet50").iterdir()) == [
        "correct.bits",
        "entry.yaml",
        "scorecard.json",
    ]
    write_entry(tmp_path, entry.info, entry.scorecard, entry.correctness)
    assert read_entry(tmp_path / "resnet50").scorecard == entry.scorecard


TEXTS = (
    st.text(
        st.characters(exclude_categories=("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"), exclude_characters="<>"),
        min_size=1,
        max_size=40,
    )
    .map(str.strip)
    .filter(bool)
)


@settings(max_examples=60, deadline=None)
@given(
    name=TEXTS, citation=st.lists(TEXTS, min_size=1, max_size=4).map("\n".join), year=st.integers(1990, 2100)
)
def test_any_plain_text_survives_yaml(name: str, citation: str, year: int) -> None:
    """Also texts that YAML would read as numbers, dates, booleans, comments or anchors."""
    info = read_entry(ENTRIES_FOLDER / "resnet50").info
    changed = EntryInfo.model_validate({**dict(info), "name": name, "citation": citation, "year": year})
    assert parse_info(dump_info(changed)) == changed


def test_a_folder_without_entries_says_so(tmp_path: Path) -> None:
    with pytest.raises(BeyondError, match="no folder of entries"):
        load_entries(tmp_path / "none")
    assert load_entries(tmp_path) == []
    (tmp_path / "stray.txt").write_text("x")
    with pytest.raises(BeyondError, match="is not a folder"):
        load_entries(tmp_path)


# -------------------------------------------------------------------------------------------------- the bits


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 70), seed=st.integers(0, 2**32 - 1), every=st.booleans())
def test_bits_of_any_size_survive(n: int, seed: int, every: bool) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.permutation(np.array([f"image {i}" for i in range(n)], dtype=object))
    right = {"top1": rng.random(n) < 0.7, "a": rng.random(n) < 0.5}
    opened = {"a": ~right["a"] & (rng.random(n) < 0.3)} if every else {}
    made = Correctness.of(ids, right, opened, {"a": "r1"})
    found = Correctness.from_bytes(made.to_bytes())
    order = np.argsort(ids.astype(str))
    assert found.image_ids.tolist() == ids[order].tolist()
    for name in right:
        assert (found.right(name) == right[name][order]).all()
    if every:
        assert (found.unjudged("a") == opened["a"][order]).all()
    assert found.to_bytes() == made.to_bytes()


def test_the_whole_set_is_known_by_its_ids() -> None:
    bits = np.zeros(50_000, dtype=bool)
    shuffled = np.random.default_rng(1).permutation(50_000)
    bits[0] = True  # the image of the first id given
    made = Correctness.of(validation_ids()[shuffled], {"top1": bits})
    assert made.full
    assert np.flatnonzero(made.right("top1")).tolist() == [shuffled[0]]


def test_revisions_are_compared_by_content() -> None:
    assert pinned("timm 1.0.99, sha256:d83e9bff374c") == pinned("sha256:d83e9bff374c")
    assert pinned("rules 1: real@timm 1.0.31, sha256:d83e9bff374c") == "rules 1: real@sha256:d83e9bff374c"
    assert load_masks().get("real", "timm 2.0, sha256:d83e9bff374c") is not None
    assert load_masks().get("real", "sha256:000000000000") is None


def test_dates_in_entries_are_plain() -> None:
    assert read_entry(ENTRIES_FOLDER / "resnet50").info.submitted == date(2026, 11, 24)
