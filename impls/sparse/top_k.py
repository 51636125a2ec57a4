"""``top-k``: each query uses the k keys with the largest logits, and no others.

The logits of all visible keys have to be known before the largest can be kept: that much
is dense work, done some rows at a time. What follows the kept pairs is the softmax, the
product with the values, and the whole backward. Which keys are kept is a choice, through
which no gradient flows.

Letters: X = batch · heads_kv, R = query heads that share a key head, M = seqlen_q,
N = seqlen_k, D = head_dim, E = head_dim_v, K = keys kept; r = some rows of R · M.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from attnbench import Attention, ForwardBackward, Problem, Unsupported, register

Saved = tuple[torch.Tensor, ...]
Gradients = tuple[torch.Tensor, ...]

_ELEMENTS = 1 << 22  # of a step's largest tensor, about


@register("top-k")
class TopK(Attention):
    """Top-k attention: softmax over the k visible keys with the largest logits."""

    kind = "approximate"
    features = Attention.features | {"bias"}
    dtypes = ("float64", "float32", "bfloat16", "float16")
    options = {"k": 64}
    version = torch.__version__
    source = "Gupta et al. 2021, Memory-efficient Transformers via Top-k, arXiv 2106.06899"

    def supports(self, problem: Problem, device: torch.device) -> None:
        super().supports(problem, device)
        if int(self.options["k"]) < 1:
            raise Unsupported(f"option k must be positive, not {self.options['k']}")

    def build(self, problem: Problem, device: torch.device) -> ForwardBackward:
        attention = Largest(problem, device, min(int(self.options["k"]), problem.seqlen_k))
        return ForwardBackward(attention.forward, attention.backward)

    def exact_options(self, problem: Problem) -> Mapping[str, int]:
        return {"k": problem.seqlen_k}

    def flops(self, problem: Problem) -> int:
        """Logits of every visible pair, the rest of the kept ones; see ``Problem.flops``."""
        p = problem
        seen = p.mask.coverage(p.seqlen_q, p.seqlen_k)
        kept = min(seen.pairs, seen.queries * int(self.options["k"]))
        heads = p.batch * p.heads_q
        forward = 2 * heads * (seen.pairs * p.head_dim + kept * p.head_dim_v)
        backward = 2 * heads * kept * (3 * p.head_dim + 2 * p.head_dim_v)
        return forward * (p.direction != "backward") + backward * (p.direction != "forward")


class Largest:
    """One problem: rows are taken some at a time, so that no step is large."""

    def __init__(self, problem: Problem, device: torch.device, k: int) -> None:
        p = self.problem = problem
        self.k = k
        self.work = torch.promote_types(p.torch_dtype, torch.float32)
        self.hidden_MN: torch.Tensor | None = None  # True = may not attend
        if p.mask.kind != "full":
            self.hidden_MN = ~p.mask.dense(p.seqlen_q, p.seqlen_k, device)

    def forward(
        self,
        q_BHMD: torch.Tensor,
        k_BGND: torch.Tensor,
        v_BGNE: torch.Tensor,
        learned_HMN: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Saved]:
        """The output; saved are the inputs, what was kept, its weights, and a bias."""
        out_BHME = q_BHMD.new_empty(*q_BHMD.shape[:-1], v_BGNE.shape[-1])
        kept_BHMK = q_BHMD.new_empty(*q_BHMD.shape[:-1], self.k, dtype=torch.int64)
        weights_BHMK = q_BHMD.new_empty(kept_BHMK.shape, dtype=self.work)
        for head, keys, rows in self._steps():
            logits_rN = q_BHMD[head][rows].to(self.work) * self.problem.softmax_scale
            logits_rN = logits_rN @ k_BGND[keys].to(self.work).mT
            if learned_HMN is not None:
                logits_rN += learned_HMN[head[1], rows]
            if self.hidden_MN is not None:
                logits_rN.masked_fill_(self.hidden_MN[rows], float("-inf"))
            largest_rK, kept_rK = logits_rN.topk(self.k, dim=-1, sorted=False)
            blind_r1 = largest_rK.amax(dim=-1, keepdim=True) == float("-inf")
            weights_rK = largest_rK.softmax(dim=-1).masked_fill_(blind_r1, 0.0)
            values_rKE = v_BGNE[keys].to(self.work)[kept_rK]
            out_BHME[head][rows] = _combine(weights_rK, values_rKE).to(out_BHME.dtype)
            kept_BHMK[head][rows], weights_BHMK[head][rows] = kept_rK, weights_rK
        saved = (q_BHMD, k_BGND, v_BGNE, kept_BHMK, weights_BHMK)
        return out_BHME, saved if learned_HMN is None else (*saved, learned_HMN)

    def backward(self, saved: Saved, grad_BHME: torch.Tensor) -> Gradients:
        """The gradients of q, k and v, and of a bias, for the keys that were kept."""
        q_BHMD, k_BGND, v_BGNE, kept_BHMK, weights_BHMK, *learned = saved
        dbias = [torch.zeros(x.shape, dtype=self.work, device=x.device) for x in learned]
        dq, dk, dv = (
            torch.zeros(x.shape, dtype=self.work, device=x.device) for x in (q_BHMD, k_BGND, v_BGNE)
        )
        scale = self.problem.softmax_scale
        for head, keys, rows in self._steps():
            kept_rK, weights_rK = kept_BHMK[head][rows], weights_BHMK[head][rows]
            grad_rE, q_rD = (x[head][rows].to(self.work) for x in (grad_BHME, q_BHMD))
            k_rKD, v_rKE = (x[keys].to(self.work)[kept_rK] for x in (k_BGND, v_BGNE))
            dweights_rK = torch.bmm(v_rKE, grad_rE[:, :, None]).squeeze(-1)
            delta_r1 = (weights_rK * dweights_rK).sum(dim=-1, keepdim=True)
            dlogits_rK = weights_rK * (dweights_rK - delta_r1)
            for total_HMN in dbias:
                total_HMN[head[1], rows].scatter_add_(1, kept_rK, dlogits_rK)
            dlogits_rK *= scale
            dq[head][rows] = _combine(dlogits_rK, k_rKD)
            kept = kept_rK.flatten()
            dk[keys].index_add_(0, kept, (dlogits_rK[:, :, None] * q_rD[:, None]).flatten(0, 1))
            dv[keys].index_add_(0, kept, (weights_rK[:, :, None] * grad_rE[:, None]).flatten(0, 1))
        gradients = (dq.to(q_BHMD.dtype), dk.to(k_BGND.dtype), dv.to(v_BGNE.dtype))
        return *gradients, *(total_HMN.to(q_BHMD.dtype) for total_HMN in dbias)

    def _steps(self) -> Iterator[tuple[tuple[int, int], tuple[int, int], slice]]:
        """(batch entry, head), (batch entry, key head) and rows of each step."""
        p = self.problem
        each = max(p.seqlen_k, self.k * max(p.head_dim, p.head_dim_v))
        step = max(1, _ELEMENTS // each)
        for b in range(p.batch):
            for h in range(p.heads_q):
                for start in range(0, p.seqlen_q, step):
                    group = p.heads_q // p.heads_kv
                    yield (b, h), (b, h // group), slice(start, min(start + step, p.seqlen_q))


def _combine(weights_rK: torch.Tensor, x_rKE: torch.Tensor) -> torch.Tensor:
    """``Σ over K``: ``(r, E)``."""
    return torch.bmm(weights_rK[:, None], x_rKE).squeeze(1)
