"""The documentation: builds without a warning, is true to the commands, and needs no network to be read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmark.cli.reference import reference
from tests.browser import open_browser, serve
from tests.conftest import ROOT


@pytest.fixture
def site(built_site: Path) -> Path:
    """The site, built as `make site` builds it."""
    return built_site


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """The site on a local server."""
    with serve(site) as found:
        yield found


def test_command_reference_is_up_to_date() -> None:
    written = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written == reference(), "run: python -m benchmark.cli.reference > docs/cli.md"


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) >= 10
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loads = re.findall(r'<(?:script|img|iframe|source)[^>]*\bsrc="?([^" >]+)', text)
        loads += [
            found
            for tag in re.findall(r"<link[^>]+>", text)
            if 'rel="canonical"' not in tag
            for found in re.findall(r'href="?([^" >]+)', tag)
        ]
        assert [url for url in loads if re.match(r"(https?:)?//", url)] == [], page.name


def test_pages_work_in_a_browser_without_a_network(address: str) -> None:
    with open_browser() as browser:
        page = browser.new_page()
        trouble: list[str] = []
        page.on("console", lambda message: trouble.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on(
            "request",
            lambda request: None if request.url.startswith(address) else trouble.append(request.url),
        )
        for name in ("idea", "getting-started", "cli", "api"):
            page.goto(f"{address}/{name}.html")
            assert page.locator("h1").count() == 1
        page.goto(f"{address}/idea.html")
        assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
        page.set_viewport_size({"width": 390, "height": 800})
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= 390
        page.wait_for_timeout(200)
        assert [line for line in trouble if not line.startswith("data:")] == []


def test_printed_example_shows_the_published_figures() -> None:
    """Published figures of torchvision's ResNet-50: top-1/5, ReaL with its n, and both means of MLA."""
    text = (ROOT / "docs" / "assets" / "resnet50.txt").read_text(encoding="utf-8")
    for name, value, n in [
        ("top-1", "76.13", "50,000"),
        ("top-5", "92.86", "50,000"),
        ("ReaL accuracy", "82.96", "46,837"),
        ("top-1, evaluable", "78.51", "46,837"),
        ("MLA", "85.08", "18,692"),
        ("MLA, plain", "85.28", "18,692"),
    ]:
        assert re.search(rf" {name} +{value} +[\d.]+–[\d.]+ +{n}$", text, re.MULTILINE), name


def test_examples_name_commands_and_options_that_exist() -> None:
    """Every `beyond …` line in the README and the hand-written pages parses as far as its options go."""
    import click

    from benchmark.cli import COMMANDS, beyond

    context = click.Context(beyond)
    lines = []
    for file in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        text = file.read_text(encoding="utf-8")
        lines += re.findall(r"^\$ beyond (\w.*)$", text, re.MULTILINE) + re.findall(
            r"`beyond (\w[^`]*)`", text
        )
    assert len(lines) > 10
    for line in lines:
        words = line.split("#")[0].split()
        assert words[0] in COMMANDS, line
        command = beyond.get_command(context, words[0])
        if isinstance(command, click.Group) and len(words) > 1 and words[1] in command.commands:
            command = command.commands[words[1]]
        assert command is not None
        known = {option for parameter in command.get_params(context) for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} - {"--help"} <= known, line
