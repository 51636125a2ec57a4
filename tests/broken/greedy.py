"""Implementations that want more memory than there is."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention as attend

from attnbench import Attention, register


@register("greedy-at-once")
def at_once(q, k, v, problem):
    torch.empty(1 << 50, dtype=torch.int8)
    return attend(q, k, v)


@register("greedy-in-steps")
class InSteps(Attention):
    """Keeps a little more with every call."""

    def build(self, problem, device):
        hoard = []

        def call(q, k, v):
            while True:
                hoard.append(torch.ones(1 << 26, dtype=torch.int8))

        return call


@register("greedy-in-python")
def in_python(q, k, v, problem):
    return [0] * (1 << 48)
