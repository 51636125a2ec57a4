"""What a problem must cost: exact FLOPs, and the fewest bytes that have to move.

Counted from the pairs, queries and keys that the mask really keeps, so that TFLOPS and
shares of the roofline are comparable between masks.

Letters: B = batch, H = heads_q, G = heads_kv, M = seqlen_q, N = seqlen_k,
D = head_dim, E = head_dim_v.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attnbench.problem import Problem

_LSE_BYTES = 4  # the log-sum-exp of each row is kept in float32


def flops(problem: Problem) -> int:
    """Floating-point operations of the matrix products, two a multiply-add.

    Attention's forward is 2·pairs·(D + E) a head (QKᵀ and PV), counted over exactly the
    pairs the mask keeps; the backward 2·pairs·(3D + 2E): dV, dP, dQ, dK and the logits
    again, which for D = E is the 2.5 × of FlashAttention-2 (Dao 2023, arXiv 2307.08691,
    §4.1). ``layer`` adds the four projections, with twice their forward for the backward;
    padding counts nowhere. Softmax and position encodings are not counted, as everywhere
    in the field.
    """
    p = problem
    pairs = attended_pairs(p)
    forward = 2 * pairs * (p.head_dim + p.head_dim_v)
    backward = 2 * pairs * (3 * p.head_dim + 2 * p.head_dim_v)
    if p.level == "layer":
        forward += _projection_flops(p)
        backward += 2 * _projection_flops(p)
    return _in_direction(p, forward, backward)


def attended_pairs(problem: Problem) -> int:
    """(query, key) pairs that the mask keeps, of all heads and batch entries."""
    core = problem.core
    return core.batch * core.heads_q * core.mask.coverage(core.seqlen_q, core.seqlen_k).pairs


def around(own: int, problem: Problem, count: Callable[[Problem], int]) -> int:
    """What a method counts for the op inside (``own``), with what a layer adds to that."""
    return own + count(problem) - count(problem.core)


def ideal_bytes(problem: Problem) -> int:
    """Fewest bytes that must cross device memory: each needed element once.

    Only keys that some query may see, and queries that may see some key, have to be read;
    every output row is written. Forward: q, k, v in; out and (for training, as every fused
    kernel keeps it) the float32 LSE out. Backward: q, k, v, out, grad_out and LSE in; dq,
    dk, dv out. ``layer`` has the projection weights and the hidden states instead, with
    their gradients; q, k and v stay inside, except those that a decode step finds in its
    cache. Padding need not move, and tables of positions are left out.
    """
    p = problem
    lse = p.core.batch * p.heads_q * p.core.seqlen_q * _LSE_BYTES
    forward, backward = _layer_elements(p) if p.level == "layer" else _op_elements(p)
    return _in_direction(p, p.element_bytes * forward + lse, p.element_bytes * backward + lse)


def _in_direction(p: Problem, forward: int, backward: int) -> int:
    return {"forward": forward, "backward": backward, "both": forward + backward}[p.direction]


def _op_elements(p: Problem) -> tuple[int, int]:
    """Elements in and out of the forward and of the backward, given q, k and v."""
    seen = p.mask.coverage(p.seqlen_q, p.seqlen_k)
    query_heads, key_heads = p.batch * p.heads_q, p.batch * p.heads_kv
    kv_dims = p.head_dim + p.head_dim_v
    read = query_heads * seen.queries * p.head_dim + key_heads * seen.keys * kv_dims
    out = query_heads * p.seqlen_q * p.head_dim_v
    out_and_its_gradient = 2 * query_heads * seen.queries * p.head_dim_v
    gradients = query_heads * p.seqlen_q * p.head_dim + key_heads * p.seqlen_k * kv_dims
    return read + out, read + out_and_its_gradient + gradients


def _layer_elements(p: Problem) -> tuple[int, int]:
    """Elements in and out of the forward and of the backward, given hidden states.

    Equal lengths are self-attention, with one hidden state; other lengths have one for the
    queries and one for the keys. A decode step has the hidden states of its new tokens,
    and the cache.
    """
    kv_dims = p.head_dim + p.head_dim_v
    weights = p.d_model * (p.heads_q + p.heads_kv) * kv_dims
    one_state = p.decode or p.seqlen_q == p.seqlen_k
    queries = p.core.batch * p.core.seqlen_q
    out = queries * p.d_model
    hidden = out if one_state else out + p.batch * p.seqlen_k * p.d_model
    cache = 0
    if p.decode:
        seen_keys = p.mask.coverage(p.seqlen_q, p.seqlen_k).keys
        cache = p.batch * p.heads_kv * seen_keys * kv_dims
    return weights + hidden + cache + out, 2 * (weights + hidden) + out


def _projection_flops(p: Problem) -> int:
    """Wq and Wo for each query, Wk and Wv for each key that is not cached already."""
    core = p.core
    keys = core.seqlen_q if p.decode else core.seqlen_k
    rows = core.seqlen_q * p.heads_q + keys * p.heads_kv
    return 2 * core.batch * p.d_model * rows * (p.head_dim + p.head_dim_v)
