"""Attention in plain operations, for stand-ins of libraries: nothing of attnbench in it.

Letters: B = batch, H = heads_q, G = heads_kv, M = seqlen_q, N = seqlen_k,
D = head_dim, E = head_dim_v.
"""

from __future__ import annotations

import torch


def attend(
    q_BHMD: torch.Tensor,
    k_BGND: torch.Tensor,
    v_BGNE: torch.Tensor,
    *,
    scale: float,
    allowed_MN: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    softcap: float = 0.0,
) -> torch.Tensor:
    """Softcap, then bias, then mask; a row without keys gives zeros."""
    q, k, v = (x.double() for x in (q_BHMD, k_BGND, v_BGNE))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    logits = q @ k.mT * scale
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    if bias is not None:
        logits = logits + bias.double()
    if allowed_MN is not None:
        logits = logits.masked_fill(~allowed_MN, float("-inf"))
    empty = logits.isneginf().all(dim=-1, keepdim=True)
    weights = logits.masked_fill(empty, 0.0).softmax(dim=-1).masked_fill(empty, 0.0)
    return (weights @ v).to(q_BHMD.dtype)


def offsets(seqlen_q: int, seqlen_k: int, *, bottom_right: bool = True) -> torch.Tensor:
    """``(M, N)``: how far a key is after the query's own position."""
    shift = seqlen_k - seqlen_q if bottom_right else 0
    return torch.arange(seqlen_k) - torch.arange(seqlen_q)[:, None] - shift
