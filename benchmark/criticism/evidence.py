"""Everything that the criticism track is scored from, read from a run."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from annotations.errors import BeyondError
from annotations.judgements import LabelSets
from annotations.tables import read_parquet
from benchmark import records
from benchmark.criticism import attributes
from benchmark.criticism.info import CriticismInfo
from benchmark.criticism.records import CRITICISM, read_table
from benchmark.tracks.criticism import Evidence

SLICES, BASELINE = "slices", "mmd-critic"


def gather(run: Path, labels: Mapping[str, LabelSets], info: CriticismInfo) -> Evidence:
    """Read what a run holds. What is damaged or missing beside the distances costs a note, not the track.

    Args:
        run: A run with records of distances.
        labels: Label sets by source.
        info: How it was criticized.
    """
    notes: list[str] = []
    files: dict[str, pd.DataFrame] = {}
    revisions: dict[str, str] = {}
    factors = None
    for name in info.attributes:
        try:
            if name == "imagenet-x":
                from annotations.sources import imagenet_x_factors

                factors = imagenet_x_factors(prototypes=True)
                revisions[name] = f"imagenet-x {importlib.metadata.version('imagenet-x')}"
            elif name == "co-occurrence":
                revisions[name] = ", ".join(f"{s} {sets.revision}" for s, sets in labels.items())
            else:
                files[name] = attributes.kept(run, name)
                revisions[name] = attributes.revision_of(run, name)
        except BeyondError as error:
            notes.append(f"Attributes {name} are left out: {error}.")
    return Evidence(
        table=read_table(run),
        labels=labels,
        info=info,
        confidence=confidences(run),
        files=files,
        factors=factors,
        revisions=revisions,
        slices=_read(run, SLICES, notes),
        baseline=_read(run, BASELINE, notes),
        notes=notes,
    )


def confidences(run: Path) -> dict[str, float]:
    """Probability that the model gave its answer, by image id; empty without logits."""
    found: dict[str, float] = {}
    for part in records.iter_predictions(run):
        if part.logits is None or part.logsumexp is None:
            return {}
        chances = np.exp(part.logits[:, 0].astype(np.float64) - part.logsumexp)
        found.update(zip(part.image_ids.tolist(), chances.tolist()))
    return found


def answers_of(run: Path) -> dict[str, int]:
    """Predicted class by image id."""
    found: dict[str, int] = {}
    for part in records.iter_predictions(run):
        found.update(zip(part.image_ids.tolist(), part.classes[:, 0].tolist()))
    return found


def _read(run: Path, kind: str, notes: list[str]) -> pd.DataFrame | None:
    paths = records.part_paths(run / CRITICISM / kind)
    if not paths:
        return None
    if not records.part_is_sound(paths[-1]):
        notes.append(f"The {kind} of this run are damaged and left out; run beyond criticize again.")
        return None
    frame: pd.DataFrame = read_parquet(paths[-1], {"image_id": pa.string()}).to_pandas()
    return frame
