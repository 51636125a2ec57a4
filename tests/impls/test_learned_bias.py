"""A learned bias on the logits, as models with relative positions add it.

Letters: B = batch, H = heads_q, G = heads_kv, M = seqlen_q, N = seqlen_k, D = head_dim,
E = head_dim_v.
"""

from __future__ import annotations

import pytest
import torch
from shelf import CPU, implementation

from attnbench import ForwardBackward, Problem, Unsupported, make_inputs

NAMES = ["naive", "sdpa", "sdpa-math", "blockwise:block=16", "gathered:block=8", "top-k:k=24"]
PROBLEMS = {
    "full": Problem.of(batch=2, heads=4, seqlen_q=17, seqlen_k=24, head_dim=8, direction="both"),
    "causal": Problem.of(
        batch=2, heads=4, heads_kv=2, seqlen=24, head_dim=8, mask="causal", scale=1.0,
        direction="both",
    ),
}  # fmt: skip
PROBLEMS = {name: problem.replace(dtype="float64", bias=True) for name, problem in PROBLEMS.items()}


def _truth(
    problem: Problem, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias_HMN: torch.Tensor
) -> torch.Tensor:
    """The definition: softmax(q kᵀ · scale + bias, mask) v."""
    group = problem.heads_q // problem.heads_kv
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    logits_BHMN = torch.einsum("bhmd,bhnd->bhmn", q, k) * problem.softmax_scale + bias_HMN
    seen_MN = problem.mask.dense(problem.seqlen_q, problem.seqlen_k, CPU)
    weights_BHMN = logits_BHMN.masked_fill(~seen_MN, float("-inf")).softmax(dim=-1)
    return torch.einsum("bhmn,bhne->bhme", weights_BHMN, v)


def _solved(
    name: str, problem: Problem, bias_HMN: torch.Tensor
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Output and four gradients, of the implementation and of the definition."""
    name, _, option = name.partition(":")
    options = {} if not option else {option.split("=")[0]: int(option.split("=")[1])}
    built = implementation(name, **options).build(problem, CPU)
    inputs = make_inputs(problem, seed=3)
    given = [x.clone().requires_grad_() for x in (*inputs.qkv(), bias_HMN)]
    grad = inputs.grad_out_BHME
    truth = _truth(problem, *given)
    expected = [truth, *torch.autograd.grad(truth, given, grad)]
    if isinstance(built, ForwardBackward):
        with torch.no_grad():
            out, saved = built.forward(*given)
            return [out, *built.backward(saved, grad)], expected
    out = built(*given)
    return [out, *torch.autograd.grad(out, given, grad)], expected


@pytest.mark.parametrize("kind", list(PROBLEMS))
@pytest.mark.parametrize("name", NAMES)
def test_output_and_all_four_gradients_are_those_of_the_definition(name: str, kind: str) -> None:
    problem = PROBLEMS[kind]
    torch.manual_seed(0)
    bias_HMN = torch.randn(4, problem.seqlen_q, problem.seqlen_k, dtype=torch.float64)
    results, expected = _solved(name, problem, bias_HMN)
    assert len(results) == 5
    for result, truth in zip(results, expected, strict=True):
        torch.testing.assert_close(result, truth, rtol=1e-9, atol=1e-10)


def test_a_bias_after_softcap_is_not_capped() -> None:
    """Broken: the bias added before the tanh, and its gradient taken through it."""
    problem = PROBLEMS["full"].replace(softcap=1.5)
    torch.manual_seed(0)
    bias_HMN = 4 * torch.randn(4, 17, 24, dtype=torch.float64)
    results = [_solved(name, problem, bias_HMN)[0] for name in ("naive", "blockwise:block=16")]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["linear", "performer", "linformer", "nystrom"])
def test_methods_without_logits_refuse_it(name: str) -> None:
    with pytest.raises(Unsupported, match="does not do a learned bias"):
        implementation(name).supports(PROBLEMS["full"].replace(seqlen_k=17), CPU)


@pytest.mark.slow
def test_flex_adds_it_in_its_forward() -> None:
    problem = PROBLEMS["causal"].replace(dtype="float32", direction="forward")
    inputs = make_inputs(problem, seed=3)
    torch.manual_seed(0)
    bias_HMN = torch.randn(4, 24, 24)
    out = implementation("flex").build(problem, CPU)(*inputs.qkv(), bias_HMN)
    torch.testing.assert_close(out, _truth(problem, *inputs.qkv(), bias_HMN), rtol=1e-4, atol=1e-5)
