"""From predictions to what is shown of them: heat maps and neighbours, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from annotations.errors import BeyondError
from benchmark.classifier import Classifier
from benchmark.explanations.heatmaps import Heatmaps
from benchmark.explanations.neighbours import Features, feature_layer, nearest, penultimate
from benchmark.explanations.pack import Item, Stimulus, to_pixels
from benchmark.explanations.pictures import Pixels

Explain = Callable[[Classifier, torch.Tensor, torch.Tensor], Heatmaps]


@dataclass(frozen=True)
class Prediction:
    """Items to explain, in one batch.

    Attributes:
        items: N items; the class explained is the one shown.
        x: float (N, 3, H, W) in [0, 1]: what the classifier sees, clean or adversarial.
    """

    items: tuple[Item, ...]
    x: torch.Tensor

    @property
    def classes(self) -> torch.Tensor:
        """The classes to explain, int64 (N,), on the device of the images."""
        return torch.tensor([item.shown_class for item in self.items], device=self.x.device)


@dataclass(frozen=True)
class References:
    """Where neighbours come from.

    Attributes:
        features: Of all candidates, from the same classifier.
        members: For each class, bool (N,): which rows of `features` show it (see `neighbours.nearest`).
        load: Pixels of a reference image by id, uint8 (H, W, 3), as the classifier sees it.
        k: Neighbours to show.
    """

    features: Features
    members: Mapping[int, npt.NDArray[np.bool_]]
    load: Callable[[str], Pixels]
    k: int = 4


def make_stimuli(
    classifier: Classifier,
    batches: Iterable[Prediction],
    *,
    explain: Explain | None,
    references: References | None,
) -> Iterator[Stimulus]:
    """Explain predictions.

    Args:
        classifier: In eval mode, on the device of the images.
        batches: What to explain; one batch is in memory at a time.
        explain: Makes heat maps, e.g. `functools.partial(grad_cam, layer=find_spatial_layer(classifier))`;
            None leaves the `feature` pictures out.
        references: None leaves the `example` pictures out. Classes without a reference image have none.

    Yields:
        One stimulus an item, in order, with the classifier's confidence in the class shown.

    Raises:
        BeyondError: The features are another model's; or see `explain`, `penultimate` and `nearest`.
    """
    info = references.features.info if references else None
    if info is not None and info.weights_sha256 != classifier.weights_sha256:
        raise BeyondError(f"the reference features are not from {classifier.name}; make them again")
    layer = feature_layer(classifier) if references else None
    for batch in batches:
        classes = batch.classes
        heat = explain(classifier, batch.x, classes).at_pixels().numpy() if explain else None
        found = None
        if references:
            found = nearest(
                penultimate(classifier, batch.x, layer=layer).cpu().numpy(),
                classes.cpu().numpy(),
                references.features,
                references.members,
                k=references.k,
                query_ids=[item.image_id for item in batch.items],
            )
        with torch.no_grad():
            shares = classifier(batch.x).float().softmax(1).gather(1, classes[:, None])[:, 0].tolist()
        images = batch.x.detach().float().cpu().numpy()
        for i, item in enumerate(batch.items):
            names: list[str] = []
            similarities: list[float] = []
            if found is not None:
                there = found.rows[i] >= 0
                names, similarities = found.image_ids[i][there].tolist(), found.similarity[i][there].tolist()
            yield Stimulus(
                # Few enough digits to be the same whatever the batch.
                item.model_copy(update={"confidence": round(min(shares[i], 1.0), 4)}),
                to_pixels(images[i]),
                heat[i] if heat is not None else None,
                names,
                similarities,
                [references.load(name) for name in names] if references else (),
            )
