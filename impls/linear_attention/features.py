"""Feature maps: what makes a method of the family. Each takes queries and keys to features.

``linear``'s and ``cosformer``'s are formulas; ``performer``'s and ``rfa``'s are random and,
on average, the exponential of a product. All return ``(φ(q), φ(k))`` of the inputs' dtype; a
factor on all features of one query cancels, so that each is free to leave it out.

Letters: B = batch, G = heads_kv, R = query heads that share a key head, M = seqlen_q,
N = seqlen_k, D = head_dim, F = features, f = half of them; b = B·G, r = R·M.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from attnbench import Problem

_FLOOR = 1e-30
Pair = tuple[torch.Tensor, torch.Tensor]


class Elu(nn.Module):
    """``elu(x) + 1``, of each component."""

    def forward(self, q_BGRMD: torch.Tensor, k_BGND: torch.Tensor) -> Pair:
        """Features as many as D."""
        return F.elu(q_BGRMD) + 1, F.elu(k_BGND) + 1


class ReluByPosition(nn.Module):
    """``relu(q_i)·relu(k_j)·cos(π/2 · (i − j)/N)``, the cosine of a difference taken apart."""

    def __init__(self, problem: Problem, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        length = problem.seqlen_k
        angle_N1 = torch.arange(length, dtype=torch.float64)[:, None] * (math.pi / 2 / length)
        self.cos_N1 = nn.Buffer(angle_N1.cos().to(device, dtype))
        self.sin_N1 = nn.Buffer(angle_N1.sin().to(device, dtype))

    def forward(self, q_BGRMD: torch.Tensor, k_BGND: torch.Tensor) -> Pair:
        """Features twice as many as D; as many queries as keys."""
        return self._features(q_BGRMD), self._features(k_BGND)

    def _features(self, x_ND: torch.Tensor) -> torch.Tensor:
        x_ND = x_ND.relu()
        return torch.cat([x_ND * self.cos_N1, x_ND * self.sin_N1], dim=-1)


class Positive(nn.Module):
    """FAVOR+: ``exp(w·x − |x|²/2)`` for orthogonal random w, whose products average to exp(q·k).

    No stabiliser is left in the result. Each feature is divided by its largest key's, and the
    query's multiplied by the same, and then divided by its own largest feature: both cancel.
    With every key in sight the normaliser is then at least 1. A causal query whose keys are
    all e⁻⁶⁹ below the largest comes out as their mean, and not as 0/0.
    """

    def __init__(self, projection_FD: torch.Tensor, scale: float, *, causal: bool) -> None:
        super().__init__()
        self.projection_FD = nn.Buffer(projection_FD)
        self.scale = scale
        self.floor = _FLOOR if causal else 0.0

    def forward(self, q_BGRMD: torch.Tensor, k_BGND: torch.Tensor) -> Pair:
        """Features as many as there are random w."""
        w_FD = self.projection_FD * math.sqrt(abs(self.scale))
        # Heads are a batch here, b, because changing a view in place would cost a copy.
        k_bND, q_brD = k_BGND.flatten(0, 1), q_BGRMD.flatten(2, 3).flatten(0, 1)
        norm_bN1 = k_bND.square().sum(dim=-1, keepdim=True)
        log_k_bNF = _affine(k_bND, w_FD, norm_bN1 * (-abs(self.scale) / 2))
        top_b1F = log_k_bNF.detach().amax(dim=1, keepdim=True)
        phi_k_bNF = log_k_bNF.sub_(top_b1F).exp_()
        if self.floor:
            phi_k_bNF = phi_k_bNF + self.floor
        log_q_brF = _affine(q_brD, w_FD if self.scale >= 0 else -w_FD, top_b1F)
        top_br1 = log_q_brF.detach().amax(dim=-1, keepdim=True)
        phi_q_brF = log_q_brF.sub_(top_br1).exp_()
        return (
            phi_q_brF.view(*q_BGRMD.shape[:4], -1),
            phi_k_bNF.view(*k_BGND.shape[:3], -1),
        )


class Trigonometric(nn.Module):
    """``(cos w·x, sin w·x)`` of x made one long: their products average to exp(−|x − y|²/2).

    Of vectors of length 1 that is exp(x·y) but for a factor.
    """

    def __init__(self, projection_fD: torch.Tensor) -> None:
        super().__init__()
        self.projection_fD = nn.Buffer(projection_fD)

    def forward(self, q_BGRMD: torch.Tensor, k_BGND: torch.Tensor) -> Pair:
        """Features twice as many as there are random w."""
        return self._features(q_BGRMD), self._features(k_BGND)

    def _features(self, x_ND: torch.Tensor) -> torch.Tensor:
        angle_Nf = F.normalize(x_ND, dim=-1) @ self.projection_fD.mT
        return torch.cat([angle_Nf.cos(), angle_Nf.sin()], dim=-1)


def orthogonal_gaussian(
    rows: int, dim: int, seed: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """``(rows, dim)``: each row N(0, 1)ᵈ, any ``dim`` in a row orthogonal to one another.

    Drawn in float64 on the CPU, so that a seed means the same everywhere.
    """
    generator = torch.Generator().manual_seed(seed)
    blocks = []
    for _ in range(-(-rows // dim)):
        square = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
        orthogonal, triangle = torch.linalg.qr(square)
        # QR chooses signs; undone, the directions are uniform (Mezzadri 2007, math-ph/0609050).
        blocks.append((orthogonal * triangle.diagonal().sign()).mT)
    length_R1: torch.Tensor = torch.randn(rows, dim, generator=generator, dtype=torch.float64).norm(
        dim=1, keepdim=True
    )
    return (torch.cat(blocks)[:rows] * length_R1).to(device, dtype)


def _affine(x_bSD: torch.Tensor, w_FD: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """``x wᵀ + offset`` in one pass, in memory of its own: ``(b, S, F)``."""
    return torch.baddbmm(offset, x_bSD, w_FD.mT.expand(x_bSD.shape[0], -1, -1))
