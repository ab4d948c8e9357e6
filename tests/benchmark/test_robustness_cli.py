"""`beyond score --tracks robustness`, end to end on a small exact model."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from annotations.judgements import LabelSets
from benchmark import attack_engine, attacks
from benchmark.attack_records import ADVERSARIALS, ROBUSTNESS, Adversarial, iter_adversarials, read_attacks
from benchmark.records import part_paths
from benchmark.runs import read_run
from tests.benchmark.attacked import World, make_world
from tests.benchmark.test_cli import run

RADII = "2/255,4/255,8/255,40/255"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def score(world: World, out: Path, *more: str, factory: str = "model") -> int:
    options = ["--images", str(world.images), "--annotations", str(world.labels), "--workers", "0"]
    tracks = [] if "--tracks" in more else ["--tracks", "rectified,robustness"]
    return run("score", world.spec(factory), *options, *tracks, "--out", out, *more)


def card(out: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((out / "scorecard.json").read_text())
    return loaded


def network(world: World) -> torch.nn.Module:
    spec = importlib.util.spec_from_file_location("nearest", world.model)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: torch.nn.Module = module.model()[0]
    return made


@pytest.fixture(scope="module")
def finished(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    assert score(world, out, "--eps", RADII) == 0
    return out


def test_the_curve_and_where_the_objectives_differ(world: World, finished: Path) -> None:
    rows = {r["epsilon"]: r for r in card(finished)["tracks"]["robustness"]["tables"]["by_epsilon"]}
    # 2/255 moves nothing. 4/255 reaches the further class of every image, which people accept or are unsure
    # of for six of the eleven whose label they keep. 40/255 reaches anything.
    assert [rows[k / 255]["original"] for k in (2, 4, 8, 40)] == [1, 0, 0, 0]
    assert [rows[k / 255]["rectified"] for k in (2, 4, 8, 40)] == [1, 6 / 11, 6 / 11, 0]
    metrics = card(finished)["tracks"]["robustness"]["metrics"]
    assert metrics["hidden_robustness"]["value"] == pytest.approx(6 / 11)
    acceptance = metrics["adversarial_acceptance"]
    # Of eleven: three accepted, three unsure, three rejected, two unjudged.
    assert (acceptance["lower"], acceptance["upper"]) == (pytest.approx(3 / 11), pytest.approx(5 / 11))
    accepted = card(finished)["tracks"]["robustness"]["tables"]["adversarial_predictions"]
    assert {r["image_id"]: r["predicted_index"] for r in accepted} == {
        i: world.near[i] for i in [*world.ids[0::4], world.ids[-1]]
    }


def test_stored_adversarials_are_what_the_records_say(world: World, finished: Path) -> None:
    model = network(world)
    kept = {a.name: a for a in iter_adversarials(finished)}
    sets = LabelSets.load(world.labels, source="people")
    records = read_attacks(finished)
    broken = [r for r in records.rows(np.arange(len(records))) if r.status == "broken"]
    assert len(broken) > 40
    for r in broken:
        a = kept[r.adversarial]
        assert a.image_id == r.image_id
        assert a.pixels.dtype == np.float32
        assert a.pixels.min() >= 0
        assert a.pixels.max() <= 1
        clean = a.clean.transpose(2, 0, 1).astype(np.float64) / 255
        assert abs(a.pixels - clean).max() <= r.epsilon + 1.5e-7
        assert r.distance == pytest.approx(abs(a.pixels - clean.astype(np.float32)).max(), abs=1e-6)
        with torch.no_grad():
            logits = model(torch.from_numpy(a.pixels)[None])[0]
        assert int(logits.argmax()) == r.adversarial_class
        row = sets.rows(np.array([r.image_id], dtype=object))
        if r.objective == "rectified":
            assert sets.lookup(row, np.array([r.adversarial_class]))[0] not in (1, 2)
        inside = list(r.inside)
        outside = logits.clone()
        outside[inside] = -torch.inf
        assert r.margin == pytest.approx(float(outside.max() - logits[inside].max()), abs=1e-4)


def test_broken_by_people_implies_broken_by_the_label(finished: Path) -> None:
    records = read_attacks(finished)
    rows = records.rows(np.arange(len(records)))
    status = {(r.epsilon, r.objective, r.image_id): r.status for r in rows}
    label_kept = {r.image_id for r in rows if r.objective == "rectified" and r.original_label in r.inside}
    checked = 0
    for (epsilon, objective, image_id), what in status.items():
        if objective == "rectified" and what == "broken" and image_id in label_kept:
            assert status[epsilon, "original", image_id] == "broken"
            checked += 1
    assert checked > 10


def test_rescoring_needs_neither_model_nor_images(finished: Path, tmp_path: Path, world: World) -> None:
    before = (finished / "scorecard.json").read_bytes()
    (finished / "scorecard.json").unlink()
    assert run("rescore", finished) == 0
    assert (finished / "scorecard.json").read_bytes() == before


def test_a_second_time_does_nothing_and_another_radius_is_added(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    assert score(world, out, "--eps", "4/255") == 0
    first, files = card(out), part_paths(out / ROBUSTNESS)
    calls = []

    def counted(*args: Any, **options: Any) -> attacks.Report:
        calls.append(1)
        return evaluate(*args, **options)

    evaluate = attacks.evaluate
    monkeypatch.setattr(attacks, "evaluate", counted)
    assert score(world, out, "--eps", "4/255") == 0
    assert (card(out), part_paths(out / ROBUSTNESS), calls) == (first, files, [])
    # A smaller and a larger radius, later: the same curve as in one go.
    assert score(world, out, "--eps", "2/255") == 0
    assert score(world, out, "--eps", "8/255,40/255") == 0
    together = tmp_path / "together"
    assert score(world, together, "--eps", RADII) == 0
    assert card(out)["tracks"]["robustness"] == card(together)["tracks"]["robustness"]
    assert [a.epsilon for a in read_run(out).attacks] == [k / 255 for k in (2, 4, 8, 40)]


def test_more_images_and_lists_of_images(world: World, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert score(world, out, "--attack-limit", "3") == 0
    assert card(out)["tracks"]["robustness"]["metrics"]["clean_accuracy"]["n"] == 3
    (tmp_path / "ids.txt").write_text("\n".join(world.ids[5:9]))
    assert score(world, out, "--attack-ids", str(tmp_path / "ids.txt")) == 0
    assert card(out)["tracks"]["robustness"]["metrics"]["clean_accuracy"]["n"] == 7
    assert score(world, out) == 0
    whole = tmp_path / "whole"
    assert score(world, whole) == 0
    assert card(out)["tracks"] == card(whole)["tracks"]


def test_other_label_sets_are_attacked_anew(world: World, tmp_path: Path) -> None:
    """A run attacked without them gives bounds, and the exact figure once it is attacked again."""
    out = tmp_path / "run"
    command = ("score", world.spec(), "--images", world.images, "--workers", "0", "--tracks", "robustness")
    assert run(*command, "--out", out, "--annotations", "sample") == 0  # judges none of these images
    assert "robust_accuracy_rectified" not in card(out)["tracks"]["robustness"]["metrics"]
    assert run("rescore", out, "--annotations", world.labels) == 0
    metric = card(out)["tracks"]["robustness"]["metrics"]["robust_accuracy_rectified"]
    assert (metric["lower"], metric["upper"]) == (0, pytest.approx(6 / 11))
    assert score(world, out) == 0
    metric = card(out)["tracks"]["robustness"]["metrics"]["robust_accuracy_rectified"]
    assert metric["value"] == metric["upper"] == pytest.approx(6 / 11)


def test_images_that_nobody_judged_are_attacked_once(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = LabelSets.load(world.labels, source="people")
    judgements, images = sets.to_tables()
    some = set(world.ids[:4])
    few = [frame[frame["image_id"].isin(some)] for frame in (judgements, images)]
    LabelSets.from_tables(few[0], few[1], source="few", revision="1").save(tmp_path / "few")
    reports: list[attacks.Report] = []
    evaluate = attacks.evaluate

    def kept(*args: Any, **options: Any) -> attacks.Report:
        reports.append(evaluate(*args, **options))
        return reports[-1]

    monkeypatch.setattr(attacks, "evaluate", kept)
    command = ("score", world.spec(), "--images", world.images, "--workers", "0", "--tracks", "robustness")
    out = tmp_path / "run"
    assert run(*command, "--annotations", tmp_path / "few", "--eps", "4/255,8/255", "--out", out) == 0
    entered = [s.entered for report in reports for s in report.stages if s.objective == "rectified"]
    # Two of the four stand at 4/255, whose further class people accept or are unsure of.
    assert entered
    assert max(entered) <= 2
    metrics = card(out)["tracks"]["robustness"]["metrics"]
    assert (metrics["clean_accuracy"]["n"], metrics["robust_accuracy_rectified"]["n"]) == (12, 4)
    assert metrics["robust_accuracy_rectified"]["value"] == 0.5


def test_damaged_parts_are_made_again(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert score(world, out) == 0
    before = card(out)
    for kind in (ROBUSTNESS, ADVERSARIALS):
        part = part_paths(out / kind)[0]
        data = bytearray(part.read_bytes())
        data[-20] ^= 255
        part.write_bytes(bytes(data))
    capsys.readouterr()
    assert run("rescore", out) == 2
    assert "damaged" in capsys.readouterr().err
    assert score(world, out) == 0
    assert "its bytes are kept in" in capsys.readouterr().err
    assert card(out) == before
    records = read_attacks(out)
    named = {r.adversarial for r in records.rows(np.arange(len(records))) if r.status == "broken"}
    assert named == {a.name for a in iter_adversarials(out)}


def test_adversarials_can_be_left_out_and_made_later(world: World, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert score(world, out, "--no-keep-adversarials") == 0
    first = card(out)
    assert not (out / ADVERSARIALS).exists()
    assert score(world, out) == 0
    assert card(out) == first
    assert len(list(iter_adversarials(out))) >= 12


def test_a_seed_or_budget_of_another_kind_is_refused(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    assert score(world, out, "--attack-limit", "2") == 0
    monkeypatch.setitem(attack_engine.SUITES, "quick", attacks.standard)
    capsys.readouterr()
    assert score(world, out) == 2
    assert "with other budgets; choose another --out" in " ".join(capsys.readouterr().err.split())
    monkeypatch.undo()
    assert score(world, out, "--seed", "1") == 2
    assert "with another seed; choose another --out" in " ".join(capsys.readouterr().err.split())
    assert score(world, out, "--execution", "bfloat16") == 2
    assert "with another precision; choose another --out" in " ".join(capsys.readouterr().err.split())
    assert score(world, out, "--seed", "0", "--execution", "none") == 0  # changes rounding alone


def test_the_seed_reaches_the_attacks_and_is_recorded(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    evaluate = attacks.evaluate

    def kept(*args: Any, **options: Any) -> attacks.Report:
        seeds.append(options["seed"])
        return evaluate(*args, **options)

    monkeypatch.setattr(attacks, "evaluate", kept)
    out = tmp_path / "run"
    assert score(world, out, "--seed", "7", "--attack-limit", "2", "--eps", "3/255,4/255") == 0
    assert seeds == [7, 7]
    assert [a.seed for a in read_run(out).attacks] == [7, 7]
    assert [r["seed"] for r in card(out)["tracks"]["robustness"]["tables"]["by_epsilon"]] == [7, 7]


def test_l2(world: World, tmp_path: Path) -> None:
    assert score(world, tmp_path / "run", "--norm", "l2", "--eps", "0.05,5", "--attack-limit", "4") == 0
    track = card(tmp_path / "run")["tracks"]["robustness"]
    assert [r["original"] for r in track["tables"]["by_epsilon"]] == [1, 0]
    assert any("was not run" in note for note in track["notes"])


def least(model: torch.nn.Module, a: Adversarial, inside: set[int]) -> float:
    """The smallest L∞ perturbation that takes an image out of some classes, in closed form.

    The model is linear in means over blocks of pixels, so moving a whole block costs no more than moving one
    of its pixels: a boundary is as far as the gap over the sum of its weights' sizes.
    """
    weight = model.head.weight.detach().double()  # type: ignore[union-attr, operator]
    x = torch.from_numpy(a.clean).permute(2, 0, 1)[None].double() / 255
    with torch.no_grad():
        z = model.double()(x)[0]
    best = [
        max(float((z[k] - z[c]) / (weight[k] - weight[c]).abs().sum()) for k in inside)
        for c in range(1000)
        if c not in inside
    ]
    return min(best)


def test_smallest_perturbations_are_near_the_closed_form(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert score(world, out, "--tier", "minimal", "--attack-limit", "6") == 0
    shown = capsys.readouterr().out
    assert "How small a change is enough" in shown
    assert "Smallest perturbations" in shown
    track = card(out)["tracks"]["robustness"]
    assert (read_run(out).attacks[0].suite, read_run(out).attacks[0].epsilon) == ("minimal", 0)
    kept = {a.name: a for a in iter_adversarials(out)}
    records = read_attacks(out)
    rows = records.rows(np.arange(len(records)))
    assert {r.status for r in rows} == {"broken"}
    assert set(kept) == {r.adversarial for r in rows}, "those that a closer one replaced are gone"
    model = network(world)
    distances: dict[tuple[str, str], float] = {}
    for r in rows:
        truth = least(model, kept[r.adversarial], set(r.inside))
        # Never closer than the truth, but for the rounding to float32; and near it.
        assert truth - 1e-6 <= r.distance <= 1.05 * truth + 1e-6, (r.objective, r.image_id)
        distances[r.objective, r.image_id] = r.distance
    assert all(distances["rectified", i] >= distances["original", i] for i in world.ids[:6])
    metrics = track["metrics"]
    expected = np.median([distances["original", i] for i in world.ids[:6]])
    assert metrics["median_distance_original"]["value"] == pytest.approx(expected)
    assert metrics["median_distance_original"]["n"] == 6
    assert metrics["median_distance_rectified"]["value"] > metrics["median_distance_original"]["value"]
    assert sum(r["n"] for r in track["tables"]["distances"] if r["objective"] == "original") == 6
    page = tmp_path / "page.html"
    assert run("show", out, "--html", page) == 0
    assert "the smallest perturbation found for each image that was right" in page.read_text()
    # A second time does nothing; a radius is added beside it.
    files = part_paths(out / ROBUSTNESS)
    assert score(world, out, "--tier", "minimal", "--attack-limit", "6") == 0
    assert part_paths(out / ROBUSTNESS) == files
    assert score(world, out, "--eps", "4/255", "--attack-limit", "6") == 0
    both = card(out)["tracks"]["robustness"]["metrics"]
    assert both["median_distance_original"] == metrics["median_distance_original"]
    assert "robust_accuracy_original" in both


@pytest.mark.parametrize("keep", ["--keep-adversarials", "--no-keep-adversarials"])
def test_smallest_perturbations_go_on_after_a_stop(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: str
) -> None:
    """Stopped after any number of notes, the run ends with the same rows."""
    monkeypatch.setenv("BEYOND_PART_SECONDS", "0")
    more = ("--tier", "minimal", "--norm", "l2", "--attack-limit", "2", "--attack-batch-size", "2", keep)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert score(world, whole, *more) == 0

    class Stop(Exception):
        pass

    note = attack_engine._Collector.survived
    states = []
    for stop_after in (1, 3, 2):
        calls = [0]

        def counted(self: Any, *args: Any, calls: list[int] = calls, stop_after: int = stop_after) -> None:
            note(self, *args)
            calls[0] += 1
            if calls[0] == stop_after:
                raise Stop

        monkeypatch.setattr(attack_engine._Collector, "survived", counted)
        assert score(world, stopped, *more) == 3  # the planted error
        table = read_attacks(stopped).table
        states.append((int(table["survived"].sum()), int((table["adversarial"] != "").sum())))
    assert states == sorted(states)
    assert states[0][0] > 0
    monkeypatch.setattr(attack_engine._Collector, "survived", note)
    assert score(world, stopped, *more) == 0
    one, other = read_attacks(whole).table, read_attacks(stopped).table
    assert one.drop(columns="margin").equals(other.drop(columns="margin"))
    assert (whole / "scorecard.json").read_bytes() == (stopped / "scorecard.json").read_bytes()


def test_ways_to_run_the_network_are_recorded_and_change_rounding_alone(world: World, tmp_path: Path) -> None:
    found = {}
    for names in ("none", "channels-last", "channels-last,fold", "freeze", "bfloat16"):
        out = tmp_path / names
        assert score(world, out, "--attack-limit", "4", "--eps", "4/255", "--execution", names) == 0
        execution = read_run(out).attacks[0].execution
        assert execution["channels_last"] == ("channels-last" in names)
        assert execution["fold"] == ("fold" in names)
        assert execution["freeze"] == (names == "freeze")
        assert execution["autocast"] == ("bfloat16" if names == "bfloat16" else None)
        rows = read_attacks(out).rows(np.arange(len(read_attacks(out))))
        found[names] = [(r.image_id, r.objective, r.status) for r in rows]
        # Whatever the attack ran in, what counts was predicted again in float32.
        model = network(world)
        kept = {a.name: a for a in iter_adversarials(out)}
        for r in rows:
            if r.status == "broken":
                with torch.no_grad():
                    predicted = int(model(torch.from_numpy(kept[r.adversarial].pixels)[None]).argmax())
                assert predicted == r.adversarial_class
    assert len({tuple(rows) for rows in found.values()}) == 1


@pytest.mark.parametrize(
    ("factory", "kind"),
    [
        ("random", "randomised"),
        ("writes", "mutates_input"),
        ("no_gradient", "no_gradient"),
        ("nan", "nan_logits"),
    ],
)
def test_models_that_misbehave_get_a_clear_verdict(
    world: World, tmp_path: Path, factory: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    # 4.5 rather than 4, so that no attack ends on whole pixel values, which the model `nan` tells apart.
    assert score(world, out, "--attack-limit", "4", "--eps", "4.5/255", factory=factory) == 0
    captured = capsys.readouterr()
    track = card(out)["tracks"]["robustness"]
    warnings = {w["kind"]: w["message"] for w in track["tables"]["warnings"]}
    assert kind in warnings
    assert warnings[kind] in " ".join(captured.err.split())
    assert warnings[kind] in " ".join(captured.out.split())  # the scorecard on the terminal says so too
    rows = [r["attack"] for r in track["tables"]["attacks"] if r["broke"]]
    if factory == "no_gradient":
        assert set(rows) <= {"square"}
    if factory == "nan":
        # Points without finite logits never count as broken, and these images not as robust.
        assert rows == []
        assert track["metrics"]["robust_accuracy_original"]["value"] == 0
        assert any("no finite logits" in note for note in track["notes"])


def test_a_model_without_a_gradient_of_its_own_gets_one_line(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(world, tmp_path / "run", factory="overwrites") == 2
    assert "overwrites what its own gradient needs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tracks", "rectified", "--eps", "4/255"], "--eps goes with --tracks robustness"),
        (["--tracks", "rectified", "--no-keep-adversarials"], "--keep-adversarials goes with"),
        (["--eps", "four"], "'four' is no radius"),
        (["--eps", "4"], "write 4/255 for 4"),
        (["--tracks", "robustnes"], "did you mean 'robustness'"),
        (["--attack-ids", "nowhere.txt"], "nowhere.txt"),
        (["--tier", "minimal", "--eps", "4/255"], "has no radius: leave --eps out"),
        (["--tracks", "rectified", "--seed", "1"], "--seed goes with --tracks robustness"),
        (["--execution", "fould"], "did you mean 'fold'"),
        (["--execution", "none,fold"], "excludes itself"),
        (["--execution", "checkpointing"], "has no set_grad_checkpointing"),
    ],
)
def test_mistakes_get_one_line(
    world: World, tmp_path: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(world, tmp_path / "run", *more) != 0
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_predictions_cannot_be_attacked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "p.npy", np.zeros((50_000, 1), dtype=np.int16))
    assert run("score", "--predictions", tmp_path / "p.npy", "--tracks", "robustness") != 0
    assert "predictions cannot be attacked" in capsys.readouterr().err


def test_show_with_examples_embeds_images_and_says_to_keep_the_page(
    world: World, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert run("show", finished, "--html", page) == 0
    plain = page.read_text()
    assert "data:image" not in plain
    assert "Keep this page to yourself" not in plain
    assert run("show", finished, "--html", page, "--examples", "3") == 0
    assert "do not publish" in capsys.readouterr().err
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 9
    assert "Keep this page to yourself" in text
    assert world.ids[0] in text  # an adversarial that people accept comes first
    assert run("show", finished, "--examples", "3") != 0
    assert "--examples goes with --html" in capsys.readouterr().err
