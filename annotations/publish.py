"""Publishing judgements and the votes behind them: a dataset that describes itself, in one commit.

`prepare` turns an export into a release folder: Parquet files, a dataset card, Croissant metadata and
checksums. `upload` puts it on the Hub as a single commit on top of a known parent, tags it, downloads it
again and compares. Only the files named in `FILES` can leave: ids, class indices, answers and times, never a
pixel.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from annotations import hub
from annotations.agreement import Coefficient, agreement
from annotations.classes import NUM_CLASSES
from annotations.errors import BeyondError, first_problem
from annotations.judgements import IMAGES_FILE, JUDGEMENTS_FILE, LabelSets, Verdict
from annotations.tables import read_parquet

VOTES_FILE = "votes.parquet"
RATERS_FILE = "raters.parquet"
CARD_FILE = "README.md"
CROISSANT_FILE = "croissant.json"
CAMPAIGN_FILE = "campaign.json"
FILES = (CARD_FILE, CROISSANT_FILE, IMAGES_FILE, JUDGEMENTS_FILE, RATERS_FILE, hub.SUMS_FILE, VOTES_FILE)
ANSWERS = ("no", "maybe", "yes")
SMALLEST_GROUP = 5

VOTES_SCHEMA = pa.schema(
    [
        ("question_id", pa.int64()),
        ("image_id", pa.string()),
        ("class_index", pa.int16()),
        ("rater", pa.string()),
        ("answer", pa.string()),
        ("arm", pa.string()),
        ("gold", pa.bool_()),
        ("response_ms", pa.int32()),
        ("sampling_probability", pa.float64()),
    ]
)
# Optional columns that an export may add.
EXTRA_VOTES = {"counted": pa.bool_(), "purpose": pa.string()}

_MEANING = {
    "question_id": "Number of the question; all votes on one pair share it.",
    "image_id": "Stem of the image's file name, e.g. ILSVRC2012_val_00000001.",
    "class_index": "Class in the order of ILSVRC2012, 0 (tench) to 999.",
    "rater": "Random name of the rater, the same in all files, in no other dataset.",
    "answer": "yes, no or maybe: does the label apply to the image?",
    "arm": "Arm of a study, empty without arms.",
    "gold": "True where the answer was known beforehand, to check raters.",
    "response_ms": "Time from showing the picture to the answer, in milliseconds; null where unknown.",
    "sampling_probability": "Probability with which the pair was drawn for judging, in (0, 1].",
    "counted": "False for votes set aside: raters paused for low quality, votes beyond those asked for.",
    "purpose": "qualification or work.",
    "verdict": "accepted, rejected or unsure.",
    "score": "The aggregation's own score, in [0, 1]; null where it gives none.",
    "votes": "Number of votes behind the verdict.",
    "source": "Where the verdict comes from.",
    "original_label": "ILSVRC2012's label, -1 where unknown.",
    "status": "evaluable or excluded.",
    "closed_world": "True where every plausible label was judged, so that an unlisted class is rejected.",
}
_CROISSANT_TYPE = {
    "string": "sc:Text",
    "int16": "sc:Integer",
    "int32": "sc:Integer",
    "int64": "sc:Integer",
    "float": "sc:Float",
    "double": "sc:Float",
    "bool": "sc:Boolean",
}
_CARD_TYPE = {"float": "float32", "double": "float64"}


class About(BaseModel):
    """What only people know of a dataset, for its card. Unknown keys are rejected.

    The questions follow Gebru et al. 2021, Datasheets for Datasets, as far as they apply to votes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str = Field(min_length=3, max_length=120)
    summary: str = Field(min_length=10, description="What was asked of whom, and why, in a few sentences.")
    licence: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9.+-]*$", description="SPDX identifier, e.g. CC-BY-4.0."
    )
    authors: list[str] = Field(min_length=1)
    contact: str = Field(min_length=3, description="Where raters and users can turn to.")
    recruitment: str = Field(min_length=3, description="Who the raters are and how they were found.")
    pay: str = Field(min_length=3, description="What they were paid, or that they were not.")
    consent: str = Field(
        min_length=3, description="What they agreed to; version of the text; ethics review or why none."
    )
    limits: str = Field(min_length=3, description="What the data does not show, and for what not to use it.")
    instructions: str = Field("", description="What the raters were told.")
    collected: str = Field("", description="When, e.g. 2026-10 to 2026-11.")
    citation: str = ""
    homepage: str = Field("", pattern=r"^(https://\S+)?$")


@dataclass(frozen=True)
class Release:
    """A release folder that is ready to leave.

    Attributes:
        folder: Where it is.
        sizes: File name to size in bytes; exactly what `upload` sends.
        sha256: File name to checksum, of all but the list of checksums itself.
        withheld: Raters whose attributes were withheld, since fewer than five share them.
        agreement: Figures on the card.
    """

    folder: Path
    sizes: dict[str, int]
    sha256: dict[str, str]
    withheld: int
    agreement: dict[str, Coefficient]


@dataclass(frozen=True)
class Published:
    """Where a release is now.

    Attributes:
        repo: `ORG/NAME`.
        commit: 40 hex digits.
        tag: Tag put on it, or None.
        url: The commit's address, or the pull request's.
        changed: False if the repository had exactly these files already, so nothing was sent.
    """

    repo: str
    commit: str
    tag: str | None
    url: str
    changed: bool


def read_about(file: Path) -> About:
    """Read what people know of the dataset from a YAML file.

    Raises:
        BeyondError: There is no such file, it is not YAML, or a key is missing, unknown or empty.
    """
    if not file.is_file():
        raise BeyondError(f"no file {file}; a release needs {', '.join(_required())} in a YAML file")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BeyondError(f"{file} is not YAML ({str(error).splitlines()[0]}); mend it") from None
    if not isinstance(values, dict):
        raise BeyondError(f"{file} holds no keys; write {', '.join(_required())}")
    try:
        return About.model_validate(values)
    except ValidationError as error:
        raise BeyondError(f"{file}: {first_problem(error)}; see beyond annotations publish --help") from None


def prepare(export: Path, about: About, out: Path) -> Release:
    """Make a release folder from an export.

    Args:
        export: Folder with `judgements.parquet`, `images.parquet` and `votes.parquet`, as
            `beyond campaign export` writes it; `raters.parquet` (rater and attributes) may be among them.
        about: What people know of it.
        out: Folder to write; only files of an earlier release are replaced.

    Raises:
        BeyondError: A file is missing or not valid, a vote is not on a listed image, the campaign is not
            frozen, or `out` holds other files.
    """
    _require_frozen(export)
    label_sets = LabelSets.load(export, source="release")
    votes = read_votes(export / VOTES_FILE)
    unknown = ~votes["image_id"].isin(set(label_sets.image_ids))
    if unknown.any():
        raise BeyondError(
            f"{VOTES_FILE}: image {votes['image_id'][unknown].iloc[0]!r} is not in {IMAGES_FILE}; "
            "export again"
        )
    _require_own(out)
    out.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (out / name).unlink(missing_ok=True)
    label_sets.save(out)
    _write_table(_votes_table(votes), out / VOTES_FILE)
    withheld = 0
    if (export / RATERS_FILE).is_file():
        raters, withheld = protect(_read_table(export / RATERS_FILE), known=set(votes["rater"]))
        _write_table(pa.Table.from_pandas(raters, preserve_index=False), out / RATERS_FILE)
    figures = _agreement(votes)
    (out / CARD_FILE).write_text(
        card(about, out, label_sets=label_sets, votes=votes, figures=figures, withheld=withheld),
        encoding="utf-8",
    )
    (out / CROISSANT_FILE).write_text(_croissant(about, out), encoding="utf-8")
    sums = {name: _sha256(out / name) for name in FILES if name != hub.SUMS_FILE and (out / name).is_file()}
    listing = "".join(f"{value}  {name}\n" for name, value in sums.items())
    (out / hub.SUMS_FILE).write_text(listing, encoding="utf-8")
    return Release(
        out,
        {name: (out / name).stat().st_size for name in FILES if (out / name).is_file()},
        sums,
        withheld,
        figures,
    )


def upload(
    release: Release,
    repo: str,
    *,
    tag: str | None = None,
    public: bool = False,
    pull_request: bool = False,
    cache_dir: Path,
    endpoint: str | None = None,
) -> Published:
    """Send a release to a dataset repository in one commit, tag it, download it and compare.

    The commit names its parent, so that somebody else's commit in between is noticed, not overwritten. A
    connection that breaks leaves the repository as it was. Sending the same release again sends nothing.

    Args:
        release: What `prepare` returned; its checksums are compared with the files once more.
        repo: `ORG/NAME`; made if there is none.
        tag: Tag to put on the commit, such as `v1.0`.
        public: A new repository is visible to all; by default it is private.
        pull_request: Open a pull request instead of committing to `main` (no tag then).
        cache_dir: Cache of the annotation store, into which it is downloaded again.
        endpoint: Address of the Hub; by default the environment's HF_ENDPOINT, else huggingface.co.

    Raises:
        BeyondError: A file changed since `prepare`, access is refused, the network fails, the repository
            moved, or what comes back differs.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    for name, expected in release.sha256.items():
        if _sha256(release.folder / name) != expected:
            raise BeyondError(f"{release.folder / name} changed since it was prepared; prepare it again")
    if tag is not None and pull_request:
        raise BeyondError("a pull request takes no tag; tag the commit once it is merged")
    if tag is not None and not re.fullmatch(r"[\w][\w.+-]{0,99}", tag):
        raise BeyondError(f"{tag!r} is no tag; use letters, digits, dots and dashes, such as v1.0")
    repo, _ = hub.parse(repo)
    endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or hub.DEFAULT_ENDPOINT).rstrip("/")
    api = HfApi(endpoint=endpoint)
    with hub.plain_errors(repo, "main", endpoint):
        hub.retry(lambda: api.create_repo(repo, repo_type="dataset", private=not public, exist_ok=True))
        head = hub.retry(lambda: api.dataset_info(repo, revision="main", files_metadata=True))
        parent = str(head.sha)
        there = {entry.rfilename for entry in head.siblings or []}
        stale = sorted((there & set(FILES)) - set(release.sizes))
        same = not stale and _same(api, repo, parent, release, there)
        if same and not pull_request:
            commit, url = parent, f"{endpoint}/datasets/{repo}/commit/{parent}"
        else:
            operations: list[CommitOperationAdd | CommitOperationDelete] = [
                CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(release.folder / name))
                for name in release.sizes
            ]
            operations += [CommitOperationDelete(path_in_repo=name) for name in stale]
            info = api.create_commit(
                repo,
                operations,
                commit_message=f"Publish {tag}" if tag else "Publish judgements and votes",
                repo_type="dataset",
                parent_commit=parent,
                create_pr=pull_request,
            )
            commit, url = str(info.oid), str(info.pr_url if pull_request else info.commit_url)
        if tag is not None:
            _tag(api, repo, tag, commit)
        # Back through the front door: what users will get, by commit.
        folder = hub.download(repo, commit, cache_dir=cache_dir, endpoint=endpoint)
        for name in release.sizes:
            local = api.hf_hub_download(
                repo, name, repo_type="dataset", revision=commit, cache_dir=str(cache_dir)
            )
            if _sha256(Path(local)) != _sha256(release.folder / name):
                raise BeyondError(
                    f"{name} of {repo}@{commit[:12]} is not what was sent; publish again, and keep {folder}"
                )
    return Published(repo, commit, tag, url, changed=not same or pull_request)


# Votes and raters -------------------------------------------------------------------------------------------


def read_votes(file: Path) -> pd.DataFrame:
    """Read votes in long form, one row a vote.

    Raises:
        BeyondError: It is missing or unreadable, a column is missing or unknown, or a value is out of range.
    """
    frame = _read_table(file)
    names = list(VOTES_SCHEMA.names)
    missing = [name for name in names if name not in frame]
    if missing:
        raise BeyondError(f"{file.name} has no column {missing[0]!r}; it needs {', '.join(names)}")
    unknown = [name for name in frame if name not in names and name not in EXTRA_VOTES]
    if unknown:
        # An unknown column could hold anything about a person, so it never leaves unnoticed.
        raise BeyondError(f"{file.name} has a column {unknown[0]!r} that is not part of a release; drop it")
    for bad, what in (
        (~frame["answer"].isin(ANSWERS), "an answer that is not yes, no or maybe"),
        (~frame["class_index"].between(0, NUM_CLASSES - 1), "a class index outside 0..999"),
        (
            ~frame["sampling_probability"].between(0, 1, inclusive="right"),
            "a sampling probability not in (0, 1]",
        ),
        (frame["image_id"].isna() | (frame["image_id"] == ""), "no image id"),
        (frame["rater"].isna() | (frame["rater"] == ""), "no rater"),
    ):
        if bad.any():
            raise BeyondError(f"{file.name}: row {int(np.argmax(bad.to_numpy()))} has {what}; export again")
    twice = frame.duplicated(["question_id", "rater"])
    if twice.any():
        raise BeyondError(
            f"{file.name}: question {frame['question_id'][twice].iloc[0]} has two votes of one rater"
        )
    return frame


def protect(
    raters: pd.DataFrame, *, known: set[str], smallest: int = SMALLEST_GROUP
) -> tuple[pd.DataFrame, int]:
    """Withhold the attributes of raters whom too few others resemble (k-anonymity; Sweeney 2002).

    Args:
        raters: Column `rater` and any attributes, one row a rater.
        known: Raters with votes; others are dropped.
        smallest: k, the fewest raters that must share a combination of attributes.

    Returns:
        The table, with all attributes null where the combination is shared by fewer than k, and how many
        raters that concerns. If that leaves a withheld group of fewer than k, so that it could be guessed
        from what is known of the rest, the next smallest combination is withheld as well.

    Raises:
        BeyondError: No column `rater`, or a rater twice.
    """
    if "rater" not in raters:
        raise BeyondError(f"{RATERS_FILE} has no column 'rater'")
    if raters["rater"].duplicated().any():
        name = raters["rater"][raters["rater"].duplicated()].iloc[0]
        raise BeyondError(f"{RATERS_FILE}: rater {name!r} is listed twice")
    table = raters[raters["rater"].isin(known)].sort_values("rater", kind="stable").reset_index(drop=True)
    attributes = [name for name in table if name != "rater"]
    if not attributes or table.empty:
        return table, 0
    combination = table.groupby(attributes, dropna=False, sort=True).ngroup().to_numpy()
    size = np.bincount(combination)
    hidden = size < smallest
    order = np.lexsort((np.arange(len(size)), size))
    while hidden.any() and size[hidden].sum() < smallest and not hidden.all():
        hidden[next(group for group in order if not hidden[group])] = True
    conceal = hidden[combination]
    table = table.astype(dict.fromkeys(attributes, object))
    table.loc[conceal, attributes] = None
    return table, int(conceal.sum())


def _votes_table(votes: pd.DataFrame) -> pa.Table:
    schema = VOTES_SCHEMA
    for name, kind in EXTRA_VOTES.items():
        if name in votes:
            schema = schema.append(pa.field(name, kind))
    ordered = votes.sort_values(["question_id", "rater"], kind="stable")[schema.names]
    return pa.Table.from_pandas(ordered, schema=schema, preserve_index=False)


def _agreement(votes: pd.DataFrame) -> dict[str, Coefficient]:
    plain = votes[~votes["gold"].astype(bool)]
    if "counted" in plain:
        plain = plain[plain["counted"].astype(bool)]
    if plain.empty:
        return {}
    codes = plain["answer"].map({name: code for code, name in enumerate(ANSWERS)}).to_numpy()
    _, question = np.unique(plain["question_id"].to_numpy(), return_inverse=True)
    counts = np.bincount(question * 3 + codes, minlength=(question.max() + 1) * 3).reshape(-1, 3)
    image = pd.Series(pd.factorize(plain["image_id"])[0]).groupby(question).first().to_numpy()
    return agreement(counts, clusters=image)


# Card and metadata ------------------------------------------------------------------------------------------


def card(
    about: About,
    folder: Path,
    *,
    label_sets: LabelSets,
    votes: pd.DataFrame,
    figures: Mapping[str, Coefficient],
    withheld: int,
) -> str:
    """The dataset card: YAML that the Hub and `datasets` read, then a datasheet for people."""
    tables = [
        name for name in (JUDGEMENTS_FILE, IMAGES_FILE, VOTES_FILE, RATERS_FILE) if (folder / name).is_file()
    ]
    header = {
        "license": about.licence.lower(),
        "pretty_name": about.title,
        "task_categories": ["image-classification"],
        "tags": ["imagenet", "multi-label", "human-annotation", "croissant"],
        "configs": [
            {
                "config_name": name.removesuffix(".parquet"),
                "data_files": [{"split": "validation", "path": name}],
                **({"default": True} if name == JUDGEMENTS_FILE else {}),
            }
            for name in tables
        ],
        "dataset_info": [
            {
                "config_name": name.removesuffix(".parquet"),
                "features": [
                    {"name": field.name, "dtype": _CARD_TYPE.get(str(field.type), str(field.type))}
                    for field in pq.read_schema(folder / name)
                ],
                "splits": [
                    {
                        "name": "validation",
                        "num_examples": pq.read_metadata(folder / name).num_rows,
                        "num_bytes": (folder / name).stat().st_size,
                    }
                ],
            }
            for name in tables
        ],
    }
    verdicts = {
        name: int((label_sets.verdict == code).sum())
        for name, code in (
            ("accepted", Verdict.ACCEPTED),
            ("rejected", Verdict.REJECTED),
            ("unsure", Verdict.UNSURE),
        )
    }
    plain = votes[~votes["gold"].astype(bool)]
    lines = [
        "---",
        yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=100).rstrip(),
        "---",
        "",
        f"# {about.title}",
        "",
        about.summary,
        "",
        f"{len(label_sets):,} images, {len(label_sets.verdict):,} judged pairs of an image and a class "
        f"({verdicts['accepted']:,} accepted, {verdicts['rejected']:,} rejected, {verdicts['unsure']:,} "
        f"unsure), {len(plain):,} votes on pairs and {len(votes) - len(plain):,} on gold, by "
        f"{votes['rater'].nunique():,} raters.",
        "",
        "The dataset holds no image. `image_id` is the stem of the file's name in ILSVRC2012.",
        "",
        "```python",
        "import datasets",
        "",
        'judgements = datasets.load_dataset("ORG/NAME", "judgements", split="validation")',
        "```",
        "",
        "## Files",
        "",
    ]
    for name in tables:
        lines += [f"`{name}`", ""]
        for field in pq.read_schema(folder / name):
            meaning = _MEANING.get(field.name, "What the rater said of themselves; null where withheld.")
            lines.append(f"* `{field.name}` ({field.type}): {meaning}")
        lines.append("")
    lines += ["## Agreement", ""]
    if figures:
        lines += ["| | value | 95 % interval | questions |", "|---|---|---|---|"]
        names = {
            "alpha_nominal": "Krippendorff's α, nominal",
            "alpha_ordinal": "Krippendorff's α, ordinal",
            "ac1": "Gwet's AC1",
            "fleiss_kappa": "Fleiss' κ",
            "observed": "agreeing pairs of votes",
            "prevalence_0": "share of no",
            "prevalence_1": "share of maybe",
            "prevalence_2": "share of yes",
        }
        for key, title in names.items():
            c = figures[key]
            lines.append(f"| {title} | {c.value:.3f} | {c.low:.3f} to {c.high:.3f} | {c.n:,} |")
        lines += ["", "On counted votes without gold; intervals by the delta method over images."]
    else:
        lines.append("No votes on pairs.")
    lines += ["", "## Datasheet", ""]
    for title, text in (
        ("Who judged, and how they were found", about.recruitment),
        ("Pay", about.pay),
        ("Consent and ethics", about.consent),
        ("When", about.collected),
        ("What raters were told", about.instructions),
        ("Limits", about.limits),
    ):
        if text:
            lines += [f"**{title}.** {text}", ""]
    if RATERS_FILE in tables:
        lines += [
            f"**Privacy.** Attributes of raters are withheld where fewer than {SMALLEST_GROUP} raters share "
            f"their combination; here for {withheld} raters.",
            "",
        ]
    lines += [f"**Licence.** {about.licence}. The images are not covered and not included.", ""]
    lines += [f"**Authors.** {', '.join(about.authors)}. **Contact.** {about.contact}", ""]
    if about.citation:
        lines += ["## Citation", "", "```", about.citation.strip(), "```", ""]
    return "\n".join(lines)


def _croissant(about: About, folder: Path) -> str:
    """Croissant 1.0 metadata (MLCommons) of the Parquet files; without dates, so that it is reproducible."""
    tables = [
        name for name in (JUDGEMENTS_FILE, IMAGES_FILE, VOTES_FILE, RATERS_FILE) if (folder / name).is_file()
    ]
    document = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": re.sub(r"[^A-Za-z0-9]+", "-", about.title).strip("-").lower(),
        "description": about.summary,
        "license": f"https://spdx.org/licenses/{about.licence}.html",
        "creator": [{"@type": "sc:Person", "name": name} for name in about.authors],
        "isLiveDataset": False,
        **({"url": about.homepage} if about.homepage else {}),
        **({"citeAs": about.citation.strip()} if about.citation else {}),
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": name,
                "name": name,
                "contentUrl": name,
                "contentSize": f"{(folder / name).stat().st_size} B",
                "encodingFormat": "application/x-parquet",
                "sha256": _sha256(folder / name),
            }
            for name in tables
        ],
        "recordSet": [_record_set(name, pq.read_schema(folder / name)) for name in tables],
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _record_set(name: str, schema: pa.Schema) -> dict[str, Any]:
    stem = name.removesuffix(".parquet")
    return {
        "@type": "cr:RecordSet",
        "@id": stem,
        "name": stem,
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"{stem}/{field.name}",
                "name": field.name,
                "description": _MEANING.get(field.name, "Attribute of a rater; null where withheld."),
                "dataType": _CROISSANT_TYPE.get(str(field.type), "sc:Text"),
                "source": {"fileObject": {"@id": name}, "extract": {"column": field.name}},
            }
            for field in schema
        ],
    }


# The context that the Croissant 1.0 specification asks every document to carry.
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


# Parts ------------------------------------------------------------------------------------------------------


def _required() -> Sequence[str]:
    return [name for name, field in About.model_fields.items() if field.is_required()]


def _require_frozen(export: Path) -> None:
    """A campaign may publish once it is frozen: until then raters can withdraw."""
    file = export / CAMPAIGN_FILE
    if not file.is_file():
        return
    try:
        frozen = json.loads(file.read_text(encoding="utf-8")).get("frozen")
    except (ValueError, AttributeError) as error:
        raise BeyondError(
            f"{file} is not what beyond campaign export writes ({error}); export again"
        ) from None
    if frozen is not True:
        raise BeyondError(
            f"the campaign of {export} is not frozen, so raters can still withdraw; "
            "freeze it and export it again: beyond campaign freeze"
        )


def _require_own(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise BeyondError(f"{out} is a file; give a folder for the release")
    others = sorted(path.name for path in out.iterdir() if path.name not in FILES) if out.is_dir() else []
    if others:
        raise BeyondError(f"{out} holds {others[0]}, which is no part of a release; give another folder")


def _same(api: Any, repo: str, commit: str, release: Release, there: set[str]) -> bool:
    """Whether the repository's files are those of the release, by its own list of checksums."""
    if not set(release.sizes) <= there:
        return False
    remote = hub.retry(lambda: hub.list_files(api, repo, commit))
    return all(
        name in remote and hub.matches((release.folder / name).read_bytes(), remote[name])
        for name in release.sizes
    )


def _tag(api: Any, repo: str, tag: str, commit: str) -> None:
    refs = hub.retry(lambda: api.list_repo_refs(repo, repo_type="dataset"))
    existing = {ref.name: ref.target_commit for ref in refs.tags}
    if existing.get(tag) == commit:
        return
    if tag in existing:
        raise BeyondError(
            f"tag {tag} of {repo} is on {existing[tag][:12]} already, and a published tag never moves; "
            f"the files are at {commit[:12]}: choose another tag"
        )
    hub.retry(lambda: api.create_tag(repo, tag=tag, revision=commit, repo_type="dataset"))


def _read_table(file: Path) -> pd.DataFrame:
    if not file.is_file():
        raise BeyondError(f"no file {file}; export the campaign again: beyond campaign export")
    types = {field.name: field.type for field in VOTES_SCHEMA} | EXTRA_VOTES
    filled = [name for name in types if name not in ("arm", "response_ms")]
    frame: pd.DataFrame = read_parquet(file, types, filled=filled, remedy="export again").to_pandas()
    return frame


def _write_table(table: pa.Table, file: Path) -> None:
    pq.write_table(table.replace_schema_metadata(None), file, compression="zstd")


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
