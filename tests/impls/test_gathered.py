"""``gathered``: right under any mask, and no more work or memory than the mask keeps."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from shelf import CPU, Operations, assert_right, implementation, module_of, solve

from attnbench import ForwardBackward, Problem, Unsupported
from attnbench.battery import CASES, run_case

BY_NAME = {case.name: case for case in CASES}
EVERYTHING = Problem.of(
    batch=2, heads=4, heads_kv=2, seqlen_q=33, seqlen_k=50, head_dim=16, head_dim_v=24,
    mask="causal", softcap=3.0, alibi=True, scale=0.4, direction="both",
)  # fmt: skip
MASKS = (
    "full", "causal", "window:window=7", "window:window=7,causal=false", "prefix:prefix=11",
    "strided:stride=3", "strided:stride=3,causal=false", "strided:stride=16",
    "fixed:stride=8,summary=2", "fixed:stride=8,summary=2,causal=false",
    "dilated:window=3,dilation=3", "dilated:window=3,dilation=3,causal=false",
    "bigbird:block=4", "block_sparse:block=4,blocks_per_row=3", "block_sparse:block=8,causal=true",
    "block_sparse:block=4,blocks_kept=0-0+7-1+7-3+11-0",
)  # fmt: skip


def part(name: str) -> ModuleType:
    package = module_of("gathered").__name__.rpartition(".")[0]
    return importlib.import_module(f"{package}.{name}")


def engine(problem: Problem, block: int = 64) -> Any:
    return part("gather").Gathered(problem, CPU, block)


# ---- right -------------------------------------------------------------------------------


def test_the_battery_finds_nothing_wrong_and_only_dropout_and_fp8_are_left_out() -> None:
    results = [run_case(implementation("gathered"), case, CPU) for case in CASES]
    assert [r.reason for r in results if r.status in ("incorrect", "error")] == []
    refused = {str(r.reason) for r in results if r.status == "unsupported"}
    assert {reason.partition(" (")[0] for reason in refused} == {
        "does not do dropout",
        "does not do dtype float8_e4m3fn",
    }


def test_a_reach_beyond_32_bits_is_all_there_is() -> None:
    far = f"dilated:window={2**31 - 1},dilation=4"
    assert_right("gathered", Problem.of(heads=1, seqlen=33, head_dim=8, mask=far))


@pytest.mark.slow
@pytest.mark.parametrize("block", [1, 16])
def test_the_battery_finds_nothing_wrong_in_small_tiles(block: int) -> None:
    results = [run_case(implementation("gathered", block=block), case, CPU) for case in CASES]
    assert [r.reason for r in results if r.status in ("incorrect", "error")] == []


@pytest.mark.parametrize("block", [7, 16, 1024])
@pytest.mark.parametrize("mask", MASKS)
def test_every_mask_is_right_in_tiles_of_any_size(mask: str, block: int) -> None:
    problem = Problem.of(heads=2, seqlen=50, head_dim=8, mask=mask, direction="both")
    assert_right("gathered", problem, block=block)


@pytest.mark.parametrize("lengths", [(33, 50), (50, 33)])
@pytest.mark.parametrize("mask", MASKS)
def test_every_mask_is_right_where_lengths_differ(mask: str, lengths: tuple[int, int]) -> None:
    shape = dict(zip(("seqlen_q", "seqlen_k"), lengths, strict=True))
    if mask.startswith(("block_sparse", "bigbird")) and lengths[0] > lengths[1]:
        pytest.skip("such a mask has no more queries than keys")
    if "blocks_kept" in mask and lengths[1] < 48:
        pytest.skip("the mask names blocks that are not there")
    problem = Problem.of(heads=2, head_dim=8, mask=mask, direction="both", **shape)
    assert_right("gathered", problem, block=16)


@pytest.mark.parametrize("seqlen_q", [64, 65, 66])
def test_distances_are_right_where_one_remainder_has_a_query_before_all_keys(seqlen_q: int) -> None:
    """Broken: such a remainder's first tile taken for the next of the band of those before."""
    mask = "strided:stride=4,causal=false"
    shape = {"heads": 2, "seqlen_q": seqlen_q, "seqlen_k": 64, "head_dim": 8}
    assert_right("gathered", Problem.of(**shape, mask=mask, alibi=True, direction="both"), block=16)


@pytest.mark.parametrize(
    "mask", ["causal", "strided:stride=2", "bigbird:block=4", "window:window=9"]
)
@pytest.mark.parametrize("block", [4, 16])
@pytest.mark.parametrize("logits", [1, 300, 1 << 18])
def test_every_feature_at_once_is_right_in_steps_of_any_size(
    logits: int, block: int, mask: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part("steps"), "_LOGITS", logits)
    assert_right("gathered", EVERYTHING.replace(mask=mask), block=block)


@pytest.mark.parametrize(
    ("heads", "steps"), [(1, {(21, 1), (9, 1)}), (64, {(1, 21), (1, 1)})]
)  # fmt: skip
def test_a_step_takes_tiles_of_one_head_or_heads_of_one_tile(
    heads: int, steps: set[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part("steps"), "_LOGITS", 1 << 18)
    problem = Problem.of(heads=heads, seqlen=2048, head_dim=8, mask="window:window=129")
    attention = engine(problem)
    assert attention.pairs == 64 * (64 + 128 + 30 * 192)
    taken = [(t, x.stop - x.start) for t, x in part("steps").steps(attention.parts[0], problem)]
    assert {(tile.repeats, count) for tile, count in taken if tile.count == 192} == steps
    work = sum(tile.repeats * tile.height * tile.count * count for tile, count in taken)
    assert work == heads * attention.pairs


@pytest.mark.parametrize("mask", ["strided:stride=2", "block_sparse:block=4,blocks_kept=3-0"])
def test_rows_without_keys_give_zeros_and_finite_gradients(mask: str) -> None:
    problem = Problem.of(heads=1, seqlen_q=40, head_dim=8, mask=mask, direction="both")
    if mask.startswith("strided"):
        problem = problem.replace(seqlen_q=72)
    results = solve("gathered", problem, block=16)[0].results()
    dense_MN = problem.mask.dense(problem.seqlen_q, problem.seqlen_k)
    blind_M = ~dense_MN.any(dim=1)
    assert blind_M.any()
    assert not results["out"][:, :, blind_M].any()
    assert not results["dq"][:, :, blind_M].any()
    assert all(bool(torch.isfinite(x).all()) for x in results.values())


def test_a_mask_that_keeps_nothing_gives_zeros() -> None:
    kept = "block_sparse:block=8,blocks_kept=0-0"
    problem = Problem.of(heads=1, seqlen_q=8, seqlen_k=16, head_dim=8, mask=kept, direction="both")
    assert not any(bool(x.any()) for x in solve("gathered", problem)[0].results().values())


def test_a_block_that_is_none_is_refused() -> None:
    with pytest.raises(Unsupported, match="option block must be positive, not 0"):
        implementation("gathered", block=0).supports(EVERYTHING, CPU)


def test_the_backward_is_its_own() -> None:
    assert isinstance(implementation("gathered").build(EVERYTHING, CPU), ForwardBackward)


# ---- broken ------------------------------------------------------------------------------


def nothing_hidden(gather: ModuleType, plan: ModuleType) -> tuple[object, str, object]:
    return plan, "_runs", lambda is_whole_n: []


def one_key_short(gather: ModuleType, plan: ModuleType) -> tuple[object, str, object]:
    whole = gather.keys_of

    def cut(x: torch.Tensor, tile: Any, heads: slice) -> torch.Tensor:
        x = whole(x, tile, heads).clone()
        x[:, -1] = 0
        return x

    return gather, "keys_of", cut


def no_merging(gather: ModuleType, plan: ModuleType) -> tuple[object, str, object]:
    return gather, "merged", lambda one, other: one


def gradients_overwrite(gather: ModuleType, plan: ModuleType) -> tuple[object, str, object]:
    def put(total: torch.Tensor, tile: Any, heads: slice, own: torch.Tensor) -> None:
        gather.keys_of(total, tile, heads).copy_(own)

    return gather, "add_keys", put


def blind_rows_forgotten(gather: ModuleType, plan: ModuleType) -> tuple[object, str, object]:
    whole = plan.Tile
    return plan, "Tile", lambda *args: replace(whole(*args), has_blind=False)


def one_part_only(gather: ModuleType, plan: ModuleType) -> tuple[object, str, object]:
    whole = plan.plan
    return gather, "plan", lambda *args: whole(*args)[:1]


@pytest.mark.parametrize(
    ("fault", "case"),
    [
        (nothing_hidden, "mask-causal"),
        (one_key_short, "seqlen-65"),
        (no_merging, "mask-strided-stride=8"),
        (one_part_only, "mask-strided-stride=8"),
        (gradients_overwrite, "mask-causal-gradients"),
        (blind_rows_forgotten, "cross-causal-96x33"),
    ],
)  # fmt: skip
def test_the_battery_finds_what_is_broken(
    fault: Callable[..., tuple[object, str, object]], case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = BY_NAME[case]
    if fault in (no_merging, one_part_only):  # long enough for an order of its own
        problem = small.problem.replace(seqlen_q=160, seqlen_k=160)
        small = replace(small, problem=problem)
    tried = implementation("gathered", block=16)
    assert run_case(tried, small, CPU).status == "ok"
    monkeypatch.setattr(*fault(part("gather"), part("plan")))
    assert run_case(tried, small, CPU).status == "incorrect"


# ---- work and memory ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "most"),
    [
        ("full", 1.0),
        ("causal", 1.04),
        ("window:window=256", 1.26),
        ("window:window=256,causal=false", 1.13),
        ("prefix:prefix=64", 1.04),
        ("document:count=9", 1.4),
        ("block_sparse:blocks_per_row=4", 1.0),
        ("block_sparse:blocks_per_row=4,causal=true", 1.2),
        ("bigbird", 1.0),
        ("fixed:stride=64,summary=4", 1.6),
        ("strided:stride=32", 2.5),
        ("dilated:window=128,dilation=16", 1.6),
    ],
)
def test_the_pairs_computed_are_little_more_than_those_kept(mask: str, most: float) -> None:
    problem = Problem.of(heads=1, seqlen=4096, head_dim=8, mask=mask)
    kept = problem.mask.coverage(4096, 4096).pairs
    assert kept <= engine(problem).pairs <= most * kept


def test_what_a_mask_scatters_costs_more_without_an_order_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = Problem.of(heads=1, seqlen=1024, head_dim=8, mask="strided:stride=32")
    pairs = engine(problem).pairs
    monkeypatch.setattr(type(problem.mask), "period", 1)
    assert engine(problem).pairs > 4 * pairs


MAKERS = {"bmm", "_softmax", "amax", "index_select", "mul", "sub_", "exp_"}  # others make views


@pytest.mark.parametrize("direction", ["forward", "both"])
@pytest.mark.parametrize("mask", ["window:window=64", "block_sparse:block=32,blocks_per_row=4"])
def test_elements_made_grow_with_the_pairs_kept(mask: str, direction: str) -> None:
    made = []
    for seqlen in (512, 2048):
        problem = Problem.of(heads=2, seqlen=seqlen, head_dim=16, mask=mask, direction=direction)
        execution, _ = solve("gathered", problem, block=32)
        with Operations() as ran:
            execution.step()
        made.append(sum(count for name, count in ran.seen if name in MAKERS))
        operands = 2 * seqlen * 16
        assert max(count for _, count in ran.seen) <= max(operands, part("steps")._LOGITS)
    assert made[1] < 4.4 * made[0]


def test_a_dense_row_is_taken_head_by_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part("steps"), "_LOGITS", 1 << 18)
    problem = Problem.of(heads=8, seqlen=2048, head_dim=8, mask="full")
    steps = [heads for _, heads in part("steps").steps(engine(problem).parts[0], problem)]
    assert {heads.stop - heads.start for heads in steps} == {2}
    assert len(steps) == 4 * 32


def test_masks_inside_tiles_are_shared_and_cover_only_what_is_partial() -> None:
    problem = Problem.of(heads=1, seqlen=4096, head_dim=8, mask="window:window=256")
    (whole,) = engine(problem).parts
    found = [hidden.pairs_mn for tile in whole.tiles for hidden in tile.hidden]
    apart = {pairs.data_ptr(): pairs.numel() for pairs in found}
    assert sum(apart.values()) < 10 * 64 * 64
    assert not any(isinstance(tile.keys, torch.Tensor) for tile in whole.tiles)  # all views
