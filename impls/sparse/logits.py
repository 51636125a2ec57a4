"""The masked logits of one step of ``gathered``, with all that a problem adds to them.

Letters: X = batch · heads_kv, G = heads_kv, R = query heads that share a key head,
M = seqlen_q, N = seqlen_k, D = head_dim; x, m and n as in ``views``.
"""

from __future__ import annotations

import torch

from attnbench import Problem, alibi_slopes

from .pairs import add_bias
from .tiles import Part, Tile
from .views import keys_of, rows_of, times


class Logits:
    """How one problem's logits are made.

    Args:
        problem: whose.
        work: the dtype that they are computed in.
        device: where.
    """

    def __init__(self, problem: Problem, work: torch.dtype, device: torch.device) -> None:
        p = self.problem = problem
        slopes_H = torch.tensor(alibi_slopes(p.heads_q), dtype=work, device=device)
        self.slopes_XR11 = slopes_H.reshape(p.heads_kv, -1, 1, 1).repeat(p.batch, 1, 1, 1)
        self.q_pos_M = torch.arange(p.seqlen_q, device=device) + (p.seqlen_k - p.seqlen_q)
        self.k_pos_N = torch.arange(p.seqlen_k, device=device)

    def of(
        self,
        part: Part,
        tile: Tile,
        heads: slice,
        q_XRMD: torch.Tensor,
        k_XND: torch.Tensor,
        bias_GRMN: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits ``(x, R, m, n)``, −inf where hidden, and the softcap's slope there.

        Args:
            q_XRMD, k_XND: in the order of the part.
            bias_GRMN: in that of the sequence.
        """
        p = self.problem
        q_xRmD = rows_of(q_XRMD, tile, heads) * p.softmax_scale
        logits_xRmn = times(q_xRmD, keys_of(k_XND, tile, heads).mT)
        slope_xRmn = None
        if p.softcap is not None:
            tanh_xRmn = torch.tanh(logits_xRmn / p.softcap)
            logits_xRmn, slope_xRmn = tanh_xRmn * p.softcap, 1 - tanh_xRmn.square()
        if p.alibi:
            logits_xRmn = logits_xRmn - self.slopes_XR11[heads] * self._distance(part, tile)
        if bias_GRMN is not None:
            add_bias(logits_xRmn, bias_GRMN, part, tile, heads)
        for hidden in tile.hidden:
            logits_xRmn[..., hidden.keys].masked_fill_(hidden.pairs_mn, float("-inf"))
        return logits_xRmn, slope_xRmn

    def _distance(self, part: Part, tile: Tile) -> torch.Tensor:
        """How far queries and keys are apart: int64 ``(m, n)``, of a band's tiles the same."""
        q_pos_M, k_pos_N = self.q_pos_M, self.k_pos_N
        if part.order is not None:
            q_pos_M, k_pos_N = q_pos_M[part.order[0]], k_pos_N[part.order[1]]
        return (q_pos_M[tile.rows, None] - k_pos_N[tile.keys]).abs()
