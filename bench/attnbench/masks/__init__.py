"""Attention masks: which query may look at which key. Each mask is defined once, here.

A mask is its *predicate*: given a query position and a key position, may they meet? From
that one definition come the dense mask, the block lists, the FlexAttention ``mask_mod``
and the exact counts behind FLOPs and bytes. ``base`` holds what all masks share, ``kinds``
and ``scattered`` the masks themselves, ``packed`` one that is made of others; this module is
their public face and reads them from text and JSON.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from attnbench.errors import UserError, unknown
from attnbench.masks.base import BlockList, Coverage, Mask, Predicate, positions
from attnbench.masks.kinds import (
    BigBird,
    BlockSparse,
    Causal,
    Document,
    Full,
    PrefixLM,
    Window,
)
from attnbench.masks.packed import Packed
from attnbench.masks.scattered import Dilated, Fixed, Strided
from attnbench.spec import parse_spec

__all__ = [
    "MASKS",
    "BigBird",
    "BlockList",
    "BlockSparse",
    "Causal",
    "Coverage",
    "Dilated",
    "Document",
    "Fixed",
    "Full",
    "Mask",
    "Packed",
    "Predicate",
    "PrefixLM",
    "Strided",
    "Window",
    "parse_mask",
    "positions",
]

_KINDS = (
    Full, Causal, Window, PrefixLM, Document, BlockSparse, Strided, BigBird, Fixed, Dilated,
)  # fmt: skip
MASKS: Mapping[str, type[Mask]] = {cls.kind: cls for cls in _KINDS}


def parse_mask(given: str | Mapping[str, Any] | Mask) -> Mask:
    """Read a mask from ``"causal"``, ``"window:window=256"`` or ``{"kind": "window", …}``.

    In text, lists are joined by ``+`` and pairs by ``-``: ``document:lengths=100+28``,
    ``block_sparse:blocks_kept=0-0+1-0``. The inverse of ``str(mask)`` and of
    ``mask.to_json()``.

    Raises:
        UserError: unknown kind or field, wrong type, or a value out of range.
    """
    if isinstance(given, Mask):
        return given
    if isinstance(given, str):
        kind, told = parse_spec(given)
        values: dict[str, Any] = dict(told)
    elif isinstance(given, Mapping):
        values = {k: v for k, v in given.items() if k != "kind"}
        kind = str(given.get("kind", ""))
    else:
        raise UserError(f"mask must be a name or a table with 'kind', got {given!r}")
    if kind not in MASKS:
        raise unknown("mask", kind, MASKS)
    defaults = {f.name: f.default for f in dataclasses.fields(MASKS[kind])}
    for key, value in values.items():
        if key not in defaults:
            raise unknown(f"field of mask {kind}:", key, defaults)
        if isinstance(defaults[key], tuple) and isinstance(given, str):
            values[key] = _read_list(kind, key, str(value))
    return MASKS[kind](**values)


def _read_list(kind: str, key: str, text: str) -> tuple[Any, ...]:
    """``3+4`` as ``(3, 4)`` and ``0-0+1-0`` as ``((0, 0), (1, 0))``."""
    try:
        words = [tuple(int(part) for part in word.split("-")) for word in text.split("+")]
    except ValueError:
        raise UserError(
            f"mask {kind}: {key} must be whole numbers joined by '+' (pairs by '-'), got {text!r}"
        ) from None
    return tuple(word[0] if len(word) == 1 else word for word in words)
