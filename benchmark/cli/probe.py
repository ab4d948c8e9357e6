"""`beyond probe`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from annotations.errors import BeyondError
from annotations.files import write_atomically
from benchmark.cli.score import annotations_option, say
from benchmark.devices import choose_device, default_workers
from benchmark.probes import PROBES, ProbeInfo, get_probe

if TYPE_CHECKING:
    from rich.console import Console

    from annotations.judgements import LabelSets
    from benchmark.probes.execution import ProbeResult
    from benchmark.records import Predictions
    from benchmark.scorecard import ImagesInfo, ModelInfo, Scorecard

MAX_ROWS = 16

# Which columns of which tables a terminal has room for; the JSON holds all of them.
COLUMNS = {
    "cue_conflict_categories": ("category", "n", "shape", "texture", "other", "shape_bias"),
    "watermark_accuracy": ("judged_by", "n", "plain", "watermark", "drop", "ci_low", "ci_high"),
    "watermark_classes": ("class", "plain", "watermark"),
    "factor_errors": ("factor", "n", "errors", "error", "error_ratio", "ci_low", "ci_high"),
    "co_occurrence_pairs": (
        "class", "companion", "n_with", "n_without", "accuracy_with", "accuracy_without", "gap", "q",
    ),
}  # fmt: skip


@click.command()
@click.argument("name", required=False, metavar="[NAME]")
@click.argument("model", required=False, metavar="[MODEL]")
@click.option(
    "--images",
    "images_spec",
    metavar="DIR",
    help="Images to show; for cue-conflict a folder of SHAPE/shapeN-textureM.png.",
)
@click.option(
    "--run",
    type=click.Path(path_type=Path),
    help="factors, co-occurrence: read the predictions of this run instead of running a MODEL.",
)
@click.option(
    "--predictions",
    "prediction_file",
    type=click.Path(path_type=Path),
    help="factors, co-occurrence: read this file of predictions instead of running a MODEL.",
)
@click.option(
    "--ids", "ids_file", type=click.Path(path_type=Path), help="Image ids of the rows of .npy predictions."
)
@click.option(
    "--people",
    type=click.Path(path_type=Path),
    help="cue-conflict: folder of people's answers. [default: human-trials in or beside --images]",
)
@annotations_option
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the records. [default: runs/probe-NAME-MODEL]"
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--batch-size", type=click.IntRange(1, 65536), default=64, show_default=True)
@click.option(
    "--workers",
    type=click.IntRange(0, 256),
    help="Decoding processes; 0 decodes in a thread of this one, the default on the CPU.",
)
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads of the model on the CPU.")
@click.option("--limit", type=click.IntRange(1), help="Only N images.")
@click.option("--on-error", type=click.Choice(["stop", "skip"]), default="stop", show_default=True)
@click.option(
    "--overwrite", is_flag=True, help="Throw away what the folder holds, instead of going on with it."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output and nothing else there.")
def probe(name: str | None, model: str | None, *, as_json: bool, **options: Any) -> None:
    """Run one standard probe alone; without NAME, list them.

    \b
    beyond probe
    beyond probe cue-conflict efficientnet-lite0 --images cue-conflict/images --json
    beyond probe watermark timm:resnet50.a1_in1k --images ILSVRC2012_img_val
    beyond probe factors --predictions resnet50.npy
    beyond probe co-occurrence --run runs/resnet50 --annotations real

    A probe that was stopped goes on where it was when the same command is given again. With --json, it prints
    a scorecard whose criticism track holds what the probe found.
    """  # noqa: D301 - a backslash-b keeps click from joining the lines
    if name is None:
        list_probes(as_json=as_json)
        return
    info = get_probe(name)
    _check(info, model, options)
    if model is None:
        result, card = from_predictions(info, **options)
    else:
        result, card = from_model(info, model, **options)
    if as_json:
        click.echo(card.to_json(), nl=False)
        return
    from rich.console import Console

    print_result(result, card, console=Console())


def _check(info: ProbeInfo, model: str | None, options: Mapping[str, Any]) -> None:
    """Refuse options that do not go together, before anything expensive is loaded."""
    recorded = [
        flag for flag, key in (("--run", "run"), ("--predictions", "prediction_file")) if options[key]
    ]
    if recorded and info.needs_model:
        raise BeyondError(
            f"the probe {info.name} shows images of its own making to a model: "
            f"give a MODEL with --images DIR, not {recorded[0]}"
        )
    if recorded and (model is not None or options["images_spec"]):
        raise BeyondError(f"{recorded[0]} does not go with a MODEL or --images: the predictions are there")
    if len(recorded) > 1:
        raise BeyondError("give --run or --predictions, not both")
    if options["ids_file"] and not options["prediction_file"]:
        raise BeyondError("--ids goes with --predictions")
    if options["people"] and info.name != "cue-conflict":
        raise BeyondError(f"--people goes with the probe cue-conflict, not with {info.name}")
    if recorded:
        return
    if model is None:
        other = "" if info.needs_model else ", or --run RUN, or --predictions FILE"
        raise BeyondError(f"the probe {info.name} needs a MODEL with --images DIR{other}")
    if not options["images_spec"]:
        what = "cue-conflict images, SHAPE/shapeN-textureM.png" if info.own_images else "images, or sample"
        raise BeyondError(f"the probe {info.name} needs --images DIR: a folder of {what}")


def from_model(
    info: ProbeInfo,
    model: str,
    *,
    images_spec: str,
    people: Path | None,
    annotations: list[str] | None,
    out: Path | None,
    device: str,
    batch_size: int,
    workers: int | None,
    threads: int | None,
    limit: int | None,
    on_error: str,
    overwrite: bool,
    **_: Any,
) -> tuple[ProbeResult, Scorecard]:
    """Run a probe on a model, resuming what is there, and score it."""
    from benchmark import runs
    from benchmark.cli.score import _slug
    from benchmark.images import open_image_set
    from benchmark.probes import execution

    # What can be wrong is found out before anything expensive is loaded.
    if info.own_images:
        from benchmark.probes.cue_conflict import find_people, open_images

        images = open_images(Path(images_spec), limit=limit)
        if people is None and (people := find_people(Path(images_spec))):
            say(f"people's answers: {people}")
        labels: dict[str, LabelSets] = {}
    else:
        images = open_image_set(images_spec, limit=limit)
        labels = runs.load_labels(annotations or (["sample"] if images.name == "sample" else ["real"]))

    import torch

    from benchmark.engine import Settings
    from benchmark.models import load
    from benchmark.scorecard import ImagesInfo, ModelInfo

    if threads:
        torch.set_num_threads(threads)
    place = choose_device(device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    classifier = load(model)
    target = out or Path("runs") / f"probe-{info.name}-{_slug(model)}"
    observation = execution.Observation(
        classifier=classifier,
        images=images,
        folder=execution.folder_of(target, info),
        settings=Settings(
            batch_size=batch_size,
            workers=default_workers(place) if workers is None else workers,
            device=place,
            skip_errors=on_error == "skip",
        ),
        warn=say,
        people=people,
        overwrite=overwrite,
    )
    with runs.locked(target):
        if info.needs_model:
            execution.observe(info, observation)
            evidence = execution.Evidence(folder=observation.folder, labels=labels)
            recorded = observation.folder / ("watermark" if info.name == "watermark" else "plain")
        else:
            recorded = execution.record(info, observation, "plain")
            evidence = execution.Evidence(predictions=_reader(recorded), labels=labels)
        result = execution.score(info, evidence)
        card = scorecard(
            result,
            ModelInfo(**classifier.describe()),
            ImagesInfo(
                name=images.name,
                n=len(images) - len(runs.skipped_images(recorded)),
                skipped=len(runs.skipped_images(recorded)),
                fingerprint=images.fingerprint,
                sample=images.sample,
            ),
            labels,
        )
        write_atomically(target / f"{info.name}.json", card.to_json())
    say(f"records: {observation.folder}")
    return result, card


def from_predictions(
    info: ProbeInfo,
    *,
    run: Path | None,
    prediction_file: Path | None,
    ids_file: Path | None,
    annotations: list[str] | None,
    limit: int | None,
    **_: Any,
) -> tuple[ProbeResult, Scorecard]:
    """Score a probe on predictions that are recorded already."""
    from benchmark import runs
    from benchmark.probes import execution
    from benchmark.scorecard import ImagesInfo, ModelInfo

    if limit is not None:
        raise BeyondError(
            "--limit goes with a MODEL; predictions that are there cost nothing to read in full"
        )
    distances = None
    if run is not None:
        stored = runs.read_run(run)
        labels = runs.load_labels(annotations or runs.default_annotations(stored))
        model, images, read = stored.model, stored.images, _reader(run)
        distances = _distances(run)
    else:
        assert prediction_file is not None
        from benchmark.prediction_files import file_sha256, read_prediction_file

        predictions = read_prediction_file(prediction_file, ids_file=ids_file)
        labels = runs.load_labels(annotations or ["real"])
        sample = runs.is_sample(predictions.image_ids)
        model = ModelInfo(
            name=prediction_file.stem,
            spec=prediction_file.name,
            source={"predictions_sha256": file_sha256(prediction_file)},
        )
        images = ImagesInfo(
            name="predictions" if sample else "ILSVRC2012 validation",
            n=len(predictions),
            fingerprint=runs.fingerprint_of(predictions),
            sample=sample,
        )
        read = partial(iter, [predictions])
    evidence = execution.Evidence(predictions=read, labels=labels, distances=distances)
    result = execution.score(info, evidence)
    return result, scorecard(result, model, images, labels)


def _reader(folder: Path) -> Callable[[], Iterator[Predictions]]:
    from benchmark.records import iter_predictions

    return partial(iter_predictions, folder)


def _distances(run: Path) -> Mapping[str, float] | None:
    """Distances to the decision boundary , as the criticism track quotes them, if there are any."""
    from benchmark.criticism import records as criticism

    if not criticism.has_distances(run):
        return None
    table = criticism.read_table(run)
    tier = criticism.quoted_tier(table)
    if tier is None:
        return None
    found = criticism.distances_of(table, tier)
    return dict(zip(found.image_ids, found.distance.tolist()))


def scorecard(
    result: ProbeResult, model: ModelInfo, images: ImagesInfo, labels: Mapping[str, LabelSets]
) -> Scorecard:
    """A scorecard whose criticism track holds one probe's result."""
    from benchmark.probes.execution import merge
    from benchmark.scorecard import AnnotationsInfo, Scorecard, Track
    from benchmark.tracks import CRITICISM

    metrics, tables, notes = merge([result])
    return Scorecard(
        model=model,
        images=images,
        annotations=AnnotationsInfo(sources={name: sets.revision for name, sets in labels.items()}),
        tracks={"criticism": Track(version=CRITICISM.version, metrics=metrics, tables=tables, notes=notes)},
    )


def list_probes(*, as_json: bool) -> None:
    """Print the name cards of all probes."""
    if as_json:
        hidden = {"score_function", "observe_function"}
        listed = [{key: v for key, v in asdict(p).items() if key not in hidden} for p in PROBES.values()]
        click.echo(json.dumps(listed, indent=2, ensure_ascii=False))
        return
    for info in PROBES.values():
        images = "images of its own" if info.own_images else "any images" if info.needs_model else "a run"
        click.echo(f"{info.name}  (version {info.version}, main score {info.main_score}, on {images})")
        click.echo(f"    {info.title}")
        click.echo(click.wrap_text(info.method, 78, "    ", "    "))
        click.echo(f"    Data: {info.data} ({info.licence})")
        click.echo(click.wrap_text(info.citation, 78, "    ", "    "))


def print_result(result: ProbeResult, card: Scorecard, *, console: Console) -> None:
    """Print what a probe found: metrics, values to compare with, its first table, notes."""
    from rich.table import Table

    from benchmark.report import text
    from benchmark.tracks import CRITICISM

    info = PROBES[result.probe]
    console.print(f"[bold]{info.title}[/]  probe {info.name}, version {result.version}", highlight=False)
    console.print(
        text.clean(card.model.name)
        + f" · {text.count(card.images.n)} images of {text.clean(card.images.name)}",
        markup=False,
        highlight=False,
    )
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column, justify in (("", "left"), ("value", "right"), ("95 % interval", "right"), ("n", "right")):
        table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for name, metric in result.metrics.items():
        sign = text.unit_sign(metric)
        table.add_row(
            CRITICISM.metric(name).title,
            f"{text.value(metric)} {sign}".strip(),
            text.interval(metric),
            text.count(metric.n),
        )
        for reference in (r for r in result.references if r.metric == name):
            beside = metric.model_copy(
                update={
                    "value": reference.value,
                    "ci_low": reference.ci_low,
                    "ci_high": reference.ci_high,
                    "n": reference.n or 0,
                }
            )
            table.add_row(
                f"  {text.clean(reference.who)}",
                f"{text.value(beside)} {sign}".strip(),
                text.interval(beside),
                text.count(reference.n) if reference.n else "",
                style="dim",
            )
    console.print(table)
    for name, keys in COLUMNS.items():
        if rows := result.tables.get(name):
            shown = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
            for key in keys:
                number = all(isinstance(row.get(key), int | float | None) for row in rows)
                shown.add_column(key.replace("_", " "), justify="right" if number else "left", no_wrap=number)
            for row in rows[:MAX_ROWS]:
                shown.add_row(
                    *(f"{v:.3g}" if isinstance(v := row[k], float) else text.text_cell(row, k) for k in keys)
                )
            console.print(shown)
    for note in result.notes:
        console.print(text.clean(note), style="dim", markup=False, highlight=False)
