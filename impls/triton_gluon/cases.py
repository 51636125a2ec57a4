"""Compile cases: every configuration and feature of the kernel, from the arguments of launches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from attnbench import Case, Problem

from .forward import forward_kernel
from .launch import WARPS, GluonForward

_EXPECTS = frozenset({"tensor_cores", "tma", "warp_specialize"})
_SIZES = {"batch": 2, "heads": 8, "seqlen_q": 4096, "seqlen_k": 4096}
_PLAIN = 6  # so many of the problems, which are compiled in fp16 too
_PROBLEMS: Mapping[str, Mapping[str, Any]] = {
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
    for dtype, number in (("bfloat16", len(_PROBLEMS)), ("float16", _PLAIN)):
        for name, fields in list(_PROBLEMS.items())[:number]:
            problem = Problem.of(**{**_SIZES, **fields, "dtype": dtype})
            yield case_of(f"{name}, {dtype}", problem)


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


def _meta(problem: Problem, heads: int, seqlen: int, dim: int) -> torch.Tensor:
    shape = (problem.batch, heads, seqlen, dim)
    return torch.empty(shape, dtype=problem.torch_dtype, device="meta")
