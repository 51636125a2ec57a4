"""The tensors of a problem: q, k, v and the gradient that comes back, drawn from a seed.

Drawn in float32 by a CPU generator and then rounded to the problem's dtype, so that every
device and every implementation gets the same values, and the float64 reference starts from
the very values the implementation saw. Zeros, constants and uniform [0, 1) numbers are
never used: they hide errors (mean(V) would pass) and can run faster than real data.

Letters: B = batch, H = heads_q, G = heads_kv, M = seqlen_q, N = seqlen_k,
D = head_dim, E = head_dim_v.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from attnbench.problem import Problem

LARGE = 6.0  # standard deviation of each of q and k; that of a logit is its square, 36
_PEAK = 4.0  # share of the key it points at in each "peaky" query
_NEARBY = 8.0  # nats by which a "local" query prefers its own position to a distant one
_CORRELATION = 0.95  # of neighbouring tokens in "correlated"
_CACHE_SLACK = 256  # free slots behind the filled part of a decode KV cache


class AnyInputs(Protocol):
    """What an execution is given, at whatever level."""

    def named(self) -> dict[str, torch.Tensor]:
        """Each tensor by its name, ``grad_out`` last."""


@dataclass(frozen=True)
class Inputs:
    """q ``(B,H,M,D)``, k ``(B,G,N,D)``, v ``(B,G,N,E)``, grad_out ``(B,H,M,E)``."""

    q_BHMD: torch.Tensor
    k_BGND: torch.Tensor
    v_BGNE: torch.Tensor
    grad_out_BHME: torch.Tensor

    def qkv(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The three inputs of the forward."""
        return self.q_BHMD, self.k_BGND, self.v_BGNE

    def named(self) -> dict[str, torch.Tensor]:
        """All of them, ``grad_out`` last."""
        return dict(
            zip(("q", "k", "v", "grad_out"), (*self.qkv(), self.grad_out_BHME), strict=True)
        )


def make_inputs(problem: Problem, seed: int, device: torch.device | str = "cpu") -> Inputs:
    """Draw the inputs of ``problem``; the same seed gives the same values on every device.

    The kinds: ``normal`` is N(0, 1). ``large`` has logits of a hundred and more, where a
    softmax without max-subtraction overflows (float32 does at 88.7). ``peaky`` makes each
    query point at one key at or before its own position, so that at head_dim ≥ 32 nearly
    all weight sits there if the mask allows it. ``needle`` makes the second half of the
    queries point at one key in the first half, the same for all of a head: what a window
    cannot see. ``local`` makes logits fall off with the distance between query and key, so
    that nearly all weight is near: what a window is made for. ``correlated`` walks slowly along the
    sequence (AR(1)), as neighbouring tokens of real text do. ``grad_out`` is N(0, 1) always.

    A decode step's k and v are views of a longer cache, with NaN in the slots behind.
    """
    generator = torch.Generator().manual_seed(seed)
    p = problem

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32)

    q_BHMD = draw(p.batch, p.heads_q, p.seqlen_q, p.head_dim)
    k_BGND = draw(p.batch, p.heads_kv, p.seqlen_k, p.head_dim)
    v_BGNE = draw(p.batch, p.heads_kv, p.seqlen_k, p.head_dim_v)
    grad_out_BHME = draw(p.batch, p.heads_q, p.seqlen_q, p.head_dim_v)
    if p.inputs == "large":
        q_BHMD, k_BGND = q_BHMD * LARGE, k_BGND * LARGE
    elif p.inputs == "peaky":
        q_BHMD = q_BHMD + _PEAK * _own_keys(k_BGND, p, generator)
    elif p.inputs == "local":
        q_BHMD, k_BGND = _near(q_BHMD, k_BGND, p)
    elif p.inputs == "needle":
        q_BHMD = q_BHMD + _PEAK * _needle(k_BGND, p)
    elif p.inputs == "correlated":
        q_BHMD, k_BGND, v_BGNE = (walk(x) for x in (q_BHMD, k_BGND, v_BGNE))
    tensors = [x.to(p.torch_dtype).to(device) for x in (q_BHMD, k_BGND, v_BGNE, grad_out_BHME)]
    if p.decode:
        tensors[1:3] = [_in_cache(x) for x in tensors[1:3]]
    return Inputs(*tensors)


def _own_keys(k_BGND: torch.Tensor, p: Problem, generator: torch.Generator) -> torch.Tensor:
    """For each query the key it points at: one of those at or before its own position."""
    position_M = torch.arange(p.seqlen_q) + (p.seqlen_k - p.seqlen_q)
    reach_M = position_M.clamp(min=0) + 1
    chosen_M = (torch.rand(p.seqlen_q, generator=generator) * reach_M).long()
    picked_BGMD = k_BGND[:, :, chosen_M]
    return picked_BGMD.repeat_interleave(p.heads_q // p.heads_kv, dim=1)


def _needle(k_BGND: torch.Tensor, p: Problem) -> torch.Tensor:
    """For each query of the second half the needle's key, else zeros: ``(B, H, M, D)``."""
    needle_BG1D = k_BGND[:, :, p.seqlen_k // 3][:, :, None]
    is_seeking_M1 = torch.arange(p.seqlen_q)[:, None] >= p.seqlen_q // 2
    return (needle_BG1D * is_seeking_M1).repeat_interleave(p.heads_q // p.heads_kv, dim=1)


def _near(
    q_BHMD: torch.Tensor, k_BGND: torch.Tensor, p: Problem
) -> tuple[torch.Tensor, torch.Tensor]:
    """Half of each vector says where it is: cosines and sines of the position, at many rates.

    The product of two such halves is the mean of ``cos(rate · distance)``, times ``_NEARBY``
    nats: largest where the positions are the same, and about zero beyond a few dozen.
    """
    half = p.head_dim // 4
    rate_d = torch.linspace(0.02, 0.5, max(half, 1))
    size = (_NEARBY / p.softmax_scale / max(half, 1)) ** 0.5 if p.softmax_scale > 0 else 1.0

    def place(x_BHSD: torch.Tensor, position_S: torch.Tensor) -> torch.Tensor:
        angle_Sd = position_S[:, None] * rate_d
        said_Sd = size * torch.cat([angle_Sd.cos(), angle_Sd.sin()], dim=1)
        x_BHSD = x_BHSD.clone()
        x_BHSD[..., : 2 * half] = said_Sd[:, : 2 * half]
        return x_BHSD

    position_M = torch.arange(p.seqlen_q) + float(p.seqlen_k - p.seqlen_q)
    return place(q_BHMD, position_M), place(k_BGND, torch.arange(p.seqlen_k).float())


def walk(x_BHND: torch.Tensor) -> torch.Tensor:
    """AR(1) along the sequence, with unit variance at every position."""
    fresh = (1 - _CORRELATION**2) ** 0.5
    steps = [x_BHND[:, :, 0]]
    for n in range(1, x_BHND.shape[2]):
        steps.append(_CORRELATION * steps[-1] + fresh * x_BHND[:, :, n])
    return torch.stack(steps, dim=2)


def _in_cache(x_BGND: torch.Tensor) -> torch.Tensor:
    """The same values as a view of a longer cache, NaN behind the filled part."""
    batch, heads, seqlen, dim = x_BGND.shape
    cache = torch.full(
        (batch, heads, seqlen + _CACHE_SLACK, dim), float("nan"), device=x_BGND.device
    ).to(x_BGND.dtype)
    cache[:, :, :seqlen] = x_BGND
    return cache[:, :, :seqlen]
