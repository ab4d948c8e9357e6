"""`beyond criticize`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from annotations.errors import BeyondError
from annotations.files import write_atomically
from benchmark.cli.score import (
    annotations_option,
    json_option,
    say,
    show,
    split_list,
)
from benchmark.devices import choose_device, default_workers

if TYPE_CHECKING:
    from annotations.judgements import LabelSets
    from benchmark.classifier import Classifier
    from benchmark.criticism.settings import CriticismSettings
    from benchmark.engine import Settings
    from benchmark.images import ImageSet

TIERS = ("quick", "standard", "full")


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--images",
    "images_spec",
    metavar="DIR",
    help="The images that RUN was made with, any layout. [default: sample, if it was made with that]",
)
@click.option(
    "--attributes",
    callback=split_list,
    metavar="NAME,…",
    help="imagenet-x, co-occurrence, or CSV or Parquet files with image_id, attribute, value. "
    "[default: the first two]",
)
@click.option("--tier", type=click.Choice(TIERS), default="quick", show_default=True)
@click.option(
    "-k", "--chosen", "k", type=click.IntRange(1), help="Images chosen a class and side. [default: a quarter]"
)
@click.option("--ids", "ids_file", type=click.Path(path_type=Path), help="Only the images this file lists.")
@click.option("--limit", type=click.IntRange(1), help="Only the first N images, by id.")
@click.option(
    "--stability",
    type=click.IntRange(0),
    default=24,
    show_default=True,
    help="Images measured again, with another budget and other random starts.",
)
@click.option(
    "--probes",
    callback=split_list,
    default="watermark",
    show_default=True,
    metavar="NAME,…",
    help="Standard probes to run on the images, or none (see: beyond probe).",
)
@click.option(
    "--cue-conflict",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Run the probe cue-conflict too, on these images.",
)
@click.option(
    "--html",
    "html_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write a page with prototypes against criticisms. It holds pixels: do not publish it.",
)
@click.option(
    "--classes",
    callback=split_list,
    metavar="NAME,…",
    help="With --html: classes to show, by name or index. [default: the most telling]",
)
@annotations_option
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option(
    "--attack-batch-size", type=click.IntRange(1, 65536), help="Images at a time. [default: by tier]"
)
@click.option(
    "--batch-size", type=click.IntRange(1, 65536), default=64, show_default=True, help="For probes."
)
@click.option("--workers", type=click.IntRange(0, 256), help="Decoding processes. [default: by device]")
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads of the model on the CPU.")
@json_option
def criticize(
    run: Path,
    *,
    images_spec: str | None,
    attributes: list[str] | None,
    tier: str,
    k: int | None,
    ids_file: Path | None,
    limit: int | None,
    stability: int,
    probes: list[str] | None,
    cue_conflict: Path | None,
    html_file: Path | None,
    classes: list[str] | None,
    annotations: list[str] | None,
    device: str,
    attack_batch_size: int | None,
    batch_size: int,
    workers: int | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Find the biases that the model of RUN has learned, and prove them.

    \b
    beyond criticize runs/resnet50 --images ILSVRC2012_img_val
    beyond criticize runs/resnet50 --images ILSVRC2012_img_val --attributes imagenet-x,scenes.csv
    beyond criticize runs/resnet50 --images ILSVRC2012_img_val --html local.html --classes canoe,bikini
    beyond criticize runs/resnet50 --images ILSVRC2012_img_val --cue-conflict cue-conflict/images

    Measures how far each image is from the decision boundary, compares what the surest images of a class
    share with what the least sure share, on one half of the images, and confirms on the other. What was
    stopped goes on where it was when the same command is given again.
    """  # noqa: D301 - click reads the escape
    from benchmark import runs
    from benchmark.images import open_image_set, read_ids
    from benchmark.probes import get_probe

    info = runs.read_run(run)
    if html_file is not None and not html_file.parent.is_dir():
        raise BeyondError(f"there is no folder {html_file.parent}; make it, or write the page elsewhere")
    if classes is not None and html_file is None:
        raise BeyondError("--classes goes with --html FILE: it says what the page shows")
    subjects = None if classes is None else [class_index(name) for name in classes]
    names = [name for name in probes or [] if name != "none"]
    for name in names:
        get_probe(name)
    if info.model.weights_sha256 is None:
        raise BeyondError(
            f"{run} was made from a file of predictions, and distances need the model; make a run with: "
            "beyond score MODEL --images DIR"
        )
    if images_spec is None:
        if info.images.name != "sample":
            raise BeyondError(f"pass --images DIR: the images that {run} was made with")
        images_spec = "sample"
    images = open_image_set(images_spec)
    plan = plan_of(
        tier=tier,
        attributes=attributes,
        ids=None if ids_file is None else read_ids(ids_file),
        limit=limit,
        batch_size=attack_batch_size,
        k=k,
        stability=stability,
        probes=names,
        cue_conflict=cue_conflict,
    )
    specs = annotations or runs.default_annotations(info)
    labels = runs.load_labels(specs)

    import torch

    from benchmark.engine import Settings
    from benchmark.models import load

    if threads:
        torch.set_num_threads(threads)
    place = choose_device(device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    classifier = load(info.model.spec)
    if classifier.weights_sha256 != info.model.weights_sha256:
        raise BeyondError(f"{info.model.spec} has other weights than {run} was made with; score it again")
    settings = Settings(
        batch_size=batch_size, workers=default_workers(place) if workers is None else workers, device=place
    )
    with runs.locked(run):
        criticize_images(classifier, images, run, plan, labels=labels, settings=settings)
    card = runs.score_run(run, specs, labels=labels)
    if html_file is not None:
        write_page(run, html_file, images, classifier, labels, subjects)
    show([(run, card)], as_json=as_json)


def plan_of(
    *,
    tier: str = "quick",
    attributes: list[str] | None = None,
    ids: Sequence[str] | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    k: int | None = None,
    stability: int | None = None,
    probes: Sequence[str] | None = None,
    cue_conflict: Path | None = None,
) -> CriticismSettings:
    """What options ask for, with attribute files read and checked.

    Raises:
        BeyondError: A file of attributes cannot be read, or two have one name.
    """
    from benchmark.criticism.attributes import BUILT_IN, read_file
    from benchmark.criticism.settings import STABILITY, CriticismSettings

    if attributes is not None and "imagenet-x" in attributes:
        from annotations.sources import imagenet_x_factors

        imagenet_x_factors()  # says what to install
    names, files = [], []
    for name in BUILT_IN if attributes is None else attributes:
        if name in BUILT_IN:
            names.append(name)
        else:
            files.append(read_file(Path(name)))
            names.append(files[-1].name)
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BeyondError(f"attributes {twice!r} are named twice in --attributes; leave one out or rename it")
    return CriticismSettings(
        tier=tier,
        attributes=tuple(names),
        files=tuple(files),
        k=k,
        ids=ids,
        limit=limit,
        stability=STABILITY if stability is None else stability,
        batch_size=batch_size,
        probes=("watermark",) if probes is None else tuple(probes),
        cue_conflict=cue_conflict,
    )


def criticize_images(
    classifier: Classifier,
    images: ImageSet,
    run: Path,
    plan: CriticismSettings,
    *,
    labels: Mapping[str, LabelSets],
    settings: Settings,
) -> None:
    """Criticize as planned, and say what an image cost. The run must be locked."""
    from benchmark.criticism.engine import criticize as record

    spent = record(classifier, images, run, plan, labels=labels, engine=settings, warn=say)
    for suite, seconds in spent.seconds_per_image.items():
        say(f"distances of tier {suite}: {seconds:.2g} s an image")


def class_index(name: str) -> int:
    """The class that a name or an index stands for.

    Raises:
        BeyondError: There is none; the message says which name is near.
    """
    from annotations.classes import NUM_CLASSES, class_names

    names = class_names()
    if re.fullmatch(r"\d+", name) and int(name) < NUM_CLASSES:
        return int(name)
    lower = {text.lower(): i for i, text in enumerate(names)}
    if name.lower() in lower:
        return lower[name.lower()]
    from benchmark.cli import did_you_mean

    if len(near := did_you_mean(name.lower(), list(lower), what="class")) > 200:
        near = f"no such class {name!r}; give its name or its index in 0..{NUM_CLASSES - 1}"
    raise BeyondError(near)


def write_page(
    run: Path,
    file: Path,
    images: ImageSet,
    classifier: Classifier,
    labels: Mapping[str, LabelSets],
    subjects: Sequence[int] | None,
) -> None:
    """Write the page with pictures, which must not be published."""
    from benchmark import runs
    from benchmark.report.montage import montages
    from benchmark.report.page import render_page
    from benchmark.scorecard import read_scorecard

    card = read_scorecard(run)
    result = runs.criticism_result(run, labels)
    shown = [] if result is None else montages(result, images, classifier.preprocessing, subjects=subjects)
    card = card.model_copy(update={"tracks": {"criticism": card.tracks["criticism"]}})
    write_atomically(file, render_page(card, montages=shown))
    say(f"wrote {file}; it holds pixels of the images: keep it on this machine, do not publish it")
