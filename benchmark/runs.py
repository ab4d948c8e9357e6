"""Runs: folders that hold what one classifier did on one set of images, and the scorecards made from them.

```
RUN/run.json                        what was run
RUN/predictions/part-*.parquet      the records (see `benchmark.records`)
RUN/skipped/part-*.parquet          images that could not be read, with the reason
RUN/robustness/part-*.parquet      verdicts of attacks (see `benchmark.attack_records`)
RUN/adversarials/part-*.parquet    the adversarial images: pixels, never to be published
RUN/criticism/part-*.parquet       distances to the decision boundary; beside them choices, slices, attributes
RUN/probes/NAME/                   records of the standard probes
RUN/agreement/part-*.parquet       what people answered in a study (see `benchmark.agreement`)
RUN/features/, RUN/explanations/   what `beyond explain` makes: pixels, never to be published
RUN/quarantine/                     parts that were damaged and made again
RUN/scorecard.json                  made from the above and the label sets alone
```
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from annotations.classes import NUM_VALIDATION_IMAGES, validation_number
from annotations.errors import BeyondError, first_problem
from annotations.files import write_atomically
from annotations.tables import read_parquet
from benchmark import records
from benchmark.attack_records import ADVERSARIALS, ROBUSTNESS, AttackInfo, has_attacks, read_attacks
from benchmark.criticism.info import CriticismInfo, DistancesInfo
from benchmark.criticism.records import CRITICISM, has_distances
from benchmark.records import Predictions
from benchmark.scorecard import SCORECARD_FILE, AnnotationsInfo, Cell, ImagesInfo, ModelInfo, Scorecard, Track

if TYPE_CHECKING:
    from annotations.judgements import LabelSets
    from benchmark.tracks.criticism import CriticismResult
    from benchmark.tracks.rectified import RectifiedResult
    from benchmark.tracks.robustness import RobustnessResult

RUN_FILE = "run.json"
RUN_VERSION = 1


class RunInfo(BaseModel):
    """What `run.json` holds. `identity()` is what a resumed run must have in common with the first."""

    model_config = ConfigDict(extra="forbid")

    run_version: int = RUN_VERSION
    model: ModelInfo
    images: ImagesInfo
    settings: dict[str, Cell] = Field(
        default_factory=dict, description="What changes numbers: dtype, TF32, seed."
    )
    environment: dict[str, Any] = Field(
        default_factory=dict, description="What does not: batch, device, versions."
    )
    annotations: list[str] = Field(default_factory=list, description="Label sets it was last scored against.")
    attacks: list[AttackInfo] = Field(default_factory=list, description="Suites it was attacked with.")
    criticism: CriticismInfo | None = Field(default=None, description="How it was criticized.")

    def identity(self) -> dict[str, Any]:
        """Model, preprocessing, images and settings; not the machine, the batch size or the annotations."""
        return {
            "model": self.model.spec,
            "weights": self.model.weights_sha256,
            # As JSON has it, where a tuple is a list.
            "preprocessing": self.model.model_dump(mode="json")["preprocessing"],
            "images": self.images.fingerprint,
            **{f"setting {name}": value for name, value in sorted(self.settings.items())},
        }


def fingerprint_of(predictions: Predictions) -> str:
    """SHA-256 over ids and original labels, in id order: which images these are."""
    digest = hashlib.sha256()
    for image_id, label in zip(predictions.image_ids, predictions.original_labels):
        digest.update(f"{image_id},{label}\n".encode())
    return digest.hexdigest()


def is_sample(image_ids: Sequence[str] | np.ndarray) -> bool:
    """True unless the ids are exactly the 50,000 validation images."""
    return len(image_ids) != NUM_VALIDATION_IMAGES or any(validation_number(i) is None for i in image_ids)


def environment() -> dict[str, Any]:
    """Versions, platform and git state, for `run.json`."""
    versions = {}
    for name in (
        "beyond-accuracy",
        "torch",
        "torchvision",
        "timm",
        "numpy",
        "pillow",
        "pyarrow",
        "huggingface-hub",
    ):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    state: dict[str, Any] = {
        "versions": versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    here = Path(__file__).resolve().parent
    if (here.parent / ".git").exists():
        try:
            ask = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
            state["git"] = subprocess.run(
                ask, capture_output=True, text=True, timeout=10, check=True
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            state["git"] = "unknown"
    return state


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold a run folder while writing it, so that two commands never write one folder.

    Raises:
        BeyondError: Another process holds it, or the folder cannot be made or written.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise BeyondError(f"{run} is a file, not a folder; choose another --out") from None
    except NotADirectoryError:
        raise BeyondError(f"{run} lies under a file; choose another --out") from None
    if not os.access(run, os.W_OK):
        raise BeyondError(f"cannot write to {run}: it is read-only for you; choose another folder with --out")
    lock = filelock.FileLock(run / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise BeyondError(
            f"another beyond is writing {run}; wait for it, or choose another folder with --out"
        ) from None
    try:
        yield
    finally:
        lock.release()


def read_run(run: Path) -> RunInfo:
    """Read `run.json`.

    Raises:
        BeyondError: The folder is no run, or its file is damaged or newer than this code.
    """
    path = run / RUN_FILE
    if not run.is_dir():
        raise BeyondError(f"no such run: {run}")
    if not path.is_file():
        raise BeyondError(f"{run} is not a run (it has no {RUN_FILE}); make one with: beyond score")
    try:
        return RunInfo.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise BeyondError(f"{path} is damaged: {first_problem(error)}") from None


def start_or_resume(run: Path, info: RunInfo, *, overwrite: bool = False) -> bool:
    """Make `run.json`, or check that the run that is there is the same one. The run must be `locked`.

    Returns:
        True if there is a run to go on with.

    Raises:
        BeyondError: The run there has another model, preprocessing, image set or setting.
    """
    if overwrite:
        clear(run)
    if not (run / RUN_FILE).is_file():
        if records.part_paths(run / records.PREDICTIONS):
            raise BeyondError(
                f"{run} holds records without {RUN_FILE}; choose another --out, or pass --overwrite"
            )
        write_run(run, info)
        return False
    for stale in run.glob("*/.*.tmp"):
        stale.unlink(missing_ok=True)  # left by a process that was killed while writing
    there = read_run(run)
    old, new = there.identity(), info.identity()
    changed = [name for name in new.keys() | old.keys() if old.get(name) != new.get(name)]
    if changed:
        raise BeyondError(
            f"{run} holds a run with another {', '.join(sorted(changed))}; "
            "choose another --out, or pass --overwrite"
        )
    return True


def write_run(run: Path, info: RunInfo) -> None:
    """Write `run.json` atomically."""
    write_atomically(
        run / RUN_FILE, json.dumps(info.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
    )


def clear(run: Path) -> None:
    """Remove what a run wrote, and nothing else."""
    for name in (
        records.PREDICTIONS,
        records.SKIPPED,
        records.QUARANTINE,
        ROBUSTNESS,
        ADVERSARIALS,
        CRITICISM,
        "probes",
        "agreement",
        "features",
        "explanations",
    ):
        shutil.rmtree(run / name, ignore_errors=True)
    for name in (RUN_FILE, SCORECARD_FILE):
        (run / name).unlink(missing_ok=True)


def finished_ids(run: Path) -> tuple[set[str], list[Path]]:
    """Ids that a run has a record or a skip for, after moving damaged parts to quarantine.

    Returns:
        The ids, and the quarantined parts.
    """
    done: set[str] = set()
    damaged: list[Path] = []
    for kind in (records.PREDICTIONS, records.SKIPPED):
        for path in records.part_paths(run / kind):
            if records.part_is_sound(path):
                done.update(_ids_in(path))
            else:
                damaged.append(records.quarantine(path))
    return done, damaged


def _ids_in(path: Path) -> list[str]:
    types = {"image_id": pa.string()}
    ids: list[str] = read_parquet(path, types, columns=["image_id"], filled=types)["image_id"].to_pylist()
    return ids


def skipped_images(run: Path) -> dict[str, str]:
    """Images that could not be read, and why."""
    found: dict[str, str] = {}
    for path in records.part_paths(run / records.SKIPPED):
        types = {field.name: field.type for field in records.SKIPPED_SCHEMA}
        table = read_parquet(path, types, columns=records.SKIPPED_SCHEMA.names, filled=types)
        found.update(zip(table["image_id"].to_pylist(), table["reason"].to_pylist()))
    return found


def write_predictions(run: Path, predictions: Predictions, info: RunInfo, *, overwrite: bool = False) -> None:
    """Make a run out of predictions that come from elsewhere.

    Raises:
        BeyondError: The folder holds another run (see `start_or_resume`).
    """
    with locked(run):
        if start_or_resume(run, info, overwrite=overwrite):
            done, _ = finished_ids(run)
            if len(done) == len(predictions):
                return
        shutil.rmtree(run / records.PREDICTIONS, ignore_errors=True)
        records.write_part(run / records.PREDICTIONS, 0, predictions.to_arrow(), durable=False)


CHOICES_FILE = "choices.csv"


def write_choices(run: Path, result: CriticismResult) -> None:
    """Write the prototypes and criticisms of every class beside the records that they follow from."""
    write_atomically(run / CRITICISM / CHOICES_FILE, result.choices().to_csv(index=False))


# ---------------------------------------------------------------------------------------------------- scoring


def default_annotations(info: RunInfo) -> list[str]:
    """What a run is scored against when nobody says: what it was last scored against, or else ReaL."""
    if info.annotations:
        return list(info.annotations)
    return ["sample"] if info.images.name == "sample" else ["real"]


def load_labels(specs: Sequence[str]) -> dict[str, LabelSets]:
    """Label sets by source name, in the order given.

    Raises:
        BeyondError: A source is unknown or not here, or two have the same name.
    """
    from annotations.sources import load

    labels: dict[str, LabelSets] = {}
    for spec in specs:
        sets = load(spec)
        if sets.source in labels:
            raise BeyondError(f"annotations {sets.source!r} are named twice in --annotations; leave one out")
        labels[sets.source] = sets
    return labels


def rectified_result(
    run: Path, annotations: Sequence[str] | None = None, *, labels: Mapping[str, LabelSets] | None = None
) -> RectifiedResult:
    """The rectified track of a run, from its records and the label sets alone.

    Args:
        run: The run's folder.
        annotations: Specs as in `--annotations`; None takes `default_annotations`.
        labels: Label sets that are already loaded, instead of `annotations`.
    """
    from benchmark.tracks.rectified import score_rectified

    if labels is None:
        labels = load_labels(annotations or default_annotations(read_run(run)))
    return score_rectified(records.iter_predictions(run), labels)


def save_attack(run: Path, attack: AttackInfo) -> None:
    """Write what an evaluation was into `run.json`, in place of what it said of the same one before."""
    info = read_run(run)
    kept = {old.key: old for old in info.attacks} | {attack.key: attack}
    write_run(run, info.model_copy(update={"attacks": [kept[key] for key in sorted(kept)]}))


def robustness_result(run: Path, labels: Mapping[str, LabelSets]) -> RobustnessResult | None:
    """The robustness track of a run, from its records and the label sets alone; None without attacks."""
    if not has_attacks(run):
        return None
    from benchmark.tracks.robustness import score_robustness

    return score_robustness(read_attacks(run), labels, read_run(run).attacks)


def robustness_track(run: Path, result: RobustnessResult | None) -> Track | None:
    """The robustness track with what people answered about it in a study, if anybody was asked."""
    if result is None:
        return None
    from benchmark.agreement import add_agreement

    return add_agreement(run, result.track)


def save_criticism(run: Path, criticism: CriticismInfo) -> None:
    """Write how a run is criticized into `run.json`, keeping what it says of distances."""
    info = read_run(run)
    there = info.criticism.distances if info.criticism else []
    write_run(run, info.model_copy(update={"criticism": criticism.model_copy(update={"distances": there})}))


def save_distances(run: Path, distances: DistancesInfo) -> None:
    """Write what a measurement was into `run.json`, in place of what it said of the same one before."""
    info = read_run(run)
    criticism = info.criticism or CriticismInfo()
    kept = {old.key: old for old in criticism.distances} | {distances.key: distances}
    criticism = criticism.model_copy(update={"distances": [kept[key] for key in sorted(kept)]})
    write_run(run, info.model_copy(update={"criticism": criticism}))


def criticism_result(run: Path, labels: Mapping[str, LabelSets]) -> CriticismResult | None:
    """The criticism track of a run without its probes, from records and label sets, if it has any."""
    if not has_distances(run):
        return None
    from benchmark.criticism.evidence import gather
    from benchmark.tracks.criticism import score_criticism

    return score_criticism(gather(run, labels, read_run(run).criticism or CriticismInfo()))


def criticism_track(
    run: Path, labels: Mapping[str, LabelSets]
) -> tuple[Track | None, CriticismResult | None]:
    """The criticism track of a run with its probes, and what is behind it; None for a run without either."""
    from benchmark.probes import execution
    from benchmark.tracks import CRITICISM as INFO

    result = criticism_result(run, labels)
    if result is None and not (run / execution.FOLDER).is_dir():
        return None, None
    distances = None
    if result is not None:
        found = result.distances
        distances = dict(zip(map(str, found.image_ids), found.distance.tolist()))
    probes, missing = execution.score_all(run, labels, distances=distances)
    metrics, tables, notes = execution.merge(probes)
    track = result.track if result is not None else Track(version=INFO.version)
    merged = {**track.metrics, **metrics}
    order = [info.name for info in INFO.metrics]
    known = {name: merged[name] for name in order if name in merged}
    track = track.model_copy(
        update={
            "metrics": {**known, **merged},
            "tables": {**track.tables, **{name: rows for name, rows in tables.items() if rows}},
            "notes": [*track.notes, *notes, *missing],
        }
    )
    return track, result


def score_run(
    run: Path, annotations: Sequence[str] | None = None, *, labels: Mapping[str, LabelSets] | None = None
) -> Scorecard:
    """Score a run from its records and write `scorecard.json`.

    The same records and label sets give the same bytes. See `rectified_result` for the arguments.
    """
    info = read_run(run)
    with locked(run):
        specs = list(annotations or default_annotations(info))
        labels = load_labels(specs) if labels is None else labels
        result = rectified_result(run, labels=labels)
        skipped = len(skipped_images(run))
        track = result.track
        if skipped:
            note = f"{skipped} images could not be read and are in no number; see {records.SKIPPED}/."
            track = track.model_copy(update={"notes": [*track.notes, note]})
        attacked = robustness_track(run, robustness_result(run, labels))
        criticized, criticism = criticism_track(run, labels)
        if criticism is not None:
            write_choices(run, criticism)
        versions = info.environment.get("versions", {})
        provenance: dict[str, Cell] = {
            name: versions[name] for name in ("beyond-accuracy", "torch") if name in versions
        }
        provenance.update(info.settings)
        if isinstance(check := info.environment.get("precision_check"), dict):
            provenance["compared_with_float32"] = check["images"]
            provenance["predictions_changed"] = check["changed"]
        scorecard = Scorecard(
            model=info.model,
            images=info.images.model_copy(update={"n": len(result.image_ids), "skipped": skipped}),
            annotations=AnnotationsInfo(sources={name: sets.revision for name, sets in labels.items()}),
            provenance=provenance,
            tracks={"rectified": track}
            | ({"robustness": attacked} if attacked else {})
            | ({"criticism": criticized} if criticized else {}),
        )
        write_atomically(run / SCORECARD_FILE, scorecard.to_json())
        if info.annotations != specs:
            write_run(run, info.model_copy(update={"annotations": specs}))
    return scorecard
