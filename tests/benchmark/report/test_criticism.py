"""The criticism track on the page and on the terminal."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from benchmark.criticism.attributes import Attribute
from benchmark.criticism.info import CriticismInfo
from benchmark.criticism.records import SCHEMA
from benchmark.report import criticism
from benchmark.report.montage import Montage, Picture
from benchmark.report.page import render_page
from benchmark.report.terminal import print_scorecard
from benchmark.scorecard import Metric, Scorecard, Track
from benchmark.tracks import CRITICISM as INFO
from benchmark.tracks.criticism import Evidence, score_criticism
from tests.benchmark.report import made_up
from tests.benchmark.report.test_page import parse

PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAP///wAAACH5BAEAAAAALAAAAAABAAEAAAICRAEAOw=="


def evidence(n: int = 900) -> Evidence:
    """Made-up distances of three classes; in one of them an attribute goes with a small distance."""
    import pandas as pd

    rng = np.random.default_rng(4)
    ids = [f"ILSVRC2012_val_{i:08d}" for i in range(1, n + 1)]
    label = np.arange(n) % 3 * 100 + 11
    distance = rng.gamma(2, 0.1, n) + 0.01
    predicted = np.where((distance < 0.08) & (rng.random(n) < 0.5), 500, label)
    dim = (label == 111) & (distance + rng.normal(0, 0.05, n) < 0.18)
    columns = {
        "image_id": ids, "class_index": label, "suite": "quick", "seed": 0, "predicted": predicted,
        "correct": predicted == label, "status": "found", "distance": distance, "attack": "fmn",
        "neighbour": (label + 1) % 1000,
    }  # fmt: skip
    table = pd.DataFrame(columns)[SCHEMA.names]
    again = table.iloc[:60].assign(suite="standard", distance=distance[:60] * 0.97)
    rows = pd.DataFrame(
        {"image_id": ids, "attribute": "dim light", "value": np.where(dim, "yes", "no"), "kind": "scene"}
    )
    slices = pd.DataFrame({"image_id": ids, "slice": np.where(np.arange(n) % 9 == 0, 0, -1), "weight": 0.9})
    chosen = [(i, c, 1 if k % 2 else -1, 1) for k, (i, c) in enumerate(zip(ids[:40], label[:40]))]
    return Evidence(
        table=pd.concat([table, again], ignore_index=True),
        labels={},
        info=CriticismInfo(attributes=["scenes"], planned=n),
        confidence=dict(zip(ids, rng.uniform(0.3, 1, n))),
        files={"scenes": rows},
        slices=slices,
        baseline=pd.DataFrame(chosen, columns=["image_id", "class_index", "role", "rank"]),
    )


def criticized(*, says: str = "dim light", probes: bool = True) -> Scorecard:
    """A scorecard with the track, from made-up records."""
    result = score_criticism(evidence())
    assert result is not None
    data = result.track.model_dump()
    for row in data["tables"]["findings"]:
        row["says"] = says
    if probes:
        data["metrics"]["shape_bias"] = made_up.share(0.22, 174, 0.06).model_dump()
        data["tables"]["probes"] = [
            {"probe": "cue-conflict", "version": 1, "question": "Shape or texture?", "value": 0.22,
             "main_score": "shape_bias", "data": "made up", "licence": "none"},
        ]  # fmt: skip
        data["tables"]["probe_references"] = [
            {
                "probe": "cue-conflict",
                "metric": "shape_bias",
                "who": "people",
                "value": 0.959,
                "source": "made up",
            }
        ]
    full = made_up.full()
    return full.model_copy(update={"tracks": {**full.tracks, "criticism": Track.model_validate(data)}})


def only(card: Scorecard) -> Scorecard:
    return card.model_copy(update={"tracks": {"criticism": card.tracks["criticism"]}})


def montage(*, name: str = "vulture") -> Montage:
    good = Picture(PIXEL, "ILSVRC2012_val_00000001", name, name, True, "0.9", "kite")
    bad = Picture(PIXEL, "ILSVRC2012_val_00000002", name, "kite", False, "0.4", name)
    return Montage(name, (good,) * 6, (bad,) * 5)


def test_the_page_says_what_was_confirmed_and_by_how_much() -> None:
    card = criticized()
    elements = parse(render_page(card))
    rows = [row for row in card.tracks["criticism"].tables["findings"] if row["confirmed"]]
    assert rows
    labels = [a.get("aria-label") or "" for tag, a in elements.found if tag == "svg"]
    for row in rows:
        n, of = row["criticisms"], row["n_criticisms"]
        assert isinstance(n, int)
        assert isinstance(of, int)
        want = f"{row['subject']}, dim light: {100 * n / of:.1f} % of"
        assert any(label.startswith(want) for label in labels), want
    text = " ".join(elements.text)
    assert "What goes with being unsure" in text
    assert "Standard probes" in text
    assert not any(tag == "img" for tag, _ in elements.found)


def test_a_page_of_the_track_alone_leads_with_it() -> None:
    card = only(criticized())
    count = int(card.tracks["criticism"].metrics["confirmed_biases"].value)
    assert count == 1
    assert '<strong class="people">1 bias</strong> holds on images' in render_page(card)
    found = criticism.lede(card.model_copy(update={"tracks": {"criticism": Track(version=1, metrics={
        "confirmed_biases": Metric(value=0, n=812, method="count", unit="count")})}}))  # fmt: skip
    assert found == ("No bias", "could be confirmed on these 812 images.", False)
    assert criticism.lede(made_up.full()) is None


def test_pictures_stand_on_their_sides_with_their_answers() -> None:
    html = render_page(only(criticized()), montages=[montage(name="<b>vulture")])
    elements = parse(html)
    images = [a for tag, a in elements.found if tag == "img"]
    assert len(images) == 11
    assert images[0]["alt"] == "ILSVRC2012_val_00000001, <b>vulture; answer: <b>vulture; distance 0.9"
    assert "Keep this page to yourself." in elements.text
    assert "<b>vulture" not in html


@pytest.mark.parametrize("width", [80, 100])
def test_the_terminal_fits_and_says_the_numbers(width: int) -> None:
    sink = io.StringIO()
    card = criticized()
    print_scorecard(card, console=Console(file=sink, width=width))
    out = sink.getvalue()
    assert max(map(len, out.splitlines())) <= 80
    first = next(row for row in card.tracks["criticism"].tables["findings"] if row["confirmed"])
    assert re.search(
        rf"{first['subject']}: dim light +{criticism.points(float(first['difference'] or 0))} ", out
    )
    assert re.search(r"Decides by shape +95.9 % +people", out)
    assert "budget quick to standard" in out


@pytest.mark.parametrize(
    "tables",
    [{}, {"findings": [{}]}, {"slices": [{}]}, {"examples": [{}]}, {"probes": [{}]}, {"stability": [{}]},
     {"distance_histogram": [{"low": "x"}]}, {"classes": [{"n": 1}]}, {"baseline": [{}]}],
)  # fmt: skip
def test_missing_and_odd_tables_are_left_out(tables: dict[str, Any]) -> None:
    card = criticized()
    track = Track.model_validate({**card.tracks["criticism"].model_dump(), "tables": tables})
    odd = card.model_copy(update={"tracks": {"criticism": track}})
    parse(render_page(odd))
    print_scorecard(odd, console=Console(file=io.StringIO(), width=80))


def test_what_nothing_says_is_said() -> None:
    def words(**row: int) -> str:
        return criticism.verdict(Track(version=1, tables={"search": [dict(row)]}))

    assert words(tested=0).startswith("Nothing could be tested")
    assert words(tested=7, found=0, n_discovery=1200) == "Nothing stood out in 7 tests on 1,200 images."
    assert words(tested=7, found=1, n_discovery=9, n_confirmation=8).startswith(
        "One candidate of 7 tests on 9"
    )
    assert criticism.verdict(Track(version=1)).startswith("Nothing could be tested")


def test_every_metric_and_table_is_in_the_registry() -> None:
    track = criticized().tracks["criticism"]
    for name in track.metrics:
        assert INFO.metric(name).description
    assert set(track.tables) <= set(INFO.tables)


def test_attribute_words() -> None:
    codes = np.zeros(1, np.int8)
    assert Attribute("night", "s", ("no", "yes"), codes, (1,)).says(1) == "night"
    assert Attribute("place", "s", ("sea", "wood"), codes, (1,)).says(1) == "place: wood"
