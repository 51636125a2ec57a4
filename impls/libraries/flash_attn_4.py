"""``flash-attn-4``: FlashAttention-4, written in CuTe DSL, module ``flash_attn.cute``.

It shares the name ``flash_attn`` with FlashAttention-2, but is a distribution of its own.
"""

from __future__ import annotations

import torch

from attnbench import Problem, register

from .adapter import Built, Library
from .flash import flash_call, window_sizes
from .package import Package

PACKAGE = Package("flash-attn-4", "flash_attn.cute", (4, 0), "pip install --pre flash-attn-4")


@register("flash-attn-4")
class FlashAttn4(Library):
    """FlashAttention-4 in CuTe DSL for Hopper and Blackwell, forward and backward."""

    package = PACKAGE
    capability = (9, 0)
    features = Library.features | {"softcap"}
    masks = ("full", "causal", "window", "document")
    version = PACKAGE.version()
    source = "https://github.com/Dao-AILab/flash-attention, flash_attn/cute"

    def prepare(self, problem: Problem, device: torch.device) -> Built:
        left, right = window_sizes(problem)
        keywords = {
            "softmax_scale": problem.softmax_scale,
            "causal": problem.mask.is_causal,
            # No limit is None here. With both None, causal alone decides.
            "window_size": (None if left < 0 else left, None if right < 0 else right),
            "softcap": problem.softcap or 0.0,
        }
        return flash_call(PACKAGE, problem, device, keywords)
