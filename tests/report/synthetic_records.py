"""Plausible records of a made-up machine: every status, both directions, two dtypes.

Nothing here was measured. ``sweep()`` gives a suite as a runner would leave it;
``write_run()`` puts it on disk with its environment sidecar.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attnbench.problem import Problem
from attnbench.record import Implementation, Memory, Record, Samples, TensorAccuracy, point_id

IMPLEMENTATIONS = ("naive", "sdpa", "sdpa-flash", "sdpa-math", "flex", "triton:block_m=64")
SEQLENS = (128, 256, 512, 1024)
BASELINE = "naive"

ENVIRONMENT: Mapping[str, Any] = {
    "identity": {
        "hardware": {"device": "cpu", "cpu": "Imaginary Processor 9000", "cores": 16, "threads": 8},
        "software": {"torch": "2.13.0+cpu", "triton": "3.7.1", "python": "3.12.4", "cuda": None},
    },
    "context": {"git": {"commit": "0123abcd" * 5, "dirty": True}, "os": "Imaginary OS 12"},
}
_RATE = {  # GFLOPS at the largest size, float32 forward
    "naive": 60.0, "sdpa": 212.0, "sdpa-flash": 210.0, "sdpa-math": 75.0, "flex": 150.0,
    "triton:block_m=64": 30.0,
}  # fmt: skip
_UNIT_ROUNDOFF = {"float32": 6e-8, "bfloat16": 3.9e-3, "float16": 4.9e-4}


def environment_address(environment: Mapping[str, Any] = ENVIRONMENT) -> str:
    text = json.dumps(environment, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def record(
    implementation: str = "sdpa",
    problem: Problem | None = None,
    *,
    status: str = "ok",
    suite: str = "quick",
    baseline: str = BASELINE,
    rate: float | None = None,
    environment: str | None = None,
    device: str = "cpu",
    source: str = "a" * 64,
    time: str = "2026-01-02T03:04:05Z",
    **changes: Any,
) -> Record:
    """One record. ``rate`` is in GFLOP/s; ``changes`` replace any field."""
    problem = problem or Problem.of(seqlen=128)
    environment = environment or environment_address()
    rng = random.Random(f"{implementation} {problem.id} {suite}")
    name, _, options = implementation.partition(":")
    given = {k: int(v) for k, _, v in (o.partition("=") for o in options.split(",") if o)}
    fields: dict[str, Any] = {
        "id": point_id(problem.id, f"{suite} {implementation}", source, environment + device, 0),
        "suite": suite,
        "title": f"The {suite} suite",
        "baseline": baseline,
        "time": time,
        "attnbench": "0.1.0",
        "implementation": Implementation(
            name=name, given=given, options=given, origin="built-in", source_sha256=source
        ),
        "problem": problem.to_json(),
        "problem_id": problem.id,
        "device": device,
        "status": status,
        "environment": environment,
        "wall_s": round(rng.uniform(0.5, 4), 3),
        "command": f"attnbench run {suite} --impls '{implementation}' --point {problem.id}",
    }
    if status == "ok":
        fields |= _measured(implementation, problem, rate, rng)
    else:
        fields |= _failed(implementation, problem, status, rng)
    return Record(**(fields | changes))


def sweep(
    suite: str = "quick",
    implementations: Sequence[str] = IMPLEMENTATIONS,
    *,
    seqlens: Sequence[int] = SEQLENS,
    directions: Sequence[str] = ("forward", "backward"),
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    masks: Sequence[str] = ("full", "causal"),
    **changes: Any,
) -> list[Record]:
    """A grid with every status in it, and most points ok."""
    records = []
    for direction in directions:
        for dtype in dtypes:
            for mask in masks:
                for seqlen in seqlens:
                    problem = Problem.of(
                        heads=8, head_dim=64, seqlen=seqlen, dtype=dtype, mask=mask,
                        direction=direction,
                    )  # fmt: skip
                    records += [
                        record(name, problem, status=_status(name, problem), suite=suite, **changes)
                        for name in implementations
                    ]
    return records


def write_run(
    folder: Path,
    records: Iterable[Record],
    *,
    name: str = "run.jsonl",
    environment: Mapping[str, Any] | None = ENVIRONMENT,
) -> Path:
    """Write a record file, and the sidecar unless ``environment`` is None."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("".join(r.to_line() for r in records), encoding="utf-8")
    if environment is not None:
        sidecar = folder / f"environment-{environment_address(environment)}.json"
        sidecar.write_text(json.dumps(environment), encoding="utf-8")
    return path


def _status(name: str, problem: Problem) -> str:
    largest, small = problem.seqlen_q >= 1024, problem.seqlen_q <= 128
    if name.startswith("triton") and problem.direction == "backward":
        return "unsupported"
    if (
        name == "naive"
        and largest
        and problem.direction == "backward"
        and problem.dtype == "float32"
    ):
        return "oom"
    if name == "flex" and problem.dtype == "bfloat16" and str(problem.mask) == "causal" and small:
        return "incorrect"
    if name == "sdpa-math" and problem.dtype == "bfloat16" and largest and problem.mask.is_causal:
        return "crash" if problem.direction == "forward" else "timeout"
    return "ok"


def _measured(
    name: str, problem: Problem, rate: float | None, rng: random.Random
) -> dict[str, Any]:
    gflops = rate if rate is not None else _rate(name, problem)
    median = problem.flops() / (gflops * 1e9)
    width = rng.uniform(0.004, 0.03)
    rounds = [[median * rng.uniform(1 - width, 1 + width) for _ in range(5)] for _ in range(4)]
    linear = problem.batch * problem.heads_q * problem.seqlen_q * problem.head_dim * 4
    quadratic = problem.batch * problem.heads_q * problem.seqlen_q * problem.seqlen_k * 4
    scores = 2 * quadratic if name in ("naive", "sdpa-math") else 0
    return {
        "samples": Samples(
            clock="host", times_s=[rounds], calls_per_sample=2, warmup_s=0.01, median_s=median,
            low_s=median * (1 - width), high_s=median * (1 + width), converged=width < 0.025,
        ),
        "memory": Memory(peak_bytes=linear + scores, saved_bytes=2 * linear, method="allocator"),
        "accuracy": _accuracy(problem, rng, 1.0),
    }  # fmt: skip


def _rate(name: str, problem: Problem) -> float:
    gflops = _RATE.get(name, 100.0) * (problem.seqlen_q / 1024) ** (
        0.05 if name == "naive" else 0.35
    )
    gflops *= 0.8 if problem.direction == "backward" else 1.0
    gflops *= {"float32": 1.0, "bfloat16": 0.55}.get(problem.dtype, 1.0)
    return gflops * (0.6 if problem.mask.is_causal and name in ("naive", "sdpa-math") else 1.0)


def _accuracy(problem: Problem, rng: random.Random, factor: float) -> dict[str, TensorAccuracy]:
    tensors = ("out",) if problem.direction == "forward" else ("out", "dq", "dk", "dv")
    found = {}
    for tensor in tensors:
        allowed = 4 * _UNIT_ROUNDOFF[problem.dtype] * math.sqrt(problem.seqlen_k / 128)
        error = allowed * rng.uniform(0.1, 0.6) * factor
        found[tensor] = TensorAccuracy(
            ok=error <= allowed, rel_l2=error, rel_l2_allowed=allowed, max_abs=error * 3,
            max_abs_allowed=allowed * 3, naive_rel_l2=allowed / 2, naive_max_abs=allowed * 1.5,
            quantiles={"0.5": error / 2, "0.99": error * 2},
            verdict=f"this mismatch is {'' if error <= allowed else 'not '}normal",
        )  # fmt: skip
    return found


def _failed(name: str, problem: Problem, status: str, rng: random.Random) -> dict[str, Any]:
    reasons = {
        "unsupported": "does not do the backward pass",
        "unavailable": f"cannot be imported: no module named {name!r}",
        "oom": f"out of memory: needed {problem.seqlen_q / 256:.1f} GiB, 3.2 GiB were free",
        "incorrect": "out: relative L2 error 3.1e-01, allowed 1.6e-02",
        "crash": "the worker died: signal 11 (SIGSEGV)",
        "timeout": "no answer within 60 s; the worker was killed",
        "error": "RuntimeError: the kernel does not like this shape",
    }
    fields: dict[str, Any] = {"reason": reasons[status]}
    if status in ("crash", "error", "timeout"):
        fields["log_tail"] = 'Fatal Python error: Segmentation fault\n  File "kernel.py", line 7\n'
    if status == "incorrect":
        fields["accuracy"] = _accuracy(problem, rng, 20.0)
    return fields
