"""How much of a part is computed at once: small enough for a cache, large enough to be few.

A step is one tile for some heads, or some tiles of a band for one head; its products are x
matrices, the same in shape. A head is one of batch · heads_kv, with the queries that share it.
"""

from __future__ import annotations

from collections.abc import Iterator

from attnbench import Problem

from .tiles import Part, Tile

_LOGITS = 1 << 19  # of one step at most, where heads can be taken in turn: 2 MiB, in a cache


def steps(part: Part, problem: Problem) -> Iterator[tuple[Tile, slice]]:
    """Every tile for every head, as much of them as fits into a step."""
    total, group = problem.batch * problem.heads_kv, problem.heads_q // problem.heads_kv
    for tile in part.tiles:
        fit = max(1, _LOGITS // (group * tile.height * tile.count))
        heads = min(total, fit)
        along = total * -(-tile.repeats // fit) < tile.repeats * -(-total // heads)
        heads, tiles = (1, min(tile.repeats, fit)) if along else (heads, 1)
        for first in range(0, tile.repeats, tiles):
            some = tile.some(first, min(tiles, tile.repeats - first))
            for start in range(0, total, heads):
                yield some, slice(start, min(start + heads, total))
