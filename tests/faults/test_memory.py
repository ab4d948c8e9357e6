"""Memory that runs out anywhere but in the model, whose batch is halved (tests/benchmark/test_engine.py)."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from annotations.errors import BeyondError
from benchmark import preprocessing, records
from benchmark.decoding import Decoder
from benchmark.images import BytesHandle, Handle
from tests.benchmark.synthetic import jpeg
from tests.faults.conftest import Mistake, Scene, call


class Greedy:
    """An image that asks for more memory than there is."""

    image_id = "greedy"
    where = "greedy"

    def read(self) -> bytes:
        return bytes(np.zeros(2**55, np.uint8))


class Slow:
    """An image on a mount that takes its time."""

    def __init__(self, image_id: str, seconds: float) -> None:
        self.image_id = self.where = image_id
        self.seconds = seconds

    def read(self) -> bytes:
        time.sleep(self.seconds)
        return jpeg(int(self.image_id))


SPEC = preprocessing.Preprocessing(input_size=(16, 16), resize=20)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_worker_that_runs_out_of_memory_says_so_in_a_line(
    workers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    good: Handle = BytesHandle("1", "test", jpeg(1))
    with (
        pytest.raises((BeyondError, MemoryError), match=r"MemoryError|Unable to allocate"),
        Decoder(SPEC, workers=workers, batch_size=2) as decoder,
    ):
        list(decoder.batches([[good, good], [good, Greedy()]]))
    assert "Traceback" not in capfd.readouterr().err


def test_memory_that_runs_out_in_a_run_is_one_line(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_line: Mistake
) -> None:
    run, write = tmp_path / "run", records.write_part
    for kind in ("predictions", "robustness"):

        def full(folder: Path, *more: object, kind: str = kind, **options: object) -> Path:
            if folder.name == kind:
                raise MemoryError
            return write(folder, *more, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(records, "write_part", full)
        assert "memory ran out; use a smaller --batch-size" in one_line(scene.arguments(run))
        monkeypatch.setattr(records, "write_part", write)
    assert call(scene.arguments(run)) == 0
    scene.require_same(run)


def test_one_slow_image_delays_and_changes_nothing() -> None:
    """A worker hangs on one image while the other goes on; the order is that of the images."""
    images = [Slow(str(i), 0.5 if i == 3 else 0) for i in range(40)]
    handles: list[Handle] = list(images)
    with Decoder(SPEC, workers=2, batch_size=4) as decoder:
        batches = list(decoder.batches(handles[start : start + 4] for start in range(0, 40, 4)))
    assert [name for batch in batches for name in batch.image_ids] == [str(i) for i in range(40)]
    pixels = np.concatenate([batch.pixels for batch in batches])
    alone = [preprocessing.load_pixels(jpeg(i), SPEC, name=str(i)) for i in range(40)]
    assert (pixels == np.stack(alone)).all()
