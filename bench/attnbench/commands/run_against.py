"""``attnbench run SUITE --against BASE``: did my change make it slower?

BASE is a git revision, whose versions of the implementations are measured in the same rounds
as today's, or records that were measured before.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from attnbench import store
from attnbench.against import Brought, base_file, brought_out, make_plan_of_both, run_of
from attnbench.commands import compare_text, rerun, run_
from attnbench.commands.opening import command_of, open_for
from attnbench.compare import THRESHOLD, Comparison, compare
from attnbench.errors import UserError
from attnbench.plan import Contender, Plan, parse_shard
from attnbench.record import Record
from attnbench.report import units
from attnbench.runs import Run, load_run
from attnbench.session import Session
from attnbench.suite import Suite, find_suite, load_suite

_MOST_ROWS = 50  # of a comparison that is shown with the points that stayed the same


@dataclass
class _Work:
    """One command: what was asked for, and where it is done."""

    console: Console
    arguments: argparse.Namespace
    suite: Suite
    session: Session
    file: Path

    @property
    def shard(self) -> tuple[int, int]:
        return parse_shard(self.arguments.shard)

    def command(self, against: str | None = None) -> str:
        """The beginning of the command that measures a point again."""
        return command_of(self.arguments, against)

    def say(self, line: str) -> None:
        self.console.print(escape(line), soft_wrap=True)


def main(arguments: argparse.Namespace) -> int:
    """0 no regression, 1 regression, 2 nothing could be compared, 130 interrupted."""
    parse_shard(arguments.shard)
    path = find_suite(arguments.suite, arguments.project)
    suite = load_suite(path, arguments.set, arguments.preset)
    if suite.kind != "attention":
        raise UserError(
            f"--against measures single attentions, {path} is a {suite.kind} suite; run it twice "
            "and let attnbench compare hold the records against each other"
        )
    base = _records(Path(arguments.against))
    with open_for(arguments, lock=not arguments.dry_run) as session:
        file = session.results_file(suite, arguments.results, arguments.fresh)
        work = _Work(Console(), arguments, suite, session, file)
        return _of_revision(work) if base is None else _of_records(work, base)


def _expect_timings(contenders: Sequence[Contender]) -> None:
    for contender in contenders:
        if contender.simulated is not None:
            raise UserError(
                f"--against: {contender.spec} runs {contender.simulated}, whose times are no "
                "timings; there is nothing to compare"
            )


# ---- a revision ------------------------------------------------------------------------


def _of_revision(work: _Work) -> int:
    arguments, session = work.arguments, work.session
    contenders = session.contenders(work.suite, arguments.impls)
    _expect_timings(contenders)
    with brought_out(session, contenders, arguments.against) as brought:
        for line in _told(brought):
            work.say(line)
        if not brought.versions:
            # What is the same is not slower; that nothing has an earlier version says nothing.
            return 0 if brought.same else 2
        files = base_file(work.file, brought.label), work.file
        plan = make_plan_of_both(
            session, work.suite, brought.versions, files, arguments.problem, work.shard
        )
        run_.announce(work.console, session, plan, work.file)
        if arguments.dry_run:
            run_.print_points(work.console, plan)
            return 0
        if _measure_both(work, plan, files, work.command(brought.revision)):
            return _stopped(work)
    base, new = (run_of(file, plan.ids) for file in files)
    return _end(work, base, new)


def _told(brought: Brought) -> list[str]:
    """What is compared with what, and what is left out."""
    lines = [f"not measured: {line}" for line in brought.skipped]
    if brought.same:
        lines.append(f"the same at {brought.label}, not measured: {', '.join(brought.same)}")
    names = ", ".join(dict.fromkeys(both.present.spec for both in brought.versions))
    lines += [f"against {brought.label}, in the same rounds: {names}"] if names else []
    return lines if brought.versions else [*lines, "Nothing is left to compare."]


def _measure_both(work: _Work, plan: Plan, files: tuple[Path, Path], command: str) -> bool:
    """Measure what is left of both versions; True if the user stopped it."""
    if not plan.groups:
        work.say("Every point has its records already; --fresh would measure again.")
        return False
    with store.Store(files[0]) as base, store.Store(files[1]) as present:
        for kept in (base, present):
            if kept.mended:
                work.say(kept.mended)

        def keep(record: Record) -> None:
            (base if record.implementation.revision else present).append(record)

        return run_.take(work.console, work.session, plan, keep, work.file.parent, command)


# ---- records ---------------------------------------------------------------------------


def _records(path: Path) -> Run | None:
    """What a file or folder holds; None if it holds no record, or is not there."""
    run = load_run([path]) if path.exists() else None
    return run if run is not None and run.records else None


def _of_records(work: _Work, base: Run) -> int:
    arguments, session = work.arguments, work.session
    plan = session.plan(work.suite, work.file, arguments.impls, arguments.problem, work.shard)
    _expect_timings([point.contender for point in plan.points])
    points = {(p.problem.id, p.contender.spec) for p in plan.points}
    run_.announce(work.console, session, plan, work.file)
    if arguments.dry_run:
        run_.print_points(work.console, plan)
        return 0
    if run_.measure(work.console, session, plan, work.file, work.command()):
        return _stopped(work)
    new = run_of(work.file, plan.ids)
    points |= {record.point for record in new.records}
    asked = [record for record in base.records if record.point in points]
    old = {(record.id, record.time) for record in asked}
    again = [record for record in new.records if (record.id, record.time) not in old]
    if unmeasured := len(new.records) - len(again):
        work.say(
            f"{units.count(unmeasured, 'point')} not measured now: BASE holds the very records; "
            "--fresh would measure again"
        )
    measured = {record.point for record in again}
    kept = [r for r in asked if r.point in measured or not unmeasured]
    return _end(work, replace(base, records=tuple(kept)), replace(new, records=tuple(again)))


# ---- the end ---------------------------------------------------------------------------


def _end(work: _Work, base: Run, new: Run) -> int:
    """Compare, confirm if asked to, and show it; the exit code is the gate's."""
    comparison = compare(base, new, threshold=THRESHOLD)
    if work.arguments.confirm:
        comparison = rerun.with_suite(
            work.console,
            comparison,
            (base, new),
            work.session,
            work.suite,
            work.command(),
            work.file,
        )
    run_.show_page(work.console, work.arguments, work.suite, work.file)
    _show(work, comparison)
    return comparison.exit_code


def _show(work: _Work, comparison: Comparison) -> None:
    is_short = len(comparison.points) <= _MOST_ROWS
    compare_text.print_comparison(work.console, comparison, verbose=is_short)


def _stopped(work: _Work) -> int:
    work.say("Stopped early; the same command goes on from here.")
    return 130
