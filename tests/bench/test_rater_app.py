"""A thousand questions in the rater app: how long from the key to the next picture on the screen.

The server is a process of its own, as in use; pictures are JPEGs of the size of an ImageNet photograph. A key
comes every tenth of a second, many times as fast as anybody rates. `make bench` prints the figures; what is
asserted is that every answer arrived and every picture was seen to come.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Page
from pytest_benchmark.fixture import BenchmarkFixture

from annotations.campaign.config import CampaignConfig
from annotations.campaign.store import Store
from annotations.campaign.types import NewImage, NewPair
from tests.annotations.web.raters import Server
from tests.browser import open_browser

QUESTIONS = 1000
PACE = 0.1

WATCH = """() => {
  window.taken = [];
  let pressed = 0;
  addEventListener("keydown", () => { pressed = performance.now(); }, true);
  const channel = new MessageChannel();
  // A message that is sent in a frame arrives when that frame has been painted.
  channel.port1.onmessage = () => { if (pressed) window.taken.push(performance.now() - pressed); };
  const root = document.querySelector("[data-shown]");
  new MutationObserver(() => channel.port2.postMessage(0)).observe(root, {attributeFilter: ["data-shown"]});
}"""


def make_campaign(folder: Path) -> tuple[str, str]:
    """A campaign of a thousand pictures; returns its database and an invitation."""
    images = folder / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for n in range(QUESTIONS):
        coarse = Image.fromarray(rng.integers(0, 255, (40, 53, 3), dtype=np.uint8))
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(images / f"i{n:04}.jpg", quality=92)
    store = Store.create(
        str(folder / "campaign.db"),
        CampaignConfig(
            name="Made up",
            votes=1,
            accept_at=1,
            practice_questions=0,
            qualification_questions=0,
            gold_rate=0.0,
            minimum_dwell_ms=0,
            break_every=0,
        ),
        images=[NewImage(f"i{n:04}", f"i{n:04}.jpg") for n in range(QUESTIONS)],
        pairs=[NewPair(f"i{n:04}", n) for n in range(QUESTIONS)],
        gold=[],
    )
    token = store.invite()[0].token
    store.close()
    return str(folder / "campaign.db"), token


def rate(page: Page) -> list[float]:
    """Answer every question by key; milliseconds from each key to the next picture."""
    page.wait_for_selector("[data-shown]")
    page.evaluate(WATCH)
    last = ""
    for n in range(QUESTIONS - 1):
        began = time.perf_counter()
        page.wait_for_function(
            "last => document.querySelector('[data-shown]').dataset.shown !== last", arg=last
        )
        last = page.evaluate("document.querySelector('[data-shown]').dataset.shown")
        page.keyboard.press("yn"[n % 2])
        time.sleep(max(0.0, PACE - (time.perf_counter() - began)))
    page.wait_for_function(f"window.taken.length >= {QUESTIONS - 1}")
    taken: list[float] = page.evaluate("window.taken")
    page.keyboard.press("y")
    page.wait_for_url("**/thanks")
    return taken


def test_a_thousand_questions(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    db, token = make_campaign(tmp_path)
    server = Server(db, str(tmp_path / "images"))
    server.start()
    try:
        with open_browser() as browser:
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{server.port}/join/{token}")
            for path in ("consent", "instructions", "work"):
                page.click("main button.go, main form button")
                page.wait_for_url(f"**/{path}")
            taken = benchmark.pedantic(rate, args=(page,), rounds=1)
    finally:
        server.stop()
    quantiles = np.quantile(taken, (0.5, 0.9, 0.99, 1))
    for name, value in zip(("median", "90 %", "99 %", "most"), quantiles, strict=True):
        benchmark.extra_info[f"key to next picture, ms, {name}"] = round(float(value), 1)
    print(f"key to next picture of {len(taken)}, ms: {quantiles.round(1)}")  # noqa: T201 - a figure to read
    assert len(taken) == QUESTIONS - 1
    store = Store.open(db)
    try:
        assert len(store.votes().answer) == QUESTIONS
    finally:
        store.close()
