"""Meters of what torch allocates: peak and rest of each step, in bytes.

On CUDA the counters of the caching allocator. On a CPU the running sum over the allocation
events that torch's profiler reports, which was exact to 1 kB against known sizes; it does
not see what a library takes from malloc behind torch's back (``high_water`` does), nor the
end of a block that is older than the profile. So all steps go into one profile.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.profiler import profile, record_function

Call = Callable[[], None]

_MARK = "attnbench::"
_MEMORY_EVENT = "[memory]"


@dataclass(frozen=True)
class Change:
    """What one step did to the allocated bytes, counted from where it began.

    Attributes:
        peak_bytes: the highest point, at least 0.
        left_bytes: where it ended; negative if more was freed than allocated.
    """

    peak_bytes: int
    left_bytes: int


def trace(steps: Sequence[Call], device: torch.device) -> list[Change]:
    """Run the steps, one after the other, once; what each did to torch's allocated bytes."""
    if device.type == "cuda":
        return [_count(step, device) for step in steps]
    # torch.profiler would import all of inductor, this module does not.
    with profile(profile_memory=True) as profiler:
        for number, step in enumerate(steps):
            with mark(str(number)):
                step()
    return [_change(span.changes) for span in spans(profiler)]


def _count(step: Call, device: torch.device) -> Change:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    return Change(peak - before, torch.cuda.memory_allocated(device) - before)


def mark(name: str) -> record_function:
    """A context that makes what runs in it a span of the profile."""
    return record_function(f"{_MARK}{name}")


@dataclass(frozen=True)
class Span:
    """One marked part of a CPU profile, with its allocation events in order.

    Attributes:
        name: as given to :func:`mark`.
        start_ns, stop_ns: when, on the profile's clock.
        changes: (when, bytes) of each allocation, negative where memory is freed.
    """

    name: str
    start_ns: int
    stop_ns: int
    changes: tuple[tuple[int, int], ...]


def spans(profiler: profile) -> list[Span]:
    """The marked parts of a profile, in order."""
    raw = events(profiler)
    changes = sorted(
        ((e.start_ns(), e.nbytes()) for e in raw if e.name() == _MEMORY_EVENT),
        key=lambda change: change[0],
    )
    marked = sorted(
        (e.start_ns(), e.end_ns(), e.name().removeprefix(_MARK))
        for e in raw
        if e.name().startswith(_MARK)
    )
    return [
        Span(name, start, stop, tuple(c for c in changes if start <= c[0] <= stop))
        for start, stop, name in marked
    ]


def events(profiler: profile) -> list[Any]:
    """The raw events: torch's own Python tree of them takes a millisecond a dozen."""
    results = profiler.kineto_results
    if results is None:  # cannot be: the profile is over
        raise RuntimeError("torch's profiler gave no result")
    return list(results.events())


def _change(changes: tuple[tuple[int, int], ...]) -> Change:
    levels = list(itertools.accumulate((size for _, size in changes), initial=0))
    return Change(max(levels), levels[-1])
