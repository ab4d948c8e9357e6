"""`beyond show` and `beyond tracks`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from annotations.errors import BeyondError
from benchmark.cli.show import show, tracks
from benchmark.report import names, reproduce
from benchmark.report.page import render_page
from benchmark.tracks import TRACKS
from tests.benchmark.report import made_up


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "scorecard.json").write_text(made_up.full().to_json(), encoding="utf-8")
    return folder


def test_json_is_the_scorecard_and_nothing_else(run: Path, tmp_path: Path) -> None:
    html = tmp_path / "out.html"
    result = CliRunner().invoke(show, [str(run), "--json", "--html", str(html)], catch_exceptions=False)
    assert result.stdout == made_up.full().to_json()
    assert html.read_text(encoding="utf-8") == render_page(made_up.full())


def test_page_into_no_folder_is_refused(run: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(show, [str(run), "--html", str(tmp_path / "none" / "page.html")])
    assert isinstance(result.exception, BeyondError)
    assert "make it" in str(result.exception)


def test_a_run_and_its_file_show_the_same(run: Path) -> None:
    outputs = [
        CliRunner().invoke(show, [str(path)], catch_exceptions=False).stdout
        for path in (run, run / "scorecard.json")
    ]
    assert outputs[0] == outputs[1]
    assert "People accept 83.0 %" in outputs[0]


@pytest.mark.parametrize(
    "content", [None, "not json", "[]", '{"schema_version": 99}', '{"schema_version": 1, "x": 1}']
)
def test_what_is_no_scorecard_is_refused_in_one_line(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "scorecard.json").write_text(content, encoding="utf-8")
    result = CliRunner().invoke(show, [str(tmp_path)])
    assert isinstance(result.exception, BeyondError)
    assert "\n" not in str(result.exception)
    assert result.stdout == ""


def test_showing_imports_no_torch(run: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from benchmark.cli import beyond;"
        f"beyond.main(['show', {str(run)!r}, '--html', {str(tmp_path / 'p.html')!r}], standalone_mode=False);"
        f"beyond.main(['show', {str(run)!r}], standalone_mode=False);"
        "sys.exit(bool({'torch', 'timm', 'torchvision', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_tracks_lists_every_metric_with_a_description() -> None:
    listed = json.loads(CliRunner().invoke(tracks, ["--json"], catch_exceptions=False).stdout)
    rectified = next(track for track in listed if track["name"] == "rectified")
    text = CliRunner().invoke(tracks, [], catch_exceptions=False).stdout
    for metric in rectified["metrics"]:
        assert len(metric["description"]) > 15
        assert metric["name"] in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_plain_names_are_those_of_metrics_that_exist() -> None:
    """A name left behind by a renamed metric, or a metric without a plain name, fails here."""
    for name, info in TRACKS.items():
        fixed = {metric.name for metric in info.metrics if "{" not in metric.name}
        assert set(names.METRICS[name]) == fixed


def test_reproducing_command_is_quoted_for_the_shell() -> None:
    card = made_up.full(spec="my net; rm -rf $HOME.py:make")
    assert reproduce.command(card) == (
        "beyond score 'my net; rm -rf $HOME.py:make' --images DIR --annotations mla,real --out RUN"
    )
    assert "--images sample " in reproduce.command(made_up.tiny())
    assert "--predictions resnet50.npy" in reproduce.command(made_up.full(spec="resnet50.npy"))
