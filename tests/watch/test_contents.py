"""Renewed contents have the truth that is claimed for them, and a part stands for the whole."""

from __future__ import annotations

import pytest
import torch

from attnbench.inputs import Inputs, make_inputs
from attnbench.oracle import reference
from attnbench.problem import Problem
from attnbench.watch.contents import draw_part, draw_signs, expect_noise

CPU = torch.device("cpu")
PROBLEMS = {
    "plain": {},
    "causal-gqa": {"mask": "causal", "heads_q": 4, "heads_kv": 2},
    "alibi": {"alibi": True},
    "softcap": {"softcap": 2.0, "scale": -0.3},
    "head_dim_v": {"head_dim_v": 5, "mask": "window:window=3"},
    "bfloat16": {"dtype": "bfloat16"},
}


def a_problem(name: str) -> Problem:
    base = {"batch": 2, "heads_q": 4, "seqlen_q": 9, "head_dim": 6, "direction": "both"}
    return Problem.of(**{**base, **PROBLEMS[name]})


def named(inputs: Inputs) -> dict[str, torch.Tensor]:
    given = (*inputs.qkv(), inputs.grad_out_BHME)
    return dict(zip(("q", "k", "v", "grad_out"), given, strict=True))


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_truth_of_contents_with_signs_is_the_old_truth_with_signs(name: str) -> None:
    problem = a_problem(name)
    inputs = make_inputs(problem, 1)
    signs = draw_signs(problem, CPU, torch.Generator().manual_seed(2))
    renewed = Inputs(*signs.apply(named(inputs)).values())
    old = reference(problem, inputs, gradients=True).tensors()
    new = reference(problem, renewed, gradients=True).tensors()
    for tensor, truth in signs.apply(old).items():
        assert torch.equal(new[tensor], truth), tensor
        assert not torch.equal(new[tensor], old[tensor]), tensor


def test_signs_never_leave_contents_as_they_were() -> None:
    problem = Problem.of(head_dim=1, seqlen_q=4)
    for seed in range(20):
        signs = draw_signs(problem, CPU, torch.Generator().manual_seed(seed))
        assert all(float(signs.by_name[name].min()) == -1 for name in ("q", "k", "v"))


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_truth_of_a_part_is_that_part_of_the_truth(name: str) -> None:
    problem = a_problem(name)
    inputs = make_inputs(problem, 1)
    whole = reference(problem, inputs, gradients=True).tensors()
    seen = set()
    for seed in range(8):
        part = draw_part(problem, torch.Generator().manual_seed(seed))
        truth = reference(part.problem, part.of_inputs(inputs), gradients=True).tensors()
        for tensor, expected in part.of_tensors(whole).items():
            torch.testing.assert_close(truth[tensor], expected, rtol=1e-12, atol=1e-12)
        seen.add((part.batch, part.heads_kv.start))
    assert len(seen) > 1


@pytest.mark.parametrize("kind", ["normal", "large", "peaky", "correlated", "local", "needle"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_all_inputs_are_noise_the_gradient_too(kind: str, dtype: str) -> None:
    for lengths in ({"seqlen_q": 1, "seqlen_k": 2, "head_dim": 2}, {"seqlen_q": 300}):
        problem = Problem.of(**lengths, inputs=kind, dtype=dtype)
        expect_noise(named(make_inputs(problem, 3)))


@pytest.mark.parametrize("x", [torch.zeros(64), torch.ones(64), torch.arange(640) % 3])
def test_contents_of_low_entropy_are_refused(x: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"grad_out holds . different values among .* low entropy"):
        expect_noise({"q": torch.randn(64), "grad_out": x.float()})
