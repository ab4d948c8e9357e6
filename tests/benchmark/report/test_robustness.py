"""The robustness track on the page and on the terminal."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from benchmark.attack_records import AttackInfo, AttackRecords, FindingInfo
from benchmark.report import charts, reproduce
from benchmark.report.examples import Example, View, magnified, png_uri, to_bytes
from benchmark.report.page import render_page
from benchmark.report.terminal import print_scorecard, print_table
from benchmark.scorecard import Scorecard, Track
from benchmark.tracks.robustness import score_robustness
from tests.benchmark.report import made_up
from tests.benchmark.report.test_page import parse
from tests.benchmark.tracks.test_robustness import simulate

RADII = (0.5 / 255, 1 / 255, 2 / 255, 4 / 255, 8 / 255)


def attacked(*, n: int = 40, message: str = "two forward passes differ") -> Scorecard:
    """A scorecard with a curve over five radii and smallest perturbations, from planted records."""
    # The same images at each radius: what an image does there is nothing that these tests look at.
    made, labels, _ = simulate(np.random.default_rng(7), n)
    rows = [replace(row, epsilon=epsilon) for epsilon in RADII for row in made]
    rng = np.random.default_rng(8)
    rows += [
        replace(
            row,
            suite="minimal",
            epsilon=0.0,
            distance=float(rng.exponential(0.01)) if row.status == "broken" else row.distance,
        )
        for row in made
    ]
    findings = [FindingInfo(kind="randomised", message=message, images=4)]
    infos = [
        AttackInfo(threat="linf", epsilon=e, suite="quick", note="reduced", findings=findings) for e in RADII
    ]
    track = score_robustness(AttackRecords.from_rows(rows), labels, infos).track
    full = made_up.full()
    return full.model_copy(update={"tracks": {**full.tracks, "robustness": track}})


def test_the_page_has_the_curve_of_both_objectives_and_says_its_numbers() -> None:
    card = attacked()
    page = render_page(card)
    elements = parse(page)
    labels = [a.get("aria-label") or "" for tag, a in elements.found if tag == "svg"]
    (curve,) = [label for label in labels if label.startswith("Robust accuracy by radius")]
    for row in card.tracks["robustness"].tables["by_epsilon"]:
        assert f"{100 * float(row['original'] or 0):.1f} % by the single label" in curve
        assert f"{100 * float(row['rectified'] or 0):.1f} % by what people accept" in curve
    # A line a step and a whisker a radius, for each of the two.
    for tone in ("single", "people"):
        assert page.count(f'class="curve {tone}"') == page.count(f'class="whisker {tone}"') == len(RADII)
    text = " ".join(elements.text)
    assert "Read with care" in text
    assert "two forward passes differ" in text
    assert "Robustness the label hides" in text
    assert not any(tag == "img" for tag, _ in elements.found)


def test_what_others_wrote_is_escaped_on_the_page_and_harmless_on_the_terminal() -> None:
    card = attacked(message="<script>alert(1)</script>\x1b[31m")
    page = render_page(card)
    assert "<script>" not in page
    assert "\x1b" not in page
    sink = io.StringIO()
    print_scorecard(card, console=Console(file=sink, width=200))
    assert "\x1b" not in sink.getvalue()


@pytest.mark.parametrize("width", [80, 100])
def test_the_terminal_fits_and_says_the_numbers(width: int) -> None:
    sink = io.StringIO()
    card = attacked()
    print_scorecard(card, console=Console(file=sink, width=width))
    out = sink.getvalue()
    assert max(map(len, out.splitlines())) <= 80
    metrics = card.tracks["robustness"].metrics
    assert re.search(rf"hidden +{100 * metrics['hidden_robustness'].value:.1f} ", out)
    for radius in ("0.5", "1", "2", "4", "8"):
        assert f"L∞ {radius}/255 quick" in out
    assert "Read with care" in out
    for row in card.tracks["robustness"].tables["minimal"]:
        median = row["median"]
        if isinstance(median, float):
            assert re.search(rf"L∞ +{row['found']} +{row['n']} .*{255 * median:.3g}/255", out)
    for row in card.tracks["robustness"].tables["distances"]:
        if row["objective"] == "original" and row["high"] is not None:
            assert re.search(rf"–{255 * float(row['high']):.3g}/255 .*\b{row['n']}\b", out)


def test_smallest_perturbations_stand_on_the_page() -> None:
    card = attacked()
    elements = parse(render_page(card))
    labels = [a.get("aria-label") or "" for tag, a in elements.found if tag == "svg"]
    rows = card.tracks["robustness"].tables["distances"]
    assert {row["suite"] for row in rows} == {"minimal"}
    for row in rows:
        if row["objective"] == "original":
            assert any(f": {row['n']} images by the single label" in label for label in labels)
    page = " ".join(elements.text)
    assert "was right before any attack" in page
    medians = {m.value for n, m in card.tracks["robustness"].metrics.items() if n.startswith("median")}
    assert medians
    for median in medians:
        assert f"{255 * median:.3g}/255" in page


def test_the_table_of_many_models_has_the_attacked_ones() -> None:
    sink = io.StringIO()
    one, two = attacked(), attacked(n=60)
    cards = [
        one,
        two.model_copy(update={"model": two.model.model_copy(update={"name": "second"})}),
        made_up.full(name="unattacked"),
    ]
    print_table(cards, console=Console(file=sink, width=80))
    head, _, table = sink.getvalue().partition("Under attack")
    assert "unattacked" in head
    assert "unattacked" not in table
    for card in (one, two):
        metrics = card.tracks["robustness"].metrics
        shown = [metrics[m] for m in ("robust_accuracy_original", "robust_accuracy_rectified")]
        assert re.search(
            rf"L∞ 4/255 quick +{shown[0].n} +{100 * shown[0].value:.1f} .* {100 * shown[1].value:.1f} ", table
        )
    assert max(map(len, sink.getvalue().splitlines())) <= 80


@pytest.mark.parametrize("tables", [{}, {"by_epsilon": [{}]}, {"distances": [{"low": "x"}]}])
def test_missing_and_odd_tables_are_left_out(tables: dict[str, list[dict[str, str]]]) -> None:
    card = attacked()
    track = Track.model_validate(
        {**card.tracks["robustness"].model_dump(), "tables": tables, "notes": ["only a note"]}
    )
    odd = card.model_copy(update={"tracks": {"robustness": track}})
    parse(render_page(odd))
    print_scorecard(odd, console=Console(file=io.StringIO(), width=80))


def test_the_command_makes_the_track_again() -> None:
    command = reproduce.command(attacked())
    assert "--tracks rectified,robustness --tier quick --norm linf" in command
    assert "--eps 0.5/255,1/255,2/255,4/255,8/255" in command


def test_a_curve_puts_small_radii_apart_and_shares_at_their_height() -> None:
    points = [charts.CurvePoint(0, 1.0), charts.CurvePoint(1, 0.5, 0.4, 0.6), charts.CurvePoint(4, 0.0)]
    svg = charts.curve([("single", points)], [(0, "0"), (1, "one"), (4, "four")], label="a")
    circles = [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)%" cy="([\d.]+)%"', svg)]
    (x0, y0), (x1, y1), (x2, y2) = circles
    assert (x1 - x0) == pytest.approx((x2 - x0) / 2, abs=0.02)  # square roots of 0, 1 and 4
    assert (y1 - y0) == pytest.approx((y2 - y0) / 2, abs=0.02)
    assert y0 < y1 < y2
    assert "four" in svg


def test_a_perturbation_is_magnified_to_the_full_range_around_grey() -> None:
    delta = np.zeros((3, 2, 2), dtype=np.float32)
    delta[0, 0, 0], delta[1, 1, 1] = 0.01, -0.005
    shown, factor = magnified(delta)
    assert factor == pytest.approx(50)
    assert shown[0, 0].tolist() == [255, 128, 128]
    assert shown[1, 1, 1] == 64
    assert shown[0, 1].tolist() == [128, 128, 128]
    assert magnified(np.zeros((3, 2, 2), dtype=np.float32))[0].tolist() == [[[128] * 3] * 2] * 2


def test_pictures_are_embedded_exactly_and_described() -> None:
    pixels = np.random.default_rng(0).random((3, 5, 7), dtype=np.float32)
    uri = png_uri(to_bytes(pixels))
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        assert np.array_equal(np.asarray(image), np.rint(pixels.transpose(1, 2, 0) * 255).astype(np.uint8))
    views = (View('the "image"', uri), View("the adversarial", uri))
    example = Example("<b>id", "cat", "dog", "accepted", "L∞ 4/255", "1/255", views)
    elements = parse(render_page(attacked(), examples=[example]))
    images = [a for tag, a in elements.found if tag == "img"]
    assert [a["alt"] for a in images] == ['the "image"', "the adversarial"]
    assert all(str(a["src"]).startswith("data:image/png;base64,") for a in images)
    assert "Keep this page to yourself." in elements.text
