"""Which timings are taken again, what a record keeps of the telemetry, what is said at the end."""

from __future__ import annotations

from typing import Any, cast

import pytest

from attnbench.conditions import MOST_REPEATS, Conditions, before_start, closing_lines
from attnbench.measure.telemetry import Sampler
from attnbench.measure.telemetry_summary import Sample, strip, summarise
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


# ---- before ------------------------------------------------------------------------------


def test_others_on_the_gpu_are_shouted_about_before_anything_is_measured() -> None:
    other = {"pid": 77, "name": "train", "memory_bytes": 3 * 2**30, "sm_percent": 0}
    (line,) = before_start(cast(Sampler, Machine([], gpu_others=[other])))
    assert line.startswith("OTHER PROCESSES ARE ON THE GPU: train (pid 77, 3.0 GiB)")
    assert before_start(cast(Sampler, Machine([]))) == []


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


@pytest.mark.parametrize("verdict", ["throttled", "power-capped"])
def test_the_other_verdicts_have_a_line_of_their_own(verdict: str) -> None:
    (line,) = closing_lines([record("ok", verdict, 0.1)])
    assert line.startswith("1 of 1 points were ")
