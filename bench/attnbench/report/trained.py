"""What follows from the record of a training run, beside what a point has anyway.

Throughput is that of whole steps. MFU has the ceiling that was measured on the device as its
denominator, and beside it the datasheet's peak where that is known; ``train.derived`` has the
formulas.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from attnbench.record import Record
from attnbench.report.environments import Environment
from attnbench.stats import Interval
from attnbench.train.derived import Mfu, joules_per_token, mfu_datasheet, mfu_measured
from attnbench.train.derived import tokens_per_s as rate_of
from attnbench.train.figures import Training


@dataclass(frozen=True)
class Trained:
    """The derived figures of a training run.

    Attributes:
        training: the record's own part; None where the run has none.
        tokens_per_s: with its 95 % interval; None for what ran in a simulator.
        measured, datasheet: MFU by both peaks; None where a peak is not known.
        joules_per_token: gross; None where energy was not measured.
    """

    training: Training | None
    tokens_per_s: Interval | None = None
    measured: Mfu | None = None
    datasheet: Mfu | None = None
    joules_per_token: float | None = None

    @property
    def seconds_per_token(self) -> Interval | None:
        """By which runs are ranked: two of them may take another batch a step."""
        rate = self.tokens_per_s
        return rate and Interval(1 / rate.median, 1 / rate.high, 1 / rate.low)


def trained(record: Record, environment: Environment) -> Trained:
    """Derive the figures of one training record."""
    sidecar: Mapping[str, Any] = {
        "ceilings": environment.ceilings,
        "identity": {"hardware": {"gpu": environment.identity.get("hardware.gpu")}},
    }
    if record.implementation.simulated is not None:
        return Trained(record.training)
    return Trained(
        record.training,
        rate_of(record),
        mfu_measured(record, sidecar),
        mfu_datasheet(record, sidecar),
        joules_per_token(record),
    )
