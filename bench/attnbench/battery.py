"""The conformance battery: the small problems on which attention kernels go wrong.

Every case is a shape, mask, dtype or habit that has broken a real implementation: one
below and above a block size, fully masked rows, a value head dimension of its own, an
output remembered by address. All are small; a plain CPU implementation does them all in
seconds. ``attnbench verify`` prints the table.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch

from attnbench import checks
from attnbench.attention import Attention, Unsupported
from attnbench.checks import Trial, Wrong
from attnbench.errors import in_words, message
from attnbench.execution import WrongOutput
from attnbench.problem import Position, Problem
from attnbench.record import TensorAccuracy

CaseStatus = Literal["ok", "incorrect", "unsupported", "error"]


@dataclass(frozen=True)
class Case:
    """One thing to try: a problem, and what to do with it."""

    name: str
    problem: Problem
    check: Callable[[Trial], None] = checks.right

    @property
    def about(self) -> str:
        """What the case expects, in one sentence."""
        return (self.check.__doc__ or "").strip().splitlines()[0]


@dataclass(frozen=True)
class CaseResult:
    """How a case went.

    Attributes:
        reason: why it is not ok; for ``ok``, something worth knowing, or None.
        accuracy: by tensor, where an answer was compared with the oracle.
    """

    case: Case
    status: CaseStatus
    reason: str | None = None
    accuracy: dict[str, TensorAccuracy] = field(default_factory=dict)


def run_case(implementation: Attention, case: Case, device: torch.device) -> CaseResult:
    """Run one case. Whatever the implementation raises becomes the result."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()  # what earlier cases compiled must not count towards the limit
    trial = None
    try:
        trial = Trial(implementation, case.problem, device)
        case.check(trial)
    except Unsupported as refusal:
        return CaseResult(case, "unsupported", message(refusal) or "no reason given")
    except (Wrong, WrongOutput) as fault:
        return CaseResult(case, "incorrect", str(fault), trial.accuracy if trial else {})
    except BaseException as error:  # SystemExit too: the battery runs where no user can press keys
        return CaseResult(case, "error", in_words(error))
    return CaseResult(case, "ok", trial.note, trial.accuracy)


# ---- the cases ---------------------------------------------------------------------------

_BASE: dict[str, Any] = {"batch": 2, "heads_q": 2, "seqlen_q": 65, "head_dim": 32}
_BLOCKS = (16, 32, 64, 128)
_SHORT = ("bfloat16", "float16", "float8_e4m3fn")
_SINGLE_ROWS = {"kind": "block_sparse", "block": 16, "blocks_kept": [[0, 0], [2, 1], [3, 3]]}


def _shapes() -> Iterator[tuple[str, dict[str, Any]]]:
    """Shapes: name and what differs from the base."""
    lengths = {1, 2, 7, 61} | {block + d for block in _BLOCKS for d in (-1, 0, 1)}
    for seqlen in sorted(lengths):
        yield f"seqlen-{seqlen}", {"seqlen_q": seqlen}
    for seqlen_q, seqlen_k in ((1, 65), (33, 96), (96, 33), (65, 1)):
        lengths_differ = {"seqlen_q": seqlen_q, "seqlen_k": seqlen_k}
        yield f"cross-{seqlen_q}x{seqlen_k}", lengths_differ
        yield f"cross-causal-{seqlen_q}x{seqlen_k}", {**lengths_differ, "mask": "causal"}
    yield "batch-1", {"batch": 1}
    yield "heads-1", {"heads_q": 1}
    yield "gqa", {"heads_q": 6, "heads_kv": 2}
    yield "gqa-causal", {"heads_q": 6, "heads_kv": 2, "mask": "causal"}
    yield "mqa", {"heads_q": 4, "heads_kv": 1}
    for head_dim in (32, 40, 64, 72, 80, 96, 128, 192, 256):
        yield f"head_dim-{head_dim}", {"head_dim": head_dim}
    for head_dim, head_dim_v in ((32, 64), (64, 32), (192, 128)):
        yield (
            f"head_dim_v-{head_dim}-{head_dim_v}",
            {
                "head_dim": head_dim,
                "head_dim_v": head_dim_v,
            },
        )


def _contents() -> Iterator[tuple[str, dict[str, Any]]]:
    """Masks, dtypes, inputs and the extras of the definition."""
    for mask in (
        "causal", "window:window=9", "window:window=9,causal=false", "prefix:prefix=20",
        "document:count=3", "document:count=3,causal=false", "strided:stride=8",
        "block_sparse:block=16", "bigbird:block=8", "fixed:stride=16,summary=3",
        "dilated:window=5,dilation=3",
    ):  # fmt: skip
        yield f"mask-{mask.replace(':', '-')}", {"mask": mask, "seqlen_q": 80}
    yield "masked-rows", {"mask": _SINGLE_ROWS, "seqlen_q": 80}
    for dtype in _SHORT:
        yield f"dtype-{dtype}", {"dtype": dtype}
        yield f"dtype-{dtype}-causal", {"dtype": dtype, "mask": "causal", "seqlen_q": 130}
        long = {"batch": 1, "seqlen_q": 600}  # where sums in few bits show
        yield f"dtype-{dtype}-long", {**long, "dtype": dtype}
        yield f"masked-rows-{dtype}", {"mask": _SINGLE_ROWS, "seqlen_q": 80, "dtype": dtype}
    for kind in ("large", "peaky", "correlated"):
        yield f"inputs-{kind}", {"inputs": kind}
        yield f"inputs-{kind}-bfloat16", {"inputs": kind, "dtype": "bfloat16", "mask": "causal"}
    yield "scale", {"scale": 0.5}
    yield "scale-negative", {"scale": -0.1}
    yield "softcap", {"softcap": 2.0}
    yield "softcap-causal", {"softcap": 2.0, "mask": "causal", "scale": 1.0}
    yield "alibi", {"alibi": True, "heads_q": 6}
    yield "alibi-causal-cross", {"alibi": True, "mask": "causal", "seqlen_k": 96}
    yield "dropout", {"dropout_p": 0.2}
    yield "dropout-causal-gqa", {"dropout_p": 0.2, "mask": "causal", "heads_q": 4, "heads_kv": 2}


def _layers() -> Iterator[tuple[str, dict[str, Any]]]:
    """Whole layers: each way to tell positions, padding, and what shapes change in them."""
    layer = {"level": "layer"}
    for position in get_args(Position):
        yield f"layer-{position}", {**layer, "position": position, "mask": "causal"}
    shared = {"heads_q": 4, "heads_kv": 2, "mask": "causal"}
    yield "layer-relative-gqa", {**layer, **shared, "position": "relative"}
    yield "layer-padding", {**layer, "padding": 0.4}
    yield "layer-padding-rope", {**layer, "padding": 0.4, "mask": "causal", "position": "rope"}
    yield "layer-padding-relative", {**layer, "padding": 0.4, "position": "relative"}
    yield "layer-gqa", {**layer, "heads_q": 4, "heads_kv": 2}
    yield "layer-cross", {**layer, "seqlen_k": 96, "position": "sinusoidal"}
    yield "layer-head_dim_v", {**layer, "head_dim_v": 64}
    yield "layer-bfloat16", {**layer, "dtype": "bfloat16", "position": "learned"}
    yield "layer-large", {**layer, "inputs": "large"}


def _cases() -> Iterator[Case]:
    for name, changes in (*_shapes(), *_contents(), *_layers()):
        for direction, suffix in (("forward", ""), ("both", "-gradients")):
            problem = Problem.of(**{**_BASE, **changes, "direction": direction})
            if problem.element_bytes > 1 or direction == "forward":  # 8 bits hold no gradients
                yield Case(name + suffix, problem)
    forward, causal = Problem.of(**_BASE), Problem.of(**_BASE, mask="causal")
    both = forward.replace(direction="both")
    decode = {**_BASE, "decode": True, "seqlen_k": 96, "mask": "causal"}
    yield Case("decode", Problem.of(**{**decode, "seqlen_q": 1}))
    yield Case("decode-4", Problem.of(**{**decode, "seqlen_q": 4}))
    yield Case("decode-gqa", Problem.of(**{**decode, "seqlen_q": 1, "heads_q": 4, "heads_kv": 2}))
    yield Case("decode-float8_e4m3fn", Problem.of(**{**decode, "seqlen_q": 1, "dtype": "fp8"}))
    yield Case("backward-alone", forward.replace(direction="backward"), checks.right_twice)
    for problem, suffix in ((forward, ""), (both, "-gradients")):
        yield Case("strides-qkv" + suffix, problem, checks.right_on_slices_of_qkv)
        yield Case("strides-expanded" + suffix, problem, checks.right_on_expanded)
        yield Case("new-contents" + suffix, problem, checks.right_on_new_contents)
        yield Case("repeats" + suffix, problem, checks.repeats)
        yield Case("batch-apart" + suffix, problem, checks.keeps_batch_apart)
        yield Case("batch-apart-nan" + suffix, problem, checks.keeps_nan_apart)
    for problem, suffix in ((forward, ""), (causal, "-causal")):
        yield Case("nan-in-q" + suffix, problem, checks.spreads_nan_of_q)
        yield Case("nan-in-k" + suffix, problem, checks.spreads_nan_of_k)
        yield Case("nan-in-v" + suffix, problem, checks.spreads_nan_of_v)


CASES: tuple[Case, ...] = tuple(_cases())
"""The whole battery, in the order it is shown."""
