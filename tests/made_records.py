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
