"""Runs the web app with uvicorn, in one process: SQLite has one writer, and one process knows all limits."""

from __future__ import annotations

import errno
import gc
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from annotations.errors import BeyondError

_SHUTDOWN_SECONDS = 5


@contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """A listening socket, so that whoever prints the address knows that it answers.

    Raises:
        BeyondError: The address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    server = socket.socket(family, socket.SOCK_STREAM)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((host, port))
        except OSError as error:
            reason = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be had ({error.strerror})"
            raise BeyondError(f"{host}:{port} {reason}; choose another with --port or --host") from None
        server.listen(2048)
        yield server
    finally:
        server.close()


def settle() -> None:
    """Before listening: what was made until now stays, so the collector need not look at it in a request."""
    gc.collect()
    gc.freeze()


def serve_forever(app: FastAPI, server: socket.socket, *, trust_proxy: str | None = None) -> None:
    """Serve on a listening socket until SIGINT or SIGTERM."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=trust_proxy is not None,
        forwarded_allow_ips=trust_proxy,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        timeout_keep_alive=30,
        lifespan="off",
    )
    uvicorn.Server(config).run(sockets=[server])
