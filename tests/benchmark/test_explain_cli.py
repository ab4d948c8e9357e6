"""`beyond explain`, on the adversarials of a small attacked model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmark.attack_records import iter_adversarials
from benchmark.explanations.pack import read_pack
from tests.benchmark.attacked import World, make_world
from tests.benchmark.test_cli import run


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.set_num_threads(1)
    return make_world(tmp_path_factory.mktemp("world"), 6)


@pytest.fixture(scope="module")
def attacked(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("attacked") / "run"
    options = ("--images", world.images, "--annotations", world.labels, "--workers", "0")
    # At this radius predictions land on labels of other images, which are their neighbours.
    more = ("--tracks", "robustness", "--eps", "60/255", "--out", out)
    assert run("score", world.spec(), *options, *more) == 0
    return out


def test_heat_maps_and_neighbours_are_packed_and_shown(world: World, attacked: Path, tmp_path: Path) -> None:
    command = ("explain", attacked, "--method", "integrated-gradients", "--references", world.images)
    assert run(*command, "--neighbours", "2") == 0
    manifest = read_pack(attacked / "explanations")
    adversarials = {a.image_id for a in iter_adversarials(attacked)}
    assert {p.image_id for p in manifest.pictures if p.arm == "feature"} <= adversarials
    assert sum(p.arm == "feature" for p in manifest.pictures) == 6
    for picture in manifest.pictures:
        if picture.arm == "example":
            assert picture.image_id not in picture.neighbours
    page = tmp_path / "page.html"
    assert run("show", attacked, "--html", page, "--examples", "6") == 0
    assert page.read_text().count('alt="where it looks"') == 6


def test_mistakes_get_one_line(
    world: World, attacked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("explain", tmp_path / "nothing") == 2
    assert "no such run" in capsys.readouterr().err
    plain = tmp_path / "plain"
    assert run("score", world.spec(), "--images", world.images, "--workers", "0", "--out", plain) == 0
    assert run("explain", plain) == 2
    assert "no finished attacks" in capsys.readouterr().err
    # Not a convolution anywhere: Grad-CAM has nothing to read, and says so.
    assert run("explain", attacked, "--out", tmp_path / "cam") == 2
    assert not (tmp_path / "cam" / "manifest.json").exists()
