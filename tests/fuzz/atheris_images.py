"""Coverage-guided fuzzing of the image path: `python -m tests.fuzz.atheris_images [libFuzzer options]`.

`make fuzz` runs it where atheris is installed (`pip install 'beyond-accuracy[fuzz]'`). Pillow's readers are
instrumented with ours; what its C libraries do is seen only where it ends the process.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any


def main(argv: list[str]) -> None:
    """Fuzz until libFuzzer's own options (`-max_total_time=60`, `-runs=1000`) say that it is enough."""
    try:
        atheris: Any = importlib.import_module("atheris")
    except ImportError:
        sys.exit("atheris is not here; install it with: pip install 'beyond-accuracy[fuzz]'")
    plugins = [f"PIL.{name}ImagePlugin" for name in ("Bmp", "Gif", "Jpeg", "Mpo", "Png", "Tiff", "WebP")]
    with atheris.instrument_imports(include=["PIL", "benchmark.preprocessing"]):
        for name in ("PIL.Image", "PIL.ImageFile", *plugins, "benchmark.preprocessing"):
            importlib.import_module(name)
        images = importlib.import_module("tests.fuzz.images")
    with tempfile.TemporaryDirectory() as name:
        for number, seed in enumerate(images.seeds()):
            (Path(name) / str(number)).write_bytes(seed)
        options = ["-max_len=20000", "-timeout=20", "-rss_limit_mb=3000", *argv[1:]]
        atheris.Setup([argv[0], name, *options], images.try_image)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
