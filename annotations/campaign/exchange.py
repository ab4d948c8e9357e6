"""Votes and questions out of a campaign and into it: Parquet, Label Studio's JSON, MTurk's batch CSV.

Nothing that leaves tells gold from other questions before they are answered, and raters leave as salted
pseudonyms alone.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from annotations.aggregation import (
    UNKNOWN,
    Aggregate,
    Answers,
    dawid_skene,
    k_of_n,
    majority,
    one_coin,
    verdicts,
)
from annotations.campaign.store import Store
from annotations.campaign.types import ImportedVote, Votes
from annotations.classes import class_definitions, class_names
from annotations.errors import BeyondError, one_line
from annotations.judgements import VERDICT_NAMES, LabelSets, Verdict
from annotations.publish import CAMPAIGN_FILE, EXTRA_VOTES, VOTES_FILE, VOTES_SCHEMA
from annotations.tables import read_parquet

Method = Literal["k-of-n", "majority", "dawid-skene", "one-coin"]
METHODS: tuple[Method, ...] = ("k-of-n", "majority", "dawid-skene", "one-coin")
ANSWER_NAMES = np.array(["no", "maybe", "yes"], dtype=object)
EXPORTED_VOTES = pa.schema([*VOTES_SCHEMA, *(pa.field(name, kind) for name, kind in EXTRA_VOTES.items())])

LABEL_STUDIO_CONFIG = """\
<View>
  <Header value="Does this label apply? $label: $gloss"/>
  <Image name="image" value="$image"/>
  <Choices name="answer" toName="image" choice="single" required="true">
    <Choice value="yes"/><Choice value="no"/><Choice value="maybe"/>
  </Choices>
</View>
"""


# Judgements ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """Verdicts of a campaign.

    Attributes:
        label_sets: The judged pairs.
        aggregate: What they come from, on all questions of `votes`.
        votes: The votes.
    """

    label_sets: LabelSets
    aggregate: Aggregate
    votes: Votes


def judge(store: Store, *, method: Method = "k-of-n", incomplete: bool = False) -> Judged:
    """Turn a campaign's counted votes into verdicts; a manager's decision goes before the votes.

    Args:
        store: The campaign.
        method: `k-of-n` is the campaign's own rule; Dawid–Skene and one-coin learn from gold as well.
        incomplete: Also pairs that still take votes.

    Raises:
        BeyondError: There is no pair to give a verdict on, or the campaign is a study in arms.
    """
    if store.config.arms:
        raise BeyondError(
            "this campaign is a study in arms: it has votes to export, and no verdicts on pairs"
        )
    votes = store.votes()
    counted = votes.counted
    answers = Answers(
        votes.question[counted],
        votes.rater[counted],
        votes.answer[counted],
        len(votes.question_ids),
        len(votes.raters),
    )
    known = np.where(votes.expected == 2, 1, np.where(votes.expected == 0, 0, UNKNOWN))
    if method == "k-of-n":
        aggregate = k_of_n(answers, k=store.config.accept_at, n=store.config.votes)
        verdict = verdicts(aggregate.acceptance)
    elif method == "majority":
        aggregate = majority(answers)
        verdict = verdicts(aggregate.acceptance, accept_at=0.5 + 1e-6)
    elif method == "dawid-skene":
        aggregate = dawid_skene(answers, gold=known)
        verdict = verdicts(aggregate.acceptance)
    else:
        aggregate = one_coin(answers, gold=known)
        verdict = verdicts(aggregate.acceptance)
    number = np.bincount(answers.question, minlength=answers.questions)
    decided = np.array([name is not None for name in votes.adjudicated], dtype=bool)
    by_manager = {name: code for code, name in VERDICT_NAMES.items()}
    for row in np.flatnonzero(decided):
        verdict[row] = by_manager[votes.adjudicated[row]]
    wanted = (votes.expected < 0) & (decided | ((number > 0) & (votes.complete | incomplete)))
    rows = np.flatnonzero(wanted & (verdict != Verdict.UNJUDGED))
    if not len(rows):
        raise BeyondError("no pair has all its votes yet; with --incomplete, those with fewer count as well")
    source = f"campaign:{store.config.name}"
    share = np.where(np.isnan(aggregate.acceptance), np.nan, aggregate.acceptance)
    judgements = pd.DataFrame(
        {
            "image_id": votes.image_ids[rows],
            "class_index": votes.class_index[rows],
            "verdict": [VERDICT_NAMES[int(code)] for code in verdict[rows]],
            "score": share[rows].astype(np.float32),
            "votes": number[rows].astype(np.int16),
            "source": [f"{source} (adjudicated)" if decided[row] else source for row in rows],
        }
    )
    first = pd.DataFrame({"image_id": votes.image_ids[rows], "original_label": votes.original_label[rows]})
    images = first.drop_duplicates("image_id").assign(status="evaluable", closed_world=False)
    revision = "sha256:" + hashlib.sha256(judgements.to_csv(index=False).encode()).hexdigest()[:12]
    label_sets = LabelSets.from_tables(judgements, images, source=source, revision=revision)
    return Judged(label_sets, aggregate, votes)


# Out -------------------------------------------------------------------------------------------------------


def export_parquet(
    store: Store, folder: Path, *, method: Method = "k-of-n", incomplete: bool = False
) -> list[str]:
    """Write `votes.parquet`, `judgements.parquet`, `images.parquet` and `campaign.json` into a folder.

    Returns:
        Notes on what is not there.
    """
    notes: list[str] = []
    folder.mkdir(parents=True, exist_ok=True)
    votes = store.votes()
    table = votes_table(votes)
    try:
        judged = judge(store, method=method, incomplete=incomplete)
        judged.label_sets.save(folder)
    except BeyondError as reason:
        notes.append(f"no judgements: {reason}")
    pq.write_table(table, folder / VOTES_FILE, compression="zstd")
    facts = {
        "name": store.config.name,
        "frozen": store.is_frozen(),
        "method": method,
        "votes": len(votes.answer),
        "raters": len(votes.raters),
        "pairs": int((votes.expected < 0).sum()),
        "gold": int((votes.expected >= 0).sum()),
        "settings": store.config.model_dump(mode="json", exclude={"prolific"}),
    }
    text = json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
    (folder / CAMPAIGN_FILE).write_text(text, encoding="utf-8")
    return notes


def votes_table(votes: Votes) -> pa.Table:
    """Votes in long form, in `EXPORTED_VOTES`, by question and rater."""
    at = votes.question
    return pa.Table.from_pydict(
        {
            "question_id": votes.question_ids[at],
            "image_id": votes.image_ids[at],
            "class_index": votes.class_index[at],
            "rater": votes.raters[votes.rater],
            "answer": ANSWER_NAMES[votes.answer],
            "arm": votes.arm[at],
            "gold": votes.expected[at] >= 0,
            "response_ms": pa.array(votes.response_ms, mask=votes.response_ms < 0),
            "sampling_probability": votes.sampling_probability[at],
            "counted": votes.counted,
            "purpose": votes.purpose,
        },
        schema=EXPORTED_VOTES,
    )


def label_studio_tasks(store: Store, *, image_prefix: str) -> list[dict[str, Any]]:
    """Questions as Label Studio's tasks, with the votes there are as annotations.

    Args:
        store: The campaign.
        image_prefix: What comes before an image's path to make its address for Label Studio.
    """
    votes, names, glosses = store.votes(), class_names(), class_definitions()
    paths = store.paths()
    order = np.argsort(votes.question, kind="stable")
    bounds = np.searchsorted(votes.question[order], np.arange(len(votes.question_ids) + 1))
    tasks = []
    for row, question_id in enumerate(votes.question_ids.tolist()):
        class_index = int(votes.class_index[row])
        image_id = votes.image_ids[row]
        annotations = []
        for vote in order[bounds[row] : bounds[row + 1]]:
            choice = {"choices": [ANSWER_NAMES[votes.answer[vote]]]}
            result = {"from_name": "answer", "to_name": "image", "type": "choices", "value": choice}
            who = f"{votes.raters[votes.rater[vote]]}@campaign.invalid"
            annotation: dict[str, Any] = {"completed_by": {"email": who}, "result": [result]}
            if votes.response_ms[vote] >= 0:
                annotation["lead_time"] = int(votes.response_ms[vote]) / 1000
            annotations.append(annotation)
        data = {
            "image": image_prefix + paths[image_id],
            "label": names[class_index],
            "gloss": glosses[class_index],
            "question_id": question_id,
            "image_id": image_id,
            "class_index": class_index,
        }
        tasks.append({"data": data, "annotations": annotations})
    return tasks


def mturk_input(store: Store, *, image_prefix: str) -> str:
    """Questions as the input of an MTurk batch: question_id, image_url, label, gloss."""
    votes, names, glosses = store.votes(), class_names(), class_definitions()
    paths = store.paths()
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(["question_id", "image_url", "label", "gloss"])
    for row, question_id in enumerate(votes.question_ids.tolist()):
        class_index = int(votes.class_index[row])
        address = image_prefix + paths[votes.image_ids[row]]
        writer.writerow([question_id, address, names[class_index], glosses[class_index]])
    return sink.getvalue()


# In --------------------------------------------------------------------------------------------------------


# A list where a mapping belongs, a text where a number does, and so on.
_NOT_OF_THE_FORM = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
    csv.Error,
)


def read_votes(file: Path, kind: Literal["parquet", "label-studio", "mturk"]) -> list[ImportedVote]:
    """Votes from a file of another tool.

    Raises:
        BeyondError: The file is unreadable or not of its form, or an answer is none.
    """
    if not file.is_file():
        raise BeyondError(f"no such file: {file}")
    try:
        if kind == "parquet":
            return _from_parquet(file)
        if kind == "label-studio":
            return _from_label_studio(file)
        return _from_mturk(file)
    except _NOT_OF_THE_FORM as error:
        raise BeyondError(f"{file} cannot be read as {kind} ({one_line(error)})") from None


def _from_parquet(file: Path) -> list[ImportedVote]:
    types = {field.name: field.type for field in EXPORTED_VOTES} | {"class_index": pa.int64()}
    filled = ("image_id", "class_index", "rater", "answer")
    table = read_parquet(file, types, filled=filled)
    for name in ("image_id", "class_index", "rater", "answer"):
        if name not in table.column_names:
            raise BeyondError(
                f"{file} has no column {name!r}; votes need image_id, class_index, rater, answer"
            )
    columns = table.to_pydict()
    count = table.num_rows
    times = columns.get("response_ms", [None] * count)
    arms = columns.get("arm", [""] * count)
    return [
        ImportedVote(
            rater=_required(columns["rater"][i], file, "rater"),
            answer=_answer(columns["answer"][i], file),
            image_id=columns["image_id"][i],
            class_index=columns["class_index"][i],
            arm=arms[i] or "",
            response_ms=times[i],
        )
        for i in range(count)
    ]


def _from_label_studio(file: Path) -> list[ImportedVote]:
    tasks = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(tasks, list):
        raise BeyondError(f"{file} is no export of Label Studio: it needs a JSON list of tasks")
    found = []
    for task in tasks:
        data = task.get("data", {}) if isinstance(task, dict) else {}
        if "question_id" not in data:
            raise BeyondError(
                f"{file}: a task has no question_id in its data; export the tasks from here first"
            )
        for annotation in task.get("annotations", []):
            if annotation.get("was_cancelled"):
                continue
            choices = [
                choice
                for result in annotation.get("result", [])
                if result.get("type") == "choices"
                for choice in result.get("value", {}).get("choices", [])
            ]
            if len(choices) != 1:
                raise BeyondError(
                    f"{file}: an annotation of question {data['question_id']} has {len(choices)} choices; "
                    "it needs one of yes, no and maybe"
                )
            who = annotation.get("completed_by")
            who = who.get("email") or who.get("id") if isinstance(who, dict) else who
            seconds = annotation.get("lead_time")
            named = "image_id" in data and "class_index" in data
            found.append(
                ImportedVote(
                    rater=_required(who, file, "completed_by"),
                    answer=_answer(choices[0], file),
                    question_id=None if named else _number(data["question_id"], file),
                    image_id=str(data["image_id"]) if named else None,
                    class_index=_number(data["class_index"], file) if named else None,
                    response_ms=None if seconds is None else round(1000 * float(seconds)),
                )
            )
    return found


def _from_mturk(file: Path) -> list[ImportedVote]:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream)
        names = reader.fieldnames or []
        for name in ("WorkerId", "Input.question_id"):
            if name not in names:
                raise BeyondError(f"{file} has no column {name!r}; give the results that MTurk offers as CSV")
        return [
            ImportedVote(
                rater=_required(row["WorkerId"], file, "WorkerId"),
                answer=_answer(_mturk_answer(row), file),
                question_id=_number(row["Input.question_id"], file),
                response_ms=_milliseconds(row.get("WorkTimeInSeconds")),
            )
            for row in reader
            if row.get("AssignmentStatus") != "Rejected"
        ]


def _mturk_answer(row: dict[str, str]) -> str | None:
    """The answer, in whichever form the page of the batch sent it."""
    for name in ("Answer.answer", "Answer.answer.label"):
        if row.get(name):
            return row[name]
    if row.get("Answer.taskAnswers"):
        sent = json.loads(row["Answer.taskAnswers"])
        answer = (
            sent[0].get("answer") if isinstance(sent, list) and sent and isinstance(sent[0], dict) else None
        )
        if isinstance(answer, dict) and "label" in answer:
            return str(answer["label"])
        if isinstance(answer, dict):
            return next((name for name, chosen in answer.items() if chosen is True), None)
        return None if answer is None else str(answer)
    return next(
        (n for n in ("yes", "no", "maybe") if (row.get(f"Answer.answer.{n}") or "").lower() == "true"), None
    )


def _answer(value: Any, file: Path) -> Any:
    text = str(value).strip().lower()
    if text not in ("yes", "no", "maybe"):
        raise BeyondError(f"{file}: {value!r} is none of yes, no and maybe")
    return text


def _required(value: Any, file: Path, name: str) -> str:
    if value in (None, ""):
        raise BeyondError(f"{file}: a vote has no {name}; it needs to say who gave it")
    return str(value)


def _number(value: Any, file: Path) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise BeyondError(f"{file}: {value!r} is no question_id") from None


def _milliseconds(seconds: str | None) -> int | None:
    return round(1000 * float(seconds)) if seconds and seconds.replace(".", "", 1).isdecimal() else None
