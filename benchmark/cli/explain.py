"""`beyond explain`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from annotations.errors import BeyondError
from benchmark.cli.score import say
from benchmark.devices import choose_device, default_workers

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from annotations.judgements import LabelSets
    from benchmark.attack_records import Row
    from benchmark.classifier import Classifier
    from benchmark.explanations.neighbours import Features
    from benchmark.explanations.pack import Item, Manifest
    from benchmark.explanations.selection import Candidate
    from benchmark.explanations.stimuli import Prediction, References
    from benchmark.tracks.robustness import Verdicts

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
    "--mix",
    "mix_text",
    metavar="A:C:S",
    help="Adversarials, clean controls and shams in each block. [default: 2:1:1; 1:0:0 without label sets]",
)
@click.option("--limit", type=click.IntRange(1), help="Only the first N images, by id.")
@click.option(
    "--complete",
    is_flag=True,
    help="For a study: only images that have neighbours whatever they are shown as.",
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
    mix_text: str | None,
    limit: int | None,
    complete: bool,
    device: str,
    overwrite: bool,
) -> None:
    """Explain the adversarial predictions of RUN, and controls beside them, ready to be shown to people.

    \b
    beyond explain runs/resnet50
    beyond explain runs/resnet50 --references ILSVRC2012_img_val
    beyond explain runs/resnet50 --mix 1:0:0

    Each image that an attack broke is shown as one of three: adversarial; clean, with the prediction for it;
    or a sham, the clean image with a class that is plainly wrong. Writes heat maps for the class shown, and
    sheets of its nearest reference images, with a manifest of items, hashes and settings. The pictures derive
    from the images: they must not be published.
    """  # noqa: D301 - click reads the escape
    from annotations.study.preregistration import KINDS
    from benchmark.explanations.selection import parse_mix

    target = out or run / "explanations"
    manifest = make_pack(
        run,
        target,
        references=references_spec,
        method=method,
        neighbours=neighbours,
        mix=None if mix_text is None else parse_mix(mix_text),
        limit=limit,
        complete=complete,
        device=device,
        overwrite=overwrite,
    )
    kinds = {kind: sum(item.kind == kind for item in manifest.items) for kind in KINDS}
    arms = {arm: sum(p.arm == arm for p in manifest.pictures) for arm in ("feature", "example")}
    say(
        f"{kinds['adversarial']} adversarial predictions, {kinds['clean']} clean controls, {kinds['sham']} "
        f"shams: {arms['feature']} heat maps and {arms['example']} sheets of neighbours in {target}"
    )
    say("the pictures derive from the images, so keep them on this machine")
    if references_spec is None:
        say("no neighbours: name images to take them from with --references DIR")


def make_pack(
    run: Path,
    target: Path,
    *,
    references: str | None = None,
    method: str = "grad-cam",
    neighbours: int = 4,
    mix: tuple[int, int, int] | None = None,
    limit: int | None = None,
    most: int | None = None,
    complete: bool = False,
    device: str = "auto",
    overwrite: bool = False,
) -> Manifest:
    """Explain the adversarial predictions of a run, and controls beside them, into a pack.

    Args:
        run: A run with attacks and the adversarial images.
        target: Folder of the pack.
        references: Images to take neighbours from, or None for heat maps alone.
        method: `grad-cam` or `integrated-gradients`.
        neighbours: How many.
        mix: Adversarials, clean controls and shams in each block; see `choose_items`.
        limit: Only the first so many images, by id.
        most: At most so many items; see `choose_items`.
        complete: Only images that have neighbours whatever they are shown as; see `choose_items`.
        device: As `--device`.
        overwrite: Replace the pack that is there.

    Raises:
        BeyondError: The run has nothing to explain, or its model cannot be explained.
    """
    from benchmark import runs
    from benchmark.attack_records import iter_adversarials
    from benchmark.explanations.heatmaps import grad_cam, integrated_gradients
    from benchmark.explanations.layers import find_spatial_layer
    from benchmark.explanations.pack import write_pack
    from benchmark.explanations.stimuli import make_stimuli
    from benchmark.models import load
    from benchmark.progress import meter

    info = runs.read_run(run)
    labels = runs.load_labels(runs.default_annotations(info))
    result, rows = broken_images(run, labels, limit)
    classifier = load(info.model.spec)
    if classifier.weights_sha256 != info.model.weights_sha256:
        raise BeyondError(f"{info.model.spec} has other weights than {run} was made with; score it again")
    where = choose_device(device)
    classifier.module.eval().to(where)
    layer = find_spatial_layer(classifier) if method == "grad-cam" else None
    heat: Any = partial(grad_cam, layer=layer) if layer is not None else integrated_gradients

    with runs.locked(run):
        features = None
        if references is not None:
            features = _reference_features(run, classifier, references)
        items, mix, primary = choose_items(run, rows, labels, mix, features, most=most, complete=complete)
        classes = {item.shown_class for item in items.values()}
        shown = None if features is None else features.of(classes, neighbours)

        with meter("Explanations", len(items)) as progress:

            def batches() -> Iterator[Prediction]:
                import torch

                from benchmark.explanations.stimuli import Prediction

                stream = iter_adversarials(run, set(items))
                while adversarials := list(islice(stream, _TOGETHER)):
                    chosen = tuple(items[a.name] for a in adversarials)
                    pixels = [
                        torch.from_numpy(a.pixels)
                        if item.kind == "adversarial"
                        else torch.from_numpy(a.clean.copy()).permute(2, 0, 1).float() / 255
                        for a, item in zip(adversarials, chosen)
                    ]
                    yield Prediction(chosen, torch.stack(pixels).to(where))
                    progress.advance(len(chosen))

            evaluation = result.evaluation
            return write_pack(
                target,
                make_stimuli(classifier, batches(), explain=heat, references=shown),
                model={
                    "spec": info.model.spec,
                    "name": info.model.name,
                    "weights_sha256": classifier.weights_sha256,
                },
                images=hashlib.sha256("\n".join(sorted(items)).encode()).hexdigest(),
                settings={
                    "method": method,
                    "layer": layer.name if layer is not None else None,
                    "neighbours": neighbours if shown else 0,
                    "references": references if references == "sample" else None,
                    "references_fingerprint": features.fingerprint if features else None,
                    "mix": ":".join(map(str, mix)),
                    "threat": evaluation.threat,
                    "epsilon": evaluation.epsilon,
                    "suite": evaluation.suite,
                    "annotations": primary,
                    "annotations_revision": labels[primary].revision if primary else None,
                },
                overwrite=overwrite,
            )


def broken_images(
    run: Path, labels: Mapping[str, LabelSets], limit: int | None
) -> tuple[Verdicts, list[Row]]:
    """The verdicts that the figures quote, and the rows of the images that `original` broke, by image id.

    Raises:
        BeyondError: The run has no finished attacks, broke nothing, or kept no adversarial images.
    """
    from benchmark.attack_records import adversarial_names

    verdicts, broken = broken_rows(run, labels)
    stored = adversarial_names(run)
    kept = [row for row in broken if row.adversarial in stored]
    if not kept:
        raise BeyondError(f"{run} keeps no adversarial images; score it again with --keep-adversarials")
    return verdicts, kept[:limit]


def broken_rows(run: Path, labels: Mapping[str, LabelSets]) -> tuple[Verdicts, list[Row]]:
    """The same, whether the adversarial images were kept or not.

    Raises:
        BeyondError: The run has no finished attacks, or broke nothing.
    """
    from benchmark import runs
    from benchmark.attack_records import read_attacks

    result = runs.robustness_result(run, labels)
    if result is None or result.verdicts is None:
        raise BeyondError(f"{run} has no finished attacks; run beyond score … --tracks robustness first")
    found = read_attacks(run)
    rows = found.rows(found.rows_of(result.verdicts.evaluation))
    broken = [row for row in rows if row.objective == "original" and row.status == "broken"]
    if not broken:
        raise BeyondError(f"no attack broke anything in {run}, so there is nothing to explain")
    return result.verdicts, broken


def choose_items(
    run: Path,
    rows: Sequence[Row],
    labels: Mapping[str, LabelSets],
    mix: tuple[int, int, int] | None,
    features: _Features | None,
    *,
    most: int | None = None,
    complete: bool = False,
) -> tuple[dict[str, Item], tuple[int, int, int], str | None]:
    """What each broken image is shown as, by the name of its adversarial; the mix; and whose label sets.

    Args:
        run: The run.
        rows: The images that were broken.
        labels: Label sets, by source.
        mix: Adversarials, clean controls and shams in each block; None for the default where label sets judge
            any of the images, and adversarials alone where they judge none.
        features: Of the reference images, or None without any.
        most: Only the first so many of the images that can be shown, by id.
        complete: Leave out images of which a control, or the adversarial prediction, has no reference image,
            so that every arm of a study can show the same items.

    Raises:
        BeyondError: Controls are asked for and label sets judge none of the images.
    """
    import numpy as np

    from benchmark.explanations.selection import MIX, deal
    from benchmark.tracks.robustness import primary_source

    primary = primary_source(labels)
    sets = labels[primary] if primary else None
    referenced = None
    if features is not None:
        referenced = np.bincount(features.labels[features.labels >= 0], minlength=1000) > 0
    candidates = _candidates(run, rows, sets, referenced)
    matched = [c for c in candidates if c.matched]
    if mix is None:
        mix = MIX if matched else (1, 0, 0)
        if not matched:
            say("no controls: label sets judge none of the images (see --annotations of beyond rescore)")
    if sum(mix[1:]):
        if not matched:
            raise BeyondError(
                "controls need images that label sets judge: beyond rescore the run with --annotations that "
                "cover it, or pass --mix 1:0:0"
            )
        if len(matched) < len(candidates):
            say(
                f"{len(candidates) - len(matched):,} of {len(candidates):,} images are left out: people do "
                "not accept the prediction for the clean image, or no class is plainly wrong"
            )
        candidates = matched
        if complete and features is not None:
            candidates = [
                c
                for c in matched
                if features.shows(c.clean_class, c.image_id)
                and features.shows(c.adversarial_class, c.image_id)
            ]
            if len(candidates) < len(matched):
                say(
                    f"{len(matched) - len(candidates):,} of {len(matched):,} images are left out: no other "
                    "reference image shows a class that they may be shown with (see --references)"
                )
            if not candidates:
                raise BeyondError(
                    "no image is left that has reference images of all classes it may be shown with; "
                    "give more of them with --references, or none"
                )
    candidates = sorted(candidates, key=lambda c: c.image_id)[:most]
    names = {c.image_id: c.adversarial for c in candidates}
    return {names[item.image_id]: item for item in deal(candidates, mix)}, mix, primary


def _candidates(run: Path, rows: Sequence[Row], labels: LabelSets | None, referenced: Any) -> list[Candidate]:
    """Broken images with all that they may be shown as."""
    import numpy as np

    from annotations.judgements import Verdict
    from benchmark.explanations.selection import TOP, Candidate, plainly_wrong, sham_class
    from benchmark.records import iter_predictions

    wanted = {row.image_id for row in rows}
    best: dict[str, tuple[list[int], float]] = {}
    for part in iter_predictions(run):
        for i in np.flatnonzero([image_id in wanted for image_id in part.image_ids]).tolist():
            if part.logits is None or part.logsumexp is None:
                raise BeyondError(f"{run} keeps no logits, which controls are balanced by; score it again")
            share = float(np.exp(part.logits[i, 0] - part.logsumexp[i]))
            best[part.image_ids[i]] = part.classes[i, :TOP].tolist(), round(min(share, 1.0), 6)
    found = []
    for row in rows:
        top, confidence = best[row.image_id]
        at = -1
        if labels is not None and len(labels):
            at = int(labels.rows(np.array([row.image_id], dtype=object))[0])
            at = at if at >= 0 and labels.evaluable[at] else -1
        pair = np.array([row.clean_class, row.adversarial_class])
        said = [0, 0]
        sham = None
        if labels is not None and at >= 0:
            said = labels.lookup(np.array([at, at]), pair).tolist()
            likely = [*top, row.original_label, row.adversarial_class]
            sham = sham_class(row.image_id, plainly_wrong(labels, at, likely=likely, referenced=referenced))
        found.append(
            Candidate(
                image_id=row.image_id,
                original_label=row.original_label,
                clean_class=row.clean_class,
                clean_confidence=confidence,
                clean_verdict=Verdict(said[0]),
                adversarial=row.adversarial,
                adversarial_class=row.adversarial_class,
                adversarial_verdict=Verdict(said[1]),
                distance=row.distance,
                sham_class=sham,
            )
        )
    return found


@dataclass(frozen=True)
class _Features:
    """Features of the reference images, and how to read these."""

    features: Features
    labels: npt.NDArray[np.int16]
    load: Callable[[str], Any]
    fingerprint: str

    def shows(self, class_index: int, other_than: str) -> bool:
        """Whether a reference image other than this one shows a class."""
        import numpy as np

        mine = np.flatnonzero(self.labels == class_index)
        return len(mine) > 1 or (len(mine) == 1 and str(self.features.image_ids[mine[0]]) != other_than)

    def of(self, classes: set[int], k: int) -> References:
        """As references of some classes, by original label."""
        from benchmark.explanations.stimuli import References

        return References(self.features, {c: self.labels == c for c in classes}, self.load, k)


def _reference_features(run: Path, classifier: Classifier, spec: str) -> _Features:
    """Features of the reference images, made again only if they are of other images or weights."""
    import numpy as np

    from benchmark.decoding import Decoder
    from benchmark.explanations.neighbours import open_features, write_features
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

    labels = np.array([images.labels[row_of[str(image_id)]] for image_id in features.image_ids], np.int16)

    def pixels(image_id: str) -> Any:
        i = row_of[image_id]
        return load_pixels(images.read(i), classifier.preprocessing, name=images.handle(i).where)

    return _Features(features, labels, pixels, images.fingerprint)
