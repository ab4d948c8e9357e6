"""`beyond campaign`, from pairs to judgements."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from annotations import sources
from annotations.campaign.pictures import find_images
from annotations.campaign.store import Store
from annotations.errors import BeyondError, CheckFailedError
from benchmark.cli.campaign import campaign
from tests.annotations.campaign.conftest import Person

ROOT = Path(__file__).resolve().parents[3]


def run(*arguments: Any) -> Result:
    result = CliRunner().invoke(campaign, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A file of pairs on the sample images."""
    rows = [
        (image.image_id, c, 1.0 + n, 0.5) for n, image in enumerate(find_images("sample")) for c in (1, 2)
    ]
    names = ["image_id", "class_index", "priority", "sampling_probability"]
    pd.DataFrame(rows, columns=names).to_parquet(tmp_path / "pairs.parquet")
    return tmp_path / "pairs.parquet"


@pytest.fixture
def db(tmp_path: Path, pairs: Path) -> Path:
    """A campaign without practice, one vote a pair."""
    path = tmp_path / "c.db"
    quick = ("--votes", 1, "--practice", 0, "--qualification", 0, "--gold-rate", 0)
    run("create", "--pairs", pairs, "--images", "sample", "--gold", "sample", "--db", path, *quick)
    return path


def work_through(db: Path, answer: Any = "yes") -> None:
    store = Store.open(str(db))
    person = Person(store)
    while tokens := person.ask():
        for token in tokens:
            person.answer(token, answer)
    store.close()


def test_a_campaign_from_pairs_to_judgements(db: Path, tmp_path: Path) -> None:
    links = json.loads(run("invite", "--db", db, "--count", 2, "--json").output)
    assert len(set(links)) == 2
    work_through(db)
    status = json.loads(run("status", "--db", db, "--json").output)
    assert status["coverage"]["complete"] == status["verdicts"]["accepted"] == 40
    shown = run("status", "--db", db).output
    assert "40 complete (40 accepted" in shown
    assert run("check", "--db", db).output.startswith("all answers")
    out = tmp_path / "labels"
    assert "40 pairs, 40 accepted" in run("aggregate", "--db", db, "--out", out).output
    labels = sources.load(str(out))
    assert len(labels.verdict) == 40
    export = tmp_path / "export"
    run("export", "--db", db, "--out", export)
    assert pq.read_table(export / "votes.parquet").num_rows == 40
    assert json.loads((export / "campaign.json").read_text())["frozen"] is False
    run("freeze", "--db", db, "--yes")
    run("export", "--db", db, "--out", export)
    assert json.loads((export / "campaign.json").read_text())["frozen"] is True
    run("backup", "--db", db, tmp_path / "copy.db")
    assert "(frozen)" in run("status", "--db", tmp_path / "copy.db").output


def test_ties_are_listed_and_decided(tmp_path: Path, pairs: Path) -> None:
    db = tmp_path / "c.db"
    quick = ("--votes", 2, "--accept-at", 2, "--practice", 0, "--qualification", 0)
    run("create", "--pairs", pairs, "--images", "sample", "--db", db, *quick)
    for answer in ("yes", "no"):
        work_through(db, answer)
    found = json.loads(run("flagged", "--db", db, "--json").output)
    assert found["total"] == 40
    number = found["pairs"][0]["question_id"]
    run("adjudicate", "--db", db, number, "rejected", "--note", "looked")
    assert json.loads(run("status", "--db", db, "--json").output)["verdicts"]["rejected"] == 1
    assert "decided: rejected" in run("flagged", "--db", db).output
    run("adjudicate", "--db", db, number, "none")
    assert json.loads(run("status", "--db", db, "--json").output)["verdicts"]["rejected"] == 0


def test_raters_are_paused_and_come_back(db: Path) -> None:
    work_through(db)
    who = json.loads(run("status", "--db", db, "--json").output)["raters"][0]["pseudonym"]
    run("rater", "--db", db, who, "pause", "--reason", "asked to")
    status = json.loads(run("status", "--db", db, "--json").output)
    assert (status["raters"][0]["reason"], status["coverage"]["answers"]) == ("asked to", 0)
    run("rater", "--db", db, who, "reinstate")
    assert json.loads(run("status", "--db", db, "--json").output)["coverage"]["answers"] == 40
    link = run("invite", "--db", db, "--rater", who).output.strip()
    store = Store.open(str(db))
    session = store.accept(link.rsplit("/", 1)[1])
    assert session is not None
    assert session.rater_id == 1
    store.close()
    with pytest.raises(BeyondError, match="no rater 'nobody'"):
        run("rater", "--db", db, "nobody", "pause")


def test_other_tools_take_and_give_votes(db: Path, tmp_path: Path) -> None:
    work_through(db)
    run(
        "export",
        "--db",
        db,
        "--format",
        "label-studio",
        "--out",
        tmp_path / "t.json",
        "--image-prefix",
        "/d/",
    )
    assert (tmp_path / "t.xml").read_text().startswith("<View>")
    assert "40 recorded" in run("import", "--db", db, "--format", "label-studio", tmp_path / "t.json").output
    assert "40 duplicate" in run("import", "--db", db, "--format", "label-studio", tmp_path / "t.json").output
    run("export", "--db", db, "--format", "mturk", "--out", tmp_path / "batch.csv")
    assert (tmp_path / "batch.csv").read_text().startswith("question_id,image_url,label,gloss\n")
    # Beyond the one vote that a pair takes, they are kept and not counted.
    assert json.loads(run("status", "--db", db, "--json").output)["coverage"]["answers"] == 40


def test_settings_come_from_a_file_and_options_go_first(tmp_path: Path, pairs: Path) -> None:
    (tmp_path / "c.yaml").write_text("votes: 3\nconsent_version: '7'\nprolific: {completion_code: CODE99}\n")
    db = tmp_path / "c.db"
    arguments = ("--pairs", pairs, "--images", "sample", "--db", db, "--config", tmp_path / "c.yaml")
    run("create", *arguments, "--votes", 7)
    store = Store.open(str(db))
    assert (store.config.votes, store.config.accept_at, store.config.consent_version) == (7, 6, "7")
    store.close()
    assert "PROLIFIC_PID=" in run("invite", "--db", db, "--uses", 100).output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gold", "real"), "no rejected pair|no accepted pair"),
        (("--gold", "nonsense"), "no such source"),
        (("--votes", "0"), "votes"),
        (("--votes", "5", "--accept-at", "2"), "both decide"),
        (("--config", "missing.yaml"), "cannot be read"),
        (("--images", "missing"), "no folder of images"),
    ],
)
def test_mistakes_get_one_line(tmp_path: Path, pairs: Path, arguments: tuple[str, ...], message: str) -> None:
    given = ["create", "--pairs", pairs, "--images", "sample", "--db", tmp_path / "c.db", *arguments]
    with pytest.raises(BeyondError, match=message):
        run(*given)


def test_pairs_are_checked(tmp_path: Path) -> None:
    for content, message in (
        ("image_id\nimagenet_00_243\n", "no column 'class_index'"),
        ("image_id,class_index\nimagenet_00_243,1000\n", "not in 0..999"),
        ("image_id,class_index\nimagenet_00_243,x\n", "not in 0..999"),
        ("image_id,class_index\n,1\n", "without an image_id"),
        ("image_id,class_index\n", "no rows"),
        ("image_id,class_index,priority\nimagenet_00_243,1,high\n", "must be numbers"),
        ("image_id,class_index\nnowhere,1\n", "not in --images"),
    ):
        (tmp_path / "pairs.csv").write_text(content)
        with pytest.raises(BeyondError, match=message):
            run("create", "--pairs", tmp_path / "pairs.csv", "--images", "sample", "--db", tmp_path / "c.db")
    (tmp_path / "pairs.csv").write_text("image_id,class_index\nnowhere,1\nimagenet_00_243,1\n")
    arguments = ("--pairs", tmp_path / "pairs.csv", "--images", "sample", "--db", tmp_path / "d.db")
    assert "1 pairs" in run("create", *arguments, "--skip-missing").output


def test_gold_from_a_file(tmp_path: Path, pairs: Path) -> None:
    (tmp_path / "gold.csv").write_text(
        "image_id,class_index,expected,practice,explanation\n"
        "imagenet_00_243,243,yes,true,The dog is in front\nimagenet_00_243,5,no,,\n"
    )
    db = tmp_path / "c.db"
    arguments = ("--pairs", pairs, "--images", "sample", "--db", db, "--gold", tmp_path / "gold.csv")
    assert "1 gold, 1 for practice" in run("create", *arguments).output
    (tmp_path / "gold.csv").write_text("image_id,class_index,expected\nimagenet_00_243,243,perhaps\n")
    with pytest.raises(BeyondError, match="neither yes nor no"):
        run("create", *arguments[:-1], tmp_path / "gold.csv", "--db", tmp_path / "d.db")


def test_gold_is_balanced_and_practice_leaves_enough(tmp_path: Path, pairs: Path) -> None:
    db = tmp_path / "c.db"
    said = run("create", "--pairs", pairs, "--images", "sample", "--db", db, "--gold", "sample").output
    store = Store.open(str(db))
    gold = store.votes().expected
    store.close()
    assert (gold == 0).sum() + (gold == 2).sum() >= 30
    assert abs(int((gold == 0).sum()) - int((gold == 2).sum())) <= 1
    assert "5 for practice" in said


def test_check_fails_where_the_tables_contradict_the_log(db: Path) -> None:
    import sqlalchemy as sa

    work_through(db)
    store = Store.open(str(db))
    store.database.transact(lambda c: c.execute(sa.text("UPDATE assignments SET answer = 'no' WHERE id = 1")))
    store.close()
    with pytest.raises(CheckFailedError, match="differ"):
        run("check", "--db", db)


def test_the_demo_serves_the_sample_images(tmp_path: Path) -> None:
    """The command that `make demo` names, started as a person starts it."""
    command = [sys.executable, "-m", "benchmark", "campaign", "demo", "--db", str(tmp_path / "demo.db")]
    command += ["--run", str(tmp_path / "no-run"), "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(5)]
        base = lines[0].split(" at ")[1].strip()
        with urllib.request.urlopen(f"{base}/healthz", timeout=10) as reply:
            assert json.load(reply) == {"status": "ok"}
        assert lines[1].startswith("manager")
        with urllib.request.urlopen(lines[2].split()[1], timeout=10) as reply:
            assert b"twenty photographs" in reply.read()
    finally:
        process.terminate()
        process.wait(timeout=20)
    assert process.returncode in (0, -15)


def test_the_demo_asks_about_what_the_demo_run_predicts(tmp_path: Path) -> None:
    import numpy as np

    from benchmark.cli.campaign import make_demo
    from benchmark.records import Predictions
    from benchmark.runs import RunInfo, fingerprint_of, write_predictions
    from benchmark.scorecard import ImagesInfo, ModelInfo

    images = find_images("sample")
    predictions = Predictions(
        np.array([image.image_id for image in images], dtype=object),
        np.array([image.original_label for image in images], dtype=np.int16),
        np.tile(np.array([990, 991], dtype=np.int16), (len(images), 1)),
    )
    info = RunInfo(
        model=ModelInfo(name="made-up", spec="made-up"),
        images=ImagesInfo(name="sample", n=len(images), fingerprint=fingerprint_of(predictions), sample=True),
    )
    write_predictions(tmp_path / "run", predictions, info)
    store = make_demo(tmp_path / "demo.db", tmp_path / "run")
    votes = store.votes()
    asked = votes.class_index[votes.expected < 0]
    store.close()
    judged = sources.load("sample")
    for predicted in (990, 991):
        known = judged.image_ids[judged.pair_image[judged.pair_class == predicted]]
        left = set(judged.image_ids[judged.evaluable]) - set(known)
        assert (asked == predicted).sum() == len(left) > 10
    assert ((asked != 990) & (asked != 991)).sum() == 23  # what the sample's judges were unsure of


def test_help_imports_no_torch_and_no_database() -> None:
    code = (
        "import sys; from benchmark.cli import main\n"
        "try: main(['campaign', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'sqlalchemy', 'fastapi', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_studies_are_made_and_answered_elsewhere(tmp_path: Path, pairs: Path) -> None:
    from tests.annotations.study.studies import make_study

    (tmp_path / "c.yaml").write_text("arms: [none, feature]\n")
    with pytest.raises(BeyondError, match="arms: a study in arms is made with beyond study create"):
        run("create", "--pairs", pairs, "--images", "sample", "--config", tmp_path / "c.yaml")
    make_study(tmp_path / "study").close()
    for kind in ("label-studio", "mturk"):
        with pytest.raises(BeyondError, match="answer in the app alone"):
            run("export", "--db", tmp_path / "study", "--out", tmp_path / "out", "--format", kind)
    work_through(tmp_path / "study" / "campaign.db")
    shown = run("status", "--db", tmp_path / "study").output
    assert "votes      12 of 72 (16.7%)" in shown  # of two raters in each of three arms
    assert shown.count("0 of 2 raters done, 0 came") == 2
    assert shown.count("1 of 2 raters done, 1 came") == 1
    assert "questions  36, 24 untouched, 0 held now" in shown
    assert "complete" not in shown  # a study's questions take answers, and get no verdict
