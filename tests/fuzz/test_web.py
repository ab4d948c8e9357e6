"""Whatever is sent to a campaign's server, it answers, and never with 500."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotations.campaign.config import CampaignConfig
from annotations.campaign.pictures import find_images
from annotations.campaign.store import Store
from annotations.campaign.types import NewGold, NewPair
from tests.annotations.web.conftest import Visitor
from tests.fuzz import damage
from tests.fuzz.targets import spoilt_text

PATHS = [
    "/join/{}", "/api/questions?want={}", "/api/images/{}", "/api/references/{}/0", "/work?{}",
    "/{}", "/welcome?{}",
    "/api/manage/images/{}", "/api/manage/flagged?offset={}",
]  # fmt: skip
BODIES = ["/api/answers", "/api/manage/adjudicate", "/api/manage/raters/1", "/api/manage/invitations"]


@pytest.fixture(scope="module")
def visitor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitor]:
    images = find_images("sample")
    store = Store.create(
        str(tmp_path_factory.mktemp("web") / "c.db"),
        CampaignConfig(practice_questions=0, qualification_questions=0, gold_rate=0.0),
        images=images,
        pairs=[NewPair(image.image_id, 2) for image in images],
        gold=[NewGold(images[0].image_id, 900, "yes")],
    )
    yield Visitor(store).enter()
    store.close()


@settings(max_examples=150)
@given(rng=st.randoms(use_true_random=False))
def test_requests(visitor: Visitor, rng: Random) -> None:
    held = [question["id"] for question in visitor.questions(2)]
    text = spoilt_text(rng, [*held, "A" * 22, "8"]).encode("utf-8", "replace").decode()
    cookie = f"session={text}; invite={text}"
    if rng.random() < 0.4:
        reply = visitor.get(
            rng.choice(PATHS).format(quote(text, safe="")),
            headers={"Cookie": cookie.encode("latin-1", "replace")},
        )
    elif rng.random() < 0.5:
        item = {"key": "k" * 12, "question": text, "answer": "yes", "response_ms": 600}
        body = damage.value_of(rng, {"items": [item], "want": 2})
        data = json.dumps(body).encode()
        headers = {"X-CSRF-Token": visitor.csrf, "Content-Type": "application/json"}
        reply = visitor.http.post(rng.choice(BODIES), content=data, headers=headers)
    else:
        data = damage.bytes_of(rng, b'{"items": [{"key": "kkkkkkkk", "question": "q", "answer": "yes"}]}')
        headers = {
            "X-CSRF-Token": rng.choice([visitor.csrf, "x"]),
            "Content-Type": rng.choice(["application/json", "x"]),
        }
        reply = visitor.http.post(rng.choice(BODIES), content=data, headers=headers)
    assert reply.status_code < 500, (reply.status_code, reply.text)


def test_the_campaign_is_sound_after_all_that(visitor: Visitor, tmp_path: Path) -> None:
    assert visitor.store.check() == []
