"""`beyond score` and `beyond rescore`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
    from benchmark.engine_ray import RaySettings
    from benchmark.engine_settings import Loaded, WorkerSettings
    from benchmark.images import ImageSet
    from benchmark.parts import Summary
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


class BatchSize(click.ParamType):  # type: ignore[type-arg]  # in click 8.1 it is not generic
    """A number of images, or `auto` (None in Python)."""

    name = "integer|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """See click."""
        if value == "auto":
            return None
        return click.IntRange(1, 65536).convert(value, param, ctx)


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print scorecards as JSON on standard output."
)


@click.command()
@click.argument("models", nargs=-1, metavar="[MODEL]…")
@click.option(
    "--models",
    "models_file",
    type=click.Path(path_type=Path),
    help="A file of more models, one spec a line; # starts a comment.",
)
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
@click.option(
    "--batch-size",
    type=BatchSize(),
    default=64,
    show_default=True,
    help="Images a forward pass; auto lets it grow on a GPU until memory or speed says stop.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16"]),
    default="fp32",
    show_default=True,
    help="Of clean predictions; what bf16 changes is counted on 256 images.",
)
@click.option(
    "--compile", "compile_model", is_flag=True, help="Run the model through torch.compile when predicting."
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="ray spreads clean predictions over the workers of a Ray cluster.",
)
@click.option(
    "--ray-address",
    metavar="HOST:PORT",
    help="Ray: the cluster, or auto. [default: start Ray on this machine]",
)
@click.option(
    "--ray-workers",
    type=click.IntRange(1, 4096),
    help="Ray: number of workers. [default: as many as the cluster has room for]",
)
@click.option(
    "--gpus-per-worker",
    type=click.FloatRange(0),
    help="Ray: GPUs of a worker, may be a fraction. [default: 1 where there are any]",
)
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
def score(
    models: tuple[str, ...], models_file: Path | None, prediction_file: Path | None, **options: Any
) -> None:
    """Score classifiers on images, or files of their predictions.

    \b
    beyond score efficientnet-lite0 --images sample
    beyond score timm:resnet50.a1_in1k --images ILSVRC2012_img_val --annotations real,consolidated
    beyond score --predictions resnet50.npy --annotations real,mla
    beyond score efficientnet-lite0 --images sample --tracks rectified,robustness,criticism

    A run that was stopped goes on where it was when the same command is given again. Several models get a run
    folder each in --out, and one that fails does not keep the others from being scored; the exit status is
    then 2.
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
        if models_file is not None or options["engine"] == "ray":
            raise BeyondError("--predictions needs no model to run: leave --models and --engine out")
        scorecards = score_predictions([prediction_file, *map(Path, models)], **options)
        show(scorecards, as_json=options["as_json"])
    else:
        if models_file is not None:
            models += read_models(models_file)
        if not models:
            raise BeyondError("nothing to score: name a MODEL with --images DIR, or give --predictions FILE")
        if not options["images_spec"]:
            raise BeyondError(
                "a MODEL needs images: pass --images DIR (or --images sample for the sample set)"
            )
        if options["ids_file"]:
            raise BeyondError("--ids goes with --predictions")
        _score_all(models, plan=plan, criticism=criticism, ray=ray_settings(**options), **options)


def _score_all(models: Sequence[str], **options: Any) -> None:
    """Score models, show what came of it, and fail in the end if one of them did."""
    if len(models) == 1:
        show(score_models(models, **options), as_json=options["as_json"])
        return
    reasons: dict[str, str] = {}

    def failed(spec: str, error: Exception) -> None:
        from benchmark.cli import message_of

        reasons[spec] = message_of(error)
        say(f"error: {spec}: {reasons[spec]}")

    scorecards = score_models(models, failed=failed, **options)
    if scorecards or options["as_json"]:
        show(scorecards, as_json=options["as_json"], several=True)
    if reasons:
        names = ", ".join(reasons)
        raise BeyondError(
            f"{len(reasons)} of {len(models)} models failed ({names}); the reasons are above, and the same "
            "command goes on with them"
        )


def read_models(path: Path) -> tuple[str, ...]:
    """A file of model specs, one a line; empty lines and what follows a # are left out.

    Raises:
        BeyondError: It cannot be read, or names no model.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BeyondError(f"cannot read the list of models {path}: {error}") from error
    specs = tuple(spec for line in lines if (spec := re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip()))
    if not specs:
        raise BeyondError(f"the list of models {path} is empty; write one spec a line")
    return specs


def ray_settings(
    *,
    engine: str,
    ray_address: str | None,
    ray_workers: int | None,
    gpus_per_worker: float | None,
    **_: Any,
) -> RaySettings | None:
    """Where Ray's workers are, or None for the local engine.

    Raises:
        BeyondError: An option of Ray is given without it.
    """
    given = {
        "--ray-address": ray_address,
        "--ray-workers": ray_workers,
        "--gpus-per-worker": gpus_per_worker,
    }
    if engine != "ray":
        lonely = [name for name, value in given.items() if value is not None]
        if lonely:
            raise BeyondError(f"{lonely[0]} goes with --engine ray")
        return None
    from benchmark.engine_ray import RaySettings

    return RaySettings(address=ray_address, workers=ray_workers, gpus_per_worker=gpus_per_worker)


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
    batch_size: int | None,
    workers: int | None,
    threads: int | None,
    top_k: int,
    limit: int | None,
    on_error: str,
    overwrite: bool,
    quiet: bool = False,
    precision: str = "fp32",
    compile_model: bool = False,
    plan: AttackPlan | None = None,
    criticism: CriticismSettings | None = None,
    ray: RaySettings | None = None,
    failed: Callable[[str, Exception], None] | None = None,
    **_: Any,
) -> list[tuple[Path, Scorecard]]:
    """Run each model on the images, resuming what is there, and score each.

    Args:
        models: Their specs.
        batch_size: Images a forward pass; None chooses.
        images_spec: See `benchmark.images.open_image_set`.
        annotations: Label sets; None takes what suits the images.
        out: As `--out`.
        device: As `--device`.
        workers: As `--workers`.
        threads: As `--threads`.
        top_k: As `--top-k`.
        limit: As `--limit`.
        on_error: `stop` or `skip`.
        overwrite: Throw away what is there.
        quiet: No progress.
        precision: `fp32` or `bf16`.
        compile_model: Use torch.compile.
        plan: How to attack, if at all.
        criticism: How to criticize, if at all.
        ray: Run on Ray's workers instead of in this process.
        failed: Called with the spec of a model that fails and the reason; the others go on. None raises it.
        **_: Other options of the command.
    """
    from benchmark import runs
    from benchmark.images import open_image_set

    # What can be wrong is found out before anything expensive is loaded.
    images = open_image_set(images_spec, limit=limit)
    default = ["sample"] if images.name == "sample" else ["real"]
    specs = annotations or default
    labels = runs.load_labels(specs)
    if (plan is not None or criticism is not None) and images.total is None:
        raise BeyondError(
            f"{images.name} is streamed, and attacks read images more than once; download it first"
        )
    targets = dict(zip(models, _targets([_slug(spec) for spec in models], out)))
    from benchmark.engine_settings import WorkerSettings

    how = WorkerSettings(
        batch_size=batch_size,
        workers=workers,
        device=device,
        threads=threads,
        top_k=top_k,
        skip_errors=on_error == "skip",
        precision="bfloat16" if precision == "bf16" else "float32",
        compile=compile_model,
        quiet=quiet,
    )
    if ray is None:
        observed = _observe_here(targets, images, how, overwrite=overwrite)
    else:
        observed = _observe_on_ray(targets, images, how, ray, overwrite=overwrite)
    scorecards = []
    for spec, observe in observed:
        run = targets[spec]
        try:
            classifier, summary = observe()
            _report(run, summary)
            if plan is not None or criticism is not None:
                _attack_and_criticize(
                    classifier or spec, images, run, plan, criticism, labels=labels, how=how
                )
            scorecards.append((run, runs.score_run(run, specs, labels=labels)))
        except Exception as error:  # one model's fault, whatever it is, is not the others'
            if failed is None:
                raise
            failed(spec, error)
    return scorecards


Observed = tuple["Classifier | None", "Summary"]


def _observe_here(
    targets: Mapping[str, Path], images: ImageSet, how: WorkerSettings, *, overwrite: bool
) -> Iterator[tuple[str, Callable[[], Observed]]]:
    """Each model with what loads it and records its predictions, in this process."""
    import torch

    from benchmark.devices import choose_device, default_workers, device_name
    from benchmark.engine import Forward, Settings, predict
    from benchmark.engine_settings import Loaded
    from benchmark.models import load

    if how.threads:
        torch.set_num_threads(how.threads)
    place = choose_device(how.device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

    def observe(spec: str, run: Path) -> Observed:
        classifier = load(spec)
        settings = Settings(
            batch_size=1,
            workers=default_workers(place) if how.workers is None else how.workers,
            device=place,
            top_k=how.top_k,
            skip_errors=how.skip_errors,
            quiet=how.quiet,
            precision=how.precision,
            compile=how.compile,
        )
        size = how.batch_size or _batch_size_of(run, overwrite=overwrite)
        if size is None:
            from benchmark.batch_size import automatic

            size = automatic(
                lambda size: Forward(classifier, replace(settings, batch_size=size), say),
                classifier.preprocessing.input_size,
                place,
            )
        settings = replace(settings, batch_size=size)
        check = None
        if how.precision != "float32" and (overwrite or not (run / "run.json").is_file()):
            from benchmark.parts import COMPARED
            from benchmark.precision import count_changes

            found = count_changes(classifier, images.spread(COMPARED), settings)
            check = (found.images, found.changed, found.logit_error)
        loaded = Loaded(
            classifier.describe(), device_name(place), torch.get_num_threads(), settings.workers, size, check
        )
        with _prepared(run, images, how, loaded, overwrite=overwrite) as done:
            return classifier, predict(classifier, images, run, settings, done=done, warn=say)

    return ((spec, partial(observe, spec, run)) for spec, run in targets.items())


def _observe_on_ray(
    targets: Mapping[str, Path],
    images: ImageSet,
    how: WorkerSettings,
    ray: RaySettings,
    *,
    overwrite: bool,
) -> Iterator[tuple[str, Callable[[], Observed]]]:
    """Record the predictions of all models on Ray's workers; then each model with what came of it."""
    from benchmark.engine_ray import Job, Outcome, Pool

    jobs = [
        Job(
            spec,
            run,
            partial(_prepared, run, images, how, overwrite=overwrite, engine="ray"),
            batch_size=_batch_size_of(run, overwrite=overwrite) if how.batch_size is None else None,
            compare=how.precision != "float32" and (overwrite or not (run / "run.json").is_file()),
        )
        for spec, run in targets.items()
    ]
    with Pool(ray, how, warn=say) as pool:
        outcomes = pool.predict(jobs, images)

    def result(outcome: Outcome) -> Observed:
        if outcome.summary is None:
            raise outcome.error or RuntimeError("a job without an outcome")
        return None, outcome.summary

    return ((spec, partial(result, outcome)) for spec, outcome in zip(targets, outcomes))


def _batch_size_of(run: Path, *, overwrite: bool) -> int | None:
    """The batch size of the run that is there: one that was measured comes out otherwise the next time."""
    from benchmark import runs

    if overwrite or not (run / runs.RUN_FILE).is_file():
        return None
    size = runs.read_run(run).environment.get("batch_size")
    return size if isinstance(size, int) else None


@contextmanager
def _prepared(
    run: Path,
    images: ImageSet,
    how: WorkerSettings,
    loaded: Loaded,
    *,
    overwrite: bool,
    engine: str = "local",
) -> Iterator[set[str]]:
    """Hold a run folder, made or found fit to go on with; yields the ids that have a record."""
    from benchmark import runs
    from benchmark.scorecard import ImagesInfo, ModelInfo

    info = runs.RunInfo(
        model=ModelInfo(**dict(loaded.model.items())),
        images=ImagesInfo(
            name=images.name, n=len(images), fingerprint=images.fingerprint, sample=images.sample
        ),
        settings={"dtype": how.precision, "tf32": False, "top_k": how.top_k},
        environment={
            **runs.environment(),
            "engine": engine,
            "device": loaded.device,
            "threads": loaded.threads,
            "batch_size": loaded.batch_size,
            "workers": loaded.workers,
            "compile": how.compile,
        },
    )
    if loaded.precision_check is not None:
        n, changed, error = loaded.precision_check
        info.environment["precision_check"] = {
            "images": n,
            "changed": changed,
            "largest_logit_difference": error,
        }
        say(changes_line(how.precision, n, changed, error))
    with runs.locked(run):
        done: set[str] = set()
        if runs.start_or_resume(run, info, overwrite=overwrite):
            done, damaged = runs.finished_ids(run)
            for path in damaged:
                say(f"a part was damaged and is made again; its bytes are kept in {path}")
            if done:
                say(f"going on with {run}: {len(done):,} images have a record already")
        yield done


def changes_line(precision: str, n: int, changed: int, logit_error: float) -> str:
    """One line on what a precision changes against float32."""
    from benchmark.statistics import wilson

    if not n:
        return f"{precision}: no image could be read to compare it with float32"
    low, high = (100 * float(end) for end in wilson(changed, n))
    return (
        f"{precision} changes {changed} of {n} predictions against float32 ({100 * changed / n:.1f} %, 95 % "
        f"interval {low:.1f} to {high:.1f} %; a logit by at most {logit_error:.2g})"
    )


def _report(run: Path, summary: Summary) -> None:
    """Say which images were converted and left out."""
    for kind, ids in sorted(summary.notes.items()):
        named = ", ".join(ids[:3]) + (", …" if len(ids) > 3 else "")
        say(f"{len(ids)} {kind} {'image' if len(ids) == 1 else 'images'} converted to RGB: {named}")
    if summary.skipped:
        say(f"{summary.skipped} images skipped; the reasons are in {run / 'skipped'}")


def _attack_and_criticize(
    model: Classifier | str,
    images: ImageSet,
    run: Path,
    plan: AttackPlan | None,
    criticism: CriticismSettings | None,
    *,
    labels: Mapping[str, LabelSets],
    how: WorkerSettings,
) -> None:
    """The tracks that attack, in this process."""
    import torch

    from benchmark import runs
    from benchmark.devices import choose_device, default_workers
    from benchmark.engine import Settings
    from benchmark.models import load

    place = choose_device(how.device)
    if how.threads:
        torch.set_num_threads(how.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    classifier = load(model) if isinstance(model, str) else model
    settings = Settings(
        batch_size=how.batch_size or 64,
        workers=default_workers(place) if how.workers is None else how.workers,
        device=place,
        quiet=how.quiet,
    )
    with runs.locked(run):
        if plan is not None:
            attack_images(classifier, images, run, plan, labels=labels, settings=settings)
        if criticism is not None:
            from benchmark.cli.criticize import criticize_images

            criticize_images(classifier, images, run, criticism, labels=labels, settings=settings)


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


def show(scorecards: Sequence[tuple[Path, Scorecard]], *, as_json: bool, several: bool | None = None) -> None:
    """Print scorecards: JSON (an array if there are several), one in full, or a table of many.

    Args:
        scorecards: Runs and their scorecards.
        as_json: Print JSON.
        several: Whether several were asked for; None looks how many there are.
    """
    several = len(scorecards) != 1 if several is None else several
    if as_json:
        texts = [scorecard.to_json() for _, scorecard in scorecards]
        if not several:
            click.echo(texts[0], nl=False)
        else:
            click.echo(json.dumps([json.loads(text) for text in texts], indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    from benchmark.report.terminal import print_scorecard, print_table

    console = Console()
    if not several:
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
