"""The rectified track: published figures, peers, planted truths, and coverage end to end."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from sklearn.metrics import label_ranking_average_precision_score

from annotations.errors import BeyondError
from annotations.judgements import LabelSets, Verdict
from benchmark.records import Predictions
from benchmark.tracks import RECTIFIED, TRACKS, get_track
from benchmark.tracks.rectified import RectifiedResult, score_rectified
from tests.benchmark.tracks import label_sets

# Percent: top-1, top-5, ReaL, top-1 on ReaL's images, MLA (class mean).
PUBLISHED = {
    "resnet50": (76.130, 92.862, 82.958, 78.508, 85.080),
    "alexnet": (56.518, 79.070, 63.061, 58.966, 64.280),
    "vgg16": (71.592, 90.382, 79.040, 74.187, 80.417),
}


def percent(result: RectifiedResult, name: str) -> float:
    return round(100 * result.track.metrics[name].value, 3)


# ------------------------------------------------------------------------------- real predictions


@pytest.mark.shared
@pytest.mark.parametrize("model", list(PUBLISHED))
def test_published_figures(shared_data: Path, model: str) -> None:
    labels = {"real": label_sets.real(shared_data), "mla": label_sets.mla(shared_data)}
    result = score_rectified([label_sets.published(shared_data, model)], labels)
    names = ("top1", "top5", "real_accuracy", "top1_evaluable", "mla")
    assert tuple(percent(result, name) for name in names) == PUBLISHED[model]
    metrics = result.track.metrics
    assert metrics["real_accuracy"].n == metrics["top1_evaluable"].n == 46_837
    assert metrics["rectified_error_reduction"].value == pytest.approx(
        1 - (1 - metrics["real_accuracy"].value) / (1 - metrics["top1_evaluable"].value)
    )
    for metric in metrics.values():
        assert metric.ci_low is not None
        assert metric.ci_high is not None
        assert metric.ci_low < metric.value < metric.ci_high
    if model == "resnet50":
        plain = metrics["mla_plain"]
        assert (plain.n, plain.judged) == (18_692, 18_692 - 54)
        assert plain.value == plain.lower == 15_941 / 18_692
        assert plain.upper == 15_995 / 18_692


@pytest.mark.shared
def test_real_accuracy_equals_timms(shared_data: Path) -> None:
    torch = pytest.importorskip("torch")
    timm = pytest.importorskip("timm.data.real_labels")
    records = label_sets.published(shared_data, "vgg16")
    peer = timm.RealLabelsImagenet([f"{i}.JPEG" for i in records.image_ids], topk=(1, 5))
    scores = torch.arange(5, 0, -1, dtype=torch.float32).repeat(1000, 1)
    for start in range(0, 10_000, 1000):
        classes = torch.from_numpy(records.classes[start : start + 1000].astype(np.int64))
        peer.add_result(torch.zeros(1000, 1000).scatter_(1, classes, scores))
    some = slice(0, 10_000)
    first = Predictions(records.image_ids[some], records.original_labels[some], records.classes[some])
    result = score_rectified([first], {"real": label_sets.real(shared_data)})
    assert 100 * result.track.metrics["real_accuracy"].value == pytest.approx(peer.get_accuracy(1), abs=1e-9)


@pytest.mark.shared
def test_parts_order_and_recorded_ranks_do_not_change_the_numbers(shared_data: Path) -> None:
    whole = label_sets.published(shared_data, "alexnet")
    labels = {"real": label_sets.real(shared_data), "mla": label_sets.mla(shared_data)}
    expected = score_rectified([whole], labels).track

    def parts(order: npt.NDArray[np.intp]) -> list[Predictions]:
        return [
            Predictions(whole.image_ids[rows], whole.original_labels[rows], whole.classes[rows])
            for rows in np.array_split(order, 7)
        ]

    assert score_rectified(parts(np.arange(50_000)), labels).track == expected
    shuffled = score_rectified(parts(np.random.default_rng(0).permutation(50_000)), labels).track
    assert shuffled.tables["anatomy"] == expected.tables["anatomy"]
    for name, metric in expected.metrics.items():  # sums of floats depend on the order in the last digit
        assert shuffled.metrics[name].model_dump() == pytest.approx(metric.model_dump(), abs=1e-12)

    top1 = Predictions(whole.image_ids, whole.original_labels, whole.classes[:, :1])
    alone = score_rectified([top1], labels).track
    assert "top5" not in alone.metrics
    for name in ("top1", "real_accuracy", "mla", "mla_ppi"):
        assert alone.metrics[name] == expected.metrics[name]
    sizes = label_sets.real(shared_data).counts(Verdict.ACCEPTED)
    assert alone.metrics["precision_at_k"].n == (sizes == 1).sum()


@pytest.mark.shared
def test_prediction_powered_estimate_is_near_the_truth_and_narrower(shared_data: Path) -> None:
    """ReaL's verdicts of 30 % of the images play the experts; ReaL itself on all images is the truth."""
    records, truth = label_sets.published(shared_data, "resnet50"), label_sets.real(shared_data)
    judgements, images = truth.to_tables()
    kept = images["image_id"].isin(np.random.default_rng(3).choice(images["image_id"], 15_000, replace=False))
    experts = LabelSets.from_tables(
        judgements[judgements["image_id"].isin(images["image_id"][kept])],
        images[kept],
        source="mla",
        revision="x",
    )
    powered = score_rectified([records], {"mla": experts}).track.metrics
    estimate, classical = powered["mla_ppi"], powered["mla_plain"]
    assert estimate.method == "ppi++"
    assert (estimate.n, classical.n) == (50_000, experts.evaluable.sum())
    exact = score_rectified([records], {"real": truth}).track.metrics["real_accuracy"].value
    assert estimate.ci_low is not None
    assert estimate.ci_high is not None
    assert classical.ci_low is not None
    assert classical.ci_high is not None
    assert estimate.ci_low < exact < estimate.ci_high
    assert estimate.ci_high - estimate.ci_low < 0.9 * (classical.ci_high - classical.ci_low)


@pytest.mark.shared
def test_experts_who_saw_everything_leave_nothing_to_estimate(shared_data: Path) -> None:
    records, experts = label_sets.published(shared_data, "resnet50"), label_sets.mla(shared_data)
    seen = experts.rows(records.image_ids) >= 0
    part = Predictions(records.image_ids[seen], records.original_labels[seen], records.classes[seen])
    metrics = score_rectified([part], {"mla": experts}).track.metrics
    assert "mla_ppi" not in metrics
    assert round(100 * metrics["mla"].value, 3) == PUBLISHED["resnet50"][-1]


# --------------------------------------------------------------------------------- small worlds


SMALL = label_sets.small(
    {
        "a": {1: "accepted"},
        "b": {1: "accepted", 2: "accepted", 7: "rejected"},
        "c": {3: "accepted", 4: "unsure"},
        "d": {5: "accepted"},
        "e": {6: "accepted"},
        "f": {6: "accepted"},
    },
    source="people",
    excluded=("f",),
)
RECORDS = label_sets.predictions(
    {
        "a": (1, [1, 2, 3, 4, 5]),
        "b": (1, [2, 7, 1, 4, 5]),
        "c": (3, [4, 3, 1, 2, 5]),
        "d": (5, [9, 5, 1, 2, 3]),
        "e": (-1, [6, 5, 1, 2, 3]),
        "f": (7, [6, 7, 1, 2, 3]),
        "g": (8, [0, 1, 2, 3, 4]),
    }
)


def test_every_number_of_a_small_world_by_hand() -> None:
    track = score_rectified([RECORDS], {"people": SMALL}).track
    metrics, tables = track.metrics, track.tables
    assert list(metrics) == [
        "top1", "top5", "rectified_error_reduction", "people_accuracy", "precision_at_k", "recall_at_k",
    ]  # fmt: skip
    assert (metrics["top1"].value, metrics["top1"].n) == (1 / 6, 6)  # e has no known label
    assert metrics["top5"].value == 5 / 6
    # Evaluable: a b c d e. Accepted: a b e; c is unsure, d unjudged.
    accuracy = metrics["people_accuracy"]
    assert (accuracy.value, accuracy.lower, accuracy.upper) == (3 / 5, 3 / 5, 4 / 5)
    assert (accuracy.n, accuracy.judged) == (5, 4)
    # On a b c d the label says 3 errors, people 2 (c, d), or 1 if d is right after all.
    reduction = metrics["rectified_error_reduction"]
    assert (reduction.value, reduction.lower, reduction.upper) == pytest.approx((1 / 3, 1 / 3, 2 / 3))
    # k is 2 for b, whose two best are 2 (accepted) and 7 (rejected); d's best is unjudged.
    precision = metrics["precision_at_k"]
    assert (precision.value, precision.upper) == pytest.approx((2.5 / 5, 3.5 / 5))
    assert metrics["recall_at_k"].value == pytest.approx(2.5 / 5)

    assert tables["standard_vs_rectified"][0] | {"ci_low": 0, "ci_high": 0} == {
        "source": "people", "n": 4, "standard_error": 0.75, "rectified_error": 0.5,
        "reduction": pytest.approx(1 / 3), "ci_low": 0, "ci_high": 0,
    }  # fmt: skip
    counts = {row["category"]: row["n"] for row in tables["anatomy"]}
    assert counts == {
        "multi_label": 1, "unclear": 1, "fine_grained": 0, "same_superclass": 0, "co_occurrence": 0,
        "severe": 0, "unjudged": 3,
    }  # fmt: skip
    assert tables["accepted_confusions"] == [
        {
            "original_index": 1,
            "original": "goldfish",
            "predicted_index": 2,
            "predicted": "great white shark",
            "n": 1,
        }
    ]
    assert tables["most_rectified_classes"] == [
        {"class_index": 1, "name": "goldfish", "n": 2, "standard": 0.5, "rectified": 1.0, "gain": 0.5}
    ]
    assert tables["sources"] == [
        {"source": "people", "revision": "test", "images": 6, "evaluable": 5, "accepted": 3, "unsure": 1,
         "rejected": 0, "judged_share": 0.8},
    ]  # fmt: skip
    assert tables["multilabel_quality"][0]["mean_average_precision"] is None


def test_mla_counts_unclear_as_right_and_others_do_not() -> None:
    metrics = score_rectified([RECORDS], {"mla": SMALL, "other": SMALL}).track.metrics
    assert metrics["mla_plain"].value == 4 / 5
    assert metrics["other_accuracy"].value == 3 / 5
    assert "mla" not in metrics  # the class of image e is unknown
    assert "mla_ppi" not in metrics


def test_mla_is_a_mean_over_classes() -> None:
    records = label_sets.predictions({"a": (1, [1]), "b": (1, [2]), "c": (3, [9]), "d": (5, [5])})
    judged = {
        "a": {1: "accepted"},
        "b": {1: "accepted", 2: "rejected"},
        "c": {3: "accepted"},
        "d": {5: "accepted"},
    }
    metric = score_rectified([records], {"mla": label_sets.small(judged, source="mla")}).track.metrics["mla"]
    assert metric.value == metric.lower == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert metric.upper == pytest.approx((1 / 2 + 1 + 1) / 3)


def test_without_annotations_only_the_original_labels_count() -> None:
    result = score_rectified([RECORDS], {})
    assert list(result.track.metrics) == ["top1", "top5"]
    assert result.track.tables == {}
    assert result.category is None
    assert any("--annotations" in note for note in result.track.notes)


def test_a_source_that_knows_none_of_the_images_says_so() -> None:
    elsewhere = label_sets.small({"x": {1: "accepted"}}, source="elsewhere")
    track = score_rectified([RECORDS], {"people": SMALL, "elsewhere": elsewhere}).track
    assert "elsewhere_accuracy" not in track.metrics
    assert [row["source"] for row in track.tables["standard_vs_rectified"]] == ["people"]
    assert any(note.startswith("elsewhere can evaluate none") for note in track.notes)


def test_no_labels_known_at_all() -> None:
    unknown = Predictions(RECORDS.image_ids, np.full(7, -1, dtype=np.int16), RECORDS.classes)
    metrics = score_rectified([unknown], {"people": SMALL}).track.metrics
    assert list(metrics) == ["people_accuracy", "precision_at_k", "recall_at_k"]
    assert metrics["people_accuracy"].value == 3 / 5


def test_a_perfect_model_has_no_error_to_reduce() -> None:
    perfect = label_sets.predictions({"a": (1, [1]), "b": (1, [1]), "c": (3, [3])})
    track = score_rectified([perfect], {"people": SMALL}).track
    assert "rectified_error_reduction" not in track.metrics
    assert track.tables["standard_vs_rectified"][0]["reduction"] is None
    assert track.metrics["top1"].ci_high == 1


@pytest.mark.parametrize(
    ("chunks", "names", "message"),
    [
        ([], ["real"], "no predictions"),
        ([RECORDS], ["hub:a/b", "hub:a-b"], "both give 'hub_a_b_accuracy'"),
        ([RECORDS], ["??"], "no letter or digit"),
        ([label_sets.predictions({"a": (1, [])})], ["real"], "no predicted classes"),
    ],
)
def test_bad_input_is_one_clear_line(chunks: list[Predictions], names: list[str], message: str) -> None:
    with pytest.raises(BeyondError, match=message):
        score_rectified(chunks, dict.fromkeys(names, SMALL))


def test_names_of_hub_sources_make_valid_metric_names() -> None:
    metrics = score_rectified([RECORDS], {"hub:Org/Name@1.0": SMALL}).track.metrics
    assert "hub_org_name_1_0_accuracy" in metrics


# ------------------------------------------------------------------------------------ all logits


def full_rankings(n: int, *, ties: bool) -> tuple[Predictions, LabelSets, npt.NDArray[Any], npt.NDArray[Any]]:
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(n, 1000)).astype(np.float32)
    if ties:
        logits = np.round(logits)
    truth = np.zeros((n, 1000), dtype=int)
    for row in range(n):
        truth[row, rng.choice(1000, rng.integers(1, 9), replace=False)] = 1
    order = np.argsort(-logits, axis=1, kind="stable").astype(np.int16)
    ids = np.array([f"image{i:05d}" for i in range(n)], dtype=object)
    ranked = np.take_along_axis(logits, order.astype(np.intp), axis=1)
    labels = rng.integers(0, 1000, n).astype(np.int16)
    records = Predictions(ids, labels, order, ranked, np.log(np.exp(ranked).sum(axis=1)))
    image, index = np.nonzero(truth)
    judgements = pd.DataFrame({"image_id": ids[image], "class_index": index, "verdict": "accepted"})
    images = pd.DataFrame({"image_id": ids, "status": "evaluable", "closed_world": True})
    return records, LabelSets.from_tables(judgements, images, source="real", revision="x"), logits, truth


@pytest.mark.parametrize("ties", [False, True])
def test_mean_average_precision_equals_scikit_learns(ties: bool) -> None:
    records, labels, logits, truth = full_rankings(300, ties=ties)
    result = score_rectified([records], {"real": labels})
    metric = result.track.metrics["mean_average_precision"]
    assert metric.n == 300
    assert metric.value == pytest.approx(label_ranking_average_precision_score(truth, logits), abs=1e-7)
    row = result.track.tables["multilabel_quality"][0]
    assert row["mean_average_precision"] == metric.value

    k = truth.sum(axis=1)
    found = [truth[i, records.classes[i, : k[i]]].sum() / k[i] for i in range(300)]
    assert result.track.metrics["recall_at_k"].value == pytest.approx(np.mean(found))
    assert result.track.metrics["precision_at_k"].value == pytest.approx(np.mean(found))


@pytest.mark.parametrize("without", ["ranks", "logits", "in one part"])
def test_mean_average_precision_is_absent_without_all_logits(without: str) -> None:
    records, labels, _, _ = full_rankings(20, ties=False)
    assert records.logits is not None
    assert records.logsumexp is not None
    ids, original = records.image_ids, records.original_labels
    if without == "ranks":
        parts = [
            Predictions(ids, original, records.classes[:, :999], records.logits[:, :999], records.logsumexp)
        ]
    elif without == "logits":
        parts = [Predictions(ids, original, records.classes)]
    else:
        first = Predictions(
            ids[:9], original[:9], records.classes[:9], records.logits[:9], records.logsumexp[:9]
        )
        parts = [first, Predictions(ids[9:], original[9:], records.classes[9:])]
    assert "mean_average_precision" not in score_rectified(parts, {"real": labels}).track.metrics


def test_memory_holds_one_chunk_of_logits_at_a_time() -> None:
    records, labels, _, _ = full_rankings(64, ties=False)
    assert records.logits is not None
    assert records.logsumexp is not None
    alive: list[weakref.ref[npt.NDArray[Any]]] = []

    def chunks() -> Iterator[Predictions]:
        assert records.logits is not None
        assert records.logsumexp is not None
        for start in range(0, 64, 8):
            rows = slice(start, start + 8)
            classes, logits = records.classes[rows].copy(), records.logits[rows].copy()
            alive.extend([weakref.ref(classes), weakref.ref(logits)])
            yield Predictions(
                records.image_ids[rows],
                records.original_labels[rows],
                classes,
                logits,
                records.logsumexp[rows],
            )
            del classes, logits
            # The chunk in the caller's loop, and nothing before it.
            assert sum(ref() is not None for ref in alive) <= 2

    result = score_rectified(chunks(), {"real": labels})
    assert result.track == score_rectified([records], {"real": labels}).track
    assert sum(ref() is not None for ref in alive) == 0


# -------------------------------------------------------------------------------------- registry


def test_the_registry_finds_the_track_and_suggests_names() -> None:
    assert TRACKS["rectified"].load() is score_rectified
    assert get_track("rectified") is RECTIFIED
    with pytest.raises(BeyondError, match="did you mean 'rectified'"):
        get_track("rectifed")
    assert RECTIFIED.metric("imagenet_x_accuracy").title == "Accepted by imagenet_x"
    with pytest.raises(BeyondError, match="no metric 'speed'"):
        RECTIFIED.metric("speed")


def test_everything_the_track_gives_is_in_the_registry() -> None:
    records, labels, _, _ = full_rankings(150, ties=False)
    part = label_sets.small({f"image{i:05d}": {3: "accepted"} for i in range(120)}, source="mla")
    track = score_rectified(
        [records], {"real": labels, "mla": part, "consolidated": labels, "x": labels}
    ).track
    named = [info.name.replace("{source}", "x") for info in RECTIFIED.metrics]
    assert list(track.metrics) == named
    assert set(track.tables) == set(RECTIFIED.tables)


# --------------------------------------------------------------------------- coverage, end to end


def world(
    n: int, rng: np.random.Generator, *, judged_share: float = 0.97
) -> tuple[Predictions, dict[str, LabelSets]]:
    """Images of ten classes with a second object in some, two sources of judgements, and an imperfect model.

    Classes 0 to 9 are original labels, 10 to 19 second objects, accepted where they are, and 20 is wrong.
    """
    ids = np.array([f"i{i:06d}" for i in range(n)], dtype=object)
    label = rng.integers(0, 10, n)
    second = rng.random(n) < 0.25
    skill = 0.55 + 0.04 * label
    wins = np.where(second, 0.25, 0.0)
    u = rng.random(n)
    top1 = np.where(u < skill - wins / 2, label, np.where(u < skill + wins / 2, label + 10, 20))
    other = np.where(top1 == label, label + 10, label)
    classes = np.stack([top1, np.where(rng.random(n) < 0.7, other, 21)], axis=1).astype(np.int16)

    def table(rows: npt.NDArray[np.bool_], index: npt.NDArray[Any], verdict: str) -> pd.DataFrame:
        return pd.DataFrame({"image_id": ids[rows], "class_index": index[rows], "verdict": verdict})

    every = np.ones(n, dtype=bool)
    evaluable = rng.random(n) < 0.93
    real = LabelSets.from_tables(
        pd.concat([table(every, label, "accepted"), table(second, label + 10, "accepted")]),
        pd.DataFrame(
            {"image_id": ids, "status": np.where(evaluable, "evaluable", "excluded"), "closed_world": True}
        ),
        source="real",
        revision="x",
    )
    seen = rng.random(n) < 0.4
    sound = np.where(evaluable, rng.random(n) < 0.97, rng.random(n) < 0.4)
    doubt, judged = rng.random(n) < 0.1, rng.random(n) < judged_share
    looked = seen & judged
    experts = LabelSets.from_tables(
        pd.concat(
            [
                table(seen, label, "accepted"),
                table(seen & second, label + 10, "accepted"),
                table(looked & doubt, np.full(n, 20), "unsure"),
                table(looked & ~doubt, np.full(n, 20), "rejected"),
            ]
        ),
        pd.DataFrame({"image_id": ids[seen], "status": np.where(sound[seen], "evaluable", "excluded")}),
        source="mla",
        revision="x",
    )
    return Predictions(ids, label.astype(np.int16), classes), {"real": real, "mla": experts, "other": experts}


def test_every_interval_of_the_track_covers() -> None:
    """800 runs of one world; its truth from a run 400 times as large. 95 % is then measured to ± 0.8 %."""
    rng = np.random.default_rng(6)
    big, labels = world(600_000, rng)
    truth = score_rectified([big], labels).track.metrics
    inside: dict[str, list[bool]] = {}
    for run in range(800):
        if run % 40 == 0:  # one set of tables for 40 runs, since building them is what takes long
            many, labels = world(40 * 1500, rng)
        rows = slice(run % 40 * 1500, run % 40 * 1500 + 1500)
        records = Predictions(many.image_ids[rows], many.original_labels[rows], many.classes[rows])
        for name, metric in score_rectified([records], labels).track.metrics.items():
            assert metric.ci_low is not None
            assert metric.ci_high is not None
            exact = truth[name]
            for end, value in (("", exact.value), (" upper", exact.upper)):
                if value is not None:
                    inside.setdefault(name + end, []).append(metric.ci_low <= value <= metric.ci_high)
    coverage = {name: float(np.mean(hits)) for name, hits in inside.items()}
    assert set(truth) <= set(coverage)
    assert {name: share for name, share in coverage.items() if not 0.93 <= share <= 0.97} == {}
