"""What the robustness track's tables say, as typed rows to be shown. What cannot be read is left out."""

from __future__ import annotations

from dataclasses import dataclass

from benchmark.radii import epsilon_text, radius_text
from benchmark.report import names
from benchmark.report.text import number_cell, text_cell
from benchmark.scorecard import Cell, Track


@dataclass(frozen=True)
class Share:
    """A share in [0, 1] of n images, with the ends of its interval and of its bounds where there are such."""

    value: float
    n: int
    ci_low: float | None = None
    ci_high: float | None = None
    lower: float | None = None
    upper: float | None = None


@dataclass(frozen=True)
class Radius:
    """Robust accuracy at one radius.

    Attributes:
        threat: `linf` or `l2`.
        epsilon: The radius.
        text: Threat and radius on screen.
        short: The radius alone on screen.
        suite: Name of the suite.
        note: What it may be called.
        seed: Seed of the attacks, None where it is not known.
        quoted: Whether the metrics are those of this row.
        clean: Clean accuracy, all attacked images.
        original: Robust accuracy by the original label, all attacked images.
        same_clean: Clean accuracy on the images that `rectified` is of.
        same_original: Robust accuracy by the original label on those images.
        rectified: Robust accuracy by people's labels.
        hidden: The difference between the last two.
    """

    threat: str
    epsilon: float
    text: str
    short: str
    suite: str
    note: str
    seed: int | None
    quoted: bool
    clean: float
    original: Share
    same_clean: float | None
    same_original: Share | None
    rectified: Share | None
    hidden: Share | None


def radii(track: Track) -> list[Radius]:
    """Rows of `by_epsilon`, in its order: by threat, radius and suite."""
    found = []
    for row in track.tables.get("by_epsilon", []):
        epsilon, clean, original = (number_cell(row, key) for key in ("epsilon", "clean", "original"))
        if epsilon is None or clean is None or original is None:
            continue
        threat, seed = text_cell(row, "threat"), number_cell(row, "seed")
        found.append(
            Radius(
                threat=threat,
                epsilon=epsilon,
                text=radius_text(threat, epsilon),
                short=epsilon_text(threat, epsilon),
                suite=text_cell(row, "suite"),
                note=text_cell(row, "note"),
                seed=None if seed is None else int(seed),
                quoted=row.get("quoted") is True,
                clean=clean,
                original=_share(row, "original", "n_original", original),
                same_clean=number_cell(row, "clean_same_images"),
                same_original=_maybe(row, "original_same_images", "n_rectified"),
                rectified=_maybe(row, "rectified", "n_rectified"),
                hidden=_maybe(row, "hidden", "n_rectified"),
            )
        )
    return found


def _share(row: dict[str, Cell], key: str, n: str, value: float) -> Share:
    ends = (number_cell(row, f"{key}_{end}") for end in ("ci_low", "ci_high", "lower", "upper"))
    return Share(value, int(number_cell(row, n) or 0), *ends)


def _maybe(row: dict[str, Cell], key: str, n: str) -> Share | None:
    value = number_cell(row, key)
    return None if value is None else _share(row, key, n, value)


def quoted(track: Track) -> Radius | None:
    """The radius that the metrics are of."""
    return next((row for row in radii(track) if row.quoted), None)


def curve(track: Track) -> list[Radius]:
    """The rows of the quoted threat and suite, by radius: what a curve is drawn from."""
    head = quoted(track)
    if head is None:
        return []
    return [row for row in radii(track) if (row.threat, row.suite) == (head.threat, head.suite)]


@dataclass(frozen=True)
class AttackStep:
    """One attack of the quoted evaluation: images left before it, and images it broke."""

    attack: str
    before: int
    broke: int


def attack_steps(track: Track, objective: str = "original") -> list[AttackStep]:
    """What each attack did, in order."""
    head = quoted(track)
    steps = []
    for row in track.tables.get("attacks", []):
        if head is None or (row.get("threat"), row.get("epsilon")) != (head.threat, head.epsilon):
            continue
        before, broke = number_cell(row, "before"), number_cell(row, "broke")
        if (
            row.get("suite") == head.suite
            and row.get("objective") == objective
            and before
            and broke is not None
        ):
            steps.append(AttackStep(text_cell(row, "attack"), int(before), int(broke)))
    return steps


@dataclass(frozen=True)
class AcceptedPrediction:
    """An adversarial prediction that people accept.

    Attributes:
        image_id: Id of the image.
        original: Name of the original class.
        predicted: Name of the class predicted.
        distance: Size of the perturbation, as text in the threat's unit.
        note: What to know of it, or empty.
    """

    image_id: str
    original: str
    predicted: str
    distance: str
    note: str = ""


def accepted_predictions(track: Track, *, limit: int) -> list[AcceptedPrediction]:
    """The first rows of `adversarial_predictions`."""
    head = quoted(track)
    found = []
    for row in track.tables.get("adversarial_predictions", [])[:limit]:
        distance = number_cell(row, "distance")
        found.append(
            AcceptedPrediction(
                text_cell(row, "image_id"),
                text_cell(row, "original"),
                text_cell(row, "predicted"),
                "" if distance is None or head is None else distance_text(head.threat, distance),
                "" if row.get("label_kept") is not False else "they do not keep the label",
            )
        )
    return found


def distance_text(threat: str, distance: float) -> str:
    """A distance for people: in 255ths for L∞.

    Example:
        >>> distance_text("linf", 0.0117), distance_text("l2", 0.4567)
        ('2.98/255', '0.457')
    """
    return f"{255 * distance:.3g}/255" if threat == "linf" else f"{distance:.3g}"


@dataclass(frozen=True)
class DistanceBin:
    """For how many images the smallest perturbation found lies within this range, under both objectives."""

    text: str
    original: int
    rectified: int


def distance_bins(track: Track) -> list[DistanceBin]:
    """The histogram of the smallest perturbation found."""
    bins: dict[tuple[float, float | None], dict[str, int]] = {}
    threat = ""
    for row in track.tables.get("distances", []):
        low, high, n = (number_cell(row, key) for key in ("low", "high", "n"))
        if low is None or n is None:
            continue
        threat = text_cell(row, "threat")
        bins.setdefault((low, high), {})[text_cell(row, "objective")] = int(n)
    found = []
    for (low, high), counts in bins.items():
        scale, unit = (255, "/255") if threat == "linf" else (1, "")
        ends = (
            f"over {scale * low:.3g}{unit}" if high is None else f"{scale * low:.3g}–{scale * high:.3g}{unit}"
        )
        found.append(DistanceBin(ends, counts.get("original", 0), counts.get("rectified", 0)))
    return found


def distances_of(track: Track) -> str:
    """What the histogram is of, for people: the suite minimal, or attacks with a radius."""
    rows = track.tables.get("distances", [])
    if rows and rows[0].get("suite") == "minimal":
        return "the smallest perturbation found for each image that was right before any attack"
    return "the smallest perturbation found for each broken image, over all radii that were run"


@dataclass(frozen=True)
class Quartiles:
    """Quartiles of the smallest perturbation found, as text in the threat's unit; empty where most have none.

    Attributes:
        threat: Threat on screen.
        objective: `original` or `rectified`.
        images: Which images.
        n: How many.
        found: For how many of them one was found.
        lower: Lower quartile.
        median: Median.
        interval: Its 95 % interval.
        upper: Upper quartile.
    """

    threat: str
    objective: str
    images: str
    n: int
    found: int
    lower: str
    median: str
    interval: str
    upper: str


def quartiles(track: Track) -> list[Quartiles]:
    """Rows of `minimal`."""
    found = []
    for row in track.tables.get("minimal", []):
        threat = text_cell(row, "threat")
        n, hits = number_cell(row, "n"), number_cell(row, "found")
        if n is None or hits is None:
            continue

        def text(key: str, row: dict[str, Cell] = row, threat: str = threat) -> str:
            value = number_cell(row, key)
            return "" if value is None else distance_text(threat, value)

        low, high = text("median_ci_low"), text("median_ci_high")
        found.append(
            Quartiles(
                radius_text(threat, 0),
                text_cell(row, "objective"),
                text_cell(row, "images"),
                int(n),
                int(hits),
                text("lower_quartile"),
                text("median"),
                f"{low}–{high}" if low and high else f"from {low}" if low else "",
                text("upper_quartile"),
            )
        )
    return found


@dataclass(frozen=True)
class Warned:
    """A reason to read robust accuracy with care."""

    where: str
    message: str


def warnings(track: Track) -> list[Warned]:
    """Rows of `warnings`, each message once, with where it was seen."""
    seen: dict[str, list[str]] = {}
    for row in track.tables.get("warnings", []):
        epsilon = number_cell(row, "epsilon")
        where = "" if epsilon is None else radius_text(text_cell(row, "threat"), epsilon)  # 0: no radius
        seen.setdefault(text_cell(row, "message"), []).append(f"{where}, {text_cell(row, 'suite')}")
    return [Warned("; ".join(where), message) for message, where in seen.items()]


@dataclass(frozen=True)
class LabelGroup:
    """The figures of the images whose original label people keep, do not keep, or did not judge."""

    label: str
    n: int
    clean: float
    original: float
    rectified: float | None


_GROUPS = {
    "kept": "People keep the label",
    "not kept": "People do not keep the label",
    "not judged": "Nobody judged, or none accepted",
}


def label_groups(track: Track) -> list[LabelGroup]:
    """Rows of `label_groups`; none if there is but one group, which says nothing new."""
    found = []
    for row in track.tables.get("label_groups", []):
        n, clean, original = (number_cell(row, key) for key in ("n", "clean", "original"))
        if n is None or clean is None or original is None:
            continue
        name = text_cell(row, "original_label")
        found.append(
            LabelGroup(_GROUPS.get(name, name), int(n), clean, original, number_cell(row, "rectified"))
        )
    return found if len(found) > 1 else []


@dataclass(frozen=True)
class VerdictCounts:
    """What one source says of the adversarial predictions of the quoted evaluation."""

    source: str
    n: int
    accepted: int
    unsure: int
    rejected: int
    unjudged: int


def verdict_counts(track: Track) -> list[VerdictCounts]:
    """Rows of `adversarial_verdicts` of the quoted evaluation."""
    head = quoted(track)
    found = []
    for row in track.tables.get("adversarial_verdicts", []):
        if head is None or (row.get("threat"), row.get("epsilon"), row.get("suite")) != (
            head.threat,
            head.epsilon,
            head.suite,
        ):
            continue
        counts = [int(number_cell(row, k) or 0) for k in ("n", "accepted", "unsure", "rejected", "unjudged")]
        if counts[0]:
            found.append(VerdictCounts(names.source_name(text_cell(row, "source")).label, *counts))
    return found
