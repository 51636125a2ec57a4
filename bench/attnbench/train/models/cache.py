"""A cache of keys and values: allocated once, and given as a view of what is filled.

A step attends over that view, which is what a problem with ``decode`` describes. It is a layer
of a transformers' cache, and our own model uses the same.

Letters: B = batch, G = heads_kv, T = tokens that are added, N = tokens so far, S = capacity,
D = head_dim.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

from attnbench.attention import Layout


class Filled(DynamicLayer):  # type: ignore[misc]
    """One layer's cache: room for all tokens, and a view of those that are there.

    Args:
        capacity: tokens it has room for.
        layout: in memory, as the implementation likes its keys, so that none are copied.
    """

    def __init__(self, capacity: int, layout: Layout) -> None:
        super().__init__()
        self.capacity = capacity
        self.layout = layout
        self.count = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate, when the first tokens come."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self._room = tuple(self._allocate(x) for x in (key_states, value_states))
        self.is_initialized = True

    def _allocate(self, x_BGTD: torch.Tensor) -> torch.Tensor:
        batch, heads, _, dim = x_BGTD.shape
        if self.layout == "BHSD":
            return x_BGTD.new_zeros(batch, heads, self.capacity, dim)
        return x_BGTD.new_zeros(batch, self.capacity, heads, dim).transpose(1, 2)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add tokens ``(B, G, T, D)``; views of all, ``(B, G, N, D)``."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        first, self.count = self.count, self.count + key_states.shape[2]
        for room_BGSD, x_BGTD in zip(self._room, (key_states, value_states), strict=True):
            room_BGSD[:, :, first : self.count] = x_BGTD
        self.keys, self.values = (room[:, :, : self.count] for room in self._room)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Tokens that are there."""
        return self.count

    def reset(self) -> None:
        """Forget the tokens, keep the room."""
        self.count = 0

    def poison(self) -> None:
        """Leave NaN in the room."""
        for room_BGSD in self._room:
            room_BGSD.fill_(float("nan"))

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the room, as they are allocated."""
        return sum(room.untyped_storage().nbytes() for room in self._room)
