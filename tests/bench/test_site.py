"""The site at 1,600 made-up entries: our step is linear, and the table stands beside DataTables.

`make bench` prints the figures; what is asserted are ratios, and the weight of the first page.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pandas as pd
import pytest
from playwright.sync_api import Browser, Page, Response
from pytest_benchmark.fixture import BenchmarkFixture

from leaderboard.entries import load_entries
from leaderboard.site.build import build, generate
from leaderboard.site.data import Board
from tests.bench.rows import exponent, row
from tests.browser import open_browser, serve
from tests.conftest import ROOT
from tests.leaderboard.made_up import make_entries

SIZES = (400, 800, 1600)
ROWS = 50
MAX_WEIGHT = 1_500_000


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders of made-up entries; the smaller ones are the first of the largest."""
    root = tmp_path_factory.mktemp("entries")
    largest = root / str(SIZES[-1])
    made = make_entries(largest, SIZES[-1])
    found = {SIZES[-1]: largest}
    for size in SIZES[:-1]:
        found[size] = root / str(size)
        found[size].mkdir()
        for entry in made[:: SIZES[-1] // size]:
            (found[size] / entry.slug).symlink_to(entry.folder, target_is_directory=True)
    return found


def test_our_step_is_linear_in_entries(benchmark: BenchmarkFixture, folders: dict[int, Path]) -> None:
    """Pages, JSON and assets; ranking, which compares all pairs, is measured in test_ranking."""
    boards = {}
    for size, folder in folders.items():
        entries = load_entries(folder.resolve()) if size == SIZES[-1] else _linked(folder)
        boards[size] = Board.of(entries)
    seconds: dict[int, float] = {}
    for size, board in boards.items():
        runs = []
        for _ in range(3):
            start = time.process_time()
            generate(board)
            runs.append(time.process_time() - start)
        seconds[size] = min(runs)
    benchmark.pedantic(generate, args=(boards[SIZES[-1]],), rounds=1)
    benchmark.extra_info["seconds of CPU"] = {size: round(value, 2) for size, value in seconds.items()}
    # The cost of one more entry is the same at 800 and at 1,600.
    early = (seconds[800] - seconds[400]) / 400
    late = (seconds[1600] - seconds[800]) / 800
    benchmark.extra_info["cost of an entry, late / early"] = round(late / early, 2)
    row(
        benchmark,
        "Growth",
        "the site's pages, data and pictures, before mkdocs",
        ours=exponent(list(seconds), list(seconds.values())),
        unit="(exponent)",
        n=f"{SIZES[0]} to {SIZES[-1]} entries",
        note=f"{1000 * seconds[SIZES[-1]] / SIZES[-1]:.1f} ms of CPU an entry",
    )
    assert late / early < 1.5


def _linked(folder: Path) -> list:  # type: ignore[type-arg]
    from leaderboard.entries import read_entry

    return [read_entry(path.resolve()) for path in sorted(folder.iterdir())]


@pytest.fixture(scope="module")
def site(folders: dict[int, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float, float]:
    """The whole site of 1,600 entries, and the seconds of our step and of mkdocs."""
    out = tmp_path_factory.mktemp("site")
    start = time.perf_counter()
    built = build(folders[SIZES[-1]], out=out)
    ours = time.perf_counter() - start
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-f", str(built.config)]
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, env={**built.environment(), **os.environ}, check=True)
    return out / "site", ours, time.perf_counter() - start


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as found:
        yield found


SORT = """key => {
  const button = document.querySelector(key), start = performance.now();
  button.click();
  document.body.offsetHeight;
  return performance.now() - start;
}"""
SEARCH = """([box, text]) => {
  const input = document.querySelector(box);
  input.value = text;
  const start = performance.now();
  input.dispatchEvent(new Event("input", {bubbles: true}));
  input.dispatchEvent(new KeyboardEvent("keyup", {bubbles: true}));
  document.body.offsetHeight;
  return performance.now() - start;
}"""


def _datatables(folder: Path, board: Board) -> Path:
    """The same rows and columns as a page of DataTables, as itables writes it without a network."""
    from itables import to_html_datatable

    shown = {}
    for column in board.columns:
        if column.key in ("top1", "real_accuracy", "accepted_mistakes", "mla", "top1_evaluable"):
            shown[column.key] = [None if m is None else round(100 * m.value, 2) for m in column.values]
    frame = pd.DataFrame(
        {
            "rank": [
                board.ranks[row].place if row in board.ranks else None for row in range(len(board.entries))
            ],
            "name": [entry.info.name for entry in board.entries],
            **shown,
            "moved": [board.moved(row) for row in range(len(board.entries))],
            "parameters": [entry.info.parameters for entry in board.entries],
        }
    )
    table = to_html_datatable(frame, connected=True, maxBytes=0, pageLength=ROWS, lengthMenu=[ROWS, 100])
    import itables

    assets = Path(itables.__file__).parent / "html"
    for name in ("dt_bundle.js", "dt_bundle.css"):
        (folder / name).write_bytes((assets / name).read_bytes())
    table = _local(table)
    page = f'<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><body>{table}</body>'
    (folder / "index.html").write_text(page, encoding="utf-8")
    return folder


def _local(table: str) -> str:
    import re

    table = re.sub(r"https://[^\"']*dt_bundle\.js", "./dt_bundle.js", table)
    return re.sub(r"https://[^\"']*dt_bundle\.css", "./dt_bundle.css", table)


def _weigh(page: Page, address: str) -> dict[str, int]:
    """Open a page and return the bytes of each file that it asks for, unpacked."""
    replies: list[Response] = []
    page.on("response", lambda reply: replies.append(reply))
    page.goto(f"{address}/index.html")
    page.wait_for_load_state("networkidle")
    return {reply.url.removeprefix(address): len(reply.body()) for reply in replies if reply.status == 200}


def test_table_of_1600_entries_beside_datatables(
    benchmark: BenchmarkFixture,
    site: tuple[Path, float, float],
    folders: dict[int, Path],
    browser: Browser,
    tmp_path: Path,
) -> None:
    folder, ours, mkdocs = site
    board = Board.of(load_entries(folders[SIZES[-1]]))
    peer = _datatables(tmp_path, board)
    with serve(folder) as address, serve(peer) as other:
        page, rival = browser.new_page(), browser.new_page()
        weights = _weigh(page, address)
        page.wait_for_selector(".frame[data-ready]")
        weight = sum(weights.values())
        heavier = sum(_weigh(rival, other).values())
        rival.wait_for_selector("table.dataTable tbody tr:nth-child(20)")
        assert page.locator("table.board tbody tr").count() == ROWS
        assert rival.locator("table.dataTable tbody tr").count() == ROWS
        sorts: dict[str, list[float]] = {"ours": [], "datatables": []}
        searches: dict[str, list[float]] = {"ours": [], "datatables": []}
        ready = []
        for turn in range(7):
            for key, position in (("top1", 2), ("mla", 5), ("name", 1)):
                sorts["ours"].append(page.evaluate(SORT, f"th[data-key={key}] button"))
                sorts["datatables"].append(
                    rival.evaluate(
                        SORT, f"table.dataTable thead th:nth-child({position + 1}) .dt-column-order"
                    )
                )
            text = ("", "12", "made", "0015", "7", "00", "16")[turn]
            searches["ours"].append(page.evaluate(SEARCH, [".tools input[type=search]", text]))
            searches["datatables"].append(rival.evaluate(SEARCH, [".dt-search input", text]))
        page.evaluate(SEARCH, [".tools input[type=search]", ""])
        for _ in range(5):
            page.reload()
            page.wait_for_selector(".frame[data-ready]")
            ready.append(
                page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
            )
        benchmark.pedantic(page.evaluate, args=(SORT, "th[data-key=top1] button"), rounds=10, warmup_rounds=1)
        page.close()
        rival.close()
    figures = {
        "our step, s": round(ours, 1),
        "mkdocs, s": round(mkdocs, 1),
        "first page, MB": round(weight / 1e6, 3),
        "DataTables' page, MB": round(heavier / 1e6, 3),
        "ready, ms": round(median(ready)),
        **{
            f"sort {name} (DataTables: event only), ms": round(median(found), 1)
            for name, found in sorts.items()
        },
        **{
            f"search {name} (DataTables: event only), ms": round(median(found), 1)
            for name, found in searches.items()
        },
    }
    benchmark.extra_info.update(figures)
    n = f"{SIZES[-1]:,} entries"
    row(benchmark, "Site", "pages, data and pictures", ours=ours, unit="s", n=n)
    row(benchmark, "Site", "the whole site built by mkdocs", ours=mkdocs, unit="s", n=n)
    row(
        benchmark,
        "Site",
        "weight of the first page with all it loads",
        ours=weight / 1e6,
        unit="MB",
        peer=heavier / 1e6,
        against="DataTables' page of the same table",
        ratio=heavier / weight,
        n=n,
    )
    row(benchmark, "Site", "until the table is ready", ours=median(ready), unit="ms", n=f"{n}, 5 loads")
    row(
        benchmark,
        "Site",
        "sorting by a column, drawn",
        ours=median(sorts["ours"]),
        unit="ms",
        n=f"{n}, 21 sorts",
        note="DataTables draws after its event has returned, so there is no ratio",
    )
    sys.stdout.write(f"\n{figures}\n")
    assert weight < MAX_WEIGHT, weights
    # DataTables draws after the event has returned, so its times are not those of a drawn table: no ratio.
