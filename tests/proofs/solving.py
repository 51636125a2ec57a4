"""Implementations at work on problems in this process, ready to be timed together."""

from __future__ import annotations

import ctypes
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import torch

from attnbench import implementation
from attnbench.execution import Execution
from attnbench.inputs import make_inputs
from attnbench.measure.clock import clock_for
from attnbench.measure.high_water import fix_malloc
from attnbench.measure.sampling import Budget, sample
from attnbench.problem import Problem
from attnbench.spec import parse_spec

CPU = torch.device("cpu")
Call = Callable[[], None]
Key = TypeVar("Key", bound=Hashable)


def solve(spec: str, problem: Problem) -> Execution:
    """An implementation (``name:key=value``) built for a problem, with its inputs loaded."""
    name, options = parse_spec(spec)
    execution = Execution(implementation(name, **options), problem, CPU)
    execution.load(make_inputs(problem, 0))
    return execution


def rounds_of(calls: Mapping[Key, Call], budget: Budget) -> dict[Key, list[float]]:
    """By call, the median seconds of each of its rounds; all calls are interleaved.

    Everybody has as many rounds as the one with the fewest: round i is the same for all.
    """
    fix_malloc(ctypes.CDLL(None))  # as in a worker: or a call may pay for what the last one freed
    taken = sample(calls, clock_for(CPU), budget, seed=0)
    count = min(len(t.rounds) for t in taken.values())
    return {key: _medians(t.rounds[:count]) for key, t in taken.items()}


def _medians(rounds: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.median(samples) for samples in rounds]
