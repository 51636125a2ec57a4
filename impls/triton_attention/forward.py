"""The forward: online softmax, one tile of queries against one block of keys after another.

A tile is BLOCK_M query rows of one head. For each row it keeps the largest logit so far, the
sum of ``exp2(logit − largest)`` and the output before normalisation, all in float32; when a
block raises the maximum, what was summed before is scaled down. Blocks that are visible as
a whole take a loop without masking, which is nearly all of them when sequences are long.
Method: Dao 2023, arXiv 2307.08691, algorithm 1.

A program works on one tile, or, PERSISTENT, on one after another: then there are as many
programs as the processors hold at once, and none waits for another to be launched. The order
is that of ``order`` either way. ``specialized`` is the same method on a third schedule.

Of 8-bit inputs (e4m3) ``q kᵀ`` is a product of 8 bits; the weights stay in fp16, and v joins
them there. Weights in e4m3, times 256 or not, would still be within what the oracle allows,
because the output is rounded to e4m3 as well, but with a third more error (relative L2 of
0.035 instead of 0.027 over 600 keys; 0.023 instead of 0.0002 before that rounding). And
8-bit products of warp groups take v only transposed (Shah et al. 2024, FlashAttention-3,
arXiv 2407.08608, §3.3), which gives back a part of what they save.

Letters: B = batch, H = heads_q, G = heads_kv, M = query rows, N = keys, D = head_dim,
E = head_dim_v; in kernels those of a tile.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .dropout import kept_by_dropout
from .order import tile_at
from .tiles import (
    bias_of,
    interval_of,
    load_tile,
    logits_of,
    span_of,
    store_tile,
    visible_by_pattern,
    visible_in,
)


@triton.jit
def forward_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, slopes_ptr, bias_ptr, table_ptr, patterns_ptr,
    q_b, q_h, q_m, q_d, k_b, k_h, k_n, k_d, v_b, v_h, v_n, v_d, out_b, out_h, out_m, out_d,
    bias_h, bias_m, bias_n, units, together, heads_q, group, seqlen_q, seqlen_k,
    table_stride, behind, ahead, scale, softcap, dropout_p, seed_ptr,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, DIM: tl.constexpr, DIM_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr, HAS_LOW: tl.constexpr,
    SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, BIAS: tl.constexpr, DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr, PERSISTENT: tl.constexpr,
):  # fmt: skip
    """Writes ``out`` and the log-sum-exp in base 2 (B, H, M), −inf where a row sees nothing.

    Strides are in elements, by tensor and axis. ``group`` query heads share a key head;
    ``units`` is the number of tiles of all heads, ``together`` as in ``order.tile_at``.
    """
    first = tl.program_id(0)
    if PERSISTENT:
        # Hoisted out of this loop, offsets within tiles would hold registers all through it.
        for unit in tl.range(first, units, tl.num_programs(0), disable_licm=True):
            attend_tile(
                unit, q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, slopes_ptr, bias_ptr, table_ptr,
                patterns_ptr, q_b, q_h, q_m, q_d, k_b, k_h, k_n, k_d, v_b, v_h, v_n, v_d,
                out_b, out_h, out_m, out_d, bias_h, bias_m, bias_n, units, together,
                heads_q, group, seqlen_q, seqlen_k, table_stride, behind, ahead,
                scale, softcap, dropout_p, seed_ptr,
                HEAD_DIM, HEAD_DIM_V, DIM, DIM_V, BLOCK_M, BLOCK_N, MASK, HAS_LOW,
                SOFTCAP, ALIBI, BIAS, DROPOUT, PRECISION,
            )  # fmt: skip
    else:
        attend_tile(
            first, q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, slopes_ptr, bias_ptr, table_ptr,
            patterns_ptr, q_b, q_h, q_m, q_d, k_b, k_h, k_n, k_d, v_b, v_h, v_n, v_d,
            out_b, out_h, out_m, out_d, bias_h, bias_m, bias_n, units, together,
            heads_q, group, seqlen_q, seqlen_k, table_stride, behind, ahead,
            scale, softcap, dropout_p, seed_ptr,
            HEAD_DIM, HEAD_DIM_V, DIM, DIM_V, BLOCK_M, BLOCK_N, MASK, HAS_LOW,
            SOFTCAP, ALIBI, BIAS, DROPOUT, PRECISION,
        )  # fmt: skip


@triton.jit
def attend_tile(
    unit, q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, slopes_ptr, bias_ptr, table_ptr, patterns_ptr,
    q_b, q_h, q_m, q_d, k_b, k_h, k_n, k_d, v_b, v_h, v_n, v_d, out_b, out_h, out_m, out_d,
    bias_h, bias_m, bias_n, units, together, heads_q, group, seqlen_q, seqlen_k,
    table_stride, behind, ahead, scale, softcap, dropout_p, seed_ptr,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, DIM: tl.constexpr, DIM_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr, HAS_LOW: tl.constexpr,
    SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, BIAS: tl.constexpr, DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One unit of work: the tile and head that ``order.tile_at`` gives it."""
    tiles = tl.cdiv(seqlen_q, BLOCK_M)
    tile, head = tile_at(unit, tiles, units // tiles, together)
    b = (head // heads_q).to(tl.int64)
    h = head % heads_q
    g = h // group

    start = tile * BLOCK_M
    m = start + tl.arange(0, BLOCK_M)
    q_base = q_ptr + b * q_b + h.to(tl.int64) * q_h
    k_base = k_ptr + b * k_b + g.to(tl.int64) * k_h
    v_base = v_ptr + b * v_b + g.to(tl.int64) * v_h
    q_MD = load_tile(q_base, start, seqlen_q, q_m, q_d, BLOCK_M, HEAD_DIM, DIM, True)
    alibi_slope = 0.0
    if ALIBI:
        alibi_slope = tl.load(slopes_ptr + h)
    bias_M = m
    if BIAS:
        bias_M = bias_ptr + h.to(tl.int64) * bias_h + m.to(tl.int64) * bias_m

    shift = seqlen_k - seqlen_q
    low_M, high_M = m, m
    list_ptr = table_ptr
    if MASK == "blocks":
        list_ptr = table_ptr + tile.to(tl.int64) * table_stride
        first, whole = 0, 0
        rest = tl.load(list_ptr)
        last = tl.load(list_ptr + 1)
    else:
        low_M, high_M = interval_of(
            m, table_ptr, table_stride, seqlen_q, seqlen_k, shift, behind, ahead, MASK
        )
        first, whole, rest, last = span_of(low_M, high_M, BLOCK_N)

    seed = 0
    if DROPOUT:
        seed = tl.load(seed_ptr)
    top_M = tl.full([BLOCK_M], float("-inf"), tl.float32)
    sum_M = tl.zeros([BLOCK_M], tl.float32)
    acc_ME = tl.zeros([BLOCK_M, DIM_V], tl.float32)
    if HAS_LOW:
        top_M, sum_M, acc_ME = visit(
            top_M, sum_M, acc_ME, first, whole, q_MD, k_base, v_base, m, low_M, high_M,
            list_ptr, patterns_ptr, k_n, k_d, v_n, v_d, head, seqlen_q, seqlen_k,
            shift, scale, softcap, alibi_slope, bias_M, bias_n, dropout_p, seed,
            HEAD_DIM, HEAD_DIM_V, DIM, DIM_V, BLOCK_M, BLOCK_N, MASK, SOFTCAP, ALIBI, BIAS,
            DROPOUT, PRECISION, True,
        )  # fmt: skip
    top_M, sum_M, acc_ME = visit(
        top_M, sum_M, acc_ME, whole, rest, q_MD, k_base, v_base, m, low_M, high_M,
        list_ptr, patterns_ptr, k_n, k_d, v_n, v_d, head, seqlen_q, seqlen_k,
        shift, scale, softcap, alibi_slope, bias_M, bias_n, dropout_p, seed,
        HEAD_DIM, HEAD_DIM_V, DIM, DIM_V, BLOCK_M, BLOCK_N, MASK, SOFTCAP, ALIBI, BIAS,
        DROPOUT, PRECISION, False,
    )  # fmt: skip
    top_M, sum_M, acc_ME = visit(
        top_M, sum_M, acc_ME, rest, last, q_MD, k_base, v_base, m, low_M, high_M,
        list_ptr, patterns_ptr, k_n, k_d, v_n, v_d, head, seqlen_q, seqlen_k,
        shift, scale, softcap, alibi_slope, bias_M, bias_n, dropout_p, seed,
        HEAD_DIM, HEAD_DIM_V, DIM, DIM_V, BLOCK_M, BLOCK_N, MASK, SOFTCAP, ALIBI, BIAS,
        DROPOUT, PRECISION, True,
    )  # fmt: skip
    out_base = out_ptr + b * out_b + h.to(tl.int64) * out_h
    finish_tile(
        top_M, sum_M, acc_ME, out_base, lse_ptr + head.to(tl.int64) * seqlen_q, start, seqlen_q,
        out_m, out_d, dropout_p, BLOCK_M, HEAD_DIM_V, DIM_V, DROPOUT,
    )  # fmt: skip


@triton.jit
def visit(
    top_M, sum_M, acc_ME, begin, end, q_MD, k_base, v_base, m, low_M, high_M,
    list_ptr, patterns_ptr, k_n, k_d, v_n, v_d, head, seqlen_q, seqlen_k,
    shift, scale, softcap, alibi_slope, bias_M, bias_n, dropout_p, seed,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, DIM: tl.constexpr, DIM_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr, SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr, BIAS: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    PARTIAL: tl.constexpr,
):  # fmt: skip
    """Blocks ``begin … end`` of keys, or of the list; PARTIAL if not all of each is visible."""
    for step in tl.range(begin, end, num_stages=1 if PARTIAL else None):
        block = step
        if MASK == "blocks":
            block = tl.load(list_ptr + 2 + 2 * step)
        start = block * BLOCK_N
        n = start + tl.arange(0, BLOCK_N)
        k_ND = load_tile(k_base, start, seqlen_k, k_n, k_d, BLOCK_N, HEAD_DIM, DIM, PARTIAL)
        dots_MN = tl.dot(q_MD, tl.trans(k_ND), input_precision=PRECISION)
        logits_MN, _ = logits_of(
            dots_MN, (m + shift)[:, None], n[None, :], scale, softcap, alibi_slope, SOFTCAP, ALIBI
        )
        if BIAS:
            logits_MN += bias_of(bias_M, m < seqlen_q, start, seqlen_k, bias_n, BLOCK_N, PARTIAL)
        if PARTIAL:
            if MASK == "blocks":
                pattern = tl.load(list_ptr + 3 + 2 * step)
                row_M, key_N = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
                visible_MN = visible_by_pattern(
                    patterns_ptr, pattern, row_M[:, None], key_N[None, :], BLOCK_M, BLOCK_N
                )
            else:
                visible_MN = visible_in(low_M[:, None], high_M[:, None], n[None, :])
            logits_MN = tl.where(visible_MN, logits_MN, float("-inf"))

        weights_MN, keep_M, top_M, sum_M = weigh(logits_MN, top_M, sum_M, PARTIAL or BIAS)
        if DROPOUT:
            kept_MN = kept_by_dropout(
                seed, head.to(tl.int64), m[:, None], n[None, :], seqlen_q, seqlen_k, dropout_p
            )
            weights_MN = tl.where(kept_MN, weights_MN, 0.0)
        v_NE = load_tile(v_base, start, seqlen_k, v_n, v_d, BLOCK_N, HEAD_DIM_V, DIM_V, PARTIAL)
        if v_NE.dtype.is_fp8():
            v_NE = v_NE.to(tl.float16)  # exactly
        acc_ME = tl.dot(
            weights_MN.to(v_NE.dtype), v_NE, acc_ME * keep_M[:, None], input_precision=PRECISION
        )
    return top_M, sum_M, acc_ME


@triton.jit
def weigh(logits_MN, top_M, sum_M, BLIND: tl.constexpr):
    """The online softmax of one more block: weights not yet normalised, and what changes.

    ``BLIND`` says that a row may have seen nothing yet but logits of −inf.

    Returns:
        weights_MN; ``keep_M``, the factor that what was summed before is scaled by; the new
        ``top_M`` and ``sum_M``.
    """
    new_M = tl.maximum(top_M, tl.max(logits_MN, 1))
    from_M = new_M
    if BLIND:  # −inf − −inf would be NaN
        from_M = tl.where(new_M == float("-inf"), 0.0, new_M)
    weights_MN = tl.exp2(logits_MN - from_M[:, None])
    keep_M = tl.exp2(top_M - from_M)
    return weights_MN, keep_M, new_M, sum_M * keep_M + tl.sum(weights_MN, 1)


@triton.jit
def finish_tile(
    top_M, sum_M, acc_ME, out_base, lse_base, start, seqlen_q, out_m, out_d, dropout_p,
    BLOCK_M: tl.constexpr, HEAD_DIM_V: tl.constexpr, DIM_V: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """Normalise a tile of one head and write it, and its log-sum-exp."""
    # A row that sees nothing has the sum 0; its output is zero, its LSE −inf + −inf = −inf.
    norm_M = tl.where(sum_M == 0.0, 1.0, sum_M)
    if DROPOUT:
        norm_M = norm_M * (1.0 - dropout_p)
    m = start + tl.arange(0, BLOCK_M)
    tl.store(lse_base + m, top_M + tl.log2(sum_M), mask=m < seqlen_q)
    store_tile(
        out_base, acc_ME / norm_M[:, None], start, seqlen_q, out_m, out_d,
        BLOCK_M, HEAD_DIM_V, DIM_V,
    )  # fmt: skip
