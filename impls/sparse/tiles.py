"""What has to be computed under a mask: tiles of queries, each with the keys that it sees.

The keys are a slice where they lie side by side, a list where they do not. ``plan`` makes
tiles, ``views`` reads and writes what they name.

Letters: M = seqlen_q, N = seqlen_k; m = queries of one tile, n = its keys.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Hidden:
    """Some keys of a tile that not every query of it may see.

    Attributes:
        keys: which, as a slice of the tile's keys.
        pairs_mn: bool, True = may not attend.
    """

    keys: slice
    pairs_mn: torch.Tensor


@dataclass(frozen=True)
class Tile:
    """Queries that lie side by side in the order of their part, and the keys they see.

    Along a band one tile is like the next: then it stands for several, each as many keys
    further on as it is queries.

    Attributes:
        rows: the queries.
        keys: the keys, a slice or an int64 tensor ``(n,)``.
        count: of the keys.
        hidden: the pairs to mask; no two overlap.
        has_blind: whether a query sees none of the keys.
        repeats: how many tiles it stands for; with a slice of keys only.
    """

    rows: slice
    keys: slice | torch.Tensor
    count: int
    hidden: tuple[Hidden, ...]
    has_blind: bool
    repeats: int = 1

    @property
    def height(self) -> int:
        """Queries of one of its tiles."""
        return int(self.rows.stop - self.rows.start)

    def some(self, first: int, repeats: int) -> Tile:
        """Some of the tiles it stands for."""
        if repeats == self.repeats:
            return self
        assert isinstance(self.keys, slice)
        step = first * self.height
        return replace(
            self, rows=_moved(self.rows, step), keys=_moved(self.keys, step), repeats=repeats
        )

    def goes_on_as(self, other: Tile) -> bool:
        """Whether another tile is the next of those that this one stands for."""
        if not (isinstance(self.keys, slice) and isinstance(other.keys, slice)):
            return False
        step = self.repeats * self.height
        return (
            (_moved(self.rows, step), _moved(self.keys, step)) == (other.rows, other.keys)
            and len(self.hidden) == len(other.hidden)
            and all(
                mine.keys == its.keys and mine.pairs_mn is its.pairs_mn
                for mine, its in zip(self.hidden, other.hidden, strict=True)
            )
        )


@dataclass(frozen=True)
class Part:
    """Tiles in one order of the sequence; each pair of the mask is in one part only.

    Attributes:
        order: indices of queries ``(M,)`` and keys ``(N,)`` in this order; None = natural.
        tiles: no query is in two of them; one that sees nothing may be in none.
    """

    order: tuple[torch.Tensor, torch.Tensor] | None
    tiles: tuple[Tile, ...]

    @property
    def pairs(self) -> int:
        """(query, key) pairs computed, masked ones inside the tiles included."""
        return sum(tile.repeats * tile.height * tile.count for tile in self.tiles)


def _moved(where: slice, step: int) -> slice:
    return slice(where.start + step, where.stop + step)
