"""Write `requirements/`, every package of development pinned and hashed (`make lock`).

It locks the versions that are installed here, so what is locked is what `make test` ran on, and asks the
configured package index for the hashes of all their files, for every platform and Python of the project.
torch and torchvision come from whatever index suits a machine (CPU, CUDA, ROCm), with files of its own: they
are pinned by version in `requirements/torch.txt`, without hashes, and what only they need is left to them.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements" / "dev.lock"
TORCH = ROOT / "requirements" / "torch.txt"

BY_INDEX = ("torch", "torchvision")
_OF_TORCH = re.compile(r"(nvidia-|cuda-|triton)")
_ENTRY = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;]+)(?P<marker>[^\\]*)")
OLDEST = "3.11.5"
"""Some packages of development, not of users, take no older 3.11."""

_HEADER = """\
# Every package of development with the hashes of its files, made by `make lock`; do not edit.
# torch, torchvision and what only they need are in torch.txt: see docs/security.md.
"""


def wanted(*, extra: str | None = "dev") -> dict[str, Requirement]:
    """What pyproject asks for, by canonical name: dependencies, and those of an extra with its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *(extras[extra] if extra else ())]
    found: dict[str, Requirement] = {}
    while lines:
        requirement = Requirement(lines.pop())
        if requirement.name == project["name"]:
            for name in requirement.extras:
                lines.extend(extras[name])
        else:
            found[canonicalize_name(requirement.name)] = requirement
    return found


def entries(text: str) -> dict[str, tuple[str, int]]:
    """Version and number of hashes of each package of a lock, by canonical name."""
    found: dict[str, tuple[str, int]] = {}
    for block in re.split(r"\n(?=[A-Za-z0-9])", "\n" + text):
        match = _ENTRY.match(block.strip())
        if match:
            found[canonicalize_name(match["name"])] = (match["version"], block.count("--hash=sha256:"))
    return found


def problems(text: str, torch: str, requirements: dict[str, Requirement]) -> list[str]:
    """What is wrong with a lock: empty if it covers all requirements, hashed, and names no index."""
    found = []
    locked = entries(text)
    pinned = entries(torch)
    for name, requirement in sorted(requirements.items()):
        where = pinned if name in BY_INDEX else locked
        version, _ = where.get(name, ("", 0))
        if not version:
            found.append(f"{name} is not locked")
        elif not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{name} is locked at {version}, but pyproject asks for {requirement.specifier}")
    found += [f"{name} has no hash" for name, (_, hashes) in sorted(locked.items()) if not hashes]
    found += [
        f"{name} belongs to torch" for name in sorted(locked) if _OF_TORCH.match(name) or name in BY_INDEX
    ]
    found += [
        f"line {number} names a place: {line.strip()[:60]}"
        for number, line in enumerate((text + torch).splitlines(), 1)
        if re.search(r"://|^\s*(-i|--index|--extra-index|--find-links|--trusted)", line)
    ]
    return found


def compile_lock() -> tuple[str, str]:
    """The texts of `dev.lock` and `torch.txt` for the packages that are installed here."""
    here: dict[str, str] = {canonicalize_name(d.name): d.version for d in importlib.metadata.distributions()}
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        # Local versions (2.14.0+cpu) are those of an index; the public one names the release.
        lines = [
            f"{name}=={version.partition('+')[0]}\n"
            for name, version in here.items()
            if name != "beyond-accuracy"
        ]
        constraints.write_text("".join(sorted(lines)))
        command = [
            sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--extra", "dev", "--universal",
            "--python-version", OLDEST, "--generate-hashes", "--no-header", "--no-annotate",
            "--no-emit-index-url", "--no-emit-find-links", "--quiet", "--constraint", str(constraints),
        ]  # fmt: skip
        text = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    blocks = [block for block in re.split(r"\n(?=[A-Za-z0-9])", text.strip()) if block]
    kept = []
    for block in blocks:
        name = canonicalize_name(re.split(r"[=\s]", block, maxsplit=1)[0])
        if name not in BY_INDEX and not _OF_TORCH.match(name):
            kept.append(block)
    torch = "".join(f"{name}=={here[name].partition('+')[0]}\n" for name in BY_INDEX)
    return _HEADER + "\n".join(kept) + "\n", torch


def main() -> int:
    """Write both files; exit status 1 if they do not cover what pyproject asks for."""
    lock, torch = compile_lock()
    LOCK.parent.mkdir(exist_ok=True)
    LOCK.write_text(lock, encoding="utf-8")
    TORCH.write_text(torch, encoding="utf-8")
    found = problems(lock, torch, wanted())
    print("\n".join(found) or f"{len(entries(lock))} packages locked in {LOCK.relative_to(ROOT)}")  # noqa: T201
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
