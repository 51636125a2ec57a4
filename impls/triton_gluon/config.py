"""Tile sizes, by head dimension: what fits shared memory and registers, compiled and seen."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """How the work is cut up.

    Attributes:
        block_m: query rows of a tile, half of them for each consumer.
        block_n: keys of a block.
        stages: blocks of keys, and of values, that shared memory holds.
        consumer_registers, producer_registers: a thread.
    """

    block_m: int
    block_n: int
    stages: int
    consumer_registers: int = 240
    producer_registers: int = 24


_DIMS = (64, 128, 256)
LARGEST_DIM = _DIMS[-1]

# By the larger of head_dim and head_dim_v, padded. A consumer's thread holds (block_n + dim) / 2
# float32 of logits and output, and twice block_n / 4 registers of weights.
_CONFIGS = {
    64: Config(block_m=128, block_n=128, stages=4),
    128: Config(block_m=128, block_n=128, stages=2),
    256: Config(block_m=128, block_n=64, stages=2),
}


def padded(dim: int) -> int:
    """The width of a buffer for a head dimension of at most :data:`LARGEST_DIM`."""
    return next(width for width in _DIMS if dim <= width)


def config_of(head_dim: int, head_dim_v: int) -> Config:
    """The configuration for head dimensions of at most :data:`LARGEST_DIM`."""
    return _CONFIGS[padded(max(head_dim, head_dim_v))]
