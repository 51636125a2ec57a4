"""Meters of what torch allocates: peak and rest of each step, in bytes.

On CUDA the counters of the caching allocator. On a CPU the running sum over the allocation
events that torch's profiler reports, which was exact to 1 kB against known sizes; it does
not see what a library takes from malloc behind torch's back (``high_water`` does), nor the
end of a block that is older than the profile. So all steps go into one profile.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.profiler import profile, record_function

Call = Callable[[], None]

_MARK = "attnbench::step"
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
        for step in steps:
            with record_function(_MARK):
                step()
    return list(_changes(profiler))


def _count(step: Call, device: torch.device) -> Change:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    return Change(peak - before, torch.cuda.memory_allocated(device) - before)


def allocations(profiler: profile) -> list[tuple[int, int]]:
    """(nanoseconds, bytes) of every allocation event of a CPU profile, in order."""
    found = [(e.start_ns(), e.nbytes()) for e in events(profiler) if e.name() == _MEMORY_EVENT]
    return sorted(found, key=lambda event: event[0])


def events(profiler: profile) -> list[Any]:
    """The raw events: torch's own Python tree of them costs a millisecond a dozen."""
    results = profiler.kineto_results
    if results is None:  # cannot be: the profile is over
        raise RuntimeError("torch's profiler gave no result")
    return list(results.events())


def _changes(profiler: profile) -> Iterator[Change]:
    marks = [(e.start_ns(), e.end_ns()) for e in events(profiler) if e.name() == _MARK]
    changes = allocations(profiler)
    for start, stop in sorted(marks):
        levels = list(
            itertools.accumulate((size for at, size in changes if start <= at <= stop), initial=0)
        )
        yield Change(max(levels), levels[-1])
