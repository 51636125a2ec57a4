"""``sdpa-fa3`` and ``sdpa-fa4``: torch's SDPA with FlashAttention-3 or 4 in its flash backend.

``torch.nn.attention.activate_flash_attention_impl`` replaces the backend for the whole
process, where ``sdpa-flash`` would run the same kernels under its own name. So it is switched
on for each forward and each backward, and off again: some tens of microseconds on the host,
which are inside the timed call. ``flash-attn-3`` and ``flash-attn-4`` call the same kernels
without them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch.nn import attention
from torch.nn.attention import SDPBackend, sdpa_kernel

from attnbench import ForwardBackward, Problem, Unsupported, register

from .adapter import Built, Library
from .flash_attn_3 import FlashAttn3
from .flash_attn_4 import FlashAttn4

Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
_SWITCH = ("activate_flash_attention_impl", "restore_flash_attention_impl")


class _Activated(Library):
    implementation: ClassVar[str]
    capability = (9, 0)
    layout = "BHSD"
    features = frozenset({"backward", "cross", "gqa", "scale"})
    masks = ("full", "causal")
    source = "https://docs.pytorch.org/docs/main/nn.attention.html"

    def supports(self, problem: Problem, device: torch.device) -> None:
        if missing := [name for name in _SWITCH if not hasattr(attention, name)]:
            raise Unsupported(f"torch {torch.__version__} has no torch.nn.attention.{missing[0]}")
        known = attention.list_flash_attention_impls()
        if self.implementation not in known:
            names = ", ".join(known) or "none"
            raise Unsupported(
                f"torch {torch.__version__} cannot activate {self.implementation} (can: {names})"
            )
        super().supports(problem, device)
        if problem.mask.is_causal and problem.seqlen_q != problem.seqlen_k:
            raise Unsupported("SDPA's causal mask is for seqlen_q = seqlen_k only")

    def prepare(self, problem: Problem, device: torch.device) -> Built:
        with _refusals(self.implementation), _active(self.implementation):
            pass  # what it takes is imported now, not while timed
        wants_grad = problem.direction != "forward"
        keywords: dict[str, Any] = {
            "is_causal": problem.mask.is_causal,
            "scale": problem.softmax_scale,
            "enable_gqa": problem.heads_q != problem.heads_kv,
        }

        def forward(
            q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
        ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
            q, k, v = (x.detach().requires_grad_(wants_grad) for x in (q, k, v))
            with (
                torch.set_grad_enabled(wants_grad),
                _active(self.implementation),
                sdpa_kernel([SDPBackend.FLASH_ATTENTION]),
            ):
                out = F.scaled_dot_product_attention(q, k, v, **keywords)
            return out.detach(), (q, k, v, out)

        def backward(saved: tuple[torch.Tensor, ...], grad: torch.Tensor) -> Gradients:
            q, k, v, out = saved
            with _active(self.implementation):
                # Kept, because the backward is timed alone, many times over.
                dq, dk, dv = torch.autograd.grad(out, (q, k, v), grad, retain_graph=True)
            return dq, dk, dv

        return ForwardBackward(forward, backward)


@register("sdpa-fa3")
class SdpaFa3(_Activated):
    """SDPA's flash backend with FlashAttention-3 activated for the call."""

    implementation = "FA3"
    package = FlashAttn3.package
    version = torch.__version__


@register("sdpa-fa4")
class SdpaFa4(_Activated):
    """SDPA's flash backend with FlashAttention-4 activated for the call."""

    implementation = "FA4"
    package = FlashAttn4.package
    version = torch.__version__


@contextlib.contextmanager
def _active(implementation: str) -> Iterator[None]:
    attention.activate_flash_attention_impl(implementation)
    try:
        yield
    finally:
        attention.restore_flash_attention_impl()


@contextlib.contextmanager
def _refusals(implementation: str) -> Iterator[None]:
    try:
        yield
    except (ImportError, RuntimeError) as error:
        text = " ".join(str(error).split())
        raise Unsupported(f"torch cannot activate {implementation}: {text}") from error
