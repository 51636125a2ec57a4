"""What one step reads and writes of whole matrices of pairs: a learned bias, its gradient.

Views where queries and keys lie side by side, of a band's tiles too; a list of pairs where
they do not. One bias is for all batch entries: what a step has of several of them reads
the same pairs, and is added up there, entry by entry.

Letters: H = heads_q, G = heads_kv, R = query heads that share a key head, M = seqlen_q,
N = seqlen_k, P = M · N; x = heads of all entries, or tiles, of a step (see ``steps``),
g = key heads of one entry, t = tiles, m and n = queries and keys of one tile, p = t · m · n.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .tiles import Part, Tile


def by_key_head(x_HMN: torch.Tensor, heads_kv: int) -> torch.Tensor:
    """``(G, R, M, N)``, a view; but a copy where pairs do not lie evenly in memory."""
    x_GRP = torch.unflatten(x_HMN, 0, (heads_kv, -1)).flatten(2)
    return torch.unflatten(x_GRP, 2, x_HMN.shape[1:])


def add_bias(
    logits_xRmn: torch.Tensor, bias_GRMN: torch.Tensor, part: Part, tile: Tile, heads: slice
) -> None:
    """Add to the logits of a step what the bias is for its pairs."""
    listed_p = _listed(part, tile, bias_GRMN)
    for own, shared in _entries(heads, len(bias_GRMN), tile.repeats):
        bias_gRMN, own_xRmn = bias_GRMN[shared], logits_xRmn[own]
        if listed_p is None:
            own_xRmn += _view(bias_gRMN, tile)
            continue
        bias_gRP = bias_gRMN.view(*bias_gRMN.shape[:2], -1)
        bias_gRp = bias_gRP.gather(2, listed_p.expand(*bias_gRP.shape[:2], -1))
        bias_gRtmn = torch.unflatten(bias_gRp, 2, (tile.repeats, *own_xRmn.shape[2:]))
        own_xRmn += bias_gRtmn.movedim(2, 1).flatten(0, 1)


def add_pairs(
    total_GRMN: torch.Tensor, part: Part, tile: Tile, heads: slice, step_xRmn: torch.Tensor
) -> None:
    """Add to the bias's gradient that of a step's logits."""
    listed_p = _listed(part, tile, total_GRMN)
    for own, shared in _entries(heads, len(total_GRMN), tile.repeats):
        total_gRMN, own_xRmn = total_GRMN[shared], step_xRmn[own]
        if listed_p is None:
            _view(total_gRMN, tile).add_(own_xRmn)
            continue
        total_gRP = total_gRMN.view(*total_gRMN.shape[:2], -1)
        own_gRtmn = torch.unflatten(own_xRmn, 0, (len(total_gRP), -1)).movedim(1, 2)
        places_gRp = listed_p.expand(*total_gRP.shape[:2], -1)  # no pair is in two tiles
        total_gRP.scatter_add_(2, places_gRp, own_gRtmn.flatten(2))


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


def _listed(part: Part, tile: Tile, x_GRMN: torch.Tensor) -> torch.Tensor | None:
    """The pairs of a step as places in P, of queries and keys as the sequence has them.

    None where views do.
    """
    if part.order is None and isinstance(tile.keys, slice):
        return None
    device = x_GRMN.device
    queries_tm = _indices(_along(tile.rows, tile), device).view(tile.repeats, -1)
    if isinstance(tile.keys, slice):
        keys_tn = _indices(_along(tile.keys, tile), device).unfold(0, tile.count, tile.height)
    else:
        keys_tn = tile.keys[None]
    if part.order is not None:
        queries_tm, keys_tn = part.order[0][queries_tm], part.order[1][keys_tn]
    return (queries_tm[:, :, None] * x_GRMN.shape[-1] + keys_tn[:, None]).flatten()


def _along(where: slice, tile: Tile) -> slice:
    """From the first of a band's tiles to the last."""
    return slice(where.start, where.stop + (tile.repeats - 1) * tile.height)


def _indices(where: slice, device: torch.device) -> torch.Tensor:
    return torch.arange(where.start, where.stop, device=device)
