"""Copies of real entries to tamper with: every change is made as a forger would, with hashes that fit."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from leaderboard.entries import ENTRIES_FOLDER

Data = dict[str, Any]


def copy(folder: Path, slug: str, *, to: str | None = None) -> Path:
    """A copy of a real entry in `folder`, under its own slug or another."""
    target = folder / (to or slug)
    shutil.copytree(ENTRIES_FOLDER / slug, target)
    if to:
        edit_info(target, lambda info: info.update(slug=to))
    return target


def edit_info(entry: Path, change: Callable[[Data], object]) -> None:
    """Change `entry.yaml`."""
    path = entry / "entry.yaml"
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), encoding="utf-8")


def edit_card(entry: Path, change: Callable[[Data], object], *, hashes: bool = True) -> None:
    """Change the scorecard, keep its form, and make `entry.yaml` state the new hash."""
    path = entry / "scorecard.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    write_card(entry, json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n", hashes=hashes)


def write_card(entry: Path, text: str, *, hashes: bool = True) -> None:
    """Put any text in place of the scorecard."""
    (entry / "scorecard.json").write_text(text, encoding="utf-8")
    if hashes:
        rehash(entry)


def edit_metric(entry: Path, key: str, **values: Any) -> None:
    """Change fields of one metric of the rectified track; None removes a field."""

    def change(card: Data) -> None:
        metric = card["tracks"]["rectified"]["metrics"][key]
        metric.update(values)
        for name in [name for name, value in metric.items() if value is None]:
            del metric[name]

    edit_card(entry, change)


def write_bits(entry: Path, data: bytes) -> None:
    """Put any bytes in place of the bits, with a hash that fits."""
    (entry / "correct.bits").write_bytes(data)
    rehash(entry)


def rehash(entry: Path) -> None:
    """Make `entry.yaml` state the hashes of what lies beside it."""

    def change(info: Data) -> None:
        for key, name in (("scorecard", "scorecard.json"), ("correct", "correct.bits")):
            if (entry / name).is_file():
                info["sha256"][key] = hashlib.sha256((entry / name).read_bytes()).hexdigest()
            else:
                info["sha256"].pop(key, None)

    edit_info(entry, change)
