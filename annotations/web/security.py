"""What keeps the web app safe: headers, limits on bodies and rates, and tokens against forged requests."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; "
    "font-src 'self'; manifest-src 'self'; worker-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_MAX_BUCKETS = 20_000


def csrf_token(secret: str) -> str:
    """The token that requests of a session carry: a hash of its cookie, so that only its pages know it."""
    return hashlib.blake2b(secret.encode(), person=b"csrf", digest_size=16).hexdigest()


def csrf_matches(secret: str, given: str) -> bool:
    """Whether a request's token is that of the session; compared in constant time."""
    return hmac.compare_digest(csrf_token(secret).encode(), given.encode())


def is_same_origin(request: Request, public_url: str | None) -> bool:
    """Whether a request that changes something comes from a page of this server.

    Browsers say where a request comes from in `Sec-Fetch-Site` and `Origin`; a request without either is not
    a browser's, and the session's token decides.
    """
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = request.headers.get("origin")
    if origin is None:
        return True
    own = {request.headers.get("host", "")}
    if public_url:
        own.add(urlsplit(public_url).netloc)
    return urlsplit(origin).netloc in own and urlsplit(origin).scheme in ("http", "https")


class RateLimit:
    """A token bucket for each key: `burst` at once, then `rate` a second."""

    def __init__(self, rate: float, burst: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.burst, self.clock = rate, burst, clock
        self._lock = threading.Lock()
        self._buckets: dict[str, tuple[float, float]] = {}

    def wait(self, key: str, cost: float = 1.0) -> float:
        """Take `cost` from a bucket: 0.0 if it was there, or else the seconds until it will be."""
        now = self.clock()
        with self._lock:
            if len(self._buckets) >= _MAX_BUCKETS:
                full = self.burst / self.rate
                self._buckets = {k: v for k, v in self._buckets.items() if now - v[1] < full}
            level, then = self._buckets.get(key, (self.burst, now))
            level = min(self.burst, level + (now - then) * self.rate)
            if level < cost:
                self._buckets[key] = (level, now)
                return (cost - level) / self.rate
            self._buckets[key] = (level - cost, now)
            return 0.0


class Guard:
    """ASGI middleware: security headers on every response, and no body larger than the limit."""

    def __init__(self, app: ASGIApp, *, body_limit: int, secure: bool) -> None:
        self.app, self.body_limit = app, body_limit
        self.headers = dict(HEADERS)
        if secure:
            self.headers["Strict-Transport-Security"] = "max-age=31536000"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        too_large = False
        is_static = scope["path"].startswith("/static/")

        async def guarded_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self.headers.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-cache" if is_static else "no-store")
            await send(message)

        async def send_unless_refused(message: Message) -> None:
            if not too_large:
                await guarded_send(message)

        declared = Headers(scope=scope).get("content-length", "0")
        if not declared.isdecimal() or int(declared) > self.body_limit:
            await _too_large(guarded_send, self.body_limit)
            return
        received = 0

        async def guarded_receive() -> Message:
            nonlocal received, too_large
            message = await receive()
            received += len(message.get("body", b""))
            if received <= self.body_limit:
                return message
            too_large = True
            return {"type": "http.disconnect"}

        try:
            await self.app(scope, guarded_receive, send_unless_refused)
        except ClientDisconnect:
            if not too_large:
                raise
        if too_large:
            await _too_large(guarded_send, self.body_limit)


async def _too_large(send: Send, limit: int) -> None:
    body = json.dumps({"error": f"the request is larger than {limit:,} bytes"}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send(
        {"type": "http.response.start", "status": 413, "headers": [*headers, (b"connection", b"close")]}
    )
    await send({"type": "http.response.body", "body": body})
