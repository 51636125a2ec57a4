"""Attention that goes wrong on a cache, each in its own way, and one that does not."""

from __future__ import annotations

import os

import torch
from torch.nn.functional import scaled_dot_product_attention as attend

from attnbench import Attention, Unsupported, register


def _right(q, k, v, diagonal=0):
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    if q.shape[2] == 1:
        return attend(q, k, v)
    seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(diagonal)
    return attend(q, k, v, attn_mask=seen)


@register("fair")
def fair(q, k, v, problem):
    """Exact, in another order of summation than the textbook."""
    return _right(q, k, v)


@register("forgetful")
def forgetful(q, k, v, problem):
    """Has no use for the cache: a step sees its own token alone."""
    return _right(q, k[:, :, -1:], v[:, :, -1:]) if problem.decode else _right(q, k, v)


@register("blind")
def blind(q, k, v, problem):
    """A step sees all keys but the newest: its own."""
    return _right(q, k[:, :, :-1], v[:, :, :-1]) if problem.decode else _right(q, k, v)


@register("ahead")
def ahead(q, k, v, problem):
    """Reading the prompt, each token sees the next one, too."""
    return _right(q, k, v, diagonal=1)


def _longer(x):
    """The view with one slot more of the room that it lies in."""
    batch, heads, seqlen, dim = x.shape
    room = x.untyped_storage().nbytes() // x.element_size() - x.storage_offset()
    if room < heads * batch * (seqlen + 1) * dim:
        return x
    return x.as_strided((batch, heads, seqlen + 1, dim), x.stride(), x.storage_offset())


@register("padded")
def padded(q, k, v, problem):
    """A step looks at a slot that is not filled yet."""
    return _right(q, _longer(k), _longer(v)) if problem.decode else _right(q, k, v)


@register("long-blind")
def long_blind(q, k, v, problem):
    """Forgets a key, at one length of the cache alone."""
    if problem.decode and problem.seqlen_k == 11:
        return _right(q, k[:, :, 1:], v[:, :, 1:])
    return _right(q, k, v)


class _Tires:
    """Says what it said before, after so many calls."""

    def __init__(self, calls):
        self.left, self.said = calls, None

    def __call__(self, q, k, v):
        self.left -= 1
        if self.left < 0:
            return self.said
        self.said = _right(q, k, v)
        return self.said


@register("stale")
class Stale(Attention):
    """Right as long as it is verified, then it repeats itself."""

    def build(self, problem, device):
        return _Tires(6 if problem.decode else 10**9)


@register("stale-unclaimed")
class StaleUnclaimed(Stale):
    """The same, of a sparse method whose window is wider than any prompt here."""

    kind = "approximate"

    def build(self, problem, device):
        tires = _Tires(6) if problem.decode else _Tires(10**9)
        return lambda q, k, v: tires(q, k, v) if tires.left > 0 else torch.zeros_like(q)

    def own_mask(self, problem):
        return problem.mask


@register("prefill-only")
class PrefillOnly(Attention):
    """Cannot decode, and says so in words of its own."""

    def supports(self, problem, device):
        super().supports(problem, device)
        if problem.decode:
            raise Unsupported("reads prompts; who decodes needs another kernel")

    def build(self, problem, device):
        return _right


class _After:
    def __init__(self, calls):
        self.left = calls

    def __call__(self, q, k, v):
        self.left -= 1
        if self.left < 0:
            os._exit(3)
        return _right(q, k, v)


@register("dies")
class Dies(Attention):
    """Takes its process along while it is timed."""

    def build(self, problem, device):
        return _After(12)
