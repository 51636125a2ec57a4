"""Triton kernels that ran: registers, spills, shared memory, and the occupancy they allow.

Registers and spills are known once a kernel is loaded onto a device, so this looks at the
loaded kernels of this process: Triton's own (``CompiledKernel``) and those that inductor
launches by itself.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

_LOADED = ("CompiledKernel", "StaticallyLaunchedCudaKernel")
_REGISTER_UNIT = 256  # registers are given to a warp by so many (CUDA occupancy calculator, 7.0 on)
_SHARED_UNIT_BYTES = 128  # shared memory to a block (8.0 on; 256 before)
_WARP_UNIT = 4  # and warps are spread over as many schedulers


@dataclass(frozen=True)
class Limits:
    """What one multiprocessor of a device has."""

    threads: int
    blocks: int
    registers: int
    shared_bytes: int
    reserved_shared_bytes: int  # of each block, for the driver
    warp_size: int = 32

    @classmethod
    def of(cls, device: torch.device) -> Limits:
        """Of a CUDA device, as the driver tells them (CUdevice_attribute of cuda.h).

        Raises:
            OSError: the driver does not tell.
        """
        driver = ctypes.CDLL("libcuda.so.1")

        def ask(attribute: int) -> int:
            value = ctypes.c_int()
            index = torch.cuda.current_device() if device.index is None else device.index
            fault = driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, index)
            if fault:
                raise OSError(f"cuDeviceGetAttribute({attribute}) gives error {fault}")
            return value.value

        return cls(
            threads=ask(39), blocks=ask(106), registers=ask(82), shared_bytes=ask(81),
            reserved_shared_bytes=ask(111), warp_size=ask(10),
        )  # fmt: skip


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


def occupancy(
    registers: int, shared_bytes: int, num_warps: int, limits: Limits
) -> tuple[float, str]:
    """Share of a multiprocessor's warps that can be resident, and what limits it.

    The CUDA occupancy calculator's formula: resident blocks are the least of what threads,
    blocks, registers and shared memory allow, each in the units in which it is given out.
    """
    most_warps = limits.threads // limits.warp_size
    allowed = {"threads": most_warps // num_warps, "blocks": limits.blocks}
    if registers:
        warp_registers = _up(registers * limits.warp_size, _REGISTER_UNIT)
        warps = limits.registers // warp_registers // _WARP_UNIT * _WARP_UNIT
        allowed["registers"] = warps // _up(num_warps, _WARP_UNIT)
    block_shared = _up(shared_bytes + limits.reserved_shared_bytes, _SHARED_UNIT_BYTES)
    if block_shared:
        allowed["shared memory"] = limits.shared_bytes // block_shared
    limit = min(allowed, key=lambda name: allowed[name])
    return allowed[limit] * num_warps / most_warps, limit


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


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
