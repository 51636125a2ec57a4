"""A stand-in for flash_attn.cute of FlashAttention-4: its published functions, on CPU.

No limit of a window is None, and (out, lse) comes back.
"""

from __future__ import annotations

import torch
from plain import attend, offsets


def flash_attn_func(
    q, k, v, qv=None, gather_kv_indices=None, softmax_scale=None, causal=False,
    window_size=(None, None), learnable_sink=None, softcap=0.0, num_splits=1, pack_gqa=None,
    deterministic=False, score_mod=None, score_mod_bwd=None, mask_mod=None, return_lse=False,
):  # fmt: skip
    if max(q.shape[-1], v.shape[-1]) > 256:
        raise RuntimeError("FlashAttention forward only supports head dimension at most 256")
    ahead = offsets(q.shape[1], k.shape[1])
    left, right = window_size
    allowed = torch.ones_like(ahead, dtype=torch.bool)
    if left is not None:
        allowed &= ahead >= -left
    if right is not None:
        allowed &= ahead <= right
    if causal:
        allowed &= ahead <= 0
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = attend(q, k, v, scale=softmax_scale, allowed_MN=allowed, softcap=softcap)
    return out.transpose(1, 2).contiguous(), None


def flash_attn_varlen_func(
    q, k, v, qv=None, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None,
    max_seqlen_k=None, min_seqlen_k=None, seqused_q=None, seqused_k=None, page_table=None,
    softmax_scale=None, causal=False, window_size=(None, None), softcap=0.0, return_lse=False,
):  # fmt: skip
    assert q.ndim == 3
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert max_seqlen_k == int(cu_seqlens_k.diff().max())
    outs = []
    starts = zip(cu_seqlens_q.tolist(), cu_seqlens_k.tolist(), strict=True)
    ends = zip(cu_seqlens_q[1:].tolist(), cu_seqlens_k[1:].tolist(), strict=True)
    for (q0, k0), (q1, k1) in zip(starts, ends, strict=False):
        one = flash_attn_func(
            q[None, q0:q1], k[None, k0:k1], v[None, k0:k1], softmax_scale=softmax_scale,
            causal=causal, window_size=window_size, softcap=softcap,
        )  # fmt: skip
        outs.append(one[0][0])
    return torch.cat(outs), None
