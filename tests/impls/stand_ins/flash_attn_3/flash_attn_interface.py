"""A stand-in for FlashAttention-3's ``flash_attn_interface``: published functions, on CPU."""

from __future__ import annotations

import torch
from plain import attend, offsets


def flash_attn_func(
    q, k, v, softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None,
    v_descale=None, window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1,
    pack_gqa=None, deterministic=False, sm_margin=0, return_attn_probs=False,
):  # fmt: skip
    if max(q.shape[-1], v.shape[-1]) > 256:
        raise RuntimeError("FlashAttention forward only supports head dimension at most 256")
    ahead = offsets(q.shape[1], k.shape[1])
    left, right = window_size
    allowed = torch.ones_like(ahead, dtype=torch.bool)
    if left >= 0:
        allowed &= ahead >= -left
    if right >= 0:
        allowed &= ahead <= right
    if causal:
        allowed &= ahead <= 0
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = attend(q, k, v, scale=softmax_scale, allowed_MN=allowed, softcap=softcap)
    return out.transpose(1, 2).contiguous()


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None,
    seqused_k=None, softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None,
    v_descale=None, window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1,
    pack_gqa=None, deterministic=False, sm_margin=0, return_attn_probs=False,
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
        outs.append(one[0])
    return torch.cat(outs)
