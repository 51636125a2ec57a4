"""What a change must not do besides getting slower: fail, take more memory, be less accurate.

These are measured without scatter (the same seed draws the same inputs), so that each has
a plain threshold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from attnbench.record import OTHERS, Record, TensorAccuracy

MEMORY_SHARE = 0.05
MEMORY_BYTES = 2**20
"""More memory is a regression if it is more than 5 % and more than 1 MiB: less is the
allocator's rounding."""
ACCURACY_FACTOR = 1.5
ACCURACY_SHARE = 0.1
"""Worse accuracy is a regression if the error is more than 1.5 times as large and grew by
more than a tenth of what is allowed: less is the order of summation. An approximate method
is allowed any error; there it counts if the error grew by more than the whole error of the
textbook in the same dtype."""

_MEMORY = {
    "peak_bytes": "peak memory",
    "forward_peak_bytes": "peak memory of forward",
    "saved_bytes": "memory saved for backward",
    "backward_peak_bytes": "peak memory of backward",
}
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
    """What ran before and what runs now; None if it is the same, or one side does not tell.

    A record sums its shortest kernels in one entry. A kernel of the other side that took no
    longer than that entry may be in there, and is not taken for a change.
    """
    if not base.kernels or not new.kernels:
        return None
    before, after = ({str(k["name"]): k for k in r.kernels if k.get("name")} for r in (base, new))
    gone, added = _missing(before, after), _missing(after, before)
    return KernelChange(gone, added) if gone or added else None


def _missing(kernels: Mapping[str, Mapping[str, Any]], other: Mapping[str, Any]) -> tuple[str, ...]:
    """Names that did not run on the other side."""
    hidden_s = _seconds(other.get(OTHERS, {}))
    return tuple(
        name
        for name, kernel in kernels.items()
        if name not in other and name != OTHERS and (not hidden_s or _seconds(kernel) > hidden_s)
    )


def _seconds(kernel: Mapping[str, Any]) -> float:
    value = kernel.get("time_s")
    return float(value) if isinstance(value, (int, float)) else 0.0


def _failure(base: Record, new: Record) -> Iterator[Regression]:
    if base.status == "ok" and new.status != "ok":
        yield Regression("failure", f"ok → {new.status}: {new.reason}")


def _memory(base: Record, new: Record) -> Iterator[Regression]:
    if base.memory is None or new.memory is None or base.memory.method != new.memory.method:
        return
    for name, words in _MEMORY.items():
        before, after = getattr(base.memory, name, None), getattr(new.memory, name, None)
        if before is None or after is None:
            continue
        if after > max(before * (1 + MEMORY_SHARE), before + MEMORY_BYTES):
            growth = f", {after / before - 1:+.1%}" if before else ""
            yield Regression("memory", f"{words} {_mib(before)} → {_mib(after)}{growth}")


def _accuracy(base: Record, new: Record) -> Iterator[Regression]:
    for tensor, before in base.accuracy.items():
        after = new.accuracy.get(tensor)
        if after is None:
            continue
        told = {name: _worse(before, after, name) for name in _ERRORS}
        worst = max(told, key=lambda name: told[name])
        if told[worst] > 0:
            errors = f"{getattr(before, worst):.1e} → {getattr(after, worst):.1e}"
            allowed = getattr(after, f"{worst}_allowed")
            limit = f" of {allowed:.1e} allowed" if allowed else ""
            yield Regression("accuracy", f"{tensor} {worst} {errors}{limit}")


def _worse(before: TensorAccuracy, after: TensorAccuracy, name: str) -> float:
    """By how many times of what may pass an error grew; 0 if that is no regression."""
    error, grown = getattr(before, name), getattr(after, name)
    allowed = getattr(after, f"{name}_allowed")
    slack = ACCURACY_SHARE * allowed if allowed else getattr(after, f"naive_{name}", None)
    if error is None or grown is None or not slack:
        return 0.0
    is_worse = grown > error * ACCURACY_FACTOR and grown - error > slack
    return float((grown - error) / slack) if is_worse else 0.0


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
