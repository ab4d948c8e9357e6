"""A headless Chromium for tests of pages: found, started, and kept off the network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Error, sync_playwright

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_chromium() -> str | None:
    """Path of a Chromium: what BEYOND_CHROMIUM says, or one on the PATH, or None."""
    named = os.environ.get("BEYOND_CHROMIUM")
    if named:
        return named
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A running Chromium: the system's, or the one that Playwright has downloaded.

    Without any, the test is skipped with one line, or fails where BEYOND_REQUIRE_ALL=1 demands every test.
    """
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=find_chromium(), args=ARGUMENTS)
        except Error as error:
            reason = f"no Chromium (set BEYOND_CHROMIUM to one): {str(error).splitlines()[0]}"
            if os.environ.get("BEYOND_REQUIRE_ALL") == "1":
                pytest.fail(reason, pytrace=False)
            pytest.skip(reason)
        try:
            yield browser
        finally:
            browser.close()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Address of a local server of the files in a folder, without a slash at its end."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def main() -> None:
    """Make sure that there is a Chromium for the tests: where none is found, let Playwright fetch its own."""
    if find_chromium() is not None:
        return
    with sync_playwright() as playwright:
        if Path(playwright.chromium.executable_path).exists():
            return
    code = subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"]).returncode
    if code:
        sys.stderr.write("No Chromium, and Playwright could not fetch one: tests of pages are skipped.\n")
        sys.exit(code if os.environ.get("BEYOND_REQUIRE_ALL") == "1" else 0)


if __name__ == "__main__":
    main()
