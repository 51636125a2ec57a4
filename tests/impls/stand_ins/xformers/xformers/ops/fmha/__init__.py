"""A stand-in for ``xformers.ops.fmha`` on CPU, with reference operators of its own kind."""

from __future__ import annotations

from . import attn_bias, common, cutlass, flash, triton_splitk
from .common import Inputs

__all__ = [
    "Inputs", "attn_bias", "common", "cutlass", "flash", "memory_efficient_attention",
    "triton_splitk",
]  # fmt: skip


def memory_efficient_attention(
    query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None, output_dtype=None
):  # fmt: skip
    d = Inputs(query, key, value, attn_bias, p, scale)
    d.validate_inputs()
    wants_grad = query.requires_grad or key.requires_grad or value.requires_grad
    if op is not None:
        needed = [op[0], *([op[1]] if wants_grad else [])]
        for operator in needed:
            if reasons := operator.not_supported_reasons(d):
                raise ValueError(f"`{operator.NAME}` is not supported because: {reasons}")
        return op[0].apply(d)
    choices = [(flash.FwOp, flash.BwOp), (cutlass.FwOp, cutlass.BwOp)]
    refused = ""
    for forward, backward in choices:
        reasons = forward.not_supported_reasons(d)
        reasons += backward.not_supported_reasons(d) if wants_grad else []
        if not reasons:
            return forward.apply(d)
        refused += f"\n`{forward.NAME}` is not supported because:\n    " + "\n    ".join(reasons)
    raise NotImplementedError(f"No operator found for `memory_efficient_attention`:{refused}")
