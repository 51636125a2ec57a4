"""What the three generations of FlashAttention share: how a mask is told to them.

Their causal mask and their window are aligned bottom-right, as here. Documents go to the
variable-length function, as sequences one after the other.
"""

from __future__ import annotations

from typing import Any

import torch

from attnbench import Problem

from .adapter import Call
from .package import Package


def window_sizes(problem: Problem) -> tuple[int, int]:
    """``window_size``: keys before and after a query's own; −1 is no limit."""
    mask: Any = problem.mask
    if mask.kind != "window":
        return (-1, -1)
    return (mask.window - 1, 0 if mask.causal else mask.window - 1)


def document_starts(problem: Problem, device: torch.device) -> tuple[torch.Tensor, int]:
    """Documents of the whole batch one after the other; without a document mask, sequences.

    Returns:
        int32 ``(documents + 1,)``: where each begins, and the end of the last; and the
        length of the longest.
    """
    mask: Any = problem.mask
    is_document = mask.kind == "document"
    lengths = mask.document_lengths(problem.seqlen_k) if is_document else (problem.seqlen_k,)
    steps = torch.tensor([0, *lengths * problem.batch], dtype=torch.int32, device=device)
    return steps.cumsum(0, dtype=torch.int32), max(lengths)


def flash_call(
    package: Package, problem: Problem, device: torch.device, keywords: dict[str, Any]
) -> Call:
    """``flash_attn_func`` with these keywords, or ``flash_attn_varlen_func`` for documents."""
    if problem.mask.kind != "document":
        dense = package.function("flash_attn_func", *keywords)

        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return _output(dense(q, k, v, **keywords))

        return attend
    starts, longest = document_starts(problem, device)
    places: dict[str, Any] = {
        "cu_seqlens_q": starts, "cu_seqlens_k": starts,
        "max_seqlen_q": longest, "max_seqlen_k": longest,
    }  # fmt: skip
    varlen = package.function("flash_attn_varlen_func", *places, *keywords)

    def attend_documents(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        packed = (x.flatten(0, 1) for x in (q, k, v))
        out = _output(varlen(*packed, **places, **keywords))
        return out.reshape(*q.shape[:2], *out.shape[1:])

    return attend_documents


def _output(returned: Any) -> torch.Tensor:
    """FlashAttention-4, and early versions of 3, return (out, lse) whether asked or not."""
    out: torch.Tensor = returned[0] if isinstance(returned, tuple) else returned
    return out
