"""Spoilt images are decoded to pixels of the size asked for, or refused with a line that names them."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.decoding import Decoder
from benchmark.images import BytesHandle
from tests.fuzz.images import SPEC, seeds, spoil, try_image
from tests.fuzz.trial import refused_or_read


def test_the_seeds_are_read_or_of_a_kind_that_is_refused() -> None:
    read = [try_image(seed) is not None for seed in seeds()]
    assert read.count(False) == 2  # 16 bits, and animated


@settings(max_examples=300)
@given(rng=st.randoms(use_true_random=False))
def test_spoilt_images(rng: Random) -> None:
    with refused_or_read():
        try_image(spoil(rng))


@given(data=st.binary(max_size=200))
def test_bytes_that_never_were_an_image(data: bytes) -> None:
    assert try_image(data) is None


@pytest.mark.parametrize("seed", [4, 11, 14, 17])
def test_a_header_that_promises_gigabytes_is_refused_before_they_are_asked_for(seed: int) -> None:
    data = bytearray(seeds()[seed])
    kind = "PNG" if data[1:4] == b"PNG" else "other"
    if kind == "PNG":
        data[16:24] = (2**31 - 1).to_bytes(4, "big") * 2
    elif data[:2] == b"BM":
        data[18:26] = (2**30).to_bytes(4, "little") * 2
    elif data[:3] == b"GIF":
        data[6:10] = b"\xff" * 4
    tracemalloc.start()
    try:
        try_image(bytes(data))
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("workers", [0, 1])
def test_spoilt_images_among_good_ones_cost_nobody_else_a_pixel(workers: int, tmp_path: Path) -> None:
    """Through the decoder, in a thread and in a process: in place, each with its reason."""
    rng = Random(7)
    good = seeds()[0]
    data = [good if i % 3 == 0 else spoil(rng) for i in range(90)]
    handles = [BytesHandle(f"i{i:03d}", "test", item) for i, item in enumerate(data)]
    alone = [try_image(item) for item in data]
    with Decoder(SPEC, workers=workers, batch_size=15) as decoder:
        batches = list(decoder.batches(handles[start : start + 15] for start in range(0, 90, 15)))
    failed = {failure.position for batch in batches for failure in batch.failures}
    assert failed == {i for i, pixels in enumerate(alone) if pixels is None}
    assert failed
    for batch in batches:
        for position, pixels in zip(batch.positions.tolist(), batch.pixels):
            expected = alone[position]
            assert expected is not None
            assert (pixels == expected).all()
