"""``attnbench tune``: search a suite's space, trial by trial, and say what is best."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console
from rich.markup import escape

from attnbench import store
from attnbench.commands import run_
from attnbench.commands.opening import open_for
from attnbench.commands.tune_text import Display, print_findings, print_plan
from attnbench.conditions import before_start, closing_lines
from attnbench.errors import UserError
from attnbench.plan import Contender, choose
from attnbench.session import Session, reproduce
from attnbench.suite import Suite, find_suite, load_suite
from attnbench.train.workload import Workload
from attnbench.tune import findings
from attnbench.tune.foresight import WorkerForesight
from attnbench.tune.journal import Journal
from attnbench.tune.measuring import Measuring
from attnbench.tune.outcome import Outcome
from attnbench.tune.paste import as_suite
from attnbench.tune.resolve import Resolver, Setting
from attnbench.tune.samplers import check_sampler
from attnbench.tune.search import Search
from attnbench.tune.space import IMPL, Choices, Space
from attnbench.tune.table import Tune, start_of
from attnbench.tune.told import SEARCH_FILE, tell, write


def main(arguments: argparse.Namespace) -> int:
    """Search; 0 if there is a best setting, 1 if there is none, 130 if interrupted."""
    console = Console()
    path = find_suite(arguments.suite, arguments.project)
    suite = load_suite(path, arguments.set, arguments.preset)
    tune, start = start_of(suite, arguments.set)
    tune = tune.with_words(arguments.sampler, arguments.trials, arguments.seed)
    check_sampler(tune)
    with open_for(arguments, lock=not arguments.dry_run) as session:
        tune, contenders, alone = _who(tune, suite, session)
        everybody = [*contenders.values(), *([alone] if alone else [])]
        file = session.results_file(suite, arguments.results, arguments.fresh)
        journal_file = file.with_name(f"{file.stem}.tune-{_digest(tune, everybody)}.journal")
        print_plan(console, suite, tune, session.device, journal_file)
        if arguments.dry_run:
            return 0
        with contextlib.ExitStack() as stack:
            journal = stack.enter_context(Journal(journal_file, tune))
            kept = stack.enter_context(store.Store(file))
            measuring = _measuring(console, arguments, session, suite, tune, kept)
            measuring.records |= {r.id: r for r in store.load([file], suite.kind).records}
            foresight = WorkerForesight(session.pool, everybody)
            resolver = Resolver(tune, start, contenders, foresight, measuring.name, alone)
            display = stack.enter_context(Display(console, tune, journal))
            measuring.progress = display
            search = Search(tune, journal, resolver, measuring, measuring.recall, display)
            with run_.graceful_interrupt(console, search):
                before = _start(session, suite, start, measuring, display)
                search.run()
    found = findings.find(tune, search.trials, before)
    best_suite = None
    if found.best is not None and found.best.workload is not None:
        best_suite = as_suite(
            f"The best of {suite.title}", found.best.spec, found.best.workload,
            suite.measure, suite.baseline,
        )  # fmt: skip
    told = tell(suite, tune, search, found, before, best_suite)
    write(file.with_name(f"{journal_file.stem}{SEARCH_FILE}"), told)
    print_findings(console, tune, search, found, before, best_suite, suite.measure.processes)
    outcomes = [*(trial.outcome for trial in search.trials), before]
    names = {outcome.record for outcome in outcomes if outcome}
    for line in closing_lines([r for r in measuring.records.values() if r.id in names]):
        console.print(escape(line), soft_wrap=True)
    console.print(f"Records: {escape(str(file))}", soft_wrap=True)
    run_.show_page(console, arguments, suite, file)
    if search.stop_requested:
        console.print("Stopped early; the same command goes on from here.")
        return 130
    return 0 if found.best is not None else 1


def _who(
    tune: Tune, suite: Suite, session: Session
) -> tuple[Tune, dict[str, Contender], Contender | None]:
    """The search with the globs of ``impl`` expanded; who they name, or who attends alone."""
    where = f"{suite.path}: [tune.space]: {IMPL}"
    told = tune.space.dimensions.get(IMPL)
    if isinstance(told, Choices):
        of_kind = [e for e in session.entries if e.kind in suite.kinds]
        chosen = choose(map(str, told.values), of_kind, where, suite.options, suite.kind)
        for contender in chosen:
            if contender.simulated is not None:
                how = f"{contender.spec} runs {contender.simulated}"
                raise UserError(f"{where}: {how}: its times are no timings")
        contenders = {c.spec: c for c in chosen}
        dimensions = {**tune.space.dimensions, IMPL: Choices(tuple(contenders))}
        return replace(tune, space=Space(dimensions)), contenders, None
    alone = session.contenders(suite)
    if len(alone) != 1:
        raise UserError(
            f"{suite.path}: impls names {len(alone)} implementations; what is to be searched "
            f"goes into [tune.space] as {IMPL} = [...]"
        )
    return tune, {}, alone[0]


def _digest(tune: Tune, contenders: Sequence[Contender]) -> str:
    """8 hex digits of what is searched and how; trials more or less make no other search."""
    told = [
        tune.space.to_json(), tune.objective, tune.loss, tune.sampler, tune.seed, tune.parameters,
        tune.tolerance, tune.adapt, [vars(bound) for bound in tune.bounds],
        {c.spec: c.entry.code for c in contenders},
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:8]


def _measuring(
    console: Console,
    arguments: argparse.Namespace,
    session: Session,
    suite: Suite,
    tune: Tune,
    kept: store.Store,
) -> Measuring:
    if kept.mended:
        console.print(escape(kept.mended))
    for line in before_start(session.pool.sampler):
        console.print(f"[bold yellow]Warning:[/] {escape(line)}", soft_wrap=True)
    limits = session.limits(suite, kept.path.parent)
    if told := limits.settle():
        console.print(escape(told), soft_wrap=True, highlight=False)

    def command(overrides: Sequence[str]) -> str:
        return reproduce(
            arguments.suite,
            device=arguments.device,
            project=arguments.project,
            impls_dirs=arguments.impls_dir,
            overrides=[*arguments.set, *overrides],
            preset=arguments.preset,
        )

    return Measuring(session, suite, tune, kept.append, command, limits)


def _start(
    session: Session, suite: Suite, start: Workload, measuring: Measuring, display: Display
) -> Outcome | None:
    """What the suite's own workload comes to with its baseline; None where it names none."""
    if not suite.baseline:
        return None
    (contender, *others) = choose([suite.baseline], session.entries, f"{suite.path}: baseline")
    if others:
        raise UserError(f"{suite.path}: baseline = {suite.baseline!r}: the start is of one")
    setting = Setting(start, contender, measuring.name(start, contender))
    outcome = measuring.recall(setting)
    if outcome is None:
        display.start_begins(setting)
        outcome = measuring(setting)
    return outcome
