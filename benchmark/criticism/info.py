"""What `run.json` says about the criticism track."""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field


class Measured(NamedTuple):
    """Names the rows of one measurement."""

    suite: str
    seed: int


class DistancesInfo(BaseModel):
    """Distances of one suite and seed."""

    model_config = ConfigDict(extra="forbid")

    suite: str = Field(description="Tier, with -random where it begins at random points.")
    seed: int = 0
    note: str = Field(default="", description="What the numbers are.")
    settings: dict[str, Any] = Field(default_factory=dict, description="The suite's attacks and budgets.")
    measured: int = Field(default=0, description="Images measured in `seconds`.")
    seconds: float = Field(default=0.0, description="Time spent, all calls together.")
    environment: dict[str, Any] = Field(default_factory=dict, description="Device, threads, batch.")
    findings: list[dict[str, Any]] = Field(
        default_factory=list, description="Reasons for care: kind, message, images."
    )

    @property
    def key(self) -> Measured:
        """Which rows are of this measurement."""
        return Measured(self.suite, self.seed)


class CriticismInfo(BaseModel):
    """How a run was criticized, so that it is scored the same way again."""

    model_config = ConfigDict(extra="forbid")

    attributes: list[str] = Field(
        default_factory=list, description="Names of sources of attributes, in the order they were given."
    )
    k: int | None = Field(default=None, description="Images chosen a class and side; none: a quarter.")
    planned: int = Field(default=0, description="Images whose distance was to be measured.")
    distances: list[DistancesInfo] = Field(default_factory=list)
