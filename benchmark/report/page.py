"""A scorecard as one HTML file that needs nothing else: no network, no script, no font, no picture.

Each track has a template `track_NAME.html`; a track without one is shown as a plain table of its metrics.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from benchmark.report import agreement, charts, criticism, names, rectified, reproduce, robustness, text
from benchmark.report.examples import Example
from benchmark.scorecard import Metric, Scorecard, Track

if TYPE_CHECKING:
    from benchmark.report.montage import Montage

_FOLDER = Path(__file__).parent
_GENERIC = "track.html"

# Rows shown of the long tables; the scorecard holds them all.
MAX_CLASSES = 15
MAX_CONFUSIONS = 12


def render_page(
    scorecard: Scorecard, *, examples: Sequence[Example] = (), montages: Sequence[Montage] = ()
) -> str:
    """One self-contained HTML page about a scorecard.

    The page depends on the scorecard alone, so the same scorecard always gives the same bytes. All that comes
    from it is escaped.

    Args:
        scorecard: What to show.
        examples: Images beside their adversarials (`benchmark.report.examples`). A page with any holds pixels
            of the images that were scored, and says that it must not be published.
        montages: Prototypes against criticisms (`benchmark.report.montage`); the same holds for these.
    """
    tracks = _track_views(scorecard)
    headline = rectified.headline(scorecard)
    return (
        _environment()
        .get_template("page.html")
        .render(
            scorecard=scorecard,
            model=text.clean(scorecard.model.name),
            css=Markup(page_css()),
            headline=headline,
            change_sentence=rectified.change_sentence(headline.change if headline else None),
            tracks=tracks,
            charts=charts,
            examples=examples,
            montages=montages,
            criticism=criticism,
            lede=None if headline else criticism.lede(scorecard),
            command=reproduce.command(scorecard),
            facts=_facts(scorecard),
        )
    )


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=text.percent, count=text.count, clean=text.clean)
    return environment


def _track_views(scorecard: Scorecard) -> list[dict[str, Any]]:
    """The tracks in reading order, each with its template and what it shows."""
    return [
        {
            "key": name,
            "title": names.TRACK_TITLES.get(name, text.clean(name).replace("_", " ").capitalize()),
            "version": track.version,
            "template": f"track_{name}.html" if name in TRACKS else _GENERIC,
            "view": TRACKS.get(name, _generic_view)(name, track),
            "notes": [text.clean(note) for note in track.notes],
        }
        for name, track in sorted(scorecard.tracks.items(), key=lambda item: _track_position(item[0]))
    ]


@dataclass(frozen=True)
class TrackPart:
    """What a page shows of one track.

    Attributes:
        key: Name in the scorecard.
        title: Its name on screen.
        notes: What a reader must know.
        body: Markup of its sections, styled by `page.css`.
    """

    key: str
    title: str
    notes: list[str]
    body: Markup


def render_tracks(scorecard: Scorecard) -> list[TrackPart]:
    """The tracks of a scorecard as parts of a page, for a page that has a frame of its own."""
    parts = []
    for track in _track_views(scorecard):
        template = _environment().get_template(track["template"])
        body = Markup(
            template.render(
                scorecard=scorecard,
                track=track,
                view=track["view"],
                charts=charts,
                criticism=criticism,
                examples=(),
                montages=(),
            )
        )
        parts.append(TrackPart(track["key"], track["title"], track["notes"], body))
    return parts


def page_css() -> str:
    """The style sheet of a page, which the parts that `render_tracks` gives need too."""
    return (_FOLDER / "page.css").read_text(encoding="utf-8")


def _track_position(name: str) -> tuple[int, str]:
    order = list(names.TRACK_TITLES)
    return (order.index(name) if name in order else len(order), name)


def _facts(scorecard: Scorecard) -> list[tuple[str, str]]:
    """Where the numbers come from, as label and value."""
    model, images = scorecard.model, scorecard.images
    facts = [("Model", model.name), ("Specification", model.spec)]
    if model.parameters is not None:
        facts.append(("Parameters", text.count(model.parameters)))
    if model.weights_sha256:
        facts.append(("Weights, SHA-256", model.weights_sha256))
    facts += [(key.replace("_", " ").capitalize(), value) for key, value in sorted(model.source.items())]
    if model.licence:
        facts.append(("Licence", model.licence))
    for key, value in sorted((model.preprocessing or {}).items()):
        facts.append((f"Preprocessing, {key.replace('_', ' ')}", str(value)))
    facts += [("Images", f"{images.name}: {text.count(images.n)}"), ("Images, SHA-256", images.fingerprint)]
    if images.skipped:
        facts.append(("Images that could not be read", text.count(images.skipped)))
    facts += [
        (f"Judgements, {names.source_name(source).label}", revision)
        for source, revision in sorted(scorecard.annotations.sources.items())
    ]
    facts += [
        (key.replace("_", " ").capitalize(), str(value))
        for key, value in sorted(scorecard.provenance.items())
        if value is not None
    ]
    return [(text.clean(label), text.clean(value)) for label, value in facts]


def _metric_rows(track_name: str, track: Track) -> list[dict[str, Any]]:
    """The metrics in reading order, each with its names, numbers as text, and its group."""
    rows = []
    for key in names.in_reading_order(track_name, track.metrics):
        metric, name = track.metrics[key], names.metric_name(track_name, key)
        rows.append(
            {
                "key": key,
                "metric": metric,
                "label": text.clean(name.label),
                "technical": text.clean(name.technical),
                "description": names.description(track_name, key),
                "group": name.group,
                "value": text.value(metric),
                "unit": text.unit_sign(metric),
                "interval": text.interval(metric),
                "bounds": text.bounds(metric),
                "unjudged": None if metric.judged is None else metric.n - metric.judged,
                "sentence": _sentence(name.label, metric),
            }
        )
    return rows


def _sentence(label: str, metric: Metric) -> str:
    parts = [f"{label}: {text.value(metric)} {text.unit_sign(metric)}".strip()]
    if text.interval(metric):
        parts.append(f"95 % interval {text.interval(metric).replace('–', ' to ')}")
    if text.bounds(metric):
        parts.append(
            f"between {text.bounds(metric).replace('–', ' and ')} however the unjudged answers turn out"
        )
    return ", ".join(parts)


def _metrics_scale(rows: list[dict[str, Any]]) -> charts.Scale | None:
    """An axis around all shares of these rows, with their intervals and bounds; None without any."""
    values = [
        number
        for row in rows
        for number in (
            row["metric"].value,
            row["metric"].ci_low,
            row["metric"].ci_high,
            row["metric"].lower,
            row["metric"].upper,
        )
        if number is not None
    ]
    return charts.Scale.around(values) if values else None


def _generic_view(name: str, track: Track) -> Mapping[str, Any]:
    return {"rows": _metric_rows(name, track)}


def _rectified_view(name: str, track: Track) -> Mapping[str, Any]:
    rows = _metric_rows(name, track)
    # Top-5 answers another question; on the same axis it would only squeeze the rest together.
    charted = [
        row
        for row in rows
        if row["group"] in ("label", "people") and row["metric"].unit == "fraction" and row["key"] != "top5"
    ]
    changes = rectified.error_changes(track)
    mistakes = rectified.mistake_kinds(track)
    gains = rectified.class_gains(track, limit=MAX_CLASSES)
    confusions = rectified.confusions(track, limit=MAX_CONFUSIONS)
    return {
        "charted": charted,
        "charted_scale": _metrics_scale(charted),
        "others": [row for row in rows if row not in charted and row["group"] != "multilabel"],
        "multilabel_metrics": [row for row in rows if row["group"] == "multilabel"],
        "changes": changes,
        "changes_scale": charts.Scale.around(
            [e for c in changes for e in (c.standard, c.rectified)], zero=True
        )
        if changes
        else None,
        "mistakes": mistakes,
        "stack": [(kind.key if kind.key in rectified.MISTAKE_KINDS else "", kind.share) for kind in mistakes],
        "stack_label": "Answers that differ from the single label: "
        + ", ".join(f"{kind.label} {text.percent(kind.share)} %" for kind in mistakes),
        "gains": gains,
        "gains_total": len(track.tables.get("most_rectified_classes", [])),
        "gains_scale": charts.Scale(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0)),
        "confusions": confusions,
        "confusions_total": len(track.tables.get("accepted_confusions", [])),
        "confusions_scale": charts.Scale(0.0, float(max(c.n for c in confusions)), ())
        if confusions
        else None,
        "quality": rectified.label_set_quality(track),
        "sources": rectified.source_coverage(track),
    }


def _robustness_view(name: str, track: Track) -> Mapping[str, Any]:
    # What people answered has a section of its own.
    rows = [row for row in _metric_rows(name, track) if not row["key"].startswith("agreement_")]
    charted = [row for row in rows if row["group"] in ("label", "people")]
    points = robustness.curve(track)
    asked = agreement.agreement(track)
    lines: list[tuple[str, list[charts.CurvePoint]]] = []
    same = [p for p in points if p.rectified and p.same_original and p.same_clean is not None]
    if same:
        # Both lines on the same images: those whose label people keep.
        start = charts.CurvePoint(0, same[0].same_clean or 0.0)
        lines.append(
            ("single", [start, *(_curve_point(p, p.same_original) for p in same if p.same_original)])
        )
        lines.append(("people", [start, *(_curve_point(p, p.rectified) for p in same if p.rectified)]))
    elif points:
        start = charts.CurvePoint(0, points[0].clean)
        lines.append(("single", [start, *(_curve_point(p, p.original) for p in points)]))
    bins = robustness.distance_bins(track)
    return {
        "quoted": robustness.quoted(track),
        "charted": charted,
        "charted_scale": _metrics_scale(charted),
        "changes": [row for row in rows if row not in charted],
        "radii": robustness.radii(track),
        "lines": lines,
        "ticks": [(0.0, "0"), *((p.epsilon, p.short) for p in points)],
        "curve_label": "Robust accuracy by radius: "
        + "; ".join(
            f"{p.text}, {text.percent(p.original.value)} % by the single label"
            + (f", {text.percent(p.rectified.value)} % by what people accept" if p.rectified else "")
            for p in points
        ),
        "steps": robustness.attack_steps(track),
        "steps_scale": charts.Scale(0.0, 1.0, ()),
        "verdicts": robustness.verdict_counts(track),
        "accepted": robustness.accepted_predictions(track, limit=MAX_CONFUSIONS),
        "accepted_total": len(track.tables.get("adversarial_predictions", [])),
        "bins": bins,
        "bins_of": robustness.distances_of(track),
        "quartiles": robustness.quartiles(track),
        "bins_scale": charts.Scale(0.0, float(max(1, *(max(b.original, b.rectified) for b in bins))), ())
        if bins
        else None,
        "groups": robustness.label_groups(track),
        "warnings": robustness.warnings(track),
        "asked": asked,
        "asked_scale": charts.Scale(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0)),
        "gain_scale": _difference_scale([e for g in asked.gains for e in g.interval]) if asked else None,
        "not_rated": agreement.NOT_RATED,
        "made_up": agreement.MADE_UP,
    }


def _curve_point(row: robustness.Radius, share: robustness.Share) -> charts.CurvePoint:
    return charts.CurvePoint(row.epsilon, share.value, share.ci_low, share.ci_high)


def _criticism_view(name: str, track: Track) -> Mapping[str, Any]:
    found = criticism.findings(track)
    confirmed, failed = [f for f in found if f.confirmed], [f for f in found if not f.confirmed]
    groups = criticism.slices(track)
    held = [s for s in groups if s.confirmed]
    bins = criticism.distance_bins(track)
    median = track.metrics.get("median_distance")
    return {
        "rows": _metric_rows(name, track),
        "searched": "confirmed_biases" in track.metrics,
        "confirmed": confirmed,
        "failed": failed,
        "verdict": criticism.verdict(track),
        "finding_scale": _difference_scale([v for f in found for v in (f.ci_low, f.ci_high)]),
        "slices": groups,
        "slices_held": held,
        "slice_scale": _difference_scale([v for s in held for v in (s.ci_low, s.ci_high)]),
        "examples": criticism.examples(track),
        "probes": [_probe_view(probe) for probe in criticism.probes(track)],
        "bins": bins,
        "bins_scale": charts.Scale(0.0, float(max(1, *(max(b.right, b.wrong) for b in bins))), ())
        if bins
        else None,
        "median": {"value": text.value(median), "interval": text.interval(median)} if median else None,
        "classes": criticism.classes(track, limit=MAX_CLASSES),
        "firmness": criticism.firmness(track),
        "overlaps": criticism.overlaps(track),
    }


def _difference_scale(values: Sequence[float]) -> charts.Scale | None:
    """An axis for differences: 0 and the full range on the sides that are needed, with few ticks."""
    if not values:
        return None
    low, high = min(0.0, *values), max(0.0, *values)
    step = 0.5 if max(-low, high) > 0.5 else 0.25 if max(-low, high) > 0.2 else 0.1
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(i * step for i in range(first, max(last, first + 1) + 1))
    return charts.Scale(ticks[0], ticks[-1], ticks)


def _probe_view(probe: criticism.Probe) -> dict[str, Any]:
    metric = probe.metric
    others = [(reference.number, reference.who) for reference in probe.references]
    scale = None
    if metric is not None and metric.unit == "fraction":
        ends = [metric.value, metric.ci_low, metric.ci_high, *(value for value, _ in others)]
        scale = charts.Scale.around([end for end in ends if end is not None], zero=True)
    label = f"{probe.label}: {probe.value}" + "".join(f"; {r.who} {r.value}" for r in probe.references)
    return {"probe": probe, "scale": scale, "others": others, "label": label}


# Track name to the function that prepares what its template `track_NAME.html` shows.
TRACKS: dict[str, Callable[[str, Track], Mapping[str, Any]]] = {
    "rectified": _rectified_view,
    "robustness": _robustness_view,
    "criticism": _criticism_view,
}
