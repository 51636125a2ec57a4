"""Implementations that are right only as long as nobody looks twice."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention as attend

from attnbench import Attention, register


class Remembering(Attention):
    """Keeps each output, and returns it again for inputs that look the same."""

    def build(self, problem, device):
        known = {}

        def call(q, k, v):
            key = self.key(q, k, v)
            if key not in known:
                known[key] = attend(q, k, v)
            return known[key]

        return call

    def key(self, q, k, v):
        raise NotImplementedError


@register("cheat-by-address")
class ByAddress(Remembering):
    def key(self, q, k, v):
        return tuple(x.data_ptr() for x in (q, k, v))


@register("cheat-by-identity")
class ByIdentity(Remembering):
    def key(self, q, k, v):
        return tuple(id(x) for x in (q, k, v))


@register("cheat-by-version")
class ByVersion(Remembering):
    """Notices ordinary writes to the inputs, too."""

    def key(self, q, k, v):
        return tuple((x.data_ptr(), x._version) for x in (q, k, v))


@register("cheat-last-output")
class LastOutput(Attention):
    """Right the first time; then the same again."""

    def build(self, problem, device):
        first = []

        def call(q, k, v):
            if not first:
                first.append(attend(q, k, v))
            return first[0]

        return call


@register("cheat-after-a-while")
class AfterAWhile(Attention):
    """Right when it is verified, wrong when it is timed."""

    def build(self, problem, device):
        calls = 0

        def call(q, k, v):
            nonlocal calls
            calls += 1
            return attend(q, k, v) if calls < 3 else v.expand_as(q) * q.sigmoid()

        return call


@register("cheat-overwrites-q")
def overwrites_q(q, k, v, problem):
    out = attend(q, k, v)
    with torch.no_grad():
        q.detach().mul_(0.5)
    return out


@register("cheat-overwrites-v")
def overwrites_v(q, k, v, problem):
    out = attend(q, k, v)
    v.data[..., -1] = 0
    return out
