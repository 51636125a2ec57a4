"""Exact attention whose work follows the pairs that a mask keeps, in plain PyTorch.

Tile by tile (see ``plan``) the keys that some queries see are taken from the sequence, as
a view where they lie side by side. One tile has all logits of its queries, so that its
softmax is softmax; the backward makes the weights again from each row's largest logit and
the sum of what it makes of the others. Nothing larger than a step, the operands and their
gradients is held; a learned bias is read (see ``pairs``) where pairs are computed.

Letters: X = batch · heads_kv, G = heads_kv, R = query heads that share a key head,
M = seqlen_q, N = seqlen_k, D = head_dim, E = head_dim_v; m and n are those of one tile, x
the products of one step (see ``steps``).
"""

from __future__ import annotations

import torch

from attnbench import Problem

from .found import Found, merged
from .logits import Logits
from .pairs import add_pairs, by_key_head
from .plan import plan
from .steps import steps
from .tiles import Part
from .views import add_keys, keys_of, rows_of, times, transposed_times

Saved = tuple[torch.Tensor, ...]
Gradients = tuple[torch.Tensor, ...]


class Gathered:
    """One problem, planned once.

    Args:
        problem: what to solve.
        device: where.
        block: queries of a tile.
    """

    def __init__(self, problem: Problem, device: torch.device, block: int) -> None:
        p = self.problem = problem
        self.work = torch.promote_types(p.torch_dtype, torch.float32)
        self.parts = plan(p, device, block)
        self.logits = Logits(p, self.work, device)

    @property
    def pairs(self) -> int:
        """(query, key) pairs that one head computes; the mask keeps some fewer."""
        return sum(part.pairs for part in self.parts)

    def forward(
        self,
        q_BHMD: torch.Tensor,
        k_BGND: torch.Tensor,
        v_BGNE: torch.Tensor,
        *learned_HMN: torch.Tensor,
    ) -> tuple[torch.Tensor, Saved]:
        """The output, and what the backward begins with; at most one learned bias."""
        operands = self._operands(q_BHMD, k_BGND, v_BGNE)
        bias = [by_key_head(x, self.problem.heads_kv) for x in learned_HMN]
        first, *others = (self._forward_part(part, *operands, *bias) for part in self.parts)
        for other in others:
            first = merged(first, other)
        out_BHME = first.out_XRME.reshape(*q_BHMD.shape[:-1], -1).to(q_BHMD.dtype)
        saved = (q_BHMD, k_BGND, v_BGNE, out_BHME, first.top_XRM1, first.sum_XRM1)
        return out_BHME, (*saved, *learned_HMN)

    def backward(self, saved: Saved, grad_BHME: torch.Tensor) -> Gradients:
        """The gradients of q, k and v, and of the bias if there was one."""
        q_BHMD, k_BGND, v_BGNE, out_BHME, top_XRM1, sum_XRM1, *learned = saved
        q_XRMD, k_XND, v_XNE = self._operands(q_BHMD, k_BGND, v_BGNE)
        grad_XRME, out_XRME = (
            x.reshape(*q_XRMD.shape[:-1], -1).to(self.work) for x in (grad_BHME, out_BHME)
        )
        sum_XRM1 = sum_XRM1.masked_fill(sum_XRM1 == 0, 1.0)
        top_XRM1 = top_XRM1.masked_fill(top_XRM1 == float("-inf"), 0.0)
        totals = [torch.zeros_like(x) for x in (q_XRMD, k_XND, v_XNE)]
        dbias = [torch.zeros(x.shape, dtype=self.work, device=x.device) for x in learned]
        pairs = [by_key_head(x, self.problem.heads_kv) for x in (*learned, *dbias)]
        for part in self.parts:
            rows = (q_XRMD, grad_XRME, out_XRME, top_XRM1, sum_XRM1)
            if part.order is None:
                self._backward_part(part, rows, (k_XND, v_XNE), pairs, totals)
                continue
            own_rows = tuple(x.index_select(2, part.order[0]) for x in rows)
            own_keys = tuple(x.index_select(1, part.order[1]) for x in (k_XND, v_XNE))
            own = [torch.zeros_like(x) for x in (own_rows[0], *own_keys)]
            self._backward_part(part, own_rows, own_keys, pairs, own)
            totals[0].index_add_(2, part.order[0], own[0])
            for total, x in zip(totals[1:], own[1:], strict=True):
                total.index_add_(1, part.order[1], x)
        return tuple(
            total.reshape(x.shape).to(x.dtype)
            for total, x in zip(totals + dbias, (q_BHMD, k_BGND, v_BGNE, *learned), strict=True)
        )

    def _operands(
        self, q_BHMD: torch.Tensor, k_BGND: torch.Tensor, v_BGNE: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """In the working precision, heads that share keys together."""
        heads = self.problem.batch * self.problem.heads_kv
        q_XRMD = q_BHMD.to(self.work).reshape(heads, -1, *q_BHMD.shape[2:])
        k_XND, v_XNE = (x.to(self.work).reshape(heads, *x.shape[2:]) for x in (k_BGND, v_BGNE))
        return q_XRMD, k_XND, v_XNE

    # ---- forward ---------------------------------------------------------------------

    def _forward_part(
        self,
        part: Part,
        q_XRMD: torch.Tensor,
        k_XND: torch.Tensor,
        v_XNE: torch.Tensor,
        bias_GRMN: torch.Tensor | None = None,
    ) -> Found:
        """The attention of every query under one part of the mask."""
        needs_sums = self.problem.direction != "forward" or len(self.parts) > 1
        if part.order is not None:
            q_XRMD = q_XRMD.index_select(2, part.order[0])
            k_XND, v_XNE = (x.index_select(1, part.order[1]) for x in (k_XND, v_XNE))
        out_XRME = q_XRMD.new_zeros(*q_XRMD.shape[:-1], v_XNE.shape[-1])
        top_XRM1 = q_XRMD.new_full((*q_XRMD.shape[:-1], 1), float("-inf"))
        sum_XRM1 = torch.zeros_like(top_XRM1)
        for tile, heads in steps(part, self.problem):
            logits_xRmn, _ = self.logits.of(part, tile, heads, q_XRMD, k_XND, bias_GRMN)
            weights_xRmn = logits_xRmn.softmax(dim=-1)
            if tile.has_blind or needs_sums:
                top_xRm1 = logits_xRmn.amax(dim=-1, keepdim=True)
                rows_of(top_XRM1, tile, heads).copy_(top_xRm1)
                sum_xRm1 = 1 / weights_xRmn.amax(dim=-1, keepdim=True)
                if tile.has_blind:  # softmax made NaN of a row of −inf
                    blind_xRm1 = top_xRm1 == float("-inf")
                    weights_xRmn.masked_fill_(blind_xRm1, 0.0)
                    sum_xRm1.masked_fill_(blind_xRm1, 0.0)
                rows_of(sum_XRM1, tile, heads).copy_(sum_xRm1)
            out_xRmE = times(weights_xRmn, keys_of(v_XNE, tile, heads))
            rows_of(out_XRME, tile, heads).copy_(out_xRmE)
        found = Found(out_XRME, top_XRM1, sum_XRM1)
        if part.order is None:
            return found
        back_M = part.order[0].argsort()
        return Found(*(x.index_select(2, back_M) for x in found))

    # ---- backward --------------------------------------------------------------------

    def _backward_part(
        self,
        part: Part,
        rows: tuple[torch.Tensor, ...],
        keys: tuple[torch.Tensor, ...],
        pairs: list[torch.Tensor],
        totals: list[torch.Tensor],
    ) -> None:
        """Add the gradients of one part, in its order, to ``totals`` (dq, dk, dv).

        Args:
            rows: q; grad_out; out; the largest logit (finite); and the sum (not 0).
            keys: k and v.
            pairs: in no order but the sequence's, the bias and its gradient, to be added to
                as well; or nothing.
        """
        (q_XRMD, grad_XRME, out_XRME, top_XRM1, sum_XRM1), (k_XND, v_XNE) = rows, keys
        bias_GRMN, dbias_GRMN = pairs or (None, None)
        dq_XRMD, dk_XND, dv_XNE = totals
        scale = self.problem.softmax_scale
        for tile, heads in steps(part, self.problem):
            logits_xRmn, slope_xRmn = self.logits.of(part, tile, heads, q_XRMD, k_XND, bias_GRMN)
            weights_xRmn = logits_xRmn.sub_(rows_of(top_XRM1, tile, heads)).exp_()
            # The sum divides what has no key dimension, not the weights.
            grad_xRmE = rows_of(grad_XRME, tile, heads) / rows_of(sum_XRM1, tile, heads)
            delta_xRm1 = (grad_xRmE * rows_of(out_XRME, tile, heads)).sum(dim=-1, keepdim=True)
            add_keys(dv_XNE, tile, heads, transposed_times(weights_xRmn, grad_xRmE))
            dlogits_xRmn = times(grad_xRmE, keys_of(v_XNE, tile, heads).mT)
            dlogits_xRmn.sub_(delta_xRm1).mul_(weights_xRmn)
            if dbias_GRMN is not None:
                add_pairs(dbias_GRMN, part, tile, heads, dlogits_xRmn)
            if slope_xRmn is not None:
                dlogits_xRmn.mul_(slope_xRmn)
            dq_xRmD = times(dlogits_xRmn, keys_of(k_XND, tile, heads))
            rows_of(dq_XRMD, tile, heads).add_(dq_xRmD, alpha=scale)
            q_xRmD = rows_of(q_XRMD, tile, heads) * scale
            add_keys(dk_XND, tile, heads, transposed_times(dlogits_xRmn, q_xRmD))
