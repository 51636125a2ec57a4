"""The frame: every record as one row of a pandas DataFrame, derived figures included.

This is what to load results into. Columns have their unit in their name; a figure that was
not measured is missing (NaN), never 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from attnbench.record import Memory
from attnbench.report.points import MEASURES, Point, load_points
from attnbench.report.training_frame import columns, generation_columns, interval_columns

_HOW = ("converged", "clock", "method", "cache")  # fields of the samples
_BYTES = tuple(name for name in Memory.model_fields if name.endswith("_bytes"))
_ERRORS = (
    *(name for m in MEASURES for name in (m, f"{m}_allowed")), "naive_rel_l2", "naive_max_abs",
)  # fmt: skip


def load_frame(results: Sequence[Path]) -> pd.DataFrame:
    """Records as a frame, one row a point, in an order that does not depend on the files'.

    Columns: identity (``id``, ``suite``, ``implementation`` with its options, ``machine``,
    ``device``, ``environment``), the problem's fields (``seqlen_q``, ``dtype``, ``mask``,
    …), ``status`` and ``reason``; ``simulated`` (what ran in a simulator has no timing);
    ``median_s``, ``tflops`` and ``speedup`` (against the suite's baseline), each with
    ``…low`` and ``…high`` of its 95 % interval;
    ``host_median_s`` likewise, on CUDA; how it was timed, as ``clock``, ``method`` and
    ``cache``, and whether it ``converged``; ``flops``,
    ``ideal_bytes``, ``intensity`` (FLOPs a byte); ``roofline_share`` and ``roofline_bound``;
    ``gross_joules``, ``net_joules`` and ``joules_per_token`` (gross); ``disturbance``, the
    telemetry's verdict; of approximate methods ``own_flops``, ``out_distance``,
    ``out_cosine``, … and ``weights_tv``; ``peak_bytes``, ``saved_bytes``; for each
    tensor ``out_rel_l2``, ``out_rel_l2_allowed``, …; and ``error_ratio``, the worst error ÷
    its tolerance. ``frame.attrs["problems"]`` holds a line for everything left out.

    ``record_kind`` tells single attentions from training runs, whose ``median_s`` is of a step,
    whose ``speedup`` is the ratio of tokens/s, and which have columns of their own: see
    :func:`attnbench.report.training_frame.columns`; and from generations, see
    :func:`attnbench.report.training_frame.generation_columns`.

    Raises:
        UserError: a path does not exist.
    """
    loaded = load_points(results)
    frame = pd.DataFrame([_row(point) for point in loaded.points])
    frame.attrs["problems"] = list(loaded.problems)
    return frame


def _row(point: Point) -> dict[str, Any]:
    record = point.record
    row: dict[str, Any] = {
        "id": record.id,
        "suite": record.suite,
        "record_kind": record.kind,
        "implementation": point.implementation,
        "name": record.implementation.name,
        "kind": record.implementation.kind,
        "version": record.implementation.version,
        "source_sha256": record.implementation.source_sha256,
        "simulated": record.implementation.simulated,
        "status": record.status,
        "reason": record.reason,
        "device": record.device,
        "machine": point.machine,
        "environment": record.environment,
        "time": record.time,
        "baseline": record.baseline,
        "is_baseline": point.is_baseline,
        "problem_id": record.problem_id,
        **point.fields,
        **interval_columns("median_s", "low_s", "high_s", point.time_s),
        **interval_columns("host_median_s", "host_low_s", "host_high_s", point.host_s),
        **{name: getattr(record.samples, name, None) for name in _HOW},
        **interval_columns("tflops", "tflops_low", "tflops_high", point.rate, 1e-12),
        **interval_columns("speedup", "speedup_low", "speedup_high", point.speedup),
        "flops": point.flops,
        "ideal_bytes": point.ideal_bytes,
        "intensity": point.intensity,
        "roofline_share": point.place.share if point.place else None,
        "roofline_bound": point.place.bound if point.place else None,
        "gross_joules": record.energy.gross_j if record.energy else None,
        "net_joules": record.energy.net_j if record.energy else None,
        "joules_per_token": point.joules_per_token,
        "own_flops": record.flops,
        "weights_tv": record.weights_tv,
        "disturbance": record.telemetry.get("verdict"),
        **{name: getattr(record.memory, name) if record.memory else None for name in _BYTES},
    }
    for tensor, accuracy in record.accuracy.items():
        row |= {f"{tensor}_{name}": getattr(accuracy, name) for name in _ERRORS}
    for tensor, distance in record.distance.items():
        row |= {f"{tensor}_distance": distance.rel_l2, f"{tensor}_cosine": distance.cosine}
    worst = point.worst_error
    row |= {"worst_tensor": worst[0] if worst else None, "error_ratio": worst[1] if worst else None}
    row |= columns(point) if point.kind == "training" else generation_columns(point)
    return row | {"wall_s": record.wall_s, "command": record.command}
