"""Poison: memory that a call should write holds a known NaN before the call.

An output that was never written shows what was there before: perhaps the right answer of
an earlier call. So the last results are overwritten, and so are blocks of their sizes that
are freed at once, which an allocator likes to hand out next: torch's on CUDA always does,
malloc does for small ones (large ones come from the kernel as zeros).

The NaN has a payload of its own, so that it is told from one that was computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from attnbench.watch.storage import overlaps

_NAN_BITS = {
    torch.float64: 0x7FF8_DEAD_DEAD_DEAD,
    torch.float32: 0x7FC0_DEAD,
    torch.bfloat16: 0x7FDA,
    torch.float16: 0x7EDA,
}
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_BLOCKS = 2  # of each result's size
_SMALL_BYTES = 1 << 20
_SMALL_BLOCKS = range(8, 65)  # malloc has many places to take small ones from: all are to hold it


def fill(x: torch.Tensor) -> None:
    """Overwrite ``x``; a dtype without a NaN of its own (8 bits) is filled with plain NaN."""
    x = x.detach()
    bits = _NAN_BITS.get(x.dtype)
    if bits is None:
        x.fill_(float("nan"))
    else:
        x.view(_INTEGERS[x.element_size()]).fill_(bits)


def count(x: torch.Tensor) -> int:
    """How many elements still hold the poison."""
    bits = _NAN_BITS.get(x.dtype)
    if bits is None:
        return 0
    return int((x.detach().view(_INTEGERS[x.element_size()]) == bits).sum())


def free_blocks(like: Iterable[torch.Tensor]) -> None:
    """Leave poison in freed memory of the sizes of some tensors."""
    blocks = []
    for x in like:
        for _ in range(_blocks(x.numel() * x.element_size())):
            block = torch.empty(x.numel(), dtype=x.dtype, device=x.device)
            fill(block)
            blocks.append(block)


def _blocks(size: int) -> int:
    """How many blocks of so many bytes."""
    if size > _SMALL_BYTES:
        return _BLOCKS
    fit = _SMALL_BYTES // max(size, 1)
    return min(max(fit, _SMALL_BLOCKS.start), _SMALL_BLOCKS.stop - 1)


def spoil(results: Iterable[torch.Tensor], inputs: Iterable[torch.Tensor]) -> None:
    """Overwrite the last call's results, which were the harness's; not what is an input's."""
    given = {x.untyped_storage().data_ptr() for x in inputs}
    for x in results:
        if x.untyped_storage().data_ptr() not in given and not overlaps(x):
            fill(x)


def unwritten(results: Mapping[str, torch.Tensor]) -> str | None:
    """Which result a call left unwritten, in words; None if none."""
    for name, x in results.items():
        if left := count(x):
            return (
                f"left {left} of {x.numel()} elements of {name} unwritten: "
                "they hold what was in that memory before the call"
            )
    return None
