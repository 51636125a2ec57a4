"""The learning rate at its corners, what decays, and what clipping does."""

from __future__ import annotations

import math

import pytest
import torch

from attnbench.errors import UserError
from attnbench.train.optim import clip_gradients, lr_at, make_optimizer, set_lr
from attnbench.train.workload import Workload


def workload(**fields) -> Workload:
    return Workload.of(
        **{"lr": 1.0, "warmup": 3, "cooldown": 3, "steps": 106, "schedule": "constant", **fields}
    )


@pytest.mark.parametrize("schedule", ["constant", "cosine", "exponential", "step"])
def test_warm_up_and_cool_down_are_linear_and_never_zero(schedule):
    w = workload(schedule=schedule)
    assert [lr_at(w, s) for s in (0, 1, 2)] == pytest.approx([1 / 4, 2 / 4, 3 / 4])
    assert lr_at(w, 3) == pytest.approx(1)
    left = {"constant": 1, "cosine": 0.1, "exponential": 0.1, "step": 0.01}[schedule]
    falling = [lr_at(w, s) for s in (103, 104, 105)]
    assert falling == pytest.approx([left * 3 / 4, left * 2 / 4, left / 4])
    assert min(lr_at(w, s) for s in range(106)) > 0


def test_schedules_between_the_ramps():
    at = {name: [lr_at(workload(schedule=name), 3 + s) for s in (0, 25, 50, 75, 99)]
          for name in ("constant", "cosine", "exponential", "step")}  # fmt: skip
    assert at["constant"] == [1.0] * 5
    quarter = 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2
    last = 0.1 + 0.9 * (1 + math.cos(math.pi * 0.99)) / 2
    assert at["cosine"] == pytest.approx([1, quarter, 0.55, 1.1 - quarter, last])
    assert at["exponential"] == pytest.approx([10 ** (-s / 100) for s in (0, 25, 50, 75, 99)])
    assert at["step"] == pytest.approx([1, 1, 0.1, 0.01, 0.01])
    assert lr_at(workload(schedule="step"), 3 + 49) == 1.0
    assert lr_at(workload(schedule="step"), 3 + 74) == pytest.approx(0.1)


def test_schedules_without_ramps_start_at_the_rate_and_scale_with_it():
    for name in ("constant", "cosine", "exponential", "step"):
        assert lr_at(Workload(schedule=name, warmup=0, lr=0.3, steps=10), 0) == 0.3
    ramps = Workload(lr=0.3, warmup=1, cooldown=1, steps=2)  # nothing between
    assert [lr_at(ramps, s) for s in (0, 1)] == pytest.approx([0.15, 0.15])


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(5, 4)
        self.norm = torch.nn.LayerNorm(4)
        self.head = torch.nn.Linear(4, 5)
        self.head.weight = self.embedding.weight  # tied: must be updated once


def step(net: Net, w: Workload, value: float = 0.0) -> None:
    optimizer = make_optimizer(w, net)
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, value)
    set_lr(optimizer, 0.5)
    optimizer.step()


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_matrices_decay_and_norms_and_biases_do_not(name):
    torch.manual_seed(0)
    net = Net()
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    step(net, Workload(optimizer=name, weight_decay=0.1))
    for n, parameter in net.named_parameters():
        factor = 1 - 0.5 * 0.1 if n == "embedding.weight" else 1.0
        torch.testing.assert_close(parameter.detach(), before[n] * factor)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_rate_that_is_set_is_the_one_used_by_every_group(name):
    net = Net()
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    step(net, Workload(optimizer=name, weight_decay=0.0), value=1.0)
    for n, parameter in net.named_parameters():  # AdamW's first step is the rate, whatever g
        torch.testing.assert_close(parameter.detach(), before[n] - 0.5)


def test_betas_reach_adamw_and_beta1_is_sgds_momentum():
    adamw = make_optimizer(Workload(beta1=0.8, beta2=0.9, lr=0.4, warmup=1), Net())
    assert {g["betas"] for g in adamw.param_groups} == {(0.8, 0.9)}
    assert {g["lr"] for g in adamw.param_groups} == {0.2}  # that of the first step
    assert all(g["fused"] for g in adamw.param_groups)
    sgd = make_optimizer(Workload(optimizer="sgd", beta1=0.8), Net())
    assert {g["momentum"] for g in sgd.param_groups} == {0.8}


def test_only_what_learns_is_given_to_the_optimizer():
    net = Net()
    net.embedding.weight.requires_grad_(False)
    groups = make_optimizer(Workload(), net).param_groups
    given = {id(p) for group in groups for p in group["params"]}
    assert given == {id(net.norm.weight), id(net.norm.bias), id(net.head.bias)}
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(UserError, match="finetune 'full' leaves no parameter that learns"):
        make_optimizer(Workload(), net)


def test_clipping_scales_the_common_norm_and_tells_the_one_before():
    one, two = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    one.grad, two.grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert clip_gradients(Workload(clip=10.0), [one, two]).item() == 5.0
    assert one.grad.item() == 3.0
    assert clip_gradients(Workload(clip=1.0), [one, two]).item() == 5.0
    assert (one.grad.item(), two.grad.item()) == pytest.approx((0.6, 0.8), rel=1e-5)
    assert clip_gradients(Workload(clip=0.0), [one, two]) is None
    assert one.grad.item() == pytest.approx(0.6, rel=1e-5)
