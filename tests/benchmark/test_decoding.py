"""Decoding in a thread and in worker processes: the same pixels in the same order, no hang, no leak."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from annotations.errors import BeyondError
from benchmark.decoding import DecodedBatch, Decoder
from benchmark.images import BytesHandle, Handle, MemberHandle, open_image_set
from benchmark.preprocessing import Preprocessing, load_pixels
from tests.conftest import ROOT

SMALL = Preprocessing(input_size=(12, 10), resize=16)


def jpeg(seed: int, mode: str = "RGB") -> bytes:
    rng = np.random.default_rng(seed)
    size = (int(rng.integers(12, 40)), int(rng.integers(12, 40)), 3)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).convert(mode).save(buffer, "JPEG")
    return buffer.getvalue()


def held(*data: bytes) -> list[Handle]:
    return [BytesHandle(f"i{number:04d}", "test", content) for number, content in enumerate(data)]


def cut(handles: Sequence[Handle], size: int) -> Iterator[Sequence[Handle]]:
    return (handles[start : start + size] for start in range(0, len(handles), size))


def decode_all(handles: Sequence[Handle], *, workers: int, batch_size: int) -> list[DecodedBatch]:
    with Decoder(SMALL, workers=workers, batch_size=batch_size) as decoder:
        return list(decoder.batches(cut(handles, batch_size)))


@dataclass(frozen=True)
class MissingFile:
    image_id: str
    where: str = "folder/gone.JPEG"

    def read(self) -> bytes:
        raise FileNotFoundError(2, "No such file or directory")


@dataclass(frozen=True)
class Slow:
    """Takes a while, and leaves a file that says who read it and how many modules that process has."""

    image_id: str
    where: str
    data: bytes
    seconds: float

    def read(self) -> bytes:
        Path(self.where, f"{self.image_id}.pid").write_text(str(os.getpid()))
        time.sleep(self.seconds)
        return self.data


@dataclass(frozen=True)
class ListsModules:
    image_id: str
    where: str
    data: bytes

    def read(self) -> bytes:
        Path(self.where).write_text("\n".join(sorted(sys.modules)))
        return self.data


@dataclass(frozen=True)
class Crashes:
    image_id: str
    where: str = "x"

    def read(self) -> bytes:
        raise ZeroDivisionError("planted")


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("batch_size", [1, 7, 16, 40, 500])
def test_pixels_and_order_are_those_of_load_pixels(workers: int, batch_size: int) -> None:
    data = [jpeg(seed) for seed in range(90)]
    batches = decode_all(held(*data), workers=workers, batch_size=batch_size)
    expected = np.stack([load_pixels(content, SMALL, name="x") for content in data])
    assert [len(batch) for batch in batches] == [len(part) for part in cut(held(*data), batch_size)]
    np.testing.assert_array_equal(np.concatenate([batch.pixels for batch in batches]), expected)
    assert np.concatenate([batch.positions for batch in batches]).tolist() == list(range(90))
    assert [i for batch in batches for i in batch.image_ids] == [f"i{n:04d}" for n in range(90)]
    assert all(batch.pixels.flags.c_contiguous and batch.pixels.flags.writeable for batch in batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_failures_and_notes_keep_their_places(workers: int) -> None:
    handles = held(jpeg(0), b"", jpeg(2, "L"), jpeg(3)[:200], jpeg(4, "CMYK"), b"GIF89a", b"")
    handles.insert(3, MissingFile("gone"))
    batches = decode_all(handles, workers=workers, batch_size=5)
    failures = [failure for batch in batches for failure in batch.failures]
    assert [(f.position, f.image_id) for f in failures] == [
        (1, "i0001"),
        (3, "gone"),
        (4, "i0003"),
        (6, "i0005"),
        (7, "i0006"),
    ]
    for failure, text in zip(failures, ["is empty", "cannot read folder/gone.JPEG: No such", "is truncated"]):
        assert text in failure.message
    assert [(batch.positions.tolist(), len(batch)) for batch in batches] == [([0, 2], 2), ([5], 1)]
    assert [(n.image_id, n.kind) for batch in batches for n in batch.notes] == [
        ("i0002", "greyscale"),
        ("i0004", "CMYK"),
    ]
    for batch in batches:
        for position, pixels in zip(batch.positions, batch.pixels):
            np.testing.assert_array_equal(pixels, load_pixels(handles[position].read(), SMALL, name="x"))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_of_failures_is_empty(workers: int) -> None:
    (batch,) = decode_all(held(b"", b""), workers=workers, batch_size=4)
    assert batch.pixels.shape == (0, 12, 10, 3)
    assert len(batch.failures) == 2
    assert decode_all([], workers=workers, batch_size=4) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_groups_may_differ_in_size_and_the_decoder_be_used_again(workers: int) -> None:
    handles = held(*(jpeg(seed) for seed in range(20)))
    with Decoder(SMALL, workers=workers, batch_size=8) as decoder:
        for _ in range(2):
            sizes = [len(batch) for batch in decoder.batches([handles[:3], handles[3:11], handles[11:12]])]
            assert sizes == [3, 8, 1]
        # Stopped half-way: the next use starts afresh.
        batches = decoder.batches(cut(handles, 2))
        assert next(batches).positions.tolist() == [0, 1]
        with pytest.raises(RuntimeError, match="not used up"):
            next(decoder.batches(cut(handles, 2)))
        batches.close()  # type: ignore[attr-defined]
        assert sum(len(batch) for batch in decoder.batches(cut(handles, 8))) == 20
        with pytest.raises(ValueError, match="a group of 20 images"):
            list(decoder.batches([handles]))


@pytest.mark.shared
def test_real_images_are_the_same_with_and_without_workers(shared_data: Path) -> None:
    images = open_image_set(str(shared_data / "ilsvrc-val-sample"), limit=100)
    spec = Preprocessing()
    results = []
    for workers, batch_size in [(0, 64), (2, 9)]:
        with Decoder(spec, workers=workers, batch_size=batch_size) as decoder:
            groups = (chunk.handles for chunk in images.chunks(batch_size))
            results.append(np.concatenate([batch.pixels for batch in decoder.batches(groups)]))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0][42], load_pixels(images.read(42), spec, name="x"))


def test_workers_import_neither_torch_nor_the_running_script(tmp_path: Path) -> None:
    """A script without a __main__ guard that imports torch: its workers must not run it again."""
    script = tmp_path / "script.py"
    listing = tmp_path / "modules.txt"
    script.write_text(
        textwrap.dedent(
            f"""
            print("script runs")
            import sys
            sys.modules.setdefault("torch", sys)  # as if torch were imported
            from benchmark.decoding import Decoder
            from tests.benchmark.test_decoding import SMALL, ListsModules, jpeg
            with Decoder(SMALL, workers=1, batch_size=2) as decoder:
                for batch in decoder.batches([[ListsModules("a", {str(listing)!r}, jpeg(0))]]):
                    print(len(batch), "image")
            """
        )
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment, check=True, timeout=60
    )
    assert done.stdout == "script runs\n1 image\n"
    modules = listing.read_text().split()
    assert "PIL.Image" in modules
    heavy = {"torch", "timm", "torchvision", "pandas", "pyarrow", "datasets"}
    assert sorted(heavy & set(modules)) == []


def test_a_killed_worker_is_an_error_not_a_hang(tmp_path: Path) -> None:
    handles = [Slow(f"s{i}", str(tmp_path), jpeg(i), 0.05) for i in range(60)]
    with Decoder(SMALL, workers=2, batch_size=4) as decoder:
        batches = decoder.batches(cut(handles, 4))
        next(batches)
        victim = multiprocessing.active_children()[0].pid
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(BeyondError, match=r"a decoding worker was killed by SIGKILL; .* fewer workers"):
            list(batches)
    assert multiprocessing.active_children() == []


def test_a_worker_killed_before_any_work_is_an_error() -> None:
    with Decoder(SMALL, workers=1, batch_size=4) as decoder:
        (worker,) = multiprocessing.active_children()
        worker.kill()
        worker.join()
        with pytest.raises(BeyondError, match="SIGKILL"):
            list(decoder.batches(cut(held(jpeg(0)), 4)))


def test_a_crashing_worker_is_an_error_too() -> None:
    with (
        Decoder(SMALL, workers=1, batch_size=4) as decoder,
        pytest.raises(BeyondError, match=r"a decoding worker failed \(ZeroDivisionError: planted\)"),
    ):
        list(decoder.batches([[Crashes("x")]]))
    with Decoder(SMALL, workers=0, batch_size=4) as decoder, pytest.raises(ZeroDivisionError):
        list(decoder.batches([[Crashes("x")]]))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_the_source_arrives_after_what_came_before(workers: int) -> None:
    def groups() -> Iterator[Sequence[Handle]]:
        yield held(jpeg(0), jpeg(1))
        raise BeyondError("the network is gone")

    seen: list[DecodedBatch] = []
    with Decoder(SMALL, workers=workers, batch_size=2, ahead=1) as decoder:
        with pytest.raises(BeyondError, match="the network is gone"):
            seen.extend(decoder.batches(groups()))
        assert sum(len(batch) for batch in decoder.batches([held(jpeg(0))])) == 1
    assert len(seen) in (0, 1)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_leaving_in_the_middle_leaves_nothing_behind(workers: int, error: type[BaseException]) -> None:
    handles = held(*(jpeg(seed) for seed in range(30)))
    threads = threading.active_count()
    with pytest.raises(error), Decoder(SMALL, workers=workers, batch_size=2) as decoder:  # noqa: PT012
        for _ in decoder.batches(cut(handles, 2)):
            raise error
    assert multiprocessing.active_children() == []
    assert threading.active_count() == threads


SCRIPT = """
import os, signal, sys, multiprocessing
from pathlib import Path
from benchmark.decoding import Decoder
from tests.benchmark.test_decoding import SMALL, Slow, cut, jpeg
folder = sys.argv[1]
with Decoder(SMALL, workers=2, batch_size=4) as decoder:
    Path(folder, "workers").write_text(" ".join(str(p.pid) for p in multiprocessing.active_children()))
    for batch in decoder.batches(cut([Slow(f"s{i}", folder, jpeg(i), 0.02) for i in range(2000)], 4)):
        print("ready", flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc and /dev/shm")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_workers_and_shared_memory_end_with_their_parent(how: signal.Signals, tmp_path: Path) -> None:
    before = set(os.listdir("/dev/shm"))
    parent = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    workers = [int(pid) for pid in (tmp_path / "workers").read_text().split()]
    assert len(workers) == 2
    assert all(alive(pid) for pid in workers)
    if how is signal.SIGINT:
        os.killpg(parent.pid, how)  # a terminal sends Ctrl-C to every process of the group
    else:
        parent.send_signal(how)
    _, stderr = parent.communicate(timeout=90)
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(alive(pid) for pid in workers)
    assert set(os.listdir("/dev/shm")) <= before
    if how is signal.SIGINT:
        assert stderr.count("Traceback") == 1  # the parent's own, none of a worker
        assert stderr.rstrip().endswith("KeyboardInterrupt")
    else:
        assert "Traceback" not in stderr


def alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


@pytest.mark.parametrize("workers", [0, 2])
def test_memory_and_lookahead_do_not_grow_with_the_images(workers: int, tmp_path: Path) -> None:
    """One file read 1,000 and 4,000 times, 49 MB of pixels: only a few batches are ever held."""
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(0))
    size = path.stat().st_size
    spec = Preprocessing(input_size=(64, 64), resize=64)
    peaks = []
    for count in (1000, 4000):
        taken = 0

        def groups(count: int = count) -> Iterator[Sequence[Handle]]:
            nonlocal taken
            for start in range(0, count, 20):
                taken += 1
                yield [MemberHandle(f"i{i}", str(path), 0, size) for i in range(start, start + 20)]

        with Decoder(spec, workers=workers, batch_size=20) as decoder:
            tracemalloc.start()
            for used, batch in enumerate(decoder.batches(groups())):
                assert len(batch) == 20
                # In hand, ready (2), waiting to become ready, and one for each slot.
                assert taken - used <= 1 + 2 + 1 + max(1, 2 * workers) + 1
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert max(peaks) < 12 * (20 * 64 * 64 * 3)


def test_impossible_settings_are_refused() -> None:
    for workers, batch_size in [(-1, 4), (0, 0)]:
        with pytest.raises(BeyondError, match="cannot decode with"):
            Decoder(SMALL, workers=workers, batch_size=batch_size)
    with pytest.raises(BeyondError, match="antialias"):
        Decoder(Preprocessing(antialias=False), workers=0, batch_size=1)
    with pytest.raises(RuntimeError, match="with block"):
        next(Decoder(SMALL, workers=1, batch_size=1).batches([]))
