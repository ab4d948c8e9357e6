"""Merging label sets of several sources into one, keeping where each verdict comes from and every conflict.

The rules, in the order in which they decide:

1. Sources have a rank: expert verdicts over aggregated votes over single sources (`RANKS`).
2. A pair (image, class) gets its verdict from the best-ranked sources that judged it explicitly. If sources
   of that rank contradict each other (accepted against rejected), the verdict is unsure: nothing at hand says
   who is right. Unsure beside a firm verdict of the same rank leaves the firm one.
3. A closed-world source rejects by implication what it does not list. Any explicit verdict, of any rank,
   overrides that: a person who looked at the pair knows more than a list that does not mention it. Where no
   source judged the pair explicitly, the implied rejection stands: the merged image is closed-world if one of
   the closed-world sources accepts a class in it.
4. A source that accepts nothing in an image (ReaL's empty lists) rejects nothing by implication there: its
   raters agreed on no class, which is not the same as agreeing on a rejection.
5. An image is evaluable if the best-ranked sources that list it say so (one of equal rank suffices) and the
   merge accepts at least one class. So experts can rescue an image that ReaL excludes, and exclude one that
   ReaL evaluates.

The result does not depend on the order in which sources are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from annotations.classes import NUM_CLASSES
from annotations.errors import BeyondError
from annotations.judgements import VERDICT_NAMES, LabelSets, Verdict

EXPERT, VOTES, SINGLE = 0, 1, 2
RANKS = {"mla": EXPERT, "real": VOTES, "label-errors": VOTES}
RANK_NAMES = {EXPERT: "expert verdicts", VOTES: "aggregated votes", SINGLE: "single source"}
RULES_VERSION = 1

_NAMES = np.array([VERDICT_NAMES.get(code, "unjudged") for code in range(4)], dtype=object)


@dataclass(frozen=True)
class Consolidated:
    """The merge of several sources.

    Attributes:
        label_sets: The merged label sets. `pair_source` names every source that gives the pair this verdict,
            best-ranked first, joined with "+". A pair that is unsure because sources of one rank contradict
            each other names all that judged it.
        sources: Names of the sources, best-ranked first.
        conflicts: One row per contradiction of two sources about a pair: image_id, class_index, source_a,
            verdict_a, source_b, verdict_b, implied (one of the two is a closed world's implied rejection),
            merged (the verdict after the merge). Only accepted against rejected is a contradiction.
        status_conflicts: One row per image that one source evaluates and another excludes: image_id,
            source_a, source_b (a evaluates, b excludes), merged (evaluable or excluded).
        coverage: One row per source and one for the merge: source, rank, images, evaluable, closed_world,
            accepted, unsure, rejected (numbers of images and of pairs).
    """

    label_sets: LabelSets
    sources: tuple[str, ...]
    conflicts: pd.DataFrame
    status_conflicts: pd.DataFrame
    coverage: pd.DataFrame

    def conflict_counts(self) -> pd.DataFrame:
        """Contradictions per pair of sources: source_a, source_b, explicit, implied, images, status."""
        rows = []
        for i, first in enumerate(self.sources):
            for second in self.sources[i + 1 :]:
                mine = self.conflicts[
                    (self.conflicts.source_a == first) & (self.conflicts.source_b == second)
                ]
                names = {first, second}
                of_status = self.status_conflicts
                status = of_status.source_a.isin(names) & of_status.source_b.isin(names)
                rows.append(
                    {
                        "source_a": first,
                        "source_b": second,
                        "explicit": int((~mine.implied).sum()),
                        "implied": int(mine.implied.sum()),
                        "images": int(mine.image_id.nunique()),
                        "status": int(status.sum()),
                    }
                )
        columns = ["source_a", "source_b", "explicit", "implied", "images", "status"]
        return pd.DataFrame(rows, columns=columns)


def consolidate(sources: Sequence[LabelSets]) -> Consolidated:
    """Merge label sets (S sources) by the rules in the module's docstring.

    Raises:
        BeyondError: No source is given, one is given twice, or two sources give an image different original
            labels, which means that one of them is about other images.
    """
    sources = sorted(sources, key=lambda source: (RANKS.get(source.source, SINGLE), source.source))
    names = tuple(source.source for source in sources)
    if not sources:
        raise BeyondError("no sources to merge; name at least one, for example: real,mla")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise BeyondError(f"source {twice[0]!r} is given twice; name every source once")
    ranks = np.array([RANKS.get(name, SINGLE) for name in names])

    image_ids = _union([source.image_ids for source in sources])
    n = len(image_ids)
    at = [_positions(image_ids, source) for source in sources]  # row of each source's image in the union
    originals = _merge_original_labels(sources, at, image_ids)

    lists, evaluates, closes = (np.zeros((len(sources), n), dtype=bool) for _ in range(3))
    for s, source in enumerate(sources):
        lists[s, at[s]] = True
        evaluates[s, at[s]] = source.evaluable
        closes[s, at[s]] = source.closed_world & source.evaluable  # rule 4

    keys = [at[s][source.pair_image] * NUM_CLASSES + source.pair_class for s, source in enumerate(sources)]
    pairs: npt.NDArray[np.int64] = np.unique(np.concatenate(keys))
    pair_image, pair_class = pairs // NUM_CLASSES, pairs % NUM_CLASSES
    where = [np.searchsorted(pairs, key) for key in keys]
    explicit = np.zeros((len(sources), len(pairs)), dtype=np.int8)
    for s, source in enumerate(sources):
        explicit[s, where[s]] = source.verdict
    implied = (explicit == Verdict.UNJUDGED) & closes[:, pair_image]

    verdict, contradicted = _decide(explicit, ranks)
    evaluable = _decide_status(lists, evaluates, ranks)
    has_accepted = np.zeros(n, dtype=bool)
    has_accepted[pair_image[verdict == Verdict.ACCEPTED]] = True
    evaluable &= has_accepted

    score = np.full(len(pairs), np.nan, dtype=np.float32)
    votes = np.zeros(len(pairs), dtype=np.int16)
    for s in reversed(range(len(sources))):  # the best-ranked source that agrees is written last
        agrees = sources[s].verdict == verdict[where[s]]
        score[where[s][agrees]] = sources[s].score[agrees]
        votes[where[s][agrees]] = sources[s].votes[agrees]

    merged = LabelSets(
        source="consolidated",
        revision=f"rules {RULES_VERSION}: " + " + ".join(f"{s.source}@{s.revision}" for s in sources),
        image_ids=image_ids,
        original_labels=originals,
        evaluable=evaluable,
        closed_world=np.logical_or.reduce(closes, axis=0),
        pair_image=pair_image.astype(np.int32),
        pair_class=pair_class.astype(np.int16),
        verdict=verdict,
        score=score,
        votes=votes,
        pair_source=_provenance(explicit, verdict, contradicted, names),
    )
    return Consolidated(
        label_sets=merged,
        sources=names,
        conflicts=_pair_conflicts(explicit, implied, merged, names),
        status_conflicts=_status_conflicts(lists, evaluates, merged, names),
        coverage=_coverage([*sources, merged], ranks),
    )


def _union(ids: list[npt.NDArray[np.object_]]) -> npt.NDArray[np.object_]:
    """Sorted union of sorted, unique ids; the usual case, one set that holds all others, costs no sorting."""
    largest = max(ids, key=len)
    index = pd.Index(largest)
    extra = [other[index.get_indexer(pd.Index(other)) < 0] for other in ids if other is not largest]
    if not any(len(other) for other in extra):
        return largest
    return np.array(sorted({*largest, *np.concatenate(extra)}), dtype=object)


def _positions(image_ids: npt.NDArray[np.object_], source: LabelSets) -> npt.NDArray[np.int64]:
    if image_ids is source.image_ids:
        return np.arange(len(image_ids), dtype=np.int64)
    return pd.Index(image_ids).get_indexer(pd.Index(source.image_ids)).astype(np.int64)


def _merge_original_labels(
    sources: Sequence[LabelSets], at: list[npt.NDArray[np.int64]], image_ids: npt.NDArray[np.object_]
) -> npt.NDArray[np.int16]:
    labels = np.full(len(image_ids), -1, dtype=np.int16)
    giver = np.full(len(image_ids), -1)
    for s, source in enumerate(sources):
        ours, known = labels[at[s]], source.original_labels  # both (N of the source,)
        differ = np.flatnonzero((ours >= 0) & (known >= 0) & (ours != known))
        if len(differ):
            i = int(differ[0])
            other = sources[int(giver[at[s][i]])].source
            raise BeyondError(
                f"{other!r} and {source.source!r} give {len(differ)} images different original labels, first "
                f"{source.image_ids[i]} ({ours[i]} against {known[i]}); one of them is about other images"
            )
        new = (ours < 0) & (known >= 0)
        labels[at[s][new]] = known[new]
        giver[at[s][new]] = s
    return labels


def _decide(
    explicit: npt.NDArray[np.int8], ranks: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.bool_]]:
    """Verdict of each pair (P,) from the explicit verdicts (S, P), and where equals contradict: rule 2."""
    verdict = np.zeros(explicit.shape[1], dtype=np.int8)
    contradicted = np.zeros(explicit.shape[1], dtype=bool)
    for rank in np.unique(ranks):
        ours = explicit[ranks == rank]
        accepted = (ours == Verdict.ACCEPTED).any(axis=0)
        rejected = (ours == Verdict.REJECTED).any(axis=0)
        judged = (ours != Verdict.UNJUDGED).any(axis=0)
        decided = np.select(
            [accepted & rejected, accepted, rejected, judged],
            [Verdict.UNSURE, Verdict.ACCEPTED, Verdict.REJECTED, Verdict.UNSURE],
            Verdict.UNJUDGED,
        ).astype(np.int8)
        open_pairs = verdict == Verdict.UNJUDGED
        contradicted |= open_pairs & accepted & rejected
        verdict = np.where(open_pairs, decided, verdict)
    return verdict, contradicted


def _decide_status(
    lists: npt.NDArray[np.bool_], evaluates: npt.NDArray[np.bool_], ranks: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Whether each image (N,) is evaluable by the best-ranked sources that list it: rule 5, first half."""
    result = np.zeros(lists.shape[1], dtype=bool)
    decided = np.zeros(lists.shape[1], dtype=bool)
    for rank in np.unique(ranks):
        listed = lists[ranks == rank].any(axis=0)
        result = np.where(listed & ~decided, evaluates[ranks == rank].any(axis=0), result)
        decided |= listed
    return result


def _provenance(
    explicit: npt.NDArray[np.int8],
    verdict: npt.NDArray[np.int8],
    contradicted: npt.NDArray[np.bool_],
    names: tuple[str, ...],
) -> npt.NDArray[np.object_]:
    """Names of the sources that give each verdict, or of all that judged the pair if equals contradict."""
    gives = np.where(contradicted, explicit != Verdict.UNJUDGED, explicit == verdict)
    # Few combinations of sources occur: name each once and index by its bits.
    bits = (gives * (1 << np.arange(len(names)))[:, None]).sum(axis=0)
    combinations, inverse = np.unique(bits, return_inverse=True)
    texts = ["+".join(name for s, name in enumerate(names) if bit >> s & 1) for bit in combinations.tolist()]
    return np.array(texts, dtype=object)[inverse]


def _pair_conflicts(
    explicit: npt.NDArray[np.int8], implied: npt.NDArray[np.bool_], merged: LabelSets, names: tuple[str, ...]
) -> pd.DataFrame:
    effective = np.where(implied, np.int8(Verdict.REJECTED), explicit)
    frames = []
    for a in range(len(names)):
        for b in range(a + 1, len(names)):
            opposite = (effective[a] == Verdict.ACCEPTED) & (effective[b] == Verdict.REJECTED)
            opposite |= (effective[a] == Verdict.REJECTED) & (effective[b] == Verdict.ACCEPTED)
            found = np.flatnonzero(opposite)
            frames.append(
                pd.DataFrame(
                    {
                        "image_id": merged.image_ids[merged.pair_image[found]],
                        "class_index": merged.pair_class[found],
                        "source_a": names[a],
                        "verdict_a": _NAMES[effective[a, found]],
                        "source_b": names[b],
                        "verdict_b": _NAMES[effective[b, found]],
                        "implied": implied[a, found] | implied[b, found],
                        "merged": _NAMES[merged.verdict[found]],
                    }
                )
            )
    columns = [
        "image_id",
        "class_index",
        "source_a",
        "verdict_a",
        "source_b",
        "verdict_b",
        "implied",
        "merged",
    ]
    if not frames:
        return pd.DataFrame({name: [] for name in columns}).astype({"implied": bool, "class_index": np.int16})
    table = pd.concat(frames, ignore_index=True)
    return table.sort_values(["image_id", "class_index"], kind="stable", ignore_index=True)


def _status_conflicts(
    lists: npt.NDArray[np.bool_], evaluates: npt.NDArray[np.bool_], merged: LabelSets, names: tuple[str, ...]
) -> pd.DataFrame:
    frames = []
    for a in range(len(names)):
        for b in range(len(names)):
            found = np.flatnonzero(evaluates[a] & lists[b] & ~evaluates[b])
            status = np.where(merged.evaluable[found], "evaluable", "excluded").astype(object)
            frames.append(
                pd.DataFrame(
                    {
                        "image_id": merged.image_ids[found],
                        "source_a": names[a],
                        "source_b": names[b],
                        "merged": status,
                    }
                )
            )
    return pd.concat(frames, ignore_index=True).sort_values("image_id", kind="stable", ignore_index=True)


def _coverage(label_sets: list[LabelSets], ranks: npt.NDArray[np.int64]) -> pd.DataFrame:
    rows = []
    for s, source in enumerate(label_sets):
        rows.append(
            {
                "source": source.source,
                "rank": RANK_NAMES[int(ranks[s])] if s < len(ranks) else "merged",
                "images": len(source),
                "evaluable": int(source.evaluable.sum()),
                "closed_world": int(source.closed_world.sum()),
                "accepted": int((source.verdict == Verdict.ACCEPTED).sum()),
                "unsure": int((source.verdict == Verdict.UNSURE).sum()),
                "rejected": int((source.verdict == Verdict.REJECTED).sum()),
            }
        )
    return pd.DataFrame(rows)
