"""Compile cases: every configuration and feature of the kernel, from the arguments of launches."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from attnbench import Case, Problem

from .forward import forward_kernel
from .launch import WARPS, GluonForward

_EXPECTS = frozenset({"tensor_cores", "tma", "warp_specialize"})
_SIZES = {"batch": 2, "heads": 8, "seqlen": 4096}
_PROBLEMS = {
    "causal, head_dim 128": {"head_dim": 128, "mask": "causal"},
    "full, head_dim 128": {"head_dim": 128},
    "causal, head_dim 64": {"head_dim": 64, "mask": "causal"},
    "full, head_dim 64": {"head_dim": 64},
    "causal, head_dim 256": {"head_dim": 256, "mask": "causal"},
    "full, head_dim 256": {"head_dim": 256},
    "causal, head_dim 80": {"head_dim": 80, "mask": "causal"},
    "causal, head_dim 192, head_dim_v 128": {"head_dim": 192, "head_dim_v": 128, "mask": "causal"},
    "full, head_dim 64, head_dim_v 256": {"head_dim": 64, "head_dim_v": 256},
    "causal, softcap": {"head_dim": 128, "softcap": 30.0, "mask": "causal"},
    "causal, negative scale": {"head_dim": 128, "scale": -0.1, "mask": "causal"},
    "causal, softcap, negative scale, head_dim 256": {
        "head_dim": 256, "softcap": 30.0, "scale": -0.1, "mask": "causal",
    },
    "single query": {"head_dim": 128, "heads": 1, "batch": 1, "seqlen_q": 1},
}  # fmt: skip


def cases() -> Iterator[Case]:
    """Each problem in bf16, and the plain ones in fp16 too."""
    for name, fields in _PROBLEMS.items():
        yield case_of(f"{name}, bf16", Problem.of(**{**_sizes(fields), "dtype": "bfloat16"}))
    for name in list(_PROBLEMS)[:6]:
        fields = {**_SIZES, **_PROBLEMS[name]}
        yield case_of(f"{name}, fp16", Problem.of(**{**fields, "dtype": "float16"}))


def case_of(name: str, problem: Problem) -> Case:
    """What a launch for a problem compiles."""
    p = problem
    q = _meta(p, p.heads_q, p.seqlen_q, p.head_dim)
    k = _meta(p, p.heads_kv, p.seqlen_k, p.head_dim)
    v = _meta(p, p.heads_kv, p.seqlen_k, p.head_dim_v)
    out = _meta(p, p.heads_q, p.seqlen_q, p.head_dim_v)
    arguments = GluonForward(p, processors=132, l2_bytes=50 * 2**20).arguments(q, k, v, out)
    return Case.of_launch(
        name, forward_kernel, arguments, num_warps=WARPS, num_stages=3, expects=_EXPECTS,
        targets=("sm_90",),
    )  # fmt: skip


def _sizes(fields: dict[str, object]) -> dict[str, object]:
    both = {**_SIZES, **fields}
    if "seqlen_q" in both:
        both["seqlen_k"] = both.pop("seqlen")
    return both


def _meta(problem: Problem, heads: int, seqlen: int, dim: int) -> torch.Tensor:
    shape = (problem.batch, heads, seqlen, dim)
    return torch.empty(shape, dtype=problem.torch_dtype, device="meta")
