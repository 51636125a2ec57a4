"""From what was taken to what a record holds."""

from __future__ import annotations

from attnbench.measure.clock import Clock
from attnbench.measure.sampling import Budget, Taken
from attnbench.record import Samples
from attnbench.stats import median_interval


def headline(taken: Taken, clock: Clock, budget: Budget) -> Samples:
    """The samples of the device's own time."""
    assert taken.timer is not None
    interval = taken.interval
    return Samples(
        clock=clock.name,
        method=taken.timer.method,
        fallback=taken.timer.fallback,
        cache=clock.cache,
        times_s=[taken.rounds],
        calls_per_sample=taken.calls_per_sample,
        warmup_s=taken.warmup_s,
        spent_s=taken.spent_s,
        steady=taken.steady,
        median_s=interval.median,
        low_s=interval.low,
        high_s=interval.high,
        converged=taken.is_precise(budget),
    )


def host_time(taken: Taken, clock: Clock, budget: Budget) -> Samples | None:
    """The samples of host time beside the device's; None where the headline is host time.

    Warm-up and rounds were shared: what they took is told by the headline.
    """
    if clock.host is None:
        return None
    interval = median_interval(taken.host_rounds)
    return Samples(
        clock=clock.host.name,
        method=clock.host.method,
        cache=clock.host.cache,
        times_s=[taken.host_rounds],
        steady=taken.steady,
        median_s=interval.median,
        low_s=interval.low,
        high_s=interval.high,
        converged=interval.half_width <= budget.precision,
    )
