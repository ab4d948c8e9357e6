"""Re-running a submitted model: what agrees, what does not, and what that shows."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import yaml
from statsmodels.stats.proportion import proportion_confint

from benchmark import records, runs, statistics
from benchmark.cli import main
from benchmark.records import Predictions, iter_predictions
from leaderboard.entries import read_entry
from leaderboard.submission import prepare
from leaderboard.validation import validate
from leaderboard.verify import compare, draw, smallest_sample
from tests.benchmark.synthetic import write_user_model, write_validation_images

N = 240

DETAILS = {
    "slug": "mine", "name": "Mine", "family": "Colours", "year": 2026, "authors": "Nobody",
    "citation": "none", "contact": "tester", "licence": {"predictions": "MIT"},
}  # fmt: skip


def beyond(*args: object) -> int:
    try:
        main([str(arg) for arg in args])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """Images, a run over them, and the model that made it."""
    folder = tmp_path_factory.mktemp("verify")
    images = write_validation_images(folder / "images", N)
    model = write_user_model(folder)
    assert beyond("score", model, "--images", images, "--annotations", "real", "--out", folder / "run") == 0
    return images, folder / "run", model


def publish(run: Path, to: Path) -> Path:
    """Make an entry with its records; the entries' folder."""
    prepare(run, DETAILS, to, submitted=date(2026, 1, 1))
    return to / "entries"


def tampered(run: Path, to: Path, rows: int, *, logits: bool = False) -> Path:
    """A run that claims something else on its first images, in a consistent way."""
    shutil.copytree(run, to)
    parts = list(iter_predictions(run))
    whole = Predictions(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in
          ("image_ids", "original_labels", "classes", "logits", "logsumexp"))
    )  # fmt: skip
    classes, values = whole.classes.copy(), whole.logits
    assert values is not None
    order = np.random.default_rng(0).permutation(len(whole))[:rows]
    if logits:
        values = values.copy()
        values[order] += 0.2
    else:
        classes[order, :2] = classes[order, 1::-1]
    for part in records.part_paths(to / "predictions"):
        part.unlink()
    records.write_part(to / "predictions", 0, replace(whole, classes=classes, logits=values).to_arrow())
    return to


def verify(entries: Path, scored: tuple[Path, Path, str], *more: str) -> int:
    images, _, model = scored
    return beyond(
        "leaderboard", "verify", "mine", "--entries", entries, "--records", entries.parent,
        "--images", images, "--model", model, *more,
    )  # fmt: skip


# ------------------------------------------------------------ the command


def test_an_honest_entry_is_verified_and_says_how(
    scored: tuple[Path, Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = publish(scored[1], tmp_path)
    assert verify(entries, scored, "--sample", "200", "--batch-size", "7") == 0
    assert "200 of 200 images agree" in capsys.readouterr().out
    info = read_entry(entries / "mine").info
    found = info.verification
    assert info.status == "verified"
    assert found is not None
    assert (found.n, found.agreed, found.top5_agreed, found.tolerance) == (200, 200, 200, 0.02)
    assert found.differing_at_most == pytest.approx(1 - 0.05 ** (1 / 200))
    assert found.largest_logit_difference is not None
    assert found.largest_logit_difference < 1e-3
    assert set(found.versions) >= {"beyond-accuracy", "torch", "python", "device"}
    assert validate(entries, records=tmp_path).passed
    assert yaml.safe_load((entries / "mine" / "entry.yaml").read_text())["verification"]["seed"] == found.seed


def test_every_verification_draws_other_images(scored: tuple[Path, Path, str], tmp_path: Path) -> None:
    entries = publish(scored[1], tmp_path)
    seeds = set()
    for _ in range(2):
        assert verify(entries, scored, "--sample", "160") == 0
        found = read_entry(entries / "mine").info.verification
        assert found is not None
        seeds.add(found.seed)
    assert len(seeds) == 2


@pytest.mark.parametrize(("rows", "logits"), [(24, False), (24, True)])
def test_claims_that_the_model_does_not_make_are_found(
    scored: tuple[Path, Path, str],
    tmp_path: Path,
    rows: int,
    logits: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    entries = publish(tampered(scored[1], tmp_path / "run", rows, logits=logits), tmp_path)
    assert validate(entries, records=tmp_path).passed, "by themselves the records are consistent"
    before = (entries / "mine" / "entry.yaml").read_bytes()
    assert verify(entries, scored, "--sample", "200", "--seed", "1", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["passed"]
    assert 5 < len(found["mismatches"]) <= rows
    assert found["top1"] == (200 if logits else 200 - len(found["mismatches"]))
    assert (entries / "mine" / "entry.yaml").read_bytes() == before


def test_a_dry_run_changes_nothing(scored: tuple[Path, Path, str], tmp_path: Path) -> None:
    entries = publish(scored[1], tmp_path)
    before = (entries / "mine" / "entry.yaml").read_bytes()
    assert verify(entries, scored, "--sample", "160", "--dry-run") == 0
    assert (entries / "mine" / "entry.yaml").read_bytes() == before


def test_code_of_a_stranger_is_not_run_unless_named(
    scored: tuple[Path, Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = publish(scored[1], tmp_path)
    asked = ["leaderboard", "verify", "mine", "--entries", entries, "--images", scored[0]]
    assert beyond(*asked, "--records", tmp_path) == 2
    assert "read its code" in capsys.readouterr().err
    assert beyond(*asked, "--model", scored[2]) == 2
    assert "name the folder that holds them with --records" in capsys.readouterr().err
    assert verify(entries, scored, "--sample", "20") == 2
    assert "it takes 149" in capsys.readouterr().err


def test_another_models_weights_are_refused(
    scored: tuple[Path, Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(scored[1], run)
    info = runs.read_run(run)
    model = info.model.model_copy(update={"spec": "efficientnet-lite0", "weights_sha256": "f" * 64})
    runs.write_run(run, info.model_copy(update={"model": model}))
    entries = publish(run, tmp_path)
    asked = ["leaderboard", "verify", "mine", "--entries", entries, "--records", tmp_path]
    assert beyond(*asked, "--images", scored[0], "--sample", "200") == 2
    assert "it is another model" in capsys.readouterr().err


# ------------------------------------------------------------ the comparison


def predictions(classes: list[list[int]], logits: list[list[float]] | None) -> Predictions:
    n = len(classes)
    return Predictions(
        image_ids=np.array([f"i{k}" for k in range(n)], dtype=object),
        original_labels=np.zeros(n, dtype=np.int16),
        classes=np.array(classes, dtype=np.int16),
        logits=None if logits is None else np.array(logits, dtype=np.float32),
        logsumexp=None if logits is None else np.zeros(n, dtype=np.float32),
    )


def test_rounding_is_no_disagreement_and_anything_more_is() -> None:
    published = predictions(
        [[0, 1], [0, 1], [0, 1], [0, 1]], [[2.0, 1.99], [2.0, 1.99], [2.0, 1.0], [2.0, 1.0]]
    )
    again = predictions(
        [[1, 0], [0, 1], [1, 0], [0, 1]], [[2.001, 1.995], [2.0, 1.99], [2.5, 2.0], [2.2, 1.0]]
    )
    found = compare(published, again, logit_tolerance=0.05)
    assert (found.n, found.agreed, found.top1) == (4, 2, 2)
    assert found.mismatches == ("i2", "i3")
    assert found.logits == pytest.approx(1.5)
    without = compare(replace(published, logits=None), again)
    assert without.mismatches == ("i0", "i2")
    assert without.logits is None


def test_images_are_compared_by_id() -> None:
    published = predictions([[3], [1], [2]], None)
    again = predictions([[2], [3]], None)
    again = replace(again, image_ids=np.array(["i2", "i0"], dtype=object))
    assert compare(published, again).agreed == 2


@pytest.mark.parametrize(("wrong", "n"), [(0, 500), (1, 500), (9, 500), (20, 20), (3, 149)])
def test_the_bound_is_that_of_clopper_and_pearson(wrong: int, n: int) -> None:
    expected = proportion_confint(wrong, n, alpha=0.1, method="beta")[1]
    assert float(statistics.upper_bound(wrong, n)) == pytest.approx(expected, rel=1e-9)


def test_who_cheats_by_more_than_the_tolerance_passes_at_most_once_in_twenty() -> None:
    for n in (smallest_sample(0.02), 500, 2000):
        wrong = np.random.default_rng(n).binomial(n, 0.0201, size=40_000)
        assert (statistics.upper_bound(wrong, n) <= 0.02).mean() <= 0.055
    assert float(statistics.upper_bound(0, smallest_sample(0.02))) <= 0.02
    assert float(statistics.upper_bound(0, smallest_sample(0.02) - 1)) > 0.02


def test_a_draw_depends_on_its_seed_and_not_on_the_order_of_ids() -> None:
    ids = np.array([f"x{k:04d}" for k in range(1000)], dtype=object)
    one = draw(ids, 50, "mine", "1")
    assert len(set(one)) == 50
    assert np.array_equal(one, draw(ids[::-1], 50, "mine", "1"))
    assert not np.array_equal(one, draw(ids, 50, "mine", "2"))
    drawn = np.concatenate([draw(ids, 100, "mine", seed) for seed in range(300)])
    counts = np.unique(drawn, return_counts=True)[1]
    assert len(counts) == 1000
    assert counts.std() == pytest.approx((30 * 0.9) ** 0.5, rel=0.1), "every image is drawn equally often"
