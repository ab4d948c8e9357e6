"""The local Hub server, held against the real `huggingface_hub` client."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub_server import HubServer

BIG = bytes(range(256)) * 4096  # 1 MiB


def test_snapshot_is_pinned_and_older_revisions_stay_readable(hub: HubServer, tmp_path: Path) -> None:
    old = hub.add_repo("dataset", "org/labels", {"a.txt": b"old", "sub/b.parquet": BIG})
    new = hub.add_repo("dataset", "org/labels", {"a.txt": b"new", "c/d/e.txt": b"deep"})
    assert len(old) == len(new) == 40
    assert old != new

    latest = Path(snapshot_download("org/labels", repo_type="dataset", endpoint=hub.url, cache_dir=tmp_path))
    assert latest.name == new
    assert sorted(str(p.relative_to(latest)) for p in latest.rglob("*") if p.is_file()) == [
        "a.txt",
        "c/d/e.txt",
    ]
    pinned = Path(
        snapshot_download(
            "org/labels", repo_type="dataset", revision=old, endpoint=hub.url, cache_dir=tmp_path
        )
    )
    assert (pinned / "a.txt").read_bytes() == b"old"
    assert (pinned / "sub/b.parquet").read_bytes() == BIG


def test_cached_file_is_not_fetched_again_and_reads_offline(hub: HubServer, tmp_path: Path) -> None:
    sha = hub.add_repo("model", "org/net", {"config.json": b"{}", "model.safetensors": BIG}, tag="v1")
    for revision in ("main", "v1", sha):
        path = hf_hub_download(
            "org/net", "model.safetensors", revision=revision, endpoint=hub.url, cache_dir=tmp_path
        )
        assert Path(path).read_bytes() == BIG
        assert sha in path
    assert len(hub.downloads()) == 1

    asked = len(hub.requests)
    offline = hf_hub_download(
        "org/net", "model.safetensors", endpoint=hub.url, cache_dir=tmp_path, local_files_only=True
    )
    assert Path(offline).read_bytes() == BIG
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download("org/net", "config.json", endpoint=hub.url, cache_dir=tmp_path, local_files_only=True)
    assert len(hub.requests) == asked


def test_metadata_carries_the_checksums_of_git_and_lfs(hub: HubServer) -> None:
    sha = hub.add_repo("model", "org/net", {"README.md": b"hello\n", "w.bin": BIG})
    text = huggingface_hub.get_hf_file_metadata(f"{hub.url}/org/net/resolve/main/README.md")
    # `printf 'hello\n' | git hash-object --stdin`
    assert text.etag == "ce013625030ba8dba906f756967f9e9ca394464a"
    assert (text.commit_hash, text.size) == (sha, 6)
    weights = huggingface_hub.get_hf_file_metadata(f"{hub.url}/org/net/resolve/main/w.bin")
    assert weights.etag == hashlib.sha256(BIG).hexdigest()
    tree = {item.path: item for item in HfApi(hub.url).list_repo_tree("org/net", recursive=True)}
    lfs = getattr(tree["w.bin"], "lfs", None)
    assert lfs is not None
    assert lfs.sha256 == weights.etag


def test_interrupted_download_resumes_with_a_range_request(hub: HubServer, tmp_path: Path) -> None:
    content = BIG * 12  # the client keeps what it has in steps of 10 MiB
    hub.add_repo("model", "org/net", {"w.bin": content})
    hub.cut_after(11 * len(BIG))
    path = hf_hub_download("org/net", "w.bin", endpoint=hub.url, cache_dir=tmp_path)
    assert Path(path).read_bytes() == content
    first, second = hub.downloads()
    assert (first.status, second.status) == (200, 206)
    assert second.headers["Range"] == f"bytes={10 * len(BIG)}-"


def test_errors_are_those_of_the_hub(hub: HubServer, tmp_path: Path) -> None:
    hub.add_repo("model", "org/net", {"a.txt": b""})
    hub.add_repo("model", "org/secret", {"a.txt": b""}, gated=True)
    api = HfApi(hub.url)
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("org/nothing")
    with pytest.raises(RepositoryNotFoundError):
        api.dataset_info("org/net")
    with pytest.raises(RevisionNotFoundError):
        api.model_info("org/net", revision="v9")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("org/net", "b.txt", endpoint=hub.url, cache_dir=tmp_path)
    with pytest.raises(GatedRepoError):
        hf_hub_download("org/secret", "a.txt", endpoint=hub.url, cache_dir=tmp_path)
    assert hf_hub_download("org/secret", "a.txt", endpoint=hub.url, cache_dir=tmp_path, token="hf_yes")


def test_commits_pull_requests_and_conflicts(hub: HubServer) -> None:
    api = HfApi(hub.url, token="hf_yes")
    url = api.create_repo("org/labels", repo_type="dataset")
    assert url.repo_id == "org/labels"
    api.create_repo("org/labels", repo_type="dataset", exist_ok=True)
    with pytest.raises(HfHubHTTPError):
        api.create_repo("org/labels", repo_type="dataset")

    first = api.create_commit(
        "org/labels",
        [
            CommitOperationAdd("judgements.parquet", BIG),
            CommitOperationAdd("README.md", b"---\nlicense: mit\n---\n# Labels\n"),
        ],
        commit_message="Add labels",
        repo_type="dataset",
    )
    assert hub.files("dataset", "org/labels")["judgements.parquet"] == BIG
    pull = api.create_commit(
        "org/labels",
        [CommitOperationDelete("README.md")],
        commit_message="Drop the card",
        repo_type="dataset",
        create_pr=True,
        parent_commit=first.oid,
    )
    assert pull.pr_revision == "refs/pr/1"
    assert "README.md" in hub.files("dataset", "org/labels")
    assert "README.md" not in hub.files("dataset", "org/labels", "refs/pr/1")
    info = api.dataset_info("org/labels", revision="refs/pr/1")
    assert info.sha == pull.oid
    refs = api.list_repo_refs("org/labels", repo_type="dataset", include_pull_requests=True)
    assert refs.branches[0].target_commit == first.oid
    assert refs.pull_requests is not None
    assert refs.pull_requests[0].target_commit == pull.oid

    api.create_commit(
        "org/labels",
        [CommitOperationAdd("b.txt", b"b")],
        commit_message="b",
        repo_type="dataset",
        parent_commit=first.oid,
    )
    with pytest.raises(HfHubHTTPError) as conflict:
        api.create_commit(
            "org/labels",
            [CommitOperationAdd("c.txt", b"c")],
            commit_message="c",
            repo_type="dataset",
            parent_commit=first.oid,
        )
    assert conflict.value.response.status_code == 412
    assert "c.txt" not in hub.files("dataset", "org/labels")


def test_environment_variable_reaches_a_child_process(hub: HubServer, tmp_path: Path) -> None:
    hub.add_repo("model", "org/net", {"a.txt": b"from the local server"})
    code = f"""
from huggingface_hub import hf_hub_download
print(open(hf_hub_download("org/net", "a.txt", cache_dir={str(tmp_path)!r})).read())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "from the local server"
