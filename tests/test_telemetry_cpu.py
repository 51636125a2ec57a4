"""What the processor tells is read from a made-up /proc and /sys, so that every answer is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnbench.measure.kernel_files import core_list
from attnbench.measure.telemetry_cpu import CpuProbe

HZ = 100
WORKER = 500


class Machine:
    """A tree of files like the kernel's; two cores, unless told otherwise."""

    def __init__(self, root: Path, cores: int = 2) -> None:
        self.root, self.cores = root, cores
        self.busy = [0] * cores  # ticks
        self.stolen = [0] * cores
        self.processes: dict[int, tuple[str, int, int, int, int]] = {}
        (root / "proc").mkdir()
        self.write("proc/loadavg", "1.50 1.00 0.50 2/100 999\n")
        self.write("proc/cpuinfo", "flags : fpu sse\n")
        self.add(WORKER, "attnbench worker")
        self.settle()

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def add(
        self,
        pid: int,
        name: str,
        *,
        parent: int = 1,
        session: int = 1,
        own: int = 0,
        children: int = 0,
    ) -> None:
        session = pid if pid == WORKER else session
        self.processes[pid] = (name, parent, session, own, children)

    def settle(self, wait_ns: int = 0, allowed: str = "0-63") -> None:
        lines = ["cpu  0 0 0 0 0 0 0 0 0 0"]
        lines += [
            f"cpu{c} {self.busy[c]} 0 0 100 0 0 0 {self.stolen[c]} 0 0" for c in range(self.cores)
        ]
        self.write("proc/stat", "\n".join([*lines, "intr 12", ""]))
        for pid, (name, parent, session, own, children) in self.processes.items():
            self.write(
                f"proc/{pid}/stat",
                f"{pid} ({name}) S {parent} {session} {session} 0 -1 0 0 0 0 0 "
                f"{own} 0 {children} 0 20 0 1 0\n",
            )
        self.write(f"proc/{WORKER}/schedstat", f"1000 {wait_ns} 7\n")
        self.write(f"proc/{WORKER}/task/{WORKER}/status", f"Cpus_allowed_list:\t{allowed}\n")

    def run(self, pid: int, seconds: float, core: int = 0) -> None:
        name, parent, session, own, children = self.processes[pid]
        ticks = round(seconds * HZ)
        self.processes[pid] = (name, parent, session, own + ticks, children)
        self.busy[core] += ticks


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def probe_of(machine: Machine) -> CpuProbe:
    probe = CpuProbe(machine.root, HZ)
    probe.watch(WORKER)
    probe.read()
    probe.scan()
    return probe


def grown(probe: CpuProbe, machine: Machine, **settled: object) -> dict[str, float]:
    before = dict(probe.counters)
    machine.settle(**settled)  # type: ignore[arg-type]
    probe.read()
    return {name: value - before.get(name, 0.0) for name, value in probe.counters.items()}


def test_what_the_worker_did_not_do_was_done_by_others(machine: Machine) -> None:
    machine.add(600, "python")
    machine.settle()
    probe = probe_of(machine)
    machine.run(WORKER, 1.0, core=0)
    machine.run(600, 0.4, core=1)
    seen = grown(probe, machine)
    assert seen["busy_s"] == pytest.approx(1.4)
    assert seen["worker_s"] == pytest.approx(1.0)
    assert seen["others_s"] == pytest.approx(0.4)
    assert probe.busy == {}
    probe.scan()
    assert probe.busy == {"python": pytest.approx(0.4)}


def test_children_of_the_worker_are_not_others(machine: Machine) -> None:
    machine.add(501, "compiler", parent=WORKER)
    machine.add(502, "orphan of the worker", parent=1, session=WORKER)
    machine.settle()
    probe = probe_of(machine)
    assert probe.tree == {WORKER, 501, 502}
    machine.run(501, 0.5)
    machine.run(502, 0.25, core=1)
    seen = grown(probe, machine)
    assert seen["others_s"] == pytest.approx(0.0)
    probe.scan()
    assert probe.busy == {}


def test_a_process_that_begins_between_two_looks_counts_with_all_it_did(machine: Machine) -> None:
    probe = probe_of(machine)
    machine.add(700, "make (all)")
    machine.run(700, 0.3)
    assert grown(probe, machine)["others_s"] == pytest.approx(0.3)
    probe.scan()
    assert probe.busy == {"make (all)": pytest.approx(0.3)}


def test_work_on_cores_that_the_worker_may_not_use_is_nobodys_business(machine: Machine) -> None:
    machine.add(600, "python")
    machine.settle(allowed="0")
    probe = probe_of(machine)
    assert probe.cores == 1
    machine.run(600, 1.0, core=1)
    assert grown(probe, machine, allowed="0")["others_s"] == pytest.approx(0.0)


def test_stolen_time_and_waiting_are_counted(machine: Machine) -> None:
    probe = probe_of(machine)
    machine.stolen[1] += 30
    seen = grown(probe, machine, wait_ns=250_000_000)
    assert seen["steal_s"] == pytest.approx(0.3)
    assert seen["wait_s"] == pytest.approx(0.25)


def test_a_fresh_worker_begins_at_nothing(machine: Machine) -> None:
    probe = probe_of(machine)
    machine.add(900, "attnbench worker", own=500)
    machine.settle()
    machine.write("proc/900/schedstat", "1000 5000000000 7\n")
    probe.watch(900)
    before = dict(probe.counters)
    probe.read()
    assert probe.counters.get("worker_s", 0.0) == before.get("worker_s", 0.0)
    assert probe.counters.get("wait_s", 0.0) == before.get("wait_s", 0.0)


def test_the_clock_is_that_of_the_busy_cores(machine: Machine) -> None:
    for core, khz in ((0, 800_000), (1, 3_400_000)):
        machine.write(f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq", f"{khz}\n")
    probe = probe_of(machine)
    machine.run(WORKER, 1.0, core=1)
    grown(probe, machine)
    assert probe.gauges["cpu_frequency_mhz"] == 3400


def test_the_clock_of_cpuinfo_counts_only_where_it_is_measured(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    clocks = "processor : 0\ncpu MHz : 2100.0\nprocessor : 1\ncpu MHz : 3300.0\n"
    machine.write("proc/cpuinfo", f"{clocks}flags : fpu\n")
    probe = probe_of(machine)
    machine.run(WORKER, 1.0, core=1)
    grown(probe, machine)
    assert "cpu_frequency_mhz" not in probe.gauges
    assert "constant" in probe.absent["cpu_frequency_mhz"]
    machine.write("proc/cpuinfo", f"{clocks}flags : fpu aperfmperf\n")
    probe = probe_of(machine)
    machine.run(WORKER, 1.0, core=1)
    grown(probe, machine)
    assert probe.gauges["cpu_frequency_mhz"] == 3300


def test_temperature_load_and_throttle_events_are_read(machine: Machine) -> None:
    machine.write("sys/class/hwmon/hwmon0/name", "nvme\n")
    machine.write("sys/class/hwmon/hwmon1/name", "k10temp\n")
    machine.write("sys/class/hwmon/hwmon1/temp1_input", "61500\n")
    for core in (0, 1):
        path = f"sys/devices/system/cpu/cpu{core}/thermal_throttle/core_throttle_count"
        machine.write(path, "3\n")
    probe = probe_of(machine)
    assert probe.gauges["cpu_temperature_c"] == 61.5
    assert probe.gauges["load_1min"] == 1.5
    assert probe.counters["throttle_events"] == 6


def test_what_a_machine_does_not_tell_is_absent_with_the_reason(tmp_path: Path) -> None:
    probe = CpuProbe(tmp_path, HZ)  # not even a /proc
    probe.watch(WORKER)
    probe.read()
    probe.scan()
    assert probe.gauges == {}
    assert probe.counters == {}
    assert probe.cores is None
    for signal in ("others_cores", "busy_cores", "steal_cores"):
        assert "proc/stat cannot be read: No such file" in probe.absent[signal]
    assert "No such file" in probe.absent["load_1min"]
    assert "hwmon" in probe.absent["cpu_temperature_c"]


def test_counters_that_never_move_are_not_taken_for_an_idle_machine(machine: Machine) -> None:
    machine.write("proc/stat", "cpu 0 0 0 0 0 0 0 0\ncpu0 0 0 0 0 0 0 0 0 0 0\n")
    machine.write(f"proc/{WORKER}/schedstat", "0 0 0\n")
    probe = CpuProbe(machine.root, HZ)
    probe.watch(WORKER)
    probe.read()
    assert "others_s" not in probe.counters
    assert "counts nothing" in probe.absent["others_cores"]


def test_a_kernel_that_does_not_count_waiting_says_so(machine: Machine) -> None:
    probe = probe_of(machine)
    machine.write(f"proc/{WORKER}/schedstat", "0 0 0\n")
    probe.read()
    assert "does not count" in probe.absent["wait_share"]


def test_without_its_worker_the_others_cannot_be_told(machine: Machine) -> None:
    probe = CpuProbe(machine.root, HZ)
    probe.read()
    assert probe.absent["others_cores"] == "no worker is watched yet"
    probe.watch(12345)
    probe.read()
    assert probe.absent["others_cores"] == "the worker is gone"
    assert "others_s" not in probe.counters


@pytest.mark.parametrize(
    ("text", "cores"), [("0-2,5", [0, 1, 2, 5]), ("3\n", [3]), ("", []), ("\t0-1", [0, 1])]
)
def test_lists_of_cores_are_read(text: str, cores: list[int]) -> None:
    assert core_list(text) == cores
