"""What forward and backward kernels share: tiles, what a mask lets meet, logits.

A mask reaches a kernel in one of two forms. As *bounds* each row sees the keys of one
interval ``[low, high)``, and each key is seen by the rows of one interval; so the same
code serves queries that walk over keys and keys that walk over queries ("own" is the side
that stays, "other" the side that is walked). ``band`` computes the interval from the
position (full, causal, window), ``bounds`` reads it from a table (prefix-LM, documents).
As a *list* (``blocks``) each own block has the blocks it meets written down: first those
that are visible as a whole, then those that a pattern of 0 and 1 masks.

Positions of queries are in key coordinates, aligned bottom-right: row m is at
``m + seqlen_k − seqlen_q``. Logits are in base 2, ``log2(e)`` times the usual ones, because
``exp2`` is what the hardware has.

Letters: S = the tile's rows (of q, k, v or a gradient), D = head_dim, padded; M and N = the
query rows and keys of a tile of logits. Functions of logits take tiles either way round;
positions come shaped to broadcast.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


# ---- tiles in memory ---------------------------------------------------------------------


@triton.jit
def load_tile(
    base, start, length, stride_s, stride_d,
    BLOCK: tl.constexpr, DIM: tl.constexpr, DIM_PAD: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    """Rows ``start … start + BLOCK`` of a head as (BLOCK, DIM_PAD); zero where there is none.

    ``RAGGED`` says that rows may lie past ``length``. Only the start is multiplied in 64
    bits: a tensor may have more than 2³¹ elements, a tile not.
    """
    row_S = tl.arange(0, BLOCK)
    dim_D = tl.arange(0, DIM_PAD)
    pointers = base + start.to(tl.int64) * stride_s
    pointers = pointers + row_S[:, None] * stride_s + dim_D[None, :] * stride_d
    if RAGGED and DIM != DIM_PAD:
        inside = (start + row_S < length)[:, None] & (dim_D < DIM)[None, :]
        tile = tl.load(pointers, mask=inside, other=0.0)
    elif RAGGED:
        tile = tl.load(pointers, mask=(start + row_S < length)[:, None], other=0.0)
    elif DIM != DIM_PAD:
        tile = tl.load(pointers, mask=(dim_D < DIM)[None, :], other=0.0)
    else:
        tile = tl.load(pointers)
    return tile


@triton.jit
def store_tile(
    base, tile, start, length, stride_s, stride_d,
    BLOCK: tl.constexpr, DIM: tl.constexpr, DIM_PAD: tl.constexpr,
):  # fmt: skip
    """The inverse of ``load_tile``, rounded to the dtype of ``base``."""
    row_S = tl.arange(0, BLOCK)
    dim_D = tl.arange(0, DIM_PAD)
    pointers = base + start.to(tl.int64) * stride_s
    pointers = pointers + row_S[:, None] * stride_s + dim_D[None, :] * stride_d
    inside = (start + row_S < length)[:, None] & (dim_D < DIM)[None, :]
    tl.store(pointers, tile.to(base.dtype.element_ty), mask=inside)


# ---- what a mask lets meet ---------------------------------------------------------------


@triton.jit
def interval_of(
    index, table_ptr, table_stride, own_length, other_length, shift, behind, ahead,
    MASK: tl.constexpr,
):  # fmt: skip
    """The interval ``[low, high)`` of the other side that each own index may meet.

    Index i meets j if ``−behind ≤ j − (i + shift) ≤ ahead``. Seen from the other side,
    ``shift`` changes its sign, and ``behind`` and ``ahead`` change places. An index past the
    end has the interval of the last one.
    """
    index = tl.minimum(index, own_length - 1)
    if MASK == "bounds":
        low = tl.load(table_ptr + index)
        high = tl.load(table_ptr + table_stride + index)
    else:
        low = tl.maximum(index + shift - behind, 0)
        high = tl.minimum(tl.maximum(index + shift + ahead + 1, 0), other_length)
    return low, high


@triton.jit
def span_of(low, high, BLOCK: tl.constexpr):
    """Which blocks of the other side a tile of intervals visits: first, whole, rest, last.

    Blocks ``first … whole`` and ``rest … last`` are visible in part, ``whole … rest`` as a
    whole and for every row of the tile.
    """
    first = tl.min(low, 0) // BLOCK
    last = tl.maximum(tl.cdiv(tl.max(high, 0), BLOCK), first)
    whole = tl.minimum(tl.maximum(tl.cdiv(tl.max(low, 0), BLOCK), first), last)
    rest = tl.minimum(tl.maximum(tl.min(high, 0) // BLOCK, whole), last)
    return first, whole, rest, last


@triton.jit
def visible_in(low, high, other):
    """Which pairs of a tile meet, from the own side's intervals."""
    return (other >= low) & (other < high)


@triton.jit
def visible_by_pattern(patterns_ptr, pattern, m, n, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Which pairs of a tile meet, from the patterns: (…, BLOCK_M, BLOCK_N) of 0 and 1.

    ``m`` and ``n`` count from the tile's corner.
    """
    start = pattern.to(tl.int64) * (BLOCK_M * BLOCK_N)
    return tl.load(patterns_ptr + start + m * BLOCK_N + n) != 0


# ---- logits ------------------------------------------------------------------------------


@triton.jit
def logits_of(
    dots, q_pos, k_pos, scale, softcap, alibi_slope, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr
):
    """Logits in base 2 from ``q kᵀ``, and the slope that the softcap has there."""
    slope = 1.0
    if SOFTCAP:
        tanh = tanh_of(dots * (scale / softcap))
        logits = tanh * (softcap * LOG2E)
        slope = 1.0 - tanh * tanh
    else:
        logits = dots * (scale * LOG2E)
    if ALIBI:
        logits -= (alibi_slope * LOG2E) * tl.abs(q_pos - k_pos).to(tl.float32)
    return logits, slope


@triton.jit
def bias_of(own, inside, start, length, stride, BLOCK: tl.constexpr, RAGGED: tl.constexpr):
    """A tile of the learned bias in base 2, its own side first.

    Args:
        own: pointers to where the bias of each own index begins.
        inside: which of them there are.
        start: of the other side's BLOCK.
        length, stride: of the other side; ``RAGGED`` says that it may end within the tile.
    """
    other = tl.arange(0, BLOCK)
    mask = inside[:, None]
    if RAGGED:
        mask = mask & (start + other < length)[None, :]
    # What differs within a thread is left to constants, which addresses have room for.
    pointers = (own + start.to(tl.int64) * stride)[:, None] + other[None, :] * stride
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32) * LOG2E


@triton.jit
def tanh_of(x):
    """tanh by exp2. Near 0 it is exact to 2⁻²⁴ absolute, which is what a logit needs."""
    return 1.0 - 2.0 / (tl.exp2(x * (2.0 * LOG2E)) + 1.0)
