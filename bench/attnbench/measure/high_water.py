"""The high-water mark of this process's resident memory during one call (Linux, glibc).

It sees all memory, whoever took it, and so checks the sum over torch's own allocations.
The kernel forgets the mark when 5 is written to ``/proc/self/clear_refs`` (``ru_maxrss``
never does). For the mark to follow what is allocated, blocks must go back to the kernel as
soon as they are freed: for the length of the call malloc maps every block of 64 KiB or more
by itself. That makes calls up to three times slower, so it is only done here, and the
thresholds that a worker is started with are put back.
"""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

FIXED_MALLOC: Mapping[str, str] = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(64 * 2**20),
}
"""What workers are started with: the largest values that glibc's own adjustment reaches.

Left to itself malloc adapts to what was freed before, and how fast a contender runs would
depend on who came before it.
"""

_PARAMETERS = {"MALLOC_TRIM_THRESHOLD_": -1, "MALLOC_MMAP_THRESHOLD_": -3}  # of mallopt(3)
_SMALL_BYTES = 2**16
_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_BOUND_BYTES = 2**20
_BOUND_SHARE = 0.05


class Unseen(Exception):
    """The mark cannot be read here; the text says why."""


def high_water(call: Callable[[], None]) -> int:
    """Run ``call`` once; how far resident memory rose above where it was before, in bytes.

    Raises:
        Unseen: this machine does not tell.
    """
    gc.collect()
    with _every_block_mapped():
        try:
            _CLEAR_REFS.write_text("5")
        except OSError as error:
            raise Unseen(f"{_CLEAR_REFS} cannot be written: {error.strerror}") from None
        before = _mark()
        call()
        return _mark() - before


def fix_malloc(libc: ctypes.CDLL) -> None:
    """Set malloc's thresholds to what a worker is started with, or to the user's own."""
    for name, number in _PARAMETERS.items():
        libc.mallopt(number, int(os.environ.get(name, FIXED_MALLOC[name])))


def bound_bytes(expected: int) -> int:
    """How far the mark may be from a sum of allocations before the two disagree.

    1 MiB and 5 % for small blocks and for a library's own scratch space, and what the
    kernel's per-CPU counters of pages may be behind (mm/percpu: a batch for every CPU).
    """
    cpus = os.cpu_count() or 1
    behind = max(32, 2 * cpus) * cpus * _PAGE_BYTES
    return _BOUND_BYTES + int(_BOUND_SHARE * expected) + behind


def _mark() -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise Unseen(f"{_STATUS} has no VmHWM")


class _Usage(ctypes.Structure):
    """``struct mallinfo2``; ``hblks`` is how many blocks are mapped by themselves."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks",
                     "uordblks", "fordblks", "keepcost")
    ]  # fmt: skip


@contextmanager
def _every_block_mapped() -> Iterator[None]:
    """Every block of 64 KiB or more is mapped by itself, and what was free before is given back."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or not hasattr(libc, "mallinfo2"):
        raise Unseen("this C library is no glibc from 2.33 on")
    libc.mallinfo2.restype = _Usage
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    for number in _PARAMETERS.values():
        libc.mallopt(number, _SMALL_BYTES)
    libc.malloc_trim(0)
    plugs = list(_plugs(libc))
    try:
        yield
    finally:
        for plug in plugs:
            libc.free(plug)
        fix_malloc(libc)


def _plugs(libc: ctypes.CDLL) -> Iterator[int]:
    """Occupy the holes of the heap, which malloc would fill before it maps anything.

    What lies in a hole does not go back to the kernel when it is freed. The plugs are never
    written to, so they are not resident.
    """
    usage = libc.mallinfo2()
    size = left = usage.fordblks
    while size >= _SMALL_BYTES:
        block = libc.malloc(size)
        after = libc.mallinfo2()
        if block and after.hblks == usage.hblks:
            yield block
            left -= size
            size = min(size, left)  # never more than all holes: another malloc may be in place
            continue
        libc.free(block)  # no hole of this size is left
        size //= 2
