"""The scorecard: all results of one classifier, as a versioned, strict schema.

Shares are fractions in [0, 1]; on screen they are percent. A scorecard holds no times and no dates, so that
the same records and label sets always give the same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from annotations.errors import BeyondError, first_problem

SCHEMA_VERSION = 1
SCORECARD_FILE = "scorecard.json"

Cell = str | int | float | bool | None


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Metric(_Strict):
    """One number with its interval."""

    value: float = Field(description="Point estimate; a fraction in [0, 1] unless `unit` says otherwise.")
    ci_low: float | None = Field(default=None, description="Lower end of the 95 % interval.")
    ci_high: float | None = Field(default=None, description="Upper end of the 95 % interval.")
    n: int = Field(ge=0, description="Number of images behind the value.")
    method: str = Field(description="How the interval was computed, e.g. wilson.")
    lower: float | None = Field(default=None, description="Value if every unjudged prediction were rejected.")
    upper: float | None = Field(default=None, description="Value if every unjudged prediction were accepted.")
    judged: int | None = Field(default=None, ge=0, description="How many of the n predictions are judged.")
    raters: int | None = Field(
        default=None, ge=1, description="People behind the value, where it is of what people answered."
    )
    unit: str = Field(default="fraction", description="fraction, pixels, nats, ratio, count.")


class Track(_Strict):
    """The results of one track."""

    version: int = Field(ge=1, description="Version of the track's definition; rises when numbers change.")
    metrics: dict[str, Metric] = Field(default_factory=dict)
    tables: dict[str, list[dict[str, Cell]]] = Field(
        default_factory=dict, description="Rows, column to cell."
    )
    notes: list[str] = Field(default_factory=list, description="What a reader must know to read the numbers.")


class ModelInfo(_Strict):
    """What was scored."""

    name: str
    spec: str = Field(description="Model spec, or the predictions' file name.")
    weights_sha256: str | None = None
    parameters: int | None = None
    preprocessing: dict[str, Any] | None = None
    source: dict[str, str] = Field(default_factory=dict)
    licence: str = ""


class ImagesInfo(_Strict):
    """On which images."""

    name: str = Field(description="Name of the image set.")
    n: int = Field(ge=0, description="Images with a record.")
    skipped: int = Field(default=0, ge=0, description="Images that could not be read.")
    fingerprint: str = Field(description="SHA-256 over ids and original labels.")
    sample: bool = Field(default=False, description="True when it is not the whole validation set.")


class AnnotationsInfo(_Strict):
    """Against which judgements."""

    sources: dict[str, str] = Field(default_factory=dict, description="Source to pinned revision.")


class Scorecard(_Strict):
    """All results of one classifier."""

    schema_version: int = SCHEMA_VERSION
    model: ModelInfo
    images: ImagesInfo
    annotations: AnnotationsInfo
    provenance: dict[str, Cell] = Field(
        default_factory=dict, description="Versions, dtype and seed; no times."
    )
    tracks: dict[str, Track] = Field(default_factory=dict)

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, two spaces, a final newline, absent values left out."""
        data = self.model_dump(mode="json", exclude_none=True)
        return json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str = "scorecard") -> Scorecard:
        """Read a scorecard, migrating older schema versions.

        Raises:
            BeyondError: Not JSON, an unknown key, a value out of range, or a version newer than this code.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:  # also a number too long to read
            raise BeyondError(
                f"{where} is not JSON ({error}); write it again with: beyond rescore RUN"
            ) from None
        version = data.get("schema_version") if isinstance(data, dict) else None
        if not isinstance(version, int) or not 1 <= version <= SCHEMA_VERSION:
            raise BeyondError(
                f"{where} has schema version {version!r}; this beyond reads 1..{SCHEMA_VERSION}: update it"
            )
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise BeyondError(f"{where} is not a valid scorecard: {first_problem(error)}") from None


def read_scorecard(path: Path) -> Scorecard:
    """Read a scorecard from a file, or from the run folder that holds it.

    Raises:
        BeyondError: There is none, or it is not valid.
    """
    file = path / SCORECARD_FILE if path.is_dir() else path
    if not file.is_file():
        raise BeyondError(f"{path} holds no {SCORECARD_FILE}; make one with: beyond rescore {path}")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise BeyondError(f"{file} is not UTF-8 text; write it again with: beyond rescore RUN") from None
    return Scorecard.from_json(text, where=str(file))
