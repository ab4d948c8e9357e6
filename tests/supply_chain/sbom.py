"""Write the bill of materials of an environment: `python -m tests.supply_chain.sbom PYTHON FILE.json`.

CycloneDX, by cyclonedx-bom, of the environment of another Python. It is checked before it is kept: whatever
the project depends on is in it, with a version.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from tests.supply_chain.lock import ROOT, wanted


def bill(python: str) -> dict[str, Any]:
    """The bill of materials of an environment.

    Args:
        python: Its interpreter.

    Raises:
        subprocess.CalledProcessError: The environment cannot be read.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sbom.json"
        command = [
            sys.executable, "-m", "cyclonedx_py", "environment", python, "--pyproject",
            str(ROOT / "pyproject.toml"), "--of", "JSON", "--output-reproducible", "-o", str(file),
        ]  # fmt: skip
        subprocess.run(command, check=True)
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def missing(found: dict[str, Any], names: set[str]) -> list[str]:
    """Which packages a bill does not name with a version."""
    there = {canonicalize_name(part["name"]) for part in found["components"] if part.get("version")}
    return sorted(names - there)


def main(argv: list[str]) -> int:
    """Write the file; exit status 1 if a dependency of users is missing in it."""
    python, target = argv[1:]
    found = bill(python)
    lacks = missing(found, set(wanted(extra=None)))
    if lacks:
        print(f"the bill of materials lacks {', '.join(lacks)}", file=sys.stderr)  # noqa: T201
        return 1
    Path(target).write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{len(found['components'])} components in {target}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
