"""What starting `beyond` costs: which packages are imported before anything is done."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmark.cli import COMMANDS

# What no help needs: each takes between 50 ms and seconds.
HEAVY = {
    "alembic", "datasets", "fastapi", "huggingface_hub", "jinja2", "numpy", "pandas", "PIL", "pyarrow", "ray",
    "rich", "scipy", "sqlalchemy", "timm", "torch", "torchvision", "transformers", "uvicorn", "yaml",
}  # fmt: skip

PROBE = """
import json, sys
before = set(sys.modules)
from benchmark.cli import main
found = {}
for line in json.loads(sys.argv[1]):
    try:
        main(line)
    except SystemExit as end:
        assert not end.code, line
    found[" ".join(line)] = sorted({name.partition(".")[0] for name in set(sys.modules) - before})
print(json.dumps(found), file=sys.stderr)
"""


def imported(*lines: list[str]) -> dict[str, set[str]]:
    """Top-level packages that are there after each command line, all run in one fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(lines)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return {line: set(names) for line, names in json.loads(done.stderr.splitlines()[-1]).items()}


def test_help_imports_click_and_nothing_else_from_elsewhere() -> None:
    ours = imported(["--help"])["--help"] - set(sys.stdlib_module_names)
    assert {name for name in ours if not name.startswith("__editable__")} == {
        "annotations",
        "benchmark",
        "click",
    }


def test_no_help_of_any_command_imports_what_takes_long() -> None:
    # In one process, so that the first line at fault is the one that the message names.
    for line, names in imported(*([name, "--help"] for name in sorted(COMMANDS))).items():
        assert not names & HEAVY, f"beyond {line} imports {sorted(names & HEAVY)}"
