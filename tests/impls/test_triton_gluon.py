"""The Gluon forward for Hopper: its source on a machine of Python, and its machine code."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gluon_machine import Machine, as_python
from gluon_values import Descriptor, Dtype, Fault, Pointer
from shelf import CPU, SHELF, implementation, module_of

import attnbench
from attnbench import Problem, Unsupported
from attnbench.battery import CASES, Case, run_case
from attnbench.offline.check import check
from attnbench.offline.compiling import compile_case
from attnbench.offline.targets import TARGETS

GPU = torch.device("cuda", 0)
HALF = Problem.of(batch=2, heads_q=2, seqlen=65, head_dim=64, dtype="bfloat16")


def part(name: str) -> ModuleType:
    return importlib.import_module(f"{module_of('triton-gluon').__name__}.{name}")


def simulated(
    problem: Problem,
    seed: int = 0,
    programs: int = 3,
    edits: list[tuple[str, str]] | None = None,
    **config: int,
) -> Callable[..., torch.Tensor]:
    """What ``build`` returns, but the launch goes to the machine of Python."""
    launch, forward = part("launch"), part("forward")
    attention = launch.GluonForward(problem, processors=programs, l2_bytes=1 << 16)
    attention.config = dataclasses.replace(attention.config, **config)
    if config:
        tiles = -(-problem.seqlen_q // attention.config.block_m)
        attention.sizes["tiles_of_head"] = tiles
        attention.programs = min(programs, tiles * attention.sizes["heads"])

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = q.new_empty((*q.shape[:3], v.shape[3]))
        arguments = attention.arguments(q, k, v, out)
        written = np.zeros(out.numel(), dtype=int)
        data = np.full(out.numel(), np.nan, dtype=np.float32)
        for name in ("q_desc", "k_desc", "v_desc"):
            told = arguments[name]
            view = told.base.as_strided(told.shape, told.strides).float().numpy()
            arguments[name] = Descriptor(view, told.block_shape, Dtype(problem.dtype))
        arguments["out_ptr"] = Pointer(data, written, Dtype(problem.dtype))
        machine = Machine(forward.forward_kernel, seed, edits or [])
        machine.launch(attention.programs, **arguments)
        if not (written == 1).all():
            raise Fault(f"{(written != 1).sum()} elements of the output are not written once")
        return torch.from_numpy(data).to(out.dtype).reshape(out.shape)

    return call


def simulation(**how: Any) -> attnbench.Attention:
    """The plugin, on the machine of Python, for the battery."""
    plugin = type(implementation("triton-gluon"))

    class Simulated(plugin):  # type: ignore[valid-type,misc]
        devices = ("cpu",)

        def supports(self, problem: Problem, device: torch.device) -> None:
            attnbench.Attention.supports(self, problem, device)

        def build(self, problem: Problem, device: torch.device) -> Callable[..., Any]:
            return simulated(problem, **how)

    return Simulated()


SMALL = {"block_m": 32, "block_n": 16}  # many tiles, many blocks


# ---- right: the battery ------------------------------------------------------------------


def in_half(case: Case) -> Case:
    dtype = "float16" if case.problem.dtype == "float16" else "bfloat16"
    return Case(case.name, case.problem.replace(dtype=dtype), case.check)


FITTING = {
    case.name: in_half(case)
    for case in CASES
    if case.problem.mask.kind in ("full", "causal")
    and case.problem.direction == "forward"
    and not (case.problem.dropout_p or case.problem.alibi)
}
QUICK = (
    "seqlen-1", "seqlen-65", "cross-1x65", "cross-causal-33x96", "cross-causal-96x33",
    "cross-causal-65x1", "gqa-causal", "mqa", "head_dim-40", "head_dim-256",
    "head_dim_v-32-64", "head_dim_v-192-128", "dtype-float16-causal", "inputs-large",
    "inputs-peaky-bfloat16", "scale-negative", "softcap-causal", "decode", "decode-gqa",
    "strides-qkv", "new-contents", "repeats", "batch-apart-nan", "nan-in-q-causal",
    "nan-in-k-causal", "nan-in-v-causal",
)  # fmt: skip


@pytest.mark.parametrize("name", QUICK)
def test_the_battery_finds_nothing_wrong_in_small_blocks(name: str) -> None:
    result = run_case(simulation(**SMALL), FITTING[name], CPU)
    assert (result.status, result.reason) == ("ok", None)


@pytest.mark.parametrize("name", ["dtype-bfloat16-causal", "gqa-causal"])
def test_the_battery_finds_nothing_wrong_in_the_blocks_that_ship(name: str) -> None:
    result = run_case(simulation(), FITTING[name], CPU)
    assert (result.status, result.reason) == ("ok", None)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FITTING))
def test_the_battery_finds_nothing_wrong(name: str) -> None:
    for how in (SMALL, {}):
        result = run_case(simulation(**how), FITTING[name], CPU)
        expected = "unsupported" if name == "strides-expanded" else "ok"
        assert result.status == expected, result.reason


# ---- the protocol ------------------------------------------------------------------------


def error(problem: Problem, **how: Any) -> float:
    """Largest difference from float64."""
    inputs = attnbench.make_inputs(problem, seed=0)
    q, k, v = inputs.qkv()
    found = simulated(problem, **how)(q, k, v).double()
    group = problem.heads_q // problem.heads_kv
    k, v = (x.double().repeat_interleave(group, dim=1) for x in (k, v))
    logits = q.double() @ k.mT * problem.softmax_scale
    if problem.mask.kind == "causal":
        visible = problem.mask.dense(problem.seqlen_q, problem.seqlen_k, CPU)
        logits = logits.masked_fill(~visible, -torch.inf)
    exact = torch.softmax(logits, -1).nan_to_num(0) @ v
    return float((found - exact).abs().nan_to_num(torch.inf).max())


@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize("mask", ["full", "causal"])
def test_whatever_order_chance_gives_the_answer_is_the_same(mask: str, stages: int) -> None:
    # 0 blocks that are seen (70 queries, 6 keys: 64 rows see nothing), 1, 2 and many.
    for seqlen_q, seqlen_k in ((70, 6), (70, 16), (40, 32), (33, 150)):
        problem = HALF.replace(batch=1, seqlen_q=seqlen_q, seqlen_k=seqlen_k, mask=mask)
        for seed in range(4):
            how = {"seed": seed, "programs": 2, "stages": stages, **SMALL}
            assert error(problem, **how) < 0.02


BROKEN = {
    "the producer takes the wrong phase": (
        "mbarrier.wait(k_empty.index(stage), phase ^ 1)", "mbarrier.wait(k_empty.index(stage), phase)",
    ),
    "the producer does not wait for room for keys": (
        "mbarrier.wait(k_empty.index(stage), phase ^ 1)", "pass",
    ),
    "the producer does not wait for room for values": (
        "mbarrier.wait(v_empty.index(stage), phase ^ 1)", "pass",
    ),
    "the producer does not wait for room for queries": (
        "mbarrier.wait(q_empty.index(i), (turn & 1) ^ 1)", "pass",
    ),
    "one consumer is enough to release keys": (
        "k_empty = new_barriers(STAGES, CONSUMERS)", "k_empty = new_barriers(STAGES, 1)",
    ),
    "no bytes are announced": (
        "mbarrier.expect(full, desc.block_type.nbytes)", "mbarrier.arrive(full, count=1)",
    ),
    "a consumer does not wait for keys": (
        "    mbarrier.wait(k_full.index(stage), phase)\n    dots_MN", "    pass\n    dots_MN",
    ),
    "a consumer does not wait for values": (
        "mbarrier.wait(v_full.index(stage), phase)  # for the next step; here it fences off the "
        "softmax", "pass",
    ),
    "a consumer does not wait for the queries of its second turn": (
        "mbarrier.wait(q_full.index(WHICH), turn & 1)", "mbarrier.wait(q_full.index(WHICH), 0)",
    ),
    "keys are released before they are read": (
        "dots_MN = warpgroup_mma_wait(1, deps=(dots_MN,))\n    mbarrier.arrive(k_empty.index(stage), count=1)",
        "mbarrier.arrive(k_empty.index(stage), count=1)\n    dots_MN = warpgroup_mma_wait(1, deps=(dots_MN,))",
    ),
    "values are released before they are read": (
        "acc_ME = warpgroup_mma_wait(0, deps=(acc_ME,))\n    mbarrier.arrive(v_empty.index(last_stage), count=1)",
        "mbarrier.arrive(v_empty.index(last_stage), count=1)\n    acc_ME = warpgroup_mma_wait(0, deps=(acc_ME,))",
    ),
    "keys are never released": (
        "dots_MN = warpgroup_mma_wait(1, deps=(dots_MN,))\n    mbarrier.arrive(k_empty.index(stage), count=1)",
        "dots_MN = warpgroup_mma_wait(1, deps=(dots_MN,))",
    ),
    "queries are released too early": (
        "mbarrier.wait(q_full.index(WHICH), turn & 1)",
        "mbarrier.wait(q_full.index(WHICH), turn & 1)\n        mbarrier.arrive(q_empty.index(WHICH), count=1)",
    ),
    "the dots are not waited for": (
        "dots_MN = warpgroup_mma_wait(1, deps=(dots_MN,))", "dots_MN = warpgroup_mma_wait(2, deps=(dots_MN,))",
    ),
    "the producer starts each turn at step 0": (
        "v_smem.index(stage))\n        step += blocks", "v_smem.index(stage))",
    ),
    "the phase is that of the block, not of the ring": (
        "return step % STAGES, (step // STAGES) & 1", "return step % STAGES, step & 1",
    ),
    "keys go the other way": ("n = (blocks - 1 - j) * BLOCK_N", "n = j * BLOCK_N"),
    "values are those of the next block": ("n = (blocks - j) *", "n = (blocks - 1 - j) *"),
    "the values of the last block are never loaded": ("range(blocks + 1)", "range(blocks)"),
    "the diagonal is one key off": ("(seqlen_k - seqlen_q + 1)", "(seqlen_k - seqlen_q)"),
    "too few blocks are masked": (
        "blocks - min(seen_by_first // BLOCK_N, blocks - 1)", "1",
    ),
    "the last block of keys is left out": (
        "max((seen_by_last + BLOCK_N - 1) // BLOCK_N, 1)", "max(seen_by_last // BLOCK_N, 1)",
    ),
    "the output is not scaled down": (
        "acc_ME = acc_ME * gl.convert_layout(keep_M, gl.SliceLayout(1, out_layout))[:, None]", "pass",
    ),
    "a row that has seen nothing is not thought of": (
        'from_M = gl.where(new_M == float("-inf"), 0.0, new_M)', "pass",
    ),
    "sections of heads overlap": ("first = section * heads_together", "first = section"),
}  # fmt: skip


@pytest.mark.parametrize("what", sorted(BROKEN))
def test_a_broken_kernel_is_found(what: str) -> None:
    problem = HALF.replace(batch=1, heads_q=3, heads_kv=3, seqlen_q=90, seqlen_k=75, mask="causal")

    def is_found(seed: int) -> bool:
        how = {"seed": seed, "programs": 2, "stages": 2, "edits": [BROKEN[what]], **SMALL}
        try:
            return not error(problem, **how) < 0.02
        except (Fault, TypeError):  # TypeError: a pending product is no array
            return True

    assert any(is_found(seed) for seed in range(6))


def test_one_stage_is_refused_because_it_would_hang() -> None:
    problem = HALF.replace(batch=1)
    with pytest.raises(AssertionError, match="asks for the next"):
        error(problem, stages=1, **SMALL)
    source = part("forward").forward_kernel.src
    (check_,) = re.findall(r"gl\.static_assert\(.*?\"\)", source, re.DOTALL)
    with pytest.raises(Fault, match="hangs"):
        error(problem, stages=1, edits=[(check_, "pass")], **SMALL)
