"""A comparison in words: table for a terminal, Markdown for a pull request, JSON for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape as escape_rich
from rich.table import Table

from attnbench import __version__
from attnbench.compare import VERDICTS, Compared, Comparison
from attnbench.history import Step
from attnbench.record import Record
from attnbench.report import units
from attnbench.report.markdown import LIMIT_BYTES, clip, escape
from attnbench.runs import problem_label

_MOST_ROWS = 50
_MOST_NOTES = 20
_MOST_CELL = 240
_COLOURS = {"SLOWER": "red", "FASTER": "green", "INCONCLUSIVE": "yellow", "SAME": "dim"}
_COLUMNS = ("verdict", "ratio [95 %]", "base", "new", "implementation", "problem", "what")
_NUMBERS = 4  # columns that are never broken
_PLAIN_FACTORS = (0.01, 100.0)  # written with three decimals
_CERTAIN = 1000.0  # an interval's end beyond it says no more than that it is far


def print_comparison(console: Console, comparison: Comparison, *, verbose: bool = False) -> None:
    """Regressions, improvements and what is open as a table, the rest counted.

    Args:
        console: where to.
        comparison: what to print.
        verbose: every point, not only those that need a look.
    """
    shown = list(comparison.points) if verbose else _worth_showing(comparison)
    if shown:
        table = Table(box=None, pad_edge=False)
        for column in _COLUMNS[:_NUMBERS]:
            table.add_column(column, no_wrap=True)
        table.add_column("point", overflow="fold")
        for point in shown if verbose else shown[:_MOST_ROWS]:
            *numbers, implementation, problem, what = _cells(point)
            # In one column, so that 80 letters are enough.
            words = f"{implementation} {problem}" + (f"\n  {what}" if what else "")
            table.add_row(*map(escape_rich, [*numbers, words]), style=_style(point))
        console.print(table)
    left = 0 if verbose else len(shown) - _MOST_ROWS
    if left > 0:
        console.print(f"and {units.count(left, 'more point')}; --verbose shows all")
    for line in [*comparison.notes, *_kernel_lines(comparison), *_summary(comparison)]:
        console.print(escape_rich(line), soft_wrap=True)


def print_steps(console: Console, steps: Sequence[Step], series: int, long: int) -> None:
    """Where the history of a point changed its level."""
    if steps:
        table = Table(box=None, pad_edge=False)
        for column in ("since", "implementation", "problem", "ratio", "runs", "what changed"):
            table.add_column(column, overflow="fold")
        for step in steps:
            cells = (
                step.record.time,
                step.record.implementation.spec,
                problem_label(step.record),
                units.ratio(step.ratio),
                f"{step.runs[0]} → {step.runs[1]}",
                "; ".join(step.changed) or "nothing that is recorded",
            )
            table.add_row(*map(escape_rich, cells), style="red" if step.ratio > 1 else "green")
        console.print(table)
    console.print(
        f"history: {units.count(len(steps), 'step')} in {long} of {series} series "
        "that are long enough"
    )


def markdown(comparison: Comparison) -> str:
    """The worst points, at most 50, and the counts; shorter than 60 kB."""
    lines = ["# attnbench compare", "", f"**{_headline(comparison)}**", ""]
    lines += [f"- {escape(clip(line, _MOST_CELL))}" for line in _summary(comparison)]
    notes = [*comparison.notes, *_kernel_lines(comparison)]
    lines += [f"- {escape(clip(line, _MOST_CELL))}" for line in notes[:_MOST_NOTES]]
    lines += [f"- and {len(notes) - _MOST_NOTES} more notes"] if len(notes) > _MOST_NOTES else []
    shown = _worth_showing(comparison)
    rows = [
        f"| {' | '.join(escape(clip(c, _MOST_CELL)) for c in _cells(point))} |" for point in shown
    ]
    if rows:
        lines += ["", f"| {' | '.join(_COLUMNS)} |", "|" + "---|" * len(_COLUMNS)]
    room = LIMIT_BYTES - sum(len(line.encode()) + 1 for line in lines)
    kept = 0
    for row in rows[:_MOST_ROWS]:
        room -= len(row.encode()) + 1
        if room < 0:
            break
        lines.append(row)
        kept += 1
    lines += ["", f"{len(rows) - kept} more, less grave."] if kept < len(rows) else []
    return "\n".join(lines) + "\n"


def to_json(comparison: Comparison, steps: Sequence[Step] = ()) -> dict[str, Any]:
    """All of it as plain JSON values; what was not measured is null."""
    return {
        "attnbench": __version__,
        "exit_code": comparison.exit_code,
        "threshold": comparison.threshold,
        "counts": {verdict: comparison.counts[verdict] for verdict in VERDICTS},
        "notes": list(comparison.notes),
        "points": [_point_json(point) for point in comparison.points],
        "steps": [
            {
                "implementation": step.record.implementation.spec,
                "problem_id": step.record.problem_id,
                "problem": problem_label(step.record),
                "since": step.record.time,
                "ratio": step.ratio,
                "runs": list(step.runs),
                "changed": list(step.changed),
            }
            for step in steps
        ],
    }


# ---- one point -------------------------------------------------------------------------


def _point_json(point: Compared) -> dict[str, Any]:
    ratio, kernels = point.ratio, point.kernels
    return {
        "implementation": point.record.implementation.spec,
        "problem_id": point.record.problem_id,
        "problem": problem_label(point.record),
        "verdict": point.verdict,
        "reason": point.reason or None,
        "is_regression": point.is_regression,
        "regressions": [{"kind": r.kind, "text": r.text} for r in point.regressions],
        "base": _side_json(point.base),
        "new": _side_json(point.new),
        "ratio": ratio and {"median": ratio.ratio, "low": ratio.low, "high": ratio.high},
        "adjusted_p": point.adjusted_p,
        "threshold": point.threshold,
        "is_paired": point.is_paired if ratio else None,
        "kernels": kernels and {"gone": list(kernels.gone), "added": list(kernels.added)},
        "notes": list(point.notes),
    }


def _side_json(record: Record | None) -> dict[str, Any] | None:
    if record is None:
        return None
    samples = record.samples
    return {
        "id": record.id,
        "status": record.status,
        "time": record.time,
        "median_s": samples and samples.median_s,
        "clock": samples and samples.clock,
        "processes": samples and len(samples.times_s),
        "environment": record.environment,
        "source_sha256": record.implementation.source_sha256,
        "command": record.command,
    }


def _cells(point: Compared) -> tuple[str, ...]:
    return (
        point.verdict,
        _ratio(point),
        _time(point.base),
        _time(point.new),
        point.record.implementation.spec,
        problem_label(point.record),
        _what(point),
    )


def _time(record: Record | None) -> str:
    if record is None:
        return "–"
    if record.samples is None:
        return record.status
    return units.quantity(record.samples.median_s, units.SECONDS)


def _ratio(point: Compared) -> str:
    if point.ratio is None:
        return "–"
    low = "0" if point.ratio.low < 1 / _CERTAIN else _factor(point.ratio.low)
    high = "∞" if point.ratio.high > _CERTAIN else _factor(point.ratio.high)
    return f"{_factor(point.ratio.ratio)} [{low}, {high}]"


def _factor(value: float) -> str:
    low, high = _PLAIN_FACTORS
    return f"{value:.3f}" if low <= value < high else units.number(value)


def _what(point: Compared) -> str:
    """Everything there is to say about the point, the gravest first."""
    told = [f"{r.kind}: {r.text}" for r in point.regressions]
    is_told = any(r.kind == "failure" for r in point.regressions)
    told += [point.reason] if point.reason and not is_told else []
    told += ["other kernels ran"] if point.kernels else []
    return "; ".join([*told, *point.notes])


def _style(point: Compared) -> str:
    return "red" if point.is_regression else _COLOURS.get(point.verdict, "")


# ---- all points ------------------------------------------------------------------------


def _worth_showing(comparison: Comparison) -> list[Compared]:
    """Points that need a look: not those that stayed the same, or cannot be compared."""
    quiet = ("SAME", "NOT COMPARABLE")
    return [p for p in comparison.points if p.is_regression or p.verdict not in quiet]


def _headline(comparison: Comparison) -> str:
    count = len(comparison.regressions)
    if comparison.exit_code == 2:
        return "Nothing could be compared"
    return f"{units.count(count, 'regression')}" if count else "No regression"


def _summary(comparison: Comparison) -> list[str]:
    """Counts, why points are not comparable, and what would settle those that are open."""
    counts = comparison.counts
    told = ", ".join(f"{counts[v]} {v}" for v in VERDICTS if counts[v])
    lines = [f"{units.count(len(comparison.points), 'point')}: {told or 'none'}"]
    kinds = Counter(r.kind for p in comparison.points for r in p.regressions)
    told = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
    lines += [f"regressions besides time: {told}"] if kinds else []
    obstacles = Counter(p.reason for p in comparison.points if p.verdict == "NOT COMPARABLE")
    lines += [f"NOT COMPARABLE {n} ×: {why}" for why, n in obstacles.most_common(_MOST_NOTES)]
    single = sum(p.verdict == "INCONCLUSIVE" and p.has_one_process for p in comparison.points)
    if single:
        lines.append(
            f"{single} of the INCONCLUSIVE have one process on a side, which cannot tell how "
            "processes differ: measure in three or more, or give a --history of equal runs"
        )
    return lines


def _kernel_lines(comparison: Comparison) -> list[str]:
    """Which kernels changed, each change once, with how many points saw it."""
    changes = Counter(
        (p.record.implementation.spec, p.kernels) for p in comparison.points if p.kernels
    )
    return [
        f"kernels of {spec} changed on {units.count(n, 'point')}: "
        + ", ".join([*(f"−{k}" for k in change.gone), *(f"+{k}" for k in change.added)])
        for (spec, change), n in changes.most_common()
    ]
