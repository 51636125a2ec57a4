"""Static figures for papers, READMEs and pull requests: PNG and SVG, by matplotlib.

One figure a view and scope, a small multiple a panel; figures with very many panels are
split, and the page alone has what two do not hold. Nothing in a file depends on when or
where it was drawn.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from attnbench.layer.answers import TENSORS
from attnbench.report import pareto, tables, training_figures, units
from attnbench.report.charts import Measure, error_title, measure
from attnbench.report.definition import (
    Accuracy,
    Definition,
    DrawnOfTraining,
    Lines,
    Pareto,
    Speedup,
)
from attnbench.report.environments import Environment
from attnbench.report.points import Point
from attnbench.report.style import INK, Look
from attnbench.report.sweep import Panel, Scope

_INK = "#1d232a"
_BAD = "#b3261e"
_COLUMNS = 4
_TITLE_WIDTH = 34  # letters of a panel's title in a line
_PANELS = 16  # of one figure
_MOST_FIGURES = 2  # of one view and scope; the page has the other panels
_MARKERS = {
    "circle": "o", "square": "s", "triangle-up": "^", "triangle-down": "v",
    "triangle-right": ">", "diamond": "D", "cross": "P",
}  # fmt: skip
_TITLES = {
    "rate": "Throughput", "latency": "Time per call", "memory": "Peak memory beyond the inputs",
}  # fmt: skip
_STYLE: Any = {
    "font.family": "DejaVu Sans", "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8,
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": "#9aa3ac", "axes.labelcolor": _INK, "xtick.labelsize": 7,
    "ytick.labelsize": 7, "xtick.color": "#59636e", "ytick.color": "#59636e",
    "axes.grid": True, "axes.grid.axis": "y", "grid.color": "#e9ecef", "grid.linewidth": 0.7,
    "axes.axisbelow": True, "legend.frameon": False, "legend.fontsize": 8,
    "lines.linewidth": 1.3, "lines.markersize": 4, "hatch.linewidth": 0.6,
    "svg.hashsalt": "attnbench", "svg.fonttype": "none",
    "text.parse_math": False,  # names are data: a $ in one is a $
}  # fmt: skip


@dataclass(frozen=True)
class Plot:
    """One figure to be: its name, title, and how a panel is drawn into axes."""

    name: str
    title: str
    draw: Callable[[Axes, Panel], None]
    has_data: Callable[[Point], bool]
    has_legend: bool = True


def draw_figures(
    definition: Definition,
    scopes: Sequence[Scope],
    looks: Mapping[str, Look],
    environments: Mapping[str, Environment],
    folder: Path,
) -> list[Path]:
    """Draw every view that has a figure, as ``SUITE[-SCOPE]-VIEW.png`` and ``.svg``."""
    paths: list[Path] = []
    with matplotlib.rc_context(_STYLE):
        for number, scope in enumerate(scopes):
            machine = environments[scope.points[0].record.environment].name
            is_alone = sum(s.suite == scope.suite for s in scopes) == 1
            stem = _slug(scope.suite) if is_alone else f"{_slug(scope.suite)}-{number + 1}"
            for plot in _plots(definition, scope, looks):
                panels = [p for p in scope.panels if any(map(plot.has_data, p.points))]
                parts = [panels[i : i + _PANELS] for i in range(0, len(panels), _PANELS)]
                del parts[_MOST_FIGURES:]
                for part, some in enumerate(parts, start=1):
                    figure = _figure(plot, some, scope, looks, machine)
                    suffix = f"-{part}" if len(parts) > 1 else ""
                    paths += _save(figure, folder, f"{stem}-{plot.name}{suffix}")
    return paths


def _plots(definition: Definition, scope: Scope, looks: Mapping[str, Look]) -> Iterator[Plot]:
    for view in definition.views:
        if scope.kind not in view.kinds:
            continue
        if isinstance(view, Lines) and view.figure:
            shown = measure(view, scope)
            yield Plot(
                view.view,
                f"{_TITLES[view.view]} ({shown.unit.name})"
                if view.view == "rate"
                else _TITLES[view.view],
                partial(_draw_lines, shown=shown, scope=scope, looks=looks),
                partial(_has, shown=shown),
            )
        elif isinstance(view, Speedup) and view.figure:
            yield Plot(
                "speedup",
                f"Speed-up over {scope.baseline}",
                partial(_draw_heat, scope=scope, looks=looks),
                lambda point: point.speedup is not None,
                has_legend=False,
            )
        elif isinstance(view, Accuracy) and view.figure:
            yield Plot(
                "error",
                f"Error against float64: {error_title(view)}",
                partial(_draw_errors, view=view, looks=looks),
                lambda point: bool(point.record.accuracy),
            )
        elif isinstance(view, DrawnOfTraining) and view.figure:
            draw = partial(training_figures.DRAW[view.view], looks=looks, color=_color)
            title, has_data = training_figures.TITLES[view.view], training_figures.has_data
            yield Plot(view.view, title, draw, has_data)
        elif isinstance(view, Pareto) and view.figure and _has_approximate(scope):
            yield Plot(
                "pareto",
                "Distance from the exact answer against time",
                partial(_draw_pareto, scope=scope, looks=looks),
                lambda point: pareto.distance(point) is not None,
            )


def _has_approximate(scope: Scope) -> bool:
    return any(point.is_approximate for point in scope.points)


def _figure(
    plot: Plot, panels: Sequence[Panel], scope: Scope, looks: Mapping[str, Look], machine: str
) -> Figure:
    columns = min(_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    names = {p.implementation for panel in panels for p in panel.points if plot.has_data(p)}
    width, height = 0.6 + 2.35 * max(columns, 2), 0.85 + 2.05 * rows
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for index, ax in enumerate(axes.flat):
        if index >= len(panels):
            ax.set_axis_off()
            continue
        ax.set_title(textwrap.fill(panels[index].title, _TITLE_WIDTH))
        plot.draw(ax, panels[index])
    if not plot.has_legend:
        _name_rows_once(axes)
    figure.suptitle(
        f"{plot.title}\n{scope.title} · {machine}", x=0.01, ha="left", fontsize=9.5, color=_INK
    )
    if plot.has_legend:
        handles = [_handle(look) for name, look in looks.items() if name in names]
        figure.legend(handles=handles, loc="outside lower left", ncols=max(1, min(6, len(handles))))
    return figure


def _name_rows_once(axes: Any) -> None:
    """Leave out names of rows that the panel at the left has too."""
    for row in axes:
        first = [text.get_text() for text in row[0].get_yticklabels()]
        for ax in row[1:]:
            if [text.get_text() for text in ax.get_yticklabels()] == first:
                ax.tick_params(labelleft=False)


def _draw_lines(
    ax: Axes, panel: Panel, *, shown: Measure, scope: Scope, looks: Mapping[str, Look]
) -> None:
    axis = scope.axis
    positions = {v: (i if axis.kind == "ordinal" else v) for i, v in enumerate(axis.values)}
    present = [name for name in looks if any(p.implementation == name for p in panel.points)]
    for place, name in enumerate(present):
        look, own = looks[name], [p for p in panel.points if p.implementation == name]
        values = [(_x(positions, scope, p), v) for p in own if (v := shown.of(p)) is not None]
        if not values:
            continue
        if axis.kind == "ordinal":  # side by side, because there is no line to follow
            shift = (place + 0.5) / len(present) - 0.5
            values = [(x + 0.7 * shift, v) for x, v in values]
        xs = [x for x, _ in values]
        ys, lows, highs = (
            [end / shown.unit.size for end in ends]
            for ends in zip(*((v.median, v.low, v.high) for _, v in values), strict=True)
        )
        style = _line_style(look) if axis.kind != "ordinal" else {"linestyle": "none"}
        ax.plot(xs, ys, color=_color(look), marker=_MARKERS[look.shape], **style)
        if shown.has_interval:
            ax.vlines(xs, lows, highs, color=_color(look), linewidth=1.1)
            if axis.kind != "ordinal":
                ax.fill_between(xs, lows, highs, color=_color(look), alpha=0.15, linewidth=0)
    _finish_x(ax, scope)
    if shown.log:
        ax.set_yscale("log", base=shown.log_base)
        _tick_log(ax.yaxis, shown.log_base)
    else:
        ax.set_ylim(bottom=0)
    formats = {"latency": units.SECONDS, "memory": units.BYTES}
    if shown.name in formats:
        ladder = formats[shown.name]
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: units.tick(v, ladder)))


def _finish_x(ax: Axes, scope: Scope) -> None:
    axis = scope.axis
    ax.set_xlabel(axis.label)
    if axis.kind == "ordinal":
        texts = [str(v) for v in axis.values]
        is_long = max(map(len, texts)) > 8
        ax.set_xticks(range(len(texts)), texts, **_turned(is_long))
        ax.set_xlim(-0.6, len(texts) - 0.4)
        return
    if axis.kind == "log":
        ax.set_xscale("log", base=2)
    ax.set_xticks(list(axis.values), [axis.name(v) for v in axis.values])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.tick_params(axis="x", which="minor", length=0)


def _draw_heat(ax: Axes, panel: Panel, *, scope: Scope, looks: Mapping[str, Look]) -> None:
    rows = tables.heat_rows(scope, panel, looks)
    columns = tables.panel_values(scope, panel)
    for y, (_, cells) in enumerate(rows):
        for x, cell in enumerate(cells):
            square = Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, linewidth=0, facecolor="#f6f7f8")
            if cell.number is not None:
                square.set_facecolor(_tint(cell.tint))
            elif cell.status != "none":
                is_refusal = cell.status in ("unsupported", "unavailable", "no-baseline")
                square.set(hatch="////", edgecolor="#ccd1d6" if is_refusal else "#e3a9a5")
            ax.add_patch(square)
            color = _INK if cell.number is not None else "#59636e"
            ax.text(x, y, cell.text, ha="center", va="center", fontsize=6, color=color)
    ax.set_xlim(-0.5, len(columns) - 0.5)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    names = [scope.axis.name(x) for x in columns]
    ax.set_xticks(range(len(columns)), names, **_turned(max(map(len, names)) > 8))
    ax.set_yticks(range(len(rows)), [look.name for look, _ in rows])
    ax.tick_params(length=0)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.set_xlabel(scope.axis.label)


def _draw_errors(ax: Axes, panel: Panel, *, view: Accuracy, looks: Mapping[str, Look]) -> None:
    tensors = [t for t in TENSORS if any(t in p.record.accuracy for p in panel.points)]
    names = [name for name in looks if any(p.implementation == name for p in panel.points)]
    for row, tensor in enumerate(tensors):
        for point in panel.points:
            accuracy = point.record.accuracy.get(tensor)
            error = getattr(accuracy, view.measure, None)
            allowed = getattr(accuracy, f"{view.measure}_allowed", None)
            is_share = view.relative_to == "tolerance"
            if allowed and not is_share:
                ax.plot([allowed] * 2, [row - 0.42, row + 0.42], color="#b9c0c7", lw=1, zorder=1)
            if accuracy is None or not error or (is_share and not allowed):
                continue
            error = error / allowed if is_share else error
            look = looks[point.implementation]
            y = row + 0.7 * ((names.index(look.name) + 0.5) / len(names) - 0.5)
            ring: Any = {} if accuracy.ok else {"markeredgecolor": _BAD, "markeredgewidth": 1.2}
            ax.plot(error, y, _MARKERS[look.shape], color=_color(look), markersize=3, **ring)
    if view.relative_to == "tolerance":
        ax.axvline(1, color=_BAD, linewidth=0.9, zorder=1)
    ax.set_xscale("log")
    _tick_log(ax.xaxis, 10)
    digits = "g" if view.relative_to == "tolerance" else ".0e"
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: format(v, digits)))
    ax.set_yticks(range(len(tensors)), tensors)
    ax.set_ylim(len(tensors) - 0.5, -0.5)
    ax.grid(visible=False)


def _draw_pareto(ax: Axes, panel: Panel, *, scope: Scope, looks: Mapping[str, Look]) -> None:
    points = pareto.largest(scope, panel)
    leading = pareto.front(points)
    for point in points:
        worst, look = pareto.distance(point), looks[point.implementation]
        if worst is None or point.time_s is None or worst[1] <= 0:
            continue
        is_leading = point.record.id in leading
        ax.plot(
            point.time_s.median, worst[1], _MARKERS[look.shape], color=_color(look),
            markersize=5 if is_leading else 3.5, markeredgecolor=_INK if is_leading else "none",
        )  # fmt: skip
    for method in {p.record.implementation.name for p in points}:
        own = [p for p in points if p.record.implementation.name == method]
        ends = sorted(
            (d[1], p.time_s.median) for p in own if (d := pareto.distance(p)) and p.time_s
        )
        ax.plot([t for _, t in ends], [d for d, _ in ends], color="#b9c0c7", lw=0.8, zorder=0)
    ax.set_xscale("log")
    ax.set_yscale("log")
    times = [p.time_s.median for p in points if p.time_s]
    ax.set_xlim(0.8 * min(times), 1.25 * max(max(times), 10 * min(times)))
    _tick_log(ax.xaxis, 10)
    _tick_log(ax.yaxis, 10)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: units.tick(v, units.SECONDS)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: format(v, ".0e")))
    ax.set_xlabel("time of a call")
    ax.set_ylabel("relative L2 distance")


def _tick_log(axis: Any, base: int) -> None:
    """Ticks at powers of the base; where the axis spans less than two, at 2 and 5 as well."""
    low, high = axis.get_view_interval()
    is_short = base == 10 and high / low < 100
    axis.set_major_locator(LogLocator(base, subs=(1, 2, 5) if is_short else (1,), numticks=8))
    axis.set_minor_locator(NullLocator())


def _has(point: Point, shown: Measure) -> bool:
    return shown.of(point) is not None


def _x(positions: Mapping[Any, Any], scope: Scope, point: Point) -> float:
    value = scope.x(point)
    return float(positions[value])


def _turned(is_long: bool) -> Any:
    return {"rotation": 30, "ha": "right"} if is_long else {}


def _color(look: Look) -> str:
    return _INK if look.color == INK else look.color


def _line_style(look: Look) -> dict[str, Any]:
    return {"linestyle": (0, look.dash) if look.dash else "-"}


def _handle(look: Look) -> Line2D:
    marker, color = _MARKERS[look.shape], _color(look)
    return Line2D([], [], color=color, marker=marker, label=look.name, **_line_style(look))


def _tint(tint: float) -> tuple[float, float, float]:
    """From the paper's grey to blue (faster) or orange (slower)."""
    end = to_rgb("#56b4e9" if tint > 0 else "#e8a33d")
    r, g, b = (a + (b - a) * abs(tint) for a, b in zip(to_rgb("#f6f7f8"), end, strict=True))
    return r, g, b


def _save(figure: Figure, folder: Path, stem: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once is enough for both files
    png, svg = folder / f"{stem}.png", folder / f"{stem}.svg"
    figure.savefig(png, metadata={"Software": None})
    figure.savefig(svg, metadata={"Date": None, "Creator": None})
    return [png, svg]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "suite"
