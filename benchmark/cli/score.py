"""`beyond score` and `beyond rescore`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from annotations.errors import BeyondError

if TYPE_CHECKING:
    from annotations.judgements import LabelSets
    from benchmark.attacks import Execution
    from benchmark.classifier import Classifier
    from benchmark.criticism.settings import CriticismSettings
    from benchmark.engine import Settings
    from benchmark.images import ImageSet
    from benchmark.scorecard import Scorecard

TRACKS = ("rectified", "robustness", "criticism")
TIERS = ("quick", "standard", "curve", "full", "minimal")
EXECUTION = ("channels-last", "fold", "freeze", "compile", "checkpointing", "bfloat16", "float16", "none")


def say(message: str) -> None:
    """One line for the user on standard error, so that standard output stays what was asked for."""
    click.echo(message, err=True)


def split_list(_context: click.Context, _parameter: click.Parameter, value: str | None) -> list[str] | None:
    """Turn `real,mla` into a list; None stays None."""
    if value is None:
        return None
    names = [name.strip() for name in value.split(",") if name.strip()]
    if not names:
        raise click.BadParameter("name at least one, e.g. real,mla")
    return names


def annotations_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The `--annotations` option, the same for every command that scores."""
    return click.option(
        "--annotations",
        callback=split_list,
        metavar="NAME,…",
        help="Label sets to score against, e.g. real,mla,consolidated (see: beyond annotations list).",
    )(command)


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print scorecards as JSON on standard output."
)


@click.command()
@click.argument("models", nargs=-1, metavar="[MODEL]…")
@click.option(
    "--images", "images_spec", metavar="DIR", help="Folder of images, tar shards, hf:ORG/NAME, or sample."
)
@click.option(
    "--predictions",
    "prediction_file",
    type=click.Path(path_type=Path),
    help="Score a file of predictions instead of a model; more files may follow.",
)
@click.option(
    "--ids", "ids_file", type=click.Path(path_type=Path), help="Image ids of the rows of .npy predictions."
)
@annotations_option
@click.option("--tracks", callback=split_list, default="rectified", show_default=True, metavar="NAME,…")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Run folder; with several inputs, one run each in it."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--batch-size", type=click.IntRange(1, 65536), default=64, show_default=True)
@click.option(
    "--workers",
    type=click.IntRange(0, 256),
    help="Decoding processes; 0 decodes in a thread of this one, the default on the CPU.",
)
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads of the model on the CPU.")
@click.option(
    "--top-k", type=click.IntRange(1, 1000), default=1000, show_default=True, help="Classes kept a record."
)
@click.option("--limit", type=click.IntRange(1), help="Only the first N images, by id.")
@click.option("--on-error", type=click.Choice(["stop", "skip"]), default="stop", show_default=True)
@click.option(
    "--tier",
    type=click.Choice(TIERS),
    help="Robustness, criticism: budgets; curve and full: robustness at every radius; minimal: the smallest "
    "perturbations. [default: quick]",
)
@click.option(
    "--eps",
    callback=split_list,
    metavar="R,…",
    help="Robustness: radii, e.g. 4/255. [default: 4/255, L2 0.5]",
)
@click.option("--norm", type=click.Choice(["linf", "l2"]), help="Robustness: the threat. [default: linf]")
@click.option(
    "--attack-ids",
    type=click.Path(path_type=Path),
    help="Robustness, criticism: attack only the images this file lists.",
)
@click.option(
    "--attack-limit", type=click.IntRange(1), help="Robustness, criticism: attack only the first N images."
)
@click.option(
    "--attack-batch-size",
    type=click.IntRange(1, 65536),
    help="Robustness, criticism: images at a time. [default: 32; criticism: by tier]",
)
@click.option(
    "--attributes",
    callback=split_list,
    metavar="NAME,…",
    help="Criticism: imagenet-x, co-occurrence, or CSV or Parquet files. [default: the first two]",
)
@click.option(
    "--seed", type=click.IntRange(0), help="Robustness: seed of the attacks, recorded. [default: 0]"
)
@click.option(
    "--execution",
    callback=split_list,
    metavar="NAME,…",
    help=f"Robustness: how the network is run: {', '.join(EXECUTION)}. [default: channels-last,fold,freeze]",
)
@click.option(
    "--keep-adversarials/--no-keep-adversarials",
    default=None,
    help="Robustness: keep adversarial images in the run folder, for this machine alone. [default: keep]",
)
@click.option(
    "--overwrite", is_flag=True, help="Throw away what the run folder holds, instead of going on with it."
)
@json_option
def score(models: tuple[str, ...], prediction_file: Path | None, **options: Any) -> None:
    """Score classifiers on images, or files of their predictions.

    \b
    beyond score efficientnet-lite0 --images sample
    beyond score timm:resnet50.a1_in1k --images ILSVRC2012_img_val --annotations real,consolidated
    beyond score --predictions resnet50.npy --annotations real,mla
    beyond score efficientnet-lite0 --images sample --tracks rectified,robustness,criticism

    A run that was stopped goes on where it was when the same command is given again.
    """  # noqa: D301 - a backslash-b keeps click from joining the lines
    unknown = [track for track in options["tracks"] if track not in TRACKS]
    if unknown:
        from benchmark.cli import did_you_mean

        raise BeyondError(did_you_mean(unknown[0], list(TRACKS), what="track"))
    plan = attack_plan(**options)
    criticism = criticism_plan(**options)
    if prediction_file is not None:
        if plan is not None or criticism is not None:
            track = "robustness" if plan is not None else "criticism"
            raise BeyondError(
                f"the {track} track attacks a MODEL on --images; predictions cannot be attacked"
            )
        if options["images_spec"]:
            raise BeyondError("--predictions and --images do not go together: predictions need no images")
        scorecards = score_predictions([prediction_file, *map(Path, models)], **options)
    else:
        if not models:
            raise BeyondError("nothing to score: name a MODEL with --images DIR, or give --predictions FILE")
        if not options["images_spec"]:
            raise BeyondError(
                "a MODEL needs images: pass --images DIR (or --images sample for the sample set)"
            )
        if options["ids_file"]:
            raise BeyondError("--ids goes with --predictions")
        scorecards = score_models(models, plan=plan, criticism=criticism, **options)
    show(scorecards, as_json=options["as_json"])


@dataclass(frozen=True)
class AttackPlan:
    """What the options of the robustness track ask for.

    Attributes:
        suite: `quick`, `standard` or `minimal`.
        norm: `linf` or `l2`.
        epsilons: Radii, ascending; a single 0 for `minimal`.
        ids_file: Attack only the images of this list.
        limit: Attack only the first so many.
        batch_size: Images at a time.
        seed: Seed of all randomness.
        execution: Names of `EXECUTION`, or None for the default.
        keep: Keep adversarial images.
    """

    suite: str = "quick"
    norm: Literal["linf", "l2"] = "linf"
    epsilons: tuple[float, ...] = (4 / 255,)
    ids_file: Path | None = None
    limit: int | None = None
    batch_size: int = 32
    seed: int = 0
    execution: tuple[str, ...] | None = None
    keep: bool = True


def attack_plan(
    *,
    tracks: Sequence[str],
    tier: str | None,
    eps: list[str] | None,
    norm: Literal["linf", "l2"] | None,
    attack_ids: Path | None,
    attack_limit: int | None,
    attack_batch_size: int | None,
    seed: int | None,
    execution: list[str] | None,
    keep_adversarials: bool | None,
    **_: Any,
) -> AttackPlan | None:
    """What to attack with, or None if the robustness track is not asked for.

    Raises:
        BeyondError: An option of the track is given without it, a radius cannot be meant, or options
            exclude each other.
    """
    given: dict[str, object] = {
        "--eps": eps,
        "--norm": norm,
        "--seed": seed,
        "--execution": execution,
        "--keep-adversarials": keep_adversarials,
    }
    if "criticism" not in tracks:
        given |= {
            "--tier": tier,
            "--attack-ids": attack_ids,
            "--attack-limit": attack_limit,
            "--attack-batch-size": attack_batch_size,
        }
    if "robustness" not in tracks:
        lonely = [name for name, value in given.items() if value is not None]
        if lonely:
            raise BeyondError(f"{lonely[0]} goes with --tracks robustness")
        return None
    from benchmark.radii import CURVES, SINGLE, check_radii, parse_radius

    norm, tier = norm or "linf", tier or "quick"
    if tier == "minimal" and eps is not None:
        raise BeyondError(
            "--tier minimal looks for the smallest perturbation and has no radius: leave --eps out"
        )
    if tier == "minimal":
        radii: tuple[float, ...] = (0.0,)
    elif eps is not None:
        radii = tuple(sorted({parse_radius(text) for text in eps}))
    else:
        radii = CURVES[norm] if tier in ("curve", "full") else (SINGLE[norm],)
    check_radii(norm, radii)
    check_execution(execution)
    return AttackPlan(
        suite="standard" if tier in ("curve", "full") else tier,
        norm=norm,
        epsilons=radii,
        ids_file=attack_ids,
        limit=attack_limit,
        batch_size=attack_batch_size or AttackPlan.batch_size,
        seed=seed or 0,
        execution=None if execution is None else tuple(execution),
        keep=keep_adversarials is not False,
    )


def check_execution(names: Sequence[str] | None) -> None:
    """Refuse ways to run a network that do not exist or exclude each other.

    Raises:
        BeyondError: See above.
    """
    for name in names or ():
        if name not in EXECUTION:
            from benchmark.cli import did_you_mean

            raise BeyondError(did_you_mean(name, list(EXECUTION), what="--execution"))
    if names and (("none" in names and len(names) > 1) or {"bfloat16", "float16"} <= set(names)):
        raise BeyondError(
            f"--execution {','.join(names)} excludes itself; name one of none, bfloat16, float16"
        )


def criticism_plan(
    *,
    tracks: Sequence[str],
    tier: str | None,
    attack_ids: Path | None,
    attack_limit: int | None,
    attack_batch_size: int | None,
    attributes: list[str] | None,
    **_: Any,
) -> CriticismSettings | None:
    """How to criticize, or None if the criticism track is not asked for.

    Raises:
        BeyondError: An option of the track is given without it, or an attribute cannot be read.
    """
    if "criticism" not in tracks:
        if attributes is not None:
            raise BeyondError("--attributes goes with --tracks criticism")
        return None
    from benchmark.cli.criticize import plan_of
    from benchmark.images import read_ids

    return plan_of(
        tier={"curve": "standard", "minimal": "quick"}.get(tier or "quick", tier or "quick"),
        attributes=attributes,
        ids=None if attack_ids is None else read_ids(attack_ids),
        limit=attack_limit,
        batch_size=attack_batch_size,
    )


def score_predictions(
    files: Sequence[Path],
    *,
    ids_file: Path | None,
    annotations: list[str] | None,
    out: Path | None,
    overwrite: bool,
    **_: Any,
) -> list[tuple[Path, Scorecard]]:
    """Make one run a file of predictions, and score each."""
    from benchmark import runs
    from benchmark.prediction_files import file_sha256, read_prediction_file
    from benchmark.progress import meter
    from benchmark.scorecard import ImagesInfo, ModelInfo

    targets = _targets([file.stem for file in files], out)
    labels = runs.load_labels(annotations or ["real"])
    state = runs.environment()
    scorecards = []
    fingerprints: dict[int, tuple[str, bool]] = {}
    with meter("Scoring", len(files), unit="files", quiet=len(files) == 1) as progress:
        for file, run in zip(files, targets):
            predictions = read_prediction_file(file, ids_file=ids_file)
            # The ids of files without their own are one shared array, so its fingerprint is computed once.
            key = id(predictions.image_ids)
            if key not in fingerprints:
                fingerprints[key] = (runs.fingerprint_of(predictions), runs.is_sample(predictions.image_ids))
            fingerprint, sample = fingerprints[key]
            sha256 = file_sha256(file)
            info = runs.RunInfo(
                model=ModelInfo(name=file.stem, spec=file.name, source={"predictions_sha256": sha256}),
                images=ImagesInfo(
                    name="predictions" if sample else "ILSVRC2012 validation",
                    n=len(predictions),
                    fingerprint=fingerprint,
                    sample=sample,
                ),
                settings={"predictions_sha256": sha256},
                environment=state,
            )
            runs.write_predictions(run, predictions, info, overwrite=overwrite)
            scorecards.append((run, runs.score_run(run, annotations, labels=labels)))
            progress.advance(1)
    return scorecards


def score_models(
    models: Sequence[str],
    *,
    images_spec: str,
    annotations: list[str] | None,
    out: Path | None,
    device: str,
    batch_size: int,
    workers: int | None,
    threads: int | None,
    top_k: int,
    limit: int | None,
    on_error: str,
    overwrite: bool,
    quiet: bool = False,
    plan: AttackPlan | None = None,
    criticism: CriticismSettings | None = None,
    **_: Any,
) -> list[tuple[Path, Scorecard]]:
    """Run each model on the images, resuming what is there, and score each."""
    from benchmark import runs
    from benchmark.images import open_image_set

    # What can be wrong is found out before anything expensive is loaded.
    images = open_image_set(images_spec, limit=limit)
    default = ["sample"] if images.name == "sample" else ["real"]
    labels = runs.load_labels(annotations or default)
    if (plan is not None or criticism is not None) and images.total is None:
        raise BeyondError(
            f"{images.name} is streamed, and attacks read images more than once; download it first"
        )

    import torch

    from benchmark.engine import Settings, predict
    from benchmark.models import load
    from benchmark.scorecard import ImagesInfo, ModelInfo

    if threads:
        torch.set_num_threads(threads)
    place = choose_device(device)
    settings = Settings(
        batch_size=batch_size,
        workers=default_workers(place) if workers is None else workers,
        device=place,
        top_k=top_k,
        skip_errors=on_error == "skip",
        quiet=quiet,
    )
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    scorecards = []
    for spec, run in zip(models, _targets([_slug(spec) for spec in models], out)):
        classifier = load(spec)
        info = runs.RunInfo(
            model=ModelInfo(**dict(classifier.describe().items())),
            images=ImagesInfo(
                name=images.name, n=len(images), fingerprint=images.fingerprint, sample=images.sample
            ),
            settings={"dtype": "float32", "tf32": False, "top_k": top_k},
            environment={
                **runs.environment(),
                "device": device_name(settings.device),
                "threads": torch.get_num_threads(),
                "batch_size": batch_size,
                "workers": settings.workers,
            },
        )
        with runs.locked(run):
            done: set[str] = set()
            if runs.start_or_resume(run, info, overwrite=overwrite):
                done, damaged = runs.finished_ids(run)
                for path in damaged:
                    say(f"a part was damaged and is made again; its bytes are kept in {path}")
                if done:
                    say(f"going on with {run}: {len(done):,} images have a record already")
            summary = predict(classifier, images, run, settings, done=done, warn=say)
            if plan is not None:
                attack_images(classifier, images, run, plan, labels=labels, settings=settings)
            if criticism is not None:
                from benchmark.cli.criticize import criticize_images

                criticize_images(classifier, images, run, criticism, labels=labels, settings=settings)
        for kind, ids in sorted(summary.notes.items()):
            named = ", ".join(ids[:3]) + (", …" if len(ids) > 3 else "")
            say(f"{len(ids)} {kind} {'image' if len(ids) == 1 else 'images'} converted to RGB: {named}")
        if summary.skipped:
            say(f"{summary.skipped} images skipped; the reasons are in {run / 'skipped'}")
        scorecards.append((run, runs.score_run(run, annotations or default, labels=labels)))
    return scorecards


def attack_images(
    classifier: Classifier,
    images: ImageSet,
    run: Path,
    plan: AttackPlan,
    *,
    labels: Mapping[str, LabelSets],
    settings: Settings,
) -> None:
    """Attack the images as planned and record what is found. The run must be locked."""
    from benchmark import attack_engine, runs
    from benchmark.attack_records import repair
    from benchmark.images import read_ids
    from benchmark.tracks.robustness import primary_source

    rows = attack_engine.choose_images(
        images,
        skipped=set(runs.skipped_images(run)),
        ids=None if plan.ids_file is None else read_ids(plan.ids_file),
        limit=plan.limit,
        warn=say,
    )
    for path in repair(run):
        say(f"a part was damaged and is made again; its bytes are kept in {path}")
    primary = primary_source(labels)
    attack_engine.attack(
        classifier,
        images,
        rows,
        run,
        attack_engine.AttackSettings(
            suite=plan.suite,
            threat=plan.norm,
            epsilons=plan.epsilons,
            batch_size=plan.batch_size,
            device=settings.device,
            seed=plan.seed,
            execution=None if plan.execution is None else _execution(plan.execution),
            keep_adversarials=plan.keep,
            quiet=settings.quiet,
        ),
        labels=None if primary is None else labels[primary],
        there=runs.read_run(run).attacks,
        save=partial(runs.save_attack, run),
        warn=say,
    )


def _execution(names: Sequence[str]) -> Execution:
    from benchmark.attacks import Execution

    return Execution(
        channels_last="channels-last" in names,
        fold="fold" in names,
        freeze="freeze" in names,
        compile="compile" in names,
        checkpointing="checkpointing" in names,
        autocast="bfloat16" if "bfloat16" in names else "float16" if "float16" in names else None,
    )


def show(scorecards: Sequence[tuple[Path, Scorecard]], *, as_json: bool) -> None:
    """Print scorecards: JSON (an array if there are several), one in full, or a table of many."""
    if as_json:
        texts = [scorecard.to_json() for _, scorecard in scorecards]
        if len(texts) == 1:
            click.echo(texts[0], nl=False)
        else:
            click.echo(json.dumps([json.loads(text) for text in texts], indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    from benchmark.report.terminal import print_scorecard, print_table

    console = Console()
    if len(scorecards) == 1:
        run, scorecard = scorecards[0]
        print_scorecard(scorecard, console=console)
        console.print(f"Run: {run}    A page of it: beyond show {run} --html {run.name}.html", soft_wrap=True)
    else:
        print_table([scorecard for _, scorecard in scorecards], console=console)
        console.print(f"Runs: {scorecards[0][0].parent}", soft_wrap=True)


@click.command()
@click.argument("run_folders", nargs=-1, required=True, metavar="RUN…", type=click.Path(path_type=Path))
@annotations_option
@json_option
def rescore(run_folders: tuple[Path, ...], annotations: list[str] | None, as_json: bool) -> None:
    """Score runs again from their records alone: no model, no images.

    Without --annotations, each is scored against what it was last scored against.
    """
    from benchmark import runs

    labels = runs.load_labels(annotations) if annotations else None
    found = [(run, runs.score_run(run, annotations, labels=labels)) for run in run_folders]
    show(found, as_json=as_json)


def choose_device(name: str) -> Any:
    """The torch device a name stands for; `auto` takes a GPU where there is one.

    Raises:
        BeyondError: There is no such device here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise BeyondError(f"device {name!r} is not available here; use --device auto, or cpu") from None
    return device


def device_name(device: Any) -> str:
    """What to call a device in a record: the card's name for CUDA, else its type."""
    import torch

    return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else str(device)


def default_workers(device: Any) -> int:
    """Decoding processes when nobody says: none beside a model on the CPU, which has use for every core.

    There a thread decodes ahead. A GPU is fed by all cores but one, up to eight.
    """
    if device.type == "cpu":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores - 1))


def _slug(spec: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", spec).strip("-.") or "model"


def _targets(names: Sequence[str], out: Path | None) -> list[Path]:
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BeyondError(
            f"two inputs are called {twice!r}, and a run is named after its input; score them one by one"
        )
    if len(names) == 1:
        return [out or Path("runs") / names[0]]
    return [(out or Path("runs")) / name for name in names]
