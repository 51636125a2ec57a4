"""The ``[measure]`` and ``[verify]`` tables of a suite: how well, how long, from which seed."""

from __future__ import annotations

import math
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator


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
        energy_s: loops of each implementation for its energy, about ten seconds to be of
            use; 0 does not measure it.
        ceilings_s: for the device's ceilings, once a week and environment; 0 does not
            measure them, and no point gets a share of the roofline.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    precision: float = Field(0.02, gt=0, lt=1)
    min_rounds: int = Field(5, ge=1)
    samples: int = Field(5, ge=1)
    warmup_s: float = Field(0.1, ge=0)
    max_s: float = Field(1.0, gt=0)
    timeout_s: float = Field(120.0, gt=0)
    energy_s: float = Field(0.0, ge=0)
    ceilings_s: float = Field(4.0, ge=0)

    @field_validator("energy_s")
    @classmethod
    def _fits(cls, energy_s: float, others: ValidationInfo) -> float:
        if 3 * energy_s > others.data.get("timeout_s", math.inf):
            raise ValueError(f"needs a timeout_s of {3 * energy_s:g} or more")
        return energy_s

    @property
    def budget(self) -> dict[str, Any]:
        """What the sampling of each implementation is bound by."""
        return self.model_dump(exclude={"timeout_s", "energy_s", "ceilings_s"})


class Verify(BaseModel):
    """What the inputs are drawn from. Verification itself cannot be turned off."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    seed: int = Field(0, ge=0)
