"""``attnbench verify``: the conformance battery, implementation by implementation."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from attnbench.commands.opening import open_for
from attnbench.errors import UserError
from attnbench.plan import Contender, choose
from attnbench.pool import WorkerPool, contender_json
from attnbench.process import WorkerDied

_MOST_DEATHS = 3  # of workers; one that hangs on every case would take hours to say so
_MARKS = {"ok": "green", "unsupported": "dim"}


@dataclass
class Outcome:
    """What the battery found about one implementation."""

    contender: Contender
    cases: dict[str, dict[str, Any]] = field(default_factory=dict)

    def count(self, *statuses: str) -> int:
        """Cases that ended in one of the statuses."""
        return sum(case["status"] in statuses for case in self.cases.values())

    @property
    def failed(self) -> dict[str, dict[str, Any]]:
        """Cases that are neither right nor refused."""
        return {n: c for n, c in self.cases.items() if c["status"] not in ("ok", "unsupported")}


def main(arguments: argparse.Namespace) -> int:
    """Run the battery; 0 if nothing failed, 1 if something did."""
    console = Console()
    with open_for(arguments, lock=False) as session:
        outcomes = []
        for contender in choose(arguments.impls or ["*"], session.entries):
            outcome = Outcome(contender)
            if contender.entry.reason is None:
                _run(session.pool, outcome, arguments.case, arguments.timeout)
            _print(console, outcome, arguments.verbose)
            outcomes.append(outcome)
    if arguments.case and not any(outcome.cases for outcome in outcomes):
        raise UserError(f"--case {' '.join(arguments.case)}: no case has such a name")
    _print_table(console, outcomes)
    return 1 if any(outcome.failed for outcome in outcomes) else 0


def _run(pool: WorkerPool, outcome: Outcome, globs: list[str], timeout_s: float) -> None:
    """Run all cases, going on in a fresh worker after one that kills it."""
    for _ in range(_MOST_DEATHS):
        task = {
            "do": "battery",
            "device": pool.device,
            "contenders": [contender_json(outcome.contender)],
            "only": globs,
            "skip": list(outcome.cases),
        }
        at_work = ""
        try:
            for event in pool.ask(task, timeout_s):
                if event["event"] == "step":
                    at_work = event["who"]
                elif event["event"] == "case":
                    outcome.cases[event["who"]] = event
            return
        except WorkerDied as death:
            if not at_work or at_work in outcome.cases:
                raise
            outcome.cases[at_work] = {"status": death.status, "reason": death.reason}
            if at_work == "import":  # no case can begin
                return
    reason = f"not tried after {_MOST_DEATHS} workers died"
    outcome.cases["the other cases"] = {"status": "error", "reason": reason}


def _print(console: Console, outcome: Outcome, verbose: bool) -> None:
    """The cases worth reading: failures, or all of them; why, where nothing was done."""
    entry = outcome.contender.entry
    if entry.reason is not None:
        where = f"{entry.file}:{entry.line}"
        console.print(f"[bold]{escape(entry.name)}[/] unavailable: {escape(where)}: "
                      f"{escape(entry.reason)}", soft_wrap=True)  # fmt: skip
        return
    for name, case in (outcome.cases if verbose else outcome.failed).items():
        colour = _MARKS.get(case["status"], "red")
        console.print(
            f"[bold]{escape(outcome.contender.spec)}[/] [{colour}]{case['status']}[/] "
            f"{escape(name)}{': ' + escape(case['reason']) if case['reason'] else ''}",
            highlight=False,
            soft_wrap=True,
        )
        for tensor, accuracy in case.get("accuracy", {}).items() if verbose else ():
            console.print(f"    {tensor}: {escape(_figures(accuracy))}", soft_wrap=True)
    reasons = Counter(case["reason"] for case in outcome.cases.values())
    if reasons and not verbose and outcome.count("unsupported") == len(outcome.cases):
        [(reason, count)] = reasons.most_common(1)
        console.print(
            f"[bold]{escape(outcome.contender.spec)}[/] unsupported in all {len(outcome.cases)} "
            f"cases, {count} of them: {escape(reason)}",
            highlight=False,
            soft_wrap=True,
        )


def _figures(accuracy: dict[str, Any]) -> str:
    """max-abs, relative L2 and error quantiles of one tensor, and what they mean."""
    numbers = [
        f"{name} {accuracy[key]:.2e}"
        for name, key in (("max-abs", "max_abs"), ("relative L2", "rel_l2"))
        if accuracy[key] is not None
    ]
    numbers += [f"q{q} {value:.1e}" for q, value in accuracy["quantiles"].items()]
    return ", ".join([*numbers, accuracy["verdict"]])


def _print_table(console: Console, outcomes: list[Outcome]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("implementation", "verdict", "passed", "unsupported", "failed"):
        table.add_column(column, justify="left" if column[0] in "iv" else "right")
    for outcome in outcomes:
        verdict = "[green]conforms[/]"
        if outcome.contender.entry.reason is not None:
            verdict = "[red]unavailable[/]"
        elif outcome.failed:
            verdict = "[red]does not conform[/]"
        elif not outcome.count("ok"):
            verdict = "[dim]nothing supported here[/]"
        table.add_row(
            escape(outcome.contender.spec),
            verdict,
            str(outcome.count("ok")),
            str(outcome.count("unsupported")),
            str(len(outcome.failed)),
        )
    console.print(table)
