"""``blockwise``: FlashAttention's algorithm in plain PyTorch, with a backward of its own.

One block of queries meets one block of keys at a time; a running maximum and sum make the
softmax exact without ever holding a whole row. The backward makes the weights again from
the log-sum-exp. Blocks that the mask rules out are not visited. Slow beside a fused
kernel, but it is the method, in the open: a template for an implementation that brings
its own backward (``ForwardBackward``).

Letters: B = batch, G = heads_kv, R = query heads that share a key head, M = seqlen_q,
N = seqlen_k, D = head_dim, E = head_dim_v; m and n are those of one block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from attnbench import Attention, ForwardBackward, Problem, Unsupported, alibi_slopes, register

Saved = tuple[torch.Tensor, ...]
Gradients = tuple[torch.Tensor, ...]


@register("blockwise")
class Blockwise(Attention):
    """FlashAttention-2's online softmax and backward in plain PyTorch, block by block."""

    features = Attention.features | {"alibi", "bias", "softcap"}
    dtypes = ("float64", "float32", "bfloat16", "float16")
    options = {"block": 128}
    version = torch.__version__
    source = "Dao 2023, FlashAttention-2, arXiv 2307.08691, algorithms 1 and 2"

    def supports(self, problem: Problem, device: torch.device) -> None:
        super().supports(problem, device)
        if int(self.options["block"]) < 1:
            raise Unsupported(f"option block must be positive, not {self.options['block']}")

    def build(self, problem: Problem, device: torch.device) -> ForwardBackward:
        blocks = Blocks(problem, device, int(self.options["block"]))
        return ForwardBackward(blocks.forward, blocks.backward)


class Visit(NamedTuple):
    """One block of queries that meets one block of keys."""

    rows: slice
    keys: slice
    hidden_mn: torch.Tensor | None  # True = may not attend; None = all may


class Blocks:
    """One problem, cut into blocks."""

    def __init__(self, problem: Problem, device: torch.device, block: int) -> None:
        self.problem = problem
        self.work = torch.promote_types(problem.torch_dtype, torch.float32)
        self.visits = list(_visits(problem, device, block))
        slopes_H = torch.tensor(alibi_slopes(problem.heads_q), dtype=self.work, device=device)
        self.slopes_GR11 = slopes_H.reshape(problem.heads_kv, -1, 1, 1)
        self.k_pos_N = torch.arange(problem.seqlen_k, device=device)
        offset = problem.seqlen_k - problem.seqlen_q
        self.q_pos_M1 = torch.arange(problem.seqlen_q, device=device)[:, None] + offset

    def forward(
        self,
        q_BHMD: torch.Tensor,
        k_BGND: torch.Tensor,
        v_BGNE: torch.Tensor,
        *learned_HMN: torch.Tensor,
    ) -> tuple[torch.Tensor, Saved]:
        """The output, and what the backward begins with; at most one learned bias."""
        q_BGRMD, k_BG1ND, v_BG1NE = self._grouped(q_BHMD), k_BGND[:, :, None], v_BGNE[:, :, None]
        bias_GRMN = self._bias(learned_HMN)
        acc_BGRME = q_BGRMD.new_zeros(*q_BGRMD.shape[:-1], v_BGNE.shape[-1], dtype=self.work)
        top_BGRM1 = acc_BGRME.new_full((*q_BGRMD.shape[:-1], 1), float("-inf"))
        sum_BGRM1 = torch.zeros_like(top_BGRM1)
        for visit in self.visits:
            logits_BGRmn, _ = self._logits(visit, q_BGRMD, k_BG1ND, bias_GRMN)
            old, acc, total = (x[..., visit.rows, :] for x in (top_BGRM1, acc_BGRME, sum_BGRM1))
            new = torch.maximum(old, logits_BGRmn.amax(dim=-1, keepdim=True))
            shift = new.masked_fill(new == float("-inf"), 0.0)  # no key seen yet
            weights_BGRmn = torch.exp(logits_BGRmn - shift)
            keep = torch.exp(old - shift)
            total.mul_(keep).add_(weights_BGRmn.sum(dim=-1, keepdim=True))
            acc.mul_(keep).add_(weights_BGRmn @ v_BG1NE[..., visit.keys, :].to(self.work))
            old.copy_(new)
        acc_BGRME.div_(sum_BGRM1.masked_fill(sum_BGRM1 == 0, 1.0))
        lse_BGRM1 = (top_BGRM1 + sum_BGRM1.log()).masked_fill(sum_BGRM1 == 0, 0.0)
        out_BHME = acc_BGRME.flatten(1, 2).to(q_BHMD.dtype)
        return out_BHME, (q_BHMD, k_BGND, v_BGNE, out_BHME, lse_BGRM1, *learned_HMN)

    def backward(self, saved: Saved, grad_BHME: torch.Tensor) -> Gradients:
        """The gradients of q, k and v, and of the bias if there was one."""
        q_BHMD, k_BGND, v_BGNE, out_BHME, lse_BGRM1, *learned_HMN = saved
        bias_GRMN = self._bias(learned_HMN)
        dbias_GRMN = None if bias_GRMN is None else torch.zeros_like(bias_GRMN)
        q_BGRMD, k_BG1ND, v_BG1NE = self._grouped(q_BHMD), k_BGND[:, :, None], v_BGNE[:, :, None]
        grad_BGRME = self._grouped(grad_BHME).to(self.work)
        delta_BGRM1 = (grad_BGRME * self._grouped(out_BHME)).sum(dim=-1, keepdim=True)
        dq_BGRMD, dk_BGND, dv_BGNE = (
            torch.zeros(x.shape, dtype=self.work, device=x.device)
            for x in (q_BGRMD, k_BGND, v_BGNE)
        )
        for visit in self.visits:
            rows, keys = visit.rows, visit.keys
            q, k, v = (
                x[..., part, :].to(self.work)
                for x, part in ((q_BGRMD, rows), (k_BG1ND, keys), (v_BG1NE, keys))
            )
            grad = grad_BGRME[..., rows, :]
            logits_BGRmn, slope_BGRmn = self._logits(visit, q_BGRMD, k_BG1ND, bias_GRMN)
            weights_BGRmn = torch.exp(logits_BGRmn - lse_BGRM1[..., rows, :])
            dlogits_BGRmn = weights_BGRmn * (grad @ v.mT - delta_BGRM1[..., rows, :])
            if dbias_GRMN is not None:
                dbias_GRMN[..., rows, keys] += dlogits_BGRmn.sum(dim=0)
            dlogits_BGRmn = dlogits_BGRmn * slope_BGRmn * self.problem.softmax_scale
            dq_BGRMD[..., rows, :] += dlogits_BGRmn @ k
            dk_BGND[..., keys, :] += (dlogits_BGRmn.mT @ q).sum(dim=2)
            dv_BGNE[..., keys, :] += (weights_BGRmn.mT @ grad).sum(dim=2)
        dtype = q_BHMD.dtype
        gradients = (dq_BGRMD.flatten(1, 2).to(dtype), dk_BGND.to(dtype), dv_BGNE.to(dtype))
        if dbias_GRMN is None:
            return gradients
        return *gradients, dbias_GRMN.flatten(0, 1).to(dtype)

    def _bias(self, learned_HMN: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """The learned bias by key head, in the working precision; None if there is none."""
        if not learned_HMN:
            return None
        bias_HMN = learned_HMN[0].to(self.work)
        return torch.unflatten(bias_HMN, 0, (self.problem.heads_kv, -1))

    def _logits(
        self,
        visit: Visit,
        q_BGRMD: torch.Tensor,
        k_BG1ND: torch.Tensor,
        bias_GRMN: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Logits of one block, and the softcap's slope there."""
        q, k = q_BGRMD[..., visit.rows, :].to(self.work), k_BG1ND[..., visit.keys, :].to(self.work)
        logits_BGRmn = q @ k.mT * self.problem.softmax_scale
        slope: torch.Tensor | float = 1.0
        if self.problem.softcap is not None:
            tanh_BGRmn = torch.tanh(logits_BGRmn / self.problem.softcap)
            logits_BGRmn, slope = tanh_BGRmn * self.problem.softcap, 1 - tanh_BGRmn.square()
        if self.problem.alibi:
            distance_mn = (self.q_pos_M1[visit.rows] - self.k_pos_N[visit.keys]).abs()
            logits_BGRmn = logits_BGRmn - self.slopes_GR11 * distance_mn
        if bias_GRMN is not None:
            logits_BGRmn = logits_BGRmn + bias_GRMN[..., visit.rows, visit.keys]
        if visit.hidden_mn is not None:
            logits_BGRmn = logits_BGRmn.masked_fill(visit.hidden_mn, float("-inf"))
        return logits_BGRmn, slope

    def _grouped(self, x_BHMD: torch.Tensor) -> torch.Tensor:
        return x_BHMD.reshape(x_BHMD.shape[0], self.problem.heads_kv, -1, *x_BHMD.shape[2:])


def _visits(p: Problem, device: torch.device, block: int) -> Iterator[Visit]:
    """The blocks that the mask lets meet, with what is hidden inside each."""
    plan = p.mask.blocks(p.seqlen_q, p.seqlen_k, block, block)
    allows = p.mask.mask_mod(p.seqlen_q, p.seqlen_k, device)
    q_index_M, k_index_N = (torch.arange(n, device=device) for n in (p.seqlen_q, p.seqlen_k))
    for row, count in enumerate(plan.counts):
        rows = slice(row * block, (row + 1) * block)
        for column, is_full in zip(plan.indices[row, :count], plan.full[row, :count], strict=True):
            keys = slice(column * block, (column + 1) * block)
            hidden_mn = None
            if not is_full:
                hidden_mn = ~allows(0, 0, q_index_M[rows, None], k_index_N[None, keys])
            yield Visit(rows, keys, hidden_mn)
