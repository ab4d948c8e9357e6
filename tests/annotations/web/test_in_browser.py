"""Raters and managers in a real browser: all by keyboard, without a network, in two tabs, on a phone.

All answers here are made up by the tests.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, Route

from annotations.campaign.config import CampaignConfig
from annotations.campaign.pictures import Pictures
from annotations.campaign.store import Store
from annotations.campaign.types import NewGold, NewImage, NewPair, Role
from annotations.web.app import create_app
from tests.annotations.study.studies import make_study
from tests.browser import open_browser

ANSWERS = ("no", "maybe", "yes")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


class Campaign:
    """A campaign on SQLite and a server that can be stopped and started again at the same address."""

    def __init__(
        self, folder: Path, *, pairs: int = 30, gold: int = 12, practice: int = 0, **settings: Any
    ) -> None:
        rng = np.random.default_rng(0)
        names = [f"i{n}" for n in range(pairs)] + [f"g{n}" for n in range(gold + practice)]
        (folder / "images").mkdir(parents=True)
        for name in names:
            pixels = rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((227, 227)).save(folder / "images" / f"{name}.jpg")
        values: dict[str, Any] = {
            "name": "Made-up campaign",
            "votes": 1,
            "accept_at": 1,
            "practice_questions": 0,
            "qualification_questions": 0,
            "gold_rate": 0.0,
            "minimum_dwell_ms": 0,
            "break_every": 0,
        }
        self.folder = folder
        self.store = Store.create(
            f"sqlite:///{folder / 'campaign.db'}",
            CampaignConfig(**values | settings),
            images=[NewImage(name, f"{name}.jpg") for name in names],
            pairs=[NewPair(f"i{n}", n) for n in range(pairs)],
            gold=[
                NewGold(f"g{n}", n, ("yes", "no")[n % 2], practice=n >= gold, explanation="because it is so")
                for n in range(gold + practice)
            ],
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        app = create_app(self.store, self.pictures())
        config = uvicorn.Config(app, host="127.0.0.1", port=self.port, log_level="critical", lifespan="off")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.02)

    def pictures(self) -> Pictures:
        return Pictures(self.folder / "images")

    def stop(self) -> None:
        self.server.should_exit = self.server.force_exit = True
        self.thread.join(timeout=10)

    def invite(self, role: Role = "rater") -> str:
        return f"{self.address}/join/{self.store.invite(role=role)[0].token}"

    def answers(self) -> dict[str, str]:
        """Image to answer, of everything recorded in qualification and work."""
        votes = self.store.votes()
        return {
            str(votes.image_ids[q]): ANSWERS[a] for q, a in zip(votes.question, votes.answer, strict=True)
        }


@pytest.fixture
def campaign(tmp_path: Path) -> Iterator[Callable[..., Campaign]]:
    made: list[Campaign] = []

    def new(**settings: Any) -> Campaign:
        made.append(Campaign(tmp_path / f"campaign{len(made)}", **settings))
        return made[-1]

    yield new
    for one in made:
        one.stop()
        one.store.close()


class Watched:
    """A browser context whose pages must stay quiet and on this server."""

    def __init__(self, browser: Browser, campaign: Campaign, **options: Any) -> None:
        self.trouble: list[str] = []
        self.address = campaign.address
        self.context: BrowserContext = browser.new_context(reduced_motion="reduce", **options)
        self.context.set_default_timeout(10_000)
        self.context.on("console", lambda message: self._console(message.type, message.text))
        self.context.on("weberror", lambda error: self.trouble.append(str(error.error)))
        self.context.on("request", lambda request: self._request(request.url))

    def _console(self, kind: str, text: str) -> None:
        # A browser reports every failed request as an error; those are what some tests are about.
        if kind in ("error", "warning") and "Failed to load resource" not in text:
            self.trouble.append(text)

    def _request(self, url: str) -> None:
        if not url.startswith((self.address, "data:")):
            self.trouble.append(f"request to {url}")

    def page(self) -> Page:
        return self.context.new_page()


@pytest.fixture
def watch(browser: Browser) -> Iterator[Callable[..., Watched]]:
    made: list[Watched] = []

    def new(campaign: Campaign, **options: Any) -> Watched:
        made.append(Watched(browser, campaign, **options))
        return made[-1]

    yield new
    for one in made:
        one.context.close()
        assert one.trouble == []


def enter(page: Page, campaign: Campaign) -> None:
    """From the invitation to the first question, by keyboard."""
    page.goto(campaign.invite())
    for path in ("/consent", "/instructions", "/work"):
        go_on(page)
        page.wait_for_url(f"{campaign.address}{path}")
    shown(page)


def go_on(page: Page) -> None:
    """Press Enter on the button that has the focus by itself."""
    page.wait_for_selector("button.go:focus")
    page.keyboard.press("Enter")


def shown(page: Page, *, other_than: str = "") -> str:
    """Wait until a question is painted; returns its token."""
    # Selectors alone: the page's security policy allows no evaluation of strings.
    page.wait_for_selector(f'#rate[data-shown]:not([data-shown="{other_than}"])')
    token = page.get_attribute("#rate", "data-shown")
    assert token
    return token


def press(page: Page, key: str) -> str:
    """Answer the question on screen and wait for the next; returns its token."""
    before = shown(page)
    page.keyboard.press(key)
    return shown(page, other_than=before)


def saved(page: Page) -> None:
    page.wait_for_selector("#rate[data-saved=saved]")


def no_serious_violation(page: Page) -> None:
    found = Axe().run(page).response["violations"]
    serious = [
        f"{rule['id']}: {rule['nodes'][0]['html']}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
    ]
    assert serious == [], f"{page.url}: {serious}"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_whole_way_by_keyboard(
    campaign: Callable[..., Campaign], watch: Callable[..., Watched], scheme: str
) -> None:
    here = campaign(
        pairs=5, gold=4, practice=2, practice_questions=2, qualification_questions=3, qualification_floor=0.0
    )
    page = watch(here, color_scheme=scheme).page()
    page.goto(here.invite())
    assert "/join/" not in page.url  # the token is gone from the address
    no_serious_violation(page)
    for path in ("/consent", "/instructions", "/work"):
        go_on(page)
        page.wait_for_url(f"{here.address}{path}")
        no_serious_violation(page)
    token = ""
    for title, questions in (("Practice is over", 2), ("You are in", 3)):
        for _ in range(questions):
            token = shown(page, other_than=token)
            page.keyboard.press("y")
            page.wait_for_selector(".feedback:not([hidden])")
            assert "because it is so" in page.inner_text(".feedback")
            no_serious_violation(page)
            go_on(page)
        page.wait_for_selector(f"text={title}")
        no_serious_violation(page)
        go_on(page)
    shown(page, other_than=token)
    no_serious_violation(page)
    for key in "ynmy":
        press(page, key)
    page.keyboard.press("y")
    page.wait_for_url(f"{here.address}/thanks")
    no_serious_violation(page)
    assert "every one is saved" in page.inner_text("main")
    answers = [answer for image, answer in here.answers().items() if image.startswith("i")]
    assert sorted(answers) == ["maybe", "no", "yes", "yes", "yes"]


def test_ten_answers_without_a_network_arrive_once(
    campaign: Callable[..., Campaign], watch: Callable[..., Watched]
) -> None:
    here = campaign(pairs=30)
    watched = watch(here)
    page = watched.page()
    enter(page, here)
    page.wait_for_load_state("networkidle")
    watched.context.set_offline(True)
    for _ in range(10):
        press(page, "y")
    page.wait_for_selector("text=10 answers kept here")
    assert here.answers() == {}
    watched.context.set_offline(False)
    saved(page)
    assert len(here.answers()) == 10


def test_the_server_may_restart_while_answers_are_given(
    campaign: Callable[..., Campaign], watch: Callable[..., Watched]
) -> None:
    here = campaign(pairs=30)
    page = watch(here).page()
    enter(page, here)
    page.wait_for_load_state("networkidle")
    press(page, "y")
    saved(page)
    here.stop()
    for _ in range(3):
        press(page, "n")
    page.wait_for_selector("text=3 answers kept here")
    here.start()
    saved(page)
    assert sorted(here.answers().values()) == ["no", "no", "no", "yes"]


def test_unsent_answers_survive_a_reload(
    campaign: Callable[..., Campaign], watch: Callable[..., Watched]
) -> None:
    here = campaign(pairs=30)
    page = watch(here).page()
    enter(page, here)
    page.wait_for_load_state("networkidle")

    def refuse(route: Route) -> None:
        route.abort()

    page.route("**/api/answers", refuse)
    for _ in range(3):
        last = press(page, "y")
    page.wait_for_selector("text=3 answers kept here")
    page.unroute("**/api/answers", refuse)
    page.reload()
    saved(page)
    assert len(here.answers()) == 3
    assert shown(page) == last  # and what was answered is not asked again


def test_a_reload_in_mid_question_asks_the_same_again(
    campaign: Callable[..., Campaign], watch: Callable[..., Watched]
) -> None:
    here = campaign()
    page = watch(here).page()
    enter(page, here)
    press(page, "y")
    saved(page)
    before, label = shown(page), page.inner_text(".label")
    page.reload()
    assert shown(page) == before
    assert page.inner_text(".label") == label


def test_who_stops_sends_what_they_answered_first(
    campaign: Callable[..., Campaign], watch: Callable[..., Watched]
) -> None:
    here = campaign(pairs=12)
    watched = watch(here)
    page = watched.page()
    enter(page, here)
    page.wait_for_load_state("networkidle")
    watched.context.set_offline(True)
    for _ in range(2):
        press(page, "y")
    page.wait_for_selector("text=2 answers kept here")
    page.click("a.stop")
    page.wait_for_selector("text=Your answers are not sent yet")
    go_on(page)
    watched.context.set_offline(False)
    page.click("a.stop")
    page.wait_for_url(f"{here.address}/stop")
    no_serious_violation(page)
    assert len(here.answers()) == 2
    page.get_by_role("button", name="Stop").click()
    page.wait_for_url(f"{here.address}/thanks")
    assert "You stopped after 2 questions" in page.inner_text("main")
    no_serious_violation(page)
    page.click("a.go")
    page.wait_for_url(f"{here.address}/work")
    shown(page)


def test_two_tabs_take_turns(campaign: Callable[..., Campaign], watch: Callable[..., Watched]) -> None:
    here = campaign(pairs=12)
    watched = watch(here)
    first = watched.page()
    enter(first, here)
    press(first, "y")
    saved(first)
    second = watched.page()
    second.goto(f"{here.address}/work")
    press(second, "n")
    first.wait_for_selector("text=Open in another tab")
    first.bring_to_front()
    first.keyboard.press("n")  # goes nowhere: the other tab has the questions
    saved(second)
    assert len(here.answers()) == 2
    before = shown(first)
    go_on(first)
    second.wait_for_selector("text=Open in another tab")
    shown(first, other_than=before)
    press(first, "y")
    saved(first)
    assert sorted(here.answers().values()) == ["no", "yes", "yes"]


def test_undo_takes_back_the_last_answers(
    campaign: Callable[..., Campaign], watch: Callable[..., Watched]
) -> None:
    here = campaign()
    page = watch(here).page()
    enter(page, here)
    first = shown(page)
    second = press(page, "y")
    press(page, "y")
    saved(page)
    assert press(page, "u") == second
    assert press(page, "Backspace") == first
    press(page, "n")
    press(page, "m")
    saved(page)
    assert sorted(here.answers().values()) == ["maybe", "no"]


def test_undo_works_after_a_reload_and_before_sending(
    campaign: Callable[..., Campaign], watch: Callable[..., Watched]
) -> None:
    here = campaign()
    watched = watch(here)
    page = watched.page()
    enter(page, here)
    first = shown(page)
    press(page, "y")
    saved(page)
    page.reload()
    shown(page)
    assert press(page, "u") == first
    page.wait_for_load_state("networkidle")
    watched.context.set_offline(True)
    press(page, "y")
    assert press(page, "u") == first  # neither answer nor undo has left yet
    press(page, "n")
    watched.context.set_offline(False)
    saved(page)
    assert list(here.answers().values()) == ["no"]


def test_a_key_held_down_is_one_answer_and_other_keys_are_none(
    campaign: Callable[..., Campaign], watch: Callable[..., Watched]
) -> None:
    here = campaign()
    page = watch(here).page()
    enter(page, here)
    before = shown(page)
    page.keyboard.down("y")
    for _ in range(5):
        page.keyboard.down("y")  # the browser marks these as repeats
    page.keyboard.up("y")
    shown(page, other_than=before)
    for key in ("Control+y", "Meta+n", "Alt+m", "q", "Space"):
        page.keyboard.press(key)
    page.keyboard.press("z")
    assert page.get_attribute(".zoom", "aria-pressed") == "true"
    saved(page)
    assert len(here.answers()) == 1


def test_an_answer_faster_than_anybody_can_look_is_not_taken(
    campaign: Callable[..., Campaign], watch: Callable[..., Watched]
) -> None:
    here = campaign(minimum_dwell_ms=10_000)
    page = watch(here).page()
    enter(page, here)
    page.keyboard.press("y")
    page.wait_for_timeout(300)
    assert page.is_disabled(".answer.yes")
    assert here.answers() == {}


def test_on_a_phone_by_touch(campaign: Callable[..., Campaign], watch: Callable[..., Watched]) -> None:
    here = campaign()
    watched = watch(here, viewport={"width": 375, "height": 667}, has_touch=True, is_mobile=True)
    page = watched.page()
    page.goto(here.invite())
    for path in ("/consent", "/instructions", "/work"):
        page.tap("button.go")
        page.wait_for_url(f"{here.address}{path}")
    token = shown(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for answer in ("yes", "no", "maybe"):
        box = page.locator(f".answer.{answer}").bounding_box()
        assert box is not None
        assert box["y"] + box["height"] <= 667
        assert min(box["width"], box["height"]) >= 44  # WCAG 2.2, target size (enhanced)
    picture = page.locator(".picture img").bounding_box()
    assert picture is not None
    assert picture["height"] > 200
    no_serious_violation(page)
    page.tap(".answer.yes")
    shown(page, other_than=token)
    saved(page)
    assert list(here.answers().values()) == ["yes"]


class Study(Campaign):
    """The same, of a study in three arms."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = make_study(folder / "study", settings={"name": "Made-up study"})
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.start()

    def pictures(self) -> Pictures:
        return Pictures(self.folder / "study" / "pack", exact=True)


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Study]:
    here = Study(tmp_path)
    yield here
    here.stop()
    here.store.close()


@pytest.mark.parametrize(("width", "height", "scheme"), [(375, 667, "dark"), (1280, 800, "light")])
def test_all_arms_of_a_study_show_the_photograph_as_large(
    study: Study, watch: Callable[..., Watched], width: int, height: int, scheme: str
) -> None:
    seen: list[tuple[int, float, float]] = []
    for _ in range(3):
        page = watch(study, viewport={"width": width, "height": height}, color_scheme=scheme).page()
        enter(page, study)
        page.wait_for_selector(".answer.yes:not([disabled])")
        no_serious_violation(page)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        boxes = [image.bounding_box() for image in page.locator(".picture img").all()]
        sizes = [(box["width"], box["height"]) for box in boxes if box is not None]
        assert len(sizes) == len(boxes)
        assert all(abs(a - sizes[0][0]) < 1 and abs(b - sizes[0][1]) < 1 for a, b in sizes)
        seen.append((len(sizes), *sizes[0]))
        for answer in ("yes", "no"):
            box = page.locator(f".answer.{answer}").bounding_box()
            assert box is not None
            assert box["y"] + box["height"] <= height
        assert page.locator(".answer.maybe").is_hidden()
        page.keyboard.press("z")
        assert page.locator(".picture.zoomed").count() == 2
        page.keyboard.press("Escape")
        page.keyboard.press("m")  # is no answer here
        page.keyboard.press("y")
        page.wait_for_selector(".feedback:not([hidden])")
        no_serious_violation(page)
    assert sorted(number for number, *_ in seen) == [1, 2, 2]
    assert min(min(size) for _, *size in seen) >= 150
    assert max(abs(a - seen[0][1]) for _, a, _ in seen) < 1


def test_the_dashboard_shows_decides_and_invites(
    campaign: Callable[..., Campaign], watch: Callable[..., Watched]
) -> None:
    here = campaign(pairs=4, votes=2, accept_at=2)
    for key in ("y", "n"):
        page = watch(here).page()
        enter(page, here)
        for _ in range(3):
            press(page, key)
        page.keyboard.press(key)
        page.wait_for_url(f"{here.address}/thanks")
    manager = watch(here).page()
    manager.goto(here.invite("manager"))
    go_on(manager)
    manager.wait_for_url(f"{here.address}/manage")
    manager.wait_for_selector("body[data-ready]")
    manager.wait_for_selector(".pair >> nth=3")
    assert "4 of 4" in manager.inner_text("#tiles")
    no_serious_violation(manager)
    manager.click(".pair >> nth=0 >> text=accepted")
    manager.wait_for_selector(".pair [aria-pressed=true]")
    manager.fill("input[name=count]", "3")
    manager.click("text=Make links")
    manager.wait_for_selector("#links:not([hidden])")
    links = manager.input_value("#links").split()
    assert len(links) == 3
    assert all(link.startswith(f"{here.address}/join/") for link in links)
