"""What a sweep varied: its horizontal axis, and the panels that keep the rest apart.

A suite may sweep seqlen, heads, d_model, precision, a window, or a list of models. The
axis is the field that really varies; everything else that varies on its own becomes a
panel of its own, so that a line never joins two different problems.

Training runs and generations have no such axis: each is a panel of its own, with a row for
everybody.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from attnbench.report.fields import FOLLOWS, LABELS, SHAPE, label, natural, order, shape_parts
from attnbench.report.points import Point
from attnbench.subject import PointKind
from attnbench.train.generation.spec import Generation
from attnbench.train.workload import Workload

_MASK_SIZES = (
    "window", "prefix", "stride", "count", "block", "density", "window_blocks",
    "global_blocks", "random_blocks",
)  # fmt: skip
AXES = (
    "seqlen_q", "seqlen_k", "heads_q", "d_model", "head_dim", "heads_kv", "batch",
    *_MASK_SIZES, "padding", "dropout_p", "softcap", "dtype", "mask",
)  # fmt: skip
"""Fields that may be an axis, best first. Where none makes a sweep, the axis is the shape."""

# Fields that may tell panels apart, in the order in which a panel's title says them.
_FACETS = (
    "direction", "dtype", "mask", "level", "decode", "inputs", "seqlen_q", "seqlen_k", "batch",
    "heads_q", "heads_kv", "head_dim", "head_dim_v", "dropout_p", "softcap", "scale", "alibi",
    "position", "padding", "seed",
)  # fmt: skip
# These never share a line, whatever the axis: it is another computation.
_ALWAYS_APART = ("direction", "dtype", "level", "decode")
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

_USUAL: Mapping[str, Mapping[str, Any]] = {  # of what runs inside a model, by kind
    kind: {field.name: field.default for field in dataclasses.fields(of)}
    for kind, of in (("training", Workload), ("generation", Generation))
}
_FIRST = ("model", "task", "precision", "seqlen", "batch", "prompt", "new")
_ALWAYS_TOLD = (*_FIRST, "steps")


def _told_in_order(kind: str) -> tuple[str, ...]:
    """Fields that tell runs apart, best first; the model also stands where others have an axis."""
    usual = _USUAL[kind]
    return (*(f for f in _FIRST if f in usual), *(f for f in usual if f not in _FIRST), "seed")


_TOLD: Mapping[PointKind, Sequence[str]] = {  # of what is constant
    "attention": ("direction", "dtype", "mask", *SHAPE, "d_model", "level", "position",
                  "padding", "dropout_p", "softcap"),
    "training": _told_in_order("training"),
    "generation": _told_in_order("generation"),
}  # fmt: skip
_UNTOLD = (None, 0, "op", "none", "")  # constants that say nothing

Kind = Literal["log", "linear", "ordinal"]


@dataclass(frozen=True)
class Axis:
    """The swept field, with its values in order. ``ordinal`` values are texts."""

    field: str
    label: str
    kind: Kind
    values: tuple[Any, ...]
    parts: tuple[str, ...] = ()  # of the shape, where that is the axis

    def of(self, point: Point) -> Any:
        """Where a point lies on the axis."""
        if self.field == "shape":
            words = shape_parts(point.fields)
            return " ".join(words[part] for part in self.parts)
        value = point.fields.get(self.field)
        return str(value) if self.kind == "ordinal" else value

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
        return " · ".join(
            label(field, value)
            for field, value in self.facets.items()
            if field not in FOLLOWS or value != self.facets.get(FOLLOWS[field])
        )


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
    kind: PointKind = "attention"

    @property
    def points(self) -> tuple[Point, ...]:
        """All points, panel by panel."""
        return tuple(point for panel in self.panels for point in panel.points)

    @property
    def constants(self) -> dict[str, Any]:
        """The fields that are the same for every point, as far as they say something."""
        found: dict[str, Any] = {}
        for field in _TOLD[self.kind]:
            values = _values(field, self.points)
            value = next(iter(values))
            is_constant = len(values) == 1 and _is_told(field, value)
            follows = field in FOLLOWS and value == found.get(FOLLOWS[field])
            is_said = self.kind == "attention" and field == self.axis.field
            if is_constant and not follows and not is_said and not self._is_usual(field, value):
                found[field] = value
        if {"heads_q", "head_dim"} <= found.keys():
            found.pop("d_model", None)  # their product says nothing new
        return found

    def details(self, panel: Panel) -> dict[str, Any]:
        """What is the same throughout a panel and not said by its title or the scope."""
        if self.kind != "attention":
            return self._details_of_run(panel)
        if self.axis.field == "shape":
            return {}
        found: dict[str, Any] = {}
        for field in SHAPE:
            values = _values(field, panel.points)
            is_said = field in panel.facets or field == self.axis.field
            if len(values) == 1 and not is_said and len(_values(field, self.points)) > 1:
                found[field] = next(iter(values))
        known = {**panel.facets, **found}
        return {
            field: value
            for field, value in found.items()
            if field not in FOLLOWS or value != known.get(FOLLOWS[field])
        }

    def x(self, point: Point) -> Any:
        """Where a point lies on the axis."""
        return self.axis.of(point)

    def _is_usual(self, field: str, value: Any) -> bool:
        """Whether a run's field has its default, and is none of those always told."""
        usual = _USUAL.get(self.kind, {})
        return field in usual and field not in _ALWAYS_TOLD and value == usual[field]

    def _details_of_run(self, panel: Panel) -> dict[str, Any]:
        fields = panel.points[0].fields
        return {
            field: fields[field]
            for field in _TOLD[self.kind]
            if field not in panel.facets
            and _is_told(field, fields.get(field))
            and len(_values(field, self.points)) > 1
        }


def scopes(points: Iterable[Point], axis: str = "auto") -> tuple[Scope, ...]:
    """Keep suites, machines and devices apart, and split each along what it sweeps.

    Args:
        axis: a field of :data:`AXES`, taken wherever it varies, or ``auto``.
    """
    groups: dict[tuple[str, ...], list[Point]] = {}
    for point in points:
        groups.setdefault(point.scope, []).append(point)
    return tuple(_scope(groups[key], axis) for key in sorted(groups))


def _scope(points: Sequence[Point], wanted: str) -> Scope:
    first = points[0]
    if first.kind != "attention":
        axis = _axis("model", points)
        facets = _distinct(_TOLD[first.kind], points) or ("model",)
    else:
        is_swept = _usable(wanted, points) and len(_values(wanted, points)) > 1
        axis = _axis(wanted if is_swept else _choose_axis(points), points)
        facets = _facets(axis.field, points)
    groups: dict[tuple[Any, ...], list[Point]] = {}
    for point in points:
        groups.setdefault(tuple(point.fields.get(f) for f in facets), []).append(point)
    place = {value: index for index, value in enumerate(axis.values)}
    panels = []
    for key in sorted(groups, key=lambda k: [order(*pair) for pair in zip(facets, k, strict=True)]):
        own = sorted(
            groups[key], key=lambda p: (place[axis.of(p)], natural(p.implementation), p.record.id)
        )
        panels.append(Panel(dict(zip(facets, key, strict=True)), tuple(own)))
    return Scope(
        first.record.suite,
        first.record.title or first.record.suite,
        first.machine,
        first.record.device,
        next((p.record.baseline for p in points if p.record.baseline), ""),
        axis,
        tuple(panels),
        first.kind,
    )


def _choose_axis(points: Sequence[Point]) -> str:
    """The first field that varies and makes a sweep; a suite named after one comes first."""
    suite = points[0].record.suite
    varying = [f for f in AXES if _usable(f, points) and len(_values(f, points)) > 1]
    named = [f for f in varying if suite in (f, LABELS.get(f))]
    return next((f for f in [*named, *varying] if _is_sweep(f, points)), "shape")


def _is_sweep(field: str, points: Sequence[Point]) -> bool:
    """Whether other shape fields stay put along this axis, and lines have several points."""
    facets = _facets(field, points)
    following = {f for f in SHAPE if f != field and not _determined(f, facets, points)}
    if not following <= _FOLLOWERS.get(field, set()):
        return False
    panels: dict[tuple[Any, ...], set[Any]] = {}
    for point in points:
        key = tuple(point.fields.get(f) for f in facets)
        panels.setdefault(key, set()).add(point.fields.get(field))
    lengths = sorted(len(values) for values in panels.values())
    return lengths[len(lengths) // 2] > 1


def _facets(axis: str, points: Sequence[Point]) -> tuple[str, ...]:
    """Fields that still vary once the axis and the facets before them are given."""
    on_axis = SHAPE if axis == "shape" else (axis,)
    chosen: list[str] = []
    for field in _FACETS:
        if field in on_axis:
            continue
        apart = field in _ALWAYS_APART or (field == "mask" and axis not in _MASK_SIZES)
        if len(_values(field, points)) > 1 and (
            apart or not _determined(field, [*on_axis, *chosen], points)
        ):
            chosen.append(field)
    return tuple(chosen)


def _distinct(fields: Sequence[str], points: Sequence[Point]) -> tuple[str, ...]:
    """The fields that vary and do not follow from those before them."""
    chosen: list[str] = []
    for field in fields:
        if len(_values(field, points)) > 1 and not _determined(field, chosen, points):
            chosen.append(field)
    return tuple(chosen)


def _is_told(field: str, value: Any) -> bool:
    """Whether a value says something: of batches, 0 is the largest that fits."""
    return value not in _UNTOLD or (field == "batch" and value == 0)


def _determined(field: str, by: Sequence[str], points: Sequence[Point]) -> bool:
    seen: dict[tuple[Any, ...], Any] = {}
    for point in points:
        key = tuple(point.fields.get(f) for f in by)
        if seen.setdefault(key, point.fields.get(field)) != point.fields.get(field):
            return False
    return True


def _axis(field: str, points: Sequence[Point]) -> Axis:
    if field == "shape":
        return _shape_axis(points)
    values = sorted(_values(field, points), key=lambda v: order(field, v))
    is_cross = any(p.fields.get("seqlen_q") != p.fields.get("seqlen_k") for p in points)
    name = field if is_cross else LABELS.get(field, field)
    if not all(isinstance(v, (int, float)) for v in values):
        return Axis(field, name, "ordinal", tuple(str(v) for v in values))
    is_wide = values[0] > 0 and values[-1] / values[0] >= 4
    return Axis(field, name, "log" if is_wide else "linear", tuple(values))


def _shape_axis(points: Sequence[Point]) -> Axis:
    """Shapes by their work, smallest first, told by what differs between them."""
    words = [shape_parts(point.fields) for point in points]
    parts = tuple(part for part in words[0] if len({w[part] for w in words}) > 1)
    axis = Axis("shape", "shape", "ordinal", (), parts or tuple(words[0]))
    work: dict[str, int] = {}
    for point in points:
        name = axis.of(point)
        work[name] = max(work.get(name, 0), point.flops or 0)
    values = sorted(work, key=lambda name: (work[name], natural(name)))
    return Axis("shape", "shape", "ordinal", tuple(values), axis.parts)


def _usable(field: str, points: Sequence[Point]) -> bool:
    return field in AXES and all(p.fields.get(field) is not None for p in points)


def _values(field: str, points: Iterable[Point]) -> set[Any]:
    return {p.fields.get(field) for p in points}
