"""Memory of one call: its peak, its forward and backward, and what lives between them.

Always passes of their own, never timed. What torch's allocator gave out is counted by
``meters``; what others took beside it is seen on CUDA by what the device has left, and on a
CPU by the high-water mark of the process, which must agree with the count.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch

from attnbench.execution import Execution
from attnbench.measure.high_water import Unseen, bound_bytes, high_water
from attnbench.measure.meters import trace
from attnbench.record import Memory

_METHODS = {
    "cuda": "torch.cuda.max_memory_allocated",
    "cpu": "torch profiler, sum of allocation events",
}


def measure_memory(execution: Execution, device: torch.device) -> Memory:
    """Every figure of an execution that has its inputs (``load``).

    A part that is not in the timed call has no peak of its own. What the forward saves is
    told for the backward alone too, because it has to be held for it.
    """
    execution.forget()
    gc.collect()
    if device.type != "cuda":
        memory = _split(execution, device)
        return memory.model_copy(update=_cpu(execution, memory))
    # What others left to the allocator would be handed out again, and no rise would show.
    torch.cuda.empty_cache()
    reserved, others = torch.cuda.memory_reserved(device), foreign_bytes(device)
    memory = _split(execution, device)
    return memory.model_copy(
        update={
            "reserved_bytes": torch.cuda.max_memory_reserved(device) - reserved,
            "foreign_bytes": max(0, foreign_bytes(device) - others),
        }
    )


def peak_memory(call: Callable[[], None], device: torch.device) -> Memory:
    """Run any ``call`` once and report its peak alone."""
    (change,) = trace([call], device)
    return Memory(peak_bytes=change.peak_bytes, method=_METHODS[device.type])


def foreign_bytes(device: torch.device) -> int:
    """Bytes of the device in use that torch's allocator does not know, whoever took them."""
    free, total = torch.cuda.mem_get_info(device)
    return total - free - torch.cuda.memory_reserved(device)


def _split(execution: Execution, device: torch.device) -> Memory:
    """Peaks of the parts, what lives between them, and what is left in the end."""
    method = _METHODS[device.type]
    direction = execution.problem.direction
    if direction == "forward":
        forward, drop = trace([execution.forward, execution.drop_saved], device)
        left = forward.left_bytes + drop.left_bytes
        return Memory(
            peak_bytes=forward.peak_bytes,
            forward_peak_bytes=forward.peak_bytes,
            workspace_bytes=_beyond(forward.peak_bytes, left),
            method=method,
        )
    if direction == "backward":
        _, backward, drop = trace(
            [execution.forward, execution.backward, execution.drop_saved], device
        )
        return Memory(
            peak_bytes=backward.peak_bytes,
            saved_bytes=max(0, -drop.left_bytes),
            backward_peak_bytes=backward.peak_bytes,
            workspace_bytes=_beyond(backward.peak_bytes, backward.left_bytes),
            method=method,
        )
    # The backward frees what was saved: a second forward is needed to see its size.
    steps = [execution.forward, execution.backward, execution.drop_saved, execution.forget]
    forward, backward, drop, _, _, saved = trace(
        [*steps, execution.forward, execution.drop_saved], device
    )
    peak = max(forward.peak_bytes, forward.left_bytes + backward.peak_bytes)
    left = sum(change.left_bytes for change in (forward, backward, drop))
    return Memory(
        peak_bytes=peak,
        forward_peak_bytes=forward.peak_bytes,
        saved_bytes=max(0, -saved.left_bytes),
        backward_peak_bytes=backward.peak_bytes,
        workspace_bytes=_beyond(peak, left),
        method=method,
    )


def _beyond(peak: int, left: int) -> int:
    """The part of a peak that is gone in the end."""
    return peak - max(0, left)


def _cpu(execution: Execution, memory: Memory) -> dict[str, int | str]:
    """The high-water mark of a whole call, and what to think of it."""
    execution.prepare()
    try:
        mark = high_water(execution.step)
    except Unseen as reason:
        return {"note": f"not cross-checked: {reason}"}
    told: dict[str, int | str] = {"resident_bytes": max(0, mark)}
    if note := disagreement(memory.peak_bytes or 0, mark):
        told["note"] = note
    return told


def disagreement(peak: int, mark: int) -> str:
    """What a high-water mark too far from the sum of torch's allocations means, or nothing.

    Args:
        peak: of the sum, in bytes.
        mark: how far resident memory rose, in bytes.
    """
    bound = bound_bytes(peak)
    if abs(mark - peak) <= bound:
        return ""
    why = (
        "something takes memory behind torch's back"
        if mark > peak
        else "some of what is allocated is never touched"
    )
    return (
        f"resident memory rose by {mark / 2**20:.1f} MiB, torch allocated "
        f"{peak / 2**20:.1f} MiB (they may differ by {bound / 2**20:.1f} MiB): {why}"
    )
