"""The CUDA clock on a simulated GPU: no launch in a figure, cold is cold, fallbacks are told.

What only a GPU can show (that torch captures external events, that the hold holds) is in
``attnbench doctor --selftest``.
"""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch
from fake_cuda import CYCLES_A_SECOND, FakeCuda, Kernel

from attnbench.measure import cache, clock_cuda
from attnbench.measure.clock import Timer, Work
from attnbench.measure.clock_cuda import DeviceClock
from attnbench.measure.sampling import Budget, sample

US = 1e-6
LATE = "the host was still launching when the call began"


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    fake.install(monkeypatch)
    return fake


def device_clock(**told: Any) -> DeviceClock:
    return DeviceClock(torch.device("cuda:0"), **told)


def timer(clock: DeviceClock, kernel: Kernel, samples: int = 3, copy: bool = True) -> Timer:
    """The timer that a call gets, and what it tells: sized as sampling sizes it."""
    for _ in range(3):
        one_s = clock.time(kernel, 1)
    calls = max(1, round(clock.resolution_s / one_s))
    return clock.timer(Work(kernel, one_s, calls, samples, kernel.copy if copy else None))


def told_us(by: Timer) -> list[float]:
    return [round(seconds / US, 3) for seconds in by.take()]


# ---- the hold ----------------------------------------------------------------------------


def test_launching_is_no_part_of_device_time(cuda: FakeCuda) -> None:
    kernel = Kernel(cuda, 30 * US, launches=20)  # 200 µs to enqueue 30 µs of work
    assert device_clock().time(kernel, 1) == pytest.approx(30 * US)


def test_without_a_hold_launching_would_be_inside(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = device_clock()
    monkeypatch.setattr(clock_cuda, "_MOST_HOLD_S", 0.0)
    clock._hold_s = 0.0
    assert clock.time(Kernel(cuda, 30 * US, launches=20), 1) > 100 * US
    assert clock.is_late, "and the clock knows"


def test_the_hold_is_sized_by_what_enqueueing_took(cuda: FakeCuda) -> None:
    clock = device_clock()
    clock.time(Kernel(cuda, 30 * US, launches=50), 1)
    assert clock._hold_s == pytest.approx(2 * clock.enqueue_s)
    assert clock.enqueue_s == pytest.approx(500 * US, rel=0.01)


def test_the_hold_is_in_cycles_of_the_clock_that_runs(cuda: FakeCuda) -> None:
    assert device_clock()._cycles_a_second == pytest.approx(CYCLES_A_SECOND)


def test_compiling_in_the_first_call_does_not_hold_the_device_for_as_long(cuda: FakeCuda) -> None:
    clock = device_clock()
    clock.time(Kernel(cuda, 30 * US, launches=3_000_000), 1)  # 30 s
    assert clock._hold_s <= 0.05


# ---- cold and warm -----------------------------------------------------------------------


@pytest.mark.parametrize(("state", "told"), [("cold", 330), ("warm", 300)])
def test_the_cache_is_as_its_label_says(cuda: FakeCuda, state: Any, told: float) -> None:
    kernel = Kernel(cuda, 300 * US, cold_s=30 * US)
    by = timer(device_clock(cache=state), kernel)
    assert told_us(by) == [told] * 3


@pytest.mark.parametrize(("state", "told"), [("cold", 70), ("warm", 50)])
def test_in_a_graph_too(cuda: FakeCuda, state: Any, told: float) -> None:
    kernel = Kernel(cuda, 50 * US, cold_s=20 * US)
    by = timer(device_clock(cache=state), kernel)
    assert by.method == "cuda graph of events"
    assert told_us(by) == [told] * 3


def test_the_first_sample_of_a_warm_round_is_warm_too(cuda: FakeCuda) -> None:
    by = timer(device_clock(cache="warm"), Kernel(cuda, 50 * US, cold_s=20 * US))
    cuda.in_l2.clear()  # others were measured meanwhile
    assert told_us(by) == [50.0] * 3


def test_calls_too_short_for_events_are_timed_together_and_all_of_them_cold(
    cuda: FakeCuda,
) -> None:
    kernel = Kernel(cuda, 2 * US, cold_s=2 * US)
    clock = device_clock()
    by = timer(clock, kernel)
    assert by.method == "cuda graph of events over rotated inputs"
    assert by.calls_per_sample == 5
    assert told_us(by) == [4.0] * 3
    assert clock.time(kernel, 5) == pytest.approx(2.4 * US), "the same inputs again are warm"


def test_warm_calls_too_short_for_events_are_timed_together_over_the_same_inputs(
    cuda: FakeCuda,
) -> None:
    kernel = Kernel(cuda, 4 * US, cold_s=2 * US)
    by = timer(device_clock(cache="warm"), kernel)
    assert (by.method, by.calls_per_sample) == ("cuda graph of events", 5)
    assert told_us(by) == [4.0] * 3
    assert set(kernel.copies) == {1}


def test_without_copies_a_short_cold_call_is_timed_by_itself_and_that_is_told(
    cuda: FakeCuda,
) -> None:
    by = timer(device_clock(), Kernel(cuda, 2 * US, cold_s=2 * US), copy=False)
    assert (by.method, by.calls_per_sample) == ("cuda events", 1)
    assert told_us(by) == [4.0] * 3, "what is labelled cold is cold"
    assert "nothing to make copies of" in (by.fallback or "")


def test_the_flush_is_twice_the_l2(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        L2_cache_size = 50 << 20

    made: list[int] = []

    def empty(size: int, **_: Any) -> torch.Tensor:
        made.append(size)
        return torch.ones(4)

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    monkeypatch.setattr(torch, "empty", empty)
    cache.device_flush(torch.device("cuda:0"))()
    assert made == [100 << 20]


# ---- which method ------------------------------------------------------------------------


def test_long_calls_that_are_launched_in_time_need_no_graph(cuda: FakeCuda) -> None:
    by = timer(device_clock(), Kernel(cuda, 300 * US))
    assert (by.method, by.fallback, by.calls_per_sample) == ("cuda events", None, 1)
    assert told_us(by) == [300.0] * 3


@pytest.mark.parametrize(
    ("seconds", "launches"), [(199 * US, 1), (300 * US, 40)], ids=["short", "many launches"]
)
def test_calls_that_launching_dominates_are_timed_in_a_graph(
    cuda: FakeCuda, seconds: float, launches: int
) -> None:
    by = timer(device_clock(), Kernel(cuda, seconds, launches=launches))
    assert (by.method, by.fallback) == ("cuda graph of events", None)
    assert told_us(by) == [pytest.approx(seconds / US)] * 3
    assert by.fault() is None


def test_a_round_of_a_graph_is_one_launch(cuda: FakeCuda) -> None:
    by = timer(device_clock(), Kernel(cuda, 50 * US, launches=30), samples=10)
    cuda.synchronize()
    before_s = cuda.host_s
    assert len(by.take()) == 10
    assert cuda.host_s - before_s == pytest.approx(10e-6 + 10 * (50 + 50) * US)


# ---- fallbacks ---------------------------------------------------------------------------


def test_a_call_that_waits_for_the_device_is_not_captured_and_both_is_told(
    cuda: FakeCuda,
) -> None:
    kernel = Kernel(cuda, 50 * US, waits=True)
    by = timer(device_clock(), kernel)
    assert by.method == "cuda events"
    assert "the call waits for the device: called a synchronizing CUDA" in (by.fallback or "")
    assert LATE in (by.fallback or "")
    assert kernel.copies == [], "no capture was begun that would have to be broken off"
    assert not cuda.is_debugging, "torch's own setting is as it was"


def test_a_long_call_that_waits_for_the_device_is_told_too(cuda: FakeCuda) -> None:
    kernel = Kernel(cuda, 400 * US, waits=True)
    by = timer(device_clock(), kernel)
    assert LATE in (by.fallback or "")


def test_work_on_another_stream_escapes_a_capture_and_is_found_out(cuda: FakeCuda) -> None:
    by = timer(device_clock(), Kernel(cuda, 50 * US, elsewhere=True))
    assert by.method == "cuda events"
    assert "its replay does not do the work: out was not written" in (by.fallback or "")
    assert told_us(by) == [50.0] * 3


@pytest.mark.parametrize("in_graph", [10 * US, 90 * US], ids=["too fast", "too slow"])
def test_a_graph_that_tells_another_time_is_not_believed(cuda: FakeCuda, in_graph: float) -> None:
    by = timer(device_clock(), Kernel(cuda, 50 * US, seconds_in_graph=in_graph))
    assert by.method == "cuda events"
    assert f"it took {in_graph / US:.1f} µs a call, where events" in (by.fallback or "")
    assert "told 50.0 µs" in (by.fallback or "")


def test_a_smaller_gap_between_kernels_is_what_a_graph_is_for(cuda: FakeCuda) -> None:
    by = timer(device_clock(), Kernel(cuda, 50 * US, seconds_in_graph=35 * US))
    assert told_us(by) == [35.0] * 3


def test_copies_that_do_not_fit_are_told(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(self: Kernel, count: int) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

    monkeypatch.setattr(Kernel, "copy", copy)
    by = timer(device_clock(), Kernel(cuda, 50 * US))
    assert by.method == "cuda events"
    assert (by.fallback or "").endswith(
        "it could not be made: CUDA out of memory. Tried to allocate 2 GiB"
    )


# ---- host time ---------------------------------------------------------------------------


def test_host_time_has_the_launch_and_the_wait_in_it_and_no_flush(cuda: FakeCuda) -> None:
    clock = device_clock()
    assert clock.host is not None
    kernel = Kernel(cuda, 50 * US, cold_s=5 * US, launches=3)
    assert clock.host.time(kernel, 1) == pytest.approx((3 * 10 + 50 + 5) * US)
    assert (clock.host.name, clock.host.method) == ("host", "perf_counter_ns, synchronized")
    assert clock.host.cache == clock.cache == "cold"


def test_both_figures_are_taken_in_the_same_rounds(cuda: FakeCuda) -> None:
    kernel = Kernel(cuda, 50 * US, launches=4)
    clock = device_clock()
    budget = Budget(warmup_s=0.0, min_rounds=4, samples=3)
    taken = sample({"a": kernel}, clock, budget, 0, copy=lambda _, n: kernel.copy(n))["a"]
    assert [len(r) for r in taken.rounds] == [3] * 4
    assert [len(r) for r in taken.host_rounds] == [2] * 4
    device = statistics.median(t for r in taken.rounds for t in r)
    host = statistics.median(t for r in taken.host_rounds for t in r)
    assert (device, host) == (pytest.approx(50 * US), pytest.approx(90 * US))
