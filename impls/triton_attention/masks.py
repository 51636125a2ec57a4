"""Masks as the kernels take them: intervals from arithmetic or a table, or lists of blocks.

See ``tiles`` for what the kernels do with them. Everything here is done once, in
``build()``, from the mask's own ``bounds()``, ``blocks()`` and ``mask_mod()``.

Letters: M = seqlen_q, N = seqlen_k; P = number of patterns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from attnbench import Problem

from .config import Config

Ints = npt.NDArray[np.int64]
Form = Literal["band", "bounds", "blocks"]
Side = Literal["queries", "keys"]

_PARTIAL, _WHOLE = 1, 2  # what a block may be; 0 is invisible


@dataclass(frozen=True)
class Walk:
    """What one side of the attention meets of the other, as kernel arguments.

    Attributes:
        form: ``MASK`` of the kernels.
        has_low: whether intervals may begin after 0, so that the first blocks are partial.
        behind, ahead: how far a query sees, for the form ``band``.
        table: int32; for ``bounds`` (2, length) with low and high; for ``blocks``
            (tiles, 2 + 2·most) with the number of whole blocks, the number of blocks, and
            for each its index and its pattern.
        patterns: uint8 ``(P, block_m, block_n)``, for ``blocks``.
    """

    form: Form
    has_low: bool
    behind: int = 0
    ahead: int = 0
    table: torch.Tensor | None = None
    patterns: torch.Tensor | None = None

    def arguments(self) -> dict[str, Any]:
        """By the names that the kernels use."""
        return {"HAS_LOW": self.has_low, **self.of_tile()}

    def of_tile(self) -> dict[str, Any]:
        """Those of a kernel whose tiles stay where they are."""
        return {
            "MASK": self.form,
            "behind": self.behind,
            "ahead": self.ahead,
            "table_ptr": self.table,
            "table_stride": 0 if self.table is None else self.table.stride(0),
            "patterns_ptr": self.patterns,
        }


def walk_of(problem: Problem, own: Side, config: Config, device: torch.device) -> Walk:
    """How tiles of queries walk over keys, or tiles of keys over queries."""
    return (
        _band(problem, own) or _bounds(problem, own, device) or _list(problem, own, config, device)
    )


def plane_of(problem: Problem, config: Config, device: torch.device) -> Walk:
    """What is visible in each tile of the (M, N) plane, for programs that own one of them.

    As ``walk_of`` for tiles of queries, but of the form ``blocks`` the table is int32
    (tiles_m, tiles_n): the pattern of each tile, −1 where nothing is visible.
    """
    return (
        _band(problem, "queries")
        or _bounds(problem, "queries", device)
        or _plane(problem, config, device)
    )


# ---- intervals ---------------------------------------------------------------------------


def _band(problem: Problem, own: Side) -> Walk | None:
    mask, unlimited = problem.mask.to_json(), problem.seqlen_q + problem.seqlen_k
    if mask["kind"] == "full":
        behind, ahead = unlimited, unlimited
    elif mask["kind"] == "causal":
        behind, ahead = unlimited, 0
    elif mask["kind"] == "window":
        behind, ahead = mask["window"] - 1, 0 if mask["causal"] else mask["window"] - 1
    else:
        return None
    reach = behind if own == "queries" else ahead
    return Walk("band", reach < unlimited, min(behind, unlimited), min(ahead, unlimited))


def _bounds(problem: Problem, own: Side, device: torch.device) -> Walk | None:
    """From the mask's row intervals; if both ends only ever grow, keys have intervals too."""
    bounds = problem.mask.bounds(problem.seqlen_q, problem.seqlen_k)
    if bounds is None or any(bool((np.diff(end) < 0).any()) for end in bounds):
        return None
    low, high = bounds
    if own == "keys":
        n = np.arange(problem.seqlen_k)
        # The rows that reach past n begin where high > n, and end where low > n.
        low, high = (np.searchsorted(end, n, side="right") for end in (high, low))
        high = np.maximum(low, high)
    table = torch.from_numpy(np.stack([low, high]).astype(np.int32)).to(device)
    return Walk("bounds", bool((low > 0).any()), table=table)


# ---- lists -------------------------------------------------------------------------------


def _list(problem: Problem, own: Side, config: Config, device: torch.device) -> Walk:
    state = _states(problem, config)
    pattern, patterns = _patterns(problem, config, state)
    if own == "keys":
        state, pattern = state.T, pattern.T
    counts = (state > 0).sum(axis=1)
    table = np.zeros((len(state), 2 + 2 * max(1, int(counts.max()))), dtype=np.int32)
    table[:, 0], table[:, 1] = (state == _WHOLE).sum(axis=1), counts
    order = np.argsort(-state, axis=1, kind="stable")  # whole, partial, invisible
    for row, count in enumerate(counts):
        blocks = order[row, :count]
        table[row, 2 : 2 + 2 * count : 2] = blocks
        table[row, 3 : 3 + 2 * count : 2] = pattern[row, blocks]
    return Walk(
        "blocks", False, table=torch.from_numpy(table).to(device), patterns=patterns.to(device)
    )


def _plane(problem: Problem, config: Config, device: torch.device) -> Walk:
    state = _states(problem, config)
    pattern, patterns = _patterns(problem, config, state)
    patterns = torch.cat([patterns, torch.ones_like(patterns[:1])])
    pattern = np.select([state == _WHOLE, state == _PARTIAL], [len(patterns) - 1, pattern], -1)
    table = torch.from_numpy(pattern.astype(np.int32))
    return Walk("blocks", False, table=table.to(device), patterns=patterns.to(device))


def _states(problem: Problem, config: Config) -> Ints:
    """What each block of the (M, N) plane is. One that reaches past the end is partial."""
    p, block_m, block_n = problem, config.block_m, config.block_n
    plan = p.mask.blocks(p.seqlen_q, p.seqlen_k, block_m, block_n)
    state = np.zeros(plan.indices.shape, dtype=np.int64)
    for row, count in enumerate(plan.counts):
        inside = (plan.indices[row, :count] + 1) * block_n <= p.seqlen_k
        inside &= (row + 1) * block_m <= p.seqlen_q
        is_whole = plan.full[row, :count] & inside
        state[row, plan.indices[row, :count]] = np.where(is_whole, _WHOLE, _PARTIAL)
    return state


def _patterns(problem: Problem, config: Config, state: Ints) -> tuple[Ints, torch.Tensor]:
    """The pattern of each partial block, and the patterns: few, because masks repeat."""
    p, block_m, block_n = problem, config.block_m, config.block_n
    allows = p.mask.mask_mod(p.seqlen_q, p.seqlen_k)
    n = torch.arange(p.seqlen_k)
    pattern = np.zeros_like(state)
    numbers: dict[bytes, int] = {}
    for row, states in enumerate(state):
        m = torch.arange(row * block_m, min((row + 1) * block_m, p.seqlen_q))
        visible_mN = np.zeros((block_m, len(states) * block_n), dtype=np.uint8)
        visible_mN[: len(m), : len(n)] = allows(0, 0, m[:, None], n[None, :]).numpy()
        for column in np.flatnonzero(states == _PARTIAL):
            tile = visible_mN[:, column * block_n : (column + 1) * block_n].tobytes()
            pattern[row, column] = numbers.setdefault(tile, len(numbers))
    tiles = [np.frombuffer(tile, dtype=np.uint8) for tile in numbers or (bytes(block_m * block_n),)]
    return pattern, torch.from_numpy(np.stack(tiles).reshape(-1, block_m, block_n))
