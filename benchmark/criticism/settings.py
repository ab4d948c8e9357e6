"""How to criticize, for whoever asks for it. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmark.criticism.attributes import BUILT_IN, AttributeFile

STABILITY = 24
"""Images that are measured again, with another budget and with random starts."""


@dataclass(frozen=True)
class CriticismSettings:
    """How to criticize.

    Attributes:
        tier: Budget of the distances.
        attributes: Names of sources of attributes, in order.
        files: What was read from files, for those that are new.
        k: Images chosen a class and side; None takes a quarter.
        ids: Only these images.
        limit: Only the first so many.
        stability: Images measured again; 0 measures none.
        batch_size: Images at a time, for distances.
        probes: Names of standard probes to run.
        cue_conflict: Folder of cue-conflict images, or None.
    """

    tier: str = "quick"
    attributes: Sequence[str] = BUILT_IN
    files: Sequence[AttributeFile] = ()
    k: int | None = None
    ids: Sequence[str] | None = None
    limit: int | None = None
    stability: int = STABILITY
    batch_size: int | None = None
    probes: Sequence[str] = ("watermark",)
    cue_conflict: Path | None = None
