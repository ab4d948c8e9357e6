"""Submissions: what leaves the machine, whole or not at all, and that sending it twice changes nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from annotations.classes import validation_id, validation_labels
from annotations.errors import BeyondError
from benchmark import records, runs
from benchmark.cli import main
from leaderboard import submit
from leaderboard.destinations import Branch, parse_records
from leaderboard.entries import read_entry
from leaderboard.submission import copy_records, portable_spec, prepare, without_folders
from leaderboard.validation import validate
from tests.hub_server import Cut, HubServer, blob_id, hub  # noqa: F401 - the fixture

ROOT = Path(__file__).parents[2]
REPOSITORY = "people/leaderboard"
N = 400

DETAILS = """
name: A Made-up Model
family: Nothing
year: 2026
authors: Nobody at all
licence: {predictions: CC-BY-4.0}
citation: none, it is made up
contact: tester
"""


def beyond(*args: object) -> int:
    try:
        main([str(arg) for arg in args])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over a few images, made up, and a file of details."""
    folder = tmp_path_factory.mktemp("submit")
    rng = np.random.default_rng(4)
    labels = validation_labels()[:N].astype(np.int64)
    rows = (labels[:, None] + np.arange(5) * 7 + (rng.random((N, 1)) < 0.3)) % 1000
    np.save(folder / "made-up.npy", rows.astype(np.int16))
    (folder / "ids.txt").write_text("".join(f"{validation_id(i + 1)}\n" for i in range(N)))
    asked: list[str | Path] = ["--ids", folder / "ids.txt", "--annotations", "real", "--out", folder / "run"]
    assert beyond("score", "--predictions", folder / "made-up.npy", *asked) == 0
    (folder / "details.yaml").write_text(DETAILS)
    return folder


@pytest.fixture
def server(
    hub: HubServer,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> HubServer:
    """A Hub with an empty leaderboard, and somebody logged in."""
    hub.add_repo("dataset", REPOSITORY, {"README.md": b"# Entries"})
    hub.users = {"mine": "me", "theirs": "somebody-else"}
    monkeypatch.setenv("HF_TOKEN", "mine")
    monkeypatch.setattr("time.sleep", lambda _: None)
    return hub


def send(made: Path, *more: str) -> int:
    return beyond(
        "submit", made / "run", "--details", made / "details.yaml", "--to", "hub", "--repository", REPOSITORY,
        "--yes", *more,
    )  # fmt: skip


def pulls(server: HubServer) -> list[dict[str, bytes]]:
    """What each pull request holds."""
    repo = server.repos["dataset", REPOSITORY]
    return [server.files("dataset", REPOSITORY, f"refs/pr/{pull.number}") for pull in repo.pulls]


# --- what leaves the machine


def test_a_dry_run_says_what_would_leave_and_uses_no_network(
    made: Path, server: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert send(made, "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert server.requests == []
    assert plan["leaves_this_machine"]
    assert plan["dry_run"]
    assert send(made) == 0
    sent = pulls(server)[0]
    del sent["README.md"]
    assert {file["path"]: file["bytes"] for file in plan["files"]} == {p: len(c) for p, c in sent.items()}
    capsys.readouterr()
    assert send(made, "--dry-run") == 0
    text = capsys.readouterr().out
    assert "No image, thumbnail or pixel" in text
    assert "nothing was written or sent" in text


def test_pixels_and_folders_of_this_machine_stay(made: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(made / "run", run)
    for kind in ("adversarials", "features", "explanations", "quarantine"):
        (run / kind).mkdir()
        (run / kind / "part-00000-0000000000000000.parquet").write_bytes(b"pixels")
    (run / "notes.txt").write_text("private")
    info = runs.read_run(run)
    model = info.model.model_copy(update={"spec": "/home/ann/models/mine.py:build"})
    private = {"platform": "Linux-host-of-ann", "hostname": "ann-laptop", "python": "3.11"}
    runs.write_run(run, info.model_copy(update={"model": model, "environment": private}))
    reason = {"image_id": "x", "reason": "cannot read /home/ann/val/x.JPEG: truncated"}
    records.write_part(run / "skipped", 0, pa.Table.from_pylist([reason], schema=records.SKIPPED_SCHEMA))
    copy_records(run, tmp_path / "copy")
    files = sorted(
        path.relative_to(tmp_path / "copy").as_posix() for path in (tmp_path / "copy").rglob("*.*")
    )
    assert [file.split("-")[0] for file in files] == ["predictions/part", "run.json", "skipped/part"]
    told = (tmp_path / "copy" / "run.json").read_text()
    assert "ann" not in told.replace("annotations", "")
    assert "mine.py:build" in told
    part = records.part_paths(tmp_path / "copy" / "skipped")[0]
    assert pq.read_table(part)["reason"].to_pylist() == ["cannot read x.JPEG: truncated"]


def test_a_part_with_any_other_column_is_not_sent(made: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(made / "run", run)
    part = records.part_paths(run / "predictions")[0]
    table = pq.read_table(part)
    part.unlink()
    table = table.append_column("thumbnail", pa.array([b"jpeg"] * len(table)))
    records.write_part(run / "predictions", 0, table)
    with pytest.raises(BeyondError, match="column 'thumbnail', which is no record"):
        copy_records(run, tmp_path / "copy")


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("models/mine.py:build", "mine.py:build"),
        ("timm:resnet50@../weights/a.safetensors", "timm:resnet50@a.safetensors"),
        ("timm:resnet50.a1_in1k", "timm:resnet50.a1_in1k"),
        ("hf:org/name@refs/pr/1", "hf:org/name@refs/pr/1"),
        ("torchvision:resnet50@IMAGENET1K_V2", "torchvision:resnet50@IMAGENET1K_V2"),
    ],
)
def test_specs_keep_names_and_lose_folders(spec: str, told: str) -> None:
    assert portable_spec(spec) == told


def test_addresses_are_no_folders() -> None:
    text = "see https://x.org/a/b and 4/255, not ~/private/c.txt or C:\\Users\\ann\\d.txt"
    assert without_folders(text) == "see https://x.org/a/b and 4/255, not c.txt or d.txt"


# --- the Hub


def test_a_pull_request_holds_an_entry_that_is_valid(
    made: Path, server: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert send(made) == 0
    out = capsys.readouterr().out
    assert f"opened {server.url}/datasets/{REPOSITORY}/discussions/1" in out
    repo = server.repos["dataset", REPOSITORY]
    assert f"--records {REPOSITORY}@{repo.refs['refs/pr/1']}" in out
    assert set(server.files("dataset", REPOSITORY)) == {"README.md"}, "main is untouched"
    for path, content in pulls(server)[0].items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    report = validate(tmp_path / "entries", records=tmp_path)
    assert report.passed, report.findings
    assert [checked.basis for checked in report.entries] == ["records"]


def test_the_same_again_changes_nothing(
    made: Path, server: HubServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert send(made) == 0
    commits = dict(server.repos["dataset", REPOSITORY].commits)
    monkeypatch.setattr("leaderboard.submit.date", Tomorrow)
    assert send(made) == 0
    assert "open pull request already" in capsys.readouterr().out
    assert server.repos["dataset", REPOSITORY].commits == commits
    # Once it is merged, too.
    server.add_repo("dataset", REPOSITORY, pulls(server)[0])
    server.repos["dataset", REPOSITORY].pulls[0].status = "merged"
    commits = dict(server.repos["dataset", REPOSITORY].commits)
    assert send(made) == 0
    assert "holds the same entry already" in capsys.readouterr().out
    assert server.repos["dataset", REPOSITORY].commits == commits


class Tomorrow(date):
    """A calendar on which today is another day."""

    @classmethod
    def today(cls) -> Tomorrow:
        return cls(2031, 1, 2)


def test_a_changed_submission_updates_its_own_pull_request_and_no_other(
    made: Path, server: HubServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):  # a page of others
        assert send(made, "--slug", f"other-{number}") == 0
    assert send(made) == 0
    assert send(made, "--notes", "Now with a note.") == 0
    assert "updated" in capsys.readouterr().out
    assert len(pulls(server)) == 3
    assert b"Now with a note." in pulls(server)[2]["entries/made-up/entry.yaml"]
    monkeypatch.setenv("HF_TOKEN", "theirs")
    assert send(made, "--notes", "Mine!") == 2
    assert "me has an open pull request for 'made-up'" in capsys.readouterr().err
    assert len(pulls(server)) == 3


@pytest.mark.parametrize("lfs", [False, True])
def test_a_cut_before_the_commit_leaves_nothing_and_the_next_attempt_sends_it_once(
    made: Path, server: HubServer, monkeypatch: pytest.MonkeyPatch, lfs: bool
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    server.lfs = lfs
    server.cut("before commit")
    assert send(made) == 0
    assert len(pulls(server)) == 1
    repo = server.repos["dataset", REPOSITORY]
    assert repo.commits[repo.refs["refs/pr/1"]].parent == repo.refs["main"], "one commit holds it all"


def test_a_cut_after_the_commit_sends_nothing_twice(
    made: Path, server: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.cut("after commit")
    assert send(made) == 0
    assert "open pull request already" in capsys.readouterr().out
    assert len(pulls(server)) == 1


def test_a_cut_in_the_middle_of_an_upload_leaves_nothing_half_done(
    made: Path, server: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    server.lfs = True
    cuts: list[Cut] = ["upload"] * 40
    server.cut(*cuts)
    assert send(made) == 2
    assert "give the same command again" in capsys.readouterr().err
    assert pulls(server) == []
    assert len(server.repos["dataset", REPOSITORY].commits) == 1
    server.cut()
    assert send(made) == 0
    parts = [path for path in pulls(server)[0] if path.endswith(".parquet")]
    assert len(parts) == 1
    source = records.part_paths(made / "run" / "predictions")[0]
    assert pulls(server)[0][parts[0]] == source.read_bytes()


def test_a_hub_that_is_down_is_one_line_and_nothing_is_sent(
    made: Path, server: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.cut("before commit", "before commit", "before commit")
    assert send(made) == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert err[-1].startswith("error: ")
    assert "give the same command again" in err[-1]
    assert pulls(server) == []
    assert send(made) == 0
    assert len(pulls(server)) == 1


def test_who_is_not_logged_in_is_told_how(
    made: Path,
    server: HubServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    assert send(made) == 2
    assert "hf auth login" in capsys.readouterr().err


# --- folder and branch


def test_a_folder_is_written_whole_and_once(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str | Path] = [
        "submit",
        made / "run",
        "--details",
        made / "details.yaml",
        "--out",
        tmp_path / "out",
    ]
    assert beyond(*asked) == 0
    first = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    assert beyond(*asked) == 0
    assert "nothing was written" in capsys.readouterr().out
    assert beyond(*asked, "--notes", "More.") == 0
    second = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    assert [path.name for path in first if first[path] != second[path]] == ["entry.yaml"]
    assert read_entry(tmp_path / "out" / "entries" / "made-up").info.notes == "More."
    assert not list((tmp_path / "out").glob("*/.*"))


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A git repository with the entries' folder."""
    folder = tmp_path / "clone"
    (folder / "leaderboard" / "entries").mkdir(parents=True)
    (folder / "leaderboard" / "entries" / ".gitkeep").write_text("")
    for command in (
        ["init", "-q", "-b", "main"],
        ["config", "user.name", "Tester"],
        ["config", "user.email", "tester@localhost"],
        ["add", "."],
        ["commit", "-q", "-m", "First"],
    ):
        subprocess.run(["git", "-C", folder, *command], check=True, capture_output=True)
    return folder


def test_a_branch_names_the_records_on_the_hub_and_leaves_the_working_tree_alone(
    made: Path, server: HubServer, clone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert send(made) == 0
    commit = server.repos["dataset", REPOSITORY].refs["refs/pr/1"]
    (clone / "work.txt").write_text("in progress")
    asked = [
        "submit",
        made / "run",
        "--details",
        made / "details.yaml",
        "--to",
        "branch",
        "--checkout",
        clone,
    ]
    assert beyond(*asked) == 2
    assert "send them first with --to hub" in capsys.readouterr().err
    asked += ["--records", f"{REPOSITORY}@{commit}"]
    assert beyond(*asked) == 0
    git = Branch(clone)._git
    assert git("status", "--porcelain") == "?? work.txt"
    assert git("branch", "--show-current") == "main"
    changed = git("diff", "--name-only", "main", "submit/made-up").splitlines()
    assert changed == [
        f"leaderboard/entries/made-up/{name}" for name in ("correct.bits", "entry.yaml", "scorecard.json")
    ]
    tip = git("rev-parse", "submit/made-up")
    assert beyond(*asked) == 0
    assert "holds the same already" in capsys.readouterr().out
    assert git("rev-parse", "submit/made-up") == tip
    assert beyond(*asked, "--notes", "More.") == 0
    assert git("rev-parse", "submit/made-up~1") == tip
    # What is on the branch is what a submission must be.
    git("checkout", "-q", "submit/made-up")
    report = validate(
        clone / "leaderboard" / "entries", [str(clone / "leaderboard/entries/made-up")], submission=True
    )
    assert report.passed, report.findings


def test_records_on_the_hub_that_are_others_are_refused(
    made: Path, server: HubServer, clone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert send(made) == 0
    files = pulls(server)[0]
    files["records/made-up/run.json"] += b" "
    commit = server.add_repo("dataset", REPOSITORY, files)
    asked = [
        "submit",
        made / "run",
        "--details",
        made / "details.yaml",
        "--to",
        "branch",
        "--checkout",
        clone,
    ]
    assert beyond(*asked, "--records", f"{REPOSITORY}@{commit}") == 2
    assert "records/made-up/run.json differs" in capsys.readouterr().err


def test_a_branch_needs_a_clone_of_this_project(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[object] = ["submit", made / "run", "--details", made / "details.yaml", "--to", "branch"]
    assert beyond(*asked, "--checkout", tmp_path, "--records", f"a/b@{'0' * 40}") == 2
    assert "no clone of the leaderboard's repository" in capsys.readouterr().err
    with pytest.raises(BeyondError, match="40 hexadecimal digits"):
        parse_records("a/b@main", "x")


# --- what is asked


def test_what_is_missing_is_one_line_where_nobody_can_be_asked(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert beyond("submit", made / "run", "--family", "ResNet") == 2
    err = capsys.readouterr().err
    assert "--year, --authors, --licence, --citation, --contact" in err
    assert "--family" not in err


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--slug", "../x", "slug '../x' is not allowed"),
        ("--licence", "free", "SPDX"),
        ("--paper", "http://x.org", "no https address"),
        ("--year", "then", "no whole number"),
        ("--year", "1800", "1990"),
        ("--name", "<b>x</b>", "without markup"),
        ("--citation", "@nowhere.bib", "no file nowhere.bib"),
    ],
)
def test_a_wrong_detail_is_one_line(
    made: Path, option: str, value: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert beyond("submit", made / "run", "--details", made / "details.yaml", option, value) == 2
    assert words in capsys.readouterr().err


def test_unknown_details_are_refused_and_an_entry_may_be_given_as_it_is(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text("nmae: x\n")
    assert beyond("submit", made / "run", "--details", tmp_path / "a.yaml") == 2
    assert "no such detail 'nmae'" in capsys.readouterr().err
    asked: list[object] = ["submit", made / "run", "--out", tmp_path / "out", "--details"]
    assert beyond(*asked, made / "details.yaml") == 0
    assert beyond(*asked, tmp_path / "out" / "entries" / "made-up" / "entry.yaml") == 0
    assert "nothing was written" in capsys.readouterr().out


def test_on_a_terminal_it_asks_until_the_answer_is_valid(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = iter(
        ["", "made-up", "Made Up", "ResNet", "long ago", "2026", "Nobody", "free", "MIT", "none", "me"]
    )
    asked: list[str] = []

    def prompt(text: str, default: str | None = None, **_: object) -> str:
        asked.append(text)
        return next(answers) or default or ""

    monkeypatch.setattr("click.prompt", prompt)
    details = submit.complete({"slug": "made up", "name": "made-up"}, interactive=True)
    assert details["slug"] == "made-up"
    assert (details["year"], details["licence"]["predictions"]) == (2026, "MIT")
    assert list(answers) == []
    err = capsys.readouterr().err
    assert "slug 'made up' is not allowed" in err
    assert "SPDX" in err


def test_nothing_is_sent_without_a_yes(
    made: Path, server: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [
        "submit",
        made / "run",
        "--details",
        made / "details.yaml",
        "--to",
        "hub",
        "--repository",
        REPOSITORY,
    ]
    assert beyond(*asked) == 2
    assert "--yes" in capsys.readouterr().err
    assert pulls(server) == []


def test_a_duplicate_of_a_published_model_is_refused_here(made: Path, tmp_path: Path) -> None:
    entries = tmp_path / "entries"
    details = {
        "slug": "first", "name": "First", "family": "x", "year": 2026, "authors": "x", "citation": "x",
        "contact": "x", "licence": {"predictions": "MIT"},
    }  # fmt: skip
    first = prepare(made / "run", details, tmp_path / "a", submitted=date(2026, 1, 1))
    shutil.copytree(first.entry.folder, entries / "first")
    with pytest.raises(BeyondError, match="one model has one entry"):
        prepare(
            made / "run",
            {**details, "slug": "second", "name": "Second"},
            tmp_path / "b",
            submitted=date(2026, 1, 1),
            entries=entries,
        )


def test_submitting_imports_no_torch() -> None:
    code = "import sys, leaderboard.submit, leaderboard.check; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_server_of_these_tests_gives_git_its_hashes() -> None:
    assert blob_id(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"
