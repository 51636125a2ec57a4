"""The backward: weights made again from the log-sum-exp, in kernels without atomics.

``dkdv.dkdv_kernel`` owns keys and walks over the queries that see them, of every query head that
shares the key head; ``dq.dq_kernel`` owns queries and walks over keys. Each computes the tile
of weights anew, so every sum has one owner and one order: results repeat to the bit. With
P the weights, dP = grad_out vᵀ and delta = rowsum(grad_out ∘ out):

    dS = P ∘ (dP − delta) ∘ softcap's slope
    dq = scale · dS k,   dk = scale · dSᵀ q,   dv = Pᵀ grad_out

Dropout enters as P ∘ keep / (1 − p) in dv and dP ∘ keep / (1 − p) in dS. Method: Dao 2023,
arXiv 2307.08691, algorithm 2. ``dbias`` has the gradient of a learned bias.

Letters: B = batch, H = heads_q, G = heads_kv, M = query rows, N = keys, D = head_dim,
E = head_dim_v; in kernels those of a tile.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import load_tile


@triton.jit
def delta_kernel(
    out_ptr, grad_ptr, delta_ptr,
    out_b, out_h, out_m, out_d, grad_b, grad_h, grad_m, grad_d, heads_q, seqlen_q,
    HEAD_DIM_V: tl.constexpr, DIM_V: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """``delta = rowsum(grad_out ∘ out)``, float32 (B, H, M)."""
    tiles = tl.cdiv(seqlen_q, BLOCK_M)
    start = tl.program_id(0) % tiles * BLOCK_M
    head = tl.program_id(0) // tiles
    b = (head // heads_q).to(tl.int64)
    h = (head % heads_q).to(tl.int64)
    out_base = out_ptr + b * out_b + h * out_h
    grad_base = grad_ptr + b * grad_b + h * grad_h
    out_ME = load_tile(out_base, start, seqlen_q, out_m, out_d, BLOCK_M, HEAD_DIM_V, DIM_V, True)
    grad_ME = load_tile(
        grad_base, start, seqlen_q, grad_m, grad_d, BLOCK_M, HEAD_DIM_V, DIM_V, True
    )
    delta_M = tl.sum(out_ME.to(tl.float32) * grad_ME.to(tl.float32), 1)
    m = start + tl.arange(0, BLOCK_M)
    tl.store(delta_ptr + head.to(tl.int64) * seqlen_q + m, delta_M, mask=m < seqlen_q)


@triton.jit
def finite_lse(lse):
    """0 for −inf: where a learned bias of −inf hides all of a row, each weight is then 0."""
    return tl.where(lse == float("-inf"), 0.0, lse)


@triton.jit
def dlogits_of(weights, dweights, delta, slope, kept, dropout_p, DROPOUT: tl.constexpr):
    """Gradient of the scaled logits of a tile, before its scale."""
    if DROPOUT:
        dweights = tl.where(kept, dweights / (1.0 - dropout_p), 0.0)
    return weights * (dweights - delta) * slope
