"""Every reader of files and texts returns, or raises BeyondError with one line, in bounded time."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotations.errors import BeyondError
from tests.fuzz.targets import SPECS, TARGETS, Target
from tests.fuzz.trial import try_file, try_text


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_the_example_is_sound(target: Target, tmp_path: Path) -> None:
    """Else what is spoilt below would be refused for something else."""
    target.write(tmp_path, target.sound())
    with contextlib.nullcontext() if target.name not in PARTIAL else pytest.raises(BeyondError):
        target.read(tmp_path)


# Examples that cannot be whole here: what they name is not there.
PARTIAL = {"saved dataset", "splits", "pack", "about"}


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@given(rng=st.randoms(use_true_random=False))
def test_files(target: Target, rng: Random) -> None:
    with tempfile.TemporaryDirectory() as name:
        try_file(target, rng, Path(name))


@pytest.mark.parametrize("name", SPECS)
@given(rng=st.randoms(use_true_random=False))
def test_texts(name: str, rng: Random) -> None:
    try_text(name, rng)
