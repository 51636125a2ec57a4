"""Dropout that can be drawn again: a weight's fate is a function of its position.

Philox (Salmon et al. 2011) turns a seed and the position of a weight among all B·H·M·N into
a random number, so that forward, backward and ``keep_kernel`` agree however they are cut
into tiles, and no mask is stored.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def kept_by_dropout(seed, head, m, n, seqlen_q, seqlen_k, dropout_p):
    """Which weights dropout keeps.

    Args:
        seed: of this call, an integer.
        head: index of (batch, query head), in 64 bits.
        m, n: query and key indices of the tile, shaped to broadcast.
    """
    position = (head * seqlen_q + m) * seqlen_k + n
    return tl.rand(seed, position) >= dropout_p


@triton.jit
def keep_kernel(
    keep_ptr, seed_ptr, seqlen_q, seqlen_k, dropout_p,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Writes the mask of a whole call: uint8 (B, H, M, N), 1 = kept."""
    tiles_m = tl.cdiv(seqlen_q, BLOCK_M)
    tiles_n = tl.cdiv(seqlen_k, BLOCK_N)
    tile = tl.program_id(0) % (tiles_m * tiles_n)
    head = (tl.program_id(0) // (tiles_m * tiles_n)).to(tl.int64)
    m = (tile // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
    n = (tile % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
    seed = tl.load(seed_ptr)
    kept = kept_by_dropout(seed, head, m, n, seqlen_q, seqlen_k, dropout_p)
    pointers = keep_ptr + (head * seqlen_q + m) * seqlen_k + n
    tl.store(pointers, kept.to(tl.uint8), mask=(m < seqlen_q) & (n < seqlen_k))
