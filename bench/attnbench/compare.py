"""Two runs, point by point: faster, the same, slower, or not to be told.

A point is an implementation (with its options) on a problem. Its verdict:

    FASTER, SLOWER   the median ratio is past the threshold, and no chance (below)
    SAME             the 95 % interval of the ratio lies inside ± threshold: that is evidence
    INCONCLUSIVE     neither; the reason says what is missing
    NOT COMPARABLE   measured on different machines, by different clocks, on one side only,
                     or without a time

No chance means three things. The p-value, adjusted over all points (Benjamini-Hochberg,
q = 0.05), is below 0.05 (see :mod:`attnbench.ratio`). The ratio is past the point's own
threshold, which is raised to the scatter of its rounds and to what its history says about
equal runs. And where the GPU's clock is known on both sides, the difference has the same
sign in clock cycles.

Failures, memory and accuracy are judged beside the time (:mod:`attnbench.gate`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from attnbench import ratio
from attnbench.gate import KernelChange, Regression, kernel_change, regressions
from attnbench.matching import Pair, differences, match
from attnbench.ratio import Evidence, Ratio, RunScatter
from attnbench.record import Record, Samples
from attnbench.runs import Run
from attnbench.stats import benjamini_hochberg

Verdict = Literal["SLOWER", "FASTER", "INCONCLUSIVE", "SAME", "NOT COMPARABLE"]
VERDICTS: tuple[Verdict, ...] = ("SLOWER", "FASTER", "INCONCLUSIVE", "SAME", "NOT COMPARABLE")

THRESHOLD = 0.03
FALSE_SHARE = 0.05  # of the calls may be wrong (q of Benjamini & Hochberg)
_HOW = ("clock", "cache")  # fields of the samples that say how the time was taken
_SETTINGS = ("gpu.power_limit_w", "gpu.sm_max_mhz", "gpu.ecc")  # of the context; worth a note
_DISTURBED = ("throttled", "disturbed")  # verdicts of telemetry


@dataclass(frozen=True)
class Compared:
    """One point of two runs.

    Attributes:
        base, new: the records; None where a side has none.
        verdict: about the time.
        reason: why it is not SAME, FASTER or SLOWER; else empty.
        is_judged: whether it counts: records of one machine, of which the base is ok.
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
    is_judged: bool = False
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
        """0 no regression, 1 regression, 2 nothing could be compared."""
        if self.regressions:
            return 1
        return 0 if any(p.is_judged for p in self.points) else 2


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
        base, new: before and after.
        threshold: relative difference that matters.
        across: globs of identity fields (``software.torch``) that may differ, because it is
            they that are compared.
        scatter: how much runs of an unchanged point differ, by record id, where history
            tells (:func:`attnbench.history.run_scatter`).

    Raises:
        UserError: one of ``across`` names no field of the environments.
    """
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
        is_judged=base.status == "ok",
        regressions=regressions(base, new),
        kernels=kernel_change(base, new),
        notes=tuple(_notes(base, new)),
    )


def _untimed(base: Record, new: Record) -> str:
    """Why two records of one machine have no ratio; empty if they have."""
    if base.samples is None or new.samples is None:
        return base.status if base.status == new.status else f"{base.status} → {new.status}"
    before, after = _how(base.samples), _how(new.samples)
    if before != after:
        return ", ".join(differences(before, after))
    if min(_fewest(base.samples), _fewest(new.samples)) < 2:
        return "a single sample says nothing about its scatter"
    return ""


def _how(samples: Samples) -> dict[str, str]:
    told = {name: getattr(samples, name, None) for name in _HOW}
    return {name: str(value) for name, value in told.items() if value is not None}


def _fewest(samples: Samples) -> int:
    """Rounds in the process that has fewest; samples, where that is a single round."""
    counts = []
    for process in samples.times_s:
        rounds = [r for r in process if r]
        counts.append(len(rounds) if len(rounds) != 1 else len(rounds[0]))
    return min(counts)


def _notes(base: Record, new: Record) -> Iterable[str]:
    for side, record in (("BASE", base), ("NEW", new)):
        if record.samples is not None and not record.samples.converged:
            yield f"{side}: interval wider than asked for"
        if record.telemetry.get("verdict") in _DISTURBED:
            yield f"{side}: the machine was {record.telemetry['verdict']}"


def _changed_settings(points: Iterable[Compared], base: Run, new: Run) -> list[str]:
    """Settings of the machine that differ; they are no identity, but they move clocks."""
    found: dict[str, None] = {}
    for point in points:
        if point.base is not None and point.new is not None and point.is_judged:
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
    cycles = _cycles(point) if size > raised and adjusted_p < FALSE_SHARE else ""
    if size > raised and adjusted_p < FALSE_SHARE and not cycles:
        return replace(point, verdict="SLOWER" if found.ratio > 1 else "FASTER")
    if found.lies_within(threshold):
        return replace(point, verdict="SAME")
    if cycles:
        reason = cycles
    elif size > threshold and adjusted_p >= FALSE_SHARE:
        reason = f"could be chance: adjusted p = {adjusted_p:.2g}"
    elif size > threshold:
        reason = f"equal runs of this point differ by up to {raised:.1%}"
    else:
        reason = f"the interval is not inside ±{threshold:.0%}"
    return replace(point, verdict="INCONCLUSIVE", reason=reason)


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
    signal = (record.telemetry.get("signals") or {}).get("sm_clock_mhz") or {}
    value = signal.get("median")
    return float(value) if isinstance(value, (int, float)) and value > 0 else None


def _gravity(point: Compared) -> tuple[float, ...]:
    """Sorts regressions first, then by verdict, then the largest differences."""
    size = abs(math.log(point.ratio.ratio)) if point.ratio else 0.0
    is_failure = any(r.kind == "failure" for r in point.regressions)
    return (not is_failure, not point.is_regression, VERDICTS.index(point.verdict), -size)
