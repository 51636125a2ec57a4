"""A stand-in for natten: ``na1d`` on CPU, with its neighbourhood moved inwards at the ends."""

from __future__ import annotations

import torch
from plain import attend


def na1d(
    query, key, value, kernel_size, stride=1, dilation=1, is_causal=False, scale=None,
    additional_keys=None, additional_values=None, attention_kwargs=None, backend=None,
    q_tile_shape=None, kv_tile_shape=None, backward_q_tile_shape=None,
    backward_kv_tile_shape=None, backward_kv_splits=None, backward_use_pt_reduction=False,
    run_persistent_kernel=True, kernel_schedule=None, torch_compile=False, return_lse=False,
):  # fmt: skip
    seqlen = query.shape[1]
    if not 2 <= kernel_size <= seqlen:
        raise ValueError(f"Invalid value for `kernel_size`: {kernel_size}")
    i, j = torch.arange(seqlen)[:, None], torch.arange(seqlen)
    if is_causal:
        allowed = (j <= i) & (j > i - kernel_size)
    else:
        first = (i - kernel_size // 2).clamp(0, seqlen - kernel_size)
        allowed = (j >= first) & (j < first + kernel_size)
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return attend(q, k, v, scale=scale, allowed_MN=allowed).transpose(1, 2)
