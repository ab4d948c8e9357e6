"""Numbers and names as people read them, the same in the terminal and on the page."""

from __future__ import annotations

from benchmark.scorecard import Cell, Metric


def clean(text: object) -> str:
    r"""Text that others chose, on one line and without control or direction-changing characters.

    A model or class name comes from a user's file: it must not move the cursor, colour the terminal or
    reverse the line it is printed on.

    Example:
        >>> clean("a\x1b[31mb\n c")
        'a�[31mb c'
    """
    line = str(text)
    if line.isprintable():
        return " ".join(line.split())
    return " ".join("".join(ch if ch.isprintable() or ch.isspace() else "\ufffd" for ch in line).split())


def count(n: int) -> str:
    """A whole number with thousands separated.

    Example:
        >>> count(46837)
        '46,837'
    """
    return f"{n:,}"


def digits(n: int) -> int:
    """Decimals of a percentage worth showing for a share of n images: two from 10,000 on, else one."""
    return 2 if n >= 10_000 else 1


def percent(value: float, decimals: int = 1) -> str:
    """A fraction as a percentage, without the sign. Never rounds up to 100 or down to 0 what is neither.

    Example:
        >>> percent(0.76130, 2), percent(0.99999), percent(1.0)
        ('76.13', '>99.9', '100.0')
    """
    text = f"{100 * value:.{decimals}f}"
    if text == f"{100:.{decimals}f}" and value < 1:
        return f">{100 - 10**-decimals:.{decimals}f}"
    if text in (f"{0:.{decimals}f}", f"-{0:.{decimals}f}") and value != 0:
        return f"<{10**-decimals:.{decimals}f}" if value > 0 else f">-{10**-decimals:.{decimals}f}"
    return text


def value(metric: Metric) -> str:
    """A metric's value: percent without the sign for fractions, plain for other units."""
    return _number(metric, metric.value)


def interval(metric: Metric) -> str:
    """A metric's 95 % interval, empty if it has none."""
    if metric.ci_low is None or metric.ci_high is None:
        return ""
    return f"{_number(metric, metric.ci_low)}–{_number(metric, metric.ci_high)}".replace("–-", " to -")


def bounds(metric: Metric) -> str:
    """What the value would be if every unjudged answer were wrong or right, empty if all are judged."""
    if metric.lower is None or metric.upper is None or metric.lower == metric.upper:
        return ""
    return f"{_number(metric, metric.lower)}–{_number(metric, metric.upper)}"


def unit_sign(metric: Metric) -> str:
    """What follows the value: a percent sign, the unit's name, or nothing."""
    if metric.unit == "fraction":
        return "%"
    return "" if metric.unit in ("ratio", "count", "L2") else metric.unit


def _number(metric: Metric, number: float) -> str:
    if metric.unit == "fraction":
        return percent(number, digits(metric.n))
    return f"{number:,.0f}" if metric.unit == "count" else f"{number:.3g}"


def number_cell(row: dict[str, Cell], key: str) -> float | None:
    """A cell as a number, None where it is absent or is none."""
    cell = row.get(key)
    return float(cell) if isinstance(cell, int | float) and not isinstance(cell, bool) else None


def text_cell(row: dict[str, Cell], key: str) -> str:
    """A cell as clean text, empty where it is absent."""
    cell = row.get(key)
    return "" if cell is None else clean(cell)
