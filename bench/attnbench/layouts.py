"""The layouts that implementations may ask for, from and to the one that all else is told in.

Letters: B = batch, H = heads, S = seqlen_q or seqlen_k, D = head_dim or head_dim_v.
"""

from __future__ import annotations

import torch

from attnbench.attention import Layout


def to_layout(x_BHSD: torch.Tensor, layout: Layout) -> torch.Tensor:
    """A copy of a BHSD tensor in a layout.

    Contiguous, except that BHSD keeps its strides (so that views, expanded tensors and
    decode caches reach the implementation as they are) and a decode cache stays a view of
    a longer cache in BSHD too.
    """
    if layout == "BHSD":
        storage = x_BHSD.untyped_storage().clone()  # type: ignore[no-untyped-call]
        return torch.empty(0, dtype=x_BHSD.dtype, device=x_BHSD.device).set_(
            storage, x_BHSD.storage_offset(), x_BHSD.shape, x_BHSD.stride()
        )
    if layout == "BSHD":
        seqlen, cache = x_BHSD.shape[2], x_BHSD._base
        if cache is not None and cache.dim() == 4 and cache.shape[2] > seqlen:
            return cache.transpose(1, 2).clone(memory_format=torch.contiguous_format)[:, :seqlen]
        return x_BHSD.transpose(1, 2).clone(memory_format=torch.contiguous_format)
    return x_BHSD.transpose(1, 2).reshape(-1, x_BHSD.shape[1], x_BHSD.shape[3]).clone()


def from_layout(x: torch.Tensor, layout: Layout, batch: int) -> torch.Tensor:
    """A BHSD view of a tensor in a layout."""
    if layout == "BHSD":
        return x
    if layout == "BSHD":
        return x.transpose(1, 2)
    return x.reshape(batch, -1, *x.shape[1:]).transpose(1, 2)


def layout_shape(shape_BHSD: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
    """The shape that a BHSD shape has in a layout."""
    batch, heads, seqlen, dim = shape_BHSD
    if layout == "BHSD":
        return shape_BHSD
    return (batch, seqlen, heads, dim) if layout == "BSHD" else (batch * seqlen, heads, dim)
