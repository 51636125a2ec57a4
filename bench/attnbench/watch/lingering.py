"""Who still works after a call has returned: threads of Python, streams of the device.

On a CPU a thread is at work if its own CPU clock goes on. Only Python's threads are asked:
the pools of OpenMP spin for a while after each parallel region, which is not work, and a
native thread that writes its output late is told by the output (see ``watcher``).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Collection

import torch

_now = time.perf_counter
_sleep = time.sleep
_clock_ns = time.clock_gettime_ns
_process_ns = time.process_time_ns

_NAP_S = 1e-3
_QUIET_NS = 100_000  # of CPU time in a nap: putting a result away and falling asleep
_QUIET_NAPS = 10  # in a row: a thread may wait that long for a core on which OpenMP spins
_AT_WORK_NS = 5_000_000  # of CPU time since the return: that much nobody needs to fall asleep
_PATIENCE_S = 0.2
_STREAM_S = 100e-6  # noise of waiting for a device twice
_CONFIRMATIONS = 5
_STREAM_SHARE = 0.1  # of the call: what else may be waited for


class Threads:
    """Which of Python's threads are one contender's: those that came up in its calls.

    A thread that somebody left behind must not be laid to the next one's charge.
    """

    def __init__(self) -> None:
        self._mine: set[int] = set()
        self._before: set[int] | None = None

    def begin(self) -> None:
        """Its calls begin."""
        self._before = _threads()

    def end(self) -> None:
        """They have ended."""
        if self._before is not None:
            self._mine |= _threads() - self._before
            self._before = None

    def of_others(self) -> set[int]:
        """The threads there are that are not its own."""
        return _threads() - self._mine


def _threads() -> set[int]:
    """Python's threads by native id."""
    return {t.native_id for t in threading.enumerate() if t.native_id is not None}


def cpu_clocks(ignored: Collection[int] = ()) -> dict[int, int]:
    """CPU time of Python's other threads by native id, in nanoseconds."""
    clocks = {}
    for tid in _threads() - {threading.get_native_id(), *ignored}:
        try:
            clocks[tid] = _clock_ns(_clock_of(tid))
        except OSError:
            continue  # it has ended meanwhile
    return clocks


def _clock_of(tid: int) -> int:
    """Linux's id of a thread's CPU clock; unlike pthread_getcpuclockid safe for a dead one."""
    return (~tid << 3) | 6  # CPUCLOCK_SCHED | CPUCLOCK_PERTHREAD_MASK (posix-timers.h)


def thread_at_work(ignored: Collection[int] = ()) -> str | None:
    """The name of a Python thread that goes on computing now, or None once all are asleep.

    Those whose native ids are ``ignored`` may do what they like.

    A nap may last until the threads are done, because they hold the interpreter's lock
    meanwhile: what those computed that have ended counts too.
    """
    start, first = _now(), cpu_clocks(ignored)
    ended_ns = _ended_ns() if first else 0
    last, quiet = first, 0
    while last and quiet < _QUIET_NAPS and _now() - start < _PATIENCE_S:
        _sleep(_NAP_S)
        clocks = cpu_clocks(ignored)
        used = {tid: ns - first.get(tid, 0) for tid, ns in clocks.items()}
        if sum(used.values()) > _AT_WORK_NS:  # many small threads are one large one
            return _name(max(used, key=lambda tid: used[tid]))
        if gone := first.keys() - clocks.keys():
            before_ns = sum(first[tid] for tid in gone)
            if _ended_ns() - ended_ns - before_ns > _AT_WORK_NS:
                return "one that has ended since"
        is_quiet = all(ns - last.get(tid, 0) < _QUIET_NS for tid, ns in clocks.items())
        last, quiet = clocks, quiet + 1 if is_quiet else 0
    return None


def _ended_ns() -> int:
    """CPU time of the threads of this process that have ended, native ones too."""
    alive_ns = 0
    for tid in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            alive_ns += _clock_ns(_clock_of(int(tid)))
    return _process_ns() - alive_ns


def _name(tid: int) -> str:
    names = (thread.name for thread in threading.enumerate() if thread.native_id == tid)
    return next(names, str(tid))


class StreamCheck:
    """Whether work goes on elsewhere on a CUDA device when the current stream has finished.

    Events on the current stream do not see what runs on another one: the device's own end
    comes later then.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._synchronize = torch.cuda.synchronize

    def step(self, call: Callable[[], None], then: Callable[[], None]) -> str | None:
        """Call on an idle device, then enqueue ``then``; say what went on after the stream."""
        self._synchronize(self._device)
        start = _now()
        call()
        self._event.record()
        then()  # what reads the output stands in the same stream
        self._event.synchronize()
        seen = _now()
        self._synchronize(self._device)
        done = _now()
        late_s, call_s = done - seen, seen - start  # a busy host adds to it: see ``again``
        if late_s > _STREAM_S + _STREAM_SHARE * call_s:
            return f"{late_s * 1e6:.0f} µs on another stream than the current one"
        return None

    def again(self, call: Callable[[], None]) -> bool:
        """Whether more calls show the same, each of them: a busy host is late now and then."""
        return all(self.step(call, lambda: None) is not None for _ in range(_CONFIRMATIONS))
