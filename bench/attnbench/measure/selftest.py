"""The instrument, put to the test on this machine: questions whose answers are known.

What is tested is what measures points: the clock of the device, the sampling with its
rounds and stop rule, the peak of memory, and the comparison that calls a point slower.
Each check is a row: what was expected, what the instrument said, the error, and the error
that is allowed. docs/selftest.md says what each row proves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from attnbench.measure import selftest_cpu, selftest_energy, selftest_gate, selftest_memory
from attnbench.measure.clock import clock_for
from attnbench.measure.selftest_check import Check, Instrument, ask


def checks_for(device: torch.device) -> Sequence[Check]:
    """All checks of a device, in the order in which they are asked."""
    if device.type == "cuda":
        from attnbench.measure import selftest_cuda  # needs triton

        spins = selftest_cuda.Spins(device)
        waiting, clocks = spins.wait, selftest_cuda.checks(spins.wait)
    else:
        waiting, clocks = selftest_cpu.wait, selftest_cpu.checks()
    return [
        *clocks,
        *selftest_gate.checks(waiting),
        *selftest_memory.CHECKS,
        selftest_energy.CHECK,
    ]


def selftest(task: Mapping[str, Any], send: Callable[..., None]) -> None:
    """A worker's task: ask everything, send a ``row`` for each answer."""
    device = torch.device(task["device"])
    if device.type == "cuda":
        torch.cuda.set_device(device)  # triton launches on the current one
    instrument = Instrument(device, clock_for(device))
    for check in checks_for(device):
        send("step", who=check.name, phase="selftest")
        send("row", row=ask(check, instrument).model_dump())
