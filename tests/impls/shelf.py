"""The built-in implementations, loaded as a session loads them."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from attnbench import Attention, Inputs, Problem, make_inputs, registry, shelves
from attnbench.execution import Execution
from attnbench.verify import explain, judge, make_yardstick, passed

CPU = torch.device("cpu")
SHELF = shelves.builtin("impls")


@functools.cache
def entries() -> dict[str, registry.Entry]:
    """By name; only those of the built-in shelf."""
    found = registry.discover(registry.sources(Path("/nonexistent")))
    return {entry.name: entry for entry in found if entry.source.origin == "built-in"}


def implementation(name: str, **options: Any) -> Attention:
    return registry.load(entries()[name])(**options)


def module_of(name: str) -> ModuleType:
    return sys.modules[registry.load(entries()[name]).__module__]


def solve(name: str, problem: Problem, **options: Any) -> tuple[Execution, Inputs]:
    """Build, load and run once."""
    execution = Execution(implementation(name, **options), problem, CPU)
    inputs = make_inputs(problem, seed=1)
    execution.load(inputs)
    execution.step()
    return execution, inputs


def assert_right(name: str, problem: Problem, **options: Any) -> None:
    execution, inputs = solve(name, problem, **options)
    keep = execution.keep_mask() if problem.dropout_p else None
    accuracy = judge(make_yardstick(problem, inputs, keep), execution.results())
    assert passed(accuracy), explain(accuracy)


class Operations(TorchDispatchMode):
    """Every operation that ran: its name and the number of elements it made."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        made = result.numel() if isinstance(result, torch.Tensor) else 0
        self.seen.append((func.__name__.partition(".")[0], made))
        return result

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.seen}
