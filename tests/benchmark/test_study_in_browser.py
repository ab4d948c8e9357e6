"""A whole study in a real browser: a model attacked, a study made, three raters by keyboard, the analysis.

All answers here are made up by the test.
"""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from annotations.classes import class_names, validation_labels, validation_number
from annotations.study.stimuli import Stimuli, read_stimuli
from benchmark.attack_records import read_attacks
from benchmark.runs import read_run
from tests.benchmark.test_cli import run
from tests.browser import open_browser

ROOT = Path(__file__).resolve().parents[2]

# Images that efficientnet-lite0 is right about, that people accept the label of, and that an attack turns
# into a class of which the sample has images; found by a run on all of the sample.
NUMBERS = (
    361, 1270, 2293, 3506, 4232, 6155, 7895, 8495, 9348, 10202,
    11430, 12121, 14630, 15232, 16602, 20875, 22079, 23225, 23559, 25367,
)  # fmt: skip
ITEMS, CHECKS, PRACTICE = 4, 2, 2


def link(images: list[Path], folder: Path) -> Path:
    folder.mkdir()
    for image in images:
        (folder / image.name).symlink_to(image)
    return folder


@contextmanager
def served(study: Path) -> Iterator[str]:
    """Address of `beyond study serve`, in a process of its own."""
    command = [sys.executable, "-m", "benchmark", "study", "serve", str(study), "--port", "0"]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        found = re.search(r"http://\S+", server.stdout.readline())
        assert found is not None
        yield found.group()
    finally:
        server.terminate()
        server.wait(timeout=20)


def shown(page: Page, *, other_than: str) -> str:
    page.wait_for_selector(f'#rate[data-shown]:not([data-shown="{other_than}"])')
    page.wait_for_selector(".answer.yes:not([disabled])")
    token = page.get_attribute("#rate", "data-shown")
    assert token
    return token


def no_serious_violation(page: Page) -> None:
    found = Axe().run(page).response["violations"]
    serious = [rule["id"] for rule in found if rule["impact"] in ("serious", "critical")]
    assert serious == [], page.url


def rate(browser: Browser, address: str, invitation: str, stimuli: Stimuli, rule: Any) -> dict[str, Any]:
    """One rater by keyboard, from the invitation to the debriefing; returns what was seen."""
    item_of = {class_names()[item.shown_class]: item for item in stimuli.items}
    trouble: list[str] = []
    seen: dict[str, Any] = {"labels": [], "widths": set(), "captions": set(), "trouble": trouble}
    context = browser.new_context(reduced_motion="reduce", viewport={"width": 1280, "height": 800})
    context.set_default_timeout(20_000)
    context.on("weberror", lambda error: trouble.append(str(error.error)))
    context.on(
        "request",
        lambda request: None if request.url.startswith((address, "data:")) else trouble.append(request.url),
    )
    page = context.new_page()
    page.goto(invitation)
    for path in ("/consent", "/instructions", "/work"):
        page.wait_for_selector("button.go:focus")
        page.keyboard.press("Enter")
        page.wait_for_url(f"{address}{path}")
    token = ""
    for number in range(1, PRACTICE + ITEMS + CHECKS + 1):
        token = shown(page, other_than=token)
        if number == PRACTICE + 2:  # a reload shows the same question again
            page.reload()
            assert shown(page, other_than="") == token
        item = item_of[page.inner_text(".label")]
        seen["labels"].append(item.item)
        photograph = page.locator(".panels figure >> nth=0 >> img").bounding_box()
        assert photograph is not None
        seen["widths"].add(round(photograph["width"]))
        beside = page.locator(".panels figure.second img")
        seen["captions"].add(page.inner_text(".second figcaption") if beside.count() else "")
        if number == PRACTICE + 1:
            no_serious_violation(page)
        page.keyboard.press("y" if (rule(item) if not item.expected else item.expected == "yes") else "n")
        if number <= PRACTICE:
            page.wait_for_selector(".feedback.right:not([hidden])")
            page.keyboard.press("Enter")
        if number == PRACTICE:
            page.wait_for_selector(".note:not([hidden]) button.go:focus")
            page.keyboard.press("Enter")
    page.wait_for_url(f"{address}/thanks")
    assert "were altered by a computer" in page.inner_text("main")
    no_serious_violation(page)
    context.close()
    return seen


@pytest.mark.shared
def test_a_whole_study(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEYOND_SHARED_DATA", str(shared_data))
    torch.set_num_threads(1)
    with (shared_data / "ilsvrc-val-sample" / "labels.csv").open() as file:
        label_of = {row["image_id"]: int(row["class_index"]) for row in csv.DictReader(file)}
    files = {path.stem: path for path in (shared_data / "ilsvrc-val-sample" / "images").iterdir()}
    asked = {f"ILSVRC2012_val_{number:08d}" for number in NUMBERS}
    images = link([files[image_id] for image_id in sorted(asked)], tmp_path / "images")
    out, study = tmp_path / "run", tmp_path / "study"
    options = ("--annotations", "real", "--tracks", "robustness", "--workers", "0", "--threads", "1")
    assert run("score", "efficientnet-lite0", "--images", images, *options, "--out", out) == 0

    # Other images of the classes that may be shown: their labels, and where the attack led.
    rows = read_attacks(out).table
    classes = {label_of[image_id] for image_id in asked} | set(rows["adversarial_class"])
    others = [files[i] for i, label in label_of.items() if label in classes and i not in asked]
    references = link(others, tmp_path / "references")
    create = ("study", "create", out, "--references", references, "--out", study, "--raters", "1")
    numbers = ("--items", ITEMS, "--checks", CHECKS, "--practice", PRACTICE)
    assert run(*create, *map(str, numbers), "--made-up") == 0
    assert "preregistered before any answer" in capsys.readouterr().err
    assert run(*create) == 2
    assert "holds a study already" in capsys.readouterr().err

    stimuli = read_stimuli(study)
    assert stimuli.source.model["weights_sha256"] == read_run(out).model.weights_sha256
    reached = {
        row.image_id: row.adversarial_class
        for row in rows.itertuples()
        if row.objective == "original" and row.status == "broken"
    }
    of = {item.item: item for item in stimuli.items}
    for item in stimuli.items:
        if item.kind == "adversarial":
            assert item.shown_class == reached[item.image_id] != item.original_label
    for picture in stimuli.pictures:
        for name in picture.neighbours:
            assert validation_labels()[validation_number(name) - 1] == of[picture.item].shown_class  # type: ignore[operator]
            assert name not in asked
        assert bool(picture.neighbours) == (picture.arm == "example")

    assert run("campaign", "invite", "--db", study, "--count", "3", "--base", "BASE", "--json") == 0
    invitations = json.loads(capsys.readouterr().out)
    # What each says of the items themselves; checks are answered as they should be.
    rules = [lambda _: True, lambda _: False, lambda item: item.kind != "sham"]
    with served(study) as address, open_browser() as browser:
        seen = [
            rate(browser, address, invitation.replace("BASE", address), stimuli, rule)
            for invitation, rule in zip(invitations, rules, strict=True)
        ]
    for one in seen:
        assert one["trouble"] == []
        assert sorted(one["labels"]) == sorted(of)
    assert {frozenset(one["captions"]) for one in seen} == {
        frozenset({""}),
        frozenset({"Yellow: speaks most for the label"}),
        frozenset({"Other photographs with this label"}),
    }
    assert len({width for one in seen for width in one["widths"]}) == 1  # as large in all arms

    assert run("campaign", "check", "--db", study) == 0
    assert run("study", "analyse", study, "--json") == 0
    results = json.loads(capsys.readouterr().out.split("\n", 1)[1])
    arms = {
        "": "none",
        "Yellow: speaks most for the label": "feature",
        "Other photographs with this label": "example",
    }
    order = [arms[next(iter(one["captions"]))] for one in seen]
    assert results["made_up"] is True
    assert results["raters"] == {"none": 1, "feature": 1, "example": 1}  # the checks were answered rightly
    found = {s["arm"]: s["value"] for s in results["measures"]["agreement"]}
    assert found == dict(zip(order, (1.0, 0.0, 1.0)))
    shams = {s["arm"]: s["value"] for k in results["by_kind"] if k["name"] == "sham" for s in k["shares"]}
    assert shams == dict(zip(order, (1.0, 0.0, 0.0)))
    report = {path.name: path.read_bytes() for path in (study / "report").iterdir()}
    assert run("study", "analyse", study) == 0
    assert {path.name: path.read_bytes() for path in (study / "report").iterdir()} == report
