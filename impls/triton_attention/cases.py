"""Compile cases: every kernel × feature × head_dim × dtype × configuration, for every target.

They are taken from launches: problems are solved with tensors that hold nothing, and what
would have been launched is kept. So types, constants and alignment are those of real calls,
and a kernel that ``launch`` launches has its cases without a word here.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

from attnbench import Case, Problem

from .config import KERNELS, TARGETS, Config, Configs, Target, candidates, configs
from .launch import FusedAttention
from .schedules import Machine

_CAUSAL: Mapping[str, Any] = {
    "batch": 2, "heads": 16, "seqlen_q": 1024, "seqlen_k": 1024, "head_dim": 64,
    "mask": "causal", "dtype": "bfloat16", "direction": "both",
}  # fmt: skip
_DECODE = {**_CAUSAL, "heads_kv": 2, "seqlen_q": 1, "direction": "forward"}
_BIAS = {**_CAUSAL, "bias": True}
_ONE = {**_CAUSAL, "batch": 1, "heads": 1, "seqlen_q": 1, "seqlen_k": 1}
_FEATURES: Mapping[str, Mapping[str, Any]] = {
    "full": {**_CAUSAL, "mask": "full"},
    "window": {**_CAUSAL, "mask": "window:window=100"},
    "bounds": {**_CAUSAL, "mask": "document:count=4"},
    "blocks": {**_CAUSAL, "seqlen_q": 256, "seqlen_k": 256, "mask": "strided:stride=32"},
    "softcap-alibi": {**_CAUSAL, "softcap": 30.0, "alibi": True},
    "dropout": {**_CAUSAL, "dropout_p": 0.1},
    "gqa": {**_CAUSAL, "heads_kv": 4},
    "bias-softcap-alibi": {**_BIAS, "softcap": 30.0, "alibi": True},
    "bias-bounds": {**_BIAS, "mask": "document:count=4"},
    "bias-blocks": {**_BIAS, "seqlen_q": 256, "seqlen_k": 256, "mask": "strided:stride=32"},
    "bias-dropout": {**_BIAS, "dropout_p": 0.1},
    "bias-gqa": {**_BIAS, "heads_kv": 4},
    "bias-strided": _BIAS,
    "bias-ragged": {**_BIAS, "seqlen_q": 1001, "seqlen_k": 1003, "head_dim": 40},
    "head_dim_v": {**_CAUSAL, "head_dim": 192, "head_dim_v": 128},
    # Lengths and strides that are no multiples of 16, so that loads are of fewer bytes.
    "ragged": {**_CAUSAL, "seqlen_q": 1001, "seqlen_k": 1003, "head_dim": 40},
    "decode-window": {**_DECODE, "mask": "window:window=100"},
    "decode-bounds": {**_DECODE, "seqlen_q": 4, "mask": "prefix:prefix=20"},
    "decode-softcap-alibi": {**_DECODE, "softcap": 30.0, "alibi": True},
    "decode-bias": {**_DECODE, "bias": True},
    "decode-head_dim_v": {**_DECODE, "head_dim": 192, "head_dim_v": 128},
    "decode-64-rows": {**_DECODE, "seqlen_q": 8},
    # Triton makes a constant of every size that is 1, and constants have other methods.
    "size-1": _ONE,
    "size-1-dropout": {**_ONE, "dropout_p": 0.1},
    "size-1-bias": {**_ONE, "bias": True},
}
_DIMS = (128, 64, 16, 80, 256)
_TABLED_DIMS = (32, 64, 128, 256)  # each has configurations of its own
_FP8 = "float8_e4m3fn"
_FP8_TARGETS = ("sm_89", "sm_90", "sm_100")
_SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", _FP8: "fp8"}
_PROCESSORS, _L2_BYTES = 132, 50 << 20  # numbers that a launch passes on: any will do

# The side of a kernel's tile that becomes the rows of its products; None if it has none.
_ROWS: Mapping[str, str | None] = {
    "forward": "block_m", "specialized": "block_m", "decode": "block_m", "dq": "block_m",
    "dbias": "block_m", "dkdv": "block_n", "merge": None, "delta": None, "keep": None,
}  # fmt: skip
_FULL_RATE_ROWS = 64  # of the matrix instructions of sm_90 and sm_100
# Bytes a thread that may spill. The forward's 128 × 64 tile at head_dim 128 takes all 255
# registers there, and six values more (eight on sm_89, where lengths are no multiples of the
# tile's); drawing the random numbers of dropout takes ten. In float32 ptxas at times spills
# four values of threads that have 56 to 128 registers, seemingly to let more blocks reside.
_LARGE_TILE_BUDGETS = {("forward", "sm_80"): 24, ("forward", "sm_89"): 32}
_DROPOUT_BUDGET = 40
_FLOAT32_BUDGET = 16
_OTHERS_BUDGET = 32  # of a forward that is no default: it runs only where it was the fastest


class Launch(NamedTuple):
    """What a kernel would have been launched with."""

    kernel: Any
    config: Config
    arguments: dict[str, Any]

    @property
    def name(self) -> str:
        """Of the kernel."""
        return str(self.kernel.fn.__name__).removesuffix("_kernel")


class Recorder(FusedAttention):
    """Launches nothing and keeps what it would have launched."""

    def __init__(self, problem: Problem, precision: str, chosen: Configs, target: Target) -> None:
        self.launches: list[Launch] = []
        super().__init__(
            problem, torch.device("meta"), precision, False, chosen=chosen,
            machine=Machine(target, _PROCESSORS, _L2_BYTES),
        )  # fmt: skip

    def _programs_at_once(self, config: Config, arguments: Mapping[str, Any]) -> int:
        return _PROCESSORS

    def _launch(self, kernel: Any, programs: int, config: Config, **arguments: Any) -> None:
        self.launches.append(Launch(kernel, config, arguments))


def record(
    problem: Problem, precision: str, chosen: Configs, target: Target, *, strided: bool = False
) -> list[Launch]:
    """The launches of a forward and, unless the problem is one alone, of a backward.

    Args:
        problem: what to solve, with tensors that take no memory.
        precision: of float32 products.
        chosen: the configurations.
        target: for which.
        strided: whether the heads of a learned bias are innermost, as a table of positions
            leaves them.
    """
    p = problem
    recorder = Recorder(p, precision, chosen, target)
    q, k, v, grad = (
        torch.empty(shape, dtype=p.torch_dtype, device="meta")
        for shape in (
            (p.batch, p.heads_q, p.seqlen_q, p.head_dim),
            (p.batch, p.heads_kv, p.seqlen_k, p.head_dim),
            (p.batch, p.heads_kv, p.seqlen_k, p.head_dim_v),
            (p.batch, p.heads_q, p.seqlen_q, p.head_dim_v),
        )
    )
    bias = None
    if p.bias:
        shape = (p.heads_q, p.seqlen_q, p.seqlen_k)
        bias = torch.empty(shape, dtype=p.torch_dtype, device="meta")
        if strided:
            bias = bias.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    out, lse = recorder.forward(q, k, v, bias)
    if p.direction != "forward":
        recorder.backward((q, k, v), out, lse, recorder.seed, grad, bias)
    recorder.keep_mask()
    return recorder.launches


def cases() -> Iterator[Case]:
    """All cases, target by target; what would be the same to a compiler is there once."""
    for target in TARGETS:
        known: set[Any] = set()
        for case in itertools.chain(_defaults(target), _candidates(target)):
            told = (
                case.kernel_name, case.num_warps, case.num_stages, case.multiples_of_16,
                frozenset(case.signature.items()), frozenset(case.constexprs.items()),
            )  # fmt: skip
            if told not in known:
                known.add(told)
                yield case


def _defaults(target: Target) -> Iterator[Case]:
    """Each problem in the configurations that it has unless others are measured."""
    for name, fields, precision in _problems(target):
        problem = Problem.of(**fields)
        chosen = configs(_dim(problem), problem.element_bytes, target, problem.bias)
        strided = name.endswith("-strided")
        for launch in record(problem, precision, chosen, target, strided=strided):
            yield _case(name, launch, problem, precision, target)


def _problems(target: Target) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """Name, fields and precision; the most telling first."""
    for dtype in ("bfloat16", "float32"):
        for kind, fields in (("causal", _CAUSAL), ("decode", _DECODE)):
            for dim in _DIMS:
                yield f"{kind}-{dim}", {**fields, "head_dim": dim, "dtype": dtype}, "ieee"
    for dtype, dim in itertools.product(("bfloat16", "float32"), _DIMS):
        yield f"bias-{dim}", {**_BIAS, "head_dim": dim, "dtype": dtype}, "ieee"
    for feature, fields in _FEATURES.items():
        yield feature, fields, "ieee"
    for name, fields in (("causal-128", _CAUSAL), ("decode-128", _DECODE)):
        yield name, {**fields, "head_dim": 128, "dtype": "float16"}, "ieee"
        yield f"tf32-{name}", {**fields, "head_dim": 128, "dtype": "float32"}, "tf32"
    yield "tf32-causal-64", {**_CAUSAL, "dtype": "float32"}, "tf32"
    for dim in (64, 128) if target in _FP8_TARGETS else ():
        told = {"head_dim": dim, "dtype": _FP8, "direction": "forward"}
        yield f"causal-{dim}", {**_CAUSAL, **told}, "ieee"
        yield f"bias-{dim}", {**_BIAS, **told}, "ieee"
        yield f"decode-{dim}", {**_DECODE, **told}, "ieee"


def _candidates(target: Target) -> Iterator[Case]:
    """Every configuration that tuning may choose, on the causal mask."""
    for dtype, dim in itertools.product(("bfloat16", "float32"), _TABLED_DIMS):
        problem = Problem.of(**{**_CAUSAL, "head_dim": dim, "dtype": dtype})
        first = configs(dim, problem.element_bytes, target)
        for kernel in KERNELS:
            for other in candidates(kernel, dim, problem.element_bytes, target):
                chosen = dataclasses.replace(first, **{kernel: other})
                name = "-".join(map(str, ("causal", dim, *dataclasses.astuple(other))))
                for launch in record(problem, "ieee", chosen, target):
                    if launch.config == other:
                        yield _case(name, launch, problem, "ieee", target)


def _dim(problem: Problem) -> int:
    return max(problem.head_dim, problem.head_dim_v)


def _case(feature: str, launch: Launch, problem: Problem, precision: str, target: Target) -> Case:
    is_exact = problem.dtype == "float32" and precision == "ieee"
    return Case.of_launch(
        f"{launch.name} {feature} {_SHORT[problem.dtype]} {target}",
        launch.kernel,
        launch.arguments,
        num_warps=launch.config.num_warps,
        num_stages=launch.config.num_stages,
        expects=frozenset() if is_exact else _products(launch),
        spill_budget_bytes=_spill_budget(launch, problem, target),
        targets=(target,),
    )


def _products(launch: Launch) -> frozenset[str]:
    """What the machine code has of matrix instructions; float32 exactly, it is scalar FMAs."""
    side = _ROWS[launch.name]
    if side is None:
        return frozenset()
    is_full_rate = getattr(launch.config, side) >= _FULL_RATE_ROWS
    products = "tensor_cores" if is_full_rate else "mma"
    if launch.config.schedule == "specialized":
        return frozenset({products, "warp_specialize", "tma"})
    return frozenset({products})


def _spill_budget(launch: Launch, problem: Problem, target: Target) -> int:
    if launch.arguments.get("DROPOUT"):
        return _DROPOUT_BUDGET
    if problem.dtype == "float32":
        return _FLOAT32_BUDGET
    if launch.name == "forward" and launch.config != _default(problem, target):
        return _OTHERS_BUDGET
    return _LARGE_TILE_BUDGETS.get((launch.name, target), 0)


def _default(problem: Problem, target: Target) -> Config:
    return configs(_dim(problem), problem.element_bytes, target, problem.bias).forward
