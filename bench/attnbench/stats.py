"""Intervals: how sure a median is.

The unit is the *round*, not the sample: samples taken back to back share the machine's
mood, so the interval of their pooled median would be far too narrow (with autocorrelated
noise a nominal 95 % interval covered 34 % of the time; medians of rounds brought back
90 %). Each round's median counts once, and rounds are resampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attnbench.distributions import t_quantile

_RESAMPLES = 2000
_MOST_UNITS = 200
_SEED = 20240607  # fixed: the same samples always give the same interval


@dataclass(frozen=True)
class Interval:
    """A median with its 95 % interval, in the unit of the samples."""

    median: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the interval, relative to the median."""
        return (self.high - self.low) / 2 / self.median


def median_interval(rounds: Sequence[Sequence[float]]) -> Interval:
    """Median of the round medians, with a 95 % percentile bootstrap interval over rounds.

    Of more than 200 rounds, neighbours are joined until 200 units are left: the bootstrap
    costs no more then, and units that are further apart remember each other less.

    With one round there is nothing to resample: the interval is the range of its samples.

    Raises:
        ValueError: there is no sample.
    """
    medians = _round_medians(rounds)
    if len(medians) > _MOST_UNITS:
        medians = np.array([np.median(part) for part in np.array_split(medians, _MOST_UNITS)])
    median = float(np.median(medians))
    if len(medians) == 1:
        samples = np.concatenate([np.asarray(r) for r in rounds if len(r)])
        return Interval(median, float(samples.min()), float(samples.max()))
    rng = np.random.default_rng(_SEED)
    picks = rng.integers(0, len(medians), size=(_RESAMPLES, len(medians)))
    low, high = np.percentile(np.median(medians[picks], axis=1), [2.5, 97.5])
    return Interval(median, min(float(low), median), max(float(high), median))


def process_interval(processes: Sequence[Sequence[Sequence[float]]]) -> Interval:
    """Median of the processes' medians, with a 95 % interval over processes.

    Two processes that run the same code differ by more (1.1 % was measured, by where their
    memory lies) than rounds inside one let see (±0.24 %), so with several of them each
    counts once, by the median of its rounds' medians, and what its rounds scatter matters
    only through that. The interval is Student's t of the logarithms: a percentile bootstrap
    resamples three numbers where there are three processes, and covers 70 to 80 % instead
    of 95 %. The t interval is wide there because three processes do not tell more.

    One process says nothing of others: its interval is that of :func:`median_interval`.

    Raises:
        ValueError: a process has no sample.
    """
    if len(processes) == 1:
        return median_interval(processes[0])
    logs = np.log([np.median(_round_medians(rounds)) for rounds in processes])
    median = float(np.exp(np.median(logs)))
    half = t_quantile(0.95, len(logs) - 1) * float(logs.std(ddof=1)) / len(logs) ** 0.5
    low, high = np.exp(logs.mean() - half), np.exp(logs.mean() + half)
    return Interval(median, min(float(low), median), max(float(high), median))


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: calling those below q wrong at most a share q of the calls.

    Benjamini & Hochberg 1995, Journal of the Royal Statistical Society B 57:289. With
    hundreds of points a plain p < 0.05 would be wrong on one point in twenty.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if not len(p):
        return []
    order = np.argsort(p)
    stepped = p[order] * len(p) / np.arange(1, len(p) + 1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum.accumulate(stepped[::-1])[::-1]
    return [float(a) for a in np.minimum(adjusted, 1.0)]


def _round_medians(rounds: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    filled = [r for r in rounds if len(r)]
    if not filled:
        raise ValueError("no samples")
    if len({len(r) for r in filled}) == 1:  # as a rule; one median after the other is slow
        medians: NDArray[np.float64] = np.median(np.asarray(filled, dtype=np.float64), axis=1)
        return medians
    return np.array([np.median(r) for r in filled], dtype=np.float64)
