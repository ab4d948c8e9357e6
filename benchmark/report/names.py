"""What metrics and sources are called on screen, and in which order they are read.

The only place that holds these plain names; what a metric means stands in the registry, `benchmark.tracks`. A
track that adds a metric adds a line here; one without a line is shown under its own name, so that nothing is
ever hidden.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from annotations.errors import BeyondError
from benchmark.tracks import TRACKS

Group = Literal["label", "people", "change", "multilabel", "bias", "probe", "other"]


@dataclass(frozen=True)
class MetricName:
    """How one metric is shown.

    Attributes:
        label: Plain words, at most 29 characters so that a terminal row fits 80 columns.
        technical: The field's name for it, at most 16 characters.
        group: What it is about: the single label, people's judgement, the change between the two, or the
            whole label set.
    """

    label: str
    technical: str
    group: Group = "other"


GROUP_TITLES: dict[Group, str] = {
    "label": "Against the single label",
    "people": "Against what people accept",
    "change": "The difference",
    "multilabel": "Against whole label sets",
    "bias": "What goes with being unsure",
    "probe": "Standard probes",
    "other": "Other",
}

# In reading order.
METRICS: dict[str, dict[str, MetricName]] = {
    "rectified": {
        "top1": MetricName("Matches the single label", "top-1", "label"),
        "top1_evaluable": MetricName("Same, on the images of ReaL", "top-1, evaluable", "label"),
        "top5": MetricName("Label among its five best", "top-5", "label"),
        "real_accuracy": MetricName("People accept its answer", "ReaL accuracy", "people"),
        "consolidated_accuracy": MetricName("Accepted, all sources merged", "consolidated", "people"),
        "mla": MetricName("Experts accept it, class mean", "MLA", "people"),
        "mla_plain": MetricName("Experts accept it, image mean", "MLA, plain", "people"),
        "mla_ppi": MetricName("Same, with all images' labels", "MLA, PPI++", "people"),
        "rectified_error_reduction": MetricName("Fewer errors than it seems", "error reduction", "change"),
        "precision_at_k": MetricName("Of its k best, accepted", "precision at k", "multilabel"),
        "recall_at_k": MetricName("Of the accepted, found", "recall at k", "multilabel"),
        "mean_average_precision": MetricName("Accepted classes come first", "mAP", "multilabel"),
    },
    "robustness": {
        "clean_accuracy": MetricName("Right before any attack", "clean accuracy", "label"),
        "robust_accuracy_original": MetricName("Never leaves the single label", "robust, original", "label"),
        "robust_accuracy_rectified": MetricName("Never leaves what they accept", "robust, people", "people"),
        "adversarial_acceptance": MetricName("Its attacked answer, accepted", "acceptance", "people"),
        "agreement_none": MetricName("People agree, no explanation", "agreement", "people"),
        "agreement_feature": MetricName("Others, shown a heat map", "agreement, map", "people"),
        "agreement_example": MetricName("Others, shown examples", "agreement, ex.", "people"),
        "agreement_gain_feature": MetricName("Agreement a heat map adds", "gain, heat map", "change"),
        "agreement_gain_example": MetricName("Agreement examples add", "gain, examples", "change"),
        "hidden_robustness": MetricName("Robustness the label hides", "hidden", "change"),
        "median_distance_original": MetricName("Change that flips it, median", "median distance"),
        "median_distance_rectified": MetricName("Same, off what people accept", "same, people"),
    },
    "criticism": {
        "confirmed_biases": MetricName("Biases that hold", "biases", "bias"),
        "confirmed_slices": MetricName("Groups that hold", "slices", "bias"),
        "median_distance": MetricName("Way to the boundary, median", "L2 distance", "bias"),
        "shape_bias": MetricName("Decides by shape", "shape bias", "probe"),
        "cue_accuracy": MetricName("Names shape or texture", "cue accuracy", "probe"),
        "human_error_consistency": MetricName("Errs where people err", "error kappa", "probe"),
        "watermark_drop": MetricName("Accuracy a watermark costs", "watermark drop", "probe"),
        "watermark_carton_shift": MetricName("Watermarked, called carton", "carton shift", "probe"),
        "watermark_changed": MetricName("Answers a watermark changes", "changed", "probe"),
        "worst_factor_error_ratio": MetricName("Error on the worst kind", "factor ratio", "probe"),
        "co_occurrence_gap": MetricName("Better with the usual company", "company gap", "probe"),
        "co_occurrence_distance_gap": MetricName("Same, in distance", "distance gap", "probe"),
    },
}

TRACK_TITLES = {"rectified": "Rectified accuracy", "robustness": "Robustness", "criticism": "Model criticism"}


@dataclass(frozen=True)
class SourceName:
    """How a source of judgements is shown: its name, who judged (a sentence's subject), and one line."""

    label: str
    judges: str = "People"
    about: str = ""


SOURCES: dict[str, SourceName] = {
    "real": SourceName("ReaL", "People", "reassessed labels, from votes of several raters"),
    "mla": SourceName("MLA", "Experts", "multi-label sets by experts"),
    "consolidated": SourceName("All merged", "People", "every source together, experts before votes"),
    "label-errors": SourceName("Label errors", "People", "five votes each on suspected label errors"),
    "sample": SourceName(
        "Sample", "The maintainers", "the maintainers' illustrative judgements, no human study"
    ),
}


def source_name(source: str) -> SourceName:
    """How a source is shown; an unknown one keeps its own name."""
    return SOURCES.get(source, SourceName(source))


def metric_name(track: str, name: str) -> MetricName:
    """How a metric is shown; one that is not listed gets a name made from its own.

    Example:
        >>> metric_name("rectified", "sample_accuracy").label
        'Accepted, source Sample'
        >>> metric_name("new", "some_thing").label
        'Some thing'
    """
    known = METRICS.get(track, {}).get(name)
    if known is not None:
        return known
    words = name.replace("_", " ").strip()
    if track == "rectified" and name.endswith("_accuracy"):
        source = source_name(name.removesuffix("_accuracy"))
        return MetricName(f"Accepted, source {source.label}", words, "people")
    return MetricName(words[:1].upper() + words[1:], words)


def description(track: str, name: str) -> str:
    """What a metric means, in one sentence from the registry of tracks; empty if the registry lacks it."""
    info = TRACKS.get(track)
    try:
        return info.metric(name).description if info else ""
    except BeyondError:
        return ""


def in_reading_order(track: str, names: Iterable[str]) -> list[str]:
    """Metric names in the order they are read: by group, the listed ones first, the rest by name."""
    order = {name: position for position, name in enumerate(METRICS.get(track, {}))}
    groups = list(GROUP_TITLES)
    return sorted(
        names,
        key=lambda name: (groups.index(metric_name(track, name).group), order.get(name, len(order)), name),
    )
