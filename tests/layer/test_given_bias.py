"""The oracle under a bias that is given: forward, and the gradient of the bias too."""

from __future__ import annotations

import pytest
import torch

from attnbench import Problem, make_inputs, oracle
from attnbench.oracle import reference


def given(problem: Problem) -> torch.Tensor:
    p, generator = problem, torch.Generator().manual_seed(5)
    shape = (p.heads_q, p.seqlen_q, p.seqlen_k)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


PROBLEM = Problem.of(
    batch=2, heads_q=4, heads_kv=2, seqlen_q=5, seqlen_k=7, head_dim=4, mask="causal",
    softcap=1.5, alibi=True, bias=True, direction="both",
)  # fmt: skip


@pytest.mark.parametrize("tile", [1, 60, 1 << 22])
def test_the_bias_and_its_gradient_are_autograds(
    tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oracle, "_TILE_ELEMENTS", tile)
    p, inputs = PROBLEM, make_inputs(PROBLEM, seed=4)
    bias_HMN = given(p).requires_grad_()
    q, k, v = (x.double().requires_grad_() for x in inputs.qkv())
    k_BHND, v_BHNE = (x.repeat_interleave(2, dim=1) for x in (k, v))
    logits = 1.5 * torch.tanh(q @ k_BHND.mT * p.softmax_scale / 1.5)
    away_MN = torch.arange(5)[:, None] + 2 - torch.arange(7)
    slopes_H11 = torch.tensor([2.0**-i for i in (2, 4, 6, 8)])[:, None, None]
    logits = logits - slopes_H11 * away_MN.abs() + bias_HMN
    out = logits.masked_fill(away_MN < 0, float("-inf")).softmax(-1) @ v_BHNE
    wants = torch.autograd.grad(out, (q, k, v, bias_HMN), inputs.grad_out_BHME.double())
    got = reference(p, inputs, gradients=True, bias_HMN=bias_HMN)
    torch.testing.assert_close(got.out_BHME, out.detach(), rtol=1e-10, atol=1e-12)
    gots = (got.dq_BHMD, got.dk_BGND, got.dv_BGNE, got.dbias_HMN)
    for mine, want in zip(gots, wants, strict=True):
        torch.testing.assert_close(mine, want, rtol=1e-10, atol=1e-12)


def test_a_bias_that_does_not_fit_is_refused() -> None:
    inputs = make_inputs(PROBLEM, seed=0)
    with pytest.raises(ValueError, match="needs one"):
        reference(PROBLEM, inputs, gradients=False)
    with pytest.raises(ValueError, match="no other takes one"):
        reference(PROBLEM.replace(bias=False), inputs, gradients=False, bias_HMN=given(PROBLEM))
    with pytest.raises(ValueError, match="expected"):
        reference(PROBLEM, inputs, gradients=False, bias_HMN=given(PROBLEM)[:1])
