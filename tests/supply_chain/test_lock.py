"""The lock covers what pyproject asks for, with hashes, and names no index."""

from __future__ import annotations

import re

import pytest
from packaging.requirements import Requirement

from tests.supply_chain.lock import LOCK, TORCH, entries, problems, wanted


def test_the_lock_is_that_of_pyproject() -> None:
    assert problems(LOCK.read_text(), TORCH.read_text(), wanted()) == [], "run: make lock"
    assert len(entries(LOCK.read_text())) > 150
    assert all(
        re.fullmatch(r"[0-9a-f]{64}", found) for found in re.findall(r"sha256:(\w+)", LOCK.read_text())
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "click is not locked"),
        ("click==8.0 \\\n    --hash=sha256:00\n", "click is locked at 8.0, but"),
        ("click==8.2\n", "click has no hash"),
        (
            "--index-url https://example.invalid\nclick==8.2 \\\n    --hash=sha256:00\n",
            "line 1 names a place",
        ),
        (
            "click==8.2 \\\n    --hash=sha256:00\nnvidia-cudnn==1 \\\n    --hash=sha256:00\n",
            "nvidia-cudnn belongs",
        ),
    ],
)
def test_a_bad_lock_is_told(text: str, told: str) -> None:
    found = problems(text, "", {"click": Requirement("click>=8.1")})
    assert len(found) == 1
    assert found[0].startswith(told)
