"""Messages about names that are not known."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def nearest(name: str, known: Sequence[str], *, prefix: str = "", what: str) -> str:
    """One line that says a name is unknown and which known one is nearest, out of possibly thousands.

    Example:
        >>> nearest("resnet5", ["resnet50", "vgg16"], prefix="timm:", what="timm model")
        "no such timm model 'resnet5'; did you mean 'timm:resnet50'?"
    """
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        hint = f"did you mean {prefix + near[0]!r}?"
    elif len(known) <= 12:
        hint = f"known: {', '.join(sorted(known))}"
    else:
        hint = "search with: beyond models --all 'PATTERN*'"
    return f"no such {what} {name!r}; {hint}"
