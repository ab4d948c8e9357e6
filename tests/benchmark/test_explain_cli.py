"""`beyond explain`, on the adversarials of a small attacked model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from annotations.judgements import LabelSets
from benchmark.attack_records import iter_adversarials, read_attacks
from benchmark.explanations.pack import read_pack
from benchmark.records import iter_predictions
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


def test_heat_maps_and_neighbours_are_packed_and_shown(
    world: World, attacked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("explain", attacked, "--method", "integrated-gradients", "--references", world.images)
    assert run(*command, "--neighbours", "2") == 0
    # People said what holds of these images, and not what does not: no class is known to be plainly wrong.
    assert "no controls" in capsys.readouterr().err
    manifest = read_pack(attacked / "explanations")
    adversarials = {a.image_id for a in iter_adversarials(attacked)}
    assert {(i.image_id, i.kind) for i in manifest.items} == {(i, "adversarial") for i in adversarials}
    assert sum(p.arm == "feature" for p in manifest.pictures) == 6
    of = {item.item: item for item in manifest.items}
    for picture in manifest.pictures:
        if picture.arm == "example":
            assert of[picture.item].image_id not in picture.neighbours
    page = tmp_path / "page.html"
    assert run("show", attacked, "--html", page, "--examples", "6") == 0
    assert page.read_text().count('alt="where it looks"') == 6


def test_controls_are_packed_beside_the_adversarials(tmp_path: Path) -> None:
    world = make_world(tmp_path, 16, start=41)
    # The same judgements by a source that judged every plausible class: what it does not list is wrong.
    sets = LabelSets.load(world.labels, source="people")
    judgements, images = sets.to_tables()
    LabelSets.from_tables(judgements, images.assign(closed_world=True), source="closed", revision="1").save(
        tmp_path / "closed"
    )
    sets = LabelSets.load(tmp_path / "closed", source="closed")
    out = tmp_path / "run"
    options = ("--images", world.images, "--annotations", tmp_path / "closed", "--workers", "0")
    assert (
        run("score", world.spec(), *options, "--tracks", "robustness", "--eps", "40/255", "--out", out) == 0
    )
    command = ("explain", out, "--method", "integrated-gradients", "--references", world.images)
    assert run(*command, "--neighbours", "1") == 0
    manifest = read_pack(out / "explanations")
    assert manifest.settings["mix"] == "2:1:1"
    assert manifest.settings["annotations_revision"] == sets.revision
    # People do not keep the label of the last image; the others are shown once each.
    assert sorted(i.image_id for i in manifest.items) == world.ids[:-1]
    kinds = Counter(i.kind for i in manifest.items)
    assert kinds == {"adversarial": 7, "clean": 4, "sham": 4}

    adversarials = {a.image_id: a for a in iter_adversarials(out)}
    rows = read_attacks(out).table
    broken = rows[(rows["objective"] == "original") & (rows["status"] == "broken")]
    reached = dict(zip(broken["image_id"], broken["adversarial_class"]))
    named = {r.adversarial: r.image_id for r in broken.itertuples()}
    kept = {named[a.name]: a for a in iter_adversarials(out) if a.name in named}
    ranked = {i: c for part in iter_predictions(out) for i, c in zip(part.image_ids, part.classes)}
    label = dict(zip(sets.image_ids.tolist(), sets.original_labels.tolist()))
    for item in manifest.items:
        pictures = manifest.pictures_of(item.item)
        assert set(pictures) >= {"none", "feature"}
        with Image.open(out / "explanations" / pictures["none"].file) as image:
            shown = np.asarray(image)
        clean = adversarials[item.image_id].clean
        row = sets.rows(np.array([item.image_id], dtype=object))
        verdict = int(sets.lookup(row, np.array([item.shown_class]))[0])
        assert item.verdict == {1: "accepted", 2: "unsure", 3: "rejected"}[verdict]
        if item.kind == "adversarial":
            assert item.shown_class == item.predicted_class == reached[item.image_id]
            pixels = kept[item.image_id].pixels
            assert np.array_equal(shown, np.rint(255 * pixels.transpose(1, 2, 0)).astype(np.uint8))
            assert item.distance == pytest.approx(abs(kept[item.image_id].perturbation).max(), abs=1e-6)
        else:
            assert np.array_equal(shown, clean)
            assert item.predicted_class == ranked[item.image_id][0] == label[item.image_id]
        if item.kind == "clean":
            assert item.shown_class == item.predicted_class
            assert item.verdict == "accepted"
            assert item.confidence == pytest.approx(item.clean_confidence, abs=1e-3)
        if item.kind == "sham":
            assert item.verdict == "rejected"
            assert item.shown_class not in ranked[item.image_id][:5]
            assert label[pictures["example"].neighbours[0]] == item.shown_class
            assert item.confidence is not None
            assert item.confidence < 0.2
    before = (out / "explanations" / "manifest.json").read_bytes()
    assert run(*command, "--neighbours", "1", "--overwrite") == 0
    assert (out / "explanations" / "manifest.json").read_bytes() == before


def test_mistakes_get_one_line(
    world: World, attacked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("explain", tmp_path / "nothing") == 2
    assert "no such run" in capsys.readouterr().err
    plain = tmp_path / "plain"
    assert run("score", world.spec(), "--images", world.images, "--workers", "0", "--out", plain) == 0
    assert run("explain", plain) == 2
    assert "no finished attacks" in capsys.readouterr().err
    plainly = ("--method", "integrated-gradients")
    assert run("explain", attacked, *plainly, "--mix", "1:1:1", "--out", tmp_path / "mixed") == 2
    assert "controls need images that label sets judge" in capsys.readouterr().err
    assert run("explain", attacked, "--mix", "much") == 2
    assert "is no mix" in capsys.readouterr().err
    # Not a convolution anywhere: Grad-CAM has nothing to read, and says so.
    assert run("explain", attacked, "--out", tmp_path / "cam") == 2
    assert not (tmp_path / "cam" / "manifest.json").exists()
