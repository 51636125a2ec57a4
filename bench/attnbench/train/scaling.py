"""How well training scales: derived on load from the records of several numbers of ranks.

A workload's batch is that of a process, so more ranks learn from more sequences a step (weak
scaling). Efficiency is then ``tokens/s(W ranks) ÷ (W · tokens/s(1))``: 1 where exchanging
gradients and waiting for the slowest cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from attnbench.record import Record
from attnbench.stats import Interval
from attnbench.train.derived import tokens_per_s
from attnbench.train.workload import Workload


@dataclass(frozen=True)
class Scaling:
    """Efficiency, or why it is not known.

    Attributes:
        processes: ranks.
        rank_tokens_per_s: throughput of one of them; None without timings.
        efficiency: 1 is ideal; None where nothing can be said. Its interval is from the worst
            to the best combination of both throughputs' intervals: as those are 95 % each, it
            covers the truth in 90 % of cases or more (Bonferroni).
        absent: why there is no efficiency; None where there is.
    """

    processes: int
    rank_tokens_per_s: Interval | None = None
    efficiency: Interval | None = None
    absent: str | None = None


def scaling(record: Record, others: Iterable[Record]) -> Scaling:
    """How a record of several ranks compares with the same workload in one process.

    Args:
        record: of a training run.
        others: of the same machine, as those of one run are; where the single process is
            looked for, by preference among those measured in the same environment.
    """
    processes = int(record.problem.get("processes", 1))
    if processes == 1:
        return Scaling(1, tokens_per_s(record), absent="a single process")
    rate = tokens_per_s(record)
    if rate is None:
        return Scaling(processes, absent=f"not measured: {record.status}")
    each = _scaled(rate, 1 / processes)
    alone = _alone(record, others)
    if alone is None:
        told = "the run has no record of the same workload in one process (parallel = 'none')"
        return Scaling(processes, each, absent=told)
    one = tokens_per_s(alone)
    if one is None:
        return Scaling(processes, each, absent=f"in one process it is {alone.status}")
    ratio = Interval(each.median / one.median, each.low / one.high, each.high / one.low)
    return Scaling(processes, each, ratio)


def in_words(found: Scaling) -> str:
    """For a cell of a table."""
    if found.efficiency is None:
        return found.absent or ""
    e = found.efficiency
    return f"{e.median:.0%} [{e.low:.0%}–{e.high:.0%}] of {found.processes} × one process"


def _alone(record: Record, others: Iterable[Record]) -> Record | None:
    """The same implementation, workload and device, in one process."""
    workload = Workload.from_json(record.problem).replace(parallel="none", processes=1)
    wanted = (workload.id, record.implementation.spec, record.device)
    found = [
        other
        for other in others
        if (other.problem_id, other.implementation.spec, other.device) == wanted
    ]
    near = [other for other in found if other.environment == record.environment]
    return next(iter(near or found), None)


def _scaled(rate: Interval, factor: float) -> Interval:
    return Interval(rate.median * factor, rate.low * factor, rate.high * factor)
