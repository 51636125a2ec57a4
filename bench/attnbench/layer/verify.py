"""Is a layer right? The rule of :mod:`attnbench.verify`, for what a layer answers.

``out`` and the gradients of hidden states (``dx``, ``dmemory``), of each weight (``dwq``,
``dwk``, ``dwv``, ``dwo``) and of learned positions (``dtable``) may each be off by twice
what the layer's textbook is, which projects in the problem's dtype, and the floor. What
cancels in dq and dk cancels in all that is made of them; random signs of the terms are
assumed in the sums over tokens or columns.

Letters: B = batch, H = heads_q, M = seqlen_q, N = seqlen_k.
"""

from __future__ import annotations

import functools
import math

import torch

from attnbench.inputs import Inputs
from attnbench.layer.inputs import LayerInputs
from attnbench.layer.oracle import Attend, Solution, solve
from attnbench.oracle import Reference, reference, textbook
from attnbench.problem import Problem
from attnbench.verify import Cancelling, Yardstick, cancelling, check_keep, standard


def make_layer_yardstick(
    problem: Problem, inputs: LayerInputs, keep_BHMN: torch.Tensor | None = None
) -> Yardstick:
    """Truth and allowance of a layer; arguments and errors as of ``make_yardstick``.

    The dropout mask is that of the attention inside: of packed tokens where there is padding.
    """
    if problem.dropout_p > 0:
        check_keep(problem.core, keep_BHMN)
    gradients = problem.direction != "forward"

    def exactly(core: Problem, inner: Inputs, bias_HMN: torch.Tensor | None) -> Reference:
        return reference(core, inner, gradients=gradients, keep_BHMN=keep_BHMN, bias_HMN=bias_HMN)

    truth = solve(problem, inputs, exactly, torch.float64, gradients=gradients)
    if not all(bool(x.isfinite().all()) for x in truth.tensors.values()):
        raise ValueError("the reference is not finite: the inputs hold NaN or infinity")
    plain = _textbooks(problem, inputs, keep_BHMN, gradients)
    inside = cancelling(problem.core, truth.inner, truth.attended)
    return Yardstick(
        problem,
        {
            name: standard(
                problem, name, x, [p[name] for p in plain], truth.attended.lse_BHM,
                _passed_on(name, problem, inputs, truth, inside),
            )
            for name, x in truth.tensors.items()
        },
    )  # fmt: skip


def _textbooks(
    problem: Problem, inputs: LayerInputs, keep_BHMN: torch.Tensor | None, gradients: bool
) -> list[dict[str, torch.Tensor]]:
    """The textbook's results, both ways; where float16 overflows, bfloat16's stand in."""

    def attend(fused: bool) -> Attend:
        def plainly(core: Problem, inner: Inputs, bias_HMN: torch.Tensor | None) -> Reference:
            return textbook(
                core, inner, gradients=gradients, keep_BHMN=keep_BHMN, bias_HMN=bias_HMN,
                fused=fused,
            )  # fmt: skip

        return plainly

    plain = [
        solve(problem, inputs, attend(fused), problem.torch_dtype, gradients=gradients).tensors
        for fused in ((False, True) if gradients else (False,))
    ]
    if problem.dtype == "float16" and not all(
        bool(x.isfinite().all()) for named in plain for x in named.values()
    ):
        return _textbooks(problem.replace(dtype="bfloat16"), inputs, keep_BHMN, gradients)
    return plain


def _passed_on(
    name: str, p: Problem, inputs: LayerInputs, truth: Solution, inside: dict[str, Cancelling]
) -> Cancelling:
    """What is behind an element of a layer's gradient, from what is behind dq and dk."""
    given = {n: float(x.double().square().mean().sqrt()) for n, x in inputs.named().items()}
    keys = "memory" if "memory" in given else "x"
    tokens_q, tokens_k = p.core.batch * p.core.seqlen_q, p.core.batch * p.core.seqlen_k
    of_x = {"dq": math.sqrt(p.heads_q * p.head_dim) * given["wq"]}
    of_memory = {"dk": math.sqrt(p.heads_kv * p.head_dim) * given["wk"]}
    if keys == "x":
        of_x |= of_memory
    per_scale = 1 / max(abs(p.softmax_scale), 1e-30)
    # Of few tokens the largest counts: no others' terms make up for it.
    most = {n: float(x.double().abs().max()) for n, x in inputs.named().items()}
    factors = {
        "dx": of_x,
        "dmemory": of_memory,
        "dwq": {"dq": max(math.sqrt(tokens_q) * given["x"], most["x"])},
        "dwk": {"dk": max(math.sqrt(tokens_k) * given[keys], most[keys])},
        "dtable": of_x | of_memory
        if p.position == "learned"
        else {"dq": per_scale * math.sqrt(tokens_q * p.core.seqlen_k)},
    }.get(name, {})
    none = Cancelling(0.0, 0.0)
    parts = [
        Cancelling(times * inside[n].terms, times * inside[n].rounding)
        for n, times in factors.items()
    ]
    return functools.reduce(
        lambda a, b: Cancelling(a.terms + b.terms, a.rounding + b.rounding), parts, none
    )
