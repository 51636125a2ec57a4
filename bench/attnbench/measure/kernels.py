"""What ran: names, counts and total times of the kernels of one call.

Always a pass of its own, never timed. On CUDA the kernels (and copies) that the device
executed, through CUPTI. On a CPU the operators, each with the time that is its own, not
that of the operators it calls; those that only describe tensors or call others are left
out. What torch.compile made for a CPU is one operator, CompiledFxGraph. Names are the same
in every run of the same code, so that two records can be compared by them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.autograd.profiler import profile

from attnbench.measure.meters import events
from attnbench.record import OTHERS

_MOST = 24  # entries; what the implementations of attnbench run has fewer names
_NO_WORK = frozenset((  # operators that only describe tensors, or only call others
    "alias", "as_strided", "chunk", "clone", "contiguous", "detach", "empty", "empty_like",
    "empty_strided", "expand", "expand_as", "flatten", "full", "full_like", "lift_fresh",
    "linear", "log_softmax", "mT", "masked_fill", "matmul", "movedim", "narrow", "new_empty",
    "new_empty_strided", "new_full", "new_ones", "new_zeros", "ones", "ones_like", "permute",
    "reshape", "_reshape_alias", "resolve_conj", "resolve_neg", "result_type",
    "scaled_dot_product_attention", "select", "set_", "slice", "softmax", "split",
    "split_with_sizes", "squeeze", "swapaxes", "t", "to", "_to_copy", "transpose", "type_as",
    "unbind", "unflatten", "unsafe_split", "_unsafe_view", "unsqueeze", "view", "view_as",
    "zero_", "zeros", "zeros_like",
))  # fmt: skip
# The profile's own marks, and autograd's C++ nodes, which call operators (one of Python, which
# has no number, may do its work itself).
_NO_KERNELS = re.compile(r"\[memory\]|autograd::engine::|attnbench::|\w+Backward\d+$")
_UNSTABLE = (  # what the same code is called differently in another run
    (re.compile(r"## Call CompiledFxGraph \S+ ##"), "CompiledFxGraph"),
    (re.compile(r"(Torch-Compiled Region): \S+"), r"\1"),
    (re.compile(r"0x[0-9a-fA-F]+"), "0x…"),
)


@dataclass(frozen=True)
class Ran:
    """One kernel or operator: how often, and how long altogether."""

    name: str
    count: int
    time_s: float


def what_ran(call: Callable[[], None], device: torch.device) -> list[dict[str, Any]]:
    """Run ``call`` once; its kernels, the longest first, as a record keeps them.

    Each is ``{name, count, time_s}``. Beyond the first 24 the rest is one entry named
    :data:`attnbench.record.OTHERS`, with the number of names it stands for as ``names``.
    """
    return shorten(profile_call(call, device))


def profile_call(call: Callable[[], None], device: torch.device) -> list[Ran]:
    """Run ``call`` once; everything that ran, the longest first."""
    if device.type == "cuda":
        with profile(use_cpu=False, use_device="cuda", use_kineto=True) as profiler:
            call()
        return add_up(device_kernels(events(profiler)))
    with profile() as profiler:
        call()
    return add_up(operators(events(profiler)))


def shorten(ran: list[Ran]) -> list[dict[str, Any]]:
    """The entries of a record."""
    told: list[dict[str, Any]] = [vars(r) for r in ran[:_MOST]]
    if rest := ran[_MOST:]:
        told.append(
            {
                "name": OTHERS,
                "count": sum(r.count for r in rest),
                "time_s": sum(r.time_s for r in rest),
                "names": len(rest),
            }
        )
    return told


def device_kernels(raw: Iterable[Any]) -> Iterator[tuple[str, float]]:
    """(name, seconds) of everything a CUDA device executed: kernels, copies, fills."""
    for event in raw:
        if event.device_type() == DeviceType.CUDA and (not event.is_user_annotation()):
            yield event.name(), event.duration_ns() / 1e9


def operators(raw: Iterable[Any]) -> Iterator[tuple[str, float]]:
    """(name, own seconds) of every operator: its time less that of those it called.

    Operators of one thread nest: one that begins before another has ended was called by it.
    """
    for events_ in _by_thread(raw).values():
        own_ns = [e.duration_ns() for e in events_]
        callers: list[int] = []
        for i, event in enumerate(events_):
            while callers and events_[callers[-1]].end_ns() <= event.start_ns():
                callers.pop()
            if callers:
                own_ns[callers[-1]] -= event.duration_ns()
            callers.append(i)
        for event, own in zip(events_, own_ns, strict=True):
            name = event.name()
            if name.removeprefix("aten::") not in _NO_WORK and not _NO_KERNELS.match(name):
                yield name, max(0, own) / 1e9


def add_up(found: Iterable[tuple[str, float]]) -> list[Ran]:
    """Count and total time by stable name, the longest first."""
    counts: dict[str, int] = {}
    times_s: dict[str, float] = {}
    for raw_name, time_s in found:
        name = stable_name(raw_name)
        counts[name] = counts.get(name, 0) + 1
        times_s[name] = times_s.get(name, 0.0) + time_s
    ran = [Ran(name, counts[name], times_s[name]) for name in counts]
    return sorted(ran, key=lambda r: (-r.time_s, r.name))


def stable_name(name: str) -> str:
    """The name without what differs from run to run: addresses, hashes, running numbers."""
    for pattern, instead in _UNSTABLE:
        name = pattern.sub(instead, name)
    return name


def _by_thread(raw: Iterable[Any]) -> dict[int, list[Any]]:
    """Timed CPU events by thread, callers before those they called."""
    threads: dict[int, list[Any]] = {}
    for event in raw:
        if event.device_type() == DeviceType.CPU and event.duration_ns() > 0:
            threads.setdefault(event.start_thread_id(), []).append(event)
    for events_ in threads.values():
        events_.sort(key=lambda e: (e.start_ns(), -e.end_ns()))
    return threads
