"""Label sets and predictions for tests, read from the published files without the code under test."""

from __future__ import annotations

import csv
import functools
import json
from pathlib import Path

import numpy as np
import pandas as pd

from annotations.classes import package_file
from annotations.judgements import LabelSets
from benchmark.records import Predictions

VALIDATION_IDS = np.array([f"ILSVRC2012_val_{i:08d}" for i in range(1, 50_001)], dtype=object)


@functools.cache
def original_labels(shared_data: Path) -> tuple[int, ...]:
    return tuple(map(int, (shared_data / "val_labels.txt").read_text().split()))


@functools.cache
def real(shared_data: Path) -> LabelSets:
    """ReaL, as timm ships it."""
    sets = json.loads(package_file("timm", "data", "_info", "imagenet_real_labels.json").read_text())
    pairs = [(i, c) for i, classes in enumerate(sets) for c in classes]
    judgements = pd.DataFrame(pairs, columns=["image", "class_index"])
    judgements["image_id"] = VALIDATION_IDS[judgements["image"]]
    judgements["verdict"] = "accepted"
    images = pd.DataFrame({"image_id": VALIDATION_IDS, "original_label": original_labels(shared_data)})
    images["status"] = ["evaluable" if classes else "excluded" for classes in sets]
    images["closed_world"] = True
    return LabelSets.from_tables(judgements, images, source="real", revision="timm")


@functools.cache
def mla(shared_data: Path) -> LabelSets:
    """The experts' multi-label sets; correct wins over unclear, unclear over wrong."""
    pairs, images = [], []
    with (shared_data / "multilabel" / "multilabel.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            image_id = row["id"].removesuffix(".JPEG")
            verdicts: dict[int, str] = {}
            columns = ("proposed_labels", "unclear_multi_labels", "wrong_multi_labels")
            for column, verdict in zip(columns, ("accepted", "unsure", "rejected")):
                for index in row[column].split(","):
                    if index.strip():
                        verdicts.setdefault(int(index), verdict)
            pairs += [(image_id, index, verdict) for index, verdict in verdicts.items()]
            status = "excluded" if row["is_problematic"] == "True" else "evaluable"
            images.append((image_id, int(row["original_label"]), status))
    return LabelSets.from_tables(
        pd.DataFrame(pairs, columns=["image_id", "class_index", "verdict"]),
        pd.DataFrame(images, columns=["image_id", "original_label", "status"]),
        source="mla",
        revision="csv",
    )


def published(shared_data: Path, name: str) -> Predictions:
    """Top-5 predictions of a published model on the validation set."""
    classes = np.load(shared_data / "predictions" / f"{name}.npy")
    return Predictions(VALIDATION_IDS, np.array(original_labels(shared_data), dtype=np.int16), classes)


def small(
    pairs: dict[str, dict[int, str]],
    *,
    source: str = "real",
    excluded: tuple[str, ...] = (),
    closed: bool = False,
) -> LabelSets:
    """Label sets from `{image: {class: verdict}}`."""
    rows = [(image, index, verdict) for image, judged in pairs.items() for index, verdict in judged.items()]
    images = pd.DataFrame({"image_id": list(pairs)})
    images["status"] = ["excluded" if image in excluded else "evaluable" for image in pairs]
    images["closed_world"] = closed
    judgements = pd.DataFrame(rows, columns=["image_id", "class_index", "verdict"])
    return LabelSets.from_tables(judgements, images, source=source, revision="test")


def predictions(rows: dict[str, tuple[int, list[int]]]) -> Predictions:
    """Predictions from `{image: (original label, classes)}`."""
    return Predictions(
        np.array(list(rows), dtype=object),
        np.array([label for label, _ in rows.values()], dtype=np.int16),
        np.array([classes for _, classes in rows.values()], dtype=np.int16),
    )
