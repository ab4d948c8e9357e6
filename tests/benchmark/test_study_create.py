"""`beyond study create` and `serve` on a small attacked model, and what they refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from annotations.judgements import LabelSets
from annotations.study import gather, preregistration
from annotations.study.stimuli import read_stimuli
from benchmark.explanations.pack import item_name, read_pack
from tests.benchmark.attacked import make_world
from tests.benchmark.test_cli import run
from tests.postgresql import postgresql

__all__ = ["postgresql"]

ARMS = ("--arms", "none,feature")
SMALL = ("--items", "4", "--checks", "2", "--practice", "2", *ARMS)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with explanations: heat maps of items of all kinds, by a source that judged every class."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("world")
    world = make_world(folder, 16, start=41)
    judgements, images = LabelSets.load(world.labels, source="people").to_tables()
    LabelSets.from_tables(judgements, images.assign(closed_world=True), source="closed", revision="1").save(
        folder / "closed"
    )
    out = folder / "run"
    options = ("--images", world.images, "--annotations", folder / "closed", "--workers", "0")
    assert (
        run("score", world.spec(), *options, "--tracks", "robustness", "--eps", "40/255", "--out", out) == 0
    )
    assert run("explain", out, "--method", "integrated-gradients") == 0
    return out


def test_a_study_is_made_from_a_run(
    attacked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan_file, config_file = tmp_path / "plan.yaml", tmp_path / "config.yaml"
    plan_file.write_text("ethics: Nobody is asked here.\nexclusions: {fast_median_seconds: 0.5}\n")
    config_file.write_text("name: Which labels apply?\nconsent_version: '7'\n")
    study = tmp_path / "study"
    more = ("--raters", "9", "--plan", plan_file, "--config", config_file)
    assert run("study", "create", attacked, "--out", study, *SMALL, *more) == 0
    said = capsys.readouterr().err
    plan = preregistration.read(study)
    assert f"sha256 {plan.sha256}" in said
    assert (
        "4 items for each rater (2 adversarial, 1 clean, 1 sham), 2 attention checks, 2 for practice" in said
    )
    assert plan.arms == ("none", "feature")
    assert [(h.arm, h.versus) for h in plan.hypotheses] == [("feature", "none")]
    assert (plan.raters_per_arm, plan.items_per_rater) == (9, 4)
    assert plan.ethics == "Nobody is asked here."
    assert plan.exclusions.fast_median_seconds == 0.5
    assert plan.exclusions.minimum_attention == 1
    assert not plan.made_up

    stimuli = read_stimuli(study)
    manifest = read_pack(attacked / "explanations")
    of = {item.item: item for item in manifest.items}
    for item in stimuli.items:
        before = of[item.item]
        assert item.kind == before.kind or (item.expected == "yes") == (before.kind == "clean")
        assert (item.image_id, item.shown_class) == (before.image_id, before.shown_class)
    pictures = {path.name for path in (study / "pack").glob("*.png")}
    assert len(pictures) == 16
    assert pictures == {p.file for p in manifest.pictures if p.item in {i.item for i in stimuli.items}}

    store = gather.open_study(study)
    assert store.config.name == "Which labels apply?"
    assert store.config.consent_version == "7"
    assert store.config.quota == 6
    assert store.config.study is not None
    assert store.config.study.preregistration == plan.sha256
    store.close()
    assert run("campaign", "invite", "--db", study, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)) == 1
    assert run("campaign", "aggregate", "--db", study, "--out", tmp_path / "labels") == 2
    assert "a study in arms" in capsys.readouterr().err
    # The same choice again is the same stimuli.
    assert run("study", "create", attacked, "--out", tmp_path / "again", *SMALL) == 0
    assert (tmp_path / "again/pack/manifest.json").read_bytes() == (study / "pack/manifest.json").read_bytes()


def test_a_study_is_kept_in_postgresql(
    attacked: Path, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    url = request.getfixturevalue("postgresql").new_database()
    study = tmp_path / "study"
    assert run("study", "create", attacked, "--out", study, *SMALL, "--db", url) == 0
    store = gather.open_study(study, url)
    gather.check(study, store)
    store.close()
    assert len(gather.gather(study, url).answers) == 0
    assert run("study", "create", attacked, "--out", tmp_path / "other", *SMALL, "--db", url) == 2
    assert "holds a campaign already" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_study_that_was_cut_off_is_made_anew(attacked: Path, tmp_path: Path) -> None:
    """Without a database nobody has answered; what is there of another choice goes."""
    study = tmp_path / "study"
    assert run("study", "create", attacked, "--out", study, *SMALL, "--seed", "5") == 0
    (study / "campaign.db").unlink()
    (study / "pack" / f"{'0' * 64}.png").write_bytes(b"half a picture")
    assert run("study", "create", attacked, "--out", study, *SMALL) == 0
    store = gather.open_study(study)
    gather.check(study, store)
    store.close()
    assert not (study / "pack" / f"{'0' * 64}.png").exists()


def test_mistakes_get_one_line(attacked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tmp_path / "study"

    def refused(*options: object, message: str, run_folder: Path = attacked) -> None:
        assert run("study", "create", run_folder, "--out", study, *map(str, options)) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert message in error, error
        assert not study.exists()

    refused("--arms", "none", message="two or more different arms")
    refused("--arms", "none,magic", message="no such arm 'magic'")
    refused(*SMALL[:-2], message="no pictures for the arm example")
    refused(*SMALL, "--items", "400", message="pass --items 8")
    refused(*SMALL, "--pack", tmp_path / "nothing", message="holds no pack")
    refused(*SMALL, message="no such run", run_folder=tmp_path / "nothing")
    (tmp_path / "plan.yaml").write_text("colour: red")
    refused(*SMALL, "--plan", tmp_path / "plan.yaml", message="no such key 'colour'")
    (tmp_path / "plan.yaml").write_text("analysis: {alpha: 7}")
    refused(*SMALL, "--plan", tmp_path / "plan.yaml", message="analysis.alpha")
    (tmp_path / "plan.yaml").write_text("votes: 3")
    refused(*SMALL, "--config", tmp_path / "plan.yaml", message="a study decides this")

    # A picture that is missing, one that was changed, and explanations of another model.
    pack = tmp_path / "pack"
    shutil.copytree(attacked / "explanations", pack)
    picture = sorted(pack.glob("*.png"))[0]
    picture.write_bytes(b"another")
    refused(*SMALL, "--pack", pack, message="damaged (checksum)")
    picture.unlink()
    refused(*SMALL, "--pack", pack, message="is missing")
    shutil.copy(attacked / "explanations" / picture.name, picture)
    manifest = pack / "manifest.json"
    weights = read_pack(pack).model["weights_sha256"]
    manifest.write_text(manifest.read_text().replace(weights, "f" * 64))
    refused(*SMALL, "--pack", pack, message="with other weights; pass the pack of this run")

    # Explanations of another run of the same model, whose attacks led elsewhere.
    data = json.loads((attacked / "explanations" / "manifest.json").read_text())
    item = next(item for item in data["items"] if item["kind"] == "adversarial")
    name = item_name(item["image_id"], "adversarial", 7)
    for picture in data["pictures"]:
        picture["item"] = name if picture["item"] == item["item"] else picture["item"]
    item.update(item=name, shown_class=7, predicted_class=7)
    manifest.write_text(json.dumps(data))
    refused(*SMALL, "--pack", pack, message=f"was not made from {attacked}: it shows {item['image_id']} as")


def test_nothing_is_served_that_was_changed(
    attacked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "study"
    assert run("study", "create", attacked, "--out", study, *SMALL) == 0
    picture = sorted((study / "pack").glob("*.png"))[0]
    picture.write_bytes(b"another")
    for command in (("study", "serve", study), ("campaign", "serve", "--db", study)):
        capsys.readouterr()
        assert run(*command, "--port", "0") == 2
        shown = capsys.readouterr()
        assert "was changed: its checksum is not its name" in shown.err
        assert "join" not in shown.out
    assert run("study", "serve", tmp_path) == 2
    assert "beyond study create" in capsys.readouterr().err
