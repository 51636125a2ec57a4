"""Two runs, point by point: faster, the same, slower, or not to be told.

A point is an implementation (with its options) on a problem. Its verdict:

    FASTER, SLOWER   the median ratio is past the threshold, and no chance (below)
    SAME             the 95 % interval of the ratio lies inside ± threshold: that is evidence
    INCONCLUSIVE     neither; the reason says what is missing
    NOT COMPARABLE   measured on different machines, by different clocks, on one side only,
                     or without a time; of training, steps of different batches

The time is that of a call, or of a training step.

No chance means four things:

1. The p-value (:mod:`attnbench.ratio`), adjusted over all points (Benjamini-Hochberg), is
   below 0.05; below 0.01 where a side has one process and no history, because there the
   scatter between processes is assumed and not seen.
2. The ratio is past the point's own threshold, which is raised to the scatter of its rounds
   and to what its history says about equal runs.
3. Where the GPU's clock is known on both sides, the difference has the same sign in clock
   cycles.
4. Where the machine was disturbed, there are other processes, a history, or a partner in the
   same process to show what that does.

Failures, memory and accuracy are judged beside the time (:mod:`attnbench.gate`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from attnbench import ratio
from attnbench.conditions import figure
from attnbench.gate import KernelChange, Regression, kernel_change, regressions
from attnbench.matching import Pair, differences, how, match
from attnbench.ratio import Evidence, Ratio, RunScatter
from attnbench.record import Record, Samples
from attnbench.runs import Run
from attnbench.stats import benjamini_hochberg

Verdict = Literal["SLOWER", "FASTER", "INCONCLUSIVE", "SAME", "NOT COMPARABLE"]
VERDICTS: tuple[Verdict, ...] = ("SLOWER", "FASTER", "INCONCLUSIVE", "SAME", "NOT COMPARABLE")

THRESHOLD = 0.03
FALSE_SHARE = 0.05  # of the calls may be wrong (q of Benjamini & Hochberg)
FALSE_SHARE_ASSUMED = 0.01  # where the scatter between processes is assumed, not seen
_SETTINGS = ("gpu.power_limit_w", "gpu.sm_max_mhz", "gpu.ecc")  # of the context; worth a note
_DISTURBED = ("throttled", "disturbed")  # verdicts of telemetry


@dataclass(frozen=True)
class Compared:
    """One point of two runs.

    Attributes:
        base, new: the records; None where a side has none.
        verdict: about the time.
        reason: why it is not SAME, FASTER or SLOWER; else empty.
        regressions: what got worse besides the time.
        kernels: kernels that ran on one side only.
        notes: what else to know about the two measurements.
        ratio: new time ÷ base time; None where there are not two times.
        adjusted_p: p-value of no difference, adjusted over all points.
        threshold: the relative difference that this point had to pass.
        is_paired: whether both sides were interleaved in the same processes.
    """

    base: Record | None
    new: Record | None
    verdict: Verdict = "NOT COMPARABLE"
    reason: str = ""
    regressions: tuple[Regression, ...] = ()
    kernels: KernelChange | None = None
    notes: tuple[str, ...] = ()
    ratio: Ratio | None = None
    adjusted_p: float | None = None
    threshold: float | None = None
    is_paired: bool = False

    @property
    def record(self) -> Record:
        """The newer record there is: it says what the point is called."""
        record = self.new or self.base
        assert record is not None
        return record

    @property
    def is_regression(self) -> bool:
        """Whether anything got worse."""
        return self.verdict == "SLOWER" or bool(self.regressions)

    @property
    def has_one_process(self) -> bool:
        """Whether a side says nothing about how processes differ."""
        return not self.is_paired and any(
            r is not None and r.samples is not None and len(r.samples.times_s) == 1
            for r in (self.base, self.new)
        )


@dataclass(frozen=True)
class Comparison:
    """All points of two runs, the gravest first, and what else to know about the runs."""

    points: tuple[Compared, ...]
    threshold: float
    notes: tuple[str, ...] = ()

    def with_points(self, points: Iterable[Compared], *notes: str) -> Comparison:
        """The same with other points, the gravest first, and more notes."""
        ordered = tuple(sorted(points, key=_gravity))
        return replace(self, points=ordered, notes=(*self.notes, *notes))

    @property
    def regressions(self) -> list[Compared]:
        """Points of which something got worse."""
        return [p for p in self.points if p.is_regression]

    @property
    def counts(self) -> Counter[str]:
        """How many points have which verdict."""
        return Counter(p.verdict for p in self.points)

    @property
    def exit_code(self) -> int:
        """0 no regression, 1 regression, 2 no two times could be compared.

        Equal memory and accuracy are no reason to let a change pass whose times are unknown.
        """
        if self.regressions:
            return 1
        return 0 if any(p.verdict != "NOT COMPARABLE" for p in self.points) else 2


def compare(
    base: Run,
    new: Run,
    *,
    threshold: float = THRESHOLD,
    across: Sequence[str] = (),
    scatter: Mapping[str, RunScatter] | None = None,
) -> Comparison:
    """Compare all points of two runs.

    Args:
        base, new: before and after; records of a simulator are left out.
        threshold: relative difference that matters.
        across: globs of identity fields (``software.torch``) that may differ, because it is
            they that are compared.
        scatter: how much runs of an unchanged point differ, by record id, where history
            tells (:func:`attnbench.history.run_scatter`).

    Raises:
        UserError: one of ``across`` names no field of the environments.
    """
    base, new = base.timings(), new.timings()
    pairs, passed = match(base, new, across)
    points = [_without_time(pair) for pair in pairs]
    weighed = _weigh(points, scatter or {})
    ratios = ratio.estimate(list(weighed.values()))
    adjusted = benjamini_hochberg([r.p for r in ratios])
    for (index, evidence), found, p in zip(weighed.items(), ratios, adjusted, strict=True):
        points[index] = _with_time(points[index], evidence, found, p, threshold)
    notes = (*base.problems, *new.problems, *passed, *_changed_settings(points, base, new))
    return Comparison((), threshold).with_points(points, *notes)


# ---- besides the time ------------------------------------------------------------------


def _without_time(pair: Pair) -> Compared:
    """Everything about a point but its ratio; a reason where there can be none."""
    base, new = pair.base, pair.new
    if base is None or new is None or pair.obstacle:
        return Compared(base, new, reason=pair.obstacle)
    return Compared(
        base,
        new,
        reason=_untimed(base, new),
        regressions=regressions(base, new),
        kernels=kernel_change(base, new),
        notes=tuple(_notes(base, new)),
    )


def _untimed(base: Record, new: Record) -> str:
    """Why two records of one machine have no ratio; empty if they have."""
    if base.samples is None or new.samples is None:
        return base.status if base.status == new.status else f"{base.status} → {new.status}"
    before, after = how(base.samples), how(new.samples)
    if before != after:
        return ", ".join(differences(before, after))
    if _tokens(base) != _tokens(new):  # each found its own largest batch
        return f"tokens a step {_tokens(base)} → {_tokens(new)}: steps of different work"
    if min(_fewest(base.samples), _fewest(new.samples)) < 2:
        return "a single sample says nothing about its scatter"
    return ""


def _tokens(record: Record) -> int | None:
    """Of a step of training; what a time of any other kind is of does not vary."""
    return record.training.tokens if record.training is not None else None


def _fewest(samples: Samples) -> int:
    """Rounds in the process that has fewest; samples, where that is a single round."""
    counts = []
    for process in samples.times_s:
        rounds = [r for r in process if r]
        if rounds:
            counts.append(len(rounds) if len(rounds) > 1 else len(rounds[0]))
    return min(counts)


def _notes(base: Record, new: Record) -> Iterable[str]:
    told = {"BASE": _doubts(base), "NEW": _doubts(new)}
    for text in dict.fromkeys([*told["BASE"], *told["NEW"]]):
        sides = [side for side, texts in told.items() if text in texts]
        yield f"{' and '.join(sides)}: {text}"
    before, after = (record.samples.method if record.samples else "" for record in (base, new))
    if before and after and before != after:  # a graph shortens the gaps between kernels
        yield f"timed in another way: {before} → {after}"


def _doubts(record: Record) -> list[str]:
    """What makes the time of one side less certain than it could be."""
    if record.samples is None:
        return []
    wide = [] if record.samples.converged else ["interval wider than asked for"]
    state = _disturbance(record)
    return [*wide, f"the machine was {state}"] if state else wide


def _disturbance(record: Record) -> str:
    """``disturbed`` or ``throttled``, where telemetry says so; else empty."""
    state = record.telemetry.get("verdict")
    return state if isinstance(state, str) and state in _DISTURBED else ""


def _changed_settings(points: Iterable[Compared], base: Run, new: Run) -> list[str]:
    """Settings of the machine that differ; they are no identity, but they move clocks."""
    found: dict[str, None] = {}
    for point in points:
        if point.base is not None and point.new is not None and point.ratio is not None:
            before, after = base.context(point.base), new.context(point.new)
            kept = ({k: v for k, v in side.items() if k in _SETTINGS} for side in (before, after))
            found |= dict.fromkeys(differences(*kept))
    return [f"the machine was set differently: {text}" for text in found]


# ---- the time --------------------------------------------------------------------------


def _weigh(points: Sequence[Compared], scatter: Mapping[str, RunScatter]) -> dict[int, Evidence]:
    """The evidence of every point that has two times, by its index."""
    weighed = {}
    for index, point in enumerate(points):
        base, new = point.base, point.new
        if base is None or new is None or point.reason:
            continue
        assert base.samples is not None
        assert new.samples is not None
        known = scatter.get(base.id) or scatter.get(new.id)
        paired = base.pair is not None and base.pair == new.pair
        weighed[index] = ratio.weigh(base.samples, new.samples, paired=paired, known=known)
    return weighed


def _with_time(
    point: Compared, evidence: Evidence, found: Ratio, adjusted_p: float, threshold: float
) -> Compared:
    raised = max(threshold, math.expm1(evidence.scatter), math.expm1(evidence.band))
    point = replace(
        point,
        ratio=found,
        adjusted_p=adjusted_p,
        threshold=raised,
        is_paired=evidence.is_paired,
    )
    size = max(found.ratio, 1 / found.ratio) - 1
    is_assumed = point.has_one_process and evidence.band == 0
    false_share = FALSE_SHARE_ASSUMED if is_assumed else FALSE_SHARE
    if size > raised and adjusted_p < false_share:
        doubt = _cycles(point) or (_disturbed(point) if is_assumed else "")
        if not doubt:
            return replace(point, verdict="SLOWER" if found.ratio > 1 else "FASTER")
    elif found.lies_within(threshold):
        return replace(point, verdict="SAME")
    elif size <= threshold:
        doubt = f"the interval is not inside ±{threshold:.1%}"
    elif adjusted_p >= false_share:
        doubt = f"could be chance: adjusted p = {adjusted_p:.2g}"
    else:
        doubt = f"rounds or runs of equal code differ by {raised:.1%}"
    return replace(point, verdict="INCONCLUSIVE", reason=doubt)


def _disturbed(point: Compared) -> str:
    """Says so if a disturbance of the machine may be all that there is to see; else empty."""
    states = {_disturbance(r): None for r in (point.base, point.new) if r is not None}
    told = " and ".join(filter(None, states))
    return f"the machine was {told} while a side had its one process" if told else ""


def _cycles(point: Compared) -> str:
    """Says so if the difference of the times is none in clock cycles; else empty."""
    assert point.base is not None
    assert point.new is not None
    assert point.ratio is not None
    before, after = (_clock_mhz(record) for record in (point.base, point.new))
    if before is None or after is None:
        return ""
    in_cycles = point.ratio.ratio * after / before
    if (in_cycles > 1) == (point.ratio.ratio > 1):
        return ""
    return f"not in clock cycles: the GPU ran at {before:.0f} → {after:.0f} MHz"


def _clock_mhz(record: Record) -> float | None:
    """The median SM clock while the point was measured, where telemetry tells."""
    value = figure(record.telemetry, "sm_clock_mhz", "median")
    return value if value is not None and value > 0 else None


def _gravity(point: Compared) -> tuple[float, ...]:
    """Sorts regressions first, then by verdict, then the largest differences."""
    size = abs(math.log(point.ratio.ratio)) if point.ratio else 0.0
    is_failure = any(r.kind == "failure" for r in point.regressions)
    return (not is_failure, not point.is_regression, VERDICTS.index(point.verdict), -size)
