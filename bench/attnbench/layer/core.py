"""What an implementation built for the op level, as one function that a layer can call.

Letters: B = batch, S = seqlen_q or seqlen_k, H = heads, D = head_dim or head_dim_v,
M = seqlen_q, N = seqlen_k.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from attnbench.attention import ForwardBackward, Layout

Core = Callable[..., torch.Tensor]
"""``(q_BSHD, k_BSHD, v_BSHD[, bias_HMN]) → out_BSHD``, differentiable."""


def as_core(built: Callable[..., Any] | ForwardBackward, layout: Layout) -> Core:
    """One function over BSHD, which is how projections leave queries, keys and values.

    The layout that was asked for is made inside, and costs what it costs: ``BHSD`` is a
    copy of each tensor, because inputs are promised to be contiguous, ``packed`` a view.
    """
    call = _as_function(built) if isinstance(built, ForwardBackward) else built

    def core(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *bias: torch.Tensor) -> Any:
        batch = q.shape[0]
        if layout == "BSHD":
            return call(q, k, v, *bias)
        if layout == "packed":
            flat = (x.reshape(-1, *x.shape[2:]) for x in (q, k, v))
            return call(*flat, *bias).unflatten(0, (batch, -1))
        turned = (x.transpose(1, 2).contiguous() for x in (q, k, v))
        return call(*turned, *bias).transpose(1, 2)

    return core


def _as_function(own: ForwardBackward) -> Callable[..., torch.Tensor]:
    """A forward and backward of their own, where autograd finds them."""

    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *tensors: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor
            out, ctx.saved = own.forward(*tensors)
            return out

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> Any:
            return own.backward(ctx.saved, grads[0].contiguous())

    return Own.apply
