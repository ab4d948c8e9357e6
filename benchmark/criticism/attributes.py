"""What is known about images, one attribute at a time: from ImageNet-X, from label sets, from files.

A file (CSV or Parquet) has one row an image and attribute: `image_id, attribute, value`. An image without a
row is unknown for that attribute and in no test of it. Attributes about people have rules of their own, which
are enforced here and explained in `docs/responsible-use.md`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from annotations.classes import class_names
from annotations.errors import BeyondError
from annotations.factors import FACTORS
from annotations.judgements import LabelSets, Verdict, content_revision
from annotations.tables import read_parquet
from benchmark.anatomy import co_occurrences

Warn = Callable[[str], None]

BUILT_IN = ("imagenet-x", "co-occurrence")
"""Sources of attributes that need no file."""

FOLDER = "attributes"
"""Folder in `RUN/criticism` that keeps what was read from files, so that a run can be scored again."""

MIN_TOGETHER = 3
"""Images of a run in which a class must be accepted beside another before that is an attribute."""

MAX_VALUES = 50
"""Different values of an attribute from which on it is not one to count."""

MIN_RATERS = 3
MIN_PEOPLE_CELL = 10
"""Images that must share a value of an attribute about people before anything is said about it."""

PERSON_COLUMNS = ("raters", "consent_version", "aggregation")
_PERCEIVED = "perceived_"
# What raters can see of a person, if at all, is how the person looks to them.
_ABOUT_PEOPLE = re.compile(
    r"(^|[^a-z])(skin|gender|sex|age|race|racial|ethnic\w*|person|people|face|faces|man|woman|men|women|"
    r"child|children|disab\w*|religio\w*|national\w*|sexual\w*|fitzpatrick|monk)([^a-z]|$)"
)
_NOT_TO_BE_SEEN = re.compile(
    r"(^|[^a-z])(race|racial|ethnic\w*|religio\w*|national\w*|orientation|sexuality|political\w*|caste|"
    r"identity|name)([^a-z]|$)"
)
_YES, _NO = {"true", "yes", "1", "present"}, {"false", "no", "0", "absent"}


@dataclass(frozen=True)
class Attribute:
    """One attribute of N images.

    Attributes:
        name: What it is called.
        source: Where it comes from.
        values: Its values, in order.
        codes: int8 (N,), position in `values`, −1 where unknown.
        tested: Positions in `values` that are tested, each against the rest: all of them, or one of two.
        person: It is about people.
        only: Class that it can be said of alone, or None.
    """

    name: str
    source: str
    values: tuple[str, ...]
    codes: npt.NDArray[np.int8]
    tested: tuple[int, ...]
    person: bool = False
    only: int | None = None

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """Images for which it is known: bool (N,)."""
        known: npt.NDArray[np.bool_] = self.codes >= 0
        return known

    def says(self, value: int) -> str:
        """Attribute and value as words."""
        if len(self.values) == 2 and self.values[value].lower() in _YES:
            return self.name
        return f"{self.name}: {self.values[value]}"


@dataclass(frozen=True)
class AttributeFile:
    """What a file says, checked and without doubles: columns image_id, attribute, value, kind."""

    name: str
    table: pd.DataFrame
    notes: tuple[str, ...] = ()


# -------------------------------------------------------------------------------------------------- files


def read_file(path: Path) -> AttributeFile:
    """Read attributes from a CSV or Parquet file.

    Columns: image_id, attribute, value; `kind` (`scene`, or `person`: about people) and, for the latter,
    `raters` (how many saw the image), `consent_version` and `aggregation` (the rule that made one value of
    their answers). An image whose rows on one attribute contradict each other is unknown for it.

    Raises:
        BeyondError: The file is not readable, a column is missing or empty, an attribute about people is not
            declared as one or lacks what it needs, or is nothing that can be seen.
    """
    if not path.is_file():
        raise BeyondError(
            f"no attributes {str(path)!r}: name a CSV or Parquet file, or one of {', '.join(BUILT_IN)}"
        )
    try:
        if path.suffix.lower() == ".parquet":
            table = read_parquet(path, {"image_id": pa.string(), "attribute": pa.string()})
            for field in table.schema:
                if pa.types.is_nested(field.type) or pa.types.is_binary(field.type):
                    raise BeyondError(
                        f"{path}: column {field.name!r} holds {field.type}; use text or numbers"
                    )
            raw = table.to_pandas()
        else:
            raw = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise BeyondError(f"{path} is not a readable CSV or Parquet file ({error}); get it again") from error
    for column in ("image_id", "attribute", "value"):
        if column not in raw:
            raise BeyondError(f"{path} has no column {column!r}; it needs image_id, attribute and value")
    frame = pd.DataFrame({column: _text(raw[column]) for column in ("image_id", "attribute", "value")})
    frame["kind"] = _text(raw["kind"]).replace("", "scene") if "kind" in raw else "scene"
    for column in ("image_id", "attribute"):
        if (frame[column] == "").any():
            row = int(np.argmax(frame[column] == "")) + 2
            raise BeyondError(f"{path}: row {row} has no {column}; every row needs one")
    odd = ~frame["kind"].isin(["scene", "person"])
    if odd.any():
        raise BeyondError(f"{path}: kind is {frame['kind'][odd].iloc[0]!r}; use scene or person")
    _check_people(path, frame, raw)
    frame["image_id"] = frame["image_id"].str.replace(r"\.(jpe?g|png)$", "", case=False, regex=True)
    notes = []
    blank = frame["value"] == ""
    if blank.any():
        notes.append(f"{path.name}: {int(blank.sum()):,} rows have no value and are left out")
        frame = frame[~blank]
    frame = frame.drop_duplicates()
    clash = frame.duplicated(["image_id", "attribute"], keep=False)
    if clash.any():
        first = frame[clash].iloc[0]
        pairs = frame[clash][["image_id", "attribute"]].drop_duplicates()
        notes.append(
            f"{path.name}: {len(pairs):,} images have several values of one attribute (first "
            f"{first['image_id']}, {first['attribute']}) and are unknown for it"
        )
        frame = frame[~clash]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-.") or "attributes"
    if name in BUILT_IN:
        name = f"file-{name}"
    return AttributeFile(name, frame.sort_values(["attribute", "image_id"], ignore_index=True), tuple(notes))


def _text(column: pd.Series) -> pd.Series:
    return column.astype(object).where(column.notna(), "").astype(str).str.strip()


def _check_people(path: Path, frame: pd.DataFrame, raw: pd.DataFrame) -> None:
    """Refuse attributes about people that are not declared, not perceived, or not from asked raters."""
    for name, kind in frame[["attribute", "kind"]].drop_duplicates().itertuples(index=False):
        words = name.lower().replace("_", " ")
        if kind != "person":
            if _ABOUT_PEOPLE.search(words):
                raise BeyondError(
                    f"{path}: attribute {name!r} seems to be about people; declare it with kind=person and "
                    "what that needs (docs/responsible-use.md), or give it another name if it is not"
                )
            continue
        if _NOT_TO_BE_SEEN.search(words):
            raise BeyondError(
                f"{path}: attribute {name!r} is nothing that raters can see, and is refused "
                "(docs/responsible-use.md)"
            )
        if not name.lower().startswith(_PERCEIVED):
            raise BeyondError(
                f"{path}: attribute {name!r} is about people, so it is what raters perceive: call it "
                f"{_PERCEIVED}{name}"
            )
    person = (frame["kind"] == "person").to_numpy()
    if not person.any():
        return
    for column in PERSON_COLUMNS:
        if column not in raw:
            raise BeyondError(
                f"{path} has attributes about people but no column {column!r}; they come from raters only, "
                f"with {', '.join(PERSON_COLUMNS)} (docs/responsible-use.md)"
            )
        if column != "raters" and (_text(raw[column])[person] == "").any():
            raise BeyondError(f"{path}: an attribute about people has a row without {column}")
    raters = pd.to_numeric(raw["raters"], errors="coerce").to_numpy(dtype=np.float64)[person]
    if not (raters >= MIN_RATERS).all():
        raise BeyondError(
            f"{path}: an attribute about people has a row with fewer than {MIN_RATERS} raters; one person's "
            "impression of another is no data"
        )


def keep(run: Path, file: AttributeFile) -> None:
    """Keep what a file says in the run, so that it is scored the same way without the file."""
    from benchmark.records import write_part

    folder = run / "criticism" / FOLDER / file.name
    for old in folder.glob("part-*.parquet"):
        old.unlink()
    columns = {name: pa.array(file.table[name].tolist(), pa.string()) for name in file.table.columns}
    write_part(folder, 0, pa.table(columns))


def kept(run: Path, name: str) -> pd.DataFrame:
    """What `keep` kept.

    Raises:
        BeyondError: It is not there, or damaged.
    """
    from benchmark.records import part_is_sound, part_paths

    folder = run / "criticism" / FOLDER / name
    paths = part_paths(folder)
    if not paths or not part_is_sound(paths[0]):
        raise BeyondError(f"{folder} is missing or damaged; give --attributes again with its file")
    frame: pd.DataFrame = read_parquet(paths[0], {"image_id": pa.string()}).to_pandas()
    return frame


def revision_of(run: Path, name: str) -> str:
    """What pins the content of kept attributes."""
    from benchmark.records import part_paths

    paths = part_paths(run / "criticism" / FOLDER / name)
    return content_revision(paths[0].read_bytes()) if paths else ""


# ------------------------------------------------------------------------------------- tables to attributes


def from_table(
    table: pd.DataFrame, image_ids: npt.NDArray[np.object_], *, source: str
) -> tuple[list[Attribute], list[str]]:
    """Attributes of images from rows (image_id, attribute, value, kind).

    Args:
        table: As `AttributeFile.table`.
        image_ids: object (N,), the images of the run.
        source: Name for tables.

    Returns:
        The attributes that can be tested, and a line for each thing left out: unknown ids, attributes that
        cover none of the images, have one value, or too many to be counted.
    """
    notes: list[str] = []
    at = pd.Index(image_ids).get_indexer(pd.Index(table["image_id"].to_numpy(dtype=object)))
    known = at >= 0
    foreign = table["image_id"][~known].nunique()
    if foreign:
        first = table["image_id"][~known].iloc[0]
        notes.append(f"{source}: {foreign:,} ids are of no image with a distance (first {first}); left out")
    found = []
    for name, rows in table.groupby("attribute", sort=True):
        mine = known[rows.index.to_numpy()]
        if not mine.any():
            notes.append(f"{source}: attribute {name} covers none of the images")
            continue
        values = rows["value"].to_numpy(dtype=object)[mine]
        person = bool((rows["kind"] == "person").any())
        attribute, note = _attribute(
            str(name), source, len(image_ids), at[rows.index.to_numpy()][mine], values
        )
        if attribute is None:
            notes.append(f"{source}: {note}")
            continue
        if person:
            counts = np.bincount(attribute.codes[attribute.known], minlength=len(attribute.values))
            tested = tuple(v for v in attribute.tested if counts[v] >= MIN_PEOPLE_CELL)
            if len(tested) < len(attribute.tested):
                notes.append(
                    f"{source}: attribute {name} is about people; values of fewer than {MIN_PEOPLE_CELL} "
                    "images are not looked at"
                )
            attribute = Attribute(
                attribute.name, source, attribute.values, attribute.codes, tested, person=True
            )
        found.append(attribute)
    return found, notes


def _attribute(
    name: str, source: str, n: int, rows: npt.NDArray[np.intp], values: npt.NDArray[np.object_]
) -> tuple[Attribute | None, str]:
    names, inverse, counts = np.unique(values.astype(str), return_inverse=True, return_counts=True)
    if len(names) == 1:
        return None, f"attribute {name} has one value ({names[0]}), so there is nothing to compare"
    if len(names) > MAX_VALUES:
        return None, (
            f"attribute {name} has {len(names):,} different values; group them into at most {MAX_VALUES}"
        )
    codes = np.full(n, -1, dtype=np.int8)
    codes[rows] = inverse
    tested: Sequence[int] = range(len(names))
    if len(names) == 2:
        lower = [str(value).lower() for value in names]
        yes = [i for i, value in enumerate(lower) if value in _YES and lower[1 - i] in _NO]
        # Of two values, one says all: the one that says yes, or else the rarer.
        tested = yes or [int(np.argmin(counts))]
    return Attribute(name, source, tuple(map(str, names)), codes, tuple(tested)), ""


def from_factors(
    factors: pd.DataFrame, image_ids: npt.NDArray[np.object_]
) -> tuple[list[Attribute], list[str]]:
    """ImageNet-X factors as attributes: all that apply to an image, not only the most salient one.

    Args:
        factors: As `annotations.sources.imagenet_x_factors` returns it.
        image_ids: object (N,), the images of the run.
    """
    at = pd.Index(image_ids).get_indexer(pd.Index(factors["image_id"].to_numpy(dtype=object)))
    known = at >= 0
    if not known.any():
        return [], ["imagenet-x: none of the images is annotated; it covers the ImageNet validation images"]
    found, same = [], []
    for factor in FACTORS:
        codes = np.full(len(image_ids), -1, dtype=np.int8)
        codes[at[known]] = factors[factor].to_numpy(dtype=np.int8)[known]
        seen = np.unique(codes[codes >= 0])
        if len(seen) < 2:
            same.append(factor.replace("_", " "))
            continue
        found.append(Attribute(factor.replace("_", " "), "imagenet-x", ("no", "yes"), codes, (1,)))
    if not same:
        return found, []
    return found, [f"imagenet-x: on these images one value alone has {', '.join(same)}"]


def from_label_sets(
    labels: LabelSets, image_ids: npt.NDArray[np.object_], classes: npt.NDArray[np.integer]
) -> tuple[list[Attribute], list[str]]:
    """Which other classes people accept in an image, as attributes of the images of each class.

    For a class and each other one accepted beside it in at least `MIN_TOGETHER` of its images here, the
    attribute `also NAME`, said of images of that class alone; and, over all classes, `several things`: more
    than one class is accepted.

    Args:
        labels: Label sets.
        image_ids: object (N,), the images of the run.
        classes: int (N,), their original labels.
    """
    rows = labels.rows(image_ids)
    usable = (rows >= 0) & (labels.evaluable[rows] if len(labels) else False)
    if not usable.any():
        return [], [f"co-occurrence: {labels.source} can evaluate none of the images"]
    names = class_names()
    accepted = labels.verdict == Verdict.ACCEPTED
    count = np.bincount(labels.pair_image[accepted], minlength=len(labels))
    several = np.full(len(image_ids), -1, dtype=np.int8)
    several[usable] = count[rows[usable]] > 1
    source = f"co-occurrence ({labels.source})"
    found = []
    if len(np.unique(several[usable])) == 2:
        found.append(Attribute("several things", source, ("no", "yes"), several, (1,)))
    # Pairs that never occur together anywhere need no look.
    together = co_occurrences(labels)
    for c in np.unique(classes[usable]).tolist():
        if c < 0:
            continue
        mine = np.flatnonzero(usable & (classes == c))
        if len(mine) < 2 * MIN_TOGETHER:
            continue
        companions = np.flatnonzero(together[c])
        if not len(companions):
            continue
        shape = (len(mine), len(companions))
        verdicts = labels.lookup(rows[mine], np.broadcast_to(companions, shape))
        there = verdicts == Verdict.ACCEPTED
        for j in np.flatnonzero((there.sum(axis=0) >= MIN_TOGETHER) & ~there.all(axis=0)).tolist():
            codes = np.full(len(image_ids), -1, dtype=np.int8)
            codes[mine] = there[:, j]
            name = f"also {names[int(companions[j])]}"
            found.append(Attribute(name, source, ("no", "yes"), codes, (1,), only=int(c)))
    return found, []
