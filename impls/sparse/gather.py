"""Exact attention whose work follows the pairs that a mask keeps, in plain PyTorch.

Tile by tile (see ``plan``) the keys that some queries see are taken from the sequence, as
a view where they lie side by side. One tile has all logits of its queries, so that its
softmax is softmax; the backward makes the weights again from each row's largest logit and
the sum of what it makes of the others. Nothing larger than a step and the operands is held.

Letters: X = batch · heads_kv, R = query heads that share a key head, M = seqlen_q,
N = seqlen_k, D = head_dim, E = head_dim_v; m and n are those of one tile, x the products
of one step: one tile of some heads, or some tiles of one head.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from attnbench import Problem, alibi_slopes

from .plan import plan
from .tiles import Part, Tile
from .views import add_keys, keys_of, rows_of, times, transposed_times

Saved = tuple[torch.Tensor, ...]
Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

_LOGITS = 1 << 18  # of one step at most, where heads can be taken in turn: 1 MiB, in a cache


class Found(NamedTuple):
    """Attention to some of the keys; for a query that sees none of them 0, −inf and 0."""

    out_XRME: torch.Tensor
    top_XRM1: torch.Tensor  # the largest logit
    sum_XRM1: torch.Tensor  # of exp(logit − top)


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
        slopes_H = torch.tensor(alibi_slopes(p.heads_q), dtype=self.work, device=device)
        self.slopes_XR11 = slopes_H.reshape(p.heads_kv, -1, 1, 1).repeat(p.batch, 1, 1, 1)
        self.q_pos_M = torch.arange(p.seqlen_q, device=device) + (p.seqlen_k - p.seqlen_q)
        self.k_pos_N = torch.arange(p.seqlen_k, device=device)

    @property
    def pairs(self) -> int:
        """(query, key) pairs that one head computes; the mask keeps some fewer."""
        return sum(part.pairs for part in self.parts)

    def forward(
        self, q_BHMD: torch.Tensor, k_BGND: torch.Tensor, v_BGNE: torch.Tensor
    ) -> tuple[torch.Tensor, Saved]:
        """The output, and what the backward begins with."""
        q_XRMD, k_XND, v_XNE = self._operands(q_BHMD, k_BGND, v_BGNE)
        first, *others = (self._forward_part(part, q_XRMD, k_XND, v_XNE) for part in self.parts)
        for other in others:
            first = _merged(first, other)
        out_BHME = first.out_XRME.reshape(*q_BHMD.shape[:-1], -1).to(q_BHMD.dtype)
        return out_BHME, (q_BHMD, k_BGND, v_BGNE, out_BHME, first.top_XRM1, first.sum_XRM1)

    def backward(self, saved: Saved, grad_BHME: torch.Tensor) -> Gradients:
        """The gradients of q, k and v."""
        q_BHMD, k_BGND, v_BGNE, out_BHME, top_XRM1, sum_XRM1 = saved
        q_XRMD, k_XND, v_XNE = self._operands(q_BHMD, k_BGND, v_BGNE)
        grad_XRME, out_XRME = (
            x.reshape(*q_XRMD.shape[:-1], -1).to(self.work) for x in (grad_BHME, out_BHME)
        )
        # The sum divides what has no key dimension, not the weights.
        grad_XRME = grad_XRME / sum_XRM1.masked_fill(sum_XRM1 == 0, 1.0)
        delta_XRM1 = (grad_XRME * out_XRME).sum(dim=-1, keepdim=True)
        top_XRM1 = top_XRM1.masked_fill(top_XRM1 == float("-inf"), 0.0)
        totals = [torch.zeros_like(x) for x in (q_XRMD, k_XND, v_XNE)]
        for part in self.parts:
            rows = (q_XRMD, grad_XRME, top_XRM1, delta_XRM1)
            if part.order is None:
                self._backward_part(part, rows, (k_XND, v_XNE), totals)
                continue
            own_rows = tuple(x.index_select(2, part.order[0]) for x in rows)
            own_keys = tuple(x.index_select(1, part.order[1]) for x in (k_XND, v_XNE))
            own = [torch.zeros_like(x) for x in (own_rows[0], *own_keys)]
            self._backward_part(part, own_rows, own_keys, own)
            totals[0].index_add_(2, part.order[0], own[0])
            for total, x in zip(totals[1:], own[1:], strict=True):
                total.index_add_(1, part.order[1], x)
        dq, dk, dv = (
            total.reshape(x.shape).to(x.dtype)
            for total, x in zip(totals, (q_BHMD, k_BGND, v_BGNE), strict=True)
        )
        return dq, dk, dv

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
        self, part: Part, q_XRMD: torch.Tensor, k_XND: torch.Tensor, v_XNE: torch.Tensor
    ) -> Found:
        """The attention of every query under one part of the mask."""
        needs_sums = self.problem.direction != "forward" or len(self.parts) > 1
        if part.order is not None:
            q_XRMD = q_XRMD.index_select(2, part.order[0])
            k_XND, v_XNE = (x.index_select(1, part.order[1]) for x in (k_XND, v_XNE))
        out_XRME = q_XRMD.new_zeros(*q_XRMD.shape[:-1], v_XNE.shape[-1])
        top_XRM1 = q_XRMD.new_full((*q_XRMD.shape[:-1], 1), float("-inf"))
        sum_XRM1 = torch.zeros_like(top_XRM1)
        for tile, heads in self._steps(part):
            logits_xRmn, _ = self._logits(part, tile, heads, q_XRMD, k_XND)
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

    def _steps(self, part: Part) -> Iterator[tuple[Tile, slice]]:
        """One tile for some heads, or some tiles for one head, as much as fits into a step."""
        p = self.problem
        total, group = p.batch * p.heads_kv, p.heads_q // p.heads_kv
        for tile in part.tiles:
            fit = max(1, _LOGITS // (group * tile.height * tile.count))
            heads = min(total, fit)
            along = total * -(-tile.repeats // fit) < tile.repeats * -(-total // heads)
            heads, tiles = (1, min(tile.repeats, fit)) if along else (heads, 1)
            for first in range(0, tile.repeats, tiles):
                some = tile.some(first, min(tiles, tile.repeats - first))
                for start in range(0, total, heads):
                    yield some, slice(start, start + heads)

    def _logits(
        self, part: Part, tile: Tile, heads: slice, q_XRMD: torch.Tensor, k_XND: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Masked logits of one tile, and the softcap's slope there."""
        p = self.problem
        q_xRmD = rows_of(q_XRMD, tile, heads) * p.softmax_scale
        logits_xRmn = times(q_xRmD, keys_of(k_XND, tile, heads).mT)
        slope_xRmn = None
        if p.softcap is not None:
            tanh_xRmn = torch.tanh(logits_xRmn / p.softcap)
            logits_xRmn, slope_xRmn = tanh_xRmn * p.softcap, 1 - tanh_xRmn.square()
        if p.alibi:
            q_pos_M, k_pos_N = self.q_pos_M, self.k_pos_N
            if part.order is not None:
                q_pos_M, k_pos_N = q_pos_M[part.order[0]], k_pos_N[part.order[1]]
            distance_mn = (q_pos_M[tile.rows, None] - k_pos_N[tile.keys]).abs()
            logits_xRmn = logits_xRmn - self.slopes_XR11[heads] * distance_mn
        for hidden in tile.hidden:
            logits_xRmn[..., hidden.keys].masked_fill_(hidden.pairs_mn, float("-inf"))
        return logits_xRmn, slope_xRmn

    # ---- backward --------------------------------------------------------------------

    def _backward_part(
        self,
        part: Part,
        rows: tuple[torch.Tensor, ...],
        keys: tuple[torch.Tensor, ...],
        totals: list[torch.Tensor],
    ) -> None:
        """Add the gradients of one part, in its order, to ``totals`` (dq, dk, dv).

        Args:
            rows: q; grad_out over the sum; the largest logit (finite); and
                rowsum(grad_out ∘ out) over the sum.
            keys: k and v.
        """
        (q_XRMD, grad_XRME, top_XRM1, delta_XRM1), (k_XND, v_XNE) = rows, keys
        dq_XRMD, dk_XND, dv_XNE = totals
        scale = self.problem.softmax_scale
        for tile, heads in self._steps(part):
            logits_xRmn, slope_xRmn = self._logits(part, tile, heads, q_XRMD, k_XND)
            weights_xRmn = logits_xRmn.sub_(rows_of(top_XRM1, tile, heads)).exp_()
            grad_xRmE = rows_of(grad_XRME, tile, heads)
            add_keys(dv_XNE, tile, heads, transposed_times(weights_xRmn, grad_xRmE))
            dlogits_xRmn = times(grad_xRmE, keys_of(v_XNE, tile, heads).mT)
            dlogits_xRmn.sub_(rows_of(delta_XRM1, tile, heads)).mul_(weights_xRmn)
            if slope_xRmn is not None:
                dlogits_xRmn.mul_(slope_xRmn)
            dq_xRmD = times(dlogits_xRmn, keys_of(k_XND, tile, heads))
            rows_of(dq_XRMD, tile, heads).add_(dq_xRmD, alpha=scale)
            q_xRmD = rows_of(q_XRMD, tile, heads) * scale
            add_keys(dk_XND, tile, heads, transposed_times(dlogits_xRmn, q_xRmD))


def _merged(one: Found, other: Found) -> Found:
    """One softmax over the keys of both."""
    top_XRM1 = torch.maximum(one.top_XRM1, other.top_XRM1)
    shift_XRM1 = top_XRM1.masked_fill(top_XRM1 == float("-inf"), 0.0)  # neither sees anything
    sums = [(x.top_XRM1 - shift_XRM1).exp() * x.sum_XRM1 for x in (one, other)]
    sum_XRM1 = sums[0] + sums[1]
    out_XRME = one.out_XRME * sums[0] + other.out_XRME * sums[1]
    return Found(out_XRME / sum_XRM1.masked_fill(sum_XRM1 == 0, 1.0), top_XRM1, sum_XRM1)
