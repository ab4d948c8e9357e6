"""The registry of probes: every card is complete and leads to code, and listing imports nothing."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from annotations import sources
from annotations.errors import BeyondError
from benchmark.prediction_files import read_prediction_file
from benchmark.probes import PROBES, ProbeInfo, get_probe
from benchmark.probes.execution import Evidence, ProbeResult, merge, score
from benchmark.scorecard import Metric
from benchmark.tracks import CRITICISM

EVERY = pytest.mark.parametrize("probe", PROBES.values(), ids=list(PROBES))


@EVERY
def test_cards_are_complete_and_lead_to_code(probe: ProbeInfo) -> None:
    assert probe.version >= 1
    assert probe.main_score == probe.metrics[0]
    assert probe.data
    assert probe.licence
    assert probe.citation
    assert callable(probe.load_score())
    assert (probe.load_observe() is not None) == probe.needs_model
    assert probe.references, "every value needs something to be read against"
    assert {r.metric for r in probe.references} <= set(probe.metrics)
    assert all(r.source and r.who for r in probe.references)


@EVERY
def test_the_criticism_track_says_what_each_metric_means(probe: ProbeInfo) -> None:
    assert all(CRITICISM.metric(name).description for name in probe.metrics)


def test_the_main_scores_are_those_of_the_design() -> None:
    assert {p.main_score for p in PROBES.values()} == {
        "shape_bias",
        "watermark_drop",
        "worst_factor_error_ratio",
        "co_occurrence_gap",
    }


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(BeyondError, match="no such probe 'watermarks'; did you mean 'watermark'"):
        get_probe("watermarks")


@EVERY
def test_a_probe_without_records_says_what_to_do(probe: ProbeInfo) -> None:
    with pytest.raises(BeyondError, match=r"run it with --images DIR|--run RUN|--annotations"):
        score(probe, Evidence())


def test_listing_probes_imports_nothing_heavy() -> None:
    code = (
        "import sys; from benchmark.cli import main\n"
        "try: main(['probe'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'timm', 'imagenet_w', 'imagenet_x', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in PROBES)


def test_scoring_recorded_predictions_imports_no_torch(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(
        "file_name,predicted_class\n"
        + "".join(f"ILSVRC2012_val_{i:08d}.JPEG,{i % 1000}\n" for i in range(1, 400))
    )
    code = (
        "import sys; from benchmark.cli import main\n"
        f"try: main(['probe', 'factors', '--predictions', {str(tmp_path / 'p.csv')!r}, '--json'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'timm', 'imagenet_x'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_results_merge_into_one_track() -> None:
    value = Metric(value=0.2, ci_low=0.1, ci_high=0.3, n=50, method="wilson")
    first = ProbeResult("cue-conflict", 1, {"shape_bias": value}, {"cue_conflict_categories": []}, ["a"])
    second = ProbeResult("watermark", 1, {}, {}, ["b"], references=PROBES["watermark"].references)
    metrics, tables, notes = merge([first, second])
    assert metrics == {"shape_bias": value}
    assert notes == ["a", "b"]
    assert [(row["probe"], row["value"]) for row in tables["probes"]] == [
        ("cue-conflict", 0.2),
        ("watermark", None),
    ]
    assert len(tables["probe_references"]) == len(PROBES["watermark"].references)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["factors", "co-occurrence"])
def test_published_models_have_the_values_that_the_cards_quote(shared_data: Path, name: str) -> None:
    files = {
        "AlexNet": "alexnet",
        "VGG-16": "vgg16",
        "ResNet-50": "resnet50",
        "PNASNet-5 Large": "pnasnet5large",
    }
    labels = {"real": sources.load("real")}
    probe = PROBES[name]
    assert [r.who for r in probe.references] == list(files)
    for reference in probe.references:
        predictions = read_prediction_file(shared_data / "predictions" / f"{files[reference.who]}.npy")
        result = score(probe, Evidence(predictions=partial(iter, [predictions]), labels=labels))
        metric = result.metrics[reference.metric]
        assert metric.n == reference.n
        assert (metric.value, metric.ci_low, metric.ci_high) == pytest.approx(
            (reference.value, reference.ci_low, reference.ci_high), abs=6e-5
        )
