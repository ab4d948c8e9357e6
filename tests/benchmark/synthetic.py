"""Small synthetic images and models for tests; they mean nothing."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image

from annotations.classes import validation_id

# A model as a user would bring it: mean colours through fixed random weights. It can be told to be slow.
USER_MODEL = textwrap.dedent(
    """
    import os, time
    import torch
    from torch import nn
    from benchmark.preprocessing import Preprocessing


    class Colours(nn.Module):
        def __init__(self):
            super().__init__()
            generator = torch.Generator().manual_seed(7)
            self.weight = nn.Parameter(torch.randn(1000, 48, generator=generator))

        def forward(self, x):
            time.sleep(float(os.environ.get("TEST_SLEEP", "0")))
            return nn.functional.adaptive_avg_pool2d(x, 4).flatten(1) @ self.weight.T * 9


    def model():
        return Colours(), Preprocessing(input_size=(32, 32), resize=36, mean=(0.5,) * 3, std=(0.2,) * 3)


    def thousand_and_one():
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 1001)), model()[1]


    class NaN(Colours):
        def forward(self, x):
            return super().forward(x) * float("nan")


    def nan():
        return NaN(), model()[1]
    """
)


def write_user_model(folder: Path) -> str:
    """Write the model's file; returns the spec of its factory `model`."""
    path = folder / "user_model.py"
    path.write_text(USER_MODEL)
    return f"{path}:model"


def jpeg(seed: int, *, size: tuple[int, int] = (40, 48), mode: str = "RGB", kind: str = "JPEG") -> bytes:
    """A JPEG of smooth random colours, the same for the same seed."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode)
    sink = io.BytesIO()
    image.save(sink, kind, quality=90)
    return sink.getvalue()


def write_validation_images(folder: Path, n: int, *, start: int = 1) -> Path:
    """A flat folder of n files that carry validation ids and synthetic content."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(start, start + n):
        (folder / f"{validation_id(number)}.JPEG").write_bytes(jpeg(number))
    return folder
