"""What one step reads and writes of whole sequences, as views where keys lie side by side.

A step is one tile for some heads, or some tiles of a band for one head; either way x
matrices, the same for each. The tiles of a band share keys: a view overlaps itself there,
and gradients are added in strips that do not.

Letters: X = batch · heads_kv, R = query heads that share a key head, M = seqlen_q,
N = seqlen_k, D = any head dimension; m and n are those of one tile, x the matrices.
"""

from __future__ import annotations

import torch

from .tiles import Tile


def rows_of(x_XRMD: torch.Tensor, tile: Tile, heads: slice) -> torch.Tensor:
    """The queries of a step, a view ``(x, R, m, D)``."""
    if tile.repeats == 1:
        return x_XRMD[heads, :, tile.rows]
    start, height = tile.rows.start, tile.height
    own_RMD = x_XRMD[heads.start, :, start : start + tile.repeats * height]
    return own_RMD.unfold(1, height, height).permute(1, 0, 3, 2)


def keys_of(x_XND: torch.Tensor, tile: Tile, heads: slice) -> torch.Tensor:
    """The keys of a step, ``(x, n, D)``; not to be written to."""
    if isinstance(tile.keys, torch.Tensor):
        return x_XND[heads].index_select(1, tile.keys)
    if tile.repeats == 1:
        return x_XND[heads, tile.keys]
    return _strips(x_XND, tile, heads, 0, tile.count)


def add_keys(total_XND: torch.Tensor, tile: Tile, heads: slice, own_xnD: torch.Tensor) -> None:
    """Add to the keys of a step what belongs to each of :func:`keys_of`."""
    if isinstance(tile.keys, torch.Tensor):
        total_XND[heads].index_add_(1, tile.keys, own_xnD)
    elif tile.repeats == 1:
        total_XND[heads, tile.keys] += own_xnD
    else:
        for first in range(0, tile.count, tile.height):
            last = min(first + tile.height, tile.count)
            _strips(total_XND, tile, heads, first, last).add_(own_xnD[:, first:last])


def _strips(x_XND: torch.Tensor, tile: Tile, heads: slice, first: int, last: int) -> torch.Tensor:
    """Of the keys of each tile those from ``first`` to ``last``, for one head: ``(x, n, D)``."""
    assert isinstance(tile.keys, slice)
    start, height = tile.keys.start, tile.height
    own_ND = x_XND[heads.start, start + first : start + (tile.repeats - 1) * height + last]
    return own_ND.unfold(0, last - first, height).mT


def times(left_xRmn: torch.Tensor, right_xnD: torch.Tensor) -> torch.Tensor:
    """``(x, R, m, n) @ (x, n, D)``, rows of heads that share keys in one product."""
    group, rows = left_xRmn.shape[1:3]
    out_xrD = torch.bmm(left_xRmn.flatten(1, 2), right_xnD)
    return out_xrD.view(len(out_xrD), group, rows, -1)


def transposed_times(left_xRmn: torch.Tensor, right_xRmD: torch.Tensor) -> torch.Tensor:
    """``Σ over R and m``: ``(x, n, D)``."""
    return torch.bmm(left_xRmn.flatten(1, 2).mT, right_xRmD.flatten(1, 2))
