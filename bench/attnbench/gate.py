"""What a change must not do besides getting slower: fail, take more memory, be less accurate.

These are measured without scatter (the same seed draws the same inputs), so that each has
a plain threshold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from attnbench.record import Record, TensorAccuracy

MEMORY_SHARE = 0.05
MEMORY_BYTES = 2**20
"""More memory is a regression from 5 % and 1 MiB more: less is the allocator's rounding."""
ACCURACY_FACTOR = 1.5
ACCURACY_SHARE = 0.1
"""Worse accuracy is a regression from an error of 1.5 times as large, if it also grew by a
tenth of what is allowed: less is the order of summation."""

_MEMORY = {"peak_bytes": "peak memory", "saved_bytes": "memory saved for backward"}
_ERRORS = ("rel_l2", "max_abs", "row_rel")

Kind = Literal["failure", "memory", "accuracy"]


@dataclass(frozen=True)
class Regression:
    """One thing that got worse, in words."""

    kind: Kind
    text: str


@dataclass(frozen=True)
class KernelChange:
    """Names of kernels that ran on one side only."""

    gone: tuple[str, ...]
    added: tuple[str, ...]


def regressions(base: Record, new: Record) -> tuple[Regression, ...]:
    """Everything but time that got worse between two records of one point on one machine."""
    return (*_failure(base, new), *_memory(base, new), *_accuracy(base, new))


def kernel_change(base: Record, new: Record) -> KernelChange | None:
    """What ran before and what runs now; None if it is the same, or one side does not tell."""
    if not base.kernels or not new.kernels:
        return None
    before, after = (
        dict.fromkeys(str(k["name"]) for k in record.kernels if "name" in k)
        for record in (base, new)
    )
    gone = tuple(name for name in before if name not in after)
    added = tuple(name for name in after if name not in before)
    return KernelChange(gone, added) if gone or added else None


def _failure(base: Record, new: Record) -> Iterator[Regression]:
    if base.status == "ok" and new.status != "ok":
        yield Regression("failure", f"ok → {new.status}: {new.reason}")


def _memory(base: Record, new: Record) -> Iterator[Regression]:
    if base.memory is None or new.memory is None or base.memory.method != new.memory.method:
        return
    for name, words in _MEMORY.items():
        before, after = getattr(base.memory, name), getattr(new.memory, name)
        if before is None or after is None:
            continue
        if after > before * (1 + MEMORY_SHARE) + MEMORY_BYTES:
            growth = f", {after / before - 1:+.1%}" if before else ""
            yield Regression("memory", f"{words} {_mib(before)} → {_mib(after)}{growth}")


def _accuracy(base: Record, new: Record) -> Iterator[Regression]:
    for tensor in base.accuracy.keys() & new.accuracy.keys():
        for name in _ERRORS:
            before = _share(base.accuracy[tensor], name)
            after = _share(new.accuracy[tensor], name)
            if before is None or after is None:
                continue
            if after > before * ACCURACY_FACTOR and after > before + ACCURACY_SHARE:
                yield Regression(
                    "accuracy", f"{tensor} {name} {before:.0%} → {after:.0%} of what is allowed"
                )


def _share(accuracy: TensorAccuracy, name: str) -> float | None:
    """Error ÷ tolerance; None where one is not told, or nothing is allowed."""
    error, allowed = getattr(accuracy, name), getattr(accuracy, f"{name}_allowed")
    return error / allowed if error is not None and allowed else None


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
