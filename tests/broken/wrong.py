"""Implementations whose answer is wrong, each in its own way."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention as attend

from attnbench import Attention, ForwardBackward, register


@register("wrong-factor")
def wrong_factor(q, k, v, problem):
    return attend(q, k, v) * 1.01


@register("wrong-scale")
def wrong_scale(q, k, v, problem):
    return attend(q, k, v, scale=1.0)


@register("wrong-dk")
def wrong_dk(q, k, v, problem):
    class Off(torch.autograd.Function):
        """Passes k on as it is, and its gradient a little too large."""

        @staticmethod
        def forward(ctx, k):
            return k.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * 1.02

    return attend(q, Off.apply(k), v)


@register("wrong-at-odd-lengths")
def wrong_at_odd_lengths(q, k, v, problem):
    even = k.shape[2] // 2 * 2
    return attend(q, k[:, :, :even], v[:, :, :even])


@register("wrong-nan")
def wrong_nan(q, k, v, problem):
    out = attend(q, k, v)
    hole = torch.zeros_like(out)
    hole[0, 0, -1, -1] = float("nan")
    return out + hole


@register("wrong-dtype")
def wrong_dtype(q, k, v, problem):
    return attend(q, k, v).double()


@register("wrong-shape")
def wrong_shape(q, k, v, problem):
    return attend(q, k, v).transpose(1, 2)


@register("wrong-mean-of-v")
def wrong_mean_of_v(q, k, v, problem):
    return v.mean(dim=2, keepdim=True).expand_as(q)


@register("wrong-type")
def wrong_type(q, k, v, problem):
    return attend(q, k, v).tolist()


@register("wrong-none")
def wrong_none(q, k, v, problem):
    attend(q, k, v)


@register("wrong-pair")
def wrong_pair(q, k, v, problem):
    return attend(q, k, v), None


@register("wrong-without-graph")
def wrong_without_graph(q, k, v, problem):
    return attend(q, k, v).detach()


@register("wrong-gradients-given")
class WrongGradientsGiven(Attention):
    """A backward of its own that forgets dv."""

    def build(self, problem, device):
        def forward(q, k, v):
            return attend(q, k, v), (q, k)

        def backward(saved, grad_out):
            return saved

        return ForwardBackward(forward, backward)
