"""`beyond study power`, `import` and `analyse`, from the command line."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from annotations.study.importing import FIELDS
from annotations.study.results import Results
from benchmark.cli import study_answers as commands
from tests.annotations.study.made_up import study
from tests.annotations.study.studies import make_study
from tests.annotations.study.test_gather import Rater
from tests.benchmark.rated import write_study
from tests.benchmark.test_cli import run
from tests.conftest import ROOT


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def write_csv(path: Path) -> Path:
    found = study()
    frame = found.answers.merge(found.items, on="item")
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["worker", "item", "arm", "answer", "kind", "verdict", "role"])
        for row in frame.itertuples():
            arm = {"none": "control"}.get(str(row.arm), row.arm)
            writer.writerow([row.rater, row.item, arm, row.answer, row.kind, row.verdict, row.role])
    return path


OPTIONS = ["--map", "rater=worker", "--value", "arm:control=none", "--made-up"]


def test_the_same_study_gives_the_same_bytes(tmp_path: Path) -> None:
    write_study(tmp_path / "study", made_up=True)
    for name in ("one", "two"):
        assert run("study", "analyse", tmp_path / "study", "--out", tmp_path / name) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    for path in (tmp_path / "one").glob("*.svg"):
        ElementTree.parse(path)
    report = (tmp_path / "one" / "report.md").read_text()
    assert str(tmp_path) not in report
    # In another process, on another day.
    code = "import sys; from benchmark.cli import main; main(sys.argv[1:])"
    arguments = ["study", "analyse", str(tmp_path / "study"), "--out", str(tmp_path / "three")]
    subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, check=True, capture_output=True)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")


def test_a_changed_stimulus_or_plan_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(tmp_path / "study", made_up=True)
    picture = next((tmp_path / "study" / "pack").glob("*.png"))
    before = picture.read_bytes()
    picture.write_bytes(b"another")
    assert run("study", "analyse", tmp_path / "study") == 2
    assert "its checksum is not its name" in capsys.readouterr().err
    picture.write_bytes(before)
    plan = tmp_path / "study" / "preregistration.json"
    plan.write_text(plan.read_text().replace('"alpha": 0.05', '"alpha": 0.1'))
    assert run("study", "analyse", tmp_path / "study") == 2
    assert "another preregistration" in capsys.readouterr().err
    assert not (tmp_path / "study" / "report").exists()


def test_a_long_csv_is_analysed_at_once_or_imported_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_csv(tmp_path / "trial.csv")
    assert run("study", "analyse", file, *OPTIONS, "--json") == 0
    direct = json.loads(capsys.readouterr().out)
    assert (tmp_path / "trial-report" / "report.md").is_file()
    assert run("study", "import", file, "--out", tmp_path / "trial", *OPTIONS) == 0
    assert "r-none" not in (tmp_path / "trial" / "answers.parquet").read_bytes().decode("latin1")
    assert run("study", "analyse", tmp_path / "trial", "--json") == 0
    imported = json.loads(capsys.readouterr().out)
    assert imported["measures"] == direct["measures"]
    assert imported["contrasts"] == direct["contrasts"]
    assert direct["made_up"]
    assert direct["preregistration"] is None
    assert run("study", "import", file, "--out", tmp_path / "trial", *OPTIONS) == 2
    assert "is there already" in capsys.readouterr().err


def test_answers_are_gathered_from_the_database_each_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_study(tmp_path / "study", items=12, checks=4, practice=2)

    def results() -> Results:
        assert run("study", "analyse", tmp_path / "study") == 0
        capsys.readouterr()
        text = (tmp_path / "study" / "report" / "results.json").read_text()
        return Results.model_validate_json(text)

    assert run("study", "analyse", tmp_path / "study") == 2
    assert "no answer to analyse yet" in capsys.readouterr().err
    # Whoever knows the checks (yes to every second class) and says no to half of the rest.
    for _ in range(6):
        Rater(store).go(lambda c: ("yes", "no")[c % 2] if c >= 12 else ("yes", "no")[c // 2 % 2])
    first = results()
    assert first.raters == {"none": 2, "feature": 2, "example": 2}
    assert (first.answers, first.checks, first.practice) == (6 * 12, 6 * 4, 6 * 2)
    assert first.excluded == ()
    assert first.made_up
    assert [share.value for share in first.measures["agreement"]] == [0.5] * 3
    for _ in range(3):
        Rater(store).go(lambda c: "no")  # half of the checks wrong
    store.close()
    second = results()
    assert second.raters == {"none": 3, "feature": 3, "example": 3}
    assert {(e.reason, e.raters, e.answers) for e in second.excluded} == {("attention", 1, 12)}
    assert second.measures["agreement"][0].raters == 2
    assert second.everyone[0].raters == 3
    # The database may stay behind: the answers are in the folder now.
    (tmp_path / "study" / "campaign.db").unlink()
    assert results() == second


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["analyse", "nowhere"], "no such study"),
        (["analyse", "trial.csv"], "no column 'rater'"),
        (["analyse", "trial.csv", "--map", "rater=worker"], "arm 'control' is none of"),
        (["analyse", "trial.csv", "--map", "colour=x"], "is no field"),
        (["analyse", "."], "has no items.parquet"),
        (["power", "--agreement", "0.5"], "gives 1 shares"),
        (["power", "--agreement", "0.5,high"], "no list of numbers"),
        (["power", "--agreement", "0,0.5,0.5"], "strictly between 0 and 1"),
        (["power", "--contrast", "feature:sound"], "--contrast needs two of"),
        (["power", "--items", "0"], "at least 1"),
        (
            ["power", "--agreement", "0.4,0.4001,0.4", "--simulations", "100", "--target", "0.99"],
            "larger effect",
        ),
    ],
)
def test_mistakes_get_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    write_csv(tmp_path / "trial.csv")
    monkeypatch.chdir(tmp_path)
    assert run("study", *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert len(error.splitlines()) == 1


def test_power_says_how_many_raters_each_number_of_items_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "power.svg"
    options = ["--agreement", "0.3,0.5,0.5", "--target", "0.8", "--items", "10,40", "--simulations", "200"]
    assert run("study", "power", *options, "--raters", "8", "--plot", plot, "--json") == 0
    data = json.loads(capsys.readouterr().out)
    few, many = data["needed"]
    assert (few["items"], many["items"]) == (10, 40)
    assert few["raters_per_arm"] >= many["raters_per_arm"]
    for found in data["needed"]:
        assert next(p["value"] for p in found["power"] if p["arm"] == "feature") >= 0.8
        below = [
            p["power"][0]["value"]
            for p in data["tried"]
            if (p["items"], p["raters_per_arm"]) == (found["items"], found["raters_per_arm"] - 1)
        ]
        assert all(value < 0.8 for value in below)
    drawn = ElementTree.parse(plot).getroot()
    assert drawn.tag.endswith("svg")
    circles = [e for e in drawn.iter() if e.tag.endswith("circle")]
    assert len(circles) == len(data["tried"]) + 2  # one a simulated plan, and the legend
    assert run("study", "power", "--simulations", "100", "--raters", "10", "--items", "10") == 0
    assert "Simulated 100 times each" in capsys.readouterr().out


def test_power_of_a_study_that_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(tmp_path / "study", made_up=True)
    options = ["--agreement", "0.3,0.5,0.6", "--simulations", "100", "--json"]
    assert run("study", "power", "--study", tmp_path / "study", *options) == 0
    planned = json.loads(capsys.readouterr().out)
    assert run("study", "power", "--raters", "12", "--items", "12", "--alpha", "0.05", *options) == 0
    assert json.loads(capsys.readouterr().out) == planned
    assert run("study", "power", "--study", tmp_path, *options) == 2
    assert "has no preregistration.json" in capsys.readouterr().err


def test_the_help_names_every_field() -> None:
    assert commands.FIELDS.split(", ") == list(FIELDS)


def test_asking_for_help_loads_no_tables() -> None:
    code = (
        "import sys; from benchmark.cli.study_answers import analyse, power; "
        "sys.exit(bool({'torch', 'timm', 'pandas', 'statsmodels', 'scipy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
