"""Simulated raters over real HTTP, and a server that can be killed: made-up votes, for tests alone.

A rater answers at a steady pace from an outbox, as the page does: an entry stays until the server has
answered for it, and is sent again after every failure. The client is a few lines over asyncio's streams, so
that it takes little of the processor that it shares with the server.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from annotations.campaign.config import CampaignConfig
from annotations.campaign.store import Store
from annotations.campaign.types import NewGold, NewPair

ROOT = Path(__file__).resolve().parents[3]


class HTTPError(Exception):
    """The server could not be reached, or broke off."""


class Client:
    """One keep-alive connection with cookies."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.cookies: dict[str, str] = {}
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Send a request and read the answer: status, headers, body."""
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection("127.0.0.1", self.port)
            reader, writer = self._streams
            lines = [f"{method} {path} HTTP/1.1", f"host: 127.0.0.1:{self.port}"]
            if self.cookies:
                lines.append("cookie: " + "; ".join(f"{k}={v}" for k, v in self.cookies.items()))
            lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
            if body or method == "POST":
                lines.append(f"content-length: {len(body)}")
            writer.write("\r\n".join([*lines, "", ""]).encode() + body)
            await writer.drain()
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            status, found = int(head[0].split()[1]), {}
            for line in head[1:]:
                name, _, value = line.partition(": ")
                if name.lower() == "set-cookie":
                    key, _, rest = value.partition("=")
                    self.cookies[key] = rest.partition(";")[0].strip('"')
                found[name.lower()] = value
            content = await reader.readexactly(int(found.get("content-length", 0)))
            return status, found, content
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            self.close()
            raise HTTPError(str(error)) from error

    async def form(self, path: str, **fields: str) -> tuple[int, dict[str, str], bytes]:
        """Send a form."""
        body = "&".join(f"{name}={value}" for name, value in fields.items()).encode()
        kind = {"content-type": "application/x-www-form-urlencoded"}
        return await self.request("POST", path, body, kind)

    def close(self) -> None:
        """Drop the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def enter(self, token: str) -> str:
        """Come with an invitation and agree to everything; returns the token against forged requests."""
        await self.request("GET", f"/join/{token}")
        for page, fields in (("/welcome", {}), ("/consent", {"version": "1"}), ("/instructions", {})):
            _, _, html = await self.request("GET", page)
            found = re.search(rb'name="csrf" value="(\w+)"', html)
            assert found is not None, f"no form on {page}"
            status, _, _ = await self.form(page, csrf=found.group(1).decode(), **fields)
            assert status == 303, f"{page}: {status}"
        _, _, state = await self.request("GET", "/api/state")
        csrf: str = json.loads(state)["csrf"]
        return csrf


@dataclass
class Timed:
    """What the raters saw.

    Attributes:
        acknowledged: Key of every answer that the server answered for, with (token, answer).
        times: (when it began, seconds, kind) of every answered request.
        failures: Requests that broke off.
        refused: Outcomes that were refused.
    """

    acknowledged: dict[str, tuple[str, str]] = field(default_factory=dict)
    times: list[tuple[float, float, str]] = field(default_factory=list)
    failures: int = 0
    refused: list[dict[str, Any]] = field(default_factory=list)


async def rate(
    port: int, token: str, seen: Timed, *, pace: float, stop: asyncio.Event, pictures: bool
) -> None:
    """One rater, from invitation to the end of the questions, answering every `pace` seconds."""
    client, gallery = Client(port), Client(port)
    csrf = await client.enter(token)
    gallery.cookies = client.cookies
    queue: list[dict[str, Any]] = []
    outbox: list[dict[str, Any]] = []
    answered: set[str] = set()
    shown: set[str] = set()
    headers = {"content-type": "application/json", "x-csrf-token": csrf}
    next_at = time.monotonic() + pace * (int(token.encode().hex(), 16) % 997) / 997
    while not stop.is_set():
        await asyncio.sleep(max(next_at - time.monotonic(), 0.001))
        next_at = max(next_at + pace, time.monotonic() - pace)
        if queue:
            question = queue.pop(0)
            answered.add(question["id"])
            # As a person would with this pair: the same answer whoever asks, and some in doubt.
            answer = ("yes", "no", "maybe")[hash((question["label"], question["position"])) % 3]
            outbox.append(
                {
                    "key": secrets.token_urlsafe(12),
                    "question": question["id"],
                    "answer": answer,
                    "response_ms": 500,
                    "at": time.time(),
                }
            )
        sent = outbox[:100]
        want = 8 if len(queue) <= 4 else 0
        if not sent and not want:
            continue
        body = json.dumps({"items": sent, "want": want}).encode()
        began = time.monotonic()
        try:
            status, _, content = await client.request("POST", "/api/answers", body, headers)
        except HTTPError:
            seen.failures += 1
            await asyncio.sleep(0.05)
            continue
        seen.times.append((began, time.monotonic() - began, "answer"))
        if status != 200:
            seen.refused.append({"status": status, "content": content.decode()})
            continue
        reply = json.loads(content)
        by_key = {item["key"]: item for item in sent}
        for outcome in reply["outcomes"]:
            if outcome["status"] == "refused":
                seen.refused.append(outcome)
            else:
                item = by_key[outcome["key"]]
                seen.acknowledged[outcome["key"]] = (item["question"], item["answer"])
        done = {outcome["key"] for outcome in reply["outcomes"]}
        outbox = [item for item in outbox if item["key"] not in done]
        known = {question["id"] for question in queue} | answered
        queue += [question for question in reply["questions"] if question["id"] not in known]
        if want and reply["progress"]["stage"] not in ("practice", "qualification", "work") and not outbox:
            break
        for question in queue[:3] if pictures else ():
            if question["id"] in shown:
                continue
            began = time.monotonic()
            try:
                status, _, _ = await gallery.request("GET", question["image"])
            except HTTPError:
                seen.failures += 1
                break
            assert status == 200, status
            shown.add(question["id"])
            seen.times.append((began, time.monotonic() - began, "image"))
    client.close()
    gallery.close()


class Server:
    """`beyond campaign serve` in a process of its own."""

    def __init__(self, db: str, images: str) -> None:
        self.db, self.images = db, images
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it answers."""
        command = [sys.executable, "-m", "benchmark", "campaign", "serve", "--db", self.db]
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port), "--images", self.images],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONHASHSEED": "0"},
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=5) as reply:
                    assert reply.status == 200
                return
            except OSError:
                time.sleep(0.02)
        raise RuntimeError("the server does not answer")

    def kill(self) -> None:
        """End it as a power cut would: SIGKILL."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """Ask it to end."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@dataclass(frozen=True)
class Report:
    """What a load run came to.

    Attributes:
        raters: Simulated raters.
        kills: How often the server was killed.
        acknowledged: Answers that the server answered for.
        recorded: Of these, found in the log of events exactly once.
        counted: Counted answers on pairs.
        wanted: What exact redundancy is.
        failures: Requests that broke off.
        quantiles: Milliseconds at 50, 90, 99 and 100 %, by kind, of requests sent while the server was up.
        requests: Number of those requests, by kind.
        seconds: Length of the run.
        problems: What `Store.check` says, and what contradicts the acknowledgements.
    """

    raters: int
    kills: int
    acknowledged: int
    recorded: int
    counted: int
    wanted: int
    failures: int
    quantiles: dict[str, tuple[float, float, float, float]]
    requests: dict[str, int]
    seconds: float
    problems: list[str]


def make_campaign(url: str, *, pairs: int, votes: int = 5) -> None:
    """A campaign on the sample images."""
    from annotations.campaign.pictures import find_images

    images = find_images("sample")
    classes = -(-pairs // len(images))
    made = [NewPair(i.image_id, c, sampling_probability=0.5) for c in range(classes) for i in images][:pairs]
    gold = [
        NewGold(image.image_id, 500 + c, "yes" if (c + n) % 2 else "no")
        for c in range(10)
        for n, image in enumerate(images)
    ]
    config = CampaignConfig(
        votes=votes,
        accept_at=votes // 2 + 1,
        practice_questions=0,
        qualification_questions=4,
        qualification_floor=0,
        quality_floor=0,
        gold_rate=0.1,
        lease_seconds=20,
    )
    store = Store.create(url, config, images=images, pairs=made, gold=gold, images_spec="sample")
    store.close()


def load(
    url: str, *, raters: int, pairs: int, kills: int, pace: float = 0.5, up: float = 8.0, limit: float = 240.0
) -> Report:
    """Let raters answer all pairs of a new campaign while the server is killed now and then.

    Args:
        url: An empty database.
        raters: How many answer at once.
        pairs: Pairs to judge, five votes each.
        kills: SIGKILLs, with a start after each.
        pace: Seconds between two answers of a rater.
        up: Seconds between two kills.
        limit: Give up after so many seconds.
    """
    make_campaign(url, pairs=pairs)
    store = Store.open(url)
    tokens = [one.token for one in store.invite(count=raters)]
    store.close()
    server, seen = Server(url, "sample"), Timed()
    server.start()
    ups: list[list[float]] = [[time.monotonic(), float("inf")]]

    async def run() -> None:
        stop = asyncio.Event()
        work = [
            asyncio.create_task(rate(server.port, token, seen, pace=pace, stop=stop, pictures=True))
            for token in tokens
        ]

        async def killer() -> None:
            await asyncio.sleep(2)  # everybody has come
            for _ in range(kills):
                await asyncio.sleep(up)
                ups[-1][1] = time.monotonic()
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)
                ups.append([time.monotonic(), float("inf")])

        chaos = asyncio.create_task(killer())
        try:
            await asyncio.wait_for(asyncio.gather(chaos, *work), limit)
        except TimeoutError:
            stop.set()
            raise

    began = time.monotonic()
    try:
        asyncio.run(run())
    finally:
        seconds = time.monotonic() - began
        server.stop()
    return verify(url, seen, ups, raters=raters, kills=kills, seconds=seconds)


def verify(
    url: str, seen: Timed, ups: list[list[float]], *, raters: int, kills: int, seconds: float
) -> Report:
    """Compare what was acknowledged with what the database holds."""
    import numpy as np
    import sqlalchemy as sa

    from annotations.campaign.models import Assignment, Event, Question

    store = Store.open(url)
    problems = store.check()
    with store.database.read() as connection:
        events = connection.execute(
            sa.select(Event.client_key, Event.answer, Assignment.token)
            .join(
                Assignment,
                sa.and_(
                    Assignment.rater_ref == Event.rater_ref, Assignment.question_ref == Event.question_ref
                ),
            )
            .where(Event.kind == "answer")
        ).all()
        given = connection.execute(
            sa.select(Assignment.question_ref, Assignment.rater_ref, Question.wanted)
            .join(Question, Question.id == Assignment.question_ref)
            .where(Assignment.counted, Question.role == "work")
        ).all()
        pairs = connection.execute(
            sa.select(Question.counted, Question.wanted).where(Question.role == "work")
        ).all()
    store.close()
    stored: dict[str, list[tuple[str, str]]] = {}
    for key, answer, token in events:
        stored.setdefault(str(key), []).append((token, str(answer)))
    recorded = sum(stored.get(key) == [what] for key, what in seen.acknowledged.items())
    if recorded != len(seen.acknowledged):
        problems.append(
            f"{len(seen.acknowledged) - recorded} acknowledged answers are lost, changed or double"
        )
    if len({(q, r) for q, r, _ in given}) != len(given):
        problems.append("a rater counts twice on a pair")
    if any(counted != wanted for counted, wanted in pairs):
        problems.append(f"{sum(c != w for c, w in pairs)} pairs have another number of votes than wanted")
    if seen.refused:
        problems.append(f"{len(seen.refused)} refusals, the first: {seen.refused[0]}")
    quantiles, requests = {}, {}
    for kind in ("answer", "image"):
        times = [
            1000 * took
            for start, took, what in seen.times
            if what == kind and any(a <= start and start + took <= b for a, b in ups)
        ]
        requests[kind] = len(times)
        quantiles[kind] = (
            tuple(float(x) for x in np.quantile(times, (0.5, 0.9, 0.99, 1))) if times else (0.0,) * 4
        )
    return Report(
        raters=raters,
        kills=kills,
        acknowledged=len(seen.acknowledged),
        recorded=recorded,
        counted=len(given),
        wanted=sum(wanted for _, wanted in pairs),
        failures=seen.failures,
        quantiles=quantiles,  # type: ignore[arg-type]
        requests=requests,
        seconds=seconds,
        problems=problems,
    )
