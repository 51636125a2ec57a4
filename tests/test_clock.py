"""The host's clock: wall seconds, with caches in the state that is told."""

from __future__ import annotations

import itertools
import time

import pytest
import torch

from attnbench.measure import clock
from attnbench.measure.clock import HostClock, Work, clock_for

CPU = torch.device("cpu")


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happened, in order; the time goes on by a millisecond a look."""
    log: list[str] = []
    times = itertools.count(0, 1_000_000)

    def now_ns() -> int:
        log.append("look")
        return next(times)

    monkeypatch.setattr(clock, "now_ns", now_ns)
    monkeypatch.setattr(clock, "host_flush", lambda: lambda: log.append("flush"))
    return log


def test_seconds_are_those_of_one_call(ticks: list[str]) -> None:
    assert HostClock().time(lambda: ticks.append("call"), 4) == pytest.approx(1e-3 / 4)
    assert ticks == ["look", *["call"] * 4, "look"]


def test_a_cold_sample_is_flushed_before_the_clock_starts_and_is_one_call(
    ticks: list[str],
) -> None:
    cold = HostClock("cold")
    assert cold.cache == "cold"
    timer = cold.timer(Work(lambda: ticks.append("call"), 1e-6, samples=2))
    timer.take()
    assert ticks == ["flush", "look", "call", "look"] * 2
    assert cold.resolution_s == 0.0, "sampling puts no second, warm call into a sample"


def test_a_warm_sample_is_not_flushed(ticks: list[str]) -> None:
    assert HostClock().cache == "warm"
    HostClock().timer(Work(lambda: None, 1e-6, calls=3)).take()
    assert "flush" not in ticks


def test_on_a_cpu_caches_are_warm_unless_told_otherwise(ticks: list[str]) -> None:
    assert clock_for(CPU).cache == clock_for(CPU, "auto").cache == "warm"
    assert clock_for(CPU, "cold").cache == "cold"
    assert clock_for(CPU).host is None, "the headline is host time already"


def test_a_plugin_that_patches_the_time_later_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "perf_counter_ns", lambda: 0)
    assert HostClock().time(lambda: sum(range(1000)), 1) > 0
