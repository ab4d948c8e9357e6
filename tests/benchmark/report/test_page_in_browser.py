"""The page in a real Chromium: nothing is fetched, fails or overflows; marks stand where they should."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from benchmark.report.page import render_page
from benchmark.scorecard import Scorecard
from tests.benchmark.report import made_up
from tests.benchmark.report.test_agreement import rated
from tests.benchmark.report.test_criticism import criticized, only
from tests.benchmark.report.test_robustness import attacked
from tests.browser import open_browser

HOSTILE = '<script>document.title="owned"</script><img src=x onerror=alert(1)>"\'&{{7*7}}'


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


def open_page(
    browser: Browser, scorecard: Scorecard, folder: Path, *, width: int, scheme: str, extra: str = ""
) -> tuple[Page, list[str]]:
    """Open a scorecard's page offline; also the list into which requests and errors are written."""
    file = folder / "page.html"
    file.write_text(render_page(scorecard).replace("<h1>", extra + "<h1>"), encoding="utf-8")
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme="dark" if scheme == "dark" else "light",
        offline=True,
    )
    page = context.new_page()
    trouble: list[str] = []
    page.on("console", lambda message: trouble.append(f"console {message.type}: {message.text}"))
    page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
    page.on(
        "request",
        lambda request: (
            None if request.url == file.as_uri() else trouble.append(f"request: {request.url[:80]}")
        ),
    )
    page.goto(file.as_uri())
    return page, trouble


@pytest.mark.parametrize("name", ["full", "tiny", "bare", "hostile", "attacked", "rated", "criticized"])
def test_page_is_quiet_and_fits(browser: Browser, tmp_path: Path, name: str) -> None:
    cards = {
        "full": made_up.full(),
        "tiny": made_up.tiny(),
        "bare": made_up.bare(),
        "hostile": made_up.full(name=HOSTILE, class_prefix=HOSTILE + "W" * 120, spec=HOSTILE),
        "attacked": attacked(message=HOSTILE + "W" * 120),
        "rated": rated(title=HOSTILE + "W" * 80, made_up=True),
        "criticized": only(criticized(says=HOSTILE + "W" * 120)),
    }
    for scheme in ("light", "dark"):
        page, trouble = open_page(browser, cards[name], tmp_path, width=1280, scheme=scheme)
        for details in page.query_selector_all("summary"):
            details.click()
        for width in (1280, 768, 390, 320):
            page.set_viewport_size({"width": width, "height": 900})
            scroll, client = page.evaluate(
                "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
            )
            assert scroll <= client, f"{scheme} page is {scroll} wide on a screen of {client}"
        assert page.title().endswith("Beyond Accuracy")
        assert page.query_selector_all("img, script, iframe, object") == []
        page.wait_for_timeout(50)
        assert trouble == []
        page.context.close()


@pytest.mark.parametrize(
    "planted",
    ['<img src="https://example.invalid/x.png">', "<script>1</script>", '<link rel=stylesheet href="x.css">'],
)
def test_the_watch_sees_what_it_must_see(browser: Browser, tmp_path: Path, planted: str) -> None:
    """With a fetch or a script planted in the page, the list of trouble is not empty."""
    page, trouble = open_page(browser, made_up.bare(), tmp_path, width=390, scheme="light", extra=planted)
    page.wait_for_timeout(100)
    assert trouble
    page.context.close()


def test_schemes_differ(browser: Browser, tmp_path: Path) -> None:
    colours = []
    for scheme in ("light", "dark"):
        page, _ = open_page(browser, made_up.full(), tmp_path, width=1280, scheme=scheme)
        colours.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        page.context.close()
    lightness = [sum(int(part) for part in colour.strip("rgb()").split(",")) for colour in colours]
    assert lightness[0] > 600
    assert lightness[1] < 150


def test_marks_stand_where_their_values_say(browser: Browser, tmp_path: Path) -> None:
    """Positions on screen, measured by the browser, are linear in the planted values."""
    card = made_up.full()
    page, _ = open_page(browser, card, tmp_path, width=1280, scheme="light")
    metrics = card.tracks["rectified"].metrics
    boxes = page.eval_on_selector_all(
        ".accuracy tbody tr",
        """rows => rows.map(row => {
            const mark = row.querySelector('.mark').getBoundingClientRect();
            const interval = row.querySelector('.interval').getBoundingClientRect();
            const term = row.querySelector('.term').textContent;
            return [term, mark.x + mark.width / 2, interval.left, interval.right];
        })""",
    )
    found = {term: rest for term, *rest in boxes}
    top1, real, mla = (metrics[key] for key in ("top1", "real_accuracy", "mla"))
    x0, x1 = found["top-1"][0], found["ReaL accuracy"][0]
    per_unit = (x1 - x0) / (real.value - top1.value)
    assert per_unit > 0
    assert found["MLA"][0] == pytest.approx(x0 + per_unit * (mla.value - top1.value), abs=0.6)
    assert mla.ci_low is not None
    assert mla.ci_high is not None
    assert found["MLA"][1] == pytest.approx(x0 + per_unit * (mla.ci_low - top1.value), abs=0.6)
    assert found["MLA"][2] == pytest.approx(x0 + per_unit * (mla.ci_high - top1.value), abs=0.6)
    page.context.close()


def test_error_bars_start_at_zero_and_are_proportional(browser: Browser, tmp_path: Path) -> None:
    card = made_up.full()
    page, _ = open_page(browser, card, tmp_path, width=1280, scheme="light")
    widths = page.eval_on_selector_all(
        ".changes .bar", "bars => bars.map(bar => bar.getBoundingClientRect().width)"
    )
    rows = card.tracks["rectified"].tables["standard_vs_rectified"]
    errors = [float(row[key] or 0) for row in rows for key in ("standard_error", "rectified_error")]
    ratios = [width / error for width, error in zip(widths, errors, strict=True)]
    assert max(ratios) / min(ratios) == pytest.approx(1, abs=0.01)
    page.context.close()


def test_accessible_tree_names_every_chart(browser: Browser, tmp_path: Path) -> None:
    """What a screen reader gets: one heading of level 1, a named picture a row, tables with their names."""
    page, _ = open_page(browser, made_up.full(), tmp_path, width=390, scheme="light")
    tree = page.locator("body").aria_snapshot()
    assert tree.count("[level=1]") == 1
    assert 'img "People accept its answer: 83.00 %, 95 % interval 82.66 to 83.34"' in tree
    assert 'table "Accuracy by class against the single label and against what people accept"' in tree
    assert 'rowheader "screen n 41"' in tree
    page.context.close()
