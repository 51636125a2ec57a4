"""The sampler: a process of its own that sees, tells, and goes when its parent goes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from attnbench.measure.telemetry import Sampler, wait_until_cool
from attnbench.measure.telemetry_process import Pace
from attnbench.measure.telemetry_summary import Sample


@pytest.fixture
def sampler() -> Iterator[Sampler]:
    with Sampler("cpu", os.getpid(), rate_hz=50.0) as opened:
        yield opened


def wait_for_samples(sampler: Sampler, count: int) -> None:
    deadline = time.monotonic() + 30
    while len(sampler.samples()) < count:
        assert time.monotonic() < deadline, "the sampler tells nothing"
        time.sleep(0.02)


def test_it_sees_the_machine_from_outside_and_counts_its_own_cost(sampler: Sampler) -> None:
    wait_for_samples(sampler, 60)
    first, *_, last = sampler.samples()
    seen = sampler.window(first.t, last.t)
    assert seen["samples"] >= 60
    assert seen["signals"]["sampler_cores"]["mean"] < 0.5
    assert set(seen["signals"]) | set(seen["absent"]) >= {
        "others_cores", "steal_cores", "cpu_frequency_mhz", "cpu_temperature_c",
    }  # fmt: skip
    assert all(isinstance(why, str) and why for why in seen["absent"].values())


def test_samples_since_a_time_are_those_and_no_others(sampler: Sampler) -> None:
    wait_for_samples(sampler, 20)
    every = sampler.samples()
    assert [s.t for s in every] == sorted(s.t for s in every)
    middle = every[10].t
    since = sampler.samples(middle)
    assert since[0].t == middle
    assert [s.t for s in since[:10]] == [s.t for s in every[10:20]]


def test_its_death_is_told_and_costs_nothing_else() -> None:
    with Sampler("cpu", rate_hz=50.0) as sampler:
        wait_for_samples(sampler, 3)
        sampler._process.send_signal(signal.SIGKILL)
        sampler._process.wait()
        sampler.watch(1)
        seen = sampler.window(time.monotonic() + 5, time.monotonic() + 6)
        assert seen["verdict"] == "unknown"
        assert "the sampler ended (code -9)" in seen["absent"]["sampler"]
    sampler.close()


def test_a_gpu_that_cannot_be_seen_is_unknown_with_the_reason() -> None:
    with Sampler("cuda:0", os.getpid(), rate_hz=50.0) as sampler:
        wait_for_samples(sampler, 5)
        seen = sampler.window(*(sampler.samples()[i].t for i in (0, -1)))
    assert seen["verdict"] == "unknown"
    assert "not known which of NVML's GPUs" in seen["notes"][0]


def test_it_does_not_outlive_a_killed_parent() -> None:
    code = (
        "import time\n"
        "from attnbench.measure.telemetry import Sampler\n"
        "print(Sampler('cpu')._process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 30
    while os.path.exists(f"/proc/{pid}/exe") and _is_alive(pid):
        assert time.monotonic() < deadline, "the sampler outlived its parent"
        time.sleep(0.05)


def _is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


# ---- pace --------------------------------------------------------------------------------


def test_a_dear_look_is_taken_less_often() -> None:
    pace = Pace(period_s=1.0, share=0.01)
    pace.took(began=10.0, cost_s=0.001)
    assert pace.due == 11.0
    pace.took(began=11.0, cost_s=0.05)
    assert pace.due == 16.0


# ---- cooling -----------------------------------------------------------------------------


class Gpu:
    """Cools by a degree a second from 90 °C; hot (throttled) while above ``hot_c``."""

    def __init__(self, hot_c: float = 87.0, tells: bool = True, cools: bool = True) -> None:
        self.t, self.hot_c, self.tells, self.cools = 0.0, hot_c, tells, cools

    def now(self) -> float:
        return self.t

    def sleep(self, seconds: float) -> None:
        self.t += seconds

    def samples(self) -> list[Sample]:
        degrees = 90 - self.t * self.cools
        throttle = ["hw_thermal"] if degrees > self.hot_c else []
        return [Sample(self.t, {"gpu_temperature_c": degrees} if self.tells else {},
                       throttle=throttle)]  # fmt: skip

    def wait(self, limit_s: float = 60.0) -> float:
        return wait_until_cool(self.samples, limit_s, self.sleep, self.now)


def test_it_waits_until_eight_degrees_less() -> None:
    assert Gpu().wait() == pytest.approx(8.0, abs=0.5)


def test_without_a_temperature_it_waits_for_ten_quiet_seconds() -> None:
    assert Gpu(tells=False).wait() == pytest.approx(3 + 10, abs=0.5)


def test_it_does_not_wait_for_ever() -> None:
    assert Gpu(cools=False).wait(20.0) == pytest.approx(20.0, abs=0.5)
