"""Pinning: while samples are taken on a CPU, OpenMP's threads stay on cores of their own.

A thread that moves leaves its caches behind, on machines of two sockets its memory too, and
two threads on one core halve it; so the same process is fast or slow by luck.

The main thread is left free, and finds the core that the others leave: whatever it starts
inherits where it may run, so pinned it would put all threads of a plugin that starts its
own, or a new team of OpenMP's, on one core. That is also why this is not done by
``OMP_PROC_BIND`` in the worker's environment, which binds the main thread, and for life.
Here the team is bound when sampling begins and let go when it ends, by a call that runs
once in each of its threads. Whoever has settled it already (by the variables below) is left
alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

_SETTLED_BY = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
_CPUS = Path("/sys/devices/system/cpu")
_TEAM_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def plan(environ: Mapping[str, str] = os.environ, cpus: Path = _CPUS) -> list[int] | str:
    """A CPU for each OpenMP thread, the main one's first, or why all are left alone."""
    for name in _SETTLED_BY:
        if name in environ:
            return f"{name} is set"
    if torch.get_num_threads() == 1:
        return "there is one thread"
    if _openmp() is None:
        return "no OpenMP library with GOMP_parallel is loaded"
    return choose(sorted(os.sched_getaffinity(0)), torch.get_num_threads(), cpus)


def choose(allowed: Sequence[int], threads: int, cpus: Path = _CPUS) -> list[int] | str:
    """A core for each thread: whole cores before their siblings, the last ones first.

    The first cores of a machine serve most of its interrupts.
    """
    if threads > len(allowed):
        return f"{threads} threads, but only {len(allowed)} CPUs are allowed"
    seen: dict[str, int] = {}
    ranked = []  # how many siblings go before, then the CPU
    for cpu in sorted(allowed, reverse=True):
        try:
            core = (cpus / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip()
        except OSError:
            core = str(cpu)
        ranked.append((seen.get(core, 0), -cpu))
        seen[core] = seen.get(core, 0) + 1
    return [-negative for _, negative in sorted(ranked)[:threads]]


def describe() -> str:
    """What :func:`pinned` does here, in words; kept in the environment."""
    planned = plan()
    if isinstance(planned, str):
        return f"not pinned: {planned}"
    cpus = ", ".join(map(str, planned[1:]))
    return f"OpenMP threads except the main one pinned while sampling, to CPUs {cpus}"


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """Bind the OpenMP threads, all but the main one, and let them go after the context."""
    planned = plan()
    if isinstance(planned, str):
        yield
        return
    allowed = os.sched_getaffinity(0)
    _set_affinity([allowed, *({cpu} for cpu in planned[1:])])
    try:
        yield
    finally:
        _set_affinity([allowed] * len(planned))


def _set_affinity(masks: Sequence[set[int]]) -> None:
    """Give each thread of the OpenMP team its mask, from inside it."""
    library = _openmp()
    assert library is not None

    def bind(_: Any) -> None:
        with contextlib.suppress(OSError):  # a container may have taken the CPU away since
            os.sched_setaffinity(0, masks[library.omp_get_thread_num()])

    # The team that torch's own parallel regions use: libgomp keeps one for each main thread.
    library.GOMP_parallel(_TEAM_FUNCTION(bind), None, len(masks), 0)


def _openmp() -> Any:
    """The OpenMP library that torch has loaded, if it is one with GNU's entry points."""
    found = re.search(r"/\S*lib[gi]omp\S*\.so\S*", Path("/proc/self/maps").read_text())
    if found is None:
        return None
    library = ctypes.CDLL(found[0])
    return library if hasattr(library, "GOMP_parallel") else None
