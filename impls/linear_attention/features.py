"""Feature maps: what makes a method of the family. Each takes queries and keys to features.

``linear``'s and ``cosformer``'s are formulas; ``performer``'s and ``rfa``'s are random and,
on average, the exponential of a product. All return features of the inputs' dtype. A factor
on all features of one query cancels, so that each is free to leave it out. A factor on one
feature of all keys may be left out too, where the queries' features have it instead: its
logarithm is the ``top`` that ``keys`` returns and ``queries`` is handed.

Letters: B = batch, G = heads_kv, R = query heads that share a key head, M = seqlen_q,
N = seqlen_k, S = either, D = head_dim, F = features, f = half of them; b = B·G, r = R·M.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from attnbench import Problem

_FLOOR = 1e-30
Top = torch.Tensor | None
"""``(B, G, 1, F)``: logarithms of what each feature of the keys was divided by; None: 1."""


class Features(Protocol):
    """What each map can do; ``first`` is the position of the first row that is handed."""

    def keys(self, k_BGND: torch.Tensor, first: int = 0) -> tuple[torch.Tensor, Top]:
        """``(B, G, N, F)``, and what they were divided by."""

    def queries(self, q_BGRMD: torch.Tensor, top: Top, first: int = 0) -> torch.Tensor:
        """``(B, G, R, M, F)``, for keys that were divided by ``top``."""


class OfEach(nn.Module):
    """A map that is the same for queries and keys, and divides nothing."""

    def keys(self, k_BGND: torch.Tensor, first: int = 0) -> tuple[torch.Tensor, Top]:
        return self.of(k_BGND, first), None

    def queries(self, q_BGRMD: torch.Tensor, top: Top, first: int = 0) -> torch.Tensor:
        return self.of(q_BGRMD, first)

    def of(self, x_SD: torch.Tensor, first: int) -> torch.Tensor:
        """Features of rows that begin at a position: ``(…, S, F)``."""
        raise TypeError(f"{type(self).__name__} is no map")


class Elu(OfEach):
    """``elu(x) + 1``, of each component: features as many as D."""

    def of(self, x_SD: torch.Tensor, first: int) -> torch.Tensor:
        return F.elu(x_SD) + 1


class ReluByPosition(OfEach):
    """``relu(q_i)·relu(k_j)·cos(π/2 · (i − j)/N)``, the cosine of a difference taken apart.

    Features twice as many as D; there are as many queries as keys.
    """

    def __init__(self, problem: Problem, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        length = problem.seqlen_k
        angle_N1 = torch.arange(length, dtype=torch.float64)[:, None] * (math.pi / 2 / length)
        self.cos_N1 = nn.Buffer(angle_N1.cos().to(device, dtype))
        self.sin_N1 = nn.Buffer(angle_N1.sin().to(device, dtype))

    def of(self, x_SD: torch.Tensor, first: int) -> torch.Tensor:
        x_SD = x_SD.relu()
        cos_S1, sin_S1 = (
            x_N1[first : first + x_SD.shape[-2]] for x_N1 in (self.cos_N1, self.sin_N1)
        )
        return torch.cat([x_SD * cos_S1, x_SD * sin_S1], dim=-1)


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

    @property
    def _scaled_FD(self) -> torch.Tensor:
        return self.projection_FD * math.sqrt(abs(self.scale))

    def keys(self, k_BGND: torch.Tensor, first: int = 0) -> tuple[torch.Tensor, Top]:
        """Features as many as there are random w, the largest of each feature 1."""
        # Heads are a batch here, b, because changing a view in place would cost a copy.
        k_bND = k_BGND.flatten(0, 1)
        norm_bN1 = k_bND.square().sum(dim=-1, keepdim=True)
        log_k_bNF = _affine(k_bND, self._scaled_FD, norm_bN1 * (-abs(self.scale) / 2))
        top_b1F = log_k_bNF.detach().amax(dim=1, keepdim=True)
        phi_k_bNF = log_k_bNF.sub_(top_b1F).exp_()
        if self.floor:
            phi_k_bNF = phi_k_bNF + self.floor
        heads = k_BGND.shape[:2]
        return torch.unflatten(phi_k_bNF, 0, heads), torch.unflatten(top_b1F, 0, heads)

    def queries(self, q_BGRMD: torch.Tensor, top: Top, first: int = 0) -> torch.Tensor:
        """As many, the largest of each query 1."""
        assert top is not None  # keys() never returns without
        q_brD = q_BGRMD.flatten(2, 3).flatten(0, 1)
        w_FD = self._scaled_FD if self.scale >= 0 else -self._scaled_FD
        log_q_brF = _affine(q_brD, w_FD, top.flatten(0, 1))
        top_br1 = log_q_brF.detach().amax(dim=-1, keepdim=True)
        phi_q_brF = log_q_brF.sub_(top_br1).exp_()
        return phi_q_brF.view(*q_BGRMD.shape[:4], -1)


class Trigonometric(OfEach):
    """``(cos w·x, sin w·x)`` of x made one long: their products average to exp(−|x − y|²/2).

    Of vectors of length 1 that is exp(x·y) but for a factor. Features twice as many as
    there are random w.
    """

    def __init__(self, projection_fD: torch.Tensor) -> None:
        super().__init__()
        self.projection_fD = nn.Buffer(projection_fD)

    def of(self, x_SD: torch.Tensor, first: int) -> torch.Tensor:
        angle_Sf = F.normalize(x_SD, dim=-1) @ self.projection_fD.mT
        return torch.cat([angle_Sf.cos(), angle_Sf.sin()], dim=-1)


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
