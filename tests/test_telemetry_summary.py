"""Figures and verdict of a stretch of time, from samples that were made up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from attnbench.measure.telemetry_strip import strip
from attnbench.measure.telemetry_summary import Sample, summarise

T0, T1 = 100.0, 110.0


def series(make: Callable[[float], dict[str, Any]], begin: float = 95.0) -> list[Sample]:
    """Ten samples a second; ``make`` gives the fields at a time after the first."""
    return [Sample(begin + i / 10, **make(i / 10)) for i in range(200)]


def cpu(
    others: float = 0.0, steal: float = 0.0, wait: float = 0.0, cores: int = 2, **more: Any
) -> list[Sample]:
    """A processor of which others take so many cores, the hypervisor so many."""

    def make(t: float) -> dict[str, Any]:
        counters = {
            "others_s": others * t,
            "worker_s": 1.5 * t,
            "steal_s": steal * t,
            "wait_s": wait * t,
        }
        return {"counters": counters, "cores": cores, **more}

    return series(make)


def gpu(throttle: list[str] | None, **more: Any) -> list[Sample]:
    return series(
        lambda t: {"throttle": throttle, "gauges": {"sm_clock_mhz": 1900.0}, "cores": 16, **more}
    )


def seen(samples: list[Sample], device: str = "cpu", **absent: str) -> dict[str, Any]:
    return summarise(samples, T0, T1, device, absent)


def test_a_quiet_machine_is_clean() -> None:
    found = seen(cpu(others=0.02))
    assert (found["verdict"], found["notes"]) == ("clean", [])
    assert found["signals"]["others_cores"]["mean"] == pytest.approx(0.02)
    assert found["signals"]["worker_cores"]["mean"] == pytest.approx(1.5)
    assert found["samples"] == pytest.approx(100, abs=1)


def test_others_on_the_cores_disturb_and_are_named() -> None:
    found = seen(cpu(others=0.9, busy={"python": 0.08, "kworker": 0.001}))
    assert found["verdict"] == "disturbed"
    assert found["notes"] == ["others used 0.9 of 2 cores (python 0.8)"]


def test_the_same_work_on_a_machine_of_many_cores_does_not() -> None:
    assert seen(cpu(others=0.9, cores=64))["verdict"] == "clean"


def test_only_the_stretch_itself_counts() -> None:
    samples = [
        Sample(s.t, counters={"others_s": 2.0 * max(0.0, s.t - T1 - 0.5)}, cores=2) for s in cpu()
    ]
    assert seen(samples)["verdict"] == "clean"
    assert summarise(samples, T1 + 0.5, T1 + 4, "cpu", {})["verdict"] == "disturbed"


def test_the_hypervisor_and_a_wait_for_a_core_disturb() -> None:
    assert "hypervisor took 2.5%" in seen(cpu(steal=0.05))["notes"][0]
    assert "waited for a core 10.0%" in seen(cpu(wait=0.1))["notes"][0]


def test_a_busy_host_beside_a_gpu_disturbs_only_if_the_worker_had_to_wait() -> None:
    busy = [
        Sample(s.t, counters=s.counters, cores=2, throttle=[], gauges={}) for s in cpu(others=1.0)
    ]
    assert seen(busy, "cuda:0")["verdict"] == "clean"
    waiting = [
        Sample(s.t, counters=s.counters, cores=2, throttle=[], gauges={}) for s in cpu(wait=0.2)
    ]
    assert seen(waiting, "cuda:0")["verdict"] == "disturbed"


@pytest.mark.parametrize("reason", ["thermal", "hw_thermal", "hw_slowdown", "power_brake"])
def test_heat_and_the_power_brake_are_throttling(reason: str) -> None:
    found = seen(gpu([reason, "power_cap"]), "cuda:0")
    assert found["verdict"] == "throttled"
    assert reason in found["notes"][0]


def test_one_hot_sample_of_many_is_enough() -> None:
    samples = gpu([])
    samples[100] = Sample(samples[100].t, throttle=["hw_thermal"], cores=16)
    found = seen(samples, "cuda:0")
    assert found["verdict"] == "throttled"
    assert found["throttle"] == {"hw_thermal": pytest.approx(0.01, abs=0.001)}


def test_a_power_cap_is_only_a_remark_and_idling_none() -> None:
    found = seen(gpu(["power_cap"]), "cuda:0")
    assert found["verdict"] == "power-capped"
    assert "in 100% of samples" in found["notes"][0]
    assert seen(gpu(["idle", "application_clocks"]), "cuda:0")["verdict"] == "clean"


def test_throttle_events_of_a_processor_are_throttling() -> None:
    samples = [
        Sample(s.t, counters={**s.counters, "throttle_events": 7 + 2 * (s.t > 105)}, cores=2)
        for s in cpu()
    ]
    found = seen(samples)
    assert found["verdict"] == "throttled"
    assert found["notes"] == ["CPU slowed down for heat: 2 throttle events"]


def test_another_process_on_the_gpu_disturbs_unless_it_only_holds_memory() -> None:
    def beside(percent: int | None) -> dict[str, Any]:
        other = {"pid": 7, "name": "train", "memory_bytes": 1, "sm_percent": percent}
        return seen(gpu([], gpu_others=[other]), "cuda:0")

    assert beside(30)["verdict"] == "disturbed"
    assert beside(30)["notes"] == ["another process used the GPU: train (pid 7)"]
    assert beside(None)["verdict"] == "disturbed"
    assert beside(0)["verdict"] == "clean"
    assert beside(0)["gpu_others"][0]["pid"] == 7


def test_what_cannot_be_seen_is_unknown_and_says_why_never_clean() -> None:
    blind = series(lambda t: {"cores": 2})
    found = seen(blind, others_cores="/proc/stat cannot be read: Permission denied")
    assert found["verdict"] == "unknown"
    assert "Permission denied" in found["notes"][0]
    assert found["signals"] == {}
    found = seen(blind, "cuda:0", throttle="NVML: Driver Not Loaded")
    assert found["verdict"] == "unknown"
    assert "Driver Not Loaded" in found["notes"][0]
    assert seen([])["verdict"] == "unknown"
    found = seen(gpu([]), "cuda:0", gpu_others="in a container")
    assert found["verdict"] == "unknown"
    assert found["notes"] == ["whether others are on the GPU cannot be seen: in a container"]
    assert seen(gpu([], gpu_others=[]), "cuda:0", gpu_others="not yet")["verdict"] == "clean"


def test_a_reason_is_kept_only_for_what_was_not_seen() -> None:
    found = seen(cpu(), others_cores="not yet", power_w="no NVML")
    assert found["absent"] == {"power_w": "no NVML"}


def test_a_stretch_shorter_than_a_sample_is_judged_by_its_neighbourhood() -> None:
    found = summarise(cpu(others=1.0), 104.01, 104.03, "cpu", {})
    assert found["verdict"] == "disturbed"
    assert found["samples"] > 0


def test_the_strip_is_thin_and_keeps_dips_and_reasons() -> None:
    samples = [
        Sample(s.t, gauges={"sm_clock_mhz": 900.0 if 104 <= s.t <= 106 else 1900.0},
               throttle=["thermal"] if 104 <= s.t <= 106 else [])
        for s in gpu([])
    ]  # fmt: skip
    drawn = strip(samples, T0, T1, 20)
    assert len(drawn["t_s"]) == 20
    assert len(drawn["sm_clock_mhz"]) == len(drawn["throttle"]) == 20
    assert min(drawn["sm_clock_mhz"]) == 900.0
    assert ["thermal"] in drawn["throttle"]
    assert "power_w" not in drawn
    assert strip([], T0, T1, 20) == {"t_s": []}
    with pytest.raises(ValueError, match="at least 1"):
        strip(samples, T0, T1, 0)


def test_the_strip_of_a_counter_is_its_rate() -> None:
    drawn = strip(cpu(others=0.5), T0, T1, 10)
    assert drawn["others_cores"] == [pytest.approx(0.5, rel=0.01)] * 10
