"""Peak memory of one call, in bytes beyond what was allocated before it.

Always a pass of its own, never timed. On CUDA the caching allocator's own peak. On a CPU
the running sum over the allocation events that torch's profiler reports, which was exact
to 1 kB against known sizes; it sees what torch allocates, not what a library takes from
malloc behind torch's back, nor that memory from before the call is freed within it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch.autograd.profiler import profile

from attnbench.record import Memory


def peak_memory(call: Callable[[], None], device: torch.device) -> Memory:
    """Run ``call`` once and report its peak."""
    return _cuda(call, device) if device.type == "cuda" else _cpu(call)


def _cuda(call: Callable[[], None], device: torch.device) -> Memory:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return Memory(
        peak_bytes=torch.cuda.max_memory_allocated(device) - before,
        reserved_bytes=torch.cuda.max_memory_reserved(device),
        method="torch.cuda.max_memory_allocated",
    )


def _cpu(call: Callable[[], None]) -> Memory:
    with profile(profile_memory=True) as profiler:  # torch.profiler would import all of inductor
        call()
    results = profiler.kineto_results
    if results is None:
        return Memory(method="torch profiler gave no result")
    events = [(e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"]
    changes = (size for _, size in sorted(events, key=lambda event: event[0]))
    peak = max(itertools.accumulate(changes, initial=0))
    return Memory(peak_bytes=peak, method="torch profiler, sum of allocation events")
