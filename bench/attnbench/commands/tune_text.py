"""A search in the terminal: what it will do, how it goes, what it has found."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from attnbench.plan import Point
from attnbench.progress import duration
from attnbench.record import Record
from attnbench.report import units
from attnbench.suite import Suite
from attnbench.tune.findings import Findings
from attnbench.tune.journal import Journal, Trial
from attnbench.tune.outcome import Outcome
from attnbench.tune.resolve import Setting
from attnbench.tune.search import Search, refusals
from attnbench.tune.table import Tune
from attnbench.tune.words import (
    bound_in_words,
    came,
    caution,
    counted,
    dimension_in_words,
    gain_in_words,
    goal,
    in_words,
    said,
    value_in_words,
)


class Display:
    """Shows a search; the runner's and the search's ``Progress``. Use as a context manager."""

    def __init__(self, console: Console, tune: Tune, journal: Journal) -> None:
        self._console, self._tune, self._wanted = console, tune, tune.wanted
        self._status = console.status("starting") if console.is_terminal else None
        self._label = ""
        self._began = 0.0
        self._spent: list[float] = []  # seconds of each trial measured now
        if journal.taken_up:
            count = units.count(journal.taken_up, "interrupted trial")
            console.print(f"Taking up {count} again.")

    def start_begins(self, setting: Setting) -> None:
        """The start is about to be measured."""
        self._label = f"start: {setting.contender.spec}"

    def trial_begins(self, setting: Setting, tried: int) -> None:
        """A setting is about to be measured; ``tried`` were before."""
        left = ""
        if self._spent:
            pace = sum(self._spent) / len(self._spent)
            left = f" (about {duration(pace * (self._wanted - tried))} left)"
        self._label = f"trial {tried + 1} of {self._wanted}{left}: {setting.contender.spec}"
        self._began = time.monotonic()
        self._show(self._label)

    def trial_done(self, trial: Trial) -> None:
        """A trial was told, refused ones too."""
        if trial.origin == "measured" and trial.outcome is not None:
            self._spent.append(time.monotonic() - self._began)
        if trial.origin == "journal":
            return  # nothing new; counted in the end
        known = " (had a record)" if trial.origin == "records" else ""
        line = f"trial {trial.number}: {in_words(trial.params)} → {said(self._tune, trial)}{known}"
        self._console.print(escape(line), highlight=False, soft_wrap=True)

    def group_begins(self, group: Sequence[Point]) -> None:
        """The runner begins."""

    def step(self, who: str | None, phase: str) -> None:
        """Somebody (None: the reference) begins a phase."""
        self._show(f"{self._label} · {who or 'reference'}: {phase}")

    def point_done(self, record: Record) -> None:
        """A record is there."""

    def _show(self, text: str) -> None:
        if self._status is not None:
            self._status.update(escape(text))

    def __enter__(self) -> Display:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._status is not None:
            self._status.stop()


def print_plan(console: Console, suite: Suite, tune: Tune, device: str, journal: Path) -> None:
    """What is searched, by whom, and where the journal is."""
    size = tune.space.size
    settings = "no end of settings" if size is None else units.count(size, "setting")
    console.print(f"[bold]{escape(suite.title)}[/] on {device}: {escape(goal(tune))}")
    console.print(f"{settings}, {tune.sampler}, up to {units.count(tune.wanted, 'trial')}")
    for key, dimension in tune.space.to_json().items():
        console.print(escape(f"    {key}: {dimension_in_words(dimension)}"), soft_wrap=True)
    for bound in tune.bounds:
        console.print(escape(f"    within {bound_in_words(bound)}"))
    console.print(f"Journal: {escape(str(journal))}", soft_wrap=True)


def print_findings(
    console: Console,
    tune: Tune,
    search: Search,
    found: Findings,
    start: Outcome | None,
    best_suite: str | None,
    processes: int,
) -> None:
    """Best, ties, Pareto, importance, and what to paste; ``processes`` each trial had."""
    console.print()
    console.print(escape(f"{counted(search.trials)}: {search.ended}."), soft_wrap=True)
    for reason, count in list(refusals(search.trials).items())[:5]:
        console.print(escape(f"    {count} × cannot be: {reason}"), soft_wrap=True)
    if start is not None:
        console.print(escape(f"Start: {came(tune, start)}"), soft_wrap=True)
    if found.best is None:
        console.print("[bold red]No setting was measured, right, and within every bound.[/]")
        return
    best = found.best
    console.print(f"[bold green]Best:[/] {escape(in_words(best.params))}", soft_wrap=True)
    console.print(escape(f"    {came(tune, best.outcome)}"), soft_wrap=True)
    if found.gain is not None:
        console.print(escape(f"    {gain_in_words(found.gain)}"), soft_wrap=True)
    if found.ties:
        console.print(
            f"    a tie with {units.count(len(found.ties), 'other')}, whose intervals overlap:"
        )
        for trial in found.ties[:5]:
            line = f"      {in_words(trial.params)}: {came(tune, trial.outcome)}"
            console.print(escape(line), soft_wrap=True)
    if told := caution(processes):
        console.print(f"    {told}", soft_wrap=True)
    _print_front(console, tune, found)
    if found.importance_absent:
        console.print(f"Importance is not told: {found.importance_absent}.")
    else:
        shares = ", ".join(f"{key} {share:.0%}" for key, share in found.importance.items())
        console.print(escape(f"Importance (PED-ANOVA): {shares}"), soft_wrap=True)
    if best_suite is not None:
        console.print("\n[bold]To paste[/], as suites/best.toml for `attnbench run best`:\n")
        console.print(escape(best_suite), highlight=False, soft_wrap=True)


def _print_front(console: Console, tune: Tune, found: Findings) -> None:
    """Who is beaten by nobody in objective, memory and loss at once."""
    table = Table(box=None, pad_edge=False, title_justify="left")
    table.title = "Nobody beats these in objective, memory and loss at once"
    for column in ("trial", "setting", tune.objective, "memory", "loss"):
        table.add_column(column, overflow="fold")
    for trial in found.pareto[:10]:
        assert trial.outcome is not None
        assert trial.outcome.value is not None
        figures = trial.outcome.figures
        memory, loss = figures.get("memory"), figures.get("loss")
        table.add_row(
            str(trial.number),
            escape(in_words(trial.params)),
            value_in_words(tune.objective, trial.outcome.value),
            "" if memory is None else units.quantity(memory, units.BYTES),
            "" if loss is None else f"{loss:.4g}",
        )
    console.print(table)
