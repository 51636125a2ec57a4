"""A self-test in words: the table with the error of each row, and a line that sums it up."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from attnbench.report import units
from attnbench.selftest import Result, Row, failures
from attnbench.stats import Interval

_COLOURS = {"passed": "green", "failed": "red", "not here": "yellow", "shown": "dim"}
_COLUMNS = ("check", "expected", "measured [95 %]", "error", "allowed", "result")
_UNITS = {
    "s": units.SECONDS,
    "bytes": units.BYTES,
    "J": (units.Unit("J", 1.0),),
}


def print_rows(console: Console, rows: Sequence[Row]) -> None:
    """The table, and below it what is to be said of single rows."""
    table = Table(box=None, pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column, overflow="fold")
    for row in rows:
        result = f"[{_COLOURS[row.status]}]{row.status}[/]"
        cells = (row.check, _expected(row), _measured(row), _error(row), _allowed(row))
        table.add_row(*map(escape, cells), result)
    console.print(table)
    for row in rows:
        if row.reason:
            console.print(f"{escape(row.check)}: {escape(row.reason)}", soft_wrap=True)


def sentence(result: Result) -> str:
    """``passed on 2026-11-21T06:00:00+00:00: 14 passed, 3 not here``."""
    verdict = "passed" if result.is_passed else "failed"
    text = f"{verdict} on {result.time}: {result.summary}"
    return f"{text}; failed: {failures(result.failed)}" if result.failed else text


def _expected(row: Row) -> str:
    return "" if row.expected is None else _value(row.expected, row.unit)


def _measured(row: Row) -> str:
    if row.measured is None:
        return ""
    if row.low is None or row.high is None:
        return _value(row.measured, row.unit)
    return units.interval(Interval(row.measured, row.low, row.high), _UNITS[row.unit])


def _error(row: Row) -> str:
    """With its sign; as a share of what was expected, if that is not nothing."""
    if row.error is None:
        return ""
    if row.expected:
        return f"{row.error / row.expected:+.2%}"
    return f"{'+' if row.error > 0 else ''}{_value(row.error, row.unit)}"


def _allowed(row: Row) -> str:
    """The largest error that passes, told as the error is."""
    if row.allowed is None:
        return ""
    if row.expected:
        return f"±{row.allowed / row.expected:.2%}"
    return f"±{_value(row.allowed, row.unit)}"


def _value(value: float, unit: str) -> str:
    if unit in _UNITS:
        return "0" if value == 0 else units.quantity(value, _UNITS[unit], 4)
    return f"{value:g}"
