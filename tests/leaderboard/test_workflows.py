"""The workflows: what they may do, and that the commands in them do it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from annotations.errors import BeyondError
from benchmark.cli import main
from leaderboard import drift
from leaderboard.drift import find_drift, look_at, moved_annotations
from leaderboard.entries import EntryInfo, Records, load_entries, read_entry, records_sha256, write_entry
from leaderboard.review import Note, Review, Reviewed, Value, read_review, to_markdown
from tests.hub_server import HubServer, hub  # noqa: F401 - the fixture

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
ENTRIES = ROOT / "leaderboard" / "entries"
REFERENCE = ROOT / "tests" / "reference" / "efficientnet-lite0.json"


def beyond(*args: object) -> int:
    try:
        main([str(arg) for arg in args])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text())
    return found


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


# ------------------------------------------------------------ what they may do


def test_linters_find_nothing() -> None:
    tools = Path(sys.executable).parent
    for command in (["actionlint"], ["zizmor", "--offline", "--quiet", ".github"]):
        done = subprocess.run(
            [str(tools / command[0]), *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_workflow_starts_with_no_permission_and_pinned_actions(path: Path) -> None:
    workflow = read(path.name)
    assert workflow["permissions"] == {}
    text = path.read_text()
    assert "pull_request_target" not in text
    for line in text.splitlines():
        if "uses:" in line and "./" not in line:
            assert re.search(r"uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line
    for step in steps(workflow):
        if "checkout" in step.get("uses", ""):
            assert step["with"]["persist-credentials"] is False
        assert "${{" not in step.get("run", ""), "an expression in a script is code that others write"
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 90


def test_the_review_of_submissions_has_no_rights_and_runs_the_code_of_the_base() -> None:
    text = (ROOT / ".github" / "workflows" / "submission.yml").read_text()
    workflow = read("submission.yml")
    triggers = next(value for key, value in workflow.items() if str(key) == "True")
    assert set(triggers) == {"pull_request"}  # YAML reads the key `on` as true
    assert [job["permissions"] for job in workflow["jobs"].values()] == [{"contents": "read"}]
    assert not re.search(r"\bsecrets\.\w", text)
    assert "github.token" not in text
    checkouts = [step["with"] for step in steps(workflow) if "checkout" in step.get("uses", "")]
    assert [checkout["path"] for checkout in checkouts] == ["trusted", "data"]
    assert checkouts[0]["ref"] == "${{ github.event.pull_request.base.sha }}"
    for step in steps(workflow):
        script = step.get("run", "")
        assert "data" not in script.replace("review ../data", ""), "the data is only ever reviewed"
        assert step.get("working-directory", "") != "data"


def test_the_comment_takes_nothing_but_the_review() -> None:
    workflow = read("comment.yml")
    assert workflow["jobs"]["comment"]["permissions"] == {
        "actions": "read",
        "contents": "read",
        "pull-requests": "write",
    }
    for step in steps(workflow):
        if "checkout" in step.get("uses", ""):
            assert step["with"]["ref"] == "${{ github.event.repository.default_branch }}"


def test_a_release_needs_no_stored_token() -> None:
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    assert not re.search(r"\bsecrets\.\w", text)
    assert read("release.yml")["jobs"]["publish"]["permissions"] == {"id-token": "write"}


# ------------------------------------------------------------ the action for users


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder first on the path, with `beyond` in it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script(folder / "beyond", f'exec "{sys.executable}" -m benchmark "$@"')
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return folder


def script(path: Path, body: str) -> None:
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)


def run_step(step: dict[str, Any], env: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a step as GitHub does: bash with -e and -o pipefail."""
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        env={**os.environ, **env},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def action_inputs(**given: str) -> dict[str, str]:
    """The environment of the action's step for some inputs, the others at their defaults."""
    action = yaml.safe_load((ROOT / ".github" / "actions" / "check" / "action.yml").read_text())
    inputs = {name: given.get(name, spec.get("default", "")) for name, spec in action["inputs"].items()}
    step = action["runs"]["steps"][0]
    return {
        name: inputs[re.fullmatch(r"\$\{\{ inputs\.(\w+) \}\}", value).group(1)]  # type: ignore[union-attr]
        for name, value in step["env"].items()
    }


def test_the_action_passes_fails_and_writes_a_summary(tools: Path, tmp_path: Path) -> None:
    action = yaml.safe_load((ROOT / ".github" / "actions" / "check" / "action.yml").read_text())
    step = action["runs"]["steps"][0]
    card = json.loads(REFERENCE.read_text())
    metric = card["tracks"]["rectified"]["metrics"]["top1"]
    metric.update(value=0.5, ci_low=0.3, ci_high=0.7)
    (tmp_path / "worse run.json").write_text(json.dumps(card))
    summary = {"GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")}
    same = run_step(step, action_inputs(run=str(REFERENCE), baseline=str(REFERENCE)) | summary, tmp_path)
    assert same.returncode == 0, same.stderr
    assert "beyond check: passed" in (tmp_path / "summary.md").read_text()
    inputs = action_inputs(run="worse run.json", baseline=str(REFERENCE), metrics="top1", tracks="rectified")
    worse = run_step(step, inputs | summary, tmp_path)
    assert worse.returncode == 1, worse.stderr
    assert "beyond check: failed" in (tmp_path / "summary.md").read_text()
    allowed = run_step(step, inputs | {"INPUT_MARGIN": "top1=45"} | summary, tmp_path)
    assert allowed.returncode == 0, allowed.stderr
    hostile = action_inputs(
        run='$(touch "$PWD/owned")', baseline="--json; touch owned", metrics="`touch owned`"
    )
    refused = run_step(step, hostile | summary, tmp_path)
    assert refused.returncode == 2
    assert not (tmp_path / "owned").exists()


def test_our_own_ci_uses_the_action() -> None:
    used = [step for step in steps(read("ci.yml")) if step.get("uses") == "./.github/actions/check"]
    assert [(step["with"]["baseline"], step["with"]["rule"]) for step in used] == [
        ("tests/reference/efficientnet-lite0.json", "exact")
    ]
    assert REFERENCE.is_file()


# ------------------------------------------------------------ pull requests


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=T", "-c", "user.email=t@localhost", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A clone with three published entries, on a branch of which a pull request can be made."""
    folder = tmp_path / "checkout"
    for slug in ("resnet50", "vgg16", "alexnet"):
        shutil.copytree(ENTRIES / slug, folder / "leaderboard" / "entries" / slug)
    (folder / "code.py").write_text("print('trusted')\n")
    git(tmp_path, "init", "-q", "-b", "main", str(folder))
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "Base")
    git(folder, "checkout", "-q", "-b", "theirs")
    return folder


def merged(checkout: Path) -> Path:
    """Commit what is there and merge it, as GitHub does for `refs/pull/N/merge`."""
    git(checkout, "add", "-A")
    git(checkout, "commit", "-q", "-m", "Theirs")
    git(checkout, "checkout", "-q", "main")
    (checkout / "later.txt").write_text("main went on\n")
    git(checkout, "add", "-A")
    git(checkout, "commit", "-q", "-m", "Later")
    git(checkout, "merge", "-q", "--no-ff", "-m", "Merge", "theirs")
    return checkout


def reviewed(checkout: Path, tmp_path: Path) -> tuple[int, Review, str]:
    status = beyond("leaderboard", "review", merged(checkout), "--no-hub", "--out", tmp_path / "review.json")
    review = read_review(tmp_path / "review.json")
    return status, review, to_markdown(review)


def test_a_raised_number_is_not_ready(checkout: Path, tmp_path: Path) -> None:
    card = checkout / "leaderboard" / "entries" / "resnet50" / "scorecard.json"
    data = json.loads(card.read_text())
    data["tracks"]["rectified"]["metrics"]["top1"]["value"] += 0.01
    card.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n")
    status, review, text = reviewed(checkout, tmp_path)
    assert status == 1
    assert [(entry.slug, entry.change, entry.passed) for entry in review.entries] == [
        ("resnet50", "changed", False)
    ]
    assert "not ready yet" in text
    assert "Next step" in text


def test_a_corrected_description_passes_and_shows_the_numbers_before(checkout: Path, tmp_path: Path) -> None:
    folder = checkout / "leaderboard" / "entries"
    entry = read_entry(folder / "vgg16")
    info = EntryInfo.model_validate({**dict(entry.info), "contact": "somebody else"})
    write_entry(folder, info, entry.scorecard, entry.correctness)
    status, review, text = reviewed(checkout, tmp_path)
    assert status == 0, text
    values = {value.metric: value for value in review.entries[0].metrics}
    assert values["top1"].before == values["top1"].value
    assert "| before |" in text
    assert [entry.slug for entry in review.entries] == ["vgg16"], "what main did meanwhile is not theirs"


def test_removed_entries_other_files_and_links_are_told(checkout: Path, tmp_path: Path) -> None:
    folder = checkout / "leaderboard" / "entries"
    shutil.rmtree(folder / "alexnet")
    (checkout / "code.py").write_text("print('theirs')\n")
    (folder / "loose.txt").write_text("x")
    shutil.rmtree(folder / "vgg16")
    (folder / "vgg16").symlink_to("/etc")
    write_entry(
        folder, read_entry(ENTRIES / "bninception").info, read_entry(ENTRIES / "bninception").scorecard
    )
    status, review, text = reviewed(checkout, tmp_path)
    assert status == 1
    found = {entry.slug: (entry.change, entry.passed) for entry in review.entries}
    assert found == {
        "alexnet": ("removed", False),
        "bninception": ("added", False),
        "vgg16": ("removed", False),
    }
    assert "an entry is never removed" in text
    assert "loose.txt is not part of an entry" in text.replace("&#95;", "_")
    assert "1 files outside" in text
    assert str(checkout) not in text


def test_more_than_a_few_entries_at_once_are_refused(
    checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(21):
        made = checkout / "leaderboard" / "entries" / f"made-{number}"
        made.mkdir()
        (made / "entry.yaml").write_text("slug: x\n")
    assert beyond("leaderboard", "review", merged(checkout), "--out", tmp_path / "review.json") == 2
    assert "at most 20" in capsys.readouterr().err


def test_the_review_executes_nothing_of_theirs(checkout: Path, tmp_path: Path) -> None:
    """Code, configuration, hooks and imports that lie in the checkout stay data."""
    owned = tmp_path / "owned"
    evil = f"import pathlib; pathlib.Path({str(owned)!r}).write_text('x')\n"
    for name in ("sitecustomize.py", "yaml.py", "numpy.py", "conftest.py", "benchmark/__init__.py"):
        (checkout / name).parent.mkdir(exist_ok=True)
        (checkout / name).write_text(evil)
    (checkout / ".gitattributes").write_text("* filter=evil diff=evil\n")
    (checkout / ".gitconfig").write_text(f"[core]\n\tfsmonitor = touch {owned}\n")
    (checkout / "leaderboard" / "entries" / "vgg16" / "entry.yaml").write_text(
        f"!!python/object/apply:os.system ['touch {owned}']\n"
    )
    merged(checkout)
    trusted = ["-m", "benchmark", "leaderboard", "review", str(checkout), "--no-hub"]
    done = subprocess.run(
        [sys.executable, *trusted, "--out", str(tmp_path / "review.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert not owned.exists()


def test_a_review_that_was_tampered_with_cannot_act(tmp_path: Path) -> None:
    evil = (
        "</details><img src=x onerror=alert(1)> [click](javascript:1) @maintainer ![x](http://x) | `x`\n# T"
    )
    review = Review(
        passed=True,
        entries=[
            Reviewed(
                slug=evil[:150],
                change="added",
                basis="records",
                passed=True,
                findings=[Note(level="note", message=evil)],
                metrics=[Value(track=evil[:90], metric=evil[:90], value=0.5, n=3)],
            )
        ],
        notes=[evil],
    )
    (tmp_path / "review.json").write_text(review.model_dump_json())
    text = to_markdown(read_review(tmp_path / "review.json"))
    assert not any(part in text for part in ("<img", "](", "@maintainer", "`x`", "\n# T"))
    assert text.count("</details>") == 1, "only our own"
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in table} == {5}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "null",
        '{"version": 2}',
        '{"version": 1, "passed": true, "entries": [], "more": 1}',
        "{" * 100_000,
    ],
)
def test_what_is_no_review_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "review.json").write_text(content)
    with pytest.raises(BeyondError, match="is no review"):
        read_review(tmp_path / "review.json")


def test_a_review_that_is_too_large_or_a_link_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(BeyondError, match="larger than"):
        read_review(tmp_path / "large.json")
    (tmp_path / "link.json").symlink_to(REFERENCE)
    with pytest.raises(BeyondError, match="a link"):
        read_review(tmp_path / "link.json")


def test_the_comment_goes_to_the_pull_request_that_github_names(tools: Path, tmp_path: Path) -> None:
    script(tools / "gh", f'echo "$@" >> "{tmp_path}/calls"; if [ "$2" = list ]; then echo 7; fi')
    step = next(step for step in steps(read("comment.yml")) if "gh pr comment" in step.get("run", ""))
    (tmp_path / "comment.md").write_text("hello")
    env = {"RUNNER_TEMP": str(tmp_path), "REPOSITORY": "o/r", "HEAD": "abc", "GH_TOKEN": "none"}
    done = run_step(step, env, tmp_path)
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    assert (
        calls[1] == f"pr comment 7 --repo o/r --edit-last --create-if-none --body-file {tmp_path}/comment.md"
    )


# ------------------------------------------------------------ drift


class _Web(BaseHTTPRequestHandler):
    """Pages in every state."""

    def do_HEAD(self) -> None:
        self._answer(head=True)

    def do_GET(self) -> None:
        self._answer(head=False)

    def _answer(self, *, head: bool) -> None:
        status = {"/gone": 404, "/never": 410, "/busy": 503, "/shy": 403}.get(self.path, 200)
        if self.path == "/no-head" and head:
            status = 405
        if self.path in ("/moved", "/trap"):
            status = 302
        self.send_response(status)
        if self.path == "/moved":
            self.send_header("Location", "/here")
        if self.path == "/trap":
            self.send_header("Location", "file:///etc/passwd")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is http.server's
        """Say nothing."""


@pytest.fixture
def web() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Web)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("path", "level"),
    [
        ("/here", None), ("/moved", None), ("/no-head", None), ("/gone", "gone"), ("/never", "gone"),
        ("/busy", "unsure"), ("/shy", "unsure"), ("/trap", "unsure"),
    ],
)  # fmt: skip
def test_links_are_here_gone_or_unsure(web: str, path: str, level: str | None) -> None:
    assert look_at(web + path, public_only=False)[0] == level


def test_links_into_private_networks_are_not_called(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert look_at(web + "/here") == ("gone", "leads into a private network")
    assert look_at("https://10.0.0.1/") == ("gone", "leads into a private network")
    assert look_at("https://[::1]/")[0] == "gone"
    assert look_at("file:///etc/passwd")[0] == "gone"
    monkeypatch.setattr(drift, "TIMEOUT", 0.2)
    assert look_at("http://127.0.0.1:9/", public_only=False)[0] == "unsure"


def test_a_redirect_into_a_private_network_is_not_followed(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []

    class Place:
        """Public the first time it is asked, private the second."""

        def __init__(self, address: str) -> None:
            looked.append(address)
            self.is_global = len(looked) == 1

    monkeypatch.setattr("leaderboard.drift.ipaddress.ip_address", Place)
    assert look_at(web + "/moved") == ("gone", "leads into a private network")
    assert len(looked) == 2


def test_annotations_that_moved_name_the_entries() -> None:
    entries = [read_entry(ENTRIES / slug) for slug in ("resnet50", "vgg16")]
    today = dict(entries[0].scorecard.annotations.sources)
    assert moved_annotations(entries, today) == ([], len(today))
    # The package that ships the same data may have another version.
    today["real"] = f"timm 9.9.9, {today['real']}"
    assert moved_annotations(entries, today)[0] == []
    today["real"] = "sha256:000000000000"
    (found,) = moved_annotations(entries, today)[0]
    assert (found.level, found.slugs) == ("gone", ("resnet50", "vgg16"))
    assert "real was" in found.message


def test_records_on_the_hub_are_looked_for(
    hub: HubServer,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    commit = hub.add_repo("dataset", "people/records", {"records/x/predictions/part-00000-0.parquet": b"x"})
    entry = read_entry(ENTRIES / "resnet50")

    def pointing(repository: str, revision: str, path: str) -> list[tuple[str, str]]:
        records = Records(kind="hub", repository=repository, revision=revision, path=path, sha256="0" * 64)
        info = EntryInfo.model_validate({**dict(entry.info), "records": records})
        made = write_entry(tmp_path, info, entry.scorecard, entry.correctness)
        found = find_drift([made], look=lambda _: (None, ""), revisions={}).found
        return [(item.kind, item.level) for item in found]

    assert pointing("people/records", commit, "records/x") == []
    assert pointing("people/records", commit, "records/y") == [("records", "gone")]
    assert pointing("people/records", "0" * 40, "records/x") == [("records", "gone")]
    assert pointing("people/nothing", commit, "records/x") == [("records", "gone")]
    hub.fail(30)
    assert pointing("people/records", commit, "records/x") == [("records", "unsure")]


def test_the_drift_command_fails_on_what_is_gone_alone(
    web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "entries"
    shutil.copytree(ENTRIES / "vgg16", folder / "vgg16")
    answers = {"path": "/busy"}
    monkeypatch.setattr(drift, "look_at", lambda _: look_at(web + answers["path"], public_only=False))
    monkeypatch.setattr(drift, "current_revisions", lambda _: {})
    summary = tmp_path / "summary.md"
    assert beyond("leaderboard", "drift", "--entries", folder, "--markdown", summary) == 0
    assert "unsure: link" in capsys.readouterr().out
    answers["path"] = "/gone"
    assert beyond("leaderboard", "drift", "--entries", folder, "--markdown", summary, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["passed"]
    assert found["links"] == len(found["found"]) > 0
    assert "Drift: found" in summary.read_text()


def test_the_revisions_of_today_are_those_that_can_be_loaded_here() -> None:
    found = drift.current_revisions(load_entries(ENTRIES))
    assert "real" in found
    assert moved_annotations(load_entries(ENTRIES), {"real": found["real"]})[0] == []


def test_the_hash_of_records_is_what_the_documentation_says(tmp_path: Path) -> None:
    import hashlib

    (tmp_path / "predictions").mkdir()
    (tmp_path / "run.json").write_bytes(b"{}")
    (tmp_path / "predictions" / "part-00000-0.parquet").write_bytes(b"x")
    (tmp_path / "notes.txt").write_bytes(b"not a record")
    lines = f"{hashlib.sha256(b'{}').hexdigest()}  run.json\n"
    lines += f"{hashlib.sha256(b'x').hexdigest()}  predictions/part-00000-0.parquet\n"
    assert records_sha256(tmp_path) == hashlib.sha256(lines.encode()).hexdigest()
