"""Tile sizes and launch options, by head dimension, dtype and kernel.

Chosen so that every kernel fits the 99 KiB of shared memory of sm_86 and sm_89 (Ada) and
most of the registers; larger tiles pay on sm_90 and are a matter of tuning.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """How one kernel is cut up: rows × keys of a tile, warps, stages of the load pipeline."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


# By the larger of head_dim and head_dim_v, padded: (forward, dK/dV, dQ).
_HALF = {
    32: (Config(128, 64, 4, 3), Config(64, 128, 8, 2), Config(128, 64, 4, 3)),
    64: (Config(128, 64, 8, 3), Config(32, 128, 8, 2), Config(128, 64, 8, 2)),
    128: (Config(128, 64, 8, 2), Config(32, 128, 8, 2), Config(128, 32, 8, 2)),
    256: (Config(64, 32, 8, 2), Config(32, 32, 8, 1), Config(32, 32, 8, 1)),
}
_SINGLE = {
    32: (Config(64, 64, 4, 2), Config(32, 64, 4, 2), Config(64, 32, 4, 2)),
    64: (Config(64, 32, 8, 2), Config(32, 32, 4, 2), Config(32, 32, 4, 2)),
    128: (Config(32, 32, 8, 2), Config(32, 32, 8, 1), Config(32, 16, 8, 1)),
    256: (Config(16, 16, 4, 2), Config(16, 16, 8, 1), Config(16, 16, 4, 1)),
}
# In the interpreter an operation costs the same whatever the tile; small enough that the
# small problems of tests still have several tiles, and not square, so that M is not N.
_INTERPRETED = (Config(64, 32, 1, 1), Config(32, 64, 1, 1), Config(64, 32, 1, 1))


@dataclass(frozen=True)
class Configs:
    """The configuration of each kernel of one problem."""

    forward: Config
    dkdv: Config
    dq: Config


def configs(dim: int, element_bytes: int, *, interpreted: bool = False) -> Configs:
    """The configurations for a head dimension and a size of an element.

    Args:
        dim: the larger of head_dim and head_dim_v, at most 256.
        element_bytes: of q, k and v: 1, 2 or 4.
        interpreted: for Triton's interpreter.
    """
    if interpreted:
        return Configs(*_INTERPRETED)
    table = _SINGLE if element_bytes == 4 else _HALF
    return Configs(*table[max(32, padded(dim))])


_FEW_QUERIES = 16
_MOST_ROWS = 64  # of a decode tile
_MOST_SHARES = 128  # which one program merges
_PROGRAMS_PER_PROCESSOR = 2


def decode_config(seqlen_q: int, group: int, dim: int, element_bytes: int) -> Config | None:
    """The configuration for splitting keys among programs, or None where queries are not few.

    Args:
        seqlen_q: number of queries.
        group: query heads that share a key head; their rows are one tile.
        dim: the larger of head_dim and head_dim_v.
        element_bytes: of q, k and v.
    """
    if seqlen_q > _FEW_QUERIES or seqlen_q * group > _MOST_ROWS:
        return None
    tile = 2048 if element_bytes == 4 else 8192  # elements; float32 products need registers
    block_n = max(16, min(64, tile // padded(dim)))
    return Config(padded(seqlen_q * group), block_n, 4, 2)


def shares_of(seqlen_k: int, block_n: int, heads: int, processors: int) -> int:
    """Among how many programs the keys of a head are split, so that every processor has some.

    Args:
        seqlen_k: number of keys.
        block_n: keys that a program takes at once.
        heads: batch × heads_kv.
        processors: streaming multiprocessors of the device.
    """
    wanted = -(-processors * _PROGRAMS_PER_PROCESSOR // heads)
    return max(1, min(wanted, -(-seqlen_k // block_n), _MOST_SHARES))


def padded(dim: int, element_bytes: int = 2) -> int:
    """The tile's width for a head dimension: a power of two that tensor cores take.

    That is at least 16, and at least 32 bytes where they sum over it.
    """
    return max(16, 32 // element_bytes, 1 << (dim - 1).bit_length())
