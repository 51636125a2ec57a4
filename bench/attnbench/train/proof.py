"""The attention of a model, verified by itself: on each problem that the model asked for.

A learning curve shows that the model learns as with the reference; a small fault of one
gradient may hide in its rounding. So each problem is also held against float64, output and
gradients, exactly as where single attentions are measured; and once more without gradients, for
evaluations call it so, and what they say would be nobody's. Once before anything is learned, and
once more after the timed steps with the very objects that the model has called (``used_in``), at
every place that has one of its own: a curve says nothing about what comes after it.

A learned bias on the logits (T5's relative positions) is zero here: that and its gradient are
left to the curve.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from attnbench.attention import Attention, ForwardBackward
from attnbench.claim import Claim, claim_of
from attnbench.device import synchronize
from attnbench.execution import Execution
from attnbench.failure import Failed
from attnbench.inputs import Inputs, make_inputs
from attnbench.problem import Direction, Problem
from attnbench.record import TensorAccuracy, worst
from attnbench.train.models.bridge import Attends
from attnbench.train.models.calls import Used
from attnbench.verify import Yardstick, explain, judge, make_yardstick, passed

Accuracy = dict[str, TensorAccuracy]
_APART = 0.01  # relative, in L2: two kernels of one method are closer, in TF32 too


def verify_attention(
    attention: Attention,
    problems: Iterable[Problem],
    device: torch.device,
    seed: int,
    direction: Direction = "both",
    used: Mapping[Problem, Sequence[Any]] | None = None,
) -> Accuracy:
    """Run and judge each problem once, in one direction; the worst by tensor.

    Args:
        attention: the implementation; what is not among ``used`` it builds.
        problems: that a model asked for.
        device: where.
        seed: of the inputs, and of what is built.
        direction: ``both``, and then without gradients, too; or ``forward``, which has none.
        used: what a model has called, by problem, all of which is judged; see :func:`used_in`.

    Raises:
        Failed: it is wrong on one of them.
        Unsupported: dropout that it does not reveal, which cannot be verified.
    """
    seen: list[Accuracy] = []
    for problem in dict.fromkeys(p.replace(direction=direction) for p in problems):
        solvers = [_having(attention, built) for built in (used or {}).get(problem, ())]
        solvers = solvers or [attention]
        if problem.bias:
            problem, solvers = problem.replace(bias=False), [_unbiased(s) for s in solvers]
        trial = _Trial(claim_of(attention, problem), problem, make_inputs(problem, seed, device))
        for solver in solvers:
            execution = Execution(solver, problem, device, seed)
            seen.append(trial.judged(execution))
            if direction == "both" and not problem.dropout_p:  # evaluations drop nothing
                seen.append(trial.judged_without_gradients(execution))
    return worst(seen)


class _Trial:
    """One problem, with inputs and what is known about the answer."""

    def __init__(self, claim: Claim, problem: Problem, inputs: Inputs) -> None:
        self.claim, self.problem, self.inputs = claim, problem, inputs
        self._yardstick: Yardstick | None = None

    def judged(self, execution: Execution) -> Accuracy:
        """Output, and gradients where the direction has them."""
        execution.load(self.inputs)
        execution.step()
        synchronize(self.inputs.q_BHMD.device)
        keep = execution.keep_mask() if self.problem.dropout_p else None
        if self._yardstick is None or keep is not None:  # dropout makes a truth of each call
            self._yardstick = make_yardstick(self.claim.problem, self.inputs, keep)
        return self._passed(self._yardstick, execution.results(), "by itself")

    def judged_without_gradients(self, execution: Execution) -> Accuracy:
        """The output alone, after :meth:`judged`, as an evaluation of the model asks for it."""
        assert self._yardstick is not None
        silent = execution.twin()
        silent.problem = self.problem.replace(direction="forward")
        with _in_evaluation(execution.built):
            silent.load(self.inputs)
            silent.step()
        results, how = silent.results(), "without gradients, as evaluations call it"
        if not self.claim.is_exact:
            self._compare(results["out"], execution.results()["out"], how)
        out = Yardstick(self._yardstick.problem, {"out": self._yardstick.standards["out"]})
        return self._passed(out, results, how)

    def _passed(
        self, yardstick: Yardstick, results: Mapping[str, torch.Tensor], how: str
    ) -> Accuracy:
        accuracy = judge(yardstick, results, approximate=not self.claim.is_exact)
        if not passed(accuracy):
            raise self._failed(how, explain(accuracy))
        return accuracy

    def _compare(self, out_BHME: torch.Tensor, other_BHME: torch.Tensor, how: str) -> None:
        """Who claims no answer must still give one: kernels may differ, results may not."""
        share = max(_APART, math.sqrt(torch.finfo(out_BHME.dtype).eps))
        apart = float((out_BHME.double() - other_BHME.double()).norm())
        allowed = share * float(other_BHME.double().norm())
        if not apart <= allowed:
            words = f"out is off by {apart:.3g} (L2) from that with gradients"
            raise self._failed(how, f"{words}, allowed {allowed:.3g}")

    def _failed(self, how: str, words: str) -> Failed:
        return Failed("incorrect", f"its attention {how}, {self.problem.label}: {words}")


def used_in(model: nn.Module) -> dict[Problem, list[Any]]:
    """By problem, all that the places of a model have called.

    What they share comes once; a module, of which each place has its own, from each. So who
    remembers how often it was called is found out, wherever it keeps the count. Left out are
    modules whose parameters lie in several ranks (FSDP2): no rank can call them alone.
    """
    found: dict[Problem, list[Any]] = {}
    for place in (m for m in model.modules() if isinstance(m, Attends)):
        for problem, built in place.used.items():
            known = found.setdefault(problem, [])
            if not _is_sharded(built) and not any(built is other for other in known):
                known.append(built)
    return found


def _is_sharded(built: Any) -> bool:
    if not isinstance(built, Used) or not (dist.is_available() and dist.is_initialized()):
        return False
    from torch.distributed.tensor import DTensor  # half a second that nobody else needs

    return any(isinstance(p, DTensor) for p in built.module.parameters())


def _having(attention: Attention, built: Any) -> Attention:
    """The same, with something built already."""
    solver = copy.copy(attention)
    solver.build = lambda problem, device: built  # type: ignore[method-assign]
    return solver


class _Unbiased:
    """What takes a learned bias, given one of zeros."""

    def __init__(self, built: Callable[..., Any], zeros_HMN: torch.Tensor) -> None:
        self.built, self._zeros_HMN = built, zeros_HMN

    def __call__(self, *qkv: torch.Tensor) -> Any:
        return self.built(*qkv, self._zeros_HMN)


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
        return _Unbiased(built, zeros_HMN)

    solver.build = build  # type: ignore[method-assign]
    return solver


@contextmanager
def _in_evaluation(built: Any) -> Iterator[None]:
    """Inside, a module knows that it is not in training."""
    inner = built.built if isinstance(built, _Unbiased) else built
    module = inner.module if isinstance(inner, Used) else inner
    if not isinstance(module, nn.Module):
        yield
        return
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)
