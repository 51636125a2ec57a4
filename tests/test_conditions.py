"""Which timings are taken again, what a record keeps of the telemetry, what is said at the end."""

from __future__ import annotations

from typing import Any, cast

import pytest

from attnbench.conditions import (
    MOST_REPEATS,
    Conditions,
    before_start,
    closing_lines,
    figure,
    joined,
)
from attnbench.limits import highest_clock
from attnbench.measure.telemetry import Sampler
from attnbench.measure.telemetry_strip import strip
from attnbench.measure.telemetry_summary import Sample, summarise
from attnbench.record import Record


class Machine:
    """Stands in for a sampler; each timing is told beforehand what the GPU will do in it."""

    def __init__(self, *throttle: list[str], **more: Any) -> None:
        self.script, self.more = list(throttle), more
        self.cooled = 0

    def samples(self, since: float = 0.0) -> list[Sample]:
        reasons = self.script[0] if self.script else []
        return [Sample(i / 10, throttle=reasons, cores=2, **self.more) for i in range(100)]

    def window(self, t0: float, t1: float) -> dict[str, Any]:
        return summarise(self.samples(), t0, t1, "cuda:0", {})

    def strip(self, t0: float, t1: float, points: int) -> dict[str, Any]:
        return strip(self.samples(), t0, t1, points)

    def until_cool(self) -> float:
        self.cooled += 1
        self.script.pop(0)
        return 12.0


def watch_of(machine: Machine) -> Conditions:
    watch = Conditions(cast(Sampler, machine))
    watch.group_begins()
    return watch


def attempt(watch: Conditions) -> dict[str, Any]:
    watch.attempt_begins()
    watch.sampled(1.0, 9.0)
    return watch.look()


def test_a_quiet_timing_is_kept_with_its_strip() -> None:
    watch = watch_of(Machine([]))
    told = attempt(watch)
    assert told["verdict"] == "clean"
    assert told["duration_s"] == 8.0
    assert len(told["strip"]["t_s"]) == 24
    assert not watch.is_spoilt
    assert "repeats" not in told


def test_a_throttled_timing_is_repeated_after_cooling_and_says_so() -> None:
    machine = Machine(["hw_thermal"], [])
    watch = watch_of(machine)
    attempt(watch)
    assert watch.is_spoilt
    assert machine.cooled == 0
    told = attempt(watch)
    assert not watch.is_spoilt
    assert (machine.cooled, told["verdict"], told["repeats"]) == (1, "clean", 1)
    assert told["cooled_s"] == 12.0
    assert "after cooling down" in told["notes"][-1]


def test_a_device_that_is_always_hot_is_repeated_twice_and_then_marked() -> None:
    machine = Machine(*[["thermal"]] * 9)
    watch = watch_of(machine)
    attempts = 1
    told = attempt(watch)
    while watch.is_spoilt:
        told = attempt(watch)
        attempts += 1
    assert attempts == 1 + MOST_REPEATS
    assert told["verdict"] == "throttled"
    assert told["repeats"] == MOST_REPEATS
    assert "slowed down again" in told["notes"][-1]
    watch.group_begins()
    attempt(watch)
    assert watch.is_spoilt, "another problem has its own repeats"


def test_a_power_cap_and_a_disturbance_are_only_noted() -> None:
    for machine, verdict in (
        (Machine(["power_cap"]), "power-capped"),
        (Machine([], gpu_others=[{"pid": 1, "name": "x", "sm_percent": 9}]), "disturbed"),
    ):
        watch = watch_of(machine)
        assert attempt(watch)["verdict"] == verdict
        assert not watch.is_spoilt


def test_where_nobody_looks_there_is_no_telemetry() -> None:
    watch = Conditions(None)
    watch.group_begins()
    assert attempt(watch) == {}
    assert not watch.is_spoilt
    assert before_start(None) == []


def test_contenders_timed_together_have_the_same_telemetry() -> None:
    watch = watch_of(Machine([]))
    first = attempt(watch)
    assert watch.look() is first


# ---- of several processes ----------------------------------------------------------------


def timing(verdict: str, clock_mhz: float, **more: Any) -> dict[str, Any]:
    clock = {"min": clock_mhz - 10, "median": clock_mhz, "max": clock_mhz + 10, "mean": clock_mhz}
    return {
        "verdict": verdict, "notes": [verdict], "signals": {"sm_clock_mhz": clock},
        "strip": {"t_s": [clock_mhz]}, **more,
    }  # fmt: skip


def test_the_gravest_process_gives_the_verdict_and_all_of_them_the_figures() -> None:
    power = {"power_w": {"min": 300.0, "median": 400.0, "max": 500.0, "mean": 410.0}}
    cool, hot, last = (
        timing("clean", 1900),
        timing("throttled", 900, repeats=2),
        timing("clean", 1800),
    )
    last["signals"] |= power
    told = joined([cool, hot, last])
    assert (told["verdict"], told["notes"], told["strip"]) == (
        "throttled", ["throttled"], {"t_s": [900]},
    )  # fmt: skip
    assert told["signals"]["sm_clock_mhz"] == {
        "min": 890, "median": 1800, "max": 1910, "mean": pytest.approx(4600 / 3),
    }  # fmt: skip
    assert told["signals"]["power_w"] == power["power_w"]
    assert hot["signals"]["sm_clock_mhz"]["max"] == 910, "what was told stays as it is"


def test_repeats_are_not_lost_with_a_process_that_was_quiet_in_the_end() -> None:
    told = joined([timing("disturbed", 1900), timing("clean", 1900, repeats=1, cooled_s=12.0)])
    assert (told["verdict"], told["repeats"], told["cooled_s"]) == ("disturbed", 1, 12.0)


def test_one_process_has_its_own_telemetry_and_none_has_none() -> None:
    assert joined([timing("clean", 1900)]) == timing("clean", 1900)
    assert joined([{}, {}]) == {}


@pytest.mark.parametrize(
    "telemetry",
    [{}, {"signals": []}, {"signals": {"sm_clock_mhz": 3}},
     {"signals": {"sm_clock_mhz": {"max": "fast"}}}, {"signals": {"sm_clock_mhz": {"max": True}}}],
)  # fmt: skip
def test_what_has_not_the_shape_of_a_figure_is_none(telemetry: dict[str, Any]) -> None:
    assert figure(telemetry, "sm_clock_mhz", "max") is None
    assert highest_clock(telemetry) is None


def test_a_figure_is_found_by_signal_and_name() -> None:
    assert figure(timing("clean", 1900), "sm_clock_mhz", "median") == 1900.0
    assert highest_clock(timing("clean", 1900)) == 1910.0


# ---- before ------------------------------------------------------------------------------


def test_others_on_the_gpu_are_shouted_about_before_anything_is_measured() -> None:
    other = {"pid": 77, "name": "train", "memory_bytes": 3 * 2**30, "sm_percent": 0}
    (line,) = before_start(cast(Sampler, Machine([], gpu_others=[other])))
    assert line.startswith("OTHER PROCESSES ARE ON THE GPU: train (pid 77, 3.0 GiB)")
    assert before_start(cast(Sampler, Machine([]))) == []


def test_not_seeing_others_is_not_being_busy() -> None:
    class Blind(Machine):
        def window(self, t0: float, t1: float) -> dict[str, Any]:
            return summarise(self.samples(), t0, t1, "cuda:0", {"gpu_others": "in a container"})

    assert before_start(cast(Sampler, Blind([]))) == []


def test_a_busy_machine_is_told_of_before_anything_is_measured() -> None:
    class Busy(Machine):
        def samples(self, since: float = 0.0) -> list[Sample]:
            return [Sample(i / 10, counters={"others_s": i / 10}, cores=2) for i in range(100)]

        def window(self, t0: float, t1: float) -> dict[str, Any]:
            return summarise(self.samples(), t0, t1, "cpu", {})

    (line,) = before_start(cast(Sampler, Busy()))
    assert line.startswith("the machine is busy: others used 1 of 2 cores")


# ---- at the end --------------------------------------------------------------------------


def record(status: str = "ok", verdict: str = "clean", cores: float = 0.0) -> Record:
    notes = [] if verdict == "clean" else [f"others used {cores:g} of 2 cores (python {cores:g})"]
    signals = {"others_cores": {"mean": cores}}
    return Record.model_construct(
        status=status, telemetry={"verdict": verdict, "notes": notes, "signals": signals}
    )


def test_the_end_says_how_many_points_were_disturbed_and_what_was_worst() -> None:
    records = [record() for _ in range(9)] + [record("ok", "disturbed", c) for c in (0.2, 0.9, 0.4)]
    assert closing_lines(records) == [
        "3 of 12 points were disturbed; at worst others used 0.9 of 2 cores (python 0.9)"
    ]


def test_a_single_disturbed_point_is_told_without_a_superlative() -> None:
    (line,) = closing_lines([record(), record("ok", "disturbed", 0.9)])
    assert line == "1 of 2 points were disturbed: others used 0.9 of 2 cores (python 0.9)"


def test_quiet_points_failed_points_and_old_records_without_telemetry_say_nothing() -> None:
    old = Record.model_construct(status="ok", telemetry={})
    assert closing_lines([old, record(), record("error", "disturbed", 1.0)]) == []
    assert closing_lines([]) == []


def test_what_could_not_be_seen_is_told_with_the_reason() -> None:
    blind = Record.model_construct(
        status="ok",
        telemetry={"verdict": "unknown", "notes": ["what other processes did cannot be seen: why"]},
    )
    assert closing_lines([record(), blind, blind]) == [
        "2 of 3 points may have been disturbed: what other processes did cannot be seen: why"
    ]


@pytest.mark.parametrize("verdict", ["throttled", "power-capped"])
def test_the_other_verdicts_have_a_line_of_their_own(verdict: str) -> None:
    (line,) = closing_lines([record("ok", verdict, 0.1)])
    assert line.startswith("1 of 1 points were ")
