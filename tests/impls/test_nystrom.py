from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peers
import pytest
import torch
from definition import assert_as_defined, counted, defined, errors, expanded, mutant, said
from shelf import CPU, Operations, assert_right, implementation, module_of, solve

from attnbench import Problem, Unsupported, make_inputs
from attnbench.battery import CASES, run_case

SMALL = Problem.of(
    batch=2, heads=4, heads_kv=2, seqlen=38, head_dim=8, head_dim_v=12, dtype="float64", scale=0.5
)


def definition(p: Problem, count: int, iterations: int | None) -> Callable[[Any], Any]:
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        k, v = expanded(k, p), expanded(v, p)
        few = [torch.stack([s.mean(2) for s in x.tensor_split(count, dim=2)], 2) for x in (q, k)]
        first, a, last = (
            (x @ y.mT * p.softmax_scale).softmax(-1) for x, y in ((q, few[1]), few, (few[0], k))
        )
        if iterations is None:
            return first @ torch.linalg.inv(a) @ last @ v
        one = torch.eye(count, dtype=a.dtype)
        inverses = []
        for x in a.flatten(0, 1):  # equation 13 and its start, matrix by matrix
            z = x.T / (torch.linalg.norm(x, 1) * torch.linalg.norm(x, torch.inf))
            for _ in range(iterations):
                z = 0.25 * z @ (13 * one - x @ z @ (15 * one - x @ z @ (7 * one - x @ z)))
            inverses.append(z)
        return first @ torch.stack(inverses).view_as(a) @ last @ v

    return lambda built: attend


@pytest.mark.parametrize("iterations", [1, 6])
@pytest.mark.parametrize("count", [1, 7, 19, 38])
def test_it_is_what_its_definition_says(count: int, iterations: int) -> None:
    options = {"landmarks": count, "iterations": iterations}
    assert_as_defined("nystrom", SMALL, definition(SMALL, count, iterations), **options)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_low_precision_costs_only_the_rounding_of_the_result(dtype: str) -> None:
    p = SMALL.replace(dtype=dtype)
    assert_as_defined("nystrom", p, definition(p, 7, 6), landmarks=7)


@pytest.mark.parametrize("count", [3, 7])
def test_the_exact_inverse_has_the_gradients_of_an_inverse(count: int) -> None:
    p = SMALL
    execution, inputs = solve(
        "nystrom", p.replace(direction="both"), landmarks=count, inverse="exact"
    )
    truth = defined(definition(p, count, None)(None), inputs)
    assert max(errors(execution.results(), truth).values()) < 1e-8


def test_it_is_what_the_nystrom_library_computes() -> None:
    """For one head: the library scales the inverses of all heads and batches as one."""
    p = Problem.of(batch=1, heads=1, seqlen=24, head_dim=8, dtype="float32", direction="both")
    execution, inputs = solve("nystrom", p, landmarks=6)
    peer = peers.of_nystrom(execution.built, p)

    def call(*qkv: torch.Tensor) -> torch.Tensor:  # in float32: it makes its identity so
        x = (peer.to_layout(x.float()) for x in qkv)
        return peer.to_bhsd(peer.call(*x), 1).double()

    assert max(errors(execution.results(), defined(call, inputs)).values()) < 1e-5


@pytest.mark.parametrize("inputs", ["normal", "peaky", "correlated", "large"])
def test_with_a_landmark_for_each_token_it_is_dense_attention(inputs: str) -> None:
    p = Problem.of(batch=2, heads=2, seqlen=65, head_dim=32, direction="both", inputs=inputs)
    assert_right("nystrom", p, **implementation("nystrom").exact_options(p))


BROKEN = {
    "one scale for the batch": (
        "(columns.amax(dim=-1) * rows.amax(dim=-1))[..., None, None]",
        "columns.amax() * rows.amax()",
    ),
    "no transposition": ("z_LL: torch.Tensor = a_LL.mT / size", "z_LL: torch.Tensor = a_LL / size"),
    "another polynomial": ("7 * one_LL", "6 * one_LL"),
    "segments cut elsewhere": (
        "cut = longer * (length + 1)", "cut = longer * (length + 1); x_BHND = x_BHND.roll(1, 2)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_one_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = module_of("nystrom")
    broken = mutant(module, *BROKEN[fault])
    for name in ("iterated_inverse", "segment_means"):
        monkeypatch.setattr(module, name, getattr(broken, name))
    with pytest.raises(AssertionError):
        assert_as_defined("nystrom", SMALL, definition(SMALL, 7, 6), landmarks=7)


def test_a_scale_shared_by_the_batch_is_found_by_the_battery(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = module_of("nystrom")
    broken = mutant(module, *BROKEN["one scale for the batch"])
    monkeypatch.setattr(module, "iterated_inverse", broken.iterated_inverse)
    case = next(c for c in CASES if c.name == "batch-apart-nan")
    assert run_case(implementation("nystrom"), case, CPU).status == "incorrect"


def test_the_derivative_of_the_inverse_itself_would_lose_the_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What ``solved`` is for: with it the knob's gradients are right on hard inputs too."""
    monkeypatch.setattr(
        module_of("nystrom"), "solved", lambda a, read: torch.linalg.pinv(a, rtol=1e-10) @ read
    )
    p = Problem.of(batch=2, heads=2, seqlen=65, head_dim=32, direction="both", inputs="correlated")
    with pytest.raises(AssertionError):
        assert_right("nystrom", p, **implementation("nystrom").exact_options(p))


def test_flops_are_those_of_the_products_that_run_and_the_logits_again() -> None:
    p, count = SMALL.replace(dtype="float32"), 7
    forward, both = said(implementation("nystrom", landmarks=count), p)
    ran_forward, ran_both = counted("nystrom", p, landmarks=count)
    assert forward == ran_forward
    again = 2 * 4 * 4 * 38 * count * 8
    assert both == ran_both + again


def test_nothing_of_size_seqlen_squared_exists() -> None:
    p = Problem.of(heads=1, seqlen=1024, head_dim=16, direction="both")
    execution, _ = solve("nystrom", p, landmarks=32)
    with Operations() as ran:
        execution.step()
    assert max(made for _, made in ran.seen) <= 1024 * 32


@pytest.mark.parametrize(
    ("changes", "options", "reason"),
    [
        ({"mask": "causal"}, {}, "mask causal has no definition: each landmark is a mean"),
        ({"seqlen_k": 40}, {}, "seqlen_q ≠ seqlen_k has no definition"),
        ({"alibi": True}, {"landmarks": 4}, "does not do ALiBi"),
        ({}, {"landmarks": 39}, "landmarks must be 1 to seqlen 38, got 39"),
        ({}, {"landmarks": 4, "inverse": "none"}, "inverse is iterated or exact, got 'none'"),
        ({}, {"landmarks": 4, "iterations": 0}, "iterations must be at least 1, got 0"),
        (
            {},
            {"landmarks": 4, "inverse": "exact", "iterations": 5},
            "inverse exact does not iterate: leave iterations at 6, got 5",
        ),
    ],
)
def test_what_has_no_definition_is_refused(
    changes: dict[str, Any], options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(Unsupported, match=reason):
        implementation("nystrom", **options).supports(SMALL.replace(**changes), CPU)


def test_the_knob_is_exact_whatever_the_iterations_were() -> None:
    """Broken: a knob that keeps the iterations it was given, which exact refuses."""
    method = implementation("nystrom", landmarks=4, iterations=12)
    given = method.exact_options(SMALL)
    assert given is not None
    assert_right("nystrom", SMALL, **{**method.options, **given})


def test_one_sequence_does_not_change_another() -> None:
    p = SMALL.replace(batch=1)
    q, k, v = make_inputs(SMALL, 0).qkv()
    both = implementation("nystrom", landmarks=7).build(SMALL, CPU)(q, k, v)
    alone = implementation("nystrom", landmarks=7).build(p, CPU)(q[:1], k[:1], v[:1])
    assert torch.allclose(both[:1], alone, atol=1e-13)
