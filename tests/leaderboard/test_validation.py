"""`beyond leaderboard validate` and `rank`, at the command line and with records on a Hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from benchmark.cli import beyond
from benchmark.report.text import clean
from leaderboard.entries import ENTRIES_FOLDER, read_entry, records_sha256, write_entry
from leaderboard.validation import validate
from tests.hub_server import HubServer
from tests.leaderboard import forgery


def run(*arguments: object) -> Result:
    return CliRunner().invoke(beyond, ["leaderboard", *map(str, arguments)])


def test_the_entries_of_this_repository_pass() -> None:
    report = validate()
    assert report.passed, [f.message for f in report.findings]
    assert not [f for f in report.findings if f.level == "warning"]
    assert {checked.basis for checked in report.entries} == {"bits"}
    assert len(report.entries) >= 55


@pytest.mark.shared
def test_some_are_computed_again_from_the_published_predictions(shared_data: Path) -> None:
    names = ["resnet50", "fv_4k", "pnasnet_large_tf", "vgg_19_tf", "efficientnet-lite1"]
    report = validate(names=names, records=shared_data / "predictions")
    assert report.passed, [f.message for f in report.findings]
    assert [checked.basis for checked in report.entries] == ["records"] * 4 + ["bits"]


def test_exit_status_and_json(tmp_path: Path) -> None:
    folder = tmp_path / "entries"
    entry = forgery.copy(folder, "resnet50")
    done = run("validate", "--entries", folder)
    assert done.exit_code == 0, done.output
    assert "nothing wrong" in done.output
    forgery.edit_metric(entry, "top1", value=0.9)
    done = run("validate", "--entries", folder)
    assert done.exit_code == 1
    assert "error: resnet50: top1: value 0.9 is outside its interval" in clean(done.output)
    done = run("validate", "--entries", folder, "--json")
    assert done.exit_code == 1
    report = json.loads(done.stdout)
    assert report["passed"] is False
    assert report["entries"][0]["findings"][0]["level"] == "error"
    done = run("validate", "--entries", folder, "resnet5O")
    assert isinstance(done.exception, Exception)
    assert "did you mean 'resnet50'" in str(done.exception)


def test_one_entry_is_checked_against_all_others(tmp_path: Path) -> None:
    """A submission lies elsewhere; its twin is among the entries."""
    elsewhere = forgery.copy(tmp_path / "new", "resnet50", to="mine")
    done = run("validate", elsewhere, "--json")
    assert done.exit_code == 1
    report = json.loads(done.stdout)
    assert [entry["slug"] for entry in report["entries"]] == ["mine"]
    assert any("the same right answers" in f["message"] for f in report["entries"][0]["findings"])


def test_unreadable_entries_do_not_hide_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "entries"
    forgery.copy(folder, "resnet50")
    (folder / "empty").mkdir()
    report = validate(folder)
    assert {c.slug: bool(c.findings) for c in report.entries} == {"empty": True, "resnet50": False}
    assert not report.passed


def test_records_that_are_not_here_are_said_to_be_missing(tmp_path: Path) -> None:
    report = validate(names=["resnet50"], records=tmp_path)
    assert report.passed
    assert [f.message for f in report.findings] == [
        "its records (resnet50.npy) are not here; nothing was recomputed"
    ]


def test_rank_prints_a_table_and_json() -> None:
    done = run("rank", "--from", "top1")
    assert done.exit_code == 0, done.output
    assert "PNASNet-5 Large (TF-Slim)" in done.output
    assert "without a rank: EfficientNet-Lite0: a sample of 20 images" in done.output
    data = json.loads(run("rank", "--from", "top1", "--json").stdout)
    assert data["ranks"]["resnet50"]["value"] == pytest.approx(0.82958, abs=1e-5)
    assert data["moved_from"]["metric"] == "top1"
    assert len(data["ranks"]) + len(data["unranked"]) == len(list(ENTRIES_FOLDER.iterdir()))
    same = run("rank", "--from", "top1", "--metric", "top1")
    assert "name two" in str(same.exception)


# ------------------------------------------------------------------------------------------ records on a Hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A local Hub, with caches of its own."""
    from huggingface_hub import constants

    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.setenv("BEYOND_CACHE", str(tmp_path / "cache"))
        yield server


@pytest.fixture(scope="module")
def made_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over all images: made-up predictions, scored against ReaL, which every installation has."""
    folder = tmp_path_factory.mktemp("run")
    from annotations.classes import validation_labels

    rng = np.random.default_rng(2)
    top5 = (validation_labels()[:, None] + np.array([0, 1, 2, 3, 4])) % 1000
    top5[rng.random(len(top5)) < 0.3] += 1
    np.save(folder / "made.npy", (top5 % 1000).astype(np.int16))
    done = CliRunner().invoke(
        beyond,
        [
            "score",
            "--predictions",
            str(folder / "made.npy"),
            "--annotations",
            "real",
            "--out",
            str(folder / "made"),
        ],
    )
    assert done.exit_code == 0, done.output
    return folder / "made"


def submit(run_folder: Path, folder: Path, hub: HubServer, **records: Any) -> Path:
    """An entry for the run, whose records are on the Hub as they are in the run's folder."""
    from benchmark import runs
    from benchmark.scorecard import read_scorecard
    from leaderboard.correctness import Correctness

    files = {
        f"runs/made/{path.relative_to(run_folder).as_posix()}": path.read_bytes()
        for path in run_folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }
    commit = hub.add_repo("dataset", "org/records", files)
    scorecard = read_scorecard(run_folder)
    bits = Correctness.from_result(runs.rectified_result(run_folder, ["real"]), scorecard.annotations.sources)
    pointer = {
        "kind": "hub",
        "repository": "org/records",
        "revision": commit,
        "path": "runs/made",
        "sha256": records_sha256(run_folder),
    } | records
    like = read_entry(ENTRIES_FOLDER / "resnet50").info
    info = type(like).model_validate(
        like.model_dump() | {"slug": "made", "name": "Made up", "status": "self-reported", "records": pointer}
    )
    return write_entry(folder, info, scorecard, bits).folder


def test_a_submission_is_computed_again_from_its_records_on_the_hub(
    made_run: Path, tmp_path: Path, hub: HubServer
) -> None:
    submit(made_run, tmp_path / "entries", hub)
    report = validate(tmp_path / "entries", ["made"], hub=True, submission=True)
    assert report.passed, [f.message for f in report.findings]
    assert report.entries[0].basis == "records"


def test_records_that_changed_on_the_hub_are_caught(made_run: Path, tmp_path: Path, hub: HubServer) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(made_run, changed)
    info = json.loads((changed / "run.json").read_text())
    (changed / "run.json").write_text(json.dumps(info))  # the same content in other bytes
    submit(changed, tmp_path / "entries", hub, sha256=records_sha256(made_run))
    messages = [f.message for f in validate(tmp_path / "entries", hub=True).findings]
    assert any("the records at runs/made have sha256" in message for message in messages)


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ({"repository": "org/nobody"}, "no dataset 'org/nobody'"),
        ({"revision": "0" * 40}, "has no revision"),
        ({"path": "runs/other"}, "has no runs/other at"),
    ],
)
def test_records_that_cannot_be_had_fail_in_one_line(
    records: dict[str, str], expected: str, made_run: Path, tmp_path: Path, hub: HubServer
) -> None:
    submit(made_run, tmp_path / "entries", hub, **records)
    messages = [f.message for f in validate(tmp_path / "entries", hub=True).findings if f.level == "error"]
    assert len(messages) == 1
    assert expected in messages[0]
    assert "\n" not in messages[0]


def test_records_too_large_are_refused_before_they_are_fetched(
    made_run: Path, tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(made_run, tmp_path / "entries", hub)
    monkeypatch.setattr("leaderboard.records.MAX_FILE", 1000)
    before = len(hub.requests)
    messages = [f.message for f in validate(tmp_path / "entries", hub=True).findings if f.level == "error"]
    assert any("too many or too large" in message for message in messages)
    assert not any("/resolve/" in request.path for request in hub.requests[before:])
