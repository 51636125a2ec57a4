"""Bencher Metric Format: for ``bencher run --adapter json --file FILE``.

https://bencher.dev/docs/reference/bencher-metric-format: benchmark → measure → value with
lower and upper value. ``latency`` is Bencher's own measure, in nanoseconds (of a call, or of a
training step); a measure that a project does not have yet (``peak-memory``, in bytes;
``tokens-per-second``, of training runs) is made by the first report.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from attnbench.export import Exported
from attnbench.export.points import load_points
from attnbench.record import Record
from attnbench.train.derived import tokens_per_s

_LONGEST_NAME = 1024


def write(results: Sequence[Path]) -> Exported:
    """The median of every point with its 95 % interval, its peak memory and its tokens/s."""
    points, problems = load_points(results).timed()
    document = {p.name[:_LONGEST_NAME]: _measures(p.record) for p in points}
    return Exported((json.dumps(document, indent=1, allow_nan=False) + "\n").encode(), problems)


def _measures(record: Record) -> dict[str, dict[str, float]]:
    assert record.samples is not None
    times_s = record.samples.median_s, record.samples.low_s, record.samples.high_s
    names = "value", "lower_value", "upper_value"
    measures = {"latency": {n: t * 1e9 for n, t in zip(names, times_s, strict=True)}}
    if record.memory is not None and record.memory.peak_bytes is not None:
        measures["peak-memory"] = {"value": float(record.memory.peak_bytes)}
    rate = tokens_per_s(record)
    if rate is not None:
        ends = rate.median, rate.low, rate.high
        measures["tokens-per-second"] = dict(zip(names, ends, strict=True))
    return measures
