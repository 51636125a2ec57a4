"""``xformers`` and its operators: ``xformers-cutlass``, ``xformers-fa2``, ``xformers-splitk``.

``xformers`` leaves the choice to the library's own dispatch. Masks are given as its
``attn_bias`` objects where it has one, otherwise as a tensor. What an operator cannot do is
said in its own words, of ``not_supported_reasons``, for the forward and for the backward.

Heads that share keys go in as BMGHK. Its backward does not take that: for gradients the keys
and values are repeated for each query head, inside the timed call.

Letters: B = batch, H = heads_q, G = heads_kv, R = H / G, M = seqlen_q, N = seqlen_k,
D = head_dim, E = head_dim_v.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Any, ClassVar

import torch

from attnbench import Problem, Unsupported, alibi_bias, make_inputs, register

from .adapter import Built, Library
from .package import Package

PACKAGE = Package("xformers", "xformers.ops.fmha", (0, 0, 34), "pip install xformers")
_ALIGNMENT = 16  # elements from one row of a bias to the next, for every dtype
_NOT_LOADED = "wasn't build with CUDA support"  # xformers' words for a library not loaded


@register("xformers")
class XFormers(Library):
    """xformers' memory_efficient_attention with the operator that it chooses."""

    package = PACKAGE
    operator: ClassVar[str | None] = None  # its module in xformers.ops.fmha
    has_local_bias: ClassVar[bool] = True
    has_causal_bias: ClassVar[bool] = True
    features = Library.features | {"alibi"}
    dtypes: ClassVar[tuple[str, ...] | None] = ("float32", "bfloat16", "float16")
    version = PACKAGE.version()
    source = "Lefaudeux et al. 2022, github.com/facebookresearch/xformers"

    def build(self, problem: Problem, device: torch.device) -> Built:
        try:
            return super().build(problem, device)
        except Unsupported as refusal:
            if why := _why_not_loaded(str(refusal)):
                raise Unsupported(f"{refusal}{why}") from refusal
            raise

    def prepare(self, problem: Problem, device: torch.device) -> Built:
        fmha = _fmha()
        operators = self._operators(fmha)
        bias = self._bias(fmha.attn_bias, problem, device)
        one_row = problem.mask.kind == "document" and not isinstance(bias, torch.Tensor)
        grouped = problem.heads_q != problem.heads_kv
        expands = grouped and problem.direction != "forward"
        if grouped and not expands and isinstance(bias, torch.Tensor):
            B, H, M, N = bias.shape
            bias = bias.reshape(B, problem.heads_kv, H // problem.heads_kv, M, N)
        sharing = problem.heads_q // problem.heads_kv

        def arrange(q: Any, k: Any, v: Any) -> tuple[Any, Any, Any]:
            if one_row:  # documents want batch 1
                q, k, v = (x.flatten(0, 1)[None] for x in (q, k, v))
            if grouped:
                k, v = (x[:, :, :, None].expand(-1, -1, -1, sharing, -1) for x in (k, v))
                if expands:
                    k, v = k.flatten(2, 3), v.flatten(2, 3)
                else:
                    q = q.unflatten(2, (-1, sharing))
            return q, k, v

        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = fmha.memory_efficient_attention(
                *arrange(q, k, v), attn_bias=bias, scale=problem.softmax_scale, op=operators
            )
            return out.reshape(*q.shape[:3], v.shape[-1])

        if operators is not None:
            inputs = make_inputs(problem, seed=0, device=device)
            tensors = arrange(*(x.transpose(1, 2).contiguous() for x in inputs.qkv()))
            asked = fmha.Inputs(*tensors, attn_bias=bias, p=0.0, scale=problem.softmax_scale)
            _check(operators, asked, wants_grad=problem.direction != "forward")
        return attend

    def _operators(self, fmha: Any) -> tuple[Any, Any] | None:
        if self.operator is None:
            return None
        module = PACKAGE.load(f"{PACKAGE.module}.{self.operator}")
        return module.FwOp, getattr(module, "BwOp", None)

    def _bias(self, biases: Any, problem: Problem, device: torch.device) -> Any:
        """None, one of xformers' own objects, or a tensor ``(B, H, M, N)``."""
        mask: Any = problem.mask
        p = problem
        if mask.kind == "full" and not p.alibi:
            return None
        if not p.alibi and mask.kind == "causal" and self.has_causal_bias:
            if p.seqlen_q == p.seqlen_k:
                return biases.LowerTriangularMask()
            return biases.LowerTriangularFromBottomRightMask()
        if not p.alibi and mask.kind == "window" and self.has_local_bias:
            ahead = 0 if mask.causal else mask.window - 1
            return biases.LocalAttentionFromBottomRightMask(
                window_left=mask.window - 1, window_right=ahead
            )
        if not p.alibi and mask.kind == "document" and self.has_causal_bias:
            lengths = list(mask.document_lengths(p.seqlen_k)) * p.batch
            name = "BlockDiagonalCausalMask" if mask.causal else "BlockDiagonalMask"
            return getattr(biases, name).from_seqlens(lengths, device=device)
        # Rows must begin at aligned addresses, whatever seqlen_k is.
        stride = -(-p.seqlen_k // _ALIGNMENT) * _ALIGNMENT
        whole = torch.zeros(p.heads_q, p.seqlen_q, stride, dtype=p.torch_dtype, device=device)
        bias_HMN = whole[:, :, : p.seqlen_k]
        bias_HMN += mask.additive(p.seqlen_q, p.seqlen_k, p.torch_dtype, device)
        if p.alibi:
            bias_HMN += alibi_bias(p, device)
        return bias_HMN.expand(p.batch, -1, -1, -1)


@register("xformers-cutlass")
class XFormersCutlass(XFormers):
    """xformers' CUTLASS operator: the one for float32 and for any bias tensor."""

    operator = "cutlass"
    has_local_bias = False


@register("xformers-fa2")
class XFormersFlash(XFormers):
    """xformers' FlashAttention-2 operator."""

    operator = "flash"
    dtypes = ("bfloat16", "float16")


@register("xformers-splitk")
class XFormersSplitK(XFormers):
    """xformers' split-K operator in Triton, for few queries and long caches; forward only."""

    operator = "triton_splitk"
    has_local_bias = has_causal_bias = False
    features = XFormers.features - {"backward"}
    dtypes = ("bfloat16", "float16")


def _fmha() -> Any:
    """``xformers.ops.fmha``, which newer versions take from the package mslk."""
    fmha = PACKAGE.load()
    if not hasattr(fmha, "memory_efficient_attention"):
        has_mslk = importlib.util.find_spec("mslk") is not None
        what = "which lacks names that it needs" if has_mslk else "which is not installed"
        raise Unsupported(
            f"xformers {PACKAGE.version()} takes its attention from the package mslk, {what} "
            "(pip install mslk)"
        )
    return fmha


def _check(operators: tuple[Any, Any], asked: Any, wants_grad: bool) -> None:
    """Raise Unsupported with the operators' own reasons, word for word."""
    forward, backward = operators
    told = {"forward": forward} | ({"backward": backward} if wants_grad else {})
    refused = [
        f"{way} ({operator.NAME}): {'; '.join(reasons)}"
        for way, operator in told.items()
        if (reasons := operator.not_supported_reasons(asked))
    ]
    if refused:
        raise Unsupported(f"xformers refuses {' | '.join(refused)}")


def _why_not_loaded(text: str) -> str:
    """The wheel's library is for one CUDA: beside another, every operator refuses the GPU."""
    if _NOT_LOADED not in text:
        return ""
    library = sys.modules.get("xformers._cpp_lib")  # imported long since, where there is one
    failure = getattr(library, "_cpp_library_load_exception", None)
    said = f": {' '.join(str(failure).split())}" if failure else ""
    return (
        f" — its compiled library was not loaded beside torch {torch.__version__} with CUDA "
        f"{torch.version.cuda}{said}; install the wheel for this torch and CUDA, or "
        "nvidia-cuda-runtime-cu12 on the library path"
    )
