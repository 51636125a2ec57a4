"""dQ: a program owns queries and walks over the keys that they see. See ``backward``."""

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
    store_tile,
    visible_by_pattern,
    visible_in,
)


@triton.jit
def dq_kernel(
    q_ptr, k_ptr, v_ptr, grad_ptr, lse_ptr, delta_ptr, dq_ptr,
    slopes_ptr, bias_ptr, table_ptr, patterns_ptr,
    q_b, q_h, q_m, q_d, k_b, k_h, k_n, k_d, v_b, v_h, v_n, v_d,
    grad_b, grad_h, grad_m, grad_d, dq_b, dq_h, dq_m, dq_d,
    bias_h, bias_m, bias_n, heads_q, group, seqlen_q, seqlen_k,
    table_stride, behind, ahead, scale, softcap, dropout_p, seed_ptr,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, DIM: tl.constexpr, DIM_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr, HAS_LOW: tl.constexpr,
    SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, BIAS: tl.constexpr, DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes dq of BLOCK_M query rows; zeros where a row sees nothing."""
    tiles = tl.cdiv(seqlen_q, BLOCK_M)
    tile = tiles - 1 - tl.program_id(0) % tiles
    head = (tl.program_id(0) // tiles).to(tl.int64)
    b = head // heads_q
    h = head % heads_q
    g = h // group

    start = tile * BLOCK_M
    m = start + tl.arange(0, BLOCK_M)
    q_base = q_ptr + b * q_b + h * q_h
    grad_base = grad_ptr + b * grad_b + h * grad_h
    k_base = k_ptr + b * k_b + g * k_h
    v_base = v_ptr + b * v_b + g * v_h
    q_MD = load_tile(q_base, start, seqlen_q, q_m, q_d, BLOCK_M, HEAD_DIM, DIM, True)
    grad_ME = load_tile(
        grad_base, start, seqlen_q, grad_m, grad_d, BLOCK_M, HEAD_DIM_V, DIM_V, True
    )
    lse_M = tl.load(lse_ptr + head * seqlen_q + m, mask=m < seqlen_q, other=0.0)
    delta_M = tl.load(delta_ptr + head * seqlen_q + m, mask=m < seqlen_q, other=0.0)
    alibi_slope = 0.0
    if ALIBI:
        alibi_slope = tl.load(slopes_ptr + h)
    bias_M = m
    if BIAS:
        bias_M = bias_ptr + h * bias_h + m.to(tl.int64) * bias_m
        lse_M = finite_lse(lse_M)

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
    dq_MD = tl.zeros([BLOCK_M, DIM], tl.float32)
    if HAS_LOW:
        dq_MD = _visit_keys(
            dq_MD, first, whole, q_MD, grad_ME, lse_M, delta_M, k_base, v_base, m, low_M, high_M,
            list_ptr, patterns_ptr, k_n, k_d, v_n, v_d, head, seqlen_q, seqlen_k,
            shift, scale, softcap, alibi_slope, bias_M, bias_n, dropout_p, seed,
            HEAD_DIM, HEAD_DIM_V, DIM, DIM_V, BLOCK_M, BLOCK_N, MASK, SOFTCAP, ALIBI, BIAS,
            DROPOUT, PRECISION, True,
        )  # fmt: skip
    dq_MD = _visit_keys(
        dq_MD, whole, rest, q_MD, grad_ME, lse_M, delta_M, k_base, v_base, m, low_M, high_M,
        list_ptr, patterns_ptr, k_n, k_d, v_n, v_d, head, seqlen_q, seqlen_k,
        shift, scale, softcap, alibi_slope, bias_M, bias_n, dropout_p, seed,
        HEAD_DIM, HEAD_DIM_V, DIM, DIM_V, BLOCK_M, BLOCK_N, MASK, SOFTCAP, ALIBI, BIAS,
        DROPOUT, PRECISION, False,
    )  # fmt: skip
    dq_MD = _visit_keys(
        dq_MD, rest, last, q_MD, grad_ME, lse_M, delta_M, k_base, v_base, m, low_M, high_M,
        list_ptr, patterns_ptr, k_n, k_d, v_n, v_d, head, seqlen_q, seqlen_k,
        shift, scale, softcap, alibi_slope, bias_M, bias_n, dropout_p, seed,
        HEAD_DIM, HEAD_DIM_V, DIM, DIM_V, BLOCK_M, BLOCK_N, MASK, SOFTCAP, ALIBI, BIAS,
        DROPOUT, PRECISION, True,
    )  # fmt: skip
    dq_base = dq_ptr + b * dq_b + h * dq_h
    store_tile(dq_base, dq_MD * scale, start, seqlen_q, dq_m, dq_d, BLOCK_M, HEAD_DIM, DIM)


@triton.jit
def _visit_keys(
    dq_MD, begin, end, q_MD, grad_ME, lse_M, delta_M, k_base, v_base, m, low_M, high_M,
    list_ptr, patterns_ptr, k_n, k_d, v_n, v_d, head, seqlen_q, seqlen_k,
    shift, scale, softcap, alibi_slope, bias_M, bias_n, dropout_p, seed,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, DIM: tl.constexpr, DIM_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr, SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr, BIAS: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    PARTIAL: tl.constexpr,
):  # fmt: skip
    """Blocks ``begin … end`` of keys, or of the list."""
    for step in tl.range(begin, end, num_stages=1 if PARTIAL else None):
        block = step
        if MASK == "blocks":
            block = tl.load(list_ptr + 2 + 2 * step)
        start = block * BLOCK_N
        n = start + tl.arange(0, BLOCK_N)
        k_ND = load_tile(k_base, start, seqlen_k, k_n, k_d, BLOCK_N, HEAD_DIM, DIM, PARTIAL)
        v_NE = load_tile(v_base, start, seqlen_k, v_n, v_d, BLOCK_N, HEAD_DIM_V, DIM_V, PARTIAL)
        dots_MN = tl.dot(q_MD, tl.trans(k_ND), input_precision=PRECISION)
        logits_MN, slope_MN = logits_of(
            dots_MN, (m + shift)[:, None], n[None, :], scale, softcap, alibi_slope, SOFTCAP, ALIBI
        )
        if BIAS:
            logits_MN += bias_of(bias_M, m < seqlen_q, start, seqlen_k, bias_n, BLOCK_N, PARTIAL)
        weights_MN = tl.exp2(logits_MN - lse_M[:, None])
        if PARTIAL:
            if MASK == "blocks":
                pattern = tl.load(list_ptr + 3 + 2 * step)
                row_M, key_N = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
                visible_MN = visible_by_pattern(
                    patterns_ptr, pattern, row_M[:, None], key_N[None, :], BLOCK_M, BLOCK_N
                )
            else:
                visible_MN = visible_in(low_M[:, None], high_M[:, None], n[None, :])
            weights_MN = tl.where(visible_MN, weights_MN, 0.0)
        kept_MN = True
        if DROPOUT:
            kept_MN = kept_by_dropout(
                seed, head, m[:, None], n[None, :], seqlen_q, seqlen_k, dropout_p
            )
        dweights_MN = tl.dot(grad_ME, tl.trans(v_NE), input_precision=PRECISION)
        dlogits_MN = dlogits_of(
            weights_MN, dweights_MN, delta_M[:, None], slope_MN, kept_MN, dropout_p, DROPOUT
        )
        dq_MD = tl.dot(dlogits_MN.to(k_ND.dtype), k_ND, dq_MD, input_precision=PRECISION)
    return dq_MD
