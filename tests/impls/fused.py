"""The fused Triton attention in Triton's interpreter, as its tests need it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from shelf import CPU, implementation, module_of, solve

from attnbench import Problem
from attnbench.battery import CASES, CaseResult, run_case
from attnbench.layer import inside
from attnbench.verify import judge, make_yardstick, passed

BY_NAME = {case.name: case for case in CASES if not inside.core(case.problem).bias}
BIASED = {case.name: case for case in CASES if case.name not in BY_NAME}  # refused

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


def part(name: str) -> ModuleType:
    """A module of the implementation."""
    return importlib.import_module(f"{module_of('triton').__name__}.{name}")


def interpreted() -> Any:
    return implementation("triton", interpret=True)


def run(name: str) -> CaseResult:
    """A case of the battery."""
    return run_case(interpreted(), BY_NAME[name], CPU)


def is_right(name: str) -> bool:
    """Whether a case of the battery, or of :data:`DECODE`, finds the numbers right."""
    if name in BY_NAME:
        result = run(name)
        assert result.status in ("ok", "incorrect"), result.reason
        return result.status == "ok"
    execution, inputs = solve("triton", DECODE[name], interpret=True)
    return passed(judge(make_yardstick(DECODE[name], inputs, None), execution.results()))
