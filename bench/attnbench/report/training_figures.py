"""Static figures of training runs, a panel at a time: throughput and loss, by matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from attnbench.report import units
from attnbench.report.points import Point
from attnbench.report.style import Look
from attnbench.report.sweep import Panel
from attnbench.report.training_text import TOKENS, part

TITLES: Mapping[str, str] = {
    "throughput": "Training throughput (tokens/s)", "parity": "Loss while learning (nats)",
}  # fmt: skip
_MARKERS = 3  # points, of a throughput


def has_data(point: Point) -> bool:
    """Whether a point is a run with figures."""
    return part(point) is not None


def throughput(
    ax: Axes, panel: Panel, *, looks: Mapping[str, Look], color: Callable[[Look], str]
) -> None:
    """Tokens a second with the 95 % interval, a row an implementation."""
    rates = {
        p.implementation: p.trained.tokens_per_s
        for p in panel.points
        if has_data(p) and p.trained is not None and p.trained.tokens_per_s is not None
    }
    shown = [look for name, look in looks.items() if name in rates]
    for row, look in enumerate(shown):
        rate = rates[look.name]
        ax.barh(row, rate.median, height=0.45, color=color(look), alpha=0.25)
        ax.hlines(row, rate.low, rate.high, color=color(look), linewidth=1.1)
        ax.plot(rate.median, row, "o", color=color(look), markersize=_MARKERS)
    ax.set_yticks(range(len(shown)), [look.name for look in shown])
    ax.set_ylim(len(shown) - 0.4, -0.6)
    ax.set_xlim(left=0)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: units.tick(v, _SHORT)))
    ax.grid(visible=False)


def losses(
    ax: Axes, panel: Panel, *, looks: Mapping[str, Look], color: Callable[[Look], str]
) -> None:
    """The loss of every step; the baseline comes last, dashed over those it lies upon."""
    runs = {p.implementation: t for p in panel.points if (t := part(p)) is not None}
    for name in reversed([name for name in looks if name in runs]):
        look, values = looks[name], runs[name].losses
        style = (0, look.dash) if look.dash else "-"
        ax.plot(range(len(values)), values, color=color(look), linestyle=style, marker="")
    ax.set_xlabel("step")


_SHORT = tuple(units.Unit(unit.name.removesuffix("tokens/s").strip(), unit.size) for unit in TOKENS)
DRAW: Mapping[str, Callable[..., None]] = {"throughput": throughput, "parity": losses}
"""By the name of the view."""
