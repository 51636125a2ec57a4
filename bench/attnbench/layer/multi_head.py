"""Multi-head attention as the textbooks draw it, around anybody's attention.

Hidden states are projected to queries, keys and values (Wq, Wk, Wv), each head attends, and
Wo mixes the heads again (Vaswani et al. 2017, arXiv 1706.03762, §3.2.2), with GQA where
there are fewer key heads, and one of six ways to tell where a token stands. There are no
biases in the projections, as in T5 and Llama. Dropout is the attention's own.

Letters: B = batch, M = seqlen_q, N = seqlen_k, S = either of them, T = tokens that are no
padding, C = d_model, H = heads, D = head_dim, P = D / 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from attnbench.layer.core import Core
from attnbench.layer.inputs import real_tokens
from attnbench.layer.positions import (
    LearnedPositions,
    RelativeBias,
    query_positions,
    rotary_tables,
    rotate,
    sinusoidal,
)
from attnbench.problem import Problem


class MultiHeadAttention(nn.Module):
    """One layer: parameters ``wq``, ``wk``, ``wv``, ``wo`` and, where learned, ``position``.

    Args:
        problem: of level ``layer``.
        core: attends, on the problem's ``core``; with a relative bias it takes that too.
        device: of parameters and tables, which have the problem's dtype.

    With padding, the tokens that are none are packed into one sequence before the
    projections and put back into their places after Wo, between zeros.
    """

    def __init__(self, problem: Problem, core: Core, device: torch.device) -> None:
        super().__init__()
        self.problem = p = problem
        self.attend = core
        self.wq = nn.Linear(p.d_model, p.heads_q * p.head_dim, bias=False)
        self.wk = nn.Linear(p.d_model, p.heads_kv * p.head_dim, bias=False)
        self.wv = nn.Linear(p.d_model, p.heads_kv * p.head_dim_v, bias=False)
        self.wo = nn.Linear(p.heads_q * p.head_dim_v, p.d_model, bias=False)
        self.position: LearnedPositions | RelativeBias | None = None
        if p.position == "learned":
            self.position = LearnedPositions(p.seqlen_k, p.d_model)
        elif p.position == "relative":
            self.position = RelativeBias(p.heads_q, causal=p.mask.is_causal)
        self.to(device, p.torch_dtype)
        self._make_tables(device)

    def _make_tables(self, device: torch.device) -> None:
        """What positions alone decide, made once. Packed tokens keep their places' numbers."""
        p = self.problem
        self.token_T: torch.Tensor | None = None  # where in (B, M), flattened
        q_M = query_positions(p.seqlen_q, p.seqlen_k, device)
        k_N = torch.arange(p.seqlen_k, device=device)
        if p.padding:
            self.token_T = real_tokens(p, device).flatten().nonzero().squeeze(-1)
            q_M = k_N = self.token_T % p.seqlen_q
        self.places = (q_M, k_N)
        if p.position == "sinusoidal":
            self.waves = [sinusoidal(x_S, p.d_model, p.torch_dtype) for x_S in self.places]
        elif p.position == "rope":
            tables = [rotary_tables(x_S, p.head_dim, p.torch_dtype) for x_S in self.places]
            self.turns = [(cos_SP[:, None], sin_SP[:, None]) for cos_SP, sin_SP in tables]
        elif isinstance(self.position, RelativeBias):
            self.buckets_MN = self.position.find(q_M, k_N)

    def forward(self, x_BMC: torch.Tensor, memory_BNC: torch.Tensor | None = None) -> torch.Tensor:
        """``(B, M, C)``; keys and values come from ``memory``, or where there is none from x."""
        x_BSC = x_BMC if self.token_T is None else x_BMC.flatten(0, 1)[self.token_T][None]
        queries_BSC = self._placed(x_BSC, 0)
        keys_BSC = queries_BSC if memory_BNC is None else self._placed(memory_BNC, 1)
        p = self.problem
        q_BSHD = self._turned(self.wq(queries_BSC).unflatten(-1, (p.heads_q, -1)), 0)
        k_BSHD = self._turned(self.wk(keys_BSC).unflatten(-1, (p.heads_kv, -1)), 1)
        v_BSHD = self.wv(keys_BSC).unflatten(-1, (p.heads_kv, -1))
        out_BSHD = self.attend(q_BSHD, k_BSHD, v_BSHD, *self._bias())
        y_BSC: torch.Tensor = self.wo(out_BSHD.flatten(2))
        return y_BSC if self.token_T is None else self._unpacked(y_BSC[0], x_BMC.shape)

    def by_name(self, values: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Names for one tensor a parameter (its data or its gradient), in their order."""
        names = ("wq", "wk", "wv", "wo", *["table"] * (self.position is not None))
        return dict(zip(names, values, strict=True))

    def twin(self) -> MultiHeadAttention:
        """The same around the same attention, with parameters of its own."""
        return MultiHeadAttention(self.problem, self.attend, self.wq.weight.device)

    def _placed(self, x_BSC: torch.Tensor, side: int) -> torch.Tensor:
        """Hidden states with what is added to them; side 0 is that of queries, 1 of keys."""
        if self.problem.position == "sinusoidal":
            return x_BSC + self.waves[side]
        if isinstance(self.position, LearnedPositions):
            added_SC: torch.Tensor = self.position(self.places[side])
            return x_BSC + added_SC
        return x_BSC

    def _turned(self, x_BSHD: torch.Tensor, side: int) -> torch.Tensor:
        return rotate(x_BSHD, *self.turns[side]) if self.problem.position == "rope" else x_BSHD

    def _bias(self) -> tuple[torch.Tensor, ...]:
        if not isinstance(self.position, RelativeBias):
            return ()
        return (self.position.looked_up(self.buckets_MN),)

    def _unpacked(self, y_TC: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        nothing_SC = y_TC.new_zeros(shape[0] * shape[1], shape[2])
        return nothing_SC.index_copy(0, self.token_T, y_TC).reshape(shape)  # type: ignore[arg-type]
