"""Right implementations that change what the others depend on."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch.nn.functional import scaled_dot_product_attention as attend

from attnbench import Attention, register


@register("meddles-with-the-clock")
def with_the_clock(q, k, v, problem):
    time.perf_counter = lambda: 0.0
    time.perf_counter_ns = lambda: 0
    return attend(q, k, v)


@register("meddles-with-threads")
def with_threads(q, k, v, problem):
    torch.set_num_threads(torch.get_num_threads() + 1)
    return attend(q, k, v)


@register("meddles-with-gradients")
def with_gradients(q, k, v, problem):
    out = attend(q, k, v)
    torch.set_grad_enabled(not torch.is_grad_enabled())
    return out


@register("meddles-with-dtype")
class WithDtype(Attention):
    def build(self, problem, device):
        torch.set_default_dtype(torch.float64)
        return attend


@register("meddles-with-tf32")
class WithTf32(Attention):
    def build(self, problem, device):
        torch.backends.cuda.matmul.allow_tf32 = True
        return attend


@register("meddles-with-sdpa")
class WithSdpa(Attention):
    """As some libraries advise: put the new kernel in everybody's place."""

    def build(self, problem, device):
        F.scaled_dot_product_attention = lambda q, k, v, **_: v
        return attend


@register("meddles-while-timed")
class WhileTimed(Attention):
    def build(self, problem, device):
        calls = 0

        def call(q, k, v):
            nonlocal calls
            calls += 1
            if calls == 5:
                torch.set_default_device("meta")
            return attend(q, k, v)

        return call
