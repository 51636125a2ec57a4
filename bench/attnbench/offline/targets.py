"""GPUs to compile for, with the limits that a kernel has to fit into.

Sources: the table "Technical Specifications per Compute Capability" of NVIDIA's CUDA C++
Programming Guide (8.0, 8.9, 9.0, 10.0), its chapter on tensor memory in the PTX ISA (512
columns), the instruction sets in NVIDIA's CUDA Binary Utilities; for gfx942 AMD's "AMD GPU
specifications" (64 KiB of LDS and 512 KiB of vector registers a compute unit), the CDNA3
instruction set guide, and LLVM's AMDGPU back end (8 waves a SIMD, 16 barriers a compute unit,
registers by 8 a lane, LDS by 512 bytes). A "multiprocessor" is AMD's compute unit, a "block" its
workgroup, a "warp" its wave, "shared memory" its LDS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from attnbench.profiling.occupancy import Limits, occupancy

KIB = 1024

EXPECTATIONS: Mapping[str, str] = {
    "tensor_cores": "matrix instructions at the target's full rate: HMMA on sm_80 and sm_89, "
    "HGMMA on sm_90, UTCHMMA on sm_100, MFMA on gfx942, or their fp8 and integer kin",
    "mma": "matrix instructions of any kind, for tiles too small for the full rate",
    "tma": "loads by the tensor memory accelerator",
    "warp_specialize": "loops split over warp groups of their own",
    "atomics": "atomic operations on global memory",
}
"""What a case may expect of the machine code, and what it means."""

WARP_MMA = ("HMMA", "QMMA", "IMMA", "BMMA", "DMMA", "OMMA")  # one warp, operands in registers


@dataclass(frozen=True)
class Target:
    """One architecture.

    Attributes:
        name: as on the command line.
        backend, arch: as Triton's ``GPUTarget`` has them.
        limits: of one multiprocessor.
        shared_bytes: that one block can have.
        threads: of one block.
        tensor_memory_columns: of one block; 0 where there is none.
        tensor_cores: matrix instructions at full rate.
        features: names of :data:`EXPECTATIONS` that can be met at all.
    """

    name: str
    backend: Literal["cuda", "hip"]
    arch: int | str
    limits: Limits
    shared_bytes: int
    tensor_cores: tuple[str, ...]
    features: frozenset[str]
    tensor_memory_columns: int = 0
    threads: int = 1024

    @property
    def mma(self) -> tuple[str, ...]:
        """Every matrix instruction it may have."""
        return tuple(dict.fromkeys([*self.tensor_cores, *(WARP_MMA if self.is_nvidia else ())]))

    def occupancy(
        self, registers: int, shared_bytes: int, num_warps: int, tensor_memory_columns: int = 0
    ) -> tuple[float, str]:
        """Share of a multiprocessor's warps that can be resident, and what limits it.

        Args:
            registers: a thread.
            shared_bytes, num_warps, tensor_memory_columns: a block.
        """
        found = occupancy(registers, shared_bytes, num_warps, self.limits)
        if not tensor_memory_columns:
            return found
        blocks = self.tensor_memory_columns // tensor_memory_columns
        share = blocks * num_warps * self.limits.warp_size / self.limits.threads
        return min(found, (share, "tensor memory"))

    @property
    def is_nvidia(self) -> bool:
        """Whether it is compiled to SASS."""
        return self.backend == "cuda"


_OLDER = frozenset({"tensor_cores", "mma", "atomics"})
_HOPPER = frozenset(EXPECTATIONS)
_LARGE = Limits(threads=2048, blocks=32, registers=64 * KIB, shared_bytes=228 * KIB,
                reserved_shared_bytes=KIB)  # fmt: skip

TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target(
            "sm_80", "cuda", 80,
            Limits(threads=2048, blocks=32, registers=64 * KIB, shared_bytes=164 * KIB,
                   reserved_shared_bytes=KIB),
            shared_bytes=163 * KIB, tensor_cores=WARP_MMA, features=_OLDER,
        ),
        Target(
            "sm_89", "cuda", 89,
            Limits(threads=1536, blocks=24, registers=64 * KIB, shared_bytes=100 * KIB,
                   reserved_shared_bytes=KIB),
            shared_bytes=99 * KIB, tensor_cores=WARP_MMA, features=_OLDER,
        ),
        Target(
            "sm_90", "cuda", 90, _LARGE,
            shared_bytes=227 * KIB, tensor_cores=("HGMMA", "QGMMA", "IGMMA", "BGMMA"),
            features=_HOPPER,
        ),
        Target(
            "sm_100", "cuda", 100, _LARGE,
            shared_bytes=227 * KIB, tensor_cores=("UTCHMMA", "UTCQMMA", "UTCIMMA", "UTCOMMA"),
            features=_HOPPER, tensor_memory_columns=512,
        ),
        Target(
            "gfx942", "hip", "gfx942",
            Limits(threads=2048, blocks=16, registers=128 * KIB, shared_bytes=64 * KIB,
                   reserved_shared_bytes=0, warp_size=64, register_unit=512,
                   shared_unit_bytes=512),
            shared_bytes=64 * KIB, tensor_cores=("MFMA",), features=_OLDER,
        ),
    )
}  # fmt: skip
"""By name, the oldest first."""
