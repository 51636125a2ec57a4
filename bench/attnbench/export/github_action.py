"""github-action-benchmark, ``tool: customSmallerIsBetter``.

An array of ``{name, unit, value, range, extra}``. The unit never changes, because the
action draws values of one name in one chart whatever their unit. (Its ``tool: pytest``
reads the pytest-benchmark format, but draws means as iterations a second.)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attnbench.export import Exported
from attnbench.export.points import Named, load_points
from attnbench.record import Record
from attnbench.train.derived import tokens_per_s


def write(results: Sequence[Path]) -> Exported:
    """The median of every point in milliseconds, and its peak memory in MiB."""
    points, problems = load_points(results).timed()
    entries = [entry for point in points for entry in _entries(point)]
    return Exported((json.dumps(entries, indent=1, allow_nan=False) + "\n").encode(), problems)


def _entries(point: Named) -> list[dict[str, Any]]:
    record = point.record
    assert record.samples is not None
    s = record.samples
    count = sum(len(r) for process in s.times_s for r in process)
    entries: list[dict[str, Any]] = [
        {
            "name": point.name,
            "unit": "ms",
            "value": s.median_s * 1e3,
            "range": f"± {(s.high_s - s.low_s) / 2 * 1e3:.4g}",
            "extra": f"{s.clock} clock, {count} samples{_rate(record)}\n"
            f"reproduce: {record.command}",
        }
    ]
    if record.memory is not None and record.memory.peak_bytes is not None:
        mib = record.memory.peak_bytes / 2**20
        entries.append({"name": f"{point.name} peak memory", "unit": "MiB", "value": mib})
    return entries


def _rate(record: Record) -> str:
    """Of a training run: larger is better, so that it is told and not drawn."""
    rate = tokens_per_s(record)
    return f", {rate.median:.6g} tokens/s" if rate is not None else ""
