"""torch's scaled_dot_product_attention: each backend forced, and torch's own choice.

``sdpa-math``, ``sdpa-flash``, ``sdpa-efficient`` and ``sdpa-cudnn`` run that backend or
say, in torch's words, why it cannot; ``sdpa`` leaves the choice to torch.

Letters: B = batch, H = heads_q, G = heads_kv, M = seqlen_q, N = seqlen_k,
D = head_dim, E = head_dim_v.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from attnbench import Attention, Problem, Unsupported, alibi_bias, make_inputs, register

Call = Callable[..., torch.Tensor]


@register("sdpa")
class Sdpa(Attention):
    """scaled_dot_product_attention with the backend that torch chooses."""

    backend: ClassVar[SDPBackend | None] = None
    features = Attention.features | {"alibi", "bias"}
    dtypes = ("float64", "float32", "bfloat16", "float16")
    version = torch.__version__
    source = "https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html"

    def supports(self, problem: Problem, device: torch.device) -> None:
        if problem.dropout_p > 0:
            raise Unsupported("dropout cannot be verified: SDPA reveals no dropout mask")
        super().supports(problem, device)

    def build(self, problem: Problem, device: torch.device) -> Call:
        keywords: dict[str, Any] = {
            **self._mask(problem, device),
            "scale": problem.softmax_scale,
            "enable_gqa": problem.heads_q != problem.heads_kv,
        }
        hidden_MN = keywords.pop("attn_mask", None) if problem.bias else None

        def chosen(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(q, k, v, **keywords)

        def biased(
            q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias_HMN: torch.Tensor
        ) -> torch.Tensor:
            mask_HMN = bias_HMN if hidden_MN is None else bias_HMN + hidden_MN
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask_HMN[None], **keywords)

        attend: Call = biased if problem.bias else chosen
        if self.backend is None:
            return attend
        backend = [self.backend]

        def forced(*given: torch.Tensor) -> torch.Tensor:
            with sdpa_kernel(backend):
                return attend(*given)

        _probe(forced, problem, device)
        return forced

    def _mask(self, problem: Problem, device: torch.device) -> dict[str, Any]:
        """The mask in the form that keeps the most backends possible, made once."""
        lengths = (problem.seqlen_q, problem.seqlen_k)
        is_biased = problem.alibi or problem.bias
        is_causal = problem.mask.kind == "causal" and not is_biased
        if problem.mask.kind == "full" and not problem.alibi:
            return {}
        if is_causal and problem.seqlen_q == problem.seqlen_k:
            return {"is_causal": True}
        # SDPA's is_causal is aligned top-left. torch's bottom-right bias reaches the flash
        # kernel of CUDA (which takes no mask); for the others it builds a mask every call.
        if is_causal and self.backend is SDPBackend.FLASH_ATTENTION and device.type == "cuda":
            # Only here: it imports torch.compile, a second in every worker.
            from torch.nn.attention.bias import causal_lower_right

            return {"attn_mask": causal_lower_right(*lengths)}
        # Additive, because torch turns a boolean mask into this one in every call.
        bias_MN = problem.mask.additive(*lengths, problem.torch_dtype, device)
        if problem.alibi:
            return {"attn_mask": (alibi_bias(problem, device) + bias_MN)[None]}
        return {"attn_mask": bias_MN}


@register("sdpa-math")
class SdpaMath(Sdpa):
    """SDPA's reference backend: plain torch operations in C++."""

    backend = SDPBackend.MATH


@register("sdpa-flash")
class SdpaFlash(Sdpa):
    """SDPA's FlashAttention: FlashAttention-2 on CUDA, torch's own on CPU."""

    backend = SDPBackend.FLASH_ATTENTION


@register("sdpa-efficient")
class SdpaEfficient(Sdpa):
    """SDPA's memory-efficient attention (the xformers CUTLASS kernel)."""

    backend = SDPBackend.EFFICIENT_ATTENTION
    devices = ("cuda",)


@register("sdpa-cudnn")
class SdpaCudnn(Sdpa):
    """SDPA's cuDNN fused attention."""

    backend = SDPBackend.CUDNN_ATTENTION
    devices = ("cuda",)


def _probe(call: Call, problem: Problem, device: torch.device) -> None:
    """Call it once; where torch refuses, raise Unsupported with torch's own reason."""
    inputs = make_inputs(problem, seed=0, device=device)
    wants_grad = problem.direction != "forward"
    given = list(inputs.qkv())
    if problem.bias:
        shape = (problem.heads_q, problem.seqlen_q, problem.seqlen_k)
        given.append(torch.zeros(shape, dtype=problem.torch_dtype, device=device))
    for x in given:
        x.requires_grad_(wants_grad)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            with torch.set_grad_enabled(wants_grad):
                out = call(*given)
            if wants_grad:
                torch.autograd.grad(out, given, inputs.grad_out_BHME)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise Unsupported(_reason(error, told)) from error


def _reason(error: RuntimeError, told: list[warnings.WarningMessage]) -> str:
    """torch's warnings about this backend, else the error itself, in one line."""
    # The backends that sdpa_kernel switched off complain too; headings say nothing.
    noise = ("kernel not used because", "runtime disabled")
    texts = [str(w.message).partition(" (Triggered internally")[0].strip() for w in told]
    reasons = [t for t in texts if not any(n in t for n in noise)]
    return " ".join(reasons) or str(error).strip().splitlines()[0]
