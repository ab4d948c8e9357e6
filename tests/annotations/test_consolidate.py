"""The merge of sources, against the rules written out pair by pair."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotations import sources
from annotations.classes import NUM_CLASSES
from annotations.consolidate import RANKS, SINGLE, consolidate
from annotations.errors import BeyondError
from annotations.judgements import VERDICT_CODES, VERDICT_NAMES, LabelSets, Verdict

World = dict[str, tuple[str, bool, dict[int, str]]]  # image -> (status, closed world, class -> verdict)


def make(name: str, world: World, originals: dict[str, int] | None = None) -> LabelSets:
    judgements = [(image, label, v) for image, (_, _, judged) in world.items() for label, v in judged.items()]
    images = [(i, status, closed, (originals or {}).get(i, -1)) for i, (status, closed, _) in world.items()]
    return LabelSets.from_tables(
        pd.DataFrame(judgements, columns=["image_id", "class_index", "verdict"]),
        pd.DataFrame(images, columns=["image_id", "status", "closed_world", "original_label"]),
        source=name,
        revision="r",
    )


def verdict_of(label_sets: LabelSets, image: str, label: int) -> str:
    code = label_sets.lookup(label_sets.rows(np.array([image], dtype=object)), np.array([label]))[0]
    return VERDICT_NAMES.get(int(code), "unjudged")


def source_of(label_sets: LabelSets, image: str, label: int) -> str:
    row = int(label_sets.rows(np.array([image], dtype=object))[0])
    at = np.flatnonzero((label_sets.pair_image == row) & (label_sets.pair_class == label))
    return str(label_sets.pair_source[at[0]])


def test_an_expert_overrules_votes_explicit_and_implied() -> None:
    real = make("real", {"a": ("evaluable", True, {1: "accepted", 2: "accepted"})})
    mla = make("mla", {"a": ("evaluable", False, {1: "rejected", 3: "accepted", 4: "unsure", 5: "rejected"})})
    merged = consolidate([real, mla])
    sets = merged.label_sets
    assert [verdict_of(sets, "a", c) for c in (1, 2, 3, 4, 5, 6)] == [
        "rejected",  # the expert, against ReaL
        "accepted",  # only ReaL judged it
        "accepted",  # the expert, against ReaL's silence
        "unsure",
        "rejected",
        "rejected",  # nobody judged it; ReaL's closed world stands
    ]
    assert [source_of(sets, "a", c) for c in (1, 2, 3)] == ["mla", "real", "mla"]
    counts = merged.conflict_counts().iloc[0]
    assert (counts.source_a, counts.source_b) == ("mla", "real")
    assert (counts.explicit, counts.implied, counts.images, counts.status) == (1, 1, 1, 0)
    assert merged.conflicts.to_dict("records")[0] == {
        "image_id": "a",
        "class_index": 1,
        "source_a": "mla",
        "verdict_a": "rejected",
        "source_b": "real",
        "verdict_b": "accepted",
        "implied": False,
        "merged": "rejected",
    }


def test_equal_ranks_that_contradict_each_other_leave_the_pair_unsure() -> None:
    real = make(
        "real", {"a": ("evaluable", True, {1: "accepted"}), "b": ("evaluable", True, {1: "accepted"})}
    )
    votes = make("label-errors", {"a": ("evaluable", False, {1: "rejected", 2: "accepted"})})
    single = make("mine", {"a": ("evaluable", False, {1: "unsure", 9: "accepted"})})
    merged = consolidate([single, votes, real]).label_sets
    assert verdict_of(merged, "a", 1) == "unsure"
    assert source_of(merged, "a", 1) == "label-errors+real+mine"
    assert verdict_of(merged, "a", 2) == "accepted"  # explicit before implied, in the same rank
    assert verdict_of(merged, "a", 9) == "accepted"  # explicit before implied, even of a lower rank
    assert verdict_of(merged, "b", 1) == "accepted"


def test_status_is_that_of_the_best_rank_and_an_empty_list_rejects_nothing() -> None:
    real = make(
        "real",
        {
            "rescued": ("excluded", True, {}),
            "problematic": ("evaluable", True, {1: "accepted"}),
            "nowhere": ("excluded", True, {}),
        },
    )
    mla = make(
        "mla",
        {
            "rescued": ("evaluable", False, {1: "accepted"}),
            "problematic": ("excluded", False, {1: "accepted"}),
        },
    )
    merged = consolidate([real, mla])
    sets = merged.label_sets
    assert dict(zip(sets.image_ids, sets.evaluable)) == {
        "nowhere": False,
        "problematic": False,
        "rescued": True,
    }
    assert verdict_of(sets, "rescued", 7) == "unjudged"
    assert verdict_of(sets, "nowhere", 7) == "unjudged"
    assert merged.conflict_counts().iloc[0].status == 2
    assert set(zip(merged.status_conflicts.image_id, merged.status_conflicts.merged)) == {
        ("rescued", "evaluable"),
        ("problematic", "excluded"),
    }


def reference_merge(worlds: dict[str, World], image: str, label: int) -> str:
    """The rules, for one pair, in plain Python."""
    by_rank = sorted({RANKS.get(name, SINGLE) for name in worlds})
    for rank in by_rank:
        said = {
            world[image][2][label]
            for name, world in worlds.items()
            if RANKS.get(name, SINGLE) == rank and image in world and label in world[image][2]
        }
        if {"accepted", "rejected"} <= said:
            return "unsure"
        for verdict in ("accepted", "rejected", "unsure"):
            if verdict in said:
                return verdict
    for world in worlds.values():
        if image in world:
            status, closed, judged = world[image]
            if closed and status == "evaluable" and "accepted" in judged.values():
                return "rejected"
    return "unjudged"


def reference_status(worlds: dict[str, World], image: str) -> bool:
    listing = {n: w[image] for n, w in worlds.items() if image in w}
    best = min(RANKS.get(name, SINGLE) for name in listing)
    ok = any(
        status == "evaluable" and "accepted" in judged.values()
        for name, (status, _, judged) in listing.items()
        if RANKS.get(name, SINGLE) == best
    )
    return ok and any(reference_merge(worlds, image, label) == "accepted" for label in range(4))


WORLDS = st.dictionaries(
    st.sampled_from(["a", "b", "c"]),
    st.tuples(
        st.sampled_from(["evaluable", "evaluable", "excluded"]),
        st.booleans(),
        st.dictionaries(st.integers(0, 3), st.sampled_from(list(VERDICT_CODES))),
    ),
)


@given(
    st.dictionaries(st.sampled_from(["real", "mla", "label-errors", "x", "y"]), WORLDS, min_size=1),
    st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_merge_equals_the_rules_pair_by_pair(worlds: dict[str, World], random: object) -> None:
    given_sources = [make(name, world) for name, world in worlds.items()]
    merged = consolidate(given_sources)
    sets = merged.label_sets
    images = sorted({image for world in worlds.values() for image in world})
    assert sets.image_ids.tolist() == images
    for image, label in itertools.product(images, range(5)):
        assert verdict_of(sets, image, label) == reference_merge(worlds, image, label)
    for row, image in enumerate(images):
        assert bool(sets.evaluable[row]) == reference_status(worlds, image)

    # The order of the sources changes nothing, and the result is a valid source by itself.
    again = consolidate(given_sources[::-1])
    pd.testing.assert_frame_equal(merged.conflicts, again.conflicts)
    pd.testing.assert_frame_equal(merged.status_conflicts, again.status_conflicts)
    assert sets.pair_source.tolist() == again.label_sets.pair_source.tolist()
    assert sets.revision == again.label_sets.revision
    round_trip = LabelSets.from_tables(*sets.to_tables(), source="consolidated", revision="r")
    np.testing.assert_array_equal(round_trip.verdict, sets.verdict)
    np.testing.assert_array_equal(round_trip.evaluable, sets.evaluable)

    # Every conflict is one, and none is missing.
    found = {(c.image_id, c.class_index, c.source_a, c.source_b) for c in merged.conflicts.itertuples()}
    expected = set()
    for first, second in itertools.combinations(merged.sources, 2):
        alone = {name: {name: worlds[name]} for name in (first, second)}
        for image, label in itertools.product(images, range(4)):
            said = {reference_merge(alone[name], image, label) for name in (first, second)}
            explicit = any(label in worlds[n].get(image, ("", False, {}))[2] for n in (first, second))
            if said == {"accepted", "rejected"} and explicit:
                expected.add((image, label, first, second))
    assert found == expected


def test_bad_merges_are_refused() -> None:
    one = make("real", {"a": ("evaluable", True, {1: "accepted"})}, {"a": 1})
    with pytest.raises(BeyondError, match="no sources to merge"):
        consolidate([])
    with pytest.raises(BeyondError, match="'real' is given twice"):
        consolidate([one, one])
    shifted = make("mla", {"a": ("evaluable", True, {1: "accepted"})}, {"a": 2})
    with pytest.raises(BeyondError, match=r"1 images different original labels, first a \(2 against 1\)"):
        consolidate([one, shifted])


@pytest.mark.shared
def test_real_sources_merge_fast_and_conflicts_are_those_counted_directly(shared_data: Path) -> None:
    real = sources.load("real")
    mla = sources.load(f"mla={shared_data / 'multilabel' / 'multilabel.csv'}")
    start = time.perf_counter()
    merged = consolidate([real, mla])
    assert time.perf_counter() - start < 1.5

    def sets_of(source: LabelSets, verdict: Verdict) -> set[int]:
        mine = source.verdict == verdict
        rows = real.rows(source.image_ids)[source.pair_image[mine]]
        return set((rows * NUM_CLASSES + source.pair_class[mine]).tolist())

    accepted_real, accepted_mla = sets_of(real, Verdict.ACCEPTED), sets_of(mla, Verdict.ACCEPTED)
    evaluable_real = set(np.flatnonzero(real.evaluable).tolist())
    counts = merged.conflict_counts().iloc[0]
    assert counts.explicit == len(accepted_real & sets_of(mla, Verdict.REJECTED))
    missing = {key for key in accepted_mla - accepted_real if key // NUM_CLASSES in evaluable_real}
    assert counts.implied == len(missing)
    both = real.rows(mla.image_ids)
    assert counts.status == int((real.evaluable[both] != mla.evaluable).sum())
    # Images that only ReaL lists are untouched.
    alone = np.setdiff1d(np.arange(len(real)), both)
    np.testing.assert_array_equal(merged.label_sets.evaluable[alone], real.evaluable[alone])
