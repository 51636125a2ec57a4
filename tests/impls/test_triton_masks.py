"""How masks reach the Triton kernels: every walk meets what its mask allows, nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fused import part
from shelf import CPU

from attnbench import Problem

MASKS = (
    "full", "causal", "window:window=9", "window:window=9,causal=false", "prefix:prefix=20",
    "document:count=3", "document:count=3,causal=false", "strided:stride=8",
    "block_sparse:block=16", "bigbird:block=8", "fixed:stride=16,summary=3",
    "dilated:window=5,dilation=3",
)  # fmt: skip


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("own", ["queries", "keys"])
def test_a_walk_meets_what_the_mask_allows_and_nothing_else(mask: str, own: str) -> None:
    problem = Problem.of(heads=1, seqlen=100, head_dim=16, mask=mask)
    if not mask.startswith(("document", "full")):
        problem = problem.replace(seqlen_q=90)
    dense = problem.mask.dense(problem.seqlen_q, problem.seqlen_k).numpy()
    walk = part("masks").walk_of(problem, own, part("config").Config(32, 16, 1, 1), CPU)
    met = by_list(problem, walk, own) if walk.form == "blocks" else by_intervals(problem, walk, own)
    np.testing.assert_array_equal(met, dense)


@pytest.mark.parametrize("mask", MASKS)
def test_a_plane_shows_of_each_tile_what_the_mask_allows(mask: str) -> None:
    """Broken: a whole block that has the first pattern, or none."""
    problem = Problem.of(heads=1, seqlen=100, head_dim=16, mask=mask)
    dense = problem.mask.dense(100, 100).numpy()
    plane = part("masks").plane_of(problem, part("config").Config(32, 16, 1, 1), CPU)
    if plane.form != "blocks":
        np.testing.assert_array_equal(by_intervals(problem, plane, "queries"), dense)
        return
    met = np.zeros((128, 112), dtype=bool)
    for (row, column), pattern in np.ndenumerate(plane.table.numpy()):
        if pattern >= 0:
            corner = (slice(row * 32, row * 32 + 32), slice(column * 16, column * 16 + 16))
            met[corner] = plane.patterns[pattern].numpy() != 0
    np.testing.assert_array_equal(met[:100, :100], dense)


def by_intervals(p: Problem, walk: Any, own: str) -> Any:
    own_length, other_length = (p.seqlen_q, p.seqlen_k)[:: 1 if own == "queries" else -1]
    index, other = np.arange(own_length)[:, None], np.arange(other_length)
    if walk.form == "bounds":
        low, high = walk.table.numpy()[:, :, None]
    else:
        shift = p.seqlen_k - p.seqlen_q
        behind, ahead = walk.behind, walk.ahead
        if own == "keys":
            shift, behind, ahead = -shift, ahead, behind
        low, high = index + shift - behind, index + shift + ahead + 1
    assert walk.has_low or (low <= 0).all()
    met = (other >= low) & (other < high)
    return met if own == "queries" else met.T


def by_list(p: Problem, walk: Any, own: str) -> Any:
    met = np.zeros((128, 128), dtype=bool)
    for tile, (whole, count, *rest) in enumerate(walk.table.tolist()):
        for step in range(count):
            other, pattern = rest[2 * step : 2 * step + 2]
            row, column = (tile, other) if own == "queries" else (other, tile)
            corner = (slice(row * 32, row * 32 + 32), slice(column * 16, column * 16 + 16))
            assert not met[corner].any()
            met[corner] = True if step < whole else walk.patterns[pattern].numpy() != 0
    assert not met[p.seqlen_q :].any()
    assert not met[:, p.seqlen_k :].any()
    return met[: p.seqlen_q, : p.seqlen_k]


def test_a_mask_that_repeats_has_few_patterns() -> None:
    problem = Problem.of(heads=1, seqlen=512, head_dim=16, mask="strided:stride=32")
    walk = part("masks").walk_of(problem, "queries", part("config").Config(64, 32, 1, 1), CPU)
    assert len(walk.patterns) <= 8
