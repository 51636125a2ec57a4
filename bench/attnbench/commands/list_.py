"""``attnbench list``: what there is, what can run here, and why not."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from attnbench import pool, shelves
from attnbench.commands.opening import open_for
from attnbench.errors import UserError
from attnbench.problem import Problem
from attnbench.suite import list_suites, load_suite


def main(arguments: argparse.Namespace) -> int:
    """Print one of the lists; 0 when done."""
    console = Console()
    {"impls": _impls, "suites": _suites, "reports": _reports}[arguments.what](console, arguments)
    return 0


def _impls(console: Console, arguments: argparse.Namespace) -> None:
    """Every implementation, probed with a small forward and backward on the device."""
    forward = Problem.of(heads=2, seqlen=64, head_dim=64, mask="causal")
    problems = [forward.replace(direction="both"), forward]
    with open_for(arguments, lock=False) as session:
        both, single = (pool.probe(session.pool, session.entries, p.to_json()) for p in problems)
        table = Table(box=None, pad_edge=False)
        for column in ("implementation", "kind", "here", "from", "what it is, or why not"):
            table.add_column(column, overflow="fold")
        for entry in session.entries:
            if entry.reason is not None:
                here, text = "unavailable", f"{entry.file}:{entry.line}: {entry.reason}"
            elif entry.name in single:
                here, text = "no", single[entry.name]
            elif entry.name in both:
                here, text = "forward", both[entry.name]
            else:
                here, text = "yes", entry.summary
            options = "".join(f" {k}={v}" for k, v in entry.options.items())
            cells = (entry.name + options, entry.kind, here, entry.source.origin, text)
            table.add_row(*map(escape, cells))
        console.print(table)
        console.print(f"on {session.device}; probed in float32, causal")


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
