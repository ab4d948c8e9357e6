"""`beyond explain`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from annotations.errors import BeyondError
from benchmark.cli.score import choose_device, default_workers, say

if TYPE_CHECKING:
    from benchmark.classifier import Classifier
    from benchmark.explanations.stimuli import Prediction, References

_TOGETHER = 8


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--references",
    "references_spec",
    metavar="DIR",
    help="Images to take neighbours from, any layout of --images; without it, heat maps alone.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Where to. [default: RUN/explanations]")
@click.option(
    "--method", type=click.Choice(["grad-cam", "integrated-gradients"]), default="grad-cam", show_default=True
)
@click.option("--neighbours", type=click.IntRange(1, 64), default=4, show_default=True)
@click.option(
    "--limit", type=click.IntRange(1), help="Only the first N adversarial predictions, by image id."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--overwrite", is_flag=True, help="Replace the explanations that are there.")
def explain(
    run: Path,
    *,
    references_spec: str | None,
    out: Path | None,
    method: str,
    neighbours: int,
    limit: int | None,
    device: str,
    overwrite: bool,
) -> None:
    """Explain the adversarial predictions of RUN, ready to be shown to people.

    \b
    beyond explain runs/resnet50
    beyond explain runs/resnet50 --references ILSVRC2012_img_val

    Writes heat maps, and sheets of the nearest reference images of the predicted class, with a manifest of
    hashes and settings. The pictures derive from the images: they must not be published.
    """  # noqa: D301 - click reads the escape
    from benchmark import runs
    from benchmark.attack_records import iter_adversarials
    from benchmark.explanations.heatmaps import grad_cam, integrated_gradients
    from benchmark.explanations.layers import find_spatial_layer
    from benchmark.explanations.pack import write_pack
    from benchmark.explanations.stimuli import make_stimuli
    from benchmark.models import load

    info = runs.read_run(run)
    wanted = adversarial_classes(run, limit)
    classifier = load(info.model.spec)
    if classifier.weights_sha256 != info.model.weights_sha256:
        raise BeyondError(f"{info.model.spec} has other weights than {run} was made with; score it again")
    where = choose_device(device)
    classifier.module.eval().to(where)
    layer = find_spatial_layer(classifier) if method == "grad-cam" else None
    heat: Any = partial(grad_cam, layer=layer) if layer is not None else integrated_gradients
    target = out or run / "explanations"

    def batches() -> Iterator[Prediction]:
        import torch

        from benchmark.explanations.stimuli import Prediction

        stream = iter_adversarials(run, wanted)
        while adversarials := list(islice(stream, _TOGETHER)):
            yield Prediction(
                tuple(a.image_id for a in adversarials),
                torch.stack([torch.from_numpy(a.pixels) for a in adversarials]).to(where),
                torch.tensor([wanted[a.name] for a in adversarials]),
            )

    with runs.locked(run):
        references = None
        if references_spec is not None:
            references = _references(run, classifier, references_spec, set(wanted.values()), neighbours)
        manifest = write_pack(
            target,
            make_stimuli(classifier, batches(), explain=heat, references=references),
            model={
                "spec": info.model.spec,
                "name": info.model.name,
                "weights_sha256": classifier.weights_sha256,
            },
            images=hashlib.sha256("\n".join(sorted(wanted)).encode()).hexdigest(),
            settings={
                "method": method,
                "layer": layer.name if layer is not None else None,
                "neighbours": neighbours if references else 0,
                "references": references_spec if references_spec == "sample" else None,
            },
            overwrite=overwrite,
        )
    shown = {arm: sum(p.arm == arm for p in manifest.pictures) for arm in ("none", "feature", "example")}
    say(
        f"{shown['none']} adversarial predictions: {shown['feature']} heat maps and {shown['example']} "
        f"sheets of neighbours in {target}; they derive from the images, so keep them on this machine"
    )
    if references is None:
        say("no neighbours: name images to take them from with --references DIR")


def adversarial_classes(run: Path, limit: int | None) -> dict[str, int]:
    """Name and predicted class of each adversarial that the quoted figures count, by image id.

    Raises:
        BeyondError: The run has no finished attacks, broke nothing, or kept no adversarial images.
    """
    from benchmark import runs
    from benchmark.attack_records import adversarial_names, read_attacks

    result = runs.robustness_result(run, runs.load_labels(runs.default_annotations(runs.read_run(run))))
    if result is None or result.verdicts is None:
        raise BeyondError(f"{run} has no finished attacks; run beyond score … --tracks robustness first")
    found = read_attacks(run)
    rows = found.rows(found.rows_of(result.verdicts.evaluation))
    broken = [row for row in rows if row.objective == "original" and row.status == "broken"]
    if not broken:
        raise BeyondError(f"no attack broke anything in {run}, so there is nothing to explain")
    stored = adversarial_names(run)
    kept = [row for row in broken if row.adversarial in stored]
    if not kept:
        raise BeyondError(f"{run} keeps no adversarial images; score it again with --keep-adversarials")
    return {row.adversarial: row.adversarial_class for row in kept[:limit]}


def _references(run: Path, classifier: Classifier, spec: str, classes: set[int], k: int) -> References:
    """Features of the reference images, made again only if they are of other images or weights."""
    import numpy as np

    from benchmark.decoding import Decoder
    from benchmark.explanations.neighbours import open_features, write_features
    from benchmark.explanations.stimuli import References
    from benchmark.images import open_image_set
    from benchmark.preprocessing import load_pixels
    from benchmark.progress import meter

    images = open_image_set(spec)
    device = next(classifier.module.parameters()).device
    row_of = {image_id: i for i, image_id in enumerate(images.ids)}
    try:
        features = open_features(run, weights_sha256=classifier.weights_sha256, verify=True)
    except BeyondError:
        features = None
    if features is None or features.info is None or features.info.images != images.fingerprint:
        with (
            meter("Features of the references", len(images)) as progress,
            Decoder(classifier.preprocessing, workers=default_workers(device), batch_size=32) as decoder,
        ):
            features = write_features(
                run,
                classifier,
                decoder.batches(chunk.handles for chunk in images.chunks(32)),
                images=images.fingerprint,
                on_batch=lambda batch: progress.advance(len(batch)),
            )

    labels = np.array([images.labels[row_of[str(image_id)]] for image_id in features.image_ids])

    def pixels(image_id: str) -> Any:
        i = row_of[image_id]
        return load_pixels(images.read(i), classifier.preprocessing, name=images.handle(i).where)

    return References(features, {c: labels == c for c in classes}, pixels, k)
