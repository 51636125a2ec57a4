"""A stand-in for xformers' operators: what each supports is written as xformers writes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from plain import attend

from xformers import _cpp_lib

from .attn_bias import BlockDiagonalMask


@dataclass
class Inputs:
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    attn_bias: Any = None
    p: float = 0.0
    scale: float | None = None
    output_dtype: Any = None
    is_partial: bool = False

    def validate_inputs(self) -> None:
        q, k, v = self.query, self.key, self.value
        if q.ndim not in (4, 5) or {k.ndim, v.ndim} != {q.ndim}:
            raise ValueError("Query/Key/Value should all have BMGHK, BMHK or BMK shape.")
        if k.shape[2:-1] != q.shape[2:-1]:
            raise ValueError("HINT: We don't support broadcasting, please use `expand` yourself")
        if isinstance(self.attn_bias, BlockDiagonalMask) and q.shape[0] != 1:
            raise ValueError("Expected batch_size=1 when using block-diagonal bias")
        expected = (q.shape[0], *q.shape[2:-1], q.shape[1], k.shape[1])
        if isinstance(self.attn_bias, torch.Tensor) and self.attn_bias.shape != expected:
            raise ValueError(f"Invalid shape for attention bias (expected {expected})")


class Operator:
    NAME: ClassVar[str]
    DTYPES: ClassVar[set[torch.dtype]]
    BIASES: ClassVar[tuple[type, ...]]
    OTHER_VALUE_DIM: ClassVar[bool] = False
    BMGHK: ClassVar[bool] = True

    @classmethod
    def not_supported_reasons(cls, d: Inputs) -> list[str]:
        reasons = []
        if not cls.OTHER_VALUE_DIM and d.query.shape[-1] != d.value.shape[-1]:
            reasons.append("query.shape[-1] != value.shape[-1]")
        if not _cpp_lib._built_with_cuda:
            reasons.append("xFormers wasn't build with CUDA support")
        if d.query.dtype not in cls.DTYPES:
            reasons.append(f"dtype={d.query.dtype} (supported: {cls.DTYPES})")
        if type(d.attn_bias) not in cls.BIASES:
            reasons.append(f"attn_bias type is {type(d.attn_bias)}")
        if isinstance(d.attn_bias, torch.Tensor) and d.attn_bias.stride(-2) % 8:
            reasons.append(f"attn_bias.stride(-2) % 8 != 0 ({d.attn_bias.stride()})")
        if not cls.BMGHK and d.query.ndim == 5:
            reasons.append("operator does not support BMGHK format")
        return reasons

    @classmethod
    def apply(cls, d: Inputs) -> torch.Tensor:
        if d.query.ndim == 5:
            groups = range(d.query.shape[2])
            bias = d.attn_bias
            parts = [
                cls.apply(
                    Inputs(
                        d.query[:, :, g], d.key[:, :, g], d.value[:, :, g],
                        bias[:, g] if isinstance(bias, torch.Tensor) else bias, d.p, d.scale,
                    )
                )
                for g in groups
            ]  # fmt: skip
            return torch.stack(parts, dim=2)
        q, k, v = (x.transpose(1, 2) for x in (d.query, d.key, d.value))
        scale = q.shape[-1] ** -0.5 if d.scale is None else d.scale
        if isinstance(d.attn_bias, torch.Tensor):
            return attend(q, k, v, scale=scale, bias=d.attn_bias).transpose(1, 2)
        allowed = None if d.attn_bias is None else d.attn_bias.allowed(q.shape[2], k.shape[2])
        return attend(q, k, v, scale=scale, allowed_MN=allowed).transpose(1, 2)
