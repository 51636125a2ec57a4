"""Implementations that raise, in every way that Python knows."""

from __future__ import annotations

import sys

import torch
from torch.nn.functional import scaled_dot_product_attention as attend

from attnbench import Attention, Unsupported, register


@register("raises-error")
def raises_error(q, k, v, problem):
    raise RuntimeError("block size 64 does not divide 17\nand a second line")


@register("raises-unsupported")
def raises_unsupported(q, k, v, problem):
    raise Unsupported("needs head_dim 128")


@register("raises-exit")
def raises_exit(q, k, v, problem):
    sys.exit("giving up")


@register("raises-interrupt")
def raises_interrupt(q, k, v, problem):
    raise KeyboardInterrupt


@register("raises-base")
def raises_base(q, k, v, problem):
    raise GeneratorExit


@register("raises-bytes")
def raises_bytes(q, k, v, problem):
    raise ValueError("no UTF-8: \udcff, \x1b[31mred\x1b[0m [bold]markup[/] \N{BELL}\a")


class Unspeakable(Exception):
    def __str__(self):
        raise TypeError("no words")


@register("raises-unspeakable")
def raises_unspeakable(q, k, v, problem):
    raise Unspeakable


@register("raises-endless")
def raises_endless(q, k, v, problem):
    raise ValueError("x" * 1_000_000)


@register("raises-recursion")
def raises_recursion(q, k, v, problem):
    return raises_recursion(q, k, v, problem)


@register("raises-while-timed")
class WhileTimed(Attention):
    """Right at first."""

    def build(self, problem, device):
        calls = 0

        def call(q, k, v):
            nonlocal calls
            calls += 1
            if calls > 5:
                raise RuntimeError("tired")
            return attend(q, k, v)

        return call


@register("raises-in-build")
class InBuild(Attention):
    def build(self, problem, device):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


@register("raises-in-supports")
class InSupports(Attention):
    def supports(self, problem, device):
        raise ZeroDivisionError("seqlen // 0")

    def build(self, problem, device):
        return attend


@register("builds-nothing")
class BuildsNothing(Attention):
    def build(self, problem, device):
        return None


@register("builds-one-argument")
class BuildsOneArgument(Attention):
    def build(self, problem, device):
        return lambda q: q
