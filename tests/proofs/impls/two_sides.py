"""Five implementations that are the same before and after a change, and one that is not.

The option ``side`` says of which source version a point is measured. Only ``changed``
looks at it: on the side ``new`` each call takes 5 % longer than it took.

Letters: B = batch, H = heads, M = seqlen_q, N = seqlen_k, D = head_dim.
"""

from __future__ import annotations

import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from attnbench import register

SLOWER = 0.05


@register("flash")
def flash(q_BHMD, k_BHND, v_BHND, problem, *, side="base"):
    """torch's CPU flash kernel."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return scaled_dot_product_attention(q_BHMD, k_BHND, v_BHND)


@register("math")
def math(q_BHMD, k_BHND, v_BHND, problem, *, side="base"):
    """torch's composite kernel."""
    with sdpa_kernel(SDPBackend.MATH):
        return scaled_dot_product_attention(q_BHMD, k_BHND, v_BHND)


@register("matmul")
def matmul(q_BHMD, k_BHND, v_BHND, problem, *, side="base"):
    """The definition, with the whole matrix of weights."""
    return (q_BHMD * problem.softmax_scale @ k_BHND.mT).softmax(dim=-1) @ v_BHND


@register("einsum")
def einsum(q_BHMD, k_BHND, v_BHND, problem, *, side="base"):
    """The definition, in einsums."""
    logits_BHMN = torch.einsum("bhmd,bhnd->bhmn", q_BHMD, k_BHND) * problem.softmax_scale
    return torch.einsum("bhmn,bhnd->bhmd", logits_BHMN.softmax(dim=-1), v_BHND)


@register("heads")
def heads(q_BHMD, k_BHND, v_BHND, problem, *, side="base"):
    """The definition, one head after the other."""
    out_HBMD = [
        (q_BHMD[:, h] * problem.softmax_scale @ k_BHND[:, h].mT).softmax(dim=-1) @ v_BHND[:, h]
        for h in range(problem.heads_q)
    ]
    return torch.stack(out_HBMD, dim=1)


@register("changed")
def changed(q_BHMD, k_BHND, v_BHND, problem, *, side="base"):
    """torch's choice; on the side ``new`` it spins for 5 % of what this very call took."""
    start = time.perf_counter_ns()
    out_BHMD = scaled_dot_product_attention(q_BHMD, k_BHND, v_BHND)
    if side == "new":
        now = time.perf_counter_ns()
        until = now + SLOWER * (now - start)
        while time.perf_counter_ns() < until:
            pass
    return out_BHMD
