"""What attention becomes when its weights are products of features: sums over the keys.

``out_i = φ(q_i)·Σ_j φ(k_j) v_jᵀ / φ(q_i)·Σ_j φ(k_j)``: the sums do not depend on the query, so
that nothing of size seqlen² exists. Causal, each query has sums of its own. They are made by
chunks: what earlier chunks add up to, and the products inside a chunk, all of them matrix
products; a chunk costs its square, and a state of F × E stands for everything before it.

Letters: B = batch, G = heads_kv, R = query heads that share a key head, M = seqlen_q,
N = seqlen_k, F = features, E = head_dim_v, P = E + 1: the values and a 1, whose sum is the
normaliser; n = chunks, C = their length.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def attend(
    phi_q_BGRMF: torch.Tensor, phi_k_BGNF: torch.Tensor, v_BGNE: torch.Tensor
) -> torch.Tensor:
    """Every query sees every key; ``(B, G, R, M, E)``."""
    state_BGFP = phi_k_BGNF.mT @ _with_one(v_BGNE)
    sums_BGrP = phi_q_BGRMF.flatten(2, 3) @ state_BGFP
    return _normalised(torch.unflatten(sums_BGrP, 2, phi_q_BGRMF.shape[2:4]))


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
