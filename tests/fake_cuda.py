"""A GPU of which every figure can be foretold: stand-ins for what the clocks use of torch.cuda.

There are two times. The host's passes while it launches (and while it waits); the device's
queue ends where its last work will end. Work begins when the queue is empty and it has been
launched. While a graph is captured work is kept instead, and its replay costs one launch.
The L2 remembers whose inputs were read since the last flush.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from attnbench.measure import clock_cuda
from attnbench.measure.clock import Call

CYCLES_A_SECOND = 2e9
Work = Callable[[], None]


class FakeCuda:
    """The machine; ``install`` puts it in the place of torch.cuda."""

    def __init__(self, launch_s: float = 10e-6, flush_s: float = 50e-6) -> None:
        self.launch_s = launch_s
        self.flush_s = flush_s
        self.host_s = 0.0
        self.device_s = 0.0  # when the queue will be empty
        self.in_l2: set[object] = set()
        self.is_debugging = False
        self.capture: list[Work] | None = None
        self.device = "cuda:0"

    # ---- what the host does ----------------------------------------------------------

    def launch(self, seconds: float, reads: object = None, cold_s: float = 0.0) -> None:
        """Enqueue work that takes so long, and longer if what it reads is not in the L2."""
        self.host_s += self.launch_s
        self._enqueue(lambda: self._work(seconds, reads, cold_s))

    def flush(self) -> None:
        self._enqueue(lambda: (self.in_l2.clear(), self._work(self.flush_s, None, 0))[1])

    def sleep(self, cycles: int) -> None:
        self._enqueue(lambda: self._work(cycles / CYCLES_A_SECOND, None, 0))

    def wait(self) -> None:
        """As ``.item()`` does."""
        if self.is_debugging:
            raise RuntimeError("called a synchronizing CUDA operation")
        if self.capture is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.synchronize()

    def synchronize(self, device: object = None) -> None:
        self.host_s = max(self.host_s, self.device_s)

    def _enqueue(self, work: Work) -> None:
        if self.capture is None:
            work()
        else:
            self.capture.append(work)

    def _work(self, seconds: float, reads: object, cold_s: float) -> None:
        extra_s = cold_s if reads is not None and reads not in self.in_l2 else 0.0
        self.in_l2.add(reads)
        self.device_s = max(self.device_s, self.host_s) + seconds + extra_s

    # ---- in place of torch.cuda ------------------------------------------------------

    def install(self, patch: pytest.MonkeyPatch) -> None:
        cuda = self

        class Event:
            def __init__(self, enable_timing: bool, external: bool = False) -> None:
                assert enable_timing
                self.is_external = external
                self.when_s = -1.0

            def record(self) -> None:
                assert cuda.capture is None or self.is_external, "a dependency, not a node"
                cuda._enqueue(self._pass)

            def _pass(self) -> None:
                self.when_s = max(cuda.device_s, cuda.host_s)

            def query(self) -> bool:
                return cuda.host_s > self.when_s

            def synchronize(self) -> None:
                cuda.host_s = max(cuda.host_s, self.when_s)

            def elapsed_time(self, other: Event) -> float:
                return (other.when_s - self.when_s) * 1e3

        class CUDAGraph:
            def __init__(self) -> None:
                self.works: list[Work] = []

            def replay(self) -> None:
                cuda.host_s += cuda.launch_s
                for work in self.works:
                    work()

        @contextlib.contextmanager
        def graph(made: CUDAGraph, stream: object, capture_error_mode: str) -> Iterator[None]:
            cuda.capture = made.works
            try:
                yield
            finally:
                cuda.capture = None

        put = {
            "Event": Event,
            "CUDAGraph": CUDAGraph,
            "graph": graph,
            "Stream": object,
            "stream": contextlib.nullcontext,
            "_sleep": self.sleep,
            "synchronize": self.synchronize,
            "set_device": lambda device: None,
            "get_sync_debug_mode": lambda: int(self.is_debugging),
            "set_sync_debug_mode": lambda mode: setattr(self, "is_debugging", mode in ("error", 2)),
        }
        for name, stand_in in put.items():
            patch.setattr(torch.cuda, name, stand_in)
        patch.setattr(clock_cuda, "device_flush", lambda device: self.flush)
        patch.setattr(clock_cuda, "now_ns", lambda: round(self.host_s * 1e9))


@dataclass
class Kernel:
    """A call of one kernel. ``copy`` gives it inputs of its own.

    Attributes:
        seconds: with its inputs in the L2.
        cold_s: more, without.
        launches: how many launches it takes to enqueue.
        waits: whether it waits for the device, as ``.item()`` does.
        elsewhere: whether it runs on a stream of its own, which no capture sees.
        seconds_in_graph: where a graph would tell another time.
        copies: how many were made each time.
    """

    cuda: FakeCuda
    seconds: float
    cold_s: float = 0.0
    launches: int = 1
    waits: bool = False
    elsewhere: bool = False
    seconds_in_graph: float | None = None
    copies: list[int] = field(default_factory=list)

    def __call__(self) -> None:
        self.run(self)

    def run(self, reads: object, done: Work = lambda: None) -> None:
        cuda, before = self.cuda, self.cuda.capture
        if self.elsewhere:
            cuda.capture = None
        in_graph = before is not None and self.seconds_in_graph is not None
        seconds = self.seconds_in_graph if in_graph else self.seconds
        cuda.host_s += (self.launches - 1) * cuda.launch_s
        cuda.launch(seconds or 0.0, id(reads), self.cold_s)
        cuda._enqueue(done)
        cuda.capture = before
        if self.waits:
            cuda.wait()

    def copy(self, count: int) -> FakeCopies:
        self.copies.append(count)
        return FakeCopies(self, count)


class FakeCopies:
    """Copies that know whether they have been written since they were poisoned."""

    def __init__(self, kernel: Kernel, count: int) -> None:
        self.written = [False] * count
        self.inputs = [object() for _ in range(count)]
        self.calls: Any = [self._call(kernel, i) for i in range(count)]

    def _call(self, kernel: Kernel, i: int) -> Call:
        return lambda: kernel.run(self.inputs[i], lambda: self.written.__setitem__(i, True))

    def poison(self) -> None:
        self.written = [False] * len(self.written)

    def fault(self) -> str | None:
        return None if all(self.written) else "out was not written"
