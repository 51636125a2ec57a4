"""``mha``: torch.nn.MultiheadAttention, the layer that everybody has.

It is a whole layer, and measured where whole layers are: level ``layer``. Its queries, keys
and values come from one matrix, in one product where the lengths are equal; inside it calls
SDPA, for it is asked for no weights.

Letters: B = batch, M = seqlen_q, N = seqlen_k, C = d_model.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from attnbench import (
    Attention,
    LearnedPositions,
    Problem,
    Unsupported,
    query_positions,
    real_tokens,
    register,
    sinusoidal,
)


@register("mha")
class Mha(Attention):
    """torch.nn.MultiheadAttention, with key_padding_mask where there is padding."""

    level = "layer"
    features = frozenset({"backward", "cross"})
    masks = ("full", "causal")
    dtypes = ("float64", "float32", "bfloat16", "float16")
    version = torch.__version__
    source = "https://docs.pytorch.org/docs/stable/generated/torch.nn.MultiheadAttention.html"

    def supports(self, problem: Problem, device: torch.device) -> None:
        if problem.dropout_p > 0:
            raise Unsupported("dropout cannot be verified: it reveals no dropout mask")
        if problem.position in ("rope", "relative", "alibi"):
            raise Unsupported(
                f"position {problem.position} belongs between its projections and its softmax, "
                "where torch.nn.MultiheadAttention lets nobody in"
            )
        super().supports(problem, device)

    def build(self, problem: Problem, device: torch.device) -> Layer:
        return Layer(problem, device)


class Layer(nn.Module):
    """The module, what is added to its hidden states, and its masks, made once."""

    def __init__(self, problem: Problem, device: torch.device) -> None:
        super().__init__()
        p = problem
        width, dtype = p.d_model, p.torch_dtype
        self.mha = nn.MultiheadAttention(width, p.heads_q, bias=False, batch_first=True)
        self.learned = LearnedPositions(p.seqlen_k, width) if p.position == "learned" else None
        self.to(device, dtype)
        self.places = (
            query_positions(p.seqlen_q, p.seqlen_k, device), torch.arange(p.seqlen_k, device=device)
        )  # fmt: skip
        self.waves: list[torch.Tensor] | None = None
        if p.position == "sinusoidal":
            self.waves = [sinusoidal(x_S, width, dtype) for x_S in self.places]
        self.masks: dict[str, torch.Tensor | bool | None] = {"need_weights": False}
        self.padding_BM1: torch.Tensor | None = None
        if p.padding:
            padding_BM = ~real_tokens(p, device)
            self.masks["key_padding_mask"], self.padding_BM1 = padding_BM, padding_BM[..., None]
        if p.mask.kind == "causal":
            self.masks["attn_mask"] = ~p.mask.dense(p.seqlen_q, p.seqlen_k, device)
            self.masks["is_causal"] = p.seqlen_q == p.seqlen_k  # a hint; its own is top-left

    def forward(self, x_BMC: torch.Tensor, memory_BNC: torch.Tensor | None = None) -> torch.Tensor:
        """``(B, M, C)``, zeros where there is padding."""
        x_BMC = self._placed(x_BMC, 0)
        memory_BNC = x_BMC if memory_BNC is None else self._placed(memory_BNC, 1)
        y_BMC: torch.Tensor = self.mha(x_BMC, memory_BNC, memory_BNC, **self.masks)[0]
        return y_BMC if self.padding_BM1 is None else y_BMC.masked_fill(self.padding_BM1, 0.0)

    def by_name(self, values: Sequence[torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Its parameters, or their gradients, by the names that all layers share."""
        names = ("mha.in_proj_weight", "mha.out_proj.weight", "learned.table_TC")
        of = dict(zip((name for name, _ in self.named_parameters()), values, strict=True))
        in_proj, wo, *table = (of[name] for name in names if name in of)
        wq, wk, wv = in_proj.chunk(3)
        return {
            "wq": wq,
            "wk": wk,
            "wv": wv,
            "wo": wo,
            **dict(zip(("table",), table, strict=False)),
        }

    def twin(self) -> Layer:
        """Another with parameters of its own."""
        return copy.deepcopy(self)

    def _placed(self, x_BSC: torch.Tensor, side: int) -> torch.Tensor:
        """Hidden states with what is added to them; side 0 is that of queries, 1 of keys."""
        if self.waves is not None:
            return x_BSC + self.waves[side]
        if self.learned is not None:
            added_SC: torch.Tensor = self.learned(self.places[side])
            return x_BSC + added_SC
        return x_BSC
