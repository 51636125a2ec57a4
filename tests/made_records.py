"""Made-up records with known noise, for the tests of comparing, history and export."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from attnbench import environment as environments
from attnbench.problem import Problem
from attnbench.record import Implementation, Memory, Record, Samples, TensorAccuracy, point_id
from attnbench.runs import Run
from attnbench.stats import median_interval
from attnbench.train.figures import Training
from attnbench.train.workload import Workload

MACHINE: Mapping[str, Any] = {
    "identity": {
        "hardware": {"device": "cpu", "cpu": "Imaginary Processor 9000", "cores": 16},
        "software": {"attnbench": "0.1.0", "torch": "2.13.0", "cuda": None},
    },
    "context": {"git": {"commit": "0123abcd" * 5, "dirty": False}},
}


def machine(context: Mapping[str, Any] | None = None, **software: str) -> dict[str, Any]:
    """The machine with other software, or other context."""
    identity = MACHINE["identity"]
    return {
        "identity": {**identity, "software": {**identity["software"], **software}},
        "context": {**MACHINE["context"], **(context or {})},
    }


def samples(rounds: Any, **changes: Any) -> Samples:
    """Samples from round medians by process: ``(processes, rounds)``, or one list of rounds."""
    times_s = np.atleast_2d(np.asarray(rounds, dtype=float))
    flat = [[float(t)] for process in times_s for t in process]
    interval = median_interval(flat)
    told = {
        "clock": "host",
        "times_s": [[[float(t)] for t in process] for process in times_s],
        "median_s": interval.median,
        "low_s": interval.low,
        "high_s": interval.high,
        "converged": True,
    }
    return Samples(**(told | changes))


def record(
    rounds: Any = (1.0, 1.001, 0.999, 1.0, 1.002),
    *,
    implementation: str = "triton",
    seqlen: int = 128,
    status: str = "ok",
    environment: Mapping[str, Any] = MACHINE,
    source: str = "a" * 64,
    error: float = 1e-4,
    how: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Record:
    """One record; ``rounds`` in seconds, ``how`` changes its samples, ``changes`` the record."""
    problem = Problem.of(seqlen=seqlen)
    machine_id = environments.machine_id(dict(environment))
    told: dict[str, Any] = {
        "id": point_id(problem.id, implementation, source, machine_id, 0),
        "suite": "quick",
        "time": "2026-01-02T03:04:05+00:00",
        "attnbench": "0.1.0",
        "implementation": Implementation(name=implementation, source_sha256=source),
        "problem": problem.to_json(),
        "problem_id": problem.id,
        "device": "cpu",
        "status": status,
        "environment": environments.address(dict(environment)),
        "wall_s": 1.25,
        "command": f"attnbench run quick --impls {implementation} --problem {problem.id} --fresh",
    }
    if status == "ok":
        out = TensorAccuracy(ok=True, rel_l2=error, rel_l2_allowed=1e-3, max_abs=error)
        told |= {
            "samples": samples(rounds, **(how or {})),
            "memory": Memory(peak_bytes=2**24, method="made up"),
            "accuracy": {"out": out},
        }
    else:
        told["reason"] = f"because of {status}"
    return Record(**(told | changes))


def learned(
    losses: Iterable[float] = (4.0, 3.5, 3.0),
    *,
    ok: bool | None = True,
    tokens: int = 512,
    metrics: Mapping[str, float | None] | None = None,
    **changes: Any,
) -> Training:
    """The figures of a training run; ``changes`` replace any of them."""
    curve = list(losses)
    last = {"bits_per_character": 2.5, "perplexity": 5.66} if metrics is None else metrics
    told: dict[str, Any] = {
        "batch": 8,
        "tokens": tokens,
        "learned_steps": len(curve),
        "losses": curve,
        "evaluations": [{"step": len(curve), "metrics": last}],
        "parity": {
            "ok": ok, "reference": "naive", "max_deviation": 2e-6, "ratio": 0.25, "step": 1,
            "deviation": 1e-6, "allowed": 4e-6, "steps": len(curve), "batch": 8, "reruns": 5,
            "rule": "made up",
        },
        "flops": {"dense": 10**9, "attention_full": 4 * 10**8, "attention_causal": 2 * 10**8,
                  "attention_own": None if ok is not None else 10**8},
        "parameters": {"total": 1000, "embedding": 100, "trainable": 900},
        "breakdown": {"forward_s": 0.3, "backward_s": 0.6, "optimizer_s": 0.1,
                      "attention_share": 0.25, "method": "made up"},
        "memory": {"parameters_bytes": 4000, "gradients_bytes": 3600, "optimizer_bytes": 7200,
                   "activations_bytes": 2**20, "peak_bytes": 2**21, "method": "made up"},
    }  # fmt: skip
    return Training.model_validate(told | changes)


def trained(
    implementation: str = "naive",
    workload: Workload | None = None,
    rounds: Any = (1.0, 1.001, 0.999, 1.0, 1.002),
    *,
    kind: str = "exact",
    training: Training | None = None,
    status: str = "ok",
    suite: str = "train-tiny",
    **changes: Any,
) -> Record:
    """One record of a training run; ``rounds`` in seconds a step."""
    workload = workload or Workload(model="gpt2-tiny", seqlen=64)
    told: dict[str, Any] = {
        "kind": "training",
        "suite": suite,
        "title": "Tiny models",
        "baseline": "naive",
        "id": point_id(workload.id, f"{suite} {implementation}", "a" * 64, "here", 0),
        "implementation": Implementation(name=implementation, kind=kind, source_sha256="a" * 64),
        "problem": workload.to_json(),
        "problem_id": workload.id,
    }
    if status == "ok":
        told["training"] = training or learned(ok=True if kind == "exact" else None)
    made = record(rounds, status=status).model_copy(update=told | changes)
    return Record.model_validate(made.model_dump())


def run(*records: Record, environment: Mapping[str, Any] = MACHINE) -> Run:
    """A run in memory."""
    address = environments.address(dict(environment))
    return Run(tuple(records), {address: environment}, ())


def write(
    folder: Path, records: Iterable[Record], name: str = "run.jsonl", *machines: Mapping[str, Any]
) -> Path:
    """A record file with the files of its environments."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("".join(r.to_line() for r in records), encoding="utf-8")
    for known in machines or (MACHINE,):
        environments.save(json.loads(json.dumps(known)), folder)
    return path
