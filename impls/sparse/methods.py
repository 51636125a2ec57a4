"""Sparse methods: they put a mask of their own in the place of a full or causal one.

Each is exact under the mask that ``own_mask`` says, and causal where the problem is. Only
what the mask is differs between them. Who solves it is the option ``backend``: ``gather``
(here, any device), ``flex`` (FlexAttention, from the same mask) or ``triton`` (the fused
kernels' block lists, on a GPU). There is no other way round: what cannot run says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from attnbench import (
    Attention,
    ForwardBackward,
    Mask,
    Problem,
    Unsupported,
    UserError,
    implementation,
    parse_mask,
    register,
)

from .exact import AnyMask

_BACKENDS = ("gather", "flex", "triton")


class Sparse(Attention):
    """What the methods have in common. Their options are fields of their mask, but ``backend``."""

    kind = "approximate"
    features = Attention.features | {"alibi", "bias", "softcap"}
    version = torch.__version__
    mask_kind = ""

    def own_mask(self, problem: Problem) -> Mask:
        """The method's mask, at these lengths.

        Raises:
            Unsupported: the problem has a mask of its own already, or there is no such mask.
        """
        asked = problem.mask.kind
        if asked not in ("full", "causal"):
            raise Unsupported(
                f"puts its mask in the place of a full or causal one, not of {asked}; "
                "gathered does any mask"
            )
        try:
            fields = {"kind": self.mask_kind, "causal": asked == "causal", **self.fields(problem)}
            mask = parse_mask(fields)
            mask.check(problem.seqlen_q, problem.seqlen_k)
        except UserError as error:
            raise Unsupported(str(error)) from None
        return mask

    def fields(self, problem: Problem) -> Mapping[str, Any]:
        """The mask's fields, from the options."""
        return {name: value for name, value in self.options.items() if name != "backend"}

    def supports(self, problem: Problem, device: torch.device) -> None:
        super().supports(problem, device)
        solved, backend = self._solved(problem), str(self.options["backend"])
        if backend not in _BACKENDS:
            raise Unsupported(f"option backend is one of {', '.join(_BACKENDS)}, not {backend}")
        if backend == "triton" and device.type == "cpu":
            raise Unsupported("backend triton needs a GPU")
        try:
            self._solver().supports(solved, device)
        except Unsupported as refusal:
            raise Unsupported(f"backend {backend}: {refusal}") from refusal

    def build(self, problem: Problem, device: torch.device) -> Callable[..., Any] | ForwardBackward:
        return self._solver().build(self._solved(problem), device)

    def _solver(self) -> Attention:
        """Who solves the mask; ``gather`` is of this source, whatever version of it is asked."""
        backend = str(self.options["backend"])
        return AnyMask() if backend == "gather" else implementation(backend)


def _longest(problem: Problem) -> int:
    """As far as a query can be from a key, and one more."""
    return max(problem.seqlen_q, problem.seqlen_k)


@register("window")
class SlidingWindow(Sparse):
    """Sliding window: each query sees the ``window`` nearest keys, on one side or both."""

    options = {"window": 256, "backend": "gather"}
    source = "Beltagy et al. 2020, Longformer, arXiv 2004.05150, §3.1"
    mask_kind = "window"

    def exact_options(self, problem: Problem) -> Mapping[str, int | float]:
        return {"window": _longest(problem)}


@register("dilated")
class DilatedWindow(Sparse):
    """Dilated sliding window: ``window`` keys on a side, each ``dilation`` from the next."""

    options = {"window": 64, "dilation": 4, "backend": "gather"}
    source = "Beltagy et al. 2020, Longformer, arXiv 2004.05150, §3.1"
    mask_kind = "dilated"

    def exact_options(self, problem: Problem) -> Mapping[str, int | float]:
        return {"window": _longest(problem), "dilation": 1}


@register("strided")
class StridedPattern(Sparse):
    """Sparse Transformer, strided: the nearest ``stride`` keys, and every ``stride``-th."""

    options = {"stride": 128, "backend": "gather"}
    source = "Child et al. 2019, Sparse Transformers, arXiv 1904.10509, §4.3"
    mask_kind = "strided"

    def exact_options(self, problem: Problem) -> Mapping[str, int | float]:
        return {"stride": 1}  # every key is a multiple of 1 away


@register("fixed")
class FixedPattern(Sparse):
    """Sparse Transformer, fixed: a query's own block, and the last keys of every block."""

    options = {"stride": 128, "summary": 8, "backend": "gather"}
    source = "Child et al. 2019, Sparse Transformers, arXiv 1904.10509, §4.3"
    mask_kind = "fixed"

    def exact_options(self, problem: Problem) -> Mapping[str, int | float]:
        return {"summary": int(self.options["stride"])}  # a block is its own summary


@register("block-sparse")
class RandomBlocks(Sparse):
    """Block-sparse: ``blocks`` key blocks for each query block, or a ``density``; seeded."""

    options = {"block": 64, "blocks": 8, "density": 0.0, "seed": 0, "backend": "gather"}
    source = "Gray et al. 2017, GPU Kernels for Block-Sparse Weights, OpenAI"
    mask_kind = "block_sparse"

    def fields(self, problem: Problem) -> Mapping[str, Any]:
        blocks, density = self.options["blocks"], self.options["density"]
        if bool(blocks) == bool(density):
            raise Unsupported(
                f"give either blocks or density and set the other to 0, got {blocks} and {density}"
            )
        kept = {"blocks_per_row": blocks} if blocks else {"density": density}
        return {"block": self.options["block"], "seed": self.options["seed"], **kept}

    def exact_options(self, problem: Problem) -> Mapping[str, int | float]:
        block = max(1, int(self.options["block"]))
        return {"blocks": -(-problem.seqlen_k // block), "density": 0.0}


@register("bigbird")
class BigBirdPattern(Sparse):
    """BigBird: a window of blocks, global blocks that see and are seen, and random ones."""

    options = {
        "block": 64, "window_blocks": 3, "global_blocks": 1, "random_blocks": 2, "seed": 0,
        "backend": "gather",
    }  # fmt: skip
    source = "Zaheer et al. 2020, Big Bird, arXiv 2007.14062"
    mask_kind = "bigbird"

    def exact_options(self, problem: Problem) -> Mapping[str, int | float]:
        block = max(1, int(self.options["block"]))
        return {"random_blocks": -(-problem.seqlen_k // block)}
