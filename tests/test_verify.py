"""Verification against implementations that are wrong in known ways, and some that are not."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from attnbench import Inputs, Problem, Unsupported, make_inputs, verify
from attnbench.execution import WrongOutput
from attnbench.oracle import reference, textbook
from attnbench.record import TensorAccuracy
from attnbench.verify import Yardstick, explain, judge, make_yardstick, passed

Results = dict[str, torch.Tensor]
DTYPES = ["float64", "float32", "bfloat16", "float16"]


def of(**changes: Any) -> Problem:
    base = {"batch": 1, "heads": 2, "seqlen": 64, "head_dim": 32, "direction": "both"}
    if "seqlen_q" in changes:
        del base["seqlen"]
    return Problem.of(**{**base, **changes})


def answer(problem: Problem, inputs: Inputs) -> Results:
    """The right answer, rounded to the problem's dtype."""
    gradients = problem.direction != "forward"
    truth = reference(problem, inputs, gradients=gradients).tensors()
    return {name: x.to(problem.torch_dtype) for name, x in truth.items()}


@functools.cache
def prepared(problem: Problem) -> tuple[Yardstick, Results]:
    inputs = make_inputs(problem, seed=0)
    return make_yardstick(problem, inputs), answer(problem, inputs)


def verdict(problem: Problem, spoil: Callable[[Results], Any]) -> dict[str, TensorAccuracy]:
    """What is said about the right answer after ``spoil`` changed it in place."""
    yardstick, right = prepared(problem)
    results = {name: x.clone() for name, x in right.items()}
    spoil(results)
    return judge(yardstick, results)


# ---- what has to pass --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "changes",
    [
        {}, {"mask": "causal"}, {"seqlen": 1}, {"seqlen": 2}, {"inputs": "large"},
        {"inputs": "peaky"}, {"heads_kv": 1}, {"mask": "causal", "seqlen_q": 70, "seqlen_k": 33},
    ],
)  # fmt: skip
def test_the_truth_rounded_to_the_dtype_passes(dtype: str, changes: dict[str, Any]) -> None:
    accuracy = verdict(of(dtype=dtype, **changes), lambda results: None)
    assert passed(accuracy), explain(accuracy)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("fused", [False, True])
def test_the_textbook_itself_passes_as_normal(dtype: str, fused: bool) -> None:
    problem = of(dtype=dtype, mask="causal")
    inputs = make_inputs(problem, seed=0)
    plain = textbook(problem, inputs, gradients=True, fused=fused).tensors()
    accuracy = judge(make_yardstick(problem, inputs), plain)
    assert passed(accuracy), explain(accuracy)
    assert accuracy["out"].verdict == f"normal: 1 × the error of the textbook in {dtype}"


def test_a_gradient_that_is_zero_but_for_rounding_passes() -> None:
    """With one key the weights are constant: dq = dk = 0, and kernels leave float32 dust."""
    problem = of(seqlen_q=3, seqlen_k=1)

    def dust(results: Results) -> None:
        results["dq"] += 1e-7
        results["dk"] -= 1e-7

    accuracy = verdict(problem, dust)
    assert passed(accuracy), explain(accuracy)
    assert accuracy["dq"].rel_l2 is None
    assert accuracy["dq"].max_abs == pytest.approx(1e-7)
    assert not passed(verdict(problem, lambda results: results["dq"].add_(1e-4)))


def sdpa(problem: Problem, inputs: Inputs, scale: float = 1.0) -> Results:
    """torch's attention, and its backward with grad_out scaled."""
    leaves = [x.clone().requires_grad_() for x in inputs.qkv()]
    out = torch.nn.functional.scaled_dot_product_attention(*leaves)
    gradients = torch.autograd.grad(out, leaves, scale * inputs.grad_out_BHME)
    return dict(zip(("out", "dq", "dk", "dv"), (out.detach(), *gradients), strict=True))


def test_a_key_that_half_of_the_rows_look_at_gathers_their_noise() -> None:
    problem = of(heads=4, seqlen=512, inputs="needle")
    for seed in range(4):
        inputs = make_inputs(problem, seed)
        yardstick = make_yardstick(problem, inputs)
        accuracy = judge(yardstick, sdpa(problem, inputs))
        assert passed(accuracy), explain(accuracy)
        assert not passed(judge(yardstick, sdpa(problem, inputs, scale=1 + 1e-4)))


def test_an_exact_answer_is_called_exact() -> None:
    problem = of(dtype="float64")
    accuracy = verdict(problem, lambda results: None)
    assert {a.verdict for a in accuracy.values()} == {"normal: exact"}


# ---- what has to fail --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_mean_of_v_fails_where_a_fixed_tolerance_would_pass_it(dtype: str) -> None:
    problem = of(dtype=dtype, seqlen=1024, heads=1, direction="forward")
    inputs = make_inputs(problem, seed=0)
    mean = inputs.v_BGNE.double().mean(dim=2, keepdim=True).expand_as(inputs.v_BGNE)
    truth = reference(problem, inputs, gradients=False).out_BHME
    assert float((mean - truth).abs().max()) < 0.3  # what a careless test would allow
    assert not passed(judge(make_yardstick(problem, inputs), {"out": mean.to(inputs.v_BGNE)}))


@pytest.mark.parametrize("name", ["out", "dq", "dk", "dv"])
def test_a_factor_of_1_01_fails_in_float32_and_is_recognised(name: str) -> None:
    accuracy = verdict(of(), lambda results: results[name].mul_(1.01))
    assert [n for n, a in accuracy.items() if not a.ok] == [name]
    assert explain(accuracy).startswith(f"{name} not normal: ")
    assert explain(accuracy).endswith("it is the truth times 1.01")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_factor_of_1_03_fails_in_16_bits(dtype: str) -> None:
    assert not passed(verdict(of(dtype=dtype), lambda results: results["out"].mul_(1.03)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", ["full", "causal"])
@pytest.mark.parametrize("name", ["out", "dq", "dk", "dv"])
def test_one_wrong_late_row_fails(dtype: str, mask: str, name: str) -> None:
    """Under a causal mask a late row is small: it would drown in the first row's tolerance."""

    def spoil(results: Results) -> None:
        row = 20 if name in ("dk", "dv") and mask == "causal" else 900
        results[name][0, 0, row] = results[name][0, 0, row - 1]

    accuracy = verdict(of(dtype=dtype, mask=mask, seqlen=1024, heads=1), spoil)
    assert not accuracy[name].ok
    assert passed({n: a for n, a in accuracy.items() if n != name})


def test_the_worst_row_is_named() -> None:
    problem = of(dtype="bfloat16", mask="causal", seqlen=2048, heads=1, direction="forward")
    accuracy = verdict(problem, lambda results: results["out"][0, 0, 2000].mul_(0.5))
    assert "worst row [0, 0, 2000]: relative error 0.5 where" in explain(accuracy)


def test_the_worst_element_is_named() -> None:
    def spoil(results: Results) -> None:
        results["dk"][0, 1, 17, 5] = 3.0

    told = explain(verdict(of(), spoil))
    assert told.startswith("dk not normal: ")
    assert "worst at [0, 1, 17, 5]: got 3, expected" in told
    assert "in 1 of 128 rows" in told


def test_all_zeros_are_recognised() -> None:
    assert "it is all zeros" in explain(verdict(of(), lambda results: results["dq"].zero_()))


def test_products_in_tf32_fail_in_float32_and_are_recognised() -> None:
    problem = of(direction="forward", head_dim=64)
    inputs = make_inputs(problem, seed=0)
    bits = [x.view(torch.int32) & ~0x1FFF for x in inputs.qkv()]  # 10 bits of mantissa
    q, k, v = (x.view(torch.float32) for x in bits)
    out = (q @ k.mT * problem.softmax_scale).softmax(-1) @ v
    accuracy = judge(make_yardstick(problem, inputs), {"out": out})
    assert not passed(accuracy)
    assert "TF32" in explain(accuracy)


def test_float32_arithmetic_fails_in_float64() -> None:
    problem = of(dtype="float64", direction="forward")
    inputs = make_inputs(problem, seed=0)
    single = of(direction="forward")
    out = textbook(single, inputs, gradients=False).out_BHME.double()
    assert not passed(judge(make_yardstick(problem, inputs), {"out": out}))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_fails_and_leaves_no_numbers(value: float) -> None:
    def spoil(results: Results) -> None:
        results["dv"][0, 0, 3, 1] = value

    accuracy = verdict(of(), spoil)["dv"]
    assert not accuracy.ok
    assert (accuracy.max_abs, accuracy.rel_l2, accuracy.row_rel) == (None, None, None)
    assert accuracy.quantiles == {}
    assert f"first at [0, 0, 3, 1]: got {value}" in accuracy.verdict
    TensorAccuracy.model_validate_json(accuracy.model_dump_json())


def test_another_shape_fails() -> None:
    problem = of(direction="forward")
    inputs = make_inputs(problem, seed=0)
    accuracy = judge(make_yardstick(problem, inputs), {"out": torch.zeros(1, 2, 64, 31)})
    assert accuracy["out"].verdict == "not normal: shape (1, 2, 64, 31), expected (1, 2, 64, 32)"


def test_all_failed_tensors_are_listed() -> None:
    def spoil(results: Results) -> None:
        for name in ("out", "dk", "dv"):
            results[name] *= 2

    assert explain(verdict(of(), spoil)).endswith("(also wrong: dk, dv)")


# ---- limits ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_limits_are_twice_the_textbook_plus_a_floor_that_is_small(dtype: str) -> None:
    problem = of(dtype=dtype, seqlen=256)
    inputs = make_inputs(problem, seed=0)
    standards = make_yardstick(problem, inputs).standards
    for name, standard in standards.items():
        own, allowed = standard.textbook, standard.allowed
        assert own.rel_l2 is not None
        assert allowed.rel_l2 is not None
        assert 2 * own.max_abs < allowed.max_abs
        assert 2 * own.rel_l2 < allowed.rel_l2 < 30 * own.rel_l2, name
        assert allowed.rel_l2 < (1e-4 if dtype == "float32" else 2e-2)
        assert allowed.max_abs < 0.2 * float(standard.truth.abs().max())


def test_limits_are_wider_where_the_dtype_does_not_resolve_the_tensor() -> None:
    problem = of(dtype="bfloat16", inputs="peaky", head_dim=64, seqlen=128)
    standards = make_yardstick(problem, make_inputs(problem, seed=0)).standards
    lost, kept = standards["dq"], standards["dv"]
    assert lost.textbook.rel_l2 is not None
    assert lost.allowed.rel_l2 is not None
    assert kept.textbook.rel_l2 is not None
    assert kept.allowed.rel_l2 is not None
    assert lost.textbook.rel_l2 > 0.1 > 10 * kept.textbook.rel_l2
    assert lost.allowed.rel_l2 >= 4 * lost.textbook.rel_l2
    assert kept.allowed.rel_l2 < 0.01


def test_limits_follow_the_scale_of_the_reference() -> None:
    """Values a thousand times smaller get a tolerance a thousand times smaller."""
    problem = of(direction="forward")
    inputs = make_inputs(problem, seed=0)
    small = dataclasses.replace(inputs, v_BGNE=inputs.v_BGNE / 1024)
    usual, tiny = (make_yardstick(problem, x).standards["out"].allowed for x in (inputs, small))
    assert tiny.max_abs == pytest.approx(usual.max_abs / 1024, rel=1e-3)
    assert tiny.rel_l2 == pytest.approx(usual.rel_l2, rel=1e-3)


def test_where_float16_overflows_the_limits_stay_finite() -> None:
    problem = of(dtype="float16")
    inputs = make_inputs(problem, seed=0)
    huge = dataclasses.replace(inputs, q_BHMD=inputs.q_BHMD * 2000, k_BGND=inputs.k_BGND * 200)
    overflowing = textbook(problem, huge, gradients=False).out_BHME
    assert not bool(overflowing.isfinite().all())
    for standard in make_yardstick(problem, huge).standards.values():
        assert 0 < standard.allowed.max_abs < float("inf")


def test_inputs_that_are_not_finite_are_refused() -> None:
    problem = of()
    inputs = make_inputs(problem, seed=0)
    inputs.v_BGNE[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        make_yardstick(problem, inputs)


@pytest.mark.parametrize("names", [("out",), ("out", "dq", "dk", "dv", "dbias"), ()])
def test_results_must_be_the_tensors_the_problem_asks_for(names: tuple[str, ...]) -> None:
    problem = of()
    inputs = make_inputs(problem, seed=0)
    results = dict.fromkeys(names, inputs.q_BHMD)
    with pytest.raises(ValueError, match="results are"):
        judge(make_yardstick(problem, inputs), results)


def test_nothing_verified_is_not_passed() -> None:
    assert not passed({})


# ---- numbers -----------------------------------------------------------------------------


def test_errors_are_measured() -> None:
    problem = of(direction="forward", dtype="float64")
    inputs = make_inputs(problem, seed=0)
    truth = reference(problem, inputs, gradients=False).out_BHME
    error = torch.linspace(0, 1e-3, truth.numel(), dtype=torch.float64).reshape(truth.shape)
    told = judge(make_yardstick(problem, inputs), {"out": truth + error})["out"]
    assert told.max_abs == pytest.approx(1e-3)
    assert told.rel_l2 == pytest.approx(float(error.norm() / truth.norm()))
    assert told.quantiles == pytest.approx(
        {"0.5": 5e-4, "0.9": 9e-4, "0.99": 9.9e-4, "0.999": 9.99e-4}, rel=1e-6
    )


def test_quantiles_are_taken_from_a_bounded_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    quantile = np.quantile

    def counting(x: np.ndarray, *args: Any) -> np.ndarray:
        taken.append(x.size)
        return quantile(x, *args)

    monkeypatch.setattr(verify, "_SAMPLE", 100)
    monkeypatch.setattr(np, "quantile", counting)
    told = verdict(of(direction="forward"), lambda results: results["out"].add_(1e-3))["out"]
    assert taken
    assert max(taken) <= 100
    assert told.quantiles["0.5"] == pytest.approx(1e-3, rel=1e-3)


# ---- approximate implementations ---------------------------------------------------------


def test_an_approximation_is_recorded_and_not_failed() -> None:
    problem = of()
    inputs = make_inputs(problem, seed=0)
    results = {name: x * 1.2 for name, x in answer(problem, inputs).items()}
    accuracy = judge(make_yardstick(problem, inputs), results, approximate=True)
    assert passed(accuracy)
    for told in accuracy.values():
        assert told.verdict.startswith("an approximation: ")
        assert told.rel_l2 == pytest.approx(0.2, rel=1e-3)
        assert (told.max_abs_allowed, told.rel_l2_allowed, told.row_rel_allowed) == (None,) * 3


def test_an_approximation_with_nan_fails() -> None:
    problem = of()
    inputs = make_inputs(problem, seed=0)
    results = answer(problem, inputs)
    results["dq"][0, 0, 0, 0] = float("nan")
    assert not passed(judge(make_yardstick(problem, inputs), results, approximate=True))


# ---- dropout -----------------------------------------------------------------------------


def test_dropout_without_a_mask_is_unsupported() -> None:
    problem = of(dropout_p=0.1)
    with pytest.raises(Unsupported, match="reveals no dropout mask"):
        make_yardstick(problem, make_inputs(problem, seed=0))


def test_dropout_is_verified_through_its_mask() -> None:
    problem = of(dropout_p=0.25)
    inputs = make_inputs(problem, seed=0)
    keep = torch.rand(1, 2, 64, 64, generator=torch.Generator().manual_seed(0)) >= 0.25
    yardstick = make_yardstick(problem, inputs, keep)
    right = textbook(problem, inputs, gradients=True, keep_BHMN=keep).tensors()
    assert passed(judge(yardstick, right))
    unscaled = right | {"out": right["out"] * 0.75}
    assert "truth times 0.75" in explain(judge(yardstick, unscaled))


@pytest.mark.parametrize(
    ("keep", "told"),
    [
        (
            torch.ones(1, 2, 64, 64, dtype=torch.bool),
            "kept 100.00% of the weights, expected 75.00%",
        ),
        (torch.ones(1, 2, 64, 1, dtype=torch.bool), "expected bool"),
        (torch.ones(1, 2, 64, 64), "expected bool"),
    ],
)
def test_a_mask_that_dropout_cannot_have_made_is_wrong(keep: torch.Tensor, told: str) -> None:
    problem = of(dropout_p=0.25)
    with pytest.raises(WrongOutput, match=told):
        make_yardstick(problem, make_inputs(problem, seed=0), keep)
