"""Every feature of the fused Triton attention, broken on purpose in one kernel, is found.

A row of :data:`TABLE` breaks a kernel while it is launched, and names a case that must then
find the numbers wrong: of the battery, a decode step of ``fused.DECODE``, or a learned bias of
``fused.BIASED``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from broken_helpers import (
    aligned_top_left,
    coarser_tile,
    kept_of_a_fifth,
    seen_by_the_blind,
    span_one_short,
    span_without_masking,
    with_another_seed,
    without_bias,
    without_delta,
    without_dropout,
    without_extras,
    without_high_end,
    without_low_end,
    without_pattern,
    without_softcap_slope,
)
from fused import BIASED, BY_NAME, DECODE, interpreted, is_right, part
from shelf import CPU

from attnbench import Problem
from attnbench.masks import MASKS

KERNELS = ("forward", "decode", "dkdv", "dq", "dbias")

# ---- the table ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Broken:
    """One feature, broken in one kernel.

    Attributes:
        feature: as the plugin declares it, a mask's kind, a dtype, or one of :data:`MORE`.
        kernel: one of :data:`KERNELS`.
        case: that must find it.
        helper: a function of the kernel's module, and what takes its place.
        arguments: other values for the kernel's, or functions from the right value.
        spoilt: a tensor that the kernel writes, changed afterwards.
    """

    feature: str
    kernel: str
    case: str
    helper: tuple[str, Any] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    spoilt: str = ""

    def __str__(self) -> str:
        how = [*([self.helper[1].fn.__name__] if self.helper else []), *self.arguments, self.spoilt]
        return "-".join(filter(None, (self.kernel, self.feature, *how)))


def helper(name: str, instead: Any) -> dict[str, Any]:
    return {"helper": (name, instead)}


def wrong(**arguments: Any) -> dict[str, Any]:
    return {"arguments": arguments}


def larger(x: torch.Tensor) -> torch.Tensor:
    return x + 0.1


COARSER = helper("load_tile", coarser_tile)
TOP_LEFT = helper("interval_of", aligned_top_left)
NO_LOW = helper("visible_in", without_low_end)
NO_HIGH = helper("visible_in", without_high_end)
BLIND = helper("visible_in", seen_by_the_blind)
NO_PATTERN = helper("visible_by_pattern", without_pattern)
NO_BIAS = helper("bias_of", without_bias)
PLAIN = helper("logits_of", without_extras)
SHORT = helper("span_of", span_one_short)
OTHER_SEED = helper("kept_by_dropout", with_another_seed)
UNSCALED = {**helper("kept_by_dropout", kept_of_a_fifth), **wrong(dropout_p=0.0)}

# Wrong sizes and strides stay within the tensors: to read outside could end the process.
# feature, battery case, then what breaks the forward, dK/dV and dQ.
_BOTH = (
    ("causal", "mask-causal", *[wrong(ahead=1)] * 3),
    ("causal", "mask-causal", helper("span_of", span_without_masking), NO_LOW, NO_HIGH),
    ("window", "mask-window-window=9", *[wrong(behind=6)] * 3),
    ("window", "mask-window-window=9", NO_LOW, NO_HIGH, NO_LOW),
    ("window", "mask-window-window=9,causal=false", *[wrong(ahead=6)] * 3),
    ("document", "mask-document-count=3", *[NO_LOW] * 3),
    ("document", "mask-document-count=3,causal=false", *[NO_HIGH] * 3),
    ("prefix", "mask-prefix-prefix=20", NO_HIGH, NO_LOW, NO_HIGH),
    ("strided", "mask-strided-stride=8", *[NO_PATTERN] * 3),
    ("block_sparse", "mask-block_sparse-block=16", *[NO_PATTERN] * 3),
    ("bigbird", "mask-bigbird-block=8", *[NO_PATTERN] * 3),
    ("fixed", "mask-fixed-stride=16,summary=3", *[NO_PATTERN] * 3),
    ("dilated", "mask-dilated-window=5,dilation=3", *[NO_PATTERN] * 3),
    ("alibi", "alibi", *[PLAIN] * 3),
    ("softcap", "softcap", PLAIN, *[helper("logits_of", without_softcap_slope)] * 2),
    ("scale", "scale", *[wrong(scale=0.1)] * 3),
    ("gqa", "mqa", wrong(group=1), wrong(heads_q=1, group=1), wrong(group=1)),
    ("cross", "cross-causal-33x96", *[TOP_LEFT] * 3),
    ("ragged", "seqlen-65", *[SHORT] * 3),
    ("head_dim", "head_dim-40", *[wrong(HEAD_DIM=32)] * 3),
    ("head_dim_v", "head_dim_v-32-64", *[wrong(HEAD_DIM_V=32)] * 3),
    ("float32", "seqlen-65", *[COARSER] * 3),
    ("float16", "dtype-float16", *[COARSER] * 3),
    ("bfloat16", "dtype-bfloat16", *[COARSER] * 3),
    ("dropout", "dropout", *[OTHER_SEED] * 3),
    ("dropout", "dropout", *[UNSCALED] * 3),
    ("masked rows", "cross-causal-96x33", BLIND, NO_LOW, BLIND),
    ("strides", "strides-qkv", *[wrong(q_m=32)] * 3),
    ("bias", "layer-relative", *[NO_BIAS] * 3),
    ("bias", "layer-relative", *[wrong(bias_h=0)] * 3),
)  # fmt: skip
_FP8 = "float8_e4m3fn"  # forward only; test_triton_fp8 breaks more of it
_SPLIT = (
    ("causal", "split-causal", wrong(ahead=1)),
    ("causal", "decode", helper("span_of", span_without_masking)),
    ("window", "split-window", wrong(behind=20)),
    ("window", "split-window", NO_LOW),
    ("window", "split-window-both-ways", wrong(ahead=1)),
    ("document", "split-document", NO_LOW),
    ("prefix", "split-prefix", NO_HIGH),
    ("alibi", "split-alibi", PLAIN),
    ("softcap", "split-softcap", PLAIN),
    ("scale", "split-scale", wrong(scale=0.1)),
    ("gqa", "split", wrong(group=2)),
    ("cross", "split-causal", TOP_LEFT),
    ("ragged", "split", SHORT),
    ("head_dim", "split-head_dim-40", wrong(HEAD_DIM=32)),
    ("head_dim_v", "split", wrong(HEAD_DIM_V=16)),
    ("float32", "split", COARSER),
    ("float16", "split-float16", COARSER),
    ("bfloat16", "split-bfloat16", COARSER),
    ("masked rows", "split-masked-rows", BLIND),
    ("lse", "cross-1x65-gradients", {"spoilt": "lse_ptr"}),
    ("strides", "decode", wrong(k_h=96 * 32)),
    ("bias", "bias-split", NO_BIAS),
    ("bias", "bias-split", wrong(bias_h=0)),
)
_DBIAS = (
    ("bias", "bias", NO_BIAS),
    ("bias", "bias", wrong(batch=1)),
    ("bias", "bias", wrong(dbias_m=0)),
    ("causal", "bias-causal", NO_HIGH),
    ("window", "bias-window", NO_LOW),
    ("window", "bias-window-both-ways", NO_HIGH),
    ("document", "bias-document", NO_LOW),
    ("prefix", "bias-prefix", NO_HIGH),
    ("strided", "bias-strided", NO_PATTERN),
    ("block_sparse", "bias-block_sparse", NO_PATTERN),
    ("bigbird", "bias-bigbird", NO_PATTERN),
    ("fixed", "bias-fixed", NO_PATTERN),
    ("dilated", "bias-dilated", NO_PATTERN),
    ("alibi", "bias-alibi", PLAIN),
    ("softcap", "bias-softcap", PLAIN),
    ("scale", "bias-scale", wrong(scale=0.1)),
    ("gqa", "bias-gqa", wrong(group=1)),
    ("cross", "bias-cross", TOP_LEFT),
    ("ragged", "bias", SHORT),
    ("head_dim", "bias-head_dim-40", wrong(HEAD_DIM=32)),
    ("head_dim_v", "bias", wrong(HEAD_DIM_V=16)),
    ("float32", "bias", COARSER),
    ("float16", "bias-float16", COARSER),
    ("bfloat16", "bias-bfloat16", COARSER),
    ("dropout", "bias-dropout", OTHER_SEED),
    ("dropout", "bias-dropout", helper("dlogits_of", without_dropout)),
    ("masked rows", "bias-masked-rows", BLIND),
    ("lse", "bias", wrong(lse_ptr=larger)),
    ("lse", "bias", wrong(delta_ptr=larger)),
    ("lse", "bias", helper("dlogits_of", without_delta)),
    ("strides", "bias", wrong(q_m=8)),
)
TABLE = (
    *(
        Broken(feature, kernel, case if kernel == "forward" else f"{case}-gradients", **how)
        for feature, case, *ways in _BOTH
        for kernel, how in zip(("forward", "dkdv", "dq"), ways, strict=True)
    ),
    *(Broken(feature, "decode", case, **how) for feature, case, how in _SPLIT),
    *(Broken(feature, "dbias", case, **how) for feature, case, how in _DBIAS),
    Broken("lse", "forward", "seqlen-65-gradients", spoilt="lse_ptr"),
    Broken(_FP8, "forward", f"dtype-{_FP8}", **wrong(DIM=16)),
    Broken(_FP8, "decode", f"decode-{_FP8}", **wrong(scale=0.5)),
    *(
        Broken("lse", kernel, "seqlen-65-gradients", **how)
        for kernel in ("dkdv", "dq")
        for how in (wrong(lse_ptr=larger), wrong(delta_ptr=larger),
                    helper("dlogits_of", without_delta))
    ),
    *(
        Broken("dropout", kernel, "dropout-gradients", **helper("dlogits_of", without_dropout))
        for kernel in ("dkdv", "dq")
    ),
    *(
        Broken("strides", kernel, "strides-expanded-gradients", **wrong(grad_h=32))
        for kernel in ("dkdv", "dq")
    ),
)  # fmt: skip
MORE = frozenset({"ragged", "head_dim", "masked rows", "lse", "strides"})
"""What no plugin declares and every problem may have; ``head_dim``: padded to a power of two."""
NOT_SPLIT = {
    "dropout": {"dropout_p": 0.1}, "strided": {"mask": "strided:stride=8"},
    "block_sparse": {"mask": "block_sparse:block=16"}, "bigbird": {"mask": "bigbird:block=8"},
    "fixed": {"mask": "fixed:stride=16"}, "dilated": {"mask": "dilated:window=5"},
}  # fmt: skip
"""What a decode step leaves to the forward kernel."""
# Those that are quick: of the backward one kernel a feature, in turn.
_BACKWARD = list(dict.fromkeys(row.feature for row in TABLE if row.kernel in ("dkdv", "dq")))
QUICK = {
    (feature, ("dkdv", "dq")[index % 2]) for index, feature in enumerate(_BACKWARD)
} | {(row.feature, row.kernel) for row in TABLE if row.kernel in ("forward", "decode")} | {
    ("bias", "dbias"), ("strided", "dbias"), ("lse", "dbias"),
}  # fmt: skip


def rows() -> list[Any]:
    seen: set[tuple[str, str]] = set()
    found = []
    for row in TABLE:
        place = (row.feature, row.kernel)
        is_quick = place in QUICK and place not in seen
        seen.add(place)
        found.append(pytest.param(row, marks=[] if is_quick else pytest.mark.slow, id=str(row)))
    return found


@pytest.mark.parametrize("broken", rows())
def test_a_feature_broken_in_one_kernel_is_found(
    broken: Broken, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = break_in(broken, monkeypatch)
    assert not is_right(broken.case)
    assert launched, "the case does not launch the kernel"


def break_in(broken: Broken, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Break it in every launch of its kernel; returns the names of those launched."""
    fused = part("launch").FusedAttention
    launch: Callable[..., None] = fused._launch
    kernel = getattr(part("launch"), f"{broken.kernel}_kernel")
    launched: list[str] = []

    def broken_launch(self: Any, called: Any, *rest: Any, **right: Any) -> None:
        if called is not kernel:
            launch(self, called, *rest, **right)
            return
        launched.append(broken.kernel)
        told = {
            name: value(right[name]) if callable(value) else value
            for name, value in broken.arguments.items()
        }
        with monkeypatch.context() as patch:
            if broken.helper:
                name, instead = broken.helper
                for module in modules_with(name, broken.kernel):
                    patch.setattr(module, name, instead)
            launch(self, called, *rest, **(right | told))
        if broken.spoilt:
            right[broken.spoilt].add_(0.1)

    monkeypatch.setattr(fused, "_launch", broken_launch)
    return launched


def modules_with(name: str, kernel: str) -> list[Any]:
    """Where a kernel finds a helper: decode takes the forward's loop over keys."""
    places = {"decode": ("decode", "forward")}.get(kernel, (kernel,))
    found = [part(place) for place in places if hasattr(part(place), name)]
    assert found, f"no {name} in {places}"
    return found


def test_every_case_that_must_find_something_is_right_when_nothing_is_broken() -> None:
    """They are run by ``test_triton_battery``, ``test_triton_decode`` and ``test_triton_bias``."""
    assert {row.case for row in TABLE} <= {*BY_NAME, *DECODE, *BIASED}


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_table_breaks_every_feature_that_is_declared(kernel: str) -> None:
    """A feature that the plugin comes to declare has no test until it has a row here."""
    plugin = interpreted()
    assert plugin.masks is None
    masks = set(MASKS) - {"full"}
    declared = (plugin.features - {"backward", "decode"}) | masks | set(plugin.dtypes) | MORE
    if kernel == "decode":
        declared -= set(NOT_SPLIT)
    if kernel in ("dkdv", "dq", "dbias"):
        declared -= {_FP8}
    assert {row.feature for row in TABLE if row.kernel == kernel} == declared


@pytest.mark.parametrize("feature", NOT_SPLIT)
def test_what_the_table_leaves_out_of_decode_is_never_split(feature: str) -> None:
    problem = Problem.of(heads=2, seqlen=8, head_dim=16, **NOT_SPLIT[feature])
    assert interpreted().build(problem, CPU).decode is None
