"""Shape against texture on cue-conflict images (Geirhos et al. 2019), with people's answers beside it."""

from __future__ import annotations

import csv
import functools
import hashlib
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annotations.classes import NUM_CLASSES
from annotations.errors import BeyondError
from annotations.tables import read_parquet
from benchmark import records
from benchmark.images import ImageSet
from benchmark.probes import CUE_CONFLICT, Reference
from benchmark.probes import people as persons
from benchmark.probes.execution import Evidence, Observation, ProbeResult, record, skipped_note
from benchmark.probes.people import Answers, answers_from_table
from benchmark.records import Predictions
from benchmark.scorecard import Cell, Metric
from benchmark.statistics import wilson

SHOWN = "plain"
PEOPLE = "people"
LAYOUT = "SHAPE/shapeN-textureM.png, e.g. cat/cat4-truck2.png"

_NAME = re.compile(r"(?P<shape>[a-z]+)(?P<of_shape>\d+)-(?P<texture>[a-z]+)(?P<of_texture>\d+)")
_PEOPLE_SCHEMA = pa.schema(
    [("subj", pa.string()), ("image_id", pa.string()), ("object_response", pa.string())]
)


@functools.cache
def categories() -> dict[str, npt.NDArray[np.int64]]:
    """The 16 categories in alphabetical order, each with its ImageNet classes (see `benchmark/data`)."""
    path = Path(__file__).parent.parent / "data" / "sixteen_categories.csv"
    found: dict[str, list[int]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["category"], []).append(int(row["class_index"]))
    return {name: np.array(found[name]) for name in sorted(found)}


def category_probabilities(probabilities: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Mean probability of the ImageNet classes of each category (Geirhos et al. 2018, arXiv:1808.08750).

    The mean, not the sum: otherwise a category with a hundred classes (dog) would win by their number.

    Args:
        probabilities: float (N, 1000), in the class order of ILSVRC2012.

    Returns:
        float (N, 16), columns in the order of `categories`.
    """
    members = np.zeros((NUM_CLASSES, len(categories())))
    for column, classes in enumerate(categories().values()):
        members[classes, column] = 1 / len(classes)
    return np.asarray(probabilities @ members, dtype=np.float64)


def decide(probabilities: npt.NDArray[np.floating]) -> npt.NDArray[np.object_]:
    """The category with the largest mean probability: object (N,) of str; ties go to the first by name.

    Args:
        probabilities: float (N, 1000).
    """
    names = np.array(list(categories()), dtype=object)
    return np.asarray(names[category_probabilities(probabilities).argmax(axis=1)], dtype=object)


def all_probabilities(predictions: Predictions) -> npt.NDArray[np.float64]:
    """Probabilities of all classes in class order, from a record: float (N, 1000).

    Raises:
        BeyondError: The record lacks logits, or keeps only the best classes.
    """
    if predictions.logits is None or predictions.logsumexp is None:
        raise BeyondError("shape bias needs the logits of all classes; these predictions have none")
    if predictions.classes.shape[1] != NUM_CLASSES:
        raise BeyondError(
            f"shape bias needs all {NUM_CLASSES} classes; these records keep {predictions.classes.shape[1]}"
        )
    ranked = np.exp(predictions.logits.astype(np.float64) - predictions.logsumexp[:, None])
    probabilities = np.empty_like(ranked)
    np.put_along_axis(probabilities, predictions.classes.astype(np.intp), ranked, axis=1)
    return probabilities


def cues_of(image_id: str) -> tuple[str, str]:
    """Shape and texture that an image's name says.

    Raises:
        BeyondError: The name does not have the form, or a category is not one of the 16.

    Example:
        >>> cues_of("cat4-truck2")
        ('cat', 'truck')
    """
    match = _NAME.fullmatch(image_id)
    if match is None:
        raise BeyondError(f"{image_id!r} does not say its shape and texture; name files {LAYOUT}")
    for category in (match["shape"], match["texture"]):
        if category not in categories():
            raise BeyondError(
                f"{image_id!r}: {category!r} is not one of the 16 categories ({', '.join(categories())})"
            )
    return match["shape"], match["texture"]


def open_images(folder: Path, *, limit: int | None = None) -> ImageSet:
    """Open a folder of cue-conflict images.

    Args:
        folder: Holds `SHAPE/shapeN-textureM.png`, itself or in a folder `images`.
        limit: Use only so many, spread over all shapes by a hash of their names.

    Raises:
        BeyondError: The layout is another, or no image has cues that differ.
    """
    from benchmark.layouts import IMAGE_SUFFIXES, open_unlabelled

    if not folder.is_dir():
        raise BeyondError(f"there is no folder {folder}; give the folder of cue-conflict images ({LAYOUT})")
    inner = folder / "images"
    root = inner if inner.is_dir() and not any((folder / name).is_dir() for name in categories()) else folder
    files = [
        path.relative_to(root).as_posix()
        for path in sorted(root.glob("*/*"))
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    ]
    if not files:
        raise BeyondError(f"{folder} holds no cue-conflict images; they lie as {LAYOUT}")
    conflicts = 0
    for file in files:
        shape, texture = cues_of(Path(file).stem)
        if Path(file).parent.name != shape:
            raise BeyondError(
                f"{root / file} is named for shape {shape!r}, but lies in another folder; "
                f"they lie as {LAYOUT}"
            )
        conflicts += shape != texture
    if not conflicts:
        raise BeyondError(f"no image in {folder} has a shape and a texture that differ; there is no conflict")
    images = open_unlabelled(_set_name(folder), root, files)
    if limit is None or limit >= len(images):
        return images
    by_hash = sorted(images.ids, key=lambda image_id: hashlib.sha256(image_id.encode()).digest())
    chosen = images.select(ids=by_hash[:limit])
    if all(shape == texture for shape, texture in map(cues_of, chosen.ids)):
        raise BeyondError(f"none of {limit} images has a shape and a texture that differ; raise --limit")
    return chosen


def _set_name(folder: Path) -> str:
    resolved = folder.resolve()
    return resolved.parent.name if resolved.name == "images" else resolved.name


def find_people(folder: Path) -> Path | None:
    """The published answers `human-trials` in or beside a folder of images, if they are there."""
    resolved = folder.resolve()
    for candidate in (resolved / "human-trials", resolved.parent / "human-trials"):
        if candidate.is_dir():
            return candidate
    return None


def observe(observation: Observation) -> None:
    """Record the model's predictions on the images, and people's answers if there are any."""
    for image_id in observation.images.ids:
        cues_of(image_id)
    answers = None if observation.people is None else persons.read_answers(observation.people)
    record(CUE_CONFLICT, observation, SHOWN)
    if answers is not None:
        shutil.rmtree(observation.folder / PEOPLE, ignore_errors=True)
        records.write_part(observation.folder / PEOPLE, 0, _to_arrow(answers))


def _to_arrow(answers: Answers) -> pa.Table:
    person, image = np.nonzero(answers.seen)
    columns = (answers.people[person], answers.image_ids[image], answers.response[person, image])
    return pa.Table.from_arrays([pa.array(c, pa.string()) for c in columns], schema=_PEOPLE_SCHEMA)


def _read_people(folder: Path) -> Answers | None:
    paths = records.part_paths(folder / PEOPLE)
    if not paths:
        return None
    for path in paths:
        if not records.part_is_sound(path):
            raise BeyondError(f"{path} is damaged (checksum); run the probe again with --overwrite")
    types = {field.name: field.type for field in _PEOPLE_SCHEMA}
    table = pa.concat_tables([read_parquet(path, types) for path in paths])
    return answers_from_table(table.to_pandas(), where=str(folder / PEOPLE))


@dataclass(frozen=True)
class Decisions:
    """What was decided on N images.

    Attributes:
        image_ids: object (N,) of str.
        shape: object (N,) of str, category of the shape.
        texture: object (N,) of str, category of the texture.
        decision: object (N,) of str, the category decided for.
    """

    image_ids: npt.NDArray[np.object_]
    shape: npt.NDArray[np.object_]
    texture: npt.NDArray[np.object_]
    decision: npt.NDArray[np.object_]

    @property
    def conflict(self) -> npt.NDArray[np.bool_]:
        """Whether the cues differ: bool (N,)."""
        return np.asarray(self.shape != self.texture, dtype=bool)


def decisions_of(predictions: Iterator[Predictions] | Sequence[Predictions]) -> Decisions:
    """Decisions of a model, from its records part by part."""
    ids, decided = [], []
    for part in predictions:
        ids.append(part.image_ids)
        decided.append(decide(all_probabilities(part)))
    image_ids = np.concatenate(ids)
    cues = np.array([cues_of(image_id) for image_id in image_ids], dtype=object)
    return Decisions(image_ids, cues[:, 0], cues[:, 1], np.concatenate(decided))


def score(evidence: Evidence) -> ProbeResult:
    """Shape bias of a model, from its records, and error consistency with people."""
    if evidence.folder is None:
        raise BeyondError("the probe cue-conflict has no records; run it with --images DIR")
    answers = _read_people(evidence.folder)
    result = score_decisions(decisions_of(records.iter_predictions(evidence.folder / SHOWN)), answers)
    result.notes.extend(skipped_note(evidence.folder / SHOWN))
    return result


def score_decisions(decisions: Decisions, answers: Answers | None = None) -> ProbeResult:
    """Shape bias and error consistency.

    Args:
        decisions: Of the model.
        answers: Of people, on these or on more images.

    The interval of the shape bias is Wilson's over the images decided for one of their cues.
    """
    conflict = decisions.conflict
    n = int(conflict.sum())
    by_shape = conflict & (decisions.decision == decisions.shape)
    by_texture = conflict & (decisions.decision == decisions.texture)
    k_shape, k_texture = int(by_shape.sum()), int(by_texture.sum())
    decided = k_shape + k_texture
    metrics: dict[str, Metric] = {}
    notes = [
        f"Shape bias is over the {decided} of {n} images whose cues differ that were decided for one of "
        f"their cues ({k_shape} shape, {k_texture} texture); {len(conflict) - n} images without conflict are "
        "left out."
    ]
    if n == 0:
        raise BeyondError("no image has a shape and a texture that differ, so there is no shape bias")
    if decided:
        low, high = wilson(k_shape, decided)
        metrics["shape_bias"] = Metric(
            value=k_shape / decided, ci_low=float(low), ci_high=float(high), n=decided, method="wilson"
        )
    low, high = wilson(decided, n)
    metrics["cue_accuracy"] = Metric(
        value=decided / n, ci_low=float(low), ci_high=float(high), n=n, method="wilson"
    )
    rows: list[dict[str, Cell]] = []
    for category in categories():
        of = conflict & (decisions.shape == category)
        if of.any():
            shape, texture = int((of & by_shape).sum()), int((of & by_texture).sum())
            rows.append(
                {
                    "category": category,
                    "n": int(of.sum()),
                    "shape": shape,
                    "texture": texture,
                    "other": int(of.sum()) - shape - texture,
                    "shape_bias": shape / (shape + texture) if shape + texture else None,
                }
            )
    tables: dict[str, list[dict[str, Cell]]] = {"cue_conflict_categories": rows}
    references = CUE_CONFLICT.references
    if answers is not None:
        more = _beside_people(decisions, answers)
        metrics.update(more.metrics)
        tables.update(more.tables)
        notes += more.notes
        # What was computed from the answers at hand replaces what was computed from the published ones.
        references = (*more.references, *(r for r in references if "people" not in r.who))
    else:
        notes.append("No answers of people were given (--people DIR), so there is no error consistency.")
    return ProbeResult(CUE_CONFLICT.name, CUE_CONFLICT.version, metrics, tables, notes, references)


def _beside_people(decisions: Decisions, answers: Answers) -> ProbeResult:
    """Metrics, tables and references that need people's answers."""
    everywhere = np.array([cues_of(image_id) for image_id in answers.image_ids], dtype=object)
    references = list(_bias_references(answers, everywhere, "all their images"))
    same = answers.of(decisions.image_ids)
    seen = same.seen
    if not seen.any():
        note = "The people answered none of these images, so there is no error consistency."
        return ProbeResult(
            CUE_CONFLICT.name, CUE_CONFLICT.version, notes=[note], references=tuple(references)
        )
    cues = np.stack([decisions.shape, decisions.texture], axis=1)
    if set(answers.image_ids) - set(decisions.image_ids):
        references += _bias_references(same, cues, "the same images")
    correct = np.asarray(decisions.decision == decisions.shape, dtype=bool)
    right = np.asarray(same.response == decisions.shape, dtype=bool)
    found = persons.consistency_with_people(correct, right, seen)
    metrics, tables = {}, {}
    if np.isfinite(found.mean):
        metrics["human_error_consistency"] = Metric(
            value=found.mean,
            ci_low=float(found.interval.low),
            ci_high=float(found.interval.high),
            n=found.images,
            method="bootstrap over people and images",
            unit="kappa",
        )
    if np.isfinite(found.among_people):
        references.append(
            Reference(
                who="people with each other",
                metric="human_error_consistency",
                value=found.among_people,
                ci_low=float(found.among_interval.low),
                ci_high=float(found.among_interval.high),
                n=found.images,
                source="computed from the answers given with --people, on the same images",
            )
        )
    conflict = decisions.conflict
    rows: list[dict[str, Cell]] = []
    for p, person in enumerate(answers.people):
        of = conflict & seen[p]
        shape = int((of & (same.response[p] == decisions.shape)).sum())
        texture = int((of & (same.response[p] == decisions.texture)).sum())
        low, high = wilson(shape, shape + texture)
        kappa = float(found.each[p])
        rows.append(
            {
                "person": str(person),
                "n": int(of.sum()),
                "shape": shape,
                "texture": texture,
                "shape_bias": shape / (shape + texture) if shape + texture else None,
                "ci_low": float(low),
                "ci_high": float(high),
                "error_consistency": kappa if np.isfinite(kappa) else None,
            }
        )
    tables["cue_conflict_people"] = rows
    notes = [
        f"Error consistency is Cohen's kappa of naming the shape, mean over {len(answers.people)} people, on "
        f"the {found.images} images that both saw, those without conflict included, as published."
    ]
    return ProbeResult(
        CUE_CONFLICT.name, CUE_CONFLICT.version, metrics, tables, notes, references=tuple(references)
    )


def _bias_references(answers: Answers, cues: npt.NDArray[np.object_], which: str) -> tuple[Reference, ...]:
    """People's shape bias on images with these cues, object (I, 2)."""
    keep = cues[:, 0] != cues[:, 1]
    shape, texture = cues[keep, 0], cues[keep, 1]
    response, seen = answers.response[:, keep], answers.seen[:, keep]
    if not seen.any():
        return ()
    found = persons.peoples_bias(response == shape, response == texture, seen)
    if not np.isfinite(found.pooled):
        return ()
    source = (
        f"computed from the answers given with --people, on {which} ({found.trials:,} trials whose cues "
        "differ); interval: bootstrap over people and images"
    )
    return tuple(
        Reference(
            who=f"{found.people} people, {how}, {which}",
            metric="shape_bias",
            value=value,
            ci_low=float(interval.low),
            ci_high=float(interval.high),
            n=found.trials,
            source=source,
        )
        for how, value, interval in (
            ("pooled", found.pooled, found.pooled_interval),
            ("mean", found.mean, found.mean_interval),
        )
    )
