"""Made-up entries for tests of the site: any number of them, each with numbers that fit its bits."""

from __future__ import annotations

import functools
from datetime import date
from pathlib import Path

import numpy as np

from benchmark import statistics
from benchmark.scorecard import Metric, Scorecard
from leaderboard.correctness import TOP1, Correctness
from leaderboard.entries import (
    ENTRIES_FOLDER,
    Entry,
    EntryInfo,
    FileHashes,
    Licence,
    Records,
    read_entry,
    write_entry,
)
from leaderboard.masks import load_masks

FAMILIES = ("Alpha", "Beta", "Gamma <b>", "Delta & Sons", 'Epsilon "E"', "Zeta")
TITLES = {TOP1: "top1", "real": "real_accuracy", "mla": "mla_plain", "consolidated": "consolidated_accuracy"}


@functools.cache
def _template() -> Scorecard:
    return read_entry(ENTRIES_FOLDER / "resnet50").scorecard


def share(right: int, n: int) -> Metric:
    """A proportion with Wilson's interval."""
    low, high = statistics.wilson(right, n)
    return Metric(value=right / n, ci_low=float(low), ci_high=float(high), n=n, method="wilson")


def make_entry(
    folder: Path, number: int, *, quality: float, name: str | None = None, **changes: object
) -> Entry:
    """Write one entry with random bits around a quality in (0, 1), and the numbers that fit them."""
    rng = np.random.default_rng([8, number])
    masks = load_masks().correctness
    luck = rng.random(len(masks), dtype=np.float32)
    right = {TOP1: luck < quality}
    for step, source in enumerate(masks.sources):
        accepted = luck < quality + 0.05 + 0.01 * step
        accepted ^= rng.random(len(masks), dtype=np.float32) < 0.01
        right[source] = accepted & masks.right(source)
    bits = Correctness.of(masks.image_ids, right, annotations=masks.annotations)
    metrics = {}
    for section, key in TITLES.items():
        evaluable = masks.right(section)
        metrics[key] = share(int((right[section] & evaluable).sum()), int(evaluable.sum()))
    real = masks.right("real")
    metrics["top1_evaluable"] = share(int((right[TOP1] & real).sum()), int(real.sum()))
    metrics["mla"] = metrics["mla_plain"]
    label = name if name is not None else f"Made-up {number:04d}"
    card = _template()
    track = card.tracks["rectified"].model_copy(update={"metrics": metrics})
    model = card.model.model_copy(update={"name": label, "spec": f"made-up-{number}.npy"})
    card = card.model_copy(update={"model": model, "tracks": {"rectified": track}})
    values: dict[str, object] = {
        "entry_version": 1,
        "slug": f"made-up-{number:04d}",
        "name": label,
        "family": FAMILIES[number % len(FAMILIES)].replace("<b>", "(b)"),
        "year": 2012 + number % 13,
        "authors": "Nobody",
        "licence": Licence(predictions="MIT"),
        "citation": "@misc{nobody,\n  title = {Made up}\n}",
        "contact": "nobody",
        "parameters": int(1e6 * (1 + rng.integers(1, 300))),
        "submitted": date(2026, 1, 1),
        "scope": "full",
        "records": Records(kind="none"),
        "sha256": FileHashes(scorecard="0" * 64),
        **changes,
    }
    return write_entry(folder, EntryInfo.model_validate(values), card, bits)


def make_entries(folder: Path, count: int) -> list[Entry]:
    """Write `count` entries of evenly spread quality."""
    folder.mkdir(parents=True, exist_ok=True)
    qualities = np.linspace(0.55, 0.88, count)
    return [make_entry(folder, number, quality=float(q)) for number, q in enumerate(qualities)]
