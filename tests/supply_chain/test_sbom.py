"""The bill of materials names what users get, and what it lacks is told."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from tests.supply_chain.lock import wanted
from tests.supply_chain.sbom import bill, missing


def environment_of(folder: Path, names: set[str]) -> str:
    """An environment that says it holds these packages: their metadata, and nothing of themselves."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = next(folder.rglob("site-packages"))
    for distribution in importlib.metadata.distributions():
        if canonicalize_name(distribution.name) in names:
            metadata = Path(str(distribution._path))  # type: ignore[attr-defined]
            shutil.copytree(metadata, site / metadata.name, dirs_exist_ok=True)
    return str(folder / "bin" / "python")


def test_the_bill_of_an_environment(tmp_path: Path) -> None:
    users = set(wanted(extra=None))
    found = bill(environment_of(tmp_path / "env", users))
    assert found["bomFormat"] == "CycloneDX"
    assert found["metadata"]["component"]["name"] == "beyond-accuracy"
    assert missing(found, users) == []
    parts: dict[str, Any] = {canonicalize_name(part["name"]): part for part in found["components"]}
    assert parts["pillow"]["purl"] == f"pkg:pypi/pillow@{importlib.metadata.version('pillow')}"
    assert sum(bool(parts[name].get("licenses")) for name in users) >= len(users) - 2

    found["components"] = [part for part in found["components"] if part["name"] != "pillow"]
    parts["torch"]["version"] = ""
    assert missing(found, users) == ["pillow", "torch"]
