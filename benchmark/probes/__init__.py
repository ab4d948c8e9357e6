"""The standard probes of the criticism track: the same question put to every model. Only their name cards.

A probe works in two steps, as everything here does: `observe` runs the model and writes records into the
probe's folder (`RUN/probes/NAME/`), `score` is a pure function of records and label sets. A probe that reads
what a run has recorded anyway has no `observe`. See `benchmark.probes.execution` for how to call them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from annotations.errors import BeyondError


@dataclass(frozen=True)
class Reference:
    """A value to read a model's value against.

    Attributes:
        who: Whose value it is: people, or a published model.
        metric: Name of the metric.
        value: The value.
        source: Where the value comes from: a publication, or what it was computed from.
        n: Number of images or trials behind it, if known.
        ci_low: Lower end of its 95 % interval, if known.
        ci_high: Upper end, if known.
    """

    who: str
    metric: str
    value: float
    source: str
    n: int | None = None
    ci_low: float | None = None
    ci_high: float | None = None


@dataclass(frozen=True)
class ProbeInfo:
    """A probe's name card.

    Attributes:
        name: Key in the registry, on the command line and in the run folder.
        version: Version of its definition; rises when numbers change.
        title: The question it asks.
        method: How it asks, in a sentence or two.
        data: What it runs on.
        licence: Licence of the data, as its source states it.
        citation: Publication that the probe follows.
        main_score: Name of its main metric.
        metrics: Names of all its metrics, the main score first.
        score_function: Import string `module:function` of what computes the result from records.
        observe_function: Import string of what runs the model, or empty if the run's own records are enough.
        own_images: It needs images of its own (`--images DIR` in its own layout), not those of the run.
        references: Values of people and of published models.
    """

    name: str
    version: int
    title: str
    method: str
    data: str
    licence: str
    citation: str
    main_score: str
    metrics: tuple[str, ...]
    score_function: str
    observe_function: str = ""
    own_images: bool = False
    references: tuple[Reference, ...] = ()

    @property
    def needs_model(self) -> bool:
        """Whether the probe runs the model itself, instead of reading what a run recorded."""
        return bool(self.observe_function)

    def load_score(self) -> Callable[..., Any]:
        """Import the function that computes the result."""
        return _load(self.score_function)

    def load_observe(self) -> Callable[..., Any] | None:
        """Import the function that runs the model, if there is one."""
        return _load(self.observe_function) if self.observe_function else None


def _load(name: str) -> Callable[..., Any]:
    module, attribute = name.split(":")
    loaded: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return loaded


def _published(
    model: str, metric: str, value: float, ci_low: float, ci_high: float, n: int, *, against: str
) -> Reference:
    """A value that this project computed from a published file of predictions; a test computes it again."""
    source = f"computed from the predictions of {model} in the ImageNetV2 repository (MIT), against {against}"
    return Reference(model, metric, value, source, n, ci_low, ci_high)


_HUMANS = (
    "computed from the published answers of ten people to 1,200 images whose cues differ (Geirhos et al. "
    "2019, CC BY 4.0); interval: bootstrap over people and images"
)
_README = "the README of rgeirhos/texture-vs-shape, mean of probabilities, on the 1,200 images"

CUE_CONFLICT = ProbeInfo(
    name="cue-conflict",
    version=1,
    title="Does it go by shape or by texture?",
    method=(
        "Images with the shape of one category and the texture of another; the probabilities of the ImageNet "
        "classes of each of 16 categories are averaged, and the largest mean decides."
    ),
    data="Cue-conflict images, SHAPE/shapeN-textureM.png",
    licence="CC BY 4.0",
    citation=(
        "Geirhos et al. 2019, ImageNet-trained CNNs are biased towards texture, ICLR, arXiv:1811.12231; "
        "error consistency: Geirhos, Meding & Wichmann 2020, NeurIPS, arXiv:2006.16736"
    ),
    main_score="shape_bias",
    metrics=("shape_bias", "cue_accuracy", "human_error_consistency"),
    observe_function="benchmark.probes.cue_conflict:observe",
    score_function="benchmark.probes.cue_conflict:score",
    own_images=True,
    references=(
        Reference("10 people, pooled", "shape_bias", 0.9587, _HUMANS, 12_000, 0.9444, 0.9711),
        Reference("10 people, mean", "shape_bias", 0.9576, _HUMANS, 12_000, 0.9434, 0.9705),
        Reference("ResNet-50", "shape_bias", 0.2139, _README),
        Reference("ResNet-50 trained on Stylized-ImageNet", "shape_bias", 0.8137, _README),
    ),
)

_SAMPLE = "measured by this project on a convenience sample of validation images, not the validation set"

WATERMARK = ProbeInfo(
    name="watermark",
    version=1,
    title="Does a watermark change its answer?",
    method=(
        "The same images without and with a transparent watermark of six Chinese characters, laid over what "
        "the model sees by the package imagenet-w."
    ),
    data="Any image set, with ImageNet-W's watermark",
    licence="Transform and font: BSD-3-Clause, SIL OFL 1.1; images: their own",
    citation="Li et al. 2023, A Whac-A-Mole Dilemma, CVPR, arXiv:2212.04825",
    main_score="watermark_drop",
    metrics=("watermark_drop", "watermark_carton_shift", "watermark_changed"),
    observe_function="benchmark.probes.watermark:observe",
    score_function="benchmark.probes.watermark:score",
    references=tuple(
        Reference("EfficientNet-Lite0, sample", metric, value, _SAMPLE, 878, low, high)
        for metric, value, low, high in (
            ("watermark_drop", 0.1173, 0.0937, 0.1430),
            ("watermark_carton_shift", 0.0114, 0.0062, 0.0208),
            ("watermark_changed", 0.2096, 0.1839, 0.2377),
        )
    ),
)

FACTORS = ProbeInfo(
    name="factors",
    version=1,
    title="On which kind of image does it err most?",
    method=(
        "Error on the images whose most salient factor (pose, background, …) people named, over the error on "
        "all annotated images; 1 is no effect."
    ),
    data="ImageNet-X factors of the ImageNet validation images",
    licence="CC BY-NC 4.0",
    citation="Idrissi et al. 2023, ImageNet-X, ICLR, arXiv:2211.01866",
    main_score="worst_factor_error_ratio",
    metrics=("worst_factor_error_ratio",),
    score_function="benchmark.probes.factors:score",
    references=tuple(
        _published(model, "worst_factor_error_ratio", *figures, against="ImageNet-X")
        for model, figures in {
            "AlexNet": (1.7566, 1.4692, 1.9988, 46_110),
            "VGG-16": (2.1671, 1.8781, 2.6658, 46_110),
            "ResNet-50": (2.3939, 2.0477, 2.8481, 46_110),
            "PNASNet-5 Large": (2.6120, 2.1449, 3.0875, 46_110),
        }.items()
    ),
)

CO_OCCURRENCE = ProbeInfo(
    name="co-occurrence",
    version=1,
    title="Does it need the company that an object keeps?",
    method=(
        "For a class and a class that people often accept beside it: accuracy, and distance to the decision "
        "boundary, with and without the companion in the image."
    ),
    data="Multi-label sets of the images of the run",
    licence="That of the label sets",
    citation="This project; the idea follows Singh et al. 2020, CVPR, arXiv:2001.03152",
    main_score="co_occurrence_gap",
    metrics=("co_occurrence_gap", "co_occurrence_distance_gap"),
    score_function="benchmark.probes.co_occurrence:score",
    references=tuple(
        _published(model, "co_occurrence_gap", *figures, against="ReaL")
        for model, figures in {
            "AlexNet": (-0.0916, -0.1174, -0.0658, 7_800),
            "VGG-16": (-0.0958, -0.1205, -0.0710, 7_797),
            "ResNet-50": (-0.0518, -0.0748, -0.0288, 7_799),
            "PNASNet-5 Large": (-0.0214, -0.0424, -0.0004, 7_799),
        }.items()
    ),
)

PROBES: dict[str, ProbeInfo] = {
    probe.name: probe for probe in (CUE_CONFLICT, WATERMARK, FACTORS, CO_OCCURRENCE)
}
"""All probes by name."""


def get_probe(name: str) -> ProbeInfo:
    """The probe of this name.

    Raises:
        BeyondError: There is none; the message says which name is near.
    """
    if name not in PROBES:
        from benchmark.cli import did_you_mean

        raise BeyondError(did_you_mean(name, list(PROBES), what="probe"))
    return PROBES[name]
