"""``natten``: one-dimensional neighbourhood attention, ``na1d``.

Only what means the same here. Causal, a neighbourhood of ``kernel_size`` is the query and the
``kernel_size − 1`` keys before it: our causal window. Not causal, NATTEN moves the
neighbourhood inwards at both ends, so that every query has as many keys; our window is cut
off there. Those differ, and are refused.
"""

from __future__ import annotations

from typing import Any

import torch

from attnbench import Problem, Unsupported, register

from .adapter import Built, Library
from .package import Package

PACKAGE = Package("natten", "natten", (0, 21), "pip install natten, see natten.org/install")


@register("natten")
class Natten(Library):
    """NATTEN's 1-D neighbourhood attention; its own choice of backend."""

    package = PACKAGE
    features = frozenset({"backward", "gqa", "head_dim_v", "scale"})
    masks = ("full", "causal", "window")
    dtypes = ("float32", "bfloat16", "float16")
    version = PACKAGE.version()
    source = "Hassani et al. 2024, Faster Neighborhood Attention, arXiv 2403.04690"

    def supports(self, problem: Problem, device: torch.device) -> None:
        super().supports(problem, device)
        mask: Any = problem.mask
        if mask.kind == "window" and not mask.causal and mask.window < problem.seqlen_k:
            raise Unsupported(
                "a non-causal neighbourhood is moved inwards at the ends of the sequence, where "
                "mask window is cut off: another set of pairs"
            )
        if self._kernel_size(problem) < 2:
            raise Unsupported("needs a neighbourhood of 2 keys or more")

    def _kernel_size(self, problem: Problem) -> int:
        mask: Any = problem.mask
        return min(mask.window, problem.seqlen_k) if mask.kind == "window" else problem.seqlen_k

    def prepare(self, problem: Problem, device: torch.device) -> Built:
        keywords = {
            "kernel_size": self._kernel_size(problem),
            "is_causal": problem.mask.is_causal,
            "scale": problem.softmax_scale,
        }
        na1d = PACKAGE.function("na1d", *keywords)

        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = na1d(q, k, v, **keywords)
            return out

        return attend
