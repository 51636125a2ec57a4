"""``flashinfer`` and ``flashinfer-decode``: FlashInfer's kernels for serving, forward only.

``flashinfer`` is prefill of any batch (``BatchPrefillWithRaggedKVCacheWrapper``, planned in
``build()``), documents included. ``flashinfer-decode`` is one query of one request on its
cache (``single_decode_with_kv_cache``).

FlashInfer has a window to the left only, and its ALiBi is one-sided: the rest is refused.
"""

from __future__ import annotations

from typing import Any

import torch

from attnbench import Problem, Unsupported, register

from .adapter import Built, Library
from .flash import document_starts
from .package import Package

PACKAGE = Package("flashinfer-python", "flashinfer", (0, 2, 3), "pip install flashinfer-python")
_WORKSPACE_BYTES = 128 << 20  # what its documentation recommends


class _FlashInfer(Library):
    package = PACKAGE
    version = PACKAGE.version()
    source = "Ye et al. 2025, FlashInfer, arXiv 2501.01005"

    def supports(self, problem: Problem, device: torch.device) -> None:
        super().supports(problem, device)
        if problem.mask.kind == "window" and not problem.mask.is_causal:
            raise Unsupported("its window reaches to the left only")

    def _keywords(self, problem: Problem) -> dict[str, Any]:
        mask: Any = problem.mask
        return {
            "window_left": mask.window - 1 if mask.kind == "window" else -1,
            "logits_soft_cap": problem.softcap,
            "sm_scale": problem.softmax_scale,
        }


@register("flashinfer")
class FlashInferPrefill(_FlashInfer):
    """FlashInfer's batch prefill on ragged keys and values; causal is bottom-right."""

    features = frozenset({"gqa", "cross", "head_dim_v", "scale", "softcap"})
    masks = ("full", "causal", "window", "document")

    def prepare(self, problem: Problem, device: torch.device) -> Built:
        p = problem
        keys, _ = document_starts(p, device)
        # Documents have as many queries as keys; sequences need not.
        queries = keys if p.mask.kind == "document" else keys // p.seqlen_k * p.seqlen_q
        plan: dict[str, Any] = {
            "qo_indptr": queries, "kv_indptr": keys,
            "num_qo_heads": p.heads_q, "num_kv_heads": p.heads_kv,
            "head_dim_qk": p.head_dim, "head_dim_vo": p.head_dim_v,
            "causal": p.mask.is_causal,
            "q_data_type": p.torch_dtype, "kv_data_type": p.torch_dtype,
            **self._keywords(p),
        }  # fmt: skip
        wrapper = PACKAGE.function("BatchPrefillWithRaggedKVCacheWrapper", "kv_layout")
        workspace = torch.empty(_WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        prefill = wrapper(workspace, kv_layout="NHD")
        prefill.plan(**plan)

        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = prefill.run(*(x.flatten(0, 1) for x in (q, k, v)))
            return out.reshape(*q.shape[:2], *out.shape[1:])

        return attend


@register("flashinfer-decode")
class FlashInferDecode(_FlashInfer):
    """FlashInfer's decode of one query of one request on its cache."""

    features = frozenset({"gqa", "cross", "scale", "softcap", "decode"})
    masks = ("full", "causal", "window")

    def supports(self, problem: Problem, device: torch.device) -> None:
        super().supports(problem, device)
        if problem.batch > 1 or problem.seqlen_q > 1:
            raise Unsupported("decodes one query of one request: batch 1, seqlen_q 1")

    def prepare(self, problem: Problem, device: torch.device) -> Built:
        # The one query is the last position: causal hides nothing from it.
        keywords = {"kv_layout": "NHD", **self._keywords(problem)}
        decode = PACKAGE.function("single_decode_with_kv_cache", *keywords)

        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = decode(q[0, 0], k[0], v[0], **keywords)
            return out[None, None]

        return attend
