"""Who does what, and when: the integer arithmetic of the kernel, and nothing else.

Producer and consumers never tell each other which block is in which buffer: each computes
it, by the functions below, and they must agree. The functions are plain arithmetic, so that
the same source can be run as Python and tested without a GPU. Divisions have operands that
are not negative: there Triton's ``//`` and Python's are the same.

A **tile** is BLOCK_M query rows of one head; a **block** BLOCK_N keys; a **turn** the work of
a program on one tile. A **step** counts the blocks that a program has gone through in all its
turns: it never starts again at 0, and so names a buffer of the ring, and a phase of its
barriers, for the whole life of the program.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def slot_of(step, STAGES: gl.constexpr):
    """The buffer of the ring in which a step's block lies, and the phase of its barriers.

    A barrier goes through phases 0, 1, 2, …, and can be asked only whether the phase of a
    given *parity* is over. The ring comes to a buffer again after STAGES steps: one phase later.
    """
    return step % STAGES, (step // STAGES) & 1


@gluon.jit
def tile_of(turn, program, programs):
    """The tile of a program's turn, in the order of ``place_of``.

    Every other round of turns goes backwards. Tiles are in order of weight, so a program
    that had the heaviest tile of one round has the lightest of the next.
    """
    return turn * programs + (program if turn % 2 == 0 else programs - 1 - program)


@gluon.jit
def turns_of(program, programs, tiles):
    """How many tiles a program does: in the last round not every program may have one."""
    rounds = tiles // programs
    return rounds + (1 if tile_of(rounds, program, programs) < tiles else 0)


@gluon.jit
def place_of(tile, tiles_of_head, heads, heads_together):
    """Of which rows and which head a tile is: the number of the tile in its head, the head.

    Heads are taken ``heads_together`` at a time, so that their keys and values stay in the L2
    cache; among those the last rows come first, which see the most keys of a causal mask.
    """
    section = tile // (tiles_of_head * heads_together)
    first = section * heads_together
    width = min(heads_together, heads - first)  # the last section may be narrower
    rank = tile - first * tiles_of_head
    return tiles_of_head - 1 - rank // width, first + rank % width


@gluon.jit
def blocks_of(
    start, seqlen_q, seqlen_k, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, CAUSAL: gl.constexpr
):
    """How many blocks of keys the tile of rows ``start …`` visits, and how many need a mask.

    They are visited from the last to the first, so that those that need a mask come before
    all others. The first one visited always has it: so the end of the keys is never
    overrun, and a tile that sees nothing visits one block, and sees nothing in it.
    """
    seen_by_first = seqlen_k
    seen_by_last = seqlen_k
    if CAUSAL:
        shift = seqlen_k - seqlen_q
        seen_by_first = max(start + 1 + shift, 0)
        seen_by_last = max(min(start + BLOCK_M, seqlen_q) + shift, 0)
    blocks = max((seen_by_last + BLOCK_N - 1) // BLOCK_N, 1)
    return blocks, blocks - min(seen_by_first // BLOCK_N, blocks - 1)


@gluon.jit
def keys_seen_by(m, seqlen_q, seqlen_k, CAUSAL: gl.constexpr):
    """How many keys, from the first on, query row m sees; negative if it sees none.

    Causal is aligned bottom-right: the last query sees every key. A row past the end of the
    queries, which is computed and not stored, may be said to see more than there are.
    """
    return m + (seqlen_k - seqlen_q + 1) if CAUSAL else m * 0 + seqlen_k
