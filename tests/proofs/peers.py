"""Independent libraries on our inputs, with our matrices: what ours are held against.

Each function takes one of our implementations as it was built, and returns the library's
attention as ``(q, k, v) → out`` in the library's own layout, with the functions that bring a
tensor there and back. Projections of a layer are replaced by what they would have given.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from attnbench import Problem

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of their imports: nothing that we could change
    import performer_pytorch.performer_pytorch as performer
    from linformer import LinformerSelfAttention
    from local_attention import LocalAttention
    from nystrom_attention import NystromAttention


@dataclass(frozen=True)
class Peer:
    """A library's attention, and its layout: BHSD, or B, S, heads × dim."""

    call: Callable[..., torch.Tensor]
    is_flat: bool

    def to_layout(self, x_BHSD: torch.Tensor) -> torch.Tensor:
        x = x_BHSD.transpose(1, 2).flatten(2) if self.is_flat else x_BHSD
        return x.contiguous()

    def to_bhsd(self, x: torch.Tensor, heads: int) -> torch.Tensor:
        return x.unflatten(2, (heads, -1)).transpose(1, 2) if self.is_flat else x


class Given(nn.Module):
    """In place of a layer: gives what it was told, whatever it is called with."""

    told: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.told


def of_performer(built: Any, problem: Problem) -> Peer:
    """performer-pytorch's FastAttention with our projection."""
    p, ours = problem, built.features.projection_FD
    causal = p.mask.kind == "causal"
    attention = performer.FastAttention(p.head_dim, nb_features=len(ours))
    attention.projection_matrix = ours.clone()
    if causal:  # its own way where there is no CUDA extension
        attention.causal = True
        attention.causal_linear_fn = performer.causal_linear_attention_noncuda
    return Peer(attention, is_flat=False)


def of_linformer(built: Any, problem: Problem) -> Peer:
    """linformer's self-attention with our E and F."""
    p = problem
    attention = LinformerSelfAttention(
        p.d_model, p.seqlen_k, k=built.mix_k_Nr.shape[1], heads=p.heads_q, dim_head=p.head_dim
    )
    attention.proj_k.data = built.mix_k_Nr.data.clone()
    attention.proj_v.data = built.mix_v_Nr.data.clone()
    attention.requires_grad_(False)
    attention.to_q, attention.to_k, attention.to_v = Given(), Given(), Given()
    attention.to_out = nn.Identity()

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        attention.to_q.told, attention.to_k.told, attention.to_v.told = q, k, v
        return attention(q)  # type: ignore[no-any-return]

    return Peer(call, is_flat=True)


def of_nystrom(built: Any, problem: Problem) -> Peer:
    """nystrom-attention with as many landmarks; its inverse scales the whole batch as one."""
    p = problem
    attention = NystromAttention(
        p.d_model, dim_head=p.head_dim, heads=p.heads_q, num_landmarks=built.landmarks,
        pinv_iterations=built.iterations, residual=False,
    )  # fmt: skip
    attention.to_qkv, attention.to_out = Given(), nn.Identity()

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        attention.to_qkv.told = torch.cat([q, k, v], dim=-1)
        return attention(q)  # type: ignore[no-any-return]

    return Peer(call, is_flat=True)


def of_local(window: int) -> Callable[[Any, Problem], Peer]:
    """local-attention's exact window; w reaches w keys back, one more than ours, which counts
    the query itself."""

    def of(built: Any, problem: Problem) -> Peer:
        attention = LocalAttention(
            window_size=window,
            causal=problem.mask.is_causal,
            exact_windowsize=True,
            use_rotary_pos_emb=False,
        )
        return Peer(attention, is_flat=False)

    return of
