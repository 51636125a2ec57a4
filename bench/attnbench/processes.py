"""Several processes a point: what each told is kept, and becomes one record at the end.

Two processes that run the same code differ by more than one of them can see (see
``attnbench.stats.process_interval``), so ``[measure] processes`` measures a problem in that
many fresh ones, one after the other. The first verifies and measures memory; the later ones
take samples, and verify again what they timed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from attnbench import conditions
from attnbench.plan import Point
from attnbench.record import Samples, TensorAccuracy, worst
from attnbench.stats import process_interval


@dataclass
class Held:
    """A point that went well so far, and what each process told of it."""

    point: Point
    told: list[dict[str, Any]] = field(default_factory=list)

    def joined(self, precision: float) -> dict[str, Any]:
        """As if one process had told all of it; what only the first measured is the first's.

        Args:
            precision: wanted half-width of the interval (see :func:`join`).
        """
        whole = dict(self.told[0])
        for name in ("samples", "host_samples"):
            if whole.get(name) is not None:
                parts = [Samples.model_validate(told[name]) for told in self.told]
                whole[name] = join(parts, precision).model_dump()
        if whole.get("generation") is not None:
            parts_of = [told["generation"] for told in self.told]
            whole["generation"] = joined_generation(parts_of, precision)
        whole["telemetry"] = conditions.joined([told["telemetry"] for told in self.told])
        whole["accuracy"] = self._accuracy()
        whole["wall_s"] = sum(told["wall_s"] for told in self.told)
        return whole

    def _accuracy(self) -> dict[str, Any]:
        seen = [
            {name: TensorAccuracy.model_validate(a) for name, a in told["accuracy"].items()}
            for told in self.told
        ]
        return {name: a.model_dump() for name, a in worst(seen).items()}


def joined_generation(told: Sequence[dict[str, Any]], precision: float) -> dict[str, Any]:
    """The ``generation`` part of several processes as one; later ones tell times alone."""
    whole = {**told[0], "gaps": sum(one["gaps"] for one in told)}
    for name in ("first", "rest", "between"):
        parts = [Samples.model_validate(one[name]) for one in told]
        whole[name] = join(parts, precision).model_dump()
    return whole


def join(parts: Sequence[Samples], precision: float) -> Samples:
    """The samples of several processes as one, with the interval over processes.

    ``converged`` and ``steady`` hold if they do in every process; ``converged`` only if the
    interval over them is as narrow as asked for, too: each may be sure of its own median.

    Args:
        parts: of one process each.
        precision: wanted half-width of the 95 % interval, relative to the median.
    """
    if len(parts) == 1:
        return parts[0]
    times_s = [rounds for part in parts for rounds in part.times_s]
    interval = process_interval(times_s)
    spent = [part.spent_s for part in parts if part.spent_s is not None]
    steady = [part.steady for part in parts if part.steady is not None]
    return parts[0].model_copy(
        update={
            "method": " or ".join(dict.fromkeys(part.method for part in parts)),
            "fallback": "; ".join(dict.fromkeys(p.fallback for p in parts if p.fallback)) or None,
            "times_s": times_s,
            "warmup_s": sum(part.warmup_s for part in parts),
            "spent_s": sum(spent) if spent else None,
            "steady": all(steady) if steady else None,
            "median_s": interval.median,
            "low_s": interval.low,
            "high_s": interval.high,
            "converged": all(p.converged for p in parts) and interval.half_width <= precision,
        }
    )
