"""Entries: published scorecards with their provenance, as folders of three files.

```
leaderboard/entries/<slug>/
  entry.yaml       who, what, where from, licence, citation, life cycle, status, where its records are
  scorecard.json   `benchmark.scorecard.Scorecard`, canonical bytes
  correct.bits     which images it gets right (see `leaderboard.correctness`)
```

An entry is data from strangers: nothing in it is executed, no file is read before its kind and size are
known, and no text of it may hold markup or control characters. The format: `docs/leaderboard.md`.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic import model_validator as after

from annotations.errors import BeyondError, first_problem
from benchmark.scorecard import SCORECARD_FILE, Scorecard
from leaderboard.correctness import Correctness

ENTRY_VERSION = 1
ENTRY_FILE, CORRECT_FILE = "entry.yaml", "correct.bits"
FILES = (ENTRY_FILE, SCORECARD_FILE, CORRECT_FILE)

MAX_BYTES = {ENTRY_FILE: 64 * 1024, SCORECARD_FILE: 2 * 1024 * 1024, CORRECT_FILE: 1024 * 1024}
"""Most bytes that a file of an entry may have; more is refused before it is read."""

ENTRIES_FOLDER = Path(__file__).parent / "entries"
"""The entries of this repository."""

_SLUG = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,98}[a-z0-9])?")
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_PART = r"[A-Za-z0-9_-][A-Za-z0-9._-]*"
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?")  # no file names on Windows
_FORBIDDEN_CATEGORIES = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def check_text(value: str, *, lines: bool = False) -> str:
    """The text itself, if it is plain: no markup, nothing invisible, nothing that turns its direction.

    Args:
        value: The text.
        lines: Whether it may have several lines.

    Raises:
        ValueError: It is not plain.
    """
    for character in value:
        if lines and character in "\n\t":
            continue
        if unicodedata.category(character) in _FORBIDDEN_CATEGORIES:
            raise ValueError(f"holds the invisible character U+{ord(character):04X}; use plain text")
        if character in "<>":
            raise ValueError(f"holds {character!r}; use plain text without markup")
    if value != value.strip():
        raise ValueError("starts or ends with a space; remove it")
    return value


def _line(value: str) -> str:
    return check_text(value)


def _lines(value: str) -> str:
    return check_text(value, lines=True)


def check_slug(value: str) -> str:
    """The slug itself, if it can name a folder and a page anywhere.

    Raises:
        ValueError: It has other characters than a-z, 0-9, dot, hyphen and underscore, starts or ends with one
            of the last three, has two dots in a row, or is a device's name on Windows.
    """
    if not _SLUG.fullmatch(value) or ".." in value or _RESERVED.fullmatch(value):
        raise ValueError(
            f"slug {value!r} is not allowed; use a-z, 0-9, '.', '-' and '_', at most 100, "
            "starting and ending with a letter or digit"
        )
    return value


def _https(value: str) -> str:
    try:
        parts = urlsplit(value)
        host = parts.hostname
    except ValueError:
        parts, host = None, None
    if parts is None or parts.scheme != "https" or not host or "." not in host:
        raise ValueError(f"{value!r} is no https address")
    if parts.username or parts.password or re.search(r"[\s\"'`\\|]", value):
        raise ValueError(f"{value!r} holds characters that do not belong in an address")
    return _line(value)


def _spdx(value: str) -> str:
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

    try:
        canonical = str(canonicalize_license_expression(value))
    except InvalidLicenseExpression:
        raise ValueError(
            f"{value!r} is no SPDX licence expression; e.g. MIT, Apache-2.0, CC-BY-NC-4.0, LicenseRef-Name"
        ) from None
    if canonical != value:
        raise ValueError(f"{value!r} is spelled {canonical!r} in SPDX")
    return value


def _relative(value: str) -> str:
    if not all(re.fullmatch(_PART, part) for part in value.split("/")):
        raise ValueError(f"{value!r} is no plain relative path; use letters, digits, '.', '_', '-' and '/'")
    return value


_MARKUP = {"pattern": r"^[^<>]*$"}

Slug = Annotated[
    str,
    AfterValidator(check_slug),
    Field(max_length=100, json_schema_extra={"pattern": f"^{_SLUG.pattern}$"}),
]
Line = Annotated[str, Field(min_length=1, max_length=200, json_schema_extra=_MARKUP), AfterValidator(_line)]
Lines = Annotated[
    str, Field(min_length=1, max_length=8000, json_schema_extra=_MARKUP), AfterValidator(_lines)
]
Link = Annotated[
    str, Field(max_length=500, json_schema_extra={"pattern": "^https://"}), AfterValidator(_https)
]
Spdx = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_spdx)]
RelativePath = Annotated[
    str,
    Field(min_length=1, max_length=300, json_schema_extra={"pattern": f"^{_PART}(/{_PART})*$"}),
    AfterValidator(_relative),
]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
Repository = Annotated[str, Field(pattern=rf"^{_HUB_NAME.pattern}$")]

State = Literal["active", "superseded", "withdrawn"]
Status = Literal["self-reported", "recomputed", "verified"]
Scope = Literal["full", "sample"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Links(_Strict):
    """Where to read on; https only."""

    paper: Link | None = Field(default=None, description="The paper that describes the model.")
    code: Link | None = Field(default=None, description="The code that trained or runs it.")
    weights: Link | None = Field(default=None, description="Its weights.")
    predictions: Link | None = Field(default=None, description="Where its predictions were published.")


class Licence(_Strict):
    """SPDX licence expressions; absent where nobody stated one."""

    weights: Spdx | None = Field(default=None, description="Licence of the weights.")
    predictions: Spdx = Field(description="Licence of the predictions (records) and of this entry.")


class Records(_Strict):
    """Where the per-image records are, from which every number can be recomputed.

    `hub`: a dataset repository on the Hugging Face Hub, at a pinned commit. `file`: a file or run folder that
    whoever validates has at hand (`--records FOLDER`), published elsewhere. `none`: not published.
    """

    kind: Literal["hub", "file", "none"]
    repository: Repository | None = Field(default=None, description="hub: ORG/NAME of the dataset.")
    revision: Commit | None = Field(default=None, description="hub: the commit, 40 hexadecimal digits.")
    path: RelativePath | None = Field(default=None, description="Predictions file or run folder.")
    sha256: Sha256 | None = Field(
        default=None, description="Of the file, or of a folder's list of parts (see the documentation)."
    )

    @after(mode="after")
    def _complete(self) -> Records:
        needed = {"hub": ("repository", "revision", "path", "sha256"), "file": ("path", "sha256"), "none": ()}
        for name in ("repository", "revision", "path", "sha256"):
            given = getattr(self, name) is not None
            if given != (name in needed[self.kind]):
                raise ValueError(
                    f"records of kind {self.kind} {'have no' if given else 'need'} {name}; "
                    f"they have {', '.join(needed[self.kind]) or 'nothing else'}"
                )
        return self


class FileHashes(_Strict):
    """SHA-256 of the entry's other files."""

    scorecard: Sha256 = Field(description=f"Of {SCORECARD_FILE}.")
    correct: Sha256 | None = Field(default=None, description=f"Of {CORRECT_FILE}; absent without it.")


class Verification(_Strict):
    """What a re-run of the model found (`beyond leaderboard verify`)."""

    checked: date = Field(description="Day of the re-run.")
    n: int = Field(ge=1, description="Images drawn at random after the submission.")
    agreed: int = Field(ge=0, description="Images with the same top-1 prediction.")
    seed: Line = Field(description="What the random subset was drawn with.")
    tolerance: float = Field(ge=0, le=1, description="Share of differing predictions that is allowed.")
    differing_at_most: float | None = Field(
        default=None, ge=0, le=1, description="One-sided 95 % bound on the share of predictions that differ."
    )
    top5_agreed: int | None = Field(default=None, ge=0, description="Images with the same five best classes.")
    logit_tolerance: float | None = Field(
        default=None, ge=0, description="How far logits might lie apart; absent without published logits."
    )
    largest_logit_difference: float | None = Field(
        default=None, ge=0, description="Largest difference of logits of the five best classes."
    )
    model: Line | None = Field(default=None, description="Model spec that was run.")
    versions: dict[Line, Line] = Field(default_factory=dict, description="Of packages and the device.")

    @after(mode="after")
    def _possible(self) -> Verification:
        if self.agreed > self.n:
            raise ValueError(f"{self.agreed} of {self.n} images cannot agree")
        if (self.n - self.agreed) / self.n > self.tolerance:
            raise ValueError(f"only {self.agreed} of {self.n} agree, which is outside the tolerance")
        return self


class EntryInfo(_Strict):
    """What `entry.yaml` holds."""

    entry_version: Literal[1] = Field(description="Version of this format.")
    slug: Slug = Field(description="Name of the folder and of the page; never changes.")
    name: Line = Field(description="Name to show.")
    family: Line = Field(description="Kind of architecture, e.g. ResNet.")
    year: int = Field(ge=1990, le=2100, description="Year the model was published.")
    organisation: Line | None = Field(default=None, description="Who made it, if an organisation.")
    authors: Line | None = Field(default=None, description="Who made it, as the paper names them.")
    links: Links = Field(default_factory=Links)
    licence: Licence
    citation: Lines = Field(description="BibTeX, or a reference as text.")
    contact: Line = Field(description="Who answers for the entry: a name, handle or mail address.")
    parameters: int | None = Field(default=None, ge=1, description="Number of weights; absent if unsure.")
    input_size: int | None = Field(default=None, ge=1, le=16384, description="Pixels a side.")
    flops: int | None = Field(default=None, ge=1, description="Multiply-adds an image.")
    throughput: float | None = Field(
        default=None, gt=0, description="Images a second, see `notes` for where."
    )
    submitted: date = Field(description="Day of the submission.")
    state: State = Field(default="active", description="Life cycle.")
    superseded_by: Slug | None = Field(default=None, description="Slug of the entry that replaces it.")
    reason: Lines | None = Field(default=None, description="Why it is superseded or withdrawn.")
    status: Status = Field(default="self-reported", description="Who has checked the numbers.")
    verification: Verification | None = Field(default=None, description="Of status verified.")
    scope: Scope = Field(description="full: all 50,000 validation images; sample: never ranked with these.")
    records: Records
    sha256: FileHashes
    notes: Lines | None = Field(default=None, description="What a reader must know.")

    @after(mode="after")
    def _life_cycle(self) -> EntryInfo:
        if (self.superseded_by is not None) != (self.state == "superseded"):
            raise ValueError("superseded_by goes with state superseded, and only with it")
        if self.superseded_by == self.slug:
            raise ValueError("an entry cannot supersede itself")
        if self.state == "withdrawn" and self.reason is None:
            raise ValueError("a withdrawn entry needs a reason")
        if self.state == "active" and self.reason is not None:
            raise ValueError("reason goes with state superseded or withdrawn")
        if (self.verification is not None) != (self.status == "verified"):
            raise ValueError("verification goes with status verified, and only with it")
        if self.organisation is None and self.authors is None:
            raise ValueError("name an organisation, or authors")
        return self


@dataclass(frozen=True)
class Entry:
    """One entry as read from its folder.

    Attributes:
        folder: Where it lies.
        info: What `entry.yaml` holds.
        scorecard: Its numbers.
    """

    folder: Path
    info: EntryInfo
    scorecard: Scorecard

    @property
    def slug(self) -> str:
        """Name of the folder and of the page."""
        return self.info.slug

    @cached_property
    def correctness(self) -> Correctness | None:
        """Which images it gets right, or None where the entry has no such file; read on first use.

        Raises:
            BeyondError: The file is damaged.
        """
        if self.info.sha256.correct is None:
            return None
        data = read_limited(self.folder / CORRECT_FILE)
        return Correctness.from_bytes(data, where=f"{self.slug}/{CORRECT_FILE}")


# ---------------------------------------------------------------------------------------------------- reading


def load_entries(folder: Path = ENTRIES_FOLDER) -> list[Entry]:
    """All entries of a folder, by slug.

    Raises:
        BeyondError: The folder is missing, or an entry is not valid; the message names the entry.
    """
    return [read_entry(path) for path in entry_folders(folder)]


def entry_folders(folder: Path = ENTRIES_FOLDER) -> list[Path]:
    """The folders of the entries, by slug; hidden names are passed over.

    Raises:
        BeyondError: There is no such folder, or something in it is no folder.
    """
    if not folder.is_dir():
        raise BeyondError(f"no folder of entries at {folder}; name one that holds <slug>/{ENTRY_FILE}")
    found = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    for path in found:
        if path.is_symlink() or not path.is_dir():
            raise BeyondError(f"{path} is not a folder; a folder of entries holds <slug>/{ENTRY_FILE} alone")
    return found


def read_entry(folder: Path) -> Entry:
    """Read one entry: its `entry.yaml` and its scorecard, whose hash must be as stated.

    This checks what is needed to trust the shape of the data. Whether the numbers are right is the work of
    `leaderboard.validation`.

    Raises:
        BeyondError: The folder or a file is missing, a link, too large, or not valid.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise BeyondError(f"{folder} is not a folder of an entry; it needs {ENTRY_FILE} and {SCORECARD_FILE}")
    names = sorted(path.name for path in folder.iterdir())
    extra = [name for name in names if name not in FILES]
    if extra:
        raise BeyondError(f"{folder.name}: {extra[0]!r} does not belong in an entry; remove it")
    info = read_info(folder / ENTRY_FILE)
    if info.slug != folder.resolve().name:
        raise BeyondError(f"{folder.name}/{ENTRY_FILE} has slug {info.slug!r}; it must be the folder's name")
    if (info.sha256.correct is not None) != (CORRECT_FILE in names):
        raise BeyondError(f"{folder.name}: {CORRECT_FILE} and sha256.correct must both be there, or neither")
    data = read_limited(folder / SCORECARD_FILE)
    where = f"{folder.name}/{SCORECARD_FILE}"
    if hashlib.sha256(data).hexdigest() != info.sha256.scorecard:
        raise BeyondError(f"{where} is not the file whose sha256 {ENTRY_FILE} states; submit it again")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise BeyondError(f"{where} is not UTF-8 text") from None
    return Entry(folder, info, Scorecard.from_json(text, where=where))


def read_info(path: Path) -> EntryInfo:
    """Read an `entry.yaml`.

    Raises:
        BeyondError: It is missing, too large, not plain YAML, or not valid.
    """
    where = f"{path.parent.name}/{path.name}"
    try:
        text = read_limited(path).decode("utf-8")
    except UnicodeDecodeError:
        raise BeyondError(f"{where} is not UTF-8 text") from None
    return parse_info(text, where=where)


def parse_info(text: str, *, where: str = ENTRY_FILE) -> EntryInfo:
    """Turn the text of an `entry.yaml` into an `EntryInfo`.

    Raises:
        BeyondError: It is not plain YAML (no anchors, aliases, tags; each key once), or not valid.
    """
    data = load_yaml(text, where=where)
    if isinstance(data, dict) and data.get("entry_version") not in (None, ENTRY_VERSION):
        raise BeyondError(
            f"{where} has entry_version {data['entry_version']!r}; this beyond reads {ENTRY_VERSION}: "
            "update it"
        )
    try:
        return EntryInfo.model_validate(data)
    except ValidationError as error:
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise BeyondError(f"{where}: {first_problem(error)}{more}") from None


def read_limited(path: Path, limit: int | None = None) -> bytes:
    """Read a plain file of bounded size; what it is and how large is known before a byte is read.

    Args:
        path: The file.
        limit: Most bytes; by default that of its name in `MAX_BYTES`.

    Raises:
        BeyondError: There is none, it is a link or no plain file, or it is larger than allowed.
    """
    limit = MAX_BYTES[path.name] if limit is None else limit
    where = f"{path.parent.name}/{path.name}"
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    flags |= getattr(os, "O_BINARY", 0)
    try:
        if path.is_symlink():
            raise BeyondError(f"{where} is a link; an entry holds plain files")
        handle = os.open(path, flags)
    except FileNotFoundError:
        raise BeyondError(f"{where} is missing") from None
    with os.fdopen(handle, "rb") as file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise BeyondError(f"{where} is not a plain file")
        data = file.read(limit + 1) if facts.st_size <= limit else b""
        if facts.st_size > limit or len(data) > limit:
            raise BeyondError(f"{where} has {facts.st_size:,} bytes; at most {limit:,} are allowed")
    return data


# ------------------------------------------------------------------------------------------------------- YAML

_MAX_DEPTH, _MAX_EVENTS = 8, 5000


class _PlainLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML's safe loader, which also refuses a key that is given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys are distinct texts."""
        keys = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is no text", key.start_mark)
            if keys.count(key.value) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} is given twice", key.start_mark
                )
            if key.value == "<<":
                raise yaml.constructor.ConstructorError(None, None, "merge keys are refused", key.start_mark)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def load_yaml(text: str, *, where: str) -> Any:
    """Plain data from YAML: no anchors, aliases, tags or second documents, and only a few levels deep.

    Aliases are what makes a short text unfold into gigabytes, so they are refused while only events are read.

    Raises:
        BeyondError: The text is not YAML of this kind.
    """

    def refuse(what: str, mark: Any) -> NoReturn:
        raise BeyondError(f"{where}, line {mark.line + 1}: {what}; write plain keys and values")

    depth = 0
    try:
        for number, event in enumerate(yaml.parse(text, Loader=_PlainLoader)):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                refuse("anchors and aliases are refused", event.start_mark)
            if isinstance(event, yaml.NodeEvent) and getattr(event, "tag", None):
                refuse(f"the tag {event.tag!r} is refused", event.start_mark)  # type: ignore[attr-defined]
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if depth > _MAX_DEPTH or number > _MAX_EVENTS:
                refuse("too deep or too long", event.start_mark)
        return yaml.load(text, Loader=_PlainLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        at = f", line {mark.line + 1}" if mark is not None else ""
        what = " ".join((getattr(error, "problem", None) or str(error)).split())
        raise BeyondError(f"{where}{at} is not plain YAML: {what}") from None


def dump_info(info: EntryInfo) -> str:
    """The text of an `entry.yaml`, always the same for the same content: keys in the order of the schema."""
    data = info.model_dump(mode="python", exclude_none=True)
    for name in ("links",):
        if not data[name]:
            del data[name]
    return yaml.dump(
        data, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=False
    )


class _PlainDumper(yaml.SafeDumper):
    """YAML's safe dumper, which never writes aliases and writes texts of several lines as blocks."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's interface
        """Always."""
        return True


def _text(dumper: _PlainDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_PlainDumper.add_representer(str, _text)


# ---------------------------------------------------------------------------------------------------- writing


def write_entry(
    folder: Path, info: EntryInfo, scorecard: Scorecard, correctness: Correctness | None = None
) -> Entry:
    """Write an entry into `folder/<slug>`, replacing what was there; hashes are filled in.

    Each file is written whole or not at all, `entry.yaml` last, so that an interrupted write is found by its
    hashes and repaired by writing again.

    Args:
        folder: The folder of entries.
        info: Its description; `sha256` is replaced by the hashes of what is written.
        scorecard: Its numbers.
        correctness: Which images it gets right.

    Returns:
        The entry as read back.
    """
    target = folder / check_slug(info.slug)
    target.mkdir(parents=True, exist_ok=True)
    contents = {SCORECARD_FILE: scorecard.to_json().encode()}
    if correctness is not None:
        contents[CORRECT_FILE] = correctness.to_bytes()
    else:
        (target / CORRECT_FILE).unlink(missing_ok=True)
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    hashes = FileHashes(scorecard=sums[SCORECARD_FILE], correct=sums.get(CORRECT_FILE))
    info = EntryInfo.model_validate({**dict(info), "sha256": hashes})
    contents[ENTRY_FILE] = dump_info(info).encode()
    for name, data in contents.items():
        temporary = target / f".{name}.{os.getpid()}.tmp"
        try:
            temporary.write_bytes(data)
            temporary.replace(target / name)
        finally:
            temporary.unlink(missing_ok=True)
    return read_entry(target)


def records_files(path: Path) -> Iterator[Path]:
    """The files that the sha256 of records covers: the file itself, or a run's `run.json` and its parts."""
    if path.is_file():
        yield path
        return
    for name in ("run.json", "predictions", "skipped", "robustness", "agreement"):
        part = path / name
        if part.is_file():
            yield part
        elif part.is_dir():
            yield from sorted(p for p in part.iterdir() if p.suffix == ".parquet")


def records_sha256(path: Path) -> str:
    """SHA-256 of records: of a file's bytes, or of `sha256  name` lines over a run folder's parts."""
    if path.is_file():
        return _file_sha256(path)
    digest = hashlib.sha256()
    for file in records_files(path):
        digest.update(f"{_file_sha256(file)}  {file.relative_to(path).as_posix()}\n".encode())
    return digest.hexdigest()


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
