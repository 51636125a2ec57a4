"""Steps in a history of runs: where a point became slower or faster, and stayed so.

A series is one point on one machine over many runs. Its steps are found by splitting it
where the ranks before and after differ most (the standardised form of Pettitt 1979,
Applied Statistics 28:126), as long as a random order of the same runs would hardly ever
split as clearly. Ranks do not mind a run that went wrong, and their null distribution
depends on nothing but the number of runs. Over many series the first split of each is
adjusted by Benjamini-Hochberg.

The history also says how much runs of an unchanged point differ, which is what a
comparison of two single runs has to assume otherwise.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attnbench.gate import kernel_change
from attnbench.matching import differences, how
from attnbench.ratio import RunScatter
from attnbench.record import Record
from attnbench.runs import Run
from attnbench.stats import benjamini_hochberg

Array = NDArray[np.float64]

FEWEST_RUNS = 10  # of a series: fewer split in half so often by chance that no step is sure
_FALSE_SHARE = 0.01  # of the series in which a step is found may have none
_DEEPER = 0.01  # p-value of further splits of a series that has one
_SHORTEST = 2  # runs on each side of a step: a single run is no level
_PERMUTATIONS = 9999
_SEED = 20240607
_UPDATED = ("hardware.kernel", "hardware.driver")  # hardware fields that an update changes
_LEAST_SD = 0.001  # runs do not repeat better than this
_FEWEST_DIFFERENCES = 5  # of unchanged runs that say how much such runs differ


@dataclass(frozen=True)
class Series:
    """One point on one machine: its ok records in order of time, and their environments."""

    records: tuple[Record, ...]
    identities: tuple[Mapping[str, str], ...]
    commits: tuple[str, ...]

    @property
    def log_medians(self) -> Array:
        """ln of the median seconds of every run."""
        return np.log([r.samples.median_s for r in self.records if r.samples is not None])


@dataclass(frozen=True)
class Step:
    """A change of level.

    Attributes:
        series: where.
        index: the first run on the new level.
        ratio: median of the new level ÷ that of the one before.
        runs: how many runs lie on the level before and on the new one.
        changed: what is known to have changed at that run, in words.
    """

    series: Series
    index: int
    ratio: float
    runs: tuple[int, int]
    changed: tuple[str, ...]

    @property
    def record(self) -> Record:
        """The first record on the new level."""
        return self.series.records[self.index]


def series_of(history: Run) -> list[Series]:
    """All series of a history, in the order of their first run.

    One series has one problem (of training, with as many tokens a step), implementation with
    options, seed, clock, cache, device and hardware; software, driver and source may change
    along it, and are named at a step.
    """
    found: dict[tuple[object, ...], list[Record]] = defaultdict(list)
    for record in history.records:
        if record.samples is None:
            continue
        identity = history.identity(record) or {"hardware.": record.environment}
        hardware = tuple(
            (field, value)
            for field, value in identity.items()
            if field.startswith("hardware.") and field not in _UPDATED
        )
        tokens = record.training.tokens if record.training is not None else None
        key = (record.problem_id, record.implementation.spec, record.seed, record.device, tokens)
        found[(*key, *how(record.samples).values(), hardware)].append(record)
    return [
        Series(
            tuple(records),
            tuple(history.identity(r) or {} for r in records),
            tuple(history.context(r).get("git.commit", "")[:12] for r in records),
        )
        for records in found.values()
    ]


def find_steps(series: Sequence[Series], threshold: float) -> list[Step]:
    """Steps larger than ``threshold`` (0.03) in all series long enough, latest first."""
    long = [s for s in series if len(s.records) >= FEWEST_RUNS]
    values = [s.log_medians for s in long]
    adjusted = benjamini_hochberg([_split(v)[1] for v in values])
    steps = []
    for one, medians, p in zip(long, values, adjusted, strict=True):
        if p < _FALSE_SHARE:
            first = _split(medians)[0]
            bounds = {first} | _splits(medians[:first], 0) | _splits(medians[first:], first)
            steps += _steps(one, medians, sorted(bounds), threshold)
    return sorted(steps, key=lambda step: step.record.time, reverse=True)


def run_scatter(series: Sequence[Series]) -> dict[str, RunScatter]:
    """How much runs of each point differ while nothing changed, by record id.

    From differences of consecutive runs with the same id (equal source, machine, problem),
    by their median absolute deviation, so that a step leaves it alone. Such differences
    share runs, and the median uses them less well than a mean of squares would: they count
    as half as many degrees of freedom.
    """
    known: dict[str, RunScatter] = {}
    for one in series:
        ids = [r.id for r in one.records]
        steps = np.diff(one.log_medians)
        equal = [d for d, a, b in zip(steps, ids, ids[1:], strict=False) if a == b]
        if len(equal) < _FEWEST_DIFFERENCES:
            continue
        log_sd = 1.4826 * float(np.median(np.abs(equal))) / math.sqrt(2)
        processes = [len(r.samples.times_s) for r in one.records if r.samples is not None]
        scatter = RunScatter(max(log_sd, _LEAST_SD), len(equal) // 2, int(np.median(processes)))
        known |= dict.fromkeys(ids, scatter)
    return known


# ---- splitting -------------------------------------------------------------------------


def _splits(values: Array, offset: int) -> set[int]:
    """Further splits of a part of a series, as indices of the whole series."""
    if len(values) < 2 * _SHORTEST:
        return set()
    index, p = _split(values)
    if p >= _DEEPER:
        return set()
    before, after = _splits(values[:index], offset), _splits(values[index:], offset + index)
    return {offset + index} | before | after


def _split(values: Array) -> tuple[int, float]:
    """Where the series is split best, and how often a random order is split as well."""
    n = len(values)
    statistics = _statistics(_ranks(values)[None, :])[0]
    index = int(np.argmax(statistics))
    as_clear = int((_null(n) >= statistics[index] - 1e-12).sum())
    return index + _SHORTEST, (as_clear + 1) / (_PERMUTATIONS + 1)


@functools.lru_cache(maxsize=256)
def _null(n: int) -> Array:
    """The statistic of the best split of random orders of ``n`` runs."""
    orders = np.random.default_rng(_SEED).permuted(
        np.tile(np.arange(1.0, n + 1), (_PERMUTATIONS, 1)), axis=1
    )
    highest: Array = _statistics(orders).max(axis=1)
    return highest


def _statistics(ranks: Array) -> Array:
    """|rank sum before a split − its mean| ÷ its standard deviation, for every split."""
    n = ranks.shape[1]
    before = np.arange(_SHORTEST, n - _SHORTEST + 1)
    sums = np.cumsum(ranks, axis=1)[:, before - 1]
    deviation = np.sqrt(before * (n - before) * (n + 1) / 12)
    statistics: Array = np.abs(sums - before * (n + 1) / 2) / deviation
    return statistics


def _ranks(values: Array) -> Array:
    """Ranks from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


# ---- from splits to steps --------------------------------------------------------------


def _steps(series: Series, values: Array, bounds: list[int], threshold: float) -> list[Step]:
    """Steps between the levels that the bounds cut out; the smallest go until all matter."""
    while bounds:
        edges = [0, *bounds, len(values)]
        levels = [float(np.median(values[a:b])) for a, b in itertools.pairwise(edges)]
        sizes = np.abs(np.diff(levels))
        smallest = int(np.argmin(sizes))
        if sizes[smallest] > math.log1p(threshold):
            return [
                Step(
                    series,
                    bound,
                    math.exp(levels[i + 1] - levels[i]),
                    (bound - edges[i], edges[i + 2] - bound),
                    tuple(_changes(series, bound)),
                )
                for i, bound in enumerate(bounds)
            ]
        del bounds[smallest]
    return []


def _changes(series: Series, index: int) -> list[str]:
    """What is known to differ between the last run before a step and the first after it."""
    before, after = series.records[index - 1], series.records[index]
    found = differences(series.identities[index - 1], series.identities[index])
    sources = [(r.implementation.source_sha256 or "")[:12] for r in (before, after)]
    if sources[0] != sources[1]:
        found.append(f"source {sources[0] or '–'} → {sources[1] or '–'}")
    commits = series.commits[index - 1], series.commits[index]
    if commits[0] != commits[1]:
        found.append(f"commit {commits[0] or '–'} → {commits[1] or '–'}")
    kernels = kernel_change(before, after)
    if kernels is not None:
        found.append("kernels " + " ".join([*(f"−{k}" for k in kernels.gone),
                                            *(f"+{k}" for k in kernels.added)]))  # fmt: skip
    return found
