"""Label sets: what people said about (image, class) pairs, as two tables and as arrays.

On disk a source is a folder with two Parquet files:

`judgements.parquet`
    image_id, class_index (int16), verdict (accepted, rejected, unsure), score (float32, may be null),
    votes (int16, 0 if unknown), source.
`images.parquet`
    image_id, original_label (int16, −1 if unknown), status (evaluable, excluded), closed_world (bool: the
    source judged every plausible class, so a class it does not list is rejected).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from annotations.classes import NUM_CLASSES
from annotations.errors import BeyondError
from annotations.tables import read_parquet

JUDGEMENTS_FILE = "judgements.parquet"
IMAGES_FILE = "images.parquet"

JUDGEMENTS_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("class_index", pa.int16()),
        ("verdict", pa.string()),
        ("score", pa.float32()),
        ("votes", pa.int16()),
        ("source", pa.string()),
    ]
)
IMAGES_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("original_label", pa.int16()),
        ("status", pa.string()),
        ("closed_world", pa.bool_()),
    ]
)
# As a person or another tool may write them: wider, so that a class out of range is named as such.
FOREIGN_TYPES: dict[str, dict[str, pa.DataType]] = {
    name: {
        field.name: pa.int64() if pa.types.is_integer(field.type) else field.type
        for field in schema
        if not pa.types.is_boolean(field.type)
    }
    for name, schema in ((JUDGEMENTS_FILE, JUDGEMENTS_SCHEMA), (IMAGES_FILE, IMAGES_SCHEMA))
}


class Verdict(IntEnum):
    """What people said about a pair (image, class)."""

    UNJUDGED = 0
    ACCEPTED = 1
    UNSURE = 2
    REJECTED = 3


VERDICT_CODES = {"accepted": Verdict.ACCEPTED, "unsure": Verdict.UNSURE, "rejected": Verdict.REJECTED}
VERDICT_NAMES = {int(code): name for name, code in VERDICT_CODES.items()}


@dataclass(frozen=True)
class LabelSets:
    """All judged pairs of a set of images (N images, P pairs), from one source at one revision.

    Attributes:
        source: Name of the source, as in `--annotations`.
        revision: What pins its content: a version, a commit or a sha256.
        image_ids: object (N,) of str, sorted, unique.
        original_labels: int16 (N,), −1 where unknown.
        evaluable: bool (N,), False where the source excludes the image or accepts no class for it.
        closed_world: bool (N,), True where an unlisted class counts as rejected.
        pair_image: int32 (P,), row of the pair's image.
        pair_class: int16 (P,), class index in [0, 1000).
        verdict: int8 (P,), values of `Verdict`, never UNJUDGED.
        score: float32 (P,), the source's own score in [0, 1], NaN where it gives none.
        votes: int16 (P,), number of votes behind the verdict, 0 where unknown.
        pair_source: object (P,) of str, where each verdict comes from.

    Pairs are sorted by (pair_image, pair_class) and unique.
    """

    source: str
    revision: str
    image_ids: npt.NDArray[np.object_]
    original_labels: npt.NDArray[np.int16]
    evaluable: npt.NDArray[np.bool_]
    closed_world: npt.NDArray[np.bool_]
    pair_image: npt.NDArray[np.int32]
    pair_class: npt.NDArray[np.int16]
    verdict: npt.NDArray[np.int8]
    score: npt.NDArray[np.float32]
    votes: npt.NDArray[np.int16]
    pair_source: npt.NDArray[np.object_]

    @classmethod
    def from_tables(
        cls, judgements: pd.DataFrame, images: pd.DataFrame, *, source: str, revision: str
    ) -> LabelSets:
        """Build label sets from the two tables described in the module's docstring.

        Columns `score`, `votes` and `source` of `judgements` may be absent. An image without an accepted
        class is not evaluable, whatever its status says.

        Raises:
            BeyondError: A column is missing, a class or verdict is out of range, a pair or image is listed
                twice, or a judged image is not in `images`.
        """
        _require_columns(judgements, ["image_id", "class_index", "verdict"], f"{source}: {JUDGEMENTS_FILE}")
        _require_columns(images, ["image_id", "status"], f"{source}: {IMAGES_FILE}")
        for frame, name in ((judgements, JUDGEMENTS_FILE), (images, IMAGES_FILE)):
            if not frame["image_id"].map(lambda value: isinstance(value, str) and value != "").all():
                raise BeyondError(
                    f"{source}: {name} has a row without an image_id; every row needs one, as text"
                )
        images = images.sort_values("image_id", kind="stable")
        ids = images["image_id"].to_numpy(dtype=object)
        index = pd.Index(ids)
        if not index.is_unique:
            raise BeyondError(
                f"{source}: image {index[index.duplicated()][0]!r} is listed twice in {IMAGES_FILE}"
            )
        bad_status = images["status"][~images["status"].isin(["evaluable", "excluded"])]
        if len(bad_status):
            raise BeyondError(
                f"{source}: unknown image status {bad_status.iloc[0]!r}; use evaluable or excluded"
            )

        rows = index.get_indexer(pd.Index(judgements["image_id"].to_numpy(dtype=object)))
        if len(rows) and rows.min() < 0:
            missing = judgements["image_id"].iloc[int(np.argmin(rows))]
            raise BeyondError(f"{source}: image {missing!r} is judged but not listed in {IMAGES_FILE}")
        classes = _integers(judgements["class_index"], 0, NUM_CLASSES - 1, f"{source}: class index")
        codes = judgements["verdict"].map(VERDICT_CODES)
        if codes.isna().any():
            bad_verdict = judgements["verdict"][codes.isna()].iloc[0]
            raise BeyondError(f"{source}: unknown verdict {bad_verdict!r}; use accepted, rejected or unsure")

        keys = rows.astype(np.int64) * NUM_CLASSES + classes
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        twice = np.flatnonzero(keys[1:] == keys[:-1])
        if len(twice):
            row, class_index = divmod(int(keys[twice[0]]), NUM_CLASSES)
            raise BeyondError(f"{source}: image {ids[row]!r}, class {class_index} is judged twice")
        verdict = codes.to_numpy().astype(np.int8)[order]
        pair_image = rows[order].astype(np.int32)
        has_accepted = np.zeros(len(ids), dtype=bool)
        has_accepted[pair_image[verdict == Verdict.ACCEPTED]] = True

        def column(frame: pd.DataFrame, name: str, default: object) -> pd.Series:
            return frame[name] if name in frame else pd.Series([default] * len(frame), index=frame.index)

        score = _floats(column(judgements, "score", np.nan), f"{source}: score")
        if ((score < 0) | (score > 1)).any():
            bad_score = score[(score < 0) | (score > 1)][0]
            raise BeyondError(f"{source}: score {bad_score:g} is outside [0, 1]")
        closed_world = column(images, "closed_world", False).astype(object)
        closed_world = closed_world.where(closed_world.notna(), False)
        if not closed_world.isin([True, False]).all():
            raise BeyondError(f"{source}: closed_world holds {closed_world.iloc[0]!r}; use true or false")
        labels = column(images, "original_label", -1).astype(object)
        labels = labels.where(labels.notna(), -1)
        votes = column(judgements, "votes", 0).astype(object)
        votes = votes.where(votes.notna(), 0)

        return cls(
            source=source,
            revision=revision,
            image_ids=ids,
            original_labels=_integers(labels, -1, NUM_CLASSES - 1, f"{source}: original label").astype(
                np.int16
            ),
            evaluable=(images["status"].to_numpy(dtype=object) == "evaluable") & has_accepted,
            closed_world=closed_world.to_numpy(dtype=bool),
            pair_image=pair_image,
            pair_class=classes[order].astype(np.int16),
            verdict=verdict,
            score=score[order],
            votes=_integers(votes, 0, 2**15 - 1, f"{source}: votes").astype(np.int16)[order],
            pair_source=column(judgements, "source", source).to_numpy(dtype=object)[order],
        )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.image_ids)

    @cached_property
    def _index(self) -> pd.Index:
        return pd.Index(self.image_ids)

    @cached_property
    def _keys(self) -> npt.NDArray[np.int64]:
        return self.pair_image.astype(np.int64) * NUM_CLASSES + self.pair_class

    def rows(self, image_ids: npt.NDArray[np.object_]) -> npt.NDArray[np.intp]:
        """Row of each id in these label sets, −1 where it has none: intp (M,)."""
        if image_ids is self.image_ids:
            return np.arange(len(image_ids), dtype=np.intp)
        return self._index.get_indexer(pd.Index(image_ids))

    def lookup(self, rows: npt.NDArray[np.intp], classes: npt.NDArray[np.integer]) -> npt.NDArray[np.int8]:
        """Verdict of each pair, as `Verdict` codes, in the shape of `classes`.

        Args:
            rows: intp (M,), as `rows` returns them; −1 gives UNJUDGED.
            classes: integer (M,) or (M, K), class indices.

        A class that a closed-world image does not list is REJECTED. What is no class at all (−1 as padding,
        1000 and above) is UNJUDGED.
        """
        shaped = rows if classes.ndim == 1 else rows[:, None]
        classes = classes.astype(np.int64)
        keys = shaped.astype(np.int64) * NUM_CLASSES + classes
        result = np.zeros(keys.shape, dtype=np.int8)
        if len(self._keys):
            at = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
            result = np.where(self._keys[at] == keys, self.verdict[at], result)
        if len(self):
            closed = self.closed_world[rows] & (rows >= 0)
            closed = closed if classes.ndim == 1 else closed[:, None]
            result = np.where(closed & (result == Verdict.UNJUDGED), np.int8(Verdict.REJECTED), result)
        known = (shaped >= 0) & (classes >= 0) & (classes < NUM_CLASSES)
        return np.where(known, result, np.int8(Verdict.UNJUDGED)).astype(np.int8)

    def counts(self, verdict: Verdict) -> npt.NDArray[np.int32]:
        """How many classes of each image have this verdict: int32 (N,)."""
        return np.bincount(self.pair_image[self.verdict == verdict], minlength=len(self)).astype(np.int32)

    def classes_of(self, row: int, verdict: Verdict) -> npt.NDArray[np.int16]:
        """Class indices of one image with this verdict, ascending: int16 (K,)."""
        lo, hi = np.searchsorted(self.pair_image, [row, row + 1])
        classes: npt.NDArray[np.int16] = self.pair_class[lo:hi][self.verdict[lo:hi] == verdict]
        return classes

    def to_tables(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The two tables `judgements` and `images`, as `from_tables` takes them."""
        judgements = pd.DataFrame(
            {
                "image_id": self.image_ids[self.pair_image],
                "class_index": self.pair_class,
                "verdict": np.array([VERDICT_NAMES.get(i, "") for i in range(4)], dtype=object)[self.verdict],
                "score": self.score,
                "votes": self.votes,
                "source": self.pair_source,
            }
        )
        images = pd.DataFrame(
            {
                "image_id": self.image_ids,
                "original_label": self.original_labels,
                "status": np.where(self.evaluable, "evaluable", "excluded").astype(object),
                "closed_world": self.closed_world,
            }
        )
        return judgements, images

    def save(self, folder: Path) -> None:
        """Write `judgements.parquet` and `images.parquet` into `folder`, which is made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        schemas = {JUDGEMENTS_FILE: JUDGEMENTS_SCHEMA, IMAGES_FILE: IMAGES_SCHEMA}
        for frame, (name, schema) in zip(self.to_tables(), schemas.items()):
            table = pa.Table.from_pandas(frame, schema=schema, preserve_index=False)
            pq.write_table(table.replace_schema_metadata(None), folder / name, compression="zstd")

    @classmethod
    def load(cls, folder: Path, *, source: str, revision: str | None = None) -> LabelSets:
        """Read the label sets that `save` wrote, or that a person or another tool put into `folder`.

        Args:
            folder: Folder with `judgements.parquet` and `images.parquet`.
            source: Name to give the source.
            revision: What pins the content; by default the sha256 of the two files.

        Raises:
            BeyondError: The folder or a file is missing or unreadable, or its content is not valid
                (see `from_tables`).
        """
        if not folder.is_dir():
            raise BeyondError(f"no label sets at {folder}: there is no such folder")
        contents = []
        for name in (JUDGEMENTS_FILE, IMAGES_FILE):
            if not (folder / name).is_file():
                needed = f"{JUDGEMENTS_FILE} and {IMAGES_FILE}"
                raise BeyondError(f"no label sets at {folder}: it has no {name}; a source needs {needed}")
            contents.append((folder / name).read_bytes())
        frames = []
        for name, content in zip((JUDGEMENTS_FILE, IMAGES_FILE), contents):
            types = FOREIGN_TYPES[name]
            frames.append(read_parquet(content, types, where=str(folder / name)).to_pandas())
        revision = revision or content_revision(*contents)
        return cls.from_tables(frames[0], frames[1], source=source, revision=revision)


def content_revision(*contents: bytes) -> str:
    """A short name that pins the content of files: the first 12 digits of their sha256.

    Example:
        >>> content_revision(b"")
        'sha256:e3b0c44298fc'
    """
    digest = hashlib.sha256()
    for content in contents:
        digest.update(content)
    return f"sha256:{digest.hexdigest()[:12]}"


def _integers(values: pd.Series, low: int, high: int, what: str) -> npt.NDArray[np.int64]:
    """The column as int64; what is missing, fractional, text or out of range is an error that names it."""
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    bad = ~((numbers >= low) & (numbers <= high) & (numbers == np.floor(numbers)))
    if bad.any():
        value = values.tolist()[int(np.argmax(bad))]  # a plain Python value, not NumPy's, for the message
        raise BeyondError(f"{what} {value!r} is not a whole number in {low}..{high}")
    return numbers.astype(np.int64)


def _floats(values: pd.Series, what: str) -> npt.NDArray[np.float32]:
    try:
        return values.to_numpy(dtype=np.float32, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise BeyondError(f"{what}: not a column of numbers ({error})") from error


def _require_columns(frame: pd.DataFrame, names: list[str], where: str) -> None:
    missing = [name for name in names if name not in frame]
    if missing:
        raise BeyondError(
            f"{where} has no column {missing[0]!r}; it has {', '.join(map(str, frame.columns))}"
        )
