"""What a study will do, written down and hashed before anybody answers.

```
STUDY/preregistration.json    this file, in canonical JSON: its SHA-256 names it
STUDY/pack/manifest.json      the stimuli; the preregistration holds the SHA-256 of these bytes
STUDY/pack/<sha256>.png       pictures, named by the checksum of their bytes
STUDY/items.parquet, STUDY/answers.parquet      what was asked and answered (see `answers`)
```

Each answer carries both hashes, so that analysis can say when stimuli or plan changed after it was given.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from annotations.errors import BeyondError
from annotations.files import write_atomically
from annotations.study.canonical import Canonical, Frozen, read_canonical

PREREGISTRATION_FILE = "preregistration.json"
PACK_FOLDER = "pack"
MANIFEST_FILE = "manifest.json"
VERSION: Literal[1] = 1

Arm = Literal["none", "feature", "example"]
ARMS: tuple[Arm, ...] = ("none", "feature", "example")
Kind = Literal["adversarial", "clean", "sham"]
KINDS: tuple[Kind, ...] = ("adversarial", "clean", "sham")
Measure = Literal["agreement", "sham_acceptance", "over_acceptance", "over_rejection"]

MADE_UP_NOTE = "made up for a test: no person answered, so nothing of it may be published"


class Hypothesis(Frozen):
    """One claim that the study tests."""

    name: str = Field(min_length=1, max_length=20, description="Such as H1.")
    text: str = Field(min_length=1, max_length=2_000, description="In words.")
    measure: Measure = "agreement"
    arm: Arm = Field(description="The arm …")
    versus: Arm = Field(description="… and what it is compared with.")

    @model_validator(mode="after")
    def _two_arms(self) -> Hypothesis:
        if self.arm == self.versus:
            raise ValueError(f"{self.name} compares {self.arm} with itself")
        return self


class Exclusions(Frozen):
    """Who and what is left out of the analysis, whatever they answered on the items themselves."""

    attention_floor: float = Field(
        0.7,
        ge=0,
        le=1,
        description="A rater with a smaller share right on attention checks is left out; "
        "a maybe is half right.",
    )
    minimum_attention: int = Field(
        1, ge=0, description="A rater who answered fewer attention checks is left out."
    )
    minimum_answers: int = Field(1, ge=1, description="A rater with fewer answers in the work is left out.")
    fast_median_seconds: float = Field(
        0.0, ge=0, description="A rater whose median answer in the work took less is left out; 0: nobody."
    )
    fast_answer_seconds: float = Field(
        0.0, ge=0, description="A single answer that took less is left out; 0: none."
    )
    slow_answer_seconds: float | None = Field(
        None, gt=0, description="A single answer that took more is left out; null: none."
    )


class Analysis(Frozen):
    """How answers are analysed."""

    kinds: tuple[Kind, ...] = Field(
        ("adversarial",), min_length=1, description="Items on which agreement is compared."
    )
    maybe: Literal["no", "half", "missing"] = Field(
        "no", description="How maybe counts: as no agreement, as half, or not at all."
    )
    resamples: int = Field(10_000, ge=100, le=100_000, description="Of the two-way cluster bootstrap.")
    permutations: int = Field(10_000, ge=99, le=100_000, description="Of arms over raters.")
    seed: int = Field(0, ge=0, lt=2**32)
    alpha: float = Field(0.05, gt=0, lt=1, description="Level of the tests after Holm's correction.")
    gee: bool = Field(True, description="Fit generalised estimating equations as a sensitivity analysis.")


class Preregistration(Canonical):
    """The plan of a study. Unknown keys are rejected."""

    version: Literal[1] = VERSION
    title: str = Field(min_length=1, max_length=200)
    created: str = Field(
        pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$", description="When, in UTC: 2026-11-24T14:00:00Z."
    )
    pack_sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the pack's manifest.json.")
    arms: tuple[Arm, ...] = Field(
        ARMS, min_length=1, description="The first is what others are compared with."
    )
    raters_per_arm: int = Field(ge=1, description="Planned.")
    items_per_rater: int = Field(ge=1, description="Planned, attention checks and practice not counted.")
    items: dict[Kind, int] = Field(description="Items in the pack, by kind.")
    hypotheses: tuple[Hypothesis, ...] = ()
    exclusions: Exclusions = Exclusions.model_validate({})
    analysis: Analysis = Analysis.model_validate({})
    stopping: str = Field(
        "Recruiting ends when each arm has the planned number of raters, whatever they answered.",
        max_length=2_000,
        description="When no more raters are recruited.",
    )
    ethics: str = Field("", max_length=5_000, description="Review, consent, pay: what was decided.")
    notes: str = Field("", max_length=20_000)
    made_up: bool = Field(False, description="Answers come from a program, for tests: never to be published.")

    @model_validator(mode="after")
    def _consistent(self) -> Preregistration:
        if len(set(self.arms)) != len(self.arms):
            raise ValueError("an arm is named twice")
        for hypothesis in self.hypotheses:
            if {hypothesis.arm, hypothesis.versus} - set(self.arms):
                raise ValueError(f"{hypothesis.name} speaks of an arm that the study does not have")
        names = [hypothesis.name for hypothesis in self.hypotheses]
        if len(set(names)) != len(names):
            raise ValueError("two hypotheses have one name")
        return self


def default_hypotheses(arms: tuple[Arm, ...] = ARMS) -> tuple[Hypothesis, ...]:
    """Each later arm against each earlier one, on agreement: what `analyse` tests with Holm's correction."""
    words = {
        "none": "without explanation",
        "feature": "with a heat map",
        "example": "with examples of the predicted class",
    }
    pairs = [(b, a) for i, a in enumerate(arms) for b in arms[i + 1 :]]
    return tuple(
        Hypothesis(
            name=f"H{number}",
            text=f"The share of adversarial predictions that people agree with differs between people who "
            f"judge them {words[arm]} and people who judge them {words[versus]}.",
            arm=arm,
            versus=versus,
        )
        for number, (arm, versus) in enumerate(pairs, start=1)
    )


def write(folder: Path, plan: Preregistration, *, answered: bool, overwrite: bool = False) -> str:
    """Write a study's preregistration.

    Args:
        folder: The study's folder; made if need be.
        plan: What to write.
        answered: Whether anybody has answered (in the campaign's store, or in the folder's answers).
        overwrite: Replace another one that nobody has answered under.

    Returns:
        Its SHA-256. Writing the same one again does nothing.

    Raises:
        BeyondError: There is another one, and it was answered under or `overwrite` is not set.
    """
    path = folder / PREREGISTRATION_FILE
    text = plan.to_json()
    if path.exists() and path.read_bytes() != text.encode():
        if answered:
            raise BeyondError(
                f"{path} has answers under it and stays as it is; make another study in another folder"
            )
        if not overwrite:
            raise BeyondError(f"{path} is there already; choose another folder, or pass --overwrite")
    elif path.exists():
        return plan.sha256
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)
    return plan.sha256


def read(folder: Path) -> Preregistration:
    """Read a study's preregistration.

    Raises:
        BeyondError: There is none, it is not valid, or its bytes are not canonical: someone edited it.
    """
    path = folder / PREREGISTRATION_FILE
    if not path.is_file():
        raise BeyondError(f"{folder} has no {PREREGISTRATION_FILE}; make a study with: beyond study create")
    return read_canonical(path, Preregistration)


def pack_sha256(pack: Path) -> str:
    """SHA-256 of a pack's manifest, which names every picture by its own.

    Raises:
        BeyondError: The folder holds no pack.
    """
    path = pack / MANIFEST_FILE
    if not path.is_file():
        raise BeyondError(f"{pack} holds no pack of stimuli ({MANIFEST_FILE} is missing)")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_pictures(pack: Path) -> tuple[int, int]:
    """Check every picture of a pack against its name.

    Returns:
        How many pictures the manifest names, and how many of them are not here: pictures may not be passed
        on, so whoever analyses may hold the manifest alone.

    Raises:
        BeyondError: A picture is not the one it was, or the manifest cannot be read.
    """
    try:
        names = {
            str(picture["file"]) for picture in json.loads((pack / MANIFEST_FILE).read_bytes())["pictures"]
        }
    except (OSError, ValueError, KeyError, TypeError):
        raise BeyondError(f"{pack / MANIFEST_FILE} cannot be read; put the original back") from None
    missing = 0
    for name in sorted(names):
        file = pack / Path(name).name
        if not file.is_file():
            missing += 1
        elif hashlib.sha256(file.read_bytes()).hexdigest() != name.partition(".")[0]:
            raise BeyondError(f"{file} was changed: its checksum is not its name; put the original back")
    return len(names), missing


def verify(folder: Path, pack: Path | None = None, *, expected: str | None = None) -> Preregistration:
    """Read a preregistration and check that neither it nor the manifest of the stimuli changed.

    Pictures are checked by `check_pictures`.

    Args:
        folder: The study's folder.
        pack: The pack; by default `folder/pack`.
        expected: SHA-256 that the preregistration had when answers were given, where it is known.

    Raises:
        BeyondError: Plan or stimuli are not what they were.
    """
    plan = read(folder)
    if expected is not None and plan.sha256 != expected:
        raise BeyondError(
            f"{folder / PREREGISTRATION_FILE} changed after answers were given (sha256 {plan.sha256[:12]}…, "
            f"answered under {expected[:12]}…); put the original back"
        )
    pack = folder / PACK_FOLDER if pack is None else pack
    found = pack_sha256(pack)
    if found != plan.pack_sha256:
        raise BeyondError(
            f"{pack / MANIFEST_FILE} changed since the study was preregistered (sha256 {found[:12]}…, not "
            f"{plan.pack_sha256[:12]}…); put the original back"
        )
    return plan
