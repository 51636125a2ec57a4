"""What a worker does to profile one implementation: build, warm up, and watch it closely.

Each look is a pass of its own, so that none disturbs another: the trace for Perfetto, the
table of one call, the memory over time, the resources of Triton kernels. Nothing here is
a measurement to compare: watching costs time.
"""

from __future__ import annotations

import csv
import gzip
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.autograd.profiler import profile, record_function

from attnbench import registry
from attnbench.execution import Execution
from attnbench.failure import classify
from attnbench.level import execution_of, inputs_of
from attnbench.measure.kernels import Ran, profile_call
from attnbench.measure.meters import Span, mark, spans
from attnbench.problem import Problem
from attnbench.profiling import triton_kernels

Send = Callable[..., None]

TRACED_CALLS = 3
_WARM_UP_CALLS = 3
_SEED = 0


def collect(task: dict[str, Any], send: Send) -> None:
    """Profile the task's one contender into its folder; send ``profiled`` or ``failed``."""
    (told,) = task["contenders"]
    problem = Problem.from_json(task["problem"])
    device, folder = torch.device(task["device"]), Path(task["folder"])
    try:
        send("step", phase="building and warming up")
        execution = warm(told, problem, device)
        send("profiled", **_watch(execution, device, folder, send))
    except BaseException as error:  # a plugin may raise anything; the parent tells it
        failed = classify(error)
        send("failed", status=failed.status, reason=failed.reason, log=failed.log)


def warm(told: dict[str, Any], problem: Problem, device: torch.device) -> Execution:
    """The contender, built and called often enough that nothing is compiled any more."""
    execution = execution_of(registry.make(told), problem, device, _SEED)
    execution.load(inputs_of(problem, _SEED, device))
    for _ in range(_WARM_UP_CALLS):
        execution.step()
    execution.results()  # of the right shape, or it is not worth a look
    return execution


def _watch(
    execution: Execution, device: torch.device, folder: Path, send: Send
) -> dict[str, list[Any]]:
    """Every look; the rows of the tables."""
    send("step", phase="trace")
    execution.prepare()
    write_trace(execution, device, folder / "trace.json.gz")
    send("step", phase="kernels")
    execution.prepare()
    with triton_kernels.launches() as launched:
        ran = profile_call(execution.step, device)
    write_kernels(ran, folder / "kernels.csv")
    resources = triton_kernels.resources({r.name for r in ran}, launched, device)
    send("step", phase="memory")
    if device.type == "cuda":
        execution.forget()
        write_snapshot(execution, device, folder / "snapshot.pickle")
    else:
        execution.forget()
        write_timeline(execution, folder / "memory.csv")
    return {"kernels": [vars(r) for r in ran], "triton": [r.to_json() for r in resources]}


def parts(execution: Execution) -> Iterator[tuple[str, Callable[[], None]]]:
    """Names and calls of what the timed call is made of."""
    direction = execution.problem.direction
    if direction in ("forward", "both"):
        yield "forward", execution.forward
    if direction in ("backward", "both"):
        yield "backward", execution.backward


def write_trace(execution: Execution, device: torch.device, path: Path) -> None:
    """A few calls for ui.perfetto.dev, forward and backward marked."""
    use_device = "cuda" if device.type == "cuda" else None
    with profile(
        use_device=use_device, use_kineto=True, record_shapes=True, profile_memory=True
    ) as profiler:
        for number in range(TRACED_CALLS):
            with record_function(f"call {number + 1}"):
                for name, part in parts(execution):
                    with record_function(name):
                        part()
    plain = path.with_suffix("")
    profiler.export_chrome_trace(str(plain))
    with open(plain, "rb") as source, gzip.open(path, "wb") as target:
        shutil.copyfileobj(source, target)
    plain.unlink()


def write_kernels(ran: list[Ran], path: Path) -> None:
    """``kernels.csv``: what ran in one call, the longest first."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "count", "time_s"])
        writer.writerows([r.name, r.count, r.time_s] for r in ran)


def write_timeline(execution: Execution, path: Path) -> None:
    """``memory.csv`` (CPU): bytes beyond the inputs after every allocation and release.

    For the backward alone its forward is told as well: without it nobody would see the end
    of what it saved.
    """
    steps = list(parts(execution))
    if execution.problem.direction == "backward":
        steps.insert(0, ("forward", execution.forward))
    with profile(profile_memory=True) as profiler:
        for name, part in steps:
            with mark(name):
                part()
    rows = list(_levels(spans(profiler)))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["time_s", "allocated_bytes", "part"])
        writer.writerows(rows)


def _levels(found: list[Span]) -> Iterator[tuple[float, int, str]]:
    """(seconds, bytes, part) at the ends of each part and at every change within."""
    level, begin = 0, found[0].start_ns
    for span in found:
        yield (span.start_ns - begin) / 1e9, level, span.name
        for at, size in span.changes:
            level += size
            yield (at - begin) / 1e9, level, span.name
        yield (span.stop_ns - begin) / 1e9, level, span.name


def write_snapshot(execution: Execution, device: torch.device, path: Path) -> None:
    """``snapshot.pickle`` (CUDA): every allocation with its stack, for pytorch.org/memory_viz."""
    with _recording():
        execution.prepare()
        execution.step()
        torch.cuda.synchronize(device)
        torch.cuda.memory._dump_snapshot(str(path))  # type: ignore[no-untyped-call]


@contextmanager
def _recording() -> Iterator[None]:
    torch.cuda.memory._record_memory_history(max_entries=100_000)
    try:
        yield
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
