"""Where label sets come from: the registry of sources, and `load`, which turns a spec into label sets.

Specs:

`real`, `mla`, `label-errors`, `sample`
    A source of the registry.
`mla=FILE.csv`, `label-errors=FILE.json`
    The same, read from a file at hand.
`hub:ORG/NAME@REVISION`
    A dataset repository with `judgements.parquet` and `images.parquet`.
`path/to/folder`
    A folder with these two files, as `consolidate --out` or `LabelSets.save` writes them.
`consolidated`, `consolidated:real+mla`
    The merge of all sources at hand, or of those named.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.json

from annotations import hub
from annotations.classes import (
    NUM_CLASSES,
    NUM_VALIDATION_IMAGES,
    original_labels,
    package_file,
    validation_id,
    validation_ids,
    validation_labels,
)
from annotations.consolidate import Consolidated, consolidate
from annotations.errors import BeyondError, user_path
from annotations.factors import FACTORS
from annotations.judgements import IMAGES_FILE, JUDGEMENTS_FILE, LabelSets, Verdict, content_revision

SOURCE_FILE = "source.json"
CONFLICTS_FILE = "conflicts.csv"
STATUS_CONFLICTS_FILE = "status_conflicts.csv"


@dataclass(frozen=True)
class SourceInfo:
    """What there is to know about a source.

    Attributes:
        name: Its spec.
        kind: `judgements` (label sets), `attributes` (descriptions of images, no verdicts) or `merge`.
        description: One line.
        licence: Licence of the data.
        citation: The papers to cite.
        origin: Where the data comes from.
        needs: What the user has to do to have it here.
    """

    name: str
    kind: Literal["judgements", "attributes", "merge"]
    description: str
    licence: str
    citation: str
    origin: str
    needs: str


@dataclass(frozen=True)
class Imported:
    """Label sets read from a file of somebody else's form, and what had to be decided on the way."""

    label_sets: LabelSets
    notes: tuple[str, ...]


SOURCES: dict[str, SourceInfo] = {
    info.name: info
    for info in (
        SourceInfo(
            name="real",
            kind="judgements",
            description="Reassessed labels of the validation images, from raters' votes; closed world",
            licence="Apache-2.0",
            citation="Beyer, Hénaff, Kolesnikov, Zhai, van den Oord 2020, Are we done with ImageNet?",
            origin="reassessed-imagenet, as shipped in the package timm",
            needs="nothing; the package timm ships it",
        ),
        SourceInfo(
            name="mla",
            kind="judgements",
            description="Experts' multi-label sets of 20,000 validation images; open world",
            licence="as stated by its publishers; not redistributed here",
            citation="Shankar et al. 2020, Evaluating Machine Accuracy on ImageNet; "
            "Vasudevan et al. 2022, When Does Dough Become a Bagel?",
            origin="a CSV with proposed_labels, unclear_multi_labels, wrong_multi_labels and is_problematic",
            needs="beyond annotations import mla FILE.csv",
        ),
        SourceInfo(
            name="label-errors",
            kind="judgements",
            description="5 votes each on 5,440 suspected label errors; 4 of 5 decide; open world",
            licence="Apache-2.0",
            citation="Northcutt, Athalye, Mueller 2021, Pervasive Label Errors in Test Sets",
            origin="cleanlab/label-errors, imagenet_mturk.json",
            needs="beyond annotations import label-errors FILE.json",
        ),
        SourceInfo(
            name="sample",
            kind="judgements",
            description="Sample photographs: the maintainers' illustrative judgements, not a human study",
            licence="Apache-2.0",
            citation="this project",
            origin="annotations/data/sample in this project",
            needs="nothing; it is part of this project",
        ),
        SourceInfo(
            name="imagenet-x",
            kind="attributes",
            description="16 factors (pose, background, ...) that set an image apart from prototypes",
            licence="CC BY-NC 4.0: no commercial use",
            citation="Idrissi et al. 2023, ImageNet-X: Understanding Model Mistakes with Factor of Variation",
            origin="the package imagenet-x",
            needs="pip install 'beyond-accuracy[probes]'",
        ),
        SourceInfo(
            name="consolidated",
            kind="merge",
            description="Those of real, mla and label-errors that are here, merged; conflicts are kept",
            licence="that of its parts",
            citation="that of its parts",
            origin="annotations.consolidate",
            needs="nothing beyond its parts",
        ),
    )
}
CONSOLIDATED_PARTS = ("real", "mla", "label-errors")


# Loading ----------------------------------------------------------------------------------------------


def split_specs(text: str) -> list[str]:
    """Split the value of `--annotations` at its commas.

    Example:
        >>> split_specs("real, mla=labels.csv")
        ['real', 'mla=labels.csv']

    Raises:
        BeyondError: There is none, or one is named twice.
    """
    specs = [part.strip() for part in text.split(",") if part.strip()]
    if not specs:
        raise BeyondError("no source of annotations is named; for example: --annotations real,mla")
    twice = [spec for spec in specs if specs.count(spec) > 1]
    if twice:
        raise BeyondError(f"source {twice[0]!r} is named twice; name every source once")
    return specs


def load(spec: str, *, cache_dir: Path | None = None, offline: bool = False) -> LabelSets:
    """Load the label sets that a spec names (see the module's docstring for its forms).

    Args:
        spec: The spec.
        cache_dir: The annotation store; by default `store_dir()`.
        offline: Never use the network.

    Raises:
        BeyondError: The spec is unknown, or its data is not here, or it is not valid.
    """
    store = store_dir(cache_dir)
    name, _, file = spec.partition("=")
    if file and name in _READERS:
        return _read(name, user_path(file)).label_sets
    if spec.startswith("hub:"):
        repo, revision = hub.parse(spec)
        folder = hub.download(repo, revision, cache_dir=hub_dir(store), offline=offline)
        return LabelSets.load(folder, source=f"hub:{repo}", revision=folder.name)
    if spec == "consolidated" or spec.startswith("consolidated:"):
        return load_consolidated(spec, cache_dir=cache_dir, offline=offline).label_sets
    if spec in _READERS:
        return _load_imported(spec, store)
    if spec == "real":
        return _load_real()
    if spec == "sample":
        return _load_sample()
    if spec in SOURCES:
        raise BeyondError(
            f"{spec!r} holds attributes of images, not judgements; nothing can be scored against it; "
            "name a source of judgements, for example real"
        )
    path = user_path(spec)
    if path.is_dir() or os.sep in spec or spec.startswith((".", "~")):
        return read_folder(path)
    near = difflib.get_close_matches(spec, SOURCES, n=1)
    hint = (
        f"did you mean {near[0]!r}?"
        if near
        else f"known: {', '.join(SOURCES)}, hub:ORG/NAME@REVISION, a folder"
    )
    raise BeyondError(f"no such source of annotations {spec!r}; {hint}")


def load_consolidated(spec: str, *, cache_dir: Path | None = None, offline: bool = False) -> Consolidated:
    """Load and merge the sources that `consolidated` or `consolidated:A+B` names, with their conflicts.

    Raises:
        BeyondError: A named source is not here, or the merge is not possible.
    """
    _, _, names = spec.partition(":")
    if names:
        parts = [name.strip() for name in names.split("+") if name.strip()]
    else:
        parts = [name for name in CONSOLIDATED_PARTS if is_available(name, cache_dir=cache_dir)]
    if any(part == "consolidated" or part.startswith("consolidated:") for part in parts):
        raise BeyondError(
            "a merge cannot be part of a merge; name its parts, for example consolidated:real+mla"
        )
    return consolidate([load(part, cache_dir=cache_dir, offline=offline) for part in parts])


def is_available(name: str, *, cache_dir: Path | None = None) -> bool:
    """Whether a source of the registry can be loaded here without a network."""
    if name in _READERS:
        return (store_dir(cache_dir) / name / SOURCE_FILE).is_file() or _development_file(name) is not None
    try:
        if name == "real":
            package_file("timm", "data", "_info", "imagenet_real_labels.json")
        elif name == "imagenet-x":
            _imagenet_x_file("prototypical_paths.csv")
    except BeyondError:
        return False
    return True


# The annotation store ---------------------------------------------------------------------------------


def store_dir(cache_dir: Path | None = None) -> Path:
    """Folder of the annotation store: `cache_dir`, or annotations/ in $BEYOND_CACHE or its default."""
    if cache_dir is not None:
        return cache_dir
    root = os.environ.get("BEYOND_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "beyond-accuracy") / "annotations"


def hub_dir(store: Path) -> Path:
    """Folder inside the store that holds downloads from the Hub."""
    return store / "hub"


def import_file(name: str, file: Path, *, cache_dir: Path | None = None) -> Imported:
    """Convert a file of another form to label sets and keep them in the store, replacing an earlier import.

    Args:
        name: A source that comes as a file: mla or label-errors.
        file: The file as its publishers give it.
        cache_dir: The annotation store; by default `store_dir()`.

    Raises:
        BeyondError: The source cannot be imported, or the file is missing or not of its form.
    """
    if name not in _READERS:
        if name in SOURCES:
            raise BeyondError(f"{name!r} is not imported from a file; it needs {SOURCES[name].needs}")
        raise BeyondError(f"no source {name!r} can be imported; known: {', '.join(_READERS)}")
    imported = _read(name, file)
    write_folder(
        imported.label_sets,
        store_dir(cache_dir) / name,
        about={"imported_from": file.name, "notes": list(imported.notes)},
    )
    return imported


def write_folder(label_sets: LabelSets, folder: Path, *, about: dict[str, object] | None = None) -> None:
    """Write label sets with a `source.json` that holds their name, revision and checksums; all or nothing.

    Raises:
        BeyondError: The folder exists and holds something else.
    """
    folder = folder.resolve()
    ours = {JUDGEMENTS_FILE, IMAGES_FILE, SOURCE_FILE, CONFLICTS_FILE, STATUS_CONFLICTS_FILE}
    if folder.exists() and {path.name for path in folder.iterdir()} - ours:
        raise BeyondError(f"{folder} holds other files; choose an empty or a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as name:
        partial = Path(name) / "new"
        label_sets.save(partial)
        sums = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(partial.iterdir())
        }
        facts = {
            "source": label_sets.source,
            "revision": label_sets.revision,
            "sha256": sums,
            **(about or {}),
        }
        (partial / SOURCE_FILE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        partial.chmod(0o755)
        if folder.exists():
            folder.rename(Path(name) / "old")
        partial.rename(folder)


def read_folder(folder: Path, *, source: str | None = None) -> LabelSets:
    """Read label sets from a folder.

    A `source.json` in it gives name and revision, and its checksums must hold. Without one the folder's name
    is the source's, except that it cannot pass for one of the registry, whose rank it would get in a merge.

    Args:
        folder: Folder with `judgements.parquet` and `images.parquet`.
        source: Name to give the source, instead of the above.

    Raises:
        BeyondError: The folder is not a source, or one of its files is damaged.
    """
    if not (folder / SOURCE_FILE).is_file():
        name = folder.resolve().name
        return LabelSets.load(folder, source=source or (f"folder-{name}" if name in SOURCES else name))
    try:
        facts = json.loads((folder / SOURCE_FILE).read_text(encoding="utf-8"))
        name, revision, sums = str(facts["source"]), str(facts["revision"]), dict(facts["sha256"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BeyondError(f"{folder / SOURCE_FILE} is damaged ({error}); write the folder again") from error
    for file, expected in sums.items():
        if file not in (JUDGEMENTS_FILE, IMAGES_FILE, CONFLICTS_FILE, STATUS_CONFLICTS_FILE):
            raise BeyondError(f"{folder / SOURCE_FILE} is damaged (it names {file[:40]!r}); write it again")
        path = folder / file
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise BeyondError(
                f"{path} is missing or was changed (its checksum is not the one in {SOURCE_FILE}); "
                f"write the folder again, or delete {SOURCE_FILE} if the change is meant"
            )
    return LabelSets.load(folder, source=source or name, revision=revision)


def _load_imported(name: str, store: Path) -> LabelSets:
    if (store / name / SOURCE_FILE).is_file():
        return read_folder(store / name, source=name)
    development = _development_file(name)
    if development is not None:
        return _read(name, development).label_sets
    raise BeyondError(
        f"source {name!r} is not here; import it once: {SOURCES[name].needs}, or name {name}=FILE"
    )


def _development_file(name: str) -> Path | None:
    """The source's file among the shared development data, if this is a development checkout."""
    root = Path(os.environ.get("BEYOND_SHARED_DATA") or "../shared/data")
    path = root / "multilabel" / {"mla": "multilabel.csv", "label-errors": "label_errors_mturk.json"}[name]
    return path if path.is_file() else None


# ReaL and the sample ----------------------------------------------------------------------------------


def _load_real() -> LabelSets:
    """ReaL labels: list i of the file is validation image i + 1; an empty list excludes the image."""
    path = package_file("timm", "data", "_info", "imagenet_real_labels.json")
    content = path.read_bytes()
    lists: list[list[int]] = json.loads(content)
    if len(lists) != NUM_VALIDATION_IMAGES:
        raise BeyondError(f"timm's ReaL labels cover {len(lists)} images instead of 50,000; update timm")
    sizes = np.array([len(labels) for labels in lists])
    classes = np.array([label for labels in lists for label in labels], dtype=np.int64)
    keys = np.unique(np.repeat(np.arange(len(lists)), sizes) * NUM_CLASSES + classes)
    p, n = len(keys), len(lists)
    return LabelSets(
        source="real",
        revision=f"timm {importlib.metadata.version('timm')}, {content_revision(content)}",
        image_ids=validation_ids(),
        original_labels=validation_labels(),
        evaluable=sizes > 0,
        closed_world=np.ones(n, dtype=bool),
        pair_image=(keys // NUM_CLASSES).astype(np.int32),
        pair_class=(keys % NUM_CLASSES).astype(np.int16),
        verdict=np.full(p, Verdict.ACCEPTED, dtype=np.int8),
        score=np.full(p, np.nan, dtype=np.float32),
        votes=np.zeros(p, dtype=np.int16),
        pair_source=np.full(p, "real", dtype=object),
    )


def _load_sample() -> LabelSets:
    folder = Path(__file__).parent / "data" / "sample"
    paths = [folder / Path(name).with_suffix(".csv") for name in (JUDGEMENTS_FILE, IMAGES_FILE)]
    for path in paths:
        if not path.is_file():
            raise BeyondError(f"this installation lacks {path.name} of the sample set; install it again")
    judgements, images = (pd.read_csv(path) for path in paths)
    revision = content_revision(*(path.read_bytes() for path in paths))
    return LabelSets.from_tables(judgements, images, source="sample", revision=revision)


# Files of other forms ---------------------------------------------------------------------------------


def _read(name: str, file: Path) -> Imported:
    if not file.is_file():
        raise BeyondError(f"no file {file}; give the path of the file that holds {name!r}")
    return _READERS[name](file)


def read_mla(file: Path) -> Imported:
    """Read expert multi-label sets from a CSV of the form of "Flaws of ImageNet".

    `proposed_labels` are accepted, `unclear_multi_labels` unsure, `wrong_multi_labels` rejected, images with
    `is_problematic` excluded. A class that a row lists under two verdicts gets the first of them in this
    order, which is what MLA as published counts; the number of such classes is a note of the import.

    Raises:
        BeyondError: A column is missing, a value is not of the form, or the original labels are not those of
            the validation set.
    """
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as error:
        raise BeyondError(f"{file} is not a readable CSV file ({error}); get it again") from error
    lists = {
        "proposed_labels": "accepted",
        "unclear_multi_labels": "unsure",
        "wrong_multi_labels": "rejected",
    }
    for column in ("id", "original_label", *lists, "is_problematic"):
        if column not in table:
            raise BeyondError(f"{file} has no column {column!r}; mla needs the CSV of the multi-label sets")
    flags = table["is_problematic"].str.strip().str.lower()
    odd = ~flags.isin(["true", "false"])
    if odd.any():
        raise BeyondError(f"{file}: is_problematic is {flags[odd].iloc[0]!r}; it must be True or False")
    image_ids = table["id"].str.strip().str.replace(r"\.[A-Za-z]+$", "", regex=True)

    frames = []
    for column, verdict in lists.items():
        listed = table[column].str.split(",").explode().str.strip()
        listed = listed[listed != ""]
        if not listed.str.fullmatch(r"\d+").all():
            value = listed[~listed.str.fullmatch(r"\d+")].iloc[0]
            raise BeyondError(
                f"{file}: {column} holds {value!r}; it must hold class indices, separated by commas"
            )
        frames.append(
            pd.DataFrame(
                {
                    "image_id": image_ids.loc[listed.index].to_numpy(dtype=object),
                    "class_index": listed.astype(np.int64).to_numpy(),
                    "verdict": verdict,
                }
            )
        )
    judgements = pd.concat(frames, ignore_index=True)
    repeated = judgements.duplicated(["image_id", "class_index", "verdict"])
    judgements = judgements[~repeated]
    contradictory = judgements.duplicated(["image_id", "class_index"])
    images = pd.DataFrame(
        {
            "image_id": image_ids.to_numpy(dtype=object),
            "original_label": pd.to_numeric(table["original_label"], errors="coerce"),
            "status": np.where(flags == "true", "excluded", "evaluable").astype(object),
            "closed_world": False,
        }
    )
    label_sets = LabelSets.from_tables(
        judgements[~contradictory], images, source="mla", revision=content_revision(file.read_bytes())
    )
    _check_original_labels(label_sets, file)
    notes = []
    if contradictory.any():
        notes.append(
            f"{int(contradictory.sum())} classes are listed under two verdicts of their image; "
            "proposed counts before unclear, unclear before wrong"
        )
    if repeated.any():
        notes.append(f"{int(repeated.sum())} classes are listed twice under the same verdict; counted once")
    return Imported(label_sets, tuple(notes))


def read_label_errors(file: Path) -> Imported:
    """Read votes on suspected label errors (Northcutt et al. 2021): given, guessed, both or neither.

    Each image yields two pairs, the given label and the guessed one. A vote for `both` is a yes to each, for
    `neither` a no to each. A pair is accepted if at least 4 of 5 votes say yes (the same share, rounded up,
    of another number of votes), rejected if as many say no, unsure otherwise. Score is the share of yes.

    Raises:
        BeyondError: The file is not of that form.
    """
    columns = ("id", "given_original_label", "our_guessed_label")
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        rows = np.array([[entry[column] for column in columns] for entry in entries], dtype=np.int64)
        kinds = ("given", "guessed", "both", "neither")
        tally = np.array([[entry["mturk"][kind] for kind in kinds] for entry in entries], dtype=np.int64)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise BeyondError(
            f"{file} is not a list of label errors with votes ({type(error).__name__}: {error}); "
            "label-errors needs imagenet_mturk.json"
        ) from error
    if not len(rows) or rows[:, 0].min() < 1 or rows[:, 0].max() > NUM_VALIDATION_IMAGES:
        raise BeyondError(f"{file}: an id is no validation image number in 1..50,000; get the file again")
    total = tally.sum(axis=1)
    if tally.min() < 0 or total.min() < 1:
        raise BeyondError(f"{file}: image {rows[int(np.argmin(total)), 0]} has no votes; get the file again")
    ids = np.array([validation_id(number) for number in rows[:, 0].tolist()], dtype=object)
    needed = -(-4 * total // 5)
    frames = []
    for column, kind in ((1, 0), (2, 1)):
        yes = tally[:, kind] + tally[:, 2]
        verdict = np.select([yes >= needed, total - yes >= needed], ["accepted", "rejected"], "unsure")
        pairs = {"image_id": ids, "class_index": rows[:, column], "verdict": verdict.astype(object)}
        frames.append(pd.DataFrame({**pairs, "score": yes / total, "votes": total}))
    images = pd.DataFrame(
        {"image_id": ids, "original_label": rows[:, 1], "status": "evaluable", "closed_world": False}
    )
    label_sets = LabelSets.from_tables(
        pd.concat(frames, ignore_index=True),
        images,
        source="label-errors",
        revision=content_revision(file.read_bytes()),
    )
    _check_original_labels(label_sets, file)
    return Imported(label_sets, ())


def _check_original_labels(label_sets: LabelSets, file: Path) -> None:
    """Refuse a file whose ids and original labels are not those of the validation set."""
    known = original_labels(label_sets.image_ids)
    foreign = np.flatnonzero(known < 0)
    if len(foreign):
        raise BeyondError(f"{file}: {label_sets.image_ids[foreign[0]]!r} is not the id of a validation image")
    differ = np.flatnonzero(known != label_sets.original_labels)
    if len(differ):
        i = int(differ[0])
        raise BeyondError(
            f"{file}: {len(differ)} original labels are not those of the validation set, first "
            f"{label_sets.image_ids[i]} ({label_sets.original_labels[i]} instead of {known[i]}); get it again"
        )


_READERS: dict[str, Callable[[Path], Imported]] = {"mla": read_mla, "label-errors": read_label_errors}


# ImageNet-X -------------------------------------------------------------------------------------------


def _imagenet_x_file(name: str) -> Path:
    try:
        return package_file("imagenet_x", "annotations", name)
    except BeyondError as error:
        raise BeyondError(
            "ImageNet-X (CC BY-NC 4.0) is not installed; run: pip install 'beyond-accuracy[probes]'"
        ) from error


def imagenet_x_factors(*, prototypes: bool = False) -> pd.DataFrame:
    """Factors of the validation images that ImageNet-X annotates, read without importing its package.

    Args:
        prototypes: Include the prototypes of each class, which the images were compared with. The package
            leaves them out of its figures by default, and so does this.

    Returns:
        One row per image, sorted by id: image_id, class (int16, the original label), the 16 columns of
        `annotations.factors.FACTORS` (bool, every factor that applies), top_factor (the most salient one,
        None where there is none).

    Raises:
        BeyondError: The package `imagenet-x` is not installed or its files are not as expected.
    """
    schema = pa.schema(
        [("file_name", pa.string()), ("class", pa.int16()), *((name, pa.int8()) for name in FACTORS)]
    )
    options = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    tables = {}
    for which in ("multi", "top"):
        path = _imagenet_x_file(f"imagenet_x_val_{which}_factor.jsonl")
        table = pyarrow.json.read_json(path, parse_options=options).to_pandas()
        tables[which] = table.set_index("file_name").sort_index()
    multi, top = tables["multi"], tables["top"].loc[tables["multi"].index]
    if not prototypes:
        names = pd.read_csv(_imagenet_x_file("prototypical_paths.csv"))["file_name"]
        keep = ~multi.index.isin(names)
        multi, top = multi[keep], top[keep]
    flags = top[list(FACTORS)].to_numpy(dtype=bool)
    if (flags.sum(axis=1) > 1).any():
        raise BeyondError("ImageNet-X gives an image two top factors; update the package imagenet-x")
    names_of_top = np.array([*FACTORS, None], dtype=object)
    result: pd.DataFrame = multi[list(FACTORS)].astype(bool)
    result.insert(0, "class", multi["class"])
    result.insert(0, "image_id", [Path(name).stem for name in multi.index])
    result["top_factor"] = names_of_top[np.where(flags.any(axis=1), flags.argmax(axis=1), len(FACTORS))]
    result = result.reset_index(drop=True)
    return result
