"""`beyond submit`: make an entry out of a run, check it, and send it to the leaderboard."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click

from annotations.errors import BeyondError

if TYPE_CHECKING:
    from benchmark.runs import RunInfo
    from leaderboard.destinations import Delivery, Destination
    from leaderboard.submission import Submission


@dataclass(frozen=True)
class Detail:
    """One thing that the run does not know and a person must say.

    Attributes:
        key: Where it goes in `entry.yaml`, with a dot for what lies in a part of it.
        option: Its option.
        help: What it is, for the option and the prompt.
        required: Whether an entry needs it.
        convert: Text to value.
    """

    key: str
    option: str
    help: str
    required: bool = False
    convert: Callable[[str], Any] = str

    @property
    def parameter(self) -> str:
        """Name of the option's value."""
        return self.option.removeprefix("--").replace("-", "_")


def _whole(text: str) -> int:
    return int(text.replace(",", "").replace("_", ""))


def _text_or_file(text: str) -> str:
    if not text.startswith("@"):
        return text.strip()
    path = Path(text[1:])
    if not path.is_file():
        raise BeyondError(f"there is no file {path}; give the citation as text, or as @FILE")
    return path.read_text(encoding="utf-8").strip()


DETAILS = (
    Detail("slug", "--slug", "Name of the entry's folder and page: a-z, 0-9, '.', '-', '_'.", required=True),
    Detail("name", "--name", "Name to show, e.g. ResNet-50.", required=True),
    Detail("family", "--family", "Kind of architecture, e.g. ResNet.", required=True),
    Detail("year", "--year", "Year the model was published.", required=True, convert=_whole),
    Detail("authors", "--authors", "Who made it, as the paper names them.", required=True),
    Detail("organisation", "--organisation", "Who made it, if an organisation; may stand for authors."),
    Detail("licence.predictions", "--licence", "SPDX licence of the records, e.g. CC-BY-4.0.", required=True),
    Detail("licence.weights", "--weights-licence", "SPDX licence of the weights."),
    Detail(
        "citation", "--citation", "BibTeX or a reference, or @FILE.", required=True, convert=_text_or_file
    ),
    Detail("contact", "--contact", "Who answers for the entry: name, handle or mail; public.", required=True),
    Detail("links.paper", "--paper", "https address of the paper."),
    Detail("links.code", "--code", "https address of the code."),
    Detail("links.weights", "--weights", "https address of the weights."),
    Detail("parameters", "--parameters", "Number of weights. [default: as counted]", convert=_whole),
    Detail("input_size", "--input-size", "Pixels a side. [default: as run]", convert=_whole),
    Detail("notes", "--notes", "What a reader must know."),
)


def detail_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """One option for each detail."""
    for detail in reversed(DETAILS):
        command = click.option(detail.option, metavar="TEXT", help=detail.help)(command)
    return command


@click.command()
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "kind",
    type=click.Choice(["folder", "branch", "hub"]),
    default="folder",
    show_default=True,
    help="A folder here, a branch of a clone of this project, or a pull request on the Hub.",
)
@click.option("--repository", metavar="ORG/NAME", help="hub: the leaderboard's dataset repository.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("submission"),
    show_default=True,
    help="folder: where to write.",
)
@click.option(
    "--checkout",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default=Path(),
    help="branch: the clone. [default: this folder]",
)
@click.option(
    "--records",
    metavar="ORG/NAME@COMMIT",
    help="Where on the Hub the records lie already, as --to hub said; they are compared, and not sent.",
)
@click.option(
    "--details",
    "file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="YAML file with the details below, named as in entry.yaml; options win over it.",
)
@detail_options
@click.option("--dry-run", is_flag=True, help="Say what would leave this machine, and stop.")
@click.option("--yes", is_flag=True, help="Do not ask before sending.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON on standard output.")
def submit(
    run: Path,
    *,
    kind: str,
    repository: str | None,
    out: Path,
    checkout: Path,
    records: str | None,
    file: Path | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    **given: str | None,
) -> None:
    """Make an entry of the leaderboard out of RUN, check it, and send it.

    \b
    beyond submit runs/mine --dry-run
    beyond submit runs/mine --to hub --repository ORG/NAME
    beyond submit runs/mine --to branch --records ORG/NAME@COMMIT

    What is missing is asked for on a terminal. Ids, classes, logits and verdicts may leave this machine;
    images never do. The same submission sent again changes nothing.
    """  # noqa: D301 - click reads the escape
    from benchmark import runs
    from leaderboard.destinations import check_published, parse_records
    from leaderboard.submission import prepare

    info = runs.read_run(run)
    if kind == "hub" and repository is None:
        raise BeyondError("--to hub needs --repository ORG/NAME, the leaderboard's dataset on the Hub")
    if kind == "hub" and records is not None:
        raise BeyondError("--records goes with --to branch or folder: --to hub sends the records along")
    if kind == "branch" and records is None:
        raise BeyondError(
            "an entry on a branch names records on the Hub: send them first with --to hub, then pass the "
            "--records that it prints"
        )
    destination = _destination(kind, repository, out, checkout)
    interactive = sys.stdin.isatty() and sys.stderr.isatty() and not as_json
    details = complete(_gathered(info, file, given), interactive=interactive)
    slug = details["slug"]
    place = None if records is None else parse_records(records, slug)
    with tempfile.TemporaryDirectory(prefix="beyond-submit-") as made:
        # A dry run uses no network, not even to look for an earlier submission.
        before = None if dry_run and destination.leaves else destination.submitted(slug)
        submission = prepare(run, details, Path(made), submitted=before or date.today(), hub=place)
        if not as_json:
            show(submission, destination, dry_run=dry_run)
        delivery = None
        if not dry_run:
            if place is not None:
                check_published(submission)
            if destination.leaves and not yes:
                _confirm(interactive)
            delivery = destination.deliver(submission)
        report(submission, destination, delivery, as_json=as_json)


def _destination(kind: str, repository: str | None, out: Path, checkout: Path) -> Destination:
    from leaderboard.destinations import Branch, Folder, HubPull

    if kind == "hub":
        return HubPull(str(repository))
    return Branch(checkout) if kind == "branch" else Folder(out)


def _confirm(interactive: bool) -> None:
    if not interactive:
        raise BeyondError(
            "nothing was sent: pass --yes to send this without being asked (--dry-run shows it)"
        )
    if not click.confirm("Send this?", err=True):
        raise BeyondError("nothing was sent")


# ------------------------------------------------------------------------------------------------ the details


def _gathered(info: RunInfo, file: Path | None, given: Mapping[str, str | None]) -> dict[str, Any]:
    """What is known: from the run, from the file, from the options; the later wins. By key, flat."""
    found: dict[str, Any] = dict(known(info))
    if file is not None:
        from leaderboard.entries import load_yaml

        found.update(_flat(load_yaml(file.read_text(encoding="utf-8"), where=str(file)), where=str(file)))
    for detail in DETAILS:
        text = given[detail.parameter]
        if text is not None:
            found[detail.key] = _converted(detail, text)
    return found


def known(info: RunInfo) -> dict[str, Any]:
    """What the run itself says about its model."""
    found: dict[str, Any] = {"slug": slug_of(info.model.name), "name": info.model.name}
    if info.model.parameters:
        found["parameters"] = info.model.parameters
    size = (info.model.preprocessing or {}).get("input_size")
    if isinstance(size, (list, tuple)) and len(set(size)) == 1 and isinstance(size[0], int):
        found["input_size"] = size[0]
    if info.model.licence and not _problem("licence.weights", info.model.licence):
        found["licence.weights"] = info.model.licence
    return found


def slug_of(name: str) -> str:
    """A slug made from a model's name.

    Example:
        >>> slug_of("timm:ResNet 50 (A1)")
        'resnet-50-a1'
    """
    last = name.rpartition(":")[2].rpartition("/")[2].lower()
    return re.sub(r"[-.]*-[-.]*", "-", re.sub(r"[^a-z0-9._]+", "-", last)).strip("-._")[:100] or "model"


def _flat(data: Any, where: str) -> dict[str, Any]:
    """Details of a YAML file by key.

    Raises:
        BeyondError: It holds something that is no detail.
    """
    if not isinstance(data, dict):
        raise BeyondError(f"{where} is no list of details; write e.g. name: ResNet-50")
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            flat.update({f"{key}.{name}": inner for name, inner in value.items()})
        else:
            flat[str(key)] = value
    keys = {detail.key for detail in DETAILS}
    # An entry.yaml may be given as it is: what beyond fills in itself is passed over.
    own = {"entry_version", "submitted", "state", "status", "scope", "records", "sha256", "verification"}
    unknown = [key for key in flat if key not in keys and key.partition(".")[0] not in own]
    if unknown:
        raise BeyondError(f"{where}: no such detail {unknown[0]!r}; known: {', '.join(sorted(keys))}")
    return {key: value for key, value in flat.items() if key in keys}


def _converted(detail: Detail, text: str) -> Any:
    try:
        return detail.convert(text)
    except ValueError:
        raise BeyondError(f"{detail.option} {text!r} is no whole number") from None


def complete(found: dict[str, Any], *, interactive: bool) -> dict[str, Any]:
    """All details that an entry needs, nested as in `entry.yaml`; what is missing is asked for.

    Raises:
        BeyondError: Something is missing or not valid, and nobody can be asked.
    """
    missing = []
    for detail in DETAILS:
        if detail.key == "authors" and found.get("organisation"):
            continue
        value = found.get(detail.key)
        problem = _problem(detail.key, value) if value is not None else None
        if problem and not interactive:
            raise BeyondError(f"{detail.option}: {problem}")
        # Slug and name are guessed from the run: on a terminal they are shown, to be confirmed.
        guess = interactive and detail.key in ("slug", "name")
        if (detail.required and value is None) or problem or guess:
            if not interactive:
                missing.append(detail.option)
            else:
                found[detail.key] = _ask(detail, default=value, problem=problem)
    if missing:
        raise BeyondError(
            f"the entry needs {', '.join(missing)}; pass them, or a --details FILE, or run this on a terminal"
        )
    nested: dict[str, Any] = {"links": {}, "licence": {}}
    for key, value in found.items():
        part, dot, name = key.partition(".")
        if dot:
            nested[part][name] = value
        else:
            nested[part] = value
    return nested


def _ask(detail: Detail, *, default: Any, problem: str | None) -> Any:
    """Ask until the answer is valid."""
    if problem:
        click.echo(f"{detail.option}: {problem}", err=True)
        default = None
    while True:
        answer = click.prompt(detail.help.rstrip("."), default=default, err=True)
        try:
            value = answer if answer == default else detail.convert(str(answer).strip())
        except (ValueError, BeyondError) as error:
            click.echo(f"  {error}", err=True)
            continue
        problem = _problem(detail.key, value)
        if problem is None:
            return value
        click.echo(f"  {problem}", err=True)


def _problem(key: str, value: Any) -> str | None:
    """What is wrong with one detail, or None."""
    from pydantic import BaseModel, TypeAdapter, ValidationError

    from leaderboard import entries

    part, dot, name = key.partition(".")
    parts: dict[str, type[BaseModel]] = {"licence": entries.Licence, "links": entries.Links}
    field = (parts[part] if dot else entries.EntryInfo).model_fields[name if dot else part]
    annotation: Any = field.annotation
    for extra in field.metadata:
        annotation = Annotated[annotation, extra]
    try:
        TypeAdapter(annotation).validate_python(value, strict=True)
    except ValidationError as error:
        return str(error.errors()[0]["msg"]).removeprefix("Value error, ")
    return None


# -------------------------------------------------------------------------------------------------- reporting


def show(submission: Submission, destination: Destination, *, dry_run: bool) -> None:
    """Say exactly what leaves, or is written: every file, its size and hash."""
    from rich.console import Console
    from rich.table import Table

    from benchmark.report.text import clean, count

    console = Console(stderr=not dry_run)
    verb = "would go" if dry_run else "goes"
    console.print(
        clean(f"{submission.entry.info.name} {verb} to {destination.describe(submission.slug)}:"),
        soft_wrap=True,
        markup=False,
        highlight=False,
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("file", overflow="fold")
    table.add_column("bytes", justify="right", no_wrap=True)
    table.add_column("sha256", no_wrap=True)
    for outgoing in submission.files:
        table.add_row(clean(outgoing.path), count(outgoing.size), outgoing.sha256[:16] + "…")
    console.print(table, highlight=False)
    what = "Nothing leaves this machine." if not destination.leaves else "Nothing else leaves this machine."
    console.print(
        f"{count(len(submission.files))} files, {count(submission.size)} bytes: ids, classes, logits and "
        f"verdicts. No image, thumbnail or pixel is among them. {what}",
        soft_wrap=True,
        highlight=False,
    )
    for note in submission.notes:
        console.print(clean(f"note: {note}"), soft_wrap=True, markup=False, highlight=False)


def report(
    submission: Submission, destination: Destination, delivery: Delivery | None, *, as_json: bool
) -> None:
    """Say what was done."""
    if as_json:
        files = [{"path": file.path, "bytes": file.size, "sha256": file.sha256} for file in submission.files]
        data: dict[str, Any] = {
            "slug": submission.slug,
            "to": destination.describe(submission.slug),
            "leaves_this_machine": destination.leaves,
            "dry_run": delivery is None,
            "files": files,
            "notes": list(submission.notes),
        }
        if delivery is not None:
            data |= {"changed": delivery.changed, "message": delivery.message}
            data |= {"url": delivery.url, "commit": delivery.commit, "next": list(delivery.next)}
        click.echo(json.dumps(data, indent=2, ensure_ascii=False))
        return
    if delivery is None:
        click.echo("Dry run: nothing was written or sent.")
        return
    click.echo(delivery.message)
    for line in delivery.next:
        click.echo(f"next: {line}")
