"""The regression gate: drops that were planted, quality that did not change, and how often it is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from annotations.classes import validation_id, validation_labels
from benchmark import records, runs, statistics
from benchmark.attack_records import ROBUSTNESS, Row, to_arrow
from benchmark.cli import main
from benchmark.scorecard import SCORECARD_FILE, Metric, Scorecard, read_scorecard
from leaderboard.check import escape, headline, to_markdown
from leaderboard.entries import read_entry
from leaderboard.gate import decide, gate, rejected

ENTRIES = Path(__file__).parents[2] / "leaderboard" / "entries"
SIMULATIONS = 1000

Ints = npt.NDArray[np.int64]


def beyond(*args: object) -> int:
    try:
        main([str(arg) for arg in args])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def predictions(rng: np.random.Generator, *, right: float) -> Ints:
    """Five classes an image, the label first with probability `right` and second otherwise: made up."""
    labels = validation_labels().astype(np.int64)
    others = (
        labels[:, None] + 1 + rng.permuted(np.tile(np.arange(900), (50, 1)), axis=1)[:, :4].repeat(1000, 0)
    ) % 1000
    rows = np.column_stack([labels, others])
    swap = rng.random(len(rows)) >= right
    rows[swap, :2] = rows[swap, 1::-1]
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs over 50,000 images: a baseline, one a point worse, and two of one quality."""
    folder = tmp_path_factory.mktemp("gate")
    rng = np.random.default_rng(11)
    base = predictions(rng, right=0.76)
    worse = base.copy()
    hit = rng.choice(np.flatnonzero(base[:, 0] == validation_labels()), 500, replace=False)
    worse[hit, :2] = worse[hit, 1::-1]
    one, two = predictions(rng, right=0.76), predictions(rng, right=0.76)
    exchanged = rng.random(len(one)) < 0.5
    files = {
        "base": base,
        "worse": worse,
        "shuffled": np.where(exchanged[:, None], one, two),
        "other": np.where(exchanged[:, None], two, one),
    }
    for name, rows in files.items():
        np.save(folder / f"{name}.npy", rows.astype(np.int16))
    made = [folder / f"{name}.npy" for name in files]
    assert beyond("score", "--predictions", *made, "--annotations", "real", "--out", folder / "runs") == 0
    return folder / "runs"


# --------------------------------------------------------------------------------------- planted and shuffled


def test_a_planted_drop_of_one_point_fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert beyond("check", folder / "worse", "--baseline", folder / "base") == 1
    text = capsys.readouterr().out
    assert "FAILED" in text
    assert "-1.00" in text
    assert max(len(line) for line in text.splitlines() if "%" in line or "top-" in line) <= 130
    found = gate(folder / "worse", folder / "base")
    top1 = next(row for row in found.rows if row.metric == "top1")
    assert found.paired
    assert top1.difference == pytest.approx(-0.01, abs=1e-12)
    assert top1.p_worse == pytest.approx(0.5**500, rel=1e-6)
    assert (top1.verdict, top1.passed) == ("worse", False)


def test_a_planted_drop_fails_against_a_bare_scorecard_which_says_it_is_unpaired(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(folder / "base" / SCORECARD_FILE, tmp_path / "old.json")
    assert beyond("check", folder / "worse", "--baseline", tmp_path / "old.json") == 1
    assert "Unpaired" in capsys.readouterr().out
    found = gate(folder / "worse", tmp_path / "old.json")
    top1 = next(row for row in found.rows if row.metric == "top1")
    a, b = (round(value * 50_000) for value in (top1.run or 0, top1.baseline or 0))
    pooled = (a + b) / 100_000
    z = (a - b) / 50_000 / np.sqrt(pooled * (1 - pooled) * 2 / 50_000)
    assert top1.p_worse == pytest.approx(stats.norm.cdf(z), rel=1e-6)
    paired = next(row for row in gate(folder / "worse", folder / "base").rows if row.metric == "top1")
    assert (paired.detectable or 1) < (top1.detectable or 0) / 3


def test_what_has_no_better_direction_is_not_tested(folder: Path, tmp_path: Path) -> None:
    card = json.loads((folder / "base" / SCORECARD_FILE).read_text())
    gap = {
        "value": -0.05,
        "ci_low": -0.07,
        "ci_high": -0.03,
        "n": 7799,
        "method": "normal",
        "unit": "fraction",
    }
    card["tracks"]["criticism"] = {"version": 1, "metrics": {"co_occurrence_gap": gap}, "tables": {}}
    for name, value in (("old", -0.05), ("new", -0.5)):
        gap |= {"value": value, "ci_low": value - 0.02, "ci_high": value + 0.02}
        (tmp_path / f"{name}.json").write_text(json.dumps(card))
    found = gate(tmp_path / "new.json", tmp_path / "old.json", metrics=["co_occurrence_gap", "top1"])
    assert {row.metric for row in found.rows} == {"top1"}
    assert any("co_occurrence_gap has no better direction" in note for note in found.notes)


def test_quality_that_is_only_shuffled_passes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for pair in (("shuffled", "other"), ("other", "shuffled"), ("base", "base")):
        assert beyond("check", folder / pair[0], "--baseline", folder / pair[1]) == 0
    assert "PASSED" in capsys.readouterr().out


def test_a_drop_within_its_margin_passes_and_can_be_ruled_out(folder: Path) -> None:
    margins = {"all": 0.015}
    found = gate(folder / "worse", folder / "base", margins=margins)
    assert found.passed
    assert {row.verdict for row in found.rows} == {"within"}
    assert gate(folder / "worse", folder / "base", margins=margins, rule="non-inferior").passed
    assert not gate(folder / "worse", folder / "base", margins={"top1": 0.009}).passed
    strict = gate(folder / "worse", folder / "base", margins={"all": 0.0100001}, rule="non-inferior")
    assert not strict.passed  # a drop of a point neither is shown to pass this margin nor ruled out to
    assert {row.verdict for row in strict.rows if not row.passed} == {"not shown"}


# ---------------------------------------------------------------------------- how often it is wrong, or right


def differences(first: str, second: str) -> Ints:
    """For each image, +1, 0 or −1 by metric: which of two published models is right there: (50000, 3)."""
    a, b = (read_entry(ENTRIES / slug).correctness for slug in (first, second))
    assert a is not None
    assert b is not None
    names = ("top1", "real", "mla")
    return np.stack([a.right(name).astype(int) - b.right(name).astype(int) for name in names], axis=1)


def exchange(d: Ints, rng: np.random.Generator, simulations: int) -> tuple[Ints, Ints]:
    """Give each image of two models to run and baseline at random, many times: only_run, only_baseline.

    Then run and baseline are of one quality, with the disagreements of real models, over all metrics at once.
    """
    patterns, counts = np.unique(d, axis=0, return_counts=True)
    heads = rng.binomial(counts, 0.5, size=(simulations, len(counts)))
    tails = counts - heads
    plus, minus = (patterns > 0).astype(np.int64), (patterns < 0).astype(np.int64)
    return heads @ plus + tails @ minus, heads @ minus + tails @ plus


@pytest.mark.parametrize("alpha", [0.05, 0.2])
@pytest.mark.parametrize(
    "pair", [("resnet50", "densenet161"), ("vgg16", "resnet18"), ("resnet152", "alexnet")]
)
def test_false_alarms_are_at_most_alpha(pair: tuple[str, str], alpha: float) -> None:
    only_run, only_base = exchange(differences(*pair), np.random.default_rng(5), SIMULATIONS)
    p = statistics.paired_tails(only_run, only_base, 50_000).lower
    alarms = rejected(p, alpha).any(axis=1).mean()
    # Three binomial standard deviations above alpha over 1,000 simulations.
    assert alarms <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / SIMULATIONS)
    assert alarms >= alpha / 6, "the gate is not merely deaf"


def test_false_alarms_are_at_most_alpha_at_the_edge_of_a_margin() -> None:
    rng = np.random.default_rng(6)
    n, margin, alpha = 50_000, 0.005, 0.05
    cells = rng.multinomial(n, [0.04 - margin, 0.04, 0.92 + margin], size=20_000)
    tails = statistics.paired_tails(cells[:, 0], cells[:, 1], n, margin=margin)
    for p in tails:
        assert (p <= alpha).mean() == pytest.approx(alpha, abs=0.006)


def test_unpaired_false_alarms_are_at_most_alpha() -> None:
    x, y = np.random.default_rng(7).binomial(5000, 0.76, size=(2, 20_000))
    assert (statistics.unpaired_tails(x, 5000, y, 5000).lower <= 0.05).mean() == pytest.approx(
        0.05, abs=0.006
    )


def test_detectable_drops_are_seen_as_often_as_promised(folder: Path) -> None:
    found = gate(folder / "shuffled", folder / "other")
    top1 = next(row for row in found.rows if row.metric == "top1")
    assert top1.detectable is not None
    only = round((0.24 * 0.76 * 2) * 50_000) / 2 / 50_000
    probabilities = [only - top1.detectable / 2, only + top1.detectable / 2]
    cells = np.random.default_rng(8).multinomial(50_000, [*probabilities, 1 - sum(probabilities)], size=4000)
    p = statistics.paired_tails(cells[:, 0], cells[:, 1], 50_000).lower
    assert (p <= 0.05 / len(found.rows)).mean() == pytest.approx(0.8, abs=0.05)


# ------------------------------------------------------------------------------------------------- robustness


def attacked(run: Path, to: Path, robust: npt.NDArray[np.bool_], *, suite: str = "quick") -> Path:
    """A copy of a run with made-up verdicts of attacks on its first images."""
    shutil.copytree(run, to)
    labels = validation_labels().astype(int).tolist()
    rows = [
        Row(
            image_id=validation_id(number + 1),
            original_label=labels[number],
            threat="linf",
            epsilon=4 / 255,
            suite=suite,
            objective="original",
            status="robust" if stands else "broken",
            attack="" if stands else "apgd",
            clean_class=labels[number],
            adversarial_class=-1 if stands else (labels[number] + 500) % 1000,
            distance=float("nan") if stands else 0.01,
            inside=(labels[number],),
        )
        for number, stands in enumerate(robust.tolist())
    ]
    records.write_part(to / ROBUSTNESS, 0, to_arrow(rows))
    return to


def test_robustness_is_tested_pair_by_pair(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    robust = np.random.default_rng(9).random(2000) < 0.4
    fewer = robust.copy()
    fewer[np.flatnonzero(robust)[:30]] = False
    fewer[np.flatnonzero(~robust)[:6]] = True
    old, new = (
        attacked(folder / "base", tmp_path / "old", robust),
        attacked(folder / "base", tmp_path / "new", fewer),
    )
    found = gate(new, old)
    row = next(row for row in found.rows if row.metric == "robust_accuracy_original")
    assert (row.track, row.n, row.verdict) == ("robustness", 2000, "worse")
    assert row.difference == pytest.approx(-24 / 2000)
    assert row.p_worse == pytest.approx(stats.binomtest(6, 36, alternative="less").pvalue)
    assert {row.metric for row in found.rows if not row.passed} == {
        "robust_accuracy_original",
        "robust_accuracy_rectified",
    }
    assert gate(old, new).passed
    assert gate(new, old, tracks=["rectified"]).passed
    assert any("robustness was not tested" in note for note in gate(folder / "base", old).notes)
    other = attacked(folder / "base", tmp_path / "other", robust, suite="standard")
    assert beyond("check", new, "--baseline", other) == 2
    assert "Give both the same --eps, --tier" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ the command


def test_json_is_all_that_json_prints(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert beyond("check", folder / "worse", "--baseline", folder / "base", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["passed"], found["paired"], found["correction"]) == (False, True, "holm")
    assert [row["metric"] for row in found["rows"]] == ["top1", "top5", "real_accuracy"]


def test_markdown_is_a_table_in_which_no_name_can_act(folder: Path, tmp_path: Path) -> None:
    hostile = tmp_path / "hostile"
    shutil.copytree(folder / "worse", hostile)
    info = runs.read_run(hostile)
    name = "a|b <img src=x onerror=alert(1)> [x](javascript:1) @someone ![y](z) `c`"
    runs.write_run(hostile, info.model_copy(update={"model": info.model.model_copy(update={"name": name})}))
    summary = tmp_path / "summary.md"
    assert beyond("check", hostile, "--baseline", folder / "base", "--markdown", summary) == 1
    text = summary.read_text()
    assert "### beyond check: failed" in text
    assert not any(part in text for part in ("<img", "](", "@someone", "`", "a|b"))
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert "**WORSE**" in text


def test_escape_keeps_what_is_read_and_nothing_else() -> None:
    assert escape("#1 & <b>") == "&#35;1 &amp; &lt;b&gt;"
    assert escape("plain -1.00 (x)") == "plain -1.00 &#40;x&#41;"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--margin", "top1=x"], "not METRIC=POINTS"),
        (["--margin", "top1=-1"], "0 or more points"),
        (["--margin", "top1=1,top1=2"], "given twice"),
        (["--margin", "top2=1"], "'top2'"),
        (["--metrics", "nonsense"], "'nonsense'"),
        (["--alpha", "0.9"], "0.9"),
        (["--rule", "non-inferior"], "--margin"),
    ],
)
def test_a_wrong_option_is_one_line_and_status_2(
    folder: Path, more: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert beyond("check", folder / "worse", "--baseline", folder / "base", *more) == 2
    assert words in capsys.readouterr().err


def test_what_cannot_be_compared_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = read_scorecard(folder / "base")
    changes: dict[str, Scorecard] = {
        "different images": card.model_copy(
            update={"images": card.images.model_copy(update={"fingerprint": "0" * 64})}
        ),
        "label sets of real": card.model_copy(
            update={"annotations": card.annotations.model_copy(update={"sources": {"real": "sha256:0"}})}
        ),
        "and 9 in the baseline": card.model_copy(
            update={"tracks": {"rectified": card.tracks["rectified"].model_copy(update={"version": 9})}}
        ),
    }
    for words, changed in changes.items():
        (tmp_path / "old.json").write_text(changed.to_json())
        assert beyond("check", folder / "worse", "--baseline", tmp_path / "old.json") == 2
        assert words in capsys.readouterr().err
    assert beyond("check", tmp_path / "nothing", "--baseline", folder / "base") == 2
    assert "there is no" in capsys.readouterr().err
    np.save(tmp_path / "top.npy", np.zeros((2, 5), dtype=np.int16))
    assert beyond("check", tmp_path / "top.npy", "--baseline", folder / "base") == 2
    assert "beyond score --predictions" in capsys.readouterr().err


def test_the_same_images_are_known_by_ids_and_labels_alone(folder: Path, tmp_path: Path) -> None:
    """A model run has a fingerprint that depends on the copies of its files; an entry has not."""
    card = read_scorecard(folder / "worse")
    images = card.images.model_copy(update={"fingerprint": "1" * 64})
    shutil.copytree(folder / "worse", tmp_path / "run")
    (tmp_path / "run" / SCORECARD_FILE).write_text(card.model_copy(update={"images": images}).to_json())
    shutil.copy(folder / "base" / SCORECARD_FILE, tmp_path / "entry.json")
    found = gate(tmp_path / "run", tmp_path / "entry.json")
    assert (found.paired, found.passed) == (False, False)


def test_a_lost_metric_or_track_is_told(folder: Path, tmp_path: Path) -> None:
    card = read_scorecard(folder / "base")
    track = card.tracks["rectified"]
    less = track.model_copy(update={"metrics": {"top1": track.metrics["top1"]}})
    (tmp_path / "new.json").write_text(card.model_copy(update={"tracks": {"rectified": less}}).to_json())
    found = gate(tmp_path / "new.json", folder / "base")
    assert any("top5" in note and "not tested" in note for note in found.notes)


def test_a_metric_without_counts_is_tested_by_its_interval(folder: Path, tmp_path: Path) -> None:
    card = read_scorecard(folder / "base")
    track = card.tracks["rectified"]

    def write(name: str, value: float, half: float) -> Path:
        metric = Metric(
            value=value, ci_low=value - half, ci_high=value + half, n=18_000, method="stratified wilson"
        )
        changed = track.model_copy(update={"metrics": {"mla": metric}})
        path = tmp_path / name
        path.write_text(card.model_copy(update={"tracks": {"rectified": changed}}).to_json())
        return path

    new, old = write("new.json", 0.80, 0.006), write("old.json", 0.82, 0.008)
    row = gate(new, old).rows[0]
    assert row.p_worse == pytest.approx(stats.norm.cdf(-0.02 / (0.01 / 1.959964)), rel=1e-5)
    assert (row.ci_low, row.ci_high) == pytest.approx((-0.03, -0.01), abs=1e-12)


def test_decide_names_the_metrics_that_dropped_and_no_other(folder: Path) -> None:
    found = gate(folder / "worse", folder / "base")
    assert not decide([], alpha=0.05, rule="worse")
    assert "top-1 -1.00" in headline(found) or "ReaL" in headline(found)
    assert [row.metric for row in found.rows if not row.passed] == ["top1", "real_accuracy"]
    assert to_markdown(found).endswith("\n")
