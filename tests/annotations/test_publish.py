"""Releases: what leaves, what never leaves, and a Hub that is cut, moved or strange."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from annotations import hub as hub_module
from annotations import sources
from annotations.cli import annotations as command
from annotations.errors import BeyondError
from annotations.judgements import IMAGES_FILE, JUDGEMENTS_FILE, LabelSets
from annotations.publish import (
    CARD_FILE,
    CROISSANT_FILE,
    FILES,
    RATERS_FILE,
    VOTES_FILE,
    About,
    Release,
    prepare,
    protect,
    read_about,
    read_votes,
    upload,
)
from tests import hub_server
from tests.hub_server import HubServer

REPO = "tester/votes"

ABOUT = {
    "title": "Made-up votes for tests",
    "summary": "Nobody was asked: these votes are random numbers, to test publishing.",
    "licence": "CC-BY-4.0",
    "authors": ["A Test"],
    "contact": "nobody@example.org",
    "recruitment": "A random number generator.",
    "pay": "None.",
    "consent": "Version 1; no person took part.",
    "limits": "Shows nothing about any image.",
}


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """An export with 30 images, 40 pairs, 12 raters, five votes a pair, and gold."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "export"
    images = [f"ILSVRC2012_val_{i:08d}" for i in range(1, 31)]
    pairs = [(images[i % 30], int(c)) for i, c in enumerate(rng.permutation(1000)[:40])]
    rows = [
        {
            "question_id": q,
            "image_id": image,
            "class_index": c,
            "rater": f"r{rater:02d}",
            "answer": str(rng.choice(["yes", "no", "maybe"], p=[0.5, 0.4, 0.1])),
            "arm": "",
            "gold": q >= 35,
            "response_ms": int(rng.integers(300, 5000)),
            "sampling_probability": 1.0 if q >= 35 else 0.25,
            "counted": True,
            "purpose": "work",
        }
        for q, (image, c) in enumerate(pairs)
        for rater in rng.choice(12, 5, replace=False)
    ]
    judgements = pd.DataFrame(
        {
            "image_id": [image for image, _ in pairs],
            "class_index": [c for _, c in pairs],
            "verdict": rng.choice(["accepted", "rejected", "unsure"], 40),
            "score": rng.random(40).astype(np.float32),
            "votes": 5,
            "source": "campaign",
        }
    )
    table = pd.DataFrame({"image_id": images, "status": "evaluable", "closed_world": False})
    LabelSets.from_tables(judgements, table, source="t", revision="t").save(folder)
    pd.DataFrame(rows).to_parquet(folder / VOTES_FILE)
    (folder / "campaign.json").write_text('{"frozen": true}')
    return folder


@pytest.fixture(autouse=True)
def token(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_made_up")
    monkeypatch.setattr("annotations.hub.time.sleep", lambda _: None)


@pytest.fixture
def release(export: Path, tmp_path: Path) -> Release:
    return prepare(export, About.model_validate(ABOUT), tmp_path / "release")


# What a release is ------------------------------------------------------------------------------------------


def test_datasets_loads_it_from_the_folder(release: Release, export: Path) -> None:
    import datasets

    for config, file in (("judgements", JUDGEMENTS_FILE), ("images", IMAGES_FILE), ("votes", VOTES_FILE)):
        loaded = datasets.load_dataset(
            str(release.folder), config, split="validation", cache_dir=str(export.parent / "cache")
        )
        table = pq.read_table(release.folder / file)
        assert loaded.num_rows == table.num_rows
        assert loaded.column_names == table.column_names
    default = datasets.load_dataset(
        str(release.folder), split="validation", cache_dir=str(export.parent / "cache")
    )
    assert "verdict" in default.column_names


def test_croissant_is_valid_and_reads_the_records(release: Release) -> None:
    import mlcroissant

    dataset = mlcroissant.Dataset(str(release.folder / CROISSANT_FILE))
    assert not dataset.metadata.ctx.issues.errors
    first = next(iter(dataset.records("votes")))
    assert set(first) == {f"votes/{name}" for name in pq.read_schema(release.folder / VOTES_FILE).names}


def test_the_card_says_what_is_there(release: Release) -> None:
    text = (release.folder / CARD_FILE).read_text()
    header = yaml.safe_load(text.split("---")[1])
    assert header["license"] == "cc-by-4.0"
    assert [config["config_name"] for config in header["configs"]] == ["judgements", "images", "votes"]
    for words in (
        "175 votes on pairs and 25 on gold, by 12 raters",
        "Krippendorff",
        "random number generator",
    ):
        assert words in text
    assert release.agreement["alpha_nominal"].n == 35


def test_checksums_hold_and_the_same_export_gives_the_same_bytes(
    release: Release, export: Path, tmp_path: Path
) -> None:
    again = prepare(export, About.model_validate(ABOUT), tmp_path / "again")
    assert again.sha256 == release.sha256
    lines = (line.split("  ") for line in (release.folder / "SHA256SUMS").read_text().splitlines())
    listed = {name: value for value, name in lines}
    assert listed == release.sha256
    assert set(listed) == {path.name for path in release.folder.iterdir()} - {"SHA256SUMS"}


def test_a_release_can_be_scored_against(release: Release) -> None:
    label_sets = sources.load(str(release.folder))
    assert len(label_sets.verdict) == 40


# What never leaves ------------------------------------------------------------------------------------------


def test_no_picture_and_no_stray_file_leaves(export: Path, tmp_path: Path, hub: HubServer) -> None:
    (export / "ILSVRC2012_val_00000001.JPEG").write_bytes(b"pixels")
    (export / "notes.txt").write_text("private")
    made = prepare(export, About.model_validate(ABOUT), tmp_path / "release")
    upload(made, REPO, cache_dir=tmp_path / "cache")
    assert set(hub.files("dataset", REPO)) - {".gitattributes"} == set(made.sizes) <= set(FILES)
    (tmp_path / "release" / "ILSVRC2012_val_00000001.JPEG").write_bytes(b"pixels")
    with pytest.raises(BeyondError, match="no part of a release"):
        prepare(export, About.model_validate(ABOUT), tmp_path / "release")


def test_an_unknown_column_of_votes_is_refused(export: Path, tmp_path: Path) -> None:
    votes = pd.read_parquet(export / VOTES_FILE).assign(ip_address="192.0.2.1")
    votes.to_parquet(export / VOTES_FILE)
    with pytest.raises(BeyondError, match="ip_address"):
        prepare(export, About.model_validate(ABOUT), tmp_path / "release")


def test_attributes_of_few_raters_are_withheld() -> None:
    raters = pd.DataFrame(
        {
            "rater": [f"r{i}" for i in range(17)],
            "country": ["NL"] * 6 + ["FR"] * 7 + ["IS"] * 2 + ["NL"] * 2,
            "age": ["18-30"] * 6 + ["31-50"] * 7 + ["18-30"] * 2 + ["51+"] * 2,
        }
    )
    table, withheld = protect(raters, known=set(raters["rater"]))
    shown = Counter(tuple(row[1:]) for row in table.dropna().itertuples(index=False, name=None))
    assert all(count >= 5 for count in shown.values())
    # IS and NL 51+ are four raters: too few to hide among themselves, so the smallest other group joins them.
    assert withheld == 10
    assert shown == {("FR", "31-50"): 7}


def test_raters_without_votes_are_dropped_and_all_may_be_shown(export: Path, tmp_path: Path) -> None:
    names = [f"r{i:02d}" for i in range(15)]
    pd.DataFrame({"rater": names, "language": "en"}).to_parquet(export / RATERS_FILE)
    made = prepare(export, About.model_validate(ABOUT), tmp_path / "release")
    raters = pd.read_parquet(made.folder / RATERS_FILE)
    assert list(raters["rater"]) == names[:12]
    assert made.withheld == 0
    assert (raters["language"] == "en").all()


def test_a_campaign_that_is_not_frozen_is_refused(export: Path, tmp_path: Path) -> None:
    (export / "campaign.json").write_text(json.dumps({"frozen": False}))
    with pytest.raises(BeyondError, match="not frozen"):
        prepare(export, About.model_validate(ABOUT), tmp_path / "release")


# The Hub ----------------------------------------------------------------------------------------------------


def test_one_commit_tagged_and_read_back(release: Release, hub: HubServer, tmp_path: Path) -> None:
    done = upload(release, REPO, tag="v1.0", cache_dir=tmp_path / "cache")
    assert done.changed
    for name in release.sizes:
        assert hub.files("dataset", REPO, "v1.0")[name] == (release.folder / name).read_bytes()
    folder = hub_module.download(REPO, "v1.0", cache_dir=tmp_path / "other")
    assert LabelSets.load(folder, source="hub").verdict.tolist() == (
        LabelSets.load(release.folder, source="x").verdict.tolist()
    )


def test_publishing_again_sends_nothing(release: Release, hub: HubServer, tmp_path: Path) -> None:
    first = upload(release, REPO, tag="v1.0", cache_dir=tmp_path / "cache")
    second = upload(release, REPO, tag="v1.0", cache_dir=tmp_path / "cache")
    assert not second.changed
    assert second.commit == first.commit


def test_a_tag_never_moves(release: Release, export: Path, hub: HubServer, tmp_path: Path) -> None:
    upload(release, REPO, tag="v1.0", cache_dir=tmp_path / "cache")
    other = prepare(export, About.model_validate({**ABOUT, "pay": "Still none."}), tmp_path / "other")
    with pytest.raises(BeyondError, match="never moves"):
        upload(other, REPO, tag="v1.0", cache_dir=tmp_path / "cache")


def test_a_cut_connection_leaves_nothing_half_done(
    release: Release, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(release, REPO, cache_dir=tmp_path / "cache")
    before = hub.files("dataset", REPO)
    other = prepare_other(release, tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(hub_server._Handler, "_make_commit", lambda self, *_, **__: self._break())
        with pytest.raises(BeyondError, match="cannot reach the Hub"):
            upload(other, REPO, tag="v2", cache_dir=tmp_path / "cache")
    assert hub.files("dataset", REPO) == before
    assert not hub.repos[("dataset", REPO)].tags
    upload(other, REPO, cache_dir=tmp_path / "cache")
    assert hub.files("dataset", REPO)[CARD_FILE] == (other.folder / CARD_FILE).read_bytes()


def prepare_other(release: Release, tmp_path: Path) -> Release:
    return prepare(
        tmp_path / "export", About.model_validate({**ABOUT, "limits": "Nothing at all."}), tmp_path / "two"
    )


def test_somebody_elses_commit_in_between_is_not_overwritten(
    release: Release, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(release, REPO, cache_dir=tmp_path / "cache")
    other = prepare_other(release, tmp_path)
    from huggingface_hub import HfApi

    honest: Any = HfApi.create_commit

    def late(self: HfApi, *args: object, **kwargs: object) -> object:
        hub.repos[("dataset", REPO)].commit({"README.md": b"theirs"}, ref="main", title="theirs")
        return honest(self, *args, **kwargs)

    monkeypatch.setattr(HfApi, "create_commit", late)
    with pytest.raises(BeyondError, match="somebody else"):
        upload(other, REPO, cache_dir=tmp_path / "cache")
    assert hub.files("dataset", REPO)["README.md"] == b"theirs"


def test_an_answer_that_is_lost_is_no_second_commit(
    release: Release, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit arrives, its acknowledgement does not: running again finds it there."""
    honest = hub_server._Handler._json

    def lost(self: hub_server._Handler, value: object, status: int = 200) -> None:
        if isinstance(value, dict) and "commitUrl" in value:
            self._break()
        else:
            honest(self, value, status)

    with monkeypatch.context() as broken:
        broken.setattr(hub_server._Handler, "_json", lost)
        with pytest.raises(BeyondError, match="cannot reach the Hub"):
            upload(release, REPO, cache_dir=tmp_path / "cache")
    commits = len(hub.repos[("dataset", REPO)].commits)
    assert not upload(release, REPO, cache_dir=tmp_path / "cache").changed
    assert len(hub.repos[("dataset", REPO)].commits) == commits


def test_without_a_token_it_says_how_to_log_in(
    release: Release, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(BeyondError, match="hf auth login"):
        upload(release, REPO, cache_dir=tmp_path / "cache")


def test_a_file_changed_after_preparing_is_refused(release: Release, hub: HubServer, tmp_path: Path) -> None:
    (release.folder / CARD_FILE).write_text("edited")
    with pytest.raises(BeyondError, match="prepare it again"):
        upload(release, REPO, cache_dir=tmp_path / "cache")
    assert ("dataset", REPO) not in hub.repos


def test_a_pull_request_leaves_main_alone(release: Release, hub: HubServer, tmp_path: Path) -> None:
    done = upload(release, REPO, pull_request=True, cache_dir=tmp_path / "cache")
    assert set(hub.files("dataset", REPO)) == {".gitattributes"}
    assert set(release.sizes) <= set(hub.files("dataset", REPO, done.commit))
    assert "/discussions/" in done.url


# Bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answer": "perhaps"}, "not yes, no or maybe"),
        ({"class_index": 1000}, r"outside 0\.\.999"),
        ({"sampling_probability": 0.0}, "sampling probability"),
        ({"rater": ""}, "no rater"),
        ({"question_id": 0, "rater": "r00"}, "two votes"),
    ],
)
def test_bad_votes_are_named(export: Path, change: dict[str, Any], words: str) -> None:
    pd.read_parquet(export / VOTES_FILE).assign(**change).to_parquet(export / VOTES_FILE)
    with pytest.raises(BeyondError, match=words):
        read_votes(export / VOTES_FILE)


def test_bad_abouts_are_named(tmp_path: Path) -> None:
    file = tmp_path / "about.yaml"
    with pytest.raises(BeyondError, match="recruitment"):
        read_about(file)
    for text, words in (
        ("title: [", "not YAML"),
        ("- 1", "no keys"),
        (yaml.safe_dump({**ABOUT, "colour": "red"}), "colour"),
        (yaml.safe_dump({k: v for k, v in ABOUT.items() if k != "pay"}), "pay"),
        (yaml.safe_dump({**ABOUT, "licence": "free to use"}), "licence"),
        (yaml.safe_dump({**ABOUT, "homepage": "javascript:alert(1)"}), "homepage"),
    ):
        file.write_text(text)
        with pytest.raises(BeyondError, match=words):
            read_about(file)


def test_missing_and_broken_files_are_named(export: Path, tmp_path: Path) -> None:
    about = About.model_validate(ABOUT)
    (export / VOTES_FILE).write_bytes(b"PAR1")
    with pytest.raises(BeyondError, match="not a readable Parquet"):
        prepare(export, about, tmp_path / "out")
    (export / VOTES_FILE).unlink()
    with pytest.raises(BeyondError, match="no file"):
        prepare(export, about, tmp_path / "out")
    with pytest.raises(BeyondError, match="no such folder"):
        prepare(tmp_path / "nowhere", about, tmp_path / "out")
    pq.write_table(pa.table({"image_id": ["x"]}), export / VOTES_FILE)
    with pytest.raises(BeyondError, match="no column"):
        prepare(export, about, tmp_path / "out")


# The command ------------------------------------------------------------------------------------------------


def test_the_command_publishes(export: Path, hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "about.yaml").write_text(yaml.safe_dump(ABOUT))
    base = ["publish", str(export), "--about", str(tmp_path / "about.yaml"), "--store", str(tmp_path / "s")]
    dry = CliRunner().invoke(command, [*base, "--to", REPO, "--dry-run"], catch_exceptions=False)
    assert dry.exit_code == 0
    assert "nothing sent" in dry.output
    assert not hub.requests
    sent = CliRunner().invoke(command, [*base, "--to", REPO, "--tag", "v1", "--json"])
    assert sent.exit_code == 0, sent.output
    report = json.loads(sent.stdout)
    assert report["published"]["tag"] == "v1"
    assert set(report["files"]) <= set(hub.files("dataset", REPO, "v1"))
    again = CliRunner().invoke(command, [*base, "--to", REPO, "--tag", "v1"])
    assert "holds exactly this already" in again.output
    lost = CliRunner().invoke(command, [*base, "--tag", "v1"])
    assert "need --to" in str(lost.exception)
