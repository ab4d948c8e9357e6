"""`beyond probe`: each probe alone, its JSON, and one clear line for every mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from annotations.classes import validation_ids, validation_labels
from benchmark.cli import main
from benchmark.probes import PROBES
from benchmark.probes.cue_conflict import categories
from benchmark.scorecard import Scorecard
from tests.benchmark.synthetic import jpeg, write_user_model, write_validation_images


def run(*args: str | Path) -> int:
    """Run `beyond probe` in this process; returns the exit status."""
    try:
        main(["probe", *(str(arg) for arg in args)])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_user_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_validation_images(tmp_path_factory.mktemp("images"), 12)


@pytest.fixture(scope="module")
def cue_conflict(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cues")
    names = list(categories())
    for n, shape in enumerate(names):
        (folder / shape).mkdir()
        for i in range(3):
            (folder / shape / f"{shape}{i}-{names[(n + i) % 16]}1.png").write_bytes(
                jpeg(n * 3 + i, kind="PNG")
            )
    return folder


@pytest.fixture(scope="module")
def top5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Predictions of all validation images that are right on 70 of 100; made up."""
    labels = validation_labels().astype(np.int64)
    wrong = np.arange(50_000) % 10 < 3
    path = tmp_path_factory.mktemp("top5") / "made_up.npy"
    np.save(path, (labels[:, None] + wrong[:, None] * 500 + np.arange(5)) % 1000)
    return path


def card(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The criticism track that was printed, after checking that it is a scorecard and nothing else."""
    out = capsys.readouterr().out
    Scorecard.from_json(out)
    track: dict[str, Any] = json.loads(out)["tracks"]["criticism"]
    return track


def test_without_a_name_it_lists_the_probes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    out = capsys.readouterr().out
    assert all(name in out for name in PROBES)
    assert run("--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [p["name"] for p in listed] == list(PROBES)
    assert all(p["licence"] and p["citation"] and p["main_score"] for p in listed)


def test_cue_conflict(
    model: str, cue_conflict: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ("cue-conflict", model, "--images", cue_conflict, "--out", tmp_path / "o")
    assert run(*args, "--json") == 0
    track = card(capsys)
    assert track["metrics"]["cue_accuracy"]["n"] == 32  # of 48, 16 have no conflict
    assert track["tables"]["probes"][0]["probe"] == "cue-conflict"
    assert {r["who"] for r in track["tables"]["probe_references"]} >= {"10 people, pooled", "ResNet-50"}
    stored = (tmp_path / "o" / "cue-conflict.json").read_text()
    # Again it reads its records, and says the same.
    assert run(*args, "--json") == 0
    assert capsys.readouterr().out == stored
    assert run(*args) == 0
    assert "shape" in capsys.readouterr().out
    # Other images into the same folder: refused, unless told to throw away.
    assert run(*args, "--limit", "30") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(*args, "--limit", "30", "--overwrite", "--json") == 0
    assert card(capsys)["metrics"]["cue_accuracy"]["n"] <= 30


def test_cue_conflict_beside_people(
    model: str, cue_conflict: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    people = tmp_path / "people"
    people.mkdir()
    for person in ("p1", "p2"):
        rows = [
            f"{person},{path.parent.name},{path.parent.name},0001_x_{path.stem}.png"
            for path in sorted(cue_conflict.glob("*/*.png"))[:30]
        ]
        (people / f"{person}.csv").write_text("subj,object_response,category,imagename\n" + "\n".join(rows))
    assert (
        run(
            "cue-conflict",
            model,
            "--images",
            cue_conflict,
            "--people",
            people,
            "--out",
            tmp_path / "o",
            "--json",
        )
        == 0
    )
    track = card(capsys)
    assert track["metrics"]["human_error_consistency"]["n"] == 30
    assert [row["shape_bias"] for row in track["tables"]["cue_conflict_people"]] == [1.0, 1.0]
    # The records hold the answers, so the result can be had again without the folder.
    assert list((tmp_path / "o" / "probes" / "cue-conflict" / "people").glob("part-*.parquet"))


def test_watermark(model: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("watermark", model, "--images", images, "--out", tmp_path, "--json") == 0
    track = card(capsys)
    assert set(track["metrics"]) == set(PROBES["watermark"].metrics)
    assert {row["judged_by"] for row in track["tables"]["watermark_accuracy"]} == {"original label", "real"}


@pytest.mark.parametrize("name", ["factors", "co-occurrence"])
def test_recorded_predictions_are_enough(
    name: str, top5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(name, "--predictions", top5, "--json") == 0
    from_file = card(capsys)
    assert PROBES[name].main_score in from_file["metrics"]
    main_args = ["score", "--predictions", str(top5), "--out", str(tmp_path / "run"), "--json"]
    main(main_args)
    capsys.readouterr()
    assert run(name, "--run", tmp_path / "run", "--json") == 0
    assert card(capsys) == from_file
    assert run(name, "--predictions", top5) == 0
    assert PROBES[name].title in capsys.readouterr().out


def test_errors_spread_evenly_have_ratios_near_one(top5: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("factors", "--predictions", top5, "--json") == 0
    rows = card(capsys)["tables"]["factor_errors"]
    large = [row for row in rows if row["n"] > 1000 and row["factor"] != "average"]
    assert len(large) >= 5
    assert all(0.9 < row["error_ratio"] < 1.1 for row in large)


def test_factors_of_a_model(
    model: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("factors", model, "--images", images, "--out", tmp_path, "--json") == 0
    track = card(capsys)
    assert track["tables"]["factor_errors"][-1]["factor"] == "average"
    assert any("no factor with" in note for note in track["notes"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["cue-conflic"], "did you mean 'cue-conflict'"),
        (["cue-conflict"], "needs a MODEL with --images DIR"),
        (["factors"], "or --run RUN, or --predictions FILE"),
        (["cue-conflict", "MODEL"], "a folder of cue-conflict images, SHAPE/shapeN-textureM.png"),
        (["watermark", "MODEL"], "needs --images DIR"),
        (["watermark", "--run", "RUN"], "shows images of its own making"),
        (["factors", "MODEL", "--predictions", "FILE"], "does not go with a MODEL"),
        (["factors", "--run", "RUN", "--predictions", "FILE"], "not both"),
        (["factors", "--run", "RUN", "--ids", "FILE"], "--ids goes with --predictions"),
        (["factors", "--run", "RUN", "--people", "DIR"], "--people goes with the probe cue-conflict"),
        (["factors", "--run", "NOWHERE"], "no such run"),
        (["factors", "--predictions", "nothing.npy"], "no such predictions file"),
        (["factors", "--predictions", "FILE", "--limit", "5"], "--limit goes with a MODEL"),
        (["cue-conflict", "MODEL", "--images", "IMAGES"], "holds no cue-conflict images"),
        (["cue-conflict", "MODEL", "--images", "nowhere"], "there is no folder"),
        (["cue-conflict", "MODEL", "--images", "CUES", "--people", "nowhere"], "human trials"),
    ],
)
def test_every_mistake_is_one_clear_line(
    args: list[str],
    message: str,
    model: str,
    images: Path,
    cue_conflict: Path,
    top5: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"MODEL": model, "FILE": str(top5), "IMAGES": str(images), "CUES": str(cue_conflict)}
    assert run(*(names.get(arg, arg) for arg in args)) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_ids_of_predictions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ids.txt").write_text("\n".join(validation_ids()[:500]))
    np.save(tmp_path / "p.npy", np.arange(500)[:, None] % 1000)
    assert run("factors", "--predictions", tmp_path / "p.npy", "--ids", tmp_path / "ids.txt", "--json") == 0
    assert 400 < card(capsys)["metrics"]["worst_factor_error_ratio"]["n"] <= 500
