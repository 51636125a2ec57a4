"""``attnbench run``: from a suite to records on disk and a page."""

from __future__ import annotations

import argparse
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.markup import escape

from attnbench import selftest, store
from attnbench.commands import render
from attnbench.conditions import before_start, closing_lines
from attnbench.errors import UserError
from attnbench.limits import Limits
from attnbench.plan import Plan, parse_shard
from attnbench.progress import Display, duration
from attnbench.record import STATUSES, Record
from attnbench.runner import Runner
from attnbench.session import Session, open_session, reproduce
from attnbench.suite import find_suite, load_suite

_BAD = ("incorrect", "timeout", "crash", "error")


def main(arguments: argparse.Namespace) -> int:
    """Run the suite; 0 if nothing is wrong, 1 if some point failed, 130 if interrupted."""
    console = Console()
    shard = parse_shard(arguments.shard)
    path = find_suite(arguments.suite, arguments.project)
    suite = load_suite(path, arguments.set, arguments.preset)
    with open_session(
        arguments.project,
        arguments.device,
        arguments.impls_dir,
        lock=not arguments.dry_run,
        import_timeout_s=arguments.import_timeout,
    ) as session:
        file = session.results_file(suite, arguments.results, arguments.fresh)
        plan = session.plan(suite, file, arguments.impls, arguments.problem, shard)
        _announce(console, session, plan, file)
        if arguments.dry_run:
            _print_points(console, plan)
            return 0
        command = reproduce(
            arguments.suite,
            device=arguments.device,
            project=arguments.project,
            impls_dirs=arguments.impls_dir,
            overrides=arguments.set,
            preset=arguments.preset,
        )
        stopped = _measure(console, session, plan, file, command)
    records = _records(plan, file)
    counts: Counter[str] = Counter(record.status for record in records)
    for line in closing_lines(records):
        console.print(escape(line), soft_wrap=True)
    _summary(console, counts, file)
    if not arguments.no_report and counts.total():
        # Beside each other: a page for every machine that measured the suite.
        out = (arguments.project or Path.cwd()) / "reports" / "out" / file.parent.name / suite.name
        _render(console, file, out, arguments.project)
    if stopped:
        console.print("Stopped early; the same command goes on from here.")
        return 130
    return 1 if any(counts[status] for status in _BAD) else 0


def _measure(console: Console, session: Session, plan: Plan, file: Path, command: str) -> bool:
    """Measure what is left; True if the user stopped it."""
    if not plan.groups:
        console.print("Every point has its record already; --fresh would measure again.")
        return False
    session.environment = selftest.noted(session.environment, file.parent)
    for line in before_start(session.pool.sampler):
        console.print(f"[bold yellow]Warning:[/] {escape(line)}", soft_wrap=True)
    limits = Limits(session.pool, session.environment, file.parent, plan.suite.measure.ceilings_s)
    if told := limits.settle():
        console.print(escape(told), soft_wrap=True, highlight=False)
    address = limits.save()
    with store.Store(file) as kept, Display(plan, console) as display:
        if kept.mended:
            console.print(escape(kept.mended))
        runner = Runner(plan, session.pool, address, kept.append, display, command, limits)
        with _graceful_interrupt(console, runner):
            runner.run()
    return runner.stop_requested


def _render(console: Console, file: Path, out: Path, project: Path | None) -> None:
    """The page, if it can be made: a bare GPU box measures without the libraries for it."""
    try:
        render.page(console, [file], out, project=project)
    except UserError as error:
        console.print(f"No page: {escape(str(error))}. The records are safe.", soft_wrap=True)


@contextmanager
def _graceful_interrupt(console: Console, runner: Runner) -> Iterator[None]:
    """First Ctrl-C: finish the problem in flight. Second: stop at once."""

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        if runner.stop_requested:
            raise KeyboardInterrupt
        runner.stop_requested = True
        console.print("Finishing the points in flight; Ctrl-C again stops at once.")

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _announce(console: Console, session: Session, plan: Plan, file: Path) -> None:
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


def _print_points(console: Console, plan: Plan) -> None:
    for group in plan.groups:
        console.print(f"{group[0].problem.id}  {escape(group[0].problem.label)}", soft_wrap=True)
        for point in group:
            reason = point.contender.entry.reason
            note = f"  (unavailable: {reason})" if reason else ""
            console.print(f"    {escape(point.contender.spec + note)}", soft_wrap=True)


def _records(plan: Plan, file: Path) -> list[Record]:
    """Records of the points asked for; the file may hold others, of an older source too."""
    return [r for r in store.load([file]).records if r.id in plan.ids] if file.exists() else []


def _summary(console: Console, counts: Counter[str], file: Path) -> None:
    told = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
    console.print(
        f"{counts.total()} points: {told or 'none'}. Records: {escape(str(file))}", soft_wrap=True
    )
