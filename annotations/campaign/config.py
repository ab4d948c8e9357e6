"""What a campaign is: the settings that its maker chooses once, kept in its database."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from annotations.errors import BeyondError, first_problem

STUDY_FILE = "campaign.db"
"""The database in the folder of a study."""

Share = Annotated[float, Field(ge=0, le=1)]

CONSENT = """\
You are asked whether a word describes what a photograph shows. Your answers are used to measure how well \
computer vision systems recognise images, and are published with a random name in place of yours.

Taking part is your choice. You can stop at any time, and you can withdraw all your answers until the \
campaign is frozen for publication. Nothing about you is stored but your answers, the time they took, and \
when you gave them. The photographs come from the internet; a few may be unpleasant."""

INSTRUCTIONS = """\
You see one photograph and one label with its meaning. Does the label apply to something in the photograph?

Yes: the thing is there, even if it is small, in the background, or one of several things.
No: it is not there.
Maybe: after looking carefully you still cannot tell.

Judge what is in the photograph, not what it is mainly about. A toy, a statue or a drawing of the thing \
counts as the thing unless the meaning says otherwise."""


class ProlificConfig(BaseModel):
    """How participants of Prolific come and go."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    completion_code: str = Field(pattern=r"^[A-Za-z0-9-]{4,32}$", description="Shown when a rater is done.")
    study_id: str | None = Field(None, pattern=r"^[A-Za-z0-9]{1,64}$", description="Refuse other studies.")


class StudyConfig(BaseModel):
    """What makes a campaign a study of explanations (see `annotations.study`).

    Raters of one arm see the same questions, each with a picture beside the photograph or none, and answer
    all of them; nobody is stopped for what they answer, since exclusions are those that were preregistered.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    preregistration: str = Field(pattern=r"^[0-9a-f]{64}$", description="Its SHA-256.")
    pack: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the manifest of the stimuli.")
    raters: int = Field(ge=1, description="Raters planned in each arm.")
    check_every: int = Field(
        0, ge=0, description="One question of so many is an attention check, at a random place; 0: none."
    )
    notes: dict[str, str] = Field({}, description="Of an arm, added to the instructions: what is beside.")
    captions: dict[str, str] = Field({}, description="Of an arm, under the picture beside the photograph.")
    debriefing: str = Field("", max_length=50_000, description="Shown when it is over; as `consent`.")
    made_up: bool = Field(False, description="Answers come from a program, for tests: never to be published.")


class CampaignConfig(BaseModel):
    """Settings of a campaign. Unknown keys are rejected."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("campaign", min_length=1, max_length=100)
    votes: int = Field(5, ge=1, le=100_000, description="Counted answers that a pair gets.")
    accept_at: int = Field(4, ge=1, le=100_000, description="As many equal answers decide a pair (k of n).")
    stop_early: bool = Field(
        False, description="A pair that the votes to come cannot turn any more takes no more votes."
    )
    maybe_allowed: bool = True
    gold_rate: float = Field(0.1, ge=0, le=0.5, description="Share of gold among the questions of the work.")
    practice_questions: int = Field(5, ge=0, le=100)
    qualification_questions: int = Field(10, ge=0, le=200)
    qualification_floor: Share = Field(0.7, description="Share right that a rater needs to begin the work.")
    qualification_attempts: int = Field(1, ge=1, le=10)
    qualification_feedback: bool = Field(True, description="Say after each answer whether it was right.")
    quality_floor: Share = Field(0.7, description="A rater whose quality on gold is below it is paused …")
    pause_confidence: float = Field(
        0.95, gt=0.5, lt=1, description="… once the posterior says so with this probability."
    )
    quota: int | None = Field(None, ge=1, description="Answers of the work that one rater may give.")
    lease_seconds: float = Field(
        900, ge=1, le=86_400, description="How long a question is held for the rater who was given it."
    )
    prefetch: int = Field(
        16, ge=1, le=50, description="Questions given at a time: answers that go on without a connection."
    )
    minimum_dwell_ms: int = Field(
        250, ge=0, le=10_000, description="The page takes no answer before; faster ones are flagged."
    )
    break_every: int = Field(250, ge=0, description="Suggest a break after so many answers; 0 never.")
    undo_limit: int = Field(20, ge=0, le=1000, description="How many of the latest answers can be undone.")
    consent_version: str = Field("1", min_length=1, max_length=40)
    consent: str = Field(CONSENT, max_length=50_000, description="Plain text; blank lines part paragraphs.")
    instructions: str = Field(INSTRUCTIONS, max_length=50_000, description="Plain text, as `consent`.")
    task: Literal["label"] = "label"
    pay: str = Field("", max_length=2_000, description="How raters are paid; for the dataset card.")
    arms: tuple[str, ...] = Field((), description="Arms of a study; a rater is in one, by hash, for good.")
    study: StudyConfig | None = Field(None, description="Set by beyond study create, and by nothing else.")
    prolific: ProlificConfig | None = None

    @model_validator(mode="after")
    def _consistent(self) -> CampaignConfig:
        if self.accept_at > self.votes:
            raise ValueError(f"accept_at {self.accept_at} is more than the {self.votes} votes of a pair")
        if 2 * self.accept_at <= self.votes:
            raise ValueError(f"accept_at {self.accept_at} of {self.votes} would let yes and no both decide")
        if self.study is not None and not self.arms:
            raise ValueError("a study has arms")
        return self


def parse_config(values: dict[str, object], *, where: str) -> CampaignConfig:
    """Check settings that come from a person.

    Raises:
        BeyondError: A setting is unknown or out of its range; the message names it.
    """
    try:
        return CampaignConfig.model_validate(values)
    except ValidationError as error:
        raise BeyondError(f"{where}: {first_problem(error)}") from None
