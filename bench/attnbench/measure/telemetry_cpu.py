"""What Linux tells about the processor: clock, temperature, load, and who takes the time.

``/proc/stat`` counts what all processes did on the cores that the worker may use;
the worker's own processes are subtracted, and what is left was done by others. Nothing is
taken for measured that is not: a virtual machine's ``cpu MHz`` is a constant, so there the
frequency is absent.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from attnbench.measure.kernel_files import core_list, numbers, read, read_or_none

_MOST_CORES_READ = 8  # clocks read a sample; each is a file
_MOST_THREADS_READ = 64  # looked at to learn which cores the worker may use
_BUSY_SHARE = 0.5  # of what the busiest core does; the clock of one that does less tells nothing
_LEAST_OFFENCE = 0.02  # of a core; processes that use less are not named
_FROM_PROC_STAT = ("others_cores", "busy_cores", "steal_cores")
_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal")


@dataclass(frozen=True)
class _Process:
    """A line of ``/proc/PID/stat``."""

    pid: int
    name: str
    parent: int
    session: int
    cpu_s: float  # its own
    family_s: float  # its own and that of children it has waited for


class CpuProbe:
    """Reads the processor's state.

    Args:
        root: where ``proc`` and ``sys`` are.
        ticks: of the kernel's clock a second; None asks the system.

    Attributes:
        gauges, counters, busy: what was seen last (see ``telemetry_summary.Sample``).
        absent: reasons of what cannot be seen.
        tree: the worker and all its descendants.
        cores: how many cores the worker may use.
    """

    def __init__(self, root: Path = Path("/"), ticks: int | None = None) -> None:
        self._proc, self._cpus = str(root / "proc"), str(root / "sys/devices/system/cpu")
        self._tick_s = 1 / (ticks or os.sysconf("SC_CLK_TCK"))
        self.gauges: dict[str, float] = {}
        self.counters: dict[str, float] = {}
        self.busy: dict[str, float] = {}
        self.absent: dict[str, str] = {}
        self.tree: frozenset[int] = frozenset()
        self._worker: int | None = None
        self._allowed: frozenset[int] | None = None  # None: all
        self._last_core_s: dict[int, tuple[float, float]] = {}  # busy and stolen, by core
        self._last_worker_s: float | None = None
        self._last_wait_s: float | None = None
        self._last_cpu_s: dict[int, float] = {}  # by process
        self._busiest: list[int] = []
        self._clock_source = self._find_clock()
        self._sensor = self._find_sensor(root / "sys/class/hwmon")

    @property
    def cores(self) -> int | None:
        """How many cores the worker may use."""
        return len(self._cores_used()) or None

    def watch(self, pid: int | None) -> None:
        """Whose time is not that of others; None: nobody's yet."""
        self._worker = pid
        self.tree = frozenset() if pid is None else frozenset({pid})
        self._last_worker_s = self._last_wait_s = None
        if pid is not None:
            self._look_at_worker(self._processes())

    def read(self) -> None:
        """Look at what changes fast: processor time, clocks."""
        self.gauges, self.busy = {}, {}
        self._read_time()
        clock = self._read_clock()
        if clock is not None:
            self.gauges["cpu_frequency_mhz"] = clock

    def scan(self) -> None:
        """Look at what costs more: all processes, temperature, load, throttle events."""
        processes = {p.pid: p for p in self._processes()}
        if self._worker is not None:
            self._look_at_worker(processes.values())
        self._find_offenders(processes)
        self._read_slow_gauges()

    def _look_at_worker(self, processes: Iterable[_Process]) -> None:
        """Which processes are the worker's, and where they may run."""
        assert self._worker is not None
        self.tree = frozenset(_tree(self._worker, processes))
        self._allowed = self._cores_allowed()

    # ---- processor time --------------------------------------------------------------

    def _read_time(self) -> None:
        if self._worker is not None:
            self._add_wait()
        cores = self._core_seconds()
        if cores is None:
            return
        mine = self._cores_used(cores)
        busy_s = stolen_s = 0.0
        grown = {}
        for core in mine:
            last = self._last_core_s.get(core, cores[core])
            grown[core] = cores[core][0] - last[0]
            busy_s += grown[core]
            stolen_s += cores[core][1] - last[1]
        self._busiest = _busiest(grown)
        self._last_core_s = cores
        self._add("busy_s", busy_s)
        self._add("steal_s", stolen_s)
        worker_s = self._worker_growth()
        if worker_s is not None:
            # Not clamped: the kernel books both by the tick, and errors cancel over time.
            self._add("others_s", busy_s - worker_s)
            self._add("worker_s", worker_s)

    def _add(self, counter: str, growth: float) -> None:
        self.counters[counter] = self.counters.get(counter, 0.0) + growth

    def _core_seconds(self) -> dict[int, tuple[float, float]] | None:
        """Seconds each core was busy, and seconds the hypervisor took, since it booted."""
        text = self._text(f"{self._proc}/stat", *_FROM_PROC_STAT)
        if text is None:
            return None
        cores, is_counted = {}, False
        for line in text.splitlines():
            name, *numbers = line.split()
            if not name.startswith("cpu"):
                break
            if name != "cpu":
                user, nice, system, idle, _iowait, irq, softirq, steal = map(int, numbers[:8])
                ticks = user + nice + system + irq + softirq
                is_counted = is_counted or ticks + idle > 0
                cores[int(name[3:])] = (ticks * self._tick_s, steal * self._tick_s)
        if not is_counted:  # gVisor shows nothing but zeros
            why = f"{self._proc}/stat counts nothing here"
            self.absent.update(dict.fromkeys(_FROM_PROC_STAT, why))
            return None
        return cores

    def _cores_used(self, known: Iterable[int] | None = None) -> frozenset[int]:
        known = frozenset(self._last_core_s if known is None else known)
        return known & self._allowed if self._allowed is not None else known

    def _worker_growth(self) -> float | None:
        """Seconds the worker's processes used since the last look; None at first."""
        if self._worker is None:
            self.absent["others_cores"] = "no worker is watched yet"
            return None
        found = [p for p in map(self._process, self.tree) if p is not None]
        if not any(p.pid == self._worker for p in found):
            self.absent["others_cores"] = "the worker is gone"
            self._last_worker_s = None
            return None
        now_s, last_s = sum(p.family_s for p in found), self._last_worker_s
        self._last_worker_s = now_s
        # It shrinks only when a child ends that nobody waits for; its time was booked before.
        return None if last_s is None else max(0.0, now_s - last_s)

    def _add_wait(self) -> None:
        """How long the worker's main thread was ready to run, but had no core."""
        text = self._text(f"{self._proc}/{self._worker}/schedstat", "wait_share")
        if text is None:
            return
        fields = text.split()
        if len(fields) < 2 or fields[0] == "0":
            self.absent["wait_share"] = "this kernel does not count how long a process waits"
            return
        wait_s = int(fields[1]) / 1e9
        if self._last_wait_s is not None:
            self._add("wait_s", wait_s - self._last_wait_s)
        self._last_wait_s = wait_s

    def _cores_allowed(self) -> frozenset[int] | None:
        """Cores on which any of the worker's threads may run (each may be pinned to its own)."""
        allowed: set[int] = set()
        folder = f"{self._proc}/{self._worker}/task"
        for thread in numbers(folder)[:_MOST_THREADS_READ]:
            text = read_or_none(f"{folder}/{thread}/status") or ""
            for line in text.splitlines():
                if line.startswith("Cpus_allowed_list:"):
                    allowed.update(core_list(line.partition(":")[2]))
        return frozenset(allowed) or None

    # ---- processes -------------------------------------------------------------------

    def _processes(self) -> Iterator[_Process]:
        for pid in numbers(self._proc):
            process = self._process(pid)
            if process is not None:
                yield process

    def _process(self, pid: int) -> _Process | None:
        text = read_or_none(f"{self._proc}/{pid}/stat")
        if text is None:
            return None
        # The name is in brackets and may hold anything, brackets and spaces too.
        head, _, tail = text.rpartition(")")
        fields = tail.split()
        name = head.partition("(")[2]
        printable = "".join(letter if letter.isprintable() else "?" for letter in name)
        own, waited_for = sum(map(int, fields[11:13])), sum(map(int, fields[13:15]))
        return _Process(
            pid=pid,
            name=printable,
            parent=int(fields[1]),
            session=int(fields[3]),
            cpu_s=own * self._tick_s,
            family_s=(own + waited_for) * self._tick_s,
        )

    def _find_offenders(self, processes: dict[int, _Process]) -> None:
        """Seconds that processes other than the worker's used since the last scan, by name."""
        last, self._last_cpu_s = self._last_cpu_s, {pid: p.cpu_s for pid, p in processes.items()}
        if not last:
            return
        for pid, p in processes.items():
            if pid in self.tree or pid == os.getpid():
                continue
            growth = p.cpu_s - last.get(pid, 0.0)  # one that is new has used all it has since then
            if growth >= _LEAST_OFFENCE:
                self.busy[p.name] = round(self.busy.get(p.name, 0.0) + growth, 4)

    # ---- clock, temperature, load ----------------------------------------------------

    def _find_clock(self) -> str | None:
        """Where the cores' real clocks can be read: ``cpufreq``, ``cpuinfo`` or nowhere."""
        if os.path.exists(f"{self._cpus}/cpu0/cpufreq/scaling_cur_freq"):
            return "cpufreq"
        flags = read_or_none(f"{self._proc}/cpuinfo") or ""
        if "aperfmperf" in flags.split():
            return "cpuinfo"
        self.absent["cpu_frequency_mhz"] = (
            "no cpufreq and no aperfmperf here (a virtual machine?); "
            "what /proc/cpuinfo shows then is a constant"
        )
        return None

    def _read_clock(self) -> float | None:
        """Mean clock of the cores that are at work; idle cores tell nothing."""
        if self._clock_source is None or not self._busiest:
            return None
        if self._clock_source == "cpuinfo":
            clocks = self._cpuinfo_clocks()
            found = [clocks[core] for core in self._busiest if core in clocks]
        else:
            files = (f"{self._cpus}/cpu{c}/cpufreq/scaling_cur_freq" for c in self._busiest)
            found = [int(text) / 1000 for text in map(read_or_none, files) if text]
        return sum(found) / len(found) if found else None

    def _cpuinfo_clocks(self) -> dict[int, float]:
        clocks, core = {}, -1
        for line in (read_or_none(f"{self._proc}/cpuinfo") or "").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "processor":
                core = int(value)
            elif name.strip() == "cpu MHz":
                clocks[core] = float(value)
        return clocks

    def _find_sensor(self, folder: Path) -> str | None:
        for name in sorted(folder.glob("hwmon*/name")):
            if (read_or_none(str(name)) or "").strip() in _SENSORS:
                return str(name.parent / "temp1_input")
        self.absent["cpu_temperature_c"] = f"no sensor among {', '.join(_SENSORS)} in hwmon"
        return None

    def _read_slow_gauges(self) -> None:
        load = self._text(f"{self._proc}/loadavg", "load_1min")
        if load:
            self.gauges["load_1min"] = float(load.split()[0])
        degrees = self._text(self._sensor, "cpu_temperature_c") if self._sensor else None
        if degrees:
            self.gauges["cpu_temperature_c"] = int(degrees) / 1000
        cores = self._cores_used()
        files = (f"{self._cpus}/cpu{c}/thermal_throttle/core_throttle_count" for c in cores)
        counts = [int(text) for text in map(read_or_none, files) if text]
        if counts:
            self.counters["throttle_events"] = sum(counts)
        else:
            self.absent["throttle_events"] = "this processor's driver counts none"

    def _text(self, path: str, *signals: str) -> str | None:
        """A file's text; where it cannot be read, that is why the signals are absent."""
        try:
            text = read(path)
        except OSError as error:
            why = f"{path} cannot be read: {error.strerror}"
            self.absent.update(dict.fromkeys(signals, why))
            return None
        for signal in signals:
            self.absent.pop(signal, None)
        return text


def _busiest(busy_s: dict[int, float]) -> list[int]:
    """The cores that did most since the last look, without those that did little."""
    most = max(busy_s.values(), default=0.0)
    order = sorted(busy_s, key=lambda core: -busy_s[core])
    return [c for c in order[:_MOST_CORES_READ] if most and busy_s[c] >= _BUSY_SHARE * most]


def _tree(worker: int, processes: Iterable[_Process]) -> set[int]:
    """The worker, what it started, and whoever shares its session.

    By the session too, because a child whose parent has ended is handed to somebody else.
    """
    children: dict[int, list[int]] = {}
    tree, todo = {worker}, [worker]
    for process in processes:
        children.setdefault(process.parent, []).append(process.pid)
        if process.session == worker:
            todo.append(process.pid)
    while todo:
        pid = todo.pop()
        tree.add(pid)
        todo += [child for child in children.get(pid, []) if child not in tree]
    return tree
