"""Sparse methods: exact under the mask they say, dense where the knob says so."""

from __future__ import annotations

import math
from typing import Any

import peers
import pytest
import torch
from shelf import CPU, assert_right, implementation, module_of, solve

from attnbench import Problem, Unsupported, make_inputs, parse_mask
from attnbench.battery import CASES, Case, run_case
from attnbench.claim import claim_of
from attnbench.oracle import reference

BY_NAME = {case.name: case for case in CASES}
SMALL: dict[str, dict[str, Any]] = {
    "window": {"window": 5},
    "dilated": {"window": 3, "dilation": 3},
    "strided": {"stride": 4},
    "fixed": {"stride": 8, "summary": 3},
    "block-sparse": {"block": 8, "blocks": 3},
    "bigbird": {"block": 8, "random_blocks": 1},
    "top-k": {"k": 5},
}
MASKED = sorted(SMALL.keys() - {"top-k"})


def claims(name: str, problem: Problem, **options: Any) -> str:
    return str(implementation(name, **options).own_mask(problem))


# ---- what they claim ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "mask"),
    [
        ("window", {"window": 64}, "window:window=64"),
        ("dilated", {"window": 8, "dilation": 2}, "dilated:dilation=2,window=8"),
        ("strided", {"stride": 32}, "strided:stride=32"),
        ("fixed", {"stride": 32, "summary": 4}, "fixed:stride=32,summary=4"),
        ("block-sparse", {"seed": 3}, "block_sparse:seed=3,blocks_per_row=8"),
        ("block-sparse", {"blocks": 0, "density": 0.5}, "block_sparse:density=0.5"),
        ("bigbird", {"random_blocks": 1, "seed": 2}, "bigbird:random_blocks=1,seed=2"),
    ],
)
def test_the_mask_is_that_of_the_options_and_causal_where_the_problem_is(
    name: str, options: dict[str, Any], mask: str
) -> None:
    expected = parse_mask(mask).to_json()
    for asked in ("causal", "full"):
        problem = Problem.of(heads=1, seqlen=128, head_dim=8, mask=asked)
        own = implementation(name, **options).own_mask(problem)
        assert own is not None
        assert own.to_json() == expected | {"causal": asked == "causal"}


@pytest.mark.parametrize("name", MASKED)
def test_flops_and_bytes_are_those_of_the_own_mask(name: str) -> None:
    problem = Problem.of(heads=2, seqlen=256, head_dim=8, mask="causal")
    method = implementation(name, **SMALL[name])
    solved = claim_of(method, problem).problem
    assert method.flops(problem) == solved.flops() < problem.flops()
    assert method.ideal_bytes(problem) == solved.ideal_bytes()


@pytest.mark.parametrize("name", MASKED)
def test_a_mask_that_would_be_lost_is_refused(name: str) -> None:
    problem = Problem.of(heads=1, seqlen=16, head_dim=8, mask="document:count=2")
    with pytest.raises(Unsupported, match="not of document; gathered does any mask"):
        implementation(name).supports(problem, CPU)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("window", {"window": 0}, "window must be positive, got 0"),
        ("fixed", {"stride": 4}, "summary 8 must not exceed stride 4"),
        ("bigbird", {"window_blocks": 2}, "window_blocks must be odd"),
        ("block-sparse", {"density": 0.5}, "give either blocks or density .* got 8 and 0.5"),
        ("block-sparse", {"blocks": 0}, "give either blocks or density .* got 0 and 0.0"),
        ("block-sparse", {"block": 0}, "block must be positive, got 0"),
        ("top-k", {"k": 0}, "option k must be positive, not 0"),
        ("window", {"backend": "magic"}, "backend is one of gather, flex, triton, not magic"),
        ("window", {"backend": "triton"}, "backend triton needs a GPU"),
    ],
)
def test_options_without_a_meaning_are_refused(
    name: str, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(Unsupported, match=says):
        implementation(name, **options).supports(Problem.of(heads=1, seqlen=64, head_dim=8), CPU)


# ---- the battery -------------------------------------------------------------------------


# One case a feature, gradients included.
QUICK = (
    "seqlen-1-gradients", "seqlen-129-gradients", "cross-33x96-gradients",
    "cross-causal-33x96-gradients", "gqa-causal-gradients", "head_dim_v-64-32-gradients",
    "mask-causal-gradients", "dtype-bfloat16-causal-gradients", "inputs-large-gradients",
    "softcap-causal-gradients", "alibi-causal-cross-gradients", "decode-gqa", "backward-alone",
    "strides-qkv-gradients", "strides-expanded-gradients", "batch-apart-nan-gradients",
    "repeats-gradients", "nan-in-q-causal", "nan-in-k-causal", "nan-in-v",
    "layer-relative-gradients", "layer-relative-gqa-gradients",
)  # fmt: skip
LEFT_OUT = ("does not do softcap", "does not do ALiBi", "an approximate method may never look")


@pytest.mark.parametrize("name", sorted(SMALL))
def test_the_battery_finds_nothing_wrong_with_a_small_knob(name: str) -> None:
    """With the knob turned to dense in each case too."""
    results = [run_case(implementation(name, **SMALL[name]), BY_NAME[c], CPU) for c in QUICK]
    wrong = [(r.case.name, r.reason) for r in results if r.status != "ok"]
    left_out = [reason for _, reason in wrong if str(reason).startswith(LEFT_OUT)]
    assert [reason for _, reason in wrong] == (left_out if name == "top-k" else [])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SMALL))
def test_the_whole_battery_finds_nothing_wrong_with_a_small_knob(name: str) -> None:
    results = [run_case(implementation(name, **SMALL[name]), case, CPU) for case in CASES]
    assert [(r.case.name, r.reason) for r in results if r.status in ("incorrect", "error")] == []
    assert sum(r.status == "ok" for r in results) > 130


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SMALL))
def test_the_battery_finds_nothing_wrong_as_they_are(name: str) -> None:
    results = [run_case(implementation(name), case, CPU) for case in CASES]
    assert [(r.case.name, r.reason) for r in results if r.status in ("incorrect", "error")] == []


@pytest.mark.parametrize("mask", ["full", "causal"])
@pytest.mark.parametrize("name", ["gathered", *sorted(SMALL)])
def test_layers_with_a_relative_bias_are_right(name: str, mask: str) -> None:
    """Two tiles and more; with the knob turned to dense, as in the battery, too."""
    problem = Problem.of(
        level="layer", position="relative", batch=2, heads=4, heads_kv=2, seqlen=72, head_dim=8,
        mask=mask, direction="both",
    )  # fmt: skip
    result = run_case(implementation(name, **SMALL.get(name, {})), Case("relative", problem), CPU)
    assert result.status == "ok", result.reason
    assert "dtable" in result.accuracy


@pytest.mark.parametrize("name", sorted(SMALL))
@pytest.mark.parametrize("mask", ["full", "causal"])
def test_the_knob_makes_it_dense(name: str, mask: str) -> None:
    problem = Problem.of(heads=2, seqlen=150, head_dim=8, mask=mask, direction="both")
    given = implementation(name, **SMALL[name]).exact_options(problem)
    assert given is not None
    turned = {**SMALL[name], **given}
    if name != "top-k":
        own = implementation(name, **turned).own_mask(problem)
        assert own is not None
        assert torch.equal(own.dense(150, 150), problem.mask.dense(150, 150))
    assert_right(name, problem, **turned)


@pytest.mark.parametrize("name", MASKED)
def test_a_method_that_says_another_mask_is_found_out(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = implementation(name, **SMALL[name])
    case = BY_NAME["seqlen-65-gradients"]
    assert run_case(method, case, CPU).status == "ok"
    monkeypatch.setattr(type(method), "own_mask", lambda self, problem: problem.mask)
    monkeypatch.setattr(type(method), "_solved", lambda self, problem: problem.replace(
        mask=parse_mask("window:window=2")
    ))  # fmt: skip
    assert run_case(method, case, CPU).status == "incorrect"


@pytest.mark.parametrize("mask", ["full", "causal"])
def test_a_knob_that_stops_short_of_dense_is_found_out(
    mask: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = implementation("window", **SMALL["window"])
    monkeypatch.setattr(type(method), "exact_options", lambda self, p: {"window": p.seqlen_k - 1})
    case = BY_NAME["mask-causal" if mask == "causal" else "seqlen-64"]
    assert run_case(method, case, CPU).status == "incorrect"


# ---- top-k -------------------------------------------------------------------------------


def top_k(problem: Problem, k: int) -> dict[str, torch.Tensor]:
    """By definition, in float64: softmax over the k largest visible logits."""
    inputs = make_inputs(problem, seed=1)
    q, k_, v = (x.double().requires_grad_() for x in inputs.qkv())
    group = problem.heads_q // problem.heads_kv
    logits = q @ k_.repeat_interleave(group, 1).mT * problem.softmax_scale
    dense = problem.mask.dense(problem.seqlen_q, problem.seqlen_k)
    logits = logits.masked_fill(~dense, -math.inf)
    least = logits.sort(dim=-1, descending=True).values[..., k - 1 : k]
    weights = logits.masked_fill(logits < least, -math.inf).softmax(dim=-1)
    out = weights.nan_to_num() @ v.repeat_interleave(group, 1)
    grads = torch.autograd.grad(out, (q, k_, v), inputs.grad_out_BHME.double())
    return dict(zip(("out", "dq", "dk", "dv"), (out.detach(), *grads), strict=True))


@pytest.mark.parametrize("mask", ["full", "causal", "window:window=9", "strided:stride=4"])
@pytest.mark.parametrize("k", [1, 4, 16])
def test_top_k_is_softmax_over_the_k_largest(k: int, mask: str) -> None:
    problem = Problem.of(
        batch=2, heads=4, heads_kv=2, seqlen_q=33, seqlen_k=40, head_dim=8, head_dim_v=12,
        mask=mask, direction="both",
    )  # fmt: skip
    got = solve("top-k", problem, k=k)[0].results()
    for name, truth in top_k(problem, k).items():
        torch.testing.assert_close(got[name].double(), truth, rtol=1e-4, atol=1e-5)
    if int(problem.mask.dense(33, 40).sum(dim=1).max()) <= k:
        return  # all that a query sees is kept
    other = top_k(problem, k + 1)["out"]
    assert (got["out"].double() - other).abs().max() > 0.05  # one key more is another answer


def test_top_k_in_steps_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem.of(heads=2, seqlen=50, head_dim=8, mask="causal", direction="both")
    whole = solve("top-k", problem, k=4)[0].results()
    monkeypatch.setattr(module_of("top-k"), "_ELEMENTS", 350)
    for name, x in solve("top-k", problem, k=4)[0].results().items():
        torch.testing.assert_close(x, whole[name])


def test_top_k_counts_every_logit_and_the_rest_for_kept_pairs() -> None:
    problem = Problem.of(heads=2, seqlen=100, head_dim=8, head_dim_v=16)
    method = implementation("top-k", k=10)
    assert method.flops(problem) == 2 * 2 * (100 * 100 * 8 + 100 * 10 * 16)
    both = problem.replace(direction="both")
    assert method.flops(both) - method.flops(problem) == 2 * 2 * 100 * 10 * (3 * 8 + 2 * 16)
    dense = implementation("top-k", k=200)
    assert dense.flops(both) == both.flops()


# ---- peers and backends ------------------------------------------------------------------


@pytest.mark.parametrize("causal", [True, False])
def test_a_window_is_that_of_local_attention(causal: bool) -> None:
    """Its exact window of w reaches w keys back: one more than ours, which counts the query."""
    problem = Problem.of(
        batch=2, heads=3, seqlen=96, head_dim=8, mask="causal" if causal else "full",
        direction="both",
    )  # fmt: skip
    execution, inputs = solve("window", problem, window=17)
    peer = peers.of_local(16)(execution.built, problem)
    q, k, v = (x.clone().requires_grad_() for x in inputs.qkv())
    out = peer.call(q, k, v)
    theirs = (out, *torch.autograd.grad(out, (q, k, v), inputs.grad_out_BHME))
    for ours, other in zip(execution.results().values(), theirs, strict=True):
        torch.testing.assert_close(ours, other.detach(), rtol=1e-4, atol=1e-5)


def test_the_distance_from_dense_falls_as_the_window_grows() -> None:
    problem = Problem.of(heads=2, seqlen=128, head_dim=8, mask="causal")
    truth = reference(problem, make_inputs(problem, 1), gradients=False).out_BHME
    errors = [
        float((solve("window", problem, window=w)[0].results()["out"] - truth).norm())
        for w in (4, 16, 64, 128)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1
    assert errors[-1] < 1e-4


def test_a_backend_that_cannot_run_says_why_and_nothing_else_runs() -> None:
    method = implementation("window", backend="flex")
    problem = Problem.of(heads=1, seqlen=64, head_dim=16, mask="causal", direction="both")
    with pytest.raises(Unsupported, match=r"^backend flex: torch's FlexAttention has no backward"):
        method.supports(problem, CPU)
    with pytest.raises(Unsupported, match=r"^backend flex: does not do dtype float64"):
        method.supports(problem.replace(direction="forward", dtype="float64"), CPU)


@pytest.mark.parametrize("name", MASKED)
def test_a_backend_is_asked_for_the_own_mask_and_a_bias_is_its_business(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Problem] = []

    class Other:
        def supports(self, problem: Problem, device: torch.device) -> None:
            asked.append(problem)

        build = supports

    monkeypatch.setattr(module_of(name), "implementation", lambda backend: Other())
    method = implementation(name, **SMALL[name], backend="flex")
    problem = Problem.of(heads=1, seqlen=64, head_dim=8, mask="causal", bias=True)
    method.supports(problem, CPU)
    method.build(problem, CPU)
    assert [str(p.mask) for p in asked] == 2 * [claims(name, problem, **SMALL[name])]
    assert all(p.bias for p in asked)


@pytest.mark.slow
@pytest.mark.parametrize("name", MASKED)
def test_flex_solves_the_same_mask(name: str) -> None:
    problem = Problem.of(heads=2, seqlen=160, head_dim=16, mask="causal")
    ours, theirs = (
        solve(name, problem, **SMALL[name], backend=backend)[0].results()["out"]
        for backend in ("gather", "flex")
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["window", "bigbird"])
def test_flex_adds_a_relative_bias_under_the_same_mask(name: str) -> None:
    case = BY_NAME["layer-relative-gqa"]
    result = run_case(implementation(name, **SMALL[name], backend="flex"), case, CPU)
    assert result.status == "ok", result.reason
