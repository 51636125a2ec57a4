"""The attention of a model, verified by itself: on each problem that the model asked for.

A learning curve shows that the model learns as with the reference; a small fault of one
gradient may hide in its rounding. So each problem is also held against float64, output and
gradients, exactly as where single attentions are measured. Once before anything is learned, and
once more after the timed steps with the very callables that the model has used: a curve says
nothing about what comes after it.

A learned bias on the logits (T5's relative positions) is zero here: that and its gradient are
left to the curve.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch

from attnbench.attention import Attention, ForwardBackward
from attnbench.claim import claim_of
from attnbench.device import synchronize
from attnbench.execution import Execution
from attnbench.failure import Failed
from attnbench.inputs import make_inputs
from attnbench.problem import Direction, Problem
from attnbench.record import TensorAccuracy, worst
from attnbench.train.models.bridge import Builds
from attnbench.verify import explain, judge, make_yardstick, passed


def verify_attention(
    attention: Attention,
    problems: Iterable[Problem],
    device: torch.device,
    seed: int,
    direction: Direction = "both",
) -> dict[str, TensorAccuracy]:
    """Build, run and judge each problem once, in one direction; the worst by tensor.

    Raises:
        Failed: it is wrong on one of them.
        Unsupported: dropout that it does not reveal, which cannot be verified.
    """
    seen = []
    for problem in dict.fromkeys(p.replace(direction=direction) for p in problems):
        solver = attention
        if problem.bias:
            problem, solver = problem.replace(bias=False), _unbiased(attention)
        claim = claim_of(attention, problem)
        inputs = make_inputs(problem, seed, device)
        execution = Execution(solver, problem, device, seed)
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


def as_built(attention: Attention, builds: Builds) -> Attention:
    """The same, with what a model has used already where it is not built anew for each place.

    To be verified again: what remembers how often it was called is found out. Modules, which
    each place has its own of, are built afresh.
    """
    solver, used = copy.copy(attention), builds.shared

    def build(problem: Problem, device: torch.device) -> Callable[..., Any] | ForwardBackward:
        return used[problem] if problem in used else attention.build(problem, device)

    solver.build = build  # type: ignore[method-assign]
    return solver


def _unbiased(attention: Attention) -> Attention:
    """The same, whose builds for a learned bias are given one of zeros."""
    solver = copy.copy(attention)

    def build(problem: Problem, device: torch.device) -> Callable[..., Any] | ForwardBackward:
        built = attention.build(problem.replace(bias=True), device)
        shape = (problem.heads_q, problem.seqlen_q, problem.seqlen_k)
        zeros_HMN = torch.zeros(shape, dtype=problem.torch_dtype, device=device)
        if isinstance(built, ForwardBackward):
            return ForwardBackward(
                lambda *qkv: built.forward(*qkv, zeros_HMN),
                lambda saved, grad_out: built.backward(saved, grad_out)[:3],
            )
        return lambda *qkv: built(*qkv, zeros_HMN)

    solver.build = build  # type: ignore[method-assign]
    return solver
