"""The forward for few queries: keys are split among programs, and their parts merged.

A decode step has one query row a head, so that tiles of queries would leave a GPU idle. Here
a program owns a key head and a share of the keys, and its rows are the queries of all heads
that share the key head, which read the keys together; a learned bias each row reads from its
own head. ``merge_kernel`` joins the shares by their log-sum-exps (Dao et al. 2023,
Flash-Decoding).

Letters: as in ``forward``; a row of M is query head ``row // seqlen_q`` of the group at
position ``row % seqlen_q``. S = number of shares, padded.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .forward import visit
from .tiles import interval_of, span_of


@triton.jit
def decode_kernel(
    q_ptr, k_ptr, v_ptr, parts_ptr, lse_ptr, slopes_ptr, bias_ptr, table_ptr, patterns_ptr,
    q_b, q_h, q_m, q_d, k_b, k_h, k_n, k_d, v_b, v_h, v_n, v_d,
    bias_h, bias_m, bias_n, batch, heads_q, group, seqlen_q, seqlen_k, shares,
    table_stride, behind, ahead, scale, softcap, dropout_p, seed_ptr,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, DIM: tl.constexpr, DIM_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr, HAS_LOW: tl.constexpr,
    SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, BIAS: tl.constexpr, DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes each share's output, float32 (shares, B, H, M, E), and LSE (shares, B, H, M)."""
    tl.static_assert(not DROPOUT and MASK != "blocks")
    share = tl.program_id(0) % shares
    head_kv = tl.program_id(0) // shares
    heads_kv = heads_q // group
    b = (head_kv // heads_kv).to(tl.int64)
    g = head_kv % heads_kv

    row_M = tl.arange(0, BLOCK_M)
    is_row_M = row_M < group * seqlen_q
    m = row_M % seqlen_q
    h_M = g * group + tl.minimum(row_M // seqlen_q, group - 1)
    dim_D = tl.arange(0, DIM)
    pointers = q_ptr + b * q_b + h_M.to(tl.int64)[:, None] * q_h + m[:, None] * q_m
    q_MD = tl.load(
        pointers + dim_D[None, :] * q_d,
        mask=is_row_M[:, None] & (dim_D < HEAD_DIM)[None, :],
        other=0.0,
    )
    k_base = k_ptr + b * k_b + g.to(tl.int64) * k_h
    v_base = v_ptr + b * v_b + g.to(tl.int64) * v_h
    alibi_slope = 0.0
    if ALIBI:
        alibi_slope = tl.load(slopes_ptr + h_M)[:, None]
    bias_M = m
    if BIAS:  # a row that is none has that of one that is
        bias_M = bias_ptr + h_M.to(tl.int64) * bias_h + m.to(tl.int64) * bias_m

    # This program's share of the blocks that any row sees.
    shift = seqlen_k - seqlen_q
    low_M, high_M = interval_of(
        m, table_ptr, table_stride, seqlen_q, seqlen_k, shift, behind, ahead, MASK
    )
    first, whole, rest, last = span_of(low_M, high_M, BLOCK_N)
    size = tl.cdiv(last - first, shares)
    first = tl.minimum(first + share * size, last)
    last = tl.minimum(first + size, last)
    whole = tl.minimum(tl.maximum(whole, first), last)
    rest = tl.minimum(tl.maximum(rest, whole), last)

    top_M = tl.full([BLOCK_M], float("-inf"), tl.float32)
    sum_M = tl.zeros([BLOCK_M], tl.float32)
    acc_ME = tl.zeros([BLOCK_M, DIM_V], tl.float32)
    if HAS_LOW:
        top_M, sum_M, acc_ME = visit(
            top_M, sum_M, acc_ME, first, whole, q_MD, k_base, v_base, m, low_M, high_M,
            table_ptr, patterns_ptr, k_n, k_d, v_n, v_d, head_kv, seqlen_q, seqlen_k,
            shift, scale, softcap, alibi_slope, bias_M, bias_n, dropout_p, 0,
            HEAD_DIM, HEAD_DIM_V, DIM, DIM_V, BLOCK_M, BLOCK_N, MASK, SOFTCAP, ALIBI, BIAS,
            DROPOUT, PRECISION, True,
        )  # fmt: skip
    top_M, sum_M, acc_ME = visit(
        top_M, sum_M, acc_ME, whole, rest, q_MD, k_base, v_base, m, low_M, high_M,
        table_ptr, patterns_ptr, k_n, k_d, v_n, v_d, head_kv, seqlen_q, seqlen_k,
        shift, scale, softcap, alibi_slope, bias_M, bias_n, dropout_p, 0,
        HEAD_DIM, HEAD_DIM_V, DIM, DIM_V, BLOCK_M, BLOCK_N, MASK, SOFTCAP, ALIBI, BIAS,
        DROPOUT, PRECISION, False,
    )  # fmt: skip
    top_M, sum_M, acc_ME = visit(
        top_M, sum_M, acc_ME, rest, last, q_MD, k_base, v_base, m, low_M, high_M,
        table_ptr, patterns_ptr, k_n, k_d, v_n, v_d, head_kv, seqlen_q, seqlen_k,
        shift, scale, softcap, alibi_slope, bias_M, bias_n, dropout_p, 0,
        HEAD_DIM, HEAD_DIM_V, DIM, DIM_V, BLOCK_M, BLOCK_N, MASK, SOFTCAP, ALIBI, BIAS,
        DROPOUT, PRECISION, True,
    )  # fmt: skip

    acc_ME = acc_ME / tl.where(sum_M == 0.0, 1.0, sum_M)[:, None]
    out_row_M = ((share * batch + b) * heads_q + h_M) * seqlen_q + m
    tl.store(lse_ptr + out_row_M, top_M + tl.log2(sum_M), mask=is_row_M)
    dim_E = tl.arange(0, DIM_V)
    tl.store(
        parts_ptr + out_row_M[:, None] * HEAD_DIM_V + dim_E[None, :],
        acc_ME,
        mask=is_row_M[:, None] & (dim_E < HEAD_DIM_V)[None, :],
    )


@triton.jit
def merge_kernel(
    parts_ptr, part_lse_ptr, out_ptr, lse_ptr, out_b, out_h, out_m, out_d,
    heads_q, seqlen_q, rows, shares,
    HEAD_DIM_V: tl.constexpr, DIM_V: tl.constexpr, SHARES: tl.constexpr,
):  # fmt: skip
    """Joins the shares of one row: ``out = Σ out_s · exp2(lse_s − lse)``. Rows are (B, H, M)."""
    row = tl.program_id(0).to(tl.int64)
    share_S = tl.arange(0, SHARES)
    dim_E = tl.arange(0, DIM_V)
    is_share_S = share_S < shares
    place_S = share_S.to(tl.int64) * rows + row
    lse_S = tl.load(part_lse_ptr + place_S, mask=is_share_S, other=float("-inf"))
    part_SE = tl.load(
        parts_ptr + place_S[:, None] * HEAD_DIM_V + dim_E[None, :],
        mask=is_share_S[:, None] & (dim_E < HEAD_DIM_V)[None, :],
        other=0.0,
    )
    top = tl.max(lse_S, 0)
    weight_S = tl.exp2(lse_S - tl.where(top == float("-inf"), 0.0, top))
    total = tl.sum(weight_S, 0)
    out_E = tl.sum(part_SE * weight_S[:, None], 0) / tl.where(total == 0.0, 1.0, total)
    tl.store(lse_ptr + row, top + tl.log2(total))
    head = row // seqlen_q
    out_row_ptr = out_ptr + head // heads_q * out_b + head % heads_q * out_h
    tl.store(
        out_row_ptr + row % seqlen_q * out_m + dim_E * out_d,
        out_E.to(out_ptr.dtype.element_ty),
        mask=dim_E < HEAD_DIM_V,
    )
