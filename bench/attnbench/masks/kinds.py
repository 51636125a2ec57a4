"""The kinds of masks. Each defines its predicate once; the rest follows in ``base``.

Letters: M = seqlen_q, N = seqlen_k.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from attnbench.errors import UserError
from attnbench.masks.base import Bools, Coverage, Ints, Mask, Predicate, Table, positions


@dataclass(frozen=True)
class Full(Mask):
    """Every query sees every key."""

    kind: ClassVar[str] = "full"

    def predicate(self, seqlen_q: int, seqlen_k: int, table: Table = np.asarray) -> Predicate:
        return lambda q, k: (q == q) & (k >= 0)  # true everywhere, with both broadcast

    def bounds(self, seqlen_q: int, seqlen_k: int) -> tuple[Ints, Ints]:
        low = np.zeros(seqlen_q, dtype=np.int64)
        return low, low + seqlen_k


@dataclass(frozen=True)
class Causal(Mask):
    """A query sees its own position and what came before it."""

    kind: ClassVar[str] = "causal"

    def predicate(self, seqlen_q: int, seqlen_k: int, table: Table = np.asarray) -> Predicate:
        return lambda q, k: q >= k

    def bounds(self, seqlen_q: int, seqlen_k: int) -> tuple[Ints, Ints]:
        q_pos, _ = positions(seqlen_q, seqlen_k)
        return np.zeros_like(q_pos), np.maximum(q_pos + 1, 0)

    @property
    def is_causal(self) -> bool:
        return True


@dataclass(frozen=True)
class Window(Mask):
    """Sliding window: the ``window`` most recent keys, the query's own among them.

    With ``causal = false`` the window reaches as far ahead as it does back:
    ``|q - k| < window``.
    """

    kind: ClassVar[str] = "window"
    window: int = 256
    causal: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(1, "window")

    def predicate(self, seqlen_q: int, seqlen_k: int, table: Table = np.asarray) -> Predicate:
        if self.causal:
            return lambda q, k: (q >= k) & (q - k < self.window)
        return lambda q, k: (q - k < self.window) & (k - q < self.window)

    def bounds(self, seqlen_q: int, seqlen_k: int) -> tuple[Ints, Ints]:
        q_pos, _ = positions(seqlen_q, seqlen_k)
        ahead = 1 if self.causal else self.window
        high = np.clip(q_pos + ahead, 0, seqlen_k)
        return np.clip(q_pos - self.window + 1, 0, high), high


@dataclass(frozen=True)
class PrefixLM(Mask):
    """Causal, except that everybody sees the first ``prefix`` keys (T5, UniLM)."""

    kind: ClassVar[str] = "prefix"
    prefix: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(1, "prefix")

    def check(self, seqlen_q: int, seqlen_k: int) -> None:
        if self.prefix > seqlen_k:
            raise UserError(f"mask prefix: prefix {self.prefix} is longer than seqlen_k {seqlen_k}")

    def predicate(self, seqlen_q: int, seqlen_k: int, table: Table = np.asarray) -> Predicate:
        return lambda q, k: (q >= k) | (k < self.prefix)

    def bounds(self, seqlen_q: int, seqlen_k: int) -> tuple[Ints, Ints]:
        q_pos, _ = positions(seqlen_q, seqlen_k)
        return np.zeros_like(q_pos), np.maximum(q_pos + 1, self.prefix)


@dataclass(frozen=True)
class Document(Mask):
    """Packed sequences of variable length: nobody looks outside their own document.

    Give the ``lengths`` themselves, or a ``count``: then the lengths are uneven, drawn
    from ``seed`` for whatever seqlen the problem has.
    """

    kind: ClassVar[str] = "document"
    lengths: tuple[int, ...] = ()
    count: int = 0
    causal: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(0, "count", "seed")
        if bool(self.lengths) == bool(self.count):
            raise UserError(
                "mask document: give either lengths or count, "
                f"got lengths {list(self.lengths)} and count {self.count}"
            )
        for length in self.lengths:
            if type(length) is not int or length < 1:
                raise UserError(
                    f"mask document: lengths must be positive whole numbers, got {length!r}"
                )
        if self.lengths and self.seed:
            raise UserError(
                f"mask document: seed {self.seed} has no effect when lengths are given; "
                "leave one out"
            )

    def check(self, seqlen_q: int, seqlen_k: int) -> None:
        if seqlen_q != seqlen_k:
            raise UserError(
                f"mask document: seqlen_q {seqlen_q} and seqlen_k {seqlen_k} must be equal"
            )
        if self.lengths and sum(self.lengths) != seqlen_k:
            raise UserError(
                f"mask document: lengths add up to {sum(self.lengths)}, seqlen is {seqlen_k}"
            )
        if self.count > seqlen_k:
            raise UserError(
                f"mask document: count {self.count} is more than seqlen {seqlen_k} tokens"
            )

    def document_lengths(self, seqlen: int) -> tuple[int, ...]:
        """The length of each document, adding up to ``seqlen``."""
        if self.lengths:
            return self.lengths
        rng = np.random.default_rng([self.seed, seqlen, self.count])
        cuts = np.sort(rng.choice(seqlen - 1, size=self.count - 1, replace=False)) + 1
        return tuple(np.diff([0, *cuts, seqlen]).tolist())

    def predicate(self, seqlen_q: int, seqlen_k: int, table: Table = np.asarray) -> Predicate:
        lengths = self.document_lengths(seqlen_k)
        doc = table(np.repeat(np.arange(len(lengths)), lengths))
        if self.causal:
            return lambda q, k: (doc[q] == doc[k]) & (q >= k)
        return lambda q, k: doc[q] == doc[k]

    def bounds(self, seqlen_q: int, seqlen_k: int) -> tuple[Ints, Ints]:
        lengths = np.asarray(self.document_lengths(seqlen_k), dtype=np.int64)
        ends = np.cumsum(lengths)
        high = np.repeat(ends, lengths)
        low = np.repeat(ends - lengths, lengths)
        return low, (np.arange(seqlen_q, dtype=np.int64) + 1 if self.causal else high)


@dataclass(frozen=True)
class _BlockMask(Mask):
    """Masks that are a table of allowed ``block × block`` squares, cut by causality."""

    block: int = 64
    causal: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(1, "block")
        self._at_least(0, "seed")

    @abstractmethod
    def block_table(self, blocks: int) -> Bools:
        """``(blocks, blocks)``: which squares of the key × key plane are allowed."""

    def check(self, seqlen_q: int, seqlen_k: int) -> None:
        if seqlen_q > seqlen_k:
            raise UserError(
                f"mask {self.kind}: seqlen_q {seqlen_q} must not exceed seqlen_k {seqlen_k}"
            )

    def predicate(self, seqlen_q: int, seqlen_k: int, table: Table = np.asarray) -> Predicate:
        allowed = table(self.block_table(-(-seqlen_k // self.block)))
        block = self.block
        if self.causal:
            return lambda q, k: allowed[q // block, k // block] & (q >= k)
        return lambda q, k: allowed[q // block, k // block]

    def tally(self, seqlen_q: int, seqlen_k: int) -> Coverage:
        allowed = self.block_table(-(-seqlen_k // self.block))
        q_pos, k_pos = positions(seqlen_q, seqlen_k)
        widths = np.bincount(k_pos // self.block)
        row = q_pos // self.block
        if self.causal:
            allowed = np.tril(allowed)
            # Of the block on the diagonal a query sees the part up to itself.
            cut = (widths[row] - 1 - q_pos % self.block) * allowed[row, row]
        else:
            cut = np.zeros_like(q_pos)
        pairs = (allowed @ widths)[row] - cut
        # Every block of rows reaches its end, where all of an allowed square is visible.
        keys = widths[allowed[row[0] :].any(axis=0)]
        return Coverage(int(pairs.sum()), int((pairs > 0).sum()), int(keys.sum()))


@dataclass(frozen=True)
class BlockSparse(_BlockMask):
    """Any list of blocks, or a share of all blocks drawn from ``seed``.

    ``blocks_kept`` lists allowed ``(query block, key block)`` squares; a query left without
    a key gives zeros. With ``blocks_per_row`` each row of blocks keeps that many, drawn from
    those that causality lets it see. With neither each square is kept with probability
    ``density``. Drawn masks keep the diagonal, so that no query is left without a key.
    """

    kind: ClassVar[str] = "block_sparse"
    blocks_kept: tuple[tuple[int, int], ...] = ()
    density: float = 0.25
    blocks_per_row: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(0, "blocks_per_row")
        if not 0 < self.density <= 1:
            raise UserError(f"mask block_sparse: density must be in (0, 1], got {self.density}")
        for pair in self.blocks_kept:
            if not isinstance(pair, tuple) or [type(index) for index in pair] != [int, int]:
                raise UserError(
                    "mask block_sparse: blocks_kept must hold pairs (query block, key block), "
                    f"got {pair!r}"
                )
        for given, idle in (
            ("blocks_kept", ("density", "seed", "blocks_per_row")),
            ("blocks_per_row", ("density",)),
        ):
            for name in idle:
                if getattr(self, given) and getattr(self, name) != getattr(type(self), name):
                    raise UserError(
                        f"mask block_sparse: {name} {getattr(self, name)} has no effect when "
                        f"{given} is given; leave one out"
                    )

    def check(self, seqlen_q: int, seqlen_k: int) -> None:
        super().check(seqlen_q, seqlen_k)
        last = -(-seqlen_k // self.block) - 1
        for pair in self.blocks_kept:
            if not all(0 <= index <= last for index in pair):
                raise UserError(
                    f"mask block_sparse: block {pair} lies outside 0…{last} at seqlen_k {seqlen_k}"
                )

    def block_table(self, blocks: int) -> Bools:
        if self.blocks_kept:
            kept = np.zeros((blocks, blocks), dtype=np.bool_)
            rows, columns = zip(*self.blocks_kept, strict=True)
            kept[list(rows), list(columns)] = True
            return kept
        rng = np.random.default_rng([self.seed, blocks])
        if self.blocks_per_row:
            drawn = np.eye(blocks, dtype=np.bool_)
            for row in range(blocks):
                others = np.delete(np.arange(row + 1 if self.causal else blocks), row)
                drawn[row, rng.permutation(others)[: self.blocks_per_row - 1]] = True
            return drawn
        drawn = rng.random((blocks, blocks)) < self.density
        return drawn | np.eye(blocks, dtype=np.bool_)


@dataclass(frozen=True)
class BigBird(_BlockMask):
    """Window + global + random blocks (Zaheer et al. 2020, arXiv 2007.14062)."""

    kind: ClassVar[str] = "bigbird"
    window_blocks: int = 3
    global_blocks: int = 1
    random_blocks: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(0, "window_blocks", "global_blocks", "random_blocks")
        if self.window_blocks % 2 == 0:
            raise UserError(f"mask bigbird: window_blocks must be odd, got {self.window_blocks}")

    def block_table(self, blocks: int) -> Bools:
        index = np.arange(blocks)
        kept: Bools = np.abs(index[:, None] - index[None, :]) <= self.window_blocks // 2
        kept[: self.global_blocks, :] = True
        kept[:, : self.global_blocks] = True
        rng = np.random.default_rng([self.seed, blocks])
        for row in range(blocks):
            free = np.flatnonzero(~kept[row, : row + 1] if self.causal else ~kept[row])
            kept[row, rng.permutation(free)[: self.random_blocks]] = True
        return kept
