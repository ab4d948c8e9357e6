"""The site in Chromium: every interaction, on desktop and phone, light and dark, with the network cut off."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Download, Error, Page, expect
from statsmodels.stats.contingency_tables import mcnemar

from benchmark import statistics
from leaderboard.entries import Entry, load_entries
from leaderboard.masks import load_masks
from leaderboard.ranking import rank_entries
from leaderboard.site.classes import superclasses
from tests.browser import open_browser, serve

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
PAGES = (
    "index.html",
    "plots.html",
    "compare.html?a=resnet50&b=vgg16",
    "classes.html",
    "classes/620.html",
    "entries/resnet50.html",
    "entries/efficientnet-lite0.html",
    "idea.html",
)
ON_PHONE = (
    "index.html",
    "plots.html",
    "compare.html?a=resnet50&b=vgg16",
    "entries/resnet50.html",
    "classes/620.html",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as found:
        yield found


@pytest.fixture(scope="module")
def address(built_site: Path) -> Iterator[str]:
    with serve(built_site) as found:
        yield found


@pytest.fixture(scope="module")
def entries() -> dict[str, Entry]:
    return {entry.slug: entry for entry in load_entries()}


Open = Callable[..., Page]


@pytest.fixture
def visit(browser: Browser, address: str) -> Iterator[Open]:
    """Opens a page; at the end nothing may have been asked of another host, and nothing complained of."""
    trouble: list[str] = []
    contexts = []

    def open_page(path: str, *, viewport: dict[str, int] | None = None, scheme: str = "light") -> Page:
        context = browser.new_context(
            viewport=viewport or DESKTOP,  # type: ignore[arg-type]
            color_scheme=scheme,  # type: ignore[arg-type]
            accept_downloads=True,
            has_touch=viewport is PHONE,
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: trouble.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: trouble.append(str(error)))

        def guard(route: object) -> None:
            url = route.request.url  # type: ignore[attr-defined]
            if url.startswith(address):
                route.continue_()  # type: ignore[attr-defined]
            else:
                trouble.append(f"asked for {url}")
                route.abort()  # type: ignore[attr-defined]

        page.route(re.compile("^https?:"), guard)
        page.goto(f"{address}/{path}")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert trouble == []


def names(page: Page) -> list[str]:
    """Names in the table, top to bottom."""
    found: list[str] = page.locator("table.board tbody th.model a").all_inner_texts()
    return found


def slugs(page: Page) -> list[str]:
    """Slugs in the table, top to bottom."""
    links: list[str] = page.locator("table.board tbody th.model a").evaluate_all(
        "links => links.map(link => link.getAttribute('href'))"
    )
    return [re.sub(r"entries/(.*)\.html", r"\1", link) for link in links]


def cell(page: Page, slug: str, column: str) -> str:
    """Text of a cell without its interval."""
    text: str = page.evaluate(
        """([slug, column]) => {
          const heads = [...document.querySelectorAll("table.board thead th")].map(h => h.dataset.key);
          const row = document.querySelector(`a[href="entries/${slug}.html"]`).closest("tr");
          const cell = row.children[heads.indexOf(column)].cloneNode(true);
          for (const part of cell.querySelectorAll(".hidden")) part.remove();
          return cell.textContent.trim();
        }""",
        [slug, column],
    )
    return text


def query(page: Page) -> dict[str, str]:
    """The state in the address."""
    return {key: found[0] for key, found in parse_qs(urlsplit(page.url).query).items()}


# ------------------------------------------------------------------------------------- how it looks to all


@pytest.mark.parametrize(
    ("path", "viewport", "scheme"),
    [(path, DESKTOP, "light") for path in PAGES] + [(path, PHONE, "dark") for path in ON_PHONE],
    ids=[f"desktop-{path}" for path in PAGES] + [f"phone-{path}" for path in ON_PHONE],
)
def test_pages_are_accessible_and_fit(visit: Open, path: str, viewport: dict[str, int], scheme: str) -> None:
    page = visit(path, viewport=viewport, scheme=scheme)
    if path.startswith("compare"):
        expect(page.locator("#result table").first).to_be_visible()
    assert page.locator("h1").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    assert page.evaluate("document.body.dataset.mdColorScheme") == (
        "slate" if scheme == "dark" else "default"
    )
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    serious = [
        (rule["id"], node["target"], node.get("failureSummary", "")[:300])
        for rule in found
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"][:3]
    ]
    assert serious == []


@pytest.mark.parametrize(
    ("paths", "viewport", "scheme"),
    [(("index.html", "entries/resnet50.html"), DESKTOP, "dark"), (("index.html",), PHONE, "light")],
    ids=["desktop", "phone"],
)
def test_colours_have_contrast_the_other_way_round(
    visit: Open, paths: tuple[str, ...], viewport: dict[str, int], scheme: str
) -> None:
    for path in paths:
        page = visit(path, viewport=viewport, scheme=scheme)
        options = {"runOnly": ["color-contrast"], "resultTypes": ["violations"]}
        found = Axe().run(page, options=options).response["violations"]
        assert [(node["target"], node["failureSummary"]) for rule in found for node in rule["nodes"]] == []


def test_the_theme_can_be_switched(visit: Open) -> None:
    page = visit("index.html")
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.locator("header form[data-md-component=palette] label:not([hidden])").click()
    expect(page.locator("body")).to_have_attribute("data-md-color-scheme", "slate")
    assert page.evaluate(background) != light


def test_first_screen_makes_the_point(visit: Open) -> None:
    """Headline, slope and the head of the table are on the first screen of a desktop; all lines are drawn."""
    page = visit("index.html")
    share = int(re.search(r"people accept (\d+)\s%", page.locator("h1").inner_text())[1])  # type: ignore[index]
    assert 5 < share < 60
    for part in ("h1", ".slope svg.area", "table.board thead"):
        box = page.locator(part).first.bounding_box()
        assert box is not None
        assert box["y"] + min(box["height"], 60) < DESKTOP["height"], part
    drawn = page.locator(".slope svg.area path:not(.strong)").evaluate_all(
        "paths => paths.map(path => path.getAttribute('d')).join('')"
    )
    assert drawn.count("M") == len(rank_entries(load_entries()).ranks) == 52


def test_without_scripts_there_is_a_table(browser: Browser, address: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{address}/index.html")
    assert page.locator("table.board tbody tr").count() == 25
    first = next(iter(rank_entries(load_entries()).ranks))
    assert page.locator("table.board tbody th.model a").first.get_attribute("href") == f"entries/{first}.html"
    assert page.locator(".slope svg.area path").count() > 3
    context.close()


def test_opened_from_a_disk(browser: Browser, built_site: Path) -> None:
    """Without any server the table, its address, the pictures and the comparison work."""
    page = browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((built_site / "index.html").as_uri())
    page.locator("th[data-key=top1] button").click()
    assert query(page)["sort"] == "-top1"
    page.goto((built_site / "compare.html").as_uri() + "?a=resnet50&b=vgg16")
    expect(page.locator("#result tr[data-metric=top1]")).to_contain_text("76.13")
    page.close()
    assert errors == []


# ----------------------------------------------------------------------------------------------- the table


def test_resnet50_shows_the_published_figures(visit: Open) -> None:
    page = visit("index.html")
    assert cell(page, "resnet50", "top1") == "76.13"
    assert cell(page, "resnet50", "real_accuracy") == "82.96"
    assert cell(page, "resnet50", "mla") == "85.08"


def test_table_starts_in_the_order_of_ranks(visit: Open, entries: dict[str, Entry]) -> None:
    page = visit("index.html")
    ranking = rank_entries(list(entries.values()))
    assert slugs(page)[: len(ranking.ranks)] == list(ranking.ranks)
    assert set(slugs(page)[len(ranking.ranks) :]) == set(ranking.excluded)
    for slug in ("resnet50", "vgg16", "alexnet"):
        assert cell(page, slug, "rank") == ranking.ranks[slug].text
        before = rank_entries(list(entries.values()), "top1").ranks[slug].place
        moved = before - ranking.ranks[slug].place
        assert cell(page, slug, "moved") == (
            "=" if not moved else f"{'▲' if moved > 0 else '▼'} {abs(moved)}"
        )


def test_sorting_by_pointer_and_by_keyboard(visit: Open, entries: dict[str, Entry]) -> None:
    page = visit("index.html")
    ranked = set(rank_entries(list(entries.values())).ranks)
    page.locator("th[data-key=top1] button").click()
    expect(page.locator("th[data-key=top1]")).to_have_attribute("aria-sort", "descending")
    shown = [slug for slug in slugs(page) if slug in ranked]
    values = [entries[slug].scorecard.tracks["rectified"].metrics["top1"].value for slug in shown]
    assert values == sorted(values, reverse=True)
    # What is not ranked stays below, whatever it is sorted by.
    assert set(slugs(page)[: len(shown)]) == ranked
    assert page.locator("tr.apart").count() == 1

    button = page.locator("th[data-key=name] button")
    button.focus()
    page.keyboard.press("Enter")
    expect(page.locator("th[data-key=name]")).to_have_attribute("aria-sort", "ascending")
    assert page.locator("th[aria-sort]").count() == 1
    shown_names = names(page)[: len(ranked)]
    assert shown_names == sorted(shown_names, key=str.lower)
    page.keyboard.press("Enter")
    expect(page.locator("th[data-key=name]")).to_have_attribute("aria-sort", "descending")
    assert page.evaluate("document.activeElement.closest('th').dataset.key") == "name"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    expect(page.locator("[role=status]")).to_contain_text("descending")
    assert query(page)["sort"] == "-name"


def test_missing_values_sort_last_both_ways(visit: Open, entries: dict[str, Entry]) -> None:
    page = visit("index.html")
    ranked = list(rank_entries(list(entries.values())).ranks)
    unknown = {slug for slug in ranked if entries[slug].info.parameters is None}
    assert unknown
    for _ in range(2):
        page.locator("th[data-key=parameters] button").click()
        assert set(slugs(page)[len(ranked) - len(unknown) : len(ranked)]) == unknown


def test_search_and_filters(visit: Open, entries: dict[str, Entry]) -> None:
    page = visit("index.html")
    page.locator(".tools input[type=search]").fill("resnet")
    text = {s: f"{e.info.name} {s} {e.info.family} {e.info.year}".lower() for s, e in entries.items()}
    assert set(slugs(page)) == {slug for slug, words in text.items() if "resnet" in words}
    page.locator(".chip[data-drop=q]").click()
    assert len(slugs(page)) == len(entries)

    page.locator(".tools summary", has_text="Filter").click()
    page.locator("[data-filter=family]").select_option("VGG")
    assert set(slugs(page)) == {slug for slug, e in entries.items() if e.info.family == "VGG"}
    expect(page.locator("[role=status]")).to_contain_text(f"{len(slugs(page))} of {len(entries)} models")
    page.locator("[data-filter=family]").select_option("")

    page.locator("[data-filter=year][data-end='0']").fill("2016")
    page.locator("[data-filter=year][data-end='1']").fill("2017")
    assert set(slugs(page)) == {slug for slug, e in entries.items() if 2016 <= e.info.year <= 2017}
    page.locator("[data-filter=params][data-end='1']").fill("30")
    assert set(slugs(page)) == {
        slug
        for slug, e in entries.items()
        if 2016 <= e.info.year <= 2017 and e.info.parameters and e.info.parameters <= 30e6
    }
    assert query(page) == {"year": "2016..2017", "params": "..30"}
    page.locator(".panel [data-reset]").click()
    assert query(page) == {}

    for key, value, fits in (
        ("status", "self-reported", lambda e: e.info.status == "self-reported"),
        ("scope", "sample", lambda e: e.info.scope == "sample"),
        ("state", "active", lambda e: e.info.state == "active"),
        ("track", "rectified", lambda e: "rectified" in e.scorecard.tracks),
    ):
        page.locator(f"[data-filter={key}]").select_option(value)
        assert set(slugs(page)) == {slug for slug, e in entries.items() if fits(e)}, key
        page.locator(f"[data-filter={key}]").select_option("")
    page.keyboard.press("Escape")
    expect(page.locator(".panel.fields")).to_be_hidden()

    page.locator(".tools input[type=search]").fill("no such model")
    expect(page.locator("tr.none")).to_be_visible()
    page.locator("tr.none button").click()
    assert len(slugs(page)) == len(entries)


def test_columns_can_be_chosen_and_an_address_brings_all_back(visit: Open, address: str) -> None:
    page = visit("index.html")
    page.locator(".tools summary", has_text="Columns").click()
    page.locator("[data-column=mla_ppi]").check()
    page.locator("[data-column=mla]").uncheck()
    expect(page.locator("th[data-key=mla_ppi]")).to_be_visible()
    expect(page.locator("th[data-key=mla]")).to_have_count(0)
    page.keyboard.press("Escape")
    page.locator("th[data-key=mla_ppi] button").click()
    page.locator(".tools input[type=search]").fill("net")
    page.locator(".tools summary", has_text="Filter").click()
    page.locator("[data-filter=family]").select_option("ResNet")
    heads = page.locator("thead th").all_inner_texts()
    shown = slugs(page)
    again = visit(page.url.removeprefix(f"{address}/"))
    assert again.locator("thead th").all_inner_texts() == heads
    assert slugs(again) == shown
    expect(again.locator("th[data-key=mla_ppi]")).to_have_attribute("aria-sort", "descending")
    assert again.locator(".tools input[type=search]").input_value() == "net"
    assert again.locator("[data-filter=family]").input_value() == "ResNet"


def test_nonsense_in_the_address_does_no_harm(visit: Open, entries: dict[str, Entry]) -> None:
    page = visit("index.html?sort=-<img>&cols=a,b&family=<script>&year=x..y&params=9&pick=../..&q=%00")
    page.locator(".tools input[type=search]").fill("")
    assert len(slugs(page)) == len(entries)
    page = visit("index.html?q=%3Cimg%20src=x%20onerror=alert(1)%3E")
    expect(page.locator(".status .chip")).to_contain_text("<img src=x onerror=alert(1)>")
    assert page.locator(".lb img").count() == 0
    page = visit("compare.html?a=<b>&b=nobody&by=<i>")
    expect(page.locator("#result table").first).to_be_visible()


def read(download: Download) -> str:
    return Path(download.path()).read_text(encoding="utf-8")


def test_downloads(visit: Open, entries: dict[str, Entry]) -> None:
    page = visit("index.html?family=VGG&sort=-real_accuracy")
    shown = slugs(page)
    page.locator(".tools summary", has_text="Download").click()
    with page.expect_download() as found:
        page.locator("[data-save=csv]").click()
    rows = list(csv.DictReader(io.StringIO(read(found.value))))
    assert [row["slug"] for row in rows] == shown
    for row in rows:
        metrics = entries[row["slug"]].scorecard.tracks["rectified"].metrics
        assert float(row["real_accuracy"]) == pytest.approx(metrics["real_accuracy"].value, abs=5.1e-5)
        assert row["name"] == entries[row["slug"]].info.name
    with page.expect_download() as found:
        page.locator("[data-save=json]").click()
    assert [record["slug"] for record in json.loads(read(found.value))] == shown
    with page.expect_download() as found:
        page.locator("a[href='leaderboard.csv']").click()
    assert len(list(csv.DictReader(io.StringIO(read(found.value))))) == len(entries)
    with page.expect_download() as found:
        page.locator("a[href='leaderboard.json']").click()
    assert len(json.loads(read(found.value))["entries"]) == len(entries)


def test_interval_bars_hold_their_value(visit: Open) -> None:
    """Each bar spans the interval on one scale for its column: its middle rises with the value."""
    page = visit("index.html")
    found = page.evaluate(
        """() => [...document.querySelectorAll("tbody tr")].flatMap(row => {
          const bar = row.querySelector(".ci.people i"), value = row.querySelector("b.people");
          return bar && value ? [[parseFloat(value.textContent), bar.offsetLeft, bar.offsetWidth]] : [];
        })"""
    )
    ranked = sorted(found[:52])
    assert all(width >= 3 for _, _, width in ranked)
    lefts = [left for _, left, _ in ranked]
    assert all(b >= a - 1 for a, b in itertools.pairwise(lefts))
    assert lefts[-1] - lefts[0] > 20


def test_two_are_picked_and_compared(visit: Open) -> None:
    page = visit("index.html")
    page.get_by_label("Compare ResNet-50", exact=True).check()
    page.get_by_label("Compare VGG-16", exact=True).check()
    assert query(page)["pick"] == "resnet50,vgg16"
    page.locator(".tray a", has_text="Compare").click()
    page.wait_for_url("**/compare.html?a=resnet50&b=vgg16")
    expect(page.locator("#result .lede")).to_contain_text("ResNet-50 more often")


def test_phone_has_the_same_table(visit: Open, entries: dict[str, Entry]) -> None:
    page = visit("index.html", viewport=PHONE, scheme="dark")
    assert cell(page, "resnet50", "real_accuracy") == "82.96"
    page.locator(".tools summary", has_text="Filter").tap()
    page.locator("[data-filter=family]").select_option("VGG")
    box = page.locator(".panel.fields").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= PHONE["width"]
    assert set(slugs(page)) == {slug for slug, e in entries.items() if e.info.family == "VGG"}
    page.keyboard.press("Escape")
    page.locator("th[data-key=top1] button").tap()
    expect(page.locator("th[data-key=top1]")).to_have_attribute("aria-sort", "descending")


# ------------------------------------------------------------------------------------------------ pictures


def test_slope_answers_to_pointer_and_keys(visit: Open, entries: dict[str, Entry]) -> None:
    page = visit("index.html")
    canvas = page.locator(".slope .canvas")
    box = canvas.bounding_box()
    assert box is not None
    worst = list(rank_entries(list(entries.values())).ranks)[-1]
    end = float(canvas.locator("circle").last.evaluate("c => c.getBoundingClientRect().y + 4"))
    page.mouse.move(box["x"] + box["width"] - 4, end)
    expect(canvas.locator(".tip")).to_contain_text(entries[worst].info.name)
    value = entries[worst].scorecard.tracks["rectified"].metrics["real_accuracy"].value
    expect(canvas.locator(".tip")).to_contain_text(f"{100 * value:.2f} % people")
    page.mouse.move(5, 5)
    expect(canvas.locator(".tip")).to_be_hidden()

    page.locator("tbody tr").nth(2).hover()
    expect(canvas.locator(".tip")).to_contain_text(names(page)[2])

    canvas.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(canvas.locator(".tip")).to_contain_text(names(page)[1])
    expect(page.locator(".slope > [aria-live]")).to_contain_text(names(page)[1])
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/entries/{list(rank_entries(list(entries.values())).ranks)[1]}.html")


def test_pictures_answer_too(visit: Open, entries: dict[str, Entry]) -> None:
    page = visit("plots.html")
    best = entries[next(iter(rank_entries(list(entries.values())).ranks))]
    for key in ("ranks", "people", "error", "parameters"):
        canvas = page.locator(f"#{key} .canvas")
        canvas.scroll_into_view_if_needed()
        canvas.focus()
        page.keyboard.press("Home" if key != "parameters" else "End")
        expect(canvas.locator(".tip")).to_be_visible()
        if key == "ranks":
            expect(canvas.locator(".tip")).to_contain_text(best.info.name)
        # What the script points at is where the picture has drawn it.
        mark = canvas.locator("svg.over:not(.family) circle").last.bounding_box()
        assert mark is not None
        if key not in ("ranks",):
            gap = page.evaluate(
                """([key, x, y]) => {
                  const drawn = [...document.querySelectorAll(`#${key} svg.area circle`)];
                  return Math.min(...drawn.map(circle => {
                    const box = circle.getBoundingClientRect();
                    return Math.hypot(box.x + box.width / 2 - x, box.y + box.height / 2 - y);
                  }));
                }""",
                [key, mark["x"] + mark["width"] / 2, mark["y"] + mark["height"] / 2],
            )
            assert gap < 1.5, key
    expect(page.locator("#robustness .absent, #robustness svg").first).to_be_visible()
    page.locator("#family").select_option(label="VGG")
    vgg = [e for e in entries.values() if e.info.family == "VGG" and e.info.scope == "full"]
    expect(page.locator("#people svg.over.family circle")).to_have_count(len(vgg))
    assert query(page) == {"family": "VGG"}


# ------------------------------------------------------------------------------------------------- compare


def _right(entry: Entry, section: str) -> np.ndarray:
    bits = entry.correctness
    assert bits is not None
    return bits.right(section)


@pytest.mark.parametrize(
    ("a", "b"), [("resnet50", "vgg16"), ("densenet121", "resnet50"), ("vgg16", "vgg16_bn")]
)
def test_comparison_is_that_of_statsmodels(visit: Open, entries: dict[str, Entry], a: str, b: str) -> None:
    page = visit(f"compare.html?a={a}&b={b}")
    row = page.locator("#result tr[data-metric=top1]")
    expect(row).to_be_visible()
    for metric, section, source in (("top1", "top1", None), ("real_accuracy", "real", "real")):
        mask = np.ones(50_000, dtype=bool) if source is None else load_masks().correctness.right(source)
        x, y = (_right(entries[slug], section)[mask] for slug in (a, b))
        table = [[int((x & y).sum()), int((x & ~y).sum())], [int((~x & y).sum()), int((~x & ~y).sum())]]
        expected = mcnemar(table, exact=True).pvalue
        low, high = statistics.paired_difference(table[0][1], table[1][0], len(x))
        cells = page.locator(f"#result tr[data-metric={metric}] > *").all_inner_texts()
        cells = [text.replace("−", "-").replace(",", "") for text in cells]
        assert cells[1:3] == [f"{100 * x.mean():.2f}", f"{100 * y.mean():.2f}"]
        assert cells[3] == f"{100 * (x.mean() - y.mean()):+.2f}"
        assert cells[5] == f"{100 * float(low):+.2f} to {100 * float(high):+.2f}"
        assert cells[7:] == [str(table[0][1]), str(table[1][0]), str(len(x))]
        got = page.evaluate("([b, c]) => BEYOND_STATISTICS.mcnemar(b, c)", [table[0][1], table[1][0]])
        assert got == pytest.approx(expected, rel=1e-9, abs=1e-300)
        if expected < 1e-12:
            assert cells[6] == "< 10⁻¹²"
        elif expected >= 1e-3:
            assert cells[6] == f"{expected:.3f}"


def test_statistics_in_the_browser_are_those_of_python(visit: Open) -> None:
    page = visit("compare.html?a=resnet50&b=vgg16")
    counts = [(0, 0, 10), (1, 0, 5), (3, 9, 50), (40, 41, 200), (700, 500, 18_692), (5000, 4800, 50_000)]
    for b, c, n in counts:
        got = page.evaluate("([b, c]) => BEYOND_STATISTICS.mcnemar(b, c)", [b, c])
        assert got == pytest.approx(float(statistics.mcnemar(b, c)), rel=1e-9)
        low, high = page.evaluate(
            "([b, c, n]) => BEYOND_STATISTICS.tango(b, c, n, 1.959963984540054)", [b, c, n]
        )
        expected = statistics.paired_difference(b, c, n)
        assert (low, high) == (
            pytest.approx(float(expected.low), abs=1e-9),
            pytest.approx(float(expected.high), abs=1e-9),
        )
    for width, error in ((0, 0.1), (0.001, 0.01), (0.05, 0.01), (1, 0.001), (0.1, 0)):
        got = page.evaluate("([w, e]) => BEYOND_STATISTICS.critical(w, e)", [width, error])
        assert got == pytest.approx(float(statistics.imbens_manski(width, error)), abs=1e-6)


def test_unjudged_answers_widen_the_comparison(visit: Open, entries: dict[str, Entry]) -> None:
    """With answers that nobody judged, the interval holds at both extremes."""
    page = visit("compare.html?a=resnet50&b=vgg16")
    one, two = (entries[slug].correctness for slug in ("resnet50", "vgg16"))
    assert one is not None
    assert two is not None
    mask = load_masks().correctness.right("mla")
    x, y = one.right("mla") & mask, two.right("mla") & mask
    open_x, open_y = one.unjudged("mla") & mask, two.unjudged("mla") & mask
    assert (open_x | open_y).any()
    n = int(mask.sum())
    worst = statistics.paired_difference((x & ~(y | open_y)).sum(), ((y | open_y) & ~x).sum(), n, z=1.645)
    best = statistics.paired_difference(((x | open_x) & ~y).sum(), (y & ~(x | open_x)).sum(), n, z=1.645)
    text = page.locator("#result tr[data-metric=mla_plain] > *").nth(5).inner_text().replace("−", "-")
    low, high = (float(end) / 100 for end in text.split(" to "))
    assert low <= float(worst.low) + 1e-4
    assert high >= float(best.high) - 1e-4
    assert math.isclose(high - low, float(best.high) - float(worst.low), rel_tol=0.25)


def test_comparison_by_class_and_kind(visit: Open, entries: dict[str, Entry]) -> None:
    page = visit("compare.html?a=resnet50&b=vgg16&by=label")
    from annotations.classes import class_names, validation_labels

    labels = validation_labels()
    x, y = _right(entries["resnet50"], "top1"), _right(entries["vgg16"], "top1")
    lead = np.bincount(labels[x & ~y], minlength=1000) - np.bincount(labels[y & ~x], minlength=1000)
    best = np.lexsort((np.arange(1000), -lead))[:10]
    expect(page.locator("#result h3").first).to_be_visible()
    shown = page.locator("#result .two section").first.locator("tbody th").all_inner_texts()
    assert shown == [class_names()[c] for c in best]
    kinds = np.array(superclasses())[labels]
    dogs = page.locator("table.kinds tr", has=page.locator("th", has_text=re.compile("^dog$"))).locator("td")
    numbers = dogs.all_inner_texts()
    assert numbers[0] == f"{100 * x[kinds == 'dog'].mean():.1f}"
    assert numbers[1] == f"{100 * y[kinds == 'dog'].mean():.1f}"
    assert numbers[-1] == f"{(kinds == 'dog').sum():,}"

    page.locator("#by").select_option("people")
    assert "by" not in query(page)
    page.locator("#swap").click()
    assert query(page) == {"a": "vgg16", "b": "resnet50"}
    expect(page.locator("#result .lede")).to_contain_text("ResNet-50 more often")
    expect(page.locator("#result tr[data-metric=top1]")).to_contain_text("−4.54")
    page.locator("#b").select_option("alexnet")
    expect(page.locator("#result .lede")).to_contain_text("VGG-16 more often")
    assert query(page) == {"a": "vgg16", "b": "alexnet"}


def test_pairs_without_a_common_image_say_so(visit: Open) -> None:
    page = visit("compare.html")
    options = page.locator("#a option").evaluate_all("options => options.map(option => option.value)")
    assert "resnet50" in options
    assert len(options) >= 52


# ------------------------------------------------------------------------------- entries, classes, searching


def test_entry_page_says_everything(visit: Open, entries: dict[str, Entry]) -> None:
    page = visit("entries/resnet50.html")
    text = page.locator("article.md-content__inner").inner_text().replace("\xa0", " ")
    for key, metric in entries["resnet50"].scorecard.tracks["rectified"].metrics.items():
        digits = 2 if metric.n >= 10_000 else 1
        assert f"{100 * metric.value:.{digits}f}" in text, key
        assert f"{metric.n:,}" in text, key
    for words in (
        "People accept 83.0 % of its answers",
        "not yet rated",
        "Robustness under attack, and its curve over ε: not measured",
        "beyond score --predictions resnet50.npy",
        "Deep Residual Learning",
        "80f3933c1c29",
        "MIT",
        "Plainly wrong",
        "laptop computer",
    ):
        assert words in text, words
    citation = page.get_by_label("Citation").inner_text()
    assert citation.splitlines()[0] == "@misc{he2015deep,"
    assert citation.strip() == entries["resnet50"].info.citation.strip()
    assert page.locator("img[alt^=Badge]").evaluate("image => image.naturalWidth") > 100
    with page.expect_download() as found:
        page.locator("a[download]").click()
    assert json.loads(read(found.value))["model"]["name"] == entries["resnet50"].scorecard.model.name


def test_classes_can_be_searched_and_lead_to_pages(visit: Open) -> None:
    page = visit("classes.html")
    expect(page.locator("[role=status]")).to_contain_text("1,000 classes")
    first = page.locator("tbody tr").count()
    assert first < 1000
    page.locator("[data-more=all]").click()
    assert page.locator("tbody tr").count() == 1000
    page.locator(".tools input[type=search]").fill("n03642806")
    assert names(page) == ["laptop computer"]
    page.locator("tbody th a").click()
    page.wait_for_url("**/classes/620.html")
    expect(page.locator("h1")).to_have_text("laptop computer")
    page.locator("table.bars a", has_text="notebook computer").first.click()
    page.wait_for_url("**/classes/681.html")


def test_the_search_box_finds_entries_and_classes(visit: Open) -> None:
    for words, link in (("densenet161", "entries/densenet161.html"), ("tench", "classes/0.html")):
        page = visit("idea.html")
        box = page.locator("input.md-search__input")
        found = page.locator(f".md-search-result__list a[href*='{link}']").first
        box.click()
        # What is typed before the theme has read its index is lost; on a busy machine, type it again.
        for _ in range(30):
            box.fill("")
            box.press_sequentially(words)
            try:
                found.wait_for(timeout=3000)
                break
            except Error:
                continue
        expect(found).to_be_visible()
