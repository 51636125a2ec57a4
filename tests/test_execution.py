"""The hinge between plugins and measurement: layouts, loading, stepping, reading results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from attnbench.attention import Attention, ForwardBackward, Unsupported
from attnbench.execution import Execution, WrongOutput
from attnbench.inputs import make_inputs
from attnbench.layouts import from_layout, layout_shape, to_layout
from attnbench.problem import Problem

CPU = torch.device("cpu")
LAYOUTS = ("BHSD", "BSHD", "packed")
SHAPE = (2, 3, 5, 4)  # batch, heads, seqlen, head_dim

Built = Callable[..., Any]


def textbook(q_BHMD: torch.Tensor, k_BHND: torch.Tensor, v_BHND: torch.Tensor) -> torch.Tensor:
    return torch.softmax(q_BHMD @ k_BHND.mT / q_BHMD.shape[-1] ** 0.5, -1) @ v_BHND


def of(build: Built, layout: str = "BHSD") -> Attention:
    """An implementation that builds just that."""

    class Plugin(Attention):
        name = "plugin"

        def build(self, problem: Problem, device: torch.device) -> Any:
            return build

    Plugin.layout = layout  # type: ignore[assignment]
    return Plugin()


def problem(**changes: Any) -> Problem:
    told = {"batch": 2, "heads_q": 3, "heads_kv": 3, "seqlen_q": 5, "seqlen_k": 5, **changes}
    return Problem(head_dim=4, head_dim_v=4, dtype="float32", **told)


def stepped(build: Built, layout: str = "BHSD", **changes: Any) -> Execution:
    p = problem(**changes)
    execution = Execution(of(build, layout), p, CPU)
    execution.load(make_inputs(p, 0))
    execution.step()
    return execution


# ---- layouts ---------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_and_back_is_the_same_tensor(layout: Any) -> None:
    x_BHSD = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    given = to_layout(x_BHSD, layout)
    assert tuple(given.shape) == layout_shape(SHAPE, layout)
    assert given.data_ptr() != x_BHSD.data_ptr()
    assert torch.equal(from_layout(given, layout, SHAPE[0]), x_BHSD)


def test_bhsd_keeps_its_strides_because_views_must_reach_the_implementation() -> None:
    x_BHSD = torch.randn(2, 5, 3, 4).transpose(1, 2)
    assert to_layout(x_BHSD, "BHSD").stride() == x_BHSD.stride()
    expanded = torch.randn(2, 1, 5, 4).expand(2, 3, 5, 4)
    assert to_layout(expanded, "BHSD").stride() == expanded.stride()


@pytest.mark.parametrize("layout", ["BHSD", "BSHD"])
def test_a_decode_cache_stays_a_view_of_a_longer_one(layout: Any) -> None:
    p = problem(seqlen_q=1, seqlen_k=7, decode=True)
    k_BHND = to_layout(make_inputs(p, 0).k_BGND, layout)
    assert k_BHND.untyped_storage().nbytes() > k_BHND.nbytes
    assert not k_BHND.isnan().any(), "NaN from behind the filled part"


@pytest.mark.parametrize("layout", ["BSHD", "packed"])
@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
def test_results_are_bhsd_whatever_the_layout(layout: str, direction: str) -> None:
    def in_layout(q: Any, k: Any, v: Any) -> Any:
        parts = (from_layout(x, layout, 2) for x in (q, k, v))  # type: ignore[arg-type]
        out = textbook(*parts).transpose(1, 2)
        return out.contiguous() if layout == "BSHD" else out.reshape(-1, 3, 4)

    told = stepped(in_layout, layout, direction=direction).results()
    expected = stepped(textbook, direction=direction).results()
    assert told.keys() == expected.keys()
    for name, tensor in told.items():
        torch.testing.assert_close(tensor, expected[name])


# ---- stepping --------------------------------------------------------------------------


def test_the_backward_alone_runs_the_forward_only_while_loading() -> None:
    calls = []

    def counted(q: Any, k: Any, v: Any) -> Any:
        calls.append(1)
        return textbook(q, k, v)

    execution = stepped(counted, direction="backward")
    assert len(calls) == 1
    execution.step()
    assert len(calls) == 1
    assert set(execution.results()) == {"out", "dq", "dk", "dv"}


def test_own_backward_gets_what_its_forward_saved_and_no_graph() -> None:
    def forward(q: Any, k: Any, v: Any) -> Any:
        assert not q.requires_grad
        return textbook(q, k, v), (q, k, v)

    def backward(saved: Any, grad_out: torch.Tensor) -> Any:
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in saved]
            return torch.autograd.grad(textbook(*leaves), leaves, grad_out)

    told = stepped(ForwardBackward(forward, backward), direction="both").results()  # type: ignore[arg-type]
    expected = stepped(textbook, direction="both").results()
    for name, tensor in expected.items():
        torch.testing.assert_close(told[name], tensor)


def test_a_second_load_brings_new_contents_to_the_same_addresses() -> None:
    seen = []

    def noting(q: Any, k: Any, v: Any) -> Any:
        seen.append((q.data_ptr(), id(q), q._version, float(q.sum())))
        return textbook(q, k, v)

    execution = stepped(noting)
    execution.load(make_inputs(execution.problem, 1))
    execution.step()
    (*where, first), (*again, second) = seen
    assert where == again
    assert first != second


def test_what_is_forgotten_does_not_live_on() -> None:
    execution = stepped(textbook, direction="both")
    execution.forget()
    with pytest.raises(WrongOutput, match="out is None"):
        execution.results()


def test_learned_state_is_drawn_from_the_seed_of_the_point() -> None:
    class Random(Attention):
        name = "random"

        def build(self, problem: Problem, device: torch.device) -> Any:
            weight = torch.randn(())
            return lambda q, k, v: v * weight

    def out(seed: int) -> torch.Tensor:
        p = problem()
        execution = Execution(Random(), p, CPU, seed)
        execution.load(make_inputs(p, 0))
        execution.step()
        return execution.results()["out"]

    assert torch.equal(out(3), out(3))
    assert not torch.equal(out(3), out(4))


# ---- what cannot be the answer ---------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda q, k, v: None, "out is None"),
        (lambda q, k, v: textbook(q, k, v).numpy(), "out is a ndarray, not a torch.Tensor"),
        (lambda q, k, v: textbook(q, k, v)[:, :, 1:], "out has shape (2, 3, 4, 4)"),
        (lambda q, k, v: textbook(q, k, v).double(), "out has dtype torch.float64"),
        (lambda q, k, v: textbook(q, k, v).to("meta"), "out is on meta, expected cpu"),
        (lambda q, k, v: torch.nn.Parameter(textbook(q, k, v)), "out is a Parameter"),
    ],
)
def test_an_output_of_the_wrong_kind_is_told(build: Built, told: str) -> None:
    with pytest.raises(WrongOutput) as fault:
        stepped(build).results()
    assert told in str(fault.value)


def test_a_backward_that_gives_no_three_gradients_is_told() -> None:
    own = ForwardBackward(lambda q, k, v: (textbook(q, k, v), None), lambda saved, grad: grad)  # type: ignore[arg-type,return-value]
    with pytest.raises(WrongOutput, match=r"must return \(dq, dk, dv\)"):
        stepped(own, direction="both").results()  # type: ignore[arg-type]


def test_a_gradient_that_does_not_reach_an_input_is_told() -> None:
    with pytest.raises(WrongOutput, match="dk is None"):
        stepped(lambda q, k, v: q + v, direction="both").results()


def test_an_output_without_a_graph_is_told_with_what_to_do() -> None:
    with pytest.raises(WrongOutput, match="return a ForwardBackward"):
        stepped(lambda q, k, v: textbook(q, k, v).detach(), direction="both")


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_an_overwritten_input_is_named_even_by_a_single_bit(name: str) -> None:
    def meddle(q: Any, k: Any, v: Any) -> Any:
        out = textbook(q, k, v)
        {"q": q, "k": k, "v": v}[name].view(torch.int32)[0, 0, 0, 0] ^= 1
        return out

    assert stepped(meddle).changed_input() == name
    assert stepped(textbook).changed_input() is None


def test_what_build_returns_must_be_callable() -> None:
    with pytest.raises(TypeError, match="build\\(\\) must return a callable or a ForwardBackward"):
        Execution(of(torch.ones(3)), problem(), CPU)  # type: ignore[arg-type]


def test_a_refusal_comes_before_anything_is_built() -> None:
    class Refuses(Attention):
        name = "refuses"

        def supports(self, problem: Problem, device: torch.device) -> None:
            raise Unsupported("not today")

        def build(self, problem: Problem, device: torch.device) -> Any:
            raise AssertionError("built although refused")

    with pytest.raises(Unsupported, match="not today"):
        Execution(Refuses(), problem(), CPU)


def test_dropout_is_revealed_by_those_who_can() -> None:
    class Reveals:
        def __call__(self, q: Any, k: Any, v: Any) -> Any:
            return textbook(q, k, v)

        def keep_mask(self) -> torch.Tensor:
            return torch.ones(2, 3, 5, 5, dtype=torch.bool)

    assert stepped(textbook).keep_mask() is None
    revealed = stepped(Reveals()).keep_mask()
    assert revealed is not None
    assert revealed.shape == (2, 3, 5, 5)


# ---- choices ---------------------------------------------------------------------------


def choosing(choices: Any) -> Built:
    def build(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return textbook(q, k, v)

    build.choices = choices  # type: ignore[attr-defined]
    return build


def test_choices_of_build_are_read_and_are_none_if_there_are_none() -> None:
    told = {"forward": "128x64", "shares": 3, "split": True, "share": 0.5}
    assert stepped(choosing(told)).choices == told
    assert stepped(textbook).choices == {}


@pytest.mark.parametrize(
    "choices",
    ["128x64", ["128x64"], {1: "a"}, {"a": None}, {"a": {}}, {"a": float("nan")},
     {"a": float("inf")}, {"a": torch.ones(1)}],
    ids=str,
)  # fmt: skip
def test_choices_that_no_record_can_hold_are_refused(choices: Any) -> None:
    with pytest.raises(TypeError, match="choices"):
        stepped(choosing(choices))
