"""A small model that is right on small images, their label sets, and variants of it that misbehave.

The network is a nearest-prototype classifier on coarse colours: each image's own colours are the prototype of
its label, and a blend of them with a neighbour's is that of one further class, which is near and so what an
attack reaches first. Everything is exact and fast, and means nothing.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from annotations.classes import validation_id, validation_labels
from annotations.judgements import LabelSets
from benchmark.preprocessing import Preprocessing, load_pixels
from tests.benchmark.synthetic import write_validation_images

SIZE = 24
MODEL = textwrap.dedent(
    """
    import os, time
    from pathlib import Path
    import numpy as np
    import torch
    from torch import nn
    from benchmark.classifier import Classifier
    from benchmark.preprocessing import Preprocessing

    HERE = Path(__file__).parent


    class Nearest(nn.Module):
        def __init__(self):
            super().__init__()
            data = np.load(HERE / "prototypes.npz")
            self.head = nn.Linear(48, 1000)
            with torch.no_grad():
                self.head.weight.copy_(torch.tensor(data["weight"]))
                self.head.bias.copy_(torch.tensor(data["bias"]))

        def forward(self, x):
            time.sleep(float(os.environ.get("TEST_SLEEP", "0")))
            return self.head(nn.functional.adaptive_avg_pool2d(x, 4).flatten(1))


    class Random(Nearest):
        def forward(self, x):
            return super().forward(x + 0.02 * torch.randn_like(x))


    class Writes(Nearest):
        def forward(self, x):
            out = super().forward(x)
            x.data += 0.001
            return out


    class Overwrites(Nearest):
        def forward(self, x):
            y = (x + 1).sqrt()
            out = super().forward(y.square() - 1)
            y += 1
            return out


    class NoGradient(Nearest):
        def forward(self, x):
            return super().forward(x.detach()).detach()


    class NaNUnderAttack(Nearest):
        def forward(self, x):
            whole = ((x * 255 - (x * 255).round()).abs().flatten(1).amax(1) < 1e-3)
            return torch.where(whole[:, None], super().forward(x), torch.full((), float("nan")))


    def _make(kind):
        return kind(), Preprocessing(input_size=(24, 24), resize=24, mean=(0.0,) * 3, std=(1.0,) * 3)


    def model(): return _make(Nearest)
    def random(): return _make(Random)
    def overwrites(): return _make(Overwrites)
    def writes():
        # As a Classifier, so that nothing stands between the input and the network.
        return Classifier("", "writes", Writes(), _make(Writes)[1], weights_sha256="")
    def no_gradient(): return _make(NoGradient)
    def nan(): return _make(NaNUnderAttack)
    """
)


@dataclass(frozen=True)
class World:
    """Images, a model, and label sets.

    Attributes:
        images: Folder of images.
        model: Path of the file with the factories.
        labels: Folder of label sets.
        near: The further class of each image, by id.
        ids: Image ids.
    """

    images: Path
    model: Path
    labels: Path
    near: dict[str, int]
    ids: list[str]

    def spec(self, factory: str = "model") -> str:
        return f"{self.model}:{factory}"


def make_world(folder: Path, n: int = 12, *, start: int = 1) -> World:
    """Make a world of n images.

    Of every four images: one accepts the further class, one is unsure of it, one rejects it, and of the
    last nobody judged the further class. Of the very last image, people reject the original label and accept
    the further class.
    """
    images = write_validation_images(folder / "images", n, start=start)
    ids = [validation_id(number) for number in range(start, start + n)]
    labels = validation_labels()[start - 1 : start - 1 + n].astype(int).tolist()
    assert len(set(labels)) == n, "choose images of distinct classes"
    spec = Preprocessing(input_size=(SIZE, SIZE), resize=SIZE)
    colours = []
    for image_id in ids:
        file = images / f"{image_id}.JPEG"
        pixels = load_pixels(file.read_bytes(), spec, name=image_id).astype(np.float64) / 255
        blocks = pixels.reshape(4, SIZE // 4, 4, SIZE // 4, 3).mean(axis=(1, 3))
        colours.append(blocks.transpose(2, 0, 1).reshape(-1))
    free = [c for c in range(1000) if c not in labels]
    prototypes = np.full((1000, 48), 0.5)
    bias = np.full(1000, -10.0)
    near = {}
    for k, (image_id, label) in enumerate(zip(ids, labels)):
        prototypes[label] = colours[k]
        near[image_id] = free[k]
        prototypes[free[k]] = 0.93 * colours[k] + 0.07 * colours[(k + 1) % n]
        for c in (label, free[k]):
            bias[c] = -0.5 * (prototypes[c] ** 2).sum()
    scale = 20
    np.savez(
        folder / "prototypes.npz", weight=(scale * prototypes).astype("f4"), bias=(scale * bias).astype("f4")
    )
    model = folder / "nearest.py"
    model.write_text(MODEL)

    pairs = []
    for k, (image_id, label) in enumerate(zip(ids, labels)):
        last = k == n - 1
        pairs.append((image_id, label, "rejected" if last else "accepted"))
        verdict = "accepted" if last else ("accepted", "unsure", "rejected", "")[k % 4]
        if verdict:
            pairs.append((image_id, near[image_id], verdict))
    judgements = pd.DataFrame(pairs, columns=["image_id", "class_index", "verdict"])
    frame = pd.DataFrame({"image_id": ids, "original_label": labels, "status": "evaluable"})
    frame["closed_world"] = False
    LabelSets.from_tables(judgements, frame, source="people", revision="1").save(folder / "people")
    return World(images, model, folder / "people", near, ids)
