"""Scoring images from files against timm's evaluation loop and against the bare forward pass.

The loop is what timm's `validate` script does with its loader: decode, resize and crop, classify,
sum up loss and accuracy. Model, weights, images, threads, batch and decoding processes are the same.

There are two bare forward passes over tensors in memory. One is what anybody would write, in timm's process:
whole batches in inference mode. The other has all that the engine does for speed, so what is lost against it
is decoding, which has the same cores, and our own bookkeeping.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from annotations.classes import wnids
from benchmark.classifier import Classifier
from benchmark.engine import CPU_IMAGES, Settings, predict
from benchmark.images import ImageSet, open_image_set
from benchmark.memory import keep_freed_memory
from benchmark.models import load
from benchmark.preprocessing import load_pixels

BATCH, N, ROUNDS = 64, 192, 3


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return load("efficientnet-lite0")


@pytest.fixture(scope="module")
def images(shared_data: Path) -> ImageSet:
    return open_image_set(str(shared_data / "ilsvrc-val-sample"), limit=N)


@pytest.fixture(scope="module")
def forward(classifier: Classifier, images: ImageSet) -> Callable[[], None]:
    """The bare forward pass over tensors in memory, with all that the engine does for speed.

    That is channels-last, inference mode, memory that is kept, and as many images at a time as suit the
    caches.
    """
    keep_freed_memory()
    pixels = [
        load_pixels(images.read(i), classifier.preprocessing, name=images.ids[i]) for i in range(len(images))
    ]
    tensors = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float().div_(255)
    assert tensors.is_contiguous(memory_format=torch.channels_last)
    module = classifier.module.to(memory_format=torch.channels_last)

    def run() -> None:
        with torch.inference_mode():
            for start in range(0, len(tensors), CPU_IMAGES):
                module(tensors[start : start + CPU_IMAGES])

    run()
    return run


@pytest.fixture(scope="module")
def folders(images: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images in a folder for each class, as timm reads them."""
    root = tmp_path_factory.mktemp("folders")
    for name in wnids():
        (root / name).mkdir()
    for i in range(len(images)):
        (root / wnids()[images.labels[i]] / f"{images.ids[i]}.JPEG").write_bytes(images.read(i))
    return root


TIMM = textwrap.dedent(
    """
    import sys, time
    import timm, torch
    from timm.data.config import resolve_data_config
    from timm.data.dataset_factory import create_dataset
    from timm.data.loader import create_loader
    from timm.utils.metrics import AverageMeter, accuracy
    from annotations.classes import wnids

    weights, root, batch, workers, threads = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
    torch.set_num_threads(threads)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    model.load_state_dict(torch.load(weights, weights_only=True))
    model.eval()
    config = resolve_data_config({}, model=model)
    kept = []
    for line in sys.stdin:
        start = time.perf_counter()
        if line.strip() == "forward":
            with torch.inference_mode():
                for images in kept:
                    model(images)
            print(time.perf_counter() - start, 100, flush=True)
            continue
        loader = create_loader(
            create_dataset("", root=root, class_map={name: i for i, name in enumerate(wnids())}),
            input_size=config["input_size"], batch_size=batch, interpolation=config["interpolation"],
            mean=config["mean"], std=config["std"], crop_pct=config["crop_pct"],
            crop_mode=config["crop_mode"], num_workers=workers, persistent_workers=workers > 0,
            device=torch.device("cpu"),
        )
        criterion = torch.nn.CrossEntropyLoss()
        losses, top1, top5 = AverageMeter(), AverageMeter(), AverageMeter()
        with torch.inference_mode():
            for images, target in loader:
                output = model(images)
                losses.update(criterion(output, target).item(), len(images))
                one, five = accuracy(output, target, topk=(1, 5))
                top1.update(one.item(), len(images))
                top5.update(five.item(), len(images))
                if line.strip() == "keep":
                    kept.append(images)
        print(time.perf_counter() - start, top1.avg, flush=True)
    """
)


@contextmanager
def timm_loop(classifier: Classifier, root: Path, workers: int) -> Iterator[Callable[[str], float]]:
    """timm's evaluation loop in a process of its own, as its users run it; a call gives its seconds.

    Called with `forward`, the seconds of the bare forward pass over the batches that the loop read.
    """
    weights = root.parent / "weights.pt"
    torch.save(classifier.module.get_submodule("network").state_dict(), weights)
    numbers = map(str, (BATCH, workers, torch.get_num_threads()))
    process = subprocess.Popen(
        [sys.executable, "-c", TIMM, str(weights), str(root), *numbers],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def run(what: str) -> float:
        print(what, file=stdin, flush=True)
        seconds, percent = map(float, stdout.readline().split())
        assert percent > 60  # it does the same work: lite0 has 75 % on ImageNet
        return seconds

    try:
        run("keep")
        run("forward")
        yield run
    finally:
        process.kill()
        process.wait()


@pytest.mark.shared
@pytest.mark.timeout(900)
@pytest.mark.parametrize("workers", [0, 2])
def test_throughput_against_timm_and_the_bare_forward_pass(
    benchmark: BenchmarkFixture,
    classifier: Classifier,
    images: ImageSet,
    forward: Callable[[], None],
    folders: Path,
    tmp_path: Path,
    workers: int,
) -> None:
    """Ratios are medians over rounds that time all four, one after the other."""
    settings = Settings(batch_size=BATCH, workers=workers, quiet=True)
    bare: list[float] = []
    whole: list[float] = []
    loop: list[float] = []
    plain: list[float] = []

    def score() -> None:
        start = time.perf_counter()
        summary = predict(classifier, images, tmp_path / str(len(whole)), settings, done=set(), warn=print)
        whole.append(time.perf_counter() - start)
        assert summary.scored == len(images)

    def before() -> None:
        start = time.perf_counter()
        forward()
        bare.append(time.perf_counter() - start)
        loop.append(validate("loop"))
        plain.append(validate("forward"))

    with timm_loop(classifier, folders, workers) as validate:
        benchmark.pedantic(score, setup=before, rounds=ROUNDS)
    benchmark.extra_info.update(
        images=len(images),
        threads=torch.get_num_threads(),
        images_per_second=round(len(images) / median(whole), 1),
        forward_images_per_second=round(len(images) / median(bare), 1),
        plain_images_per_second=round(len(images) / median(plain), 1),
        timm_images_per_second=round(len(images) / median(loop), 1),
        ratio_to_forward=round(median(b / w for b, w in zip(bare, whole)), 3),
        ratio_to_plain=round(median(p / w for p, w in zip(plain, whole)), 3),
        ratio_to_timm=round(median(t / w for t, w in zip(loop, whole)), 3),
    )
    print(workers, benchmark.extra_info)  # noqa: T201 - the figures for the reader
