"""``flash-attn-3``: FlashAttention-3 for Hopper, module ``flash_attn_interface``.

It is built from the folder ``hopper`` of github.com/Dao-AILab/flash-attention.
"""

from __future__ import annotations

import torch

from attnbench import Problem, register

from .adapter import Built, Library
from .flash import flash_call, window_sizes
from .package import Package

PACKAGE = Package(
    "flash_attn_3", "flash_attn_interface", (3, 0),
    "python setup.py install in hopper/ of github.com/Dao-AILab/flash-attention",
)  # fmt: skip


@register("flash-attn-3")
class FlashAttn3(Library):
    """FlashAttention-3 for Hopper GPUs, forward and backward."""

    package = PACKAGE
    capability = (9, 0)
    features = Library.features | {"softcap"}
    masks = ("full", "causal", "window", "document")
    version = PACKAGE.version()
    source = "Shah et al. 2024, FlashAttention-3, arXiv 2407.08608"

    def prepare(self, problem: Problem, device: torch.device) -> Built:
        keywords = {
            "softmax_scale": problem.softmax_scale,
            "causal": problem.mask.is_causal,
            "window_size": window_sizes(problem),
            "softcap": problem.softcap or 0.0,
        }
        return flash_call(PACKAGE, problem, device, keywords)
