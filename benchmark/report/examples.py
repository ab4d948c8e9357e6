"""Images beside their adversarials, for a page that stays on this machine.

Pixels of ImageNet images must not be published, and neither must a page that holds any.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from annotations.classes import class_names
from annotations.errors import BeyondError
from annotations.judgements import VERDICT_NAMES, Verdict
from benchmark.attack_records import iter_adversarials, read_attacks
from benchmark.radii import radius_text
from benchmark.report.robustness import distance_text


@dataclass(frozen=True)
class View:
    """One picture: a caption, and the picture as a `data:` URI."""

    caption: str
    uri: str


@dataclass(frozen=True)
class Example:
    """One adversarial example.

    Attributes:
        image_id: Id of the image.
        original: Name of the original class.
        predicted: Name of the class predicted for the adversarial.
        verdict: What people say of that prediction: accepted, unsure, rejected, unjudged.
        radius: Threat and radius.
        distance: Size of the perturbation.
        views: The image, the adversarial, the perturbation, and explanations where there are some.
    """

    image_id: str
    original: str
    predicted: str
    verdict: str
    radius: str
    distance: str
    views: tuple[View, ...]


def adversarial_examples(run: Path, count: int) -> list[Example]:
    """Images of a run beside their adversarials, those that people accept first, then the unsure ones.

    Args:
        run: Folder of a run that was attacked and keeps its adversarials.
        count: How many, at most.

    Raises:
        BeyondError: The run was not attacked, kept no adversarials, or has none.
    """
    from benchmark import runs

    info = runs.read_run(run)
    result = runs.robustness_result(run, runs.load_labels(runs.default_annotations(info)))
    if result is None or result.verdicts is None:
        raise BeyondError(
            f"{run} has no finished attacks to show; run beyond score … --tracks robustness first"
        )
    verdicts = result.verdicts
    records = read_attacks(run)
    rows = records.rows_of(verdicts.evaluation)
    table = records.table.iloc[rows]
    table = table[(table["objective"] == "original") & (table["status"] == "broken")]
    name_of = dict(zip(table["image_id"], table["adversarial"]))
    order = {Verdict.ACCEPTED: 0, Verdict.UNSURE: 1, Verdict.UNJUDGED: 2, Verdict.REJECTED: 3}
    chosen = [i for i, image_id in enumerate(verdicts.image_ids) if image_id in name_of]
    explained = _explanations(run)

    def place(i: int) -> tuple[int, bool, float, int]:
        """People's verdict first, then those with explanations, then the nearest."""
        told = (str(verdicts.image_ids[i]), int(verdicts.adversarial[i])) in explained
        return order[Verdict(int(verdicts.verdict[i]))], not told, float(verdicts.distance[i]), i

    chosen.sort(key=place)
    wanted = {name_of[verdicts.image_ids[i]]: i for i in chosen[:count]}
    found = {a.name: a for a in iter_adversarials(run, wanted)}
    if wanted and not found:
        raise BeyondError(f"{run} keeps no adversarial images; score it again with --keep-adversarials")
    classes = class_names()
    examples = []
    for name, i in wanted.items():
        if name not in found:
            continue
        adversarial = found[name]
        shown, factor = magnified(adversarial.perturbation)
        threat, epsilon, _ = verdicts.evaluation
        examples.append(
            Example(
                image_id=str(verdicts.image_ids[i]),
                original=classes[int(verdicts.labels[i])],
                predicted=classes[int(verdicts.adversarial[i])],
                verdict=VERDICT_NAMES.get(int(verdicts.verdict[i]), "unjudged"),
                radius=radius_text(threat, epsilon),
                distance=distance_text(threat, float(verdicts.distance[i])),
                views=(
                    View(f"the image: {classes[int(verdicts.clean[i])]}", png_uri(adversarial.clean)),
                    View(
                        f"the adversarial: {classes[int(verdicts.adversarial[i])]}",
                        png_uri(to_bytes(adversarial.pixels)),
                    ),
                    View(f"the difference, times {factor:.3g}", png_uri(shown)),
                    *explained.get((str(verdicts.image_ids[i]), int(verdicts.adversarial[i])), ()),
                ),
            )
        )
    return examples


def _explanations(run: Path) -> dict[tuple[str, int], list[View]]:
    """Pictures that `beyond explain` made, by image and predicted class; none if it was not run."""
    from annotations.study.preregistration import MANIFEST_FILE
    from benchmark.explanations.pack import read_pack

    folder = run / "explanations"
    if not (folder / MANIFEST_FILE).is_file():
        return {}
    found: dict[tuple[str, int], list[View]] = {}
    captions = {"feature": "where it looks", "example": "the nearest images of that class"}
    manifest = read_pack(folder)
    altered = {item.item: item for item in manifest.items if item.kind == "adversarial"}
    for picture in manifest.pictures:
        item = altered.get(picture.item)
        if item is not None and picture.arm in captions:
            data = base64.b64encode((folder / picture.file).read_bytes()).decode("ascii")
            view = View(captions[picture.arm], f"data:image/png;base64,{data}")
            found.setdefault((item.image_id, item.shown_class), []).append(view)
    for views in found.values():
        views.sort(key=lambda view: view.caption, reverse=True)  # the heat map first
    return found


def to_bytes(pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Pixels float32 (3, H, W) in [0, 1], rounded to uint8 (H, W, 3) to be shown."""
    rounded: npt.NDArray[np.uint8] = np.rint(255 * pixels.transpose(1, 2, 0)).astype(np.uint8)
    return rounded


def magnified(perturbation: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.uint8], float]:
    """A perturbation (3, H, W) around mid-grey, its largest value at full range, and the factor."""
    largest = float(np.abs(perturbation).max())
    factor = 0.5 / largest if largest else 1.0
    return to_bytes((0.5 + factor * perturbation).clip(0, 1).astype(np.float32)), factor


def png_uri(pixels: npt.NDArray[np.uint8]) -> str:
    """An image uint8 (H, W, 3) as a PNG in a `data:` URI."""
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG", optimize=False)
    return "data:image/png;base64," + base64.b64encode(sink.getvalue()).decode("ascii")
