"""The page as text: self-contained, escaped, the same every time, and readable by everyone."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.report import charts
from benchmark.report.page import render_page
from benchmark.scorecard import Metric, Track
from tests.benchmark.report import made_up

CSS = Path(charts.__file__).with_name("page.css")
VOID = {"meta", "link", "br", "hr", "input", "img"}


class Elements(HTMLParser):
    """Checks that tags nest, and keeps them with their attributes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parse(page: str) -> Elements:
    elements = Elements()
    elements.feed(page)
    assert elements.open == []
    return elements


@pytest.mark.parametrize(
    "card", [made_up.full(), made_up.tiny(), made_up.bare()], ids=["full", "tiny", "bare"]
)
def test_nothing_outside_is_named(card: object) -> None:
    page = render_page(card)  # type: ignore[arg-type]
    elements = parse(page)
    for tag, attributes in elements.found:
        assert tag not in {"script", "img", "iframe", "object", "embed", "base", "form"}
        assert not any(name.startswith("on") or name in ("src", "srcset", "style") for name in attributes)
        assert str(attributes.get("href", "data:,")) == "data:,"
    assert re.findall(r"url\((?!#)", page) == []
    assert "@import" not in page
    assert "http://" not in page
    assert "https://" not in page


def test_page_is_the_same_every_time_and_from_json() -> None:
    card = made_up.full()
    assert render_page(card) == render_page(type(card).from_json(card.to_json()))


def test_structure_is_accessible() -> None:
    elements = parse(render_page(made_up.full()))
    tags = [tag for tag, _ in elements.found]
    assert tags.count("h1") == 1
    assert tags.count("table") == tags.count("caption")
    assert elements.found[0] == ("html", {"lang": "en"})
    for tag, attributes in elements.found:
        if tag == "svg" and attributes.get("aria-hidden") != "true":
            assert attributes["role"] == "img"
            assert len(attributes["aria-label"] or "") > 8
        if tag == "th":
            assert attributes["scope"] in ("row", "col")


def test_every_metric_is_on_the_page_with_its_interval_and_n() -> None:
    card = made_up.full()
    text = html.unescape(" ".join(parse(render_page(card)).text)).replace("\xa0", " ")
    for metric in card.tracks["rectified"].metrics.values():
        assert f"{100 * metric.value:.2f}" in text
        assert f"{metric.n:,}" in text
        assert metric.ci_low is not None
        assert metric.ci_high is not None
        assert f"{100 * metric.ci_low:.2f}–{100 * metric.ci_high:.2f}" in text


@pytest.mark.parametrize(
    "hostile", ["<script>alert(1)</script>", '"><svg onload=alert(1)>', "{{ 7*7 }}", "&lt;b&gt;"]
)
def test_names_from_users_are_only_text(hostile: str) -> None:
    card = made_up.full(name=hostile, class_prefix=hostile, spec=hostile, licence=hostile)
    elements = parse(render_page(card))
    clean = parse(render_page(made_up.full(name="n", class_prefix="n", spec="n", licence="n")))
    assert [tag for tag, _ in elements.found] == [tag for tag, _ in clean.found]
    # Whatever the name holds comes out as it went in: nothing is run, nothing is decoded twice.
    assert sum(hostile in text for text in elements.text) > 20


def test_unknown_tracks_and_kinds_are_shown_not_dropped() -> None:
    card = made_up.full()
    track = Track(
        version=3,
        metrics={"odd_metric": Metric(value=12.5, n=7, method="m", unit="pixels")},
        notes=["a note"],
    )
    rectified = card.tracks["rectified"]
    odd = rectified.model_copy(
        update={"tables": {"anatomy": [{"category": "new_kind", "n": 5, "share": 1.0}]}}
    )
    card = card.model_copy(update={"tracks": {"rectified": odd, "brand_new": track}})
    text = " ".join(parse(render_page(card)).text).replace("\xa0", " ")
    for expected in ("Odd metric", "12.5 pixels", "Brand new", "a note", "New kind", "100.0 %"):
        assert expected in text


def test_sample_is_called_a_sample() -> None:
    assert "not an ImageNet figure" in render_page(made_up.tiny())
    assert "not an ImageNet figure" not in render_page(made_up.full())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_that_wcag_asks_for(scheme: str) -> None:
    """WCAG 2.2, 1.4.3: 4.5 to 1 for text, by its formula of relative luminance; 1.4.11: 3 to 1 for marks."""
    blocks = re.findall(r":root \{(.*?)\}", CSS.read_text(), re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[0]))
    if scheme == "dark":
        colours |= dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[1]))

    def luminance(name: str) -> float:
        parts = [int(colours[name][i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(a: str, b: str) -> float:
        high, low = sorted((luminance(a), luminance(b)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    for name in ("ink", "quiet", "people", "single"):
        assert contrast(name, "paper") >= 4.5, name
    assert contrast("ink", "alarm-wash") >= 4.5
    assert contrast("ink", "wash") >= 4.5
    for name in ("k1", "k6"):
        assert contrast(name, "paper") >= 3, name


@given(
    values=st.lists(st.floats(0, 1), min_size=1, max_size=12),
    zero=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_scale_holds_all_values_on_round_even_ticks(values: list[float], *, zero: bool) -> None:
    scale = charts.Scale.around(values, zero=zero)
    assert 0 <= scale.low <= min(values)
    assert max(values) <= scale.high <= 1 + 1e-9
    steps = [b - a for a, b in zip(scale.ticks, scale.ticks[1:])]
    assert 1 <= len(steps) <= 7
    assert max(steps) == pytest.approx(min(steps), rel=1e-6)
    assert not zero or scale.low == 0


def test_stacked_bar_is_as_long_as_its_parts() -> None:
    svg = charts.stacked([("a", 0.25), ("b", 0.5), ("c", 0.25)], label="x")
    boxes = [(float(x), float(w)) for x, w in re.findall(r'x="([\d.]+)%" width="([\d.]+)%"', svg)]
    assert boxes == [(0, 25), (25, 50), (75, 25)]
