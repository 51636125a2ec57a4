"""What a layer's problem has inside: which attention, which tokens, and what it cannot have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attnbench.errors import UserError, unknown
from attnbench.masks import Document, Mask, Packed

if TYPE_CHECKING:
    from attnbench.problem import Problem

_INPUTS = ("normal", "large", "correlated")  # what can be said of hidden states
_MOST_PADDING = 0.5  # lengths fall off evenly: with more, the last would be shorter than nothing


def lengths(problem: Problem) -> tuple[int, ...]:
    """Queries of each batch entry that are no padding: all of the first, then evenly fewer.

    With padding there are as many keys; without, all queries count, however many keys there are.
    """
    p = problem
    steps = max(p.batch - 1, 1)
    return tuple(
        max(1, round(p.seqlen_q * (1 - 2 * p.padding * entry / steps))) for entry in range(p.batch)
    )


def core(problem: Problem) -> Problem:
    """The attention inside a layer, as a problem at op level; itself at that level.

    Padding is no part of it: sequences are packed into one, each a document of its own (or
    each under the mask that a claim gives it).
    """
    p = problem
    if p.level == "op":
        return p
    packed: dict[str, Any] = {}
    if p.padding:
        tokens, mask = sum(lengths(p)), p.mask
        if not isinstance(mask, Packed):
            mask = Document(lengths(p), causal=mask.is_causal)
        packed = {"batch": 1, "seqlen_q": tokens, "seqlen_k": tokens, "mask": mask}
    return p.replace(
        level="op", position="none", padding=0.0, inputs="normal",
        alibi=p.position == "alibi", bias=p.position == "relative", **packed,
    )  # fmt: skip


def sequences(problem: Problem) -> tuple[Problem, ...]:
    """The attention of each sequence of a layer with padding, by itself, as ``core`` says it."""
    p = problem
    return tuple(
        core(p.replace(batch=1, padding=0.0, seqlen_q=length, seqlen_k=length))
        for length in lengths(p)
    )


def asked(problem: Problem, *, is_apart: bool) -> tuple[Problem, ...]:
    """What is really asked of an op: each of the sequences, or the core as it is."""
    return sequences(problem) if is_apart else (core(problem),)


def check(problem: Problem) -> None:
    """Raise ``UserError`` for what only a layer has, and for what a layer does not have."""
    p = problem
    if p.level == "op":
        for field in ("position", "padding"):
            if (value := getattr(p, field)) not in ("none", 0):
                raise UserError(f"{field} {value!r} belongs to level 'layer', not to 'op'")
        return
    for field, position in (("alibi", "alibi"), ("bias", "relative")):
        if getattr(p, field):
            raise UserError(f"level 'layer' takes {field} as position = {position!r}")
    if p.inputs not in _INPUTS:
        raise unknown("inputs of level 'layer'", p.inputs, _INPUTS)
    if p.element_bytes == 1:
        raise UserError(f"level 'layer' has no {p.dtype}: projections take 16 bits or more")
    if p.position != "none":
        _check_position(p)
    if p.padding:
        _check_padding(p)


def _check_position(p: Problem) -> None:
    if p.seqlen_q > p.seqlen_k:
        raise UserError(
            f"position {p.position}: seqlen_q {p.seqlen_q} must not exceed seqlen_k "
            f"{p.seqlen_k}, or queries would stand before the first key"
        )
    for position, field in (("sinusoidal", "d_model"), ("rope", "head_dim")):
        if p.position == position and getattr(p, field) % 2:
            raise UserError(f"position {position}: {field} must be even, got {getattr(p, field)}")


def _check_padding(p: Problem) -> None:
    if p.padding > _MOST_PADDING:
        raise UserError(f"padding must be at most {_MOST_PADDING}, got {p.padding}")
    if p.batch == 1:
        raise UserError("padding needs a batch of 2 or more: the first entry has none")
    if p.mask.kind not in ("full", "causal") and not _is_of(p.mask, lengths(p)):
        raise UserError(f"padding goes with mask full or causal, got {p.mask}")
    if p.seqlen_q != p.seqlen_k or p.decode:
        raise UserError(
            "padding is for self-attention without a cache: seqlen_q and seqlen_k must be equal, "
            f"got {p.seqlen_q} and {p.seqlen_k}"
        )


def _is_of(mask: Mask, lengths: tuple[int, ...]) -> bool:
    """Whether it is the claim of a method, for sequences of these lengths."""
    return isinstance(mask, Packed) and mask.lengths == lengths
