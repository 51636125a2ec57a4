"""What a training record's figures say together: worked out on load, never stored.

MFU is model FLOPs a second over the rate that products of the workload's precision reached on
the same device when its ceilings were measured; beside it, over the datasheet's peak where
that is known. Of several ranks, that is times their number. For an approximate method the share
by the others' count is an *effective* one, and its own count has a share of its own. A teacher's
forward is in no MFU, though it is in the seconds; its share of the peak is told beside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from attnbench.limits import ceilings_of
from attnbench.record import Record
from attnbench.stats import Interval
from attnbench.train.figures import Training

_UNITS: Mapping[str, str] = {  # of the matrix products, by precision
    "fp32": "float32", "tf32": "tf32", "bf16": "bfloat16", "fp16": "float16",
}  # fmt: skip
# Dense peaks in FLOPS by part of the GPU's name, the longest first, from NVIDIA's datasheets:
# (16-bit with float32 accumulation, TF32, float32 outside the matrix units).
_PEAKS: tuple[tuple[str, float, float, float], ...] = (
    ("H100 PCIe", 756e12, 378e12, 51e12),
    ("H100 NVL", 835e12, 417e12, 60e12),
    ("GH200", 989e12, 494e12, 67e12),
    ("H200", 989e12, 494e12, 67e12),
    ("H100", 989e12, 494e12, 67e12),
    ("B200", 2250e12, 1125e12, 75e12),
    ("A100", 312e12, 156e12, 19.5e12),
    ("A10G", 70e12, 35e12, 35e12),
    ("L40S", 362e12, 183e12, 91.6e12),
    ("L4", 121e12, 60e12, 30.3e12),
)


@dataclass(frozen=True)
class Mfu:
    """Shares of a peak, by both conventions.

    Attributes:
        full, causal: model FLOPs a second ÷ peak; *effective* where ``is_effective``.
        own: of an approximate method, by its own count.
        teacher: of what a teacher's forward computes (exact pairs), which is in none of these.
        peak: in FLOPS; ``what`` says which.
        is_effective: whether ``full`` and ``causal`` count work that was not done.
    """

    full: float
    causal: float
    own: float | None
    teacher: float | None
    peak: float
    what: str
    is_effective: bool


def tokens_per_s(record: Record) -> Interval | None:
    """Throughput with its 95 % interval; None for a record without timings."""
    if record.training is None or record.samples is None:
        return None
    tokens, samples = record.training.tokens, record.samples
    return Interval(tokens / samples.median_s, tokens / samples.high_s, tokens / samples.low_s)


def joules_per_token(record: Record) -> float | None:
    """Gross joules of the device a token; None where energy was not measured."""
    if record.training is None or record.energy is None:
        return None
    return record.energy.gross_j / record.training.tokens


def mfu_measured(record: Record, environment: Mapping[str, Any]) -> Mfu | None:
    """Shares of the rate that was measured on the device; None where none was."""
    ceilings = ceilings_of(environment)
    unit = _UNITS.get(str(record.problem.get("precision")))
    if ceilings is None or unit is None or unit not in ceilings.matmul:
        return None
    return _mfu(record, ceilings.matmul[unit].median, f"measured {unit} products")


def mfu_datasheet(record: Record, environment: Mapping[str, Any]) -> Mfu | None:
    """Shares of the datasheet's peak; None for a device that is not in the table."""
    gpu = str(environment.get("identity", {}).get("hardware", {}).get("gpu") or "")
    column = {"tf32": 2, "fp32": 3}.get(str(record.problem.get("precision")), 1)
    for row in _PEAKS:
        if row[0] in gpu:
            return _mfu(record, float(row[column]), f"datasheet of {row[0]}")
    return None


def _mfu(record: Record, peak: float, what: str) -> Mfu | None:
    training = record.training
    if training is None or record.samples is None or record.implementation.simulated:
        return None
    if training.ranks is not None:
        peak, what = peak * training.ranks.processes, f"{what}, {training.ranks.processes} ranks"
    whole, flops = peak * record.samples.median_s, training.flops
    own = _own(training)
    return Mfu(
        full=flops.full / whole,
        causal=flops.causal / whole,
        own=own / whole if own is not None else None,
        teacher=flops.teacher.causal / whole if flops.teacher is not None else None,
        peak=peak,
        what=what,
        is_effective=own is not None,
    )


def _own(training: Training) -> int | None:
    own = training.flops.attention_own
    return None if own is None else training.flops.dense + own
