"""A stand-in for xformers' biases: published names, arguments and meaning."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from plain import offsets


class AttentionBias:
    def allowed(self, queries: int, keys: int) -> torch.Tensor:
        raise NotImplementedError


class LowerTriangularMask(AttentionBias):
    """Aligned top-left."""

    def __init__(self, device=None) -> None:
        pass

    def allowed(self, queries, keys):
        return offsets(queries, keys, bottom_right=False) <= 0


class LowerTriangularFromBottomRightMask(AttentionBias):
    def allowed(self, queries, keys):
        return offsets(queries, keys) <= 0


@dataclass
class LocalAttentionFromBottomRightMask(AttentionBias):
    window_left: int
    window_right: int

    def allowed(self, queries, keys):
        ahead = offsets(queries, keys)
        return (-ahead <= self.window_left) & (ahead <= self.window_right)


class BlockDiagonalMask(AttentionBias):
    def __init__(self, lengths) -> None:
        self.lengths = lengths

    @classmethod
    def from_seqlens(cls, q_seqlen, kv_seqlen=None, *, device=None):
        assert device is not None
        assert kv_seqlen is None
        return cls(list(q_seqlen))

    def allowed(self, queries, keys):
        assert queries == keys == sum(self.lengths)
        blocks = [torch.ones(n, n, dtype=torch.bool) for n in self.lengths]
        return torch.block_diag(*blocks).bool()


class BlockDiagonalCausalMask(BlockDiagonalMask):
    def allowed(self, queries, keys):
        return super().allowed(queries, keys).tril()
