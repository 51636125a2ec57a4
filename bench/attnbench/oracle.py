"""The truth: attention and its gradients in float64, in pieces that fit in memory.

One computation serves twice. :func:`reference` runs it in float64: the oracle. With every
tensor rounded to the problem's dtype it is :func:`textbook`: what the definition costs in
accuracy when it is computed in that dtype, the yardstick for everybody else's error.
Gradients follow from formulas written out here (Dao 2023, arXiv 2307.08691, §2.2), not
from autograd, so that a few rows at a time are enough: memory is linear in seqlen.

Letters: B = batch, H = heads_q, G = heads_kv, M = seqlen_q, N = seqlen_k, D = head_dim,
E = head_dim_v; X = B·G key heads, R = H / G query heads that share one, m and n = the
rows and keys of the tile at hand.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from attnbench.alibi import alibi_slopes
from attnbench.inputs import Inputs
from attnbench.problem import Problem

_TILE_ELEMENTS = 1 << 22  # logits held at once; about six matrices of this size live together


@dataclass(frozen=True)
class Reference:
    """Output, log-sum-exp and gradients; the gradients are None if not asked for.

    ``gathered_BGN`` is the 2-norm of the weights that a key gets from all queries: what noise
    of single rows adds up to in its dk. The LSE is that of the logits after softcap and
    ALiBi, and −inf in a row that sees no key; such a row has zeros in ``out`` and ``dq``.
    """

    out_BHME: torch.Tensor
    lse_BHM: torch.Tensor
    dq_BHMD: torch.Tensor | None = None
    dk_BGND: torch.Tensor | None = None
    dv_BGNE: torch.Tensor | None = None
    gathered_BGN: torch.Tensor | None = None
    dbias_HMN: torch.Tensor | None = None  # where there is a bias

    def tensors(self) -> dict[str, torch.Tensor]:
        """What an implementation has to answer, by the names used in records."""
        named = {"out": self.out_BHME, "dq": self.dq_BHMD, "dk": self.dk_BGND, "dv": self.dv_BGNE}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


def reference(
    problem: Problem,
    inputs: Inputs,
    *,
    gradients: bool,
    keep_BHMN: torch.Tensor | None = None,
    bias_HMN: torch.Tensor | None = None,
) -> Reference:
    """Attention in float64, on the device of the inputs.

    Args:
        problem: what to solve; its ``level`` must be ``op``.
        inputs: of the problem's shapes, any strides.
        gradients: also compute dq, dk, dv for ``inputs.grad_out_BHME``.
        keep_BHMN: bool, the weights that dropout kept; needed when dropout_p > 0.
        bias_HMN: added to the logits; needed when the problem has a bias.

    Returns:
        Everything in float64. A NaN in the inputs reaches at least every row that sees it.

    Raises:
        ValueError: a keep mask or a bias is missing, superfluous or of the wrong shape; level
            ``layer``.
    """
    arithmetic = _Arithmetic(torch.float64, torch.float64, torch.float64, fused=True)
    return _attend(problem, inputs, arithmetic, gradients, keep_BHMN, bias_HMN)


def textbook(
    problem: Problem,
    inputs: Inputs,
    *,
    gradients: bool,
    keep_BHMN: torch.Tensor | None = None,
    bias_HMN: torch.Tensor | None = None,
    fused: bool = False,
) -> Reference:
    """The definition computed in the problem's dtype, as FlashAttention's tests do.

    Their ``out_pt`` (``attention_ref`` with ``upcast=False``) writes every intermediate in
    the inputs' dtype: logits, softcapped and biased logits, weights, output; matrix
    products and the softmax accumulate in float32, as the hardware does. The same here,
    rounding after each step. Its backward is what autograd does with that, or, ``fused``,
    what a kernel does that keeps no weights: gradients of the weights stay in float32, and
    ``rowsum(P ∘ dP)`` is taken as ``rowsum(grad_out ∘ out)`` from the rounded output.
    8-bit inputs are computed in bfloat16: 8 bits hold no logits.

    Arguments and errors as for :func:`reference`. Returns float32 (float64 for a float64
    problem) that holds values of the problem's dtype.
    """
    dtype = problem.torch_dtype
    store = torch.bfloat16 if dtype.itemsize == 1 else dtype
    work = torch.float64 if dtype == torch.float64 else torch.float32
    with _without_tf32():
        arithmetic = _Arithmetic(work, store, dtype, fused)
        return _attend(problem, inputs, arithmetic, gradients, keep_BHMN, bias_HMN)


def softmax_weights(problem: Problem, inputs: Inputs, rows_m: torch.Tensor) -> torch.Tensor:
    """The attention weights of some rows of the first batch entry, before any dropout.

    Args:
        problem: its ``level`` must be ``op``.
        inputs: of the problem's shapes, any strides.
        rows_m: int64, which query rows.

    Returns:
        float64 (heads_q, rows, seqlen_k), zeros in a row that sees no key.
    """
    p, device = problem, inputs.q_BHMD.device
    if p.level != "op":
        raise ValueError(f"the oracle solves level 'op', not {p.level!r}")
    rows_m = rows_m.to(device)
    group = p.heads_q // p.heads_kv
    q_XRmD = inputs.q_BHMD[0, :, rows_m].double().reshape(p.heads_kv, group, len(rows_m), -1)
    allows = p.mask.predicate(
        p.seqlen_q, p.seqlen_k, lambda table: torch.as_tensor(table, device=device)
    )
    q_pos_m = rows_m + (p.seqlen_k - p.seqlen_q)
    k_pos_N = torch.arange(p.seqlen_k, device=device)
    bias_XRmn = None
    if p.alibi:
        slopes_H = torch.tensor(alibi_slopes(p.heads_q), dtype=torch.float64, device=device)
        away_mN = (q_pos_m[:, None] - k_pos_N).abs()
        bias_XRmn = -slopes_H.reshape(p.heads_kv, group, 1, 1) * away_mN
    hidden_mN = ~allows(q_pos_m[:, None], k_pos_N[None, :])
    everything = slice(None)
    key_heads = torch.arange(p.heads_kv, device=device)
    tile = _Tile(everything, everything, everything, hidden_mN, bias_XRmn, key_heads)
    exact = _Arithmetic(torch.float64, torch.float64, torch.float64, fused=True)
    w = _weights(p, exact, tile, q_XRmD, inputs.k_BGND[0].double(), None)
    return w.weights_XRmn.reshape(p.heads_q, len(rows_m), p.seqlen_k)


@dataclass(frozen=True)
class _Arithmetic:
    """Which precision products are accumulated in, and what is written to memory."""

    work: torch.dtype
    store: torch.dtype
    result: torch.dtype
    fused: bool

    def stored(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` as it would be read back from memory."""
        return x if self.store == self.work else x.to(self.store).to(self.work)

    def returned(self, x: torch.Tensor) -> torch.Tensor:
        """A result as the caller would see it."""
        return x if self.result == self.work else x.to(self.result).to(self.work)


class _Tile(NamedTuple):
    """Some rows of some heads, with all the keys that these rows can see."""

    rows: slice
    heads: slice  # of the X key heads
    keys: slice
    hidden_mn: torch.Tensor | None  # True = may not attend; None = all may
    bias_XRmn: torch.Tensor | None  # ALiBi's, or one that was given
    key_heads_x: torch.Tensor  # of the G, which these heads are


class _Weights(NamedTuple):
    """The softmax of one tile, and what its derivative needs."""

    weights_XRmn: torch.Tensor  # before dropout
    dropped_XRmn: torch.Tensor  # after dropout; the same tensor where there is none
    lse_XRm: torch.Tensor
    tanh_XRmn: torch.Tensor | None  # of softcap
    kept_XRmn: torch.Tensor | None  # dropout's factor: 0 or 1 / (1 − p)


def _attend(
    problem: Problem,
    inputs: Inputs,
    arithmetic: _Arithmetic,
    gradients: bool,
    keep_BHMN: torch.Tensor | None,
    bias_HMN: torch.Tensor | None,
) -> Reference:
    """Both passes, tile by tile. A tile holds whole rows, so one visit does everything."""
    p, a = problem, arithmetic
    _check(p, keep_BHMN, bias_HMN)
    X, R, M, N = p.batch * p.heads_kv, p.heads_q // p.heads_kv, p.seqlen_q, p.seqlen_k
    q_XRMD, grad_XRME = (
        x.detach().reshape(X, R, M, -1) for x in (inputs.q_BHMD, inputs.grad_out_BHME)
    )
    k_XND, v_XNE = (x.detach().reshape(X, N, -1) for x in (inputs.k_BGND, inputs.v_BGNE))
    keep_XRMN = None if keep_BHMN is None else keep_BHMN.reshape(X, R, M, N)
    bias_GRMN = None if bias_HMN is None else bias_HMN.detach().reshape(-1, R, M, N)

    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=a.work, device=q_XRMD.device)

    out_XRME, lse_XRM = zeros(X, R, M, p.head_dim_v), zeros(X, R, M)
    dq_XRMD = zeros(*q_XRMD.shape) if gradients else None
    dk_XND, dv_XNE, gathered_XN = zeros(*k_XND.shape), zeros(*v_XNE.shape), zeros(X, N)
    dbias_GRMN = None if bias_GRMN is None or not gradients else zeros(*bias_GRMN.shape)

    for t in _tiles(p, X, R, a.work, q_XRMD.device, bias_GRMN):
        tile, heads, keys = (t.heads, slice(None), t.rows), t.heads, t.keys
        q_XRmD, grad_XRmE = q_XRMD[tile].to(a.work), grad_XRME[tile].to(a.work)
        k_XnD, v_XnE = k_XND[heads, keys].to(a.work), v_XNE[heads, keys].to(a.work)
        keep_XRmn = None if keep_XRMN is None else keep_XRMN[tile][..., keys]
        w = _weights(p, a, t, q_XRmD, k_XnD, keep_XRmn)
        out_XRmE = a.returned(a.stored(_matmul(w.dropped_XRmn, v_XnE)))
        out_XRME[tile], lse_XRM[tile] = out_XRmE, w.lse_XRm
        if dq_XRMD is not None:
            dv_XNE[heads, keys] += _matmul_over_rows(w.dropped_XRmn, grad_XRmE)
            dbiased_XRmn = _grad_biased(a, w, out_XRmE, grad_XRmE, v_XnE)
            if dbias_GRMN is not None:
                dbias_GRMN[:, :, t.rows, keys].index_add_(0, t.key_heads_x, dbiased_XRmn)
            dlogits_XRmn = _grad_logits(a, w, dbiased_XRmn)
            gathered_XN[heads, keys] += w.weights_XRmn.square().sum(dim=(1, 2))
            dq_XRMD[tile] = _matmul(dlogits_XRmn, k_XnD)
            dk_XND[heads, keys] += _matmul_over_rows(dlogits_XRmn, q_XRmD)

    out_BHME = out_XRME.reshape(p.batch, p.heads_q, M, p.head_dim_v)
    lse_BHM = lse_XRM.reshape(p.batch, p.heads_q, M)
    if dq_XRMD is None:
        return Reference(out_BHME, lse_BHM)
    return Reference(
        out_BHME,
        lse_BHM,
        a.returned(dq_XRMD * p.softmax_scale).reshape(inputs.q_BHMD.shape),
        a.returned(dk_XND * p.softmax_scale).reshape(inputs.k_BGND.shape),
        a.returned(dv_XNE).reshape(inputs.v_BGNE.shape),
        gathered_XN.sqrt_().reshape(p.batch, p.heads_kv, N),
        None if dbias_GRMN is None else a.returned(dbias_GRMN).reshape(-1, M, N),
    )


def _weights(
    p: Problem,
    a: _Arithmetic,
    tile: _Tile,
    q_XRmD: torch.Tensor,
    k_XnD: torch.Tensor,
    keep_XRmn: torch.Tensor | None,
) -> _Weights:
    """The attention weights of a tile, each step written as the definition says."""
    logits_XRmn = a.stored(a.stored(_matmul(q_XRmD, k_XnD.mT)).mul_(p.softmax_scale))
    tanh_XRmn = None
    if p.softcap is not None:
        tanh_XRmn = a.stored(a.stored(logits_XRmn.div_(p.softcap)).tanh_())
        logits_XRmn = a.stored(tanh_XRmn * p.softcap)
    if tile.bias_XRmn is not None:
        logits_XRmn = a.stored(logits_XRmn.add_(a.stored(tile.bias_XRmn)))
    if tile.hidden_mn is not None:
        logits_XRmn.masked_fill_(tile.hidden_mn, float("-inf"))
    top_XRm1 = logits_XRmn.amax(dim=-1, keepdim=True)
    top_XRm1.masked_fill_(top_XRm1 == float("-inf"), 0.0)  # a row that sees no key
    weights_XRmn = logits_XRmn.sub_(top_XRm1).exp_()
    sum_XRm1 = weights_XRmn.sum(dim=-1, keepdim=True)
    lse_XRm = (sum_XRm1.log() + top_XRm1).squeeze(-1)
    weights_XRmn = a.stored(weights_XRmn.div_(sum_XRm1.masked_fill(sum_XRm1 == 0, 1.0)))
    if keep_XRmn is None:
        return _Weights(weights_XRmn, weights_XRmn, lse_XRm, tanh_XRmn, None)
    kept_XRmn = keep_XRmn.to(a.work).div_(1 - p.dropout_p)
    dropped_XRmn = a.stored(weights_XRmn * kept_XRmn)
    return _Weights(weights_XRmn, dropped_XRmn, lse_XRm, tanh_XRmn, kept_XRmn)


def _grad_biased(
    a: _Arithmetic,
    w: _Weights,
    out_XRmE: torch.Tensor,
    grad_XRmE: torch.Tensor,
    v_XnE: torch.Tensor,
) -> torch.Tensor:
    """Gradient of what softmax was taken of: the logits of a tile, capped and biased.

    dS = P ∘ (dP − rowsum(P ∘ dP)), and that sum is rowsum(grad_out ∘ out), with dropout
    too, because ``out`` is made of the dropped weights.
    """
    dweights_XRmn = _matmul(grad_XRmE, v_XnE.mT)
    if w.kept_XRmn is not None:
        dweights_XRmn.mul_(w.kept_XRmn)
    if a.fused:
        delta_XRm1 = (grad_XRmE * out_XRmE).sum(dim=-1, keepdim=True)
    else:
        dweights_XRmn = a.stored(dweights_XRmn)
        delta_XRm1 = (w.weights_XRmn * dweights_XRmn).sum(dim=-1, keepdim=True)
    return dweights_XRmn.sub_(delta_XRm1).mul_(w.weights_XRmn)


def _grad_logits(a: _Arithmetic, w: _Weights, dbiased_XRmn: torch.Tensor) -> torch.Tensor:
    """Gradient of the scaled logits ``q kᵀ · scale``: the softcap's slope is ``1 − tanh²``."""
    if w.tanh_XRmn is not None:
        dbiased_XRmn.mul_(1 - w.tanh_XRmn.square())
    return a.stored(dbiased_XRmn)


def _matmul(x_XRmi: torch.Tensor, y_Xij: torch.Tensor) -> torch.Tensor:
    """``x @ y``, where the R query heads of a group meet the same key head."""
    X, R, m, _ = x_XRmi.shape
    return (x_XRmi.reshape(X, R * m, -1) @ y_Xij).reshape(X, R, m, -1)


def _matmul_over_rows(x_XRmn: torch.Tensor, y_XRmi: torch.Tensor) -> torch.Tensor:
    """``xᵀ @ y``, summed over rows and over the R query heads of a group: ``(X, n, i)``."""
    return x_XRmn.flatten(1, 2).mT @ y_XRmi.flatten(1, 2)


def _tiles(
    p: Problem,
    X: int,
    R: int,
    dtype: torch.dtype,
    device: torch.device,
    bias_GRMN: torch.Tensor | None,
) -> Iterator[_Tile]:
    """Cut the problem up; causal masks cost half, and windows next to nothing.

    The mask is evaluated once for all heads.
    """
    step_m = max(1, min(p.seqlen_q, _TILE_ELEMENTS // (R * p.seqlen_k)))
    step_x = max(1, _TILE_ELEMENTS // (R * step_m * p.seqlen_k))
    allows = p.mask.predicate(
        p.seqlen_q, p.seqlen_k, lambda table: torch.as_tensor(table, device=device)
    )
    q_pos_M = torch.arange(p.seqlen_q, device=device) + (p.seqlen_k - p.seqlen_q)
    k_pos_N = torch.arange(p.seqlen_k, device=device)
    slopes_H = torch.tensor(alibi_slopes(p.heads_q), dtype=dtype, device=device)
    slopes_XR11 = slopes_H.repeat(p.batch).reshape(X, R, 1, 1)
    for first in range(0, p.seqlen_q, step_m):
        rows, keys, hidden_mn = slice(first, first + step_m), slice(None), None
        if p.mask.kind != "full":
            visible_mN = allows(q_pos_M[rows, None], k_pos_N[None, :])
            keys = _span(visible_mN.any(dim=0))
            hidden_mn = ~visible_mN[:, keys]
        distance_mn = (q_pos_M[rows, None] - k_pos_N[keys]).abs().to(dtype)
        for start in range(0, X, step_x):
            heads = slice(start, start + step_x)
            key_heads_x = torch.arange(start, min(start + step_x, X), device=device) % p.heads_kv
            bias_XRmn = -slopes_XR11[heads] * distance_mn if p.alibi else None
            if bias_GRMN is not None:
                given_XRmn = bias_GRMN[:, :, rows, keys][key_heads_x].to(dtype)
                bias_XRmn = given_XRmn if bias_XRmn is None else bias_XRmn + given_XRmn
            yield _Tile(rows, heads, keys, hidden_mn, bias_XRmn, key_heads_x)


def _span(seen_N: torch.Tensor) -> slice:
    """From the first to the last key that is seen; one key where none is."""
    seen = seen_N.nonzero()
    return slice(int(seen[0]), int(seen[-1]) + 1) if len(seen) else slice(0, 1)


def _check(p: Problem, keep_BHMN: torch.Tensor | None, bias_HMN: torch.Tensor | None) -> None:
    shape = (p.batch, p.heads_q, p.seqlen_q, p.seqlen_k)
    if p.level != "op":
        raise ValueError(f"the oracle solves level 'op', not {p.level!r}")
    if (keep_BHMN is not None) != (p.dropout_p > 0):
        raise ValueError("dropout needs a keep mask, and only dropout takes one")
    if keep_BHMN is not None and tuple(keep_BHMN.shape) != shape:
        raise ValueError(f"keep mask has shape {tuple(keep_BHMN.shape)}, expected {shape}")
    if (bias_HMN is not None) != p.bias:
        raise ValueError("a problem with a bias needs one, and no other takes one")
    if bias_HMN is not None and tuple(bias_HMN.shape) != shape[1:]:
        raise ValueError(f"the bias has shape {tuple(bias_HMN.shape)}, expected {shape[1:]}")


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    """float32 products in float32, whatever the process has allowed."""
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(allowed)
