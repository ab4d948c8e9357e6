"""Writes the JSON Schemas of what an entry holds: `python -m leaderboard.schemas docs/schemas`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pydantic import BaseModel

from benchmark.scorecard import Scorecard
from leaderboard.entries import EntryInfo

MODELS: dict[str, type[BaseModel]] = {"entry.schema.json": EntryInfo, "scorecard.schema.json": Scorecard}


def schemas() -> dict[str, str]:
    """Text of each schema by file name."""
    return {name: _schema(model) for name, model in MODELS.items()}


def _schema(model: type[BaseModel]) -> str:
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def main(folder: Path) -> None:
    """Write the schemas into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in schemas().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
