"""Every implementation in a layer with padding: against the oracle, or a loop in float64.

Letters: B = batch, S = tokens of one sequence, H = heads_q, G = heads_kv, D = head_dim,
C = d_model, N = keys of the longest sequence, r = rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from shelf import CPU, entries, implementation

from attnbench import Attention, ForwardBackward, Problem, Unsupported
from attnbench.claim import claim_of
from attnbench.layer import apart
from attnbench.layer.execution import LayerExecution
from attnbench.layer.inputs import make_layer_inputs
from attnbench.layer.inside import asked, sequences
from attnbench.layer.verify import make_layer_yardstick
from attnbench.spec import parse_spec
from attnbench.verify import explain, judge, passed

Attend = Callable[[Problem, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""``(a sequence's problem, q_1HSD, k_1GSD, v_1GSD) → out_1HSD``."""

AT_ONCE = ["naive", "blockwise", "sdpa", "sdpa-math", "sdpa-flash", "gathered:block=4", "mha"]
OWN_MASK = [
    "window:window=4", "dilated:window=3,dilation=2", "strided:stride=3",
    "fixed:stride=4,summary=2", "block-sparse:block=4,blocks=2",
    "bigbird:block=2,window_blocks=1,random_blocks=1",
]  # fmt: skip
LOOSE = [
    "top-k:k=4", "linformer:rank=5", "nystrom:landmarks=3", "performer:features=8,chunk=4",
    "rfa:features=8,chunk=4", "linear:chunk=4", "cosformer:chunk=4",
]  # fmt: skip
SLOW = ["ring:world=2", "triton:interpret=true", "flex"]
FULL_ONLY = {"linformer", "nystrom"}
AT_ONCE_TOO = {"top-k", "triton", "flex"}  # beside those that are exact and in plain PyTorch


def of(**changes: Any) -> Problem:
    """Sequences of 13, 10, 7 and 4 tokens."""
    told = {"batch": 4, "heads": 4, "seqlen": 13, "head_dim": 8, "direction": "both"}
    return Problem.of(**{**told, "level": "layer", "padding": 0.35, **changes})


def made(spec: str) -> Attention:
    name, options = parse_spec(spec)
    return implementation(name, **options)


def ran(spec: str, problem: Problem) -> tuple[LayerExecution, Any]:
    """Built, loaded and run once; and what was loaded."""
    execution = LayerExecution(made(spec), problem, CPU)
    inputs = make_layer_inputs(problem, 1)
    execution.load(inputs)
    execution.step()
    return execution, inputs


def wrong(spec: str, problem: Problem) -> str:
    """What misses the claim of an implementation; nothing if all is right."""
    execution, inputs = ran(spec, problem)
    claim = claim_of(execution.implementation, problem, is_apart=execution.is_apart)
    assert claim.is_exact
    assert claim.is_problems_own == (spec not in OWN_MASK)
    assert execution.is_apart == (spec in OWN_MASK or spec == "ring:world=2")
    assert ("padding" in execution.choices) == execution.is_apart
    accuracy = judge(make_layer_yardstick(claim.problem, inputs), execution.results())
    return "" if passed(accuracy) else explain(accuracy)


def name_of(spec: str) -> str:
    return spec.partition(":")[0]


def masks_of(specs: list[str]) -> list[tuple[str, str]]:
    return [
        (spec, mask)
        for spec in specs
        for mask in ("full", "causal")
        if mask == "full" or name_of(spec) not in FULL_ONLY
    ]


def test_everything_that_runs_here_is_in_these_tests() -> None:
    """The others refuse a layer without padding as well."""
    tried = {name_of(spec) for spec in (*AT_ONCE, *OWN_MASK, *LOOSE, *SLOW)}
    plain = of(padding=0.0, direction="forward", dtype="bfloat16")
    for name in sorted(set(entries()) - tried):
        with pytest.raises(Unsupported):
            LayerExecution(implementation(name), plain, CPU)


# ---- against the oracle ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "mask"),
    [
        *masks_of([*AT_ONCE, *OWN_MASK]),
        *(pytest.param(*told, marks=pytest.mark.slow) for told in masks_of(SLOW)),
    ],
)
def test_an_exact_answer_is_right(spec: str, mask: str) -> None:
    """Its own mask's where it has one, of each sequence."""
    problem = of(mask=mask, direction="forward" if spec == "flex" else "both")
    if spec == "ring:world=2":
        problem = problem.replace(padding=0.2)  # it cuts a sequence into 4 chunks
    assert wrong(spec, problem) == ""


@pytest.mark.parametrize("position", ["learned", "rope", "alibi"])
def test_a_window_knows_where_tokens_stand_in_their_own_sequence(position: str) -> None:
    assert wrong("window:window=4", of(position=position, mask="causal", heads_kv=2)) == ""


# ---- against a loop in float64 -----------------------------------------------------------


def looped(problem: Problem, inputs: Any, attend: Attend) -> dict[str, torch.Tensor]:
    """Output and gradients of a layer that goes through its sequences, in float64."""
    given = {name: x.double() for name, x in inputs.named().items()}
    grad_BSC = given.pop("grad_out")
    for x in given.values():
        x.requires_grad_()
    rows = []
    for entry, one in enumerate(sequences(problem)):
        x_SC = given["x"][entry, : one.seqlen_q]
        heads = [
            torch.unflatten(x_SC @ given[w].mT, -1, (count, -1)).transpose(0, 1)[None]
            for w, count in (("wq", one.heads_q), ("wk", one.heads_kv), ("wv", one.heads_kv))
        ]
        out_SC = attend(one, *heads)[0].transpose(0, 1).flatten(1)
        rows.append(F.pad(out_SC @ given["wo"].mT, (0, 0, 0, problem.seqlen_q - len(x_SC))))
    y_BSC = torch.stack(rows)
    gradients = torch.autograd.grad(y_BSC, list(given.values()), grad_BSC)
    return {"out": y_BSC.detach()} | {
        f"d{name}": x for name, x in zip(given, gradients, strict=True)
    }


def alone(spec: str) -> Attend:
    """The method on one sequence, which its own tests hold to its definition."""

    def attend(one: Problem, *qkv: torch.Tensor) -> torch.Tensor:
        method = made(spec)
        problem = one.replace(dtype="float64", direction="both")
        built = method.build(problem, CPU)
        if isinstance(built, ForwardBackward):

            class Own(torch.autograd.Function):
                @staticmethod
                def forward(ctx: Any, *tensors: torch.Tensor) -> Any:
                    out, ctx.saved = built.forward(*tensors)
                    return out

                @staticmethod
                def backward(ctx: Any, *grads: torch.Tensor) -> Any:
                    return built.backward(ctx.saved, grads[0])

            return Own.apply(*qkv)  # type: ignore[no-any-return]
        return built(*qkv)  # type: ignore[no-any-return]

    return attend


def with_zeros(built: Any) -> Attend:
    """Linformer's definition: zeros after the sequence, up to the longest, then E and F."""
    e_rN, f_rN = (x.detach().double().mT for x in (built.mix_k_Nr, built.mix_v_Nr))

    def attend(one: Problem, *qkv: torch.Tensor) -> torch.Tensor:
        q_1HSD, k_1GSD, v_1GSD = qkv
        zeros = (0, 0, 0, e_rN.shape[1] - one.seqlen_k)
        k_1GND, v_1GND = (F.pad(x, zeros) for x in (k_1GSD, v_1GSD))
        k_1GrD, v_1GrD = e_rN @ k_1GND, f_rN @ v_1GND
        return (q_1HSD @ k_1GrD.mT * one.softmax_scale).softmax(-1) @ v_1GrD

    return attend


def off(spec: str, problem: Problem) -> dict[str, float]:
    """How far each tensor is from the loop's, relative L2."""
    execution, inputs = ran(spec, problem)
    assert execution.is_apart == (name_of(spec) not in AT_ONCE_TOO)
    attend = alone(spec)
    if name_of(spec) == "linformer":
        attend = with_zeros(execution._own._built[0])
    truth, found = looped(problem, inputs, attend), execution.results()
    assert set(truth) == set(found)
    return {name: float((found[name].double() - x).norm() / x.norm()) for name, x in truth.items()}


@pytest.mark.parametrize(("spec", "mask"), masks_of(LOOSE))
def test_an_approximate_answer_is_that_of_the_loop(spec: str, mask: str) -> None:
    errors = off(spec, of(mask=mask))
    assert max(errors.values()) < 3e-5, errors


def test_linformer_means_over_the_padded_length() -> None:
    """A short sequence fills the first segments alone: the others are zeros, but keys."""
    assert max(off("linformer:rank=3,projections=mean", of()).values()) < 3e-5


# ---- broken on purpose -------------------------------------------------------------------


def test_a_linformer_that_forgets_the_zeros_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """An E and F of each length's own, as if there had never been any padding."""
    method = type(made("linformer"))
    monkeypatch.setattr(method, "build_sequences", Attention.build_sequences)
    execution, inputs = ran("linformer:rank=3,projections=mean", of())
    truth = looped(of(), inputs, with_zeros(execution._own._built[0]))
    found = execution.results()["out"].double()
    assert torch.allclose(found[0], truth["out"][0], atol=1e-5)  # the longest has no padding
    for entry in (1, 2, 3):
        assert float((found[entry] - truth["out"][entry]).norm()) > 0.1


class Swapped(apart.OneByOne):
    """The first two sequences, as long as each other, in each other's place."""

    def __call__(self, *given: torch.Tensor) -> torch.Tensor:
        first, second, *rest = super().__call__(*given).split([13, 13, 12, 12], dim=1)
        return torch.cat([second, first, *rest], dim=1)


class Together(apart.OneByOne):
    """The first two sequences in one call, as one."""

    def __init__(self, problems: Any, built: Any, implementation: Attention, why: str) -> None:
        whole = problems[0].replace(seqlen_q=26, seqlen_k=26)
        joined = [whole, *problems[2:]]
        super().__init__(
            joined, [implementation.build(p, CPU) for p in joined], implementation, why
        )


@pytest.mark.parametrize("spec", ["linear:chunk=4", "nystrom:landmarks=3", "window:window=4"])
@pytest.mark.parametrize("broken", [None, Swapped, Together])
def test_sequences_that_change_places_or_meet_are_caught(
    spec: str, broken: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if broken is not None:
        monkeypatch.setattr(apart, "OneByOne", broken)
    problem = of(padding=0.05)
    assert problem.lengths == (13, 13, 12, 12)
    if spec in OWN_MASK:
        assert bool(wrong(spec, problem)) == (broken is not None)
    else:
        assert (max(off(spec, problem).values()) > 0.05) == (broken is not None)


# ---- what it costs -----------------------------------------------------------------------


@pytest.mark.parametrize("spec", [*OWN_MASK, *(s for s in LOOSE if not s.startswith("top-k"))])
def test_flops_and_bytes_are_those_of_each_sequence(spec: str) -> None:
    """Whoever counts the packed tokens as one sequence counts pairs that nobody looks at."""
    method, problem = made(spec), of()
    cores = asked(problem, is_apart=True)
    assert [p.seqlen_q for p in cores] == list(problem.lengths)
    assert sum(method.flops(p) for p in cores) == sum(
        method.flops(Problem.of(heads=4, seqlen=n, head_dim=8, direction="both"))
        for n in problem.lengths
    )
    if spec in OWN_MASK:
        claim = claim_of(method, problem, is_apart=True)
        assert sum(method.flops(p) for p in cores) == claim.problem.core.flops()
        assert sum(method.ideal_bytes(p) for p in cores) == claim.problem.core.ideal_bytes()
