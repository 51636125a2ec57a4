"""``attnbench run``: from a suite to records on disk and a page."""

from __future__ import annotations

import argparse
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Protocol

from rich.console import Console
from rich.markup import escape

from attnbench import store
from attnbench.commands import render
from attnbench.commands.generation_text import print_generation
from attnbench.commands.opening import command_of, open_for
from attnbench.commands.training_text import print_training
from attnbench.conditions import before_start, closing_lines
from attnbench.errors import UserError
from attnbench.plan import Plan, parse_shard
from attnbench.progress import Display, duration
from attnbench.record import STATUSES, Record
from attnbench.runner import Runner
from attnbench.session import Session
from attnbench.suite import Suite, find_suite, load_suite

_BAD = ("incorrect", "timeout", "crash", "error")


def main(arguments: argparse.Namespace) -> int:
    """Run the suite; 0 if nothing is wrong, 1 if some point failed, 130 if interrupted."""
    if arguments.against is not None:
        from attnbench.commands import run_against  # which builds on this module

        return run_against.main(arguments)
    if arguments.confirm:
        raise UserError("--confirm is about regressions: it needs --against BASE")
    console = Console()
    shard = parse_shard(arguments.shard)
    path = find_suite(arguments.suite, arguments.project)
    suite = load_suite(path, arguments.set, arguments.preset)
    with open_for(arguments, lock=not arguments.dry_run) as session:
        file = session.results_file(suite, arguments.results, arguments.fresh)
        plan = session.plan(suite, file, arguments.impls, arguments.problem, shard)
        announce(console, session, plan, file)
        if arguments.dry_run:
            print_points(console, plan)
            return 0
        stopped = measure(console, session, plan, file, command_of(arguments))
    records = _records(plan, file)
    for line in closing_lines(records):
        console.print(escape(line), soft_wrap=True)
    if suite.kind == "training":
        print_training(console, records)
    elif suite.kind == "generation":
        print_generation(console, records)
    _summary(console, records, file)
    if records:
        show_page(console, arguments, suite, file)
    if stopped:
        console.print("Stopped early; the same command goes on from here.")
        return 130
    return 1 if any(record.status in _BAD for record in records) else 0


def measure(console: Console, session: Session, plan: Plan, file: Path, command: str) -> bool:
    """Measure what is left; True if the user stopped it."""
    if not plan.groups:
        console.print("Every point has its record already; --fresh would measure again.")
        return False
    with store.Store(file) as kept:
        if kept.mended:
            console.print(escape(kept.mended))
        return take(console, session, plan, kept.append, file.parent, command)


def take(
    console: Console,
    session: Session,
    plan: Plan,
    keep: Callable[[Record], None],
    folder: Path,
    command: str,
) -> bool:
    """Measure a plan and show how it goes; True if the user stopped it.

    Args:
        keep: takes each record as soon as it is there.
        folder: where the records are, for the file of the environment.
        command: beginning of the command that measures a point again.
    """
    for line in before_start(session.pool.sampler):
        console.print(f"[bold yellow]Warning:[/] {escape(line)}", soft_wrap=True)
    limits = session.limits(plan.suite, folder)
    if told := limits.settle():
        console.print(escape(told), soft_wrap=True, highlight=False)
    address = limits.save()
    with Display(plan, console) as display:
        runner = Runner(plan, session.pool, address, keep, display, command, limits)
        with graceful_interrupt(console, runner):
            runner.run()
    return runner.stop_requested


def show_page(console: Console, arguments: argparse.Namespace, suite: Suite, file: Path) -> None:
    """The page, if it can be made: a bare GPU box measures without the libraries for it."""
    if arguments.no_report:
        return
    try:
        render.page(
            console, [file], _page_folder(arguments, suite, file), project=arguments.project
        )
    except UserError as error:
        console.print(f"No page: {escape(str(error))}. The records are safe.", soft_wrap=True)


def _page_folder(arguments: argparse.Namespace, suite: Suite, file: Path) -> Path:
    """A folder for every machine, and for every other place of results, that has the suite.

    Other places are told apart by their path: seen from the project, or all of it.
    """
    project: Path = arguments.project or Path.cwd()
    place, root = (arguments.results or project / "results").resolve(), project.resolve()
    pages = project / "reports" / "out"
    if place != root / "results":
        own = place.relative_to(root if place.is_relative_to(root) else place.anchor)
        pages /= own if own.parts else place.name  # the project's folder itself has no path
    return pages / file.parent.name / suite.name


class Stoppable(Protocol):
    """What may be asked to end after what is in flight."""

    stop_requested: bool


@contextmanager
def graceful_interrupt(console: Console, work: Stoppable) -> Iterator[None]:
    """First Ctrl-C: finish the problem in flight. Second: stop at once."""

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        if work.stop_requested:
            raise KeyboardInterrupt
        work.stop_requested = True
        console.print("Finishing the points in flight; Ctrl-C again stops at once.")

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def announce(console: Console, session: Session, plan: Plan, file: Path) -> None:
    """What is to be measured, where, for how long, and where the records go."""
    hardware = session.environment["identity"]["hardware"]
    where = hardware.get("gpu") or f"{hardware['cpu']}, {hardware['threads']} threads"
    todo = len(plan.points)
    console.print(f"[bold]{escape(plan.suite.title)}[/] on {plan.device} ({escape(where)})")
    known = f", {plan.finished} done before" if plan.finished else ""
    time_left = f", about {duration(plan.estimated_s())}" if todo else ""
    console.print(
        f"{todo} points to measure{known}{time_left}; records in {escape(str(file))}",
        soft_wrap=True,
    )


def print_points(console: Console, plan: Plan) -> None:
    """Every point that is still to do."""
    for group in plan.groups:
        console.print(f"{group[0].problem.id}  {escape(group[0].problem.label)}", soft_wrap=True)
        for point in group:
            reason, simulated = point.contender.entry.reason, point.contender.simulated
            note = f"  (unavailable: {reason})" if reason else ""
            note += f"  ({simulated}: verified, no timing)" if simulated else ""
            console.print(f"    {escape(point.contender.key + note)}", soft_wrap=True)


def _records(plan: Plan, file: Path) -> list[Record]:
    """Records of the points asked for; the file may hold others, of an older source too."""
    kept = store.load([file], plan.suite.kind).records if file.exists() else []
    return [record for record in kept if record.id in plan.ids]


def _summary(console: Console, records: Sequence[Record], file: Path) -> None:
    where = Counter(r.implementation.simulated for r in records if r.status == "ok")
    for words, count in sorted((w, n) for w, n in where.items() if w is not None):
        console.print(
            f"{count} points ran {escape(words)}: verified; their times are no timings",
            soft_wrap=True,
        )
    counts = Counter(record.status for record in records)
    told = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
    console.print(
        f"{counts.total()} points: {told or 'none'}. Records: {escape(str(file))}", soft_wrap=True
    )
