"""A sound instrument passes every check; one that is broken fails in the row that names it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from attnbench.compare import Comparison, compare
from attnbench.measure import (
    sampling,
    selftest_check,
    selftest_cpu,
    selftest_energy,
    selftest_gate,
    selftest_memory,
)
from attnbench.measure.clock import Call, HostClock, LoopTimer, clock_for
from attnbench.measure.memory import peak_memory
from attnbench.measure.sampling import Taken, sample
from attnbench.measure.selftest import checks_for
from attnbench.measure.selftest_check import Check, Instrument, ask, judged
from attnbench.record import Memory
from attnbench.runs import Run
from attnbench.selftest import Row

CPU = torch.device("cpu")
ALLOCATIONS = {"allocation of 1 MiB", "allocation of 64 MiB", "peak of several"}
KNOWN_TIMES = {"wait 100 µs", "wait 1 ms", "wait 10 ms", "16 waits in a row", "CPU time"}


class Machine:
    """A clock and the machine that it is the clock of: time passes only in calls and waits.

    It also stands in for the module ``time`` of the budgets.
    """

    name = "simulated"
    resolution_s = 50e-6
    host = None
    method = "simulated"
    cache = "warm"

    def timer(self, work):
        return LoopTimer(self, work)

    def __init__(self, *, launch_s: float = 1e-7) -> None:
        self.now_s = 0.0
        self.launch_s = launch_s  # of a wait, beyond its length

    def perf_counter(self) -> float:
        return self.now_s

    monotonic = perf_counter

    def time(self, call: Call, calls: int) -> float:
        start_s = self.now_s
        for _ in range(calls):
            self.now_s += 2e-8
            call()
        return (self.now_s - start_s) / calls

    def synchronize(self) -> None:
        pass

    def wait(self, ns: int) -> None:
        self.now_s += ns / 1e9 + self.launch_s

    def cpu_ns(self) -> int:
        self.now_s += 2e-7
        return round(self.now_s * 1e9)

    def work(self) -> None:
        self.now_s += 1e-3

    def subject(self, device: torch.device, seed: int) -> Call:
        """An implementation of a millisecond, give or take half a percent."""
        draw = random.Random(seed)

        def call() -> None:
            self.now_s += 1e-3 * draw.gauss(1, 0.005)

        return call


class Fast(Machine):
    """Two percent off."""

    def time(self, call: Call, calls: int) -> float:
        return super().time(call, calls) * 0.98


class Forgetful(Machine):
    """Loses one call of several."""

    def time(self, call: Call, calls: int) -> float:
        return super().time(call, max(1, calls - 1)) * max(1, calls - 1) / calls


class Miscounting(Machine):
    """Divides by one call too many, where there are several."""

    def time(self, call: Call, calls: int) -> float:
        return super().time(call, calls) * calls / (calls + (calls > 1))


class Slow(Machine):
    """Takes 5 µs to read the time."""

    def time(self, call: Call, calls: int) -> float:
        return super().time(call, calls) + 5e-6 / calls


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest_check, "_PAUSE_S", 0.0)


def on(machine: Machine, monkeypatch: pytest.MonkeyPatch, **parts: Any) -> Instrument:
    """An instrument with the clock of a machine, and other parts of its own."""
    monkeypatch.setattr(sampling, "time", machine)
    monkeypatch.setattr(selftest_gate, "time", machine)
    return Instrument(CPU, machine, **parts)


def failed(checks: Iterable[Check], instrument: Instrument) -> set[str]:
    """Names of the rows that failed, of checks that are asked once."""
    rows = [ask(replace(check, attempts=1), instrument) for check in checks]
    assert all(row.reason for row in rows if row.measured is None), "no answer and no reason"
    return {row.check for row in rows if row.status == "failed"}


def clock_checks(machine: Machine) -> Sequence[Check]:
    """Those of the host clock; the CPU time is simulated too."""
    *checks, last = selftest_cpu.checks(machine.wait)
    assert last.name == "CPU time"

    def cpu_time(instrument: Instrument) -> Row:
        return selftest_cpu.cpu_time(instrument, machine.cpu_ns, machine.work)

    return [*checks, Check(last.name, cpu_time)]


def test_every_question_of_a_cpu_has_a_name_of_its_own() -> None:
    names = [check.name for check in checks_for(CPU)]
    assert len(set(names)) == len(names)
    assert {"empty call", "A/A", "+3% found", "energy", *KNOWN_TIMES, *ALLOCATIONS} <= set(names)


# ---- clocks ------------------------------------------------------------------------------


def test_a_sound_clock_passes_and_short_waits_are_only_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine()
    instrument = on(machine, monkeypatch)
    rows = {check.name: ask(check, instrument) for check in clock_checks(machine)}
    passed = {"empty call", "calls counted", *KNOWN_TIMES}
    assert {name for name, row in rows.items() if row.status == "passed"} == passed
    shown = {f"wait {us} µs" for us in (2, 5, 10, 20, 50)}
    assert {name for name, row in rows.items() if row.status == "shown"} == shown
    for name, row in rows.items():
        assert row.check == name
        assert row.error is not None
        assert not row.reason
    assert rows["wait 1 ms"].error == pytest.approx(1.2e-7, rel=0.01)


@pytest.mark.parametrize(
    ("broken", "caught"),
    [
        (Fast, KNOWN_TIMES),
        (Forgetful, {"calls counted", "16 waits in a row"}),
        (Miscounting, {"16 waits in a row"}),
        (Slow, {"wait 100 µs"}),
    ],
)
def test_a_broken_clock_is_caught_by_name(
    broken: type[Machine], caught: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = broken()
    assert failed(clock_checks(machine), on(machine, monkeypatch)) == caught


def test_an_instrument_that_adds_to_every_call_is_caught_by_the_empty_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine()
    instrument = on(machine, monkeypatch)

    def time(call: Call, calls: int) -> float:
        return Machine.time(machine, call, calls) + 2e-6

    monkeypatch.setattr(machine, "time", time)
    assert failed(clock_checks(machine), instrument) >= {"empty call", "wait 100 µs"}


def test_a_sampling_that_halves_what_the_clock_told_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine()

    def halves(*words: Any) -> Mapping[Any, Taken]:
        taken = sample(*words)
        for one in taken.values():
            one.rounds = [[t / 2 for t in r] for r in one.rounds]
        return taken

    instrument = on(machine, monkeypatch, sample=halves)
    caught = failed(clock_checks(machine), instrument)
    assert caught == KNOWN_TIMES - {"16 waits in a row"}, "that row asks the clock alone"


def test_a_coarse_cpu_clock_is_not_here_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    ticks = iter(range(0, 10**12, 4_000_000))
    row = selftest_cpu.cpu_time(on(machine, monkeypatch), lambda: next(ticks), machine.work)
    assert row.status == "not here"
    assert row.reason == "the kernel accounts for it in steps of 4 ms"


def test_a_wait_never_ends_before_its_time() -> None:
    readings = iter(range(0, 10_000, 300))
    last = 0

    def now_ns(clock: int) -> int:
        nonlocal last
        last = next(readings)
        return last

    selftest_cpu.wait(1000, now_ns)
    assert last == 1200, "the first reading at which a microsecond is over"


def test_the_real_wait_is_no_shorter_by_the_clock_that_is_tested() -> None:
    times_s = [HostClock().time(lambda: selftest_cpu.wait(200_000), 1) for _ in range(5)]
    assert min(times_s) > 199e-6, "NTP may slew a clock by 0.05 %"


# ---- the gate ----------------------------------------------------------------------------


def gate_checks(machine: Machine) -> Sequence[Check]:
    return selftest_gate.checks(machine.wait, machine.subject)


def says(verdict: str) -> Callable[..., Comparison]:
    """A comparison in which every point has one verdict."""

    def judge(base: Run, new: Run, *, threshold: float) -> Comparison:
        found = compare(base, new, threshold=threshold)
        points = tuple(replace(point, verdict=verdict) for point in found.points)
        return replace(found, points=points)

    return judge


def test_the_real_gate_finds_three_percent_and_nothing_where_nothing_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine()
    instrument = on(machine, monkeypatch)
    equal, slow = (ask(check, instrument) for check in gate_checks(machine))
    assert (equal.status, equal.measured) == ("passed", 0)
    assert (slow.status, slow.expected, slow.measured) == ("passed", 20, 20)
    assert "20 pairs" in slow.reason
    assert "ratio 1.0" in slow.reason


@pytest.mark.parametrize(
    ("verdict", "caught"),
    [
        ("SLOWER", {"A/A"}),
        ("FASTER", {"A/A", "+3% found"}),
        ("SAME", {"+3% found"}),
        ("INCONCLUSIVE", {"+3% found"}),
        ("NOT COMPARABLE", {"+3% found"}),
    ],
)
def test_a_gate_that_always_says_the_same_is_caught_by_name(
    verdict: str, caught: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine()
    instrument = on(machine, monkeypatch, compare=says(verdict))
    assert failed(gate_checks(machine), instrument) == caught


def test_a_sampling_that_mixes_up_names_finds_no_slow_twin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine()

    def mixed(calls: Mapping[Any, Call], *words: Any) -> Mapping[Any, Taken]:
        first = next(iter(calls.values()))
        return sample(dict.fromkeys(calls, first), *words)

    instrument = on(machine, monkeypatch, sample=mixed)
    assert failed(gate_checks(machine), instrument) == {"+3% found"}


def test_a_machine_too_slow_for_twenty_pairs_is_judged_by_those_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Crawling(Machine):
        def subject(self, device: torch.device, seed: int) -> Call:
            return lambda: self.wait(200_000_000)

    machine = Crawling()
    row = ask(gate_checks(machine)[1], on(machine, monkeypatch))
    assert (row.status, row.expected, row.measured) == ("passed", 5, 5)


def test_what_is_compared_with_itself_is_a_real_attention() -> None:
    from torch.nn.functional import scaled_dot_product_attention

    assert selftest_gate._Sdpa().build(None, CPU) is scaled_dot_product_attention  # type: ignore[arg-type]
    selftest_gate.attention(CPU, seed=0)()


# ---- memory ------------------------------------------------------------------------------


def memory_rows(meter: Callable[..., Memory]) -> set[str]:
    return failed(selftest_memory.CHECKS, Instrument(CPU, Machine(), peak_memory=meter))


def test_the_real_meter_of_memory_passes() -> None:
    assert memory_rows(peak_memory) == set()


def changed(change: Callable[[int], int | None]) -> Callable[..., Memory]:
    def meter(call: Call, device: torch.device) -> Memory:
        told = peak_memory(call, device)
        assert told.peak_bytes is not None
        return Memory(peak_bytes=change(told.peak_bytes), method="broken")

    return meter


@pytest.mark.parametrize(
    ("meter", "caught"),
    [
        (changed(lambda size: size // 2), ALLOCATIONS),
        (changed(lambda size: round(size * 1.02)), ALLOCATIONS),
        (changed(lambda size: 40 << 20 if size == 24 << 20 else size), {"peak of several"}),
    ],
)
def test_a_broken_meter_of_memory_is_caught_by_name(
    meter: Callable[..., Memory], caught: set[str]
) -> None:
    assert memory_rows(meter) == caught


def test_a_peak_that_cannot_be_told_is_not_here_with_the_reason() -> None:
    instrument = Instrument(CPU, Machine(), peak_memory=changed(lambda size: None))
    rows = [ask(check, instrument) for check in selftest_memory.CHECKS]
    assert {row.status for row in rows} == {"not here"}
    assert rows[0].reason == "no peak of memory can be told: broken"


# ---- energy ------------------------------------------------------------------------------


class Socket:
    """A device of 300 W: the counter moves every 50 ms, in a share of the truth."""

    def __init__(self, counted: float = 1.0, stuck: bool = False) -> None:
        self.now = 0.0
        self._counted = 0.0 if stuck else counted

    def readings(self) -> selftest_energy.Readings:
        return selftest_energy.Readings(self.joules, lambda: 300.0, lambda: self.now)

    def joules(self) -> float:
        return 1e6 + self._counted * 300.0 * (self.now // 0.05) * 0.05

    def work(self) -> None:
        self.now += 0.007


@pytest.mark.parametrize(
    ("socket", "status"),
    [
        (Socket(), "passed"),
        (Socket(0.5), "failed"),
        (Socket(1.1), "failed"),
        (Socket(stuck=True), "not here"),
    ],
)
def test_the_counter_of_energy_is_held_against_the_power(socket: Socket, status: str) -> None:
    row = selftest_energy.compare_energy(socket.readings(), socket.work)
    assert row.status == status
    if status == "passed":
        assert row.expected == pytest.approx(1200, rel=0.03), "four seconds of 300 W"
    if status == "not here":
        assert row.reason == "the counter of energy does not move"


def test_energy_on_a_cpu_is_not_here_with_the_reason() -> None:
    row = ask(selftest_energy.CHECK, Instrument(CPU, Machine()))
    assert (row.status, row.measured) == ("not here", None)
    assert "a CPU reports no power" in row.reason


def test_energy_without_nvml_is_not_here_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(device: torch.device) -> selftest_energy.Readings:
        raise ImportError("No module named 'pynvml'")

    monkeypatch.setattr(selftest_energy, "_nvml", absent)
    row = ask(selftest_energy.CHECK, Instrument(torch.device("cuda"), Machine()))
    assert row.status == "not here"
    assert row.reason == "NVML: ImportError: No module named 'pynvml'"


# ---- asking ------------------------------------------------------------------------------


def answers(*measured: float) -> Check:
    told = iter(measured)
    return Check("sum", lambda instrument: judged("sum", 4.0, next(told), 0.1))


def test_a_disturbed_check_is_asked_again_and_says_so() -> None:
    row = ask(answers(5.0, 3.0, 4.0), Instrument(CPU, Machine()))
    assert row.status == "passed"
    assert row.reason.startswith("right at attempt 3; load average ")


def test_a_check_that_stays_wrong_fails_after_a_bounded_number_of_attempts() -> None:
    row = ask(answers(5.0, 5.0, 5.0, 5.0), Instrument(CPU, Machine()))
    assert (row.status, row.error) == ("failed", 1.0)
    assert row.reason.startswith("wrong at attempt 4; load average ")


def test_a_check_that_raises_fails_in_its_own_name() -> None:
    def broken(instrument: Instrument) -> Row:
        raise RuntimeError("no events")

    row = ask(Check("profiler", broken, attempts=1), Instrument(CPU, Machine()))
    assert (row.check, row.status, row.reason) == ("profiler", "failed", "RuntimeError: no events")


@pytest.mark.parametrize(("measured", "status"), [(4.1, "passed"), (3.8, "failed")])
def test_errors_count_in_both_directions_up_to_what_is_allowed(
    measured: float, status: str
) -> None:
    assert judged("sum", 4.0, measured, 0.125).status == status


# ---- the device clock --------------------------------------------------------------------

LAUNCH_S = 2.5e-6


def spin_checks(machine: Machine, kernels: float = 1.0) -> Sequence[Check]:
    """Those of the device clock; the profiler's and the host's times are simulated too."""
    cuda = pytest.importorskip("attnbench.measure.selftest_cuda", reason="needs triton")
    *checks, host, profiler = cuda.checks(machine.wait)
    assert (host.name, profiler.name) == ("host's clock", "profiler")

    def profiled(calls: Callable[[], None]) -> list[float]:
        return [2e-4 * kernels] * 20 if kernels else []

    return [
        *checks,
        Check(host.name, lambda i: cuda.host_clock(i, machine.wait, lambda: machine.now_s * 1e9)),
        Check(profiler.name, lambda i: cuda.profiler(i, machine.wait, profiled)),
    ]


def test_a_sound_device_clock_passes_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(launch_s=LAUNCH_S)
    rows = [ask(c, on(machine, monkeypatch)) for c in spin_checks(machine)]
    assert {row.status for row in rows} == {"passed"}
    waits = [row for row in rows if row.check.startswith("wait ")]
    assert len(waits) == 8
    assert next(row.expected for row in waits) == pytest.approx(2e-6 + LAUNCH_S, rel=0.01)


def test_a_device_clock_that_is_off_is_caught_by_spins_host_and_profiler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Off(Machine):
        def time(self, call: Call, calls: int) -> float:
            return super().time(call, calls) * 0.96

    machine = Off(launch_s=LAUNCH_S)
    caught = failed(spin_checks(machine), on(machine, monkeypatch))
    known = KNOWN_TIMES - {"CPU time"}
    assert caught - {"wait 50 µs"} == {*known, "host's clock", "profiler"}


def test_a_kernel_floor_that_hides_an_error_fails_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(launch_s=9e-6)
    assert failed(spin_checks(machine), on(machine, monkeypatch)) == {"empty kernel", "profiler"}


def test_a_profiler_that_sees_no_kernel_is_not_here_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine(launch_s=LAUNCH_S)
    row = ask(spin_checks(machine, kernels=0)[-1], on(machine, monkeypatch))
    assert row.status == "not here"
    assert "saw 0 of 20 kernels" in row.reason


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_the_real_device_clock_passes_on_this_gpu() -> None:
    device = torch.device("cuda:0")
    instrument = Instrument(device, clock_for(device))
    assert failed(checks_for(device), instrument) == set()
