"""The table of docs/performance.md, from pytest-benchmark's JSON and from nothing else.

    python -m tests.bench.table build/bench.json > docs/performance.md

Several files may be named, for example one of a machine with a GPU: each gets its own part and machine.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

INTRODUCTION = """\
# Performance

This page is made by `make bench` from the JSON of one run of `tests/bench/`; nobody writes figures into it.
Every ratio is of two things measured side by side in that run, in turns, on the same work: the median over
rounds that time both. A ratio above 1 is in our favour. Figures of one machine are not those of another: run
yours. Growth is the fitted exponent: the slope of log cost over log size, 1 for linear; less where a fixed
cost shows.
"""

TIMM = "test_throughput_against_timm_and_the_bare_forward_pass"
RAY = "test_one_worker_against_the_local_engine"


def rows_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of one benchmark: those that it wrote, or what its figures say where it wrote none."""
    extra = found["extra_info"]
    if "rows" in extra:
        rows: list[dict[str, Any]] = extra["rows"]
        return rows
    rounds = found["stats"]["rounds"]
    base = found["name"].partition("[")[0]
    if base == TIMM:
        workers = found["param"] if found.get("param") is not None else "?"
        threads = extra["threads"]
        common = {
            "group": "Clean scoring", "ours": extra["images_per_second"], "unit": "images/s", "note": "",
            "what": f"from JPEG files to records on disk, {workers} decoding workers, {threads} threads",
            "n": f"{extra['images']} images, {rounds} rounds",
        }  # fmt: skip
        peers = (("timm_images_per_second", "timm's evaluation loop", "ratio_to_timm"),
                 ("plain_images_per_second", "the bare forward pass", "ratio_to_plain"),
                 ("forward_images_per_second", "the bare forward pass with all that the engine does",
                  "ratio_to_forward"))  # fmt: skip
        return [
            {**common, "peer": extra[peer], "against": against, "ratio": extra[ratio]}
            for peer, against, ratio in peers
        ]
    if base == RAY:
        return [
            {
                "group": "Ray", "what": "one started Ray worker", "ours": extra["images_per_second"],
                "unit": "images/s", "n": f"{extra['images']} images, {rounds} rounds",
                "peer": extra["local_images_per_second"], "against": "the local engine",
                "ratio": 1 / (1 + extra["overhead"]), "note": f"overhead {extra['overhead']:.1%}",
            }
        ]  # fmt: skip
    figures = ", ".join(
        f"{name}: {value}" for name, value in extra.items() if not isinstance(value, list | dict)
    )
    return [
        {
            "group": "Other", "what": f"`{found['name']}`", "ours": found["stats"]["median"], "unit": "s",
            "n": f"{rounds} rounds", "peer": None, "against": "", "ratio": None, "note": figures,
        }
    ]  # fmt: skip


def number(value: float | None) -> str:
    """Three digits that count, or none."""
    if value is None:
        return ""
    if value != value:
        return "not measured"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def machine(data: dict[str, Any]) -> str:
    """One paragraph: which machine, when, which versions."""
    info, commit = data["machine_info"], data["commit_info"]
    ours = info.get("beyond", {})
    brand = info.get("cpu", {}).get("brand_raw", "unknown processor")
    versions = ", ".join(f"{name} {version}" for name, version in ours.get("versions", {}).items())
    gpu = f", {ours['gpu']}" if ours.get("gpu") else ""
    dirty = " with changes" if commit.get("dirty") else ""
    return (
        f"{brand}{gpu}, {ours.get('cores', '?')} cores, {ours.get('memory_gib', '?')} GiB, {info['system']}, "
        f"load {ours.get('load_at_start', '?')} at the start. {data['datetime'][:10]}, commit "
        f"{str(commit.get('id'))[:12]}{dirty}. Python {info['python_version']}, {versions}."
    )


def part(data: dict[str, Any], *, heading: str) -> str:
    """The tables of one run."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for found in data["benchmarks"]:
        for row in rows_of(found):
            groups[row["group"]].append(row)
    lines = [heading, "", machine(data), ""]
    for group, rows in sorted(groups.items(), key=lambda item: (item[0] == "Other", item[0])):
        lines += [f"### {group}", "", "| What | Ours | Peer | Ratio | n | |", "|---|---|---|---|---|---|"]
        for row in rows:
            peer = f"{number(row['peer'])} ({row['against']})" if row["against"] else ""
            ratio = number(row["ratio"])
            cells = (row["what"], f"{number(row['ours'])} {row['unit']}", peer, ratio, row["n"], row["note"])
            lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def page(runs: list[dict[str, Any]]) -> str:
    """The whole page."""
    headings = ["## The run" if len(runs) == 1 else f"## Run {i}" for i in range(1, len(runs) + 1)]
    parts = [part(data, heading=heading) for data, heading in zip(runs, headings)]
    return INTRODUCTION + "\n" + "\n".join(parts)


def main(argv: list[str]) -> int:
    """Print the page for the files that are named."""
    if len(argv) < 2:
        sys.stderr.write("name the JSON of a run: python -m tests.bench.table bench.json\n")
        return 2
    sys.stdout.write(page([json.loads(Path(name).read_text(encoding="utf-8")) for name in argv[1:]]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
