"""How many warps of a kernel a multiprocessor can hold: the CUDA occupancy calculator's formula."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_WARP_UNIT = 4  # warps are spread over as many schedulers (an AMD compute unit's SIMDs)


@dataclass(frozen=True)
class Limits:
    """What one multiprocessor of a device has.

    Attributes:
        threads, blocks: that can be resident.
        registers: of 32 bits.
        shared_bytes: for all resident blocks.
        reserved_shared_bytes: of each block, for the driver.
        warp_size: threads.
        register_unit: registers are given to a warp by so many (NVIDIA: 7.0 on).
        shared_unit_bytes: shared memory to a block (NVIDIA: 8.0 on; 256 before).
    """

    threads: int
    blocks: int
    registers: int
    shared_bytes: int
    reserved_shared_bytes: int
    warp_size: int = 32
    register_unit: int = 256
    shared_unit_bytes: int = 128

    @classmethod
    def of(cls, device: torch.device) -> Limits:
        """Of a CUDA device, as the driver tells them (CUdevice_attribute of cuda.h).

        Raises:
            OSError: the driver does not tell.
        """
        import torch

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


def occupancy(
    registers: int, shared_bytes: int, num_warps: int, limits: Limits
) -> tuple[float, str]:
    """Share of a multiprocessor's warps that can be resident, and what limits it.

    Resident blocks are the least of what threads, blocks, registers and shared memory
    allow, each in the units in which it is given out.

    Args:
        registers: a thread.
        shared_bytes, num_warps: a block.
        limits: of the multiprocessor.
    """
    most_warps = limits.threads // limits.warp_size
    allowed = {"threads": most_warps // num_warps, "blocks": limits.blocks}
    if registers:
        warp_registers = _up(registers * limits.warp_size, limits.register_unit)
        warps = limits.registers // warp_registers // _WARP_UNIT * _WARP_UNIT
        allowed["registers"] = warps // _up(num_warps, _WARP_UNIT)
    block_shared = _up(shared_bytes + limits.reserved_shared_bytes, limits.shared_unit_bytes)
    if block_shared:
        allowed["shared memory"] = limits.shared_bytes // block_shared
    limit = min(allowed, key=lambda name: allowed[name])
    return allowed[limit] * num_warps / most_warps, limit


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
