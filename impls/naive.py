"""``naive``: attention as the textbook writes it, every feature, nothing clever.

It fills the whole matrix of weights, in the problem's dtype. It is the baseline that the
others are compared with, and a template for an implementation that autograd differentiates.

Letters: B = batch, H = heads_q, G = heads_kv, M = seqlen_q, N = seqlen_k,
D = head_dim, E = head_dim_v.
"""

from __future__ import annotations

import torch

from attnbench import Attention, Problem, alibi_bias, register


@register("naive")
class Naive(Attention):
    """The textbook: softmax(q kᵀ · scale) v with the whole matrix in memory."""

    features = Attention.features | {"alibi", "bias", "dropout", "softcap"}
    dtypes = ("float64", "float32", "bfloat16", "float16")
    version = torch.__version__
    source = "Vaswani et al. 2017, Attention Is All You Need, arXiv 1706.03762"

    def build(self, problem: Problem, device: torch.device) -> Textbook:
        return Textbook(problem, device)


class Textbook:
    """One problem's textbook attention, with its mask and bias made once."""

    def __init__(self, problem: Problem, device: torch.device) -> None:
        self.problem = problem
        self.hidden_MN: torch.Tensor | None = None  # True = may not attend
        self.empty_M1: torch.Tensor | None = None  # rows that may attend to nothing
        self.bias_HMN: torch.Tensor | None = None
        self.keep_BHMN: torch.Tensor | None = None
        if problem.mask.kind != "full":
            self.hidden_MN = ~problem.mask.dense(problem.seqlen_q, problem.seqlen_k, device)
            empty_M1 = self.hidden_MN.all(dim=-1, keepdim=True)
            self.empty_M1 = empty_M1 if bool(empty_M1.any()) else None
        if problem.alibi:
            self.bias_HMN = alibi_bias(problem, device)

    def __call__(
        self,
        q_BHMD: torch.Tensor,
        k_BGND: torch.Tensor,
        v_BGNE: torch.Tensor,
        given_HMN: torch.Tensor | None = None,
    ) -> torch.Tensor:
        p = self.problem
        group = p.heads_q // p.heads_kv
        k_BHND = k_BGND.repeat_interleave(group, dim=1) if group > 1 else k_BGND
        v_BHNE = v_BGNE.repeat_interleave(group, dim=1) if group > 1 else v_BGNE
        logits_BHMN = q_BHMD @ k_BHND.mT * p.softmax_scale
        if p.softcap is not None:
            logits_BHMN = p.softcap * torch.tanh(logits_BHMN / p.softcap)
        if self.bias_HMN is not None:
            logits_BHMN = logits_BHMN + self.bias_HMN
        if given_HMN is not None:
            logits_BHMN = logits_BHMN + given_HMN
        if self.hidden_MN is not None:
            logits_BHMN = logits_BHMN.masked_fill(self.hidden_MN, float("-inf"))
        weights_BHMN = logits_BHMN.softmax(dim=-1)
        if self.empty_M1 is not None:  # softmax made NaN of a row of −inf; it gives zeros
            weights_BHMN = weights_BHMN.masked_fill(self.empty_M1, 0.0)
        if p.dropout_p > 0:
            weights_BHMN = weights_BHMN * self._draw_keep(weights_BHMN) / (1 - p.dropout_p)
        return weights_BHMN @ v_BHNE

    def keep_mask(self) -> torch.Tensor | None:
        """Which weights the last call's dropout kept: bool ``(B, H, M, N)``."""
        return self.keep_BHMN

    def _draw_keep(self, weights_BHMN: torch.Tensor) -> torch.Tensor:
        keep_BHMN = torch.empty_like(weights_BHMN, dtype=torch.bool)
        self.keep_BHMN = keep_BHMN.bernoulli_(1 - self.problem.dropout_p)
        return self.keep_BHMN
