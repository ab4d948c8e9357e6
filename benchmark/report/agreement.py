"""What the robustness track says of a study, as typed rows to be shown. What cannot be read is left out."""

from __future__ import annotations

from dataclasses import dataclass

from benchmark.agreement import is_made_up
from benchmark.report.study import ARM_NAMES, MEASURE_NAMES, points
from benchmark.report.text import count, number_cell, percent, text_cell
from benchmark.scorecard import Cell, Track

NOT_RATED = "Not yet rated: nobody has been asked whether they agree with its attacked answers."
MADE_UP = "A program did, for a test: nothing of it may be published."


@dataclass(frozen=True)
class Rated:
    """One measure in one arm: shares in [0, 1], the rest as text."""

    measure: str
    arm: str
    value: float
    interval: tuple[float, float] | None
    raters: int
    images: int
    answers: int

    @property
    def text(self) -> str:
        """The share in percent."""
        return f"{percent(self.value)} %"

    @property
    def ends(self) -> str:
        """Its interval in percent, empty if it has none."""
        return "" if self.interval is None else "–".join(percent(end) for end in self.interval)

    @property
    def sentence(self) -> str:
        """For a screen reader."""
        ends = "" if self.interval is None else f", 95 % interval {self.ends.replace('–', ' to ')}"
        raters = f"{count(self.raters)} rater{'' if self.raters == 1 else 's'}"
        return f"{self.measure}, {self.arm}: {self.text}{ends}, {raters}"


@dataclass(frozen=True)
class Gained:
    """A measure in one arm less that in another, in points."""

    measure: str
    what: str
    value: float
    interval: tuple[float, float]
    p_holm: float | None

    @property
    def text(self) -> str:
        """The difference in points."""
        return points(self.value)

    @property
    def ends(self) -> str:
        """Its interval in points."""
        return f"{points(self.interval[0])} to {points(self.interval[1])}"

    @property
    def sentence(self) -> str:
        """For a screen reader."""
        return f"{self.measure}, {self.what}: {self.text} points, 95 % interval {self.ends}"


@dataclass(frozen=True)
class Agreement:
    """A study of the adversarial predictions.

    Attributes:
        rated: Every measure in every arm.
        gained: Every difference between arms.
        made_up: Whether a program answered, for a test.
        preregistered: Whether the plan was written before anybody answered.
    """

    rated: list[Rated]
    gained: list[Gained]
    made_up: bool
    preregistered: bool

    @property
    def agreement(self) -> list[Rated]:
        """Agreement alone."""
        return [row for row in self.rated if row.measure == MEASURE_NAMES["agreement"]]

    @property
    def gains(self) -> list[Gained]:
        """Differences in agreement alone."""
        return [row for row in self.gained if row.measure == MEASURE_NAMES["agreement"]]

    @property
    def guards(self) -> list[Rated]:
        """Over-acceptance and over-rejection."""
        return [row for row in self.rated if row.measure != MEASURE_NAMES["agreement"]]


def agreement(track: Track) -> Agreement | None:
    """What a study found, or None where nobody was asked."""
    studies = track.tables.get("agreement_study", [])
    if not studies:
        return None
    rated = []
    for row in track.tables.get("agreement", []):
        value = number_cell(row, "value")
        if value is None:
            continue
        raters, images, answers = (int(number_cell(row, key) or 0) for key in ("raters", "images", "answers"))
        rated.append(Rated(_measure(row), _arm(row, "arm"), value, _ends(row), raters, images, answers))
    gained = []
    for row in track.tables.get("agreement_contrasts", []):
        value, ends = number_cell(row, "value"), _ends(row)
        if value is not None and ends is not None:
            what = f"{_arm(row, 'arm')} − {_arm(row, 'versus')}"
            gained.append(Gained(_measure(row), what, value, ends, number_cell(row, "p_holm")))
    return Agreement(rated, gained, is_made_up(track.tables), studies[0].get("preregistration") is not None)


def _measure(row: dict[str, Cell]) -> str:
    name = text_cell(row, "measure")
    return {str(key): text for key, text in MEASURE_NAMES.items()}.get(name, name)


def _arm(row: dict[str, Cell], key: str) -> str:
    name = text_cell(row, key)
    return {str(arm): text for arm, text in ARM_NAMES.items()}.get(name, name)


def _ends(row: dict[str, Cell]) -> tuple[float, float] | None:
    low, high = number_cell(row, "ci_low"), number_cell(row, "ci_high")
    return None if low is None or high is None else (low, high)
