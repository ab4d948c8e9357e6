"""From the bytes of an image file to the pixels a classifier sees. Needs Pillow and NumPy, never torch.

Worker processes import this module and nothing heavier, so that they start at once and stay small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]


@dataclass(frozen=True)
class Preprocessing:
    """What turns an image into a classifier's input. All sizes are in pixels.

    Attributes:
        input_size: (height, width) of the result.
        resize: An int scales the shorter side to it, keeping the aspect; a pair (height, width) ignores the
            aspect; None leaves the size.
        interpolation: Filter of the resize, as Pillow names it; Pillow's filters always antialias.
        antialias: Recorded because some libraries can turn it off; False is refused when loading.
        mean: Per-channel mean in [0, 1], applied inside the model.
        std: Per-channel standard deviation in [0, 1], applied inside the model.

    After the resize the centre `input_size` is cropped; a smaller image is padded with black, as torchvision does.
    """

    input_size: tuple[int, int] = (224, 224)
    resize: int | tuple[int, int] | None = 256
    interpolation: Interpolation = "bicubic"
    antialias: bool = True
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
