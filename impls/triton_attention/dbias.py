"""The gradient of a learned bias: a program owns a tile of it and walks over the batch.

A bias (H, M, N) is added to the logits of every sequence, after softcap; so its gradient is
that of the capped logits, summed over the batch, without scale and softcap's slope:

    dbias = Σ_b P_b ∘ (dP_b − delta_b)

``dq_kernel`` has these terms too, but a tile of each belongs to another program there, which
would have to add them by atomics or to write B of them. Here both products are taken once
more, one sequence after another, for a tile that stays in registers: the sum has one owner
and one order and repeats to the bit, and no more than the result is written. What a mask
hides is the same in every sequence, so it is looked at once, behind the sum. Tiles of which
nothing is visible are written as zeros without a visit.

P, dP, delta and dropout are as in ``backward``. Letters: B = batch, H = heads_q,
M = query rows, N = keys, D = head_dim, E = head_dim_v; in the kernel those of a tile.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .backward import dlogits_of, finite_lse
from .dropout import kept_by_dropout
from .tiles import (
    bias_of,
    interval_of,
    load_tile,
    logits_of,
    span_of,
    visible_by_pattern,
    visible_in,
)


@triton.jit
def dbias_kernel(
    q_ptr, k_ptr, v_ptr, grad_ptr, lse_ptr, delta_ptr, dbias_ptr,
    slopes_ptr, bias_ptr, table_ptr, patterns_ptr,
    q_b, q_h, q_m, q_d, k_b, k_h, k_n, k_d, v_b, v_h, v_n, v_d,
    grad_b, grad_h, grad_m, grad_d, dbias_h, dbias_m, dbias_n,
    bias_h, bias_m, bias_n, batch, heads_q, group, seqlen_q, seqlen_k,
    table_stride, behind, ahead, scale, softcap, dropout_p, seed_ptr,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, DIM: tl.constexpr, DIM_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr,
    SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, BIAS: tl.constexpr, DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes one tile of dbias; zeros where nothing is visible.

    With ``MASK`` "blocks" the table is a plane: the pattern of each tile, −1 where it has none.
    """
    tl.static_assert(BIAS)
    tiles_m, tiles_n = tl.cdiv(seqlen_q, BLOCK_M), tl.cdiv(seqlen_k, BLOCK_N)
    tile_n = tl.program_id(0) % tiles_n
    tile_m = tl.program_id(0) // tiles_n % tiles_m
    h = (tl.program_id(0) // (tiles_n * tiles_m)).to(tl.int64)
    start_m, start_n = tile_m * BLOCK_M, tile_n * BLOCK_N
    m, n = start_m + tl.arange(0, BLOCK_M), start_n + tl.arange(0, BLOCK_N)
    inside_MN = (m < seqlen_q)[:, None] & (n < seqlen_k)[None, :]

    shift = seqlen_k - seqlen_q
    pattern = 0
    low_M, high_M = m, m
    if MASK == "blocks":
        pattern = tl.load(table_ptr + tile_m.to(tl.int64) * table_stride + tile_n)
        is_met = pattern >= 0
    else:
        low_M, high_M = interval_of(
            m, table_ptr, table_stride, seqlen_q, seqlen_k, shift, behind, ahead, MASK
        )
        first, _whole, _rest, last = span_of(low_M, high_M, BLOCK_N)
        is_met = (tile_n >= first) & (tile_n < last)

    alibi_slope = 0.0
    if ALIBI:
        alibi_slope = tl.load(slopes_ptr + h)
    seed = 0
    if DROPOUT:
        seed = tl.load(seed_ptr)
    bias_M = bias_ptr + h * bias_h + m.to(tl.int64) * bias_m
    bias_MN = bias_of(bias_M, m < seqlen_q, start_n, seqlen_k, bias_n, BLOCK_N, True)
    g = h // group
    dbias_MN = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for sequence in tl.range(0, tl.where(is_met, batch, 0)):
        b = tl.cast(sequence, tl.int64)
        q_base = q_ptr + b * q_b + h * q_h
        k_base = k_ptr + b * k_b + g * k_h
        q_MD = load_tile(q_base, start_m, seqlen_q, q_m, q_d, BLOCK_M, HEAD_DIM, DIM, True)
        k_ND = load_tile(k_base, start_n, seqlen_k, k_n, k_d, BLOCK_N, HEAD_DIM, DIM, True)
        dots_MN = tl.dot(q_MD, tl.trans(k_ND), input_precision=PRECISION)
        logits_MN, _ = logits_of(
            dots_MN, (m + shift)[:, None], n[None, :], scale, softcap, alibi_slope, SOFTCAP, ALIBI
        )
        head = b * heads_q + h
        lse_M = tl.load(lse_ptr + head * seqlen_q + m, mask=m < seqlen_q, other=0.0)
        delta_M = tl.load(delta_ptr + head * seqlen_q + m, mask=m < seqlen_q, other=0.0)
        weights_MN = tl.exp2(logits_MN + bias_MN - finite_lse(lse_M)[:, None])
        kept_MN = True
        if DROPOUT:
            kept_MN = kept_by_dropout(
                seed, head, m[:, None], n[None, :], seqlen_q, seqlen_k, dropout_p
            )
        grad_base = grad_ptr + b * grad_b + h * grad_h
        v_base = v_ptr + b * v_b + g * v_h
        grad_ME = load_tile(
            grad_base, start_m, seqlen_q, grad_m, grad_d, BLOCK_M, HEAD_DIM_V, DIM_V, True
        )
        v_NE = load_tile(v_base, start_n, seqlen_k, v_n, v_d, BLOCK_N, HEAD_DIM_V, DIM_V, True)
        dweights_MN = tl.dot(grad_ME, tl.trans(v_NE), input_precision=PRECISION)
        dbias_MN += dlogits_of(
            weights_MN, dweights_MN, delta_M[:, None], 1.0, kept_MN, dropout_p, DROPOUT
        )

    if MASK == "blocks":
        row_M, key_N = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
        visible_MN = visible_by_pattern(
            patterns_ptr, tl.maximum(pattern, 0), row_M[:, None], key_N[None, :], BLOCK_M, BLOCK_N
        )
    else:
        visible_MN = visible_in(low_M[:, None], high_M[:, None], n[None, :])
    # Selected, not multiplied: a weight that is hidden may be infinite.
    dbias_MN = tl.where(visible_MN, dbias_MN, 0.0)
    place_MN = m.to(tl.int64)[:, None] * dbias_m + n.to(tl.int64)[None, :] * dbias_n
    tl.store(
        dbias_ptr + h * dbias_h + place_MN, dbias_MN.to(dbias_ptr.dtype.element_ty), mask=inside_MN
    )
