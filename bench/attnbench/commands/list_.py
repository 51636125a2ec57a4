"""``attnbench list``: what there is, what can run here, and why not."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from attnbench import pool, shelves
from attnbench.commands.opening import open_for
from attnbench.errors import UserError
from attnbench.problem import DTYPE_ALIASES, Problem
from attnbench.registry import Entry
from attnbench.session import Session
from attnbench.suite import list_suites, load_suite

_PROBLEM = Problem.of(heads=2, seqlen=64, head_dim=64, mask="causal")
_PROBLEMS = {  # the first of which something can be done is told
    "": _PROBLEM,
    "full mask": Problem.of(heads=2, seqlen=64, head_dim=64),
    "decode": _PROBLEM.replace(seqlen_q=1, decode=True),
    "layer": _PROBLEM.replace(level="layer"),
}
_DTYPES = ("fp32", "bf16", "fp16")


def main(arguments: argparse.Namespace) -> int:
    """Print one of the lists; 0 when done."""
    console = Console()
    {"impls": _impls, "suites": _suites, "reports": _reports}[arguments.what](console, arguments)
    return 0


def _impls(console: Console, arguments: argparse.Namespace) -> None:
    """Every implementation, probed in each dtype, with a backward and without.

    Who can do nothing under a causal mask is asked about a full one, a decode step and a layer.
    """
    with open_for(arguments, lock=False) as session:
        abilities = _probe(session)
        table = Table(box=None, pad_edge=False)
        for column in ("implementation", "kind", "here", "what it is, or why not"):
            table.add_column(column, overflow="fold")
        for entry in session.entries:
            if entry.reason is not None:
                here, text = "unavailable", f"{entry.file}:{entry.line}: {entry.reason}"
            else:
                here, reason = abilities[entry.name].in_words()
                text = reason or entry.summary.replace("``", "")
            cells = map(escape, (entry.name, entry.kind, here, text))
            table.add_row(*cells)
            if more := _more(entry):
                table.add_row("", "", "", f"[dim]{escape(more)}[/]")
        console.print(table)
        able = sum(bool(a.both or a.forward) for a in abilities.values())
        console.print(
            f"{able} of {len(session.entries)} run on {session.device}; probed with head_dim "
            f"{_PROBLEM.head_dim} and mask causal, or else: {', '.join(filter(None, _PROBLEMS))}"
        )


def _more(entry: Entry) -> str:
    """The options of an implementation, and where it comes from if it is none of ours."""
    options = " ".join(f"{key}={value}" for key, value in entry.options.items())
    told = [f"options: {options}"] if options else []
    told += [f"from: {entry.source.origin}"] if entry.source.origin != "built-in" else []
    return "; ".join(told)


@dataclass
class _Ability:
    """What an implementation can do here: dtypes with a backward, dtypes without; reasons.

    ``where`` is the key of the problem in ``_PROBLEMS``; reasons are those of the first.
    """

    where: str = ""
    both: list[str] = field(default_factory=list)
    forward: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)  # by direction, the first one

    def in_words(self) -> tuple[str, str]:
        """Where it runs, and why not everywhere; the reason is empty if a backward runs."""
        forward, where = " ".join(self.forward), f"{self.where}: " if self.where else ""
        if self.both:
            both = " ".join(self.both) + (f"; forward {forward}" if forward else "")
            return f"{where}{both}", ""
        if forward:
            return f"{where}forward {forward}", self.reasons["both"]
        return "no", self.reasons["forward"]


def _probe(session: Session) -> dict[str, _Ability]:
    """By name, what every implementation that could be imported can do on the device."""
    able = {entry.name: _Ability() for entry in session.entries if entry.reason is None}
    for where, problem in _PROBLEMS.items():
        unable = {name: a for name, a in able.items() if not (a.both or a.forward)}
        _probe_problem(session, problem, unable)
        for ability in unable.values():
            ability.where = where
    return able


def _probe_problem(session: Session, problem: Problem, able: dict[str, _Ability]) -> None:
    """Add what some implementations, by name, can do of one problem."""
    for dtype in _DTYPES:
        asked = [entry for entry in session.entries if entry.name in able]
        for direction in ("forward",) if problem.decode else ("both", "forward"):
            told = problem.replace(dtype=DTYPE_ALIASES[dtype], direction=direction)
            reasons = pool.probe(session.pool, asked, told.to_json())
            for entry in asked:
                ability = able[entry.name]
                if entry.name in reasons:
                    ability.reasons.setdefault(direction, reasons[entry.name])
                else:
                    getattr(ability, direction).append(dtype)
            asked = [entry for entry in asked if entry.name in reasons]


def _suites(console: Console, arguments: argparse.Namespace) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("suite", "problems", "title", "file"):
        table.add_column(column, overflow="fold")
    for name, path in list_suites(arguments.project).items():
        try:
            suite = load_suite(path)
            cells = (name, str(len(suite.problems)), suite.title, str(path))
        except UserError as error:
            cells = (name, "wrong", str(error).removeprefix(f"{path}: "), str(path))
        table.add_row(*map(escape, cells))
    console.print(table)


def _reports(console: Console, arguments: argparse.Namespace) -> None:
    table = Table("report", "file", box=None, pad_edge=False)
    for shelf in shelves.find("reports", arguments.project):
        for path in sorted(shelf.glob("*.toml")):
            table.add_row(escape(path.stem), escape(str(path)))
    console.print(table)
