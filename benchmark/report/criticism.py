"""What the criticism track's tables say, as typed rows to be shown. What cannot be read is left out."""

from __future__ import annotations

from dataclasses import dataclass

from benchmark.report import names, text
from benchmark.report.text import number_cell, text_cell
from benchmark.scorecard import Cell, Metric, Scorecard, Track

ALL = -1


@dataclass(frozen=True)
class Finding:
    """An attribute that tells criticisms from prototypes.

    Attributes:
        subject: Name of the class, or all classes.
        says: Attribute and value.
        source: Where the attribute comes from.
        confirmed: It holds on both halves.
        difference: Risk difference on the confirmation half, in [−1, 1].
        ci_low: Lower end of its 95 % interval.
        ci_high: Upper end.
        criticisms: Criticisms with the attribute, and how many there are, on that half.
        prototypes: The same of prototypes.
        base: The same of all images.
        p: Adjusted p value on that half.
        discovery: Risk difference on the other half, None if unknown.
        n_discovery: Criticisms and prototypes there.
        person: It is about people.
    """

    subject: str
    says: str
    source: str
    confirmed: bool
    difference: float
    ci_low: float
    ci_high: float
    criticisms: tuple[int, int]
    prototypes: tuple[int, int]
    base: tuple[int, int]
    p: float
    discovery: float | None
    n_discovery: tuple[int, int]
    person: bool

    @property
    def sentence(self) -> str:
        """The finding in words."""
        more = "more" if self.difference >= 0 else "less"
        return (
            f"{self.subject}, {self.says}: {_share(self.criticisms)} of criticisms, "
            f"{_share(self.prototypes)} of prototypes; {points(abs(self.difference))} points {more} often, "
            f"95 % interval {points(self.ci_low)} to {points(self.ci_high)}"
        )


def _share(pair: tuple[int, int]) -> str:
    return f"{text.percent(pair[0] / pair[1])} %" if pair[1] else "none"


def share(pair: tuple[int, int]) -> str:
    """A count of a total as percent with both numbers."""
    return f"{text.percent(pair[0] / pair[1], 0)} %" if pair[1] else ""


def points(value: float) -> str:
    """A difference of shares in percentage points, with a real minus.

    Example:
        >>> points(0.512), points(-0.08)
        ('51', '−8')
    """
    return f"{100 * value:.0f}".replace("-0", "0").replace("-", "−")


def p_text(p: float) -> str:
    """A p value for people.

    Example:
        >>> p_text(0.0312), p_text(1e-9)
        ('0.031', '<0.001')
    """
    return "<0.001" if p < 0.001 else f"{p:.2g}"


def findings(track: Track) -> list[Finding]:
    """Rows of `findings`, in their order: confirmed ones first, by size."""
    found = []
    for row in track.tables.get("findings", []):
        difference, low, high, p = (
            number_cell(row, key) for key in ("difference", "ci_low", "ci_high", "p_adjusted")
        )
        if difference is None or low is None or high is None:
            continue
        found.append(
            Finding(
                subject=text_cell(row, "subject"),
                says=text_cell(row, "says"),
                source=text_cell(row, "source"),
                confirmed=row.get("confirmed") is True,
                difference=difference,
                ci_low=low,
                ci_high=high,
                criticisms=_pair(row, "criticisms"),
                prototypes=_pair(row, "prototypes"),
                base=_pair(row, "base"),
                p=1.0 if p is None else p,
                discovery=number_cell(row, "discovery_difference"),
                n_discovery=(
                    int(number_cell(row, "discovery_n_criticisms") or 0),
                    int(number_cell(row, "discovery_n_prototypes") or 0),
                ),
                person=row.get("about_people") is True,
            )
        )
    return found


def _pair(row: dict[str, Cell], key: str) -> tuple[int, int]:
    return int(number_cell(row, key) or 0), int(number_cell(row, f"n_{key}") or 0)


def verdict(track: Track) -> str:
    """What to say where nothing was confirmed."""
    row = next(iter(track.tables.get("search", [])), {})
    tested, found, n, again = (
        int(number_cell(row, key) or 0) for key in ("tested", "found", "n_discovery", "n_confirmation")
    )
    if not tested:
        return "Nothing could be tested: there are too few images, or no attribute that varies among them."
    tests = "1 test" if tested == 1 else f"{text.count(tested)} tests"
    if not found:
        return f"Nothing stood out in {tests} on {text.count(n)} images."
    what = "One candidate" if found == 1 else f"{text.count(found)} candidates"
    return f"{what} of {tests} on {text.count(n)} images did not hold on {text.count(again)} others."


@dataclass(frozen=True)
class Slice:
    """A proposed group of images.

    Attributes:
        number: Its number.
        confirmed: It holds.
        n: Images, both halves.
        classes: Its most frequent classes.
        n_classes: How many classes it has.
        shared: What its images share, or empty.
        typical: Ids of its most typical images.
        excess: Error beyond that of equally confident images, in [−1, 1].
        ci_low: Lower end of its 95 % interval.
        ci_high: Upper end.
        wrong: Wrong answers of the slice, and its images, on the confirmation half.
        elsewhere: The same of all others.
        p: Adjusted p value.
    """

    number: int
    confirmed: bool
    n: int
    classes: str
    n_classes: int
    shared: str
    typical: tuple[str, ...]
    excess: float
    ci_low: float
    ci_high: float
    wrong: tuple[int, int]
    elsewhere: tuple[int, int]
    p: float

    @property
    def name(self) -> str:
        """What it is called: its classes, and what its images share."""
        more = self.n_classes - len(self.classes.split(", "))
        classes = self.classes + (f" and {more} more" if more > 0 else "")
        return f"{classes} ({self.shared})" if self.shared else classes


def slices(track: Track) -> list[Slice]:
    """Rows of `slices`."""
    found = []
    for row in track.tables.get("slices", []):
        excess, low, high, p = (
            number_cell(row, key) for key in ("excess", "ci_low", "ci_high", "p_adjusted")
        )
        if excess is None or low is None or high is None:
            continue
        found.append(
            Slice(
                number=int(number_cell(row, "slice") or 0),
                confirmed=row.get("confirmed") is True,
                n=int(number_cell(row, "n") or 0),
                classes=text_cell(row, "classes"),
                n_classes=int(number_cell(row, "n_classes") or 0),
                shared=text_cell(row, "shared"),
                typical=tuple(text_cell(row, "typical").split()),
                excess=excess,
                ci_low=low,
                ci_high=high,
                wrong=(int(number_cell(row, "wrong") or 0), int(number_cell(row, "n_slice") or 0)),
                elsewhere=(
                    int(number_cell(row, "wrong_elsewhere") or 0),
                    int(number_cell(row, "n_elsewhere") or 0),
                ),
                p=1.0 if p is None else p,
            )
        )
    return found


@dataclass(frozen=True)
class ClassRow:
    """One class: images, right answers, median distance, and how far MMD-critic chooses alike."""

    name: str
    n: int
    right: int
    distance: float | None
    overlap: float | None


def classes(track: Track, *, limit: int) -> list[ClassRow]:
    """The first rows of `classes`."""
    found = []
    for row in track.tables.get("classes", [])[:limit]:
        n, right = number_cell(row, "n"), number_cell(row, "right")
        if n and right is not None:
            found.append(
                ClassRow(
                    text_cell(row, "name"),
                    int(n),
                    int(right),
                    number_cell(row, "median_distance"),
                    number_cell(row, "mmd_overlap"),
                )
            )
    return found


@dataclass(frozen=True)
class Example:
    """One prototype or criticism."""

    image_id: str
    predicted: str
    label: str
    correct: bool
    distance: str
    neighbour: str


@dataclass(frozen=True)
class ExampleClass:
    """Prototypes and criticisms of a class, the most telling first."""

    subject: str
    prototypes: tuple[Example, ...]
    criticisms: tuple[Example, ...]


def examples(track: Track) -> list[ExampleClass]:
    """Rows of `examples`, by class; all classes as one come last."""
    found: dict[tuple[int, str], dict[str, list[Example]]] = {}
    for row in track.tables.get("examples", []):
        index, distance = number_cell(row, "class_index"), number_cell(row, "distance")
        if index is None:
            continue
        roles = found.setdefault((int(index), text_cell(row, "subject")), {})
        roles.setdefault(text_cell(row, "role"), []).append(
            Example(
                text_cell(row, "image_id"),
                text_cell(row, "predicted"),
                text_cell(row, "label"),
                row.get("correct") is True,
                distance_text(distance),
                text_cell(row, "neighbour"),
            )
        )
    ordered = sorted(found.items(), key=lambda item: item[0][0] == ALL)
    return [
        ExampleClass(subject, tuple(roles.get("prototype", ())), tuple(roles.get("criticism", ())))
        for (_, subject), roles in ordered
    ]


def distance_text(distance: float | None) -> str:
    """A distance for people; none was found where it is None."""
    return "none found" if distance is None else f"{distance:.2g}"


@dataclass(frozen=True)
class Bin:
    """Images whose distance lies in a range, right and wrong answers apart."""

    text: str
    right: int
    wrong: int


def distance_bins(track: Track) -> list[Bin]:
    """Rows of `distance_histogram`."""
    found = []
    for row in track.tables.get("distance_histogram", []):
        low, high = number_cell(row, "low"), number_cell(row, "high")
        if low is not None and high is not None:
            right, wrong = (int(number_cell(row, key) or 0) for key in ("right", "wrong"))
            found.append(Bin(f"{low:.2g}–{high:.2g}", right, wrong))
    return found


@dataclass(frozen=True)
class Firmness:
    """How far distances and choices change when something else does."""

    changed: str
    n: int
    correlation: float | None
    interval: str
    ratio: float | None
    prototypes: float | None
    criticisms: float | None


def firmness(track: Track) -> list[Firmness]:
    """Rows of `stability`."""
    found = []
    for row in track.tables.get("stability", []):
        low, high = number_cell(row, "ci_low"), number_cell(row, "ci_high")
        found.append(
            Firmness(
                text_cell(row, "changed"),
                int(number_cell(row, "n") or 0),
                number_cell(row, "rank_correlation"),
                "" if low is None or high is None else f"{low:.2f} to {high:.2f}".replace("-", "−"),
                number_cell(row, "distance_ratio"),
                number_cell(row, "prototypes_jaccard"),
                number_cell(row, "criticisms_jaccard"),
            )
        )
    return found


@dataclass(frozen=True)
class Overlap:
    """Share of the choice that MMD-critic makes too, and what chance would give."""

    role: str
    n: int
    same: float
    by_chance: float


def overlaps(track: Track) -> list[Overlap]:
    """Rows of `baseline`."""
    found = []
    for row in track.tables.get("baseline", []):
        same, chance = number_cell(row, "same"), number_cell(row, "by_chance")
        if same is not None and chance is not None:
            found.append(Overlap(text_cell(row, "role"), int(number_cell(row, "n") or 0), same, chance))
    return found


@dataclass(frozen=True)
class Reference:
    """A value to read a probe against."""

    who: str
    value: str
    number: float
    source: str


@dataclass(frozen=True)
class Probe:
    """A standard probe that was run.

    Attributes:
        name: Its name.
        question: What it asks.
        label: Plain name of its main score.
        metric: The main score, or None where the data cannot give it.
        references: Values of people and of published models for the main score.
        data: What it ran on, and under which licence.
    """

    name: str
    question: str
    label: str
    metric: Metric | None
    references: tuple[Reference, ...]
    data: str

    @property
    def value(self) -> str:
        """The main score as text."""
        if self.metric is None:
            return ""
        return f"{text.value(self.metric)} {text.unit_sign(self.metric)}".strip()

    @property
    def interval(self) -> str:
        """Its interval as text."""
        return "" if self.metric is None else text.interval(self.metric)


def probes(track: Track) -> list[Probe]:
    """Rows of `probes` with their references."""
    found = []
    for row in track.tables.get("probes", []):
        name, score = text_cell(row, "probe"), text_cell(row, "main_score")
        metric = track.metrics.get(score)
        references = []
        for other in track.tables.get("probe_references", []):
            value = number_cell(other, "value")
            if other.get("probe") != row.get("probe") or other.get("metric") != score or value is None:
                continue
            like = Metric(
                value=value,
                n=metric.n if metric else 0,
                method="",
                unit=metric.unit if metric else "fraction",
            )
            words = f"{text.value(like)} {text.unit_sign(like)}".strip()
            references.append(Reference(text_cell(other, "who"), words, value, text_cell(other, "source")))
        found.append(
            Probe(
                name,
                text_cell(row, "question"),
                names.metric_name("criticism", score).label,
                metric,
                tuple(references),
                f"{text_cell(row, 'data')}; {text_cell(row, 'licence')}",
            )
        )
    return found


def lede(scorecard: Scorecard) -> tuple[str, str, bool] | None:
    """What a page about this track alone says first.

    Returns:
        A number with its noun, the rest of the sentence, and whether there is something to look at.
    """
    track = scorecard.tracks.get("criticism")
    metric = track.metrics.get("confirmed_biases") if track else None
    if track is None or metric is None:
        return None
    n = int(metric.value)
    if n:
        noun = "1 bias" if n == 1 else f"{text.count(n)} biases"
        holds = "holds" if n == 1 else "hold"
        return noun, f"{holds} on images that had no part in finding {'it' if n == 1 else 'them'}.", True
    return "No bias", f"could be confirmed on these {text.count(metric.n)} images.", False
