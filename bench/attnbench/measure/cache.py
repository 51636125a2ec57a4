"""Caches: how large they are, and how to leave nothing of a call's inputs in them.

A flush overwrites a buffer of twice the last-level cache, allocated once. Its own time is
never measured and never subtracted: a difference inherits the noise of both.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

Cache = Literal["cold", "warm"]
Flush = Callable[[], None]

_CPUS = Path("/sys/devices/system/cpu")
_LEAST_CACHE_BYTES = 128 << 20
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def last_level_cache_bytes(cpus: Path = _CPUS) -> int:
    """Size of this machine's last-level cache, all its instances together; at least 128 MiB.

    The floor is for virtual machines, which tell their guests less than the host has: caches
    of 128 MiB were seen, and too large a flush costs time only, too small a one the label.
    """
    sizes: dict[tuple[int, str], int] = {}  # by level and the CPUs that share the instance
    for index in cpus.glob("cpu[0-9]*/cache/index[0-9]*"):
        try:
            kind, level, size, shared = (
                (index / name).read_text().strip()
                for name in ("type", "level", "size", "shared_cpu_list")
            )
            if kind != "Instruction":
                sizes[int(level), shared] = int(size[:-1]) * _UNITS[size[-1]]
        except (OSError, ValueError, KeyError, IndexError):
            continue  # what is not told does not count; the floor does
    last = max((level for level, _ in sizes), default=0)
    told = sum(size for (level, _), size in sizes.items() if level == last)
    return max(told, _LEAST_CACHE_BYTES)


def host_flush() -> Flush:
    """Evicts everything else from the CPU's caches, private ones of every thread included."""
    buffer = torch.zeros(2 * last_level_cache_bytes() // 8, dtype=torch.int64)

    def flush() -> None:
        # Read and written in place: a plain fill may use stores that go around the caches.
        buffer.add_(1)

    return flush


def device_flush(device: torch.device) -> Flush:
    """Evicts everything else from a GPU's L2; enqueued, not waited for."""
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    buffer = torch.empty(2 * l2_bytes, dtype=torch.int8, device=device)

    def flush() -> None:
        buffer.zero_()

    return flush
