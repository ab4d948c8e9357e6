"""A run-sized world for the criticism track: a few classes with several small images, and an exact model."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from annotations.classes import validation_id, validation_labels
from annotations.judgements import LabelSets
from benchmark.preprocessing import Preprocessing, load_pixels
from tests.benchmark.attacked import MODEL, SIZE


@dataclass(frozen=True)
class ClassWorld:
    """Images of three classes (eight each) and of one with a single image, a model, and label sets.

    Attributes:
        images: Folder of images.
        model: Path of the file with the factories of `tests.benchmark.attacked`.
        labels: Folder of label sets, which accept a companion in half of the images of the first class.
        ids: Image ids, sorted.
        classes: Original label by id.
        companion: Class that is accepted beside the first one.
    """

    images: Path
    model: Path
    labels: Path
    ids: list[str]
    classes: dict[str, int]
    companion: int

    def spec(self, factory: str = "model") -> str:
        return f"{self.model}:{factory}"


def make_class_world(folder: Path, per_class: int = 8) -> ClassWorld:
    """Make the world: images are blends of their class's colours and of grey noise."""
    truth = validation_labels().astype(int)
    chosen = {
        c: (np.flatnonzero(truth == c) + 1).tolist()[:n]
        for c, n in {20: per_class, 400: per_class, 700: per_class, 900: 1}.items()
    }
    rng = np.random.default_rng(5)
    images = folder / "images"
    images.mkdir(parents=True)
    base = {c: rng.integers(40, 216, (4, 4, 3)) for c in chosen}
    classes = {}
    for c, numbers in chosen.items():
        for number in numbers:
            noise = np.random.default_rng(number).normal(0, 45, (4, 4, 3))
            coarse = (base[c] + noise).clip(0, 255).astype(np.uint8)
            sink = io.BytesIO()
            Image.fromarray(coarse).resize((40, 40), Image.Resampling.NEAREST).save(sink, "JPEG", quality=95)
            (images / f"{validation_id(number)}.JPEG").write_bytes(sink.getvalue())
            classes[validation_id(number)] = c
    # A nearest-prototype classifier, whose prototypes are the classes' colours.
    spec = Preprocessing(input_size=(SIZE, SIZE), resize=SIZE)
    prototypes, bias = np.full((1000, 48), 0.5), np.full(1000, -10.0)
    for c, numbers in chosen.items():
        means = []
        for number in numbers:
            data = (images / f"{validation_id(number)}.JPEG").read_bytes()
            pixels = load_pixels(data, spec, name="made up").astype(np.float64) / 255
            means.append(
                pixels.reshape(4, SIZE // 4, 4, SIZE // 4, 3).mean(axis=(1, 3)).transpose(2, 0, 1).ravel()
            )
        prototypes[c] = np.mean(means, axis=0)
        bias[c] = -0.5 * (prototypes[c] ** 2).sum()
    scale = 20
    np.savez(
        folder / "prototypes.npz", weight=(scale * prototypes).astype("f4"), bias=(scale * bias).astype("f4")
    )
    (folder / "nearest.py").write_text(MODEL)

    companion = 30
    ids = sorted(classes)
    first = [i for i in ids if classes[i] == 20]
    rows = [(i, classes[i], "accepted") for i in ids]
    rows += [(i, companion, "accepted" if n % 2 else "rejected") for n, i in enumerate(first)]
    judgements = pd.DataFrame(rows, columns=["image_id", "class_index", "verdict"])
    frame = pd.DataFrame(
        {"image_id": ids, "original_label": [classes[i] for i in ids], "status": "evaluable"}
    )
    LabelSets.from_tables(judgements, frame, source="people", revision="1").save(folder / "people")
    return ClassWorld(images, folder / "nearest.py", folder / "people", ids, classes, companion)
