"""dK and dV: a program owns keys and walks over the queries that see them. See ``backward``."""

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
def dkdv_kernel(
    q_ptr, k_ptr, v_ptr, grad_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr,
    slopes_ptr, bias_ptr, table_ptr, patterns_ptr,
    q_b, q_h, q_m, q_d, k_b, k_h, k_n, k_d, v_b, v_h, v_n, v_d,
    grad_b, grad_h, grad_m, grad_d, dk_b, dk_h, dk_n, dk_d, dv_b, dv_h, dv_n, dv_d,
    bias_h, bias_m, bias_n, heads_q, group, seqlen_q, seqlen_k,
    table_stride, behind, ahead, scale, softcap, dropout_p, seed_ptr,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, DIM: tl.constexpr, DIM_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr, HAS_LOW: tl.constexpr,
    SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, BIAS: tl.constexpr, DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes dk and dv of BLOCK_N keys. ``behind`` and ``ahead`` are those of the queries."""
    tiles = tl.cdiv(seqlen_k, BLOCK_N)
    tile = tl.program_id(0) % tiles  # the first keys of a causal mask are seen by most
    head_kv = tl.program_id(0) // tiles
    heads_kv = heads_q // group
    b = (head_kv // heads_kv).to(tl.int64)
    g = head_kv % heads_kv

    start = tile * BLOCK_N
    n = start + tl.arange(0, BLOCK_N)
    k_base = k_ptr + b * k_b + g.to(tl.int64) * k_h
    v_base = v_ptr + b * v_b + g.to(tl.int64) * v_h
    k_ND = load_tile(k_base, start, seqlen_k, k_n, k_d, BLOCK_N, HEAD_DIM, DIM, True)
    v_NE = load_tile(v_base, start, seqlen_k, v_n, v_d, BLOCK_N, HEAD_DIM_V, DIM_V, True)

    shift = seqlen_k - seqlen_q
    low_N, high_N = n, n
    list_ptr = table_ptr
    if MASK == "blocks":
        list_ptr = table_ptr + tile.to(tl.int64) * table_stride
        first, whole = 0, 0
        rest = tl.load(list_ptr)
        last = tl.load(list_ptr + 1)
    else:
        low_N, high_N = interval_of(
            n, table_ptr, table_stride, seqlen_k, seqlen_q, -shift, ahead, behind, MASK
        )
        first, whole, rest, last = span_of(low_N, high_N, BLOCK_M)

    seed = 0
    if DROPOUT:
        seed = tl.load(seed_ptr)
    dk_ND = tl.zeros([BLOCK_N, DIM], tl.float32)
    dv_NE = tl.zeros([BLOCK_N, DIM_V], tl.float32)
    for member in tl.range(0, group):
        h = g * group + member
        head = b * heads_q + h
        q_base = q_ptr + b * q_b + h.to(tl.int64) * q_h
        grad_base = grad_ptr + b * grad_b + h.to(tl.int64) * grad_h
        alibi_slope = 0.0
        if ALIBI:
            alibi_slope = tl.load(slopes_ptr + h)
        bias_N = n
        if BIAS:
            bias_N = bias_ptr + h.to(tl.int64) * bias_h + n.to(tl.int64) * bias_n
        if HAS_LOW:
            dk_ND, dv_NE = _visit_queries(
                dk_ND, dv_NE, first, whole, k_ND, v_NE, q_base, grad_base,
                lse_ptr, delta_ptr, n, low_N, high_N, list_ptr, patterns_ptr,
                q_m, q_d, grad_m, grad_d, head, seqlen_q, seqlen_k, shift,
                scale, softcap, alibi_slope, bias_N, bias_m, dropout_p, seed,
                HEAD_DIM, HEAD_DIM_V, DIM, DIM_V, BLOCK_M, BLOCK_N, MASK, SOFTCAP, ALIBI, BIAS,
                DROPOUT, PRECISION, True,
            )  # fmt: skip
        dk_ND, dv_NE = _visit_queries(
            dk_ND, dv_NE, whole, rest, k_ND, v_NE, q_base, grad_base,
            lse_ptr, delta_ptr, n, low_N, high_N, list_ptr, patterns_ptr,
            q_m, q_d, grad_m, grad_d, head, seqlen_q, seqlen_k, shift,
            scale, softcap, alibi_slope, bias_N, bias_m, dropout_p, seed,
            HEAD_DIM, HEAD_DIM_V, DIM, DIM_V, BLOCK_M, BLOCK_N, MASK, SOFTCAP, ALIBI, BIAS,
            DROPOUT, PRECISION, False,
        )  # fmt: skip
        dk_ND, dv_NE = _visit_queries(
            dk_ND, dv_NE, rest, last, k_ND, v_NE, q_base, grad_base,
            lse_ptr, delta_ptr, n, low_N, high_N, list_ptr, patterns_ptr,
            q_m, q_d, grad_m, grad_d, head, seqlen_q, seqlen_k, shift,
            scale, softcap, alibi_slope, bias_N, bias_m, dropout_p, seed,
            HEAD_DIM, HEAD_DIM_V, DIM, DIM_V, BLOCK_M, BLOCK_N, MASK, SOFTCAP, ALIBI, BIAS,
            DROPOUT, PRECISION, True,
        )  # fmt: skip

    dk_ND = dk_ND * scale
    if DROPOUT:
        dv_NE = dv_NE / (1.0 - dropout_p)
    dk_base = dk_ptr + b * dk_b + g.to(tl.int64) * dk_h
    dv_base = dv_ptr + b * dv_b + g.to(tl.int64) * dv_h
    store_tile(dk_base, dk_ND, start, seqlen_k, dk_n, dk_d, BLOCK_N, HEAD_DIM, DIM)
    store_tile(dv_base, dv_NE, start, seqlen_k, dv_n, dv_d, BLOCK_N, HEAD_DIM_V, DIM_V)


@triton.jit
def _visit_queries(
    dk_ND, dv_NE, begin, end, k_ND, v_NE, q_base, grad_base,
    lse_ptr, delta_ptr, n, low_N, high_N, list_ptr, patterns_ptr,
    q_m, q_d, grad_m, grad_d, head, seqlen_q, seqlen_k, shift,
    scale, softcap, alibi_slope, bias_N, bias_m, dropout_p, seed,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, DIM: tl.constexpr, DIM_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr, SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr, BIAS: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    PARTIAL: tl.constexpr,
):  # fmt: skip
    """Blocks ``begin … end`` of queries, or of the list; tiles are transposed, keys first."""
    for step in tl.range(begin, end, num_stages=1 if PARTIAL else None):
        block = step
        if MASK == "blocks":
            block = tl.load(list_ptr + 2 + 2 * step)
        start = block * BLOCK_M
        m = start + tl.arange(0, BLOCK_M)
        q_MD = load_tile(q_base, start, seqlen_q, q_m, q_d, BLOCK_M, HEAD_DIM, DIM, PARTIAL)
        grad_ME = load_tile(
            grad_base, start, seqlen_q, grad_m, grad_d, BLOCK_M, HEAD_DIM_V, DIM_V, PARTIAL
        )
        rows = head * seqlen_q + m
        if PARTIAL:
            lse_M = tl.load(lse_ptr + rows, mask=m < seqlen_q, other=0.0)
            delta_M = tl.load(delta_ptr + rows, mask=m < seqlen_q, other=0.0)
        else:
            lse_M = tl.load(lse_ptr + rows)
            delta_M = tl.load(delta_ptr + rows)

        dots_NM = tl.dot(k_ND, tl.trans(q_MD), input_precision=PRECISION)
        logits_NM, slope_NM = logits_of(
            dots_NM, (m + shift)[None, :], n[:, None], scale, softcap, alibi_slope, SOFTCAP, ALIBI
        )
        if BIAS:
            logits_NM += bias_of(bias_N, n < seqlen_k, start, seqlen_q, bias_m, BLOCK_M, PARTIAL)
            lse_M = finite_lse(lse_M)
        weights_NM = tl.exp2(logits_NM - lse_M[None, :])
        if PARTIAL:
            if MASK == "blocks":
                pattern = tl.load(list_ptr + 3 + 2 * step)
                row_M, key_N = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
                visible_NM = visible_by_pattern(
                    patterns_ptr, pattern, row_M[None, :], key_N[:, None], BLOCK_M, BLOCK_N
                )
            else:
                visible_NM = visible_in(low_N[:, None], high_N[:, None], m[None, :])
            # Also where the LSE is −inf and the weight therefore infinite: no key is visible.
            weights_NM = tl.where(visible_NM, weights_NM, 0.0)

        dropped_NM = weights_NM
        kept_NM = True
        if DROPOUT:
            kept_NM = kept_by_dropout(
                seed, head, m[None, :], n[:, None], seqlen_q, seqlen_k, dropout_p
            )
            dropped_NM = tl.where(kept_NM, weights_NM, 0.0)
        dv_NE = tl.dot(dropped_NM.to(grad_ME.dtype), grad_ME, dv_NE, input_precision=PRECISION)
        dweights_NM = tl.dot(v_NE, tl.trans(grad_ME), input_precision=PRECISION)
        dlogits_NM = dlogits_of(
            weights_NM, dweights_NM, delta_M[None, :], slope_NM, kept_NM, dropout_p, DROPOUT
        )
        dk_ND = tl.dot(dlogits_NM.to(q_MD.dtype), q_MD, dk_ND, input_precision=PRECISION)
    return dk_ND, dv_NE
