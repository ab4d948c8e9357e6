"""Try new input for as long as you like: `python -m tests.fuzz --seconds 300` (`make fuzz`).

Each kind of failure is told once, with the command that makes it again.
"""

from __future__ import annotations

import argparse
import collections
import os
import secrets
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

from tests.fuzz.images import spoil, try_image
from tests.fuzz.lines import try_line
from tests.fuzz.targets import SPECS, TARGETS
from tests.fuzz.trial import try_file, try_text

Trial = Callable[[Random, Path], None]


def _image(rng: Random, _folder: Path) -> None:
    try_image(spoil(rng))


def trials() -> dict[str, Trial]:
    """Every kind of trial, by name."""
    files: dict[str, Trial] = {target.name: partial(try_file, target) for target in TARGETS}
    texts: dict[str, Trial] = {f"text: {name}": partial(try_text, name) for name in SPECS}
    return files | texts | {"image": _image, "command line": try_line}


def where(error: BaseException) -> str:
    """What kind of failure it is: the exception and the last line of ours that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [
        f
        for f in frames
        if any(f"/{name}/" in f.filename for name in ("annotations", "benchmark", "leaderboard"))
    ]
    last = (ours or frames)[-1]
    return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"


def main() -> int:
    """Exit status 1 if anything but a refusal came out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, help="run this one trial alone, with --only")
    parser.add_argument("--only", help="name of a trial, or the start of names")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    chosen = {name: trial for name, trial in trials().items() if name.startswith(options.only or "")}
    if not chosen:
        parser.error(f"no trial is called {options.only!r}")
    found: dict[str, str] = {}
    counts: collections.Counter[str] = collections.Counter()
    end = time.monotonic() + options.seconds
    first = secrets.randbits(32) if options.seed is None else options.seed
    number = 0
    while time.monotonic() < end and (options.seed is None or number == 0):
        for name, trial in chosen.items():
            if time.monotonic() > end:
                break
            seed = first + number
            with tempfile.TemporaryDirectory() as folder:
                try:
                    trial(Random(seed), Path(folder))
                except Exception as error:  # noqa: BLE001 - this is what is looked for
                    kind = f"{name}: {where(error)}"
                    if kind not in found:
                        found[kind] = f"--only {name!r} --seed {seed}"
                        text = " ".join(str(error).split())[:160]
                        print(f"{kind}: {text}\n    python -m tests.fuzz {found[kind]}", flush=True)  # noqa: T201
                        if options.seed is not None:
                            traceback.print_exc()
            counts[name] += 1
        number += 1
    print(f"{sum(counts.values()):,} trials of {len(chosen)} kinds, {len(found)} kinds of failure")  # noqa: T201
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
