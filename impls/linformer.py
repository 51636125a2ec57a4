"""``linformer``: attention to a fixed number of learned mixtures of the keys.

E and F, of shape (rank, seqlen_k), mix keys and values along the sequence; softmax attention
follows with ``rank`` keys in place of seqlen_k. Both are parameters to be learned, the same
for all heads. Before they are, they say little: ``projections`` chooses how they begin,
``random`` as Theorem 2 of the paper has them, N(0, 1/rank), ``mean`` as the means of equal
segments (the paper's pooling), ``identity`` as each key itself, which with rank = seqlen_k is
dense attention.

Every mixture holds every key: causal masks, or any others, have no definition, and neither
has a decode step, as E and F belong to one length. Where sequences of a batch are padded to
one length, keys and values of padding are zeros, so that a shorter sequence meets the first
columns of E and F.

Letters: B = batch, H = heads_q, G = heads_kv, M = seqlen_q, N = seqlen_k, r = rank,
D = head_dim, E = head_dim_v.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from attnbench import Attention, Problem, Unsupported, register

_PROJECTIONS = ("random", "mean", "identity")
_VECTOR = 16  # torch 2.13's flash for CPUs makes 0 of a NaN in a query that has fewer keys


@register("linformer")
class Linformer(Attention):
    """Linformer: keys and values mixed down to a learned few along the sequence."""

    kind = "approximate"
    layout = "BSHD"  # all heads of a sequence are mixed by one product
    features = frozenset({"backward", "cross", "gqa", "head_dim_v", "scale"})
    masks = ("full",)
    dtypes = ("float64", "float32", "bfloat16", "float16")
    options = {"rank": 128, "shared": False, "projections": "random"}
    version = torch.__version__
    source = "Wang et al. 2020, Linformer, arXiv 2006.04768"

    def supports(self, problem: Problem, device: torch.device) -> None:
        if problem.mask.kind != "full":
            raise Unsupported(
                f"mask {problem.mask.kind} has no definition: each of Linformer's keys is a "
                "mixture of all, which cannot be hidden one by one"
            )
        super().supports(problem, device)
        rank, begin = int(self.options["rank"]), self.options["projections"]
        if rank < 1:
            raise Unsupported(f"rank must be at least 1, got {rank}")
        if begin not in _PROJECTIONS:
            raise Unsupported(f"projections are {', '.join(_PROJECTIONS)}, got {begin!r}")
        if begin == "identity" and rank != problem.seqlen_k:
            raise Unsupported(f"identity needs rank = seqlen_k {problem.seqlen_k}, got {rank}")
        if begin == "mean" and rank > problem.seqlen_k:
            raise Unsupported(f"no {rank} segments can be cut from {problem.seqlen_k} keys")

    def build(self, problem: Problem, device: torch.device) -> Mixed:
        rank, begin = int(self.options["rank"]), str(self.options["projections"])
        return Mixed(problem, device, rank, begin, shared=bool(self.options["shared"]))

    def build_sequences(self, problems: Sequence[Problem], device: torch.device) -> list[Mixed]:
        """The longest sequence's E and F, which all share."""
        return [self.build(problems[0], device)] * len(problems)

    def exact_options(self, problem: Problem) -> Mapping[str, int | str]:
        """Each key its own mixture."""
        return {"rank": problem.seqlen_k, "projections": "identity"}

    def flops(self, problem: Problem) -> int:
        """``2·N·r·(D + E)`` a key head to mix, ``2·M·r·(D + E)`` a query head to attend.

        The backward to q, k and v mixes once more (training E and F would add that again) and
        attends with 2.5 times the forward for D = E, the logits again, as ``Problem.flops``.
        """
        p, rank = problem, int(self.options["rank"])
        mixing = 2 * p.batch * p.heads_kv * p.seqlen_k * rank * (p.head_dim + p.head_dim_v)
        rows = 2 * p.batch * p.heads_q * p.seqlen_q * rank
        forward = mixing + rows * (p.head_dim + p.head_dim_v)
        backward = mixing + rows * (3 * p.head_dim + 2 * p.head_dim_v)
        return {"forward": forward, "backward": backward, "both": forward + backward}[p.direction]

    def ideal_bytes(self, problem: Problem) -> int:
        """What dense attention moves, and E and F."""
        matrices = 1 if self.options["shared"] else 2
        times = 2 if problem.direction == "both" else 1
        elements = matrices * int(self.options["rank"]) * problem.seqlen_k
        return problem.ideal_bytes() + times * elements * problem.element_bytes


class Mixed(nn.Module):
    """One problem's Linformer, with parameters ``mix_k_Nr`` (Eᵀ) and ``mix_v_Nr`` (Fᵀ).

    Fewer keys than N are taken for N whose last are zeros.
    """

    def __init__(
        self, problem: Problem, device: torch.device, rank: int, begin: str, *, shared: bool
    ) -> None:
        super().__init__()
        self.scale = problem.softmax_scale
        self.is_grouped = problem.heads_q != problem.heads_kv

        def matrix() -> nn.Parameter:
            start_rN = _begin(begin, rank, problem.seqlen_k)
            # Turned in memory: the backward's product reads it the other way round.
            return nn.Parameter(start_rN.mT.to(device, problem.torch_dtype).contiguous())

        self.mix_k_Nr = matrix()
        self.mix_v_Nr = self.mix_k_Nr if shared else matrix()

    def forward(
        self, q_BMHD: torch.Tensor, k_BNGD: torch.Tensor, v_BNGE: torch.Tensor
    ) -> torch.Tensor:
        """``(B, M, H, E)``."""
        q_BHMD = q_BMHD.transpose(1, 2)
        k_BGrD, v_BGrE = _mixed(self.mix_k_Nr, k_BNGD), _mixed(self.mix_v_Nr, v_BNGE)
        is_few = q_BMHD.device.type == "cpu" and k_BGrD.shape[2] < _VECTOR
        if is_few or _keeps_weights(q_BMHD):
            out_BHME = _attend(q_BHMD, k_BGrD, v_BGrE, self.scale)
        else:
            out_BHME = F.scaled_dot_product_attention(
                q_BHMD, k_BGrD, v_BGrE, scale=self.scale, enable_gqa=self.is_grouped
            )
        return out_BHME.transpose(1, 2)


def _keeps_weights(q_BMHD: torch.Tensor) -> bool:
    """Whether a backward on a CPU follows, in a precision in which the weights may be kept.

    There are M·r of them, and not M·N: a CPU reads them faster than it makes them again.
    """
    exact_enough = q_BMHD.dtype in (torch.float32, torch.float64)
    return torch.is_grad_enabled() and q_BMHD.device.type == "cpu" and exact_enough


def _attend(
    q_BHMD: torch.Tensor, k_BGrD: torch.Tensor, v_BGrE: torch.Tensor, scale: float
) -> torch.Tensor:
    """``(B, H, M, E)``; R = H / G query heads share a key head."""
    q_BGRMD = torch.unflatten(q_BHMD, 1, (k_BGrD.shape[1], -1))
    weights_BGRMr = (q_BGRMD @ (k_BGrD * scale)[:, :, None].mT).softmax(dim=-1)
    return (weights_BGRMr @ v_BGrE[:, :, None]).flatten(1, 2)


def _mixed(mix_Nr: torch.Tensor, x_BNGD: torch.Tensor) -> torch.Tensor:
    """``(B, G, r, D)``."""
    keys = x_BNGD.shape[1]
    if keys < len(mix_Nr):
        mix_Nr = mix_Nr[:keys]
    mixed_BrC = mix_Nr.mT @ x_BNGD.flatten(2)
    return torch.unflatten(mixed_BrC, 2, x_BNGD.shape[2:]).transpose(1, 2)


def _begin(begin: str, rank: int, keys: int) -> torch.Tensor:
    """How a matrix begins, ``(rank, keys)``; random ones come from torch's generator."""
    if begin == "random":
        return torch.randn(rank, keys) / math.sqrt(rank)
    if begin == "identity":
        return torch.eye(keys)
    mix_rN = torch.zeros(rank, keys)
    for row, segment in enumerate(torch.arange(keys).tensor_split(rank)):
        mix_rN[row, segment] = 1 / len(segment)
    return mix_rN
