"""What one step reads and writes of whole matrices of pairs: a learned bias, its gradient.

Views where queries and keys lie side by side, of a band's tiles too; places in the sequence
where they do not. One bias is for all batch entries: what a step has of several of them
reads the same pairs, and is added up there, entry by entry.

Letters: G = heads_kv, R = query heads that share a key head, M = seqlen_q, N = seqlen_k;
x = heads of all entries, or tiles, of a step (see ``views``), g = key heads of one entry,
t = tiles, m and n = queries and keys of one tile.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .tiles import Part, Tile


def add_bias(
    logits_xRmn: torch.Tensor, bias_GRMN: torch.Tensor, part: Part, tile: Tile, heads: slice
) -> None:
    """Add to the logits of a step what the bias is for its pairs."""
    places = _places(part, tile, bias_GRMN.device)
    for own, shared in _entries(heads, len(bias_GRMN), tile.repeats):
        if places is None:
            logits_xRmn[own] += _view(bias_GRMN[shared], tile)
        else:
            bias_gRtmn = bias_GRMN[shared][:, :, places[0], places[1]]
            logits_xRmn[own] += bias_gRtmn.movedim(2, 1).flatten(0, 1)


def add_pairs(
    total_GRMN: torch.Tensor, part: Part, tile: Tile, heads: slice, own_xRmn: torch.Tensor
) -> None:
    """Add to the bias's gradient that of a step's logits."""
    places = _places(part, tile, total_GRMN.device)
    for own, shared in _entries(heads, len(total_GRMN), tile.repeats):
        total_gRMN = total_GRMN[shared]
        if places is None:
            _view(total_gRMN, tile).add_(own_xRmn[own])
        else:  # no pair is in two tiles of a step
            own_gtRmn = torch.unflatten(own_xRmn[own], 0, (len(total_gRMN), -1))
            total_gRMN[:, :, places[0], places[1]] += own_gtRmn.movedim(1, 2)


def _entries(heads: slice, count: int, repeats: int) -> Iterator[tuple[slice, slice]]:
    """Of each batch entry in a step: which of the step's x, and which of ``count`` key heads."""
    start = heads.start
    while start < heads.stop:
        first = start % count
        stop = min(start - first + count, heads.stop)
        own = slice((start - heads.start) * repeats, (stop - heads.start) * repeats)
        yield own, slice(first, first + stop - start)
        start = stop


def _view(x_gRMN: torch.Tensor, tile: Tile) -> torch.Tensor:
    """The pairs of some heads of one tile, or of one head of some: a view ``(x, R, m, n)``."""
    assert isinstance(tile.keys, slice)
    tiles_gRtNm = x_gRMN[:, :, _along(tile.rows, tile), _along(tile.keys, tile)].unfold(
        2, tile.height, tile.height
    )
    band_gRmnt = tiles_gRtNm.unfold(3, tile.count, tile.height).diagonal(dim1=2, dim2=3)
    return band_gRmnt.movedim(-1, 1).flatten(0, 1)  # g or t is 1, so that this is no copy


def _places(
    part: Part, tile: Tile, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Places in the sequence of queries ``(t, m, 1)`` and keys ``(t, 1, n)``; None: views do."""
    if part.order is None and isinstance(tile.keys, slice):
        return None
    queries_tm = _indices(_along(tile.rows, tile), device).view(tile.repeats, -1)
    if isinstance(tile.keys, slice):
        keys_tn = _indices(_along(tile.keys, tile), device).unfold(0, tile.count, tile.height)
    else:
        keys_tn = tile.keys[None]
    if part.order is not None:
        queries_tm, keys_tn = part.order[0][queries_tm], part.order[1][keys_tn]
    return queries_tm[:, :, None], keys_tn[:, None]


def _along(where: slice, tile: Tile) -> slice:
    """From the first of a band's tiles to the last."""
    return slice(where.start, where.stop + (tile.repeats - 1) * tile.height)


def _indices(where: slice, device: torch.device) -> torch.Tensor:
    return torch.arange(where.start, where.stop, device=device)
