"""A plugin as a module of a model: gradients, layouts, learned state, precision, shapes.

Letters: B = batch, H = heads_q, G = heads_kv, M = seqlen_q, N = seqlen_k, D = head_dim.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from modelling import CPU, Laid, Spy
from torch import nn

from attnbench import Attention, Unsupported, implementation
from attnbench.train.models.bridge import Attends, Builds, LateBuild, prepare

TIGHT = {"rtol": 1e-9, "atol": 1e-10}


def operands(
    dtype: torch.dtype = torch.float64, seqlen: int = 12, heads_kv: int = 4
) -> list[torch.Tensor]:
    """q, k, v as models hold them: (B, M, H, D) in memory."""
    torch.manual_seed(0)
    shapes = [(2, seqlen, 4, 8), (2, seqlen, heads_kv, 8), (2, seqlen, heads_kv, 8)]
    made = [torch.randn(shape, dtype=dtype).transpose(1, 2) for shape in shapes]
    return [x.requires_grad_() for x in made]


def answer(attention: Attention, *more: torch.Tensor, **asked: Any) -> list[torch.Tensor]:
    """Output and gradients of q, k, v and whatever else."""
    place, given = Attends(Builds(attention, CPU)), operands(heads_kv=2)
    bias = {"bias_HMN": more[0]} if more else {}
    out = place(*given, **bias, **asked)
    return [out, *torch.autograd.grad(out.square().sum(), [*given, *more])]


class Packed(Laid):
    layout = "packed"


class Wrong(Laid):
    is_wrong = True


@pytest.mark.parametrize("mask", ["full", "causal"])
@pytest.mark.parametrize("attention", [Laid, Packed])
def test_layouts_and_backwards_of_their_own_give_the_same(
    attention: type[Attention], mask: str
) -> None:
    expected = answer(implementation("naive"), mask=mask)
    for one, other in zip(answer(attention(), mask=mask), expected, strict=True):
        torch.testing.assert_close(one, other, **TIGHT)


def test_a_wrong_backward_reaches_the_gradients() -> None:
    """The parity tests see what a plugin says, not autograd's own opinion."""
    right, wrong = answer(implementation("naive")), answer(Wrong())
    torch.testing.assert_close(wrong[0], right[0], **TIGHT)
    assert not torch.allclose(wrong[2], right[2])


def test_gradcheck_in_float64() -> None:
    place = Attends(Builds(implementation("blockwise", block=4), CPU))
    given = operands(seqlen=5)
    assert torch.autograd.gradcheck(lambda *x: place(*x, mask="causal"), given)


def test_hooks_see_what_a_backward_of_its_own_saves() -> None:
    """Broken: saved on the context, where memory by part and offloading do not see it."""
    place, seen = Attends(Builds(implementation("blockwise"), CPU)), []
    given = operands()

    def pack(x: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(x.shape))
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        place(*given)
    assert seen.count((2, 4, 12, 8)) == 4  # q, k, v and the output


@pytest.mark.parametrize("name", ["naive", "sdpa", "blockwise", "gathered"])
def test_a_learned_bias_gets_its_gradient(name: str) -> None:
    torch.manual_seed(1)
    bias_HMN = torch.randn(4, 12, 12, dtype=torch.float64, requires_grad=True)
    expected = answer(implementation("naive"), bias_HMN, mask="causal")
    for one, other in zip(
        answer(implementation(name), bias_HMN, mask="causal"), expected, strict=True
    ):
        torch.testing.assert_close(one, other, **TIGHT)
    assert bool(expected[-1].any())


def test_who_cannot_add_a_bias_refuses() -> None:
    with pytest.raises(Unsupported, match="does not do a learned bias"):
        answer(implementation("linear"), torch.zeros(4, 12, 12, requires_grad=True))


# ---- learned state -----------------------------------------------------------------------


class Model(nn.Module):
    """Two places."""

    def __init__(self, builds: Builds) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Attends(builds), Attends(builds)])
        self.dropout_p = 0.0

    def forward(self, x_BHND: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            p = self.dropout_p if self.training else 0.0
            x_BHND = layer(x_BHND, x_BHND, x_BHND, dropout_p=p)
        return x_BHND


def prepared(attention: Attention, dtype: torch.dtype = torch.float32, **fields: Any) -> Model:
    torch.manual_seed(0)
    model = Model(Builds(attention, CPU))
    for name, value in fields.items():
        setattr(model, name, value)
    x_BHND = torch.randn(2, 4, 16, 8)
    autocast = None if dtype == torch.float32 else dtype
    prepare(model, model.layers[0].builds, {"x_BHND": x_BHND}, {"x_BHND": x_BHND}, autocast)
    return model


def test_each_place_learns_its_own_and_the_optimizer_knows() -> None:
    """Broken: built in the first step, after the optimizer; or one E and F for all layers."""
    model = prepared(implementation("linformer", rank=4))
    names = [name for name, _ in model.named_parameters()]
    assert names == [f"layers.{i}.built_0.mix_{x}_Nr" for i in (0, 1) for x in "kv"]
    first, second = (model.layers[i].built_0.mix_k_Nr for i in (0, 1))
    assert not torch.equal(first, second)
    before = [p.clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(2, 4, 16, 8)).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_build_for_another_shape_shares_what_was_learned() -> None:
    """Another batch is another problem, but the same E and F."""
    model = prepared(implementation("linformer", rank=4))
    count = len(list(model.parameters()))
    with pytest.warns(LateBuild):
        model(torch.randn(5, 4, 16, 8))
    assert len(list(model.parameters())) == count
    place = model.layers[0]
    assert place.built_1.mix_k_Nr is place.built_0.mix_k_Nr


def test_what_was_learned_for_one_length_does_not_serve_another() -> None:
    model = prepared(implementation("linformer", rank=4))
    with (
        pytest.warns(LateBuild),
        pytest.raises(Unsupported, match=r"mix_k_Nr is \(24, 4\) at 24 queries.*\(16, 4\)"),
    ):
        model(torch.randn(2, 4, 24, 8))


def test_what_draws_does_not_disturb_the_model() -> None:
    """Broken: a method with random state shifts every later draw, and with it the weights."""
    drawn = []
    for name in ("naive", "performer", "linformer"):
        torch.manual_seed(5)
        Attends(Builds(implementation(name), CPU))(*operands(torch.float32))
        drawn.append(torch.rand(1).item())
    assert len(set(drawn)) == 1


def test_stateless_builds_are_shared_by_the_layers() -> None:
    spy = Spy()
    prepared(spy)
    assert len(spy.asked) == 1


# ---- shapes, dropout, precision ------------------------------------------------------------


def test_a_shape_that_comes_late_is_built_and_told() -> None:
    """Broken: a slow build inside a timed step that nobody hears of."""
    model = prepared(Spy())
    builds = model.layers[0].builds
    assert builds.late == []
    with pytest.warns(LateBuild, match="spy is built for B3"):
        model(torch.randn(3, 4, 16, 8))
    assert len(builds.late) == 1


def test_dropout_is_the_problems_in_training_and_zero_in_evaluation() -> None:
    spy = Spy()
    model = prepared(spy, dropout_p=0.5)
    assert [p.dropout_p for p in spy.asked] == [0.5, 0.0]
    x_BHND = torch.randn(2, 4, 16, 8)
    assert not torch.equal(model.train()(x_BHND), model(x_BHND))
    assert torch.equal(model.eval()(x_BHND), model(x_BHND))


def test_who_has_no_dropout_refuses_before_training() -> None:
    with pytest.raises(Unsupported, match="dropout"):
        prepared(implementation("sdpa"), dropout_p=0.5)


def test_under_autocast_mixed_operands_become_one_dtype() -> None:
    """RoPE leaves q and k in float32, v comes in bf16: broken, products of two dtypes."""
    spy = Spy()
    q, k, v = operands(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = Attends(Builds(spy, CPU))(q, k, v.bfloat16())
    assert out.dtype == torch.bfloat16
    assert [p.dtype for p in spy.asked] == ["bfloat16"]
    plain = Attends(Builds(Spy(), CPU))(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert torch.equal(out, plain)  # autocast does not reach inside


def test_learned_state_stays_in_float32_under_autocast() -> None:
    """Broken: parameters in bf16, which an optimizer's small steps leave as they are."""
    model = prepared(implementation("linformer", rank=4), torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(2, 4, 16, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_what_was_built_for_inference_alone_gives_no_gradient() -> None:
    place = Attends(Builds(implementation("naive"), CPU, direction="forward"))
    assert not place(*operands()).requires_grad
