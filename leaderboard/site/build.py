"""Turns entries into the sources of a static site: Markdown, JSON and assets beside the hand-written pages.

The result is a folder with `mkdocs.yml` and `docs/`, which `mkdocs build --strict` (or Zensical) turns into
the site; it needs no plugin but the theme's own. The same entries always give the same bytes.
"""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from annotations.classes import (
    NUM_CLASSES,
    NUM_VALIDATION_IMAGES,
    class_names,
    validation_labels,
    validation_number,
)
from annotations.errors import BeyondError
from benchmark.report.page import page_css
from benchmark.scorecard import SCORECARD_FILE
from leaderboard.correctness import Correctness
from leaderboard.entries import ENTRIES_FOLDER, load_entries
from leaderboard.masks import pinned
from leaderboard.site import api
from leaderboard.site.classes import class_facts, class_scores, superclasses
from leaderboard.site.data import (
    Board,
    browser_data,
    comparable,
    script_json,
    table_csv,
    table_json,
    table_records,
)
from leaderboard.site.pages import ASSETS, Pages

ROOT = Path(__file__).resolve().parent.parent.parent
MARKER = ".beyond-site"
SCRIPTS = ("board.js", "plots.js", "compare.js", "theme.js")
HERE = "assets/leaderboard"

NAVIGATION = [
    {"Models": "index.md"},
    {"Pictures": "plots.md"},
    {"Compare": "compare.md"},
    {"Classes": "classes.md"},
]


@dataclass(frozen=True)
class Built:
    """What was written.

    Attributes:
        out: The folder.
        config: The configuration for `mkdocs build -f`.
        entries: Number of entries.
        ranked: How many of them are ranked.
        files: Number of generated files.
        size: Their bytes.
        newest: Day of the newest submission, the only date that the site shows of itself.
    """

    out: Path
    config: Path
    entries: int
    ranked: int
    files: int
    size: int
    newest: date

    def environment(self) -> dict[str, str]:
        """Variables for `mkdocs build` that make its output depend on nothing but the sources."""
        midnight = datetime(self.newest.year, self.newest.month, self.newest.day, tzinfo=UTC)
        return {"SOURCE_DATE_EPOCH": str(int(midnight.timestamp())), "NO_MKDOCS_2_WARNING": "1"}


def build(
    entries: Path = ENTRIES_FOLDER,
    docs: Path = ROOT / "docs",
    out: Path = Path("build/site"),
    *,
    config: Path = ROOT / "mkdocs.yml",
) -> Built:
    """Write the sources of the site.

    Args:
        entries: Folder of entries.
        docs: Folder of hand-written pages, copied beside the generated ones.
        out: Folder to write; what an earlier build left there is replaced.
        config: `mkdocs.yml` of the hand-written pages, from which the site's own is made.

    Raises:
        BeyondError: An entry is not valid, a folder is missing, `out` holds something else, or a hand-written
            page has the name of a generated one.
    """
    for path, what in ((docs, "folder of pages"), (config, "configuration of mkdocs")):
        if not path.exists():
            raise BeyondError(f"no {what} at {path}; run from the root of a checkout, or name one")
    board = Board.of(load_entries(entries))
    generated = generate(board, has=frozenset(path.stem for path in docs.glob("*.md")))
    _prepare(out)
    target = out / "docs"
    clash = next((name for name in generated if (docs / name).exists()), None)
    if clash:
        raise BeyondError(f"{docs / clash} has the name of a generated page; rename it")
    shutil.copytree(docs, target, ignore=shutil.ignore_patterns(".*", "__pycache__"))
    for folder in {(target / name).parent for name in generated}:
        folder.mkdir(parents=True, exist_ok=True)
    for name, content in generated.items():
        (target / name).write_bytes(content.encode("utf-8"))
    settings = out / "mkdocs.yml"
    settings.write_text(site_config(config), encoding="utf-8")
    return Built(
        out=out,
        config=settings,
        entries=len(board.entries),
        ranked=len(board.ranks),
        files=len(generated),
        size=sum(len(content) for content in generated.values()),
        newest=max((entry.info.submitted for entry in board.entries), default=date(2026, 1, 1)),
    )


def _prepare(out: Path) -> None:
    if out.exists() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise BeyondError(f"{out} holds other things than a site; choose an empty folder with --out")
    shutil.rmtree(out / "docs", ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).write_text("Written by beyond leaderboard build; replaced by the next one.\n")


def generate(board: Board, *, has: frozenset[str] = frozenset()) -> dict[str, str]:
    """All generated files: path below `docs/` to content.

    Args:
        board: All entries.
        has: Names of hand-written pages, without suffix.
    """
    pages = Pages(board, class_facts(), class_scores(board), has)
    records = table_records(board)
    files: dict[str, str] = {
        "index.md": pages.home(),
        "plots.md": pages.plots(),
        "compare.md": pages.compare(),
        "classes.md": pages.classes(),
        "api.md": api.page(),
        "leaderboard.csv": table_csv(records),
        "leaderboard.json": table_json(records),
        f"{HERE}/data.js": browser_data(board),
        f"{HERE}/classes.js": pages.classes_data(),
        f"{HERE}/masks.js": masks_script(board.evaluable),
        f"{HERE}/site.css": site_css(),
    }
    for name in SCRIPTS:
        files[f"{HERE}/{name}"] = (ASSETS / name).read_text(encoding="utf-8")
    for row, entry in enumerate(board.entries):
        files[f"entries/{entry.slug}.md"] = pages.entry(row)
        files[f"entries/{entry.slug}.json"] = (entry.folder / SCORECARD_FILE).read_text(encoding="utf-8")
        files[f"badges/{entry.slug}.svg"] = pages.badge(row)
        if comparable(entry) and entry.correctness is not None:
            files[f"{HERE}/bits/{entry.slug}.js"] = bits_script(entry.slug, entry.correctness)
    for c in range(NUM_CLASSES):
        files[f"classes/{c}.md"] = pages.class_page(c)
    return files


# ------------------------------------------------------------------------------------- scripts with data


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def bits_script(slug: str, bits: Correctness) -> str:
    """The packed bits of one entry for the browser, over all 50,000 validation images."""
    seen, right, unjudged = None, dict(bits.packed), dict(bits.open)
    if not bits.full:
        rows = np.array([(validation_number(str(i)) or 1) - 1 for i in bits.image_ids], dtype=np.int64)

        def spread(values: np.ndarray) -> np.ndarray:
            everyone = np.zeros(NUM_VALIDATION_IMAGES, dtype=bool)
            everyone[rows] = values
            return np.packbits(everyone, bitorder="little")

        seen = spread(np.ones(len(rows), dtype=bool))
        right = {name: spread(bits.right(name)) for name in right}
        unjudged = {source: rows[found].astype(np.uint32) for source, found in unjudged.items()}
    data: dict[str, Any] = {
        "revisions": {source: pinned(revision) for source, revision in bits.annotations.items()},
        "right": {name: _base64(packed.tobytes()) for name, packed in right.items()},
        "open": {source: found.tolist() for source, found in unjudged.items()},
    }
    if seen is not None:
        data["seen"] = _base64(seen.tobytes())
    return f"(window.BEYOND_BITS=window.BEYOND_BITS||{{}})[{script_json(slug)}]={script_json(data)};\n"


def masks_script(masks: Correctness) -> str:
    """What comparisons share: evaluable images, original labels, names and broad kinds of classes."""
    kinds = superclasses()
    known = sorted(set(kinds))
    data = {
        "revisions": {source: pinned(revision) for source, revision in masks.annotations.items()},
        "masks": {name: _base64(masks.packed[name].tobytes()) for name in masks.sources},
        "labels": _base64(validation_labels().astype("<u2").tobytes()),
        "names": class_names(),
        "kinds": known,
        "kind": [known.index(kind) for kind in kinds],
    }
    return f"window.BEYOND_MASKS={script_json(data)};\n"


# ----------------------------------------------------------------------------- style and configuration

_PALETTE = re.compile(r":root\s*\{([^}]*)\}")
_REM = re.compile(r"(\d*\.?\d+)rem")


def site_css() -> str:
    """The site's style sheet: the scorecard page's palette and chart styles, and the site's own.

    The scorecard page is written for a root font size of 16 px, mkdocs-material's is 20 px; and its rules
    must touch nothing outside of `.report`, so they are nested in it.
    """
    sheet = page_css()
    light, dark = _PALETTE.findall(sheet)
    rules = []
    for line in sheet.splitlines():
        query, brace, rest = line.partition("{") if line.lstrip().startswith("@") else ("", "", line)
        rules.append(query + brace + _REM.sub(lambda m: f"{float(m[1]) * 0.8:.4g}rem", rest))
    own = (ASSETS / "site.css").read_text(encoding="utf-8")
    return (
        f'[data-md-color-scheme="default"] {{{light}}}\n'
        f'[data-md-color-scheme="slate"] {{{light}{dark}}}\n'
        ".report {\n" + "\n".join(rules) + "\n}\n" + own
    )


def site_config(config: Path) -> str:
    """The configuration of the whole site, made from that of the hand-written pages.

    The site goes to `site` beside it, unless `mkdocs build --site-dir` says otherwise.
    """
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    if not isinstance(settings, Mapping):
        raise BeyondError(f"{config} is no configuration of mkdocs")
    settings = dict(settings)
    settings["docs_dir"] = "docs"
    settings["site_dir"] = "site"
    navigation = [item for item in settings.get("nav", []) if item != {"API": "api.md"}]
    for item in navigation:
        for children in item.values() if isinstance(item, dict) else ():
            if isinstance(children, list) and any("cli.md" in child.values() for child in children):
                children.append({"Python": "api.md"})
    settings["nav"] = [{"Leaderboard": NAVIGATION}, *navigation]
    settings["not_in_nav"] = "entries/*\nclasses/*\n" + settings.get("not_in_nav", "")
    settings["extra_css"] = [*settings.get("extra_css", []), f"{HERE}/site.css"]
    settings["extra_javascript"] = [*settings.get("extra_javascript", []), f"{HERE}/theme.js"]
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
