"""A campaign on the sample images, and people who use it, over the app without a network."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient

from annotations.campaign.config import CampaignConfig
from annotations.campaign.pictures import Pictures, find_images, images_folder
from annotations.campaign.store import Store
from annotations.campaign.types import NewGold, NewPair
from annotations.web.app import WebSettings, create_app

BASE = "http://localhost:8008"
MakeStore = Callable[..., Store]


@pytest.fixture
def make_store(tmp_path: Path) -> Iterator[MakeStore]:
    """Make a campaign on the sample images: pairs of classes 2 and 3, gold of classes 900 and 901."""
    made: list[Store] = []

    def new(**settings: Any) -> Store:
        images = find_images("sample")
        plain = {"practice_questions": 0, "qualification_questions": 0, "gold_rate": 0.3, "quality_floor": 0}
        store = Store.create(
            str(tmp_path / f"{len(made)}.db"),
            CampaignConfig(**plain | settings),
            images=images,
            pairs=[NewPair(image.image_id, c) for image in images for c in (2, 3)],
            gold=[
                NewGold(image.image_id, c, ("yes", "no")[c % 2], practice=n < 3, explanation="secret-why")
                for n, image in enumerate(images)
                for c in (900, 901)
            ],
        )
        made.append(store)
        return store

    yield new
    for store in made:
        store.close()


class Visitor:
    """A browser, as far as these tests need one."""

    def __init__(self, store: Store, settings: WebSettings | None = None, *, app: Any = None) -> None:
        self.store = store
        self.app = app or create_app(store, Pictures(images_folder("sample")), settings)
        self.http = TestClient(self.app, base_url=BASE, follow_redirects=False)
        self.csrf = ""

    def get(self, path: str, **more: Any) -> httpx2.Response:
        return self.http.get(path, **more)

    def form(self, path: str, **fields: str) -> httpx2.Response:
        """Send the form of a page, with the token that the page holds."""
        return self.http.post(path, data={"csrf": self.token_on(path), **fields})

    def token_on(self, path: str) -> str:
        found = re.search(r'name="csrf" value="(\w+)"', self.get(path).text)
        assert found is not None, path
        return found.group(1)

    def post(self, path: str, body: Any, **headers: str) -> httpx2.Response:
        return self.http.post(path, json=body, headers={"X-CSRF-Token": self.csrf, **headers})

    def enter(self, role: Any = "rater") -> Visitor:
        """Come with a new invitation, as far as the work or the dashboard."""
        token = self.store.invite(role)[0].token
        assert self.get(f"/join/{token}").headers["location"] == "/welcome"
        assert self.form("/welcome").status_code == 303
        if role == "rater":
            assert self.form("/consent", version=self.store.config.consent_version).status_code == 303
            assert self.form("/instructions").status_code == 303
        self.csrf = self.get("/api/state").json()["csrf"]
        return self

    def questions(self, want: int = 8) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get(f"/api/questions?want={want}").json()["questions"]
        return found

    def answer(self, question: str, answer: str = "yes", key: str = "", **more: Any) -> httpx2.Response:
        item = {"key": key or f"key-{question}", "question": question, "answer": answer, "response_ms": 600}
        return self.post("/api/answers", {"items": [item | more]})


@pytest.fixture
def rater(make_store: MakeStore) -> Visitor:
    return Visitor(make_store()).enter()
