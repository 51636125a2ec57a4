"""The attention of a model, verified by itself: on each problem that the model asked for.

A learning curve shows that the model learns as with the reference; a small fault of one
gradient may hide in its rounding. So each problem is also held against float64, output and
gradients, exactly as where single attentions are measured.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from attnbench.attention import Attention
from attnbench.claim import claim_of
from attnbench.device import synchronize
from attnbench.execution import Execution
from attnbench.failure import Failed
from attnbench.inputs import make_inputs
from attnbench.problem import Problem
from attnbench.record import TensorAccuracy, worst
from attnbench.verify import explain, judge, make_yardstick, passed


def verify_attention(
    attention: Attention, problems: Iterable[Problem], device: torch.device, seed: int
) -> dict[str, TensorAccuracy]:
    """Build, run forward and backward, and judge each problem once; the worst by tensor.

    Raises:
        Failed: it is wrong on one of them.
        Unsupported: dropout that it does not reveal, which cannot be verified.
    """
    seen = []
    for problem in dict.fromkeys(p.replace(direction="both") for p in problems):
        claim = claim_of(attention, problem)
        inputs = make_inputs(problem, seed, device)
        execution = Execution(attention, problem, device, seed)
        execution.load(inputs)
        execution.step()
        synchronize(device)
        keep = execution.keep_mask() if problem.dropout_p > 0 else None
        yardstick = make_yardstick(claim.problem, inputs, keep)
        accuracy = judge(yardstick, execution.results(), approximate=not claim.is_exact)
        if not passed(accuracy):
            raise Failed(
                "incorrect", f"its attention by itself, {problem.label}: {explain(accuracy)}"
            )
        seen.append(accuracy)
    return worst(seen)
