"""The operators of ``triton``: torch.compile, FLOP counting, keys, and launches on a device."""

from __future__ import annotations

import gc
import importlib
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from shelf import CPU, SHELF, Operations, implementation, module_of
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.optests.generate_tests import OpCheckError
from torch.utils.flop_counter import FlopCounterMode

from attnbench import Inputs, Problem, make_inputs, registry
from attnbench.verify import explain, judge, make_yardstick, passed

SMALL: dict[str, Any] = {
    "heads": 4, "heads_kv": 2, "seqlen_q": 40, "seqlen_k": 40, "head_dim": 16,
}  # fmt: skip
CAUSAL = Problem.of(**SMALL, mask="causal", direction="both")
DROPOUT = CAUSAL.replace(dropout_p=0.3)
DECODE = Problem.of(**{**SMALL, "seqlen_q": 3, "seqlen_k": 90}, decode=True, mask="causal")
EVERYTHING = Problem.of(
    batch=2, heads=4, heads_kv=2, seqlen_q=33, seqlen_k=50, head_dim=16, head_dim_v=24,
    mask="window:window=20", softcap=3.0, alibi=True, scale=0.4, direction="both",
    dtype="bfloat16",
)  # fmt: skip


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


# What the second leaves out, the first does too; it is there to tell them apart.
BACKENDS = ["aot_eager", slow("eager")]


def part(name: str) -> ModuleType:
    return importlib.import_module(f"{module_of('triton').__name__}.{name}")


def built(problem: Problem) -> Any:
    return implementation("triton", interpret=True).build(problem, CPU)


def answer(problem: Problem, attend: Any, inputs: Inputs) -> list[torch.Tensor]:
    """The output, and the gradients if the problem has them."""
    if problem.direction == "forward":
        return [attend(*inputs.qkv())]
    qkv = [x.detach().requires_grad_() for x in inputs.qkv()]
    out = attend(*qkv)
    return [out.detach(), *torch.autograd.grad(out, qkv, inputs.grad_out_BHME)]


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    yield
    torch._dynamo.reset()


# ---- torch.compile -----------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("problem", [CAUSAL, slow(EVERYTHING), DECODE], ids=lambda p: p.label)
def test_compiled_as_one_graph_it_gives_the_same_to_the_bit(problem: Problem, backend: str) -> None:
    attend, inputs = built(problem), make_inputs(problem, seed=1)
    if problem is CAUSAL:  # in BSHD
        inputs = Inputs(*(x.transpose(1, 2).clone().transpose(1, 2) for x in vars(inputs).values()))
    compiled = torch.compile(attend, fullgraph=True, backend=backend)
    expected = answer(problem, attend, inputs)
    for mine, theirs in zip(answer(problem, compiled, inputs), expected, strict=True):
        assert torch.equal(mine, theirs)
        assert mine.stride() == theirs.stride()


@pytest.mark.parametrize("backend", BACKENDS)
def test_in_a_model_it_is_one_graph(backend: str) -> None:
    """Projections before and after, and the reshape that BSHD strides make free."""
    attend = built(CAUSAL)
    torch.manual_seed(0)
    qkv_of, out_of = torch.nn.Linear(64, (4 + 2 + 2) * 16), torch.nn.Linear(64, 64)

    def layer(x_BMC: torch.Tensor) -> torch.Tensor:
        heads = qkv_of(x_BMC).view(1, 40, 8, 16).transpose(1, 2)
        out = attend(*heads.split([4, 2, 2], dim=1))
        return out_of(out.transpose(1, 2).view(1, 40, 64))  # type: ignore[no-any-return]

    x = torch.randn(1, 40, 64)
    weights = list(qkv_of.parameters())
    expected = torch.autograd.grad(layer(x).sum(), weights)
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    torch.testing.assert_close(torch.autograd.grad(compiled(x).sum(), weights), expected)


@pytest.mark.slow
def test_inductor_takes_it() -> None:
    attend, inputs = built(CAUSAL), make_inputs(CAUSAL, seed=1)
    compiled = torch.compile(lambda q, k, v: attend(q, k * 1.0, v), fullgraph=True)
    for mine, theirs in zip(
        answer(CAUSAL, compiled, inputs), answer(CAUSAL, attend, inputs), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_dropout_is_drawn_anew_revealed_and_right(backend: str) -> None:
    attend, inputs = built(DROPOUT), make_inputs(DROPOUT, seed=1)
    compiled = torch.compile(attend, fullgraph=True, backend=backend)
    masks = []
    for _ in range(2):
        found = answer(DROPOUT, compiled, inputs)
        masks.append(attend.keep_mask())
        accuracy = judge(
            make_yardstick(DROPOUT, inputs, masks[-1]),
            dict(zip(("out", "dq", "dk", "dv"), found, strict=True)),
        )
        assert passed(accuracy), explain(accuracy)
    assert not torch.equal(*masks)


def test_two_attentions_of_one_problem_reveal_their_own_masks() -> None:
    first, second = built(DROPOUT), built(DROPOUT)
    qkv = make_inputs(DROPOUT, seed=1).qkv()
    with Operations():  # so that both go through the operator, and by one key
        first(*qkv)
        before = first.keep_mask()
        second(*qkv)
    assert torch.equal(first.keep_mask(), before)
    assert not torch.equal(second.keep_mask(), before)


# ---- the registrations -------------------------------------------------------------------

ALL_CHECKS = (
    "test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic",
)  # fmt: skip


def given(problem: Problem) -> tuple[Any, ...]:
    qkv = (x.requires_grad_() for x in make_inputs(problem, seed=1).qkv())
    return (*qkv, None, built(problem).key)


@pytest.mark.parametrize("problem", [CAUSAL, slow(EVERYTHING)], ids=lambda p: p.label)
def test_the_forward_is_registered_in_full(problem: Problem) -> None:
    torch.library.opcheck(part("operator").forward, given(problem), test_utils=ALL_CHECKS)


def test_the_forward_with_dropout_is_registered_in_full() -> None:
    """But for the comparison of two calls, which draw two masks."""
    torch.library.opcheck(part("operator").forward, given(DROPOUT), test_utils=ALL_CHECKS[:3])


@pytest.mark.parametrize("problem", [slow(CAUSAL), DROPOUT], ids=lambda p: p.label)
def test_the_backward_is_registered_in_full(problem: Problem) -> None:
    operator, (*qkv, _, key) = part("operator"), given(problem)
    with torch.no_grad():
        results = operator.forward(*qkv, None, key)
        given_back = (*qkv, None, *results, torch.randn_like(results[0]), key, False)
        checks = ["test_schema", "test_faketensor"]
        if not problem.dropout_p:  # once is enough of the slowest
            checks.append("test_aot_dispatch_dynamic")
        torch.library.opcheck(operator.backward, given_back, test_utils=checks)


def wrong_shape(problem: Problem, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(q[..., :1]), q.new_empty(q.shape[:3])


def wrong_dtype(problem: Problem, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float64)


def wrong_strides(problem: Problem, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return q.new_empty(q.mT.shape).mT, q.new_empty(q.shape[:3])


@pytest.mark.parametrize("broken", [wrong_shape, wrong_dtype, wrong_strides])
def test_a_broken_fake_of_the_forward_is_found(
    broken: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part("operator"), "new_results", broken)
    with pytest.raises(OpCheckError):
        torch.library.opcheck(part("operator").forward, given(CAUSAL), test_utils="test_faketensor")


@pytest.mark.parametrize(
    "broken",
    [
        lambda x, dim: x.new_empty((*x.shape[:3], dim + 1)),
        lambda x, dim: x.new_empty(x.shape, dtype=torch.float64),
        lambda x, dim: x.new_empty(x.mT.shape).mT,
    ],
    ids=["shape", "dtype", "strides"],
)
def test_a_broken_fake_of_the_backward_is_found(
    broken: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part("operator"), "dense_like", broken)
    operator, (*qkv, _, key) = part("operator"), given(CAUSAL)
    with torch.no_grad():
        results = operator.forward(*qkv, None, key)
        with pytest.raises(OpCheckError):
            torch.library.opcheck(
                operator.backward,
                (*qkv, None, *results, torch.randn_like(results[0]), key, False),
                test_utils="test_faketensor",
            )  # fmt: skip


def test_a_second_derivative_is_refused() -> None:
    qkv = [x.requires_grad_() for x in make_inputs(CAUSAL, seed=1).qkv()]
    with Operations():
        (dq,) = torch.autograd.grad(built(CAUSAL)(*qkv).sum(), qkv[:1], create_graph=True)
        with pytest.raises(RuntimeError, match="no autograd formula"):
            torch.autograd.grad(dq.sum(), qkv)


def test_eager_mode_does_without_operators_and_a_watching_mode_sees_them() -> None:
    attend, qkv = built(CAUSAL), make_inputs(CAUSAL, seed=1).qkv()
    with Operations() as ran:
        attend(*qkv)
    assert ran.names == {"forward"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(part("operator"), "forward", None)  # nobody calls it
        attend(*qkv)


# ---- FLOPs -------------------------------------------------------------------------------

COUNTED = [
    Problem.of(**{**SMALL, **changes})
    for changes in (
        {},
        {"mask": "causal"},
        {"mask": "window:window=9"},
        {"heads_kv": 1, "mask": "causal"},
        {"head_dim_v": 24, "seqlen_k": 64, "mask": "causal"},
        {"mask": "block_sparse:block=16"},
        {"seqlen_q": 3, "mask": "causal", "decode": True},
    )
]


@pytest.mark.parametrize("problem", COUNTED, ids=lambda p: p.label)
def test_flops_are_those_of_the_problem(problem: Problem) -> None:
    attend, inputs = built(problem), make_inputs(problem, seed=1)
    qkv = [x.detach().requires_grad_() for x in inputs.qkv()]
    with FlopCounterMode(display=False) as forward:
        out = attend(*qkv)
    assert forward.get_total_flops() == problem.flops()
    if problem.decode:
        return
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad(out, qkv, inputs.grad_out_BHME)
    assert backward.get_total_flops() == problem.replace(direction="backward").flops()


def test_flops_of_a_backward_are_counted_after_a_forward_that_was_not() -> None:
    attend, inputs = built(CAUSAL), make_inputs(CAUSAL, seed=1)
    qkv = [x.requires_grad_() for x in inputs.qkv()]
    out = attend(*qkv)
    with FlopCounterMode(display=False) as counter:
        gradients = torch.autograd.grad(out, qkv, inputs.grad_out_BHME)
    assert counter.get_total_flops() == CAUSAL.replace(direction="backward").flops()
    for mine, theirs in zip(gradients, answer(CAUSAL, attend, inputs)[1:], strict=True):
        assert torch.equal(mine, theirs)


def test_flops_are_counted_of_tensors_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernel runs: the fakes are enough."""
    attend = built(CAUSAL)
    monkeypatch.setattr(type(attend), "_launch", None)
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        qkv = [x.requires_grad_() for x in make_inputs(CAUSAL, seed=1).qkv()]
        torch.autograd.grad(attend(*qkv).sum(), qkv)
    assert counter.get_total_flops() == CAUSAL.flops()


# ---- keys --------------------------------------------------------------------------------


def test_a_key_builds_again_what_is_gone() -> None:
    """As in a process that took a compiled graph from torch's cache."""
    attend, qkv = built(EVERYTHING), make_inputs(EVERYTHING, seed=1).qkv()
    expected, key, gone = attend(*qkv), attend.key, weakref.ref(attend)
    del attend
    gc.collect()
    assert gone() is None  # tables on a GPU do not outlive who asked for them
    out, _, _ = part("operator").forward(*qkv, None, key)
    assert torch.equal(out, expected)
    again = part("operator")._attention(key, CPU)
    assert (again.problem, again.key, again.interpret) == (EVERYTHING, key, True)


def test_a_key_tells_options_apart() -> None:
    plain = part("operator").TorchAttention(CAUSAL, CPU, precision="ieee", interpret=True)
    other = part("operator").TorchAttention(CAUSAL, CPU, precision="tf32", interpret=True)
    assert plain.key != other.key
    assert part("operator")._attention(plain.key, CPU) is plain
    assert part("operator")._attention(other.key, CPU) is other


def test_a_copy_of_the_plugin_has_operators_of_its_own(tmp_path: Path) -> None:
    """Whoever starts from a copy must not change what the original computes."""
    copy = tmp_path / "triton_mine"
    shutil.copytree(SHELF / "triton_attention", copy, ignore=shutil.ignore_patterns("__pycache__"))
    source = (copy / "__init__.py").read_text()
    (copy / "__init__.py").write_text(source.replace('@register("triton")', '@register("mine")'))
    module = registry._import_file(copy)
    theirs = importlib.import_module(f"{module.__name__}.operator")
    assert theirs.forward._opoverload is not part("operator").forward._opoverload
    qkv = make_inputs(CAUSAL, seed=1).qkv()
    with FlopCounterMode(display=False) as counter:
        built(CAUSAL)(*qkv)
    assert counter.get_total_flops() == CAUSAL.replace(direction="forward").flops()


# ---- manners -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seqlen_q": 41}, r"q is torch.float32 \(1, 4, 41, 16\).*\(1, 4, 40, 16\)"),
        ({"seqlen_k": 39}, r"k is torch.float32 \(1, 2, 39, 16\)"),
        ({"head_dim_v": 8}, r"v is torch.float32 \(1, 2, 40, 8\)"),
        ({"batch": 2}, r"q is torch.float32 \(2, 4, 40, 16\)"),
        ({"dtype": "float16"}, r"q is torch.float16"),
    ],
)
def test_tensors_of_another_problem_are_refused(changes: dict[str, Any], reason: str) -> None:
    """Kernels take sizes from the problem, and would read past the end."""
    attend, qkv = built(CAUSAL), make_inputs(CAUSAL.replace(**changes), seed=1).qkv()
    with pytest.raises(ValueError, match=reason):
        attend(*qkv)
    with pytest.raises(Exception, match=reason):
        torch.compile(attend, fullgraph=True, backend="eager")(*qkv)


def test_tensors_elsewhere_are_refused() -> None:
    attend, qkv = built(CAUSAL), make_inputs(CAUSAL, seed=1).qkv()
    with pytest.raises(ValueError, match=r"on meta; this attention was built for .* on cpu"):
        attend(*(x.to("meta") for x in qkv))


class Machine:
    """Two GPUs of which one is current, in the place of torch.cuda, and a kernel on them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.current = 0
        self.launched: list[int] = []
        for name in ("_exchange_device", "_maybe_exchange_device"):
            patch.setattr(torch.cuda, name, self.exchange)

    def exchange(self, device: int) -> int:
        before = self.current
        self.current = device if device >= 0 else before
        return before

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda **arguments: self.launched.append(self.current)


def test_a_launch_is_on_the_device_of_the_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    h200 = part("schedules").Machine("sm_90", 132, 50 << 20, 228 * 1024, 2048)
    monkeypatch.setattr(part("schedules").Machine, "of", lambda device: h200)
    on_second = part("operator").TorchAttention(
        CAUSAL, torch.device("cuda", 1), precision="ieee", interpret=False
    )
    on_second._launch(machine, 1, part("config").Config(16, 16, 1, 1))
    assert machine.launched == [1]
    assert machine.current == 0


def test_a_device_without_an_index_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert part("operator")._indexed(torch.device("cuda")) == torch.device("cuda", 1)
