"""The fused Triton attention in Triton's interpreter, as its tests need it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from shelf import CPU, implementation, module_of, solve

from attnbench import Inputs, Problem, make_inputs
from attnbench.battery import CASES, CaseResult, run_case
from attnbench.oracle import reference
from attnbench.verify import judge, make_yardstick, passed

BY_NAME = {case.name: case for case in CASES}

_FEW = {
    "batch": 2, "heads": 6, "heads_kv": 2, "seqlen_q": 4, "seqlen_k": 130, "head_dim": 16,
    "head_dim_v": 24,
}  # fmt: skip
DECODE: Mapping[str, Problem] = {
    name: Problem.of(**{**_FEW, **changes})
    for name, changes in {
        "split": {},
        "split-causal": {"mask": "causal"},
        "split-window": {"mask": "window:window=40"},
        "split-window-both-ways": {"mask": "window:window=4,causal=false"},
        "split-prefix": {"mask": "prefix:prefix=20"},
        "split-document": {"mask": "document:count=3", "seqlen_q": 9, "seqlen_k": 9},
        "split-softcap": {"softcap": 2.0},
        "split-alibi": {"alibi": True},
        "split-scale": {"scale": 0.7},
        "split-head_dim-40": {"head_dim": 40},
        "split-masked-rows": {"mask": "causal", "seqlen_q": 8, "seqlen_k": 5},
        "split-bfloat16": {"dtype": "bfloat16"},
        "split-float16": {"dtype": "float16"},
    }.items()
}
"""Few queries and many keys: what the battery does not combine with a decode step."""

_BIASED = {
    "bias": True, "batch": 2, "heads": 2, "heads_kv": 1, "seqlen_q": 40, "seqlen_k": 40,
    "head_dim": 16, "head_dim_v": 24, "direction": "both",
}  # fmt: skip
BIASED: Mapping[str, Problem] = {
    name: Problem.of(**{**_BIASED, **changes})
    for name, changes in {
        "bias": {},
        "bias-gqa": {"heads": 4, "heads_kv": 2},
        "bias-causal": {"mask": "causal", "heads_kv": 2},
        "bias-cross": {"mask": "causal", "seqlen_q": 33, "seqlen_k": 70},
        "bias-masked-rows": {"mask": "causal", "seqlen_q": 70, "seqlen_k": 33},
        "bias-window": {"mask": "window:window=9", "seqlen_k": 70},
        "bias-window-both-ways": {"mask": "window:window=9,causal=false"},
        "bias-prefix": {"mask": "prefix:prefix=20"},
        "bias-document": {"mask": "document:count=3"},
        "bias-strided": {"mask": "strided:stride=8"},
        "bias-block_sparse": {"mask": "block_sparse:block=16"},
        "bias-bigbird": {"mask": "bigbird:block=8", "seqlen_q": 70, "seqlen_k": 70},
        "bias-fixed": {"mask": "fixed:stride=16,summary=3"},
        "bias-dilated": {"mask": "dilated:window=5,dilation=3"},
        "bias-softcap": {"softcap": 2.0},
        "bias-alibi": {"alibi": True},
        "bias-scale": {"scale": 0.7},
        "bias-dropout": {"dropout_p": 0.2},
        "bias-everything": {
            "mask": "causal", "seqlen_q": 33, "seqlen_k": 50, "softcap": 3.0, "alibi": True,
            "scale": 0.4, "dropout_p": 0.2,
        },
        "bias-head_dim-40": {"head_dim": 40},
        "bias-bfloat16": {"mask": "causal", "dtype": "bfloat16"},
        "bias-float16": {"mask": "causal", "dtype": "float16"},
        "bias-float8_e4m3fn": {"dtype": "float8_e4m3fn", "direction": "forward"},
        "bias-split": {"seqlen_q": 4, "seqlen_k": 130, "direction": "forward"},
        "bias-split-gradients": {"seqlen_q": 3, "mask": "causal"},
    }.items()
}  # fmt: skip
"""A learned bias with each feature; only a layer has one, so no op of the battery does."""
# Relative L2 error that is allowed; rounding the results takes a third of it.
_BOUNDS = {
    "float32": 1.5e-6, "float16": 1e-3, "bfloat16": 8e-3, "float8_e4m3fn": 0.08,
}  # fmt: skip


def part(name: str) -> ModuleType:
    """A module of the implementation."""
    return importlib.import_module(f"{module_of('triton').__name__}.{name}")


def interpreted() -> Any:
    return implementation("triton", interpret=True)


def run(name: str) -> CaseResult:
    """A case of the battery."""
    return run_case(interpreted(), BY_NAME[name], CPU)


def drawn_bias(problem: Problem) -> torch.Tensor:
    """A learned bias ``(H, M, N)``."""
    generator = torch.Generator().manual_seed(0)
    shape = (problem.heads_q, problem.seqlen_q, problem.seqlen_k)
    return torch.randn(shape, generator=generator).to(problem.torch_dtype)


def answer(attend: Any, inputs: Inputs, bias_HMN: torch.Tensor) -> list[torch.Tensor]:
    """The output, and the four gradients if the problem has a backward."""
    wants_grad = attend.problem.direction != "forward"
    given = [x.detach().requires_grad_(wants_grad) for x in (*inputs.qkv(), bias_HMN)]
    out = attend(*given)
    gradients = torch.autograd.grad(out, given, inputs.grad_out_BHME) if wants_grad else ()
    return [out.detach(), *gradients]


def biased_errors(problem: Problem, bias_HMN: torch.Tensor | None = None) -> list[float]:
    """Relative L2 errors of the output and of the gradients, against the float64 oracle."""
    bias_HMN = drawn_bias(problem) if bias_HMN is None else bias_HMN
    attend, inputs = interpreted().build(problem, CPU), make_inputs(problem, seed=1)
    found = answer(attend, inputs, bias_HMN)
    keep = attend.keep_mask() if problem.dropout_p else None
    truth = reference(problem, inputs, gradients=len(found) > 1, keep_BHMN=keep, bias_HMN=bias_HMN)
    expected = (truth.out_BHME, truth.dq_BHMD, truth.dk_BGND, truth.dv_BGNE, truth.dbias_HMN)
    return [
        float((mine.double() - theirs).norm() / theirs.norm())
        for mine, theirs in zip(found, expected, strict=False)
    ]


def is_right(name: str) -> bool:
    """Whether a case of the battery, of :data:`DECODE` or :data:`BIASED` has right numbers."""
    if name in BIASED:
        problem = BIASED[name]
        return all(error <= _BOUNDS[problem.dtype] for error in biased_errors(problem))
    if name in BY_NAME:
        result = run(name)
        assert result.status in ("ok", "incorrect"), result.reason
        return result.status == "ok"
    execution, inputs = solve("triton", DECODE[name], interpret=True)
    return passed(judge(make_yardstick(DECODE[name], inputs, None), execution.results()))
