"""The Gluon forward's protocol and arithmetic, whole and broken, on a machine of Python."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gluon_machine import as_python
from gluon_simulation import HALF, SMALL, part, simulated
from gluon_values import Fault
from shelf import CPU

import attnbench
from attnbench import Problem

# ---- the protocol ------------------------------------------------------------------------


def error(problem: Problem, **how: Any) -> float:
    """Largest difference from float64."""
    inputs = attnbench.make_inputs(problem, seed=0)
    q, k, v = inputs.qkv()
    found = simulated(problem, **how)(q, k, v).double()
    group = problem.heads_q // problem.heads_kv
    k, v = (x.double().repeat_interleave(group, dim=1) for x in (k, v))
    logits = q.double() @ k.mT * problem.softmax_scale
    if problem.mask.kind == "causal":
        visible = problem.mask.dense(problem.seqlen_q, problem.seqlen_k, CPU)
        logits = logits.masked_fill(~visible, -torch.inf)
    exact = torch.softmax(logits, -1).nan_to_num(0) @ v
    return float((found - exact).abs().nan_to_num(torch.inf).max())


@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("mask", ["full", "causal"])
def test_whatever_order_chance_gives_the_answer_is_the_same(mask: str, stages: int) -> None:
    # 0 blocks that are seen (70 queries, 6 keys: 64 rows see nothing), 1, 2 and many.
    for seqlen_q, seqlen_k in ((70, 6), (70, 16), (40, 32), (33, 150)):
        problem = HALF.replace(batch=1, seqlen_q=seqlen_q, seqlen_k=seqlen_k, mask=mask)
        for seed in range(3):
            how = {"seed": seed, "programs": 2, "stages": stages, **SMALL}
            assert error(problem, **how) < 0.02


# Texts of the kernel that stand in several lines of the table.
ROOM_FOR_KEYS = "mbarrier.wait(k_empty.index(stage), phase ^ 1)"
QUERIES = "mbarrier.wait(q_full.index(WHICH), turn & 1)"
DOTS = "dots_MN = warpgroup_mma_wait(1, deps=(dots_MN,))"
RELEASE_KEYS = "mbarrier.arrive(k_empty.index(stage), count=1)"
OUTPUT = "acc_ME = warpgroup_mma_wait(0, deps=(acc_ME,))"
RELEASE_VALUES = "mbarrier.arrive(v_empty.index(last_stage), count=1)"
SCALED = "acc_ME = acc_ME * gl.convert_layout(keep_M, gl.SliceLayout(1, out_layout))[:, None]"

BROKEN = {
    "the producer takes the wrong phase": (
        ROOM_FOR_KEYS, "mbarrier.wait(k_empty.index(stage), phase)",
    ),
    "the producer does not wait for room for keys": (ROOM_FOR_KEYS, "pass"),
    "the producer does not wait for room for values": (
        "mbarrier.wait(v_empty.index(stage), phase ^ 1)", "pass",
    ),
    "the producer does not wait for room for queries": (
        "mbarrier.wait(q_empty.index(i), (turn & 1) ^ 1)", "pass",
    ),
    "one consumer is enough to release keys": (
        "k_empty = new_barriers(STAGES, CONSUMERS)", "k_empty = new_barriers(STAGES, 1)",
    ),
    "no bytes are announced": (
        "mbarrier.expect(full, desc.block_type.nbytes)", "mbarrier.arrive(full, count=1)",
    ),
    "a consumer does not wait for keys": (
        "    mbarrier.wait(k_full.index(stage), phase)\n    dots_MN", "    pass\n    dots_MN",
    ),
    "a consumer does not wait for values": (
        "mbarrier.wait(v_full.index(stage), phase)  # for the next step; here it fences off the "
        "softmax", "pass",
    ),
    "a consumer does not wait for the queries of its second turn": (
        QUERIES, "mbarrier.wait(q_full.index(WHICH), 0)",
    ),
    "keys are released before they are read": (
        f"{DOTS}\n    {RELEASE_KEYS}", f"{RELEASE_KEYS}\n    {DOTS}",
    ),
    "values are released before they are read": (
        f"{OUTPUT}\n    {RELEASE_VALUES}", f"{RELEASE_VALUES}\n    {OUTPUT}",
    ),
    "keys are never released": (f"{DOTS}\n    {RELEASE_KEYS}", DOTS),
    "values are never released": (RELEASE_VALUES, "pass"),
    "queries are released too early": (
        QUERIES, f"{QUERIES}\n        mbarrier.arrive(q_empty.index(WHICH), count=1)",
    ),
    "the dots are not waited for": (DOTS, DOTS.replace("1", "2")),
    "the producer starts each turn at step 0": (
        "v_smem.index(stage))\n        step += blocks", "v_smem.index(stage))",
    ),
    "the phase is that of the block, not of the ring": (
        "return step % STAGES, (step // STAGES) & 1", "return step % STAGES, step & 1",
    ),
    "keys go the other way": ("n = (blocks - 1 - j) * BLOCK_N", "n = j * BLOCK_N"),
    "values are those of the next block": ("n = (blocks - j) *", "n = (blocks - 1 - j) *"),
    "the values of the last block are never loaded": ("range(blocks + 1)", "range(blocks)"),
    "the diagonal is one key off": ("(seqlen_k - seqlen_q + 1)", "(seqlen_k - seqlen_q)"),
    "too few blocks are masked": (
        "blocks - min(seen_by_first // BLOCK_N, blocks - 1)", "1",
    ),
    "the last block of keys is left out": (
        "max((seen_by_last + BLOCK_N - 1) // BLOCK_N, 1)", "max(seen_by_last // BLOCK_N, 1)",
    ),
    "the output is not scaled down": (SCALED, "pass"),
    "a row that has seen nothing is not thought of": (
        'from_M = gl.where(new_M == float("-inf"), 0.0, new_M)', "pass",
    ),
    "sections of heads overlap": ("first = section * heads_together", "first = section"),
}  # fmt: skip


@pytest.mark.parametrize("what", sorted(BROKEN))
def test_a_broken_kernel_is_found(what: str) -> None:
    problem = HALF.replace(batch=1, heads_q=3, heads_kv=3, seqlen_q=90, seqlen_k=75, mask="causal")

    def is_found(seed: int) -> bool:
        how = {"seed": seed, "programs": 2, "stages": 2, "edits": [BROKEN[what]], **SMALL}
        try:
            return not error(problem, **how) < 0.02
        except (Fault, TypeError):  # TypeError: a pending product is no array
            return True

    assert any(is_found(seed) for seed in range(6))


def test_one_stage_is_refused_because_it_would_hang() -> None:
    problem = HALF.replace(batch=1)
    with pytest.raises(AssertionError, match="asks for the next"):
        error(problem, stages=1, **SMALL)
    source = part("forward").forward_kernel.src
    (check_,) = re.findall(r"gl\.static_assert\(.*?\"\)", source, re.DOTALL)
    with pytest.raises(Fault, match="hangs"):
        error(problem, stages=1, edits=[(check_, "pass")], **SMALL)


# ---- the schedule ------------------------------------------------------------------------


def arithmetic(name: str) -> Callable[..., Any]:
    return as_python(getattr(part("schedule"), name), {"gl": SimpleNamespace(constexpr=None)})


@pytest.mark.parametrize("programs", [1, 2, 3, 7])
def test_every_tile_is_done_once_whatever_the_number_of_programs(programs: int) -> None:
    turns_of, tile_of = arithmetic("turns_of"), arithmetic("tile_of")
    for tiles in range(programs, 40):
        done = [
            tile_of(turn, program, programs)
            for program in range(programs)
            for turn in range(turns_of(program, programs, tiles))
        ]
        assert sorted(done) == list(range(tiles))


def test_every_place_is_a_tile_and_among_heads_together_the_heaviest_come_first() -> None:
    place_of = arithmetic("place_of")
    for tiles_of_head, heads, together in ((1, 1, 1), (4, 6, 1), (4, 6, 6), (4, 7, 3), (3, 5, 4)):
        places = [place_of(t, tiles_of_head, heads, together) for t in range(tiles_of_head * heads)]
        assert sorted(places) == [(r, h) for r in range(tiles_of_head) for h in range(heads)]
        for first in range(0, heads, together):
            rows = [r for r, h in places if first <= h < first + together]
            assert rows == sorted(rows, reverse=True)
    assert [h for _, h in (place_of(t, 2, 4, 2) for t in range(8))] == [0, 1, 0, 1, 2, 3, 2, 3]


def test_programs_share_the_work_of_a_causal_mask_evenly() -> None:
    turns_of, tile_of = arithmetic("turns_of"), arithmetic("tile_of")
    place_of, blocks_of = arithmetic("place_of"), arithmetic("blocks_of")
    heads, seqlen, programs = 64, 4096, 132
    tiles_of_head = seqlen // 128

    def work(program: int) -> int:
        tiles = (
            tile_of(turn, program, programs)
            for turn in range(turns_of(program, programs, heads * tiles_of_head))
        )
        rows = (place_of(tile, tiles_of_head, heads, heads)[0] for tile in tiles)
        return sum(blocks_of(row * 128, seqlen, seqlen, 128, 128, True)[0] for row in rows)

    all_work = [work(program) for program in range(programs)]
    assert max(all_work) / (sum(all_work) / programs) < 1.04


@pytest.mark.parametrize("causal", [False, True])
def test_blocks_are_those_that_a_row_of_the_tile_sees_and_masks_where_one_does_not(
    causal: bool,
) -> None:
    blocks_of, keys_seen_by = arithmetic("blocks_of"), arithmetic("keys_seen_by")
    for seqlen_q, seqlen_k in ((1, 1), (1, 50), (40, 40), (70, 33), (33, 70), (70, 1), (64, 64)):
        sees = np.tri(seqlen_q, seqlen_k, seqlen_k - seqlen_q, dtype=bool)
        sees |= not causal
        for m in range(seqlen_q):
            seen = min(max(keys_seen_by(m, seqlen_q, seqlen_k, causal), 0), seqlen_k)
            assert seen == sees[m].sum()
        for start in range(0, seqlen_q, 32):
            rows = sees[start : start + 32]
            padded = np.pad(rows, ((0, 0), (0, -seqlen_k % 16)))
            by_block = padded.reshape(len(rows), -1, 16)
            blocks, masked = blocks_of(start, seqlen_q, seqlen_k, 32, 16, causal)
            assert blocks == max(1, by_block.any((0, 2)).sum())
            unmasked = by_block[:, : blocks - masked]
            assert unmasked.all()
            assert masked == max(1, (~by_block[:, :blocks].all((0, 2))).sum())
