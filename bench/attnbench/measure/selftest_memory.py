"""Memory: allocations of known size, alone and one beside the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from attnbench.measure.selftest_check import Check, Instrument, judged, not_here
from attnbench.selftest import Row

ALLOWED = 0.01
_MIB = 2**20


def _allocation(mib: Sequence[int], name: str, peak_mib: int) -> Check:
    """Allocate blocks; the first two are held together, each of the others by itself."""

    def check(instrument: Instrument) -> Row:
        def call() -> None:
            held = [_block(size, instrument.device) for size in mib[:2]]
            del held
            for size in mib[2:]:
                _block(size, instrument.device)

        memory = instrument.peak_memory(call, instrument.device)
        if memory.peak_bytes is None:
            return not_here(name, f"no peak of memory can be told: {memory.method}")
        expected = peak_mib * _MIB
        return judged(name, expected, memory.peak_bytes, ALLOWED * expected, "bytes")

    return Check(name, check)


def _block(mib: int, device: torch.device) -> torch.Tensor:
    # Written to, so that it is there in whatever way memory is counted.
    return torch.full((mib * _MIB,), 1, dtype=torch.uint8, device=device)


CHECKS = (
    _allocation([1], "allocation of 1 MiB", 1),
    _allocation([64], "allocation of 64 MiB", 64),
    _allocation([8, 16, 4, 12], "peak of several", 24),
)
