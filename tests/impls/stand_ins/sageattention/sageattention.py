"""A stand-in for sageattention 2: ``sageattn`` on CPU, Q and K rounded as to INT8."""

from __future__ import annotations

import torch
from plain import attend, offsets


def sageattn(
    q, k, v, tensor_layout="HND", is_causal=False, sm_scale=None, return_lse=False, **kwargs
):  # fmt: skip
    assert not kwargs, kwargs
    assert not (is_causal and q.shape[1] != k.shape[1])
    if q.shape[-1] > 128:
        raise ValueError(f"Unsupported head_dim: {q.shape[-1]}")
    if tensor_layout == "NHD":
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    allowed = offsets(q.shape[2], k.shape[2]) <= 0 if is_causal else None
    out = attend(_rounded(q), _rounded(k), v, scale=sm_scale, allowed_MN=allowed)
    return out.transpose(1, 2) if tensor_layout == "NHD" else out


def _rounded(x: torch.Tensor) -> torch.Tensor:
    step = x.abs().amax() / 127
    return (x / step).round() * step
