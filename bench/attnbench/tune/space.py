"""The search space: what each key may be, checked value by value.

A dimension is a list of choices or a range of numbers. Keys are fields of ``Workload``, and
``impl``: implementations with their options.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attnbench.errors import UserError, unknown
from attnbench.spec import Value
from attnbench.subject import keys_of
from attnbench.train.data import objectives_of
from attnbench.train.models.presets import PRESETS
from attnbench.train.workload import check_field

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

IMPL = "impl"
_RANGE = ("low", "high", "log", "step")

Params = Mapping[str, Value]


@dataclass(frozen=True)
class Choices:
    """One of some values."""

    values: tuple[Value, ...]

    def distribution(self) -> BaseDistribution:
        """As Optuna has it."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.values)

    def grid(self) -> tuple[Value, ...] | None:
        """Every value."""
        return self.values

    def to_json(self) -> Any:
        """Plain values."""
        return list(self.values)


@dataclass(frozen=True)
class Range:
    """A number from ``low`` to ``high``, both included.

    Attributes:
        log: drawn by its logarithm.
        step: between two values; None: every number (every whole one, of a whole field).
    """

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    @property
    def is_whole(self) -> bool:
        """Whether it is of whole numbers."""
        return type(self.low) is int

    def distribution(self) -> BaseDistribution:
        """As Optuna has it."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.is_whole:
            return IntDistribution(int(self.low), int(self.high), self.log, int(self.step or 1))
        return FloatDistribution(self.low, self.high, self.log, self.step)

    def grid(self) -> tuple[Value, ...] | None:
        """Every value; None where there is no end of them."""
        step = self.step or (1 if self.is_whole else None)
        if step is None:
            return None
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        return tuple(self.neat(self.low + i * step) for i in range(count))

    def neat(self, value: Value) -> Value:
        """A drawn number with as many digits as mean something.

        Four where every number may be drawn, so that people can read and paste it; twelve
        where there are steps, because 0.1 + 0.2 and 0.3 are the same setting.
        """
        if type(value) is not float:
            return value
        rounded = float(f"{value:.4g}" if self.step is None else f"{value:.12g}")
        return min(max(rounded, self.low), self.high)

    def to_json(self) -> Any:
        """Plain values."""
        told = {"low": self.low, "high": self.high, "log": self.log, "step": self.step}
        return {key: value for key, value in told.items() if value not in (None, False)}


Dimension = Choices | Range


@dataclass(frozen=True)
class Space:
    """Every dimension by its key."""

    dimensions: Mapping[str, Dimension]

    @property
    def size(self) -> int | None:
        """How many settings there are; None where there is no end of them."""
        sizes = [d.grid() for d in self.dimensions.values()]
        return None if None in sizes else math.prod(len(s) for s in sizes if s is not None)

    @property
    def endless(self) -> list[str]:
        """Keys that no grid can cover."""
        return [key for key, dimension in self.dimensions.items() if dimension.grid() is None]

    def combinations(self) -> Iterator[dict[str, Value]]:
        """Every setting of a finite space, in order."""
        grids = [d.grid() or () for d in self.dimensions.values()]
        for values in itertools.product(*grids):
            yield dict(zip(self.dimensions, values, strict=True))

    def neat(self, params: Params) -> dict[str, Value]:
        """A draw as it is measured and told; see :meth:`Range.neat`."""
        told = ((key, value, self.dimensions[key]) for key, value in params.items())
        return {key: d.neat(value) if isinstance(d, Range) else value for key, value, d in told}

    def distributions(self) -> dict[str, BaseDistribution]:
        """As Optuna has them."""
        return {key: d.distribution() for key, d in self.dimensions.items()}

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {key: dimension.to_json() for key, dimension in self.dimensions.items()}


def read_space(table: Mapping[str, Any], where: str) -> Space:
    """Check a ``[tune.space]``. Globs of ``impl`` are still to be expanded.

    Raises:
        UserError: an unknown key, or a value that it cannot have.
    """
    allowed = (IMPL, *keys_of("training"))
    dimensions: dict[str, Dimension] = {}
    for key, told in table.items():
        if key not in allowed:
            raise unknown("key", key, allowed, where)
        if isinstance(told, list):
            dimensions[key] = Choices(_choices(key, told, where))
        elif isinstance(told, dict):
            dimensions[key] = _range(key, told, where)
        else:
            raise UserError(
                f"{where}: {key} = {told!r}: must be a list of choices, or a range such as "
                "{low = 1, high = 8}"
            )
    if not dimensions:
        raise UserError(f"{where}: is empty; there is nothing to search")
    return Space(dimensions)


def _choices(key: str, told: Sequence[Any], where: str) -> tuple[Value, ...]:
    if not told:
        raise UserError(f"{where}: {key} is an empty list; it needs at least one value")
    values: list[Value] = []
    for value in told:
        checked = _value(key, value, where)
        if checked in values:
            raise UserError(f"{where}: {key} has {value!r} twice")
        values.append(checked)
    return tuple(values)


def _value(key: str, value: Any, where: str) -> Value:
    """A value that the key can have, whatever the others are."""
    if key == IMPL:
        if not isinstance(value, str):
            raise UserError(f"{where}: {key} must be of type str, got {value!r}")
        return value
    try:
        checked: Value = check_field(key, value)
        if key == "model" and checked not in PRESETS:
            raise unknown("model", checked, PRESETS)
        if key == "task":
            objectives_of(str(checked))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return checked


def _range(key: str, told: Mapping[str, Any], where: str) -> Range:
    where = f"{where}: {key}"
    for name in told:
        if name not in _RANGE:
            raise unknown("key", name, _RANGE, where)
    for name in ("low", "high"):
        if name not in told:
            raise UserError(f"{where}: {name} is missing")
        if type(told[name]) not in (int, float):
            raise UserError(f"{where}: {name} must be a number, got {told[name]!r}")
    if key == IMPL:
        raise UserError(f"{where}: implementations have no range; give a list of them")
    low, high = (_value(key, told[name], where) for name in ("low", "high"))
    assert isinstance(low, (int, float))
    assert isinstance(high, (int, float))
    if not low < high:
        raise UserError(f"{where}: low {low!r} must be less than high {high!r}")
    log, step = told.get("log", False), told.get("step")
    if type(log) is not bool:
        raise UserError(f"{where}: log must be true or false, got {log!r}")
    if log and step is not None:
        raise UserError(f"{where}: log and step exclude each other")
    if log and low <= 0:
        raise UserError(f"{where}: log needs low > 0, got {low!r}")
    kind = type(low)
    if step is not None and (type(step) not in (int, kind) or not 0 < step <= high - low):
        raise UserError(
            f"{where}: step must be a {kind.__name__} in (0, {high - low:g}], got {step!r}"
        )
    return Range(low, high, log, None if step is None else kind(step))
