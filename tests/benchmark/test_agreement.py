"""Agreement on the scorecard of a run: from answers alone, of this run's predictions alone, never made up."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from annotations.study.answers import read_study, study_answers
from annotations.study.results import analyse
from benchmark import agreement, records
from benchmark.agreement import put_into_run, read_agreement
from benchmark.attack_records import ROBUSTNESS
from benchmark.scorecard import read_scorecard
from tests.benchmark.rated import asked, write_attacks, write_predictions, write_study
from tests.benchmark.test_cli import run

KEYS = (
    "agreement_none",
    "agreement_feature",
    "agreement_example",
    "agreement_gain_feature",
    "agreement_gain_example",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with attacks, without a study; and a study that pretends to be of people, and one made up."""
    folder = tmp_path_factory.mktemp("agreement")
    file, ids = write_predictions(folder)
    options: list[str | Path] = ["--ids", ids, "--annotations", "real", "--out", folder / "run"]
    assert run("score", "--predictions", file, *options) == 0
    write_attacks(folder / "run")
    assert run("rescore", folder / "run") == 0
    write_study(folder / "study", made_up=False)
    write_study(folder / "rehearsal", made_up=True)
    return folder


@pytest.fixture
def scored(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "run", tmp_path / "run")
    return tmp_path / "run"


def robustness(path: Path) -> Any:
    return read_scorecard(path).tracks["robustness"]


def test_metrics_are_those_of_the_study(
    made: Path, scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = robustness(scored)
    assert not set(KEYS) & set(before.metrics)
    out = tmp_path / "report"
    assert run("study", "analyse", made / "study", "--run", scored, "--out", out) == 0
    results = analyse(*read_study(made / "study"))
    track = robustness(scored)
    assert {key: metric for key, metric in track.metrics.items() if key not in KEYS} == before.metrics
    for arm in ("none", "feature", "example"):
        share, metric = results.share(arm), track.metrics[f"agreement_{arm}"]
        assert (metric.value, metric.ci_low, metric.ci_high) == (share.value, share.low, share.high)
        assert (metric.n, metric.raters, metric.method) == (12, 12, "two-way bootstrap")
    for arm in ("feature", "example"):
        gain, contrast = track.metrics[f"agreement_gain_{arm}"], results.contrast(arm, "none")
        assert contrast is not None
        assert (gain.value, gain.ci_low, gain.ci_high) == (contrast.value, contrast.low, contrast.high)
        assert gain.raters == 24
    assert track.tables["agreement_study"][0]["made_up"] is False
    assert track.tables["agreement_study"][0]["preregistration"] == results.preregistration
    # Every part of the report, and the same from the run's own records.
    assert {path.name for path in out.iterdir()} == {
        "results.json", "report.md", "agreement.svg", "contrasts.svg", "confidence.svg", "times.svg",
    }  # fmt: skip
    assert json.loads((out / "results.json").read_text())["preregistration"] == results.preregistration
    assert analyse(*read_agreement(scored)).measures == results.measures
    # Scoring again, from records alone, gives the same bytes.
    text = (scored / "scorecard.json").read_bytes()
    (scored / "scorecard.json").unlink()
    assert run("rescore", scored) == 0
    assert (scored / "scorecard.json").read_bytes() == text
    capsys.readouterr()
    assert run("show", scored) == 0
    shown = capsys.readouterr().out
    assert "Do people agree when they see why?" in shown
    assert "heat map" in shown
    assert "not yet rated" not in shown.lower()


def test_nobody_asked_is_not_yet_rated(
    scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("show", scored) == 0
    assert "Not yet rated" in capsys.readouterr().out
    assert run("show", scored, "--html", tmp_path / "page.html") == 0
    assert "Not yet rated" in (tmp_path / "page.html").read_text()


def test_the_page_shows_agreement_with_its_guards(made: Path, scored: Path, tmp_path: Path) -> None:
    assert run("study", "analyse", made / "study", "--run", scored, "--out", tmp_path / "r") == 0
    assert run("show", scored, "--html", tmp_path / "page.html") == 0
    page = (tmp_path / "page.html").read_text()
    assert "Do people agree when they see why?" in page
    assert "12 raters, 12 images" in page
    assert "Over-acceptance" in page
    assert "Not yet rated" not in page


def test_made_up_answers_fill_no_metric(
    made: Path, scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("study", "analyse", made / "rehearsal", "--run", scored, "--out", tmp_path / "r") == 0
    track = robustness(scored)
    assert not set(KEYS) & set(track.metrics)
    assert track.tables["agreement_study"][0]["made_up"] is True
    capsys.readouterr()
    assert run("show", scored) == 0
    assert "No person answered" in capsys.readouterr().out
    assert "Made up for a test" in (tmp_path / "r" / "report.md").read_text()


def test_one_answer_that_is_made_up_is_enough(made: Path, scored: Path) -> None:
    study, plan = read_study(made / "study")
    mixed = study.answers.copy()
    mixed.loc[0, "made_up"] = True
    put_into_run(scored, study_answers(study.items, mixed), plan)
    assert run("rescore", scored) == 0
    assert not set(KEYS) & set(robustness(scored).metrics)


def test_a_study_of_other_predictions_is_refused(
    made: Path, scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = asked()
    other.loc[0, ["shown_class", "predicted_class"]] = 7
    write_study(tmp_path / "other", made_up=False, frame=other)
    before = (scored / "scorecard.json").read_bytes()
    assert run("study", "analyse", tmp_path / "other", "--run", scored) == 2
    error = capsys.readouterr().err
    assert "no attack turned ILSVRC2012_val_00000001 into class 7" in error
    assert (scored / "scorecard.json").read_bytes() == before
    assert not agreement.has_agreement(scored)


def test_other_attacks_later_leave_the_answers_out(made: Path, scored: Path, tmp_path: Path) -> None:
    assert run("study", "analyse", made / "study", "--run", scored, "--out", tmp_path / "r") == 0
    shutil.rmtree(scored / ROBUSTNESS)
    write_attacks(scored, shift=123)
    assert run("rescore", scored) == 0
    track = robustness(scored)
    assert not set(KEYS) & set(track.metrics)
    assert any("are left out: no attack turned" in note for note in track.notes)


def test_damaged_answers_get_one_line(
    made: Path, scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("study", "analyse", made / "study", "--run", scored, "--out", tmp_path / "r") == 0
    part = records.part_paths(scored / agreement.AGREEMENT)[0]
    part.write_bytes(part.read_bytes()[:-9] + b"nonsense!")
    capsys.readouterr()
    assert run("rescore", scored) == 2
    assert "is damaged (checksum); put them in again" in capsys.readouterr().err


@pytest.mark.parametrize(("content", "words"), [("junk", "readable Parquet"), ("text", "shown_class")])
def test_a_part_that_only_its_name_vouches_for_gets_one_line(
    made: Path, scored: Path, tmp_path: Path, content: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Records may come from strangers, who can name any bytes by their checksum."""
    assert run("study", "analyse", made / "study", "--run", scored, "--out", tmp_path / "r") == 0
    part = records.part_paths(scored / agreement.AGREEMENT)[0]
    data = b"PAR1 and nothing else PAR1"
    if content == "text":
        table, sink = pq.read_table(part), pa.BufferOutputStream()
        column = table.column_names.index("shown_class")
        pq.write_table(table.set_column(column, "shown_class", pa.array(["a class"] * len(table))), sink)
        data = sink.getvalue().to_pybytes()
    part.unlink()
    named = part.with_name(f"part-00000-{hashlib.sha256(data).hexdigest()[:16]}.parquet")
    named.write_bytes(data)
    assert records.part_is_sound(named)
    capsys.readouterr()
    assert run("rescore", scored) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert words in line
    assert "put them in again" in line


def test_a_run_without_attacks_has_nothing_to_agree_with(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, ids = write_predictions(tmp_path)
    options: list[str | Path] = ["--ids", ids, "--annotations", "real", "--out", tmp_path / "run"]
    assert run("score", "--predictions", file, *options) == 0
    assert run("study", "analyse", made / "study", "--run", tmp_path / "run", "--out", tmp_path / "r") == 2
    assert "holds no attacks" in capsys.readouterr().err
