"""The truth of a layer: :mod:`attnbench.oracle` between projections written out here.

As there, one computation serves twice: in float64 it is the oracle; in the problem's dtype,
around the textbook's attention, it is what the definition costs in accuracy. It shares with
the layer that is measured only the encodings of :mod:`attnbench.layer.positions`, which
have definitions of their own to be held to.

Letters: B = batch (1 when packed), M = seqlen_q, N = seqlen_k, S = either, C = d_model,
H = heads_q, G = heads_kv, D = head_dim, E = head_dim_v, O = H·E, R = buckets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from attnbench.inputs import Inputs
from attnbench.layer.inputs import LayerInputs, real_tokens
from attnbench.layer.positions import (
    query_positions,
    relative_buckets,
    rotary_tables,
    rotate,
    sinusoidal,
)
from attnbench.oracle import Reference
from attnbench.problem import Problem

Attend = Callable[[Problem, Inputs, torch.Tensor | None], Reference]
"""``(problem, inputs, bias_HMN or None)``, of level ``op``, gradients included if wanted."""


@dataclass(frozen=True)
class Solution:
    """Results by the names of records, and what was inside."""

    tensors: dict[str, torch.Tensor]
    inner: Inputs
    attended: Reference


def solve(
    problem: Problem, inputs: LayerInputs, attend: Attend, dtype: torch.dtype, *, gradients: bool
) -> Solution:
    """A layer, on the device of its inputs, with every tensor in ``dtype``.

    Args:
        problem: of level ``layer``, without a cache.
        inputs: of the problem's shapes.
        attend: solves the attention inside; its results are rounded to ``dtype``.
        dtype: of everything else.
        gradients: also those of hidden states and weights.
    """
    p = problem
    given = {name: x.detach().to(dtype) for name, x in inputs.named().items()}
    grad_y_BMC = given.pop("grad_out")
    for x in given.values():
        x.requires_grad_(gradients)
    token_BM = real_tokens(p, grad_y_BMC.device)

    q_BHMD, k_BGND, v_BGNE, bias_HMN = _before(p, given, token_BM)
    real_grad_BMC = _packed(p, grad_y_BMC, token_BM)
    grad_heads_BMO = real_grad_BMC @ given["wo"].detach()
    grad_heads_BHME = torch.unflatten(grad_heads_BMO, -1, (p.heads_q, -1)).transpose(1, 2)
    inside = [x.detach().contiguous() for x in (q_BHMD, k_BGND, v_BGNE, grad_heads_BHME)]
    inner = Inputs(*inside)
    attended = attend(p.core, inner, None if bias_HMN is None else bias_HMN.detach())

    heads_BMO = attended.out_BHME.to(dtype).transpose(1, 2).flatten(2)
    y_BMC = torch.zeros_like(grad_y_BMC)
    y_BMC[token_BM] = (heads_BMO @ given["wo"].detach().mT).flatten(0, 1)
    tensors = {"out": y_BMC}
    if gradients:
        dwo_CO = real_grad_BMC.flatten(0, 1).mT @ heads_BMO.flatten(0, 1)
        made = {"dq": q_BHMD, "dk": k_BGND, "dv": v_BGNE}
        back = {name: x.to(dtype) for name, x in attended.tensors().items() if name in made}
        ends, grads = list(made.values()), [back[name] for name in made]
        if bias_HMN is not None and attended.dbias_HMN is not None:
            ends.append(bias_HMN)
            grads.append(attended.dbias_HMN.to(dtype))
        leaves = {name: x for name, x in given.items() if name != "wo"}
        found = torch.autograd.grad(ends, list(leaves.values()), grads)
        by_leaf = dict(zip(leaves, found, strict=True)) | {"wo": dwo_CO}
        tensors |= {f"d{name}": by_leaf[name] for name in given}
    return Solution(tensors, inner, attended)


def _before(
    p: Problem, given: dict[str, torch.Tensor], token_BM: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """q, k, v and the bias of a relative encoding, in the graph of autograd."""
    x_BMC, wq, wk, wv = (given[name] for name in ("x", "wq", "wk", "wv"))
    q_at_M = query_positions(p.seqlen_q, p.seqlen_k, x_BMC.device)
    k_at_N = torch.arange(p.seqlen_k, device=x_BMC.device)
    memory_BNC = given.get("memory", x_BMC)
    if p.position == "sinusoidal":
        x_BMC = x_BMC + sinusoidal(q_at_M, p.d_model, x_BMC.dtype)
        memory_BNC = memory_BNC + sinusoidal(k_at_N, p.d_model, x_BMC.dtype)
    elif p.position == "learned":
        x_BMC = x_BMC + given["table"][q_at_M]
        memory_BNC = memory_BNC + given["table"]

    def heads(x_BSC: torch.Tensor, weight: torch.Tensor, count: int) -> torch.Tensor:
        return torch.unflatten(x_BSC @ weight.mT, -1, (count, -1)).transpose(1, 2)

    q_BHMD = heads(x_BMC, wq, p.heads_q)
    k_BGND, v_BGNE = heads(memory_BNC, wk, p.heads_kv), heads(memory_BNC, wv, p.heads_kv)
    if p.position == "rope":
        q_BHMD = rotate(q_BHMD, *rotary_tables(q_at_M, p.head_dim, q_BHMD.dtype))
        k_BGND = rotate(k_BGND, *rotary_tables(k_at_N, p.head_dim, k_BGND.dtype))
    if p.padding:
        q_BHMD, k_BGND, v_BGNE = (
            _packed(p, x.transpose(1, 2), token_BM).transpose(1, 2)
            for x in (q_BHMD, k_BGND, v_BGNE)
        )
        q_at_M = k_at_N = k_at_N.expand(p.batch, -1)[token_BM]
    if p.position != "relative":
        return q_BHMD, k_BGND, v_BGNE, None
    buckets_MN = relative_buckets(q_at_M, k_at_N, causal=p.mask.is_causal)
    wide_RH = given["table"].to(torch.promote_types(x_BMC.dtype, torch.float32))
    return q_BHMD, k_BGND, v_BGNE, wide_RH[buckets_MN].permute(2, 0, 1).to(x_BMC.dtype)


def _packed(p: Problem, x: torch.Tensor, token_BM: torch.Tensor) -> torch.Tensor:
    """``(B, S, …)`` as it is, or with padding the tokens that are none: ``(1, T, …)``."""
    return x[token_BM][None] if p.padding else x
