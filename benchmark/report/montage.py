"""Prototypes against criticisms as pictures, for a page that stays on this machine.

Pixels of ImageNet images must not be published, and neither must a page that holds any.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from annotations.classes import class_names
from annotations.errors import BeyondError
from benchmark.criticism.choose import RIGHT
from benchmark.criticism.findings import ALL
from benchmark.images import ImageSet
from benchmark.preprocessing import Preprocessing, load_pixels
from benchmark.report.criticism import distance_text
from benchmark.tracks.criticism import CriticismResult, example_classes, example_images

SIDE = 160
"""Pixels of the longer side of a picture."""
CLASSES = 6
ROW = 6
"""Pictures of a class and role."""


@dataclass(frozen=True)
class Picture:
    """One image: the picture as a `data:` URI, and what the model says of it.

    Attributes:
        uri: JPEG.
        image_id: Id of the image.
        label: Name of its class.
        predicted: Name of the class predicted.
        correct: These are the same.
        distance: Distance to the decision boundary as text.
        neighbour: Name of the class on the other side, or empty.
    """

    uri: str
    image_id: str
    label: str
    predicted: str
    correct: bool
    distance: str
    neighbour: str

    @property
    def alt(self) -> str:
        """What the picture is, in words."""
        return f"{self.image_id}, {self.label}; answer: {self.predicted}; distance {self.distance}"


@dataclass(frozen=True)
class Montage:
    """Prototypes and criticisms of a class (or of all), the most telling first."""

    subject: str
    prototypes: tuple[Picture, ...]
    criticisms: tuple[Picture, ...]


def montages(
    result: CriticismResult,
    images: ImageSet,
    preprocessing: Preprocessing,
    *,
    subjects: Sequence[int] | None = None,
) -> list[Montage]:
    """Pictures of prototypes and criticisms.

    Args:
        result: The track's result.
        images: The images of the run.
        preprocessing: What makes of them what the model sees, which is what is shown.
        subjects: Classes; None takes the most telling.

    Returns:
        All classes as one, then each class: up to `ROW` images from either end of its line, at most half of
        it, so a few more than are compared.

    Raises:
        BeyondError: A class has no image with a distance.
    """
    labels = result.distances.labels
    for c in subjects or ():
        if not (labels == c).any():
            raise BeyondError(f"no image of {class_names()[c]!r} has a distance; choose other --classes")
    at = {str(image_id): i for i, image_id in enumerate(images.ids)}

    def pictures(chosen: np.ndarray, role: str, limit: int) -> tuple[Picture, ...]:
        rows = example_images(result, chosen, role, ALL, limit)
        return tuple(
            Picture(
                uri=jpeg_uri(images, at[str(row["image_id"])], preprocessing),
                image_id=str(row["image_id"]),
                label=str(row["label"]),
                predicted=str(row["predicted"]),
                correct=bool(row["correct"]),
                distance=distance_text(row["distance"] if isinstance(row["distance"], float) else None),
                neighbour=str(row["neighbour"]),
            )
            for row in rows
            if str(row["image_id"]) in at
        )

    in_line = ~np.isnan(result.place)
    right = in_line & (result.answer == RIGHT)
    found = [
        Montage(
            "All classes",
            pictures(right, "prototype", min(2 * ROW, int(in_line.sum()) // 2)),
            pictures(in_line, "criticism", min(2 * ROW, int(in_line.sum()) // 2)),
        )
    ]
    for c in example_classes(result)[:CLASSES] if subjects is None else subjects:
        mine = labels == c
        count = min(ROW, int((in_line & mine).sum()) // 2)
        found.append(
            Montage(
                class_names()[c],
                pictures(right & mine, "prototype", count),
                pictures(in_line & mine, "criticism", count),
            )
        )
    return [m for m in found if m.prototypes or m.criticisms]


def jpeg_uri(images: ImageSet, i: int, preprocessing: Preprocessing) -> str:
    """What the model sees of an image, small, as a JPEG in a `data:` URI."""
    handle = images.handle(i)
    picture = Image.fromarray(load_pixels(handle.read(), preprocessing, name=handle.where))
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    sink = io.BytesIO()
    picture.save(sink, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(sink.getvalue()).decode("ascii")
