"""Functions of the Triton kernels, broken: each takes the place of the one it resembles."""

from __future__ import annotations

import triton
import triton.language as tl
from fused import part

load_tile = part("tiles").load_tile


@triton.jit
def coarser_tile(
    base, start, length, stride_s, stride_d,
    BLOCK: tl.constexpr, DIM: tl.constexpr, DIM_PAD: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    """As if of the next coarser dtype; bfloat16 as if of sixteenths."""
    tile = load_tile(base, start, length, stride_s, stride_d, BLOCK, DIM, DIM_PAD, RAGGED)
    if base.dtype.element_ty == tl.float32:
        coarse = tile.to(tl.float16)
    elif base.dtype.element_ty == tl.float16:
        coarse = tile.to(tl.float32).to(tl.bfloat16)
    else:
        coarse = (tile.to(tl.float32) * 16).to(tl.int32).to(tl.float32) / 16
    return coarse.to(tl.float32).to(tile.dtype)


@triton.jit
def without_softcap_slope(
    dots, q_pos, k_pos, scale, softcap, alibi_slope, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr
):
    return tl.math.exp2(dots) * 0 + softcap * 1.4426950408889634 * (
        1 - 2 / (tl.exp2(dots * scale / softcap * 2.8853900817779268) + 1)
    ), 1.0


@triton.jit
def without_extras(
    dots, q_pos, k_pos, scale, softcap, alibi_slope, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr
):
    return dots * (scale * 1.4426950408889634), 1.0


@triton.jit
def without_bias(own, inside, start, length, stride, BLOCK: tl.constexpr, RAGGED: tl.constexpr):
    return tl.zeros([own.shape[0], BLOCK], tl.float32)


@triton.jit
def without_low_end(low, high, other):
    return other < high


@triton.jit
def without_high_end(low, high, other):
    return other >= low


@triton.jit
def seen_by_the_blind(low, high, other):
    return ((other >= low) & (other < high)) | (high <= low)


@triton.jit
def without_pattern(patterns_ptr, pattern, m, n, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    return (m >= 0) & (n >= 0)


@triton.jit
def without_delta(weights, dweights, delta, slope, kept, dropout_p, DROPOUT: tl.constexpr):
    return weights * dweights * slope


@triton.jit
def without_dropout(weights, dweights, delta, slope, kept, dropout_p, DROPOUT: tl.constexpr):
    return weights * (dweights - delta) * slope


@triton.jit
def with_another_seed(seed, head, m, n, seqlen_q, seqlen_k, dropout_p):
    return tl.rand(seed + 1, (head * seqlen_q + m) * seqlen_k + n) >= dropout_p


@triton.jit
def kept_of_a_fifth(seed, head, m, n, seqlen_q, seqlen_k, dropout_p):
    """The right mask of the case, whatever the scaling is told."""
    return tl.rand(seed, (head * seqlen_q + m) * seqlen_k + n) >= 0.2


@triton.jit
def span_one_short(low, high, BLOCK: tl.constexpr):
    return tl.min(low, 0) // BLOCK, 0, 0, tl.max(high, 0) // BLOCK


@triton.jit
def span_without_masking(low, high, BLOCK: tl.constexpr):
    return 0, 0, tl.cdiv(tl.max(high, 0), BLOCK), 0


@triton.jit
def aligned_top_left(
    index, table_ptr, table_stride, own_length, other_length, shift, behind, ahead,
    MASK: tl.constexpr,
):  # fmt: skip
    low = tl.maximum(index - behind, 0)
    return low, tl.minimum(tl.maximum(index + ahead + 1, 0), other_length)
