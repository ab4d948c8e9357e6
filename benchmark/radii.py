"""Radii of threat models, as people write and read them. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from annotations.errors import BeyondError

HEADLINE = ("linf", 4 / 255)
"""Threat and radius that metrics are quoted for, where they were run."""

CURVES: dict[str, tuple[float, ...]] = {
    "linf": (0.5 / 255, 1 / 255, 2 / 255, 4 / 255, 8 / 255),
    "l2": (0.5, 3.0),
}
SINGLE = {"linf": 4 / 255, "l2": 0.5}

_NAMES = {"linf": "L∞", "l2": "L2"}


def parse_radius(text: str) -> float:
    """A radius such as `4/255` or `0.5`.

    Raises:
        BeyondError: Not a positive finite number.

    Example:
        >>> parse_radius("4/255") == 4 / 255, parse_radius("0.5/255") == 0.5 / 255
        (True, True)
    """
    try:
        above, slash, below = text.strip().partition("/")
        value = float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise BeyondError(f"{text.strip()!r} is no radius; write a positive number such as 4/255 or 0.5")
    return value


def check_radii(threat: str, radii: Sequence[float]) -> None:
    """Refuse radii that can only be a mistake.

    Raises:
        BeyondError: An L∞ radius of 1 or more, which every image has within reach (pixels lie in [0, 1]).
    """
    if threat == "linf" and max(radii) >= 1:
        raise BeyondError(
            f"an L∞ radius of {max(radii):g} covers all images, since pixels lie in [0, 1]; write 4/255 for 4"
        )


def radius_text(threat: str, epsilon: float) -> str:
    """Threat and radius for people; the threat alone where there is no radius (0).

    Example:
        >>> radius_text("linf", 4 / 255), radius_text("linf", 0.5 / 255), radius_text("l2", 0.5)
        ('L∞ 4/255', 'L∞ 0.5/255', 'L2 0.5')
        >>> radius_text("linf", 0)
        'L∞'
    """
    name = _NAMES.get(threat, threat)
    return f"{name} {epsilon_text(threat, epsilon)}" if epsilon else name


def epsilon_text(threat: str, epsilon: float) -> str:
    """The radius alone, as a fraction of 255 where that is what was meant."""
    steps = Fraction(epsilon * 255).limit_denominator(1000)
    if threat == "linf" and abs(float(steps) - epsilon * 255) < 1e-9:
        return f"{float(steps):g}/255"
    return f"{epsilon:g}"
