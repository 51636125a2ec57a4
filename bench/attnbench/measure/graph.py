"""A CUDA graph of [flush, event, call, event] × samples: short calls without their launches.

Replaying a graph costs one launch for all of it, so between two events there is nothing but
the device's own work. The events are *external* ones, which a capture records as nodes of
the graph instead of taking them for dependencies (torch 2.9 or later).

``triton.testing.do_bench_cudagraph`` captures calls back to back without a flush, which
flatters what fits into the L2 (up to 1.6×); here the flush is inside the graph.

A graph that cannot be captured, does not write the right output or takes another time than
the call does eagerly is not used; why is told, and goes into the record.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from attnbench.measure.cache import Cache, Flush
from attnbench.measure.clock import Call, Work

_WARM_UP = 3  # calls on the capturing stream, as torch asks for: libraries set themselves up
_SLOWER, _FASTER = 1.25, 0.4  # allowed graph ÷ eager; gaps between kernels do shrink in a graph


class NotCapturable(Exception):
    """The call cannot be timed in a graph; the text says why."""


class GraphTimer:
    """Samples by events inside a CUDA graph.

    Args:
        work: what to time; its copies are what the graph runs, because a backward runs on
            the stream of its forward, which must be the one that is captured.
        calls: in a sample, over a copy each where the L2 is to be cold.
        cache: state of the L2 when a call begins.
        flush: makes it cold; None if it is to be warm.
        eager_s: seconds a call by events outside a graph; None where they hold host time.

    Raises:
        NotCapturable: see the module.
    """

    fallback: str | None = None

    def __init__(
        self, work: Work, calls: int, cache: Cache, flush: Flush | None, eager_s: float | None
    ) -> None:
        assert work.copy is not None
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with _told():
            with torch.cuda.stream(stream):
                self._copies = work.copy(calls if cache == "cold" else 1)
                batch = list(self._copies.calls) * (1 if cache == "cold" else calls)
                for call in batch * _WARM_UP:
                    call()
            torch.cuda.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            self._pairs = _capture(self._graph, stream, batch, flush, work.samples)
        self.calls_per_sample = calls
        rotated = " over rotated inputs" if calls > 1 and cache == "cold" else ""
        self.method = f"cuda graph of events{rotated}"
        self._confirm(eager_s)

    def take(self) -> list[float]:
        """One round's samples, in seconds a call: one replay."""
        self._graph.replay()
        torch.cuda.synchronize()
        return [a.elapsed_time(b) / 1e3 / self.calls_per_sample for a, b in self._pairs]

    def fault(self) -> str | None:
        """How what the last replay wrote differs from what the call returns eagerly."""
        return self._copies.fault()

    def _confirm(self, eager_s: float | None) -> None:
        """The graph does the work, and takes as long as it does outside."""
        with _told():
            self._copies.poison()
            taken = self.take()
            fault = self.fault()
        if fault is not None:
            raise NotCapturable(f"its replay does not do the work: {fault}")
        graph_s = statistics.median(taken)
        if graph_s <= 0:
            raise NotCapturable("its events tell no time")
        if eager_s is not None and not _FASTER * eager_s <= graph_s <= _SLOWER * eager_s:
            raise NotCapturable(
                f"it took {graph_s * 1e6:.1f} µs a call, where events outside a graph "
                f"told {eager_s * 1e6:.1f} µs"
            )


def refuse_synchronization(call: Call) -> None:
    """Find out whether a call waits for the device, which no graph can hold.

    Asked before capturing, because a capture that is broken off can leave torch's allocator
    with a pool that it never gives back (torch issue 180395).

    Raises:
        NotCapturable: it does.
    """
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        raise NotCapturable(f"the call waits for the device: {_first_line(error)}") from error
    finally:
        torch.cuda.set_sync_debug_mode(before)
        torch.cuda.synchronize()


def timing_event(*, external: bool = False) -> torch.cuda.Event:
    """An event that tells time; ``external`` makes a capture record it as a node of the graph."""
    return torch.cuda.Event(enable_timing=True, external=external)  # type: ignore[no-untyped-call]


def _capture(
    graph: torch.cuda.CUDAGraph,
    stream: torch.cuda.Stream,
    calls: list[Call],
    flush: Flush | None,
    samples: int,
) -> list[tuple[torch.cuda.Event, torch.cuda.Event]]:
    """Record samples × [flush, event, calls, event]; return the pairs of events.

    Without a flush the calls are made once before, so that the first sample is warm too.
    """
    pairs = [(timing_event(external=True), timing_event(external=True)) for _ in range(samples)]
    # The outer context: torch.cuda.graph leaves the stream current if its capture breaks.
    # thread_local: what other threads do, telemetry among them, must not break it.
    with (
        torch.cuda.stream(stream),
        torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
    ):
        if flush is None:
            for call in calls:
                call()
        for start, stop in pairs:
            if flush is not None:
                flush()
            start.record()
            for call in calls:
                call()
            stop.record()
    return pairs


@contextmanager
def _told() -> Iterator[None]:
    """Whatever goes wrong becomes the reason why there is no graph.

    Anything can, from a library that refuses to be captured to a lack of memory for copies;
    the eager call was verified, and is what is timed then. If the device itself is lost,
    waiting for it raises, and the implementation fails for that.
    """
    try:
        yield
    except Exception as error:
        torch.cuda.synchronize()
        raise NotCapturable(f"it could not be made: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
