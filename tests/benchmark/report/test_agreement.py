"""Agreement on the page and on the terminal, and the report of a study."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree

import pytest
from rich.console import Console

from annotations.study.results import Results, analyse
from benchmark.agreement import part_of
from benchmark.report.page import render_page
from benchmark.report.study import markdown, pictures, points
from benchmark.report.terminal import print_scorecard
from benchmark.scorecard import Scorecard
from tests.annotations.study.made_up import plan, study
from tests.benchmark.report.test_page import parse
from tests.benchmark.report.test_robustness import attacked


def results(**changes: object) -> Results:
    chosen = plan(**changes)
    return analyse(study(plan=chosen, made_up=chosen.made_up), chosen)


def rated(**changes: object) -> Scorecard:
    """A scorecard with a study in it; pretended to be of people unless told otherwise."""
    card = attacked()
    track = part_of(results(**{"made_up": False, **changes})).added_to(card.tracks["robustness"])
    return card.model_copy(update={"tracks": {**card.tracks, "robustness": track}})


def printed(card: Scorecard, width: int = 80) -> str:
    out = io.StringIO()
    print_scorecard(card, console=Console(file=out, width=width))
    return out.getvalue()


def test_the_page_says_its_numbers() -> None:
    card = rated()
    elements = parse(render_page(card))
    labels = [a.get("aria-label") or "" for tag, a in elements.found if tag == "svg"]
    for arm, name in (("none", "no explanation"), ("feature", "heat map"), ("example", "examples")):
        metric = card.tracks["robustness"].metrics[f"agreement_{arm}"]
        (label,) = [label for label in labels if label.startswith(f"Agreement, {name}: ")]
        assert f"{100 * metric.value:.1f} %" in label
        assert "12 raters" in label
    gain = card.tracks["robustness"].metrics["agreement_gain_feature"]
    (label,) = [label for label in labels if label.startswith("Agreement, heat map − no explanation")]
    assert points(gain.value) in label


def test_the_page_of_a_study_with_one_rater_an_arm() -> None:
    chosen = plan(made_up=True)
    card = attacked()
    track = part_of(analyse(study(plan=chosen, raters=1), chosen)).added_to(card.tracks["robustness"])
    page = render_page(card.model_copy(update={"tracks": {**card.tracks, "robustness": track}}))
    assert page.count("1 rater, 12 images") == 3
    assert "1 raters" not in page
    assert "No person answered" in page


@pytest.mark.parametrize("width", [80, 60])
def test_the_terminal_shows_each_arm_with_its_raters(width: int) -> None:
    text = printed(rated(), width)
    assert max(map(len, text.splitlines())) <= width
    part = text.split("Do people agree when they see why?")[1]
    assert part.index("no explanation") < part.index("heat map") < part.index("examples")
    assert re.search(r"Over-acceptance *\n +no explanation +[\d.]+ %", part)
    # Shown once, with raters, and not among the other metrics.
    assert "agreement, map" not in text


def test_a_made_up_study_is_said_everywhere() -> None:
    card = rated(made_up=True)
    assert "No person answered" in printed(card)
    assert "No person answered" in render_page(card)
    report = markdown(results())
    assert report.splitlines()[2].startswith("> **Made up for a test.**")


def test_a_study_that_was_not_preregistered_is_said() -> None:
    found = analyse(study(made_up=False))
    card = attacked()
    track = part_of(found).added_to(card.tracks["robustness"])
    page = render_page(card.model_copy(update={"tracks": {"robustness": track}}))
    assert "not preregistered" in page
    assert "Preregistration: none" in markdown(found)


def test_the_report_has_every_number_and_no_markup_of_others() -> None:
    found = results(title="A *bold* <b>title</b> | with | bars")
    report = markdown(found)
    assert report.splitlines()[0] == r"# A \*bold\* &lt;b\>title&lt;/b\> \| with \| bars"
    for share in found.measures["agreement"]:
        assert share.value is not None
        assert f"{100 * share.value:.1f} %" in report
    for contrast in found.contrasts:
        assert points(contrast.value) in report
    for line in report.splitlines():
        if line.startswith("|"):  # tables hold together
            assert line.count("|") - line.count(r"\|") >= 3
    for group in found.by_class:
        assert f"| {group.name} |" in report


def test_pictures_place_values_on_their_axis() -> None:
    found = results()
    drawn = ElementTree.fromstring(pictures(found)["agreement.svg"])
    circles = [float(e.get("cx", "nan")) for e in drawn.iter() if e.tag.endswith("circle")]
    values = [s.value for shares in found.measures.values() for s in shares if s.value is not None]
    assert len(circles) == len(values)
    slope = (circles[1] - circles[0]) / (values[1] - values[0])
    assert slope > 0
    for x, value in zip(circles, values):
        assert x == pytest.approx(circles[0] + slope * (value - values[0]), abs=0.2)
