"""``flash-attn``: FlashAttention-2 of Tri Dao's package ``flash-attn``."""

from __future__ import annotations

from typing import Any

import torch

from attnbench import Problem, alibi_slopes, register

from .adapter import Built, Library
from .flash import flash_call, window_sizes
from .package import Package

PACKAGE = Package(
    "flash-attn", "flash_attn", (2, 6), "pip install flash-attn --no-build-isolation"
)  # fmt: skip


@register("flash-attn")
class FlashAttn2(Library):
    """FlashAttention-2 from the flash-attn package, forward and backward."""

    package = PACKAGE
    features = Library.features - {"head_dim_v"} | {"softcap", "alibi"}
    masks = ("full", "causal", "window", "document")
    version = PACKAGE.version()
    source = "Dao 2023, FlashAttention-2, arXiv 2307.08691"

    def prepare(self, problem: Problem, device: torch.device) -> Built:
        keywords: dict[str, Any] = {
            "softmax_scale": problem.softmax_scale,
            "causal": problem.mask.is_causal,
            "window_size": window_sizes(problem),
            "softcap": problem.softcap or 0.0,
        }
        if problem.alibi:  # symmetric and aligned bottom-right, as here
            slopes = alibi_slopes(problem.heads_q)
            keywords["alibi_slopes"] = torch.tensor(slopes, dtype=torch.float32, device=device)
        return flash_call(PACKAGE, problem, device, keywords)
