"""What attention becomes when its weights are products of features: sums over the keys.

``out_i = φ(q_i)·Σ_j φ(k_j) v_jᵀ / φ(q_i)·Σ_j φ(k_j)``: the sums do not depend on the query, so
that nothing of size seqlen² exists. Causal, each query has sums of its own. They are made by
chunks: what earlier chunks add up to, and the products inside a chunk, all of them matrix
products; a chunk costs its square, and a state of F × E stands for everything before it.

Letters: B = batch, G = heads_kv, R = query heads that share a key head, M = seqlen_q,
N = seqlen_k, D = head_dim, F = features, E = head_dim_v, P = E + 1: the values and a 1, whose
sum is the normaliser; n = chunks, C = their length; without chunks m and n are one piece.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .features import Features, Top


def attend(
    features: Features,
    q_BGRMD: torch.Tensor,
    k_BGND: torch.Tensor,
    v_BGNE: torch.Tensor,
    rows: int | None = None,
) -> torch.Tensor:
    """Every query sees every key; ``(B, G, R, M, E)``.

    With ``rows``, that many keys are taken at a time, and then that many queries, so that no
    more features are held. Each piece of keys may have been divided by another ``top``.
    """
    (keys, *others), queries = (_pieces(x.shape[-2], rows) for x in (k_BGND, q_BGRMD))
    state_BGFP, top = _state(features, k_BGND, v_BGNE, keys)
    for piece in others:
        state_BGFP, top = _joined((state_BGFP, top), _state(features, k_BGND, v_BGNE, piece))
    outs = []
    for piece in queries:
        phi_BGRmF = features.queries(q_BGRMD[:, :, :, piece], top, piece.start)
        sums_BGrP = phi_BGRmF.flatten(2, 3) @ state_BGFP
        outs.append(_normalised(torch.unflatten(sums_BGrP, 2, phi_BGRmF.shape[2:4])))
    return outs[0] if len(outs) == 1 else torch.cat(outs, dim=3)


def _pieces(length: int, rows: int | None) -> list[slice]:
    step = rows or length
    return [slice(first, min(first + step, length)) for first in range(0, length, step)]


def _state(
    features: Features, k_BGND: torch.Tensor, v_BGNE: torch.Tensor, piece: slice
) -> tuple[torch.Tensor, Top]:
    """The sums over some of the keys, and what their features were divided by."""
    phi_BGnF, top = features.keys(k_BGND[:, :, piece], piece.start)
    return phi_BGnF.mT @ _with_one(v_BGNE[:, :, piece]), top


def _joined(
    one: tuple[torch.Tensor, Top], other: tuple[torch.Tensor, Top]
) -> tuple[torch.Tensor, Top]:
    """The sums over the keys of both, divided by the larger of their tops."""
    (state_BGFP, top), (other_BGFP, other_top) = one, other
    if top is None or other_top is None:
        return state_BGFP + other_BGFP, None
    both_BG1F = torch.maximum(top, other_top)
    shares = [(x - both_BG1F).exp().mT for x in (top, other_top)]
    return state_BGFP * shares[0] + other_BGFP * shares[1], both_BG1F


def attend_causally(
    phi_q_BGRMF: torch.Tensor, phi_k_BGNF: torch.Tensor, v_BGNE: torch.Tensor, chunk: int
) -> torch.Tensor:
    """The last query sees every key, each before it one fewer; one that sees none gives zeros."""
    queries, keys = phi_q_BGRMF.shape[3], phi_k_BGNF.shape[2]
    if queries > keys:
        seeing_BGRME = attend_causally(
            phi_q_BGRMF[:, :, :, queries - keys :], phi_k_BGNF, v_BGNE, chunk
        )
        return F.pad(seeing_BGRME, (0, 0, queries - keys, 0))
    v_BGNP = _with_one(v_BGNE)
    seen_by_all = keys - queries
    early_BGFP = phi_k_BGNF[:, :, :seen_by_all].mT @ v_BGNP[:, :, :seen_by_all]
    chunk = min(chunk, queries)
    q_BGnRCF = _cut(phi_q_BGRMF, chunk).transpose(2, 3)
    k_BGnCF = _cut(phi_k_BGNF[:, :, seen_by_all:], chunk)
    v_BGnCP = _cut(v_BGNP[:, :, seen_by_all:], chunk)
    q_BGnrF = q_BGnRCF.flatten(3, 4)  # the rows of all heads that share the keys
    states_BGnFP = k_BGnCF.mT @ v_BGnCP
    # Summed after a shift, not summed and then subtracted: a chunk may outweigh all before it.
    before_BGnFP = torch.cat([early_BGFP[:, :, None], states_BGnFP[:, :, :-1]], dim=2).cumsum(2)
    position_C = torch.arange(chunk, device=v_BGNE.device)
    later_rC = (position_C > position_C[:, None]).repeat(q_BGnRCF.shape[3], 1)
    weights_BGnrC = (q_BGnrF @ k_BGnCF.mT).masked_fill_(later_rC, 0.0)
    sums_BGnrP = q_BGnrF @ before_BGnFP + weights_BGnrC @ v_BGnCP
    sums_BGRnCP = torch.unflatten(sums_BGnrP, 3, q_BGnRCF.shape[3:5]).transpose(2, 3)
    return _normalised(sums_BGRnCP.flatten(3, 4)[:, :, :, :queries])


def _with_one(v_BGNE: torch.Tensor) -> torch.Tensor:
    return F.pad(v_BGNE, (0, 1), value=1.0)


def _cut(x_SF: torch.Tensor, chunk: int) -> torch.Tensor:
    """``(…, S, F)`` as ``(…, n, C, F)``; zeros, which add nothing, fill the last chunk."""
    spare = -x_SF.shape[-2] % chunk
    if spare:
        x_SF = F.pad(x_SF, (0, 0, 0, spare))
    return torch.unflatten(x_SF, -2, (-1, chunk))


def _normalised(sums_P: torch.Tensor) -> torch.Tensor:
    """Values by normalisers. Where a query's features meet none of the keys', zeros."""
    total_1 = sums_P[..., -1:]
    return sums_P[..., :-1] / total_1.masked_fill(total_1 == 0, 1.0)
