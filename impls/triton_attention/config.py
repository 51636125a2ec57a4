"""Tile sizes, launch options and schedules, by head dimension, dtype, kernel and target.

The first of a kernel's candidates is what runs when nothing was tuned: chosen so that every
kernel fits the 99 KiB of shared memory of sm_86 and sm_89 (Ada) and most of the registers.
Larger tiles and other schedules may pay, on sm_90 above all: ``tuning`` times them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

Schedule = Literal["tiles", "persistent", "specialized"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
"""A program for each tile; programs that walk over tiles; loads by a warp of their own."""

Kernel = Literal["forward", "dkdv", "dq"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)

Target = Literal["sm_80", "sm_89", "sm_90", "sm_100", "gfx942", "interpreter"]


@dataclass(frozen=True)
class Config:
    """How one kernel is cut up: rows × keys of a tile, warps, stages of the load pipeline.

    ``schedule`` is the forward's; every other kernel has a program for each tile.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    schedule: Schedule = "tiles"

    def __str__(self) -> str:
        cut = f"{self.block_m}x{self.block_n} w{self.num_warps} s{self.num_stages}"
        return f"{cut} {self.schedule}"


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


# ---- candidates --------------------------------------------------------------------------

_KIB = 1024
_SHARED = {  # bytes that one block can have
    "sm_80": 163 * _KIB, "sm_89": 99 * _KIB, "sm_90": 227 * _KIB, "sm_100": 227 * _KIB,
    "gfx942": 64 * _KIB,
}  # fmt: skip
# There the tensor cores read keys from shared memory; elsewhere registers have to hold them.
_FROM_SHARED = ("sm_90", "sm_100")
_LARGEST_LOADED = 64 * 128  # elements of a block of keys
# By padded head dimension, 2 bytes an element, beside the first. Only the first is a candidate
# as "persistent" too, and up to 128: a walk takes registers, and the others would spill.
_FORWARD = {
    32: (Config(128, 128, 8, 3), Config(64, 64, 4, 3)),
    64: (Config(128, 64, 4, 3), Config(128, 128, 8, 3), Config(64, 64, 4, 3)),
    128: (Config(128, 64, 8, 3), Config(128, 128, 8, 2), Config(64, 64, 4, 2)),
    256: (Config(64, 64, 8, 2),),
}
_MORE_DKDV = {
    32: (Config(64, 64, 4, 2),),
    64: (Config(64, 128, 8, 2), Config(64, 64, 4, 2)),
    128: (Config(64, 128, 8, 2), Config(64, 64, 8, 2)),
    256: (Config(32, 64, 8, 1),),
}
_MORE_DQ = {
    32: (Config(64, 64, 4, 3),),
    64: (Config(128, 64, 8, 3), Config(64, 64, 4, 2)),
    128: (Config(128, 64, 8, 2), Config(64, 64, 8, 2)),
    256: (Config(64, 32, 8, 1),),
}
# Hopper splits 128 rows of four warps between two warp groups, and leaves eight warps as
# they are; on Blackwell four warps would hold a tile of tensor memory in too few registers.
_SPECIALIZED = {
    32: ((128, 128, 3), (128, 64, 3)),
    64: ((128, 128, 2), (128, 64, 3), (128, 128, 3)),
    128: ((128, 128, 2), (128, 64, 2), (128, 64, 3)),
    256: ((128, 64, 2), (128, 32, 2)),
}
_SPECIALIZED_WARPS = {"sm_90": 4, "sm_100": 8}
_WIDEST_SPECIALIZED = {"sm_90": 256, "sm_100": 128}  # what does not spill
_WIDEST_WALK = 128


def candidates(kernel: Kernel, dim: int, element_bytes: int, target: Target) -> tuple[Config, ...]:
    """Every configuration that a kernel may run in; the first is the one when nothing was tuned.

    Args:
        kernel: whose.
        dim: the larger of head_dim and head_dim_v, at most 256.
        element_bytes: of q, k and v.
        target: architecture, or the interpreter.
    """
    interpreted = target == "interpreter"
    first: Config = getattr(configs(dim, element_bytes, interpreted=interpreted), kernel)
    if interpreted:
        others = SCHEDULES[1:] if kernel == "forward" else ()
        if element_bytes == 1:
            others = others[:1]  # the specialised kernel does not widen values of 8 bits
        return (first, *(dataclasses.replace(first, schedule=schedule) for schedule in others))
    found = (first, *_others(kernel, first, dim, element_bytes, target))
    return tuple(dict.fromkeys(found))


def _others(
    kernel: Kernel, first: Config, dim: int, element_bytes: int, target: Target
) -> Iterator[Config]:
    width = max(32, padded(dim))
    more = {"forward": _FORWARD, "dkdv": _MORE_DKDV, "dq": _MORE_DQ}[kernel][width]
    if element_bytes > 2:  # float32 has few registers to spare: its tiles stay as they are
        more = ()
    fitting = [
        config
        for config in more
        if _shared_bytes(config, width, element_bytes) <= _SHARED[target]
        and (target in _FROM_SHARED or config.block_n * width <= _LARGEST_LOADED)
    ]
    yield from fitting
    if kernel != "forward":
        return
    if width <= _WIDEST_WALK:
        yield dataclasses.replace(first, schedule="persistent")
    if width <= _WIDEST_SPECIALIZED.get(target, 0) and element_bytes == 2:
        for block_m, block_n, stages in _SPECIALIZED[width]:
            yield Config(block_m, block_n, _SPECIALIZED_WARPS[target], stages, "specialized")


def _shared_bytes(config: Config, width: int, element_bytes: int) -> int:
    """About what the loads in flight, and the tile that stays, take of shared memory."""
    pairs = config.block_m + 2 * config.num_stages * config.block_n
    return pairs * width * element_bytes


def why_not(config: Config, form: str, dropout: bool, row_bytes: tuple[int, ...]) -> str | None:
    """Why a problem cannot have a configuration, in a few words; None if it can.

    Args:
        config: of the forward.
        form: how the mask reaches the kernels, as in ``masks``.
        dropout: whether weights are dropped.
        row_bytes: of a row of q, of k and of v.
    """
    if config.schedule != "specialized":
        return None
    if form != "band":
        return f"a mask by {form} needs loads that no producer can make"
    if dropout:
        return "the random numbers of dropout take the registers that a consumer has"
    if any(size % 16 for size in row_bytes):
        return "a descriptor needs rows of a multiple of 16 bytes"
    return None


# ---- decode ------------------------------------------------------------------------------

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
