"""Cuts a mask into tiles.

A tile is some queries and every key that one of them may see. What a mask scatters at
regular distances (each ``mask.period``-th key) has no small tiles in the natural order;
those pairs are planned in the order of remainders, where they lie side by side, as a part
of their own.

Letters: M = seqlen_q, N = seqlen_k; m = queries of one tile, n = its keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from attnbench import Problem

from .tiles import Hidden, Part, Tile

Allows = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(query places (m, 1), key places (1, n)) → bool (m, n), True = may attend."""

_LEAST_REPEATS = 16  # of a period in the sequence, for an order of its own to pay
_MOST_RUNS = 2  # of keys that some query of a tile does not see; more are taken as one


def plan(problem: Problem, device: torch.device, block: int) -> tuple[Part, ...]:
    """The parts of a problem's mask, in tiles of at most ``block`` queries."""
    p = problem
    allows = p.mask.mask_mod(p.seqlen_q, p.seqlen_k)
    period, offset = p.mask.period, p.seqlen_k - p.seqlen_q

    def all_pairs(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        seen: torch.Tensor = allows(0, 0, q, k)
        return seen

    if period == 1 or p.seqlen_k < _LEAST_REPEATS * period:
        return (_natural(p, all_pairs, block, device),)

    def apart(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return all_pairs(q, k) & ((q + offset - k) % period != 0)

    parts = (_by_remainder(p, all_pairs, block, device), _natural(p, apart, block, device))
    return tuple(part for part in parts if part.tiles) or parts[:1]


def _natural(p: Problem, allows: Allows, block: int, device: torch.device) -> Part:
    """Queries as they come. Keys are looked for in the mask's intervals, if it has any."""
    bounds = p.mask.bounds(p.seqlen_q, p.seqlen_k)
    q_index_M, k_index_N = (torch.arange(n, dtype=torch.int32) for n in (p.seqlen_q, p.seqlen_k))
    maker = _Maker(allows, device)
    for rows in _blocks(0, p.seqlen_q, block):
        first, last = 0, p.seqlen_k
        if bounds is not None:
            low, high = (end[rows] for end in bounds)
            sees = high > low
            if not sees.any():
                continue
            first, last = int(low[sees].min()), int(high[sees].max())
        maker.add(rows, q_index_M[rows], k_index_N[first:last], first)
    return Part(None, tuple(maker.tiles))


def _by_remainder(p: Problem, allows: Allows, block: int, device: torch.device) -> Part:
    """Queries sorted by their position's remainder, with the keys of the same remainder."""
    period, offset = p.mask.period, p.seqlen_k - p.seqlen_q
    remainder_M = (torch.arange(p.seqlen_q) + offset) % period
    remainder_N = torch.arange(p.seqlen_k) % period
    order = tuple(x.sort(stable=True).indices for x in (remainder_M, remainder_N))
    queries, keys = (torch.bincount(x, minlength=period) for x in (remainder_M, remainder_N))
    maker = _Maker(allows, device)
    first = start = 0
    for own_queries, own_keys in zip(queries.tolist(), keys.tolist(), strict=True):
        k_index_n = order[1][first : first + own_keys].int()
        for rows in _blocks(start, start + own_queries, block):
            maker.add(rows, order[0][rows].int(), k_index_n, first)
        start, first = start + own_queries, first + own_keys
    return Part((order[0].to(device), order[1].to(device)), tuple(maker.tiles))


def _blocks(start: int, stop: int, block: int) -> list[slice]:
    return [slice(i, min(i + block, stop)) for i in range(start, stop, block)]


class _Maker:
    """Makes tiles. Masks repeat, and so tiles share what they hide."""

    def __init__(self, allows: Allows, device: torch.device) -> None:
        self.allows = allows
        self.device = device
        self.tiles: list[Tile] = []
        self.apart = 0  # the first query of the last tile, from its first key
        self.known: dict[Any, torch.Tensor] = {}

    def add(self, rows: slice, q_index_m: torch.Tensor, k_index_n: torch.Tensor, at: int) -> None:
        """Add the tile of some queries, if they see any of some keys.

        Args:
            rows: where the queries lie in the part's order.
            q_index_m, k_index_n: what the predicate is asked about.
            at: where the first of the keys lies in the part's order.
        """
        visible_mn = self.allows(q_index_m[:, None], k_index_n[None, :])
        visible_mn = visible_mn.expand(len(q_index_m), len(k_index_n))
        seen_n = visible_mn.any(dim=0).nonzero().flatten()
        count = len(seen_n)
        if count == 0:
            return
        first, last = int(seen_n[0]), int(seen_n[-1]) + 1
        keys: slice | torch.Tensor = slice(at + first, at + last)
        if last - first == count:
            visible_mn = visible_mn[:, first:last]
        else:  # any order will do: what is visible to all comes first
            seen_n = seen_n[(~visible_mn[:, seen_n].all(dim=0)).sort(stable=True).indices]
            keys, visible_mn = (seen_n + at).to(self.device), visible_mn[:, seen_n]
        hidden = tuple(
            Hidden(run, self._shared(~visible_mn[:, run])) for run in _runs(visible_mn.all(dim=0))
        )
        has_blind = not bool(visible_mn.any(dim=1).all())
        tile = Tile(rows, keys, count, hidden, has_blind)
        before, self.apart = self.apart, int(q_index_m[0]) - int(k_index_n[first])
        # From one remainder to the next, tiles can move alike while their distances do not.
        if self.tiles and before == self.apart and self.tiles[-1].goes_on_as(tile):
            self.tiles[-1] = replace(self.tiles[-1], repeats=self.tiles[-1].repeats + 1)
        else:
            self.tiles.append(tile)

    def _shared(self, pairs_mn: torch.Tensor) -> torch.Tensor:
        key = (pairs_mn.shape, pairs_mn.numpy().tobytes())
        if key not in self.known:
            self.known[key] = pairs_mn.contiguous().to(self.device)
        return self.known[key]


def _runs(is_whole_n: torch.Tensor) -> list[slice]:
    """Where keys lie that are not visible to all."""
    partial = (~is_whole_n).nonzero().flatten().tolist()
    if not partial:
        return []
    starts = [i for i, before in zip(partial, [-2, *partial], strict=False) if i != before + 1]
    if len(starts) > _MOST_RUNS:
        return [slice(partial[0], partial[-1] + 1)]
    stops = [i + 1 for i, after in zip(partial, [*partial[1:], -2], strict=True) if i + 1 != after]
    return [slice(*ends) for ends in zip(starts, stops, strict=True)]
