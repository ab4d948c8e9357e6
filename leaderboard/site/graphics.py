"""Pictures of all entries together, as SVG drawn in percent so that text keeps its size on any screen.

Colours are CSS classes, so that one picture serves light and dark. Scripts only add what a pointer or a key
points at; without them the pictures are complete.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from benchmark.report.charts import Scale


@dataclass(frozen=True)
class Mark:
    """One entry in a picture: its row, two values, a colour class, and a label (empty for none)."""

    row: int
    x: float
    y: float
    tone: str = "same"
    label: str = ""


def tone(moved: int | None) -> str:
    """Colour class of an entry by the places it gains: up, down or same."""
    return "same" if not moved else "up" if moved > 0 else "down"


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions as near as possible to those wanted (ascending) that keep a gap and stay inside the limits.

    Neighbours that are too close form a block, which is centred on the mean of what its members want (pool
    adjacent violators).

    Example:
        >>> spread([10, 11, 50], 4, 0, 100)
        [8.5, 12.5, 50.0]
    """
    blocks: list[list[float]] = []  # [sum of wanted minus own offset, number of members]
    for position in wanted:
        blocks.append([position, 1.0])
        while len(blocks) > 1:
            (first, m), (second, n) = blocks[-2], blocks[-1]
            if first / m + m * gap <= second / n + 1e-12:
                break
            blocks[-2:] = [[first + second - n * m * gap, m + n]]
    placed: list[float] = []
    for total, number in blocks:
        start = total / number
        placed += [start + i * gap for i in range(int(number))]
    for at, position in enumerate(placed):
        placed[at] = max(position, low + at * gap)
    for at in range(len(placed) - 1, -1, -1):
        placed[at] = min(placed[at], high - (len(placed) - 1 - at) * gap)
    return placed


def error_position(value: float, low: float, high: float) -> float:
    """Distance from the top, in percent, of an accuracy on a scale that is logarithmic in the error.

    Equal steps are equal ratios of errors, so a steeper line loses a larger part of its error.
    """
    least = 1e-4
    error, top, foot = (math.log(max(1 - v, least)) for v in (value, high, low))
    return 100 * (error - top) / (foot - top)


def slope(marks: Sequence[Mark], *, low: float, high: float, label: str) -> Markup:
    """One line an entry, from `x` on the left axis to `y` on the right, both on one scale, larger is higher.

    Args:
        marks: Entries, accuracies in [0, 1]; those with a label are drawn last and named at the right.
        low: Accuracy at the foot.
        high: Accuracy at the top. The scale is that of `error_position`.
        label: Accessible name.
    """

    def up(value: float) -> float:
        return error_position(value, low, high)

    named = sorted((mark for mark in marks if mark.label), key=lambda mark: -mark.y)
    paths = "".join(
        f'<path class="{kind}" d="{_segments((up(m.x), up(m.y)) for m in group)}"/>'
        for kind in ("same", "down", "up")
        if (group := [m for m in marks if m.tone == kind])
    )
    strong = "".join(f'<path class="{m.tone} strong" d="{_segments([(up(m.x), up(m.y))])}"/>' for m in named)
    body = (
        '<line class="axis" x1="0" x2="0" y1="0" y2="100%"/>'
        '<line class="axis" x1="100%" x2="100%" y1="0" y2="100%"/>'
        '<svg width="100%" height="100%" viewBox="0 0 1 100" preserveAspectRatio="none" overflow="visible">'
        f"{paths}{strong}</svg>"
    )
    left = spread([up(m.x) for m in sorted(named, key=lambda m: -m.x)], 4.2, 0, 100)
    for mark, y in zip(sorted(named, key=lambda m: -m.x), left):
        body += f'<circle class="{mark.tone}" cx="0" cy="{up(mark.x):.2f}%" r="3.5"/>'
        place = f'x="0" dx="-10" y="{y:.2f}%" dy="4" text-anchor="end"'
        body += f'<text class="value" {place}>{100 * mark.x:.1f}</text>'
    for mark, y in zip(named, spread([up(m.y) for m in named], 4.2, 0, 100)):
        body += f'<circle class="{mark.tone}" cx="100%" cy="{up(mark.y):.2f}%" r="3.5"/>'
        body += (
            f'<text class="name {mark.tone}" x="100%" dx="10" y="{y:.2f}%" dy="4">'
            f'<tspan class="value">{100 * mark.y:.1f}</tspan> {escape(mark.label)}</text>'
        )
    return _area(body, label)


def _segments(ends: Iterable[tuple[float, float]]) -> str:
    return "".join(f"M0 {left:.2f}L1 {right:.2f}" for left, right in ends)


# The left end of a line and the right end: which of a mark's values stands there.
_SIDES: tuple[tuple[str, Callable[[Mark], float]], ...] = (
    ("left", lambda mark: mark.x),
    ("right", lambda mark: mark.y),
)


def ranks(marks: Sequence[Mark], *, most_names: int, label: str) -> Markup:
    """Places by top-1 (`x`) on the left and by what people accept (`y`) on the right, 1 at the top."""
    last = max((max(m.x, m.y) for m in marks), default=1)

    def down(place: float) -> float:
        return 100 * (place - 0.5) / last

    body = (
        '<svg width="100%" height="100%" viewBox="0 0 1 100" preserveAspectRatio="none" overflow="visible">'
    )
    for kind in ("same", "down", "up"):
        curves = "".join(_curve(down(m.x), down(m.y)) for m in marks if m.tone == kind)
        body += f'<path class="{kind}" d="{curves}"/>' if curves else ""
    body += "</svg>"
    everyone = len(marks) <= most_names
    movers = {m.row for m in sorted(marks, key=lambda m: -abs(m.x - m.y))[: most_names // 2]}
    named = [m for m in marks if everyone or m.row in movers]
    gap = 100 / max(last, most_names)
    for side, key in _SIDES:
        order = sorted(named, key=lambda m: (key(m), m.row))
        for mark, y in zip(order, spread([down(key(m)) for m in order], gap, 0, 100)):
            place, name = f"{key(mark):.0f}", escape(mark.label)
            if side == "left":
                body += (
                    f'<text class="name {mark.tone}" x="0" dx="-8" y="{y:.2f}%" dy="4" text-anchor="end">'
                    f'{name} <tspan class="value">{place}</tspan></text>'
                )
            else:
                body += (
                    f'<text class="name {mark.tone}" x="100%" dx="8" y="{y:.2f}%" dy="4">'
                    f'<tspan class="value">{place}</tspan> {name}</text>'
                )
    return _area(body, label)


def _curve(left: float, right: float) -> str:
    return f"M0 {left:.2f}C.45 {left:.2f} .55 {right:.2f} 1 {right:.2f}"


@dataclass(frozen=True)
class Axis:
    """An axis of a scatter plot with ticks as (value, text).

    Its kind is linear, root (square roots), log, or error: logarithmic in one minus the value.
    """

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    kind: str = "linear"

    @classmethod
    def shares(cls, values: Sequence[float]) -> Axis:
        """A linear axis around fractions, with ticks in percent."""
        scale = Scale.around(values)
        decimals = 0 if all(abs(100 * t - round(100 * t)) < 1e-6 for t in scale.ticks) else 1
        return cls(scale.low, scale.high, tuple((t, f"{100 * t:.{decimals}f}") for t in scale.ticks))

    @classmethod
    def errors(cls, values: Sequence[float]) -> Axis:
        """An axis around accuracies in [0, 1), logarithmic in the error."""
        low = max(1 - (1 - min(values)) * 1.06, 0.0)
        high = 1 - max(1 - max(values), 1e-4) * 0.92
        candidates = (
            0,
            0.1,
            0.2,
            0.3,
            0.4,
            0.5,
            0.6,
            0.7,
            0.75,
            0.8,
            0.85,
            0.88,
            0.9,
            0.92,
            0.94,
            0.95,
            0.96,
            0.97,
            0.98,
            0.99,
        )
        ticks: list[float] = []
        for value in candidates:
            if low <= value <= high and (
                not ticks or error_position(ticks[-1], low, high) - error_position(value, low, high) > 5
            ):
                ticks.append(value)
        return cls(low, high, tuple((t, f"{100 * t:.0f}") for t in ticks), kind="error")

    @classmethod
    def logarithmic(cls, values: Sequence[float], units: Sequence[tuple[float, str]]) -> Axis:
        """A logarithmic axis around positive values; ticks at 1, 2 and 5 times powers of ten.

        Args:
            values: What must fit.
            units: Size and name of units, largest first: ((1e6, "M"), (1, "")).
        """
        low, high = min(values) / 1.15, max(values) * 1.15
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        steps = (1, 2, 5) if last - first <= 4 else (1,)
        ticks = [s * 10.0**p for p in range(first, last + 1) for s in steps if low <= s * 10.0**p <= high]

        def text(value: float) -> str:
            size, name = next((u for u in units if value >= u[0]), units[-1])
            return f"{value / size:g}{name}"

        return cls(low, high, tuple((t, text(t)) for t in ticks), kind="log")

    def at(self, value: float) -> float:
        """Position in percent of the length."""
        low, high = self.low, self.high
        if self.kind == "error":
            return 100 - error_position(value, low, high)
        if self.kind == "root":
            value, low, high = (math.sqrt(v) for v in (value, low, high))
        if self.kind == "log":
            value, low, high = math.log(value), math.log(low), math.log(high)
        return 100 * (value - low) / (high - low)


# About the size of a scatter plot on a desktop, in pixels: what names are kept apart at.
_WIDTH, _HEIGHT = 1100, 480


def scatter(marks: Sequence[Mark], x: Axis, y: Axis, *, label: str, diagonal: bool = False) -> Markup:
    """One dot an entry. With `diagonal`, the line where both values are equal is drawn too."""
    body = ""
    for value, text in x.ticks:
        at = x.at(value)
        body += f'<line class="grid" x1="{at:.2f}%" x2="{at:.2f}%" y1="0" y2="100%"/>'
        body += (
            f'<text class="tick" x="{at:.2f}%" y="100%" dy="18" text-anchor="middle">{escape(text)}</text>'
        )
    for value, text in y.ticks:
        at = 100 - y.at(value)
        body += f'<line class="grid" x1="0" x2="100%" y1="{at:.2f}%" y2="{at:.2f}%"/>'
        body += (
            f'<text class="tick" x="0" dx="-8" y="{at:.2f}%" dy="4" text-anchor="end">{escape(text)}</text>'
        )
    if diagonal:
        start, end = max(x.low, y.low), min(x.high, y.high)
        body += (
            f'<line class="equal" x1="{x.at(start):.2f}%" y1="{100 - y.at(start):.2f}%" '
            f'x2="{x.at(end):.2f}%" y2="{100 - y.at(end):.2f}%"/>'
        )
    for mark in marks:
        body += (
            f'<circle class="{mark.tone}" cx="{x.at(mark.x):.2f}%" cy="{100 - y.at(mark.y):.2f}%" r="4.5"/>'
        )
    taken: list[tuple[float, float, float, float]] = []
    for mark in marks:
        if mark.label:
            at = x.at(mark.x)
            side = 'dx="9"' if at < 75 else 'dx="-9" text-anchor="end"'
            # A name that would lie on another is left out; the pointer still shows it.
            left = at * _WIDTH / 100 + (9 if at < 75 else -9 - 1.1 * text_width(mark.label))
            top = (100 - y.at(mark.y)) * _HEIGHT / 100 - 8
            box = (left, top, left + 1.1 * text_width(mark.label), top + 16)
            if any(box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3] for t in taken):
                continue
            taken.append(box)
            body += (
                f'<text class="name" x="{at:.2f}%" y="{100 - y.at(mark.y):.2f}%" {side} dy="4">'
                f"{escape(mark.label)}</text>"
            )
    return _area(body, label)


def lines(
    series: Sequence[tuple[str, Sequence[tuple[float, float]]]], x: Axis, y: Axis, *, label: str
) -> Markup:
    """One line a series of (name, points); lines are told apart by the name at their end."""
    body = ""
    for value, text in x.ticks:
        place = f'x="{x.at(value):.2f}%" y="100%" dy="18" text-anchor="middle"'
        body += f'<text class="tick" {place}>{escape(text)}</text>'
    for value, text in y.ticks:
        at = 100 - y.at(value)
        body += f'<line class="grid" x1="0" x2="100%" y1="{at:.2f}%" y2="{at:.2f}%"/>'
        body += (
            f'<text class="tick" x="0" dx="-8" y="{at:.2f}%" dy="4" text-anchor="end">{escape(text)}</text>'
        )
    body += (
        '<svg width="100%" height="100%" viewBox="0 0 100 100" preserveAspectRatio="none" overflow="visible">'
    )
    for _, points in series:
        path = "L".join(f"{x.at(a):.2f} {100 - y.at(b):.2f}" for a, b in points)
        body += f'<path class="same" d="M{path}"/>'
    body += "</svg>"
    for name, points in series:
        for a, b in points:
            body += (
                f'<circle class="same" cx="{x.at(a):.2f}%" cy="{100 - y.at(b):.2f}%" r="3.5">'
                f"<title>{escape(name)}: {100 * b:.1f} %</title></circle>"
            )
    ends = sorted(series, key=lambda s: -s[1][-1][1])[:24]
    for (name, points), at in zip(ends, spread([100 - y.at(s[1][-1][1]) for s in ends], 5, 0, 100)):
        place = f'x="{x.at(points[-1][0]):.2f}%" dx="9" y="{at:.2f}%" dy="4"'
        body += f'<text class="name" {place}>{escape(name)}</text>'
    return _area(body, label)


def _area(body: str, label: str) -> Markup:
    return Markup(f'<svg class="area" role="img" aria-label="{escape(label)}">{body}</svg>')


# ------------------------------------------------------------------------------------------- badges

_NARROW, _WIDE = set("iljtfr.,:;!|'()[] "), set("mwMW%@")


def text_width(text: str) -> float:
    """Rough width of a text in an 11 px sans-serif font, in pixels."""
    return sum(3.9 if c in _NARROW else 9.6 if c in _WIDE else 7.4 if c.isupper() else 6.4 for c in text)


def badge(left: str, right: str) -> str:
    """A badge as a file of its own: two fields of text. It needs no font and no network."""
    a, b = text_width(left) + 14, text_width(right) + 14
    width = a + b
    title = escape(f"{left}: {right}")

    def text(value: str, centre: float, span: float) -> str:
        return (
            f'<text x="{centre:.1f}" y="14" textLength="{span:.1f}" lengthAdjust="spacingAndGlyphs">'
            f"{escape(value)}</text>"
        )

    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="20" role="img" '
        f'aria-label="{title}"><title>{title}</title>'
        f'<clipPath id="r"><rect width="{width:.0f}" height="20" rx="3"/></clipPath><g clip-path="url(#r)">'
        f'<rect width="{a:.1f}" height="20" fill="#45423c"/>'
        f'<rect x="{a:.1f}" width="{b + 1:.1f}" height="20" fill="#00696b"/></g>'
        '<g fill="#fff" text-anchor="middle" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">'
        f"{text(left, a / 2, a - 14)}{text(right, a + b / 2, b - 14)}</g></svg>\n"
    )
