"""Small charts as inline SVG, one row each, drawn in percent of the width so that they fit any screen.

Every function returns markup that holds no text but tick labels; what a row says stands beside it in the
table, and once more in the picture's accessible name. Output depends on nothing but the arguments.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

# Heights of rows in pixels.
ROW = 28
TALL_ROW = 44


@dataclass(frozen=True)
class Scale:
    """A horizontal axis from `low` to `high`, in the values' own unit (fractions), with its ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]

    @classmethod
    def around(cls, values: Sequence[float], *, zero: bool = False) -> Scale:
        """A scale with about four round steps around values, that stays inside [0, 1] where they do.

        Args:
            values: What must fit; at least one.
            zero: Whether the axis starts at 0, as it must where lengths are compared.
        """
        smallest, largest = min(values), max(values)
        room = 0.06 * max(largest - smallest, 1e-3)
        low = min(0.0, smallest) if zero else smallest - room
        high = largest + room
        if smallest >= 0:
            low = max(low, 0.0)
        if largest <= 1:
            high = min(high, 1.0)
        step = _round_step((high - low) / 4)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        ticks = tuple(round(i * step, 10) for i in range(first, last + 1))
        return cls(ticks[0], ticks[-1], ticks)

    def x(self, value: float) -> str:
        """Position of a value as a percentage of the width, kept inside the axis."""
        share = (value - self.low) / (self.high - self.low)
        return f"{100 * min(max(share, 0.0), 1.0):.3f}%"

    def width(self, start: float, end: float) -> str:
        """Distance between two values as a percentage of the width."""
        start, end = (min(max(v, self.low), self.high) for v in (start, end))
        return f"{100 * abs(end - start) / (self.high - self.low):.3f}%"


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * (1 - 1e-9))


def _svg(body: str, label: str, *, height: int = ROW) -> Markup:
    return Markup(
        f'<svg class="row" width="100%" height="{height}" role="img" aria-label="{escape(label)}">'
        f"{body}</svg>"
    )


def _rect(css: str, x: str, width: str, *, y: float, height: float) -> str:
    return f'<rect class="{css}" x="{x}" width="{width}" y="{y}" height="{height}"/>'


def _grid(scale: Scale, height: int = ROW) -> str:
    return "".join(
        f'<line class="grid" x1="{scale.x(t)}" x2="{scale.x(t)}" y1="0" y2="{height}"/>' for t in scale.ticks
    )


def axis(scale: Scale) -> Markup:
    """Tick labels in percent, for the head of a chart. Hidden from screen readers: rows say their values."""
    decimals = 0 if all(abs(100 * t - round(100 * t)) < 1e-6 for t in scale.ticks) else 1
    labels = []
    for position, tick in enumerate(scale.ticks):
        anchor = "start" if position == 0 else "end" if position == len(scale.ticks) - 1 else "middle"
        sign = " %" if position == len(scale.ticks) - 1 else ""
        text = f"{100 * tick:.{decimals}f}{sign}"
        labels.append(f'<text class="tick" x="{scale.x(tick)}" y="13" text-anchor="{anchor}">{text}</text>')
    return Markup(
        f'<svg class="row axis" width="100%" height="20" aria-hidden="true">{"".join(labels)}</svg>'
    )


def point(
    scale: Scale,
    value: float,
    interval: tuple[float, float] | None,
    limits: tuple[float, float] | None,
    *,
    tone: str,
    label: str,
) -> Markup:
    """A value as a tick, its interval as a bar, and the range left open by unjudged answers as a box.

    Args:
        scale: The axis.
        value: The estimate.
        interval: Ends of the 95 % interval, or None.
        limits: The value if every unjudged answer were wrong, and if all were right, or None.
        tone: CSS class that gives the colour: `single` or `people`.
        label: The accessible name.
    """
    middle = TALL_ROW / 2
    body = _grid(scale, TALL_ROW)
    if limits is not None:
        body += _rect("open", scale.x(limits[0]), scale.width(*limits), y=middle - 10, height=20)
    if interval is not None:
        body += _rect(
            f"interval {tone}", scale.x(interval[0]), scale.width(*interval), y=middle - 5, height=10
        )
    x = scale.x(value)
    body += f'<line class="mark {tone}" x1="{x}" x2="{x}" y1="{middle - 10}" y2="{middle + 10}"/>'
    return _svg(body, label, height=TALL_ROW)


def difference(scale: Scale, value: float, interval: tuple[float, float], *, tone: str, label: str) -> Markup:
    """A difference with its interval, and a line where there is none.

    Args:
        scale: The axis, which holds 0.
        value: The estimate.
        interval: Ends of its 95 % interval.
        tone: CSS class that gives the colour.
        label: The accessible name.
    """
    middle = TALL_ROW / 2
    body = _grid(scale, TALL_ROW)
    body += f'<line class="zero" x1="{scale.x(0)}" x2="{scale.x(0)}" y1="0" y2="{TALL_ROW}"/>'
    body += _rect(f"interval {tone}", scale.x(interval[0]), scale.width(*interval), y=middle - 5, height=10)
    x = scale.x(value)
    body += f'<line class="mark {tone}" x1="{x}" x2="{x}" y1="{middle - 10}" y2="{middle + 10}"/>'
    return _svg(body, label, height=TALL_ROW)


def against(
    scale: Scale,
    value: float,
    interval: tuple[float, float] | None,
    others: Sequence[tuple[float, str]],
    *,
    label: str,
) -> Markup:
    """A value with its interval, among the values of others, as circles with a title each, over an axis.

    Args:
        scale: The axis.
        value: The estimate.
        interval: Ends of its 95 % interval, or None.
        others: Value and name of each other.
        label: The accessible name.
    """
    middle = TALL_ROW / 2
    body = _grid(scale, TALL_ROW)
    if interval is not None:
        body += _rect(
            "interval people", scale.x(interval[0]), scale.width(*interval), y=middle - 5, height=10
        )
    for other, who in others:
        body += (
            f'<circle class="ring single" cx="{scale.x(other)}" cy="{middle}" r="4.5">'
            f"<title>{escape(who)}</title></circle>"
        )
    x = scale.x(value)
    body += f'<line class="mark people" x1="{x}" x2="{x}" y1="{middle - 10}" y2="{middle + 10}"/>'
    return Markup("{}{}").format(_svg(body, label, height=TALL_ROW), axis(scale))


def pair(scale: Scale, single: float, people: float, *, label: str) -> Markup:
    """Two bars from zero, one above the other: against the single label, and against what people accept."""
    body = _grid(scale, TALL_ROW)
    for tone, number, y in (("single", single, 6), ("people", people, 23)):
        body += _rect(f"bar {tone}", scale.x(0), scale.width(0, number), y=y, height=15)
    return _svg(body, label, height=TALL_ROW)


def dumbbell(scale: Scale, single: float, people: float, *, label: str) -> Markup:
    """An open dot (single label) and a full one (people) joined by a line."""
    middle = ROW / 2
    body = _grid(scale)
    body += (
        f'<line class="join" x1="{scale.x(single)}" x2="{scale.x(people)}" y1="{middle}" y2="{middle}"/>'
        f'<circle class="ring single" cx="{scale.x(single)}" cy="{middle}" r="4.5"/>'
        f'<circle class="dot people" cx="{scale.x(people)}" cy="{middle}" r="5"/>'
    )
    return _svg(body, label)


@dataclass(frozen=True)
class CurvePoint:
    """One point of a curve: where, how high in [0, 1], and the ends of its interval where it has one."""

    x: float
    y: float
    ci_low: float | None = None
    ci_high: float | None = None


CURVE_HEIGHT = 260
_LEFT, _TOP, _BOTTOM = 9.0, 4.0, 12.0  # margins around the plot, percent of width and height


def curve(
    lines: Sequence[tuple[str, Sequence[CurvePoint]]], ticks: Sequence[tuple[float, str]], *, label: str
) -> Markup:
    """Shares over a radius, one line a series, each point with its interval.

    The horizontal axis is in square roots, so that small radii, where most happens, have room. A line joins
    points for the eye alone.

    Args:
        lines: Colour (a CSS class, `single` or `people`) and points of each line, x ascending.
        ticks: Value and text of the marks of the horizontal axis.
        label: The accessible name.
    """
    furthest = max([point.x for _, points in lines for point in points] + [1e-9])

    def across(value: float) -> float:
        return _LEFT + (97 - _LEFT) * math.sqrt(max(value, 0.0) / furthest)

    def up(share: float) -> float:
        return _TOP + (100 - _TOP - _BOTTOM) * (1 - min(max(share, 0.0), 1.0))

    def line(css: str, x1: float, y1: float, x2: float, y2: float) -> str:
        return f'<line class="{css}" x1="{x1:.2f}%" y1="{y1:.2f}%" x2="{x2:.2f}%" y2="{y2:.2f}%"/>'

    body = ""
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        body += line("grid", _LEFT, up(share), 97, up(share))
        text = f"{100 * share:.0f}" + ("%" if share == 1 else "")
        place = f'x="{_LEFT - 1:.2f}%" y="{up(share):.2f}%" dy="4" text-anchor="end"'
        body += f'<text class="tick" {place}>{text}</text>'
    last = -math.inf
    for value, text in ticks:
        if across(value) - last < 9:
            continue  # the text would run into its neighbour
        last = across(value)
        body += line("grid", last, _TOP, last, 100 - _BOTTOM)
        body += f'<text class="tick" x="{last:.2f}%" y="97%" text-anchor="middle">{escape(text)}</text>'
    for number, (tone, points) in enumerate(lines):
        # Side by side, so that neither hides the other where they agree.
        part = "".join(
            line(f"curve {tone}", across(a.x), up(a.y), across(b.x), up(b.y))
            for a, b in itertools.pairwise(points)
        )
        for point in points:
            if point.ci_low is not None and point.ci_high is not None:
                part += line(
                    f"whisker {tone}", across(point.x), up(point.ci_low), across(point.x), up(point.ci_high)
                )
            part += f'<circle class="dot {tone}" cx="{across(point.x):.2f}%" cy="{up(point.y):.2f}%" r="4"/>'
        body += f'<g transform="translate({4 * number - 2 * (len(lines) - 1)} 0)">{part}</g>'
    return _svg(body, label, height=CURVE_HEIGHT)


def bar(scale: Scale, value: float, *, tone: str, label: str) -> Markup:
    """One bar from zero."""
    body = _rect(f"bar {tone}", "0%", scale.width(0, value), y=8, height=12)
    return _svg(body, label)


def stacked(parts: Sequence[tuple[str, float]], *, label: str) -> Markup:
    """One bar made of parts that add up to one.

    Args:
        parts: CSS class and share in [0, 1] of each part, in order.
        label: The accessible name.
    """
    body, start = "", 0.0
    for tone, share in parts:
        body += _rect(f"part {tone}", f"{100 * start:.3f}%", f"{100 * share:.3f}%", y=0, height=TALL_ROW)
        start += share
    return _svg(body, label, height=TALL_ROW)
