"""What one trial came to: its objective with its interval, and the figures that have bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from attnbench.errors import UserError
from attnbench.record import Record
from attnbench.stats import Interval
from attnbench.train.derived import tokens_per_s
from attnbench.tune.table import METRICS, Bound, Tune

SMOOTHED = 5
"""Steps whose mean loss is held against the loss to reach, and is told as the last one."""


@dataclass(frozen=True)
class Outcome:
    """What a setting came to.

    Attributes:
        status: of the record.
        reason: why there is no value.
        value: the objective with its 95 % interval; None where it was not measured or the
            loss not reached.
        figures: ``memory`` (bytes), ``loss`` (nats), ``parity`` (deviation ÷ bound), the last
            metrics, ``parameters``; None for what is not finite.
        gaps: how far each bound is violated; ≤ 0 where it is kept.
        record: its id.
    """

    status: str
    reason: str | None = None
    value: Interval | None = None
    figures: Mapping[str, float | None] = field(default_factory=dict)
    gaps: Mapping[str, float] = field(default_factory=dict)
    record: str = ""

    @property
    def is_feasible(self) -> bool:
        """Whether it may be the best: measured, right, and within every bound."""
        is_kept = all(gap <= 0 for gap in self.gaps.values())
        return self.status == "ok" and self.value is not None and is_kept

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Outcome:
        """The inverse of :meth:`to_json`."""
        value = data["value"]
        return cls(**{**data, "value": None if value is None else Interval(**value)})


def outcome_of(record: Record, tune: Tune) -> Outcome:
    """What a record says about a search.

    Raises:
        UserError: a bound is of a metric that the task does not report.
    """
    training = record.training
    if record.status != "ok" or training is None:
        return Outcome(record.status, record.reason, record=record.id)
    figures: dict[str, float | None] = {
        "memory": training.memory.peak_bytes,
        "loss": _smoothed(training.losses)[-1],
        "parity": training.parity.ratio,
        "parameters": training.parameters.total,
    }
    if training.evaluations:
        figures |= training.evaluations[-1].metrics
    value, reason = _objective(record, tune)
    gaps = {bound.figure: bound.gap(_figure(bound, figures)) for bound in tune.bounds}
    return Outcome(record.status, reason, value, figures, gaps, record.id)


def _objective(record: Record, tune: Tune) -> tuple[Interval | None, str | None]:
    training, samples = record.training, record.samples
    assert training is not None
    assert samples is not None
    if tune.objective == "tokens_per_s":
        return tokens_per_s(record), None
    means, steps = _smoothed(training.losses), len(training.losses)
    first = steps - len(means) + 1  # step that the first mean ends at
    step = next((i for i, loss in enumerate(means, start=first) if loss <= tune.loss), None)
    if step is None:
        reason = f"loss {tune.loss:g} is not reached in {steps} steps (least {min(means):.4g})"
        return None, reason
    return Interval(step * samples.median_s, step * samples.low_s, step * samples.high_s), None


def _smoothed(losses: Sequence[float]) -> list[float]:
    """Means of as many losses in a row: one lucky batch has not learned anything."""
    width = min(SMOOTHED, len(losses))
    means: list[float] = np.convolve(losses, np.full(width, 1 / width), "valid").tolist()
    return means


def _figure(bound: Bound, figures: Mapping[str, float | None]) -> float | None:
    if bound.figure not in figures:
        told = ", ".join(name for name in figures if name in METRICS)
        raise UserError(
            f"[tune.constraints]: {bound.figure} is not reported by this task "
            f"(reports: {told or 'none'})"
        )
    return figures[bound.figure]
