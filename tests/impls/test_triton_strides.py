"""``triton`` on views: nothing is copied, and results have the memory order of their inputs."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
from shelf import CPU, Operations, implementation, module_of

from attnbench import Inputs, Problem, make_inputs
from attnbench.verify import explain, judge, make_yardstick, passed

PROBLEM = Problem.of(
    batch=2, heads=4, heads_kv=2, seqlen_q=40, seqlen_k=50, head_dim=16, head_dim_v=24,
    mask="causal", direction="both",
)  # fmt: skip
DECODE = PROBLEM.replace(seqlen_q=3, direction="forward")
NAMES = ("q", "k", "v")


def part(name: str) -> ModuleType:
    return importlib.import_module(f"{module_of('triton').__name__}.{name}")


def built(problem: Problem) -> Any:
    return implementation("triton", interpret=True).build(problem, CPU)


# ---- views: each takes (B, H, S, D) and gives the same values in another memory order ----


def bhsd(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous()


def bshd(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def sbhd(x: torch.Tensor) -> torch.Tensor:
    """Megatron's: (S, B, H, D)."""
    return x.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)


def packed(x: torch.Tensor) -> torch.Tensor:
    """The middle of what one linear layer gives: (B, S, 3, H, D)."""
    x_BSHD = x.transpose(1, 2)
    return torch.stack([x_BSHD + 1, x_BSHD, x_BSHD - 1], dim=2)[:, :, 1].transpose(1, 2)


def in_a_cache(x: torch.Tensor) -> torch.Tensor:
    batch, heads, seqlen, dim = x.shape
    cache = torch.full((batch, heads, seqlen + 30, dim), float("nan"), dtype=x.dtype)
    cache[:, :, :seqlen] = x
    return cache[:, :, :seqlen]


VIEWS = (bshd, packed, *(pytest.param(x, marks=pytest.mark.slow) for x in (bhsd, sbhd, in_a_cache)))
AXES = {bhsd: (0, 1, 2, 3), bshd: (0, 2, 1, 3), sbhd: (2, 0, 1, 3), packed: (0, 2, 1, 3),
        in_a_cache: (0, 1, 2, 3)}  # fmt: skip
View = Callable[[torch.Tensor], torch.Tensor]


def viewed(view: View, problem: Problem) -> Inputs:
    inputs = make_inputs(problem, seed=1)
    return Inputs(*(view(x) for x in vars(inputs).values()))


def answer(attend: Any, inputs: Inputs) -> dict[str, torch.Tensor]:
    qkv = [x.detach().requires_grad_(attend.problem.direction != "forward") for x in inputs.qkv()]
    out = attend(*qkv)
    if attend.problem.direction == "forward":
        return {"out": out}
    gradients = torch.autograd.grad(out, qkv, inputs.grad_out_BHME)
    return {"out": out.detach(), **dict(zip(("dq", "dk", "dv"), gradients, strict=True))}


def expect_right(problem: Problem, inputs: Inputs, found: dict[str, torch.Tensor]) -> None:
    accuracy = judge(make_yardstick(problem, inputs), found)
    assert passed(accuracy), explain(accuracy)


# ---- results -----------------------------------------------------------------------------


def test_inputs_of_different_orders_go_together() -> None:
    """The output is as q is, each gradient as its own input."""
    inputs = make_inputs(PROBLEM, seed=1)
    q, k, v, grad = vars(inputs).values()
    inputs = Inputs(bshd(q), in_a_cache(k), sbhd(v), grad)
    found = answer(built(PROBLEM), inputs)
    expect_right(PROBLEM, inputs, found)
    for name, view in (("out", bshd), ("dq", bshd), ("dk", bhsd), ("dv", sbhd)):
        assert found[name].permute(AXES[view]).is_contiguous()


def test_the_reshape_that_follows_in_a_model_is_free() -> None:
    out = answer(built(DECODE), viewed(packed, DECODE))["out"]
    out.transpose(1, 2).view(2, 3, 4 * 24)  # a view raises where memory would have to move


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_gradients_of_an_expanded_input_have_memory_of_their_own(axis: int) -> None:
    inputs = make_inputs(PROBLEM, seed=1)
    k = inputs.k_BGND.narrow(axis, 0, 1).expand_as(inputs.k_BGND)
    inputs = Inputs(inputs.q_BHMD, k, bshd(inputs.v_BGNE), inputs.grad_out_BHME[:, :1].expand(
        inputs.grad_out_BHME.shape))  # fmt: skip
    found = answer(built(PROBLEM), inputs)
    expect_right(PROBLEM, inputs, found)
    dk = found["dk"]
    assert len(set(places(dk))) == k.numel() == dk.untyped_storage().nbytes() // 4


@pytest.mark.parametrize(
    ("shape", "stride"),
    [
        ((2, 3, 4, 5), (60, 20, 5, 1)),
        ((2, 3, 4, 5), (60, 5, 15, 1)),
        ((2, 3, 4, 5), (0, 20, 5, 1)),
        ((2, 3, 4, 5), (60, 0, 5, 1)),
        ((2, 3, 4, 5), (0, 0, 0, 0)),
        ((2, 3, 4, 5), (200, 20, 1, 4)),  # keys stored for a product, D before N
        ((2, 1, 4, 5), (999, 7, 5, 1)),
        ((1, 3, 1, 5), (1, 5, 1, 1)),
    ],
)
def test_new_memory_is_dense(shape: tuple[int, ...], stride: tuple[int, ...]) -> None:
    x = torch.empty_strided(shape, stride)
    made = part("outputs").dense_like(x, 7)
    assert made.shape == (*shape[:3], 7)
    assert made.untyped_storage().nbytes() == made.numel() * 4
    assert len(set(places(made))) == made.numel()
    if stride[3] == 1 and 0 not in stride:
        assert made.stride(3) == 1


def places(x: torch.Tensor) -> Iterator[int]:
    steps = [torch.arange(n) * s for n, s in zip(x.shape, x.stride(), strict=True)]
    yield from sum(torch.meshgrid(*steps, indexing="ij")).flatten().tolist()  # type: ignore[union-attr]


# ---- copies ------------------------------------------------------------------------------


@contextmanager
def launches(patch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """The arguments of every launch."""
    seen: list[dict[str, Any]] = []
    fused = part("launch").FusedAttention
    launch = fused._launch

    def recorded(self: Any, *rest: Any, **arguments: Any) -> None:
        seen.append(arguments)
        launch(self, *rest, **arguments)

    patch.setattr(fused, "_launch", recorded)
    yield seen


def expect_no_copies(
    inputs: Inputs, found: dict[str, torch.Tensor], seen: list[dict[str, Any]]
) -> None:
    tensors = dict(zip((*NAMES, "grad"), vars(inputs).values(), strict=True)) | found
    met = set()
    for arguments in seen:
        for name, x in tensors.items():
            if (passed_on := arguments.get(f"{name}_ptr")) is not None:
                met.add(name)
                assert passed_on.data_ptr() == x.data_ptr(), name
                assert passed_on.stride() == x.stride(), name
                row = "n" if name.lstrip("d") in ("k", "v") else "m"
                told = tuple(arguments[f"{name}_{axis}"] for axis in ("b", "h", row, "d"))
                assert told == x.stride(), name
    needed = {*NAMES, "out"} | ({"grad", "dq", "dk", "dv"} if "dq" in found else set())
    assert met == needed


@pytest.mark.parametrize("problem", [PROBLEM, DECODE], ids=["both", "decode"])
@pytest.mark.parametrize("view", VIEWS)
def test_views_are_read_where_they_are_and_results_have_their_order(
    view: View, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    attend, inputs = built(problem), viewed(view, problem)
    with launches(monkeypatch) as seen:
        found = answer(attend, inputs)
    expect_no_copies(inputs, found, seen)
    for result in found.values():
        assert result.permute(AXES[view]).is_contiguous()
    expect_right(problem, inputs, found)


def test_a_copy_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    fused = part("launch").FusedAttention
    forward = fused.forward
    monkeypatch.setattr(
        fused, "forward", lambda self, *given: forward(self, *(x.contiguous() for x in given[:3]))
    )
    inputs = viewed(bshd, DECODE)
    with launches(monkeypatch) as seen:
        found = answer(built(DECODE), inputs)
    with pytest.raises(AssertionError, match="q"):
        expect_no_copies(inputs, found, seen)


def test_torch_does_nothing_beside_the_kernels_but_make_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attend, inputs = built(PROBLEM), viewed(packed, PROBLEM)
    monkeypatch.setattr(type(attend), "_launch", lambda *a, **k: None)
    with Operations() as ran:
        out, lse = attend.forward(*inputs.qkv())
        attend.backward(inputs.qkv(), out, lse, None, inputs.grad_out_BHME)
    assert ran.names == {"new_empty", "new_empty_strided", "empty_like"}


# ---- what breaks -------------------------------------------------------------------------

WRONG = (
    ("forward_kernel", {"out_h": 24 * 40, "out_m": 24}, PROBLEM),
    ("merge_kernel", {"out_h": 24 * 3, "out_m": 24}, DECODE),
    ("dkdv_kernel", {"dk_h": 16 * 50, "dk_n": 16}, PROBLEM),
    ("dkdv_kernel", {"dv_h": 24 * 50, "dv_n": 24}, PROBLEM),
    ("dq_kernel", {"dq_h": 16 * 40, "dq_m": 16}, PROBLEM),
)


@pytest.mark.parametrize(
    ("kernel", "arguments", "problem"), WRONG,
    ids=[f"{kernel}-{'-'.join(wrong)}" for kernel, wrong, _ in WRONG],
)  # fmt: skip
def test_results_written_in_another_order_are_found(
    kernel: str, arguments: dict[str, int], problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BHSD strides where the memory is BSHD: all inside the tensor."""
    fused = part("launch").FusedAttention
    launch, wrong = fused._launch, getattr(part("launch"), kernel)

    def broken(self: Any, launched: Any, *rest: Any, **right: Any) -> None:
        launch(self, launched, *rest, **(right | arguments if launched is wrong else right))

    monkeypatch.setattr(fused, "_launch", broken)
    inputs = viewed(bshd, problem)
    found = answer(built(problem), inputs)
    with pytest.raises(AssertionError, match="not normal"):
        expect_right(problem, inputs, found)
