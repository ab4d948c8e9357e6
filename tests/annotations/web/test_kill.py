"""Raters over real HTTP, and a server that is killed: nothing acknowledged is lost, nothing counts twice.

The full size, 50 raters and five kills with the times of answers, is `tests/bench/campaign_load.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.annotations.web.raters import load
from tests.postgresql import PostgreSQL, postgresql

__all__ = ["postgresql"]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_killing_the_server_loses_nothing(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if kind == "sqlite":
        url = str(tmp_path / "campaign.db")
    else:
        server: PostgreSQL = request.getfixturevalue("postgresql")
        url = server.new_database()
    report = load(url, raters=8, pairs=36, kills=2, pace=0.15, up=0.8, limit=150)
    assert report.problems == []
    assert report.failures > 0  # the kills were felt
    assert report.recorded == report.acknowledged >= report.wanted
    assert report.counted == report.wanted == 180
