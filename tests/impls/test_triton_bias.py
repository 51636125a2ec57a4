"""A learned bias in the fused Triton attention: numbers, its gradient, torch.compile, refusals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fused import BIASED, answer, biased_errors, drawn_bias, interpreted, is_right, part
from shelf import CPU, Operations, implementation
from torch.utils.flop_counter import FlopCounterMode

from attnbench import Problem, make_inputs

SMALL = Problem.of(
    batch=2, heads=2, heads_kv=1, seqlen_q=18, seqlen_k=20, head_dim=16, mask="causal",
    bias=True, direction="both",
)  # fmt: skip
QUICK = ("bias", "bias-masked-rows", "bias-bfloat16", "bias-everything", "bias-strided",
         "bias-float8_e4m3fn", "bias-split", "bias-split-gradients")  # fmt: skip


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def built(problem: Problem, **options: Any) -> Any:
    return implementation("triton", interpret=True, **options).build(problem, CPU)


def solved(problem: Problem, bias_HMN: torch.Tensor) -> list[torch.Tensor]:
    """Output, dq, dk, dv and dbias."""
    return answer(built(problem), make_inputs(problem, seed=1), bias_HMN)


# ---- numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in BIASED]
)
def test_output_and_all_four_gradients_are_those_of_the_oracle(name: str) -> None:
    assert is_right(name)


def test_persistent_programs_read_it_too() -> None:
    bias = drawn_bias(SMALL)
    inputs = make_inputs(SMALL, seed=1)
    walked = answer(built(SMALL, schedule="persistent"), inputs, bias)
    assert torch.equal(walked[0], answer(built(SMALL), inputs, bias)[0])


def test_its_gradient_repeats_to_the_bit_and_sums_over_the_batch() -> None:
    problem = SMALL.replace(batch=3)
    bias, inputs = drawn_bias(problem), make_inputs(problem, seed=1)
    attend, alone = built(problem), built(problem.replace(batch=1))
    *_, whole = answer(attend, inputs, bias)
    assert torch.equal(answer(attend, inputs, bias)[-1], whole)
    parts = []
    for b in range(3):
        one = type(inputs)(*(x[b : b + 1] for x in inputs.named().values()))
        parts.append(answer(alone, one, bias)[-1])
    torch.testing.assert_close(sum(parts), whole, atol=1e-6, rtol=1e-5)


def test_a_shift_of_a_whole_row_changes_nothing() -> None:
    """So the gradient of each row sums to zero."""
    bias = drawn_bias(SMALL)
    out, *_, dbias = solved(SMALL, bias)
    shifted, *_ = solved(SMALL, bias + torch.arange(18.0)[:, None])
    torch.testing.assert_close(shifted, out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(dbias.sum(-1), torch.zeros(2, 18), atol=1e-5, rtol=0)


@pytest.mark.parametrize("mask", ["full", "strided:stride=8"])
def test_one_of_minus_infinity_hides_a_pair_and_even_a_whole_row(mask: str) -> None:
    """As masks that are added. Broken: −inf − −inf, which is NaN in all that it meets."""
    problem = SMALL.replace(mask=mask, seqlen_q=40, seqlen_k=40)
    bias = drawn_bias(problem)
    bias[:, :, :33] = float("-inf")  # the first block of keys for all, and all keys of one row
    bias[0, 5] = float("-inf")
    assert max(biased_errors(problem, bias)) < 2e-6
    out, dq, _, _, dbias = solved(problem, bias)
    for result in (out[:, 0, 5], dq[:, 0, 5], dbias[0, 5], dbias[:, :, :33]):
        assert not result.any()


# ---- memory ------------------------------------------------------------------------------


def innermost_heads(x: torch.Tensor) -> torch.Tensor:
    """As a table of positions leaves it."""
    return x.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def transposed(x: torch.Tensor) -> torch.Tensor:
    return x.mT.contiguous().mT


def in_a_larger(x: torch.Tensor) -> torch.Tensor:
    larger = torch.full((x.shape[0], x.shape[1] + 3, x.shape[2] + 5), float("nan"))
    larger[:, 1:-2, 2:-3] = x
    return larger[:, 1:-2, 2:-3]


@pytest.mark.parametrize("view", [innermost_heads, transposed, in_a_larger])
def test_it_is_read_where_it_is_and_its_gradient_has_its_order(
    view: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bias = view(drawn_bias(SMALL))
    attend = built(SMALL)
    seen, launch = [], type(attend)._launch

    def noted(self: Any, *rest: Any, **arguments: Any) -> None:
        if "bias_ptr" in arguments:
            seen.append(arguments["bias_ptr"].data_ptr())
        launch(self, *rest, **arguments)

    monkeypatch.setattr(type(attend), "_launch", noted)
    assert max(biased_errors(SMALL, bias)) < 2e-6
    assert set(seen) == {bias.data_ptr()}
    assert len(seen) == 4  # forward, dK/dV, dQ, dbias
    dbias = answer(attend, make_inputs(SMALL, seed=1), bias)[-1]
    assert dbias.untyped_storage().nbytes() == dbias.numel() * 4
    if view is not in_a_larger:
        assert dbias.stride() == bias.stride()


def test_one_that_all_heads_share_is_expanded_not_copied() -> None:
    bias = drawn_bias(SMALL)[:1].expand(2, -1, -1)
    assert max(biased_errors(SMALL, bias)) < 2e-6


def test_torch_does_nothing_beside_the_kernels_but_make_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attend, inputs, bias = built(SMALL), make_inputs(SMALL, seed=1), drawn_bias(SMALL)
    monkeypatch.setattr(type(attend), "_launch", lambda *a, **k: None)
    with Operations() as ran:
        out, lse = attend.forward(*inputs.qkv(), bias)
        attend.backward(inputs.qkv(), out, lse, None, inputs.grad_out_BHME, bias)
    assert ran.names == {"new_empty", "new_empty_strided", "empty_like"}


@pytest.mark.parametrize("watched", [False, True])
def test_a_frozen_one_costs_no_kernel(watched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    attend, inputs, bias = built(SMALL), make_inputs(SMALL, seed=1), drawn_bias(SMALL)
    expected = answer(attend, inputs, bias)[1:4]
    monkeypatch.setattr(part("launch"), "dbias_kernel", None)
    qkv = [x.requires_grad_() for x in inputs.qkv()]
    with FlopCounterMode(display=False) if watched else torch.enable_grad():
        found = torch.autograd.grad(attend(*qkv, bias), qkv, inputs.grad_out_BHME)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)


# ---- torch.compile, FLOPs, tuning ----------------------------------------------------------


@pytest.mark.parametrize("frozen", [False, True])
def test_compiled_as_one_graph_it_gives_the_same_to_the_bit(frozen: bool) -> None:
    attend, inputs = built(SMALL), make_inputs(SMALL, seed=1)
    bias = innermost_heads(drawn_bias(SMALL)).requires_grad_(not frozen)
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    qkv = [x.requires_grad_() for x in inputs.qkv()]
    wanted = qkv if frozen else [*qkv, bias]
    results = []
    for call in (attend, compiled):
        out = call(*qkv, bias)
        results.append([out, *torch.autograd.grad(out, wanted, inputs.grad_out_BHME)])
    for mine, theirs in zip(*results, strict=True):
        assert torch.equal(mine, theirs)
        assert mine.stride() == theirs.stride()


def test_both_operators_are_registered_in_full() -> None:
    operator, attend = part("operator"), built(SMALL)
    inputs, bias = make_inputs(SMALL, seed=1), innermost_heads(drawn_bias(SMALL))
    qkv = [x.requires_grad_() for x in inputs.qkv()]
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    torch.library.opcheck(
        operator.forward, (*qkv, bias.requires_grad_(), attend.key), test_utils=checks
    )
    with torch.no_grad():
        results = operator.forward(*qkv, bias, attend.key)
        given = (*qkv, bias, *results, inputs.grad_out_BHME, attend.key)
        for wants_dbias in (True, False):
            torch.library.opcheck(operator.backward, (*given, wants_dbias), test_utils=checks[::2])


def test_flops_are_those_of_the_problem() -> None:
    """The sums of the bias and its gradient are no products of matrices by the field's count."""
    attend, inputs, bias = built(SMALL), make_inputs(SMALL, seed=1), drawn_bias(SMALL)
    with FlopCounterMode(display=False) as counter:
        answer(attend, inputs, bias)
    assert counter.get_total_flops() == SMALL.flops()


def test_preparing_compiles_with_one_and_with_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    triton, attend = interpreted(), built(SMALL)
    launched, launch = [], type(attend)._launch

    def noted(self: Any, kernel: Any, *rest: Any, **arguments: Any) -> None:
        launched.append(kernel.fn.__name__)
        launch(self, kernel, *rest, **arguments)

    monkeypatch.setattr(type(attend), "_launch", noted)
    triton.options = {**triton.options, "tune": False}
    triton._prepare(attend)
    assert launched == [
        "forward_kernel", "delta_kernel", "dkdv_kernel", "dq_kernel", "dbias_kernel"
    ]  # fmt: skip
    assert list(attend.choices) == ["forward", "dkdv", "dq", "dbias"]


def test_tuning_times_each_kernel_with_one_and_keeps_its_choice_apart(tmp_path: Any) -> None:
    tuning, attend = part("tuning"), built(SMALL)
    timed = []

    def timer(calls: Any) -> list[float]:
        for call in calls:
            timed.append(call())
        return [float(i) for i in range(len(calls))]

    tuning.tune(attend, make_inputs(SMALL, seed=1), drawn_bias(SMALL), timer=timer, folder=tmp_path)
    assert timed
    plain = built(SMALL.replace(bias=False))
    assert tuning.key_of(attend, "dq", ()) != tuning.key_of(plain, "dq", ())


# ---- refusals ----------------------------------------------------------------------------


def test_one_that_is_missing_superfluous_or_of_another_shape_is_told() -> None:
    qkv, bias = make_inputs(SMALL, seed=1).qkv(), drawn_bias(SMALL)
    with pytest.raises(ValueError, match=r"no bias is given.* problem with one"):
        built(SMALL)(*qkv)
    with pytest.raises(ValueError, match=r"a bias is given.* problem with none"):
        built(SMALL.replace(bias=False))(*qkv, bias)
    with pytest.raises(ValueError, match=r"bias is torch.float32 \(2, 18, 19\).*\(2, 18, 20\)"):
        built(SMALL)(*qkv, bias[..., 1:])
    with pytest.raises(ValueError, match=r"bias is torch.float64"):
        built(SMALL)(*qkv, bias.double())
