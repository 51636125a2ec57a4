"""A problem's fields as people read them: their order, their names, a shape in a word."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

SHAPE = ("batch", "heads_q", "heads_kv", "seqlen_q", "seqlen_k", "head_dim", "head_dim_v")
FOLLOWS = {"heads_kv": "heads_q", "seqlen_k": "seqlen_q", "head_dim_v": "head_dim"}
"""Fields that usually equal another, and then need not be said."""

LABELS = {"seqlen_q": "seqlen", "heads_q": "heads", "dropout_p": "dropout", "count": "documents"}
_PLAIN = (
    "direction", "dtype", "mask", "level", "inputs", "model", "task", "precision", "objective",
)  # fmt: skip
"""Fields whose values need no name."""

_PRESET = ("layers", "heads", "heads_kv", "d_model", "d_ff", "position", "activation", "norm")
"""What of a model is the preset's where it is 0 or empty."""

_ORDERS: Mapping[str, Sequence[str]] = {
    "dtype": ("float64", "float32", "bfloat16", "float16", "float8_e4m3fn"),
    "direction": ("forward", "backward", "both"),
    "mask": ("full", "causal"),
}


def label(field: str, value: Any) -> str:
    """A value in a title, with its field where that is not plain: ``heads 8``, ``causal``.

    The space between the two does not break.
    """
    if field in _PLAIN:
        return str(value)
    if field == "batch" and value == 0:  # of a training run, which looks for it
        return "largest batch"
    if field in _PRESET and value in (0, ""):
        return f"the model's {field}"
    if isinstance(value, bool) or value is None:
        return field if value else f"no\u00a0{field}"
    return f"{LABELS.get(field, field)}\u00a0{value}"


def order(field: str, value: Any) -> tuple[Any, ...]:
    """The usual order of a field's values: forward first, wide dtypes first, sizes by size."""
    usual = _ORDERS.get(field, ())
    if value in usual:
        return (0, usual.index(value), [])
    if isinstance(value, (int, float)):
        return (0, value, [])
    return (1, 0, natural(str(value)))


def natural(text: str) -> list[tuple[int, int, str]]:
    """A sorting key that puts ``window=64`` before ``window=128``."""
    parts = re.split(r"(\d+)", text)
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts]


def shape_parts(fields: Mapping[str, Any]) -> dict[str, str]:
    """A shape as words: batch, heads (query/key), seqlen (query×key), head_dim (qk/v)."""
    return {
        "batch": f"B{fields.get('batch')}",
        "heads": "H" + _pair(fields, "heads_q", "heads_kv", "/"),
        "seqlen": "N" + _pair(fields, "seqlen_q", "seqlen_k", "×"),
        "head_dim": "D" + _pair(fields, "head_dim", "head_dim_v", "/"),
    }


def _pair(fields: Mapping[str, Any], first: str, second: str, between: str) -> str:
    one, other = fields.get(first), fields.get(second)
    return str(one) if one == other else f"{one}{between}{other}"
