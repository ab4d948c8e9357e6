"""Scorecards on a terminal: complete, within 80 columns, and harmless."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from benchmark.report import names, text
from benchmark.report.terminal import print_scorecard, print_table
from benchmark.scorecard import Scorecard
from tests.benchmark.report import made_up

CARDS = {"full": made_up.full(), "tiny": made_up.tiny(), "bare": made_up.bare()}


def printed(card: Scorecard, *, encoding: str = "utf-8", width: int = 80, terminal: bool = False) -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, newline="\n")
    console = Console(
        file=file, width=width, force_terminal=terminal, color_system="truecolor" if terminal else None
    )
    print_scorecard(card, console=console)
    file.flush()
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("name", CARDS)
def test_lines_fit(name: str, width: int) -> None:
    lines = printed(CARDS[name], width=width).splitlines()
    assert max(len(line) for line in lines) <= min(width, 80)


def test_headline_comes_first_and_numbers_have_interval_and_n() -> None:
    out = printed(made_up.full())
    lines = [line.strip() for line in out.splitlines() if line.strip()]
    assert lines[1] == "People accept 83.0 % of its answers; the single label says 78.5 %."
    assert re.search(r"People accept its answer +ReaL accuracy +83\.00 +82\.66–83\.34 +46,000", out)
    assert re.search(r"bounds, 54 unjudged +85\.30–85\.60", out)
    assert re.search(r"ReaL +46,000 +21\.5 +17\.0 +20\.9 % +19\.9–21\.9", out)
    for metric in made_up.full().tracks["rectified"].metrics.values():
        assert f"{100 * metric.value:.2f}" in out


def test_no_direction_is_claimed_that_the_interval_does_not_allow() -> None:
    card = made_up.full()
    track = card.tracks["rectified"]
    row = track.tables["standard_vs_rectified"][0] | {"ci_low": -0.05, "ci_high": 0.4}
    track = track.model_copy(update={"tables": {"standard_vs_rectified": [row]}})
    out = printed(card.model_copy(update={"tracks": {"rectified": track}}))
    assert "these images cannot tell" in out
    assert "smaller than it seems." not in out.replace("Whether its error is smaller than it seems", "")


@pytest.mark.parametrize("name", CARDS)
def test_works_without_utf8(name: str) -> None:
    out = printed(CARDS[name], encoding="ascii")
    assert out.isascii()
    assert "?" not in out


def test_piped_output_has_no_escape_codes_and_a_terminal_has() -> None:
    assert "\x1b" not in printed(made_up.full())
    assert "\x1b[" in printed(made_up.full(), terminal=True)


@pytest.mark.parametrize(
    "hostile", ["\x1b]0;owned\x07", "\x1b[2J", "a\rb", "\u202egnp.exe", "[bold red]x[/]", "\x9b31m"]
)
def test_names_from_users_cannot_act_on_the_terminal(hostile: str) -> None:
    out = printed(made_up.full(name=f"x{hostile}y", class_prefix=hostile, spec=f"p{hostile}.npy"))
    assert not set(out) & set("\x1b\x07\r\x9b\u202e")
    if hostile.startswith("["):
        assert f"x{hostile}y" in out


@given(st.text())
def test_clean_text_is_one_line_without_control_characters(string: str) -> None:
    cleaned = text.clean(string)
    assert cleaned.isprintable()
    assert text.clean(cleaned) == cleaned


def test_sample_is_called_a_sample() -> None:
    assert "not an ImageNet figure" in printed(made_up.tiny())
    assert "not an ImageNet figure" not in printed(made_up.full())


def test_table_of_many_is_sorted_by_what_people_accept() -> None:
    file = io.StringIO()
    worse = made_up.full(name="worse")
    track = worse.tracks["rectified"]
    rows = [
        row | {"rectified_error": 0.2, "reduction": 0.07} for row in track.tables["standard_vs_rectified"]
    ]
    track = track.model_copy(update={"tables": {"standard_vs_rectified": rows}})
    worse = worse.model_copy(update={"tracks": {"rectified": track}})
    print_table([made_up.bare(), worse, made_up.full(name="better")], console=Console(file=file, width=80))
    out = file.getvalue()
    assert out.index("better") < out.index("worse") < out.index("bare")
    assert re.search(r"better +76\.00 +78\.50 +83\.00 +82\.66–83\.34 +-20\.9 % +46,000", out)
    assert re.search(
        r"worse +76\.00 +78\.50 +80\.00 +-7\.0 % +46,000", out
    )  # its interval belongs to another value
    assert max(len(line) for line in out.splitlines()) <= 80


def test_display_names_fit_their_columns_and_are_unique() -> None:
    for track, metrics in names.METRICS.items():
        assert max(len(name.label) for name in metrics.values()) <= 29, track
        assert max(len(name.technical) for name in metrics.values()) <= 16, track
        assert len({name.technical for name in metrics.values()}) == len(metrics)


@pytest.mark.parametrize(
    ("fraction", "decimals", "expected"),
    [
        (0.7613, 2, "76.13"),
        (1.0, 1, "100.0"),
        (0.9999999, 2, ">99.99"),
        (0.0, 1, "0.0"),
        (0.0001, 1, "<0.1"),
        (-0.05, 1, "-5.0"),
    ],
)
def test_percentages_never_round_to_certainty(fraction: float, decimals: int, expected: str) -> None:
    assert text.percent(fraction, decimals) == expected
