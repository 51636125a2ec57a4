"""``triton`` on 8-bit inputs (e4m3): right with every feature, refused where it cannot be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from broken_helpers import (
    aligned_top_left,
    span_one_short,
    with_another_seed,
    without_extras,
    without_high_end,
    without_low_end,
    without_pattern,
)
from fused import BY_NAME, interpreted, part
from shelf import CPU, assert_right, implementation, solve
from triton.runtime.interpreter import TensorHandle

from attnbench import Problem, Unsupported, make_inputs
from attnbench.battery import Case, run_case
from attnbench.offline import TARGETS, compile_case
from attnbench.offline import Case as CompileCase
from attnbench.oracle import reference

FP8 = torch.float8_e4m3fn
SMALL: dict[str, Any] = {
    "heads_q": 4, "heads_kv": 2, "seqlen_q": 70, "seqlen_k": 70, "head_dim": 32, "dtype": "fp8",
}  # fmt: skip


# ---- right -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if "long" in name else [])
        for name in BY_NAME
        if "float8" in name
    ],
)
def test_the_battery_finds_nothing_wrong(name: str) -> None:
    result = run_case(interpreted(), BY_NAME[name], CPU)
    assert (result.status, result.reason) == ("ok", None)


FEATURES: dict[str, dict[str, Any]] = {
    "window": {"mask": "window:window=9"},
    "documents": {"mask": "document:count=3"},
    "prefix": {"mask": "prefix:prefix=20"},
    "blocks": {"mask": "block_sparse:block=16"},
    "strided": {"mask": "strided:stride=8"},
    "cross": {"mask": "causal", "seqlen_k": 96},
    "more-queries": {"mask": "causal", "seqlen_k": 33},
    "head_dim-16": {"head_dim": 16},  # less than an 8-bit product sums over
    "head_dim-40": {"head_dim": 40},
    "head_dim_v": {"head_dim": 64, "head_dim_v": 48},
    "softcap": {"softcap": 2.0, "mask": "causal"},
    "alibi": {"alibi": True, "mask": "causal"},
    "scale": {"scale": -0.3},
    "dropout": {"dropout_p": 0.2, "mask": "causal"},
    "large": {"inputs": "large"},
    "peaky": {"inputs": "peaky", "mask": "causal"},
    "decode": {"seqlen_q": 1, "decode": True, "mask": "causal"},
    "decode-window": {"seqlen_q": 4, "seqlen_k": 200, "mask": "window:window=60"},
    "decode-extras": {"seqlen_q": 3, "head_dim": 16, "head_dim_v": 24, "softcap": 2.0,
                      "alibi": True},
}  # fmt: skip


# Those with code of their own; the others find what the same tests in 16 bits find.
QUICK = ("window", "blocks", "head_dim-16", "head_dim_v", "softcap", "dropout", "decode",
         "decode-extras")  # fmt: skip


def slow_unless(name: str, names: tuple[str, ...]) -> Any:
    return pytest.param(name, marks=[] if name in names else [pytest.mark.slow])


def with_feature(name: str) -> Problem:
    return Problem.of(**{**SMALL, **FEATURES[name]})


@pytest.mark.parametrize("name", [slow_unless(name, QUICK) for name in FEATURES])
def test_every_feature_is_right(name: str) -> None:
    assert_right("triton", with_feature(name), interpret=True)


BROKEN = (
    ("forward", "span_of", span_one_short, "head_dim-40"),
    ("forward", "visible_in", without_low_end, "window"),
    ("forward", "visible_in", without_low_end, "documents"),
    ("forward", "visible_in", without_high_end, "prefix"),
    ("forward", "visible_in", without_high_end, "cross"),
    ("forward", "visible_by_pattern", without_pattern, "blocks"),
    ("forward", "visible_by_pattern", without_pattern, "strided"),
    ("forward", "logits_of", without_extras, "softcap"),
    ("forward", "logits_of", without_extras, "alibi"),
    ("forward", "kept_by_dropout", with_another_seed, "dropout"),
    ("decode", "span_of", span_one_short, "decode"),
    ("decode", "interval_of", aligned_top_left, "decode-window"),
    ("forward", "logits_of", without_extras, "decode-extras"),
)


@pytest.mark.parametrize(
    ("where", "helper", "broken", "name"),
    [pytest.param(*b, marks=[] if b[3] in QUICK else [pytest.mark.slow]) for b in BROKEN],
    ids=[f"{where}-{broken.fn.__name__}-{name}" for where, _, broken, name in BROKEN],
)  # fmt: skip
def test_a_broken_helper_is_found(
    where: str, helper: str, broken: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part(where), helper, broken)
    assert run_case(interpreted(), Case(name, with_feature(name)), CPU).status == "incorrect"


@pytest.mark.parametrize(
    ("kernel", "arguments", "case"),
    [
        ("forward_kernel", {"scale": 0.5}, "dtype-float8_e4m3fn"),
        ("forward_kernel", {"HEAD_DIM": 16}, "dtype-float8_e4m3fn"),
        ("forward_kernel", {"DIM": 16}, "dtype-float8_e4m3fn"),
        ("decode_kernel", {"scale": 0.5}, "decode-float8_e4m3fn"),
        ("merge_kernel", {"shares": 1}, "decode-float8_e4m3fn"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_found(
    kernel: str, arguments: dict[str, Any], case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = part("launch").FusedAttention
    launch, wrong = fused._launch, getattr(part("launch"), kernel)

    def broken(self: Any, launched: Any, *rest: Any, **right: Any) -> None:
        launch(self, launched, *rest, **(right | arguments if launched is wrong else right))

    monkeypatch.setattr(fused, "_launch", broken)
    assert run_case(interpreted(), BY_NAME[case], CPU).status == "incorrect"


def test_nearly_every_output_is_the_rounded_truth() -> None:
    """The oracle allows far more; weights of 8 bits would not do it."""
    problem = Problem.of(**{**SMALL, "seqlen_q": 200, "seqlen_k": 200})
    execution, inputs = solve("triton", problem, interpret=True)
    truth = reference(problem, inputs, gradients=False).out_BHME
    rounded = truth.to(FP8).float()

    def share_right(out: torch.Tensor) -> float:
        return float((out.float() == rounded).double().mean())

    assert share_right(execution.results()["out"]) > 0.99
    q, k, v = (x.double() for x in inputs.qkv())
    k, v = (x.repeat_interleave(2, dim=1) for x in (k, v))
    logits = q @ k.mT * problem.softmax_scale
    weights = (logits - logits.amax(-1, keepdim=True)).exp()
    short = weights.to(FP8).double() @ v / weights.sum(-1, keepdim=True)
    assert share_right(short.to(FP8)) < 0.9


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("seqlen_q", [70, 2])
def test_nan_stays_nan(which: int, seqlen_q: int) -> None:
    problem = Problem.of(**{**SMALL, "seqlen_q": seqlen_q})
    qkv = make_inputs(problem, seed=1).qkv()
    qkv[which][0, 0, 1] = float("nan")
    out = interpreted().build(problem, CPU)(*qkv).float()
    rows = out[0, 0, 1] if which == 0 else out[0, :2]  # key head 0 serves two query heads
    assert bool(rows.isnan().all())
    assert bool(out[0, 2:].isfinite().all())


def test_compiled_as_one_graph_it_gives_the_same_to_the_bit() -> None:
    problem = with_feature("window")
    attend, qkv = interpreted().build(problem, CPU), make_inputs(problem, seed=1).qkv()
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*qkv).view(torch.uint8), attend(*qkv).view(torch.uint8))
    torch._dynamo.reset()


# ---- refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["backward", "both"])
def test_gradients_are_unsupported_with_the_reason(direction: str) -> None:
    with pytest.raises(Unsupported, match="float8_e4m3fn: forward only"):
        interpreted().supports(Problem.of(**SMALL, direction=direction), CPU)


def test_gradients_are_refused_where_only_a_forward_was_asked_for() -> None:
    problem = Problem.of(**SMALL)
    qkv = [x.requires_grad_() for x in make_inputs(problem, seed=1).qkv()]
    out = interpreted().build(problem, CPU)(*qkv)
    with pytest.raises(Unsupported, match="float8_e4m3fn: forward only"):
        out.backward(torch.ones_like(out))


@pytest.mark.parametrize(
    ("capability", "hip", "reason"),
    [
        ((8, 0), None, r"float8_e4m3fn needs compute capability 8.9 or later, this is 8.0"),
        ((8, 6), None, "this is 8.6"),
        ((7, 5), None, "this is 7.5"),
        ((9, 4), "6.2", "NVIDIA only: gfx942's 8-bit floats are e4m3fnuz"),
        ((8, 9), None, None),
        ((9, 0), None, None),
        ((12, 0), None, None),
    ],
)
def test_a_gpu_without_such_tensor_cores_is_refused(
    capability: tuple[int, int], hip: str | None, reason: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    problem, device = Problem.of(**SMALL), torch.device("cuda")
    plugin = implementation("triton")
    if reason is None:
        plugin.supports(problem, device)
    else:
        with pytest.raises(Unsupported, match=reason):
            plugin.supports(problem, device)
    if capability >= (8, 0):
        plugin.supports(problem.replace(dtype="bfloat16"), device)


# ---- conversions in the interpreter ------------------------------------------------------


def test_the_interpreter_reads_every_e4m3() -> None:
    bits = np.arange(256, dtype=np.uint8)
    wide = part("interpret")._widened(TensorHandle(bits, tl.float8e4nv)).data
    truth = torch.from_numpy(bits).view(FP8).float()
    assert torch.equal(torch.from_numpy(wide).nan_to_num(1e9), truth.nan_to_num(1e9))


def test_the_interpreter_rounds_to_the_nearest_e4m3() -> None:
    """Ties to even, subnormal numbers, NaN; what is too large becomes the largest, 448."""
    every = torch.arange(0x7F, dtype=torch.uint8).view(FP8).double()
    middle = (every[1:] + every[:-1]) / 2
    x = torch.cat([every, middle, middle * (1 + 1e-6), middle * (1 - 1e-6)])
    x = torch.cat([x, -x]).float()
    bits = torch.from_numpy(part("interpret")._rounded_to_e4m3(x.numpy()))
    rounded = bits.view(FP8).double()
    distance = (every[None] - x.double().abs()[:, None]).abs()
    assert torch.equal((rounded - x.double()).abs(), distance.amin(1))
    tie = (distance == distance.amin(1, keepdim=True)).sum(1) > 1
    assert int(tie.sum()) == 2 * len(middle)
    assert bool((bits[tie] % 2 == 0).all())
    beyond = np.float32([449, 1e9, np.inf, -np.inf, np.nan])
    found = torch.from_numpy(part("interpret")._rounded_to_e4m3(beyond)).view(FP8).float()
    assert found[:4].tolist() == [448, 448, 448, -448]
    assert bool(found[4].isnan())


# ---- compiled ----------------------------------------------------------------------------


def test_products_sum_over_32_bytes_at_least() -> None:
    padded, decode_config = part("config").padded, part("config").decode_config
    assert [padded(16, 1), padded(16, 2), padded(40, 1), padded(40, 2)] == [32, 16, 64, 64]
    assert decode_config(1, 8, 128, 1) == decode_config(1, 8, 128, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "target", "instruction"),
    [
        ("window", "sm_89", "QMMA"),
        ("window", "sm_90", "QGMMA"),
        ("window", "sm_100", "UTCQMMA"),
        ("decode", "sm_89", "QMMA"),  # later targets up-cast such small tiles
    ],
)
def test_queries_meet_keys_in_8_bit_tensor_cores(
    name: str, target: str, instruction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel of a launch as it is, but for larger tiles."""
    launched: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr(
        part("launch").FusedAttention, "_launch",
        lambda self, kernel, programs, config, **given: launched.append((kernel, given)),
    )  # fmt: skip
    problem = with_feature(name).replace(head_dim=64, head_dim_v=64)
    interpreted().build(problem, CPU)(*make_inputs(problem, seed=1).qkv())
    kernel, arguments = launched[0]
    if name != "decode":
        arguments |= {"BLOCK_M": 128, "BLOCK_N": 64}
    case = CompileCase.of_launch(name, kernel, arguments, num_warps=8, num_stages=2)
    compiled = compile_case(case, TARGETS[target])
    assert compiled.failure is None
    assert compiled.figures is not None
    assert instruction in compiled.figures.instructions
