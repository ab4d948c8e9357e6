"""Downloading label sets, with the real client against the local Hub server."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from pathlib import Path

import pytest

from annotations import hub as hub_module
from annotations import sources
from annotations.errors import BeyondError
from annotations.hub import download, parse
from annotations.judgements import LabelSets
from tests.hub_server import HubServer

REPO = "org/labels"


@pytest.fixture(scope="module")
def label_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A small valid source, as the files of a repository."""
    import pandas as pd

    folder = tmp_path_factory.mktemp("source")
    ids = [f"ILSVRC2012_val_{i:08d}" for i in range(1, 201)]
    judgements = pd.DataFrame({"image_id": ids, "class_index": range(200), "verdict": "accepted"})
    images = pd.DataFrame({"image_id": ids, "status": "evaluable", "closed_world": False})
    LabelSets.from_tables(judgements, images, source="s", revision="r").save(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def sums_of(files: dict[str, bytes]) -> bytes:
    return "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)).encode()


def test_a_branch_is_pinned_to_its_commit(
    hub: HubServer, tmp_path: Path, label_files: dict[str, bytes]
) -> None:
    files = {
        **label_files,
        "README.md": b"# Labels\n",
        "SHA256SUMS": sums_of(label_files),
        "huge.bin": b"x" * 4096,
    }
    old = hub.add_repo("dataset", REPO, files, tag="v1")
    folder = download(REPO, "main", cache_dir=tmp_path)
    assert folder.name == old
    assert {name: (folder / name).read_bytes() for name in label_files} == label_files
    assert not (folder / "huge.bin").exists()

    # The branch moves on; the tag and the commit do not.
    new = hub.add_repo("dataset", REPO, {**label_files, "README.md": b"# More\n"})
    assert download(REPO, "main", cache_dir=tmp_path).name == new
    assert download(REPO, "v1", cache_dir=tmp_path).name == old

    # A commit in the cache needs no request at all.
    asked = len(hub.requests)
    assert download(REPO, old, cache_dir=tmp_path) == folder
    assert len(hub.requests) == asked


def test_a_second_download_fetches_no_file_again(
    hub: HubServer, tmp_path: Path, label_files: dict[str, bytes]
) -> None:
    hub.add_repo("dataset", REPO, label_files)
    download(REPO, "main", cache_dir=tmp_path)
    fetched = len(hub.downloads())
    assert fetched == len(label_files)
    download(REPO, "main", cache_dir=tmp_path)
    assert len(hub.downloads()) == fetched


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_offline_reads_the_cache_and_asks_nothing(
    hub: HubServer, tmp_path: Path, label_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    sha = hub.add_repo("dataset", REPO, label_files)
    folder = download(REPO, "main", cache_dir=tmp_path)
    if how == "environment":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    offline = how == "argument"
    asked = len(hub.requests)
    assert download(REPO, "main", cache_dir=tmp_path, offline=offline) == folder
    assert download(REPO, sha, cache_dir=tmp_path, offline=offline) == folder
    for repo, revision in ((REPO, "v2"), ("org/other", "main"), (REPO, "0" * 40)):
        with pytest.raises(BeyondError, match=r"is not in the cache .* network is off; run this once"):
            download(repo, revision, cache_dir=tmp_path, offline=offline)
    assert len(hub.requests) == asked


def test_a_damaged_cache_is_noticed_and_mended(
    hub: HubServer, tmp_path: Path, label_files: dict[str, bytes]
) -> None:
    sha = hub.add_repo("dataset", REPO, label_files)
    path = download(REPO, sha, cache_dir=tmp_path) / "judgements.parquet"
    damaged = bytearray(label_files["judgements.parquet"])
    damaged[100] ^= 1
    path.resolve().write_bytes(damaged)
    with pytest.raises(BeyondError, match="changed since it was downloaded"):
        download(REPO, sha, cache_dir=tmp_path, offline=True)
    assert (download(REPO, sha, cache_dir=tmp_path) / "judgements.parquet").read_bytes() == (
        label_files["judgements.parquet"]
    )
    path.unlink()
    with pytest.raises(BeyondError, match="is missing from the cache"):
        download(REPO, sha, cache_dir=tmp_path, offline=True)
    assert hub_module.cached(tmp_path) == []
    download(REPO, sha, cache_dir=tmp_path)
    assert hub_module.cached(tmp_path) == [(REPO, sha, path.parent)]
    (lock,) = (tmp_path / "locks").rglob("*.json")
    lock.write_text("{")
    with pytest.raises(BeyondError, match=r"lock file .* is damaged"):
        download(REPO, sha, cache_dir=tmp_path, offline=True)
    # A copy that another program damaged before there was a lock file is not trusted either.
    download(REPO, sha, cache_dir=tmp_path)
    shutil.rmtree(tmp_path / "locks")
    path.resolve().write_bytes(damaged)
    assert (download(REPO, sha, cache_dir=tmp_path) / "judgements.parquet").read_bytes() == (
        label_files["judgements.parquet"]
    )


@pytest.mark.parametrize("kind", ["SHA256SUMS", "manifest.json"])
def test_the_repositorys_own_checksums_must_hold(
    hub: HubServer, tmp_path: Path, label_files: dict[str, bytes], kind: str
) -> None:
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in label_files.items()}
    good = sums_of(label_files) if kind == "SHA256SUMS" else json.dumps({"sha256": sums}).encode()
    hub.add_repo("dataset", REPO, {**label_files, kind: good})
    assert download(REPO, "main", cache_dir=tmp_path)
    wrong = good.replace(sums["images.parquet"].encode(), b"0" * 64)
    hub.add_repo("dataset", REPO, {**label_files, kind: wrong})
    with pytest.raises(
        BeyondError, match=r"images\.parquet is not the one that the repository's own list states"
    ):
        download(REPO, "main", cache_dir=tmp_path)
    hub.add_repo("dataset", REPO, {**label_files, kind: b"nonsense"})
    with pytest.raises(BeyondError, match=re.escape(kind)):
        download(REPO, "main", cache_dir=tmp_path)


def test_a_cut_connection_and_a_busy_server_are_survived(
    hub: HubServer, tmp_path: Path, label_files: dict[str, bytes]
) -> None:
    hub.add_repo("dataset", REPO, label_files)
    hub.cut_after(200)
    folder = download(REPO, "main", cache_dir=tmp_path / "cut")
    assert {name: (folder / name).read_bytes() for name in label_files} == label_files
    assert len(hub.downloads()) == len(label_files) + 1
    hub.fail(2)
    assert download(REPO, "main", cache_dir=tmp_path / "busy").is_dir()
    hub.fail(1000)
    with pytest.raises(BeyondError, match=r"answered 503 .* try again later"):
        download(REPO, "main", cache_dir=tmp_path / "down")


def test_what_a_server_sends_wrongly_is_refused(
    hub: HubServer, tmp_path: Path, label_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server lies about a checksum, as a proxy that alters files would make it look."""
    hub.add_repo("dataset", REPO, label_files)
    honest = hub_module._remote_files

    def lie(*arguments: object) -> dict[str, hub_module.RemoteFile]:
        files = honest(*arguments)  # type: ignore[arg-type]
        name = "judgements.parquet"
        return {**files, name: hub_module.RemoteFile(files[name].size, "0" * 64, "0" * 40)}

    monkeypatch.setattr(hub_module, "_remote_files", lie)
    with pytest.raises(
        BeyondError, match=r"checksum of judgements\.parquet is not the one that the Hub states"
    ):
        download(REPO, "main", cache_dir=tmp_path)
    with pytest.raises(BeyondError, match="is not in the cache"):
        download(REPO, "main", cache_dir=tmp_path, offline=True)


def test_errors_are_one_line_that_says_what_to_do(
    hub: HubServer, tmp_path: Path, label_files: dict[str, bytes]
) -> None:
    hub.add_repo("dataset", REPO, label_files)
    hub.add_repo("dataset", "org/secret", label_files, gated=True)
    hub.add_repo("dataset", "org/empty", {"README.md": b""})
    for repo, revision, message in (
        ("org/nothing", "main", "no dataset 'org/nothing' at http"),
        (REPO, "v9", "has no revision 'v9'"),
        (REPO, "0" * 40, "has no revision '0000"),
        ("org/secret", "main", "org/secret is gated; ask for access"),
        ("org/empty", "main", "has no judgements.parquet"),
    ):
        with pytest.raises(BeyondError, match=re.escape(message)) as error:
            download(repo, revision, cache_dir=tmp_path)
        assert "\n" not in str(error.value)
    with pytest.raises(
        BeyondError, match=r"cannot reach the Hub at http://127\.0\.0\.1:9 .*check the network"
    ):
        download(REPO, "main", cache_dir=tmp_path, endpoint="http://127.0.0.1:9")


@pytest.mark.parametrize("spec", ["hub:labels", "hub:org/labels@", "hub:a/b/c", "hub:../x", "hub:"])
def test_malformed_specs_are_refused(spec: str) -> None:
    with pytest.raises(BeyondError, match="write hub:ORG/NAME@REVISION"):
        parse(spec)


def test_load_names_the_commit(hub: HubServer, tmp_path: Path, label_files: dict[str, bytes]) -> None:
    sha = hub.add_repo("dataset", REPO, label_files)
    label_sets = sources.load(f"hub:{REPO}@main", cache_dir=tmp_path)
    assert (label_sets.source, label_sets.revision, len(label_sets)) == (f"hub:{REPO}", sha, 200)
    assert sources.load(f"hub:{REPO}@{sha}", cache_dir=tmp_path, offline=True).revision == sha


def test_a_repository_with_a_broken_table_is_refused(
    hub: HubServer, tmp_path: Path, label_files: dict[str, bytes]
) -> None:
    hub.add_repo("dataset", REPO, {**label_files, "images.parquet": io.BytesIO(b"no parquet").getvalue()})
    with pytest.raises(BeyondError, match=r"images\.parquet is not a readable Parquet file"):
        sources.load(f"hub:{REPO}", cache_dir=tmp_path)
