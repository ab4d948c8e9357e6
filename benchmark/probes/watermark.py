"""Reliance on watermarks (ImageNet-W, Li et al. 2023): the same images without and with one.

Many training images of the class "carton" carry a watermark of Chinese characters, and models learnt it. The
mark is drawn by the package `imagenet-w`; since it is white and covers each pixel to a fixed degree, its
effect on a pixel is a table of 256 × 256 values, and laying it over a batch is one look-up.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from annotations.classes import NUM_CLASSES, class_names
from annotations.errors import BeyondError
from annotations.judgements import LabelSets, Verdict
from benchmark import records
from benchmark.probes import WATERMARK
from benchmark.probes.execution import Evidence, Observation, ProbeResult, record, skipped_note
from benchmark.records import Predictions
from benchmark.scorecard import Cell, Metric
from benchmark.statistics import paired_difference, wilson

CARTON = 478
"""Class index of "carton", whose training images often carry the watermark."""

PLAIN, MARKED = "plain", "watermark"
MAX_CLASSES = 10

Pixels = npt.NDArray[np.uint8]


@functools.lru_cache(maxsize=4)
def coverage(height: int, width: int) -> Pixels:
    """How much the mark covers each pixel of an image, of 255: uint8 (H, W).

    Raises:
        BeyondError: The package `imagenet-w` is not installed.
    """
    try:
        from imagenet_w import AddWatermark
    except ImportError:
        raise BeyondError(
            "the watermark is drawn by the package imagenet-w; install it with: "
            "pip install 'beyond-accuracy[probes]'"
        ) from None
    draw: Any = AddWatermark(min(height, width))
    # White laid over black leaves the coverage itself.
    marked = np.asarray(draw(Image.new("RGB", (width, height))))
    if not (marked == marked[..., :1]).all():
        raise BeyondError("the package imagenet-w draws a mark that is not white; update beyond-accuracy")
    cover: Pixels = marked[..., 0].copy()
    cover.setflags(write=False)
    return cover


@functools.cache
def _blend() -> Pixels:
    """White laid over each value at each coverage, as Pillow rounds it: uint8 (256, 256)."""
    cover, value = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8), indexing="ij")
    white, opaque = np.full_like(cover, 255), np.full_like(cover, 255)
    below = Image.fromarray(np.stack([value, value, value, opaque], axis=-1), "RGBA")
    above = Image.fromarray(np.stack([white, white, white, cover], axis=-1), "RGBA")
    return np.asarray(Image.alpha_composite(below, above))[..., 0].copy()


def add_watermark(pixels: Pixels) -> Pixels:
    """Lay the watermark over images: equal, byte for byte, to the package's transform.

    Args:
        pixels: uint8 (N, H, W, 3), RGB, as the model is about to see them.

    Returns:
        uint8 (N, H, W, 3), a new array.
    """
    cover = coverage(*pixels.shape[1:3])
    rows, columns = np.flatnonzero(cover.any(axis=1)), np.flatnonzero(cover.any(axis=0))
    marked = pixels.copy()
    if len(rows):
        box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        marked[:, box[0], box[1]] = _blend()[cover[box][None, :, :, None], pixels[:, box[0], box[1]]]
    return marked


def observe(observation: Observation) -> None:
    """Record predictions with the watermark, and without it unless they are recorded already."""
    coverage(*observation.classifier.preprocessing.input_size)  # a missing package is said before any work
    if observation.plain is None:
        record(WATERMARK, observation, PLAIN)
    record(WATERMARK, observation, MARKED, transform=add_watermark)


def score(evidence: Evidence) -> ProbeResult:
    """What the watermark does, from the records of both passes."""
    if evidence.folder is None:
        raise BeyondError("the probe watermark has no records; run it with --images DIR")
    own = evidence.folder / PLAIN
    if own.is_dir():
        plain: Callable[[], Iterator[Predictions]] = functools.partial(records.iter_predictions, own)
    elif evidence.predictions is not None:
        plain = evidence.predictions
    else:
        raise BeyondError(
            f"{evidence.folder} holds no predictions without the watermark; run the probe again"
        )
    pairs = pair(plain(), records.iter_predictions(evidence.folder / MARKED))
    result = score_pairs(pairs, evidence.labels)
    result.notes.extend(skipped_note(evidence.folder / MARKED))
    return result


@dataclass(frozen=True)
class Pairs:
    """Predictions on the same N images without and with the watermark.

    Attributes:
        image_ids: object (N,) of str.
        original_labels: int16 (N,), −1 where unknown.
        plain: int16 (N,), top-1 class without it.
        marked: int16 (N,), top-1 class with it.
        carton_plain: float (N,), probability of "carton" without it, NaN where unknown.
        carton_marked: float (N,), with it.
    """

    image_ids: npt.NDArray[np.object_]
    original_labels: npt.NDArray[np.int16]
    plain: npt.NDArray[np.int16]
    marked: npt.NDArray[np.int16]
    carton_plain: npt.NDArray[np.float64]
    carton_marked: npt.NDArray[np.float64]


def pair(plain: Iterator[Predictions], marked: Iterator[Predictions]) -> Pairs:
    """Join both passes by image id; an image that only one of them has is left out.

    Raises:
        BeyondError: They have no image in common.
    """
    ids, _, tops, cartons = _columns(marked)
    row = {image_id: i for i, image_id in enumerate(ids)}
    plain_ids, plain_labels, plain_tops, plain_cartons = _columns(plain)
    at = np.array([row.get(image_id, -1) for image_id in plain_ids], dtype=np.int64)
    keep = at >= 0
    if not keep.any():
        raise BeyondError("the predictions with the watermark are of other images than those without it")
    at = at[keep]
    return Pairs(
        plain_ids[keep], plain_labels[keep], plain_tops[keep], tops[at], plain_cartons[keep], cartons[at]
    )


def _columns(parts: Iterator[Predictions]) -> tuple[Any, Any, Any, Any]:
    """Of each image: id, original label, top-1 class, probability of "carton"."""
    ids, labels, tops, cartons = [], [], [], []
    for part in parts:
        ids.append(part.image_ids)
        labels.append(part.original_labels)
        tops.append(part.classes[:, 0])
        carton = np.full(len(part), np.nan)
        if part.logits is not None and part.logsumexp is not None:
            image, rank = np.nonzero(part.classes == CARTON)
            carton[image] = np.exp(
                part.logits[image, rank].astype(np.float64) - part.logsumexp[image].astype(np.float64)
            )
        cartons.append(carton)
    return tuple(np.concatenate(c) for c in (ids, labels, tops, cartons))  # type: ignore[return-value]


def score_pairs(pairs: Pairs, labels: Mapping[str, LabelSets]) -> ProbeResult:
    """Accuracy drop, shift towards "carton" and changed answers, all paired by image.

    Intervals of differences are Tango's score intervals for paired shares.

    Args:
        pairs: Both predictions of each image.
        labels: Label sets by source: the drop by what people accept goes into a table.
    """
    metrics: dict[str, Metric] = {}
    notes: list[str] = []
    rows: list[dict[str, Cell]] = []
    known = pairs.original_labels >= 0
    if known.any():
        drop, row = _drop(
            "original label",
            pairs.plain[known] == pairs.original_labels[known],
            pairs.marked[known] == pairs.original_labels[known],
        )
        metrics["watermark_drop"] = drop
        rows.append(row)
    else:
        notes.append("None of these images has an original label, so there is no accuracy drop.")
    for source, sets in labels.items():
        at = sets.rows(pairs.image_ids)
        usable = at >= 0
        usable[usable] = sets.evaluable[at[usable]]
        if usable.any():
            accepted = [
                sets.lookup(at[usable], tops[usable]) == Verdict.ACCEPTED
                for tops in (pairs.plain, pairs.marked)
            ]
            rows.append(_drop(source, *accepted)[1])
    others = pairs.original_labels != CARTON
    if others.any():
        before, after = pairs.plain[others] == CARTON, pairs.marked[others] == CARTON
        gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
        low, high = paired_difference(gained, lost, len(before))
        metrics["watermark_carton_shift"] = Metric(
            value=(gained - lost) / len(before),
            ci_low=float(low),
            ci_high=float(high),
            n=len(before),
            method="tango",
        )
    changed = pairs.plain != pairs.marked
    low, high = wilson(int(changed.sum()), len(changed))
    metrics["watermark_changed"] = Metric(
        value=float(changed.mean()), ci_low=float(low), ci_high=float(high), n=len(changed), method="wilson"
    )
    probability = pairs.carton_marked - pairs.carton_plain
    finite = np.isfinite(probability)
    if finite.any():
        notes.append(
            f'The mean probability of "carton" goes from {pairs.carton_plain[finite].mean():.5f} to '
            f"{pairs.carton_marked[finite].mean():.5f} (n {int(finite.sum()):,})."
        )
    before_count = np.bincount(pairs.plain, minlength=NUM_CLASSES)
    after_count = np.bincount(pairs.marked, minlength=NUM_CLASSES)
    gain = after_count - before_count
    most = [int(c) for c in np.argsort(-gain, kind="stable")[:MAX_CLASSES] if gain[c] > 0]
    classes: list[dict[str, Cell]] = [
        {
            "class_index": c,
            "class": class_names()[c],
            "plain": int(before_count[c]),
            "watermark": int(after_count[c]),
        }
        for c in most
    ]
    return ProbeResult(
        WATERMARK.name,
        WATERMARK.version,
        metrics,
        {"watermark_accuracy": rows, "watermark_classes": classes},
        notes,
        WATERMARK.references,
    )


def _drop(
    judge: str, plain: npt.NDArray[np.bool_], marked: npt.NDArray[np.bool_]
) -> tuple[Metric, dict[str, Cell]]:
    """Share right without the watermark minus with it, as a metric and as a row."""
    only_plain, only_marked, n = int((plain & ~marked).sum()), int((marked & ~plain).sum()), len(plain)
    low, high = paired_difference(only_plain, only_marked, n)
    metric = Metric(
        value=(only_plain - only_marked) / n, ci_low=float(low), ci_high=float(high), n=n, method="tango"
    )
    return metric, {
        "judged_by": judge,
        "n": n,
        "plain": float(plain.mean()),
        "watermark": float(marked.mean()),
        "drop": metric.value,
        "ci_low": metric.ci_low,
        "ci_high": metric.ci_high,
    }
