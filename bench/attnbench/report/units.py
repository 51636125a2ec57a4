"""Numbers for people: significant digits, and the unit that suits the size.

Seconds, bytes and FLOPS are plain everywhere inside; this is the edge where they get a
unit. An interval is written in the unit of its middle, with as many digits as it takes to
tell its ends apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from attnbench.stats import Interval


@dataclass(frozen=True)
class Unit:
    """A unit and its size in the base unit."""

    name: str
    size: float


SECONDS = (Unit("ns", 1e-9), Unit("µs", 1e-6), Unit("ms", 1e-3), Unit("s", 1.0))
BYTES = tuple(
    Unit(name, 2.0 ** (10 * i)) for i, name in enumerate(("B", "KiB", "MiB", "GiB", "TiB"))
)
FLOPS = tuple(
    Unit(f"{prefix}FLOPS", 10.0 ** (3 * i))
    for i, prefix in enumerate(("", "k", "M", "G", "T", "P"))
)
JOULES = (Unit("nJ", 1e-9), Unit("µJ", 1e-6), Unit("mJ", 1e-3), Unit("J", 1.0), Unit("kJ", 1e3))
BYTES_A_SECOND = tuple(
    Unit(f"{prefix}B/s", 10.0 ** (3 * i)) for i, prefix in enumerate(("", "k", "M", "G", "T"))
)
_MAX_DIGITS = 6
_PLAIN = range(-4, 6)  # decimal exponents written without a power of ten


def unit_for(value: float, units: Sequence[Unit]) -> Unit:
    """The largest unit in which the value is at least 1, else the smallest unit."""
    fitting = [u for u in units if abs(value) >= u.size * (1 - 1e-9)]
    return fitting[-1] if fitting else units[0]


def number(value: float, digits: int = 3) -> str:
    """``digits`` significant digits, plain where that is readable, else ``1.2e-07``.

    >>> number(1234.5), number(0.012345), number(3e-9), number(0)
    ('1234', '0.0123', '3.00e-09', '0')
    """
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if exponent not in _PLAIN:
        return f"{value:.{digits - 1}e}"
    text = f"{value:.{max(0, digits - 1 - exponent)}f}"
    return text


def quantity(value: float, units: Sequence[Unit], digits: int = 3) -> str:
    """A value with its unit: ``1.23 ms``.

    >>> quantity(0.00123, SECONDS), quantity(3 * 2**20, BYTES), quantity(4.1e11, FLOPS)
    ('1.23 ms', '3.00 MiB', '410 GFLOPS')
    """
    unit = unit_for(value, units)
    return f"{number(value / unit.size, digits)} {unit.name}"


def interval(value: Interval, units: Sequence[Unit]) -> str:
    """A median with its interval: ``1.23 ms [1.20, 1.26]``.

    >>> interval(Interval(0.00123, 0.0012, 0.00126), SECONDS)
    '1.23 ms [1.20, 1.26]'
    """
    unit = unit_for(value.median, units)
    digits = 3
    ends = value.low / unit.size, value.high / unit.size
    while digits < _MAX_DIGITS and ends[0] != ends[1] and _same(*ends, digits):
        digits += 1
    low, high = (number(end, digits) for end in ends)
    return f"{number(value.median / unit.size, digits)} {unit.name} [{low}, {high}]"


def tick(value: float, units: Sequence[Unit]) -> str:
    """A label of an axis: no more digits than it needs.

    >>> tick(0.002, SECONDS), tick(2**20, BYTES)
    ('2 ms', '1 MiB')
    """
    unit = unit_for(value, units)
    return f"{value / unit.size:.4g} {unit.name}"


def ratio(value: float) -> str:
    """A factor: ``2.31×``."""
    return f"{number(value)}×"


def ratio_interval(value: Interval) -> str:
    """A factor with its interval: ``2.31× [2.28, 2.35]``."""
    return f"{ratio(value.median)} [{number(value.low)}, {number(value.high)}]"


def scientific(value: float) -> str:
    """An error: ``1.2e-03``; exactly zero is ``0``."""
    return "0" if value == 0 else f"{value:.1e}"


def count(number_of: int, noun: str) -> str:
    """``1 point``, ``2 points``."""
    return f"{number_of} {noun}{'' if number_of == 1 else 's'}"


def _same(low: float, high: float, digits: int) -> bool:
    return number(low, digits) == number(high, digits)
