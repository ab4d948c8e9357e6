"""`beyond annotations`: list, download, import, merge, show and publish label sets."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from annotations.errors import BeyondError

if TYPE_CHECKING:
    from rich.console import Console

    from annotations import sources
    from annotations.consolidate import Consolidated
    from annotations.judgements import LabelSets

F = TypeVar("F", bound=Callable[..., Any])


def _store_option(command: F) -> F:
    return click.option(
        "--store",
        type=click.Path(path_type=Path, file_okay=False),
        help="Annotation store [default: ~/.cache/beyond-accuracy/annotations, or in $BEYOND_CACHE].",
    )(command)


def _json_option(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else.")(command)


def _offline_option(command: F) -> F:
    return click.option("--offline", is_flag=True, help="Never use the network.")(command)


@click.group()
def annotations() -> None:
    """List, download, import, merge, show and publish label sets.

    A source is named by a spec: real, mla, label-errors, sample, hub:ORG/NAME@REVISION, a folder,
    consolidated, or consolidated:real+mla.
    """


@annotations.command("list")
@_store_option
@_json_option
def list_(*, store: Path | None, as_json: bool) -> None:
    """List the sources: what they are, whether they are here, and under which licence."""
    from rich.markup import escape
    from rich.table import Table

    from annotations import hub, sources
    from annotations.judgements import LabelSets

    rows = []
    for info in sources.SOURCES.values():
        here = sources.is_available(info.name, cache_dir=store)
        images, evaluable = _sizes(info, store) if here else (None, None)
        rows.append(
            {
                "name": info.name,
                "kind": info.kind,
                "available": here,
                "images": images,
                "evaluable": evaluable,
                "licence": info.licence,
                "description": info.description,
                "citation": info.citation,
                "origin": info.origin,
                "needs": info.needs,
            }
        )
    for repo, commit, folder in hub.cached(sources.hub_dir(sources.store_dir(store))):
        spec = f"hub:{repo}@{commit}"
        label_sets = LabelSets.load(folder, source=f"hub:{repo}", revision=commit)
        rows.append(
            {
                "name": spec,
                "kind": "judgements",
                "available": True,
                "images": len(label_sets),
                "evaluable": int(label_sets.evaluable.sum()),
                "licence": "see its dataset card",
                "description": "Downloaded from the Hub",
                "citation": "see its dataset card",
                "origin": f"dataset {repo}",
                "needs": f"beyond annotations download {spec}",
            }
        )
    if as_json:
        _print_json(rows)
        return
    table = Table("source", "kind", "images", "evaluable", "licence", "what it is", box=None, pad_edge=False)
    for row in rows:
        about = str(row["description"])
        if not row["available"]:
            about += f"\nnot here; to get it: {row['needs']}"
        cells = (
            row["name"],
            row["kind"],
            _number(row["images"]),
            _number(row["evaluable"]),
            row["licence"],
            about,
        )
        table.add_row(*(escape(str(cell)) for cell in cells))
    _console().print(table)


@annotations.command()
@click.argument("spec", metavar="hub:ORG/NAME[@REVISION]")
@click.option("--revision", help="Branch, tag or commit, if the spec names none [default: main].")
@_store_option
@_offline_option
@_json_option
def download(*, spec: str, revision: str | None, store: Path | None, offline: bool, as_json: bool) -> None:
    """Download a dataset of judgements from the Hugging Face Hub, pinned to a commit and verified.

    HF_ENDPOINT names another Hub, HF_TOKEN gives access to private and gated datasets.
    """
    from annotations import hub, sources
    from annotations.judgements import LabelSets

    if spec in sources.SOURCES:
        raise BeyondError(f"{spec!r} is not downloaded from the Hub; it needs {sources.SOURCES[spec].needs}")
    repo, named = hub.parse(spec)
    if revision is not None and "@" in spec and revision != named:
        raise BeyondError(f"the spec names revision {named!r} and --revision {revision!r}; give one of them")
    folder = hub.download(
        repo, revision or named, cache_dir=sources.hub_dir(sources.store_dir(store)), offline=offline
    )
    label_sets = LabelSets.load(folder, source=f"hub:{repo}", revision=folder.name)
    facts = {
        "spec": f"hub:{repo}@{folder.name}",
        "revision": folder.name,
        "images": len(label_sets),
        "evaluable": int(label_sets.evaluable.sum()),
        "pairs": len(label_sets.verdict),
        "folder": str(folder),
    }
    if as_json:
        _print_json(facts)
        return
    click.echo(
        f"{repo} at {folder.name}: {len(label_sets):,} images, {len(label_sets.verdict):,} judged pairs"
    )
    click.echo(f"kept in {folder}")
    click.echo(f"score against it with: --annotations {facts['spec']}")


@annotations.command("import")
@click.argument("name", metavar="NAME")
@click.argument("file", type=click.Path(path_type=Path))
@_store_option
@_json_option
def import_(*, name: str, file: Path, store: Path | None, as_json: bool) -> None:
    """Convert FILE, as the publishers of the source NAME give it, and keep it in the store.

    NAME is mla (a CSV) or label-errors (a JSON).
    """
    from annotations import sources

    imported = sources.import_file(name, file, cache_dir=store)
    label_sets, folder = imported.label_sets, sources.store_dir(store) / name
    if as_json:
        _print_json({**_summary(label_sets), "notes": list(imported.notes), "folder": str(folder)})
        return
    click.echo(
        f"{name}: {len(label_sets):,} images, {int(label_sets.evaluable.sum()):,} evaluable, "
        f"{len(label_sets.verdict):,} judged pairs, revision {label_sets.revision}"
    )
    for note in imported.notes:
        click.echo(f"note: {note}")
    click.echo(f"kept in {folder}")


@annotations.command("consolidate")
@click.argument("specs", metavar="SOURCE,SOURCE[,...]")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Write the merge into this folder."
)
@_store_option
@_offline_option
@_json_option
def consolidate_(*, specs: str, out: Path | None, store: Path | None, offline: bool, as_json: bool) -> None:
    """Merge sources, and say what each covers and where they contradict each other.

    Expert verdicts count before aggregated votes, these before single sources; an explicit verdict counts
    before what a closed-world source merely does not list. --out holds a source (judgements.parquet,
    images.parquet) and the conflicts (conflicts.csv, status_conflicts.csv).
    """
    from annotations import sources
    from annotations.consolidate import consolidate

    label_sets = [sources.load(s, cache_dir=store, offline=offline) for s in sources.split_specs(specs)]
    merged = consolidate(label_sets)
    if out is not None:
        conflicts = json.loads(merged.conflict_counts().to_json(orient="records"))
        sources.write_folder(merged.label_sets, out, about={"conflicts": conflicts})
        merged.conflicts.to_csv(out / sources.CONFLICTS_FILE, index=False)
        merged.status_conflicts.to_csv(out / sources.STATUS_CONFLICTS_FILE, index=False)
    if as_json:
        _print_json(
            {
                "revision": merged.label_sets.revision,
                "coverage": json.loads(merged.coverage.to_json(orient="records")),
                "conflicts": json.loads(merged.conflict_counts().to_json(orient="records")),
                "folder": None if out is None else str(out),
            }
        )
        return
    _print_merge(merged)
    if out is not None:
        click.echo(f"\nkept in {out}; score against it with: --annotations {_as_spec(out)}")


@annotations.command()
@click.argument("spec")
@click.argument("image_id", required=False)
@_store_option
@_offline_option
@_json_option
def show(*, spec: str, image_id: str | None, store: Path | None, offline: bool, as_json: bool) -> None:
    """Show a source, or what it says about one image."""
    from rich.markup import escape
    from rich.table import Table

    from annotations import sources

    if spec in sources.SOURCES and sources.SOURCES[spec].kind == "attributes":
        _show_factors(spec, image_id, as_json=as_json)
        return
    merged = None
    if spec.partition(":")[0] == "consolidated":
        merged = sources.load_consolidated(spec, cache_dir=store, offline=offline)
        label_sets = merged.label_sets
    else:
        label_sets = sources.load(spec, cache_dir=store, offline=offline)
    if image_id is not None:
        _show_image(label_sets, image_id, merged, as_json=as_json)
        return
    facts = _summary(label_sets)
    info = sources.SOURCES.get(label_sets.source)
    if info is not None:
        facts.update(
            description=info.description, licence=info.licence, citation=info.citation, origin=info.origin
        )
    if as_json:
        _print_json(facts)
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in facts.items():
        text = (
            f"{value:,}"
            if isinstance(value, int)
            else f"{value:.3f}"
            if isinstance(value, float)
            else str(value)
        )
        table.add_row(name.replace("_", " "), escape(text))
    _console().print(table)
    if merged is not None:
        click.echo()
        _print_merge(merged)


@annotations.command()
@click.argument("export", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--about",
    "about_file",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="YAML file: title, summary, licence (SPDX), authors, contact, recruitment, pay, consent, limits; "
    "optional instructions, collected, citation, homepage.",
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Release folder [EXPORT/release]."
)
@click.option("--to", "repo", metavar="ORG/NAME", help="Dataset repository on the Hub to send it to.")
@click.option("--tag", help="Tag for the commit, such as v1.0. A published tag never moves.")
@click.option("--public", is_flag=True, help="Let all see a repository that is made now [private].")
@click.option("--pull-request", is_flag=True, help="Open a pull request instead of committing to main.")
@click.option("--dry-run", is_flag=True, help="Only write the release folder and say what would leave.")
@_store_option
@_json_option
def publish(
    *,
    export: Path,
    about_file: Path,
    out: Path | None,
    repo: str | None,
    tag: str | None,
    public: bool,
    pull_request: bool,
    dry_run: bool,
    store: Path | None,
    as_json: bool,
) -> None:
    """Publish judgements and their votes: EXPORT is what `beyond campaign export` wrote.

    Writes a release folder (Parquet, dataset card, Croissant metadata, checksums). With --to it goes to the
    Hub in one commit, is downloaded again and compared. No image leaves: only the files that are listed.
    """
    from rich.markup import escape
    from rich.table import Table

    from annotations import publish as publishing
    from annotations import sources

    if repo is None and not dry_run and (tag or public or pull_request):
        raise BeyondError("--tag, --public and --pull-request need --to ORG/NAME; add it")
    about = publishing.read_about(about_file)
    release = publishing.prepare(export, about, out or export / "release")
    result: dict[str, Any] = {
        "folder": str(release.folder),
        "files": release.sizes,
        "sha256": release.sha256,
        "withheld": release.withheld,
        "published": None,
    }
    if repo is not None and not dry_run:
        done = publishing.upload(
            release,
            repo,
            tag=tag,
            public=public,
            pull_request=pull_request,
            cache_dir=sources.hub_dir(sources.store_dir(store)),
        )
        result["published"] = {
            "repo": done.repo,
            "commit": done.commit,
            "tag": done.tag,
            "url": done.url,
            "changed": done.changed,
        }
    if as_json:
        _print_json(result)
        return
    table = Table("file", "bytes", "sha256")
    for name, size in release.sizes.items():
        table.add_row(escape(name), f"{size:,}", release.sha256.get(name, "")[:16])
    _console().print(table)
    if release.withheld:
        click.echo(f"Attributes of {release.withheld} raters are withheld: fewer than 5 share theirs.")
    published = result["published"]
    if published is None:
        where = f"; would go to {repo}" if repo else "; send it with --to ORG/NAME"
        click.echo(f"Release in {release.folder}, nothing sent{where}.")
    elif published["changed"]:
        click.echo(f"Sent in one commit, downloaded again, compared: {published['url']}")
        click.echo(f"Load it with: --annotations hub:{repo}@{tag or published['commit']}")
    else:
        click.echo(f"{repo} holds exactly this already: {published['url']}")


def _show_image(
    label_sets: "LabelSets", image_id: str, merged: "Consolidated | None", *, as_json: bool
) -> None:
    import numpy as np
    from rich.markup import escape
    from rich.table import Table

    from annotations.classes import class_names
    from annotations.judgements import VERDICT_NAMES

    row = _find_row(label_sets.image_ids, image_id, label_sets.source)
    image_id = label_sets.image_ids[row]
    names = class_names()
    lo, hi = np.searchsorted(label_sets.pair_image, [row, row + 1])
    pairs: list[dict[str, Any]] = []
    for i in range(int(lo), int(hi)):
        score = float(label_sets.score[i])
        pairs.append(
            {
                "class_index": int(label_sets.pair_class[i]),
                "name": names[label_sets.pair_class[i]],
                "verdict": VERDICT_NAMES[int(label_sets.verdict[i])],
                "score": None if np.isnan(score) else round(score, 4),
                "votes": int(label_sets.votes[i]) or None,
                "source": label_sets.pair_source[i],
            }
        )
    order = {name: code for code, name in VERDICT_NAMES.items()}
    pairs.sort(key=lambda pair: (order[pair["verdict"]], pair["class_index"]))
    original = int(label_sets.original_labels[row])
    conflicts: list[dict[str, Any]] = []
    if merged is not None:
        mine = merged.conflicts[merged.conflicts.image_id == image_id].drop(columns="image_id")
        conflicts = json.loads(mine.to_json(orient="records"))
    facts: dict[str, Any] = {
        "image_id": image_id,
        "source": label_sets.source,
        "revision": label_sets.revision,
        "original_label": original if original >= 0 else None,
        "original_name": names[original] if original >= 0 else None,
        "status": "evaluable" if label_sets.evaluable[row] else "excluded",
        "unlisted_classes": "rejected" if label_sets.closed_world[row] else "unjudged",
        "judgements": pairs,
    }
    if merged is not None:
        facts["conflicts"] = conflicts
    if as_json:
        _print_json(facts)
        return
    original_text = "unknown" if original < 0 else f"{original} {names[original]}"
    click.echo(f"{image_id}, original label {original_text}")
    if label_sets.evaluable[row]:
        status = f"evaluable; classes that are not listed are {facts['unlisted_classes']}"
    else:
        status = "excluded, so this source scores no prediction on it"
    click.echo(f"{facts['source']} ({facts['revision']}): {status}")
    if pairs:
        table = Table("verdict", "class", "name", "score", "votes", "from", box=None, pad_edge=False)
        for pair in pairs:
            cells = ("" if value is None else str(value) for value in _cells(pair))
            table.add_row(*(escape(cell) for cell in cells))
        _console().print(table)
    else:
        click.echo("no class is listed")
    for conflict in conflicts:
        click.echo(
            f"conflict on {conflict['class_index']} {names[conflict['class_index']]}: {conflict['source_a']} "
            f"{conflict['verdict_a']}, {conflict['source_b']} {conflict['verdict_b']}"
            f"{' (not listed)' if conflict['implied'] else ''}; merged: {conflict['merged']}"
        )


def _cells(pair: dict[str, Any]) -> tuple[Any, ...]:
    return (
        pair["verdict"],
        pair["class_index"],
        pair["name"],
        pair["score"],
        pair["votes"],
        pair["source"],
    )


def _show_factors(spec: str, image_id: str | None, *, as_json: bool) -> None:
    from rich.table import Table

    from annotations import sources
    from annotations.classes import class_names

    info = sources.SOURCES[spec]
    factors = sources.imagenet_x_factors()
    columns = [name for name in factors.columns if factors[name].dtype == bool]
    facts: dict[str, Any]
    if image_id is None:
        top = factors["top_factor"].value_counts()
        rows: list[dict[str, Any]] = [
            {"factor": c, "images": int(factors[c].sum()), "top": int(top.get(c, 0))} for c in columns
        ]
        rows.sort(key=lambda entry: -int(entry["top"]))
        about = {"description": info.description, "licence": info.licence, "citation": info.citation}
        facts = {"source": spec, **about, "images": len(factors), "factors": rows}
        if as_json:
            _print_json(facts)
            return
        click.echo(f"{spec}: {info.description}; {len(factors):,} images")
        click.echo(f"licence {info.licence}; {info.citation}")
        table = Table("factor", "images", "as top factor", box=None, pad_edge=False)
        for entry in rows:
            table.add_row(entry["factor"], _number(entry["images"]), _number(entry["top"]))
        _console().print(table)
        return
    at = _find_row(factors["image_id"].to_numpy(dtype=object), image_id, spec)
    row: dict[Any, Any] = factors.iloc[at].to_dict()
    listed = [name for name in columns if row[name]]
    top_factor = row["top_factor"] if isinstance(row["top_factor"], str) else None
    facts = {
        "image_id": row["image_id"],
        "source": spec,
        "licence": info.licence,
        "original_label": int(row["class"]),
        "original_name": class_names()[int(row["class"])],
        "top_factor": top_factor,
        "factors": listed,
    }
    if as_json:
        _print_json(facts)
        return
    click.echo(f"{facts['image_id']}, original label {facts['original_label']} {facts['original_name']}")
    click.echo(
        f"{spec} ({info.licence}): top factor {top_factor or 'none'}; all: {', '.join(listed) or 'none'}"
    )


def _find_row(image_ids: Any, image_id: str, source: str) -> int:
    """Row of an image given by its id, or by the name of its file."""
    import numpy as np

    for name in (image_id, Path(image_id).stem):
        rows = np.flatnonzero(image_ids == name)
        if len(rows):
            return int(rows[0])
    raise BeyondError(f"{source} has no image {image_id!r}; its ids look like {image_ids[0]}")


def _sizes(info: "sources.SourceInfo", store: Path | None) -> tuple[int, int | None]:
    from annotations import sources

    if info.kind == "attributes":
        return len(sources.imagenet_x_factors()), None
    label_sets = sources.load(info.name, cache_dir=store)
    return len(label_sets), int(label_sets.evaluable.sum())


def _summary(label_sets: "LabelSets") -> dict[str, Any]:
    from annotations.judgements import VERDICT_NAMES, Verdict

    accepted = label_sets.counts(Verdict.ACCEPTED)[label_sets.evaluable]
    counts = {name: int((label_sets.verdict == code).sum()) for code, name in VERDICT_NAMES.items()}
    return {
        "source": label_sets.source,
        "revision": label_sets.revision,
        "images": len(label_sets),
        "evaluable": int(label_sets.evaluable.sum()),
        "closed_world": int(label_sets.closed_world.sum()),
        **counts,
        "accepted_per_evaluable_image": float(accepted.mean()) if len(accepted) else 0.0,
        "images_with_several_accepted": int((accepted > 1).sum()),
    }


def _print_merge(merged: "Consolidated") -> None:
    from rich.markup import escape
    from rich.table import Table

    coverage = merged.coverage.astype({"source": str})
    table = Table(*(str(name).replace("_", " ") for name in coverage.columns), box=None, pad_edge=False)
    for row in coverage.itertuples(index=False):
        table.add_row(*(_number(value) for value in row))
    console = _console()
    console.print("Coverage (images, then judged pairs by verdict)", style="bold")
    console.print(table)
    counts = merged.conflict_counts()
    if not len(counts):
        return
    console.print("\nConflicts (accepted against rejected)", style="bold")
    headers = ("sources", "both explicit", "by a closed world", "images", "one evaluates, one excludes")
    table = Table(*headers, box=None, pad_edge=False)
    for pair in counts.to_dict(orient="records"):
        numbers = [pair[name] for name in ("explicit", "implied", "images", "status")]
        table.add_row(
            escape(f"{pair['source_a']}, {pair['source_b']}"), *(_number(value) for value in numbers)
        )
    console.print(table)


def _number(value: object) -> str:
    from rich.markup import escape

    if value is None:
        return ""
    return escape(value) if isinstance(value, str) else f"{value:,}"


def _as_spec(folder: Path) -> str:
    text = str(folder)
    return text if "/" in text or text.startswith((".", "~")) else f"./{text}"


def _console() -> "Console":
    """A console on standard output, wide enough not to cut tables where no terminal says how wide it is."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


def _print_json(value: dict[str, Any] | Sequence[dict[str, Any]]) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
