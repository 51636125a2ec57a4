"""Copies of an implementation's inputs: the same work on memory that nobody has touched.

A call too short for events is timed in a batch. The second call of a batch over the same
inputs would find them in the L2; over a copy each, with a flush before the batch, every
call of it finds its own inputs in memory. No copy is used twice between two flushes, so
they stay cold whatever their size: rotating without a flush silently goes warm where
calls × bytes stay below the L2.

What an implementation itself holds (tables, learned projections) is shared by its copies.

Letters: none; tensors come in the implementation's own layout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from attnbench.execution import Execution
from attnbench.measure.clock import Call


class ExecutionCopies:
    """Twins of an execution, each with inputs and results of its own.

    Args:
        execution: has been loaded and has run a step.
        count: of copies.
    """

    def __init__(self, execution: Execution, count: int) -> None:
        # What they must return is what one more returns eagerly: the contents of the execution
        # itself may change between rounds, those of its twins do not.
        self._reference = execution.twin()
        self._reference.step()
        self._twins = [execution.twin() for _ in range(count)]
        self.calls: Sequence[Call] = [twin.step for twin in self._twins]

    def poison(self) -> None:
        """Overwrite what the last calls returned with NaN: what is not written anew shows."""
        for twin in self._twins:
            for tensor in self._fresh(twin).values():
                tensor.data.fill_(math.nan)  # .data: autograd keeps no count of it

    def fault(self) -> str | None:
        """How what the last calls returned differs from an eager call's; None if it does not.

        Allowed is a relative L2 difference of √ε: sums in another order stay far below it,
        stale or unwritten memory far above. Dropout draws anew in every call, so there
        only numbers that are not finite tell.
        """
        reference = self._fresh(self._reference)
        for twin in self._twins:
            for name, tensor in self._fresh(twin).items():
                if not bool(torch.isfinite(tensor).all()):
                    return f"{name} was not written"
                if self._reference.problem.dropout_p > 0:
                    continue
                expected = reference[name].double()
                error = (tensor.double() - expected).norm() / expected.norm().clamp_min(1e-30)
                if float(error) > math.sqrt(torch.finfo(tensor.dtype).eps):
                    return f"{name} is off by {float(error):.1%} (relative L2)"
        return None

    @staticmethod
    def _fresh(execution: Execution) -> dict[str, torch.Tensor]:
        """What a step writes: a backward reads the output that its forward left."""
        results = execution.results()
        if execution.problem.direction == "backward":
            del results["out"]
        return results
