"""Whatever the arguments and the files that they name: a result or a line, and never a traceback."""

from __future__ import annotations

import tempfile
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.lines import commands, try_line, warm_up
from tests.fuzz.trial import refused_or_read


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    warm_up()


def test_nearly_every_command_is_tried() -> None:
    assert len(commands()) >= 35
    assert ("score",) in commands()
    assert ("campaign", "import") in commands()


@settings(max_examples=120)
@given(rng=st.randoms(use_true_random=False))
def test_random_command_lines(rng: Random) -> None:
    with tempfile.TemporaryDirectory() as folder, refused_or_read():
        try_line(rng, Path(folder))
