"""A local server that speaks the part of the Hugging Face Hub's HTTP API that `huggingface_hub` uses.

Repositories live in memory as immutable commits; every revision stays readable. The server knows nothing of
the code under test: the real client talks to it when `HF_ENDPOINT` (or `endpoint=`) names its address.

Text files are served as git blobs (ETag is the git blob sha1), binary ones as LFS files (X-Linked-Etag is the
sha256), as the Hub does. Uploads are inline in the commit; with `lfs = True` binary files are uploaded to LFS
first, as clients without Xet do. Left out: Xet, spaces, search.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

Kind = Literal["model", "dataset"]
Cut = Literal["upload", "before commit", "after commit"]

LFS_SUFFIXES = (
    ".bin",
    ".h5",
    ".npy",
    ".npz",
    ".parquet",
    ".pt",
    ".pth",
    ".safetensors",
    ".tar",
    ".zip",
    ".zst",
)
DATE = "2024-01-01T00:00:00.000Z"


def blob_id(content: bytes) -> str:
    """The sha1 that git gives a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def is_lfs(path: str) -> bool:
    """Whether the Hub would keep this file in LFS."""
    return path.endswith(LFS_SUFFIXES)


@dataclass(frozen=True)
class Commit:
    """One immutable state of a repository."""

    sha: str
    parent: str | None
    title: str
    files: dict[str, bytes]


@dataclass
class Pull:
    """A pull request; its branch is `refs/pr/<number>`."""

    number: int
    title: str
    author: str
    status: Literal["open", "closed", "merged"] = "open"


@dataclass
class Repo:
    """A repository: its commits and the names that point at them."""

    kind: Kind
    name: str
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)  # "main", tag names, "refs/pr/1" -> commit sha
    tags: set[str] = field(default_factory=set)
    pulls: list[Pull] = field(default_factory=list)
    gated: bool = False
    private: bool = False

    def find(self, revision: str) -> Commit | None:
        """The commit that a branch, tag, pull request, or (abbreviated) sha names."""
        revision = revision.removeprefix("refs/heads/")
        sha = self.refs.get(revision, revision)
        if sha in self.commits:
            return self.commits[sha]
        if re.fullmatch(r"[0-9a-f]{7,39}", revision):
            matches = [commit for key, commit in self.commits.items() if key.startswith(revision)]
            return matches[0] if len(matches) == 1 else None
        return None

    def commit(self, files: dict[str, bytes], *, ref: str, title: str) -> Commit:
        """Add a commit on top of `ref` and move `ref` to it."""
        parent = self.refs.get(ref)
        digest = hashlib.sha1(f"{self.kind} {self.name} {len(self.commits)} {parent} {title}".encode())
        for path in sorted(files):
            digest.update(f"{path} {blob_id(files[path])}".encode())
        commit = Commit(digest.hexdigest(), parent, title, dict(files))
        self.commits[commit.sha] = commit
        self.refs[ref] = commit.sha
        return commit


@dataclass(frozen=True)
class Request:
    """One request the server answered."""

    method: str
    path: str
    headers: dict[str, str]
    status: int


class HubServer:
    """The server, as a context manager: it listens on a free port of 127.0.0.1 inside the `with` block.

    Example:
        with HubServer() as hub:
            sha = hub.add_repo("dataset", "org/labels", {"judgements.parquet": b"..."})
            huggingface_hub.snapshot_download("org/labels", repo_type="dataset", endpoint=hub.url)
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.repos: dict[tuple[Kind, str], Repo] = {}
        self.lock = threading.RLock()
        self.lfs = False
        self.users: dict[str, str] = {}  # token -> name; any other token is "tester"
        self.stored: dict[str, bytes] = {}  # LFS objects by sha256
        self._cut_after: int | None = None
        self._cuts: list[Cut] = []
        self._down = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.hub = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    @property
    def url(self) -> str:
        """Address of the server, as `HF_ENDPOINT` wants it."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def add_repo(
        self, kind: Kind, name: str, files: dict[str, bytes], *, gated: bool = False, tag: str | None = None
    ) -> str:
        """Make a repository, or a further commit on `main` of one that exists, holding exactly `files`.

        Returns:
            The commit's sha, 40 hexadecimal digits. Earlier commits stay readable by their sha.
        """
        with self.lock:
            repo = self.repos.setdefault((kind, name), Repo(kind, name))
            repo.gated = gated
            commit = repo.commit(files, ref="main", title="Add files")
            if tag is not None:
                repo.refs[tag] = commit.sha
                repo.tags.add(tag)
            return commit.sha

    def files(self, kind: Kind, name: str, revision: str = "main") -> dict[str, bytes]:
        """What a repository holds at a revision."""
        commit = self.repos[(kind, name)].find(revision)
        if commit is None:
            raise KeyError(revision)
        return commit.files

    def cut_after(self, n_bytes: int) -> None:
        """Break the connection of the next file download after `n_bytes` of its body, once."""
        with self.lock:
            self._cut_after = n_bytes

    def cut(self, *where: Cut) -> None:
        """Break the next connections of a submission, one after the other, at these places.

        `upload` is in the middle of an LFS upload; `before commit` is after the whole commit was received
        and before anything of it is kept; `after commit` is after it was kept, before the client hears of it.
        """
        with self.lock:
            self._cuts = list(where)

    def take_commit_cut(self, *places: Cut) -> Cut | None:
        """The pending cut if it is at one of these places, which is thereby used up."""
        with self.lock:
            if self._cuts and self._cuts[0] in places:
                return self._cuts.pop(0)
            return None

    def fail(self, times: int) -> None:
        """Answer the next `times` requests with 503 Service Unavailable."""
        with self.lock:
            self._down = times

    def downloads(self) -> list[Request]:
        """The requests that asked for the content of a file."""
        return [
            request for request in self.requests if request.method == "GET" and "/resolve/" in request.path
        ]

    def take_cut(self) -> int | None:
        """The pending cut, which is thereby used up."""
        with self.lock:
            cut, self._cut_after = self._cut_after, None
            return cut

    def take_failure(self) -> bool:
        """Whether this request has to fail."""
        with self.lock:
            failing = self._down > 0
            self._down -= failing
            return failing

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)


class _HubError(Exception):
    """An answer other than success, with the Hub's error code."""

    def __init__(self, status: int, code: str | None, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "HubServer"

    @property
    def hub(self) -> HubServer:
        hub: HubServer = self.server.hub  # type: ignore[attr-defined]
        return hub

    def do_GET(self) -> None:
        self._dispatch()

    def do_HEAD(self) -> None:
        self._dispatch()

    def do_POST(self) -> None:
        self._dispatch()

    def do_PUT(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        if self.hub.take_commit_cut("upload"):
            self.rfile.read(size // 2)
            self._break()
            return
        content = self.rfile.read(size)
        with self.hub.lock:
            self.hub.stored[hashlib.sha256(content).hexdigest()] = content
        self._send(200, b"", {})

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is http.server's
        """Say nothing; tests read `HubServer.requests`."""

    # Answers ------------------------------------------------------------------------------------------------

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.hub.requests.append(Request(self.command, self.path, dict(self.headers.items()), status))
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.hub.take_cut() if "/resolve/" in self.path and status in (200, 206) else None
        if cut is not None and cut < len(body):
            self.wfile.write(body[:cut])
            self.wfile.flush()
            self._break()
        else:
            self.wfile.write(body)

    def _break(self) -> None:
        """Drop the connection without the rest of the body, as a failing network does."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _json(self, value: object, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json; charset=utf-8"})

    def _dispatch(self) -> None:
        body = self._read_body()
        try:
            if self.hub.take_failure():
                raise _HubError(503, None, "Service Unavailable")
            url = urlsplit(self.path)
            # The segments are split before unquoting: a revision such as refs%2Fpr%2F1 is one segment.
            parts = [unquote(part) for part in url.path.strip("/").split("/")]
            query = parse_qs(url.query)
            with self.hub.lock:
                if parts[0] == "api":
                    self._api(parts[1:], query, body)
                elif parts[-3:] == ["lfs", "objects", "batch"]:
                    self._lfs_batch(json.loads(body))
                else:
                    self._resolve(parts)
        except _HubError as error:
            headers = {"X-Error-Message": error.message, "Content-Type": "application/json"}
            if error.code is not None:
                headers["X-Error-Code"] = error.code
            self._send(error.status, json.dumps({"error": error.message}).encode(), headers)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    # Routes -------------------------------------------------------------------------------------------------

    def _api(self, parts: list[str], query: dict[str, list[str]], body: bytes) -> None:
        match parts:
            case ["repos", "create"]:
                self._create_repo(json.loads(body))
            case ["validate-yaml"]:
                self._json({"warnings": [], "errors": []})
            case ["whoami-v2"]:
                self._require_token()
                self._json({"type": "user", "name": self._user(), "orgs": []})
            case ["models" | "datasets" as kinds, *rest]:
                repo, rest = self._repo("model" if kinds == "models" else "dataset", rest)
                self._repo_api(repo, rest, query, body)
            case _:
                raise _HubError(404, None, "Not Found")

    def _repo_api(self, repo: Repo, rest: list[str], query: dict[str, list[str]], body: bytes) -> None:
        match rest:
            case []:
                self._info(repo, self._commit(repo, "main"))
            case ["revision", revision]:
                self._info(repo, self._commit(repo, revision))
            case ["refs"]:
                self._refs(repo)
            case ["commits", revision]:
                self._commits(repo, self._commit(repo, revision))
            case ["tree", revision, *folder]:
                recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
                self._tree(repo, self._commit(repo, revision), "/".join(folder), recursive=recursive)
            case ["paths-info", revision]:
                self._paths_info(repo, self._commit(repo, revision), body)
            case ["discussions"]:
                self._discussions(repo, query)
            case ["preupload", revision]:
                self._preupload(repo, revision, json.loads(body))
            case ["commit", revision]:
                self._require_token()
                self._make_commit(repo, revision, body, create_pr="create_pr" in query)
            case ["tag", revision]:
                self._require_token()
                name = json.loads(body)["tag"]
                repo.refs[name] = self._commit(repo, revision).sha
                repo.tags.add(name)
                self._json({})
            case ["branch", name]:
                self._require_token()
                start = json.loads(body or b"{}").get("startingPoint", "main")
                repo.refs[name] = self._commit(repo, start).sha
                self._json({})
            case _:
                raise _HubError(404, None, "Not Found")

    def _repo(self, kind: Kind, parts: list[str]) -> tuple[Repo, list[str]]:
        """The repository that a path starts with (one or two segments), and the rest of the path."""
        for n in (2, 1):
            repo = self.hub.repos.get((kind, "/".join(parts[:n])))
            if repo is not None and len(parts) >= n:
                if repo.private and not self._token():
                    break
                return repo, parts[n:]
        # Without a token the Hub answers 401 for what does not exist, so as not to reveal private names.
        raise _HubError(404 if self._token() else 401, "RepoNotFound", "Repository not found")

    def _commit(self, repo: Repo, revision: str) -> Commit:
        commit = repo.find(revision)
        if commit is None:
            raise _HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ").strip()

    def _user(self) -> str:
        return self.hub.users.get(self._token(), "tester")

    def _require_token(self) -> None:
        if not self._token():
            raise _HubError(401, None, "Invalid username or password.")

    # Reading ------------------------------------------------------------------------------------------------

    def _resolve(self, parts: list[str]) -> None:
        kind: Kind = "model"
        if parts[0] == "datasets":
            kind, parts = "dataset", parts[1:]
        repo, rest = self._repo(kind, parts)
        if len(rest) < 3 or rest[0] != "resolve":
            raise _HubError(404, None, "Not Found")
        if repo.gated and not self._token():
            message = f"Access to {kind} {repo.name} is restricted. You must be authenticated."
            raise _HubError(401, "GatedRepo", message)
        commit = self._commit(repo, rest[1])
        path = "/".join(rest[2:])
        if path not in commit.files:
            raise _HubError(404, "EntryNotFound", "Entry not found")
        content = commit.files[path]
        headers = {
            "Content-Type": "application/octet-stream",
            "X-Repo-Commit": commit.sha,
            "Accept-Ranges": "bytes",
            "ETag": f'"{blob_id(content)}"',
        }
        if is_lfs(path):
            headers["X-Linked-Etag"] = f'"{hashlib.sha256(content).hexdigest()}"'
            headers["X-Linked-Size"] = str(len(content))
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if asked is None or asked.group(0) == "bytes=-":
            self._send(200, content, headers)
            return
        first, last = asked.groups()
        start = int(first) if first else max(len(content) - int(last), 0)
        stop = min(int(last) + 1, len(content)) if first and last else len(content)
        if start >= len(content) or start >= stop:
            self._send(416, b"", {**headers, "Content-Range": f"bytes */{len(content)}"})
            return
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        self._send(206, content[start:stop], headers)

    def _info(self, repo: Repo, commit: Commit) -> None:
        self._json(
            {
                "_id": "0" * 24,
                "id": repo.name,
                "modelId": repo.name,
                "author": repo.name.split("/")[0],
                "sha": commit.sha,
                "createdAt": DATE,
                "lastModified": DATE,
                "private": repo.private,
                "gated": "manual" if repo.gated else False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "siblings": [{"rfilename": path} for path in sorted(commit.files)],
            }
        )

    def _refs(self, repo: Repo) -> None:
        def entry(name: str, ref: str) -> dict[str, str]:
            return {"name": name, "ref": ref, "targetCommit": repo.refs[name]}

        pulls = [entry(name, name) for name in repo.refs if name.startswith("refs/pr/")]
        branches = [
            entry(name, f"refs/heads/{name}")
            for name in repo.refs
            if name not in repo.tags and not name.startswith("refs/")
        ]
        tags = [entry(name, f"refs/tags/{name}") for name in sorted(repo.tags)]
        self._json({"branches": branches, "tags": tags, "converts": [], "pullRequests": pulls})

    def _commits(self, repo: Repo, commit: Commit) -> None:
        log = []
        sha: str | None = commit.sha
        while sha is not None:
            at = repo.commits[sha]
            log.append(
                {"id": sha, "title": at.title, "message": "", "date": DATE, "authors": [{"user": "tester"}]}
            )
            sha = at.parent
        self._json(log)

    def _entry(self, commit: Commit, path: str) -> dict[str, Any]:
        content = commit.files[path]
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": blob_id(content)}
        if is_lfs(path):
            entry["lfs"] = {
                "oid": hashlib.sha256(content).hexdigest(),
                "size": len(content),
                "pointerSize": 134,
            }
        return entry

    def _tree(self, repo: Repo, commit: Commit, folder: str, *, recursive: bool) -> None:
        prefix = folder.strip("/") + "/" if folder else ""
        inside = [path for path in sorted(commit.files) if path.startswith(prefix)]
        if prefix and not inside:
            raise _HubError(404, "EntryNotFound", f"{folder} does not exist on this revision")
        entries: dict[str, dict[str, Any]] = {}
        for path in inside:
            steps = path[len(prefix) :].split("/")
            for depth in range(1, len(steps) if recursive else min(len(steps), 2)):
                name = prefix + "/".join(steps[:depth])
                entries[name] = {"type": "directory", "path": name, "oid": blob_id(name.encode()), "size": 0}
            if recursive or len(steps) == 1:
                entries[path] = self._entry(commit, path)
        self._json(list(entries.values()))

    def _paths_info(self, repo: Repo, commit: Commit, body: bytes) -> None:
        if self.headers.get("Content-Type", "").startswith("application/json"):
            paths = json.loads(body)["paths"]
        else:
            paths = parse_qs(body.decode()).get("paths", [])
        found = []
        for path in paths:
            if path in commit.files:
                found.append(self._entry(commit, path))
            elif any(name.startswith(f"{path.rstrip('/')}/") for name in commit.files):
                found.append({"type": "directory", "path": path, "oid": blob_id(path.encode()), "size": 0})
        self._json(found)

    # Writing ------------------------------------------------------------------------------------------------

    def _create_repo(self, payload: dict[str, Any]) -> None:
        self._require_token()
        kind: Kind = "dataset" if payload.get("type") == "dataset" else "model"
        name = f"{payload.get('organization') or 'tester'}/{payload['name']}"
        prefix = "datasets/" if kind == "dataset" else ""
        address = {"url": f"{self.hub.url}/{prefix}{name}", "name": name, "id": "0" * 24}
        if (kind, name) in self.hub.repos:
            self._json({"error": f"You already created this {kind} repo", **address}, status=409)
            return
        repo = Repo(
            kind, name, private=payload.get("visibility") == "private" or bool(payload.get("private"))
        )
        repo.commit({".gitattributes": b""}, ref="main", title="initial commit")
        self.hub.repos[(kind, name)] = repo
        self._json(address)

    def _preupload(self, repo: Repo, revision: str, payload: dict[str, Any]) -> None:
        commit = self._commit(repo, revision)
        files = []
        for item in payload["files"]:
            path = item["path"]
            mode = "lfs" if self.hub.lfs and is_lfs(path) else "regular"
            answer: dict[str, Any] = {"path": path, "uploadMode": mode, "shouldIgnore": False}
            if path in commit.files:
                answer["oid"] = blob_id(commit.files[path])
            files.append(answer)
        self._json({"files": files, "commitOid": commit.sha})

    def _lfs_batch(self, payload: dict[str, Any]) -> None:
        self._require_token()
        objects = []
        for item in payload["objects"]:
            answer = {"oid": item["oid"], "size": item["size"], "authenticated": True}
            if item["oid"] not in self.hub.stored:
                answer["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{item['oid']}"}}
            objects.append(answer)
        self._json({"transfer": "basic", "objects": objects})

    def _discussions(self, repo: Repo, query: dict[str, list[str]]) -> None:
        status = query.get("status", [""])[0]
        kind = query.get("type", [""])[0]
        pulls = [pull for pull in repo.pulls if status in ("", pull.status) and kind in ("", "pull_request")]
        start, size = 2 * int(query.get("p", ["0"])[0]), 2  # small pages, so that paging is exercised
        listed = [
            {
                "num": pull.number,
                "title": pull.title,
                "author": {"name": pull.author, "type": "user"},
                "status": pull.status,
                "isPullRequest": True,
                "createdAt": DATE,
                "repo": {"name": repo.name, "type": repo.kind},
            }
            for pull in pulls[start : start + size]
        ]
        self._json({"discussions": listed, "count": len(pulls), "start": start})

    def _make_commit(self, repo: Repo, revision: str, body: bytes, *, create_pr: bool) -> None:
        base = self._commit(repo, revision)
        if revision not in repo.refs:
            raise _HubError(400, None, f"Cannot commit on top of {revision}: it is not a branch")
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        parent = header.get("parentCommit")
        if parent is not None and base.sha != parent and not base.sha.startswith(parent):
            raise _HubError(412, None, "A commit has happened since. Please refresh and try again.")
        files = dict(base.files)
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "header":
                    pass
                case "file":
                    content = value["content"]
                    decode = value.get("encoding") == "base64"
                    files[value["path"]] = base64.b64decode(content) if decode else content.encode()
                case "lfsFile":
                    files[value["path"]] = self.hub.stored[value["oid"]]
                case "deletedFile":
                    if files.pop(value["path"], None) is None:
                        raise _HubError(404, "EntryNotFound", "A file with this name doesn't exist")
                case "deletedFolder":
                    folder = value["path"].rstrip("/") + "/"
                    files = {path: content for path, content in files.items() if not path.startswith(folder)}
                case key:
                    raise _HubError(400, None, f"unsupported operation {key}")
        if self.hub.take_commit_cut("before commit"):
            self._break()
            return
        ref = revision
        if create_pr:
            number = 1 + len(repo.pulls)
            ref = f"refs/pr/{number}"
            repo.refs[ref] = base.sha
            repo.pulls.append(Pull(number, header["summary"], self._user()))
        commit = repo.commit(files, ref=ref, title=header["summary"])
        where = f"{self.hub.url}/{'datasets/' if repo.kind == 'dataset' else ''}{repo.name}"
        answer = {
            "success": True,
            "commitOid": commit.sha,
            "commitUrl": f"{where}/commit/{commit.sha}",
            "hookOutput": "",
        }
        if create_pr:
            answer["pullRequestUrl"] = f"{where}/discussions/{ref.rsplit('/', 1)[1]}"
        if self.hub.take_commit_cut("after commit"):
            self._break()
            return
        self._json(answer)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A running server; HF_ENDPOINT names it for code that reads the environment, also in child processes."""
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield server
