"""Searches that lie beside the records of a report: trials, best, Pareto front, importance.

The chart is drawn here, as shapes in an SVG: objective against memory, a dot a setting.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from attnbench.report import units
from attnbench.report.points import Point
from attnbench.tune.told import SEARCH_FILE, Told, ToldTrial

WIDTH, HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 16, 12, 44  # room for the labels of the axes
_PAD = 0.08  # of the data's range, on each side
_TICKS = 4  # about as many
_RADIUS = (4.0, 10.0)  # of the lowest and of the highest loss


@dataclass(frozen=True)
class Dot:
    """A setting in the chart."""

    x: float
    y: float
    low: float
    high: float
    radius: float
    trial: ToldTrial


@dataclass(frozen=True)
class Tick:
    """A label of an axis, and where."""

    at: float
    text: str


@dataclass(frozen=True)
class SearchView:
    """A search as the template needs it."""

    told: Told
    dots: Sequence[Dot]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    y_label: str


def find_searches(results: Sequence[Path]) -> tuple[list[SearchView], list[str]]:
    """The searches beside the records of a report, and a line for each that cannot be read.

    Args:
        results: record files (then only their own searches), and folders of them.
    """
    files: dict[Path, None] = {}
    for path in results:
        folder, pattern = (path, "*") if path.is_dir() else (path.parent, f"{path.stem}.tune-*")
        found = folder.rglob if path.is_dir() else folder.glob
        files |= {f.resolve(): None for f in sorted(found(f"{pattern}{SEARCH_FILE}"))}
    views, problems = [], []
    for file in files:
        try:
            told = Told.model_validate_json(file.read_bytes())
        except (OSError, ValidationError) as error:
            first = str(error).splitlines()[0]
            problems.append(f"{file}: not a search that can be read: {first}")
            continue
        views.append(search_view(told))
    return views, problems


def without_trials(points: Sequence[Point], searches: Sequence[SearchView]) -> list[Point]:
    """The points that have panels: of a search only the start, the best, and what failed.

    Every trial is a setting of its own, with nobody to be compared with; it has its dot and
    its row in the search's own view.
    """
    tried: set[tuple[str, str]] = set()
    shown: set[tuple[str, str]] = set()
    for told in (search.told for search in searches):
        shown.add((told.suite, told.start_record))
        for trial in told.trials:
            (shown if trial.place == "best" else tried).add((told.suite, trial.record))
    return [
        p
        for p in points
        # Another suite may have the same point, with others to be compared with.
        if (key := (p.record.suite, p.record.id)) not in tried
        or key in shown
        or p.record.status != "ok"
    ]


def search_view(told: Told) -> SearchView:
    """Everything that is shown of a search."""
    shown = [t for t in told.trials if t.value is not None and t.memory is not None]
    label = "tokens/s" if told.objective == "tokens_per_s" else "seconds to the loss"
    if not shown:
        return SearchView(told, (), (), (), label)
    memories = [t.memory for t in shown if t.memory is not None]
    x = _Scale(min(memories), max(memories), _LEFT, WIDTH - _RIGHT)
    values = [v for t in shown if t.value is not None for v in t.value]
    y = _Scale(min(values), max(values), HEIGHT - _BOTTOM, _TOP)
    losses = [t.loss for t in shown if t.loss is not None]
    dots = []
    for trial in shown:
        assert trial.value is not None
        assert trial.memory is not None
        middle, low, high = trial.value
        dots.append(
            Dot(x(trial.memory), y(middle), y(low), y(high), _radius(trial.loss, losses), trial)
        )
    return SearchView(
        told,
        dots,
        [Tick(x(v), units.tick(v, units.BYTES)) for v in x.ticks(_size(max(memories)))],
        [Tick(y(v), f"{v:,.6g}") for v in y.ticks(1.0)],
        label,
    )


class _Scale:
    """From a figure to a place on an axis."""

    def __init__(self, low: float, high: float, begin: float, end: float) -> None:
        room = _PAD * ((high - low) or abs(high) or 1.0)
        self._low, self._span = low - room, high - low + 2 * room
        self._begin, self._length = begin, end - begin

    def __call__(self, value: float) -> float:
        return round(self._begin + (value - self._low) / self._span * self._length, 1)

    def ticks(self, unit: float) -> list[float]:
        """Round numbers of a unit: 1, 2 or 5 times a power of ten apart."""
        wanted = self._span / _TICKS / unit
        power = 10.0 ** math.floor(math.log10(wanted))
        step = unit * power * min((1, 2, 5, 10), key=lambda n: abs(n * power - wanted))
        first, last = math.ceil(self._low / step), math.floor((self._low + self._span) / step)
        return [i * step for i in range(first, last + 1)]


def _size(value: float) -> float:
    return units.unit_for(value, units.BYTES).size


def _radius(loss: float | None, losses: Sequence[float]) -> float:
    least, most = _RADIUS
    if loss is None or min(losses) == max(losses):
        return least
    share = (loss - min(losses)) / (max(losses) - min(losses))
    return round(least + share * (most - least), 1)
