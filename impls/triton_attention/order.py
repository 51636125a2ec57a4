"""The order in which tiles are worked on: heaviest first, and heads that share keys together.

Under a causal mask the last rows of a head see most. Begun last, they would keep a few
processors busy while the others have nothing left; so of all heads the last rows come first
and the first rows, which are short, fill the gaps at the end. Yet every head whose tiles are
under way has its keys and values in the L2 cache: were all heads of a large batch begun at
once, each tile would find that the others have driven its keys out. So heads are taken in
sections that fit the cache together, and within a section the heads that share a key head are
neighbours, whose tiles read the same keys at nearly the same time.

Letters: as in ``forward``.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile_at(unit, tiles, heads, together):
    """Which tile and which head the unit of work number ``unit`` is.

    Args:
        unit: 0 … tiles · heads − 1; smaller ones are begun earlier.
        tiles: of a head.
        heads: batch × heads_q; the head that is returned counts through both.
        together: heads of a section; the last section may have fewer.
    """
    section = unit // (tiles * together)
    begin = section * together
    here = tl.minimum(together, heads - begin)
    within = unit - begin * tiles
    return tiles - 1 - within // here, begin + within % here
