"""Compiling in worker processes, two at a time: a compiler that crashes ends only its own.

The first half is what a worker does, the second what its parent does. In the workers
``TRITON_INTERPRET`` is off, whatever it is in the parent: an interpreted kernel cannot be
compiled.
"""

from __future__ import annotations

import functools
import json
import os
import queue
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnbench.errors import UserError, in_words
from attnbench.offline.case import Case, checked_cases
from attnbench.offline.check import check
from attnbench.offline.compiling import compile_case, telling_line
from attnbench.offline.result import Compiled, Row
from attnbench.offline.targets import TARGETS
from attnbench.plan import Contender
from attnbench.pool import WorkerPool, make_task
from attnbench.process import WorkerDied

Send = Callable[..., None]

_MOST_WORKERS = 2  # each holds an LLVM of its own: about 1 GiB
_END_S = 5.0  # for a thread to notice that its worker was taken away


# ---- what a worker does --------------------------------------------------------------------


def list_cases(task: dict[str, Any], send: Send) -> None:
    """Send which cases each contender offers, or why it cannot say."""
    for told in task["contenders"]:
        send("step", who=told["key"], phase="import")
        try:
            cases = _offered(told)
        except BaseException as error:  # a plugin may raise anything
            text = str(error) if isinstance(error, UserError) else in_words(error)
            send("refused", who=told["key"], reason=f"compile_cases(): {text}")
        else:
            send("offered", who=told["key"], cases=[_outline(case) for case in cases])


def compile_one(task: dict[str, Any], send: Send) -> None:
    """Compile the one case that the task names; send what came out."""
    (told,) = task["contenders"]
    (case,) = (case for case in _offered(told) if case.name == task["case"])
    compiled = compile_case(case, TARGETS[task["target"]])
    send("compiled", compiled=compiled.model_dump(mode="json"))


def _offered(told: dict[str, Any]) -> tuple[Case, ...]:
    """The cases of a contender, its module imported with the interpreter off."""
    os.environ["TRITON_INTERPRET"] = "0"
    return _cases_of(json.dumps(told["entry"]))


@functools.cache
def _cases_of(entry: str) -> tuple[Case, ...]:
    """Once in a worker, which is asked for one of them after another."""
    from attnbench import registry

    implementation = registry.load(registry.Entry.from_json(json.loads(entry)))
    return checked_cases(implementation.compile_cases())


def _outline(case: Case) -> dict[str, Any]:
    return {
        "name": case.name,
        "kernel": case.kernel_name,
        "expects": sorted(case.expects),
        "targets": [target.name for target in case.compiled_for],
        "spill_budget_bytes": case.spill_budget_bytes,
        "num_warps": case.num_warps,
    }


# ---- what its parent does ------------------------------------------------------------------


@dataclass(frozen=True)
class Offer:
    """A case as the parent knows it: without the kernel."""

    contender: Contender
    name: str
    kernel: str
    expects: tuple[str, ...]
    targets: tuple[str, ...]
    spill_budget_bytes: int
    num_warps: int


@dataclass(frozen=True)
class Job:
    """One case to compile for one target."""

    offer: Offer
    target: str


def offers(
    contenders: Sequence[Contender], project: Path, timeout_s: float
) -> tuple[list[Offer], dict[str, str]]:
    """The cases of all contenders, and why some cannot offer theirs.

    Args:
        contenders: that can be imported.
        project: folder whose modules a plugin may import.
        timeout_s: for one of them to offer its cases.
    """
    found: list[Offer] = []
    refusals: dict[str, str] = {}
    todo = {contender.key: contender for contender in contenders}
    with WorkerPool("cpu", project) as pool:
        while todo:
            at_work = ""
            try:
                task = make_task("list-cases", list(todo.values()), "cpu")
                for event in pool.ask(task, timeout_s):
                    at_work = event["who"]
                    if event["event"] == "offered":
                        contender = todo.pop(at_work)
                        found += [_offer(contender, outline) for outline in event["cases"]]
                    elif event["event"] == "refused":
                        refusals[todo.pop(at_work).spec] = event["reason"]
            except WorkerDied as death:
                if at_work not in todo:
                    raise
                refusals[todo.pop(at_work).spec] = f"compile_cases(): {_last_words(death)}"
    return found, refusals


def representatives(found: Iterable[Offer]) -> list[Offer]:
    """The first case of each kernel, expectations and targets, of every implementation."""
    first: dict[tuple[Any, ...], Offer] = {}
    for offer in found:
        key = (offer.contender.key, offer.kernel, offer.expects, offer.targets)
        first.setdefault(key, offer)
    return list(first.values())


def run_jobs(
    jobs: Sequence[Job],
    project: Path,
    timeout_s: float,
    tell: Callable[[int, Job], None] = lambda done, job: None,
) -> list[Row]:
    """Compile all, in as many workers as there are cores, but two at most.

    Args:
        jobs: what to compile.
        project: folder whose modules a plugin may import.
        timeout_s: for one compilation; a worker that takes longer is killed.
        tell: told how many are done, and the one that was done last.

    Returns:
        A row for each job, in their order.
    """
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, Row | BaseException]] = queue.SimpleQueue()
    for index in range(len(jobs)):
        todo.put(index)
    pools = [WorkerPool("cpu", project) for _ in range(_worker_count(len(jobs)))]

    def serve(pool: WorkerPool) -> None:
        while True:
            try:
                index = todo.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((index, _row(pool, jobs[index], timeout_s)))
            except BaseException as error:  # a fault of attnbench: the caller's to raise
                done.put((index, error))
                return

    # A worker dies with the thread that started it, so each thread keeps its own to the end.
    threads = [threading.Thread(target=_served, args=(serve, p), daemon=True) for p in pools]
    rows: dict[int, Row] = {}
    try:
        for thread in threads:
            thread.start()
        while len(rows) < len(jobs):
            index, outcome = done.get()
            if isinstance(outcome, BaseException):
                raise outcome
            rows[index] = outcome
            tell(len(rows), jobs[index])
    finally:
        while not todo.empty():
            todo.get()
        for pool in pools:
            pool.drop()
        for thread in threads:
            thread.join(_END_S)
    return [rows[index] for index in range(len(jobs))]


def _served(serve: Callable[[WorkerPool], None], pool: WorkerPool) -> None:
    with pool:
        serve(pool)


def _worker_count(jobs: int) -> int:
    return min(_MOST_WORKERS, len(os.sched_getaffinity(0)), jobs)


def _row(pool: WorkerPool, job: Job, timeout_s: float) -> Row:
    """One job done; a worker that dies of it is its failure."""
    offer = job.offer
    task = {
        **make_task("compile-case", [offer.contender], "cpu"),
        "case": offer.name,
        "target": job.target,
    }
    try:
        (event,) = pool.ask(task, timeout_s)
        compiled = Compiled.model_validate(event["compiled"])
    except WorkerDied as death:
        compiled = Compiled(
            case=offer.name, kernel=offer.kernel, target=job.target, expects=offer.expects,
            spill_budget_bytes=offer.spill_budget_bytes, num_warps=offer.num_warps,
            failure=_last_words(death),
        )  # fmt: skip
    return Row(
        implementation=offer.contender.spec, compiled=compiled, faults=tuple(check(compiled))
    )


def _offer(contender: Contender, outline: Mapping[str, Any]) -> Offer:
    names = ("expects", "targets")
    return Offer(contender, **{**outline, **{name: tuple(outline[name]) for name in names}})


def _last_words(death: WorkerDied) -> str:
    """Why a worker died, and what the compiler said last, if it said anything."""
    own = death.log.partition("Fatal Python error")[0]  # then follow Python's stacks
    said = telling_line(own)
    return f"{death.reason}: {said}" if said else death.reason
