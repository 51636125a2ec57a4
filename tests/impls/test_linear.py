"""``linear``, ``cosformer`` and ``rfa``, and the sums that they share with ``performer``."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from definition import assert_as_defined, counted, expanded, mutant, said
from shelf import CPU, Operations, implementation, module_of, solve

from attnbench import Problem, Unsupported, make_inputs
from attnbench.battery import CASES, run_case

SMALL = Problem.of(batch=2, heads=2, seqlen=37, head_dim=8, head_dim_v=12, dtype="float64")
NAMES = ("linear", "cosformer", "rfa")


def weights_of(name: str, built: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Before they are normalised: one number for each pair, by the papers' formulas."""
    if name == "linear":
        phi = lambda x: torch.where(x > 0, x + 1, x.exp())  # noqa: E731
        return torch.einsum("bhmd,bhnd->bhmn", phi(q), phi(k))
    if name == "cosformer":
        n = torch.arange(k.shape[2], dtype=torch.float64)
        near_MN = torch.cos(math.pi / 2 * (n[:, None] - n) / len(n))
        return torch.einsum("bhmd,bhnd->bhmn", q.clamp(min=0), k.clamp(min=0)) * near_MN
    w_fD = built.features.projection_fD.double()
    unit = [x / x.square().sum(-1, keepdim=True).sqrt() for x in (q, k)]
    difference_BHMND = unit[0][:, :, :, None] - unit[1][:, :, None]
    return torch.cos(difference_BHMND @ w_fD.T).sum(-1)


def definition(name: str, problem: Problem) -> Callable[[Any], Any]:
    def of(built: Any) -> Any:
        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            weights = weights_of(name, built, q, expanded(k, problem))
            if problem.mask.kind == "causal":
                weights = weights * problem.mask.dense(problem.seqlen_q, problem.seqlen_k, CPU)
            total = weights.sum(-1, keepdim=True)
            return (weights / torch.where(total == 0, 1.0, total)) @ expanded(v, problem)

        return attend

    return of


@pytest.mark.parametrize("mask", ["full", "causal"])
@pytest.mark.parametrize("name", NAMES)
def test_it_is_what_its_definition_says(name: str, mask: str) -> None:
    p = SMALL.replace(mask=mask)
    assert_as_defined(name, p, definition(name, p), chunk=8)
    grouped = p.replace(heads_q=6, heads_kv=2)
    assert_as_defined(name, grouped, definition(name, grouped), chunk=8)


@pytest.mark.parametrize("chunk", [1, 5, 36, 37, 512])
def test_the_answer_does_not_depend_on_the_chunk(chunk: int) -> None:
    p = SMALL.replace(mask="causal", heads_q=4)
    assert_as_defined("linear", p, definition("linear", p), chunk=chunk)


@pytest.mark.parametrize("lengths", [(5, 37), (37, 5), (1, 37), (20, 21)])
@pytest.mark.parametrize("mask", ["full", "causal"])
def test_lengths_may_differ(lengths: tuple[int, int], mask: str) -> None:
    p = SMALL.replace(seqlen_q=lengths[0], seqlen_k=lengths[1], mask=mask)
    assert_as_defined("linear", p, definition("linear", p), chunk=8)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", NAMES)
def test_low_precision_costs_only_the_rounding_of_the_result(name: str, dtype: str) -> None:
    p = SMALL.replace(dtype=dtype, mask="causal", seqlen_q=300, seqlen_k=300)
    # rfa's normaliser can come near zero, and rounding with it: only its first digits hold
    if name != "rfa" or dtype == "float32":
        assert_as_defined(name, p, definition(name, p), chunk=32)
    else:
        assert all(bool(x.isfinite().all()) for x in solve(name, p)[0].results().values())


MUTANTS = {
    "a chunk counted twice": ("states_BGnFP[:, :, :-1]", "states_BGnFP[:, :, 1:]"),
    "the own chunk among those before": (
        "torch.cat([early_BGFP[:, :, None], states_BGnFP[:, :, :-1]], dim=2)", "states_BGnFP",
    ),
    "no sum over chunks": (".cumsum(2)", ""),
    "the future inside a chunk": ("position_C > position_C[:, None]", "position_C < 0"),
    "the diagonal hidden": ("position_C > position_C", "position_C >= position_C"),
    "keys seen by all forgotten": ("early_BGFP[:, :, None]", "0 * early_BGFP[:, :, None]"),
}  # fmt: skip


@pytest.mark.parametrize("fault", MUTANTS)
def test_broken_sums_are_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = module_of("linear")
    broken = mutant(sys.modules[f"{package.__name__}.products"], *MUTANTS[fault])
    monkeypatch.setattr(package, "attend_causally", broken.attend_causally)
    p = SMALL.replace(mask="causal", seqlen_k=45)
    with pytest.raises(AssertionError):
        assert_as_defined("linear", p, definition("linear", p), chunk=8)


def error_in_pieces(name: str, monkeypatch: pytest.MonkeyPatch) -> float:
    """Of a few rows at a time, as without gradients on a CPU, against all rows at once."""
    p = SMALL.replace(heads_q=4, seqlen_q=29)
    if name == "cosformer":
        p = p.replace(seqlen_q=37)
    q, k, v = make_inputs(p, 0).qkv()
    k = k * torch.linspace(40, 1, p.seqlen_k)[:, None]  # features far apart: e^-2000 to 1
    built = implementation(name).build(p, CPU)
    monkeypatch.setattr(type(built), "_rows", lambda *_: None)
    whole = built(q, k, v)
    monkeypatch.setattr(type(built), "_rows", lambda *_: 5)
    error = (built(q, k, v) - whole).norm() / whole.norm()
    return float(error.nan_to_num(float("inf")))


@pytest.mark.parametrize("name", [*NAMES, "performer"])
def test_the_answer_does_not_depend_on_the_pieces(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert error_in_pieces(name, monkeypatch) < 1e-12


BROKEN_PIECES = {
    "the first piece's largest feature for all": ("torch.maximum(top, other_top)", "top * 1"),
    "pieces added as they are": ("(x - both_BG1F).exp().mT", "torch.ones_like(x).mT"),
    "the first piece only": ("+ other_BGFP * shares[1]", ""),
    "positions that begin anew": ("top, piece.start)", "top, 0)"),
}


@pytest.mark.parametrize("fault", BROKEN_PIECES)
def test_broken_pieces_are_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = module_of("linear")
    products = sys.modules[f"{package.__name__}.products"]
    monkeypatch.setattr(package, "attend", mutant(products, *BROKEN_PIECES[fault]).attend)
    name = "cosformer" if "positions" in fault else "performer"
    assert error_in_pieces(name, monkeypatch) > 1e-3


def test_pieces_are_taken_only_where_nothing_is_kept_for_a_backward() -> None:
    p = Problem.of(heads=2, seqlen=1024, head_dim=16)
    q, k, v = make_inputs(p, 0).qkv()
    built = implementation("performer", features=1024).build(p, CPU)
    assert built._rows(q[:, :, None], k, v) == 256
    assert built._rows(q[:, :, None].requires_grad_(), k, v) is None
    with torch.no_grad():
        assert built._rows(q[:, :, None], k, v) == 256


@pytest.mark.parametrize(("batch", "features"), [(32, 256), (2, 4096)])
def test_pieces_of_many_heads_are_no_smaller_than_what_pays(batch: int, features: int) -> None:
    """In pieces of four rows, adding up their sums took ten times as long as all else."""
    p = Problem.of(batch=batch, heads=16, seqlen=512)
    built = implementation("performer", features=features).build(p, CPU)
    q, k, v = (x.expand(batch, 16, 512, 64) for x in torch.zeros(3, 1))
    assert built._rows(q[:, :, None], k, v) == 256


def test_a_wrong_normaliser_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    package = module_of("linear")
    products = sys.modules[f"{package.__name__}.products"]
    broken = mutant(products, "(0, 1), value=1.0", "(0, 1), value=1.01")
    monkeypatch.setattr(package, "attend", broken.attend)
    with pytest.raises(AssertionError):
        assert_as_defined("linear", SMALL, definition("linear", SMALL))


def test_the_future_does_not_change_the_past() -> None:
    p = SMALL.replace(mask="causal")
    for name in (*NAMES, "performer"):
        built = implementation(name, chunk=8).build(p, CPU)
        q, k, v = make_inputs(p, 0).qkv()
        before = built(q, k, v)
        k, v = k.clone(), v.clone()
        k[:, :, 20:] *= -2
        v[:, :, 20:] += 5
        assert torch.allclose(built(q, k, v)[:, :, :20], before[:, :, :20], atol=1e-12), name


def test_nothing_of_size_seqlen_squared_exists() -> None:
    for mask in ("full", "causal"):
        p = Problem.of(heads=1, seqlen=2048, head_dim=16, mask=mask, direction="both")
        execution, _ = solve("linear", p, chunk=64)
        with Operations() as ran:
            execution.step()
        assert max(made for _, made in ran.seen) <= 2048 * 64


@pytest.mark.parametrize("mask", ["full", "causal"])
@pytest.mark.parametrize("name", [*NAMES, "performer"])
def test_flops_are_those_of_the_products_that_run(name: str, mask: str) -> None:
    """To the last one where the length is a multiple of the chunk; padding is not counted."""
    p = Problem.of(batch=2, heads=4, heads_kv=2, seqlen=96, head_dim=16, head_dim_v=24, mask=mask)
    options = {"chunk": 32} | ({"features": 64} if name in ("rfa", "performer") else {})
    assert said(implementation(name, **options), p) == counted(name, p, **options)
    method = implementation(name, **options)
    assert method.ideal_bytes(p) - p.ideal_bytes() == 4 * method.drawn(p) * 16


def test_what_has_no_definition_is_refused_with_the_reason() -> None:
    for name, change, reason in (
        ("linear", {"scale": 0.5}, "does not do a scale"),
        ("linear", {"mask": "window:window=4"}, "does not do mask window"),
        ("cosformer", {"seqlen_k": 40}, "does not do seqlen_q ≠ seqlen_k"),
        ("rfa", {"decode": True}, "does not do a decode step"),
        ("linear", {"alibi": True}, "does not do ALiBi"),
    ):
        with pytest.raises(Unsupported, match=reason):
            implementation(name).supports(SMALL.replace(**change), CPU)
    with pytest.raises(Unsupported, match="features come in pairs of a cosine and a sine, got 3"):
        implementation("rfa", features=3).supports(SMALL, CPU)
    with pytest.raises(Unsupported, match="chunk must be at least 1, got 0"):
        implementation("linear", chunk=0).supports(SMALL, CPU)


@pytest.mark.parametrize("name", [*NAMES, "performer", "linformer", "nystrom"])
def test_no_setting_is_claimed_to_be_exact_that_is_not(name: str) -> None:
    assert (implementation(name).exact_options(SMALL) is not None) == (
        name in ("linformer", "nystrom")
    )


@pytest.mark.parametrize("name", [*NAMES, "performer", "linformer", "nystrom"])
def test_the_battery_finds_nothing_wrong(name: str) -> None:
    results = [run_case(implementation(name), case, CPU) for case in CASES]
    wrong = [(r.case.name, r.reason) for r in results if r.status in ("incorrect", "error")]
    assert wrong == []
    assert sum(r.status == "ok" for r in results) >= 70
