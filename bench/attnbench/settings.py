"""The ``[measure]`` and ``[verify]`` tables of a suite: how well, how long, from which seed."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Measure(BaseModel):
    """Budget of each point.

    Attributes:
        precision: wanted half-width of the 95 % interval, relative to the median.
        min_rounds: never fewer interleaved rounds, whatever they cost.
        samples: timed samples a round, fewer where a round would take too long.
        warmup_s: warm-up of each implementation.
        max_s: time for the rounds of one implementation; then ``converged`` is false.
        timeout_s: longest single step (a build, a verification, a round) before the
            worker is taken to hang and is killed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    precision: float = Field(0.02, gt=0, lt=1)
    min_rounds: int = Field(5, ge=1)
    samples: int = Field(5, ge=1)
    warmup_s: float = Field(0.1, ge=0)
    max_s: float = Field(1.0, gt=0)
    timeout_s: float = Field(120.0, gt=0)


class Verify(BaseModel):
    """What the inputs are drawn from. Verification itself cannot be turned off."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    seed: int = Field(0, ge=0)
