"""The tracks: what each one measures, and where its code is. Nothing here imports the code."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from annotations.errors import BeyondError


@dataclass(frozen=True)
class MetricInfo:
    """What a metric means.

    Attributes:
        name: Key in the scorecard; `{source}` stands for the name of a source of annotations.
        title: A few words for tables and charts.
        description: One sentence: share of what, over what.
        higher_is_better: False where a lower value is the better one, None where neither is.
    """

    name: str
    title: str
    description: str
    higher_is_better: bool | None = True


@dataclass(frozen=True)
class TrackInfo:
    """A track's name card.

    Attributes:
        name: Key in the scorecard and in `--tracks`.
        version: Version of its definition; rises when numbers change.
        title: The question it answers.
        headline: Name of its main metric.
        metrics: Its metrics, in the order to show them.
        tables: Name of each table and what its rows are.
        function: Import string `module:function` of what computes it.
    """

    name: str
    version: int
    title: str
    headline: str
    metrics: tuple[MetricInfo, ...]
    function: str
    tables: dict[str, str] = field(default_factory=dict)

    def metric(self, name: str) -> MetricInfo:
        """What the metric `name` means, also where its name is made from a source's.

        Raises:
            BeyondError: The track has no such metric.
        """
        for info in self.metrics:
            if info.name == name:
                return info
        for info in self.metrics:
            before, brace, after = info.name.partition("{source}")
            if brace and name.startswith(before) and name.endswith(after):
                source = name[len(before) : len(name) - len(after)]
                title, description = (t.replace("{source}", source) for t in (info.title, info.description))
                return MetricInfo(name, title, description, info.higher_is_better)
        raise BeyondError(f"the {self.name} track has no metric {name!r}; see: beyond tracks")

    def load(self) -> Callable[..., Any]:
        """Import the function that computes the track."""
        module, function = self.function.split(":")
        loaded: Callable[..., Any] = getattr(importlib.import_module(module), function)
        return loaded


RECTIFIED = TrackInfo(
    name="rectified",
    version=1,
    title="How often is the prediction one that people accept?",
    headline="real_accuracy",
    function="benchmark.tracks.rectified:score_rectified",
    metrics=(
        MetricInfo("top1", "Top-1", "Share of images whose top-1 class is the original label."),
        MetricInfo("top5", "Top-5", "Share of images whose original label is among the top five classes."),
        MetricInfo(
            "real_accuracy", "ReaL", "Share of evaluable images whose top-1 class is in the ReaL label set."
        ),
        MetricInfo("top1_evaluable", "Top-1 on ReaL's images", "Top-1 on the images that ReaL can evaluate."),
        MetricInfo(
            "rectified_error_reduction",
            "Error that is no error",
            "Share of the standard error that is gone once people's labels count, on the same images.",
        ),
        MetricInfo(
            "mla",
            "MLA",
            "Mean over classes of the share that experts call correct or unclear; no problematic images.",
        ),
        MetricInfo("mla_plain", "MLA, plain mean", "The same as a mean over images."),
        MetricInfo(
            "mla_ppi",
            "MLA, all images",
            "Plain MLA of all images, estimated from the experts' part and a proxy on the rest (PPI++).",
        ),
        MetricInfo(
            "consolidated_accuracy",
            "Consolidated",
            "Share of evaluable images whose top-1 class is accepted once all sources are merged.",
        ),
        MetricInfo(
            "{source}_accuracy",
            "Accepted by {source}",
            "Share of evaluable images whose top-1 class the source {source} accepts.",
        ),
        MetricInfo(
            "precision_at_k",
            "Precision at |label set|",
            "Mean over images of the share of the top k classes that are accepted, k being how many are.",
        ),
        MetricInfo(
            "recall_at_k",
            "Recall at |label set|",
            "Mean over images of the share of the k accepted classes that are among the top k.",
        ),
        MetricInfo(
            "mean_average_precision",
            "Mean average precision",
            "Mean over images of the average precision of the ranking of all 1000 classes.",
        ),
    ),
    tables={
        "standard_vs_rectified": "For each source: error by the original label and by people's, same images.",
        "anatomy": "What the predictions that differ from the original label are.",
        "most_rectified_classes": "Classes whose accuracy rises most once people's labels count.",
        "accepted_confusions": "Predictions that differ from the original label and that people accept.",
        "multilabel_quality": "For each source: precision and recall at |label set|, mean average precision.",
        "sources": "For each source: its images in this run, and its verdicts on the top-1 predictions.",
    },
)

ROBUSTNESS = TrackInfo(
    name="robustness",
    version=1,
    title="Can an adversary force a prediction that people reject?",
    headline="robust_accuracy_original",
    function="benchmark.tracks.robustness:score_robustness",
    metrics=(
        MetricInfo("clean_accuracy", "Clean", "Top-1 on the original labels, on the attacked images."),
        MetricInfo(
            "robust_accuracy_original",
            "Robust, original label",
            "Share of attacked images whose prediction no attack moved from the original label.",
        ),
        MetricInfo(
            "robust_accuracy_rectified",
            "Robust, people's labels",
            "Share of images whose prediction no attack moved out of what people accept or are unsure of.",
        ),
        MetricInfo(
            "hidden_robustness",
            "Hidden robustness",
            "Robust accuracy by people's labels minus that by the original label, on the same images.",
        ),
        MetricInfo(
            "adversarial_acceptance",
            "Accepted adversarials",
            "Share of adversarial predictions that people accept, where they keep the original label.",
        ),
        MetricInfo(
            "agreement_none",
            "Agreement",
            "Share of answers of raters who agree with an adversarial prediction, shown no explanation.",
        ),
        MetricInfo(
            "agreement_feature",
            "Agreement, heat map",
            "The same of other raters, shown a heat map of what the model looked at.",
        ),
        MetricInfo(
            "agreement_example",
            "Agreement, examples",
            "The same of other raters, shown the nearest reference images of the predicted class.",
        ),
        MetricInfo(
            "agreement_gain_feature",
            "Gain, heat map",
            "Agreement with a heat map minus agreement without explanation; read it with shams accepted.",
        ),
        MetricInfo(
            "agreement_gain_example",
            "Gain, examples",
            "Agreement with examples minus agreement without explanation; read it with shams accepted.",
        ),
        MetricInfo(
            "median_distance_original",
            "Median distance",
            "Median norm of the smallest perturbation found that moves a right answer off the label.",
        ),
        MetricInfo(
            "median_distance_rectified",
            "Median distance, people",
            "The same to leave all that people accept or are unsure of, where they keep the label.",
        ),
    ),
    tables={
        "by_epsilon": "For each threat, radius and suite: clean and robust accuracy under both objectives.",
        "label_groups": "The figures by what people say of the original label.",
        "attacks": "For each attack: images left before it, and images it broke.",
        "adversarial_verdicts": "For each source: its verdicts on the adversarial predictions.",
        "adversarial_predictions": "Adversarial predictions that people accept; label kept, then nearest.",
        "minimal": "Suite minimal: quartiles of the smallest perturbation found, by objective, with n.",
        "distances": "Histogram of the smallest perturbation found for each image.",
        "warnings": "Reasons to read robust accuracy with care, such as masked gradients.",
        "agreement": "A study: agreement, shams accepted, over-acceptance, over-rejection by what was shown.",
        "agreement_contrasts": "A study: differences between what raters were shown, with tests.",
        "agreement_study": "A study: its plan's and stimuli's checksums, who answered, who was left out.",
    },
)

CRITICISM = TrackInfo(
    name="criticism",
    version=1,
    title="Which biases has it learned, and do they hold on images they were not found on?",
    headline="confirmed_biases",
    function="benchmark.tracks.criticism:score_criticism",
    metrics=(
        MetricInfo(
            "confirmed_biases",
            "Confirmed biases",
            "Attributes that tell criticisms from prototypes, found on one half of the images and confirmed "
            "on the other.",
            higher_is_better=False,
        ),
        MetricInfo(
            "confirmed_slices",
            "Confirmed slices",
            "Groups of like images in which it is wrong more often than its confidence says, on both halves.",
            higher_is_better=False,
        ),
        MetricInfo(
            "median_distance",
            "Median distance",
            "Median L2 distance of rightly answered images to the decision boundary: an upper bound.",
        ),
        MetricInfo(
            "shape_bias",
            "Shape bias",
            "Share of decisions by shape, of those by shape or texture, on cue-conflict images.",
        ),
        MetricInfo(
            "cue_accuracy",
            "Shape or texture named",
            "Share of cue-conflict images whose shape or texture it names.",
        ),
        MetricInfo(
            "human_error_consistency",
            "Error consistency",
            "Cohen's kappa of its right and wrong answers with those of people, on cue-conflict images.",
        ),
        MetricInfo(
            "watermark_drop",
            "Watermark drop",
            "Accuracy lost when a watermark is laid over the images.",
            higher_is_better=False,
        ),
        MetricInfo(
            "watermark_carton_shift",
            "Watermark to carton",
            "Rise of the share answered carton when a watermark is laid over the images.",
            higher_is_better=False,
        ),
        MetricInfo(
            "watermark_changed",
            "Watermark changes",
            "Share of answers that a watermark changes.",
            higher_is_better=False,
        ),
        MetricInfo(
            "worst_factor_error_ratio",
            "Worst factor",
            "Largest error ratio over the ImageNet-X factors: error under a factor over error on all images.",
            higher_is_better=False,
        ),
        MetricInfo(
            "co_occurrence_gap",
            "Co-occurrence gap",
            "Accuracy with the companion in the image minus accuracy without it, over pairs of classes; "
            "0 needs no company.",
            higher_is_better=None,
        ),
        MetricInfo(
            "co_occurrence_distance_gap",
            "Co-occurrence distance",
            "The same for the distance to the decision boundary.",
            higher_is_better=None,
        ),
    ),
    tables={
        "search": "How many tests were made on each half, and what became of them.",
        "findings": "What was found on one half, and what became of it on the other; confirmed ones first.",
        "slices": "Groups of like images that were proposed, and whether they hold.",
        "classes": "Classes with four images or more, the nearest to the boundary first.",
        "examples": "Prototypes and criticisms of some classes, and of all classes as one (index -1).",
        "boundary": "Which attack gave the smallest distance, and for how many images.",
        "distance_histogram": "Images by distance, right and wrong answers apart.",
        "stability": "How far distances and choices change under another budget and other random starts.",
        "attributes": "Where attributes come from, and how many images they cover.",
        "baseline": "Share of the choice that MMD-critic on features makes too, and what chance would give.",
        "probes": "The standard probes that were run, with their main score.",
        "probe_references": "Values of people and of published models to read probes against.",
    },
)

TRACKS: dict[str, TrackInfo] = {track.name: track for track in (RECTIFIED, ROBUSTNESS, CRITICISM)}
"""All tracks by name."""


def get_track(name: str) -> TrackInfo:
    """The track of this name.

    Raises:
        BeyondError: There is none; the message says which name is near.
    """
    if name not in TRACKS:
        from benchmark.cli import did_you_mean

        raise BeyondError(did_you_mean(name, list(TRACKS), what="track"))
    return TRACKS[name]
