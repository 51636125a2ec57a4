"""Position encodings: what tells attention, which is blind to order, where a token stands.

Two are added to the hidden states before the projections (sinusoidal, learned), one turns
queries and keys (RoPE), two are added to the logits (T5's relative bias, ALiBi; the latter
in :mod:`attnbench.alibi`). Positions are whole numbers, those of queries in key coordinates
and aligned bottom-right as everywhere in attnbench: :func:`query_positions`.

Letters: B = batch, H = heads, S = positions of one kind, M = seqlen_q, N = seqlen_k,
C = d_model, D = head_dim, P = D / 2 pairs, T = positions in a table, R = buckets.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from attnbench.errors import UserError

BASE = 10_000.0  # of the wavelengths, in sinusoidal and in RoPE
BUCKETS = 32  # of T5's relative bias
MAX_DISTANCE = 128  # beyond which T5 tells distances apart no longer


def query_positions(
    seqlen_q: int, seqlen_k: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Where queries stand among the keys: int64 ``(M,)``, ending with the last key."""
    return torch.arange(seqlen_q, device=device) + (seqlen_k - seqlen_q)


# ---- added to the hidden states ----------------------------------------------------------


def sinusoidal(positions_S: torch.Tensor, d_model: int, dtype: torch.dtype) -> torch.Tensor:
    """Sines and cosines of the position at d_model / 2 wavelengths: ``(S, C)``.

    ``PE(pos, 2i) = sin(pos / 10000^(2i / d_model))``, ``PE(pos, 2i + 1)`` its cosine
    (Vaswani et al. 2017, arXiv 1706.03762, §3.5). Computed in float64, then rounded.

    Raises:
        UserError: d_model is odd.
    """
    angle_SP = _angles(positions_S, d_model, BASE, "sinusoidal positions: d_model")
    return torch.stack([angle_SP.sin(), angle_SP.cos()], dim=-1).flatten(-2).to(dtype)


class LearnedPositions(nn.Module):
    """A learned vector for each position, as in GPT-2 and BERT (Gehring et al. 2017,
    arXiv 1705.03122): parameter ``table_TC``, drawn from N(0, 0.02²) as theirs."""

    def __init__(self, seqlen: int, d_model: int) -> None:
        super().__init__()
        self.table_TC = nn.Parameter(0.02 * torch.randn(seqlen, d_model))

    def forward(self, positions_S: torch.Tensor) -> torch.Tensor:
        """``(S, C)``; positions are in [0, seqlen)."""
        return self.table_TC[positions_S]


# ---- turning queries and keys ------------------------------------------------------------


def rotary_tables(
    positions_S: torch.Tensor, head_dim: int, dtype: torch.dtype, base: float = BASE
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of RoPE: two of ``(S, P)``.

    Pair i turns by ``position · base^(−2i / head_dim)`` (Su et al. 2021, RoFormer,
    arXiv 2104.09864, §3.2). Computed in float64, then rounded.

    Raises:
        UserError: head_dim is odd.
    """
    angle_SP = _angles(positions_S, head_dim, base, "RoPE: head_dim")
    return angle_SP.cos().to(dtype), angle_SP.sin().to(dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn each pair of elements of queries or keys; the product of both then depends on
    their distance alone.

    A pair is element i and element i + D/2, as in GPT-NeoX and Llama; the paper pairs
    neighbours, which is the same but for the order of the columns of Wq and Wk.

    Args:
        x: ``(…, D)``.
        cos, sin: of :func:`rotary_tables`, broadcast with ``(…, P)``: ``(S, P)`` for
            x_BHSD, ``(S, 1, P)`` for x_BSHD.
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


# ---- added to the logits -----------------------------------------------------------------


def relative_buckets(
    q_positions_M: torch.Tensor,
    k_positions_N: torch.Tensor,
    *,
    causal: bool,
    buckets: int = BUCKETS,
    max_distance: int = MAX_DISTANCE,
) -> torch.Tensor:
    """The bucket of each pair's distance, int64 ``(M, N)``, as in T5.

    Raffel et al. 2020, arXiv 1910.10683, §2.1: half of the buckets hold one distance each,
    the other half distances that grow by equal factors up to ``max_distance``, and the last
    whatever lies beyond. Where keys may be ahead too, the upper half of all buckets is
    theirs; where they may not (``causal``), keys ahead share bucket 0.
    """
    ahead_MN = k_positions_N - q_positions_M[:, None]
    first_MN = torch.zeros_like(ahead_MN)
    if not causal:
        buckets //= 2
        first_MN = buckets * (ahead_MN > 0)
    distance_MN = (-ahead_MN).clamp(min=0) if causal else ahead_MN.abs()
    single = buckets // 2
    # In float32, as T5 has it: float64 rounds differently where a bucket begins.
    grown_MN = (distance_MN.clamp(min=1).float() / single).log() / math.log(max_distance / single)
    far_MN = (single + (grown_MN * (buckets - single)).long()).clamp(max=buckets - 1)
    return first_MN + torch.where(distance_MN < single, distance_MN, far_MN)


class RelativeBias(nn.Module):
    """T5's relative bias: a learned number for each head and bucket of distance.

    Parameter ``table_RH``, drawn from N(0, 1). See :func:`relative_buckets`.
    """

    def __init__(self, heads: int, *, causal: bool, buckets: int = BUCKETS) -> None:
        super().__init__()
        self.causal = causal
        self.buckets = buckets
        self.table_RH = nn.Parameter(torch.randn(buckets, heads))

    def forward(self, q_positions_M: torch.Tensor, k_positions_N: torch.Tensor) -> torch.Tensor:
        """The bias on the logits, ``(H, M, N)``."""
        return self.looked_up(self.find(q_positions_M, k_positions_N))

    def find(self, q_positions_M: torch.Tensor, k_positions_N: torch.Tensor) -> torch.Tensor:
        """The buckets, ``(M, N)``; whoever calls often at the same positions keeps them."""
        return relative_buckets(
            q_positions_M, k_positions_N, causal=self.causal, buckets=self.buckets
        )

    def looked_up(self, buckets_MN: torch.Tensor) -> torch.Tensor:
        """The bias ``(H, M, N)`` of buckets that were found before, contiguous as all inputs.

        By way of float32: the gradient of a bucket is the sum over all of its pairs.
        """
        table_RH = self.table_RH.to(torch.promote_types(self.table_RH.dtype, torch.float32))
        return table_RH[buckets_MN].permute(2, 0, 1).to(self.table_RH.dtype).contiguous()


def _angles(positions_S: torch.Tensor, dim: int, base: float, whose: str) -> torch.Tensor:
    """``position · base^(−2i / dim)`` for i = 0 … dim/2 − 1: float64 ``(S, P)``."""
    if dim % 2:
        raise UserError(f"{whose} must be even, got {dim}")
    pair_P = torch.arange(dim // 2, dtype=torch.float64, device=positions_S.device)
    return positions_S.double()[:, None] * base ** (-2 * pair_P / dim)
