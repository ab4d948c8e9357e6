"""The project's own gate: the embedded model on the sample images gives the numbers of the reference.

If a change of results is meant, update the reference with `make reference` and say why in the commit.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest

from benchmark.cli import main
from leaderboard.gate import gate

REFERENCE = Path(__file__).parents[1] / "reference" / "efficientnet-lite0.json"
HINT = "if this change of results is meant, run `make reference` and say why in the commit"

# The same model, with one detail of its preprocessing wrong: antialiased bilinear instead of bicubic.
CARELESS = textwrap.dedent(
    """
    from dataclasses import replace
    from benchmark.models import load

    def model():
        classifier = load("efficientnet-lite0")
        return classifier.module, replace(classifier.preprocessing, interpolation="bilinear")
    """
)


def score(spec: str, out: Path) -> Path:
    main(["score", spec, "--images", "sample", "--annotations", "sample", "--out", str(out)])
    return out


def check(run: Path, *more: str) -> int:
    try:
        main(["check", str(run), "--baseline", str(REFERENCE), "--rule", "exact", *more])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_the_embedded_model_gives_the_reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = score("efficientnet-lite0", tmp_path / "run")
    capsys.readouterr()
    assert check(run) == 0, f"{capsys.readouterr().out}\n{HINT}"
    assert "all the same" in capsys.readouterr().out


def test_a_small_mistake_in_preprocessing_is_a_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "careless.py").write_text(CARELESS)
    run = score(f"{tmp_path / 'careless.py'}:model", tmp_path / "run")
    capsys.readouterr()
    assert check(run) == 1
    assert "CHANGED" in capsys.readouterr().out


def test_one_image_more_or_less_is_a_change(tmp_path: Path) -> None:
    card = json.loads(REFERENCE.read_text())
    metric = card["tracks"]["rectified"]["metrics"]["top1"]
    for key, value in (("value", 0.95), ("ci_low", 0.7), ("n", 19), ("method", "guess")):
        before = metric[key]
        metric[key] = value
        (tmp_path / "new.json").write_text(json.dumps(card))
        found = gate(tmp_path / "new.json", REFERENCE, rule="exact")
        assert [row.metric for row in found.rows if not row.passed] == ["top1"]
        metric[key] = before
    metric["value"] += 1e-9  # rounding is no result
    (tmp_path / "new.json").write_text(json.dumps(card))
    assert gate(tmp_path / "new.json", REFERENCE, rule="exact").passed
    del card["tracks"]["rectified"]["metrics"]["top5"]
    (tmp_path / "new.json").write_text(json.dumps(card))
    found = gate(tmp_path / "new.json", REFERENCE, rule="exact")
    assert [row.metric for row in found.rows if not row.passed] == ["top5"]
