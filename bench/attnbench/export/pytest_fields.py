"""A point in pytest-benchmark's words: its parameters, and what has no field there.

``pytest --benchmark`` hands these over and the export writes them, so that files of both
can be compared and grouped with each other.
"""

from __future__ import annotations

import json
from typing import Any

from attnbench.errors import UserError
from attnbench.problem import Problem
from attnbench.record import Record, Samples
from attnbench.train.derived import tokens_per_s

_KEPT = (
    "id", "problem_id", "implementation", "device", "environment", "seed", "memory", "energy",
    "energy_absent", "accuracy", "command",
)  # fmt: skip


def parameters(record: Record) -> dict[str, Any]:
    """What ``--benchmark-group-by=param:NAME`` can name: every field, and the usual short ones.

    Where a short name stands for two different numbers, both are told: seqlen ``1x4096``.
    """
    fields = {name: value for name, value in record.problem.items() if name != "mask"}
    if record.kind != "attention":  # a workload's fields are plain, and it has no mask
        return {"implementation": record.implementation.spec, **fields, "device": record.device}
    problem = _problem(record)
    if problem is None:  # its plain fields still group
        fields["mask"] = json.dumps(record.problem.get("mask"), sort_keys=True)
    else:
        fields |= {
            "mask": str(problem.mask),
            "heads": _pair(problem.heads_q, problem.heads_kv),
            "seqlen": _pair(problem.seqlen_q, problem.seqlen_k),
            "d_model": problem.d_model,
        }
    return {"implementation": record.implementation.spec, **fields, "device": record.device}


def extra_info(record: Record) -> dict[str, Any]:
    """What pytest-benchmark has no field for; times in seconds, memory in bytes.

    Of a training run also ``tokens_per_s``, with its interval.

    ``samples`` (and ``host_samples``, on CUDA) is median and interval and how they were taken,
    with the number of samples by process and round as ``per_round``.
    """
    told = record.model_dump(mode="json", exclude_none=True)
    info: dict[str, Any] = {name: told[name] for name in _KEPT if name in told}
    problem = _problem(record)
    if problem is not None:
        info |= {"flops": problem.flops(), "ideal_bytes": problem.ideal_bytes()}
    for name, samples in (("samples", record.samples), ("host_samples", record.host_samples)):
        if samples is not None:
            info[name] = _without_times(samples)
    rate = tokens_per_s(record)
    if rate is not None:
        info["tokens_per_s"] = {"median": rate.median, "low": rate.low, "high": rate.high}
    if "verdict" in record.telemetry:
        info["telemetry"] = {k: record.telemetry.get(k) for k in ("verdict", "notes")}
    return info


def _without_times(samples: Samples) -> dict[str, Any]:
    told = samples.model_dump(mode="json", exclude_none=True, exclude={"times_s"})
    return {**told, "per_round": [[len(r) for r in process] for process in samples.times_s]}


def _problem(record: Record) -> Problem | None:
    """None of another kind of record, and where a newer attnbench has written it."""
    if record.kind != "attention":
        return None
    try:
        return Problem.from_json(record.problem)
    except UserError:
        return None


def _pair(first: int, second: int) -> int | str:
    return first if first == second else f"{first}x{second}"
