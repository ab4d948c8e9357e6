"""How many predictions a lower precision changes, counted on a sample of the images that are scored."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from benchmark.classifier import Classifier
from benchmark.decoding import Decoder
from benchmark.engine import Forward, Settings
from benchmark.images import Handle, ImageSet, StreamedImageSet
from benchmark.statistics import wilson

IMAGES = 256


@dataclass(frozen=True)
class Changes:
    """What a precision changes against float32.

    Attributes:
        images: Images compared.
        changed: Of those, how many have another top-1 class.
        logit_error: Largest absolute difference of a logit.
    """

    images: int
    changed: int
    logit_error: float

    def line(self, precision: str) -> str:
        """One line for the user."""
        if not self.images:
            return f"{precision}: no image could be read to compare it with float32"
        low, high = wilson(self.changed, self.images)
        return (
            f"{precision} changes {self.changed} of {self.images} predictions against float32 "
            f"({100 * self.changed / self.images:.1f} %, 95 % interval {100 * float(low):.1f} to "
            f"{100 * float(high):.1f} %; largest difference of a logit {self.logit_error:.2g})"
        )


def count_changes(classifier: Classifier, images: ImageSet, settings: Settings) -> Changes:
    """Predict `IMAGES` images in float32 and in the precision of `settings`, and count what differs.

    The images are spread evenly over the set; of a stream, they are its first. Unreadable ones are left out.
    """
    return compare(classifier, sample(images), settings)


def sample(images: ImageSet) -> list[Handle]:
    """The images that are compared."""
    if isinstance(images, StreamedImageSet):
        handles = (handle for chunk in images.chunks(IMAGES) for handle in chunk.handles)
        return list(itertools.islice(handles, IMAGES))
    rows = np.unique(np.linspace(0, len(images) - 1, IMAGES).round().astype(int))
    return [images.handle(i) for i in rows.tolist()]


def compare(classifier: Classifier, handles: list[Handle], settings: Settings) -> Changes:
    """The comparison on given images."""
    silent: Callable[[str], None] = lambda line: None  # noqa: E731 - what memory says is said when scoring
    whole = replace(settings, precision="float32", compile=False)
    reference, other = (Forward(classifier, how, silent) for how in (whole, replace(settings, compile=False)))
    size = settings.batch_size
    groups = [handles[start : start + size] for start in range(0, len(handles), size)]
    n = changed = 0
    error = 0.0
    with Decoder(classifier.preprocessing, workers=0, batch_size=size) as decoder:
        for batch in decoder.batches(groups):
            if not len(batch):
                continue
            exact, rough = (
                forward(batch.pixels, batch.image_ids) for forward in (reference, other)
            )
            n += len(batch)
            changed += int((exact[0][:, 0] != rough[0][:, 0]).sum())
            error = max(error, float(np.abs(_by_class(exact) - _by_class(rough)).max()))
    return Changes(n, changed, error)


def _by_class(ranked: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """Logits in class order; classes beyond the top k are 0."""
    classes, logits, _ = ranked
    found = np.zeros((len(classes), 1000), dtype=np.float32)
    np.put_along_axis(found, classes.astype(np.intp), logits, axis=1)
    return found
