"""The forward for sm_90 and later: a warp that loads, warp groups that compute.

The method is that of ``forward``. What differs is who does it: asked for
``warp_specialize``, Triton gives the loads of keys and values, which the tensor memory
accelerator does by itself, to a producer, and splits the rows of a tile between two consumer
warp groups, so that one takes its softmax while the other has the tensor cores. It does so
under conditions, and where one fails it leaves the loop as it was without a word; hence the
shape of this kernel, and the compile check of it:

- one loop with products in the whole kernel, and no ``if`` at run time in it: blocks that are
  visible as a whole are masked as all others are;
- four warps and 128 rows, to which Triton adds the producer and the second consumer;
- tiles are loaded by descriptors that the kernel makes itself. Each is of one head, so that
  any batch and head strides will do, and what lies past its end is read as zero.

A descriptor needs rows of contiguous elements that begin at multiples of 16 bytes:
``launch`` looks at the strides of each call. Letters: as in ``forward``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .dropout import kept_by_dropout
from .forward import finish_tile, weigh
from .order import tile_at
from .tiles import interval_of, logits_of, span_of, visible_in


@triton.jit
def specialized_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, slopes_ptr, bias_ptr, table_ptr, patterns_ptr,
    q_b, q_h, q_m, q_d, k_b, k_h, k_n, k_d, v_b, v_h, v_n, v_d, out_b, out_h, out_m, out_d,
    bias_h, bias_m, bias_n, units, together, heads_q, group, seqlen_q, seqlen_k,
    table_stride, behind, ahead, scale, softcap, dropout_p, seed_ptr,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, DIM: tl.constexpr, DIM_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr, HAS_LOW: tl.constexpr,
    SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, BIAS: tl.constexpr, DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes what ``forward_kernel`` writes, from the same arguments."""
    tl.static_assert(MASK != "blocks", "a list of blocks needs a look-up in the loop")
    tl.static_assert(not BIAS, "a learned bias is read in the loop, by no descriptor")
    tiles = tl.cdiv(seqlen_q, BLOCK_M)
    tile, head = tile_at(tl.program_id(0), tiles, units // tiles, together)
    b = (head // heads_q).to(tl.int64)
    h = head % heads_q
    g = h // group

    start = tile * BLOCK_M
    m = start + tl.arange(0, BLOCK_M)
    q_MD_of = tl.make_tensor_descriptor(
        q_ptr + b * q_b + h.to(tl.int64) * q_h, [seqlen_q, HEAD_DIM], [q_m, q_d], [BLOCK_M, DIM]
    )
    k_ND_of = tl.make_tensor_descriptor(
        k_ptr + b * k_b + g.to(tl.int64) * k_h, [seqlen_k, HEAD_DIM], [k_n, k_d], [BLOCK_N, DIM]
    )
    v_NE_of = tl.make_tensor_descriptor(
        v_ptr + b * v_b + g.to(tl.int64) * v_h, [seqlen_k, HEAD_DIM_V], [v_n, v_d], [BLOCK_N, DIM_V]
    )
    q_MD = q_MD_of.load([start, 0])
    alibi_slope = 0.0
    if ALIBI:
        alibi_slope = tl.load(slopes_ptr + h)

    shift = seqlen_k - seqlen_q
    low_M, high_M = interval_of(
        m, table_ptr, table_stride, seqlen_q, seqlen_k, shift, behind, ahead, MASK
    )
    first, _whole, _rest, last = span_of(low_M, high_M, BLOCK_N)

    seed = 0
    if DROPOUT:
        seed = tl.load(seed_ptr)
    top_M = tl.full([BLOCK_M], float("-inf"), tl.float32)
    sum_M = tl.zeros([BLOCK_M], tl.float32)
    acc_ME = tl.zeros([BLOCK_M, DIM_V], tl.float32)
    for block in tl.range(first, last, warp_specialize=True):
        begin = block * BLOCK_N
        n = begin + tl.arange(0, BLOCK_N)
        k_ND = k_ND_of.load([begin, 0])
        dots_MN = tl.dot(q_MD, tl.trans(k_ND), input_precision=PRECISION)
        logits_MN, _ = logits_of(
            dots_MN, (m + shift)[:, None], n[None, :], scale, softcap, alibi_slope, SOFTCAP, ALIBI
        )
        visible_MN = visible_in(low_M[:, None], high_M[:, None], n[None, :])
        logits_MN = tl.where(visible_MN, logits_MN, float("-inf"))
        weights_MN, keep_M, top_M, sum_M = weigh(logits_MN, top_M, sum_M, True)
        if DROPOUT:
            kept_MN = kept_by_dropout(
                seed, head.to(tl.int64), m[:, None], n[None, :], seqlen_q, seqlen_k, dropout_p
            )
            weights_MN = tl.where(kept_MN, weights_MN, 0.0)
        v_NE = v_NE_of.load([begin, 0])
        acc_ME = tl.dot(
            weights_MN.to(v_NE.dtype), v_NE, acc_ME * keep_M[:, None], input_precision=PRECISION
        )

    out_base = out_ptr + b * out_b + h.to(tl.int64) * out_h
    finish_tile(
        top_M, sum_M, acc_ME, out_base, lse_ptr + head.to(tl.int64) * seqlen_q, start, seqlen_q,
        out_m, out_d, dropout_p, BLOCK_M, HEAD_DIM_V, DIM_V, DROPOUT,
    )  # fmt: skip
