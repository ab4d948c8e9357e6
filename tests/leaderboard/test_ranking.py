"""Ranks: paired tests against peers, ranges against planted truth, and all of it against the raw files."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as peer_mcnemar
from statsmodels.stats.multitest import multipletests

from annotations.classes import NUM_VALIDATION_IMAGES, package_file, validation_ids
from annotations.errors import BeyondError
from leaderboard.correctness import Correctness
from leaderboard.entries import ENTRIES_FOLDER, Entry, load_entries, read_entry
from leaderboard.masks import Masks
from leaderboard.ranking import (
    SECTIONS,
    compare_all,
    holm,
    movement,
    rank_entries,
    significantly_better,
    why_unranked,
)

Bools = npt.NDArray[np.bool_]


def pack(right: Bools) -> list[npt.NDArray[np.uint8]]:
    return [np.packbits(row, bitorder="little") for row in right]


def peer_p(a: Bools, b: Bools) -> float:
    table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
    return float(peer_mcnemar(table, exact=True).pvalue)


def made_entry(slug: str, right: dict[str, Bools], **info: object) -> Entry:
    """A made-up entry over all images, whose scorecard is that of another: only its bits are looked at."""
    real = read_entry(ENTRIES_FOLDER / "resnet50")
    bits = Correctness.of(validation_ids(), right, annotations={s: "r1" for s in right if s != "top1"})
    entry = Entry(
        real.folder, real.info.model_copy(update={"slug": slug, "name": slug, **info}), real.scorecard
    )
    entry.__dict__["correctness"] = bits
    return entry


def made_masks(mask: Bools) -> Masks:
    everything = np.ones(NUM_VALIDATION_IMAGES, dtype=bool)
    return Masks(
        Correctness.of(validation_ids(), {"top1": everything, "real": mask}, annotations={"real": "r1"})
    )


# ------------------------------------------------------------------------------------------------ the tests


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 200), size=st.integers(2, 5))
def test_mcnemar_is_that_of_statsmodels(seed: int, n: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    right = rng.random((size, n)) < rng.random((size, 1))
    pairs = compare_all(pack(right), n)
    p_values = pairs.p_values()
    for i, j in itertools.permutations(range(size), 2):
        assert pairs.only[i, j] == (right[i] & ~right[j]).sum()
        assert p_values[i, j] == pytest.approx(peer_p(right[i], right[j]), rel=1e-9)
    assert (np.diagonal(p_values) == 1).all()


def test_mcnemar_of_real_entries_is_that_of_statsmodels() -> None:
    slugs = [
        "resnet50",
        "resnet_v1_50_tf",
        "densenet169",
        "vgg16_bn",
        "alexnet",
        "pnasnet5large",
        "nasnet_large_tf",
    ]
    bits = [read_entry(ENTRIES_FOLDER / slug).correctness for slug in slugs]
    found = [b for b in bits if b is not None]
    p_values = compare_all([b.packed["top1"] for b in found], NUM_VALIDATION_IMAGES).p_values()
    seen = []
    for i, j in itertools.combinations(range(len(slugs)), 2):
        expected = peer_p(found[i].right("top1"), found[j].right("top1"))
        assert p_values[i, j] == pytest.approx(expected, rel=1e-6, abs=1e-300)
        seen.append(expected)
    assert min(seen) < 1e-100
    assert max(seen) > 0.01


def test_only_the_images_that_count_are_compared() -> None:
    rng = np.random.default_rng(3)
    n = 20_003  # more than a block, and no multiple of 8
    right, mask = rng.random((4, n)) < 0.7, rng.random(n) < 0.4
    pairs = compare_all(pack(right), n, images=np.packbits(mask, bitorder="little"))
    assert pairs.n == mask.sum()
    assert pairs.right.tolist() == (right & mask).sum(axis=1).tolist()
    for i, j in itertools.permutations(range(4), 2):
        assert pairs.only[i, j] == (right[i] & ~right[j] & mask).sum()


@settings(max_examples=25, deadline=None)
@given(p_values=st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_is_that_of_statsmodels(p_values: list[float]) -> None:
    array = np.array(p_values)
    assert holm(array) == pytest.approx(multipletests(array, method="holm")[1], abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_unjudged_answers_enter_at_their_worst(seed: int) -> None:
    """Against trying every verdict of every unjudged answer of both."""
    rng = np.random.default_rng(seed)
    n = 60
    right = rng.random((2, n)) < [[0.9], [0.5]]
    opened = ~right & (rng.random((2, n)) < 0.1)
    opened[:, np.flatnonzero(opened.any(axis=0))[4:]] = False  # at most 4 images: 2⁸ ways
    rows = [np.flatnonzero(o).astype(np.uint32) for o in opened]
    found = compare_all(pack(right), n, unjudged=rows).p_values()[0, 1]
    p_values, signs = [], []
    free = [(who, image) for who in range(2) for image in rows[who]]
    for choice in itertools.product([False, True], repeat=len(free)):
        tried = right.copy()
        for (who, image), verdict in zip(free, choice):
            tried[who, image] = verdict
        only = int((tried[0] & ~tried[1]).sum()), int((tried[1] & ~tried[0]).sum())
        signs.append(np.sign(only[0] - only[1]))
        p_values.append(peer_p(tried[0], tried[1]))
    if {-1, 1} <= set(signs):
        assert found == 1
    elif 0 not in signs:
        assert found == pytest.approx(max(p_values), rel=1e-9)
    else:
        assert found >= max(p_values) - 1e-9


# ------------------------------------------------------------------------------------------------ the ranks


def test_all_ranges_hold_the_true_rank_at_once() -> None:
    """2,000 boards of six classifiers with known accuracies, two of them equal."""
    rng = np.random.default_rng(11)
    boards, n = 2000, 400
    truth = np.array([0.90, 0.84, 0.80, 0.80, 0.70, 0.50])
    best = np.array([1, 2, 3, 3, 5, 6])
    worst = np.array([1, 2, 4, 4, 5, 6])
    wrong = told = 0
    difficulty = rng.random((boards, 1, n))
    right = 0.5 * difficulty + 0.5 * rng.random((boards, len(truth), n)) < _threshold(truth)[:, None]
    for board in right:
        pairs = compare_all(pack(board), n)
        better = significantly_better(pairs)
        low, high = 1 + better.sum(axis=0), len(truth) - better.sum(axis=1)
        wrong += bool(((low > best) | (high < worst)).any())
        told += int(better.sum())
    assert wrong / boards <= 0.05 + 2 * (0.05 * 0.95 / boards) ** 0.5
    assert told / boards > 6  # of 14 true differences: the ranges are not empty talk


def _threshold(share: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Where the sum of two halves of uniform numbers lies below with probability `share` (triangular)."""
    return np.where(share < 0.5, np.sqrt(share / 2), 1 - np.sqrt((1 - share) / 2))


def test_equal_entries_share_place_and_range() -> None:
    rng = np.random.default_rng(5)
    base = rng.random(NUM_VALIDATION_IMAGES) < 0.7
    worse = base & (rng.random(NUM_VALIDATION_IMAGES) < 0.9)
    entries = [made_entry(slug, {"top1": base}) for slug in ("c", "a")] + [made_entry("b", {"top1": worse})]
    ranking = rank_entries(entries, "top1", masks=made_masks(base))
    assert [(slug, rank.place, rank.text) for slug, rank in ranking.ranks.items()] == [
        ("a", 1, "1–2"),
        ("c", 1, "1–2"),
        ("b", 3, "3"),
    ]
    assert ranking.tied_with("a") == ["c"]
    assert ranking.tied_with("b") == []
    assert (ranking.pairs, ranking.told_apart) == (3, 2)


def test_who_is_listed_without_a_rank_and_why() -> None:
    right = {"top1": np.ones(NUM_VALIDATION_IMAGES, bool), "real": np.ones(NUM_VALIDATION_IMAGES, bool)}
    masks = made_masks(right["real"])
    older = made_entry("older", right)
    assert older.correctness is not None
    older.correctness.annotations["real"] = "r0"
    unranked = {
        "withdrawn": made_entry("withdrawn", right, state="withdrawn"),
        "superseded": made_entry("superseded", right, state="superseded"),
        "sample": made_entry("sample", right, scope="sample"),
        "incomplete": made_entry("incomplete", {"top1": right["top1"]}),
        "older": older,
    }
    ranking = rank_entries([made_entry("fine", right), *unranked.values()], masks=masks)
    assert list(ranking.ranks) == ["fine"]
    assert set(ranking.excluded) == set(unranked)
    assert ranking.excluded["sample"].startswith("a sample of")
    assert ranking.excluded["incomplete"].startswith("incomplete")
    assert ranking.excluded["older"] == "scored against real at r0, not at r1: to be rescored"
    assert why_unranked(unranked["incomplete"], "top1", masks) is None
    with pytest.raises(BeyondError, match="cannot be ranked by 'mla'"):
        rank_entries([], "mla", masks=masks)


def test_samples_are_never_ranked_with_the_whole_set() -> None:
    entries = load_entries()
    for metric in SECTIONS:
        ranking = rank_entries(entries, metric)
        assert not any(slug.startswith("efficientnet-lite") for slug in ranking.ranks)
        assert {slug for slug in ranking.excluded if slug.startswith("efficientnet-lite")} == {
            f"efficientnet-lite{i}" for i in range(3)
        }


def test_ranked_values_are_those_of_the_scorecards() -> None:
    entries = {entry.slug: entry for entry in load_entries()}
    for metric in SECTIONS:
        for slug, rank in rank_entries(list(entries.values()), metric).ranks.items():
            assert rank.value == entries[slug].scorecard.tracks["rectified"].metrics[metric].value


def raw_ranks(right: Bools) -> list[tuple[int, int, int]]:
    """Place and range of each classifier, from scipy's and statsmodels' tests pair by pair."""
    size = len(right)
    pairs = list(itertools.combinations(range(size), 2))
    only = [(int((right[i] & ~right[j]).sum()), int((right[j] & ~right[i]).sum())) for i, j in pairs]
    p_values = [stats.binomtest(a, a + b, 0.5).pvalue if a + b else 1.0 for a, b in only]
    rejected = multipletests(p_values, alpha=0.05, method="holm")[0]
    better_than, worse_than = [0] * size, [0] * size
    for (i, j), (a, b), sure in zip(pairs, only, rejected):
        if sure:
            winner, loser = (i, j) if a > b else (j, i)
            better_than[winner] += 1
            worse_than[loser] += 1
    accuracy = right.sum(axis=1)
    return [
        (1 + int((accuracy > accuracy[i]).sum()), 1 + worse_than[i], size - better_than[i])
        for i in range(size)
    ]


@pytest.mark.shared
def test_ranks_are_those_computed_from_the_raw_files(shared_data: Path) -> None:
    """Prediction files, label file and ReaL's lists, with none of the project's code."""
    files = sorted((shared_data / "predictions").glob("*.npy"))
    labels = np.array((shared_data / "val_labels.txt").read_text().split(), dtype=int)
    real = json.loads(package_file("timm", "data", "_info", "imagenet_real_labels.json").read_bytes())
    accepted = np.zeros((len(labels), 1000), dtype=bool)
    for image, listed in enumerate(real):
        accepted[image, listed] = True
    mask = accepted.any(axis=1)
    predicted = np.stack([np.load(file)[:, 0] for file in files])
    by_label = predicted == labels
    by_people = accepted[np.arange(len(labels)), predicted][:, mask]
    entries = [e for e in load_entries() if e.slug in {file.stem for file in files}]
    for metric, right in (("top1", by_label), ("real_accuracy", by_people)):
        ranks = rank_entries(entries, metric).ranks
        assert len(ranks) == len(files) == 52
        for file, expected, share in zip(files, raw_ranks(right), right.mean(axis=1)):
            found = ranks[file.stem]
            assert (found.place, found.low, found.high) == expected, file.stem
            assert found.value == pytest.approx(share, abs=1e-15)


# ----------------------------------------------------------------------------------------------- movements


def test_a_planted_swap_is_found() -> None:
    """`label` is better by the label, `people` by what people accept; `twin` is `label` but for 20 images."""
    rng = np.random.default_rng(7)
    n = NUM_VALIDATION_IMAGES
    base = rng.random(n) < 0.6
    label = base | (rng.random(n) < 0.05)
    people_top1, people_real = base.copy(), base | (rng.random(n) < 0.10)
    twin_top1, twin_real = label.copy(), label.copy()
    twin_top1[np.flatnonzero(label)[:10]] = False
    twin_real[np.flatnonzero(~label)[:10]] = True
    entries = [
        made_entry("label", {"top1": label, "real": label}),
        made_entry("people", {"top1": people_top1, "real": people_real}),
        made_entry("twin", {"top1": twin_top1, "real": twin_real}),
        made_entry("last", {"top1": base & (rng.random(n) < 0.5), "real": base & (rng.random(n) < 0.5)}),
    ]
    moved = movement(entries, masks=made_masks(np.ones(n, dtype=bool)))
    swaps = {(swap.overtaken, swap.overtakes): swap for swap in moved.swaps}
    assert set(swaps) == {("label", "people"), ("twin", "people"), ("label", "twin")}
    assert swaps["label", "people"].p_value < 1e-6
    assert swaps["label", "people"].before == pytest.approx(label.mean() - base.mean())
    assert swaps["label", "people"].after == pytest.approx(label.mean() - people_real.mean())
    assert swaps["label", "twin"].before == pytest.approx(10 / n)
    moves = {move.slug: move for move in moved.moves}
    assert {slug: move.places for slug, move in moves.items()} == {
        "people": 2,
        "label": -2,
        "twin": 0,
        "last": 0,
    }
    assert moves["people"].significant
    assert not moves["last"].significant
    assert moved.moves[0].slug in ("people", "label")


def test_kendalls_tau_and_the_test_of_a_swap_are_those_of_scipy() -> None:
    entries = {entry.slug: entry for entry in load_entries()}
    moved = movement(list(entries.values()))
    slugs = list(moved.before.ranks)
    assert moved.tau == pytest.approx(
        stats.kendalltau(
            [moved.before.ranks[s].value for s in slugs], [moved.after.ranks[s].value for s in slugs]
        ).statistic
    )
    pairs = len(slugs) * (len(slugs) - 1) // 2
    assert moved.tau == pytest.approx(1 - 2 * len(moved.swaps) / pairs)  # no values are equal
    gains = {slug: _gain(entries[slug]) for slug in slugs}
    couples = list(itertools.combinations(slugs, 2))
    p_values = [stats.ttest_rel(gains[a], gains[b]).pvalue for a, b in couples]
    adjusted = dict(zip(map(frozenset, couples), multipletests(p_values, method="holm")[1]))
    assert sum(swap.p_value <= 0.05 for swap in moved.swaps) > 0
    for swap in moved.swaps:
        expected = adjusted[frozenset((swap.overtaken, swap.overtakes))]
        assert swap.p_value == pytest.approx(expected, rel=1e-6)
        change = gains[swap.overtaken].mean() - gains[swap.overtakes].mean()
        assert swap.after - swap.before == pytest.approx(change)


def _gain(entry: Entry) -> npt.NDArray[np.float64]:
    from leaderboard.masks import load_masks

    bits, mask = entry.correctness, load_masks().correctness.right("real")
    assert bits is not None
    return bits.right("real")[mask].astype(float) - bits.right("top1")[mask]


@pytest.mark.parametrize("slugs", [[], ["resnet50"]])
def test_few_entries_are_no_trouble(slugs: Sequence[str]) -> None:
    entries = [read_entry(ENTRIES_FOLDER / slug) for slug in slugs]
    moved = movement(entries)
    assert [move.after.text for move in moved.moves] == ["1"] * len(slugs)
    assert moved.swaps == []
    assert np.isnan(moved.tau)
