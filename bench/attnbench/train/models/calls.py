"""What an implementation has built, as a model calls it: differentiable, in its tensors' dtypes.

A backward of an implementation's own is made known to autograd; what a module has learned is kept
in float32 and given to it in the precision of each call.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.utils import _pytree

from attnbench.attention import ForwardBackward

Call = Callable[..., torch.Tensor]
_LOW = (torch.bfloat16, torch.float16)


class Used:
    """A module of one place, called as the place does: with what it has learned, in its dtypes."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._call = differentiable(module)
        if hasattr(module, "keep_mask"):
            self.keep_mask = module.keep_mask

    def __call__(self, *tensors: torch.Tensor) -> torch.Tensor:
        """What ``build`` promises."""
        return self._call(*tensors)


def differentiable(built: Any) -> Call:
    """A differentiable function of what was built."""
    if isinstance(built, ForwardBackward):
        return lambda *tensors: _Own.apply(built, *tensors)  # type: ignore[no-untyped-call]
    if isinstance(built, nn.Module) and any(True for _ in built.parameters()):

        def learned(*tensors: torch.Tensor) -> torch.Tensor:
            dtype = tensors[0].dtype
            if dtype not in _LOW:
                return built(*tensors)  # type: ignore[no-any-return]
            low = {name: p.to(dtype) for name, p in built.named_parameters()}
            return functional_call(built, low, tensors)  # type: ignore[no-any-return]

        return learned
    return built  # type: ignore[no-any-return]


def raise_precision(built: nn.Module) -> None:
    """Learned state in float32: steps of an optimizer vanish in bf16, and fp16 overflows.

    As for every weight under autocast, each call takes a copy in the lower precision.
    """
    for parameter in built.parameters():
        if parameter.dtype in _LOW:
            parameter.data = parameter.data.float()


class _Own(torch.autograd.Function):
    """A :class:`ForwardBackward` as autograd knows it."""

    @staticmethod
    def forward(ctx: Any, built: ForwardBackward, *tensors: torch.Tensor) -> torch.Tensor:
        out, saved = built.forward(*tensors)
        leaves, ctx.tree = _pytree.tree_flatten(saved)
        # Through autograd, so that hooks on saved tensors see them and memory is counted.
        ctx.is_tensor = [isinstance(leaf, torch.Tensor) for leaf in leaves]
        ctx.save_for_backward(*(x for x in leaves if isinstance(x, torch.Tensor)))
        ctx.others = [x for x in leaves if not isinstance(x, torch.Tensor)]
        ctx.built = built
        return out  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        tensors, others = iter(ctx.saved_tensors), iter(ctx.others)
        leaves = [next(tensors if is_tensor else others) for is_tensor in ctx.is_tensor]
        saved = _pytree.tree_unflatten(leaves, ctx.tree)
        device = grad_out.device.type
        is_cast = torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False) if is_cast else nullcontext():
            return None, *ctx.built.backward(saved, grad_out)
