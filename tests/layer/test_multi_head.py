"""The layer is torch.nn.MultiheadAttention's equal, and costs what is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from made_layers import CPU, Plain, of
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from attnbench import ForwardBackward, Problem
from attnbench.layer.core import as_core
from attnbench.layer.inputs import real_tokens
from attnbench.layer.multi_head import MultiHeadAttention


def layer_of(problem: Problem) -> MultiHeadAttention:
    core = as_core(Plain().build(problem.core, CPU), "BHSD")
    return MultiHeadAttention(problem, core, CPU)


def torchs(ours: MultiHeadAttention) -> nn.MultiheadAttention:
    """torch's module with the same weights."""
    p = ours.problem
    theirs = nn.MultiheadAttention(
        p.d_model, p.heads_q, bias=False, batch_first=True, dtype=p.torch_dtype
    )
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.wq.weight, ours.wk.weight, ours.wv.weight]))
        theirs.out_proj.weight.copy_(ours.wo.weight)
    return theirs


@pytest.mark.parametrize("mask", ["full", "causal"])
@pytest.mark.parametrize("extra", [{}, {"padding": 0.4}, {"seqlen_k": 17}], ids=str)
def test_outputs_and_gradients_are_those_of_torchs_module(mask: str, extra: Any) -> None:
    problem = of(dtype="float64", mask=mask, **extra)
    ours = layer_of(problem)
    theirs = torchs(ours)
    generator = torch.Generator().manual_seed(0)

    def draw(seqlen: int) -> torch.Tensor:
        return torch.randn(3, seqlen, 32, dtype=torch.float64, generator=generator)

    states = [draw(13).requires_grad_()]
    if problem.seqlen_k != 13:
        states.append(draw(17).requires_grad_())
    real_BM = real_tokens(problem)[..., None]
    keys = states[-1]
    want, _ = theirs(
        states[0], keys, keys, need_weights=False,
        key_padding_mask=~real_BM[..., 0] if problem.padding else None,
        attn_mask=~problem.mask.dense(13, problem.seqlen_k),
    )  # fmt: skip
    want = want * real_BM
    got = ours(*states)
    torch.testing.assert_close(got, want)
    grad_out = draw(13)
    back = torch.autograd.grad(want, [*states, *theirs.parameters()], grad_out)
    wants = [*back[: len(states)], *back[-2].chunk(3), back[-1]]
    gots = torch.autograd.grad(got, [*states, *ours.parameters()], grad_out)
    for mine, torchs_ in zip(gots, wants, strict=True):
        torch.testing.assert_close(mine, torchs_)


def test_padding_is_seen_by_nobody_and_gives_zeros() -> None:
    problem = of(padding=0.4, direction="forward", position="rope")
    layer, real_BM = layer_of(problem), real_tokens(problem)
    assert real_BM.sum(dim=1).tolist() == [13, 8, 3] == list(problem.lengths)
    x_BMC = torch.randn(3, 13, 32, generator=torch.Generator().manual_seed(1))
    y_BMC = layer(x_BMC)
    other_BMC = torch.where(real_BM[..., None], x_BMC, torch.full_like(x_BMC, float("nan")))
    assert torch.equal(layer(other_BMC), y_BMC)
    assert not y_BMC[~real_BM].any()


@pytest.mark.parametrize("position", ["sinusoidal", "learned", "relative", "rope", "alibi"])
def test_a_sequence_beside_padding_is_answered_as_it_is_alone(position: str) -> None:
    padded = of(padding=0.4, position=position, mask="causal", dtype="float64")
    together = layer_of(padded)
    x_BMC = torch.randn(3, 13, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    y_BMC = together(x_BMC)
    for entry, length in enumerate(padded.lengths):
        alone = layer_of(padded.replace(batch=1, padding=0.0, seqlen_q=length, seqlen_k=length))
        state = together.state_dict()
        if position == "learned":
            state["position.table_TC"] = state["position.table_TC"][:length]
        alone.load_state_dict(state)
        torch.testing.assert_close(
            alone(x_BMC[entry : entry + 1, :length])[0], y_BMC[entry, :length]
        )


@pytest.mark.parametrize("position", ["sinusoidal", "learned", "relative", "rope", "alibi"])
def test_every_encoding_tells_the_order_of_tokens(position: str) -> None:
    """Without one, a permutation of the keys changes nothing."""
    torch.manual_seed(0)
    x_BMC = torch.randn(1, 13, 32)
    memory_BNC = torch.randn(1, 17, 32)

    @torch.no_grad()
    def change(problem: Problem) -> float:
        layer = layer_of(problem)
        return float((layer(x_BMC, memory_BNC) - layer(x_BMC, memory_BNC.flip(1))).abs().max())

    plain = of(batch=1, seqlen_k=17, direction="forward")
    assert change(plain) < 1e-5
    assert change(plain.replace(position=position)) > 1e-3


@pytest.mark.parametrize(
    "extra", [{}, {"heads_kv": 2}, {"seqlen_k": 17}, {"head_dim_v": 4}], ids=str
)
def test_flops_are_what_torchs_counter_counts(extra: Any) -> None:
    problem = of(**extra)
    layer = layer_of(problem)
    states = [torch.randn(3, 13, 32, requires_grad=True)]
    if problem.seqlen_k != 13:
        states.append(torch.randn(3, 17, 32, requires_grad=True))
    with FlopCounterMode(display=False) as forward:
        out = layer(*states)
    assert forward.get_total_flops() == problem.replace(direction="forward").flops()
    with FlopCounterMode(display=False) as backward:
        out.backward(torch.ones_like(out))
    pairs = problem.batch * problem.heads_q * 13 * problem.seqlen_k
    again = 2 * pairs * problem.head_dim  # the logits, which the textbook has kept
    counted = problem.replace(direction="backward").flops() - again
    assert backward.get_total_flops() == counted


def test_flops_leave_padding_out() -> None:
    problem = of(padding=0.4)
    one = of(batch=1, direction="both")
    alone = (one.replace(seqlen_q=n, seqlen_k=n) for n in problem.lengths)
    assert problem.flops() == sum(p.flops() for p in alone)


@pytest.mark.parametrize("layout", ["BHSD", "BSHD", "packed"])
@pytest.mark.parametrize("is_own", [False, True])
def test_a_core_takes_any_layout_and_a_backward_of_its_own(layout: Any, is_own: bool) -> None:
    """What arrives is contiguous and in the layout; gradients are autograd's."""
    shapes = {"BHSD": (2, 4, 5, 8), "BSHD": (2, 5, 4, 8), "packed": (10, 4, 8)}

    def forward(q: Any, k: Any, v: Any) -> Any:
        for x in (q, k, v):
            assert tuple(x.shape) == shapes[layout]
            assert x.is_contiguous()
        return q * k + v, (q, k)

    def backward(saved: Any, grad: Any) -> Any:
        assert grad.is_contiguous()
        q, k = saved
        return grad * k, grad * q, grad

    built = ForwardBackward(forward, backward) if is_own else lambda q, k, v: forward(q, k, v)[0]
    q, k, v = torch.randn(3, 2, 5, 4, 8).requires_grad_().unbind()
    out = as_core(built, layout)(q, k, v)
    assert torch.equal(out, q * k + v)
    grad = torch.randn(2, 4, 5, 8).transpose(1, 2)
    got = torch.autograd.grad(out, (q, k, v), grad)
    for mine, want in zip(got, (grad * k, grad * q, grad), strict=True):
        assert torch.equal(mine, want)
