"""Records of distances to the decision boundary: one row an image, suite and seed.

`criticism/part-*.parquet` (see `SCHEMA`). An image's row is written when all attacks of the suite are through
with it, so a row is final; the last row of a key (suite, seed, image) counts. The distance is to the boundary
around what the model *predicts*, right or wrong: how far a mistake is from being put right tells as much as
how far a right answer is from being lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from annotations.errors import BeyondError
from annotations.tables import read_parquet
from benchmark import records

CRITICISM = "criticism"

SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("class_index", pa.int16()),
        ("suite", pa.string()),
        ("seed", pa.int64()),
        ("predicted", pa.int16()),
        ("correct", pa.bool_()),
        ("status", pa.string()),
        ("distance", pa.float64()),
        ("attack", pa.string()),
        ("neighbour", pa.int16()),
    ]
)

STATUSES = ("found", "none", "failed")

TIERS = ("quick", "standard", "full")
"""Budgets, ascending."""

_KEY = ["suite", "seed", "image_id"]


@dataclass(frozen=True)
class Row:
    """How far one image is from the decision boundary.

    Attributes:
        image_id: Id of the image.
        class_index: Its original label.
        suite: Tier of the suite, with `-random` where it began at random points.
        seed: Seed of that randomness.
        predicted: What the model predicts for it.
        correct: Whether that is the original label.
        status: `found`; `none` if no attack left the predicted class; `failed` if the logits are not finite.
        distance: L2 norm, in [0, 1] pixels, of the smallest perturbation found: an upper bound on the
            distance. NaN where there is none.
        attack: The attack that found it, or empty.
        neighbour: The class on the other side, −1 if there is none.
    """

    image_id: str
    class_index: int
    suite: str
    seed: int
    predicted: int
    correct: bool
    status: str
    distance: float
    attack: str
    neighbour: int


@dataclass(frozen=True)
class Distances:
    """Distances of N images under one suite and seed, sorted by image id.

    Attributes:
        image_ids: object (N,) of str.
        labels: int16 (N,), original labels.
        predicted: int16 (N,).
        correct: bool (N,), the prediction is the original label.
        status: object (N,), one of `STATUSES`.
        distance: float64 (N,), upper bound on the L2 distance; infinite where no attack found any, NaN where
            it failed.
        attack: object (N,) of str.
        neighbour: int16 (N,), the class on the other side, −1 if there is none.
    """

    image_ids: npt.NDArray[np.object_]
    labels: npt.NDArray[np.int16]
    predicted: npt.NDArray[np.int16]
    correct: npt.NDArray[np.bool_]
    status: npt.NDArray[np.object_]
    distance: npt.NDArray[np.float64]
    attack: npt.NDArray[np.object_]
    neighbour: npt.NDArray[np.int16]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.image_ids)

    def take(self, rows: npt.NDArray[np.intp] | npt.NDArray[np.bool_]) -> Distances:
        """Some of the images, in the same order."""
        return Distances(
            self.image_ids[rows],
            self.labels[rows],
            self.predicted[rows],
            self.correct[rows],
            self.status[rows],
            self.distance[rows],
            self.attack[rows],
            self.neighbour[rows],
        )


def to_arrow(rows: Sequence[Row]) -> pa.Table:
    """Rows as a table in `SCHEMA`; NaN becomes null."""
    columns = [
        pa.array([getattr(row, field.name) for row in rows], field.type, from_pandas=True) for field in SCHEMA
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def has_distances(run: Path) -> bool:
    """Whether a run has any records of distances."""
    return bool(records.part_paths(run / CRITICISM))


def read_table(run: Path) -> pd.DataFrame:
    """All rows of a run, sorted by suite, seed and image; the last of a key counts.

    Raises:
        BeyondError: There are none, or a part is damaged.
    """
    paths = records.part_paths(run / CRITICISM)
    if not paths:
        raise BeyondError(f"{run} holds no distances; make some with: beyond criticize {run} --images DIR")
    for path in paths:
        if not records.part_is_sound(path):
            raise BeyondError(
                f"{path} is damaged (checksum); run the same beyond criticize command again to repair it"
            )
    frame: pd.DataFrame = pa.concat_tables([_read(path, SCHEMA.names) for path in paths]).to_pandas()
    unknown = set(frame["status"]) - set(STATUSES)
    if unknown:
        raise BeyondError(f"records of distances have a status {min(unknown)!r}; update beyond")
    return frame.drop_duplicates(_KEY, keep="last").sort_values(_KEY, kind="stable").reset_index(drop=True)


def _read(path: Path, names: list[str]) -> pa.Table:
    types = {field.name: field.type for field in SCHEMA}
    filled = [name for name in names if name != "distance"]  # which "none" and "failed" lack
    table = read_parquet(path, types, filled=filled, remedy="run beyond criticize again")
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise BeyondError(f"{path} has no column {missing[0]!r}; run beyond criticize again")
    return table.select(names)


def distances_of(table: pd.DataFrame, suite: str, seed: int = 0) -> Distances:
    """The rows of one suite and seed."""
    part = table[(table["suite"] == suite) & (table["seed"] == seed)]
    status = part["status"].to_numpy(dtype=object)
    distance = part["distance"].to_numpy(dtype=np.float64)
    return Distances(
        image_ids=part["image_id"].to_numpy(dtype=object),
        labels=part["class_index"].to_numpy(dtype=np.int16),
        predicted=part["predicted"].to_numpy(dtype=np.int16),
        correct=part["correct"].to_numpy(dtype=bool),
        status=status,
        distance=np.where(status == "none", np.inf, distance),
        attack=part["attack"].to_numpy(dtype=object),
        neighbour=part["neighbour"].to_numpy(dtype=np.int16),
    )


def quoted_tier(table: pd.DataFrame) -> str | None:
    """The tier whose distances are quoted: the one with the most images, the stronger of two with as many.

    The others were measured on a few images, to see how firm distances are.
    """
    counts = table[(table["seed"] == 0) & table["suite"].isin(TIERS)]["suite"].value_counts()
    return max(counts.index, key=lambda s: (counts[s], TIERS.index(s)), default=None)


def finished(run: Path, suite: str, seed: int) -> set[str]:
    """Ids that have their final row under a suite and seed."""
    done: set[str] = set()
    for path in records.part_paths(run / CRITICISM):
        part = _read(path, _KEY)
        done.update(
            image_id
            for image_id, s, n in zip(*(part[name].to_pylist() for name in ("image_id", "suite", "seed")))
            if s == suite and n == seed
        )
    return done


def write(run: Path, rows: Sequence[Row]) -> None:
    """Append rows as one part. The run must be locked."""
    records.write_part(run / CRITICISM, records.next_index(run / CRITICISM), to_arrow(rows))


def repair(run: Path) -> list[Path]:
    """Move damaged parts out of the way, so that what they held is made again; returns where they are now."""
    paths = records.part_paths(run / CRITICISM)
    return [records.quarantine(path) for path in paths if not records.part_is_sound(path)]


def compact(run: Path) -> None:
    """Write all rows of a run as one sorted part, and remove the parts that it replaces."""
    paths = records.part_paths(run / CRITICISM)
    if len(paths) < 2:
        return
    table = pa.Table.from_pandas(read_table(run), schema=SCHEMA, preserve_index=False)
    table = table.replace_schema_metadata(None)
    records.write_part(run / CRITICISM, records.next_index(run / CRITICISM), table)
    for path in paths:
        path.unlink()
