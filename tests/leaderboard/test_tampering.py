"""Submissions that claim what is not so, or try to do harm, are caught."""

from __future__ import annotations

import json
import os
import re
import tracemalloc
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annotations.errors import BeyondError
from benchmark.scorecard import Scorecard
from leaderboard.correctness import Correctness
from leaderboard.entries import ENTRIES_FOLDER, load_yaml, parse_info, read_entry, write_entry
from leaderboard.masks import load_masks
from leaderboard.records import check_bounds
from leaderboard.validation import Report, validate
from tests.leaderboard import forgery
from tests.leaderboard.forgery import Data

TODAY = date(2026, 12, 1)


def check(folder: Path, *names: str, **options: Any) -> Report:
    return validate(folder, names, today=TODAY, **options)


def errors(report: Report) -> list[str]:
    return [f"{f.slug}: {f.message}" for f in report.findings if f.level == "error"]


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    """A copy of ResNet-50's entry, alone in a folder of entries."""
    return forgery.copy(tmp_path / "entries", "resnet50")


def test_the_honest_copy_passes(entry: Path) -> None:
    report = check(entry.parent)
    assert report.passed, errors(report)
    assert report.entries[0].basis == "bits"


# --------------------------------------------------------------------------------------------- edited numbers


def raise_top1(entry: Path) -> None:
    """A forger who knows what follows from the value: interval, anatomy."""
    from benchmark.statistics import wilson

    hits = 40_000
    low, high = wilson(hits, 50_000)
    forgery.edit_metric(entry, "top1", value=hits / 50_000, ci_low=float(low), ci_high=float(high))

    def fewer_mistakes(card: Data) -> None:
        rows = card["tracks"]["rectified"]["tables"]["anatomy"]
        rows[-1]["n"] -= sum(row["n"] for row in rows) - (50_000 - hits)

    forgery.edit_card(entry, fewer_mistakes)


def remove(*path: str | int) -> Callable[[Path], None]:
    def change(card: Data) -> None:
        at: Any = card
        for key in path[:-1]:
            at = at[key]
        del at[path[-1]]

    return lambda entry: forgery.edit_card(entry, change)


def put(value: Any, *path: str | int) -> Callable[[Path], None]:
    def change(card: Data) -> None:
        at: Any = card
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value

    return lambda entry: forgery.edit_card(entry, change)


def metric(key: str, **values: Any) -> Callable[[Path], None]:
    return lambda entry: forgery.edit_metric(entry, key, **values)


M = ("tracks", "rectified", "metrics")
T = ("tracks", "rectified", "tables")

EDITED = {
    "raised": (metric("top1", value=0.80), r"top1: value 0\.8 is outside its interval"),
    "raised a little": (metric("top1", value=0.7613001), r"top1: .* is not a whole number of 50,000 images"),
    "raised with all that follows": (raise_top1, r"correct\.bits says otherwise: top1: value is 0\.8"),
    "raised rectified": (metric("real_accuracy", value=0.99), r"real_accuracy: value .* outside"),
    "raised class mean": (
        metric("mla", value=0.857, lower=0.857, upper=0.858),
        r"says otherwise: mla: lower is 0\.857",
    ),
    "narrower interval": (
        metric("top1", ci_low=0.7610, ci_high=0.7616),
        r"top1: ci_low is 0\.761, but wilson",
    ),
    "narrower class mean": (metric("mla", ci_low=0.8500), r"says otherwise: mla: ci_low is 0\.85"),
    "narrower reduction": (
        metric("rectified_error_reduction", ci_low=0.206),
        r"rectified_error_reduction: ci_low is 0\.206",
    ),
    "no interval": (metric("top1", ci_low=None, ci_high=None), r"top1: it has no interval"),
    "half an interval": (metric("top5", ci_low=None), r"top5: only one end"),
    "another method": (metric("top1", method="bootstrap"), r"top1: its interval is made by 'bootstrap'"),
    "unjudged forgotten": (metric("mla_plain", judged=18_692), r"mla_plain: its bounds do not follow"),
    "more judged than there are": (metric("mla_plain", judged=99_999), r"99,999 judged of 18,692"),
    "more images than there are": (metric("top1", n=60_000), r"top1: n is 60,000, but only 50,000"),
    "fewer images": (metric("real_accuracy", n=40_000), r"real_accuracy: .* is not a whole number"),
    "top-5 below top-1": (metric("top5", value=0.7, ci_low=0.69, ci_high=0.71), r"top1 is above top5"),
    "a share above 1": (metric("top5", value=1.5, ci_low=1.4, ci_high=1.6), r"between 0 and 1"),
    "a bad metric left out": (remove(*M, "mla"), r"says otherwise: mla is left out \(0\.850796\)"),
    "a bad track left out": (remove("tracks", "rectified"), r"the scorecard has no track"),
    "an invented metric": (put({"value": 1.0, "n": 5, "method": "wilson"}, *M, "best"), r"no such metric"),
    "an invented table": (put([{"a": 1}], *T, "best"), r"no table 'best'"),
    "an invented track": (put({"version": 1}, "tracks", "best"), r"no such track: 'best'"),
    "a future track": (put(99, "tracks", "rectified", "version"), r"version 99 .* newer than this beyond"),
    "milder anatomy": (put(5000, *T, "anatomy", 0, "n"), r"anatomy's counts do not add up"),
    "a class that gains more": (
        put(0.99, *T, "most_rectified_classes", 0, "gain"),
        r"table most_rectified_classes, row 1: gain is 0\.99",
    ),
    "a smaller error": (
        put(0.1, *T, "standard_vs_rectified", 1, "rectified_error"),
        r"table standard_vs_rectified, row 2: rectified_error is 0\.1",
    ),
    "fewer images in all": (put(49_999, "images", "n"), r"needs all 50,000 images"),
    "images skipped": (put(3, "images", "skipped"), r"needs all 50,000 images"),
    "other images": (put("0" * 64, "images", "fingerprint"), r"are not the 50,000 validation images"),
    "other annotations": (
        put("sha256:000000000000", "annotations", "sources", "real"),
        r"different annotations",
    ),
    "markup in the model's name": (
        put("<img src=x>", "model", "name"),
        r"scorecard\.model\.name: text holds '<'",
    ),
    "markup in a table": (
        put("<script>", *T, "accepted_confusions", 0, "original"),
        r"text holds '<'",
    ),
    "a direction turned in a note": (put(["a\u202eb"], "tracks", "rectified", "notes"), r"U\+202E"),
}


@pytest.mark.parametrize("name", EDITED)
def test_edited_numbers_are_caught_without_the_records(name: str, entry: Path) -> None:
    tamper, expected = EDITED[name]
    tamper(entry)
    report = check(entry.parent)
    assert not report.passed
    assert any(re.search(expected, line) for line in errors(report)), errors(report)


def test_an_edit_without_a_new_hash_is_caught(entry: Path) -> None:
    forgery.edit_card(entry, lambda card: card["model"].update(name="better"), hashes=False)
    assert "is not the file whose sha256" in errors(check(entry.parent))[0]


def test_a_scorecard_with_a_key_twice_is_caught(entry: Path) -> None:
    """A reader that takes the first would see another number than one that takes the last."""
    text = (entry / "scorecard.json").read_text()
    forgery.write_card(
        entry, text.replace('"schema_version": 1', '"schema_version": 1,\n  "schema_version": 1')
    )
    assert any("not in beyond's own form" in line for line in errors(check(entry.parent)))


# ------------------------------------------------------------------------------------------- bits and records


def improved(entry: Path) -> None:
    """A forger who also edits the bits: 500 mistakes become right, and every number follows from that."""
    from annotations.classes import validation_labels
    from benchmark.scorecard import Metric
    from benchmark.tracks.rectified import score_verdicts
    from leaderboard.masks import evaluable
    from leaderboard.validation import answers_of

    bits = read_entry(entry).correctness
    assert bits is not None
    right = {name: bits.right(name) for name in bits.packed}
    everywhere = load_masks().correctness.right("real") & load_masks().correctness.right("consolidated")
    wrong = np.flatnonzero(~right["top1"] & ~right["real"] & ~right["consolidated"] & everywhere)[:500]
    for name in ("top1", "real", "consolidated"):
        right[name][wrong] = True
    opened = {s: bits.unjudged(s) & ~right[s] for s in bits.sources}
    forged = Correctness.of(bits.image_ids, right, opened, bits.annotations)
    forgery.write_bits(entry, forged.to_bytes())
    answers = {}
    for source in forged.sources:
        mask = evaluable(forged, source)
        assert mask is not None
        answers[source] = answers_of(mask, right[source], opened[source])
    metrics, tables = score_verdicts(forged.image_ids, validation_labels(), right["top1"], answers)

    def change(card: Data) -> None:
        track = card["tracks"]["rectified"]
        for key, found in metrics.items():
            track["metrics"][key] = Metric.model_dump(found, exclude_none=True)
        for key, rows in tables.items():
            track["tables"][key] = rows
        track["tables"]["anatomy"][-2]["n"] -= 500

    forgery.edit_card(entry, change)


@pytest.mark.shared
def test_a_forger_who_edits_everything_is_caught_by_the_records(entry: Path, shared_data: Path) -> None:
    improved(entry)
    alone = check(entry.parent)
    assert alone.passed, errors(alone)  # the entry fits itself: only the records know better
    assert alone.entries[0].basis == "bits"
    report = check(entry.parent, records=shared_data / "predictions")
    assert report.entries[0].basis == "records"
    assert any("its records say otherwise: top1: value is 0.7713" in line for line in errors(report))
    assert any("correct.bits is not what its records give" in line for line in errors(report))


@pytest.mark.shared
@pytest.mark.parametrize("key", ["mla_ppi", "precision_at_k"])
def test_an_interval_that_bits_cannot_check_is_caught_by_the_records(
    key: str, entry: Path, shared_data: Path
) -> None:
    value = read_entry(entry).scorecard.tracks["rectified"].metrics[key].value
    forgery.edit_metric(entry, key, ci_low=value - 0.0001)
    assert check(entry.parent).passed
    report = check(entry.parent, records=shared_data / "predictions")
    assert any(f"its records say otherwise: {key}: ci_low" in line for line in errors(report))


@pytest.mark.shared
def test_records_of_another_model_are_caught(entry: Path, shared_data: Path) -> None:
    """First under the old hash, then with the hash of what is really there."""
    forgery.edit_info(entry, lambda info: info["records"].update(path="resnet101.npy"))
    report = check(entry.parent, records=shared_data / "predictions")
    assert any("the records at resnet101.npy have sha256" in line for line in errors(report))

    other = read_entry(ENTRIES_FOLDER / "resnet101").info.records.sha256
    forgery.edit_info(entry, lambda info: info["records"].update(sha256=other))
    report = check(entry.parent, records=shared_data / "predictions")
    assert any("its records say otherwise: top1: value is 0.7613" in line for line in errors(report))


@pytest.mark.shared
def test_records_in_another_order_are_caught(entry: Path, shared_data: Path, tmp_path: Path) -> None:
    from leaderboard.entries import records_sha256

    predictions = np.load(shared_data / "predictions" / "resnet50.npy")
    np.save(tmp_path / "resnet50.npy", np.roll(predictions, 1, axis=0))
    sha256 = records_sha256(tmp_path / "resnet50.npy")
    forgery.edit_info(entry, lambda info: info["records"].update(sha256=sha256))
    report = check(entry.parent, records=tmp_path)
    assert any("its records say otherwise" in line for line in errors(report))


BITS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "no bits": (lambda _: b"", "no file of correctness bits"),
    "another file": (lambda _: b"PK\x03\x04" * 50, "no file of correctness bits"),
    "cut off": (lambda data: data[:-1], "damaged"),
    "more at the end": (lambda data: data + b"\x00", "more or other bytes"),
    "a header that never ends": (lambda data: data[:8] + b"\xff\xff\xff\x7f" + data[12:], "damaged"),
    "a future version": (lambda data: data.replace(b'"version":1', b'"version":2'), "version 2"),
    "another n": (lambda data: data.replace(b'"n":50000', b'"n":49999'), "damaged"),
    "a section beyond the end": (lambda data: data.replace(b'"offset":0', b'"offset":9'), "damaged"),
    "an unknown kind": (lambda data: data.replace(b'"kind":"bits"', b'"kind":"bots"'), "damaged"),
    "other annotations": (lambda data: data.replace(b'"real":"sha256:d', b'"real":"sha256:e'), "different"),
    "a deep header": (lambda data: data[:12] + b"[" * int.from_bytes(data[8:12], "little"), "damaged"),
}


@pytest.mark.parametrize("name", BITS)
def test_damaged_bits_are_caught(name: str, entry: Path) -> None:
    change, expected = BITS[name]
    data = (entry / "correct.bits").read_bytes()
    assert change(data) != data
    forgery.write_bits(entry, change(data))
    assert any(expected in line for line in errors(check(entry.parent))), errors(check(entry.parent))


def invent_source(entry: Path, source: str, revision: str) -> None:
    """A forger who adds a source that nobody here has, in the hope that nothing is compared then."""
    bits = read_entry(entry).correctness
    assert bits is not None
    packed = dict(bits.packed) | {source: bits.packed["real"]}
    annotations = dict(bits.annotations) | {source: revision}
    forged = Correctness(bits.image_ids, packed, bits.open, annotations)
    forgery.write_bits(entry, forged.to_bytes())
    forgery.edit_card(entry, lambda card: card["annotations"]["sources"].update({source: revision}))


@pytest.mark.parametrize("source", ["my-labels", "../../judgements", "mla=/etc/passwd", "hub:a/b@main"])
def test_an_invented_source_does_not_stop_the_comparison(source: str, entry: Path) -> None:
    invent_source(entry, source, "sha256:0")
    report = check(entry.parent)
    assert report.passed, errors(report)
    assert any(f"{source} at sha256:0 is not here" in f.message for f in report.findings)
    raise_top1(entry)
    assert any("says otherwise: top1: value is 0.8" in line for line in errors(check(entry.parent)))


@pytest.mark.shared
def test_an_invented_source_does_not_stop_the_recomputation(entry: Path, shared_data: Path) -> None:
    improved(entry)
    invent_source(entry, "my-labels", "sha256:0")
    report = check(entry.parent, records=shared_data / "predictions")
    lines = errors(report)
    assert any("its records say otherwise: real_accuracy" in line for line in lines)
    assert any("correct.bits is not what its records give" in line for line in lines)


def test_label_sets_in_the_submission_are_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of the submitter's own judgements, named as a source, by its right revision."""
    from annotations.sources import load
    from leaderboard.masks import label_sets

    load("sample").save(tmp_path / "mine")
    revision = load(str(tmp_path / "mine")).revision
    monkeypatch.chdir(tmp_path)
    assert label_sets("./mine", revision) is None
    assert label_sets("consolidated", f"rules 1: ./mine@{revision}") is None
    assert label_sets("sample", load("sample").revision) is not None


def test_one_flipped_bit_is_caught(entry: Path) -> None:
    data = bytearray((entry / "correct.bits").read_bytes())
    data[-20_000] ^= 1
    forgery.write_bits(entry, bytes(data))
    assert errors(check(entry.parent))


def test_right_answers_where_nobody_can_say_are_caught(entry: Path) -> None:
    bits = read_entry(entry).correctness
    assert bits is not None
    packed = dict(bits.packed) | {"real": bits.packed["real"] | ~load_masks().packed("real")}
    forgery.write_bits(entry, Correctness(bits.image_ids, packed, bits.open, bits.annotations).to_bytes())
    assert any("real cannot evaluate some images" in line for line in errors(check(entry.parent)))


def test_a_sample_cannot_pass_for_the_whole(tmp_path: Path) -> None:
    entry = forgery.copy(tmp_path / "entries", "efficientnet-lite0")
    forgery.edit_info(entry, lambda info: info.update(scope="full"))
    lines = errors(check(entry.parent))
    assert any("scope full needs all 50,000 images; the scorecard has 20" in line for line in lines)
    forgery.edit_card(entry, lambda card: card["images"].update(sample=False, n=50_000))
    lines = errors(check(entry.parent))
    assert any("are not the 50,000 validation images" in line for line in lines)
    assert any("correct.bits is about 20 images" in line for line in lines)


# ------------------------------------------------------------------------------------------------ duplicates


def test_a_model_under_a_second_slug_is_caught(entry: Path) -> None:
    forgery.copy(entry.parent, "resnet50", to="my-new-net")
    lines = errors(check(entry.parent))
    for what in ("the same name", "the same records", "the same right answers"):
        assert any(line.startswith(f"my-new-net: {what}") and "'resnet50'" in line for line in lines), what


def test_a_disguised_copy_is_caught_by_its_answers(entry: Path) -> None:
    """Another name, other records, and ten answers changed."""
    other = forgery.copy(entry.parent, "resnet50", to="my-new-net")
    forgery.edit_info(other, lambda info: info.update(name="My New Net", records={"kind": "none"}))
    assert any(
        "the same right answers on every image as 'resnet50'" in line for line in errors(check(entry.parent))
    )
    bits = read_entry(other).correctness
    assert bits is not None
    right = {name: bits.right(name) for name in bits.packed}
    right["top1"][np.flatnonzero(~right["top1"])[:10]] = True
    forged = Correctness.of(
        bits.image_ids, right, {s: bits.unjudged(s) for s in bits.sources}, bits.annotations
    )
    forgery.write_bits(other, forged.to_bytes())
    warned = [f for f in check(entry.parent).findings if f.level == "warning" and f.slug == "my-new-net"]
    assert any("right on the same images as 'resnet50' but for 10" in f.message for f in warned)


@pytest.mark.parametrize("name", ["ＲｅｓＮｅｔ－５０", "resnet 50", "RESNET50"])
def test_a_name_that_only_looks_different_is_caught(name: str, entry: Path) -> None:
    other = forgery.copy(entry.parent, "vgg16")
    forgery.edit_info(other, lambda info: info.update(name=name))
    assert any("the same name as 'resnet50'" in line for line in errors(check(entry.parent)))


def test_a_name_in_two_alphabets_is_caught(entry: Path) -> None:
    forgery.edit_info(entry, lambda info: info.update(name="R\u0435sNet-50"))  # a Cyrillic е
    assert any("mixes alphabets" in line for line in errors(check(entry.parent)))


def test_a_superseding_entry_is_no_duplicate(entry: Path) -> None:
    forgery.copy(entry.parent, "resnet50", to="resnet50-2")
    forgery.edit_info(entry, lambda info: info.update(state="superseded", superseded_by="resnet50-2"))
    report = check(entry.parent)
    assert report.passed, errors(report)


# ------------------------------------------------------------------------------------------------- entry.yaml

TEXT = (ENTRIES_FOLDER / "resnet50" / "entry.yaml").read_text(encoding="utf-8")

BAD_FIELDS: dict[str, tuple[Data, str]] = {
    **{
        f"slug {slug!r}": ({"slug": slug}, "slug")
        for slug in (
            "../evil",
            "..",
            "a/b",
            "a\\b",
            "/etc",
            ".hidden",
            "a..b",
            "A",
            "-",
            "",
            "x" * 101,
            "é",
            "con",
        )
    },
    "an unknown key": ({"rank": 1}, "rank: Extra inputs are not permitted"),
    "an unknown key inside": ({"links": {"demo": "https://example.org"}}, r"links.demo: Extra inputs"),
    "a future form": ({"entry_version": 2}, "entry_version 2"),
    "markup": ({"name": "<b>Best</b>"}, "name: holds '<'"),
    "a script": ({"citation": "x<script>alert(1)</script>"}, "citation: holds '<'"),
    "a new line": ({"name": "Two\nlines"}, r"name: holds the invisible character U\+000A"),
    "an escape": ({"name": "a\x1b[31m"}, r"U\+001B"),
    "a turned direction": ({"name": "evil\u202egpj"}, r"U\+202E"),
    "an invisible joiner": ({"name": "Res\u200bNet"}, r"U\+200B"),
    "a name too long": ({"name": "x" * 201}, "name: .*at most 200"),
    "an empty name": ({"name": ""}, "name: .*at least 1"),
    "a name that is no text": ({"name": True}, "name: Input should be a valid string"),
    "a script for a link": ({"links": {"paper": "javascript:alert(1)"}}, "links.paper: .* no https address"),
    "data for a link": ({"links": {"paper": "data:text/html,x"}}, "no https address"),
    "plain http": ({"links": {"paper": "http://example.org"}}, "no https address"),
    "no host": ({"links": {"paper": "https://"}}, "no https address"),
    "a password": ({"links": {"paper": "https://a:b@example.org"}}, "do not belong in an address"),
    "a quote in a link": ({"links": {"paper": 'https://example.org/"onload="x'}}, "do not belong"),
    "no licence": ({"licence": None}, "licence"),
    "a licence nobody knows": ({"licence": {"predictions": "Free as in beer"}}, "no SPDX licence"),
    "a licence misspelt": ({"licence": {"predictions": "mit"}}, "is spelled 'MIT'"),
    "an impossible year": ({"year": 1776}, "year"),
    "a year as text": ({"year": "2015"}, "year: Input should be a valid integer"),
    "no parameters": ({"parameters": 0}, "parameters"),
    "infinite throughput": ({"throughput": float("inf")}, "throughput"),
    "an unknown state": ({"state": "best"}, "state"),
    "an unknown status": ({"status": "certified"}, "status"),
    "withdrawn without a reason": ({"state": "withdrawn"}, "needs a reason"),
    "superseded by nothing": ({"state": "superseded"}, "superseded_by goes with"),
    "superseded by itself": ({"state": "superseded", "superseded_by": "resnet50"}, "supersede itself"),
    "verified by nobody": ({"status": "verified"}, "verification goes with"),
    "records out of the folder": (
        {"records": {"kind": "file", "path": "../../x", "sha256": "0" * 64}},
        "records.path",
    ),
    "records from the root": (
        {"records": {"kind": "file", "path": "/etc/passwd", "sha256": "0" * 64}},
        "records.path",
    ),
    "records with a pattern": (
        {"records": {"kind": "file", "path": "*.npy", "sha256": "0" * 64}},
        "records.path",
    ),
    "records on a branch": (
        {
            "records": {
                "kind": "hub",
                "repository": "a/b",
                "revision": "main",
                "path": "x",
                "sha256": "0" * 64,
            }
        },
        "records.revision",
    ),
    "records of another host": (
        {
            "records": {
                "kind": "hub",
                "repository": "https://x/a/b",
                "revision": "0" * 40,
                "path": "x",
                "sha256": "0" * 64,
            }
        },
        "records.repository",
    ),
    "records without a hash": ({"records": {"kind": "file", "path": "x"}}, "need sha256"),
}


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_bad_fields_are_refused_in_one_line(name: str) -> None:
    change, expected = BAD_FIELDS[name]
    text = yaml.safe_dump(yaml.safe_load(TEXT) | change, allow_unicode=True)
    with pytest.raises(BeyondError) as caught:
        parse_info(text)
    assert re.search(expected, str(caught.value)), caught.value
    assert "\n" not in str(caught.value)


BOMBS = {
    "aliases": "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
    "a billion laughs": "a0: &a0 lol\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)),
    "merge keys": "a: {x: 1}\n<<: {y: 2}\n",
    "a python object": "a: !!python/object/apply:os.system ['true']\n",
    "a tag": "a: !!binary aGVsbG8=\n",
    "depth": "a: " + "[" * 5000 + "]" * 5000,
    "length": "a:\n" + "- x\n" * 20_000,
    "two documents": "a: 1\n---\nb: 2\n",
    "a key twice": "a: 1\na: 2\n",
    "a key that is a list": "? [a, b]\n: 1\n",
    "a number too long": "a: " + "9" * 10_000 + "\n",
    "a date that is none": "a: 2026-13-45\n",
    "no YAML": "a: [1, 2\n",
    "a control character": "a: \x07\n",
}


@pytest.mark.parametrize("name", BOMBS)
def test_yaml_that_is_not_plain_is_refused(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BeyondError) as caught:
            load_yaml(BOMBS[name], where="x/entry.yaml")
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert "x/entry.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------- the folder


@pytest.mark.parametrize("file", ["entry.yaml", "scorecard.json", "correct.bits"])
def test_a_file_of_a_gigabyte_is_refused_unread(file: str, entry: Path) -> None:
    with (entry / file).open("wb") as made:
        made.truncate(2**30)  # sparse: it takes no room here
    tracemalloc.start()
    try:
        lines = errors(check(entry.parent))
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()
    assert any(f"resnet50/{file} has 1,073,741,824 bytes; at most" in line for line in lines), lines


@pytest.mark.parametrize("file", ["entry.yaml", "scorecard.json", "correct.bits"])
def test_a_link_is_refused(file: str, entry: Path, tmp_path: Path) -> None:
    (entry / file).rename(tmp_path / file)
    (entry / file).symlink_to(tmp_path / file)
    assert any(f"{file} is a link" in line for line in errors(check(entry.parent)))


def test_an_entry_that_is_a_link_is_refused(tmp_path: Path) -> None:
    forgery.copy(tmp_path / "elsewhere", "resnet50")
    (tmp_path / "entries").mkdir()
    (tmp_path / "entries" / "resnet50").symlink_to(tmp_path / "elsewhere" / "resnet50")
    with pytest.raises(BeyondError, match="is not a folder"):
        check(tmp_path / "entries")


def test_a_pipe_is_refused_and_not_waited_for(entry: Path) -> None:
    (entry / "scorecard.json").unlink()
    os.mkfifo(entry / "scorecard.json")
    assert any("is not a plain file" in line for line in errors(check(entry.parent)))


@pytest.mark.parametrize("name", ["setup.py", ".gitattributes", "scorecard.json.bak", "photo.jpg"])
def test_files_that_do_not_belong_are_refused(name: str, entry: Path) -> None:
    (entry / name).write_text("x")
    assert any(f"{name!r} does not belong" in line for line in errors(check(entry.parent)))


@pytest.mark.parametrize("file", ["entry.yaml", "scorecard.json", "correct.bits"])
def test_a_missing_file_is_named(file: str, entry: Path) -> None:
    (entry / file).unlink()
    assert any(file in line for line in errors(check(entry.parent)))


def test_a_slug_must_be_the_folders_name(entry: Path) -> None:
    forgery.edit_info(entry, lambda info: info.update(slug="vgg16"))
    assert any("must be the folder's name" in line for line in errors(check(entry.parent)))


def test_nothing_is_written_under_a_bad_slug(tmp_path: Path) -> None:
    found = read_entry(ENTRIES_FOLDER / "resnet50")
    info = found.info.model_copy(update={"slug": "../evil"})
    with pytest.raises(ValueError, match="not allowed"):
        write_entry(tmp_path / "entries", info, found.scorecard)
    assert not list(tmp_path.rglob("*"))


CARDS = {
    "no JSON": ("{", "is not JSON"),
    "a deep one": ("[" * 100_000, "is not JSON"),
    "a number too long": ('{"schema_version": ' + "9" * 10_000 + "}", "is not JSON"),
    "a list": ("[]", "schema version None"),
    "a future one": ('{"schema_version": 99}', "schema version 99"),
    "an unknown key": ('{"schema_version": 1, "best": true}', "scorecard"),
}


@pytest.mark.parametrize("name", CARDS)
def test_scorecards_that_are_none_are_refused(name: str, entry: Path) -> None:
    text, expected = CARDS[name]
    forgery.write_card(entry, text)
    lines = errors(check(entry.parent))
    assert any(expected in line for line in lines), lines
    assert all("\n" not in line for line in lines)


def test_an_unknown_key_anywhere_in_a_scorecard_is_refused() -> None:
    for path in ((), ("model",), ("images",), ("annotations",), ("tracks", "rectified"), (*M, "top1")):
        card = json.loads((ENTRIES_FOLDER / "resnet50" / "scorecard.json").read_text())
        at = card
        for key in path:
            at = at[key]
        at["surprise"] = 1
        with pytest.raises(BeyondError, match="surprise"):
            Scorecard.from_json(json.dumps(card))


def test_half_characters_and_numbers_that_are_none_do_not_crash(entry: Path) -> None:
    for value in ("\\ud800", "NaN"):
        text = (entry / "scorecard.json").read_text()
        quoted = value if value == "NaN" else f'"{value}"'
        changed = text.replace(
            '"spec": "resnet50.npy"', f'"preprocessing": {{"x": {quoted}}}, "spec": "x"', 1
        )
        assert changed != text
        (entry / "scorecard.json").write_bytes(changed.encode())
        forgery.rehash(entry)
        assert errors(check(entry.parent))
        (entry / "scorecard.json").write_text(text)


# -------------------------------------------------------------------------------------------- life and status


def test_life_cycles_that_lead_nowhere_are_caught(tmp_path: Path) -> None:
    folder = tmp_path / "entries"
    a, b = forgery.copy(folder, "vgg16"), forgery.copy(folder, "vgg19")
    forgery.edit_info(a, lambda info: info.update(state="superseded", superseded_by="nobody"))
    assert any("names 'nobody', which is no readable entry" in line for line in errors(check(folder)))
    forgery.edit_info(a, lambda info: info.update(superseded_by="vgg19"))
    forgery.edit_info(b, lambda info: info.update(state="superseded", superseded_by="vgg16"))
    assert any("goes in a circle" in line for line in errors(check(folder)))
    forgery.edit_info(b, lambda info: info.pop("superseded_by"))
    forgery.edit_info(b, lambda info: info.update(state="withdrawn", reason="wrong weights"))
    assert any("which is withdrawn" in line for line in errors(check(folder)))


def test_a_submission_cannot_give_itself_a_status(entry: Path) -> None:
    lines = errors(check(entry.parent, "resnet50", submission=True))
    assert any(
        "a submission is self-reported; only maintainers set status recomputed" in line for line in lines
    )
    assert any("needs its records on the Hub" in line for line in lines)


def test_a_status_needs_records(entry: Path) -> None:
    forgery.edit_info(entry, lambda info: info.update(records={"kind": "none"}))
    assert any("status recomputed needs records" in line for line in errors(check(entry.parent)))


def test_a_date_in_the_future_is_caught(entry: Path) -> None:
    forgery.edit_info(entry, lambda info: info.update(submitted=date(2027, 1, 1)))
    assert any("which is in the future" in line for line in errors(check(entry.parent)))


# ---------------------------------------------------------------------------------------------------- records


def test_records_that_unfold_are_refused_by_their_footer(tmp_path: Path) -> None:
    """Ten million equal rows take kilobytes in Parquet."""
    rows = 10_000_000
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, dtype=np.int8)), pa.array(["a" * 100]))
    path = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"image_id": column}), path)
    assert path.stat().st_size < 200_000
    tracemalloc.start()
    try:
        with pytest.raises(BeyondError, match="is more than the validation set can need"):
            check_bounds(path)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_records_with_links_or_without_parts_are_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "predictions").mkdir(parents=True)
    with pytest.raises(BeyondError, match="holds no records"):
        check_bounds(run)
    (tmp_path / "part-00000-0000000000000000.parquet").write_bytes(b"x")
    (run / "predictions" / "part-00000-0000000000000000.parquet").symlink_to(
        tmp_path / "part-00000-0000000000000000.parquet"
    )
    with pytest.raises(BeyondError, match="is a link"):
        check_bounds(run)


# ----------------------------------------------------------------------------------------------------- chance


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), file=st.sampled_from(["entry.yaml", "scorecard.json", "correct.bits"]))
def test_any_change_of_bytes_is_read_or_refused_in_one_line(
    data: st.DataObject, file: str, tmp_path: Path
) -> None:
    """Whatever happens to a file's bytes, findings come out and no exception, each in one line."""
    content = bytearray((ENTRIES_FOLDER / "alexnet" / file).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(content) - 1, 4000)))
        end = at + data.draw(st.integers(0, 20))
        content[at:end] = data.draw(st.binary(max_size=20))
    folder = tmp_path / "entries"
    if not folder.exists():
        forgery.copy(folder, "alexnet")
    entry = folder / "alexnet"
    try:
        (entry / file).write_bytes(bytes(content))
        if file != "entry.yaml":
            forgery.rehash(entry)
        for finding in check(folder).findings:
            assert "\n" not in finding.message
    finally:
        for name in ("entry.yaml", "scorecard.json", "correct.bits"):
            (entry / name).write_bytes((ENTRIES_FOLDER / "alexnet" / name).read_bytes())
