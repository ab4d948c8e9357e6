"""How cost grows with work, as the exponent of a fit, and how decoding scales over workers."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from annotations.classes import validation_ids, validation_labels
from annotations.judgements import LabelSets
from annotations.sources import load
from benchmark import records, runs
from benchmark.decoding import Decoder
from benchmark.preprocessing import Preprocessing, load_pixels
from benchmark.records import Predictions
from benchmark.scorecard import ImagesInfo, ModelInfo
from benchmark.tracks.rectified import score_rectified
from tests.bench.rows import exponent, row
from tests.benchmark.synthetic import write_validation_images

SIZES = (6_250, 12_500, 25_000, 50_000)


def cpu_seconds(work: Callable[[], object], rounds: int = 3) -> float:
    """The least CPU time of a few rounds: other processes can only add to it."""
    found = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def made_up(n: int, classes: int = 5) -> Predictions:
    """Predictions that mean nothing, on the first n validation images."""
    rng = np.random.default_rng(0)
    first = rng.integers(0, 1000 - classes, n).astype(np.int16)
    ranked = (first[:, None] + np.arange(classes)).astype(np.int16)
    logits = -np.sort(-rng.normal(size=(n, classes)).astype(np.float32), axis=1)
    return Predictions(validation_ids()[:n], validation_labels()[:n], ranked, logits, logits[:, 0] + 1)


@pytest.fixture(scope="module")
def labels() -> dict[str, LabelSets]:
    return {"real": load("real")}


def make_run(folder: Path, n: int) -> Path:
    """A run as the engine leaves it: parts of 256 images, 100 classes each."""
    whole = made_up(n, classes=100)
    info = runs.RunInfo(
        model=ModelInfo(name="m", spec="m"),
        images=ImagesInfo(name="i", n=n, fingerprint=runs.fingerprint_of(whole), sample=n < 50_000),
    )
    run = folder / str(n)
    run.mkdir()
    runs.write_run(run, info)
    for index, start in enumerate(range(0, n, 256)):
        piece = slice(start, start + 256)
        assert whole.logits is not None
        assert whole.logsumexp is not None
        part = Predictions(
            whole.image_ids[piece],
            whole.original_labels[piece],
            whole.classes[piece],
            whole.logits[piece],
            whole.logsumexp[piece],
        )
        records.write_part(run / records.PREDICTIONS, index, part.to_arrow(), durable=False)
    return run


def test_scoring_from_records(
    benchmark: BenchmarkFixture, labels: dict[str, LabelSets], tmp_path: Path
) -> None:
    """`beyond rescore`: checksums, records and the rectified track, to scorecard.json."""
    made = {n: make_run(tmp_path, n) for n in SIZES}
    runs.score_run(made[SIZES[0]], ["real"], labels=labels)
    costs = [cpu_seconds(partial(runs.score_run, made[n], ["real"], labels=labels)) for n in SIZES]
    benchmark.pedantic(runs.score_run, args=(made[SIZES[-1]], ["real"]), kwargs={"labels": labels}, rounds=1)
    row(
        benchmark,
        "Growth",
        "`beyond rescore`: from records on disk, 100 classes an image, to scorecard.json",
        ours=exponent(SIZES, costs),
        unit="(exponent)",
        n=f"{SIZES[0]:,} to {SIZES[-1]:,} images",
        note=f"{1e6 * costs[-1] / SIZES[-1]:.1f} µs of CPU an image at {SIZES[-1]:,}",
    )


def test_scoring_in_memory(benchmark: BenchmarkFixture, labels: dict[str, LabelSets]) -> None:
    """From predictions in memory to the rectified track, with all its intervals."""
    made = {n: made_up(n) for n in SIZES}
    score_rectified([made[SIZES[0]]], labels)  # warm
    costs = [cpu_seconds(partial(score_rectified, [made[n]], labels)) for n in SIZES]
    benchmark.pedantic(score_rectified, args=([made[SIZES[-1]]], labels), rounds=1)
    row(
        benchmark,
        "Growth",
        "the rectified track of n images, from predictions in memory",
        ours=exponent(SIZES, costs),
        unit="(exponent)",
        n=f"{SIZES[0]:,} to {SIZES[-1]:,} images",
        note=f"{1e6 * costs[-1] / SIZES[-1]:.1f} µs of CPU an image at {SIZES[-1]:,}",
    )


def test_decoding_over_workers(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """Photograph-sized JPEGs through the decoder, against a plain loop over the same function."""
    from PIL import Image

    from benchmark.images import FileHandle

    n, spec = 192, Preprocessing()
    folder = write_validation_images(tmp_path / "images", n)
    for path in sorted(folder.iterdir()):
        Image.open(path).resize((500, 375)).save(path, "JPEG", quality=90)
    handles = [FileHandle(path.stem, str(folder), path.name) for path in sorted(folder.iterdir())]

    def loop() -> None:
        for handle in handles:
            load_pixels(handle.read(), spec, name=handle.image_id)

    def through(decoder: Decoder) -> None:
        for batch in decoder.batches(handles[start : start + 32] for start in range(0, n, 32)):
            assert len(batch)

    def seconds(work: Callable[[], object]) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    loop()
    for workers in (0, 1, 2):
        with Decoder(spec, workers=workers, batch_size=32) as decoder:
            through(decoder)
            pairs = [(seconds(loop), seconds(partial(through, decoder))) for _ in range(3)]
        plain, ours = (median(times) for times in zip(*pairs))
        name = "a thread" if workers == 0 else f"{workers} worker{'s' * (workers > 1)}"
        row(
            benchmark,
            "Scaling over workers",
            f"decoding in {name}",
            ours=n / ours,
            unit="images/s",
            peer=n / plain,
            against="a plain loop in one process",
            ratio=median(p / o for p, o in pairs),
            n=f"{n} JPEGs of 500 × 375, 3 rounds",
        )
    benchmark.pedantic(loop, rounds=1)
