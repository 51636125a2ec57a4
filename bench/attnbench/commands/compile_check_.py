"""``attnbench compile-check``: Triton kernels, compiled for GPUs that are not here."""

from __future__ import annotations

import argparse
import fnmatch
import time
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from attnbench.errors import UserError, unknown
from attnbench.offline.result import FILE, CompileCheck, Figures, Row
from attnbench.offline.targets import TARGETS
from attnbench.offline.workers import Job, Offer, offers, representatives, run_jobs
from attnbench.plan import Contender, choose
from attnbench.session import open_session


def main(arguments: argparse.Namespace) -> int:
    """Compile and check; 0 if nothing is wrong, 1 if a case has a fault or cannot be offered.

    The result is kept beside the machine's records, unless only some implementations or
    targets were asked for.
    """
    console = Console()
    triton = triton_version()
    for name in arguments.target:
        if name not in TARGETS:
            raise unknown("target", name, TARGETS, "--target")
    begin = time.monotonic()
    with open_session(
        arguments.project, "auto", arguments.impls_dir, lock=False,
        import_timeout_s=arguments.import_timeout,
    ) as session:  # fmt: skip
        entries = session.entries
        contenders = _without_options(choose(arguments.impls or ["*"], entries))
        project, kept = session.project, session.results_folder(arguments.results) / FILE
    with console.status("looking for kernels") as status:
        found, refusals = offers(_usable(contenders), project, arguments.import_timeout)
        refusals |= _unavailable(console, contenders, arguments.impls)
        for glob in arguments.impls:
            if not fnmatch.filter([*_names(found), *refusals], glob):
                everyone = _usable(choose(["*"], entries))
                of_all, _ = offers(everyone, project, arguments.import_timeout)
                raise _without_kernels(glob, contenders, of_all)
        jobs = _jobs(found, refusals, arguments)
        rows = run_jobs(
            jobs, project, arguments.timeout,
            lambda done, job: status.update(f"{done} of {len(jobs)}: {job.offer.kernel}"),
        )  # fmt: skip
    result = CompileCheck.of(rows, refusals, triton, arguments.all)
    _print(console, result)
    seconds = time.monotonic() - begin
    console.print(_summary(result, found, seconds), soft_wrap=True, highlight=False)
    paths = [arguments.json] if arguments.json else []
    if not (arguments.impls or arguments.target):
        paths.append(kept)
    for path in paths:
        result.write(path)
        console.print(f"Kept in {escape(str(path))}", soft_wrap=True)
    return 0 if result.is_passed else 1


def triton_version() -> str:
    """Of the installed Triton.

    Raises:
        UserError: there is none.
    """
    try:
        import triton
    except ImportError as error:
        raise UserError(
            f"compile-check needs triton, which cannot be imported ({error}): pip install triton"
        ) from None
    return str(triton.__version__)


def _without_options(chosen: list[Contender]) -> list[Contender]:
    """What was chosen.

    Raises:
        UserError: with options, which would be ignored.
    """
    if given := [c.spec for c in chosen if c.given]:
        raise UserError(
            f"{', '.join(given)}: compile-check takes no options; an implementation's cases "
            "name every configuration it has"
        )
    return chosen


def _unavailable(
    console: Console, contenders: Sequence[Contender], asked: Sequence[str]
) -> dict[str, str]:
    """Tell who cannot be imported; those that were asked for by name are refusals."""
    refused = {}
    for entry in (c.entry for c in contenders if c.entry.reason is not None):
        reason = f"unavailable: {entry.file}:{entry.line}: {entry.reason}"
        if entry.name in asked:
            refused[entry.name] = reason
        else:
            console.print(f"[bold]{escape(entry.name)}[/] {escape(reason)}", soft_wrap=True)
    return refused


def _usable(contenders: Iterable[Contender]) -> list[Contender]:
    return [c for c in contenders if c.entry.reason is None]


def _names(found: Iterable[Offer]) -> set[str]:
    return {offer.contender.entry.name for offer in found}


def _without_kernels(
    glob: str, contenders: Sequence[Contender], of_all: Sequence[Offer]
) -> UserError:
    """The error for a name, or a glob, of implementations that offer no kernels.

    Args:
        contenders: all that were asked for.
        of_all: the offers of everyone here, who could have been meant instead.
    """
    asked = [c.entry for c in _usable(contenders) if fnmatch.fnmatchcase(c.entry.name, glob)]
    where = ", ".join(f"{entry.name} ({entry.file}:{entry.line})" for entry in asked)
    reason = f"compile_cases() gives none for {where}" if asked else "none of them can be imported"
    return UserError(
        f"{glob}: no kernels to compile: {reason}; "
        f"allowed: {', '.join(sorted(_names(of_all))) or 'none here, see attnbench.offline'}"
    )


def _jobs(
    found: Sequence[Offer], refusals: dict[str, str], arguments: argparse.Namespace
) -> list[Job]:
    """What to compile.

    Raises:
        UserError: there is nothing to compile.
    """
    wanted = found if arguments.all else representatives(found)
    jobs = [
        Job(offer, target)
        for offer in wanted
        for target in offer.targets
        if not arguments.target or target in arguments.target
    ]
    if not jobs and not refusals:
        raise UserError(
            f"no kernel is for {', '.join(arguments.target)}" if found
            else "no implementation offers kernels to compile (see attnbench.offline)"
        )  # fmt: skip
    return jobs


def _print(console: Console, result: CompileCheck) -> None:
    """A table for each implementation, and every fault below it."""
    for name in dict.fromkeys(row.implementation for row in result.rows):
        rows = [row for row in result.rows if row.implementation == name]
        console.print(f"[bold]{escape(name)}[/]")
        console.print(_table(rows))
        for row in rows:
            for fault in row.faults:
                console.print(
                    f"[red]fault[/] {escape(row.compiled.case)} on {row.compiled.target}: "
                    f"{escape(fault)}", soft_wrap=True, highlight=False,
                )  # fmt: skip
    for name, reason in result.refusals.items():
        console.print(f"[bold]{escape(name)}[/] [red]{escape(reason)}[/]", soft_wrap=True)


def _table(rows: Sequence[Row]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("case", overflow="fold")
    table.add_column("target", no_wrap=True)
    for column in ("registers", "spills", "shared", "occupancy"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("matrix instructions", overflow="fold")
    table.add_column("verdict", no_wrap=True)
    previous = ""
    for row in rows:
        compiled = row.compiled
        case = "" if compiled.case == previous else escape(compiled.case)
        cells = _cells(compiled.figures, compiled.target)
        verdict = "[red]fault[/]" if row.faults else "[green]ok[/]"
        table.add_row(case, compiled.target, *cells, verdict)
        previous = compiled.case
    return table


def _cells(figures: Figures | None, target: str) -> tuple[str, str, str, str, str]:
    if figures is None:
        return ("", "", "", "", "")
    mma = TARGETS[target].mma
    found = [f"{n} {name}" for name, n in figures.instructions.items() if name in mma]
    if figures.loops_specialized:
        found.append(f"{figures.num_warps} warps")
    return (
        str(figures.registers),
        f"{figures.spill_bytes} B" if figures.spill_bytes else "none",
        f"{figures.shared_bytes / 1024:.1f} KiB",
        f"{figures.occupancy:.0%}",
        ", ".join(found) or "none",
    )


def _summary(result: CompileCheck, found: Sequence[Offer], seconds: float) -> str:
    faulty = sum(bool(row.faults) for row in result.rows)
    said = f"{len(result.rows)} compiled in {seconds:.0f} s with Triton {result.triton}: "
    said += f"{faulty} with faults" if faulty else "no faults"
    if not result.is_complete:
        cases = {(row.implementation, row.compiled.case) for row in result.rows}
        said += f"; {len(cases)} of {len(found)} cases, --all compiles every one"
    return said
