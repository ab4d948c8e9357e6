"""Memory of a run, by the resident size of its process: it does not grow with the number of images."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from annotations.classes import validation_id
from tests.benchmark.synthetic import jpeg, write_user_model

MIB = 2**20

# `beyond score`, noting the resident size of its process with each part that it writes, and the peak.
WATCHED = textwrap.dedent(
    """
    import json, resource, sys
    from benchmark import engine
    from benchmark.cli import main

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()

    class Watched(engine.PartWriter):
        seen = []
        def write(self, part):
            super().write(part)
            self.seen.append((part.scored, resident()))

    engine.PartWriter = Watched
    main(sys.argv[2:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with open(sys.argv[1], "w") as file:
        json.dump({"parts": Watched.seen, "peak": peak}, file)
    """
)


def write_images(folder: Path, count: int) -> Path:
    """So many files under names of validation images; a hundred pictures take turns."""
    folder.mkdir()
    pictures = [jpeg(seed) for seed in range(100)]
    for number in range(1, count + 1):
        (folder / f"{validation_id(number)}.JPEG").write_bytes(pictures[number % 100])
    return folder


def growth(folder: Path, model: str, images: Path, few: int) -> tuple[int, int, int]:
    """Resident bytes once `few` images are written, how much more there are later, and the peak of it all."""
    report = folder / "report.json"
    options = ["--threads", "1", "--workers", "0", "--out", str(folder / "run")]
    command = [sys.executable, "-c", WATCHED, str(report), "score", model, "--images", str(images), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    read = json.loads(report.read_text())
    done = 0
    sizes = []
    for count, size in read["parts"]:
        done += count
        if done >= few:
            sizes.append(size)
    return sizes[0], max(sizes) - sizes[0], read["peak"]


# All logits and classes of 19,000 images take 109 MiB, their pixels 56 MiB: to keep either would be seen.
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
@pytest.mark.parametrize(
    ("few", "many", "allowed"),
    [
        pytest.param(1000, 5000, 16 * MIB, id="5000"),
        pytest.param(1000, 20_000, 100 * MIB, id="20000", marks=pytest.mark.strength),
    ],
)
def test_memory_does_not_grow_with_the_images(tmp_path: Path, few: int, many: int, allowed: int) -> None:
    images = write_images(tmp_path / "images", many)
    before, more, peak = growth(tmp_path, write_user_model(tmp_path), images, few)
    print(  # noqa: T201 - the figure for the reader
        f"resident after {few} images {before / MIB:.0f} MiB, by {many} {more / MIB:+.1f} MiB; "
        f"peak with scoring {peak / MIB:.0f} MiB"
    )
    assert more < allowed
