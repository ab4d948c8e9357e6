"""The layouts in which image sets come, each turned into an `ImageSet`.

Labels come from the folder, table, shard or `labels.csv`, and must agree with the ILSVRC2012 ground truth,
which alone is enough for validation images.
"""

from __future__ import annotations

import csv
import functools
import itertools
import json
import os
import re
import stat
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from annotations.classes import NUM_CLASSES, package_file, validation_labels, validation_number, wnids
from annotations.errors import BeyondError
from benchmark.images import (
    FileHandle,
    Handle,
    Ids,
    ImageSet,
    Indices,
    MemberHandle,
    Places,
    RowHandle,
    StreamedImageSet,
    open_rows,
    sha256,
)

IMAGE_SUFFIXES = frozenset({".jpeg", ".jpg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
LAYOUTS = (
    "ILSVRC2012_val_*.JPEG files, folders by wnid (n01440764/…), webdataset *.tar shards, or *.parquet files "
    "or a dataset saved to disk with columns image and label"
)

_WNID = re.compile(r"n\d{8}")
_STEM_WITH_WNID = re.compile(r"(?P<id>.+)_(?P<wnid>n\d{8})")
_HUB = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^:@]+))?(?::(?P<split>[\w.-]+))?")
_INNER_FOLDERS = ("images", "val", "validation", "data")
_LABELS_FILE = "labels.csv"


def open_path(path: Path) -> ImageSet:
    """Recognise and open the layout of a local folder or file."""
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise BeyondError(
            f"there is no image folder {path}; give the folder of images with --images, or 'sample'"
        ) from error
    except OSError as error:
        raise BeyondError(f"cannot read {path}: {error.strerror}; check its permissions") from error
    if not is_folder:
        if path.suffix == ".tar":
            return _open_tars(path.stem, [path])
        if path.suffix == ".parquet":
            return _open_tables(path.stem, [path])
        raise BeyondError(f"{path} is a file, but no *.tar or *.parquet; give a folder with {LAYOUTS}")
    name = _folder_name(path)
    entries = _list(path)
    if "dataset_dict.json" in entries:
        splits = _texts(_read_json(path / "dataset_dict.json").get("splits"), path / "dataset_dict.json")
        return open_path(path / _choose_split(splits, path))
    if "state.json" in entries:
        state = path / "state.json"
        listed = _read_json(state).get("_data_files")
        if isinstance(listed, list):
            listed = [file.get("filename") if isinstance(file, dict) else None for file in listed]
        return _open_tables(name, [path / file for file in _texts(listed, state)])
    photographs = [file for file in entries if Path(file).suffix.lower() in IMAGE_SUFFIXES]
    class_folders = [file for file, entry in entries.items() if _WNID.fullmatch(file) and entry.is_dir()]
    if photographs and class_folders:
        raise BeyondError(
            f"{path} holds images beside class folders ({class_folders[0]}); keep one layout in a folder"
        )
    if photographs:
        return _open_flat(name, path, photographs, entries)
    if class_folders:
        return _open_by_wnid(name, path, class_folders)
    for suffix, opener in ((".tar", _open_tars), (".parquet", _open_tables)):
        shards = [file for file in entries if file.endswith(suffix)]
        if shards:
            return opener(name, [path / file for file in _of_one_split(shards, path)])
    inner = [folder for folder in _INNER_FOLDERS if folder in entries and entries[folder].is_dir()]
    if len(inner) > 1:
        raise BeyondError(f"{path} has several folders of images ({', '.join(inner)}); give one of them")
    if inner:
        return open_path(path / inner[0])
    raise BeyondError(f"{path} holds no images; give a folder with {LAYOUTS}")


def _open_flat(
    name: str, folder: Path, files: list[str], entries: Mapping[str, os.DirEntry[str]]
) -> ImageSet:
    """A folder of images, labelled by the ground truth or by a `labels.csv` in or beside the folder."""
    labels_path, labels = _read_labels(folder)
    found = _Found()
    for file in files:
        where = str(folder / file)
        image_id, label = _parse_stem(Path(file).stem, where)
        if image_id in labels:
            if label not in (-1, labels[image_id]):
                raise BeyondError(
                    f"{where} is named for class {label}, but {labels_path} says {labels[image_id]}"
                )
            where, label = str(labels_path), labels[image_id]
        if found.add(image_id, label, _size(entries[file]), where) < 0:
            raise BeyondError(
                f"{where} has no label: {image_id!r} is no ILSVRC2012 validation image; "
                f"add it to a {_LABELS_FILE} (image_id,class_index) in the folder"
            )
    return found.finish(name, _FilePlaces(str(folder), np.array(files, dtype=object)))


def _open_by_wnid(name: str, folder: Path, class_folders: list[str]) -> ImageSet:
    """Folders named by wnid, each holding the images of its class."""
    index_of = _class_of_wnid()
    found, names = _Found(), []
    for wnid in class_folders:
        if wnid not in index_of:
            raise BeyondError(f"{folder / wnid} is not one of the {NUM_CLASSES} classes; remove or rename it")
        for file, entry in _list(folder / wnid).items():
            if Path(file).suffix.lower() in IMAGE_SUFFIXES:
                where = str(folder / wnid / file)
                image_id, label = _parse_stem(Path(file).stem, where)
                if label not in (-1, index_of[wnid]):
                    raise BeyondError(
                        f"{where} is named for {wnids()[label]}, but lies in the folder of {wnid}"
                    )
                found.add(image_id, index_of[wnid], _size(entry), where)
                names.append(f"{wnid}/{file}")
    if not names:
        raise BeyondError(f"the class folders of {folder} hold no images; give a folder with {LAYOUTS}")
    return found.finish(name, _FilePlaces(str(folder), np.array(names, dtype=object)))


def open_unlabelled(name: str, folder: Path, files: Sequence[str]) -> ImageSet:
    """Images that have no ImageNet class, such as those of a probe: every label is −1.

    Args:
        name: Name of the set.
        folder: Where the files are.
        files: Paths below `folder`; an image's id is the stem of its file.
    """
    found = _Found()
    for file in files:
        found.add(Path(file).stem, -1, (folder / file).stat().st_size, str(folder / file))
    return found.finish(name, _FilePlaces(str(folder), np.array(files, dtype=object)))


def open_sample() -> ImageSet:
    """The 20 photographs of the package foolbox; imagenet_00_243.jpg is of class 243."""
    try:
        folder = package_file("foolbox", "data", "imagenet_00_243.jpg").parent
    except BeyondError as error:
        raise BeyondError(
            "the sample images are not installed; install them with: pip install 'beyond-accuracy[demo]'"
        ) from error
    found, names = _Found(), []
    for file, entry in _list(folder).items():
        if match := re.fullmatch(r"(imagenet_\d\d_(\d{1,3}))\.jpg", file):
            found.add(match.group(1), int(match.group(2)), _size(entry), str(folder / file))
            names.append(file)
    return found.finish("sample", _FilePlaces(str(folder), np.array(names, dtype=object)))


def _open_tars(name: str, paths: list[Path]) -> ImageSet:
    """Tar shards in webdataset form: members KEY.jpg with KEY.cls, which holds the class index."""
    found, shards, offsets, lengths = _Found(), [], [], []
    for shard, path in enumerate(paths):
        for image_id, label, offset, length in _scan_tar(path):
            if found.add(image_id, label, length, str(path)) < 0:
                raise BeyondError(
                    f"{image_id} in {path} has no label: it is no ILSVRC2012 validation image, so the shard "
                    f"needs a member {image_id}.cls"
                )
            shards.append(shard)
            offsets.append(offset)
            lengths.append(length)
    if not shards:
        raise BeyondError(f"{paths[0]} holds no images; webdataset shards hold KEY.jpg with KEY.cls")
    files = tuple(str(path) for path in paths)
    places = _MemberPlaces(files, np.array(shards), np.array(offsets), np.array(lengths))
    return found.finish(name, places, keep_order=True)


def _scan_tar(path: Path) -> Iterator[tuple[str, int, int, int]]:
    """Id, label (−1 unknown), offset and length of each image in a tar file, from its headers alone."""
    images: dict[str, tuple[str, int, int, int]] = {}
    labels: dict[str, int] = {}
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined] # tarfile keeps every header otherwise
                folder, _, file = member.name.rpartition("/")
                stem, _, extension = file.partition(".")
                if not member.isreg() or not stem:
                    continue
                where, key = f"{member.name} in {path}", f"{folder}/{stem}"
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"{member.name} is cut off")
                if f".{extension.lower()}" in IMAGE_SUFFIXES:
                    if key in images:
                        raise BeyondError(
                            f"{where} is a second image of the key {stem!r}; give each its own key"
                        )
                    images[key] = (*_parse_stem(stem, where), member.offset_data, member.size)
                elif extension == "cls":
                    content = tar.extractfile(member)
                    text = content.read(64).decode("ascii", "replace") if content else ""
                    labels[key] = _parse_label(text.strip(), where)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise BeyondError(
            f"cannot read {path} as an uncompressed tar file: {error}; copy or pack it again"
        ) from error
    for key, (image_id, label, offset, length) in images.items():
        given = labels.get(key, -1)
        if min(given, label) >= 0 and given != label:
            raise BeyondError(
                f"{image_id} in {path} is named for class {label}, but its .cls file says {given}"
            )
        yield image_id, max(given, label), offset, length


def _open_tables(name: str, paths: list[Path]) -> ImageSet:
    """Parquet or Arrow files with the columns of `ILSVRC/imagenet-1k`: image (bytes, path) and label."""
    found, files, rows = _Found(), [], []
    for number, path in enumerate(paths):
        table = _scan_table(path)
        size = path.stat().st_size
        for row, (image_id, file, label) in enumerate(table):
            where = f"row {row} of {path}"
            found.add(*_parse_row(image_id, file, label, where), size, where)
            files.append(number)
            rows.append(row)
    if not rows:
        raise BeyondError(f"the dataset {name} holds no rows; save it again")
    places = _RowPlaces(tuple(str(path) for path in paths), np.array(files), np.array(rows))
    return found.finish(name, places, keep_order=True)


def _scan_table(path: Path) -> Iterator[tuple[str | None, str | None, int | None]]:
    """Image id, file name and label of each row of a Parquet or Arrow file, without reading an image."""
    import pyarrow as pa

    try:
        rows = open_rows(str(path))
        _check_schema(rows.schema, str(path))
        table = rows.without_bytes()
        table.validate(full=True)
    except (OSError, pa.ArrowException) as error:
        raise BeyondError(f"cannot read {path}: {_one_line(error)}; download or save it again") from error
    nothing = [None] * table.num_rows
    columns = [
        table[c].to_pylist() if c in table.column_names else nothing for c in ("image_id", "path", "label")
    ]
    return zip(*columns, strict=True)


def open_hub(spec: str) -> ImageSet:
    """A dataset on the Hub, streamed, pinned to the commit that its revision names now."""
    match = _HUB.fullmatch(spec)
    if match is None:
        raise BeyondError(
            f"cannot read {spec!r}; write hf:ORG/NAME, hf:ORG/NAME@REVISION or hf:ORG/NAME:SPLIT"
        )
    repo, split = match["repo"], match["split"] or "validation"
    try:
        import datasets
        import huggingface_hub
    except ImportError as error:
        raise BeyondError(
            "reading from the Hub needs more packages; install them with: pip install 'beyond-accuracy[hf]'"
        ) from error
    try:
        commit = huggingface_hub.HfApi().dataset_info(repo, revision=match["revision"]).sha
        dataset = datasets.load_dataset(repo, revision=commit, split=split, streaming=True)
    except huggingface_hub.errors.RevisionNotFoundError as error:
        raise BeyondError(
            f"the dataset {repo} has no revision {match['revision']!r}; check its branches and tags"
        ) from error
    except huggingface_hub.errors.RepositoryNotFoundError as error:
        raise BeyondError(
            f"there is no dataset {repo} on the Hub that you may see; check its name, or: hf auth login"
        ) from error
    except Exception as error:  # httpx, fsspec and datasets share no base class
        raise BeyondError(f"cannot open {spec}: {_one_line(error)}") from error
    name = f"hf:{repo}@{commit}:{split}"
    size = (dataset.info.splits or {}).get(split)
    total = size.num_examples if size is not None and size.num_examples else None
    return StreamedImageSet(
        name, functools.partial(stream_rows, dataset, name), fingerprint=sha256([name]), total=total
    )


def stream_rows(dataset: Any, name: str) -> Iterator[tuple[str, int, bytes]]:
    """Id, label and bytes of each row of a streaming dataset, checked like the rows of a table."""
    import datasets

    if dataset.features is not None:
        _check_schema(dataset.features.arrow_schema, name)
    rows = iter(dataset.cast_column("image", datasets.Image(decode=False)))
    for number in itertools.count():
        where = f"row {number} of {name}"
        try:
            row = next(rows, None)
        except Exception as error:  # as above
            raise BeyondError(
                f"cannot read {where}: {_one_line(error)}; run the same command again"
            ) from error
        if row is None:
            return
        image = row.get("image") or {}
        image_id, label = _parse_row(row.get("image_id"), image.get("path"), row.get("label"), where)
        if image.get("bytes") is None:
            raise BeyondError(f"{where} has no bytes in its column 'image', so it cannot be streamed")
        yield image_id, _checked_label(image_id, label, where), image["bytes"]


# --- Places: where the images of a set are -----------------------------------------------------------------


@dataclass(frozen=True)
class _FilePlaces:
    folder: str
    names: Ids

    def handle(self, image_id: str, i: int) -> Handle:
        return FileHandle(image_id, self.folder, self.names[i])

    def take(self, indices: Indices) -> _FilePlaces:
        return _FilePlaces(self.folder, self.names[indices])


@dataclass(frozen=True)
class _MemberPlaces:
    files: tuple[str, ...]
    file: Indices
    offset: Indices
    length: Indices

    def handle(self, image_id: str, i: int) -> Handle:
        return MemberHandle(image_id, self.files[self.file[i]], int(self.offset[i]), int(self.length[i]))

    def take(self, indices: Indices) -> _MemberPlaces:
        return _MemberPlaces(self.files, self.file[indices], self.offset[indices], self.length[indices])


@dataclass(frozen=True)
class _RowPlaces:
    files: tuple[str, ...]
    file: Indices
    row: Indices

    def handle(self, image_id: str, i: int) -> Handle:
        return RowHandle(image_id, self.files[self.file[i]], int(self.row[i]))

    def take(self, indices: Indices) -> _RowPlaces:
        return _RowPlaces(self.files, self.file[indices], self.row[indices])


class _Found:
    """Images as a layout lists them, on their way to an `ImageSet`."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.labels: list[int] = []
        self.sizes: list[int] = []

    def add(self, image_id: str, label: int, size: int, where: str) -> int:
        """Note one image; the label that it has then (−1 unknown) is returned."""
        self.ids.append(image_id)
        self.labels.append(_checked_label(image_id, label, where))
        self.sizes.append(size)
        return self.labels[-1]

    def finish(self, name: str, places: Places, *, keep_order: bool = False) -> ImageSet:
        """Sort by id and refuse duplicates; `keep_order` has chunks follow the order of `add`."""
        ids = np.array(self.ids, dtype=object)
        by_id = np.argsort(ids, kind="stable")
        ids, labels = ids[by_id], np.array(self.labels, dtype=np.int16)[by_id]
        twice = np.flatnonzero(ids[1:] == ids[:-1])
        if len(twice):
            i = int(twice[0])
            first, second = (places.handle(ids[i], int(by_id[j])).where for j in (i, i + 1))
            raise BeyondError(f"the id {ids[i]} appears twice: {first} and {second}; remove one of them")
        sizes = np.array(self.sizes)[by_id]
        rows = (
            f"{image_id}\t{label}\t{size}" for image_id, label, size in zip(ids, labels, sizes, strict=True)
        )
        order = np.argsort(by_id) if keep_order else None
        return ImageSet(name, ids, labels, places.take(by_id), fingerprint=sha256(rows), order=order)


def _check_schema(schema: Any, where: str) -> None:
    """Refuse a table without the columns of `ILSVRC/imagenet-1k`, or with other classes."""
    import pyarrow as pa

    twice = [name for name in schema.names if schema.names.count(name) > 1]
    if twice:
        raise BeyondError(f"{where} has two columns {twice[0]!r}; save it with one of each")
    image = schema.field("image").type if "image" in schema.names else None
    if image is None or not pa.types.is_struct(image) or image.get_field_index("bytes") < 0:
        raise BeyondError(
            f"{where} has no column 'image' of bytes and path; save it in the layout of ILSVRC/imagenet-1k"
        )
    path = image.field(image.get_field_index("path")).type if image.get_field_index("path") >= 0 else None
    named = [kind for kind in (path, *_types(schema, "image_id")) if kind is not None]
    if not all(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind) for kind in named
    ):
        raise BeyondError(f"the image_id or image.path of {where} is no text; save it again")
    data = image.field(image.get_field_index("bytes")).type
    if not (pa.types.is_binary(data) or pa.types.is_large_binary(data)):
        raise BeyondError(f"the image.bytes of {where} hold {data}, not the bytes of files; save it again")
    if "label" in schema.names and not pa.types.is_integer(schema.field("label").type):
        raise BeyondError(
            f"the column 'label' of {where} holds {schema.field('label').type}, not class indices 0..999"
        )
    names = _names_of_classes(schema)
    if names is not None and len(names) != NUM_CLASSES:
        raise BeyondError(
            f"{where} has {len(names)} classes, not the {NUM_CLASSES} of ILSVRC2012; its labels mean others"
        )
    if names is not None and all(_WNID.fullmatch(str(name)) for name in names) and tuple(names) != wnids():
        raise BeyondError(
            f"{where} lists its classes in another order than ILSVRC2012 (class 0 is {names[0]})"
        )


def _types(schema: Any, name: str) -> list[Any]:
    return [schema.field(name).type] if name in schema.names else []


def _names_of_classes(schema: Any) -> list[Any] | None:
    """The names of classes that the library datasets left in a schema, or None."""
    try:
        found = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        for key in ("info", "features", "label", "names"):
            found = found.get(key)
    except (AttributeError, ValueError, RecursionError):
        return None
    return found if isinstance(found, list) else None


# --- Ids and labels ----------------------------------------------------------------------------------------


@functools.cache
def _class_of_wnid() -> dict[str, int]:
    return {wnid: index for index, wnid in enumerate(wnids())}


def _parse_stem(stem: str, where: str) -> tuple[str, int]:
    """The id in a file's stem, and the class (−1 unknown) if a wnid follows, as in the Hub's imagenet-1k."""
    match = _STEM_WITH_WNID.fullmatch(stem)
    if match is None:
        return stem, -1
    index = _class_of_wnid().get(match["wnid"])
    if index is None:
        raise BeyondError(
            f"{where} names {match['wnid']}, which is not one of the {NUM_CLASSES} classes; rename it"
        )
    return match["id"], index


def _parse_label(text: object, where: str) -> int:
    """A class index in 0..999."""
    try:
        label = int(str(text))
    except ValueError:
        label = -1
    if not 0 <= label < NUM_CLASSES:
        raise BeyondError(f"{where} has the label {text!r}; labels are class indices 0..{NUM_CLASSES - 1}")
    return label


def _parse_row(image_id: str | None, file: str | None, label: int | None, where: str) -> tuple[str, int]:
    """Id and label (−1 unknown) of a table's row."""
    if not image_id and not file:
        raise BeyondError(
            f"{where} has neither an image_id nor a file name in image.path, so its id is unknown"
        )
    known, named = _parse_stem(image_id or PurePosixPath(file or "").stem, where)
    index = -1 if label is None or label == -1 else _parse_label(label, where)
    if min(named, index) >= 0 and named != index:
        raise BeyondError(f"{where} is named for class {named} ({wnids()[named]}), but its label is {index}")
    return known, max(named, index)


def _checked_label(image_id: str, label: int, where: str) -> int:
    """The label after comparing it with the ground truth, which alone decides where `label` is −1.

    Raises:
        BeyondError: They disagree, or the id looks like a validation image that does not exist.
    """
    number = validation_number(image_id)
    if number is None:
        if image_id.startswith("ILSVRC2012_val_"):
            raise BeyondError(
                f"{where}: the id {image_id} is not in the ILSVRC2012 ground truth; remove or rename it"
            )
        return label
    known = int(validation_labels()[number - 1])
    if label not in (-1, known):
        raise BeyondError(
            f"{where} puts {image_id} in class {label}, but the ILSVRC2012 ground truth says {known}; "
            "correct or remove it"
        )
    return known


def _read_labels(folder: Path) -> tuple[Path | None, dict[str, int]]:
    """The labels in `labels.csv` in the folder or beside it: image_id, class_index and perhaps wnid."""
    for path in (folder / _LABELS_FILE, folder.resolve().parent / _LABELS_FILE):
        if not path.is_file():
            continue
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise BeyondError(f"{path} is not UTF-8 text; save it as CSV in UTF-8") from None
        try:
            reader = csv.DictReader(lines)
            columns = set(reader.fieldnames or ())
            if not {"image_id", "class_index"} <= columns:
                if path.parent != folder:
                    continue  # some other table that happens to lie there
                raise BeyondError(
                    f"{path} needs the columns image_id and class_index; its first line is another"
                )
            labels: dict[str, int] = {}
            for row in reader:
                where, image_id = f"{path}, line {reader.line_num}", row["image_id"]
                label = _parse_label(row["class_index"], where)
                if row.get("wnid") and wnids()[label] != row["wnid"]:
                    raise BeyondError(
                        f"{where}: class {label} is {wnids()[label]}, not {row['wnid']}; correct it"
                    )
                if labels.setdefault(image_id, label) != label:
                    raise BeyondError(f"{where} gives {image_id} a second label, {label}; remove one")
        except csv.Error as error:
            raise BeyondError(f"{path} cannot be read as CSV ({error}); save it again") from None
        return path, labels
    return None, {}


def _list(folder: Path) -> dict[str, os.DirEntry[str]]:
    """What a folder holds, by name, sorted; hidden files are left out."""
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise BeyondError(
            f"cannot read the folder {folder}: {error.strerror}; check its permissions"
        ) from error
    return {entry.name: entry for entry in sorted(visible, key=lambda entry: entry.name)}


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError as error:
        raise BeyondError(f"cannot read {entry.path}: {error.strerror}; is it a broken link?") from error


def _folder_name(folder: Path) -> str:
    folder = folder.resolve()
    inner = folder.name in _INNER_FOLDERS and folder.parent.name
    return folder.parent.name if inner else folder.name or "images"


def _choose_split(splits: Sequence[str], where: Path) -> str:
    """The validation split, or the only one."""
    for split in ("validation", "val", *(splits if len(splits) == 1 else ())):
        if split in splits:
            return split
    raise BeyondError(
        f"{where} has no split 'validation', only {', '.join(splits) or 'none'}; give one split's folder"
    )


def _of_one_split(files: Sequence[str], where: Path) -> list[str]:
    """The files of the validation split, where file names tell splits apart; else all."""
    split_of = {}
    for file in files:
        match = re.search(r"(?<![a-z])(train|validation|val|test)(?![a-z])", file)
        split_of[file] = match.group(1) if match else ""
    splits = sorted(set(split_of.values()))
    chosen = splits[0] if len(splits) == 1 else _choose_split(splits, where)
    return [file for file in files if split_of[file] == chosen]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BeyondError(f"cannot read {path}: {_one_line(error)}; save the dataset again") from error
    if not isinstance(content, dict):
        raise BeyondError(f"{path} holds no keys; save the dataset again")
    return content


def _texts(values: object, where: Path) -> list[str]:
    """A list of plain names, without folders."""
    if not isinstance(values, list) or not all(
        isinstance(value, str)
        and value.isprintable()
        and len(value) < 200
        and Path(value).name == value != ".."
        for value in values
    ):
        raise BeyondError(f"{where} does not list its files or splits; save the dataset again")
    return values


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return " ".join(lines[0].split()) if lines else type(error).__name__
