"""The engine of the criticism track: classifier and images in, records out. Nothing is done twice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annotations.errors import BeyondError
from annotations.judgements import LabelSets
from benchmark import records as parts
from benchmark import runs
from benchmark.attack_engine import choose_images
from benchmark.classifier import Classifier
from benchmark.criticism import mmd_critic, slices
from benchmark.criticism.attributes import keep
from benchmark.criticism.choose import CRITICISM, PROTOTYPE, SHARE, UNKNOWN, WRONG, answers
from benchmark.criticism.distances import DistanceSettings, measure
from benchmark.criticism.evidence import BASELINE, SLICES, answers_of, confidences
from benchmark.criticism.findings import in_discovery
from benchmark.criticism.info import CriticismInfo, DistancesInfo
from benchmark.criticism.records import CRITICISM as FOLDER
from benchmark.criticism.records import distances_of, has_distances, quoted_tier, read_table, repair
from benchmark.criticism.settings import CriticismSettings
from benchmark.engine import Settings
from benchmark.explanations.neighbours import Features, open_features, write_features
from benchmark.images import ImageSet
from benchmark.progress import meter
from benchmark.tracks.robustness import primary_source

OTHER_BUDGET = {"quick": "standard", "standard": "quick", "full": "standard"}
"""The budget that a tier is compared with, to see how firm its distances are."""


@dataclass
class Spent:
    """What was measured now: images, and seconds a suite took for an image, for those that took any."""

    images: int = 0
    seconds_per_image: dict[str, float] = field(default_factory=dict)


def criticize(
    classifier: Classifier,
    images: ImageSet,
    run: Path,
    settings: CriticismSettings,
    *,
    labels: Mapping[str, LabelSets],
    engine: Settings,
    warn: Callable[[str], None],
) -> Spent:
    """Record all that the criticism track is scored from. The run must be locked and hold predictions.

    Args:
        classifier: The run's model.
        images: The run's images.
        run: Its folder.
        settings: What to do.
        labels: Label sets by source.
        engine: Device, batch size, workers, progress.
        warn: Called with one line for whatever the user should know.

    Raises:
        BeyondError: There is no image to criticize, the model has no gradient, or it breaks its contract.
    """
    predicted = answers_of(run)
    rows = choose_images(
        images, skipped=set(runs.skipped_images(run)), ids=settings.ids, limit=settings.limit, warn=warn
    )
    unseen = [i for i in rows if str(images.ids[i]) not in predicted]
    if unseen:
        raise BeyondError(
            f"{run} has no prediction for {len(unseen):,} images (first {images.ids[unseen[0]]}); give "
            "--images the images that the run was made with"
        )
    for path in repair(run):
        warn(f"a part was damaged and is made again; its bytes are kept in {path}")
    for file in settings.files:
        keep(run, file)
        for note in file.notes:
            warn(note)
    runs.save_criticism(
        run, CriticismInfo(attributes=list(settings.attributes), k=settings.k, planned=len(rows))
    )
    before = _time_spent(run)
    how = DistanceSettings(
        tier=settings.tier, batch_size=settings.batch_size, device=engine.device, quiet=engine.quiet
    )
    again = subsample(rows, images.ids, images.labels, settings.stability)
    plan = [(how, rows, "Distances,")]
    if again:
        plan += [
            (replace(how, random=True, seed=1), again, "How firm, seed,"),
            (replace(how, tier=OTHER_BUDGET[how.tier]), again, "How firm, budget,"),
        ]
    for what, which, title in plan:
        measure(
            classifier,
            images,
            which,
            run,
            what,
            predicted=predicted,
            there=_distances_info(run),
            save=partial(runs.save_distances, run),
            warn=warn,
            title=title,
        )
    _propose(classifier, images, rows, run, labels, engine, warn)
    _probe(classifier, images, run, settings, engine, warn)
    after = _time_spent(run)
    spent = Spent(len(rows))
    for key, (measured, seconds) in after.items():
        old = before.get(key, (0, 0.0))
        if measured > old[0]:
            spent.seconds_per_image[key] = (seconds - old[1]) / (measured - old[0])
    return spent


def _distances_info(run: Path) -> list[DistancesInfo]:
    criticism = runs.read_run(run).criticism
    return criticism.distances if criticism else []


def _time_spent(run: Path) -> dict[str, tuple[int, float]]:
    return {info.suite: (info.measured, info.seconds) for info in _distances_info(run)}


def subsample(
    rows: Sequence[int],
    image_ids: npt.NDArray[np.object_],
    labels: npt.NDArray[np.int16],
    size: int,
) -> list[int]:
    """Rows to measure again: whole classes of four images or more, in an order that only a hash knows.

    Where there are no such classes, images one by one. Never more than half of all.
    """
    size = min(size, len(rows) // 2)
    if size < SHARE:
        return []

    def shuffled(text: str) -> bytes:
        return hashlib.sha256(f"again:{text}".encode()).digest()

    members: dict[int, list[int]] = {}
    for i in rows:
        members.setdefault(int(labels[i]), []).append(i)
    classes = sorted((c for c in members if len(members[c]) >= SHARE), key=lambda c: shuffled(str(c)))
    found: list[int] = []
    for c in classes:
        if len(found) + len(members[c]) <= size:
            found += members[c]
    if len(found) < SHARE:
        found = sorted(rows, key=lambda i: shuffled(str(image_ids[i])))[:size]
    return sorted(found)


# ---------------------------------------------------------------------------------------------- features


def _propose(
    classifier: Classifier,
    images: ImageSet,
    rows: Sequence[int],
    run: Path,
    labels: Mapping[str, LabelSets],
    engine: Settings,
    warn: Callable[[str], None],
) -> None:
    """Take penultimate features, and from them the choices of MMD-critic and proposed slices."""
    chosen = images.select(ids=[str(images.ids[i]) for i in rows])
    try:
        features = _features(classifier, chosen, run, engine)
    except BeyondError as error:
        warn(f"no features, so no slices and no MMD-critic beside the distances: {error}")
        return
    at = {image_id: i for i, image_id in enumerate(images.ids)}
    where = np.array([at[str(i)] for i in features.image_ids], dtype=np.int64)
    _write(run, BASELINE, baseline(features, images.labels[where]))
    try:
        table = _slices(features, run, labels)
    except BeyondError as error:
        warn(str(error))
        return
    if table is not None:
        _write(run, SLICES, table)


def _features(classifier: Classifier, images: ImageSet, run: Path, engine: Settings) -> Features:
    """Features of the images, made again only if they are of other images or weights."""
    from benchmark.decoding import Decoder

    home = run / FOLDER
    try:
        there = open_features(home, weights_sha256=classifier.weights_sha256, verify=True)
        if there.info is not None and there.info.images == images.fingerprint:
            return there
    except BeyondError:
        pass
    classifier.module.eval().to(engine.device)
    with (
        meter(f"Features {classifier.name}", len(images), quiet=engine.quiet) as progress,
        Decoder(classifier.preprocessing, workers=engine.workers, batch_size=engine.batch_size) as decoder,
    ):
        return write_features(
            home,
            classifier,
            decoder.batches(chunk.handles for chunk in images.chunks(engine.batch_size)),
            images=images.fingerprint,
            on_batch=lambda batch: progress.advance(len(batch)),
        )


def baseline(features: Features, labels: npt.NDArray[np.int16]) -> pa.Table:
    """What MMD-critic chooses in each class of four images or more: as many as the distances do by default.

    Args:
        features: Penultimate features, in any order.
        labels: int16 (N,), original label of each row.

    Returns:
        Columns image_id, class_index, role (1 prototype, −1 criticism), rank (from 1), sorted by class.
    """
    rows: list[tuple[str, int, int, int]] = []
    ids = features.image_ids
    for c in np.unique(labels).tolist():
        mine = np.flatnonzero(labels == c)
        if len(mine) < SHARE:
            continue
        mine = mine[np.argsort(ids[mine], kind="stable")]
        kernel = mmd_critic.rbf_kernel(features.matrix[mine])
        count = max(len(mine) // SHARE, 1)
        first = mmd_critic.prototypes(kernel, count)
        second = mmd_critic.criticisms(kernel, first, count)
        for role, found in ((PROTOTYPE, first), (CRITICISM, second)):
            rows += [(str(ids[mine[j]]), int(c), int(role), rank) for rank, j in enumerate(found, 1)]
    names = ("image_id", "class_index", "role", "rank")
    types = (pa.string(), pa.int16(), pa.int8(), pa.int16())
    columns = list(zip(*rows)) if rows else [()] * len(names)
    return pa.table({name: pa.array(column, t) for name, column, t in zip(names, columns, types)})


def _slices(features: Features, run: Path, labels: Mapping[str, LabelSets]) -> pa.Table | None:
    """Proposed slices of the images with a distance; None if there are too few images, or no confidences."""
    confidence = confidences(run)
    table = read_table(run) if has_distances(run) else None
    tier = None if table is None else quoted_tier(table)
    if table is None or tier is None or not confidence:
        return None
    distances = distances_of(table, tier)
    order = {str(i): row for row, i in enumerate(features.image_ids)}
    distances = distances.take(np.array([str(i) in order for i in distances.image_ids], dtype=bool))
    primary = primary_source(labels)
    answer = answers(distances, None if primary is None else labels[primary])
    where = np.array([order[str(i)] for i in distances.image_ids], dtype=np.int64)
    proposal = slices.propose(
        cast("npt.NDArray[np.floating]", _Rows(features.matrix, where)),
        answer == WRONG,
        np.array([confidence[str(i)] for i in distances.image_ids]),
        answer != UNKNOWN,
        in_discovery(distances.image_ids),
    )
    if proposal is None:
        return None
    inside = proposal.member >= 0
    return pa.table(
        {
            "image_id": pa.array(distances.image_ids.astype(str), pa.string()),
            "slice": pa.array(proposal.member, pa.int16()),
            "weight": pa.array(np.where(inside, proposal.weight, 0).astype(np.float32), pa.float32()),
        }
    )


class _Rows:
    """Some rows of a memory-mapped matrix, in a given order, read when they are asked for."""

    def __init__(self, matrix: npt.NDArray[np.float32], rows: npt.NDArray[np.int64]) -> None:
        self._matrix, self._rows = matrix, rows
        self.shape = (len(rows), matrix.shape[1])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: slice | npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
        return self._matrix[self._rows[index]]


def _write(run: Path, kind: str, table: pa.Table) -> None:
    """Replace the records of one kind by one part."""
    folder = run / FOLDER / kind
    old = parts.part_paths(folder)
    new = parts.write_part(folder, 0, table)
    for path in old:
        if path != new:
            path.unlink()


# ------------------------------------------------------------------------------------------------ probes


def _probe(
    classifier: Classifier,
    images: ImageSet,
    run: Path,
    settings: CriticismSettings,
    engine: Settings,
    warn: Callable[[str], None],
) -> None:
    """Run the standard probes that need the model; one that cannot run costs a line, not the track."""
    from benchmark.probes import execution, get_probe

    wanted = [get_probe(name) for name in settings.probes]
    if settings.cue_conflict is not None and "cue-conflict" not in settings.probes:
        wanted.append(get_probe("cue-conflict"))
    for probe in wanted:
        if not probe.needs_model:
            continue
        shown, people = images, None
        try:
            if probe.own_images:
                from benchmark.probes.cue_conflict import find_people, open_images

                if settings.cue_conflict is None:
                    raise BeyondError(f"the probe {probe.name} needs images of its own: --cue-conflict DIR")
                shown, people = open_images(settings.cue_conflict), find_people(settings.cue_conflict)
            elif settings.ids is not None or settings.limit is not None:
                shown = images.select(ids=settings.ids, limit=settings.limit)
            execution.observe(
                probe,
                execution.Observation(
                    classifier=classifier,
                    images=shown,
                    folder=execution.folder_of(run, probe),
                    settings=engine,
                    warn=warn,
                    plain=partial(parts.iter_predictions, run),
                    people=people,
                ),
            )
        except BeyondError as error:
            warn(f"probe {probe.name} was not run: {error}")
