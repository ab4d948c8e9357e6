"""What `.ci/run` rests on: with BEYOND_REQUIRE_ALL=1 skips fail, but for what no set-up can bring."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MAY_SKIP, ROOT

TESTS = """
import pytest


def test_runs():
    pass


def test_needs_a_package():
    pytest.importorskip("a_package_that_is_not_here")


@pytest.mark.skipif(True, reason="this machine lacks something")
def test_needs_something():
    pass


@pytest.fixture
def missing():
    pytest.skip("in a fixture")


def test_needs_a_fixture(missing):
    pass
"""
MARKED = """
import pytest


@pytest.mark.{marker}
@pytest.mark.skipif(True, reason="no set-up of ours brings it")
def test_needs_it():
    pass
"""


def outcome(folder: Path, content: str, *, all_required: bool, shared: bool = True) -> tuple[int, str]:
    """Exit status and last line of pytest on a file of tests, under the project's own conftest."""
    shutil.copy(ROOT / "tests" / "conftest.py", folder / "conftest.py")
    (folder / "test_some.py").write_text(content)
    data = folder / "data"
    data.mkdir(exist_ok=True)
    if shared:
        (data / "val_labels.txt").write_text("")
    markers = ("-o", "markers=" + "\n".join(sorted(MAY_SKIP | {"shared"})))
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(folder), *markers]
    environment = {**os.environ, "BEYOND_SHARED_DATA": str(data), "PYTHONPATH": str(ROOT)}
    environment["BEYOND_REQUIRE_ALL"] = "1" if all_required else "0"
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", str(folder)], env=environment, capture_output=True, text=True
    )
    lines = (done.stdout + done.stderr).strip().splitlines()
    return done.returncode, lines[-1]


def test_every_way_to_skip_is_a_failure_where_all_is_required(tmp_path: Path) -> None:
    status, line = outcome(tmp_path, TESTS, all_required=False)
    assert status == 0
    assert "1 passed, 3 skipped" in line
    status, line = outcome(tmp_path, TESTS, all_required=True)
    assert status == 1
    assert "1 passed" in line
    assert "skipped" not in line


def test_a_module_that_skips_itself_is_a_failure(tmp_path: Path) -> None:
    content = 'import pytest\n\npytest.importorskip("a_package_that_is_not_here")\n'
    assert outcome(tmp_path, content, all_required=False)[0] in (0, 5)
    status, line = outcome(tmp_path, content, all_required=True)
    assert status == 2
    assert "1 error" in line


@pytest.mark.parametrize("marker", sorted(MAY_SKIP))
def test_what_no_set_up_can_bring_may_skip(tmp_path: Path, marker: str) -> None:
    status, line = outcome(tmp_path, MARKED.format(marker=marker), all_required=True)
    assert status == 0
    assert "1 skipped" in line


def test_without_shared_data_nothing_runs(tmp_path: Path) -> None:
    status, line = outcome(tmp_path, TESTS, all_required=True, shared=False)
    assert status == 4
    assert "there is no shared data" in line
