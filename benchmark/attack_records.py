"""Records of attacks: one verdict an image, threat, radius, suite and objective, and the adversarials.

`robustness/part-*.parquet` (see `ROWS_SCHEMA`) is small and may be published. `adversarials/part-*.parquet`
(see `ADVERSARIALS_SCHEMA`) holds pixels of ImageNet images and never leaves the machine.

Rows are only ever appended, and the last row of a key (image, threat, radius, suite, objective) counts. Every
image to be attacked gets a row `pending` first, so records tell by themselves whether an evaluation is
finished: the images that break come first, and a share of those alone would mean nothing.

The suite `minimal` has no radius (epsilon is 0) and looks for the smallest perturbation: an image stays
`pending`, with the best found so far, until all its attacks are over, and is then `broken` at that distance.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from annotations.errors import BeyondError
from annotations.tables import read_parquet
from benchmark import records

ROBUSTNESS = "robustness"
ADVERSARIALS = "adversarials"
MINIMAL = "minimal"

ROWS_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("original_label", pa.int16()),
        ("threat", pa.string()),
        ("epsilon", pa.float64()),
        ("suite", pa.string()),
        ("objective", pa.string()),
        ("status", pa.string()),
        ("attack", pa.string()),
        ("unit", pa.int16()),
        ("steps", pa.int32()),
        ("clean_class", pa.int16()),
        ("adversarial_class", pa.int16()),
        ("margin", pa.float32()),
        ("distance", pa.float64()),
        ("gradient", pa.bool_()),
        ("implied", pa.bool_()),
        ("survived", pa.int16()),
        ("inside", pa.list_(pa.int16())),
        ("adversarial", pa.string()),
    ]
)
ADVERSARIALS_SCHEMA = pa.schema(
    [
        ("adversarial", pa.string()),
        ("image_id", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("clean", pa.binary()),
        ("pixels", pa.list_(pa.float32())),
    ]
)

STATUSES = ("pending", "misclassified", "broken", "robust", "failed")

_KEY = ["threat", "epsilon", "suite", "objective", "image_id"]
_ROWS_PER_PART = 1024
_ADVERSARIALS_PER_PART = 16


class FindingInfo(BaseModel):
    """A reason to read robust accuracy with care, as `run.json` keeps it."""

    model_config = ConfigDict(extra="forbid")

    kind: str
    message: str
    images: int


class AttackInfo(BaseModel):
    """One evaluation: a suite at one radius. What `run.json` says about it."""

    model_config = ConfigDict(extra="forbid")

    threat: str = Field(description="linf or l2.")
    epsilon: float = Field(description="Radius in [0, 1] pixels; 0 for minimal, which has none.")
    suite: str
    note: str = Field(default="", description="What the suite may be called.")
    seed: int = 0
    settings: dict[str, Any] = Field(default_factory=dict, description="The suite's attacks and budgets.")
    execution: dict[str, Any] = Field(default_factory=dict, description="Options that change speed alone.")
    environment: dict[str, Any] = Field(default_factory=dict, description="Batch, device, dtype, time spent.")
    label_sets: dict[str, str] = Field(
        default_factory=dict, description="Source and revision whose sets `rectified` left."
    )
    findings: list[FindingInfo] = Field(default_factory=list)

    @property
    def key(self) -> Evaluation:
        """Which rows are this evaluation's."""
        return Evaluation(self.threat, self.epsilon, self.suite)

    def identity(self) -> dict[str, Any]:
        """What rows of one evaluation must have in common: all but what changes rounding alone."""
        return {
            "seed": self.seed,
            "budgets": self.settings,
            "precision": self.execution.get("autocast"),
        }


class Evaluation(NamedTuple):
    """Names the rows of one evaluation."""

    threat: str
    epsilon: float
    suite: str


@dataclass(frozen=True)
class Row:
    """One verdict.

    Attributes:
        image_id: Id of the image.
        original_label: Its original label.
        threat: `linf` or `l2`.
        epsilon: Radius, in [0, 1] pixels; 0 for `minimal`.
        suite: Name of the suite, as asked for.
        objective: `original` or `rectified`.
        status: One of `STATUSES`.
        attack: The attack that broke it, or empty.
        unit: Which restart or target of that attack, −1 if none.
        steps: Steps of that run, −1 if none.
        clean_class: Predicted class of the clean image, −1 where it is not known or not finite.
        adversarial_class: Predicted class of the adversarial, −1 if there is none.
        margin: Best logit outside the set minus best logit inside, at the adversarial; NaN if there is none.
        distance: Norm of the perturbation; NaN if there is none.
        gradient: Gradients helped to break it.
        implied: The verdict is that under the other objective, whose goal is the same.
        survived: How many attacks of the suite it has survived, while pending.
        inside: The classes to leave, ascending: under `original`, the original label.
        adversarial: Name of the adversarial: the first 16 hex digits of the SHA-256 of its float32 pixels.
    """

    image_id: str
    original_label: int
    threat: str
    epsilon: float
    suite: str
    objective: str
    status: str = "pending"
    attack: str = ""
    unit: int = -1
    steps: int = -1
    clean_class: int = -1
    adversarial_class: int = -1
    margin: float = float("nan")
    distance: float = float("nan")
    gradient: bool = False
    implied: bool = False
    survived: int = 0
    inside: tuple[int, ...] = ()
    adversarial: str = ""


@dataclass(frozen=True)
class Adversarial:
    """An adversarial image, exactly as it was predicted.

    Attributes:
        image_id: Id of the image.
        clean: The clean input, uint8 (H, W, 3), RGB; divided by 255 in float32 it is what was attacked.
        pixels: The adversarial input, float32 (3, H, W) in [0, 1].
    """

    image_id: str
    clean: npt.NDArray[np.uint8]
    pixels: npt.NDArray[np.float32]

    @property
    def name(self) -> str:
        """The first 16 hex digits of the SHA-256 of `pixels` (little-endian, C order)."""
        return hashlib.sha256(np.ascontiguousarray(self.pixels, dtype="<f4").tobytes()).hexdigest()[:16]

    @property
    def perturbation(self) -> npt.NDArray[np.float32]:
        """Adversarial minus clean input, float32 (3, H, W)."""
        clean = self.clean.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
        return self.pixels - clean


@dataclass(frozen=True)
class AttackRecords:
    """Verdicts as arrays (N rows, one an evaluation, objective and image), sorted in that order.

    Attributes:
        table: One row a verdict, columns of `ROWS_SCHEMA` but `inside`.
        inside: int16 (Q,), the classes to leave, of all rows one after the other.
        offsets: int64 (N + 1,), where each row's part of `inside` begins.
    """

    table: pd.DataFrame
    inside: npt.NDArray[np.int16]
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.table)

    @classmethod
    def of(cls, table: pa.Table) -> AttackRecords:
        """From tables in `ROWS_SCHEMA`, in the order they were written in; the last row of a key counts.

        Raises:
            BeyondError: A column is missing or a status is unknown.
        """
        missing = [name for name in ROWS_SCHEMA.names if name not in table.column_names]
        if missing:
            raise BeyondError(f"records of attacks have no column {missing[0]!r}; run beyond score again")
        frame = table.drop_columns(["inside"]).to_pandas()
        unknown = set(frame["status"]) - set(STATUSES)
        if unknown:
            raise BeyondError(f"records of attacks have a status {min(unknown)!r}; update beyond")
        frame = frame.drop_duplicates(_KEY, keep="last").sort_values(_KEY, kind="stable")
        rows = frame.index.to_numpy()
        lists = table["inside"].combine_chunks()
        lists = pa.concat_arrays(lists.chunks) if isinstance(lists, pa.ChunkedArray) else lists
        lists = lists.take(pa.array(rows, pa.int64()))
        flat = lists.flatten().to_numpy(zero_copy_only=False).astype(np.int16)
        offsets = np.concatenate([[0], np.cumsum(lists.value_lengths().to_numpy(zero_copy_only=False))])
        return cls(frame.reset_index(drop=True), flat, offsets.astype(np.int64))

    @classmethod
    def from_rows(cls, rows: Sequence[Row]) -> AttackRecords:
        """From rows in the order in which they were decided."""
        return cls.of(to_arrow(rows))

    def evaluations(self) -> list[Evaluation]:
        """What was run, by threat, radius and suite."""
        keys = self.table[["threat", "epsilon", "suite"]].drop_duplicates()
        return [Evaluation(str(t), float(e), str(s)) for t, e, s in keys.itertuples(index=False)]

    def rows_of(self, evaluation: Evaluation) -> npt.NDArray[np.intp]:
        """Rows of one evaluation."""
        t = self.table
        mask = (t["threat"] == evaluation.threat) & (t["suite"] == evaluation.suite)
        return np.flatnonzero(mask & (t["epsilon"] == evaluation.epsilon))

    def inside_of(self, row: int) -> tuple[int, ...]:
        """The classes that the prediction of a row had to leave."""
        return tuple(self.inside[self.offsets[row] : self.offsets[row + 1]].tolist())

    def rows(self, indices: npt.NDArray[np.intp]) -> list[Row]:
        """Some rows as objects."""
        part = self.table.iloc[indices]
        columns = {name: part[name].tolist() for name in ROWS_SCHEMA.names if name != "inside"}
        for name in ("margin", "distance"):
            columns[name] = [float("nan") if value is None else value for value in columns[name]]
        inside = [self.inside_of(int(i)) for i in indices]
        return [
            Row(**dict(zip(columns, values)), inside=kept) for *values, kept in zip(*columns.values(), inside)
        ]


def to_arrow(rows: Sequence[Row]) -> pa.Table:
    """Rows as a table in `ROWS_SCHEMA`; NaN becomes null."""
    columns: list[Any] = []
    for column in ROWS_SCHEMA:
        values = [getattr(row, column.name) for row in rows]
        if column.name == "inside":
            values = [list(value) for value in values]
        columns.append(pa.array(values, column.type, from_pandas=pa.types.is_floating(column.type)))
    return pa.Table.from_arrays(columns, schema=ROWS_SCHEMA)


def has_attacks(run: Path) -> bool:
    """Whether a run has any records of attacks."""
    return bool(records.part_paths(run / ROBUSTNESS))


def read_attacks(run: Path) -> AttackRecords:
    """The records of attacks of a run, checked.

    Raises:
        BeyondError: There are none, or a part is damaged.
    """
    paths = records.part_paths(run / ROBUSTNESS)
    if not paths:
        raise BeyondError(f"{run} holds no attacks; make some with: beyond score … --tracks robustness")
    for path in paths:
        if not records.part_is_sound(path):
            raise BeyondError(
                f"{path} is damaged (checksum); run the same beyond score command again to repair it"
            )
    return AttackRecords.of(pa.concat_tables([_read_rows(path) for path in paths]))


def _read_rows(path: Path) -> pa.Table:
    types = {field.name: field.type for field in ROWS_SCHEMA}
    remedy = "run the same beyond score command again"
    # A radius, distance or time may be missing; what a row is about may not.
    filled = [name for name, kind in types.items() if not pa.types.is_floating(kind)]
    table = read_parquet(path, types, filled=filled, remedy=remedy)
    missing = [name for name in ROWS_SCHEMA.names if name not in table.column_names]
    if missing:
        raise BeyondError(f"{path} has no column {missing[0]!r}; {remedy}")
    return table.select(ROWS_SCHEMA.names)


def repair(run: Path) -> list[Path]:
    """Move damaged parts out of the way, so that what they held is made again.

    Returns:
        Where the damaged parts are now.
    """
    paths = [path for kind in (ROBUSTNESS, ADVERSARIALS) for path in records.part_paths(run / kind)]
    return [records.quarantine(path) for path in paths if not records.part_is_sound(path)]


def compact(run: Path) -> None:
    """Write all rows of a run as one sorted part, and remove the parts that it replaces."""
    paths = records.part_paths(run / ROBUSTNESS)
    if len(paths) < 2:
        return
    found = read_attacks(run)
    offsets = pa.array(found.offsets, pa.int32())
    lists = pa.ListArray.from_arrays(offsets, pa.array(found.inside, pa.int16()))
    columns = [
        lists
        if f.name == "inside"
        else pa.array(found.table[f.name], f.type, from_pandas=pa.types.is_floating(f.type))
        for f in ROWS_SCHEMA
    ]
    table = pa.Table.from_arrays(columns, schema=ROWS_SCHEMA)
    records.write_part(run / ROBUSTNESS, records.next_index(run / ROBUSTNESS), table)
    for path in paths:
        path.unlink()


def part_seconds() -> float:
    """Longest time between two parts, so the most work that a kill loses: 10 s, or $BEYOND_PART_SECONDS."""
    return float(os.environ.get("BEYOND_PART_SECONDS", "10"))


@dataclass
class AttackWriter:
    """Writes rows and adversarials in small parts as they come, adversarials before the rows that name them.

    Use as a context manager: leaving it, even by an error, writes what there is.

    Attributes:
        run: Folder of the run, which must be locked.
        keep: Keep adversarials.
        stored: Names of the adversarials that are on the disk.
    """

    run: Path
    keep: bool = True
    stored: set[str] = field(default_factory=set)
    _rows: list[Row] = field(default_factory=list)
    _adversarials: dict[str, Adversarial] = field(default_factory=dict)
    _since: float = field(default_factory=time.monotonic)
    _next: dict[str, int] = field(default_factory=dict)

    def __enter__(self) -> AttackWriter:
        """Find where to go on."""
        for kind in (ROBUSTNESS, ADVERSARIALS):
            self._next[kind] = records.next_index(self.run / kind)
        self.stored = adversarial_names(self.run)
        return self

    def __exit__(self, *_: object) -> None:
        """Write what is left."""
        self.flush()

    def add(self, row: Row, adversarial: Adversarial | None = None) -> None:
        """Take a row, and the adversarial it names."""
        if adversarial is not None:
            name = adversarial.name
            row = replace(row, adversarial=name)
            if self.keep and name not in self.stored:
                self._adversarials[name] = adversarial
        self._rows.append(row)
        self.flush_if_due()

    def flush_if_due(self) -> None:
        """Write a part if there is enough for one, or the last was some time ago."""
        full = len(self._rows) >= _ROWS_PER_PART or len(self._adversarials) >= _ADVERSARIALS_PER_PART
        if full or time.monotonic() - self._since >= part_seconds():
            self.flush()

    def flush(self) -> None:
        """Write what there is."""
        if self._adversarials:
            self._write(ADVERSARIALS, _adversarials_to_arrow(self._adversarials))
            self.stored.update(self._adversarials)
            self._adversarials = {}
        if self._rows:
            self._write(ROBUSTNESS, to_arrow(self._rows))
            self._rows = []
        self._since = time.monotonic()

    def _write(self, kind: str, table: pa.Table) -> None:
        records.write_part(self.run / kind, self._next[kind], table)
        self._next[kind] += 1


def _adversarials_to_arrow(adversarials: dict[str, Adversarial]) -> pa.Table:
    items = list(adversarials.values())
    lengths = [item.pixels.size for item in items]
    pixels = np.concatenate([item.pixels.astype(np.float32).reshape(-1) for item in items])
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    return pa.Table.from_arrays(
        [
            pa.array(list(adversarials), pa.string()),
            pa.array([item.image_id for item in items], pa.string()),
            pa.array([item.clean.shape[0] for item in items], pa.int32()),
            pa.array([item.clean.shape[1] for item in items], pa.int32()),
            pa.array([np.ascontiguousarray(item.clean).tobytes() for item in items], pa.binary()),
            pa.ListArray.from_arrays(offsets, pa.array(pixels, pa.float32())),
        ],
        schema=ADVERSARIALS_SCHEMA,
    )


def adversarial_names(run: Path) -> set[str]:
    """Names of all adversarials that a run keeps."""
    names: set[str] = set()
    for path in records.part_paths(run / ADVERSARIALS):
        names.update(_names_in(path))
    return names


def _names_in(path: Path) -> set[str]:
    table = read_parquet(path, {"adversarial": pa.string()}, columns=["adversarial"], filled=["adversarial"])
    return set(table["adversarial"].to_pylist())


def prune_adversarials(run: Path) -> None:
    """Remove the adversarials that no row names any more, such as those that a closer one replaced."""
    wanted = set(read_attacks(run).table["adversarial"])
    paths = records.part_paths(run / ADVERSARIALS)
    index = records.next_index(run / ADVERSARIALS)
    for path in paths:
        table = pq.read_table(path, partitioning=None)
        keep = [name in wanted for name in table["adversarial"].to_pylist()]
        if all(keep):
            continue
        if any(keep):
            records.write_part(run / ADVERSARIALS, index, table.filter(pa.array(keep)))
            index += 1
        path.unlink()


def iter_adversarials(run: Path, names: Collection[str] | None = None) -> Iterator[Adversarial]:
    """The adversarials that a run keeps, a few in memory at a time.

    Args:
        run: Folder of the run.
        names: Which; None for all.

    Raises:
        BeyondError: A part that is needed is damaged.
    """
    seen: set[str] = set()  # a kill while parts are rewritten leaves some adversarials in two
    for path in records.part_paths(run / ADVERSARIALS):
        if names is not None and not _names_in(path) & set(names):
            continue
        if not records.part_is_sound(path):
            raise BeyondError(
                f"{path} is damaged (checksum); run the same beyond score command again to repair it"
            )
        table = pq.read_table(path, partitioning=None)
        lists = table["pixels"].combine_chunks()
        for i in range(table.num_rows):
            name = table["adversarial"][i].as_py()
            if name in seen or (names is not None and name not in names):
                continue
            seen.add(name)
            height, width = table["height"][i].as_py(), table["width"][i].as_py()
            clean = np.frombuffer(table["clean"][i].as_py(), np.uint8).reshape(height, width, 3)
            pixels = lists[i].values.to_numpy().reshape(3, height, width)
            yield Adversarial(table["image_id"][i].as_py(), clean, pixels.astype(np.float32))
