"""Masks whose rows are scattered keys: strided, fixed, dilated.

Letters: M = seqlen_q, N = seqlen_k.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from attnbench.errors import UserError
from attnbench.masks.base import LARGEST, Coverage, Mask, Predicate, Table, positions


@dataclass(frozen=True)
class Strided(Mask):
    """Sparse Transformer's strided pattern (Child et al. 2019, arXiv 1904.10509, §4.3).

    The ``stride`` most recent keys, and every ``stride``-th one before them. With
    ``causal = false`` the same ahead.
    """

    kind: ClassVar[str] = "strided"
    stride: int = 64
    causal: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(1, "stride")

    def predicate(self, seqlen_q: int, seqlen_k: int, table: Table = np.asarray) -> Predicate:
        stride = self.stride
        if self.causal:
            return lambda q, k: (q >= k) & ((q - k < stride) | ((q - k) % stride == 0))
        return lambda q, k: ((q - k < stride) & (k - q < stride)) | ((q - k) % stride == 0)

    @property
    def period(self) -> int:
        return self.stride

    def tally(self, seqlen_q: int, seqlen_k: int) -> Coverage:
        q_pos, k_pos = positions(seqlen_q, seqlen_k)
        behind = np.maximum(q_pos, -1)  # keys before the query; −1 puts a query before them all
        pairs = np.minimum(behind + 1, self.stride) + behind // self.stride * (behind >= 0)
        if not self.causal:
            # Ahead lie distances d in [first, last]: the near ones, then the multiples.
            first, last = np.maximum(1, -q_pos), seqlen_k - 1 - q_pos
            pairs += np.maximum(np.minimum(last, self.stride - 1) - first + 1, 0)
            pairs += last // self.stride - (first - 1) // self.stride
        # A key in the queries' range sees itself; an earlier one is met by the first query
        # that is near, or by the first one a multiple of stride away.
        gap = q_pos[0] - k_pos
        keys = (gap < self.stride) | (-gap % self.stride < seqlen_q)
        return Coverage(int(pairs.sum()), int((pairs > 0).sum()), int(keys.sum()))


@dataclass(frozen=True)
class Fixed(Mask):
    """Sparse Transformer's fixed pattern (Child et al. 2019, arXiv 1904.10509, §4.3).

    The sequence is cut into blocks of ``stride``. A query sees its own block, and the last
    ``summary`` keys of every block (the paper's c). With ``causal``, only what is not ahead.
    """

    kind: ClassVar[str] = "fixed"
    stride: int = 64
    summary: int = 8
    causal: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(1, "stride", "summary")
        if self.summary > self.stride:
            raise UserError(
                f"mask fixed: summary {self.summary} must not exceed stride {self.stride}"
            )

    def predicate(self, seqlen_q: int, seqlen_k: int, table: Table = np.asarray) -> Predicate:
        stride, first = self.stride, self.stride - self.summary
        if self.causal:
            return lambda q, k: (q >= k) & ((q // stride == k // stride) | (k % stride >= first))
        return lambda q, k: (q // stride == k // stride) | (k % stride >= first)

    def tally(self, seqlen_q: int, seqlen_k: int) -> Coverage:
        q_pos, k_pos = positions(seqlen_q, seqlen_k)
        stride, q_block = self.stride, q_pos // self.stride
        is_summary = k_pos % stride >= stride - self.summary
        if self.causal:
            pairs = (q_pos % stride + 1 + q_block * self.summary) * (q_pos >= 0)
        else:
            # Of its own block a query sees what is no summary too; before the keys it has none.
            details = np.bincount(k_pos[~is_summary] // stride, minlength=q_block[-1] + 1)
            pairs = int(is_summary.sum()) + np.where(q_pos >= 0, details[np.maximum(q_block, 0)], 0)
        # The last query is behind every summary; other keys need a query of their block.
        keys = is_summary | (k_pos // stride >= q_block[0])
        return Coverage(int(pairs.sum()), int((pairs > 0).sum()), int(keys.sum()))


@dataclass(frozen=True)
class Dilated(Mask):
    """Dilated sliding window (Longformer, Beltagy et al. 2020, arXiv 2004.05150, §3.1).

    ``window`` keys, the query's own among them, each ``dilation`` before the next. With
    ``causal = false`` as many ahead as there are behind.
    """

    kind: ClassVar[str] = "dilated"
    window: int = 64
    dilation: int = 4
    causal: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(1, "window", "dilation")

    def predicate(self, seqlen_q: int, seqlen_k: int, table: Table = np.asarray) -> Predicate:
        reach, step = min(self.window * self.dilation, LARGEST), self.dilation
        if self.causal:
            return lambda q, k: (q >= k) & (q - k < reach) & ((q - k) % step == 0)
        return lambda q, k: (q - k < reach) & (k - q < reach) & ((q - k) % step == 0)

    @property
    def period(self) -> int:
        return self.dilation

    def tally(self, seqlen_q: int, seqlen_k: int) -> Coverage:
        q_pos, k_pos = positions(seqlen_q, seqlen_k)
        step = self.dilation
        pairs = np.clip(q_pos // step + 1, 0, self.window)
        if not self.causal:
            first, last = np.maximum(1, -(q_pos // step)), (seqlen_k - 1 - q_pos) // step
            pairs += np.maximum(np.minimum(last, self.window - 1) - first + 1, 0)
        # A key in the queries' range sees itself; an earlier one is met, if at all, by the
        # first query that is a multiple of steps away.
        steps = np.maximum(-(-(q_pos[0] - k_pos) // step), 0)
        keys = (steps < self.window) & (k_pos + steps * step < seqlen_k)
        return Coverage(int(pairs.sum()), int((pairs > 0).sum()), int(keys.sum()))
