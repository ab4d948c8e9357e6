"""Files of a study that are named by their SHA-256: canonical JSON, read back only as it was written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from annotations.errors import BeyondError, first_problem

M = TypeVar("M", bound="Canonical")


class Frozen(BaseModel):
    """What a study writes down: nothing unknown in it, and no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Canonical(Frozen):
    """A file of its own."""

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, two spaces, a final newline; nothing left out."""
        data = self.model_dump(mode="json")
        return json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"

    @property
    def sha256(self) -> str:
        """SHA-256 of the canonical JSON: 64 hex digits."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def read_canonical(path: Path, kind: type[M]) -> M:
    """Read a file that `Canonical.to_json` made.

    Raises:
        BeyondError: It is damaged, or its bytes are not canonical: someone edited it.
    """
    data = path.read_bytes()
    try:
        found = kind.model_validate_json(data)
    except ValidationError as error:
        raise BeyondError(f"{path} is damaged: {first_problem(error)}; put the original back") from None
    if found.to_json().encode() != data:
        raise BeyondError(f"{path} was changed after it was written; put the original back")
    return found
