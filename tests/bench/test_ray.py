"""The Ray engine against the local one, in one process: what one worker costs once it is started."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmark.engine import Settings, predict
from benchmark.engine_ray import Job, Pool, RaySettings
from benchmark.engine_settings import Loaded, WorkerSettings
from benchmark.images import ImageSet, open_image_set
from benchmark.models import load

MODEL = "efficientnet-lite0"
BATCH, N, ROUNDS = 16, 320, 5


@pytest.fixture(scope="module")
def images(shared_data: Path) -> ImageSet:
    return open_image_set(str(shared_data / "ilsvrc-val-sample"), limit=N)


@pytest.mark.shared
@pytest.mark.timeout(900)
def test_one_worker_against_the_local_engine(
    benchmark: BenchmarkFixture, images: ImageSet, tmp_path: Path
) -> None:
    """The ratio is the median over rounds that time both, one after the other, on one thread each."""
    classifier = load(MODEL)
    settings = Settings(batch_size=BATCH, workers=0, quiet=True)
    here: list[float] = []
    there: list[float] = []

    @contextmanager
    def begin(loaded: Loaded) -> Iterator[set[str]]:
        yield set()

    def local() -> None:
        start = time.perf_counter()
        predict(classifier, images, tmp_path / f"local{len(here)}", settings, done=set(), warn=print)
        here.append(time.perf_counter() - start)

    def ray() -> None:
        start = time.perf_counter()
        (outcome,) = pool.predict([Job(MODEL, tmp_path / f"ray{len(there)}", begin)], images)
        there.append(time.perf_counter() - start)
        assert outcome.summary is not None
        assert outcome.summary.scored == N

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    how = WorkerSettings(batch_size=BATCH, workers=0, device="cpu", threads=1, quiet=True)
    try:
        with Pool(RaySettings(workers=1), how, warn=print) as pool:
            ray()  # starts the worker and loads the weights
            local()
            here.clear()
            there.clear()
            benchmark.pedantic(ray, setup=local, rounds=ROUNDS)
    finally:
        torch.set_num_threads(threads)
    ratios = [t / h for t, h in zip(there, here)]
    benchmark.extra_info.update(
        images=N,
        images_per_second=round(N / median(there), 1),
        local_images_per_second=round(N / median(here), 1),
        overhead=round(median(ratios) - 1, 3),
        overhead_of_rounds=[round(r - 1, 3) for r in ratios],
    )
    print(benchmark.extra_info)  # noqa: T201 - the figures for the reader
