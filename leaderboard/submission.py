"""What a submission consists of, made and checked on this machine before anything leaves it.

```
STAGE/entries/<slug>/entry.yaml, scorecard.json, correct.bits
STAGE/records/<slug>/run.json, predictions/, skipped/, robustness/, agreement/
```

Only ids, classes, logits, verdicts and answers are copied, each column by name: no image, no thumbnail, no
pixel. The description of the run is cut to what the numbers need, and paths of this machine are cut to file
names.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from pydantic import ValidationError

from annotations.errors import BeyondError, first_problem
from annotations.study.preregistration import MADE_UP_NOTE
from benchmark import agreement, records, runs
from benchmark.attack_records import ROBUSTNESS, ROWS_SCHEMA
from benchmark.scorecard import SCORECARD_FILE
from leaderboard.correctness import Correctness
from leaderboard.entries import (
    ENTRIES_FOLDER,
    Entry,
    EntryInfo,
    Records,
    records_sha256,
    write_entry,
)
from leaderboard.masks import portable_fingerprint

ENTRIES, RECORDS = "entries", "records"

COLUMNS = {
    records.PREDICTIONS: set(records.PREDICTIONS_SCHEMA.names),
    records.SKIPPED: set(records.SKIPPED_SCHEMA.names),
    ROBUSTNESS: set(ROWS_SCHEMA.names),
    agreement.AGREEMENT: set(agreement.SCHEMA.names),
}
"""The columns of each kind of records; a file with any other is not sent."""

KEPT_ENVIRONMENT = ("versions", "python", "git", "device", "batch_size", "precision_check")
"""What of a run's environment is published; the rest says things about a machine."""

_ABSOLUTE = re.compile(r"(?<![\w:/\\.])(?:~|[A-Za-z]:)?[/\\](?:[^\s'\"/\\:]+[/\\])+([^\s'\"/\\:]*)")


@dataclass(frozen=True)
class Outgoing:
    """One file that would leave the machine.

    Attributes:
        path: Where it goes, relative to the repository.
        source: Where it lies here.
        size: Bytes.
        sha256: Of its bytes, 64 hexadecimal digits.
    """

    path: str
    source: Path
    size: int
    sha256: str

    @classmethod
    def of(cls, source: Path, path: str) -> Outgoing:
        """Measure a file."""
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(path, source, source.stat().st_size, digest)

    def git_sha1(self) -> str:
        """The sha1 that git gives its content."""
        content = self.source.read_bytes()
        head = b"blob %d\0" % len(content)
        return hashlib.sha1(head + content, usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Submission:
    """A submission, ready and checked.

    Attributes:
        entry: The entry as read back from the stage.
        described: The files of the entry, by path.
        records: The files of its records, by path.
        notes: What the checks found worth knowing.
        sends_records: Whether the records go along; otherwise they lie at the entry's pointer already.
    """

    entry: Entry
    described: tuple[Outgoing, ...]
    records: tuple[Outgoing, ...]
    notes: tuple[str, ...] = ()
    sends_records: bool = True

    @property
    def files(self) -> tuple[Outgoing, ...]:
        """All that would leave, the entry's files first."""
        return self.described + (self.records if self.sends_records else ())

    @property
    def slug(self) -> str:
        """The entry's name."""
        return self.entry.slug

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def prepare(
    run: Path,
    details: Mapping[str, Any],
    stage: Path,
    *,
    submitted: date,
    hub: tuple[str, str, str] | None = None,
    entries: Path = ENTRIES_FOLDER,
) -> Submission:
    """Make a submission out of a run in an empty folder, and check it.

    Args:
        run: The run's folder.
        details: Fields of `entry.yaml` that a person must give (see `EntryInfo`).
        stage: An empty folder.
        submitted: Day of the submission.
        hub: Repository, commit and path where the records lie already; None sends them along.
        entries: The entries that it must not duplicate.

    Raises:
        BeyondError: The run cannot be published, a detail is not valid, or a check fails.
    """
    slug = str(details["slug"])
    published = stage / RECORDS / slug
    copy_records(run, published)
    specs = runs.default_annotations(runs.read_run(published))
    labels = runs.load_labels(specs)
    scorecard = runs.score_run(published, specs, labels=labels)
    result = runs.rectified_result(published, labels=labels)
    images = scorecard.images.model_copy(
        update={
            "fingerprint": portable_fingerprint(result.image_ids, result.original_labels),
            "sample": runs.is_sample(np.sort(result.image_ids.astype(str))),
        }
    )
    scorecard = scorecard.model_copy(update={"images": images})
    sha256 = records_sha256(published)
    if hub is None:
        pointer = Records(kind="file", path=f"{RECORDS}/{slug}", sha256=sha256)
    else:
        repository, revision, path = hub
        pointer = Records(kind="hub", repository=repository, revision=revision, path=path, sha256=sha256)
    try:
        info = EntryInfo.model_validate(
            {
                **details,
                "entry_version": 1,
                "submitted": submitted,
                "status": "self-reported",
                "state": "active",
                "scope": "sample" if scorecard.images.sample else "full",
                "records": pointer,
                "sha256": {"scorecard": "0" * 64},
            }
        )
    except ValidationError as error:
        raise BeyondError(f"the entry is not valid: {first_problem(error)}") from None
    entry = write_entry(
        stage / ENTRIES,
        info,
        scorecard,
        Correctness.from_result(result, scorecard.annotations.sources),
    )
    # What scoring wrote beside the records is part of the entry, not of them.
    for name in (SCORECARD_FILE, ".lock"):
        (published / name).unlink(missing_ok=True)
    check_texts(stage)
    notes = check(entry, stage, entries)

    def outgoing(folder: Path) -> list[Outgoing]:
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        return [Outgoing.of(path, path.relative_to(stage).as_posix()) for path in paths]

    return Submission(
        entry,
        tuple(outgoing(entry.folder)),
        tuple(outgoing(published)),
        tuple(notes),
        sends_records=hub is None,
    )


def check(entry: Entry, stage: Path, entries: Path) -> list[str]:
    """Check an entry as the maintainers will: form, arithmetic, every number from the records, duplicates.

    Returns:
        What is worth knowing, one line each.

    Raises:
        BeyondError: Something is wrong; the first thing is named.
    """
    from leaderboard.validation import validate

    report = validate(entries, [str(entry.folder)], records=stage)
    wrong = [finding.message for finding in report.findings if finding.level == "error"]
    replaced = (entries / entry.slug).is_dir()
    if replaced:
        wrong = [message for message in wrong if f"{entry.slug!r}" not in message]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise BeyondError(f"this cannot be submitted: {wrong[0]}{more}")
    return [finding.message for finding in report.findings]


# ------------------------------------------------------------------------------------------------ the records


def copy_records(run: Path, to: Path) -> None:
    """Copy what a run recorded and nothing else, without what it says of this machine.

    Raises:
        BeyondError: The folder is no run, a part is damaged, or a file holds anything but records.
    """
    info = runs.read_run(run)
    if not records.part_paths(run / records.PREDICTIONS):
        raise BeyondError(f"{run} holds no predictions; score it first: beyond score … --out {run}")
    if agreement.has_agreement(run):
        study, plan = agreement.read_agreement(run)
        if study.made_up or (plan is not None and plan.made_up):
            raise BeyondError(
                f"the answers in {run / agreement.AGREEMENT} are {MADE_UP_NOTE}; remove that folder, and "
                f"beyond rescore {run}"
            )
    to.mkdir(parents=True)
    for kind, columns in COLUMNS.items():
        for number, part in enumerate(records.part_paths(run / kind)):
            if not records.part_is_sound(part):
                raise BeyondError(
                    f"{part} is damaged (checksum); run the same beyond score command again to repair it"
                )
            schema = pq.read_schema(part)
            strange = [name for name in schema.names if name not in columns]
            if strange:
                raise BeyondError(f"{part} has a column {strange[0]!r}, which is no record; it is not sent")
            if kind == records.SKIPPED:
                table = pq.read_table(part, partitioning=None)
                reasons = [without_folders(reason) for reason in table["reason"].to_pylist()]
                table = table.set_column(1, schema.field("reason"), [reasons])
                records.write_part(to / kind, number, table, durable=False)
            else:
                (to / kind).mkdir(exist_ok=True)
                _link(part, to / kind / part.name)
    model = info.model.model_copy(update={"spec": portable_spec(info.model.spec)})
    kept = {name: info.environment[name] for name in KEPT_ENVIRONMENT if name in info.environment}
    told = info.model_copy(update={"model": model, "environment": kept}).model_dump(mode="json")
    runs.write_run(to, runs.RunInfo.model_validate(_cut(told)))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def portable_spec(spec: str) -> str:
    """A model spec without folders of this machine; names on the Hub stay whole.

    Example:
        >>> portable_spec("models/mine.py:build"), portable_spec("timm:resnet50@/data/w.safetensors")
        ('mine.py:build', 'timm:resnet50@w.safetensors')
        >>> portable_spec("hf:org/name@main")
        'hf:org/name@main'
    """
    if match := re.fullmatch(r"(.*[/\\])?([^/\\]+\.py:\w+)", spec):
        return match.group(2)
    head, at, weights = spec.partition("@")
    if at and re.search(r"\.(safetensors|pth?|bin|ckpt)$", weights):
        return head + at + re.split(r"[/\\]", weights)[-1]
    return without_folders(spec)


def without_folders(text: str) -> str:
    """Text whose absolute paths are cut to file names.

    Example:
        >>> without_folders("cannot read /home/ann/val/a.JPEG: truncated, see https://x.org/a/b")
        'cannot read a.JPEG: truncated, see https://x.org/a/b'
    """
    return _ABSOLUTE.sub(lambda match: match.group(1) or "…", text)


def _cut(data: Any) -> Any:
    """The same data, every text without folders."""
    if isinstance(data, str):
        return without_folders(data)
    if isinstance(data, dict):
        return {key: _cut(value) for key, value in data.items()}
    return [_cut(value) for value in data] if isinstance(data, list) else data


def check_texts(stage: Path) -> None:
    """Make sure that no text names a folder of this machine's user.

    Raises:
        BeyondError: One does.
    """
    home = str(Path.home())
    if len(home) < 4:
        return
    for path in sorted(stage.rglob("*.json")) + sorted(stage.rglob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        if home in text or json.dumps(home)[1:-1] in text:
            raise BeyondError(f"{path.relative_to(stage)} would tell {home}; reword what you gave")
