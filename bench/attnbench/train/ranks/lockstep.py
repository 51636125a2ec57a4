"""Timed steps of several ranks: rank 0 says how many, all make them, the slowest counts.

Sampling decides by the clock when it has enough; ranks that decided each for itself would not
agree, and wait for each other for ever. So rank 0 alone samples, and the others follow.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist

from attnbench.measure.clock import Call, now_ns
from attnbench.train.clock import StepClock


class Lockstep:
    """Makes steps with all ranks at once.

    Args:
        step: this rank's part of a step.
        wait: for this rank's device.
        group: of all ranks, on the CPU: nothing of it runs beside the steps.
    """

    def __init__(
        self, step: Callable[[], None], wait: Callable[[], None], group: dist.ProcessGroup
    ) -> None:
        self._step, self._wait, self._group = step, wait, group

    def run(self, steps: int) -> float:
        """On rank 0: seconds from the first rank's beginning to the last one's end, at most.

        Each rank starts when all are ready and stops when its device has finished; the longest
        of their times counts.
        """
        self._tell(steps)
        return self._run(steps)

    def follow(self) -> None:
        """On the others: make steps until rank 0 is done."""
        while steps := self._tell(0):
            self._run(steps)

    def dismiss(self) -> None:
        """On rank 0: let the others go on."""
        self._tell(0)

    def _tell(self, steps: int) -> int:
        told = torch.tensor(steps)
        dist.broadcast(told, src=0, group=self._group)
        return int(told)

    def _run(self, steps: int) -> float:
        self._wait()
        dist.barrier(group=self._group)
        start = now_ns()
        for _ in range(steps):
            self._step()
        self._wait()
        longest = torch.tensor((now_ns() - start) / 1e9, dtype=torch.float64)
        dist.all_reduce(longest, op=dist.ReduceOp.MAX, group=self._group)
        return float(longest)


class RankClock(StepClock):
    """Wall time of steps that all ranks make; for rank 0.

    Args:
        device: of this rank.
        lockstep: makes the steps.
    """

    def __init__(self, device: torch.device, lockstep: Lockstep) -> None:
        super().__init__(device)
        self.method += ", from a barrier to the end of the slowest rank"
        self._lockstep = lockstep

    def time(self, call: Call, calls: int) -> float:
        """Seconds a step; ``call`` is a step of the same ranks, and not called."""
        return self._lockstep.run(calls) / calls
