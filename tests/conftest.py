"""What all tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pluggy
import pytest

ROOT = Path(__file__).resolve().parent.parent

# What no set-up of ours can bring: markers of tests that may skip even in CI.
MAY_SKIP = {"gpu", "wordnet", "unprivileged"}


def find_shared_data() -> Path | None:
    """The development data beside the checkout, or where BEYOND_SHARED_DATA says, or None."""
    folder = Path(os.environ.get("BEYOND_SHARED_DATA", ROOT.parent / "shared" / "data"))
    return folder if (folder / "val_labels.txt").is_file() else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests on shared data where there is none, unless BEYOND_REQUIRE_ALL=1 makes that an error."""
    if find_shared_data() is not None:
        return
    if os.environ.get("BEYOND_REQUIRE_ALL") == "1":
        raise pytest.UsageError("BEYOND_REQUIRE_ALL=1, but there is no shared data at ../shared/data")
    skip = pytest.mark.skip(reason="no shared development data")
    for item in items:
        if "shared" in item.keywords:
            item.add_marker(skip)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Under BEYOND_REQUIRE_ALL=1 a skipped test fails, unless no set-up could help."""
    outcome: pluggy.Result[pytest.TestReport] = yield  # type: ignore[assignment]
    report = outcome.get_result()
    if os.environ.get("BEYOND_REQUIRE_ALL") == "1" and report.skipped and not MAY_SKIP & set(item.keywords):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"BEYOND_REQUIRE_ALL=1 allows no skips: {reason}"


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    """The same for a whole module that is skipped while it is collected."""
    outcome: pluggy.Result[pytest.CollectReport] = yield  # type: ignore[assignment]
    report = outcome.get_result()
    if os.environ.get("BEYOND_REQUIRE_ALL") == "1" and report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"BEYOND_REQUIRE_ALL=1 allows no skips: {reason}"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the shared development data; tests that use it carry `@pytest.mark.shared`."""
    folder = find_shared_data()
    if folder is None:
        pytest.skip("no shared development data")
    return folder


@pytest.fixture(scope="session")
def built_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole site with all its entries, built once a session as `make site` builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "benchmark", "leaderboard", "build"]
    command += ["--out", str(folder / "sources"), "--site", str(folder / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    return folder / "site"
