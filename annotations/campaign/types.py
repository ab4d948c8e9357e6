"""What goes into the store and comes out of it. Times are seconds since 1970 (UTC)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

Answer = Literal["yes", "no", "maybe"]
ANSWERS: tuple[Answer, ...] = ("yes", "no", "maybe")
Role = Literal["rater", "manager"]
Stage = Literal[
    "consent", "instructions", "practice", "qualification", "work", "done", "paused", "failed", "withdrawn"
]
Purpose = Literal["practice", "qualification", "work"]
VerdictName = Literal["accepted", "rejected", "unsure"]

# What a campaign is made of --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NewImage:
    """An image of a campaign.

    Attributes:
        image_id: Its id, the file stem.
        path: Its file, relative to the folder that the server is given; never from a client.
        original_label: Class index, −1 where unknown.
    """

    image_id: str
    path: str
    original_label: int = -1


@dataclass(frozen=True, slots=True)
class NewPair:
    """A pair (image, class) that raters are to judge.

    Attributes:
        image_id: Its image.
        class_index: Its class.
        priority: Pairs of higher priority are asked first.
        sampling_probability: With which it was drawn, in (0, 1].
        reason: Why it is asked.
        arm: Arm of a study; only raters of this arm are asked.
        beside: File of a picture that is shown beside the image, relative to the folder of images, or empty.
    """

    image_id: str
    class_index: int
    priority: float = 0.0
    sampling_probability: float = 1.0
    reason: str = ""
    arm: str = ""
    beside: str = ""


@dataclass(frozen=True, slots=True)
class NewGold:
    """A pair whose answer is known.

    Attributes:
        image_id: Its image.
        class_index: Its class.
        expected: `yes` or `no`.
        practice: Asked in practice, with feedback, and nowhere else.
        explanation: Why, shown as feedback.
        source: Where the answer comes from.
        arm: Arm of a study, or empty: it is asked in all.
        beside: As of a pair.
    """

    image_id: str
    class_index: int
    expected: Literal["yes", "no"]
    practice: bool = False
    explanation: str = ""
    source: str = ""
    arm: str = ""
    beside: str = ""


@dataclass(frozen=True, slots=True)
class ImportedVote:
    """A vote that was given elsewhere.

    Attributes:
        rater: Who gave it, by any name; it is stored, and never leaves.
        answer: The answer.
        question_id: The question, or else
        image_id: the image and
        class_index: the class and
        arm: the arm.
        response_ms: How long it took, or None.
    """

    rater: str
    answer: Answer
    question_id: int | None = None
    image_id: str | None = None
    class_index: int | None = None
    arm: str = ""
    response_ms: int | None = None


# What raters see and do ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Question:
    """A question held for one rater. Nothing in it tells gold from any other question.

    Attributes:
        token: Names the question for this rater alone; also names its image.
        class_index: The label asked about.
        position: Place in the rater's own sequence, from 1.
        purpose: Part of the journey it is asked in; gold of the work has `work`.
        arm: Arm of a study, or empty.
        has_beside: Whether a picture is shown beside the image.
    """

    token: str
    class_index: int
    position: int
    purpose: Purpose
    arm: str = ""
    has_beside: bool = False


@dataclass(frozen=True, slots=True)
class Item:
    """One entry of a rater's outbox.

    Attributes:
        key: The client's own key, unique for the rater: the same key twice is the same entry.
        kind: An answer, or the taking back of one.
        token: The question's token.
        answer: Of an answer; None for undo.
        response_ms: Time from showing the picture to the key.
        client_at: The client's clock.
    """

    key: str
    kind: Literal["answer", "undo"]
    token: str
    answer: Answer | None = None
    response_ms: int | None = None
    client_at: float | None = None


@dataclass(frozen=True, slots=True)
class Feedback:
    """What a rater learns in practice (and in qualification, if the campaign says so)."""

    right: bool
    expected: Literal["yes", "no"]
    explanation: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an outbox entry.

    Attributes:
        key: Its key.
        status: `recorded` (durable now), `duplicate` (durable since earlier) or `refused` (never to be sent
            again; `reason` says why). It never tells whether the answer counts, since only gold always does.
        reason: Of a refusal: `unknown-question`, `already-answered`, `nothing-to-undo`, `too-late-to-undo`,
            `maybe-not-allowed`, `not-now`, `key-reused`.
        feedback: In practice.
    """

    key: str
    status: Literal["recorded", "duplicate", "refused"]
    reason: str = ""
    feedback: Feedback | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a rater is.

    Attributes:
        stage: Step of the journey.
        answered: Answers given in the work.
        quota: How many they may give, or None.
        step_done: Answers given in this practice or qualification round.
        step_of: How many that round has.
        undoable: Tokens of answers that can be undone, latest first.
        waiting: True if there is no question now, but there may be later (others hold them).
        qualification_right: Share right in the last finished qualification round, or None.
    """

    stage: Stage
    answered: int
    quota: int | None
    step_done: int
    step_of: int
    undoable: tuple[str, ...] = ()
    waiting: bool = False
    qualification_right: float | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Questions for a rater, in order, with where the rater is."""

    questions: tuple[Question, ...]
    progress: Progress


@dataclass(frozen=True, slots=True)
class Picture:
    """The files that a token stands for, for the rater that the token was made for."""

    image_id: str
    path: str
    beside: str = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as it was put into a campaign.

    Attributes:
        image_id: Its image.
        path: The image's file.
        class_index: Its class.
        arm: Arm of a study, or empty.
        beside: File of the picture beside it, or empty.
        item: What `reason` of a pair, or `source` of gold, said: in a study, the item's name.
    """

    image_id: str
    path: str
    class_index: int
    arm: str
    beside: str
    item: str


@dataclass(frozen=True, slots=True)
class Given:
    """An answer that stands: the last of a rater to a question, not undone and not withdrawn.

    Attributes:
        rater: Pseudonym.
        arm: The rater's arm, or empty.
        item: As of `Asked`.
        answer: The answer.
        response_ms: How long it took, or None.
        position: Place of the question in the rater's own sequence, from 1.
    """

    rater: str
    arm: str
    item: str
    answer: Answer
    response_ms: int | None
    position: int


# People ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Prolific:
    """The parameters that Prolific adds to the link."""

    pid: str
    study_id: str
    session_id: str


@dataclass(frozen=True, slots=True)
class Invitation:
    """A new invitation. `token` is known here and nowhere else: the store keeps its hash."""

    token: str
    role: Role
    expires_at: float
    uses: int
    label: str = ""


@dataclass(frozen=True, slots=True)
class NewSession:
    """A session just opened. `token` goes into the cookie; the store keeps its hash."""

    token: str
    rater_id: int
    role: Role
    expires_at: float


@dataclass(frozen=True, slots=True)
class Person:
    """Who is behind a session."""

    rater_id: int
    pseudonym: str
    role: Role
    stage: Stage
    arm: str
    session_id: int


# What managers see -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Coverage:
    """How far the pairs are.

    Attributes:
        pairs: Pairs to judge, without gold and practice.
        complete: Pairs that take no more votes.
        decided: Pairs with a verdict by k of n, or adjudicated.
        undecided: Complete pairs without one.
        untouched: Pairs without a counted answer.
        answers: Counted answers on pairs.
        wanted: Counted answers that complete all pairs (an upper bound where pairs stop early).
        in_flight: Pairs held by a rater now.
    """

    pairs: int
    complete: int
    decided: int
    undecided: int
    untouched: int
    answers: int
    wanted: int
    in_flight: int


@dataclass(frozen=True, slots=True)
class Throughput:
    """Answers of all kinds over time.

    Attributes:
        last_hour: Answers in the last hour.
        last_day: In the last day.
        total: Ever, undone ones not counted.
        active: Raters who answered in the last ten minutes.
        hours: (start of the hour, answers) of the last 48 hours, oldest first.
        median_ms: Median response time of the last 10,000 answers, or None.
        seconds_left: Until all pairs are complete at the pace of the last hour, or None.
    """

    last_hour: int
    last_day: int
    total: int
    active: int
    hours: tuple[tuple[float, int], ...]
    median_ms: float | None
    seconds_left: float | None


@dataclass(frozen=True, slots=True)
class RaterReport:
    """One rater as a manager sees them.

    Attributes:
        rater_id: Number in the store.
        pseudonym: The published name.
        label: What the manager called the invitation.
        stage: Where they are.
        arm: Their arm of a study.
        answered: Answers given in the work.
        counted: Of these, on pairs and counted.
        gold_seen: Gold answered in qualification and work.
        gold_right: Of these right; a maybe is half.
        quality: Posterior mean of the share right on gold.
        quality_low: 95 % credible interval, lower end.
        quality_high: Its upper end.
        yes: Share of yes among answers on pairs, or None without any.
        median_ms: Median response time, or None.
        fast: Answers faster than the minimum dwell.
        last_at: Last answer, or None.
        reason: Why paused.
    """

    rater_id: int
    pseudonym: str
    label: str
    stage: Stage
    arm: str
    answered: int
    counted: int
    gold_seen: int
    gold_right: float
    quality: float
    quality_low: float
    quality_high: float
    yes: float | None
    median_ms: float | None
    fast: int
    last_at: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class FlaggedPair:
    """A pair that a manager should look at: complete, and no verdict by k of n."""

    question_id: int
    image_id: str
    class_index: int
    yes: int
    no: int
    maybe: int
    priority: float
    reason: str
    verdict: VerdictName | None


@dataclass(frozen=True, slots=True)
class GoldConfusion:
    """How often gold of each answer got each answer, over raters who are not paused.

    Attributes:
        counts: {expected: {answer: number}}.
        hardest: Gold that most raters get wrong: perhaps its known answer is wrong.
    """

    counts: dict[str, dict[str, int]]
    hardest: tuple[HardGold, ...]


@dataclass(frozen=True, slots=True)
class HardGold:
    """Gold that raters get wrong."""

    question_id: int
    image_id: str
    class_index: int
    expected: str
    yes: int
    no: int
    maybe: int


@dataclass(frozen=True, slots=True)
class Agreement:
    """A figure of agreement with its interval; filled by `annotations.aggregation`."""

    name: str
    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Status:
    """Everything `beyond campaign status` and the dashboard show."""

    name: str
    at: float
    frozen: bool
    coverage: Coverage
    throughput: Throughput
    raters: tuple[RaterReport, ...]
    gold: GoldConfusion
    flagged: int
    agreement: tuple[Agreement, ...] = ()
    verdicts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Votes:
    """Votes as arrays (V votes, Q questions, R raters), for aggregation; also what `votes.parquet` holds.

    Only the last answer of a rater to a question, no practice, nothing undone or withdrawn.

    Attributes:
        question: int32 (V,), row of the vote's question.
        rater: int32 (V,), row of its rater.
        answer: int8 (V,), 0 no, 1 maybe, 2 yes.
        counted: bool (V,), False for votes of paused raters and for those beyond the redundancy.
        response_ms: int32 (V,), −1 where unknown.
        purpose: object (V,) of str, `qualification` or `work`.
        question_ids: int64 (Q,), numbers in the store, ascending.
        image_ids: object (Q,) of str.
        class_index: int16 (Q,).
        arm: object (Q,) of str, empty without arms.
        expected: int8 (Q,), of gold 0 no, 2 yes; −1 for pairs to judge.
        sampling_probability: float64 (Q,), 1 for gold.
        adjudicated: object (Q,), verdict of a manager, or None.
        complete: bool (Q,), True where the pair takes no more votes; False for gold.
        original_label: int16 (Q,), of the image, −1 where unknown.
        raters: object (R,) of str, pseudonyms.
        accept_at: The k of the campaign's k-of-n rule.
    """

    question: npt.NDArray[np.int32]
    rater: npt.NDArray[np.int32]
    answer: npt.NDArray[np.int8]
    counted: npt.NDArray[np.bool_]
    response_ms: npt.NDArray[np.int32]
    purpose: npt.NDArray[np.object_]
    question_ids: npt.NDArray[np.int64]
    image_ids: npt.NDArray[np.object_]
    class_index: npt.NDArray[np.int16]
    arm: npt.NDArray[np.object_]
    expected: npt.NDArray[np.int8]
    sampling_probability: npt.NDArray[np.float64]
    adjudicated: npt.NDArray[np.object_]
    complete: npt.NDArray[np.bool_]
    original_label: npt.NDArray[np.int16]
    raters: npt.NDArray[np.object_]
    accept_at: int
