"""How probes are run and scored. Imports no torch: what runs a model is imported by the probe that does.

```
RUN/probes/NAME/…          records of the probe, made by `observe`
```
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from annotations.classes import NUM_CLASSES
from annotations.errors import BeyondError
from benchmark import records
from benchmark.probes import PROBES, ProbeInfo, Reference
from benchmark.scorecard import Cell, Metric

if TYPE_CHECKING:
    from annotations.judgements import LabelSets
    from benchmark.classifier import Classifier
    from benchmark.engine import Settings
    from benchmark.images import ImageSet
    from benchmark.records import Predictions

FOLDER = "probes"


@dataclass(frozen=True)
class Observation:
    """What a probe needs to look at a model.

    Attributes:
        classifier: The model.
        images: What to show it: the run's images, or the probe's own if it has its own (`open_images`).
        folder: Where the probe keeps its records, `RUN/probes/NAME`; resumed if there are some.
        settings: Device, batch size, workers, progress.
        warn: Called with one line for whatever the user should know.
        plain: Predictions on the same images that are already recorded, part by part, or None.
        people: Folder of people's answers (cue-conflict only), or None.
        overwrite: Throw away what the folder holds, instead of going on with it.
    """

    classifier: Classifier
    images: ImageSet
    folder: Path
    settings: Settings
    warn: Callable[[str], None]
    plain: Callable[[], Iterator[Predictions]] | None = None
    people: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Evidence:
    """What a probe's result is computed from.

    Attributes:
        folder: The probe's own records, `RUN/probes/NAME`, or None.
        predictions: Starts a pass over the model's predictions on the plain images, part by part, or None.
        labels: Label sets by source.
        distances: Distance to the decision boundary by image id, where the criticism track measured it.
    """

    folder: Path | None = None
    predictions: Callable[[], Iterator[Predictions]] | None = None
    labels: Mapping[str, LabelSets] = field(default_factory=dict)
    distances: Mapping[str, float] | None = None


@dataclass(frozen=True)
class ProbeResult:
    """What a probe found; goes into the criticism track of a scorecard.

    Attributes:
        probe: Its name.
        version: Version of its definition.
        metrics: By name; the main score may be absent when the data cannot give it, and a note says why.
        tables: By name, rows of column to cell. Names start with the probe's (`cue_conflict_…`).
        notes: What a reader must know to read the numbers.
        references: Values of people and of published models, those computed now included.
    """

    probe: str
    version: int
    metrics: dict[str, Metric] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Cell]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    references: tuple[Reference, ...] = ()


def folder_of(run: Path, probe: ProbeInfo) -> Path:
    """Where a run keeps the records of a probe."""
    return run / FOLDER / probe.name


def observe(probe: ProbeInfo, observation: Observation) -> None:
    """Run the model as the probe says, and record what it does; resumes. The run must be locked.

    Raises:
        BeyondError: The probe needs other images, a package is missing, or the model breaks its contract.
    """
    function = probe.load_observe()
    if function is None:
        raise BeyondError(f"the probe {probe.name} reads what a run recorded and has nothing to run")
    function(observation)


def record(
    probe: ProbeInfo,
    observation: Observation,
    shown: str,
    *,
    transform: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]] | None = None,
) -> Path:
    """Record the model's predictions on all images, going on where an earlier call stopped.

    Args:
        probe: For which probe.
        observation: What to show to which model.
        shown: What the model sees, e.g. `plain` or `watermark`: the name of the folder inside the probe's.
        transform: What is done to the pixels that the model is about to see, uint8 (N, H, W, 3).

    Returns:
        The folder: `run.json` and `predictions/`, with the logits of all classes.

    Raises:
        BeyondError: The folder holds another model's or other images' predictions, an image cannot be read,
            or the model breaks its contract.
    """
    from benchmark import runs
    from benchmark.engine import predict
    from benchmark.scorecard import ImagesInfo, ModelInfo

    images, folder = observation.images, observation.folder / shown
    settings = replace(observation.settings, top_k=NUM_CLASSES)
    info = runs.RunInfo(
        model=ModelInfo(**observation.classifier.describe()),
        images=ImagesInfo(
            name=images.name, n=len(images), fingerprint=images.fingerprint, sample=images.sample
        ),
        settings={
            "dtype": "float32",
            "top_k": NUM_CLASSES,
            "probe": probe.name,
            "probe_version": probe.version,
            "shown": shown,
        },
        environment={
            **runs.environment(),
            "device": str(settings.device),
            "batch_size": settings.batch_size,
            "workers": settings.workers,
        },
    )
    with runs.locked(folder):
        done: set[str] = set()
        if runs.start_or_resume(folder, info, overwrite=observation.overwrite):
            done, damaged = runs.finished_ids(folder)
            for path in damaged:
                observation.warn(f"a part was damaged and is made again; its bytes are kept in {path}")
        if len(done) < len(images):
            if done:
                observation.warn(f"going on with {folder}: {len(done):,} images have a record already")
            predict(
                observation.classifier,
                images,
                folder,
                settings,
                done=done,
                warn=observation.warn,
                transform=transform,
            )
    return folder


def skipped_note(folder: Path) -> list[str]:
    """A note on images of the probe that could not be read, if there are any."""
    from benchmark.runs import skipped_images

    skipped = len(skipped_images(folder))
    return [f"{skipped} images could not be read and are in no number of this probe."] if skipped else []


def score(probe: ProbeInfo, evidence: Evidence) -> ProbeResult:
    """Compute a probe's result from records and label sets alone.

    Raises:
        BeyondError: What it needs is not there, or is damaged.
    """
    result: ProbeResult = probe.load_score()(evidence)
    return result


def score_all(
    run: Path,
    labels: Mapping[str, LabelSets],
    *,
    distances: Mapping[str, float] | None = None,
    names: Sequence[str] | None = None,
) -> tuple[list[ProbeResult], list[str]]:
    """Score every probe that a run has the records for.

    Args:
        run: The run's folder.
        labels: Label sets by source.
        distances: Distance to the decision boundary by image id.
        names: Only these probes.

    Returns:
        The results, in the order of the registry, and one note for each probe that could not be scored.
    """
    results, notes = [], []
    for probe in PROBES.values():
        if names is not None and probe.name not in names:
            continue
        folder = folder_of(run, probe)
        if probe.needs_model and not folder.is_dir():
            continue
        evidence = Evidence(
            folder=folder if probe.needs_model else None,
            predictions=partial(records.iter_predictions, run),
            labels=labels,
            distances=distances,
        )
        try:
            results.append(score(probe, evidence))
        except BeyondError as error:
            notes.append(f"Probe {probe.name}: {error}.")
    return results, notes


def merge(
    results: Sequence[ProbeResult],
) -> tuple[dict[str, Metric], dict[str, list[dict[str, Cell]]], list[str]]:
    """Metrics, tables and notes of several probes, ready for a `Track`.

    Two tables are added: `probes` (what was run) and `probe_references` (values to read them against).
    """
    metrics: dict[str, Metric] = {}
    tables: dict[str, list[dict[str, Cell]]] = {"probes": [], "probe_references": []}
    notes: list[str] = []
    for result in results:
        info = PROBES[result.probe]
        metrics.update(result.metrics)
        tables.update(result.tables)
        notes.extend(result.notes)
        main = result.metrics.get(info.main_score)
        tables["probes"].append(
            {
                "probe": info.name,
                "version": result.version,
                "question": info.title,
                "main_score": info.main_score,
                "value": None if main is None else main.value,
                "ci_low": None if main is None else main.ci_low,
                "ci_high": None if main is None else main.ci_high,
                "n": None if main is None else main.n,
                "data": info.data,
                "licence": info.licence,
                "citation": info.citation,
            }
        )
        tables["probe_references"] += [
            {
                "probe": info.name,
                "metric": reference.metric,
                "who": reference.who,
                "value": reference.value,
                "ci_low": reference.ci_low,
                "ci_high": reference.ci_high,
                "n": reference.n,
                "source": reference.source,
            }
            for reference in result.references
        ]
    return metrics, tables, notes
