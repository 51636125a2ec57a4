"""The fused Triton attention, in Triton's interpreter: the very functions that are compiled."""

from __future__ import annotations

import dataclasses
import importlib
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from shelf import CPU, assert_right, implementation, module_of, solve

from attnbench import Problem, Unsupported, make_inputs
from attnbench.battery import CASES, CaseResult, run_case
from attnbench.oracle import reference

BY_NAME = {case.name: case for case in CASES}
MASKS = (
    "full", "causal", "window:window=9", "window:window=9,causal=false", "prefix:prefix=20",
    "document:count=3", "document:count=3,causal=false", "strided:stride=8",
    "block_sparse:block=16", "bigbird:block=8",
)  # fmt: skip


def part(name: str) -> ModuleType:
    return importlib.import_module(f"{module_of('triton').__name__}.{name}")


def interpreted() -> Any:
    return implementation("triton", interpret=True)


def run(name: str) -> CaseResult:
    return run_case(interpreted(), BY_NAME[name], CPU)


# ---- the battery -------------------------------------------------------------------------

# One case a feature, gradients included.
QUICK = (
    "seqlen-1-gradients", "seqlen-65-gradients", "cross-1x65", "cross-causal-33x96-gradients",
    "cross-causal-96x33-gradients", "gqa-causal-gradients", "head_dim-40-gradients",
    "head_dim_v-64-32-gradients", "head_dim-256", "mask-window-window=9-gradients",
    "mask-window-window=9,causal=false-gradients", "mask-prefix-prefix=20-gradients",
    "mask-document-count=3-gradients", "mask-strided-stride=8-gradients",
    "mask-block_sparse-block=16-gradients", "mask-bigbird-block=8-gradients",
    "masked-rows-gradients", "masked-rows-bfloat16-gradients", "dtype-bfloat16-causal-gradients",
    "dtype-float16-causal-gradients", "inputs-large-gradients", "inputs-peaky-bfloat16-gradients",
    "scale-negative-gradients", "softcap-causal-gradients", "alibi-causal-cross-gradients",
    "dropout-causal-gqa-gradients", "decode", "decode-4", "decode-gqa", "backward-alone",
    "strides-qkv-gradients", "strides-expanded-gradients",
    "new-contents-gradients", "batch-apart-nan-gradients",
    "nan-in-q-causal", "nan-in-k-causal", "nan-in-v-causal",
)  # fmt: skip


@pytest.mark.parametrize("name", QUICK)
def test_the_battery_finds_nothing_wrong(name: str) -> None:
    result = run(name)
    assert (result.status, result.reason) == ("ok", None)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BY_NAME if name not in QUICK])
def test_the_rest_of_the_battery_finds_nothing_wrong(name: str) -> None:
    assert run(name).status == "ok"


def test_results_repeat_to_the_bit() -> None:
    assert run("repeats-gradients").reason is None


# ---- what breaks when a feature is broken ------------------------------------------------


@triton.jit
def without_softcap_slope(
    dots, q_pos, k_pos, scale, softcap, alibi_slope, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr
):
    return tl.math.exp2(dots) * 0 + softcap * 1.4426950408889634 * (
        1 - 2 / (tl.exp2(dots * scale / softcap * 2.8853900817779268) + 1)
    ), 1.0


@triton.jit
def without_extras(
    dots, q_pos, k_pos, scale, softcap, alibi_slope, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr
):
    return dots * (scale * 1.4426950408889634), 1.0


@triton.jit
def without_low_end(low, high, other):
    return other < high


@triton.jit
def without_high_end(low, high, other):
    return other >= low


@triton.jit
def without_pattern(patterns_ptr, pattern, m, n, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    return (m >= 0) & (n >= 0)


@triton.jit
def without_delta(weights, dweights, delta, slope, kept, dropout_p, DROPOUT: tl.constexpr):
    return weights * dweights * slope


@triton.jit
def without_dropout(weights, dweights, delta, slope, kept, dropout_p, DROPOUT: tl.constexpr):
    return weights * (dweights - delta) * slope


@triton.jit
def with_another_seed(seed, head, m, n, seqlen_q, seqlen_k, dropout_p):
    return tl.rand(seed + 1, (head * seqlen_q + m) * seqlen_k + n) >= dropout_p


@triton.jit
def span_one_short(low, high, BLOCK: tl.constexpr):
    return tl.min(low, 0) // BLOCK, 0, 0, tl.max(high, 0) // BLOCK


@triton.jit
def span_without_masking(low, high, BLOCK: tl.constexpr):
    return 0, 0, tl.cdiv(tl.max(high, 0), BLOCK), 0


@triton.jit
def from_another_row(
    index, table_ptr, table_stride, own_length, other_length, shift, behind, ahead,
    MASK: tl.constexpr,
):  # fmt: skip
    low = tl.maximum(index + shift - behind, 0)
    return low, tl.minimum(index * 0 + shift + 1, other_length)


BROKEN = (
    ("decode", "interval_of", from_another_row, "decode-4"),
    ("decode", "span_of", span_one_short, "decode-gqa"),
    ("decode", "span_of", span_without_masking, "decode"),
    ("forward", "span_of", span_one_short, "seqlen-65"),
    ("forward", "span_of", span_without_masking, "mask-causal"),
    ("forward", "visible_in", without_high_end, "seqlen-65"),
    ("forward", "visible_in", without_high_end, "mask-causal"),
    ("forward", "visible_in", without_low_end, "mask-window-window=9"),
    ("forward", "visible_in", without_low_end, "mask-document-count=3"),
    ("forward", "visible_in", without_high_end, "mask-prefix-prefix=20"),
    ("forward", "visible_by_pattern", without_pattern, "mask-strided-stride=8"),
    ("forward", "visible_by_pattern", without_pattern, "mask-block_sparse-block=16"),
    ("forward", "logits_of", without_extras, "softcap"),
    ("forward", "logits_of", without_extras, "alibi"),
    ("forward", "kept_by_dropout", with_another_seed, "dropout"),
    ("backward", "span_of", span_one_short, "seqlen-65-gradients"),
    ("backward", "visible_in", without_high_end, "mask-causal-gradients"),
    ("backward", "visible_in", without_low_end, "mask-causal-gradients"),
    ("backward", "visible_in", without_low_end, "mask-window-window=9-gradients"),
    ("backward", "visible_in", without_low_end, "mask-document-count=3-gradients"),
    ("backward", "visible_in", without_high_end, "mask-prefix-prefix=20-gradients"),
    ("backward", "visible_by_pattern", without_pattern, "mask-strided-stride=8-gradients"),
    ("backward", "visible_by_pattern", without_pattern, "mask-block_sparse-block=16-gradients"),
    ("backward", "logits_of", without_softcap_slope, "softcap-gradients"),
    ("backward", "logits_of", without_extras, "alibi-gradients"),
    ("backward", "dlogits_of", without_delta, "seqlen-65-gradients"),
    ("backward", "dlogits_of", without_dropout, "dropout-gradients"),
    ("backward", "kept_by_dropout", with_another_seed, "dropout-gradients"),
)


@pytest.mark.parametrize(
    ("where", "helper", "broken", "case"), BROKEN,
    ids=[f"{where}-{broken.fn.__name__}-{case}" for where, _, broken, case in BROKEN],
)  # fmt: skip
def test_a_broken_helper_is_found(
    where: str, helper: str, broken: Any, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part(where), helper, broken)
    assert run(case).status == "incorrect"


def shifted(build: Callable[..., Any]) -> Callable[..., Any]:
    def walk_of(*arguments: Any) -> Any:
        walk = build(*arguments)
        return dataclasses.replace(walk, ahead=walk.ahead + 1)

    return walk_of


@pytest.mark.parametrize("case", ["mask-causal", "cross-causal-33x96", "mask-causal-gradients"])
def test_a_wrong_causal_offset_is_found(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part("launch"), "walk_of", shifted(part("launch").walk_of))
    assert run(case).status == "incorrect"


WRONG = (
    ("forward_kernel", {"group": 1}, "mqa"),
    ("forward_kernel", {"scale": 0.1}, "seqlen-65"),
    ("forward_kernel", {"HEAD_DIM": 32}, "head_dim-40"),
    ("forward_kernel", {"HEAD_DIM_V": 32}, "head_dim_v-32-64"),
    ("forward_kernel", {"q_m": 32}, "strides-qkv"),
    ("decode_kernel", {"scale": 0.1}, "decode"),
    ("dkdv_kernel", {"heads_q": 2, "group": 1}, "gqa-gradients"),
    ("dkdv_kernel", {"scale": 0.1}, "seqlen-65-gradients"),
    ("dkdv_kernel", {"HEAD_DIM": 32}, "head_dim-40-gradients"),
    ("dkdv_kernel", {"HEAD_DIM_V": 32}, "head_dim_v-32-64-gradients"),
    ("dkdv_kernel", {"grad_h": 32}, "strides-expanded-gradients"),
    ("dq_kernel", {"group": 1}, "mqa-gradients"),
    ("dq_kernel", {"scale": 0.1}, "seqlen-65-gradients"),
    ("dq_kernel", {"HEAD_DIM": 32}, "head_dim-40-gradients"),
    ("dq_kernel", {"HEAD_DIM_V": 32}, "head_dim_v-32-64-gradients"),
)


@pytest.mark.parametrize(
    ("kernel", "arguments", "case"), WRONG,
    ids=[f"{kernel}-{'-'.join(wrong)}-{case}" for kernel, wrong, case in WRONG],
)  # fmt: skip
def test_a_wrong_argument_is_found(
    kernel: str, arguments: dict[str, Any], case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong, but within the tensors: reading outside them could end the process."""
    fused = part("launch").FusedAttention
    launch, wrong = fused._launch, getattr(part("launch"), kernel)

    def broken(self: Any, launched: Any, *rest: Any, **right: Any) -> None:
        launch(self, launched, *rest, **(right | arguments if launched is wrong else right))

    monkeypatch.setattr(fused, "_launch", broken)
    assert run(case).status == "incorrect"


# ---- properties --------------------------------------------------------------------------


def test_the_order_of_keys_does_not_matter() -> None:
    problem = Problem.of(heads=2, seqlen_q=40, seqlen_k=75, head_dim=24)
    attend = interpreted().build(problem, CPU)
    q, k, v = make_inputs(problem, seed=3).qkv()
    order = torch.randperm(75, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        attend(q, k, v), attend(q, k[:, :, order], v[:, :, order]), atol=1e-6, rtol=1e-5
    )


def test_a_shift_of_all_logits_changes_the_lse_alone() -> None:
    """A key direction that all queries share adds the same to every logit of a row."""
    problem = Problem.of(heads=1, seqlen=70, head_dim=16, mask="causal", scale=1.0)
    attend = interpreted().build(problem, CPU)
    q, k, v = make_inputs(problem, seed=4).qkv()
    q[..., 0] = 1.0
    out, lse = attend.forward(q, k, v)
    k[..., 0] += 8.0
    out_shifted, lse_shifted = attend.forward(q, k, v)
    torch.testing.assert_close(out_shifted, out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse_shifted - lse, torch.full_like(lse, 8 / math.log(2)))


@pytest.mark.parametrize("mask", ["causal", "strided:stride=8"])
def test_the_lse_is_that_of_float64(mask: str) -> None:
    problem = Problem.of(
        heads=4, heads_kv=2, seqlen_q=40, seqlen_k=40 if mask != "causal" else 30, head_dim=16,
        mask=mask, softcap=3.0, alibi=True,
    )  # fmt: skip
    inputs = make_inputs(problem, seed=5)
    truth = reference(problem, inputs, gradients=False).lse_BHM
    _, lse = interpreted().build(problem, CPU).forward(*inputs.qkv())
    torch.testing.assert_close(lse.double() * math.log(2), truth, atol=1e-5, rtol=1e-6)


def test_everything_at_once_is_right() -> None:
    problem = Problem.of(
        batch=2, heads=4, heads_kv=2, seqlen_q=33, seqlen_k=50, head_dim=16, head_dim_v=24,
        mask="causal", softcap=3.0, alibi=True, scale=0.4, dropout_p=0.2, direction="both",
    )  # fmt: skip
    assert_right("triton", problem, interpret=True)


@pytest.mark.parametrize("blocks", [(16, 16), (32, 64), (128, 16)])
def test_dropout_does_not_depend_on_the_tiles(
    blocks: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = part("config").Config(*blocks, 1, 1)
    monkeypatch.setattr(
        part("launch"), "configs", lambda *a, **k: part("config").Configs(config, config, config)
    )
    problem = Problem.of(heads=1, seqlen=70, head_dim=16, dropout_p=0.3, direction="both")
    assert_right("triton", problem, interpret=True)


def test_dropout_draws_a_new_mask_each_call_and_reveals_it() -> None:
    execution, _ = solve(
        "triton", Problem.of(heads=2, seqlen=64, head_dim=16, dropout_p=0.5), interpret=True
    )
    first = execution.keep_mask()
    execution.step()
    second = execution.keep_mask()
    assert first is not None
    assert second is not None
    assert first.shape == (1, 2, 64, 64)
    assert not torch.equal(first, second)
    assert float(first.float().mean()) == pytest.approx(0.5, abs=0.05)


# ---- decode ------------------------------------------------------------------------------

MANY_KEYS = Problem.of(
    batch=2, heads=6, heads_kv=2, seqlen_q=4, seqlen_k=300, head_dim=16, head_dim_v=24
)


@pytest.mark.parametrize(
    ("shares", "changes"),
    [
        (1, {"mask": "causal"}),
        (3, {"mask": "causal"}),
        (7, {"mask": "causal"}),  # more than there are blocks
        (3, {"mask": "window:window=100"}),
        (3, {"mask": "prefix:prefix=20"}),
        (2, {"softcap": 2.0, "alibi": True}),
        (2, {"mask": "causal", "seqlen_q": 8, "seqlen_k": 5}),
    ],
    ids=str,
)
def test_splitting_keys_gives_the_same(
    shares: int, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part("launch"), "shares_of", lambda *a: shares)
    problem = Problem.of(**{**MANY_KEYS.to_json(), **changes})
    execution, inputs = solve("triton", problem, interpret=True)
    truth = reference(problem, inputs, gradients=False)
    torch.testing.assert_close(
        execution.results()["out"].double(), truth.out_BHME, atol=2e-6, rtol=1e-5
    )
    _, lse = execution.built.forward(*inputs.qkv())
    torch.testing.assert_close(lse.double() * math.log(2), truth.lse_BHM, atol=1e-5, rtol=1e-6)


@triton.jit
def mean_of_shares(
    parts_ptr, part_lse_ptr, out_ptr, lse_ptr, out_b, out_h, out_m, out_d,
    heads_q, seqlen_q, rows, shares,
    HEAD_DIM_V: tl.constexpr, DIM_V: tl.constexpr, SHARES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)  # a decode step of one query: its output is contiguous
    share, dim = tl.arange(0, SHARES)[:, None], tl.arange(0, DIM_V)[None, :]
    places = parts_ptr + (share * rows + row) * HEAD_DIM_V + dim
    parts = tl.load(places, mask=(share < shares) & (dim < HEAD_DIM_V), other=0.0)
    mean = tl.sum(parts, 0) / shares
    index = tl.arange(0, DIM_V)
    tl.store(out_ptr + row * HEAD_DIM_V + index, mean, mask=index < HEAD_DIM_V)


def test_shares_merged_without_their_lse_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part("launch"), "merge_kernel", mean_of_shares)
    assert run("decode").status == "incorrect"


def test_every_processor_has_a_share_and_no_share_is_without_keys() -> None:
    shares_of = part("config").shares_of
    assert shares_of(seqlen_k=100_000, block_n=64, heads=8, processors=132) == 33
    assert shares_of(seqlen_k=100_000, block_n=64, heads=1, processors=132) == 128
    assert shares_of(seqlen_k=130, block_n=64, heads=1, processors=132) == 3
    assert shares_of(seqlen_k=10, block_n=64, heads=4096, processors=132) == 1


# ---- masks -------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("own", ["queries", "keys"])
def test_a_walk_meets_what_the_mask_allows_and_nothing_else(mask: str, own: str) -> None:
    problem = Problem.of(heads=1, seqlen=100, head_dim=16, mask=mask)
    if not mask.startswith(("document", "full")):
        problem = problem.replace(seqlen_q=90)
    dense = problem.mask.dense(problem.seqlen_q, problem.seqlen_k).numpy()
    walk = part("masks").walk_of(problem, own, part("config").Config(32, 16, 1, 1), CPU)
    met = by_list(problem, walk, own) if walk.form == "blocks" else by_intervals(problem, walk, own)
    np.testing.assert_array_equal(met, dense)


def by_intervals(p: Problem, walk: Any, own: str) -> Any:
    own_length, other_length = (p.seqlen_q, p.seqlen_k)[:: 1 if own == "queries" else -1]
    index, other = np.arange(own_length)[:, None], np.arange(other_length)
    if walk.form == "bounds":
        low, high = walk.table.numpy()[:, :, None]
    else:
        shift = p.seqlen_k - p.seqlen_q
        behind, ahead = walk.behind, walk.ahead
        if own == "keys":
            shift, behind, ahead = -shift, ahead, behind
        low, high = index + shift - behind, index + shift + ahead + 1
    assert walk.has_low or (low <= 0).all()
    met = (other >= low) & (other < high)
    return met if own == "queries" else met.T


def by_list(p: Problem, walk: Any, own: str) -> Any:
    met = np.zeros((128, 128), dtype=bool)
    for tile, (whole, count, *rest) in enumerate(walk.table.tolist()):
        for step in range(count):
            other, pattern = rest[2 * step : 2 * step + 2]
            row, column = (tile, other) if own == "queries" else (other, tile)
            corner = (slice(row * 32, row * 32 + 32), slice(column * 16, column * 16 + 16))
            assert not met[corner].any()
            met[corner] = True if step < whole else walk.patterns[pattern].numpy() != 0
    assert not met[p.seqlen_q :].any()
    assert not met[:, p.seqlen_k :].any()
    return met[: p.seqlen_q, : p.seqlen_k]


def test_a_mask_that_repeats_has_few_patterns() -> None:
    problem = Problem.of(heads=1, seqlen=512, head_dim=16, mask="strided:stride=32")
    walk = part("masks").walk_of(problem, "queries", part("config").Config(64, 32, 1, 1), CPU)
    assert len(walk.patterns) <= 8


# ---- interpreter, configurations, manners ------------------------------------------------


def test_on_a_cpu_it_is_unsupported_unless_interpreted() -> None:
    with pytest.raises(Unsupported, match="interpret=true"):
        implementation("triton").supports(Problem.of(), CPU)
    interpreted().supports(Problem.of(), CPU)


@pytest.mark.parametrize(
    ("options", "changes", "reason"),
    [
        ({"fp32": "tf32"}, {}, "no tf32"),
        ({"fp32": "fast"}, {}, "ieee or tf32, not fast"),
        ({}, {"head_dim": 264}, "head_dim up to 256"),
        ({}, {"dtype": "float64"}, "does not do dtype float64"),
    ],
)
def test_what_it_cannot_do_it_says(
    options: dict[str, Any], changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(Unsupported, match=reason):
        implementation("triton", interpret=True, **options).supports(Problem.of(**changes), CPU)


def test_importing_it_does_not_import_triton() -> None:
    """A second of every worker's life."""
    code = f"""
import runpy, sys
runpy.run_path({str(Path(str(module_of("triton").__file__)))!r})
sys.exit("triton" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_interpreting_leaves_triton_as_it_was() -> None:
    before = (tl.dot, tl.core.reduce, tl.tensor.__add__, type(without_delta).__call__)
    assert run("seqlen-16").status == "ok"
    assert (tl.dot, tl.core.reduce, tl.tensor.__add__, type(without_delta).__call__) == before
    with pytest.raises(RuntimeError, match="outside of the scope of a kernel"):
        part("tiles").tanh_of(1.0)


def test_bfloat16_rounds_to_nearest_as_torch_does() -> None:
    x = torch.randn(4096, generator=torch.Generator().manual_seed(0)).numpy()
    x = np.concatenate([x, np.float32([1 + 2**-8, 1 + 3 * 2**-8, np.inf, -np.inf, 0.0])])
    bits = torch.from_numpy(part("interpret")._rounded(x).view(np.int16))
    assert torch.equal(bits.view(torch.bfloat16), torch.from_numpy(x).to(torch.bfloat16))


@pytest.mark.parametrize("dim", [16, 40, 64, 80, 128, 192, 256])
@pytest.mark.parametrize("element_bytes", [2, 4])
def test_tiles_are_powers_of_two_that_tensor_cores_take(dim: int, element_bytes: int) -> None:
    chosen = part("config").configs(dim, element_bytes)
    for config in (chosen.forward, chosen.dkdv, chosen.dq):
        for size in (config.block_m, config.block_n, part("config").padded(dim)):
            assert size >= 16
            assert size & (size - 1) == 0


def test_compile_cases_name_every_argument() -> None:
    found = list(part("cases").cases())
    assert len({case["name"] for case in found}) == len(found)
    for case in found:
        assert list(case["signature"]) == case["kernel"].arg_names
        typed = {name for name, kind in case["signature"].items() if kind == "constexpr"}
        assert typed == set(case["constexprs"])
