"""What a generation's times say: tokens a second and percentiles, worked out on load.

Never stored: a record holds seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from attnbench.record import Record
from attnbench.samples import Samples
from attnbench.stats import Interval


@dataclass(frozen=True)
class Served:
    """The figures of one generation.

    Attributes:
        first_s: until the first token is there.
        between_s: from one token to the next: the median.
        between_p90_s, between_p99_s: of all gaps, pooled.
        prefill, decode, overall: tokens a second, over all sequences: of the prompt until the
            first new token; of new ones after that; of new ones over the whole generation.
        joules: a new token, gross; None where energy was not measured.
    """

    first_s: Interval
    between_s: Interval
    between_p90_s: float
    between_p99_s: float
    prefill: Interval
    decode: Interval
    overall: Interval
    joules: float | None


def served(record: Record) -> Served | None:
    """The figures of a record; None for one without times of a generation."""
    found, whole = record.generation, record.samples
    if found is None or whole is None or record.kind != "generation":
        return None
    batch, prompt, new = (int(record.problem[name]) for name in ("batch", "prompt", "new"))
    gaps = [t for process in found.between.times_s for round_ in process for t in round_]
    p90_s, p99_s = (float(q) for q in np.quantile(gaps, (0.9, 0.99)))
    return Served(
        first_s=_seconds(found.first),
        between_s=_seconds(found.between),
        between_p90_s=p90_s,
        between_p99_s=p99_s,
        prefill=_rate(batch * prompt, found.first),
        decode=_rate(batch * (new - 1), found.rest),
        overall=_rate(batch * new, whole),
        joules=None if record.energy is None else record.energy.gross_j / (batch * new),
    )


def _seconds(samples: Samples) -> Interval:
    return Interval(samples.median_s, samples.low_s, samples.high_s)


def _rate(tokens: int, samples: Samples) -> Interval:
    return Interval(tokens / samples.median_s, tokens / samples.high_s, tokens / samples.low_s)
