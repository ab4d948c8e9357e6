"""Small files: written whole or not at all, and settings that a person wrote."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from annotations.errors import BeyondError, one_line


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a small file whole: temporary name, fsync, rename. Text is UTF-8, its lines as they are."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_settings(file: Path, *, example: str) -> dict[str, Any]:
    """Settings from a YAML file; an empty one has none.

    Args:
        file: The file.
        example: A line that it could hold, for the message.

    Raises:
        BeyondError: It cannot be read, or holds something else.
    """
    import yaml

    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise BeyondError(f"{file} cannot be read as YAML ({one_line(error)})") from None
    if not isinstance(values, dict):
        raise BeyondError(f"{file} holds no settings; write lines such as: {example}")
    return values
