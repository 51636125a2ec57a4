"""Tile sizes and launch options, by kernel, head dimension, size of an element and target.

A target is a GPU whose configurations were chosen by compiling for it: see ``target_of``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from .tables import BACKWARD

Kernel = Literal["forward", "dkdv", "dq"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)

Target = Literal["sm_80", "sm_89", "sm_90", "sm_100", "gfx942", "interpreter"]
TARGETS: tuple[Target, ...] = get_args(Target)[:-1]
"""The GPUs among them."""


@dataclass(frozen=True)
class Config:
    """How one kernel is cut up: rows × keys of a tile, warps, stages of the load pipeline."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


# Of the forward, by the larger of head_dim and head_dim_v, padded. They fit the 99 KiB of
# shared memory of sm_86 and sm_89 (Ada).
_FORWARD_HALF = {
    32: Config(128, 64, 4, 3),
    64: Config(128, 64, 8, 3),
    128: Config(128, 64, 8, 2),
    256: Config(64, 32, 8, 2),
}
_FORWARD_SINGLE = {
    32: Config(32, 32, 8, 1),  # exact products spill where loads run ahead of them
    64: Config(32, 32, 8, 1),
    128: Config(32, 32, 8, 1),
    256: Config(16, 16, 8, 1),
}
# In the interpreter an operation costs the same whatever the tile; small enough that the
# small problems of tests still have several tiles, and not square, so that M is not N.
_INTERPRETED = {
    "forward": Config(64, 32, 1, 1),
    "dkdv": Config(32, 64, 1, 1),
    "dq": Config(64, 32, 1, 1),
}


@dataclass(frozen=True)
class Configs:
    """The configuration of each kernel of one problem."""

    forward: Config
    dkdv: Config
    dq: Config


def target_of(device: torch.device) -> Target:
    """Whose configurations a device takes: a target's name, or ``interpreter`` for a CPU.

    A GPU that is no target takes those of the nearest older one that gives a block no more
    shared memory than it has itself.
    """
    if device.type == "cpu":
        return "interpreter"
    if torch.version.hip is not None:
        return "gfx942"
    major, minor = torch.cuda.get_device_capability(device)
    if major >= 12 or (major, minor) in ((8, 6), (8, 9)):  # 99 KiB a block
        return "sm_89"
    if major >= 10:
        return "sm_100"
    return "sm_90" if major == 9 else "sm_80"


def candidates(kernel: Kernel, dim: int, element_bytes: int, target: Target) -> tuple[Config, ...]:
    """The configurations to choose from, the one to take unless another was measured first.

    Args:
        kernel: whose.
        dim: the larger of head_dim and head_dim_v, at most 256.
        element_bytes: of q, k and v: 2 or 4.
        target: as ``target_of`` tells it.
    """
    if target == "interpreter":
        return (_INTERPRETED[kernel],)
    width = padded(dim)
    if kernel == "forward":
        table = _FORWARD_SINGLE if element_bytes == 4 else _FORWARD_HALF
        return (table[max(32, width)],)
    cuts = BACKWARD[kernel, target][element_bytes, max(64, width)]
    return tuple(Config(*cut) for cut in cuts)


def configs(dim: int, element_bytes: int, target: Target) -> Configs:
    """The first candidate of each kernel; arguments as for ``candidates``."""
    return Configs(*(candidates(kernel, dim, element_bytes, target)[0] for kernel in KERNELS))


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
    tile = 8192 if element_bytes == 2 else 2048  # elements; float32 products need registers
    block_n = max(16, min(64, tile // padded(dim)))
    block_m = padded(seqlen_q * group)
    # The same for all targets, none of which it makes spill. Exact float32 products pass
    # through registers: eight warps have enough, at head_dim 256 without loads ahead.
    if element_bytes == 4:
        return Config(block_m, block_n, 8, 1 if padded(dim) == 256 else 2)
    return Config(block_m, block_n, 4, 2)


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


def padded(dim: int) -> int:
    """The tile's width for a head dimension: a power of two, and at least 16 for tensor cores."""
    return max(16, 1 << (dim - 1).bit_length())
