"""``gathered`` with a learned bias: right in every order, in steps of any size, and no larger."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import pytest
import torch
from shelf import CPU, Operations, implementation, module_of

from attnbench import Problem, make_inputs
from attnbench.battery import Case, run_case
from attnbench.oracle import reference

NAMES = ("out", "dq", "dk", "dv", "dbias")
MASKS = {  # by how their pairs are read
    "views": "causal",
    "views of a band": "window:window=5",
    "lists of keys": "bigbird:block=4",
    "an order": "dilated:window=3,dilation=3",
    "an order with bands": "strided:stride=2,causal=false",
    "blind rows": "block_sparse:block=4,blocks_kept=0-0+7-1+7-3+11-0",
}
SHAPE = {"batch": 3, "heads": 4, "heads_kv": 2, "seqlen_q": 48, "seqlen_k": 50, "head_dim": 8}


def part(name: str) -> ModuleType:
    package = module_of("gathered").__name__.rpartition(".")[0]
    return importlib.import_module(f"{package}.{name}")


def of(mask: str, **changes: Any) -> Problem:
    told = {**SHAPE, "mask": mask, "dtype": "float64", "direction": "both", **changes}
    return Problem.of(**told).replace(bias=True)


def drawn(problem: Problem) -> torch.Tensor:
    """A bias that is another number for each pair, unlike one of relative positions."""
    torch.manual_seed(0)
    shape = (problem.heads_q, problem.seqlen_q, problem.seqlen_k)
    return torch.randn(shape, dtype=torch.float64).to(problem.torch_dtype)


def solved(problem: Problem, bias_HMN: torch.Tensor, block: int) -> dict[str, torch.Tensor]:
    inputs = make_inputs(problem, seed=1)
    built: Any = implementation("gathered", block=block).build(problem, CPU)
    out, saved = built.forward(*inputs.qkv(), bias_HMN)
    gradients = built.backward(saved, inputs.grad_out_BHME)
    return dict(zip(NAMES, (out, *gradients), strict=True))


def wrong(problem: Problem, block: int = 4) -> set[str]:
    """What is not the oracle's, in float64."""
    bias_HMN = drawn(problem)
    results = solved(problem, bias_HMN, block)
    truth = reference(problem, make_inputs(problem, 1), gradients=True, bias_HMN=bias_HMN)
    truths = (truth.out_BHME, truth.dq_BHMD, truth.dk_BGND, truth.dv_BGNE, truth.dbias_HMN)
    return {
        name
        for name, want in zip(NAMES, truths, strict=True)
        if not torch.allclose(results[name], want, rtol=1e-9, atol=1e-10)
    }


@pytest.mark.parametrize("logits", [1, 300, 1 << 18])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_all_five_are_the_oracles_in_steps_of_any_size(
    mask: str, logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part("steps"), "_LOGITS", logits)
    for block in (4, 16):
        assert wrong(of(mask, softcap=2.0, alibi=True), block) == set()


def test_the_masks_are_read_in_every_way() -> None:
    """Or the tests above would not see what they are for."""
    ways = set()
    for mask in MASKS.values():
        for own in part("plan").plan(of(mask), CPU, 4):
            ways |= {
                (own.order is None, isinstance(tile.keys, slice), tile.repeats > 1)
                for tile in own.tiles
            }
    assert ways >= {
        (True, True, False), (True, True, True), (True, False, False), (False, True, False),
        (False, True, True),
    }  # fmt: skip


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_pairs_that_are_not_visible_have_a_gradient_of_exactly_zero(mask: str) -> None:
    problem = of(mask)
    dbias_HMN = solved(problem, drawn(problem), block=16)["dbias"]
    seen_MN = problem.mask.dense(problem.seqlen_q, problem.seqlen_k)
    assert not dbias_HMN[:, ~seen_MN].any()
    assert dbias_HMN[:, seen_MN].count_nonzero() > 0.9 * problem.heads_q * int(seen_MN.sum())


@pytest.mark.parametrize("mask", ["views of a band", "lists of keys"])
def test_a_bias_with_strides_of_its_own_is_read_like_any_other(mask: str) -> None:
    """A layer's is a table looked up, heads last in memory; a model's may be cut from a longer."""
    problem = of(MASKS[mask])
    bias_HMN = drawn(problem)
    turned_HMN = bias_HMN.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    cut_HMN = torch.nn.functional.pad(bias_HMN, (3, 5))[:, :, 3:-5]
    plain, *others = (solved(problem, x, block=4) for x in (bias_HMN, turned_HMN, cut_HMN))
    for other in others:
        assert all(torch.equal(other[name], x) for name, x in plain.items())


# ---- broken ------------------------------------------------------------------------------


def _first_entry_only(pairs: ModuleType) -> tuple[str, Any]:
    """The bias's gradient of one batch entry, not their sum."""
    whole = pairs.add_pairs

    def add(total: Any, own_part: Any, tile: Any, heads: slice, own: torch.Tensor) -> None:
        if heads.start < len(total):
            one = slice(heads.start, min(heads.stop, len(total)))
            count = (one.stop - one.start) * tile.repeats
            whole(total, own_part, tile, one, own[:count])

    return "add_pairs", add


def _no_order(pairs: ModuleType) -> tuple[str, Any]:
    """Places in a part's order, taken for places in the sequence."""
    whole = pairs._listed

    def listed(own_part: Any, tile: Any, x: torch.Tensor) -> Any:
        order = own_part.order and tuple(torch.arange(len(of_M)) for of_M in own_part.order)
        return whole(type(own_part)(order, ()), tile, x)

    return "_listed", listed


def _no_band(pairs: ModuleType) -> tuple[str, Any]:
    """The bias of a band's first tile, for all of its tiles."""
    whole = pairs._view

    def view(x: torch.Tensor, tile: Any) -> torch.Tensor:
        found: torch.Tensor = whole(x, tile)
        return found[:1].expand_as(found).clone() if tile.repeats > 1 else found

    return "_view", view


def put_in(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name, broken = fault(part("pairs"))
    for module in (part("pairs"), part("gather")):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, broken)


@pytest.mark.parametrize(
    ("fault", "seen_in", "hidden_in", "shows"),
    [
        (_first_entry_only, "views", None, {"dbias"}),
        (_no_order, "an order", "views of a band", set(NAMES)),
        (_no_band, "views of a band", "lists of keys", set(NAMES)),
    ],
)
def test_what_is_broken_on_purpose_is_found(
    fault: Any, seen_in: str, hidden_in: str | None, shows: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    put_in(fault, monkeypatch)
    monkeypatch.setattr(part("steps"), "_LOGITS", 300)
    assert wrong(of(MASKS[seen_in])) == shows
    assert hidden_in is None or wrong(of(MASKS[hidden_in])) == set()


@pytest.mark.parametrize(
    ("fault", "mask"),
    [(_first_entry_only, "causal"), (_no_order, "dilated:window=3,dilation=3,causal=true")],
)
def test_a_layer_shows_it_too(fault: Any, mask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a band: along its tiles relative positions are the same."""
    layer = {"level": "layer", "position": "relative", "batch": 2, "heads": 2, "head_dim": 8}
    case = Case("layer", Problem.of(**layer, seqlen=96, mask=mask, direction="both"))
    assert run_case(implementation("gathered", block=16), case, CPU).status == "ok"
    put_in(fault, monkeypatch)
    found = run_case(implementation("gathered", block=16), case, CPU)
    assert found.status == "incorrect"
    assert not found.accuracy["dtable"].ok


# ---- work and memory ---------------------------------------------------------------------


VIEWS = {"view", "_unsafe_view", "slice", "alias", "detach"}


@pytest.mark.parametrize("direction", ["forward", "both"])
@pytest.mark.parametrize("mask", ["window:window=64", "strided:stride=32", "bigbird:block=32"])
def test_nothing_is_as_large_as_the_bias_but_its_gradient(mask: str, direction: str) -> None:
    problem = of(mask, seqlen_q=1024, seqlen_k=1024, dtype="bfloat16", direction=direction)
    inputs, bias_HMN = make_inputs(problem, seed=1), drawn(problem)
    built: Any = implementation("gathered").build(problem, CPU)
    with Operations() as ran:
        _, saved = built.forward(*inputs.qkv(), bias_HMN)
        if direction == "both":
            built.backward(saved, inputs.grad_out_BHME)
    large = {name for name, count in ran.seen if count >= bias_HMN.numel()}
    made = {name for name in large if name not in VIEWS and not name.endswith("_")}
    assert made == ({"zeros", "_to_copy"} if direction == "both" else set())
