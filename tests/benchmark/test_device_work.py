"""Copies beside computation, lower precision, compiled networks and the batch size: the logic, on the CPU.

What a GPU does with it needs a GPU: the tests at the end are marked so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from annotations.classes import NUM_CLASSES
from annotations.errors import BeyondError
from benchmark import runs
from benchmark.batch_size import DEFAULT, automatic, grow, throughput
from benchmark.classifier import Classifier
from benchmark.cli import main
from benchmark.decoding import Decoder
from benchmark.engine import Forward, PinnedTransfer, Settings, score_chunks
from benchmark.images import ImageSet, open_image_set
from benchmark.parts import plan
from benchmark.precision import count_changes
from benchmark.preprocessing import Preprocessing
from benchmark.records import Predictions, iter_predictions
from tests.benchmark.synthetic import write_user_model, write_validation_images
from tests.benchmark.test_engine import SMALL, Colours, classifier

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    return open_image_set(str(write_validation_images(tmp_path_factory.mktemp("images"), 300)))


class LateTransfer:
    """A device whose answers come late: what is fetched is garbage until it is asked for.

    Attributes:
        flying: Batches handed over whose answer was not asked for.
        most: The most there were at once.
    """

    ahead = 1

    def __init__(self) -> None:
        self.flying = self.most = 0

    def to_device(self, pixels: npt.NDArray[np.uint8]) -> torch.Tensor:
        return torch.from_numpy(pixels)

    def to_host(self, tensors: Sequence[torch.Tensor]) -> Callable[[], list[npt.NDArray[Any]]]:
        here = [torch.zeros_like(t) for t in tensors]
        self.flying += 1
        self.most = max(self.most, self.flying)

        @torch.inference_mode()
        def fetch() -> list[npt.NDArray[Any]]:
            self.flying -= 1
            for target, source in zip(here, tensors):
                target.copy_(source)
            return [tensor.numpy() for tensor in here]

        return fetch


def score(images: ImageSet, forward: Forward, *, size: int = 16) -> Predictions:
    with Decoder(SMALL, workers=0, batch_size=size) as decoder:
        parts = list(score_chunks(plan(images, size, done=()), decoder, forward))
    found = [part.predictions for part in parts if part.predictions is not None]
    names = ("image_ids", "original_labels", "classes", "logits", "logsumexp")
    return Predictions(*(np.concatenate([getattr(p, name) for p in found]) for name in names))


def silent(_: str) -> None:
    pass


def test_answers_that_come_late_are_those_of_their_images(images: ImageSet) -> None:
    direct = score(images, Forward(classifier(Colours()), Settings(batch_size=16), silent))
    late = LateTransfer()
    flown = score(images, Forward(classifier(Colours()), Settings(batch_size=16), silent, transfer=late))
    assert (late.most, late.flying) == (2, 0)  # the next was always on its way, and none was forgotten
    assert list(flown.image_ids) == list(direct.image_ids)
    np.testing.assert_array_equal(flown.classes, direct.classes)
    assert flown.logits is not None
    assert direct.logits is not None
    np.testing.assert_array_equal(flown.logits, direct.logits)


def test_a_late_nan_names_its_own_image(images: ImageSet) -> None:
    class OnceNaN(Colours):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = super().forward(x)
            self.calls += 1
            if self.calls == 3:
                logits[5, 0] = float("inf")
            return logits

    forward = Forward(classifier(OnceNaN()), Settings(batch_size=16), silent, transfer=LateTransfer())
    with pytest.raises(BeyondError, match="on image 'ILSVRC2012_val_00000038'"):
        score(images, forward)


# -- precision


class Sharp(nn.Module):
    """Logits whose two best classes are apart by `gap`, of a layer that bfloat16 rounds."""

    def __init__(self, gap: float) -> None:
        super().__init__()
        weight = torch.zeros(NUM_CLASSES, 3)
        weight[3] = 10.0
        weight[2] = 10.0 - gap
        self.layer = nn.Linear(3, NUM_CLASSES, bias=False)
        self.layer.weight = nn.Parameter(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layer(x.mean((2, 3)))
        return logits


@pytest.mark.parametrize(("gap", "changed"), [(1e-3, 256), (1.0, 0)])
def test_what_bfloat16_changes_is_counted(images: ImageSet, gap: float, changed: int) -> None:
    # bfloat16 keeps 8 bits: near 10 its steps are 2⁻⁴, so weights 1e-3 apart become one, and the tie
    # goes to the lower class.
    settings = Settings(batch_size=64, precision="bfloat16")
    found = count_changes(classifier(Sharp(gap)), images.spread(256), settings)
    assert (found.images, found.changed) == (256, changed)
    assert 0 < found.logit_error < 0.2


def test_the_sample_is_spread_over_the_set(images: ImageSet) -> None:
    numbers = [int(handle.image_id[-8:]) for handle in images.spread(4)]
    assert numbers == [1, 101, 200, 300]
    assert len(images.spread(1000)) == 300


def test_a_bf16_run_says_so_and_is_not_mixed_with_float32(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_user_model(tmp_path)
    folder = write_validation_images(tmp_path / "images", 40)
    command = ["score", model, "--images", str(folder), "--out", str(tmp_path / "run"), "--threads", "1"]
    main([*command, "--precision", "bf16"])
    said = capsys.readouterr().err
    assert "bfloat16 changes" in said
    assert "of 40 predictions against float32" in said
    info = runs.read_run(tmp_path / "run")
    assert info.settings["dtype"] == "bfloat16"
    card = runs.score_run(tmp_path / "run")
    assert card.provenance["dtype"] == "bfloat16"
    assert card.provenance["compared_with_float32"] == 40
    assert card.provenance["predictions_changed"] == info.environment["precision_check"]["changed"]
    with pytest.raises(SystemExit):
        main(command)
    assert "holds a run with another setting dtype" in capsys.readouterr().err

    main([*command[:-4], "--out", str(tmp_path / "float32"), "--threads", "1"])
    whole, rough = (next(iter_predictions(tmp_path / name)).logits for name in ("float32", "run"))
    assert whole is not None
    assert rough is not None
    assert rough.dtype == np.float32
    error = np.abs(whole[:, 0] - rough[:, 0]).max() / np.abs(whole).max()
    assert 0 < error < 2**-6  # rounded, and to no less than bfloat16


# -- torch.compile


def test_a_compiled_network_sees_one_shape_and_says_the_same(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []

    def compiler(module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        def run(x: torch.Tensor) -> torch.Tensor:
            shapes.append(tuple(x.shape))
            result: torch.Tensor = module(x)
            return result

        return run

    monkeypatch.setattr(torch, "compile", compiler)
    direct = score(images, Forward(classifier(Colours()), Settings(batch_size=16), silent))
    settings = Settings(batch_size=16, compile=True)
    compiled = score(images, Forward(classifier(Colours()), settings, silent))
    assert set(shapes) == {(16, 3, 32, 32)}  # 300 images end with a batch of 12
    np.testing.assert_array_equal(compiled.classes, direct.classes)


def test_a_compiler_that_fails_is_one_line(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiler(module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        def run(x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no C++ compiler\nfound")

        return run

    monkeypatch.setattr(torch, "compile", compiler)
    forward = Forward(classifier(Colours()), Settings(compile=True), silent)
    with pytest.raises(BeyondError, match=r"torch.compile fails on test \(no C\+\+ compiler found\); leave"):
        score(images, forward, size=64)


# -- batch size


@pytest.mark.parametrize(
    ("speeds", "fits", "size"),
    [
        ({32: 100, 64: 180, 128: 300, 256: 310}, 10_000, 128),  # twice the batch for 3 % is not worth it
        ({32: 100, 64: 180, 128: 300, 256: 500}, 200, 128),  # memory ends first
        ({32: 100, 64: 180, 128: 300, 256: 500, 512: 900, 1024: 1700}, 10_000, 1024),
        ({32: 100, 64: 90}, 10_000, 32),
        ({8: 30}, 8, 8),  # not even the smallest fits
        ({}, 0, 1),
    ],
)
def test_the_batch_grows_while_it_pays(speeds: dict[int, float], fits: int, size: int) -> None:
    assert grow(lambda n: float(speeds[n]) if n <= fits else None) == size


class Greedy(Colours):
    """Has memory for eight images."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().forward(x)


def test_throughput_is_measured_and_none_where_memory_ends() -> None:
    def make(size: int) -> Forward:
        return Forward(classifier(Greedy()), Settings(batch_size=size), silent)

    found = throughput(make(8), 8, (32, 32))
    assert found is not None
    assert found > 0
    assert throughput(make(16), 16, (32, 32)) is None
    assert throughput(make(8), 8, (32, 32), fits=lambda: False) is None
    assert grow(lambda size: throughput(make(size), size, (32, 32)), smallest=32) <= 8


def test_on_the_cpu_nothing_is_measured() -> None:
    def make(size: int) -> Forward:
        raise AssertionError("not on the CPU")

    assert automatic(make, (32, 32), CPU) == DEFAULT


def test_a_resumed_run_keeps_the_batch_size_that_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_user_model(tmp_path)
    folder = write_validation_images(tmp_path / "images", 20)
    command = [
        "score",
        model,
        "--images",
        str(folder),
        "--out",
        str(tmp_path / "run"),
        "--batch-size",
        "auto",
    ]
    monkeypatch.setattr("benchmark.batch_size.automatic", lambda *_: 48)
    main(command)
    assert runs.read_run(tmp_path / "run").environment["batch_size"] == 48
    (part,) = (tmp_path / "run" / "predictions").iterdir()
    name = part.name
    part.unlink()
    monkeypatch.setattr("benchmark.batch_size.automatic", lambda *_: pytest.fail("measured again"))
    main(command)
    assert [path.name for path in (tmp_path / "run" / "predictions").iterdir()] == [name]


# -- on a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_says_what_the_cpu_says(images: ImageSet) -> None:
    there = Settings(batch_size=16, device=torch.device("cuda"))
    forward = Forward(classifier(Colours()), there, silent)
    assert isinstance(forward._transfer, PinnedTransfer)
    found = score(images, forward)
    expected = score(images, Forward(classifier(Colours()), Settings(batch_size=16), silent))
    assert found.logits is not None
    assert expected.logits is not None
    np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_finds_a_batch_size() -> None:
    device = torch.device("cuda")
    size = automatic(
        lambda n: Forward(
            Classifier("t", "t", Colours(), Preprocessing(), weights_sha256="0" * 64),
            Settings(batch_size=n, device=device),
            silent,
        ),
        (224, 224),
        device,
    )
    assert size in {2**k for k in range(11)}
