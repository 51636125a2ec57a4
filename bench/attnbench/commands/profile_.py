"""``attnbench profile``: where the time and the memory of one implementation go."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from attnbench import environment as environments
from attnbench.commands.opening import open_for
from attnbench.errors import UserError
from attnbench.plan import Contender, choose
from attnbench.pool import make_task
from attnbench.problem import Problem
from attnbench.process import Event, WorkerDied
from attnbench.profiling import ncu
from attnbench.profiling.folder import fresh, profile_folder
from attnbench.session import Session
from attnbench.suite import one_problem

_MOST_ROWS = 20
_HOW = {
    "trace.json.gz": "open it at https://ui.perfetto.dev",
    "kernels.csv": "what ran in one call",
    "memory.csv": "bytes beyond the inputs, over time",
    "memory.png": "the same as a picture",
    "snapshot.pickle": "drop it on https://pytorch.org/memory_viz",
    ncu.REPORT: "open it with ncu-ui",
}


class _Failed(Exception):
    """The implementation cannot be profiled; the text says why."""


def main(arguments: argparse.Namespace) -> int:
    """Profile; 0 when done, 1 if the implementation cannot be profiled."""
    console = Console()
    problem = one_problem(arguments.set)
    ncu_path = ncu.find_ncu() if arguments.ncu else None
    with open_for(arguments) as session:
        if ncu_path and session.device == "cpu":
            raise UserError("--ncu: Nsight Compute needs a CUDA device; this profiles the CPU")
        contender = _the_one(arguments.impl, session)
        machine = environments.machine_name(session.environment)
        out = arguments.out or profile_folder(
            session.project / "results" / machine, contender.spec, problem.id
        )
        console.print(
            f"[bold]{escape(contender.spec)}[/] on {session.device}: {escape(problem.label)}",
            soft_wrap=True,
        )
        try:
            with fresh(out) as folder:
                told = _profile(console, session, contender, problem, folder, arguments.timeout)
                notes = _complete(contender, problem, folder)
                if ncu_path:
                    task = _task(contender, problem, session.device, folder)
                    session.pool.drop()  # its memory belongs to the process under ncu now
                    ncu.run_ncu(ncu_path, task, session.project, folder, arguments.timeout)
        except (_Failed, ncu.NcuFailed) as fault:
            who = "ncu" if isinstance(fault, ncu.NcuFailed) else contender.spec
            console.print(f"{escape(who)}: {escape(str(fault))}", soft_wrap=True)
            return 1
    _print_kernels(console, told["kernels"], session.device)
    _print_triton(console, told["triton"])
    for path in sorted(out.iterdir()):
        console.print(f"{escape(str(path))}  {_HOW[path.name]}", soft_wrap=True)
    for note in notes:
        console.print(escape(note), soft_wrap=True)
    return 0


def _the_one(impl: str, session: Session) -> Contender:
    """The one implementation that is meant.

    Raises:
        UserError: nobody, or several, have the name.
    """
    found = choose([impl], session.entries)
    if len(found) > 1:
        names = ", ".join(c.spec for c in found)
        raise UserError(f"{impl!r} names {len(found)} implementations ({names}); name one")
    return found[0]


def _task(contender: Contender, problem: Problem, device: str, folder: Path) -> Event:
    return {
        **make_task("profile", [contender], device),
        "problem": problem.to_json(),
        "folder": str(folder.resolve()),
    }


def _profile(
    console: Console,
    session: Session,
    contender: Contender,
    problem: Problem,
    folder: Path,
    timeout_s: float,
) -> Event:
    """Have a worker fill the folder; what it tells.

    Raises:
        _Failed: it is unavailable, unsupported, crashed or hung.
    """
    entry = contender.entry
    if entry.reason is not None:
        raise _Failed(f"unavailable: {entry.file}:{entry.line}: {entry.reason}")
    session.pool.drop()  # finding implementations has imported all of them
    told: Event | None = None
    try:
        with console.status("importing") as status:
            task = _task(contender, problem, session.device, folder)
            for event in session.pool.ask(task, timeout_s):
                if event["event"] == "step":
                    status.update(event["phase"])
                else:
                    told = event
    except WorkerDied as death:
        raise _Failed(f"{death.status}: {death.reason}") from death
    if told is None:
        raise _Failed("crash: the worker gave no result")
    if told["event"] == "failed":
        raise _Failed(f"{told['status']}: {told['reason']}")
    return told


def _complete(contender: Contender, problem: Problem, folder: Path) -> list[str]:
    """What needs no worker: the picture; what could not be made."""
    timeline = folder / "memory.csv"
    if not timeline.exists():
        return []
    if importlib.util.find_spec("matplotlib") is None:
        return ["No memory.png: pip install 'attnbench[report]'"]
    from attnbench.profiling.picture import draw_timeline

    draw_timeline(timeline, folder / "memory.png", f"{contender.spec}: {problem.label}")
    return []


def _print_kernels(console: Console, rows: Sequence[dict[str, Any]], device: str) -> None:
    """The longest first, with their share of one call."""
    if not rows:
        console.print("The profiler saw nothing run.")
        return
    what = "operator" if device == "cpu" else "kernel"
    table = Table(box=None, pad_edge=False)
    table.add_column(f"{what}, one call while profiled", overflow="fold")
    for column in ("calls", "time", "share"):
        table.add_column(column, justify="right", no_wrap=True)
    total_s = sum(row["time_s"] for row in rows) or 1.0
    for row in rows[:_MOST_ROWS]:
        table.add_row(
            escape(row["name"]), str(row["count"]), f"{row['time_s'] * 1e3:.3f} ms",
            f"{row['time_s'] / total_s:.1%}",
        )  # fmt: skip
    console.print(table)
    if len(rows) > _MOST_ROWS:
        console.print(f"and {len(rows) - _MOST_ROWS} more in kernels.csv")


def _print_triton(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("Triton kernel", overflow="fold")
    for column in ("registers", "spills", "shared", "warps", "occupancy", "limited by"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            escape(row["name"]), str(row["registers"]), str(row["spills"]),
            f"{row['shared_bytes'] / 1024:.1f} KiB", str(row["num_warps"]),
            f"{row['occupancy']:.0%}", row["limit"],
        )  # fmt: skip
    console.print(table)
