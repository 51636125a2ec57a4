"""Implementations that take their process with them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from torch.nn.functional import scaled_dot_product_attention as attend

from attnbench import Attention, register


@register("dies-by-abort")
def by_abort(q, k, v, problem):
    print("about to abort", flush=True)
    os.abort()


@register("dies-by-segfault")
def by_segfault(q, k, v, problem):
    ctypes.string_at(0)


@register("dies-by-exit")
def by_exit(q, k, v, problem):
    os._exit(0)


@register("dies-by-kill")
def by_kill(q, k, v, problem):
    os.kill(os.getpid(), signal.SIGKILL)


@register("dies-by-odd-signal")
def by_odd_signal(q, k, v, problem):
    os.kill(os.getpid(), signal.SIGRTMIN + 3)


@register("dies-while-timed")
class WhileTimed(Attention):
    """Right at first."""

    def build(self, problem, device):
        calls = 0

        def call(q, k, v):
            nonlocal calls
            calls += 1
            if calls > 5:
                os.abort()
            return attend(q, k, v)

        return call


@register("dies-in-init")
class InInit(Attention):
    def __init__(self, **options):
        super().__init__(**options)
        if {"attnbench.workgroup", "attnbench.inquiry"} & set(sys.modules):  # not while looked for
            os.abort()

    def build(self, problem, device):
        return attend
