"""The ``[measure]`` and ``[verify]`` tables of a suite: how well, how long, from which seed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Preset = Literal["quick", "precise"]

PRESETS: Mapping[Preset, Mapping[str, Any]] = {
    # A look: which implementation is clearly ahead. A noisy laptop gets there.
    "quick": {
        "precision": 0.05,
        "min_rounds": 3,
        "samples": 5,
        "warmup_s": 0.05,
        "warmup_cap_s": 0.2,
        "steady_share": 0.05,
        "max_s": 0.3,
        "processes": 1,
    },
    # To be published or compared: what nvbench and pyperf would ask of such figures. Three
    # processes are the fewest from which the variance between them can be told at all.
    "precise": {
        "precision": 0.01,
        "min_rounds": 8,
        "samples": 10,
        "warmup_s": 0.5,
        "warmup_cap_s": 10.0,
        "steady_share": 0.01,
        "max_s": 30.0,
        "processes": 3,
    },
}
"""``--quick`` and ``--precise``: keys of ``[measure]`` that replace the suite's own."""


class Measure(BaseModel):
    """Budget of each point.

    Attributes:
        precision: wanted half-width of the 95 % interval, relative to the median.
        min_rounds: never fewer interleaved rounds, whatever they cost.
        samples: timed samples a round, fewer where a round would take too long.
        warmup_s: least warm-up of each implementation; 0 is none.
        warmup_cap_s: longest warm-up; then ``steady`` is false.
        steady_share: warm-up ends when two windows in a row differ by no more than this.
        max_s: time for the rounds of one implementation; then ``converged`` is false.
        processes: fresh processes that a problem is measured in, one after the other, each
            with this budget; from two on the interval is over processes (that of two is
            wide: one difference hardly tells how much processes differ).
        cache: state of the caches when a call begins: ``cold``, ``warm``, or ``auto``,
            which is cold on CUDA and warm on a CPU.
        timeout_s: longest single step (a build, a verification, a round) before the
            worker is taken to hang and is killed.
        energy_s: loops of each implementation for its energy, about ten seconds to be of
            use; 0 does not measure it.
        ceilings_s: for the device's ceilings, once a week and environment; 0 does not
            measure them, and no point gets a share of the roofline.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    precision: float = Field(0.01, gt=0, lt=1)
    min_rounds: int = Field(8, ge=1)
    samples: int = Field(10, ge=1)
    warmup_s: float = Field(0.1, ge=0)
    warmup_cap_s: float = Field(1.0, gt=0, validate_default=True)
    steady_share: float = Field(0.01, gt=0, lt=1)
    max_s: float = Field(2.0, gt=0)
    processes: int = Field(1, ge=1, le=100)
    cache: Literal["auto", "cold", "warm"] = "auto"
    timeout_s: float = Field(120.0, gt=0, validate_default=True)
    energy_s: float = Field(0.0, ge=0)
    ceilings_s: float = Field(4.0, ge=0)

    @field_validator("warmup_cap_s")
    @classmethod
    def _not_below_the_least(cls, cap_s: float, info: ValidationInfo) -> float:
        if cap_s < info.data.get("warmup_s", 0):
            raise ValueError(f"must be at least warmup_s, which is {info.data['warmup_s']:g}")
        return cap_s

    @field_validator("timeout_s")
    @classmethod
    def _longer_than_the_warm_up(cls, timeout_s: float, info: ValidationInfo) -> float:
        if timeout_s <= info.data.get("warmup_cap_s", 0):
            raise ValueError(
                f"must be longer than warmup_cap_s, which is {info.data['warmup_cap_s']:g}"
            )
        return timeout_s

    @field_validator("energy_s")
    @classmethod
    def _within_the_timeout(cls, energy_s: float, info: ValidationInfo) -> float:
        if 3 * energy_s > info.data.get("timeout_s", math.inf):
            raise ValueError(f"needs a timeout_s of {3 * energy_s:g} or more")
        return energy_s

    def budget(self) -> dict[str, Any]:
        """What a worker is told: the keys of :class:`attnbench.measure.sampling.Budget`."""
        return self.model_dump(exclude={"processes", "timeout_s", "energy_s", "ceilings_s"})


class Verify(BaseModel):
    """What the inputs are drawn from. Verification itself cannot be turned off."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    seed: int = Field(0, ge=0)
