"""Votes out of a campaign and into another: nothing is lost, and raters stay pseudonyms."""

from __future__ import annotations

import csv
import io
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from annotations import publish, sources
from annotations.campaign import exchange
from annotations.campaign.store import Store
from annotations.errors import BeyondError
from annotations.judgements import VERDICT_NAMES
from tests.annotations.campaign.conftest import MakeCampaign, Person
from tests.annotations.campaign.test_store import question_of


def judged(make: MakeCampaign, **settings: object) -> Store:
    """A campaign that three made-up raters have finished but for some pairs."""
    settings = {
        "votes": 3,
        "accept_at": 2,
        "gold_rate": 0.2,
        "quality_floor": 0,
        "name": "made-up",
    } | settings
    store = make(30, 10, **settings)
    generator = random.Random(1)
    for number in range(3):
        person = Person(store)
        for _ in range(9 if number < 2 else 2):
            for token in person.ask():
                person.answer(token, generator.choice(("yes", "no", "maybe")))
    return store


def test_the_export_is_what_can_be_published(make: MakeCampaign, tmp_path: Path) -> None:
    store = judged(make)
    notes = exchange.export_parquet(store, tmp_path / "out")
    assert notes == []
    frame = publish.read_votes(tmp_path / "out" / "votes.parquet")
    votes = store.votes()
    assert len(frame) == len(votes.answer)
    assert frame["rater"].str.fullmatch(r"r-[0-9a-f]{16}").all()
    assert set(frame.loc[~frame["gold"], "sampling_probability"]) == {0.5}
    assert set(frame.loc[frame["gold"], "sampling_probability"]) == {1.0}
    assert frame["gold"].any()
    labels = sources.read_folder(tmp_path / "out")
    # By hand, from the votes alone: two of three equal answers decide.
    plain = frame[~frame["gold"] & frame["counted"]]
    by_pair = plain.groupby(["image_id", "class_index"])["answer"].agg(list)
    complete = {pair: Counter(answers) for pair, answers in by_pair.items() if len(answers) == 3}
    assert 0 < len(complete) < 30
    expected = {
        pair: "accepted" if c["yes"] >= 2 else "rejected" if c["no"] >= 2 else "unsure"
        for pair, c in complete.items()
    }
    found = {
        (labels.image_ids[labels.pair_image[i]], int(labels.pair_class[i])): VERDICT_NAMES[
            int(labels.verdict[i])
        ]
        for i in range(len(labels.verdict))
    }
    assert found == expected
    facts = json.loads((tmp_path / "out" / "campaign.json").read_text())
    assert facts["frozen"] is False
    assert facts["votes"] == len(frame)
    text = b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir())
    assert b"g0.jpg" not in text
    assert b"because" not in text


def test_a_managers_decision_goes_before_the_votes(make: MakeCampaign) -> None:
    store = judged(make)
    pair = store.flagged()[1][0]
    store.adjudicate(pair.question_id, "accepted")
    labels = exchange.judge(store).label_sets
    row = list(labels.image_ids).index(pair.image_id)
    at = ((labels.pair_image == row) & (labels.pair_class == pair.class_index)).nonzero()[0]
    assert VERDICT_NAMES[int(labels.verdict[at[0]])] == "accepted"
    assert labels.pair_source[at[0]].endswith("(adjudicated)")


@pytest.mark.parametrize("method", exchange.METHODS)
def test_every_method_gives_verdicts_on_the_same_pairs(make: MakeCampaign, method: exchange.Method) -> None:
    store = judged(make)
    assert len(exchange.judge(store, method=method).label_sets.verdict) == store.status().coverage.complete
    every = exchange.judge(store, method=method, incomplete=True).label_sets
    assert len(every.verdict) == 30 - store.status().coverage.untouched


def test_a_campaign_without_finished_pairs_has_no_judgements(make: MakeCampaign, tmp_path: Path) -> None:
    store = make(3)
    assert "no pair has all its votes" in exchange.export_parquet(store, tmp_path)[0]
    assert pq.read_table(tmp_path / "votes.parquet").num_rows == 0


def answers_of(store: Store) -> dict[tuple[str, int], Counter[str]]:
    votes = store.votes()
    found: dict[tuple[str, int], Counter[str]] = {}
    for q, a in zip(votes.question, votes.answer):
        key = (votes.image_ids[q], int(votes.class_index[q]))
        found.setdefault(key, Counter())[("no", "maybe", "yes")[a]] += 1
    return found


def test_votes_survive_parquet_and_label_studio(make: MakeCampaign, tmp_path: Path) -> None:
    store = judged(make)
    before = answers_of(store)
    exchange.export_parquet(store, tmp_path / "out")
    tasks = exchange.label_studio_tasks(store, image_prefix="/data/local-files/?d=")
    assert all(task["data"]["image"].startswith("/data/local-files/?d=") for task in tasks)
    names = {"image", "label", "gloss", "question_id", "image_id", "class_index"}
    assert {frozenset(task["data"]) for task in tasks} == {frozenset(names)}  # gold is like any other
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    # Into a campaign with the same questions and no votes: the same store's file, made anew.
    other = clone(store, tmp_path)
    kinds: list[tuple[Path, object]] = [
        (tmp_path / "out" / "votes.parquet", "parquet"),
        (tmp_path / "tasks.json", "label-studio"),
    ]
    for number, (file, kind) in enumerate(kinds):
        found = exchange.read_votes(file, kind)  # type: ignore[arg-type]
        target = other(number)
        totals = target.import_votes(found, origin=str(kind))
        assert totals == {"recorded": len(store.votes().answer), "duplicate": 0, "refused": 0}
        assert answers_of(target) == before
        assert target.check() == []
        assert target.import_votes(found, origin=str(kind))["duplicate"] == len(found)
        assert answers_of(target) == before
        times = target.votes().response_ms
        assert set(times.tolist()) == {700}
        target.close()


def clone(store: Store, tmp_path: Path) -> Callable[[int], Store]:
    """Make campaigns with the same questions, numbered anew, and no votes."""
    from annotations.campaign.types import NewGold, NewImage, NewPair

    def new(number: int) -> Store:
        votes = store.votes()
        images = [NewImage(name, f"{name}.jpg") for name in sorted(set(votes.image_ids))]
        pairs, gold = [], []
        for i in range(len(votes.question_ids)):
            pair = (votes.image_ids[i], int(votes.class_index[i]))
            if votes.expected[i] < 0:
                pairs.append(NewPair(*pair))
            else:
                gold.append(NewGold(*pair, "yes" if votes.expected[i] == 2 else "no"))
        return Store.create(
            str(tmp_path / f"other{number}.db"), store.config, images=images, pairs=pairs, gold=gold
        )

    return new


def test_mturk_gets_questions_and_gives_votes_back(make: MakeCampaign, tmp_path: Path) -> None:
    store = make(4, 2, votes=2, accept_at=2)
    rows = list(csv.DictReader(io.StringIO(exchange.mturk_input(store, image_prefix="https://host/"))))
    assert len(rows) == 6
    assert set(rows[0]) == {"question_id", "image_url", "label", "gloss"}
    assert all(row["image_url"].startswith("https://host/") for row in rows)
    results = tmp_path / "results.csv"
    forms = [
        {"Answer.answer": "Yes"},
        {"Answer.answer.label": "no"},
        {"Answer.taskAnswers": '[{"answer":{"label":"maybe"}}]'},
        {"Answer.taskAnswers": '[{"answer":{"yes":false,"no":true}}]'},
        {"Answer.answer.yes": "true"},
    ]
    names = sorted({name for form in forms for name in form})
    with results.open("w", newline="") as stream:
        writer = csv.DictWriter(
            stream, ["WorkerId", "Input.question_id", "AssignmentStatus", "WorkTimeInSeconds", *names]
        )
        writer.writeheader()
        for row, form in zip(rows, forms):
            facts = {"Input.question_id": row["question_id"], "WorkTimeInSeconds": "3"}
            writer.writerow({"WorkerId": "A1", "AssignmentStatus": "Approved", **facts, **form})
        writer.writerow(
            {
                "WorkerId": "A2",
                "Input.question_id": rows[0]["question_id"],
                "AssignmentStatus": "Rejected",
                "Answer.answer": "no",
            }
        )
    votes = exchange.read_votes(results, "mturk")
    assert [vote.answer for vote in votes] == ["yes", "no", "maybe", "no", "yes"]
    assert {vote.response_ms for vote in votes} == {3000}
    assert store.import_votes(votes, origin="mturk")["recorded"] == 5
    exported = exchange.votes_table(store.votes()).to_pandas()
    assert "A1" not in exported.to_csv()
    assert len(set(exported["rater"])) == 1


def test_imported_votes_do_not_go_beyond_the_redundancy(make: MakeCampaign) -> None:
    from annotations.campaign.types import ImportedVote

    store = make(1, votes=2, accept_at=2)
    person = Person(store)
    token = person.ask()[0]
    number = question_of(store, token)
    votes = [ImportedVote(f"w{n}", "yes", question_id=number) for n in range(4)]
    assert store.import_votes(votes, origin="x")["recorded"] == 4
    assert int(store.votes().counted.sum()) == 1  # one place is held by the rater
    assert person.answer(token) == "recorded"
    assert int(store.votes().counted.sum()) == 2
    assert store.check() == []


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("label-studio", "{}", "list of tasks"),
        ("label-studio", "no json", "cannot be read"),
        ("label-studio", '[{"data": {}, "annotations": []}]', "no question_id"),
        ("mturk", "a,b\n1,2\n", "WorkerId"),
        ("mturk", "WorkerId,Input.question_id,Answer.answer\nA,1,perhaps\n", "none of yes"),
        ("mturk", "WorkerId,Input.question_id,Answer.answer\n,1,yes\n", "who gave it"),
        ("mturk", "WorkerId,Input.question_id,Answer.answer\nA,x,yes\n", "no question_id"),
        ("parquet", "no parquet", "not a readable Parquet file"),
    ],
)
def test_files_of_another_form_get_a_line(tmp_path: Path, kind: str, content: str, message: str) -> None:
    (tmp_path / "file").write_text(content)
    with pytest.raises(BeyondError, match=message):
        exchange.read_votes(tmp_path / "file", kind)  # type: ignore[arg-type]


def test_a_vote_on_no_question_stops_the_import(make: MakeCampaign) -> None:
    from annotations.campaign.types import ImportedVote

    store = make(2)
    good = ImportedVote("w", "yes", image_id="i0", class_index=0)
    with pytest.raises(BeyondError, match="nothing was imported"):
        store.import_votes([good, ImportedVote("w", "yes", image_id="i0", class_index=5)], origin="x")
    assert len(store.votes().answer) == 0
