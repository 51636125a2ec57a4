"""pytest-benchmark's JSON, as ``pytest --benchmark --benchmark-json FILE`` writes it.

Read by ``pytest-benchmark compare``, ``pytest --benchmark-compare``, Bencher's
``python_pytest`` adapter and github-action-benchmark's ``tool: pytest``. Statistics are
over all samples, by pytest-benchmark's own definitions; the figures to trust (median and
interval over rounds and processes) are in ``extra_info``.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attnbench.export import Exported
from attnbench.export.points import Named, load_points
from attnbench.export.pytest_fields import extra_info, parameters
from attnbench.record import Record

_FORMAT = "5.3.1"  # of pytest-benchmark, whose files these look like
_UNKNOWN_COMMIT = "unversioned"  # what pytest-benchmark says without a repository


def write(results: Sequence[Path]) -> Exported:
    """Every point that has a time."""
    loaded = load_points(results)
    points, problems = loaded.timed()
    newest = max((p.record for p in loaded.points), key=lambda r: r.time)
    environment = loaded.environments.get(newest.environment, {})
    document = {
        "machine_info": _machine_info(_part(environment, "identity")),
        "commit_info": _commit_info(_part(environment, "context"), newest),
        "benchmarks": [_benchmark(p) for p in points],
        "datetime": newest.time,
        "version": _FORMAT,
    }
    text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False)
    return Exported((text + "\n").encode(errors="replace"), problems)


def _machine_info(identity: Mapping[str, Any]) -> dict[str, Any]:
    """pytest-benchmark's names for what is known, and all of it under our own."""
    hardware, software = _part(identity, "hardware"), _part(identity, "software")
    told = {
        "processor": hardware.get("cpu"),
        "python_version": software.get("python"),
        "release": hardware.get("kernel"),
    }
    cpu = {"brand_raw": hardware.get("cpu"), "count": hardware.get("cores")}
    known = {name: value for name, value in told.items() if value is not None}
    return {**known, "cpu": {k: v for k, v in cpu.items() if v is not None}, "attnbench": identity}


def _commit_info(context: Mapping[str, Any], record: Record) -> dict[str, Any]:
    git = _part(context, "git")
    return {
        "id": git.get("commit", _UNKNOWN_COMMIT),
        "time": record.time,
        "dirty": bool(git.get("dirty", False)),
        "project": "attnbench",
        "branch": git.get("branch", "(unknown)"),
    }


def _part(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A table of an environment; empty if it has none, or something else in its place."""
    part = data.get(name)
    return part if isinstance(part, Mapping) else {}


def _benchmark(point: Named) -> dict[str, Any]:
    record = point.record
    words = "-".join(point.words.replace("×", "x").split())
    name = f"test_{record.kind}[{words}]"
    return {
        "group": point.label,
        "name": name,
        "fullname": f"suites/{record.suite}.toml::{name}",
        "params": parameters(record),
        "param": words,
        "extra_info": extra_info(record),
        "options": {},
        "stats": _statistics(record),
    }


def _statistics(record: Record) -> dict[str, Any]:
    """The fields of pytest-benchmark's ``Stats``, in seconds a call."""
    assert record.samples is not None
    data = [t for process in record.samples.times_s for r in process for t in r]
    ordered, total = sorted(data), sum(data)
    mean = statistics.mean(data)
    stddev = statistics.stdev(data) if len(data) > 1 else 0.0
    q1, q3 = _quartiles(ordered)
    iqr = q3 - q1
    inside = [t for t in ordered if q1 - 1.5 * iqr <= t <= q3 + 1.5 * iqr]
    outliers = len(data) - len(inside)
    far = sum(not mean - stddev <= t <= mean + stddev for t in data)
    return {
        "min": ordered[0],
        "max": ordered[-1],
        "mean": mean,
        "stddev": stddev,
        "rounds": len(data),
        "median": statistics.median(data),
        "iqr": iqr,
        "q1": q1,
        "q3": q3,
        "iqr_outliers": outliers,
        "stddev_outliers": far,
        "outliers": f"{far};{outliers}",
        "ld15iqr": inside[0],
        "hd15iqr": inside[-1],
        "ops": len(data) / total,
        "total": total,
        "data": data,
        "iterations": record.samples.calls_per_sample,
    }


def _quartiles(ordered: Sequence[float]) -> tuple[float, float]:
    """Quartiles as pytest-benchmark takes them (methods 2 and 3 of Wikipedia's article)."""
    n, rest = divmod(len(ordered), 4)
    if len(ordered) == 1:
        return ordered[0], ordered[0]
    if rest == 1:
        low = 0.25 * ordered[n - 1] + 0.75 * ordered[n]
        return low, 0.75 * ordered[3 * n] + 0.25 * ordered[3 * n + 1]
    if rest == 3:
        low = 0.75 * ordered[n] + 0.25 * ordered[n + 1]
        return low, 0.25 * ordered[3 * n + 1] + 0.75 * ordered[3 * n + 2]
    half = len(ordered) // 2
    return statistics.median(ordered[:half]), statistics.median(ordered[half:])
