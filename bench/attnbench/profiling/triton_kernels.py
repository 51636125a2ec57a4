"""Triton kernels that ran: registers, spills, shared memory, and the occupancy they allow.

Registers and spills are known once a kernel is loaded onto a device, so this looks at the
loaded kernels of this process: Triton's own (``CompiledKernel``) and those that inductor
launches by itself.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from attnbench.profiling.occupancy import Limits, occupancy

_LOADED = ("CompiledKernel", "StaticallyLaunchedCudaKernel")


@dataclass(frozen=True)
class Resources:
    """What one kernel takes.

    Attributes:
        name: of the kernel's function.
        registers: a thread.
        spills: registers a thread that had to go to local memory.
        shared_bytes: a block.
        num_warps: a block.
        occupancy: share of the device's warps that can be resident.
        limit: what keeps it from more: ``registers``, ``shared memory``, ``blocks``,
            ``threads``.
    """

    name: str
    registers: int
    spills: int
    shared_bytes: int
    num_warps: int
    occupancy: float
    limit: str

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass
class Launched:
    """Handles of the functions that Triton launched."""

    handles: set[int] = field(default_factory=set)

    def note(self, metadata: Any) -> None:
        """Triton's launch hook."""
        self.handles.add(metadata.get()["function"])


@contextmanager
def launches() -> Iterator[Launched]:
    """Note which kernels Triton launches meanwhile; nothing where Triton is not in use."""
    launched = Launched()
    triton = sys.modules.get("triton")
    if triton is None:
        yield launched
        return
    hooks = triton.knobs.runtime.launch_enter_hook
    hooks.add(launched.note)
    try:
        yield launched
    finally:
        hooks.remove(launched.note)


def resources(names: Collection[str], launched: Launched, device: torch.device) -> list[Resources]:
    """Of the loaded kernels that ran.

    Args:
        names: of the kernels that the profiler saw.
        launched: those that Triton's hook saw. Inductor launches some without it: these go
            by name.
        device: a CPU has none.
    """
    if device.type != "cuda":
        return []
    loaded = [kernel for kernel in gc.get_objects() if _is_loaded(kernel)]
    ran = [kernel for kernel in loaded if kernel.function in launched.handles]
    seen = {kernel.name for kernel in ran}
    ran += [kernel for kernel in loaded if kernel.name in names and kernel.name not in seen]
    limits = Limits.of(device)
    found = {_read(kernel, limits) for kernel in ran}
    return sorted(found, key=lambda r: (r.name, r.num_warps, r.registers))


def _is_loaded(thing: Any) -> bool:
    if type(thing).__name__ not in _LOADED:
        return False
    return isinstance(getattr(thing, "n_regs", None), int) and thing.function is not None


def _read(kernel: Any, limits: Limits) -> Resources:
    about = getattr(kernel, "metadata", kernel)  # inductor's keep it in the kernel itself
    share, limit = occupancy(kernel.n_regs, about.shared, about.num_warps, limits)
    return Resources(
        kernel.name, kernel.n_regs, kernel.n_spills, about.shared, about.num_warps, share, limit
    )
