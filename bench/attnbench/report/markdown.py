"""The Markdown summary: for a pull request, a job's summary, a terminal.

Hosts cut long texts off (a comment at 64 KB), so the summary keeps to a size: all
verdicts, as many medians as fit, and the 50 gravest of the points that are not ok.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from attnbench.report import tables, units
from attnbench.report.definition import Definition
from attnbench.report.environments import Environment
from attnbench.report.points import Point
from attnbench.report.simulated import COLUMNS, SimulatedView
from attnbench.report.style import Look
from attnbench.report.sweep import Scope
from attnbench.report.training_markdown import generations, runs
from attnbench.report.verdicts import Verdict
from attnbench.tune.told import Told

LIMIT_BYTES = 60_000  # under the 64 KB of a comment, with room for what a host adds
_MOST_FAILURES = 50
_MOST_PROBLEMS = 20
_MOST_TIES = 5
_MOST_CELL = 200
_SPECIAL = re.compile(r"([\\`*_{}\[\]#!|~&$])")


def summary(
    definition: Definition,
    scopes: Sequence[Scope],
    looks: Mapping[str, Look],
    environments: Mapping[str, Environment],
    problems: Sequence[str],
    figures: Sequence[Path],
    folder: Path,
    simulated: SimulatedView | None = None,
    searches: Sequence[Told] = (),
) -> str:
    """The text. ``figures`` are linked as seen from ``folder``."""
    head = [f"# {escape(definition.title)}", ""]
    head += [escape(definition.description), ""] if definition.description else []
    if not scopes:
        what = "timings" if simulated else "records"
        head += [f"There are no {what} in these results.", ""]
    for told in searches:
        head += _search(told)
    for scope in scopes:
        head += _verdicts(scope, environments)
    head += _problems(problems) + _figures(figures, folder)
    failed = [f for scope in scopes for f in _failures(scope, looks)]
    tail = _failure_table(failed) + _simulated_table(simulated)
    room = LIMIT_BYTES - _size(head) - _size(tail)
    if room < 0:  # thousands of panels: verdicts alone are too many
        head, room = _cut(head, LIMIT_BYTES - _size(tail)), 0
    medians = _medians([s for s in scopes if s.kind == "attention"], room)
    learned = _runs([s for s in scopes if s.kind != "attention"], room - _size(medians))
    return "\n".join([*head, *medians, *learned, *tail]).rstrip() + "\n"


def escape(text: str) -> str:
    """Text that Markdown and HTML leave as it is, on one line, and that mentions nobody."""
    line = _SPECIAL.sub(r"\\\1", " ".join(text.split()))
    return line.replace("<", "&lt;").replace(">", "&gt;").replace("@", "@\u200b")


def _verdicts(scope: Scope, environments: Mapping[str, Environment]) -> list[str]:
    machine = environments[scope.points[0].record.environment]
    counts = ", ".join(f"{n} {status}" for status, n in tables.status_counts(scope.points))
    wide = tables.wide_intervals(scope.points)
    counts += f", {units.count(wide, 'interval')} wider than asked for" if wide else ""
    lines = [
        f"## {escape(scope.title)}: fastest correct implementation",
        "",
        f"{escape(machine.name)} ({escape(scope.device)}) · {_software(machine)}{counts}",
        "",
        f"| problem | at {escape(scope.axis.label)} | fastest | time [95 %] | rate "
        f"| speed-up over {escape(scope.baseline or '–')} |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_verdict_row(verdict) for _, verdict in tables.cards(scope)]
    return [*lines, ""]


def _software(machine: Environment) -> str:
    wanted = ("torch", "triton", "cuda", "driver", "python")
    told = {path.rpartition(".")[2]: value for path, value in machine.identity.items()}
    return "".join(f"{name} {escape(told[name])} · " for name in wanted if name in told)


def _verdict_row(verdict: Verdict) -> str:
    title = escape(verdict.panel.title or "all points")
    if not verdict.ranking:
        return f"| {title} | {escape(str(verdict.x))} | nobody | – | – | – |"
    names = ", ".join(escape(p.implementation) for p in verdict.winners)
    tie = " (tie)" if len(verdict.winners) > 1 else ""
    texts = tables.figures(verdict.ranking[0])
    cells = [texts.get(name, "–") for name in ("time", "rate", "speedup")]
    row = [title, escape(str(verdict.x)), f"**{names}**{tie}", *cells]
    return f"| {' | '.join(row)} |"


def _search(told: Told) -> list[str]:
    """What a search found, and what it was worth."""
    best = f"**{escape(told.best)}**: {escape(told.best_said or '')}" if told.best else None
    importance = [f"{key} {100 * share:.0f} %" for key, share in told.importance.items()]
    told_apart = {
        "best": best or "no setting was measured, right, and within every bound",
        "gain": escape(told.gain or ""),
        "start": escape(told.start or ""),
        "ties": "; ".join(escape(tie) for tie in told.ties[:_MOST_TIES]),
        "importance": escape(", ".join(importance) or told.importance_absent or ""),
    }
    return [
        f"## {escape(told.title)}: {escape(told.goal)}", "",
        f"{escape(told.counted)}: {escape(told.ended)}. Drawn by {escape(told.sampler)}.", "",
        *(f"- {name}: {text}" for name, text in told_apart.items() if text), "",
    ]  # fmt: skip


def _medians(scopes: Sequence[Scope], room: int) -> list[str]:
    """The table of medians, as long as there is room, fastest sizes last."""
    head = [
        "## Medians", "",
        "| suite | problem | implementation | time [95 %] | rate | speed-up | memory | error |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    rows = [_median_row(p) for scope in scopes for p in scope.points if p.time_s is not None]
    return _filled(head, rows, room)


def _filled(head: Sequence[str], rows: Sequence[str], room: int) -> list[str]:
    """A table with as many rows as there is room for; nothing where there is none for one."""
    room -= _size(head) + 100
    kept: list[str] = []
    for row in rows:
        room -= len(row.encode()) + 1
        if room < 0:
            break
        kept.append(row)
    if not kept:
        return []
    left = len(rows) - len(kept)
    more = ["", f"{left} more in the page."] if left else []
    return [*head, *kept, *more, ""]


def _runs(scopes: Sequence[Scope], room: int) -> list[str]:
    """The tables of training and of generation, as long as there is room."""
    lines: list[str] = []
    for scope in scopes:
        of = runs if scope.kind == "training" else generations
        lines += _filled(*of(scope, escape), room - _size(lines))
    return lines


def _median_row(point: Point) -> str:
    texts = tables.figures(point)
    cells = [texts.get(name, "–") for name in ("time", "rate", "speedup", "memory", "error")]
    row = [point.record.suite, point.label, point.implementation]
    return f"| {' | '.join([*map(escape, row), *cells])} |"


def _failures(scope: Scope, looks: Mapping[str, Look]) -> list[tables.Failure]:
    return tables.failures(scope.points, looks)


def _failure_table(failures: Sequence[tables.Failure]) -> list[str]:
    if not failures:
        return []
    lines = [
        "## Not ok", "",
        "| implementation | status | points | reason of the first | first problem |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for failure in failures[:_MOST_FAILURES]:
        cells = [
            failure.look.name, failure.status, str(len(failure.points)),
            clip(failure.reason), failure.points[0].label,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(escape(cell) for cell in cells)} |")
    left = len(failures) - _MOST_FAILURES
    return [*lines, *(["", f"{left} more in the page."] if left > 0 else []), ""]


def _simulated_table(simulated: SimulatedView | None) -> list[str]:
    if simulated is None:
        return []
    lines = [
        "## Not timings", "", escape(simulated.summary), "",
        f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|",
    ]  # fmt: skip
    for row in simulated.rows[:_MOST_FAILURES]:
        lines.append(f"| {' | '.join(escape(clip(cell)) for cell in row)} |")
    left = len(simulated.rows) - _MOST_FAILURES
    return [*lines, *(["", f"{left} more in the page."] if left > 0 else []), ""]


def _problems(problems: Sequence[str]) -> list[str]:
    if not problems:
        return []
    lines = [f"- {escape(clip(line))}" for line in problems[:_MOST_PROBLEMS]]
    left = len(problems) - _MOST_PROBLEMS
    lines += [f"- and {left} more"] if left > 0 else []
    return ["## To know about these results", "", *lines, ""]


def _figures(figures: Sequence[Path], folder: Path) -> list[str]:
    pictures = [path for path in figures if path.suffix == ".png"]
    lines = [
        f"![{escape(path.stem)}]({Path(os.path.relpath(path, folder)).as_posix()})"
        for path in pictures[:_MOST_PROBLEMS]
    ]
    return [*lines, ""] if lines else []


def _cut(lines: Iterable[str], room: int) -> list[str]:
    kept: list[str] = []
    for line in lines:
        room -= len(line.encode()) + 1
        if room < 100:
            return [*kept, "", "More in the page.", ""]
        kept.append(line)
    return kept


def clip(text: str, most: int = _MOST_CELL) -> str:
    """The beginning of a text that is longer than a cell may be."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _size(lines: Iterable[str]) -> int:
    return sum(len(line.encode()) + 1 for line in lines)
