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

from .tables import BACKWARD, biased

Schedule = Literal["tiles", "persistent", "specialized"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
"""A program for each tile; programs that walk over tiles; loads by a warp of their own."""

Kernel = Literal["forward", "dkdv", "dq"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)

Target = Literal["sm_80", "sm_89", "sm_90", "sm_100", "gfx942", "interpreter"]
TARGETS: tuple[Target, ...] = get_args(Target)[:-1]
"""The GPUs among them, whose configurations were chosen by compiling for them."""


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


def configs(dim: int, element_bytes: int, target: Target, bias: bool = False) -> Configs:
    """The first candidate of each kernel; arguments as for ``candidates``."""
    return Configs(*(candidates(kernel, dim, element_bytes, target, bias)[0] for kernel in KERNELS))


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
_WIDEST_WALK = {"sm_90": 128}  # elsewhere 64


def candidates(
    kernel: Kernel, dim: int, element_bytes: int, target: Target, bias: bool = False
) -> tuple[Config, ...]:
    """Every configuration that a kernel may run in; the first is the one when nothing was tuned.

    Args:
        kernel: whose.
        dim: the larger of head_dim and head_dim_v, at most 256.
        element_bytes: of q, k and v: 1 (the forward alone), 2 or 4.
        target: architecture, or the interpreter.
        bias: whether logits have a learned bias.
    """
    if target == "interpreter":
        return tuple(_interpreted(kernel, element_bytes))
    if kernel == "forward":
        return tuple(dict.fromkeys(_of_forward(dim, element_bytes, target, bias)))
    width = max(64, padded(dim))
    cuts = BACKWARD[kernel, target][max(2, element_bytes), width]
    if bias and element_bytes <= 2:
        cuts = (biased(kernel, target, width), *cuts)
    return tuple(Config(*cut) for cut in dict.fromkeys(cuts))


def _interpreted(kernel: Kernel, element_bytes: int) -> Iterator[Config]:
    first = _INTERPRETED[kernel]
    yield first
    if kernel == "forward":
        yield dataclasses.replace(first, schedule="persistent")
        if element_bytes > 1:  # the specialised kernel does not widen values of 8 bits
            yield dataclasses.replace(first, schedule="specialized")


def _of_forward(dim: int, element_bytes: int, target: Target, bias: bool) -> Iterator[Config]:
    width = max(32, padded(dim))
    first = (_FORWARD_SINGLE if element_bytes == 4 else _FORWARD_HALF)[width]
    if bias and element_bytes <= 2:
        usual, first = first, Config(*biased("forward", target, width))
        yield from (first, usual)
    yield first
    # float32 has few registers to spare: its tiles stay as they are
    for config in _FORWARD[width] if element_bytes <= 2 else ():
        is_loaded = target in _FROM_SHARED or config.block_n * width <= _LARGEST_LOADED
        if is_loaded and _shared_bytes(config, width, element_bytes) <= _SHARED[target]:
            yield config
    if width <= _WIDEST_WALK.get(target, 64):
        yield dataclasses.replace(first, schedule="persistent")
    if width <= _WIDEST_SPECIALIZED.get(target, 0) and element_bytes == 2:
        for block_m, block_n, stages in _SPECIALIZED[width]:
            yield Config(block_m, block_n, _SPECIALIZED_WARPS[target], stages, "specialized")


def _shared_bytes(config: Config, width: int, element_bytes: int) -> int:
    """About what the loads in flight, and the tile that stays, take of shared memory."""
    pairs = config.block_m + 2 * config.num_stages * config.block_n
    return pairs * width * element_bytes


def why_not(
    config: Config, form: str, dropout: bool, bias: bool, row_bytes: tuple[int, ...]
) -> str | None:
    """Why a problem cannot have a configuration, in a few words; None if it can.

    Args:
        config: of the forward.
        form: how the mask reaches the kernels, as in ``masks``.
        dropout: whether weights are dropped.
        bias: whether logits have a learned bias.
        row_bytes: of a row of q, of k and of v.
    """
    if config.schedule != "specialized":
        return None
    if form != "band":
        return f"a mask by {form} needs loads that no producer can make"
    if bias:
        return "a learned bias needs loads that no producer can make"
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
    block_m = padded(seqlen_q * group)
    # The same for all targets, none of which it makes spill. Exact float32 products pass
    # through registers: eight warps have enough, at head_dim 256 without loads ahead.
    if element_bytes == 4:
        return Config(block_m, block_n, 8, 1 if padded(dim) == 256 else 2)
    return Config(block_m, block_n, 4, 2)


def dbias_config(dim: int, element_bytes: int, target: Target) -> Config:
    """The tile of a learned bias whose gradient a program owns.

    Args:
        dim: the larger of head_dim and head_dim_v.
        element_bytes: of q, k and v: 2 or 4.
        target: architecture, or the interpreter.
    """
    if target == "interpreter":
        return _INTERPRETED["dq"]
    if element_bytes == 4:
        return Config(32, 32, 4 if target == "gfx942" else 8, 1)
    return Config(*biased("dbias", target, max(64, padded(dim))))


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
