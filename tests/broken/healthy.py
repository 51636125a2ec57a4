"""Right implementations, to stand beside the broken ones."""

from __future__ import annotations

import time

from torch.nn.functional import scaled_dot_product_attention as attend

from attnbench import register


@register("healthy")
def healthy(q, k, v, problem):
    """Right."""
    return attend(q, k, v)


@register("healthy-too")
def healthy_too(q, k, v, problem, *, detour: bool = False):
    """Right, with or without its option."""
    if detour:
        return (q @ k.mT * problem.softmax_scale).softmax(dim=-1) @ v
    return attend(q, k, v)


@register("dawdles")
def dawdles(q, k, v, problem):
    """Right, and long at work whatever the problem."""
    time.sleep(0.3)
    return attend(q, k, v)
