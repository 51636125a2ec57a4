"""What a run shows in the terminal: a line with time left, and a line for each failure.

On a terminal a live progress bar; elsewhere (a log file, CI) one plain line per problem.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from attnbench.plan import Plan, Point
from attnbench.record import Record

_QUIET = ("ok", "unsupported")


class Display:
    """Shows the progress of a plan; a context manager around ``Runner.run``."""

    def __init__(self, plan: Plan, console: Console) -> None:
        self._plan = plan
        self._console = console
        self._left_s = plan.estimated_s()
        self._pace = 1.0  # seen time over estimated time, so far
        self._spent = [0.0, 0.0]  # seen, estimated
        self._group: tuple[float, float] = (0.0, 0.0)  # start, estimate
        self._label = ""
        self._counts: Counter[str] = Counter()
        self._bar = Bar(
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.description}"),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=len(plan.points), left="")

    def group_begins(self, group: Sequence[Point]) -> None:
        """A problem's contenders are about to be measured."""
        self._settle()
        self._group = (time.monotonic(), self._plan.group_s(group))
        self._label = group[0].problem.label
        if not self._console.is_terminal:
            self._console.print(f"{self._label}: {len(group)} points")
        self._show("")

    def step(self, who: str | None, phase: str) -> None:
        """Somebody (None: the reference) begins a phase."""
        self._show(f"{who or 'reference'}: {phase}")

    def point_done(self, record: Record) -> None:
        """A point has its record."""
        self._counts[record.status] += 1
        self._bar.advance(self._task)
        if record.status not in _QUIET:
            who = record.implementation
            version = f" @ {who.revision[:12]}" if who.revision else ""
            self._console.print(
                f"[bold red]{record.status}[/] [bold]{escape(who.spec + version)}[/] on "
                f"{escape(self._label)}: {escape(record.reason or '')}",
                highlight=False,
                soft_wrap=True,
            )

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def _settle(self) -> None:
        """Learn from the group that ended how estimates compare with the truth."""
        start, estimate = self._group
        if estimate:
            self._left_s -= estimate
            self._spent[0] += time.monotonic() - start
            self._spent[1] += estimate
            self._pace = self._spent[0] / self._spent[1]

    def _show(self, phase: str) -> None:
        left = duration(self._left_s * self._pace)
        self._bar.update(
            self._task,
            left=f"about {left} left",
            description=escape(f"{self._label} · {phase}" if phase else self._label),
        )


def duration(seconds: float) -> str:
    """``42 s``, ``3 min``, ``2 h 10 min``."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
