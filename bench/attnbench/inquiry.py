"""What a worker is asked besides measuring: who can do a problem, and who is right.

``probe`` builds each contender for one problem without running it; ``battery`` runs the
conformance cases over one implementation; ``ceilings`` measures the device itself.
"""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from attnbench import registry
from attnbench.battery import CASES, run_case
from attnbench.errors import message
from attnbench.failure import classify
from attnbench.guard import Guard, Meddling
from attnbench.level import execution_of
from attnbench.measure.ceilings import measure_ceilings, sm_clock
from attnbench.problem import Problem

Send = Callable[..., None]


def probe(task: dict[str, Any], send: Send) -> None:
    """Say for each entry whether it can do a problem here, without running it."""
    problem = Problem.from_json(task["problem"])
    for told in task["contenders"]:
        send("step", who=told["key"], phase="probe")
        reason, guard = None, Guard()
        try:
            execution_of(registry.make(told), problem, torch.device(task["device"]))
            guard.check()
        except BaseException as error:
            reason = classify(error).reason
            guard.restore()
        send("probed", who=told["key"], reason=reason)


def battery(task: dict[str, Any], send: Send) -> None:
    """Run the conformance battery over one implementation, case by case."""
    (told,) = task["contenders"]
    device = torch.device(task["device"])
    send("step", who="import", phase="import")
    implementation, guard = registry.make(told), Guard()
    for case in CASES:
        wanted = not task["only"] or any(fnmatch.fnmatch(case.name, g) for g in task["only"])
        if case.name in task["skip"] or not wanted:
            continue
        send("step", who=case.name, phase="battery")
        result = run_case(implementation, case, device)
        try:
            guard.check()
        except Meddling as fault:
            result = replace(result, status="error", reason=message(fault))
        send(
            "case",
            who=case.name,
            status=result.status,
            reason=result.reason,
            accuracy={name: a.model_dump() for name, a in result.accuracy.items()},
        )


def ceilings(task: dict[str, Any], send: Send) -> None:
    """Measure what the device can do at most, and say between which times that was."""
    device, begin = torch.device(task["device"]), time.monotonic()
    measured = measure_ceilings(
        device, budget_s=task["budget_s"], read_clock_mhz=sm_clock(task["gpu_uuid"])
    )
    if device.type == "cuda":
        torch.cuda.empty_cache()
    send("ceilings", ceilings=measured.to_json(), begin=begin, end=time.monotonic())
