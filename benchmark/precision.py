"""How many predictions a lower precision changes, counted on a sample of the images that are scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmark.classifier import Classifier
from benchmark.decoding import Decoder
from benchmark.engine import Forward, Settings
from benchmark.images import Handle


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


def count_changes(classifier: Classifier, handles: Sequence[Handle], settings: Settings) -> Changes:
    """Predict images in float32 and in the precision of `settings`, and count what differs.

    Args:
        classifier: The model.
        handles: The images, e.g. `ImageSet.spread(COMPARED)`. Unreadable ones are left out.
        settings: How it runs.
    """
    silent: Callable[[str], None] = lambda _: None  # noqa: E731 - what memory says is said when scoring
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
            exact, rough = (forward(batch.pixels, batch.image_ids) for forward in (reference, other))
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
