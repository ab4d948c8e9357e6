"""Agreement on the leaderboard: what people answered, recomputed from their answers, and nothing else."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from annotations.errors import BeyondError
from benchmark import records
from benchmark.agreement import AGREEMENT
from benchmark.scorecard import Metric, Track
from leaderboard.entries import Entry, read_entry, write_entry
from leaderboard.site.build import generate
from leaderboard.site.data import Board
from leaderboard.submission import prepare
from leaderboard.validation import validate
from tests.benchmark.rated import write_attacks, write_predictions, write_study
from tests.leaderboard import forgery
from tests.leaderboard.made_up import make_entries
from tests.leaderboard.test_submit import DETAILS, beyond

DAY = date(2026, 11, 24)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with attacks, and a study of them that pretends to be of people."""
    folder = tmp_path_factory.mktemp("agreement")
    file, ids = write_predictions(folder)
    options: list[str | Path] = ["--ids", ids, "--annotations", "real", "--out", folder / "run"]
    assert beyond("score", "--predictions", file, *options) == 0
    write_attacks(folder / "run")
    write_study(folder / "study", made_up=False)
    write_study(folder / "rehearsal", made_up=True)
    assert beyond("study", "analyse", folder / "study", "--run", folder / "run") == 0
    return folder / "run"


@pytest.fixture(scope="module")
def prepared(run: Path) -> Path:
    """A submission of it, on this machine."""
    details = {**yaml.safe_load(DETAILS), "slug": "rated"}
    (run.parent / "none").mkdir()
    prepare(run, details, run.parent / "stage", submitted=DAY, entries=run.parent / "none")
    return run.parent / "stage"


@pytest.fixture
def stage(prepared: Path, tmp_path: Path) -> Path:
    """A copy of it to tamper with."""
    shutil.copytree(prepared, tmp_path / "stage")
    return tmp_path / "stage"


def problems(stage: Path, *, with_records: bool = True) -> list[str]:
    folder = stage / "entries"
    report = validate(folder, ["rated"], records=stage if with_records else None, today=DAY)
    return [f.message for f in report.findings if f.level == "error"]


def entry(stage: Path) -> Path:
    return stage / "entries" / "rated"


def test_answers_go_along_and_agreement_is_recomputed_from_them(stage: Path) -> None:
    published = stage / "records" / "rated" / AGREEMENT
    columns = pq.read_schema(records.part_paths(published)[0]).names
    assert "answer" in columns
    assert "pixels" not in columns
    report = validate(stage / "entries", ["rated"], records=stage, today=DAY)
    assert report.passed, report.findings
    assert report.entries[0].basis == "records"
    metrics = read_entry(entry(stage)).scorecard.tracks["robustness"].metrics
    assert metrics["agreement_feature"].raters == 12


def test_answers_are_covered_by_the_hash_of_the_records(stage: Path) -> None:
    part = records.part_paths(stage / "records" / "rated" / AGREEMENT)[0]
    data = bytearray(part.read_bytes())
    data[100] ^= 1
    part.write_bytes(data)
    assert any("were changed" in problem for problem in problems(stage))


def test_made_up_answers_are_not_sent(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    assert beyond("study", "analyse", run.parent / "rehearsal", "--run", tmp_path / "run") == 0
    details = {**yaml.safe_load(DETAILS), "slug": "rated"}
    with pytest.raises(BeyondError, match="made up for a test"):
        prepare(tmp_path / "run", details, tmp_path / "stage", submitted=DAY, entries=tmp_path)


def test_made_up_answers_in_records_are_refused(run: Path, stage: Path, tmp_path: Path) -> None:
    """As a forger would: the records of a rehearsal, hashes that fit, the numbers left as they were."""
    shutil.copytree(run, tmp_path / "run")
    assert beyond("study", "analyse", run.parent / "rehearsal", "--run", tmp_path / "run") == 0
    published = stage / "records" / "rated"
    shutil.rmtree(published / AGREEMENT)
    shutil.copytree(tmp_path / "run" / AGREEMENT, published / AGREEMENT)
    rehash_records(stage)
    found = problems(stage)
    assert any("its records hold answers that are made up for a test" in problem for problem in found)
    assert any("agreement_none cannot be computed from the records" in problem for problem in found)


def rehash_records(stage: Path) -> None:
    from leaderboard.entries import records_sha256

    found = records_sha256(stage / "records" / "rated")
    forgery.edit_info(entry(stage), lambda info: info["records"].update(sha256=found))


def metric(card: Any, key: str) -> Any:
    return card["tracks"]["robustness"]["metrics"][key]


def tables(card: Any) -> Any:
    return card["tracks"]["robustness"]["tables"]


def better(card: Any) -> None:
    """One more point of agreement, everywhere it stands."""
    changed = metric(card, "agreement_feature")
    for key in ("value", "ci_low", "ci_high"):
        changed[key] += 0.01
    row = next(r for r in tables(card)["agreement"] if (r["measure"], r["arm"]) == ("agreement", "feature"))
    row.update(value=changed["value"], ci_low=changed["ci_low"], ci_high=changed["ci_high"])


FORGERIES: list[tuple[Callable[[Any], object], str]] = [
    (better, "is not"),
    (
        lambda c: metric(c, "agreement_none").update(value=0.9, ci_high=0.95),
        "not what the table of its study",
    ),
    (lambda c: metric(c, "agreement_gain_feature").update(value=0.25), "does not follow from agreement"),
    (lambda c: metric(c, "agreement_none").update(raters=500), "other raters or images"),
    (lambda c: metric(c, "agreement_none").update(raters=1), "at least two raters"),
    (lambda c: metric(c, "agreement_none").pop("raters"), "at least two raters"),
    (lambda c: metric(c, "agreement_none").update(method="wilson"), "its interval is made by 'wilson'"),
    (lambda c: metric(c, "clean_accuracy").update(raters=9), "no share of answers"),
    (lambda c: tables(c)["agreement_study"][0].update(made_up=True), "its agreement is made up for a test"),
    (lambda c: tables(c)["agreement_study"][0].pop("made_up"), "its agreement is made up for a test"),
    (lambda c: tables(c).update(agreement_study=[]), "0 are described"),
    (lambda c: tables(c)["agreement"].pop(0), "not what the table of its study"),
]


@pytest.mark.parametrize(("change", "words"), FORGERIES)
def test_a_changed_number_is_refused_without_the_records(
    stage: Path, change: Callable[[Any], object], words: str
) -> None:
    forgery.edit_card(entry(stage), change)
    assert any(words in problem for problem in problems(stage, with_records=False)), problems(stage)


def test_a_consistent_forgery_is_refused_by_the_records(stage: Path) -> None:
    def change(card: Any) -> None:
        better(card)
        feature = metric(card, "agreement_feature")["value"]
        row = next(
            r for r in tables(card)["agreement"] if (r["measure"], r["arm"]) == ("agreement", "feature")
        )
        row["total"] = feature * row["answers"]
        gain = metric(card, "agreement_gain_feature")
        value = feature - metric(card, "agreement_none")["value"]
        other = next(
            r
            for r in tables(card)["agreement_contrasts"]
            if (r["measure"], r["arm"], r["versus"]) == ("agreement", "feature", "none")
        )
        gain["value"] = other["value"] = value

    forgery.edit_card(entry(stage), change)
    assert problems(stage, with_records=False) == []
    assert any("its records say otherwise" in problem for problem in problems(stage))


def test_agreement_without_published_answers_is_refused(stage: Path) -> None:
    forgery.edit_info(entry(stage), lambda info: info.update(records={"kind": "none"}))
    assert any("agreement needs the answers themselves" in p for p in problems(stage, with_records=False))


# The site ---------------------------------------------------------------------------------------------------


def rated(made: Entry, *, made_up: bool) -> Entry:
    """An entry with agreement of three arms."""
    share = Metric(value=0.4, ci_low=0.3, ci_high=0.5, n=40, method="two-way bootstrap", raters=31)
    track = Track(
        version=1,
        metrics={"agreement_none": share, "agreement_gain_feature": share},
        tables={"agreement_study": [{"made_up": made_up}]},
    )
    card = made.scorecard.model_copy(update={"tracks": {**made.scorecard.tracks, "robustness": track}})
    return write_entry(made.folder.parent, made.info, card, made.correctness)


def column(data: str, key: str) -> Any:
    board = json.loads(data.removeprefix("window.BEYOND=").rstrip(";\n"))
    return next(metric for metric in board["metrics"] if metric["k"] == key)


def test_the_table_says_not_yet_rated_and_shows_raters(tmp_path: Path) -> None:
    made = make_entries(tmp_path, 3)
    data = generate(Board.of(made))["assets/leaderboard/data.js"]
    empty = column(data, "robustness.agreement_none")
    assert empty["v"] == []  # the page fills it up
    assert empty["absent"] == "not yet rated"
    files = generate(Board.of([made[0], rated(made[1], made_up=False), made[2]]))
    found = column(files["assets/leaderboard/data.js"], "robustness.agreement_none")
    assert found["v"] == [None, 4000, None]
    assert found["raters"] == {"1": 31}
    rows = list(csv.DictReader(io.StringIO(files["leaderboard.csv"])))
    assert [row["robustness.agreement_none_raters"] for row in rows] == ["", "31", ""]
    page = files[f"entries/{made[1].slug}.md"]
    assert "31 raters" in page
    assert "not yet rated" not in page
    assert "not yet rated" in files[f"entries/{made[0].slug}.md"]


def test_what_a_program_answered_never_stands_in_the_table(tmp_path: Path) -> None:
    made = make_entries(tmp_path, 2)
    files = generate(Board.of([made[0], rated(made[1], made_up=True)]))
    found = column(files["assets/leaderboard/data.js"], "robustness.agreement_none")
    assert found["v"] == []


def test_a_proxy_never_fills_the_column(tmp_path: Path) -> None:
    """Acceptance by label sets is no agreement: the columns stay empty beside it."""
    made = make_entries(tmp_path, 1)[0]
    share = Metric(value=0.4, ci_low=0.3, ci_high=0.5, n=40, method="wilson", lower=0.4, upper=0.4, judged=40)
    track = Track(version=1, metrics={"adversarial_acceptance": share})
    card = made.scorecard.model_copy(update={"tracks": {**made.scorecard.tracks, "robustness": track}})
    board = Board.of([write_entry(tmp_path, made.info, card, made.correctness)])
    data = generate(board)["assets/leaderboard/data.js"]
    assert column(data, "robustness.adversarial_acceptance")["v"] == [4000]
    for key in ("none", "feature", "example", "gain_feature", "gain_example"):
        assert column(data, f"robustness.agreement_{key}")["v"] == []
