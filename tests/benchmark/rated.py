"""Small runs with attacks, and studies of their adversarial predictions. No person answered any of this."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from annotations.classes import validation_id, validation_labels
from annotations.study import preregistration
from annotations.study.answers import study_answers
from annotations.study.preregistration import Preregistration
from benchmark import records
from benchmark.attack_records import ROBUSTNESS, Row, to_arrow
from tests.annotations.study.made_up import CHANCE, answers, items, plan

N = 60


def labels() -> list[int]:
    return [int(label) for label in validation_labels()[:N]]


def adversarial_class(number: int, shift: int = 500) -> int:
    """What the made-up attack turned image `number` (from 0) into."""
    return (labels()[number] + shift) % 1000


def write_predictions(folder: Path) -> tuple[Path, Path]:
    """Predictions of the first images as a file, with its ids."""
    classes = (np.array(labels())[:, None] + np.arange(5) * 7) % 1000
    np.save(folder / "made-up.npy", classes.astype(np.int16))
    (folder / "ids.txt").write_text("".join(f"{validation_id(i + 1)}\n" for i in range(N)))
    return folder / "made-up.npy", folder / "ids.txt"


def write_attacks(run: Path, *, shift: int = 500) -> None:
    """Verdicts of an attack that broke two of three images."""
    rows = [
        Row(
            image_id=validation_id(number + 1),
            original_label=label,
            threat="linf",
            epsilon=4 / 255,
            suite="quick",
            objective="original",
            status="robust" if number % 3 == 2 else "broken",
            attack="" if number % 3 == 2 else "apgd",
            clean_class=label,
            adversarial_class=-1 if number % 3 == 2 else adversarial_class(number, shift),
            distance=float("nan") if number % 3 == 2 else 0.01,
            inside=(label,),
        )
        for number, label in enumerate(labels())
    ]
    records.write_part(run / ROBUSTNESS, 0, to_arrow(rows))


def asked() -> pd.DataFrame:
    """Items about the broken images: twelve adversarial, four clean, four shams, four checks."""
    frame = items()
    broken = [number for number in range(N) if number % 3 != 2][: len(frame)]
    label = [labels()[number] for number in broken]
    kind = frame["kind"].tolist()
    frame["image_id"] = [validation_id(number + 1) for number in broken]
    frame["original_label"] = label
    frame["shown_class"] = [
        adversarial_class(n) if k == "adversarial" else c if k == "clean" else (c + 300) % 1000
        for n, k, c in zip(broken, kind, label)
    ]
    frame["predicted_class"] = [
        adversarial_class(n) if k == "adversarial" else c for n, k, c in zip(broken, kind, label)
    ]
    return frame


def write_study(
    folder: Path, *, made_up: bool, frame: pd.DataFrame | None = None, raters: int = 12
) -> Preregistration:
    """A study folder as `beyond study create` and raters would leave it, but for pictures and the database.

    With `made_up` false it pretends that people answered, which only a test may do.
    """
    frame = asked() if frame is None else frame
    pack = folder / "pack"
    pack.mkdir(parents=True)
    data = b"a picture"
    file = hashlib.sha256(data).hexdigest() + ".png"
    (pack / file).write_bytes(data)
    listed = json.loads(frame.to_json(orient="records"))
    pictures: Sequence[dict[str, str]] = [{"item": "item000", "arm": "none", "file": file}]
    (pack / "manifest.json").write_text(json.dumps({"items": listed, "pictures": pictures}))
    chosen = plan(title="Test of agreement", pack_sha256=preregistration.pack_sha256(pack), made_up=made_up)
    preregistration.write(folder, chosen, answered=False)
    given = answers(frame, CHANCE, plan=chosen, made_up=made_up, raters=raters)
    study_answers(frame, given).write(folder)
    return chosen
