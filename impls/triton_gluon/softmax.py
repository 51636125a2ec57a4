"""One step of the online softmax, from the dots of a block to the operand of its product.

Letters: M = the query rows of a consumer, N = the keys of a block.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

LOG2E = gl.constexpr(1.4426950408889634)


@gluon.jit
def softmax_step(
    dots_MN, top_M, sum_M, n, seen_M, scale, softcap,
    dtype: gl.constexpr, BLOCK_N: gl.constexpr, SOFTCAP: gl.constexpr, NEGATIVE: gl.constexpr,
    MASKED: gl.constexpr, logits_layout: gl.constexpr, out_layout: gl.constexpr,
):  # fmt: skip
    """Online softmax: the weights of a block as left operand, and what to scale the past by.

    Logits are in base 2, because ``exp2`` is what the hardware has: ``dots · factor``. They
    are never formed; one fused multiply-add makes ``dots · factor − top``. For the maximum
    that needs a factor that is positive.
    """
    if NEGATIVE:
        dots_MN = -dots_MN
    factor = scale * LOG2E
    if SOFTCAP:
        dots_MN = tanh_of(dots_MN * (scale / softcap))
        factor = softcap * LOG2E
    if MASKED:
        key_N = n + gl.arange(0, BLOCK_N, gl.SliceLayout(0, logits_layout))
        dots_MN = gl.where(key_N[None, :] < seen_M[:, None], dots_MN, float("-inf"))

    new_M = gl.maximum(top_M, gl.max(dots_MN, 1) * factor)
    from_M = new_M
    if MASKED:  # a row that has seen nothing yet: −inf − −inf would be NaN
        from_M = gl.where(new_M == float("-inf"), 0.0, new_M)
    weights_MN = gl.exp2(dots_MN * factor - from_M[:, None])
    keep_M = gl.exp2(top_M - from_M)
    sum_M = sum_M * keep_M + gl.sum(weights_MN, 1)
    # The accumulator of one product is, but for its type, the left operand of the next: a
    # thread keeps the elements it has.
    operand: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=out_layout, k_width=2)
    return gl.convert_layout(weights_MN.to(dtype), operand), keep_M, new_M, sum_M


@gluon.jit
def tanh_of(x):
    """tanh by exp2. Near 0 it is exact to 2⁻²⁴ absolute, which is what a logit needs."""
    return 1.0 - 2.0 / (gl.exp2(x * (2.0 * LOG2E)) + 1.0)
