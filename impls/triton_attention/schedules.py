"""Which schedules of the forward a problem may have on a machine, and what they have to know.

``config`` holds the tables; here they meet a problem, a device and the tensors of a call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from attnbench import Problem, Unsupported

from .config import Config, Kernel, Target, candidates, why_not

_KIB = 1024
_REGISTERS = 64 * _KIB  # of a multiprocessor, on all of NVIDIA's since 3.5


@dataclass(frozen=True)
class Machine:
    """A device as schedules see it.

    Attributes:
        target: the architecture whose candidates it takes.
        processors: streaming multiprocessors.
        l2_bytes: of the cache that all of them share.
        shared_bytes, threads: of one multiprocessor.
    """

    target: Target
    processors: int
    l2_bytes: int
    shared_bytes: int = 0
    threads: int = 0

    @classmethod
    def of(cls, device: torch.device) -> Machine:
        """The device's; for the interpreter a small one, so that small problems are split."""
        if device.type == "cpu":
            return cls("interpreter", 8, 16 * _KIB)
        found = torch.cuda.get_device_properties(device)
        if torch.version.hip is not None:
            target: Target = "gfx942"
        else:
            target = target_of(torch.cuda.get_device_capability(device))
        return cls(
            target,
            found.multi_processor_count,
            found.L2_cache_size,
            found.shared_memory_per_multiprocessor,
            found.max_threads_per_multi_processor,
        )

    def resident(self, compiled: Any) -> int:
        """How many programs of Triton's ``CompiledKernel`` one multiprocessor holds at once.

        On AMD, which does not tell its registers in these words, one.
        """
        if self.target == "gfx942":
            return 1
        compiled._init_handles()  # loads the code: until then its registers are not known
        threads = int(compiled.metadata.num_warps) * 32
        shared = int(compiled.metadata.shared) + _KIB  # which the system keeps of each block
        registers = -(-int(compiled.n_regs) // 8) * 8 * threads  # handed out by eights
        holds = (_REGISTERS // registers, self.shared_bytes // shared, self.threads // threads)
        return max(1, min(holds))


def target_of(capability: tuple[int, int]) -> Target:
    """The architecture whose candidates fit a compute capability, from 8.0 on.

    Those that are none of the table's (8.6, 8.7, 12.0, …) take what fits the smallest.
    """
    exact: dict[tuple[int, int], Target] = {
        (8, 0): "sm_80", (9, 0): "sm_90", (10, 0): "sm_100", (10, 3): "sm_100",
    }  # fmt: skip
    return exact.get(capability, "sm_89")


def offered(
    problem: Problem, kernel: Kernel, schedule: str, target: Target, form: str
) -> tuple[Config, ...]:
    """The configurations that a kernel of a problem may run in, the default first.

    Args:
        problem: to solve.
        kernel: whose.
        schedule: of the forward; ``auto`` for any.
        target: where.
        form: of the mask, as in ``masks``.

    Raises:
        Unsupported: there is none of this schedule, with the reason.
    """
    p = problem
    every = candidates(kernel, max(p.head_dim, p.head_dim_v), p.element_bytes, target, p.bias)
    of_schedule = [c for c in every if schedule in ("auto", c.schedule)]
    rows = tuple(d * p.element_bytes for d in (p.head_dim, p.head_dim_v))
    refusals = [why_not(config, form, p.dropout_p > 0, p.bias, rows) for config in of_schedule]
    found = tuple(c for c, why in zip(of_schedule, refusals, strict=True) if why is None)
    if not found:
        reason = next(iter(refusals), None) or f"{target} with {p.dtype} has none"
        raise Unsupported(f"option schedule={schedule} is not for this problem: {reason}")
    return found


def heads_together(problem: Problem, l2_bytes: int) -> int:
    """How many query heads have their tiles mixed: ``together`` of ``order.tile_at``.

    As many as have their keys and values in half of the L2 cache at once, and at least
    those that share a key head; the other half is for queries and outputs.
    """
    p = problem
    pair_bytes = p.seqlen_k * (p.head_dim + p.head_dim_v) * p.element_bytes
    key_heads = max(1, l2_bytes // 2 // pair_bytes)
    return min(key_heads, p.batch * p.heads_kv) * (p.heads_q // p.heads_kv)


def takes_descriptors(*tensors: torch.Tensor) -> bool:
    """Whether each head of each (B, H, M, D) tensor can be read by a descriptor.

    Rows are contiguous, and both rows and heads begin at multiples of 16 bytes.
    """
    return all(
        x.stride(3) == 1
        and x.stride(2) >= x.shape[3]
        and x.data_ptr() % 16 == 0
        and all(x.stride(axis) * x.element_size() % 16 == 0 for axis in range(3))
        for x in tensors
    )
