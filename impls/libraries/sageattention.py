"""``sageattention``: attention with Q and K in 8-bit integers, P and V in 8 or 16 bits.

Its error comes from rounding, so it is approximate and makes no claim: what it gives up is
recorded. There is no knob that makes it exact, and no backward.
"""

from __future__ import annotations

import torch

from attnbench import Problem, Unsupported, register

from .adapter import Built, Library
from .package import Package

PACKAGE = Package(
    "sageattention", "sageattention", (2, 0),
    "pip install --no-build-isolation git+https://github.com/thu-ml/SageAttention",
)  # fmt: skip


@register("sageattention")
class SageAttention(Library):
    """SageAttention: QKᵀ in INT8, forward only; the library chooses the kernel for the GPU."""

    kind = "approximate"
    package = PACKAGE
    features = frozenset({"gqa", "cross", "scale"})
    masks = ("full", "causal")
    version = PACKAGE.version()
    source = "Zhang et al. 2024, SageAttention2, arXiv 2411.10958"

    def supports(self, problem: Problem, device: torch.device) -> None:
        super().supports(problem, device)
        if problem.mask.is_causal and problem.seqlen_q != problem.seqlen_k:
            raise Unsupported("its causal mask is for seqlen_q = seqlen_k only")

    def prepare(self, problem: Problem, device: torch.device) -> Built:
        keywords = {
            "tensor_layout": "NHD",
            "is_causal": problem.mask.is_causal,
            "sm_scale": problem.softmax_scale,
        }
        sageattn = PACKAGE.function("sageattn", *keywords)

        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = sageattn(q, k, v, **keywords)
            return out

        return attend
