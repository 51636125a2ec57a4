"""What a sweep varied: its horizontal axis, and the panels that keep the rest apart.

A suite may sweep seqlen, heads, d_model, precision, a window, or a list of models. The
axis is the field that really varies; everything else that varies on its own becomes a
panel of its own, so that a line never joins two different problems.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from attnbench.report.points import Point

# Fields that may be an axis, best first; any of the masks' own sizes may be swept.
_MASK_SIZES = (
    "window", "prefix", "stride", "count", "block", "density", "window_blocks",
    "global_blocks", "random_blocks",
)  # fmt: skip
AXES = (
    "seqlen_q", "seqlen_k", "heads_q", "d_model", "head_dim", "heads_kv", "batch",
    *_MASK_SIZES, "dropout_p", "softcap", "dtype", "mask",
)  # fmt: skip
# Fields that may tell panels apart, in the order in which a panel's title says them.
_FACETS = (
    "direction", "dtype", "mask", "level", "decode", "inputs", "seqlen_q", "seqlen_k", "batch",
    "heads_q", "heads_kv", "head_dim", "head_dim_v", "dropout_p", "softcap", "scale", "alibi",
    "seed",
)  # fmt: skip
# These never share a line, whatever the axis: it is another computation.
_ALWAYS_APART = ("direction", "dtype", "level", "decode")
_SHAPE = ("batch", "heads_q", "heads_kv", "seqlen_q", "seqlen_k", "head_dim", "head_dim_v")
# Shape fields that may follow an axis without making it another sweep: FlashAttention's
# own sweep keeps batch × seqlen constant, a sweep of heads keeps d_model.
_HEADS = {"heads_q", "heads_kv", "head_dim", "head_dim_v"}
_FOLLOWERS: Mapping[str, set[str]] = {
    "seqlen_q": {"seqlen_k", "batch"},
    "seqlen_k": {"seqlen_q", "batch"},
    "batch": {"seqlen_q", "seqlen_k"},
    "heads_q": _HEADS,
    "d_model": _HEADS,
    "head_dim": _HEADS,
}
_LABELS = {
    "seqlen_q": "seqlen", "heads_q": "heads", "dropout_p": "dropout", "shape": "shape",
    "document": "documents",
}  # fmt: skip

Kind = Literal["log", "linear", "ordinal"]


@dataclass(frozen=True)
class Axis:
    """The swept field, with its values in order. ``ordinal`` values are texts."""

    field: str
    label: str
    kind: Kind
    values: tuple[Any, ...]

    def name(self, value: Any) -> str:
        """A value as a tick or a column says it: 16384 is ``16k``."""
        if self.kind != "ordinal" and isinstance(value, int) and value >= 1024:
            return f"{value // 1024}k" if value % 1024 == 0 else str(value)
        return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Panel:
    """Points that differ in nothing but the axis and the implementation."""

    facets: Mapping[str, Any]
    points: tuple[Point, ...]

    @property
    def title(self) -> str:
        """What the panel is of: ``forward · bfloat16 · causal``."""
        return " · ".join(facet_text(k, v) for k, v in self.facets.items())


@dataclass(frozen=True)
class Scope:
    """Points of one suite on one device of one machine, split along their sweep."""

    suite: str
    title: str
    machine: str
    device: str
    baseline: str
    axis: Axis
    panels: tuple[Panel, ...]

    @property
    def points(self) -> tuple[Point, ...]:
        """All points, panel by panel."""
        return tuple(point for panel in self.panels for point in panel.points)

    def x(self, point: Point) -> Any:
        """Where a point lies on the axis."""
        return axis_value(self.axis.field, point)


def scopes(points: Iterable[Point], axis: str = "auto") -> tuple[Scope, ...]:
    """Keep suites, machines and devices apart, and split each along what it sweeps.

    Args:
        axis: a field of :data:`AXES`, or ``auto``.
    """
    groups: dict[tuple[str, str, str], list[Point]] = {}
    for point in points:
        groups.setdefault(point.scope, []).append(point)
    return tuple(_scope(groups[key], axis) for key in sorted(groups))


def facet_text(field: str, value: Any) -> str:
    """One facet in a title: the value, with its field where that is not plain."""
    if field in ("direction", "dtype", "mask", "level", "inputs"):
        return str(value)
    if isinstance(value, bool):
        return field if value else f"no {field}"
    return f"{_LABELS.get(field, field)} {value}"


def axis_value(field: str, point: Point) -> Any:
    """The value of a field (or the shape) of a point."""
    return _shape_text(point) if field == "shape" else point.fields.get(field)


def natural(text: str) -> list[tuple[int, int, str]]:
    """A sorting key that puts ``window=64`` before ``window=128``."""
    parts = re.split(r"(\d+)", text)
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts]


def _scope(points: Sequence[Point], wanted: str) -> Scope:
    first = points[0]
    is_swept = _usable(wanted, points) and len(_values(wanted, points)) > 1
    field = wanted if is_swept else _choose_axis(points)
    facets = _facets(field, points)
    groups: dict[tuple[Any, ...], list[Point]] = {}
    for point in points:
        groups.setdefault(tuple(point.fields.get(f) for f in facets), []).append(point)
    panels = [
        Panel(dict(zip(facets, key, strict=True)), tuple(sorted(groups[key], key=_in_panel(field))))
        for key in sorted(
            groups, key=lambda k: [facet_order(f, v) for f, v in zip(facets, k, strict=True)]
        )
    ]
    return Scope(
        first.record.suite,
        first.record.title or first.record.suite,
        first.machine,
        first.record.device,
        next((p.record.baseline for p in points if p.record.baseline), ""),
        _axis(field, points),
        tuple(panels),
    )


def _choose_axis(points: Sequence[Point]) -> str:
    """The first field that varies and makes a sweep; a suite named after one comes first."""
    suite = points[0].record.suite
    varying = [f for f in AXES if _usable(f, points) and len(_values(f, points)) > 1]
    named = [f for f in varying if suite in (f, _LABELS.get(f))]
    for field in dict.fromkeys(named + varying):
        if _is_sweep(field, points):
            return field
    return "shape"


def _is_sweep(field: str, points: Sequence[Point]) -> bool:
    """Whether other shape fields stay put along this axis, and lines have several points."""
    facets = _facets(field, points)
    panels: dict[tuple[Any, ...], set[Any]] = {}
    for point in points:
        key = tuple(point.fields.get(f) for f in facets)
        panels.setdefault(key, set()).add(point.fields.get(field))
    lengths = sorted(len(values) for values in panels.values())
    following = {f for f in _SHAPE if f not in (field, *facets) and len(_values(f, points)) > 1}
    if not following <= _FOLLOWERS.get(field, set()):
        return False
    return lengths[len(lengths) // 2] > 1


def _facets(axis: str, points: Sequence[Point]) -> tuple[str, ...]:
    """Fields that still vary once the axis and the facets before them are given."""
    chosen: list[str] = []
    for field in _FACETS:
        if field == axis or (axis == "shape" and field in _SHAPE):
            continue
        values = {p.fields.get(field) for p in points}
        apart = field in _ALWAYS_APART or (field == "mask" and axis not in _MASK_SIZES)
        if len(values) > 1 and (apart or not _determined(field, [axis, *chosen], points)):
            chosen.append(field)
    return tuple(chosen)


def _determined(field: str, by: Sequence[str], points: Sequence[Point]) -> bool:
    seen: dict[tuple[Any, ...], Any] = {}
    for point in points:
        key = tuple(axis_value(f, point) for f in by)
        if seen.setdefault(key, point.fields.get(field)) != point.fields.get(field):
            return False
    return True


def _axis(field: str, points: Sequence[Point]) -> Axis:
    values = sorted(_values(field, points), key=lambda v: facet_order(field, v))
    label = _LABELS.get(field, field)
    if field == "seqlen_q" and any(
        p.fields.get("seqlen_q") != p.fields.get("seqlen_k") for p in points
    ):
        label = "seqlen_q"
    numeric = all(isinstance(v, (int, float)) for v in values)
    if not numeric or len(values) == 1:
        return Axis(field, label, "ordinal", tuple(str(v) for v in values))
    spread = values[-1] / values[0] if values[0] > 0 else 0
    return Axis(field, label, "log" if spread >= 4 else "linear", tuple(values))


def _usable(field: str, points: Sequence[Point]) -> bool:
    return field in AXES and all(p.fields.get(field) is not None for p in points)


def _values(field: str, points: Iterable[Point]) -> set[Any]:
    return {axis_value(field, p) for p in points}


def _shape_text(point: Point) -> str:
    f = point.fields
    heads = f"H{f.get('heads_q')}" + (
        f"/{f.get('heads_kv')}" if f.get("heads_kv") != f.get("heads_q") else ""
    )
    seqlen = f"N{f.get('seqlen_q')}" + (
        f"×{f.get('seqlen_k')}" if f.get("seqlen_k") != f.get("seqlen_q") else ""
    )
    dim = f"D{f.get('head_dim')}" + (
        f"/{f.get('head_dim_v')}" if f.get("head_dim_v") != f.get("head_dim") else ""
    )
    return f"B{f.get('batch')} {heads} {seqlen} {dim}"


_DTYPE_ORDER = ("float64", "float32", "bfloat16", "float16", "float8_e4m3fn")
_ORDERS: Mapping[str, Sequence[str]] = {
    "dtype": _DTYPE_ORDER,
    "direction": ("forward", "backward", "both"),
    "mask": ("full", "causal"),
}


def facet_order(field: str, value: Any) -> tuple[Any, ...]:
    """The usual order of a field's values: forward first, wide dtypes first, sizes by size."""
    order = _ORDERS.get(field, ())
    if value in order:
        return (0, order.index(value), [])
    if isinstance(value, (int, float)):
        return (0, value, [])
    return (1, 0, natural(str(value)))


def _in_panel(field: str) -> Any:
    return lambda p: (
        facet_order(field, axis_value(field, p)),
        natural(p.implementation),
        p.record.id,
    )
