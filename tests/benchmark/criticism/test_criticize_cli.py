"""`beyond criticize` and `beyond score --tracks criticism`, end to end on a small exact model."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from annotations.classes import class_names
from benchmark.criticism import distances as engine
from benchmark.criticism.records import CRITICISM, distances_of, read_table
from benchmark.records import part_paths
from benchmark.runs import CHOICES_FILE, read_run
from tests.benchmark.criticism.world import ClassWorld, make_class_world
from tests.benchmark.test_cli import run


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> ClassWorld:
    return make_class_world(tmp_path_factory.mktemp("world"))


def score(world: ClassWorld, out: Path, *more: str, factory: str = "model") -> int:
    options = ["--images", str(world.images), "--annotations", str(world.labels), "--workers", "0"]
    tracks = [] if "--tracks" in more else ["--tracks", "rectified,criticism"]
    return run("score", world.spec(factory), *options, *tracks, "--out", out, *more)


def criticize(world: ClassWorld, out: Path, *more: str) -> int:
    return run("criticize", out, "--images", world.images, "--workers", "0", "--probes", "none", *more)


def card(out: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((out / "scorecard.json").read_text())
    return loaded


@pytest.fixture(scope="module")
def finished(world: ClassWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    assert score(world, out) == 0
    return out


def test_every_class_of_four_images_has_prototypes_and_criticisms(world: ClassWorld, finished: Path) -> None:
    choices = pd.read_csv(finished / CRITICISM / CHOICES_FILE)
    counts = choices.groupby(["class_index", "role"]).size().unstack()
    assert sorted(counts.index) == [20, 400, 700]
    assert (counts == 2).all(axis=None)
    found = distances_of(read_table(finished), "quick")
    assert found.image_ids.tolist() == world.ids
    assert (found.status == "found").all()
    far = dict(zip(found.image_ids, np.where(found.correct, found.distance, -found.distance)))
    for c in (20, 400, 700):
        mine = choices[choices["class_index"] == c]
        side = {role: [far[i] for i in group["image_id"]] for role, group in mine.groupby("role")}
        rest = [far[i] for i in world.ids if world.classes[i] == c and i not in set(mine["image_id"])]
        assert min(side["prototype"]) >= max(rest)
        assert max(side["criticism"]) <= min(rest)


def test_distances_are_those_of_the_closed_form(world: ClassWorld, finished: Path) -> None:
    """The model is linear in the means of 4 × 4 blocks, so the nearest boundary is known exactly."""
    data = np.load(world.model.parent / "prototypes.npz")
    weight, bias = data["weight"].astype(np.float64), data["bias"].astype(np.float64)
    from benchmark.preprocessing import Preprocessing, load_pixels

    spec = Preprocessing(input_size=(24, 24), resize=24)
    found = distances_of(read_table(finished), "quick")
    exact = 0
    for image_id, predicted, distance in zip(found.image_ids, found.predicted, found.distance):
        pixels = load_pixels((world.images / f"{image_id}.JPEG").read_bytes(), spec, name="x") / 255
        means = pixels.reshape(4, 6, 4, 6, 3).mean(axis=(1, 3)).transpose(2, 0, 1).ravel()
        logits = weight @ means + bias
        assert int(logits.argmax()) == predicted
        # A change of a block's mean by m costs 6 m in L2: its 36 pixels change by m each.
        gaps, ways = logits[predicted] - logits, weight - weight[predicted]
        with np.errstate(invalid="ignore", divide="ignore"):
            far = 6 * gaps / np.linalg.norm(ways, axis=1)
        other = int(np.nanargmin(far))
        assert distance >= far[other] * (1 - 1e-4)
        # The box [0, 1] is in nobody's way where the nearest point of the boundary lies inside.
        move = gaps[other] * ways[other] / (ways[other] ** 2).sum()
        at = pixels + move.reshape(3, 4, 4).transpose(1, 2, 0).repeat(6, axis=0).repeat(6, axis=1)
        if at.min() >= 0 and at.max() <= 1:
            exact += 1
            assert distance <= far[other] * 1.05
    assert exact >= 8


def test_the_card_tells_what_was_done(world: ClassWorld, finished: Path) -> None:
    track = card(finished)["tracks"]["criticism"]
    assert track["metrics"]["confirmed_biases"]["value"] == 0
    assert track["metrics"]["confirmed_biases"]["n"] == len(world.ids)
    attributes = {row["source"]: row for row in track["tables"]["attributes"]}
    assert attributes["co-occurrence"]["attributes"] == 2
    examples = track["tables"]["examples"]
    assert {row["class_index"] for row in examples} == {20, 400, 700, -1}
    assert {row["role"] for row in examples} == {"prototype", "criticism"}
    assert {row["kind"] for row in track["tables"]["stability"]} == {"seed", "budget"}
    for row in track["tables"]["stability"]:
        assert row["rank_correlation"] > 0.9
        assert 0.9 < row["distance_ratio"] < 1.1
    info = read_run(finished).criticism
    assert info is not None
    assert {(d.suite, d.seed) for d in info.distances} == {("quick", 0), ("quick-random", 1), ("standard", 0)}
    assert all(d.measured and d.seconds > 0 for d in info.distances)
    assert info.planned == len(world.ids)


def test_again_does_nothing_twice_and_rescoring_needs_no_images(world: ClassWorld, finished: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in part_paths(finished / CRITICISM)}
    bytes_before = (finished / "scorecard.json").read_bytes()
    assert criticize(world, finished) == 0
    assert {p: p.stat().st_mtime_ns for p in part_paths(finished / CRITICISM)} == before
    assert run("rescore", finished) == 0
    assert (finished / "scorecard.json").read_bytes() == bytes_before


def test_distances_do_not_depend_on_the_batch_size(world: ClassWorld, finished: Path, tmp_path: Path) -> None:
    assert score(world, tmp_path / "run", "--attack-batch-size", "5") == 0
    one, other = read_table(finished), read_table(tmp_path / "run")
    assert one.drop(columns="distance").equals(other.drop(columns="distance"))
    np.testing.assert_allclose(one["distance"], other["distance"], atol=1e-6)


def test_attributes_of_a_file_are_read_kept_and_said(
    world: ClassWorld, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert score(world, out, "--tracks", "rectified") == 0
    found = [i for i in world.ids if world.classes[i] == 400]
    rows = [f"{i},place,{'sea' if n % 2 else 'wood'}" for n, i in enumerate(found)]
    rows += [
        "nobody,place,sea",
        f"{found[0]},light,dim",
        f"{world.ids[0]},place,sea",
        f"{world.ids[0]},place,wood",
    ]
    rows += [f"{i},same,yes" for i in found]
    file = tmp_path / "my scenes.csv"
    file.write_text("image_id,attribute,value\n" + "\n".join(rows))
    capsys.readouterr()
    assert criticize(world, out, "--attributes", f"{file}", "--stability", "0") == 0
    assert "several values of one attribute" in capsys.readouterr().err
    file.unlink()
    assert run("rescore", out) == 0
    track = card(out)["tracks"]["criticism"]
    (source,) = track["tables"]["attributes"]
    assert (source["source"], source["attributes"], source["images"]) == ("my-scenes", 1, 8)
    notes = "\n".join(track["notes"])
    assert "1 ids are of no image with a distance (first nobody)" in notes
    assert "attribute light has one value (dim)" in notes
    assert "attribute same has one value (yes)" in notes
    assert "findings" not in track["tables"]


def test_a_damaged_part_is_made_again(world: ClassWorld, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert score(world, out, "--attack-limit", "4") == 0
    (part,) = part_paths(out / CRITICISM)
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(bytes(data))
    assert run("rescore", out) == 2
    assert criticize(world, out, "--limit", "4") == 0
    kept = read_table(finished)
    ours = distances_of(read_table(out), "quick")
    theirs = distances_of(kept, "quick").take(np.arange(4))
    np.testing.assert_allclose(ours.distance, theirs.distance, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--classes", "canoe"], "--classes goes with --html"),
        (["--html", "page.html", "--classes", "cano"], "no such class"),
        (["--probes", "shapes"], "no such probe"),
        (["--attributes", "nothing.csv"], "no attributes 'nothing.csv'"),
        (["--attributes", "co-occurrence,co-occurrence"], "named twice"),
    ],
)
def test_mistakes_get_one_line(
    finished: Path, world: ClassWorld, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("criticize", finished, "--images", world.images, *options) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.strip().splitlines()) == 1


def test_what_cannot_be_criticized_says_why(
    world: ClassWorld, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(world, tmp_path / "flat", factory="no_gradient") == 2
    assert "the model gives no gradient" in capsys.readouterr().err
    assert run("criticize", finished) == 2
    assert "pass --images DIR" in capsys.readouterr().err
    assert score(world, tmp_path / "lonely", "--tracks", "rectified", "--attributes", "co-occurrence") == 2
    assert "--attributes goes with --tracks criticism" in capsys.readouterr().err
    other = make_class_world(tmp_path / "other", per_class=9)
    assert run("criticize", finished, "--images", other.images, "--probes", "none") == 2
    assert "has no prediction for 3 images" in capsys.readouterr().err
    predictions = tmp_path / "p.csv"
    predictions.write_text("file_name,predicted_class\n" + "\n".join(f"{i}.JPEG,20" for i in world.ids))
    assert (
        run("score", "--predictions", predictions, "--annotations", world.labels, "--out", tmp_path / "p")
        == 0
    )
    assert run("criticize", tmp_path / "p", "--images", world.images) == 2
    assert "distances need the model" in capsys.readouterr().err


def test_the_page_has_pictures_of_both_sides_and_says_to_keep_it(
    world: ClassWorld, finished: Path, tmp_path: Path
) -> None:
    page = tmp_path / "bias.html"
    name = class_names()[400]
    assert criticize(world, finished, "--html", str(page), "--classes", f"{name},20") == 0
    html = page.read_text()
    assert html.count("data:image/jpeg;base64,") == 2 * 12 + 2 * 2 * 4
    assert html.index(name) < html.index(class_names()[20])
    assert "Keep this page to yourself" in html
    public = tmp_path / "public.html"
    assert run("show", finished, "--html", public) == 0
    assert "data:image" not in public.read_text()
    assert world.ids[0] in public.read_text()


def test_adversarials_of_one_chunk_alone_are_in_memory(
    world: ClassWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    real = engine.closest

    def watched(model: Any, examples: Any, *args: Any, **options: Any) -> Any:
        sizes.append(len(examples))
        return real(model, examples, *args, **options)

    monkeypatch.setattr(engine, "closest", watched)
    monkeypatch.setitem(engine.CHUNK, "quick", 4)
    assert score(world, tmp_path / "run", "--attack-limit", "10") == 0
    assert sizes[:3] == [4, 4, 2]


def test_killed_and_resumed_it_ends_with_the_same_bytes(
    world: ClassWorld, finished: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable, "-m", "benchmark", "score", world.spec(), "--images", str(world.images),
        "--annotations", str(world.labels), "--tracks", "rectified,criticism", "--workers", "0",
        "--threads", "1", "--out", str(tmp_path / "killed"),
    ]  # fmt: skip
    slow = {**os.environ, "TEST_SLEEP": "0.004"}
    rng = random.Random(7)
    kills = 0
    while kills < 2:
        process = subprocess.Popen(command, env=slow, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wanted = len(part_paths(tmp_path / "killed" / CRITICISM)) + 1
        deadline = time.monotonic() + 60
        while len(part_paths(tmp_path / "killed" / CRITICISM)) < wanted and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(rng.choice([0, 0.1, 0.3]))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills >= 2, "the run ended before it could be killed twice"
    subprocess.run(command, check=True, capture_output=True)
    assert read_table(finished).equals(read_table(tmp_path / "killed"))
    assert (finished / "scorecard.json").read_bytes() == (tmp_path / "killed" / "scorecard.json").read_bytes()
