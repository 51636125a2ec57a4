"""How much longer one side takes than the other, and how sure that is.

The unit is the process. Two processes that run the same code differ by about 1 % (memory
layout, clocks), several times more than the rounds inside either of them, and nothing
inside one process can tell by how much. So the variance of a ratio is that between
processes:

1. A process's centre is the median of its rounds' medians, in logarithms. The log ratio
   is the difference of the mean centres of the sides. If both sides were interleaved in
   the same processes, it is the mean centre of the rounds' own log ratios: whatever
   disturbed both falls out.
2. What is expected of the variance between processes before any replicate is seen: an
   assumed part (or one known from the history of the point), and the variance of a centre
   from the rounds inside (bootstrap of the median, widened for autocorrelated rounds).
   A side with one process has nothing that shows whether the machine's moods, which scatter
   its rounds, also last for whole processes: there the expectation is at least the variance
   of the rounds, its own and that of the median point.
3. That expectation counts like a few processes more, beside the scatter of those there
   are: the moderated t of Smyth 2004 (Statistical Applications in Genetics and Molecular
   Biology 3:3). With 20 points or more that have replicates, they say themselves how large
   the variance is on this machine, and how much it differs from point to point.

Why not the percentile bootstrap over processes and rounds, which the literature of
benchmarks prefers: with the three processes of a usual run it resamples three numbers.
Simulated with 3 processes a side, 10 rounds, scatter of 0.5 % inside a process, rounds
autocorrelated 0.9, 5 × 400 points of which 40 are slower by 5 %
(``pytest -m slow tests/test_ratio.py -s``). *False* are the gate's own calls on equal code,
after its threshold and adjustment:

    between processes  method                    coverage   p < 0.05    false    found
    1 %                percentile bootstrap        81.5 %     17.9 %    0.1 %   98.5 %
    1 %                moderated t                 95.8 %      4.1 %    0.1 %   97.5 %
    2 %                percentile bootstrap        80.3 %     19.1 %    4.3 %   74.5 %
    2 %                moderated t                 95.9 %      4.1 %    0.1 %   24.5 %
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from attnbench import distributions
from attnbench.record import Samples

Array = NDArray[np.float64]

ASSUMED_SD = 0.01  # between processes; 1.1 % was measured over 14 of them
ASSUMED_SD_PAIRED = 0.003  # of a paired ratio: what is left where both run in one process
ASSUMED_DF = 6.0  # the assumption counts like so many processes more
_POOL = 20  # points with replicates from which the machine's variance is estimated
_DF_RANGE = (2.0, 20.0)  # of that estimate
_RESAMPLES = 400
_SEED = 20240607  # fixed: the same samples always give the same interval
_MOST_AUTOCORRELATION = 0.95
_WIDEST = 50.0  # half-width of an interval in logarithms: beyond it says nothing more


@dataclass(frozen=True)
class RunScatter:
    """How much whole runs of one unchanged point differ, from its history.

    Attributes:
        log_sd: standard deviation of the log median of a run.
        df: degrees of freedom of that estimate.
        processes: of a usual run.
    """

    log_sd: float
    df: int
    processes: int = 1

    @property
    def band(self) -> float:
        """The log ratio that 95 % of pairs of such runs stay below."""
        return 1.96 * math.sqrt(2) * self.log_sd


@dataclass(frozen=True)
class Evidence:
    """What the samples of two records say before other points are asked.

    Attributes:
        log_ratio: ln(new ÷ base).
        scatter: standard deviation of the round medians (paired: of their log ratios)
            inside processes, the larger side's, by the median absolute deviation.
        is_paired: whether both sides were interleaved in the same processes.
        scale: variance of ``log_ratio`` in variances of one process's centre.
        squares, df: sum of squares of the centres about their side's mean, and its degrees
            of freedom; 0 where each side has one process.
        expected: variance of one centre that is expected without replicates.
        mood: variance of the rounds inside processes, where it has to stand for that
            between processes too: where a side has one process and no history; else 0.
        expected_df: how much that expectation counts.
        band: log ratio below which equal runs stay, where the point's history tells; else 0.
    """

    log_ratio: float
    scatter: float
    is_paired: bool
    scale: float
    squares: float
    df: int
    expected: float
    expected_df: float
    mood: float = 0.0
    band: float = 0.0


@dataclass(frozen=True)
class Ratio:
    """new ÷ base with its 95 % interval, and the two-sided p-value of no difference."""

    ratio: float
    low: float
    high: float
    p: float

    def lies_within(self, threshold: float) -> bool:
        """Whether the interval is inside 1 ÷ (1 + threshold) … 1 + threshold."""
        return 1 / (1 + threshold) <= self.low and self.high <= 1 + threshold


def weigh(
    base: Samples, new: Samples, *, paired: bool = False, known: RunScatter | None = None
) -> Evidence:
    """Reduce the samples of two records to what the estimate needs.

    Args:
        base, new: the samples of the two sides.
        paired: round i of process p of both sides were taken side by side.
        known: scatter of runs of this point, where its history tells.

    Each process needs two rounds, or one of two samples: one says nothing about its scatter.
    """
    sides = [_log_medians(base), _log_medians(new)]
    if paired:
        sides = [_differences(*sides)]
    inside = [rounds for side in sides for rounds in side]
    centres = [np.array([np.median(rounds) for rounds in side]) for side in sides]
    if paired:
        known = None  # of what disturbs whole runs: both sides shared it
    assumed = ASSUMED_SD_PAIRED if paired else ASSUMED_SD
    expected = assumed**2 + float(np.mean([_median_variance(rounds) for rounds in inside]))
    mood = 0.0
    if known is not None:
        expected = known.log_sd**2 * known.processes
    elif not paired and min(map(len, centres)) == 1:
        mood = float(np.mean([rounds.var(ddof=1) for rounds in inside]))
    return Evidence(
        log_ratio=float(centres[-1].mean() - (0 if paired else centres[0].mean())),
        scatter=max(_scatter(side) for side in sides),
        is_paired=paired,
        scale=sum(1 / len(c) for c in centres),
        squares=sum(float(((c - c.mean()) ** 2).sum()) for c in centres),
        df=sum(len(c) - 1 for c in centres),
        expected=max(expected, 1e-12),
        expected_df=ASSUMED_DF if known is None else known.df,
        mood=mood,
        band=0.0 if known is None else known.band,
    )


def estimate(evidence: Sequence[Evidence]) -> list[Ratio]:
    """A ratio for each point; points of one kind (paired or not) lend each other strength."""
    groups: dict[tuple[bool, bool], list[int]] = {}
    for index, e in enumerate(evidence):
        groups.setdefault((e.is_paired, e.band > 0), []).append(index)
    mood = float(np.median([e.mood for e in evidence])) if evidence else 0.0
    evidence = [_in_mood(e, mood) for e in evidence]
    ratios: dict[int, Ratio] = {}
    for (_, is_known), members in groups.items():
        factor, df = (1.0, None) if is_known else _pooled([evidence[i] for i in members])
        ratios |= {i: _ratio(evidence[i], factor, df) for i in members}
    return [ratios[i] for i in range(len(evidence))]


def _in_mood(e: Evidence, mood: float) -> Evidence:
    """The expectation where one process has to speak for all: see the top of the module."""
    if not e.mood:
        return e
    return replace(e, expected=max(e.expected, e.mood, mood))


def _ratio(e: Evidence, factor: float, pooled_df: float | None) -> Ratio:
    """The moderated t: expectation and own scatter, each by its degrees of freedom."""
    expected_df = e.expected_df if pooled_df is None else pooled_df
    df = expected_df + e.df
    variance = (expected_df * factor * e.expected + e.squares) / df
    error = math.sqrt(variance * e.scale)
    half = min(distributions.t_quantile(0.95, df) * error, _WIDEST)
    return Ratio(
        ratio=math.exp(e.log_ratio),
        low=math.exp(e.log_ratio - half),
        high=math.exp(e.log_ratio + half),
        p=distributions.t_two_sided(e.log_ratio / error, df),
    )


def _pooled(evidence: Sequence[Evidence]) -> tuple[float, float | None]:
    """By what factor the expectation is off on this machine, and how well that fits each point.

    Moments of the logarithm of the observed ÷ expected variances (Smyth 2004, section 6.2).
    Changes between base and new do not enter: only the scatter inside each side does.
    """
    told = [e for e in evidence if e.df > 0 and e.squares > 0]
    if len(told) < _POOL:
        # Too few to believe that a machine is quieter than assumed; enough to see it is noisier.
        seen = ASSUMED_DF + sum(e.squares / e.expected for e in told)
        return max(1.0, seen / (ASSUMED_DF + sum(e.df for e in told))), None
    logs = [
        math.log(e.squares / e.df / e.expected)
        - distributions.digamma(e.df / 2)
        + math.log(e.df / 2)
        for e in told
    ]
    sampling = float(np.mean([distributions.trigamma(e.df / 2) for e in told]))
    excess = float(np.var(logs, ddof=1)) - sampling
    low, high = _DF_RANGE
    df = high
    if excess > 0:
        df = min(max(2 * distributions.trigamma_inverse(excess), low), high)
    factor = float(np.mean(logs)) + distributions.digamma(df / 2) - math.log(df / 2)
    return math.exp(factor), df


def _log_medians(samples: Samples) -> list[Array]:
    """Logarithms of the round medians by process; of the samples where there is one round."""
    processes = []
    for rounds in samples.times_s:
        filled = [np.asarray(r, dtype=np.float64) for r in rounds if r]
        if filled:
            units = [np.median(r) for r in filled] if len(filled) > 1 else filled[0]
            processes.append(np.log(np.asarray(units, dtype=np.float64)))
    return processes


def _differences(base: Sequence[Array], new: Sequence[Array]) -> list[Array]:
    """Log ratios of the rounds taken side by side; a side that went on alone is cut off."""
    pairs = zip(base, new, strict=False)
    return [n[: min(len(b), len(n))] - b[: min(len(b), len(n))] for b, n in pairs]


def _scatter(processes: Sequence[Array]) -> float:
    residuals = np.concatenate([rounds - np.median(rounds) for rounds in processes])
    return float(1.4826 * np.median(np.abs(residuals)))


def _median_variance(rounds: Array) -> float:
    """Variance of the median of rounds that may remember each other.

    The bootstrap takes rounds for independent; the factor (1 + ρ) ÷ (1 − ρ) mends that for
    a first-order memory ρ, whose estimate from few rounds is too low by (1 + 3ρ) ÷ n.
    """
    n = len(rounds)
    variance = float(np.median(rounds[_picks(n)], axis=1).var(ddof=1)) * n / (n - 1)
    centred = rounds - rounds.mean()
    total = float((centred**2).sum())
    rho = float((centred[1:] * centred[:-1]).sum()) / total if total > 0 else 0.0
    rho = min(max(rho + (1 + 3 * rho) / n, 0.0), _MOST_AUTOCORRELATION)
    return variance * (1 + rho) / (1 - rho)


@functools.lru_cache(maxsize=64)
def _picks(n: int) -> NDArray[np.int64]:
    """Which rounds each resample draws: the same for every process of ``n`` rounds."""
    return np.random.default_rng(_SEED).integers(0, n, size=(_RESAMPLES, n))
