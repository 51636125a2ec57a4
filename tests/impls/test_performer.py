from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import peers
import pytest
import torch
from definition import assert_as_defined, defined, errors, expanded, mutant
from shelf import CPU, implementation, module_of, solve

from attnbench import Problem, Unsupported, make_inputs
from attnbench.oracle import reference

SMALL = Problem.of(batch=2, heads=2, seqlen=37, head_dim=8, head_dim_v=12, dtype="float64")


def definition(p: Problem) -> Callable[[Any], Any]:
    """The estimator as the paper has it (lemma 1), without stabiliser, pair by pair."""

    def of(built: Any) -> Any:
        w_FD = built.features.projection_FD.double()
        half = abs(p.softmax_scale) ** 0.5
        sign = 1.0 if p.softmax_scale > 0 else -1.0

        def phi(x: torch.Tensor) -> torch.Tensor:
            return torch.exp(x @ w_FD.T - x.square().sum(-1, keepdim=True) / 2) / len(w_FD) ** 0.5

        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            weights = phi(q * half * sign) @ phi(expanded(k, p) * half).mT
            weights = weights * p.mask.dense(p.seqlen_q, p.seqlen_k, CPU)
            total = weights.sum(-1, keepdim=True)
            return (weights / torch.where(total == 0, 1.0, total)) @ expanded(v, p)

        return attend

    return of


@pytest.mark.parametrize("mask", ["full", "causal"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"heads_q": 6},
        {"scale": -0.2},
        {"seqlen_q": 20},
        {"seqlen_k": 20},
        {"dtype": "float32"},
        {"dtype": "bfloat16"},
        {"dtype": "float16"},
    ],
    ids=str,
)
def test_it_is_what_its_definition_says(changes: dict[str, Any], mask: str) -> None:
    p = SMALL.replace(mask=mask, **changes)
    assert_as_defined("performer", p, definition(p), features=32, chunk=8)


@pytest.mark.parametrize("mask", ["full", "causal"])
def test_it_is_what_performer_pytorch_computes(mask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Apart from the 1e-4 that the library adds to each feature, which outweighs most of them."""
    plain = functools.partial(peers.performer.softmax_kernel, eps=0.0)
    monkeypatch.setattr(peers.performer, "softmax_kernel", plain)
    p = SMALL.replace(mask=mask, head_dim_v=8, direction="both")
    execution, inputs = solve("performer", p, features=32, chunk=8)
    peer = peers.of_performer(execution.built, p)
    if mask == "causal":  # it adds 1e-6 to each normaliser
        peer.call.causal_linear_fn = functools.partial(peer.call.causal_linear_fn, eps=0.0)
    assert max(errors(execution.results(), defined(peer.call, inputs)).values()) < 1e-12


def test_the_error_falls_with_the_root_of_the_number_of_features() -> None:
    """The paper's theorem 4, on inputs small enough for it to be seen with few features."""
    p = Problem.of(heads=4, seqlen=64, head_dim=8, dtype="float64", scale=0.05)
    inputs = make_inputs(p, 5)
    truth = reference(p, inputs, gradients=False).out_BHME
    counts = [32, 128, 512, 2048]
    found = []
    for count in counts:
        outs = [
            implementation("performer", features=count, seed=seed).build(p, CPU)(*inputs.qkv())
            for seed in range(12)
        ]
        found.append(float((torch.stack(outs) - truth).square().mean().sqrt() / truth.std()))
    slope = np.polyfit(np.log(counts), np.log(found), 1)[0]
    assert -0.6 < slope < -0.4, (slope, found)
    assert found[-1] < 0.1


def test_orthogonal_rows_are_gaussian_and_orthogonal_and_better_than_independent_ones() -> None:
    draw = sys.modules[f"{module_of('performer').__name__}.features"].orthogonal_gaussian
    w_FD = draw(20, 8, 3, torch.float64, CPU)
    assert torch.equal(w_FD, draw(20, 8, 3, torch.float64, CPU))
    assert not torch.equal(w_FD, draw(20, 8, 4, torch.float64, CPU))
    for block in (w_FD[:8], w_FD[8:16], w_FD[16:]):
        gram = block @ block.T
        assert torch.allclose(gram, gram.diagonal().diag(), atol=1e-12)
    many = torch.stack([draw(8, 8, seed, torch.float64, CPU) for seed in range(2000)])
    assert float(many.mean()) == pytest.approx(0, abs=0.02)
    assert float(many.var()) == pytest.approx(1, abs=0.02)
    assert float((many**4).mean()) == pytest.approx(3, abs=0.1)  # of N(0, 1)


def test_large_numbers_neither_overflow_nor_vanish() -> None:
    assert error_on_large_numbers() < 1e-3


def error_on_large_numbers() -> float:
    """With logarithms of features of about −1000, where float32's end at −103."""
    p = Problem.of(heads=2, seqlen=50, head_dim=8)
    q, k, v = make_inputs(p, 2).qkv()
    built = implementation("performer", features=64).build(p, CPU)
    q, k = 10 * q, 30 * k
    w_FD = built.features.projection_FD.double() * p.softmax_scale**0.5
    log_q_F, log_k_F = (x.double() @ w_FD.T for x in (q, k))
    log_k_F -= p.softmax_scale * k.double().square().sum(-1, keepdim=True) / 2
    log_weights = (log_q_F[:, :, :, None] + log_k_F[:, :, None]).logsumexp(-1)
    truth = log_weights.softmax(-1) @ v.double()
    error = (built(q, k, v) - truth).norm() / truth.norm()
    return float(error.nan_to_num(float("inf")))


BROKEN = {
    "no stabiliser of the keys": ("amax(dim=1, keepdim=True)", "amax(dim=1, keepdim=True) * 0"),
    "no stabiliser of the queries": ("log_q_brF.sub_(top_br1).exp_()", "log_q_brF.exp_()"),
    "no norm of the keys": ("norm_bN1 * (-abs(self.scale) / 2)", "norm_bN1 * 0"),
    "scale on one side only": ("w_FD = self._scaled_FD if", "w_FD = self.projection_FD if"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_features_are_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = module_of("performer")
    broken = mutant(sys.modules[f"{package.__name__}.features"], *BROKEN[fault])
    monkeypatch.setattr(package, "Positive", broken.Positive)
    if "stabiliser" in fault:
        assert error_on_large_numbers() > 0.1
    else:
        with pytest.raises(AssertionError):
            assert_as_defined("performer", SMALL, definition(SMALL), features=32)


def test_a_query_that_sees_only_far_smaller_keys_gives_their_mean() -> None:
    p = Problem.of(heads=1, seqlen=40, head_dim=8, mask="causal", direction="both")
    q, k, v = (x.clone() for x in make_inputs(p, 0).qkv())
    k[:, :, :10] *= 100  # features of about e^-1000
    q.requires_grad_()
    out = implementation("performer").build(p, CPU)(q, k, v)
    means = v[:, :, :10].cumsum(2) / torch.arange(1, 11)[:, None]
    assert torch.allclose(out[:, :, :10], means, atol=1e-5)
    (gradient,) = torch.autograd.grad(out.sum(), q)
    assert bool(gradient.isfinite().all())


def test_features_are_at_least_one() -> None:
    with pytest.raises(Unsupported, match="features must be at least 1, got 0"):
        implementation("performer", features=0).supports(SMALL, CPU)
